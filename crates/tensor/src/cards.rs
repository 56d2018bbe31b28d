//! What is known of common accelerators without having one: enough to plan a run on them and to size a server.
//!
//! Sources: NVIDIA's data sheets and architecture whitepapers for bandwidth, rate and links; `nvidia-smi` for memory, which
//! shows less than the name says where ECC or the firmware takes a part. Rates are dense, of bf16 with f32 sums, without
//! sparsity and at the data sheet's clock: nothing reaches them, and a plan says which share it reckons with.

/// How the cards of a machine are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Joint {
    /// As people call it.
    pub name: &'static str,
    /// Bytes a second from a card in one direction, as collectives reach them; not the data sheet's.
    pub bandwidth: f64,
}

/// A card by the name people call it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Its name.
    pub name: &'static str,
    /// Memory as `nvidia-smi` shows it, in MiB.
    pub mib: u32,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Operations a second in dense bf16 with f32 sums; 0 where bf16 is not there (before compute capability 8.0).
    pub bf16: f64,
    /// Its way to the other cards of the machine.
    pub joint: Joint,
}

/// 16 lanes of generation 4: 31.5 GB/s by specification, about two thirds in rings over a host bridge.
const PCIE4: Joint = Joint { name: "PCIe 4.0", bandwidth: 20e9 };
/// 16 lanes of generation 5.
const PCIE5: Joint = Joint { name: "PCIe 5.0", bandwidth: 40e9 };
/// GeForce cards of these generations have no peer-to-peer copies: each byte goes through host memory.
const PCIE4_NO_P2P: Joint = Joint { name: "PCIe 4.0 without peer-to-peer", bandwidth: 10e9 };
/// See [`PCIE4_NO_P2P`].
const PCIE5_NO_P2P: Joint = Joint { name: "PCIe 5.0 without peer-to-peer", bandwidth: 20e9 };
/// 16 lanes of generation 3.
const PCIE3: Joint = Joint { name: "PCIe 3.0", bandwidth: 10e9 };
/// 300 GB/s a direction; `nccl-tests` reach about four fifths of what NVLink is sold as.
const NVLINK3: Joint = Joint { name: "NVLink 3", bandwidth: 240e9 };
/// 200 GB/s a direction: the A800 and H800.
const NVLINK_400: Joint = Joint { name: "NVLink, 400 GB/s", bandwidth: 160e9 };
/// 450 GB/s a direction.
const NVLINK4: Joint = Joint { name: "NVLink 4", bandwidth: 360e9 };
/// 900 GB/s a direction.
const NVLINK5: Joint = Joint { name: "NVLink 5", bandwidth: 720e9 };

const fn card(name: &'static str, mib: u32, gb_a_second: f64, teraflops: f64, joint: Joint) -> Card {
    Card { name, mib, bandwidth: gb_a_second * 1e9, bf16: teraflops * 1e12, joint }
}

/// Cards, the smallest first.
pub const CARDS: [Card; 22] = [
    // Turing has no bf16; it can serve, not train.
    card("T4", 15360, 320.0, 0.0, PCIE3),
    card("A10", 23028, 600.0, 125.0, PCIE4),
    card("L4", 23034, 300.0, 121.0, PCIE4),
    // GA102 whitepaper, table 9: 71 with f32 sums; the 142 that is often quoted is with f16 sums.
    card("RTX3090", 24576, 936.0, 71.0, PCIE4_NO_P2P),
    card("A30", 24576, 933.0, 165.0, PCIE4),
    // Ada whitepaper, appendix A: 165.2 with f32 sums.
    card("RTX4090", 24564, 1008.0, 165.2, PCIE4_NO_P2P),
    card("RTX5090", 32607, 1792.0, 209.5, PCIE5_NO_P2P),
    card("A100-40", 40960, 1555.0, 312.0, NVLINK3),
    card("A40", 46068, 696.0, 149.7, PCIE4),
    card("L40", 46068, 864.0, 181.0, PCIE4),
    card("L20", 46068, 864.0, 119.5, PCIE4),
    card("L40S", 46068, 864.0, 362.0, PCIE4),
    card("A6000", 49140, 768.0, 154.8, PCIE4),
    card("RTX6000Ada", 49140, 960.0, 364.2, PCIE4),
    card("A100-80", 81920, 2039.0, 312.0, NVLINK3),
    card("A800", 81920, 2039.0, 312.0, NVLINK_400),
    card("H100-PCIe", 81559, 2000.0, 756.0, PCIE5),
    card("H100", 81559, 3350.0, 989.4, NVLINK4),
    card("H800", 81559, 3350.0, 989.4, NVLINK_400),
    card("H20", 97871, 4000.0, 148.0, NVLINK4),
    card("H200", 143_771, 4800.0, 989.4, NVLINK4),
    card("B200", 183_359, 7700.0, 2250.0, NVLINK5),
];

/// Other names of cards.
const ALIASES: [(&str, &str); 6] = [
    ("a100", "a100-80"),
    ("3090", "rtx3090"),
    ("4090", "rtx4090"),
    ("5090", "rtx5090"),
    ("a800-80", "a800"),
    ("h100-sxm", "h100"),
];

