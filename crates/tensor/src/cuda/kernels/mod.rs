//! Launches: a file for each file of `kernels/`, which knows the names of its kernels and the shapes they are launched in.
//!
//! A launch has the op's name, and takes the tensors that the op has allocated; workspaces have functions of their own, which
//! the op asks before, whether anything is executed or not.

mod attention;
mod dora;
mod elementwise;
mod experts;
mod grouped;
mod loss;
mod norm;
mod optimizer;
mod rope;
mod rows;
mod sample;

pub(crate) use attention::{AttentionCall, attention_backward_workspace, attention_splits, tables as attention_tables};
pub(crate) use experts::{expert_tiles, route_workspace, tiles_of};
pub(crate) use grouped::{GroupedTerm, grouped_type};
pub(crate) use norm::{column_parts_workspace, rmsnorm_backward_workspace};
pub(crate) use optimizer::squares_workspace;
pub(crate) use rope::{norm_rope_backward_workspace, norm_rope_takes};
pub(crate) use rows::NoiseSource;

use super::gpu::{Arg, Shape};
use crate::{DType, Tensor};

/// As kernels' names end. Of integers, which no kernel takes as values, there is no kernel of that name: a fault that says so.
fn name(tensor: &Tensor) -> &'static str {
    match tensor.dtype() {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::F64 => "f64",
        DType::U32 => "u32",
        DType::I32 => "i32",
    }
}

/// A size as kernels take it: 32 bits. A launch with one that has more is a fault that names kernel and size.
fn size(n: usize) -> Arg {
    u32::try_from(n).map_or(Arg::TooLarge(n), Arg::from)
}

/// Blocks of a grid; a launch of more than a GPU has is a fault.
fn blocks(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A block of so many threads for each of `rows` rows.
fn a_block_a_row(rows: usize, threads: u32) -> Shape {
    Shape::new([blocks(rows), 1, 1], [threads, 1, 1])
}

/// Threads of 256 over columns, and so many blocks over rows.
fn over_columns(width: usize, rows: usize) -> Shape {
    Shape::new([blocks(width.div_ceil(256)), blocks(rows), 1], [256, 1, 1])
}
