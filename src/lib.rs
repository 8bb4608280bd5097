//! `git cbia`: generated files earn their place.
//!
//! The floors, from the ground up; a module names lower floors only (`tests/it/tidy.rs` holds it):
//! `document` (values), `store`, `gate`, `artifact`, `policy`, `executor`, `phase`, `pipeline`, `verify`, `cli`.

pub mod artifact;
pub mod cli;
pub mod document;
pub mod executor;
pub mod gate;
pub mod phase;
pub mod pipeline;
pub mod policy;
pub mod store;
pub mod verify;
