//! Rows of one set, read, converted, encoded and packed on all cores, written in order.

use ferrotune_config::plan::{DataPlan, Packing, Stage};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSlice;
use serde::{Deserialize, Serialize};

use super::datasets::{Dataset, Tally, columns_of};
use super::{Progress, stop_at};
use crate::conversation::{Conversation, Message, Role};
use crate::convert::Converter;
use crate::encode::{Blocks, DropReason, EncodeError, EncodeOptions, Encoded, Encoder, TextEncoder};
use crate::error::DataError;
use crate::mix::Place;
use crate::pack::{BATCH, pack};
use crate::preference::Feedback;
use crate::report::{Fault, Quirks, Reject, SetReport};
use crate::rows::{Row, Writer};
use crate::template::Template;
use crate::tokenizer::Tokenizer;

/// Refuses a `cutoff_len` that the template fills by itself. One that it fills only with its
/// default system prompt is noted: LLaMA-Factory cuts the prompt then and goes on, and so do we.
pub(super) fn check_cutoff(
    plan: &DataPlan,
    tokenizer: &Tokenizer,
    template: &Template,
) -> Result<Option<String>, DataError> {
    if plan.stage == Stage::Pretrain {
        return Ok(None);
    }
    // A template that refuses an empty conversation says nothing about its length.
    let bare = Template { default_system: String::new(), ..template.clone() };
    if let Some(tokens) = template_tokens(plan, tokenizer, &bare).filter(|&tokens| tokens >= capacity(plan)) {
        return Err(DataError::CutoffTooShort { cutoff_len: plan.cutoff_len, template: tokens });
    }
    let whole = template_tokens(plan, tokenizer, template).filter(|&tokens| tokens >= capacity(plan));
    Ok(whole.map(|tokens| {
        format!(
            "the template with its system prompt takes {tokens} tokens, `cutoff_len: {}` cuts into it in every row",
            plan.cutoff_len
        )
    }))
}

/// Tokens around an empty question and an empty answer.
fn template_tokens(plan: &DataPlan, tokenizer: &Tokenizer, template: &Template) -> Option<usize> {
    const NEVER_REACHED: usize = 1 << 30;
    let options = EncodeOptions { cutoff_len: NEVER_REACHED, ..EncodeOptions::from_plan(plan) };
    let empty = Conversation {
        messages: vec![Message::new(Role::User, ""), Message::new(Role::Assistant, "")],
        ..Conversation::default()
    };
    let row = Encoder::new(tokenizer, template, &options).encode(&empty).ok()?;
    Some(row.input_ids.len())
}

/// Longest encoded row: LLaMA-Factory keeps one place of a pack for padding.
fn capacity(plan: &DataPlan) -> usize {
    let reserved = usize::from(plan.stage == Stage::Sft && plan.packing != Packing::Off);
    plan.cutoff_len.saturating_sub(reserved)
}

/// Encodes the rows of a set.
pub(super) struct SetEncoder<'a> {
    plan: &'a DataPlan,
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    options: EncodeOptions,
}

/// How far an encoding is, for one that goes on after a kill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The set being encoded, counted from 0.
    pub(super) set: usize,
    /// Rows that went into it so far.
    pub(super) done: u64,
    /// What came of them.
    pub(super) report: SetReport,
    pub(super) datasets: Vec<Tally>,
}

/// What became of one row.
pub(super) struct Outcome<T> {
    place: Place,
    /// The row of the dataset's files.
    pub(super) row: u64,
    pub(super) columns: Vec<(String, bool)>,
    pub(super) result: Result<(T, Quirks), Reject>,
}

/// Where finished rows go.
struct Sink<'a, 'w> {
    plan: &'a DataPlan,
    datasets: &'a mut [Dataset],
    writer: &'a mut Writer<'w>,
    report: SetReport,
}

impl<'a> SetEncoder<'a> {
    pub(super) fn new(plan: &'a DataPlan, tokenizer: &'a Tokenizer, template: &'a Template) -> Self {
        let options = EncodeOptions { cutoff_len: capacity(plan), ..EncodeOptions::from_plan(plan) };
        Self { plan, tokenizer, template, options }
    }

