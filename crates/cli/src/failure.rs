//! How a failure reaches the user: messages on stderr, and an exit code by kind.

use crate::ui;
use ferrotune_config::Diagnostics;
use ferrotune_dist::CommError;
use std::io::ErrorKind;
use std::process::ExitCode;

/// Exit code of an error that would come again.
pub(crate) const ERROR: u8 = 1;
/// Exit code of an error in the recipe or on the command line.
pub(crate) const RECIPE: u8 = 2;
/// Exit code of an error that may not come again: a peer was lost, a disk was full (`EX_TEMPFAIL` of sysexits.h).
pub(crate) const PASSING: u8 = 75;

/// What each exit code means, for the reference.
#[cfg(test)]
pub(crate) const CODES: &[(&str, &str)] = &[
    ("0", "all went well"),
    (
        "1",
        "an error that would come again; `check`, `plan`, `doctor` and `deploy --verify`: something is wrong, or doesn't fit",
    ),
    ("2", "something is wrong with the recipe or the command line"),
    (
        "75",
        "an error that may not come again: another rank was lost, a disk was full; the same command goes on from the last checkpoint",
    ),
    ("128 + N", "signal N ended the run after its step, with a checkpoint: 130 for Ctrl-C, 143 for SIGTERM"),
];

/// Exit code of a process that a signal made stop.
pub(crate) fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(ERROR)
}

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is wrong with the recipe or the command line: [`RECIPE`].
    Recipe(Diagnostics),
    /// Something is wrong with what the recipe names, and the recipe says where: [`ERROR`].
    Data(Diagnostics),
    /// A verb that is LLaMA-Factory's and not ours, and what to do instead: [`RECIPE`].
    Verb(&'static str, &'static str),
    /// Anything else: [`PASSING`] where a later attempt may go well, else [`ERROR`].
    Other(anyhow::Error),
    /// All was said already, as when a signal ended a run: this exit code.
    Told(u8),
    /// The reader of our output went away, as `| head` does: no failure.
    ClosedPipe,
}

impl Failure {
    /// In words, for the other ranks of a run.
    pub(crate) fn words(&self) -> String {
        match self {
            Failure::Recipe(diagnostics) | Failure::Data(diagnostics) => {
                diagnostics.0.iter().map(|d| d.message.as_str()).collect::<Vec<_>>().join("; ")
            }
            Failure::Other(error) => whole_message(error),
            Failure::Verb(..) | Failure::Told(_) | Failure::ClosedPipe => String::new(),
        }
    }

    /// What is wrong, one by one, if the recipe says where.
    pub(crate) fn placed(&self) -> Option<&[ferrotune_config::Diagnostic]> {
        match self {
            Failure::Recipe(diagnostics) | Failure::Data(diagnostics) => Some(&diagnostics.0),
            Failure::Other(_) | Failure::Verb(..) | Failure::Told(_) | Failure::ClosedPipe => None,
        }
    }

    /// Prints it and says how to exit.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::Recipe(diagnostics) => {
                ui::error_text(&diagnostics.render(ui::colours()));
                ExitCode::from(RECIPE)
            }
            Failure::Data(diagnostics) => {
                ui::error_text(&diagnostics.render(ui::colours()));
                ExitCode::from(ERROR)
            }
            Failure::Verb(verb, instead) => {
                ui::error(&format!("`{verb}` is LLaMA-Factory's and not there; {instead}"));
                ExitCode::from(RECIPE)
            }
            Failure::Other(error) => {
                ui::error(&whole_message(&error));
                ExitCode::from(if passes(&error) { PASSING } else { ERROR })
            }
            Failure::Told(code) => ExitCode::from(code),
            Failure::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

/// Whether an error may not come again when the same is tried once more.
fn passes(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let train = cause.downcast_ref::<ferrotune_train::Error>();
        let comm = match train {
            Some(ferrotune_train::Error::Comm(comm)) => Some(comm),
            _ => cause.downcast_ref::<CommError>(),
        };
        let io = cause.downcast_ref::<std::io::Error>();
        comm.is_some_and(|comm| matches!(comm, CommError::PeerLost { .. } | CommError::PeerFailed { .. }))
            || io.is_some_and(|io| matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    })
}

/// A message with its causes, but for those that it tells already, as those of our crates do.
fn whole_message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |message, cause| {
        let glue = if message.is_empty() { "" } else { ": " };
        if message.contains(&cause) { message } else { format!("{message}{glue}{cause}") }
    })
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = anyhow::Error::new(error);
        match error.downcast_ref::<std::io::Error>() {
            Some(io) if io.kind() == ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => error.downcast().map_or_else(Failure::Other, Failure::Recipe),
        }
    }
}
