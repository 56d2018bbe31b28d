//! No split of the work changes the result: every layout of ranks, sharding, micro-batch size, recomputation, overlap and
//! offloading gives one loss curve and one set of trained weights, in f32, on rows of very unequal lengths.
//!
//! Ranks are threads here; the collectives are the same as between processes.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

mod split;

use ferrotune_config::plan::{FreezePlan, LoraPlan, LoraTargets, Tuning};
use ferrotune_train::engine::{Offload, Sharding};
use split::{Case, Curve, Experts, Split, curve};

/// Relative, of losses, norms and weights; what is left are other orders of summation in f32 (measured: 9e-6 at most).
const LIMIT: f64 = 1e-5;

fn lora() -> Tuning {
    Tuning::Lora(LoraPlan {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
        targets: LoraTargets::All,
        additional_targets: Vec::new(),
        rslora: false,
        dora: false,
        plus: None,
        create_new: false,
    })
}

/// Every strategy on 1, 2 and 4 ranks.
fn splits() -> Vec<Split> {
    use Sharding::{Gradients, Optimizer, Weights, Whole};
    let split = |name, [shards, stages, replicas]: [usize; 3], sharding| Split {
        name,
        layout: ferrotune_dist::Layout { shards, stages, replicas },
        sharding,
        ..Split::solo()
    };
    let mut all = vec![split("hybrid 2x2", [2, 1, 2], Weights), split("pipeline 2 x replicate 2", [1, 2, 2], Whole)];
    for ranks in [2, 4] {
        all.push(split("replicate", [1, 1, ranks], Whole));
        all.push(split("zero1", [ranks, 1, 1], Optimizer));
        all.push(split("zero2", [ranks, 1, 1], Gradients));
        all.push(split("zero3", [ranks, 1, 1], Weights));
        all.push(split("pipeline", [1, ranks, 1], Whole));
    }
    all
}

fn check(case: &Case, split: &Split, want: &Curve) {
    let got = curve(case, split);
    let gap = got.gap(want);
    assert!(gap < LIMIT, "{split:?} differs from one rank by {gap:e}\n{:?}\n{:?}", got.losses, want.losses);
}

fn matrix(case: &Case) {
    let want = curve(case, &Split::solo());
    assert!(want.losses.last().unwrap() < want.losses.first().unwrap(), "it learns: {:?}", want.losses);
    for split in splits().into_iter().chain([Split::solo()]) {
        // With four ranks: four rows at once, and one row four times.
        for micro_batch in [1, 4] {
            check(case, &Split { micro_batch, ..split }, &want);
        }
        check(case, &Split { recompute: true, ..split }, &want);
    }
}

#[test]
fn adapters_on_an_untied_model() {
    matrix(&Case { tuning: lora(), tied: false, pure_bf16: false, experts: Experts::None });
}

#[test]
fn adapters_on_a_tied_model() {
    matrix(&Case { tuning: lora(), tied: true, pure_bf16: false, experts: Experts::None });
}

#[test]
fn all_weights_of_an_untied_model() {
    matrix(&Case { tuning: Tuning::Full, tied: false, pure_bf16: false, experts: Experts::None });
}

#[test]
fn all_weights_of_a_tied_model() {
    matrix(&Case { tuning: Tuning::Full, tied: true, pure_bf16: false, experts: Experts::None });
}

#[test]
fn adapters_on_experts() {
    for experts in [Experts::Spread, Experts::OneHasAll] {
        matrix(&Case { tuning: lora(), tied: false, pure_bf16: false, experts });
    }
}

#[test]
fn all_weights_of_experts_and_routers() {
    for experts in [Experts::Spread, Experts::OneHasAll] {
        matrix(&Case { tuning: Tuning::Full, tied: true, pure_bf16: false, experts });
    }
}

#[test]
fn the_last_block_alone() {
    let plan = FreezePlan { layers: 1, modules: Vec::new(), extra_modules: Vec::new() };
    matrix(&Case { tuning: Tuning::Freeze(plan), tied: false, pure_bf16: false, experts: Experts::None });
}

#[test]
fn a_budget_of_tokens_changes_no_result() {
    let case = Case { tuning: lora(), tied: false, pure_bf16: false, experts: Experts::None };
    let want = curve(&case, &Split::solo());
    for split in splits().into_iter().chain([Split::solo()]) {
        check(&case, &Split { budget: Some(64), ..split }, &want);
    }
}

#[test]
fn the_curve_is_the_same_with_an_optimizer_that_magnifies_noise() {
    let case = Case { tuning: lora(), tied: false, pure_bf16: false, experts: Experts::None };
    let want = curve(&case, &Split { eps: 1e-8, ..Split::solo() });
    for split in splits() {
        let gap = curve(&case, &Split { eps: 1e-8, ..split }).curve_gap(&want);
        assert!(gap < LIMIT, "{split:?} differs from one rank by {gap:e}");
    }
}

#[test]
fn overlap_and_offloading_change_no_bit() {
    for tuning in [lora(), Tuning::Full] {
        let case = Case { tuning, tied: false, pure_bf16: false, experts: Experts::None };
        for split in splits().into_iter().chain([Split::solo()]) {
            let want = curve(&case, &split);
            let mut offload = Offload::default();
            for others in 0..4 {
                (offload.optimizer, offload.weights) = (others & 1 > 0, others & 2 > 0);
                let got = curve(&case, &Split { overlap: others == 3, offload, ..split });
                assert_eq!(got, want, "{split:?} with {offload:?}");
            }
        }
    }
}

#[test]
fn weights_that_train_in_bf16_keep_one_precise_copy_whatever_the_split() {
    let case = Case { tuning: Tuning::Full, tied: false, pure_bf16: true, experts: Experts::None };
    let want = curve(&case, &Split::solo());
    for split in splits() {
        let gap = curve(&case, &split).gap(&want);
        // Activations are rounded to bf16, so a sum in another order can round to the neighbour.
        assert!(gap < 2e-2, "{split:?} differs from one rank by {gap:e}");
    }
}
