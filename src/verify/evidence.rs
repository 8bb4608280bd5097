//! The runs that are known: those of this repository, those that were fetched, and those that come with the same push.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::VerifyError;
use crate::document::digest::Digest;
use crate::store::refs::RefName;
use crate::store::{Oid, Store};

const RUNS: &str = "refs/cbia/runs/";
const REMOTES: &str = "refs/cbia/remotes/";
const ATTESTATIONS: &str = "refs/cbia/attestations/";
const NAMESPACES: &str = "refs/cbia/ns/";

/// A stored run, believed only after it was derived again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The ref: of this repository, of a remote, or of the push.
    pub name: String,
    /// The key of the state that its name claims.
    pub state_key: Digest,
    /// The key of the executor that its name claims.
    pub executor_key: Digest,
    /// Its last phase commit.
    pub tip: Oid,
}

impl Run {
    /// The run that a ref's name claims to be; `None` if it does not look like one.
    pub fn named(name: &str, tip: Oid) -> Option<Self> {
        let mut parts = name.rsplit('/');
        let (executor_key, state_key) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (parts.next() == Some("runs")).then(|| Self { name: name.to_owned(), state_key, executor_key, tip })
    }

    /// The name it has where it is at home: `refs/cbia/runs/…`, whatever it was fetched into.
    pub fn home(&self) -> String {
        format!("{RUNS}{}/{}", self.state_key, self.executor_key)
    }
}

/// What is known.
pub struct Evidence<'a> {
    store: &'a Store,
    pushed: BTreeMap<Digest, Vec<Run>>,
    remotes: OnceCell<BTreeMap<Digest, Vec<Run>>>,
    /// Attestations of the push, and fetched ones, by the two keys as they stand in the names of refs.
    pushed_attestations: BTreeMap<String, Vec<(RefName, Oid)>>,
    remote_attestations: OnceCell<BTreeMap<String, Vec<(RefName, Oid)>>>,
    /// What the refs of those namespaces begin with that count now.
    spaces: Vec<String>,
}

/// The two keys in the name of an attestation's ref: `<state_key>/<executor_key>`.
fn attested_keys(name: &str) -> Option<&str> {
    let (before, _signer) = name.rsplit_once('/')?;
    let (rest, _executor_key) = before.rsplit_once('/')?;
    let (folder, state_key) = rest.rsplit_once('/')?;
    folder.ends_with("/attestations").then(|| &before[rest.len() - state_key.len()..])
}

/// The namespace that a ref lies in, here or as it was fetched from a remote: whose evidence that is, is not told by anything else.
fn namespace(name: &str) -> Option<&str> {
    if let Some(rest) = name.strip_prefix(NAMESPACES) {
        return Some(rest.split('/').next().unwrap_or_default());
    }
    let mut parts = name.strip_prefix(REMOTES)?.split('/').skip(1).skip_while(|part| *part != "ns");
    parts.next().and_then(|_| parts.next())
}

/// Whether a ref of a push lies below `folder` of `refs/cbia/`, or at the same place of a namespace.
fn is_shared(name: &str, folder: &str) -> bool {
    let inside = name.strip_prefix(NAMESPACES).and_then(|rest| rest.split_once('/')).map(|(_, rest)| rest);
    match (inside, folder.strip_prefix("refs/cbia/")) {
        (Some(inside), Some(folder)) => inside.starts_with(folder),
        _ => name.starts_with(folder),
    }
}

impl<'a> Evidence<'a> {
    /// What `store` has.
    pub fn of(store: &'a Store) -> Self {
        Self::with_pushed(store, std::iter::empty())
    }

