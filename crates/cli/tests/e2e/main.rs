//! The program as a user has it: the real binary, tiny models, no network. One test program, so that it links once.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod answers;
mod bad_input;
mod before;
mod common;
mod determinism;
mod disks;
mod doctor;
mod experts;
mod foretold;
mod gguf;
mod golden_train;
mod gpu;
mod gpus;
mod launch;
mod many;
mod network;
mod outputs;
mod resume;
mod serve;
mod splits;
mod streamed;
mod trackers;
mod verbs;
mod worked;
