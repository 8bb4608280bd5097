//! `execution/check/report.json`: what CHECK found.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::finding::Finding;
use super::phase::Phase;
use super::run_ledger::ArtifactHashes;

/// What a check's outcome is a function of, beside how it is configured. Never stored: its hash is a part of a key.
#[derive(Clone, Debug, Serialize)]
pub struct CheckInput<'a> {
    /// Listing hash of the artifacts.
    pub artifacts: Digest,
    /// The artifact map.
    pub artifact_hashes: &'a ArtifactHashes,
    /// SHA-256 of the outputs manifest.
    pub outputs: Digest,
    /// SHA-256 of the executor's report.
    pub report: Digest,
    /// SHA-256 of the report of every repair so far.
    pub repairs: Vec<Digest>,
}

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
