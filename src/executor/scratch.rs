//! The scratch directory of one execution: the snapshot at its paths, a folder for temporary files, and a lock that says that it is in use.
//!
//! It lies in the system's folder for temporary files, where no `.git` is above it, and only its owner may enter it. It goes when the
//! execution ends; what a power cut or a double kill leaves is removed by the next execution.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use crate::document::path::RepoPath;

const PREFIX: &str = "git-cbia-exec-";
const LOCK: &str = "lock";
const TREE: &str = "tree";
const TEMPORARY: &str = "tmp";
/// How many names are tried for a fresh directory.
const ATTEMPTS: u32 = 100;

/// What says that a file was not touched: inode, size, and the times that the kernel keeps, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Print {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    links: u64,
    executable: bool,
}

impl Print {
    /// Of an open file.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
            executable: metadata.mode() & 0o111 != 0,
        }
    }

    /// Whether anybody may execute it.
    pub fn is_executable(&self) -> bool {
        self.executable
    }

    /// The size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl From<&rustix::fs::Stat> for Print {
    #[allow(clippy::unnecessary_cast, reason = "the types of these fields differ between platforms")]
    fn from(stat: &rustix::fs::Stat) -> Self {
        Self {
            inode: stat.st_ino as u64,
            bytes: stat.st_size as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            links: stat.st_nlink as u64,
            executable: stat.st_mode as u32 & 0o111 != 0,
        }
    }
}

/// A scratch directory, removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    tree: PathBuf,
    temporary: PathBuf,
    folder: File,
    /// What the snapshot's files were when they were laid out.
    pub inputs: BTreeMap<RepoPath, Print>,
    _lock: File,
}

impl Scratch {
    /// A fresh directory inside `parent`, with `files` at their paths; those that are `programs` may be executed.
    pub fn new(parent: &Path, files: &BTreeMap<RepoPath, Vec<u8>>, programs: &[&str]) -> io::Result<Self> {
        sweep(parent);
        let (path, lock) = fresh(parent)?;
        spread(&path);
        // ext4 chooses where to put it by its name.
        let own = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)).unwrap_or_default();
        let (tree, temporary) = (path.join(format!("{TREE}-{own}")), path.join(TEMPORARY));
        // From here on the directory is removed even if it cannot be filled.
        let made = private(&tree).and_then(|()| private(&temporary)).and_then(|()| File::open(&tree));
        let folder = match made {
            Ok(folder) => folder,
            Err(error) => {
                remove(&path);
                return Err(error);
            }
        };
        let mut scratch = Self { path, tree, temporary, folder, inputs: BTreeMap::new(), _lock: lock };
        scratch.lay_out(files, programs)?;
        Ok(scratch)
    }

    fn lay_out(&mut self, files: &BTreeMap<RepoPath, Vec<u8>>, programs: &[&str]) -> io::Result<()> {
        let mut last = "";
        for (path, bytes) in files {
            let folder = path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder != last {
                DirBuilder::new().recursive(true).mode(0o700).create(self.tree.join(folder))?;
                last = folder;
            }
            let mode = if programs.contains(&path.as_str()) { 0o700 } else { 0o600 };
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(self.tree.join(path.as_str()))?;
            file.write_all(bytes)?;
            self.inputs.insert(path.clone(), Print::of(&file.metadata()?));
        }
        Ok(())
    }

    /// Makes the folders that `paths` lie in.
    pub fn make_folders<'a>(&self, paths: impl Iterator<Item = &'a RepoPath>) -> io::Result<()> {
        let mut last = "";
        for path in paths {
            let folder = path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder != last {
                DirBuilder::new().recursive(true).mode(0o700).create(self.tree.join(folder))?;
                last = folder;
            }
        }
        Ok(())
    }

    /// The whole directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with the snapshot, where the executor starts.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The folder for temporary files.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// The snapshot's folder, opened before the executor started: nothing can take its place.
    pub fn folder(&self) -> &File {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Asks ext4 to put each folder of this one where there is room, instead of beside it. For minutes it does not give the place of a deleted file to a
/// new one, and looks at every one of them for each: the next of two executions of 10,000 files would take a second longer.
#[cfg(target_os = "linux")]
fn spread(path: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    // Other file systems have no such wish to grant.
    if let Ok(folder) = File::open(path)
        && let Ok(flags) = ioctl_getflags(&folder)
    {
        ioctl_setflags(&folder, flags | IFlags::TOPDIR).ok();
    }
}

#[cfg(not(target_os = "linux"))]
fn spread(_: &Path) {}

/// A directory of a name that was free, and the lock on it.
fn fresh(parent: &Path) -> io::Result<(PathBuf, File)> {
    let only_owner = std::fs::Permissions::from_mode(0o700);
    let mut last = io::Error::other("no free name was found");
    for _ in 0..ATTEMPTS {
        let path =
            tempfile::Builder::new().prefix(PREFIX).rand_bytes(12).permissions(only_owner.clone()).tempdir_in(parent)?.keep();
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(LOCK));
        match opened.and_then(|file| file.lock().map(|()| file)) {
            Ok(file) if path.join(LOCK).exists() => return Ok((path, file)),
            // Somebody's sweep took it for one that was left behind.
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Removes directories of this user that nobody holds the lock of. What cannot be removed is left to the next time.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        let left = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if !left || !std::fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir() && stat.uid() == own) {
            continue;
        }
        match OpenOptions::new().write(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path.join(LOCK)) {
            Ok(lock) => {
                if lock.try_lock().is_ok() {
                    remove(&path);
                }
            }
            // It was just made, or its maker died before it had a lock: then it is empty.
            Err(_) => drop(std::fs::remove_dir(&path)),
        }
    }
}

