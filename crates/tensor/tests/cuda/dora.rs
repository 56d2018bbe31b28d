//! DoRA's norms, rescaled columns and the gradient of its magnitudes.

use super::common::*;
use ferrotune_ptx::Arg;

const BLOCK: [u32; 3] = [256, 1, 1];

#[test]
fn norms_of_rows_and_their_quotients() {
    for (rows, width) in [(1usize, 1usize), (3, 300), (5, 1000)] {
        let (x, m) = (values(rows * width, 1, 2.0), values(rows, 2, 1.0));
        let got = on_gpu(|gpu| {
            let (xa, ma) = (gpu.array(Type::F32, &x), gpu.array(Type::F32, &m));
            let [norms, factors] = [(); 2].map(|()| gpu.empty(Type::F32, rows));
            gpu.launch("row_norms", [rows as u32, 1, 1], BLOCK, &[norms.into(), xa.into(), Arg::U32(width as u32)]);
            let args = [factors.into(), ma.into(), norms.into(), Arg::U32(rows as u32)];
            gpu.launch("quotients", [1, 1, 1], BLOCK, &args);
            let args = [xa.into(), ma.into(), Arg::U32(rows as u32), Arg::U32(width as u32)];
            gpu.launch("scale_rows_f32", [rows as u32, 1, 1], BLOCK, &args);
            [norms, factors, xa].map(|a| gpu.read(a))
        });
        // Exact: both have 8 bits.
        let scaled: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * m[i / width]).collect();
        assert_eq!(got[2], scaled, "rows scaled");
        let norms: Vec<f64> = x.chunks(width).map(|r| r.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
        let factors: Vec<f64> = m.iter().zip(&norms).map(|(m, n)| m / n).collect();
        assert_near("norms", Type::F32, &got[0], &norms, 2e-7);
        assert_near("factors", Type::F32, &got[1], &factors, 4e-7);
    }
}

#[test]
fn columns_rescaled_and_their_gradient() {
    let pairs = [
        (Type::F32, Type::F32),
        (Type::Bf16, Type::Bf16),
        (Type::Bf16, Type::F32),
        (Type::F16, Type::F16),
        (Type::F16, Type::F32),
    ];
    for (of, bias_of) in pairs {
        for (rows, width, step) in [(1usize, 1usize, 1usize), (5, 300, 2), (11, 33, 9), (15, 20, 4)] {
            let (x, z) = (values(rows * width, 1, 2.0), values(rows * width, 2, 2.0));
            let (f, b) = (values(width, 3, 1.0), values(width, 4, 0.5));
            let (norms, parts) = (vec![0.7; width], rows.div_ceil(step));
            let got = on_gpu(|gpu| {
                let (xa, za, ba) = (gpu.array(of, &x), gpu.array(of, &z), gpu.array(bias_of, &b));
                let (fa, na) = (gpu.array(Type::F32, &f), gpu.array(Type::F32, &norms));
                let [both, scaled, shifted] = [(); 3].map(|()| gpu.empty(of, rows * width));
                let columns = width.div_ceil(256) as u32;
                let numbers = [Arg::U32(rows as u32), Arg::U32(width as u32)];
                for (y, f, b) in [(both, fa.into(), ba.into()), (scaled, fa.into(), NULL), (shifted, NULL, ba.into())] {
                    let args = [&[xa.into(), f, b, y.into()][..], &numbers].concat();
                    let name = format!("scale_columns_{}_{}", of.name(), bias_of.name());
                    gpu.launch(&name, [columns, 2, 1], BLOCK, &args);
                }
                let (work, sums) = (gpu.empty(Type::F32, parts * width), gpu.array(Type::F32, &vec![1.0; width]));
                let args = [&[work.into(), xa.into(), za.into()][..], &numbers, &[Arg::U32(step as u32)]].concat();
                gpu.launch(&format!("column_dots_{}", of.name()), [columns, parts as u32, 1], BLOCK, &args);
                let args = [sums.into(), work.into(), na.into(), Arg::U32(parts as u32), Arg::U32(width as u32)];
                gpu.launch("add_parts_divided", [columns, 1, 1], BLOCK, &args);
                [both, scaled, shifted, sums].map(|a| gpu.read(a))
            });
            let each = |f: &dyn Fn(usize) -> f64| (0..rows * width).map(|i| of.round(f(i))).collect::<Vec<_>>();
            let scaled = |i: usize| of.round(f64::from(x[i] as f32 * f[i % width] as f32));
            let sum = |a: f64, b: f64| f64::from(a as f32 + b as f32);
            assert_eq!(got[0], each(&|i| sum(scaled(i), b[i % width])), "{of:?} {bias_of:?} {rows} x {width}");
            assert_eq!(got[1], each(&scaled));
            assert_eq!(got[2], each(&|i| sum(x[i], b[i % width])));
            let dots =
                (0..width).map(|c| 1.0 + (0..rows).map(|r| x[r * width + c] * z[r * width + c]).sum::<f64>() / 0.7);
            assert_near("dots", Type::F32, &got[3], &dots.collect::<Vec<_>>(), 3e-7);
        }
    }
}
