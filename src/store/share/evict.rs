//! Making room on a remote: the oldest runs and cache entries there go, so that it stays under a number of refs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Remote, ShareError, Sharing};
use crate::document::digest::Digest;
use crate::store::gc::{About, Rested, RunKeys, attested, is_ledger};
use crate::store::git::GitError;
use crate::store::{Oid, Store};

/// How many refs one push deletes.
const CHUNK: usize = 100;
/// The longest list of refs that is read, in bytes: where it is longer, the rest is not known, and nothing is removed.
const MAX_LIST: usize = 15 << 20;

/// How much is kept on a remote.
#[derive(Clone, Copy, Default, Debug)]
pub struct RemoteKeep {
    /// The newest so many runs.
    pub runs: Option<usize>,
    /// At most so many refs below `refs/cbia/`.
    pub refs: Option<usize>,
}

/// What was evicted.
#[derive(Clone, Default, Debug)]
pub struct Evicted {
    /// The remote, without a password.
    pub remote: String,
    /// How many refs it had below `refs/cbia/`.
    pub refs: usize,
    /// The refs that go or went, with what they pointed at.
    pub gone: Vec<(String, Oid)>,
    /// Those that the remote kept, with the reason.
    pub kept: Vec<(String, String)>,
}

impl Store {
    /// Removes the oldest runs of a remote, by what the ledgers that are known here say, with the cache entries that only they name. What
    /// something rests on stays, and so does every ledger and attestation. Each goes only if it is still what the remote was seen to have.
    pub fn evict(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        keep: RemoteKeep,
        rested: &Rested,
        dry_run: bool,
    ) -> Result<Evicted, ShareError> {
        let failed = |source| ShareError::Transport { doing: "list the refs of", remote: remote.shown(), source };
        let arguments = ["--quiet", "--", &remote.given, "refs/cbia/*"].map(str::to_owned);
        let said = self.talk("ls-remote", &[], &arguments, sharing.attended()).map_err(failed)?;
        if !said.success {
            return Err(failed(super::fetch::complaint("ls-remote", remote, &said)));
        }
        if said.stdout.len() > MAX_LIST {
            return Err(failed(GitError::TooMuch { what: "ls-remote", limit: MAX_LIST as u64 }));
        }
        let listed = said.stdout.lines().filter_map(|line| line.split_once('\t'));
        let listed: Vec<(&str, Oid)> = listed
            .filter(|(_, name)| !name.ends_with("^{}"))
            .filter_map(|(id, name)| Some((name, Oid::from_hex(id.as_bytes()).ok()?)))
            .collect();
        let mut evicted = Evicted { remote: remote.shown(), refs: listed.len(), ..Evicted::default() };
        let going = self.to_evict(&listed, keep, rested)?;
        if dry_run {
            evicted.gone = going;
            return Ok(evicted);
        }
        for chunk in going.chunks(CHUNK) {
            let mut arguments: Vec<String> =
                ["--porcelain", "--no-verify", "--no-follow-tags", "--no-progress"].map(str::to_owned).into();
            arguments.extend(chunk.iter().map(|(name, id)| format!("--force-with-lease={name}:{id}")));
            arguments.extend(["--".to_owned(), remote.given.clone()]);
            arguments.extend(chunk.iter().map(|(name, _)| format!(":{name}")));
            let failed = |source| ShareError::Transport { doing: "push to", remote: remote.shown(), source };
            let said = self.talk("push", &[], &arguments, sharing.attended()).map_err(failed)?;
            let answer = |name: &str| {
                said.stdout.lines().find_map(|line| {
                    let mut fields = line.split('\t');
                    let (mark, names, why) = (fields.next()?, fields.next()?, fields.next()?);
                    (names.trim_start_matches(':') == name).then(|| (mark == "-", why.to_owned()))
                })
            };
            for (name, id) in chunk {
                match answer(name) {
                    Some((true, _)) => evicted.gone.push((name.clone(), *id)),
                    Some((false, why)) => evicted.kept.push((name.clone(), why)),
                    None => return Err(failed(super::fetch::complaint("push", remote, &said))),
                }
            }
        }
        Ok(evicted)
    }

    /// What of these refs of a remote goes, oldest first.
    fn to_evict(&self, listed: &[(&str, Oid)], keep: RemoteKeep, rested: &Rested) -> Result<Vec<(String, Oid)>, ShareError> {
        let tips: HashSet<Oid> =
            self.refs_under("refs/cbia/")?.iter().filter(|(name, _)| is_ledger(name.as_str())).map(|(_, id)| *id).collect();
        let heard = self.hear(&tips, &HashSet::new())?;
        let attested: BTreeSet<RunKeys> = listed.iter().filter_map(|(name, _)| attested(name)).collect();
        let promoted = self.promoted_in_commits()?;
        let rests = |keys: &RunKeys, tip: &Oid| {
            attested.contains(keys) || heard.is_promoted(tip) || promoted.contains(tip) || rested.holds(keys, tip)
        };
        let about = |name: &str| About::of(name.strip_prefix("refs/cbia/")?);
        let mut runs: Vec<(i64, &str, Oid, RunKeys)> = Vec::new();
        let mut entries: BTreeMap<Digest, (&str, Oid)> = BTreeMap::new();
        for (name, id) in listed {
            match about(name) {
                Some(about @ About::Run(keys)) => runs.push((heard.recorded(about).unwrap_or(i64::MAX), name, *id, keys)),
                Some(About::Entry(key)) => drop(entries.insert(key, (name, *id))),
                None => {}
            }
        }
        // The oldest first.
        runs.sort();
        let mut named: HashMap<&Digest, usize> = HashMap::new();
        for key in runs.iter().flat_map(|run| heard.keys_of(&run.3)) {
            *named.entry(key).or_default() += 1;
        }
        let by_number = keep.runs.map_or(0, |keep| runs.len().saturating_sub(keep));
        let excess = keep.refs.map_or(0, |most| listed.len().saturating_sub(most));
        let free = |at: usize| !rests(&runs[at].3, &runs[at].2);
        let mut going: Vec<(String, Oid)> = Vec::new();
        for at in (0..runs.len()).filter(|at| free(*at)) {
            if at >= by_number && going.len() >= excess {
                break;
            }
            going.push((runs[at].1.to_owned(), runs[at].2));
            for key in heard.keys_of(&runs[at].3) {
                let Some(count) = named.get_mut(key) else { continue };
                *count -= 1;
                // The last run that names it goes.
                if let (0, Some((name, id))) = (*count, entries.get(key)) {
                    going.push(((*name).to_owned(), *id));
                }
            }
        }
        Ok(going)
    }
}
