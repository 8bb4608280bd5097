//! `execution/lock/report.json`: what AUTHORITY_LOCK found.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::phase::Phase;

/// The report.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockReport {
    /// Version of this format.
    pub schema_version: String,
    /// `AUTHORITY_LOCK`.
    pub phase: Phase,
    /// Whether the lock holds.
    pub locked: bool,
    /// SHA-256 of the authority ledger's file; null where it is missing.
    pub authority_ledger_hash: Option<Digest>,
    /// One entry per authority, in declared order.
    pub authorities: Vec<LockedAuthority>,
    /// Codes of what stands against it, sorted.
    pub refusals: Vec<String>,
}

/// One authority, as it was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedAuthority {
    /// Its id.
    pub authority_id: String,
    /// The source's kind.
    pub kind: String,
    /// The source's locator.
    pub locator: Option<String>,
    /// The pinned digest, as it is written.
    pub expected: Option<String>,
    /// The digest that was found.
    pub actual: Option<Digest>,
    /// What that comes to.
    pub status: LockStatus,
}

/// What the lock says of one authority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockStatus {
    /// The bytes are the pinned ones.
    Locked,
    /// They are not, or are not there, or nothing is pinned.
    Broken,
    /// The kind cannot be verified.
    Unverifiable,
}
