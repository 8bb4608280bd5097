//! The only place that starts git.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
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
    #[error("no commit is signed: this repository was opened for reading only")]
    ReadOnly,
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
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
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
