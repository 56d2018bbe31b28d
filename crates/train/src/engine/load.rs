//! First values of parameters: from the model's files, from adapters, or at random.

use super::Engine;
use crate::fit::check_tensor;
use crate::stacked::{Stacked, stack_adapter};
use crate::{Error, Result};
use ferrotune_checkpoint::{Adapter, Dtype, HostTensor, TensorSource, open_model};
use ferrotune_model::{Parameter, Role, Source, expert_name, stack_name};
use ferrotune_tensor::{DType, Kind, Tensor, ops};
use std::collections::HashSet;
use std::ops::Range;
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
        let stacked = continued.map(|given| self.stacked(given));
        let origins = Origins::new(files, merged, stacked.as_ref(), seed);
        for parameter in self.parameters() {
            let Some((range, part)) = self.part(&parameter.param) else { continue };
            match (&parameter.source, origins.touched(parameter)) {
                // What comes from a file as it is needn't be whole anywhere.
                (Source::File(name), false) => read(files, name, parameter, range, &part)?,
                _ => {
                    let whole = self.first_value(&origins, parameter)?.reshape([parameter.param.shape.numel()]);
                    ops::copy(&part, &whole.view(part.dtype().bytes(range.start), [range.len()], part.dtype()));
                }
            }
        }
        self.copy_masters();
        self.check()
    }

    /// An adapter whose experts lie as the model has them.
    fn stacked(&self, given: &LoadedAdapter) -> LoadedAdapter {
        let mut adapter = given.adapter.clone();
        stack_adapter(&mut adapter, |module| {
            let name = format!("{module}.weight");
            let param = &self.parameters().iter().find(|p| p.param.name == name)?.param;
            param.shape.dims().first().copied()
        });
        LoadedAdapter { path: given.path.clone(), adapter }
    }

    /// Every tensor of an adapter must have a weight of this model to go to.
    fn check_taken(&self, given: &LoadedAdapter) -> Result<()> {
        let whole = |module: &String| stack_name(module).map_or_else(|| module.clone(), |(stack, _)| stack);
        let modules = given.adapter.modules.keys().map(|module| format!("{}.weight", whole(module)));
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
        let trained = self.parameters().iter().filter(|p| p.param.trainable);
        let here = trained.filter_map(|p| self.part(&p.param).map(|(range, part)| (p, range, part)));
        if adapter {
            let given = LoadedAdapter { path: folder.display().to_string(), adapter: Adapter::read(folder)? };
            let given = self.stacked(&given);
            for (parameter, range, part) in here {
                if let Some(host) = fitting(&given, parameter)? {
                    part.write_f32(&host.data[range]);
                }
            }
        } else {
            let model = open_model(folder)?;
            let tensors = Stacked::new(&*model.tensors);
            for (parameter, range, part) in here {
                read(&tensors, &parameter.param.name, parameter, range, &part)?;
            }
        }
        self.copy_masters();
        Ok(())
    }

    /// A parameter's whole first value.
    fn first_value(&self, origins: &Origins<'_>, parameter: &Parameter) -> Result<Tensor> {
        let param = &parameter.param;
        let value = self.device().empty(param.shape, param.dtype, Kind::Work);
        match &parameter.source {
            Source::File(name) => {
                read(origins.files, name, parameter, 0..param.shape.numel(), &value)?;
                origins.merged.iter().for_each(|given| self.merge(given, parameter, &value));
            }
            Source::Uniform { bound } => ops::fill_uniform(&value, *bound, origins.seed, param.id as u64),
            Source::Zeros => value.zero(),
            Source::RowNorms { weight, a, b, scale } => {
                let of = |id: usize| self.first_value(origins, &self.parameters()[id]);
                ops::copy(&value, &ops::row_norms(&of(*weight)?, &of(*a)?, &of(*b)?, *scale));
            }
        }
        if let Some(given) = origins.continued
            && let Some(host) = fitting(given, parameter)?
        {
            value.write_f32(&host.data);
        }
        Ok(value)
    }

    /// Takes this rank's f32 parts from weights that were given.
    fn copy_masters(&self) {
        for group in &self.groups {
            if let Some(master) = group.training.as_ref().and_then(|t| t.master.as_ref()) {
                ops::cast(master, &group.own_of(&group.weights));
            }
        }
    }

    /// Adds an adapter's update to the base weight that it adapts, or replaces a module that it trained whole.
    fn merge(&self, given: &LoadedAdapter, parameter: &Parameter, weight: &Tensor) {
        let adapter = &given.adapter;
        if let Some(saved) = adapter.saved.get(&parameter.param.name) {
            weight.write_f32(&saved.data);
            return;
        }
        let Some(module) = parameter.param.name.strip_suffix(".weight") else { return };
        if let &[experts, out, inputs] = weight.dims() {
            for expert in 0..experts {
                let one = expert_name(module, expert).unwrap_or_default();
                self.merge_module(adapter, &one, &weight.rows(expert, 1).reshape([out, inputs]));
            }
            return;
        }
        self.merge_module(adapter, module, weight);
    }

    /// Adds a module's update to its weight, if the adapter has one.
    fn merge_module(&self, adapter: &Adapter, module: &str, weight: &Tensor) {
        let Some(lora) = adapter.modules.get(module) else { return };
        let upload = |host: &HostTensor| Tensor::from_f32(self.device(), &host.data, &host.shape[..], Kind::Work);
        let (a, b) = (upload(&lora.a), upload(&lora.b));
        let scale = adapter.config.scaling(module) as f32;
        match &lora.magnitude {
            // An embedding's A is [r, vocabulary]: its update is (B A)'.
            None if lora.embedding => ops::merge_embedding_lora(weight, &a, &b, scale),
            None => ops::merge_lora(weight, &a, &b, scale),
            Some(magnitude) => ops::merge_dora(weight, &a, &b, scale, &upload(magnitude)),
        }
    }
}

