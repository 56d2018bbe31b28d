//! The worked examples of `docs/plan.md` are what the program says.

#[path = "../examples/plan_tables.rs"]
mod tables;

#[test]
fn the_tables_are_what_the_program_says() {
    let compared = tables::compared();
    let missing: Vec<&String> = compared.iter().filter(|(_, found)| !found).map(|(row, _)| row).collect();
    assert!(
        missing.is_empty(),
        "docs/plan.md is out of date: cargo run --release -p ferrotune-train --example plan_tables; it lacks {missing:?}"
    );
    assert_eq!(compared.len(), 7);
}
