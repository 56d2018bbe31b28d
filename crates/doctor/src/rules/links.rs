//! Ways between GPUs: what the bus and the processor do to them. Whether copies work is another file's; this is why not.

use super::{Finding, Weight, listed};
use crate::facts::{Acs, Facts, Way};

/// Bridges that send peers' traffic up to the processor.
pub(super) fn redirecting(facts: &Facts) -> Vec<String> {
    let bridges = facts.machine.bridges.iter().filter(|bridge| bridge.acs == Acs::Redirects);
    bridges.map(|bridge| bridge.address.clone()).collect()
}

/// Whether GPUs' addresses are translated.
pub(super) fn is_translating(facts: &Facts) -> bool {
    let of_gpu = |address: &str| facts.gpus.devices.iter().any(|gpu| gpu.address == address);
    let slots = facts.machine.slots.iter().filter(|slot| of_gpu(&slot.address));
    slots.filter_map(|slot| slot.translation.as_deref()).any(|how| how.starts_with("DMA"))
}

/// How Access Control Services are switched off.
pub(super) fn cure_of_acs(bridges: &[String]) -> String {
    let each = if bridges.len() == 1 { "" } else { ", and so for each" };
    let first = bridges.first().map_or("BRIDGE", String::as_str);
    format!(
        "switch ACS off in the firmware's setup, or until the next start `sudo setpci -s {first} ECAP_ACS+0x6.w=0000`{each}; in a \
         virtual machine that is its host's to do"
    )
}

/// How translation is switched off.
pub(super) const CURE_OF_IOMMU: &str =
    "start the kernel with `iommu=pt`, or with `intel_iommu=off` or `amd_iommu=off` where no virtual machines run";

pub(super) fn judge(facts: &Facts, found: &mut Vec<Finding>) {
    for gpu in &facts.gpus.devices {
        let Some(slot) = facts.machine.slot(&gpu.address) else { continue };
        if let (Some(now), Some(most)) = (slot.link, slot.most)
            && now.lanes < most.lanes
        {
            let what = format!("GPU {} ({}) has {} of its {} lanes", gpu.number, slot.address, now.lanes, most.lanes);
            let cure =
                "seat the card and its riser anew, use a slot of full width, and look at how the firmware splits slots";
            found.push(Finding::new(Weight::Advice, "link-narrow", what, cure));
        }
    }
    // What follows matters to copies over the bus.
    if !facts.gpus.pairs.iter().any(|pair| pair.way != Way::Nvlink) {
        return;
    }
    let acs = redirecting(facts);
    if !acs.is_empty() {
        let what = format!("bridges above GPUs send peers' traffic up to the processor (ACS is on): {}", listed(&acs));
        found.push(Finding::new(Weight::Advice, "acs-on", what, cure_of_acs(&acs)));
    }
    if facts.machine.bridges.iter().any(|bridge| bridge.acs == Acs::Unreadable) {
        let what = "whether bridges redirect peers' traffic (ACS) can be read by root alone";
        found.push(Finding::new(Weight::Note, "acs-unknown", what, "`sudo ferrotune doctor`"));
    }
    if is_translating(facts) {
        let what = "GPUs' addresses are translated by the IOMMU, which slows copies between them down or breaks them";
        found.push(Finding::new(Weight::Advice, "iommu-translates", what, CURE_OF_IOMMU));
    }
    without_access(facts, found);
}

fn without_access(facts: &Facts, found: &mut Vec<Finding>) {
    let pairs = &facts.gpus.pairs;
    let closed: Vec<String> =
        pairs.iter().filter(|pair| !pair.access).map(|pair| format!("{}-{}", pair.from, pair.to)).collect();
    if closed.is_empty() {
        return;
    }
    let geforce = facts.gpus.devices.iter().any(|gpu| gpu.name.contains("GeForce"));
    if closed.len() == pairs.len() && geforce {
        let what = "GeForce cards have no direct copies: every byte between them goes through the host's memory";
        let cure = "`ferrotune plan` reckons with it; adapters and pipeline stages send the least";
        found.push(Finding::new(Weight::Note, "no-peer-access", what, cure));
    } else {
        let what = format!("the driver allows no direct copies between GPUs {}", listed(&closed));
        let cure = "`nvidia-smi topo -p2p r` says why; cards on different processors often can't";
        found.push(Finding::new(Weight::Advice, "no-peer-access", what, cure));
    }
}
