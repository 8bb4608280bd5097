//! Sharing: runs, cache entries, attestations and ledgers travel by git's own push and fetch.
//!
//! What a remote has lands under `refs/cbia/remotes/<remote>/…`, and becomes usable only when it was verified. On the remote every writer has
//! a ledger of its own, `refs/cbia/ledgers/<writer>`, so that writers do not contend; everything else there is written once.

mod conflict;
mod evict;
mod fetch;
mod ledgers;
mod push;
mod vet;

use std::time::Duration;

pub use self::evict::{Evicted, RemoteKeep};
pub use self::fetch::{Fetched, Wanted};
pub use self::ledgers::{DOCTOR, News, Unkept};
pub use self::push::{Pushed, What};
pub use self::vet::{Reading, RunName, Unfit};

use super::attest::Trust;
use super::git::GitError;
use super::open::Role;
use super::refs::RefName;
use super::talk::{Bounds, RefUpdate};
use super::{Oid, Store, StoreError};
use crate::document::digest::Digest;
use crate::document::path::printable;

/// How long a remote is waited for on a miss, unless `cbia.remoteTimeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most that one fetch may bring, unless `cbia.maxFetchBytes` says otherwise.
const MAX_FETCH_BYTES: u64 = 2 << 30;
/// The longest name of a writer, a namespace or a remote that stands in a ref, in bytes.
const MAX_NAME: usize = 80;
/// What a bundle is kept under.
const BUNDLES: &str = "bundle/";
/// The remote that is meant where nothing is said.
const ORIGIN: &str = "origin";

/// Why something was not shared. What a remote offers that is wrong is a finding, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A setting has a value that it cannot have.
    #[error("{key} is '{}': {wanted}", printable(.value))]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// There is no remote to share with.
    #[error("no remote is named: there is none on the command line, in {key}, and none called 'origin'")]
    NoRemote {
        /// The setting that would name one.
        key: &'static str,
    },
    /// git could not talk to the remote.
    #[error("cannot {doing} {remote}")]
    Transport {
        /// `fetch from` or `push to`.
        doing: &'static str,
        /// The remote, without a password.
        remote: String,
        /// What git said.
        source: GitError,
    },
    /// The remote kept refusing.
    #[error("{remote} did not take {refs} after {tries}: {}", printable(.why))]
    Rejected {
        /// The remote, without a password.
        remote: String,
        /// What was refused.
        refs: String,
        /// How often it was tried.
        tries: String,
        /// What git said of the first of them.
        why: String,
    },
    /// There is nothing that could be restored.
    #[error("no ledger was ever fetched from {remote}")]
    NothingSeen {
        /// The remote, without a password.
        remote: String,
    },
    /// The repository cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::through_store!(
    ShareError: super::refs::RefError,
    super::object::ObjectError,
    super::tree::TreeError,
    super::lock::LockError,
    super::open::RevisionError,
    GitError
);

/// A remote: a configured one, an address, or a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// As it was given, for git.
    given: String,
    /// As it stands in refs: the name of a configured remote, otherwise a digest of the address.
    key: String,
}

impl Remote {
    /// The remote for a person: an address without user and password.
    pub fn shown(&self) -> String {
        printable(&without_credentials(&self.given))
    }

    /// What was last fetched from it.
    fn tracking(&self, space: &Space) -> String {
        format!("refs/cbia/remotes/{}/{}", self.key, space.0)
    }

    /// The name that it has there for what would be usable here as `name`; `prefix` is where it landed.
    fn at(&self, prefix: &str, name: &RefName) -> String {
        let space = prefix.strip_prefix(&format!("refs/cbia/remotes/{}/", self.key)).unwrap_or_default();
        format!("refs/cbia/{space}{}", name.as_str().trim_start_matches("refs/cbia/"))
    }

    /// Whether it is a file.
    fn is_bundle(&self) -> bool {
        self.key.starts_with(BUNDLES)
    }

    /// The tips that its ledgers were last seen at.
    fn seen(&self, space: &Space) -> String {
        format!("refs/cbia/seen/{}/{}", self.key, space.0)
    }
}

fn without_credentials(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => address.to_owned(),
    }
}

/// A part of a remote's `refs/cbia/`: all of it, or the namespace of untrusted writers; empty, or ending in a slash.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Space(String);

impl Space {
    fn top() -> Self {
        Self(String::new())
    }

    fn remote(&self) -> String {
        format!("refs/cbia/{}", self.0)
    }
}

