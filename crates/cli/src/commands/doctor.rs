//! `doctor` and `env`: what this machine is, what of it is wrong for training, and what cures that.

use crate::failure::{self, Failure};
use crate::{environment, gpus, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::HubSettings;
use ferrotune_config::launcher::Launch;
use ferrotune_dist::rendezvous::interfaces;
use ferrotune_doctor::examine::{Wish, examine};
use ferrotune_doctor::facts::Facts;
use ferrotune_doctor::read::{Here, machine};
use ferrotune_doctor::rules::{Finding, is_sound, judge};
use ferrotune_doctor::words::{Program, page};
use ferrotune_doctor::{gpus as work, watch};
use ferrotune_tensor::cuda::Search;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// How the machine is examined.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// How the report is printed.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    format: String,
    /// How long each device is measured, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    time: Duration,
    /// How long work on a GPU may be silent before it counts as hung, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    patience: Duration,
    /// Another root of the system's files.
    #[arg(long, value_name = "FOLDER", default_value = "/", hide = true)]
    root: PathBuf,
}

/// Seconds from a hundredth to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it isn't a number".to_owned())?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("it isn't between 0.01 and 3600".to_owned()),
    }
}

/// Kinds of work on a device.
const KINDS: u32 = 4;

/// Examines the machine; exit code 1 if there is a problem.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let (facts, findings) = examined_all(args);
    match args.format.as_str() {
        "json" => {
            let page = json!({
                "version": env!("CARGO_PKG_VERSION"), "sound": is_sound(&findings), "findings": findings, "facts": facts,
                "variables": variables().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            });
            ui::line(&serde_json::to_string_pretty(&page)?)?;
        }
        _ => print(&facts, &findings)?,
    }
    if is_sound(&findings) { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

/// Prints the same report, as LLaMA-Factory's verb, which never fails.
pub(crate) fn env() -> Result<(), Failure> {
    let (time, patience) = (Duration::from_secs(2), Duration::from_secs(30));
    let args = DoctorArgs { format: "text".to_owned(), time, patience, root: PathBuf::from("/") };
    let (facts, findings) = examined_all(&args);
    print(&facts, &findings)
}

fn print(facts: &Facts, findings: &[Finding]) -> Result<(), Failure> {
    let program = Program { version: env!("CARGO_PKG_VERSION"), variables: &variables() };
    Ok(ui::line(&page(&program, facts, findings))?)
}

fn examined_all(args: &DoctorArgs) -> (Facts, Vec<Finding>) {
    let addresses: Vec<(String, String)> =
        interfaces().into_iter().map(|interface| (interface.name, interface.address.to_string())).collect();
    // What is wrong with other variables is told by the verbs that need them.
    let allowed = Launch::from_env(environment::var).ok().and_then(|(launch, _)| launch.interfaces);
    let here = Here {
        root: &args.root,
        addresses: &addresses,
        allows: &|name: &str| allowed.as_ref().is_none_or(|allowed| allowed.allows(name)),
        folders: &folders(),
    };
    let start = |part: &str| {
        let mut command = environment::itself();
        command.args(["examined", part]);
        command
    };
    let wish = Wish { each: args.time / KINDS, patience: args.patience };
    let facts = examine(machine(&here), &start, wish, &mut |what| ui::say(what));
    let findings = judge(&facts);
    (facts, findings)
}

/// Where runs write, and where models are kept.
fn folders() -> Vec<(&'static str, PathBuf)> {
    let here = std::env::current_dir().ok().map(|folder| ("this folder", folder));
    let cache = environment::home().map(|home| HubSettings::from_vars(environment::var, home).hugging_face.cache);
    here.into_iter().chain(cache.map(|folder| ("models from the hub", folder))).collect()
}

/// Variables that matter to the program, without secrets.
fn variables() -> Vec<(String, String)> {
    let shown = |name: &str, value: String| {
        let hidden = ferrotune_config::env::is_secret(name, &value);
        (name.to_owned(), if hidden { "(set)".to_owned() } else { value })
    };
    let own = ferrotune_config::env::ALL
        .iter()
        .filter(|(name, _)| ![ferrotune_config::env::HOME, ferrotune_config::env::USER].contains(name));
    let own = own.filter_map(|(name, _)| Some(shown(name, environment::var(name)?)));
    let listed = |name: &str| ferrotune_config::env::ALL.iter().any(|(known, _)| *known == name);
    let nccl = environment::of_nccl().into_iter().filter(|(name, _)| !listed(name));
    own.chain(nccl.map(|(name, value)| shown(&name, value))).collect()
}

/// Does what `doctor` started this process for.
pub(crate) fn examined(part: &str) -> Result<(), Failure> {
    let part = watch::part(part).map_err(|error| Failure::Other(anyhow!("this verb is `doctor`'s own: {error}")))?;
    let mut told = Ok(());
    work::run(&part, &Search::new(&gpus::surroundings()), &mut |line| {
        if told.is_ok() {
            told = watch::line(&line).map_err(Failure::from).and_then(|line| Ok(ui::line(&line)?));
        }
    });
    told
}
