//! A plan on one page, and the same for programs.

use crate::ui;
use ferrotune_config::plan::{LoraPlan, LoraTargets, Precision, Tuning};
use ferrotune_tensor::{Kind, Phase, Segment};
use ferrotune_train::plan::Link;
use ferrotune_train::{Forecast, Machine, RowLengths, Subject, Way, is_meant};
use serde_json::{Value, json};

/// Ways that are shown.
const SHOWN: usize = 12;
/// Columns of text.
const WIDTH: usize = 100;

/// What a page is about.
pub(crate) struct Page<'a> {
    pub(crate) subject: &'a Subject<'a>,
    pub(crate) forecast: &'a Forecast,
    /// As users call it.
    pub(crate) model: &'a str,
    /// Why the rows' lengths are assumed, if they are.
    pub(crate) assumed: Option<&'a str>,
}

/// The page.
pub(crate) fn text(page: &Page<'_>) -> String {
    let mut lines = head(page);
    lines.push(String::new());
    lines.extend(meant(page));
    lines.push(String::new());
    lines.extend(cures(page));
    lines.extend(table(page));
    lines.push(String::new());
    lines.push(assumptions(page));
    lines.join("\n")
}

fn head(page: &Page<'_>) -> Vec<String> {
    let Page { subject, forecast, model, assumed } = page;
    let (all, trained) = forecast.parameters;
    let precision = if subject.plan.model.precision == Precision::Bf16 { "bf16" } else { "f32" };
    let rows = &forecast.longest;
    let count = if rows.len() == 1 { "1 row".to_owned() } else { format!("{} rows", rows.len()) };
    let tokens = ui::grouped(rows.iter().sum());
    let source = match assumed {
        Some(why) => format!("assumed from cutoff_len, since {why}"),
        None => "the longest rows of the data together".to_owned(),
    };
    vec![
        format!(
            "{model}, {}, {precision}: {} parameters, {} train",
            tuning(&subject.plan.tuning),
            ui::grouped(all),
            ui::grouped(trained)
        ),
        machine(&subject.machine),
        format!("longest micro-batch: {count}, {tokens} tokens ({source})"),
    ]
}

fn tuning(tuning: &Tuning) -> String {
    match tuning {
        Tuning::Lora(LoraPlan { rank, targets, .. }) => {
            let targets = match targets {
                LoraTargets::All => "all linear layers".to_owned(),
                LoraTargets::Modules(names) => names.join(", "),
            };
            format!("LoRA r = {rank} on {targets}")
        }
        Tuning::Freeze(_) => "some blocks (freeze)".into(),
        Tuning::Full => "all weights (full)".into(),
    }
}

fn machine(machine: &Machine) -> String {
    let several = |nodes: usize| if nodes == 1 { String::new() } else { format!("{nodes} nodes of ") };
    match machine {
        Machine::Cards { card, nodes, per_node, network } => {
            let joint = if *per_node > 1 {
                format!(", {} at {} between them", card.joint.name, rate(card.joint.bandwidth))
            } else {
                String::new()
            };
            let network =
                if *nodes > 1 { format!(", {:.0} Gbit/s between nodes", network / 1e9) } else { String::new() };
            format!(
                "{}{per_node} x {}: {} each as the card shows it, {}, {:.0} TFLOP/s in bf16{joint}{network}",
                several(*nodes),
                card.name,
                ui::bytes(card.bytes()),
                rate(card.bandwidth),
                card.bf16 / 1e12
            )
        }
        Machine::Measured(among) => {
            let memory = among.room.device().map_or_else(|| "unknown memory".to_owned(), ui::bytes);
            format!(
                "{}{} process{} like this machine's processors: {memory} each, measured {:.1} GFLOP/s in blocks, {:.1} in the head",
                several(machine.nodes()),
                among.per_node,
                if among.per_node == 1 { "" } else { "es" },
                among.rates.blocks / 1e9,
                among.rates.head / 1e9
            )
        }
    }
}

/// Bytes a second.
pub(crate) fn rate(rate: f64) -> String {
    if rate >= 1e9 { format!("{:.0} GB/s", rate / 1e9) } else { format!("{:.1} MB/s", rate / 1e6) }
}

