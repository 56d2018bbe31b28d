//! What a machine is, what of it is wrong for training, and what cures it.
//!
//! Facts, judgement and words are apart: [`read`] and [`gpus`] find out, into the plain structures of [`facts`]; [`rules`] look
//! at those alone and name what is wrong, each with its cure; [`words`] makes a page of both. Whatever touches a GPU is done by
//! processes of their own ([`watch`]), since a driver, a link or a library that hangs or crashes must be told and not shared.
#![forbid(unsafe_code)]

pub mod examine;
pub mod expect;
pub mod facts;
pub mod gpus;
pub mod read;
pub mod rules;
pub mod trials;
pub mod watch;
pub mod words;
