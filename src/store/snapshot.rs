//! Which files exist, and their bytes as git stores them: from the work tree or from a commit's tree.
//!
//! A scan decides nothing and writes no objects. It gives every wanted file's object id, SHA-256 and size, and a
//! way to get at the bytes later that checks them again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::path::{RepoPath, printable};

use super::object::{self, Kind, ObjectError};
use super::stat::StatCache;
use super::{Oid, Store, worktree};

/// What a scan looks for.
pub struct Wanted<'a> {
    /// Patterns; only the folders they can match below are walked.
    pub globs: &'a Globs,
    /// Paths that are looked up one by one, whether a pattern matches them or not.
    pub exact: &'a [RepoPath],
    /// Paths that are left out although a pattern matches them. It does not apply to `exact`.
    pub exclude: &'a dyn Fn(&RepoPath) -> bool,
}

/// The most a scan accepts before it reports [`Code::InputTooLarge`].
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// Number of files.
    pub files: u64,
    /// Bytes of all files together, as git stores them.
    pub bytes: u64,
    /// Bytes of one file, on the disk and as git stores it.
    pub file_bytes: u64,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self { files: 100_000, bytes: 1 << 30, file_bytes: 256 << 20 }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every wanted file that is there and is regular.
    pub files: BTreeMap<RepoPath, SourceFile>,
    /// What cannot be an input, and why. A scan with an error among them must not be used.
    pub findings: Vec<Finding>,
}

/// One file of a scan.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The blob's object id, whether or not the object database holds it.
    pub id: Oid,
    /// SHA-256 of the bytes as git stores them.
    pub sha256: Digest,
    /// Their number.
    pub bytes: u64,
    /// Where they can be had.
    pub content: Content,
}

/// Where the bytes of a [`SourceFile`] are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Memory(Arc<[u8]>),
    /// In the object database.
    Stored,
    /// In the work tree, at this path, and perhaps in the object database.
    File(RepoPath),
}

