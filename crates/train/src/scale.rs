//! The loss scale of `fp16: true`, as torch's `GradScaler` has it: gradients in half precision vanish below 2^-24 and overflow
//! above 65504, so the loss is multiplied by as much as its gradients bear, and they are divided by it before the update.
//!
//! Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>. A step whose gradients overflow is skipped: weights, moments
//! and the learning rate stay, and the scale is halved. After [`INTERVAL`] steps in a row without one it is doubled.

use serde::{Deserialize, Serialize};

/// The scale of a run's first step.
const FIRST: f32 = 65536.0;
/// What the scale is multiplied by when it may grow, and when it must shrink.
const GROWTH: f32 = 2.0;
const BACKOFF: f32 = 0.5;
/// Steps in a row without an overflow after which the scale grows.
const INTERVAL: u32 = 2000;
/// 2^-24, the smallest number of half precision: what overflows with such a scale isn't the scale's fault.
const LEAST: f32 = 5.960_464_5e-8;

/// A run's loss scale; part of its state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The loss is multiplied by it.
    pub scale: f32,
    /// Steps in a row without an overflow.
    pub good: u32,
    /// Steps that were skipped: AdamW and the learning rate don't count them.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: FIRST, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// After a step whose gradients were all finite.
    pub(crate) fn taken(&mut self) {
        self.good += 1;
        if self.good == INTERVAL {
            // torch keeps the old scale where the new one would be infinite.
            let grown = self.scale * GROWTH;
            self.scale = if grown.is_finite() { grown } else { self.scale };
            self.good = 0;
        }
    }

    /// After a step that was skipped.
    pub(crate) fn overflowed(&mut self) {
        self.scale *= BACKOFF;
        self.good = 0;
        self.skipped += 1;
    }

    /// Whether a smaller scale may help where gradients overflow.
    pub(crate) fn may_shrink(&self) -> bool {
        self.scale > LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch 2's `GradScaler` says after each of these steps: an overflow halves, 2000 good ones in a row double.
    #[test]
    fn the_scale_goes_as_torchs() {
        let mut scale = LossScale::default();
        scale.overflowed();
        scale.overflowed();
        assert_eq!(scale, LossScale { scale: 16384.0, good: 0, skipped: 2 });
        for _ in 0..1999 {
            scale.taken();
        }
        assert_eq!(scale, LossScale { scale: 16384.0, good: 1999, skipped: 2 });
        scale.overflowed();
        assert_eq!(scale, LossScale { scale: 8192.0, good: 0, skipped: 3 }, "the row is broken");
        for _ in 0..2000 {
            scale.taken();
        }
        assert_eq!(scale, LossScale { scale: 16384.0, good: 0, skipped: 3 });
    }

    #[test]
    fn the_scale_has_ends() {
        let mut scale = LossScale { scale: f32::MAX, good: INTERVAL - 1, skipped: 0 };
        scale.taken();
        assert_eq!(scale, LossScale { scale: f32::MAX, good: 0, skipped: 0 });
        let mut scale = LossScale::default();
        while scale.may_shrink() {
            scale.overflowed();
        }
        assert_eq!((scale.scale, scale.skipped), (LEAST, 40), "from 2^16 to 2^-24");
    }
}
