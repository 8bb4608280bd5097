//! CHECK: what is mechanically wrong with the artifacts.
//!
//! Reads: the artifacts, the outputs manifest, the executor's report, the artifact map and the repairs so far; the pipeline's `check` and
//! `struct`, and the schemas that they name; the objectives and the authority ledger.
//! Writes: `execution/check/report.json` and `report.md`.
//! Stops when: a finding refuses and no repair is configured.

use std::collections::BTreeMap;

use super::Evidence;
use crate::artifact::check::check;
use crate::artifact::render::to_markdown;
pub use crate::document::check_report::CheckInput;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::pipeline::Pipeline;

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the report goes.
pub const REPORT_PATH: &str = "execution/check/report.json";
/// Where the same report goes, for people.
pub const MARKDOWN_PATH: &str = "execution/check/report.md";

pub use crate::artifact::check::Input;

/// What the phase gives.
pub struct Output {
    /// The report.
    pub report: CheckReport,
    /// The same, for people too.
    pub evidence: Evidence,
}

/// Checks.
pub fn run(input: &Input) -> Output {
    emitted(check(input))
}

/// What a report is emitted as.
pub fn emitted(report: CheckReport) -> Output {
    let evidence = Evidence::from([
        (super::path(REPORT_PATH), json::emit(&report)),
        (super::path(MARKDOWN_PATH), to_markdown(&report).into_bytes()),
    ]);
    Output { report, evidence }
}

/// The digest of what CHECK is configured to ask: its own section, the declared formats, and the schemas by their bytes.
pub fn config_hash(pipeline: &Pipeline, schemas: &BTreeMap<RepoPath, Vec<u8>>) -> Digest {
    let listing = Digest::of_listing(schemas.iter().map(|(path, bytes)| (path, Digest::of(bytes))));
    Digest::of_canonical(&serde_json::json!({
        "check": pipeline.check,
        "struct": pipeline.r#struct,
        "schemas": listing,
    }))
}

/// The digest of what CHECK looks at: the artifacts, and the documents that account for them.
pub fn input_hash(input: &CheckInput) -> Digest {
    Digest::of_document(input)
}
