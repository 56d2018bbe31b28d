//! The adapter lint: what peers wrote passes, and every kind of damage is named by its rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::fixture;
use ferrotune_checkpoint::{
    Dtype, FolderWriter, LintBase, LintOptions, LintReport, OutTensor, SafetensorsFile, TensorSource, Vllm, lint,
    open_model,
};
use serde_json::{Value, json};

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// An adapter as its two files hold it.
struct Parts {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Parts {
    fn read(folder: &Path) -> Self {
        let file = SafetensorsFile::open(&folder.join("adapter_model.safetensors")).unwrap();
        let tensor = |name: String| {
            let value = (file.info(&name).unwrap().shape, file.read_f32(&name).unwrap());
            (name, value)
        };
        Self {
            config: serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap(),
            tensors: file.names().into_iter().map(tensor).collect(),
        }
    }

    fn write(&self, folder: &Path) {
        let writer = FolderWriter::new(folder).unwrap();
        let tensors = self.tensors.iter();
        let out = tensors.map(|(name, (shape, data))| OutTensor::f32(name.clone(), shape.clone(), Dtype::F32, data));
        writer.tensors("adapter_model.safetensors", out.collect()).unwrap();
        writer.json("adapter_config.json", &self.config).unwrap();
    }

    fn tensor(&mut self, name: &str) -> &mut (Vec<usize>, Vec<f32>) {
        self.tensors.get_mut(name).unwrap()
    }

    fn shrink(&mut self, name: &str, shape: [usize; 2]) {
        *self.tensor(name) = (shape.to_vec(), vec![0.5; shape[0] * shape[1]]);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let value = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.to_owned(), value);
    }

    fn move_pair(&mut self, from: &str, to: &str) {
        for part in ["lora_A", "lora_B"] {
            self.rename(&format!("{from}.{part}.weight"), &format!("{to}.{part}.weight"));
        }
    }
}

fn sound() -> Parts {
    Parts::read(&fixture("train/qwen3_lora_bs2/init_adapter"))
}

fn check(folder: &Path, vllm: Vllm, model: Option<&str>) -> LintReport {
    let Some(model) = model else {
        return lint(folder, LintOptions { vllm, base: Err("it is elsewhere") });
    };
    let open = open_model(&fixture("models").join(model)).unwrap();
    let base = LintBase { name: model, config: &open.config, tensors: &*open.tensors };
    lint(folder, LintOptions { vllm, base: Ok(base) })
}

/// Breaks a sound adapter and checks it, with its base at hand and without.
fn broken(vllm: Vllm, damage: impl Fn(&mut Parts)) -> [Vec<String>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = sound();
    damage(&mut parts);
    parts.write(dir.path());
    [Some("tiny-qwen3"), None].map(|model| {
        let report = check(dir.path(), vllm, model);
        assert!(
            report.errors().all(|error| !error.what.is_empty() && !error.server.is_empty() && !error.cure.is_empty())
        );
        report.errors().map(|finding| finding.rule.to_owned()).collect()
    })
}

#[test]
fn adapters_that_training_wrote_are_sound() {
    for (case, model) in [
        ("qwen3_lora_bs2", "tiny-qwen3"),
        ("qwen3_rslora", "tiny-qwen3"),
        ("qwen3_lora_qv_linear_wd_clip", "tiny-qwen3"),
        ("qwen2_lora", "tiny-qwen2"),
        ("llama3rope_lora", "tiny-llama-rope3"),
        ("qwen3moe_lora", "tiny-qwen3moe"),
    ] {
        let folder = fixture("train").join(case).join("init_adapter");
        for vllm in [Vllm::V0_11, Vllm::V0_32] {
            for model in [Some(model), None] {
                let report = check(&folder, vllm, model);
                assert!(report.is_sound(), "{case}: {:#?}", report.findings);
                assert!(report.modules > 0 && report.rank > 0);
                assert_eq!(report.findings.iter().any(|finding| finding.rule == "base-unseen"), model.is_none());
            }
        }
    }
}

#[test]
fn an_adapter_that_never_trained_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = sound();
    let all_b = parts.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B"));
    all_b.for_each(|(_, (_, data))| data.fill(0.0));
    parts.write(dir.path());
    let report = check(dir.path(), Vllm::V0_32, Some("tiny-qwen3"));
    assert!(report.is_sound() && report.findings.iter().any(|finding| finding.rule == "idle"), "{report:#?}");
}

#[test]
fn dora_is_merged_instead() {
    let report = check(&fixture("train/qwen3_dora/init_adapter"), Vllm::V0_32, Some("tiny-qwen3"));
    let errors: Vec<_> = report.errors().collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!((errors[0].rule, errors[0].server.as_str()), ("unsupported", "vLLM does not yet support DoRA"));
    assert!(errors[0].cure.contains("ferrotune export"));
}

