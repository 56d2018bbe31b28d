//! The ferrotune program: arguments in, exit code out. The only crate that prints, reads the environment or exits.

mod agent;
mod commands;
mod ends;
mod environment;
mod failure;
mod fetch;
mod foretold;
mod gpus;
mod interrupt;
mod launch;
mod liveness;
mod log;
mod mixture;
mod page;
mod parity;
mod place;
mod prepare;
#[cfg(test)]
mod reference;
mod review;
mod split;
mod tracking;
mod ui;
mod world;

use crate::failure::Failure;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Fine-tunes large language models from LLaMA-Factory recipes.
#[derive(Debug, Parser)]
#[command(name = "ferrotune", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Arguments of a verb that works on a recipe.
#[derive(Debug, clap::Args)]
struct RecipeArgs {
    /// A recipe (.yaml, .yml, .json), then overrides: `key=value` or `--key value`. Or overrides alone.
    #[arg(value_name = "RECIPE | KEY=VALUE", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trains as a recipe says; started again, goes on from the last checkpoint.
    Train(RecipeArgs),
    /// Says what a training takes: memory, traffic, time, and which ways to split it fit. Needs no weights and no GPU.
    Plan {
        #[command(flatten)]
        args: commands::plan::PlanArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Shows how the rows of a recipe are encoded, and what is wrong with them.
    Data {
        /// Print `{"index", "input_ids", "labels", "text"}` a line a row instead of the coloured view.
        #[arg(long, value_name = "FORMAT", value_parser = ["jsonl"])]
        format: Option<String>,
        /// How many rows the coloured view shows.
        #[arg(long, value_name = "N", default_value_t = 3)]
        rows: usize,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Talks to a model, with or without an adapter.
    Chat(RecipeArgs),
    /// Merges adapters into a model and writes it as a Hugging Face folder.
    Export {
        /// How much of each adapter goes into the model, in their order: `0.7,0.3`. All of each if not given.
        #[arg(long, value_name = "W,W", value_delimiter = ',', allow_hyphen_values = true)]
        adapter_weights: Vec<f64>,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Looks at a recipe, its data, prompts, memory and adapter before a run; or at an adapter, for vLLM.
    Check(commands::check::CheckArgs),
    /// Writes what starts a vLLM server of a trained model; or checks a running one with --verify.
    Deploy(commands::deploy::DeployArgs),
    /// Starts a run on several hosts over ssh and shows it on one screen.
    Launch(launch::LaunchArgs),
    /// What `launch` starts on each host.
    #[command(hide = true)]
    Launched,
    /// Shows how a run is: its ranks, its speed, who waits for whom.
    Status {
        /// The run's output folder.
        #[arg(value_name = "OUTPUT_DIR")]
        folder: PathBuf,
        /// Print all of it as JSON.
        #[arg(long)]
        json: bool,
        /// Show it again every two seconds until the run is over.
        #[arg(long)]
        watch: bool,
    },
    /// Examines this machine for training: GPUs, libraries, links, memory, network; tries them, and names cures.
    Doctor(commands::doctor::DoctorArgs),
    /// What `doctor` starts for work on GPUs.
    #[command(hide = true)]
    Examined {
        /// The work, as JSON.
        part: String,
    },
    /// Prints the report of `doctor`, whatever it finds.
    Env,
    /// Prints a JSON schema, by which editors complete and check recipes or `dataset_info.json`.
    Schema {
        /// Whose schema.
        #[arg(value_name = "FILE", value_enum, default_value = "recipe")]
        of: commands::SchemaOf,
    },
    /// Prints the version.
    Version,
    /// Prints this help.
    Help,
    /// LLaMA-Factory's server of an API.
    #[command(hide = true)]
    Api(RecipeArgs),
    /// LLaMA-Factory's conversation in a browser.
    #[command(hide = true)]
    Webchat(RecipeArgs),
    /// LLaMA-Factory's benchmarks.
    #[command(hide = true)]
    Eval(RecipeArgs),
    /// LLaMA-Factory's recipes in a browser.
    #[command(hide = true)]
    Webui(RecipeArgs),
}

fn main() -> ExitCode {
    log::listen();
    if let Err(error) = liveness::start() {
        return Failure::from(error).report();
    }
    let cli = Cli::parse_from(own_options_first(std::env::args_os().collect()));
    let result = match cli.command {
        Command::Train(recipe) => commands::train(&recipe.args),
        Command::Plan { args, recipe } => commands::plan(&args, &recipe.args),
        Command::Data { format, rows, recipe } => commands::data(&recipe.args, format.is_some(), rows),
        Command::Chat(recipe) => commands::chat(&recipe.args),
        Command::Export { adapter_weights, recipe } => commands::export(&recipe.args, &adapter_weights),
        Command::Check(args) => commands::check(&args),
        Command::Deploy(args) => commands::deploy(&args),
        Command::Launch(args) => launch::launch(&args),
        Command::Launched => launch::launched(),
        Command::Status { folder, json, watch } => commands::status(&folder, json, watch),
        Command::Doctor(args) => commands::doctor(&args),
        Command::Examined { part } => commands::examined(&part),
        Command::Env => commands::env(),
        Command::Schema { of } => commands::schema(of),
        Command::Version => commands::version(),
        Command::Help => commands::help(),
        Command::Api(_) => Err(Failure::Verb("api", commands::elsewhere::API)),
        Command::Webchat(_) => Err(Failure::Verb("webchat", commands::elsewhere::WEBCHAT)),
        Command::Eval(_) => Err(Failure::Verb("eval", commands::elsewhere::EVAL)),
        Command::Webui(_) => Err(Failure::Verb("webui", commands::elsewhere::WEBUI)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// A verb's own options that take a value, where recipes follow.
const OWN_OPTIONS: [(&str, &[&str]); 6] = [
    ("export", &["--adapter-weights"]),
    ("data", &["--format", "--rows"]),
    ("check", &["--vllm", "--base", "--nodes", "--gpus", "--gpu", "--network", "--format"]),
    ("plan", &["--nodes", "--gpus", "--gpu", "--network", "--format"]),
    (
        "deploy",
        &[
            "--name",
            "--vllm",
            "--image",
            "--gpu",
            "--tensor-parallel",
            "--max-model-len",
            "--port",
            "--base",
            "--verify",
            "--rows",
            "--tolerance",
            "--api-key",
        ],
    ),
    ("launch", &["-H", "--hosts", "--hostfile", "--ssh", "--port", "--master-addr", "--dir", "-x"]),
];

/// Moves a verb's own options in front of the recipe, after which every argument is an override: they may be
/// written anywhere. No key of a recipe has the name of one.
fn own_options_first(args: Vec<OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut line: Vec<OsString> = args.by_ref().take(2).collect();
    let own = OWN_OPTIONS.iter().find(|(verb, _)| line.get(1).is_some_and(|given| given == verb));
    let own = own.map_or(&[][..], |(_, options)| options);
    let mut rest = Vec::new();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let (name, value) = text.split_once('=').map_or((&*text, None), |(name, value)| (name, Some(value)));
        if own.contains(&name) {
            let next = if value.is_none() { args.next() } else { None };
            line.push(arg);
            line.extend(next);
        } else if ["--help", "-h"].contains(&name) {
            line.push(arg);
        } else {
            rest.push(arg);
        }
    }
    line.extend(rest);
    line
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, own_options_first};
    use clap::Parser;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(own_options_first(line.split(' ').map(Into::into).collect())).map(|cli| cli.command)
    }

    #[test]
    fn help_is_given_after_a_recipe_too() {
        for line in ["ferrotune train r.yaml --help", "ferrotune data r.yaml -h", "ferrotune --help"] {
            assert_eq!(parse(line).map_err(|error| error.kind()).err(), Some(ErrorKind::DisplayHelp), "{line}");
        }
    }

    #[test]
    fn a_missing_value_of_an_option_is_an_error() {
        let kind = parse("ferrotune data r.yaml --format").map_err(|error| error.kind()).err();
        assert_eq!(kind, Some(ErrorKind::InvalidValue));
        assert!(parse("ferrotune data r.yaml --rows many").is_err());
    }

    #[test]
    fn options_of_a_verb_are_taken_before_and_after_the_recipe() {
        for line in [
            "ferrotune data --format jsonl --rows 7 r.yaml --max_samples -1 -x lora_rank=4 --help_me",
            "ferrotune data r.yaml --format=jsonl --max_samples -1 --rows 7 -x lora_rank=4 --help_me",
            "ferrotune data r.yaml --max_samples -1 -x lora_rank=4 --help_me --rows=7 --format jsonl",
        ] {
            let Ok(Command::Data { format, rows, recipe }) = parse(line) else {
                panic!("not the verb `data`: {line}");
            };
            assert_eq!((format.as_deref(), rows), (Some("jsonl"), 7), "{line}");
            assert_eq!(recipe.args, ["r.yaml", "--max_samples", "-1", "-x", "lora_rank=4", "--help_me"], "{line}");
        }
    }
}
