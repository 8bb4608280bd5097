//! Writing objects: many as one pack, few as loose files.

use super::durable::Durability;
use super::object::Kind;
use super::{Oid, Store};
use crate::document::digest::Digest;

/// Who, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name.
    pub name: String,
    /// The address.
    pub email: String,
    /// Seconds since 1970.
    pub seconds: i64,
    /// The offset from UTC in seconds.
    pub offset: i32,
}

impl Identity {
    /// The fixed identity of phase commits, so that the same inputs give the same object ids everywhere.
    pub fn cbia() -> Self {
        Self { name: "git-cbia".into(), email: "git-cbia@localhost".into(), seconds: 0, offset: 0 }
    }
}

/// A commit to write.
#[derive(Debug, Clone)]
pub struct CommitSpec {
    /// The tree it records.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// The author.
    pub author: Identity,
    /// The committer.
    pub committer: Identity,
    /// The message; a final newline is added if it has none.
    pub message: String,
    /// Headers after the committer.
    pub extra_headers: Vec<(String, String)>,
}

/// Why objects were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {}

/// What publishing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Objects written.
    pub written: usize,
    /// Objects that were there already, whole.
    pub reused: usize,
    /// Objects that were there but damaged, and were written anew.
    pub healed: Vec<Oid>,
}

/// Objects on their way into a repository; invisible until published, gone if dropped.
pub struct Batch<'s> {
    store: &'s Store,
}

impl<'s> Batch<'s> {
    /// An empty batch.
    pub fn new(store: &'s Store) -> Result<Self, WriteError> {
        Ok(Self { store })
    }

    /// Adds a blob.
    pub fn blob(&mut self, bytes: Vec<u8>) -> Result<Oid, WriteError> {
        unimplemented!()
    }

    /// Adds blobs on all cores; ids and SHA-256 digests in the order given.
    pub fn blobs_parallel(&mut self, blobs: Vec<Vec<u8>>) -> Result<Vec<(Oid, Digest)>, WriteError> {
        unimplemented!()
    }

    /// Adds an object from its raw content.
    pub fn object(&mut self, kind: Kind, content: Vec<u8>) -> Result<Oid, WriteError> {
        unimplemented!()
    }

    /// Adds a commit.
    pub fn commit(&mut self, spec: &CommitSpec) -> Result<Oid, WriteError> {
        unimplemented!()
    }

    /// Makes everything visible to readers of the repository.
    pub fn publish(self, durability: Durability) -> Result<Published, WriteError> {
        unimplemented!()
    }
}
