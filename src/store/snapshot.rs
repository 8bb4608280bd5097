//! Which files exist, and their bytes as git stores them: from the work tree or from a commit's tree.
//!
//! A scan decides nothing and writes no objects. It gives every wanted file's object id, SHA-256 and size, and a
//! way to get at the bytes later that checks them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::digest::Digest;
use crate::document::finding::Finding;
use crate::document::glob::Globs;
use crate::document::path::RepoPath;

use super::{Oid, Store};

/// What a scan looks for.
pub struct Wanted<'a> {
    /// Patterns; only the folders they can match below are walked.
    pub globs: &'a Globs,
    /// Paths that are looked up one by one, whether a pattern matches them or not.
    pub exact: &'a [RepoPath],
    /// Paths that are left out although a pattern matches them. It does not apply to `exact`.
    pub exclude: &'a dyn Fn(&RepoPath) -> bool,
}

/// The most a scan accepts before it reports [`InputTooLarge`](crate::document::finding::Code::InputTooLarge).
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// Number of files.
    pub files: u64,
    /// Bytes of all files together, as git stores them.
    pub bytes: u64,
    /// Bytes of one file, on the disk and as git stores it.
    pub file_bytes: u64,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self { files: 100_000, bytes: 1 << 30, file_bytes: 256 << 20 }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every wanted file that is there and is regular.
    pub files: BTreeMap<RepoPath, SourceFile>,
    /// What cannot be an input, and why. A scan with an error among them must not be used.
    pub findings: Vec<Finding>,
}

/// One file of a scan.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The blob's object id, whether or not the object database holds it.
    pub id: Oid,
    /// SHA-256 of the bytes as git stores them.
    pub sha256: Digest,
    /// Their number.
    pub bytes: u64,
    /// Where they can be had.
    pub content: Content,
}

/// Where the bytes of a [`SourceFile`] are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Memory(Arc<[u8]>),
    /// In the object database.
    Stored,
    /// In the work tree, at this path, and perhaps in the object database.
    File(RepoPath),
}

/// Why a scan could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// There is no work tree to scan.
    #[error("'{0}' is a bare repository: it has no work tree to read inputs from")]
    Bare(std::path::PathBuf),
}

impl Store {
    /// The wanted files of the tree `tree`, exactly as they are stored.
    pub fn scan_commit(&self, tree: Oid, wanted: &Wanted<'_>, limits: ScanLimits) -> Result<Scan, ScanError> {
        todo!("{tree} {:?} {limits:?}", wanted.exact)
    }

    /// The wanted files of the work tree, as `git add` would store them.
    pub fn scan_worktree(&self, wanted: &Wanted<'_>, limits: ScanLimits) -> Result<Scan, ScanError> {
        todo!("{:?} {limits:?}", wanted.exact)
    }

    /// The bytes of a scanned file, checked against its SHA-256.
    pub fn content(&self, file: &SourceFile) -> Result<Vec<u8>, ScanError> {
        todo!("{file:?}")
    }
}
