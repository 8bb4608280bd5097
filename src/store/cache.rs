//! `refs/cbia/cache/<cache_key>`: a phase's output, stored under the hash of everything it depends on.
//!
//! The ref points at a parentless commit whose tree holds `cache.meta.json`, `artifacts/…` and `opa/…`. An entry is believed only
//! after its key was recomputed from its key data and every byte was hashed again.

use std::collections::{BTreeMap, BTreeSet};

use super::durable::Durability;
use super::object::Commit;
use super::pack::{Batch, CommitSpec};
use super::refs::{Cas, RefName};
use super::tree::{Leaf, Tree, TreeLimits, write_tree};
use super::{Oid, Store, StoreError};
use crate::document::cache_entry::{CacheKey, CacheMeta};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::schema::{Kind, load};

/// Where the entry's own document is.
const META_PATH: &str = "cache.meta.json";
/// Where the artifacts are.
const ARTIFACTS: &str = "artifacts/";
/// The evidence that is stored beside the artifacts.
pub const EVIDENCE: [&str; 3] = ["opa/bundle.hash", "opa/decision.json", "opa/explain.json"];
/// The largest meta document, in bytes.
const MAX_META: u64 = 32 << 20;

/// A verified entry.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// What it says about itself.
    pub meta: CacheMeta,
    /// The artifacts' blobs, by the path they are produced at.
    pub artifacts: BTreeMap<RepoPath, Oid>,
    /// The ref's target.
    pub commit: Oid,
}

/// One entry of a listing, unverified.
#[derive(Clone, Debug)]
pub struct CacheListing {
    /// The key, where the ref's name is one.
    pub key: Digest,
    /// The ref.
    pub name: RefName,
    /// Its target.
    pub commit: Oid,
}

impl Store {
    /// The ref of a key.
    pub fn cache_ref(&self, key: &Digest) -> Result<RefName, StoreError> {
        Ok(format!("refs/cbia/cache/{key}").parse()?)
    }

    /// The verified entry of `key`: `None` where there is none, a finding where there is one that cannot be believed.
    pub fn cache_entry(&self, key: &Digest) -> Result<Result<Option<CacheEntry>, Finding>, StoreError> {
        let name = self.cache_ref(key)?;
        let Some(commit) = self.ref_target(&name)? else { return Ok(Ok(None)) };
        Ok(self.check_entry(key, &name, commit).map(Some))
    }

    /// Whether `commit` could stand under `name` as the entry of `key`; why not, if not.
    /// `may_read` is asked before its artifacts are, with how many bytes they have together.
    pub fn check_entry_at(
        &self,
        key: &Digest,
        name: &str,
        commit: Oid,
        may_read: &dyn Fn(u64) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        match name.parse::<RefName>() {
            Ok(name) => self.check_entry_within(key, &name, commit, may_read).map(drop),
            Err(error) => Err(Finding::error(Code::CacheEntryInvalid, error.to_string()).at(name)),
        }
    }

    /// The entry at `commit` if it is one of `key`, otherwise why it is refused. `name` is where it is told to be.
    pub(in crate::store) fn check_entry(&self, key: &Digest, name: &RefName, commit: Oid) -> Result<CacheEntry, Finding> {
        self.check_entry_within(key, name, commit, &|_| Ok(()))
    }

    fn check_entry_within(
        &self,
        key: &Digest,
        name: &RefName,
        commit: Oid,
        may_read: &dyn Fn(u64) -> Result<(), Finding>,
    ) -> Result<CacheEntry, Finding> {
        let refuse = |why: String| {
            let finding = Finding::error(Code::CacheEntryInvalid, format!("the cache entry {} is refused: {why}", key.short()));
            finding.at(name).hint(format!("it is not used; git cbia cache rm {} removes it", key.short()))
        };
        let Commit { tree, parents, .. } = self.read_commit(&commit).map_err(|error| refuse(spelled(&error)))?;
        if !parents.is_empty() {
            return Err(refuse("its commit has a parent, and an entry has no history".to_owned()));
        }
        let files = self.read_tree(&tree, TreeLimits::default()).map_err(|error| refuse(spelled(&error)))?;
        let blob = |path: &str, limit: u64| -> Result<Vec<u8>, Finding> {
            let path: RepoPath = path.parse().map_err(|error| refuse(spelled(&error)))?;
            let leaf = files.get(&path).ok_or_else(|| refuse(format!("it has no {path}")))?;
            self.read_blob(&leaf.id, limit).map_err(|error| refuse(format!("{path}: {}", spelled(&error))))
        };
        let bytes = blob(META_PATH, MAX_META)?;
        let path = META_PATH.parse().map_err(|error| refuse(spelled(&error)))?;
        let meta = load::<CacheMeta>(Kind::CacheMeta, &path, &bytes)
            .map_err(|findings| {
                refuse(findings.into_iter().next().map_or_else(|| "cache.meta.json is malformed".into(), |f| f.message))
            })?
            .document;
        if meta.key_data.digest() != *key || meta.cache_key != *key {
            return Err(refuse(format!(
                "its key data gives the key {}, not the one it is stored under",
                meta.key_data.digest().short()
            )));
        }
        let mut expected: BTreeSet<String> =
            EVIDENCE.iter().map(|path| (*path).to_owned()).chain([META_PATH.to_owned()]).collect();
        for path in EVIDENCE {
            let wanted = RepoPath::from_bytes(path.as_bytes()).ok().and_then(|path| meta.evidence.get(path.as_str()).copied());
            if wanted != Some(Digest::of(&blob(path, MAX_META)?)) {
                return Err(refuse(format!("{path} does not have the hash that cache.meta.json gives")));
            }
        }
        may_read(meta.artifacts.iter().fold(0, |sum: u64, file| sum.saturating_add(file.bytes)))?;
        let mut artifacts = BTreeMap::new();
        for FileEntry { path, sha256, bytes } in &meta.artifacts {
            let stored = format!("{ARTIFACTS}{}", path.as_str());
            let content = blob(&stored, *bytes)?;
            if Digest::of(&content) != *sha256 || content.len() as u64 != *bytes {
                return Err(refuse(format!("the artifact {path} does not have the hash and size that cache.meta.json gives")));
            }
            if let Some(leaf) = stored.parse().ok().and_then(|path: RepoPath| files.get(&path)) {
                artifacts.insert(path.clone(), leaf.id);
            }
            expected.insert(stored);
        }
        if let Some(stray) = files.keys().find(|path| !expected.contains(path.as_str())) {
            return Err(refuse(format!("it holds {stray}, which cache.meta.json does not name")));
        }
        Ok(CacheEntry { meta, artifacts, commit })
    }

