//! `check` and `deploy`: from a run's folder to a server's files, and what a server that isn't right is told.

use crate::common::{Place, read_json, tensors, trainable};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

fn trained() -> Place {
    let place = trainable("max_steps: 2\nsave_strategy: 'no'\n");
    let run = place
        .run(&["train", "train.yaml", "lora_rank=6", "enable_thinking=false", "hf_hub_token=hf_notforeveryone"])
        .ok();
    assert!(run.out.contains("output: vLLM 0.32.0 can serve it: 14 modules of rank 6\n"), "{}", run.out);
    assert!(run.out.contains("ferrotune deploy output\n"), "{}", run.out);
    place
}

#[test]
fn a_run_leaves_what_is_checked_and_deployed() {
    let place = trained();
    let recipe = fs::read_to_string(place.path("output/recipe.json")).unwrap();
    assert!(recipe.contains("\"lora_rank\": \"6\"") && !recipe.contains("notforeveryone"), "{recipe}");
    let report = place.run(&["check", "output", "--format", "json", "--vllm", "0.11.0"]).ok();
    let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(report["findings"], json!([]));
    assert_eq!((&report["vllm"], &report["rank"], &report["modules"]), (&json!("0.11.0"), &json!(6), &json!(14)));

    let run = place.run(&["deploy", "output", "--vllm", "0.11.0", "--name", "Ferro 1", "--max-model-len", "1024"]).ok();
    assert!(
        run.out.contains("Ask for the model `ferro-1`; `ferro-1-untrained-base` is the untrained base."),
        "{}",
        run.out
    );
    // The rows have no reasoning, and training put an empty block before each answer: so must the server.
    assert!(run.out.contains("with enable_thinking=false, which writes 20 of 20"), "{}", run.out);
    let compose = fs::read_to_string(place.path("output/deploy/docker-compose.yaml")).unwrap();
    assert!(
        compose.contains("\"vllm/vllm-openai:v0.11.0\"") && compose.contains("\"ferro-1=/models/adapters/ferro-1\""),
        "{compose}"
    );
    assert!(compose.contains("\"--max-model-len\"\n      - \"1024\""), "{compose}");
    let long = place.run(&["deploy", "output", "--max-model-len", "10000000"]);
    assert!(long.error().contains("--max-model-len 10000000: vLLM doesn't start above"), "{}", long.err);
    let nowhere = place.run(&["deploy", "nowhere"]);
    assert!(nowhere.error().contains("a run's output folder is wanted"), "{}", nowhere.err);
    // What the base does by itself needs no option.
    assert!(!compose.contains("--generation-config") && !compose.contains("--hf-overrides"), "{compose}");
    let template = fs::read_to_string(place.path("output/deploy/chat_template.jinja")).unwrap();
    assert!(
        template.starts_with("{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}"),
        "{template}"
    );
    let request = fs::read_to_string(place.path("output/deploy/request.py")).unwrap();
    assert!(request.contains("\\\"model\\\":\\\"ferro-1\\\"") && request.contains("enable_thinking"), "{request}");
    assert!(place.path("output/deploy/kubernetes.yaml").exists() && place.path("output/deploy/request.sh").exists());
}

#[test]
fn a_merged_model_is_deployed_without_an_adapter() {
    let place = trained();
    place.run(&["export", "train.yaml", "adapter_name_or_path=output", "export_dir=merged"]).ok();
    let run = place.run(&["deploy", "merged", "train.yaml"]).ok();
    assert!(run.out.contains("Ask for the model `merged`.\n"), "{}", run.out);
    let compose = fs::read_to_string(place.path("merged/deploy/docker-compose.yaml")).unwrap();
    assert!(!compose.contains("lora") && compose.contains("/models/base"), "{compose}");
}

