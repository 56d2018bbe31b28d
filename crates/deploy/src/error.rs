//! What can go wrong between a trained model and its server.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model can't be served or a server not be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No number of GPUs holds it.
    #[error(
        "the model needs {needed:.1} GiB a GPU on {gpus} of {gpu}, {room:.1} GiB are there; take more or larger GPUs \
         (--tensor-parallel, --gpu), or a smaller --max-model-len"
    )]
    TooLarge {
        /// GiB on each GPU, with one sequence of the length asked for.
        needed: f64,
        /// Number of GPUs.
        gpus: usize,
        /// Their name.
        gpu: String,
        /// GiB that vLLM may take of each.
        room: f64,
    },
    /// The model has no such positions.
    #[error(
        "--max-model-len {asked}: vLLM doesn't start above {limit}, which is as far as the model's positions go; take that or less, \
         or train it for longer rows (`rope_scaling: yarn` with the `cutoff_len`)"
    )]
    TooLong {
        /// Tokens asked for.
        asked: usize,
        /// Tokens of the longest sequence.
        limit: usize,
    },
    /// Heads can't be dealt out evenly.
    #[error("{heads} attention heads can't be dealt out to {gpus} GPUs; take a divisor for --tensor-parallel")]
    Heads {
        /// Attention heads.
        heads: usize,
        /// GPUs asked for.
        gpus: usize,
    },
    /// A name that no server takes.
    #[error("`{name}` can't be the name of a model: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server couldn't be asked.
    #[error("{url}: {reason}")]
    Request {
        /// What was asked.
        url: String,
        /// What came back.
        reason: String,
    },
    /// The server answers, but not what was asked.
    #[error("{url} answered without {missing}; is it a server that can score prompts (vLLM; `echo` and `logprobs`)?")]
    Answer {
        /// What was asked.
        url: String,
        /// What the answer lacks.
        missing: &'static str,
    },
}
