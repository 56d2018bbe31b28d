//! Evaluation by itself, and answers to rows: what `train` does beside training.

use super::{Session, metrics};
use crate::failure::Failure;
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::FolderWriter;
use ferrotune_train::report::{LogRow, PREDICTIONS, When, write_predictions, write_results};
use ferrotune_train::{Answering, EvaluateOptions, Predicted, answer};
use indicatif::ProgressBar;

/// The bar over rows that are answered.
const ANSWERING: &str = "answering {msg} {wide_bar} {pos}/{len} rows {per_sec} {eta}";

/// Numbers of answers, and what they are called where people read them.
const SHOWN: [(&str, &str); 4] =
    [("bleu-4", "BLEU-4"), ("rouge-1", "ROUGE-1"), ("rouge-2", "ROUGE-2"), ("rouge-l", "ROUGE-L")];

impl Session<'_> {
    /// How rows for evaluation are answered.
    pub(super) fn answering(&self) -> Answering<'_> {
        let plan = &self.resolved.plan;
        let (tokenizer, template) = (self.tokenizer, &self.prepared.template);
        Answering { tokenizer, template, generation: &plan.generation, at_once: plan.eval.batch }
    }

    /// Evaluates and answers rows with a model that isn't trained here.
    pub(super) fn evaluate_only(&self) -> Result<(), Failure> {
        let plan = &self.resolved.plan;
        if self.prepared.eval.is_empty() {
            return Err(Failure::Other(anyhow!(
                "there is nothing to train or to evaluate on: set do_train: true or eval_dataset"
            )));
        }
        if !plan.eval.generate {
            return self.evaluate_by_loss();
        }
        let predicted = self.answer_all()?;
        if !self.first {
            return Ok(());
        }
        let folder = FolderWriter::new(&plan.output.dir)?;
        if plan.output.evaluate {
            for (name, found) in self.named().zip(&predicted) {
                let row = LogRow::evaluation(When { step: 0, epoch: 0.0 }, name, &found.evaluation);
                write_results(folder.path(), "eval", &row)?;
            }
        }
        if plan.output.predict {
            self.write_predictions(&predicted, true)?;
        }
        self.tell_answers(&predicted)
    }

    fn evaluate_by_loss(&self) -> Result<(), Failure> {
        let plan = &self.resolved.plan;
        let folder = FolderWriter::new(&plan.output.dir)?;
        let own = self.model.config().moe.as_ref().map_or(0.0, |moe| moe.router_aux_loss);
        let (batch_rows, accuracy) = (plan.eval.batch, plan.eval.accuracy);
        let options = EvaluateOptions { batch_rows, router_aux_loss: own, accuracy };
        for (name, (set, rows)) in self.named().zip(&self.prepared.eval) {
            let found = ferrotune_train::evaluate(self.model, self.engine, rows, options)?;
            if !self.first {
                continue;
            }
            let row = LogRow::evaluation(When { step: 0, epoch: 0.0 }, name, &found);
            write_results(folder.path(), "eval", &row)?;
            let perplexity = found.loss().unwrap_or(f64::NAN).exp();
            ui::line(&format!("{set}: {}, perplexity {perplexity:.3}, {} rows", metrics(&row), found.samples))?;
        }
        if !self.first {
            return Ok(());
        }
        Ok(ui::line(&format!("The numbers are in {}.", plan.output.dir.join("eval_results.json").display()))?)
    }

    /// Names of the evaluation sets, where their numbers are told apart.
    fn named(&self) -> impl Iterator<Item = Option<&str>> {
        let several = self.resolved.plan.data.eval_each && self.prepared.eval.len() > 1;
        self.prepared.eval.iter().map(move |(name, _)| several.then_some(name.as_str()))
    }

    /// Answers all rows for evaluation, set by set.
    fn answer_all(&self) -> Result<Vec<Predicted>, Failure> {
        let mut all = Vec::new();
        for (name, rows) in &self.prepared.eval {
            let bar = if self.first { ui::bar(0, ANSWERING) } else { ProgressBar::hidden() };
            bar.set_message(name.clone());
            let found = answer(self.model, self.engine, rows, self.answering(), &mut |done, of| {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
            });
            bar.finish_and_clear();
            all.push(found.map_err(|error| self.resolved.place(error))?);
        }
        Ok(all)
    }

    /// `do_predict` behind a training.
    pub(super) fn predict_after(&self, finished_before: bool) -> Result<(), Failure> {
        if finished_before {
            // Nothing was trained or read back: these weights are those of the run's beginning.
            if self.first && !self.resolved.plan.output.dir.join(PREDICTIONS).exists() {
                ui::note("no rows were answered; to have that done now, set do_train: false and name what was trained");
            }
            return Ok(());
        }
        let predicted = self.answer_all()?;
        if !self.first {
            return Ok(());
        }
        self.write_predictions(&predicted, false)?;
        self.tell_answers(&predicted)
    }

    /// `generated_predictions.jsonl`, `predict_results.json` and their part of `all_results.json`.
    fn write_predictions(&self, predicted: &[Predicted], alone: bool) -> Result<(), Failure> {
        let dir = &self.resolved.plan.output.dir;
        for (name, found) in self.named().zip(predicted) {
            let row = LogRow::prediction(name, &found.evaluation, alone.then_some(found.preparation));
            write_results(dir, "predict", &row)?;
        }
        write_predictions(dir, predicted.iter().flat_map(|found| &found.predictions))?;
        Ok(())
    }

    fn tell_answers(&self, predicted: &[Predicted]) -> Result<(), Failure> {
        let output = &self.resolved.plan.output;
        for ((set, _), found) in self.prepared.eval.iter().zip(predicted) {
            let row = LogRow::prediction(None, &found.evaluation, None);
            let of = |name: &str| row.get(&format!("predict_{name}")).unwrap_or(f64::NAN);
            let numbers: Vec<String> = SHOWN.iter().map(|(name, shown)| format!("{shown} {:.2}", of(name))).collect();
            let rows = ui::grouped(found.predictions.len());
            let seconds = found.evaluation.runtime.as_secs_f64();
            ui::line(&format!("{set}: {} over {rows} rows in {seconds:.1} s", numbers.join(", ")))?;
        }
        if !output.predict {
            return Ok(());
        }
        Ok(ui::line(&format!("The answers are in {}.", output.dir.join(PREDICTIONS).display()))?)
    }
}
