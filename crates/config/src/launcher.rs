//! What the environment of a launcher means: how many processes a run has, and which this one is.
//!
//! The variables are those that LLaMA-Factory's and torchrun's users type. This build runs one process;
//! an environment that asks for more is an error, not a run that silently trains on a part of the batch.

use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::env;

/// The processes of a run, and the place of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Machines.
    pub nodes: usize,
    /// This machine, from 0.
    pub node: usize,
    /// Processes on each machine.
    pub processes_per_node: usize,
    /// This process among all, from 0.
    pub rank: usize,
    /// This process on its machine, from 0.
    pub local_rank: usize,
    /// Where machine 0 listens, as far as it is told.
    pub master: Option<(String, Option<u16>)>,
}

/// Reads variables and collects what is wrong with them.
struct Reader<F> {
    get: F,
    errors: Vec<Diagnostic>,
    notes: Vec<Diagnostic>,
}

impl Launch {
    /// Interprets the environment that `get` looks names up in; returns notes, too.
    ///
    /// # Errors
    /// Values that aren't numbers, ranks outside their world, and more than one process.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let mut reader = Reader { get, errors: Vec::new(), notes: Vec::new() };
        let launch = reader.launch();
        reader.check(&launch);
        if reader.errors.is_empty() { Ok((launch, reader.notes)) } else { Err(Diagnostics(reader.errors)) }
    }

    /// All processes of the run.
    #[must_use]
    pub fn world(&self) -> usize {
        self.nodes.saturating_mul(self.processes_per_node)
    }
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    fn launch(&mut self) -> Launch {
        let master_port = self.number(env::MASTER_PORT).map(|port| u16::try_from(port).ok().filter(|p| *p > 0));
        if master_port == Some(None) {
            self.error(env::MASTER_PORT, "is no port", "write a number from 1 to 65535");
        }
        let master = self.text(env::MASTER_ADDR).map(|address| (address, master_port.flatten()));
        let rank = self.number(env::RANK);
        if let Some(world) = self.number(env::WORLD_SIZE) {
            // A launcher has started this process and numbered it.
            let local = self.number(env::LOCAL_RANK);
            let (rank, local_rank) = (rank.unwrap_or(0), local.or(rank).unwrap_or(0));
            return Launch { nodes: 1, node: 0, processes_per_node: world, rank, local_rank, master };
        }
        let node_rank = self.number(env::NODE_RANK);
        if let (Some(rank), None) = (rank, node_rank) {
            self.note(
                env::RANK,
                &format!("is taken for NODE_RANK={rank}"),
                "write NODE_RANK; LLaMA-Factory ignores RANK",
            );
        }
        let node = node_rank.or(rank).unwrap_or(0);
        let nodes = self.number(env::NNODES).unwrap_or(1);
        let processes_per_node = self.number(env::NPROC_PER_NODE).unwrap_or(1);
        Launch { nodes, node, processes_per_node, rank: node.saturating_mul(processes_per_node), local_rank: 0, master }
    }

    fn check(&mut self, launch: &Launch) {
        if self.text(env::WORLD_SIZE).is_some() {
            self.at_least_one(env::WORLD_SIZE, launch.processes_per_node);
            if launch.rank >= launch.processes_per_node.max(1) {
                let message = format!("is {}, but there are {} processes", launch.rank, launch.processes_per_node);
                self.error(env::RANK, &message, "ranks count from 0");
            }
        } else {
            self.at_least_one(env::NNODES, launch.nodes);
            self.at_least_one(env::NPROC_PER_NODE, launch.processes_per_node);
            if launch.node >= launch.nodes.max(1) {
                let message = format!("is {}, but there are {} machines", launch.node, launch.nodes);
                self.error(env::NODE_RANK, &message, "machines count from 0; NNODES is their number");
            }
        }
        if launch.world() > 1 {
            let asked = [env::WORLD_SIZE, env::NNODES, env::NPROC_PER_NODE];
            let name = asked.into_iter().find(|name| self.number(name).is_some_and(|n| n > 1)).unwrap_or(env::NNODES);
            self.error(
                name,
                &format!("asks for {} processes, and this build trains in one", launch.world()),
                "unset it, and multiply `gradient_accumulation_steps` by that number: the same steps in one process",
            );
        }
        let devices = self
            .text(env::CUDA_VISIBLE_DEVICES)
            .map_or(0, |list| list.split(',').filter(|d| !d.trim().is_empty()).count());
        let force = self.text(env::FORCE_TORCHRUN).map(|value| value.to_ascii_lowercase());
        if let Some(value @ ("yes" | "on")) = force.as_deref() {
            let message = format!("is on; LLaMA-Factory takes '{value}' for off");
            self.note(env::FORCE_TORCHRUN, &message, "write 1");
        }
        let forced = force.is_some_and(|value| env::is_on(&value));
        if forced && devices > 1 {
            self.note(
                env::CUDA_VISIBLE_DEVICES,
                &format!("names {devices} devices; this build trains on the processor, in one process"),
                &format!("LLaMA-Factory's steps would be {devices} times as large: multiply `gradient_accumulation_steps` by {devices}"),
            );
        }
    }

    fn at_least_one(&mut self, name: &'static str, value: usize) {
        if value == 0 {
            self.error(name, "is 0", "write how many there are, or unset it");
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn number(&mut self, name: &'static str) -> Option<usize> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() && !self.errors.iter().any(|error| error.file.ends_with(name)) {
            let short: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
            let help = if text.contains(':') {
                "ranges of machines are not supported: write a number"
            } else {
                "write a number"
            };
            self.error(name, &format!("is '{short}', not a whole number"), help);
        }
        number
    }

    fn error(&mut self, name: &str, message: &str, help: &str) {
        self.errors.push(about(Severity::Error, name, message, help));
    }

    fn note(&mut self, name: &str, message: &str, help: &str) {
        self.notes.push(about(Severity::Note, name, message, help));
    }
}

