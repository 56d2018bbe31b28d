//! Runs that are killed, stopped, started again, or started where they must not be.

use crate::common::{Place, curve, history, rows, trainable};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const EVALUATED: &str = "\
val_size: 6
eval_strategy: steps
eval_steps: 3
save_steps: 3
load_best_model_at_end: true
save_total_limit: 1
";

const FULL: &str = "finetuning_type: full\nmax_steps: 20\n";

/// What must not depend on kills: all that was logged but times, and the final weights, byte for byte.
fn outcome(place: &Place) -> (Vec<Value>, Vec<u8>) {
    let mut rows = place.json("output/trainer_state.json")["log_history"].as_array().unwrap().clone();
    for row in &mut rows {
        row.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_runtime") && !key.ends_with("_per_second"));
    }
    let files = ["adapter_model.safetensors", "model.safetensors"].map(|file| place.path("output").join(file));
    let file = files.into_iter().find(|file| file.exists()).unwrap();
    (rows, fs::read(file).unwrap())
}

fn start(place: &Place) -> Child {
    place.command(&["train", "train.yaml"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A small generator of numbers (xorshift64), so that a failing test can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Whether a save is under way: its folder has a temporary name.
fn saving(output: &Path) -> bool {
    let entries = fs::read_dir(output).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("checkpoint-") && {
            entry.file_name().to_string_lossy().contains(".tmp-")
        }
    })
}

fn lines(file: &Path) -> usize {
    fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// Runs to the end through kills; gives how many there were, and how many hit a save.
fn through_kills(place: &Place, kills: usize, steps: u64, seed: u64) -> (usize, usize) {
    let (output, log) = (place.path("output"), place.path("output/trainer_log.jsonl"));
    let (mut random, mut killed, mut in_saves) = (Random(seed), 0, 0);
    while killed < kills {
        // Each kill waits for its share of the steps at most, so that all of them come; half of them wait for a save then.
        let target = lines(&log) + random.below(steps / (kills as u64 + 2)) as usize;
        let moment = Duration::from_micros(random.below(20_000));
        let mut child = start(place);
        let due = |child: &mut Child, reached: &dyn Fn() -> bool| {
            while !reached() {
                if child.try_wait().unwrap().is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        };
        due(&mut child, &|| lines(&log) >= target);
        std::thread::sleep(moment);
        if killed % 2 == 1 {
            due(&mut child, &|| saving(&output));
        }
        if child.try_wait().unwrap().is_some() {
            place.read(child.wait_with_output().unwrap()).ok();
            return (killed, in_saves);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        in_saves += usize::from(saving(&output));
    }
    place.run(&["train", "train.yaml"]).ok();
    (killed, in_saves)
}

fn kills_change_nothing(more: &str, steps: u64, seed: u64) {
    let (calm, rough) = (trainable(more), trainable(more));
    calm.run(&["train", "train.yaml"]).ok();
    let (killed, in_saves) = through_kills(&rough, 8, steps, seed);
    assert!(killed > 2 && in_saves > 0, "{killed} kills, {in_saves} of them in a save");
    let ((calm_log, calm_weights), (rough_log, rough_weights)) = (outcome(&calm), outcome(&rough));
    assert_eq!(calm_log, rough_log);
    assert!(calm_weights == rough_weights, "the weights differ");
    let log = |place: &Place| fs::read_to_string(place.path("output/trainer_log.jsonl")).unwrap().lines().count();
    assert_eq!(log(&calm), log(&rough));
    let names = |place: &Place| {
        let entries = fs::read_dir(place.path("output")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&calm), names(&rough), "what is left in the folder");
}

#[test]
fn a_killed_run_ends_as_if_it_never_was() {
    kills_change_nothing("", 60, 0x5eed);
}

#[test]
fn so_does_one_that_evaluates_and_goes_back_to_its_best() {
    kills_change_nothing(EVALUATED, 60, 0xfeed);
}

#[test]
fn so_does_full_fine_tuning() {
    kills_change_nothing(FULL, 20, 0xf00d);
}

#[test]
fn so_does_one_that_stops_early() {
    // At a rate of 0 no evaluation is better than the first.
    let more = format!(
        "{EVALUATED}learning_rate: 0\neval_steps: 1\nsave_steps: 1\nearly_stopping_steps: 3\nsave_total_limit: 9\n"
    );
    let (calm, rough) = (trainable(&more), trainable(&more));
    let told = calm.run(&["train", "train.yaml"]).ok();
    assert!(told.out.contains("Stopped early, after step "), "{}", told.out);
    rough.run(&["train", "train.yaml"]).ok();
    // As after a kill between the last checkpoint and the end.
    for file in ["trainer_state.json", "adapter_model.safetensors", "README.md", "train_results.json"] {
        fs::remove_file(rough.path("output").join(file)).unwrap();
    }
    rough.run(&["train", "train.yaml"]).ok();
    assert_eq!(outcome(&calm), outcome(&rough));
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let place = trainable("max_steps: 3\nreport_to: tensorboard\n");
    place.run(&["train", "train.yaml"]).ok();
    let picture = |place: &Place| {
        let mut files = Vec::new();
        let mut folders = vec![place.path("output")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                let (path, data) = (entry.path(), entry.metadata().unwrap());
                if data.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.clone(), data.modified().unwrap(), fs::read(path).unwrap()));
                }
            }
        }
        files.sort();
        files
    };
    let before = picture(&place);
    let again = place.run(&["train", "train.yaml"]).ok();
    assert!(
        again.err.contains("this run is finished: all its 3 steps are done, and nothing was changed"),
        "{}",
        again.err
    );
    assert!(picture(&place) == before, "a file changed");
    let longer = place.run(&["train", "train.yaml", "max_steps=5"]).ok();
    assert!(longer.err.contains("going on from output/checkpoint-3"), "{}", longer.err);
    assert_eq!(curve(&place.json("output/trainer_state.json"), "loss").len(), 5);
}

