//! `plan`: what a training takes, on cards that nobody needs to have or on the machine at hand, from a recipe and a
//! model's configuration alone.

use crate::failure::{self, Failure};
use crate::page::{self, Page};
use crate::prepare::{self, Resolved};
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::Want;
use ferrotune_checkpoint::{Error, open_config, open_tokenizer};
use ferrotune_config::Verb;
use ferrotune_config::plan::Plan;
use ferrotune_data::error::DataError;
use ferrotune_data::prepare::{Prepared, prepare as encode};
use ferrotune_data::rows::Rows;
use ferrotune_model::Config;
use ferrotune_tensor::cards::{self, CARDS};
use ferrotune_train::{EvaluatedRow, Machine, RowLengths, Subject, assumed_rows, evaluated_rows, forecast, measured};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How long the machine at hand is measured.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most cards that are planned for.
const MOST: usize = 1024;

/// Where the run is to be.
#[derive(Debug, clap::Args)]
pub(crate) struct Where {
    /// Machines.
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Cards in each; without --gpu, processes.
    #[arg(long, value_name = "G", default_value_t = 1)]
    gpus: usize,
    /// Which cards: L20, 4090, A100, H100 ...; without it, the processors of this machine, which are measured.
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Speed of each machine's network card, in gigabits a second.
    #[arg(long, value_name = "GBIT", default_value_t = 25.0)]
    network: f64,
}

/// What is planned, and how it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    place: Where,
    /// How the plan is printed.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    format: String,
}

/// Prints the plan; exit code 1 if the recipe doesn't fit.
pub(crate) fn plan(args: &PlanArgs, recipe: &[String]) -> Result<(), Failure> {
    let place = Place::new(&args.place)?;
    let resolved = prepare::resolve(recipe, Verb::Plan)?;
    let model = Shape::of(&resolved)?;
    let (rows, evaluated, assumed) = rows(&resolved, &model)?;
    if !place.is_known() {
        ui::say("Measuring this machine, for up to 20 seconds.");
    }
    let subject = subject(&resolved, &model, (rows, evaluated), (&place, PATIENCE))?;
    let found = forecast(&subject).map_err(|error| resolved.place(error))?;
    let page = Page { subject: &subject, forecast: &found, model: &model.name, assumed: assumed.as_deref() };
    match args.format.as_str() {
        "json" => ui::line(&serde_json::to_string_pretty(&page::json(&page))?)?,
        _ => ui::line(&page::text(&page))?,
    }
    if found.meant.choice.fits { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

/// A recipe's run on a place, which is measured if it is this machine.
pub(crate) fn subject<'a>(
    resolved: &Resolved,
    model: &'a Shape,
    (rows, evaluated): Lengths,
    (place, patience): (&Place, Duration),
) -> Result<Subject<'a>, Failure> {
    let plan = resolved.plan.clone();
    let mut subject =
        Subject { config: &model.config, json: &model.json, plan, rows, evaluated, machine: place.machine() };
    if let Place::Here { nodes, processes, network } = *place {
        let available = environment::available_memory();
        let found = measured(&subject, [nodes, processes], network, available, patience);
        subject.machine = found.map_err(|error| resolved.place(error))?;
    }
    Ok(subject)
}

/// Where a run is to be, as asked for.
pub(crate) enum Place {
    /// On cards from the table.
    Cards(Machine),
    /// On this machine's processors, and on others like it.
    Here { nodes: usize, processes: usize, network: f64 },
}