    /// Encodes `places` from `from.done` on into the set that `writer` has begun.
    pub(super) fn encode(
        &self,
        places: &[Place],
        from: Mark,
        datasets: &mut [Dataset],
        writer: &mut Writer<'_>,
        observer: &dyn Progress,
    ) -> Result<SetReport, DataError> {
        let (set, mut done) = (from.set, from.done as usize);
        let mut sink = Sink { plan: self.plan, datasets, writer, report: from.report };
        let total = places.len() as u64;
        let name = sink.report.name.clone();
        observer.encoding(&name, done as u64, total);
        // Whole batches, so that packs and blocks don't depend on the number of threads.
        let window = BATCH * rayon::current_num_threads().clamp(2, 16);
        let asked = is_asked(self.plan, &name);
        for places in places[done..].chunks(window) {
            match self.plan.stage {
                Stage::Sft if asked => self.questions(places, &mut sink)?,
                Stage::Sft => self.conversations(places, &mut sink)?,
                Stage::Pretrain => self.texts(places, &mut sink)?,
                Stage::Pairwise => self.pairs(places, &mut sink)?,
                Stage::Feedback => self.feedback(places, &mut sink)?,
            }
            done += places.len();
            let datasets = sink.datasets.iter_mut().map(Dataset::tally).collect();
            sink.writer.mark(&Mark { set, done: done as u64, report: sink.report.clone(), datasets })?;
            observer.encoding(&name, done as u64, total);
        }
        Ok(sink.report)
    }

    fn conversations(&self, places: &[Place], sink: &mut Sink<'_, '_>) -> Result<(), DataError> {
        let encoder = Encoder::new(self.tokenizer, self.template, &self.options);
        let outcomes = read_all(places, sink.datasets, |converter, row, line| {
            let (conversation, quirks) = converter.conversation(row, line)?;
            let reject = |fault, detail| Reject { line, fault, detail };
            let encoded = encoder.encode(&conversation).map_err(|reason| unwritten(line, &reason))?;
            let len = encoded.input_ids.len();
            if len == 0 {
                return Err(reject(Fault::NoTokens, String::new()));
            }
            if self.plan.packing != Packing::Off && len > self.options.cutoff_len {
                let detail = format!("{len} tokens, {} fit", self.options.cutoff_len);
                return Err(reject(Fault::TooLong, detail));
            }
            Ok((encoded, quirks))
        });
        let mut outcomes = outcomes.into_iter();
        loop {
            let batch: Vec<_> = outcomes.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let kept = sink.sort_out(batch)?;
            kept.iter().for_each(|(_, row)| sink.count_cut(row));
            if self.plan.packing == Packing::Off {
                kept.iter().try_for_each(|(place, row)| sink.push(&[row], *place))?;
            } else {
                let lengths: Vec<usize> = kept.iter().map(|(_, row)| row.input_ids.len()).collect();
                for knapsack in pack(&lengths, self.options.cutoff_len) {
                    let rows: Vec<&Encoded> = knapsack.iter().map(|&i| &kept[i].1).collect();
                    sink.push(&rows, kept[knapsack[0]].0)?;
                }
            }
        }
    }

    /// Prompts with the answers that are expected.
    fn questions(&self, places: &[Place], sink: &mut Sink<'_, '_>) -> Result<(), DataError> {
        let encoder = Encoder::new(self.tokenizer, self.template, &self.options);
        let outcomes = read_all(places, sink.datasets, |converter, row, line| {
            let (conversation, quirks) = converter.asked(row, line)?;
            let encoded = encoder.encode_answers([&conversation]).map_err(|reason| unwritten(line, &reason))?;
            Ok((encoded.to_vec(), quirks))
        });
        sink.take(outcomes)
    }

    /// Prompts with two answers.
    fn pairs(&self, places: &[Place], sink: &mut Sink<'_, '_>) -> Result<(), DataError> {
        let encoder = Encoder::new(self.tokenizer, self.template, &self.options);
        let outcomes = read_all(places, sink.datasets, |converter, row, line| {
            let ([chosen, rejected], quirks) = converter.pair(row, line)?;
            let encoded = encoder.encode_answers([&chosen, &rejected]).map_err(|reason| unwritten(line, &reason))?;
            Ok((encoded.to_vec(), quirks))
        });
        sink.take(outcomes)
    }