#[test]
fn a_checkpoint_can_be_chosen() {
    let place = trainable("max_steps: 4\nsave_total_limit: 9\nlr_scheduler_type: constant\n");
    place.run(&["train", "train.yaml"]).ok();
    let whole = outcome(&place);
    let chosen = place.run(&["train", "train.yaml", "resume_from_checkpoint=output/checkpoint-2", "output_dir=other"]);
    assert!(chosen.ok().err.contains("going on from output/checkpoint-2"));
    assert_eq!(
        history(&place.json("other/trainer_state.json"), "loss"),
        history(&json!({"log_history": whole.0}), "loss")
    );
    assert!(!place.path("other/checkpoint-2").exists() && place.path("other/checkpoint-3").exists());
    let not = place.run(&["train", "train.yaml", "resume_from_checkpoint=output/checkpoint-7"]);
    assert_eq!(not.code, Some(1));
    assert_eq!(not.error(), "error: output/checkpoint-7 is not a whole checkpoint: there is no such folder");
}

/// In half precision the scale of the loss goes on too, with the steps that it has skipped.
#[test]
fn the_scale_of_the_loss_goes_on() {
    let place = trainable("fp16: true\nmax_steps: 4\nsave_total_limit: 9\nlr_scheduler_type: constant\n");
    place.run(&["train", "train.yaml"]).ok();
    let whole = outcome(&place);
    let go_on = |output: &str| {
        let output = format!("output_dir={output}");
        place.run(&["train", "train.yaml", "resume_from_checkpoint=output/checkpoint-2", &output]).ok()
    };
    go_on("other");
    assert_eq!(
        history(&place.json("other/trainer_state.json"), "loss"),
        history(&json!({"log_history": whole.0}), "loss")
    );
    // Of the scale in the checkpoint, not of a run's first one: with this, any gradient overflows.
    let state = "output/checkpoint-2/ferrotune_state.json";
    let saved = fs::read_to_string(place.path(state)).unwrap();
    let (scale, other) = (r#""scale": 65536.0"#, r#""scale": 1e30   "#);
    assert!(saved.contains(scale), "{saved}");
    // As many bytes as before, which the checkpoint's list says.
    place.write(state, saved.replace(scale, other));
    let told = go_on("third").err;
    let next = 1e30f32 / 2.0;
    let words = format!(
        "step 3: a gradient overflowed in half precision; the step is skipped, and the loss is scaled by {next} from"
    );
    assert!(told.contains(&words), "{told}");
}

#[test]
fn overwriting_replaces_checkpoints_of_the_other_run() {
    let place = trainable("save_total_limit: 1\n");
    place.run(&["train", "train.yaml", "max_steps=6"]).ok();
    let anew = place.run(&["train", "train.yaml", "max_steps=3", "overwrite_output_dir=true"]).ok();
    let told = "warning: output holds checkpoints of an earlier run up to step 6; this run begins after step 0 and replaces \
                them when it saves its own";
    assert!(anew.err.contains(told), "{}", anew.err);
    assert!(!place.path("output/checkpoint-6").exists());
    assert!(place.path("output/checkpoint-3/DONE").exists());
    assert_eq!(curve(&place.json("output/trainer_state.json"), "loss").len(), 3);
}

#[test]
fn other_data_is_noticed() {
    let place = trainable("max_steps: 2\n");
    place.run(&["train", "train.yaml"]).ok();
    place.write("data/d.json", rows(20).to_string());
    let told = place.run(&["train", "train.yaml", "max_steps=3"]).ok().err;
    let warning =
        "warning: output/checkpoint-2 was trained on 30 rows, the data now has 20; the order of rows is another";
    assert!(told.contains(warning), "{told}");
}

#[test]
fn another_recipe_cannot_go_on() {
    let place = trainable("max_steps: 2\n");
    place.run(&["train", "train.yaml"]).ok();
    let run = place.run(&["train", "train.yaml", "max_steps=4", "lora_rank=8"]);
    assert_eq!(run.code, Some(1));
    assert_eq!(
        run.error(),
        "error: cannot resume from output/checkpoint-2: weight.model.layers.0.self_attn.q_proj.lora_A.weight has shape \
         [4, 64] there and [8, 64] here; take the recipe it was made with, or overwrite_output_dir: true to begin anew"
    );
}

#[test]
fn a_checkpoint_of_the_model_alone_cannot_go_on() {
    let place = trainable("max_steps: 2\nsave_only_model: true\n");
    place.run(&["train", "train.yaml"]).ok();
    let run = place.run(&["train", "train.yaml", "max_steps=4"]);
    assert_eq!(run.code, Some(1));
    assert_eq!(
        run.error(),
        "error: cannot resume from output/checkpoint-2: it was saved with save_only_model and has no optimiser state"
    );
}

#[test]
fn a_model_without_checkpoints_is_not_written_over() {
    let place = trainable("max_steps: 2\nsave_strategy: 'no'\n");
    place.run(&["train", "train.yaml"]).ok();
    let before = outcome(&place);
    let run = place.run(&["train", "train.yaml"]);
    assert_eq!(run.code, Some(1));
    assert_eq!(
        run.error(),
        "error: output already holds a trained model and no checkpoint to resume from; choose another output_dir, or \
         overwrite_output_dir: true"
    );
    assert_eq!(outcome(&place), before);
    place.run(&["train", "train.yaml", "overwrite_output_dir=true"]).ok();
}

fn wait_for(child: &mut Child, path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        assert!(start.elapsed() < Duration::from_secs(30), "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    // The standard library can only kill.
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let place = trainable("max_steps: 100000\nsave_steps: 1000000\n");
    let mut first = start(&place);
    wait_for(&mut first, &place.path("output/trainer_log.jsonl"));
    let second = place.run(&["train", "train.yaml"]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.code, Some(1));
    assert_eq!(
        second.error(),
        "error: cannot write output: another run is writing there; wait for it or choose another output_dir"
    );
}

#[test]
fn a_signal_ends_the_run_after_its_step_with_a_checkpoint() {
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let place = trainable("max_steps: 100000\nsave_steps: 1000000\nsave_only_model: true\n");
        let mut child = start(&place);
        wait_for(&mut child, &place.path("output/trainer_log.jsonl"));
        signal(&child, name);
        let run = place.read(child.wait_with_output().unwrap());
        assert_eq!(run.code, Some(code), "{}", run.err);
        let last = run.err.lines().last().unwrap();
        assert!(
            last.starts_with("stopped after step ")
                && last.ends_with(" of 100000; the same command goes on from there")
        );
        let step: u64 = last.split(' ').nth(3).unwrap().parse().unwrap();
        assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists());
        let state = place.json("output/trainer_state.json");
        assert_eq!(state["global_step"], step);
        let on = place.run(&["train", "train.yaml", &format!("max_steps={}", step + 1)]).ok();
        assert!(on.err.contains(&format!("going on from output/checkpoint-{step}")), "{}", on.err);
    }
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    // An evaluation long enough to be met: the first signal waits for the step after it.
    let place = trainable("val_size: 20000\neval_on_start: true\neval_strategy: steps\neval_steps: 100\n");
    place.write("data/d.json", rows(20_030).to_string());
    let mut child = start(&place);
    wait_for(&mut child, &place.path("output/trainer_log.jsonl"));
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the first signal lets the step end");
    let asked = Instant::now();
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert!(!place.path("output/checkpoint-1").exists());
}