impl Place {
    pub(crate) fn new(args: &Where) -> Result<Self, Failure> {
        let wrong = |message: String| Err(Failure::Other(anyhow!(message)));
        let Where { nodes, gpus, network, .. } = *args;
        if nodes == 0 || gpus == 0 || nodes.saturating_mul(gpus) > MOST {
            return wrong(format!(
                "--nodes {nodes} --gpus {gpus}: write numbers from 1 on, of at most {MOST} cards in all"
            ));
        }
        if gpus > 64 {
            return wrong(format!("--gpus {gpus} is the number of one machine's cards; no machine has more than 64"));
        }
        if !(0.01..=100_000.0).contains(&network) {
            return wrong(format!(
                "--network {network} is no speed of a network card in gigabits a second, such as 25"
            ));
        }
        let network = network * 1e9;
        let Some(name) = &args.gpu else { return Ok(Self::Here { nodes, processes: gpus, network }) };
        let Some(card) = cards::find(name) else {
            let known: Vec<&str> = CARDS.iter().filter(|card| card.bf16 > 0.0).map(|card| card.name).collect();
            return wrong(format!("--gpu {name} is no card that is known; those are {}", known.join(", ")));
        };
        if card.bf16 == 0.0 {
            return wrong(format!(
                "--gpu {name}: this card has no bf16, which training needs; take an A10, L4 or later one"
            ));
        }
        Ok(Self::Cards(Machine::Cards { card, nodes, per_node: gpus, network }))
    }

    fn is_known(&self) -> bool {
        matches!(self, Self::Cards(_))
    }

    fn machine(&self) -> Machine {
        match *self {
            Self::Cards(machine) => machine,
            Self::Here { nodes, processes, network } => Machine::local(nodes, processes, network),
        }
    }
}

/// A model's configuration, and where its other files may be.
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) path: std::path::PathBuf,
    json: Value,
    pub(crate) config: Config,
}

impl Shape {
    pub(crate) fn of(resolved: &Resolved) -> Result<Self, Failure> {
        let located = prepare::locate(resolved, Want::TokenizerOnly)?;
        let json = open_config(&located.path).map_err(|error| resolved.place(error))?;
        let config = Config::from_json(&json).map_err(|error| resolved.place(error))?;
        Ok(Self { name: located.name, path: located.path, json, config })
    }
}

/// The lengths of the rows, and of those that are evaluated on, set by set.
type Lengths = (RowLengths, Vec<Vec<EvaluatedRow>>);

/// The same, and if they are assumed, why.
type Found = (RowLengths, Vec<Vec<EvaluatedRow>>, Option<String>);

fn rows(resolved: &Resolved, model: &Shape) -> Result<Found, Failure> {
    let plan = &resolved.plan;
    let assumed = |why: String| Ok((RowLengths::Assumed(plan.data.cutoff_len), assumed_rows(plan), Some(why)));
    if plan.data.datasets.is_empty() {
        return assumed("the recipe names no dataset".into());
    }
    let files = match open_tokenizer(Path::new(&model.path)) {
        Ok(files) => files,
        Err(Error::Missing { .. }) => return assumed("the model's tokenizer isn't here".into()),
        Err(error) => return Err(resolved.place(error)),
    };
    let mut tokenizer = prepare::tokenizer(&plan.model, &files)?;
    match encode(&plan.data, &mut tokenizer, &ui::Encoding::default()) {
        Ok(prepared) => {
            let (rows, evaluated) = lengths(&prepared, plan);
            Ok((rows, evaluated, None))
        }
        Err(error) if is_absent(&error) => assumed(error.to_string()),
        Err(error) => Err(resolved.place(error)),
    }
}

/// Tokens of the rows that are trained and evaluated on.
pub(crate) fn lengths(prepared: &Prepared, plan: &Plan) -> Lengths {
    let of = |rows: &Rows| -> Vec<usize> { (0..rows.len()).map(|i| rows.size(i).0).collect() };
    let train = prepared.train.iter().flat_map(of).collect();
    (RowLengths::Known(train), evaluated_rows(prepared.eval.iter().map(|(_, rows)| rows), plan))
}

/// Whether data is elsewhere, and not wrong.
fn is_absent(error: &DataError) -> bool {
    use DataError::{MissingFile, NoFiles, NoRegistry, RemoteDataset, RemoteRegistry};
    matches!(
        error,
        NoRegistry { .. } | MissingFile { .. } | NoFiles { .. } | RemoteDataset { .. } | RemoteRegistry { .. }
    )
}
