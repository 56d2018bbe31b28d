//! Mixtures of experts, as `nets` has the other ops: the same choices on both devices, and sums within the same tolerances.

use super::gpus::strict;
use super::nets::{BF16, F32, Net, both, check, near};
use super::support::{Weights, lora, noise, random};
use ferrotune_tensor::ops::{self, Balance, GroupedLinear, Linear, Lora, Route};
use ferrotune_tensor::{DType, Device, Fault, Kind, Segment, Tape, Tensor};
use std::rc::Rc;

/// Sizes of a mixture: experts, of which a token has some; widths of the stream and inside; rank of the adapters, 0 for none.
#[derive(Clone, Copy)]
struct Sizes {
    experts: usize,
    top_k: usize,
    width: usize,
    inner: usize,
    rank: usize,
}

/// A stack of matrices with or without adapters.
fn stack(w: &mut Weights, of: DType, [experts, out, inputs]: [usize; 3], rank: usize, dropout: f32) -> GroupedLinear {
    let weight = w.add_as([experts, out, inputs], if rank > 0 { of } else { DType::F32 }, rank == 0);
    let lora = (rank > 0).then(|| {
        let (a, b) = (w.add([experts, rank, inputs], true), w.add([experts, out, rank], true));
        Lora { a, b, scale: 0.7, dropout, magnitude: None }
    });
    GroupedLinear { weight, lora }
}

/// Router, experts and sum.
fn mixture(sizes: Sizes, normalize: bool, dropout: f32) -> impl Fn(&mut Weights, DType) -> Net {
    move |w, of| {
        let Sizes { experts, top_k, width, inner, rank } = sizes;
        // In narrow types the same bits on both devices, so that no choice is a matter of rounding.
        let router = w.add_as([experts, width], of, of == DType::F32);
        let mut matrices = |out, inputs| stack(w, of, [experts, out, inputs], rank, dropout);
        let (gate, up, down) = (matrices(inner, width), matrices(inner, width), matrices(width, inner));
        let keys = (dropout > 0.0).then(|| noise(&w.device, 23, 0.0));
        Box::new(move |t, x| {
            let (weights, routes) = ops::route(t, &x, &router, Route { experts, top_k, normalize }, None);
            let rows = ops::dispatch(t, &x, &routes);
            let of = |layer, x| ops::grouped_linear(t, layer, x, &routes, keys.as_ref());
            let made = ops::swiglu(t, &of(&gate, &rows), &of(&up, &rows));
            ops::combine(t, &of(&down, &made), &weights, &routes)
        })
    }
}

/// Widths of matrix instructions, and others; whole matrices trained, and adapters.
#[test]
fn mixtures() {
    let sizes = Sizes { experts: 5, top_k: 2, width: 16, inner: 24, rank: 0 };
    for (sizes, normalize) in [
        (sizes, true),
        (Sizes { rank: 8, ..sizes }, false),
        (Sizes { width: 12, inner: 9, rank: 3, ..sizes }, true),
        // One expert's weight over itself would be 1, and its gradient nothing but rounding.
        (Sizes { experts: 3, top_k: 1, width: 72, inner: 24, rank: 8 }, false),
    ] {
        both([23, sizes.width], &mixture(sizes, normalize, 0.0));
    }
    // No row is left out or added where there is one token, and where all of them see all experts.
    both([1, 16], &mixture(sizes, true, 0.0));
    both([23, 16], &mixture(Sizes { top_k: 5, ..sizes }, true, 0.0));
}

#[test]
fn experts_drop_what_the_cpus_do() {
    for rank in [3, 8] {
        both([23, 16], &mixture(Sizes { experts: 4, top_k: 2, width: 16, inner: 8, rank }, true, 0.4));
    }
}

#[test]
fn a_shared_expert_behind_its_gate() {
    both([9, 16], &|w, _| {
        let mut layer = |out| Linear { weight: w.add([out, 16], true), bias: None, lora: None };
        let (y, z, gate) = (layer(16), layer(16), layer(1));
        Box::new(move |t, x| {
            let of = |layer: &Linear| ops::linear(t, layer, &x, None);
            ops::add_gated(t, &of(&y), &of(&z), &of(&gate))
        })
    });
}

/// An adapter on a layer beside the experts, of the same tape.
#[test]
fn experts_beside_other_layers() {
    check([11, 16], DType::Bf16, BF16, &|w, of| {
        let inner = mixture(Sizes { experts: 4, top_k: 2, width: 16, inner: 16, rank: 8 }, true, 0.0)(w, of);
        let layer =
            Linear { weight: w.add_as([16, 16], of, false), bias: None, lora: Some(lora(w, 16, 16, 8, 0.0, false)) };
        Box::new(move |t, x| {
            let y = ops::linear(t, &layer, &x, None);
            ops::add(t, &x, inner(t, y))
        })
    });
}

/// The census of two batches, the prices made of it, and the gradient that they give.
#[test]
fn the_balance_is_counted_and_priced() {
    const EXPERTS: usize = 40;
    let run = |device: &Device| {
        let mut w = Weights::new(device);
        let (x, router) = (w.add([33, 16], true), w.add([EXPERTS, 16], true));
        let balance = Rc::new(Balance::new(device, EXPERTS));
        let args = Route { experts: EXPERTS, top_k: 3, normalize: true };
        let ids = Tensor::from_u32(device, &(0..33).collect::<Vec<_>>(), Kind::Input);
        for _ in 0..2 {
            let tape = Tape::forward_only(device, &w);
            ops::route(&tape, &ops::embedding(&tape, &ids, &x, DType::F32), &router, args, Some(&balance));
        }
        let census: Vec<f32> = balance.census().iter().map(|x| *x as f32).collect();
        balance.close(&census[..EXPERTS].iter().map(|count| 0.01 * count).collect::<Vec<_>>());
        let tape = Tape::new(device, &w, &|_: Segment| false);
        let (weights, _) =
            ops::route(&tape, &ops::embedding(&tape, &ids, &x, DType::F32), &router, args, Some(&balance));
        let seed = weights.value.empty_like(Kind::ActGrad);
        seed.write_f32(&random(seed.numel(), 4));
        tape.backward(&weights, seed, None);
        // Choices are whole numbers; a closed census is counted in no more.
        assert_eq!(census[..EXPERTS].iter().sum::<f32>(), 2.0 * 33.0 * 3.0);
        assert!(balance.census().iter().zip(&census).all(|(now, then)| *now as f32 == *then));
        let gradients: Vec<_> = w.values.iter().map(|(_, _, gradient)| gradient.to_f32()).collect();
        [vec![census], gradients].concat()
    };
    let want = run(&Device::cpu());
    for seed in [1, 6] {
        let gpu = strict(&format!("seed={seed}"));
        near(&run(&gpu), &want, F32);
        assert_eq!(gpu.check(), Ok(()));
    }
}

#[test]
fn more_experts_than_a_warp_can_mark_are_named() {
    let gpu = strict("");
    let mut w = Weights::new(&gpu);
    let (x, router) = (w.add([2, 8], false), w.add([1025, 8], false));
    let tape = Tape::forward_only(&gpu, &w);
    let ids = Tensor::from_u32(&gpu, &[0, 1], Kind::Input);
    let args = Route { experts: 1025, top_k: 1, normalize: true };
    ops::route(&tape, &ops::embedding(&tape, &ids, &x, DType::F32), &router, args, None);
    assert_eq!(gpu.check(), Err(Fault::NoKernel("a router of 1025 experts".into())));
}
