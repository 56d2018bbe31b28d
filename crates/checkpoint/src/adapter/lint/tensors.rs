//! The rules about `adapter_model.safetensors`: names, pairs, shapes, completeness, numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{Settings, ends_in};
use super::{EXPORT, Findings, LintBase, LintOptions};
use crate::adapter::{ENDINGS, PREFIX, Part};
use crate::dtype::Dtype;
use crate::safetensors::SafetensorsFile;
use crate::source::{TensorInfo, TensorSource};

/// Modules that servers put pairs on, where no base says which there are.
const KNOWN: [&str; 13] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "embed_tokens",
    "lm_head",
    "gate",
    "w1",
    "w2",
    "w3",
];
/// The cure for a file that isn't what training wrote.
const WHOLE: &str =
    "copy the adapter again, or take another checkpoint: this one is damaged or was put together wrongly";

/// A module's tensors, as far as they are there.
#[derive(Default)]
struct Pair {
    a: Option<Vec<usize>>,
    b: Option<Vec<usize>>,
    embedding: bool,
    /// B holds nothing but zeros.
    idle: bool,
}

/// Checks the tensors; returns the number of modules with a pair.
pub(super) fn check(
    file: &SafetensorsFile,
    settings: &Settings,
    options: LintOptions<'_>,
    findings: &mut Findings,
) -> usize {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for name in file.names() {
        let Some(info) = file.info(&name) else { continue };
        let idle = numbers(file, &name, &info, findings);
        match module_of(&name) {
            Some((module, part, embedding)) if part != Part::Magnitude => {
                let pair = pairs.entry(module.to_owned()).or_default();
                pair.embedding = embedding;
                match part {
                    Part::A => pair.a = Some(info.shape),
                    _ => (pair.b, pair.idle) = (Some(info.shape), idle),
                }
            }
            _ if settings.has_more_tensors => {}
            _ => no_part(&name, findings),
        }
    }
    if pairs.is_empty() {
        let server = "it loads it, and answers as the base model does";
        findings.error("no-pairs", "there is no pair of low-rank matrices".into(), server, WHOLE);
        return 0;
    }
    let shapes = Shapes::of(&pairs, options.base.ok());
    for (module, pair) in &pairs {
        place(module, options, findings);
        targeted(module, settings, findings);
        shape(module, pair, settings, &shapes, findings);
    }
    match options.base {
        Ok(base) => complete_for(base, &pairs, settings, findings),
        Err(_) => complete_in_itself(&pairs, settings, findings),
    }
    for target in settings.target_names().iter().filter(|target| !pairs.keys().any(|module| ends_in(module, target))) {
        let what = format!("target_modules names '{target}', which has no tensors");
        findings.error("missing-pair", what, "no adapter there, in silence", WHOLE);
    }
    if pairs.values().all(|pair| pair.idle) {
        let what = "every B is zero: it was never trained, or was reset".to_owned();
        findings.note("idle", what, "it answers as the base model does", "train it, or take a later checkpoint");
    }
    pairs.len()
}

/// Module, part and whether it is an embedding of a tensor that is part of a pair.
fn module_of(name: &str) -> Option<(&str, Part, bool)> {
    let inner = name.strip_prefix(PREFIX)?;
    ENDINGS.iter().find_map(|&(ending, part, embedding)| Some((inner.strip_suffix(ending)?, part, embedding)))
}

/// Looks at a tensor's numbers; whether all are zero.
fn numbers(file: &SafetensorsFile, name: &str, info: &TensorInfo, findings: &mut Findings) -> bool {
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
        let what = format!("'{name}' is stored as {}", info.dtype.name());
        findings.error("dtype", what, "it casts numbers, not codes", "save the adapter in F32, F16 or BF16");
        return false;
    }
    match file.read_f32(name) {
        Ok(values) => {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let what = format!("'{name}' holds {} at element {at}", values[at]);
                let server =
                    "it loads it; after the first request every answer, the base model's too, is empty until a restart";
                findings.error(
                    "not-finite",
                    what,
                    server,
                    "take an earlier checkpoint, and train with a lower learning_rate",
                );
            }
            values.iter().all(|value| *value == 0.0)
        }
        Err(error) => {
            findings.error("unreadable", error.to_string(), "it refuses the file", WHOLE);
            false
        }
    }
}

