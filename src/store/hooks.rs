//! git's hooks that call git cbia: where they are, what state they are in, and how they come and go without losing what was there.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Store;
use super::durable::Durability;
use super::git::GitError;

/// The largest hook that is looked into, in bytes.
const MAX_HOOK_BYTES: u64 = 1 << 20;
/// What a hook that was there before is called while ours stands in its place.
const BEFORE: &str = ".before-cbia";
/// The last line of our hook in a folder that we made, and that goes with it.
const OWN_FOLDER: &str = "# git cbia made this folder.\n";

/// A hook of git's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// On the client, before a push.
    PrePush,
    /// On the server, before anything of a push is taken.
    PreReceive,
}

/// What stands in the place of a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing.
    Absent,
    /// Our hook, and git runs it. `before` is the hook that was there and is run too.
    Active {
        /// The hook that was there, if one was.
        before: Option<PathBuf>,
    },
    /// Another hook or a manager's configuration, and it calls git cbia.
    Called {
        /// The file that does.
        by: PathBuf,
    },
    /// Nothing, but the configuration of the manager calls git cbia: it has not written its hook yet.
    Waiting {
        /// The file that does.
        by: PathBuf,
    },
    /// Another hook, which does not.
    Foreign,
    /// Our hook, not executable: git does not run it.
    Idle,
    /// Something that is no file.
    Blocked,
}

/// A program that writes hooks of its own into the folder, over everybody else's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manager {
    /// <https://typicode.github.io/husky>
    Husky,
    /// <https://lefthook.dev>
    Lefthook,
    /// <https://pre-commit.com>, and prek, which takes its place.
    PreCommit,
}

/// Where git looks for a hook.
#[derive(Clone, Debug)]
pub struct Site {
    /// The hook.
    pub hook: Hook,
    /// Its file.
    pub file: PathBuf,
    /// The scope of `core.hooksPath`, where that is set: `local`, `global`, `system`, `worktree` or `command`.
    pub scope: Option<String>,
    /// Who else writes into the folder.
    pub manager: Option<Manager>,
    /// The top of the work tree.
    top: Option<PathBuf>,
    /// `core.hooksPath` of this user leads elsewhere than the repository's own configuration: to this folder.
    pub elsewhere: Option<PathBuf>,
}

/// What an installation or its undoing came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing was to be done.
    None,
    /// Our hook was written.
    Installed {
        /// Where the hook that was there is now.
        before: Option<PathBuf>,
    },
    /// Our hook was removed.
    Removed,
    /// Our hook was removed, and the one before it is back.
    Restored,
}

/// Why a hook was not installed, removed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// git could not say where its hooks are.
    #[error("cannot find out where git's hooks are")]
    Where(#[from] GitError),
    /// Something would be lost.
    #[error("'{}' {why}", .path.display())]
    Blocked {
        /// The file in the way.
        path: PathBuf,
        /// What it is.
        why: &'static str,
        /// The next step.
        hint: String,
    },
    /// A manager keeps the hooks, and would write over ours or never run it.
    #[error("{} keeps the hooks of this repository", .0.name())]
    Managed(Manager),
    /// The file system refused.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Hook {
    /// Its file name.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrePush => "pre-push",
            Self::PreReceive => "pre-receive",
        }
    }

    /// Our hook where nothing else was.
    fn shim(self) -> String {
        let text = match self {
            Self::PrePush => include_str!("../../hooks/pre-push"),
            Self::PreReceive => include_str!("../../hooks/pre-receive"),
        };
        // A checkout on Windows may have given it line ends that no shell takes.
        text.replace('\r', "")
    }

    /// Our hook where another one was: that one is run first, with the same arguments and input, if git would run it.
    fn chained(self) -> String {
        let name = self.name();
        format!(
            "#!/bin/sh\n\
             # git cbia: {name}{BEFORE} was here first. Both are given the same, and either refuses.\n\
             before=\"${{0%/*}}/{name}{BEFORE}\"\n\
             lines=$(cat && echo .) || exit 1\n\
             lines=${{lines%.}}\n\
             refused=0\n\
             if [ -f \"$before\" ] && [ -x \"$before\" ]; then\n\
             \x20   printf %s \"$lines\" | \"$before\" \"$@\" || refused=$?\n\
             fi\n\
             printf %s \"$lines\" | git-cbia hook {name} \"$@\" || refused=$?\n\
             exit \"$refused\"\n"
        )
    }

    /// The words by which a hook calls us; `git-cbia` does as well.
    fn call(self) -> String {
        format!("git cbia hook {}", self.name())
    }
}

