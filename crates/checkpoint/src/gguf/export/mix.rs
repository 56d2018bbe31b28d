//! Which type each tensor gets: the rules of llama.cpp's `llama-quant.cpp` without an importance matrix.

use std::collections::BTreeSet;

use super::architecture::Architecture;
use crate::dtype::Dtype;

/// Types of a file's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// All in 32 bits.
    F32,
    /// Matrices in f16.
    F16,
    /// Matrices in bf16.
    Bf16,
    /// Matrices in 8.5 bits.
    Q8_0,
    /// Matrices in 4.5 bits.
    Q4_0,
    /// Matrices in 4.5 bits, the more sensitive ones in 6.6.
    Q4KM,
}

impl FileType {
    /// llama.cpp's number (`llama_ftype`).
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// As file names have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4KM => "Q4_K_M",
        }
    }

    /// Of most matrices.
    fn main(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q4_0 => Dtype::Q4_0,
            Self::Q4KM => Dtype::Q4K,
        }
    }
}

/// The rules for one model.
pub(super) struct Mix {
    kind: FileType,
    blocks: usize,
    experts: usize,
    /// Blocks with a value projection, in order: the rule counts them, not the blocks.
    values: Vec<usize>,
    /// The head reads the embedding.
    is_tied: bool,
    /// 80 blocks whose value projections are small beside the others: Llama and Qwen2 with 70 billion parameters.
    is_70b: bool,
}

impl Mix {
    pub(super) fn new(kind: FileType, model: &Architecture, names: &[&str]) -> Self {
        let values = names.iter().filter(|name| name.ends_with(".attn_v.weight")).map(|name| block(name));
        let is_70b = model.blocks == 80
            && match model.model_type.as_str() {
                "qwen2" => true,
                "llama" | "mistral" => model.heads != model.kv_heads,
                _ => false,
            };
        Self {
            kind,
            blocks: model.blocks,
            experts: model.experts.map_or(0, |experts| experts.count),
            values: values.collect::<BTreeSet<_>>().into_iter().collect(),
            is_tied: !names.contains(&"output.weight"),
            is_70b,
        }
    }

    /// The type of a tensor.
    pub(super) fn of(&self, name: &str, shape: &[usize]) -> Dtype {
        let is_matrix = shape.len() >= 2 && name.ends_with("weight");
        if !is_matrix || name.ends_with("_norm.weight") || name.ends_with("ffn_gate_inp.weight") {
            return Dtype::F32;
        }
        let row = shape[shape.len() - 1];
        match self.kind.main() {
            plain @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16) => plain,
            main => fitting(self.chosen(name, row, main), row),
        }
    }

    fn chosen(&self, name: &str, row: usize, main: Dtype) -> Dtype {
        let is_k = self.kind == FileType::Q4KM;
        let is_part = |part: &str| name.contains(part);
        if name == "output.weight" || (self.is_tied && name == "token_embd.weight") {
            return match main {
                main if !row.is_multiple_of(main.block().0) => Dtype::Q8_0,
                Dtype::Q8_0 => Dtype::Q8_0,
                _ => Dtype::Q6K,
            };
        }
        if is_part("attn_v.weight") {
            let number = self.values.iter().position(|value| *value == block(name)).unwrap_or(0);
            return match () {
                () if self.experts == 8 => Dtype::Q8_0,
                () if is_k && has_more_bits(number, self.values.len()) => Dtype::Q6K,
                () if is_k && self.is_70b => Dtype::Q5K,
                () => main,
            };
        }
        if is_part("attn_k.weight") && self.experts == 8 {
            return Dtype::Q8_0;
        }
        if is_part("ffn_down") && is_k && has_more_bits(block(name), self.blocks) {
            return Dtype::Q6K;
        }
        if is_part("attn_output.weight") && is_k && self.experts == 8 {
            return Dtype::Q5K;
        }
        main
    }
}

/// The first and the last eighth of the blocks, and every third of the others.
fn has_more_bits(number: usize, count: usize) -> bool {
    let eighth = count / 8;
    number < eighth || number >= 7 * count / 8 || (number - eighth) % 3 == 2
}

/// A type whose blocks fill rows of this width.
fn fitting(wanted: Dtype, row: usize) -> Dtype {
    let fits = |kind: Dtype| row.is_multiple_of(kind.block().0);
    let instead = match wanted {
        wanted if fits(wanted) => return wanted,
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        _ => Dtype::F16,
    };
    if fits(instead) { instead } else { Dtype::F16 }
}

/// The number of a tensor's block.
fn block(name: &str) -> usize {
    name.split('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