/// A tensor that is no part of a pair.
fn no_part(name: &str, findings: &mut Findings) {
    let rename = "save the adapter with save_pretrained, which names it base_model.model.MODULE.lora_A.weight";
    let Some(inner) = name.strip_prefix(PREFIX) else {
        let server = "is unsupported LoRA weight, or taken for another module's; PEFT skips it in silence";
        return findings.error("name", format!("'{name}' doesn't begin with {PREFIX}"), server, rename);
    };
    if inner.ends_with(".lora_magnitude_vector") {
        let what = format!("'{name}' is DoRA's, but use_dora is off");
        return findings.error("name", what, "is unsupported LoRA weight", EXPORT);
    }
    if inner.contains("lora_") {
        return findings.error(
            "name",
            format!("'{name}' is no name of PEFT's files"),
            "is unsupported LoRA weight",
            rename,
        );
    }
    if inner.ends_with(".base_layer.weight") {
        let what = format!("'{name}' is a layer of the base model, saved beside the pairs");
        return findings.error("whole-weight", what, "it leaves it out in silence", EXPORT);
    }
    findings.error("whole-weight", format!("'{name}' is a whole weight"), "is unsupported LoRA weight", EXPORT);
}

/// Whether the server has such a module.
pub(super) fn place(module: &str, options: LintOptions<'_>, findings: &mut Findings) {
    let last = module.rsplit('.').next().unwrap_or(module);
    if module.contains(".experts") {
        return expert(module, options, findings);
    }
    let Ok(base) = options.base else {
        if !KNOWN.contains(&last) {
            let server = format!("expected target modules in {{...}} but received ['{module}']");
            findings.error("module", format!("'{module}' is no linear layer that servers know"), server, EXPORT);
        }
        return;
    };
    if base_shape(base, module).is_none() {
        let server = match base.tensors.names().iter().any(|name| name.ends_with(&format!(".{last}.weight"))) {
            true => "it leaves it out in silence".to_owned(),
            false => format!("expected target modules in {{...}} but received ['{module}']"),
        };
        let cure = "serve it on the model that it was trained on";
        findings.error("module", format!("'{module}' is not in {}", base.name), server, cure);
    }
    if last == "lm_head"
        && let Some([rows, _]) = base_shape(base, module)
        && rows > options.vllm.max_head_vocabulary()
    {
        let what = format!("'{module}' has a pair, over {rows} tokens");
        findings.error(
            "head",
            what,
            format!("When using LoRA, vocab size must be <= {}", options.vllm.max_head_vocabulary()),
            EXPORT,
        );
    }
}

/// Pairs on experts: one a projection of each where the model keeps them apart.
fn expert(module: &str, options: LintOptions<'_>, findings: &mut Findings) {
    if !options.vllm.has_experts() {
        let server = format!("vLLM {} has no LoRA on experts: expected target modules in {{...}}", options.vllm);
        return findings.error("expert", format!("'{module}' is part of an expert"), server, EXPORT);
    }
    let (_, after) = module.split_once(".experts").unwrap_or_default();
    let apart = after.strip_prefix('.').and_then(|rest| rest.split_once('.')).is_some_and(|(number, projection)| {
        let known = ["gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"].contains(&projection);
        number.bytes().all(|b| b.is_ascii_digit()) && known
    });
    if !apart {
        let server = "contains fused 3D MoE weights: start the engine with --enable-mixed-moe-lora-format and is_3d_lora_weight=True";
        let cure =
            "write a pair an expert and projection (experts.N.gate_proj ...), or serve what `ferrotune export` writes";
        return findings.error("expert", format!("'{module}' is a pair for all experts at once"), server, cure);
    }
    if let Ok(base) = options.base
        && !has_expert(base, module)
    {
        let what = format!("'{module}' is not in {}", base.name);
        findings.error("module", what, "it leaves it out in silence", "serve it on the model that it was trained on");
    }
}

