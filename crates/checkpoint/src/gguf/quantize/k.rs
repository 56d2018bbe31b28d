//! The K formats: blocks of 256 values in groups, whose scales are found by trying several and are quantised themselves.

use super::{farthest, put_half};

/// Below this a group counts as zeros.
const NOTHING: f32 = 1e-15;

/// Rounds to the nearest whole number, ties to even, by the mantissa of a large float: what ggml does, also beyond its range.
fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// A group as `scale q - min`.
struct Fitted<const N: usize> {
    scale: f32,
    min: f32,
    /// They stand in the file only where the group's scale is quantised to 0, and so are worth nothing.
    quants: [u8; N],
}

/// 32 values with q up to `largest`: of some scales around the obvious one the one whose weighted squares of errors, its
/// minimum fitted, are least. `search` is the first deviation from `largest`, the step, and the number of steps.
fn fit(values: &[f32; 32], largest: i32, search: (f32, f32, i32)) -> Fitted<32> {
    let mut squares = 0.0f32;
    for x in values {
        squares += x * x;
    }
    let mean = (squares / 32.0).sqrt();
    let weights = values.map(|x| mean + x.abs());
    let (mut min, mut max) = (values[0], values[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * values[0]);
    for (&x, &w) in values.iter().zip(&weights).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        return Fitted { scale: 0.0, min: -min, quants: [0; 32] };
    }
    let top = largest as f32;
    let quant = |x: f32, inverse: f32, min: f32| nearest(inverse * (x - min)).clamp(0, largest) as f32;
    let error = |scale: f32, min: f32, quants: &[f32; 32]| {
        let mut sum = 0.0f32;
        for i in 0..32 {
            let difference = scale * quants[i] + min - values[i];
            sum += weights[i] * (difference * difference);
        }
        sum
    };
    let obvious = top / (max - min);
    let mut scale = 1.0 / obvious;
    let mut kept = values.map(|x| quant(x, obvious, min));
    let mut best = error(scale, min, &kept);
    let (first, step, steps) = search;
    for number in 0..=steps {
        let inverse = (first + step * number as f32 + top) / (max - min);
        let quants = values.map(|x| quant(x, inverse, min));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for i in 0..32 {
            let (x, w, l) = (values[i], weights[i], quants[i]);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut tried = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut tried_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if tried_min > 0.0 {
                (tried_min, tried) = (0.0, sum_xl / sum_l2);
            }
            let found = error(tried, tried_min, &quants);
            if found < best {
                (best, scale, min, kept) = (found, tried, tried_min, quants);
            }
        }
    }
    Fitted { scale, min: -min, quants: kept.map(|q| q as u8) }
}

/// Eight groups of 32 as `d s q - dmin m`: writes d, dmin and the packed 6-bit scales, and gives the quants.
fn eight_groups(values: &[f32; 256], block: &mut [u8], largest: i32, search: (f32, f32, i32)) -> [u8; 256] {
    let groups = values.as_chunks::<32>().0;
    let fitted: [Fitted<32>; 8] = std::array::from_fn(|group| fit(&groups[group], largest, search));
    let most = |of: fn(&Fitted<32>) -> f32| fitted.iter().map(of).fold(0.0f32, |max, v| if v > max { v } else { max });
    let (max_scale, max_min) = (most(|group| group.scale), most(|group| group.min));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let d = put_half(block, 0, max_scale / 63.0);
    let dmin = put_half(block, 2, max_min / 63.0);
    let packed = &mut block[4..16];
    let mut quants = [0u8; 256];
    for (j, (fitted, group)) in fitted.iter().zip(groups).enumerate() {
        let scale = (nearest(inverse_scale * fitted.scale) as u8).min(63);
        let min = (nearest(inverse_min * fitted.min) as u8).min(63);
        if j < 4 {
            (packed[j], packed[j + 4]) = (scale, min);
        } else {
            packed[j + 4] = scale & 15 | (min & 15) << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for ((quant, x), found) in quants[32 * j..].iter_mut().zip(group).zip(fitted.quants) {
            *quant = if scale == 0.0 { found } else { nearest((x + min) / scale).clamp(0, largest) as u8 };
        }
    }
    quants
}

/// Groups of 32, `d s q - dmin m`; see [`super::super::quant`] for the order of nibbles.
pub(super) fn q4_k(values: &[f32; 256], block: &mut [u8; 144]) {
    let quants = eight_groups(values, block, 15, (-1.0, 0.1, 20));
    for (bytes, pair) in block[16..].as_chunks_mut::<32>().0.iter_mut().zip(quants.as_chunks::<64>().0) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[i] | pair[i + 32] << 4;
        }
    }
}

