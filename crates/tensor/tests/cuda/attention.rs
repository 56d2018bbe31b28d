//! Attention on matrix instructions against a naive f64 version: grouped heads, several sequences, more keys than queries,
//! windows, queries that see nothing.

use super::common::*;
use super::spans::*;
use ferrotune_ptx::Arg;

/// Rows of passing tiles, as `kernels/attention.cu` has them: forward, dq, dk and dv.
fn passing(dim: usize) -> [usize; 3] {
    match dim {
        64 => [64, 64, 64],
        256 => [32, 16, 32],
        _ => [64, 32, 32],
    }
}

fn shared(dim: usize) -> [usize; 3] {
    let [n, n_q, n_k] = passing(dim);
    let held = if dim == 256 { 64 } else { 0 };
    [(2 * n + held) * 2 * dim, (128 + 2 * n_q) * 2 * dim, (128 + 2 * n_k) * 2 * dim + 8 * n_k]
}

/// Output, log-sum-exp, and the gradients of q, k and v.
pub(crate) fn compute(gpu: &mut Gpu, of: Type, case: &Case) -> [Vec<f64>; 5] {
    let [q, k, v, dout] = case.inputs().map(|x| gpu.array(of, &x));
    let (heads, rows) = (case.heads as u32, case.queries());
    let [o, dq] = [(); 2].map(|()| gpu.empty(of, q.len));
    let [dk, dv] = [(); 2].map(|()| gpu.empty(of, k.len));
    let [lse, delta] = [(); 2].map(|()| gpu.empty(Type::F32, case.heads * rows));
    let name = |kernel: &str| format!("attention_{kernel}_{}_{}", of.name(), case.dim);
    let shared = shared(case.dim);
    let (by_query, blocks) = spans(gpu, case, &case.cu_q);
    if blocks > 0 {
        let args = [q.into(), k.into(), v.into(), o.into(), lse.into(), by_query.clone()];
        gpu.launch_shared(&name("forward"), ([heads, blocks, 1], [128, 1, 1], shared[0]), &args);
        let args = [o.into(), dout.into(), delta.into()];
        let numbers = [rows, case.heads, case.dim].map(|n| Arg::U32(n as u32));
        let grid = [(rows * case.heads).div_ceil(4) as u32, 1, 1];
        gpu.launch(&format!("attention_delta_{}", of.name()), grid, [32, 4, 1], &[&args[..], &numbers].concat());
        let args = [q, k, v, dout, lse, delta, dq].map(Arg::from);
        let shape = ([heads, blocks, 1], [128, 1, 1], shared[1]);
        gpu.launch_shared(&name("backward_queries"), shape, &[&args[..], &[by_query]].concat());
    }
    let (by_key, blocks) = spans(gpu, case, &case.cu_k);
    let threads = if case.dim == 256 { 256 } else { 128 };
    let args = [q, k, v, dout, lse, delta, dk, dv].map(Arg::from);
    let shape = ([case.kv_heads as u32, blocks, 1], [threads, 1, 1], shared[2]);
    gpu.launch_shared(&name("backward_keys"), shape, &[&args[..], &[by_key]].concat());
    [o, lse, dq, dk, dv].map(|x| gpu.read(x))
}

fn check(of: Type, case: &Case) {
    let got = on_gpu(|gpu| compute(gpu, of, case));
    let want = reference(case, &case.inputs(), of);
    // Probabilities and their gradients are rounded before they are multiplied: a unit of each term, and terms' errors
    // are independent, so a few units of the largest sum hold them all.
    let slack = 3.0 * of.unit();
    let what = |part: &str| format!("{part} of {case:?}");
    let unseen = |x: &[f64]| x.iter().map(|x| if x.is_finite() { *x } else { -1e9 }).collect::<Vec<_>>();
    assert_near(&what("lse"), Type::F32, &unseen(&got[1]), &unseen(&want.lse), 1e-6);
    for (part, got, want) in
        [("o", &got[0], &want.o), ("dq", &got[2], &want.dq), ("dk", &got[3], &want.dk), ("dv", &got[4], &want.dv)]
    {
        assert_near(&what(part), of, got, want, slack);
    }
}

#[test]
fn heads_of_64() {
    for of in [Type::Bf16, Type::F16] {
        check(of, &case((1, 1, 64), None, &[0, 1], &[0, 1]));
        check(of, &case((4, 2, 64), None, &[0, 3, 3, 68, 198], &[0, 3, 3, 68, 198]));
        check(of, &case((2, 1, 64), Some(70), &[0, 130, 140], &[0, 201, 211]));
    }
}

#[test]
fn heads_of_96() {
    check(Type::Bf16, &case((2, 1, 96), None, &[0, 5, 75], &[0, 5, 75]));
    check(Type::F16, &case((1, 1, 96), Some(9), &[0, 70], &[0, 71]));
}

#[test]
fn heads_of_128() {
    check(Type::Bf16, &case((3, 1, 128), None, &[0, 65], &[0, 65]));
    check(Type::Bf16, &case((1, 1, 128), Some(1), &[0, 33, 40], &[0, 33, 140]));
    check(Type::F16, &case((2, 2, 128), Some(40), &[0, 100], &[0, 100]));
}

#[test]
fn heads_of_256() {
    check(Type::Bf16, &case((2, 1, 256), None, &[0, 40, 107], &[0, 40, 107]));
    check(Type::F16, &case((1, 1, 256), Some(33), &[0, 66], &[0, 80]));
}

#[test]
fn every_edge_of_a_tile() {
    // A thread loads rows a step apart: each of its loads must end where the sequence does.
    for (dim, step) in [(64, 16), (96, 10), (128, 8), (256, 4)] {
        for rows in (3..64).step_by(step) {
            check(Type::Bf16, &case((1, 1, dim), None, &[0, rows], &[0, rows]));
        }
    }
}

#[test]
fn queries_that_see_nothing() {
    for of in [Type::Bf16, Type::F16] {
        for dim in [64, 128, 256] {
            // 70 queries over 3 keys: the first 67 come before every key.
            check(of, &case((2, 1, dim), None, &[0, 70, 72], &[0, 3, 5]));
            // Keys without queries.
            check(of, &case((1, 1, dim), None, &[0, 0, 1], &[0, 9, 80]));
        }
    }
}
