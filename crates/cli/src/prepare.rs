//! From arguments to a plan, and from a plan to an opened model, tokenizer and engine: what several verbs need.

use crate::failure::Failure;
use crate::mixture::{balance_note, experts_note};
use crate::place::{self, About};
use crate::{ends, environment, fetch, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, HubSettings, Want};
use ferrotune_checkpoint::{
    Adapter, AdapterConfig, OpenModel, TensorSource, TokenizerFiles, open_model, open_tokenizer,
};
use ferrotune_config::plan::{LoraPlan, LoraTargets, ModelPlan, Plan, TemplateChoice, Tuning};
use ferrotune_config::{Diagnostic, Diagnostics, Recipe, Severity, Verb, env, launcher::Launch};
use ferrotune_data::clock::Moment;
use ferrotune_data::prepare::CACHE;
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_model::{Config, Model, ModelError, Unmet, stack_name};
use ferrotune_tensor::Device;
use ferrotune_train::engine::{Division, Engine, LoadedAdapter};
use ferrotune_train::save::Copied;
use ferrotune_train::{Fresh, Grown, Stacked, check_files, dtype};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// A plan and its recipe.
pub(crate) struct Resolved {
    pub(crate) plan: Plan,
    pub(crate) recipe: Recipe,
    /// What the environment asks of this process.
    pub(crate) launch: Launch,
    /// The file and the overrides that name the model and its prompt, for the commands to go on with.
    pub(crate) again: Option<String>,
}

impl Resolved {
    /// An error that is about a key of the recipe with that key's place; any other, or one about a key that isn't written,
    /// as it is.
    pub(crate) fn place<E: About>(&self, error: E) -> Failure {
        place::placed(&self.recipe, error)
    }
}

/// A recipe as it was given.
pub(crate) struct Read {
    pub(crate) recipe: Recipe,
    /// The file's name, if there is one, and what is written in it.
    pub(crate) file: Option<String>,
    pub(crate) written: String,
}

/// Whether a word of the command line names a recipe's file, and is no override.
pub(crate) fn is_recipe(arg: &str) -> bool {
    let extension = Path::new(arg).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    !arg.contains('=') && matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}

/// Reads a recipe file and overrides, or overrides alone.
///
/// # Errors
/// With everything that is wrong with their form.
pub(crate) fn read(args: &[String]) -> Result<Read, Failure> {
    let file = args.first().filter(|arg| is_recipe(arg)).cloned();
    let (recipe, written) = match &file {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
            let mut recipe = Recipe::parse(path, &bytes)?;
            recipe.apply(&args[1..])?;
            (recipe, String::from_utf8_lossy(&bytes).into_owned())
        }
        None => (Recipe::from_args(args)?, String::new()),
    };
    let unknown = environment::var(env::ALLOW_EXTRA_ARGS).is_some_and(|v| env::is_on(&v));
    let recipe = recipe.with_home(environment::home()).with_unknown_keys(unknown);
    Ok(Read { recipe, file, written })
}

/// Reads a recipe and resolves it, and says the notes.
pub(crate) fn resolve(args: &[String], verb: Verb) -> Result<Resolved, Failure> {
    let (resolved, notes) = resolve_quietly(args, verb)?;
    notes.iter().for_each(|note| ui::error_text(&note.render(ui::colours())));
    Ok(resolved)
}

/// Reads a recipe and resolves it; the notes come beside.
pub(crate) fn resolve_quietly(args: &[String], verb: Verb) -> Result<(Resolved, Vec<Diagnostic>), Failure> {
    let (launch, notes) = Launch::from_env(environment::var)?;
    let Read { recipe, file, .. } = read(args)?;
    let (mut plan, more) = Plan::resolve(&recipe, verb)?;
    let reads_rows = matches!(verb, Verb::Train | Verb::Data);
    if reads_rows {
        fetch::registry(&mut plan, &recipe)?;
    }
    check_names(&plan, &recipe, verb)?;
    if reads_rows {
        fetch::datasets(&mut plan, &recipe)?;
    }
    place_cache(&mut plan);
    let again = file.map(|file| std::iter::once(file).chain(model_overrides(&args[1..])).collect::<Vec<_>>().join(" "));
    Ok((Resolved { plan, recipe, launch, again }, notes.into_iter().chain(more).collect()))
}

fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    Failure::Recipe(Diagnostics(vec![Diagnostic {
        severity: Severity::Error,
        file: path.to_owned(),
        span: None,
        message: format!("cannot read the recipe: {error}"),
        help: Some("give the path of a .yaml or .json file, or `key=value` pairs alone".to_owned()),
    }]))
}

/// Names in the recipe that nothing answers to, all at once and with their places.
fn check_names(plan: &Plan, recipe: &Recipe, verb: Verb) -> Result<(), Diagnostics> {
    let mut faults = Vec::new();
    if let TemplateChoice::Named(name) = &plan.data.template
        && let Err(error) = Template::known(name)
    {
        faults.push(recipe.error_at("template", error.to_string()));
    }
    if matches!(verb, Verb::Train | Verb::Data) {
        let wrong = ferrotune_data::prepare::check_names(&plan.data);
        faults.extend(wrong.iter().flat_map(|(_, error)| place::diagnostics(recipe, error)));
    }
    for path in plan.model.adapters.iter().filter(|path| !Path::new(path).join("adapter_config.json").is_file()) {
        let message = format!("{path} has no adapter_config.json; expected the folder of a PEFT adapter");
        faults.push(recipe.error_at_item("adapter_name_or_path", path, message));
    }
    if faults.is_empty() { Ok(()) } else { Err(Diagnostics(faults)) }
}

/// Keys that another verb must be told as well, if they were given on the command line.
const MODEL_KEYS: [&str; 9] = [
    "model_name_or_path",
    "model_revision",
    "template",
    "default_system",
    "enable_thinking",
    "add_tokens",
    "add_special_tokens",
    "resize_vocab",
    "rope_scaling",
];

/// The overrides among `args` that name the model and its prompt, as they are typed.
fn model_overrides(args: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = args.iter().peekable();
    while let Some(word) = words.next() {
        let (name, value) = match word.trim_start_matches("--").split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.trim_start_matches("--"), words.next_if(|next| !next.starts_with("--")).cloned()),
        };
        if let (true, Some(value)) = (MODEL_KEYS.contains(&name), value) {
            let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "/._-,:".contains(c));
            let value = if plain { value } else { format!("'{}'", value.replace('\'', "'\\''")) };
            kept.push(format!("{name}={value}"));
        }
    }
    kept
}

/// Rows of a dataset folder that can't be written are cached under the user's cache folder instead.
fn place_cache(plan: &mut Plan) {
    let dir = &plan.data.dir;
    let beside = || std::fs::create_dir_all(dir.join(CACHE)).is_ok() && tempfile::tempfile_in(dir.join(CACHE)).is_ok();
    if plan.data.cache_dir.is_some() || !dir.exists() || beside() {
        return;
    }
    if let Some(home) = environment::home() {
        let folder = HubSettings::from_vars(environment::var, home).own_cache.join("rows");
        ui::note(&format!("{} can't be written: encoded rows are cached in {}", dir.display(), folder.display()));
        plan.data.cache_dir = Some(folder);
    }
}

/// A model's files on this machine.
pub(crate) struct Located {
    pub(crate) path: std::path::PathBuf,
    /// What users and servers call it.
    pub(crate) name: String,
    pub(crate) revision: Option<String>,
}

/// Finds the model's files, downloading what is missing.
pub(crate) fn locate(resolved: &Resolved, want: Want) -> Result<Located, Failure> {
    let plan = &resolved.plan.model;
    let mut settings = fetch::hub_settings(plan)?;
    if plan.revision != "main" {
        settings.revision = Some(plan.revision.clone());
    }
    let found = hub::resolve(&plan.source, &settings, want, &ui::Downloads::default());
    let found = found.map_err(|error| resolved.place(error))?;
    let catalogue = hub::CATALOGUE.iter().find(|entry| entry.name == plan.source);
    let name = match (&found.origin, catalogue) {
        (hub::Origin::HuggingFace { id, .. } | hub::Origin::ModelScope { id, .. }, _) => id.clone(),
        (_, Some(entry)) => entry.hugging_face.to_owned(),
        _ => plan.source.clone(),
    };
    let revision = matches!(found.origin, hub::Origin::HuggingFace { .. }).then(|| plan.revision.clone());
    Ok(Located { path: found.path, name, revision: revision.filter(|r| r != "main") })
}

