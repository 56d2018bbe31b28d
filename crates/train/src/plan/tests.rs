//! Cases that can be reckoned by hand, and the closed form of the traffic beside the schedule that is simulated.

use super::links::Axis;
use super::program::{Builder, Transfer};
use super::*;
use crate::engine::{Offload, Sharding};
use ferrotune_config::plan::{LoraPlan, Tuning};
use ferrotune_dist::{Layout, Place};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Phase};
use serde_json::json;

/// One kind of wire everywhere.
fn wires(bandwidth: f64, latency: f64) -> Links {
    Links { across: Link { bandwidth, shared: bandwidth, latency }, ..Links::FREE }
}

/// A group that each segment's forward pass reads, and a block's backward pass again.
fn group(kind: GroupKind, segments: &[usize], weights: u64) -> Group {
    let visits = segments.iter().flat_map(|segment| {
        let again = (1..5).contains(segment).then_some((*segment, Phase::Backward));
        [(*segment, Phase::Forward)].into_iter().chain(again)
    });
    let element = if kind == GroupKind::Frozen { 2 } else { 4 };
    Group { kind, segments: segments.to_vec(), visits: visits.collect(), weights, element, stacks: Vec::new() }
}

/// Embedding, four blocks and a head; a second forward and two backward in each block.
fn lora() -> Demand {
    let block = Cost { forward: 1.0, backward: 2.0, ..Cost::default() };
    let head = Cost::default();
    let mut groups = vec![group(GroupKind::Frozen, &[0], 6400)];
    for segment in 1..=4 {
        groups.push(group(GroupKind::Frozen, &[segment], 64000));
        groups.push(group(GroupKind::Adapter, &[segment], 640));
    }
    groups.push(group(GroupKind::Frozen, &[5], 6400));
    Demand {
        segments: vec![head, block, block, block, block, head],
        groups,
        border: 1000,
        update: 0.0,
        counted_experts: 0,
    }
}

/// The same model with a tied embedding, trained whole, its blocks in bf16.
fn full() -> Demand {
    let mut demand = lora();
    demand.groups = vec![group(GroupKind::Trained, &[0, 5], 6400)];
    demand.groups.extend((1..=4).map(|segment| Group { element: 2, ..group(GroupKind::Trained, &[segment], 64000) }));
    demand
}

/// The same with four experts in each block, which have adapters, too.
fn mixture() -> Demand {
    let mut demand = lora();
    let trips = [Trips::FORWARD, Trips { forward: 1, gradients: 1, back: 1 }];
    for segment in 1..=4 {
        demand.segments[segment].rows = Rows { experts: 4, bytes: 1200, keys: 240, trips, share: 0.5 };
        for (kind, one) in [(GroupKind::Frozen, 1600), (GroupKind::Adapter, 64)] {
            demand.groups.push(Group { stacks: vec![(4, one); 3], ..group(kind, &[segment], 12 * one) });
        }
    }
    demand
}

fn split(shards: usize, stages: usize, replicas: usize, sharded: Sharding) -> Candidate {
    let spans = match stages {
        1 => vec![0..6; 1],
        2 => vec![0..3, 3..6],
        _ => vec![0..2, 2..3, 3..4, 4..6],
    };
    Candidate { layout: Layout { shards, stages, replicas }, sharded, spans }
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a} is not {b}");
}

#[test]
fn without_wires_a_step_is_its_computing() {
    for (demand, sharded) in [(lora(), Sharding::Whole), (full(), Sharding::Weights)] {
        let shards = if sharded == Sharding::Whole { 1 } else { 2 };
        let candidate = split(shards, 1, 2 / shards, sharded);
        for overlap in [false, true] {
            let found = simulate(&demand, &candidate, 6, &wires(f64::INFINITY, 0.0), overlap);
            // Three micro-batches a rank, four blocks, three seconds each.
            near(found.step, 36.0);
            near(found.compute, 36.0);
            assert_eq!((found.bubble, found.communication), (0.0, 0.0));
        }
    }
}

#[test]
fn routers_are_counted_before_several_micro_batches_and_within_one() {
    let free = wires(f64::INFINITY, 0.0);
    let demand = Demand { counted_experts: 8, ..lora() };
    for (stages, several, one) in [(1, 48.0, 12.0), (2, 48.0 / 2.0 + 2.0 + 6.0, 12.0)] {
        let candidate = split(1, stages, 1, Sharding::Whole);
        let step = |all| simulate(&demand, &candidate, all, &free, true).step;
        // Four blocks, a second forward and two backward each, and one more second for each where they are counted first. Two
        // stages wait for each other once on either way.
        near(step(3), several);
        near(step(1), one);
    }
}

