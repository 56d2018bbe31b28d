//! Each op's gradient against finite differences of its own forward pass, kept and recomputed, and `meta` against `cpu`.

mod support;

use ferrotune_tensor::ops::{self, Balance, GroupedLinear, Heads, Linear, Lora, Noise, Rotary, Route, Spans, Targets};
use ferrotune_tensor::{DType, Device, Kind, Param, Segment, Tape, Tensor, Var};
use std::rc::Rc;
use support::{Weights, lora, noise, random};

type Net<'a> = Rc<dyn Fn(&Tape<'_>, Var) -> Var + 'a>;

/// Runs `net` on an input that is itself a trained parameter (through an embedding of all its rows), and returns the output's
/// weighted sum; gradients are added to the host's.
fn run(weights: &Weights, x: &Param, net: &Net<'static>, recompute: bool, seed: &[f32], loss_root: bool) -> f64 {
    let rows: Vec<u32> = (0..x.shape.dims()[0] as u32).collect();
    let ids = Tensor::from_u32(&weights.device, &rows, Kind::Input);
    let again = |_: Segment| recompute;
    let tape = Tape::new(&weights.device, weights, &again);
    let input = ops::embedding(&tape, &ids, x, DType::F32);
    let body = net.clone();
    let y = tape.segment(Segment(0), Some(input), move |t, x| body(t, x.expect("input")));
    let n = y.value.numel();
    let seed = if loss_root { vec![1.0; n] } else { seed[..n].to_vec() };
    let total = y.value.to_f32().iter().zip(&seed).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let seed = Tensor::from_f32(&weights.device, &seed, y.value.shape(), Kind::ActGrad);
    tape.backward(&y, seed, None);
    total
}

/// Compares every trained parameter's gradient with 4-point differences along its sign, f' = (8 (f1 - f-1) - (f2 - f-2)) / 12 h.
#[expect(clippy::needless_pass_by_value, reason = "callers write the network in place")]
fn check(weights: &Weights, x: &Param, net: Net<'static>, loss_root: bool) {
    let seed = random(1 << 16, 9);
    let zero = || weights.values.iter().for_each(|(_, _, g)| g.zero());
    zero();
    run(weights, x, &net, false, &seed, loss_root);
    let kept: Vec<Vec<f32>> = weights.values.iter().map(|(_, _, g)| g.to_f32()).collect();
    if !loss_root {
        zero();
        run(weights, x, &net, true, &seed, loss_root);
        let again: Vec<Vec<f32>> = weights.values.iter().map(|(_, _, g)| g.to_f32()).collect();
        assert!(kept == again, "recomputation changes no bit");
    }
    compare(weights, &kept, &|| run(weights, x, &net, false, &seed, loss_root));
}

/// The differences of `total`, a function of the weights, against the gradients `kept`.
fn compare(weights: &Weights, kept: &[Vec<f32>], total: &dyn Fn() -> f64) {
    for (index, (param, value, _)) in weights.values.iter().enumerate().filter(|(_, (p, ..))| p.trainable) {
        let old = value.to_f32();
        let sign: Vec<f32> = kept[index].iter().map(|g| g.signum() * f32::from(*g != 0.0)).collect();
        let h = 4e-3f32;
        let at = |steps: f32| {
            let moved: Vec<f32> = old.iter().zip(&sign).map(|(v, s)| v + s * h * steps).collect();
            value.write_f32(&moved);
            let total = total();
            value.write_f32(&old);
            total
        };
        let measured = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(h));
        let computed: f64 = kept[index].iter().map(|g| f64::from(g.abs())).sum();
        let gap = (measured - computed).abs() / computed.abs().max(1e-2);
        assert!(gap < 2e-3, "{}: {measured} by differences, {computed} by the tape", param.name);
    }
}

