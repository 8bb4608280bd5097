//! Giving a remote what this clone has. What is to go is staged below `refs/cbia/outbox/` and pushed by one pattern: a request that named
//! thousands of refs would take git minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::fetch::complaint;
use super::ledgers::INCOMING;
use super::{Remote, ShareError, Sharing, Space, times};
use crate::document::finding::{Finding, Severity};
use crate::document::phase::Phase;
use crate::store::refs::RefName;
use crate::store::talk::Bounds;
use crate::store::{Oid, Store};

/// Where what is to be pushed is staged.
const OUTBOX: &str = "refs/cbia/outbox/";
/// How often a push is tried while others move the same refs.
const MAX_TRIES: u32 = 12;
/// The first pause between two tries, on average; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(25);
/// The longest pause, on average.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long another push of this clone is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(600);
/// A push that nobody asked for may take this many times as long as a lookup.
const UNASKED: u32 = 6;
/// What a remote says when trying again is of no use.
const FINAL: [&str; 7] = ["hook declined", "hidden ref", "unpacker error", "prohibited", "protected", "not allowed", "denied"];

/// What a push gave.
#[derive(Clone, Default, Debug)]
pub struct Pushed {
    /// The remote, without a password.
    pub remote: String,
    /// How many runs it took.
    pub runs: usize,
    /// How many cache entries it took.
    pub entries: usize,
    /// How many attestations it took.
    pub attestations: usize,
    /// The newest record, if the remote had it not.
    pub ledger: Option<Oid>,
    /// How often git pushed; zero where there was nothing to push.
    pub tries: u32,
    /// What the remote holds otherwise.
    pub findings: Vec<Finding>,
}

/// What is to be pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What<'a> {
    /// What the remote is not known to have.
    News,
    /// Everything, whatever the remote was known to have.
    All,
    /// Of these refs, by their names below `refs/cbia/`, and of the ledger, what the remote is not known to have.
    These(&'a BTreeMap<String, Oid>),
}

/// What became of one ref.
struct Outcome {
    /// The ref, after the space's prefix.
    rest: String,
    /// Why it was rejected, if it was.
    why: Option<String>,
}

impl Store {
    /// Pushes runs, cache entries, attestations and this writer's ledger. A person is there, and may be asked for a password.
    pub fn push_shared(&self, sharing: &Sharing, remote: &Remote, what: What<'_>) -> Result<Pushed, ShareError> {
        self.push_within(sharing, remote, what, sharing.attended())
    }

    /// As [`Store::push_shared`], where nobody is there: it ends after a while, and asks for nothing.
    pub fn push_unasked(&self, sharing: &Sharing, remote: &Remote) -> Result<Pushed, ShareError> {
        let bounds = Bounds { wait: Some(sharing.timeout * UNASKED), ..sharing.unattended() };
        self.push_within(sharing, remote, What::News, bounds)
    }

    fn push_within(&self, sharing: &Sharing, remote: &Remote, what: What<'_>, bounds: Bounds) -> Result<Pushed, ShareError> {
        let guard = self.lock("share-push", Some(LOCK_WAIT))?;
        let pushed = self.push_until_taken(sharing, remote, what, bounds);
        self.clear_refs(OUTBOX)?;
        self.clear_left()?;
        drop(guard);
        pushed
    }

    /// What a process was bringing that was killed goes, unless somebody is bringing something now.
    fn clear_left(&self) -> Result<(), ShareError> {
        if !self.refs_under(INCOMING)?.is_empty()
            && let Ok(guard) = self.lock("share-fetch", Some(Duration::ZERO))
        {
            self.clear_refs(INCOMING)?;
            drop(guard);
        }
        Ok(())
    }

