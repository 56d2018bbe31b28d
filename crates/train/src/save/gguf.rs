//! A merged model as one GGUF file. What the file says of it and in which types is `checkpoint`'s; this module hands over the
//! model's shape and its weights, one by one.

use crate::engine::Engine;
use ferrotune_checkpoint::gguf::{Architecture, Description, Experts, FileType, GgufDraft, Scaling};
use ferrotune_checkpoint::{Dtype, Error, FolderWriter, Result, TensorInfo, TokenizerFiles};
use ferrotune_model::{Config, Model, Role, Scaling as ModelScaling};

/// A model whose weights lie whole in an engine, to be written as GGUF.
pub struct GgufModel<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its shape.
    pub model: &'a Model,
    /// Its weights.
    pub engine: &'a Engine,
    /// Its tokenizer, with the chat template that the file shall have.
    pub tokenizer: &'a TokenizerFiles,
    /// Ids that end an answer, the eos token's first.
    pub ends: &'a [u32],
    /// Types of the weights.
    pub kind: FileType,
}

impl GgufModel<'_> {
    /// Plans the file; nothing is written yet.
    ///
    /// # Errors
    /// If llama.cpp can't compute such a model; the text says why, and the cure.
    pub fn draft(&self) -> Result<GgufDraft, String> {
        let architecture = architecture(self.model.config());
        let description = Description {
            name: self.name,
            architecture: &architecture,
            tokenizer: self.tokenizer,
            ends: self.ends,
            kind: self.kind,
        };
        let infos = self.numbers().into_iter().map(|number| {
            let param = &self.engine.parameters()[number].param;
            (param.name.clone(), TensorInfo { shape: param.shape.dims().to_vec(), dtype: Dtype::F32 })
        });
        GgufDraft::new(&description, &infos.collect::<Vec<_>>())
    }

    /// Writes the planned file, a tensor at a time.
    ///
    /// # Errors
    /// If a weight can't be stored in its type, or the file not be written.
    pub fn write(&self, draft: GgufDraft, folder: &FolderWriter, file: &str) -> Result<()> {
        let numbers = self.numbers();
        draft.write(folder, file, &|at| {
            let lost = |reason: String| Error::Unwritable { path: folder.path().join(file), reason };
            let tensor = self.engine.gather(numbers[at]).map_err(|error| lost(error.to_string()))?;
            tensor.map(|tensor| tensor.to_f32()).ok_or_else(|| lost("the weights are on another rank".to_owned()))
        })
    }

    /// Numbers of the parameters that the file holds.
    fn numbers(&self) -> Vec<usize> {
        let parameters = self.engine.parameters().iter().enumerate();
        parameters.filter(|(_, parameter)| parameter.role == Role::Base).map(|(number, _)| number).collect()
    }
}

fn architecture(config: &Config) -> Architecture {
    Architecture {
        model_type: config.model_type.clone(),
        vocabulary: config.vocab_size,
        blocks: config.num_hidden_layers,
        context: config.max_position_embeddings,
        hidden: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        eps: config.rms_norm_eps,
        theta: config.rope.theta,
        scaling: scaling(&config.rope.scaling),
        windows: config.sliding_window.clone(),
        experts: config.moe.as_ref().map(|moe| Experts {
            count: moe.experts,
            used: moe.top_k,
            inner: moe.intermediate_size,
            shared: moe.shared,
            normalize: moe.normalize,
            everywhere: moe.sparse.iter().all(|sparse| *sparse),
        }),
    }
}

fn scaling(scaling: &ModelScaling) -> Scaling {
    match *scaling {
        ModelScaling::None => Scaling::None,
        ModelScaling::Linear { factor } => Scaling::Linear { factor },
        ModelScaling::Dynamic { .. } => Scaling::Dynamic,
        ModelScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
            let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            let is_usual = truncate && (attention_factor - usual).abs() < 1e-6;
            Scaling::Yarn { factor, original, beta_fast, beta_slow, is_usual }
        }
        ModelScaling::Llama3 { factor, original, low, high } => Scaling::Llama3 { factor, original, low, high },
    }
}
