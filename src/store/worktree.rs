//! The wanted files of the work tree, as `git add` would store them.
//!
//! A tracked file whose stat is the index's is not read; git's own rules decide, made stricter where the index has
//! nanoseconds. Everything else is looked up in git cbia's stat cache, and only then read and converted.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use gix::bstr::{BStr, ByteSlice as _};
use gix::index::entry::{Flags, Mode, Stage};
use rustix::fs::FileType;

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::path::{MAX_PATH_BYTES, RepoPath};

use super::Oid;
use super::beneath::{Beneath, Missing, Stop, kind, kind_name};
use super::clean::Cleaner;
use super::snapshot::{
    Asked, Content, Found, Scan, ScanError, ScanLimits, SourceFile, Wanted, is_at_or_below, join, scan_tree, stored_file,
};
use super::stat::{Entry, FileStat, StatCache};

/// For each file that is wanted, visited entries are bounded by this many times the limit on files.
const VISITS_PER_FILE: u64 = 20;

/// What the index says about a wanted path.
#[derive(Clone, Copy)]
enum Candidate {
    Untracked,
    Tracked(usize),
}

pub(in crate::store) fn scan(
    repo: &gix::Repository,
    wanted: &Wanted<'_>,
    limits: ScanLimits,
    stats: &mut StatCache,
) -> Result<Scan, ScanError> {
    let top = repo.workdir().ok_or_else(|| ScanError::Bare(repo.git_dir().to_owned()))?;
    let index = repo.index_or_empty().map_err(ScanError::Index)?;
    let mut scanner = Scanner {
        repo,
        index: &index,
        beneath: Beneath::new(top).map_err(|source| ScanError::Read { path: top.display().to_string(), source })?,
        cleaner: Cleaner::new(repo, &index)?,
        stat_options: gix::index::entry::stat::Options { use_nsec: true, ..repo.stat_options().map_err(ScanError::Index)? },
        found: Found::new(wanted, limits),
        stats,
        candidates: BTreeMap::new(),
        visits: 0,
    };
    scanner.tracked()?;
    scanner.untracked()?;
    scanner.read_all()?;
    Ok(scanner.found.finish())
}

/// The bytes of a file that was only looked up in the stat cache.
pub(in crate::store) fn read_again(repo: &gix::Repository, path: &RepoPath, file: &SourceFile) -> Result<Vec<u8>, ScanError> {
    let top = repo.workdir().ok_or_else(|| ScanError::Bare(repo.git_dir().to_owned()))?;
    let wrap = |source| ScanError::Read { path: path.as_str().to_owned(), source };
    let mut beneath = Beneath::new(top).map_err(wrap)?;
    let most = ScanLimits::default().file_bytes;
    let Ok((raw, _)) = read_file(&mut beneath, path, most)? else { return Err(ScanError::Changed(path.clone())) };
    if Digest::of(&raw) == file.sha256 {
        return Ok(raw);
    }
    let index = repo.index_or_empty().map_err(ScanError::Index)?;
    Cleaner::new(repo, &index)?.clean(path, raw, most)
}

struct Scanner<'r, 'w> {
    repo: &'r gix::Repository,
    index: &'r gix::index::State,
    beneath: Beneath,
    cleaner: Cleaner<'r>,
    stat_options: gix::index::entry::stat::Options,
    found: Found<'w>,
    stats: &'w mut StatCache,
    candidates: BTreeMap<RepoPath, Candidate>,
    visits: u64,
}

