//! NVIDIA GPUs, through libraries that are opened at run time: nothing of CUDA is needed to build the program.
//!
//! [`Search`] finds libraries, [`functions!`](crate::functions) makes tables of what they export, [`Libraries`] are those that
//! one GPU needs, [`Gpu`] is one in use, `kernels` has the launches, and [`Collectives`] is NCCL for several.

pub mod blas;
mod collectives;
pub mod driver;
mod gpu;
mod images;
mod installed;
pub(crate) mod kernels;
mod library;
pub mod nccl;
pub mod nvml;
mod peers;
mod products;
mod search;
mod table;
mod transfer;

pub use collectives::{Before, Call, Collectives, Communicator, Launched, Mark, Operand, Queue, State};
pub(crate) use gpu::GpuRanges;
pub use gpu::{About, Gpu, Options};
pub use installed::{Libraries, Unusable};
pub use library::Library;
pub use peers::{Copied, Reach, Sight, copy_between, reach, sight};
pub(crate) use products::{Matrix, Multiply};
pub use search::{NotLoaded, Search, Surroundings, Wanted};
pub use table::CallError;
