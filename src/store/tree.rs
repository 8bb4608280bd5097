//! Trees read whole and vetted, and trees written in git's order.

use std::collections::BTreeMap;

use super::pack::{Batch, WriteError};
use super::{Oid, Store};
use crate::document::path::RepoPath;

/// A file in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The blob.
    pub id: Oid,
    /// Whether the mode is 100755 rather than 100644.
    pub executable: bool,
}

/// The files of a tree by path, in byte order of path. Only regular files.
pub type Tree = BTreeMap<RepoPath, Leaf>;

/// The bounds within which a tree is read.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Files and folders together.
    pub max_entries: usize,
    /// Folders inside one another.
    pub max_depth: usize,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { max_entries: 100_000, max_depth: 64 }
    }
}

/// Why a tree was refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {}

impl Store {
    /// Every file of the tree `id`, each tree verified and every name vetted.
    pub fn read_tree(&self, id: &Oid, limits: TreeLimits) -> Result<Tree, TreeError> {
        unimplemented!()
    }

    /// The blob at `path`, reading only the trees on the way; `None` if there is no such file.
    pub fn lookup(&self, tree: &Oid, path: &RepoPath) -> Result<Option<Oid>, TreeError> {
        unimplemented!()
    }

    /// The tree at `path`; `None` if there is no such folder.
    pub fn subtree(&self, tree: &Oid, path: &RepoPath) -> Result<Option<Oid>, TreeError> {
        unimplemented!()
    }
}

/// Adds the tree objects of `tree` to `batch`; the id is that of the top.
pub fn write_tree(batch: &mut Batch<'_>, tree: &Tree) -> Result<Oid, WriteError> {
    unimplemented!()
}
