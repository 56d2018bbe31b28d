//! Copies between GPUs, whose bytes are compared.

use super::Told;
use crate::facts::{Outcome, Trial, What};
use ferrotune_tensor::cuda::driver::Driver;
use ferrotune_tensor::cuda::{Search, copy_between, driver};

/// Bytes of a copy: more than any bridge holds back, and little beside a GPU's memory.
pub(crate) const BYTES: usize = 16 << 20;
/// Copies that are timed.
const REPEATS: u32 = 8;

pub(super) fn copies(search: &Search, pairs: &[(usize, usize)], direct: bool, tell: &mut dyn FnMut(Told)) {
    let opened = driver::open(search).map_err(|error| error.to_string());
    let opened = opened.and_then(|driver| driver.begin().map(|()| driver).map_err(|error| error.to_string()));
    for &(from, to) in pairs {
        let what = What::Copy { from, to };
        tell(Told::Begin(what.clone()));
        let outcome = match &opened {
            Ok(driver) => copy(driver, (from, to), direct),
            Err(error) => Outcome::Failed(error.clone()),
        };
        let way = if direct { "directly" } else { "over the host" };
        tell(Told::Done(Trial { what, size: format!("{} MiB {way}", BYTES >> 20), outcome }));
    }
}

fn copy(driver: &Driver, pair: (usize, usize), direct: bool) -> Outcome {
    let pattern = pattern(BYTES, (pair.0 * 64 + pair.1) as u64);
    match copy_between(driver, pair, &pattern, REPEATS, direct) {
        Err(error) => Outcome::Failed(error.to_string()),
        Ok(copied) => match differing(&pattern, &copied.bytes) {
            Some(words) => Outcome::Wrong(words),
            // Less than a microsecond is no time that a GPU measures.
            None => Outcome::Right { rate: BYTES as f64 / copied.seconds.max(1e-6), telling: true },
        },
    }
}

/// Bytes without a period, another for each seed: a copy from elsewhere, or of earlier bytes, shows.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut made = Vec::with_capacity(bytes + 8);
    while made.len() < bytes {
        made.extend(next());
    }
    made.truncate(bytes);
    made
}

/// How the bytes differ, in words.
fn differing(wanted: &[u8], got: &[u8]) -> Option<String> {
    let wrong = wanted.iter().zip(got).filter(|(a, b)| a != b).count() + wanted.len().abs_diff(got.len());
    let first = wanted.iter().zip(got).position(|(a, b)| a != b)?;
    let untouched = wanted.iter().zip(got).skip(first).take(64).all(|(a, b)| *b == !*a);
    let how = if untouched { ", where nothing arrived" } else { "" };
    Some(format!("{wrong} of {} bytes differ, the first at {first}{how}", wanted.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_differ_are_told() {
        let good = pattern(1000, 3);
        assert_ne!(good, pattern(1000, 4));
        assert_eq!(differing(&good, &good), None);
        let mut bad = good.clone();
        bad[300] ^= 1;
        assert_eq!(differing(&good, &bad).unwrap(), "1 of 1000 bytes differ, the first at 300");
        let untouched: Vec<u8> = good.iter().map(|byte| !byte).collect();
        assert!(differing(&good, &untouched).unwrap().ends_with("where nothing arrived"));
    }
}
