//! Reading objects, each believed only after its bytes hash to its name.

use super::{Oid, Store};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file's bytes.
    Blob,
    /// A folder.
    Tree,
    /// A commit.
    Commit,
    /// An annotated tag.
    Tag,
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {}

/// A commit, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The tree it records.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// The author line as it stands: `Name <address> seconds offset`; bytes that are not UTF-8 are replaced.
    pub author: String,
    /// The committer line as it stands.
    pub committer: String,
    /// The headers after the committer, unfolded: `gpgsig` among them.
    pub extra_headers: Vec<(String, String)>,
    /// The message; bytes that are not UTF-8 are replaced.
    pub message: String,
}

/// Reads the objects of a store from another thread: one per thread.
pub struct Reader {
    repo: gix::Repository,
}

impl Reader {
    /// See [`Store::read`].
    pub fn read(&self, id: &Oid, kind: Kind, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        unimplemented!()
    }
    /// See [`Store::read_blob`].
    pub fn read_blob(&self, id: &Oid, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        unimplemented!()
    }
}

impl Store {
    /// A reader for another thread.
    pub fn reader(&self) -> Reader {
        Reader { repo: self.repo.clone() }
    }

    /// The bytes of an object of this kind, at most `limit_bytes` long, verified against its name.
    pub fn read(&self, id: &Oid, kind: Kind, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        unimplemented!()
    }

    /// The bytes of a blob of at most `limit_bytes`, verified.
    pub fn read_blob(&self, id: &Oid, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        unimplemented!()
    }

    /// A commit, verified and decoded.
    pub fn read_commit(&self, id: &Oid) -> Result<Commit, ObjectError> {
        unimplemented!()
    }

    /// The tree of a commit.
    pub fn tree_of(&self, commit: &Oid) -> Result<Oid, ObjectError> {
        unimplemented!()
    }

    /// Whether an object of this name is there; says nothing of its bytes.
    pub fn contains(&self, id: &Oid) -> bool {
        self.repo.has_object(id)
    }
}

/// The trailers of a commit's message as `git interpret-trailers --parse` lists them: key and unfolded value, in order.
pub fn trailers(commit: &Commit) -> Vec<(String, String)> {
    unimplemented!()
}
