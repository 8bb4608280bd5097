//! AUTHORITY_LOCK: the sources are pinned, and are what was pinned.
//!
//! Reads: `control/authority.ledger.json`, every `file` authority, the evidence of `control/objectives.json`.
//! Writes: `execution/lock/report.json`.
//! Stops when: the ledger is missing, unreadable or not frozen; an authority lacks a locator or a hash, is not there, or has other
//! bytes; a piece of evidence is not its authority's.

use super::Evidence;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::digest::Digest;
use crate::document::finding::Finding;
use crate::document::json;
use crate::document::objectives::Objective;
use crate::document::schema::Sealed;
use crate::gate::Files;
use crate::gate::authority::{Lock, broken, lock};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the report goes.
pub const REPORT_PATH: &str = "execution/lock/report.json";

/// What the phase works on.
pub struct Input<'a> {
    /// The ledger, or why it cannot be read.
    pub ledger: Result<&'a Sealed<AuthorityLedger>, &'a [Finding]>,
    /// SHA-256 of the ledger's file, readable or not; absent where there is none.
    pub ledger_hash: Option<Digest>,
    /// The objectives, where they can be read; PRE_GEN refuses where they cannot.
    pub objectives: Option<&'a Sealed<Vec<Objective>>>,
    /// The snapshot.
    pub files: &'a dyn Files,
}

/// What the phase gives.
pub struct Output {
    /// The lock, with its findings.
    pub lock: Lock,
    /// The report.
    pub evidence: Evidence,
}

/// Locks the authorities.
pub fn run(input: Input) -> Output {
    let Input { ledger, ledger_hash, objectives, files } = input;
    let lock = match ledger {
        Ok(ledger) => lock(ledger, objectives, files),
        Err(findings) => broken(ledger_hash, findings.to_vec()),
    };
    let evidence = Evidence::from([(super::path(REPORT_PATH), json::emit(&lock.report))]);
    Output { lock, evidence }
}
