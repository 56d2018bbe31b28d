//! Where experts are spread over ranks, memory is foretold to the byte and doesn't depend on where tokens go: one expert that
//! has all of them takes more rounds, not more bytes.

use crate::split::{Case, Experts, Split, engine, model, options};
use crate::{dense, expert_splits, lora};
use ferrotune_config::plan::Tuning;
use ferrotune_data::rows::Row;
use ferrotune_dist::threads;
use ferrotune_tensor::Profile;
use ferrotune_train::plan::Candidate;
use ferrotune_train::{Sample, Shape, Votes, Work, predict, step};

const TOKENS: usize = 48;

/// The most bytes that the first rank's device held in two steps of one row a rank.
fn seen(case: &Case, split: &Split) -> u64 {
    let peaks = threads::run(split.layout.world(), |comm| {
        let model = model(case);
        let engine = engine(case, split, &model, comm);
        let ids: Vec<u32> = (0..TOKENS as u32).map(|token| token * 31 % 96).collect();
        let labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let row = Row { input_ids: &ids, labels: &labels, segments: &[TOKENS as u32], isolated: false, source: (0, 0) };
        let micro_batches = [vec![Sample { row, index: 0 }]];
        for number in 1..=2 {
            let work =
                Work { step: number, rate: 1e-4, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
            step(&model, &engine, &options(case, split), &work).unwrap();
        }
        engine.device().track().peak
    });
    peaks[0]
}

#[test]
fn no_routing_takes_more_than_was_foretold() {
    for tuning in [lora(), Tuning::Full] {
        for recompute in [false, true] {
            for split in expert_splits() {
                let split = Split { recompute, ..split };
                let of = |experts| Case { tuning: tuning.clone(), experts, ..dense() };
                let spread = of(Experts::Spread);
                let model = model(&spread);
                let candidate = Candidate {
                    layout: split.layout,
                    sharded: split.sharding,
                    spans: std::iter::once(model.span()).collect(),
                };
                let shape = Shape { candidate, overlap: split.overlap, offload: split.offload };
                let foretold = predict(&model, &options(&spread, &split), &shape, &[TOKENS], Profile::Cpu).unwrap();
                let (even, uneven) = (seen(&spread, &split), seen(&of(Experts::OneHasAll), &split));
                assert_eq!((even, uneven), (foretold.device.peak, foretold.device.peak), "{split:?}");
            }
        }
    }
}
