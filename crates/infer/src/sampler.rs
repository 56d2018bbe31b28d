//! Picks the next token from logits: repetition penalty, temperature, top-k, top-p, in transformers' order.

use ferrotune_config::plan::GenerationPlan;

/// Picks tokens; its randomness is a function of its seed and of how many it has picked.
#[derive(Debug, Clone)]
pub struct Sampler {
    plan: GenerationPlan,
    state: u64,
}

impl Sampler {
    /// Follows `plan`.
    pub fn new(plan: GenerationPlan) -> Self {
        let state = plan.seed;
        Self { plan, state }
    }

    /// Follows `plan` for the prompt of a number: what is drawn for it doesn't depend on which prompts stand beside it.
    pub fn of_prompt(plan: &GenerationPlan, number: u64) -> Self {
        Self { plan: plan.clone(), state: mixed(plan.seed ^ mixed(number.wrapping_add(1))) }
    }

    /// Most tokens of an answer.
    pub fn max_tokens(&self) -> usize {
        self.plan.max_new_tokens
    }

    /// The next token after `seen`. Logits are overwritten.
    ///
    /// The penalty divides positive logits of tokens seen before and multiplies negative ones (Keskar et al. 2019,
    /// <https://arxiv.org/abs/1909.05858>).
    pub fn pick(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        if !self.plan.do_sample || self.plan.temperature <= 0.0 {
            return likeliest(logits);
        }
        let mut candidates = self.candidates(logits);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.uniform() * total;
        let last = candidates.pop();
        for (token, weight) in candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        last.map_or_else(|| likeliest(logits), |(token, _)| token)
    }

    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        let penalty = self.plan.repetition_penalty as f32;
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
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if (1..order.len()).contains(&self.plan.top_k) {
            order.select_nth_unstable_by(self.plan.top_k - 1, falling);
            order.truncate(self.plan.top_k);
        }
        order.sort_unstable_by(falling);
        let top = order.first().map_or(0.0, |&t| logits[t as usize]);
        let weight = |t: u32| (f64::from(logits[t as usize] - top) / self.plan.temperature).exp();
        let mut kept: Vec<(u32, f64)> = order.into_iter().map(|t| (t, weight(t))).collect();
        if self.plan.top_p < 1.0 {
            let limit = self.plan.top_p * kept.iter().map(|c| c.1).sum::<f64>();
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

    /// Uniform in [0, 1): splitmix64, Steele et al. 2014.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed(self.state) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// splitmix64's mixing of a state.
fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best });
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> GenerationPlan {
        GenerationPlan {
            do_sample: true,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 8,
            repetition_penalty: 1.0,
            skip_special_tokens: true,
            seed: 1,
        }
    }

    fn frequencies(plan: GenerationPlan, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(plan);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.pick(&mut logits.to_vec(), &[]) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let close = |got: &[f64], want: &[f64]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 0.015);
        assert!(close(&frequencies(plan(), &logits), &[0.5, 0.3, 0.2]));
        assert!(close(&frequencies(GenerationPlan { top_k: 2, ..plan() }, &logits), &[0.625, 0.375, 0.0]));
        assert!(close(&frequencies(GenerationPlan { top_p: 0.5, ..plan() }, &logits), &[1.0, 0.0, 0.0]));
        assert!(close(&frequencies(GenerationPlan { top_p: 0.51, ..plan() }, &logits), &[0.625, 0.375, 0.0]));
        let cold = GenerationPlan { temperature: 0.5, ..plan() };
        assert!(close(&frequencies(cold, &logits), &[0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]));
    }

    #[test]
    fn prompts_have_draws_of_their_own() {
        let draw = |number| {
            let mut sampler = Sampler::of_prompt(&plan(), number);
            (0..8).map(|_| sampler.pick(&mut [0.0; 64], &[])).collect::<Vec<_>>()
        };
        let drawn: std::collections::HashSet<_> = (0..100).map(draw).collect();
        assert_eq!((drawn.len(), draw(7)), (100, draw(7)));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_the_penalty_moves_it() {
        let mut sampler = Sampler::new(GenerationPlan { do_sample: false, ..plan() });
        assert_eq!(sampler.pick(&mut [1.0, 3.0, 3.0], &[]), 1);
        let mut sampler = Sampler::new(GenerationPlan { do_sample: false, repetition_penalty: 2.0, ..plan() });
        assert_eq!(sampler.pick(&mut [1.0, 3.0, 2.0], &[1, 1]), 2);
        assert_eq!(sampler.pick(&mut [-1.0, -1.5, f32::NAN], &[0, 99]), 1);
    }
}
