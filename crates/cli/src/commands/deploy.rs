//! `deploy`: everything that starts a server of a trained model, or the proof that a running one is right.

use super::beside::{self, Manner};
use super::check::{self, Opened};
use super::verify::{self, VerifyArgs};
use crate::failure::{self, Failure};
use crate::prepare::{self, Resolved};
use crate::{ends, environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::CATALOGUE;
use ferrotune_checkpoint::{FolderWriter, LintOptions, OpenModel, Origin, TensorSource, Vllm, lint, open_tokenizer};
use ferrotune_config::Verb;
use ferrotune_config::plan::{RopeScaling, Stage};
use ferrotune_data::clock::Moment;
use ferrotune_data::conversation::Conversation;
use ferrotune_data::prepare::conversations;
use ferrotune_data::serving::{ServedPrompt, served_prompt};
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_deploy::{Adapter, Base, Demand, Service, Wanted, compose, curl, kubernetes, model_name, python, size};
use ferrotune_model::Config;
use ferrotune_tensor::cards::{self, CARDS};
use std::path::{Path, PathBuf};

/// Conversations on which the chat template is tried.
const PROBES: usize = 20;
/// The recipe that `train` leaves beside what it trained.
pub(crate) const RECIPE: &str = "recipe.json";

/// What is served, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct DeployArgs {
    /// A run's output_dir, one of its checkpoints, or what `export` wrote.
    #[arg(value_name = "OUTPUT_DIR")]
    folder: PathBuf,
    /// What clients ask for; the folder's name unless it is given.
    #[arg(long)]
    name: Option<String>,
    /// The version of vLLM.
    #[arg(long, value_name = "VERSION", default_value_t = Vllm::V0_32)]
    vllm: Vllm,
    /// The container's image, if not vllm/vllm-openai of that version.
    #[arg(long)]
    image: Option<String>,
    /// The cards: a name (L20, A100, H100 ...) or the GiB of one.
    #[arg(long, default_value = "L20")]
    gpu: String,
    /// So many cards, instead of the fewest that do.
    #[arg(long, value_name = "GPUS")]
    tensor_parallel: Option<usize>,
    /// Longest conversation in tokens, instead of all that model and memory allow.
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Port on the host.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Another adapter of the same base, served beside it under its folder's name or the one given; may be repeated.
    #[arg(long, value_name = "[NAME=]OUTPUT_DIR")]
    pub(super) with: Vec<String>,
    /// The base model, if it isn't where the adapter says.
    #[arg(long, value_name = "MODEL")]
    pub(super) base: Option<String>,
    #[command(flatten)]
    verify: VerifyArgs,
    /// The recipe of the run and overrides, if the folder has no recipe.json.
    #[arg(value_name = "RECIPE | KEY=VALUE", trailing_var_arg = true, allow_hyphen_values = true)]
    recipe: Vec<String>,
}