#[test]
fn without_computing_a_step_is_its_bytes() {
    for (demand, candidate) in [
        (lora(), split(4, 1, 1, Sharding::Weights)),
        (full(), split(4, 1, 1, Sharding::Weights)),
        (full(), split(4, 1, 1, Sharding::Gradients)),
        (lora(), split(1, 1, 4, Sharding::Whole)),
        (full(), split(2, 1, 2, Sharding::Weights)),
    ] {
        let mut demand = demand;
        demand.segments = vec![Cost::default(); 6];
        let links = wires(1000.0, 0.0);
        let sent: u64 = traffic(&demand, &candidate, 8, 0).iter().sum();
        assert!(sent > 0);
        for overlap in [false, true] {
            near(simulate(&demand, &candidate, 8, &links, overlap).step, sent as f64 / 1000.0);
        }
    }
}

#[test]
fn latency_is_paid_for_each_hop() {
    let mut demand = lora();
    demand.segments = vec![Cost::default(); 6];
    let found = simulate(&demand, &split(1, 1, 4, Sharding::Whole), 4, &wires(f64::INFINITY, 0.5), true);
    // Four all-reduces of 2 x 3 hops; tokens, norm, losses and votes, of 3 each.
    near(found.step, (4.0 * 6.0 + 4.0 * 3.0) * 0.5);
}

#[test]
fn a_pipeline_waits_for_its_first_and_last_micro_batch() {
    let demand = lora();
    for (stages, per_stage) in [(2, 6.0), (4, 3.0)] {
        for micro_batches in [1_usize, 2, 3, 4, 8, 64] {
            let candidate = split(1, stages, 1, Sharding::Whole);
            let found = simulate(&demand, &candidate, micro_batches, &wires(f64::INFINITY, 0.0), true);
            near(found.step, (micro_batches + stages - 1) as f64 * per_stage);
            let share = (stages - 1) as f64 / (micro_batches + stages - 1) as f64;
            near(found.bubble / found.step, share);
        }
    }
}

#[test]
fn borders_delay_only_what_waits_for_them() {
    let candidate = split(1, 2, 1, Sharding::Whole);
    // One micro-batch: an activation there and a gradient back, each 1000 bytes at 500 a second, nothing beside them.
    let found = simulate(&lora(), &candidate, 1, &wires(500.0, 0.0), true);
    near(found.step, 12.0 + 2.0 * 2.0 + SUMS / 500.0);
    near(found.communication, 4.0 + SUMS / 500.0);
    // Of many, all but those at the ends travel beside computing, or at most one of them is waited for in each slot.
    let many = simulate(&lora(), &candidate, 64, &wires(1e6, 0.0), true);
    assert!(many.communication < 0.2, "{many:?}");
}

/// Bytes of the few numbers that one of two ranks sends: two of tokens, a norm, two votes, and a micro-batch's loss.
const SUMS: f64 = 44.0;

#[test]
fn overlap_hides_the_shorter_of_two() {
    let demand = lora();
    let candidate = split(2, 1, 1, Sharding::Weights);
    // Half of 64000 bytes at 64000 a second: half a second for each block, beside one or two of computing.
    let links = wires(64000.0, 0.0);
    let one = simulate(&demand, &candidate, 2, &links, false);
    let visits = 8.0 * 0.5 + 2.0 * 0.05;
    let adapters = 4.0 * 2.0 * 0.005;
    near(one.communication, visits + adapters + SUMS / 64000.0);
    let beside = simulate(&demand, &candidate, 2, &links, true);
    // Not hidden: the gathers of the embedding, of the first block, of the head, and of the last block on the way back,
    // for nothing is fetched over those borders; the first block's reduction, and the adapters' gathers at the end.
    near(beside.communication, 0.05 + 0.5 + 0.05 + 0.5 + 0.005 + 4.0 * 0.005 + SUMS / 64000.0);
    // Wires ten times slower: what is on them decides, and computing hides behind it.
    let slow = simulate(&demand, &candidate, 2, &wires(6400.0, 0.0), true);
    assert!(slow.step >= (visits + adapters) * 10.0 && slow.step < one.compute + visits * 10.0, "{slow:?}");
}