#[test]
fn linear_with_and_without_adapter() {
    for (tokens, inputs, out, rank) in [(1, 5, 3, 2), (7, 33, 18, 8), (20, 16, 65, 3)] {
        for (trained, bias, dropout) in [(true, true, 0.0), (false, false, 0.0), (false, true, 0.4)] {
            let device = Device::cpu();
            let mut w = Weights::new(&device);
            let x = w.add([tokens, inputs], true);
            let layer = Linear {
                weight: w.add([out, inputs], trained),
                bias: bias.then(|| w.add([out], true)),
                lora: (!trained).then(|| lora(&mut w, out, inputs, rank, dropout, false)),
            };
            let keys = noise(&device, tokens, 0.0);
            check(&w, &x, Rc::new(move |t, x| ops::linear(t, &layer, &x, Some(&keys))), false);
        }
    }
}

#[test]
fn dora_scales_rows_and_trains_the_magnitude() {
    let device = Device::cpu();
    let mut w = Weights::new(&device);
    let x = w.add([6, 9], true);
    let mut adapter = lora(&mut w, 5, 9, 2, 0.0, true);
    // With A and B frozen the norm is constant and differences hold for the rest.
    adapter.a = w.add([2, 9], false);
    adapter.b = w.add([5, 2], false);
    w.values[1].0 = adapter.a.clone();
    w.values[2].0 = adapter.b.clone();
    let layer = Linear { weight: w.add([5, 9], false), bias: Some(w.add([5], true)), lora: Some(adapter) };
    check(&w, &x, Rc::new(move |t, x| ops::linear(t, &layer, &x, None)), false);
}

#[test]
fn norm_rotation_swiglu_and_shared_inputs() {
    for (tokens, width) in [(1, 8), (9, 24), (70, 130)] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let x = w.add([tokens, width], true);
        let norm = w.add([width], true);
        check(&w, &x, Rc::new(move |t, x| ops::rmsnorm(t, &x, &norm, 1e-5)), false);

        let mut w = Weights::new(&device);
        let x = w.add([tokens, width], true);
        let heads = w.add([width / 2], true);
        let angles: Vec<f32> = random(tokens * width / 4, 5);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos() * 1.1, a.sin() * 1.1)).unzip();
        let half = width / 2;
        let rotary = (half.is_multiple_of(2))
            .then(|| Rotary::new(&device, &cos[..tokens * (half / 2)], &sin[..tokens * (half / 2)], half));
        check(
            &w,
            &x,
            Rc::new(move |t, x| {
                let x = ops::rmsnorm(t, &x, &heads, 1e-5);
                match &rotary {
                    Some(rotary) => ops::rope(t, x, rotary, half),
                    None => x,
                }
            }),
            false,
        );

        let mut w = Weights::new(&device);
        let x = w.add([tokens, width], true);
        let mut layer = |out| Linear { weight: w.add([out, width], true), bias: None, lora: None };
        let (gate, up) = (layer(11), layer(11));
        check(
            &w,
            &x,
            Rc::new(move |t, x| ops::swiglu(t, &ops::linear(t, &gate, &x, None), &ops::linear(t, &up, &x, None))),
            false,
        );

        let mut w = Weights::new(&device);
        let x = w.add([tokens, width], true);
        let mut layer = |out| Linear { weight: w.add([out, width], true), bias: None, lora: None };
        let (other, gate) = (layer(width), layer(1));
        check(
            &w,
            &x,
            Rc::new(move |t, x| {
                ops::add_gated(t, &x, &ops::linear(t, &other, &x, None), &ops::linear(t, &gate, &x, None))
            }),
            false,
        );

        // x is read by a product and by a sum: neither may write into the other's gradient.
        let mut w = Weights::new(&device);
        let x = w.add([tokens, width], true);
        let layer = Linear { weight: w.add([width, width], true), bias: None, lora: None };
        check(&w, &x, Rc::new(move |t, x| ops::add(t, &x, ops::linear(t, &layer, &x, None))), false);
    }
}

