//! AdamW to the bit, and norms of gradients.

use super::common::*;
use ferrotune_ptx::Arg;
use ferrotune_tensor::cpu::{self, AdamW, AdamWState, DataMut};
use half::bf16;

const BLOCK: [u32; 3] = [256, 1, 1];

fn step(step: u64) -> AdamW {
    AdamW { rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.7 }
}

/// The scalars as the CPU kernel has them.
fn factors(s: &AdamW) -> Arg {
    let t = s.step as f64;
    let all = [
        s.grad_scale,
        (1.0 - s.rate * s.weight_decay) as f32,
        s.beta1 as f32,
        (1.0 - s.beta1) as f32,
        s.beta2 as f32,
        (1.0 - s.beta2) as f32,
        (1.0 - s.beta2.powf(t)).sqrt() as f32,
        s.eps as f32,
        (s.rate / (1.0 - s.beta1.powf(t))) as f32,
    ];
    Arg::Bytes(all.iter().flat_map(|f| f.to_le_bytes()).collect())
}

fn floats(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn adamw_has_the_bits_of_the_cpu() {
    for (of, has_master, n) in [
        (Type::F32, false, 1),
        (Type::F32, false, 1001),
        (Type::Bf16, false, 700),
        (Type::Bf16, true, 777),
        (Type::F16, true, 300),
    ] {
        let (p, g) = (values(n, 1, 1.0), values(n, 2, 0.25));
        let (m, v) = (values(n, 3, 0.25), values(n, 4, 0.5).iter().map(|v| v * v).collect::<Vec<_>>());
        let got = on_gpu(|gpu| {
            let (pa, ga) = (gpu.array(of, &p), gpu.array(Type::F32, &g));
            let (ma, va, master) = (gpu.array(Type::F32, &m), gpu.array(Type::F32, &v), gpu.array(Type::F32, &p));
            for t in [3, 4] {
                let master = if has_master { master.into() } else { NULL };
                let count = Arg::U64(n as u64);
                let args = [pa.into(), master, ga.into(), ma.into(), va.into(), count, factors(&step(t)), NULL];
                gpu.launch(&format!("adamw_{}", of.name()), blocks(n, 1), BLOCK, &args);
            }
            [pa, ma, va, master].map(|a| gpu.read(a))
        });
        let (g, mut m, mut v, mut master) = (floats(&g), floats(&m), floats(&v), floats(&p));
        let mut half: Vec<bf16> = floats(&p).iter().map(|p| bf16::from_f32(*p)).collect();
        let mut whole = floats(&p);
        for t in [3, 4] {
            let state = AdamWState { m: &mut m, v: &mut v, master: has_master.then_some(&mut master) };
            let weight = if of == Type::F32 { DataMut::F32(&mut whole) } else { DataMut::Bf16(&mut half) };
            cpu::adamw(&step(t), weight, &g, state);
        }
        let weight: Vec<f64> = match of {
            Type::F32 => doubles(&whole),
            Type::Bf16 => half.iter().map(|p| p.to_f64()).collect(),
            Type::F16 => master.iter().map(|p| Type::F16.round(f64::from(*p))).collect(),
        };
        assert_eq!(got, [weight, doubles(&m), doubles(&v), doubles(&master)], "{of:?} {n}");
    }
}

#[test]
fn a_clipping_factor_is_read_on_the_device() {
    let n = 300;
    let (p, g) = (values(n, 1, 1.0), values(n, 2, 1.0));
    // With a copy in f32 or without, each has a loop of its own for either.
    for (of, has_master) in TYPES.into_iter().flat_map(|of| [(of, false), (of, true)]) {
        let one = |clip: Option<f64>, grad_scale: f32| {
            on_gpu(|gpu| {
                let (pa, master, ga) = (gpu.array(of, &p), gpu.array(Type::F32, &p), gpu.array(Type::F32, &g));
                let [m, v] = [(); 2].map(|()| gpu.zeros(Type::F32, n));
                let clip = clip.map_or(NULL, |c| gpu.array(Type::F32, &[c]).into());
                let copy = if has_master { master.into() } else { NULL };
                let args = [pa.into(), copy, ga.into(), m.into(), v.into(), Arg::U64(n as u64)];
                let s = AdamW { grad_scale, ..step(1) };
                let name = format!("adamw_{}", of.name());
                gpu.launch(&name, blocks(n, 1), BLOCK, &[&args[..], &[factors(&s), clip]].concat());
                [pa, master, m, v].map(|a| gpu.read(a))
            })
        };
        assert_eq!(one(Some(0.5), 1.0), one(None, 0.5), "{of:?} {has_master}");
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let [weight, master, m, v] = one(Some(bad), 1.0);
            assert_eq!([weight, master], [&p, &p].map(Clone::clone), "nothing is updated");
            assert_eq!([m, v], [vec![0.0; n], vec![0.0; n]], "nothing is updated");
        }
    }
}

