//! Locks that the kernel owns, so that no crash leaves one behind.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Store;
use crate::document::path::{RepoPath, printable};

/// A held lock; released when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct Guard {
    file: File,
    path: PathBuf,
}

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has held it all the time.
    #[error("another process holds the lock '{}'", .path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The name is no file name.
    #[error("'{}' cannot name a lock", printable(.name))]
    Name {
        /// The name.
        name: String,
    },
    /// The file system refused.
    #[error("cannot take the lock '{}'", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

impl Guard {
    /// The lock file.
    pub(in crate::store) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // While the lock is held nobody else can be using the file; a waiter that already opened it sees that its file
        // has lost its name, and opens anew. A file that cannot be removed does no harm: what counts is the lock on it.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Store {
    /// Takes the lock `name`, a file `cbia/<name>.lock` in the common directory: waits at most `wait`, without end if it
    /// is `None`, not at all if it is zero.
    pub fn lock(&self, name: &str, wait: Option<Duration>) -> Result<Guard, LockError> {
        if name.contains('/') || name.parse::<RepoPath>().is_err() {
            return Err(LockError::Name { name: name.to_owned() });
        }
        let folder = self.common_dir().join("cbia");
        let path = folder.join(format!("{name}.lock"));
        let failed = |source| LockError::Io { path: path.clone(), source };
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            self.create_dirs(&folder, self.common_dir()).map_err(failed)?;
            let file = match File::options().read(true).write(true).create(true).truncate(false).open(&path) {
                Ok(file) => file,
                Err(source) => return Err(failed(source)),
            };
            match wait {
                None => file.lock().map_err(failed)?,
                Some(limit) => match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => {
                        if started.elapsed() >= limit {
                            return Err(LockError::Busy { path });
                        }
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(50));
                        continue;
                    }
                    Err(TryLockError::Error(source)) => return Err(failed(source)),
                },
            }
            // The previous holder removes the file; a lock on a file without that name locks nobody out.
            let ours = file.metadata().map_err(failed)?;
            match std::fs::symlink_metadata(&path) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {
                    self.share(&path).map_err(failed)?;
                    return Ok(Guard { file, path });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }
}
