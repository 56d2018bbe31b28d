//! `train`: config, data, model, trainer, in this order.

mod evaluate;

use super::chat::Talk;
use super::check;
use super::deploy::RECIPE;
use crate::agent::Agent;
use crate::failure::{self, Failure};
use crate::foretold::{Foretold, Seen};
use crate::interrupt::Interrupts;
use crate::prepare::{self, Fitted, Resolved, Training};
use crate::review;
use crate::split::{Planned, split};
use crate::tracking::{self, Tracking};
use crate::world::{self, World};
use crate::{ends, environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::{LintBase, LintOptions, OpenModel, Vllm, lint, write_atomic};
use ferrotune_config::Verb;
use ferrotune_config::plan::{DataPlan, GenerationPlan, Plan, TemplateChoice, Tuning};
use ferrotune_data::prepare::{Prepared, begin, follow, prepare as encode};
use ferrotune_data::rows::Rows;
use ferrotune_data::serving::ServedPrompt;
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_dist::{Activity, Heard, Pulse};
use ferrotune_model::{Model, expert_name};
use ferrotune_train::engine::Engine;
use ferrotune_train::report::{LogRow, Phase, Reached, StatusKeeper};
use ferrotune_train::save::Saver;
use ferrotune_train::{Event, Finished, Job, Longest, MemoryPlan, Split, run};
use indicatif::ProgressBar;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Tokens of a sample answer.
const SAMPLE_TOKENS: usize = 64;

/// Trains as a recipe says; as one process, as one of several, or by starting several.
pub(crate) fn train(args: &[String]) -> Result<(), Failure> {
    let resolved = prepare::resolve(args, Verb::Train)?;
    if let Some(of) = world::agent_of(&resolved.launch) {
        let agent = Agent {
            of: of.clone(),
            master: resolved.launch.master.clone(),
            peer_timeout: resolved.plan.parallel.peer_timeout,
            output: resolved.plan.output.dir.clone(),
        };
        return agent.run(&environment::again);
    }
    let world = World::join(&resolved)?;
    let result = one_rank(&resolved, &world);
    if let Err(Failure::Recipe(_) | Failure::Data(_) | Failure::Other(_)) = &result {
        // A rank that ends must not be waited for; what the others ended with was told already.
        let reason = result.as_ref().err().map(Failure::words).unwrap_or_default();
        world.fail(&reason);
    }
    result
}

/// This rank's part of a run.
fn one_rank(resolved: &Resolved, world: &World) -> Result<(), Failure> {
    let plan = &resolved.plan;
    world.comm.pulse().does(Activity::Data);
    let (located, mut files) = world.in_turn(|| prepare::open(resolved))?;
    let mut tokenizer = prepare::tokenizer(&plan.model, &files.tokenizer)?;
    let fitted = prepare::fit_for_training(resolved, &mut files, &tokenizer)?;
    let prepared = encoded(resolved, world, &mut tokenizer)?;
    if world.is_first() {
        ui::say(prepared.report.render().trim_end());
        if prepared.coming.is_some() {
            ui::say("rows are encoded while the run goes on; what became of them is told at its end");
        }
        fitted.notes(plan).iter().for_each(|note| ui::note(note));
    }
    let closer = || world::claims_on_each_file(&located.path, &prepared);
    world.agree(&world::claims_on_files(&located.path, &prepared), closer)?;
    check_vocabulary(fitted.model(), &tokenizer, &prepared)?;
    let Planned { split, longest, foretold } = split(resolved, world, &fitted, &files.config, &prepared)?;
    let first = world.is_first();
    let served = first.then(|| review(resolved, (&tokenizer, &prepared), (&fitted, &located.name), &split, &foretold));
    let division = split.shape.division(world.comm.clone());
    world.comm.pulse().does(Activity::Loading);
    let Training { model, engine, tuning, continued } = fitted.load(resolved, &files, division, &world.device)?;
    let saved = prepare::files_to_save(&files.tokenizer, &tokenizer, &prepared.template)?;
    ends::complete(&mut files, &prepared.template.stop_ids(&tokenizer));
    let saver = Saver {
        tuning: &tuning,
        continued: continued.as_ref(),
        base: &files,
        base_name: &located.name,
        revision: located.revision.as_deref(),
        tokenizer: &saved,
        shard_bytes: plan.output.shard_bytes,
    };
    let session = Session {
        base: &files,
        base_name: &located.name,
        tuning: &tuning,
        resolved,
        prepared: &prepared,
        model: &model,
        engine: &engine,
        tokenizer: &tokenizer,
        memory: split.memory,
        longest,
        foretold,
        served: served.flatten(),
        first: world.is_first(),
        ranks_of_a_step: world.ranks_of_a_step,
    };
    session.go(saver)
}

/// The rows: one rank of a machine encodes them, the others read the same file. Streamed ones may still be coming, on all ranks
/// or on none.
fn encoded(resolved: &Resolved, world: &World, tokenizer: &mut Tokenizer) -> Result<Prepared, Failure> {
    let (plan, several) = (&resolved.plan.data, world.comm.world() > 1);
    let encoding = ui::Encoding::default();
    // The template's tokens are added to it; who prepares once more begins without them.
    let plain = (several && plan.stream.is_some()).then(|| tokenizer.clone());
    let prepared = world.in_turn(|| {
        let rows = if world.local_rank > 0 {
            follow(plan, tokenizer)
        } else if several && plan.overwrite_cache {
            // Others couldn't tell the rows that are to be overwritten from those that overwrite them.
            encode(plan, tokenizer, &encoding)
        } else {
            begin(plan, tokenizer, &encoding)
        };
        rows.map_err(|error| resolved.place(error))
    })?;
    let Some(plain) = plain else { return Ok(prepared) };
    let coming = prepared.coming.is_some();
    let on_all = world.least(Some(if coming { 2 } else { 1 }))? == Some(2);
    if on_all || !coming {
        return Ok(prepared);
    }
    // The last ones came meanwhile. What all ranks plan must be planned of the same rows.
    *tokenizer = plain;
    let plan = DataPlan { overwrite_cache: false, ..plan.clone() };
    encode(&plan, tokenizer, &encoding).map_err(|error| resolved.place(error))
}

/// Says what `check` says, a line a section; how the model is to be asked.
fn review(
    resolved: &Resolved,
    (tokenizer, prepared): (&Tokenizer, &Prepared),
    (fitted, base_name): (&Fitted, &str),
    split: &Split,
    foretold: &Foretold,
) -> Option<ServedPrompt> {
    let plan = &resolved.plan;
    let mut sections = vec![review::data(&prepared.report)];
    let (prompts, served) = review::prompts(resolved, tokenizer, prepared);
    sections.push(prompts);
    sections.push(review::memory(&split.memory, foretold.step));
    if let Tuning::Lora(lora) = &plan.tuning
        && plan.output.train
    {
        sections.push(review::adapter((&plan.output.dir, Vllm::V0_32), lora, base_name, fitted.model()));
    }
    sections.iter().for_each(|section| ui::say(&section.line()));
    served
}

struct Session<'a> {
    /// The model that the run began with.
    base: &'a OpenModel,
    /// What servers call the model.
    base_name: &'a str,
    /// What trains.
    tuning: &'a Tuning,
    resolved: &'a Resolved,
    prepared: &'a Prepared,
    model: &'a Model,
    engine: &'a Engine,
    tokenizer: &'a Tokenizer,
    /// What the run takes of the fullest rank.
    memory: MemoryPlan,
    /// The longest micro-batch.
    longest: Longest,
    /// What was foretold of the run.
    foretold: Foretold,
    /// How a server is to write prompts; the first rank's.
    served: Option<ServedPrompt>,
    /// This rank speaks for the run.
    first: bool,
    ranks_of_a_step: Option<usize>,
}

