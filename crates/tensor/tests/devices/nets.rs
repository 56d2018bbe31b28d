//! Each op forward and backward.
//!
//! Tolerances: the kernels are held to f64 references in `tests/cuda`. Here both sides compute in f32 from the same inputs, sums
//! of at most a few hundred terms in different orders: 2e-6 of the largest value. With bf16 activations each of a net's few
//! roundings costs 2^-9 of the largest.

use super::gpus::{pooled, strict};
use super::support::{Weights, lora, noise, random};
use ferrotune_tensor::ops::{self, Heads, Linear, Rotary, Spans, Targets};
use ferrotune_tensor::{DType, Device, Kind, Segment, Tape, Tensor, Track, Var};
use std::rc::Rc;

pub(crate) type Net = Box<dyn Fn(&Tape<'_>, Var) -> Var>;

/// Builds a net of parameters that `Weights` has, for activations of a type.
type Build<'a> = dyn Fn(&mut Weights, DType) -> Net + 'a;

/// The output, all gradients, what was counted.
fn outcome(device: &Device, [tokens, width]: [usize; 2], of: DType, build: &Build<'_>) -> (Vec<Vec<f32>>, Track) {
    let mut w = Weights::new(device);
    let x = w.add([tokens, width], true);
    let net = build(&mut w, of);
    let ids = Tensor::from_u32(device, &(0..tokens as u32).rev().collect::<Vec<_>>(), Kind::Input);
    let tape = Tape::new(device, &w, &|_: Segment| false);
    let y = net(&tape, ops::embedding(&tape, &ids, &x, of));
    let seed = y.value.empty_like(Kind::ActGrad);
    let values = if seed.numel() == 1 { vec![1.0] } else { random(seed.numel(), 9) };
    seed.write_f32(&values);
    let value = y.value.clone();
    tape.backward(&y, seed, None);
    let mut all = vec![value.to_f32()];
    all.extend(w.values.iter().map(|(_, _, gradient)| gradient.to_f32()));
    drop(value);
    (all, device.track())
}

pub(crate) fn near(got: &[Vec<f32>], want: &[Vec<f32>], slack: f32) {
    for (number, (got, want)) in got.iter().zip(want).enumerate() {
        let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!(
                (g - w).abs() <= slack * largest.max(1e-3),
                "result {number} at {i}: {g}, the CPU has {w} of {largest}"
            );
        }
        assert_eq!(got.len(), want.len());
    }
}

/// The net on a CPU and on three GPUs: two orders of work with tensors apart, one with a heap.
pub(crate) fn check(sizes: [usize; 2], of: DType, slack: f32, build: &Build<'_>) {
    let (want, _) = outcome(&Device::cpu(), sizes, of, build);
    let gpus = [strict("seed=1"), strict("seed=5"), pooled("seed=9")];
    let (first, track) = outcome(&gpus[0], sizes, of, build);
    let anywhere = |track: &Track| Track { extent: 0, ..track.clone() };
    let mut laid_out = track.clone();
    for gpu in &gpus[1..] {
        let (again, counted) = outcome(gpu, sizes, of, build);
        assert!(first == again, "the order of work changes no bit");
        assert_eq!(anywhere(&track), anywhere(&counted));
        laid_out = counted;
    }
    gpus.iter().for_each(|gpu| assert_eq!(gpu.check(), Ok(())));
    near(&first, &want, slack);
    let (_, predicted) = outcome(&Device::imitating(ferrotune_tensor::Profile::Cuda), sizes, of, build);
    assert_eq!(laid_out, predicted, "meta of a GPU counts what it allocates, and lays it out alike");
}

pub(crate) const F32: f32 = 2e-6;
pub(crate) const BF16: f32 = 6.0 / 256.0;
const F16: f32 = BF16 / 8.0;

pub(crate) fn both(sizes: [usize; 2], build: &Build<'_>) {
    check(sizes, DType::F32, F32, build);
    check(sizes, DType::Bf16, BF16, build);
}

