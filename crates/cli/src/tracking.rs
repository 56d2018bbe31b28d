//! What of a run its trackers are told, and what they have to say to the user.

use crate::prepare::Resolved;
use crate::{environment, ui};
use ferrotune_config::env;
use ferrotune_data::clock::Moment;
use ferrotune_data::rows::Rows;
use ferrotune_track::{Ending, Lengths, Run, Said, Sample, Settings, Trackers};
use ferrotune_train::{Event, Finished, Start};
use serde_json::{Map, Value};
use std::time::Duration;

/// How long the end of a run waits for trackers.
const PATIENCE: Duration = Duration::from_secs(20);

/// The trackers of a run, on its first rank.
pub(crate) struct Tracking<'a> {
    resolved: &'a Resolved,
    /// The model's `config.json`.
    model: Map<String, Value>,
    rows: &'a Rows,
    settings: Settings,
    /// What the model answered before the run's first step.
    before: Vec<Sample>,
    trackers: Option<Trackers>,
    /// Optimiser steps done.
    step: u64,
}

impl<'a> Tracking<'a> {
    /// Those that the recipe and the environment name; told of nothing yet.
    pub(crate) fn new(resolved: &'a Resolved, model: &Value, rows: &'a Rows, answers: &[String]) -> Self {
        let plan = &resolved.plan.output;
        let here = std::env::current_dir().unwrap_or_default();
        let (settings, troubles) = Settings::new(&plan.trackers, &environment::var, &here);
        troubles.iter().for_each(|trouble| ui::warning(&format!("{trouble}; the run goes on without it")));
        let before = samples(&plan.sample_prompts, answers);
        let model = model.as_object().cloned().unwrap_or_default();
        Self { resolved, model, rows, settings, before, trackers: None, step: 0 }
    }

    /// Passes on what the run tells; what trackers say comes back.
    pub(crate) fn hear(&mut self, event: &Event) -> Vec<Said> {
        match event {
            Event::Started(start) if !self.settings.is_empty() => self.start(start),
            Event::Logged(row) => {
                if let Some(trackers) = &self.trackers {
                    trackers.row(row.when.step, row.values().chain([("epoch", row.when.epoch)]));
                }
            }
            Event::Stepped(progress, _) => self.step = progress.step,
            _ => {}
        }
        self.trackers.as_ref().map_or_else(Vec::new, Trackers::said)
    }

    fn start(&mut self, start: &Start) {
        self.step = start.done;
        let run = Run {
            output: self.resolved.plan.output.dir.clone(),
            recipe: self.resolved.recipe.to_typed_json(),
            model: std::mem::take(&mut self.model),
            parameters: start.parameters as u64,
            trainable: start.trainable as u64,
            done: start.done,
            host: environment::host(),
            user: environment::var(env::USER).unwrap_or_else(|| "unknown".to_owned()),
            process: std::process::id(),
            now: Moment::now(),
        };
        let trackers = Trackers::start(&self.settings, run);
        if start.done == 0 {
            // Rows that are still being encoded have no lengths yet.
            let lengths = start.rows.and_then(|rows| Lengths::of((0..rows).map(|row| self.rows.size(row).0)));
            lengths.into_iter().for_each(|lengths| trackers.lengths(lengths));
            trackers.samples(0, std::mem::take(&mut self.before));
        }
        self.trackers = Some(trackers);
    }

    /// Tells how the run ended, and what the model answers now; waits for the trackers, but not for ever.
    pub(crate) fn end(self, result: Result<&Finished, &str>, answers: &[String]) {
        let Some(trackers) = self.trackers else { return };
        trackers.samples(self.step, samples(&self.resolved.plan.output.sample_prompts, answers));
        let ending = match result {
            Ok(finished) if finished.interrupted => Ending::Interrupted,
            Ok(_) => Ending::Finished,
            Err(reason) => Ending::Failed(reason.to_owned()),
        };
        tell(trackers.end(&ending, PATIENCE));
    }
}

/// Tells the user.
pub(crate) fn tell(said: Vec<Said>) {
    for said in said {
        match said {
            Said::Place(text) => ui::say(&text),
            Said::Trouble(text) => ui::warning(&text),
        }
    }
}

fn samples(prompts: &[String], answers: &[String]) -> Vec<Sample> {
    let pairs = prompts.iter().zip(answers);
    pairs.map(|(prompt, answer)| Sample { prompt: prompt.clone(), answer: answer.clone() }).collect()
}