impl Session<'_> {
    fn go(&self, saver: Saver<'_>) -> Result<(), Failure> {
        let plan = &self.resolved.plan;
        let Some(rows) = self.prepared.train.as_ref().filter(|_| plan.output.train) else {
            return self.evaluate_only();
        };
        let before = self.samples()?;
        let interrupts = Interrupts::listen()?;
        let recipe = self.resolved.recipe.to_json().to_string();
        let (model, engine, eval) = (self.model, self.engine, &self.prepared.eval[..]);
        let job = Job {
            plan,
            model,
            engine,
            saver,
            train: rows,
            eval,
            answering: plan.eval.generate.then(|| self.answering()),
            memory: self.memory.clone(),
            longest: self.longest.clone(),
            recipe: &recipe,
            ranks_of_a_step: self.ranks_of_a_step,
            stop: interrupts.stop(),
        };
        let pulse = engine.comm().pulse().clone();
        let output = plan.output.dir.clone();
        let mut screen = Screen { first: self.first, output, pulse, ..Screen::default() };
        let mut tracking = self.first.then(|| Tracking::new(self.resolved, &self.base.config, rows, &before));
        let finished = run(&job, &mut |event| {
            if matches!(event, Event::Started(_)) && self.first {
                self.leave_recipe();
            }
            let said = tracking.as_mut().map_or_else(Vec::new, |tracking| tracking.hear(&event));
            screen.show(event);
            if !said.is_empty() {
                screen.bar.suspend(|| tracking::tell(said));
            }
        });
        screen.bar.finish_and_clear();
        screen.end_status(&finished);
        let ends = |tracking: Option<Tracking<'_>>, result: Result<&Finished, &str>, answers: &[String]| {
            tracking.into_iter().for_each(|tracking| tracking.end(result, answers));
        };
        if let Err(error) = &finished {
            ends(tracking.take(), Err(&error.to_string()), &[]);
        }
        let (finished, signal) = (finished.map_err(|error| self.resolved.place(error))?, interrupts.close());
        self.report_rows();
        if finished.interrupted {
            ends(tracking, Ok(&finished), &[]);
            let code = signal.unwrap_or(failure::PASSING);
            ui::say(&format!(
                "stopped after step {} of {}; the same command{} goes on from there",
                finished.steps,
                finished.total,
                if plan.output.overwrite { " with overwrite_output_dir=false" } else { "" }
            ));
            return Err(Failure::Told(code));
        }
        if plan.output.predict {
            self.predict_after(screen.finished_before)?;
        }
        let quiet = screen.finished_before || !self.first;
        let after = if screen.finished_before { Vec::new() } else { self.samples()? };
        ends(tracking, Ok(&finished), &after);
        if quiet { Ok(()) } else { self.close(&finished, before.iter().zip(&after), &screen) }
    }

    /// What became of rows that were encoded while the run went on.
    fn report_rows(&self) {
        let Some(coming) = &self.prepared.coming else { return };
        match coming.report() {
            Some(report) => ui::say(report.render().trim_end()),
            None => ui::note(&format!(
                "{} rows were encoded when the run ended; the next one with the same data goes on from there",
                ui::grouped(coming.rows())
            )),
        }
    }

    /// Leaves the recipe for `deploy`, at once, so that the checkpoints of a run that is killed can be served, too.
    fn leave_recipe(&self) {
        let path = self.resolved.plan.output.dir.join(RECIPE);
        let recipe = format!("{:#}\n", self.resolved.recipe.to_json());
        if let Err(error) = write_atomic(&path, recipe.as_bytes()) {
            ui::warning(&format!("{error}; `deploy` will want the recipe behind the folder"));
        }
    }

    /// Answers to the recipe's sample prompts, with the likeliest token each time.
    fn samples(&self) -> Result<Vec<String>, Failure> {
        let plan = &self.resolved.plan;
        if plan.output.sample_prompts.is_empty() {
            return Ok(Vec::new());
        }
        let generation = GenerationPlan { do_sample: false, max_new_tokens: SAMPLE_TOKENS, ..plan.generation.clone() };
        let greedy = Plan { generation, ..plan.clone() };
        // No more than a row and an answer: what training takes has been counted, room for long talks hasn't.
        let longest = plan.data.cutoff_len + SAMPLE_TOKENS;
        let mut talk = Talk::new(&greedy, self.model, self.engine, (self.tokenizer, &self.prepared.template), longest);
        let mut answer = |prompt: &String| {
            talk.clear();
            let answer = talk.answer(prompt, |_| Ok(()));
            // A rank that is lost stops the device, which knows less about it.
            self.engine.check()?;
            answer
        };
        plan.output.sample_prompts.iter().map(&mut answer).collect()
    }

    /// What the user wants to see at the end.
    fn close<'s>(
        &self,
        finished: &Finished,
        samples: impl Iterator<Item = (&'s String, &'s String)>,
        screen: &Screen,
    ) -> Result<(), Failure> {
        let plan = &self.resolved.plan;
        let dir = plan.output.dir.display();
        ui::line("")?;
        if finished.steps < finished.total {
            ui::line(&format!("Stopped early, after step {} of {}.", finished.steps, finished.total))?;
        }
        ui::line(&format!(
            "{} steps in {:.1} s, {:.0} tokens/s, mean loss {:.4}",
            finished.steps,
            finished.runtime.as_secs_f64(),
            finished.tokens_per_second,
            finished.train_loss
        ))?;
        self.foretold.beside(&Seen::of(finished), &plan.output.dir)?;
        if let (Some(first), Some(last)) = (screen.first_eval, screen.last_eval)
            && plan.eval.on_start
        {
            ui::line(&format!("Loss on rows that were held out: {first:.4} before, {last:.4} after."))?;
        }
        for (prompt, (old, new)) in plan.output.sample_prompts.iter().zip(samples) {
            ui::line(&format!("\n  {prompt}\n    before: {}\n    after:  {}", one_line(old), one_line(new)))?;
        }
        let template = match &plan.data.template {
            TemplateChoice::Named(name) => format!(" template={name}"),
            TemplateChoice::Model => String::new(),
        };
        let alone = format!("model_name_or_path={}{template}", plan.model.source);
        let recipe = self.resolved.again.as_deref().unwrap_or(&alone);
        let adapter = if matches!(plan.tuning, Tuning::Lora(_)) {
            format!("adapter_name_or_path={dir}")
        } else {
            format!("model_name_or_path={dir}")
        };
        ui::line(&format!("\nEverything is in {dir}. To go on:"))?;
        let program = environment::program();
        ui::line(&format!("  {program} chat {recipe} {adapter}"))?;
        ui::line(&format!("  {program} export {recipe} {adapter} export_dir={dir}-merged"))?;
        if let Some(served) = &self.served {
            review::write_serving(&plan.output.dir, served)?;
        }
        match self.tuning {
            Tuning::Lora(_) => {
                let base = LintBase { name: self.base_name, config: &self.base.config, tensors: &*self.base.tensors };
                let trained = self.model.parameters().iter().filter(|parameter| parameter.param.trainable);
                let experts = trained.into_iter().any(|parameter| expert_name(&parameter.param.name, 0).is_some());
                serving_hint(plan, base, experts)
            }
            _ => Ok(ui::line(&format!("  {program} deploy {dir}"))?),
        }
    }
}

