//! Dequantisation of GGUF's block formats.
//!
//! Layouts are those of ggml's `ggml-common.h` (block structures) and `ggml-quants.c` (order of
//! the values); products and sums are taken in the same order, so results are bit-identical.

use crate::dtype::Dtype;

/// Decodes whole blocks; `src` holds exactly the blocks of `dst`.
pub(crate) fn decode(from: Dtype, src: &[u8], dst: &mut [f32]) {
    match from {
        Dtype::Q4_0 => each::<18, 32>(src, dst, q4_0),
        Dtype::Q4_1 => each::<20, 32>(src, dst, q4_1),
        Dtype::Q5_0 => each::<22, 32>(src, dst, q5_0),
        Dtype::Q5_1 => each::<24, 32>(src, dst, q5_1),
        Dtype::Q8_0 => each::<34, 32>(src, dst, q8_0),
        Dtype::Q4K => each::<144, 256>(src, dst, q4_k),
        Dtype::Q5K => each::<176, 256>(src, dst, q5_k),
        Dtype::Q6K => each::<210, 256>(src, dst, q6_k),
        other => unreachable!("{} is refused before anything is read", other.name()),
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let blocks = src.as_chunks::<BYTES>().0;
    for (block, values) in blocks.iter().zip(dst.as_chunks_mut::<ELEMENTS>().0) {
        decode(block, values);
    }
}

/// The f16 at a byte offset.
fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d (q - 8)`; low nibbles are the first 16 values, high nibbles the last 16.
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = half(block, 0);
    let (low, high) = values.split_at_mut(16);
    for (i, &q) in block[2..].iter().enumerate() {
        low[i] = d * (i32::from(q & 15) - 8) as f32;
        high[i] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

/// `d q + m`.
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = values.split_at_mut(16);
    for (i, &q) in block[4..].iter().enumerate() {
        low[i] = d * f32::from(q & 15) + m;
        high[i] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of a block of 32, one a bit of a little-endian word.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d (q - 16)`, the fifth bit from a word.
fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, bits) = (half(block, 0), fifth_bits(block, 2));
    let (low, high) = values.split_at_mut(16);
    for (i, &q) in block[6..].iter().enumerate() {
        let fifth = (bits >> i << 4 & 16, bits >> (i + 16) << 4 & 16);
        low[i] = d * ((u32::from(q & 15) | fifth.0) as i32 - 16) as f32;
        high[i] = d * ((u32::from(q >> 4) | fifth.1) as i32 - 16) as f32;
    }
}

/// `d q + m`, the fifth bit from a word.
fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, bits) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    let (low, high) = values.split_at_mut(16);
    for (i, &q) in block[8..].iter().enumerate() {
        let fifth = (bits >> i << 4 & 16, bits >> (i + 16) << 4 & 16);
        low[i] = d * (u32::from(q & 15) | fifth.0) as f32 + m;
        high[i] = d * (u32::from(q >> 4) | fifth.1) as f32 + m;
    }
}

/// `d q`.
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(q as i8);
    }
}

/// Scale and minimum (6 bits each) of group `j` of 8, packed in 12 bytes: the first four groups
/// have theirs in the low 6 bits of bytes 0-3 and 4-7, the last four in the nibbles of bytes 8-11
/// with their upper two bits in the spare ones of bytes 0-7.
fn k_scale(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Groups of 32, `d s q - dmin m`; 32 bytes hold the low nibbles of one group and the high ones of
/// the next.
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (d, dmin, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    for (pair, values) in values.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let quants = &block[16 + 32 * pair..][..32];
        let (low, high) = values.split_at_mut(32);
        for (half, values) in [low, high].into_iter().enumerate() {
            let (scale, min) = k_scale(scales, 2 * pair + half);
            let (scale, min) = (d * scale, dmin * min);
            for (value, q) in values.iter_mut().zip(quants) {
                *value = scale * f32::from(q >> (4 * half) & 15) - min;
            }
        }
    }
}

/// As [`q4_k`] with a fifth bit: bit `g` of 32 shared bytes belongs to group `g`.
fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (d, dmin, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    let fifths = &block[16..48];
    for (pair, values) in values.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let quants = &block[48 + 32 * pair..][..32];
        let (low, high) = values.split_at_mut(32);
        for (half, values) in [low, high].into_iter().enumerate() {
            let group = 2 * pair + half;
            let (scale, min) = k_scale(scales, group);
            let (scale, min) = (d * scale, dmin * min);
            for ((value, q), fifth) in values.iter_mut().zip(quants).zip(fifths) {
                let q = q >> (4 * half) & 15 | (fifth >> group & 1) << 4;
                *value = scale * f32::from(q) - min;
            }
        }
    }
}

/// Groups of 16, `d s (q - 32)`. In each half of 128 values, 64 bytes hold the low four bits (two
/// runs of 32 in low nibbles, two in high ones) and 32 bytes the upper two bits of four runs.
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let d = half(block, 208);
    for (half, values) in values.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = &low[32 * (run % 2)..][..32];
            for (i, value) in values.iter_mut().enumerate() {
                let q = low[i] >> (run / 2 * 4) & 15 | (high[i] >> (2 * run) & 3) << 4;
                let scale = d * f32::from(scales[2 * run + i / 16] as i8);
                *value = scale * (i32::from(q) - 32) as f32;
            }
        }
    }
}