    /// The key data of an entry, for comparison: nothing where it cannot be read.
    pub fn cache_key_data(&self, key: &Digest) -> Option<CacheKey> {
        let commit = self.ref_target(&self.cache_ref(key).ok()?).ok()??;
        let id = self.lookup(&self.tree_of(&commit).ok()?, &META_PATH.parse().ok()?).ok()??;
        let meta =
            load::<CacheMeta>(Kind::CacheMeta, &META_PATH.parse().ok()?, &self.read_blob(&id, MAX_META).ok()?).ok()?.document;
        (meta.key_data.digest() == *key).then_some(meta.key_data)
    }

    /// What an entry says about itself, unverified: nothing where it cannot be read.
    pub fn cache_meta(&self, commit: &Oid) -> Option<CacheMeta> {
        let path = META_PATH.parse().ok()?;
        let id = self.lookup(&self.tree_of(commit).ok()?, &path).ok()??;
        Some(load::<CacheMeta>(Kind::CacheMeta, &path, &self.read_blob(&id, MAX_META).ok()?).ok()?.document)
    }

    /// Stores an entry: writes its objects into `batch`, and returns the commit that its ref is to point at.
    pub fn write_entry(
        &self,
        batch: &mut Batch<'_>,
        meta: &CacheMeta,
        artifacts: &BTreeMap<RepoPath, Oid>,
        evidence: &BTreeMap<RepoPath, Vec<u8>>,
    ) -> Result<Oid, StoreError> {
        let mut tree = Tree::new();
        let leaf = |id| Leaf { id, executable: false };
        tree.insert(META_PATH.parse()?, leaf(batch.blob(json::emit(meta))?));
        for path in EVIDENCE {
            let path: RepoPath = path.parse()?;
            if let Some(bytes) = evidence.get(&path) {
                let id = batch.blob(bytes.clone())?;
                tree.insert(path, leaf(id));
            }
        }
        for (path, id) in artifacts {
            tree.insert(format!("{ARTIFACTS}{}", path.as_str()).parse()?, leaf(*id));
        }
        let tree = write_tree(batch, &tree)?;
        let (phase, count, key) = (meta.key_data.phase, meta.artifacts.len(), meta.cache_key);
        let what = match (phase, count) {
            (Phase::Check, _) => "report".to_owned(),
            (_, 1) => "1 artifact".to_owned(),
            _ => format!("{count} artifacts"),
        };
        let message = format!("{phase}: {what} cached\n\nCbia-Phase: {phase}\nCbia-Cache-Key: {key}\n");
        Ok(batch.commit(&CommitSpec::fixed(tree, Vec::new(), message))?)
    }

    /// Creates the entry's ref. An entry that is there already wins; whether it is another one is returned.
    pub fn create_entry(&self, key: &Digest, commit: Oid) -> Result<Option<Oid>, StoreError> {
        let name = self.cache_ref(key)?;
        match self.cas(&name, None, Some(commit), Durability::Full)?.outcome {
            Cas::Done => Ok(None),
            Cas::Conflict(Some(other)) => Ok((other != commit).then_some(other)),
            Cas::Conflict(None) | Cas::Busy => Err(StoreError::Moved { name: name.to_string() }),
        }
    }

    /// Puts a ref that cannot be believed aside, under `refs/cbia/refused/`, so that nothing of it is lost and its place is free.
    pub fn put_aside(&self, name: &RefName, target: Oid) -> Result<RefName, StoreError> {
        let rest = name.as_str().trim_start_matches("refs/cbia/");
        let aside: RefName = format!("refs/cbia/refused/{rest}/{target}").parse()?;
        if let Cas::Conflict(Some(other)) = self.cas(&aside, None, Some(target), Durability::Full)?.outcome
            && other != target
        {
            return Err(StoreError::Moved { name: aside.to_string() });
        }
        match self.cas(name, Some(target), None, Durability::Full)?.outcome {
            Cas::Done => Ok(aside),
            Cas::Conflict(_) | Cas::Busy => Err(StoreError::Moved { name: name.to_string() }),
        }
    }

    /// Every entry, by key.
    pub fn cache_entries(&self) -> Result<Vec<CacheListing>, StoreError> {
        let refs = self.refs_under("refs/cbia/cache/")?;
        let listing = |(name, commit): (RefName, Oid)| {
            let key = name.as_str().rsplit('/').next()?.parse().ok()?;
            Some(CacheListing { key, name, commit })
        };
        Ok(refs.into_iter().filter_map(listing).collect())
    }
}
