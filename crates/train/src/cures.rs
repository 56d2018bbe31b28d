//! Single changes that let a run take less memory: each tried on `meta` where it is planned, named where it is under way.

use crate::engine::Engine;
use crate::forecast::{Cure, RowLengths, Subject, fitting};
use crate::machine::Machine;
use crate::step::StepOptions;
use crate::{Error, Result};
use ferrotune_config::plan::{LoraPlan, LoraTargets, Plan, Precision, Recompute, Tuning};
use ferrotune_model::Model;
use ferrotune_tensor::Fault;
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
    let place = Place {
        experts: subject.config.moe.is_some(),
        several: subject.machine.circumstances(false).world > 1,
        // On a processor host memory is the same memory.
        apart: matches!(subject.machine, Machine::Cards { .. }),
        evaluates: !subject.evaluated.is_empty(),
    };
    let mut found = Vec::new();
    for (change, plan) in changes(&subject.plan, place) {
        let changed = Subject { plan, ..subject.clone() };
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

/// Where a plan is to run, as far as changes of it depend on that.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The model has experts.
    experts: bool,
    /// There are several ranks.
    several: bool,
    /// Host memory is another memory than the device's.
    apart: bool,
    /// Rows are evaluated on.
    evaluates: bool,
}

/// The error with what cures it, if memory ran out in a run of `plan`, whose micro-batches have at most `rows` rows by now.
pub(crate) fn with_cures(
    error: Error,
    plan: &Plan,
    options: &StepOptions,
    run: (&Model, &Engine, Option<usize>),
) -> Error {
    let Error::Device(fault @ Fault::OutOfMemory { .. }) = error else { return error };
    let (model, engine, rows) = run;
    let mut plan = plan.clone();
    plan.model.recompute = if options.recompute { Recompute::On } else { Recompute::Off };
    if rows == Some(1) {
        plan.train.micro_batch = 1;
    }
    let place = Place {
        experts: model.config().moe.is_some(),
        several: engine.comm().world() > 1,
        apart: engine.device().gpu().is_some(),
        // It was a step that had no room.
        evaluates: false,
    };
    let mut cures: Vec<String> = changes(&plan, place).into_iter().map(|(change, _)| change).collect();
    if plan.train.micro_batch > 1 && !plan.parallel.fits_micro_batch {
        cures.push("auto_find_batch_size: true".to_owned());
    }
    cures.push("a smaller cutoff_len".to_owned());
    Error::OutOfMemory { fault, cures }
}

/// Changes of a recipe that leave its rows as they are.
fn changes(plan: &Plan, place: Place) -> Vec<(String, Plan)> {
    let mut list = Vec::new();
    let mut push = |change: &str, edit: &dyn Fn(&mut Plan)| {
        let mut changed = plan.clone();
        edit(&mut changed);
        list.push((change.to_owned(), changed));
    };
    if plan.model.recompute == Recompute::Off {
        push("gradient_checkpointing: true", &|p| p.model.recompute = Recompute::On);
    }
    if plan.parallel.strategy.is_some() && place.several {
        push("strategy: auto (and no `deepspeed` or `fsdp`)", &|p| p.parallel.strategy = None);
    }
    if plan.train.micro_batch > 1 {
        let steps = plan.train.accumulation * plan.train.micro_batch;
        let change = format!("per_device_train_batch_size: 1, gradient_accumulation_steps: {steps}");
        push(&change, &|p| {
            p.train.accumulation = steps;
            p.train.micro_batch = 1;
        });
    }
    if plan.eval.batch > 1 && place.evaluates {
        push("per_device_eval_batch_size: 1", &|p| p.eval.batch = 1);
    }
    if plan.parallel.max_tokens_per_micro_batch.is_some_and(|most| most > 1024) {
        push("max_tokens_per_micro_batch: 1024", &|p| p.parallel.max_tokens_per_micro_batch = Some(1024));
    }
    if plan.model.precision == Precision::F32 {
        push("bf16: true", &|p| p.model.precision = Precision::Bf16);
    }
    match &plan.tuning {
        Tuning::Lora(lora) if place.experts && lora.targets == LoraTargets::All => {
            let names = ferrotune_model::ATTENTION_LINEARS.map(str::to_owned).to_vec();
            let tuning = Tuning::Lora(LoraPlan { targets: LoraTargets::Modules(names), ..lora.clone() });
            push("lora_target: attention", &|p| p.tuning = tuning.clone());
        }
        Tuning::Lora(_) => {}
        Tuning::Full | Tuning::Freeze(_) => {
            push("finetuning_type: lora", &|p| p.tuning = Tuning::Lora(LoraPlan::plain(8)));
            if !plan.train.pure_bf16 {
                push("pure_bf16: true", &|p| {
                    (p.train.pure_bf16, p.model.precision) = (true, Precision::Bf16);
                });
            }
        }
    }
    if place.apart {
        if !plan.parallel.offload_optimizer && !matches!(plan.tuning, Tuning::Lora(_)) {
            push("offload_optimizer: true", &|p| p.parallel.offload_optimizer = true);
        }
        if !plan.parallel.offload_parameters {
            push("offload_parameters: true", &|p| p.parallel.offload_parameters = true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Division;
    use crate::fixtures::small_llama;
    use crate::step::step_options;
    use ferrotune_config::{Recipe, Verb};
    use ferrotune_tensor::{DType, Device, Kind};

    #[test]
    fn memory_that_ran_out_is_told_with_what_cures_it() {
        let config = small_llama();
        let told = |more: &str, rows| {
            let text = format!(
                "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\ntemplate: empty\ndataset: d\n\
                 output_dir: o\nper_device_train_batch_size: 8\n{more}"
            );
            let plan = Plan::resolve(&Recipe::parse("r.yaml", text.as_bytes()).unwrap(), Verb::Train).unwrap().0;
            let model = Model::new(&config, DType::F32, Some(&plan.tuning), false).unwrap();
            let engine = Engine::new(&Device::meta(), &model, Division::solo(&model), false);
            let fault = Fault::OutOfMemory { asked: 3 << 20, kind: Kind::Act, live: [1 << 20; 8] };
            let options = step_options(&plan, &config, plan.model.recompute == Recompute::On);
            with_cures(Error::Device(fault), &plan, &options, (&model, &engine, rows)).to_string()
        };
        let plain = told("", None);
        for part in [
            "out of memory: 3.0 MiB for activations were refused; in use were 8.0 MiB: ",
            "What cures it: gradient_checkpointing: true; ",
            "per_device_train_batch_size: 1, gradient_accumulation_steps: 8; ",
            "auto_find_batch_size: true; ",
            "a smaller cutoff_len",
        ] {
            assert!(plain.contains(part), "{part} in {plain}");
        }
        // What is done already cures nothing.
        let smaller = told("auto_find_batch_size: true\ngradient_checkpointing: true\n", Some(1));
        for part in ["auto_find_batch_size", "per_device_train_batch_size", "gradient_checkpointing"] {
            assert!(!smaller.contains(part), "{part} in {smaller}");
        }
    }
}
