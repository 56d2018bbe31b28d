//! What a checkpoint and a job of one process cost, and what a second process brings, by the program itself on
//! SmolLM2-135M: `cargo bench -p ferrotune --bench overheads [-- saving job two] [model=PATH]`. The model comes from the
//! catalogue, which downloads it if it isn't there.
//!
//! - `saving`: a run saves every fourth step. Steps 3 and 4 of each four have nothing of it and are the measure; what steps 1
//!   and 2 take more, in wall time and in processor time, is the price of a checkpoint. The same run, so the same machine.
//! - `job`: a process by itself, and the same as a job of world size 1 with an agent that would start it again, in turns.
//! - `two`: one process on one core, and two on a core each, with the same rows a step, in turns. Needs `taskset`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Steps of each run of `saving`, its cycle, and those left out at the beginning.
const STEPS: usize = 28;
const CYCLE: usize = 4;
/// Pairs of runs of `job` and `two`, and their steps.
const PAIRS: usize = 5;
const SHORT: usize = 8;

const RECIPE: &str = "\
stage: pt
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: text
dataset_dir: data
template: smollm2
cutoff_len: 512
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
logging_steps: 1
save_strategy: 'no'
overwrite_output_dir: true
";

fn main() {
    let (mut model, mut parts) = ("smollm2-135m-instruct".to_owned(), Vec::new());
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        match arg.strip_prefix("model=") {
            Some(path) => path.clone_into(&mut model),
            None => parts.push(arg),
        }
    }
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| part == name);
    let place = tempfile::tempdir().expect("a folder");
    prepare(place.path(), &model);
    if wanted("saving") {
        println!("| saving | s a step | s a checkpoint | of a step | processor s a step | a checkpoint | of a step |");
        println!("|---|---:|---:|---:|---:|---:|---:|");
        ["lora", "full"].into_iter().for_each(|tuning| saving(place.path(), tuning));
    }
    if wanted("job") {
        compare(place.path(), ["alone", "a job of one"], |number| one(place.path(), number == 1));
    }
    if wanted("two") {
        compare(place.path(), ["one on a core", "two on a core each"], |number| cores(place.path(), number + 1));
    }
}

/// Data, recipe, and a run that makes caches warm.
fn prepare(place: &Path, model: &str) {
    let words =
        ["a run", "of the model", "takes a step", "and then", "another one", "on rows", "that it has not", "seen"];
    let text =
        |row: usize| (0..400).map(|i| words[(i * (row + 3) + i / 7) % words.len()]).collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = (0..256).map(|row| serde_json::json!({"text": text(row)})).collect();
    fs::create_dir_all(place.join("data")).expect("writable");
    fs::write(place.join("data/text.json"), serde_json::Value::from(rows).to_string()).expect("writable");
    let registry = r#"{"text": {"file_name": "text.json", "columns": {"prompt": "text"}}}"#;
    fs::write(place.join("data/dataset_info.json"), registry).expect("writable");
    fs::write(place.join("train.yaml"), format!("model_name_or_path: {model}\n{RECIPE}")).expect("writable");
    run(ferrotune(place, &["max_steps=1", "output_dir=warm"]));
}

fn ferrotune(place: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrotune"));
    command.args(["train", "train.yaml"]).args(args).current_dir(place);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The moment of each logged step, and the processor seconds that the process had taken by then.
fn steps(child: &mut Child) -> Vec<(f64, f64)> {
    let start = Instant::now();
    let stderr = child.stderr.take().expect("it is piped");
    let (mut steps, mut told) = (Vec::new(), String::new());
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // The summary at the end has no loss of a step.
        if line.contains("'loss'") {
            steps.push((start.elapsed().as_secs_f64(), processor(child.id())));
        }
        told += &format!("{line}\n");
    }
    assert!(child.wait().expect("it runs").success(), "{told}");
    steps
}

fn run(mut command: Command) -> Vec<(f64, f64)> {
    steps(&mut command.spawn().expect("it starts"))
}

