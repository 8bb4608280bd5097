//! A record held against what it speaks of: the facts of its commit, the commits of its run, and every hash in it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::MAX_OBJECT;
use crate::document::digest::Digest;
use crate::document::finding::spelled;
use crate::document::inputs_manifest::InputsManifest;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::{Links, Record, RecordEvent, RecordedPhase};
use crate::document::run_ledger::RunLedger;
use crate::store::ledger::LedgerRecord;
use crate::store::object::trailers;
use crate::store::tree::{Tree, TreeLimits};
use crate::store::{Oid, Store};

/// The authority ledger in a run's tree.
const AUTHORITY_LEDGER: &str = "inputs/control/authority.ledger.json";
/// The emitted capsule.
const CAPSULE: &str = "control/runtime/pre_gen_capsule.json";
/// What GEN may see.
const INPUTS_MANIFEST: &str = "execution/ledger/inputs.manifest.json";
/// What was decided, and why.
const DECISION: [&str; 2] = ["opa/decision.json", "opa/explain.json"];
/// The hashes of the policies.
const BUNDLE_HASH: &str = "opa/bundle.hash";
/// The run ledger, in a run's tree and in a record's.
const RUN_LEDGER: &str = "execution/ledger/run.ledger.json";
/// The most phase commits that are looked at.
const MAX_PHASES: usize = 1000;
/// Files of a run's tree, its snapshot included.
const LIMITS: TreeLimits = TreeLimits { max_entries: 1_000_000, max_depth: 64 };

/// Whether the commit of a record has the shape that a record's has, and says what its document says.
pub(in crate::store) fn facts(entry: &LedgerRecord) -> Result<(), String> {
    let record = &entry.record;
    let facts: BTreeMap<String, String> = trailers(&entry.commit).into_iter().collect();
    let r#gen = record.phases.iter().find(|phase| phase.phase == Phase::Gen);
    let said = [
        ("Cbia-Event", Some(record.event.as_str().to_owned())),
        ("Cbia-State-Key", record.state_key.map(|key| key.to_string())),
        ("Cbia-Executor-Key", record.executor_key.map(|key| key.to_string())),
        ("Cbia-Run", record.run.clone()),
        ("Cbia-Cache-Key", r#gen.and_then(|phase| phase.cache_key).map(|key| key.to_string())),
    ];
    for (name, said) in said {
        if facts.get(name) != said.as_ref() {
            let is = facts.get(name).map_or("nothing", String::as_str);
            return Err(format!("its commit has {is} as {name}, and its document {}", said.as_deref().unwrap_or("nothing")));
        }
    }
    let parents = &entry.commit.parents;
    let run = record.run.as_deref().map(commit_id).transpose()?;
    match (record.event, run) {
        (RecordEvent::Merged, None) if !parents.is_empty() => Ok(()),
        (RecordEvent::Merged, _) => Err("it joins ledgers, and names a run or nothing before it".to_owned()),
        // Otherwise nothing would hold it.
        (_, Some(run)) if parents.get(1) != Some(&run) => Err(format!("the run {run} that it names is no parent of its commit")),
        (_, run) if parents.len() != 1 + usize::from(run.is_some()) => {
            Err(format!("its commit has {} parents: the record before it, and the run that it names, are all", parents.len()))
        }
        _ => Ok(()),
    }
}

/// A phase commit of a run.
struct PhaseCommit {
    phase: Option<Phase>,
    state_key: String,
    executor_key: String,
    cache_key: Option<String>,
    tree: Oid,
}

/// Holds records against their runs. Most records of a run say the same of it, which is looked at once.
pub(super) struct Records<'s> {
    store: &'s Store,
    digests: HashMap<Oid, Digest>,
    passed: HashSet<(Oid, Digest)>,
}

impl<'s> Records<'s> {
    pub(super) fn new(store: &'s Store) -> Self {
        Self { store, digests: HashMap::new(), passed: HashSet::new() }
    }

