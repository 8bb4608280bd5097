//! The environment: the only place that reads arguments, variables and the program's own path.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::CommandError;
use crate::document::finding::{Code, Finding};
use crate::document::path::{RepoPath, printable};
use crate::document::push_input::Pusher;
use crate::executor::external::{Clearing, Host};
use crate::pipeline::inputs::ExecutorSource;
use crate::policy::Cage;
use crate::store::Store;
use crate::store::open::{OpenError, OpenOptions, Quarantine};

/// The variable that names the executor's configuration.
const EXECUTOR_VARIABLE: &str = "CBIA_GEN_EXECUTOR_CONFIG";
/// The variables in which servers name who pushes: Gitea and Forgejo, GitLab, gitolite, and git's own HTTP back end.
const PUSHERS: [&str; 5] = ["GITEA_PUSHER_NAME", "GL_USERNAME", "GL_ID", "GL_USER", "REMOTE_USER"];
/// The largest executor configuration, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// What the program was started with.
pub struct Environment {
    /// The arguments, the program's name first.
    pub arguments: Vec<OsString>,
    executor_config: Option<OsString>,
    prefix: Option<OsString>,
    settings: Vec<String>,
    quarantine: Option<Quarantine>,
    pusher: Option<Pusher>,
    program: PathBuf,
}

impl Environment {
    /// Reads it.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    pub fn read() -> Self {
        Self {
            arguments: std::env::args_os().collect(),
            executor_config: std::env::var_os(EXECUTOR_VARIABLE).filter(|value| !value.is_empty()),
            prefix: std::env::var_os("GIT_PREFIX").filter(|value| !value.is_empty()),
            settings: std::env::var("GIT_CONFIG_PARAMETERS").map(|text| settings(&text)).unwrap_or_default(),
            quarantine: quarantine(),
            pusher: PUSHERS.iter().find_map(|source| {
                let name = std::env::var(source).ok().filter(|name| !name.is_empty())?;
                Some(Pusher { name: printable(&name), source: (*source).to_owned() })
            }),
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("git-cbia")),
        }
    }

    /// Opens the repository that the command was started in, as git would.
    pub fn open(&self) -> Result<Store, CommandError> {
        self.open_with(false, None)
    }

    /// Opens it for reading only.
    pub fn open_to_read(&self) -> Result<Store, CommandError> {
        self.open_with(true, None)
    }

    /// Opens it for reading only, with the objects that a push has brought: for a hook that git asks before it accepts them.
    pub fn open_quarantined(&self) -> Result<Store, CommandError> {
        self.open_with(true, self.quarantine.clone())
    }

    /// Who pushes, as the server that started the hook says.
    pub fn pusher(&self) -> Option<Pusher> {
        self.pusher.clone()
    }

    fn open_with(&self, read_only: bool, quarantine: Option<Quarantine>) -> Result<Store, CommandError> {
        let options = OpenOptions { from_environment: true, read_only, overrides: self.settings.clone(), quarantine };
        let named = git_dir().filter(|_| options.from_environment);
        Store::open_with(Path::new("."), options.clone()).or_else(|error| {
            // git starts the hooks of a push in the git directory, with `.` for its name, which tells too little of one that has a work tree.
            let (OpenError::NotFound { .. }, Some(path)) = (&error, named) else { return Err(error.into()) };
            let store = Store::open_with(&path, OpenOptions { from_environment: false, ..options })?;
            // What lies around it was not meant.
            let is_it = std::fs::canonicalize(store.git_dir()).is_ok_and(|found| found == path);
            if is_it { Ok(store) } else { Err(error.into()) }
        })
    }

    /// A variable, for an executor whose configuration asks that it is passed on.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    pub fn variable(name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    /// What an executor that is a program of its own needs of this machine.
    pub fn host(&self) -> Host<'static> {
        Host {
            program: self.program.clone(),
            temporary: std::env::temp_dir(),
            variable: &Self::variable,
            show: &super::ui::show_output,
            clearing: Clearing::default(),
        }
    }

    /// Where policies are evaluated: in this same program, under limits.
    pub fn cage(&self) -> Cage {
        Cage::new(&self.program)
    }

    /// Where the executor's configuration is: `CBIA_GEN_EXECUTOR_CONFIG`, else the repository.
    pub fn executor(&self) -> Result<ExecutorSource, CommandError> {
        let Some(name) = &self.executor_config else { return Ok(ExecutorSource::Repository) };
        let (path, shown) = (Path::new(name), printable(&name.to_string_lossy()));
        let unreadable = |why: String| {
            let finding = Finding::error(
                Code::DocumentMissing,
                format!("CBIA_GEN_EXECUTOR_CONFIG names {shown}, which cannot be read: {why}"),
            );
            CommandError::found(finding.at(&shown).hint("correct the variable, or unset it for the repository's own executor"))
        };
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_CONFIG => {}
            Ok(_) => return Err(unreadable(format!("it is not a regular file of at most {MAX_CONFIG} bytes"))),
            Err(error) => return Err(unreadable(error.to_string())),
        }
        let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        // Findings are kept with the record, and a path of this machine has no place there: the variable names the file well enough.
        Ok(ExecutorSource::File(EXECUTOR_VARIABLE.to_owned(), bytes))
    }

    /// The absolute path of a file that was named on the command line, relative to where the command was started.
    pub fn started_in(&self, given: &Path) -> Result<PathBuf, CommandError> {
        let absolute = std::path::absolute(".").map_err(|error| CommandError::usage(&error.to_string()))?;
        Ok(match &self.prefix {
            // An alias is started at the top and says where it was called.
            Some(prefix) => absolute.join(prefix).join(given),
            None => absolute.join(given),
        })
    }

    /// The repository path of a file that was named on the command line, relative to where the command was started.
    pub fn repo_path(&self, store: &Store, given: &Path) -> Result<RepoPath, CommandError> {
        let refuse = |why: &str| CommandError::usage(&format!("'{}' {why}", printable(&given.to_string_lossy())));
        let top =
            store.work_dir().ok_or_else(|| CommandError::usage("this command needs a work tree, and the repository is bare"))?;
        let absolute = std::path::absolute(".").map_err(|error| refuse(&error.to_string()))?;
        let start = match &self.prefix {
            // An alias is started at the top and says where it was called.
            Some(prefix) => absolute.join(prefix),
            None => absolute,
        };
        let real = |path: &Path| std::fs::canonicalize(path);
        let folder = start.join(given);
        let name = folder.file_name().ok_or_else(|| refuse("is not a file"))?.to_owned();
        let parent = real(folder.parent().unwrap_or(&start)).map_err(|error| refuse(&format!("cannot be found: {error}")))?;
        let top = real(top).map_err(|error| refuse(&error.to_string()))?;
        let inside = parent.join(name);
        let inside = inside.strip_prefix(&top).map_err(|_| refuse("is outside the repository"))?;
        let text = inside.to_str().ok_or_else(|| refuse("is not valid UTF-8"))?;
        text.parse().map_err(|error: crate::document::path::PathError| CommandError::usage(&error.to_string()))
    }
}

