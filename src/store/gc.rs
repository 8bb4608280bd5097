//! Which refs may go, and their removal: runs, cache entries, the memo and what was refused, where nothing rests on them.
//!
//! The ledger, attestations, and what they or a promotion name are never touched. Age is the date of the newest record that names a thing,
//! in any ledger that is known here; what no record names is as young as can be, because a run may be about to record it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::durable::Durability;
use super::history::{before, seconds};
use super::lock::LockError;
use super::object::trailers;
use super::refs::{Cas, RefName};
use super::{Oid, Store, StoreError};
use crate::document::digest::Digest;
use crate::document::record::{Record, RecordEvent};

/// All that is looked at.
const ALL: &str = "refs/cbia/";
/// How many refs go while appenders to the ledger wait.
const CHUNK: usize = 64;
/// How long another appender is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// State key and executor key.
pub type RunKeys = (Digest, Digest);

/// What is to be kept, beside what something rests on. What several rules speak of stays if one of them keeps it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Keep {
    /// The newest so many runs.
    pub runs: Option<usize>,
    /// What was recorded at this time or later, in seconds since 1970.
    pub since: Option<i64>,
    /// As much, beginning with the newest, as has at most this size, in bytes, beside what the ledger holds anyway.
    pub bytes: Option<u64>,
}

/// What commits rest on.
#[derive(Clone, Default, Debug)]
pub struct Rested {
    /// The last phase commits of runs.
    pub runs: BTreeSet<Oid>,
    /// The keys of states, whose runs stay whatever their executor.
    pub states: BTreeSet<Digest>,
}

/// A ref that goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Going {
    /// The ref.
    pub name: RefName,
    /// What it points at.
    pub target: Oid,
    /// When it was last recorded, in seconds since 1970.
    pub recorded: Option<i64>,
}

/// What a collection would do.
#[derive(Clone, Default, Debug)]
pub struct Plan {
    /// The refs that go, in order of name.
    pub going: Vec<Going>,
    /// How many runs stay.
    pub runs_kept: usize,
    /// How many of them stay because something rests on them.
    pub runs_rested_on: usize,
    /// How much git can give back once the refs are gone, in bytes on disk. Without objects that are missing.
    pub bytes: u64,
    /// The tips of all ledgers, when the plan was made.
    tips: HashSet<Oid>,
}

/// What a collection did.
#[derive(Clone, Default, Debug)]
pub struct Collected {
    /// The refs that went.
    pub gone: Vec<Going>,
    /// The refs that were moved, used or recorded meanwhile, and stayed.
    pub spared: Vec<RefName>,
}

/// What the ledgers say.
#[derive(Default)]
pub(in crate::store) struct Heard {
    runs: HashMap<RunKeys, i64>,
    keys: HashMap<Digest, i64>,
    keys_of: HashMap<RunKeys, BTreeSet<Digest>>,
    promoted: BTreeSet<String>,
}

/// What a ref's name, after `refs/cbia/` or a remote's prefix, is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) enum About {
    Run(RunKeys),
    Entry(Digest),
}

impl About {
    pub(in crate::store) fn of(rest: &str) -> Option<Self> {
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            ["runs", state, executor] => Some(Self::Run((state.parse().ok()?, executor.parse().ok()?))),
            ["cache", key] => Some(Self::Entry(key.parse().ok()?)),
            _ => None,
        }
    }

    /// The same for a ref below what was fetched from a remote: the last parts of its name.
    fn of_tracking(rest: &str) -> Option<Self> {
        let rest = rest.strip_prefix("remotes/")?;
        let at = rest.find("/runs/").or_else(|| rest.find("/cache/"))?;
        Self::of(&rest[at + 1..])
    }
}

impl Rested {
    /// Whether a run is one of these.
    pub(in crate::store) fn holds(&self, keys: &RunKeys, tip: &Oid) -> bool {
        self.runs.contains(tip) || self.states.contains(&keys.0)
    }
}

