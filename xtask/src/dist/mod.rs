//! Packages for users without Rust: a tarball, a `.deb` and a wheel for each processor, in `target/dist`.
//!
//! A binary must start on systems as old as glibc 2.28 (Debian 10, RHEL 8, Ubuntu 20.04). zig knows the symbols of
//! every glibc, so `cargo zigbuild` links against that one on any machine and for either processor; `--native` uses
//! plain `cargo build` instead, for a machine that is itself old enough (the container of `manylinux_2_28`). However
//! it was made, no binary is packed that asks for more. musl would run anywhere too, but cannot open CUDA's libraries.

mod archive;
mod elf;
mod notices;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, root, run as run_command};

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
pub(crate) const SUMMARY: &str = "Fine-tunes large language models from LLaMA-Factory recipes";
/// The oldest glibc that must do.
const GLIBC: (u32, u32) = (2, 28);
/// The program's other names.
pub(crate) const OTHER_NAMES: [&str; 2] = ["llamafactory-cli", "lmf"];
/// Libraries that every Linux system with glibc has.
const SYSTEM_LIBRARIES: [&str; 7] =
    ["libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libgcc_s.so", "ld-linux"];

/// A processor that packages are made for.
#[derive(Debug)]
pub(crate) struct Machine {
    /// As in a target triple and in the name of a wheel.
    pub(crate) name: &'static str,
    /// As Debian calls it.
    pub(crate) debian: &'static str,
    /// As the header of a binary has it.
    number: u16,
}

const MACHINES: [Machine; 2] = [
    Machine { name: "x86_64", debian: "amd64", number: 62 },
    Machine { name: "aarch64", debian: "arm64", number: 183 },
];

impl Machine {
    fn triple(&self) -> String {
        format!("{}-unknown-linux-gnu", self.name)
    }
}

/// Builds and packs for the machines named, or for all that this one can build for.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let native = arguments.iter().any(|argument| argument == "--native");
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--native").collect();
    if let Some(unknown) = named.iter().find(|name| MACHINES.iter().all(|machine| machine.name != **name)) {
        bail!("`{unknown}`: packages are made for x86_64 and aarch64");
    }
    let mut left_out = Vec::new();
    for machine in &MACHINES {
        let wanted = named.is_empty() || named.contains(&machine.name);
        match wanted.then(|| can_build(machine, native)) {
            None => {}
            Some(Ok(())) => make(machine, native)?,
            Some(Err(reason)) if named.is_empty() => left_out.push(format!("{}: {reason:#}", machine.name)),
            Some(Err(reason)) => return Err(reason.context(machine.name)),
        }
    }
    for line in &left_out {
        println!("left out: {line}");
    }
    ensure!(left_out.len() < MACHINES.len(), "nothing could be built");
    Ok(())
}

/// Whether the tools and the standard library for `machine` are there.
fn can_build(machine: &Machine, native: bool) -> Result<()> {
    if native {
        ensure!(machine.name == std::env::consts::ARCH, "--native builds for {} only", std::env::consts::ARCH);
        return Ok(());
    }
    let found = Command::new("cargo-zigbuild").arg("--version").output().is_ok_and(|output| output.status.success());
    ensure!(
        found,
        "no cargo-zigbuild: `cargo install --locked cargo-zigbuild` and `pip install ziglang`, or build with --native on \
         a system whose glibc is {}.{} or older",
        GLIBC.0,
        GLIBC.1
    );
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let printed = crate::output(rustc.args(["--print", "target-libdir", "--target", &machine.triple()]))?;
    let library = PathBuf::from(String::from_utf8(printed)?.trim());
    ensure!(library.is_dir(), "no standard library for it: `rustup target add {}`", machine.triple());
    Ok(())
}

fn make(machine: &Machine, native: bool) -> Result<()> {
    println!("\n=== {}", machine.name);
    let binary = std::fs::read(build(machine, native)?)?;
    check_symbols(&binary, Some(machine)).with_context(|| format!("the binary for {}", machine.name))?;
    let folder = root().join("target/dist");
    std::fs::create_dir_all(&folder)?;
    let parts = Parts { binary, notices: notices::collect(&machine.triple())? };
    for (name, bytes) in
        [archive::tarball(machine, &parts)?, archive::deb(machine, &parts)?, wheel::pack(machine, &parts)?]
    {
        let path = folder.join(&name);
        std::fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        println!("target/dist/{name}: {:.1} MB", bytes.len() as f64 / 1e6);
    }
    Ok(())
}

/// What goes into every package.
pub(crate) struct Parts {
    pub(crate) binary: Vec<u8>,
    /// The licences of what is linked in.
    pub(crate) notices: Vec<u8>,
}

/// Builds the program without symbols and returns where it lies.
fn build(machine: &Machine, native: bool) -> Result<PathBuf> {
    let triple = machine.triple();
    let target = if native { triple.clone() } else { format!("{triple}.{}.{}", GLIBC.0, GLIBC.1) };
    let verb = if native { "build" } else { "zigbuild" };
    let arguments = [verb, "--release", "--locked", "--package", "ferrotune", "--target", &target];
    run_command(cargo(&arguments).args(["--config", "profile.release.strip=\"symbols\""]))?;
    Ok(target_folder().join(triple).join("release/ferrotune"))
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The task of its own: checks binaries, whatever made them.
pub(crate) fn symbols(arguments: &[String]) -> Result<()> {
    ensure!(!arguments.is_empty(), "which files?");
    for path in arguments {
        let bytes = std::fs::read(Path::new(path)).with_context(|| format!("reading {path}"))?;
        check_symbols(&bytes, None).with_context(|| path.clone())?;
    }
    Ok(())
}

fn check_symbols(binary: &[u8], machine: Option<&Machine>) -> Result<()> {
    let needs = elf::needs(binary)?;
    if let Some(machine) = machine {
        ensure!(needs.machine == machine.number, "it is for the processor {}, not {}", needs.machine, machine.number);
    }
    let newest = elf::newest_glibc(&needs.versions)?;
    if let Some((major, minor)) = newest.filter(|newest| *newest > GLIBC) {
        bail!("it needs glibc {major}.{minor}; at most {}.{} may be needed", GLIBC.0, GLIBC.1);
    }
    let foreign = needs.libraries.iter().find(|name| !SYSTEM_LIBRARIES.iter().any(|known| name.starts_with(known)));
    if let Some(library) = foreign {
        bail!("it needs {library}, which not every system has");
    }
    let newest = newest.map_or_else(|| "no glibc".to_owned(), |(major, minor)| format!("glibc {major}.{minor}"));
    println!("needs {newest} and {}", needs.libraries.join(", "));
    Ok(())
}
