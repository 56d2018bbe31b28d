//! A command as users type it, in words: quotes keep spaces together, as in `ssh -o "ProxyCommand=nc %h %p"`.

use anyhow::{Result, bail};

/// Splits at spaces outside quotes. A backslash keeps the next character as it is, but for single quotes, which keep all.
///
/// # Errors
/// If a quote isn't closed.
pub(super) fn split(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        bail!("a quote ({open}) is not closed in: {text}");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn quotes_keep_spaces_together() {
        let found = split(r#" ssh  -o "ProxyCommand=nc %h \"%p\"" -i 'a \key' b\ c '' "#).unwrap();
        assert_eq!(found, ["ssh", "-o", "ProxyCommand=nc %h \"%p\"", "-i", r"a \key", "b c", ""]);
        assert!(split("").unwrap().is_empty());
        assert!(split("ssh -o 'x").unwrap_err().to_string().contains("not closed"));
    }
}