#[test]
fn linear_layers() {
    for (tokens, inputs, out) in [(1, 5, 3), (7, 33, 18), (40, 16, 65)] {
        both([tokens, inputs], &|w, _| {
            let layer = Linear { weight: w.add([out, inputs], true), bias: Some(w.add([out], true)), lora: None };
            Box::new(move |t, x| ops::linear(t, &layer, &x, None))
        });
    }
}

#[test]
fn adapters() {
    for (tokens, dropout) in [(7, 0.0), (9, 0.4)] {
        both([tokens, 33], &|w, of| {
            let weight = w.add_as([18, 33], of, false);
            let layer = Linear { weight, bias: None, lora: Some(lora(w, 18, 33, 8, dropout, false)) };
            let keys = noise(&w.device, tokens, 0.0);
            Box::new(move |t, x| ops::linear(t, &layer, &x, Some(&keys)))
        });
    }
    both([6, 9], &|w, of| {
        let weight = w.add_as([5, 9], of, false);
        let layer = Linear { weight, bias: Some(w.add([5], true)), lora: Some(lora(w, 5, 9, 2, 0.0, true)) };
        Box::new(move |t, x| ops::linear(t, &layer, &x, None))
    });
}

#[test]
fn norms_and_rotation() {
    for (tokens, width) in [(1, 8), (9, 24), (70, 700)] {
        both([tokens, width], &|w, _| {
            let norm = w.add([width], true);
            Box::new(move |t, x| ops::rmsnorm(t, &x, &norm, 1e-5))
        });
    }
    for frozen in [true, false] {
        both([9, 32], &|w, of| {
            let heads = w.add_as([16], if frozen { of } else { DType::F32 }, !frozen);
            let angles = random(9 * 8, 5);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos() * 1.1, a.sin() * 1.1)).unzip();
            let rotary = Rotary::new(&w.device, &cos, &sin, 16);
            Box::new(move |t, x| ops::rope(t, ops::rmsnorm(t, &x, &heads, 1e-5), &rotary, 16))
        });
    }
}

/// The fused kernel, beside the processor's two; also where there are more heads than blocks.
#[test]
fn heads_normalised_and_rotated_at_once() {
    for (tokens, heads, head_dim, frozen) in
        [(1, 1, 8, true), (9, 2, 16, false), (9, 3, 256, true), (300, 30, 8, false), (300, 30, 8, true)]
    {
        both([tokens, heads * head_dim], &|w, of| {
            let weight = w.add_as([head_dim], if frozen { of } else { DType::F32 }, !frozen);
            let angles = random(tokens * head_dim / 2, 5);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos() * 1.1, a.sin() * 1.1)).unzip();
            let rotary = Rotary::new(&w.device, &cos, &sin, head_dim);
            Box::new(move |t, x| ops::norm_rope(t, &x, &weight, 1e-5, &rotary))
        });
    }
}

#[test]
fn swiglu_and_sums() {
    both([9, 24], &|w, _| {
        let mut layer = |out| Linear { weight: w.add([out, 24], true), bias: None, lora: None };
        let (gate, up, down) = (layer(24), layer(24), layer(24));
        Box::new(move |t, x| {
            let of = |layer: &Linear, x: &Var| ops::linear(t, layer, x, None);
            let inner = ops::swiglu(t, &of(&gate, &x), &of(&up, &x));
            ops::add(t, &x, of(&down, &inner))
        })
    });
}

/// q, k and v of one input.
fn attends(bounds: &[u32], shape: Heads) -> impl Fn(&mut Weights, DType) -> Net + use<> {
    let bounds = bounds.to_vec();
    move |w, _| {
        let mut layer = |h: usize| Linear { weight: w.add([h * shape.head_dim, 12], true), bias: None, lora: None };
        let (q, k, v) = (layer(shape.heads), layer(shape.kv_heads), layer(shape.kv_heads));
        let spans = Rc::new(Spans::causal(bounds.clone()));
        Box::new(move |t, x| {
            let of = |layer: &Linear| ops::linear(t, layer, &x, None);
            ops::attention(t, &of(&q), &of(&k), &of(&v), &spans, shape)
        })
    }
}

