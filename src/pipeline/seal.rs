//! How a phase after GEN is sealed: entered into the run ledger, and made a commit of the chain. Beside it, how what a phase changed or made is kept.

use std::collections::BTreeMap;

use super::PipelineError;
use super::chain::Seal;
use super::known::Known;
use super::tail::{Done, Fresh, Halt, Tail};
use crate::artifact::Files;
use crate::document::cache_entry::CacheKey;
use crate::document::digest::Digest;
use crate::document::finding::{Finding, Severity};
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::PhaseStatus;
use crate::document::run_ledger::{LedgerEntry, LedgerEvent};
use crate::phase::r#gen::{ARTIFACT_HASHES_PATH, RUN_LEDGER_PATH};
use crate::phase::{Evidence, path};
use crate::store::Oid;
use crate::store::durable::Durability;
use crate::store::pack::Batch;

/// A phase's commit, as it is about to be made.
pub(super) struct Step {
    pub phase: Phase,
    pub status: PhaseStatus,
    pub key: Option<CacheKey>,
    pub summary: String,
    pub decision: Option<&'static str>,
    pub evidence: Evidence,
    /// SHA-256 of what was emitted.
    pub digests: BTreeMap<RepoPath, Digest>,
    /// The document that the phase's entry in the run ledger names.
    pub document: Digest,
    pub findings: Vec<Finding>,
    pub changed: Vec<(FileEntry, Oid)>,
    pub artifacts: BTreeMap<RepoPath, Digest>,
}

impl Step {
    /// A phase whose entry in the run ledger names what it emitted at `document`.
    pub fn new(phase: Phase, status: PhaseStatus, key: CacheKey, hashed: Hashed, document: &RepoPath) -> Self {
        let document = hashed.digest(document);
        let Hashed { evidence, digests } = hashed;
        Self {
            phase,
            status,
            key: Some(key),
            summary: String::new(),
            decision: None,
            evidence,
            digests,
            document,
            findings: Vec::new(),
            changed: Vec::new(),
            artifacts: BTreeMap::new(),
        }
    }
}

/// What a phase emitted, hashed once.
pub(super) struct Hashed {
    evidence: Evidence,
    digests: BTreeMap<RepoPath, Digest>,
}

impl Hashed {
    pub fn new(evidence: Evidence) -> Self {
        let digests = evidence.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect();
        Self { evidence, digests }
    }

    /// SHA-256 of what was emitted at a path; of nothing where nothing was.
    pub fn digest(&self, at: &RepoPath) -> Digest {
        self.digests.get(at).copied().unwrap_or_else(|| Digest::of(b""))
    }
}

/// Artifacts that a phase changes, on their way into the store, one at a time.
pub(super) struct Changes<'s> {
    batch: Batch<'s>,
    store: bool,
    changed: Vec<(FileEntry, Oid)>,
}

impl<'s> Changes<'s> {
    pub fn new(tail: &Tail<'_, 's, '_, '_>) -> Result<Self, PipelineError> {
        let store = tail.means.store_changes;
        let batch = if store { Batch::new(tail.admitted.store)? } else { Batch::hashing(tail.admitted.store) };
        Ok(Self { batch, store, changed: Vec::new() })
    }

    pub fn add(&mut self, path: &RepoPath, bytes: Vec<u8>) -> Result<(), PipelineError> {
        let file = FileEntry { path: path.clone(), sha256: Digest::of(&bytes), bytes: bytes.len() as u64 };
        let id = self.batch.blob(bytes)?;
        self.changed.push((file, id));
        Ok(())
    }

    pub fn publish(self) -> Result<Vec<(FileEntry, Oid)>, PipelineError> {
        if self.store && !self.changed.is_empty() {
            self.batch.publish(Durability::Full)?;
        }
        Ok(self.changed)
    }
}

impl<'r, 's> Tail<'r, '_, 's, '_> {
    /// What a phase without a cache entry of its own counts as.
    pub fn recomputed(&self) -> PhaseStatus {
        match self.means.known {
            Known::Run(_) | Known::Doubted(_) => PhaseStatus::Replayed,
            Known::Cache => PhaseStatus::Executed,
        }
    }

    /// Whether the run has the phase: the execution DAG may leave some out.
    pub fn declared(&self, phase: Phase) -> bool {
        self.admitted.inputs.declares(phase)
    }

    pub fn skip(&mut self, phase: Phase) {
        self.whole.phases.push(Done { phase, status: PhaseStatus::Skipped, key: None, artifacts: BTreeMap::new() });
    }

    /// The key of a phase after GEN: GEN's, but for the phase itself, what it was handed, and how it is configured.
    pub fn key(&self, phase: Phase, version: u32, input: Digest, config: Digest) -> CacheKey {
        CacheKey {
            phase,
            phase_version: version,
            phase_input_hash: Some(input),
            phase_config_hash: config,
            ..self.admitted.key.clone()
        }
    }

