//! Runs of many processes whose disks fill up or are their own, whose saves are broken off, and whose parents or readers go
//! away.

#![expect(clippy::print_stderr, reason = "a test that is left out says so")]

use crate::common::{Place, trainable};
use crate::many::{PATIENCE, adapter, end, losses, node, port, reach, run, signal, start};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A small disk at a folder, gone when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where the machine lets nobody mount.
    fn new(at: PathBuf, kilobytes: usize) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let disk = Self(at);
        if mount(&format!("size={kilobytes}k"), &disk.0) {
            return Some(disk);
        }
        eprintln!("left out: this machine lets nobody mount a disk (that takes root)");
        None
    }

    fn grow(&self, kilobytes: usize) {
        assert!(mount(&format!("remount,size={kilobytes}k"), &self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.0.as_os_str()]).status();
    }
}

fn mount(options: &str, at: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "ferrotune-test"]).arg(at).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn finished(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("output")).unwrap().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("DONE").exists())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Machines with folders of their own, each with a part of the state or none: the best checkpoint is read at the end, and one
/// that is named is gone on from.
#[test]
fn machines_with_disks_of_their_own_read_what_the_others_have() {
    let best = "max_steps: 12\nsave_steps: 2\nsave_total_limit: 9\nlearning_rate: 0.05\nval_size: 6\neval_strategy: steps\n\
                eval_steps: 2\nload_best_model_at_end: true\nlr_scheduler_type: constant\n";
    for split in ["finetuning_type: full\nstrategy: zero3\n", "strategy: replicate\n"] {
        let recipe = format!("{best}{split}");
        let (calm, first, second) = (trainable(&recipe), trainable(&recipe), trainable(&recipe));
        run(&calm, 2, &[]);
        let both = |args: &[&str]| {
            let port = port();
            vec![node(&first, 0, 2, port, args).spawn().unwrap(), node(&second, 1, 2, port, args).spawn().unwrap()]
        };
        end(&first, both(&[])).into_iter().for_each(|run| drop(run.ok()));
        assert!(adapter(&first) == adapter(&calm), "{split}: the best one");
        let file = if split.contains("full") { "model.safetensors" } else { "adapter_model.safetensors" };
        for kept in finished(&first) {
            assert!(first.path(&format!("output/{kept}/{file}")).exists(), "{split}: {kept} is still a model");
        }
        // The second machine is a new one with nothing on it, and the checkpoint isn't where the run writes.
        fs::rename(first.path("output"), first.path("earlier")).unwrap();
        fs::rename(second.path("output"), second.path("earlier")).unwrap();
        if split.contains("replicate") {
            fs::remove_dir_all(second.path("earlier")).unwrap();
        }
        end(&first, both(&["resume_from_checkpoint=earlier/checkpoint-6"])).into_iter().for_each(|run| drop(run.ok()));
        assert_eq!(losses(&first), losses(&calm), "{split}");
        assert!(adapter(&first) == adapter(&calm), "{split}: the same bits");
    }
    let (first, second) = (trainable(best), trainable(best));
    let port = port();
    let alone = ["save_only_model=true"];
    let children =
        vec![node(&first, 0, 2, port, &alone).spawn().unwrap(), node(&second, 1, 2, port, &alone).spawn().unwrap()];
    for told in end(&first, children) {
        assert!(told.code == Some(1) && told.error().contains("write save_on_each_node: true"), "{}", told.err);
    }
}

#[test]
fn a_full_disk_of_one_machine_ends_all_and_costs_no_finished_checkpoint() {
    let steps = "max_steps: 12\nsave_steps: 2\nsave_total_limit: 9\nfinetuning_type: full\nstrategy: zero3\n";
    let (calm, first, second) = (trainable(steps), trainable(steps), trainable(steps));
    run(&calm, 2, &[]);
    // Room for two parts of the state, 0.7 MB each, and not for six.
    let Some(disk) = SmallDisk::new(second.path("output"), 2000) else { return };
    let both = || {
        let port = port();
        vec![node(&first, 0, 2, port, &[]).spawn().unwrap(), node(&second, 1, 2, port, &[]).spawn().unwrap()]
    };
    let told = end(&first, both());
    for (rank, run) in told.iter().enumerate() {
        assert_ne!(run.code, Some(0), "{}", run.err);
        let error = run.error();
        assert!(error.contains("No space left on device"), "rank {rank}: {error}");
        assert!(rank == 1 || error.contains("rank 1 could not write a checkpoint"), "rank {rank}: {error}");
    }
    let kept = finished(&first);
    assert!(!kept.is_empty() && kept.len() < 6, "{kept:?}");
    assert_eq!(finished(&second), kept, "a checkpoint is finished on both disks or on none");
    disk.grow(20_000);
    end(&first, both()).into_iter().for_each(|run| drop(run.ok()));
    assert_eq!(losses(&first), losses(&calm));
    assert!(adapter(&first) == adapter(&calm), "the same bits");
}

