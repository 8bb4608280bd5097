//! F1: documents and trees as git objects under `refs/cbia/`, and the work tree they come from and go to.
//!
//! gix stays behind this floor; nothing above it names a gix type but [`Oid`].

mod beneath;
mod clean;
pub mod materialise;
pub mod open;
pub mod snapshot;
mod stat;
mod worktree;

/// A git object id, SHA-1 or SHA-256 as the repository has it.
pub type Oid = gix::ObjectId;

/// An opened repository. Cheap to clone is not promised; one per command.
pub struct Store {
    pub(in crate::store) repo: gix::Repository,
}
