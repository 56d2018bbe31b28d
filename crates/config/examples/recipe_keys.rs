//! Prints the reference of recipe keys, for `docs/recipe-keys.md`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    print!("{}", ferrotune_config::reference_markdown());
}
