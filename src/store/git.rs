//! The only place that starts git.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use gix::bstr::ByteSlice as _;

use super::object::ObjectError;
use super::pack::{CommitSpec, Identity};
use super::{Oid, Store};
use crate::document::path::printable;

/// Why git did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program could not be run.
    #[error("cannot run git {what}")]
    Start {
        /// The subcommand.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The program refused.
    #[error("git {what} failed: {}", printable(.stderr))]
    Failed {
        /// The subcommand.
        what: &'static str,
        /// What it said, trimmed.
        stderr: String,
    },
    /// The program's answer is not what it should be.
    #[error("git {what} gave an answer that was not expected: '{}'", printable(.answer))]
    Answer {
        /// The subcommand.
        what: &'static str,
        /// The answer.
        answer: String,
    },
    /// git cannot write such a commit.
    #[error("a signed commit cannot have the header '{}'", printable(.header))]
    Header {
        /// The header's key.
        header: String,
    },
    /// The remote did not answer in time.
    #[error("git {what} took longer than {} s, and was ended", .wait.as_secs())]
    TimedOut {
        /// The subcommand.
        what: &'static str,
        /// How long it was waited for.
        wait: Duration,
    },
    /// The remote sent more than is accepted.
    #[error("git {what} was ended: the remote sent more than {limit} bytes")]
    TooMuch {
        /// The subcommand.
        what: &'static str,
        /// The most that is accepted, in bytes.
        limit: u64,
    },
    /// The repository was opened for reading only.
    #[error("nothing is signed: this repository was opened for reading only")]
    ReadOnly,
    /// A file that git is to be given cannot be written.
    #[error("cannot write what git {what} is to read")]
    Scratch {
        /// The subcommand.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// It took longer than it may.
    #[error("git {what} gave no answer in {seconds} seconds")]
    Slow {
        /// The subcommand.
        what: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The commit that git wrote cannot be read back.
    #[error("the commit that git signed cannot be read back")]
    ReadBack(#[from] ObjectError),
}

/// Variables that would point git at another repository, index or object store than the one that is open, or give
/// objects other contents than their names say. `git rev-parse --local-env-vars` lists them; those of configuration are
/// left, because they are the user's own settings.
const REDIRECTIONS: [&str; 13] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
    "GIT_DIR",
];

/// Settings for every git that is started, each with its reason.
const SETTINGS: [&str; 5] = [
    // A repository must not start programs of its own while it is looked at.
    "core.fsmonitor=",
    "core.hooksPath=/dev/null",
    // An object is what its name says.
    "core.useReplaceRefs=false",
    // What git writes for us survives a power cut as what we write ourselves does.
    "core.fsync=loose-object,pack,pack-metadata,reference",
    // Nothing runs on afterwards in the background.
    "gc.auto=0",
];

impl Store {
    /// A git command on this repository, with nobody there to answer.
    pub(in crate::store) fn git(&self) -> Command {
        let mut command = self.git_attended();
        command.env("GIT_TERMINAL_PROMPT", "0");
        command
    }

    /// The same in a process group of its own, so that its helpers can be ended with it. Where a person is there it stays in the terminal's
    /// group instead, so that Ctrl-C reaches all of them.
    pub(in crate::store) fn git_alone(&self) -> Command {
        let mut command = self.git();
        command.process_group(0);
        command
    }

    /// A git command on this repository.
    pub(in crate::store) fn git_attended(&self) -> Command {
        let mut command = self.git_as_configured();
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command
    }

    /// The same without our settings: for what git itself would do.
    fn git_as_configured(&self) -> Command {
        #[expect(clippy::disallowed_methods, reason = "this is the one place of the store that starts processes")]
        let mut command = Command::new("git");
        for variable in REDIRECTIONS {
            command.env_remove(variable);
        }
        command
            // The directory is given, so that the search for it cannot end elsewhere.
            .env("GIT_DIR", self.git_dir())
            // Without a work tree given, git would take the current directory for it.
            .env("GIT_GRAFT_FILE", "/dev/null")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            // A partial clone must not go to the network for an object behind our back.
            .env("GIT_NO_LAZY_FETCH", "1")
            // Reading must not take locks that a user's own git waits for.
            .env("GIT_OPTIONAL_LOCKS", "0");
        command
    }

    pub(in crate::store) fn run_git(&self, what: &'static str, mut command: Command, input: &[u8]) -> Result<Output, GitError> {
        let start = |source| GitError::Start { what, source };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(start)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input) {
                // A git that fails before it reads says why on its standard error.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(start(error)),
                _ => {}
            }
        }
        child.wait_with_output().map_err(start)
    }

    /// Writes a commit signed as git is configured to sign, and reads it back. Its tree and parents must be in the
    /// repository already; the passphrase prompt is the signing program's own.
    pub fn commit_signed(&self, spec: &CommitSpec) -> Result<Oid, GitError> {
        const WHAT: &str = "commit-tree";
        if self.is_read_only() {
            return Err(GitError::ReadOnly);
        }
        if let Some((header, _)) = spec.extra_headers.first() {
            return Err(GitError::Header { header: header.clone() });
        }
        let mut command = self.git();
        for (role, identity) in [("AUTHOR", &spec.author), ("COMMITTER", &spec.committer)] {
            command
                .env(format!("GIT_{role}_NAME"), Identity::clean(&identity.name))
                .env(format!("GIT_{role}_EMAIL"), Identity::clean(&identity.email))
                // '@' keeps small numbers from being read as a date in words.
                .env(format!("GIT_{role}_DATE"), format!("@{}", identity.time()));
        }
        // The message is UTF-8; another setting would add a header that says otherwise.
        command.args(["-c", "i18n.commitEncoding=UTF-8", WHAT, "-S", &spec.tree.to_string()]);
        for parent in &spec.parents {
            command.args(["-p", &parent.to_string()]);
        }
        command.args(["-F", "-"]);
        let output = self.run_git(WHAT, command, spec.message.as_bytes())?;
        if !output.status.success() {
            return Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() });
        }
        let wrong = |answer: String| GitError::Answer { what: WHAT, answer };
        let id = Oid::from_hex(output.stdout.trim()).map_err(|_| wrong(output.stdout.to_str_lossy().into_owned()))?;
        let commit = self.read_commit(&id)?;
        if commit.tree != spec.tree || commit.parents != spec.parents || commit.message.trim_end() != spec.message.trim_end() {
            return Err(wrong(id.to_string()));
        }
        Ok(id)
    }

    /// Runs a git command on `index`, a file of its own rather than the repository's index; both paths are absolute. Its standard output.
    /// What it says of a work tree is about `work_tree`, where one is given.
    pub(in crate::store) fn on_index<A: AsRef<OsStr>>(
        &self,
        what: &'static str,
        index: &Path,
        work_tree: Option<&Path>,
        arguments: &[A],
        input: &[u8],
    ) -> Result<Vec<u8>, GitError> {
        let mut command = self.git();
        command.env("GIT_INDEX_FILE", index);
        if let Some(work_tree) = work_tree {
            command.env("GIT_WORK_TREE", work_tree);
        }
        command.arg(what).args(arguments);
        let output = self.run_git(what, command, input)?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(GitError::Failed { what, stderr: output.stderr.trim().to_str_lossy().into_owned() }),
        }
    }

    /// What a git command on this repository prints. Its arguments are ours; what is long goes to its standard input.
    pub(in crate::store) fn answer(&self, what: &'static str, arguments: &[&str], input: &[u8]) -> Result<String, GitError> {
        let mut command = self.git();
        command.arg(what).args(arguments);
        let output = self.run_git(what, command, input)?;
        match output.status.success() {
            true => Ok(output.stdout.to_str_lossy().into_owned()),
            false => Err(GitError::Failed { what, stderr: output.stderr.trim().to_str_lossy().into_owned() }),
        }
    }

    /// Writes a commit by the identity and at the time that git itself takes, or refuses to take; signed where git is configured to sign.
    pub(in crate::store) fn commit_as_operator(
        &self,
        tree: &Oid,
        parent: Option<&Oid>,
        message: &str,
        sign: bool,
    ) -> Result<Oid, GitError> {
        const WHAT: &str = "commit-tree";
        let mut command = self.git();
        command.args(["-c", "i18n.commitEncoding=UTF-8", WHAT, &tree.to_string()]);
        if sign {
            command.arg("-S");
        }
        if let Some(parent) = parent {
            command.args(["-p", &parent.to_string()]);
        }
        command.args(["-F", "-"]);
        let output = self.run_git(WHAT, command, message.as_bytes())?;
        if !output.status.success() {
            return Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() });
        }
        let answer = || output.stdout.to_str_lossy().into_owned();
        Oid::from_hex(output.stdout.trim()).map_err(|_| GitError::Answer { what: WHAT, answer: answer() })
    }

    /// Locks `HEAD`, and the branch that it is on, for a change from `old` to `new`. The inner error says that it is not `old`, or that
    /// somebody else has the lock. What is prepared and never committed, because this process dies too, is undone by git.
    pub(in crate::store) fn prepare_head(
        &self,
        new: &Oid,
        old: Option<&Oid>,
        reason: &str,
    ) -> Result<Result<PreparedHead, String>, GitError> {
        const WHAT: &str = "update-ref";
        let mut command = self.git();
        command.args([WHAT, "-m", reason, "--stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = |source| GitError::Start { what: WHAT, source };
        let mut child = command.spawn().map_err(start)?;
        let answers = child.stdout.take().map(BufReader::new);
        let mut prepared = PreparedHead { child, answers };
        let none = Oid::null(self.object_hash()).to_string();
        let old = old.map_or(none, ToString::to_string);
        prepared.say(&format!("start\nupdate HEAD {new} {old}\nprepare\n"));
        if prepared.hears("start: ok") && prepared.hears("prepare: ok") { Ok(Ok(prepared)) } else { Ok(Err(prepared.why())) }
    }

    /// A configuration value as git itself sees it, `git -c` included; `None` if unset.
    pub fn config_get(&self, key: &str) -> Result<Option<String>, GitError> {
        const WHAT: &str = "config";
        let mut command = self.git();
        command.args([WHAT, "--null", "--get", key]);
        let output = self.run_git(WHAT, command, b"")?;
        match output.status.code() {
            Some(0) => Ok(Some(output.stdout.trim_end_with(|c| c == '\0').to_str_lossy().into_owned())),
            Some(1) => Ok(None),
            _ => Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() }),
        }
    }
}