impl Manager {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Husky => "husky",
            Self::Lefthook => "lefthook",
            Self::PreCommit => "pre-commit",
        }
    }

    /// The file to write into, and what to add to it.
    pub fn lines(self) -> (&'static str, &'static str) {
        match self {
            Self::Husky => (
                ".husky/pre-push",
                "# git cbia reads what git says on standard input: keep it first\ngit cbia hook pre-push \"$@\" || exit 1",
            ),
            Self::Lefthook => {
                ("lefthook.yml", "pre-push:\n  commands:\n    cbia: { run: 'git cbia hook pre-push {0}', use_stdin: true }")
            }
            Self::PreCommit => (
                ".pre-commit-config.yaml, under repos:",
                "- repo: local\n  hooks: [{ id: cbia, name: git cbia, language: system, stages: [pre-push], always_run: true, \
                 pass_filenames: false, entry: sh -c 'exec git cbia hook pre-push \"$PRE_COMMIT_REMOTE_NAME\" \
                 \"$PRE_COMMIT_REMOTE_URL\"' }]",
            ),
        }
    }

    /// The files that may call us for it.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Husky => &[".husky/pre-push"],
            Self::Lefthook => &LEFTHOOK_FILES,
            Self::PreCommit => &[".pre-commit-config.yaml", ".pre-commit-config.yml", "prek.toml"],
        }
    }
}

const LEFTHOOK_FILES: [&str; 15] = [
    "lefthook.yml",
    "lefthook.yaml",
    "lefthook.toml",
    "lefthook.json",
    "lefthook.jsonc",
    ".lefthook.yml",
    ".lefthook.yaml",
    ".lefthook.toml",
    ".lefthook.json",
    ".lefthook.jsonc",
    ".config/lefthook.yml",
    ".config/lefthook.yaml",
    ".config/lefthook.toml",
    ".config/lefthook.json",
    ".config/lefthook.jsonc",
];

