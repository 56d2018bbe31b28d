//! Named tensors, wherever they come from.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Shape and stored type of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// As stored.
    pub dtype: Dtype,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A set of named tensors that are read on demand.
///
/// Names are Hugging Face's whatever the format.
pub trait TensorSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Shape and stored type, or `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads a range of a tensor's elements (row-major) as `to`, converting and dequantising; in
    /// parallel where it is large. `dst` holds exactly that many elements, in native byte order.
    ///
    /// Conversion rounds to nearest, ties to even. Types other than f32, f16 and bf16 can only be
    /// read as what they are.
    ///
    /// # Errors
    /// If there is no such tensor, the range or `dst` doesn't fit, the stored type doesn't convert
    /// to `to`, or the file can't be read.
    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()>;

    /// Reads a whole tensor; see [`TensorSource::read_range`].
    ///
    /// # Errors
    /// As [`TensorSource::read_range`].
    fn read(&self, name: &str, to: Dtype, dst: &mut [u8]) -> Result<()> {
        // An unknown name is reported by `read_range`, which knows the file.
        let elements = self.info(name).map_or(0, |info| info.elements());
        self.read_range(name, 0..elements, to, dst)
    }

    /// Reads a whole tensor as f32.
    ///
    /// # Errors
    /// As [`TensorSource::read_range`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let elements = self.info(name).map_or(0, |info| info.elements());
        let mut values = vec![0f32; elements];
        self.read(name, Dtype::F32, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// Checks that sizes multiply without overflow and fill whole blocks; returns elements and bytes.
pub(crate) fn extent(shape: &[usize], dtype: Dtype) -> Option<(usize, usize)> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    Some((elements, dtype.bytes(elements)?))
}

/// The error of a name that isn't there.
pub(crate) fn unknown(path: &std::path::Path, name: &str) -> Error {
    Error::UnknownTensor { path: path.to_path_buf(), name: name.into() }
}

impl<S: TensorSource + ?Sized> TensorSource for &S {
    fn names(&self) -> Vec<String> {
        (**self).names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        (**self).info(name)
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        (**self).read_range(name, range, to, dst)
    }
}
