//! Feeds tokens through the model and picks the next one, keeping what earlier tokens left behind.

use crate::Sampler;
use ferrotune_model::{Batch, Capacity, KvCache, Model, Stages};
use ferrotune_tensor::{DType, Device, Fault, Kind, Tape, Tensor, Var};
use std::ops::ControlFlow;
use std::rc::Rc;

/// Tokens that go through the model at a time: bounds the memory of long prompts.
pub(crate) const PREFILL: usize = 512;

/// Tokens that are scored at a time: their logits are there at once, each as wide as the vocabulary.
const SCORED: usize = 128;

/// Why generation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// No token to begin with.
    #[error("the prompt is empty: nothing to continue")]
    EmptyPrompt,
    /// Longer than the cache.
    #[error("the prompt has {tokens} tokens and there is room for {room}; shorten it or raise cutoff_len")]
    TooLong {
        /// Of the prompt.
        tokens: usize,
        /// Of the cache.
        room: usize,
    },
    /// The device gave up.
    #[error(transparent)]
    Device(#[from] Fault),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its turn.
    EndOfTurn,
    /// So many tokens were asked for.
    Length,
    /// The listener said so.
    Interrupted,
}

/// Continues token sequences with one model.
pub struct Generator<'a> {
    model: &'a Model,
    stages: &'a dyn Stages,
    device: Device,
    cache: Rc<KvCache>,
    /// The tokens whose keys and values the cache holds, sequence by sequence.
    held: Vec<Vec<u32>>,
}

impl<'a> Generator<'a> {
    /// Allocates a cache for a sequence of up to `tokens` tokens. Where the model lies on several ranks, all of them
    /// do with their generators what one does, in the same order: each step passes through all.
    pub fn new(model: &'a Model, stages: &'a dyn Stages, device: &Device, tokens: usize) -> Self {
        Self::of_several(model, stages, device, Capacity { sequences: 1, tokens })
    }

    /// The same for several sequences at once, which [`Generator::generate_all`] continues.
    pub fn of_several(model: &'a Model, stages: &'a dyn Stages, device: &Device, capacity: Capacity) -> Self {
        let cache = Rc::new(KvCache::new(device, model.config(), model.activations(), stages.here(), capacity));
        Self { model, stages, device: device.clone(), cache, held: vec![Vec::new(); capacity.sequences] }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn capacity(&self) -> Capacity {
        self.cache.capacity()
    }

    /// Forgets all of a sequence but the beginning that it shares with `ids`, and says how long that is.
    pub(crate) fn rewind(&mut self, sequence: usize, ids: &[u32]) -> usize {
        let held = &mut self.held[sequence];
        let common = held.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.cache.truncate(sequence, common);
        held.truncate(common);
        common
    }

    /// That a prompt has tokens, and not too many.
    pub(crate) fn check(&self, ids: &[u32]) -> Result<(), InferError> {
        let room = self.capacity().tokens;
        match ids.len() {
            0 => Err(InferError::EmptyPrompt),
            tokens if tokens > room => Err(InferError::TooLong { tokens, room }),
            _ => Ok(()),
        }
    }

    /// Logits of the token after `ids`. Tokens that the cache still holds from earlier calls are not computed again.
    ///
    /// # Errors
    /// If `ids` is empty or longer than the cache, or if memory runs out.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, InferError> {
        Ok(self.behind(ids)?.to_f32())
    }

    /// The same where they were made, `[1, vocab]`.
    fn behind(&mut self, ids: &[u32]) -> Result<Tensor, InferError> {
        self.check(ids)?;
        let common = self.rewind(0, &ids[..ids.len() - 1]);
        let mut rest = &ids[common..];
        while rest.len() > PREFILL {
            let (part, later) = rest.split_at(PREFILL);
            self.feed(part)?;
            rest = later;
        }
        self.feed(rest)
    }

    /// Log-probability of each of `ids` but the first, given those before it.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>, InferError> {
        self.check(ids)?;
        self.rewind(0, &[]);
        let mut scores = Vec::with_capacity(ids.len());
        for (nth, part) in ids.chunks(SCORED).enumerate() {
            let rows: Vec<u32> = (0..part.len() as u32).collect();
            let logits = self.feed_all(&[(0, part)], &rows)?.to_f32();
            let next = ids.iter().skip(nth * SCORED + 1);
            let vocabulary = logits.len() / part.len();
            scores.extend(logits.chunks_exact(vocabulary).zip(next).map(|(row, &id)| log_softmax_at(row, id)));
        }
        Ok(scores)
    }

    fn feed(&mut self, ids: &[u32]) -> Result<Tensor, InferError> {
        self.feed_all(&[(0, ids)], &[ids.len() as u32 - 1])
    }

    /// Goes on with the tokens of some sequences, in rising order; logits `[rows, vocab]` behind those of all these
    /// tokens that `rows` names.
    pub(crate) fn feed_all(&mut self, parts: &[(usize, &[u32])], rows: &[u32]) -> Result<Tensor, InferError> {
        let batch = Rc::new(Batch::continuing(&self.device, self.model.config(), parts, self.cache.clone()));
        let logits = self.pass(&batch, rows);
        self.device.check()?;
        for (sequence, ids) in parts {
            self.hold(*sequence, ids);
        }
        Ok(logits)
    }

    /// Says that a sequence's keys and values of `ids` are in the cache now, behind those of its earlier tokens.
    pub(crate) fn hold(&mut self, sequence: usize, ids: &[u32]) {
        self.cache.advance(sequence, ids.len());
        self.held[sequence].extend_from_slice(ids);
    }

    /// One pass through all stages.
    fn pass(&self, batch: &Rc<Batch>, rows: &[u32]) -> Tensor {
        let (model, device, here) = (self.model, &self.device, self.stages.here());
        let tape = Tape::forward_only(device, self.stages);
        let input = (here.start > 0).then(|| {
            let stream = device.empty([batch.tokens(), model.config().hidden_size], model.activations(), Kind::Act);
            self.stages.receive(&stream);
            Var::constant(stream)
        });
        let wanted = Tensor::from_u32(device, rows, Kind::Input);
        let output = model.predict(&tape, batch, here.clone(), input, &wanted);
        let logits = if here.end < model.segments() {
            self.stages.hand_on(&output);
            device.empty([rows.len(), model.config().vocab_size], DType::F32, Kind::Act)
        } else {
            output
        };
        self.stages.share(&logits);
        logits
    }

    /// Continues `prompt` until a token of `ends`, the sampler's limit, the cache's end or the listener's word. `hear` is
    /// told each token as it comes, the ending one excepted.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        ends: &[u32],
        sampler: &mut Sampler,
        mut hear: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, Stop), InferError> {
        let mut ids = prompt.to_vec();
        loop {
            let answer = ids.len() - prompt.len();
            if answer >= sampler.max_tokens() || ids.len() >= self.capacity().tokens && answer > 0 {
                return Ok((ids.split_off(prompt.len()), Stop::Length));
            }
            let next = sampler.pick(&self.behind(&ids)?, &ids);
            self.device.check()?;
            if ends.contains(&next) {
                return Ok((ids.split_off(prompt.len()), Stop::EndOfTurn));
            }
            ids.push(next);
            if hear(next).is_break() {
                return Ok((ids.split_off(prompt.len()), Stop::Interrupted));
            }
        }
    }
}

/// Logarithm of the softmax of `logits` at one place, added up in f64.
fn log_softmax_at(logits: &[f32], at: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    // An id beyond the vocabulary has no probability.
    let own = logits.get(at as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit - max));
    (own - sum.ln()) as f32
}
