//! What is done by processes of their own: they look at GPUs and try them, and tell what comes of it line by line.

mod pairs;
mod reduce;
mod survey;

use crate::facts::{Gpus, Outcome, Trial, What};
use crate::trials;
use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::{CallError, Libraries, Options, Search};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Work of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Looks for libraries and GPUs.
    Survey,
    /// Copies between pairs of GPUs, one after the other. The flag says whether they go the direct way.
    Copies(Vec<(usize, usize)>, bool),
    /// Products and attention on a GPU, for about so many milliseconds each.
    Kernels(usize, u64),
    /// One rank of a sum by NCCL. Rank 0 has no identity yet and tells one.
    Rank {
        /// Its number, and that of its GPU.
        rank: usize,
        /// All of them.
        ranks: usize,
        /// What they find each other by, in hexadecimal digits.
        identity: Option<String>,
        /// Whether NCCL may copy directly. The process is started so.
        direct: bool,
    },
}

/// What such a process tells, a line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// All that was found.
    Survey(Gpus),
    /// A trial begins.
    Begin(What),
    /// It has ended.
    Done(Trial),
    /// What the other ranks find this one by.
    Identity(String),
}

/// Does a part of the work in this process.
pub fn run(part: &Part, search: &Search, tell: &mut dyn FnMut(Told)) {
    match part {
        Part::Survey => tell(Told::Survey(survey::survey(search))),
        Part::Copies(pairs, direct) => pairs::copies(search, pairs, *direct, tell),
        Part::Kernels(number, each) => kernels(search, *number, Duration::from_millis(*each), tell),
        Part::Rank { rank, ranks, identity, direct } => {
            let what = What::AllReduce { ranks: *ranks, direct: *direct };
            reduce::rank(search, (what, *rank, *ranks), identity.as_deref(), tell);
        }
    }
}

/// A GPU ready for work.
fn open(search: &Search, number: usize) -> Result<Device, String> {
    let libraries = Libraries::find(search).map_err(|error| error.to_string())?;
    let libraries = libraries.ok_or("there is no GPU any more")?;
    let options = Options { device: number, ..Options::default() };
    Device::cuda(&libraries, &options).map_err(|error: CallError| error.to_string())
}

fn kernels(search: &Search, number: usize, each: Duration, tell: &mut dyn FnMut(Told)) {
    let gpu = Some(number);
    let first = What::Product { gpu, dtype: "bf16".to_owned() };
    tell(Told::Begin(first.clone()));
    match open(search, number) {
        Ok(device) => trials::all(&device, gpu, each, tell),
        Err(error) => tell(Told::Done(Trial { what: first, size: String::new(), outcome: Outcome::Failed(error) })),
    }
}
