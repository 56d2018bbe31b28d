//! The model's files of a checkpoint: a PEFT adapter, or a whole Hugging Face folder. What they are made of is owned,
//! so that a thread can write them while the run goes on.

use crate::Result as TrainResult;
use crate::engine::Engine;
use ferrotune_checkpoint::{
    Adapter, AdapterConfig, Dtype, Error, FolderWriter, HostTensor, LoraWeights, Number, OpenModel, OutTensor, Result,
    SaveModel, TargetModules, TokenizerFiles, write_model,
};
use ferrotune_config::plan::{Interval, LoraPlan, Plan, Tuning};
use ferrotune_model::{Parameter, Role, expert_name};
use ferrotune_tensor::{DType, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// What a run of these `parameters` saves: the adapter, or all weights in the type that config.json names.
    pub fn files(&self, parameters: &[Parameter]) -> ModelFiles {
        match self.tuning {
            Tuning::Lora(plan) => self.adapter(plan, parameters),
            Tuning::Freeze(_) | Tuning::Full => self.whole(None, parameters),
        }
    }

    /// All weights as `dtype`, or in the type that config.json names, rounded once.
    pub fn whole(&self, dtype: Option<Dtype>, parameters: &[Parameter]) -> ModelFiles {
        let dtype = dtype.unwrap_or_else(|| named_dtype(&self.base.config));
        let kind = Kind::Whole {
            config: self.base.config.clone(),
            generation_config: self.base.generation_config.clone(),
            shard_bytes: self.shard_bytes,
        };
        let mut tensors = tensors(parameters, dtype, |parameter| parameter.role == Role::Base);
        // So they lie in the files, and so they are written as they come.
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        ModelFiles { kind, tensors, dtype, tokenizer: self.tokenizer.clone() }
    }

    fn adapter(&self, plan: &LoraPlan, parameters: &[Parameter]) -> ModelFiles {
        let tensors = tensors(parameters, Dtype::F32, |parameter| parameter.param.trainable);
        let config = adapter_config(plan, (self.base_name, self.revision), self.continued, parameters);
        let part = |tensor: &FileTensor| {
            let (ending, part) = lora_ending(parameters[tensor.parameter].role)?;
            let module = tensor.name.strip_suffix(ending)?;
            Some((tensor.name.clone(), (module.to_owned(), part)))
        };
        let parts = tensors.iter().filter_map(part).collect();
        ModelFiles {
            kind: Kind::Adapter { config: Box::new(config), parts },
            tensors,
            dtype: Dtype::F32,
            tokenizer: self.tokenizer.clone(),
        }
    }
}

/// `adapter_config.json` of a run with these parameters on a base, by its name and revision.
fn adapter_config(
    plan: &LoraPlan,
    (base_name, revision): (&str, Option<&str>),
    continued: Option<&AdapterConfig>,
    parameters: &[Parameter],
) -> AdapterConfig {
    AdapterConfig {
        base_model_name_or_path: Some(base_name.to_owned()),
        revision: revision.map(str::to_owned),
        r: plan.rank,
        lora_alpha: number(plan.alpha),
        lora_dropout: plan.dropout,
        use_rslora: plan.rslora,
        use_dora: plan.dora,
        target_modules: continued
            .map_or_else(|| TargetModules::Names(target_names(parameters)), |config| config.target_modules.clone()),
        modules_to_save: (!plan.additional_targets.is_empty()).then(|| plan.additional_targets.clone()),
        inference_mode: true,
        ..continued.cloned().unwrap_or_default()
    }
}

/// What a run would write of an adapter: its configuration, and the modules with a pair as the files name them.
pub fn intended_adapter(plan: &LoraPlan, base_name: &str, parameters: &[Parameter]) -> (AdapterConfig, Vec<String>) {
    let files = tensors(parameters, Dtype::F32, |parameter| parameter.role == Role::LoraA);
    let module = |tensor: &FileTensor| tensor.name.strip_suffix(".lora_A.weight").map(str::to_owned);
    (adapter_config(plan, (base_name, None), None, parameters), files.iter().filter_map(module).collect())
}

/// The type that config.json names for weights.
pub fn named_dtype(config: &Value) -> Dtype {
    match ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str()) {
        Some("bfloat16") => Dtype::Bf16,
        Some("float16") => Dtype::F16,
        _ => Dtype::F32,
    }
}

