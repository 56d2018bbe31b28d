//! Single changes that make a run fit that doesn't, each tried on `meta`.

use crate::Result;
use crate::forecast::{Cure, RowLengths, Subject, fitting};
use crate::machine::Machine;
use ferrotune_config::plan::{LoraPlan, LoraTargets, Precision, Recompute, Tuning};
use ferrotune_tensor::cards::CARDS;

/// Lengths are looked for in steps of so many tokens.
const GRAIN: usize = 64;
/// Most cards of a node, and most nodes, that are looked at.
const MOST_CARDS: usize = 8;
const MOST_NODES: usize = 4;

/// What would make `subject` fit, one change each: those of the recipe first, the fastest in front; then other machines.
///
/// # Errors
/// If a step can't be counted.
pub(crate) fn cures(subject: &Subject<'_>) -> Result<Vec<Cure>> {
    let mut found = Vec::new();
    for (change, changed) in changes(subject) {
        // A change that this model can't take is none.
        if let Ok(Some(way)) = fitting(&changed) {
            found.push(Cure { change, way });
        }
    }
    found.sort_by(|a, b| a.way.choice.estimate.step.total_cmp(&b.way.choice.estimate.step));
    found.extend(shorter(subject)?);
    found.extend(machines(subject)?);
    Ok(found)
}

/// Changes of the recipe that leave its rows as they are.
fn changes<'a>(subject: &Subject<'a>) -> Vec<(String, Subject<'a>)> {
    let mut list = Vec::new();
    let mut push = |change: &str, edit: &dyn Fn(&mut Subject<'a>)| {
        let mut changed = subject.clone();
        edit(&mut changed);
        list.push((change.to_owned(), changed));
    };
    let plan = &subject.plan;
    if plan.model.recompute == Recompute::Off {
        push("gradient_checkpointing: true", &|s| s.plan.model.recompute = Recompute::On);
    }
    if plan.parallel.strategy.is_some() && subject.machine.circumstances(false).world > 1 {
        push("strategy: auto (and no `deepspeed` or `fsdp`)", &|s| s.plan.parallel.strategy = None);
    }
    if plan.train.micro_batch > 1 {
        let steps = plan.train.accumulation * plan.train.micro_batch;
        let change = format!("per_device_train_batch_size: 1, gradient_accumulation_steps: {steps}");
        push(&change, &|s| {
            s.plan.train.accumulation = steps;
            s.plan.train.micro_batch = 1;
        });
    }
    if plan.eval.batch > 1 && !subject.evaluated.is_empty() {
        push("per_device_eval_batch_size: 1", &|s| s.plan.eval.batch = 1);
    }
    if plan.parallel.max_tokens_per_micro_batch.is_some() {
        push("max_tokens_per_micro_batch: 1024", &|s| s.plan.parallel.max_tokens_per_micro_batch = Some(1024));
    }
    if plan.model.precision == Precision::F32 {
        push("bf16: true", &|s| s.plan.model.precision = Precision::Bf16);
    }
    match &plan.tuning {
        Tuning::Lora(lora) if subject.config.moe.is_some() && lora.targets == LoraTargets::All => {
            let names = ferrotune_model::ATTENTION_LINEARS.map(str::to_owned).to_vec();
            let tuning = Tuning::Lora(LoraPlan { targets: LoraTargets::Modules(names), ..lora.clone() });
            push("lora_target: attention", &|s| s.plan.tuning = tuning.clone());
        }
        Tuning::Lora(_) => {}
        Tuning::Full | Tuning::Freeze(_) => {
            push("finetuning_type: lora", &|s| s.plan.tuning = Tuning::Lora(PLAIN_LORA.clone()));
            if !plan.train.pure_bf16 {
                push("pure_bf16: true", &|s| {
                    (s.plan.train.pure_bf16, s.plan.model.precision) = (true, Precision::Bf16);
                });
            }
        }
    }
    // On a processor host memory is the same memory.
    if matches!(subject.machine, Machine::Cards { .. }) {
        if !plan.parallel.offload_optimizer && !matches!(plan.tuning, Tuning::Lora(_)) {
            push("offload_optimizer: true", &|s| s.plan.parallel.offload_optimizer = true);
        }
        if !plan.parallel.offload_parameters {
            push("offload_parameters: true", &|s| s.plan.parallel.offload_parameters = true);
        }
    }
    list
}

/// The longest rows that fit, if shorter ones do at all.
fn shorter(subject: &Subject<'_>) -> Result<Option<Cure>> {
    let longest = match &subject.rows {
        RowLengths::Known(lengths) => lengths.iter().copied().max().unwrap_or(0),
        RowLengths::Assumed(tokens) => *tokens,
    };
    let of = |cutoff: usize| {
        let mut changed = subject.clone();
        changed.plan.data.cutoff_len = cutoff;
        changed.evaluated.iter_mut().flatten().for_each(|row| *row = row.cut(cutoff));
        match &mut changed.rows {
            RowLengths::Known(lengths) => lengths.iter_mut().for_each(|length| *length = (*length).min(cutoff)),
            RowLengths::Assumed(tokens) => *tokens = (*tokens).min(cutoff),
        }
        fitting(&changed)
    };
    // Memory rises with the length: the last multiple that fits lies between one that does and one that doesn't.
    let (mut fits, mut fails) = (0, longest.div_ceil(GRAIN));
    let mut found = None;
    while fits + 1 < fails {
        let middle = fits.midpoint(fails);
        match of(middle * GRAIN)? {
            Some(way) => (fits, found) = (middle, Some(way)),
            None => fails = middle,
        }
    }
    Ok(found.map(|way| Cure { change: format!("cutoff_len: {}", fits * GRAIN), way }))
}

/// The fewest cards of the same kind that do, and the smallest card in the same number.
fn machines(subject: &Subject<'_>) -> Result<Vec<Cure>> {
    let Machine::Cards { card, nodes, per_node, network } = subject.machine else { return Ok(Vec::new()) };
    let on = |card, nodes, per_node| {
        // More nodes than one are taken whole.
        fitting(&Subject { machine: Machine::Cards { card, nodes, per_node, network }, ..subject.clone() })
    };
    let mut found = Vec::new();
    let in_node = (per_node + 1..=MOST_CARDS).filter(|cards| cards.is_power_of_two()).map(|cards| (nodes, cards));
    let full = per_node.max(MOST_CARDS);
    let more = (1..=6).map(|power| 1 << power).filter(|n| *n > nodes && *n <= MOST_NODES).map(|n| (n, full));
    for (nodes, per_node) in in_node.chain(more) {
        if let Ok(Some(way)) = on(card, nodes, per_node) {
            found.push(Cure { change: format!("--nodes {nodes} --gpus {per_node}"), way });
            break;
        }
    }
    for other in CARDS.iter().filter(|other| other.mib > card.mib && other.bf16 > 0.0) {
        if let Some(way) = on(other, nodes, per_node)? {
            found.push(Cure { change: format!("--gpu {}", other.name), way });
            break;
        }
    }
    Ok(found)
}

/// LLaMA-Factory's adapter.
static PLAIN_LORA: LoraPlan = LoraPlan {
    rank: 8,
    alpha: 16.0,
    dropout: 0.0,
    targets: LoraTargets::All,
    additional_targets: Vec::new(),
    rslora: false,
    dora: false,
    plus: None,
    create_new: false,
};
