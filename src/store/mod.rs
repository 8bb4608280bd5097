//! F1: documents and trees as git objects under `refs/cbia/`, and the work tree they come from and go to.
//!
//! gix stays behind this floor; nothing above it names a gix type but [`Oid`].

pub mod attest;
mod beneath;
pub mod bundle;
pub mod cache;
mod clean;
pub mod commits;
pub mod compare;
pub mod durable;
mod error;
#[cfg(test)]
mod fixture;
pub mod fsck;
pub mod gc;
pub mod git;
pub mod history;
pub mod hooks;
pub mod ledger;
pub mod lock;
pub mod materialise;
pub mod memo;
pub mod object;
pub mod open;
pub mod pack;
pub mod past;
pub mod promote;
pub mod refs;
pub mod runs;
pub mod share;
pub mod snapshot;
mod stage;
mod stat;
pub mod talk;
#[cfg(test)]
pub(crate) mod testing;
pub mod tree;
mod worktree;

pub use self::error::StoreError;
pub(crate) use self::error::through_store;

/// A git object id, SHA-1 or SHA-256 as the repository has it.
pub type Oid = gix::ObjectId;

/// An opened repository. Cheap to clone is not promised; one per command.
pub struct Store {
    pub(in crate::store) repo: gix::Repository,
    pub(in crate::store) read_only: bool,
    pub(in crate::store) healed: std::cell::RefCell<Vec<crate::document::finding::Finding>>,
    /// The object directory that borrows from git's quarantine, if there is one; it lasts as long as the store.
    _borrowed: Option<tempfile::TempDir>,
}

impl Store {
    /// Does two things at once: one on another thread, with a handle of its own to this repository.
    pub fn beside<A: Send, B>(&self, there: impl FnOnce(&Self) -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
        // The object directory that is borrowed lasts as long as this handle, which waits for the other.
        let other = Self { repo: self.repo.clone(), read_only: self.read_only, healed: Default::default(), _borrowed: None };
        let (there, healed, here) = std::thread::scope(|scope| {
            let there = scope.spawn(move || (there(&other), other.healed.take()));
            let here = here();
            match there.join() {
                Ok((there, healed)) => (there, healed, here),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        self.healed.borrow_mut().extend(healed);
        (there, here)
    }
}

/// Removes lock files that this process holds when it ends by SIGINT, SIGTERM, SIGHUP or SIGQUIT. First thing in `main`.
pub fn install_signal_handlers() {
    gix::tempfile::signal::setup(gix::tempfile::signal::handler::Mode::DeleteTempfilesOnTerminationAndRestoreDefaultBehaviour);
}
