//! From arguments to a plan, and from a plan to an opened model, tokenizer and engine: what several verbs need.

use crate::failure::Failure;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, HubSettings, Want};
use ferrotune_checkpoint::{
    Adapter, AdapterConfig, OpenModel, TensorSource, TokenizerFiles, open_model, open_tokenizer,
};
use ferrotune_config::plan::{LoraPlan, LoraTargets, ModelPlan, Plan, Precision, TemplateChoice, Tuning};
use ferrotune_config::{Diagnostic, Diagnostics, Recipe, Severity, Verb, env, launcher::Launch};
use ferrotune_data::clock::Moment;
use ferrotune_data::prepare::CACHE;
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_dist::Solo;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Engine, LoadedAdapter};
use ferrotune_train::{Fresh, Grown};
use std::path::Path;
use std::rc::Rc;

/// A plan and the recipe's own text.
pub(crate) struct Resolved {
    pub(crate) plan: Plan,
    pub(crate) text: String,
    /// The file and the overrides that name the model and its prompt, for the commands to go on with.
    pub(crate) again: Option<String>,
}

/// Reads a recipe file and overrides, or overrides alone, and says the notes.
pub(crate) fn resolve(args: &[String], verb: Verb) -> Result<Resolved, Failure> {
    let (_, notes) = Launch::from_env(environment::var)?;
    let is_file = |arg: &String| {
        let extension = Path::new(arg).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        !arg.contains('=') && matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
    };
    let file = args.first().filter(|arg| is_file(arg)).cloned();
    let (recipe, text) = match &file {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
            let mut recipe = Recipe::parse(path, &bytes)?;
            recipe.apply(&args[1..])?;
            let overrides =
                if args.len() > 1 { format!("\n# overrides: {}\n", args[1..].join(" ")) } else { String::new() };
            (recipe, String::from_utf8_lossy(&bytes).into_owned() + &overrides)
        }
        None => (Recipe::from_args(args)?, args.join(" ")),
    };
    let unknown = environment::var(env::ALLOW_EXTRA_ARGS).is_some_and(|v| env::is_on(&v));
    let recipe = recipe.with_home(environment::home()).with_unknown_keys(unknown);
    let (mut plan, more) = Plan::resolve(&recipe, verb)?;
    check_names(&plan, &recipe, verb)?;
    place_cache(&mut plan);
    for note in notes.iter().chain(&more) {
        ui::error_text(&note.render(ui::colours()));
    }
    let again = file.map(|file| std::iter::once(file).chain(model_overrides(&args[1..])).collect::<Vec<_>>().join(" "));
    Ok(Resolved { plan, text, again })
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
        faults.extend(wrong.iter().map(|(key, error)| recipe.error_at(key, error.to_string())));
    }
    for path in plan.model.adapters.iter().filter(|path| !Path::new(path).join("adapter_config.json").is_file()) {
        let message = format!("{path} has no adapter_config.json; expected the folder of a PEFT adapter");
        faults.push(recipe.error_at("adapter_name_or_path", message));
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
pub(crate) fn locate(plan: &ModelPlan, want: Want) -> Result<Located, Failure> {
    let home = environment::home().ok_or_else(|| Failure::Other(anyhow!("HOME is not set")))?;
    let mut settings = HubSettings::from_vars(environment::var, home);
    if let Some(folder) = &plan.cache_dir {
        settings = settings.with_cache_dir(folder);
    }
    if plan.revision != "main" {
        settings.revision = Some(plan.revision.clone());
    }
    if let Some(token) = &plan.hub_token {
        settings.hugging_face.token = hub::Token::Given(hub::Secret::new(token));
    }
    let found = hub::resolve(&plan.source, &settings, want, &ui::Downloads::default())?;
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
pub(crate) fn open_tokenizer_only(plan: &ModelPlan) -> Result<Tokenizer, Failure> {
    let located = locate(plan, Want::TokenizerOnly)?;
    tokenizer(plan, &open_tokenizer(&located.path)?)
}

/// Opens the model's files and says what was corrected in them.
pub(crate) fn open(plan: &ModelPlan) -> Result<(Located, OpenModel), Failure> {
    let located = locate(plan, Want::Everything)?;
    let files = open_model(&located.path)?;
    files.notes.iter().for_each(|note| ui::note(note));
    Ok((located, files))
}

/// Element type of a precision.
pub(crate) fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    }
}

