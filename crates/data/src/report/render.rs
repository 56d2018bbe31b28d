//! The report as plain text.

use std::fmt::{self, Write as _};

use super::{DatasetReport, Report, SetReport};

/// Examples shown of rows left out for one kind of fault.
const EXAMPLES: usize = 3;
/// Columns of the longest bar of the histogram.
const BAR: u64 = 40;

impl Report {
    /// The report in lines of plain text, without colours. Of rows left out each kind of fault is
    /// shown with its number and the first few places; [`DatasetReport::dropped`] has them all.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a String can't fail");
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        for dataset in &self.datasets {
            dataset.write(out)?;
        }
        for set in &self.sets {
            set.write(out)?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        Ok(())
    }
}

impl DatasetReport {
    fn write(&self, out: &mut String) -> fmt::Result {
        let files = match &self.files[..] {
            [file] => file.display().to_string(),
            files => format!("{} files", files.len()),
        };
        writeln!(
            out,
            "dataset {}: {} rows in {files}, {} used, {} kept, {} dropped",
            self.name,
            self.rows_read,
            self.rows_used,
            self.rows_kept,
            self.dropped.len()
        )?;
        for (fault, count) in self.faults() {
            writeln!(out, "  {count} dropped: {fault}")?;
            let examples = self.dropped.iter().filter(|dropped| dropped.fault == fault);
            for dropped in examples.take(EXAMPLES) {
                let colon = if dropped.detail.is_empty() { "" } else { ": " };
                writeln!(out, "    {}{colon}{}", dropped.place(), dropped.detail)?;
            }
        }
        for absent in &self.absent {
            writeln!(out, "  warning: {absent}")?;
        }
        self.write_unmapped(out)?;
        self.write_quirks(out)?;
        for note in &self.notes {
            writeln!(out, "  note: {note}")?;
        }
        Ok(())
    }

    fn write_unmapped(&self, out: &mut String) -> fmt::Result {
        if self.unmapped.is_empty() {
            return Ok(());
        }
        let columns: Vec<_> = self
            .unmapped
            .iter()
            .map(|unmapped| format!("`{}` ({})", unmapped.column, percent(unmapped.rows, self.rows_used)))
            .collect();
        writeln!(out, "  columns with content that nothing reads (share of rows): {}", columns.join(", "))?;
        if let Some(cure) = &self.columns_cure {
            writeln!(out, "  to train on them, write into the entry of `{}`: \"columns\": {cure}", self.name)?;
        }
        Ok(())
    }

    fn write_quirks(&self, out: &mut String) -> fmt::Result {
        for (rows, what, _) in self.quirks.told() {
            writeln!(out, "  {rows} rows: {what}")?;
        }
        Ok(())
    }
}

impl SetReport {
    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "{}: {} of {} rows kept in {} sequences, {} tokens, {} trained on ({}), longest {}",
            self.name,
            self.rows_kept,
            self.rows_used,
            self.rows,
            self.tokens,
            self.label_tokens,
            percent(self.label_tokens, self.tokens),
            self.longest
        )?;
        if self.rows_cut > 0 {
            writeln!(
                out,
                "  cutoff_len cut {} rows ({}) by {} tokens; {} answers lost their end-of-sequence token",
                self.rows_cut,
                percent(self.rows_cut, self.rows_kept),
                self.tokens_cut,
                self.eos_lost
            )?;
        }
        if self.tail_tokens > 0 {
            writeln!(out, "  {} tokens at the ends of batches fill no block and were left out", self.tail_tokens)?;
        }
        if self.rows_without_labels > 0 {
            writeln!(out, "  {} rows have no token to train on", self.rows_without_labels)?;
        }
        self.write_lengths(out)
    }

    fn write_lengths(&self, out: &mut String) -> fmt::Result {
        let most = self.lengths.iter().copied().max().unwrap_or(0);
        let first = self.lengths.iter().position(|&count| count > 0).unwrap_or(0);
        for (bucket, &count) in self.lengths.iter().enumerate().skip(first) {
            let (from, to) = (1_u64 << bucket, (2_u64 << bucket) - 1);
            let bar = "#".repeat((count * BAR).div_ceil(most) as usize);
            writeln!(out, "  {:>15} tokens {count:>8} {bar}", format!("{from}-{to}"))?;
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "0 %".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use crate::report::{DatasetReport, Dropped, Fault, QuirkCounts, Report, SetReport, Unmapped};

    #[test]
    fn everything_that_happened_is_said() {
        let dropped = |line, fault, detail: &str| Dropped {
            file: "d.json".into(),
            line,
            row: line,
            fault,
            detail: detail.into(),
        };
        let report = Report {
            datasets: vec![DatasetReport {
                name: "d".into(),
                files: vec!["d.json".into()],
                rows_read: 10,
                rows_used: 8,
                rows_kept: 5,
                dropped: vec![
                    dropped(3, Fault::BrokenJson, "EOF while parsing an object"),
                    dropped(4, Fault::NoAnswer, ""),
                    dropped(9, Fault::NoAnswer, "`output` is null"),
                ],
                unmapped: vec![Unmapped { column: "system".into(), rows: 8 }],
                columns_cure: Some("{\"prompt\": \"instruction\"}".into()),
                quirks: QuirkCounts { numbers_as_text: 2, ..QuirkCounts::default() },
                absent: Vec::new(),
                notes: vec!["`subset` has no effect on a dataset of local files".into()],
            }],
            sets: vec![SetReport {
                name: "train".into(),
                rows_used: 8,
                rows_kept: 5,
                rows: 5,
                tokens: 100,
                label_tokens: 40,
                longest: 33,
                rows_cut: 1,
                tokens_cut: 7,
                eos_lost: 1,
                rows_without_labels: 1,
                tail_tokens: 6,
                lengths: vec![0, 0, 0, 1, 4],
            }],
            notes: vec!["dataset `d` is named twice and used once".into()],
        };
        let expected = "\
dataset d: 10 rows in d.json, 8 used, 5 kept, 3 dropped
  1 dropped: broken JSON
    d.json:3: EOF while parsing an object
  2 dropped: no answer
    d.json:4
    d.json:9: `output` is null
  columns with content that nothing reads (share of rows): `system` (100.0 %)
  to train on them, write into the entry of `d`: \"columns\": {\"prompt\": \"instruction\"}
  2 rows: a number stands where text belongs and was written as text
  note: `subset` has no effect on a dataset of local files
train: 5 of 8 rows kept in 5 sequences, 100 tokens, 40 trained on (40.0 %), longest 33
  cutoff_len cut 1 rows (20.0 %) by 7 tokens; 1 answers lost their end-of-sequence token
  6 tokens at the ends of batches fill no block and were left out
  1 rows have no token to train on
             8-15 tokens        1 ##########
            16-31 tokens        4 ########################################
note: dataset `d` is named twice and used once
";
        assert_eq!(report.render(), expected);
    }
}