#[test]
fn attention_over_sequences_groups_and_windows() {
    for (bounds, heads, kv_heads, head_dim, window) in [
        (vec![0, 1], 1, 1, 8, None),
        (vec![0, 5, 5, 17], 4, 2, 16, None),
        (vec![0, 70, 73], 3, 1, 8, Some(6)),
        (vec![0, 130], 2, 2, 8, None),
    ] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let tokens = *bounds.last().expect("a bound") as usize;
        let x = w.add([tokens, 12], true);
        let mut layer = |h: usize| Linear { weight: w.add([h * head_dim, 12], true), bias: None, lora: None };
        let (q, k, v) = (layer(heads), layer(kv_heads), layer(kv_heads));
        let spans = Rc::new(Spans::causal(bounds));
        let shape = Heads { heads, kv_heads, head_dim, window };
        check(
            &w,
            &x,
            Rc::new(move |t, x| {
                let of = |l: &Linear| ops::linear(t, l, &x, None);
                ops::attention(t, &of(&q), &of(&k), &of(&v), &spans, shape)
            }),
            false,
        );
    }
}

#[test]
fn cross_entropy_over_label_rows_only() {
    for (tokens, vocab, smoothing, trained) in [(1, 3, 0.0, true), (9, 50, 0.0, false), (200, 700, 0.1, true)] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let x = w.add([tokens, 16], true);
        let head = w.add([vocab, 16], trained);
        let rows: Vec<u32> = (0..tokens as u32).filter(|i| i % 3 != 1).collect();
        let labels: Vec<i32> = rows.iter().map(|r| (r * 7 % vocab as u32) as i32).collect();
        let at = device.clone();
        check(
            &w,
            &x,
            Rc::new(move |t, x| {
                let targets = Targets::new(&at, &rows, &labels);
                ops::linear_cross_entropy(t, &x, &head, &targets, ops::CrossEntropy { scale: 0.25, smoothing })
            }),
            true,
        );
    }
}

#[test]
fn embedding_noise_is_bounded_and_passes_gradients() {
    let device = Device::cpu();
    let mut w = Weights::new(&device);
    let x = w.add([6, 10], true);
    let keys = noise(&device, 6, 5.0);
    let before = w.values[x.id].1.to_f32();
    let tape = Tape::forward_only(&device, &w);
    let ids = Tensor::from_u32(&device, &[0, 1, 2, 3, 4, 5], Kind::Input);
    let y = ops::embedding_noise(&tape, ops::embedding(&tape, &ids, &x, DType::F32), &keys).value.to_f32();
    let bound = 5.0 / (3.0f32 * 10.0).sqrt();
    let moved: Vec<f32> = y.iter().zip(&before).map(|(a, b)| a - b).collect();
    assert!(moved.iter().all(|d| d.abs() <= bound * 1.0001));
    assert!(moved.iter().filter(|d| d.abs() > bound * 0.2).count() > 30);
    check(&w, &x, Rc::new(move |t, x| ops::embedding_noise(t, x, &keys)), false);
}

/// A mixture of experts with adapters on each of them.
#[derive(Clone)]
struct Mixture {
    router: Param,
    gate: GroupedLinear,
    up: GroupedLinear,
    down: GroupedLinear,
    route: Route,
}

impl Mixture {
    fn new(w: &mut Weights, [hidden, inner, rank]: [usize; 3], route: Route, trained: [bool; 2], dropout: f32) -> Self {
        let [router, weights] = trained;
        let router = w.add([route.experts, hidden], router);
        let mut layer = |out, inputs| {
            let weight = w.add([route.experts, out, inputs], weights);
            let mut adapter = |shape| w.add(shape, true);
            let lora = (rank > 0).then(|| Lora {
                a: adapter([route.experts, rank, inputs]),
                b: adapter([route.experts, out, rank]),
                scale: 0.7,
                dropout,
                magnitude: None,
            });
            GroupedLinear { weight, lora }
        };
        let (gate, up, down) = (layer(inner, hidden), layer(inner, hidden), layer(hidden, inner));
        Self { router, gate, up, down, route }
    }

