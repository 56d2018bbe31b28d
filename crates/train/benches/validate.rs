//! The plan's model of a step beside real steps: processes that talk TCP through network namespaces whose links are
//! throttled by `tc`. Needs root, `ip` and `tc`. `cargo bench -p ferrotune-train --bench validate [-- 100 1000 zero3]` (Mb/s, and
//! parts of names of cases).
//!
//! Each process computes on one thread, with a core or an equal part of one. The model is fed what a run feeds it: the wires as the ranks measured them, and the
//! rates of one block, of the head and of an update.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "validate/network.rs"]
mod network;
#[path = "validate/share.rs"]
mod share;

use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Abort, Comm, Layout, Mesh, Pulse, Ranks, TcpSettings, TcpTransport};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::plan::{Candidate, Demand, Probe, balance_of, measure_rates, simulate};
use ferrotune_train::{Fresh, Sample, StepOptions, Votes, Work, step};
use network::{Network, connect};
use serde_json::json;
use share::Share;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOKENS: usize = 512;
/// Micro-batches of a step for each rank.
const ACCUMULATED: usize = 2;
const STEPS: usize = 5;

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
    println!(
        "| case | Mb/s set | Mb/s found | us a hop | measured s | simulated s | difference | computing | bubble | wires |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
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
    let world = layout(case).world();
    let children: Vec<Child> = (0..world).map(start).collect();
    // Ranks without stages compute at the same time anyway.
    let piped = children.iter().filter(|_| layout(case).stages > 1);
    let _shares: Vec<Share> = piped.map(|child| Share::new(child.id(), world)).collect();
    for mut child in children {
        assert!(child.wait().expect("it runs").success(), "a rank of case {} failed", CASES[case].0);
    }
}

fn worker(case: usize, rank: usize, megabits: f64) {
    let (name, _, sharded, lora) = CASES[case];
    let layout = layout(case);
    let comm = meet(rank, layout);
    let model = model(lora);
    let device = Device::cpu();
    let wires = Probe::new(comm.as_ref(), &device, per_node(layout)).expect("wires").links;
    let rates = measure_rates(&model, &device, &[TOKENS], comm.as_ref(), Duration::from_millis(600)).expect("rates");
    let demand = Demand::of(&model, &[TOKENS], false, false, rates).expect("counting needs no memory");
    let all = ACCUMULATED * layout.world();
    let spans = balance_of(&demand, layout.stages, all, None).expect("more segments than stages");
    let candidate = Candidate { layout, sharded, spans };
    let mesh = Mesh::new(comm.clone(), layout);
    let (overlap, offload) = (true, Offload::default());
    let division = Division { mesh, sharding: sharded, spans: candidate.spans.clone(), overlap, offload };
    let measured = time(&model, division, candidate.micro_batches(all), comm.as_ref());
    let told = simulate(&demand, &candidate, all, &wires, overlap);
    if rank == 0 {
        println!(
            "| {name} | {megabits} | {:.0} | {:.0} | {measured:.3} | {:.3} | {:+.1} % | {:.3} | {:.3} | {:.3} |",
            wires.across.bandwidth * 8e-6,
            wires.across.latency * 1e6,
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
        router_aux_loss: 0.0,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute: false,
    };
    let mut least = f64::INFINITY;
    for number in 0..=STEPS {
        comm.barrier().expect("all live");
        let start = Instant::now();
        let work = Work {
            step: number as u64 + 1,
            rate: 1e-3,
            micro_batches: &micro_batches,
            scale: None,
            votes: &Votes::default,
        };
        step(model, &engine, &options, &work).expect("a step");
        if number > 0 {
            least = least.min(start.elapsed().as_secs_f64());
        }
    }
    comm.barrier().expect("all live");
    mean(comm, least)
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
    let plan = LoraPlan::plain(8);
    let tuning = if lora { Tuning::Lora(plan) } else { Tuning::Full };
    Model::new(&config, DType::F32, Some(&tuning), false).expect("a model of ours")
}
