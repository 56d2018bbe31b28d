//! From the recipe's choice to a template that fits a tokenizer, and a tokenizer that fits it.

use ferrotune_config::plan::{DataPlan, TemplateChoice};

use super::table::{Row, TABLE};
use super::{Slot, Template, ToolText, derive};
use crate::clock::Moment;
use crate::encode::EncodeError;
use crate::tokenizer::Tokenizer;
use crate::tools::ToolFormat;

/// What a recipe says about the template.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateOptions {
    /// Which one.
    pub choice: TemplateChoice,
    /// Format of tools and calls instead of the template's.
    pub tool_format: Option<String>,
    /// System prompt of conversations without one instead of the template's.
    pub default_system: Option<String>,
    /// `Some(true)`: reasoning is trained; `Some(false)`: it is removed, and an empty block ends
    /// the prompt; `None`: a missing block is completed in the prompt.
    pub enable_thinking: Option<bool>,
    /// Keep the reasoning of earlier turns.
    pub preserve_thinking: bool,
    /// Only the last answer of a conversation is trained on.
    pub mask_history: bool,
    /// A loss on prompts too; not every template allows it.
    pub train_on_prompt: bool,
    /// Today, for chat templates and tool formats that write the date.
    pub now: Moment,
}

impl TemplateOptions {
    /// The template called `name`, everything else by default.
    pub fn named(name: &str) -> Self {
        Self {
            choice: TemplateChoice::Named(name.to_owned()),
            tool_format: None,
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            mask_history: false,
            train_on_prompt: false,
            now: Moment::now(),
        }
    }

    /// The options of a plan.
    pub fn from_plan(plan: &DataPlan, now: Moment) -> Self {
        Self {
            choice: plan.template.clone(),
            tool_format: plan.tool_format.clone(),
            default_system: plan.default_system.clone(),
            enable_thinking: plan.enable_thinking,
            preserve_thinking: plan.preserve_thinking,
            mask_history: plan.mask_history,
            train_on_prompt: plan.train_on_prompt,
            now,
        }
    }
}

/// A template and what was done to get it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The template.
    pub template: Template,
    /// Tokens that joined the tokenizer's vocabulary; the embedding must have room for them.
    pub new_tokens: Vec<String>,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

impl Template {
    /// The template of `options`, with eos, pad and stop tokens set in `tokenizer` as it needs them.
    ///
    /// # Errors
    /// Unknown names (the nearest is named), options that the template can't do, tokens that the
    /// tokenizer lacks, a chat template that can't be taken apart.
    pub fn resolve(options: &TemplateOptions, tokenizer: &mut Tokenizer) -> Result<Resolved, EncodeError> {
        let mut notes = Vec::new();
        let mut template = choose(options, tokenizer, &mut notes)?;
        template.now = options.now;
        if options.train_on_prompt && template.efficient_eos {
            return Err(EncodeError::TrainOnPrompt { template: template.name });
        }
        if let Some(name) = &options.tool_format {
            let format = ToolFormat::named(name)?;
            template.calls = format;
            template.tools = ToolText::Format(format);
            template.function = answer(template.efficient_eos);
        }
        if let Some(system) = &options.default_system {
            template.default_system.clone_from(system);
        }
        template.mask_history = options.mask_history;
        if template.is_reasoning() {
            template.enable_thinking = options.enable_thinking;
            template.preserve_thinking = options.preserve_thinking;
        }
        let new_tokens = template.fix_special_tokens(tokenizer);
        if !new_tokens.is_empty() {
            notes.push(format!(
                "{} joined the vocabulary for template `{}`; set `resize_vocab: true` if the model has no row for them",
                new_tokens.join(", "),
                template.name
            ));
        }
        template.check_tokens(tokenizer, &mut notes)?;
        Ok(Resolved { template, new_tokens, notes })
    }

    /// Ids that end an answer: the eos token's, then the stop words'.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let eos = tokenizer.special().eos.iter().map(|eos| eos.id);
        let mut ids: Vec<u32> = eos.collect();
        for id in self.stop_words.iter().filter_map(|word| tokenizer.token_to_id(word)) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// Ids that end an answer where answers are evaluated: with LLaMA-Factory also those of the special tokens that the
    /// model's files name without a role.
    pub fn answer_ends(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = self.stop_ids(tokenizer);
        for id in tokenizer.additional() {
            if !ids.contains(id) {
                ids.push(*id);
            }
        }
        ids
    }

    fn fix_special_tokens(&self, tokenizer: &mut Tokenizer) -> Vec<String> {
        let mut new = Vec::new();
        let mut stop_words = self.stop_words.as_slice();
        if self.replace_eos
            && let Some((first, rest)) = stop_words.split_first()
        {
            stop_words = rest;
            if tokenizer.special().eos.as_ref().is_none_or(|eos| eos.text != *first) && tokenizer.set_eos(first) {
                new.push(first.clone());
            }
        }
        const DEFAULT_EOS: &str = "<|endoftext|>";
        if tokenizer.special().eos.is_none() && tokenizer.set_eos(DEFAULT_EOS) {
            new.push(DEFAULT_EOS.to_owned());
        }
        tokenizer.pad_with_eos();
        for word in stop_words {
            if tokenizer.add_tokens(std::slice::from_ref(word), true) > 0 {
                new.push(word.clone());
            }
        }
        new
    }

