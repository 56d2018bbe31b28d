//! The bytes that ranks send in a step, counted, are those of the formulas in `docs/strategies.md`, to the byte and for each
//! pair of ranks. Ranks are threads here; the bytes are those between processes.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_config::plan::{AdamWPlan, FreezePlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Layout, Mesh, threads};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::plan::{Candidate, Demand, Links, Rates, across, traffic};
use ferrotune_train::{Fresh, Sample, StepOptions, Votes, Work, step};
use std::rc::Rc;

const TOKENS: usize = 12;

struct Case {
    tuning: Tuning,
    tied: bool,
    dtype: DType,
    recompute: bool,
    overlap: bool,
    /// Blocks have experts, whose balance is part of the loss.
    balanced: bool,
    /// Of four experts every token has all, so that they come out even whatever the router says.
    even: bool,
}

fn lora() -> Tuning {
    dropping(0.0)
}

fn dropping(dropout: f64) -> Tuning {
    Tuning::Lora(LoraPlan { alpha: 8.0, dropout, ..LoraPlan::plain(3) })
}

impl Case {
    fn model(&self) -> Model {
        let (experts, each) = if self.even { (4, 4) } else { (5, 2) };
        let json = serde_json::json!({
            "model_type": if self.balanced { "qwen3_moe" } else { "qwen3" }, "num_experts": experts, "num_experts_per_tok": each,
            "moe_intermediate_size": 24, "mlp_only_layers": [2], "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 101,
            "max_position_embeddings": 64, "tie_word_embeddings": self.tied,
        });
        Model::new(&Config::from_json(&json).unwrap(), self.dtype, Some(&self.tuning), false).unwrap()
    }

    /// What each rank sends to each other in its second step.
    fn counted(&self, candidate: &Candidate, all: usize) -> Vec<Vec<u64>> {
        threads::run(candidate.layout.world(), |comm| self.one_rank(candidate, candidate.micro_batches(all), &comm))
    }

    fn one_rank(&self, candidate: &Candidate, micro_batches: usize, comm: &Rc<dyn Comm>) -> Vec<u64> {
        let model = self.model();
        let division = Division {
            mesh: Mesh::new(comm.clone(), candidate.layout),
            sharding: candidate.sharded,
            spans: candidate.spans.clone(),
            overlap: self.overlap,
            offload: Offload::default(),
        };
        let engine = Engine::new(&Device::cpu(), &model, division, false);
        engine.load(&Fresh::new(&model, 0.2, 7), &[], None, 7).unwrap();
        let options = StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            max_norm: 1.0,
            smoothing: 0.0,
            router_aux_loss: self.weight(),
            embedding_alpha: 0.0,
            seed: 1,
            plus: None,
            recompute: self.recompute,
        };
        let (ids, labels) = ([5; TOKENS], [5; TOKENS]);
        let row = Row { input_ids: &ids, labels: &labels, segments: &[TOKENS as u32], isolated: false, source: (0, 0) };
        let micro_batches = vec![vec![Sample { row, index: 0 }]; micro_batches];
        let run = |number| {
            let work =
                Work { step: number, rate: 1e-3, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
            step(&model, &engine, &options, &work).unwrap()
        };
        run(1);
        let before = comm.traffic();
        run(2);
        let sent = comm.traffic().into_iter().zip(before).map(|(after, before)| after - before).collect();
        comm.barrier().unwrap();
        sent
    }

    fn demand(&self) -> Demand {
        let model = self.model();
        let demand = Demand::of(&model, &[TOKENS], self.recompute, false, Rates::even(1.0)).unwrap();
        demand.with_router_loss(&model, self.weight())
    }

    fn weight(&self) -> f64 {
        if self.balanced { 0.1 } else { 0.0 }
    }
}

fn candidates() -> Vec<Candidate> {
    use Sharding::{Gradients, Optimizer, Weights, Whole};
    let split = |[shards, stages, replicas]: [usize; 3], sharded| Candidate {
        layout: Layout { shards, stages, replicas },
        sharded,
        spans: (0..stages).map(|i| i * 6 / stages..(i + 1) * 6 / stages).collect(),
    };
    let mut all = vec![
        split([1, 1, 1], Whole),
        split([2, 1, 2], Weights),
        split([1, 2, 2], Whole),
        split([3, 1, 1], Weights),
        split([2, 1, 2], Gradients),
    ];
    for ranks in [2, 4] {
        all.push(split([1, 1, ranks], Whole));
        all.push(split([ranks, 1, 1], Optimizer));
        all.push(split([ranks, 1, 1], Gradients));
        all.push(split([ranks, 1, 1], Weights));
        all.push(split([1, ranks, 1], Whole));
    }
    all
}

