//! The reference page is written from the table.

use std::fs;
use std::path::Path;

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipe-keys.md");
    let written = fs::read_to_string(path).unwrap().replace("\r\n", "\n");
    assert!(
        written == ferrotune_config::reference_markdown(),
        "run `cargo run -p ferrotune-config --example recipe_keys > docs/recipe-keys.md`"
    );
}
