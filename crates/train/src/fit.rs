//! Whether files hold the tensors that a model's configuration asks for.

use crate::error::UnfitTensor;
use crate::{Error, Result};
use ferrotune_checkpoint::TensorSource;
use ferrotune_model::{Model, Source};

/// Checks all of a model's tensors before any is read.
///
/// # Errors
/// [`Error::Unfit`] with everything that is missing or of another shape.
pub fn check_files(model: &Model, files: &dyn TensorSource) -> Result<()> {
    let unfit = model.parameters().iter().filter_map(|parameter| match &parameter.source {
        Source::File(name) => unfit(files, name, parameter.param.shape.dims()),
        _ => None,
    });
    let unfit: Vec<UnfitTensor> = unfit.collect();
    if unfit.is_empty() { Ok(()) } else { Err(Error::Unfit(unfit)) }
}

/// Checks one tensor.
pub(crate) fn check_tensor(files: &dyn TensorSource, name: &str, expected: &[usize]) -> Result<()> {
    unfit(files, name, expected).map_or(Ok(()), |tensor| Err(Error::Unfit(vec![tensor])))
}

fn unfit(files: &dyn TensorSource, name: &str, expected: &[usize]) -> Option<UnfitTensor> {
    let found = files.info(name).map(|info| info.shape);
    let fits = found.as_deref() == Some(expected);
    (!fits).then(|| UnfitTensor { name: name.to_owned(), expected: expected.to_vec(), found })
}
