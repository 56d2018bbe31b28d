//! Recipes: what the user wrote ([`Recipe`]) and what it means ([`plan::Plan`]).
//!
//! A leaf of the workspace: it reads no data, no model and no environment. It translates the spellings
//! of LLaMA-Factory and transformers into ferrotune's own, and says everything that is wrong with a
//! recipe at once, with places and cures ([`Diagnostic`]).
#![forbid(unsafe_code)]

mod common;
pub mod diagnostic;
pub mod env;
mod faults;
mod json;
pub mod keys;
pub mod launcher;
mod overrides;
pub mod plan;
mod recipe;
mod reference;
mod resolve;
mod schema;
mod settings;
mod tree;
mod value;

pub use diagnostic::{Diagnostic, Diagnostics, Severity, Span};
pub use recipe::Recipe;
pub use reference::reference_markdown;
pub use resolve::Verb;
pub use schema::recipe_schema;
