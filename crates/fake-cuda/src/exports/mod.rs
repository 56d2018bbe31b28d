//! What the shared object exports, under the names and signatures of NVIDIA's headers.

mod blas;
mod driver;
mod module;
mod nccl;
mod nvml;
