//! Learning rates: every schedule of a plan, with the arithmetic of transformers' `optimization.py`.
//!
//! A rate is the peak times a factor of the steps already made. Formulas keep the order of operations of their
//! source in f64, so that rates are the same numbers, not nearly the same. All but one are pure functions, hence
//! resume needs nothing; `reduce_lr_on_plateau` depends on evaluations and carries a [`PlateauState`].

use std::f64::consts::PI;

use ferrotune_config::plan::{Schedule, ScheduleKind, Warmup};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A fall of the rate smaller than this is not made (torch's `eps`).
const SMALLEST_FALL: f64 = 1e-8;

/// The learning rate of a run, step by step.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    peak: f64,
    warmup: u64,
    total: u64,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine { cycles: f64, floor: f64 },
    CosineWithRestarts { cycles: f64 },
    CosineShifted { cycles: f64, floor: f64, start: Option<f64> },
    Polynomial { end: f64, power: f64 },
    InverseSqrt { timescale: u64 },
    WarmupStableDecay(StableDecay),
    Plateau(Plateau),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct StableDecay {
    /// May be negative: the decay then begins inside the warm-up, and is seen from its end on.
    stable: i128,
    decay: u64,
    rise: Ramp,
    fall: Ramp,
    floor: f64,
    cycles: f64,
}

/// How a ramp of `warmup_stable_decay` bends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ramp {
    Linear,
    Cosine,
    OneMinusSqrt,
}

#[derive(Debug, Clone, PartialEq)]
struct Plateau {
    factor: f64,
    patience: u64,
    threshold: f64,
    cooldown: u64,
    min_lr: f64,
    state: PlateauState,
}

/// What `reduce_lr_on_plateau` remembers between evaluations; part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// The rate in force.
    pub rate: f64,
    /// The lowest loss so far; `None` before the first evaluation.
    pub best: Option<f64>,
    /// Evaluations without progress since the last progress or fall.
    pub bad: u64,
    /// Evaluations that still don't count after the last fall.
    pub cooling: u64,
}

impl LearningRate {
    /// The schedule of a run of `total` optimiser steps.
    ///
    /// # Errors
    /// [`Error::Schedule`] if the options of the schedule can't hold together.
    pub fn new(schedule: &Schedule, total: u64) -> Result<Self> {
        let warmup = warmup_steps(schedule.warmup, total);
        let shape = Shape::new(schedule, warmup, total)?;
        Ok(Self { peak: schedule.learning_rate, warmup, total, shape })
    }

