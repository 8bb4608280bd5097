//! What an executor left in its scratch directory, after the last of its processes is dead: the report, and exactly the declared artifacts.
//!
//! Nothing it says is believed: every file is opened without following links, must be regular and have one name, and its size and hash are
//! those of the bytes that are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::scratch::{Print, Scratch};
use crate::document::digest::Digest;
use crate::document::executor::Bounds;
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::{GenReport, Outputs, ReportedArtifact};
use crate::document::path::{MAX_PATH_BYTES, RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::schema::{Kind, load};

/// The largest report that is read, in bytes.
pub const MAX_REPORT_BYTES: u64 = 16 << 20;
/// Fewer folders than this are not worth a thread of their own.
const FEWEST_FOLDERS: usize = 8;
/// At most this many findings are told.
const MAX_FINDINGS: usize = 100;

/// What was harvested.
#[derive(Debug)]
pub struct Harvest {
    /// The artifacts.
    pub artifacts: BTreeMap<RepoPath, Vec<u8>>,
    /// With what they were made, by the report.
    pub tool_versions: BTreeMap<String, String>,
}

/// An artifact's bytes and their digest, or why it could not be read.
type Taken = Result<(Vec<u8>, Digest), Box<Finding>>;

/// What was read of a scratch directory, which is not needed any more: all of it is in memory, and none of it is believed yet.
#[derive(Debug)]
pub struct Collected<'a> {
    outputs: &'a Outputs,
    /// What is wrong with what lies there.
    findings: Vec<Finding>,
    report: Result<GenReport, Vec<Finding>>,
    /// What is wrong with artifacts that were not read.
    unread: Vec<Finding>,
    /// Each artifact that is there, in byte order of path: its bytes and their digest.
    read: Vec<(&'a RepoPath, Taken)>,
}

/// Reads `outputs`. The request, which git cbia itself wrote, is left unread.
pub fn collect<'a>(
    scratch: &Scratch,
    outputs: &'a Outputs,
    phase: Phase,
    request: &RepoPath,
    bounds: &Bounds,
) -> Result<Collected<'a>, Vec<Finding>> {
    let declared: HashSet<&RepoPath> = outputs.artifacts.iter().collect();
    let mut found = walk(&Reader::new(scratch, &declared, (&outputs.execution_report, phase), bounds))?;
    let mut findings = std::mem::take(&mut found.findings);
    for (path, kind) in &found.files {
        let expected =
            declared.contains(path) || path == &outputs.execution_report || path == &outputs.outputs_manifest || path == request;
        match kind {
            Found::File(file) if scratch.inputs.contains_key(path) => {
                if scratch.inputs.get(path) != Some(&file.print) {
                    let message = format!("the executor changed its input {path}");
                    findings.push(
                        Finding::error(Code::ExecutorInputChanged, message).at(path).hint("write to the declared outputs only"),
                    );
                }
            }
            // No mode is ever harvested. A repair that sets one has tried what it may not, and is told so.
            Found::File(file) if phase == Phase::Repair && declared.contains(path) && file.print.is_executable() => {
                let message = format!("the repair changes the mode of {path}");
                findings.push(Finding::error(Code::RepairMode, message).at(path).hint("a repair changes lines only"));
            }
            Found::File(_) if expected => {}
            Found::File(_) => findings.push(undeclared(path)),
            Found::Other(what) => {
                let message = format!("the executor left {what} at {path}, where only regular files are taken");
                findings.push(Finding::error(Code::OutputNotRegular, message).at(path).hint("write a regular file"));
            }
        }
    }
    for path in scratch.inputs.keys().filter(|path| !found.files.contains_key(*path)) {
        let message = format!("the executor deleted its input {path}");
        findings.push(Finding::error(Code::ExecutorInputChanged, message).at(path).hint("write to the declared outputs only"));
    }
    let report = found.report.take().unwrap_or_else(|| match found.absent(&outputs.execution_report) {
        // It was told of above.
        Some(_) if matches!(found.files.get(&outputs.execution_report), Some(Found::Other(_))) => Err(Vec::new()),
        Some(finding) if finding.code != Code::OutputMissing => Err(vec![finding]),
        Some(_) | None => Err(vec![no_report(&outputs.execution_report)]),
    });
    let (mut unread, mut read, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    let mut left = bounds.output_bytes;
    let mut paths: Vec<&RepoPath> = declared.into_iter().filter(|_| report.is_ok()).collect();
    paths.sort_unstable();
    for path in paths {
        let file = match found.files.get_mut(path) {
            Some(Found::File(file)) => file,
            // It was told of above.
            Some(Found::Other(_)) => continue,
            None => {
                unread.extend(found.absent(path).map(|finding| finding.hint("every declared artifact must be produced")));
                continue;
            }
        };
        let Some(rest) = left.checked_sub(file.print.bytes()) else {
            let message = format!("the artifacts are larger than the limit: {path} goes beyond it");
            unread.push(Finding::error(Code::OutputTooLarge, message).at(path).hint("sandbox.limits.output_bytes allows more"));
            break;
        };
        left = rest;
        match file.taken.take() {
            Some(taken) => read.push((path, taken)),
            None => skipped.push(path),
        }
    }
    // There was no room for them only if all artifacts together are larger than the limit, which is told already.
    skipped.retain(|_| !unread.iter().any(|finding: &Finding| finding.code == Code::OutputTooLarge));
    read.extend(skipped.into_iter().map(|path| (path, Err(unreadable(path, "it was there, and could not be opened").into()))));
    Ok(Collected { outputs, findings, report, unread, read })
}