#[test]
fn attention() {
    let heads = |heads, kv_heads, head_dim, window| Heads { heads, kv_heads, head_dim, window };
    for (bounds, shape) in [
        (vec![0, 1], heads(1, 1, 8, None)),
        (vec![0, 5, 5, 17], heads(4, 2, 16, None)),
        (vec![0, 40, 43], heads(3, 1, 8, Some(6))),
    ] {
        let tokens = bounds[bounds.len() - 1] as usize;
        check([tokens, 12], DType::F32, F32, &attends(&bounds, shape));
    }
    // Heads of matrix instructions, and of tiny models.
    for (bounds, shape) in [
        (vec![0, 5, 75], heads(2, 1, 64, None)),
        (vec![0, 20], heads(1, 1, 128, Some(7))),
        (vec![0, 9, 12], heads(4, 2, 8, None)),
        (vec![0, 33], heads(2, 2, 80, Some(9))),
    ] {
        let tokens = bounds[bounds.len() - 1] as usize;
        check([tokens, 12], DType::Bf16, BF16, &attends(&bounds, shape));
        check([tokens, 12], DType::F16, F16, &attends(&bounds, shape));
    }
}

#[test]
fn the_loss() {
    for (tokens, vocab, smoothing, trained) in [(2, 3, 0.0, true), (9, 50, 0.0, false), (80, 300, 0.1, true)] {
        both([tokens, 16], &|w, of| {
            let head = w.add_as([vocab, 16], if trained { DType::F32 } else { of }, trained);
            let rows: Vec<u32> = (0..tokens as u32).filter(|i| i % 3 != 1).collect();
            let labels: Vec<i32> = rows.iter().map(|r| (r * 7 % vocab as u32) as i32).collect();
            let device = w.device.clone();
            Box::new(move |t, x| {
                let targets = Targets::new(&device, &rows, &labels);
                ops::linear_cross_entropy(t, &x, &head, &targets, ops::CrossEntropy { scale: 0.25, smoothing })
            })
        });
    }
}

#[test]
fn noise_of_embeddings() {
    both([6, 70], &|w, _| {
        let keys = noise(&w.device, 6, 5.0);
        Box::new(move |t, x| ops::embedding_noise(t, x, &keys))
    });
}

/// Adapters added to their weights: more rows than are in f32 at a time.
#[test]
fn adapters_are_merged() {
    const SIZES: [usize; 2] = [300, 24];
    let run = |device: &Device, of: DType| {
        let tensor = |sizes: [usize; 2], dtype, seed| {
            let tensor = device.empty(sizes, dtype, Kind::Weight);
            tensor.write_f32(&random(tensor.numel(), seed));
            tensor
        };
        let (a, b) = (tensor([4, SIZES[1]], DType::F32, 1), tensor([SIZES[0], 4], DType::F32, 2));
        let magnitude = tensor([1, SIZES[0]], DType::F32, 3).reshape([SIZES[0]]);
        let weights = [5, 6, 7].map(|seed| tensor(SIZES, of, seed));
        ops::merge_lora(&weights[0], &a, &b, 0.7);
        ops::merge_dora(&weights[1], &a, &b, 0.7, &magnitude);
        let (of_vocab, of_width) = (tensor([4, SIZES[0]], DType::F32, 8), tensor([SIZES[1], 4], DType::F32, 9));
        ops::merge_embedding_lora(&weights[2], &of_vocab, &of_width, 0.7);
        weights.map(|weight| weight.to_f32()).to_vec()
    };
    for (of, slack) in [(DType::F32, F32), (DType::Bf16, BF16)] {
        let gpu = strict("seed=2");
        near(&run(&gpu, of), &run(&Device::cpu(), of), slack);
        assert_eq!(gpu.check(), Ok(()));
    }
}

