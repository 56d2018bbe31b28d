//! The learning rate over the run: `lr_scheduler_type`, its options, and the warm-up.
//!
//! Names and defaults of the options are those of transformers' `optimization.py`, and of torch's
//! `ReduceLROnPlateau`.

use std::collections::BTreeMap;

use crate::keys::{Kind, Range, nearest_of};
use crate::plan::{Schedule, ScheduleKind, Warmup};
use crate::settings::Settings;
use crate::tree::{At, Node, clip};
use crate::value::{Value, coerce};

pub(super) fn schedule(s: &mut Settings<'_>) -> Schedule {
    Schedule { learning_rate: s.float("learning_rate"), kind: kind(s), warmup: warmup(s) }
}

fn warmup(s: &mut Settings<'_>) -> Warmup {
    if let Some(ratio) = s.opt_float("warmup_ratio") {
        // transformers lets the old key win, even if it is 0.
        if s.float("warmup_steps") > 0.0 {
            s.note(
                "warmup_steps",
                format!("`warmup_steps` is not used: `warmup_ratio: {ratio}` is written too"),
                "remove `warmup_ratio`",
            );
        }
        return Warmup::Ratio(ratio);
    }
    let steps = s.float("warmup_steps");
    if steps > 0.0 && steps < 1.0 {
        return Warmup::Ratio(steps);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    Warmup::Steps(steps as u64)
}

fn kind(s: &mut Settings<'_>) -> ScheduleKind {
    let name = s.text("lr_scheduler_type");
    let mut options = Options::new(s);
    let kind = match name.as_str() {
        "cosine" => ScheduleKind::Cosine { num_cycles: options.float("num_cycles", 0.5) },
        "cosine_with_restarts" => ScheduleKind::CosineWithRestarts { num_cycles: options.float("num_cycles", 1.0) },
        "polynomial" => {
            ScheduleKind::Polynomial { lr_end: options.float("lr_end", 1e-7), power: options.float("power", 1.0) }
        }
        "constant" => ScheduleKind::Constant,
        "constant_with_warmup" => ScheduleKind::ConstantWithWarmup,
        "inverse_sqrt" => ScheduleKind::InverseSqrt { timescale: options.opt_steps("timescale", 1) },
        "reduce_lr_on_plateau" => plateau(&mut options),
        "cosine_with_min_lr" => ScheduleKind::CosineWithMinLr {
            num_cycles: options.float("num_cycles", 0.5),
            min_lr_rate: min_lr_rate(&mut options),
        },
        "cosine_warmup_with_min_lr" => ScheduleKind::CosineWarmupWithMinLr {
            num_cycles: options.float("num_cycles", 0.5),
            min_lr_rate: min_lr_rate(&mut options),
            warmup_lr_rate: options.opt_float("warmup_lr_rate"),
        },
        "warmup_stable_decay" => stable_decay(&mut options),
        _ => ScheduleKind::Linear,
    };
    options.refuse_rest(&name);
    if let ScheduleKind::Polynomial { lr_end, .. } = kind {
        let rate = s.float("learning_rate");
        if lr_end >= rate {
            let message = format!("`lr_end` ({lr_end}) is not below the learning rate ({rate})");
            s.error("lr_scheduler_kwargs", message, "write a smaller `lr_end`");
        }
    }
    kind
}

fn plateau(options: &mut Options<'_, '_>) -> ScheduleKind {
    // The loss falls and the threshold is relative, as with torch's defaults.
    options.choice("mode", "min", &["min"]);
    options.choice("threshold_mode", "rel", &["rel"]);
    ScheduleKind::ReduceOnPlateau {
        factor: options.float("factor", 0.1),
        patience: options.opt_steps("patience", 0).unwrap_or(10),
        threshold: options.float("threshold", 1e-4),
        cooldown: options.opt_steps("cooldown", 0).unwrap_or(0),
        min_lr: options.float("min_lr", 0.0),
    }
}

fn stable_decay(options: &mut Options<'_, '_>) -> ScheduleKind {
    const SHAPES: &[&str] = &["linear", "cosine", "1-sqrt"];
    let is_written = options.left.contains_key("num_decay_steps");
    let num_decay_steps = options.opt_steps("num_decay_steps", 0);
    if !is_written {
        options.missing("`warmup_stable_decay` needs to know how long the decay is", "{num_decay_steps: 100}");
    }
    ScheduleKind::WarmupStableDecay {
        num_stable_steps: options.opt_steps("num_stable_steps", 0),
        num_decay_steps: num_decay_steps.unwrap_or_default(),
        warmup_type: options.choice("warmup_type", "linear", SHAPES),
        decay_type: options.choice("decay_type", "cosine", SHAPES),
        min_lr_ratio: options.float("min_lr_ratio", 0.0),
        num_cycles: options.float("num_cycles", 0.5),
    }
}

/// `min_lr_rate`, or `min_lr` as a share of the peak; one of them is needed.
fn min_lr_rate(options: &mut Options<'_, '_>) -> f64 {
    match (options.opt_float("min_lr"), options.opt_float("min_lr_rate")) {
        (None, Some(rate)) => rate,
        (Some(min_lr), None) => {
            let peak = options.settings.float("learning_rate");
            if peak > 0.0 { min_lr / peak } else { 0.0 }
        }
        (both, _) => {
            let what = if both.is_some() {
                "`min_lr` and `min_lr_rate` exclude each other"
            } else {
                "the schedule needs the rate at its end"
            };
            options.missing(what, "{min_lr_rate: 0.1}");
            0.0
        }
    }
}

/// `lr_scheduler_kwargs`, taken out one by one.
struct Options<'s, 'r> {
    settings: &'s mut Settings<'r>,
    left: BTreeMap<String, Node>,
    known: Vec<&'static str>,
}

impl<'s, 'r> Options<'s, 'r> {
    fn new(settings: &'s mut Settings<'r>) -> Self {
        let left = settings.map("lr_scheduler_kwargs").into_iter().collect();
        Self { settings, left, known: Vec::new() }
    }

    fn take(&mut self, name: &'static str, kind: Kind) -> Option<Value> {
        self.known.push(name);
        let node = self.left.remove(name).filter(|node| !node.is_null())?;
        match coerce(kind, &node) {
            Ok(value) => Some(value),
            Err(mismatch) => {
                let message = format!("`{name}`: {}", mismatch.message);
                self.error(Some(node.at), message, "write a number, or remove it for the default");
                None
            }
        }
    }

    fn opt_float(&mut self, name: &'static str) -> Option<f64> {
        match self.take(name, Kind::Float(Range::NotNegative)) {
            Some(Value::Float(value)) => Some(value),
            _ => None,
        }
    }

    fn float(&mut self, name: &'static str, default: f64) -> f64 {
        self.opt_float(name).unwrap_or(default)
    }

    fn opt_steps(&mut self, name: &'static str, min: i64) -> Option<u64> {
        match self.take(name, Kind::Int(min)) {
            Some(Value::Int(value)) => Some(value.unsigned_abs()),
            _ => None,
        }
    }

    fn choice(&mut self, name: &'static str, default: &str, allowed: &[&'static str]) -> String {
        let at = self.left.get(name).map(|node| node.at);
        match self.take(name, Kind::Text) {
            Some(Value::Text(text)) if !allowed.contains(&text.as_str()) => {
                let message = format!("`{name}`: expected one of {}, found '{}'", allowed.join(", "), clip(&text));
                self.error(at, message, "write one of them, or remove it for the default");
                default.to_owned()
            }
            Some(Value::Text(text)) => text,
            _ => default.to_owned(),
        }
    }

    fn missing(&mut self, message: &str, example: &str) {
        let name =
            if self.settings.is_set("lr_scheduler_kwargs") { "lr_scheduler_kwargs" } else { "lr_scheduler_type" };
        self.settings.error(name, message, &format!("write `lr_scheduler_kwargs: {example}`"));
    }

    fn refuse_rest(mut self, schedule: &str) {
        for (name, node) in std::mem::take(&mut self.left) {
            let help = match nearest_of(&name, self.known.iter().copied()) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None if self.known.is_empty() => {
                    format!("`{schedule}` takes no options: remove it")
                }
                None => format!("it takes {}", self.known.join(", ")),
            };
            self.error(Some(node.at), format!("`{schedule}` has no option `{}`", clip(&name)), &help);
        }
    }

    fn error(&mut self, at: Option<At>, message: String, help: &str) {
        self.settings.error_at(at, message, help);
    }
}