impl Collected<'_> {
    /// The artifacts, if they are the declared ones, and what the report says they are.
    pub fn verify(self) -> Result<Harvest, Vec<Finding>> {
        let Self { outputs, mut findings, report, unread, read } = self;
        let report = match report {
            Ok(report) => report,
            Err(more) => {
                findings.extend(more);
                return Err(cut(findings));
            }
        };
        let declared = outputs.artifacts.iter().collect();
        let said = reported(&report, &declared, &outputs.execution_report, &mut findings);
        findings.extend(unread);
        let mut artifacts = Vec::with_capacity(read.len());
        for (path, taken) in read {
            let held = taken
                .map_err(|finding| *finding)
                .and_then(|(bytes, digest)| hold(path, &bytes, digest, said.get(path).copied()).map(|()| bytes));
            match held {
                Ok(bytes) => artifacts.push((path.clone(), bytes)),
                Err(finding) => findings.push(finding),
            }
        }
        if !findings.is_empty() {
            return Err(cut(findings));
        }
        Ok(Harvest { artifacts: artifacts.into_iter().collect(), tool_versions: report.tool_versions })
    }
}

/// What `action` gives for each item, in their order. Whoever is done takes the next.
fn in_parallel<T: Sync, R: Send>(items: &[T], action: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len() / FEWEST_FOLDERS);
    if threads <= 1 {
        return items.iter().map(action).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match items.get(at) {
                Some(item) => done.push((at, action(item))),
                None => return done,
            }
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<(usize, R)>>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        own.into_iter().chain(others.into_iter().flat_map(join)).collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

fn cut(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.truncate(MAX_FINDINGS);
    findings
}

fn undeclared(path: &RepoPath) -> Finding {
    Finding::error(Code::OutputUndeclared, format!("the executor left {path}, which is not declared"))
        .at(path)
        .hint("declare it in gen.artifacts, or write it to $TMPDIR, which is thrown away")
}

fn unreadable(path: impl std::fmt::Display, error: impl std::fmt::Display) -> Finding {
    Finding::error(Code::ScratchFailed, format!("{path}, in the executor's scratch directory, cannot be read: {error}")).at(path)
}

/// A regular file.
struct Regular {
    print: Print,
    /// What was read of it, if it is an artifact.
    taken: Option<Taken>,
}

enum Found {
    File(Regular),
    Other(&'static str),
}

#[derive(Default)]
struct Walk {
    files: BTreeMap<RepoPath, Found>,
    report: Option<Result<GenReport, Vec<Finding>>>,
    folders: BTreeSet<Vec<u8>>,
    findings: Vec<Finding>,
}

impl Walk {
    /// What of `path` is no regular file, if anything is there. What the walk did not find is not looked for by its path, since a folder on
    /// the way may be a link by now.
    fn absent(&self, path: &RepoPath) -> Option<Finding> {
        match self.files.get(path) {
            Some(Found::File(_)) => None,
            Some(Found::Other(_)) => Some(not_regular(path)),
            None if self.folders.contains(path.as_str().as_bytes()) => Some(not_regular(path)),
            None => Some(Finding::error(Code::OutputMissing, format!("the executor did not write {path}")).at(path)),
        }
    }
}

fn not_regular(path: &RepoPath) -> Finding {
    Finding::error(Code::OutputNotRegular, format!("{path} is not a regular file")).at(path).hint("write a regular file")
}

/// Reads a scratch directory.
struct Reader<'a> {
    scratch: &'a Scratch,
    declared: &'a HashSet<&'a RepoPath>,
    /// Where the report is, and what it is about.
    report: (&'a RepoPath, Phase),
    /// How many entries there may be, and how many were found.
    most: u64,
    entries: AtomicU64,
    /// How many bytes of artifacts may still be read.
    left: AtomicU64,
}

impl<'a> Reader<'a> {
    fn new(scratch: &'a Scratch, declared: &'a HashSet<&'a RepoPath>, report: (&'a RepoPath, Phase), bounds: &Bounds) -> Self {
        let (entries, left) = (AtomicU64::new(0), AtomicU64::new(bounds.output_bytes));
        Self { scratch, declared, report, most: bounds.output_files, entries, left }
    }
}

/// Everything in the tree, one level of folders after the other.
fn walk(reader: &Reader<'_>) -> Result<Walk, Vec<Finding>> {
    let mut walk = Walk::default();
    let mut files = Vec::new();
    let mut level: Vec<Vec<u8>> = vec![Vec::new()];
    let report = reader.report.0.as_str().rsplit_once('/').map_or("", |(folder, _)| folder).as_bytes();
    while !level.is_empty() {
        // The report takes longest, so that it is not what is waited for in the end.
        if let Some(at) = level.iter().position(|folder| folder == report) {
            level.swap(0, at);
        }
        let listed = in_parallel(&level, |folder| list(reader, folder));
        level.clear();
        for listing in listed {
            let listing = listing?;
            files.extend(listing.files);
            walk.findings.extend(listing.findings);
            walk.report = walk.report.or(listing.report);
            level.extend(listing.folders);
        }
        walk.folders.extend(level.iter().cloned());
    }
    walk.files = files.into_iter().collect();
    Ok(walk)
}

/// What lies in one folder.
#[derive(Default)]
struct Listing {
    files: Vec<(RepoPath, Found)>,
    report: Option<Result<GenReport, Vec<Finding>>>,
    folders: Vec<Vec<u8>>,
    findings: Vec<Finding>,
}

/// Lists one folder, and reads the artifacts in it.
fn list(reader: &Reader<'_>, folder: &[u8]) -> Result<Listing, Vec<Finding>> {
    let mut listing = Listing::default();
    let shown = || printable(&String::from_utf8_lossy(folder));
    let name: &[u8] = if folder.is_empty() { b"." } else { folder };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::openat(reader.scratch.folder(), name, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(error) => {
            listing.findings.push(unreadable(shown(), error));
            return Ok(listing);
        }
    };
    for entry in rustix::fs::Dir::read_from(&handle).map_err(|error| vec![unreadable(shown(), error)])? {
        let entry = entry.map_err(|error| vec![unreadable(shown(), error)])?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if reader.entries.fetch_add(1, Ordering::Relaxed) >= reader.most {
            let message = format!("the executor left more than {} files", reader.most);
            return Err(vec![
                Finding::error(Code::OutputTooLarge, message)
                    .hint("sandbox.limits.output_files allows more; $TMPDIR is not counted"),
            ]);
        }
        let mut path = Vec::with_capacity(folder.len() + 1 + entry.file_name().count_bytes());
        path.extend_from_slice(folder);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.file_name().to_bytes());
        // Some file systems do not tell what it is.
        let is_file = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
        if is_file && path == reader.report.0.as_str().as_bytes() {
            listing.report = read_report(&handle, entry.file_name(), reader.report);
        } else if is_file
            && let Ok(path) = RepoPath::from_bytes(&path)
            && reader.declared.contains(&path)
            && let Some(file) = take(reader, &handle, entry.file_name(), &path)
        {
            listing.files.push((path, Found::File(file)));
            continue;
        }
        let stat = rustix::fs::statat(&handle, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| vec![unreadable(shown(), error)])?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && path.len() <= MAX_PATH_BYTES {
            listing.folders.push(path);
            continue;
        }
        match RepoPath::from_bytes(&path) {
            Ok(path) => listing.files.push((path, found(&stat, kind))),
            Err(error) => {
                let message = format!("the executor left a file with a refused path: {error}");
                listing
                    .findings
                    .push(Finding::error(Code::PathInvalid, message).at(error.path).hint("rename it, or write it to $TMPDIR"));
            }
        }
    }
    Ok(listing)
}

