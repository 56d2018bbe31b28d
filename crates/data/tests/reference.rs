//! The reference pages are written from the tables.

use std::fs;
use std::path::Path;

use ferrotune_data::reference::{formats_markdown, templates_markdown};

#[test]
fn the_reference_pages_are_up_to_date() {
    for (page, what, text) in
        [("templates", "templates", templates_markdown()), ("data-formats", "formats", formats_markdown())]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/{page}.md"));
        let written = fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n");
        assert!(written == text, "run `cargo run -p ferrotune-data --example reference {what} > docs/{page}.md`");
    }
}