/// Weights that lie in the host come once a visit, and nothing is computed meanwhile; each rank brings what it holds.
#[test]
fn what_lies_in_the_host_takes_its_time() {
    let demand = lora();
    let step = |candidate: &Candidate, links: &Links| simulate(&demand, candidate, 2, links, true);
    let offload = Offload { weights: true, optimizer: false };
    for shards in [1, 2] {
        let candidate = split(shards, 1, 1, if shards > 1 { Sharding::Weights } else { Sharding::Whole });
        // A micro-batch reads 64000 bytes in each of eight visits to blocks, and less in embedding and head.
        let held = |group: &Group| (group.visits.len() as u64 * candidate.weights_held(group)) as f64;
        let read: f64 = demand.groups.iter().filter(|g| g.kind != GroupKind::Adapter).map(held).sum();
        assert!(read > 8.0 * 64000.0 / shards as f64, "{read}");
        let plain = Links { host: 64000.0, ..Links::FREE };
        let (near_by, far) = (step(&candidate, &plain), step(&candidate, &Links { offload, ..plain }));
        // What each rank does of a step of two micro-batches.
        let visits = 2.0 / shards as f64;
        near(far.step - near_by.step, visits * read / 64000.0);
        near(far.communication - near_by.communication, visits * read / 64000.0);
        near(far.compute, near_by.compute);
    }
    let states = Links { host: 1e4, offload: Offload { weights: false, optimizer: true }, ..Links::FREE };
    let candidate = split(1, 1, 1, Sharding::Whole);
    // Four adapters of 160 parameters: their gradients there, weights there and back, 28 bytes each over the host's memory.
    near(step(&candidate, &states).step - step(&candidate, &Links::FREE).step, 4.0 * 160.0 * 40.0 / 1e4);
}

/// Bytes that the schedule sends, added up transfer by transfer.
fn scheduled(demand: &Demand, candidate: &Candidate, all: usize, rank: usize, overlap: bool) -> Vec<u64> {
    let layout = candidate.layout;
    let place = layout.place(rank);
    let mut sent = vec![0; layout.world()];
    let part = |whole: u64, i: usize, n: usize| {
        let elements = whole / 4;
        (elements * (i as u64 + 1) / n as u64 - elements * i as u64 / n as u64) * 4
    };
    let program = Builder::new(demand, candidate, place.stage, overlap).build(candidate.micro_batches(all));
    let mut ring = |axis: Axis, whole: u64, times: u64| {
        let (n, next) = (axis.len(layout), axis.next(layout, rank));
        let others = (0..n).filter(|i| *i != axis.number(layout, rank)).map(|i| part(whole, i, n)).sum::<u64>();
        let again =
            (0..n).filter(|i| *i != (axis.number(layout, rank) + 1) % n).map(|i| part(whole, i, n)).sum::<u64>();
        sent[next] += if times == 2 { others + again } else { others };
    };
    let mut messages = Vec::new();
    for transfer in program.transfers {
        match transfer {
            Transfer::Half(axis, bytes) => ring(axis, bytes, 1),
            Transfer::Whole(axis, bytes) => ring(axis, bytes, 2),
            Transfer::Send(to, bytes) => messages.push((layout.rank(Place { stage: to, ..place }), bytes)),
            Transfer::Spread(bytes) => {
                let peers = (0..layout.shards).filter(|shard| *shard != place.shard);
                messages
                    .extend(peers.map(|shard| (layout.rank(Place { shard, ..place }), bytes / layout.shards as u64)));
            }
            Transfer::Receive(_) => {}
        }
    }
    messages.into_iter().for_each(|(to, bytes)| sent[to] += bytes);
    sent
}

#[test]
fn the_schedule_sends_what_the_closed_form_says() {
    use Sharding::{Experts, Gradients, Optimizer, Weights, Whole};
    let counted = |demand| Demand { counted_experts: 8, ..demand };
    for demand in [lora(), full(), mixture(), counted(lora()), counted(full()), counted(mixture())] {
        for (shards, stages, replicas, sharded) in [
            (1, 1, 1, Whole),
            (1, 1, 3, Whole),
            (4, 1, 1, Optimizer),
            (4, 1, 1, Gradients),
            (3, 1, 1, Weights),
            (2, 1, 2, Weights),
            (2, 1, 3, Gradients),
            (2, 1, 3, Experts),
            (4, 1, 1, Experts),
            (1, 2, 1, Whole),
            (1, 4, 3, Whole),
            (2, 2, 2, Optimizer),
        ] {
            let candidate = split(shards, stages, replicas, sharded);
            let one_each = candidate.layout.data_ranks();
            for (rank, all) in (0..candidate.layout.world()).flat_map(|rank| [(rank, one_each), (rank, 24)]) {
                let sent = traffic(&demand, &candidate, all, rank);
                assert_eq!(sent[rank], 0, "{candidate}: nothing to itself");
                for overlap in [false, true] {
                    assert_eq!(scheduled(&demand, &candidate, all, rank, overlap), sent, "{candidate}, rank {rank}");
                }
            }
        }
    }
}