/// Why a scan could not be made, or a scanned file's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// There is no work tree to scan.
    #[error("'{}' is a bare repository: it has no work tree to read inputs from", .0.display())]
    Bare(PathBuf),
    /// git's index cannot be read.
    #[error("git's index cannot be read")]
    Index(#[source] gix::Error),
    /// The configuration of attributes, filters or ignored files cannot be used.
    #[error("the repository's attributes, filters or ignore rules cannot be used")]
    Rules(#[source] gix::Error),
    /// A file or folder of the work tree cannot be read.
    #[error("'{}' cannot be read", printable(path))]
    Read {
        /// The path, relative to the top.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The clean filter or line-ending conversion of a file failed.
    #[error("'{path}' cannot be converted to what git would store")]
    Filter {
        /// The file.
        path: RepoPath,
        /// The cause.
        source: gix::Error,
    },
    /// A blob or tree cannot be read.
    #[error("'{}' cannot be read from the object database", printable(path))]
    Object {
        /// The path it has in the scanned tree or index.
        path: String,
        /// The cause.
        source: ObjectError,
    },
    /// A file changed between the scan and its use.
    #[error("'{0}' changed while it was being read")]
    Changed(RepoPath),
    /// A stored blob is not the one that was scanned.
    #[error("the blob {0} is not what it was when it was scanned")]
    BlobChanged(Oid),
    /// Bytes could not be hashed; SHA-1 refuses input that is made to collide.
    #[error("'{path}' cannot be hashed")]
    Hash {
        /// The file.
        path: RepoPath,
        /// The cause.
        source: gix::Error,
    },
}

impl Store {
    /// The wanted files of the tree `tree`, exactly as they are stored.
    pub fn scan_commit(&self, tree: Oid, wanted: &Wanted<'_>, limits: ScanLimits) -> Result<Scan, ScanError> {
        let mut stats = StatCache::load_digests(self.repo.git_dir(), self.repo.object_hash());
        let mut found = Found::new(wanted, limits);
        scan_tree(&self.repo, tree, b"", &mut found, &mut stats)?;
        if !self.read_only {
            stats.save_if_possible(self.repo.git_dir());
        }
        Ok(found.finish())
    }

    /// The wanted files of the work tree, as `git add` would store them: tracked files, and others that git does not
    /// ignore.
    pub fn scan_worktree(&self, wanted: &Wanted<'_>, limits: ScanLimits) -> Result<Scan, ScanError> {
        let mut stats = StatCache::load(self.repo.git_dir(), self.repo.object_hash());
        let scan = worktree::scan(&self.repo, wanted, limits, &mut stats)?;
        if !self.read_only {
            stats.save_if_possible(self.repo.git_dir());
        }
        Ok(scan)
    }

    /// The bytes of a scanned file, checked against its SHA-256.
    pub fn content(&self, file: &SourceFile) -> Result<Vec<u8>, ScanError> {
        let stored = || object::read(&self.repo, &file.id, Kind::Blob, file.bytes);
        let bytes = match &file.content {
            Content::Memory(bytes) => bytes.to_vec(),
            Content::Stored => stored().map_err(|source| ScanError::Object { path: file.id.to_string(), source })?,
            Content::File(path) => {
                let bytes = match stored() {
                    Ok(bytes) => bytes,
                    Err(_) => worktree::read_again(&self.repo, path, file)?,
                };
                if Digest::of(&bytes) != file.sha256 {
                    return Err(ScanError::Changed(path.clone()));
                }
                return Ok(bytes);
            }
        };
        if Digest::of(&bytes) != file.sha256 { Err(ScanError::BlobChanged(file.id)) } else { Ok(bytes) }
    }
}

/// A scan in the making.
pub(in crate::store) struct Found<'a> {
    pub wanted: &'a Wanted<'a>,
    pub limits: ScanLimits,
    exact: BTreeSet<&'a [u8]>,
    roots: Vec<Vec<u8>>,
    scan: Scan,
    bytes: u64,
    full: bool,
}

/// Whether a name is wanted, and if so whether it is one we accept.
pub(in crate::store) enum Asked {
    No,
    Yes(RepoPath),
    Refused,
}

impl<'a> Found<'a> {
    pub(in crate::store) fn new(wanted: &'a Wanted<'a>, limits: ScanLimits) -> Self {
        let exact: BTreeSet<_> = wanted.exact.iter().map(|p| p.as_str().as_bytes()).collect();
        let mut roots: Vec<_> = wanted.globs.prefixes().into_iter().map(String::into_bytes).collect();
        roots.sort();
        roots.dedup();
        let all = roots.clone();
        roots.retain(|root| !all.iter().any(|above| above != root && is_at_or_below(root, above)));
        Self { wanted, limits, exact, roots, scan: Scan::default(), bytes: 0, full: false }
    }

    /// The folders and files that everything the patterns match lies at or below; none is below another.
    pub(in crate::store) fn roots(&self) -> Vec<Vec<u8>> {
        self.roots.clone()
    }

    /// Whether anything wanted can lie below this folder.
    pub(in crate::store) fn may_hold(&self, folder: &[u8]) -> bool {
        self.roots.iter().any(|root| is_at_or_below(root, folder) || is_at_or_below(folder, root))
            || self.exact.iter().any(|path| is_at_or_below(path, folder))
    }

    /// Whether this name is wanted; a wanted name that is no valid path is reported.
    pub(in crate::store) fn asks_for(&mut self, path: &[u8]) -> Asked {
        let exact = self.exact.contains(path);
        if !exact && !self.wanted.globs.matches_bytes(path) {
            return Asked::No;
        }
        match RepoPath::from_bytes(path) {
            Ok(path) if !exact && (self.wanted.exclude)(&path) => Asked::No,
            Ok(path) => Asked::Yes(path),
            Err(error) => {
                self.scan.findings.push(
                    Finding::error(Code::PathInvalid, error.to_string())
                        .at(&error.path)
                        .hint("rename the file, or let no input pattern match it"),
                );
                Asked::Refused
            }
        }
    }

    /// Reports something that is wanted and is no regular file.
    pub(in crate::store) fn not_regular(&mut self, path: &[u8], what: &str) {
        let path = printable(&String::from_utf8_lossy(path));
        self.scan.findings.push(
            Finding::error(Code::InputNotRegular, format!("'{path}' is {what}: an input must be a regular file"))
                .at(&path)
                .expected("a regular file", what)
                .hint("put the file itself there, or let no input pattern match it"),
        );
    }

    pub(in crate::store) fn report(&mut self, finding: Finding) {
        self.scan.findings.push(finding);
    }

    /// Reports a file that is larger than one may be.
    pub(in crate::store) fn too_large(&mut self, path: &RepoPath, bytes: u64) {
        let most = self.limits.file_bytes;
        self.scan.findings.push(
            Finding::error(Code::InputTooLarge, format!("'{path}' has {bytes} bytes; at most {most} are read"))
                .at(path.as_str())
                .expected(format!("at most {most} bytes"), format!("{bytes} bytes")),
        );
    }

    /// Takes a file in, unless the limits are reached, which is reported once.
    pub(in crate::store) fn add(&mut self, path: RepoPath, file: SourceFile) {
        if file.bytes > self.limits.file_bytes {
            return self.too_large(&path, file.bytes);
        }
        self.bytes = self.bytes.saturating_add(file.bytes);
        self.scan.files.insert(path, file);
        if self.bytes > self.limits.bytes || self.scan.files.len() as u64 > self.limits.files {
            self.overflow();
        }
    }

    /// Whether the limits were reached and the scan should end.
    pub(in crate::store) fn is_full(&self) -> bool {
        self.full
    }

    /// Reports that the limits were reached.
    pub(in crate::store) fn overflow(&mut self) {
        if !self.full {
            self.full = true;
            let ScanLimits { files, bytes, .. } = self.limits;
            self.scan.findings.push(
                Finding::error(Code::InputTooLarge, format!("the inputs are more than {files} files or {bytes} bytes together"))
                    .hint("narrow the 'inputs' patterns in control/pipeline.json"),
            );
        }
    }

    /// The scan, with the collisions of its paths reported.
    pub(in crate::store) fn finish(mut self) -> Scan {
        self.scan.findings.extend(collisions(self.scan.files.keys()));
        self.scan
    }
}

/// Paths that overwrite each other on a case-insensitive file system, or of which one is the other's folder.
pub(in crate::store) fn collisions<'a>(paths: impl Iterator<Item = &'a RepoPath>) -> Vec<Finding> {
    let mut folded: BTreeMap<String, &RepoPath> = BTreeMap::new();
    let mut findings = Vec::new();
    let mut collide = |one: &RepoPath, other: &RepoPath| {
        findings.push(
            Finding::error(
                Code::PathCollision,
                format!("'{one}' and '{other}' cannot both exist on a file system that ignores case"),
            )
            .at(other.as_str())
            .hint("rename one of them"),
        );
    };
    for path in paths {
        if let Some(other) = folded.insert(path.fold_key(), path) {
            collide(other, path);
        }
    }
    for (key, path) in &folded {
        let above = key.match_indices('/').find_map(|(at, _)| folded.get(&key[..at]));
        if let Some(above) = above {
            collide(above, path);
        }
    }
    findings
}

