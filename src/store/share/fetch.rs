//! Bringing in what a remote has: all of it, or exactly what a miss asks for. What is verified becomes usable, and nothing else.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use super::ledgers::{INCOMING, News};
use super::vet::{Reading, RunName};
use super::{Remote, ShareError, Sharing, Space};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity, spelled};
use crate::document::phase::Phase;
use crate::store::durable::Durability;
use crate::store::git::GitError;
use crate::store::object::Kind;
use crate::store::refs::{Cas, RefName};
use crate::store::talk::{Bounds, RefUpdate, Said};
use crate::store::tree::MAX_NAMES;
use crate::store::{Oid, Store, StoreError};

/// How long another fetch in this clone is waited for.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(600);
/// Whose attestations let a run of elsewhere be used where `cbia.trust` is `signed`; `gate::signers` calls it the same.
const RUNNERS: &str = "control/runners.allowed_signers";
/// How often a fetch is tried whose refs another git holds.
const LOCK_TRIES: u32 = 4;
/// How long it waits between two tries.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(300);
/// The largest attestation that is read, in bytes.
const MAX_TAG: u64 = 1 << 20;
/// Of how many conflicts the writers are looked for: each takes a walk through all ledgers.
pub(super) const MAX_NAMED: usize = 20;
/// What is offered, in words.
const RUN: &str = "run";
const ENTRY: &str = "cache entry";
/// From how many refs on one transaction of git's is cheaper than one of ours for each.
const MANY: usize = 8;

/// What a fetch brought.
#[derive(Clone, Default, Debug)]
pub struct Fetched {
    /// The remote, without a password.
    pub remote: String,
    /// How many runs were not known here.
    pub runs: usize,
    /// How many cache entries were not known here.
    pub entries: usize,
    /// How many attestations were not known here.
    pub attestations: usize,
    /// The ledgers that have news.
    pub ledgers: Vec<News>,
    /// What was refused, and what was lost.
    pub findings: Vec<Finding>,
}

/// What a miss asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The state and the executor whose run is wanted.
    pub run: Option<(Digest, Digest)>,
    /// The cache entries that would do instead.
    pub keys: &'a [Digest],
}

/// A ref that is on the way from what a remote has to what is usable here.
struct Offer {
    /// Where it would be usable.
    name: RefName,
    /// Where it landed.
    tracking: RefName,
    id: Oid,
}

impl Store {
    /// Brings everything that a remote has, and the ledgers of all writers.
    pub fn fetch_shared(&self, sharing: &Sharing, remote: &Remote) -> Result<Fetched, ShareError> {
        let guard = self.lock("share-fetch", Some(LOCK_WAIT))?;
        self.clear_refs(INCOMING)?;
        let mut fetched = Fetched { remote: remote.shown(), ..Fetched::default() };
        let mut refspecs = Vec::new();
        for space in sharing.reads_from() {
            let (from, to) = (space.remote(), remote.tracking(&space));
            let kinds = ["runs", "attestations"].into_iter().chain((!sharing.signed()).then_some("cache"));
            refspecs.extend(kinds.map(|kind| format!("{from}{kind}/*:{to}{kind}/*")));
            refspecs.push(Self::ledgers_refspec(&space, None));
        }
        let before = self.seen_ledgers()?;
        self.git_fetch(remote, sharing.attended(), &refspecs, &mut fetched.findings)?;
        for space in sharing.reads_from() {
            let news = self.take_ledgers(remote, &space, &before, true, &mut fetched.findings)?;
            fetched.ledgers.extend(news);
            let prefix = remote.tracking(&space);
            let landed = |kind: &str| self.refs_under(&format!("{prefix}{kind}/"));
            let (attestations, runs, entries) = (landed("attestations")?, landed("runs")?, landed("cache")?);
            fetched.runs += self.take_runs(sharing, remote, &prefix, runs, &mut fetched.findings)?;
            fetched.entries += self.take_entries(sharing, remote, &prefix, entries, &mut fetched.findings)?;
            fetched.attestations += self.take_attestations(&prefix, attestations)?;
        }
        self.clear_refs(INCOMING)?;
        drop(guard);
        Ok(fetched)
    }