/// What the recipe itself comes to.
fn meant(page: &Page<'_>) -> Vec<String> {
    let Forecast { meant: way, duration, .. } = page.forecast;
    let (memory, choice) = (&way.memory, &way.choice);
    let limit = memory.room.device();
    let verdict = match (choice.fits, limit) {
        (true, _) => "fits".to_owned(),
        (false, Some(limit)) if memory.needed() > limit => {
            format!("DOESN'T FIT: {} too much on the fullest rank", ui::bytes(memory.needed() - limit))
        }
        (false, _) => "DOESN'T FIT into host memory".to_owned(),
    };
    let of = limit.map(|limit| format!(" of {}", ui::bytes(limit))).unwrap_or_default();
    let mut lines = vec![
        format!("as the recipe says: {}: {verdict}", name(way)),
        format!("  memory of the fullest rank: {}{of}; most {}", ui::bytes(memory.needed()), moment(page, way)),
    ];
    lines.extend(kinds(way));
    if memory.needed_of_host() > 0 {
        lines.push(format!("  host memory of that rank: {}", ui::bytes(memory.needed_of_host())));
    }
    if page.subject.machine.circumstances(false).world > 1 {
        let nodes = page.subject.machine.nodes();
        let out = if nodes > 1 { format!("; {} leave a node", ui::bytes(choice.across)) } else { String::new() };
        lines.push(format!("  traffic of a step: {} sent by a rank{out}", ui::bytes(choice.sent)));
    }
    let estimate = choice.estimate;
    lines.push(format!(
        "  time of a step: {} in the mean of {:.0} tokens; of the longest rows {}: computing {}, bubble {}, wires {}",
        seconds(duration.step),
        duration.tokens,
        seconds(estimate.step),
        seconds(estimate.compute),
        seconds(estimate.bubble),
        seconds(estimate.communication)
    ));
    lines.push(match duration.steps {
        Some(steps) => {
            let whole = ui::duration(duration.step * steps as f64);
            format!(
                "  time of the run: {whole} for {} steps, without reading weights, evaluating and saving",
                ui::grouped(steps as usize)
            )
        }
        None => format!(
            "  time of the run: {} for every million tokens; how many there are isn't known",
            ui::duration(duration.step / duration.tokens * 1e6)
        ),
    });
    lines
}

/// A split and its level of recomputation.
pub(crate) fn name(way: &Way) -> String {
    let world = way.choice.candidate.layout.world();
    let split = if world == 1 { "one rank".to_owned() } else { way.choice.candidate.to_string() };
    format!("{split}, {}", if way.memory.recompute { "blocks recomputed" } else { "activations kept" })
}

/// When memory is fullest.
fn moment(page: &Page<'_>, way: &Way) -> String {
    let blocks = page.subject.config.num_hidden_layers;
    let pass = |phase| if phase == Phase::Forward { "forward" } else { "backward" };
    match way.memory.moment {
        None => "while gradients are reduced and weights updated".into(),
        Some((Segment(0), phase)) => format!("in the {} pass of the embedding", pass(phase)),
        Some((Segment(n), phase)) if n > blocks => format!("in the {} pass of head and loss", pass(phase)),
        Some((Segment(n), phase)) => format!("in the {} pass of block {n} of {blocks}", pass(phase)),
    }
}

/// Bytes by kind, most first, as many lines as it takes.
fn kinds(way: &Way) -> Vec<String> {
    let mut parts = parts(way);
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let mut lines = vec!["   ".to_owned()];
    for (i, (name, bytes)) in parts.iter().filter(|(_, bytes)| *bytes > 0).enumerate() {
        let part = format!(" {name} {}", ui::bytes(*bytes));
        let last = lines.last_mut().expect("there is one from the start");
        if i > 0 {
            last.push(',');
        }
        if last.chars().count() + part.chars().count() > WIDTH {
            lines.push(format!("   {part}"));
        } else {
            last.push_str(&part);
        }
    }
    lines
}

/// All that lies on the device, by name.
pub(crate) fn parts(way: &Way) -> Vec<(&'static str, u64)> {
    let memory = &way.memory;
    let of = |kind: Kind| (kind_name(kind), memory.predicted.at_peak[kind as usize]);
    let mut parts: Vec<(&'static str, u64)> = Kind::ALL.into_iter().map(of).collect();
    parts.push(("idle between them", memory.predicted.extent.saturating_sub(memory.predicted.peak)));
    if memory.room.has_own_host() {
        parts.push(("context and NCCL", memory.constant));
    } else {
        parts.push(("kernels' buffers", memory.constant));
        parts.push(("offloaded", memory.host));
        parts.push(("copies being saved", memory.copies));
    }
    parts
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Weight => "weights",
        Kind::Gathered => "gathered weights",
        Kind::Grad => "gradients",
        Kind::Optim => "optimiser states",
        Kind::Act => "activations",
        Kind::ActGrad => "gradients of activations",
        Kind::Work => "workspace",
        Kind::Input => "inputs",
    }
}

/// What would make it fit.
fn cures(page: &Page<'_>) -> Vec<String> {
    let Forecast { meant, cures, .. } = page.forecast;
    if meant.choice.fits {
        return Vec::new();
    }
    if cures.is_empty() {
        return vec![
            "no single change of the recipe or of the machines was found that makes it fit".into(),
            String::new(),
        ];
    }
    let mut lines = vec!["one of these changes makes it fit; each was tried:".to_owned()];
    for cure in cures {
        let way = &cure.way;
        lines.push(format!(
            "  {:62} {:>10}, {} a step ({})",
            cure.change,
            ui::bytes(way.memory.needed()),
            seconds(way.choice.estimate.step),
            name(way)
        ));
    }
    lines.push(String::new());
    lines
}

