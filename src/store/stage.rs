//! The folder that outputs are written to and verified in before they are renamed into the work tree.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, Missing, split};
use super::materialise::{MaterialiseError, Write, item_bytes, write_error};
use super::stat::FileStat;

const PREFIX: &str = "stage-";
/// At the work tree's top, where the git directory is on another file system.
const HIDDEN_PREFIX: &str = ".git-cbia-stage-";
/// More threads than this wait for the file system only.
const MAX_THREADS: usize = 8;
/// Into how many shares for each thread the writes are divided, and how many writes a share has at most.
const SHARES: usize = 16;
const MAX_CHUNK: usize = 256;

/// What became of one output.
pub(in crate::store) enum Landing {
    /// It is in place, with this stat.
    There(FileStat),
    /// Something else was there by then, and was left alone.
    Lost(String),
}

/// A staging folder, removed with what is left in it when it is dropped.
pub(in crate::store) struct Stage {
    path: PathBuf,
    folder: File,
    /// For each write: its path in the stage, and the whole folder it belongs to, if that is absent in the work tree.
    slots: Vec<(Vec<u8>, Option<usize>)>,
    /// Whole absent folders: their path in the work tree.
    wholes: Vec<Vec<u8>>,
    stats: Vec<Option<FileStat>>,
}

