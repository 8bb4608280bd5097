//! Repositories made by git itself, for tests.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Oid, Store};

/// A repository in a temporary directory, with no configuration but its own.
pub(crate) struct Repo {
    dir: tempfile::TempDir,
}

impl Repo {
    /// A repository with a work tree.
    pub(crate) fn new() -> Self {
        Self::init(&[])
    }

    /// A repository whose objects are named by SHA-256.
    pub(crate) fn sha256() -> Self {
        Self::init(&["--object-format=sha256"])
    }

    /// A repository as `git init` makes it with these options.
    pub(crate) fn init(options: &[&str]) -> Self {
        let repo = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(repo.path()).unwrap();
        repo.git(&[&["init", "-q", "-b", "main"], options].concat());
        repo
    }

    /// The work tree, or the git directory of a bare repository.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// The directory around the repository, for other things.
    pub(crate) fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// The repository, opened.
    pub(crate) fn store(&self) -> Store {
        Store::open(&self.path()).unwrap()
    }

    /// A git command here, with an empty environment, a private home, and a fixed identity and time.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        #[expect(clippy::disallowed_methods, reason = "tests compare with git itself")]
        let mut command = Command::new("git");
        #[expect(clippy::disallowed_methods, reason = "git and its helpers are found on the tester's path")]
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", self.dir.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "Ada").env(format!("GIT_{role}_EMAIL"), "ada@example.org");
            command.env(format!("GIT_{role}_DATE"), "1700000000 +0100");
        }
        command.current_dir(self.path()).args(args);
        command
    }

    /// What git prints, trimmed; it must succeed.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        self.git_with(args, b"")
    }

    /// What git prints for this input, trimmed; it must succeed.
    pub(crate) fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.try_git(args, input);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What git does with this input.
    pub(crate) fn try_git(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A blob that git wrote.
    pub(crate) fn blob(&self, content: &[u8]) -> Oid {
        id(&self.git_with(&["hash-object", "-w", "--stdin"], content))
    }

    /// An object of any content that git wrote, without checking it.
    pub(crate) fn raw(&self, kind: &str, content: &[u8]) -> Oid {
        id(&self.git_with(&["hash-object", "-t", kind, "--literally", "-w", "--stdin"], content))
    }

    /// A tree of raw entries: mode, name, id.
    pub(crate) fn raw_tree(&self, entries: &[(&str, &[u8], Oid)]) -> Oid {
        let mut content = Vec::new();
        for (mode, name, id) in entries {
            content.extend_from_slice(mode.as_bytes());
            content.push(b' ');
            content.extend_from_slice(name);
            content.push(0);
            content.extend_from_slice(id.as_slice());
        }
        self.raw("tree", &content)
    }

    /// A commit of the files on the current branch.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> Oid {
        for (path, text) in files {
            let path = self.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "a commit"]);
        id(&self.git(&["rev-parse", "HEAD"]))
    }

    /// The file that a loose object is in.
    pub(crate) fn loose_file(&self, id: &Oid) -> PathBuf {
        let hex = id.to_string();
        self.path().join(".git/objects").join(&hex[..2]).join(&hex[2..])
    }

    /// Puts something else under the name of a loose object.
    pub(crate) fn damage(&self, id: &Oid, bytes: &[u8]) {
        let path = self.loose_file(id);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// `git fsck --strict` has nothing to say but that objects are not referred to.
    pub(crate) fn fsck(&self) {
        let output = self.try_git(&["fsck", "--strict", "--no-dangling"], b"");
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("notice: ")).collect();
        assert!(output.status.success() && said.is_empty(), "{said:?}");
    }
}

/// An id from its digits.
pub(crate) fn id(hex: &str) -> Oid {
    Oid::from_hex(hex.as_bytes()).unwrap()
}
