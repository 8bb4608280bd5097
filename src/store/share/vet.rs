//! Whether what a remote offers is what its name says, from its objects alone: every object is hashed again, the keys are computed again,
//! and every document is read by its schema.
//!
//! Whether a run is the one that its state comes to under the policies of now is decided when it is used, where the gates are run again.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use crate::document::audit_bundle::FinalManifest;
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Finding, spelled};
use crate::document::gen_exchange::OutputsManifest;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::schema::{Kind, load};
use crate::store::compare::{Difference, Everything, Thing};
use crate::store::object::{ObjectError, trailers};
use crate::store::pack::Identity;
use crate::store::tree::{Leaf, Tree, TreeError, TreeLimits};
use crate::store::{Oid, Store};

/// The folder of a run's tree that holds the snapshot.
const SNAPSHOT: &str = "inputs";
/// The capsule's path in a run's tree.
const CAPSULE: &str = "control/runtime/pre_gen_capsule.json";
/// The outputs manifest's path in a run's tree.
const OUTPUTS: &str = "execution/gen/outputs.json";

/// The final manifest's path in a run's tree.
const FINAL: &str = "execution/eval/manifest.json";

/// The longest chain of a run: every phase once, and as many repairs as anybody would try, each with its CHECK.
const MAX_COMMITS: usize = 256;

/// A run's name: its state key and its executor key.
#[derive(Clone, Copy, Debug)]
pub struct RunName {
    /// Listing hash of the snapshot.
    pub state_key: Digest,
    /// Canonical hash of the resolved executor.
    pub executor_key: Digest,
}

/// Why something is not taken for a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// It is none, or one of another name.
    Wrong(String),
    /// More bytes would have to be read than may be.
    Bytes(String),
    /// More names in folders would have to be looked at than may be.
    Names(String),
}

impl Unfit {
    /// In words.
    pub fn why(&self) -> &str {
        let (Self::Wrong(why) | Self::Bytes(why) | Self::Names(why)) = self;
        why
    }

    fn of_tree(error: &TreeError) -> Self {
        match error {
            TreeError::TooMuch { .. } => Self::Names(spelled(error)),
            _ => Self::Wrong(spelled(error)),
        }
    }
}

impl From<String> for Unfit {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

/// What may be read for the runs that are vetted, and the hashes of what was read. A blob that several runs have is read once.
pub struct Reading<'c> {
    /// SHA-256 by blob.
    pub known: HashMap<Oid, Digest>,
    /// How many bytes more may be read.
    pub bytes: &'c Cell<usize>,
    /// How many names in folders more may be looked at.
    pub names: &'c Cell<usize>,
}

impl Reading<'_> {
    fn digest(&mut self, store: &Store, path: &str, id: Oid) -> Result<Digest, Unfit> {
        if let Some(digest) = self.known.get(&id) {
            return Ok(*digest);
        }
        let left = self.bytes.get();
        let bytes = store.read_blob(&id, left as u64).map_err(|error| {
            let why = format!("{}: {}", printable(path), spelled(&error));
            if matches!(error, ObjectError::TooLarge { .. }) { Unfit::Bytes(why) } else { Unfit::Wrong(why) }
        })?;
        self.bytes.set(left - bytes.len());
        let digest = Digest::of(&bytes);
        self.known.insert(id, digest);
        Ok(digest)
    }
}