#[test]
fn another_base_is_told() {
    let report = check(&fixture("train/qwen3_lora_bs2/init_adapter"), Vllm::V0_32, Some("tiny-llama"));
    assert!(report.errors().any(|error| error.rule == "shape" && error.what.contains("tiny-llama has")), "{report:#?}");
}

/// Name, damage, rule, whether it can be seen without the base.
type Kind = (&'static str, fn(&mut Parts), &'static str, bool);

const KINDS: &[Kind] = &[
    ("no rank", |p| drop(p.config.as_object_mut().unwrap().shift_remove("r")), "missing-key", true),
    ("no alpha", |p| drop(p.config.as_object_mut().unwrap().shift_remove("lora_alpha")), "missing-key", true),
    ("a rank of 0", |p| p.config["r"] = json!(0), "bad-rank", true),
    ("another rank", |p| p.config["r"] = json!(16), "rank", true),
    ("a smaller rank", |p| p.config["r"] = json!(4), "rank", true),
    ("rank 1024", |p| p.config["r"] = json!(1024), "rank-too-large", true),
    ("alpha 0", |p| p.config["lora_alpha"] = json!(0), "bad-alpha", true),
    ("DoRA", |p| p.config["use_dora"] = json!(true), "unsupported", true),
    ("biases", |p| p.config["bias"] = json!("lora_only"), "unsupported", true),
    ("a bias on B", |p| p.config["lora_bias"] = json!(true), "unsupported", true),
    ("whole modules", |p| p.config["modules_to_save"] = json!(["lm_head"]), "unsupported", true),
    ("PiSSA", |p| p.config["init_lora_weights"] = json!("pissa_niter_4"), "unsupported", true),
    ("aLoRA", |p| p.config["alora_invocation_tokens"] = json!([1, 2]), "unsupported", true),
    ("another method", |p| p.config["peft_type"] = json!("LOHA"), "unsupported", true),
    ("an A is missing", |p| drop(p.tensors.remove(&format!("{Q}.lora_A.weight"))), "half-pair", true),
    ("a B is missing", |p| drop(p.tensors.remove(&format!("{Q}.lora_B.weight"))), "half-pair", true),
    ("a pair is missing", |p| p.tensors.retain(|name, _| !name.starts_with(Q)), "missing-pair", true),
    ("a kind of pair is missing", |p| p.tensors.retain(|name, _| !name.contains("q_proj")), "missing-pair", true),
    ("all pairs are missing", |p| p.tensors.retain(|name, _| name.contains("q_proj")), "missing-pair", true),
    ("A is short", |p| p.shrink(&format!("{Q}.lora_A.weight"), [8, 63]), "shape", true),
    ("B is short", |p| p.shrink(&format!("{Q}.lora_B.weight"), [120, 8]), "shape", true),
    ("B is long", |p| p.shrink(&format!("{Q}.lora_B.weight"), [136, 8]), "shape", true),
    ("A has fewer rows", |p| p.shrink(&format!("{Q}.lora_A.weight"), [7, 64]), "rank", true),
    (
        "it is transposed",
        |p| {
            p.shrink(&format!("{Q}.lora_A.weight"), [64, 8]);
            p.shrink(&format!("{Q}.lora_B.weight"), [8, 128]);
        },
        "transposed",
        true,
    ),
    ("not a number", |p| p.tensor(&format!("{Q}.lora_B.weight")).1[5] = f32::NAN, "not-finite", true),
    ("infinite", |p| p.tensor(&format!("{Q}.lora_A.weight")).1[5] = f32::INFINITY, "not-finite", true),
    ("layer 99", |p| p.move_pair(Q, &Q.replace(".0.", ".99.")), "module", false),
    ("an unknown module", |p| p.move_pair(Q, &Q.replace("q_proj", "query")), "module", true),
    (
        "a name of PEFT's in memory",
        |p| p.rename(&format!("{Q}.lora_A.weight"), &format!("{Q}.lora_A.default.weight")),
        "name",
        true,
    ),
    (
        "no prefix",
        |p| p.rename(&format!("{Q}.lora_A.weight"), "model.layers.0.self_attn.q_proj.lora_A.weight"),
        "name",
        true,
    ),
    (
        "a whole weight",
        |p| drop(p.tensors.insert("base_model.model.lm_head.weight".into(), (vec![2, 2], vec![1.0; 4]))),
        "whole-weight",
        true,
    ),
    ("modules that aren't named", |p| p.config["target_modules"] = json!(["q_proj"]), "not-targeted", true),
    (
        "a named module without tensors",
        |p| p.config["target_modules"].as_array_mut().unwrap().push(json!("lm_head")),
        "missing-pair",
        true,
    ),
];

