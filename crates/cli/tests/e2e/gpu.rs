//! Whole runs on a GPU of paper: the program finds the fake libraries as it finds NVIDIA's, and every kernel of a step is run.

use crate::common::{Place, curve, trainable};
use crate::golden_train::check_as;
use std::path::{Path, PathBuf};

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
    for (case, fake) in [("qwen3_lora_bs2", "gpu=L20,seed=1"), ("llama_full", "gpu=H200,seed=8")] {
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