    /// Optimiser steps of the warm-up.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.warmup
    }

    /// The rate of the next optimiser step after `done` of them: `rate(0)` is the first step's.
    #[must_use]
    pub fn rate(&self, done: u64) -> f64 {
        match &self.shape {
            Shape::Plateau(plateau) => plateau.state.rate,
            shape => self.peak * self.factor(shape, done),
        }
    }

    /// Takes note of an evaluation loss. Only `reduce_lr_on_plateau` minds.
    pub fn observe(&mut self, loss: f64) {
        if let Shape::Plateau(plateau) = &mut self.shape {
            plateau.observe(loss);
        }
    }

    /// What a snapshot must hold; `None` for schedules that are pure functions of the step.
    #[must_use]
    pub fn state(&self) -> Option<PlateauState> {
        match &self.shape {
            Shape::Plateau(plateau) => Some(plateau.state),
            _ => None,
        }
    }

    /// Takes up the state of a snapshot. Schedules without state ignore it.
    pub fn restore(&mut self, state: PlateauState) {
        if let Shape::Plateau(plateau) = &mut self.shape {
            plateau.state = state;
        }
    }

    fn factor(&self, shape: &Shape, done: u64) -> f64 {
        match *shape {
            Shape::Constant | Shape::Plateau(_) => 1.0,
            Shape::CosineShifted { cycles, floor, start } => self.cosine_shifted(done, cycles, floor, start),
            Shape::WarmupStableDecay(ref phases) => phases.factor(done, self.warmup),
            _ if done < self.warmup => done as f64 / self.warmup as f64,
            Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => {
                let left = self.total as f64 - done as f64;
                (left / self.decay_steps()).max(0.0)
            }
            Shape::Cosine { cycles, floor } => {
                let wave = 0.5 * (1.0 + (PI * cycles * 2.0 * self.progress(done)).cos());
                raise(wave, floor)
            }
            Shape::CosineWithRestarts { cycles } => match self.progress(done) {
                progress if progress >= 1.0 => 0.0,
                progress => (0.5 * (1.0 + (PI * (cycles * progress).rem_euclid(1.0)).cos())).max(0.0),
            },
            Shape::Polynomial { end, power } => self.polynomial(done, end, power),
            Shape::InverseSqrt { timescale } => {
                let shifted = (done - self.warmup) as f64 + timescale as f64;
                1.0 / (shifted / timescale as f64).sqrt()
            }
        }
    }

    /// Steps after the warm-up, at least one.
    fn decay_steps(&self) -> f64 {
        self.total.saturating_sub(self.warmup).max(1) as f64
    }

    /// Share of the decay that is over; beyond 1 after the last step.
    fn progress(&self, done: u64) -> f64 {
        (done - self.warmup) as f64 / self.decay_steps()
    }

    fn polynomial(&self, done: u64, end: f64, power: f64) -> f64 {
        if done > self.total || self.total <= self.warmup {
            return end / self.peak;
        }
        let left = 1.0 - (done - self.warmup) as f64 / (self.total - self.warmup) as f64;
        ((self.peak - end) * left.powf(power) + end) / self.peak
    }

    /// Cosine whose warm-up ends, and whose decay begins, one step earlier than the others'.
    fn cosine_shifted(&self, done: u64, cycles: f64, floor: f64, start: Option<f64>) -> f64 {
        if done < self.warmup {
            return match start {
                None => (done as f64 + 1.0) / self.warmup as f64,
                Some(start) => start + (1.0 - start) * done as f64 / (self.warmup - 1).max(1) as f64,
            };
        }
        let progress = ((done - self.warmup) as f64 + 1.0) / self.decay_steps();
        raise(0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos()), floor)
    }
}

/// The schedule's name in a recipe (`lr_scheduler_type`).
#[must_use]
pub fn kind_name(kind: &ScheduleKind) -> &'static str {
    match kind {
        ScheduleKind::Linear => "linear",
        ScheduleKind::Cosine { .. } => "cosine",
        ScheduleKind::CosineWithRestarts { .. } => "cosine_with_restarts",
        ScheduleKind::Polynomial { .. } => "polynomial",
        ScheduleKind::Constant => "constant",
        ScheduleKind::ConstantWithWarmup => "constant_with_warmup",
        ScheduleKind::InverseSqrt { .. } => "inverse_sqrt",
        ScheduleKind::CosineWithMinLr { .. } => "cosine_with_min_lr",
        ScheduleKind::CosineWarmupWithMinLr { .. } => "cosine_warmup_with_min_lr",
        ScheduleKind::WarmupStableDecay { .. } => "warmup_stable_decay",
        ScheduleKind::ReduceOnPlateau { .. } => "reduce_lr_on_plateau",
    }
}

/// Squeezes a factor of [0, 1] into [floor, 1].
fn raise(factor: f64, floor: f64) -> f64 {
    (factor * (1.0 - floor) + floor).max(0.0)
}

/// Optimiser steps of a warm-up in a run of `total` steps: a share is rounded up.
fn warmup_steps(warmup: Warmup, total: u64) -> u64 {
    match warmup {
        Warmup::Steps(steps) => steps,
        Warmup::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
    }
}