#[test]
fn every_kind_of_damage_is_named() {
    for (name, damage, rule, alone) in KINDS {
        let [with_base, without] = broken(Vllm::V0_32, damage);
        assert!(with_base.iter().any(|found| found == rule), "{name}: {with_base:?}");
        assert!(!alone || without.iter().any(|found| found == rule), "{name}, without the base: {without:?}");
    }
}

#[test]
fn version_0_11_is_stricter() {
    let expert = |p: &mut Parts| p.move_pair(Q, "base_model.model.model.layers.0.mlp.experts.3.gate_proj");
    let fused = |p: &mut Parts| p.move_pair(Q, "base_model.model.model.layers.0.mlp.experts");
    let pattern = |p: &mut Parts| p.config["alpha_pattern"] = json!({"q_proj": 4});
    let has = |found: &[Vec<String>; 2], rule: &str| found[1].iter().any(|name| name == rule);
    assert!(has(&broken(Vllm::V0_11, expert), "expert") && !has(&broken(Vllm::V0_32, expert), "expert"));
    assert!(has(&broken(Vllm::V0_11, fused), "expert") && has(&broken(Vllm::V0_32, fused), "expert"));
    assert!(has(&broken(Vllm::V0_11, pattern), "pattern") && !has(&broken(Vllm::V0_32, pattern), "pattern"));
}

#[test]
fn an_expert_that_the_base_lacks_is_named() {
    for (expert, there) in [(0, true), (7, true), (8, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut parts = Parts::read(&fixture("train/qwen3moe_lora/init_adapter"));
        parts.move_pair(Q, &format!("base_model.model.model.layers.0.mlp.experts.{expert}.gate_proj"));
        parts.write(dir.path());
        let report = check(dir.path(), Vllm::V0_32, Some("tiny-qwen3moe"));
        let lacks =
            report.errors().any(|error| error.rule == "module" && error.what.contains("is not in tiny-qwen3moe"));
        assert_eq!(lacks, !there, "{report:#?}");
    }
}

#[test]
fn files_that_cannot_be_read_are_findings() {
    let dir = tempfile::tempdir().unwrap();
    let rules = || -> Vec<&str> { check(dir.path(), Vllm::V0_32, None).errors().map(|error| error.rule).collect() };
    assert_eq!(rules(), ["config", "weights"]);
    for text in
        ["[1]", "{", "{\"r\": \"8\", \"lora_alpha\": null, \"target_modules\": 7, \"rank_pattern\": {\"a\": -1}}"]
    {
        fs::write(dir.path().join("adapter_config.json"), text).unwrap();
        fs::write(dir.path().join("adapter_model.safetensors"), [0xff; 64]).unwrap();
        let found = rules();
        assert!(found.contains(&"weights") && found.len() >= 2, "{text}: {found:?}");
    }
}

#[test]
fn many_faults_of_a_kind_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = sound();
    parts.config["r"] = json!(16);
    parts.write(dir.path());
    let report = check(dir.path(), Vllm::V0_32, None);
    let told: Vec<_> = report.errors().filter(|error| error.rule == "rank").collect();
    assert_eq!(told.len(), 5);
    assert!(told[4].what.ends_with("(and 9 more like it)"), "{}", told[4].what);
}

#[test]
fn the_base_is_known_by_its_name_too() {
    let open = open_model(&fixture("models/tiny-qwen3")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut parts = sound();
    parts.config["base_model_name_or_path"] = json!("Qwen/Qwen3-4B");
    parts.write(dir.path());
    for (name, other) in [("Qwen/Qwen3-8B", true), ("qwen/qwen3-4b", false), ("/models/Qwen3-8B", false)] {
        let base = LintBase { name, config: &open.config, tensors: &*open.tensors };
        let report = lint(dir.path(), LintOptions { vllm: Vllm::V0_32, base: Ok(base) });
        assert_eq!(report.errors().any(|error| error.rule == "other-base"), other, "{name}");
    }
}

/// PEFT and vLLM add LoRA-GA's pairs to the base as it is; so do we, and say that training began from another.
#[test]
fn lora_ga_is_taken_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = sound();
    parts.config["init_lora_weights"] = json!("lora_ga");
    parts.write(dir.path());
    ferrotune_checkpoint::Adapter::read(dir.path()).unwrap();
    let report = check(dir.path(), Vllm::V0_32, None);
    assert!(report.is_sound(), "{report:?}");
    assert!(report.findings.iter().any(|finding| finding.rule == "changed-base"), "{report:?}");
}
