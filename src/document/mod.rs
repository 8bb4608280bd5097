//! F0: values. One file per document kind, and the only serde derives. No I/O.

pub mod audit_bundle;
pub mod authority_ledger;
pub mod cache_entry;
pub mod cage;
pub mod capsule;
pub mod check_report;
pub mod closure;
pub mod confinement;
pub mod decision;
pub mod digest;
pub mod executor;
pub mod explain;
pub mod finding;
pub mod flow_manifest;
pub mod gen_exchange;
pub mod glob;
pub mod graph;
pub mod inputs_manifest;
pub mod json;
pub mod lock_report;
pub mod machine;
pub mod metadata;
pub mod objectives;
pub mod opa_input;
pub mod path;
pub mod phase;
pub mod pipeline;
pub mod promotion;
pub mod push_input;
pub mod record;
pub mod repair_capsule;
pub mod repair_report;
pub mod run_ledger;
pub mod schema;
pub mod selection;
mod writer;

/// The version of every document format this program writes, and the only one it reads.
pub const SCHEMA_VERSION: &str = "0.1.0";
