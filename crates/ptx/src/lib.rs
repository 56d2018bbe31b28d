//! Runs PTX without a GPU: an interpreter for the kernels that ship, so that any machine can test them.
//!
//! It is stricter than a GPU: whatever a GPU would leave undefined is a [`Fault`] that names kernel, PTX line and thread.
//! That is accesses outside an allocation, misaligned or of bytes nobody wrote; threads that communicate through memory
//! without a barrier between them; a barrier, shuffle or matrix instruction that not all its threads reach; shared memory
//! read before it is written (NaN) or while `cp.async` is still filling it. Warps and blocks run in an order drawn from a
//! seed. Forms of instructions that no kernel uses are unknown, and a hard error.
//!
//! A launch's [`Stats`] count what its accesses would cost: sectors of global memory, passes over the banks of shared memory.
//! What it can't show: speed, spills, and a misreading of the instruction set that kernel and interpreter
//! share. Accuracy: `add`, `mul`, `fma`, `div.rn` and `sqrt.rn` are exact to the bit; `ex2`, `lg2`, `rcp`, `rsqrt` and `sqrt`
//! in their `.approx` forms are the nearest float with its last bit cleared (error below 2^-22, as the PTX manual allows)
//! unless exact; `mma` adds its products and the accumulator exactly and rounds once towards zero.

#![forbid(unsafe_code)]

mod decode;
mod exec;
mod fault;
mod forms;
mod launch;
mod memory;
mod module;
mod shared;
mod source;
mod traffic;
mod warp;

pub use fault::{Cause, Fault, Place};
pub use launch::{Arg, Call, Dim, Options, Stats};
pub use memory::Memory;
pub use module::{Kernel, Module, Param};
pub use traffic::Traffic;