/// Where first values come from.
struct Origins<'a> {
    files: &'a dyn TensorSource,
    merged: &'a [LoadedAdapter],
    continued: Option<&'a LoadedAdapter>,
    seed: u64,
    /// Names of modules and parameters that an adapter changes; of experts those of all.
    touched: HashSet<String>,
}

impl<'a> Origins<'a> {
    fn new(
        files: &'a dyn TensorSource,
        merged: &'a [LoadedAdapter],
        continued: Option<&'a LoadedAdapter>,
        seed: u64,
    ) -> Self {
        let given = || merged.iter().chain(continued).map(|given| &given.adapter);
        let whole = |module: &String| stack_name(module).map_or_else(|| module.clone(), |(stack, _)| stack);
        let modules = given().flat_map(|adapter| adapter.modules.keys().map(whole));
        let touched = modules.chain(given().flat_map(|adapter| adapter.saved.keys().cloned())).collect();
        Self { files, merged, continued, seed, touched }
    }

    /// Whether an adapter changes the parameter's value from that of its file.
    fn touched(&self, parameter: &Parameter) -> bool {
        let name = &parameter.param.name;
        self.touched.contains(name) || self.touched.contains(name.strip_suffix(".weight").unwrap_or(name))
    }
}

/// An adapter's tensor for a parameter, of the right shape; `None` if it has none and needs none.
fn fitting<'a>(given: &'a LoadedAdapter, parameter: &Parameter) -> Result<Option<&'a HostTensor>> {
    let param = &parameter.param;
    match part(&given.adapter, parameter) {
        Some(host) if host.shape == param.shape.dims() => Ok(Some(host)),
        Some(host) => {
            let (path, module) = (given.path.clone(), param.name.clone());
            let (found, expected) = (host.shape.clone(), param.shape.dims().to_vec());
            Err(Error::AdapterShape { path, module, found, expected })
        }
        None if matches!(parameter.role, Role::LoraA | Role::LoraB) => {
            Err(Error::AdapterLacks { path: given.path.clone(), name: param.name.clone() })
        }
        None => Ok(None),
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

/// Reads the elements `range` of a parameter's file tensor.
fn read(files: &dyn TensorSource, name: &str, parameter: &Parameter, range: Range<usize>, to: &Tensor) -> Result<()> {
    check_tensor(files, name, parameter.param.shape.dims())?;
    let dtype = match to.dtype() {
        DType::Bf16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let begin = range.start;
    to.write_parts(|part, bytes| files.read_range(name, begin + part.start..begin + part.end, dtype, bytes))?;
    Ok(())
}