    /// Answers and what was thought of them. Each prompt also meets the answer of the row before it in its batch, the first
    /// one that of the last; rows that can't be used, or whose answer the template can't write, are passed over, so that a
    /// fault costs no row but its own. LLaMA-Factory fails at such a batch.
    fn feedback(&self, places: &[Place], sink: &mut Sink<'_, '_>) -> Result<(), DataError> {
        let encoder = Encoder::new(self.tokenizer, self.template, &self.options);
        let mut outcomes = read_all(places, sink.datasets, |converter, row, line| {
            let ((conversation, wanted), quirks) = converter.feedback(row, line)?;
            let own = encoder.encode_answers([&conversation]).map_err(|reason| unwritten(line, &reason))?;
            let [own] = own;
            Ok((Judged { conversation, own, wanted, line }, quirks))
        })
        .into_iter();
        loop {
            let batch: Vec<_> = outcomes.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let answer = |outcome: &Outcome<Judged>| {
                let (judged, _) = outcome.result.as_ref().ok()?;
                judged.conversation.messages.last().cloned()
            };
            let mut before = batch.iter().rev().find_map(answer);
            let others: Vec<Option<Message>> =
                batch.iter().map(|outcome| answer(outcome).and_then(|answer| before.replace(answer))).collect();
            let encode = |(outcome, other): (Outcome<Judged>, Option<Message>)| {
                let Outcome { place, row, columns, result } = outcome;
                let result = result.and_then(|(judged, quirks)| Ok((judged.sequences(&encoder, other)?, quirks)));
                Outcome { place, row, columns, result }
            };
            sink.take(batch.into_par_iter().zip(others).map(encode).collect())?;
        }
    }

    fn texts(&self, places: &[Place], sink: &mut Sink<'_, '_>) -> Result<(), DataError> {
        let packing = self.plan.packing != Packing::Off;
        let encoder = TextEncoder::new(self.tokenizer, self.template, self.options.cutoff_len, packing);
        let outcomes = read_all(places, sink.datasets, |converter, row, line| converter.text(row, line));
        let mut batches = Vec::new();
        let mut outcomes = outcomes.into_iter();
        loop {
            let batch: Vec<_> = outcomes.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            batches.push(sink.sort_out(batch)?);
        }
        // Without packing every text is a group of its own.
        let groups: Vec<&[(Place, String)]> =
            batches.iter().flat_map(|batch| batch.chunks(if packing { BATCH } else { 1 })).collect();
        let blocks: Vec<Result<Blocks, EncodeError>> =
            groups.par_iter().map(|group| encoder.encode_group(group.iter().map(|(_, text)| text.as_str()))).collect();
        for (group, blocks) in groups.iter().zip(blocks) {
            let blocks = blocks?;
            let cut = blocks.cut_tokens as u64;
            if packing {
                sink.report.tail_tokens += cut;
            } else if cut > 0 {
                sink.report.rows_cut += 1;
                sink.report.tokens_cut += cut;
                sink.report.eos_lost += 1;
            }
            for input_ids in blocks.rows {
                let labels = bytemuck::cast_slice(&input_ids).to_vec();
                let row = Encoded { input_ids, labels, ..Encoded::default() };
                sink.count_length(&row);
                sink.push(&[&row], group[0].0)?;
            }
        }
        Ok(())
    }
}

/// A row of stage kto.
struct Judged {
    conversation: Conversation,
    /// Its prompt with its own answer.
    own: Encoded,
    wanted: bool,
    line: u64,
}

impl Judged {
    /// Its own sequence, and that of its prompt with another answer.
    fn sequences(self, encoder: &Encoder<'_>, other: Option<Message>) -> Result<Vec<Encoded>, Reject> {
        let Self { conversation: mut mismatched, own, wanted, line } = self;
        mismatched.messages.pop();
        mismatched.messages.extend(other);
        let [mismatched] = encoder.encode_answers([&mismatched]).map_err(|reason| {
            let detail = format!("with the answer of the row before it, for the divergence: {reason}");
            Reject { line, fault: Fault::Template, detail }
        })?;
        Ok(Feedback::sequences(own, mismatched, wanted))
    }
}

/// Whether the rows of a set are asked of the model: prompts, and the answers that are expected.
pub(super) fn is_asked(plan: &DataPlan, set: &str) -> bool {
    plan.generate && set != super::TRAIN
}

fn unwritten(line: u64, reason: &DropReason) -> Reject {
    Reject { line, fault: Fault::Template, detail: reason.to_string() }
}

