//! A GPU of paper: the driver, cublasLt and NCCL as a shared object of the same exports, so that the very binary that users run can
//! be run on any machine, through the same loader and the same calls.
//!
//! Kernels are run by the PTX interpreter, products by plain loops. Nothing runs when it is asked for: streams are queues, and
//! their work is done when somebody waits, in an order drawn from the seed that keeps to nothing but what streams and events
//! demand. So a wait that is missing is found by what comes out. Memory is poisoned, bounds are checked, and what a kernel
//! does wrong is told on standard error with its line of PTX, and is a sticky error, as on a GPU.
//!
//! `FERROTUNE_FAKE_CUDA` says which machine it is, or [`set`] for one device of a test, each of which has its own state:
//! see [`settings`].

mod device;
mod exports;
mod nccl;
mod place;
mod product;
pub mod settings;
mod work;

pub use place::{calls, install, set};
