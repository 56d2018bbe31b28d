//! RMSNorm and column sums.

use super::common::*;
use ferrotune_ptx::Arg;

/// Types of the input and of the weight.
const PAIRS: [(Type, Type); 5] = [
    (Type::F32, Type::F32),
    (Type::Bf16, Type::Bf16),
    (Type::Bf16, Type::F32),
    (Type::F16, Type::F16),
    (Type::F16, Type::F32),
];
const EPS: f32 = 1e-5;

struct Wanted {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    /// Largest of the two terms whose difference dx is.
    term: f64,
}

fn reference(x: &[f64], w: &[f64], dy: &[f64]) -> Wanted {
    let width = w.len();
    let mut want = Wanted { y: vec![], dx: vec![], dw: vec![0.0; width], term: 0.0 };
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(EPS)).sqrt();
        let dot: f64 = (0..width).map(|i| x[i] * dy[i] * w[i]).sum();
        for i in 0..width {
            want.y.push(x[i] * r * w[i]);
            want.dx.push(r * (w[i] * dy[i] - x[i] * r * r * dot / width as f64));
            want.dw[i] += dy[i] * x[i] * r;
            want.term = want.term.max((r * w[i] * dy[i]).abs());
        }
    }
    want
}

fn check((of, weight): (Type, Type), rows: usize, width: usize, per_row: u32) {
    let (x, w, dy) = (values(rows * width, 1, 4.0), values(width, 2, 2.0), values(rows * width, 3, 1.0));
    let name = format!("{}_{}", of.name(), weight.name());
    // Kernels take four rows at once: parts of more, and of fewer.
    let (step, columns) = (5, width.div_ceil(256) as u32);
    let parts = rows.div_ceil(step);
    let got = on_gpu(|gpu| {
        let (xa, wa, da) = (gpu.array(of, &x), gpu.array(weight, &w), gpu.array(of, &dy));
        let [y, again, dx] = [(); 3].map(|()| gpu.empty(of, rows * width));
        let rstd = gpu.empty(Type::F32, rows);
        let (work, dw) = (gpu.empty(Type::F32, parts * width), gpu.array(Type::F32, &vec![1.0; width]));
        let (r, c) = (Arg::U32(rows as u32), Arg::U32(width as u32));
        let (grid, block) = match per_row {
            32 => ([rows.div_ceil(8) as u32, 1, 1], [32, 8, 1]),
            _ => ([rows as u32, 1, 1], [per_row, 1, 1]),
        };
        let args = [xa.into(), wa.into(), Arg::F32(EPS), y.into(), rstd.into(), r.clone(), c.clone()];
        gpu.launch(&format!("rmsnorm_{name}"), grid, block, &args);
        let args = [xa.into(), wa.into(), rstd.into(), again.into(), r.clone(), c.clone()];
        gpu.launch(&format!("rmsnorm_apply_{name}"), grid, block, &args);
        assert_eq!(gpu.read(y), gpu.read(again), "made again");
        let args = [xa.into(), wa.into(), rstd.into(), da.into(), dx.into(), r.clone(), c.clone()];
        gpu.launch(&format!("rmsnorm_backward_{name}"), grid, block, &args);
        let args = [work.into(), xa.into(), da.into(), rstd.into(), r, c.clone(), Arg::U32(step as u32)];
        let kernel = format!("rmsnorm_weight_parts_{}", of.name());
        gpu.launch(&kernel, [columns, parts as u32, 1], [256, 1, 1], &args);
        let args = [dw.into(), work.into(), Arg::U32(parts as u32), c];
        gpu.launch("add_parts", [columns, 1, 1], [256, 1, 1], &args);
        [y, dx, dw].map(|a| gpu.read(a))
    });
    let want = reference(&x, &w, &dy);
    let slack = 1e-6;
    let what = |part: &str| format!("{part} of {rows} x {width} by {per_row}");
    assert_near(&what("y"), of, &got[0], &want.y, slack);
    assert_within(&what("dx"), of, &got[1], &want.dx, slack * want.term);
    let dw: Vec<f64> = want.dw.iter().map(|d| d + 1.0).collect();
    assert_near(&what("dw"), Type::F32, &got[2], &dw, slack);
}

#[test]
fn rmsnorm_and_its_gradients() {
    for pair in PAIRS {
        for (rows, width) in [(1, 1), (3, 64), (9, 33), (8, 128), (7, 300)] {
            check(pair, rows, width, 32);
        }
        for (rows, width, per_row) in
            [(1, 1, 256), (2, 257, 256), (3, 1000, 128), (2, 2048, 1024), (3, 700, 224), (1, 90, 64)]
        {
            check(pair, rows, width, per_row);
        }
    }
}

#[test]
fn column_sums_are_in_order_of_rows() {
    for of in TYPES {
        for (rows, width, step) in [(1, 1, 1), (5, 300, 2), (9, 17, 4)] {
            let x = values(rows * width, 7, 1.0);
            let parts = rows.div_ceil(step);
            let got = on_gpu(|gpu| {
                let (a, work, sums) =
                    (gpu.array(of, &x), gpu.empty(Type::F32, parts * width), gpu.array(Type::F32, &vec![0.5; width]));
                let grid = [width.div_ceil(256) as u32, parts as u32, 1];
                let numbers = [rows, width, step].map(|n| Arg::U32(n as u32));
                let args = [&[work.into(), a.into()][..], &numbers].concat();
                gpu.launch(&format!("column_parts_{}", of.name()), grid, [256, 1, 1], &args);
                let args = [sums.into(), work.into(), Arg::U32(parts as u32), Arg::U32(width as u32)];
                gpu.launch("add_parts", [grid[0], 1, 1], [256, 1, 1], &args);
                gpu.read(sums)
            });
            // Exact: few bits, few rows.
            let want: Vec<f64> = (0..width).map(|c| 0.5 + (0..rows).map(|r| x[r * width + c]).sum::<f64>()).collect();
            assert_eq!(got, want, "{of:?} {rows} x {width}");
        }
    }
}