    /// What is wrong with what a record says.
    pub(super) fn check(&mut self, entry: &LedgerRecord) -> Result<(), String> {
        let record = &entry.record;
        let tree = self.store.read_tree(&entry.commit.tree, LIMITS).map_err(|error| spelled(&error))?;
        facts(entry)?;
        if let Some(log) = record.executor.as_ref().and_then(|executor| executor.log.as_ref())
            && !tree.contains_key(log)
        {
            return Err(format!("it lacks {log}, which it names"));
        }
        for reused in &record.reused {
            let commits = commit_id(&reused.run).and_then(|run| self.phases(run))?;
            let key = reused.cache_key.to_string();
            if commits.iter().all(|commit| commit.phase != Some(Phase::Gen) || commit.cache_key.as_deref() != Some(&key)) {
                return Err(format!(
                    "it takes artifacts from the result {}, which {} is not",
                    reused.cache_key.short(),
                    reused.run
                ));
            }
        }
        let Some(run) = &record.run else { return Ok(()) };
        let run = commit_id(run)?;
        let own = tree.get(&RUN_LEDGER.parse().map_err(|error| spelled(&error))?).map(|leaf| leaf.id.to_string());
        let what = serde_json::json!([
            record.event.as_str(),
            record.state_key,
            record.executor_key,
            json::to_value(&record.links),
            own,
            record.phases.iter().map(|phase| (phase.phase.as_str(), phase.cache_key, &phase.artifacts)).collect::<Vec<_>>(),
        ]);
        let what = Digest::of_canonical(&what);
        if !self.passed.contains(&(run, what)) {
            self.ledger(record, &tree, run)?;
            self.run(record, run)?;
            self.passed.insert((run, what));
        }
        Ok(())
    }

    /// The phase commits of a run, the last one first.
    fn phases(&self, run: Oid) -> Result<Vec<PhaseCommit>, String> {
        let (mut commits, mut next) = (Vec::new(), Some(run));
        while let Some(id) = next.filter(|_| commits.len() < MAX_PHASES) {
            let commit = self.store.read_commit(&id).map_err(|error| spelled(&error))?;
            let mut facts: BTreeMap<String, String> = trailers(&commit).into_iter().collect();
            let mut fact = |name: &str| facts.remove(name);
            commits.push(PhaseCommit {
                phase: fact("Cbia-Phase").and_then(|name| Phase::from_name(&name)),
                state_key: fact("Cbia-State-Key").unwrap_or_default(),
                executor_key: fact("Cbia-Executor-Key").unwrap_or_default(),
                cache_key: fact("Cbia-Cache-Key"),
                tree: commit.tree,
            });
            next = commit.parents.first().copied();
        }
        Ok(commits)
    }

    fn digest(&mut self, id: &Oid) -> Result<Digest, String> {
        if let Some(known) = self.digests.get(id) {
            return Ok(*known);
        }
        let digest = Digest::of(&self.store.read_blob(id, MAX_OBJECT).map_err(|error| spelled(&error))?);
        self.digests.insert(*id, digest);
        Ok(digest)
    }

    fn bytes(&self, tree: &Tree, at: &str) -> Result<Option<Vec<u8>>, String> {
        let path: RepoPath = at.parse().map_err(|error| spelled(&error))?;
        let Some(leaf) = tree.get(&path) else { return Ok(None) };
        self.store.read_blob(&leaf.id, MAX_OBJECT).map(Some).map_err(|error| format!("{at}: {}", spelled(&error)))
    }

