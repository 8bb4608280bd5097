//! `execution/ledger/run.ledger.json` and `execution/ledger/artifact_hashes.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::finding::{Finding, Severity};
use super::json;
use super::path::RepoPath;
use super::phase::Phase;
use super::writer::Growing;

/// One entry per phase and per artifact of a run, in the order they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLedger {
    /// Version of this format.
    pub schema_version: String,
    /// In the order they came.
    pub entries: Vec<LedgerEntry>,
}

/// What a phase did, or an artifact that it produced.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// The phase.
    pub phase: Phase,
    /// `phase` or `artifact`.
    pub event: LedgerEvent,
    /// The artifact; null for a phase.
    pub artifact: Option<RepoPath>,
    /// SHA-256 of the artifact, or of the document the phase emitted.
    pub sha256: Option<Digest>,
    /// The objectives the artifact fulfils.
    pub objectives: Vec<String>,
    /// The authorities those draw from.
    pub authorities: Vec<String>,
    /// What the phase checked, for a phase after GEN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckResult>,
    /// What the cache had to do with it. Only in the ledger that a record keeps; the run's own tree says what was
    /// produced, not how this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheUse>,
}

/// What an entry is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerEvent {
    /// A phase passed.
    Phase,
    /// An artifact was produced.
    Artifact,
}

/// What a phase's checks came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckResult {
    /// Whether nothing refuses.
    pub passed: bool,
    /// How many findings refuse.
    pub errors: u64,
    /// How many do not.
    pub warnings: u64,
}

/// What the cache had to do with a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheUse {
    /// Whether the output was replayed.
    pub hit: bool,
    /// The key.
    pub cache_key: Digest,
}

/// `artifact_hashes.json`: SHA-256 by path.
pub type ArtifactHashes = BTreeMap<RepoPath, Digest>;

/// A run ledger that is emitted again and again while it grows.
#[derive(Clone, Debug)]
pub struct GrowingLedger {
    ledger: RunLedger,
    text: Growing,
}

impl GrowingLedger {
    /// The ledger as it is so far.
    pub fn new(ledger: RunLedger) -> Self {
        Self { ledger, text: Growing::default() }
    }

    /// The ledger as it is so far.
    pub fn ledger(&self) -> &RunLedger {
        &self.ledger
    }

    /// The ledger, which does not grow any more.
    pub fn into_ledger(self) -> RunLedger {
        self.ledger
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: LedgerEntry) {
        self.ledger.entries.push(entry);
    }

    /// Takes out the entries that `gone` names; in their order.
    pub fn take(&mut self, gone: impl Fn(&LedgerEntry) -> bool) -> Vec<LedgerEntry> {
        let taken: Vec<LedgerEntry> = self.ledger.entries.extract_if(.., |entry| gone(entry)).collect();
        if !taken.is_empty() {
            self.text = Growing::default();
        }
        taken
    }

    /// The bytes that are emitted for it now.
    pub fn emit(&mut self) -> Vec<u8> {
        let RunLedger { schema_version, entries } = &self.ledger;
        let added = entries.get(self.text.count()..).and_then(|entries| self.text.add(entries));
        match added.and_then(|()| self.text.pretty("entries", ("schema_version", schema_version))) {
            Some(bytes) => bytes,
            None => {
                self.text = Growing::default();
                json::emit(&self.ledger)
            }
        }
    }
}

impl LedgerEntry {
    /// The entry of a phase that emitted a document.
    pub fn phase(phase: Phase, document: Digest) -> Self {
        Self {
            phase,
            event: LedgerEvent::Phase,
            artifact: None,
            sha256: Some(document),
            objectives: Vec::new(),
            authorities: Vec::new(),
            check: None,
            cache: None,
        }
    }

    /// The same entry, with what the phase's checks came to.
    pub fn checked(mut self, findings: &[Finding]) -> Self {
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count() as u64;
        self.check = Some(CheckResult { passed: errors == 0, errors, warnings: findings.len() as u64 - errors });
        self
    }
}

impl RunLedger {
    /// The ledger before anything was generated, as the OPA gate sees it.
    pub fn empty() -> Self {
        Self { schema_version: super::SCHEMA_VERSION.to_owned(), entries: Vec::new() }
    }

    /// The same ledger, saying what the cache had to do with the entries of one phase.
    pub fn with_cache(&self, phase: Phase, used: &CacheUse) -> Self {
        let mut ledger = self.clone();
        for entry in ledger.entries.iter_mut().filter(|e| e.phase == phase) {
            entry.cache = Some(used.clone());
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_grew_is_emitted_as_one_that_did_not() {
        let artifact = |path: &str| LedgerEntry {
            event: LedgerEvent::Artifact,
            artifact: Some(path.parse().unwrap()),
            objectives: vec!["O \"1\"".into(), String::new()],
            check: Some(CheckResult { passed: true, errors: 0, warnings: 2 }),
            ..LedgerEntry::phase(Phase::Gen, Digest::of(path.as_bytes()))
        };
        let mut growing = GrowingLedger::new(RunLedger::empty());
        let same = |growing: &mut GrowingLedger| {
            let (grown, whole) = (growing.emit(), json::emit(growing.ledger()));
            assert_eq!(String::from_utf8(grown).unwrap(), String::from_utf8(whole).unwrap());
        };
        same(&mut growing);
        growing.push(LedgerEntry::phase(Phase::PreGen, Digest::of(b"")));
        same(&mut growing);
        same(&mut growing);
        ["a", "b/\u{e9}", "c"].into_iter().for_each(|path| growing.push(artifact(path)));
        same(&mut growing);
        let taken = growing.take(|entry| entry.artifact.as_ref().is_some_and(|path| path.as_str() != "a"));
        assert_eq!(taken.len(), 2);
        assert!(growing.take(|_| false).is_empty());
        taken.into_iter().rev().for_each(|entry| growing.push(entry));
        same(&mut growing);
        growing.push(artifact("d"));
        same(&mut growing);
        growing.take(|_| true);
        same(&mut growing);
    }
}
