//! GGUF files in llama.cpp: every type of one model, and every family and tokenizer in f32.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::server::Server;
use super::{Place, TOLERANCE, compare, ferrotune};
use crate::{output, root, run as execute};

/// Types of GGUF files, and the largest mean difference of each from the same file as we read it, in f32: about twice what llama.cpp's
/// rounding of activations was measured to cost, to f16 and bf16 like the weights (1.4e-3, 1.5e-2), to 8 bits for the types below
/// (6e-2 to 1e-1). Beside the model before rounding q4_0 is 0.84 off.
const TYPES: &[(&str, &str)] =
    &[("f32", TOLERANCE), ("bf16", "3e-2"), ("f16", "3e-3"), ("q8_0", "0.15"), ("q4_0", "0.2"), ("q4_k_m", "0.2")];
const LLAMA: u16 = 8200;
// Behind the ports of llama.cpp's own servers, of which each type has one.
const FAMILIES: u16 = 8208;

/// The adapter of rank 8 merged into a file of each type.
pub(super) fn types(place: &Place) -> Result<()> {
    let Place { folder, python, base, .. } = place;
    let mut files = Vec::new();
    let dir = folder.join("gguf");
    for (kind, _) in TYPES {
        println!("writing {kind}");
        let places = [
            format!("model_name_or_path={}", base.display()),
            format!("adapter_name_or_path={}", folder.join("rank8").display()),
            format!("export_dir={}", dir.display()),
            format!("export_gguf_type={kind}"),
            "export_format=gguf".to_owned(),
        ];
        let told = output(ferrotune().args(["export", "examples/quickstart.yaml"]).args(places))?;
        println!("  {}", String::from_utf8_lossy(&told).trim().replace('\n', "\n  "));
        let file = gguf(&dir, kind);
        println!("  {} bytes", fs::metadata(&file)?.len());
        files.push(format!("{}={}", served(kind), file.display()));
    }
    let log = folder.join("llama.log");
    let mut llama = Command::new(python);
    llama.arg(root().join("xtask/src/peers/llama_server.py")).arg(LLAMA.to_string()).args(&files);
    let _server = Server::start(llama, LLAMA, &log)?;
    TYPES.iter().try_for_each(|(kind, tolerance)| {
        let unpacked = unpack(place, kind, &dir)?;
        compare("llama.cpp", LLAMA, &unpacked, &served(kind), tolerance)
    })?;
    println!("{} says how far llama.cpp's own sum of the softmax is off", log.display());
    Ok(())
}

/// The weights as the file has them, in a folder of f32; its name. Against these and not against the model that was trained
/// llama.cpp is held: what rounding costs the weights is told by `export`.
fn unpack(place: &Place, kind: &str, dir: &Path) -> Result<String> {
    let name = format!("unpacked-{}", served(kind));
    let places = [
        format!("model_name_or_path={}", gguf(dir, kind).display()),
        format!("export_dir={}", place.folder.join(&name).display()),
    ];
    output(ferrotune().args(["export", "template=smollm2", "infer_dtype=float32"]).args(places))?;
    Ok(name)
}

fn gguf(dir: &Path, kind: &str) -> PathBuf {
    dir.join(format!("gguf-{}.gguf", kind.to_uppercase()))
}

/// A type as the name of a model.
fn served(kind: &str) -> String {
    kind.replace('_', "-")
}

/// Tiny random models of every family and with every tokenizer at hand.
pub(super) fn families(place: &Place) -> Result<()> {
    let out = place.folder.join("families");
    let script = root().join("xtask/src/peers/families.py");
    let mut tokenizers = vec![root().join("fixtures/tokenizers/tiny-qwen")];
    for folder in [root().join("fixtures/tokenizers"), place.folder.join("tokenizers")] {
        let found = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<_> = found.filter(|path| path.join("tokenizer.json").is_file()).collect();
        found.sort();
        found.retain(|path| !tokenizers.contains(path));
        tokenizers.extend(found);
    }
    let names = output(Command::new(&place.python).arg(&script).arg("make").arg(&out).args(&tokenizers))?;
    for name in String::from_utf8_lossy(&names).lines() {
        export(&out, name)?;
    }
    execute(Command::new(&place.python).arg(&script).arg("compare").arg(&out).arg(FAMILIES.to_string()))
}

/// Writes the file, or says why llama.cpp couldn't use it.
fn export(out: &Path, name: &str) -> Result<()> {
    let places = [
        format!("model_name_or_path={}", out.join(name).display()),
        format!("export_dir={}", out.join(format!("{name}-gguf")).display()),
    ];
    let options = ["export", "template=empty", "export_format=gguf", "export_gguf_type=f32"];
    let told = ferrotune().args(options).args(places).output()?;
    let text = String::from_utf8_lossy(&told.stderr).into_owned();
    for line in text.lines().filter(|line| ["note:", "warning:", "error:"].iter().any(|word| line.starts_with(word))) {
        println!("{name}: {line}");
    }
    Ok(())
}
