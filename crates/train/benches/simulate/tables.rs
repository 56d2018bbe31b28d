//! The tables of `docs/strategies.md`, by the plan's model.

use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_dist::Layout;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Profile};
use ferrotune_train::engine::{Offload, Sharding};
use ferrotune_train::plan::{
    Candidate, Choice, Demand, Link, Links, Question, Rates, balance_of, candidates, choose, simulate,
};
use ferrotune_train::{Shape, StepOptions, predict};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Between these lines of the document stand the tables.
const MARKS: [&str; 2] = ["<!-- tables of `cargo bench --bench simulate` -->\n", "<!-- end of the tables -->\n"];
const GPUS: usize = 8;
/// Micro-batches of a step, for each GPU.
const ACCUMULATED: usize = 8;
/// Of what a link is sold as, the share that payload gets.
const PAYLOAD: f64 = 0.9;
/// Bytes of an L20 that a run can have: 48 GB, less what driver and libraries take.
const CAPACITY: u64 = 44 << 30;
const L20: f64 = 119.5e12;

/// Where the document is.
pub(crate) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/strategies.md")
}

/// The document in three parts, of which the second holds the tables; the others end and begin with its marks.
pub(crate) fn document() -> [String; 3] {
    let text = std::fs::read_to_string(path()).expect("the document is there");
    let begin = text.find(MARKS[0]).expect("the tables begin") + MARKS[0].len();
    let end = text.find(MARKS[1]).expect("the tables end");
    [&text[..begin], &text[begin..end], &text[end..]].map(str::to_owned)
}

/// All tables; or what is counted in seconds even without optimisation.
pub(crate) fn tables(all: bool) -> String {
    let (dense, experts) = (qwen3_32b(), qwen3_30b_a3b());
    let long = demand(&dense, 4096, L20 * 0.5);
    let mut text = String::from("\n");
    if all {
        text += &table("Qwen3-32B", 4096, &long);
        text += &table("Qwen3-32B", 512, &demand(&dense, 512, L20 * 0.5));
        text += &table("Qwen3-30B-A3B", 4096, &demand(&experts, 4096, L20 * 0.35));
        text += &fitting("Qwen3-32B", &dense, &CARDS);
    }
    text += &fitting("Qwen3-30B-A3B", &experts, if all { &CARDS } else { &CARDS[..1] });
    text += &all_candidates(&long);
    text += &experts_apart(&experts, if all { &[512, 2048, 4096, 16384] } else { &[4096] });
    text + &reported()
}

/// A table's heading and its lines.
fn headed(title: &str, columns: &[&str], numbers: usize) -> String {
    let line = |i: usize| if i < numbers { "---:" } else { "---" };
    let lines: Vec<&str> = (0..columns.len()).map(line).collect();
    format!("### {title}\n\n| {} |\n|{}|\n", columns.join(" | "), lines.join("|"))
}

/// Nodes and card speeds downwards, strategies side by side.
fn table(name: &str, tokens: usize, demand: &Demand) -> String {
    let experts = demand.experts().is_some();
    let mut columns = vec!["nodes", "Gb/s", "pipeline 8 x replicate", "hybrid 8 x", "zero3"];
    columns.extend(experts.then_some("expert 8 x"));
    let named = if experts { ", expert" } else { "" };
    let last = format!("GB out of a node: pipeline, hybrid, zero3{named}");
    columns.push(&last);
    let mut text = headed(&format!("{name}, {tokens} tokens a micro-batch"), &columns, 2);
    for nodes in [2, 16, 128] {
        let world = nodes * GPUS;
        for gigabits in [10.0, 25.0, 100.0] {
            let links = l20s(gigabits);
            let choices = looked_at(demand, world, &links);
            let mut names =
                vec![format!("pipeline 8 x replicate {nodes}"), format!("hybrid 8x{nodes}"), "zero3".to_owned()];
            names.extend(experts.then(|| format!("expert 8x{nodes}")));
            let found: Vec<&Choice> = names.iter().map(|name| named_so(&choices, name)).collect();
            let cells: Vec<String> = found.iter().map(|choice| cell(choice)).collect();
            let out: Vec<String> = found.iter().map(|choice| format!("{:.1}", choice.across as f64 / 1e9)).collect();
            let _ = writeln!(text, "| {nodes} | {gigabits} | {} | {} |", cells.join(" | "), out.join(", "));
        }
    }
    text + "\n"
}