    /// What a record says of its run, held against the run's commits.
    fn run(&mut self, record: &Record, run: Oid) -> Result<(), String> {
        let commits = self.phases(run)?;
        let Some(last) = commits.first() else { return Ok(()) };
        for (what, said, is) in
            [("state", record.state_key, &last.state_key), ("executor", record.executor_key, &last.executor_key)]
        {
            if said.is_none_or(|said| said.to_string() != *is) {
                return Err(format!("its run has the {what} key {is}, not the one that it names"));
            }
        }
        let read = |tree: &Oid| self.store.read_tree(tree, LIMITS).map_err(|error| spelled(&error));
        let tip = read(&last.tree)?;
        let mut trees = vec![(None, &tip)];
        let others = commits.iter().map(|commit| Ok((commit.phase, read(&commit.tree)?))).collect::<Result<Vec<_>, String>>()?;
        trees.extend(others.iter().map(|(phase, tree)| (*phase, tree)));
        self.links(&record.links, record.event, &tip)?;
        for phase in &record.phases {
            let sealed: Vec<&PhaseCommit> = commits.iter().filter(|commit| commit.phase == Some(phase.phase)).collect();
            let key = phase.cache_key.map(|key| key.to_string());
            if !sealed.is_empty() && sealed.iter().all(|commit| commit.cache_key != key) {
                return Err(format!("its run has another cache key for {} than it names", phase.phase));
            }
            // A promotion is no part of the run, whose last tree has what was promoted.
            let of = if phase.phase == Phase::Promote { None } else { Some(phase.phase) };
            let mut held = trees.iter().filter(|(phase, _)| *phase == of).peekable();
            let is_whole = matches!(record.event, RecordEvent::Admitted | RecordEvent::Replayed | RecordEvent::Promoted);
            if held.peek().is_none() && !is_whole {
                continue;
            }
            let mut why = None;
            for (_, tree) in held {
                why = Some(self.artifacts(phase, tree)?);
                if why == Some(None) {
                    break;
                }
            }
            match why {
                None if !phase.artifacts.is_empty() => {
                    return Err(format!("its run has no {}, of which it names artifacts", phase.phase));
                }
                Some(Some(path)) => return Err(format!("its run has another {path} after {} than it names", phase.phase)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The first artifact of a phase that `tree` has otherwise.
    fn artifacts(&mut self, phase: &RecordedPhase, tree: &Tree) -> Result<Option<RepoPath>, String> {
        for (path, said) in &phase.artifacts {
            let is = tree.get(path).map(|leaf| self.digest(&leaf.id)).transpose()?;
            if is != Some(*said) {
                return Ok(Some(path.clone()));
            }
        }
        Ok(None)
    }

    /// The documents that a record rests on.
    fn links(&mut self, links: &Links, event: RecordEvent, tip: &Tree) -> Result<(), String> {
        let mut named = vec![(AUTHORITY_LEDGER, links.authority_ledger_hash), (CAPSULE, links.pre_gen_capsule_hash)];
        // A promotion was decided after the run.
        if event != RecordEvent::Promoted {
            named.extend([(DECISION[0], links.decision_hash), (DECISION[1], links.explain_hash)]);
        }
        for (at, said) in named {
            let path: RepoPath = at.parse().map_err(|error| spelled(&error))?;
            let is = tip.get(&path).map(|leaf| self.digest(&leaf.id)).transpose()?;
            if said.is_some() && said != is {
                return Err(format!("its run has another {at} than it names"));
            }
        }
        let manifest = self.bytes(tip, INPUTS_MANIFEST)?.and_then(|bytes| json::parse(&bytes).ok());
        let manifest = manifest.and_then(|value| serde_json::from_value::<InputsManifest>(value).ok());
        let policies = self.bytes(tip, BUNDLE_HASH)?.and_then(|bytes| json::parse(&bytes).ok());
        let policies = policies.and_then(|value| value["policy_bundle_hash"].as_str()?.parse().ok());
        for (at, said, is) in [
            (INPUTS_MANIFEST, links.inputs_manifest_hash, manifest.map(|manifest| manifest.hash())),
            (BUNDLE_HASH, links.policy_bundle_hash, policies),
        ] {
            // A run that was refused early has no such document.
            if let (Some(said), Some(is)) = (said, is)
                && said != is
            {
                return Err(format!("its run has another {at} than it names"));
            }
        }
        Ok(())
    }

    /// The run ledger of a record: the run's own, but for what the cache had to do with it, which the record says too.
    fn ledger(&self, record: &Record, tree: &Tree, run: Oid) -> Result<(), String> {
        if !matches!(record.event, RecordEvent::Admitted | RecordEvent::Replayed) {
            return Ok(());
        }
        let parse = |bytes: Vec<u8>| -> Result<RunLedger, String> {
            let value = json::parse(&bytes).map_err(|error| format!("{RUN_LEDGER}: {error}"))?;
            serde_json::from_value(value).map_err(|error| format!("{RUN_LEDGER}: {error}"))
        };
        let tip = self.store.tree_of(&run).map_err(|error| spelled(&error))?;
        let tip = self.store.read_tree(&tip, LIMITS).map_err(|error| spelled(&error))?;
        let (Some(own), Some(theirs)) = (self.bytes(tree, RUN_LEDGER)?, self.bytes(&tip, RUN_LEDGER)?) else {
            return Err(format!("it or its run has no {RUN_LEDGER}"));
        };
        let mut own = parse(own)?;
        for entry in &mut own.entries {
            if let Some(used) = entry.cache.take()
                && record.phases.iter().all(|phase| phase.phase != entry.phase || phase.cache_key != Some(used.cache_key))
            {
                return Err(format!("its {RUN_LEDGER} has another cache key for {} than it names", entry.phase));
            }
        }
        match json::emit(&own) == theirs {
            true => Ok(()),
            false => Err(format!("its {RUN_LEDGER} is not that of its run")),
        }
    }
}

fn commit_id(text: &str) -> Result<Oid, String> {
    Oid::from_hex(text.as_bytes()).map_err(|_| format!("{text} is no object id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_those_that_a_run_emits() {
        use crate::gate::{authority::LEDGER_PATH, paths};
        use crate::phase::{r#gen, opa_gate, pre_gen};
        assert_eq!(AUTHORITY_LEDGER, format!("{}/{LEDGER_PATH}", paths::SNAPSHOT_FOLDER));
        assert_eq!((CAPSULE, INPUTS_MANIFEST), (paths::CAPSULE_PATH, pre_gen::MANIFEST_PATH));
        assert_eq!((DECISION, BUNDLE_HASH), ([opa_gate::DECISION_PATH, opa_gate::EXPLAIN_PATH], opa_gate::BUNDLE_PATH));
        assert_eq!(RUN_LEDGER, r#gen::RUN_LEDGER_PATH);
    }
}
