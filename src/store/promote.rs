//! Files of a run onto the current branch: as a commit, into the index and the work tree, or as a patch.
//!
//! The order of a commit, each step leaving either the old state or something that the next promotion takes up:
//!
//! 1. git's own `index.lock` is taken, so that neither `git add` nor `git commit` comes in between;
//! 2. everything is decided: one destination in the way, and nothing is written;
//! 3. the commit and its trees are stored; nothing points at them yet;
//! 4. git locks `HEAD` and its branch, and verifies that they have not moved;
//! 5. the files are written into the work tree, where only files that hold what `HEAD` has were in their place;
//! 6. the new index is renamed over the old one: what a kill leaves here are the promoted files, staged;
//! 7. git moves the branch.
//!
//! Entries of the index that are not promoted stay byte for byte what they are, staged, conflicted, sparse or intended to be added.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gix::bstr::{BStr, ByteSlice as _};
use gix::index::entry::{Flags, Mode, Stage};
use rustix::fs::FileType;

use super::beneath::{Beneath, Stop, kind, kind_name};
use super::clean::Cleaner;
use super::git::{GitError, PreparedHead};
use super::lock::{Guard, LockError};
use super::materialise::{Materialise, MaterialiseError, Strays, WriteItem};
use super::object::ObjectError;
use super::open::RevisionError;
use super::snapshot::ScanError;
use super::stat::StatCache;
use super::worktree::{Refusal, read_file};
use super::{Oid, Store};
use crate::document::finding::{Code, Finding, refuses};
use crate::document::path::RepoPath;

/// How long another promotion is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// How long another git that works on the index is waited for.
const INDEX_WAIT: Duration = Duration::from_secs(2);
/// What stands at a destination is compared up to this size.
const MAX_COMPARED: u64 = 1 << 30;
/// The prefix of the folder that indexes are prepared in.
const PREFIX: &str = "promote-";

/// How a promotion is made.
#[derive(Clone, Copy, Debug)]
pub enum How<'a> {
    /// As a commit with this message.
    Commit(&'a str),
    /// Into the index and the work tree.
    Stage,
}

/// What became of a promotion.
#[derive(Debug)]
pub enum Promoted {
    /// Nothing was written, and why.
    Refused(Vec<Finding>),
    /// Everything was in place already.
    InPlace,
    /// The commit that was made.
    Committed(Oid),
    /// It is in the index and the work tree.
    Staged,
}