    /// What `store` has, and the refs of a push, which are no refs yet.
    pub fn with_pushed<'r>(store: &'a Store, refs: impl IntoIterator<Item = (&'r str, Oid)>) -> Self {
        let mut pushed: BTreeMap<Digest, Vec<Run>> = BTreeMap::new();
        let mut pushed_attestations: BTreeMap<String, Vec<(RefName, Oid)>> = BTreeMap::new();
        for (name, tip) in refs {
            if let (true, Some(keys), Ok(name)) = (is_shared(name, ATTESTATIONS), attested_keys(name), name.parse()) {
                pushed_attestations.entry(keys.to_owned()).or_default().push((name, tip));
            }
            if let Some(run) = Run::named(name, tip).filter(|run| is_shared(name, &run.home())) {
                pushed.entry(run.state_key).or_default().push(run);
            }
        }
        Self {
            store,
            pushed,
            remotes: OnceCell::new(),
            pushed_attestations,
            remote_attestations: OnceCell::new(),
            spaces: Vec::new(),
        }
    }

    /// From now on, what lies below these counts too; whether that is something else than before.
    pub(super) fn count(&mut self, spaces: &[String]) -> bool {
        let changed = self.spaces != spaces;
        self.spaces = spaces.to_vec();
        changed
    }

    /// Whether a ref of a push or of a remote counts: everybody's, and those of the namespaces.
    fn counts(&self, name: &str) -> bool {
        namespace(name).is_none_or(|space| self.spaces.iter().any(|counting| *counting == format!("{NAMESPACES}{space}/")))
    }

    /// The refs below `folder` of `refs/cbia/` that are in the namespaces.
    fn in_spaces(&self, folder: &str) -> Result<Vec<(RefName, Oid)>, VerifyError> {
        let mut found = Vec::new();
        for space in &self.spaces {
            found.extend(self.store.refs_under(&format!("{space}{folder}"))?);
        }
        Ok(found)
    }

    /// What may be attestations of a run, by refs of this repository, of remotes, and of the push.
    pub fn attestations(&self, state_key: &Digest, executor_key: &Digest) -> Result<Vec<(RefName, Oid)>, VerifyError> {
        let keys = format!("{state_key}/{executor_key}");
        let mut found = self.pushed_attestations.get(&keys).cloned().unwrap_or_default();
        found.retain(|(name, _)| self.counts(name.as_str()));
        found.extend(self.in_spaces(&format!("attestations/{keys}/"))?);
        found.extend(self.store.attestations(state_key, executor_key)?);
        if self.remote_attestations.get().is_none() {
            let mut remote: BTreeMap<String, Vec<(RefName, Oid)>> = BTreeMap::new();
            for (name, tag) in self.store.refs_under(REMOTES)? {
                if let Some(keys) = attested_keys(name.as_str()) {
                    remote.entry(keys.to_owned()).or_default().push((name, tag));
                }
            }
            drop(self.remote_attestations.set(remote));
        }
        let remote = self.remote_attestations.get().and_then(|remote| remote.get(&keys)).into_iter().flatten();
        found.extend(remote.filter(|(name, _)| self.counts(name.as_str())).cloned());
        Ok(found)
    }

    /// The runs that claim to be of this state, each tip once.
    pub fn of_state(&self, state_key: &Digest) -> Result<Vec<Run>, VerifyError> {
        let mut found = self.pushed.get(state_key).cloned().unwrap_or_default();
        found.retain(|run| self.counts(&run.name));
        let own = self.store.refs_under(&format!("{RUNS}{state_key}/"))?.into_iter();
        let own = own.chain(self.in_spaces(&format!("runs/{state_key}/"))?);
        found.extend(own.filter_map(|(name, tip)| Run::named(name.as_str(), tip)));
        let remote = self.remotes()?.get(state_key).into_iter().flatten();
        found.extend(remote.filter(|run| self.counts(&run.name)).cloned());
        Ok(each_once(found))
    }

    /// A run that claims to be of this state, and is in a namespace that does not count now.
    pub(super) fn elsewhere(&self, state_key: &Digest) -> Result<Option<String>, VerifyError> {
        let fetched = self.remotes()?.get(state_key).into_iter().flatten();
        let pushed = self.pushed.get(state_key).into_iter().flatten().chain(fetched).map(|run| run.name.clone());
        let own = self.store.refs_under(NAMESPACES)?.into_iter().map(|(name, tip)| (name.as_str().to_owned(), tip));
        let own = own.filter_map(|(name, tip)| Run::named(&name, tip)).filter(|run| run.state_key == *state_key);
        Ok(pushed.chain(own.map(|run| run.name)).find(|name| !self.counts(name)))
    }

