//! What was encoded by other rules is encoded anew.

use super::*;
use crate::digest;

/// Rows that go through what once changed, and what is likely to.
fn rows_of(stage: Stage) -> Bench {
    let tools = r#"[{"name": "f", "parameters": {"most": 123456789012345678901234567890, "share": 1.50}}]"#;
    let call = r#"{"name": "f", "arguments": {"id": 98765432109876543210}}"#;
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let row = |answer: Value, wanted: bool| {
        let conversation = [turn("human", "q"), answer];
        json!({"conversations": conversation, "tools": tools, "label": wanted})
    };
    let rows = json!([
        row(turn("gpt", "<think>\nwhy\n</think>\n\nyes"), true),
        row(turn("function_call", call), false),
        row(turn("function_call", "no JSON"), true),
        row(turn("gpt", "no"), true),
    ]);
    let tag = if stage == Stage::Feedback { json!("label") } else { Value::Null };
    let columns = json!({"messages": "conversations", "tools": "tools", "kto_tag": tag});
    let mut bench = Bench::new(json!({"formatting": "sharegpt", "columns": columns}), &rows.to_string());
    bench.plan.stage = stage;
    if stage == Stage::Pretrain {
        (bench.plan.packing, bench.plan.cutoff_len) = (Packing::On, 4);
    }
    bench
}

#[test]
fn rows_that_come_out_otherwise_have_new_rules() {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for stage in [Stage::Pretrain, Stage::Sft, Stage::Feedback] {
        for row in rows_of(stage).prepare().unwrap().train.unwrap().iter() {
            parts.push(bytemuck::cast_slice(row.input_ids).to_vec());
            parts.push(bytemuck::cast_slice(row.labels).to_vec());
            parts.push(bytemuck::cast_slice(row.segments).to_vec());
        }
    }
    let digest = digest::of_parts(parts.iter().map(Vec::as_slice));
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    // Where this fails because rows are meant to come out otherwise, raise `RULES` and write both here.
    assert_eq!((key::RULES, hex.as_str()), (2, "b8e06ca203ac860d"));
}

#[test]
fn what_was_encoded_by_older_rules_is_encoded_anew() {
    let bench = Bench::numbered(3);
    let now = Moment { unix_seconds: 0 };
    let start = Start::of(now, &bench.plan, &mut tokenizer()).unwrap();
    let of = |rules| key::of(rules, &bench.plan, &start.datasets, &start.work.tokenizer, &start.work.template).unwrap();
    let older = start.work.path.with_file_name(key::file_name(&of(key::RULES - 1)));
    let first = bench.prepare().unwrap();
    assert_eq!((of(key::RULES), first.from_cache), (start.work.key, false));
    assert!(bench.prepare().unwrap().from_cache);
    fs::rename(&first.cache, older).unwrap();
    assert!(!bench.prepare().unwrap().from_cache);
}