/// The git directory that git, or whoever else, names: its real path, if it is there.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn git_dir() -> Option<PathBuf> {
    std::fs::canonicalize(std::env::var_os("GIT_DIR").filter(|value| !value.is_empty())?).ok()
}

/// Where git keeps what a push brought, while it asks a hook about it.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn quarantine() -> Option<Quarantine> {
    let objects = PathBuf::from(std::env::var_os("GIT_QUARANTINE_PATH").filter(|value| !value.is_empty())?);
    let alternates = std::env::var_os("GIT_ALTERNATE_OBJECT_DIRECTORIES").unwrap_or_default();
    Some(Quarantine { objects, alternates: paths(&alternates.to_string_lossy()) })
}

/// A list of paths, separated by colons, as git reads it: one that begins with a quotation mark is quoted as in C.
fn paths(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut path = Vec::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut bytes = quoted.bytes().enumerate();
            let mut end = quoted.len();
            while let Some((at, byte)) = bytes.next() {
                match byte {
                    b'"' => {
                        end = at + 1;
                        break;
                    }
                    b'\\' => match bytes.next() {
                        Some((_, first @ b'0'..=b'3')) => {
                            let digits = [first, bytes.next().map_or(b'0', |b| b.1), bytes.next().map_or(b'0', |b| b.1)];
                            path.push(
                                digits.iter().fold(0_u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))),
                            );
                        }
                        Some((_, b'n')) => path.push(b'\n'),
                        Some((_, b't')) => path.push(b'\t'),
                        Some((_, other)) => path.push(other),
                        None => {}
                    },
                    other => path.push(other),
                }
            }
            rest = quoted.get(end..).unwrap_or_default();
            rest = rest.strip_prefix(':').unwrap_or(rest);
        } else {
            let (plain, after) = rest.split_once(':').unwrap_or((rest, ""));
            path.extend_from_slice(plain.as_bytes());
            rest = after;
        }
        if !path.is_empty() {
            use std::os::unix::ffi::OsStringExt as _;
            found.push(PathBuf::from(OsString::from_vec(path)));
        }
    }
    found
}

/// The settings of `git -c`, which git hands to its subcommands as `'key'='value'` words (git before 2.31: `'key=value'`), each
/// quoted for a shell. What is not quoted like that ends the list.
fn settings(text: &str) -> Vec<String> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut setting = String::new();
        while !rest.is_empty() && !rest.starts_with(' ') {
            if let Some(quoted) = rest.strip_prefix('\'') {
                let Some(end) = quoted.find('\'') else { return settings };
                setting.push_str(&quoted[..end]);
                rest = &quoted[end + 1..];
            } else if let Some(escaped) = rest.strip_prefix('\\') {
                let Some(c) = escaped.chars().next() else { return settings };
                setting.push(c);
                rest = &escaped[c.len_utf8()..];
            } else if let Some(after) = rest.strip_prefix('=') {
                setting.push('=');
                rest = after;
            } else {
                return settings;
            }
        }
        settings.push(setting);
        rest = rest.trim_start();
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_paths_are_read_as_git_writes_them() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("/a/objects", &["/a/objects"]),
            ("/a:../b::", &["/a", "../b"]),
            (r#""/a:b\"c\\":/d"#, &["/a:b\"c\\", "/d"]),
            (r#""/t\303\251""#, &["/té"]),
        ];
        for (text, wanted) in cases {
            assert_eq!(paths(text), wanted.iter().map(PathBuf::from).collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn settings_are_read_as_git_quotes_them() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("'user.name'='A B' 'cbia.durability'='full'", &["user.name=A B", "cbia.durability=full"]),
            ("'user.name=A B'", &["user.name=A B"]),
            (r"'a.b'='it'\''s'\!''", &["a.b=it's!"]),
            ("'a.b'", &["a.b"]),
            ("'a.b'='open", &[]),
            ("'a.b'='1' nonsense", &["a.b=1"]),
        ];
        for (text, wanted) in cases {
            assert_eq!(settings(text), *wanted, "{text}");
        }
    }
}
