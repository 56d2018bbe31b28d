//! First values of parameters: from the model's files, from adapters, or at random.

use super::Engine;
use crate::fit::check_tensor;
use crate::{Error, Result};
use ferrotune_checkpoint::{Adapter, Dtype, HostTensor, TensorSource, open_model};
use ferrotune_model::{Parameter, Role, Source};
use ferrotune_tensor::{DType, Kind, Tensor, ops};
use std::path::Path;

/// An adapter and where it was read, for errors.
pub struct LoadedAdapter {
    /// Its folder, as the user named it.
    pub path: String,
    /// What it holds.
    pub adapter: Adapter,
}

impl Engine {
    /// Gives every parameter its first value. Adapters in `merged` are added to the weights that they adapt, in order;
    /// `continued` replaces the fresh adapter. `seed` is that of new adapters.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape, an adapter doesn't fit, or a file can't be read.
    pub fn load(
        &self,
        files: &dyn TensorSource,
        merged: &[LoadedAdapter],
        continued: Option<&LoadedAdapter>,
        seed: u64,
    ) -> Result<()> {
        for given in merged.iter().chain(continued) {
            given.adapter.check_fits(given.path.as_ref(), files)?;
            self.check_taken(given)?;
        }
        for parameter in self.parameters() {
            let value = self.value(&parameter.param);
            match &parameter.source {
                Source::File(name) => {
                    read(files, name, parameter, &value)?;
                    for given in merged {
                        self.merge(given, parameter);
                    }
                }
                Source::Uniform { bound } => ops::fill_uniform(&value, *bound, seed, parameter.param.id as u64),
                Source::Zeros | Source::RowNorms { .. } => {}
            }
            if let Some(given) = continued {
                self.overlay(given, parameter)?;
            }
        }
        self.fill_magnitudes(continued);
        self.copy_masters();
        Ok(())
    }

    /// Every tensor of an adapter must have a weight of this model to go to.
    fn check_taken(&self, given: &LoadedAdapter) -> Result<()> {
        let modules = given.adapter.modules.keys().map(|module| format!("{module}.weight"));
        let mut names = modules.chain(given.adapter.saved.keys().cloned());
        let known = |name: &String| self.parameters().iter().any(|p| p.param.name == *name);
        // Where the adapter keeps embedding and head tied, the head's copy is the embedding's.
        let tied = |name: &String| name == "lm_head.weight" && !given.adapter.separates_head();
        match names.find(|name| !known(name) && !tied(name)) {
            Some(name) => Err(Error::AdapterUnused { path: given.path.clone(), name }),
            None => Ok(()),
        }
    }

    /// Takes the trained weights of a checkpoint that was saved without optimiser states: an adapter, or a whole model.
    ///
    /// # Errors
    /// If a file is missing or not of this run.
    pub fn reload(&self, folder: &Path, adapter: bool) -> Result<()> {
        if adapter {
            let given = LoadedAdapter { path: folder.display().to_string(), adapter: Adapter::read(folder)? };
            self.parameters().iter().filter(|p| p.param.trainable).try_for_each(|p| self.overlay(&given, p))?;
        } else {
            let model = open_model(folder)?;
            for parameter in self.parameters().iter().filter(|p| p.param.trainable) {
                read(&*model.tensors, &parameter.param.name, parameter, &self.value(&parameter.param))?;
            }
        }
        self.copy_masters();
        Ok(())
    }

    /// DoRA's magnitudes start at the norms of the merged rows, so they come last.
    fn fill_magnitudes(&self, continued: Option<&LoadedAdapter>) {
        for parameter in self.parameters() {
            let Source::RowNorms { weight, a, b, scale } = &parameter.source else { continue };
            if continued.is_none_or(|given| part(&given.adapter, parameter).is_none()) {
                let of = |id: usize| self.value(&self.parameters()[id].param);
                ops::copy(&self.value(&parameter.param), &ops::row_norms(&of(*weight), &of(*a), &of(*b), *scale));
            }
        }
    }

    fn copy_masters(&self) {
        for parameter in self.parameters() {
            let (value, precise) = (self.value(&parameter.param), self.precise_value(&parameter.param));
            if value.dtype() != precise.dtype() {
                ops::cast(&precise, &value);
            }
        }
    }

    /// Adds an adapter's update to the base weight that it adapts, or replaces a module that it trained whole.
    fn merge(&self, given: &LoadedAdapter, parameter: &Parameter) {
        let (adapter, weight) = (&given.adapter, self.value(&parameter.param));
        if let Some(saved) = adapter.saved.get(&parameter.param.name) {
            weight.write_f32(&saved.data);
            return;
        }
        let module = parameter.param.name.strip_suffix(".weight");
        let Some((module, lora)) = module.and_then(|m| adapter.modules.get(m).map(|lora| (m, lora))) else { return };
        let upload = |host: &HostTensor| Tensor::from_f32(self.device(), &host.data, &host.shape[..], Kind::Work);
        let (a, b) = (upload(&lora.a), upload(&lora.b));
        let scale = adapter.config.scaling(module) as f32;
        match &lora.magnitude {
            // An embedding's A is [r, vocabulary]: its update is (B A)'.
            None if lora.embedding => ops::merge_embedding_lora(&weight, &a, &b, scale),
            None => ops::merge_lora(&weight, &a, &b, scale),
            Some(magnitude) => ops::merge_dora(&weight, &a, &b, scale, &upload(magnitude)),
        }
    }

    /// Takes an adapter's tensors as the first values of the parameters that train.
    fn overlay(&self, given: &LoadedAdapter, parameter: &Parameter) -> Result<()> {
        let param = &parameter.param;
        match part(&given.adapter, parameter) {
            Some(host) if host.shape == param.shape.dims() => self.value(param).write_f32(&host.data),
            Some(host) => {
                let (path, module) = (given.path.clone(), param.name.clone());
                let (found, expected) = (host.shape.clone(), param.shape.dims().to_vec());
                return Err(Error::AdapterShape { path, module, found, expected });
            }
            None if matches!(parameter.role, Role::LoraA | Role::LoraB) => {
                return Err(Error::AdapterLacks { path: given.path.clone(), name: param.name.clone() });
            }
            None => {}
        }
        Ok(())
    }
}

/// The adapter's tensor for a parameter of this run.
fn part<'a>(adapter: &'a Adapter, parameter: &Parameter) -> Option<&'a HostTensor> {
    let name = &parameter.param.name;
    let lora = |ending: &str| name.strip_suffix(ending).and_then(|module| adapter.modules.get(module));
    match parameter.role {
        Role::Base => adapter.saved.get(name),
        Role::LoraA => lora(".lora_A.weight").map(|l| &l.a),
        Role::LoraB => lora(".lora_B.weight").map(|l| &l.b),
        Role::Magnitude => lora(".lora_magnitude_vector").and_then(|l| l.magnitude.as_ref()),
    }
}

fn read(files: &dyn TensorSource, name: &str, parameter: &Parameter, to: &Tensor) -> Result<()> {
    check_tensor(files, name, parameter.param.shape.dims())?;
    let dtype = if to.dtype() == DType::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
    let mut result = Ok(());
    to.with_bytes_mut(|bytes| result = files.read(name, dtype, bytes));
    Ok(result?)
}
