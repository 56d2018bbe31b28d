//! Rotary positions, alone and with the norm of each head.

use super::common::*;
use ferrotune_ptx::Arg;

const PAIRS: [(Type, Type); 5] = [
    (Type::F32, Type::F32),
    (Type::Bf16, Type::Bf16),
    (Type::Bf16, Type::F32),
    (Type::F16, Type::F16),
    (Type::F16, Type::F32),
];
/// Rows, heads, width of a head.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 2), (3, 2, 64), (2, 5, 96), (5, 3, 128), (2, 1, 256)];

fn tables(rows: usize, half: usize) -> (Vec<f64>, Vec<f64>) {
    let angles = (0..rows * half).map(|i| (i / half * 7 + 1) as f64 * 0.9f64.powi((i % half) as i32));
    angles.map(|a| (f64::from(a.cos() as f32), f64::from(a.sin() as f32))).unzip()
}

/// Each head of `x` rotated, in f64.
fn rotated(x: &[f64], (rows, heads, dim): (usize, usize, usize), sign: f64) -> Vec<f64> {
    let half = dim / 2;
    let (cos, sin) = tables(rows, half);
    let mut y = x.to_vec();
    for (head, y) in y.chunks_mut(dim).enumerate() {
        for i in 0..half {
            let (a, b, at) = (y[i], y[half + i], head / heads * half + i);
            y[i] = a * cos[at] - b * sign * sin[at];
            y[half + i] = b * cos[at] + a * sign * sin[at];
        }
    }
    y
}

fn numbers(shape: (usize, usize, usize)) -> [Arg; 3] {
    [shape.0, shape.1, shape.2].map(|n| Arg::U32(n as u32))
}

#[test]
fn rotations_there_and_back() {
    for (of, shape) in TYPES.into_iter().flat_map(|of| SHAPES.map(|s| (of, s))) {
        let (rows, heads, dim) = shape;
        let x = values(rows * heads * dim, 1, 2.0);
        for sign in [1.0, -1.0] {
            let got = on_gpu(|gpu| {
                let (cos, sin) = tables(rows, dim / 2);
                let (xa, ca, sa) = (gpu.array(of, &x), gpu.array(Type::F32, &cos), gpu.array(Type::F32, &sin));
                let args = [&[xa.into(), ca.into(), sa.into()][..], &numbers(shape), &[Arg::F32(sign as f32)]].concat();
                let grid = [(rows * heads).div_ceil(8) as u32, 1, 1];
                gpu.launch(&format!("rope_{}", of.name()), grid, [32, 8, 1], &args);
                gpu.read(xa)
            });
            assert_near(&format!("{shape:?}"), of, &got, &rotated(&x, shape, sign), 2e-7);
        }
    }
}

const EPS: f32 = 1e-6;

fn fused((of, weight): (Type, Type), shape: (usize, usize, usize)) {
    let (rows, heads, dim) = shape;
    let (count, step) = (rows * heads, 3);
    let (x, w, dy) = (values(count * dim, 1, 2.0), values(dim, 2, 2.0), values(count * dim, 3, 1.0));
    let blocks = count.div_ceil(step);
    let got = on_gpu(|gpu| {
        let (cos, sin) = tables(rows, dim / 2);
        let (xa, wa, da) = (gpu.array(of, &x), gpu.array(weight, &w), gpu.array(of, &dy));
        let (ca, sa) = (gpu.array(Type::F32, &cos), gpu.array(Type::F32, &sin));
        let [y, dx, frozen] = [(); 3].map(|()| gpu.empty(of, count * dim));
        let (rstd, parts) = (gpu.empty(Type::F32, count), gpu.empty(Type::F32, blocks * dim));
        let dw = gpu.zeros(Type::F32, dim);
        let name = format!("{}_{}", of.name(), weight.name());
        let tail = numbers(shape);
        let head = [xa.into(), wa.into(), Arg::F32(EPS), ca.into(), sa.into(), y.into(), rstd.into()];
        let grid = [count.div_ceil(8) as u32, 1, 1];
        gpu.launch(&format!("norm_rope_{name}"), grid, [32, 8, 1], &[&head[..], &tail].concat());
        for (dx, parts) in [(dx, parts.into()), (frozen, NULL)] {
            let head = [xa.into(), wa.into(), rstd.into(), ca.into(), sa.into(), da.into(), dx.into(), parts];
            let args = [&head[..], &tail, &[Arg::U32(step as u32)]].concat();
            gpu.launch(&format!("norm_rope_backward_{name}"), [blocks as u32, 1, 1], [32, 8, 1], &args);
        }
        assert_eq!(gpu.read(dx), gpu.read(frozen), "without a gradient of the weight");
        let args = [dw.into(), parts.into(), Arg::U32(blocks as u32), Arg::U32(dim as u32)];
        gpu.launch("add_parts", [1, 1, 1], [256, 1, 1], &args);
        [y, dx, dw].map(|a| gpu.read(a))
    });
    let mut normed = Vec::new();
    let back: Vec<f64> = rotated(&dy, shape, -1.0).iter().map(|g| of.round(*g)).collect();
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; dim]);
    for (x, g) in x.chunks(dim).zip(back.chunks(dim)) {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / dim as f64 + f64::from(EPS)).sqrt();
        let dot: f64 = (0..dim).map(|i| x[i] * g[i] * w[i]).sum();
        normed.extend((0..dim).map(|i| of.round(x[i] * r * w[i])));
        dx.extend((0..dim).map(|i| r * (w[i] * g[i] - x[i] * r * r * dot / dim as f64)));
        (0..dim).for_each(|i| dw[i] += g[i] * x[i] * r);
    }
    // What is rounded in between may tip to its neighbour: a unit of the type more.
    let slack = 2.0 * of.unit() + 1e-6;
    assert_near(&format!("y of {shape:?}"), of, &got[0], &rotated(&normed, shape, 1.0), slack);
    assert_near(&format!("dx of {shape:?}"), of, &got[1], &dx, slack);
    assert_near(&format!("dw of {shape:?}"), Type::F32, &got[2], &dw, slack);
}

#[test]
fn the_norm_of_each_head_and_its_rotation() {
    for (pair, shape) in PAIRS.into_iter().flat_map(|pair| SHAPES.map(|s| (pair, s))) {
        fused(pair, shape);
    }
}
