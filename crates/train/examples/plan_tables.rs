//! The tables of `docs/plan.md`: what two models take on L20s, by the step that would be run there.
//! `cargo run --release -p ferrotune-train --example plan_tables` writes them into the file; a test compares the two.

use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb};
use ferrotune_model::Config;
use ferrotune_tensor::cards;
use ferrotune_train::{Machine, RowLengths, Subject, Way, meant};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Between these lines stand the tables.
const MARKS: [&str; 2] = ["<!-- tables of `cargo run --example plan_tables` -->\n", "<!-- end of the tables -->"];
const MODELS: [&str; 2] = ["Qwen3-32B", "Qwen3-30B-A3B"];
/// Nodes and cards.
const PLACES: [(usize, usize); 4] = [(1, 1), (1, 2), (1, 8), (2, 8)];
const TOKENS: [usize; 3] = [2048, 8192, 36864];
const GIB: f64 = (1u64 << 30) as f64;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The document in three parts, of which the second holds the tables.
fn document() -> [String; 3] {
    let text = std::fs::read_to_string(root().join("docs/plan.md")).expect("the document is there");
    let (before, rest) = text.split_once(MARKS[0]).expect("the tables begin");
    let (tables, behind) = rest.split_once(MARKS[1]).expect("the tables end");
    [before, tables, behind].map(str::to_owned)
}

#[cfg_attr(test, expect(dead_code, reason = "the test compares rows"))]
fn tables() -> String {
    let mut text = String::new();
    for model in MODELS {
        writeln!(text, "\n### {model} on L20\n").expect("text takes text");
        text += "| cards | tokens | best way | GiB of 45.0 | a step |\n|---:|---:|---|---:|---:|\n";
        for place in PLACES {
            for tokens in TOKENS {
                text += &row(model, place, tokens);
            }
        }
    }
    text + "\n"
}

fn row(model: &str, (nodes, per_node): (usize, usize), tokens: usize) -> String {
    let json: Value = serde_json::from_slice(
        &std::fs::read(root().join("fixtures/plan").join(model).join("config.json")).expect("a configuration"),
    )
    .expect("it is JSON");
    let config = Config::from_json(&json).expect("a model of ours");
    let recipe = format!(
        "model_name_or_path: {model}\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\n\
         dataset: d\ntemplate: qwen3\ncutoff_len: {tokens}\noutput_dir: o\nper_device_train_batch_size: 1\n\
         gradient_accumulation_steps: 8\nbf16: true\ngradient_checkpointing: auto\n"
    );
    let recipe = Recipe::parse("plan.yaml", recipe.as_bytes()).expect("a recipe");
    let (plan, _) = Plan::resolve(&recipe, Verb::Plan).expect("a plan");
    let card = cards::find("L20").expect("it is in the table");
    let machine = Machine::Cards { card, nodes, per_node, network: 25e9 };
    let rows = RowLengths::Assumed(tokens);
    let subject = Subject { config: &config, json: &json, plan, rows, evaluated: Vec::new(), machine };
    let way = meant(&subject).expect("counting needs no memory").expect("there is a way, though it may not fit");
    format!("| {} | {tokens} | {} |\n", nodes * per_node, cells(&way))
}

fn cells(way: &Way) -> String {
    let level = if way.memory.recompute { "recomputed" } else { "kept" };
    let candidate = &way.choice.candidate;
    let split = if candidate.layout.world() == 1 { "one card".into() } else { candidate.to_string() };
    let needed = way.memory.needed() as f64 / GIB;
    match way.choice.fits {
        true => format!("{split}, {level} | {needed:.1} | {:.1} s", way.choice.estimate.step),
        false => format!("none fits; the smallest: {split}, {level} | {needed:.1} | -"),
    }
}

#[cfg_attr(test, expect(dead_code, reason = "the test compares rows"))]
fn main() {
    let [before, _, behind] = document();
    let text = format!("{before}{}{}{}{behind}", MARKS[0], tables(), MARKS[1]);
    std::fs::write(root().join("docs/plan.md"), text).expect("the document can be written");
}

/// Rows that are counted in seconds even without optimisation, beside the document's.
#[cfg(test)]
pub fn compared() -> Vec<(String, bool)> {
    let [_, tables, _] = document();
    let few = |(nodes, per_node): &(usize, usize)| nodes * per_node < 8;
    let places = PLACES.iter().filter(|place| few(place));
    let cases = places.flat_map(|place| TOKENS.map(|tokens| (MODELS[0], *place, tokens)));
    let rows = cases.chain([(MODELS[1], (1, 2), TOKENS[0])]).map(|(model, place, tokens)| row(model, place, tokens));
    rows.map(|row| (row.clone(), tables.contains(&row))).collect()
}
