//! Names of runs that no other run has.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// 64 bits that nobody can foresee: the keys of the standard library's hash maps are the system's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// 32 hexadecimal digits, as MLflow's runs are called (a UUID of version 4 without hyphens).
pub(crate) fn uuid() -> String {
    let (high, low) = (random(), random());
    format!("{:016x}{:016x}", high & !0xf000 | 0x4000, low & !(0b11 << 62) | 0b10 << 62)
}

/// Eighteen digits, as MLflow's experiments are called.
pub(crate) fn digits() -> String {
    (100_000_000_000_000_000 + random() % 900_000_000_000_000_000).to_string()
}

/// Eight small letters and digits, as Weights & Biases and SwanLab call runs.
pub(crate) fn short() -> String {
    let mut left = random();
    let mut next = || {
        let letter = b"abcdefghijklmnopqrstuvwxyz0123456789"[(left % 36) as usize];
        left /= 36;
        char::from(letter)
    };
    (0..8).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_programs_forms_and_differ() {
        let uuids: std::collections::HashSet<String> = (0..100).map(|_| uuid()).collect();
        assert_eq!(uuids.len(), 100);
        assert!(uuids.iter().all(|id| id.len() == 32 && &id[12..13] == "4" && "89ab".contains(&id[16..17])));
        assert!((0..100).all(|_| digits().len() == 18));
        assert!(short().len() == 8 && short() != short());
    }
}