/// The tokenizer of a model's files.
pub(crate) fn tokenizer(plan: &ModelPlan, files: &TokenizerFiles) -> Result<Tokenizer, Failure> {
    let mut tokenizer =
        Tokenizer::from_parts(&files.tokenizer_json, &files.tokenizer_config, files.chat_template.clone())?;
    tokenizer.add_tokens(&plan.add_tokens, false);
    tokenizer.add_tokens(&plan.add_special_tokens, true);
    Ok(tokenizer)
}

/// The tokenizer alone, for verbs that need no weights.
pub(crate) fn open_tokenizer_only(resolved: &Resolved) -> Result<Tokenizer, Failure> {
    let located = locate(resolved, Want::TokenizerOnly)?;
    let files = open_tokenizer(&located.path).map_err(|error| resolved.place(error))?;
    tokenizer(&resolved.plan.model, &files)
}

/// Opens the model's files and says what was corrected in them.
pub(crate) fn open(resolved: &Resolved) -> Result<(Located, OpenModel), Failure> {
    let located = locate(resolved, Want::Everything)?;
    let files = open_model(&located.path).map_err(|error| resolved.place(error))?;
    files.notes.iter().for_each(|note| ui::note(note));
    Ok((located, files))
}

/// The model's configuration, with the recipe's position scaling for rows of `cutoff_len` tokens and, if the recipe
/// grows the vocabulary, room for all of the tokenizer's.
fn configuration(
    resolved: &Resolved,
    files: &mut OpenModel,
    tokenizer: &Tokenizer,
    merged: &[LoadedAdapter],
) -> Result<Config, Failure> {
    let plan = &resolved.plan;
    let mut config = Config::from_json(&files.config).map_err(|error| resolved.place(error))?;
    if config.tie_word_embeddings && merged.iter().any(|given| given.adapter.separates_head()) {
        config.separate_head = true;
        files.config["tie_word_embeddings"] = false.into();
    }
    if let Some(kind) = plan.model.rope_scaling {
        let trained = config.max_position_embeddings;
        let stretched = config.stretch(&mut files.config, kind, plan.data.cutoff_len);
        if stretched.map_err(|error| resolved.place(error))?.is_some() {
            ui::note(&format!("rope_scaling: positions are stretched from {trained} to {}", plan.data.cutoff_len));
        } else {
            ui::note(&format!("rope_scaling has no effect: the model was made for {trained} positions"));
        }
    }
    if plan.model.resize_vocab && tokenizer.len() > config.vocab_size {
        let rows = tokenizer.len().next_multiple_of(64);
        ui::note(&format!("resize_vocab: the embedding grows from {} to {rows} rows", config.vocab_size));
        config.vocab_size = rows;
        files.config["vocab_size"] = rows.into();
    }
    Ok(config)
}

/// Where base weights come from: the files, the files with more rows, or chance.
fn weights<'a>(plan: &Plan, files: &'a OpenModel, model: &Model) -> Box<dyn TensorSource + 'a> {
    if plan.model.from_scratch {
        let deviation = files.config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
        return Box::new(Fresh::new(model, deviation as f32, plan.train.seed));
    }
    Box::new(Stacked::new(Grown::new(&*files.tensors, model.config().vocab_size, plan.train.seed)))
}

/// The tokenizer's files as the run leaves them: with tokens that were added, the eos token of training, and with a chat template
/// if the model had none or the template replaces it.
pub(crate) fn files_to_save(
    files: &TokenizerFiles,
    tokenizer: &Tokenizer,
    template: &Template,
) -> Result<TokenizerFiles, Failure> {
    let mut saved = files.clone();
    if tokenizer.has_grown() {
        saved.tokenizer_json = tokenizer.to_json()?.into_bytes();
    }
    ends::name_eos(&mut saved, tokenizer);
    if let Some(text) = template.chat_template_to_save(tokenizer) {
        saved.chat_template = Some(text);
    }
    Ok(saved)
}

