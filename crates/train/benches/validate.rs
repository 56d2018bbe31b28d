//! The plan's model of a step beside real steps: processes that talk TCP through network namespaces whose links are
//! throttled by `tc`. Needs root, `ip` and `tc`. `cargo bench -p ferrotune-train --bench validate [-- 100 1000 zero3]` (Mb/s, and
//! parts of names of cases).
//!
//! Each process computes on one thread. The model is fed the rate that all processes reached at the same time on the same
//! micro-batch, each by itself; the links as they were set; and a hop's latency as a barrier takes it.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "validate/network.rs"]
mod network;

use ferrotune_config::plan::{AdamWPlan, LoraPlan, LoraTargets, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Abort, Comm, Layout, Mesh, Pulse, Ranks, TcpSettings, TcpTransport};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::plan::{Candidate, Demand, Link, Links, Rates, balance_of, simulate};
use ferrotune_train::{Fresh, Sample, StepOptions, Votes, Work, step};
use network::{Network, connect};
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOKENS: usize = 512;
/// Micro-batches of a step for each rank.
const ACCUMULATED: usize = 2;
const STEPS: usize = 5;
/// Of a frame of 1514 bytes, what is payload: 1448 behind the heads of Ethernet, IP and TCP with timestamps.
const PAYLOAD: f64 = 1448.0 / 1514.0;
/// Between two processes of a node: the loopback, hardly a limit here.
const LOOPBACK: f64 = 1.5e9;

/// Name, layout, sharding, adapters or whole weights.
const CASES: [(&str, [usize; 3], Sharding, bool); 9] = [
    ("replicate 2, full", [1, 1, 2], Sharding::Whole, false),
    ("zero2 2, full", [2, 1, 1], Sharding::Gradients, false),
    ("zero3 2, full", [2, 1, 1], Sharding::Weights, false),
    ("zero3 2, LoRA", [2, 1, 1], Sharding::Weights, true),
    ("pipeline 2, LoRA", [1, 2, 1], Sharding::Whole, true),
    ("replicate 4, full", [1, 1, 4], Sharding::Whole, false),
    ("zero3 4, LoRA", [4, 1, 1], Sharding::Weights, true),
    ("hybrid 2x2, full", [2, 1, 2], Sharding::Weights, false),
    ("pipeline 2 x replicate 2, LoRA", [1, 2, 2], Sharding::Whole, true),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [role, case, rank, megabits] = &args[..]
        && role == "rank"
    {
        let number = |text: &str| text.parse().expect("a number of this program's own");
        return worker(number(case), number(rank), number(megabits) as f64);
    }
    let (speeds, names): (Vec<String>, Vec<String>) = args.into_iter().partition(|arg| arg.parse::<usize>().is_ok());
    let speeds = if speeds.is_empty() { vec!["100".to_owned(), "1000".to_owned()] } else { speeds };
    println!("| case | Mb/s | measured s | simulated s | difference | computing | bubble | wires |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for megabits in speeds {
        let megabits: usize = megabits.parse().expect("a number, as was looked at above");
        let wanted = |case: &usize| names.is_empty() || names.iter().any(|name| CASES[*case].0.contains(name));
        (0..CASES.len()).filter(wanted).for_each(|case| run(case, megabits));
    }
}

/// Ranks of a node: two nodes in each case.
fn per_node(layout: Layout) -> usize {
    layout.world() / 2
}

fn layout(case: usize) -> Layout {
    let [shards, stages, replicas] = CASES[case].1;
    Layout { shards, stages, replicas }
}

/// Starts the ranks of a case; rank 0 prints its line.
fn run(case: usize, megabits: usize) {
    let _network = Network::new(2, megabits);
    let exe = std::env::current_exe().expect("this program has a path");
    let start = |rank: usize| -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network::name(rank / per_node(layout(case)))]).arg(&exe);
        command.args(["rank", &case.to_string(), &rank.to_string(), &megabits.to_string()]);
        command.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null()).spawn().expect("ip starts it")
    };
    let children: Vec<Child> = (0..layout(case).world()).map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("it runs").success(), "a rank of case {} failed", CASES[case].0);
    }
}

