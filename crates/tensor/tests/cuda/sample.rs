//! The next token: penalty, temperature and cuts, against a version in f64 that sorts.

use super::common::*;
use ferrotune_ptx::Arg;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Copy, Debug)]
struct Cuts {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f32,
}

/// The CPU sampler's uniform number after so many picks.
fn uniform(state: u64) -> f64 {
    let mut z = state.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The token at `u` of the sorted tokens that the cuts leave, sums being off by `off`.
fn wanted(z: &[f64], cuts: Cuts, u: f64, off: f64) -> u32 {
    let mut order: Vec<usize> = (0..z.len()).filter(|i| !z[*i].is_nan()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
    if (1..order.len()).contains(&cuts.top_k) {
        order.truncate(cuts.top_k);
    }
    let weight = |i: usize| ((z[i] - z[order[0]]) / cuts.temperature).exp();
    let mut left: Vec<(usize, f64)> = order.iter().map(|i| (*i, weight(*i))).collect();
    if cuts.top_p < 1.0 {
        let limit = (cuts.top_p + off) * left.iter().map(|c| c.1).sum::<f64>();
        let mut sum = 0.0;
        let inside = left.iter().take_while(|c| {
            let before = sum < limit;
            sum += c.1;
            before
        });
        let count = inside.count().max(1);
        left.truncate(count);
    }
    left.retain(|c| c.1 >= f64::from(cuts.min_p));
    let mut rest = (u + off) * left.iter().map(|c| c.1).sum::<f64>();
    let found = left.iter().find(|c| {
        rest -= c.1;
        rest < 0.0
    });
    found.or(left.last()).expect("a token").0 as u32
}

fn check(vocab: usize, cuts: Cuts, logits: impl Fn(usize) -> f64) {
    const ROWS: usize = 6;
    let z: Vec<f64> = (0..ROWS * vocab).map(logits).collect();
    let states: Vec<u64> = (0..ROWS as u64).map(|row| 12 + GOLDEN.wrapping_mul(row * row)).collect();
    let got = on_gpu(|gpu| {
        let (za, out) = (gpu.array(Type::F32, &z), gpu.words(&[u32::MAX; ROWS]));
        let halves: Vec<u32> = states.iter().flat_map(|s| [*s as u32, (*s >> 32) as u32]).collect();
        let head = [za.into(), gpu.words(&halves), out.clone(), Arg::U32(vocab as u32)];
        let inverse = Arg::F32((1.0 / cuts.temperature) as f32);
        let tail = [inverse, Arg::U32(cuts.top_k as u32), Arg::F64(cuts.top_p), Arg::F32(cuts.min_p)];
        gpu.launch("sample", [ROWS as u32, 1, 1], [1024, 1, 1], &[&head[..], &tail].concat());
        gpu.raw(&out, 4 * ROWS)
    });
    for (row, token) in got.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).enumerate() {
        let (z, u) = (&z[row * vocab..][..vocab], uniform(states[row]));
        // Weights are within 2e-6: a token at the very border may be its neighbour.
        let allowed = [-4e-6, 0.0, 4e-6].map(|off| wanted(z, cuts, u, off));
        assert!(allowed.contains(&token), "{vocab} {cuts:?} row {row}: {token}, expected {allowed:?}");
    }
}

const NONE: Cuts = Cuts { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

#[test]
fn tokens_are_those_of_the_sorted_list() {
    // Eight bits a logit, so that many are equal.
    let spread = |seed: u32, bound: f64| {
        let z = values(6 * 1300, seed, bound);
        move |i: usize| z[i]
    };
    for cuts in [
        NONE,
        Cuts { temperature: 0.3, ..NONE },
        Cuts { top_k: 7, ..NONE },
        Cuts { top_k: 40, temperature: 2.0, top_p: 0.7, min_p: 0.05 },
        Cuts { top_p: 0.9, ..NONE },
        Cuts { min_p: 0.3, ..NONE },
    ] {
        check(1300, cuts, spread(3, 4.0));
        check(5, cuts, spread(4, 4.0));
        check(1, cuts, |_| 0.5);
    }
    check(40, Cuts { top_p: 1e-9, ..NONE }, spread(5, 1.0));
}

#[test]
fn equal_logits_are_taken_by_their_order() {
    for top_k in [0, 3, 1025] {
        check(2100, Cuts { top_k, top_p: 0.5, ..NONE }, |_| -2.0);
    }
    check(64, NONE, |i| if i % 3 == 0 { f64::NEG_INFINITY } else { f64::from(i as u32 % 2) });
    // Rows of 60 have 48 numbers each.
    for top_k in [9, 47, 48, 49] {
        check(60, Cuts { top_k, ..NONE }, |i| if i % 5 == 0 { f64::NAN } else { f64::from(i as u32 % 3) });
    }
}

#[test]
fn logits_a_step_apart_are_told_apart() {
    // Neighbours among floats: a cut between two of them is above the one and below the other.
    let near = |i: usize| 1.0 + f64::from((i as u32 * 7) % 4) * 2f64.powi(-23);
    for top_k in [5, 10, 20, 30] {
        for top_p in [0.5, 0.8, 1.0] {
            check(40, Cuts { top_k, top_p, ..NONE }, near);
        }
    }
}

#[test]
fn a_token_may_be_anywhere_in_a_threads_stretch() {
    // Six tokens a thread, of which each row has another that is chosen: alone, and as the second of a thread's equals.
    const VOCAB: usize = 6000;
    check(VOCAB, NONE, |i| if i % VOCAB == 6 * 17 + i / VOCAB { 30.0 } else { -30.0 });
    check(VOCAB, Cuts { top_k: 2, ..NONE }, |i| {
        let place = (i % VOCAB).wrapping_sub(6 * 17);
        if place == i / VOCAB || place == (i / VOCAB + 3) % 6 { 30.0 } else { -30.0 }
    });
}

#[test]
fn tokens_seen_are_penalised_once() {
    let (vocab, rows) = (300usize, 2usize);
    let z = values(rows * vocab, 7, 3.0);
    let seen = [5u32, 299, 5, 70_000, 0, 0, 5, 17];
    let got = on_gpu(|gpu| {
        let (za, marks) = (gpu.array(Type::F32, &z), gpu.words(&vec![0; rows * vocab]));
        let tokens = gpu.words(&seen);
        let args = [marks.clone(), tokens, Arg::U32(seen.len() as u32 / 2), Arg::U32(vocab as u32)];
        gpu.launch("mark_tokens", [rows as u32, 1, 1], [1024, 1, 1], &args);
        let args = [za.into(), marks, Arg::U64((rows * vocab) as u64), Arg::F32(1.3)];
        gpu.launch("penalise", [2, 1, 1], [256, 1, 1], &args);
        gpu.read(za)
    });
    for (row, tokens) in seen.chunks(4).enumerate() {
        for i in 0..vocab {
            let (x, at) = (z[row * vocab + i] as f32, row * vocab + i);
            let penalised = if x > 0.0 { x / 1.3 } else { x * 1.3 };
            let want = if tokens.contains(&(i as u32)) { penalised } else { x };
            assert_eq!(got[at], f64::from(want), "row {row}, token {i}");
        }
    }
}

#[test]
fn logits_that_say_nothing_give_the_first_token() {
    let got = on_gpu(|gpu| {
        let (za, out) = (gpu.array(Type::F32, &[f64::NAN; 9]), gpu.words(&[7]));
        let head = [za.into(), gpu.words(&[1, 2]), out.clone(), Arg::U32(9), Arg::F32(1.0)];
        let args = [&head[..], &[Arg::U32(0), Arg::F64(0.5), Arg::F32(0.1)]].concat();
        gpu.launch("sample", [1, 1, 1], [1024, 1, 1], &args);
        gpu.raw(&out, 4)
    });
    assert_eq!(got, [0; 4]);
}