/// Rows are waited for each time, so on wires alone a step lasts as long as its bytes take, however fast it computes.
#[test]
fn rows_hide_behind_nothing() {
    let (demand, candidate) = (mixture(), split(4, 1, 1, Sharding::Experts));
    let links = wires(1000.0, 0.0);
    let sent: u64 = traffic(&demand, &candidate, 8, 0).iter().sum();
    let rows = 2 * 4 * (1200 * 6 + 240 * 2) * 3 / 4;
    assert!(sent > rows && sent < rows + rows / 4, "{sent} {rows}");
    for overlap in [false, true] {
        let found = simulate(&demand, &candidate, 8, &links, overlap);
        // The fullest rank has a quarter more, of rows and of what experts compute: half of eight blocks' three seconds.
        assert!(found.communication >= 1.25 * rows as f64 / 1000.0, "{found:?}");
        near(found.compute, 2.0 * 4.0 * 3.0 * 1.125);
    }
}

/// Of eight ranks on two nodes each sends half of what it has over the node's one card, beside three others.
#[test]
fn rows_that_leave_a_node_share_its_card() {
    let layout = Layout { shards: 8, stages: 1, replicas: 1 };
    let link = |bandwidth, latency| Link { bandwidth, shared: bandwidth, latency };
    let links = Links {
        per_node: 4,
        inside: Link { shared: f64::INFINITY, ..link(10.0, 1.0) },
        across: link(8.0, 2.0),
        ..Links::FREE
    };
    let (latency, each) = links.spread(layout);
    near(latency, 2.0);
    near(each, 4.0 / 8.0 / (8.0 / 4.0));
    let inside = links.spread(Layout { shards: 4, stages: 1, replicas: 2 });
    near(inside.1, 3.0 / 4.0 / 10.0);
}

#[test]
fn only_adapters_cross_nodes() {
    let demand = lora();
    let links = Links { per_node: 2, ..wires(1.0, 0.0) };
    let adapters = 4 * 640;
    for candidate in [split(2, 1, 2, Sharding::Weights), split(1, 2, 2, Sharding::Whole)] {
        let out = |rank| across(&traffic(&demand, &candidate, 16, rank), rank, &links);
        // A node's two ranks hold one gradient together, which its ring of two passes on once there and once back. Of the
        // four ranks' numbers, three times five leave the node, and the losses of three.
        let losses = 4 * candidate.micro_batches(16) as u64;
        assert_eq!(out(0) + out(1), adapters + 3 * (5 * 8 + losses), "{candidate}");
    }
    let zero3 = split(4, 1, 1, Sharding::Weights);
    assert!(across(&traffic(&demand, &zero3, 16, 1), 1, &links) > 100 * adapters);
}

fn tiny(lora: bool) -> Model {
    let config = Config::from_json(&json!({
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320,
        "tie_word_embeddings": true
    }))
    .expect("a configuration of ours");
    let plan = LoraPlan::plain(4);
    let tuning = if lora { Tuning::Lora(plan) } else { Tuning::Full };
    Model::new(&config, DType::Bf16, Some(&tuning), false).expect("a model of ours")
}

#[test]
fn work_is_counted_on_meta() {
    let model = tiny(true);
    let rates = Rates::even(1.0);
    let keep = Demand::of(&model, &[100], false, false, rates).expect("counts");
    let again = Demand::of(&model, &[100], true, false, rates).expect("counts");
    assert_eq!(keep.border, 100 * 64 * 2);
    assert_eq!(keep.segments.len(), 5);
    let [embedding, first, second, ..] = keep.segments[..] else { panic!("five segments") };
    assert_eq!((embedding.forward, embedding.backward), (0.0, 0.0));
    // q, k, v, o, gate, up, down, two operations an element and token, then adapters and attention on top.
    let products = 2.0 * 100.0 * (64.0 * (64.0 + 32.0 + 32.0 + 64.0) + 3.0 * 64.0 * 160.0);
    assert!(second.forward > products && second.forward < 1.4 * products, "{} {products}", second.forward);
    assert_eq!(first.forward, second.forward);
    near(again.segments[2].backward, second.backward + second.forward);
    // Recomputed blocks keep what goes into the next one.
    assert_eq!(again.segments[2].held, keep.border);
    assert!(second.held > 4 * keep.border);
    let adapters: u64 = keep.groups.iter().filter(|g| g.kind == GroupKind::Adapter).map(|g| g.weights).sum();
    let count = 3 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 160) + (160 + 64));
    assert_eq!(adapters, count * 4);
    let tied: Vec<&Group> = keep.groups.iter().filter(|g| g.segments.len() > 1).collect();
    assert_eq!(tied.iter().map(|g| g.weights).collect::<Vec<_>>(), [320 * 64 * 2]);
}

