//! NVIDIA's devices on the bus, the bridges above them, and what of those redirects peers' traffic.
//!
//! Access Control Services: PCI Express Base Specification 5.0, section 7.7.8. They let a hypervisor see all traffic by sending
//! what peers send each other up to the host bridge, which for GPUs is slow at best, and hangs or corrupts at worst.

use super::files::{bytes, child_names, line, number};
use crate::facts::{Acs, Bridge, PciLink, Slot};
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// NVIDIA's number.
const NVIDIA: &str = "0x10de";
/// Devices looked at.
const MOST: usize = 64;

pub(super) fn nvidia(root: &Path) -> (Vec<Slot>, Vec<Bridge>) {
    let folder = root.join("sys/bus/pci/devices");
    let of = |address: String| {
        let device = folder.join(&address);
        let is_gpu = line(&device.join("vendor")).is_some_and(|vendor| vendor == NVIDIA)
            && line(&device.join("class")).is_some_and(|class| class.starts_with("0x03"));
        (is_gpu && is_address(&address)).then(|| slot(root, &device, address))
    };
    let slots: Vec<Slot> = child_names(&folder).into_iter().filter_map(of).take(MOST).collect();
    // A bridge above several devices is one.
    let above = slots.iter().flat_map(|slot| &slot.above).filter(|address| is_address(address));
    let bridges: BTreeMap<&String, Bridge> = above
        .map(|address| {
            let acs = acs(&bytes(&folder.join(address).join("config"), CONFIGURATION).unwrap_or_default());
            (address, Bridge { address: address.clone(), acs })
        })
        .collect();
    let bridges = bridges.into_values().collect();
    (slots, bridges)
}

fn slot(root: &Path, device: &Path, address: String) -> Slot {
    let link = |which: &str| {
        // `16.0 GT/s PCIe`; `Unknown` where there is no link.
        let speed = line(&device.join(format!("{which}_link_speed")))?;
        let transfers: f64 = speed.split_once(" GT/s")?.0.parse().ok()?;
        let lanes: u32 = number(&device.join(format!("{which}_link_width")))?;
        ((1.0..1000.0).contains(&transfers) && (1..=32).contains(&lanes))
            .then_some(PciLink { transfers: transfers * 1e9, lanes })
    };
    Slot {
        above: above(root, device),
        // -1 where the firmware doesn't say.
        node: number(&device.join("numa_node")),
        link: link("current"),
        most: link("max"),
        translation: line(&device.join("iommu_group/type")),
        address,
    }
}

/// `/sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0` says what lies above a device.
fn above(root: &Path, device: &Path) -> Vec<String> {
    let (Ok(root), Ok(real)) = (root.canonicalize(), device.canonicalize()) else { return Vec::new() };
    let Ok(inside) = real.strip_prefix(&root) else { return Vec::new() };
    let names = inside.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let is_host = |name: &str| name.strip_prefix("pci").is_some_and(|rest| rest.len() <= 9 && rest.contains(':'));
    let mut found: Vec<String> = names.filter(|name| is_host(name) || is_address(name)).map(str::to_owned).collect();
    found.pop();
    found
}

/// `0000:17:00.0`.
fn is_address(name: &str) -> bool {
    let parts: Vec<&str> = name.split([':', '.']).collect();
    let hex = |part: &&str| !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
    parts.len() == 4 && parts.iter().all(hex)
}

/// Bytes of a device's configuration; who isn't root is given the first 64.
const CONFIGURATION: u64 = 4096;
/// Where its extended capabilities begin.
const EXTENDED: usize = 256;
/// Number of the capability.
const ACCESS_CONTROL: u32 = 0x000d;
/// Bits of its control word: requests and completions between peers are redirected.
const REDIRECTS: u16 = 0b1100;

/// Reads the chain of extended capabilities: 16 bits of number, 4 of version, 12 of the next one's place.
pub(super) fn acs(configuration: &[u8]) -> Acs {
    let word = |at: usize| configuration.get(at..at + 4)?.first_chunk().map(|four| u32::from_le_bytes(*four));
    if configuration.len() <= EXTENDED {
        return Acs::Unreadable;
    }
    let mut at = EXTENDED;
    // A chain has at most one capability for each 8 bytes; one that is longer goes in a circle.
    for _ in 0..CONFIGURATION / 8 {
        let Some(head) = word(at).filter(|head| *head != 0 && *head != u32::MAX) else { return Acs::None };
        if head & 0xffff == ACCESS_CONTROL {
            let control = configuration.get(at + 6..at + 8).and_then(|two| two.first_chunk());
            return match control.map(|two| u16::from_le_bytes(*two)) {
                None => Acs::Unreadable,
                Some(bits) if bits & REDIRECTS != 0 => Acs::Redirects,
                Some(_) => Acs::Off,
            };
        }
        at = (head >> 20) as usize & !3;
        if at < EXTENDED {
            return Acs::None;
        }
    }
    Acs::None
}