/// Writes the files, or asks a server.
pub(crate) fn deploy(args: &DeployArgs) -> Result<(), Failure> {
    let folder = args.folder.canonicalize().map_err(|error| {
        anyhow!(
            "{}: {error}; a run's output folder is wanted, one of its checkpoints, or a merged model",
            args.folder.display()
        )
    });
    let folder = folder.map_err(Failure::Other)?;
    let is_adapter = folder.join("adapter_config.json").is_file();
    if let Some(file) = gguf_in(&folder).filter(|_| !is_adapter) {
        return Err(Failure::Other(anyhow!(
            "{} is a GGUF file, which vLLM doesn't serve well: start `llama-server -m {0} --jinja`, or `ollama create NAME -f Modelfile` \
             in its folder; for vLLM, export without export_format: gguf",
            file.display()
        )));
    }
    let opened = if is_adapter {
        Opened::of_adapter(&folder, args.base.as_deref())
    } else {
        Opened::open(&folder.to_string_lossy(), None)
    };
    let name =
        args.name.clone().unwrap_or_else(|| folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let name = model_name(&name)?;
    let mut adapters = Vec::new();
    if is_adapter {
        adapters.push(checked_adapter(args, (&name, &folder), &opened)?);
    }
    let (path, model) = opened.found.as_ref().map_err(|reason| no_base(&opened.name, reason))?;
    let resolved = recipe_of(args, &folder, is_adapter, path)?;
    let (prompt, manner, config) = manner_of(&resolved, &folder, model)?;
    if args.verify.url.is_some() {
        return verify::verify(&args.verify, &name, is_adapter, &prompt.kwargs, &resolved);
    }
    if !is_adapter && let Some(word) = args.with.first() {
        return Err(Failure::Other(anyhow!(
            "--with {word}: {} is no adapter, so nothing can be beside it",
            folder.display()
        )));
    }
    adapters.extend(beside::adapters(args, (&folder, path), &manner)?);
    one_name_each(&adapters)?;
    let service = service(args, (name, adapters), (&opened, path, model), (&config, &prompt, manner), &resolved)?;
    write(&service, &prompt, &folder.join("deploy"))?;
    tell(&service, &prompt, &args.folder, &gpu(&args.gpu)?.0)
}

/// All decisions about the server.
fn service(
    args: &DeployArgs,
    (name, adapters): (String, Vec<(Adapter, u64)>),
    (opened, path, model): (&Opened, &Path, &OpenModel),
    (config, prompt, manner): (&Config, &ServedPrompt, Manner),
    resolved: &Resolved,
) -> Result<Service, Failure> {
    let gpu = gpu(&args.gpu)?;
    // vLLM has room for the largest in every place.
    let largest = adapters.iter().map(|(_, elements)| *elements).max().unwrap_or(0);
    let demand = Demand::new((config, &model.config), elements(&*model.tensors), largest * (adapters.len() as u64 + 1));
    let wanted = Wanted { gpus: args.tensor_parallel, max_model_len: args.max_model_len };
    let tokenizer = prepare::tokenizer(&resolved.plan.model, &model.tokenizer)?;
    Ok(Service {
        image: args.image.clone().unwrap_or_else(|| format!("vllm/vllm-openai:v{}", args.vllm)),
        vllm: args.vllm,
        name,
        base: base_of(opened, path, model)?,
        adapters: adapters.into_iter().map(|(adapter, _)| adapter).collect(),
        sizing: size(&demand, (&gpu.0, gpu.1), wanted)?,
        port: args.port,
        kwargs: prompt.kwargs.clone(),
        overrides: manner.overrides,
        generation: ends::of_server(model, &tokenizer, &manner.ends),
    })
}

/// Clients ask by name.
fn one_name_each(adapters: &[(Adapter, u64)]) -> Result<(), Failure> {
    let names: Vec<&str> = adapters.iter().map(|(adapter, _)| adapter.name.as_str()).collect();
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, name)) => {
            Err(Failure::Other(anyhow!("two adapters are called {name}; write --with NAME=OUTPUT_DIR, or --name")))
        }
        None => Ok(()),
    }
}

pub(super) fn no_base(name: &str, reason: &str) -> Failure {
    Failure::Other(anyhow!("{name} can't be looked at: {reason}; give the model's folder with --base"))
}

/// The GGUF file that a path is, or that a folder holds in place of a Hugging Face model.
fn gguf_in(path: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf") && path.is_file();
    if path.join("config.json").is_file() {
        return None;
    }
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(path.to_path_buf()).chain(inside).find(is_gguf)
}

/// The adapter, if vLLM can serve it, and how many numbers it has.
pub(super) fn checked_adapter(
    args: &DeployArgs,
    (name, folder): (&str, &Path),
    opened: &Opened,
) -> Result<(Adapter, u64), Failure> {
    let report = lint(folder, LintOptions { vllm: args.vllm, base: opened.as_lint_base() });
    if !report.is_sound() {
        ui::error_text(&check::text(&report));
        return Err(Failure::Told(failure::ERROR));
    }
    let file = ferrotune_checkpoint::SafetensorsFile::open(&folder.join("adapter_model.safetensors"))?;
    let folder = folder.to_string_lossy().into_owned();
    let adapter = Adapter { name: name.to_owned(), folder, max_lora_rank: report.max_lora_rank };
    Ok((adapter, elements(&file)))
}

fn elements(tensors: &dyn TensorSource) -> u64 {
    let size = |name: &String| tensors.info(name).map_or(0, |info| info.shape.iter().map(|&n| n as u64).product());
    tensors.names().iter().map(size).sum()
}