    fn push_until_taken(&self, sharing: &Sharing, remote: &Remote, what: What<'_>, bounds: Bounds) -> Result<Pushed, ShareError> {
        let space = sharing.writes_to();
        let own = format!("ledgers/{}", sharing.writer);
        let mut pushed = Pushed { remote: remote.shown(), ..Pushed::default() };
        let mut left_out = BTreeSet::new();
        loop {
            let mut outgoing = self.outgoing(sharing, remote, &space, what)?;
            outgoing.retain(|rest, _| !left_out.contains(rest));
            if outgoing.is_empty() {
                break;
            }
            pushed.tries += 1;
            let outcomes = self.push_staged(remote, &space, &outgoing, bounds)?;
            let taken = outcomes.iter().filter(|outcome| outcome.why.is_none());
            let taken: Vec<(&str, Oid)> = taken.filter_map(|o| Some((o.rest.as_str(), *outgoing.get(&o.rest)?))).collect();
            self.note_pushed(remote, &space, &taken)?;
            pushed.count(&taken);
            let rejected: Vec<(&str, &str)> =
                outcomes.iter().filter_map(|outcome| Some((outcome.rest.as_str(), outcome.why.as_deref()?))).collect();
            let Some((_, why)) = rejected.first() else { break };
            let hopeless = rejected.iter().find(|(_, why)| FINAL.iter().any(|word| why.contains(word)));
            if hopeless.is_some() || pushed.tries == MAX_TRIES {
                return Err(ShareError::Rejected {
                    remote: remote.shown(),
                    refs: if rejected.len() == 1 { rejected[0].0.to_owned() } else { format!("{} refs", rejected.len()) },
                    tries: times(pushed.tries),
                    why: hopeless.map_or(*why, |(_, why)| why).to_owned(),
                });
            }
            // Before, not after the remote is looked at: what was learnt grows old.
            std::thread::sleep(pause(pushed.tries));
            if !self.learn(sharing, remote, &space, bounds, &rejected, &mut pushed.findings)? {
                left_out.insert(own.clone());
            }
            // What is another object there was told, and cannot be pushed.
            left_out.extend(
                rejected.iter().filter(|(rest, why)| *rest != own && why.starts_with(OURS)).map(|(rest, _)| (*rest).to_owned()),
            );
        }
        Ok(pushed)
    }

