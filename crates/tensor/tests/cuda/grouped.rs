//! Grouped products on matrix instructions: experts without rows, with one, with more than a tile; sizes around a step and a
//! tile.

use super::common::*;
use super::stacks::*;
use ferrotune_ptx::Arg;

/// Bytes of shared memory that a block of so many rows and columns is launched with.
fn shared(rows: usize, columns: usize) -> usize {
    192 * (rows + columns)
}

fn check((of, to, columns): (Type, Type, usize), case: Case<'_>) {
    let inputs = case.inputs();
    let got = on_gpu(|gpu| {
        let [a, b, a2, b2] = [0, 1, 2, 3].map(|i| gpu.array(of, &inputs[i]));
        let c = gpu.array(to, &inputs[4]);
        let tiles = case.tiles();
        let grid = [case.n.div_ceil(columns) as u32, tiles.len() as u32 / 3, 1];
        let terms = [term((a, b), case.k, ALPHA), term((a2, b2), case.rank, ALPHA_2)];
        let rest = [c.into(), Arg::U32(case.n as u32), Arg::F32(case.beta), gpu.words(&tiles)];
        let trans = if case.trans { "_trans" } else { "" };
        let name = format!("grouped_{}_{}_{columns}{trans}", of.name(), to.name());
        gpu.launch_shared(&name, (grid, [256, 1, 1], shared(128, columns)), &[&terms[..], &rest].concat());
        gpu.read(c)
    });
    // Sums in f32, each step of sixteen rounded towards zero.
    assert_near(&format!("{case:?}"), to, &got, &case.want(&inputs), 2e-6);
}

#[test]
fn products_of_experts() {
    let case = Case { counts: &[0, 1, 131, 0, 7], n: 136, k: 104, rank: 8, trans: true, beta: 0.5 };
    for of in [Type::Bf16, Type::F16] {
        for trans in [true, false] {
            check((of, of, 128), Case { trans, ..case });
            check((of, of, 32), Case { trans, n: 40, k: 8, rank: 40, beta: 0.0, ..case });
            check((of, Type::F32, 32), Case { trans, n: 16, rank: 0, ..case });
            check((of, of, 128), Case { counts: &[129], n: 8, k: 32, trans, rank: 16, beta: 1.0 });
            check((of, of, 128), Case { counts: &[3, 2], n: 16, k: 200, rank: 0, trans, beta: 0.0 });
            check((of, Type::F32, 32), Case { counts: &[1, 0], n: 8, k: 64, rank: 24, trans, beta: 1.0 });
        }
    }
}

#[test]
fn every_edge_of_a_tile() {
    // An expert for each eighth of a tile's rows.
    let counts: Vec<usize> = (4..128).step_by(8).collect();
    let case = Case { counts: &counts, n: 8, k: 8, rank: 72, trans: true, beta: 0.0 };
    for (of, trans) in [(Type::Bf16, true), (Type::Bf16, false), (Type::F16, true), (Type::F16, false)] {
        for beta in [0.0, 0.5] {
            for columns in [128, 32] {
                check((of, of, columns), Case { trans, beta, ..case });
                check((of, of, columns), Case { trans, beta, n: columns, rank: 8, ..case });
                for n in (8..=columns).step_by(8) {
                    check((of, of, columns), Case { counts: &[9], n, trans, beta, ..case });
                }
            }
            check((of, Type::F32, 32), Case { trans, beta, ..case });
            check((of, Type::F32, 32), Case { trans, beta, n: 32, rank: 8, ..case });
            for n in (8..=32).step_by(8) {
                check((of, Type::F32, 32), Case { counts: &[9], n, trans, beta, ..case });
            }
        }
        for k in (8..136).step_by(8) {
            check((of, of, 128), Case { counts: &[5], k, rank: 136 - k, trans, ..case });
            check((of, of, 32), Case { counts: &[5], k, rank: 136 - k, trans, ..case });
            check((of, Type::F32, 32), Case { counts: &[5], k, rank: 136 - k, trans, ..case });
        }
        check((of, of, 128), Case { counts: &[131], n: 136, k: 16, trans, ..case });
    }
}

#[test]
fn outer_products_of_experts() {
    for of in [Type::Bf16, Type::F16] {
        for ((rows, columns), (m, n)) in [((128, 128), (136, 72)), ((128, 32), (136, 40)), ((32, 128), (40, 136))] {
            for counts in [&[0usize, 1, 7, 100][..], &[33, 0]] {
                let case = Case { counts, n, k: m, rank: 0, trans: false, beta: 0.0 };
                let (offsets, experts) = (case.offsets(), counts.len());
                let (a, b) = (values(case.rows() * m, 1, 0.5), values(case.rows() * n, 2, 0.5));
                let c = values(experts * m * n, 3, 1.0);
                let got = on_gpu(|gpu| {
                    let (aa, ba, ca) = (gpu.array(of, &a), gpu.array(of, &b), gpu.array(Type::F32, &c));
                    let numbers = [Arg::U32(m as u32), Arg::U32(n as u32), Arg::F32(ALPHA), gpu.words(&offsets)];
                    let args = [&[aa.into(), ba.into(), ca.into()][..], &numbers].concat();
                    let grid = [n.div_ceil(columns) as u32, m.div_ceil(rows) as u32, experts as u32];
                    let name = format!("grouped_outer_{}_{rows}_{columns}", of.name());
                    gpu.launch_shared(&name, (grid, [256, 1, 1], shared(rows, columns)), &args);
                    gpu.read(ca)
                });
                let want = outer(&offsets, (m, n), [&a, &b, &c]);
                assert_near(&format!("{rows} x {columns} of {counts:?}"), Type::F32, &got, &want, 2e-6);
            }
        }
    }
}
