//! Cross-entropy of rows of logits, and the likeliest token.

use super::common::*;
use ferrotune_ptx::Arg;
use ferrotune_tensor::cpu::{self, CrossEntropy};

const BLOCK: [u32; 3] = [256, 1, 1];

fn logits(rows: usize, vocab: usize) -> Vec<f64> {
    values(rows * vocab, 8, 16.0)
}

#[test]
fn cross_entropy_its_gradient_and_its_counts() {
    for (of, smoothing) in TYPES.into_iter().flat_map(|of| [(of, 0.0f32), (of, 0.1)]) {
        for (rows, vocab) in [(1usize, 1usize), (3, 5), (2, 257), (4, 1000)] {
            let z = logits(rows, vocab);
            let labels: Vec<i32> = (0..rows).map(|r| (r * 37 % vocab) as i32).collect();
            let scale = 0.125f32;
            let (losses, dz, sums) = on_gpu(|gpu| {
                let za = gpu.array(Type::F32, &z);
                let la = gpu.words(&labels.iter().map(|l| *l as u32).collect::<Vec<_>>());
                let dz = if of == Type::F32 { za } else { gpu.empty(of, rows * vocab) };
                let (losses, sums) = (gpu.empty(Type::F32, 2 * rows), gpu.array(Type::F32, &[1.0, 2.0, 3.0]));
                let numbers = [Arg::U32(vocab as u32), Arg::F32(scale), Arg::F32(smoothing)];
                let name = format!("cross_entropy_{}", of.name());
                let call = |gpu: &mut Gpu, dz: Arg| {
                    let args = [&[za.into(), dz, la.clone(), losses.into()][..], &numbers].concat();
                    gpu.launch(&name, [rows as u32, 1, 1], BLOCK, &args);
                    gpu.read(losses)
                };
                let without = call(gpu, NULL);
                assert_eq!(call(gpu, dz.into()), without, "losses without a gradient");
                let args = [losses.into(), Arg::U32(rows as u32), Arg::F32(scale), sums.into(), Arg::U64(sums.at + 4)];
                gpu.launch("count_losses", [1, 1, 1], [32, 1, 1], &args);
                (gpu.read(losses), gpu.read(dz), gpu.read(sums))
            });
            let (mut wanted, mut totals) = (Vec::new(), [1.0, 2.0, 3.0]);
            for (r, z) in z.chunks(vocab).enumerate() {
                let (label, e) = (labels[r] as usize, f64::from(smoothing));
                let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = z.iter().map(|z| (z - top).exp()).sum();
                let (lse, mean) = (top + total.ln(), z.iter().sum::<f64>() / vocab as f64);
                let nll = lse - z[label];
                let loss = (1.0 - e) * nll + e * (lse - mean);
                assert!((losses[2 * r] - loss).abs() < 2e-6 * (1.0 + loss), "{} {loss}", losses[2 * r]);
                assert!((losses[2 * r + 1].abs() - nll).abs() < 2e-6 * (1.0 + nll), "{} {nll}", losses[2 * r + 1]);
                assert_eq!(losses[2 * r + 1].is_sign_negative(), z[label] == top, "right guess");
                totals[0] += loss * f64::from(scale);
                totals[1] += nll;
                totals[2] += f64::from(u8::from(z[label] == top));
                wanted.extend(z.iter().enumerate().map(|(i, z)| {
                    let target = if i == label { 1.0 - e } else { 0.0 };
                    f64::from(scale) * ((z - lse).exp() - target - e / vocab as f64)
                }));
            }
            assert_near(&format!("dz {rows} x {vocab} e {smoothing}"), of, &dz, &wanted, 5e-7);
            assert_near("sums", Type::F32, &sums, &totals, 1e-6);
            // Of the losses as they are, the sums are exact but for one rounding.
            let added = |i: usize| losses.iter().skip(i).step_by(2).map(|l| l.abs()).sum::<f64>() as f32;
            assert_eq!(sums[..2], [f64::from(1.0 + added(0) * scale), f64::from(2.0 + added(1))]);
        }
    }
}

