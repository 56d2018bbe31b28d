//! Routing, the order of rows by expert, and weighted sums, against the CPU's kernels.

use super::common::*;
use ferrotune_ptx::Arg;
use ferrotune_tensor::cpu::{self, Data, DataMut, Route, Routed};

/// Rows of a tile in these tests: few, so that an expert has several.
const HEIGHT: usize = 8;

/// What the CPU makes of logits.
struct Want {
    probabilities: Vec<f32>,
    weights: Vec<f32>,
    chosen: Vec<u32>,
    slots: Vec<u32>,
    sources: Vec<u32>,
    offsets: Vec<u32>,
}

fn on_cpu(logits: &[f32], args: Route) -> Want {
    let (tokens, k) = (logits.len() / args.experts, args.top_k);
    let floats = |n: usize| vec![0f32; n];
    let words = |n: usize| vec![0u32; n];
    let (mut probabilities, mut weights, mut chosen) = (floats(logits.len()), floats(tokens * k), words(tokens * k));
    let (mut slots, mut sources, mut offsets) = (words(tokens * k), words(tokens * k), words(args.experts + 1));
    let mut out = Routed {
        probabilities: &mut probabilities,
        weights: &mut weights,
        chosen: &mut chosen,
        slots: &mut slots,
        sources: &mut sources,
        offsets: &mut offsets,
    };
    cpu::route(logits, args, &mut out);
    Want { probabilities, weights, chosen, slots, sources, offsets }
}

fn number(x: usize) -> Arg {
    Arg::U32(x as u32)
}

