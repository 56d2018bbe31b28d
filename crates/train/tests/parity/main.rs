//! No split of the work changes the result: every layout of ranks, sharding, micro-batch size, recomputation, overlap and
//! offloading gives one loss curve and one set of trained weights, in f32, on rows of very unequal lengths.
//!
//! Ranks are threads here; the collectives are the same as between processes.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

mod memory;
mod split;

use ferrotune_config::plan::{FreezePlan, LoraPlan, Tuning};
use ferrotune_train::engine::{Offload, Sharding};
use split::{Case, Curve, Experts, Family, Split, curve};

/// Relative, of losses, norms and weights; what is left are other orders of summation in f32. Measured at most: 5.2e-6
/// with AVX-512.
const LIMIT: f64 = 1e-5;

fn lora() -> Tuning {
    Tuning::Lora(LoraPlan { dropout: 0.1, ..LoraPlan::plain(4) })
}

/// Adapters on a model without experts.
fn dense() -> Case {
    let (experts, family) = (Experts::None, Family::Qwen3);
    Case { tuning: lora(), tied: false, pure_bf16: false, experts, family, router_aux_loss: 0.0 }
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

/// The same where each rank of a group has experts of its own; of six, four ranks have two or one.
fn expert_splits() -> Vec<Split> {
    let split = |name, [shards, replicas]: [usize; 2]| Split {
        name,
        layout: ferrotune_dist::Layout { shards, stages: 1, replicas },
        sharding: Sharding::Experts,
        ..Split::solo()
    };
    vec![split("expert 2", [2, 1]), split("expert 4", [4, 1]), split("expert 2x2", [2, 2])]
}

fn check(case: &Case, split: &Split, want: &Curve) {
    let got = curve(case, split);
    let gap = got.gap(want);
    assert!(gap < LIMIT, "{split:?} differs from one rank by {gap:e}\n{:?}\n{:?}", got.losses, want.losses);
}

fn matrix(case: &Case) {
    let want = curve(case, &Split::solo());
    assert!(want.losses.last().unwrap() < want.losses.first().unwrap(), "it learns: {:?}", want.losses);
    let spread = if case.experts == Experts::None { Vec::new() } else { expert_splits() };
    for split in splits().into_iter().chain(spread).chain([Split::solo()]) {
        // With four ranks: four rows at once, and one row four times.
        for micro_batch in [1, 4] {
            check(case, &Split { micro_batch, ..split }, &want);
        }
        check(case, &Split { recompute: true, ..split }, &want);
    }
}

#[test]
fn adapters_on_an_untied_model() {
    matrix(&dense());
}

#[test]
fn adapters_on_a_tied_model() {
    matrix(&Case { tuning: lora(), tied: true, ..dense() });
}

#[test]
fn all_weights_of_an_untied_model() {
    matrix(&Case { tuning: Tuning::Full, ..dense() });
}

#[test]
fn all_weights_of_a_tied_model() {
    matrix(&Case { tuning: Tuning::Full, tied: true, ..dense() });
}

#[test]
fn adapters_on_experts() {
    for (experts, router_aux_loss) in [(Experts::Spread, 0.5), (Experts::OneHasAll, 0.0)] {
        matrix(&Case { tuning: lora(), experts, router_aux_loss, ..dense() });
    }
}

#[test]
fn all_weights_of_experts_and_routers() {
    for (experts, router_aux_loss) in [(Experts::Spread, 0.0), (Experts::OneHasAll, 0.5)] {
        matrix(&Case { tuning: Tuning::Full, tied: true, experts, router_aux_loss, ..dense() });
    }
}

/// Experts beside one that every token sees, with a block that has none; and experts in every block.
#[test]
fn experts_of_other_families() {
    for family in [Family::Qwen2, Family::Mixtral] {
        for (tuning, experts, router_aux_loss) in
            [(lora(), Experts::Spread, 0.5), (Tuning::Full, Experts::OneHasAll, 0.0)]
        {
            let case = Case { tuning, experts, router_aux_loss, family, ..dense() };
            let want = curve(&case, &Split::solo());
            assert!(want.losses.last().unwrap() < want.losses.first().unwrap(), "it learns: {:?}", want.losses);
            for split in expert_splits() {
                check(&case, &Split { micro_batch: 1, ..split }, &want);
                check(&case, &Split { recompute: true, ..split }, &want);
            }
        }
    }
}

/// Every token goes to one and the same expert: its rank takes all of them in, in several rounds, and the others nothing.
#[test]
fn one_expert_alone_has_all_tokens_of_all_ranks() {
    for (tuning, router_aux_loss) in [(lora(), 0.5), (Tuning::Full, 0.0)] {
        let case = Case { tuning, experts: Experts::OneAlone, router_aux_loss, ..dense() };
        let want = curve(&case, &Split::solo());
        for split in expert_splits() {
            for recompute in [false, true] {
                check(&case, &Split { recompute, ..split }, &want);
            }
        }
    }
}

#[test]
fn a_loss_on_the_balance_spreads_tokens() {
    let with = |router_aux_loss| {
        let case = Case { tuning: Tuning::Full, experts: Experts::OneHasAll, router_aux_loss, ..dense() };
        curve(&case, &Split { recompute: true, ..Split::solo() })
    };
    let (priced, free) = (with(0.5), with(0.0));
    // At best it is the number of a token's experts, which is 2; one of them is the same one everywhere.
    let balance = &priced.router_losses;
    assert!(free.router_losses.is_empty() && balance[0] > 2.4 && balance[5] < 2.2, "{balance:?}");
    assert!((priced.losses[0] - free.losses[0] - 0.5 * balance[0]).abs() < 1e-6, "it is part of the loss");
}

#[test]
fn the_last_block_alone() {
    let plan = FreezePlan { layers: 1, modules: Vec::new(), extra_modules: Vec::new() };
    matrix(&Case { tuning: Tuning::Freeze(plan), ..dense() });
}

#[test]
fn a_budget_of_tokens_changes_no_result() {
    let case = dense();
    let want = curve(&case, &Split::solo());
    for split in splits().into_iter().chain([Split::solo()]) {
        check(&case, &Split { budget: Some(64), ..split }, &want);
    }
    let case = Case { experts: Experts::Spread, ..dense() };
    let want = curve(&case, &Split::solo());
    for split in expert_splits() {
        check(&case, &Split { budget: Some(64), ..split }, &want);
    }
}

#[test]
fn the_curve_is_the_same_with_an_optimizer_that_magnifies_noise() {
    let case = dense();
    let want = curve(&case, &Split { eps: 1e-8, ..Split::solo() });
    for split in splits() {
        let gap = curve(&case, &Split { eps: 1e-8, ..split }).curve_gap(&want);
        assert!(gap < LIMIT, "{split:?} differs from one rank by {gap:e}");
    }
}

#[test]
fn overlap_and_offloading_change_no_bit() {
    for tuning in [lora(), Tuning::Full] {
        let case = Case { tuning: tuning.clone(), ..dense() };
        let of_experts = Case { tuning, experts: Experts::OneHasAll, ..dense() };
        let all = splits().into_iter().chain([Split::solo()]).map(|split| (&case, split));
        for (case, split) in all.chain(expert_splits().into_iter().map(|split| (&of_experts, split))) {
            let want = curve(case, &split);
            let mut offload = Offload::default();
            for others in 0..4 {
                (offload.optimizer, offload.weights) = (others & 1 > 0, others & 2 > 0);
                let got = curve(case, &Split { overlap: others == 3, offload, ..split });
                assert_eq!(got, want, "{split:?} with {offload:?}");
            }
        }
    }
}

#[test]
fn weights_that_train_in_bf16_keep_one_precise_copy_whatever_the_split() {
    let case = Case { tuning: Tuning::Full, pure_bf16: true, ..dense() };
    let want = curve(&case, &Split::solo());
    for split in splits() {
        let gap = curve(&case, &split).gap(&want);
        // Activations are rounded to bf16, so a sum in another order can round to the neighbour.
        assert!(gap < 2e-2, "{split:?} differs from one rank by {gap:e}");
    }
}