/// Whether `path` is `folder` or lies below it; everything lies below the empty path.
pub(in crate::store) fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// `folder/name`, or the name alone at the top.
pub(in crate::store) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_owned() } else { [folder, b"/", name].concat() }
}

/// A stored blob as a scanned file; its bytes are read only if their SHA-256 is not known yet.
pub(in crate::store) fn stored_file(
    repo: &gix::Repository,
    path: &RepoPath,
    id: Oid,
    found: &mut Found<'_>,
    stats: &mut StatCache,
) -> Result<Option<SourceFile>, ObjectError> {
    let (sha256, bytes) = match stats.digest(&id) {
        Some(known) => known,
        None => {
            // The size is asked for first, so that a blob over the limit is a finding about this path.
            let size = repo.try_find_header(id).ok().flatten().map_or(0, |header| header.size());
            if size > found.limits.file_bytes {
                found.too_large(path, size);
                return Ok(None);
            }
            let bytes = object::read(repo, &id, Kind::Blob, found.limits.file_bytes)?;
            let known = (Digest::of(&bytes), bytes.len() as u64);
            stats.put_digest(id, known.0, known.1);
            known
        }
    };
    Ok(Some(SourceFile { id, sha256, bytes, content: Content::Stored }))
}

/// Takes in the wanted files of a tree whose own path is `at`. Only folders that can hold something wanted are read,
/// and the walk keeps its own stack, so that a deep tree costs memory in proportion and no more.
pub(in crate::store) fn scan_tree(
    repo: &gix::Repository,
    tree: Oid,
    at: &[u8],
    found: &mut Found<'_>,
    stats: &mut StatCache,
) -> Result<(), ScanError> {
    let mut folders = vec![(at.to_owned(), tree)];
    let mut seen = BTreeSet::new();
    while let Some((folder, id)) = folders.pop() {
        let wrap = |path: &[u8]| {
            let path = String::from_utf8_lossy(path).into_owned();
            move |source| ScanError::Object { path, source }
        };
        let data = object::read(repo, &id, Kind::Tree, 256 << 20).map_err(wrap(&folder))?;
        for entry in gix::objs::TreeRefIter::from_bytes(&data, repo.object_hash()) {
            let entry = entry.map_err(ScanError::Index)?;
            let path = join(&folder, entry.filename);
            if found.is_full() {
                return Ok(());
            }
            if entry.mode.is_tree() {
                if path.len() > crate::document::path::MAX_PATH_BYTES {
                    found.asks_for(&path);
                } else if found.may_hold(&path) {
                    folders.push((path, entry.oid.to_owned()));
                }
                continue;
            }
            let Asked::Yes(valid) = found.asks_for(&path) else { continue };
            if !seen.insert(path.clone()) {
                found.report(Finding::error(Code::PathCollision, format!("the tree names '{valid}' twice")).at(valid.as_str()));
                continue;
            }
            if !entry.mode.is_blob() {
                found.not_regular(&path, if entry.mode.is_link() { "a symbolic link" } else { "a submodule" });
                continue;
            }
            if let Some(file) = stored_file(repo, &valid, entry.oid.to_owned(), found, stats).map_err(wrap(&path))? {
                found.add(valid, file);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod tests;
