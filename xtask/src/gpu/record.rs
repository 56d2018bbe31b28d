//! The record of a visit to a GPU, from the lines that it left: what passed, and each figure beside the one that is asked for.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

/// Dense bf16 of a GPU, in operations a second, by a part of its name; a utilisation is of that.
const PEAKS: [(&str, f64); 7] = [
    ("H200", 989e12),
    ("H100", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("L20", 119.5e12),
    ("L40S", 362e12),
    ("4090", 165.2e12),
];
const MIB: f64 = 1_048_576.0;

/// What is written, and whether every test passed and real weights learn alike.
pub(super) struct Record {
    pub(super) text: String,
    pub(super) passed: bool,
}

/// The record of `results`, lines of JSON.
pub(super) fn of(results: &str, date: &str, commit: &str) -> Result<Record> {
    let lines = results.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let lines = lines.context("results.jsonl holds a line that is no JSON")?;
    let by = |who: &str| lines.iter().filter(|line| line["who"] == who).collect::<Vec<_>>();
    let machine = *by("machine").first().context("results.jsonl doesn't say which GPU it was: nothing was measured")?;
    let gpu = machine["gpu"].as_str().context("the machine's line has no `gpu`")?;
    let mut text = format!("# A visit to {gpu}, {date}\n\nCommit {commit}, `cargo xtask gpu`. ");
    let cuda = machine["cuda"].as_u64().unwrap_or(0);
    writeln!(text, "Driver for CUDA {}.{}, {}.", cuda / 1000, cuda % 1000 / 10, file_name(&machine["blas"]))?;
    match by("peers").first() {
        Some(peers) if peers["left_out"].is_null() => {
            let version = |name: &str| peers[name].as_str().unwrap_or("?").to_owned();
            let [torch, transformers, peft] = ["torch", "transformers", "peft"].map(version);
            writeln!(text, "Peers: torch {torch}, transformers {transformers}, peft {peft}.")?;
        }
        Some(peers) => writeln!(text, "No peers: {}.", peers["left_out"].as_str().unwrap_or("?"))?,
        None => writeln!(text, "No peers: the visit ended before them.")?,
    }
    let tests = by("test");
    let passed = !tests.is_empty() && tests.iter().all(|test| test["passed"] == true);
    text += "\n| tests | |\n|---|---|\n";
    for test in tests {
        let word = if test["passed"] == true { "passed" } else { "**failed**" };
        writeln!(text, "| {} | {word} |", test["name"].as_str().unwrap_or("?"))?;
    }
    let (real, alike) = real_weights(&by("smollm2"))?;
    text += &real;
    text += STEPS;
    let (ours, peers) = (by("ferrotune"), by("peft"));
    for line in &ours {
        let same = |peer: &&&Value| ["shape", "layers", "tokens"].iter().all(|key| peer[key] == line[key]);
        let found: Vec<&Value> = peers.iter().filter(same).copied().collect();
        text += &row(line, &found, peak(gpu));
    }
    Ok(Record { text, passed: passed && alike })
}

/// Largest relative difference of a loss in f32 between a GPU and the processor beside it, after so many steps.
const ALIKE: f64 = 1e-3;

/// SmolLM2's losses on both devices, and whether they are alike. A visit without its weights has none.
fn real_weights(rows: &[&Value]) -> Result<(String, bool)> {
    let of = |device: &str| -> Vec<f64> {
        rows.iter().filter(|row| row["device"] == device).filter_map(|row| row["row"]["loss"].as_f64()).collect()
    };
    if rows.is_empty() {
        return Ok(("\nSmolLM2's weights weren't there.\n".to_owned(), true));
    }
    let (gpu, cpu) = (of("gpu"), of("cpu"));
    let gap = gpu.iter().zip(&cpu).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
    let alike = !gpu.is_empty() && gpu.len() == cpu.len() && gap < ALIKE;
    let ends = |losses: &[f64]| match losses {
        [first, .., last] => format!("{first:.4} to {last:.4}"),
        _ => "no two losses".to_owned(),
    };
    let word = if alike { "" } else { " **That isn't alike.**" };
    let text = format!(
        "\n## SmolLM2\n\nReal weights, the quickstart's recipe in f32, {} steps: losses from {} on the GPU, from {} on its processor, {gap:.1e} apart \
         at most (limit {ALIKE:e}).{word}\n",
        gpu.len(),
        ends(&gpu),
        ends(&cpu)
    );
    Ok((text, alike))
}

const STEPS: &str = "\n## LoRA steps\n\nr = 16, every linear layer, bf16, one row of random tokens, random weights; as many layers as fit when \
    blocks are recomputed. Tokens a second are of the median of five steps. `x gc` and `x best` are our rate beside peft's with gradient \
    checkpointing (asked: 2) and beside its fastest that fits (asked: 1.5); `memory` what we hold beyond weights beside what its same \
    setting holds (asked: at most 0.5); `MFU` of dense bf16, without credit for recomputation (asked: 0.5 where nothing is recomputed); \
    `of cublasLt` the same beside the GPU's own products (asked: 0.75); `plan` what the driver gave beside what was planned (asked: within \
    3 %); `bits` whether a second run had the same.\n\n\
    | shape | layers | tokens | recompute | tokens/s | peft gc | peft best | x gc | x best | memory | MFU | of cublasLt | plan | bits |\n\
    |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// Dense bf16 of a GPU.
fn peak(gpu: &str) -> Option<f64> {
    PEAKS.iter().find(|(name, _)| gpu.contains(name)).map(|(_, peak)| *peak)
}

/// One of our steps beside those of peers with the same rows.
fn row(ours: &Value, peers: &[&Value], peak: Option<f64>) -> String {
    let words = |key: &str| ours[key].as_str().map_or_else(|| ours[key].to_string(), str::to_owned);
    let mode = if ours["recompute"] == true { "yes" } else { "no" };
    let begin = format!("| {} | {} | {} | {mode} |", words("shape"), words("layers"), words("tokens"));
    if let Some(why) = ours["left_out"].as_str() {
        return format!("{begin} {why} |||||||||||\n");
    }
    let rate = |line: &Value| line["tokens_per_second"].as_f64();
    let gc = peers.iter().find(|peer| peer["recompute"] == true).and_then(|peer| rate(peer));
    let best = peers.iter().filter_map(|peer| rate(peer)).reduce(f64::max);
    let same = peers.iter().find(|peer| peer["recompute"] == ours["recompute"]);
    let beyond = |line: &Value| Some(line["peak"].as_f64()? - line["weights"].as_f64()?);
    let over = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    let memory = over(beyond(ours), same.and_then(|peer| beyond(peer)));
    let flops = ours["flops"].as_f64();
    let plan = over(ours["taken"].as_f64(), ours["planned"].as_f64()).map(|x| format!("{:+.1} %", 100.0 * (x - 1.0)));
    let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
    let bits = ours["same_bits"].as_bool().map_or("-", |same| if same { "same" } else { "**others**" });
    format!(
        "{begin} {} | {} | {} | {} | {} | {} ({:.0} MiB) | {} | {} | {} | {bits} |\n",
        number(rate(ours), 0),
        number(gc, 0),
        number(best, 0),
        number(over(rate(ours), gc), 2),
        number(over(rate(ours), best), 2),
        number(memory, 2),
        beyond(ours).unwrap_or(0.0) / MIB,
        number(over(flops, peak), 3),
        number(over(flops, ours["products"].as_f64()), 2),
        plan.unwrap_or_else(|| "-".to_owned()),
    )
}

/// The name of a file without the machine's folders.
fn file_name(path: &Value) -> String {
    let path = path.as_str().unwrap_or("?");
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = r#"{"who":"machine","gpu":"NVIDIA H200","memory":150000000000,"cuda":12080,"blas":"/some/where/libcublasLt.so.12"}"#;
    const TEST: &str = r#"{"who":"test","name":"devices","passed":true}"#;
    const STEP: &str = r#"{"who":"ferrotune","shape":"qwen3-8b","layers":36,"tokens":2048,"recompute":false,"seconds":0.2,
        "tokens_per_second":10240,"flops":4.945e14,"products":6.182e14,"peak":20971520,"weights":10485760,"planned":20000000,
        "taken":20200000,"same_bits":null}"#;

    #[test]
    fn figures_stand_beside_peers_of_the_same_rows() {
        let step = STEP.replace('\n', "");
        let peer = |recompute: bool, tokens: u32, rate: u32| {
            format!(
                r#"{{"who":"peft","shape":"qwen3-8b","layers":36,"tokens":{tokens},"recompute":{recompute},"tokens_per_second":{rate},"peak":52428800,"weights":10485760}}"#
            )
        };
        let peers = r#"{"who":"peers","torch":"2.9.0","transformers":"5.0.0","peft":"0.18.0"}"#;
        let left = r#"{"who":"ferrotune","shape":"qwen3-8b","layers":36,"tokens":32768,"recompute":false,"left_out":"no room"}"#;
        let (gc, keep, other) = (peer(true, 2048, 4096), peer(false, 2048, 5120), peer(true, 8192, 9));
        let lines = [MACHINE, TEST, &step, left, peers, &gc, &keep, &other].join("\n");
        let record = of(&lines, "2026-12-01", "abc").unwrap();
        assert!(record.passed);
        for part in [
            "# A visit to NVIDIA H200, 2026-12-01\n",
            "Commit abc",
            "CUDA 12.8, libcublasLt.so.12.",
            "torch 2.9.0, transformers 5.0.0, peft 0.18.0",
            "| devices | passed |",
            "| qwen3-8b | 36 | 2048 | no | 10240 | 4096 | 5120 | 2.50 | 2.00 | 0.25 (10 MiB) | 0.500 | 0.80 | +1.0 % | - |\n",
            "| qwen3-8b | 36 | 32768 | no | no room |",
        ] {
            assert!(record.text.contains(part), "{part} in {}", record.text);
        }
        assert!(!record.text.contains("/some/where"), "no place on a machine");
    }

    #[test]
    fn real_weights_learn_alike_on_both_devices() {
        let row = |device: &str, loss: f64| {
            format!(r#"{{"who":"smollm2","device":"{device}","row":{{"current_steps":1,"loss":{loss}}}}}"#)
        };
        let told = |losses: &[(&str, f64)]| {
            let rows: Vec<String> = losses.iter().map(|(device, loss)| row(device, *loss)).collect();
            of(&[&[MACHINE.to_owned(), TEST.to_owned()], &rows[..]].concat().join("\n"), "d", "c").unwrap()
        };
        let good = told(&[("gpu", 4.0), ("gpu", 2.0), ("cpu", 4.0), ("cpu", 2.001)]);
        assert!(good.passed);
        let told_so =
            "2 steps: losses from 4.0000 to 2.0000 on the GPU, from 4.0000 to 2.0010 on its processor, 5.0e-4 apart";
        assert!(good.text.contains(told_so), "{}", good.text);
        for bad in [&[("gpu", 4.0), ("cpu", 4.1)][..], &[("cpu", 4.0)], &[("gpu", 4.0), ("gpu", 3.0), ("cpu", 4.0)]] {
            let record = told(bad);
            assert!(!record.passed && record.text.contains("**That isn't alike.**"), "{}", record.text);
        }
        assert!(told(&[]).passed);
    }

    #[test]
    fn what_is_missing_is_told() {
        let told = |lines: &[&str]| of(&lines.join("\n"), "d", "c");
        let error = told(&[TEST]).err().unwrap().to_string();
        assert!(error.contains("doesn't say which GPU"), "{error}");
        assert!(told(&[MACHINE, "{"]).is_err());
        assert!(!told(&[MACHINE]).unwrap().passed, "no test is no pass");
        let failed = TEST.replace("true", "false");
        let record = told(&[MACHINE, &failed, &STEP.replace('\n', "")]).unwrap();
        assert!(!record.passed && record.text.contains("| devices | **failed** |"), "{}", record.text);
        assert!(record.text.contains("No peers: the visit ended before them."), "{}", record.text);
        assert!(record.text.contains("| - | - | - | - | - (10 MiB) |"), "{}", record.text);
    }
}
