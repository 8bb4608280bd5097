//! `execution/repair/<attempt>/report.json`: what a repair did, and whether it kept within its bound.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::finding::Finding;
use super::path::RepoPath;
use super::phase::Phase;

/// The report of one attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairReport {
    /// Version of this format.
    pub schema_version: String,
    /// `REPAIR`.
    pub phase: Phase,
    /// Which attempt, from 1.
    pub attempt: u64,
    /// SHA-256 of the capsule that bounded it.
    pub repair_capsule_hash: Digest,
    /// Whether it kept within the bound.
    pub accepted: bool,
    /// What it changed, in byte order of path.
    pub changes: Vec<RepairChange>,
    /// Lines it inserted.
    pub inserted: u64,
    /// Lines it deleted.
    pub deleted: u64,
    /// Why it was refused.
    pub findings: Vec<Finding>,
    /// A unified diff, escaped and cut to a bounded length, line by line.
    pub diff: Vec<String>,
}

/// One file that a repair changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairChange {
    /// Where.
    pub path: RepoPath,
    /// SHA-256 before; null where there was none.
    pub before: Option<Digest>,
    /// SHA-256 after; null where there is none.
    pub after: Option<Digest>,
    /// Lines inserted.
    pub inserted: u64,
    /// Lines deleted.
    pub deleted: u64,
}