    fn forward(&self, t: &Tape<'_>, x: &Var, noise: Option<&Rc<Noise>>) -> Var {
        self.balanced(t, x, noise, None)
    }

    fn balanced(&self, t: &Tape<'_>, x: &Var, noise: Option<&Rc<Noise>>, balance: Option<&Rc<Balance>>) -> Var {
        let (weights, routes) = ops::route(t, x, &self.router, self.route, balance);
        let rows = ops::dispatch(t, x, &routes);
        let of = |layer, x: &Var| ops::grouped_linear(t, layer, x, &routes, noise);
        let inner = ops::swiglu(t, &of(&self.gate, &rows), &of(&self.up, &rows));
        ops::combine(t, &of(&self.down, &inner), &weights, &routes)
    }
}

fn routes(experts: usize, top_k: usize, normalize: bool) -> Route {
    Route { experts, top_k, normalize }
}

#[test]
fn experts_and_their_router() {
    for (tokens, sizes, route, trained, dropout) in [
        (1, [6, 5, 2], routes(3, 2, true), [true, false], 0.0),
        (9, [8, 7, 0], routes(4, 2, false), [true, true], 0.0),
        (13, [5, 6, 3], routes(4, 4, true), [true, false], 0.0),
        (21, [16, 20, 4], routes(8, 8, true), [false, true], 0.3),
        (5, [6, 9, 4], routes(6, 3, true), [false, true], 0.3),
        (4, [7, 18, 2], routes(5, 1, false), [true, false], 0.0),
    ] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let x = w.add([tokens, sizes[0]], true);
        let mixture = Mixture::new(&mut w, sizes, route, trained, dropout);
        // Weights far apart, so that a difference changes no choice.
        let router = &w.values[mixture.router.id].1;
        router.write_f32(&router.to_f32().iter().map(|v| v * 3.0).collect::<Vec<_>>());
        let keys = noise(&device, tokens, 0.0);
        check(&w, &x, Rc::new(move |t, x| mixture.forward(t, &x, Some(&keys))), false);
    }
}

/// A closed census prices probabilities: `sum of price . p` joins the loss, whatever else comes of the tokens.
#[test]
fn the_loss_on_the_balance_of_experts() {
    for (tokens, sizes, route, trained) in [
        (9, [8, 7, 0], routes(4, 2, false), [true, true]),
        (13, [5, 6, 3], routes(19, 19, true), [false, false]),
        (1, [6, 5, 2], routes(3, 3, true), [true, false]),
    ] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let x = w.add([tokens, sizes[0]], true);
        let mixture = Rc::new(Mixture::new(&mut w, sizes, route, trained, 0.0));
        let router = &w.values[mixture.router.id].1;
        router.write_f32(&router.to_f32().iter().map(|v| v * 3.0).collect::<Vec<_>>());
        let net = |balance: &Rc<Balance>| -> Net<'static> {
            let (mixture, balance) = (mixture.clone(), balance.clone());
            Rc::new(move |t, x| mixture.balanced(t, &x, None, Some(&balance)))
        };
        let (seed, prices) = (random(1 << 16, 9), random(route.experts, 5));
        let closed = Rc::new(Balance::new(&device, route.experts));
        closed.close(&prices);
        let gradients = |recompute| {
            w.values.iter().for_each(|(_, _, g)| g.zero());
            run(&w, &x, &net(&closed), recompute, &seed, false);
            w.values.iter().map(|(_, _, g)| g.to_f32()).collect::<Vec<_>>()
        };
        let kept = gradients(false);
        assert!(kept == gradients(true), "recomputation changes no bit");
        assert_eq!(closed.census(), vec![0.0; 2 * route.experts], "nothing is counted any more");
        compare(&w, &kept, &|| {
            let open = Rc::new(Balance::new(&device, route.experts));
            let total = run(&w, &x, &net(&open), false, &seed, false);
            let census = open.census();
            let (choices, sums) = census.split_at(route.experts);
            assert_eq!(choices.iter().sum::<f64>(), (tokens * route.top_k) as f64);
            assert!((sums.iter().sum::<f64>() - tokens as f64).abs() < 1e-5 * tokens as f64);
            total + prices.iter().zip(sums).map(|(price, sum)| f64::from(*price) * sum).sum::<f64>()
        });
    }
}

