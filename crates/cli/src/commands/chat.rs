//! `chat`: a conversation in the terminal.

use crate::failure::Failure;
use crate::{gpus, prepare, ui};
use ferrotune_config::Verb;
use ferrotune_config::plan::Plan;
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::encode::{EncodeOptions, Encoder};
use ferrotune_data::template::Template;
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_infer::{Generator, Sampler, Stop, TextStream};
use ferrotune_model::Model;
use ferrotune_train::engine::Engine;
use std::io::{BufRead, IsTerminal, stdin};
use std::ops::ControlFlow;

/// Longest conversation in tokens, where the model and the recipe allow as much.
const LONGEST: usize = 8192;

/// Talks until the input ends or the user types `exit`.
pub(crate) fn chat(args: &[String]) -> Result<(), Failure> {
    let resolved = prepare::resolve(args, Verb::Chat)?;
    let plan = &resolved.plan;
    let device = gpus::device(0, plan.parallel.use_cpu)?;
    let open = prepare::open_for_answers(&resolved, &device)?;
    let mut talk = Talk::new(plan, &open.model, &open.engine, (&open.tokenizer, &open.template), LONGEST);
    ui::say("Type a message; `clear` forgets the conversation, `exit` ends it.");
    loop {
        if stdin().is_terminal() {
            ui::text("\nUser: ")?;
        }
        // Bytes, as a paste or a pipe may hold some that are no UTF-8: they become U+FFFD, and the talk goes on.
        let mut line = Vec::new();
        if stdin().lock().read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match String::from_utf8_lossy(&line).trim() {
            "" => {}
            "exit" | "quit" => return Ok(()),
            "clear" => {
                talk.clear();
                ui::say("The conversation is forgotten.");
            }
            message => {
                if stdin().is_terminal() {
                    ui::text("Assistant: ")?;
                }
                talk.answer(message, ui::text)?;
                ui::line("")?;
            }
        }
    }
}

/// A conversation with a model.
pub(crate) struct Talk<'a> {
    plan: &'a Plan,
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    generator: Generator<'a>,
    conversation: Conversation,
}

impl<'a> Talk<'a> {
    /// A conversation of up to `longest` tokens, or as many as the model takes.
    pub(crate) fn new(
        plan: &'a Plan,
        model: &'a Model,
        engine: &'a Engine,
        words: (&'a Tokenizer, &'a Template),
        longest: usize,
    ) -> Self {
        let (tokenizer, template) = words;
        let capacity = model.config().max_position_embeddings.min(longest);
        let generator = Generator::new(model, engine, engine.device(), capacity);
        let mut talk = Self { plan, tokenizer, template, generator, conversation: Conversation::default() };
        talk.clear();
        talk
    }

    /// Forgets what was said.
    pub(crate) fn clear(&mut self) {
        let system = self.plan.data.default_system.clone().unwrap_or_default();
        self.conversation = Conversation { system, ..Conversation::default() };
    }

    /// Answers `message`, handing on the text as it comes; returns the whole answer.
    pub(crate) fn answer(
        &mut self,
        message: &str,
        mut hear: impl FnMut(&str) -> std::io::Result<()>,
    ) -> Result<String, Failure> {
        self.conversation.messages.push(Message { role: Role::User, content: message.to_owned() });
        let options = EncodeOptions::from_plan(&self.plan.data);
        let prompt = Encoder::new(self.tokenizer, self.template, &options).encode_prompt(&self.conversation);
        let prompt =
            prompt.map_err(|reason| Failure::Other(anyhow::anyhow!("the message cannot be written: {reason}")))?;
        let ends = self.template.stop_ids(self.tokenizer);
        let skip = self.plan.generation.skip_special_tokens;
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, skip).unwrap_or_default();
        let (mut stream, mut answer, mut failed) = (TextStream::default(), String::new(), None);
        let mut sampler = Sampler::new(self.plan.generation.clone());
        let (_, stop) = self.generator.generate(&prompt, &ends, &mut sampler, |token| {
            let piece = stream.push(token, decode);
            answer.push_str(&piece);
            match hear(&piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let rest = stream.finish(decode);
        hear(&rest)?;
        answer.push_str(&rest);
        if stop == Stop::Length {
            tracing::debug!("the answer was cut at max_new_tokens");
        }
        self.conversation.messages.push(Message { role: Role::Assistant, content: answer.clone() });
        Ok(answer)
    }
}