impl Scanner<'_, '_> {
    /// Notes the wanted paths of the index.
    fn tracked(&mut self) -> Result<(), ScanError> {
        let mut numbers = Vec::new();
        let exact = self.found.wanted.exact.iter().map(|path| path.as_str().as_bytes().to_owned());
        for root in self.found.roots().into_iter().chain(exact) {
            numbers.extend(
                self.index
                    .prefixed_entries_range(root.as_bstr())
                    .unwrap_or_default()
                    .filter(|at| is_at_or_below(self.index.entry(*at).path(self.index), &root)),
            );
        }
        if self.index.is_sparse() {
            // A folder that a sparse index keeps as one entry may lie above what is wanted.
            let folders = self.index.entries().iter().enumerate().filter(|(_, entry)| entry.mode == Mode::DIR);
            numbers.extend(folders.map(|(at, _)| at));
        }
        numbers.sort_unstable();
        numbers.dedup();
        for at in numbers {
            let entry = self.index.entry(at);
            let path = entry.path(self.index);
            if entry.mode == Mode::DIR {
                let folder = path.strip_suffix(b"/").unwrap_or(path);
                if self.found.may_hold(folder) {
                    scan_tree(self.repo, entry.id, folder, &mut self.found, self.stats)?;
                }
                continue;
            }
            let Asked::Yes(path) = self.found.asks_for(path) else { continue };
            if entry.stage() == Stage::Unconflicted {
                self.candidates.insert(path, Candidate::Tracked(at));
            } else if self.candidates.insert(path.clone(), Candidate::Tracked(at)).is_none() {
                self.found.report(
                    Finding::error(Code::InputConflicted, format!("'{path}' has an unresolved merge conflict"))
                        .at(path.as_str())
                        .hint("resolve it, then run 'git add'"),
                );
            }
        }
        Ok(())
    }

    /// Notes the wanted paths that the index does not have and git does not ignore.
    fn untracked(&mut self) -> Result<(), ScanError> {
        use gix::worktree::stack::state::ignore::Source;
        let source = Source::WorktreeThenIdMappingIfNotSkipped;
        let mut ignored = self.repo.excludes(self.index, None, source).map_err(ScanError::Rules)?;
        for path in self.found.wanted.exact {
            let bytes = path.as_str().as_bytes();
            let there = matches!(self.beneath.stat(bytes), Ok(Some(stat)) if kind(&stat) != FileType::Directory);
            if self.candidates.contains_key(path) || !there {
                continue;
            }
            if is_ignored(&mut ignored, bytes, Mode::FILE)? {
                self.found.report(
                    Finding::warning(
                        Code::DocumentMissing,
                        format!("'{path}' is there, but git ignores it, so it is not part of what is checked"),
                    )
                    .at(path.as_str())
                    .hint(format!("run 'git add --force {path}', or change the ignore rules")),
                );
            } else {
                self.candidates.insert(path.clone(), Candidate::Untracked);
            }
        }
        for root in self.found.roots() {
            self.walk(root, &mut ignored)?;
        }
        Ok(())
    }