/// Removes a directory with everything in it, whatever its depth and modes: each folder inside is first moved to the top, so that no path
/// grows long. Nothing may be running in it any more. What cannot be removed is left to the next sweep.
pub fn remove(top: &Path) {
    if flatten(top).is_ok() {
        drop(std::fs::remove_dir(top));
    }
}

/// Bytes of the disk that a directory takes, as far as it can be seen while somebody may be writing in it; counted no further than `limit`.
pub fn weight(top: &Path, limit: u64) -> u64 {
    let mut waiting = vec![top.to_owned()];
    let mut bytes = 0u64;
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // Of the entry itself, also if it is a link.
            let Ok(stat) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(stat.blocks().saturating_mul(512));
            if bytes > limit {
                return bytes;
            }
            if stat.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

fn flatten(top: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |parent: &dyn std::os::fd::AsFd, name: &[u8]| rustix::fs::openat(parent, name, flags, Mode::empty());
    let root = open(&CWD, top.as_os_str().as_encoded_bytes())?;
    let mut number = 0u64;
    // The lock goes last, so that a sweep never takes what is being removed for a directory without one.
    let mut waiting = vec![b".".to_vec()];
    while let Some(folder) = waiting.pop() {
        let is_root = folder == b".";
        if !is_root {
            rustix::fs::chmodat(&root, &folder, Mode::RWXU, AtFlags::empty())?;
        }
        let handle = open(&root, &folder)?;
        let mut folders = Vec::new();
        for entry in rustix::fs::Dir::read_from(&handle)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || is_root && name == LOCK.as_bytes() {
                continue;
            }
            let kind = match entry.file_type() {
                // The file system does not tell.
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&handle, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            if kind == FileType::Directory {
                folders.push(name.to_vec());
            } else {
                rustix::fs::unlinkat(&handle, entry.file_name(), AtFlags::empty())?;
            }
        }
        for name in folders {
            let mut moved = format!("d{number}").into_bytes();
            while rustix::fs::statat(&root, &moved, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                number += 1;
                moved = format!("d{number}").into_bytes();
            }
            number += 1;
            // Moving a folder rewrites its `..`, for which it must be writable.
            rustix::fs::chmodat(&handle, &name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::renameat(&handle, &name, &root, &moved)?;
            waiting.push(moved);
        }
        if !is_root {
            rustix::fs::unlinkat(&root, &folder, AtFlags::REMOVEDIR)?;
        }
    }
    match rustix::fs::unlinkat(&root, LOCK, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<RepoPath, Vec<u8>> {
        let file = |(path, text): (&str, &str)| (path.parse().unwrap(), text.as_bytes().to_vec());
        [("a", "1"), ("b/c", "2"), ("b/d/e.py", "3")].into_iter().map(file).collect()
    }

    #[test]
    fn a_snapshot_is_laid_out_for_its_owner_only_and_goes() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path(), &files(), &["b/d/e.py"]).unwrap();
        let mode = |path: &str| std::fs::metadata(scratch.tree().join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode(".."), mode("."), mode("b/c"), mode("b/d/e.py")), (0o700, 0o700, 0o600, 0o700));
        assert_eq!(std::fs::read(scratch.tree().join("b/c")).unwrap(), b"2");
        assert_eq!(scratch.inputs.len(), 3);
        // A second one leaves the first alone.
        let second = Scratch::new(parent.path(), &files(), &[]).unwrap();
        assert!(scratch.tree().join("a").exists());
        drop((scratch, second));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_left_behind_is_swept_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["git-cbia-exec-dead/tree/x", "git-cbia-exec-empty", "git-cbia-other/x"] {
            std::fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        std::fs::write(parent.path().join("git-cbia-exec-dead/lock"), "").unwrap();
        drop(Scratch::new(parent.path(), &files(), &[]).unwrap());
        let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["git-cbia-other"]);
    }

    #[test]
    fn what_it_takes_of_the_disk_is_weighed() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path(), &files(), &[]).unwrap();
        let before = weight(scratch.path(), u64::MAX);
        std::fs::create_dir_all(scratch.temporary().join("a/b")).unwrap();
        std::fs::write(scratch.temporary().join("a/b/c"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", scratch.tree().join("link")).unwrap();
        let after = weight(scratch.path(), u64::MAX);
        assert!((before + (1 << 20)..before + (2 << 20)).contains(&after), "{before} {after}");
        assert!(weight(scratch.path(), 4096) > 4096);
    }

    #[test]
    fn depth_modes_and_links_do_not_keep_a_directory() {
        let parent = tempfile::tempdir().unwrap();
        let outside = parent.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        let scratch = Scratch::new(parent.path(), &files(), &[]).unwrap();
        let mut handle = rustix::fs::openat(CWD, scratch.tree(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&handle, "d0", Mode::RWXU).unwrap();
            handle = rustix::fs::openat(&handle, "d0", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(handle);
        std::os::unix::fs::symlink(&outside, scratch.tree().join("link")).unwrap();
        std::fs::create_dir_all(scratch.tree().join("shut/in")).unwrap();
        rustix::fs::chmodat(CWD, scratch.tree().join("shut"), Mode::empty(), AtFlags::empty()).unwrap();
        drop(scratch);
        let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["outside"]);
        assert!(outside.join("kept").exists());
    }
}