    /// Asks the remotes, in order, for exactly what a miss wants, and takes what is verified. Whatever goes wrong is told as a warning: a
    /// run then goes on with what is known here.
    pub fn look_up(&self, sharing: &Sharing, wanted: &Wanted<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for remote in &sharing.remotes {
            match self.look_at(sharing, remote, wanted, &mut findings) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    let hint = "the run goes on with what is known here; --offline does not ask";
                    findings.push(Finding::warning(Code::RemoteUnreachable, spelled(&error)).hint(hint));
                }
            }
        }
        findings.into_iter().map(|finding| Finding { severity: Severity::Warning, ..finding }).collect()
    }

    fn look_at(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        wanted: &Wanted<'_>,
        findings: &mut Vec<Finding>,
    ) -> Result<bool, ShareError> {
        let mut names: Vec<String> = Vec::new();
        if let Some((state_key, executor_key)) = wanted.run {
            names.push(format!("attestations/{state_key}/{executor_key}/"));
            names.push(format!("runs/{state_key}/{executor_key}"));
        }
        if !sharing.signed() {
            names.extend(wanted.keys.iter().map(|key| format!("cache/{key}")));
        }
        let spaces = sharing.reads_from();
        // A pattern, because the whole request would fail over one exact name that the remote does not have.
        let refspec = |space: &Space, name: &String| format!("{}{name}*:{}{name}*", space.remote(), remote.tracking(space));
        let refspecs: Vec<String> = spaces.iter().flat_map(|space| names.iter().map(|name| refspec(space, name))).collect();
        self.git_fetch(remote, sharing.unattended(), &refspecs, findings)?;
        let mut found = 0;
        for space in &spaces {
            let prefix = remote.tracking(space);
            let landed = |name: String| -> Result<Vec<(RefName, Oid)>, ShareError> {
                let name: RefName = format!("{prefix}{name}").parse()?;
                Ok(self.ref_target(&name)?.map(|id| (name, id)).into_iter().collect())
            };
            if let Some((state_key, executor_key)) = wanted.run {
                let run = landed(format!("runs/{state_key}/{executor_key}"))?;
                found += self.take_runs(sharing, remote, &prefix, run, findings)?;
                let attestations = self.refs_under(&format!("{prefix}attestations/{state_key}/{executor_key}/"))?;
                self.take_attestations(&prefix, attestations)?;
            }
            for key in wanted.keys {
                let entry = landed(format!("cache/{key}"))?;
                found += self.take_entries(sharing, remote, &prefix, entry, findings)?;
            }
        }
        Ok(found > 0)
    }

    /// Lets git fetch. A ref that would have to be overwritten here is told; all others are there afterwards.
    pub(super) fn git_fetch(
        &self,
        remote: &Remote,
        bounds: Bounds,
        refspecs: &[String],
        findings: &mut Vec<Finding>,
    ) -> Result<(), ShareError> {
        const OPTIONS: [&str; 9] = [
            "--no-tags",
            "--no-prune",
            "--no-prune-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            // Without this check a ref that was replaced would be taken as one that has grown.
            "--show-forced-updates",
            "--no-progress",
            // The user's own branches are not touched on the way.
            "--refmap=",
        ];
        // Only ledgers have a history that both sides know; naming what else is here would cost more than it saves.
        let known: BTreeSet<Oid> =
            self.ledger_tip()?.into_iter().chain(self.seen_ledgers()?.into_iter().map(|(_, id)| id)).collect();
        let wants_ledgers = refspecs.iter().any(|refspec| refspec.contains(INCOMING));
        let mut arguments: Vec<String> = OPTIONS.iter().map(|option| (*option).to_owned()).collect();
        let mut settings = Vec::new();
        if wants_ledgers && !known.is_empty() {
            arguments.extend(known.iter().filter(|id| self.contains(id)).map(|id| format!("--negotiation-tip={id}")));
        } else {
            settings.push("fetch.negotiationAlgorithm=noop");
        }
        arguments.extend(["--".to_owned(), remote.given.clone()]);
        arguments.extend(refspecs.iter().cloned());
        let failed = |source| ShareError::Transport { doing: "fetch from", remote: remote.shown(), source };
        let mut said = self.talk("fetch", &settings, &arguments, bounds).map_err(failed)?;
        for _ in 1..LOCK_TRIES {
            // A git that outlived the command that started it may still be writing the same refs.
            if said.success || !["cannot lock ref", "Unable to create"].iter().any(|word| said.stderr.contains(word)) {
                break;
            }
            std::thread::sleep(LOCK_PAUSE);
            said = self.talk("fetch", &settings, &arguments, bounds).map_err(failed)?;
        }
        let rejected: Vec<(String, String)> = said.stderr.lines().filter_map(rejected).collect();
        if !said.success && (rejected.is_empty() || said.stderr.contains("fatal: ")) {
            return Err(failed(complaint("fetch", remote, &said)));
        }
        for (name, tracking) in rejected {
            let known = tracking.parse().ok().and_then(|name: RefName| self.ref_target(&name).ok().flatten());
            let known = known.map_or("another object".to_owned(), |id| id.to_hex_with_len(12).to_string());
            let message = format!("{} replaced {name}, which is written once: it was {known}", remote.shown());
            findings.push(Finding::error(Code::SharedConflict, message).at(name).hint("what was fetched before is kept"));
        }
        Ok(())
    }

    /// Takes runs that landed. How many were not known here.
    fn take_runs(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        prefix: &str,
        landed: Vec<(RefName, Oid)>,
        findings: &mut Vec<Finding>,
    ) -> Result<usize, ShareError> {
        let signers = self.runners(sharing)?;
        let check = |rest: &str, id: Oid| -> Result<(), Refused> {
            let name = run_name(rest).ok_or_else(|| invalid("its name is not that of a run"))?;
            // Before it is looked into, which costs more.
            match self.distrusted(sharing, prefix, name, id, &signers) {
                Ok(None) => self.vet_fetched(sharing, name, id).map_err(Refused::Invalid),
                Ok(Some(why)) => Err(Refused::Untrusted(why)),
                Err(error) => Err(Refused::Invalid(spelled(&error))),
            }
        };
        self.take(sharing, (remote, prefix, RUN), landed, &check, findings)
    }

    /// Why a run that was fetched is not one of this name; nothing if it is.
    pub(super) fn vet_fetched(&self, sharing: &Sharing, name: RunName, tip: Oid) -> Result<(), String> {
        let bytes = Cell::new(usize::try_from(sharing.max_bytes).unwrap_or(usize::MAX));
        let names = Cell::new(MAX_NAMES);
        let mut reading = Reading { known: HashMap::new(), bytes: &bytes, names: &names };
        self.vet_run(name, tip, &mut reading).map_err(|unfit| unfit.why().to_owned())
    }

    /// The list of signers that counts here: that of HEAD, which was committed or pulled by whoever works here.
    fn runners(&self, sharing: &Sharing) -> Result<Option<Vec<u8>>, ShareError> {
        let Some(head) = self.head()?.filter(|_| sharing.signed()) else { return Ok(None) };
        Ok(self.signers_file(self.tree_of(&head)?, RUNNERS)?)
    }

    /// Why a run from a remote does not count, by the attestations that came with it and those that are here; nothing if it does.
    fn distrusted(
        &self,
        sharing: &Sharing,
        prefix: &str,
        name: RunName,
        id: Oid,
        signers: &Option<Vec<u8>>,
    ) -> Result<Option<String>, ShareError> {
        if !sharing.signed() {
            return Ok(None);
        }
        let Some(signers) = signers else { return Ok(Some(format!("HEAD has no {RUNNERS}"))) };
        let RunName { state_key, executor_key } = name;
        let mut refs = self.refs_under(&format!("{prefix}attestations/{state_key}/{executor_key}/"))?;
        refs.extend(self.attestations(&state_key, &executor_key)?);
        let attested = self.attested_by(&refs, id, &state_key, &executor_key, signers, &Cell::new(usize::MAX))?;
        Ok(attested.missing(sharing.trust, &id, RUNNERS).map(|finding| finding.message))
    }

    /// Takes cache entries that landed. How many were not known here.
    fn take_entries(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        prefix: &str,
        landed: Vec<(RefName, Oid)>,
        findings: &mut Vec<Finding>,
    ) -> Result<usize, ShareError> {
        let check = |rest: &str, id: Oid| -> Result<(), Refused> {
            let key: Option<Digest> = rest.strip_prefix("cache/").and_then(|key| key.parse().ok());
            let key = key.ok_or_else(|| invalid("its name is not a key"))?;
            if sharing.signed() {
                return Err(Refused::Untrusted("cache entries are not attested".to_owned()));
            }
            let name = format!("refs/cbia/{rest}").parse().map_err(|error| Refused::Invalid(spelled(&error)))?;
            let entry = self.check_entry(&key, &name, id).map_err(|finding| Refused::Invalid(finding.message))?;
            match entry.meta.key_data.phase {
                Phase::Gen | Phase::Repair => Ok(()),
                phase => Err(Refused::Invalid(format!("{phase} is not shared"))),
            }
        };
        self.take(sharing, (remote, prefix, ENTRY), landed, &check, findings)
    }

    /// Makes usable what landed, is not known here, and passes `check`. What is refused is told and forgotten; what is another object than
    /// the one that is known here is told with both writers, and changes nothing.
    fn take(
        &self,
        sharing: &Sharing,
        (remote, prefix, what): (&Remote, &str, &str),
        landed: Vec<(RefName, Oid)>,
        check: &dyn Fn(&str, Oid) -> Result<(), Refused>,
        findings: &mut Vec<Finding>,
    ) -> Result<usize, ShareError> {
        let (mut taken, mut forgotten) = (Vec::new(), Vec::new());
        for (tracking, id) in landed {
            let rest = tracking.as_str().strip_prefix(prefix).unwrap_or_default().to_owned();
            let name: RefName = format!("refs/cbia/{rest}").parse()?;
            match self.ref_target(&name)? {
                Some(known) if known == id => {}
                Some(known) => {
                    let named = findings.len() < MAX_NAMED;
                    let conflict = self.conflict(sharing, (remote, prefix), &name, [known, id], named)?;
                    // What is none is not kept: it would still be here when it is there no more.
                    if conflict.code == Code::SharedRefused {
                        forgotten.push(RefUpdate { name: tracking, new: None, expected: Some(Some(id)) });
                    }
                    findings.push(conflict);
                }
                None => match check(&rest, id) {
                    Ok(()) => taken.push(Offer { name, tracking, id }),
                    Err(refused) => {
                        findings.push(refused.told((remote, prefix), what, &name, id));
                        // It may be attested yet.
                        if matches!(refused, Refused::Untrusted(_)) {
                            continue;
                        }
                        forgotten.push(RefUpdate { name: tracking, new: None, expected: Some(Some(id)) });
                    }
                },
            }
        }
        self.update_refs(&forgotten)?;
        let updates: Vec<RefUpdate> =
            taken.iter().map(|offer| RefUpdate { name: offer.name.clone(), new: Some(offer.id), expected: Some(None) }).collect();
        if updates.len() >= MANY && self.update_refs(&updates).is_ok() {
            return Ok(taken.len());
        }
        let mut count = 0;
        for offer in taken {
            match self.cas(&offer.name, None, Some(offer.id), Durability::Full)?.outcome {
                Cas::Done => count += 1,
                Cas::Conflict(Some(known)) if known == offer.id => {}
                Cas::Conflict(Some(known)) => findings.push(self.conflict(
                    sharing,
                    (remote, prefix),
                    &offer.name,
                    [known, offer.id],
                    findings.len() < MAX_NAMED,
                )?),
                Cas::Conflict(None) | Cas::Busy => return Err(StoreError::Moved { name: offer.tracking.to_string() }.into()),
            }
        }
        Ok(count)
    }

    /// Takes attestations that landed, where what they attest is known here. A signature is checked when it is asked for.
    fn take_attestations(&self, prefix: &str, landed: Vec<(RefName, Oid)>) -> Result<usize, ShareError> {
        let mut count = 0;
        for (tracking, id) in landed {
            let rest = tracking.as_str().strip_prefix(prefix).unwrap_or_default();
            let name: RefName = format!("refs/cbia/{rest}").parse()?;
            let Some((run, _)) = rest.strip_prefix("attestations/").and_then(|rest| rest.rsplit_once('/')) else { continue };
            let Some(run) = run_name(&format!("runs/{run}")) else { continue };
            let Some(tip) = self.run_tip(&run.state_key, &run.executor_key)? else { continue };
            let tag = self.read(&id, Kind::Tag, MAX_TAG).unwrap_or_default();
            if !tag.starts_with(format!("object {tip}\ntype commit\n").as_bytes()) {
                continue;
            }
            if self.ref_target(&name)?.is_none() && self.cas(&name, None, Some(id), Durability::Full)?.outcome == Cas::Done {
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Why something that landed is not taken.
enum Refused {
    /// It is not what its name says.
    Invalid(String),
    /// Nobody who counts has attested it.
    Untrusted(String),
}

fn invalid(why: &str) -> Refused {
    Refused::Invalid(why.to_owned())
}

impl Refused {
    fn told(&self, (remote, prefix): (&Remote, &str), what: &str, name: &RefName, tip: Oid) -> Finding {
        let (id, shown) = (tip.to_hex_with_len(12), remote.shown());
        match self {
            Refused::Invalid(why) => {
                let message = format!("the {what} {id} on {shown} is refused: {why}");
                let finding = Finding::error(Code::SharedRefused, message).at(name);
                // What is wrong with a bundle, nobody administers.
                if remote.is_bundle() {
                    return finding;
                }
                let there = remote.at(prefix, name);
                finding.hint(format!(
                    "it is not used; whoever administers the remote removes it, in its repository: git update-ref -d {there} {tip}"
                ))
            }
            Refused::Untrusted(why) => {
                let message = format!("the {what} {id} on {shown} is not used: cbia.trust is signed, and {why}");
                let finding = Finding::warning(Code::SharedUntrusted, message).at(name);
                // Only runs can be attested.
                if what != RUN {
                    return finding;
                }
                finding.hint(format!("an allowed signer runs git cbia attest {id} and git cbia push"))
            }
        }
    }
}

/// The name of a run, from `runs/<state_key>/<executor_key>`.
pub(super) fn run_name(rest: &str) -> Option<RunName> {
    let (state_key, executor_key) = rest.strip_prefix("runs/")?.split_once('/')?;
    Some(RunName { state_key: state_key.parse().ok()?, executor_key: executor_key.parse().ok()? })
}

/// The refs of a line ` ! [rejected]  <remote ref> -> <local ref>  (<reason>)`.
fn rejected(line: &str) -> Option<(String, String)> {
    let (_, refs) =
        line.strip_prefix(" ! [rejected]")?.trim().split_once("refs/").map(|(_, rest)| ((), format!("refs/{rest}")))?;
    let (from, rest) = refs.split_once(" -> ")?;
    Some((from.trim().to_owned(), rest.split_whitespace().next()?.to_owned()))
}

/// What git complained of, without the password that an address may hold.
pub(super) fn complaint(what: &'static str, remote: &Remote, said: &Said) -> GitError {
    let telling = |line: &&str| ["fatal:", "error:", "remote:", "ssh:"].iter().any(|word| line.starts_with(word));
    let lines: Vec<&str> = said.stderr.lines().filter(telling).take(8).collect();
    let text = if lines.is_empty() { said.stderr.trim().to_owned() } else { lines.join("; ") };
    GitError::Failed { what, stderr: text.replace(&remote.given, &remote.shown()) }
}

impl Fetched {
    /// How many ledger records were not known here.
    pub fn records(&self) -> usize {
        self.ledgers.iter().map(|news| news.records).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signers_are_those_that_the_gate_knows() {
        assert_eq!(RUNNERS, crate::gate::signers::RUNNERS);
    }

    #[test]
    fn a_rejected_line_is_read() {
        let line = " ! [rejected]        refs/cbia/cache/aa -> refs/cbia/remotes/o/cache/aa  (non-fast-forward)";
        assert_eq!(rejected(line), Some(("refs/cbia/cache/aa".into(), "refs/cbia/remotes/o/cache/aa".into())));
        assert_eq!(rejected(" * [new ref] refs/cbia/x -> refs/cbia/y"), None);
        assert_eq!(rejected("error: some local refs could not be updated"), None);
    }
}
