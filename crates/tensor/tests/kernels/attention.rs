//! Attention against a naive f64 version: every level and type, grouped heads, windows, empty and uneven sequences.

use super::common::{Owned, assert_close, differences, values};
use ferrotune_tensor::cpu::*;

struct Case {
    heads: (usize, usize, usize),
    window: Option<usize>,
    cu_q: Vec<u32>,
    cu_k: Vec<u32>,
    half: bool,
}

impl Case {
    fn shape(&self) -> AttentionShape<'_> {
        let (heads, kv_heads, head_dim) = self.heads;
        AttentionShape {
            heads,
            kv_heads,
            head_dim,
            window: self.window,
            scale: 0.3,
            cu_q: &self.cu_q,
            cu_k: &self.cu_k,
        }
    }
    fn tokens(&self) -> (usize, usize) {
        (
            *self.cu_q.last().expect("borders begin with 0") as usize,
            *self.cu_k.last().expect("borders begin with 0") as usize,
        )
    }
}

/// Probabilities of one query and head over the keys it sees, with their first key.
fn probabilities(s: &AttentionShape<'_>, q: &[f64], k: &[f64], at: (usize, usize, usize)) -> (usize, Vec<f64>, f64) {
    let (sequence, row, head) = at;
    let (q0, q1) = (s.cu_q[sequence] as usize, s.cu_q[sequence + 1] as usize);
    let (k0, k1) = (s.cu_k[sequence] as usize, s.cu_k[sequence + 1] as usize);
    let end = (k1 + row + 1).saturating_sub(q1 - q0 + q0).max(k0);
    let start = s.window.map_or(k0, |w| end.saturating_sub(w).max(k0));
    let (d, kv) = (s.head_dim, head / (s.heads / s.kv_heads));
    let scores: Vec<f64> = (start..end)
        .map(|j| {
            let (x, y) = (&q[(row * s.heads + head) * d..][..d], &k[(j * s.kv_heads + kv) * d..][..d]);
            f64::from(s.scale) * x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>()
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
    let lse = if scores.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() };
    (start, scores.iter().map(|x| (x - lse).exp()).collect(), lse)
}

fn each_row(s: &AttentionShape<'_>, mut f: impl FnMut((usize, usize, usize))) {
    for i in 0..s.cu_q.len() - 1 {
        for row in s.cu_q[i] as usize..s.cu_q[i + 1] as usize {
            (0..s.heads).for_each(|head| f((i, row, head)));
        }
    }
}

fn naive(s: &AttentionShape<'_>, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (d, group, rows) = (s.head_dim, s.heads / s.kv_heads, *s.cu_q.last().expect("borders begin with 0") as usize);
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; s.heads * rows]);
    each_row(s, |at| {
        let (_, row, head) = at;
        let (start, p, l) = probabilities(s, q, k, at);
        lse[head * rows + row] = l;
        for (j, p) in p.iter().enumerate() {
            let v = &v[((start + j) * s.kv_heads + head / group) * d..][..d];
            for (o, v) in o[(row * s.heads + head) * d..][..d].iter_mut().zip(v) {
                *o += p * v;
            }
        }
    });
    (o, lse)
}

fn naive_backward(s: &AttentionShape<'_>, q: &[f64], k: &[f64], v: &[f64], dout: &[f64]) -> [Vec<f64>; 3] {
    let (d, group) = (s.head_dim, s.heads / s.kv_heads);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (o, _) = naive(s, q, k, v);
    each_row(s, |at| {
        let (_, row, head) = at;
        let (start, p, _) = probabilities(s, q, k, at);
        let r = (row * s.heads + head) * d;
        let delta: f64 = (0..d).map(|c| o[r + c] * dout[r + c]).sum();
        for (j, p) in p.iter().enumerate() {
            let c0 = ((start + j) * s.kv_heads + head / group) * d;
            let dp: f64 = (0..d).map(|c| dout[r + c] * v[c0 + c]).sum();
            let ds = p * (dp - delta) * f64::from(s.scale);
            for c in 0..d {
                dv[c0 + c] += p * dout[r + c];
                dq[r + c] += ds * k[c0 + c];
                dk[c0 + c] += ds * q[r + c];
            }
        }
    });
    [dq, dk, dv]
}

fn inputs(case: &Case) -> [Owned; 4] {
    let ((h, kvh, d), (tq, tk)) = (case.heads, case.tokens());
    let new = |n, seed| {
        let scaled: Vec<f32> = values(n, seed).iter().map(|x| x / 4.0).collect();
        Owned::from(&scaled, case.half)
    };
    [new(tq * h * d, 1), new(tk * kvh * d, 2), new(tk * kvh * d, 3), new(tq * h * d, 4)]
}

struct Computed {
    o: Owned,
    lse: Vec<f32>,
    grads: [Owned; 3],
}