/// The card that people call so: capitals, spaces, dashes, the maker's name and a trailing `GB` don't matter.
pub fn find(name: &str) -> Option<&'static Card> {
    let plain = |text: &str| -> String {
        let text = text.to_ascii_lowercase();
        let text = ["nvidia", "geforce", "tesla"].iter().fold(text, |text, maker| text.replace(maker, ""));
        let text: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        text.strip_suffix("gb").map_or_else(|| text.clone(), str::to_owned)
    };
    let wanted = plain(name);
    let alias = ALIASES.iter().find(|(alias, _)| plain(alias) == wanted).map(|(_, name)| plain(name));
    let wanted = alias.unwrap_or(wanted);
    CARDS.iter().find(|card| plain(card.name) == wanted)
}

/// The card that a driver calls so, such as `NVIDIA A100-SXM4-80GB`, and that has so many bytes of memory; `None` for those
/// that are only named like one, as `NVIDIA GeForce RTX 4090 Laptop GPU` is.
pub fn find_reported(name: &str, memory: u64) -> Option<&'static Card> {
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if ["laptop", "d", "nvl", "mig", "max", "q", "ti", "super"].iter().any(|other| words.contains(other)) {
        return None;
    }
    // `RTX 6000 Ada`, `H100 PCIe`, `RTX 4090`, `A100 80GB`: as many words as make a name.
    let wanted = (1..=3).rev().flat_map(|count| words.windows(count).map(<[&str]>::concat));
    let near = |card: &&Card| memory.abs_diff(card.bytes()) < card.bytes() / 8;
    wanted.filter(|wanted| wanted.len() > 1).filter_map(|wanted| find(&wanted)).find(|card| near(card)).or_else(|| {
        // One name, two sizes.
        words.contains(&"a100").then(|| find("A100-40")).flatten().filter(near)
    })
}

impl Card {
    /// Memory in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.mib) << 20
    }

    /// Bytes a second from pinned memory of the host: about three quarters of what its lanes are by specification. Cards with
    /// NVLink have 16 lanes of the generation of their time.
    pub fn host(&self) -> f64 {
        let name = self.joint.name;
        match name {
            _ if name.starts_with("PCIe 3") => 12e9,
            _ if name.starts_with("PCIe 5") || ["NVLink 4", "NVLink 5"].contains(&name) || self.name == "H800" => 48e9,
            _ => 24e9,
        }
    }

    /// Memory in GiB.
    pub fn gib(&self) -> f64 {
        f64::from(self.mib) / 1024.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_the_names_that_people_and_drivers_write() {
        let called = |name: &str| find(name).map(|card| card.name);
        for (name, card) in [
            ("L20", "L20"),
            ("nvidia l20", "L20"),
            ("NVIDIA A100-SXM4-80GB", ""),
            ("4090", "RTX4090"),
            ("NVIDIA GeForce RTX 4090", "RTX4090"),
            ("RTX 3090", "RTX3090"),
            ("a100", "A100-80"),
            ("A100-80GB", "A100-80"),
            ("A100 40GB", "A100-40"),
            ("h100", "H100"),
            ("H100 PCIe", "H100-PCIe"),
            ("L200", ""),
            ("", ""),
        ] {
            assert_eq!(called(name).unwrap_or_default(), card, "{name}");
        }
        for card in &CARDS {
            assert_eq!(find(card.name), Some(card), "{} finds itself", card.name);
        }
    }

    #[test]
    fn cards_are_found_by_what_a_driver_reports() {
        for (name, mib, card) in [
            ("NVIDIA L20", 46068, "L20"),
            ("NVIDIA GeForce RTX 4090", 24564, "RTX4090"),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, ""),
            ("NVIDIA GeForce RTX 4090 D", 24564, ""),
            ("NVIDIA A100-SXM4-80GB", 81920, "A100-80"),
            ("NVIDIA A100-SXM4-40GB", 40960, "A100-40"),
            ("NVIDIA A100 80GB PCIe", 81920, "A100-80"),
            ("NVIDIA H100 80GB HBM3", 81559, "H100"),
            ("NVIDIA H100 PCIe", 81559, "H100-PCIe"),
            ("NVIDIA H100 NVL", 95830, ""),
            ("NVIDIA H200", 143_771, "H200"),
            ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX6000Ada"),
            ("NVIDIA RTX A6000", 49140, "A6000"),
            ("Tesla T4", 15360, "T4"),
            ("NVIDIA L40S", 46068, "L40S"),
            ("NVIDIA H20", 97871, "H20"),
            ("NVIDIA B200", 183_359, "B200"),
            ("Quadro", 8000, ""),
            ("", 0, ""),
        ] {
            let found = find_reported(name, mib << 20);
            assert_eq!(found.map(|card| card.name).unwrap_or_default(), card, "{name}");
        }
    }

    #[test]
    fn figures_are_of_the_right_size() {
        assert!(CARDS.windows(2).all(|pair| pair[0].name != pair[1].name));
        for card in &CARDS {
            assert!((10.0..200.0).contains(&card.gib()), "{card:?}");
            assert!((2e11..1e13).contains(&card.bandwidth), "{card:?}");
            assert!(card.bf16 == 0.0 || (5e13..3e15).contains(&card.bf16), "{card:?}");
            assert!((5e9..1e12).contains(&card.joint.bandwidth), "{card:?}");
            assert!([12e9, 24e9, 48e9].contains(&card.host()), "{card:?}");
        }
        // An L20 is sold as 48 GB and shows 45.
        assert!((find("L20").unwrap().gib() - 44.99).abs() < 0.01);
    }
}
