//! Runs of several processes, each on a GPU of paper, joined by the fake NCCL.

use crate::common::{Place, Run, model, trainable};
use crate::many::{end, end_within, gap, losses, node, port, reach, signal};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Few steps of short rows, which an interpreter runs in seconds; they come out even on up to four ranks.
const ROWS: &str = "max_samples: 8\ncutoff_len: 24\nmax_steps: 2\nsave_steps: 2\nlogging_steps: 1\nlora_dropout: 0\n\
                    neftune_noise_alpha: null\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 4\n";

/// Every instruction of every kernel is interpreted, by up to four processes at a time.
const INTERPRETED: Duration = Duration::from_secs(240);

/// The folder with the fake libraries.
fn libraries(place: &Place) -> PathBuf {
    let folder = place.path("libraries");
    ferrotune_fake_cuda::install(&folder).unwrap();
    folder
}

/// Starts `ranks` processes as users of LLaMA-Factory do, each on a GPU of its own.
fn torchrun(place: &Place, ranks: usize, fake: &str, args: &[&str]) -> Run {
    let mut command = place.command(&[&["train", "train.yaml"], args].concat());
    command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", ranks.to_string());
    command.env("FERROTUNE_CUDA_LIBRARIES", libraries(place)).env("FERROTUNE_FAKE_CUDA", fake);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    end_within(place, vec![command.spawn().unwrap()], INTERPRETED).remove(0)
}

/// Every strategy that GPUs share, adapters and all weights: the curve of one process. `common` is what both are given.
fn curves(common: &[&str], splits: &[(usize, &[&str])]) {
    let one = trainable(ROWS);
    let mut alone = one.command(&[&["train", "train.yaml"], common].concat());
    alone.env("FERROTUNE_CUDA_LIBRARIES", libraries(&one)).env("FERROTUNE_FAKE_CUDA", "gpu=L20");
    one.read(alone.output().unwrap()).ok();
    let want = losses(&one);
    assert_eq!(want.len(), 2);
    for (ranks, split) in splits {
        let place = trainable(ROWS);
        let accumulation = format!("gradient_accumulation_steps={}", 4 / ranks);
        let told = torchrun(&place, *ranks, "gpu=L20,count=4", &[common, &[&accumulation], *split].concat());
        let told = told.ok();
        assert!(told.err.contains("NCCL 2.27.3, HERE/libraries/"), "{}", told.err);
        let gap = gap(&losses(&place), &want);
        assert!(gap < 1e-5, "{common:?} {split:?} on {ranks} ranks differs by {gap:e}");
    }
}

#[test]
fn every_strategy_gives_the_curve_of_one_gpu_with_adapters() {
    curves(
        &["finetuning_type=lora"],
        &[
            (2, &["strategy=replicate"]),
            (2, &["strategy=zero3"]),
            (2, &["strategy=pipeline", "pipeline_stages=2"]),
            (4, &["strategy=hybrid", "shard_size=2"]),
        ],
    );
}

#[test]
fn every_strategy_gives_the_curve_of_one_gpu_with_all_weights() {
    curves(
        &["finetuning_type=full"],
        &[
            (2, &["strategy=replicate", "overlap_communication=false"]),
            (2, &["strategy=zero1"]),
            (2, &["strategy=zero2"]),
            (2, &["strategy=zero3", "offload_optimizer=true"]),
            (4, &["strategy=pipeline", "pipeline_stages=2"]),
        ],
    );
}

/// Rows go to the GPUs of their experts and back in one call of NCCL a trip, with dropout's keys beside them; alone and as replicas.
#[test]
fn experts_on_several_gpus_give_the_curve_of_one() {
    let model = format!("model_name_or_path={}", model("tiny-qwen3moe").display());
    let common = [model.as_str(), "moe_aux_loss_coef=0.1"];
    let lora = [&common[..], &["finetuning_type=lora", "lora_dropout=0.1"]].concat();
    let recomputed: &[&str] = &["strategy=expert", "shard_size=2", "gradient_checkpointing=true"];
    curves(&lora, &[(2, recomputed), (4, &["strategy=expert", "shard_size=4"])]);
    let full = [&common[..], &["finetuning_type=full"]].concat();
    curves(&full, &[(4, recomputed)]);
}

/// Two machines with a GPU each.
fn start(place: &Place, fakes: [&str; 2], args: &[&str]) -> Vec<Child> {
    let (port, folder) = (port(), libraries(place));
    let started = fakes.into_iter().enumerate().map(|(number, fake)| {
        let mut command = node(place, number, 2, port, args);
        command.env("FERROTUNE_CUDA_LIBRARIES", &folder).env("FERROTUNE_FAKE_CUDA", fake);
        command.spawn().unwrap()
    });
    started.collect()
}

