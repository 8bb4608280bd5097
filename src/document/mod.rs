//! F0: values. One file per document kind, and the only serde derives. No I/O.

pub mod cage;
pub mod decision;
pub mod digest;
pub mod explain;
pub mod finding;
pub mod glob;
pub mod json;
pub mod path;
