//! Half precision: each kernel gives what it gives in f32 for the same values, rounded once.

use super::common::values;
use ferrotune_tensor::cpu::*;
use half::f16;

/// Values of 8 bits, in both types.
fn both(n: usize, seed: u32) -> (Vec<f32>, Vec<f16>) {
    let wide = values(n, seed);
    let narrow = wide.iter().map(|x| f16::from_f32(*x)).collect();
    (wide, narrow)
}

fn assert_rounded(what: &str, narrow: &[f16], wide: &[f32]) {
    assert_eq!(narrow.len(), wide.len(), "{what}");
    for (i, (n, w)) in narrow.iter().zip(wide).enumerate() {
        assert_eq!(n.to_bits(), f16::from_f32(*w).to_bits(), "{what} at {i}: {n}, expected {w}");
    }
}

fn everywhere(check: impl Fn()) {
    Level::available().for_each(|level| with_level(level, &check));
}

/// Runs an op that writes to `$n` elements in both types and compares.
macro_rules! agrees {
    ($what:expr, $start:expr, |$out:ident, $kind:ident| $call:expr) => {{
        let (mut wide, mut narrow) = $start;
        {
            let $out = DataMut::F32(&mut wide);
            macro_rules! $kind {
                ($x:expr) => {
                    Data::F32(&$x.0)
                };
            }
            $call;
        }
        {
            let $out = DataMut::F16(&mut narrow);
            macro_rules! $kind {
                ($x:expr) => {
                    Data::F16(&$x.1)
                };
            }
            $call;
        }
        assert_rounded($what, &narrow, &wide);
    }};
}

fn zeros(n: usize) -> (Vec<f32>, Vec<f16>) {
    (vec![0.0; n], vec![f16::ZERO; n])
}

#[test]
fn element_by_element() {
    for n in [1, 15, 33, 1000] {
        everywhere(|| {
            let (x, y, z) = (both(n, 1), both(n, 2), both(n, 3));
            agrees!("sum", both(n, 1), |out, of| add_assign(out, of!(y)));
            agrees!("scaled", both(n, 1), |out, of| {
                let _ = of!(y);
                scale(out, 0.3);
            });
            agrees!("cast", zeros(n), |out, of| cast(out, of!(x)));
            agrees!("swiglu", zeros(n), |out, of| swiglu(of!(x), of!(y), out));
            let (mut gate, mut up, mut gate_16, mut up_16) = (zeros(n).0, zeros(n).0, zeros(n).1, zeros(n).1);
            let to = (DataMut::F32(&mut gate), DataMut::F32(&mut up));
            swiglu_backward(Data::F32(&z.0), Data::F32(&x.0), Data::F32(&y.0), to.0, to.1);
            let to = (DataMut::F16(&mut gate_16), DataMut::F16(&mut up_16));
            swiglu_backward(Data::F16(&z.1), Data::F16(&x.1), Data::F16(&y.1), to.0, to.1);
            assert_rounded("dgate", &gate_16, &gate);
            assert_rounded("dup", &up_16, &up);
            assert_eq!(sum_of_squares(Data::F32(&x.0)), sum_of_squares(Data::F16(&x.1)));
            let mut far = x.1;
            assert!(all_finite(Data::F16(&far)));
            far[n - 1] = f16::INFINITY;
            assert!(!all_finite(Data::F16(&far)));
        });
    }
}