/// Each token by itself, in f64, expert by expert.
#[test]
fn experts_are_the_weighted_sum_of_what_each_makes_of_a_token() {
    for (tokens, [hidden, inner], route, everything_to) in [
        (5, [8, 12], routes(4, 2, true), None),
        (130, [16, 24], routes(6, 3, false), None),
        (40, [8, 8], routes(8, 2, true), Some(5)),
        (0, [8, 8], routes(4, 2, true), None),
    ] {
        let device = Device::cpu();
        let mut w = Weights::new(&device);
        let x = w.add([tokens, hidden], true);
        let mixture = Mixture::new(&mut w, [hidden, inner, 0], route, [false, false], 0.0);
        let value =
            |w: &Weights, p: &Param| -> Vec<f64> { w.values[p.id].1.to_f32().iter().map(|v| f64::from(*v)).collect() };
        if let Some(expert) = everything_to {
            // All tokens alike in their first element, by which one expert stands out.
            let mut values = w.values[x.id].1.to_f32();
            values.chunks_exact_mut(hidden).for_each(|row| row[0] = 1.0);
            w.values[x.id].1.write_f32(&values);
            let mut router = w.values[mixture.router.id].1.to_f32();
            router[expert * hidden] = 50.0;
            w.values[mixture.router.id].1.write_f32(&router);
        }
        let tape = Tape::forward_only(&device, &w);
        let input = Var::constant(w.values[x.id].1.clone());
        let found = mixture.forward(&tape, &input, None).value.to_f32();
        let (_, ways) = ops::route(&tape, &input, &mixture.router, route, None);
        assert_eq!(ways.counts().iter().sum::<u32>() as usize, tokens * route.top_k, "no token is lost");
        if let Some(expert) = everything_to {
            assert_eq!(ways.counts()[expert] as usize, tokens);
        }
        let [xs, router] = [&x, &mixture.router].map(|p| value(&w, p));
        let [gate, up, down] = [&mixture.gate, &mixture.up, &mixture.down].map(|layer| value(&w, &layer.weight));
        let times = |m: &[f64], v: &[f64]| -> Vec<f64> {
            m.chunks_exact(v.len()).map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum()).collect()
        };
        for (token, x) in xs.chunks_exact(hidden).enumerate() {
            let logits = times(&router, x);
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            let p: Vec<f64> = logits.iter().map(|l| l.exp() / sum).collect();
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
            let chosen = &order[..route.top_k];
            let total: f64 = if route.normalize { chosen.iter().map(|e| p[*e]).sum() } else { 1.0 };
            let mut want = vec![0.0; hidden];
            for &e in chosen {
                let of = |m: &[f64]| m[e * hidden * inner..][..hidden * inner].to_vec();
                let (g, u) = (times(&of(&gate), x), times(&of(&up), x));
                let h: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                want.iter_mut().zip(times(&of(&down), &h)).for_each(|(y, v)| *y += p[e] / total * v);
            }
            for (a, b) in found[token * hidden..].iter().zip(&want) {
                assert!((f64::from(*a) - b).abs() < 2e-5 * b.abs().max(1.0), "token {token}: {a} is not {b}");
            }
        }
    }
}

