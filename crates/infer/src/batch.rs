//! Many prompts at once: a pass takes a token of each answer under way, and of new prompts as many as fit beside them.
//!
//! An answer that ends makes room for the next prompt at once; nothing waits for the longest of a batch, and nothing is
//! padded. What a prompt is answered doesn't depend on which ones stand beside it.

use crate::generator::PREFILL;
use crate::{Generator, InferError, Sampler, Stop};
use ferrotune_model::Capacity;
use ferrotune_tensor::Tensor;

/// A prompt to be answered.
pub struct Request {
    /// Its tokens, at least one.
    pub prompt: Vec<u32>,
    /// Picks the answer's.
    pub sampler: Sampler,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// The token that ended it, if one did.
    pub end: Option<u32>,
}

/// A request under way.
struct Running {
    /// Its place among the requests.
    number: usize,
    /// Prompt and answer so far.
    ids: Vec<u32>,
    prompt: usize,
    /// Tokens that have gone through the model.
    fed: usize,
    sampler: Sampler,
}

impl Running {
    /// Takes in the logits behind all tokens, `[1, vocab]`; the answer, if that ends it.
    fn heed(&mut self, logits: &Tensor, ends: &[u32], room: usize) -> Option<Answer> {
        let next = self.sampler.pick(logits, &self.ids);
        if ends.contains(&next) {
            return Some(Answer { ids: self.ids.split_off(self.prompt), stop: Stop::EndOfTurn, end: Some(next) });
        }
        self.ids.push(next);
        let full = self.ids.len() - self.prompt >= self.sampler.max_tokens() || self.ids.len() >= room;
        full.then(|| Answer { ids: self.ids.split_off(self.prompt), stop: Stop::Length, end: None })
    }
}

impl Generator<'_> {
    /// Answers `requests`, as many at once as there is room for; `hear` is told each answer as it ends, with the place of
    /// its request. An answer ends at a token of `ends`, at its sampler's limit or at the cache's end.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn generate_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        ends: &[u32],
        mut hear: impl FnMut(usize, Answer),
    ) -> Result<(), InferError> {
        let room = self.capacity().tokens;
        let mut waiting = requests.into_iter().enumerate();
        let mut running: Vec<Option<Running>> = (0..self.capacity().sequences).map(|_| None).collect();
        loop {
            for (sequence, place) in running.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
                let Some((number, Request { prompt, sampler })) = waiting.next() else { break };
                self.check(&prompt)?;
                let fed = self.rewind(sequence, &prompt[..prompt.len() - 1]);
                *place = Some(Running { number, prompt: prompt.len(), ids: prompt, fed, sampler });
            }
            let (shares, rows) = shares(&running);
            if shares.is_empty() {
                return Ok(());
            }
            let ids = |&(sequence, tokens): &(usize, usize)| {
                let of: &Running = running[sequence].as_ref().expect("a share is of a request");
                (sequence, &of.ids[of.fed..of.fed + tokens])
            };
            let parts: Vec<(usize, &[u32])> = shares.iter().map(ids).collect();
            let logits = self.feed_all(&parts, &rows)?;
            let mut rows = (0..rows.len()).map(|row| logits.rows(row, 1));
            for (sequence, tokens) in shares {
                let place = &mut running[sequence];
                let Some(of) = place else { continue };
                of.fed += tokens;
                if of.fed < of.ids.len() {
                    continue;
                }
                let logits = rows.next().expect("there are logits behind every request that is fed whole");
                let number = of.number;
                let answer = of.heed(&logits, ends, room);
                self.device().check()?;
                if let Some(answer) = answer {
                    *place = None;
                    hear(number, answer);
                }
            }
        }
    }

    /// The widest pass that [`Generator::generate_all`] can come to: every sequence at its last token, and beside them as many
    /// tokens of prompts as a pass takes. On a device that only counts, its peak is that of all answers; what it says of
    /// tokens means nothing, and the cache is empty afterwards.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn rehearse(&mut self) -> Result<(), InferError> {
        let Capacity { sequences, tokens } = self.capacity();
        let tail: Vec<usize> = widest(sequences, tokens);
        if tail.is_empty() {
            return Ok(());
        }
        let ids = vec![0; tokens];
        let parts: Vec<(usize, &[u32])> = tail.iter().map(|new| &ids[..*new]).enumerate().collect();
        let ends = tail.iter().scan(0, |end, new| {
            *end += *new as u32;
            Some(*end - 1)
        });
        let ends: Vec<u32> = ends.collect();
        // Twice: where weights come from other ranks, some of the second pass's come before the first one's are gone.
        for _ in 0..2 {
            for (sequence, new) in tail.iter().enumerate() {
                self.hold(sequence, &ids[*new..]);
            }
            self.feed_all(&parts, &ends)?;
            for sequence in 0..sequences {
                self.rewind(sequence, &[]);
            }
        }
        Ok(())
    }
}

