//! Transposition of 32-bit words in registers: packing a row-major weight for `x W^T` is nothing else.

use super::super::Level;

/// Writes `dst[p * width + r] = src[r * stride + p]` for `rows` rows of `words` words.
///
/// # Safety
/// `src` covers `rows` rows of `words` words, `stride` bytes apart; `dst` covers `words` rows of `width` words and
/// `width >= rows`; the processor supports `level`.
pub(super) unsafe fn transpose(level: Level, src: Words, rows: usize, words: usize, dst: *mut u32, width: usize) {
    // SAFETY: the caller's contract; each level's function covers the part that is a multiple of its block.
    unsafe {
        let done = match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => x86::blocks16(src, rows, words, dst, width),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::blocks8(src, rows, words, dst, width),
            _ => (0, 0),
        };
        for r in 0..rows {
            let first = if r < done.0 { done.1 } else { 0 };
            for p in first..words {
                *dst.add(p * width + r) = src.at(r, p).read_unaligned();
            }
        }
    }
}

/// Rows of words in memory, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// The first word.
    pub(super) start: *const u8,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
}

impl Words {
    #[inline(always)]
    unsafe fn at(self, row: usize, word: usize) -> *const u32 {
        // SAFETY: inside the rows by the caller's contract.
        unsafe { self.start.add(row * self.stride + word * 4).cast() }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Words;
    use std::arch::x86_64::*;

    /// Bytes of a row that are fetched ahead: sixteen rows at a time are more streams than hardware follows.
    const AHEAD: usize = 512;

    /// Transposes all whole 16 x 16 blocks; returns the rows and words covered.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn blocks16(s: Words, rows: usize, words: usize, dst: *mut u32, width: usize) -> (usize, usize) {
        let done = (rows & !15, words & !15);
        for r in (0..done.0).step_by(16) {
            for p in (0..done.1).step_by(16) {
                // SAFETY: the block lies inside both operands; a prefetch may point anywhere.
                unsafe {
                    for i in 0..16 {
                        _mm_prefetch::<_MM_HINT_T0>(s.at(r + i, p).wrapping_byte_add(AHEAD).cast());
                    }
                    block16(s, (r, p), dst.add(p * width + r), width);
                }
            }
        }
        done
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn block16(s: Words, (r, p): (usize, usize), dst: *mut u32, width: usize) {
        // SAFETY: sixteen words of sixteen rows exist from (r, p), and sixteen rows of sixteen words at `dst`.
        unsafe {
            let mut x = [_mm512_setzero_ps(); 16];
            for (i, v) in x.iter_mut().enumerate() {
                *v = _mm512_loadu_ps(s.at(r + i, p).cast());
            }
            let mut y = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            // x[4g + c] holds column c of each 128-bit lane for rows 4g..4g+4.
            for g in 0..4 {
                for h in 0..2 {
                    let (a, b) = (_mm512_castps_pd(y[4 * g + h]), _mm512_castps_pd(y[4 * g + 2 + h]));
                    x[4 * g + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    x[4 * g + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for c in 0..4 {
                let t0 = _mm512_shuffle_f32x4::<0x88>(x[c], x[4 + c]);
                let t1 = _mm512_shuffle_f32x4::<0xdd>(x[c], x[4 + c]);
                let t2 = _mm512_shuffle_f32x4::<0x88>(x[8 + c], x[12 + c]);
                let t3 = _mm512_shuffle_f32x4::<0xdd>(x[8 + c], x[12 + c]);
                let to = |lane: usize| dst.add((4 * lane + c) * width).cast::<f32>();
                _mm512_storeu_ps(to(0), _mm512_shuffle_f32x4::<0x88>(t0, t2));
                _mm512_storeu_ps(to(1), _mm512_shuffle_f32x4::<0x88>(t1, t3));
                _mm512_storeu_ps(to(2), _mm512_shuffle_f32x4::<0xdd>(t0, t2));
                _mm512_storeu_ps(to(3), _mm512_shuffle_f32x4::<0xdd>(t1, t3));
            }
        }
    }

    /// Transposes all whole 8 x 8 blocks; returns the rows and words covered.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn blocks8(s: Words, rows: usize, words: usize, dst: *mut u32, width: usize) -> (usize, usize) {
        let done = (rows & !7, words & !7);
        for p in (0..done.1).step_by(8) {
            for r in (0..done.0).step_by(8) {
                // SAFETY: the block lies inside both operands.
                unsafe { block8(s, (r, p), dst.add(p * width + r), width) };
            }
        }
        done
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn block8(s: Words, (r, p): (usize, usize), dst: *mut u32, width: usize) {
        // SAFETY: eight words of eight rows exist from (r, p), and eight rows of eight words at `dst`.
        unsafe {
            let mut x = [_mm256_setzero_ps(); 8];
            for (i, v) in x.iter_mut().enumerate() {
                *v = _mm256_loadu_ps(s.at(r + i, p).cast());
            }
            // q[g][c] holds column c of each 128-bit half for rows 4g..4g+4.
            let mut q = [[_mm256_setzero_ps(); 4]; 2];
            for (g, q) in q.iter_mut().enumerate() {
                let x = &x[4 * g..4 * g + 4];
                let (l0, h0) = (_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
                let (l1, h1) = (_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
                q[0] = _mm256_shuffle_ps::<0x44>(l0, l1);
                q[1] = _mm256_shuffle_ps::<0xee>(l0, l1);
                q[2] = _mm256_shuffle_ps::<0x44>(h0, h1);
                q[3] = _mm256_shuffle_ps::<0xee>(h0, h1);
            }
            for (c, (&low, &high)) in q[0].iter().zip(&q[1]).enumerate() {
                let to = |p: usize| dst.add(p * width).cast::<f32>();
                _mm256_storeu_ps(to(c), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(to(4 + c), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }
}