/// The base as the server finds it: a hub id stays one.
///
/// # Errors
/// If it is a GGUF file, which vLLM doesn't load.
fn base_of(opened: &Opened, path: &Path, model: &OpenModel) -> Result<Base, Failure> {
    if Path::new(&opened.name).exists() && !matches!(model.origin, Origin::Gguf(_)) {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        return Ok(Base::Folder(path.to_string_lossy().into_owned()));
    }
    if let Origin::Gguf(file) = &model.origin {
        let (file, program) = (file.display(), environment::program());
        let cure = format!(
            "`{program} export model_name_or_path={file} export_dir=BASE` writes what training saw, and `--base BASE` serves it"
        );
        if !CATALOGUE.iter().any(|entry| entry.hugging_face == opened.name) {
            return Err(Failure::Other(anyhow!("the base is the GGUF file {file}, which vLLM doesn't load: {cure}")));
        }
        ui::warning(&format!(
            "it was trained on {file}, whose weights are quantised; the server is given {}, on which the adapter fits a little less \
             exactly: {cure}",
            opened.name
        ));
    }
    Ok(Base::Hub(opened.name.clone(), opened.revision.clone()))
}

/// The run's recipe with the trained model in place of the one it began with.
pub(super) fn recipe_of(args: &DeployArgs, folder: &Path, is_adapter: bool, base: &Path) -> Result<Resolved, Failure> {
    let beside = [Some(folder), folder.parent()].into_iter().flatten().map(|folder| folder.join(RECIPE));
    let mut words = match beside.into_iter().find(|path| path.is_file()) {
        _ if !args.recipe.is_empty() => args.recipe.clone(),
        Some(path) => vec![path.to_string_lossy().into_owned()],
        None => {
            ui::note(
                "there is no recipe.json of the run: the prompt is taken to be that of the model's own chat template",
            );
            Vec::new()
        }
    };
    let model = if is_adapter { base } else { folder };
    words.push(format!("model_name_or_path={}", model.display()));
    words.push(format!("adapter_name_or_path={}", if is_adapter { folder.to_string_lossy() } else { "null".into() }));
    let resolved = prepare::resolve(&words, Verb::Chat)?;
    if is_adapter && merged_others(&words) {
        ui::warning(
            "create_new_adapter: it was trained over other adapters, which the base must have been exported with",
        );
    }
    Ok(resolved)
}

/// The prompts of a trained model, how it is asked and computed, and its shape with that.
pub(super) fn manner_of(
    resolved: &Resolved,
    folder: &Path,
    base: &OpenModel,
) -> Result<(ServedPrompt, Manner, Config), Failure> {
    let (prompt, ends) = prompt_of(resolved, folder)?;
    let mut config = Config::from_json(&base.config)?;
    let overrides = stretched(resolved, &mut config, &base.config)?;
    let manner = Manner { chat_template: prompt.chat_template.clone(), ends, overrides };
    Ok((prompt, manner, config))
}

/// What the run changed in the base's config.json, which a server of the adapter must be told; a merged model has it in its own.
fn stretched(
    resolved: &Resolved,
    config: &mut Config,
    json: &serde_json::Value,
) -> Result<Option<serde_json::Value>, Failure> {
    let Some(kind) = resolved.plan.model.rope_scaling else { return Ok(None) };
    let trained = config.max_position_embeddings;
    let overrides = config.stretch(&mut json.clone(), kind, resolved.plan.data.cutoff_len)?;
    if overrides.is_some() && kind == RopeScaling::Dynamic {
        ui::warning(&format!(
            "rope_scaling: dynamic: vLLM has no base that grows with the sequence, so beyond {trained} tokens it answers otherwise \
             than the trained model; train with rope_scaling: yarn"
        ));
    }
    Ok(overrides)
}

/// Whether the run merged adapters before it made a new one.
fn merged_others(words: &[String]) -> bool {
    let value = || -> Option<serde_json::Value> { serde_json::from_slice(&std::fs::read(words.first()?).ok()?).ok() };
    value().is_some_and(|recipe| recipe["create_new_adapter"] == "true" && recipe.get("adapter_name_or_path").is_some())
}

