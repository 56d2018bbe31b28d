//! Picks a token from logits by sorting those that may come next.

use crate::ops::Sampling;

/// The next token after `seen`; logits are written over. `state` is the generator's before this pick.
pub(crate) fn sample(logits: &mut [f32], seen: &[u32], how: &Sampling, state: u64) -> u32 {
    penalise(logits, seen, how.repetition_penalty);
    if how.temperature <= 0.0 {
        return likeliest(logits);
    }
    let mut candidates = candidates(logits, how);
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut left = uniform(state) * total;
    let last = candidates.pop();
    for (token, weight) in candidates {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    last.map_or_else(|| likeliest(logits), |(token, _)| token)
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// Tokens that may come next with their unnormalised probabilities, likeliest first.
fn candidates(logits: &[f32], how: &Sampling) -> Vec<(u32, f64)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if (1..order.len()).contains(&how.top_k) {
        order.select_nth_unstable_by(how.top_k - 1, falling);
        order.truncate(how.top_k);
    }
    order.sort_unstable_by(falling);
    let top = order.first().map_or(0.0, |&t| logits[t as usize]);
    let weight = |t: u32| (f64::from(logits[t as usize] - top) / how.temperature).exp();
    let mut kept: Vec<(u32, f64)> = order.into_iter().map(|t| (t, weight(t))).collect();
    if how.top_p < 1.0 {
        let limit = how.top_p * kept.iter().map(|c| c.1).sum::<f64>();
        let mut sum = 0.0;
        // The token that crosses the limit stays; there is always one.
        let inside = kept.iter().take_while(|c| {
            let before = sum < limit;
            sum += c.1;
            before
        });
        let count = inside.count().max(1);
        kept.truncate(count);
    }
    kept
}

/// Uniform in [0, 1).
fn uniform(state: u64) -> f64 {
    (Sampling::mixed(state.wrapping_add(Sampling::STRIDE)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best });
    best.0 as u32
}