/// Reads and converts rows on all cores; what comes out is in order.
pub(super) fn read_all<T: Send>(
    places: &[Place],
    datasets: &[Dataset],
    convert: impl Fn(Converter<'_>, &serde_json::Value, u64) -> Result<(T, Quirks), Reject> + Sync,
) -> Vec<Outcome<T>> {
    const AT_ONCE: usize = 16;
    let read = |&place: &Place| {
        let dataset = &datasets[place.0 as usize];
        let row = dataset.row(place.1);
        let (value, line) = dataset.read(row);
        let columns = value.as_ref().map(|value| columns_of(value, &dataset.entry)).unwrap_or_default();
        let result = value.and_then(|value| convert(Converter::new(&dataset.entry), &value, line));
        Outcome { place, row, columns, result }
    };
    let parts = places.par_chunks(AT_ONCE).map(|part| part.iter().map(read).collect::<Vec<_>>());
    parts.collect::<Vec<_>>().into_iter().flatten().collect()
}

impl Sink<'_, '_> {
    /// Keeps count of rows, and those that can be used.
    fn sort_out<T>(&mut self, outcomes: Vec<Outcome<T>>) -> Result<Vec<(Place, T)>, DataError> {
        let mut kept = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let dataset = &mut self.datasets[outcome.place.0 as usize];
            dataset.saw(&outcome.columns);
            dataset.used();
            self.report.rows_used += 1;
            match outcome.result {
                Ok((row, quirks)) => {
                    dataset.kept(quirks);
                    self.report.rows_kept += 1;
                    kept.push((outcome.place, row));
                }
                Err(reject) => {
                    let dropped = dataset.dropped(outcome.row, reject);
                    stop_at(self.plan, &dropped).map_err(|error| error.of(&dataset.entry.name))?;
                }
            }
        }
        Ok(kept)
    }

    /// Writes rows of several sequences each.
    fn take(&mut self, outcomes: Vec<Outcome<Vec<Encoded>>>) -> Result<(), DataError> {
        for (place, sequences) in self.sort_out(outcomes)? {
            let any = |of: fn(&Encoded) -> bool| u64::from(sequences.iter().any(of));
            self.report.rows_cut += any(|sequence| sequence.cut_tokens > 0);
            self.report.eos_lost += any(|sequence| sequence.eos_lost);
            self.report.tokens_cut += sequences.iter().map(|sequence| sequence.cut_tokens as u64).sum::<u64>();
            let whole = |sequence: &&Encoded| !sequence.input_ids.is_empty();
            sequences.iter().filter(whole).for_each(|sequence| self.count_length(sequence));
            self.push(&sequences.iter().collect::<Vec<_>>(), place)?;
        }
        Ok(())
    }

    fn count_cut(&mut self, row: &Encoded) {
        self.count_length(row);
        self.report.rows_cut += u64::from(row.cut_tokens > 0);
        self.report.tokens_cut += row.cut_tokens as u64;
        self.report.eos_lost += u64::from(row.eos_lost);
    }

    fn count_length(&mut self, row: &Encoded) {
        self.report.count_length(row.input_ids.len());
        let unlabelled = row.labels.iter().all(|&label| label == crate::encode::IGNORE);
        if unlabelled && !is_asked(self.plan, &self.report.name) {
            self.report.rows_without_labels += 1;
        }
    }

    /// Writes sequences as one row; `place` is where the first comes from.
    fn push(&mut self, sequences: &[&Encoded], place: Place) -> Result<(), DataError> {
        let joined;
        let (input_ids, labels) = match sequences {
            [one] => (one.input_ids.as_slice(), one.labels.as_slice()),
            _ => {
                let ids: Vec<u32> = sequences.iter().flat_map(|row| row.input_ids.iter().copied()).collect();
                let labels: Vec<i32> = sequences.iter().flat_map(|row| row.labels.iter().copied()).collect();
                joined = (ids, labels);
                (joined.0.as_slice(), joined.1.as_slice())
            }
        };
        let segments: Vec<u32> = sequences.iter().map(|row| row.input_ids.len() as u32).collect();
        self.report.rows += 1;
        self.report.tokens += input_ids.len() as u64;
        self.report.label_tokens += labels.iter().filter(|&&label| label != crate::encode::IGNORE).count() as u64;
        self.report.longest = self.report.longest.max(input_ids.len() as u64);
        let source = (place.0, self.datasets[place.0 as usize].row(place.1));
        self.writer.push(Row { input_ids, labels, segments: &segments, isolated: false, source })
    }
}
