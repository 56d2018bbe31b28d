//! Tasks of the project: `cargo xtask` lists them, `cargo xtask NAME` runs one. Nothing needs to be installed for them,
//! except where a task says so itself.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task speaks to the one who runs it")]

mod check;
mod dist;
mod fuzz;
mod gpu;
mod kernels;
mod licences;
mod mutants;
mod peers;
mod text;
mod tree;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

struct Task {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task { name: "ci", about: "all checks, in the order of the list below, then the tests", run: check::ci },
    Task { name: "format", about: "rustfmt finds nothing to change", run: check::format },
    Task { name: "text", about: "no committed file names a place on somebody's machine", run: text::check },
    Task { name: "tree", about: "the README's tree names every file, and no other", run: tree::check },
    Task { name: "licences", about: "every dependency has a licence that fits ours", run: licences::check },
    Task { name: "lint", about: "clippy has nothing to say", run: check::lint },
    Task { name: "docs", about: "the documentation builds without a warning", run: check::docs },
    Task { name: "test", about: "the command of the README: cargo test --workspace", run: check::test },
    Task {
        name: "kernels",
        about: "[--check | --loops NVDISASM]: CUDA sources to PTX and cubins, with NVRTC from a wheel",
        run: kernels::task,
    },
    Task {
        name: "mutants",
        about: "[COUNT] [SEED] | --again FILE: kernels made wrong a line at a time, which their tests must notice",
        run: mutants::task,
    },
    Task {
        name: "gpu",
        about: "[HOST]: tests and steps on a GPU, beside torch's there, and a record; --pack, --record FOLDER, --paper PYTHON",
        run: gpu::task,
    },
    Task {
        name: "peers",
        about: "VENV: our models in PEFT, vLLM and llama.cpp, whose log-probabilities must be ours; large, not in ci",
        run: peers::run,
    },
    Task { name: "soak", about: "[SECONDS] [SEED]: runs of many processes through random faults", run: check::soak },
    Task {
        name: "fuzz",
        about: "[TARGET] [SECONDS] [SEED]: broken input for every reader, counting the branches it reaches",
        run: fuzz::task,
    },
    Task {
        name: "dist",
        about: "tarball, .deb and wheel in target/dist; [--native] [x86_64] [aarch64]",
        run: dist::run,
    },
    Task { name: "symbols", about: "FILE...: a binary asks for no newer glibc than 2.28", run: dist::symbols },
];

fn main() -> ExitCode {
    let compiled: Vec<_> = std::env::args_os().skip(1).collect();
    if fuzz::is_compiler(compiled.first()) {
        return fuzz::compile(&compiled).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        });
    }
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        list();
        return ExitCode::SUCCESS;
    };
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprintln!("error: no task `{name}`\n");
        list();
        return ExitCode::FAILURE;
    };
    match (task.run)(&arguments.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!("cargo xtask TASK\n");
    for task in TASKS {
        println!("  {:10} {}", task.name, task.about);
    }
}

/// The cargo that runs this, in the root of the workspace.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// The root of the workspace.
fn root() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the manifest lies in a folder of the workspace")
}

/// Runs `command` with its output shown.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs `command` and returns what it prints.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
