//! Whole runs on a GPU of paper: the program finds the fake libraries as it finds NVIDIA's, and every kernel of a step is run.

use crate::common::{Place, curve, trainable};
use crate::golden_train::check_as;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The folder with the fake driver and cublasLt.
fn libraries(place: &Place) -> PathBuf {
    let folder = place.path("libraries");
    ferrotune_fake_cuda::install(&folder).unwrap();
    folder
}

fn train(place: &Place, libraries: &Path, fake: &str, more: &[&str]) -> crate::common::Run {
    let mut command = place.command(&[&["train", "train.yaml"], more].concat());
    command.env("FERROTUNE_CUDA_LIBRARIES", libraries).env("FERROTUNE_FAKE_CUDA", fake);
    place.read(command.output().unwrap())
}

/// Losses, norms and final weights are LLaMA-Factory's on a GPU, too, whatever the order of its work.
#[test]
fn golden_runs_on_a_gpu() {
    let place = Place::new();
    let folder = libraries(&place);
    for (case, fake) in [
        ("qwen3_lora_bs2", "gpu=L20,seed=1"),
        ("llama_full", "gpu=H200,seed=8"),
        ("qwen3moe_lora", "gpu=H100,seed=2"),
        ("qwen3_dora", "gpu=A100,seed=5"),
    ] {
        let environment = [("FERROTUNE_CUDA_LIBRARIES", folder.to_str().unwrap()), ("FERROTUNE_FAKE_CUDA", fake)];
        check_as(case, &[], &environment);
    }
}

#[test]
fn a_run_is_the_processors_and_goes_on_after_a_stop() {
    let short = "max_steps: 4\nsave_steps: 2\ncutoff_len: 64\n";
    let (cpu, gpu) = (trainable(short), trainable(short));
    let folder = libraries(&gpu);
    cpu.run(&["train", "train.yaml"]).ok();
    let run = train(&gpu, &folder, "", &[]).ok();
    assert!(run.err.contains("device: NVIDIA L20 ("), "{}", run.err);
    let losses = |place: &Place| curve(&place.json("output/trainer_state.json"), "loss");
    let (want, got) = (losses(&cpu), losses(&gpu));
    assert_eq!(want.len(), 4);
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-4 * w), "{got:?} {want:?}");
    let on_cpu = train(&gpu, &folder, "", &["use_cpu=true", "output_dir=other", "max_steps=1"]).ok();
    assert!(!on_cpu.err.contains("NVIDIA"), "{}", on_cpu.err);
}

/// In half of the bits, with heads that matrix instructions don't have: as near as rounding allows.
#[test]
fn narrow_runs_are_the_processors() {
    let mixture = format!("model_name_or_path={}", crate::common::model("tiny-qwen3moe").display());
    for options in [&["bf16=true", &mixture, "moe_aux_loss_coef=0.01"][..], &["bf16=true", "finetuning_type=full"]] {
        let short = "max_steps: 2\nsave_strategy: 'no'\ncutoff_len: 48\nlora_rank: 8\nlearning_rate: 0.0001\n";
        let (cpu, gpu) = (trainable(short), trainable(short));
        cpu.run(&[&["train", "train.yaml"], options].concat()).ok();
        train(&gpu, &libraries(&gpu), "seed=3", options).ok();
        let losses = |place: &Place| curve(&place.json("output/trainer_state.json"), "loss");
        let (want, got) = (losses(&cpu), losses(&gpu));
        assert_eq!(want.len(), 2);
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 2e-3 * w), "{options:?}: {got:?} {want:?}");
    }
}

/// Adapters merged on the device (DoRA among them), keys and values kept there, tokens drawn there: word for word.
#[test]
fn a_conversation_is_the_processors() {
    let place = trainable("use_dora: true\nlearning_rate: 0.02\nmax_steps: 6\nsave_strategy: 'no'\n");
    place.run(&["train", "train.yaml"]).ok();
    let folder = libraries(&place);
    for drawn in [&["do_sample=false"][..], &["temperature=0.9", "top_p=0.9", "top_k=40", "repetition_penalty=1.3"]] {
        let args = ["chat", "train.yaml", "adapter_name_or_path=output", "max_new_tokens=5"];
        let talk = |environment: &[(&str, &str)]| {
            let mut command = place.command(&[&args[..], drawn].concat());
            command.envs(environment.iter().copied());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(b"Say 1 and 1\nSay 2 and 4\n").unwrap();
            place.read(child.wait_with_output().unwrap()).ok()
        };
        let (cpu, gpu) = (talk(&[]), talk(&[("FERROTUNE_CUDA_LIBRARIES", folder.to_str().unwrap())]));
        assert!(
            gpu.err.contains("device: NVIDIA") && cpu.err.contains("device: the processor"),
            "{}{}",
            gpu.err,
            cpu.err
        );
        assert_eq!(gpu.out, cpu.out, "{drawn:?}");
    }
}

/// Two steps of eight rows, all as long.
fn eight_rows() -> Place {
    let place = trainable(
        "max_steps: 2\nsave_strategy: 'no'\nper_device_train_batch_size: 8\ngradient_accumulation_steps: 1\n",
    );
    let row = serde_json::json!({"instruction": "Say 1 and 1", "output": "It is 1."});
    place.write("data/d.json", serde_json::Value::from(vec![row; 30]).to_string());
    place
}

