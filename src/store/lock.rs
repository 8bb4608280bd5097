//! Locks that the kernel owns, so that no crash leaves one behind.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::Store;
use crate::document::path::{RepoPath, printable};

/// The longest note of a holder, in bytes.
const MAX_NOTE: usize = 4096;

/// A held lock; released when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct Guard {
    file: File,
    path: PathBuf,
}

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// One other process has held it all the time.
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

    /// Its path.
    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    /// What the holder before this one was about, and when it wrote that down. A holder that ends in peace takes its note with it, so
    /// there is one only after a holder that was killed.
    pub(in crate::store) fn inherited(&self) -> io::Result<Option<(String, SystemTime)>> {
        let mut bytes = [0; MAX_NOTE];
        let length = self.file.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        Ok(if text.is_empty() { None } else { Some((text, self.file.metadata()?.modified()?)) })
    }

    /// Writes down what this holder is about, for the one that comes after it if it is killed.
    pub(in crate::store) fn note(&self, text: &str) -> io::Result<()> {
        // In this order, so that no kill in between leaves an empty note: whoever reads one reads its first lines only.
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
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
    /// Takes the lock `name`, a file `cbia/<name>.lock` in the common directory: waits at most `wait` for each holder, without end if it
    /// is `None`, not at all if it is zero. However many wait, each of them comes to its turn as long as those before it do their work.
    pub fn lock(&self, name: &str, wait: Option<Duration>) -> Result<Guard, LockError> {
        if name.contains('/') || name.parse::<RepoPath>().is_err() {
            return Err(LockError::Name { name: name.to_owned() });
        }
        let folder = self.common_dir().join("cbia");
        let path = folder.join(format!("{name}.lock"));
        let failed = |source| LockError::Io { path: path.clone(), source };
        let (mut since, mut holder) = (Instant::now(), None::<File>);
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
                        // Each holder has a file of its own. That of the last one is kept open, so that no other can have its number.
                        let number = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
                        let known = holder.as_ref().map(number).transpose().map_err(failed)?;
                        if known.is_some_and(|known| number(&file).is_ok_and(|now| now != known)) {
                            since = Instant::now();
                        }
                        if since.elapsed() >= limit {
                            return Err(LockError::Busy { path });
                        }
                        holder = Some(file);
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

#[cfg(test)]
mod tests {
    use super::super::testing::Repo;
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_leaves_nothing() {
        let repo = Repo::new();
        let (one, two) = (repo.store(), repo.store());
        let path = one.common_dir().join("cbia/x.lock");
        let guard = one.lock("x", None).unwrap();
        assert!(path.exists());
        let refused = two.lock("x", Some(Duration::ZERO)).unwrap_err();
        assert!(matches!(&refused, LockError::Busy { path: busy } if *busy == path), "{refused}");
        drop(two.lock("y", Some(Duration::ZERO)).unwrap());
        drop(guard);
        assert!(!path.exists());
        // What a killed process leaves is no lock.
        std::fs::write(&path, "").unwrap();
        drop(two.lock("x", Some(Duration::ZERO)).unwrap());
        for name in ["", "..", "a/b", "a\nb", ".git"] {
            assert!(matches!(one.lock(name, None), Err(LockError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn the_wait_is_for_one_holder_and_not_for_all_of_them() {
        let repo = Repo::new();
        let (limit, hold) = (Duration::from_millis(400), Duration::from_millis(100));
        std::thread::scope(|scope| {
            // Together they hold it for three times as long as anybody waits for one of them.
            for _ in 0..12 {
                scope.spawn(|| {
                    let guard = repo.store().lock("x", Some(limit * 10)).unwrap();
                    std::thread::sleep(hold);
                    drop(guard);
                });
            }
            for _ in 0..2 {
                scope.spawn(|| drop(repo.store().lock("x", Some(limit)).unwrap()));
            }
        });
        let guard = repo.store().lock("x", None).unwrap();
        assert!(matches!(repo.store().lock("x", Some(hold)), Err(LockError::Busy { .. })));
        drop(guard);
    }

    #[test]
    fn no_two_are_in_at_once_though_the_file_comes_and_goes() {
        let repo = Repo::new();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let count = std::sync::Mutex::new(0);
        std::thread::scope(|scope| {
            for wait in [None, Some(Duration::from_secs(60)), None, Some(Duration::from_secs(60))] {
                let (repo, inside, count) = (&repo, &inside, &count);
                scope.spawn(move || {
                    let store = repo.store();
                    for _ in 0..50 {
                        let guard = store.lock("x", wait).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        *count.lock().unwrap() += 1;
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert_eq!(*count.lock().unwrap(), 200);
    }
}
