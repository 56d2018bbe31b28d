//! The rules about `adapter_config.json`.

use serde_json::{Map, Value};

use super::{EXPORT, Findings, LintOptions, Vllm};

/// The cure for what only PEFT can merge.
const PEFT: &str = "merge it with PEFT's merge_and_unload and serve the merged model";
/// Initialisations that vLLM takes: those that leave the base weights as they are.
const INITIALISATIONS: [&str; 5] = ["gaussian", "eva", "orthogonal", "mica", "lora_ga"];

/// Keys of kinds of adapters that are refused, with vLLM's words.
const REFUSED: [(&str, &str); 5] = [
    ("lora_bias", "vLLM does not support LoRA bias (lora_bias)"),
    ("alora_invocation_tokens", "vLLM does not support Activated LoRA (aLoRA)"),
    ("layer_replication", "vLLM does not support layer_replication"),
    ("use_bdlora", "vLLM does not support block-diagonal LoRA (BD-LoRA)"),
    ("use_qalora", "vLLM does not support QALoRA"),
];

/// What of the configuration the tensors are checked against.
#[derive(Default)]
pub(super) struct Settings {
    /// Rank, if it is a sound one.
    rank: Option<usize>,
    ranks: Vec<(String, usize)>,
    /// Names that modules with a pair end in; nothing for a pattern, or if it isn't stated.
    targets: Option<Vec<String>>,
    /// All linear layers of the blocks (`all-linear`).
    pub(super) all_linear: bool,
    /// Layers that have pairs, if not all have.
    pub(super) layers: Option<Vec<u64>>,
    /// Tensors beside the pairs have a meaning that was told already.
    pub(super) has_more_tensors: bool,
}

impl Settings {
    /// Looks at every key that changes what the adapter means.
    pub(super) fn check(config: &Map<String, Value>, options: LintOptions<'_>, findings: &mut Findings) -> Self {
        for key in ["r", "lora_alpha", "target_modules"].into_iter().filter(|key| !config.contains_key(*key)) {
            let server = format!("Missing required configuration fields: {{'{key}'}}");
            findings.error("missing-key", format!("adapter_config.json has no `{key}`"), server, "add it");
        }
        let mut settings = Self { rank: rank(config, findings), ..Self::default() };
        check_alpha(config, findings);
        settings.has_more_tensors = features(config, options.vllm, findings);
        changed_base(config, findings);
        settings.patterns(config, options.vllm, findings);
        settings.targets(config);
        if let (largest, None) = (settings.largest_rank(), options.vllm.max_lora_rank(settings.largest_rank())) {
            let what = format!("the rank is {largest}");
            findings.error(
                "rank-too-large",
                what,
                "LoRA rank is greater than max_lora_rank, which is 512 at most",
                EXPORT,
            );
        }
        if let Ok(base) = options.base {
            other_name(config, base.name, findings);
        }
        settings
    }

    /// The rank that the configuration gives a module.
    pub(super) fn rank_of(&self, module: &str) -> Option<usize> {
        let own = self.ranks.iter().find(|(key, _)| ends_in(module, key));
        own.map(|(_, rank)| *rank).or(self.rank)
    }

    /// The largest rank of any module; 0 if there is none.
    pub(super) fn largest_rank(&self) -> usize {
        self.ranks.iter().map(|(_, rank)| *rank).chain(self.rank).max().unwrap_or(0)
    }

    /// Whether a module has a pair by `target_modules`; nothing if that can't be told.
    pub(super) fn targets_module(&self, module: &str) -> Option<bool> {
        let names = self.targets.as_ref()?;
        Some(names.iter().any(|name| ends_in(module, name)))
    }

    /// The names in `target_modules`.
    pub(super) fn target_names(&self) -> &[String] {
        self.targets.as_deref().unwrap_or_default()
    }