/// Every way, best first.
fn table(page: &Page<'_>) -> Vec<String> {
    let ways = &page.forecast.ways;
    let mut lines = vec![format!(
        "{:46} {:>10} {:>10} {:>10} {:>9} {:>9} {:>11}",
        "all ways, at the longest rows, best first", "memory", "a step", "computing", "bubble", "wires", "out of node"
    )];
    for way in ways.iter().take(SHOWN) {
        let mark = if is_meant(way, &page.subject.plan, &page.subject.machine) { "*" } else { " " };
        let head = format!("{mark} {:44} {:>10}", name(way), ui::bytes(way.memory.needed()));
        let time = way.choice.estimate;
        lines.push(if way.choice.fits {
            format!(
                "{head} {:>10} {:>10} {:>9} {:>9} {:>11}",
                seconds(time.step),
                seconds(time.compute),
                seconds(time.bubble),
                seconds(time.communication),
                ui::bytes(way.choice.across)
            )
        } else {
            format!("{head}  doesn't fit")
        });
    }
    let left = ways.len().saturating_sub(SHOWN);
    if left > 0 {
        let fits = ways.iter().skip(SHOWN).filter(|way| way.choice.fits).count();
        lines.push(format!("  and {left} more, {fits} of which fit (--format json has all)"));
    }
    lines.push("* what the recipe allows".to_owned());
    lines
}

fn assumptions(page: &Page<'_>) -> String {
    match &page.subject.machine {
        Machine::Cards { .. } => "reckoned with: half of the cards' dense bf16 rate (35 % by mixtures of experts), a visit no faster\n\
             than its weights are read; memory by the training step itself, run on a device that only counts, beside\n\
             0.6 GiB of context and 0.25 GiB for each group of ranks. Not counted: what computing loses to the wires,\n\
             and gaps in memory"
            .into(),
        Machine::Measured(among) if among.world > 1 => {
            "reckoned with: this machine's speed and memory, shared by its processes; wires are assumed, a run measures them".into()
        }
        Machine::Measured(_) => "reckoned with: one block, the head and an update, timed here; memory by the training step itself".into(),
    }
}

/// Seconds, with as many digits as say something.
pub(crate) fn seconds(time: f64) -> String {
    match time {
        t if t <= 0.0 => "0 s".into(),
        t if t < 0.0995 => format!("{:.1} ms", t * 1e3),
        t if t < 9.995 => format!("{t:.2} s"),
        t if t < 600.0 => format!("{t:.0} s"),
        t => ui::duration(t),
    }
}

/// All of it for programs: bytes, seconds, bytes a second.
pub(crate) fn json(page: &Page<'_>) -> Value {
    let Page { subject, forecast, model, assumed } = page;
    let wire = |link: &Link| {
        let rate = link.bandwidth;
        rate.is_finite().then(|| json!({"bandwidth": rate, "latency": link.latency}))
    };
    let among = subject.machine.circumstances(subject.config.moe.is_some());
    let card = match subject.machine {
        Machine::Cards { card, .. } => Some(card.name),
        Machine::Measured(_) => None,
    };
    let rows = match &subject.rows {
        RowLengths::Known(rows) => json!({"count": rows.len(), "assumed": null}),
        RowLengths::Assumed(tokens) => json!({"tokens": tokens, "assumed": assumed}),
    };
    json!({
        "model": model,
        "parameters": forecast.parameters.0,
        "trainable": forecast.parameters.1,
        "machine": {
            "card": card, "nodes": subject.machine.nodes(), "per_node": among.per_node,
            "memory": among.room.device(), "flops": among.rates.blocks,
            "inside": wire(&among.links.inside), "across": wire(&among.links.across),
        },
        "rows": rows,
        "longest_micro_batch": forecast.longest,
        "fits": forecast.meant.choice.fits,
        "meant": way_json(page, &forecast.meant),
        "duration": {
            "step": forecast.duration.step, "steps": forecast.duration.steps, "tokens_per_step": forecast.duration.tokens,
            "run": forecast.duration.steps.map(|steps| steps as f64 * forecast.duration.step),
        },
        "cures": forecast.cures.iter().map(|cure| json!({"change": cure.change, "way": way_json(page, &cure.way)})).collect::<Vec<_>>(),
        "ways": forecast.ways.iter().map(|way| way_json(page, way)).collect::<Vec<_>>(),
    })
}

fn way_json(page: &Page<'_>, way: &Way) -> Value {
    let (choice, memory) = (&way.choice, &way.memory);
    let layout = choice.candidate.layout;
    let kinds: serde_json::Map<String, Value> =
        parts(way).into_iter().map(|(name, bytes)| (name.replace([' ', '\''], "_"), bytes.into())).collect();
    json!({
        "strategy": choice.candidate.to_string(),
        "shards": layout.shards, "stages": layout.stages, "replicas": layout.replicas,
        "recompute": memory.recompute,
        "fits": choice.fits,
        "memory": memory.needed(), "host_memory": memory.needed_of_host(), "by_kind": kinds,
        "fullest": moment(page, way),
        "step": choice.estimate.step, "computing": choice.estimate.compute, "bubble": choice.estimate.bubble,
        "wires": choice.estimate.communication,
        "sent_by_a_rank": choice.sent, "out_of_a_node": choice.across,
    })
}