fn found(stat: &rustix::fs::Stat, kind: FileType) -> Found {
    match kind {
        FileType::RegularFile => Found::File(Regular { print: Print::from(stat), taken: None }),
        FileType::Symlink => Found::Other("a symbolic link"),
        FileType::Fifo => Found::Other("a named pipe"),
        FileType::Socket => Found::Other("a socket"),
        FileType::Directory => Found::Other("a folder"),
        _ => Found::Other("a device"),
    }
}

/// Opens a file that must be regular and have no other name.
fn open(folder: impl AsFd, name: impl rustix::path::Arg, path: &RepoPath) -> Result<Option<(OwnedFd, Stat)>, Finding> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
            return Err(not_regular(path));
        }
        Err(error) => return Err(unreadable(path, error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_regular(path));
    }
    if stat.st_nlink != 1 {
        let message = format!("{path} has {} names; what else writes to it cannot be known", stat.st_nlink);
        return Err(Finding::error(Code::OutputHardLink, message).at(path).hint("copy the file instead of linking it"));
    }
    Ok(Some((file, stat)))
}

/// A regular file to its end, which is expected after `size` bytes, but no more than `limit` bytes.
fn whole(file: &OwnedFd, size: u64, limit: u64) -> rustix::io::Result<Vec<u8>> {
    // With room for one byte more, a single call reads all and shows that there is no more.
    let mut bytes = Vec::with_capacity(size.saturating_add(1).min(limit) as usize);
    while (bytes.len() as u64) < limit {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(64 << 10);
        }
        let room = bytes.capacity() - bytes.len();
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            // Of a regular file, a call gives less than it could only at the end.
            Ok(count) if count < room && bytes.len() as u64 == size => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(limit as usize);
    Ok(bytes)
}

