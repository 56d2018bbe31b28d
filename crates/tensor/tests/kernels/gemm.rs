//! Matrix products against a naive f64 version: every level, orientation, type and way of computing.

use super::common::{Owned, values};
use ferrotune_tensor::cpu::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    mnk: (usize, usize, usize),
    trans: (bool, bool),
    half: (bool, bool, bool),
    second: Option<usize>,
    beta: f32,
    bias: bool,
}

fn operand(rows: usize, cols: usize, trans: bool, seed: u32, half: bool) -> (Owned, usize) {
    let (stored, width) = if trans { (cols, rows) } else { (rows, cols) };
    let ld = width + 3;
    (Owned::new(stored * ld, seed, half), ld)
}

fn check(case: Case) {
    let Case { mnk: (m, n, k), trans: (ta, tb), half, beta, .. } = case;
    let (a, lda) = operand(m, k, ta, 1, half.0);
    let (b, ldb) = operand(k, n, tb, 2, half.1);
    let k2 = case.second.unwrap_or(0);
    let (a2, lda2) = operand(m, k2, false, 3, false);
    let (b2, ldb2) = operand(k2, n, true, 4, half.1);
    let bias = Owned::new(n, 5, half.1);
    let ldc = n + 5;
    let mut c = Owned::new(m * ldc, 6, half.2);
    let before = c.clone();
    let args = Gemm {
        m,
        n,
        product: Product {
            alpha: 0.5,
            a: Mat { data: a.data(), ld: lda, trans: ta },
            b: Mat { data: b.data(), ld: ldb, trans: tb },
            k,
        },
        second: case.second.map(|k| Product {
            alpha: 2.0,
            a: Mat::new(a2.data(), lda2),
            b: Mat::transposed(b2.data(), ldb2),
            k,
        }),
        beta,
        bias: case.bias.then(|| bias.data()),
    };
    gemm(&args, c.data_mut(), ldc);
    let rows_a: Vec<f64> =
        (0..m * k).map(|e| (e / k, e % k)).map(|(i, p)| a.at(if ta { p * lda + i } else { i * lda + p })).collect();
    let columns_b: Vec<f64> =
        (0..n * k).map(|e| (e / k, e % k)).map(|(j, p)| b.at(if tb { j * ldb + p } else { p * ldb + j })).collect();
    for i in 0..m {
        for j in 0..n {
            let (mut want, mut size) = (0.0, 0.0);
            for (x, y) in rows_a[i * k..][..k].iter().zip(&columns_b[j * k..][..k]) {
                want += 0.5 * x * y;
                size += 0.5 * (x * y).abs();
            }
            if case.second.is_some() {
                want += 2.0 * (0..k2).map(|p| a2.at(i * lda2 + p) * b2.at(j * ldb2 + p)).sum::<f64>();
                size += 2.0 * (0..k2).map(|p| (a2.at(i * lda2 + p) * b2.at(j * ldb2 + p)).abs()).sum::<f64>();
            }
            if beta != 0.0 {
                want += f64::from(beta) * before.at(i * ldc + j);
            }
            if case.bias {
                want += bias.at(j);
            }
            let got = c.at(i * ldc + j);
            let close = 2e-6 * (size + 4.0) + if half.2 { want.abs() / 250.0 } else { 0.0 };
            assert!((got - want).abs() <= close, "{case:?} {:?} at ({i}, {j}): {got}, expected {want}", level());
        }
        for j in n..ldc {
            assert_eq!(c.at(i * ldc + j), before.at(i * ldc + j), "{case:?}: wrote beyond the row");
        }
    }
}

const FLAGS: [bool; 2] = [false, true];

fn everywhere(mnk: (usize, usize, usize), second: Option<usize>, beta: f32, bias: bool) {
    for level in Level::available() {
        for (ta, tb) in FLAGS.iter().flat_map(|&x| FLAGS.map(|y| (x, y))) {
            for h in 0..8 {
                let half = (h & 1 > 0, h & 2 > 0, h & 4 > 0);
                with_level(level, || check(Case { mnk, trans: (ta, tb), half, second, beta, bias }));
            }
        }
    }
}

