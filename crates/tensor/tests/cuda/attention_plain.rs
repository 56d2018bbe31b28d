//! Attention without matrix instructions: f32 with its gradient, and decoding over split keys.

use super::common::*;
use super::spans::*;
use ferrotune_ptx::Arg;

const BLOCK: [u32; 3] = [32, 4, 1];

fn quarter(items: usize) -> u32 {
    items.div_ceil(4) as u32
}

/// Output, log-sum-exp, and the gradients of q, k and v.
pub(crate) fn compute(gpu: &mut Gpu, of: Type, case: &Case) -> [Vec<f64>; 5] {
    let [q, k, v, dout] = case.inputs().map(|x| gpu.array(of, &x));
    let rows = case.queries();
    let name = |kernel: &str| format!("{kernel}_{}", of.name());
    let [o, dq] = [(); 2].map(|()| gpu.empty(of, q.len));
    let [dk, dv] = [(); 2].map(|()| gpu.empty(of, k.len));
    let [lse, delta] = [(); 2].map(|()| gpu.empty(Type::F32, case.heads * rows));
    let (spans, _) = spans(gpu, case, &case.cu_q);
    let dim = Arg::U32(case.dim as u32);
    let grid = [quarter(rows * case.heads), 1, 1];
    let args = [q.into(), k.into(), v.into(), o.into(), lse.into(), NULL, spans.clone(), dim.clone()];
    gpu.launch(&name("attention_plain_forward"), grid, BLOCK, &args);
    let numbers = [rows, case.heads, case.dim].map(|n| Arg::U32(n as u32));
    gpu.launch(&name("attention_delta"), grid, BLOCK, &[&[o.into(), dout.into(), delta.into()][..], &numbers].concat());
    let inputs = [q, k, v, dout, lse, delta].map(Arg::from);
    let args = [&inputs[..], &[dq.into(), spans.clone(), dim.clone()]].concat();
    gpu.launch(&name("attention_plain_backward_queries"), grid, BLOCK, &args);
    let grid = [quarter(case.keys() * case.kv_heads), 1, 1];
    let args = [&inputs[..], &[dk.into(), dv.into(), spans, dim, Arg::U32(case.keys() as u32)]].concat();
    gpu.launch(&name("attention_plain_backward_keys"), grid, BLOCK, &args);
    [o, lse, dq, dk, dv].map(|x| gpu.read(x))
}

fn check(of: Type, case: &Case) {
    let got = on_gpu(|gpu| compute(gpu, of, case));
    let want = reference(case, &case.inputs(), of);
    let unseen = |x: &[f64]| x.iter().map(|x| if x.is_finite() { *x } else { -1e9 }).collect::<Vec<_>>();
    assert_eq!(
        got[1].iter().map(|x| x.is_finite()).collect::<Vec<_>>(),
        want.lse.iter().map(|x| x.is_finite()).collect::<Vec<_>>()
    );
    assert_near(&format!("lse of {case:?}"), Type::F32, &unseen(&got[1]), &unseen(&want.lse), 1e-6);
    let pairs =
        [("o", &got[0], &want.o), ("dq", &got[2], &want.dq), ("dk", &got[3], &want.dk), ("dv", &got[4], &want.dv)];
    for (part, got, want) in pairs {
        // Everything between inputs and outputs is f32, but for the output from which delta is taken: its rounding may tip
        // to a neighbour.
        assert_near(
            &format!("{part} of {case:?}"),
            of,
            got,
            want,
            2e-6 + if of == Type::F32 { 0.0 } else { of.unit() },
        );
    }
}

#[test]
fn attention_in_f32() {
    for case in [
        case((1, 1, 8), None, &[0, 1], &[0, 1]),
        case((4, 2, 64), None, &[0, 3, 3, 40], &[0, 3, 3, 40]),
        case((2, 1, 128), Some(33), &[0, 2, 40], &[0, 70, 111]),
        case((1, 1, 256), None, &[0, 36], &[0, 36]),
        case((2, 2, 96), Some(1), &[0, 5, 6], &[0, 3, 9]),
        case((3, 1, 24), None, &[0, 35, 35], &[0, 2, 7]),
    ] {
        check(Type::F32, &case);
    }
}

#[test]
fn attention_of_other_heads() {
    for of in [Type::Bf16, Type::F16] {
        check(of, &case((1, 1, 8), None, &[0, 1], &[0, 1]));
        check(of, &case((4, 2, 80), None, &[0, 3, 3, 40], &[0, 3, 3, 40]));
        check(of, &case((2, 1, 16), Some(5), &[0, 2, 20], &[0, 40, 61]));
        check(of, &case((2, 2, 32), Some(1), &[0, 5, 6], &[0, 3, 9]));
    }
}

#[test]
fn decoding_over_split_keys() {
    for of in TYPES {
        for (case, splits) in [
            (case((4, 2, 64), None, &[0, 1], &[0, 1]), 3),
            (case((2, 1, 128), None, &[0, 1], &[0, 200]), 4),
            (case((2, 2, 96), Some(50), &[0, 1, 3], &[0, 80, 120]), 2),
            (case((1, 1, 256), None, &[0, 1], &[0, 97]), 1),
            (case((1, 1, 64), None, &[0, 2], &[0, 1]), 2),
        ] {
            let got = on_gpu(|gpu| {
                let [q, k, v, _] = case.inputs().map(|x| gpu.array(of, &x));
                let (items, o) = (case.queries() * case.heads, gpu.empty(of, q.len));
                let parts = gpu.empty(Type::F32, splits * items * (case.dim + 2));
                let (spans, _) = spans(gpu, &case, &case.cu_q);
                let dim = Arg::U32(case.dim as u32);
                let args = [q.into(), k.into(), v.into(), NULL, NULL, parts.into(), spans, dim.clone()];
                let name = format!("attention_plain_forward_{}", of.name());
                gpu.launch(&name, [quarter(items), splits as u32, 1], BLOCK, &args);
                let args = [o.into(), parts.into(), Arg::U32(splits as u32), Arg::U32(items as u32), dim];
                gpu.launch(&format!("attention_combine_{}", of.name()), [quarter(items), 1, 1], BLOCK, &args);
                gpu.read(o)
            });
            let want = reference(&case, &case.inputs(), of);
            assert_near(&format!("{case:?} in {splits}"), of, &got, &want.o, 1e-6);
        }
    }
}
