//! Reaching into the work tree without ever following a symbolic link.
//!
//! Every folder is opened from the handle of the one above it, with no-follow, so a folder that is swapped for a
//! link between two steps stops the way instead of leading out. This is what `openat2` with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS` gives, on every kernel, and the handles of a common prefix are kept, so that paths in
//! sorted order cost one open per folder.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::stat::FileStat;

/// A folder and the handles below it that were used last.
pub(in crate::store) struct Beneath {
    top: OwnedFd,
    device: u64,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

/// Why a folder could not be reached.
#[derive(Debug)]
pub(in crate::store) enum Stop {
    /// This is the first folder on the way that does not exist.
    Absent(Vec<u8>),
    /// This is on the way, and is no folder.
    NotAFolder(Vec<u8>),
    /// This is on the way, and another file system is mounted there.
    OtherFileSystem(Vec<u8>),
    /// It could not be opened or made.
    Io(Vec<u8>, io::Error),
}

/// What [`Beneath::folder`] does about a folder that is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Missing {
    Stop,
    Create,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Beneath {
    /// Opens `top`, which may itself be reached through a link.
    pub(in crate::store) fn new(top: &Path) -> io::Result<Self> {
        let top = rustix::fs::openat(CWD, top, FOLDER, Mode::empty())?;
        let device = FileStat::from(&rustix::fs::fstat(&top)?).inode().0;
        Ok(Self { top, device, open: Vec::new() })
    }

    /// The handle of `folder`, `/`-separated and relative to the top; empty is the top itself.
    pub(in crate::store) fn folder(&mut self, folder: &[u8], missing: Missing) -> Result<BorrowedFd<'_>, Stop> {
        let wanted: Vec<&[u8]> = folder.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
        let shared = self.open.iter().zip(&wanted).take_while(|((name, _), want)| name == *want).count();
        self.open.truncate(shared);
        for depth in shared..wanted.len() {
            let name = wanted[depth];
            let so_far = || wanted[..=depth].join(&b'/');
            let parent = self.open.last().map_or(self.top.as_fd(), |(_, fd)| fd.as_fd());
            let open = || rustix::fs::openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
            let opened = match open() {
                Err(Errno::NOENT) if missing == Missing::Create => {
                    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => open(),
                        Err(error) => Err(error),
                    }
                }
                other => other,
            };
            let fd = match opened {
                Ok(fd) => fd,
                Err(Errno::NOENT) => return Err(Stop::Absent(so_far())),
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(Stop::NotAFolder(so_far())),
                Err(error) => return Err(Stop::Io(so_far(), error.into())),
            };
            self.open.push((name.to_owned(), fd));
        }
        Ok(self.open.last().map_or(self.top.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// As [`folder`](Self::folder), for writing: a mounted file system stops the way, since nothing can be renamed into it.
    pub(in crate::store) fn folder_to_write(&mut self, folder: &[u8], missing: Missing) -> Result<BorrowedFd<'_>, Stop> {
        let device = self.device;
        let fd = self.folder(folder, missing)?;
        match rustix::fs::fstat(fd) {
            Ok(stat) if FileStat::from(&stat).inode().0 == device => Ok(fd),
            Ok(_) => Err(Stop::OtherFileSystem(folder.to_owned())),
            Err(error) => Err(Stop::Io(folder.to_owned(), error.into())),
        }
    }

    /// What lies at `path`, not following a link there; `None` if nothing does.
    pub(in crate::store) fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>, Stop> {
        let (folder, name) = split(path);
        let fd = self.folder(folder, Missing::Stop)?;
        match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Stop::Io(path.to_owned(), error.into())),
        }
    }

    /// Opens the file at `path` for reading. It does not wait for a FIFO's writer.
    pub(in crate::store) fn read(&mut self, path: &[u8]) -> Result<std::fs::File, Stop> {
        let (folder, name) = split(path);
        let fd = self.folder(folder, Missing::Stop)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(fd, name, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT) => Err(Stop::Absent(path.to_owned())),
            Err(Errno::LOOP) => Err(Stop::NotAFolder(path.to_owned())),
            Err(error) => Err(Stop::Io(path.to_owned(), error.into())),
        }
    }
}

/// Splits a path into its folder, empty for the top, and its last component.
pub(in crate::store) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|b| *b == b'/').map_or((&[], path), |at| (&path[..at], &path[at + 1..]))
}

/// The kind of thing a stat describes.
pub(in crate::store) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a person calls that kind.
pub(in crate::store) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "no regular file",
    }
}
