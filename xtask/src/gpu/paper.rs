//! What is known of the steps without a GPU: the memory that ours are planned with beside what the peers' hold, and the operations
//! that ours execute beside those that are needed. Nothing here is a time.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

const HEAD: &str = "r = 16, every linear layer, bf16, one row, all layers. Ours: the plan that every run begins with. Peers: tensors without data,\n\
    every storage that lives counted; what products need beside their results isn't in it, so theirs is the least that they can hold.\n\
    `beyond` is the peak less the weights; `memory` ours beside theirs of the same setting (asked: at most 0.5 for 8B).\n\
    `operations` are those of products and attention that ours executes, in 10^12; `needed` how many of them are (4 a block parameter and\n\
    token, attention, the head), the others are adapters' and recomputation's. peft trains other adapters of experts: `trained` says how many\n\
    numbers beside ours.\n\n\
    | shape | tokens | recompute | weights GiB | beyond GiB | peers' | memory | trained | operations | needed |\n\
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
    let recompute = ours["recompute"] == true;
    let same = peers.iter().copied().find(|peer| peer["recompute"] == recompute);
    let beyond = |line: &Value| Some((line["peak"].as_f64()? - line["weights"].as_f64()?) / GIB);
    let number_of = |line: &Value, key: &str| line[key].as_f64();
    let over = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
    let (held, done) = (beyond(ours), number_of(ours, "operations"));
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
        number(over(same.and_then(|peer| number_of(peer, "trained")), number_of(ours, "trained")), 2),
        number(done.map(|done| done / 1e12), 1),
        number(over(number_of(ours, "work"), done), 2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_stands_beside_that_of_the_same_setting() {
        let line = |who: &str, recompute: bool, [peak, trained]: [u64; 2]| {
            format!(
                r#"{{"who":"{who}","shape":"qwen3-8b","layers":36,"tokens":2048,"recompute":{recompute},"peak":{peak},"weights":1073741824,"trained":{trained},"operations":4000000000000,"work":3000000000000}}"#
            )
        };
        let gib = 1 << 30;
        let versions = r#"{"who":"peers","torch":"2.13.0","transformers":"5.19.0","peft":"0.21.2"}"#;
        let (keep, none) = (line("ferrotune", false, [2 * gib, 10]), line("ferrotune", true, [gib * 3 / 2, 10]));
        let (theirs, gc) = (line("peft", false, [5 * gib, 10]), line("peft", true, [9 * gib, 5]));
        let text = of(&[&keep[..], &none, versions, &theirs, &gc].join("\n"), "d", "abc").unwrap();
        for part in [
            "torch 2.13.0, transformers 5.19.0, peft 0.21.2",
            "| qwen3-8b | 2048 | no | 1.00 | 1.00 | 4.00 | 0.25 | 1.00 | 4.0 | 0.75 |\n",
            "| qwen3-8b | 2048 | yes | 1.00 | 0.50 | 8.00 | 0.06 | 0.50 | 4.0 | 0.75 |\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(of(&keep, "d", "c").is_err(), "no peers");
        let alone = of(&[&keep[..], versions].join("\n"), "d", "c").unwrap();
        assert!(alone.contains("| 1.00 | 1.00 | - | - | - | 4.0 | 0.75 |"), "{alone}");
    }
}