/// As [`q4_k`] with a fifth bit: bit `g` of 32 shared bytes belongs to group `g`.
pub(super) fn q5_k(values: &[f32; 256], block: &mut [u8; 176]) {
    let quants = eight_groups(values, block, 31, (-0.5, 0.1, 15));
    let (fifths, low) = block[16..].split_at_mut(32);
    fifths.fill(0);
    for (number, (bytes, pair)) in low.as_chunks_mut::<32>().0.iter_mut().zip(quants.as_chunks::<64>().0).enumerate() {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[i] & 15 | (pair[i + 32] & 15) << 4;
            fifths[i] |= pair[i] >> 4 << (2 * number) | pair[i + 32] >> 4 << (2 * number + 1);
        }
    }
}

/// 16 values as `scale (q - 32)` with q up to 63, of which the squares of errors, weighted by the squares of the values, are
/// least.
fn fit_signed(values: &[f32; 16]) -> Fitted<16> {
    let max = farthest(values);
    if max.abs() < NOTHING {
        return Fitted { scale: 0.0, min: 0.0, quants: [0; 16] };
    }
    let sums = |inverse: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for &x in values {
            let l = nearest(inverse * x).clamp(-32, 31) as f32;
            let w = x * x;
            sum_xl += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_xl, sum_l2)
    };
    let mut kept = -32.0 / max;
    let (sum_xl, sum_l2) = sums(kept);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = -(32.0 + 0.1 * step as f32) / max;
        let (sum_xl, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            (scale, kept) = (sum_xl / sum_l2, inverse);
            best = scale * sum_xl;
        }
    }
    Fitted { scale, min: 0.0, quants: values.map(|x| (nearest(kept * x).clamp(-32, 31) + 32) as u8) }
}

/// Groups of 16, `d s (q - 32)`.
pub(super) fn q6_k(values: &[f32; 256], block: &mut [u8; 210]) {
    block.fill(0);
    let groups = values.as_chunks::<16>().0;
    let fitted: [Fitted<16>; 16] = std::array::from_fn(|group| fit_signed(&groups[group]));
    let largest = farthest(&fitted.each_ref().map(|group| group.scale));
    if largest.abs() < NOTHING {
        return;
    }
    let inverse = -128.0 / largest;
    let d = put_half(block, 208, 1.0 / inverse);
    let mut quants = [0u8; 256];
    for (j, (fitted, group)) in fitted.iter().zip(groups).enumerate() {
        let scale = nearest(inverse * fitted.scale).min(127) as i8;
        block[192 + j] = scale as u8;
        let scale = d * f32::from(scale);
        for ((quant, x), found) in quants[16 * j..].iter_mut().zip(group).zip(fitted.quants) {
            *quant = if scale == 0.0 { found } else { (nearest(x / scale).clamp(-32, 31) + 32) as u8 };
        }
    }
    for (half, quants) in quants.as_chunks::<128>().0.iter().enumerate() {
        for i in 0..32 {
            let q = [quants[i], quants[i + 32], quants[i + 64], quants[i + 96]];
            block[64 * half + i] = q[0] & 15 | (q[2] & 15) << 4;
            block[64 * half + 32 + i] = q[1] & 15 | (q[3] & 15) << 4;
            block[128 + 32 * half + i] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
        }
    }
}
