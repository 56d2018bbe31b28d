//! Arrays, fused ops with their gradients, and the tape: what a transformer is made of, without knowing one.
//!
//! [`Device`] is `cpu`, `cuda`, or `meta` (which imitates one of them: counts all, executes nothing). [`Tape`] records ops; a
//! parameter's data and gradient are asked of its [`Host`].

pub mod cards;
pub mod cpu;
pub mod cuda;
mod device;
mod dtype;
mod heap;
pub mod ops;
mod shape;
mod tape;
mod tensor;

pub use device::{Device, Fault, Kind, Profile, Track};
pub use dtype::DType;
pub use shape::Shape;
pub use tape::{Grads, Host, Param, ParamInfo, Phase, Segment, Tape, Var};
pub use tensor::{Lent, Tensor};