impl Store {
    /// Why the chain of commits at `tip` is not a whole run of this name; nothing if it is: every phase up to EVAL, in the shape that git cbia
    /// writes, the snapshot and the executor of its keys, and every file with the hash that GEN and EVAL gave it.
    pub fn vet_run(&self, name: RunName, tip: Oid, reading: &mut Reading<'_>) -> Result<(), Unfit> {
        let mut next = Some(tip);
        let mut commits = 0;
        let mut later = None::<Phase>;
        // The files of the commit that is looked at, and the tree that has them.
        let mut files: Option<(Tree, Oid)> = None;
        while let Some(id) = next {
            let commit = self.read_commit(&id).map_err(|error| spelled(&error))?;
            let fixed = Identity::cbia().line();
            if commit.author != fixed || commit.committer != fixed || !commit.extra_headers.is_empty() {
                return Err(format!("the commit {} is not one that git cbia writes", id.to_hex_with_len(12)).into());
            }
            let facts: BTreeMap<String, String> = trailers(&commit).into_iter().collect();
            let fact = |key: &str| facts.get(key).map(String::as_str).unwrap_or_default();
            if fact("Cbia-State-Key") != name.state_key.to_string() || fact("Cbia-Executor-Key") != name.executor_key.to_string()
            {
                return Err(format!("the commit {} belongs to another run", id.to_hex_with_len(12)).into());
            }
            commits += 1;
            let phase = Phase::from_name(fact("Cbia-Phase")).filter(|phase| comes_before(*phase, later));
            let Some(phase) = phase.filter(|_| commits <= MAX_COMMITS) else {
                return Err(format!("the commit {} is out of the phases' order", id.to_hex_with_len(12)).into());
            };
            if fact("Cbia-Decision") == "DENY" {
                return Err(format!("{phase} denied it").into());
            }
            let now = match files.take() {
                None => {
                    let tree = self.files_of(commit.tree, reading)?;
                    self.vet_state(name, &tree, reading)?;
                    self.vet_whole(&tree, reading)?;
                    tree
                }
                Some((tree, of)) => self.went_back(tree, of, commit.tree, reading)?,
            };
            if phase == Phase::Gen {
                self.vet_outputs(&now, reading)?;
            }
            files = Some((now, commit.tree));
            next = match commit.parents.as_slice() {
                [] => None,
                [parent] => Some(*parent),
                _ => return Err(format!("the commit {} joins several", id.to_hex_with_len(12)).into()),
            };
            later = Some(phase);
        }
        if later != Some(Phase::AuthorityLock) {
            return Err("its first phase is not AUTHORITY_LOCK".to_owned().into());
        }
        Ok(())
    }

    /// The files of a tree, each hashed.
    fn files_of(&self, id: Oid, reading: &mut Reading<'_>) -> Result<Tree, Unfit> {
        let tree = self.read_tree(&id, TreeLimits::default()).map_err(|error| Unfit::of_tree(&error))?;
        let left = reading.names.get().checked_sub(tree.len());
        reading.names.set(left.ok_or_else(|| Unfit::of_tree(&TreeError::TooMuch { id }))?);
        for (path, leaf) in &tree {
            reading.digest(self, path.as_str(), leaf.id)?;
        }
        Ok(tree)
    }

    /// The files of the tree `to`, from those of the tree `from`. Only what differs is read.
    fn went_back(&self, mut files: Tree, from: Oid, to: Oid, reading: &mut Reading<'_>) -> Result<Tree, Unfit> {
        let limits = TreeLimits::default();
        let differences = self.compare_within(Some(from), Some(to), &Everything, limits, reading.names);
        for Difference { path, new, .. } in differences.map_err(|error| Unfit::of_tree(&error))? {
            let path = RepoPath::from_bytes(&path).map_err(|error| spelled(&error))?;
            let (id, executable) = match new {
                None => {
                    files.remove(&path);
                    continue;
                }
                Some(Thing::File(id)) => (id, false),
                Some(Thing::Executable(id)) => (id, true),
                Some(other) => return Err(format!("{path} is {}", other.name()).into()),
            };
            reading.digest(self, path.as_str(), id)?;
            files.insert(path, Leaf { id, executable });
        }
        Ok(files)
    }

    /// The snapshot has the state key, and the capsule names an executor that has the executor key.
    fn vet_state(&self, name: RunName, tree: &Tree, reading: &mut Reading<'_>) -> Result<(), Unfit> {
        let mut snapshot = BTreeMap::new();
        for (path, leaf) in tree.iter().filter(|(path, _)| path.is_under(SNAPSHOT)) {
            let inside: RepoPath = path.as_str()[SNAPSHOT.len() + 1..].parse().map_err(|error| spelled(&error))?;
            snapshot.insert(inside, reading.digest(self, path.as_str(), leaf.id)?);
        }
        let state_key = Digest::of_listing(snapshot.iter().map(|(path, digest)| (path, *digest)));
        if state_key != name.state_key {
            return Err(format!("its snapshot has the state key {}, not the one it is stored under", state_key.short()).into());
        }
        let capsule: Capsule = self.document(Kind::Capsule, tree, CAPSULE)?;
        if capsule.gen_executor.key() != name.executor_key {
            return Err("its capsule names another executor than the one it is stored under".to_owned().into());
        }
        Ok(())
    }