#[test]
fn the_fastest_that_fits_is_chosen() {
    let demand = Demand::of(&tiny(true), &[64], true, false, Rates::even(1e9)).expect("counts");
    let links = Links {
        per_node: 2,
        inside: Link { bandwidth: 1e6, shared: f64::INFINITY, latency: 1e-6 },
        across: Link { bandwidth: 1e5, shared: 1e5, latency: 1e-6 },
        ..Links::FREE
    };
    let all = candidates(&demand, 4, 2, 32, None);
    let names: Vec<String> = all.iter().map(Candidate::to_string).collect();
    let expected = ["replicate", "zero1", "zero2", "zero3", "hybrid 2x2", "pipeline 2 x replicate 2"];
    assert_eq!(names, expected, "four stages of three blocks are no pipeline");
    let of_experts = candidates(&mixture(), 8, 4, 32, None).into_iter().filter(|c| c.sharded == Sharding::Experts);
    let names: Vec<String> = of_experts.map(|candidate| candidate.to_string()).collect();
    assert_eq!(names, ["expert 2x4", "expert 4x2"], "four experts are none for each of eight ranks");
    let whole = 1000;
    let needed = |candidate: &Candidate| {
        let parts = if candidate.sharded == Sharding::Weights { candidate.layout.shards } else { 1 };
        Ok(whole / (parts * candidate.layout.stages) as u64)
    };
    let question = Question { demand: &demand, micro_batches: 32, links: &links, overlap: true, capacity: None };
    let free = choose(&question, all.clone(), &needed).expect("chosen");
    assert_eq!(best(&free).expect("all fit").candidate.to_string(), "replicate");
    assert!(free.windows(2).all(|pair| pair[0].estimate.step <= pair[1].estimate.step));
    let tight = Question { capacity: Some(600), ..question };
    let tight_choices = choose(&tight, all.clone(), &needed).expect("chosen");
    let names: Vec<String> = tight_choices.iter().map(|choice| choice.candidate.to_string()).collect();
    // Gathers at 1 MB/s inside and 0.1 MB/s across against one activation a micro-batch.
    assert_eq!(names[..3], ["pipeline 2 x replicate 2", "hybrid 2x2", "zero3"]);
    assert!(tight_choices[2].fits && tight_choices[3..].iter().all(|choice| !choice.fits));
    let nothing = Question { capacity: Some(100), ..question };
    assert_eq!(best(&choose(&nothing, all, &needed).expect("looked at")), None);
}

#[test]
fn a_split_that_was_read_is_taken_only_if_it_covers_ranks_and_segments() {
    let split = |shards, stages, replicas, spans: &[std::ops::Range<usize>]| Candidate {
        layout: Layout { shards, stages, replicas },
        sharded: Sharding::Whole,
        spans: spans.to_vec(),
    };
    assert!(split(1, 2, 2, &[0..3, 3..6]).is_sound(4, 6, 0) && split(4, 1, 1, &[0..6; 1]).is_sound(4, 6, 0));
    for (odd, why) in [
        (split(1, 2, 2, &[0..3, 3..6]), "six ranks"),
        (split(1, 2, 3, &[0..3, 3..5]), "a segment left out at the end"),
        (split(1, 2, 3, &[0..3, 4..6]), "one left out in between"),
        (split(1, 2, 3, &[0..6, 6..6]), "an empty stage"),
        (split(1, 3, 2, &[0..3, 3..6]), "a stage without a span"),
        (split(usize::MAX, 1, 2, &[0..6; 1]), "more ranks than there are numbers"),
        (split(0, 1, 6, &[0..6; 1]), "no rank at all"),
    ] {
        assert!(!odd.is_sound(6, 6, 0), "{why}");
    }
    let spread = Candidate { sharded: Sharding::Experts, ..split(6, 1, 1, &[0..6; 1]) };
    assert!(spread.is_sound(6, 6, 6) && !spread.is_sound(6, 6, 5), "an expert for each rank");
}
