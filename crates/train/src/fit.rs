//! Whether files hold the tensors that a model's configuration asks for.

use crate::error::UnfitTensor;
use crate::{Error, Result};
use ferrotune_checkpoint::TensorSource;
use ferrotune_model::{Model, Source, expert_name};

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
    let one = || match (&found, expected) {
        // All experts of a block are one tensor if all are there and alike: who isn't?
        (None, &[experts, ref matrix @ ..]) => (0..experts).find_map(|expert| {
            let name = expert_name(name, expert)?;
            let found = files.info(&name).map(|info| info.shape);
            let fits = found.as_deref() == Some(matrix);
            (!fits).then(|| UnfitTensor { name, expected: matrix.to_vec(), found })
        }),
        _ => None,
    };
    let all = || UnfitTensor { name: name.to_owned(), expected: expected.to_vec(), found: found.clone() };
    (!fits).then(|| one().unwrap_or_else(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_checkpoint::{Dtype, Result, TensorInfo};
    use std::ops::Range;

    /// Names and shapes.
    struct Names(Vec<(&'static str, Vec<usize>)>);

    impl TensorSource for Names {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|(name, _)| (*name).to_owned()).collect()
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            let (_, shape) = self.0.iter().find(|(n, _)| *n == name)?;
            Some(TensorInfo { shape: shape.clone(), dtype: Dtype::F32 })
        }
        fn read_range(&self, _: &str, _: Range<usize>, _: Dtype, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_expert_that_is_missing_or_unlike_the_others_is_named() {
        let of = |expert: &'static str, shape: [usize; 2]| (expert, shape.to_vec());
        let [zero, one, two] =
            [0, 1, 2].map(|e| ["e.experts.0.w1.weight", "e.experts.1.w1.weight", "e.experts.2.w1.weight"][e]);
        let told = |files: Vec<(&'static str, Vec<usize>)>| {
            let files = crate::Stacked::new(Names(files));
            check_tensor(&files, "e.experts.w1.weight", &[3, 4, 5])
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        assert_eq!(told(vec![of(zero, [4, 5]), of(one, [4, 5]), of(two, [4, 5])]), "");
        let lacks = told(vec![of(zero, [4, 5]), of(two, [4, 5])]);
        assert!(lacks.contains("e.experts.1.w1.weight is missing, expected with shape [4, 5]"), "{lacks}");
        let unlike = told(vec![of(zero, [4, 5]), of(one, [4, 5]), of(two, [5, 4])]);
        assert!(unlike.contains("e.experts.2.w1.weight has shape [5, 4], expected [4, 5]"), "{unlike}");
        let few = told(vec![of(zero, [4, 5]), of(one, [4, 5])]);
        assert!(few.contains("e.experts.w1.weight has shape [2, 4, 5], expected [3, 4, 5]"), "{few}");
        assert!(told(vec![]).contains("e.experts.0.w1.weight is missing"));
    }
}