/// `core.hooksPath`, and the configuration that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HooksPath {
    /// `system`, `global`, `local`, `worktree` or `command`.
    pub scope: String,
    /// The folder as configured, `~` expanded; relative to the top of the work tree, or to a bare repository.
    pub path: PathBuf,
}

/// What a remote said to one ref of a push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The ref on the remote.
    pub name: String,
    /// git's mark: `*` created, `-` deleted, `+` forced, a space for a fast-forward, `=` up to date, `!` refused.
    pub mark: char,
    /// The reason in parentheses, or the summary.
    pub said: String,
}

/// How long a remote is waited for by a command that only asks.
const REMOTE_WAIT: Duration = Duration::from_secs(120);
/// The folder, inside the common directory, of files that live as long as one command.
const SCRATCH: &str = "cbia";

impl Store {
    /// The command where a hook of this repository would run: at the top of the work tree, or in the bare repository. What the user's
    /// configuration says is relative to it.
    fn at_top(&self, mut command: Command) -> Result<Command, GitError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|source| GitError::Start { what: "rev-parse", source });
        command.env("GIT_DIR", absolute(self.git_dir())?);
        command.current_dir(self.work_dir().unwrap_or(self.git_dir()));
        if let Some(top) = self.work_dir() {
            command.env("GIT_WORK_TREE", absolute(top)?);
        }
        // What git says is read by a program.
        command.env("LC_ALL", "C");
        Ok(command)
    }

    /// The object id of a signed, annotated tag on `target`, as `git tag -s` writes it with the key that git is configured to use. No
    /// ref is made: a hook takes the id and stops git where it would make one, so that nobody ever sees a tag in `refs/tags/`.
    pub(in crate::store) fn sign_tag(&self, name: &str, target: &Oid, message: &str) -> Result<Oid, GitError> {
        const WHAT: &str = "tag";
        const HOOK: &str = "#!/bin/sh\ncat >>\"$0.seen\"\nexit 1\n";
        if self.is_read_only() {
            return Err(GitError::ReadOnly);
        }
        let scratch = |source| GitError::Scratch { what: WHAT, source };
        let folder = self.common_dir().join(SCRATCH);
        self.create_dirs(&folder, self.common_dir()).map_err(scratch)?;
        let hooks = tempfile::Builder::new().prefix("sign-").tempdir_in(&folder).map_err(scratch)?;
        let hook = std::path::absolute(hooks.path().join("reference-transaction")).map_err(scratch)?;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&hook);
        file.and_then(|mut file| file.write_all(HOOK.as_bytes())).map_err(scratch)?;
        let mut command = self.at_top(self.git())?;
        let mut setting = std::ffi::OsString::from("core.hooksPath=");
        setting.push(hook.parent().unwrap_or(&hook));
        command.arg("-c").arg(setting).args(["-c", "i18n.commitEncoding=UTF-8", WHAT, "-s", "--cleanup=verbatim", "-F", "-"]);
        command.args([name, &target.to_string()]);
        let output = self.run_git(WHAT, command, message.as_bytes())?;
        let seen = std::fs::read_to_string(hook.with_extension("seen")).unwrap_or_default();
        let id = seen.split(' ').nth(1).and_then(|id| Oid::from_hex(id.as_bytes()).ok());
        match id {
            Some(id) if !output.status.success() => Ok(id),
            None if !output.status.success() => {
                Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() })
            }
            // Where the hook could not run, git made the tag.
            _ => {
                let mut command = self.at_top(self.git())?;
                command.args(["update-ref", "--no-deref", "-d", &format!("refs/tags/{name}")]);
                self.run_git("update-ref", command, b"")?;
                Err(GitError::Answer { what: WHAT, answer: "git ran no hook".to_owned() })
            }
        }
    }

    /// What `git verify-tag --raw` says of a tag: whether it is satisfied, and its words. `tag` is the object's content; it is looked at
    /// outside the repository, so that a tag inside a quarantine, or of no repository, is judged alike. `allowed` are the signers, in
    /// git's allowed-signers format: no other signer of an ssh signature is believed, whatever git is configured to believe.
    pub(in crate::store) fn verify_tag(&self, tag: &[u8], allowed: &[u8]) -> Result<(bool, String), GitError> {
        const WHAT: &str = "verify-tag";
        let scratch = |source| GitError::Scratch { what: WHAT, source };
        let folder = tempfile::tempdir().map_err(scratch)?;
        let signers = folder.path().join("allowed_signers");
        std::fs::write(&signers, allowed).map_err(scratch)?;
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects).map_err(scratch)?;
        let outside = |command: &mut Command| {
            command.env("GIT_OBJECT_DIRECTORY", &objects);
            // A validity without a zone is meant in the same zone everywhere.
            command.env("TZ", "UTC");
        };
        let mut command = self.at_top(self.git())?;
        outside(&mut command);
        command.args(["hash-object", "-t", "tag", "-w", "--stdin"]);
        let output = self.run_git("hash-object", command, tag)?;
        if !output.status.success() {
            return Ok((false, output.stderr.trim().to_str_lossy().into_owned()));
        }
        let mut command = self.at_top(self.git())?;
        outside(&mut command);
        let mut setting = std::ffi::OsString::from("gpg.ssh.allowedSignersFile=");
        setting.push(&signers);
        command.arg("-c").arg(setting).args([WHAT, "--raw", output.stdout.trim().to_str_lossy().as_ref()]);
        let output = self.run_git(WHAT, command, b"")?;
        Ok((output.status.success(), output.stderr.trim().to_str_lossy().into_owned()))
    }

    /// `core.hooksPath` as git sees it; `None` if it is not set.
    pub(in crate::store) fn hooks_path(&self) -> Result<Option<HooksPath>, GitError> {
        const WHAT: &str = "config";
        let mut command = self.at_top(self.git_as_configured())?;
        command.args([WHAT, "--null", "--show-scope", "--type=path", "--get", "core.hooksPath"]);
        let output = self.run_git(WHAT, command, b"")?;
        match output.status.code() {
            Some(0) => {}
            Some(1) => return Ok(None),
            _ => return Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() }),
        }
        let mut fields = output.stdout.split(|byte| *byte == 0);
        match (fields.next(), fields.next()) {
            (Some(scope), Some(path)) => {
                Ok(Some(HooksPath { scope: scope.to_str_lossy().into_owned(), path: path.to_path_lossy().into_owned() }))
            }
            _ => Err(GitError::Answer { what: WHAT, answer: output.stdout.to_str_lossy().into_owned() }),
        }
    }

    /// The names of the configured remotes.
    pub fn remotes(&self) -> Result<Vec<String>, GitError> {
        let mut command = self.at_top(self.git())?;
        command.arg("remote");
        let output = self.run_git("remote", command, b"")?;
        let names = output.stdout.split_str("\n").filter(|name| !name.is_empty());
        Ok(names.map(|name| name.to_str_lossy().into_owned()).collect())
    }

    /// Where `git push <remote>` goes: the address of a configured remote, every rewriting done; another text is its own address.
    pub fn push_address(&self, remote: &str) -> Result<String, GitError> {
        let mut command = self.at_top(self.git())?;
        command.args(["remote", "get-url", "--push", "--", remote]);
        let output = self.run_git("remote", command, b"")?;
        Ok(if output.status.success() { output.stdout.trim().to_str_lossy().into_owned() } else { remote.to_owned() })
    }

    /// What the remote has under exactly this ref name; `None` if nothing.
    pub fn remote_ref(&self, remote: &str, name: &str) -> Result<Option<Oid>, GitError> {
        const WHAT: &str = "ls-remote";
        let mut command = self.at_top(self.git())?;
        command.args([WHAT, "--quiet", "--", remote, name]);
        let output = self.run_within(WHAT, command, REMOTE_WAIT)?;
        if !output.status.success() {
            return Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() });
        }
        let found = output.stdout.split_str("\n").filter_map(|line| line.split_once_str("\t"));
        let mut exact = found.filter(|(_, found)| *found == name.as_bytes());
        Ok(exact.find_map(|(id, _)| Oid::from_hex(id).ok()))
    }

    /// Pushes these refspecs in one transaction, past this repository's own hooks, and gives the remote's answer to each of them. `leases`
    /// are refs with what they must be on the remote (`None`: not there); of one that is something else, nothing is offered.
    pub fn offer(&self, remote: &str, refspecs: &[String], leases: &[(String, Option<Oid>)]) -> Result<Vec<Answered>, GitError> {
        const WHAT: &str = "push";
        let mut command = self.at_top(self.git())?;
        // Tags that happen to be reachable, submodules and push options are nobody's business here.
        command.args(["-c", "push.followTags=false", "-c", "push.recurseSubmodules=no", "-c", "push.pushOption=", WHAT]);
        command.args(["--porcelain", "--atomic", "--no-verify", "--no-signed"]);
        for (name, expected) in leases {
            let expected = expected.map(|id| id.to_string()).unwrap_or_default();
            command.arg(format!("--force-with-lease={name}:{expected}"));
        }
        command.args(["--", remote]).args(refspecs);
        let output = self.run_within(WHAT, command, REMOTE_WAIT)?;
        let mut answers = Vec::new();
        for line in output.stdout.split_str("\n") {
            let line = line.to_str_lossy();
            let mut fields = line.split('\t');
            let (Some(mark), Some(names), Some(said)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let (Some(mark), Some((_, name))) = (mark.chars().next(), names.rsplit_once(':')) else { continue };
            answers.push(Answered { name: name.to_owned(), mark, said: said.to_owned() });
        }
        if answers.is_empty() {
            return Err(GitError::Failed { what: WHAT, stderr: output.stderr.trim().to_str_lossy().into_owned() });
        }
        Ok(answers)
    }

    /// What `git cbia --version` prints where a hook would run; `None` if git finds no git-cbia there.
    pub fn cbia_found(&self) -> Result<Option<String>, GitError> {
        const WHAT: &str = "cbia";
        let mut command = self.at_top(self.git_as_configured())?;
        command.args([WHAT, "--version"]);
        let output = self.run_within(WHAT, command, Duration::from_secs(20))?;
        Ok(output.status.success().then(|| output.stdout.trim().to_str_lossy().into_owned()))
    }

    /// Runs a command that may never end: it and what it started are killed after `limit`.
    fn run_within(&self, what: &'static str, mut command: Command, limit: Duration) -> Result<Output, GitError> {
        let start = |source| GitError::Start { what, source };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(start)?;
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || drop(ended.send(child.wait_with_output())));
        match end.recv_timeout(limit) {
            Ok(output) => output.map_err(start),
            Err(_) => {
                if let Some(group) = group {
                    // One that has just ended needs no killing.
                    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
                }
                Err(GitError::Slow { what, seconds: limit.as_secs() })
            }
        }
    }
}

