//! git, talking to a remote: within bounds of time and size, and with nobody asked who is not there.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use gix::bstr::ByteSlice as _;

use super::git::GitError;
use super::refs::RefName;
use super::{Oid, Store};

/// Further settings for a git that talks to a remote.
const NETWORK_SETTINGS: [&str; 16] = [
    // One request names the refs that are wanted, and the remote advertises no others.
    "protocol.version=2",
    // A remote's address must not be a command line.
    "protocol.ext.allow=never",
    // Everything that arrives is parsed and checked before it is kept.
    "fetch.fsckObjects=true",
    // What arrives is one file, whose size can be bounded.
    "fetch.unpackLimit=1",
    // Checking that what arrived is connected must not walk every ref of git cbia.
    "fetch.hideRefs=refs/cbia",
    "fetch.writeCommitGraph=false",
    "fetch.output=full",
    "fetch.recurseSubmodules=no",
    "submodule.recurse=false",
    // Larger objects are checked as they stream by, not in memory.
    "core.bigFileThreshold=16m",
    // Objects wait for the disk; what a remote was last seen to have need not.
    "core.fsync=loose-object,pack,pack-metadata",
    // Artifacts are stored whole, and looking for differences between them costs more than it saves.
    "pack.window=0",
    // Two threads at most: a run may be under way beside this.
    "pack.threads=2",
    "push.followTags=false",
    "push.recurseSubmodules=no",
    "maintenance.auto=false",
];

/// How much of each stream of a git that talks to a remote is kept, in bytes.
const MAX_SAID: u64 = 16 << 20;
/// How long a stream is waited for after its git has ended: a helper that stays behind may hold it open.
const STREAM_WAIT: Duration = Duration::from_secs(2);
/// How index-pack calls what it has not yet verified, and leaves behind if it fails.
const HALF_PACK: &str = "tmp_pack_";

/// How far a git that talks to a remote may go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long it may take. Without end where a person is there: who may be asked for a password, and may interrupt it.
    pub wait: Option<Duration>,
    /// The largest file that it may write, in bytes: what the remote sends is one file. As much, but no less than 512 MiB, may each of its
    /// processes hold in memory: a few bytes can stand for a tree of any length, and git reads all but large blobs whole.
    pub max_bytes: u64,
}

/// How a git that talked to a remote ended.
#[derive(Clone, Debug)]
pub(in crate::store) struct Said {
    /// Its exit code was zero.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Store {
    /// Lets git talk to a remote, within `bounds`.
    pub(in crate::store) fn talk(
        &self,
        what: &'static str,
        settings: &[&str],
        arguments: &[String],
        bounds: Bounds,
    ) -> Result<Said, GitError> {
        if self.is_read_only() {
            return Err(GitError::ReadOnly);
        }
        let start = |source| GitError::Start { what, source };
        let mut command = if bounds.wait.is_some() { self.git_alone() } else { self.git_attended() };
        // A relative address of a remote is relative to the top, as it is for git itself.
        let top = std::path::absolute(self.work_dir().unwrap_or(self.git_dir())).map_err(start)?;
        let git_dir: PathBuf = std::path::absolute(self.git_dir()).map_err(start)?;
        command.current_dir(top).env("GIT_DIR", git_dir).env("LC_ALL", "C");
        for setting in NETWORK_SETTINGS.iter().chain(settings) {
            command.args(["-c", setting]);
        }
        command.arg(what).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let before = self.half_packs();
        let mut child = command.spawn().map_err(start)?;
        limit(&child, bounds.max_bytes).map_err(start)?;
        let (stdout, stderr) = (follow(child.stdout.take()), follow(child.stderr.take()));
        let status = wait(&mut child, bounds.wait).map_err(start)?;
        let (stdout, stderr) = (heard(&stdout), heard(&stderr));
        if status.is_none_or(|status| !status.success()) {
            self.sweep_half_packs(&before);
        }
        let Some(status) = status else {
            return Err(GitError::TimedOut { what, wait: bounds.wait.unwrap_or_default() });
        };
        if !status.success() && too_much(&stderr) {
            return Err(GitError::TooMuch { what, limit: bounds.max_bytes });
        }
        Ok(Said { success: status.success(), stdout, stderr })
    }

