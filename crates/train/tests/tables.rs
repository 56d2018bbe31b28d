//! The tables of `docs/strategies.md` are what the plan's model says.

#[path = "../benches/simulate/tables.rs"]
mod simulated;

#[test]
fn the_tables_are_what_the_model_says() {
    let (told, [_, document, _]) = (simulated::tables(false), simulated::document());
    let missing: Vec<&str> = told.lines().filter(|line| !document.contains(line)).collect();
    assert!(
        missing.is_empty(),
        "docs/strategies.md is out of date: cargo bench -p ferrotune-train --bench simulate; it lacks {missing:#?}"
    );
    assert!(told.lines().count() > 30, "{told}");
}
