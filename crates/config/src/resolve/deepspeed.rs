//! DeepSpeed's and FSDP's configurations, as far as they say what this program does as well. Every key is obeyed, compared
//! with the recipe, named as having no effect here, or refused; an unknown one names the nearest.

use crate::keys::nearest_of;
use crate::plan::Strategy;
use crate::recipe::Recipe;
use crate::settings::Settings;
use crate::tree::{Data, Node};

/// What was found in a configuration of another program.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Foreign {
    pub(super) strategy: Option<Strategy>,
    pub(super) offload_optimizer: bool,
    pub(super) offload_parameters: bool,
    pub(super) overlap: Option<bool>,
    pub(super) rows_of_a_step: Option<usize>,
}

/// What a key of another program's is here.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Row {
    /// It decides something; see where it is read.
    Obeyed,
    /// It must say what this key of the recipe says, or `auto`.
    As(&'static str),
    /// It must say what these keys of the recipe say, in a list.
    AsList(&'static [&'static str]),
    /// Nothing here depends on it.
    NoEffect,
    /// It would change the result: only this value may stand there.
    Only(&'static str, &'static str),
}

use Row::{As, AsList, NoEffect, Obeyed, Only};

const NOT_HERE: &str = "remove it";

/// DeepSpeed's keys; a name that ends in `.*` is all below it.
const DEEPSPEED: &[(&str, Row)] = &[
    ("zero_optimization.stage", Obeyed),
    ("zero_optimization.overlap_comm", Obeyed),
    ("zero_optimization.zero_hpz_partition_size", Obeyed),
    ("zero_optimization.offload_optimizer.device", Obeyed),
    ("zero_optimization.offload_param.device", Obeyed),
    ("zero_optimization.offload_optimizer.*", NoEffect),
    ("zero_optimization.offload_param.*", NoEffect),
    ("zero_optimization.allgather_partitions", NoEffect),
    ("zero_optimization.allgather_bucket_size", NoEffect),
    ("zero_optimization.reduce_scatter", NoEffect),
    ("zero_optimization.reduce_bucket_size", NoEffect),
    ("zero_optimization.contiguous_gradients", NoEffect),
    ("zero_optimization.round_robin_gradients", NoEffect),
    ("zero_optimization.sub_group_size", NoEffect),
    ("zero_optimization.stage3_prefetch_bucket_size", NoEffect),
    ("zero_optimization.stage3_param_persistence_threshold", NoEffect),
    ("zero_optimization.stage3_model_persistence_threshold", NoEffect),
    ("zero_optimization.stage3_max_live_parameters", NoEffect),
    ("zero_optimization.stage3_max_reuse_distance", NoEffect),
    ("zero_optimization.stage3_gather_16bit_weights_on_model_save", NoEffect),
    ("zero_optimization.stage3_gather_fp16_weights_on_model_save", NoEffect),
    ("zero_optimization.stage3_module_granularity_threshold", NoEffect),
    ("zero_optimization.ignore_unused_parameters", NoEffect),
    ("zero_optimization.memory_efficient_linear", NoEffect),
    ("zero_optimization.load_from_fp32_weights", NoEffect),
    ("zero_optimization.elastic_checkpoint", NoEffect),
    ("zero_optimization.legacy_stage1", NoEffect),
    ("zero_optimization.cpu_offload", Only("false", "write `offload_optimizer: {device: cpu}`")),
    ("zero_optimization.zero_quantized_weights", Only("false", "remove it: gathers are exact")),
    ("zero_optimization.zero_quantized_nontrainable_weights", Only("false", "remove it: gathers are exact")),
    ("zero_optimization.zero_quantized_gradients", Only("false", "remove it: reductions are exact")),
    ("zero_optimization.mics_shard_size", Only("-1", "write `zero_hpz_partition_size`, or `strategy: hybrid`")),
    ("zero_optimization.mics_hierarchical_params_gather", NoEffect),
    ("train_batch_size", Obeyed),
    ("train_micro_batch_size_per_gpu", As("per_device_train_batch_size")),
    ("gradient_accumulation_steps", As("gradient_accumulation_steps")),
    ("gradient_clipping", As("max_grad_norm")),
    ("bf16.enabled", As("bf16")),
    ("bfloat16.enabled", As("bf16")),
    ("bf16.*", NoEffect),
    ("fp16.enabled", As("fp16")),
    ("fp16.*", NoEffect),
    ("fp8.enabled", Only("false", "write `bf16: true`: fp8 is not supported")),
    ("fp8.*", NoEffect),
    ("optimizer.type", Obeyed),
    ("optimizer.params.lr", As("learning_rate")),
    ("optimizer.params.eps", As("adam_epsilon")),
    ("optimizer.params.weight_decay", As("weight_decay")),
    ("optimizer.params.betas", AsList(&["adam_beta1", "adam_beta2"])),
    ("optimizer.params.torch_adam", NoEffect),
    ("optimizer.params.adam_w_mode", NoEffect),
    ("scheduler.type", Obeyed),
    ("scheduler.params.warmup_min_lr", Only("0", "remove it: the rate rises from 0")),
    ("scheduler.params.warmup_max_lr", As("learning_rate")),
    ("scheduler.params.warmup_num_steps", As("warmup_steps")),
    ("scheduler.params.total_num_steps", As("max_steps")),
    ("scheduler.params.warmup_type", Only("linear", "write `linear`: the rate rises in a straight line")),
    (
        "tensor_parallel.autotp_size",
        Only("1", "remove it: models are cut by blocks (`strategy: pipeline`), not within matrices"),
    ),
    ("tensor_parallel.*", NoEffect),
    ("sequence_parallel_size", Only("1", NOT_HERE)),
    ("zero_allow_untested_optimizer", NoEffect),
    ("zero_force_ds_cpu_optimizer", NoEffect),
    ("steps_per_print", NoEffect),
    ("wall_clock_breakdown", NoEffect),
    ("dump_state", NoEffect),
    ("communication_data_type", NoEffect),
    ("prescale_gradients", NoEffect),
    ("gradient_predivide_factor", NoEffect),
    ("data_types.*", NoEffect),
    ("activation_checkpointing.*", NoEffect),
    ("comms_config.*", NoEffect),
    ("comms_logger.*", NoEffect),
    ("monitor_config.*", NoEffect),
    ("tensorboard.*", NoEffect),
    ("wandb.*", NoEffect),
    ("csv_monitor.*", NoEffect),
    ("flops_profiler.*", NoEffect),
    ("aio.*", NoEffect),
    ("_comment", NoEffect),
];