/// Trained on a base model whose texts end otherwise than a chat's turns: a server that is told nothing would never stop.
#[test]
fn answers_end_where_training_ended_them() {
    let place = trainable("max_steps: 2\nsave_strategy: 'no'\n");
    place.copy(&crate::common::model("tiny-qwen3"), "base");
    for (file, key, end) in [
        ("tokenizer_config.json", "eos_token", json!("<|endoftext|>")),
        ("generation_config.json", "eos_token_id", json!(1000)),
    ] {
        let mut config = place.json(&format!("base/{file}"));
        config[key] = end;
        place.write(&format!("base/{file}"), config.to_string());
    }
    place.write("base/special_tokens_map.json", json!({"eos_token": {"content": "<|endoftext|>"}}).to_string());
    place.run(&["train", "train.yaml", "model_name_or_path=base"]).ok();
    place.run(&["deploy", "output"]).ok();
    let compose = |folder: &str| fs::read_to_string(place.path(folder).join("deploy/docker-compose.yaml")).unwrap();
    assert!(compose("output").contains("- \"--generation-config\"\n      - \"/deploy\"\n"), "{}", compose("output"));
    let ends = json!([1002, 1000]);
    assert_eq!(place.json("output/deploy/generation_config.json")["eos_token_id"], ends);
    assert_eq!(place.json("output/tokenizer_config.json")["eos_token"], "<|im_end|>");
    assert_eq!(place.json("output/special_tokens_map.json")["eos_token"], "<|im_end|>");
    let merge = ["export", "train.yaml", "model_name_or_path=base", "adapter_name_or_path=output", "export_dir=merged"];
    place.run(&merge).ok();
    place.run(&["train", "train.yaml", "model_name_or_path=base", "finetuning_type=full", "output_dir=full"]).ok();
    for folder in ["merged", "full"] {
        assert_eq!(place.json(&format!("{folder}/generation_config.json"))["eos_token_id"], ends);
        assert_eq!(place.json(&format!("{folder}/tokenizer_config.json"))["eos_token"], "<|im_end|>");
        place.run(&["deploy", folder, "train.yaml"]).ok();
        assert!(!compose(folder).contains("--generation-config"));
    }
}

/// Servers and llama.cpp know nothing of the recipe: what it made of the positions is in the files.
#[test]
fn a_position_scaling_goes_with_the_model() {
    let place = trainable("max_steps: 2\nsave_strategy: 'no'\nrope_scaling: yarn\ncutoff_len: 5000\n");
    place.run(&["train", "train.yaml"]).ok();
    let yarn = json!({"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 2048, "rope_theta": 1e6});
    let export = |to: &str, format: &str| {
        let to = format!("export_dir={to}");
        let run = place.run(&["export", "train.yaml", "adapter_name_or_path=output", &to, format]).ok();
        let drift = run.out.split("rows by ").nth(1).unwrap().split(' ').next().unwrap().parse::<f32>().unwrap();
        assert!(drift < 1e-5, "what is read again computes otherwise: {}", run.out);
    };
    export("merged", "export_format=safetensors");
    export("gguf", "export_format=gguf");
    let is_written = |file: &str| {
        let config = place.json(file);
        assert_eq!((&config["rope_parameters"], &config["max_position_embeddings"]), (&yarn, &json!(6144)));
    };
    is_written("merged/config.json");
    place.run(&["train", "train.yaml", "finetuning_type=full", "output_dir=full"]).ok();
    is_written("full/config.json");
    let served = |folder: &str| {
        let run = place.run(&["deploy", folder, "train.yaml"]).ok();
        assert!(run.out.contains("up to 6144 tokens"), "{}", run.out);
        fs::read_to_string(place.path(&format!("{folder}/deploy/docker-compose.yaml"))).unwrap()
    };
    let overrides = json!({"rope_scaling": yarn, "max_position_embeddings": 6144}).to_string();
    let compose = served("output");
    assert!(compose.contains(&format!("- \"--hf-overrides\"\n      - {}\n", json!(overrides))), "{compose}");
    assert!(!served("merged").contains("--hf-overrides"));
}

#[test]
fn several_adapters_share_a_server_if_they_are_asked_alike() {
    let place = trained();
    place.run(&["train", "train.yaml", "enable_thinking=false", "lora_rank=20", "output_dir=second"]).ok();
    place.run(&["train", "train.yaml", "enable_thinking=true", "output_dir=thinks"]).ok();
    let run = place.run(&["deploy", "output", "--with", "Two=second"]).ok();
    assert!(
        run.out.contains("Ask for the model `output` or `two`; `output-untrained-base` is the untrained base."),
        "{}",
        run.out
    );
    let compose = fs::read_to_string(place.path("output/deploy/docker-compose.yaml")).unwrap();
    let modules =
        "- \"--lora-modules\"\n      - \"output=/models/adapters/output\"\n      - \"two=/models/adapters/two\"\n";
    assert!(compose.contains(modules) && compose.contains("- \"--max-lora-rank\"\n      - \"32\"\n"), "{compose}");
    let refused = |with: &str| {
        let run = place.run(&["deploy", "output", "--with", with]);
        assert_eq!(run.code, Some(1), "{}", run.out);
        run.error().to_owned()
    };
    let told = refused("thinks");
    assert!(told.contains("--with thinks: it needs another chat template than HERE/output"), "{told}");
    let told = refused("output=second");
    assert!(told.contains("two adapters are called output; write --with NAME=OUTPUT_DIR"), "{told}");
    let told = refused("data");
    assert!(told.contains("--with data: HERE/data has no adapter_config.json"), "{told}");
    place.copy(&crate::common::model("tiny-qwen3"), "elsewhere");
    place.run(&["train", "train.yaml", "model_name_or_path=elsewhere", "output_dir=other"]).ok();
    let told = refused("other");
    assert!(told.contains("--with other: it was trained on another base"), "{told}");
}

#[test]
fn a_damaged_adapter_is_refused_with_reason_and_cure() {
    let place = trained();
    let path = place.path("output/adapter_config.json");
    let mut config = read_json(&path);
    config["r"] = json!(16);
    config["use_dora"] = json!(true);
    fs::write(&path, config.to_string()).unwrap();
    for verb in ["check", "deploy"] {
        let run = place.run(&[verb, "output"]);
        assert_eq!(run.code, Some(1), "{}", run.err);
        let said = format!("{}{}", run.out, run.err);
        assert!(
            said.contains("error[unsupported]: `use_dora` is true\n  vLLM: vLLM does not yet support DoRA\n"),
            "{said}"
        );
        assert!(said.contains("error[rank]: 'model.layers.0.mlp.down_proj' has A [6, 128] and B [64, 6]"), "{said}");
        assert!(said.ends_with("can't serve it: 6 errors\n"), "{said}");
    }
    assert!(!place.path("output/deploy").exists());
    let run = place.run(&["check", "nowhere"]);
    let told = run.error().contains("nowhere is neither the folder of an adapter nor a recipe");
    assert_eq!((run.code, told), (Some(1), true), "{}", run.err);
}

#[test]
fn a_server_without_the_name_is_told() {
    let place = trained();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let body = json!({"data": [{"id": "qwen3-lora"}, {"id": "lora1", "parent": "qwen3-lora"}]}).to_string();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
        line
    });
    let run = place.run(&["deploy", "output", "--verify", &url, "--rows", "3"]);
    assert_eq!(server.join().unwrap(), "GET /v1/models HTTP/1.1\r\n");
    assert_eq!(run.code, Some(1), "{}{}", run.out, run.err);
    let told = "error: wrong model name: nobody there is called `output`; there are qwen3-lora, lora1\n";
    assert_eq!(run.out, told);
    assert!(!place.path("output/deploy").exists());
}

