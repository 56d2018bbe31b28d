//! Prints the reference of templates or of data formats, for `docs/templates.md` and `docs/data-formats.md`, or the schema for
//! `docs/dataset_info.schema.json`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("formats") => print!("{}", ferrotune_data::reference::formats_markdown()),
        Some("schema") => println!("{:#}", ferrotune_data::schema::dataset_info_schema()),
        _ => print!("{}", ferrotune_data::reference::templates_markdown()),
    }
}
