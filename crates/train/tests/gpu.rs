//! Whole steps on a GPU of paper: what they compute is the processor's, and nobody waits for the GPU before the update is begun.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

#[path = "../../tensor/tests/devices/gpus.rs"]
mod gpus;
#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../../dist/tests/nccl/gpus.rs"]
mod ranks;

use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Layout, Mesh};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::cuda::Options;
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::{Error, Fresh, Limit, LossScale, Sample, StepOptions, Votes, Work, rehearse, step_within};
use std::cell::RefCell;
use std::rc::Rc;

/// Calls that make the host wait.
const WAITS: [&str; 4] = ["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize", "cuMemcpyDtoHAsync_v2"];

fn config(experts: bool) -> Config {
    let mut json = serde_json::json!({
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 101,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    if experts {
        let more = serde_json::json!({
            "model_type": "qwen3_moe", "moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 2,
            "decoder_sparse_step": 1, "norm_topk_prob": true, "mlp_only_layers": [],
        });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    Config::from_json(&json).unwrap()
}

fn adapters(dora: bool) -> Tuning {
    Tuning::Lora(LoraPlan { dropout: 0.1, dora, ..LoraPlan::plain(8) })
}

struct Case {
    model: Model,
    router_aux_loss: f64,
    scale: Option<LossScale>,
    offload: Offload,
    limit: Limit,
}

const LIMIT: Limit = Limit { written: 2, rows: None, shrinks: true };

impl Case {
    fn new(config: &Config, dtype: DType, tuning: &Tuning) -> Self {
        let model = Model::new(config, dtype, Some(tuning), false).unwrap();
        Self { model, router_aux_loss: 0.0, scale: None, offload: Offload::default(), limit: LIMIT }
    }

    /// Losses, norms and losses of the router of a few steps of two micro-batches, and the trained weights after them.
    fn run(&self, device: &Device, votes: &dyn Fn() -> Votes) -> (Vec<f64>, Vec<f32>) {
        self.run_within(device, votes, &mut { self.limit }, &[]).unwrap()
    }

    /// The same after a rehearsal of rows of some lengths, if there are some.
    fn run_within(
        &self,
        device: &Device,
        votes: &dyn Fn() -> Votes,
        limit: &mut Limit,
        rehearsed: &[usize],
    ) -> Result<(Vec<f64>, Vec<f32>), Error> {
        self.run_as(Division::solo(&self.model), (device, votes), limit, rehearsed)
    }

    /// The same by one of several ranks, each of which has its share of the micro-batches.
    fn run_as(
        &self,
        division: Division,
        (device, votes): (&Device, &dyn Fn() -> Votes),
        limit: &mut Limit,
        rehearsed: &[usize],
    ) -> Result<(Vec<f64>, Vec<f32>), Error> {
        let (rank, ranks) = (division.mesh.data_rank(), division.mesh.layout().data_ranks());
        let division = Division { offload: self.offload, ..division };
        let engine = Engine::new(device, &self.model, division, false);
        engine.load(&Fresh::new(&self.model, 0.2, 7), &[], None, 7)?;
        let options = StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.1 },
            max_norm: 0.5,
            smoothing: 0.0,
            embedding_alpha: 5.0,
            seed: 1,
            plus: None,
            recompute: true,
            router_aux_loss: self.router_aux_loss,
        };
        let ids: Vec<u32> = (0..23).map(|i| i * 37 % 101).collect();
        let labels: Vec<i32> = ids.iter().enumerate().map(|(i, id)| if i < 4 { -100 } else { *id as i32 }).collect();
        let sample = |range: std::ops::Range<usize>, index, segments| {
            let (input_ids, labels) = (&ids[range.clone()], &labels[range]);
            Sample {
                row: Row { input_ids, labels, segments, isolated: false, source: (0, index) },
                index: index as usize,
            }
        };
        let micro_batches = [vec![sample(0..9, 0, &[9]), sample(9..14, 1, &[5])], vec![sample(14..23, 2, &[9])]];
        if !rehearsed.is_empty() {
            rehearse(&self.model, &engine, &options, rehearsed, limit)?;
        }
        let mut numbers = Vec::new();
        for number in 1..=3 {
            let own = micro_batches.chunks(micro_batches.len() / ranks).nth(rank).unwrap();
            let (micro_batches, scale) = (own, self.scale);
            let work = Work { step: number, rate: 1e-3, micro_batches, scale, votes };
            let outcome = step_within(&self.model, &engine, &options, &work, limit)?;
            assert!(outcome.updated);
            numbers.extend([outcome.loss, outcome.grad_norm, outcome.router_loss.unwrap_or(0.0)]);
        }
        let weights = engine.owned().iter().flat_map(|piece| piece.tensor.to_f32()).collect();
        Ok((numbers, weights))
    }
}

fn silent() -> Votes {
    Votes::default()
}

/// What the GPU makes is what the processor makes, within `slack`, and the same bits whatever the order of its work.
fn check(case: &Case, slack: f64) {
    let (want, weights) = case.run(&Device::cpu(), &silent);
    let first = case.run(&gpus::strict("seed=1"), &silent);
    for gpu in [gpus::strict("seed=6"), gpus::pooled("seed=3")] {
        assert!(case.run(&gpu, &silent) == first, "the same bits");
    }
    for (got, want) in first.0.iter().zip(&want) {
        assert!((got - want).abs() <= slack * want.abs(), "{:?} {want:?}", first.0);
    }
    let largest = weights.iter().fold(0f32, |most, x| most.max(x.abs()));
    let gap = first.1.iter().zip(&weights).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(f64::from(gap) <= 20.0 * slack * f64::from(largest), "{gap} of {largest}");
}

#[test]
fn steps_are_the_processors() {
    check(&Case::new(&config(false), DType::F32, &adapters(true)), 1e-5);
    check(&Case::new(&config(false), DType::F32, &Tuning::Full), 1e-5);
    let mixture = Case::new(&config(true), DType::F32, &adapters(false));
    check(&Case { router_aux_loss: 0.1, ..mixture }, 1e-5);
    check(&Case::new(&config(true), DType::F32, &Tuning::Full), 1e-5);
    // Moments in host memory: the update is the processor's.
    let offload = Offload { optimizer: true, weights: true };
    check(&Case { offload, ..Case::new(&config(false), DType::F32, &Tuning::Full) }, 1e-5);
}

/// With 8 and 11 bits, heads of eight and matrix instructions for the experts.
#[test]
fn narrow_steps_are_the_processors() {
    check(&Case::new(&config(false), DType::Bf16, &adapters(false)), 2e-2);
    let scale = Some(LossScale { scale: 1024.0, good: 0, skipped: 0 });
    check(&Case { scale, ..Case::new(&config(false), DType::F16, &adapters(false)) }, 4e-3);
}

/// Until all of a step is begun nobody waits; then loss and norm are read at once, and with them the census of experts.
#[test]
fn nobody_waits_inside_a_step() {
    let mixture = Case::new(&config(true), DType::F32, &adapters(false));
    let cases =
        [(Case::new(&config(false), DType::Bf16, &Tuning::Full), 1), (Case { router_aux_loss: 0.1, ..mixture }, 2)];
    for (case, reads) in cases {
        let number = gpus::fresh("seed=2");
        let gpu = gpus::open(&Options { device: number, ..Options::default() });
        let all = |names: &[&str]| names.iter().map(|name| gpus::calls(number, name)).sum::<u64>();
        // Votes are asked for when loss and norm have been read.
        let told = RefCell::new(Vec::new());
        let votes = || {
            told.borrow_mut().push([all(&["cuLaunchKernel"]), all(&WAITS)]);
            Votes::default()
        };
        case.run(&gpu, &votes);
        let told = told.into_inner();
        assert_eq!(told.len(), 3);
        for steps in told.windows(2) {
            let [[_, before], [_, after]] = [steps[0], steps[1]];
            // Each read is a copy and a wait for it.
            assert_eq!(after - before, 2 * reads, "waits of a step: {told:?}");
        }
        // A step's launches are those of the one before, none of them behind the read: the first of a run loads kernels.
        let launches: Vec<u64> = told.windows(2).map(|steps| steps[1][0] - steps[0][0]).collect();
        assert_eq!(all(&["cuLaunchKernel"]), told[2][0], "{launches:?}");
    }
}

/// The same on several GPUs: what ranks tell each other in a step goes from device to device, and comes to the same numbers.
#[test]
fn nobody_waits_inside_a_step_of_several_ranks() {
    let mixture = || Case { router_aux_loss: 0.1, ..Case::new(&config(true), DType::F32, &adapters(false)) };
    let full = || Case::new(&config(false), DType::F32, &Tuning::Full);
    let cases: [(&(dyn Fn() -> Case + Sync), _, _, _); 3] = [
        (&mixture, [1, 1, 2], Sharding::Whole, 2),
        (&full, [2, 1, 1], Sharding::Weights, 1),
        (&full, [1, 2, 1], Sharding::Whole, 1),
    ];
    for (case, [shards, stages, replicas], sharding, reads) in cases {
        let (want, _) = case().run(&gpus::pooled("seed=2"), &silent);
        let layout = Layout { shards, stages, replicas };
        let found = ranks::run(&["seed=3", "seed=4"], ranks::PATIENCE, |ranks::Rank { comm, device, number }| {
            let case = case();
            let comm: Rc<dyn Comm> = Rc::new(comm);
            let all = case.model.segments();
            let spans = (0..stages).map(|stage| stage * all / stages..(stage + 1) * all / stages).collect();
            let solo = Division::solo(&case.model);
            let division = Division { mesh: Mesh::new(comm.clone(), layout), sharding, spans, ..solo };
            let waits = RefCell::new(Vec::new());
            let votes = || {
                waits.borrow_mut().push(WAITS.iter().map(|name| ranks::calls(number, name)).sum::<u64>());
                Votes::default()
            };
            let (numbers, _) = case.run_as(division, (&device, &votes), &mut { LIMIT }, &[]).unwrap();
            comm.barrier().unwrap();
            (numbers, waits.into_inner())
        });
        for (numbers, waits) in found {
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs();
            assert!(numbers.iter().zip(&want).all(near), "{layout:?}: {numbers:?} {want:?}");
            let each: Vec<u64> = waits.windows(2).map(|steps| steps[1] - steps[0]).collect();
            // Each read is a copy and a wait for it.
            assert_eq!(each, [2 * reads; 2], "waits of a step of {layout:?}");
        }
    }
}

/// A rehearsal leaves nothing behind: not a bit of the run is another.
#[test]
fn a_rehearsal_leaves_nothing_behind() {
    let case = Case { router_aux_loss: 0.1, ..Case::new(&config(true), DType::F32, &adapters(false)) };
    let plain = case.run(&gpus::pooled("seed=2"), &silent);
    let rehearsed = case.run_within(&gpus::pooled("seed=2"), &silent, &mut { LIMIT }, &[13, 9]).unwrap();
    assert!(plain == rehearsed);
}

/// A card that holds a row at a time but not two: found at the rehearsal, or at the step that is the first to need it. The step is
/// that of a large card, its gradients added in another order.
#[test]
fn micro_batches_shrink_until_they_fit() {
    let case = Case::new(&config(false), DType::F32, &adapters(false));
    // Beside the tensors there is the workspace of products.
    let on = |tensors: u64, limit: &mut Limit, rehearsed: &[usize]| {
        let device = gpus::fresh(&format!("memory={}", (32 << 20) + tensors));
        let gpu = gpus::open(&Options { device, separate: true, ..Options::default() });
        let found = case.run_within(&gpu, &silent, limit, rehearsed);
        (found, limit.rows, gpu.track().peak)
    };
    let (wanted, rows, peak) = on(1 << 30, &mut { LIMIT }, &[]);
    assert_eq!(rows, None);
    let (want, weights) = wanted.unwrap();
    let least = peak - 1;
    let (found, rows, _) = on(least, &mut { LIMIT }, &[]);
    let (numbers, trained) = found.unwrap();
    assert_eq!(rows, Some(1));
    assert!(numbers.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()), "{numbers:?} {want:?}");
    let largest = weights.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(trained.iter().zip(&weights).all(|(a, b)| (a - b).abs() <= 1e-4 * largest));
    // The rehearsal finds it before any step; and where nobody asked for it, memory that isn't there ends the run.
    assert_eq!(on(least, &mut { LIMIT }, &[9, 9]).1, Some(1));
    let refused = on(least, &mut Limit { shrinks: false, ..LIMIT }, &[]).0.unwrap_err();
    assert!(matches!(refused, Error::Device(ferrotune_tensor::Fault::OutOfMemory { .. })), "{refused}");
}
