//! A ledger that has become part of this clone's own, and that is none. It is taken out: what was recorded since goes on from the newest record
//! before it, and the ledger as it was is put aside.

use std::collections::{HashMap, HashSet};

use super::LEDGER;
use crate::store::durable::Durability;
use crate::store::history::before;
use crate::store::ledger::{LOCK_WAIT, opening};
use crate::store::object::Commit;
use crate::store::pack::{Batch, CommitSpec, Identity};
use crate::store::refs::{Cas, RefName};
use crate::store::{Oid, Store, StoreError};

impl Store {
    /// Makes this clone's ledger go on without what is no record. Its tip after that, and where it is put aside as it was.
    pub(super) fn ledger_without(&self) -> Result<(Oid, RefName), StoreError> {
        let name: RefName = LEDGER.parse()?;
        let moved = || StoreError::Moved { name: name.to_string() };
        let guard = self.lock("ledger", Some(LOCK_WAIT))?;
        let tip = self.ref_target(&name)?.ok_or_else(moved)?;
        let commits = self.ledger_walk(&[tip], &HashSet::new())?;
        let mut batch = Batch::new(self)?;
        let opened = opening(&mut batch)?;
        let spoilt = self.spoilt(&commits, opened)?;
        // The records to be written again, the oldest last.
        let (mut again, mut at) = (Vec::new(), Some(tip));
        while let Some(id) = at.filter(|id| spoilt.contains(id)) {
            let Some(commit) = commits.get(&id) else { break };
            again.push((id, commit));
            at = commit.parents.first().copied();
        }
        let base = at.unwrap_or(opened);
        let mut last = base;
        for (id, commit) in again.into_iter().rev() {
            if !self.is_record(&id, opened)? {
                continue;
            }
            let joins = before(commit).len() > 1;
            let mut others: Vec<Oid> = match joins {
                true => sound(&commits, &spoilt, &commit.parents[1..]),
                false => commit.parents[1..].to_vec(),
            };
            if joins {
                let mut kept = Vec::new();
                for other in others {
                    if other != opened && (base == opened || !self.ledger_holds(base, other)?) {
                        kept.push(other);
                    }
                }
                others = kept;
                // It joined nothing else.
                if others.is_empty() {
                    continue;
                }
            }
            last = batch.commit(&CommitSpec {
                tree: commit.tree,
                parents: [last].into_iter().chain(others).collect(),
                author: of_line(&commit.author),
                committer: of_line(&commit.committer),
                message: commit.message.clone(),
                // A signature was of another commit.
                extra_headers: Vec::new(),
            })?;
        }
        batch.publish(Durability::Full)?;
        let aside: RefName = format!("refs/cbia/refused/ledger/{tip}").parse()?;
        match self.cas(&aside, None, Some(tip), Durability::Full)?.outcome {
            Cas::Done => {}
            Cas::Conflict(Some(there)) if there == tip => {}
            Cas::Conflict(_) | Cas::Busy => return Err(StoreError::Moved { name: aside.to_string() }),
        }
        match self.cas(&name, Some(tip), Some(last), Durability::Full)?.outcome {
            Cas::Done => {}
            Cas::Conflict(_) | Cas::Busy => return Err(moved()),
        }
        // What the journal knows beside it is put aside as well.
        self.begin_journal(last).map_err(StoreError::Journal)?;
        drop(guard);
        Ok((last, aside))
    }

    /// The commits that are no record, and all that come after one.
    fn spoilt(&self, commits: &HashMap<Oid, Commit>, opened: Oid) -> Result<HashSet<Oid>, StoreError> {
        let mut after: HashMap<Oid, Vec<Oid>> = HashMap::new();
        let mut waiting = Vec::new();
        for (id, commit) in commits {
            before(commit).iter().for_each(|parent| after.entry(*parent).or_default().push(*id));
            if *id != opened && (commit.parents.is_empty() || !self.is_record(id, opened)?) {
                waiting.push(*id);
            }
        }
        let mut spoilt = HashSet::new();
        while let Some(id) = waiting.pop() {
            if spoilt.insert(id) {
                waiting.extend(after.get(&id).into_iter().flatten());
            }
        }
        Ok(spoilt)
    }

    fn is_record(&self, id: &Oid, opened: Oid) -> Result<bool, StoreError> {
        Ok(*id != opened && self.ledger_record(id)?.is_some())
    }
}

/// The newest commits of these ledgers that nothing spoilt comes before.
fn sound(commits: &HashMap<Oid, Commit>, spoilt: &HashSet<Oid>, ledgers: &[Oid]) -> Vec<Oid> {
    let (mut found, mut seen, mut waiting) = (Vec::new(), HashSet::new(), ledgers.to_vec());
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        match commits.get(&id).filter(|_| spoilt.contains(&id)) {
            Some(commit) => waiting.extend(before(commit)),
            None => found.push(id),
        }
    }
    found.sort();
    found
}

/// The identity that a line of a commit gives.
fn of_line(line: &str) -> Identity {
    let (who, time) = line.rsplit_once("> ").unwrap_or((line, ""));
    let (name, email) = who.split_once('<').unwrap_or((who, ""));
    let (seconds, zone) = time.split_once(' ').unwrap_or((time, ""));
    let minutes: i32 = zone.get(1..).and_then(|digits| digits.parse().ok()).map_or(0, |zone: i32| zone / 100 * 60 + zone % 100);
    let offset = if zone.starts_with('-') { -60 * minutes } else { 60 * minutes };
    Identity { name: name.trim().to_owned(), email: email.to_owned(), seconds: seconds.parse().unwrap_or(0), offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_what_its_line_says() {
        for line in ["A da <a@b> 1700000000 -0330", "git-cbia <git-cbia@localhost> 0 +0000", "A <> 5 +1245"] {
            assert_eq!(of_line(line).line(), line);
        }
    }
}
