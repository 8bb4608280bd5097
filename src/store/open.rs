//! Opening a repository as git would, or refusing it as git would.

use std::path::{Path, PathBuf};

use gix::bstr::ByteSlice as _;

use super::pack::Identity;
use super::{Oid, Store};
use crate::document::path::printable;

/// How a repository is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Whether `GIT_DIR`, `GIT_CEILING_DIRECTORIES` and the like are honoured.
    pub from_environment: bool,
    /// Refuses every write: for hooks that run inside git's quarantine.
    pub read_only: bool,
    /// Settings of `git -c`, as `key=value`: they win over those of files.
    pub overrides: Vec<String>,
    /// Where git keeps the objects that a push brought, while it asks a hook about them.
    pub quarantine: Option<Quarantine>,
}

/// The object directories of a hook that runs inside git's quarantine, as `GIT_OBJECT_DIRECTORY` and
/// `GIT_ALTERNATE_OBJECT_DIRECTORIES` name them: absolute, or relative to the current directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantine {
    /// Where the pushed objects are.
    pub objects: PathBuf,
    /// Where further objects are.
    pub alternates: Vec<PathBuf>,
}

/// Why a repository was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none here or above.
    #[error("not a git repository (or any of the parent directories)")]
    NotFound {
        /// Where the search began.
        start: PathBuf,
        /// What the search said.
        source: gix::Error,
    },
    /// It belongs to somebody else, and `safe.directory` does not name it.
    #[error("detected dubious ownership in repository at '{}'", .path.display())]
    DubiousOwnership {
        /// What `safe.directory` would have to name.
        path: PathBuf,
    },
    /// Its refs are stored in a way that would split it in two if we wrote files beside them.
    #[error("the repository at '{}' stores its refs as '{format}', which is not supported: only 'files' is", .path.display())]
    RefStorage {
        /// The git directory.
        path: PathBuf,
        /// The value of `extensions.refStorage`.
        format: String,
    },
    /// It needs something git cbia does not know, so it could be damaged by writing to it.
    #[error("the repository at '{}' uses the extension 'extensions.{name}', which is not supported", .path.display())]
    UnknownExtension {
        /// The git directory.
        path: PathBuf,
        /// The extension, without its section.
        name: String,
    },
    /// The objects of a push cannot be looked at.
    #[error("the objects that were pushed cannot be read from '{}'", printable(&.path.to_string_lossy()))]
    Quarantine {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It is there but cannot be read.
    #[error("cannot open the git repository at or above '{}'", .start.display())]
    Unreadable {
        /// Where the search began.
        start: PathBuf,
        /// What went wrong.
        source: gix::Error,
    },
}

/// Why a revision has no commit.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// It names nothing, or more than one thing.
    #[error("'{}' does not name a commit", printable(.rev))]
    Unknown {
        /// The revision as given.
        rev: String,
        /// What was wrong with it.
        source: gix::Error,
    },
    /// It names nothing, because nothing was committed yet.
    #[error("'{}' does not name a commit: there is none yet", printable(.rev))]
    Unborn {
        /// The revision as given.
        rev: String,
    },
    /// `HEAD` is there but cannot be followed.
    #[error("HEAD cannot be read")]
    Head {
        /// What was wrong with it.
        source: gix::Error,
    },
}

/// Whose identity is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who made the change.
    Author,
    /// Who records it.
    Committer,
}

/// Extensions that change nothing for a program which reads objects and writes packs, loose objects and loose refs.
/// <https://git-scm.com/docs/gitrepository-layout> and `Documentation/config/extensions.adoc`.
const KNOWN_EXTENSIONS: [&str; 8] =
    ["noop", "noop-v1", "objectformat", "partialclone", "preciousobjects", "refstorage", "relativeworktrees", "worktreeconfig"];

impl Store {
    /// Opens the repository that `start` is in, whatever the environment says.
    pub fn open(start: &Path) -> Result<Self, OpenError> {
        Self::open_with(start, OpenOptions::default())
    }

