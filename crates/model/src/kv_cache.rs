//! Keys and values of earlier tokens of some sequences: an argument of the forward pass, not a field of a layer.

use crate::Config;
use ferrotune_tensor::ops::Continued;
use ferrotune_tensor::{DType, Device, Kind, Tensor, ops};
use std::cell::Cell;
use std::ops::Range;

/// Sequences that a cache holds, and tokens of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// At most so many at once.
    pub sequences: usize,
    /// The longest of them.
    pub tokens: usize,
}

/// Room for a number of sequences in every block of a stage.
pub struct KvCache {
    /// The block whose room is the first.
    first: usize,
    /// `[sequences * tokens, width]` each: a sequence's tokens stand together.
    layers: Vec<(Tensor, Tensor)>,
    lens: Vec<Cell<usize>>,
    capacity: Capacity,
}

impl KvCache {
    /// Allocates the room for the blocks among the segments of `span`.
    pub fn new(device: &Device, config: &Config, dtype: DType, span: Range<usize>, capacity: Capacity) -> Self {
        // The first segment is the embedding, the last one the head.
        let block = |segment: usize| segment.clamp(1, config.num_hidden_layers + 1) - 1;
        let blocks = block(span.start)..block(span.end);
        let width = config.num_key_value_heads * config.head_dim;
        let room = || device.empty([capacity.sequences * capacity.tokens, width], dtype, Kind::Act);
        let first = blocks.start;
        let layers = blocks.map(|_| (room(), room())).collect();
        Self { first, layers, lens: vec![Cell::new(0); capacity.sequences], capacity }
    }

    /// Tokens of a sequence whose pass through all blocks is over.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens[sequence].get()
    }

    /// How much it can hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Forgets all tokens of a sequence from `len` on.
    pub fn truncate(&self, sequence: usize, len: usize) {
        self.lens[sequence].set(len.min(self.len(sequence)));
    }

    /// Says that `tokens` more of a sequence have passed through all blocks.
    ///
    /// # Panics
    /// If there was no room for them.
    pub fn advance(&self, sequence: usize, tokens: usize) {
        let len = self.len(sequence) + tokens;
        assert!(len <= self.capacity.tokens, "a sequence of the cache has {} tokens", self.capacity.tokens);
        self.lens[sequence].set(len);
    }

    /// Where the keys of a sequence lie that goes on with `new` tokens.
    pub(crate) fn place(&self, sequence: usize, new: usize) -> Continued {
        let (first, total) = (sequence * self.capacity.tokens, self.len(sequence) + new);
        Continued { first: first as u32, total: total as u32, new: new as u32 }
    }

    /// Puts a block's new keys and values behind the earlier ones of their sequences, and returns the room up to the end of
    /// the last of them.
    pub(crate) fn append(&self, layer: usize, parts: &[Continued], k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let end = parts.last().map_or(0, |last| (last.first + last.total) as usize);
        let put = |room: &Tensor, rows: &Tensor| {
            let mut at = 0;
            for part in parts {
                let (behind, new) = ((part.first + part.total - part.new) as usize, part.new as usize);
                ops::copy(&room.rows(behind, new), &rows.rows(at, new));
                at += new;
            }
            room.rows(0, end)
        };
        let (keys, values) = &self.layers[layer - self.first];
        (put(keys, k), put(values, v))
    }
}