fn check(case: &Case) {
    compare(case, candidates());
}

fn compare(case: &Case, candidates: Vec<Candidate>) {
    let demand = case.demand();
    for candidate in candidates {
        for all in [candidate.layout.data_ranks(), 3 * candidate.layout.data_ranks()] {
            for (rank, sent) in case.counted(&candidate, all).into_iter().enumerate() {
                let told = traffic(&demand, &candidate, all, rank);
                assert_eq!(sent, told, "{candidate}, {all} micro-batches, rank {rank}");
            }
        }
    }
}

#[test]
fn adapters() {
    for (tied, dtype, recompute, overlap) in [
        (false, DType::F32, false, true),
        (true, DType::F32, true, true),
        (false, DType::Bf16, true, false),
        (true, DType::Bf16, false, true),
    ] {
        check(&Case { tuning: lora(), tied, dtype, recompute, overlap, balanced: false, even: false });
    }
}

#[test]
fn whole_weights() {
    for (tied, overlap) in [(false, true), (true, true), (true, false)] {
        check(&Case {
            tuning: Tuning::Full,
            tied,
            dtype: DType::F32,
            recompute: tied,
            overlap,
            balanced: false,
            even: false,
        });
    }
}

#[test]
fn experts_with_a_loss_on_their_balance() {
    for (tuning, overlap) in [(lora(), true), (Tuning::Full, false)] {
        check(&Case {
            tuning,
            tied: overlap,
            dtype: DType::F32,
            recompute: overlap,
            overlap,
            balanced: true,
            even: false,
        });
    }
}

/// Rows go to the ranks of their experts and back, with keys where experts draw dropout; their adapters cross replicas alone.
#[test]
fn experts_on_several_ranks() {
    let experts = |[shards, replicas]: [usize; 2]| Candidate {
        layout: Layout { shards, stages: 1, replicas },
        sharded: Sharding::Experts,
        spans: vec![0..6; 1],
    };
    let last = Tuning::Freeze(FreezePlan { layers: 1, modules: vec!["mlp".into()], extra_modules: Vec::new() });
    for (tuning, tied, recompute) in [
        (lora(), true, false),
        (dropping(0.1), false, true),
        (Tuning::Full, true, true),
        (Tuning::Full, false, false),
        (last, false, true),
    ] {
        let case = Case { tuning, tied, dtype: DType::F32, recompute, overlap: recompute, balanced: true, even: true };
        compare(&case, [[2, 1], [4, 1], [2, 2]].map(experts).to_vec());
    }
}

#[test]
fn some_blocks() {
    let tuning = Tuning::Freeze(FreezePlan { layers: 2, modules: Vec::new(), extra_modules: Vec::new() });
    check(&Case {
        tuning,
        tied: false,
        dtype: DType::F32,
        recompute: false,
        overlap: true,
        balanced: false,
        even: false,
    });
}

#[test]
fn only_gradients_of_adapters_leave_a_node() {
    let case = Case {
        tuning: lora(),
        tied: false,
        dtype: DType::Bf16,
        recompute: true,
        overlap: true,
        balanced: false,
        even: false,
    };
    let links = Links { per_node: 2, ..Links::FREE };
    let adapters: usize = {
        let trained = |p: &&ferrotune_model::Parameter| p.param.trainable;
        case.model().parameters().iter().filter(trained).map(|p| 4 * p.param.shape.numel()).sum()
    };
    for candidate in candidates().into_iter().filter(|candidate| candidate.layout.replicas == 2) {
        if candidate.layout.world() != 4 || candidate.sharded == Sharding::Gradients {
            continue;
        }
        let out = |all| -> u64 {
            let sent = case.counted(&candidate, all);
            (0..2).map(|rank| across(&sent[rank], rank, &links)).sum()
        };
        let (few, many) = (out(4), out(16));
        // Of the losses of each more, which all ranks are told, three ranks' leave the node.
        let more = candidate.micro_batches(16) - candidate.micro_batches(4);
        assert_eq!(many - few, 3 * 4 * more as u64, "{candidate}: more micro-batches, the same bytes");
        let adapters = adapters as u64;
        // Each parameter begins at a multiple of 64 bytes, which adds a little; a step's numbers are 132 bytes or more.
        assert!(few >= adapters && few < adapters + adapters / 4, "{candidate}: {few} of {adapters}");
    }
}