#[test]
fn rows() {
    let (rows, width) = (5, 68);
    everywhere(|| {
        let (x, w, dy) = (both(rows * width, 1), both(width, 2), both(rows * width, 3));
        let mut rstd = vec![0.0; rows];
        agrees!("norm", zeros(rows * width), |out, of| rmsnorm(of!(x), of!(w), 1e-5, out, &mut rstd));
        agrees!("norm again", zeros(rows * width), |out, of| rmsnorm_apply(of!(x), Data::F32(&w.0), &rstd, out));
        agrees!("gradient of the norm", zeros(rows * width), |out, of| {
            let given = RmsNormGrad { x: of!(x), w: of!(w), rstd: &rstd, dy: of!(dy) };
            rmsnorm_backward(&given, out, None, &mut []);
        });
        let index = [3u32, 0, 4];
        agrees!("gathered", zeros(3 * width), |out, of| gather_rows(of!(x), &index, out, width));
        agrees!("scattered", zeros(rows * width), |out, of| scatter_rows(of!(w), &index[..1], out, width));
        let (mut sums, mut sums_16) = (vec![1.0; rows * width], vec![1.0; rows * width]);
        scatter_add_rows(Data::F32(&dy.0[..3 * width]), &index, &mut sums, width);
        scatter_add_rows(Data::F16(&dy.1[..3 * width]), &index, &mut sums_16, width);
        assert_eq!(sums, sums_16);
        let (samples, positions) = ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]);
        let key = NoiseKey { seed: 1, step: 2, site: 3, samples: &samples, positions: &positions };
        agrees!("dropout", zeros(rows * width), |out, of| dropout(of!(x), out, width, 0.3, &key));
        let (cos, sin) = (values(rows * width / 4, 8), values(rows * width / 4, 9));
        agrees!("rotated", both(rows * width, 1), |out, of| {
            let _ = of!(x);
            rope(out, &cos, &sin, width / 2, false);
        });
    });
}

#[test]
fn attention() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 40,
        window: None,
        scale: 0.2,
        cu_q: &[0, 3, 70],
        cu_k: &[0, 3, 130],
    };
    let (q, k) = (70 * 160, 130 * 80);
    everywhere(|| {
        let (queries, keys, dout) = (both(q, 1), [both(k, 2), both(k, 3)], both(q, 4));
        let mut lse = [vec![0.0; 280], vec![0.0; 280]];
        let wide = Attention { shape, q: Data::F32(&queries.0), k: Data::F32(&keys[0].0), v: Data::F32(&keys[1].0) };
        let narrow = Attention { shape, q: Data::F16(&queries.1), k: Data::F16(&keys[0].1), v: Data::F16(&keys[1].1) };
        let (mut o, mut o_16) = zeros(q);
        attention_forward(&wide, DataMut::F32(&mut o), &mut lse[0]);
        attention_forward(&narrow, DataMut::F16(&mut o_16), &mut lse[1]);
        assert_rounded("output", &o_16, &o);
        assert_eq!(lse[0], lse[1]);
        // The gradient takes the output as it was rounded.
        let o: Vec<f32> = o_16.iter().map(|x| x.to_f32()).collect();
        let mut work = vec![0.0; attention_backward_workspace(&shape)];
        let ((mut dq, mut dq_16), (mut dk, mut dk_16), (mut dv, mut dv_16)) = (zeros(q), zeros(k), zeros(k));
        let given = AttentionGrad { o: Data::F32(&o), lse: &lse[0], dout: Data::F32(&dout.0) };
        let to = (DataMut::F32(&mut dq), DataMut::F32(&mut dk), DataMut::F32(&mut dv));
        attention_backward(&wide, &given, to, &mut work);
        let given = AttentionGrad { o: Data::F16(&o_16), lse: &lse[0], dout: Data::F16(&dout.1) };
        let to = (DataMut::F16(&mut dq_16), DataMut::F16(&mut dk_16), DataMut::F16(&mut dv_16));
        attention_backward(&narrow, &given, to, &mut work);
        assert_rounded("dq", &dq_16, &dq);
        assert_rounded("dk", &dk_16, &dk);
        assert_rounded("dv", &dv_16, &dv);
    });
}