/// Bytes of a model's files that a run copies into host memory to write them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// For a checkpoint, beside the state; `None` if none is written while the run goes on.
    pub checkpoint: Option<u64>,
    /// Of an adapter, whose tensors are all brought together before its file is written, at the end, too. Those of a whole
    /// model are written one by one.
    pub adapter: u64,
}

impl Copied {
    /// What a run of this plan copies of a model with this config.json and these parameters.
    pub fn of(plan: &Plan, config: &Value, parameters: &[Parameter]) -> Self {
        let is_adapter = matches!(plan.tuning, Tuning::Lora(_));
        let files = if is_adapter {
            tensors(parameters, Dtype::F32, |parameter| parameter.param.trainable)
        } else {
            tensors(parameters, named_dtype(config), |parameter| parameter.role == Role::Base)
        };
        let bytes = files.iter().map(|tensor| tensor.bytes).sum();
        let saves = plan.output.save != Interval::Never;
        Self { checkpoint: saves.then_some(bytes), adapter: if is_adapter { bytes } else { 0 } }
    }
}

fn number(value: f64) -> Number {
    if value.fract() == 0.0 && value.abs() < 1e15 { Number::Whole(value as i64) } else { Number::Real(value) }
}

/// Module and place in [`LoraWeights`] of an adapter's parameter.
fn lora_part(parameter: &Parameter) -> Option<(&str, usize)> {
    let (ending, part) = lora_ending(parameter.role)?;
    parameter.param.name.strip_suffix(ending).map(|module| (module, part))
}

/// The modules with an adapter as PEFT finds them: by the shortest end of a name, in whole parts, that no other linear layer's
/// name has, too. Experts are found by the last part alone, since in files a number stands before it.
fn target_names(parameters: &[Parameter]) -> Vec<String> {
    let adapted: BTreeSet<&str> = parameters.iter().filter_map(lora_part).map(|(module, _)| module).collect();
    let linear = |p: &&Parameter| p.role == Role::Base && p.param.shape.dims().len() > 1;
    let modules = parameters.iter().filter(linear).filter_map(|p| p.param.name.strip_suffix(".weight"));
    let others: Vec<&str> = modules.filter(|module| !adapted.contains(module)).collect();
    let found_too = |end: &str| {
        let named = |module: &&str| module.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
        others.iter().any(named)
    };
    let shortest = |module: &&str| {
        let ends = module.rmatch_indices('.').map(|(at, _)| &module[at + 1..]);
        let last = module.rsplit('.').next().unwrap_or(module);
        if expert_name(module, 0).is_some() {
            return last.to_owned();
        }
        ends.into_iter().find(|end| !found_too(end)).unwrap_or(module).to_owned()
    };
    adapted.iter().map(shortest).collect::<BTreeSet<_>>().into_iter().collect()
}

/// How the names of an adapter's tensors end, and their place in [`LoraWeights`].
fn lora_ending(role: Role) -> Option<(&'static str, usize)> {
    match role {
        Role::LoraA => Some((".lora_A.weight", 0)),
        Role::LoraB => Some((".lora_B.weight", 1)),
        Role::Magnitude => Some((".lora_magnitude_vector", 2)),
        Role::Base => None,
    }
}

/// A tensor of a model's files.
#[derive(Debug, Clone)]
pub(super) struct FileTensor {
    /// Number of the parameter.
    pub(super) parameter: usize,
    /// The expert whose part of the parameter it is.
    expert: Option<usize>,
    name: String,
    shape: Vec<usize>,
    /// Bytes in the file.
    bytes: u64,
}

/// The tensors of files; experts are one by one there.
fn tensors(parameters: &[Parameter], dtype: Dtype, taken: impl Fn(&Parameter) -> bool) -> Vec<FileTensor> {
    let mut all = Vec::new();
    for (number, parameter) in parameters.iter().enumerate().filter(|(_, parameter)| taken(parameter)) {
        let (name, dims) = (&parameter.param.name, parameter.param.shape.dims());
        let mut add = |expert, name: String, shape: &[usize]| {
            let bytes = (shape.iter().product::<usize>() * dtype.block().1) as u64;
            all.push(FileTensor { parameter: number, expert, name, shape: shape.to_vec(), bytes });
        };
        match (expert_name(name, 0), dims) {
            (Some(_), &[experts, ref shape @ ..]) => {
                (0..experts).for_each(|expert| add(Some(expert), expert_name(name, expert).unwrap_or_default(), shape));
            }
            _ => add(None, name.clone(), dims),
        }
    }
    all
}

