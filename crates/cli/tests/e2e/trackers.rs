//! What trackers find of a run, and that none of them ends it.

use crate::common::{Place, curve, fixtures, trainable};
use std::fs;
use std::path::{Path, PathBuf};

const ALL: &str = "report_to: [tensorboard, mlflow, wandb]\nuse_swanlab: true\nrun_name: first\nmax_steps: 3\n\
                   save_steps: 1\nsample_prompts: [Say 4]\nhf_hub_token: hf_0123456789\n";

/// Files below the place's folder whose names end so, sorted.
fn files(place: &Place, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![place.path(".")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.to_string_lossy().ends_with(ending) => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// How often a text is in a file.
fn count(path: &Path, text: &str) -> usize {
    let bytes = fs::read(path).unwrap();
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

#[test]
fn all_four_are_told_and_a_run_that_goes_on_goes_on_with_theirs() {
    let place = trainable(ALL);
    let run = place.run(&["train", "train.yaml"]).ok();
    for name in
        ["TensorBoard: tensorboard --logdir output/runs/", "MLflow: mlflow ui", "`wandb sync HERE/wandb/offline-run-"]
    {
        assert!(run.err.contains(name), "{}", run.err);
    }
    assert!(run.err.contains("`swanlab sync HERE/swanlog/run-") && !run.err.contains("without it"), "{}", run.err);
    let longer = place.run(&["train", "train.yaml", "max_steps=5"]).ok();
    assert!(!longer.err.contains("without it"), "{}", longer.err);

    let loss = files(&place, "/metrics/loss");
    assert_eq!(loss.len(), 1, "one run of MLflow");
    let steps: Vec<String> =
        fs::read_to_string(&loss[0]).unwrap().lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(steps, ["1", "2", "3", "4", "5"]);
    let values = fs::read_to_string(&loss[0]).unwrap();
    let values: Vec<f64> = values.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(values, curve(&place.json("output/trainer_state.json"), "loss"));
    let folder = loss[0].parent().unwrap().parent().unwrap();
    assert_eq!(fs::read_to_string(folder.join("params/lora_rank")).unwrap(), "4");
    assert!(fs::read_to_string(folder.join("meta.yaml")).unwrap().contains("status: 3\n"));

    let events = files(&place, ".0").into_iter().filter(|path| path.to_string_lossy().contains("tfevents"));
    let events: Vec<_> = events.collect();
    assert!(events.len() == 2 && events[0].parent() == events[1].parent(), "{events:?}");
    let told = |text: &str| events.iter().map(|path| count(path, text)).sum::<usize>();
    assert_eq!(told("train/learning_rate"), 5);
    assert_eq!((told("args/text_summary"), told("data/row_lengths"), told("sample_1/text_summary")), (1, 1, 3));

    for (ending, key) in [(".wandb", "train/loss"), (".swanlab", "train/loss")] {
        let journals = files(&place, ending);
        assert_eq!(journals.len(), 1, "{journals:?}");
        // A row of the history and its summary; of SwanLab a column, and a record a step.
        let expected = if ending == ".wandb" { 10 } else { 6 };
        assert_eq!(count(&journals[0], key), expected, "{ending}");
    }
    // Neither trackers nor checkpoints keep what only the recipe may know.
    for path in files(&place, "").into_iter().filter(|path| !path.ends_with("train.yaml")) {
        assert_eq!(count(&path, "hf_0123456789"), 0, "{} has a secret", path.display());
    }
}

#[test]
fn trackers_that_can_t_be_written_end_nothing() {
    let place = trainable(&format!("{ALL}logging_dir: d.txt/l\nswanlab_logdir: d.txt/s\n"));
    place.write("d.txt", "a file");
    let mut command = place.command(&["train", "train.yaml"]);
    command.env("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db").env("WANDB_DIR", "d.txt");
    let run = place.read(command.output().unwrap()).ok();
    for name in [
        "TensorBoard: cannot create",
        "MLflow: MLFLOW_TRACKING_URI=sqlite:",
        "Weights & Biases: cannot",
        "SwanLab: cannot",
    ] {
        assert_eq!(run.err.matches(name).count(), 1, "{name}: {}", run.err);
    }
    assert_eq!(run.err.matches("the run goes on without it").count(), 4, "{}", run.err);
    assert_eq!(curve(&place.json("output/trainer_state.json"), "loss").len(), 3);
}

#[test]
fn trackers_can_be_switched_off_by_their_own_variables() {
    let place = trainable("report_to: all\nmax_steps: 1\n");
    let mut command = place.command(&["train", "train.yaml"]);
    command.env("WANDB_MODE", "disabled").env("SWANLAB_MODE", "disabled").env("DISABLE_MLFLOW_INTEGRATION", "TRUE");
    command.env("TENSORBOARD_LOGGING_DIR", "~/events");
    place.read(command.output().unwrap()).ok();
    assert_eq!(fs::read_dir(place.path("events")).unwrap().count(), 1);
    for name in ["wandb", "swanlog", "mlruns", "output/runs"] {
        assert!(!place.path(name).exists(), "{name}");
    }
}

#[test]
fn schemas_are_those_of_the_documentation() {
    let place = Place::new();
    for (of, file) in [(&["schema"][..], "recipe"), (&["schema", "dataset_info"], "dataset_info")] {
        let committed = fs::read_to_string(fixtures().join(format!("../docs/{file}.schema.json"))).unwrap();
        assert!(place.run(of).ok().out == committed, "docs/{file}.schema.json");
    }
}
