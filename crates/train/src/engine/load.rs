//! First values of parameters: from the model's files, from adapters, or at random.

use super::Engine;
use crate::{Error, Result};
use ferrotune_checkpoint::{Dtype, TensorSource};
use ferrotune_model::{Parameter, Role, Source};
use ferrotune_tensor::{DType, Kind, Tensor, ops};

/// An adapter's tensors by the names of the model's parameters, with its own scale.
pub struct AdapterWeights<'a> {
    /// The tensors.
    pub tensors: &'a dyn TensorSource,
    /// Name in the file of a parameter of ours, if the file has it.
    pub file_name: &'a dyn Fn(&str) -> Option<String>,
    /// alpha / r, or alpha / sqrt(r).
    pub scale: f32,
    /// For errors.
    pub path: &'a str,
}

impl Engine {
    /// Gives every parameter its first value. Adapters in `merged` are added to the weights that they adapt, in order; `continued`
    /// replaces the fresh adapter. `seed` is that of new adapters.
    pub fn load(&self, files: &dyn TensorSource, merged: &[AdapterWeights<'_>], continued: Option<&AdapterWeights<'_>>, seed: u64) -> Result<()> {
        for parameter in self.parameters() {
            match &parameter.source {
                Source::File(name) => {
                    self.read(files, name, parameter)?;
                    for adapter in merged {
                        self.merge(adapter, parameter)?;
                    }
                }
                Source::Uniform { bound } => ops::fill_uniform(&self.value(&parameter.param), *bound, seed, parameter.param.id as u64),
                Source::Zeros | Source::RowNorms { .. } => {}
            }
            if let Some(adapter) = continued {
                self.overlay(adapter, parameter)?;
            }
        }
        self.fill_magnitudes(continued)?;
        self.copy_masters();
        Ok(())
    }

    /// DoRA's magnitudes start at the norms of the merged rows, so they come last.
    fn fill_magnitudes(&self, continued: Option<&AdapterWeights<'_>>) -> Result<()> {
        for parameter in self.parameters() {
            let Source::RowNorms { weight, a, b, scale } = &parameter.source else { continue };
            let given = continued.is_some_and(|adapter| (adapter.file_name)(&parameter.param.name).is_some());
            if !given {
                let of = |id: usize| self.value(&self.parameters()[id].param);
                ops::copy(&self.value(&parameter.param), &ops::row_norms(&of(*weight), &of(*a), &of(*b), *scale));
            }
        }
        Ok(())
    }

    fn copy_masters(&self) {
        for parameter in self.parameters() {
            let (value, precise) = (self.value(&parameter.param), self.precise_value(&parameter.param));
            if value.dtype() != precise.dtype() {
                ops::cast(&precise, &value);
            }
        }
    }

    fn read(&self, files: &dyn TensorSource, name: &str, parameter: &Parameter) -> Result<()> {
        let want = parameter.param.shape;
        let found = files.info(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned(), shape: want.dims().to_vec() })?;
        if found.shape != want.dims() {
            let (name, expected) = (name.to_owned(), want.dims().to_vec());
            return Err(Error::TensorShape { name, found: found.shape, expected });
        }
        read_into(files, name, &self.value(&parameter.param))
    }

    /// Adds an adapter's update to the base weight that it adapts, or replaces a module that it trained whole.
    fn merge(&self, adapter: &AdapterWeights<'_>, parameter: &Parameter) -> Result<()> {
        let name = &parameter.param.name;
        if let Some(file_name) = (adapter.file_name)(name) {
            return read_into(adapter.tensors, &file_name, &self.value(&parameter.param));
        }
        let Some(module) = name.strip_suffix(".weight") else { return Ok(()) };
        let names = ["lora_A", "lora_B"].map(|part| (adapter.file_name)(&format!("{module}.{part}.weight")));
        let [Some(a), Some(b)] = names else { return Ok(()) };
        let (a, b) = (self.scratch(adapter, &a)?, self.scratch(adapter, &b)?);
        let weight = self.value(&parameter.param);
        let (rows, cols) = (weight.dims()[0], weight.dims()[1]);
        if a.dims()[1] != cols || b.dims()[0] != rows || a.dims()[0] != b.dims()[1] {
            let (path, module) = (adapter.path.to_owned(), module.to_owned());
            return Err(Error::AdapterShape { path, module, found: vec![b.dims()[0], a.dims()[1]], expected: vec![rows, cols] });
        }
        let magnitude = (adapter.file_name)(&format!("{module}.lora_magnitude_vector"));
        let magnitude = magnitude.map(|m| self.scratch(adapter, &m)).transpose()?;
        match magnitude {
            None => ops::merge_lora(&weight, &a, &b, adapter.scale),
            Some(magnitude) => ops::merge_dora(&weight, &a, &b, adapter.scale, &magnitude),
        }
        Ok(())
    }

    fn scratch(&self, adapter: &AdapterWeights<'_>, name: &str) -> Result<Tensor> {
        let info = adapter.tensors.info(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned(), shape: Vec::new() })?;
        let tensor = self.device().empty(&info.shape[..], DType::F32, Kind::Work);
        read_into(adapter.tensors, name, &tensor)?;
        Ok(tensor)
    }

    /// Takes an adapter's tensors as the first values of the parameters that train.
    fn overlay(&self, adapter: &AdapterWeights<'_>, parameter: &Parameter) -> Result<()> {
        let param = &parameter.param;
        match (adapter.file_name)(&param.name) {
            Some(name) => {
                let found = adapter.tensors.info(&name).map(|info| info.shape).unwrap_or_default();
                if found != param.shape.dims() {
                    let (path, module) = (adapter.path.to_owned(), param.name.clone());
                    return Err(Error::AdapterShape { path, module, found, expected: param.shape.dims().to_vec() });
                }
                read_into(adapter.tensors, &name, &self.value(param))
            }
            None if matches!(parameter.role, Role::LoraA | Role::LoraB) => {
                Err(Error::AdapterLacks { path: adapter.path.to_owned(), name: param.name.clone() })
            }
            None => Ok(()),
        }
    }
}

fn read_into(source: &dyn TensorSource, name: &str, to: &Tensor) -> Result<()> {
    let dtype = match to.dtype() {
        DType::Bf16 => Dtype::Bf16,
        _ => Dtype::F32,
    };
    let mut result = Ok(());
    to.with_bytes_mut(|bytes| result = source.read(name, dtype, bytes));
    Ok(result?)
}
