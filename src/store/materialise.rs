//! Writing verified files into the work tree.
//!
//! Everything is decided first: one refusal, and nothing is written. Then everything is staged and verified, and only
//! then renamed into place. Nothing follows a symbolic link, so nothing is written outside the work tree.
//!
//! The bytes are written exactly as they are stored, without smudge filters or line-ending conversion, so that
//! `sha256sum` agrees with the run. Where attributes ask for another form in the work tree, `git checkout` of the
//! same file may write other bytes than this does; git sees both as the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gix::bstr::ByteSlice as _;
use rustix::fs::{AtFlags, FileType};

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::path::{RepoPath, printable};

use super::beneath::{Beneath, Missing, Stop, kind, kind_name, split};
use super::clean::Cleaner;
use super::object::{self, Kind, ObjectError};
use super::snapshot::{ScanError, collisions};
use super::stage::{Landing, Stage};
use super::stat::{Entry, FileStat, StatCache};
use super::worktree::{Refusal, read_file};
use super::{Oid, Store};

/// A file that stands at an output's place is compared up to this size; a larger one is not ours.
const MAX_COMPARED: u64 = 4 << 30;
/// Files larger than this are not compared line by line.
const MAX_DIFFED: usize = 4 << 20;

/// What the work tree should hold.
#[derive(Debug, Default)]
pub struct Materialise {
    /// Every output, at its path.
    pub files: BTreeMap<RepoPath, WriteItem>,
    /// What an earlier run wrote at paths that are not in `files`.
    pub strays: Strays,
    /// Whether files that a person edited are overwritten, and links at an output's place replaced.
    pub force: bool,
}

/// Which outputs of an earlier run are removed because they are not wanted any more.
#[derive(Clone, Copy, Debug, Default)]
pub enum Strays {
    /// None.
    #[default]
    Keep,
    /// Those whose path is chosen.
    Matching(fn(&RepoPath) -> bool),
    /// All.
    All,
}

/// One file to write.
#[derive(Clone, Debug)]
pub struct WriteItem {
    /// The blob's object id.
    pub id: Oid,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Where the bytes come from.
    pub source: Source,
    /// Whose file it is.
    pub class: Class,
}

/// Where the bytes of a [`WriteItem`] come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory.
    Bytes(Arc<[u8]>),
    /// From the object database.
    Blob,
}

/// Whose file an output is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A generated file, which a person may have edited since: never overwritten without `force`.
    Artifact,
    /// A file that belongs to git cbia: always overwritten.
    Evidence,
}

/// What was done.
#[derive(Debug, Default)]
#[must_use = "an error among the findings says that nothing was written"]
pub struct Materialised {
    /// Paths that were written.
    pub written: Vec<RepoPath>,
    /// How many files were in place already.
    pub in_place: u64,
    /// Strays that were removed.
    pub removed: Vec<RepoPath>,
    /// An error says that nothing was written, or names a file that somebody changed at the very moment of writing
    /// and that was left as it is; warnings name strays that were left alone.
    pub findings: Vec<Finding>,
}