#[test]
fn experts_give_the_same_bits_on_any_number_of_threads() {
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let device = Device::cpu();
            let mut w = Weights::new(&device);
            let x = w.add([150, 64], true);
            let mixture = Mixture::new(&mut w, [64, 96, 4], routes(6, 2, true), [true, true], 0.2);
            let keys = noise(&device, 150, 0.0);
            let net: Net<'static> = Rc::new(move |t, x| mixture.forward(t, &x, Some(&keys)));
            run(&w, &x, &net, false, &random(1 << 16, 9), false);
            w.values.iter().map(|(_, _, g)| g.to_f32()).collect::<Vec<_>>()
        })
    };
    let one = bits(1);
    assert!(one == bits(2) && one == bits(5));
}

#[test]
fn meta_counts_the_rows_of_experts_whatever_their_ways() {
    let count = |device: &Device, recompute: bool, seed: u64| {
        let mut w = Weights::new(device);
        let x = w.add([37, 24], true);
        let mixture = Mixture::new(&mut w, [24, 40, 4], routes(8, 3, true), [false, false], 0.1);
        w.values[x.id].1.write_f32(&random(37 * 24, seed));
        let keys = noise(device, 37, 0.0);
        let rows: Vec<u32> = (0..37).collect();
        let ids = Tensor::from_u32(device, &rows, Kind::Input);
        let again = move |_: Segment| recompute;
        let tape = Tape::new(device, &w, &again);
        let input = ops::embedding(&tape, &ids, &x, DType::F32);
        let y = tape.segment(Segment(0), Some(input), move |t, x| mixture.forward(t, &x.expect("input"), Some(&keys)));
        tape.backward(&y, device.zeros([37, 24], DType::F32, Kind::ActGrad), None);
        device.track()
    };
    for recompute in [false, true] {
        let predicted = count(&Device::meta(), recompute, 1);
        assert!(predicted.flops > 0.0);
        for seed in 1..4 {
            assert_eq!(count(&Device::cpu(), recompute, seed), predicted);
        }
    }
}

#[test]
fn meta_counts_what_cpu_allocates() {
    let count = |device: Device, recompute: bool| {
        let mut w = Weights::new(&device);
        let x = w.add([37, 24], true);
        let norm = w.add([24], false);
        let adapter = lora(&mut w, 48, 24, 4, 0.1, true);
        let layer = Linear { weight: w.add([48, 24], false), bias: None, lora: Some(adapter) };
        let head = w.add([100, 48], true);
        let keys = noise(&device, 37, 0.0);
        let at = device.clone();
        let net: Net<'static> = Rc::new(move |t, x| {
            let y = ops::linear(t, &layer, &ops::rmsnorm(t, &x, &norm, 1e-6), Some(&keys));
            let spans = Rc::new(Spans::causal(vec![0, 20, 37]));
            let heads = Heads { heads: 6, kv_heads: 6, head_dim: 8, window: None };
            let y = ops::attention(t, &y, &y, &y, &spans, heads);
            let targets = Targets::new(&at, &[1, 2, 3], &[4, 5, 6]);
            ops::linear_cross_entropy(
                t,
                &ops::swiglu(t, &y, &y),
                &head,
                &targets,
                ops::CrossEntropy { scale: 1.0, smoothing: 0.0 },
            )
        });
        let rows: Vec<u32> = (0..37).collect();
        let ids = Tensor::from_u32(&device, &rows, Kind::Input);
        let again = move |_: Segment| recompute;
        let tape = Tape::new(&device, &w, &again);
        let input = ops::embedding(&tape, &ids, &x, DType::F32);
        let y = tape.segment(Segment(0), Some(input), move |t, x| net(t, x.expect("input")));
        tape.backward(&y, device.zeros([1], DType::F32, Kind::ActGrad), None);
        device.track()
    };
    let kept = count(Device::cpu(), false);
    assert_eq!(kept, count(Device::meta(), false));
    assert!(kept.flops > 0.0 && kept.peak > 0);
}