/// Why a promotion could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// There is no work tree.
    #[error("'{}' is a bare repository: it has no branch checked out to promote to", .0.display())]
    Bare(PathBuf),
    /// Another promotion is at it.
    #[error("another promotion is being made in this repository")]
    Lock(#[from] LockError),
    /// Another git is working on the index.
    #[error("the index is locked: '{}' is there", .0.display())]
    IndexLocked(PathBuf),
    /// The branch is not what it was when the promotion began.
    #[error("the branch was moved, or is locked, by another process: {0}")]
    Moved(String),
    /// A file of the git directory cannot be used.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// An index cannot be read.
    #[error("the index cannot be read")]
    Index(#[source] gix::Error),
    /// git refused.
    #[error(transparent)]
    Git(#[from] GitError),
    /// `HEAD` cannot be read.
    #[error(transparent)]
    Head(#[from] RevisionError),
    /// The commit of `HEAD` cannot be read.
    #[error("the commit of HEAD cannot be read")]
    Object(#[from] ObjectError),
    /// The work tree cannot be compared.
    #[error(transparent)]
    Compare(#[from] ScanError),
    /// The work tree cannot be written.
    #[error(transparent)]
    Write(#[from] MaterialiseError),
}

/// git's lock on the index, held; given back when dropped.
struct IndexLock {
    _marker: gix::lock::Marker,
    _guard: Guard,
}

impl Store {
    /// Whether an operation that has the branch in its hands is in progress: what it is.
    pub fn operation_in_progress(&self) -> Option<&'static str> {
        const OPERATIONS: [(&str, &str); 6] = [
            ("MERGE_HEAD", "a merge"),
            ("rebase-merge", "a rebase"),
            ("rebase-apply", "a rebase or git am"),
            ("CHERRY_PICK_HEAD", "a cherry-pick"),
            ("REVERT_HEAD", "a revert"),
            ("sequencer", "a cherry-pick or revert"),
        ];
        OPERATIONS.into_iter().find(|(name, _)| self.git_dir().join(name).exists()).map(|(_, what)| what)
    }

    /// Promotes `files`, whose blobs are stored, or writes nothing and says why.
    pub fn promote(&self, files: &BTreeMap<RepoPath, WriteItem>, how: How<'_>) -> Result<Promoted, PromoteError> {
        let top = self.top()?;
        let _lock = self.lock_index()?;
        let room = self.room()?;
        let head = self.head()?;
        let index_path = self.repo.index_path();
        let index = self.repo.index_or_empty().map_err(PromoteError::Index)?;
        let base = self.base(head.as_ref())?;

        let mut decision = Decision::new(self, &top, &index, base.as_ref())?;
        for (path, item) in files {
            decision.file(path, item)?;
        }
        let Decision { findings, unwritten, staged, committed, .. } = decision;
        if refuses(&findings) {
            return Ok(Promoted::Refused(findings));
        }
        let is_done = match how {
            How::Commit(_) => committed == files.len(),
            How::Stage => true,
        };
        if is_done && unwritten.is_empty() && staged == files.len() {
            return Ok(Promoted::InPlace);
        }

        // The message and the identity may be refused: nothing is written before the commit is there.
        let mut prepared: Option<(Oid, PreparedHead)> = None;
        if let How::Commit(message) = how {
            let own = room.path().join("tree");
            self.stage_onto_head(&own, head.as_ref(), files)?;
            let tree = self.on_index::<&str>("write-tree", &own, None, &[], b"")?;
            let tree = Oid::from_hex(tree.trim())
                .map_err(|_| GitError::Answer { what: "write-tree", answer: tree.to_str_lossy().into_owned() })?;
            let sign = self.config_bool("commit.gpgSign") == Some(true);
            let commit = self.commit_as_operator(&tree, head.as_ref(), message, sign)?;
            let subject = message.lines().next().unwrap_or_default();
            match self.prepare_head(&commit, head.as_ref(), &format!("cbia: {subject}"))? {
                Ok(head) => prepared = Some((commit, head)),
                Err(why) => return Err(PromoteError::Moved(why)),
            }
        }
        let plan = Materialise { files: unwritten, strays: Strays::Keep, force: false };
        let done = self.materialise(&plan)?;
        self.hand_over(&done.written)?;
        if refuses(&done.findings) {
            return Ok(Promoted::Refused(done.findings));
        }
        if staged < files.len() {
            let own = room.path().join("index");
            self.stage_onto_index(&own, &index_path, &top, files)?;
            let renamed = std::fs::rename(&own, &index_path);
            renamed.map_err(|source| PromoteError::Io { action: "replace", path: index_path, source })?;
        }
        match prepared {
            Some((commit, head)) => {
                head.commit()?;
                Ok(Promoted::Committed(commit))
            }
            None => Ok(Promoted::Staged),
        }
    }

    /// Forgets that these files were written for a run: they are the branch's from now on, and no run that does not make them removes them.
    fn hand_over(&self, written: &[RepoPath]) -> Result<(), PromoteError> {
        let git_dir = self.git_dir();
        let failed = |source| PromoteError::Io { action: "use", path: git_dir.join("cbia/stat"), source };
        let lock = StatCache::lock(git_dir).map_err(failed)?;
        let mut stats = StatCache::load(git_dir, self.object_hash());
        for path in written {
            stats.put_output(path, None);
        }
        stats.save(&lock).map_err(failed)
    }

    /// The difference that `files` make to `HEAD`, as `git apply` takes it; empty where they make none. Nothing is written.
    pub fn promotion_patch(&self, files: &BTreeMap<RepoPath, WriteItem>) -> Result<Result<Vec<u8>, Vec<Finding>>, PromoteError> {
        const FORMAT: [&str; 9] = [
            "--cached",
            "-p",
            "--binary",
            "--full-index",
            "--no-renames",
            "--no-ext-diff",
            "--no-textconv",
            "--src-prefix=a/",
            "--dst-prefix=b/",
        ];
        let _guard = self.lock("promote", Some(LOCK_WAIT))?;
        let room = self.room()?;
        let head = self.head()?;
        if let Some(base) = self.base(head.as_ref())? {
            let blocked = |path: &RepoPath| blocked_in(&base, path).map(|why| blocked(path, &format!("in HEAD {why}")));
            let findings: Vec<Finding> = files.keys().filter_map(blocked).collect();
            if !findings.is_empty() {
                return Ok(Err(findings));
            }
        }
        let own = room.path().join("tree");
        self.stage_onto_head(&own, head.as_ref(), files)?;
        let before = head.unwrap_or_else(|| Oid::empty_tree(self.object_hash())).to_string();
        let arguments: Vec<&str> = FORMAT.into_iter().chain(["--no-color", &before]).collect();
        Ok(Ok(self.on_index("diff-index", &own, None, &arguments, b"")?))
    }

    /// The top of the work tree, absolute and without links.
    fn top(&self) -> Result<PathBuf, PromoteError> {
        let top = self.work_dir().ok_or_else(|| PromoteError::Bare(self.git_dir().to_owned()))?;
        std::fs::canonicalize(top).map_err(|source| PromoteError::Io { action: "find", path: top.to_owned(), source })
    }

    /// A fresh folder for indexes that are being prepared, on the file system of the index. What a killed promotion left is removed: the
    /// lock says that none is at work.
    fn room(&self) -> Result<tempfile::TempDir, PromoteError> {
        let folder = self.git_dir().join("cbia");
        let failed = |source| PromoteError::Io { action: "use", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let folder = std::fs::canonicalize(&folder).map_err(failed)?;
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) && entry.path().is_dir() {
                std::fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        tempfile::Builder::new().prefix(PREFIX).tempdir_in(&folder).map_err(failed)
    }

    /// What `HEAD` has, as an index; `None` before the first commit.
    fn base(&self, head: Option<&Oid>) -> Result<Option<gix::index::File>, PromoteError> {
        let Some(head) = head else { return Ok(None) };
        let tree = self.tree_of(head)?;
        Ok(Some(self.repo.index_from_tree(&tree).map_err(PromoteError::Index)?))
    }

    /// Writes an index to `own` that holds what `HEAD` has, and `files`.
    fn stage_onto_head(&self, own: &Path, head: Option<&Oid>, files: &BTreeMap<RepoPath, WriteItem>) -> Result<(), PromoteError> {
        if let Some(head) = head {
            self.on_index("read-tree", own, None, &[&head.to_string()], b"")?;
        }
        self.on_index("update-index", own, None, &["-z", "--index-info"], &index_info(files))?;
        Ok(())
    }

    /// Writes an index to `own` that is the repository's, with `files` in it.
    fn stage_onto_index(
        &self,
        own: &Path,
        index: &Path,
        top: &Path,
        files: &BTreeMap<RepoPath, WriteItem>,
    ) -> Result<(), PromoteError> {
        match std::fs::copy(index, own) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PromoteError::Io { action: "copy", path: index.to_owned(), source }),
        }
        self.on_index("update-index", own, None, &["-z", "--index-info"], &index_info(files))?;
        // Without the files' stats git would look at each of them again. That other files differ from the index is no failure.
        drop(self.on_index("update-index", own, Some(top), &["-q", "--refresh"], b""));
        Ok(())
    }

    /// Takes git's lock on the index. One that a killed promotion left is put away: it wrote down which one it was about to take.
    fn lock_index(&self) -> Result<IndexLock, PromoteError> {
        let guard = self.lock("promote", Some(LOCK_WAIT))?;
        let index = self.repo.index_path();
        let lock = PathBuf::from([index.as_os_str(), ".lock".as_ref()].into_iter().collect::<std::ffi::OsString>());
        let failed = |action| {
            let path = lock.clone();
            move |source| PromoteError::Io { action, path, source }
        };
        let absolute = std::path::absolute(&lock).map_err(failed("find"))?;
        if let Some((note, written)) = guard.inherited().map_err(failed("read the note on"))? {
            let mut lines = note.lines();
            let left = PathBuf::from(lines.next().unwrap_or_default());
            let known = lines.next();
            if let Ok(found) = std::fs::symlink_metadata(&left)
                && found.is_file()
                && found.len() == 0
            {
                let soon = |made: std::time::SystemTime| made.duration_since(written).map_or(true, |after| after < INDEX_WAIT);
                let ours = match known {
                    Some(known) => known == identity(&found),
                    None => found.modified().is_ok_and(soon),
                };
                if ours {
                    std::fs::remove_file(&left).map_err(failed("remove"))?;
                    let message = "a lock on the index that a killed promotion left was removed";
                    self.healed.borrow_mut().push(Finding::warning(Code::LockStale, message));
                }
            }
        }
        let name = absolute.to_string_lossy().into_owned();
        guard.note(&format!("{name}\n")).map_err(failed("note"))?;
        let marker = gix::lock::Marker::acquire_to_hold_resource(&index, INDEX_WAIT.into(), None, self.shared_mode());
        let marker = match marker {
            Ok(marker) => marker,
            Err(_) if lock.exists() => return Err(PromoteError::IndexLocked(lock)),
            Err(error) => return Err(failed("take")(io::Error::other(error))),
        };
        let found = std::fs::symlink_metadata(&lock).map_err(failed("read"))?;
        guard.note(&format!("{name}\n{}\n", identity(&found))).map_err(failed("note"))?;
        Ok(IndexLock { _marker: marker, _guard: guard })
    }
}

fn identity(found: &std::fs::Metadata) -> String {
    format!("{} {}", found.dev(), found.ino())
}

/// The lines that `git update-index -z --index-info` takes.
fn index_info(files: &BTreeMap<RepoPath, WriteItem>) -> Vec<u8> {
    files.iter().flat_map(|(path, item)| format!("100644 {} 0\t{}\0", item.id, path.as_str()).into_bytes()).collect()
}

fn blocked(path: &RepoPath, why: &str) -> Finding {
    let finding = Finding::error(Code::DestinationBlocked, format!("'{path}' cannot be promoted: {why}")).at(path.as_str());
    finding.hint("move what is in the way, and promote again")
}

/// What of an index stands in the way of a regular file at `path`, if anything does.
fn blocked_in(index: &gix::index::State, path: &RepoPath) -> Option<String> {
    let bytes = path.as_str().as_bytes();
    for (at, _) in path.as_str().match_indices('/') {
        if index.entry_by_path(bytes[..at].as_bstr()).is_some() {
            return Some(format!("'{}' is no folder", &path.as_str()[..at]));
        }
    }
    let below = [bytes, b"/"].concat();
    index.prefixed_entries(BStr::new(&below)).filter(|entries| !entries.is_empty()).map(|_| "it is a folder".to_owned())
}

/// What stands at a destination.
struct Decision<'s> {
    repo: &'s gix::Repository,
    index: &'s gix::index::State,
    base: Option<&'s gix::index::File>,
    beneath: Beneath,
    cleaner: Cleaner<'s>,
    findings: Vec<Finding>,
    /// What is not in the work tree yet.
    unwritten: BTreeMap<RepoPath, WriteItem>,
    /// How many are in the index.
    staged: usize,
    /// How many `HEAD` has.
    committed: usize,
}

impl<'s> Decision<'s> {
    fn new(
        store: &'s Store,
        top: &Path,
        index: &'s gix::index::State,
        base: Option<&'s gix::index::File>,
    ) -> Result<Self, PromoteError> {
        let opened = Beneath::new(top);
        Ok(Self {
            repo: &store.repo,
            index,
            base,
            beneath: opened.map_err(|source| PromoteError::Io { action: "open", path: top.to_owned(), source })?,
            cleaner: Cleaner::new(&store.repo, index)?,
            findings: Vec::new(),
            unwritten: BTreeMap::new(),
            staged: 0,
            committed: 0,
        })
    }

    fn file(&mut self, path: &RepoPath, item: &WriteItem) -> Result<(), PromoteError> {
        let name = path.as_str().as_bytes().as_bstr();
        let places = [("in HEAD", self.base.map(|base| &**base)), ("in the index", Some(self.index))];
        for (place, entries) in places {
            if let Some(why) = entries.and_then(|entries| blocked_in(entries, path)) {
                self.findings.push(blocked(path, &format!("{place} {why}")));
                return Ok(());
            }
        }
        let in_head = self.base.and_then(|base| base.entry_by_path(name)).map(|entry| (entry.mode, entry.id));
        let entry = self.index.entry_by_path(name);
        let folders = || path.as_str().match_indices('/').map(|(at, _)| &path.as_str().as_bytes()[..=at]);
        // A sparse index has a whole folder as one entry.
        let is_sparse = self.index.is_sparse() && folders().any(|folder| self.index.entry_by_path(folder.as_bstr()).is_some());
        let is_skipped = is_sparse || entry.is_some_and(|entry| entry.flags.contains(Flags::SKIP_WORKTREE));
        let there = self.work_tree(path)?;
        let there = match there {
            Ok(there) => there,
            Err(why) => {
                self.findings.push(blocked(path, &why));
                return Ok(());
            }
        };
        let wanted = (Mode::FILE, item.id);
        if is_skipped {
            if in_head == Some(wanted) && there.is_none() {
                self.committed += 1;
                self.staged += 1;
            } else {
                let why = "it lies outside the sparse checkout";
                self.findings.push(blocked(path, why).hint("git sparse-checkout add, or disable, brings it in"));
            }
            return Ok(());
        }
        if self
            .index
            .entry_range(name)
            .is_some_and(|range| range.clone().any(|at| self.index.entries()[at].stage() != Stage::Unconflicted))
        {
            self.findings.push(blocked(path, "it has a merge conflict").hint("resolve the conflict first"));
            return Ok(());
        }
        let in_index = entry.filter(|entry| !entry.flags.contains(Flags::INTENT_TO_ADD)).map(|entry| (entry.mode, entry.id));
        for (mode, _) in in_head.into_iter().chain(in_index) {
            if mode != Mode::FILE {
                let what = match mode {
                    Mode::FILE_EXECUTABLE => "an executable file, which a generated one never is",
                    Mode::SYMLINK => "a symbolic link",
                    _ => "a submodule",
                };
                self.findings.push(blocked(path, &format!("git has {what} at its place")));
                return Ok(());
            }
        }
        if in_index != in_head && in_index != Some(wanted) {
            let what = if in_index.is_some() { "has other changes staged" } else { "is staged for deletion" };
            self.dirty(path, what, "commit it, or git restore --staged it");
            return Ok(());
        }
        let in_work_tree = there.map(|id| (Mode::FILE, id));
        if in_work_tree != in_head && in_work_tree != Some(wanted) {
            let (what, next) = match (in_work_tree, in_head) {
                (None, _) => ("was deleted from the work tree", "commit that, or git restore it"),
                (_, None) => ("is there already, untracked, and is another file", "move it away, or commit it"),
                _ => ("was changed in the work tree", "commit it, or git restore it"),
            };
            self.dirty(path, what, next);
            return Ok(());
        }
        self.committed += usize::from(in_head == Some(wanted));
        self.staged += usize::from(in_index == Some(wanted));
        if in_work_tree != Some(wanted) {
            self.unwritten.insert(path.clone(), item.clone());
        }
        Ok(())
    }

    fn dirty(&mut self, path: &RepoPath, what: &str, hint: &str) {
        let message = format!("'{path}' cannot be promoted: it {what}");
        self.findings.push(Finding::error(Code::DestinationDirty, message).at(path.as_str()).hint(hint));
    }

    /// The blob of what the work tree has at `path`, as git would store it; `None` if nothing is there. An inner error is what is in the way.
    fn work_tree(&mut self, path: &RepoPath) -> Result<Result<Option<Oid>, String>, PromoteError> {
        let bytes = path.as_str().as_bytes();
        let stat = match self.beneath.stat(bytes) {
            Ok(None) | Err(Stop::Absent(_)) => return Ok(Ok(None)),
            Ok(Some(stat)) => stat,
            Err(Stop::NotAFolder(at) | Stop::OtherFileSystem(at)) => {
                return Ok(Err(format!("'{}' on the way is not a folder", String::from_utf8_lossy(&at))));
            }
            Err(Stop::Io(at, source)) => {
                let path = PathBuf::from(String::from_utf8_lossy(&at).into_owned());
                return Err(PromoteError::Io { action: "read", path, source });
            }
        };
        if kind(&stat) != FileType::RegularFile {
            return Ok(Err(format!("{} stands at its place", kind_name(kind(&stat)))));
        }
        let is_executable = stat.st_mode & 0o100 != 0;
        if is_executable && self.repo.config_snapshot().boolean("core.fileMode") != Some(false) {
            return Ok(Err("an executable file stands at its place, which a generated one never is".into()));
        }
        let raw = match read_file(&mut self.beneath, path, MAX_COMPARED)? {
            Ok((raw, Some(_))) => raw,
            Ok((_, None)) => return Ok(Err("somebody is writing to it".into())),
            Err(Refusal::Gone) => return Ok(Ok(None)),
            Err(Refusal::NotRegular(what)) => return Ok(Err(format!("{what} stands at its place"))),
            Err(Refusal::TooLarge(_)) => return Ok(Err("the file at its place is too large to be compared".into())),
        };
        let clean = self.cleaner.clean(path, raw, MAX_COMPARED)?;
        let id = gix::objs::compute_hash(self.repo.object_hash(), gix::objs::Kind::Blob, &clean);
        let id = id.map_err(|source| ScanError::Hash { path: path.clone(), source })?;
        Ok(Ok(Some(id)))
    }
}