/// Whether the base has an expert's matrix: by itself, or within a tensor of all experts, as GGUF and transformers 5 have them.
fn has_expert(base: LintBase<'_>, module: &str) -> bool {
    if base.tensors.info(&format!("{module}.weight")).is_some() {
        return true;
    }
    let parts = module.split_once(".experts.").and_then(|(before, rest)| Some((before, rest.split_once('.')?)));
    let Some((before, (number, matrix))) = parts else { return false };
    let fused = if matrix == "down_proj" || matrix == "w2" { "down_proj" } else { "gate_up_proj" };
    let memory = before.replace(".block_sparse_moe", ".mlp");
    let stacks = [format!("{before}.experts.{matrix}.weight"), format!("{memory}.experts.{fused}")];
    let count = stacks.iter().find_map(|name| base.tensors.info(name)?.shape.first().copied());
    number.parse::<usize>().is_ok_and(|number| count.is_some_and(|count| number < count))
}

/// Whether PEFT would put this module's pair to use.
fn targeted(module: &str, settings: &Settings, findings: &mut Findings) {
    if settings.targets_module(module) == Some(false) {
        let what = format!("'{module}' has tensors, but target_modules doesn't name it");
        findings.error(
            "not-targeted",
            what,
            "it applies them; PEFT leaves them out in silence",
            "add it to target_modules, or take it out of the file",
        );
    }
}

/// What shapes are expected of a module's pair.
struct Shapes<'a> {
    base: Option<LintBase<'a>>,
    /// Input and output width by the module's name without its layer; the first that is there.
    seen: BTreeMap<String, [usize; 2]>,
}

impl<'a> Shapes<'a> {
    fn of(pairs: &BTreeMap<String, Pair>, base: Option<LintBase<'a>>) -> Self {
        let mut counts: BTreeMap<(String, [usize; 2]), usize> = BTreeMap::new();
        for (module, pair) in pairs {
            if let (Some(&[_, width]), Some(&[out, _])) = (pair.a.as_deref(), pair.b.as_deref()) {
                *counts.entry((layer_of(module).0, [width, out])).or_default() += 1;
            }
        }
        // The commonest shapes of a kind stand for all of its layers.
        let mut sorted: Vec<_> = counts.into_iter().collect();
        sorted.sort_by_key(|(_, count)| *count);
        Self { base, seen: sorted.into_iter().map(|(key, _)| key).collect() }
    }

    /// Input and output width of a module.
    fn widths(&self, module: &str, embedding: bool) -> Option<[usize; 2]> {
        match self.base {
            Some(base) => {
                base_shape(base, module).map(|[out, width]| if embedding { [out, width] } else { [width, out] })
            }
            None => self.seen.get(&layer_of(module).0).copied(),
        }
    }
}

/// A module's weight in the base, `[out, in]`; a tied head has the embedding's.
fn base_shape(base: LintBase<'_>, module: &str) -> Option<[usize; 2]> {
    let tied = || (module == "lm_head").then(|| base.tensors.info("model.embed_tokens.weight")).flatten();
    let info = base.tensors.info(&format!("{module}.weight")).or_else(tied)?;
    <[usize; 2]>::try_from(info.shape).ok()
}

