//! NVIDIA GPUs, through libraries that are opened at run time: nothing of CUDA is needed to build the program.
//!
//! [`Search`] finds libraries, [`functions!`](crate::functions) makes tables of what they export.

pub mod blas;
pub mod driver;
mod library;
mod search;
mod table;

pub use library::Library;
pub use search::{NotLoaded, Search, Surroundings, Wanted};
pub use table::CallError;