fn named_so<'a>(choices: &'a [Choice], name: &str) -> &'a Choice {
    choices.iter().find(|choice| choice.candidate.to_string() == name).expect("it is a way to split eight GPUs a node")
}

/// One node, by the tokens of a micro-batch and how many of them a step has: where rows go to experts, where weights come to
/// rows, and where blocks stand in a row.
fn experts_apart(config: &Config, lengths: &[usize]) -> String {
    let columns = ["inside", "tokens", "micro-batches a GPU", "expert 8", "zero3", "pipeline 8"];
    let mut text = headed("Qwen3-30B-A3B on one node of eight", &columns, 0);
    let demands: Vec<_> = lengths.iter().map(|tokens| (tokens, demand(config, *tokens, L20 * 0.35))).collect();
    for (name, bandwidth) in [("PCIe, 20 GB/s", 20e9), ("NVLink, 300 GB/s", 300e9)] {
        let links = Links { inside: Link { bandwidth, shared: f64::INFINITY, latency: 10e-6 }, ..l20s(25.0) };
        for (tokens, demand) in &demands {
            for accumulated in [1, 2, 8, 16] {
                let choices = of_steps(demand, GPUS, accumulated, &links);
                let cells = ["expert 8", "zero3", "pipeline 8"].map(|name| cell(named_so(&choices, name)));
                let _ = writeln!(text, "| {name} | {tokens} | {accumulated} | {} |", cells.join(" | "));
            }
        }
    }
    text + "\n"
}

/// Seconds a step, and what of them is not computing.
fn cell(choice: &Choice) -> String {
    let time = choice.estimate;
    let fits = if choice.fits { "" } else { " (doesn't fit)" };
    format!("{:.1} s ({:.1} bubble, {:.1} wires){fits}", time.step, time.bubble, time.communication)
}

/// How many cards a model is to fit on.
const CARDS: [usize; 4] = [1, 2, 8, 16];

/// Memory of the fullest card by the step on `meta`, exactly, for the ways that fit best.
fn fitting(name: &str, config: &Config, all_cards: &[usize]) -> String {
    let experts = config.moe.is_some();
    let mut columns = vec!["cards", "tokens", "replicate", "hybrid or zero3", "pipeline"];
    columns.extend(experts.then_some("expert"));
    let title = "on L20 of 48 GB: GiB on the fullest card, LoRA r = 8 on all linear layers, blocks recomputed";
    let mut text = headed(&format!("{name} {title}"), &columns, 2);
    let model = model(config);
    for &cards in all_cards {
        for tokens in [2048, 8192, 36864] {
            let (inside, nodes) = (cards.min(GPUS), cards.div_ceil(GPUS));
            let mut found = vec![
                candidate(&model, cards, [1, 1, cards], Sharding::Whole),
                candidate(&model, cards, [inside, 1, nodes], Sharding::Weights),
                candidate(&model, cards, [1, inside, nodes], Sharding::Whole),
            ];
            found.extend(experts.then(|| candidate(&model, cards, [inside, 1, nodes], Sharding::Experts)));
            let cells: Vec<String> = found.iter().map(|candidate| memory(&model, candidate, tokens)).collect();
            let _ = writeln!(text, "| {cards} | {tokens} | {} |", cells.join(" | "));
        }
    }
    text + "\n"
}

fn candidate(model: &Model, cards: usize, [shards, stages, replicas]: [usize; 3], sharded: Sharding) -> Candidate {
    assert_eq!(cards, shards * stages * replicas, "all cards are used");
    let layout = Layout { shards, stages, replicas };
    let spans = match stages {
        1 => vec![0..model.segments(); 1],
        _ => {
            let demand = Demand::of(model, &[512], true, false, Rates::even(L20)).expect("counting needs no memory");
            balance_of(&demand, stages, ACCUMULATED * stages, None).expect("fewer stages than blocks")
        }
    };
    Candidate { layout, sharded, spans }
}

fn memory(model: &Model, candidate: &Candidate, tokens: usize) -> String {
    let optimizer = AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let options = StepOptions {
        optimizer,
        max_norm: 1.0,
        smoothing: 0.0,
        router_aux_loss: 0.0,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute: true,
    };
    let shape = Shape { candidate: candidate.clone(), overlap: true, offload: Offload::default() };
    let bytes =
        predict(model, &options, &shape, &[tokens], Profile::Cuda).expect("counting needs no memory").device.peak;
    let fits = if bytes <= CAPACITY { "" } else { " (doesn't fit)" };
    format!("{:.1}{fits}", bytes as f64 / f64::from(1 << 30))
}

