//! Conversations and texts to token ids and labels.
//!
//! Training and inference share one way of writing: [`Encoder::encode`] gives a row to train on,
//! [`Encoder::encode_prompt`] the same turns up to where an answer begins, and [`Encoder::encode_answers`] one prompt with
//! the answers to it that are compared.

mod error;
mod pretrain;

use ferrotune_config::plan::DataPlan;

use crate::conversation::Conversation;
use crate::template::{Context, History, Template, check_turns};
use crate::tokenizer::Tokenizer;

pub use error::{DropReason, EncodeError};
pub use pretrain::{Blocks, GROUP_ROWS, TextEncoder};

/// The label of a token without a loss.
pub const IGNORE: i32 = -100;

/// How rows are cut and labelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Longest row in tokens.
    pub cutoff_len: usize,
    /// A loss on prompts too.
    pub train_on_prompt: bool,
    /// A loss on the last answer only; when a row is too long, its last turns are kept.
    pub mask_history: bool,
}

impl EncodeOptions {
    /// The options of a plan.
    pub fn from_plan(plan: &DataPlan) -> Self {
        Self { cutoff_len: plan.cutoff_len, train_on_prompt: plan.train_on_prompt, mask_history: plan.mask_history }
    }
}

/// A row to train on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// One a token, unshifted: the token's own id where there is a loss, [`IGNORE`] elsewhere.
    pub labels: Vec<i32>,
    /// Tokens left out because of `cutoff_len`.
    pub cut_tokens: usize,
    /// Whether the last answer of the row lost its end, so that the row breaks off.
    pub eos_lost: bool,
}

/// Writes conversations with one tokenizer, template and set of options.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    options: &'a EncodeOptions,
}

impl<'a> Encoder<'a> {
    /// An encoder; `template` was resolved for `tokenizer`.
    pub fn new(tokenizer: &'a Tokenizer, template: &'a Template, options: &'a EncodeOptions) -> Self {
        Self { tokenizer, template, options }
    }

    /// Ids and labels of a whole conversation, which ends with an answer.
    ///
    /// # Errors
    /// The reason why the row can't be used.
    pub fn encode(&self, conversation: &Conversation) -> Result<Encoded, DropReason> {
        check_turns(&conversation.messages, true)?;
        let drop_history = self.options.mask_history && !self.template.preserve_thinking;
        let turns = self.write(conversation, if drop_history { History::Dropped } else { History::Completed })?;
        Ok(self.cut_and_label(&turns))
    }

    /// Rows of one prompt with each of some answers, which are the last turns of `conversations`: labels on the answer
    /// alone, whatever the options say. The answers share one room behind the prompt, so that it is cut at the same place
    /// in all rows: the longest of them decides.
    ///
    /// # Errors
    /// The reason why the row can't be used.
    pub fn encode_answers<const N: usize>(
        &self,
        conversations: [&Conversation; N],
    ) -> Result<[Encoded; N], DropReason> {
        let late_eos = self.template.efficient_eos.then(|| self.tokenizer.special().eos.as_ref()).flatten();
        let mut written: [(Vec<u32>, Vec<u32>); N] = std::array::from_fn(|_| Default::default());
        for (conversation, (prompt, answer)) in conversations.iter().zip(&mut written) {
            check_turns(&conversation.messages, true)?;
            let history = if self.template.preserve_thinking { History::Kept } else { History::Dropped };
            let mut turns = self.write(conversation, history)?;
            *answer = turns.pop().unwrap_or_default();
            answer.extend(late_eos.map(|eos| eos.id));
            *prompt = turns.concat();
        }
        // The first prompt goes for all, as in LLaMA-Factory: thinking can make a difference.
        let prompt = std::mem::take(&mut written[0].0);
        let longest = written.iter().map(|(_, answer)| answer.len()).max().unwrap_or(0);
        let (prompt_len, answer_len) = shares(prompt.len(), longest, self.options.cutoff_len);
        Ok(written.map(|(_, answer)| {
            let kept = &answer[..answer_len.min(answer.len())];
            Encoded {
                input_ids: [&prompt[..prompt_len], kept].concat(),
                labels: std::iter::repeat_n(IGNORE, prompt_len).chain(kept.iter().map(|&id| label(id))).collect(),
                cut_tokens: prompt.len() - prompt_len + answer.len() - kept.len(),
                eos_lost: kept.len() < answer.len(),
            }
        }))
    }