fn shape(module: &str, pair: &Pair, settings: &Settings, shapes: &Shapes<'_>, findings: &mut Findings) {
    let (a, b) = match (&pair.a, &pair.b) {
        (Some(a), Some(b)) => (a.as_slice(), b.as_slice()),
        (None, _) => {
            return findings.error(
                "half-pair",
                format!("'{module}' has B but no A"),
                "it loads it without a word",
                WHOLE,
            );
        }
        (_, None) => {
            let server = "unsupported operand type(s) for *=: 'NoneType' and 'float'";
            return findings.error("half-pair", format!("'{module}' has A but no B"), server, WHOLE);
        }
    };
    let what = format!("'{module}' has A {a:?} and B {b:?}");
    let (&[rank, width], &[out, other]) = (a, b) else {
        return findings.error("shape", format!("{what}, which are no matrices"), "it fails while it loads", WHOLE);
    };
    let Some(stated) = settings.rank_of(module) else { return };
    let widths = shapes.widths(module, pair.embedding);
    if let Some([expected, expected_out]) = widths
        && [width, rank, other, out] == [stated, expected, expected_out, stated]
    {
        let server = format!("The size of tensor a ({rank}) must match the size of tensor b ({width})");
        return findings.error("transposed", format!("{what}: they are transposed"), server, WHOLE);
    }
    if [rank, other] != [stated, stated] {
        let server = match rank.max(other) > stated {
            true => "it fails while it loads",
            false => "it fills up with zeros and scales by the configuration's rank, in silence",
        };
        findings.error(
            "rank",
            format!("{what}, but the configuration's rank is {stated}"),
            server,
            "write the rank of the tensors into adapter_config.json",
        );
    }
    if let Some([expected, expected_out]) = widths
        && [width, out] != [expected, expected_out]
    {
        let server = match width > expected || out > expected_out {
            true => "it fails while it loads",
            false => "it fills up with zeros, in silence",
        };
        let of = shapes.base.map_or("other layers have".to_owned(), |base| format!("{} has", base.name));
        let what = format!("{what}, but {of} {expected} inputs and {expected_out} outputs there");
        findings.error("shape", what, server, "serve it on the model that it was trained on");
    }
}

/// A module's name with its layer as `*`, and the layer.
fn layer_of(module: &str) -> (String, Option<u64>) {
    let mut layer = None;
    let number = |part: &str| part.parse::<u64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
    // Only the first number is a layer; a second one is an expert.
    let parts = module.split('.').map(|part| match number(part) {
        Some(found) if layer.is_none() => {
            layer = Some(found);
            "*"
        }
        _ => part,
    });
    (parts.collect::<Vec<_>>().join("."), layer)
}

/// Every layer of the base that `target_modules` names has its pair.
fn complete_for(base: LintBase<'_>, pairs: &BTreeMap<String, Pair>, settings: &Settings, findings: &mut Findings) {
    let in_layers = |module: &str| match (&settings.layers, layer_of(module).1) {
        (Some(layers), Some(layer)) => layers.contains(&layer),
        _ => true,
    };
    for name in base.tensors.names() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let linear = base.tensors.info(&name).is_some_and(|info| info.shape.len() == 2);
        let block = layer_of(module).1.is_some();
        let wanted = settings.targets_module(module).unwrap_or(settings.all_linear && block);
        if linear && wanted && in_layers(module) && !pairs.contains_key(module) {
            let what = format!("'{module}' of {} has no pair", base.name);
            findings.error("missing-pair", what, "no adapter there, in silence", WHOLE);
        }
    }
}

/// Without a base: every layer up to the last has the pairs that others have.
fn complete_in_itself(pairs: &BTreeMap<String, Pair>, settings: &Settings, findings: &mut Findings) {
    if settings.layers.is_some() || settings.target_names().is_empty() {
        return;
    }
    let mut kinds: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (kind, layer) in pairs.keys().map(|module| layer_of(module)) {
        kinds.entry(kind).or_default().extend(layer);
    }
    // Listed names, not numbers up to the largest: that is the file's word, and may be anything.
    let all: BTreeSet<u64> = kinds.values().flatten().copied().collect();
    let last = all.last().copied().unwrap_or(0);
    let whole = all.len() as u64 == last.saturating_add(1);
    if !whole && !all.is_empty() {
        let what = format!("pairs are on {} layers, the last of which is number {last}", all.len());
        findings.error("missing-pair", what, "no adapter on the others, in silence", WHOLE);
    }
    for (kind, layers) in kinds.iter().filter(|(_, layers)| !layers.is_empty()) {
        for layer in all.difference(layers) {
            let what =
                format!("'{}' has no pair, though other layers have one", kind.replacen('*', &layer.to_string(), 1));
            findings.error("missing-pair", what, "no adapter there, in silence", WHOLE);
        }
    }
}