#[test]
fn products() {
    for (m, n, k) in [(1, 70, 33), (5, 3, 40), (70, 8, 65), (40, 50, 31), (66, 130, 200)] {
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
            everywhere(|| {
                let (a, b, bias, c) = (both(m * k, 1), both(k * n, 2), both(n, 3), both(m * n, 4));
                let second = (both(m * 4, 5), both(4 * n, 6));
                let args = |a, b, a2, b2, bias| Gemm {
                    m,
                    n,
                    product: Product {
                        alpha: 0.5,
                        a: Mat { data: a, ld: if trans_a { m } else { k }, trans: trans_a },
                        b: Mat { data: b, ld: if trans_b { k } else { n }, trans: trans_b },
                        k,
                    },
                    second: Some(Product { alpha: 0.25, a: Mat::new(a2, 4), b: Mat::new(b2, n), k: 4 }),
                    beta: 0.5,
                    bias: Some(bias),
                };
                let low = (Data::F32(&second.0.0), Data::F32(&second.1.0));
                let (mut wide, mut narrow) = c;
                let exact = args(Data::F32(&a.0), Data::F32(&b.0), low.0, low.1, Data::F32(&bias.0));
                let halves = args(Data::F16(&a.1), Data::F16(&b.1), low.0, low.1, Data::F16(&bias.1));
                gemm(&halves, DataMut::F16(&mut narrow), n);
                // Sums of products of 8 bits are exact, so that the ways of computing them agree.
                gemm(&exact, DataMut::F32(&mut wide), n);
                assert_rounded(&format!("{m} x {n} x {k}, {trans_a} {trans_b}"), &narrow, &wide);
                let (mut wide, mut narrow) = zeros(m * n);
                gemm(&Gemm { second: None, bias: None, beta: 0.0, ..exact }, DataMut::F32(&mut wide), n);
                gemm(&Gemm { second: None, bias: None, beta: 0.0, ..halves }, DataMut::F16(&mut narrow), n);
                assert_rounded(&format!("alone {m} x {n} x {k}, {trans_a} {trans_b}"), &narrow, &wide);
            });
        }
    }
}

#[test]
fn experts() {
    let (tokens, top_k, width) = (3, 2, 70);
    let slots = [4u32, 0, 2, 5, 1, 3];
    let weights = values(6, 7);
    everywhere(|| {
        let (rows, dy) = (both(tokens * top_k * width, 1), both(tokens * width, 2));
        agrees!("combined", zeros(tokens * width), |out, of| combine(of!(rows), &slots, Some(&weights), out, width));
        let (mut dweights, mut kept) = (vec![0.0; 6], Vec::new());
        agrees!("spread", zeros(tokens * top_k * width), |out, of| {
            combine_backward((of!(dy), of!(rows)), (&slots, &weights), (out, &mut dweights), width);
            kept.push(dweights.clone());
        });
        assert_eq!(kept[0], kept[1], "gradients of the weights");
        let gate = both(tokens, 5);
        let z = both(tokens * width, 6);
        agrees!("gated", zeros(tokens * width), |out, of| add_gated(of!(dy), of!(z), of!(gate), out, width));
        let offsets = [0u32, 2, 2, 6];
        let b = both(3 * 9 * width, 8);
        agrees!("products", zeros(6 * 9), |out, of| {
            let stack = Stack { alpha: 1.0, a: of!(rows), b: of!(b), trans: true, k: width };
            grouped(&offsets, 9, 0.0, &stack, None, out);
        });
    });
}

#[test]
fn weights_are_updated_through_their_master() {
    let step = AdamW { rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    everywhere(|| {
        let (grad, (mut plain, mut weight)) = (values(40, 2), both(40, 1));
        let mut master = plain.clone();
        let [mut m, mut v, mut m_16, mut v_16] = [(); 4].map(|()| vec![0.0; 40]);
        adamw(&step, DataMut::F32(&mut plain), &grad, AdamWState { m: &mut m, v: &mut v, master: None });
        let state = AdamWState { m: &mut m_16, v: &mut v_16, master: Some(&mut master) };
        adamw(&step, DataMut::F16(&mut weight), &grad, state);
        assert_eq!((plain.clone(), m, v), (master, m_16, v_16));
        assert_rounded("weights", &weight, &plain);
    });
}