/// User and system seconds of a process's threads.
fn processor(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// User and system seconds of all children that have ended.
fn of_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(13) + ticks(14)) / 100.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn saving(place: &Path, tuning: &str) {
    let (tuned, steps) = (format!("finetuning_type={tuning}"), format!("max_steps={STEPS}"));
    let every = format!("save_steps={CYCLE}");
    let args = [&tuned[..], &steps, &every, "save_strategy=steps", "save_total_limit=2", "output_dir=saving"];
    let found = run(ferrotune(place, &args));
    let _ = fs::remove_dir_all(place.join("saving"));
    assert_eq!(found.len(), STEPS, "a line a step");
    // Of each step from the second on: the differences to the one before. The first cycle is still without a save.
    let took = |of: fn(&(f64, f64)) -> f64| -> (f64, f64) {
        let all: Vec<f64> = found.windows(2).map(|pair| of(&pair[1]) - of(&pair[0])).collect();
        // all[i] is step i + 2; steps 4k + 1 and 4k + 2 follow a save.
        let of_cycle =
            |number: usize| all.iter().enumerate().skip(CYCLE - 1).filter(move |(i, _)| (i + 1) % CYCLE == number);
        let plain = median(of_cycle(2).chain(of_cycle(3)).map(|(_, took)| *took));
        let more = [0, 1].map(|number| median(of_cycle(number).map(|(_, took)| *took)) - plain);
        (plain, more[0] + more[1])
    };
    let (wall, processor) = (took(|step| step.0), took(|step| step.1));
    let share = |(plain, more): (f64, f64)| 100.0 * more / plain;
    println!(
        "| {tuning} | {:.3} | {:+.3} | {:+.1} % | {:.3} | {:+.3} | {:+.1} % |",
        wall.0,
        wall.1,
        share(wall),
        processor.0,
        processor.1,
        share(processor)
    );
}

/// Seconds a step after the first, and processor seconds of all that it took.
type Cost = (f64, f64);

/// Both ways in turns; the medians, and how they compare.
fn compare(place: &Path, names: [&str; 2], way: impl Fn(usize) -> Cost) {
    println!("\n| pair | {} | {} | ratio | processor | processor | ratio |", names[0], names[1]);
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut all: Vec<[Cost; 2]> = Vec::new();
    let line = |name: &str, [a, b]: [Cost; 2]| {
        let ratios = [b.0 / a.0, b.1 / a.1];
        println!(
            "| {name} | {:.3} s | {:.3} s | {:.4} | {:.2} s | {:.2} s | {:.4} |",
            a.0, b.0, ratios[0], a.1, b.1, ratios[1]
        );
    };
    for pair in 1..=PAIRS {
        // Which comes first changes, so that what warms up or wears off helps neither.
        let mut both = [(0.0, 0.0); 2];
        let order = if pair % 2 == 1 { [0, 1] } else { [1, 0] };
        order.into_iter().for_each(|number| both[number] = way(number));
        line(&pair.to_string(), both);
        all.push(both);
        let _ = fs::remove_dir_all(place.join("short"));
    }
    let medians = [0, 1].map(|n| (median(all.iter().map(|both| both[n].0)), median(all.iter().map(|both| both[n].1))));
    line("median", medians);
}

/// What a run of several processes costs; its first one tells of the steps.
fn cost(commands: Vec<Command>) -> Cost {
    let before = of_children();
    let mut children: Vec<Child> = commands.into_iter().map(|mut c| c.spawn().expect("it starts")).collect();
    // The others' pipes hold what little they say.
    let found = steps(&mut children[0]);
    for child in &mut children[1..] {
        assert!(child.wait().expect("it runs").success());
    }
    let (first, last) = (found.first().expect("steps").0, found.last().expect("steps").0);
    ((last - first) / (found.len() - 1) as f64, of_children() - before)
}

fn one(place: &Path, job: bool) -> Cost {
    let mut command = ferrotune(place, &[&format!("max_steps={SHORT}"), "output_dir=short"]);
    if job {
        command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "1").env("MAX_RESTARTS", "3");
    }
    cost(vec![command])
}

/// Four rows a step in both cases.
fn cores(place: &Path, processes: usize) -> Cost {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let start = |rank: usize| {
        let accumulation = format!("gradient_accumulation_steps={}", 4 / processes);
        let plain =
            ferrotune(place, &[&format!("max_steps={SHORT}"), "output_dir=short", "strategy=replicate", &accumulation]);
        let mut command = Command::new("taskset");
        command.args(["-c", &rank.to_string()]).arg(plain.get_program()).args(plain.get_args()).current_dir(place);
        command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::piped());
        if processes > 1 {
            command.env("NNODES", processes.to_string()).env("NODE_RANK", rank.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        }
        command
    };
    cost((0..processes).map(start).collect())
}