fn no_report(path: &RepoPath) -> Finding {
    Finding::error(Code::ReportMissing, format!("the executor left no report at {path}"))
        .at(path)
        .hint("the request names the place as phase_config.outputs.execution_report")
}

/// Reads the report, which is `name` in `folder`. Nothing, if there is none any more.
fn read_report(folder: &OwnedFd, name: &CStr, (path, phase): (&RepoPath, Phase)) -> Option<Result<GenReport, Vec<Finding>>> {
    let (file, stat) = match open(folder, name, path) {
        Ok(opened) => opened?,
        // What is no regular file is told of by the walk.
        Err(finding) if finding.code == Code::OutputNotRegular => return None,
        Err(finding) => return Some(Err(vec![finding])),
    };
    let bytes = match whole(&file, stat.st_size as u64, MAX_REPORT_BYTES + 1) {
        Ok(bytes) => bytes,
        Err(error) => return Some(Err(vec![unreadable(path, error)])),
    };
    if bytes.len() as u64 > MAX_REPORT_BYTES {
        let message = format!("the executor's report is larger than {MAX_REPORT_BYTES} bytes");
        return Some(Err(vec![Finding::error(Code::ReportInvalid, message).at(path)]));
    }
    Some(parse_report(&bytes, path, phase))
}

