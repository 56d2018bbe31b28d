//! `cargo xtask kernels`: the `.cu` files of `kernels/` to the PTX and machine code that are committed beside them.
//!
//! The PTX begins with a digest of its source, so that anyone can tell a stale file without a compiler; where NVRTC is at
//! hand, `--check` compiles again and compares bytes. A newer NVRTC says how the kernels would do on cards that the one which
//! ships doesn't know; those get their machine code from the driver, so nothing of it is committed. `--loops` reads the machine code
//! with nvdisasm (of the wheel `nvidia-cuda-nvdisasm`).

mod loops;
mod nvrtc;
mod occupancy;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::root;
use nvrtc::{NEWER, Nvrtc, SHIPPING, Target};

/// The oldest architecture that ships; a driver compiles it for every newer one.
const PTX: &str = "compute_80";
/// Those that start without compiling: A100, the small Ampere, L20 and 4090, H100 and H200.
const CUBINS: [&str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90"];
/// Those that are compiled to be looked at: B200.
const ONLY_CHECKED: [&str; 1] = ["sm_100"];

fn folder() -> PathBuf {
    root().join("kernels")
}

/// Names of the sources, sorted.
fn sources() -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn source(name: &str) -> Result<String> {
    let read = |file: String| std::fs::read_to_string(folder().join(&file)).with_context(|| format!("kernels/{file}"));
    Ok(read("prelude.cuh".into())? + &read(format!("{name}.cu"))?)
}

/// The first line of a PTX file.
fn stamp(source: &str) -> String {
    format!("// of the source with sha256 {}", hex(&Sha256::digest(source.as_bytes())))
}

/// A digest in digits.
fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Everything that is committed for one source.
struct Built {
    ptx: String,
    cubins: Vec<(&'static str, Vec<u8>)>,
    logs: Vec<(&'static str, String)>,
}

fn build(nvrtc: &Nvrtc, newer: Option<&Nvrtc>, name: &str) -> Result<Built> {
    let source = source(name)?;
    let file = format!("{name}.cu");
    let (ptx, log) = nvrtc.compile(&file, &source, Target::Ptx(PTX))?;
    ensure!(log.trim_matches(['\0', '\n', ' ']).is_empty(), "kernels/{file}: a warning\n{log}");
    let ptx = String::from_utf8(ptx).context("PTX is text")?;
    let ptx = format!("{}\n{}", stamp(&source), without_globals(ptx.trim_end_matches('\0'))?);
    let (mut cubins, mut logs) = (Vec::new(), Vec::new());
    for target in CUBINS {
        let (cubin, log) = nvrtc.compile(&file, &source, Target::Cubin(target))?;
        cubins.push((target, cubin));
        logs.push((target, log));
    }
    for (newer, target) in newer.iter().flat_map(|newer| ONLY_CHECKED.map(|target| (newer, target))) {
        logs.push((target, newer.compile(&file, &source, Target::Cubin(target))?.1));
    }
    Ok(Built { ptx, cubins, logs })
}

/// Removes the module's variables: NVRTC's own header and constants that were folded leave some, and no kernel has any.
fn without_globals(ptx: &str) -> Result<String> {
    let (globals, kept): (Vec<&str>, Vec<&str>) = ptx.lines().partition(|line| line.starts_with(".global "));
    let kept = kept.join("\n") + "\n";
    for global in globals {
        let declared = global.split(['=', '[', ';']).next().unwrap_or_default();
        let name = declared.split_whitespace().next_back().unwrap_or_default();
        let used = kept.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).any(|word| word == name);
        ensure!(!name.is_empty() && !used, "a kernel uses a variable of the module: {global}");
    }
    Ok(kept)
}

/// `kernels [--check | --loops NVDISASM]`.
pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        [flag, nvdisasm] if flag == "--loops" => return loops::task(nvdisasm),
        _ => bail!("kernels takes --check, --loops NVDISASM or nothing"),
    };
    let names = sources()?;
    if check && !SHIPPING.present() {
        names.iter().try_for_each(|name| fresh(name))?;
        println!("digests of {} sources fit; NVRTC isn't here, so nothing was compiled", names.len());
        return Ok(());
    }
    let nvrtc = Nvrtc::open(&SHIPPING)?;
    let newer = if check && !NEWER.present() { None } else { Some(Nvrtc::open(&NEWER)?) };
    let mut table = occupancy::Table::default();
    for name in &names {
        let built = build(&nvrtc, newer.as_ref(), name)?;
        let file = format!("ptx/{name}.ptx");
        settle(check, &file, built.ptx.as_bytes())?;
        for (target, cubin) in &built.cubins {
            settle(check, &format!("cubin/{name}.{target}.z"), &packed(cubin)?)?;
        }
        for (target, log) in &built.logs {
            table.read(target, log, &built.ptx)?;
        }
        println!("{name}: {} bytes of PTX, {} of cubins", built.ptx.len(), total(&built.cubins));
    }
    if newer.is_none() {
        println!("occupancy.md wasn't compared: the NVRTC for {} isn't here", ONLY_CHECKED.join(", "));
        return Ok(());
    }
    settle(check, "occupancy.md", table.finish()?.as_bytes())
}

fn total(cubins: &[(&str, Vec<u8>)]) -> usize {
    cubins.iter().map(|(_, cubin)| cubin.len()).sum()
}

/// A zlib stream; the level is part of the bytes that are compared.
fn packed(bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Writes a file of `kernels/`, or compares it.
fn settle(check: bool, file: &str, bytes: &[u8]) -> Result<()> {
    let path = folder().join(file);
    if check {
        let there = std::fs::read(&path).with_context(|| format!("kernels/{file}"))?;
        ensure!(
            there == bytes,
            "kernels/{file} isn't what its source compiles to; `cargo xtask kernels` makes it again"
        );
        return Ok(());
    }
    std::fs::create_dir_all(path.parent().expect("a file of the folder has a parent"))?;
    Ok(std::fs::write(&path, bytes)?)
}

/// Whether the committed PTX of a source is of that source.
fn fresh(name: &str) -> Result<()> {
    let ptx =
        std::fs::read_to_string(folder().join(format!("ptx/{name}.ptx"))).with_context(|| format!("PTX of {name}"))?;
    let wanted = stamp(&source(name)?);
    ensure!(
        ptx.lines().next() == Some(&wanted),
        "kernels/{name}.cu has changed since; `cargo xtask kernels` compiles it"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_ptx_is_of_the_committed_sources() {
        let names = sources().unwrap();
        assert!(!names.is_empty());
        for name in names {
            fresh(&name).unwrap();
        }
    }

    #[test]
    fn variables_that_are_used_are_noticed() {
        let text = ".version 8.1\n.global .align 4 .u32 N = 4;\nld.global.u32 %r1, [M];";
        assert_eq!(without_globals(text).unwrap(), ".version 8.1\nld.global.u32 %r1, [M];\n");
        assert!(without_globals(&text.replace('M', "N")).is_err());
    }
}
