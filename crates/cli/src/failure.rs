//! How a failure reaches the user: messages on stderr, and an exit code by kind.

use crate::ui;
use ferrotune_config::Diagnostics;
use std::process::ExitCode;

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is wrong with the recipe or the command line: exit code 2.
    Recipe(Diagnostics),
    /// A verb that is LLaMA-Factory's and not ours, and what to do instead: exit code 2.
    Verb(&'static str, &'static str),
    /// Anything else: exit code 1.
    Other(anyhow::Error),
    /// A signal ended a run, which has said how it goes on: 128 and the signal's number.
    Interrupted(u8),
    /// The reader of our output went away, as `| head` does: no failure.
    ClosedPipe,
}

impl Failure {
    /// Prints it and says how to exit.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::Recipe(diagnostics) => {
                ui::error_text(&diagnostics.render(ui::colours()));
                ExitCode::from(2)
            }
            Failure::Verb(verb, instead) => {
                ui::error(&format!("`{verb}` is LLaMA-Factory's and not there; {instead}"));
                ExitCode::from(2)
            }
            Failure::Other(error) => {
                ui::error(&whole_message(&error));
                ExitCode::FAILURE
            }
            Failure::Interrupted(code) => ExitCode::from(code),
            Failure::ClosedPipe => ExitCode::SUCCESS,
        }
    }
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
            Some(io) if io.kind() == std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => error.downcast().map_or_else(Failure::Other, Failure::Recipe),
        }
    }
}
