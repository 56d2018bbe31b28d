//! A micro-batch: rows of tokens laid end to end, with what the ops need to keep them apart.

use crate::{Config, KvCache};
use ferrotune_tensor::ops::{Balance, Continued, Noise, Rotary, Spans, Targets};
use ferrotune_tensor::{Device, Kind, Tensor};
use std::rc::Rc;

/// One sequence of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Token ids.
    pub input_ids: &'a [u32],
    /// As many labels, unshifted: the loss of token `i` stands with its successor. -100 means no loss.
    pub labels: &'a [i32],
    /// Lengths at which position ids begin again; they add up to the number of tokens.
    pub segments: &'a [u32],
    /// Segments don't see each other, and no segment predicts the next one's first token.
    pub isolated: bool,
    /// What makes dropout and noise of this row its own, whatever batch it stands in.
    pub sample: u32,
}

/// A flat micro-batch on a device.
pub struct Batch {
    /// Token ids, `[t]`.
    pub ids: Tensor,
    /// Which tokens see each other.
    pub spans: Rc<Spans>,
    /// cos and sin of each token's position.
    pub rotary: Rotary,
    /// Rows with a loss, and their labels.
    pub targets: Targets,
    /// Keys of dropout and embedding noise; `None` outside training.
    pub noise: Option<Rc<Noise>>,
    /// Keys and values of earlier tokens, when generating, and where this batch's stand behind them.
    pub cache: Option<(Rc<KvCache>, Vec<Continued>)>,
    /// What routers count and are priced by, where their balance is part of the loss.
    pub balance: Option<Rc<Balance>>,
}

/// Keys of dropout and noise in one optimiser step.
#[derive(Debug, Clone, Copy)]
pub struct NoiseSettings {
    /// Of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// NEFTune's alpha; 0 for none.
    pub embedding_alpha: f32,
}

impl Batch {
    /// Lays `sequences` end to end.
    ///
    /// # Panics
    /// If a sequence's labels or segments don't fit its tokens.
    pub fn new(device: &Device, config: &Config, sequences: &[Sequence<'_>], noise: Option<NoiseSettings>) -> Self {
        let mut flat = Flat::default();
        sequences.iter().for_each(|sequence| flat.push(sequence));
        let noise = noise.map(|settings| {
            Rc::new(Noise {
                seed: settings.seed,
                step: settings.step,
                samples: Tensor::from_u32(device, &flat.samples, Kind::Input),
                positions: Tensor::from_u32(device, &flat.places, Kind::Input),
                embedding_alpha: settings.embedding_alpha,
                lengths: Tensor::from_u32(device, &flat.lengths, Kind::Input),
            })
        });
        Self {
            ids: Tensor::from_u32(device, &flat.ids, Kind::Input),
            spans: Rc::new(Spans::causal(flat.bounds)),
            rotary: rotary(device, config, &flat.positions),
            targets: Targets::new(device, &flat.rows, &flat.labels),
            noise,
            cache: None,
            balance: None,
        }
    }

    /// The next tokens of sequences whose earlier ones lie in `cache`: numbers there, ascending, and at least one token of each.
    pub fn continuing(device: &Device, config: &Config, parts: &[(usize, &[u32])], cache: Rc<KvCache>) -> Self {
        let places: Vec<Continued> = parts.iter().map(|(sequence, ids)| cache.place(*sequence, ids.len())).collect();
        let rows = places.last().map_or(0, |last| last.first + last.total);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for place in &places {
            // Each by itself: scalings that follow the length follow its own.
            let positions: Vec<u32> = (place.total - place.new..place.total).collect();
            let tables = config.rope.tables(config.head_dim, &positions);
            cos.extend(tables.0);
            sin.extend(tables.1);
        }
        let ids: Vec<u32> = parts.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        Self {
            ids: Tensor::from_u32(device, &ids, Kind::Input),
            spans: Rc::new(Spans::continuing(&places, rows)),
            rotary: Rotary::new(device, &cos, &sin, config.head_dim),
            targets: Targets::new(device, &[], &[]),
            noise: None,
            cache: Some((cache, places)),
            balance: None,
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.numel()
    }
}

/// cos and sin of these positions. A plan takes thousands of steps on a device that only counts: no angle is computed for it.
fn rotary(device: &Device, config: &Config, positions: &[u32]) -> Rotary {
    if !device.executes() {
        return Rotary::uncomputed(device, positions.len(), config.head_dim);
    }
    let (cos, sin) = config.rope.tables(config.head_dim, positions);
    Rotary::new(device, &cos, &sin, config.head_dim)
}

#[derive(Default)]
struct Flat {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Place in its row, whatever the segments: two segments' dropout must differ.
    places: Vec<u32>,
    samples: Vec<u32>,
    lengths: Vec<u32>,
    bounds: Vec<u32>,
    rows: Vec<u32>,
    labels: Vec<i32>,
}

impl Flat {
    fn push(&mut self, sequence: &Sequence<'_>) {
        let tokens = sequence.input_ids.len();
        let start = self.ids.len() as u32;
        assert_eq!(tokens, sequence.labels.len(), "one label a token");
        assert_eq!(
            tokens as u64,
            sequence.segments.iter().map(|&s| u64::from(s)).sum::<u64>(),
            "segments cover the row"
        );
        if self.bounds.is_empty() {
            self.bounds.push(0);
        }
        let mut borders = Vec::new();
        let mut place = 0u32;
        for &len in sequence.segments {
            self.positions.extend(0..len);
            place += len;
            borders.push(place);
            if sequence.isolated {
                self.bounds.push(start + place);
            }
        }
        if !sequence.isolated {
            self.bounds.push(start + tokens as u32);
        }
        self.ids.extend_from_slice(sequence.input_ids);
        self.places.extend(0..tokens as u32);
        self.samples.extend(std::iter::repeat_n(sequence.sample, tokens));
        self.lengths.extend(std::iter::repeat_n(tokens as u32, tokens));
        for (i, &label) in sequence.labels.iter().enumerate().skip(1) {
            let crosses = sequence.isolated && borders.contains(&(i as u32));
            if label >= 0 && !crosses {
                self.rows.push(start + i as u32 - 1);
                self.labels.push(label);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(isolated: bool) -> Flat {
        let mut flat = Flat::default();
        let (ids, labels) = ([5, 6, 7, 8, 9], [5, -100, 7, 8, 9]);
        let sequence = Sequence { input_ids: &ids, labels: &labels, segments: &[3, 2], isolated, sample: 4 };
        flat.push(&sequence);
        flat.push(&Sequence { segments: &[5], isolated: false, ..sequence });
        flat
    }

    #[test]
    fn labels_are_shifted_inside_a_row_and_never_into_the_next() {
        let open = flat(false);
        assert_eq!(open.positions, [0, 1, 2, 0, 1, 0, 1, 2, 3, 4]);
        assert_eq!(open.bounds, [0, 5, 10]);
        assert_eq!(open.rows, [1, 2, 3, 6, 7, 8]);
        assert_eq!(open.labels, [7, 8, 9, 7, 8, 9]);
        let apart = flat(true);
        assert_eq!(apart.bounds, [0, 3, 5, 10]);
        assert_eq!(apart.rows, [1, 3, 6, 7, 8]);
    }
}
