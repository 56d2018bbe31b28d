//! Launches: a file for each file of `kernels/`, which knows the names of its kernels and the shapes they are launched in.
//!
//! A launch has the op's name, and takes the tensors that the op has allocated; workspaces have functions of their own, which
//! the op asks before, whether anything is executed or not.

mod attention;
mod dora;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod rope;
mod rows;

pub(crate) use attention::{AttentionCall, attention_backward_workspace, tables as attention_tables};
pub(crate) use norm::{column_parts_workspace, rmsnorm_backward_workspace};
pub(crate) use optimizer::squares_workspace;
pub(crate) use rows::NoiseSource;

use super::gpu::Shape;
use crate::{DType, Tensor};

/// As kernels' names end.
///
/// # Panics
/// With integers, which no kernel takes as values.
fn name(tensor: &Tensor) -> &'static str {
    match tensor.dtype() {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        other => panic!("a kernel of {other}"),
    }
}

/// A size as kernels take it.
///
/// # Panics
/// Beyond 2^32: tensors of a step have at most 2^31 rows and columns.
fn size(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("{n} rows or columns"))
}

/// A block of so many threads for each of `rows` rows.
fn a_block_a_row(rows: usize, threads: u32) -> Shape {
    Shape::new([size(rows), 1, 1], [threads, 1, 1])
}

/// Threads of 256 over columns, and so many blocks over rows.
fn over_columns(width: usize, blocks: usize) -> Shape {
    Shape::new([size(width.div_ceil(256)), size(blocks), 1], [256, 1, 1])
}
