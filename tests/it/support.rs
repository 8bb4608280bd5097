//! A repository and the program in it, shut off from everything around: cleared environment, private home, fixed identity and time.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use assert_fs::TempDir;
use git_cbia::document::digest::Digest;
use serde_json::{Value, json};

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_git-cbia");
/// The ledger's path.
pub const LEDGER: &str = "control/authority.ledger.json";
/// The pipeline's path.
pub const PIPELINE: &str = "control/pipeline.json";
/// The configuration of the executor.
pub const EXECUTOR: &str = "control/runtime/gen_executor.json";
/// The one artifact of the tiny pipeline.
pub const NOTE: &str = "out/note.txt";
/// What it holds.
pub const NOTE_TEXT: &str = "Be brief.\nwords: one two\n";

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not one JSON document: {error}\n{self:?}"))
    }

    /// Asserts that it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The codes of the findings, in order.
    #[track_caller]
    pub fn codes(&self) -> Vec<String> {
        let document = self.json();
        let findings = document["findings"].as_array().cloned().unwrap_or_default();
        findings.iter().map(|f| f["code"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The one finding with `code`.
    #[track_caller]
    pub fn finding(&self, code: &str) -> Value {
        let document = self.json();
        let findings = document["findings"].as_array().cloned().unwrap_or_default();
        let found: Vec<Value> = findings.into_iter().filter(|f| f["code"] == code).collect();
        assert_eq!(found.len(), 1, "{code}: {document:#}");
        found[0].clone()
    }

    /// What GEN came to: `executed`, `replayed`, `skipped` or `failed`.
    #[track_caller]
    pub fn gen_status(&self) -> String {
        let document = self.json();
        let phases = document["phases"].as_array().cloned().unwrap_or_default();
        let status = phases.iter().find(|p| p["phase"] == "GEN").map(|p| p["status"].clone());
        status.as_ref().and_then(Value::as_str).unwrap_or("absent").to_owned()
    }
}

/// A repository.
#[derive(Clone)]
pub struct Repo {
    outside: Arc<TempDir>,
    path: PathBuf,
    variables: BTreeMap<OsString, Option<OsString>>,
}

impl Repo {
    /// An empty repository.
    pub fn new() -> Self {
        Self::init(&[])
    }

    /// An empty repository, with further arguments to `git init`.
    pub fn init(arguments: &[&str]) -> Self {
        let repo = Self { outside: Arc::new(TempDir::new().unwrap()), path: PathBuf::new(), variables: BTreeMap::new() };
        std::fs::create_dir(repo.outside().join("home")).unwrap();
        let repo = Self { path: repo.outside().join("repo"), ..repo };
        std::fs::create_dir(&repo.path).unwrap();
        repo.git(["init", "-q", "-b", "main"].iter().chain(arguments));
        repo
    }

    /// A repository with the pipeline that `git cbia init` writes.
    pub fn started() -> Self {
        let repo = Self::new();
        repo.cbia(["init"]).ok();
        repo
    }

    /// A repository with a tiny pipeline of its own: one authority, one input, one template, one artifact, two policies of one rule.
    pub fn tiny() -> Self {
        let repo = Self::new();
        repo.write_tiny();
        repo
    }

    /// Writes the tiny pipeline.
    pub fn write_tiny(&self) {
        self.write("docs/rule.md", "Be brief.\n");
        self.write("data/words.txt", "one two\n");
        self.write("control/templates/note.txt.j2", "{{ authorities.rule.text }}words: {{ inputs['data/words.txt'] }}");
        self.write(
            "policy/kernel.rego",
            "package control.kernel\n\ndefault allow := false\n\nallow if input.authority_ledger.frozen\n",
        );
        self.write("policy/assurance.rego", "package assurance\n\ndefault allow := false\n\nallow if input.pre_gen_capsule\n");
        self.write(
            "policy/assurance_test.rego",
            "package assurance_test\n\nimport data.assurance\n\ntest_deny if not assurance.allow\n",
        );
        self.write("README.md", "A tiny pipeline.\n");
        self.write(".gitignore", "/control/runtime/pre_gen_capsule.json\n/execution/\n/opa/\n");
        self.write_json(
            LEDGER,
            &json!({"schema_version": "0.1.0", "frozen": true, "authority_set": [{
                "authority_id": "rule", "title": "Rule", "source": {"kind": "file", "locator": "docs/rule.md"},
                "hash": {"alg": "sha256", "value": Digest::of(b"Be brief.\n")},
            }]}),
        );
        self.write_json(
            "control/objectives.json",
            &json!([{"id": "O-1", "type": "note", "statement": "A note.", "source": {"authority_id": "rule", "evidence": []},
                "constraints": {}, "justification": "the rule says it"}]),
        );
        self.write_json(
            PIPELINE,
            &json!({"schema_version": "0.1.0", "inputs": ["data/**"], "gen": {"generated": ["out/**"], "artifacts": [
                {"path": NOTE, "objectives": ["O-1"], "template": "control/templates/note.txt.j2"}]}}),
        );
    }

    /// The same place, with a variable set or, with `None`, removed.
    pub fn with(&self, name: &str, value: Option<&str>) -> Self {
        let mut repo = self.clone();
        repo.variables.insert(name.into(), value.map(Into::into));
        repo
    }

    /// The same surroundings, in another folder.
    pub fn at(&self, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// A clone beside this repository. The refs of git cbia do not come along.
    pub fn clone_to(&self, name: &str) -> Self {
        let target = self.outside().join(name);
        self.git(["clone", "-q", self.path.to_str().unwrap(), target.to_str().unwrap()]);
        self.at(target)
    }

    /// The top of the work tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder around it.
    pub fn outside(&self) -> &Path {
        self.outside.path()
    }

    /// Writes a file, with the folders it needs.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Writes a JSON document.
    pub fn write_json(&self, path: &str, value: &Value) {
        self.write(path, git_cbia::document::json::pretty(value));
    }

    /// Reads a file.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Whether anything is at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.path.join(path).symlink_metadata().is_ok()
    }

    /// Removes a file or a folder.
    pub fn remove(&self, path: &str) {
        let path = self.path.join(path);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }

    /// Replaces `from`, which must stand in the file, by `to`.
    #[track_caller]
    pub fn replace(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "{path} has no {from}");
        self.write(path, text.replacen(from, to, 1));
    }

    /// Sets one member of a JSON document, or removes it with null.
    #[track_caller]
    pub fn set(&self, path: &str, pointer: &str, value: Value) {
        let mut document: Value = serde_json::from_str(&self.read(path)).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap();
        match (parent, value) {
            (Value::Object(members), Value::Null) => drop(members.remove(name)),
            (Value::Object(members), value) => drop(members.insert(name.into(), value)),
            (Value::Array(entries), value) => entries[name.parse::<usize>().unwrap()] = value,
            (other, _) => panic!("{pointer} in {other}"),
        }
        self.write_json(path, &document);
    }

    /// Everything in the work tree, by path, apart from what `skip` says.
    pub fn files(&self, skip: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&self.path).unwrap().to_str().unwrap().to_owned();
                if name == ".git" || skip.iter().any(|skip| name.starts_with(skip)) {
                    continue;
                }
                let kind = path.symlink_metadata().unwrap();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    found.insert(name, std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
                } else {
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    /// A program, in the repository and its surroundings.
    #[expect(clippy::disallowed_methods, reason = "the tests run the real program and the real git")]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let folder = Path::new(PROGRAM).parent().unwrap().as_os_str().to_owned();
        let mut path = folder;
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env_clear().current_dir(&self.path).stdin(Stdio::null());
        command.env("PATH", path).env("HOME", self.outside().join("home")).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("LC_ALL", "C").env("TZ", "UTC");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "Ada").env(format!("GIT_{role}_EMAIL"), "ada@example.org");
            command.env(format!("GIT_{role}_DATE"), "1700000000 +0000");
        }
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs a command to its end, with `input` on standard input.
    pub fn finish(&self, mut command: Command, input: &[u8]) -> Ran {
        use std::io::Write as _;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A program that does not read its input is no failure of the test.
        drop(child.stdin.take().unwrap().write_all(input));
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// `git cbia …`.
    pub fn cbia<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        let mut command = self.command("git");
        command.arg("cbia").args(arguments);
        self.finish(command, b"")
    }

    /// `git cbia run --json`, which must succeed: what GEN came to.
    #[track_caller]
    pub fn run(&self) -> String {
        self.cbia(["run", "--json"]).ok().gen_status()
    }

    /// `git …`, which must succeed: its output, without the end of the last line.
    #[track_caller]
    pub fn git<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        self.git_with(arguments, b"")
    }

    /// `git …`, which must succeed: every byte of its output.
    #[track_caller]
    pub fn git_raw<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Vec<u8> {
        let mut command = self.command("git");
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "git failed: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// `git …` with something on standard input.
    #[track_caller]
    pub fn git_with<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, input: &[u8]) -> String {
        let mut command = self.command("git");
        command.args(arguments);
        let ran = self.finish(command, input);
        assert_eq!(ran.code, Some(0), "git failed: {}", ran.stderr);
        ran.stdout.strip_suffix('\n').unwrap_or(&ran.stdout).to_owned()
    }

    /// Commits everything there is.
    pub fn commit(&self) {
        self.git(["add", "-A"]);
        self.git(["commit", "-q", "-m", "all"]);
    }

    /// The refs under `prefix`, as (name, object id).
    pub fn refs(&self, prefix: &str) -> Vec<(String, String)> {
        let listed = self.git(["for-each-ref", "--format=%(refname) %(objectname)", prefix]);
        listed.lines().map(|line| line.split_once(' ').unwrap()).map(|(name, id)| (name.to_owned(), id.to_owned())).collect()
    }

    /// The cache entries of a phase, as (name, object id).
    pub fn entries(&self, phase: &str) -> Vec<(String, String)> {
        let of = |id: &str| self.git(["log", "-1", "--format=%(trailers:key=Cbia-Phase,valueonly)", id]).trim() == phase;
        self.refs("refs/cbia/cache").into_iter().filter(|(_, id)| of(id)).collect()
    }

    /// The only cache entry of GEN, as (name, object id).
    #[track_caller]
    pub fn only_entry(&self) -> (String, String) {
        let entries = self.entries("GEN");
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0].clone()
    }

    /// The only ref under `prefix`, as (name, object id).
    #[track_caller]
    pub fn only_ref(&self, prefix: &str) -> (String, String) {
        let refs = self.refs(prefix);
        assert_eq!(refs.len(), 1, "{refs:?}");
        refs[0].clone()
    }

    /// The events on the ledger, oldest first, by their record documents.
    pub fn events(&self) -> Vec<String> {
        if self.refs("refs/cbia/ledger").is_empty() {
            return Vec::new();
        }
        let commits = self.git(["rev-list", "--first-parent", "--reverse", "refs/cbia/ledger"]);
        let event = |id: &str| {
            let listed = self.git(["ls-tree", "--name-only", id, "record.json"]);
            let record: Option<Value> =
                (!listed.is_empty()).then(|| serde_json::from_str(&self.git(["show", &format!("{id}:record.json")])).unwrap());
            record.map(|record| record["event"].as_str().unwrap().to_owned())
        };
        commits.lines().filter_map(event).collect()
    }

    /// Asserts that neither `git fsck --strict` nor `git cbia fsck` has anything to say against the repository.
    #[track_caller]
    pub fn fsck(&self) {
        self.git_fsck();
        if !self.refs("refs/cbia").is_empty() {
            self.cbia(["fsck", "--json"]).ok();
        }
    }

    /// Asserts that `git fsck --strict` has nothing to say against the repository.
    #[track_caller]
    pub fn git_fsck(&self) {
        let mut command = self.command("git");
        command.args(["fsck", "--strict", "--full", "--no-dangling", "--no-progress"]);
        let ran = self.finish(command, b"");
        // Before the first commit git remarks on the unborn branch.
        let remarks = ["notice: HEAD points to an unborn branch (main)", "notice: No default references"];
        let said: Vec<&str> = ran.stdout.lines().chain(ran.stderr.lines()).filter(|l| !remarks.contains(l)).collect();
        assert_eq!((ran.code, said), (Some(0), Vec::new()));
    }

    /// Lock files, and stage folders, that are left in the git directory. The lock of the stat cache is a file that stays: the kernel owns
    /// the lock on it.
    pub fn leftovers(&self) -> Vec<String> {
        let common = self.git(["rev-parse", "--path-format=absolute", "--git-common-dir"]);
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from(&common)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&common).unwrap().to_str().unwrap().to_owned();
                let suspicious = name.ends_with(".lock") || name.contains("stage") || name.contains("tmp");
                if suspicious && !name.ends_with("cbia/stat.lock") {
                    found.push(name);
                } else if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }
}
