//! Prints the JSON schema of recipes, for `docs/recipe.schema.json`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    println!("{:#}", ferrotune_config::recipe_schema());
}
