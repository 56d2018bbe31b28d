//! CPU kernels: plain functions over slices, parallel with rayon, allocating nothing per call.
//!
//! Instructions are chosen once by what the processor has ([`level`]). Results are the same bits whatever the number
//! of threads: work is cut at fixed places, and no reduction is split by thread count. Shapes are the caller's
//! invariants and are asserted, not reported: a wrong one is a bug of the op that called, never of user input.

mod attention;
mod cross_entropy;
mod elementwise;
mod experts;
mod gemm;
mod level;
mod math;
mod norm;
mod optimizer;
mod parallel;
mod rng;
mod rope;
mod rows;
mod sample;
mod scratch;
mod swiglu;
mod vector;

pub use attention::{
    Attention, AttentionGrad, AttentionShape, attention_backward, attention_backward_workspace, attention_forward,
};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use elementwise::{
    add_assign, add_column_dots, add_column_sums, all_finite, cast, row_norms, scale, scale_columns, sum_of_squares,
};
pub use experts::{
    Route, Routed, Stack, add_gated, add_gated_backward, census, combine, combine_backward, grouped, grouped_outer,
    route, route_backward,
};
pub use gemm::{Gemm, Mat, Product, gemm};
pub use level::{Level, features, level, with_level};
pub use norm::{RmsNormGrad, rmsnorm, rmsnorm_apply, rmsnorm_backward, rmsnorm_backward_workspace};
pub use optimizer::{AdamW, AdamWState, adamw};
pub(crate) use rng::step_key;
pub use rng::{NoiseKey, add_embedding_noise, dropout, fill_normal, fill_uniform};
pub use rope::rope;
pub use rows::{gather_rows, scatter_add_rows, scatter_rows};
pub(crate) use sample::sample;
pub use scratch::scratch_bytes_per_thread;
pub use swiglu::{swiglu, swiglu_backward};

use half::{bf16, f16};

/// A slice of one of the element types that activations and weights come in.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl Data<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len(),
            Self::Bf16(s) => s.len(),
            Self::F16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A mutable slice of one of the element types.
#[derive(Debug)]
pub enum DataMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
}

impl DataMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len(),
            Self::Bf16(s) => s.len(),
            Self::F16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements, read only.
    pub fn as_ref(&self) -> Data<'_> {
        match self {
            Self::F32(s) => Data::F32(s),
            Self::Bf16(s) => Data::Bf16(s),
            Self::F16(s) => Data::F16(s),
        }
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> DataMut<'_> {
        match self {
            Self::F32(s) => DataMut::F32(s),
            Self::Bf16(s) => DataMut::Bf16(s),
            Self::F16(s) => DataMut::F16(s),
        }
    }
}

/// An element type of [`Data`], as the generic bodies of the kernels see it.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// One or two of them are a word that some kernel takes as it lies.
    const WORDS: bool;
    /// Its value.
    fn get(self) -> f32;
    /// The nearest element, ties to even.
    fn put(value: f32) -> Self;
    /// The bits of the nearest bf16.
    fn half_bits(self) -> u32;
}

impl Element for f32 {
    const WORDS: bool = true;
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn half_bits(self) -> u32 {
        round_bits(self)
    }
}

impl Element for bf16 {
    const WORDS: bool = true;
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        Self::from_bits(round_bits(value) as u16)
    }
    #[inline(always)]
    fn half_bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

impl Element for f16 {
    const WORDS: bool = false;
    #[inline(always)]
    fn get(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let size = bits & 0x7fff;
        // The exponent's bias is another, and the product makes subnormal numbers normal, exactly.
        let scaled = (f32::from_bits(size << 13) * f32::from_bits(0x7780_0000)).to_bits();
        let value = if size < 0x7c00 { scaled } else { 0x7f80_0000 | size << 13 };
        f32::from_bits((bits & 0x8000) << 16 | value)
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        let bits = value.to_bits();
        let size = bits & 0x7fff_ffff;
        let normal = (size.wrapping_add(0xfff + (size >> 13 & 1)) >> 13).wrapping_sub(112 << 10);
        // Adding a half leaves the multiple of 2^-24 in the low bits, rounded by the addition itself.
        let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let far = if size > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let value = if size < 0x3880_0000 { subnormal } else { normal };
        let value = if size >= 0x4780_0000 { far } else { value };
        Self::from_bits((bits >> 16 & 0x8000 | value) as u16)
    }
    #[inline(always)]
    fn half_bits(self) -> u32 {
        round_bits(self.get())
    }
}

/// The bits of the bf16 nearest to `value`, ties to even, NaN kept quiet: `half`'s conversion without its branch.
#[inline(always)]
pub(crate) fn round_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// Runs a generic expression on the slice inside a [`Data`] or [`DataMut`], whichever type it has.
macro_rules! by_type {
    ($x:ident: $kind:ident => $body:expr) => {
        match $x {
            $crate::cpu::$kind::F32($x) => $body,
            $crate::cpu::$kind::Bf16($x) => $body,
            $crate::cpu::$kind::F16($x) => $body,
        }
    };
}
use by_type;

/// The same for several that share one type.
macro_rules! alike {
    (($($x:ident: $kind:ident),+) => $body:expr) => {
        match ($($x),+) {
            ($($crate::cpu::$kind::F32($x)),+) => $body,
            ($($crate::cpu::$kind::Bf16($x)),+) => $body,
            ($($crate::cpu::$kind::F16($x)),+) => $body,
            _ => unreachable!("what an op reads and writes row by row shares one type"),
        }
    };
}
use alike;

/// Asks for the cache lines of `len` elements from `at` on, which may point anywhere.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..len * size_of::<T>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, len);
}

/// A pointer that tasks of one kernel call share to write disjoint parts of one slice.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: `Shared` hands out memory only through `slice`, whose callers promise disjointness; T itself is Send.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Asks for the cache lines of the elements from `start` on, `len` of them.
    #[inline]
    pub(crate) fn prefetch(&self, start: usize, len: usize) {
        prefetch(self.0.wrapping_add(start), len);
    }

    /// The elements from `start`, `len` of them.
    ///
    /// # Safety
    /// No other live reference, in any task, covers one of them, and the original slice outlives the result.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.1 && len <= self.1 - start, "task range outside its slice");
        // SAFETY: inside the slice by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_converted_as_the_standard_has_it() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            assert!(x.get().to_bits() == x.to_f32().to_bits() || x.is_nan() && x.get().is_nan(), "{bits:#x}");
            let back = f16::put(x.get());
            assert!(back.to_bits() == bits || x.is_nan() && back.is_nan(), "{bits:#x}");
        }
        // Every exponent, with mantissas around each tie.
        for high in 0..=0xffffu32 {
            for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7000, 0xefff, 0xf000, 0xf001, 0xffff] {
                let x = f32::from_bits(high << 16 | low);
                let (ours, theirs) = (f16::put(x), f16::from_f32(x));
                assert!(ours.to_bits() == theirs.to_bits() || x.is_nan() && ours.is_nan(), "{x:e}");
            }
        }
    }
}