#[test]
fn the_optimiser_and_what_is_asked_of_gradients() {
    let step =
        ops::AdamW { rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    let run = |device: &Device, of: DType, master: bool| {
        let tensor = |seed, dtype| {
            let tensor = device.empty([70_001], dtype, Kind::Optim);
            tensor.write_f32(&random(70_001, seed).iter().map(|x| x.abs()).collect::<Vec<_>>());
            tensor
        };
        let (weight, grad, m, v) = (tensor(1, of), tensor(2, DType::F32), tensor(3, DType::F32), tensor(4, DType::F32));
        let master = master.then(|| tensor(1, DType::F32));
        ops::adamw(&weight, master.as_ref(), (&grad, None), (&m, &v), &step);
        let squares = ops::sum_of_squares(device, &[grad.clone(), m.clone()]);
        // Once more by a factor that nobody sees, and not at all where a loss isn't finite.
        let total = device.zeros([1], DType::F64, Kind::Work);
        ops::add_squares(&total, std::slice::from_ref(&grad));
        let ranks = device.zeros([3], DType::F64, Kind::Work);
        ops::add_squares(&ranks.view(16, [1], DType::F64), std::slice::from_ref(&m));
        ops::add_all(&total, &ranks);
        for loss in [0.5, f32::INFINITY, f32::NAN] {
            let losses = Tensor::from_f32(device, &[1.0, loss], [2], Kind::Act);
            let factor = ops::clip_factor(&total, &losses, 0.5, 1.5);
            assert_eq!(factor.item().is_finite(), loss.is_finite());
            ops::adamw(&weight, master.as_ref(), (&grad, Some(&factor)), (&m, &v), &step);
        }
        assert!(ops::all_finite(&grad));
        let poisoned = tensor(2, DType::F32);
        poisoned.view(4 * 70_000, [1], DType::F32).write_f32(&[f32::INFINITY]);
        assert!(!ops::all_finite(&poisoned));
        let all = [&weight, &m, &v].into_iter().chain(master.as_ref());
        (all.map(Tensor::to_f32).collect::<Vec<_>>(), squares)
    };
    for (of, master) in [(DType::F32, false), (DType::Bf16, true), (DType::Bf16, false)] {
        let (want, squares) = run(&Device::cpu(), of, master);
        for seed in [1, 4] {
            let (got, sum) = run(&strict(&format!("seed={seed}")), of, master);
            assert!(got == want, "AdamW has the CPU's bits");
            assert!((sum - squares).abs() < 1e-12 * squares, "{sum} {squares}");
        }
    }
}

#[test]
fn bytes_go_to_a_gpu_and_back() {
    let (cpu, gpu) = (Device::cpu(), pooled(""));
    // More than the ring of pinned memory holds, in parts that don't divide it.
    let n = 9_000_001;
    let values = random(n, 3);
    let there = Tensor::from_f32(&gpu, &values, [n], Kind::Weight);
    let back = cpu.empty([n], DType::F32, Kind::Weight);
    ops::copy(&back, &there);
    assert!(back.to_f32() == values);
    let other = there.empty_like(Kind::Weight);
    ops::copy(&other, &there);
    there.zero();
    assert!(other.to_f32() == values && there.to_f32().iter().all(|x| *x == 0.0));
    ops::copy(&there, &back);
    let mut next = 0;
    let parts = other.write_parts(|range, bytes| {
        assert_eq!((range.start, range.len() * 4), (next, bytes.len()));
        next = range.end;
        bytes.fill(7);
        Ok::<(), ()>(())
    });
    assert_eq!((parts, next), (Ok(()), n));
    assert!(there.to_f32() == values);
    other.with_bytes(|bytes| assert!(bytes.iter().all(|b| *b == 7)));
    let mut lent = there.lend();
    lent.bytes_mut().fill(0);
    drop(lent);
    assert!(there.to_f32().iter().all(|x| *x == 0.0));
    assert_eq!(gpu.check(), Ok(()));
}
