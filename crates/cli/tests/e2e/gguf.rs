//! `export` to GGUF, into a quantised base, and to a hub; checkpoints of a run that was killed.

use crate::common::{Place, trainable};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The loss on held-out rows.
fn loss(place: &Place, options: &[&str]) -> f64 {
    let args = ["train", "train.yaml", "do_train=false", "do_eval=true", "val_size=6", "output_dir=measured"];
    place.run(&[&args, options].concat()).ok();
    place.json("measured/eval_results.json")["eval_loss"].as_f64().unwrap()
}

fn trained() -> Place {
    let place = trainable("learning_rate: 0.02\nmax_steps: 8\nsave_strategy: 'no'\n");
    place.run(&["train", "train.yaml"]).ok();
    place
}

const MERGE: [&str; 4] = ["export", "train.yaml", "adapter_name_or_path=output", "export_format=gguf"];

#[test]
fn a_gguf_file_is_the_adapter_merged() {
    let place = trained();
    let run = place.run(&[&MERGE[..], &["export_dir=merged"]].concat()).ok();
    assert!(
        run.out.starts_with("The merged model is in merged/merged-F32.gguf.\nRounding moved the logits"),
        "{}",
        run.out
    );
    assert!(run.err.contains("Writing merged-F32.gguf, "), "{}", run.err);
    let base = loss(&place, &[]);
    let tuned = loss(&place, &["adapter_name_or_path=output"]);
    let merged = loss(&place, &["model_name_or_path=merged/merged-F32.gguf"]);
    assert!((merged - tuned).abs() < 1e-4 && base - tuned > 0.05, "{base} {tuned} {merged}");
    let modelfile = fs::read_to_string(place.path("merged/Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./merged-F32.gguf\n\nTEMPLATE \"\"\""), "{modelfile}");
    for path in ["merged", "merged/merged-F32.gguf"] {
        let refused = place.run(&["deploy", path]);
        assert!(
            refused.error().contains("is a GGUF file, which vLLM doesn't serve well: start `llama-server -m "),
            "{}",
            refused.err
        );
    }
    let small = ["export_dir=small", "export_gguf_type=q8_0"];
    let run = place.run(&[&MERGE[..], &small].concat()).ok();
    assert!(run.out.contains("small/small-Q8_0.gguf") && !run.out.contains("by 0.000e0"), "{}", run.out);
    let rounded = loss(&place, &["model_name_or_path=small/small-Q8_0.gguf"]);
    assert!((rounded - tuned).abs() < 0.05, "{tuned} {rounded}");
    let size = |path: &str| fs::metadata(place.path(path)).unwrap().len();
    assert!(size("small/small-Q8_0.gguf") * 2 < size("merged/merged-F32.gguf"));
}

/// Llama 3.1's own chat template, say: training went by a named one, and so must all that comes behind it.
#[test]
fn a_chat_template_that_cannot_be_taken_apart_is_no_obstacle() {
    let place = trainable("max_steps: 2\nsave_strategy: 'no'\n");
    place.copy(&crate::common::model("tiny-qwen3"), "base");
    let mut config = place.json("base/tokenizer_config.json");
    config["chat_template"] =
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}".into();
    place.write("base/tokenizer_config.json", config.to_string());
    let base = "model_name_or_path=base";
    place.run(&["train", "train.yaml", base]).ok();
    for format in ["export_format=gguf", "export_format=safetensors"] {
        let to = format!("export_dir={}", format.replace('=', "-"));
        let run = place.run(&["export", "train.yaml", base, "adapter_name_or_path=output", format, &to]).ok();
        assert!(run.out.contains("Rounding moved the logits of 8 rows"), "{}", run.out);
    }
    place.run(&["deploy", "output"]).ok();
}

#[test]
fn a_type_without_its_format_is_named() {
    let place = trainable("");
    let run = place.run(&["export", "train.yaml", "export_dir=x", "export_gguf_type=q8_0"]);
    assert!(run.error().contains("`export_gguf_type` is set, and `export_format` is safetensors"), "{}", run.error());
    let run = place.run(&["export", "train.yaml", "export_dir=x", "export_format=gguf", "export_gguf_type=q4"]);
    assert!(run.error().contains("q4_k_m"), "{}", run.error());
}

