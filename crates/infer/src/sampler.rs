//! Picks the next token as a recipe says; how is [`ferrotune_tensor::ops::sample`]'s.

use ferrotune_config::plan::GenerationPlan;
use ferrotune_tensor::Tensor;
use ferrotune_tensor::ops::{Sampling, sample};

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
        Self { plan: plan.clone(), state: Sampling::mixed(plan.seed ^ Sampling::mixed(number.wrapping_add(1))) }
    }

    /// Most tokens of an answer.
    pub fn max_tokens(&self) -> usize {
        self.plan.max_new_tokens
    }

    /// The next token after `seen`, from logits `[1, vocab]` in f32, which are written over.
    pub fn pick(&mut self, logits: &Tensor, seen: &[u32]) -> u32 {
        let plan = &self.plan;
        let how = Sampling {
            temperature: if plan.do_sample { plan.temperature } else { 0.0 },
            top_k: plan.top_k,
            top_p: plan.top_p,
            repetition_penalty: plan.repetition_penalty as f32,
        };
        let token = sample(logits, seen, &how, self.state);
        // What nobody drew for leaves the state as it is.
        if how.temperature > 0.0 {
            self.state = self.state.wrapping_add(Sampling::STRIDE);
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_tensor::{Device, Kind};

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

    fn pick(sampler: &mut Sampler, logits: &[f32], seen: &[u32]) -> u32 {
        sampler.pick(&Tensor::from_f32(&Device::cpu(), logits, [1, logits.len()], Kind::Act), seen)
    }

    fn frequencies(plan: GenerationPlan, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(plan);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[pick(&mut sampler, logits, &[]) as usize] += 1.0 / 20_000.0;
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
            (0..8).map(|_| pick(&mut sampler, &[0.0; 64], &[])).collect::<Vec<_>>()
        };
        let drawn: std::collections::HashSet<_> = (0..100).map(draw).collect();
        assert_eq!((drawn.len(), draw(7)), (100, draw(7)));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_the_penalty_moves_it() {
        let mut sampler = Sampler::new(GenerationPlan { do_sample: false, ..plan() });
        assert_eq!(pick(&mut sampler, &[1.0, 3.0, 3.0], &[]), 1);
        let mut sampler = Sampler::new(GenerationPlan { do_sample: false, repetition_penalty: 2.0, ..plan() });
        assert_eq!(pick(&mut sampler, &[1.0, 3.0, 2.0], &[1, 1]), 2);
        assert_eq!(pick(&mut sampler, &[-1.0, -1.5, f32::NAN], &[0, 99]), 1);
    }
}