/// What the plan says of every way to split two nodes.
fn all_candidates(demand: &Demand) -> String {
    let columns = ["strategy", "GiB a rank", "step", "GB from a rank", "GB out of a node"];
    let mut text = headed("All ways to split Qwen3-32B over two nodes at 25 Gb/s", &columns, 0);
    for choice in looked_at(demand, 2 * GPUS, &l20s(25.0)) {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let (gib, time) = (choice.needed as f64 / f64::from(1 << 30), cell(&choice));
        let (sent, across) = (gb(choice.sent), gb(choice.across));
        let _ = writeln!(text, "| `{}` | {gib:.1} | {time} | {sent:.1} | {across:.1} |", choice.candidate);
    }
    text + "\n"
}

fn looked_at(demand: &Demand, world: usize, links: &Links) -> Vec<Choice> {
    of_steps(demand, world, ACCUMULATED, links)
}

/// All splits for steps of so many micro-batches a GPU.
fn of_steps(demand: &Demand, world: usize, accumulated: usize, links: &Links) -> Vec<Choice> {
    let micro_batches = accumulated * world;
    let capacity = Some(CAPACITY);
    let question = Question { demand, micro_batches, links, overlap: true, capacity };
    let found = candidates(demand, world, GPUS, micro_batches, capacity);
    let needed = |candidate: &Candidate| Ok(candidate.least_bytes(demand, micro_batches));
    choose(&question, found, &needed).expect("the bytes of a candidate are always known")
}

/// LLaMA-Factory's issue 5014: Llama-3-8B, LoRA, ZeRO-3, eight A800 with NVLink a node, one row and two micro-batches; 4 s
/// a step on one node, 90 s on two over 10 Gb/s.
fn reported() -> String {
    let mut text = "### A report of LLaMA-Factory's users (issue 5014)\n\n".to_owned();
    let config = config(&json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256
    }));
    let demand = demand(&config, 512, 312e12 * 0.3);
    let links = Links {
        per_node: GPUS,
        inside: Link { bandwidth: 180e9, shared: f64::INFINITY, latency: 10e-6 },
        across: card(10.0),
        ..Links::FREE
    };
    for nodes in [1, 2] {
        let world = nodes * GPUS;
        let found = candidates(&demand, world, GPUS, 2 * world, None);
        let zero3 = found.iter().find(|candidate| candidate.to_string() == "zero3").expect("always looked at");
        let time = simulate(&demand, zero3, 2 * world, &links, true);
        let (step, waiting) = (time.step, time.communication);
        let _ =
            writeln!(text, "- {nodes} node(s), zero3: {step:.1} s a step, {waiting:.1} s of it waiting for the wires");
        if let Some(hybrid) = found.iter().find(|candidate| candidate.to_string() == format!("hybrid 8x{nodes}")) {
            let time = simulate(&demand, hybrid, 2 * world, &links, true);
            let _ = writeln!(text, "- {nodes} node(s), hybrid: {:.1} s a step", time.step);
        }
    }
    text + "\n"
}

fn l20s(gigabits: f64) -> Links {
    Links {
        per_node: GPUS,
        inside: Link { bandwidth: 20e9, shared: f64::INFINITY, latency: 10e-6 },
        across: card(gigabits),
        ..Links::FREE
    }
}

/// A card that one rank alone can fill.
fn card(gigabits: f64) -> Link {
    let bandwidth = gigabits * 1e9 / 8.0 * PAYLOAD;
    Link { bandwidth, shared: bandwidth, latency: 50e-6 }
}

/// A step of it, blocks recomputed.
fn demand(config: &Config, tokens: usize, flops: f64) -> Demand {
    Demand::of(&model(config), &[tokens], true, false, Rates::even(flops)).expect("counting needs no memory")
}

/// LoRA of rank 8 on all linear layers, those of experts among them, bf16.
fn model(config: &Config) -> Model {
    let plan = LoraPlan::plain(8);
    Model::new(config, DType::Bf16, Some(&Tuning::Lora(plan)), false).expect("a model of ours")
}

fn qwen3_32b() -> Config {
    config(&json!({
        "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936
    }))
}

fn qwen3_30b_a3b() -> Config {
    config(&json!({
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true
    }))
}

fn config(json: &Value) -> Config {
    Config::from_json(json).expect("a configuration of ours")
}