/// The model's configuration, with the recipe's position scaling for rows of `cutoff_len` tokens and, if the recipe
/// grows the vocabulary, room for all of the tokenizer's.
fn configuration(
    plan: &Plan,
    files: &mut OpenModel,
    tokenizer: &Tokenizer,
    merged: &[LoadedAdapter],
) -> Result<Config, Failure> {
    let mut config = Config::from_json(&files.config)?;
    if config.tie_word_embeddings && merged.iter().any(|given| given.adapter.separates_head()) {
        config.separate_head = true;
        files.config["tie_word_embeddings"] = false.into();
    }
    if let Some(kind) = plan.model.rope_scaling {
        let trained = config.max_position_embeddings;
        if config.rope.stretch(kind, trained, plan.data.cutoff_len) {
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
        let deviation = files.config.get("initializer_range").and_then(serde_json::Value::as_f64).unwrap_or(0.02);
        return Box::new(Fresh::new(model, deviation as f32, plan.train.seed));
    }
    Box::new(Grown::new(&*files.tensors, model.config().vocab_size, plan.train.seed))
}

/// The tokenizer's files as the run leaves them: with tokens that were added, and with a chat template if the model had
/// none or the template replaces it.
pub(crate) fn files_to_save(
    files: &TokenizerFiles,
    tokenizer: &Tokenizer,
    template: &Template,
) -> Result<TokenizerFiles, Failure> {
    let mut saved = files.clone();
    if tokenizer.has_grown() {
        saved.tokenizer_json = tokenizer.to_json()?.into_bytes();
    }
    if let Some(text) = template.chat_template_to_save(tokenizer) {
        saved.chat_template = Some(text);
    }
    Ok(saved)
}

/// Reads the adapters of a plan.
pub(crate) fn adapters(plan: &ModelPlan) -> Result<Vec<LoadedAdapter>, Failure> {
    let read = |path: &String| Ok(LoadedAdapter { path: path.clone(), adapter: Adapter::read(Path::new(path))? });
    plan.adapters.iter().map(read).collect()
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

/// Opens a model to talk to or to export: adapters merged, nothing trains.
pub(crate) fn open_for_answers(plan: &Plan) -> Result<Answering, Failure> {
    let (located, mut files) = open(&plan.model)?;
    let mut tokenizer = tokenizer(&plan.model, &files.tokenizer)?;
    let options = TemplateOptions::from_plan(&plan.data, Moment::now());
    let resolved = Template::resolve(&options, &mut tokenizer)?;
    resolved.notes.iter().for_each(|note| ui::note(note));
    let (model, engine) = merged(plan, &mut files, &tokenizer)?;
    Ok(Answering { located, files, tokenizer, template: resolved.template, model, engine })
}

/// The model with all adapters merged; nothing trains.
fn merged(plan: &Plan, files: &mut OpenModel, tokenizer: &Tokenizer) -> Result<(Model, Engine), Failure> {
    let given = adapters(&plan.model)?;
    let config = configuration(plan, files, tokenizer, &given)?;
    let model = Model::new(&config, dtype(plan.model.precision), None, false)?;
    let engine = Engine::new(&Device::cpu(), &model, Rc::new(Solo::default()), false);
    engine.load(&*weights(plan, files, &model), &given, None, plan.train.seed)?;
    Ok((model, engine))
}

/// A model ready to train, and how.
pub(crate) struct Training {
    pub(crate) model: Model,
    pub(crate) engine: Engine,
    /// The recipe's choice, or that of the adapter that goes on training; growing the vocabulary adds to it.
    pub(crate) tuning: Tuning,
    /// The configuration of that adapter.
    pub(crate) continued: Option<AdapterConfig>,
}

/// Opens a model to train: all adapters but the last merged, the last one continued unless a new one is wanted. For a run
/// that only evaluates, all are merged.
pub(crate) fn open_for_training(
    plan: &Plan,
    files: &mut OpenModel,
    tokenizer: &Tokenizer,
) -> Result<Training, Failure> {
    if !plan.output.train {
        let (model, engine) = merged(plan, files, tokenizer)?;
        return Ok(Training { model, engine, tuning: plan.tuning.clone(), continued: None });
    }
    let mut given = adapters(&plan.model)?;
    let (tuning, continued) = match &plan.tuning {
        Tuning::Lora(lora) if !lora.create_new => match given.pop() {
            Some(last) => (Tuning::Lora(as_the_adapter_says(lora, &last)), Some(last)),
            None => (plan.tuning.clone(), None),
        },
        other => (other.clone(), None),
    };
    if !given.is_empty() {
        let names: Vec<&str> = given.iter().map(|g| g.path.as_str()).collect();
        ui::warning(&format!(
            "{} merged into the weights for this run; the new adapter is only right on top of them: serve it over a model \
             exported with them",
            names.join(", ")
        ));
    }
    let rows = files.config.get("vocab_size").cloned();
    let config = configuration(plan, files, tokenizer, &given)?;
    let grown = rows != files.config.get("vocab_size").cloned();
    let tuning = with_new_rows(&tuning, grown);
    let model = Model::new(&config, dtype(plan.model.precision), Some(&tuning), plan.train.pure_bf16)?;
    let plus = matches!(&tuning, Tuning::Lora(lora) if lora.plus.is_some());
    let engine = Engine::new(&Device::cpu(), &model, Rc::new(Solo::default()), plus);
    engine.load(&*weights(plan, files, &model), &given, continued.as_ref(), plan.train.seed)?;
    Ok(Training { model, engine, tuning, continued: continued.map(|last| last.adapter.config) })
}

/// The adapter that goes on training keeps its own rank, scale, kind and modules, as with PEFT; recipe keys that say
/// otherwise are named.
fn as_the_adapter_says(recipe: &LoraPlan, last: &LoadedAdapter) -> LoraPlan {
    let config = &last.adapter.config;
    let own = LoraPlan {
        rank: config.r,
        alpha: config.lora_alpha.get(),
        dropout: config.lora_dropout,
        targets: LoraTargets::Modules(last.adapter.modules.keys().cloned().collect()),
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
