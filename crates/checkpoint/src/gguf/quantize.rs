//! Quantisation into GGUF's block formats, bit by bit as llama.cpp does it without an importance matrix.
//!
//! Each function is the reference of ggml's `ggml-quants.c` (`quantize_row_*_ref`): sums are taken in its order in f32, roundings
//! are its own, so a file of ours equals one of `llama-quantize`. Layouts are those that [`super::quant`] decodes.

use crate::dtype::Dtype;

mod k;

/// Encodes whole blocks; `dst` holds exactly the blocks of `src`, whose values are finite.
pub(crate) fn encode(to: Dtype, src: &[f32], dst: &mut [u8]) {
    match to {
        Dtype::Q4_0 => each::<18, 32>(src, dst, q4_0),
        Dtype::Q5_0 => each::<22, 32>(src, dst, q5_0),
        Dtype::Q5_1 => each::<24, 32>(src, dst, q5_1),
        Dtype::Q8_0 => each::<34, 32>(src, dst, q8_0),
        Dtype::Q4K => each::<144, 256>(src, dst, k::q4_k),
        Dtype::Q5K => each::<176, 256>(src, dst, k::q5_k),
        Dtype::Q6K => each::<210, 256>(src, dst, k::q6_k),
        other => unreachable!("{} is refused before anything is encoded", other.name()),
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    src: &[f32],
    dst: &mut [u8],
    encode: impl Fn(&[f32; ELEMENTS], &mut [u8; BYTES]),
) {
    for (values, block) in src.as_chunks::<ELEMENTS>().0.iter().zip(dst.as_chunks_mut::<BYTES>().0) {
        encode(values, block);
    }
}

/// Writes an f16, rounded to nearest even, and gives back what it holds.
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let half = half::f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// 1 / d, or 0 where there is nothing to divide.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first of the values that are farthest from 0.
fn farthest(values: &[f32]) -> f32 {
    let mut max = 0.0f32;
    for &value in values {
        if max.abs() < value.abs() {
            max = value;
        }
    }
    max
}

/// Smallest and largest.
fn extremes(values: &[f32]) -> (f32, f32) {
    values
        .iter()
        .fold((f32::MAX, f32::MIN), |(min, max), &v| (if v < min { v } else { min }, if v > max { v } else { max }))
}

/// `d (q - 8)`, the value farthest from 0 being -8.
fn q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    let d = farthest(values) / -8.0;
    let id = inverse(d);
    put_half(block, 0, d);
    let quant = |value: f32| ((value * id + 8.5) as i8).min(15) as u8;
    for i in 0..16 {
        block[2 + i] = quant(values[i]) | quant(values[i + 16]) << 4;
    }
}

/// `d (q - 16)`, the value farthest from 0 being -16.
fn q5_0(values: &[f32; 32], block: &mut [u8; 22]) {
    let d = farthest(values) / -16.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_five_bits(values, &mut block[2..], |value| ((value * id + 16.5) as i8).min(31) as u8);
}

/// `d q + m`.
fn q5_1(values: &[f32; 32], block: &mut [u8; 24]) {
    let (min, max) = extremes(values);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, min);
    put_five_bits(values, &mut block[4..], |value| ((value - min) * id + 0.5) as u8);
}

/// A word of fifth bits, then the low four, as 16 bytes.
fn put_five_bits(values: &[f32; 32], block: &mut [u8], quant: impl Fn(f32) -> u8) {
    let mut fifths = 0u32;
    for i in 0..16 {
        let (low, high) = (quant(values[i]), quant(values[i + 16]));
        block[4 + i] = low & 15 | (high & 15) << 4;
        fifths |= u32::from(low >> 4 & 1) << i | u32::from(high >> 4 & 1) << (i + 16);
    }
    block[..4].copy_from_slice(&fifths.to_le_bytes());
}

/// `d q`, ties away from 0.
fn q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = values.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
    let id = inverse(d);
    put_half(block, 0, d);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = (value * id).round() as i8 as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What llama.cpp's `ggml_quantize_chunk` makes of blocks of every kind: random, tiny, huge, constant, of one sign, with groups
    /// of zeros, far outliers and ties.
    #[test]
    fn blocks_are_those_of_llama_cpp() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/gguf/quantised.json");
        let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let bytes = |name: &str| -> Vec<u8> {
            let hex = reference[name].as_str().unwrap();
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        let values: Vec<f32> = bytes("values").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        for kind in [Dtype::Q4_0, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
            let expected = bytes(kind.name());
            let mut found = vec![0xa5; expected.len()];
            encode(kind, &values, &mut found);
            let (elements, size) = kind.block();
            for (number, (found, expected)) in found.chunks(size).zip(expected.chunks(size)).enumerate() {
                assert_eq!(
                    found,
                    expected,
                    "{kind:?}: block {number}, of values {:?}",
                    &values[number * elements..][..4]
                );
            }
        }
    }
}
