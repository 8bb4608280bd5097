//! Writing verified files into the work tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::digest::Digest;
use crate::document::finding::Finding;
use crate::document::path::RepoPath;

use super::{Oid, Store};

/// What the work tree should hold.
#[derive(Debug, Default)]
pub struct Materialise {
    /// Every output, at its path.
    pub files: BTreeMap<RepoPath, WriteItem>,
    /// Whether what an earlier run wrote at paths that are not in `files` is removed.
    pub remove_strays: bool,
    /// Whether files that a person edited are overwritten.
    pub force: bool,
}

/// One file to write.
#[derive(Clone, Debug)]
pub struct WriteItem {
    /// The blob's object id.
    pub id: Oid,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Where the bytes come from.
    pub source: Source,
    /// Whose file it is.
    pub class: Class,
}

/// Where the bytes of a [`WriteItem`] come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory.
    Bytes(Arc<[u8]>),
    /// From the object database.
    Blob,
}

/// Whose file an output is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A generated file, which a person may have edited since: never overwritten without `force`.
    Artifact,
    /// A file that belongs to git cbia: always overwritten.
    Evidence,
}

/// What was done.
#[derive(Debug, Default)]
#[must_use = "an error among the findings says that nothing was written"]
pub struct Materialised {
    /// Paths that were written.
    pub written: Vec<RepoPath>,
    /// How many files were in place already.
    pub in_place: u64,
    /// Strays that were removed.
    pub removed: Vec<RepoPath>,
    /// With an error among them nothing was written; warnings name what was left alone.
    pub findings: Vec<Finding>,
}

/// Why the work tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MaterialiseError {
    /// There is no work tree.
    #[error("'{0}' is a bare repository: it has no work tree to write to")]
    Bare(std::path::PathBuf),
}

impl Store {
    /// Brings the work tree to what `plan` says, or writes nothing and says why.
    pub fn materialise(&self, plan: &Materialise) -> Result<Materialised, MaterialiseError> {
        todo!("{plan:?}")
    }
}
