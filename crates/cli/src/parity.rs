//! Training's prompts beside the server's, in words.

use crate::ui;
use ferrotune_data::encode::EncodeError;
use ferrotune_data::parity::{Change, Compared, Parity, changes};
use ferrotune_data::serving::ServedPrompt;
use ferrotune_data::tokenizer::Tokenizer;

/// Tokens of what both share that are shown around a difference.
const AROUND: usize = 4;
/// Tokens of a difference that are shown.
const SHOWN: usize = 40;

/// How many rows are the same and in what the others differ, in a line; `of` is how many there are, if not all of them were
/// compared.
pub(crate) fn summary(parity: &Parity, of: Option<u64>) -> String {
    let mut parts = vec![format!("{} identical", parity.identical)];
    parts.extend(parity.differ.iter().map(|(part, rows)| format!("{rows} differ in {}", part.words())));
    if let Some((rows, _)) = &parity.refused {
        parts.push(format!("{rows} can't be written by the model's template"));
    }
    let of = of.map(|of| format!(" of {}", ui::grouped(of as usize))).unwrap_or_default();
    format!("{}{of} rows beside the model's own chat template: {}", ui::grouped(parity.rows), parts.join(", "))
}

/// How a server is to be called.
pub(crate) fn calling(served: &ServedPrompt) -> String {
    let kwargs = serde_json::Value::Object(served.kwargs.clone());
    let how = match (served.is_own, served.kwargs.is_empty()) {
        (true, true) => "the model's own chat template as it is".to_owned(),
        (true, false) => format!("the model's own chat template with chat_template_kwargs {kwargs}"),
        (false, _) => "a chat template written for it".to_owned(),
    };
    match (served.tried_rows, served.agrees.0) {
        (true, _) => format!("{how} writes {} of {} prompts as in training", served.agrees.0, served.agrees.1),
        (false, 0) => format!("{how} doesn't write a plain question as in training, and all rows have tools"),
        (false, _) => format!("{how} writes a plain question as in training, but all rows have tools"),
    }
}

/// Where two rows differ, a token a word: what both have, what training alone has (-) and what the server alone has (+).
pub(crate) fn difference(found: &Compared, tokenizer: &Tokenizer) -> Result<String, EncodeError> {
    let words = |ids: &[u32]| -> Result<String, EncodeError> {
        let word = |id: &u32| tokenizer.decode(&[*id], false).map(|text| format!("{text:?}"));
        let mut words = ids.iter().take(SHOWN).map(word).collect::<Result<Vec<_>, _>>()?;
        if ids.len() > SHOWN {
            words.push(format!("... {} more", ids.len() - SHOWN));
        }
        Ok(words.join(" "))
    };
    let list = changes(&found.trained, &found.served);
    let (mut lines, mut at) = (Vec::new(), 0);
    for (i, change) in list.iter().enumerate() {
        match change {
            Change::Both(ids) => {
                at += ids.len();
                let head = &ids[..ids.len().min(AROUND)];
                let tail = &ids[ids.len().saturating_sub(AROUND)..];
                match (i == 0, i + 1 == list.len()) {
                    (true, _) => lines.push(format!("        ... {}", words(tail)?)),
                    (_, true) => lines.push(format!("        {} ...", words(head)?)),
                    _ if ids.len() <= 2 * AROUND => lines.push(format!("        {}", words(ids)?)),
                    _ => lines.push(format!("        {} ... {}", words(head)?, words(tail)?)),
                }
            }
            Change::Differ(trained, served) => {
                lines.push(format!("  {at:>5} - {}", words(trained)?));
                lines.push(format!("        + {}", words(served)?));
                at += trained.len();
            }
        }
    }
    Ok(lines.join("\n"))
}

/// What two rows differ in.
pub(crate) fn parts(found: &Compared) -> String {
    let words: Vec<&str> = found.differs.iter().map(|part| part.words()).collect();
    words.join(" and in ")
}