/// FSDP's keys, without the `fsdp_` that may stand before them.
const FSDP: &[(&str, Row)] = &[
    ("reshard_after_forward", Obeyed),
    ("sharding_strategy", Obeyed),
    ("offload_params", Obeyed),
    ("cpu_offload", Obeyed),
    ("version", NoEffect),
    ("auto_wrap_policy", NoEffect),
    ("transformer_layer_cls_to_wrap", NoEffect),
    ("min_num_params", NoEffect),
    ("backward_prefetch", NoEffect),
    ("backward_prefetch_policy", NoEffect),
    ("forward_prefetch", NoEffect),
    ("use_orig_params", NoEffect),
    ("limit_all_gathers", NoEffect),
    ("sync_module_states", NoEffect),
    ("cpu_ram_efficient_loading", NoEffect),
    ("activation_checkpointing", NoEffect),
    ("state_dict_type", NoEffect),
    ("xla", NoEffect),
    ("xla_fsdp_v2", NoEffect),
    ("xla_fsdp_settings", NoEffect),
    ("xla_fsdp_grad_ckpt", NoEffect),
];

/// A value somewhere in a configuration: its whole name, and where it stands.
struct Leaf<'a> {
    name: String,
    node: &'a Node,
}

impl Leaf<'_> {
    fn text(&self) -> &str {
        scalar(self.node)
    }

    fn is(&self, value: &str) -> bool {
        self.text().eq_ignore_ascii_case(value)
    }
}

fn scalar(node: &Node) -> &str {
    if let Data::Scalar { text, .. } = &node.data { text.trim() } else { "" }
}

/// Whether two values are the same number, or the same word.
fn same(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.eq_ignore_ascii_case(b),
    }
}

fn leaves<'a>(prefix: &str, node: &'a Node, into: &mut Vec<Leaf<'a>>) {
    match &node.data {
        Data::Map(pairs) if !pairs.is_empty() => {
            for (key, value) in pairs {
                let name = if prefix.is_empty() { key.text.clone() } else { format!("{prefix}.{}", key.text) };
                leaves(&name, value, into);
            }
        }
        _ => into.push(Leaf { name: prefix.to_owned(), node }),
    }
}

/// A configuration being read: what is said of it is said of its own lines.
struct Reader<'a, 's, 'r> {
    s: &'s mut Settings<'r>,
    /// The recipe's key.
    key: &'static str,
    /// The file, where it isn't in the recipe itself.
    file: Option<&'a Recipe>,
    idle: Vec<String>,
}

