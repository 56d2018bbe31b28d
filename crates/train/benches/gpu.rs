//! LoRA steps of large models' shapes on the GPU of this machine: a line of JSON each.
//! `cargo bench -p ferrotune-train --bench gpu -- [SHAPE] [TOKENS] [keep|recompute] [small|paper]`; `small` takes
//! small numbers in each shape, for a GPU that an interpreter plays, and `probe` says which GPU it is. `paper` needs none: it says
//! what the plan foretells of whole models. `cargo xtask gpu` carries it to machines that have one and makes a record of
//! what it prints.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

#[path = "gpu/case.rs"]
mod case;
#[path = "gpu/shapes.rs"]
mod shapes;

use case::Case;
use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::{Libraries, Options, Search, Surroundings};
use serde_json::json;
use shapes::SHAPES;
use std::path::PathBuf;
use std::process::ExitCode;

const TOKENS: [usize; 3] = [2048, 8192, 32_768];
/// Of the free memory, that which the plan may fill.
const SHARE: f64 = 0.95;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    if args == ["probe"] {
        return probe(&libraries()?);
    }
    let known = |arg: &String| {
        SHAPES.iter().any(|shape| shape.name == arg)
            || ["keep", "recompute", "small", "paper"].contains(&arg.as_str())
            || arg.parse::<usize>().is_ok()
    };
    if let Some(arg) = args.iter().find(|arg| !known(arg)) {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        return Err(format!(
            "`{arg}` is no shape, no number of tokens, and none of keep, recompute, small and paper; shapes: {}",
            names.join(", ")
        )
        .into());
    }
    let asked = |value: &str| args.iter().any(|arg| arg == value);
    let any = |of: &[&str]| of.iter().any(|value| asked(value));
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let modes = [("recompute", true), ("keep", false)];
    let libraries = if asked("paper") { None } else { Some(libraries()?) };
    for shape in SHAPES.iter().filter(|shape| asked(shape.name) || !SHAPES.iter().any(|shape| asked(shape.name))) {
        for tokens in if numbers.is_empty() { &TOKENS[..] } else { &numbers[..] } {
            for (_, recompute) in modes.iter().filter(|(mode, _)| asked(mode) || !any(&["keep", "recompute"])) {
                let shape = if asked("small") { shape.reduced() } else { *shape };
                let case = Case { shape, tokens: *tokens, recompute: *recompute, steps: 5 };
                match &libraries {
                    Some(libraries) => one(libraries, case)?,
                    None => println!("{}", case.on_paper()?),
                }
            }
        }
    }
    Ok(())
}

/// A case with as many layers as fit when blocks are recomputed, so that both modes have the same; a device of its own, so that
/// its memory is.
fn one(libraries: &Libraries, case: Case) -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::cuda(libraries, &Options::default())?;
    let room = (device.free_memory().unwrap_or(0) as f64 * SHARE) as u64;
    let fitting = Case { recompute: true, ..case }.that_fits(room)?;
    let fitting = fitting.map(|fitting| Case { recompute: case.recompute, ..fitting });
    let line = match fitting {
        Some(fitting) if fitting.planned()? <= room => fitting.run(&device)?,
        left => json!({
            "who": "ferrotune", "shape": case.shape.name, "layers": left.map(|case| case.shape.layers), "tokens": case.tokens,
            "recompute": case.recompute, "left_out": "it doesn't fit, by the plan",
        }),
    };
    println!("{line}");
    Ok(())
}

/// The libraries of this machine's GPU.
fn libraries() -> Result<Libraries, Box<dyn std::error::Error>> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let search = Search::new(&Surroundings {
        chosen: folder("FERROTUNE_CUDA_LIBRARIES"),
        conda: folder("CONDA_PREFIX"),
        virtual_env: folder("VIRTUAL_ENV"),
        program: None,
        home: folder("HOME"),
    });
    Ok(Libraries::find(&search)?.ok_or("there is no NVIDIA GPU on this machine: nothing was measured")?)
}

/// Says which GPU it is.
fn probe(libraries: &Libraries) -> Result<(), Box<dyn std::error::Error>> {
    let about = libraries.devices()?.into_iter().next().ok_or("the driver sees no GPU")?;
    let (version, blas) = (libraries.driver().version()?, libraries.blas().library().path().display().to_string());
    println!("{}", json!({"who": "machine", "gpu": about.name, "memory": about.memory, "cuda": version, "blas": blas}));
    Ok(())
}