#[test]
fn a_norm_or_a_loss_that_isnt_finite_leaves_no_factor() {
    let factor = |sum: f64, most: f64, losses: &[f64]| {
        let got = on_gpu(|gpu| {
            let bits = sum.to_bits();
            let (total, factor) = (gpu.words(&[bits as u32, (bits >> 32) as u32]), gpu.empty(Type::F32, 1));
            let count = Arg::U32(losses.len() as u32);
            let losses = if losses.is_empty() { NULL } else { gpu.array(Type::F32, losses).into() };
            let args = [factor.into(), total, Arg::F64(0.5), Arg::F64(most), losses, count];
            gpu.launch("clip_factor", [1, 1, 1], [1, 1, 1], &args);
            // Two that are no numbers are equal here.
            gpu.raw(&factor.into(), 4)
        });
        f32::from_le_bytes(got.try_into().expect("four bytes"))
    };
    assert_eq!(factor(1e300, 0.0, &[2.0]), 1.0, "any norm");
    assert_eq!(factor(16.0, 1.0, &[2.0, 3.0]), (1.0 / (2.0 + 1e-6)) as f32);
    assert_eq!(factor(1.0, 1.0, &[]), 1.0, "already small");
    for (sum, loss) in [(f64::INFINITY, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (1.0, f64::NAN)] {
        for losses in [&[loss, 1.0][..], &[1.0, loss]] {
            assert!(factor(sum, 1.0, losses).is_nan() && factor(sum, 0.0, losses).is_nan(), "{sum} {loss}");
        }
    }
}

#[test]
fn norms_of_gradients() {
    for of in TYPES {
        for n in [1usize, 255, 65536, 65537 + 300] {
            let x = values(n, 9, 1.0);
            let parts = n.div_ceil(65536);
            let (sum, factor) = on_gpu(|gpu| {
                let xa = gpu.array(of, &x);
                let (work, total) = (Arg::U64(gpu.memory.alloc(8 * parts)), gpu.words(&[0, 0]));
                let count = Arg::U64(n as u64);
                let args = [work.clone(), xa.into(), count];
                gpu.launch(&format!("squares_{}", of.name()), [parts as u32, 1, 1], BLOCK, &args);
                let args = [total.clone(), work, Arg::U64(parts as u64)];
                gpu.launch("sum_parts", [1, 1, 1], BLOCK, &args);
                let factor = gpu.empty(Type::F32, 1);
                let args = [factor.into(), total.clone(), Arg::F64(0.5), Arg::F64(1.0), NULL, Arg::U32(0)];
                gpu.launch("clip_factor", [1, 1, 1], [1, 1, 1], &args);
                let bytes = gpu.raw(&total, 8).try_into().expect("eight bytes");
                (f64::from_le_bytes(bytes), gpu.read(factor)[0])
            });
            // Exact: squares of 8 bits.
            let want: f64 = x.iter().map(|x| x * x).sum();
            assert_eq!(sum, want, "{of:?} {n}");
            let wanted = (1.0 / (want.sqrt() * 0.5 + 1e-6)).min(1.0);
            assert!((factor - wanted).abs() < 1e-7, "{factor} {wanted}");
        }
    }
}

#[test]
fn parts_are_added_to_a_sum_by_all_warps() {
    for count in [1usize, 130, 255, 600] {
        let words = |x: f64| [x.to_bits() as u32, (x.to_bits() >> 32) as u32];
        let parts: Vec<u32> = (0..count).flat_map(|i| words((i * i + 1) as f64)).collect();
        let sum = on_gpu(|gpu| {
            let (total, parts) = (gpu.words(&words(0.5)), gpu.words(&parts));
            gpu.launch("sum_parts", [1, 1, 1], BLOCK, &[total.clone(), parts, Arg::U64(count as u64)]);
            f64::from_le_bytes(gpu.raw(&total, 8).try_into().expect("eight bytes"))
        });
        assert_eq!(sum, 0.5 + (0..count).map(|i| (i * i + 1) as f64).sum::<f64>(), "{count}");
    }
}

#[test]
fn an_infinite_element_shows_in_the_sum() {
    for bad in [f64::INFINITY, f64::NAN] {
        let finite = on_gpu(|gpu| {
            let xa = gpu.array(Type::F32, &[1.0, 3e38, bad]);
            let work = Arg::U64(gpu.memory.alloc(8));
            gpu.launch("squares_f32", [1, 1, 1], BLOCK, &[work.clone(), xa.into(), Arg::U64(3)]);
            f64::from_le_bytes(gpu.raw(&work, 8).try_into().expect("eight bytes")).is_finite()
        });
        assert!(!finite);
    }
}
