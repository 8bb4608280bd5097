//! Whether what a remote offers is what its name says, from its objects alone: every object is hashed again, the keys are computed again,
//! and every document is read by its schema.
//!
//! Whether a run is the one that its state comes to under the policies of now is decided when it is used, where the gates are run again.

use std::collections::{BTreeMap, HashMap};

use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Finding, spelled};
use crate::document::gen_exchange::OutputsManifest;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::schema::{Kind, load};
use crate::store::object::trailers;
use crate::store::pack::Identity;
use crate::store::tree::{Tree, TreeLimits};
use crate::store::{Oid, Store};

/// The folder of a run's tree that holds the snapshot.
const SNAPSHOT: &str = "inputs";
/// The capsule's path in a run's tree.
const CAPSULE: &str = "control/runtime/pre_gen_capsule.json";
/// The outputs manifest's path in a run's tree.
const OUTPUTS: &str = "execution/gen/outputs.json";

/// The longest chain of a run: every phase once, and as many repairs as anybody would try, each with its CHECK.
const MAX_COMMITS: usize = 256;

/// A run's name: its state key and its executor key.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunName {
    pub state_key: Digest,
    pub executor_key: Digest,
}

/// The hashes of blobs that were read.
struct Hashes<'s> {
    store: &'s Store,
    known: HashMap<Oid, Digest>,
    /// How many bytes more may be read.
    left: u64,
}

impl Hashes<'_> {
    fn of(&mut self, path: &RepoPath, id: Oid) -> Result<Digest, String> {
        if let Some(digest) = self.known.get(&id) {
            return Ok(*digest);
        }
        let bytes = self.store.read_blob(&id, self.left).map_err(|error| format!("{path}: {}", spelled(&error)))?;
        self.left -= bytes.len() as u64;
        let digest = Digest::of(&bytes);
        self.known.insert(id, digest);
        Ok(digest)
    }
}

impl Store {
    /// Why the chain of commits at `tip` is not a whole run of this name; nothing if it is. At most `limit` bytes are read.
    pub(super) fn vet_run(&self, name: RunName, tip: Oid, limit: u64) -> Result<(), String> {
        let mut hashes = Hashes { store: self, known: HashMap::new(), left: limit };
        let mut next = Some(tip);
        let mut commits = 0;
        let (mut later, mut last, mut generated) = (None::<Phase>, None::<Tree>, None::<Tree>);
        while let Some(id) = next {
            let commit = self.read_commit(&id).map_err(|error| spelled(&error))?;
            let fixed = Identity::cbia().line();
            if commit.author != fixed || commit.committer != fixed || !commit.extra_headers.is_empty() {
                return Err(format!("the commit {} is not one that git cbia writes", id.to_hex_with_len(12)));
            }
            let facts: BTreeMap<String, String> = trailers(&commit).into_iter().collect();
            let fact = |key: &str| facts.get(key).map(String::as_str).unwrap_or_default();
            if fact("Cbia-State-Key") != name.state_key.to_string() || fact("Cbia-Executor-Key") != name.executor_key.to_string()
            {
                return Err(format!("the commit {} belongs to another run", id.to_hex_with_len(12)));
            }
            let phase = Phase::from_name(fact("Cbia-Phase"));
            // Where CHECK failed, REPAIR comes between it and the CHECK that follows.
            let follows =
                |phase: &Phase| later.is_none_or(|later| *phase < later || (*phase, later) == (Phase::Repair, Phase::Check));
            commits += 1;
            let Some(phase) = phase.filter(follows).filter(|_| commits <= MAX_COMMITS) else {
                return Err(format!("the commit {} is out of the phases' order", id.to_hex_with_len(12)));
            };
            if fact("Cbia-Decision") == "DENY" {
                return Err(format!("{phase} denied it"));
            }
            let tree = self.read_tree(&commit.tree, TreeLimits::default()).map_err(|error| spelled(&error))?;
            for (path, leaf) in &tree {
                hashes.of(path, leaf.id)?;
            }
            if phase == Phase::Gen {
                generated = Some(tree.clone());
            }
            last.get_or_insert(tree);
            next = match commit.parents.as_slice() {
                [] => None,
                [parent] => Some(*parent),
                _ => return Err(format!("the commit {} joins several", id.to_hex_with_len(12))),
            };
            later = Some(phase);
        }
        if later != Some(Phase::AuthorityLock) {
            return Err("its first phase is not AUTHORITY_LOCK".into());
        }
        let (Some(tree), Some(generated)) = (last, generated) else { return Err("it has no GEN".into()) };
        self.vet_state(name, &tree, &mut hashes)?;
        self.vet_outputs(&generated, &mut hashes)
    }

    /// The snapshot has the state key, and the capsule names an executor that has the executor key.
    fn vet_state(&self, name: RunName, tree: &Tree, hashes: &mut Hashes<'_>) -> Result<(), String> {
        let mut snapshot = BTreeMap::new();
        for (path, leaf) in tree.iter().filter(|(path, _)| path.is_under(SNAPSHOT)) {
            let inside: RepoPath = path.as_str()[SNAPSHOT.len() + 1..].parse().map_err(|error| spelled(&error))?;
            snapshot.insert(inside, hashes.of(path, leaf.id)?);
        }
        let state_key = Digest::of_listing(snapshot.iter().map(|(path, digest)| (path, *digest)));
        if state_key != name.state_key {
            return Err(format!("its snapshot has the state key {}, not the one it is stored under", state_key.short()));
        }
        let capsule: Capsule = self.document(Kind::Capsule, tree, CAPSULE)?;
        if capsule.gen_executor.key() != name.executor_key {
            return Err("its capsule names another executor than the one it is stored under".into());
        }
        Ok(())
    }

    /// What GEN handed on has the hashes that GEN said.
    fn vet_outputs(&self, tree: &Tree, hashes: &mut Hashes<'_>) -> Result<(), String> {
        let outputs: OutputsManifest = self.document(Kind::OutputsManifest, tree, OUTPUTS)?;
        for artifact in outputs.artifacts {
            let path = artifact.path;
            let leaf = tree.get(&path).ok_or_else(|| format!("it lacks the artifact {path}"))?;
            if hashes.of(&path, leaf.id)? != artifact.sha256 {
                return Err(format!("the artifact {path} does not have the hash that the run gives"));
            }
        }
        Ok(())
    }

    fn document<T: serde::de::DeserializeOwned>(&self, kind: Kind, tree: &Tree, at: &str) -> Result<T, String> {
        let path: RepoPath = at.parse().map_err(|error| spelled(&error))?;
        let leaf = tree.get(&path).ok_or_else(|| format!("it lacks {path}"))?;
        let bytes = self.read_blob(&leaf.id, 64 << 20).map_err(|error| format!("{path}: {}", spelled(&error)))?;
        let first = |findings: Vec<Finding>| findings.into_iter().next().map_or_else(String::new, |finding| finding.message);
        load::<T>(kind, &path, &bytes).map(|sealed| sealed.document).map_err(first)
    }
}

#[cfg(test)]
mod tests {
    use crate::gate::paths::{CAPSULE_PATH, SNAPSHOT_FOLDER};

    #[test]
    fn the_paths_are_those_that_a_run_emits() {
        assert_eq!((super::SNAPSHOT, super::CAPSULE), (SNAPSHOT_FOLDER, CAPSULE_PATH));
        assert_eq!(super::OUTPUTS, crate::phase::r#gen::OUTPUTS_PATH);
    }
}
