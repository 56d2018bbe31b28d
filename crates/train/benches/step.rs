//! Speed and memory of a LoRA step of SmolLM2-135M's shape (random weights), beside the matrix-product rate that the same
//! process measures. `cargo bench -p ferrotune-train --bench step [-- f32 1x512 ...]`.
//!
//! Needed work of a step, in floating-point operations: 4 a block parameter and token (forward and input gradient), 12 a
//! pair of query and key and element of the width for attention (6 products), 4 a head parameter and label row. Nothing
//! is credited for recomputation, adapters or weights' gradients.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use ferrotune_checkpoint::{Dtype, Error, TensorInfo, TensorSource};
use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::cpu::{self, Data, DataMut, Gemm, Mat, Product};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine};
use ferrotune_train::{Sample, StepOptions, Votes, Work, step};
use half::bf16;
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// dtype, rows x tokens, recompute.
const CASES: [(&str, &str, &str); 8] = [
    ("f32", "1x512", "keep"),
    ("f32", "4x512", "keep"),
    ("f32", "1x512", "recompute"),
    ("f32", "4x65", "keep"),
    ("bf16", "1x512", "keep"),
    ("bf16", "4x512", "keep"),
    ("bf16", "1x512", "recompute"),
    ("bf16", "4x65", "keep"),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [one, dtype, shape, mode] = &args[..]
        && one == "case"
    {
        return case(dtype, shape, mode);
    }
    println!(
        "type rows     blocks    tokens/s  cpu tok/s  GFLOP/s  gemm GFLOP/s  share  cpu share  peak resident  planned"
    );
    for (dtype, shape, mode) in CASES {
        if args.iter().all(|a| [dtype, shape, mode].contains(&a.as_str())) {
            // A process of its own, so that the peak is its own.
            let exe = std::env::current_exe().expect("this program has a path");
            let status = std::process::Command::new(exe).args(["case", dtype, shape, mode]).status();
            assert!(status.expect("it starts").success());
        }
    }
}

fn config() -> Config {
    Config::from_json(&json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5
    }))
    .expect("a configuration of ours")
}

/// Small random weights, the same each time.
struct Noise(HashMap<String, Vec<usize>>);

impl TensorSource for Noise {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|shape| TensorInfo { shape: shape.clone(), dtype: Dtype::F32 })
    }
    fn read_range(&self, _: &str, range: std::ops::Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<(), Error> {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 0.08 - 0.04;
        for (i, chunk) in range.zip(dst.chunks_exact_mut(to.block().1)) {
            ferrotune_checkpoint::encode(to, &[value(i)], chunk);
        }
        Ok(())
    }
}

fn case(dtype: &str, shape: &str, mode: &str) {
    let (rows, tokens) = shape.split_once('x').expect("rows x tokens");
    let (rows, tokens): (usize, usize) = (rows.parse().expect("rows"), tokens.parse().expect("tokens"));
    let tuning = Tuning::Lora(LoraPlan::plain(8));
    let element = if dtype == "bf16" { DType::Bf16 } else { DType::F32 };
    let model = Model::new(&config(), element, Some(&tuning), false).expect("a model");
    let engine = Engine::new(&Device::cpu(), &model, Division::solo(&model), false);
    let shapes = model.parameters().iter().map(|p| (p.param.name.clone(), p.param.shape.dims().to_vec()));
    engine.load(&Noise(shapes.collect()), &[], None, 1).expect("weights");
    let options = StepOptions {
        optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_norm: 1.0,
        smoothing: 0.0,
        router_aux_loss: 0.0,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute: mode == "recompute",
    };
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % 49152).collect();
    let labels: Vec<i32> = ids.iter().map(|&i| i as i32).collect();
    let segments = [tokens as u32];
    let row = Row { input_ids: &ids, labels: &labels, segments: &segments, isolated: false, source: (0, 0) };
    let samples: Vec<Sample<'_>> = (0..rows).map(|index| Sample { row, index }).collect();
    let gemm = (0..3).map(|_| gemm_rate(element)).fold(0.0, f64::max);
    let mut number = 0;
    let mut once = || {
        number += 1;
        let (wall, cpu) = (Instant::now(), cpu_time());
        let work = Work {
            step: number,
            rate: 1e-4,
            micro_batches: std::slice::from_ref(&samples),
            scale: None,
            votes: &Votes::default,
        };
        step(&model, &engine, &options, &work).expect("a step");
        (wall.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64())
    };
    once();
    let mut times: Vec<(f64, f64)> = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || start.elapsed() < Duration::from_secs(8) {
        times.push(once());
    }
    let gemm = (0..3).map(|_| gemm_rate(element)).fold(gemm, f64::max);
    let best = |f: fn(&(f64, f64)) -> f64| times.iter().map(f).fold(f64::MAX, f64::min);
    let threads = rayon::current_num_threads() as f64;
    let (wall, cpu) = (best(|t| t.0), best(|t| t.1) / threads);
    let total = (rows * tokens) as f64;
    let rate = work(&config(), rows, tokens) / wall * 1e-9;
    println!(
        "{dtype:4} {shape:8} {mode:9} {:8.0} {:9.0} {rate:8.0} {gemm:11.0} {:9.3} {:10.3} {:10.0} MiB {:6.0} MiB",
        total / wall,
        total / cpu,
        rate / gemm,
        rate * wall / cpu / gemm,
        peak_resident() as f64 / 1024.0,
        engine.device().track().peak as f64 / (1 << 20) as f64
    );
}

fn work(config: &Config, rows: usize, tokens: usize) -> f64 {
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let (tokens, rows) = (tokens as f64, rows as f64);
    let blocks = 4.0 * config.block_parameters() as f64 * tokens;
    let attention = 12.0 * width * tokens * (tokens + 1.0) / 2.0 * config.num_hidden_layers as f64;
    let head = 4.0 * (config.vocab_size * config.hidden_size) as f64 * (tokens - 1.0);
    rows * (blocks + attention + head)
}

/// Rate of a large square product, in GFLOP/s.
fn gemm_rate(element: DType) -> f64 {
    const N: usize = 1536;
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let halves: (Vec<bf16>, Vec<bf16>) = (vec![bf16::ONE; N * N], vec![bf16::ONE; N * N]);
    let mut c = vec![0f32; N * N];
    let (a, b) = match element {
        DType::Bf16 => (Data::Bf16(&halves.0), Data::Bf16(&halves.1)),
        _ => (Data::F32(&a), Data::F32(&b)),
    };
    let product = Product { alpha: 1.0, a: Mat::new(a, N), b: Mat::transposed(b, N), k: N };
    let args = Gemm { m: N, n: N, product, second: None, beta: 0.0, bias: None };
    let mut best = f64::MAX;
    for _ in 0..6 {
        let start = Instant::now();
        cpu::gemm(&args, DataMut::F32(&mut c), N);
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N as f64).powi(3) / best * 1e-9
}

/// Processor time of all threads so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Peak resident KiB of this process.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}
