//! From a trained model to a running server: the files that start vLLM on it, and the proof that what answers there is what
//! was trained.

#![forbid(unsafe_code)]

mod error;
mod estimate;
mod manifest;
mod request;
mod service;
pub mod verify;
mod yaml;

pub use error::{Error, Result};
pub use estimate::{Demand, Sizing, Wanted, size};
pub use manifest::{compose, kubernetes};
pub use request::{curl, python};
pub use service::{Adapter, Base, Service, model_name};