    fn walk(&mut self, root: Vec<u8>, ignored: &mut gix::AttributeStack<'_>) -> Result<(), ScanError> {
        match if root.is_empty() { Ok(None) } else { self.beneath.stat(&root) } {
            Ok(Some(stat)) if kind(&stat) == FileType::Directory => {
                if is_ignored(ignored, &root, Mode::DIR)? {
                    return Ok(());
                }
            }
            Ok(None) if root.is_empty() => {}
            Ok(None) | Err(Stop::Absent(_)) => return Ok(()),
            Ok(Some(stat)) => {
                // A link where a pattern expects a folder would hide everything below it.
                let hides = kind(&stat) == FileType::Symlink && !self.found.wanted.globs.matches_bytes(&root);
                if hides && !is_ignored(ignored, &root, Mode::SYMLINK)? {
                    self.found.not_regular(&root, "a symbolic link");
                }
                return self.leaf(root, ignored);
            }
            Err(Stop::NotAFolder(at)) => {
                if matches!(self.beneath.stat(&at), Ok(Some(stat)) if kind(&stat) == FileType::Symlink) {
                    self.found.not_regular(&at, "a symbolic link");
                }
                return Ok(());
            }
            Err(stop) => return Err(read_error(stop)),
        }
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            let mut names = Vec::new();
            let wrap = |source: rustix::io::Errno| ScanError::Read {
                path: String::from_utf8_lossy(&folder).into_owned(),
                source: source.into(),
            };
            let listing = match self.beneath.folder(&folder, Missing::Stop) {
                Ok(fd) => rustix::fs::Dir::read_from(fd).map_err(wrap)?,
                // It was there a moment ago; whatever replaced it is not a folder of inputs.
                Err(Stop::Absent(_) | Stop::NotAFolder(_)) => continue,
                Err(stop) => return Err(read_error(stop)),
            };
            for entry in listing {
                let entry = entry.map_err(wrap)?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push((name.to_owned(), entry.file_type()));
                }
            }
            self.visits += names.len() as u64;
            if self.visits > self.found.limits.files.saturating_mul(VISITS_PER_FILE) {
                self.found.overflow();
                return Ok(());
            }
            if !folder.is_empty() && names.iter().any(|(name, _)| name == b".git") {
                // git sees a nested repository as one entry; a tracked one is reported from the index.
                if matches!(self.found.asks_for(&folder), Asked::Yes(path) if !self.candidates.contains_key(&path)) {
                    self.found.not_regular(&folder, "a nested repository");
                }
                continue;
            }
            for (name, mut what) in names {
                if name == b".git" {
                    continue;
                }
                let path = join(&folder, &name);
                if what == FileType::Unknown {
                    what = match self.beneath.stat(&path) {
                        Ok(Some(stat)) => kind(&stat),
                        _ => continue,
                    };
                }
                if what != FileType::Directory {
                    self.leaf(path, ignored)?;
                } else if path.len() <= MAX_PATH_BYTES && !is_ignored(ignored, &path, Mode::DIR)? {
                    folders.push(path);
                }
            }
        }
        Ok(())
    }

    fn leaf(&mut self, path: Vec<u8>, ignored: &mut gix::AttributeStack<'_>) -> Result<(), ScanError> {
        // The cheap question first; an ignored file with an impossible name is nobody's business.
        if !self.found.wanted.globs.matches_bytes(&path)
            || self.index.entry_by_path(path.as_bstr()).is_some()
            || is_ignored(ignored, &path, Mode::FILE)?
        {
            return Ok(());
        }
        if let Asked::Yes(path) = self.found.asks_for(&path) {
            self.candidates.entry(path).or_insert(Candidate::Untracked);
        }
        Ok(())
    }

    fn read_all(&mut self) -> Result<(), ScanError> {
        for (path, candidate) in std::mem::take(&mut self.candidates) {
            if self.found.is_full() {
                break;
            }
            let entry = match candidate {
                Candidate::Tracked(at) => Some(self.index.entry(at)),
                Candidate::Untracked => None,
            };
            if entry.is_some_and(|entry| entry.stage() != Stage::Unconflicted) {
                continue;
            }
            if let Some(file) = self.file(&path, entry)? {
                self.found.add(path, file);
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &RepoPath, entry: Option<&gix::index::Entry>) -> Result<Option<SourceFile>, ScanError> {
        let bytes = path.as_str().as_bytes();
        let stat = match self.beneath.stat(bytes) {
            Ok(stat) => stat,
            Err(Stop::Absent(_)) => None,
            Err(Stop::NotAFolder(at)) => {
                if matches!(self.beneath.stat(&at), Ok(Some(stat)) if kind(&stat) == FileType::Symlink) {
                    self.found.not_regular(bytes, "behind a symbolic link");
                    return Ok(None);
                }
                None
            }
            Err(stop) => return Err(read_error(stop)),
        };
        if let Some(entry) = entry
            && entry.flags.contains(Flags::SKIP_WORKTREE)
            && (stat.is_none() || !self.is_sparse_checkout())
        {
            return match entry.mode {
                Mode::FILE | Mode::FILE_EXECUTABLE => {
                    self.stored(path, entry.id).map_err(|source| ScanError::Object { path: path.as_str().to_owned(), source })
                }
                _ => {
                    self.found.not_regular(bytes, "no regular file in git's index");
                    Ok(None)
                }
            };
        }
        let Some(stat) = stat else { return Ok(None) };
        let as_link = entry.is_some_and(|entry| entry.mode == Mode::SYMLINK) && !self.has_symlinks();
        let is_submodule = entry.is_some_and(|entry| entry.mode == Mode::COMMIT);
        if kind(&stat) != FileType::RegularFile || as_link {
            let what = match kind(&stat) {
                FileType::Directory if is_submodule => "a submodule",
                // The tracked file is gone; what is in the folder are other paths.
                FileType::Directory => return Ok(None),
                FileType::RegularFile => "a symbolic link",
                other => kind_name(other),
            };
            self.found.not_regular(bytes, what);
            return Ok(None);
        }
        if let Some(entry) = entry
            && self.is_clean(entry, &stat)
        {
            match self.stored(path, entry.id) {
                Ok(file) => return Ok(file),
                // The file itself says what the blob would, so a blob that is lost is no obstacle.
                Err(error) if error.is_loss() => {}
                Err(source) => return Err(ScanError::Object { path: path.as_str().to_owned(), source }),
            }
        }
        self.disk_file(path, &FileStat::from(&stat))
    }

    fn disk_file(&mut self, path: &RepoPath, stat: &FileStat) -> Result<Option<SourceFile>, ScanError> {
        let filters = self.cleaner.fingerprint(path)?;
        if let Some(Entry { id, sha256, bytes, .. }) = self.stats.input(path, stat, filters) {
            return Ok(Some(SourceFile { id, sha256, bytes, content: Content::File(path.clone()) }));
        }
        let most = self.found.limits.file_bytes;
        let (raw, settled) = match read_file(&mut self.beneath, path, most)? {
            Ok(read) => read,
            Err(Refusal::Gone) => return Ok(None),
            Err(Refusal::NotRegular(what)) => {
                self.found.not_regular(path.as_str().as_bytes(), what);
                return Ok(None);
            }
            Err(Refusal::TooLarge(bytes)) => {
                self.found.too_large(path, bytes);
                return Ok(None);
            }
        };
        let content = self.cleaner.clean(path, raw, most)?;
        let id = gix::objs::compute_hash(self.repo.object_hash(), gix::objs::Kind::Blob, &content)
            .map_err(|source| ScanError::Hash { path: path.clone(), source })?;
        let (sha256, bytes) = (Digest::of(&content), content.len() as u64);
        if let Some(stat) = settled {
            self.stats.put_input(path, Entry { stat, id, sha256, bytes, filters });
        }
        Ok(Some(SourceFile { id, sha256, bytes, content: Content::Memory(Arc::from(content)) }))
    }

    fn stored(&mut self, path: &RepoPath, id: Oid) -> Result<Option<SourceFile>, super::object::ObjectError> {
        stored_file(self.repo, path, id, &mut self.found, self.stats)
    }

    /// Whether the index vouches for the file: the same stat, and not written so late that it may have changed since.
    fn is_clean(&self, entry: &gix::index::Entry, stat: &rustix::fs::Stat) -> bool {
        if entry.flags.contains(Flags::INTENT_TO_ADD) || !matches!(entry.mode, Mode::FILE | Mode::FILE_EXECUTABLE) {
            return false;
        }
        is_clean(self.index, entry, stat, self.stat_options)
    }

    fn is_sparse_checkout(&self) -> bool {
        let config = self.repo.config_snapshot();
        config.boolean("core.sparseCheckout") == Some(true) && config.boolean("sparse.expectFilesOutsideOfPatterns") != Some(true)
    }

    fn has_symlinks(&self) -> bool {
        self.repo.config_snapshot().boolean("core.symlinks") != Some(false)
    }
}

/// git's comparison of an index entry with a file's stat, racy entries excepted.
pub(in crate::store) fn is_clean(
    index: &gix::index::State,
    entry: &gix::index::Entry,
    stat: &rustix::fs::Stat,
    options: gix::index::entry::stat::Options,
) -> bool {
    let time = |seconds: i64, nanos: Option<u32>| gix::index::entry::stat::Time {
        secs: seconds as u32,
        nsecs: nanos.unwrap_or_default(),
    };
    // git keeps the low 32 bits only.
    let now = gix::index::entry::Stat {
        mtime: time(stat.st_mtime, stat.st_mtime_nsec.try_into().ok()),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec.try_into().ok()),
        dev: stat.st_dev as u32,
        ino: stat.st_ino as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u32,
    };
    // An index written by a git that keeps whole seconds has no nanoseconds to compare.
    let whole_seconds = entry.stat.mtime.nsecs == 0 && entry.stat.ctime.nsecs == 0;
    let options = gix::index::entry::stat::Options { use_nsec: options.use_nsec && !whole_seconds, ..options };
    entry.stat.matches(&now, options) && !entry.stat.is_racy(index.timestamp(), options)
}