/// A row of the log as transformers prints it.
fn metrics(row: &LogRow) -> String {
    let mut text: Vec<String> = row.values().map(|(name, value)| format!("'{name}': {}", short(value))).collect();
    text.push(format!("'epoch': {}", short(row.when.epoch)));
    format!("{{{}}}", text.join(", "))
}

/// Whether vLLM can serve the adapter, and how.
fn serving_hint(plan: &Plan, base: LintBase<'_>, experts: bool) -> Result<(), Failure> {
    let dir = &plan.output.dir;
    let report = lint(dir, LintOptions { vllm: Vllm::V0_32, base: Ok(base) });
    let Some(error) = report.errors().next() else {
        ui::line(&format!("  {} deploy {}", environment::program(), dir.display()))?;
        ui::line(&check::summary(&report))?;
        if experts {
            ui::line(
                "    adapters on experts are beyond vLLM 0.11.0, and need a GPU: else serve what `export` writes",
            )?;
        }
        return Ok(());
    };
    ui::line(&check::summary(&report))?;
    Ok(ui::line(&format!("  {} (vLLM: {}); {}", error.what, error.server, error.cure))?)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Ids beyond the embedding would read other parameters' memory; they are a matter of mismatched files.
fn check_vocabulary(model: &Model, tokenizer: &Tokenizer, prepared: &Prepared) -> Result<(), Failure> {
    let size = model.config().vocab_size;
    let sets = prepared.train.iter().chain(prepared.eval.iter().map(|(_, rows)| rows));
    let largest = sets.map(Rows::largest_id).max();
    match largest {
        Some(id) if id as usize >= size => {
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            Err(Failure::Other(anyhow!(
                "token `{token}` has id {id}, but the model's embedding has {size} rows; if tokens were added, set resize_vocab: \
                 true; otherwise the tokenizer is of another model"
            )))
        }
        _ => Ok(()),
    }
}

/// What a run shows while it goes on.
struct Screen {
    /// Warnings are all ranks'; the rest is told by the first.
    first: bool,
    /// Keeps `status.json` up to date, on the first rank.
    keeper: Option<StatusKeeper>,
    output: PathBuf,
    pulse: Arc<Pulse>,
    bar: ProgressBar,
    first_eval: Option<f64>,
    last_eval: Option<f64>,
    /// There was nothing to do.
    finished_before: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            first: true,
            keeper: None,
            output: PathBuf::new(),
            pulse: Arc::default(),
            bar: ProgressBar::hidden(),
            first_eval: None,
            last_eval: None,
            finished_before: false,
        }
    }
}