    /// Every token that a slot names must be there; the unk token stands in for it, with a note.
    fn check_tokens(&self, tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<(), EncodeError> {
        let parts = [&self.prefix, &self.system, &self.user, &self.assistant, &self.function, &self.observation];
        let mut missing = Vec::new();
        for slot in parts.into_iter().flatten() {
            if let Slot::Token(token) = slot
                && tokenizer.token_to_id(token).is_none()
                && !missing.contains(&token)
            {
                if tokenizer.special().unk.is_none() {
                    return Err(EncodeError::MissingToken { template: self.name.clone(), token: token.clone() });
                }
                missing.push(token);
            }
        }
        notes.extend(missing.into_iter().map(|token| {
            format!("this tokenizer lacks `{token}` of template `{}`; its unknown token stands for it", self.name)
        }));
        Ok(())
    }
}

fn choose(options: &TemplateOptions, tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Template, EncodeError> {
    let name = match (&options.choice, tokenizer.chat_template()) {
        (TemplateChoice::Named(name), _) => name,
        (TemplateChoice::Model, Some(source)) => return derive::derive(source, tokenizer, options.now),
        (TemplateChoice::Model, None) => {
            notes.push(
                "no `template` is set and the model has no chat template: question and answer are written one after \
                 the other, as template `empty` does"
                    .to_owned(),
            );
            "empty"
        }
    };
    Ok(Template::from(row(name)?))
}

/// The row of the table called `name`.
fn row(name: &str) -> Result<&'static Row, EncodeError> {
    TABLE.iter().find(|row| row.name == name).ok_or_else(|| EncodeError::UnknownTemplate {
        name: name.to_owned(),
        nearest: crate::error::nearest(name, Template::names()).map(str::to_owned),
    })
}

impl Template {
    /// Whether the table has a template of this name.
    ///
    /// # Errors
    /// If it doesn't, with the name that looks most like it.
    pub fn known(name: &str) -> Result<(), EncodeError> {
        row(name).map(|_| ())
    }
}

/// An answer: its content and the eos token, unless that is left to the end of the row.
fn answer(efficient_eos: bool) -> Vec<Slot<String>> {
    let content = Slot::Text("{{content}}".to_owned());
    if efficient_eos { vec![content] } else { vec![content, Slot::Eos] }
}

impl From<&Row> for Template {
    fn from(row: &Row) -> Self {
        let owned = |slots: &[Slot<&str>]| slots.iter().map(|slot| slot.owned()).collect::<Vec<_>>();
        let owned_or = |slots: &[Slot<&str>], other: &[Slot<String>]| {
            if slots.is_empty() { other.to_vec() } else { owned(slots) }
        };
        let pair = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        let user = owned(row.user);
        let assistant = owned_or(row.assistant, &answer(row.efficient_eos));
        Self {
            name: row.name.to_owned(),
            class: row.class,
            prefix: owned(row.prefix),
            system: owned(row.system),
            function: owned_or(row.function, &assistant),
            observation: owned_or(row.observation, &user),
            user,
            assistant,
            calls: row.tools,
            tools: match row.tools_around {
                Some((before, after)) => ToolText::Around(before, after),
                None => ToolText::Format(row.tools),
            },
            default_system: row.default_system.to_owned(),
            stop_words: row.stop_words.iter().map(|&word| word.to_owned()).collect(),
            thought: pair(row.thought),
            call: pair(row.call),
            efficient_eos: row.efficient_eos,
            replace_eos: row.replace_eos,
            replace_chat_template: row.replace_chat_template,
            enable_thinking: Some(true),
            preserve_thinking: false,
            mask_history: false,
            now: Moment { unix_seconds: 0 },
        }
    }
}

impl Slot<&str> {
    fn owned(self) -> Slot<String> {
        match self {
            Slot::Text(text) => Slot::Text(text.to_owned()),
            Slot::Token(token) => Slot::Token(token.to_owned()),
            Slot::Bos => Slot::Bos,
            Slot::Eos => Slot::Eos,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_make_sense() {
        let names: Vec<_> = Template::names().collect();
        assert!(names.is_sorted() && names.len() > 80, "{names:?}");
        for row in TABLE {
            let fills = |slots: &[Slot<&str>]| {
                slots.is_empty()
                    || slots.iter().any(|slot| matches!(slot, Slot::Text(text) if text.contains("{{content}}")))
            };
            let parts = [row.system, row.user, row.assistant, row.function, row.observation];
            assert!(parts.into_iter().all(fills), "{}: a part without content", row.name);
            assert!(!row.prefix.iter().any(|slot| matches!(slot, Slot::Text(text) if text.contains("{{"))));
            assert!(!row.replace_eos || !row.stop_words.is_empty(), "{}: no word to become eos", row.name);
        }
    }
}