fn read_words(gpu: &Gpu, at: &Arg, count: usize) -> Vec<u32> {
    gpu.raw(at, 4 * count).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Probabilities and weights; the choices, slots, sources, offsets and tiles.
fn on_device(gpu: &mut Gpu, logits: &[f64], args: Route) -> ([Vec<f64>; 2], [Vec<u32>; 5]) {
    let (e, k) = (args.experts, args.top_k);
    let (tokens, stretches) = (logits.len() / e, (logits.len() / e * k).div_ceil(1024));
    let choices = tokens * k;
    let (z, p, w) = (gpu.array(Type::F32, logits), gpu.empty(Type::F32, tokens * e), gpu.empty(Type::F32, choices));
    let most = choices.div_ceil(HEIGHT) + e;
    let [chosen, slots, sources] = [(); 3].map(|()| gpu.words(&vec![77; choices]));
    let (offsets, tiles) = (gpu.words(&vec![77; e + 1]), gpu.words(&vec![77; 3 * most]));
    let counts = gpu.words(&vec![77; stretches * e]);
    let tail = [number(tokens), number(e), number(k), Arg::U32(u32::from(args.normalize))];
    let head = [z.into(), p.into(), w.into(), chosen.clone()];
    let grid = [tokens.div_ceil(4) as u32, 1, 1];
    gpu.launch("route_choose", grid, [32, 4, 1], &[&head[..], &tail].concat());
    let (grid, warp) = ([stretches as u32, 1, 1], [32, 1, 1]);
    gpu.launch("expert_counts", grid, warp, &[chosen.clone(), counts.clone(), number(choices), number(e)]);
    let numbers = [stretches, e, HEIGHT, most].map(number);
    let args = [&[counts.clone(), offsets.clone(), tiles.clone()][..], &numbers].concat();
    gpu.launch("expert_offsets", [1, 1, 1], [1024, 1, 1], &args);
    let args = [&[chosen.clone(), counts, slots.clone(), sources.clone()][..], &[choices, e, k].map(number)].concat();
    gpu.launch("expert_slots", grid, warp, &args);
    let words = [(&chosen, choices), (&slots, choices), (&sources, choices), (&offsets, e + 1), (&tiles, 3 * most)];
    // Two that are no numbers are equal here.
    let floats = [p, w].map(|x| gpu.read(x).into_iter().map(|x| if x.is_nan() { -1.0 } else { x }).collect());
    (floats, words.map(|(at, n)| read_words(gpu, at, n)))
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn check(logits: &[f64], args: Route) {
    let narrow: Vec<f32> = logits.iter().map(|x| *x as f32).collect();
    let want = on_cpu(&narrow, args);
    let (floats, [chosen, slots, sources, offsets, tiles]) = on_gpu(|gpu| on_device(gpu, logits, args));
    assert_eq!(chosen, want.chosen, "choices of {args:?}");
    assert_eq!(slots, want.slots, "slots of {args:?}");
    assert_eq!(sources, want.sources, "sources of {args:?}");
    assert_eq!(offsets, want.offsets, "offsets of {args:?}");
    let mut expected = Vec::new();
    for (e, at) in want.offsets.windows(2).enumerate() {
        expected.extend((at[0]..at[1]).step_by(HEIGHT).map(|first| [e as u32, first, at[1]]));
    }
    let (used, rest) = tiles.as_chunks::<3>().0.split_at(expected.len());
    assert_eq!(used, expected, "tiles of {args:?}");
    assert!(rest.iter().all(|tile| tile[0] == u32::MAX), "no tile behind the last");
    for (got, want) in floats.iter().zip([&want.probabilities, &want.weights]) {
        let want: Vec<f64> = want.iter().map(|x| if x.is_nan() { -1.0 } else { f64::from(*x) }).collect();
        // The terms of the sum are as near as `exp_near`; the order of its additions is another.
        assert_near("probabilities and weights", Type::F32, got, &want, 1e-6);
    }
}

#[test]
fn routes_are_the_cpus() {
    for (tokens, experts, top_k, normalize) in [
        (1, 1, 1, true),
        (5, 8, 2, true),
        (7, 60, 4, false),
        (3, 128, 8, true),
        (300, 33, 8, false),
        (2, 1024, 33, true),
    ] {
        // Values of 8 bits: of many experts some are equal.
        check(&values(tokens * experts, 3, 4.0), Route { experts, top_k, normalize });
    }
}

#[test]
fn rows_beyond_a_stretch_keep_their_order() {
    check(&values(700 * 5, 9, 2.0), Route { experts: 5, top_k: 3, normalize: true });
    // All to one expert.
    let logits: Vec<f64> = (0..1500 * 3).map(|i| if i % 3 == 1 { 5.0 } else { 0.0 }).collect();
    check(&logits, Route { experts: 3, top_k: 1, normalize: false });
}

#[test]
fn logits_that_are_no_numbers_choose_something() {
    let mut logits = values(4 * 40, 5, 2.0);
    logits[50] = f64::NAN;
    logits[80..120].fill(f64::NAN);
    logits[130] = f64::NEG_INFINITY;
    check(&logits, Route { experts: 40, top_k: 3, normalize: true });
}

#[test]
fn the_gradient_of_the_router() {
    for (tokens, experts, top_k, normalize) in [(1, 1, 1, true), (5, 8, 2, true), (7, 60, 4, false), (3, 128, 40, true)]
    {
        let logits: Vec<f32> = values(tokens * experts, 3, 4.0).iter().map(|x| *x as f32).collect();
        for priced in [false, true] {
            check_gradient(&logits, Route { experts, top_k, normalize }, priced);
        }
    }
}

fn check_gradient(logits: &[f32], args: Route, priced: bool) {
    let Route { experts, top_k, normalize } = args;
    let tokens = logits.len() / experts;
    let routed = on_cpu(logits, args);
    let dw = values(tokens * top_k, 6, 1.0);
    let prices = values(experts, 8, 1.0);
    let got = on_gpu(|gpu| {
        let given = if priced { gpu.array(Type::F32, &prices).into() } else { NULL };
        let p = gpu.array(Type::F32, &wide(&routed.probabilities));
        let (chosen, dwa) = (gpu.words(&routed.chosen), gpu.array(Type::F32, &dw));
        let d = gpu.empty(Type::F32, tokens * experts);
        let numbers = [tokens, experts, top_k, usize::from(normalize)].map(number);
        let args = [&[p.into(), chosen, dwa.into(), given, d.into()][..], &numbers].concat();
        gpu.launch("route_backward", [tokens.div_ceil(4) as u32, 1, 1], [32, 4, 1], &args);
        gpu.read(d)
    });
    let mut want = vec![0.0; tokens * experts];
    for t in 0..tokens {
        let p = wide(&routed.probabilities[t * experts..][..experts]);
        let picks: Vec<usize> = routed.chosen[t * top_k..][..top_k].iter().map(|e| *e as usize).collect();
        let sum: f64 = if normalize { picks.iter().map(|e| p[*e]).sum() } else { 1.0 };
        let dw = &dw[t * top_k..][..top_k];
        let mean: f64 = if normalize { picks.iter().zip(dw).map(|(e, d)| d * p[*e]).sum::<f64>() / sum } else { 0.0 };
        let dp: Vec<f64> = dw.iter().map(|d| (d - mean) / sum).collect();
        let price = |e: usize| if priced { prices[e] } else { 0.0 };
        let dot: f64 = picks.iter().zip(&dp).map(|(e, d)| d * p[*e]).sum();
        let dot = dot + (0..experts).map(|e| price(e) * p[e]).sum::<f64>();
        let row = &mut want[t * experts..][..experts];
        row.iter_mut().enumerate().for_each(|(e, d)| *d = p[e] * (price(e) - dot));
        picks.iter().zip(&dp).for_each(|(e, d)| row[*e] += p[*e] * d);
    }
    assert_near(&format!("{args:?}"), Type::F32, &got, &want, 1e-6);
}

#[test]
fn the_census_is_the_cpus() {
    for (tokens, experts) in [(1usize, 1usize), (9, 8), (300, 33), (21, 100)] {
        let logits: Vec<f32> = values(tokens * experts, 3, 4.0).iter().map(|x| *x as f32).collect();
        let routed = on_cpu(&logits, Route { experts, top_k: 1, normalize: false });
        let before = values(2 * experts, 5, 8.0);
        let got = on_gpu(|gpu| {
            let (p, c) = (gpu.array(Type::F32, &wide(&routed.probabilities)), gpu.array(Type::F32, &before));
            let args = [p.into(), gpu.words(&routed.offsets), c.into(), number(tokens), number(experts)];
            gpu.launch("expert_census", [experts.div_ceil(32) as u32, 1, 1], [32, 8, 1], &args);
            gpu.read(c)
        });
        let mut want: Vec<f32> = before.iter().map(|x| *x as f32).collect();
        cpu::census(&routed.probabilities, &routed.offsets, &mut want);
        // Sums in f64, rounded once before they are added.
        assert_near(&format!("{tokens} x {experts}"), Type::F32, &got, &wide(&want), 1e-7);
    }
}

/// Slots and weights of tokens: a permutation of their rows.
fn ways(tokens: usize, top_k: usize) -> (Vec<u32>, Vec<f64>) {
    let choices = tokens * top_k;
    // 7 has no factor in common with the sizes that follow.
    ((0..choices).map(|i| (i * 7 % choices) as u32).collect(), values(choices, 11, 1.0))
}

#[test]
fn sums_of_experts_and_their_gradient() {
    for of in TYPES {
        for (tokens, top_k, width, shift) in
            [(1, 1, 1, 0), (3, 2, 33, 0), (5, 3, 264, 0), (2, 2, 264, 1), (2, 5, 9, 0), (2, 8, 2056, 0)]
        {
            let (slots, weights) = ways(tokens, top_k);
            let choices = tokens * top_k;
            let (rows, dy) = (values(choices * width, 1, 1.0), values(tokens * width, 2, 1.0));
            let [y, plain, drows, dweights] = on_gpu(|gpu| {
                let (ra, sa, wa) = (gpu.shifted(of, shift, &rows), gpu.words(&slots), gpu.array(Type::F32, &weights));
                let [y, plain] = [(); 2].map(|()| gpu.empty(of, tokens * width));
                for (y, by) in [(y, wa.into()), (plain, NULL)] {
                    let args = [ra.into(), sa.clone(), by, y.into(), number(width), number(top_k)];
                    gpu.launch(&format!("combine_{}", of.name()), [tokens as u32, 1, 1], [256, 1, 1], &args);
                }
                let (da, drows) = (gpu.array(of, &dy), gpu.empty(of, choices * width));
                let dweights = gpu.empty(Type::F32, choices);
                let head = [da.into(), ra.into(), sa, wa.into(), drows.into(), dweights.into()];
                let args = [&head[..], &[choices, width, top_k].map(number)].concat();
                let grid = [choices.div_ceil(8) as u32, 1, 1];
                gpu.launch(&format!("combine_backward_{}", of.name()), grid, [32, 8, 1], &args);
                [y, plain, drows, dweights].map(|a| gpu.read(a))
            });
            let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
            let round = |x: &[f32]| x.iter().map(|x| of.round(f64::from(*x))).collect::<Vec<_>>();
            let mut want = vec![0f32; tokens * width];
            for (got, by) in [(&y, Some(&narrow(&weights)[..])), (&plain, None)] {
                cpu::combine(Data::F32(&narrow(&rows)), &slots, by, DataMut::F32(&mut want), width);
                assert_eq!(*got, round(&want), "{of:?} {tokens} x {top_k} x {width}");
            }
            let (mut rows_back, mut weights_back) = (vec![0f32; choices * width], vec![0f32; choices]);
            let (dy, rows, weights) = (narrow(&dy), narrow(&rows), narrow(&weights));
            let to = (DataMut::F32(&mut rows_back), &mut weights_back[..]);
            cpu::combine_backward((Data::F32(&dy), Data::F32(&rows)), (&slots, &weights), to, width);
            assert_eq!(drows, round(&rows_back), "{of:?} {tokens} x {top_k} x {width}");
            // Products are exact, and a few thousand of them are added.
            assert_near("dweights", Type::F32, &dweights, &wide(&weights_back), 4e-6);
        }
    }
}

#[test]
fn gates_and_their_gradient() {
    for of in TYPES {
        for (rows, width) in [(1usize, 1usize), (3, 31), (9, 100)] {
            let [y, z, d] = [1, 2, 3].map(|seed| values(rows * width, seed, 1.0));
            let gate = values(rows, 4, 8.0);
            let results = on_gpu(|gpu| {
                let [ya, za, da, ga] = [&y, &z, &d, &gate].map(|x| gpu.array(of, x));
                let [out, dz] = [(); 2].map(|()| gpu.empty(of, rows * width));
                let dgate = gpu.empty(of, rows);
                let (numbers, grid) = ([number(rows), number(width)], [rows.div_ceil(8) as u32, 1, 1]);
                let args = [&[ya, za, ga, out].map(Arg::from)[..], &numbers].concat();
                gpu.launch(&format!("add_gated_{}", of.name()), grid, [32, 8, 1], &args);
                let args = [&[da, za, ga, dz, dgate].map(Arg::from)[..], &numbers].concat();
                gpu.launch(&format!("add_gated_backward_{}", of.name()), grid, [32, 8, 1], &args);
                [out, dz, dgate].map(|a| gpu.read(a))
            });
            let s: Vec<f64> = gate.iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect();
            let each =
                |f: &dyn Fn(usize, f64) -> f64| (0..rows * width).map(|i| f(i, s[i / width])).collect::<Vec<_>>();
            let dots = (0..rows).map(|r| (r * width..(r + 1) * width).map(|i| d[i] * z[i]).sum::<f64>());
            let want = [
                each(&|i, s| y[i] + s * z[i]),
                each(&|i, s| s * d[i]),
                dots.zip(&s).map(|(dot, s)| s * (1.0 - s) * dot).collect(),
            ];
            for (got, want) in results.iter().zip(&want) {
                assert_near(&format!("{rows} x {width}"), of, got, want, 1e-6);
            }
        }
    }
}

#[test]
fn keys_of_rows_are_those_of_their_tokens() {
    let (tokens, top_k, experts) = (71usize, 5usize, 9u32);
    let (slots, _) = ways(tokens, top_k);
    let chosen: Vec<u32> = (0..tokens * top_k).map(|i| i as u32 * 5 % experts).collect();
    let (samples, positions): (Vec<u32>, Vec<u32>) = (0..tokens as u32).map(|t| (1000 - t, u32::MAX - t * t)).unzip();
    let got = on_gpu(|gpu| {
        let lists = [&slots, &chosen, &samples, &positions].map(|list| gpu.words(list));
        let to = [(); 2].map(|()| gpu.words(&vec![0; tokens * top_k]));
        let numbers = [tokens * top_k, top_k, experts as usize].map(number);
        gpu.launch("expert_noise", [2, 1, 1], [256, 1, 1], &[&lists[..], &to, &numbers].concat());
        to.map(|at| read_words(gpu, &at, tokens * top_k))
    });
    for (i, &slot) in slots.iter().enumerate() {
        let (token, slot) = (i / top_k, slot as usize);
        let position = positions[token].wrapping_mul(experts).wrapping_add(chosen[i]);
        assert_eq!([got[0][slot], got[1][slot]], [samples[token], position], "{i}");
    }
}