impl Stage {
    /// Removes stages that a process left behind when it died. The lock on the outputs says that none is in use.
    pub(in crate::store) fn sweep(git_dir: &Path, top: &Path) -> Result<(), MaterialiseError> {
        for (folder, prefix) in [(git_dir.join("cbia"), PREFIX), (top.to_owned(), HIDDEN_PREFIX)] {
            let wrap = |source| MaterialiseError::Stage(folder.clone(), source);
            for entry in std::fs::read_dir(&folder).map_err(wrap)? {
                let entry = entry.map_err(wrap)?;
                let left = entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes());
                if left && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    std::fs::remove_dir_all(entry.path()).map_err(wrap)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a fresh stage with the folders that `writes` need.
    pub(in crate::store) fn new(git_dir: &Path, top: &Path, writes: &[Write<'_>]) -> Result<Self, MaterialiseError> {
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        let inside = git_dir.join("cbia");
        let same = matches!((device(&inside), device(top)), (Ok(one), Ok(other)) if one == other);
        let (folder, prefix) = if same { (inside.as_path(), PREFIX) } else { (top, HIDDEN_PREFIX) };
        let wrap = |source: io::Error| MaterialiseError::Stage(folder.to_owned(), source);
        let path = tempfile::Builder::new().prefix(prefix).tempdir_in(folder).map_err(wrap)?.keep();
        let handle = File::open(&path).map_err(wrap)?;
        let mut stage = Self { path, folder: handle, slots: Vec::new(), wholes: Vec::new(), stats: Vec::new() };
        stage.lay_out(writes).map_err(|source| MaterialiseError::Stage(stage.path.clone(), source))?;
        Ok(stage)
    }

    fn lay_out(&mut self, writes: &[Write<'_>]) -> io::Result<()> {
        let mut wholes: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut last = Vec::new();
        for (at, write) in writes.iter().enumerate() {
            let Some(absent) = &write.absent else {
                self.slots.push((format!("f{at}").into_bytes(), None));
                continue;
            };
            let next = wholes.len();
            let number = *wholes.entry(absent).or_insert(next);
            if number == next {
                self.wholes.push(absent.clone());
            }
            let rest = &write.path.as_str().as_bytes()[absent.len()..];
            let slot = [format!("d{number}").as_bytes(), rest].concat();
            let parent = split(&slot).0.to_owned();
            if parent != last {
                self.make_folders(&parent)?;
                last = parent;
            }
            self.slots.push((slot, Some(number)));
        }
        Ok(())
    }

    fn make_folders(&self, path: &[u8]) -> io::Result<()> {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            match rustix::fs::mkdirat(&self.folder, &path[..end], Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes and verifies every file, on all cores.
    pub(in crate::store) fn fill(&mut self, repo: &gix::Repository, writes: &[Write<'_>]) -> Result<(), MaterialiseError> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = cores.min(MAX_THREADS).min(writes.len().div_ceil(16)).max(1);
        let chunks = chunks(writes, (writes.len() / (threads * SHARES)).clamp(1, MAX_CHUNK));
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let shared = repo.clone().into_sync();
        let work = || -> Vec<(usize, FileStat)> {
            let repo = shared.to_thread_local();
            let (mut stats, mut buffer) = (Vec::new(), Vec::new());
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                for at in chunk.clone() {
                    match self.write(&repo, &writes[at], &self.slots[at].0, &mut buffer) {
                        Ok(stat) => stats.push((at, stat)),
                        Err(error) => {
                            next.store(chunks.len(), Ordering::Relaxed);
                            if let Ok(mut failed) = failed.lock() {
                                *failed = Some(error);
                            }
                            return stats;
                        }
                    }
                }
            }
            stats
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            others.into_iter().filter_map(|thread| thread.join().ok()).chain([mine]).collect()
        });
        self.stats = vec![None; writes.len()];
        for (at, stat) in parts.into_iter().flatten() {
            self.stats[at] = Some(stat);
        }
        match failed.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => Err(MaterialiseError::Stage(self.path.clone(), io::Error::other("a writing thread died"))),
        }
    }

    fn write(
        &self,
        repo: &gix::Repository,
        write: &Write<'_>,
        slot: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<FileStat, MaterialiseError> {
        let bytes = item_bytes(repo, write.path, write.item, buffer)?;
        let wrap = |source: io::Error| MaterialiseError::Write { path: write.path.as_str().to_owned(), source };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, slot, flags, Mode::from_raw_mode(0o666));
        let mut file = File::from(file.map_err(|error| wrap(error.into()))?);
        file.write_all(bytes).map_err(wrap)?;
        let stat = rustix::fs::fstat(&file).map_err(|error| wrap(error.into()))?;
        Ok(FileStat::from(&stat))
    }

    /// Renames everything into place: absent folders whole, other files one by one. In the order of `writes`.
    pub(in crate::store) fn publish(
        &self,
        beneath: &mut Beneath,
        writes: &[Write<'_>],
    ) -> Result<Vec<Landing>, MaterialiseError> {
        let mut moved = Vec::new();
        for (number, whole) in self.wholes.iter().enumerate() {
            let (folder, name) = split(whole);
            let parent = beneath.folder_to_write(folder, Missing::Create).map_err(write_error)?;
            let slot = format!("d{number}");
            moved.push(rename_new(self.folder.as_fd(), slot.as_bytes(), parent, name).is_ok());
        }
        let mut landings = Vec::with_capacity(writes.len());
        for (at, write) in writes.iter().enumerate() {
            let (slot, whole) = &self.slots[at];
            landings.push(match (whole, self.stats[at]) {
                (Some(number), Some(stat)) if moved[*number] => Landing::There(stat),
                (_, Some(stat)) => self.land(beneath, write, slot, &stat)?,
                (_, None) => Landing::Lost("it was not staged".into()),
            });
        }
        Ok(landings)
    }

    fn land(
        &self,
        beneath: &mut Beneath,
        write: &Write<'_>,
        slot: &[u8],
        staged: &FileStat,
    ) -> Result<Landing, MaterialiseError> {
        let bytes = write.path.as_str().as_bytes();
        let (folder, name) = split(bytes);
        let parent = beneath.folder_to_write(folder, Missing::Create).map_err(write_error)?;
        let now = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileStat::from(&stat));
        let renamed = match (now, &write.replaces) {
            (Ok(now), Some(decided)) if now == *decided => {
                rustix::fs::renameat(&self.folder, slot, parent, name).map_err(io::Error::from)
            }
            (Err(Errno::NOENT), _) => rename_new(self.folder.as_fd(), slot, parent, name),
            _ => return Ok(Landing::Lost("somebody changed it at this very moment".into())),
        };
        match renamed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(Landing::Lost("somebody created it at this very moment".into()));
            }
            Err(source) => return Err(MaterialiseError::Write { path: write.path.as_str().to_owned(), source }),
        }
        // Renaming changes the ctime. If another file took the place since, its stat must not be noted as ours.
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileStat::from(&stat)) {
            Ok(stat) if stat.inode() == staged.inode() => Ok(Landing::There(stat)),
            _ => Ok(Landing::There(*staged)),
        }
    }
}

/// Runs of writes for one thread at a time: neighbours in one folder, because two threads that make files in the same folder wait for each
/// other; and not too many, so that all threads end at about the same time.
fn chunks(writes: &[Write<'_>], most: usize) -> Vec<Range<usize>> {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut folder = None;
    for (at, write) in writes.iter().enumerate() {
        let own = split(write.path.as_str().as_bytes()).0;
        match chunks.last_mut() {
            Some(chunk) if folder == Some(own) && chunk.len() < most => chunk.end = at + 1,
            _ => chunks.push(at..at + 1),
        }
        folder = Some(own);
    }
    chunks
}

/// Renames to a name that must not exist yet. Where the file system cannot promise that, a plain rename has to do: the
/// name was looked up just before.
fn rename_new(from: BorrowedFd<'_>, old: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> io::Result<()> {
    match rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            if rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            rustix::fs::renameat(from, old, to, new).map_err(Into::into)
        }
        other => other.map_err(Into::into),
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run's sweep.
        drop(std::fs::remove_dir_all(&self.path));
    }
}
