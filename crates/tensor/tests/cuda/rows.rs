//! Rows by index, dropout and noise.

use super::common::*;
use ferrotune_ptx::Arg;
use ferrotune_tensor::cpu::{self, Data, DataMut, NoiseKey};

const BLOCK: [u32; 3] = [256, 1, 1];

#[test]
fn rows_go_there_and_back() {
    let types = [
        (Type::F32, Type::F32),
        (Type::Bf16, Type::Bf16),
        (Type::F16, Type::F16),
        (Type::F32, Type::Bf16),
        (Type::F32, Type::F16),
    ];
    for (from, to) in types {
        for (width, index) in [(1, vec![0]), (33, vec![4, 0, 2]), (300, vec![3, 1, 0, 2])] {
            let table = values(5 * width, 1, 1.0).iter().map(|x| x * 1.1).collect::<Vec<_>>();
            let table: Vec<f64> = table.iter().map(|x| from.round(*x)).collect();
            let (rows, back) = on_gpu(|gpu| {
                let (ta, ia) = (gpu.array(from, &table), gpu.words(&index));
                let (rows, back) = (gpu.empty(to, index.len() * width), gpu.zeros(to, 5 * width));
                let grid = [index.len() as u32, 1, 1];
                let name = format!("{}_{}", from.name(), to.name());
                let args = [rows.into(), ta.into(), ia.clone(), Arg::U32(width as u32)];
                gpu.launch(&format!("gather_rows_{name}"), grid, BLOCK, &args);
                let args = [back.into(), ta.into(), ia, Arg::U32(width as u32)];
                gpu.launch(&format!("scatter_rows_{name}"), grid, BLOCK, &args);
                (gpu.read(rows), gpu.read(back))
            });
            let mut want = vec![0.0; 5 * width];
            for (i, &at) in index.iter().enumerate() {
                for c in 0..width {
                    assert_eq!(rows[i * width + c], to.round(table[at as usize * width + c]), "{from:?} {to:?}");
                    want[at as usize * width + c] = to.round(table[i * width + c]);
                }
            }
            assert_eq!(back, want, "{from:?} {to:?} {width}");
        }
    }
}

#[test]
fn the_gradient_of_an_embedding_is_added_in_order_of_tokens() {
    for of in TYPES {
        for (rows, width, vocab) in [(1usize, 5usize, 1u32), (40, 3, 7), (600, 2, 5), (300, 270, 299)] {
            let index: Vec<u32> = (0..rows as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
            // Many bits, so that another order gives other sums.
            let grad: Vec<f64> = values(rows * width, 3, 1.0).iter().map(|x| of.round(x * 0.37 + 0.011)).collect();
            let start = values(vocab as usize * width, 4, 1.0);
            let got = on_gpu(|gpu| {
                let (to, from, ia) = (gpu.array(Type::F32, &start), gpu.array(of, &grad), gpu.words(&index));
                let args = [to.into(), from.into(), ia, Arg::U32(rows as u32), Arg::U32(width as u32)];
                gpu.launch(&format!("scatter_add_rows_{}", of.name()), [rows as u32, 1, 1], BLOCK, &args);
                gpu.read(to)
            });
            let mut want: Vec<f32> = start.iter().map(|x| *x as f32).collect();
            let grad: Vec<f32> = grad.iter().map(|x| *x as f32).collect();
            cpu::scatter_add_rows(Data::F32(&grad), &index, &mut want, width);
            assert_eq!(got, want.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), "{of:?} {rows} x {width}");
        }
    }
}

/// The two words that the CPU kernel derives from seed and step, found by the reference implementation below.
fn derived(seed: u64, step: u64) -> [u32; 2] {
    let words = philox([step as u32, (step >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    [words[0], words[1]]
}

fn philox(mut x: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (u64::from(x[0]) * 0xD251_1F53, u64::from(x[2]) * 0xCD9E_8D57);
        x = [(b >> 32) as u32 ^ x[1] ^ k[0], b as u32, (a >> 32) as u32 ^ x[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    x
}

fn noise(gpu: &mut Gpu, (seed, step, site): (u64, u64, u32), samples: &[u32], positions: &[u32]) -> Arg {
    let [k0, k1] = derived(seed, step);
    let mut bytes: Vec<u8> = [k0, k1, site, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    for list in [samples, positions] {
        let Arg::U64(at) = gpu.words(list) else { unreachable!("words have an address") };
        bytes.extend(at.to_le_bytes());
    }
    Arg::Bytes(bytes)
}

#[test]
fn dropout_and_noise_are_the_cpus() {
    let key = (0x0123_4567_89ab_cdef, 41, 7);
    let (samples, positions, lengths) = ([3u32, 3, 900_000], [0u32, 1, 70], [2u32, 2, 71]);
    for of in TYPES {
        for width in [1usize, 63, 64, 65, 300] {
            let x: Vec<f64> = values(3 * width, 5, 1.0);
            let (p, alpha) = (0.25f32, 5.0f32);
            let (dropped, noised) = on_gpu(|gpu| {
                let (xa, y) = (gpu.array(of, &x), gpu.empty(of, 3 * width));
                let n = noise(gpu, key, &samples, &positions);
                let args =
                    [xa.into(), y.into(), Arg::U32(width as u32), Arg::F32(p), Arg::F32(1.0 / (1.0 - p)), n.clone()];
                gpu.launch(&format!("dropout_{}", of.name()), [3, 1, 1], BLOCK, &args);
                let la = gpu.words(&lengths);
                let args = [xa.into(), Arg::U32(width as u32), Arg::F32(alpha), la, n];
                gpu.launch(&format!("embedding_noise_{}", of.name()), [3, 1, 1], BLOCK, &args);
                (gpu.read(y), gpu.read(xa))
            });
            let plain: Vec<f32> = x.iter().map(|x| *x as f32).collect();
            let cpu_key = NoiseKey { seed: key.0, step: key.1, site: key.2, samples: &samples, positions: &positions };
            let (mut y, mut z) = (vec![0f32; 3 * width], plain.clone());
            cpu::dropout(Data::F32(&plain), DataMut::F32(&mut y), width, p, &cpu_key);
            cpu::add_embedding_noise(DataMut::F32(&mut z), width, alpha, &lengths, &cpu_key);
            let round = |v: &[f32]| v.iter().map(|v| of.round(f64::from(*v))).collect::<Vec<_>>();
            assert_eq!(dropped, round(&y), "{of:?} {width}");
            assert_eq!(noised, round(&z), "{of:?} {width}");
        }
    }
}