/// A change of `HEAD` that git has locked and not made yet.
pub(in crate::store) struct PreparedHead {
    child: Child,
    answers: Option<BufReader<ChildStdout>>,
}

impl PreparedHead {
    /// Makes the change.
    pub(in crate::store) fn commit(mut self) -> Result<(), GitError> {
        self.say("commit\n");
        if self.hears("commit: ok") { Ok(()) } else { Err(GitError::Failed { what: "update-ref", stderr: self.why() }) }
    }

    fn say(&mut self, text: &str) {
        // A git that ended before it read says why, and gives no answer.
        if let Some(stdin) = &mut self.child.stdin {
            drop(stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()));
        }
    }

    fn hears(&mut self, wanted: &str) -> bool {
        let mut line = String::new();
        let read = self.answers.as_mut().map(|answers| answers.read_line(&mut line));
        matches!(read, Some(Ok(_))) && line.trim_end() == wanted
    }

    /// What git said on its standard error before it ended.
    fn why(&mut self) -> String {
        drop(self.child.stdin.take());
        let mut said = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            drop(stderr.take(4096).read_to_end(&mut said));
        }
        said.trim().to_str_lossy().into_owned()
    }
}

impl Drop for PreparedHead {
    fn drop(&mut self) {
        // At the end of its input git gives back what it has locked and not changed.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Repo;
    use super::*;

    fn spec(repo: &Repo) -> CommitSpec {
        let parent = repo.commit(&[("f", "a")]);
        let tree = repo.store().tree_of(&parent).unwrap();
        let mut spec = CommitSpec::fixed(tree, vec![parent], "subject\n\nCbia-Phase: GEN\n".into());
        spec.author.name = "Ada".into();
        spec
    }

    #[test]
    fn a_commit_is_signed_as_configured_and_nothing_else_runs() {
        let repo = Repo::new();
        let key = repo.outside().join("key");
        #[expect(clippy::disallowed_methods, reason = "the test needs a key that ssh itself made")]
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        if !made.is_ok_and(|status| status.success()) {
            return;
        }
        let evil = format!("touch {}", repo.outside().join("evil").display());
        for (name, value) in [("gpg.format", "ssh"), ("user.signingKey", key.to_str().unwrap()), ("core.fsmonitor", &evil)] {
            repo.git(&["config", name, value]);
        }
        let spec = spec(&repo);
        drop(std::fs::remove_file(repo.outside().join("evil")));
        let store = repo.store();
        let id = store.commit_signed(&spec).unwrap();
        let commit = store.read_commit(&id).unwrap();
        assert_eq!(commit.author, "Ada <git-cbia@localhost> 0 +0000");
        assert!(commit.extra_headers.iter().any(|(key, value)| key == "gpgsig" && value.contains("SSH SIGNATURE")));
        assert!(!repo.outside().join("evil").exists());
        assert_eq!(store.config_get("gpg.format").unwrap().as_deref(), Some("ssh"));
        assert_eq!(store.config_get("gpg.none").unwrap(), None);
        assert!(matches!(store.config_get("nosection"), Err(GitError::Failed { .. }) | Ok(None)));
    }

    #[test]
    fn a_signature_that_cannot_be_made_is_an_error() {
        let repo = Repo::new();
        repo.git(&["config", "gpg.format", "ssh"]);
        repo.git(&["config", "user.signingKey", "/nonexistent/key"]);
        let spec = spec(&repo);
        assert!(matches!(repo.store().commit_signed(&spec), Err(GitError::Failed { .. })));
        let headed = CommitSpec { extra_headers: vec![("x".into(), "y".into())], ..spec };
        assert!(matches!(repo.store().commit_signed(&headed), Err(GitError::Header { .. })));
    }
}