    /// Opens the repository that `start` is in: from a subdirectory, a linked work tree, a bare repository or its git
    /// directory. Replace refs and grafts are off: objects are what their names say.
    pub fn open_with(start: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let trust = || gix::sec::trust::Mapping {
            full: open_options(gix::sec::Trust::Full, &options.overrides),
            reduced: open_options(gix::sec::Trust::Reduced, &options.overrides),
        };
        let found = if options.from_environment {
            let search = gix::discover::upwards::Options { match_ceiling_dir_or_error: false, ..Default::default() };
            gix::ThreadSafeRepository::discover_with_environment_overrides_opts(start, search, trust())
        } else {
            gix::ThreadSafeRepository::discover_opts(start, Default::default(), trust())
        };
        let mut repo = found.map_err(|source| refusal(start, source))?.to_thread_local();
        if repo.git_dir_trust() != gix::sec::Trust::Full {
            let path = repo.workdir().unwrap_or(repo.git_dir());
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            return Err(OpenError::DubiousOwnership { path });
        }
        check_extensions(&repo)?;
        // Only git's network services look at a namespace; refs/cbia/ is one place for all of them.
        drop(repo.clear_namespace());
        let borrowed = options.quarantine.as_ref().map(|quarantine| see_quarantine(&mut repo, quarantine)).transpose()?;
        Ok(Self { repo, read_only: options.read_only || borrowed.is_some(), healed: Default::default(), _borrowed: borrowed })
    }

    /// This work tree's own git directory.
    pub fn git_dir(&self) -> &Path {
        self.repo.git_dir()
    }

    /// The git directory that all work trees share; objects and refs are here.
    pub fn common_dir(&self) -> &Path {
        self.repo.common_dir()
    }

    /// The top of the work tree; `None` in a bare repository.
    pub fn work_dir(&self) -> Option<&Path> {
        self.repo.workdir()
    }

