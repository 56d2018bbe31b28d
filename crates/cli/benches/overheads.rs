//! What a checkpoint and a job of one process cost, and what a second process brings, by the program itself on
//! SmolLM2-135M: `cargo bench -p ferrotune --bench overheads [-- saving job two] [model=PATH]`. The model comes from the
//! catalogue, which downloads it if it isn't there.
//!
//! - `saving`: processor seconds of a checkpoint, of which the wait at the border of a step is a part and the thread that writes
//!   the rest: what runs of short rows take more that save every step than those that don't, over their steps. Beside it
//!   a step of 2,048 tokens. A step of those varies by more than a checkpoint takes, so it can't be seen in them.
//! - `job`: a process that an agent watches, which would start it again; a job of one process is otherwise the same as none,
//!   without socket or thread. What the agent takes of the processor.
//! - `two`: one process on one core, and two on a core each, with the same rows a step, in turns. Needs `taskset`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Steps of each run of short rows of `saving`, and how often.
const SAVES: usize = 20;
const TIMES: usize = 3;
/// Pairs of runs of `two`, and their steps.
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
        println!("| saving | processor s a step | a checkpoint | of a step |");
        println!("|---|---:|---:|---:|");
        ["lora", "full"].into_iter().for_each(|tuning| saving(place.path(), tuning));
    }
    if wanted("job") {
        job(place.path());
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
    let tuned = format!("finetuning_type={tuning}");
    let took = |steps: usize, more: &[&str]| {
        let before = of_children();
        let steps = format!("max_steps={steps}");
        run(ferrotune(place, &[&[&tuned[..], &steps, "output_dir=saving"], more].concat()));
        let _ = fs::remove_dir_all(place.join("saving"));
        of_children() - before
    };
    let short = ["cutoff_len=32", "gradient_accumulation_steps=1"];
    let saving = ["save_strategy=steps", "save_steps=1", "save_total_limit=2"];
    let checkpoint = median((0..TIMES).map(|_| {
        let without = took(SAVES, &short);
        (took(SAVES, &[&short[..], &saving].concat()) - without) / SAVES as f64
    }));
    // What both have of starting and ending is no part of a step.
    let step = (took(1 + TIMES, &[]) - took(1, &[])) / TIMES as f64;
    println!("| {tuning} | {step:.3} | {checkpoint:.3} | {:.1} % |", 100.0 * checkpoint / step);
}

fn job(place: &Path) {
    let before = of_children();
    let mut command = ferrotune(place, &[&format!("max_steps={SHORT}"), "output_dir=short"]);
    command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "1").env("MAX_RESTARTS", "3");
    let agent = run(command).last().expect("steps").1;
    let _ = fs::remove_dir_all(place.join("short"));
    let all = of_children() - before;
    println!("\n| job of one | processor s | of the agent | share |\n|---|---:|---:|---:|");
    println!("| {SHORT} steps | {all:.2} | {agent:.2} | {:.3} % |", 100.0 * agent / all);
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