fn worker(case: usize, rank: usize, megabits: f64) {
    let (name, _, sharded, lora) = CASES[case];
    let layout = layout(case);
    let comm = meet(rank, layout);
    let model = model(lora);
    let counted = Demand::of(&model, &[TOKENS], false, false, Rates { flops: 1.0 }).expect("counting needs no memory");
    let one = Candidate { layout: Layout::SOLO, sharded: Sharding::Whole, spans: vec![0..counted.segments.len(); 1] };
    comm.barrier().expect("all live");
    let alone = time(&model, Division::solo(&model), ACCUMULATED, comm.as_ref());
    let updating = update_time(&model);
    let flops: f64 = counted.segments.iter().map(|cost| cost.forward + cost.backward).sum();
    let rate = flops * one.micro_batches(ACCUMULATED) as f64 / (alone - updating);
    let demand = Demand::of(&model, &[TOKENS], false, false, Rates { flops: rate }).expect("as before");
    let demand = Demand { update: updating, ..demand };
    let latency = hop(comm.as_ref());
    let all = ACCUMULATED * layout.world();
    let spans = balance_of(&demand, layout.stages, all, None).expect("more segments than stages");
    let candidate = Candidate { layout, sharded, spans };
    let mesh = Mesh::new(comm.clone(), layout);
    let (overlap, offload) = (true, Offload::default());
    let division = Division { mesh, sharding: sharded, spans: candidate.spans.clone(), overlap, offload };
    let measured = time(&model, division, candidate.micro_batches(all), comm.as_ref());
    let links = Links {
        per_node: per_node(layout),
        inside: Link { bandwidth: LOOPBACK, latency },
        bus: None,
        across: Link { bandwidth: megabits * 1e6 / 8.0 * PAYLOAD, latency },
    };
    let told = simulate(&demand, &candidate, all, &links, overlap);
    if rank == 0 {
        println!(
            "| {name} | {megabits} | {measured:.3} | {:.3} | {:+.1} % | {:.3} | {:.3} | {:.3} |",
            told.step,
            (told.step / measured - 1.0) * 100.0,
            told.compute,
            told.bubble,
            told.communication
        );
    }
    comm.barrier().expect("all live");
}

/// All ranks, over TCP.
fn meet(rank: usize, layout: Layout) -> Rc<dyn Comm> {
    let links = connect(rank, layout.world(), per_node(layout));
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let settings = TcpSettings { rank, host: "bench".into(), peer_timeout: Duration::from_secs(10) };
    let transport = TcpTransport::new(settings, links, abort.clone(), pulse.clone()).expect("sockets");
    Rc::new(Ranks::start(transport, abort, pulse).expect("a thread"))
}

/// Seconds of a hop, as all ranks' mean.
fn hop(comm: &dyn Comm) -> f64 {
    const TIMES: usize = 20;
    comm.barrier().expect("all live");
    let start = Instant::now();
    (0..TIMES).for_each(|_| comm.barrier().expect("all live"));
    mean(comm, start.elapsed().as_secs_f64() / (TIMES * (comm.world() - 1)) as f64)
}

fn mean(comm: &dyn Comm, value: f64) -> f64 {
    let mut sum = [value];
    comm.sum(&mut sum).expect("all live");
    sum[0] / comm.world() as f64
}

/// Seconds of the shortest step but the first, which whatever else runs on the machine disturbs least; the mean over all
/// ranks.
fn time(model: &Model, division: Division, micro_batches: usize, comm: &dyn Comm) -> f64 {
    let engine = engine(model, division);
    let (ids, labels): (Vec<u32>, Vec<i32>) = (0..TOKENS).map(|i| (i as u32 * 7 % 4096, i as i32 * 11 % 4096)).unzip();
    let row = Row { input_ids: &ids, labels: &labels, segments: &[TOKENS as u32], isolated: false, source: (0, 0) };
    let micro_batches = vec![vec![Sample { row, index: 0 }]; micro_batches];
    let options = StepOptions {
        optimizer: optimizer(),
        max_norm: 1.0,
        smoothing: 0.0,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute: false,
    };
    let mut least = f64::INFINITY;
    for number in 0..=STEPS {
        comm.barrier().expect("all live");
        let start = Instant::now();
        let work = Work { step: number as u64 + 1, rate: 1e-3, micro_batches: &micro_batches, votes: &Votes::default };
        step(model, &engine, &options, &work).expect("a step");
        if number > 0 {
            least = least.min(start.elapsed().as_secs_f64());
        }
    }
    comm.barrier().expect("all live");
    mean(comm, least)
}

/// Seconds of an update of all weights that train.
fn update_time(model: &Model) -> f64 {
    let engine = engine(model, Division::solo(model));
    let update = ferrotune_train::engine::Update { rate: 1e-3, step: 1, max_norm: 1.0, plus: None };
    let update = || {
        let start = Instant::now();
        engine.update(&optimizer(), &update, 1.0).expect("memory");
        start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| update()).fold(f64::INFINITY, f64::min)
}

fn engine(model: &Model, division: Division) -> Engine {
    let engine = Engine::new(&Device::cpu(), model, division, false);
    engine.load(&Fresh::new(model, 0.02, 7), &[], None, 7).expect("random weights fit");
    engine
}

fn optimizer() -> AdamWPlan {
    AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
}

/// Six blocks, 5.8 million parameters, f32.
fn model(lora: bool) -> Model {
    let config = Config::from_json(&json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "tie_word_embeddings": false,
        "max_position_embeddings": 1024
    }))
    .expect("a configuration of ours");
    let plan = LoraPlan {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        targets: LoraTargets::All,
        additional_targets: Vec::new(),
        rslora: false,
        dora: false,
        plus: None,
        create_new: false,
    };
    let tuning = if lora { Tuning::Lora(plan) } else { Tuning::Full };
    Model::new(&config, DType::F32, Some(&tuning), false).expect("a model of ours")
}