    /// Every run, those of the push first, at most `limit`.
    pub fn all(&self, limit: usize) -> Result<Vec<Run>, VerifyError> {
        let mut found: Vec<Run> = self.pushed.values().flatten().filter(|run| self.counts(&run.name)).cloned().collect();
        let own = self.store.refs_under(RUNS)?.into_iter().chain(self.in_spaces("runs/")?);
        found.extend(own.filter_map(|(name, tip)| Run::named(name.as_str(), tip)));
        found.extend(self.remotes()?.values().flatten().filter(|run| self.counts(&run.name)).cloned());
        let mut found = each_once(found);
        found.truncate(limit);
        Ok(found)
    }

    fn remotes(&self) -> Result<&BTreeMap<Digest, Vec<Run>>, VerifyError> {
        if let Some(remotes) = self.remotes.get() {
            return Ok(remotes);
        }
        let mut found: BTreeMap<Digest, Vec<Run>> = BTreeMap::new();
        for (name, tip) in self.store.refs_under(REMOTES)? {
            if let Some(run) = Run::named(name.as_str(), tip) {
                found.entry(run.state_key).or_default().push(run);
            }
        }
        Ok(self.remotes.get_or_init(|| found))
    }
}

fn each_once(runs: Vec<Run>) -> Vec<Run> {
    let mut kept: Vec<Run> = Vec::with_capacity(runs.len());
    let mut seen = std::collections::HashSet::new();
    kept.extend(runs.into_iter().filter(|run| seen.insert((run.tip, run.state_key, run.executor_key))));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_an_attestation_are_those_before_its_signer() {
        for (name, wanted) in [
            ("refs/cbia/attestations/a/b/ssh-c", Some("a/b")),
            ("refs/cbia/remotes/origin/attestations/a/b/ssh-c", Some("a/b")),
            ("refs/cbia/attestations/a/b", None),
            ("refs/cbia/runs/a/b/c", None),
            ("x", None),
        ] {
            assert_eq!(attested_keys(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_namespace_is_one_wherever_it_was_fetched_from() {
        for (name, wanted) in [
            ("refs/cbia/runs/a/b", None),
            ("refs/cbia/ns/pulls/runs/a/b", Some("pulls")),
            ("refs/cbia/remotes/origin/runs/a/b", None),
            ("refs/cbia/remotes/ns/runs/a/b", None),
            ("refs/cbia/remotes/origin/ns/pulls/runs/a/b", Some("pulls")),
            ("refs/cbia/remotes/origin/ns/pulls/attestations/a/b/c", Some("pulls")),
            ("refs/cbia/remotes/a/b/ns/pulls/runs/a/b", Some("pulls")),
        ] {
            assert_eq!(namespace(name), wanted, "{name}");
        }
    }

    #[test]
    fn only_a_name_of_two_keys_below_runs_is_a_run() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let tip = Oid::null(gix::hash::Kind::Sha1);
        for (name, wanted) in [
            (format!("refs/cbia/runs/{a}/{b}"), true),
            (format!("refs/cbia/remotes/origin/runs/{a}/{b}"), true),
            (format!("refs/cbia/runs/{a}"), false),
            (format!("refs/cbia/attestations/{a}/{b}"), false),
            (format!("refs/cbia/runs/{a}/{b}/c"), false),
            (format!("refs/cbia/runs/{}/{b}", &a.to_string()[..63]), false),
        ] {
            let run = Run::named(&name, tip);
            assert_eq!(run.is_some(), wanted, "{name}");
            assert!(run.is_none_or(|run| run.home() == format!("refs/cbia/runs/{a}/{b}")));
        }
    }
}