    /// Ids of a chat that waits for an answer, up to where the answer begins. Nothing is cut.
    ///
    /// # Errors
    /// The reason why the chat can't be written.
    pub fn encode_prompt(&self, conversation: &Conversation) -> Result<Vec<u32>, DropReason> {
        check_turns(&conversation.messages, false)?;
        // Reasoning that is preserved is completed, as it was in training: LLaMA-Factory's chat asks otherwise than it trains.
        let history = if self.template.preserve_thinking { History::Completed } else { History::Dropped };
        Ok(self.write(conversation, history)?.concat())
    }

    fn write(&self, conversation: &Conversation, history: History) -> Result<Vec<Vec<u32>>, DropReason> {
        let context = Context { tokenizer: self.tokenizer, history };
        self.template.write_turns(conversation, &context)
    }

    /// Exchange after exchange until the row is full, from the end if history is masked.
    fn cut_and_label(&self, turns: &[Vec<u32>]) -> Encoded {
        let options = self.options;
        let late_eos = self.template.efficient_eos.then(|| self.tokenizer.special().eos.as_ref()).flatten();
        let exchanges: Vec<_> = turns.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect();
        let mut lengths = vec![(0, 0); exchanges.len()];
        let mut used = usize::from(self.template.efficient_eos);
        for nth in 0..exchanges.len() {
            if used >= options.cutoff_len {
                break;
            }
            let i = if options.mask_history { exchanges.len() - 1 - nth } else { nth };
            let (prompt, answer) = exchanges[i];
            lengths[i] = shares(prompt.len(), answer.len(), options.cutoff_len - used);
            used += lengths[i].0 + lengths[i].1;
        }
        let mut row = Encoded::default();
        for (i, (&(prompt, answer), &(prompt_len, answer_len))) in exchanges.iter().zip(&lengths).enumerate() {
            let first = if options.mask_history { i + 1 == exchanges.len() } else { i == 0 };
            row.input_ids.extend_from_slice(&prompt[..prompt_len]);
            row.input_ids.extend_from_slice(&answer[..answer_len]);
            if options.train_on_prompt {
                row.labels.extend(prompt[..prompt_len].iter().map(|&id| label(id)));
            } else {
                let begin = row.labels.len();
                row.labels.resize(begin + prompt_len, IGNORE);
                // With a late eos the first token of the next prompt teaches where an answer ends.
                if let (Some(eos), false, true) = (late_eos, first, prompt_len > 0) {
                    row.labels[begin] = label(eos.id);
                }
            }
            let trained = !options.mask_history || i + 1 == exchanges.len();
            row.labels.extend(answer[..answer_len].iter().map(|&id| if trained { label(id) } else { IGNORE }));
            row.cut_tokens += prompt.len() - prompt_len + answer.len() - answer_len;
        }
        let last = exchanges.iter().zip(&lengths).rev().find(|(_, kept)| kept.0 + kept.1 > 0);
        row.eos_lost = last.is_none_or(|((_, answer), kept)| kept.1 < answer.len());
        if let Some(eos) = late_eos {
            row.input_ids.push(eos.id);
            row.labels.push(label(eos.id));
        }
        row
    }
}

/// A token's id as its label. Ids of vocabularies are far below 2^31.
fn label(id: u32) -> i32 {
    i32::try_from(id).unwrap_or(i32::MAX)
}

/// How many tokens of a prompt and of an answer fit into `room`: a short side stays whole and the
/// other is cut; if neither is short, both are cut in proportion (LLaMA-Factory's rule).
fn shares(prompt: usize, answer: usize, room: usize) -> (usize, usize) {
    let most = if answer * 2 < room {
        room
    } else if prompt * 2 < room {
        room - prompt
    } else {
        // In f64 and rounded down, because the rounding decides which token is the last.
        (room as f64 * (answer as f64 / (prompt + answer) as f64)) as usize
    };
    let answer = answer.min(most);
    (prompt.min(room - answer), answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_exchanges_share_the_room() {
        assert_eq!(shares(10, 10, 100), (10, 10));
        assert_eq!(shares(200, 10, 100), (90, 10));
        assert_eq!(shares(10, 200, 100), (10, 90));
        assert_eq!(shares(300, 100, 100), (75, 25));
        assert_eq!(shares(0, 0, 1), (0, 0));
        for (prompt, answer, room) in [(7, 11, 3), (1, 1, 1), (1000, 3, 7), (3, 1000, 7), (50, 50, 99)] {
            let (p, a) = shares(prompt, answer, room);
            assert!(p + a <= room && p <= prompt && a <= answer);
        }
    }
}