    /// What index-pack has begun and not finished.
    fn half_packs(&self) -> BTreeSet<PathBuf> {
        let entries = std::fs::read_dir(self.common_dir().join("objects/pack")).into_iter().flatten().flatten();
        let begun = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(HALF_PACK)));
        begun.map(|entry| entry.path()).collect()
    }

    /// Removes what a git that failed has left: otherwise a remote could fill the disk, one refused pack at a time. A file that somebody has open
    /// belongs to a git that is at work beside this one. What stays is for `git gc`.
    fn sweep_half_packs(&self, before: &BTreeSet<PathBuf>) {
        let mut left: BTreeSet<PathBuf> = self.half_packs().difference(before).cloned().collect();
        if !left.is_empty() && keep_closed(&mut left).is_ok() {
            for path in left {
                drop(std::fs::remove_file(path));
            }
        }
    }

    /// Sets refs below `refs/cbia/` in one transaction, without waiting for the disk: for what is only a note of somebody else's state.
    /// `None` as the new value deletes; an expected value is checked, and `Some(None)` expects that there is no such ref.
    pub(in crate::store) fn update_refs(&self, updates: &[RefUpdate]) -> Result<(), GitError> {
        const WHAT: &str = "update-ref";
        if self.is_read_only() {
            return Err(GitError::ReadOnly);
        }
        if updates.is_empty() {
            return Ok(());
        }
        let zero = Oid::null(self.object_hash());
        let mut input = String::from("start\n");
        for RefUpdate { name, new, expected } in updates {
            let old = expected.map(|old| format!(" {}", old.unwrap_or(zero))).unwrap_or_default();
            match new {
                Some(new) => input.push_str(&format!("update {} {new}{old}\n", name.as_str())),
                None => input.push_str(&format!("delete {}{old}\n", name.as_str())),
            }
        }
        input.push_str("prepare\ncommit\n");
        let mut command = self.git();
        command.args(["-c", "core.fsync=none", WHAT, "--stdin", "--no-deref"]);
        let output = self.run_git(WHAT, command, input.as_bytes())?;
        if output.status.success() {
            return Ok(());
        }
        Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() })
    }
}

/// One ref of a transaction.
#[derive(Clone, Debug)]
pub(in crate::store) struct RefUpdate {
    /// The ref.
    pub name: RefName,
    /// What it is to be.
    pub new: Option<Oid>,
    /// What it must be before, if that matters.
    pub expected: Option<Option<Oid>>,
}

/// Bounds the files that a child, and what it starts, may write, and the memory that each of them may have.
#[cfg(target_os = "linux")]
fn limit(child: &Child, bytes: u64) -> io::Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    /// The memory that a git may have however little may arrive, in bytes.
    const LEAST_MEMORY: u64 = 512 << 20;
    for (resource, most) in [(Resource::Fsize, bytes), (Resource::Data, bytes.max(LEAST_MEMORY))] {
        match prlimit(Some(Pid::from_child(child)), resource, Rlimit { current: Some(most), maximum: Some(most) }) {
            // It has ended already.
            Err(rustix::io::Errno::SRCH) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn limit(_: &Child, _: u64) -> io::Result<()> {
    Ok(())
}

/// Takes out what does not belong to this user, and what a process has open.
#[cfg(target_os = "linux")]
fn keep_closed(paths: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let user = rustix::process::geteuid().as_raw();
    paths.retain(|path| path.symlink_metadata().is_ok_and(|data| data.uid() == user));
    let numbers = |path: &PathBuf| path.metadata().map(|data| (data.dev(), data.ino()));
    for process in std::fs::read_dir("/proc")?.flatten() {
        // Processes of others, and those that end meanwhile, cannot be looked into; they have no file of this user's open for writing.
        for open in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if let Ok(open) = numbers(&open.path()) {
                paths.retain(|path| numbers(path).is_ok_and(|numbers| numbers != open));
            }
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn keep_closed(_: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a helper was ended by the limit on files. index-pack then has no last word, and git says only that it heard nothing; of any other
/// end it tells the reason.
fn too_much(stderr: &str) -> bool {
    let mut fatal = stderr.lines().filter(|line| line.starts_with("fatal: ") || line.starts_with("error: "));
    let silent = fatal.next().is_some_and(|line| line.ends_with("invalid index-pack output")) && fatal.next().is_none();
    silent || stderr.contains("died of signal 25") || stderr.contains("File too large")
}

/// Reads a stream to its end in the background, so that neither of two streams blocks the other.
fn follow(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            // What cannot be read is missing from a message, and the exit code says the rest.
            drop(stream.by_ref().take(MAX_SAID).read_to_end(&mut kept));
            drop(io::copy(&mut stream, &mut io::sink()));
        }
        drop(sender.send(kept));
    });
    receiver
}

fn heard(stream: &mpsc::Receiver<Vec<u8>>) -> String {
    stream.recv_timeout(STREAM_WAIT).unwrap_or_default().to_str_lossy().into_owned()
}

/// Waits for a child; after `limit` its whole process group is killed, and there is no status.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else { return child.wait().map(Some) };
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            end(child)?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Ends a child's process group: asked first, because git then takes its lock files and half packs away.
fn end(child: &mut Child) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process_group};
    let group = Pid::from_child(child);
    // A group that is gone already is what is wanted.
    kill_process_group(group, Signal::TERM).ok();
    for _ in 0..50 {
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process_group(group, Signal::KILL).ok();
    child.wait()?;
    Ok(())
}