    /// SHA-256 of a document as it is emitted, whether this run emits it or not.
    pub fn digest_of(&self, at: &'static str, document: &impl serde::Serialize) -> Digest {
        let at = path(at);
        let emitted = self.digests.get(&at).filter(|_| self.whole.evidence.contains_key(&at));
        emitted.copied().unwrap_or_else(|| Digest::of(&json::emit(document)))
    }

    pub fn set_hash(&self) -> Digest {
        Digest::of_listing(self.files.values().map(|file| (&file.path, file.sha256)))
    }

    pub fn pipeline(&self) -> &'r crate::document::pipeline::Pipeline {
        self.admitted.input.pipeline
    }

    pub fn hashes(&self) -> BTreeMap<RepoPath, Digest> {
        self.files.values().map(|file| (file.path.clone(), file.sha256)).collect()
    }

    pub fn warn(&mut self, findings: &[Finding]) {
        self.whole.warnings.extend(findings.iter().filter(|f| f.severity == Severity::Warning).cloned());
    }

    /// Notes what a phase made, so that it is kept under the phase's key.
    pub fn remember(&mut self, key: &CacheKey, documents: &Evidence, changed: &[(FileEntry, Oid)]) -> Result<(), Halt> {
        let mut fresh = Fresh { key: key.clone(), files: Vec::new(), ids: BTreeMap::new() };
        for (at, bytes) in documents {
            let entry = FileEntry { path: at.clone(), sha256: Digest::of(bytes), bytes: bytes.len() as u64 };
            fresh.ids.insert(at.clone(), self.batch.blob(bytes)?);
            fresh.files.push(entry);
        }
        for (file, id) in changed {
            fresh.ids.insert(file.path.clone(), *id);
            fresh.files.push(file.clone());
        }
        fresh.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.whole.fresh.push(fresh);
        Ok(())
    }

    /// Stores artifacts that a phase changed.
    pub fn keep(&self, changed: Files) -> Result<Vec<(FileEntry, Oid)>, PipelineError> {
        let mut changes = Changes::new(self)?;
        for (path, bytes) in changed {
            changes.add(&path, bytes)?;
        }
        changes.publish()
    }

    /// The artifacts as they are from here on.
    pub fn apply(&mut self, changed: &[(FileEntry, Oid)]) {
        for (file, id) in changed {
            self.whole.output.ids.insert(file.path.clone(), *id);
            self.whole.hashes.insert(file.path.clone(), file.sha256);
            self.digests.insert(file.path.clone(), file.sha256);
            self.files.insert(file.path.clone(), file.clone());
        }
    }

    pub fn seal(&mut self, step: Step) -> Result<(), Halt> {
        self.seal_with(step, &BTreeMap::new())
    }

    pub fn seal_with(&mut self, step: Step, placed: &BTreeMap<RepoPath, Oid>) -> Result<(), Halt> {
        let step = self.entered(step);
        self.commit(step, placed)
    }

    /// Enters a phase into the run ledger. An artifact has one entry, that of the phase which gave it its bytes.
    pub fn entered(&mut self, mut step: Step) -> Step {
        self.apply(&step.changed);
        let replaced: BTreeMap<&RepoPath, Digest> = step.changed.iter().map(|(file, _)| (&file.path, file.sha256)).collect();
        let mut own = Vec::new();
        if !replaced.is_empty() {
            let moved = |entry: &LedgerEntry| {
                entry.event == LedgerEvent::Artifact && entry.artifact.as_ref().is_some_and(|path| replaced.contains_key(path))
            };
            own = self.ledger.take(moved);
        }
        self.ledger.push(LedgerEntry::phase(step.phase, step.document).checked(&step.findings));
        for entry in own {
            let sha256 = entry.artifact.as_ref().and_then(|path| replaced.get(path).copied());
            self.ledger.push(LedgerEntry { phase: step.phase, sha256, ..entry });
        }
        let mut accounts = vec![(path(RUN_LEDGER_PATH), self.ledger.emit())];
        if !step.changed.is_empty() {
            accounts.push((path(ARTIFACT_HASHES_PATH), json::emit(&self.whole.hashes)));
        }
        step.digests.extend(accounts.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))));
        step.evidence.extend(accounts);
        self.digests.extend(step.digests.iter().map(|(path, digest)| (path.clone(), *digest)));
        step
    }

    pub fn commit(&mut self, step: Step, placed: &BTreeMap<RepoPath, Oid>) -> Result<(), Halt> {
        let changed = step.changed.iter().map(|(file, id)| (file.path.clone(), *id));
        let artifacts = changed.chain(placed.iter().map(|(path, id)| (path.clone(), *id))).collect();
        let seal = Seal {
            phase: step.phase,
            summary: step.summary,
            cache_key: step.key.as_ref().map(CacheKey::digest),
            decision: step.decision,
            evidence: &step.evidence,
            artifacts: &artifacts,
        };
        self.whole.chain.seal(self.batch, &seal)?;
        self.whole.evidence.extend(step.evidence);
        self.whole.phases.retain(|done| done.phase != step.phase);
        self.whole.phases.push(Done { phase: step.phase, status: step.status, key: step.key, artifacts: step.artifacts });
        Ok(())
    }
}