/// Why the work tree could not be written. What was not renamed into place yet is not visible.
#[derive(Debug, thiserror::Error)]
pub enum MaterialiseError {
    /// There is no work tree.
    #[error("'{}' is a bare repository: it has no work tree to write to", .0.display())]
    Bare(PathBuf),
    /// The lock on the work tree's outputs cannot be had.
    #[error("the outputs of this work tree cannot be locked")]
    Lock(#[source] io::Error),
    /// The stage cannot be made or removed.
    #[error("the staging folder '{}' cannot be used", .0.display())]
    Stage(PathBuf, #[source] io::Error),
    /// What stands at an output's place cannot be read.
    #[error("the work tree cannot be compared with what is to be written")]
    Compare(#[from] ScanError),
    /// A blob cannot be read.
    #[error("the blob of '{path}' cannot be read")]
    Object {
        /// The output.
        path: RepoPath,
        /// The cause.
        source: ObjectError,
    },
    /// The bytes are not the ones that were asked for.
    #[error("the bytes for '{path}' are not the ones with SHA-256 {wanted}: {got}")]
    Mismatch {
        /// The output.
        path: RepoPath,
        /// The digest that was asked for.
        wanted: Digest,
        /// The digest or object id of the bytes.
        got: String,
    },
    /// A file or folder cannot be written.
    #[error("'{}' cannot be written", printable(path))]
    Write {
        /// The path, relative to the top.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

impl MaterialiseError {
    /// Whether what was to be written is at fault, rather than the place it was to be written to.
    pub fn is_content(&self) -> bool {
        matches!(self, Self::Object { .. } | Self::Mismatch { .. })
    }
}

/// What is to be done about one output.
pub(in crate::store) struct Write<'a> {
    pub path: &'a RepoPath,
    pub item: &'a WriteItem,
    /// The first folder on the way that does not exist.
    pub absent: Option<Vec<u8>>,
    /// What stands at its place and may be replaced.
    pub replaces: Option<FileStat>,
}

impl Store {
    /// Brings the work tree to what `plan` says, or writes nothing and says why.
    pub fn materialise(&self, plan: &Materialise) -> Result<Materialised, MaterialiseError> {
        let git_dir = self.repo.git_dir();
        let top = self.repo.workdir().ok_or_else(|| MaterialiseError::Bare(git_dir.to_owned()))?;
        let lock = StatCache::lock(git_dir).map_err(MaterialiseError::Lock)?;
        let mut stats = StatCache::load(git_dir, self.repo.object_hash());
        Stage::sweep(git_dir, top)?;

        let mut decision = Decision::new(&self.repo, top, &mut stats, plan)?;
        decision.strays()?;
        for (path, item) in &plan.files {
            decision.file(path, item)?;
        }
        let Decision { mut done, writes, strays, .. } = decision;
        done.findings.extend(collisions(plan.files.keys()));
        if !refuses(&done.findings) {
            let mut stage = Stage::new(git_dir, top, &writes)?;
            stage.fill(&self.repo, &writes)?;
            let mut beneath = open_top(top)?;
            for (path, stat) in strays {
                if remove(&mut beneath, &path, &stat)? {
                    done.removed.push(path.clone());
                }
                stats.put_output(&path, None);
            }
            for (write, landing) in writes.iter().zip(stage.publish(&mut beneath, &writes)?) {
                match landing {
                    Landing::There(stat) => {
                        let WriteItem { id, sha256, .. } = *write.item;
                        stats.put_output(write.path, Some(Entry { stat, id, sha256, bytes: 0, filters: 0 }));
                        done.written.push(write.path.clone());
                    }
                    Landing::Lost(why) => done.findings.push(
                        Finding::error(Code::ArtifactBlocked, format!("'{}' was not written: {why}", write.path))
                            .at(write.path.as_str())
                            .hint("run the command again"),
                    ),
                }
            }
        }
        // Without the cache the next run compares bytes instead of stats, and takes outputs that were edited since for
        // a person's: slower and more careful, so a failure to write it is told and not hidden.
        stats.save(&lock).map_err(|source| MaterialiseError::Stage(git_dir.join("cbia/stat"), source))?;
        Ok(done)
    }
}

struct Decision<'r, 'p, 's> {
    repo: &'r gix::Repository,
    beneath: Beneath,
    index: gix::worktree::Index,
    stats: &'s mut StatCache,
    plan: &'p Materialise,
    done: Materialised,
    writes: Vec<Write<'p>>,
    strays: BTreeMap<RepoPath, FileStat>,
}

/// What stands at an output's place.
enum Place {
    Nothing(Option<Vec<u8>>),
    File(FileStat),
    Blocked(String),
    /// Something that `force` may replace.
    Replaceable(FileStat, &'static str),
}

impl<'r, 'p, 's> Decision<'r, 'p, 's> {
    fn new(
        repo: &'r gix::Repository,
        top: &std::path::Path,
        stats: &'s mut StatCache,
        plan: &'p Materialise,
    ) -> Result<Self, MaterialiseError> {
        let index = repo.index_or_empty().map_err(ScanError::Index)?;
        let beneath = open_top(top)?;
        let (done, writes, strays) = Default::default();
        Ok(Self { repo, beneath, index, stats, plan, done, writes, strays })
    }

    /// Notes what was written last time, is not wanted any more, and is still what was written.
    fn strays(&mut self) -> Result<(), MaterialiseError> {
        let stray = |path: &RepoPath| match self.plan.strays {
            Strays::Keep => false,
            Strays::Matching(matches) => matches(path),
            Strays::All => true,
        };
        let gone: Vec<_> =
            self.stats.output_paths().filter(|path| stray(path) && !self.plan.files.contains_key(*path)).cloned().collect();
        for path in gone {
            let Some(entry) = self.stats.written(&path) else { continue };
            let stat = match self.beneath.stat(path.as_str().as_bytes()) {
                Ok(Some(stat)) => stat,
                _ => {
                    self.stats.put_output(&path, None);
                    continue;
                }
            };
            let is_file = kind(&stat) == FileType::RegularFile;
            let stat = FileStat::from(&stat);
            let ours = is_file
                && (self.stats.is_untouched(&entry, &stat)
                    || self.read(&path)?.is_some_and(|bytes| Digest::of(&bytes) == entry.sha256));
            if ours {
                self.strays.insert(path, stat);
            } else {
                self.stats.put_output(&path, None);
                self.done.findings.push(
                    Finding::warning(
                        Code::ArtifactEdited,
                        format!("'{path}' is not generated any more, but somebody edited it, so it was left in place"),
                    )
                    .at(path.as_str())
                    .hint("remove it if nobody needs it"),
                );
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &'p RepoPath, item: &'p WriteItem) -> Result<(), MaterialiseError> {
        let (absent, replaces) = match self.place(path)? {
            Place::Nothing(absent) => (absent, None),
            Place::File(stat) => match self.may_replace(path, item, &stat)? {
                Some(true) => (None, Some(stat)),
                Some(false) => {
                    self.done.in_place += 1;
                    return Ok(());
                }
                None => return Ok(()),
            },
            Place::Replaceable(stat, _) if self.plan.force => (None, Some(stat)),
            Place::Replaceable(_, what) => {
                self.blocked(path, &format!("{what} stands at its place"), Some("git cbia run --force"));
                return Ok(());
            }
            Place::Blocked(what) => {
                self.blocked(path, &what, None);
                return Ok(());
            }
        };
        self.writes.push(Write { path, item, absent, replaces });
        Ok(())
    }

    fn place(&mut self, path: &RepoPath) -> Result<Place, MaterialiseError> {
        let bytes = path.as_str().as_bytes();
        match self.beneath.folder_to_write(split(bytes).0, Missing::Stop) {
            Ok(_) => {}
            Err(Stop::Absent(at)) => return Ok(Place::Nothing(Some(at))),
            Err(Stop::NotAFolder(at)) => {
                // A stray that makes room is no obstacle.
                let shown = String::from_utf8_lossy(&at).into_owned();
                let stray = shown.parse::<RepoPath>().is_ok_and(|at| self.strays.contains_key(&at));
                return Ok(if stray {
                    Place::Nothing(Some(at))
                } else {
                    Place::Blocked(format!("'{}' on the way is not a folder", printable(&shown)))
                });
            }
            Err(Stop::OtherFileSystem(at)) => {
                let at = printable(&String::from_utf8_lossy(&at));
                return Ok(Place::Blocked(format!("'{at}' lies on another file system")));
            }
            Err(Stop::Io(at, source)) => {
                return Err(MaterialiseError::Write { path: String::from_utf8_lossy(&at).into_owned(), source });
            }
        }
        let stat = self.beneath.stat(bytes).map_err(write_error)?;
        Ok(match stat.map(|stat| (kind(&stat), FileStat::from(&stat))) {
            None => Place::Nothing(None),
            Some((FileType::RegularFile, stat)) => Place::File(stat),
            Some((FileType::Directory, _)) if self.holds_strays_only(bytes)? => Place::Nothing(None),
            Some((FileType::Directory, _)) => Place::Blocked("a folder stands at its place".into()),
            Some((other, stat)) => Place::Replaceable(stat, kind_name(other)),
        })
    }

    /// Whether removing the strays will leave nothing of a folder.
    fn holds_strays_only(&mut self, folder: &[u8]) -> Result<bool, MaterialiseError> {
        if !self.strays.keys().any(|path| path.as_str().as_bytes().starts_with(folder)) {
            return Ok(false);
        }
        let mut folders = vec![folder.to_owned()];
        let kept: BTreeSet<&[u8]> = self.strays.keys().map(|path| path.as_str().as_bytes()).collect();
        while let Some(folder) = folders.pop() {
            let fd = self.beneath.folder(&folder, Missing::Stop).map_err(write_error)?;
            let wrap = |error: rustix::io::Errno| write_error(Stop::Io(folder.clone(), error.into()));
            for entry in rustix::fs::Dir::read_from(fd).map_err(wrap)? {
                let entry = entry.map_err(wrap)?;
                let name = entry.file_name().to_bytes();
                let path = [&folder, b"/".as_slice(), name].concat();
                match entry.file_type() {
                    _ if name == b"." || name == b".." => {}
                    FileType::Directory => folders.push(path),
                    _ if kept.contains(path.as_slice()) => {}
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Whether the regular file at an output's place is to be replaced; `None` if it must not be, which is reported.
    fn may_replace(&mut self, path: &RepoPath, item: &WriteItem, stat: &FileStat) -> Result<Option<bool>, MaterialiseError> {
        let last = self.stats.written(path);
        if let Some(last) = last.filter(|last| self.stats.is_untouched(last, stat)) {
            return Ok(Some(last.sha256 != item.sha256 || last.id != item.id));
        }
        let Some(bytes) = self.read(path)? else {
            self.blocked(path, "what stands at its place cannot be compared", None);
            return Ok(None);
        };
        let sha256 = Digest::of(&bytes);
        if sha256 == item.sha256 {
            let WriteItem { id, sha256, .. } = *item;
            self.stats.put_output(path, Some(Entry { stat: *stat, id, sha256, bytes: 0, filters: 0 }));
            return Ok(Some(false));
        }
        let ours = item.class == Class::Evidence || self.plan.force || last.is_some_and(|last| last.sha256 == sha256);
        if ours || self.git_holds(path, &bytes)? {
            return Ok(Some(true));
        }
        let difference = self.difference(path, item, &bytes)?;
        self.done.findings.push(
            Finding::error(Code::ArtifactEdited, format!("'{path}' was edited and would be overwritten: {difference}"))
                .at(path.as_str())
                .expected(item.sha256, sha256)
                .hint("git cbia run --force overwrites it: keep the edit elsewhere first, or make it in what the file is generated from"),
        );
        Ok(None)
    }

    /// Whether the index has exactly these bytes for the path, so that overwriting them loses nothing.
    fn git_holds(&self, path: &RepoPath, bytes: &[u8]) -> Result<bool, MaterialiseError> {
        let Some(entry) = self.index.entry_by_path(path.as_str().as_bytes().as_bstr()) else { return Ok(false) };
        let unfit = gix::index::entry::Flags::INTENT_TO_ADD;
        if entry.stage() != gix::index::entry::Stage::Unconflicted || entry.flags.contains(unfit) {
            return Ok(false);
        }
        let is_it = |bytes: &[u8]| {
            let id = gix::objs::compute_hash(self.repo.object_hash(), gix::objs::Kind::Blob, bytes);
            id.map(|id| id == entry.id).map_err(|source| ScanError::Hash { path: path.clone(), source })
        };
        if is_it(bytes)? {
            return Ok(true);
        }
        let clean = Cleaner::new(self.repo, &self.index)?.clean(path, bytes.to_vec(), MAX_COMPARED)?;
        Ok(is_it(&clean)?)
    }

    fn difference(&self, path: &RepoPath, item: &WriteItem, there: &[u8]) -> Result<String, MaterialiseError> {
        let mut buffer = Vec::new();
        let wanted = item_bytes(self.repo, path, item, &mut buffer)?;
        let texts = (std::str::from_utf8(there), std::str::from_utf8(wanted));
        let (Ok(there), Ok(wanted)) = texts else { return Ok("it is not text".into()) };
        if there.len().max(wanted.len()) > MAX_DIFFED {
            return Ok("it is too large to compare line by line".into());
        }
        let diff = similar::TextDiff::configure().timeout(std::time::Duration::from_millis(200)).diff_lines(wanted, there);
        let count = |tag| diff.iter_all_changes().filter(|change| change.tag() == tag).count();
        let (added, removed) = (count(similar::ChangeTag::Insert), count(similar::ChangeTag::Delete));
        let lines = added.max(removed);
        Ok(format!("{lines} {}", if lines == 1 { "line differs" } else { "lines differ" }))
    }

    fn read(&mut self, path: &RepoPath) -> Result<Option<Vec<u8>>, MaterialiseError> {
        Ok(match read_file(&mut self.beneath, path, MAX_COMPARED)? {
            Ok((bytes, settled)) => settled.map(|_| bytes),
            Err(Refusal::Gone | Refusal::NotRegular(_) | Refusal::TooLarge(_)) => None,
        })
    }

    fn blocked(&mut self, path: &RepoPath, what: &str, force: Option<&str>) {
        let finding = Finding::error(Code::ArtifactBlocked, format!("'{path}' cannot be written: {what}")).at(path.as_str());
        let hint = force
            .map_or_else(|| "move what is in the way".to_owned(), |force| format!("move it away, or replace it with '{force}'"));
        self.done.findings.push(finding.hint(hint));
    }
}

/// The bytes of an output, verified against its SHA-256. A stored blob is read into `buffer`; git's own hash of it is not computed as well,
/// which would cost four times as much and say nothing that the SHA-256 does not.
pub(in crate::store) fn item_bytes<'b>(
    repo: &gix::Repository,
    path: &RepoPath,
    item: &'b WriteItem,
    buffer: &'b mut Vec<u8>,
) -> Result<&'b [u8], MaterialiseError> {
    let WriteItem { id, sha256, .. } = item;
    let mismatch = |got: String| MaterialiseError::Mismatch { path: path.clone(), wanted: *sha256, got };
    let lost = |source| MaterialiseError::Object { path: path.clone(), source };
    let bytes: &[u8] = match &item.source {
        Source::Bytes(bytes) => {
            let hashed = gix::objs::compute_hash(id.kind(), gix::objs::Kind::Blob, bytes)
                .map_err(|source| ScanError::Hash { path: path.clone(), source })?;
            if hashed != *id {
                return Err(mismatch(format!("they are the blob {hashed}, not {id}")));
            }
            bytes
        }
        Source::Blob => {
            object::read_unverified(repo, id, Kind::Blob, MAX_COMPARED, buffer).map_err(lost)?;
            buffer
        }
    };
    let got = Digest::of(bytes);
    if got == *sha256 {
        return Ok(bytes);
    }
    if let Source::Blob = item.source {
        // Whether the object is damaged, or a whole one is not the one that was wanted.
        object::read(repo, id, Kind::Blob, MAX_COMPARED).map_err(lost)?;
    }
    Err(mismatch(format!("their SHA-256 is {got}")))
}

/// Removes a stray that is still the file that was decided about, and the folders it leaves empty.
fn remove(beneath: &mut Beneath, path: &RepoPath, stat: &FileStat) -> Result<bool, MaterialiseError> {
    let bytes = path.as_str().as_bytes();
    let (mut folder, name) = split(bytes);
    match beneath.stat(bytes) {
        Ok(Some(now)) if FileStat::from(&now) == *stat => {}
        _ => return Ok(false),
    }
    let parent = beneath.folder(folder, Missing::Stop).map_err(write_error)?;
    rustix::fs::unlinkat(parent, name, AtFlags::empty())
        .map_err(|error| write_error(Stop::Io(bytes.to_owned(), error.into())))?;
    while !folder.is_empty() {
        let (above, name) = split(folder);
        let parent = beneath.folder(above, Missing::Stop).map_err(write_error)?;
        if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_err() {
            break;
        }
        folder = above;
    }
    Ok(true)
}

fn open_top(top: &std::path::Path) -> Result<Beneath, MaterialiseError> {
    Beneath::new(top).map_err(|source| MaterialiseError::Write { path: top.display().to_string(), source })
}

pub(in crate::store) fn write_error(stop: Stop) -> MaterialiseError {
    let (path, source) = match stop {
        Stop::Io(path, source) => (path, source),
        Stop::Absent(path) => (path, io::ErrorKind::NotFound.into()),
        Stop::NotAFolder(path) => (path, io::ErrorKind::NotADirectory.into()),
        Stop::OtherFileSystem(path) => (path, io::ErrorKind::CrossesDevices.into()),
    };
    MaterialiseError::Write { path: String::from_utf8_lossy(&path).into_owned(), source }
}

#[cfg(test)]
#[path = "materialise_test.rs"]
mod tests;