impl Reader<'_, '_, '_> {
    fn error(&mut self, leaf: &Leaf<'_>, message: String, help: &str) {
        match self.file {
            Some(file) => self.s.error_in(file, leaf.node.at, message, help),
            None => self.s.error_at(Some(leaf.node.at), message, help),
        }
    }

    /// Says what is to be said of a key; gives it back if it decides something.
    fn judge<'l, 'n>(&mut self, leaf: &'l Leaf<'n>, table: &[(&'static str, Row)], name: &str) -> Option<&'l Leaf<'n>> {
        let below = |row: &str| row.strip_suffix('*').is_some_and(|stem| name.starts_with(stem));
        // A bare mapping without keys is that of which all below is known.
        let alone = |row: &str| row.strip_suffix(".*").is_some_and(|stem| name == stem);
        let exact = table.iter().find(|(row, _)| *row == name);
        let Some((_, row)) = exact.or_else(|| table.iter().find(|(row, _)| below(row) || alone(row))) else {
            let mut known = table.iter().map(|(row, _)| row.trim_end_matches(".*"));
            // A key that stands one level too high, or one that is misspelt.
            let inner = known.clone().find(|row| row.rsplit('.').next() == Some(name));
            let help = inner.or_else(|| nearest_of(name, &mut known));
            let help = help.map_or_else(|| NOT_HERE.to_owned(), |nearest| format!("did you mean `{nearest}`?"));
            self.error(leaf, format!("unknown key `{name}` of {}", self.of()), &help);
            return None;
        };
        match row {
            Obeyed => return Some(leaf),
            NoEffect => self.idle.push(name.to_owned()),
            As(_) | AsList(_) | Only(..) if leaf.is("auto") => {}
            As(key) => self.compare(leaf, key),
            AsList(keys) => self.compare_list(leaf, keys),
            Only(value, instead) if !same(leaf.text(), value) => {
                self.error(leaf, format!("`{name}: {}` of {} is not supported", leaf.text(), self.of()), instead);
            }
            Only(..) => {}
        }
        None
    }

    fn of(&self) -> &'static str {
        if self.key == "deepspeed" { "DeepSpeed" } else { "FSDP" }
    }

    /// A value that the recipe has as well.
    fn compare(&mut self, leaf: &Leaf<'_>, key: &'static str) {
        let ours = self.s.shown(key);
        if !same(leaf.text(), &ours) {
            self.contradiction(leaf, leaf.text(), &format!("{key}: {ours}"));
        }
    }

    /// Several values that the recipe has one by one.
    fn compare_list(&mut self, leaf: &Leaf<'_>, keys: &[&'static str]) {
        let ours: Vec<String> = keys.iter().map(|key| self.s.shown(key)).collect();
        let theirs: Vec<&str> = match &leaf.node.data {
            Data::List(items) => items.iter().map(scalar).collect(),
            _ => vec![leaf.text()],
        };
        if theirs.len() != ours.len() || !theirs.iter().zip(&ours).all(|(a, b)| same(a, b)) {
            let ours: Vec<String> = keys.iter().zip(&ours).map(|(key, value)| format!("{key}: {value}")).collect();
            self.contradiction(leaf, &format!("[{}]", theirs.join(", ")), &ours.join(", "));
        }
    }

    fn contradiction(&mut self, leaf: &Leaf<'_>, theirs: &str, ours: &str) {
        let message = format!("`{}: {theirs}` of {} contradicts the recipe's `{ours}`", leaf.name, self.of());
        self.error(leaf, message, "write `auto` there, and the value in the recipe");
    }

    /// DeepSpeed's own schedules take the place of the recipe's, in DeepSpeed.
    fn schedule(&mut self, leaf: &Leaf<'_>) {
        let same = match leaf.text() {
            "auto" => return,
            "WarmupLR" => "constant_with_warmup",
            "WarmupDecayLR" => "linear",
            "WarmupCosineLR" => "cosine",
            other => {
                let message = format!("scheduler `{other}` of {} is not supported", self.of());
                return self.error(leaf, message, "remove `scheduler`, and write `lr_scheduler_type` in the recipe");
            }
        };
        let ours = self.s.shown("lr_scheduler_type");
        if ours != same {
            let message = format!(
                "`{}: {}` of {} contradicts the recipe's `lr_scheduler_type: {ours}`",
                leaf.name,
                leaf.text(),
                self.of()
            );
            self.error(leaf, message, &format!("remove `scheduler`, or write `lr_scheduler_type: {same}`"));
        }
    }

    fn finish(self) {
        if !self.idle.is_empty() {
            let message = format!("without effect in {}: {}", self.of(), self.idle.join(", "));
            self.s.note(self.key, message, "");
        }
    }
}