/// One of two GPUs lacks what was planned, and says of itself that it doesn't: both ranks plan again. Where nobody asked for that, both
/// end and say which.
#[test]
fn ranks_plan_again_together_where_one_lacks_memory() {
    let four = "per_device_train_batch_size: 4\ngradient_accumulation_steps: 1\ngradient_checkpointing: true\n";
    let rows = format!("{ROWS}{four}strategy: replicate\n");
    let (large, small) = (trainable(&rows), trainable(&rows));
    end_within(&large, start(&large, ["seed=1", "seed=2"], &[]), INTERPRETED)
        .into_iter()
        .for_each(|run| drop(run.ok()));
    let refused = end(&small, start(&small, ["free=1000"; 2], &[])).remove(0);
    let (_, planned) = refused.err.split_once("the longest batch needs ").unwrap_or_else(|| panic!("{}", refused.err));
    let planned: u64 = planned.split(' ').next().unwrap().parse().unwrap();
    // Beside what a run reserves there are communicators of all ranks and of the replicas, and the workspace of products.
    let left = planned - 2 * (256 << 20) + (32 << 20) - 256;
    let lacks = format!("free={planned},left=cuMemAlloc_v2:3:{left}");
    for told in end(&small, start(&small, ["seed=1", &lacks], &[])) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        for part in ["error: rank 1 (", "out of memory: ", "or set auto_find_batch_size: true"] {
            assert!(told.error().contains(part), "{part} in {}", told.err);
        }
    }
    let mut told = end_within(&small, start(&small, ["seed=1", &lacks], &["auto_find_batch_size=true"]), INTERPRETED);
    let (second, first) = (told.remove(1).ok(), told.remove(0).ok());
    for part in ["warning: rank 1 (", "planned again", "auto_find_batch_size gives them 2 rows at most"] {
        assert!(first.err.contains(part) && !second.err.contains(part), "{part} in {} {}", first.err, second.err);
    }
    let gap = gap(&losses(&small), &losses(&large));
    assert!(gap < 1e-5, "{gap:e}");
}

/// NCCL notices nothing; the heart-beats do.
#[test]
fn a_rank_that_is_killed_or_stopped_ends_all_by_name() {
    for (name, reason) in [("-KILL", "connection"), ("-STOP", "nothing was heard of it for")] {
        let place = trainable(&format!("{ROWS}max_steps: 2000\npeer_timeout: 3\n"));
        let mut children = start(&place, ["seed=1", "seed=2"], &["gradient_accumulation_steps=2"]);
        reach(&place, 1);
        signal(&children[1], name);
        let (signalled, mut victim) = (Instant::now(), children.pop().unwrap());
        let told = end(&place, children).remove(0);
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert_eq!(told.code, Some(75), "{}", told.err);
        assert!(told.error().starts_with("error: rank 1 (") && told.error().contains(reason), "{}", told.err);
        assert!(signalled.elapsed() < Duration::from_secs(15), "{:?}", signalled.elapsed());
    }
}

#[test]
fn what_ranks_do_not_have_in_common_is_told_before_anything_is_read() {
    let place = trainable(ROWS);
    for told in end(&place, start(&place, ["nccl=22703", "nccl=22105"], &[])) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        let words = "what sums gradients: NCCL 2.27.3 on rank 0 (";
        assert!(told.error().contains(words) && told.error().contains("NCCL 2.21.5 on rank 1 ("), "{}", told.err);
    }
    // A machine without a GPU, and one whose NCCL can't be used.
    for told in end(&place, start(&place, ["", "count=0"], &[])) {
        assert!(told.error().contains("the processor on rank 1 ("), "{}", told.err);
    }
    let told = end(&place, start(&place, ["", "nccl=21003"], &[]));
    assert!(told[1].error().contains("it is version 2.10.3; 2.14 or newer is needed"), "{}", told[1].err);
    assert!(told[0].error().contains("rank 1 (") && told[0].error().contains("2.10.3"), "{}", told[0].err);
}

#[test]
fn a_missing_nccl_and_too_few_gpus_are_errors_with_their_cures() {
    let place = trainable(ROWS);
    let folder = libraries(&place);
    fs::remove_file(folder.join("libnccl.so.2")).unwrap();
    let mut command = place.command(&["train", "train.yaml"]);
    command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "2").env("FERROTUNE_CUDA_LIBRARIES", &folder);
    let told = place.read(command.env("FERROTUNE_FAKE_CUDA", "count=2").output().unwrap());
    for part in ["NCCL (libnccl.so.2) is nowhere:", "HERE/libraries: nothing there", "pip install nvidia-nccl-cu12"] {
        assert!(told.err.contains(part), "{part} in {}", told.err);
    }
    let told = torchrun(&place, 2, "count=1", &[]);
    assert!(told.err.contains("process 1 of this machine has no GPU of its own: it sees 1."), "{}", told.err);
}