#[test]
fn losses_are_the_cpus() {
    let (rows, vocab) = (5, 700);
    let z = logits(rows, vocab);
    let mut on_cpu: Vec<f32> = z.iter().map(|z| *z as f32).collect();
    let (labels, mut losses) = ([0, 1, 2, 650, 699], vec![0f32; 2 * rows]);
    let options = CrossEntropy { vocab, smoothing: 0.05, scale: 1.0, gradient: false };
    cpu::cross_entropy(&options, &mut on_cpu, &labels, &mut losses);
    let want: Vec<f64> = losses.iter().map(|l| f64::from(*l)).collect();
    // The type is that of the gradient only.
    for of in TYPES {
        let got = on_gpu(|gpu| {
            let (za, la) = (gpu.array(Type::F32, &z), gpu.words(&labels.map(|l| l as u32)));
            let out = gpu.empty(Type::F32, 2 * rows);
            let args = [za.into(), NULL, la, out.into(), Arg::U32(vocab as u32), Arg::F32(1.0), Arg::F32(0.05)];
            gpu.launch(&format!("cross_entropy_{}", of.name()), [rows as u32, 1, 1], BLOCK, &args);
            gpu.read(out)
        });
        assert_near("losses", Type::F32, &got, &want, 2e-7);
    }
}

#[test]
fn the_largest_logit_may_be_anywhere() {
    const ROWS: usize = 16;
    const VOCAB: usize = 600;
    // Beyond what exp bears if another one were taken off: in each warp the lane that every step must hand on, on its first
    // and on its second token.
    let top = |row: usize| 32 * row + 31;
    let z: Vec<f64> = (0..ROWS * VOCAB).map(|i| if i % VOCAB == top(i / VOCAB) { 200.0 } else { -1.0 }).collect();
    for of in TYPES {
        let got = on_gpu(|gpu| {
            let (za, la, dz) = (gpu.array(Type::F32, &z), gpu.words(&[599; ROWS]), gpu.empty(of, ROWS * VOCAB));
            let out = gpu.empty(Type::F32, 2 * ROWS);
            let args = [za.into(), dz.into(), la, out.into(), Arg::U32(VOCAB as u32), Arg::F32(1.0), Arg::F32(0.0)];
            gpu.launch(&format!("cross_entropy_{}", of.name()), [ROWS as u32, 1, 1], BLOCK, &args);
            [gpu.read(out), gpu.read(dz)]
        });
        assert_eq!(got[0], [201.0; 2 * ROWS], "{of:?}");
        let gradient = |i: usize| match i % VOCAB {
            599 => -1.0,
            at if at == top(i / VOCAB) => 1.0,
            _ => 0.0,
        };
        assert_eq!(got[1], (0..ROWS * VOCAB).map(gradient).collect::<Vec<_>>(), "{of:?}");
    }
}

#[test]
fn a_sum_of_any_size_has_its_logarithm() {
    const ROWS: usize = 24;
    // Two tokens: sums from 1 to 2, so every part of the logarithm's polynomial.
    let less = |row: usize| row as f64 / 8.0;
    let z: Vec<f64> = (0..2 * ROWS).map(|i| if i % 2 == 0 { 0.0 } else { -less(i / 2) }).collect();
    let want: Vec<f64> = (0..2 * ROWS).map(|i| (-less(i / 2)).exp().ln_1p() * [1.0, -1.0][i % 2]).collect();
    for of in TYPES {
        let got = on_gpu(|gpu| {
            let (za, la, out) = (gpu.array(Type::F32, &z), gpu.words(&[0; ROWS]), gpu.empty(Type::F32, 2 * ROWS));
            let args = [za.into(), NULL, la, out.into(), Arg::U32(2), Arg::F32(1.0), Arg::F32(0.0)];
            gpu.launch(&format!("cross_entropy_{}", of.name()), [ROWS as u32, 1, 1], BLOCK, &args);
            gpu.read(out)
        });
        assert_near("losses", Type::F32, &got, &want, 3e-7);
    }
}

#[test]
fn the_first_of_the_likeliest_tokens() {
    for vocab in [1usize, 2, 255, 1030] {
        let mut z = logits(4, vocab);
        let top = |row: usize, at: usize, z: &mut Vec<f64>| z[row * vocab + at % vocab] = 99.0;
        top(0, 0, &mut z);
        top(1, vocab - 1, &mut z);
        top(2, 700, &mut z);
        top(2, 300, &mut z);
        z[3 * vocab..].fill(f64::NEG_INFINITY);
        let got = on_gpu(|gpu| {
            let (za, out) = (gpu.array(Type::F32, &z), gpu.words(&[9; 4]));
            gpu.launch("argmax", [4, 1, 1], BLOCK, &[za.into(), out.clone(), Arg::U32(vocab as u32)]);
            gpu.raw(&out, 16)
        });
        let got: Vec<usize> = got.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
        assert_eq!(got, [0, vocab - 1, (700 % vocab).min(300 % vocab), 0], "{vocab}");
    }
}
