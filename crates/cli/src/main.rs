//! The ferrotune program.
fn main() {}