#[test]
fn odd_shapes_in_every_form() {
    for mnk in [(1, 1, 1), (2, 3, 5), (7, 50, 33), (17, 49, 31), (33, 97, 64), (65, 70, 300), (130, 200, 17)] {
        everywhere(mnk, None, 0.0, false);
    }
}

#[test]
fn second_product_bias_and_old_values() {
    for mnk in [(1, 9, 4), (19, 50, 40), (66, 101, 70)] {
        everywhere(mnk, Some(8), 0.5, true);
        everywhere(mnk, Some(3), 0.0, true);
        everywhere(mnk, None, 1.0, true);
    }
    everywhere((70, 60, 600), Some(300), 1.0, false);
}

#[test]
fn thin_shapes() {
    for mnk in [
        (1, 100, 65),
        (3, 77, 130),
        (100, 8, 129),
        (45, 16, 48),
        (200, 1, 33),
        (8, 130, 70),
        (130, 8, 50),
        (14, 15, 40),
    ] {
        everywhere(mnk, None, 1.0, false);
    }
    everywhere((2, 20, 17_000), None, 0.0, false);
}

#[test]
fn reductions_longer_than_one_pass() {
    for half in [(false, false, false), (true, true, true), (true, false, false)] {
        for trans in [(false, true), (true, false)] {
            for level in Level::available() {
                let case = Case { mnk: (70, 60, 4500), trans, half, second: Some(8), beta: 1.0, bias: false };
                with_level(level, || check(case));
            }
        }
    }
}

/// Three strips' sums didn't fit where those of one, two and four do.
#[test]
fn three_strips_keep_their_sums_in_place() {
    for half in [(false, false, false), (true, true, true)] {
        let case = Case { mnk: (192, 128, 1030), trans: (true, false), half, second: None, beta: 0.0, bias: false };
        Level::available().for_each(|level| with_level(level, || check(case)));
    }
}

#[test]
fn empty_products() {
    everywhere((5, 20, 0), None, 0.5, true);
    everywhere((3, 40, 0), Some(4), 0.0, false);
    gemm(
        &Gemm {
            m: 0,
            n: 4,
            product: Product {
                alpha: 1.0,
                a: Mat::new(Data::F32(&[]), 3),
                b: Mat::new(Data::F32(&[0.0; 12]), 4),
                k: 3,
            },
            second: None,
            beta: 0.0,
            bias: None,
        },
        DataMut::F32(&mut []),
        4,
    );
}

#[test]
fn old_values_are_not_read_when_beta_is_zero() {
    let (x, w) = (values(40 * 30, 1), values(50 * 30, 2));
    let mut c = vec![f32::NAN; 40 * 50];
    let product = Product { alpha: 1.0, a: Mat::new(Data::F32(&x), 30), b: Mat::transposed(Data::F32(&w), 30), k: 30 };
    gemm(&Gemm { m: 40, n: 50, product, second: None, beta: 0.0, bias: None }, DataMut::F32(&mut c), 50);
    assert!(c.iter().all(|v| v.is_finite()));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (300, 210, 700);
    let (x, w) = (values(m * k, 1), values(n * k, 2));
    let run = |threads: usize, ta: bool| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut c = vec![0.0; m * n];
        let a = Mat { data: Data::F32(&x), ld: if ta { m } else { k }, trans: ta };
        let product = Product { alpha: 0.3, a, b: Mat::transposed(Data::F32(&w), k), k };
        let args = Gemm { m, n, product, second: None, beta: 0.0, bias: None };
        pool.install(|| gemm(&args, DataMut::F32(&mut c), n));
        c.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for ta in FLAGS {
        let one = run(1, ta);
        for threads in [2, 3, 16] {
            assert!(run(threads, ta) == one, "{threads} threads");
        }
    }
}
