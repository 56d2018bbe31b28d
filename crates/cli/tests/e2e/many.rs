//! Runs of many processes: started as users start them, killed, stopped, disturbed, gone on with elsewhere.

use crate::common::{Place, Run, curve, trainable};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing may last longer: a dead peer is found in ten seconds, and the rest is short.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The command of one of `nodes` machines with one process each, as it is typed there.
pub(crate) fn node(place: &Place, number: usize, nodes: usize, port: u16, args: &[&str]) -> Command {
    let mut command = place.command(&[&["train", "train.yaml"], args].concat());
    command.env("FORCE_TORCHRUN", "1").env("NNODES", nodes.to_string()).env("NODE_RANK", number.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts all machines.
pub(crate) fn start(place: &Place, nodes: usize, args: &[&str]) -> Vec<Child> {
    let port = port();
    (0..nodes).map(|number| node(place, number, nodes, port, args).spawn().unwrap()).collect()
}

/// Waits for all; nothing may hang.
pub(crate) fn end(place: &Place, children: Vec<Child>) -> Vec<Run> {
    end_within(place, children, PATIENCE)
}

/// The same for processes that take longer.
pub(crate) fn end_within(place: &Place, children: Vec<Child>, patience: Duration) -> Vec<Run> {
    let start = Instant::now();
    let wait = |mut child: Child| {
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > patience {
                child.kill().unwrap();
                panic!("a process hangs: {}", place.read(child.wait_with_output().unwrap()).err);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        place.read(child.wait_with_output().unwrap())
    };
    children.into_iter().map(wait).collect()
}

pub(crate) fn run(place: &Place, nodes: usize, args: &[&str]) -> Vec<Run> {
    end(place, start(place, nodes, args)).into_iter().map(Run::ok).collect()
}

pub(crate) fn losses(place: &Place) -> Vec<f64> {
    curve(&place.json("output/trainer_state.json"), "loss")
}

/// Largest relative difference of two curves.
pub(crate) fn gap(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

/// The adapter, or the whole model.
pub(crate) fn adapter(place: &Place) -> Vec<u8> {
    let adapter = fs::read(place.path("output/adapter_model.safetensors"));
    adapter.or_else(|_| fs::read(place.path("output/model.safetensors"))).unwrap()
}

pub(crate) fn lines(file: &Path) -> usize {
    fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// Waits until the log has so many lines.
pub(crate) fn reach(place: &Place, steps: usize) {
    let (log, start) = (place.path("output/trainer_log.jsonl"), Instant::now());
    while lines(&log) < steps {
        assert!(start.elapsed() < PATIENCE, "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Steps long enough to be met in the middle.
const LONG: &str = "max_steps: 2000\nsave_steps: 5\n";

#[test]
fn machines_started_by_hand_give_the_curve_of_one_process() {
    // 30 rows: 5 steps of 6 rows, whoever takes them.
    let rows = "num_train_epochs: 3\nmax_steps: -1\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 6\n";
    let one = trainable(rows);
    one.run(&["train", "train.yaml"]).ok();
    let want = losses(&one);
    assert_eq!(want.len(), 15);
    for nodes in [2, 3] {
        let place = trainable(rows);
        let accumulation = format!("gradient_accumulation_steps={}", 6 / nodes);
        let told = run(&place, nodes, &[&accumulation]);
        for line in ["rank node  host", "wires: between nodes", "slowest rank: ", "strategy: ", "out of a node"] {
            assert!(told[0].err.contains(line), "no `{line}` in {}", told[0].err);
        }
        assert!(gap(&losses(&place), &want) < 1e-5, "{:?} {want:?}", losses(&place));
    }
}

/// Every strategy, adapters and all weights, over real connections.
#[test]
fn every_strategy_gives_the_curve_of_one_process() {
    // As many rows as come out even on all of these ranks.
    let rows = "max_samples: 28\nnum_train_epochs: 2\nmax_steps: -1\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 4\n";
    for tuning in ["lora", "full"] {
        let tuning = format!("finetuning_type={tuning}");
        let one = trainable(rows);
        one.run(&["train", "train.yaml", &tuning]).ok();
        let want = losses(&one);
        let splits: [(usize, &[&str]); 9] = [
            (2, &["strategy=zero1"]),
            (2, &["strategy=zero2"]),
            (2, &["strategy=zero3", "offload_optimizer=true"]),
            (4, &["deepspeed.zero_optimization.stage=3"]),
            (4, &["strategy=hybrid", "shard_size=2"]),
            // Nodes of one process each are one group.
            (2, &["strategy=hybrid"]),
            (2, &["strategy=pipeline", "pipeline_stages=2"]),
            (4, &["strategy=pipeline", "pipeline_stages=2"]),
            (2, &["max_tokens_per_micro_batch=64", "overlap_communication=false"]),
        ];
        for (ranks, split) in splits {
            let place = trainable(rows);
            let accumulation = format!("gradient_accumulation_steps={}", 4 / ranks);
            run(&place, ranks, &[&[tuning.as_str(), &accumulation], split].concat());
            let gap = gap(&losses(&place), &want);
            assert!(gap < 1e-5, "{tuning} {split:?} on {ranks} ranks differs by {gap:e}");
        }
    }
}

#[test]
fn a_strategy_that_the_ranks_do_not_allow_is_told() {
    let place = trainable("max_steps: 2\n");
    for told in end(&place, start(&place, 3, &["strategy=pipeline", "pipeline_stages=2"])) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert!(
            told.error().contains("strategy: pipeline with pipeline_stages: 2 is not possible with 3 ranks"),
            "{}",
            told.error()
        );
    }
}

/// Saved by four under zero3, gone on with by two under zero1, finished and exported by one.
#[test]
fn a_checkpoint_serves_any_strategy() {
    let rows = "finetuning_type: full\nmax_samples: 28\nnum_train_epochs: 4\nmax_steps: -1\nper_device_train_batch_size: 1\n\
                gradient_accumulation_steps: 4\nsave_steps: 1\nsave_total_limit: 100\n";
    let calm = trainable(rows);
    calm.run(&["train", "train.yaml"]).ok();
    let place = trainable(rows);
    let part = ["num_train_epochs=1", "gradient_accumulation_steps=1", "strategy=zero3", "save_only_model=false"];
    // The schedule is that of the whole run, so the run is ended by a kill and not by a shorter one.
    let mut children = start(&place, 4, &part[1..]);
    reach(&place, 6);
    children[3].kill().unwrap();
    children.remove(3).wait().unwrap();
    end(&place, children);
    let mut children = start(&place, 2, &["gradient_accumulation_steps=2", "strategy=zero1"]);
    reach(&place, 14);
    children[1].kill().unwrap();
    children.remove(1).wait().unwrap();
    end(&place, children);
    let told = place.run(&["train", "train.yaml"]).ok();
    assert!(told.err.contains("going on from output/checkpoint-"), "{}", told.err);
    assert!(gap(&losses(&place), &losses(&calm)) < 1e-4);
    place.run(&["export", "train.yaml", "model_name_or_path=output", "export_dir=merged", "template=qwen3"]).ok();
    assert!(place.path("merged/model.safetensors").exists());
}

#[test]
fn another_recipe_on_another_machine_is_named_on_both() {
    let place = trainable("max_steps: 2\n");
    let port = port();
    let start = Instant::now();
    let first = node(&place, 0, 2, port, &[]).spawn().unwrap();
    let second = node(&place, 1, 2, port, &["learning_rate=0.5"]).spawn().unwrap();
    for told in end(&place, vec![first, second]) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert!(told.error().contains("recipe key learning_rate: 0.002 on "), "{}", told.error());
        assert!(told.error().contains(", 0.5 on "), "{}", told.error());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn other_data_on_another_machine_is_named_on_both() {
    let (place, other) = (trainable("max_steps: 2\n"), trainable("max_steps: 2\n"));
    other.write("data/d.json", crate::common::rows(29).to_string());
    let port = port();
    let children = vec![node(&place, 0, 2, port, &[]).spawn().unwrap(), node(&other, 1, 2, port, &[]).spawn().unwrap()];
    for told in end(&place, children) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert!(told.error().contains("\n  d.json of dataset d: "), "{}", told.error());
        assert!(!told.error().contains("model"), "{}", told.error());
    }
}

#[test]
fn a_machine_without_a_port_to_meet_at_is_told_at_once() {
    let place = trainable("max_steps: 2\n");
    let mut command = place.command(&["train", "train.yaml"]);
    let told = place.read(command.env("NNODES", "2").env("MASTER_ADDR", "127.0.0.1").output().unwrap());
    assert_eq!(told.code, Some(2), "{}", told.err);
    assert!(told.err.contains("MASTER_PORT"), "{}", told.err);
}

#[test]
fn a_rank_that_is_killed_is_named_by_the_others_at_once() {
    for victim in [0, 1] {
        let place = trainable(LONG);
        let mut children = start(&place, 3, &[]);
        reach(&place, 8);
        children[victim].kill().unwrap();
        let killed = Instant::now();
        children.remove(victim).wait().unwrap();
        for told in end(&place, children) {
            assert_eq!(told.code, Some(75), "{}", told.err);
            let error = told.error();
            assert!(error.starts_with(&format!("error: rank {victim} (")) && error.contains("it was "), "{error}");
        }
        assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    }
}

#[test]
fn a_rank_that_stops_is_dead_to_the_others_after_the_deadline() {
    let place = trainable(LONG);
    let mut children = start(&place, 2, &[]);
    reach(&place, 8);
    signal(&children[1], "-STOP");
    let stopped = Instant::now();
    let sleeper = children.pop().unwrap();
    let told = end(&place, children).remove(0);
    assert!(
        told.error().contains("rank 1 (") && told.error().contains("nothing was heard of it for"),
        "{}",
        told.error()
    );
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    // When it wakes, it finds that it is alone, and ends too.
    signal(&sleeper, "-CONT");
    assert_eq!(end(&place, vec![sleeper])[0].code, Some(75));
}

#[test]
fn what_was_lost_with_a_rank_is_trained_again_to_the_same_bits() {
    let steps = "max_steps: 60\nsave_steps: 4\n";
    let calm = trainable(steps);
    run(&calm, 2, &[]);
    let place = trainable(steps);
    for (victim, after) in [(1, 9), (0, 20), (1, 33)] {
        let mut children = start(&place, 2, &[]);
        reach(&place, after);
        children[victim].kill().unwrap();
        children.remove(victim).wait().unwrap();
        end(&place, children);
    }
    let told = run(&place, 2, &[]);
    assert!(told[0].err.contains("going on from output/checkpoint-"), "{}", told[0].err);
    assert_eq!(losses(&place), losses(&calm));
    assert!(adapter(&place) == adapter(&calm), "the same bits");
}

#[test]
fn an_agent_starts_its_workers_again_until_they_are_done() {
    let steps = "max_steps: 400\nsave_steps: 4\n";
    let agent = |place: &Place, restarts: &str| {
        let mut command = place.command(&["train", "train.yaml"]);
        command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "2").env("MAX_RESTARTS", restarts);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (calm, place) = (trainable(steps), trainable(steps));
    end(&calm, vec![agent(&calm, "0")]).remove(0).ok();
    let child = agent(&place, "3");
    for after in [30, 120] {
        reach(&place, after);
        let workers = Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap();
        let workers = String::from_utf8(workers.stdout).unwrap();
        let victim = workers.lines().last().unwrap_or_else(|| panic!("there are workers"));
        assert!(Command::new("kill").args(["-KILL", victim]).status().unwrap().success());
    }
    let told = end(&place, vec![child]).remove(0).ok();
    assert!(told.err.contains("attempt 3 of 4: rank 1"), "{}", told.err);
    assert!(adapter(&place) == adapter(&calm), "the same bits");
    assert!(place.path("output/logs/rank-1.log").exists());
    // The first shares the terminal, and keeps what it says all the same.
    let log = fs::read_to_string(calm.path("output/logs/rank-0.log")).unwrap();
    assert!(log.contains("rank node  host") && log.contains("{'grad_norm'") && log.contains("400 steps in "), "{log}");
}

#[test]
fn machines_with_different_numbers_of_processes_hear_of_it_once() {
    let (place, other) = (trainable("max_steps: 2\n"), trainable("max_steps: 2\n"));
    let port = port();
    let mut first = node(&place, 0, 2, port, &[]);
    let first = first.env("NPROC_PER_NODE", "2").spawn().unwrap();
    let second = node(&other, 1, 2, port, &[]).spawn().unwrap();
    for told in end(&place, vec![first, second]) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert_eq!(
            told.err.matches("NNODES and NPROC_PER_NODE must be the same everywhere").count(),
            1,
            "{}",
            told.err
        );
    }
}

#[test]
fn another_file_of_the_model_is_named() {
    let (place, other) = (trainable("max_steps: 2\n"), trainable("max_steps: 2\n"));
    other.copy(&crate::common::model("tiny-qwen3"), "model");
    let mut weights = fs::read(other.path("model/model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    other.write("model/model.safetensors", weights);
    let port = port();
    let second = node(&other, 1, 2, port, &["model_name_or_path=model"]).spawn().unwrap();
    for told in end(&place, vec![node(&place, 0, 2, port, &[]).spawn().unwrap(), second]) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert!(told.error().contains("\n  model.safetensors of the model: "), "{}", told.error());
        assert!(!told.error().contains("tokenizer") && !told.error().contains("dataset"), "{}", told.error());
    }
}

#[test]
fn another_server_at_the_port_is_known_by_its_greeting() {
    let place = trainable("max_steps: 2\n");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    // It greets whoever comes and stays; one that left at once would take its words back.
    std::thread::spawn(move || {
        let mut guests = Vec::new();
        while let Ok((mut guest, _)) = server.accept() {
            let _ = guest.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
            guests.push(guest);
        }
    });
    let second = node(&place, 1, 2, port, &[]).spawn().unwrap();
    let told = end(&place, vec![second]).remove(0);
    assert_eq!(told.code, Some(1), "{}", told.err);
    assert!(told.error().contains("it sent `SSH-...`, which is another program's greeting"), "{}", told.error());
}

/// One of two machines is lost for good: the other goes on alone, with the rows of both.
#[test]
fn an_elastic_run_goes_on_with_fewer_machines() {
    elastic("");
}

/// Two machines of a run with `more` in its recipe, of which one goes down and stays away.
pub(crate) fn elastic(more: &str) {
    let steps = format!("max_steps: 150\nsave_steps: 4\n{more}");
    let (calm, place) = (trainable(&steps), trainable(&steps));
    run(&calm, 2, &[]);
    let port = port();
    let machine = || {
        let mut command = place.command(&["train", "train.yaml"]);
        command.env("FORCE_TORCHRUN", "1").env("RDZV_ID", "job").env("MIN_NNODES", "1").env("MAX_NNODES", "2");
        command.env("MAX_RESTARTS", "2").env("NPROC_PER_NODE", "1");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (first, mut second) = (machine(), machine());
    reach(&place, 20);
    // Whichever is the master, the other's machine goes down: its worker ends with its agent.
    second.kill().unwrap();
    second.wait().unwrap();
    let told = end(&place, vec![first]).remove(0).ok();
    assert!(told.err.contains("attempt 2 of 3"), "{}", told.err);
    assert!(gap(&losses(&place), &losses(&calm)) < 1e-5);
}

#[test]
fn a_checkpoint_serves_any_number_of_ranks() {
    let rows = "num_train_epochs: 4\nmax_steps: -1\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 4\nsave_steps: 1\n";
    let accumulation = |ranks: usize| format!("gradient_accumulation_steps={}", 4 / ranks);
    let calm = trainable(rows);
    calm.run(&["train", "train.yaml"]).ok();
    let place = trainable(rows);
    for (ranks, after) in [(4, 4), (2, 12)] {
        let mut children = start(&place, ranks, &[&accumulation(ranks)]);
        reach(&place, after);
        children[0].kill().unwrap();
        children.remove(0).wait().unwrap();
        end(&place, children);
    }
    place.run(&["train", "train.yaml"]).ok();
    assert!(gap(&losses(&place), &losses(&calm)) < 1e-5);
    let weights = |place: &Place| crate::common::tensors(&place.path("output/adapter_model.safetensors"));
    let (got, want) = (weights(&place), weights(&calm));
    let largest = want.values().flatten().fold(0f32, |m, v| m.max(v.abs()));
    let far = got.iter().flat_map(|(name, values)| values.iter().zip(&want[name]).map(|(a, b)| (a - b).abs()));
    // AdamW with its usual epsilon makes whole steps of gradients that are zero but for rounding.
    assert!(far.fold(0f32, f32::max) < 1e-3 * largest);
}

#[test]
fn machines_with_disks_of_their_own_go_on_together() {
    with_own_disks("max_steps: 60\nsave_steps: 4\n", false);
    with_own_disks("max_steps: 60\nsave_steps: 4\nfinetuning_type: full\nstrategy: zero3\n", true);
}

fn with_own_disks(steps: &str, sharded: bool) {
    let calm = trainable(steps);
    run(&calm, 2, &[]);
    let (first, second) = (trainable(steps), trainable(steps));
    let both = || {
        let port = port();
        vec![node(&first, 0, 2, port, &[]).spawn().unwrap(), node(&second, 1, 2, port, &[]).spawn().unwrap()]
    };
    let mut children = both();
    reach(&first, 20);
    children[1].kill().unwrap();
    children.remove(1).wait().unwrap();
    end(&first, children);
    let part = |place: &Place, rank: usize| {
        let name = format!("ferrotune_state-{rank:05}-of-00002.safetensors");
        let found = fs::read_dir(place.path("output")).unwrap().flatten().map(|entry| entry.path().join(&name));
        found.into_iter().any(|path| path.exists())
    };
    let own = [part(&first, 1), part(&first, 2), part(&second, 1), part(&second, 2)];
    assert_eq!(own, [true, false, false, sharded], "each has its own part");
    if !sharded {
        // All that the second machine had is on the first, too: it may be another one.
        fs::remove_dir_all(second.path("output")).unwrap();
    }
    for told in end(&first, both()) {
        told.ok();
    }
    assert!(adapter(&first) == adapter(&calm), "the same bits");
}

#[test]
fn strangers_at_the_port_change_nothing() {
    let place = trainable("max_steps: 40\n");
    let calm = trainable("max_steps: 40\n");
    run(&calm, 2, &[]);
    let port = port();
    let first = node(&place, 0, 2, port, &[]).spawn().unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    while sent < 20 && begun.elapsed() < Duration::from_secs(5) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            sent += 1;
        }
    }
    assert_eq!(sent, 20);
    let second = node(&place, 1, 2, port, &[]).spawn().unwrap();
    let told = end(&place, vec![first, second]);
    assert!(told[0].err.contains("was turned away"), "{}", told[0].err);
    told.into_iter().for_each(|told| drop(told.ok()));
    assert!(adapter(&place) == adapter(&calm));
}

#[test]
fn an_interrupt_of_one_rank_stops_all_with_a_checkpoint() {
    let place = trainable("max_steps: 2000\nsave_steps: 1000\n");
    let children = start(&place, 2, &[]);
    reach(&place, 8);
    signal(&children[1], "-INT");
    let told = end(&place, children);
    assert_eq!([told[0].code, told[1].code], [Some(75), Some(130)], "{}\n{}", told[0].err, told[1].err);
    let state: Value = place.json("output/trainer_state.json");
    let step = state["global_step"].as_u64().unwrap();
    assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists());
}

/// Numbers that look random and can be had again (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Something goes wrong with a rank, or with the port.
fn disturb(random: &mut Random, children: &mut Vec<Child>) {
    let victim = random.below(children.len());
    match random.below(4) {
        0 => {
            // Stopped for good: the others give it up, and it goes when they have.
            signal(&children[victim], "-STOP");
            let sleeper = children.remove(victim);
            let deadline = Instant::now() + PATIENCE;
            while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            signal(&sleeper, "-CONT");
            children.push(sleeper);
        }
        1 => signal(&children[victim], "-TERM"),
        _ => {
            children[victim].kill().unwrap();
            children.remove(victim).wait().unwrap();
        }
    }
}

/// One run through random faults, to the bits of a run without.
fn through_faults(seed: u64, faults: usize) {
    let mut random = Random(seed | 1);
    let strategies = ["replicate", "zero1", "zero3", "pipeline"];
    let strategy = strategies[random.below(strategies.len())];
    let tuning = ["lora", "full"][random.below(2)];
    let steps = format!(
        "max_steps: 120\nsave_steps: {}\nstrategy: {strategy}\nfinetuning_type: {tuning}\npeer_timeout: 2\nrendezvous_timeout: 4\n",
        1 + random.below(6)
    );
    let (calm, place) = (trainable(&steps), trainable(&steps));
    let ranks = 2;
    run(&calm, ranks, &[]);
    let done = |place: &Place| place.path("output/all_results.json").exists();
    for _ in 0..faults {
        let mut children = start(&place, ranks, &[]);
        let reached = lines(&place.path("output/trainer_log.jsonl"));
        let (aim, begun) = (reached + random.below(25), Instant::now());
        while lines(&place.path("output/trainer_log.jsonl")) < aim && !done(&place) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(30) as u64));
        if children.iter_mut().all(|child| child.try_wait().unwrap().is_none()) {
            disturb(&mut random, &mut children);
        }
        end(&place, children);
    }
    run(&place, ranks, &[]);
    assert_eq!(losses(&place), losses(&calm), "seed {seed}: {strategy}, {tuning}");
    assert!(adapter(&place) == adapter(&calm), "seed {seed}: {strategy}, {tuning}: the same bits");
}

#[test]
fn random_faults_cost_no_bit() {
    through_faults(7, 3);
}

/// As long as `cargo xtask soak` asks for.
#[test]
#[ignore = "cargo xtask soak runs it for as long as asked"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("FERROTUNE_SOAK_SECONDS").expect("cargo xtask soak sets it");
    let (mut seed, begun) = (number("FERROTUNE_SOAK_SEED").unwrap_or(1), Instant::now());
    while begun.elapsed() < Duration::from_secs(seconds) {
        println!("seed {seed}, {:.0} s", begun.elapsed().as_secs_f64());
        through_faults(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 5);
        seed += 1;
    }
}
