//! What a run writes of its model: a PEFT adapter, or a whole Hugging Face folder; and the state that it resumes from.

use crate::engine::Engine;
use crate::schedule::PlateauState;
use crate::track::{BestState, LossMeter};
use crate::{Error, Result};
use ferrotune_checkpoint::{
    Adapter, AdapterConfig, Dtype, FolderWriter, HostTensor, LoraWeights, Number, OpenModel, OutTensor, SaveModel,
    Snapshot, TargetModules, TensorSource, TokenizerFiles, write_model,
};
use ferrotune_config::plan::{LoraPlan, Tuning};
use ferrotune_model::{Parameter, Role};
use ferrotune_tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The model's side of a checkpoint.
pub struct Saver<'a> {
    /// What trains.
    pub tuning: &'a Tuning,
    /// The configuration of the adapter that goes on training, whose keys stay as they are.
    pub continued: Option<&'a AdapterConfig>,
    /// The model that the run started from.
    pub base: &'a OpenModel,
    /// What users and servers call it: a hub id, or a path.
    pub base_name: &'a str,
    /// Its revision on the hub.
    pub revision: Option<&'a str>,
    /// Tokenizer files as trained with.
    pub tokenizer: &'a TokenizerFiles,
    /// Largest weight file, in bytes.
    pub shard_bytes: u64,
}

impl Saver<'_> {
    /// Writes the model's files: the adapter, or all weights in the type that config.json names.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn write(&self, engine: &Engine, folder: &FolderWriter) -> ferrotune_checkpoint::Result<()> {
        match self.tuning {
            Tuning::Lora(plan) => {
                self.adapter(engine, plan).write(folder)?;
                self.tokenizer.write(folder)
            }
            Tuning::Freeze(_) | Tuning::Full => write_whole(engine, self, folder),
        }
    }

    /// The adapter as it stands.
    pub fn adapter(&self, engine: &Engine, plan: &LoraPlan) -> Adapter {
        let mut modules: BTreeMap<String, [Option<HostTensor>; 3]> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for parameter in engine.parameters().iter().filter(|p| p.param.trainable) {
            let host = host(&engine.precise_value(&parameter.param));
            match lora_part(parameter) {
                Some((module, part)) => modules.entry(module.to_owned()).or_default()[part] = Some(host),
                None => drop(saved.insert(parameter.param.name.clone(), host)),
            }
        }
        let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
        let targets: BTreeSet<String> = modules.keys().map(last).collect();
        let weights = |[a, b, magnitude]: [Option<HostTensor>; 3]| {
            a.zip(b).map(|(a, b)| LoraWeights { a, b, magnitude, embedding: false })
        };
        let modules = modules.into_iter().filter_map(|(name, parts)| weights(parts).map(|w| (name, w))).collect();
        let config = AdapterConfig {
            base_model_name_or_path: Some(self.base_name.to_owned()),
            revision: self.revision.map(str::to_owned),
            r: plan.rank,
            lora_alpha: number(plan.alpha),
            lora_dropout: plan.dropout,
            use_rslora: plan.rslora,
            use_dora: plan.dora,
            target_modules: self.continued.map_or_else(
                || TargetModules::Names(targets.into_iter().collect()),
                |config| config.target_modules.clone(),
            ),
            modules_to_save: (!plan.additional_targets.is_empty()).then(|| plan.additional_targets.clone()),
            inference_mode: true,
            ..self.continued.cloned().unwrap_or_default()
        };
        Adapter { config, modules, saved }
    }
}

fn number(value: f64) -> Number {
    if value.fract() == 0.0 && value.abs() < 1e15 { Number::Whole(value as i64) } else { Number::Real(value) }
}

fn lora_part(parameter: &Parameter) -> Option<(&str, usize)> {
    let (ending, part) = match parameter.role {
        Role::LoraA => (".lora_A.weight", 0),
        Role::LoraB => (".lora_B.weight", 1),
        Role::Magnitude => (".lora_magnitude_vector", 2),
        Role::Base => return None,
    };
    parameter.param.name.strip_suffix(ending).map(|module| (module, part))
}

fn host(tensor: &Tensor) -> HostTensor {
    HostTensor { shape: tensor.dims().to_vec(), data: tensor.to_f32() }
}

/// Writes all base weights of `engine`, in the model's own type.
pub fn write_whole(engine: &Engine, saver: &Saver<'_>, folder: &FolderWriter) -> ferrotune_checkpoint::Result<()> {
    let named = ["dtype", "torch_dtype"].iter().find_map(|key| saver.base.config.get(*key)?.as_str());
    let dtype = match named {
        Some("bfloat16") => Dtype::Bf16,
        Some("float16") => Dtype::F16,
        _ => Dtype::F32,
    };
    write_as(engine, saver, dtype, folder)
}