impl Shape {
    fn new(schedule: &Schedule, warmup: u64, total: u64) -> Result<Self> {
        Ok(match schedule.kind {
            ScheduleKind::Linear => Self::Linear,
            ScheduleKind::Cosine { num_cycles } => Self::Cosine { cycles: num_cycles, floor: 0.0 },
            ScheduleKind::CosineWithRestarts { num_cycles } => Self::CosineWithRestarts { cycles: num_cycles },
            ScheduleKind::Polynomial { lr_end, power } => polynomial(schedule.learning_rate, lr_end, power)?,
            ScheduleKind::Constant => Self::Constant,
            ScheduleKind::ConstantWithWarmup => Self::ConstantWithWarmup,
            ScheduleKind::InverseSqrt { timescale } => {
                let own = if warmup == 0 { 10_000 } else { warmup };
                Self::InverseSqrt { timescale: timescale.unwrap_or(own).max(1) }
            }
            ScheduleKind::CosineWithMinLr { num_cycles, min_lr_rate } => {
                Self::Cosine { cycles: num_cycles, floor: min_lr_rate }
            }
            ScheduleKind::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } => {
                Self::CosineShifted { cycles: num_cycles, floor: min_lr_rate, start: warmup_lr_rate }
            }
            ScheduleKind::WarmupStableDecay {
                num_stable_steps,
                num_decay_steps: decay,
                ref warmup_type,
                ref decay_type,
                min_lr_ratio: floor,
                num_cycles: cycles,
            } => {
                let left = i128::from(total) - i128::from(warmup) - i128::from(decay);
                let stable = num_stable_steps.map_or(left, i128::from);
                let rise = Ramp::parse("warmup_type", warmup_type)?;
                let fall = Ramp::parse("decay_type", decay_type)?;
                Self::WarmupStableDecay(StableDecay { stable, decay, rise, fall, floor, cycles })
            }
            ScheduleKind::ReduceOnPlateau { factor, patience, threshold, cooldown, min_lr } => {
                let state = PlateauState { rate: schedule.learning_rate, best: None, bad: 0, cooling: 0 };
                Self::Plateau(Plateau { factor, patience, threshold, cooldown, min_lr, state })
            }
        })
    }
}

fn polynomial(peak: f64, end: f64, power: f64) -> Result<Shape> {
    if peak > end {
        return Ok(Shape::Polynomial { end, power });
    }
    let reason = format!("lr_end {end} must be below learning_rate {peak}");
    Err(Error::Schedule { kind: "polynomial", reason })
}

impl StableDecay {
    fn factor(&self, done: u64, warmup: u64) -> f64 {
        if done < warmup {
            let progress = done as f64 / warmup as f64;
            let up = match self.rise {
                Ramp::Linear => progress,
                Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            };
            return raise(up, self.floor);
        }
        let decayed = i128::from(done) - i128::from(warmup) - self.stable;
        if decayed < 0 {
            return 1.0;
        }
        if decayed >= i128::from(self.decay) {
            return self.floor;
        }
        let progress = decayed as f64 / self.decay as f64;
        let down = match self.fall {
            Ramp::Linear => 1.0 - progress,
            Ramp::Cosine => 0.5 * (1.0 + (PI * self.cycles * 2.0 * progress).cos()),
            Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        raise(down, self.floor)
    }
}

impl Ramp {
    fn parse(key: &str, name: &str) -> Result<Self> {
        match name {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "1-sqrt" => Ok(Self::OneMinusSqrt),
            _ => Err(Error::Schedule {
                kind: "warmup_stable_decay",
                reason: format!("{key} '{name}' is unknown; it is linear, cosine or 1-sqrt"),
            }),
        }
    }
}

impl Plateau {
    /// torch's `ReduceLROnPlateau.step` with `mode: min`, `threshold_mode: rel`. A loss that is not finite is
    /// no progress.
    fn observe(&mut self, loss: f64) {
        let state = &mut self.state;
        if loss.is_finite() && state.best.is_none_or(|best| loss < best * (1.0 - self.threshold)) {
            state.best = Some(loss);
            state.bad = 0;
        } else {
            state.bad += 1;
        }
        if state.cooling > 0 {
            state.cooling -= 1;
            state.bad = 0;
        }
        if state.bad > self.patience {
            let lower = (state.rate * self.factor).max(self.min_lr);
            if state.rate - lower > SMALLEST_FALL {
                state.rate = lower;
            }
            state.cooling = self.cooldown;
            state.bad = 0;
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
