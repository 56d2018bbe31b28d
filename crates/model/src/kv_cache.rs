//! Keys and values of earlier tokens of one sequence: an argument of the forward pass, not a field of a layer.

use crate::Config;
use ferrotune_tensor::{DType, Device, Kind, Tensor, ops};
use std::cell::Cell;

/// Room for `capacity` tokens in every block.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: Cell<usize>,
    capacity: usize,
}

impl KvCache {
    /// Allocates the room.
    pub fn new(device: &Device, config: &Config, dtype: DType, capacity: usize) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let room = || device.empty([capacity, width], dtype, Kind::Act);
        let layers = (0..config.num_hidden_layers).map(|_| (room(), room())).collect();
        Self { layers, len: Cell::new(0), capacity }
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
        let (keys, values) = &self.layers[layer];
        (put(keys, k), put(values, v))
    }
}
