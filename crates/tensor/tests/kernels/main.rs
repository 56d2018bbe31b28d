//! The CPU kernels against naive versions in f64.

mod attention;
mod common;
mod gemm;
mod half;
mod rowwise;
