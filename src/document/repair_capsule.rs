//! `control/repair/repair_capsule.schema.json`: what a repair may do, and why it is asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::finding::Finding;
use super::path::RepoPath;
use super::phase::Phase;

/// The capsule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairCapsule {
    /// Version of this format.
    pub schema_version: String,
    /// `REPAIR`.
    pub phase: Phase,
    /// Listing hash of the artifacts that failed.
    pub artifact_set_hash: Digest,
    /// What CHECK refused.
    pub findings: Vec<Finding>,
    /// Patterns of the paths that may change or come into being.
    pub allow: Vec<String>,
    /// The lines that may change, by path; null where every line of an allowed path may.
    pub hunks: Option<BTreeMap<RepoPath, Vec<LineRange>>>,
    /// How many lines may be inserted and deleted, over all artifacts together.
    pub max_changed_lines: u64,
    /// How many times a repair may be tried.
    pub attempts: u64,
}

/// Lines of a file as it was before the repair, from 1, both ends included. Lines may also be inserted right before the
/// first and right after the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineRange {
    /// The first line.
    pub first: u64,
    /// The last line.
    pub last: u64,
}