fn compute(case: &Case, [q, k, v, dout]: &[Owned; 4]) -> Computed {
    let shape = case.shape();
    let (mut o, mut lse) = (Owned::zeros(q.to_f64().len(), case.half), vec![0.0; shape.heads * case.tokens().0]);
    let args = Attention { shape, q: q.data(), k: k.data(), v: v.data() };
    attention_forward(&args, o.data_mut(), &mut lse);
    let mut grads = [q, k, v].map(|x| Owned::zeros(x.to_f64().len(), case.half));
    let mut work = vec![f32::NAN; attention_backward_workspace(&shape)];
    let [dq, dk, dv] = &mut grads;
    let given = AttentionGrad { o: o.data(), lse: &lse, dout: dout.data() };
    attention_backward(&args, &given, (dq.data_mut(), dk.data_mut(), dv.data_mut()), &mut work);
    Computed { o, lse, grads }
}

fn check(case: &Case) {
    let inputs = inputs(case);
    let [q, k, v, dout] = inputs.each_ref().map(Owned::to_f64);
    let shape = case.shape();
    let (o, lse) = naive(&shape, &q, &k, &v);
    let grads = naive_backward(&shape, &q, &k, &v, &dout);
    for level in Level::available() {
        let got = with_level(level, || compute(case, &inputs));
        let name =
            |what: &str| format!("{what} {:?} {level:?} half {} window {:?}", case.heads, case.half, case.window);
        let tolerance = if case.half { 2e-2 } else { 5e-6 };
        assert_close(&name("o"), &got.o.to_f64(), &o, tolerance);
        for (g, w) in got.lse.iter().zip(&lse) {
            assert!(f64::from(*g) == *w || (f64::from(*g) - w).abs() < tolerance, "{}: {g}, expected {w}", name("lse"));
        }
        for (what, (g, w)) in ["dq", "dk", "dv"].iter().zip(got.grads.iter().zip(&grads)) {
            assert_close(&name(what), &g.to_f64(), w, tolerance);
        }
    }
}

fn borders(lengths: &[u32]) -> Vec<u32> {
    std::iter::once(0)
        .chain(lengths.iter().scan(0, |sum, l| {
            *sum += l;
            Some(*sum)
        }))
        .collect()
}

#[test]
fn sequences_heads_and_windows() {
    for half in [false, true] {
        for heads in [(1, 1, 8), (3, 1, 64), (4, 2, 24), (2, 2, 16), (6, 3, 40), (5, 1, 48), (1, 1, 256)] {
            for window in [None, Some(1), Some(37), Some(150)] {
                let cu = borders(&[1, 0, 130, 65, 7]);
                check(&Case { heads, window, cu_q: cu.clone(), cu_k: cu, half });
            }
        }
    }
}

#[test]
fn queries_at_the_end_of_longer_keys() {
    for half in [false, true] {
        for window in [None, Some(50)] {
            let (cu_q, cu_k) = (borders(&[1, 3, 0, 70, 5]), borders(&[200, 3, 9, 100, 2]));
            check(&Case { heads: (6, 2, 32), window, cu_q, cu_k, half });
        }
    }
}

#[test]
fn no_token_at_all() {
    for cu in [vec![0], vec![0, 0, 0]] {
        check(&Case { heads: (2, 1, 8), window: None, cu_q: cu.clone(), cu_k: cu, half: false });
    }
}

#[test]
fn naive_gradients_are_the_derivatives() {
    let cu = borders(&[3, 5]);
    let case = Case { heads: (4, 2, 8), window: Some(4), cu_q: cu.clone(), cu_k: cu, half: false };
    let [q, k, v, dout] = inputs(&case).each_ref().map(Owned::to_f64);
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        naive(&case.shape(), q, k, v).0.iter().zip(&dout).map(|(o, g)| o * g).sum()
    };
    let [dq, dk, dv] = naive_backward(&case.shape(), &q, &k, &v, &dout);
    assert_close("dq", &differences(&q, |q| loss(q, &k, &v)), &dq, 1e-7);
    assert_close("dk", &differences(&k, |k| loss(&q, k, &v)), &dk, 1e-7);
    assert_close("dv", &differences(&v, |v| loss(&q, &k, v)), &dv, 1e-7);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for half in [false, true] {
        let cu = borders(&[300, 20, 131]);
        let case = Case { heads: (3, 1, 32), window: None, cu_q: cu.clone(), cu_k: cu, half };
        let inputs = inputs(&case);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
            let got = pool.install(|| compute(&case, &inputs));
            let [dq, dk, dv] = got.grads.each_ref().map(Owned::to_f64);
            ([got.o.to_f64(), dq, dk, dv].concat(), got.lse)
        };
        // One thread takes whole heads, forty the two sweeps.
        let one = run(1);
        for threads in [2, 40] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }
}
