//! What a run will take: the very training step, run on the `meta` device, for the longest batch in the data, by a rank
//! that only imagines the others.

use crate::Result;
use crate::divide::Load;
use crate::engine::{Division, Engine, Offload};
use crate::evaluate::evaluate_batch;
use crate::evaluated::Answers;
use crate::plan::Candidate;
use crate::room::Room;
use crate::router_loss::RouterLoss;
use crate::save::Copied;
use crate::step::{Sample, StepOptions, Votes, Work, step};
use ferrotune_config::plan::ParallelPlan;
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Imagined, Mesh, Place};
use ferrotune_model::Model;
use ferrotune_tensor::{Device, Phase, Profile, Segment, Track, cpu};
use std::rc::Rc;

/// How a run is split, before there is anything to split.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Ranks, shards and stages.
    pub candidate: Candidate,
    /// Gathers and reductions run beside the computation.
    pub overlap: bool,
    /// What lies in host memory.
    pub offload: Offload,
}

impl Shape {
    /// The shape of a recipe's wishes and a choice.
    pub fn new(candidate: Candidate, plan: &ParallelPlan) -> Self {
        let offload = Offload::of(plan);
        Self { candidate, overlap: plan.overlap, offload }
    }

    /// The division of the ranks of `world`.
    pub fn division(&self, world: Rc<dyn Comm>) -> Division {
        let Candidate { layout, sharded, spans } = &self.candidate;
        let mesh = Mesh::new(world, *layout);
        let (overlap, offload) = (self.overlap, self.offload);
        Division { mesh, sharding: *sharded, spans: spans.clone(), overlap, offload }
    }
}

/// Bytes of one rank in a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bytes {
    /// On the device that computes.
    pub device: Track,
    /// What lies in host memory instead.
    pub host: u64,
    /// Of the state that this rank writes into checkpoints.
    pub owned: u64,
    /// When the device held most; `None` for the time outside all segments (gradients reduced, weights updated).
    pub moment: Option<(Segment, Phase)>,
}

impl Bytes {
    /// All that are live at the same time; copies of what is being saved are not among them.
    fn live(&self) -> u64 {
        self.device.extent + self.host
    }
}

/// Bytes of a step over `lengths`, one row each, in every micro-batch, on devices of a profile: those of the fullest rank.
pub fn predict(
    model: &Model,
    options: &StepOptions,
    shape: &Shape,
    lengths: &[usize],
    profile: Profile,
) -> Result<Bytes> {
    let rows = Lengths { trained: lengths, ..Lengths::default() };
    let stages = by_stage(model, options, shape, rows, profile)?;
    Ok(stages.into_iter().max_by_key(Bytes::live).unwrap_or_default())
}

/// Rows of the longest batches, in tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths<'a> {
    trained: &'a [usize],
    /// Those whose loss is taken beside training.
    evaluated: &'a [usize],
    /// Those that are answered beside training.
    answers: Option<Answers>,
}

/// The bytes of the first rank of each stage, the first stage's first, in steps, evaluations and answers.
fn by_stage(
    model: &Model,
    options: &StepOptions,
    shape: &Shape,
    rows: Lengths<'_>,
    profile: Profile,
) -> Result<Vec<Bytes>> {
    let layout = shape.candidate.layout;
    let of = |stage| {
        let rank = layout.rank(Place { shard: 0, stage, replica: 0 });
        let device = Device::imitating(profile);
        count(model, options, shape.division(Rc::new(Imagined::new(rank, layout.world()))), rows, &device)
    };
    (0..layout.stages).map(of).collect()
}

fn count(
    model: &Model,
    options: &StepOptions,
    division: Division,
    Lengths { trained, evaluated, answers }: Lengths<'_>,
    device: &Device,
) -> Result<Bytes> {
    let stages = division.spans.len();
    let engine = Engine::new(device, model, division, options.plus.is_some());
    let flat = |lengths: &[usize]| -> Vec<Flat> { lengths.iter().map(|&len| Flat::new(len)).collect() };
    let rows = flat(trained);
    let samples = samples(&rows);
    // As many micro-batches as a pipe holds at once; and a second step, for which gathers begin ahead.
    let micro_batches = vec![samples; stages];
    for number in 1..=2 {
        let work = Work { step: number, rate: 0.0, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
        step(model, &engine, options, &work)?;
    }
    if !evaluated.is_empty() {
        let (rows, tokens) = (flat(evaluated), evaluated.iter().sum::<usize>().max(1) as f64);
        let router = RouterLoss::new(model, &engine, options.router_aux_loss, tokens);
        evaluate_batch(model, &engine, &self::samples(&rows), router.as_ref())?;
    }
    if let Some(answers) = answers {
        answers.rehearse(model, &engine)?;
    }
    let host = if engine.host_memory().is(device) { 0 } else { engine.host_memory().track().extent };
    let owned = engine.owned().iter().map(|piece| piece.tensor.bytes() as u64).sum();
    Ok(Bytes { device: device.track(), host, owned, moment: engine.fullest() })
}

/// Rows as a step takes them.
pub(crate) fn samples(rows: &[Flat]) -> Vec<Sample<'_>> {
    rows.iter().enumerate().map(|(index, row)| Sample { row: row.row(), index }).collect()
}

/// A row of so many tokens with a label on each: the most a row of that length can cost.
pub(crate) struct Flat {
    ids: Vec<u32>,
    labels: Vec<i32>,
    segments: [u32; 1],
}

