//! Opening a repository as git would, or refusing it as git would.

use std::path::Path;

use super::{Oid, Store};

/// How a repository is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// Whether `GIT_DIR`, `GIT_WORK_TREE`, `GIT_CEILING_DIRECTORIES` and the like are honoured.
    pub from_environment: bool,
    /// Refuses every write: for hooks that run inside git's quarantine.
    pub read_only: bool,
}

/// Why a repository was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {}

/// Why a revision has no commit.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {}

impl Store {
    /// Opens the repository that `start` is in.
    pub fn open(start: &Path) -> Result<Self, OpenError> {
        Self::open_with(start, OpenOptions::default())
    }

    /// Opens the repository that `start` is in.
    pub fn open_with(start: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        unimplemented!()
    }

    /// This work tree's own git directory.
    pub fn git_dir(&self) -> &Path {
        self.repo.git_dir()
    }

    /// The git directory that all work trees share; objects and refs are here.
    pub fn common_dir(&self) -> &Path {
        self.repo.common_dir()
    }

    /// The top of the work tree; `None` in a bare repository.
    pub fn work_dir(&self) -> Option<&Path> {
        self.repo.workdir()
    }

    /// The hash that names objects here.
    pub fn object_hash(&self) -> gix::hash::Kind {
        self.repo.object_hash()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The commit of `HEAD`; `None` if the branch is unborn.
    pub fn head(&self) -> Result<Option<Oid>, RevisionError> {
        unimplemented!()
    }

    /// A configuration value as git resolves it: the last one wins.
    pub fn config_string(&self, key: &str) -> Option<String> {
        unimplemented!()
    }

    /// A boolean configuration value as git reads it; `None` if unset.
    pub fn config_bool(&self, key: &str) -> Option<bool> {
        unimplemented!()
    }

    /// The committer's name and address as git would resolve them, environment included.
    pub fn identity(&self) -> Option<(String, String)> {
        unimplemented!()
    }

    /// The commit that `rev` names.
    pub fn resolve(&self, rev: &str) -> Result<Oid, RevisionError> {
        unimplemented!()
    }
}
