//! Keys and values of earlier tokens of one sequence: an argument of the forward pass, not a field of a layer.

use crate::Config;
use ferrotune_tensor::{DType, Device, Kind, Tensor, ops};
use std::cell::Cell;
use std::ops::Range;

/// Room for `capacity` tokens in every block of a stage.
pub struct KvCache {
    /// The block whose room is the first.
    first: usize,
    layers: Vec<(Tensor, Tensor)>,
    len: Cell<usize>,
    capacity: usize,
}

impl KvCache {
    /// Allocates the room for the blocks among the segments of `span`.
    pub fn new(device: &Device, config: &Config, dtype: DType, span: Range<usize>, capacity: usize) -> Self {
        // The first segment is the embedding, the last one the head.
        let block = |segment: usize| segment.clamp(1, config.num_hidden_layers + 1) - 1;
        let blocks = block(span.start)..block(span.end);
        let width = config.num_key_value_heads * config.head_dim;
        let room = || device.empty([capacity, width], dtype, Kind::Act);
        let first = blocks.start;
        let layers = blocks.map(|_| (room(), room())).collect();
        Self { first, layers, len: Cell::new(0), capacity }
    }

    /// Tokens whose pass through all blocks is over.
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Whether it holds nothing yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&self, len: usize) {
        self.len.set(len.min(self.len()));
    }

    /// Says that `tokens` more have passed through all blocks.
    ///
    /// # Panics
    /// If there was no room for them.
    pub fn advance(&self, tokens: usize) {
        assert!(self.len() + tokens <= self.capacity, "the cache holds {} tokens", self.capacity);
        self.len.set(self.len() + tokens);
    }

    /// Puts a block's new keys and values behind the earlier ones and returns all of them.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let (old, new) = (self.len(), k.dims()[0]);
        let put = |room: &Tensor, rows: &Tensor| {
            ops::copy(&room.rows(old, new), rows);
            room.rows(0, old + new)
        };
        let (keys, values) = &self.layers[layer - self.first];
        (put(keys, k), put(values, v))
    }
}