/// What a run writes of its model, but for the weights' values.
#[derive(Debug)]
pub struct ModelFiles {
    kind: Kind,
    pub(super) tensors: Vec<FileTensor>,
    pub(super) dtype: Dtype,
    tokenizer: TokenizerFiles,
}

#[derive(Debug)]
enum Kind {
    Adapter {
        config: Box<AdapterConfig>,
        /// Module and part of each adapter's parameter, by name.
        parts: BTreeMap<String, (String, usize)>,
    },
    Whole {
        config: Value,
        generation_config: Option<Value>,
        shard_bytes: u64,
    },
}

impl ModelFiles {
    /// Bytes of the tensors in its files.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Number of tensors in its files.
    pub(super) fn count(&self) -> usize {
        self.tensors.len()
    }

    /// Writes the files of a model that lies whole on this rank, a tensor at a time.
    ///
    /// # Errors
    /// If a tensor can't be had or a file not be written.
    pub fn write_of(&self, engine: &Engine, folder: &FolderWriter) -> TrainResult<()> {
        let (mut failed, mut source) = (None, Gathered::new(engine));
        let mut numbers = 0..self.count();
        let written = self.write(folder, || {
            let number = numbers.next()?;
            match self.copy(&mut source, number) {
                Ok(value) => value,
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }

    /// The bytes of a tensor, by its place in the files, on rank 0; nothing on the others. A collective.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(super) fn copy(&self, source: &mut Gathered<'_>, number: usize) -> TrainResult<Option<Vec<u8>>> {
        let tensor = &self.tensors[number];
        let value = source.of(tensor.parameter)?;
        let part = |value: Tensor| tensor.expert.map_or(value.clone(), |expert| value.rows(expert, 1));
        Ok(value.map(|value| encoded(&part(value), self.dtype)))
    }

    /// Writes the files; `next` gives the tensors' bytes in the order of `tensors`, or `None` if there are no more.
    pub(super) fn write(&self, folder: &FolderWriter, next: impl FnMut() -> Option<Vec<u8>>) -> Result<()> {
        let next = RefCell::new(next);
        let take = |tensor: &FileTensor| {
            (next.borrow_mut())().ok_or_else(|| Error::Unwritable {
                path: folder.path().to_path_buf(),
                reason: format!("the run ended before {} was copied", tensor.name),
            })
        };
        match &self.kind {
            Kind::Adapter { config, parts } => {
                self.collect(config, parts, &take)?.write(folder)?;
                self.tokenizer.write(folder)
            }
            Kind::Whole { config, generation_config, shard_bytes } => {
                let model = SaveModel {
                    config,
                    generation_config: generation_config.as_ref(),
                    tokenizer: &self.tokenizer,
                    dtype: self.dtype,
                    shard_bytes: *shard_bytes,
                };
                let lazy = |tensor| move || take(tensor).map(Cow::Owned);
                let out = self
                    .tensors
                    .iter()
                    .map(|tensor| OutTensor::lazy(tensor.name.clone(), tensor.shape.clone(), self.dtype, lazy(tensor)));
                write_model(folder, &model, out.collect())
            }
        }
    }

    fn collect(
        &self,
        config: &AdapterConfig,
        parts: &BTreeMap<String, (String, usize)>,
        take: &dyn Fn(&FileTensor) -> Result<Vec<u8>>,
    ) -> Result<Adapter> {
        let mut modules: BTreeMap<String, [Option<HostTensor>; 3]> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for tensor in &self.tensors {
            let host = HostTensor { shape: tensor.shape.clone(), data: bytemuck::pod_collect_to_vec(&take(tensor)?) };
            match parts.get(&tensor.name) {
                Some((module, part)) => modules.entry(module.clone()).or_default()[*part] = Some(host),
                None => drop(saved.insert(tensor.name.clone(), host)),
            }
        }
        let weights = |[a, b, magnitude]: [Option<HostTensor>; 3]| {
            a.zip(b).map(|(a, b)| LoraWeights { a, b, magnitude, embedding: false })
        };
        let modules = modules.into_iter().filter_map(|(name, parts)| weights(parts).map(|w| (name, w))).collect();
        Ok(Adapter { config: config.clone(), modules, saved })
    }
}

/// Parameters that were brought together a moment ago: the experts of a block are asked for one by one, and their matrices in
/// turns. All ranks ask for the same, so they hold the same.
pub(super) struct Gathered<'a> {
    engine: &'a Engine,
    held: VecDeque<(usize, Option<Tensor>)>,
}

impl<'a> Gathered<'a> {
    /// Gate, up and down projection.
    const HELD: usize = 3;