impl Flat {
    pub(crate) fn new(len: usize) -> Self {
        Self { ids: vec![0; len], labels: vec![0; len], segments: [len as u32] }
    }

    pub(crate) fn row(&self) -> Row<'_> {
        Row { input_ids: &self.ids, labels: &self.labels, segments: &self.segments, isolated: false, source: (0, 0) }
    }
}

/// What was decided on recomputation, with the figures behind it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryPlan {
    /// Blocks are recomputed in the backward pass.
    pub recompute: bool,
    /// The step as it will be run, on the rank with the most.
    pub predicted: Track,
    /// When that rank's device holds most; `None` for the time outside all segments.
    pub moment: Option<(Segment, Phase)>,
    /// What that rank keeps in host memory, which on a processor is the same memory.
    pub host: u64,
    /// Copies of what that rank saves, which threads write while the run goes on; in host memory, too.
    pub copies: u64,
    /// Bytes outside the count: kernels' own buffers, or a card's context and the buffers of its collectives.
    pub constant: u64,
    /// Where all that is to lie.
    pub room: Room,
}

impl MemoryPlan {
    /// All bytes of the fullest rank on the device that computes.
    pub fn needed(&self) -> u64 {
        let apart = if self.room.has_own_host() { 0 } else { self.host + self.copies };
        self.predicted.extent + self.constant + apart
    }

    /// Bytes of host memory, where that is another memory than the device's.
    pub fn needed_of_host(&self) -> u64 {
        if self.room.has_own_host() { self.host + self.copies } else { 0 }
    }

    /// Whether they can be had.
    pub fn fits(&self) -> bool {
        let within = |bytes: u64, limit: Option<u64>| limit.is_none_or(|limit| bytes <= limit);
        within(self.needed(), self.room.device()) && within(self.needed_of_host(), self.room.host())
    }
}

/// The bytes of a split's fullest rank at the longest batch, with or without recomputation.
///
/// # Errors
/// If the step itself can't be run.
pub fn plan_memory(load: &Load<'_>, shape: &Shape, recompute: bool, room: Room) -> Result<MemoryPlan> {
    let constant = match room {
        Room::Shared(_) => (cpu::scratch_bytes_per_thread() * rayon::current_num_threads()) as u64,
        // Products' scratch memory is there before anybody asks what is free.
        Room::Free(_) => Room::joined(&shape.candidate),
        Room::Card { .. } => Room::taken(&shape.candidate),
    };
    let options = StepOptions { recompute, ..load.options.clone() };
    let Load { lengths: trained, evaluated, answers, .. } = *load;
    let stages = by_stage(load.model, &options, shape, Lengths { trained, evaluated, answers }, room.profile())?;
    let of = |(stage, bytes): (usize, Bytes)| {
        // The first rank of all writes the model's files besides its part of the state.
        let Copied { checkpoint, adapter } = load.copied;
        let files = if stage == 0 { checkpoint.unwrap_or(0) + adapter } else { 0 };
        let copies = checkpoint.map_or(0, |_| bytes.owned) + files;
        let Bytes { device: predicted, host, moment, .. } = bytes;
        MemoryPlan { recompute, predicted, moment, host, copies, constant, room }
    };
    let plans = stages.into_iter().enumerate().map(of);
    Ok(plans.max_by_key(MemoryPlan::needed).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Sharding;
    use crate::fixtures::small_llama;
    use ferrotune_config::plan::{AdamWPlan, Recompute, Tuning};
    use ferrotune_dist::Layout;
    use ferrotune_tensor::DType;

    #[test]
    fn copies_of_what_is_saved_count() {
        let config = small_llama();
        let model = Model::new(&config, DType::F32, Some(&Tuning::Full), false).unwrap();
        let parameters: usize = model.parameters().iter().map(|p| p.param.shape.numel()).sum();
        let options = StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            max_norm: 1.0,
            smoothing: 0.0,
            router_aux_loss: 0.0,
            embedding_alpha: 0.0,
            seed: 1,
            plus: None,
            recompute: false,
        };
        let files = 2 * parameters as u64;
        let plan = |shards: usize, sharded, copied| {
            let layout = Layout { shards, stages: 1, replicas: 1 };
            let candidate = Candidate { layout, sharded, spans: vec![0..model.segments(); 1] };
            let shape = Shape { candidate, overlap: true, offload: Offload::default() };
            let (recompute, lengths) = (Recompute::Off, &[8][..]);
            let (evaluated, answers, micro_batches) = (&[][..], None, 1);
            let load = Load {
                model: &model,
                options: &options,
                recompute,
                lengths,
                evaluated,
                answers,
                micro_batches,
                copied,
            };
            plan_memory(&load, &shape, false, Room::default()).unwrap()
        };
        let of = |checkpoint, adapter| Copied { checkpoint, adapter };
        let never = plan(1, Sharding::Whole, of(None, 0));
        assert_eq!(never.copies, 0);
        // An adapter is written in the end.
        assert_eq!(plan(1, Sharding::Whole, of(None, 10)).copies, 10);
        // A weight and two moments of each parameter, in f32, and the files.
        let whole = plan(1, Sharding::Whole, of(Some(files), 0));
        assert_eq!(whole.copies, 12 * parameters as u64 + files);
        assert_eq!(whole.needed(), never.needed() + whole.copies);
        // Two ranks write half of the state each; the first one the files, too.
        assert_eq!(plan(2, Sharding::Weights, of(Some(files), 0)).copies, 6 * parameters as u64 + files);
    }
}
