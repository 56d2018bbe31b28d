//! What must not pass: a vLLM that was started wrongly, which `deploy --verify` must catch and name, and broken adapters, which
//! `check` must refuse, whatever vLLM makes of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::server::{Server, vllm};
use super::{Place, TOLERANCE, ferrotune, verification};
use crate::{output, root};

const NAMES: u16 = 8195;
const TEMPLATE: u16 = 8196;
/// As many as a user sends.
const ROWS: &str = "20";
/// Adapters whose configuration isn't that of training, in a way that vLLM doesn't see: name, key, value.
const WRONG: [(&str, &str, i64); 2] = [("wrong-rank", "r", 16), ("wrong-scaling", "lora_alpha", 64)];

/// Makes each of the four mistakes, then breaks adapters.
pub(super) fn caught(place: &Place) -> Result<()> {
    let Place { folder, python, base, template } = place;
    let right = folder.join("rank8");
    let mut modules = vec![format!("right={}", right.display())];
    for (name, key, value) in WRONG {
        let to = folder.join(name);
        copy_with(&right, &to, key, value.into())?;
        modules.push(format!("{name}={}", to.display()));
    }
    let served = |port, template: &Path, modules: &[String]| {
        let mut command = vllm(python, port, base, template);
        command.args(["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "4"]);
        // Broken adapters are loaded while it runs.
        command.args(["--lora-modules"]).args(modules).env("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True");
        Server::start(command, port, &folder.join(format!("vllm-{port}.log")))
    };
    let server = served(NAMES, template, &modules)?;
    told(NAMES, "right", None)?;
    told(NAMES, "nobody", Some("wrong model name: nobody there is called `nobody`"))?;
    told(NAMES, "base", Some("wrong model name: `base` is the base, which wasn't trained"))?;
    told(NAMES, "wrong-rank", Some("wrong rank or scaling: the adapter acts as if scaled by 0.500"))?;
    told(NAMES, "wrong-scaling", Some("wrong rank or scaling: the adapter acts as if scaled by 4.000"))?;
    drop(server);
    let other = folder.join("other_template.jinja");
    fs::write(
        &other,
        "{% for message in messages %}### {{ message.role }}: {{ message.content }}\n{% endfor %}### assistant: ",
    )?;
    let _server = served(TEMPLATE, &other, &modules[..1])?;
    told(TEMPLATE, "right", Some("wrong template: "))?;
    broken(python, &right, &folder.join("broken"))
}

/// An adapter with another value in its configuration.
fn copy_with(from: &Path, to: &Path, key: &str, value: Value) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors"))?;
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json"))?)?;
    *config.get_mut(key).with_context(|| format!("the adapter has no {key}"))? = value;
    Ok(fs::write(to.join("adapter_config.json"), json!(config).to_string())?)
}

/// Verifies `name` and demands what is to be said of it; nothing if it is right.
fn told(port: u16, name: &str, mistake: Option<&str>) -> Result<()> {
    let told = verification(port, "rank8", name, (TOLERANCE, ROWS)).output()?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    println!("mistake, {name} on {port}: {}", text.trim().replace('\n', "\n  "));
    let is_told = mistake.is_none_or(|mistake| text.contains(mistake));
    if told.status.success() == mistake.is_some() || !is_told {
        bail!("expected: {}\n{}", mistake.unwrap_or("no mistake"), String::from_utf8_lossy(&told.stderr));
    }
    Ok(())
}

/// Breaks an adapter in every way, and prints what `check` and vLLM say of it.
fn broken(python: &Path, sound: &Path, out: &Path) -> Result<()> {
    let script = root().join("xtask/src/peers/broken.py");
    let kinds = output(Command::new(python).arg(&script).arg("make").arg(sound).arg(out))?;
    let kinds = String::from_utf8_lossy(&kinds).into_owned();
    let url = format!("http://127.0.0.1:{TEMPLATE}");
    let loaded = output(Command::new(python).arg(&script).args(["load", &url]).arg(out))?;
    let loaded = String::from_utf8_lossy(&loaded).into_owned();
    let mut passed = Vec::new();
    for kind in kinds.lines() {
        let checked = ferrotune().arg("check").arg(out.join(kind)).output()?;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        let first = text.lines().find(|line| line.starts_with("error")).unwrap_or("nothing");
        let by_vllm = loaded.lines().find_map(|line| line.strip_prefix(&format!("{kind}: ")));
        println!("broken, {kind}\n  check: {first}\n  vLLM: {}", by_vllm.unwrap_or("nothing"));
        if checked.status.success() {
            passed.push(kind);
        }
    }
    if !passed.is_empty() {
        bail!("check finds nothing wrong with: {}", passed.join(", "));
    }
    Ok(())
}