/// Why a file's bytes are not there to be had.
pub(in crate::store) enum Refusal {
    Gone,
    NotRegular(&'static str),
    TooLarge(u64),
}

/// A file's bytes, and its stat if it did not change while it was read.
pub(in crate::store) type Read = (Vec<u8>, Option<FileStat>);

/// Reads a regular file without following links, at most `most` bytes.
pub(in crate::store) fn read_file(beneath: &mut Beneath, path: &RepoPath, most: u64) -> Result<Result<Read, Refusal>, ScanError> {
    let wrap = |source| ScanError::Read { path: path.as_str().to_owned(), source };
    let file = match beneath.read(path.as_str().as_bytes()) {
        Ok(file) => file,
        Err(Stop::Absent(_)) => return Ok(Err(Refusal::Gone)),
        Err(Stop::NotAFolder(_)) => return Ok(Err(Refusal::NotRegular("a symbolic link, or behind one"))),
        Err(stop) => return Err(read_error(stop)),
    };
    let before = rustix::fs::fstat(&file).map_err(|error| wrap(error.into()))?;
    if kind(&before) != FileType::RegularFile {
        return Ok(Err(Refusal::NotRegular(kind_name(kind(&before)))));
    }
    let size = u64::try_from(before.st_size).unwrap_or(u64::MAX);
    if size > most {
        return Ok(Err(Refusal::TooLarge(size)));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    (&file).take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() as u64 > most {
        return Ok(Err(Refusal::TooLarge(bytes.len() as u64)));
    }
    let [before, after] = [before, rustix::fs::fstat(&file).map_err(|error| wrap(error.into()))?].map(|s| FileStat::from(&s));
    let settled = before == after && size == bytes.len() as u64;
    Ok(Ok((bytes, settled.then_some(after))))
}

fn is_ignored(ignored: &mut gix::AttributeStack<'_>, path: &[u8], mode: Mode) -> Result<bool, ScanError> {
    let path: &BStr = path.as_bstr();
    Ok(ignored.at_entry(path, Some(mode)).map_err(ScanError::Rules)?.is_excluded())
}

fn read_error(stop: Stop) -> ScanError {
    let (path, source) = match stop {
        Stop::Io(path, source) => (path, source),
        Stop::Absent(path) => (path, std::io::ErrorKind::NotFound.into()),
        Stop::NotAFolder(path) => (path, std::io::ErrorKind::NotADirectory.into()),
        Stop::OtherFileSystem(path) => (path, std::io::ErrorKind::CrossesDevices.into()),
    };
    ScanError::Read { path: String::from_utf8_lossy(&path).into_owned(), source }
}