/// Reads `deepspeed`: a mapping, or the path of a JSON file.
pub(super) fn deepspeed(s: &mut Settings<'_>) -> Foreign {
    let Some(node) = s.node("deepspeed") else { return Foreign::default() };
    let file = match &node.data {
        Data::Map(_) => None,
        _ => match read(&s.shown("deepspeed")) {
            Ok(file) => Some(file),
            Err(_) if shipped(&s.shown("deepspeed")).is_some() => {
                let path = s.shown("deepspeed");
                let message = format!("{path} is not there; it is taken for LLaMA-Factory's file of that name");
                s.note("deepspeed", message, "");
                return shipped(&path).unwrap_or_default();
            }
            Err(message) => {
                let path = s.shown("deepspeed");
                if let Some((what, instead)) = refused(&path) {
                    s.error(
                        "deepspeed",
                        format!("{path} is not there, and asks for {what}, which is not supported"),
                        instead,
                    );
                    return Foreign::default();
                }
                s.error(
                    "deepspeed",
                    message,
                    "write the path of a DeepSpeed configuration in JSON, from the folder you are in",
                );
                return Foreign::default();
            }
        },
    };
    let mut all = Vec::new();
    match &file {
        Some(file) => file.entries.iter().for_each(|entry| leaves(&entry.key.text, &entry.value, &mut all)),
        None => leaves("", node, &mut all),
    }
    let mut reader = Reader { s, key: "deepspeed", file: file.as_ref(), idle: Vec::new() };
    let mut found = Foreign { strategy: Some(Strategy::Replicate), ..Foreign::default() };
    let mut shards = None;
    for leaf in &all {
        let Some(leaf) = reader.judge(leaf, DEEPSPEED, &leaf.name) else { continue };
        match leaf.name.as_str() {
            "zero_optimization.stage" => match leaf.text() {
                "0" => found.strategy = Some(Strategy::Replicate),
                "1" => found.strategy = Some(Strategy::Zero1),
                "2" => found.strategy = Some(Strategy::Zero2),
                "3" => found.strategy = Some(Strategy::Zero3),
                other => reader.error(leaf, format!("`stage: {other}` is no stage of ZeRO"), "write 0, 1, 2 or 3"),
            },
            "train_batch_size" if leaf.is("auto") => {}
            "train_batch_size" => match leaf.text().parse::<usize>() {
                Ok(rows) if rows > 0 => found.rows_of_a_step = Some(rows),
                _ => reader.error(leaf, format!("`{}` is no number of rows", leaf.text()), "write `auto`"),
            },
            "scheduler.type" => reader.schedule(leaf),
            "zero_optimization.overlap_comm" => found.overlap = Some(!leaf.is("false")),
            "zero_optimization.zero_hpz_partition_size" => match leaf.text().parse::<usize>() {
                Ok(size) if size > 0 => shards = Some(size).filter(|&size| size > 1),
                _ => reader.error(
                    leaf,
                    format!("`{}` is no number of ranks", leaf.text()),
                    "write how many ranks hold one copy",
                ),
            },
            "zero_optimization.offload_optimizer.device" => found.offload_optimizer = offload(&mut reader, leaf),
            "zero_optimization.offload_param.device" => found.offload_parameters = offload(&mut reader, leaf),
            _ if leaf.is("adamw") || leaf.is("adam") || leaf.is("auto") => {}
            _ => reader.error(
                leaf,
                format!("optimizer `{}` is not supported", leaf.text()),
                "write `AdamW`, or remove `optimizer`",
            ),
        }
    }
    if let (Some(Strategy::Zero3), Some(shards)) = (found.strategy, shards) {
        found.strategy = Some(Strategy::Hybrid { shards: Some(shards) });
    }
    reader.finish();
    found
}

/// What LLaMA-Factory's own files of these names say; its recipes name them by their place in its repository.
fn shipped(path: &str) -> Option<Foreign> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let of = |strategy, offload| Foreign {
        strategy: Some(strategy),
        offload_optimizer: offload,
        offload_parameters: offload && strategy == Strategy::Zero3,
        overlap: None,
        rows_of_a_step: None,
    };
    match name {
        "ds_z0_config.json" => Some(of(Strategy::Replicate, false)),
        "ds_z2_config.json" => Some(of(Strategy::Zero2, false)),
        "ds_z2_offload_config.json" => Some(of(Strategy::Zero2, true)),
        "ds_z3_config.json" => Some(of(Strategy::Zero3, false)),
        "ds_z3_offload_config.json" => Some(of(Strategy::Zero3, true)),
        _ => None,
    }
}