/// Writes all base weights of `engine` as `dtype`, rounded once.
pub fn write_as(
    engine: &Engine,
    saver: &Saver<'_>,
    dtype: Dtype,
    folder: &FolderWriter,
) -> ferrotune_checkpoint::Result<()> {
    let base = engine.parameters().iter().filter(|p| p.role == Role::Base);
    let tensors = base.map(|parameter| {
        let (name, shape) = (parameter.param.name.clone(), parameter.param.shape.dims().to_vec());
        OutTensor::lazy(name, shape, dtype, move || {
            let values = engine.precise_value(&parameter.param).to_f32();
            let mut bytes = vec![0; values.len() * dtype.block().1];
            ferrotune_checkpoint::encode(dtype, &values, &mut bytes);
            Ok(Cow::Owned(bytes))
        })
    });
    let model = SaveModel {
        config: &saver.base.config,
        generation_config: saver.base.generation_config.as_ref(),
        tokenizer: saver.tokenizer,
        dtype,
        shard_bytes: saver.shard_bytes,
    };
    write_model(folder, &model, tensors.collect())
}

/// What a checkpoint holds of the run besides weights and logs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    /// Mean losses.
    pub losses: LossMeter,
    /// The best evaluation.
    pub best: BestState,
    /// ReduceOnPlateau's memory.
    pub plateau: Option<PlateauState>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds spent.
    pub seconds: f64,
    /// Rows of the training set: another number means other data.
    pub rows: u64,
    /// The recipe as written.
    pub recipe: String,
}

const RUN: &str = "ferrotune_state.json";
const TENSORS: &str = "ferrotune_state.safetensors";

/// Writes what a run resumes from into a checkpoint's folder.
pub fn write_state(engine: &Engine, run: &RunState, folder: &FolderWriter) -> ferrotune_checkpoint::Result<()> {
    let states = engine.owned();
    let tensors = states.iter().map(|state| {
        let (name, shape) = (state.name.clone(), state.shape.clone());
        OutTensor::lazy(name, shape, Dtype::F32, || {
            Ok(Cow::Owned(bytemuck::cast_slice(&state.tensor.to_f32()).to_vec()))
        })
    });
    folder.tensors(TENSORS, tensors.collect())?;
    let json = serde_json::to_value(run)
        .map_err(|e| ferrotune_checkpoint::Error::Json { path: folder.path().join(RUN), reason: e.to_string() })?;
    folder.json(RUN, &json)
}

/// Reads back what [`write_state`] wrote, into `engine`.
///
/// # Errors
/// If the checkpoint was written without optimiser states, or by a run that trained other parameters.
pub fn read_state(engine: &Engine, snapshot: &Snapshot) -> Result<RunState> {
    let path = snapshot.path();
    if !path.join(TENSORS).exists() {
        return Err(Error::CannotResume {
            path: path.to_path_buf(),
            reason: "it was saved with save_only_model and has no optimiser state".into(),
        });
    }
    let run: RunState = serde_json::from_value(snapshot.json(RUN)?).map_err(|source| Error::Json {
        path: path.join(RUN),
        what: "state of a run",
        source,
    })?;
    let file = snapshot.tensors(TENSORS)?;
    let states = engine.wanted();
    let (ours, theirs) = (states.len(), file.names().len());
    let misfit = |reason: String| Error::CannotResume {
        path: path.to_path_buf(),
        reason: format!("{reason}; take the recipe it was made with, or overwrite_output_dir: true to begin anew"),
    };
    if ours != theirs {
        return Err(misfit(format!("it holds {theirs} tensors of a run's state, this run has {ours}")));
    }
    for state in &states {
        let (name, here) = (&state.name, &state.shape[..]);
        match file.info(name).map(|info| info.shape) {
            Some(there) if there == here => {}
            Some(there) => return Err(misfit(format!("{name} has shape {there:?} there and {here:?} here"))),
            None => return Err(misfit(format!("it has no {name}, which this run trains"))),
        }
        let mut result = Ok(());
        state.tensor.with_bytes_mut(|bytes| result = file.read(&state.name, Dtype::F32, bytes));
        result?;
    }
    engine.took_state()?;
    Ok(run)
}

/// Whether `folder` holds a finished model or adapter, but no checkpoint to go on from.
pub fn holds_model(folder: &Path) -> bool {
    ["adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"]
        .iter()
        .any(|name| folder.join(name).exists())
}
