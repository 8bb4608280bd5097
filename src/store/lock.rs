//! Locks that the kernel owns, so that no crash leaves one behind.

use std::time::Duration;

use super::Store;

/// A held lock; released when dropped, or by the kernel when the process ends.
pub struct Guard {}

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {}

impl Store {
    /// Takes the lock `name`: waits at most `wait`, without end if it is `None`.
    pub fn lock(&self, name: &str, wait: Option<Duration>) -> Result<Guard, LockError> {
        unimplemented!()
    }
}