/// When evidence is pushed without being asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushWhen {
    /// Only by `git cbia push`.
    Never,
    /// After each run, and what a pushed branch rests on before the branch.
    OnRun,
    /// What a pushed branch rests on, before the branch.
    OnPrePush,
}

/// The settings of sharing.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// `cbia.remote`: where a miss asks, in order.
    pub remotes: Vec<Remote>,
    /// `cbia.pushRemote`: where evidence is pushed to; the first of `cbia.remote` if unset.
    pub push_remote: Option<Remote>,
    /// `cbia.push`.
    pub push: PushWhen,
    /// `cbia.writer`: the name of this writer's ledger on a remote.
    pub writer: String,
    /// `cbia.cacheNamespace`: where an untrusted writer writes, and reads beside what everybody reads.
    space: Option<Space>,
    /// `cbia.trust`, and how many signers it asks for.
    trust: Trust,
    /// `cbia.remoteTimeout`, in seconds.
    timeout: Duration,
    /// `cbia.maxFetchBytes`.
    max_bytes: u64,
}

impl Sharing {
    /// What the refs begin with that this clone writes to on a remote, where those are not everybody's.
    pub fn namespace(&self) -> Option<String> {
        self.space.as_ref().map(Space::remote)
    }

    /// Where this clone writes on a remote.
    fn writes_to(&self) -> Space {
        self.space.clone().unwrap_or_else(Space::top)
    }

    /// What this clone reads of a remote, in order: what everybody reads, then its own namespace.
    fn reads_from(&self) -> Vec<Space> {
        [Space::top()].into_iter().chain(self.space.clone()).collect()
    }

    /// Whether what comes from elsewhere needs the word of a signer.
    fn signed(&self) -> bool {
        self.trust != Trust::Content
    }

    /// A person is there.
    fn attended(&self) -> Bounds {
        Bounds { wait: None, max_bytes: self.max_bytes }
    }

    /// Nobody waits for longer than this.
    fn unattended(&self) -> Bounds {
        Bounds { wait: Some(self.timeout), max_bytes: self.max_bytes }
    }
}

