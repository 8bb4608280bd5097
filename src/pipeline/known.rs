//! What is known already of the phases after GEN: the run itself where it is stored, the cache otherwise.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::PipelineError;
use crate::artifact::Artifacts;
use crate::document::cache_entry::CacheKey;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::metadata::Metadata;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::repair_report::RepairReport;
use crate::document::selection::Selection;
use crate::phase::{check, repair, select, structure};
use crate::store::object::trailers;
use crate::store::{Oid, Store};

/// The largest document of a run that is read back, in bytes.
const MAX_DOCUMENT: u64 = 64 << 20;
/// The most phase commits that a run has.
const MAX_PHASES: usize = 64;

/// What the phases after GEN may be answered from.
pub enum Known {
    /// The cache.
    Cache,
    /// A stored run, which is believed to be what this program stored: what it says under the phase's own key is taken.
    Run(Vec<Sealed>),
    /// A stored run of which nothing is believed but what an executor produced.
    Doubted(Vec<Sealed>),
}

/// A phase commit of a stored run.
pub struct Sealed {
    /// The phase.
    pub phase: Phase,
    /// What its commit holds.
    pub tree: Oid,
}

/// The phase commits of a run, in order.
pub fn sealed(store: &Store, tip: Oid) -> Result<Vec<Sealed>, PipelineError> {
    let (mut commits, mut next) = (Vec::new(), Some(tip));
    while let Some(id) = next.filter(|_| commits.len() < MAX_PHASES) {
        let commit = store.read_commit(&id)?;
        let named = trailers(&commit).into_iter().find(|(key, _)| key == "Cbia-Phase");
        if let Some(phase) = named.and_then(|(_, name)| Phase::from_name(&name)) {
            commits.push(Sealed { phase, tree: commit.tree });
        }
        next = commit.parents.first().copied();
    }
    commits.reverse();
    Ok(commits)
}

/// Artifacts as they are stored, read one at a time.
pub struct Stored<'a> {
    /// Where.
    pub store: &'a Store,
    /// Hash and size of each.
    pub files: &'a BTreeMap<RepoPath, FileEntry>,
    /// Their blobs.
    pub ids: &'a BTreeMap<RepoPath, Oid>,
}

impl Artifacts for Stored<'_> {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        Box::new(self.files.keys())
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        let (file, id) = (self.files.get(path)?, self.ids.get(path)?);
        self.store.read_content(id, file.sha256, file.bytes).ok().map(Cow::Owned)
    }

    fn hashed(&self, path: &RepoPath) -> Option<(Cow<'_, [u8]>, Digest)> {
        // What does not have its SHA-256 is not given.
        self.bytes(path).zip(self.files.get(path).map(|file| file.sha256))
    }
}

/// A repair that was made before.
pub struct Repaired {
    /// What it did.
    pub report: RepairReport,
    /// The artifacts that it changed, with their blobs.
    pub changed: Vec<(FileEntry, Oid)>,
}

impl Known {
    fn nth(&self, phase: Phase, number: usize) -> Option<&Sealed> {
        match self {
            Known::Run(commits) | Known::Doubted(commits) => commits.iter().filter(|c| c.phase == phase).nth(number),
            Known::Cache => None,
        }
    }

    /// The bytes of a document of the `number`-th commit of a phase.
    fn document(&self, store: &Store, phase: Phase, number: usize, at: &RepoPath) -> Option<Vec<u8>> {
        let tree = self.nth(phase, number)?.tree;
        let id = store.lookup(&tree, at).ok()??;
        store.read_blob(&id, MAX_DOCUMENT).ok()
    }

    fn entry(&self, store: &Store, key: &CacheKey, at: &RepoPath) -> Option<Vec<u8>> {
        let entry = store.cache_entry(&key.digest()).ok()?.ok()??;
        store.read_blob(entry.artifacts.get(at)?, MAX_DOCUMENT).ok()
    }

    /// The `number`-th check report, if it was made under this key, and whether the cache gave it.
    pub fn check(&self, store: &Store, key: &CacheKey, number: usize) -> Option<CheckReport> {
        let at = crate::phase::path(check::REPORT_PATH);
        let bytes = match self {
            Known::Doubted(_) => return None,
            Known::Cache => self.entry(store, key, &at)?,
            Known::Run(_) => self.document(store, Phase::Check, number, &at)?,
        };
        exact(&bytes)
    }

    /// The `attempt`-th repair, from 1, if it was made under this key. Of a doubted run only what changed, which is then held against its bound.
    pub fn repair(&self, store: &Store, key: &CacheKey, attempt: u64) -> Option<Repaired> {
        let [_, _, at] = repair::places(attempt);
        let number = usize::try_from(attempt).ok()?.checked_sub(1)?;
        match self {
            Known::Cache => {
                let entry = store.cache_entry(&key.digest()).ok()?.ok()??;
                let report = exact(&store.read_blob(entry.artifacts.get(&at)?, MAX_DOCUMENT).ok()?)?;
                let changed = entry.meta.artifacts.into_iter().filter(|file| file.path != at);
                let changed = changed.map(|file| Some((file.clone(), *entry.artifacts.get(&file.path)?)));
                Some(Repaired { report, changed: changed.collect::<Option<_>>()? })
            }
            Known::Run(_) | Known::Doubted(_) => {
                let report: RepairReport = exact(&self.document(store, Phase::Repair, number, &at)?)?;
                let tree = self.nth(Phase::Repair, number)?.tree;
                let mut changed = Vec::new();
                for change in &report.changes {
                    let id = store.lookup(&tree, &change.path).ok()??;
                    let bytes = store.read_blob(&id, MAX_DOCUMENT).ok()?;
                    let entry = FileEntry { path: change.path.clone(), sha256: Digest::of(&bytes), bytes: bytes.len() as u64 };
                    changed.push((entry, id));
                }
                Some(Repaired { report, changed })
            }
        }
    }

    /// The artifacts as STRUCT left them, where a stored run says so.
    pub fn structured(&self, store: &Store) -> Option<Vec<(FileEntry, Oid)>> {
        let Known::Run(_) = self else { return None };
        let at = crate::phase::path(structure::METADATA_PATH);
        let metadata: Metadata = exact(&self.document(store, Phase::Struct, 0, &at)?)?;
        let tree = self.nth(Phase::Struct, 0)?.tree;
        let changed = metadata.artifacts.into_iter().filter(|a| a.sha256 != a.generated_sha256);
        changed
            .map(|a| {
                Some((FileEntry { sha256: a.sha256, bytes: a.bytes, path: a.path.clone() }, store.lookup(&tree, &a.path).ok()??))
            })
            .collect()
    }

    /// The selection, where a stored run has one.
    pub fn selection(&self, store: &Store) -> Option<Selection> {
        let Known::Run(_) = self else { return None };
        let at = crate::phase::path(select::SELECTION_PATH);
        exact(&self.document(store, Phase::Select, 0, &at)?)
    }
}

/// A document that is, byte for byte, what this program would write for it. That says more than its schema would.
fn exact<T: serde::de::DeserializeOwned + serde::Serialize>(bytes: &[u8]) -> Option<T> {
    let document: T = serde_json::from_value(json::parse(bytes).ok()?).ok()?;
    (json::emit(&document) == bytes).then_some(document)
}
