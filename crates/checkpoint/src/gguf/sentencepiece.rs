//! The SentencePiece kind of tokenizer in a GGUF (`tokenizer.ggml.model` = `llama`): pieces with
//! scores instead of merges.
//!
//! It becomes BPE with byte fallback, as Hugging Face's conversion of Llama's tokenizer does: a
//! pair may merge if the result is a piece, and the better the piece's score, the earlier.

use std::collections::HashMap;

use serde_json::{Value, json};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Merges in order of priority.
pub(crate) fn merges<'a>(tokens: &'a [String], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let first = merges.len();
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((score, (l, r), left, right));
            }
        }
        merges[first..].sort_by_key(|&(_, ids, _, _)| ids);
    }
    // Stable, so that pieces of one score keep their order.
    merges.sort_by(|a, b| {
        let length = |s: &str| s.chars().count();
        (b.0.total_cmp(&a.0)).then_with(|| length(b.2).cmp(&length(a.2))).then_with(|| length(b.3).cmp(&length(a.3)))
    });
    merges.into_iter().map(|(_, _, left, right)| (left, right)).collect()
}

/// `normalizer`: spaces become SentencePiece's, with one before the text.
pub(crate) fn normalizer(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    match prefix {
        true => json!({
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace],
        }),
        false => replace,
    }
}

/// `decoder`: the inverse.
pub(crate) fn decoder(prefix: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_scores() {
        let tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc"].map(String::from);
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let expected = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")];
        assert_eq!(merges(&tokens, &scores), expected);
    }
}