    pub(super) fn new(engine: &'a Engine) -> Self {
        Self { engine, held: VecDeque::new() }
    }

    /// The whole value of a parameter on rank 0. A collective.
    fn of(&mut self, parameter: usize) -> TrainResult<Option<Tensor>> {
        if let Some((_, value)) = self.held.iter().find(|(number, _)| *number == parameter) {
            return Ok(value.clone());
        }
        let is_stack = expert_name(&self.engine.parameters()[parameter].param.name, 0).is_some();
        self.held.truncate(if is_stack { Self::HELD } else { 0 });
        if self.held.len() == Self::HELD {
            self.held.pop_front();
        }
        let value = self.engine.gather(parameter)?;
        if is_stack {
            self.held.push_back((parameter, value.clone()));
        }
        Ok(value)
    }
}

/// A copy made by all threads: they fault its pages in as well.
pub(super) fn copied(source: &[u8]) -> Vec<u8> {
    const CHUNK: usize = 1 << 20;
    let mut bytes = vec![0; source.len()];
    bytes.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
    bytes
}

/// A tensor's values as `dtype`, copied by all threads.
pub(super) fn encoded(tensor: &Tensor, dtype: Dtype) -> Vec<u8> {
    const CHUNK: usize = 1 << 18;
    let width = dtype.block().1;
    let mut bytes = vec![0; tensor.numel() * width];
    let chunks = bytes.par_chunks_mut(CHUNK * width).enumerate();
    if tensor.dtype() == DType::F32 {
        tensor.with_bytes(|source| {
            let source: &[f32] = bytemuck::cast_slice(source);
            chunks.for_each(|(at, to)| {
                let from = &source[at * CHUNK..][..to.len() / width];
                ferrotune_checkpoint::encode(dtype, from, to);
            });
        });
    } else {
        let source = tensor.to_f32();
        chunks.for_each(|(at, to)| ferrotune_checkpoint::encode(dtype, &source[at * CHUNK..][..to.len() / width], to));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_config::plan::LoraTargets;
    use ferrotune_model::{Config, Model};

    #[test]
    fn target_modules_name_what_has_an_adapter_and_nothing_else() {
        let config = Config::from_json(&serde_json::json!({
            "model_type": "qwen2_moe", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 96, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0],
        }))
        .unwrap();
        let names = |targets: LoraTargets| {
            let tuning = Tuning::Lora(LoraPlan { targets, ..LoraPlan::plain(4) });
            let model = Model::new(&config, DType::F32, Some(&tuning), false).unwrap();
            target_names(model.parameters())
        };
        let of = |list: &[&str]| names(LoraTargets::Modules(list.iter().map(|name| (*name).to_owned()).collect()));
        let all = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
        assert_eq!(names(LoraTargets::All), all);
        assert_eq!(of(&["q_proj", "up_proj"]), ["q_proj", "up_proj"]);
        // `gate_proj` would be the experts' and the plain block's as well.
        let shared = ["q_proj", "shared_expert.gate_proj", "shared_expert_gate"];
        assert_eq!(of(&shared), shared);
        assert_eq!(of(&["mlp.gate_proj"]), ["mlp.gate_proj"]);
        assert_eq!(of(&["experts.gate_proj"]), ["gate_proj"]);
        assert_eq!(of(&["model.layers.1.self_attn.k_proj"]), ["1.self_attn.k_proj"]);
    }
}
