//! Plain text for stage `pt`: texts one after the other, cut into blocks of one length.

use super::EncodeError;
use crate::template::Template;
use crate::tokenizer::Tokenizer;

/// Rows that share blocks. The tail of a group that doesn't fill a block is left out.
pub const GROUP_ROWS: usize = 1000;

/// Writes texts for one tokenizer and template.
#[derive(Debug, Clone)]
pub struct TextEncoder<'a> {
    tokenizer: &'a Tokenizer,
    end: String,
    block_len: usize,
    packing: bool,
}

/// Rows of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    /// Ids of each row; every token is a label. With packing each has the full length.
    pub rows: Vec<Vec<u32>>,
    /// Tokens left out: the tail of the group, or what is beyond the length of a row.
    pub cut_tokens: usize,
}

impl<'a> TextEncoder<'a> {
    /// Blocks of `block_len` tokens (`packing`), or a row a text of at most so many.
    pub fn new(tokenizer: &'a Tokenizer, template: &Template, block_len: usize, packing: bool) -> Self {
        // Llama 3's eos token ends a turn; a document ends with another.
        let end = match template.name() {
            "llama3" => "<|end_of_text|>".to_owned(),
            _ => tokenizer.special().eos.as_ref().map(|eos| eos.text.clone()).unwrap_or_default(),
        };
        Self { tokenizer, end, block_len, packing }
    }

    /// The rows of up to [`GROUP_ROWS`] texts.
    ///
    /// # Errors
    /// If the tokenizer can't represent a text.
    pub fn encode_group<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Blocks, EncodeError> {
        let bos = self.tokenizer.special().bos.as_ref().filter(|_| self.tokenizer.adds_bos());
        let mut blocks = Blocks::default();
        let mut text_with_end = String::new();
        let mut ids = Vec::new();
        for text in texts {
            text_with_end.clear();
            if let (Some(bos), false) = (bos, self.packing) {
                text_with_end.push_str(&bos.text);
            }
            text_with_end.extend([text, &self.end]);
            self.tokenizer.encode_into(&text_with_end, &mut ids)?;
            if !self.packing {
                blocks.cut_tokens += ids.len().saturating_sub(self.block_len);
                ids.truncate(self.block_len);
                blocks.rows.push(std::mem::take(&mut ids));
            }
        }
        let mut whole = ids.chunks_exact(self.block_len.max(1));
        blocks.rows.extend(whole.by_ref().map(<[u32]>::to_vec));
        blocks.cut_tokens += whole.remainder().len();
        if let (Some(bos), true) = (bos, self.packing) {
            blocks.rows.iter_mut().filter_map(|row| row.first_mut()).for_each(|first| *first = bos.id);
        }
        Ok(blocks)
    }
}
