//! Work trees made by git itself, for the tests of scanning and materialising.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::document::glob::Globs;
use crate::document::path::RepoPath;

use super::Store;
use super::snapshot::{Scan, ScanLimits, Wanted};

/// A repository in a folder of its own, and git run in it without anybody's configuration.
pub(in crate::store) struct Fixture {
    top: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub(in crate::store) fn new() -> Self {
        Self::with(&["init", "-q", "-b", "main", "."])
    }

    pub(in crate::store) fn with(init: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("work tree");
        std::fs::create_dir(&top).unwrap();
        let fixture = Self { top, _folder: folder };
        fixture.git(init);
        fixture
    }

    /// The same repository, seen from another work tree of it.
    pub(in crate::store) fn linked(self) -> Self {
        let top = self.top.with_file_name("linked");
        self.git(&["worktree", "add", "-q", top.to_str().unwrap()]);
        Self { top, _folder: self._folder }
    }

    pub(in crate::store) fn top(&self) -> &Path {
        &self.top
    }

    #[expect(clippy::disallowed_methods, reason = "tests compare with git itself")]
    pub(in crate::store) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(&self.top).args(["-c", "user.name=T", "-c", "user.email=t@example.org"]).args(args);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/nonexistent");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    pub(in crate::store) fn git(&self, args: &[&str]) -> String {
        self.git_env(args, &[])
    }

    pub(in crate::store) fn git_env(&self, args: &[&str], env: &[(&str, &str)]) -> String {
        let output = self.command(args).envs(env.iter().copied()).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Writes files of the work tree, with their folders.
    pub(in crate::store) fn write(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = self.top.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    pub(in crate::store) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.top.join(path)).unwrap()
    }

    pub(in crate::store) fn commit_all(&self) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
    }

    pub(in crate::store) fn store(&self) -> Store {
        Store::open(&self.top).unwrap()
    }

    pub(in crate::store) fn scan(&self, globs: &[&str]) -> Scan {
        self.scan_with(globs, &[], ScanLimits::default())
    }

    pub(in crate::store) fn scan_with(&self, globs: &[&str], exact: &[&str], limits: ScanLimits) -> Scan {
        let exact: Vec<RepoPath> = exact.iter().map(|path| path.parse().unwrap()).collect();
        let globs = Globs::new(globs).unwrap();
        let wanted = Wanted { globs: &globs, exact: &exact, exclude: &|path| path.as_str().ends_with(".excluded") };
        self.store().scan_worktree(&wanted, limits).unwrap()
    }

    /// Paths and object ids of the regular files that `git add -A` would store, as far as the patterns match.
    pub(in crate::store) fn as_git_adds(&self, globs: &[&str]) -> BTreeMap<String, String> {
        let index = self.top.with_file_name("oracle-index");
        let own = PathBuf::from(self.git(&["rev-parse", "--absolute-git-dir"])).join("index");
        drop(std::fs::remove_file(&index));
        if own.exists() {
            std::fs::copy(&own, &index).unwrap();
            // A copy that is newer than the index it was made from would vouch for files that changed after it: git compares the times.
            let time = std::fs::metadata(&own).unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(&index).unwrap().set_modified(time).unwrap();
        }
        let env = [("GIT_INDEX_FILE", index.to_str().unwrap())];
        self.git_env(&["add", "-A", "."], &env);
        let globs = Globs::new(globs).unwrap();
        let listing = self.git_env(&["ls-files", "-s", "-z"], &env);
        let entries = listing.split('\0').filter_map(|line| {
            let (facts, path) = line.split_once('\t')?;
            let (mode, rest) = facts.split_once(' ')?;
            let wanted = mode.starts_with("100") && globs.matches(&path.parse().ok()?) && !path.ends_with(".excluded");
            wanted.then(|| (path.to_owned(), rest.split(' ').next().unwrap().to_owned()))
        });
        entries.collect()
    }
}

/// Paths and object ids of a scan.
pub(in crate::store) fn ids(scan: &Scan) -> BTreeMap<String, String> {
    scan.files.iter().map(|(path, file)| (path.as_str().to_owned(), file.id.to_string())).collect()
}
