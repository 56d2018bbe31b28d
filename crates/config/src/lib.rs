//! Recipes: what the user wrote  and what it means ([`plan::Plan`]).
#![forbid(unsafe_code)]

pub mod plan;
