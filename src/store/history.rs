//! Several ledgers as one history: this clone's own, and those that were fetched.
//!
//! A record's first parent is the record before it. The other parents of a record of the event `merged` are the ledgers that it joined; the
//! second parent of any other record is a run, and no part of the history.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use super::durable::Durability;
use super::ledger::{Append, Appended, LedgerRecord};
use super::object::{Commit, trailers};
use super::{Oid, Store, StoreError};
use crate::document::SCHEMA_VERSION;
use crate::document::record::{Links, Record, RecordEvent};

/// The most records that are walked through.
const MAX_RECORDS: usize = 1_000_000;
/// The trailer that names what happened.
const EVENT: &str = "Cbia-Event";

/// The records that come directly before a ledger commit.
pub(in crate::store) fn before(commit: &Commit) -> &[Oid] {
    let merged = || trailers(commit).iter().any(|(key, value)| key == EVENT && value == RecordEvent::Merged.as_str());
    if commit.parents.len() > 1 && !merged() { &commit.parents[..1] } else { &commit.parents }
}

/// Seconds since 1970 of a commit's identity line.
pub(in crate::store) fn seconds(line: &str) -> i64 {
    let time = line.rsplit("> ").next().unwrap_or_default();
    time.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

impl Store {
    /// Every ledger commit that `from` leads to, without those that are in `stop` or only reached through them.
    pub(in crate::store) fn ledger_walk(&self, from: &[Oid], stop: &HashSet<Oid>) -> Result<HashMap<Oid, Commit>, StoreError> {
        let found = self.ledger_walk_within(from, stop, MAX_RECORDS)?;
        let id = from.first().copied().unwrap_or_else(|| self.object_hash().null());
        found.ok_or_else(|| StoreError::Record { id, what: format!("more than {MAX_RECORDS} records come before it") })
    }

    /// The same, and nothing where there are more than `limit`.
    pub(in crate::store) fn ledger_walk_within(
        &self,
        from: &[Oid],
        stop: &HashSet<Oid>,
        limit: usize,
    ) -> Result<Option<HashMap<Oid, Commit>>, StoreError> {
        let mut found = HashMap::new();
        let mut waiting: Vec<Oid> = from.to_vec();
        while let Some(id) = waiting.pop() {
            if stop.contains(&id) || found.contains_key(&id) {
                continue;
            }
            if found.len() >= limit.min(MAX_RECORDS) {
                return Ok(None);
            }
            let commit = self.read_commit(&id)?;
            waiting.extend(before(&commit));
            found.insert(id, commit);
        }
        Ok(Some(found))
    }

    /// Whether the ledger at `from` holds the ledger commit `to`.
    pub(in crate::store) fn ledger_holds(&self, from: Oid, to: Oid) -> Result<bool, StoreError> {
        let (mut seen, mut waiting) = (HashSet::new(), vec![from]);
        while let Some(id) = waiting.pop() {
            if id == to {
                return Ok(true);
            }
            if seen.len() < MAX_RECORDS && seen.insert(id) {
                waiting.extend(before(&self.read_commit(&id)?));
            }
        }
        Ok(false)
    }

    /// The tips of all ledgers that are known here: this clone's own first, then those that were fetched, in order of name.
    fn ledger_tips(&self) -> Result<Vec<Oid>, StoreError> {
        let mut tips: Vec<Oid> = self.ledger_tip()?.into_iter().collect();
        let fetched: BTreeSet<Oid> = self.seen_ledgers()?.into_iter().map(|(_, tip)| tip).collect();
        tips.extend(fetched.into_iter().filter(|tip| self.contains(tip)));
        Ok(tips)
    }

    /// The records of all ledgers as one, newest first, at most `limit`: by committer time, then by id, and no record before one that
    /// came after it. The order is the same in every clone that holds the same records.
    pub fn history(&self, limit: usize) -> Result<Vec<LedgerRecord>, StoreError> {
        let commits = self.ledger_walk(&self.ledger_tips()?, &HashSet::new())?;
        let mut children: HashMap<Oid, usize> = commits.keys().map(|id| (*id, 0)).collect();
        for commit in commits.values() {
            for parent in before(commit).iter().collect::<BTreeSet<_>>() {
                children.entry(*parent).and_modify(|count| *count += 1);
            }
        }
        let rank = |id: Oid, commit: &Commit| (seconds(&commit.committer), Reverse(id));
        let mut ready: BinaryHeap<_> =
            commits.iter().filter(|(id, _)| children.get(*id) == Some(&0)).map(|(id, commit)| rank(*id, commit)).collect();
        let mut records = Vec::new();
        while let Some((_, Reverse(id))) = ready.pop() {
            if records.len() == limit {
                break;
            }
            let Some(commit) = commits.get(&id) else { continue };
            for parent in before(commit).iter().collect::<BTreeSet<_>>() {
                let Some(count) = children.get_mut(parent) else { continue };
                *count -= 1;
                if *count == 0
                    && let Some(commit) = commits.get(parent)
                {
                    ready.push(rank(*parent, commit));
                }
            }
            records.extend(self.ledger_record(&id)?);
        }
        Ok(records)
    }

    /// Joins every fetched ledger into this clone's own by one record, which is returned with how many ledgers it joined; nothing where all
    /// of them are in it already.
    pub fn join_fetched(&self) -> Result<Option<(Appended, usize)>, StoreError> {
        let fetched: BTreeSet<Oid> = self.seen_ledgers()?.into_iter().map(|(_, tip)| tip).collect();
        self.join(&fetched.into_iter().collect::<Vec<_>>())
    }

    /// Joins the ledgers at `tips` into this clone's own by one record; nothing where it holds all of them.
    pub(in crate::store) fn join(&self, tips: &[Oid]) -> Result<Option<(Appended, usize)>, StoreError> {
        let own = self.ledger_tip()?;
        let mut others = Vec::new();
        for tip in tips {
            let held = match own {
                Some(own) => self.ledger_holds(own, *tip)?,
                None => false,
            };
            if !held {
                others.push(*tip);
            }
        }
        // A ledger that another of them holds need not be named.
        let mut needed = Vec::new();
        for tip in &others {
            let mut within = others.iter().filter(|other| *other != tip);
            if !within.try_fold(false, |held, other| Ok::<_, StoreError>(held || self.ledger_holds(*other, *tip)?))? {
                needed.push(*tip);
            }
        }
        if needed.is_empty() {
            return Ok(None);
        }
        let appended = self.with_merge(needed.len(), |append| self.append_joining(append, &needed))?;
        Ok(Some((appended, needed.len())))
    }

    /// A record that joins two ledgers, which no ref points at yet.
    pub(in crate::store) fn joined(&self, first: Oid, second: Oid) -> Result<Oid, StoreError> {
        self.with_merge(1, |append| self.write_record(append, Some(first), &[second]))
    }

    /// Gives `write` the record of a merge that joins `count` other ledgers.
    fn with_merge<T>(&self, count: usize, write: impl FnOnce(&Append<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let record = Record {
            schema_version: SCHEMA_VERSION.into(),
            event: RecordEvent::Merged,
            state_key: None,
            executor_key: None,
            head: self.head()?.map(|id| id.to_string()),
            run: None,
            phases: Vec::new(),
            links: Links::default(),
            findings: Vec::new(),
            executor: None,
            reused: Vec::new(),
        };
        let subject = format!("merged: {count} {}", if count == 1 { "ledger" } else { "ledgers" });
        let trailers = [(EVENT, RecordEvent::Merged.as_str().to_owned())];
        let durability = Durability::Full;
        write(&Append { record: &record, files: &[], subject: &subject, trailers: &trailers, run: None, durability })
    }

    /// Who recorded the run whose last phase commit is `tip`: name, address and day are those of the first record that names it. Empty where
    /// no ledger that is known here does.
    pub(in crate::store) fn recorded_by(&self, tip: &Oid) -> Result<Option<String>, StoreError> {
        let commits = self.ledger_walk(&self.ledger_tips()?, &HashSet::new())?;
        let naming = commits.iter().filter(|(_, commit)| before(commit).len() == 1 && commit.parents.get(1) == Some(tip));
        let first = naming.min_by_key(|(id, commit)| (seconds(&commit.committer), **id));
        Ok(first.map(|(_, commit)| commit.committer.rsplit_once("> ").map_or("", |(who, _)| who).to_owned() + ">"))
    }
}
