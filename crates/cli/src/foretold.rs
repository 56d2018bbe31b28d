//! What was foretold of a run, beside what came true.

use crate::failure::Failure;
use crate::page::seconds;
use crate::{environment, ui};
use ferrotune_checkpoint::write_atomic;
use ferrotune_train::Finished;
use serde_json::{Value, json};
use std::path::Path;

/// The file in a run's folder.
const FILE: &str = "plan.json";

/// What a run is to show itself by at its end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Foretold {
    /// Most bytes that this process will have resident.
    pub(crate) resident: Option<u64>,
    /// Seconds of a step in the mean.
    pub(crate) step: Option<f64>,
}

/// What came true.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    resident: Option<u64>,
    step: Option<f64>,
    tensors: u64,
}

impl Seen {
    /// Of a run that has ended in this process.
    pub(crate) fn of(finished: &Finished) -> Self {
        let resident = environment::resident().map(|(_, most)| most);
        Self { resident, step: finished.step, tensors: finished.peak }
    }
}

impl Foretold {
    /// Says both, and writes them into the run's folder.
    pub(crate) fn beside(&self, seen: &Seen, folder: &Path) -> Result<(), Failure> {
        let mut parts = Vec::new();
        if let (Some(foretold), Some(seen)) = (self.resident, seen.resident) {
            let off = percent(foretold as f64, seen as f64);
            parts.push(format!("memory {} at most, foretold {} ({off})", ui::bytes(seen), ui::bytes(foretold)));
        }
        if let (Some(foretold), Some(seen)) = (self.step, seen.step) {
            let off = percent(foretold, seen);
            parts.push(format!("a step {}, foretold {} ({off})", seconds(seen), seconds(foretold)));
        }
        if !parts.is_empty() {
            ui::line(&parts.join("; "))?;
        }
        let text = format!("{:#}\n", self.json(seen));
        Ok(write_atomic(&folder.join(FILE), text.as_bytes())?)
    }

    fn json(&self, seen: &Seen) -> Value {
        json!({
            "foretold": {"resident_bytes": self.resident, "seconds_a_step": self.step},
            "seen": {"resident_bytes": seen.resident, "seconds_a_step": seen.step, "tensor_bytes": seen.tensors},
        })
    }
}

/// How far what was foretold lay from what was seen.
fn percent(foretold: f64, seen: f64) -> String {
    format!("{:+.1} %", 100.0 * (foretold / seen - 1.0))
}