/// A limit on the size of files stands in for a full disk: the write fails half-way through a checkpoint.
#[test]
fn a_save_that_fails_leaves_the_last_checkpoint_whole() {
    let (calm, place) = (trainable("max_steps: 4\n"), trainable("max_steps: 4\n"));
    calm.run(&["train", "train.yaml"]).ok();
    let recipe = fs::read_to_string(place.path("train.yaml")).unwrap();
    place.write("train.yaml", recipe.replace("max_steps: 4", "max_steps: 2"));
    place.run(&["train", "train.yaml"]).ok();
    place.write("train.yaml", recipe);
    let program = env!("CARGO_BIN_EXE_ferrotune");
    let mut limited = place
        .command_as(Path::new("bash"), &["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" train train.yaml", program]);
    let run = place.read(limited.env("PATH", "/usr/bin:/bin").output().unwrap());
    assert_eq!(run.code, Some(1), "{}", run.err);
    let error = run.error();
    assert!(error.starts_with("error: cannot write output/checkpoint-3.tmp-"), "{error}");
    assert!(error.ends_with("/ferrotune_state-00001-of-00001.safetensors: File too large (os error 27)"), "{error}");
    let checkpoints = |place: &Place| {
        let names =
            fs::read_dir(place.path("output")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("checkpoint-")).collect();
        names.sort();
        names
    };
    assert_eq!(checkpoints(&place), ["checkpoint-1", "checkpoint-2"]);
    place.run(&["train", "train.yaml"]).ok();
    assert_eq!(outcome(&calm), outcome(&place));
    assert_eq!(checkpoints(&calm), checkpoints(&place));
}

#[test]
fn a_log_that_cannot_be_read_ends_the_run_before_it_begins() {
    let place = trainable("max_steps: 3\n");
    place.run(&["train", "train.yaml", "max_steps=2"]).ok();
    // A folder where the log belongs stops root too, which a mode bit does not.
    fs::remove_file(place.path("output/trainer_log.jsonl")).unwrap();
    fs::create_dir(place.path("output/trainer_log.jsonl")).unwrap();
    let run = place.run(&["train", "train.yaml"]);
    assert_eq!(run.code, Some(1));
    assert!(run.error().starts_with("error: cannot read output/trainer_log.jsonl: "), "{}", run.error());
    fs::remove_dir(place.path("output/trainer_log.jsonl")).unwrap();
    place.run(&["train", "train.yaml"]).ok();
}
