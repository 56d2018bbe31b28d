//! First values that no file holds: rows of new tokens, and whole models that start from nothing.

use ferrotune_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, encode};
use ferrotune_model::{Model, Source};
use ferrotune_tensor::cpu;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// Matrices with a row a token.
const BY_TOKEN: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// A model's files with more rows in the embedding and the head (`resize_vocab`). As LLaMA-Factory does, new rows are the
/// mean of the old ones plus normal noise of deviation `1 / sqrt(width)`.
pub struct Grown<'a> {
    inner: &'a dyn TensorSource,
    rows: usize,
    seed: u64,
    fresh: [OnceLock<Vec<f32>>; 2],
}

impl<'a> Grown<'a> {
    /// `inner` with `rows` rows in the embedding and the head.
    pub fn new(inner: &'a dyn TensorSource, rows: usize, seed: u64) -> Self {
        Self { inner, rows, seed, fresh: [OnceLock::new(), OnceLock::new()] }
    }

    /// The place of `name` in [`BY_TOKEN`] and its old shape, if it grows.
    fn grows(&self, name: &str) -> Option<(usize, [usize; 2])> {
        let at = BY_TOKEN.iter().position(|n| *n == name)?;
        match self.inner.info(name)?.shape[..] {
            [rows, width] if rows < self.rows => Some((at, [rows, width])),
            _ => None,
        }
    }

    /// The new rows of a matrix, made once.
    fn new_rows(&self, at: usize, [rows, width]: [usize; 2]) -> Result<&[f32]> {
        if let Some(made) = self.fresh[at].get() {
            return Ok(made);
        }
        let old = self.inner.read_f32(BY_TOKEN[at])?;
        let mut mean = vec![0f64; width];
        for row in old.chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / rows as f64);
        }
        let mut new = vec![0f32; (self.rows - rows) * width];
        cpu::fill_normal(&mut new, 0.0, 1.0 / (width as f32).sqrt(), self.seed, at as u64);
        new.iter_mut().enumerate().for_each(|(i, v)| *v += mean[i % width] as f32);
        Ok(self.fresh[at].get_or_init(|| new))
    }
}

impl TensorSource for Grown<'_> {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut info = self.inner.info(name)?;
        if self.grows(name).is_some() {
            info.shape[0] = self.rows;
        }
        Some(info)
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        let Some((at, shape)) = self.grows(name) else { return self.inner.read_range(name, range, to, dst) };
        let old = shape[0] * shape[1];
        let border = range.start.max(old.min(range.end));
        let bytes = to.block().1;
        let (head, tail) = dst.split_at_mut((border - range.start) * bytes);
        if range.start < border {
            self.inner.read_range(name, range.start..border, to, head)?;
        }
        if border < range.end {
            encode(to, &self.new_rows(at, shape)?[border - old..range.end - old], tail);
        }
        Ok(())
    }
}

/// Random weights for every parameter of a model (`train_from_scratch`): matrices are normal with the deviation that
/// config.json gives, norms are one, biases zero, as transformers initialises them.
pub struct Fresh {
    shapes: HashMap<String, (Vec<usize>, u64)>,
    deviation: f32,
    seed: u64,
}

impl Fresh {
    /// Weights for `model`; `deviation` is `initializer_range`.
    pub fn new(model: &Model, deviation: f32, seed: u64) -> Self {
        let named = model.parameters().iter().filter_map(|p| match &p.source {
            Source::File(name) => Some((name.clone(), (p.param.shape.dims().to_vec(), p.param.id as u64))),
            _ => None,
        });
        Self { shapes: named.collect(), deviation, seed }
    }
}

impl TensorSource for Fresh {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.shapes.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shapes.get(name).map(|(shape, _)| TensorInfo { shape: shape.clone(), dtype: Dtype::F32 })
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        let Some((shape, stream)) = self.shapes.get(name) else {
            return Err(Error::UnknownTensor { path: "train_from_scratch".into(), name: name.to_owned() });
        };
        let mut values = vec![0f32; shape.iter().product()];
        if name.contains("norm") {
            values.fill(1.0);
        } else if !name.ends_with("bias") {
            cpu::fill_normal(&mut values, 0.0, self.deviation, self.seed, *stream);
        }
        encode(to, &values[range], dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An embedding of two rows of three.
    struct Old;

    impl TensorSource for Old {
        fn names(&self) -> Vec<String> {
            vec![BY_TOKEN[0].to_owned()]
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            (name == BY_TOKEN[0]).then(|| TensorInfo { shape: vec![2, 3], dtype: Dtype::F32 })
        }
        fn read_range(&self, _: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
            encode(to, &[10.0, 20.0, 30.0, 12.0, 22.0, 32.0][range], dst);
            Ok(())
        }
    }

    #[test]
    fn new_rows_lie_around_the_mean_and_old_ones_stay() {
        let grown = Grown::new(&Old, 64, 3);
        assert_eq!(grown.info(BY_TOKEN[0]).unwrap().shape, [64, 3]);
        let all = grown.read_f32(BY_TOKEN[0]).unwrap();
        assert_eq!(all[..6], [10.0, 20.0, 30.0, 12.0, 22.0, 32.0]);
        for column in 0..3 {
            let new: Vec<f32> = all[6..].iter().skip(column).step_by(3).copied().collect();
            let mean = new.iter().sum::<f32>() / new.len() as f32;
            assert!((mean - (11.0 + 10.0 * column as f32)).abs() < 0.4, "{mean}");
            assert!(new.iter().any(|v| (v - mean).abs() > 0.3));
        }
        let mut part = vec![0u8; 4 * 4];
        grown.read_range(BY_TOKEN[0], 4..8, Dtype::F32, &mut part).unwrap();
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&part), all[4..8]);
    }
}