/// Those of LLaMA-Factory's own files that ask for what there isn't here, and what to do instead.
fn refused(path: &str) -> Option<(&'static str, &'static str)> {
    match path.rsplit('/').next().unwrap_or(path) {
        "ds_z2_autotp_config.json" => Some(("tensor parallelism", "write `strategy: pipeline`, which cuts by blocks")),
        "ds_z3_fp8_config.json" => Some(("fp8", "write `deepspeed: ds_z3_config.json`, and `bf16: true`")),
        _ => None,
    }
}

fn offload(reader: &mut Reader<'_, '_, '_>, leaf: &Leaf<'_>) -> bool {
    if leaf.is("cpu") || leaf.is("none") || leaf.text().is_empty() {
        return leaf.is("cpu");
    }
    reader.error(leaf, format!("`device: {}` is not supported", leaf.text()), "write `cpu` or `none`");
    false
}

fn read(path: &str) -> Result<Recipe, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    // As JSON whatever its name, as DeepSpeed does.
    let name = if path.ends_with(".json") { path.to_owned() } else { format!("{path}.json") };
    Recipe::parse(&name, &bytes).map_err(|error| error.to_string())
}

/// Reads `fsdp` and `fsdp_config`.
pub(super) fn fsdp(s: &mut Settings<'_>) -> Foreign {
    let mut found = Foreign { strategy: Some(Strategy::Zero3), ..Foreign::default() };
    let words = s.shown("fsdp");
    let words = words.trim_matches(['[', ']']);
    for word in words.split([' ', ',']).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "full_shard" | "true" | "auto_wrap" => {}
            "shard_grad_op" => found.strategy = Some(Strategy::Zero2),
            "no_shard" | "false" => found.strategy = Some(Strategy::Replicate),
            "hybrid_shard" | "hybrid_shard_zero2" => found.strategy = Some(Strategy::Hybrid { shards: None }),
            "offload" => (found.offload_optimizer, found.offload_parameters) = (true, true),
            other => {
                let message = format!("`fsdp`: `{other}` is not known");
                s.error(
                    "fsdp",
                    message,
                    "write `full_shard`, `shard_grad_op`, `hybrid_shard` or `no_shard`, and `offload` if wanted",
                );
            }
        }
    }
    let Some(node) = s.node("fsdp_config") else { return found };
    let file = match &node.data {
        Data::Map(_) => None,
        _ => match read(&s.shown("fsdp_config")) {
            Ok(file) => Some(file),
            Err(message) => {
                s.error("fsdp_config", message, "write a mapping, or the path of a JSON file");
                return found;
            }
        },
    };
    let mut all = Vec::new();
    match &file {
        Some(file) => file.entries.iter().for_each(|entry| leaves(&entry.key.text, &entry.value, &mut all)),
        None => leaves("", node, &mut all),
    }
    let mut reader = Reader { s, key: "fsdp_config", file: file.as_ref(), idle: Vec::new() };
    for leaf in &all {
        let name = leaf.name.strip_prefix("fsdp_").unwrap_or(&leaf.name);
        let Some(leaf) = reader.judge(leaf, FSDP, name) else { continue };
        match name {
            "reshard_after_forward" | "sharding_strategy" => match leaf.text().to_ascii_uppercase().as_str() {
                "TRUE" | "FULL_SHARD" | "1" => found.strategy = Some(Strategy::Zero3),
                "FALSE" | "SHARD_GRAD_OP" | "2" => found.strategy = Some(Strategy::Zero2),
                "NO_SHARD" | "3" => found.strategy = Some(Strategy::Replicate),
                "HYBRID_SHARD" | "HYBRID_SHARD_ZERO2" | "4" | "5" => {
                    found.strategy = Some(Strategy::Hybrid { shards: None });
                }
                other => reader.error(
                    leaf,
                    format!("`{name}: {other}` is not known"),
                    "write `FULL_SHARD`, or use `strategy`",
                ),
            },
            _ => (found.offload_optimizer, found.offload_parameters) = (leaf.is("true"), leaf.is("true")),
        }
    }
    reader.finish();
    found
}

#[cfg(test)]
mod tests;
