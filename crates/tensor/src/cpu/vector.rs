//! The few vector operations from which the matrix kernels are built, one implementation per instruction set.
//!
//! Operands are seen as 32-bit words: one f32, or two neighbouring bf16 along the reduction. [`Vector::fma`] then adds
//! one or two products per lane, and kernels, packing and blocking are written once for both.

use super::math::{MulAdd, Native};

/// A register of f32 lanes and what a word of its operands means.
pub(crate) trait Vector: Copy + 'static {
    /// The register.
    type Reg: Copy;
    /// f32 lanes (and operand words) per register.
    const LANES: usize;
    /// Rows of the largest register tile, and its columns in registers. A tile, a register of A and `NV` of B must leave a
    /// register to spare: where they took all sixteen of AVX2 (4 x 3), the compiler moved accumulators through memory and
    /// the loop ran at a third of its speed.
    const MR: usize;
    /// Columns of the largest register tile, in registers.
    const NV: usize;
    /// Elements of the reduction in one word.
    const PER_WORD: usize;

    /// All lanes zero.
    ///
    /// # Safety
    /// Here and below: the processor supports the instruction set; pointers cover the lanes they name.
    unsafe fn zero() -> Self::Reg;
    /// `LANES` accumulators.
    unsafe fn load(from: *const f32) -> Self::Reg;
    /// Stores `LANES` accumulators.
    unsafe fn store(to: *mut f32, value: Self::Reg);
    /// `LANES` operand words.
    unsafe fn words(from: *const u32) -> Self::Reg;
    /// The first `elements` (of the type a word is made of) of `LANES` operand words, zero after them.
    unsafe fn partial(from: *const u32, elements: usize) -> Self::Reg;
    /// `LANES` operand words widened from bf16 at `from`, the first `elements` of them; f32 operands only.
    unsafe fn widened(from: *const u16, elements: usize) -> Self::Reg;
    /// One word in every lane.
    unsafe fn splat(from: *const u32) -> Self::Reg;
    /// `a * b + c` for each lane, with the two products of a bf16 pair.
    unsafe fn fma(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;
    /// Sum of the lanes, in a fixed order.
    unsafe fn sum(value: Self::Reg) -> f32;
}

/// f32 with whatever the target guarantees, vectorised by the compiler.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Vector for Portable {
    type Reg = [f32; 4];
    const LANES: usize = 4;
    const MR: usize = 4;
    const NV: usize = 3;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's pointer covers the lanes.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; 4]) {
        // SAFETY: the caller's pointer covers the lanes.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> [f32; 4] {
        // SAFETY: the caller's pointer covers the lanes.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn partial(from: *const u32, elements: usize) -> [f32; 4] {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(elements) {
            // SAFETY: only named elements are read.
            *lane = f32::from_bits(unsafe { from.add(i).read_unaligned() });
        }
        lanes
    }
    #[inline(always)]
    unsafe fn widened(from: *const u16, elements: usize) -> [f32; 4] {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(elements) {
            // SAFETY: only named elements are read.
            *lane = f32::from_bits(u32::from(unsafe { *from.add(i) }) << 16);
        }
        lanes
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> [f32; 4] {
        // SAFETY: the caller's pointer covers one word.
        [f32::from_bits(unsafe { from.read_unaligned() }); 4]
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| Native::mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Bf16Pairs};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// The operations that a register's width alone decides: zero, load, store and one value in every lane.
    macro_rules! moves {
        ($reg:ty, $zero:ident, $load:ident, $store:ident, $all:ident) => {
            type Reg = $reg;

            #[inline(always)]
            unsafe fn zero() -> $reg {
                // SAFETY: here and below, the trait's contract.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> $reg {
                // SAFETY: the trait's contract.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, value: $reg) {
                // SAFETY: the trait's contract.
                unsafe { $store(to, value) }
            }
            #[inline(always)]
            unsafe fn words(from: *const u32) -> $reg {
                // SAFETY: the trait's contract.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn splat(from: *const u32) -> $reg {
                // SAFETY: the trait's contract.
                unsafe { $all(from.cast::<f32>().read_unaligned()) }
            }
        };
    }

    /// f32 with AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const MR: usize = 6;
        const NV: usize = 2;
        const PER_WORD: usize = 1;

        moves!(__m256, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps);
        #[inline(always)]
        unsafe fn partial(from: *const u32, elements: usize) -> __m256 {
            let mut lanes = [0u32; 8];
            // SAFETY: only named elements are read, at most eight.
            unsafe {
                from.copy_to_nonoverlapping(lanes.as_mut_ptr(), elements.min(8));
                _mm256_loadu_ps(lanes.as_ptr().cast())
            }
        }
        #[inline(always)]
        unsafe fn widened(from: *const u16, elements: usize) -> __m256 {
            // SAFETY: only named elements are read, at most eight.
            unsafe {
                let half = if elements >= 8 {
                    _mm_loadu_si128(from.cast())
                } else {
                    let mut lanes = [0u16; 8];
                    from.copy_to_nonoverlapping(lanes.as_mut_ptr(), elements);
                    _mm_loadu_si128(lanes.as_ptr().cast())
                };
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            // SAFETY: the trait's contract.
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
    }

    /// f32 with AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const MR: usize = 8;
        const NV: usize = 3;
        const PER_WORD: usize = 1;

        moves!(__m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps);
        #[inline(always)]
        unsafe fn partial(from: *const u32, elements: usize) -> __m512 {
            // SAFETY: masked lanes are not read.
            unsafe { _mm512_maskz_loadu_ps(low_bits(elements) as u16, from.cast()) }
        }
        #[inline(always)]
        unsafe fn widened(from: *const u16, elements: usize) -> __m512 {
            // SAFETY: masked lanes are not read.
            unsafe {
                let half = _mm256_maskz_loadu_epi16(low_bits(elements) as u16, from.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: the trait's contract; AVX-512 implies AVX2.
            unsafe {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
                Avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }
    }

    /// Pairs of bf16 with `vdpbf16ps`.
    #[derive(Clone, Copy)]
    pub(crate) struct Bf16Pairs;

    impl Vector for Bf16Pairs {
        const LANES: usize = 16;
        const MR: usize = 8;
        const NV: usize = 3;
        const PER_WORD: usize = 2;

        moves!(__m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps);
        #[inline(always)]
        unsafe fn partial(from: *const u32, elements: usize) -> __m512 {
            // SAFETY: masked lanes are not read.
            unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(low_bits(elements), from.cast())) }
        }
        #[inline(always)]
        unsafe fn widened(from: *const u16, elements: usize) -> __m512 {
            // Words are bf16 already: nothing to widen.
            // SAFETY: masked lanes are not read.
            unsafe { Self::partial(from.cast(), elements) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the trait's contract; the registers hold the same bits under either type.
            unsafe { _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: the trait's contract.
            unsafe { Avx512::sum(v) }
        }
    }

    /// A mask of the `n` lowest bits, all 32 from `n` = 32 on.
    #[inline(always)]
    fn low_bits(n: usize) -> u32 {
        if n >= 32 { u32::MAX } else { (1u32 << n) - 1 }
    }
}
