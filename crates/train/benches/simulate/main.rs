//! The time of a step on machines that nobody here has, and what it takes of their memory:
//! `cargo bench -p ferrotune-train --bench simulate` writes the tables into `docs/strategies.md`, and prints them. A test
//! (`tests/tables.rs`) compares some of them with the document.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod tables;

fn main() {
    let ([before, _, behind], tables) = (tables::document(), tables::tables(true));
    std::fs::write(tables::path(), format!("{before}{tables}{behind}")).expect("the document can be written");
    println!("{tables}");
}
