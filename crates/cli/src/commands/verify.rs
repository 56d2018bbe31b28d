//! `deploy --verify`: a running server against the trained model, on rows of the training set.

use crate::failure::{self, Failure};
use crate::prepare::{self, Answering, Resolved};
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_config::plan::{Plan, Precision, Stage};
use ferrotune_data::encode::{EncodeOptions, Encoder, IGNORE};
use ferrotune_data::prepare::{conversations, prepare as encode};
use ferrotune_data::serving::{messages, trained_prompt};
use ferrotune_data::template::Template;
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_deploy::verify::{Agreement, Client, Problem, Question, Row, Verdict};
use ferrotune_infer::Generator;
use serde_json::{Map, Value};

/// Longest part of a row that is scored.
const LONGEST: usize = 2048;
/// Tokens of a difference that are shown.
const SHOWN: usize = 12;

/// How a server is checked.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Write nothing; compare the server there with the trained model, token by token.
    #[arg(long = "verify", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// How many training rows are sent.
    #[arg(long, default_value_t = 20)]
    rows: usize,
    /// Largest mean difference of log-probabilities; what 16 bits explain unless it is given.
    #[arg(long, default_value_t = 0.05)]
    tolerance: f64,
    /// The server's key.
    #[arg(long)]
    api_key: Option<String>,
}