    /// Whether a remote was seen to have this at `rest` below `refs/cbia/`, for everybody or for this writer.
    pub fn was_seen_at(&self, remote: &Remote, sharing: &Sharing, rest: &str, id: Oid) -> Result<bool, ShareError> {
        for space in [Space::top(), sharing.writes_to()] {
            if self.ref_target(&format!("{}{rest}", remote.tracking(&space)).parse()?)? == Some(id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is to be pushed, by name after the space's prefix.
    fn outgoing(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        space: &Space,
        what: What<'_>,
    ) -> Result<BTreeMap<String, Oid>, ShareError> {
        let mut known: BTreeSet<(String, Oid)> = BTreeSet::new();
        for space in [Space::top(), space.clone()].iter().filter(|_| what != What::All) {
            let prefix = remote.tracking(space);
            for kind in ["runs/", "cache/", "attestations/"] {
                let refs = self.refs_under(&format!("{prefix}{kind}"))?;
                known.extend(
                    refs.into_iter().filter_map(|(name, id)| Some((name.as_str().strip_prefix(&prefix)?.to_owned(), id))),
                );
            }
        }
        let mut outgoing = BTreeMap::new();
        let mut offer = |rest: String, id: Oid| {
            if !known.contains(&(rest.clone(), id)) && (!rest.starts_with("cache/") || self.is_shared_entry(&rest)) {
                outgoing.insert(rest, id);
            }
        };
        if let What::These(refs) = what {
            refs.iter().for_each(|(rest, id)| offer(rest.clone(), *id));
        } else {
            for kind in ["runs/", "cache/", "attestations/"] {
                for (name, id) in self.refs_under(&format!("refs/cbia/{kind}"))? {
                    offer(name.as_str().trim_start_matches("refs/cbia/").to_owned(), id);
                }
            }
        }
        let own = format!("ledgers/{}", sharing.writer);
        let there = self.ref_target(&format!("{}{own}", remote.tracking(space)).parse()?)?;
        if let Some(tip) = self.ledger_tip()?
            && (there != Some(tip) || what == What::All)
        {
            outgoing.insert(own, tip);
        }
        Ok(outgoing)
    }

    /// Whether a cache entry is of a phase that costs something.
    fn is_shared_entry(&self, rest: &str) -> bool {
        let key = rest.strip_prefix("cache/").and_then(|key| key.parse().ok());
        let data = key.and_then(|key| self.cache_key_data(&key));
        data.is_some_and(|data| matches!(data.phase, Phase::Gen | Phase::Repair))
    }

    /// One push of everything in `outgoing`.
    fn push_staged(
        &self,
        remote: &Remote,
        space: &Space,
        outgoing: &BTreeMap<String, Oid>,
        bounds: Bounds,
    ) -> Result<Vec<Outcome>, ShareError> {
        self.clear_refs(OUTBOX)?;
        let staged = outgoing.iter().map(|(rest, id)| Ok((format!("{OUTBOX}{rest}").parse()?, *id)));
        let staged = staged.collect::<Result<Vec<(RefName, Oid)>, ShareError>>()?;
        self.note_refs(staged)?;
        let mut arguments: Vec<String> =
            ["--porcelain", "--no-verify", "--no-follow-tags", "--recurse-submodules=no", "--no-progress", "--no-atomic", "--"]
                .map(str::to_owned)
                .into();
        arguments.extend([remote.given.clone(), format!("{OUTBOX}*:{}*", space.remote())]);
        let failed = |source| ShareError::Transport { doing: "push to", remote: remote.shown(), source };
        let said = self.talk("push", &[], &arguments, bounds).map_err(failed)?;
        let prefix = space.remote();
        let outcomes: Vec<Outcome> = said.stdout.lines().filter_map(|line| outcome(line, &prefix)).collect();
        let told: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.rest.as_str()).collect();
        let complete = outgoing.keys().all(|rest| told.contains(rest.as_str()));
        if !complete || (!said.success && outcomes.iter().all(|outcome| outcome.why.is_none())) {
            return Err(failed(complaint("push", remote, &said)));
        }
        Ok(outcomes)
    }

    /// Remembers what the remote has now.
    fn note_pushed(&self, remote: &Remote, space: &Space, taken: &[(&str, Oid)]) -> Result<(), ShareError> {
        let mut notes: Vec<(RefName, Oid)> = Vec::new();
        for (rest, id) in taken {
            notes.push((format!("{}{rest}", remote.tracking(space)).parse()?, *id));
            if let Some(writer) = rest.strip_prefix("ledgers/") {
                notes.push((format!("{}{writer}", remote.seen(space)).parse()?, *id));
            }
        }
        self.note_refs(notes)
    }

    /// Finds out what stands in the way: joins what another clone of this writer has recorded, and tells which results are others there.
    /// Whether this writer's ledger can go on there: not where something stands in its place that is none.
    fn learn(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        space: &Space,
        bounds: Bounds,
        rejected: &[(&str, &str)],
        findings: &mut Vec<Finding>,
    ) -> Result<bool, ShareError> {
        let guard = self.lock("share-fetch", Some(LOCK_WAIT))?;
        self.clear_refs(INCOMING)?;
        let own = format!("ledgers/{}", sharing.writer);
        let others: Vec<&str> =
            rejected.iter().filter(|(rest, why)| *rest != own && why.starts_with(OURS)).map(|(rest, _)| *rest).collect();
        let refspec = |rest: &&str| format!("{}{rest}*:{}{rest}*", space.remote(), remote.tracking(space));
        // With a conflict the ledgers of all writers are asked for: they tell who wrote what.
        let writer = others.is_empty().then_some(sharing.writer.as_str());
        let mut refspecs: Vec<String> = others.iter().map(refspec).collect();
        refspecs.push(Self::ledgers_refspec(space, writer));
        let before = self.seen_ledgers()?;
        self.git_fetch(remote, bounds, &refspecs, findings)?;
        let mut told = Vec::new();
        self.take_ledgers(remote, space, &before, false, &mut told)?;
        // What is wrong with the ledgers of others does not stand in the way of this one.
        let own_name = format!("{}{own}", space.remote());
        findings.extend(told.into_iter().map(|finding| match finding.path.as_ref() == Some(&own_name) {
            true => {
                let until = "until then git config cbia.writer NAME gives this clone a ledger of another name there";
                let hint = finding.hint.as_ref().map_or(until.to_owned(), |hint| format!("{hint}; {until}"));
                finding.hint(hint)
            }
            false => Finding { severity: Severity::Warning, ..finding },
        }));
        let mut may_go_on = true;
        if let Some(tip) = self.incoming_ledger(space, &sharing.writer)? {
            may_go_on = self.new_records(tip, None).is_ok();
            // What is no ledger is not made part of this one.
            if may_go_on {
                self.join(&[tip])?;
            }
        }
        self.tell_conflicts(sharing, remote, &remote.tracking(space), &others, findings)?;
        self.clear_refs(INCOMING)?;
        drop(guard);
        Ok(may_go_on)
    }

    /// Gives a remote back the records that it was seen to have. The writers whose ledgers were restored.
    pub fn restore_ledgers(&self, sharing: &Sharing, remote: &Remote) -> Result<Vec<String>, ShareError> {
        let space = sharing.writes_to();
        let guards = (self.lock("share-push", Some(LOCK_WAIT))?, self.lock("share-fetch", Some(LOCK_WAIT))?);
        self.clear_refs(INCOMING)?;
        if self.refs_under(&remote.seen(&space))?.is_empty() {
            return Err(ShareError::NothingSeen { remote: remote.shown() });
        }
        self.git_fetch(remote, sharing.attended(), &[Self::ledgers_refspec(&space, None)], &mut Vec::new())?;
        let restored = self.ledgers_to_restore(sharing, remote)?;
        let outgoing: BTreeMap<String, Oid> = restored.iter().map(|(writer, tip)| (format!("ledgers/{writer}"), *tip)).collect();
        if !outgoing.is_empty() {
            let outcomes = self.push_staged(remote, &space, &outgoing, sharing.attended())?;
            let refused = outcomes.iter().find_map(|outcome| Some((outcome.rest.clone(), outcome.why.clone()?)));
            let taken: Vec<(&str, Oid)> = outgoing.iter().map(|(rest, id)| (rest.as_str(), *id)).collect();
            match refused {
                None => self.note_pushed(remote, &space, &taken)?,
                Some((refs, why)) => {
                    return Err(ShareError::Rejected { remote: remote.shown(), refs, tries: times(1), why });
                }
            }
        }
        self.clear_refs(INCOMING)?;
        self.clear_refs(OUTBOX)?;
        drop(guards);
        Ok(restored.into_iter().map(|(writer, _)| writer).collect())
    }
}

/// How git begins its reason where it refuses by itself, because the remote has another object.
const OURS: &str = "[rejected]";

impl Pushed {
    fn count(&mut self, taken: &[(&str, Oid)]) {
        for (rest, id) in taken {
            match rest.split('/').next() {
                Some("runs") => self.runs += 1,
                Some("cache") => self.entries += 1,
                Some("attestations") => self.attestations += 1,
                _ => self.ledger = Some(*id),
            }
        }
    }

    /// Whether something there is not what is here.
    pub fn refused(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// One line of `git push --porcelain`: flag, `from:to`, and the summary with the reason.
fn outcome(line: &str, prefix: &str) -> Option<Outcome> {
    let mut fields = line.split('\t');
    let (flag, refs, summary) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
    let rest = refs.split_once(':')?.1.strip_prefix(prefix)?.to_owned();
    Some(Outcome { rest, why: (flag == "!").then(|| summary.to_owned()) })
}

/// A pause of random length, so that those who got in each other's way do not do so again.
fn pause(tries: u32) -> Duration {
    let average = PAUSE.saturating_mul(1 << tries.min(16)).min(MAX_PAUSE);
    let thousandths = 500 + RandomState::new().hash_one(tries) % 1000;
    Duration::from_micros(average.as_micros() as u64 * thousandths / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_push_are_read() {
        let read = |line: &str| outcome(line, "refs/cbia/").map(|outcome| (outcome.rest, outcome.why));
        let taken = "*\trefs/cbia/outbox/runs/a/b:refs/cbia/runs/a/b\t[new reference]";
        assert_eq!(read(taken), Some(("runs/a/b".into(), None)));
        let refused = "!\trefs/cbia/outbox/ledgers/x:refs/cbia/ledgers/x\t[remote rejected] (failed to update ref)";
        assert_eq!(read(refused), Some(("ledgers/x".into(), Some("[remote rejected] (failed to update ref)".into()))));
        assert_eq!(read("To /somewhere"), None);
        assert_eq!(read("Done"), None);
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        for tries in 1..=40 {
            assert!(pause(tries) <= MAX_PAUSE * 3 / 2);
            assert!(pause(tries) >= PAUSE);
        }
    }
}