fn parse_report(bytes: &[u8], path: &RepoPath, phase: Phase) -> Result<GenReport, Vec<Finding>> {
    // The document's own findings say what is wrong and where; that it is the report that is wrong is the executor's failure.
    let sealed = load::<GenReport>(Kind::ExecutorReport, path, bytes);
    let findings = |findings: Vec<Finding>| findings.into_iter().map(|f| Finding { code: Code::ReportInvalid, ..f }).collect();
    let report = sealed.map_err(findings as fn(Vec<Finding>) -> Vec<Finding>)?.document;
    if report.phase != phase {
        let message = format!("the executor's report is about {}, not {phase}", report.phase);
        return Err(vec![Finding::error(Code::ReportInvalid, message).at(path).pointing("/phase", bytes)]);
    }
    Ok(report)
}

/// What the report says of each declared artifact. What it says beside that, or twice, is a finding.
fn reported<'a>(
    report: &'a GenReport,
    declared: &HashSet<&RepoPath>,
    at: &RepoPath,
    findings: &mut Vec<Finding>,
) -> HashMap<&'a RepoPath, &'a ReportedArtifact> {
    let mut said = HashMap::with_capacity(report.artifacts.len());
    for artifact in &report.artifacts {
        if !declared.contains(&artifact.path) {
            let message = format!("the report lists {}, which is not declared", artifact.path);
            findings.push(Finding::error(Code::OutputUndeclared, message).at(&artifact.path).hint("declare it in gen.artifacts"));
        } else if said.insert(&artifact.path, artifact).is_some() {
            findings.push(Finding::error(Code::ReportInvalid, format!("the report lists {} twice", artifact.path)).at(at));
        }
    }
    said
}

/// Reads the artifact `path`, which is `name` in `folder`. Nothing, if there is none any more.
fn take(reader: &Reader<'_>, folder: &OwnedFd, name: &CStr, path: &RepoPath) -> Option<Regular> {
    let (file, stat) = match open(folder, name, path) {
        Ok(opened) => opened?,
        Err(finding) => {
            let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            return regular.then(|| Regular { print: Print::from(&stat), taken: Some(Err(finding.into())) });
        }
    };
    let (print, size) = (Print::from(&stat), stat.st_size as u64);
    let room = |left: u64| left.checked_sub(size);
    if reader.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
        return Some(Regular { print, taken: None });
    }
    let taken = match whole(&file, size, size.saturating_add(1)) {
        Ok(bytes) if bytes.len() as u64 != size => {
            Err(unreadable(path, "it changed, although nobody is left to change it").into())
        }
        Ok(bytes) => {
            let digest = Digest::of(&bytes);
            Ok((bytes, digest))
        }
        Err(error) => Err(unreadable(path, error).into()),
    };
    Some(Regular { print, taken: Some(taken) })
}

/// Holds an artifact against what the report says of it.
fn hold(path: &RepoPath, bytes: &[u8], digest: Digest, said: Option<&ReportedArtifact>) -> Result<(), Finding> {
    let Some(said) = said else {
        let message = format!("the report does not list {path}");
        return Err(Finding::error(Code::OutputMissing, message).at(path).hint("every declared artifact must be reported"));
    };
    let mismatch = |what: &str, said: String, is: String| {
        let message = format!("the {what} of {path} is not the one that the report gives");
        Finding::error(Code::OutputMismatch, message)
            .at(path)
            .expected(said, is)
            .hint("report what was written, after writing it")
    };
    if said.bytes != bytes.len() as u64 {
        return Err(mismatch("size", format!("{} bytes", said.bytes), format!("{} bytes", bytes.len())));
    }
    if said.hash != digest {
        return Err(mismatch("hash", said.hash.to_string(), digest.to_string()));
    }
    Ok(())
}