/// Tokens of each sequence in the widest pass over a cache: one, and of the last ones as many more as a pass takes.
fn widest(sequences: usize, tokens: usize) -> Vec<usize> {
    if tokens == 0 {
        return Vec::new();
    }
    let mut tail = vec![1; sequences];
    let mut room = PREFILL.saturating_sub(sequences);
    for new in tail.iter_mut().rev() {
        let more = room.min(tokens - 1);
        *new += more;
        room -= more;
    }
    tail
}

/// How many tokens of which sequences make the next pass, and its rows behind which a sequence wants to go on. Answers under
/// way have their token in each; prompts share the rest, the first ones whole.
fn shares(running: &[Option<Running>]) -> (Vec<(usize, usize)>, Vec<u32>) {
    let pending = |of: &Option<Running>| of.as_ref().map_or(0, |of| of.ids.len() - of.fed);
    let answers = running.iter().filter(|of| pending(of) == 1).count();
    let mut room = PREFILL.saturating_sub(answers).max(1);
    let (mut shares, mut rows, mut at) = (Vec::new(), Vec::new(), 0);
    for (sequence, of) in running.iter().enumerate() {
        let wanted = pending(of);
        let tokens = if wanted == 1 { 1 } else { wanted.min(room) };
        if tokens == 0 {
            continue;
        }
        room -= if wanted == 1 { 0 } else { tokens };
        at += tokens as u32;
        shares.push((sequence, tokens));
        if tokens == wanted {
            rows.push(at - 1);
        }
    }
    if rows.is_empty() && at > 0 {
        // A pass ends with logits, wanted or not.
        rows.push(at - 1);
    }
    (shares, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_config::plan::GenerationPlan;

    fn running(tokens: usize, fed: usize) -> Option<Running> {
        let plan = GenerationPlan {
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 8,
            repetition_penalty: 1.0,
            skip_special_tokens: true,
            seed: 1,
        };
        Some(Running { number: 0, ids: vec![0; tokens], prompt: tokens, fed, sampler: Sampler::new(plan) })
    }

    #[test]
    fn the_widest_pass_is_as_wide_as_passes_get() {
        assert_eq!(widest(1, 40), [40]);
        assert_eq!(widest(1, 4000), [PREFILL]);
        assert_eq!(widest(4, 200), [1, 111, 200, 200]);
        assert_eq!(widest(PREFILL + 8, 9), [1; PREFILL + 8]);
        assert_eq!((widest(0, 9), widest(3, 0)), (vec![], vec![]));
        // Prompts that end together beside an answer under way.
        let (pass, _) = shares(&[running(9, 8), running(200, 0), running(200, 0), running(200, 0)]);
        assert_eq!(pass.iter().map(|(_, tokens)| tokens).sum::<usize>(), widest(4, 200).iter().sum::<usize>());
    }

    #[test]
    fn a_pass_takes_every_answer_and_prompts_up_to_its_length() {
        let (pass, rows) = shares(&[running(9, 8), None, running(600, 0), running(5, 4), running(100, 0)]);
        assert_eq!(pass, [(0, 1), (2, PREFILL - 2), (3, 1)]);
        assert_eq!(rows, [0, PREFILL as u32 - 1]);
        let (pass, rows) = shares(&[running(9, 8), None, running(600, PREFILL - 2), running(5, 4), running(100, 0)]);
        assert_eq!(pass, [(0, 1), (2, 90), (3, 1), (4, 100)]);
        assert_eq!(rows, [0, 90, 91, 191]);
        assert_eq!(shares(&[None, None]), (vec![], vec![]));
    }
}
