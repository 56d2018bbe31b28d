//! Sums, products, casts and SwiGLU.

use super::common::*;
use ferrotune_ptx::Arg;

/// Below, at and beyond 16 bytes and a block's stretch.
const LENGTHS: [usize; 6] = [1, 7, 8, 9, 1000, 6150];

const BLOCK: [u32; 3] = [256, 1, 1];

fn round_all(of: Type, x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| of.round(*x)).collect()
}

#[test]
fn sums_and_products_are_exact() {
    for of in TYPES {
        for (n, shift) in LENGTHS.into_iter().flat_map(|n| [(n, 0), (n, 1)]) {
            let (x, y) = (values(n, 1, 2.0), values(n, 2, 1.0));
            let (sum, scaled) = on_gpu(|gpu| {
                let (a, b, c) = (gpu.shifted(of, shift, &x), gpu.shifted(of, shift, &y), gpu.shifted(of, shift, &x));
                gpu.launch(
                    &format!("add_{}", of.name()),
                    blocks(n, 8),
                    BLOCK,
                    &[a.into(), b.into(), Arg::U64(n as u64)],
                );
                let args = [c.into(), Arg::F32(0.3), Arg::U64(n as u64)];
                gpu.launch(&format!("scale_{}", of.name()), blocks(n, 8), BLOCK, &args);
                (gpu.read(a), gpu.read(c))
            });
            let want: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(sum, round_all(of, &want), "{of:?} {n} {shift}");
            let want: Vec<f64> = x.iter().map(|x| f64::from(*x as f32 * 0.3f32)).collect();
            assert_eq!(scaled, round_all(of, &want), "{of:?} {n} {shift}");
        }
    }
}

#[test]
fn casts_round_to_nearest_even() {
    for (from, to) in TYPES.into_iter().flat_map(|from| TYPES.map(|to| (from, to))).filter(|(a, b)| a != b) {
        for (n, shift) in LENGTHS.into_iter().flat_map(|n| [(n, 0), (n, 3)]) {
            // Ties in both directions, subnormal halves, and what overflows f16.
            let special =
                [1.0 + 2f64.powi(-8), 1.0 + 3.0 * 2f64.powi(-8), 1.0 + 2f64.powi(-11), 1e-7, 70000.0, -1e-30, 0.1];
            let x: Vec<f64> =
                values(n, 3, 3.0).iter().enumerate().map(|(i, x)| if i < 7 { special[i] } else { *x }).collect();
            let x = round_all(from, &x);
            let got = on_gpu(|gpu| {
                let (a, b) = (gpu.shifted(from, shift, &x), gpu.empty(to, n));
                let name = format!("cast_{}_{}", from.name(), to.name());
                gpu.launch(&name, blocks(n, 4), BLOCK, &[b.into(), a.into(), Arg::U64(n as u64)]);
                gpu.read(b)
            });
            assert_eq!(got, round_all(to, &x), "{from:?} to {to:?}, {n}");
        }
    }
}

#[test]
fn swiglu_and_its_gradient() {
    for of in TYPES {
        for (n, shift) in LENGTHS.into_iter().flat_map(|n| [(n, 0), (n, 1)]) {
            let (mut g, u, d) = (values(n, 4, 8.0), values(n, 5, 2.0), values(n, 6, 1.0));
            // Where exp overflows or vanishes.
            for (g, far) in g.iter_mut().zip([0.0, 100.0, -100.0, 20.0, -20.0]) {
                *g = far;
            }
            let results = on_gpu(|gpu| {
                let [ga, ua, da] = [&g, &u, &d].map(|x| gpu.shifted(of, shift, x));
                let [y, dg, du] = [(); 3].map(|()| gpu.empty(of, n));
                let count = Arg::U64(n as u64);
                let args = [ga.into(), ua.into(), y.into(), count.clone()];
                gpu.launch(&format!("swiglu_{}", of.name()), blocks(n, 8), BLOCK, &args);
                let args = [da.into(), ga.into(), ua.into(), dg.into(), du.into(), count];
                gpu.launch(&format!("swiglu_backward_{}", of.name()), blocks(n, 8), BLOCK, &args);
                [y, dg, du].map(|x| gpu.read(x))
            });
            let each = |f: &dyn Fn(f64, f64, f64, f64) -> f64| -> Vec<f64> {
                (0..n).map(|i| f(g[i], u[i], d[i], 1.0 / (1.0 + (-g[i]).exp()))).collect()
            };
            let want = [
                each(&|g, u, _, s| g * s * u),
                each(&|g, u, d, s| d * u * s * (1.0 + g * (1.0 - s))),
                each(&|g, _, d, s| d * g * s),
            ];
            for (what, (got, want)) in ["y", "dgate", "dup"].iter().zip(results.iter().zip(&want)) {
                assert_near(&format!("{what} of {n}"), of, got, want, 4e-7);
            }
        }
    }
}
