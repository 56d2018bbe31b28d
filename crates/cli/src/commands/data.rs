//! `data`: how rows are encoded. Needs only the tokenizer's files.

use crate::failure::Failure;
use crate::prepare::Resolved;
use crate::{parity, prepare, review, ui};
use ferrotune_config::Verb;
use ferrotune_config::plan::Stage;
use ferrotune_data::parity::Comparison;
use ferrotune_data::prepare::{conversations_at, json_lines, prepare as encode, sequences, spans};
use ferrotune_data::rows::Rows;
use ferrotune_data::template::Template;
use ferrotune_data::tokenizer::Tokenizer;
use std::io::{BufWriter, Write, stdout};

/// Prints rows as JSON lines, or coloured with the report.
pub(crate) fn data(args: &[String], json: bool, count: usize) -> Result<(), Failure> {
    let resolved = prepare::resolve(args, Verb::Data)?;
    let plan = &resolved.plan;
    let mut tokenizer = prepare::open_tokenizer_only(&resolved)?;
    let prepared = encode(&plan.data, &mut tokenizer, &ui::Encoding::default());
    let prepared = prepared.map_err(|error| resolved.place(error))?;
    let sets = prepared.train.iter().chain(prepared.eval.iter().map(|(_, rows)| rows));
    if json {
        let mut out = BufWriter::new(stdout().lock());
        for rows in sets.take(1) {
            for line in json_lines(rows, &plan.data, &tokenizer) {
                serde_json::to_writer(&mut out, &line?).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
        return Ok(out.flush()?);
    }
    for rows in sets.take(1) {
        show(rows, (&tokenizer, plan.data.stage), count)?;
        if plan.data.stage == Stage::Sft {
            show_parity(&resolved, (&tokenizer, &prepared.template), rows, count)?;
        }
    }
    ui::text(&prepared.report.render())?;
    Ok(ui::line(&review::prompts(&resolved, &tokenizer, &prepared).0.text())?)
}

/// The same rows by the model's own chat template, where they differ.
fn show_parity(
    resolved: &Resolved,
    (tokenizer, template): (&Tokenizer, &Template),
    rows: &Rows,
    count: usize,
) -> Result<(), Failure> {
    let Some(comparison) = Comparison::new(tokenizer, template)? else { return Ok(()) };
    let plain = rows.iter().enumerate().take(count).filter(|(_, row)| row.segments.len() == 1);
    let (numbers, sources): (Vec<usize>, Vec<(u32, u64)>) = plain.map(|(i, row)| (i, row.source)).unzip();
    let found = conversations_at(&resolved.plan.data, &sources).map_err(|error| resolved.place(error))?;
    for (number, conversation) in numbers.iter().zip(found.into_iter().flatten()) {
        match comparison.compare(&conversation) {
            Ok(same) if same.differs.is_empty() => {
                ui::line(&format!("row {number} is the same by the model's own chat template"))?;
            }
            Ok(found) => {
                let parts = parity::parts(&found);
                ui::line(&format!("row {number} differs from the model's own chat template in {parts}"))?;
                ui::line("  at token: - training alone, + the model's template alone")?;
                ui::line(&parity::difference(&found, tokenizer)?)?;
            }
            Err(reason) => {
                ui::line(&format!("row {number} can't be written by the model's own chat template: {reason}"))?
            }
        }
    }
    Ok(())
}

/// Shows the first rows: what is trained on in green, or between brackets where there are no colours.
fn show(rows: &Rows, (tokenizer, stage): (&Tokenizer, Stage), count: usize) -> Result<(), Failure> {
    let colours = std::io::IsTerminal::is_terminal(&stdout()) && ui::colours();
    let (on, off) = if colours { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    for (index, row) in rows.iter().enumerate().take(count) {
        for (what, sequence) in sequences(&row, stage) {
            let what = if what.is_empty() { String::new() } else { format!(", {what}") };
            ui::line(&format!("--- row {index}{what}: {} tokens", sequence.input_ids.len()))?;
            for span in spans(&sequence, tokenizer)? {
                let text = if span.trained { format!("{on}{}{off}", span.text) } else { span.text };
                ui::text(&text)?;
            }
            ui::line("")?;
        }
    }
    Ok(())
}
