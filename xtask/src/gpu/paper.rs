//! What is known of the steps without a GPU: the memory that ours are planned with beside what the peers' hold, and the operations
//! of both. Nothing here is a time.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

const HEAD: &str = "r = 16, every linear layer, bf16, one row, all layers. Ours: the plan that every run begins with. Peers: tensors \
    without data, every storage that lives counted; what products need beside their results isn't in it, so theirs is the least \
    that they can hold. `beyond` is the peak less the weights; `memory` ours beside theirs of the same setting (asked: at most 0.5). \
    `operations` are those of products and attention that are executed, in 10^12; `x gc` how many times ours peers execute as \
    LLaMA-Factory runs them, with gradient checkpointing: a rate above that comes of other things.\n\n\
    | shape | tokens | recompute | weights GiB | beyond GiB | peers\u{2019} | memory | operations | peers\u{2019} | x gc |\n\
    |---|---|---|---|---|---|---|---|---|---|\n";
const GIB: f64 = 1_073_741_824.0;

/// The record of `lines`, of JSON.
pub(super) fn of(lines: &str, date: &str, commit: &str) -> Result<String> {
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let lines = lines.context("a line is no JSON")?;
    let by = |who: &str| lines.iter().filter(|line| line["who"] == who).collect::<Vec<_>>();
    let (ours, peers) = (by("ferrotune"), by("peft"));
    let versions = *by("peers").first().context("the peers said nothing")?;
    let [torch, transformers, peft] =
        ["torch", "transformers", "peft"].map(|name| versions[name].as_str().unwrap_or("?").to_owned());
    let mut text =
        format!("# LoRA steps on paper, {date}\n\nCommit {commit}, `cargo xtask gpu --paper PYTHON`, without a GPU. ");
    writeln!(
        text,
        "Peers: torch {torch}, transformers {transformers}, peft {peft}.\n\n{HEAD}",
        HEAD = HEAD.trim_end()
    )?;
    for line in ours {
        let same = |peer: &&&Value| ["shape", "layers", "tokens"].iter().all(|key| peer[key] == line[key]);
        let found: Vec<&Value> = peers.iter().filter(same).copied().collect();
        text += &row(line, &found);
    }
    Ok(text)
}

/// One of our steps beside those of peers with the same row.
fn row(ours: &Value, peers: &[&Value]) -> String {
    let of = |recompute: bool| peers.iter().copied().find(|peer| peer["recompute"] == recompute);
    let recompute = ours["recompute"] == true;
    let same = of(recompute);
    let beyond = |line: &Value| Some((line["peak"].as_f64()? - line["weights"].as_f64()?) / GIB);
    let tera = |line: &Value| Some(line["operations"].as_f64()? / 1e12);
    let over = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
    let (held, done) = (beyond(ours), tera(ours));
    let theirs = same.and_then(beyond);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
        ours["shape"].as_str().unwrap_or("?"),
        ours["tokens"],
        if recompute { "yes" } else { "no" },
        number(ours["weights"].as_f64().map(|bytes| bytes / GIB), 2),
        number(held, 2),
        number(theirs, 2),
        number(over(held, theirs), 2),
        number(done, 1),
        number(same.and_then(tera), 1),
        number(over(of(true).and_then(tera), done), 2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_operations_stand_beside_those_of_the_same_setting() {
        let line = |who: &str, recompute: bool, [peak, operations]: [u64; 2]| {
            format!(
                r#"{{"who":"{who}","shape":"qwen3-8b","layers":36,"tokens":2048,"recompute":{recompute},"peak":{peak},"weights":1073741824,"operations":{operations}}}"#
            )
        };
        let gib = 1 << 30;
        let versions = r#"{"who":"peers","torch":"2.13.0","transformers":"5.19.0","peft":"0.21.2"}"#;
        let (keep, none) =
            (line("ferrotune", false, [2 * gib, 4_000_000_000_000]), line("ferrotune", true, [gib * 3 / 2, 0]));
        let (theirs, gc) =
            (line("peft", false, [5 * gib, 5_000_000_000_000]), line("peft", true, [9 * gib, 6_000_000_000_000]));
        let text = of(&[&keep[..], &none, versions, &theirs, &gc].join("\n"), "d", "abc").unwrap();
        for part in [
            "torch 2.13.0, transformers 5.19.0, peft 0.21.2",
            "| qwen3-8b | 2048 | no | 1.00 | 1.00 | 4.00 | 0.25 | 4.0 | 5.0 | 1.50 |\n",
            "| qwen3-8b | 2048 | yes | 1.00 | 0.50 | 8.00 | 0.06 |",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(of(&keep, "d", "c").is_err(), "no peers");
        let alone = of(&[&keep[..], versions].join("\n"), "d", "c").unwrap();
        assert!(alone.contains("| 1.00 | 1.00 | - | - | 4.0 | - | - |"), "{alone}");
    }
}
