//! Grouped products without matrix instructions: every mix of types, sizes that are multiples of nothing.

use super::common::*;
use super::stacks::*;
use ferrotune_ptx::Arg;
use ferrotune_tensor::cpu::{self, Data, DataMut, Stack};

/// Types of a, b and c.
fn mixes() -> Vec<[Type; 3]> {
    let halves = [Type::Bf16, Type::F16];
    let mixed = halves.into_iter().flat_map(|t| [[t; 3], [t, Type::F32, Type::F32], [Type::F32, Type::F32, t]]);
    std::iter::once([Type::F32; 3]).chain(mixed).collect()
}

fn check([of_a, of_b, to]: [Type; 3], case: Case<'_>) {
    let inputs = case.inputs();
    let got = on_gpu(|gpu| {
        let (a, b, c) = (gpu.array(of_a, &inputs[0]), gpu.array(of_b, &inputs[1]), gpu.array(to, &inputs[4]));
        let second = (gpu.array(Type::F32, &inputs[2]), gpu.array(Type::F32, &inputs[3]));
        let tiles = case.tiles();
        let grid = [case.n.div_ceil(64) as u32, tiles.len() as u32 / 3, 1];
        let terms = [term((a, b), case.k, ALPHA), term(second, case.rank, ALPHA_2)];
        let (n, trans) = (Arg::U32(case.n as u32), Arg::U32(u32::from(case.trans)));
        let rest = [c.into(), n, Arg::F32(case.beta), trans, gpu.words(&tiles)];
        let name = format!("grouped_plain_{}_{}_{}", of_a.name(), of_b.name(), to.name());
        gpu.launch(&name, grid, [256, 1, 1], &[&terms[..], &rest].concat());
        gpu.read(c)
    });
    assert_near(&format!("{case:?}"), to, &got, &case.want(&inputs), 1e-6);
    if to == Type::F32 && of_a == Type::F32 {
        let narrow = inputs.each_ref().map(|x| x.iter().map(|x| *x as f32).collect::<Vec<_>>());
        let stack = |alpha, a: usize, k| Stack {
            alpha,
            a: Data::F32(&narrow[a]),
            b: Data::F32(&narrow[a + 1]),
            trans: case.trans,
            k,
        };
        let (first, second) = (stack(ALPHA, 0, case.k), stack(ALPHA_2, 2, case.rank));
        let mut want = narrow[4].clone();
        let second = (case.rank > 0).then_some(&second);
        cpu::grouped(&case.offsets(), case.n, case.beta, &first, second, DataMut::F32(&mut want));
        let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
        assert_near(&format!("the CPU's {case:?}"), to, &got, &want, 1e-6);
    }
}

#[test]
fn products_of_experts() {
    let case = Case { counts: &[0, 1, 131, 0, 7], n: 67, k: 19, rank: 4, trans: true, beta: 0.5 };
    for (types, trans) in mixes().into_iter().flat_map(|types| [(types, true), (types, false)]) {
        check(types, Case { trans, ..case });
        check(types, Case { counts: &[2, 1], n: 1, k: 1, rank: 0, trans, beta: 1.0 });
        check(types, Case { counts: &[9], n: 3, k: 40, rank: 17, trans, beta: 0.0 });
        check(types, Case { counts: &[131], n: 67, k: 3, rank: 0, trans, beta: 0.0 });
    }
}

#[test]
fn every_edge_of_a_tile() {
    for (types, trans) in mixes().into_iter().flat_map(|types| [(types, true), (types, false)]) {
        for n in (10..64).step_by(16) {
            check(types, Case { counts: &[2 * n - 1], n, k: 5, rank: 2, trans, beta: 0.0 });
        }
    }
}

#[test]
fn outer_products_of_experts() {
    let f32 = Type::F32;
    let mixed = [Type::Bf16, Type::F16].into_iter().flat_map(|t| [(t, t), (t, f32), (f32, t)]);
    for (of_a, of_b) in std::iter::once((f32, f32)).chain(mixed) {
        let lengths: Vec<[usize; 1]> = (1..=16).map(|n| [n]).collect();
        let sizes = [(&[0usize, 1, 19][..], 131, 5), (&[3, 0], 4, 70), (&[33], 1, 1), (&[2], 20, 10), (&[2], 90, 42)];
        // Whatever the last step of the reduction has, nothing is read behind it.
        for (counts, m, n) in lengths.iter().map(|n| (&n[..], 3, 2)).chain(sizes) {
            let case = Case { counts, n, k: m, rank: 0, trans: false, beta: 0.0 };
            let (offsets, experts) = (case.offsets(), counts.len());
            let (a, b) = (values(case.rows() * m, 1, 0.5), values(case.rows() * n, 2, 0.5));
            let c = values(experts * m * n, 3, 1.0);
            let got = on_gpu(|gpu| {
                let (aa, ba, ca) = (gpu.array(of_a, &a), gpu.array(of_b, &b), gpu.array(f32, &c));
                let numbers = [Arg::U32(m as u32), Arg::U32(n as u32), Arg::F32(ALPHA), gpu.words(&offsets)];
                let args = [&[aa.into(), ba.into(), ca.into()][..], &numbers].concat();
                let grid = [n.div_ceil(64) as u32, m.div_ceil(128) as u32, experts as u32];
                gpu.launch(&format!("grouped_outer_plain_{}_{}", of_a.name(), of_b.name()), grid, [256, 1, 1], &args);
                gpu.read(ca)
            });
            let want = outer(&offsets, (m, n), [&a, &b, &c]);
            assert_near(&format!("{of_a:?} {of_b:?} of {counts:?}"), f32, &got, &want, 1e-6);
        }
    }
}
