//! What an executor left in its scratch directory, after the last of its processes is dead: the report, and exactly the declared artifacts.
//!
//! Nothing it says is believed: every file is opened without following links, must be regular and have one name, and its size and hash are
//! those of the bytes that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

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
/// Fewer files than this are not worth a thread.
const SMALLEST_PART: usize = 64;
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

/// Harvests `outputs`. The request, which git cbia itself wrote, is left unread.
pub fn harvest(
    scratch: &Scratch,
    outputs: &Outputs,
    phase: Phase,
    request: &RepoPath,
    bounds: &Bounds,
) -> Result<Harvest, Vec<Finding>> {
    let declared: BTreeSet<&RepoPath> = outputs.artifacts.iter().collect();
    let mut found = walk(scratch, bounds)?;
    let mut findings = std::mem::take(&mut found.findings);
    for (path, kind) in &found.files {
        let expected =
            declared.contains(path) || path == &outputs.execution_report || path == &outputs.outputs_manifest || path == request;
        match kind {
            Found::File(print) if scratch.inputs.contains_key(path) => {
                if scratch.inputs.get(path) != Some(print) {
                    let message = format!("the executor changed its input {path}");
                    findings.push(
                        Finding::error(Code::ExecutorInputChanged, message).at(path).hint("write to the declared outputs only"),
                    );
                }
            }
            // No mode is ever harvested. A repair that sets one has tried what it may not, and is told so.
            Found::File(print) if phase == Phase::Repair && declared.contains(path) && print.is_executable() => {
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
    let report = match found.absent(&outputs.execution_report) {
        None => report(scratch, &outputs.execution_report, phase),
        Some(_) if matches!(found.files.get(&outputs.execution_report), Some(Found::Other(_))) => Err(Vec::new()),
        Some(finding) if finding.code == Code::OutputMissing => Err(vec![no_report(&outputs.execution_report)]),
        Some(finding) => Err(vec![finding]),
    };
    let report = match report {
        Ok(report) => report,
        Err(more) => {
            findings.extend(more);
            return Err(cut(findings));
        }
    };
    let said = reported(&report, &declared, &outputs.execution_report, &mut findings);
    let mut wanted = Vec::new();
    let mut left = bounds.output_bytes;
    for path in declared {
        if let Some(finding) = found.absent(path) {
            if !matches!(found.files.get(path), Some(Found::Other(_))) {
                findings.push(finding.hint("every declared artifact must be produced"));
            }
            continue;
        }
        let Some(Found::File(print)) = found.files.get(path) else { continue };
        let Some(rest) = left.checked_sub(print.bytes()) else {
            let message = format!("the artifacts are larger than the limit: {path} goes beyond it");
            findings.push(Finding::error(Code::OutputTooLarge, message).at(path).hint("sandbox.limits.output_bytes allows more"));
            break;
        };
        left = rest;
        wanted.push((path, print.bytes()));
    }
    let mut artifacts = BTreeMap::new();
    let taken = in_parallel(&wanted, |(path, bytes)| take(scratch, path, *bytes, said.get(path).copied()));
    for ((path, _), taken) in wanted.iter().zip(taken) {
        match taken {
            Ok(bytes) => drop(artifacts.insert((*path).clone(), bytes)),
            Err(finding) => findings.push(finding),
        }
    }
    if findings.is_empty() { Ok(Harvest { artifacts, tool_versions: report.tool_versions }) } else { Err(cut(findings)) }
}

/// What `action` gives for each item, in their order.
fn in_parallel<T: Sync, R: Send>(items: &[T], action: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = items.len().div_ceil(threads).max(SMALLEST_PART);
    if items.len() <= part {
        return items.iter().map(action).collect();
    }
    std::thread::scope(|scope| {
        let action = &action;
        let start = |part| scope.spawn(move || Vec::from_iter(<[T]>::iter(part).map(action)));
        let parts: Vec<_> = items.chunks(part).map(start).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
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

enum Found {
    File(Print),
    Other(&'static str),
}

#[derive(Default)]
struct Walk {
    files: BTreeMap<RepoPath, Found>,
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

/// Everything in the tree.
fn walk(scratch: &Scratch, bounds: &Bounds) -> Result<Walk, Vec<Finding>> {
    let mut walk = Walk::default();
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    let mut entries = 0;
    while let Some(folder) = waiting.pop() {
        let shown = || printable(&String::from_utf8_lossy(&folder));
        let name: &[u8] = if folder.is_empty() { b"." } else { &folder };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(scratch.folder(), name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(error) => {
                walk.findings.push(unreadable(shown(), error));
                continue;
            }
        };
        let listed = rustix::fs::Dir::read_from(&handle).map_err(|error| vec![unreadable(shown(), error)])?;
        for entry in listed {
            let entry = entry.map_err(|error| vec![unreadable(shown(), error)])?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            entries += 1;
            if entries > bounds.output_files {
                let message = format!("the executor left more than {} files", bounds.output_files);
                return Err(vec![
                    Finding::error(Code::OutputTooLarge, message)
                        .hint("sandbox.limits.output_files allows more; $TMPDIR is not counted"),
                ]);
            }
            let mut path = folder.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.file_name().to_bytes());
            let stat = rustix::fs::statat(&handle, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|error| vec![unreadable(shown(), error)])?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory && path.len() <= MAX_PATH_BYTES {
                walk.folders.insert(path.clone());
                waiting.push(path);
                continue;
            }
            match RepoPath::from_bytes(&path) {
                Ok(path) => drop(walk.files.insert(path, found(&stat, kind))),
                Err(error) => {
                    let message = format!("the executor left a file with a refused path: {error}");
                    walk.findings.push(
                        Finding::error(Code::PathInvalid, message).at(error.path).hint("rename it, or write it to $TMPDIR"),
                    );
                }
            }
        }
    }
    Ok(walk)
}

fn found(stat: &rustix::fs::Stat, kind: FileType) -> Found {
    match kind {
        FileType::RegularFile => Found::File(Print::from(stat)),
        FileType::Symlink => Found::Other("a symbolic link"),
        FileType::Fifo => Found::Other("a named pipe"),
        FileType::Socket => Found::Other("a socket"),
        FileType::Directory => Found::Other("a folder"),
        _ => Found::Other("a device"),
    }
}

/// Reads at most `limit` bytes of a file that must be regular and have no other name.
fn read(scratch: &Scratch, path: &RepoPath, limit: u64) -> Result<Option<Vec<u8>>, Finding> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(scratch.folder(), path.as_str(), flags, Mode::empty()) {
        Ok(file) => File::from(file),
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
    let mut bytes = Vec::with_capacity((stat.st_size as u64).min(limit) as usize);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
    Ok(Some(bytes))
}

fn no_report(path: &RepoPath) -> Finding {
    Finding::error(Code::ReportMissing, format!("the executor left no report at {path}"))
        .at(path)
        .hint("the request names the place as phase_config.outputs.execution_report")
}

fn report(scratch: &Scratch, path: &RepoPath, phase: Phase) -> Result<GenReport, Vec<Finding>> {
    let bytes = match read(scratch, path, MAX_REPORT_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(vec![no_report(path)]),
        Err(finding) => return Err(vec![finding]),
    };
    if bytes.len() as u64 > MAX_REPORT_BYTES {
        let message = format!("the executor's report is larger than {MAX_REPORT_BYTES} bytes");
        return Err(vec![Finding::error(Code::ReportInvalid, message).at(path)]);
    }
    // The document's own findings say what is wrong and where; that it is the report that is wrong is the executor's failure.
    let sealed = load::<GenReport>(Kind::ExecutorReport, path, &bytes);
    let findings = |findings: Vec<Finding>| findings.into_iter().map(|f| Finding { code: Code::ReportInvalid, ..f }).collect();
    let report = sealed.map_err(findings as fn(Vec<Finding>) -> Vec<Finding>)?.document;
    if report.phase != phase {
        let message = format!("the executor's report is about {}, not {phase}", report.phase);
        return Err(vec![Finding::error(Code::ReportInvalid, message).at(path).pointing("/phase", &bytes)]);
    }
    Ok(report)
}

/// What the report says of each declared artifact. What it says beside that, or twice, is a finding.
fn reported<'a>(
    report: &'a GenReport,
    declared: &BTreeSet<&RepoPath>,
    at: &RepoPath,
    findings: &mut Vec<Finding>,
) -> BTreeMap<&'a RepoPath, &'a ReportedArtifact> {
    let mut said = BTreeMap::new();
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

/// An artifact's bytes, if they are what the report says.
fn take(scratch: &Scratch, path: &RepoPath, size: u64, said: Option<&ReportedArtifact>) -> Result<Vec<u8>, Finding> {
    let missing = |message: String| Finding::error(Code::OutputMissing, message).at(path);
    let Some(bytes) = read(scratch, path, size)? else {
        return Err(missing(format!("the executor did not write {path}")).hint("every declared artifact must be produced"));
    };
    if bytes.len() as u64 != size {
        return Err(unreadable(path, "it changed, although nobody is left to change it"));
    }
    let Some(said) = said else {
        return Err(missing(format!("the report does not list {path}")).hint("every declared artifact must be reported"));
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
    let digest = Digest::of(&bytes);
    if said.hash != digest {
        return Err(mismatch("hash", said.hash.to_string(), digest.to_string()));
    }
    Ok(bytes)
}