/// What the plan says that it needs.
fn needed(place: &Place, folder: &Path) -> u64 {
    let refused = train(place, folder, "seed=1,free=1000", &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    let (_, needed) = refused.err.split_once("the longest batch needs ").unwrap_or_else(|| panic!("{}", refused.err));
    needed.split(' ').next().unwrap().parse().unwrap()
}

/// The losses are those of a large card.
fn check_losses(large: &Place, small: &Place, output: &str) {
    let losses = |place: &Place, output: &str| curve(&place.json(&format!("{output}/trainer_state.json")), "loss");
    let (want, got) = (losses(large, "output"), losses(small, output));
    assert_eq!(want.len(), 2);
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-5 * w), "{got:?} {want:?}");
}

/// A card that the recipe's micro-batches don't fit into, by the plan: told with what cures it, and with `auto_find_batch_size` cured.
#[test]
fn a_small_card_takes_fewer_rows_at_a_time() {
    let (large, small) = (eight_rows(), eight_rows());
    let folder = libraries(&large);
    train(&large, &folder, "seed=1", &[]).ok();
    let card = format!("seed=1,free={}", needed(&small, &folder) - 1);
    let refused = train(&small, &folder, &card, &[]);
    assert!(refused.error().contains("set auto_find_batch_size: true"), "{}", refused.err);
    let run = train(&small, &folder, &card, &["auto_find_batch_size=true"]).ok();
    assert!(run.err.contains("auto_find_batch_size gives them 4 rows at most"), "{}", run.err);
    check_losses(&large, &small, "output");
}

/// Somebody else takes memory between the plan and the run. If what is left isn't what was planned, nothing is begun; if it is
/// that and not a block more, the run goes through, since the plan lays out every tensor as the run does.
#[test]
fn what_was_planned_suffices_to_the_last_block() {
    let (large, small) = (eight_rows(), eight_rows());
    let folder = libraries(&large);
    train(&large, &folder, "seed=1", &[]).ok();
    // Beside tensors there is the workspace of products; the allocations before the third are that and what is measured with.
    let planned = needed(&small, &folder);
    let left = |tensors: u64| format!("seed=1,free={planned},left=cuMemAlloc_v2:3:{}", (32 << 20) + tensors);
    let taken = train(&small, &folder, &left(planned - 256), &[]);
    assert_eq!(taken.code, Some(1), "{}", taken.err);
    for part in ["out of memory: ", "end what else takes memory there"] {
        assert!(taken.error().contains(part), "{part} in {}", taken.err);
    }
    for rehearses in ["rehearse_longest_batch=true", "rehearse_longest_batch=false"] {
        train(&small, &folder, &left(planned), &[rehearses, &format!("output_dir={rehearses}")]).ok();
        check_losses(&large, &small, rehearses);
    }
}

/// The same where the recipe lets micro-batches have fewer rows: the run is planned again for what is there now, and once is enough.
#[test]
fn what_others_take_leaves_fewer_rows_at_a_time() {
    let (large, small) = (eight_rows(), eight_rows());
    let folder = libraries(&large);
    train(&large, &folder, "seed=1", &[]).ok();
    let card = format!("seed=1,left=cuMemAlloc_v2:3:{}", (32 << 20) + needed(&small, &folder) - 256);
    let refused = train(&small, &folder, &card, &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.error().contains("or set auto_find_batch_size: true"), "{}", refused.err);
    let run = train(&small, &folder, &card, &["auto_find_batch_size=true"]).ok();
    assert_eq!(run.err.matches("others have taken memory since the run was planned").count(), 1, "{}", run.err);
    assert!(run.err.contains("auto_find_batch_size gives them 4 rows at most"), "{}", run.err);
    check_losses(&large, &small, "output");
    // There may be no plan for what is left.
    let nothing = format!("seed=1,left=cuMemAlloc_v2:3:{}", (32 << 20) + 1000);
    let refused = train(&small, &folder, &nothing, &["auto_find_batch_size=true", "output_dir=other"]);
    assert!(refused.error().contains(" bytes and 1000 can be had; lower cutoff_len"), "{}", refused.err);
}

/// What is there but can't be used is an error with every place, never a run on the processor instead.
#[test]
fn a_gpu_that_cant_be_used_is_an_error() {
    let place = trainable("max_steps: 1\n");
    let folder = libraries(&place);
    std::fs::remove_file(folder.join("libcublasLt.so.12")).unwrap();
    let run = train(&place, &folder, "driver=12040", &[]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    for part in
        ["cublasLt (libcublasLt.so.12) is nowhere:", "HERE/libraries: nothing there", "pip install nvidia-cublas-cu12"]
    {
        assert!(run.err.contains(part), "{part} in {}", run.err);
    }
    let run = train(&place, &libraries(&place), "count=0", &[]).ok();
    assert!(run.err.contains("device: the processor"), "{}", run.err);
    let run = train(&place, &folder, "driver=11080", &["output_dir=third"]);
    assert!(run.err.contains("runs CUDA 11.8 at most; 12.0 is needed"), "{}", run.err);
    let run = train(&place, &folder, "fail=cuLaunchKernel:40:700", &["output_dir=fourth"]);
    assert!(run.err.contains("cuLaunchKernel failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{}", run.err);
}