impl Site {
    /// The folder.
    pub fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(&self.file)
    }

    /// What stands there.
    pub fn state(&self) -> Result<State, HookError> {
        let Some(metadata) = there(&self.file)? else {
            return self.managed().map(|by| by.map_or(State::Absent, |by| State::Waiting { by }));
        };
        if metadata.is_dir() {
            return Ok(State::Blocked);
        }
        let text = text_of(&self.file)?;
        let executable = is_executable(&self.file);
        let before = self.before();
        if metadata.is_file() && self.is_ours(&text) {
            let before = there(&before)?.map(|_| before);
            return Ok(if executable { State::Active { before } } else { State::Idle });
        }
        if executable && calls(&text, self.hook) {
            return Ok(State::Called { by: self.file.clone() });
        }
        Ok(match self.managed()? {
            Some(by) if executable => State::Called { by },
            _ => State::Foreign,
        })
    }

    /// The manager's file that calls us, if one does.
    fn managed(&self) -> Result<Option<PathBuf>, HookError> {
        let (Some(manager), Some(top)) = (self.manager, &self.top) else { return Ok(None) };
        if manager == Manager::PreCommit {
            // What was there before it, pre-commit keeps under this name, and runs.
            let legacy = with_suffix(&self.file, ".legacy");
            if there(&legacy)?.is_some() && is_executable(&legacy) && calls(&text_of(&legacy)?, self.hook) {
                return Ok(Some(legacy));
            }
        }
        for file in manager.files() {
            let path = top.join(file);
            if there(&path)?.is_some_and(|found| !found.is_dir()) && calls(&text_of(&path)?, self.hook) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether `core.hooksPath` leads to something that is no folder, such as /dev/null: git runs no hook then, and none can be put there.
    pub fn leads_nowhere(&self) -> bool {
        match std::fs::metadata(self.folder()) {
            Ok(found) => !found.is_dir(),
            Err(error) => error.kind() == io::ErrorKind::NotADirectory,
        }
    }

    /// The command after which git looks into a folder again. Where the setting is not this repository's own, it stays for all others.
    pub fn way_back(&self) -> String {
        match (self.hook, self.scope.as_deref()) {
            (Hook::PreReceive, _) => "in that repository, git config --unset-all core.hooksPath".to_owned(),
            (Hook::PrePush, Some(scope @ ("local" | "worktree"))) => format!("git config --{scope} --unset-all core.hooksPath"),
            (Hook::PrePush, _) => {
                r#"git config core.hooksPath "$(git rev-parse --path-format=absolute --git-common-dir)/hooks""#.to_owned()
            }
        }
    }

    fn before(&self) -> PathBuf {
        with_suffix(&self.file, BEFORE)
    }

    fn is_ours(&self, text: &str) -> bool {
        let text = text.replace('\r', "");
        let text = text.strip_suffix(OWN_FOLDER).unwrap_or(&text);
        text == self.hook.shim() || text == self.hook.chained()
    }

    fn blocked(&self, path: &Path, why: &'static str, hint: impl Into<String>) -> HookError {
        HookError::Blocked { path: path.to_owned(), why, hint: hint.into() }
    }
}

impl Store {
    /// Where git looks for this repository's pre-push hook.
    pub fn pre_push(&self) -> Result<Site, HookError> {
        let configured = self.hooks_path()?;
        let top = self.work_dir().map(Path::to_owned);
        let own = self.common_dir().join("hooks");
        let folder = match &configured {
            Some(configured) => top.as_deref().unwrap_or(self.git_dir()).join(&configured.path),
            None => own,
        };
        let file = folder.join(Hook::PrePush.name());
        let manager = top.as_deref().and_then(|top| manager(top, &folder, &file));
        Ok(Site {
            hook: Hook::PrePush,
            file,
            scope: configured.map(|configured| configured.scope),
            manager,
            top,
            elsewhere: None,
        })
    }

    /// Where the pre-receive hook of this repository belongs, for whoever serves it: what its own configuration says counts, and what
    /// the configuration of the asking user says does not.
    pub fn pre_receive(&self) -> Result<Site, HookError> {
        let configured = self.hooks_path()?;
        let (own, others): (Option<_>, Option<_>) = match configured {
            Some(configured) if matches!(configured.scope.as_str(), "local" | "worktree") => (Some(configured), None),
            configured => (None, configured),
        };
        let folder = match &own {
            // Where there is a work tree too: git starts what a push asks in the git directory.
            Some(configured) => self.git_dir().join(&configured.path),
            None => self.common_dir().join("hooks"),
        };
        // Gitea and Forgejo write pre-receive themselves, and run every file in this folder from it.
        let several = folder.join("pre-receive.d");
        let file = if several.is_dir() { several.join("cbia") } else { folder.join(Hook::PreReceive.name()) };
        let (scope, elsewhere) = (own.map(|own| own.scope), others.map(|others| others.path));
        Ok(Site { hook: Hook::PreReceive, file, scope, manager: None, top: None, elsewhere })
    }

    /// Puts our hook into its place. A hook that is there is kept beside it as it is, and both run.
    pub fn install_hook(&self, site: &Site) -> Result<Change, HookError> {
        if let (Some(manager), State::Absent | State::Waiting { .. } | State::Foreign) = (site.manager, site.state()?) {
            return Err(HookError::Managed(manager));
        }
        let folder = site.folder();
        if site.leads_nowhere() {
            let hint = format!("{}, and then git cbia hooks install", site.way_back());
            return Err(site.blocked(folder, "is no folder, and core.hooksPath leads there: git runs no hook", hint));
        }
        let made = !folder.exists();
        if made {
            std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
            self.share(folder).map_err(failed("share", folder))?;
        }
        let guard = lock(folder)?;
        let before = site.before();
        let change = match site.state()? {
            State::Active { .. } | State::Called { .. } => Change::None,
            State::Idle => {
                make_executable(&site.file).map_err(failed("make executable", &site.file))?;
                Change::Installed { before: there(&before)?.map(|_| before) }
            }
            State::Absent | State::Waiting { .. } => {
                self.refuse_orphan(site)?;
                let own = if made { OWN_FOLDER } else { "" };
                self.put(site, &(site.hook.shim() + own), false)?;
                Change::Installed { before: None }
            }
            State::Foreign => {
                self.refuse_orphan(site)?;
                self.keep(site, &before)?;
                Change::Installed { before: Some(before) }
            }
            State::Blocked => return Err(site.blocked(&site.file, "is no file", "move it away")),
        };
        drop(guard);
        Ok(change)
    }

    /// A hook that was kept and whose place somebody else took must not be written over.
    fn refuse_orphan(&self, site: &Site) -> Result<(), HookError> {
        let before = site.before();
        match there(&before)? {
            None => Ok(()),
            Some(_) => {
                let hint = format!(
                    "it is the hook from before an earlier installation: put it back as {}, or remove it",
                    site.hook.name()
                );
                Err(site.blocked(&before, "is in the way", hint))
            }
        }
    }

    /// Gives the hook that is there a second name, and then its place to ours, so that there is a hook at every moment.
    fn keep(&self, site: &Site, before: &Path) -> Result<(), HookError> {
        let text = site.hook.chained();
        match std::fs::hard_link(&site.file, before) {
            Ok(()) => self.put(site, &text, true).inspect_err(|_| drop(std::fs::remove_file(before))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.refuse_orphan(site),
            // A file system without second names.
            Err(_) => {
                std::fs::rename(&site.file, before).map_err(failed("rename", &site.file))?;
                self.put(site, &text, false).inspect_err(|_| drop(std::fs::rename(before, &site.file)))
            }
        }
    }

    /// Writes our hook under its name in one step, over another one only if `replace`.
    fn put(&self, site: &Site, text: &str, replace: bool) -> Result<(), HookError> {
        let failed = failed("write", &site.file);
        let folder = site.folder();
        let write = || -> io::Result<()> {
            let mode = std::fs::Permissions::from_mode(0o777);
            let mut file = tempfile::Builder::new().prefix(".cbia-hook-").permissions(mode).tempfile_in(folder)?;
            file.write_all(text.as_bytes())?;
            make_executable(file.path())?;
            self.share(file.path())?;
            Durability::Full.sync(file.as_file())?;
            let kept = if replace { file.persist(&site.file) } else { file.persist_noclobber(&site.file) };
            kept.map_err(|error| error.error)?;
            Durability::Full.sync_dir(folder)
        };
        write().map_err(failed)
    }

    /// Takes our hook out of its place, and puts back what was there.
    pub fn uninstall_hook(&self, site: &Site) -> Result<Change, HookError> {
        let folder = site.folder();
        if !folder.is_dir() {
            return Ok(Change::None);
        }
        let guard = lock(folder)?;
        let before = site.before();
        let ours = there(&site.file)?.is_some_and(|found| found.is_file()) && site.is_ours(&text_of(&site.file)?);
        if !ours {
            return match site.state()? {
                State::Called { by } => {
                    let hint = format!("take the line with '{}' out", site.hook.call());
                    Err(site.blocked(&by, "calls git cbia, and is not as git cbia wrote it", hint))
                }
                _ => {
                    self.refuse_orphan(site)?;
                    Ok(Change::None)
                }
            };
        }
        let made = text_of(&site.file)?.replace('\r', "").ends_with(OWN_FOLDER);
        let change = if there(&before)?.is_some() {
            std::fs::rename(&before, &site.file).map_err(failed("put back", &site.file))?;
            Change::Restored
        } else {
            std::fs::remove_file(&site.file).map_err(failed("remove", &site.file))?;
            Change::Removed
        };
        Durability::Full.sync_dir(folder).map_err(failed("synchronize", folder))?;
        if made {
            // It stays if somebody put something into it.
            drop(std::fs::remove_dir(folder));
        }
        drop(guard);
        Ok(change)
    }
}

/// The kernel's lock on the folder itself: several repositories may share it, and it leaves nothing behind.
fn lock(folder: &Path) -> Result<File, HookError> {
    let file = File::open(folder).map_err(failed("open", folder))?;
    file.lock().map_err(failed("lock", folder))?;
    Ok(file)
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> HookError {
    let path = path.to_owned();
    move |source| HookError::Io { action, path: path.clone(), source }
}

/// What is at `path`, links not followed.
fn there(path: &Path) -> Result<Option<Metadata>, HookError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// The text of a hook, links followed; nothing for one that leads nowhere, is too large to be a script, or is no file.
fn text_of(path: &Path) -> Result<String, HookError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_HOOK_BYTES => {}
        _ => return Ok(String::new()),
    }
    let bytes = std::fs::read(path).map_err(failed("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether git would run it.
fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Makes a file executable for all who may read it.
fn make_executable(path: &Path) -> io::Result<()> {
    let mut permissions = std::fs::metadata(path)?.permissions();
    let mode = permissions.mode() | 0o500;
    permissions.set_mode(mode | (mode & 0o444) >> 2);
    std::fs::set_permissions(path, permissions)
}

/// Whether a script or a configuration calls our hook on a line that is no comment.
fn calls(text: &str, hook: Hook) -> bool {
    let calls = [hook.call(), hook.call().replacen(' ', "-", 1)];
    text.lines().any(|line| !line.trim_start().starts_with('#') && calls.iter().any(|call| line.contains(call)))
}

/// The path with more at the end of its last name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The manager that keeps the hooks of a work tree.
fn manager(top: &Path, folder: &Path, hook: &Path) -> Option<Manager> {
    if folder.ends_with(".husky/_") || folder.ends_with(".husky") {
        return Some(Manager::Husky);
    }
    let text = text_of(hook).unwrap_or_default();
    if text.contains("hook-impl") && (text.contains("pre-commit") || text.contains("prek")) {
        return Some(Manager::PreCommit);
    }
    let lefthook = LEFTHOOK_FILES.iter().any(|file| top.join(file).is_file());
    (lefthook || text.contains("lefthook")).then_some(Manager::Lefthook)
}