/// Reads the adapters of a plan; every one that can't be used is told.
fn adapters(resolved: &Resolved) -> Result<Vec<LoadedAdapter>, Failure> {
    let (mut read, mut faults) = (Vec::new(), Vec::new());
    for path in &resolved.plan.model.adapters {
        match Adapter::read(Path::new(path)) {
            Ok(adapter) => read.push(LoadedAdapter { path: path.clone(), adapter }),
            Err(error) => faults.push(resolved.recipe.error_at_item("adapter_name_or_path", path, error.to_string())),
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(Failure::Recipe(Diagnostics(faults))) }
}

/// A model ready to answer, and all that came with it.
pub(crate) struct Answering {
    pub(crate) located: Located,
    pub(crate) files: OpenModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Template,
    pub(crate) model: Model,
    pub(crate) engine: Engine,
}

/// Opens a model on `device`, to talk to or to export: adapters merged, nothing trains.
pub(crate) fn open_for_answers(resolved: &Resolved, device: &Device) -> Result<Answering, Failure> {
    open_merged(resolved, &resolved.plan, adapters(resolved)?, device)
}

/// The same by another plan for the same files, with the last adapter's scale times `factor`; 0 leaves it out.
pub(crate) fn open_rescaled(resolved: &Resolved, plan: &Plan, factor: f64) -> Result<Answering, Failure> {
    let mut merged = adapters(resolved)?;
    if let Some(last) = merged.pop() {
        merged.extend(rescaled(last, factor));
    }
    open_merged(resolved, plan, merged, &Device::cpu())
}

/// The same with each adapter's share of the sum times its weight, in the order of `adapter_name_or_path`.
pub(crate) fn open_weighted(resolved: &Resolved, weights: &[f64]) -> Result<Answering, Failure> {
    let given = adapters(resolved)?;
    if weights.is_empty() {
        return open_merged(resolved, &resolved.plan, given, &Device::cpu());
    }
    if weights.len() != given.len() {
        return Err(Failure::Other(anyhow!(
            "--adapter-weights has {} numbers, adapter_name_or_path names {} adapters; give one for each",
            weights.len(),
            given.len()
        )));
    }
    let whole = |adapter: &Adapter| adapter.config.use_dora || !adapter.saved.is_empty();
    if let Some((last, weight)) =
        given.iter().zip(weights).find(|(last, weight)| whole(&last.adapter) && **weight != 1.0)
    {
        return Err(Failure::Other(anyhow!(
            "{} has DoRA or whole modules, which are no part of a sum: its weight can only be 1, not {weight}",
            last.path
        )));
    }
    let merged = given.into_iter().zip(weights).filter_map(|(last, &weight)| rescaled(last, weight)).collect();
    open_merged(resolved, &resolved.plan, merged, &Device::cpu())
}

/// An adapter whose update is multiplied; nothing of it is left at 0.
fn rescaled(mut last: LoadedAdapter, factor: f64) -> Option<LoadedAdapter> {
    let config = &mut last.adapter.config;
    config.lora_alpha = (config.lora_alpha.get() * factor).into();
    for alpha in config.alpha_pattern.values_mut() {
        *alpha = alpha.as_f64().map_or(Value::Null, |alpha| (alpha * factor).into());
    }
    (factor != 0.0).then_some(last)
}

fn open_merged(
    resolved: &Resolved,
    plan: &Plan,
    merged: Vec<LoadedAdapter>,
    device: &Device,
) -> Result<Answering, Failure> {
    let (located, mut files) = open(resolved)?;
    let mut tokenizer = tokenizer(&plan.model, &files.tokenizer)?;
    let options = TemplateOptions::from_plan(&plan.data, Moment::now());
    let found = Template::resolve(&options, &mut tokenizer).map_err(|error| resolved.place(error))?;
    found.notes.iter().for_each(|note| ui::note(note));
    ends::complete(&mut files, &found.template.stop_ids(&tokenizer));
    let config = configuration(resolved, &mut files, &tokenizer, &merged)?;
    let fitted = fitted(resolved, plan, &files, &config, Wanted { tuning: None, merged, continued: None })?;
    let division = Division::solo(fitted.model());
    let Training { model, engine, .. } = fitted.load(resolved, &files, division, device)?;
    Ok(Answering { located, files, tokenizer, template: found.template, model, engine })
}

/// What becomes of a model.
struct Wanted {
    /// The recipe's choice, or that of the adapter that goes on training; growing the vocabulary adds to it. Nothing if
    /// nothing trains.
    tuning: Option<Tuning>,
    merged: Vec<LoadedAdapter>,
    continued: Option<LoadedAdapter>,
}

/// A model that its files and adapters were found to fit; no weight is read yet.
pub(crate) struct Fitted {
    model: Model,
    wanted: Wanted,
}

/// A model ready to train, and how.
pub(crate) struct Training {
    pub(crate) model: Model,
    pub(crate) engine: Engine,
    pub(crate) tuning: Tuning,
    /// The configuration of the adapter that goes on training.
    pub(crate) continued: Option<AdapterConfig>,
}

/// Looks whether a model can train as the recipe says, before anything is encoded: all adapters but the last are to be
/// merged, the last one continued unless a new one is wanted. For a run that only evaluates, all are merged.
pub(crate) fn fit_for_training(
    resolved: &Resolved,
    files: &mut OpenModel,
    tokenizer: &Tokenizer,
) -> Result<Fitted, Failure> {
    let plan = &resolved.plan;
    let mut given = adapters(resolved)?;
    let (tuning, continued) = match &plan.tuning {
        _ if !plan.output.train => (None, None),
        Tuning::Lora(lora) if !lora.create_new => match given.pop() {
            Some(last) => (Some(Tuning::Lora(as_the_adapter_says(lora, &last))), Some(last)),
            None => (Some(plan.tuning.clone()), None),
        },
        other => (Some(other.clone()), None),
    };
    if tuning.is_some() && !given.is_empty() {
        let names: Vec<&str> = given.iter().map(|g| g.path.as_str()).collect();
        ui::warning(&format!(
            "{} merged into the weights for this run; the new adapter is only right on top of them: serve it over a model \
             exported with them",
            names.join(", ")
        ));
    }
    // The tokens that the template will add count as well.
    let mut all_tokens = tokenizer.clone();
    let options = TemplateOptions::from_plan(&plan.data, Moment::now());
    Template::resolve(&options, &mut all_tokens).map_err(|error| resolved.place(error))?;
    let rows = files.config.get("vocab_size").cloned();
    let config = configuration(resolved, files, &all_tokens, &given)?;
    let grown = rows != files.config.get("vocab_size").cloned();
    let tuning = tuning.map(|tuning| with_new_rows(&tuning, grown));
    fitted(resolved, plan, files, &config, Wanted { tuning, merged: given, continued })
}

/// Puts the model together and checks everything that the recipe, the files and the adapters say of it.
fn fitted(
    resolved: &Resolved,
    plan: &Plan,
    files: &OpenModel,
    config: &Config,
    wanted: Wanted,
) -> Result<Fitted, Failure> {
    let dtype = dtype(plan.model.precision);
    let base = Model::new(config, dtype, None, false)?;
    let weights = weights(plan, files, &base);
    check_files(&base, &*weights)?;
    let mut faults = Vec::new();
    for given in wanted.merged.iter().chain(&wanted.continued) {
        if let Err(error) = given.adapter.check_fits(Path::new(&given.path), &*weights) {
            faults.push(resolved.recipe.error_at_item("adapter_name_or_path", &given.path, error.to_string()));
        }
    }
    let model = match &wanted.tuning {
        Some(tuning) => match Model::new(config, dtype, Some(tuning), plan.train.pure_bf16) {
            Err(ModelError::Unmet(unmet)) => {
                faults.extend(unmet_at(resolved, wanted.continued.as_ref(), &unmet));
                None
            }
            other => Some(other?),
        },
        None => Some(base),
    };
    drop(weights);
    match model {
        Some(model) if faults.is_empty() => Ok(Fitted { model, wanted }),
        _ => Err(Failure::Recipe(Diagnostics(faults))),
    }
}

/// What the model doesn't have, where the recipe asks for it, or the adapter whose settings the run takes.
pub(crate) fn unmet_at(resolved: &Resolved, continued: Option<&LoadedAdapter>, unmet: &[Unmet]) -> Vec<Diagnostic> {
    let at = |unmet: &Unmet| match (continued, unmet.asked_by()) {
        (Some(given), _) => {
            let message = format!("adapter {}: {unmet}", given.path);
            resolved.recipe.error_at_item("adapter_name_or_path", &given.path, message)
        }
        (None, (key, Some(item))) => resolved.recipe.error_at_item(key, item, unmet.to_string()),
        (None, (key, None)) => resolved.recipe.error_at(key, unmet.to_string()),
    };
    unmet.iter().map(at).collect()
}

impl Fitted {
    /// The model as it trains.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Whether anything trains.
    pub(crate) fn trains(&self) -> bool {
        self.wanted.tuning.is_some()
    }

    /// What is worth knowing of a mixture of experts before it trains.
    pub(crate) fn notes(&self, plan: &Plan) -> Vec<String> {
        let Some(tuning) = &self.wanted.tuning else { return Vec::new() };
        experts_note(&self.model, tuning).into_iter().chain(balance_note(self.model.config(), plan)).collect()
    }

    /// What a run copies of the model to write it; `config` is its config.json.
    pub(crate) fn copied(&self, plan: &Plan, config: &Value) -> Copied {
        if self.trains() { Copied::of(plan, config, self.model.parameters()) } else { Copied::default() }
    }

    /// Reads this rank's part of the weights onto its device.
    pub(crate) fn load(
        self,
        resolved: &Resolved,
        files: &OpenModel,
        division: Division,
        device: &Device,
    ) -> Result<Training, Failure> {
        let Self { model, wanted: Wanted { tuning, merged, continued } } = self;
        let plan = &resolved.plan;
        let plus = matches!(&tuning, Some(Tuning::Lora(lora)) if lora.plus.is_some());
        let engine = Engine::new(device, &model, division, plus);
        let weights = weights(plan, files, &model);
        let loaded = engine.load(&*weights, &merged, continued.as_ref(), plan.train.seed);
        loaded.map_err(|error| resolved.place(error))?;
        let tuning = tuning.unwrap_or_else(|| plan.tuning.clone());
        Ok(Training { model, engine, tuning, continued: continued.map(|last| last.adapter.config) })
    }
}

/// The adapter that goes on training keeps its own rank, scale, kind and modules, as with PEFT; recipe keys that say
/// otherwise are named.
fn as_the_adapter_says(recipe: &LoraPlan, last: &LoadedAdapter) -> LoraPlan {
    let config = &last.adapter.config;
    // All experts of a block are one module here.
    let whole = |module: &String| stack_name(module).map_or_else(|| module.clone(), |(stack, _)| stack);
    let modules: BTreeSet<String> = last.adapter.modules.keys().map(whole).collect();
    let own = LoraPlan {
        rank: config.r,
        alpha: config.lora_alpha.get(),
        dropout: config.lora_dropout,
        targets: LoraTargets::Modules(modules.into_iter().collect()),
        additional_targets: config.modules_to_save.clone().unwrap_or_default(),
        rslora: config.use_rslora,
        dora: config.use_dora,
        plus: recipe.plus,
        create_new: false,
    };
    let differs = [
        ("lora_rank", own.rank != recipe.rank),
        ("lora_alpha", own.alpha != recipe.alpha),
        ("lora_dropout", own.dropout != recipe.dropout),
        ("use_rslora", own.rslora != recipe.rslora),
        ("use_dora", own.dora != recipe.dora),
        ("additional_target", own.additional_targets != recipe.additional_targets),
    ];
    let names: Vec<&str> = differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    if !names.is_empty() {
        ui::note(&format!(
            "the adapter {} goes on training with its own settings, not the recipe's {}; for those of the recipe, set \
             create_new_adapter: true",
            last.path,
            names.join(", ")
        ));
    }
    own
}

/// New rows are noise until they train, so an adapter takes embedding and head along, as in LLaMA-Factory.
fn with_new_rows(tuning: &Tuning, grown: bool) -> Tuning {
    let mut tuning = tuning.clone();
    if let Tuning::Lora(lora) = &mut tuning
        && grown
        && lora.additional_targets.is_empty()
    {
        lora.additional_targets = ["embed_tokens", "lm_head"].map(String::from).to_vec();
        ui::note(
            "resize_vocab: embed_tokens and lm_head train too and are saved with the adapter; vLLM serves such an adapter \
             only after `ferrotune export`",
        );
    }
    tuning
}