/// The chat template that writes prompts as training did, and the ids that end an answer.
fn prompt_of(resolved: &Resolved, folder: &Path) -> Result<(ServedPrompt, Vec<u32>), Failure> {
    let mut tokenizer = prepare::tokenizer(&resolved.plan.model, &open_tokenizer(folder)?)?;
    let options = TemplateOptions::from_plan(&resolved.plan.data, Moment::now());
    let template = Template::resolve(&options, &mut tokenizer).map_err(|error| resolved.place(error))?.template;
    let found: Vec<Conversation> = match resolved.plan.data.stage {
        Stage::Sft if !resolved.plan.data.datasets.is_empty() => {
            // Without its rows a folder can still be served; the prompt is then tried on a conversation of ours.
            conversations(&resolved.plan.data, PROBES).unwrap_or_else(|error| {
                ui::note(&format!("the chat template was not tried on training rows: {error}"));
                Vec::new()
            })
        }
        _ => Vec::new(),
    };
    let prompt = served_prompt(&tokenizer, &template, &found)?;
    let (agreed, tried) = prompt.agrees;
    if agreed < tried && resolved.plan.data.stage == Stage::Sft {
        ui::warning(&format!(
            "no chat template writes all prompts as in training: of {tried} tried, the one that is served writes {agreed}; the \
             model will be asked otherwise than it was trained. Train with a template that the model's own writes"
        ));
    }
    Ok((prompt, template.stop_ids(&tokenizer)))
}

/// Name and GiB of a card.
fn gpu(text: &str) -> Result<(String, f64), Failure> {
    let named = cards::find(text).map(|card| (card.name.to_owned(), card.gib()));
    let given =
        text.parse::<f64>().ok().filter(|gib| (1.0..10_000.0).contains(gib)).map(|gib| (format!("{gib} GiB"), gib));
    named.or(given).ok_or_else(|| {
        let known: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
        Failure::Other(anyhow!("--gpu {text} is no card that is known ({}), nor a number of GiB", known.join(", ")))
    })
}

fn write(service: &Service, prompt: &ServedPrompt, folder: &Path) -> Result<(), Failure> {
    const QUESTION: &str = "Who are you?";
    let writer = FolderWriter::new(folder)?;
    let absolute = folder.to_string_lossy();
    writer.bytes("chat_template.jinja", prompt.chat_template.as_bytes())?;
    if let Some(generation) = &service.generation {
        writer.json("generation_config.json", generation)?;
    }
    writer.bytes("docker-compose.yaml", compose(service, ".").as_bytes())?;
    writer.bytes("kubernetes.yaml", kubernetes(service, &absolute).as_bytes())?;
    writer.bytes("request.sh", curl(service, QUESTION).as_bytes())?;
    Ok(writer.bytes("request.py", python(service, QUESTION).as_bytes())?)
}

fn tell(service: &Service, prompt: &ServedPrompt, folder: &Path, gpu: &str) -> Result<(), Failure> {
    let sizing = &service.sizing;
    ui::line(&format!(
        "vLLM {} on {} of {gpu}: {:.1} GiB of weights each, conversations of up to {} tokens, room for {} in all.",
        service.vllm, sizing.gpus, sizing.weights_gib, sizing.max_model_len, sizing.cache_tokens
    ))?;
    let how = match (prompt.is_own, prompt.kwargs.iter().next()) {
        (true, None) => "the model's own chat template".to_owned(),
        (true, Some((name, value))) => format!("the model's own chat template with {name}={value}"),
        (false, _) => "a chat template written for it".to_owned(),
    };
    ui::line(&format!(
        "Prompts: {how}, which writes {} of {} that were tried as in training.",
        prompt.agrees.0, prompt.agrees.1
    ))?;
    let base = service.adapters.first().map(|_| format!("; `{}` is the untrained base", service.base_name()));
    ui::line(&format!("Ask for the model {}{}.", service.names(), base.unwrap_or_default()))?;
    let deploy = folder.join("deploy");
    ui::line(&format!("\n  docker compose -f {}/docker-compose.yaml up -d", deploy.display()))?;
    ui::line(&format!("  sh {}/request.sh", deploy.display()))?;
    let program = environment::program();
    Ok(ui::line(&format!("  {program} deploy {} --verify http://localhost:{}", folder.display(), service.port))?)
}
