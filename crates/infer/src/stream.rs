//! Turns tokens into text as they come, never showing half a character.

/// Text of a growing list of tokens.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// Tokens before this are shown for good and left out of further decoding.
    from: usize,
    shown: usize,
}

/// Tokens decoded together: enough that a decoder's treatment of its first token doesn't show at the seam.
const WINDOW: usize = 24;

impl TextStream {
    /// Adds a token and returns the text that is now certain. `decode` turns ids into text.
    pub fn push(&mut self, id: u32, decode: impl Fn(&[u32]) -> String) -> String {
        self.ids.push(id);
        let text = decode(&self.ids[self.from..]);
        // A token may hold part of a character; the rest comes with the next ones.
        if text.ends_with('\u{fffd}') || text.len() < self.shown || !text.is_char_boundary(self.shown) {
            return String::new();
        }
        let new = text[self.shown..].to_owned();
        self.shown = text.len();
        if self.ids.len() - self.from > 2 * WINDOW {
            self.from = self.ids.len() - WINDOW;
            self.shown = decode(&self.ids[self.from..]).len();
        }
        new
    }

    /// What is left when no more tokens come.
    pub fn finish(self, decode: impl Fn(&[u32]) -> String) -> String {
        let text = decode(&self.ids[self.from..]);
        text.get(self.shown..).unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_split_over_tokens_come_whole() {
        let bytes = "a\u{e9}\u{4f60}\u{1f600} the end of it, which is long enough to pass the window a few times over"
            .as_bytes();
        let decode = |ids: &[u32]| {
            let raw: Vec<u8> = ids.iter().map(|&i| bytes[i as usize]).collect();
            String::from_utf8_lossy(&raw).into_owned()
        };
        let mut stream = TextStream::default();
        let mut text = String::new();
        for i in 0..bytes.len() as u32 {
            let piece = stream.push(i, decode);
            assert!(!piece.contains('\u{fffd}'));
            text.push_str(&piece);
        }
        text.push_str(&stream.finish(decode));
        assert_eq!(text.as_bytes(), bytes);
    }
}