/// Training on a quantised base sees its dequantised weights, and so does merging; an adapter of another base saw others.
#[test]
fn a_quantised_base_takes_its_own_adapters_only() {
    let place = trained();
    let quantise = ["export", "train.yaml", "export_format=gguf", "export_gguf_type=q8_0", "export_dir=base"];
    let run = place.run(&quantise).ok();
    assert!(run.out.contains("Rounding moved the logits"), "a quantised copy is compared: {}", run.out);
    let base = "model_name_or_path=base/base-Q8_0.gguf";
    let refused = place.run(&["export", "train.yaml", base, "adapter_name_or_path=output", "export_dir=x"]);
    let error = refused.error();
    assert!(
        error
            .contains("adapter output was trained on FIXTURES/models/tiny-qwen3, and base/base-Q8_0.gguf is quantised"),
        "{error}"
    );
    assert!(!place.path("x").join("model.safetensors").exists());
    place.run(&["train", "train.yaml", base, "output_dir=own", "max_steps=4"]).ok();
    let own = ["export", "train.yaml", base, "adapter_name_or_path=own", "export_dir=merged", "infer_dtype=float32"];
    let run = place.run(&own).ok();
    assert!(
        run.err
            .contains("the base is quantised (Q8_0); what is written is its dequantised weights, as training saw them"),
        "{}",
        run.err
    );
    let refused = place.run(&["deploy", "own"]);
    let error = refused.error();
    assert!(
        error.contains("base/base-Q8_0.gguf, which vLLM doesn't load: `ferrotune export model_name_or_path="),
        "{error}"
    );
    place.run(&["export", "train.yaml", base, "export_dir=whole", "infer_dtype=float32"]).ok();
    place.run(&["deploy", "own", "--base", "whole"]).ok();
    let compose = fs::read_to_string(place.path("own/deploy/docker-compose.yaml")).unwrap();
    assert!(compose.contains(&format!("source: {:?}", place.path("whole").canonicalize().unwrap())), "{compose}");
    let tuned = loss(&place, &[base, "adapter_name_or_path=own"]);
    let merged = loss(&place, &["model_name_or_path=merged"]);
    assert!((merged - tuned).abs() < 1e-4, "{tuned} {merged}");
}

#[test]
fn an_upload_is_refused_before_anything_is_loaded() {
    let place = trainable("");
    let export = ["export", "train.yaml", "model_name_or_path=nowhere", "export_dir=x"];
    let upload = |id: &str| place.command(&[&export[..], &[&format!("export_hub_model_id={id}")]].concat());
    let run = place.read(upload("me/mine").output().unwrap());
    assert!(run.error().contains("HF_HUB_OFFLINE: offline was asked for"), "{}", run.error());
    let online = |token: Option<&str>| {
        let mut command = upload("me/mine");
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:9");
        token.map(|token| command.env("HF_TOKEN", token));
        place.read(command.output().unwrap())
    };
    assert!(online(None).error().contains("an upload needs an access token"), "{}", online(None).error());
    let run = online(Some("hf_sesame"));
    assert!(run.error().contains("no connection") && !run.err.contains("sesame"), "{}", run.err);
    let run = place.read(upload("not a name").output().unwrap());
    assert!(run.error().contains("`export_hub_model_id: not a name` is no repository"), "{}", run.error());
    let run =
        place.run(&["export", "train.yaml", "model_name_or_path=nowhere", "export_dir=x", "hub_private_repo=true"]);
    assert!(run.err.contains("`hub_private_repo` has no effect: nothing is uploaded"), "{}", run.err);
}

/// `deploy` needs the recipe, and a run that is killed leaves it.
#[test]
fn a_checkpoint_of_a_killed_run_is_served() {
    let place = trainable("max_steps: 100000\nsave_steps: 2\n");
    let mut run = place.command(&["train", "train.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let done = || {
        let entries = fs::read_dir(place.path("output")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).find(|path| path.join("DONE").is_file())
    };
    while done().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120) && run.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let checkpoint = done().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let deployed = place.run(&["deploy", &format!("output/{checkpoint}")]).ok();
    assert!(!deployed.err.contains("there is no recipe.json"), "{}", deployed.err);
    assert!(place.path(&format!("output/{checkpoint}/deploy/docker-compose.yaml")).is_file());
}