impl Store {
    /// The settings of sharing.
    pub fn sharing(&self) -> Result<Sharing, ShareError> {
        let text = |key: &str| self.config_string(key).filter(|value| !value.is_empty());
        let remotes = self
            .config_strings("cbia.remote")
            .into_iter()
            .filter(|given| !given.is_empty())
            .map(|given| self.remote("cbia.remote", &given));
        let remotes = remotes.collect::<Result<Vec<_>, _>>()?;
        let push_remote = match text("cbia.pushRemote") {
            Some(given) => Some(self.remote("cbia.pushRemote", &given)?),
            None => remotes.first().cloned(),
        };
        let push = match text("cbia.push").as_deref() {
            Some("never") => PushWhen::Never,
            Some("on-run") => PushWhen::OnRun,
            None | Some("on-pre-push") => PushWhen::OnPrePush,
            Some(other) => {
                let wanted = "it may be never, on-run or on-pre-push";
                return Err(ShareError::Setting { key: "cbia.push", value: other.to_owned(), wanted });
            }
        };
        let trust = self.trust().map_err(|finding| {
            let (key, wanted) = match finding.path.as_deref() {
                Some("cbia.attestations") => ("cbia.attestations", "it must be a number from 1 to 64"),
                _ => ("cbia.trust", "it may be content or signed"),
            };
            ShareError::Setting { key, value: finding.got.unwrap_or_default(), wanted }
        })?;
        let writer = match text("cbia.writer") {
            Some(name) if slug(&name) == name => name,
            Some(value) => {
                let wanted =
                    "it may have small letters, digits, '.', '-' and '_', must begin with a letter or digit, and end with one";
                return Err(ShareError::Setting { key: "cbia.writer", value, wanted });
            }
            None => slug(&self.signature(Role::Committer).email),
        };
        let space = match text("cbia.cacheNamespace") {
            None => None,
            Some(name) if slug(&name) == name => Some(Space(format!("ns/{name}/"))),
            Some(value) => {
                let wanted =
                    "it may have small letters, digits, '.', '-' and '_', must begin with a letter or digit, and end with one";
                return Err(ShareError::Setting { key: "cbia.cacheNamespace", value, wanted });
            }
        };
        let number = |key: &'static str, default: u64, most: u64, wanted: &'static str| match text(key) {
            None => Ok(default),
            Some(value) => match self.config_integer(key).and_then(|number| u64::try_from(number).ok()) {
                Some(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(ShareError::Setting { key, value, wanted }),
            },
        };
        let timeout = number("cbia.remoteTimeout", TIMEOUT.as_secs(), 86_400, "it must be a number of seconds from 1 to 86400")?;
        let max_bytes =
            number("cbia.maxFetchBytes", MAX_FETCH_BYTES, 1 << 50, "it must be a number of bytes, which may end in k, m or g")?;
        let timeout = Duration::from_secs(timeout);
        Ok(Sharing { remotes, push_remote, push, writer, space, trust, timeout, max_bytes })
    }

    /// A remote as it is named in `source`, a setting or the command line.
    pub fn remote(&self, source: &'static str, given: &str) -> Result<Remote, ShareError> {
        if given.is_empty() || given.starts_with('-') || given.chars().any(char::is_control) {
            let wanted = "it must be the name of a remote, an address or a path, and cannot begin with '-'";
            return Err(ShareError::Setting { key: source, value: given.to_owned(), wanted });
        }
        let configured = self.config_string(&format!("remote.{given}.url")).is_some();
        let key = if configured && is_plain(given) {
            given.to_owned()
        } else {
            format!("at-{}", &Digest::of(given.as_bytes()).to_string()[..16])
        };
        Ok(Remote { given: given.to_owned(), key })
    }

    /// A bundle as a remote. Each bundle is one of its own: that another one lacks a ledger says nothing.
    pub(in crate::store) fn bundle_remote(&self, file: &std::path::Path, digest: &Digest) -> Result<Remote, ShareError> {
        let given = file.to_str().ok_or_else(|| ShareError::Setting {
            key: "the bundle",
            value: file.display().to_string(),
            wanted: "its path must be valid UTF-8",
        })?;
        Ok(Remote { given: given.to_owned(), key: format!("{BUNDLES}{}", &digest.to_string()[..16]) })
    }

    /// The remote to push to: the one that is named, else as configured, else `origin`.
    pub fn remote_to_push(&self, sharing: &Sharing, named: Option<&str>) -> Result<Remote, ShareError> {
        match (named, &sharing.push_remote) {
            (Some(named), _) => self.remote("the remote", named),
            (None, Some(remote)) => Ok(remote.clone()),
            (None, None) => self.origin("cbia.pushRemote"),
        }
    }

    /// The remotes to fetch from: the one that is named, else as configured, else `origin`.
    pub fn remotes_to_fetch(&self, sharing: &Sharing, named: Option<&str>) -> Result<Vec<Remote>, ShareError> {
        match named {
            Some(named) => Ok(vec![self.remote("the remote", named)?]),
            None if sharing.remotes.is_empty() => Ok(vec![self.origin("cbia.remote")?]),
            None => Ok(sharing.remotes.clone()),
        }
    }

    fn origin(&self, key: &'static str) -> Result<Remote, ShareError> {
        let remote = self.remote(key, ORIGIN)?;
        if remote.key == ORIGIN { Ok(remote) } else { Err(ShareError::NoRemote { key }) }
    }

    fn config_integer(&self, key: &str) -> Option<i64> {
        self.repo.config_snapshot().integer(key)
    }

    /// Deletes every ref below `prefix`.
    fn clear_refs(&self, prefix: &str) -> Result<(), ShareError> {
        let refs = self.refs_under(prefix)?;
        let gone: Vec<RefUpdate> = refs.into_iter().map(|(name, _)| RefUpdate { name, new: None, expected: None }).collect();
        Ok(self.update_refs(&gone)?)
    }

    /// Notes that `name` is `new` now.
    fn note_refs(&self, refs: impl IntoIterator<Item = (RefName, Oid)>) -> Result<(), ShareError> {
        let updates: Vec<_> = refs.into_iter().map(|(name, id)| RefUpdate { name, new: Some(id), expected: None }).collect();
        Ok(self.update_refs(&updates)?)
    }
}

/// Whether a name can stand in a ref as it is.
fn is_plain(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let reserved = name.starts_with("at-") || name.ends_with(".lock") || name.contains("..");
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= MAX_NAME && name.chars().all(sound) && ends(name.chars().next()) && ends(name.chars().last()) && !reserved
}

/// A name that can stand in a ref on every file system, from any text: `Ada@Example.org` is `ada-example.org`.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.to_lowercase().chars() {
        let c = if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
        if !(matches!(c, '.' | '-') && slug.ends_with(['.', '-'])) {
            slug.push(c);
        }
        if slug.len() >= MAX_NAME {
            break;
        }
    }
    let slug = slug.trim_matches(['.', '-', '_']);
    match slug {
        "" => "unknown".to_owned(),
        // The folder of the namespaces.
        "ns" => "ns.writer".to_owned(),
        DOCTOR => format!("{DOCTOR}.writer"),
        _ if slug.ends_with(".lock") => format!("{slug}-1"),
        _ => slug.to_owned(),
    }
}