/// Sends rows to the server and says what is wrong; exit code 1 if anything is.
pub(crate) fn verify(
    args: &VerifyArgs,
    name: &str,
    is_adapter: bool,
    kwargs: &Map<String, Value>,
    resolved: &Resolved,
) -> Result<(), Failure> {
    let url = args.url.as_deref().unwrap_or_default();
    let trainer = Trainer::new(resolved)?;
    ui::say("Scoring the rows with the trained model.");
    let (mut rows, tokenizer) = trainer.rows(args.rows)?;
    if is_adapter {
        ui::say("Scoring them with the base.");
        let base = trainer.score(0.0, &rows)?;
        rows.iter_mut().zip(base).for_each(|(row, base)| row.base = Some(base));
    }
    ui::say(&format!("Asking {url}."));
    let question = Question { name, is_adapter, kwargs, tolerance: args.tolerance };
    let mut rescaled = |factor: f64| trainer.score(factor, &rows);
    let client = Client::new(url, args.api_key.clone());
    let verdict = ferrotune_deploy::verify::verify(&client, &question, &rows, &mut rescaled, &trainer.factors())?;
    tell(&verdict, &question, &tokenizer)?;
    if verdict.problems.is_empty() { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

/// The trained model, opened as often as another scale is wanted: one copy of the weights at a time.
struct Trainer<'a> {
    resolved: &'a Resolved,
    plan: Plan,
}

impl<'a> Trainer<'a> {
    fn new(resolved: &'a Resolved) -> Result<Self, Failure> {
        let mut plan = resolved.plan.clone();
        let (_, files) = prepare::open(resolved)?;
        let elements = |name: &String| files.tensors.info(name).map_or(0, |info| info.shape.iter().product::<usize>());
        let weights: usize = files.tensors.names().iter().map(elements).sum();
        // Exact numbers are the better judge of a server that rounds; a large model must do with its own.
        let fits = environment::available_memory().is_none_or(|bytes| weights as u64 * 5 < bytes);
        plan.model.precision = if fits { Precision::F32 } else { plan.model.precision };
        Ok(Self { resolved, plan })
    }

    fn open(&self, factor: f64) -> Result<Answering, Failure> {
        prepare::open_rescaled(self.resolved, &self.plan, factor)
    }

    /// Rows of the training set with the trained model's scores.
    fn rows(&self, count: usize) -> Result<(Vec<Row>, Tokenizer), Failure> {
        let open = self.open(1.0)?;
        let mut rows = match self.plan.data.stage {
            Stage::Pretrain => self.texts(count, &open.tokenizer)?,
            _ => self.conversations(count, &open.tokenizer, &open.template)?,
        };
        rows.retain(|row| !row.trained.is_empty());
        if rows.is_empty() {
            return Err(Failure::Other(anyhow!("no training row can be scored; does the recipe's dataset have any?")));
        }
        let scored = scores(&open, &rows)?;
        rows.iter_mut().zip(scored).for_each(|(row, tuned)| row.tuned = tuned);
        Ok((rows, open.tokenizer))
    }

    fn score(&self, factor: f64, rows: &[Row]) -> Result<Vec<Vec<f32>>, Failure> {
        scores(&self.open(factor)?, rows)
    }

    /// Scales that mistakes lead to: another rank in the configuration, rsLoRA forgotten or taken for granted.
    fn factors(&self) -> Vec<f64> {
        let rank = self.plan.model.adapters.last().and_then(|path| {
            let file = std::fs::read(std::path::Path::new(path).join("adapter_config.json")).ok()?;
            serde_json::from_slice::<Value>(&file).ok()?["r"].as_f64()
        });
        let root = rank.map(f64::sqrt).into_iter().flat_map(|root| [root, 1.0 / root]);
        [0.5, 2.0, 0.25, 4.0, 0.125, 8.0].into_iter().chain(root).collect()
    }

    fn conversations(&self, count: usize, tokenizer: &Tokenizer, template: &Template) -> Result<Vec<Row>, Failure> {
        let options = EncodeOptions::from_plan(&self.plan.data);
        let found = conversations(&self.plan.data, count).map_err(|error| self.resolved.place(error))?;
        let encoder = Encoder::new(tokenizer, template, &options);
        let row = |conversation: &ferrotune_data::conversation::Conversation| {
            let encoded = encoder.encode(conversation).ok()?;
            let prompt = messages(conversation).zip(trained_prompt(tokenizer, template, conversation).ok());
            Some(Self::row(&encoded.input_ids, &encoded.labels, prompt))
        };
        Ok(found.iter().filter_map(row).collect())
    }

    fn texts(&self, count: usize, tokenizer: &Tokenizer) -> Result<Vec<Row>, Failure> {
        let prepared = encode(&self.plan.data, &mut tokenizer.clone(), &ui::Encoding::default());
        let rows = prepared.map_err(|error| self.resolved.place(error))?.train;
        let rows =
            rows.iter().flat_map(|rows| rows.iter().take(count).map(|row| Self::row(row.input_ids, row.labels, None)));
        Ok(rows.collect())
    }

    fn row(ids: &[u32], labels: &[i32], prompt: Option<(Value, Vec<u32>)>) -> Row {
        let ids = ids[..ids.len().min(LONGEST)].to_vec();
        let trained = (1..ids.len()).filter(|&at| labels[at] != IGNORE).collect();
        Row { prompt, ids, trained, tuned: Vec::new(), base: None }
    }
}

/// Log-probabilities of the trained tokens of each row.
fn scores(open: &Answering, rows: &[Row]) -> Result<Vec<Vec<f32>>, Failure> {
    let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(1);
    let mut generator = Generator::new(&open.model, &open.engine, open.engine.device(), longest);
    let mut score = |row: &Row| -> Result<Vec<f32>, Failure> {
        let all = generator.score(&row.ids)?;
        // The first token has no score: that of place n stands at n - 1.
        Ok(row.trained.iter().map(|&at| all[at - 1]).collect())
    };
    rows.iter().map(&mut score).collect()
}

fn tell(verdict: &Verdict, question: &Question<'_>, tokenizer: &Tokenizer) -> Result<(), Failure> {
    if let Some(agreement) = &verdict.agreement {
        ui::line(&numbers(verdict, agreement))?;
    }
    for problem in &verdict.problems {
        ui::line(&format!("error: {}", words(problem, question, tokenizer)))?;
    }
    if verdict.problems.is_empty() {
        ui::line(&format!("The server's `{}` is the trained model.", question.name))?;
    }
    Ok(())
}

fn numbers(verdict: &Verdict, agreement: &Agreement) -> String {
    let mut text = format!(
        "{} rows, {} prompts the server wrote itself, {} trained tokens: log-probabilities differ by {:.2e} on average, {:.2e} at \
         most",
        verdict.rows, verdict.prompts, agreement.tokens, agreement.mean, agreement.max
    );
    if let (Some(to_base), Some(signal)) = (agreement.mean_to_base, agreement.signal) {
        text.push_str(&format!("; from the base's by {to_base:.2e}, where the trained model is {signal:.2e} away"));
    }
    text
}

fn words(problem: &Problem, question: &Question<'_>, tokenizer: &Tokenizer) -> String {
    let name = question.name;
    match problem {
        Problem::NoSuchName { offered } => {
            format!("wrong model name: nobody there is called `{name}`; there are {}", offered.join(", "))
        }
        Problem::Untrained { listed_as_base: true } => {
            format!(
                "wrong model name: `{name}` is the base, which wasn't trained; ask for the name before the `=` of --lora-modules"
            )
        }
        Problem::Untrained { listed_as_base: false } => {
            format!(
                "`{name}` answers as the untrained base: its adapter has no effect there; `ferrotune check` says why"
            )
        }
        Problem::Template { prompts, at, trained, served } => {
            let text = |ids: &[u32]| {
                let text = tokenizer.decode(&ids[..ids.len().min(SHOWN)], false).unwrap_or_default();
                if ids.is_empty() { "ends".to_owned() } else { format!("{text:?}") }
            };
            format!(
                "wrong template: {prompts} prompts are written otherwise than in training; the first from token {at} on, where \
                 training has {} and the server {}. Start it with the chat_template.jinja of `ferrotune deploy`",
                text(trained),
                text(served)
            )
        }
        Problem::Scaling { factor } => format!(
            "wrong rank or scaling: the adapter acts as if scaled by {factor:.3} of what it was trained with; look at r, lora_alpha \
             and use_rslora in the adapter_config.json that the server reads"
        ),
        Problem::Other => format!(
            "`{name}` is neither the trained model nor the base: another adapter, another base, other numbers (quantised \
             weights?), or --tolerance {} is too strict for it",
            question.tolerance
        ),
    }
}