    fn targets(&mut self, config: &Map<String, Value>) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match config.get("target_modules") {
            Some(Value::Array(names)) => self.targets = Some(names.iter().filter_map(text).collect()),
            Some(Value::String(pattern)) => self.all_linear = pattern == "all-linear",
            _ => {}
        }
        self.layers = match config.get("layers_to_transform") {
            Some(Value::Array(layers)) => Some(layers.iter().filter_map(Value::as_u64).collect()),
            Some(value) => value.as_u64().map(|layer| vec![layer]),
            None => None,
        };
    }

    fn patterns(&mut self, config: &Map<String, Value>, vllm: Vllm, findings: &mut Findings) {
        for key in ["rank_pattern", "alpha_pattern"] {
            let Some(Value::Object(entries)) = config.get(key).filter(|value| !is_unset(value)) else { continue };
            if !vllm.has_patterns() {
                let server = format!(
                    "vLLM {vllm} doesn't know {key} and scales every module by the one alpha and r, in silence"
                );
                findings.error("pattern", format!("{key} is set"), server, EXPORT);
            }
            for (module, value) in entries {
                let plain = module.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
                match value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0) {
                    Some(rank) if key == "rank_pattern" && plain => self.ranks.push((module.clone(), rank)),
                    None if key == "rank_pattern" => {
                        let what = format!("rank_pattern gives '{module}' the rank {value}");
                        findings.error("bad-rank", what, "it fails while it loads", "write a whole number above 0");
                    }
                    _ if !plain => {
                        let what =
                            format!("{key} has the regular expression '{module}', of which the ranks can't be checked");
                        findings.error("pattern", what, "it matches it as PEFT does", "name modules plainly");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Whether a module's name ends in `name`, at a dot.
pub(super) fn ends_in(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A key that says nothing.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn rank(config: &Map<String, Value>, findings: &mut Findings) -> Option<usize> {
    let value = config.get("r")?;
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0);
    if rank.is_none() {
        let server = "it fails while it loads, or divides alpha by it";
        findings.error(
            "bad-rank",
            format!("`r` is {value}"),
            server,
            "write the rank of the tensors, a whole number above 0",
        );
    }
    rank
}

fn check_alpha(config: &Map<String, Value>, findings: &mut Findings) {
    let Some(value) = config.get("lora_alpha") else { return };
    let alpha = value.as_f64().filter(|alpha| alpha.is_finite());
    match alpha {
        Some(alpha) if alpha > 0.0 => {}
        Some(0.0) => {
            let server = "it loads it, and answers as the base model does";
            findings.error(
                "bad-alpha",
                "`lora_alpha` is 0: the adapter changes nothing".into(),
                server,
                "write the value it was trained with",
            );
        }
        _ => {
            let cure = "write the value it was trained with, a number above 0";
            findings.error("bad-alpha", format!("`lora_alpha` is {value}"), "it fails, or scales by it", cure);
        }
    }
}

/// Keys by which an adapter is more than pairs; whether tensors beside the pairs come of them.
fn features(config: &Map<String, Value>, vllm: Vllm, findings: &mut Findings) -> bool {
    let set = |key: &str| config.get(key).is_some_and(|value| !is_unset(value));
    let mut more = false;
    let mut refuse = |key: &str, server: &str, cure: &str| {
        let what = format!("`{key}` is {}", config.get(key).unwrap_or(&Value::Null));
        findings.error("unsupported", what, server, cure);
    };
    if set("use_dora") {
        more = true;
        refuse("use_dora", "vLLM does not yet support DoRA", EXPORT);
    }
    if config.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none") {
        more = true;
        refuse("bias", "Adapter bias is not supported", PEFT);
    }
    let saved = config.get("modules_to_save").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let heads = |value: &Value| matches!(value.as_str(), Some("classifier" | "score"));
    let served = saved.is_empty() || vllm.has_classifiers() && saved.iter().all(heads);
    if !served {
        more = true;
        refuse("modules_to_save", "vLLM only supports modules_to_save being None", EXPORT);
    }
    for (key, words) in REFUSED {
        if set(key) {
            refuse(key, words, PEFT);
        }
    }
    for key in ["fan_in_fan_out", "trainable_token_indices", "arrow_config"] {
        if set(key) {
            refuse(key, "it doesn't look at this key, and applies plain pairs in silence", PEFT);
        }
    }
    if let Some(kind) = config.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
        refuse("peft_type", &format!("it takes {kind} for LoRA, without looking"), PEFT);
    }
    if let Some(kind) = config.get("init_lora_weights").and_then(Value::as_str)
        && !INITIALISATIONS.contains(&kind.to_ascii_lowercase().as_str())
    {
        let server = match vllm.checks_initialisation() {
            true => "vLLM does not support init_lora_weights of this kind, which changes the base weights",
            false => "it adds the pairs to weights that the initialisation had changed, in silence",
        };
        let cure =
            "convert it to a plain adapter (PEFT's path_initial_model_for_weight_conversion), then write true there";
        refuse("init_lora_weights", server, cure);
    }
    more
}

/// LoRA-GA takes something out of the base at its beginning; whoever loads the adapter adds it to weights that have it still.
fn changed_base(config: &Map<String, Value>, findings: &mut Findings) {
    let kind = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if kind.eq_ignore_ascii_case("lora_ga") {
        findings.note(
            "changed-base",
            "init_lora_weights is lora_ga, which changes the base before training".to_owned(),
            "it adds the pairs to the base as it is, in silence",
            "serve it on the base that the run saved, or convert it (PEFT's path_initial_model_for_weight_conversion)",
        );
    }
}

/// Two hub ids that differ are two models; of paths nothing can be said.
fn other_name(config: &Map<String, Value>, base: &str, findings: &mut Findings) {
    let is_id = |name: &str| {
        let parts: Vec<&str> = name.split('/').collect();
        parts.len() == 2
            && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.') && !part.starts_with('~'))
    };
    let Some(made_for) = config.get("base_model_name_or_path").and_then(Value::as_str) else { return };
    if is_id(made_for) && is_id(base) && !made_for.eq_ignore_ascii_case(base) {
        let what = format!("it was trained on {made_for}, and is to be served on {base}");
        let cure = format!("serve it on {made_for}");
        findings.error("other-base", what, "it never looks at base_model_name_or_path", cure);
    }
}