    /// The hash that names objects here.
    pub fn object_hash(&self) -> gix::hash::Kind {
        self.repo.object_hash()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The commit of `HEAD`; `None` if the branch is unborn.
    pub fn head(&self) -> Result<Option<Oid>, RevisionError> {
        let broken = |source| RevisionError::Head { source };
        self.forget_packed().map_err(broken)?;
        let mut head = self.repo.head().map_err(broken)?;
        match head.try_peel_to_id().map_err(broken)? {
            None => Ok(None),
            Some(id) => Ok(Some(id.detach())),
        }
    }

    /// The full name of the branch that `HEAD` is on, born or not; `None` if it is detached.
    pub fn head_branch(&self) -> Result<Option<String>, RevisionError> {
        let name = self.repo.head_name().map_err(|source| RevisionError::Head { source })?;
        Ok(name.map(|name| name.as_bstr().to_str_lossy().into_owned()))
    }

    /// A configuration value as git resolves it from its files and `GIT_CONFIG_COUNT`: the last one wins.
    pub fn config_string(&self, key: &str) -> Option<String> {
        self.repo.config_snapshot().string(key).map(|value| value.to_str_lossy().into_owned())
    }

    /// Every value of a setting that may be given more than once, in order.
    pub fn config_strings(&self, key: &str) -> Vec<String> {
        let values = self.repo.config_snapshot().plumbing().strings(key).unwrap_or_default();
        values.iter().map(|value| value.to_str_lossy().into_owned()).collect()
    }

    /// A boolean configuration value as git reads it; `None` if unset or not a boolean.
    pub fn config_bool(&self, key: &str) -> Option<bool> {
        self.repo.config_snapshot().boolean(key)
    }

    /// The identity and time that git would write into a commit, environment included (`GIT_AUTHOR_DATE` and the like). Where git
    /// would refuse because it knows no name or address, `unknown <unknown@localhost>` stands in: a record must not be lost over it.
    pub fn signature(&self, role: Role) -> Identity {
        let (name, email) = ("unknown", "unknown@localhost");
        let mut repo = self.repo.clone();
        let own = match role {
            Role::Author => self.repo.author().and_then(Result::ok),
            Role::Committer => self.repo.committer().and_then(Result::ok),
        };
        let signature = match own {
            Some(signature) => Ok(signature),
            None => repo.committer_or_set_fallback(name, email),
        };
        let unknown = || Identity { name: name.into(), email: email.into(), ..Identity::cbia() };
        let Ok(signature) = signature else { return unknown() };
        let Ok(time) = signature.time() else { return unknown() };
        let or = |text: &gix::bstr::BStr, other: &str| {
            if text.is_empty() { other.to_owned() } else { text.to_str_lossy().into_owned() }
        };
        Identity { name: or(signature.name, name), email: or(signature.email, email), seconds: time.seconds, offset: time.offset }
    }

    /// The commit that `rev` names, as `git rev-parse rev^{commit}` has it.
    pub fn resolve(&self, rev: &str) -> Result<Oid, RevisionError> {
        let unknown = |source| RevisionError::Unknown { rev: rev.to_owned(), source };
        self.forget_packed().map_err(unknown)?;
        let id = self.repo.rev_parse_single(rev).map_err(|source| {
            let is_head =
                rev.strip_prefix("HEAD").or(rev.strip_prefix('@')).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
            let unborn = is_head && self.head().is_ok_and(|head| head.is_none());
            if unborn { RevisionError::Unborn { rev: rev.to_owned() } } else { unknown(source) }
        })?;
        let commit = id.object().map_err(unknown)?.peel_to_kind(gix::objs::Kind::Commit).map_err(unknown)?;
        Ok(commit.id)
    }
}

impl Store {
    /// Makes gix read `packed-refs` again; that there is none is an answer too.
    fn forget_packed(&self) -> gix::Result<()> {
        match self.repo.refs.force_refresh_packed_buffer() {
            Err(error) if !error.is_not_found() && self.common_dir().join("packed-refs").exists() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Makes the objects of a push visible, which gix does not: an object directory without objects of its own borrows from git's quarantine, from
/// what git names beside it, and from the repository. What is written would go to memory; the directory goes when the store does.
fn see_quarantine(repo: &mut gix::Repository, quarantine: &Quarantine) -> Result<tempfile::TempDir, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Quarantine { path, source }
    };
    let own = repo.common_dir().join("objects");
    let mut borrowed = Vec::new();
    for folder in std::iter::once(&quarantine.objects).chain([&own]).chain(&quarantine.alternates) {
        let real = match std::fs::canonicalize(folder) {
            Ok(real) => real,
            // git, too, goes on without an alternate that is not there; without the pushed objects it does not.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && *folder != quarantine.objects => continue,
            Err(error) => return Err(failed(folder)(error)),
        };
        if !borrowed.contains(&real) {
            borrowed.push(real);
        }
    }
    let folder = tempfile::Builder::new().prefix("git-cbia-objects-").tempdir().map_err(failed(&own))?;
    let mut listing = Vec::new();
    for path in &borrowed {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = path.as_os_str().as_bytes();
        // A line each: a name that would be two lines, a comment or a quotation cannot be said.
        if bytes.contains(&b'\n') {
            return Err(failed(path)(std::io::Error::other("its name holds a line break")));
        }
        listing.extend_from_slice(bytes);
        listing.push(b'\n');
    }
    let info = folder.path().join("info");
    std::fs::create_dir_all(&info).and_then(|()| std::fs::write(info.join("alternates"), listing)).map_err(failed(&info))?;
    let hash = repo.object_hash();
    let handle = gix::odb::at_opts(folder.path(), hash, None, Default::default()).map_err(failed(folder.path()))?;
    repo.objects = gix::odb::memory::Proxy::new(handle, hash);
    Ok(folder)
}

fn open_options(trust: gix::sec::Trust, overrides: &[String]) -> gix::open::Options {
    use gix::sec::trust::DefaultForLevel as _;
    let options = gix::open::Options::default_for_level(trust).cli_overrides(overrides.iter().map(String::as_str));
    // A command writes packs and fetches some; with the room that gix leaves by itself, a third one beyond thirty cannot be read any more.
    let room = gix::odb::store::init::Slots::AsNeededByDiskState { multiplier: 2.0, minimum: 256 };
    options.config_overrides(["core.useReplaceRefs=false"]).object_store_slots(room)
}

fn refusal(start: &Path, source: gix::Error) -> OpenError {
    let start = start.to_owned();
    if source.is_not_found() { OpenError::NotFound { start, source } } else { OpenError::Unreadable { start, source } }
}

/// gix opens what it does not understand; git refuses to, and so do we.
fn check_extensions(repo: &gix::Repository) -> Result<(), OpenError> {
    let path = || repo.git_dir().to_owned();
    let snapshot = repo.config_snapshot();
    // Only version 1 makes extensions binding, but a files-backed writer in a reftable repository does harm in any.
    let binding = snapshot.integer("core.repositoryFormatVersion").unwrap_or(0) >= 1;
    for section in snapshot.plumbing().sections_by_name("extensions").into_iter().flatten() {
        if section.meta().source != gix::config::Source::Local || section.header().subsection_name().is_some() {
            continue;
        }
        for name in section.value_names() {
            let name = name.to_string();
            let folded = name.to_ascii_lowercase();
            if folded == "refstorage" {
                let format = section.value(name.as_str()).map(|value| value.to_str_lossy().into_owned());
                let format = format.unwrap_or_default();
                if format != "files" {
                    return Err(OpenError::RefStorage { path: path(), format });
                }
            } else if binding && !KNOWN_EXTENSIONS.contains(&folded.as_str()) {
                return Err(OpenError::UnknownExtension { path: path(), name });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Repo;
    use super::*;

    fn refusal_of(repo: &Repo) -> String {
        match Store::open(&repo.path()).map(|store| store.git_dir().to_owned()) {
            Ok(_) => "opened".into(),
            Err(OpenError::NotFound { .. }) => "not found".into(),
            Err(OpenError::DubiousOwnership { .. }) => "ownership".into(),
            Err(OpenError::RefStorage { format, .. }) => format!("ref storage {format}"),
            Err(OpenError::UnknownExtension { name, .. }) => format!("extension {name}"),
            Err(OpenError::Quarantine { .. }) => "quarantine".into(),
            Err(OpenError::Unreadable { .. }) => "unreadable".into(),
        }
    }

    #[test]
    fn a_repository_is_found_from_everywhere_git_finds_it() {
        let repo = Repo::new();
        let head = repo.commit(&[("a/b/c", "1")]);
        repo.git(&["worktree", "add", "-q", "../linked"]);
        repo.git(&["clone", "-q", "--bare", ".", "../bare"]);
        let outside = repo.outside();
        let cases = [
            (repo.path(), true),
            (repo.path().join("a/b"), true),
            (repo.path().join(".git"), true),
            (outside.join("linked"), true),
            (outside.join("bare"), false),
            (outside.join("bare/objects"), false),
        ];
        for (start, work_dir) in cases {
            let store = Store::open(&start).unwrap();
            assert_eq!(store.head().unwrap(), Some(head), "{start:?}");
            assert_eq!(store.work_dir().is_some(), work_dir, "{start:?}");
        }
        let linked = Store::open(&outside.join("linked")).unwrap();
        let same = |a: &Path, b: &Path| std::fs::canonicalize(a).unwrap() == std::fs::canonicalize(b).unwrap();
        assert!(same(linked.common_dir(), repo.store().common_dir()) && !same(linked.git_dir(), linked.common_dir()));
        assert!(matches!(Store::open(outside), Err(OpenError::NotFound { .. })));
    }

    #[test]
    fn the_objects_of_a_push_are_seen_and_nothing_is_written_beside_them() {
        let repo = Repo::new();
        let head = repo.commit(&[("a", "1")]);
        let incoming = repo.outside().join("incoming");
        std::fs::create_dir(&incoming).unwrap();
        let mut command = repo.command(&["hash-object", "-w", "--stdin"]);
        command.env("GIT_OBJECT_DIRECTORY", &incoming).stdin(std::process::Stdio::null());
        let id = Oid::from_hex(command.output().unwrap().stdout.trim_ascii()).unwrap();
        let open = |objects: PathBuf| {
            let quarantine =
                Some(Quarantine { objects, alternates: vec![repo.path().join(".git/objects"), repo.outside().join("none")] });
            Store::open_with(&repo.path(), OpenOptions { quarantine, ..OpenOptions::default() })
        };
        let store = open(incoming).unwrap();
        assert_eq!(store.read_blob(&id, 0).unwrap(), b"");
        assert!(store.contains(&head) && store.is_read_only() && !repo.store().contains(&id));
        assert!(matches!(open(repo.outside().join("none")), Err(OpenError::Quarantine { .. })));
    }

    #[test]
    fn packs_that_come_after_opening_are_read() {
        let repo = Repo::new();
        let store = repo.store();
        for number in 0..40 {
            let id = repo.commit(&[("f", &number.to_string())]);
            repo.git(&["repack", "-d", "-q"]);
            assert_eq!(store.read_commit(&id).unwrap().parents.len(), usize::from(number > 0), "{number}");
        }
    }

    #[test]
    fn what_git_refuses_is_refused() {
        let refuse = |settings: &[(&str, &str)]| {
            let repo = Repo::new();
            // Not through git in the repository, which refuses to run in what it is becoming.
            for (key, value) in settings {
                let file = repo.path().join(".git/config");
                let mut command = repo.command(&["config", "--file", file.to_str().unwrap(), key, value]);
                assert!(command.current_dir(repo.outside()).status().unwrap().success(), "{key}");
            }
            refusal_of(&repo)
        };
        let version = ("core.repositoryFormatVersion", "1");
        assert_eq!(refuse(&[version]), "opened");
        assert_eq!(refuse(&[version, ("extensions.worktreeConfig", "true")]), "opened");
        assert_eq!(refuse(&[version, ("extensions.refStorage", "files")]), "opened");
        assert_eq!(refuse(&[("extensions.fancy", "true")]), "opened");
        assert_eq!(refuse(&[("extensions.fancy", "true"), version]), "extension fancy");
        assert_eq!(refuse(&[("extensions.refStorage", "reftable"), version]), "ref storage reftable");
        assert_eq!(refuse(&[("core.repositoryFormatVersion", "7")]), "unreadable");
        assert_eq!(refusal_of(&Repo::init(&["--ref-format=reftable"])), "ref storage reftable");
    }

    #[test]
    fn a_repository_of_somebody_else_is_refused() {
        let repo = Repo::new();
        for path in [repo.path(), repo.path().join(".git")] {
            // Only root can give a repository away; others cannot make this case.
            if std::os::unix::fs::chown(&path, Some(12345), None).is_err() {
                return;
            }
        }
        let error = Store::open(&repo.path()).err().unwrap();
        assert_eq!(error.to_string(), format!("detected dubious ownership in repository at '{}'", repo.path().display()));
    }

    #[test]
    fn settings_identity_and_revisions_are_those_of_git() {
        let repo = Repo::new();
        assert_eq!(repo.store().head().unwrap(), None);
        assert_eq!(repo.store().head_branch().unwrap().as_deref(), Some("refs/heads/main"));
        let (a, b) = (repo.commit(&[("f", "a")]), repo.commit(&[("f", "b")]));
        repo.git(&["tag", "-a", "-m", "t", "v1", &a.to_string()]);
        for (key, value) in
            [("user.name", "Bo"), ("user.email", "bo@example.org"), ("commit.gpgSign", "yes"), ("cbia.x", "one two")]
        {
            repo.git(&["config", key, value]);
        }
        let store = repo.store();
        let bo = store.signature(Role::Committer);
        assert_eq!((bo.name.as_str(), bo.email.as_str()), ("Bo", "bo@example.org"));
        assert_eq!(store.config_string("cbia.x").as_deref(), Some("one two"));
        assert_eq!((store.config_bool("commit.gpgSign"), store.config_bool("cbia.none")), (Some(true), None));
        for (rev, id) in [("HEAD", b), ("HEAD~1", a), ("v1", a), ("main", b), (&b.to_string()[..9], b)] {
            assert_eq!(store.resolve(rev).unwrap(), id, "{rev}");
        }
        for rev in ["none", "HEAD:f", "HEAD^{tree}", "", "--all"] {
            assert!(matches!(store.resolve(rev), Err(RevisionError::Unknown { .. })), "{rev}");
        }
        repo.git(&["checkout", "-q", "--detach"]);
        assert_eq!(repo.store().head_branch().unwrap(), None);
    }
}