fn about(severity: Severity, name: &str, message: &str, help: &str) -> Diagnostic {
    Diagnostic {
        severity,
        file: format!("environment variable {name}"),
        span: None,
        message: format!("{name} {message}"),
        help: Some(help.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(pairs: &[(&str, &str)]) -> Result<(Launch, Vec<String>), Vec<String>> {
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let messages = |list: Vec<Diagnostic>| list.into_iter().map(|d| d.message).collect::<Vec<_>>();
        Launch::from_env(get).map(|(launch, notes)| (launch, messages(notes))).map_err(|e| messages(e.0))
    }

    #[test]
    fn one_process_by_default_and_by_any_spelling() {
        let alone = Launch { nodes: 1, node: 0, processes_per_node: 1, rank: 0, local_rank: 0, master: None };
        assert_eq!(launch(&[]), Ok((alone.clone(), vec![])));
        assert_eq!(
            launch(&[("FORCE_TORCHRUN", "1"), ("NNODES", "1"), ("NODE_RANK", "0")]),
            Ok((alone.clone(), vec![]))
        );
        assert_eq!(launch(&[("CUDA_VISIBLE_DEVICES", "0,1")]), Ok((alone.clone(), vec![])));
        assert_eq!(
            launch(&[("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("NNODES", "")]),
            Ok((alone, vec![]))
        );
        let (with_master, _) = launch(&[("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")]).unwrap();
        assert_eq!(with_master.master, Some(("10.0.0.1".to_owned(), Some(29500))));
    }

    #[test]
    fn notes_say_what_is_read_otherwise() {
        let (_, notes) = launch(&[("RANK", "0")]).unwrap();
        assert_eq!(notes, ["RANK is taken for NODE_RANK=0"]);
        let (_, notes) = launch(&[("FORCE_TORCHRUN", "yes"), ("CUDA_VISIBLE_DEVICES", "0,1")]).unwrap();
        assert_eq!(
            notes,
            [
                "FORCE_TORCHRUN is on; LLaMA-Factory takes 'yes' for off",
                "CUDA_VISIBLE_DEVICES names 2 devices; this build trains on the processor, in one process"
            ]
        );
    }

    #[test]
    fn several_processes_and_nonsense_are_errors() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (&[("NNODES", "2"), ("NODE_RANK", "1")], &["NNODES asks for 2 processes, and this build trains in one"]),
            (&[("NPROC_PER_NODE", "8")], &["NPROC_PER_NODE asks for 8 processes, and this build trains in one"]),
            (&[("WORLD_SIZE", "4"), ("RANK", "3")], &["WORLD_SIZE asks for 4 processes, and this build trains in one"]),
            (&[("NNODES", "1:3")], &["NNODES is '1:3', not a whole number"]),
            (&[("NPROC_PER_NODE", "0")], &["NPROC_PER_NODE is 0"]),
            (&[("RANK", "1")], &["NODE_RANK is 1, but there are 1 machines"]),
            (&[("MASTER_PORT", "70000")], &["MASTER_PORT is no port"]),
            (
                &[("NNODES", "x"), ("NODE_RANK", "-1")],
                &["NODE_RANK is '-1', not a whole number", "NNODES is 'x', not a whole number"],
            ),
        ];
        for (pairs, expected) in cases {
            assert_eq!(launch(pairs).unwrap_err(), *expected, "{pairs:?}");
        }
    }
}