impl Heard {
    /// The cache keys that records of a run name.
    pub(in crate::store) fn keys_of(&self, run: &RunKeys) -> impl Iterator<Item = &Digest> {
        self.keys_of.get(run).into_iter().flatten()
    }

    /// Whether a record says that the run was promoted.
    pub(in crate::store) fn is_promoted(&self, tip: &Oid) -> bool {
        self.promoted.contains(&tip.to_string())
    }

    fn hear(&mut self, record: &Record, seconds: i64) {
        let newer = |known: &mut i64| *known = (*known).max(seconds);
        let keys: BTreeSet<Digest> = record.phases.iter().filter_map(|phase| phase.cache_key).collect();
        for key in &keys {
            self.keys.entry(*key).and_modify(newer).or_insert(seconds);
        }
        if let (Some(state), Some(executor)) = (record.state_key, record.executor_key) {
            self.runs.entry((state, executor)).and_modify(newer).or_insert(seconds);
            self.keys_of.entry((state, executor)).or_default().extend(keys);
        }
        if record.event == RecordEvent::Promoted {
            self.promoted.extend(record.run.clone());
        }
    }

    pub(in crate::store) fn recorded(&self, about: About) -> Option<i64> {
        match about {
            About::Run(keys) => self.runs.get(&keys).copied(),
            About::Entry(key) => self.keys.get(&key).copied(),
        }
    }
}

/// Whether a ref is a ledger's.
pub(in crate::store) fn is_ledger(name: &str) -> bool {
    name == "refs/cbia/ledger" || name.contains("/ledgers/") || name.starts_with("refs/cbia/seen/")
}

