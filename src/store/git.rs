//! The only place that starts git.

use super::pack::{CommitSpec, WriteError};
use super::{Oid, Store};

/// Why git did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GitError {}

impl Store {
    /// Writes a commit signed as git is configured to sign. Its tree and parents must be in the repository already.
    pub fn commit_signed(&self, spec: &CommitSpec) -> Result<Oid, GitError> {
        unimplemented!()
    }

    /// A configuration value as git itself sees it, `git -c` included.
    pub fn config_get(&self, key: &str) -> Result<Option<String>, GitError> {
        unimplemented!()
    }
}
