//! NVIDIA GPUs, through libraries that are opened at run time: nothing of CUDA is needed to build the program.
//!
//! [`Search`] finds libraries, [`functions!`](crate::functions) makes tables of what they export, [`Libraries`] are those that
//! one GPU needs, [`Gpu`] is one in use, and `kernels` has the launches.

pub mod blas;
pub mod driver;
mod gpu;
mod images;
mod installed;
pub(crate) mod kernels;
mod library;
mod products;
mod search;
mod table;
mod transfer;

pub(crate) use gpu::GpuRanges;
pub use gpu::{About, Gpu, Options};
pub use installed::{Libraries, Unusable};
pub use library::Library;
pub(crate) use products::{Matrix, Multiply};
pub use search::{NotLoaded, Search, Surroundings, Wanted};
pub use table::CallError;