    /// What GEN handed on has the hashes that GEN said.
    fn vet_outputs(&self, tree: &Tree, reading: &mut Reading<'_>) -> Result<(), Unfit> {
        let outputs: OutputsManifest = self.document(Kind::OutputsManifest, tree, OUTPUTS)?;
        for artifact in outputs.artifacts {
            let path = artifact.path;
            let leaf = tree.get(&path).ok_or_else(|| format!("it lacks the artifact {path}"))?;
            if reading.digest(self, path.as_str(), leaf.id)? != artifact.sha256 {
                return Err(format!("the artifact {path} does not have the hash that the run gives").into());
            }
        }
        Ok(())
    }

    /// EVAL named every file of the run by its hash, and nothing was added afterwards.
    fn vet_whole(&self, tree: &Tree, reading: &mut Reading<'_>) -> Result<(), Unfit> {
        let manifest: FinalManifest = self.document(Kind::FinalManifest, tree, FINAL)?;
        if !manifest.files.is_sorted_by(|one, next| one.path < next.path) {
            return Err(format!("{FINAL} does not name each file once, in order").into());
        }
        for file in &manifest.files {
            let Some(leaf) = tree.get(&file.path).filter(|leaf| !leaf.executable) else {
                return Err(format!("it lacks {}, which {FINAL} names", file.path).into());
            };
            if reading.digest(self, file.path.as_str(), leaf.id)? != file.sha256 {
                return Err(format!("{} does not have the hash that {FINAL} gives", file.path).into());
            }
        }
        // It cannot name itself, whose hash it would have to hold.
        match tree.len() == manifest.files.len() + 1 {
            true => Ok(()),
            false => Err(format!("it has files that {FINAL} does not name").into()),
        }
    }

    fn document<T: serde::de::DeserializeOwned>(&self, kind: Kind, tree: &Tree, at: &str) -> Result<T, String> {
        let path: RepoPath = at.parse().map_err(|error| spelled(&error))?;
        let leaf = tree.get(&path).ok_or_else(|| format!("it lacks {path}"))?;
        let bytes = self.read_blob(&leaf.id, 64 << 20).map_err(|error| format!("{path}: {}", spelled(&error)))?;
        let first = |findings: Vec<Finding>| findings.into_iter().next().map_or_else(String::new, |finding| finding.message);
        load::<T>(kind, &path, &bytes).map(|sealed| sealed.document).map_err(first)
    }
}

/// Whether `phase` can come directly before `later` in a finished run; nothing comes after the last.
fn comes_before(phase: Phase, later: Option<Phase>) -> bool {
    use Phase::{AuthorityLock, Check, Eval, Flow, Gen, OpaGate, PreGen, Repair, Select, Struct};
    matches!(
        (phase, later),
        (AuthorityLock, Some(PreGen))
            | (PreGen, Some(OpaGate))
            | (OpaGate, Some(Gen))
            | (Gen, Some(Check))
            // Where CHECK failed, REPAIR comes between it and the CHECK that follows.
            | (Check, Some(Repair))
            | (Repair, Some(Check))
            | (Check, Some(Struct))
            | (Struct, Some(Select))
            | (Select, Some(Flow))
            | (Flow, Some(Eval))
            | (Eval, None)
    )
}

#[cfg(test)]
mod tests {
    use crate::gate::paths::{CAPSULE_PATH, SNAPSHOT_FOLDER};

    #[test]
    fn the_paths_are_those_that_a_run_emits() {
        assert_eq!((super::SNAPSHOT, super::CAPSULE), (SNAPSHOT_FOLDER, CAPSULE_PATH));
        assert_eq!((super::OUTPUTS, super::FINAL), (crate::phase::r#gen::OUTPUTS_PATH, crate::phase::eval::MANIFEST_PATH));
    }
}
