//! Speed of a LoRA step of a mixture of experts in the shape of Qwen3-30B-A3B (128 experts, 8 of which see a token) at a quarter
//! of its width, beside a dense model with as many active parameters, in turns in the same process.
//! `cargo bench -p ferrotune-train --bench experts`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use ferrotune_config::plan::{AdamWPlan, LoraPlan, LoraTargets, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_model::{ATTENTION_LINEARS, Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine};
use ferrotune_train::{Fresh, Sample, StepOptions, Votes, Work, step};
use serde_json::json;
use std::time::{Duration, Instant};

const HIDDEN: usize = 512;
const INNER: usize = 192;
const EXPERTS: usize = 128;
const SEEN: usize = 8;
const BLOCKS: usize = 6;
/// Time spent on each model of a case.
const SPENT: Duration = Duration::from_secs(8);

fn main() {
    println!("type adapters   tokens   experts tok/s   dense tok/s   ratio");
    for dtype in [DType::F32, DType::Bf16] {
        for all in [true, false] {
            for tokens in [512, 2048] {
                case(dtype, all, tokens);
            }
        }
    }
}

fn case(dtype: DType, all: bool, tokens: usize) {
    let models = [config(true), config(false)].map(|config| Trained::new(&config, dtype, all));
    let mut best = [f64::INFINITY; 2];
    let start = Instant::now();
    let mut number = 0;
    // In turns, so that whatever else runs on the machine disturbs both alike.
    while number < 4 || start.elapsed() < 2 * SPENT {
        number += 1;
        for (best, trained) in best.iter_mut().zip(&models) {
            let seconds = trained.step(number, tokens);
            if number > 1 {
                *best = best.min(seconds);
            }
        }
    }
    let [experts, dense] = best.map(|seconds| tokens as f64 / seconds);
    let (dtype, adapters) = (format!("{dtype}"), if all { "all" } else { "attention" });
    println!("{dtype:4} {adapters:9} {tokens:7} {experts:15.0} {dense:13.0} {:7.2}", experts / dense);
}

fn config(experts: bool) -> Config {
    let mut json = json!({
        "model_type": "qwen3", "hidden_size": HIDDEN, "intermediate_size": INNER * SEEN, "num_hidden_layers": BLOCKS,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 8192
    });
    if experts {
        json["model_type"] = "qwen3_moe".into();
        json["num_experts"] = EXPERTS.into();
        json["num_experts_per_tok"] = SEEN.into();
        json["moe_intermediate_size"] = INNER.into();
        json["norm_topk_prob"] = true.into();
    }
    Config::from_json(&json).expect("a configuration of ours")
}

struct Trained {
    model: Model,
    engine: Engine,
}

impl Trained {
    fn new(config: &Config, dtype: DType, all: bool) -> Self {
        let attention = ATTENTION_LINEARS.map(String::from).to_vec();
        let tuning = Tuning::Lora(LoraPlan {
            targets: if all { LoraTargets::All } else { LoraTargets::Modules(attention) },
            ..LoraPlan::plain(8)
        });
        let model = Model::new(config, dtype, Some(&tuning), false).expect("a model");
        let engine = Engine::new(&Device::cpu(), &model, Division::solo(&model), false);
        engine.load(&Fresh::new(&model, 0.04, 1), &[], None, 1).expect("weights");
        Self { model, engine }
    }

    /// Seconds of a step.
    fn step(&self, number: u64, tokens: usize) -> f64 {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % 8192).collect();
        let labels: Vec<i32> = ids.iter().map(|&i| i as i32).collect();
        let segments = [tokens as u32];
        let row = Row { input_ids: &ids, labels: &labels, segments: &segments, isolated: false, source: (0, 0) };
        let samples = vec![Sample { row, index: 0 }];
        let options = StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            max_norm: 1.0,
            smoothing: 0.0,
            router_aux_loss: 0.0,
            embedding_alpha: 0.0,
            seed: 1,
            plus: None,
            recompute: false,
        };
        let start = Instant::now();
        let micro_batches = std::slice::from_ref(&samples);
        let work = Work { step: number, rate: 1e-4, micro_batches, scale: None, votes: &Votes::default };
        step(&self.model, &self.engine, &options, &work).expect("a step");
        start.elapsed().as_secs_f64()
    }
}
