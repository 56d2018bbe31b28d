//! The ops on `cuda` beside `cpu`: the same body on both, through the fake driver and the fake cublasLt, which the same loader
//! opens that opens NVIDIA's; each on two GPUs whose work is done in different orders.

mod experts;
mod faults;
mod gpus;
mod nets;
mod order;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod whole;
