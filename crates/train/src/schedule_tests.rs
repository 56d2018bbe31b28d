//! Rates against transformers' own, number for number.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::fixtures;

fn schedule(peak: f64, kind: ScheduleKind, warmup: Warmup) -> Schedule {
    Schedule { learning_rate: peak, kind, warmup }
}

fn rates(schedule: &Schedule, total: u64, count: u64) -> Vec<f64> {
    let rate = LearningRate::new(schedule, total).expect("a sound schedule");
    (0..count).map(|done| rate.rate(done)).collect()
}

fn kind(name: &str, options: &Value) -> ScheduleKind {
    let number = |key: &str| options[key].as_f64();
    let steps = |key: &str| options[key].as_u64();
    let text = |key: &str| options[key].as_str().expect(key).to_owned();
    match name {
        "linear" => ScheduleKind::Linear,
        "cosine" => ScheduleKind::Cosine { num_cycles: number("num_cycles").unwrap_or(0.5) },
        "constant" => ScheduleKind::Constant,
        "constant_with_warmup" => ScheduleKind::ConstantWithWarmup,
        "cosine_with_restarts" => ScheduleKind::CosineWithRestarts { num_cycles: number("num_cycles").expect("given") },
        "inverse_sqrt" => ScheduleKind::InverseSqrt { timescale: steps("timescale") },
        "polynomial" => ScheduleKind::Polynomial {
            lr_end: number("lr_end").expect("given"),
            power: number("power").expect("given"),
        },
        "cosine_with_min_lr" => ScheduleKind::CosineWithMinLr {
            num_cycles: number("num_cycles").expect("given"),
            min_lr_rate: number("min_lr_rate").expect("given"),
        },
        "cosine_warmup_with_min_lr" => ScheduleKind::CosineWarmupWithMinLr {
            num_cycles: number("num_cycles").expect("given"),
            min_lr_rate: number("min_lr_rate").expect("given"),
            warmup_lr_rate: number("warmup_lr_rate"),
        },
        "warmup_stable_decay" => ScheduleKind::WarmupStableDecay {
            num_stable_steps: steps("num_stable_steps"),
            num_decay_steps: steps("num_decay_steps").expect("given"),
            warmup_type: text("warmup_type"),
            decay_type: text("decay_type"),
            min_lr_ratio: number("min_lr_ratio").expect("given"),
            num_cycles: number("num_cycles").expect("given"),
        },
        other => panic!("unknown schedule {other}"),
    }
}

#[test]
fn every_kind_gives_the_rates_of_transformers() {
    let cases = fixtures::json(Path::new("schedule/rates.json"));
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() > 100);
    for case in cases {
        let warmup = match case["warmup"].as_u64() {
            Some(steps) => Warmup::Steps(steps),
            None => Warmup::Ratio(case["warmup"].as_f64().expect("a share")),
        };
        let name = case["kind"].as_str().expect("a name");
        let kind = kind(name, &case["options"]);
        assert_eq!(kind_name(&kind), name);
        let plan = schedule(case["peak"].as_f64().expect("a rate"), kind, warmup);
        let total = case["total"].as_u64().expect("a count");
        let expected: Vec<f64> =
            case["rates"].as_array().expect("rates").iter().map(|rate| rate.as_f64().expect("a rate")).collect();
        assert_eq!(rates(&plan, total, total + 3), expected, "{plan:?} over {total} steps");
    }
}

#[test]
fn logged_rates_of_whole_runs_are_identical() {
    for case in fixtures::train_cases() {
        let recipe = case.recipe();
        // transformers lets warmup_ratio win over warmup_steps, even at 0.
        let warmup = Warmup::Ratio(recipe["warmup_ratio"].parse().expect("a share"));
        let kind = kind(&recipe["lr_scheduler_type"], &Value::Null);
        let peak = recipe["learning_rate"].parse().expect("a rate");
        let state = case.json("trainer_state.json");
        let total = state["max_steps"].as_u64().expect("a count");
        let logged: Vec<f64> = state["log_history"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|row| row.get("learning_rate")?.as_f64())
            .collect();
        assert_eq!(rates(&schedule(peak, kind, warmup), total, total), logged, "{}", case.name());
    }
}

