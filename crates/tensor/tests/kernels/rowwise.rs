//! Norms, rotary embedding, SwiGLU, loss, elementwise kernels, randomness and AdamW against naive f64 versions, at
//! every level and in both types; gradients against differences of the naive forward.

use super::common::{Owned, assert_close, differences, values};
use ferrotune_tensor::cpu::*;

/// Runs `f` at every level with f32 and with bf16, and the tolerance of each.
fn everywhere(f: impl Fn(bool, f64)) {
    for level in Level::available() {
        with_level(level, || {
            f(false, 3e-6);
            f(true, 8e-3);
        });
    }
}

fn naive_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let r = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / w.len() as f64 + eps).sqrt();
            row.iter().zip(w).map(move |(x, w)| x * r * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rmsnorm_and_its_gradient() {
    for (rows, width) in [(1, 1), (3, 8), (200, 64), (7, 100), (70, 577)] {
        everywhere(|half, tolerance| {
            let (x, w) = (Owned::new(rows * width, 1, half), Owned::new(width, 2, half));
            let (mut y, mut rstd) = (Owned::zeros(rows * width, half), vec![0.0; rows]);
            rmsnorm(x.data(), w.data(), 1e-5, y.data_mut(), &mut rstd);
            assert_close("y", &y.to_f64(), &naive_norm(&x.to_f64(), &w.to_f64(), 1e-5), tolerance);
            let mut again = Owned::zeros(rows * width, half);
            rmsnorm_apply(x.data(), w.data(), &rstd, again.data_mut());
            assert_eq!(again.to_f64(), y.to_f64());

            let dy = Owned::new(rows * width, 3, half);
            let mut dx = Owned::zeros(rows * width, half);
            let mut dw = vec![1.0; width];
            let mut work = vec![f32::NAN; rmsnorm_backward_workspace(rows, width, true)];
            let args = RmsNormGrad { x: x.data(), w: w.data(), rstd: &rstd, dy: dy.data() };
            rmsnorm_backward(&args, dx.data_mut(), Some(&mut dw), &mut work);
            let mut frozen = Owned::zeros(rows * width, half);
            rmsnorm_backward(&args, frozen.data_mut(), None, &mut []);
            assert_eq!(frozen.to_f64(), dx.to_f64());
            if rows * width <= 24 {
                let loss = |x: &[f64], w: &[f64]| -> f64 {
                    naive_norm(x, w, 1e-5).iter().zip(dy.to_f64()).map(|(y, g)| y * g).sum()
                };
                let (x, w) = (x.to_f64(), w.to_f64());
                assert_close("dx", &dx.to_f64(), &differences(&x, |x| loss(x, &w)), tolerance.max(1e-5));
                let dw: Vec<f64> = dw.iter().map(|&d| f64::from(d) - 1.0).collect();
                assert_close("dw", &dw, &differences(&w, |w| loss(&x, w)), 2e-5);
            } else {
                let (x, dy) = (x.to_f64(), dy.to_f64());
                let want: Vec<f64> = (0..width)
                    .map(|c| (0..rows).map(|r| dy[r * width + c] * x[r * width + c] * f64::from(rstd[r])).sum::<f64>())
                    .collect();
                let dw: Vec<f64> = dw.iter().map(|&d| f64::from(d) - 1.0).collect();
                assert_close("dw", &dw, &want, 1e-5);
            }
        });
    }
}

#[test]
fn rope_turns_and_turns_back() {
    for (rows, heads, dim) in [(1, 1, 2), (5, 3, 64), (300, 2, 96)] {
        everywhere(|half, tolerance| {
            let angles: Vec<f64> = values(rows * dim / 2, 7).iter().map(|&a| f64::from(a)).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
            let before = Owned::new(rows * heads * dim, 1, half);
            let mut x = before.clone();
            rope(x.data_mut(), &cos, &sin, dim, false);
            let mut want = vec![0.0; rows * heads * dim];
            for (i, w) in want.iter_mut().enumerate() {
                let (row, c) = (i / (heads * dim), i % dim);
                let a = angles[row * dim / 2 + c % (dim / 2)];
                let other = if c < dim / 2 { -before.at(i + dim / 2) } else { before.at(i - dim / 2) };
                *w = before.at(i) * a.cos() + other * a.sin();
            }
            assert_close("rope", &x.to_f64(), &want, tolerance);
            rope(x.data_mut(), &cos, &sin, dim, true);
            assert_close("back", &x.to_f64(), &before.to_f64(), 2.0 * tolerance);
        });
    }
}

fn naive_swiglu(g: &[f64], u: &[f64]) -> Vec<f64> {
    g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

#[test]
fn swiglu_and_its_gradient() {
    for n in [1, 17, 70_001] {
        everywhere(|half, tolerance| {
            let (g, u, dy) = (Owned::new(n, 1, half), Owned::new(n, 2, half), Owned::new(n, 3, half));
            let mut y = Owned::zeros(n, half);
            swiglu(g.data(), u.data(), y.data_mut());
            assert_close("y", &y.to_f64(), &naive_swiglu(&g.to_f64(), &u.to_f64()), tolerance);
            let (mut dg, mut du) = (Owned::zeros(n, half), Owned::zeros(n, half));
            swiglu_backward(dy.data(), g.data(), u.data(), dg.data_mut(), du.data_mut());
            let step = 1e-5;
            let (g, u, dy) = (g.to_f64(), u.to_f64(), dy.to_f64());
            let shifted = |by: f64| naive_swiglu(&g.iter().map(|g| g + by).collect::<Vec<_>>(), &u);
            let slopes = shifted(step).into_iter().zip(shifted(-step)).map(|(up, down)| (up - down) / (2.0 * step));
            let want: Vec<f64> = slopes.zip(&dy).map(|(s, dy)| s * dy).collect();
            assert_close("dg", &dg.to_f64(), &want, tolerance.max(1e-5));
            assert_close("du", &du.to_f64(), &naive_swiglu(&g, &dy), tolerance);
        });
    }
}

#[test]
fn swiglu_of_extreme_gates() {
    for level in Level::available() {
        with_level(level, || {
            let mut y = [0.0; 4];
            swiglu(Data::F32(&[-1e4, 1e4, f32::NAN, -90.0]), Data::F32(&[1.0; 4]), DataMut::F32(&mut y));
            assert_eq!((y[0], y[1]), (0.0, 1e4));
            assert!(y[2].is_nan() && y[3].abs() < 1e-30);
        });
    }
}

fn naive_loss(z: &[f64], label: usize, e: f64) -> (f64, f64) {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = top + z.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    let mean = lse - z.iter().sum::<f64>() / z.len() as f64;
    ((1.0 - e) * (lse - z[label]) + e * mean, lse - z[label])
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (rows, vocab) in [(1, 1), (3, 7), (5, 1000), (2, 49_152)] {
        for smoothing in [0.0, 0.1] {
            for level in Level::available() {
                let before = values(rows * vocab, 5);
                let labels: Vec<i32> = (0..rows).map(|r| ((r * 37) % vocab) as i32).collect();
                let (mut z, mut losses) = (before.clone(), vec![0.0; 2 * rows]);
                let options = CrossEntropy { vocab, smoothing, scale: 0.5, gradient: true };
                with_level(level, || cross_entropy(&options, &mut z, &labels, &mut losses));
                let mut alone = losses.clone();
                let forward = CrossEntropy { gradient: false, ..options };
                with_level(level, || cross_entropy(&forward, &mut before.clone(), &labels, &mut alone));
                assert_eq!(alone, losses);
                for r in 0..rows {
                    let row: Vec<f64> = before[r * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
                    let (label, e) = (labels[r] as usize, f64::from(smoothing));
                    let (loss, nll) = naive_loss(&row, label, e);
                    assert!((f64::from(losses[2 * r]) - loss).abs() < 2e-6 * loss.abs().max(1.0), "{loss}");
                    assert!((f64::from(losses[2 * r + 1].abs()) - nll).abs() < 2e-6 * nll.max(1.0));
                    let best = row.iter().all(|&x| x <= row[label]);
                    assert_eq!(losses[2 * r + 1].is_sign_negative(), best);
                    if vocab <= 1000 {
                        let want = differences(&row, |z| 0.5 * naive_loss(z, label, e).0);
                        let got: Vec<f64> = z[r * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
                        assert_close("dz", &got, &want, 1e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn sums_scales_and_casts() {
    for n in [0, 1, 33, 40_000] {
        everywhere(|half, tolerance| {
            let (x, y) = (Owned::new(n, 1, half), Owned::new(n, 2, half));
            let mut sum = x.clone();
            add_assign(sum.data_mut(), y.data());
            let want: Vec<f64> = x.to_f64().iter().zip(y.to_f64()).map(|(x, y)| x + y).collect();
            assert_close("sum", &sum.to_f64(), &want, tolerance);
            let mut scaled = x.clone();
            scale(scaled.data_mut(), 0.3);
            let want: Vec<f64> = x.to_f64().iter().map(|x| x * f64::from(0.3f32)).collect();
            assert_close("scaled", &scaled.to_f64(), &want, tolerance);
            let squares: f64 = x.to_f64().iter().map(|x| x * x).sum();
            assert!((sum_of_squares(x.data()) - squares).abs() <= 1e-12 * squares);
        });
    }
}

#[test]
fn casts_round_to_nearest_even() {
    let all: Vec<f32> = [1.0, -1.0, 1.003_906_3, 1.011_718_8, 3.4e38, f32::MAX, 1e-40, 0.0, -0.0, f32::INFINITY]
        .into_iter()
        .chain(values(1000, 3).iter().map(|x| x * 1.000_123))
        .collect();
    for level in Level::available() {
        with_level(level, || {
            let mut to = vec![half::bf16::ZERO; all.len()];
            cast(DataMut::Bf16(&mut to), Data::F32(&all));
            let want: Vec<_> = all.iter().map(|&x| half::bf16::from_f32(x)).collect();
            assert_eq!(to, want);
            let mut back = vec![0.0; all.len()];
            cast(DataMut::F32(&mut back), Data::Bf16(&to));
            assert_eq!(back, want.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
            cast(DataMut::Bf16(&mut to[..1]), Data::F32(&[f32::NAN]));
            assert!(to[0].is_nan());
        });
    }
}

#[test]
fn finite_means_every_element() {
    for n in [1, 100, 150_000] {
        everywhere(|half, _| {
            let mut x = vec![1.0; n];
            assert!(all_finite(Owned::from(&x, half).data()));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[n - 1] = bad;
                assert!(!all_finite(Owned::from(&x, half).data()));
            }
        });
    }
}

#[test]
fn columns() {
    for (rows, width) in [(1, 1), (70, 130), (3, 1000)] {
        everywhere(|half, tolerance| {
            let (x, y) = (Owned::new(rows * width, 1, half), Owned::new(rows * width, 2, half));
            let (factors, bias) = (values(width, 3), Owned::new(width, 4, half));
            let norms: Vec<f32> = factors.iter().map(|f| f.abs() + 0.5).collect();
            let at = |m: &Owned, r: usize, c: usize| m.at(r * width + c);
            let columns = |f: &dyn Fn(usize) -> f64| (0..width).map(f).collect::<Vec<_>>();
            let minus_one = |s: &[f32]| s.iter().map(|&s| f64::from(s) - 1.0).collect::<Vec<_>>();

            let mut sums = vec![1.0; width];
            add_column_sums(x.data(), &mut sums);
            let want = columns(&|c| (0..rows).map(|r| at(&x, r, c)).sum());
            assert_close("sums", &minus_one(&sums), &want, 1e-5);
            let mut dots = vec![1.0; width];
            add_column_dots(x.data(), y.data(), &norms, &mut dots);
            let want = columns(&|c| (0..rows).map(|r| at(&x, r, c) * at(&y, r, c)).sum::<f64>() / f64::from(norms[c]));
            assert_close("dots", &minus_one(&dots), &want, 1e-5);

            let mut z = Owned::zeros(rows * width, half);
            scale_columns(x.data(), &factors, Some(bias.data()), z.data_mut());
            let want: Vec<f64> =
                (0..rows * width).map(|i| x.at(i) * f64::from(factors[i % width]) + bias.at(i % width)).collect();
            assert_close("scaled", &z.to_f64(), &want, 2.0 * tolerance);

            let plain = values(rows * width, 1);
            let mut lengths = vec![0.0; rows];
            row_norms(&plain, &mut lengths);
            for (r, n) in lengths.iter().enumerate() {
                let want = plain[r * width..][..width].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                assert!((f64::from(*n) - want).abs() <= 1e-6 * want);
            }
        });
    }
}

#[test]
fn rows_by_index() {
    let (rows, width) = (9, 70);
    let index = [3u32, 0, 3, 8, 5];
    everywhere(|half, _| {
        for to_half in [false, true] {
            let table = Owned::new(rows * width, 1, half);
            let mut out = Owned::zeros(index.len() * width, to_half);
            gather_rows(table.data(), &index, out.data_mut(), width);
            for (i, &row) in index.iter().enumerate() {
                (0..width).for_each(|c| assert_eq!(out.at(i * width + c), table.at(row as usize * width + c)));
            }
            let mut sums = values(rows * width, 2);
            let before = sums.clone();
            scatter_add_rows(out.data(), &index, &mut sums, width);
            for (at, sum) in sums.iter().enumerate() {
                let mine = index.iter().enumerate().filter(|(_, row)| **row as usize == at / width);
                let added: f64 = mine.map(|(i, _)| out.at(i * width + at % width)).sum();
                assert!((f64::from(*sum) - f64::from(before[at]) - added).abs() < 1e-6);
            }
            let mut set = table.clone();
            scatter_rows(out.data(), &index, set.data_mut(), width);
            assert_eq!(set.to_f64(), table.to_f64(), "rows went back to where they came from");
        }
    });
}

#[test]
fn dropout_is_a_function_of_the_place() {
    let width = 77;
    let (samples, positions): (Vec<u32>, Vec<u32>) = (vec![4, 4, 9, 9, 9], vec![0, 1, 0, 1, 2]);
    let key = NoiseKey { seed: 5, step: 3, site: 8, samples: &samples, positions: &positions };
    let masked = |key: &NoiseKey<'_>, p: f32| {
        let n = key.samples.len() * width;
        let mut y = vec![0.0; n];
        dropout(Data::F32(&vec![1.0; n]), DataMut::F32(&mut y), width, p, key);
        y
    };
    let all = masked(&key, 0.25);
    assert!(all.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
    for level in Level::available() {
        assert_eq!(with_level(level, || masked(&key, 0.25)), all);
    }
    let part = NoiseKey { samples: &samples[2..4], positions: &positions[2..4], ..key };
    assert_eq!(masked(&part, 0.25), all[2 * width..4 * width]);
    for other in [NoiseKey { seed: 6, ..key }, NoiseKey { step: 4, ..key }, NoiseKey { site: 9, ..key }] {
        assert_ne!(masked(&other, 0.25), all);
    }
    assert_ne!(all[..width], all[width..2 * width]);
    assert_eq!(masked(&key, 0.0), vec![1.0; 5 * width]);
    assert_eq!(masked(&key, 1.0), vec![0.0; 5 * width]);
    let rows: Vec<u32> = (0..2000).collect();
    let many = masked(&NoiseKey { samples: &rows, positions: &rows, ..key }, 0.1);
    let dropped = many.iter().filter(|&&y| y == 0.0).count() as f64 / many.len() as f64;
    assert!((dropped - 0.1).abs() < 0.004, "{dropped}");
}

#[test]
fn embedding_noise_has_its_bound() {
    let (width, lengths) = (50, [4u32, 4, 100]);
    let key = NoiseKey { seed: 5, step: 3, site: 8, samples: &[1, 1, 2], positions: &[0, 1, 0] };
    let mut x = vec![1.0f32; 3 * width];
    add_embedding_noise(DataMut::F32(&mut x), width, 5.0, &lengths, &key);
    for (row, &length) in x.chunks(width).zip(&lengths) {
        let bound = 5.0 / ((length * width as u32) as f32).sqrt();
        let largest = row.iter().map(|x| (x - 1.0).abs()).fold(0.0, f32::max);
        assert!(largest <= bound + 1e-6 && largest > bound / 2.0);
        assert!(row.iter().any(|&x| x > 1.0) && row.iter().any(|&x| x < 1.0));
    }
}

#[test]
fn fills_have_their_moments() {
    let n = 100_000;
    let mut x = vec![0.0; n];
    fill_uniform(&mut x, -0.5, 1.5, 42, 1);
    let moments = |x: &[f32]| {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        (mean, x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64)
    };
    let (mean, variance) = moments(&x);
    assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 3.0).abs() < 0.01);
    assert!(x.iter().all(|x| (-0.5..1.5).contains(x)));
    let mut prefix = vec![0.0; 1000];
    fill_uniform(&mut prefix, -0.5, 1.5, 42, 1);
    assert_eq!(prefix, x[..1000]);
    fill_uniform(&mut prefix, -0.5, 1.5, 42, 2);
    assert_ne!(prefix, x[..1000]);
    fill_normal(&mut x, 1.0, 2.0, 42, 1);
    let (mean, variance) = moments(&x);
    assert!((mean - 1.0).abs() < 0.03 && (variance - 4.0).abs() < 0.06, "{mean} {variance}");
}

#[test]
fn adamw_follows_its_definition() {
    let n = 40_001;
    let step = AdamW { rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    let (p0, g, m0) = (values(n, 1), values(n, 2), values(n, 3));
    let v0: Vec<f32> = values(n, 4).iter().map(|v| v.abs() + 0.01).collect();
    let want: Vec<[f64; 3]> = (0..n)
        .map(|i| {
            let [p, g, m, v] = [p0[i], g[i] * 0.5, m0[i], v0[i]].map(f64::from);
            let (m, v) = (0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g);
            let denominator = (v.sqrt() / (1.0 - 0.95f64.powi(3)).sqrt()) + 1e-8;
            [p * (1.0 - 1e-3) - 1e-2 / (1.0 - 0.9f64.powi(3)) * m / denominator, m, v]
        })
        .collect();
    let column = |i: usize| want.iter().map(|w| w[i]).collect::<Vec<_>>();
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    for level in Level::available() {
        for (half, with_master) in [(false, false), (true, true), (true, false)] {
            let (mut p, mut master, mut m, mut v) = (Owned::from(&p0, half), p0.clone(), m0.clone(), v0.clone());
            let state = AdamWState { m: &mut m, v: &mut v, master: with_master.then_some(&mut master) };
            with_level(level, || adamw(&step, p.data_mut(), &g, state));
            assert_close("p", &p.to_f64(), &column(0), if half { 4e-3 } else { 1e-6 });
            assert_close("m", &wide(&m), &column(1), 1e-6);
            assert_close("v", &wide(&v), &column(2), 1e-6);
            if with_master {
                assert_close("master", &wide(&master), &column(0), 1e-6);
            }
        }
    }
}