#[test]
fn adapters_are_merged_by_their_weights_and_the_drift_is_told() {
    let place = trained();
    place.run(&["train", "train.yaml", "output_dir=second", "seed=7", "learning_rate=0.01"]).ok();
    let both = "adapter_name_or_path=output,second";
    let export = |to: &str, weights: &[&str], more: &[&str]| {
        let to = format!("export_dir={to}");
        place.run(&[&["export", "train.yaml", to.as_str()], more, weights].concat())
    };
    let run = export("both", &["--adapter-weights", "0.5,-2"], &[both]).ok();
    assert!(run.out.contains("Rounding moved the logits of 8 rows by "), "{}", run.out);
    export("first", &[], &["adapter_name_or_path=output"]).ok();
    export("other", &[], &["adapter_name_or_path=second"]).ok();
    let read = |folder: &str| tensors(&place.path(folder).join("model.safetensors"));
    let base = tensors(&crate::common::model("tiny-qwen3").join("model.safetensors"));
    let (both_of, first, other) = (read("both"), read("first"), read("other"));
    let mut moved = 0.0f32;
    for (name, base) in &base {
        for (i, base) in base.iter().enumerate() {
            let expected = base + 0.5 * (first[name][i] - base) - 2.0 * (other[name][i] - base);
            assert!((both_of[name][i] - expected).abs() < 1e-5, "{name}");
            moved = moved.max((expected - base).abs());
        }
    }
    assert!(moved > 1e-3, "{moved}");
    // Weights in f32 lose nothing.
    let drift = run.out.split("rows by ").nth(1).unwrap().split(' ').next().unwrap().parse::<f32>().unwrap();
    assert!(drift < 1e-5, "{drift}");
    let rounded = export("bf16", &["infer_dtype=bfloat16"], &["adapter_name_or_path=output"]).ok();
    let drift = rounded.out.split("rows by ").nth(1).unwrap().split(' ').next().unwrap().parse::<f32>().unwrap();
    assert!(drift > 1e-5 && drift < 1.0, "{drift}");
    let run = export("wrong", &["--adapter-weights=1"], &[both]);
    assert!(run.code == Some(1) && run.error().contains("has 1 numbers, adapter_name_or_path names 2"), "{}", run.err);
}