#[test]
fn runs_without_room_keep_finite_rates() {
    let kinds = [
        ScheduleKind::Linear,
        ScheduleKind::Cosine { num_cycles: 0.5 },
        ScheduleKind::CosineWithRestarts { num_cycles: 2.0 },
        ScheduleKind::Polynomial { lr_end: 1e-7, power: 0.5 },
        ScheduleKind::InverseSqrt { timescale: Some(0) },
        ScheduleKind::CosineWarmupWithMinLr { num_cycles: 0.5, min_lr_rate: 0.0, warmup_lr_rate: Some(0.5) },
    ];
    for kind in kinds {
        for total in [0, 1, 2] {
            for warmup in [0, 1, 2, u64::MAX] {
                let plan = schedule(1e-4, kind.clone(), Warmup::Steps(warmup));
                for rate in rates(&plan, total, 6) {
                    assert!((0.0..=1e-4).contains(&rate), "{plan:?} over {total} steps gave {rate}");
                }
            }
        }
    }
}

#[test]
fn a_share_of_warmup_is_rounded_up() {
    for (total, ratio, steps) in [(12, 0.1, 2), (10, 0.1, 1), (0, 0.5, 0), (7, 1.0, 7), (1000, 0.0001, 1)] {
        let plan = schedule(1.0, ScheduleKind::Linear, Warmup::Ratio(ratio));
        assert_eq!(LearningRate::new(&plan, total).expect("sound").warmup_steps(), steps);
    }
}

/// The falls were worked out by hand from torch's documentation of the class.
#[test]
fn plateau_falls_after_patience_and_rests_in_cooldown() {
    let kind = ScheduleKind::ReduceOnPlateau { factor: 0.1, patience: 1, threshold: 0.01, cooldown: 1, min_lr: 2e-5 };
    let mut rate = LearningRate::new(&schedule(1e-3, kind, Warmup::Steps(5)), 100).expect("sound");
    let mut after = |loss: f64| {
        rate.observe(loss);
        rate.rate(17)
    };
    assert_eq!(after(2.0), 1e-3); // the first is the best
    assert_eq!(after(1.99), 1e-3); // less than 1 % lower: bad
    assert_eq!(after(f64::NAN), 1e-3 * 0.1); // bad again, beyond patience: falls
    assert_eq!(after(3.0), 1e-3 * 0.1); // cooling, doesn't count
    assert_eq!(after(3.0), 1e-3 * 0.1); // bad
    assert_eq!(after(3.0), 2e-5); // falls, but not below the floor
    assert_eq!(after(1.0), 2e-5);

    let state = rate.state().expect("it has one");
    let text = serde_json::to_string(&state).expect("plain numbers");
    assert_eq!(serde_json::from_str::<PlateauState>(&text).expect("its own text"), state);
    assert_eq!((state.best, state.bad), (Some(1.0), 0));
}

#[test]
fn contradictions_say_what_would_be_right() {
    let message = |kind| {
        LearningRate::new(&schedule(1e-5, kind, Warmup::Steps(0)), 10).expect_err("it contradicts itself").to_string()
    };
    assert_eq!(
        message(ScheduleKind::Polynomial { lr_end: 1e-4, power: 1.0 }),
        "lr_scheduler_type polynomial: lr_end 0.0001 must be below learning_rate 0.00001"
    );
    let kind = ScheduleKind::WarmupStableDecay {
        num_stable_steps: None,
        num_decay_steps: 1,
        warmup_type: "linear".into(),
        decay_type: "quadratic".into(),
        min_lr_ratio: 0.0,
        num_cycles: 0.5,
    };
    assert_eq!(
        message(kind),
        "lr_scheduler_type warmup_stable_decay: decay_type 'quadratic' is unknown; it is linear, cosine or 1-sqrt"
    );
}