#[test]
fn a_folder_that_one_machine_cannot_write_is_told_on_both_before_training() {
    let (first, second) = (trainable("max_steps: 2\n"), trainable("max_steps: 2\n"));
    // A file where the folder belongs stops root, too.
    second.write("output", "x");
    let port = port();
    let both = vec![node(&first, 0, 2, port, &[]).spawn().unwrap(), node(&second, 1, 2, port, &[]).spawn().unwrap()];
    for run in end(&second, both) {
        assert_ne!(run.code, Some(0));
        assert!(run.error().contains("output"), "{}", run.error());
        assert!(!run.err.contains("'loss'"), "{}", run.err);
    }
}

#[test]
fn every_machine_gets_the_model_if_each_is_to_save() {
    let steps = "max_steps: 4\nsave_steps: 2\nsave_on_each_node: true\n";
    for more in ["", "finetuning_type: full\nstrategy: zero3\n"] {
        let steps = format!("{steps}{more}");
        let (first, second) = (trainable(&steps), trainable(&steps));
        let port = port();
        let both =
            vec![node(&first, 0, 2, port, &[]).spawn().unwrap(), node(&second, 1, 2, port, &[]).spawn().unwrap()];
        end(&first, both).into_iter().for_each(|run| drop(run.ok()));
        assert!(adapter(&first) == adapter(&second));
        assert_eq!(finished(&first), ["checkpoint-2", "checkpoint-4"]);
        assert_eq!(finished(&second), finished(&first));
        for file in ["adapter_config.json", "config.json", "tokenizer.json", "trainer_state.json"] {
            let [one, other] =
                [&first, &second].map(|place| fs::read(place.path(&format!("output/checkpoint-4/{file}"))));
            assert_eq!(one.ok(), other.ok(), "{file}");
        }
    }
}

#[test]
fn a_rank_killed_while_it_saves_costs_that_save_alone() {
    let steps = "max_steps: 40\nsave_steps: 1\nsave_total_limit: 2\nfinetuning_type: full\nstrategy: zero2\n";
    let (calm, place) = (trainable(steps), trainable(steps));
    run(&calm, 2, &[]);
    for (victim, after) in [(0, 3), (1, 12), (0, 20)] {
        let mut children = start(&place, 2, &[]);
        reach(&place, after);
        // A draft is there: the threads that write are at work.
        let begun = Instant::now();
        while !drafts(&place) && begun.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        children[victim].kill().unwrap();
        children.remove(victim).wait().unwrap();
        let told = end(&place, children).remove(0);
        assert!(told.error().contains(&format!("rank {victim} (")), "{}", told.error());
        assert!(!finished(&place).is_empty());
    }
    run(&place, 2, &[]);
    assert_eq!(losses(&place), losses(&calm));
    assert!(adapter(&place) == adapter(&calm), "the same bits");
    assert!(!drafts(&place), "nothing half-written is left");
}

fn drafts(place: &Place) -> bool {
    let entries = fs::read_dir(place.path("output")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".tmp-"))
}

/// An agent of two workers.
fn agent(place: &Place) -> Command {
    let mut command = place.command(&["train", "train.yaml"]);
    command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "2").env("MAX_RESTARTS", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn workers(agent: &Child) -> Vec<String> {
    let found = Command::new("pgrep").args(["-P", &agent.id().to_string()]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn workers_do_not_outlive_their_agent() {
    for name in ["-KILL", "-TERM"] {
        let place = trainable("max_steps: 100000\nsave_steps: 100000\n");
        let mut child = agent(&place).spawn().unwrap();
        reach(&place, 6);
        let workers = workers(&child);
        assert_eq!(workers.len(), 2);
        signal(&child, name);
        child.wait().unwrap();
        let begun = Instant::now();
        let lives = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("ferrotune") && !stat.contains(") Z ")
        };
        while workers.iter().any(lives) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{name}: a worker goes on alone");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_a_run() {
    let place = trainable("max_steps: 60\n");
    let mut child = agent(&place).spawn().unwrap();
    reach(&place, 4);
    // As `ferrotune train ... | head` does.
    drop((child.stdout.take(), child.stderr.take()));
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "it hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(losses(&place).len(), 60);
}

#[test]
fn a_run_that_is_started_twice_is_told() {
    let place = trainable("max_steps: 100000\nsave_steps: 100000\n");
    let port = port();
    let one = node(&place, 0, 2, port, &[]).spawn().unwrap();
    let other = node(&place, 1, 2, port, &[]).spawn().unwrap();
    reach(&place, 4);
    // The same commands once more, with the same port and folder, while the run goes on.
    let again = vec![
        node(&place, 0, 2, port, &["rendezvous_timeout=4"]).spawn().unwrap(),
        node(&place, 1, 2, port, &["rendezvous_timeout=4"]).spawn().unwrap(),
    ];
    let told = end(&place, again);
    assert!(told.iter().all(|run| run.code != Some(0)), "{}\n{}", told[0].err, told[1].err);
    assert!(told[0].error().contains("another run") || told[0].error().contains("in use"), "{}", told[0].error());
    signal(&one, "-TERM");
    end(&place, vec![one, other]);
    assert!(losses(&place).len() > 4);
}
