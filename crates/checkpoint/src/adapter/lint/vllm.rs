//! What the versions of vLLM differ in, as far as it concerns adapters.

use std::fmt;
use std::str::FromStr;

/// A version of vLLM. Only two were read: what is older than 0.32 is held to the rules of 0.11.0, the stricter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vllm {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Vllm {
    /// The version of LLaMA-Factory's last tested pairing, and of many a cluster.
    pub const V0_11: Self = Self { major: 0, minor: 11, patch: 0 };
    /// The version that the rules were tried on.
    pub const V0_32: Self = Self { major: 0, minor: 32, patch: 0 };
    /// `--max-lora-rank` unless it is given.
    pub const DEFAULT_MAX_RANK: usize = 16;

    /// Whether single modules may have a rank or an alpha of their own (`rank_pattern`, `alpha_pattern`).
    pub(super) fn has_patterns(self) -> bool {
        self >= Self::V0_32
    }

    /// Whether experts may have pairs.
    pub(super) fn has_experts(self) -> bool {
        self >= Self::V0_32
    }

    /// Whether `modules_to_save` may name a classification head.
    pub(super) fn has_classifiers(self) -> bool {
        self >= Self::V0_32
    }

    /// Whether the ways of initialisation are looked at.
    pub(super) fn checks_initialisation(self) -> bool {
        self >= Self::V0_32
    }

    /// Largest vocabulary with a pair on the head (`lora/layers/logits_processor.py`).
    pub(super) fn max_head_vocabulary(self) -> usize {
        if self >= Self::V0_32 { 258_048 } else { 257_024 }
    }

    /// The smallest value of `--max-lora-rank` that takes `rank`; nothing if none does.
    pub fn max_lora_rank(self, rank: usize) -> Option<usize> {
        let least = if self >= Self::V0_32 { 1 } else { 8 };
        [1, 8, 16, 32, 64, 128, 256, 320, 512].into_iter().find(|max| *max >= least && rank <= *max)
    }
}

impl FromStr for Vllm {
    type Err = String;

    /// Reads `0.11.0`, `v0.11.0` or `0.11`; what follows a third number (`rc1`, `+cpu`) doesn't matter.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version of vLLM; write it like 0.11.0");
        let mut parts = text.trim().trim_start_matches('v').splitn(3, '.');
        let mut number = |needed: bool| match parts.next() {
            Some(part) => {
                let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
                digits.parse::<u32>().map_err(|_| wrong())
            }
            None if needed => Err(wrong()),
            None => Ok(0),
        };
        Ok(Self { major: number(true)?, minor: number(true)?, patch: number(false)? })
    }
}

impl fmt::Display for Vllm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::Vllm;

    #[test]
    fn versions_are_read_and_ordered() {
        let read = |text: &str| text.parse::<Vllm>();
        assert_eq!(read("v0.11.0").unwrap(), Vllm::V0_11);
        assert_eq!(read("0.32.0+cpu").unwrap(), Vllm::V0_32);
        assert_eq!(read("0.11").unwrap(), Vllm::V0_11);
        assert!(read("0.9.2").unwrap() < Vllm::V0_11 && read("1.0.0").unwrap() > Vllm::V0_32);
        for wrong in ["latest", "", "v", "11", "0..1", "0.x.1", "0.99999999999.1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_rank_that_a_server_must_be_told() {
        assert_eq!(Vllm::V0_32.max_lora_rank(1), Some(1));
        assert_eq!(Vllm::V0_11.max_lora_rank(1), Some(8));
        assert_eq!(Vllm::V0_32.max_lora_rank(17), Some(32));
        assert_eq!(Vllm::V0_32.max_lora_rank(321), Some(512));
        assert_eq!(Vllm::V0_32.max_lora_rank(513), None);
    }
}
