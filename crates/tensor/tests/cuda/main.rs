//! The CUDA kernels, as the PTX that ships, run by the interpreter and held against f64 versions and the CPU kernels: odd
//! lengths, every element type, two schedules that must give the same bits.

mod attention;
mod attention_plain;
mod common;
mod dora;
mod elementwise;
mod experts;
mod grouped;
mod grouped_plain;
mod loss;
mod norm;
mod optimizer;
mod rope;
mod rows;
mod sample;
mod spans;
mod stacks;
mod traffic;
