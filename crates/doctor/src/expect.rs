//! What hardware should reach: the share of its data sheet's figures that sound machines are measured at. What stays below half
//! of that isn't noise.
//!
//! Figures of cards are those that plans reckon with ([`cards`]); f32's follow from units and clock.

use crate::facts::{Facts, Gpu, Pair, Processor, Way, What};
use ferrotune_tensor::cards::{self, Card};
use ferrotune_tensor::cpu::{Level, features};

/// What should come of a trial, operations or bytes a second, and what that is a share of.
#[derive(Debug, Clone, PartialEq)]
pub struct Should {
    /// A sound machine reaches so much.
    pub rate: f64,
    /// In words.
    pub of: String,
}

/// Of what should be reached, the share below which something is wrong.
pub const SLOW: f64 = 0.5;

/// What should come of a trial; `None` where there is no figure for such hardware.
pub fn should(facts: &Facts, what: &What) -> Option<Should> {
    let gpu = |number: usize| facts.gpus.devices.iter().find(|gpu| gpu.number == number);
    match what {
        What::Product { gpu: None, dtype } => of_processor(&facts.machine.processor, dtype, 0.5),
        // What sound machines reach in a backward pass wasn't measured.
        What::Attention { gpu: None } | What::AttentionGradients { .. } => None,
        What::Product { gpu: Some(number), dtype } if dtype == "f32" => units(gpu(*number)?),
        What::Product { gpu: Some(number), .. } => of_card(gpu(*number)?, 0.6),
        What::Attention { gpu: Some(number) } => of_card(gpu(*number)?, 0.35),
        What::Copy { from, to } => copy(facts, facts.gpus.pair(*from, *to)?),
        What::AllReduce { direct: true, .. } => all_reduce(facts),
        // Over the host it is slower, and how much depends on the host.
        What::AllReduce { direct: false, .. } => None,
    }
}

/// The card that a GPU is.
pub fn card(gpu: &Gpu) -> Option<&'static Card> {
    cards::find_reported(&gpu.name, gpu.memory)
}

fn share(rate: f64, part: f64, of: &str) -> Should {
    Should { rate: rate * part, of: format!("{:.0} % of {of}", part * 100.0) }
}

fn of_card(gpu: &Gpu, part: f64) -> Option<Should> {
    let card = card(gpu).filter(|card| card.bf16 > 0.0)?;
    Some(share(card.bf16, part, &format!("the {}'s data sheet", card.name)))
}

/// A multiply-add a clock in each of 64 or 128 units of a multiprocessor: CUDA C++ Programming Guide, "Arithmetic
/// Instructions".
fn units(gpu: &Gpu) -> Option<Should> {
    let units = match gpu.capability {
        (8, 0) | (7, _) => 64.0,
        (8.., _) => 128.0,
        _ => return None,
    };
    let peak = 2.0 * units * f64::from(gpu.multiprocessors) * gpu.clock?;
    Some(share(peak, 0.6, "units times clock"))
}

/// What the vector units of all cores do in a second, two fused multiply-adds a clock each.
pub fn of_processor(processor: &Processor, dtype: &str, part: f64) -> Option<Should> {
    let lanes = match features() {
        Level::Avx512 | Level::Avx512Bf16 => 16.0,
        Level::Avx2 => 8.0,
        Level::Portable => return None,
    };
    let pairs = if dtype == "bf16" && features() == Level::Avx512Bf16 { 2.0 } else { 1.0 };
    let cores = f64::from(processor.cores?).min(processor.threads as f64).min(processor.quota.unwrap_or(f64::INFINITY));
    Some(share(4.0 * lanes * pairs * cores * processor.clock?, part, "cores times clock times vector width"))
}

/// The slower of two GPUs' links to the bus, bytes a second, at the speed they have under load.
fn bus(facts: &Facts, pair: (usize, usize)) -> Option<f64> {
    let of = |number: usize| {
        let gpu = facts.gpus.devices.iter().find(|gpu| gpu.number == number)?;
        let slot = facts.machine.slot(&gpu.address)?;
        // At rest a link slows down; its lanes stay.
        let (now, most) = (slot.link?, slot.most?);
        Some(crate::facts::PciLink { transfers: most.transfers, lanes: now.lanes }.bandwidth())
    };
    Some(of(pair.0)?.min(of(pair.1)?))
}

fn copy(facts: &Facts, pair: &Pair) -> Option<Should> {
    let gpu = facts.gpus.devices.iter().find(|gpu| gpu.number == pair.to)?;
    if pair.way == Way::Nvlink {
        let joint = card(gpu)?.joint;
        return Some(share(joint.bandwidth, 0.6, joint.name));
    }
    let part = match (pair.access, pair.way) {
        (false, _) => 0.3,
        (true, Way::System) => 0.35,
        (true, _) => 0.6,
    };
    Some(share(bus(facts, (pair.from, pair.to))?, part, "the link to the bus"))
}

/// A ring is as fast as its slowest link.
fn all_reduce(facts: &Facts) -> Option<Should> {
    let pairs = &facts.gpus.pairs;
    if !pairs.is_empty() && pairs.iter().all(|pair| pair.way == Way::Nvlink) {
        let joint = card(facts.gpus.devices.first()?)?.joint;
        return Some(share(joint.bandwidth, 0.5, joint.name));
    }
    let slowest = pairs.iter().filter_map(|pair| bus(facts, (pair.from, pair.to))).fold(f64::INFINITY, f64::min);
    let part = if pairs.iter().all(|pair| pair.access) { 0.4 } else { 0.2 };
    slowest.is_finite().then(|| share(slowest, part, "the link to the bus"))
}