impl Screen {
    fn show(&mut self, event: Event) {
        match event {
            Event::AlreadyFinished { .. } if !self.first => self.finished_before = true,
            Event::Warning(_) => self.tell(event),
            _ if self.first => self.tell(event),
            _ => {}
        }
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Started(start) => {
                self.keep_status();
                let share = 100.0 * start.trainable as f64 / start.parameters as f64;
                let memory = &start.memory;
                self.say(&format!(
                    "trainable params: {} || all params: {} || trainable%: {share:.4}",
                    ui::grouped(start.trainable),
                    ui::grouped(start.parameters)
                ));
                let (rows, epochs) = match start.rows {
                    Some(rows) => (format!("{rows} rows"), format!(" ({:.2} epochs)", start.epochs)),
                    None => ("rows still coming".to_owned(), String::new()),
                };
                self.say(&format!(
                    "{rows}, {} a step, {} steps{epochs}; {} of memory at the longest batch{}",
                    start.rows_per_step,
                    start.total,
                    ui::bytes(memory.needed()),
                    if memory.recompute { ", blocks recomputed" } else { "" }
                ));
                let template = "{wide_bar} {pos}/{len} {msg} {elapsed}<{eta}";
                self.bar = ui::bar(start.total, template);
                self.bar.set_position(start.done);
            }
            Event::Stepped(progress, loss) => {
                self.bar.set_position(progress.step);
                if let Some(keeper) = &self.keeper {
                    keeper.reached(Reached {
                        step: progress.step,
                        total_steps: progress.total_steps,
                        tokens_per_second: progress.recent_tokens_per_second,
                        loss: Some(loss),
                        remaining: Some(progress.remaining),
                    });
                }
                self.bar.set_message(format!("loss {loss:.4} {:.0} tokens/s", progress.recent_tokens_per_second));
            }
            Event::Logged(row) => self.say(&metrics(&row)),
            Event::Evaluated { found, .. } => {
                if let Some(loss) = found.loss() {
                    self.first_eval.get_or_insert(loss);
                    self.last_eval = Some(loss);
                }
            }
            Event::Saved(path) => self.say(&format!("saved {}", path.display())),
            Event::Profiled { path, hidden } => {
                let share = hidden
                    .map(|share| format!("; computing didn't wait for {:.0} % of the collectives", 100.0 * share));
                self.say(&format!("what this rank did when is in {}{}", path.display(), share.unwrap_or_default()));
            }
            Event::Resumed(path) => self.say(&format!("going on from {}", path.display())),
            Event::AlreadyFinished { steps } => {
                self.finished_before = true;
                self.say(&format!(
                    "this run is finished: all its {steps} steps are done, and nothing was changed. To train longer, raise \
                     num_train_epochs or max_steps; to begin anew, set overwrite_output_dir: true"
                ));
            }
            Event::Warning(text) => self.bar.suspend(|| ui::warning(&text)),
        }
    }

    /// Begins to write `status.json`. A run goes on without it: what can't be written here can't be elsewhere either.
    fn keep_status(&mut self) {
        let (pulse, host, rank) = (self.pulse.clone(), environment::host(), 0);
        let this = host.clone();
        let heard = move || {
            let own = Heard { rank, host: this.clone(), beat: pulse.beat(), at: Instant::now() };
            std::iter::once(own).chain(pulse.others()).collect()
        };
        match StatusKeeper::start(&self.output, host, heard) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => ui::warning(&error.to_string()),
        }
    }

    /// Writes how the run ended.
    fn end_status(&mut self, result: &ferrotune_train::Result<Finished>) {
        let Some(keeper) = self.keeper.take() else { return };
        match result {
            Ok(finished) if finished.interrupted => keeper.end(Phase::Interrupted, None),
            Ok(_) => keeper.end(Phase::Finished, None),
            Err(error) => keeper.end(Phase::Failed, Some(error.to_string())),
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| ui::say(text));
    }
}

/// Four significant digits, as transformers' log lines show.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.3e}") } else { format!("{}", (value * 1e4).round() / 1e4) }
}
