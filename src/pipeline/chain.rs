//! The run's chain: one commit per phase, parent = the previous phase, tree = everything emitted so far and the snapshot. The same run has
//! the same object ids on every machine.

use std::collections::BTreeMap;

use super::PipelineError;
use super::inputs::Inputs;
use crate::document::digest::Digest;
use crate::document::path::{PathError, RepoPath};
use crate::document::phase::Phase;
use crate::gate::paths::SNAPSHOT_FOLDER;
use crate::phase::Evidence;
use crate::store::pack::{Batch, CommitSpec};
use crate::store::tree::{Leaf, Tree, write_tree, write_tree_around};
use crate::store::{Oid, Store};

/// A phase, sealed: what its commit says.
#[derive(Clone, Debug)]
pub struct Seal<'a> {
    /// The phase.
    pub phase: Phase,
    /// What it came to, after the phase's name in the subject.
    pub summary: String,
    /// The phase's cache key, for a phase that has one.
    pub cache_key: Option<Digest>,
    /// ALLOW or DENY, for a gate that decides.
    pub decision: Option<&'a str>,
    /// What it emitted.
    pub evidence: &'a Evidence,
    /// The artifacts it handed on.
    pub artifacts: &'a BTreeMap<RepoPath, Oid>,
}

/// A chain of phase commits.
pub struct Chain {
    state_key: Digest,
    executor_key: Digest,
    /// Everything but the snapshot.
    tree: Tree,
    /// The snapshot, by its paths in itself.
    files: Tree,
    /// The folder of the snapshot, which no phase changes, once it has been written.
    snapshot: Option<Oid>,
    /// The phase commits so far, in order.
    pub commits: Vec<(Phase, Oid)>,
    /// The blobs of what was emitted, by path.
    pub emitted: BTreeMap<RepoPath, Oid>,
}

impl Chain {
    /// The chain before its first phase: it holds the snapshot.
    pub fn new(inputs: &Inputs, state_key: Digest, executor_key: Digest) -> Result<Self, PipelineError> {
        let leaf = |id| Leaf { id, executable: false };
        let files = inputs.files.iter().map(|(path, file)| (path.clone(), leaf(file.id))).collect();
        let (tree, commits, emitted) = (Tree::new(), Vec::new(), BTreeMap::new());
        Ok(Self { state_key, executor_key, tree, files, snapshot: None, commits, emitted })
    }

    /// Seals a phase.
    pub fn seal(&mut self, batch: &mut Batch<'_>, seal: &Seal<'_>) -> Result<Oid, PipelineError> {
        for (path, bytes) in seal.evidence {
            let id = batch.blob(bytes)?;
            self.emitted.insert(path.clone(), id);
            self.tree.insert(path.clone(), Leaf { id, executable: false });
        }
        for (path, id) in seal.artifacts {
            self.tree.insert(path.clone(), Leaf { id: *id, executable: false });
        }
        let tree = self.write(batch)?;
        let mut message = format!("{}: {}\n\nCbia-Phase: {}\n", seal.phase, seal.summary, seal.phase);
        message.push_str(&format!("Cbia-State-Key: {}\nCbia-Executor-Key: {}\n", self.state_key, self.executor_key));
        if let Some(key) = seal.cache_key {
            message.push_str(&format!("Cbia-Cache-Key: {key}\n"));
        }
        if let Some(decision) = seal.decision {
            message.push_str(&format!("Cbia-Decision: {decision}\n"));
        }
        let parents = self.tip().into_iter().collect();
        let id = batch.commit(&CommitSpec::fixed(tree, parents, message))?;
        self.commits.push((seal.phase, id));
        Ok(id)
    }

    fn write(&mut self, batch: &mut Batch<'_>) -> Result<Oid, PipelineError> {
        if self.files.is_empty() {
            return Ok(write_tree(batch, &self.tree)?);
        }
        let folder = match self.snapshot {
            Some(folder) => folder,
            None => *self.snapshot.insert(write_tree(batch, &self.files)?),
        };
        Ok(write_tree_around(batch, &self.tree, &[(SNAPSHOT_FOLDER, folder)])?)
    }

    /// The last phase commit.
    pub fn tip(&self) -> Option<Oid> {
        self.commits.last().map(|(_, id)| *id)
    }

    /// Everything the last phase commit holds.
    pub fn tree(&self) -> Result<Tree, PathError> {
        let place = |(path, leaf): (&RepoPath, &Leaf)| Ok((format!("{SNAPSHOT_FOLDER}/{}", path.as_str()).parse()?, *leaf));
        let mut tree = self.files.iter().map(place).collect::<Result<Tree, PathError>>()?;
        tree.extend(self.tree.iter().map(|(path, leaf)| (path.clone(), *leaf)));
        Ok(tree)
    }
}

/// Writes the snapshot's bytes, where the repository does not have them yet.
pub fn write_snapshot(batch: &mut Batch<'_>, store: &Store, inputs: &Inputs) -> Result<(), PipelineError> {
    for file in inputs.files.values().filter(|file| !matches!(file.content, crate::store::snapshot::Content::Stored)) {
        batch.blob(store.content(file)?)?;
    }
    Ok(())
}
