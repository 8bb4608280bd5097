//! When a write counts as done, and the few calls that make it so.

use std::fs::{File, Permissions};
use std::io;
use std::path::Path;

use super::Store;

/// Whether a write waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The write survives the end of the process; a power cut may take it away.
    Relaxed,
    /// The write survives a power cut: files and the directories that name them are synchronized before it is reported.
    Full,
}

impl Durability {
    /// Waits until the content of `file` is on the disk, if that is asked for.
    pub fn sync(self, file: &File) -> io::Result<()> {
        if self == Self::Full { file.sync_all() } else { Ok(()) }
    }

    /// Waits until the names in the directory `path` are on the disk, if that is asked for.
    pub fn sync_dir(self, path: &Path) -> io::Result<()> {
        if self == Self::Full { File::open(path)?.sync_all() } else { Ok(()) }
    }

    /// Waits for `path` and each directory above it up to and including `top`, if that is asked for.
    pub fn sync_dirs_up_to(self, path: &Path, top: &Path) -> io::Result<()> {
        for dir in path.ancestors().take_while(|dir| dir.starts_with(top)) {
            self.sync_dir(dir)?;
        }
        Ok(())
    }
}

impl Store {
    /// `core.sharedRepository` in git's encoding: 0 leaves modes to the umask, a positive value is or-ed into them, a
    /// negative one replaces them.
    pub(in crate::store) fn shared_mode(&self) -> i32 {
        let value = self.repo.config_snapshot().string("core.sharedRepository");
        match value {
            None => 0,
            // A value git would die of leaves the umask's modes, the least access of all choices.
            Some(value) => gix::config::tree::Core::SHARED_REPOSITORY.try_into_shared_repository(Some(value)).unwrap_or(0),
        }
    }

    /// Gives a new file or directory the mode that `core.sharedRepository` asks for.
    pub(in crate::store) fn share(&self, path: &Path) -> io::Result<()> {
        let shared = self.shared_mode();
        if shared == 0 {
            return Ok(());
        }
        let now: Permissions = std::fs::symlink_metadata(path)?.permissions();
        let wanted = gix::fs::adjust_shared_repository_permissions(now.clone(), shared);
        if wanted == now { Ok(()) } else { std::fs::set_permissions(path, wanted) }
    }

    /// Creates the directory `path` and those above it up to `top`, shared as configured.
    pub(in crate::store) fn create_dirs(&self, path: &Path, top: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| path != top && parent.starts_with(top)) {
            self.create_dirs(parent, top)?;
        }
        match std::fs::create_dir(path) {
            Ok(()) => self.share(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
