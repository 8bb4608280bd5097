//! `execution/check/report.json`: what CHECK found.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::finding::Finding;
use super::phase::Phase;

/// The report. It names the set it is about, so that a report cannot vouch for other artifacts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// Version of this format.
    pub schema_version: String,
    /// `CHECK`.
    pub phase: Phase,
    /// Whether nothing refuses.
    pub passed: bool,
    /// How many artifacts were checked.
    pub artifacts: u64,
    /// Listing hash of the artifacts that were checked.
    pub artifact_set_hash: Digest,
    /// By path, line, column, pointer, code and message.
    pub findings: Vec<Finding>,
}