/// `one try`, `2 tries`.
fn times(count: u32) -> String {
    if count == 1 { "one try".to_owned() } else { format!("{count} tries") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Repo;
    use super::*;

    #[test]
    fn a_writer_has_a_name_that_every_ref_can_have() {
        for (text, wanted) in [
            ("Ada@Example.org", "ada-example.org"),
            ("a..b--c@x", "a.b-c-x"),
            ("", "unknown"),
            ("@@@", "unknown"),
            ("ns", "ns.writer"),
            ("x.lock", "x.lock-1"),
            ("cbia@doctor", "cbia-doctor.writer"),
            ("jürgen@büro.de", "j-rgen-b-ro.de"),
            ("../../etc/passwd", "etc-passwd"),
        ] {
            assert_eq!(slug(text), wanted, "{text}");
            assert_eq!(slug(wanted), wanted, "{text}");
            format!("refs/cbia/ledgers/{wanted}").parse::<RefName>().unwrap();
        }
        assert!(slug(&"x".repeat(500)).len() <= MAX_NAME);
    }

    #[test]
    fn a_remote_is_shown_without_its_password_and_kept_under_a_sound_name() {
        let repo = Repo::new();
        repo.git(&["remote", "add", "team", "https://example.org/x"]);
        repo.git(&["remote", "add", "a/b", "https://example.org/y"]);
        let store = repo.store();
        let remote = |given: &str| store.remote("the remote", given).unwrap();
        assert_eq!(remote("team").key, "team");
        for given in ["a/b", "team2", "https://ada:secret@example.org/z.git", "../elsewhere", "git@host:x"] {
            let remote = remote(given);
            assert!(remote.key.starts_with("at-"), "{given}");
            assert!(!remote.shown().contains("secret"));
            format!("refs/cbia/remotes/{}/x", remote.key).parse::<RefName>().unwrap();
            for space in [Space::top(), Space("ns/pulls/".into())] {
                let name = "refs/cbia/runs/x/y".parse().unwrap();
                assert_eq!(remote.at(&remote.tracking(&space), &name), format!("{}runs/x/y", space.remote()));
            }
        }
        assert_eq!(remote("https://ada:secret@example.org/z.git").shown(), "https://example.org/z.git");
        for given in ["", "-u", "--upload-pack=touch x", "a\nb"] {
            assert!(matches!(store.remote("the remote", given), Err(ShareError::Setting { .. })), "{given:?}");
        }
        assert!(matches!(store.remote_to_push(&store.sharing().unwrap(), None), Err(ShareError::NoRemote { .. })));
    }

    #[test]
    fn settings_are_read_or_refused() {
        let cases: [(&str, &str, bool); 15] = [
            ("cbia.push", "on-run", true),
            ("cbia.push", "always", false),
            ("cbia.trust", "signed", true),
            ("cbia.trust", "Signed", false),
            ("cbia.attestations", "2", true),
            ("cbia.attestations", "0", false),
            ("cbia.writer", "ci-1", true),
            ("cbia.writer", "a/b", false),
            ("cbia.cacheNamespace", "pull", true),
            ("cbia.cacheNamespace", "../x", false),
            ("cbia.remoteTimeout", "0", false),
            ("cbia.remoteTimeout", "soon", false),
            ("cbia.maxFetchBytes", "1m", true),
            ("cbia.maxFetchBytes", "-1", false),
            ("cbia.remote", "--upload-pack=x", false),
        ];
        for (key, value, good) in cases {
            let repo = Repo::new();
            repo.git(&["config", key, value]);
            assert_eq!(repo.store().sharing().is_ok(), good, "{key} = {value}");
        }
        let repo = Repo::new();
        for (key, value) in [("cbia.remote", "../a"), ("cbia.remote", "../b"), ("cbia.maxFetchBytes", "1m")] {
            repo.git(&["config", "--add", key, value]);
        }
        let sharing = repo.store().sharing().unwrap();
        assert_eq!(sharing.remotes.iter().map(Remote::shown).collect::<Vec<_>>(), ["../a", "../b"]);
        assert_eq!(sharing.push_remote.as_ref(), sharing.remotes.first());
        assert_eq!((sharing.max_bytes, sharing.push, sharing.trust), (1 << 20, PushWhen::OnPrePush, Trust::Content));
    }
}