/// The run that an attestation's name is about, wherever it was fetched to.
pub(in crate::store) fn attested(name: &str) -> Option<RunKeys> {
    let (_, rest) = name.split_once("/attestations/")?;
    let mut parts = rest.split('/');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Store {
    /// What the ledger commits that `from` leads to say, without those in `stop`. A record that cannot be read is an error: in doubt nothing
    /// is said of anything.
    pub(in crate::store) fn hear(&self, from: &HashSet<Oid>, stop: &HashSet<Oid>) -> Result<Heard, StoreError> {
        let (mut heard, mut seen) = (Heard::default(), HashSet::new());
        let mut waiting: Vec<Oid> = from.iter().copied().collect();
        while let Some(id) = waiting.pop() {
            if stop.contains(&id) || !seen.insert(id) {
                continue;
            }
            let Some(record) = self.ledger_record(&id)? else { continue };
            heard.hear(&record.record, seconds(&record.commit.committer));
            waiting.extend(before(&record.commit));
        }
        Ok(heard)
    }

    /// The commits that all refs but ours lead to first, `HEAD` of every work tree included.
    pub fn tips_of_others(&self) -> Result<Vec<Oid>, StoreError> {
        let said = self.answer("rev-list", &["--no-walk=unsorted", "--exclude=refs/cbia/*", "--all"], b"")?;
        Ok(said.lines().filter_map(|line| Oid::from_hex(line.as_bytes()).ok()).collect())
    }

    /// The runs that commits which any branch, tag or work tree leads to say they were promoted from.
    pub fn promoted_in_commits(&self) -> Result<BTreeSet<Oid>, StoreError> {
        let arguments = [
            "--exclude=refs/cbia/*",
            "--all",
            "--grep=^Cbia-Run: ",
            "--no-show-signature",
            "--format=%(trailers:key=Cbia-Run,valueonly)",
        ];
        let said = self.answer("log", &arguments, b"")?;
        Ok(said.lines().filter_map(|line| Oid::from_hex(line.trim().as_bytes()).ok()).collect())
    }

    /// The bytes on disk of what `these` lead to and `others` do not.
    pub fn disk_usage(&self, these: &[Oid], others: &[Oid]) -> Result<u64, StoreError> {
        if these.is_empty() {
            return Ok(0);
        }
        let mut input = String::new();
        these.iter().for_each(|id| input.push_str(&format!("{id}\n")));
        others.iter().for_each(|id| input.push_str(&format!("^{id}\n")));
        let said = self.answer("rev-list", &["--objects", "--disk-usage", "--ignore-missing", "--stdin"], input.as_bytes())?;
        let wrong = || super::git::GitError::Answer { what: "rev-list", answer: said.clone() };
        Ok(said.trim().parse().map_err(|_| wrong())?)
    }

    /// What a run's phases were stored under, by the run's own commits.
    pub(in crate::store) fn keys_in_chain(&self, tip: Oid) -> Result<BTreeSet<Digest>, StoreError> {
        let (mut keys, mut next) = (BTreeSet::new(), Some(tip));
        for _ in 0..1000 {
            let Some(id) = next else { break };
            let commit = self.read_commit(&id)?;
            let facts = trailers(&commit);
            keys.extend(
                facts.iter().filter(|(key, _)| key == "Cbia-Cache-Key").filter_map(|(_, value)| value.parse::<Digest>().ok()),
            );
            next = commit.parents.first().copied();
        }
        Ok(keys)
    }

    /// What a collection would do: `rested` is what commits rest on beside what their messages say.
    pub fn plan_gc(&self, keep: Keep, rested: &Rested) -> Result<Plan, StoreError> {
        let refs = self.refs_under(ALL)?;
        let tips: HashSet<Oid> = refs.iter().filter(|(name, _)| is_ledger(name.as_str())).map(|(_, id)| *id).collect();
        let heard = self.hear(&tips, &HashSet::new())?;
        let attested: BTreeSet<RunKeys> = refs.iter().filter_map(|(name, _)| attested(name.as_str())).collect();
        let promoted = self.promoted_in_commits()?;
        let is_rested_on = |keys: &RunKeys, tip: &Oid| {
            attested.contains(keys) || promoted.contains(tip) || heard.is_promoted(tip) || rested.holds(keys, tip)
        };

        let mut collection = Collection { runs: Vec::new(), entries: Vec::new(), others: Vec::new(), tracking: Vec::new() };
        for (name, target) in refs.iter().cloned() {
            let rest = name.as_str().strip_prefix(ALL).unwrap_or_default();
            let refused = rest.strip_prefix("refused/").and_then(|rest| rest.rsplit_once('/')).map(|(rest, _)| rest);
            let about = About::of(refused.unwrap_or(rest));
            let going = |recorded| Going { name: name.clone(), target, recorded };
            match about {
                Some(about) if refused.is_some() => collection.others.push(going(heard.recorded(about))),
                Some(about @ About::Run(keys)) => {
                    let known = heard.keys_of.get(&keys).cloned();
                    let entries = match known {
                        Some(entries) if !entries.is_empty() => entries,
                        // A run that cannot be read is for `fsck`; its entries are named by nothing that could be asked.
                        _ => self.keys_in_chain(target).unwrap_or_default(),
                    };
                    let rested_on = is_rested_on(&keys, &target);
                    collection.runs.push(RunState { going: going(heard.recorded(about)), entries, rested_on });
                }
                Some(about @ About::Entry(key)) => collection.entries.push((key, going(heard.recorded(about)))),
                None if rest == "memo" => collection.others.push(going(heard.runs.values().max().copied())),
                None => {
                    if let Some(about) = About::of_tracking(rest) {
                        collection.tracking.push((about, going(heard.recorded(about))));
                    }
                }
            }
        }
        // Newest first; what no record names yet is the newest of all.
        collection.runs.sort_by(|a, b| (b.age(), &a.going.name).cmp(&(a.age(), &b.going.name)));
        let kept = match keep {
            Keep { runs: None, since: None, .. } => collection.runs.len(),
            _ => collection.kept_by(keep),
        };
        let mut cut = kept;
        if let Some(most) = keep.bytes {
            let least = keep.runs.unwrap_or(0).min(kept);
            let size = |kept: usize| -> Result<u64, StoreError> {
                let going: BTreeSet<RefName> = collection.going(kept, keep, true).into_iter().map(|going| going.name).collect();
                let ours = collection.all().filter(|one| !going.contains(&one.name)).map(|one| one.target).collect::<Vec<_>>();
                let own: HashSet<&RefName> = collection.all().map(|one| &one.name).collect();
                let others = refs.iter().filter(|(name, _)| !own.contains(name)).map(|(_, id)| *id);
                self.disk_usage(&ours, &others.chain(self.tips_of_others()?).collect::<Vec<_>>())
            };
            // Removing what gives nothing back would be a loss for nothing.
            let goal = most.max(size(least)?);
            let (mut low, mut high) = (least, kept);
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                if size(middle)? <= goal { low = middle } else { high = middle - 1 }
            }
            cut = low;
        }
        let mut going = collection.going(cut, keep, cut < kept);
        going.sort_by(|a, b| a.name.cmp(&b.name));
        let gone: HashSet<&RefName> = going.iter().map(|one| &one.name).collect();
        let others: Vec<Oid> =
            refs.iter().filter(|(name, _)| !gone.contains(name)).map(|(_, id)| *id).chain(self.tips_of_others()?).collect();
        let bytes = self.disk_usage(&going.iter().map(|one| one.target).collect::<Vec<_>>(), &others)?;
        let stays = collection.runs.iter().filter(|run| !gone.contains(&run.going.name));
        let runs_kept = stays.clone().count();
        Ok(Plan { runs_kept, runs_rested_on: stays.filter(|run| run.rested_on).count(), bytes, tips, going })
    }

    /// Removes what the plan says, each ref only if it still points at what the plan saw, is not at work, and no record has named it since.
    pub fn collect(&self, plan: &Plan) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        for chunk in plan.going.chunks(CHUNK) {
            // Nobody can record anything while it is looked at what was recorded.
            let guard = self.lock("ledger", Some(LOCK_WAIT))?;
            let refs = self.refs_under(ALL)?;
            let tips: HashSet<Oid> = refs.iter().filter(|(name, _)| is_ledger(name.as_str())).map(|(_, id)| *id).collect();
            let heard = self.hear(&tips, &plan.tips)?;
            let attested: BTreeSet<RunKeys> = refs.iter().filter_map(|(name, _)| attested(name.as_str())).collect();
            let named = heard.keys_of.values().flatten().chain(heard.keys.keys()).collect::<HashSet<_>>();
            for one in chunk {
                let rest = one.name.as_str().strip_prefix(ALL).unwrap_or_default();
                let about = About::of(rest).or_else(|| About::of_tracking(rest));
                let used = match about {
                    Some(About::Run(keys)) => {
                        heard.runs.contains_key(&keys) || attested.contains(&keys) || self.is_at_work(one.target)?
                    }
                    Some(About::Entry(key)) => named.contains(&key) || self.is_locked(&key)?,
                    None => false,
                };
                if !used && self.cas(&one.name, Some(one.target), None, Durability::Relaxed)?.outcome == Cas::Done {
                    collected.gone.push(one.clone());
                } else {
                    collected.spared.push(one.name.clone());
                }
            }
            drop(guard);
        }
        self.forget_gone()?;
        Ok(collected)
    }

    /// Whether a process generates what this run is made of.
    fn is_at_work(&self, tip: Oid) -> Result<bool, StoreError> {
        for key in self.keys_in_chain(tip).unwrap_or_default() {
            if self.is_locked(&key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_locked(&self, key: &Digest) -> Result<bool, StoreError> {
        if !self.common_dir().join("cbia").join(format!("gen-{key}.lock")).exists() {
            return Ok(false);
        }
        match self.lock(&format!("gen-{key}"), Some(Duration::ZERO)) {
            Ok(guard) => {
                drop(guard);
                Ok(false)
            }
            Err(LockError::Busy { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

struct RunState {
    going: Going,
    entries: BTreeSet<Digest>,
    rested_on: bool,
}

impl RunState {
    fn age(&self) -> i64 {
        self.going.recorded.unwrap_or(i64::MAX)
    }
}

/// Everything that could go, sorted into kinds.
struct Collection {
    runs: Vec<RunState>,
    entries: Vec<(Digest, Going)>,
    others: Vec<Going>,
    tracking: Vec<(About, Going)>,
}

impl Collection {
    fn all(&self) -> impl Iterator<Item = &Going> {
        let runs = self.runs.iter().map(|run| &run.going);
        let rest = self.entries.iter().map(|(_, going)| going).chain(&self.others);
        runs.chain(rest).chain(self.tracking.iter().map(|(_, going)| going))
    }

    /// How many runs, from the newest on, the rules on number and age keep.
    fn kept_by(&self, keep: Keep) -> usize {
        let young = keep.since.map_or(0, |since| self.runs.iter().take_while(|run| run.age() >= since).count());
        young.max(keep.runs.unwrap_or(0)).min(self.runs.len())
    }

    /// What goes if the newest `kept` runs stay. With `squeeze` the memo and what was refused go too, whatever their age.
    fn going(&self, kept: usize, keep: Keep, squeeze: bool) -> Vec<Going> {
        let goes = |at: usize, run: &RunState| at >= kept && !run.rested_on;
        let (mut going, mut needed, mut freed) = (Vec::new(), BTreeSet::<Digest>::new(), BTreeSet::<Digest>::new());
        for (at, run) in self.runs.iter().enumerate() {
            if goes(at, run) {
                freed.extend(&run.entries);
                going.push(run.going.clone());
            } else {
                needed.extend(&run.entries);
            }
        }
        // What belongs to no run any more is as old as its last record.
        let since = match (keep.since, keep.runs) {
            (Some(since), _) => Some(since),
            (None, Some(_)) if kept < self.runs.len() => self.runs.get(kept).map(RunState::age),
            _ => None,
        };
        let is_old = |one: &Going| matches!((one.recorded, since), (Some(recorded), Some(since)) if recorded < since);
        let entries = self.entries.iter().filter(|(key, one)| !needed.contains(key) && (freed.contains(key) || is_old(one)));
        going.extend(entries.map(|(_, one)| one.clone()));
        going.extend(self.others.iter().filter(|one| squeeze || is_old(one)).cloned());
        let gone: BTreeMap<&str, ()> = going.iter().map(|one| (one.name.as_str(), ())).collect();
        let tracking = self.tracking.iter().filter(|(about, _)| {
            let home = match about {
                About::Run((state, executor)) => format!("{ALL}runs/{state}/{executor}"),
                About::Entry(key) => format!("{ALL}cache/{key}"),
            };
            gone.contains_key(home.as_str())
        });
        let tracking: Vec<Going> = tracking.map(|(_, one)| one.clone()).collect();
        going.extend(tracking);
        going
    }
}

/// How often something was recorded in this clone's ledger, by event.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// Runs that were admitted and executed.
    pub admitted: usize,
    /// Runs that were replayed.
    pub replayed: usize,
    /// Runs that were denied.
    pub denied: usize,
    /// Runs that failed.
    pub failed: usize,
}

impl Store {
    /// What this clone's ledger says of its runs.
    pub fn tally(&self) -> Result<Tally, StoreError> {
        let mut tally = Tally::default();
        self.ledger_find(usize::MAX, |record| {
            match record.record.event {
                RecordEvent::Admitted => tally.admitted += 1,
                RecordEvent::Replayed => tally.replayed += 1,
                RecordEvent::Denied => tally.denied += 1,
                RecordEvent::Failed => tally.failed += 1,
                RecordEvent::Promoted | RecordEvent::Merged => {}
            }
            None::<()>
        })?;
        Ok(tally)
    }
}
