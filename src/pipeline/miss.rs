//! Why a phase missed: which component of its key differs from the newest run's, and which file is behind it.

use std::collections::{BTreeMap, BTreeSet};

use super::inputs::Inputs;
use crate::document::cache_entry::CacheKey;
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::machine::Miss;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::RecordEvent;
use crate::document::schema::{Kind, load};
use crate::gate::authority::LEDGER_PATH;
use crate::gate::order::DAG_PATH;
use crate::gate::paths::{CAPSULE_PATH, EXECUTOR_CONFIG_PATH, PIPELINE_PATH, SNAPSHOT_FOLDER, is_bundle_member};
use crate::store::ledger::LedgerRecord;
use crate::store::tree::TreeLimits;
use crate::store::{Oid, Store};

/// How many records are looked through for the newest run.
const RECORDS: usize = 200;

/// The newest admitted run: its last phase commit and GEN's key.
struct Newest {
    tip: Oid,
    key: Digest,
}

fn newest(store: &Store) -> Option<Newest> {
    let admitted = |entry: LedgerRecord| {
        if !matches!(entry.record.event, RecordEvent::Admitted | RecordEvent::Replayed) {
            return None;
        }
        let key = entry.record.phases.iter().find(|p| p.phase == Phase::Gen)?.cache_key?;
        Some(Newest { tip: Oid::from_hex(entry.record.run?.as_bytes()).ok()?, key })
    };
    store.ledger_find(RECORDS, admitted).ok().flatten()
}

/// The components in which `key` differs from the newest run's, root causes first. Empty where there is no earlier run to compare with.
pub fn explain(store: &Store, inputs: &Inputs, key: &CacheKey) -> Vec<Miss> {
    let Some(newest) = newest(store) else { return Vec::new() };
    let Some(old) = store.cache_key_data(&newest.key) else { return Vec::new() };
    let snapshot = old_snapshot(store, &newest.tip).unwrap_or_default();
    let now: BTreeMap<&RepoPath, Oid> = inputs.files.iter().map(|(path, file)| (path, file.id)).collect();
    let changed: BTreeSet<&RepoPath> =
        snapshot.keys().chain(now.keys().copied()).filter(|path| snapshot.get(*path) != now.get(*path)).collect();
    let in_manifest: BTreeSet<&RepoPath> = inputs.manifest.files.iter().map(|f| &f.path).collect();
    let executor_path = crate::phase::path(EXECUTOR_CONFIG_PATH);
    let mut misses = Vec::new();
    let differences = key.differences(&old);
    for (component, is, was) in &differences {
        let is_cause = |path: &&&RepoPath| match component.as_str() {
            "authority_ledger_hash" => path.as_str() == LEDGER_PATH,
            "policy_bundle_hash" => is_bundle_member(path),
            "inputs_manifest_hash" => in_manifest.contains(*path) || !inputs.files.contains_key(*path) && !is_bundle_member(path),
            "phase_config_hash" => path.as_str() == PIPELINE_PATH,
            // The capsule follows from the others; what only it depends on is the execution DAG and the executor.
            "pre_gen_capsule_hash" => path.as_str() == DAG_PATH,
            _ => false,
        };
        let mut paths: Vec<&RepoPath> = changed.iter().filter(is_cause).copied().collect();
        if component == "pre_gen_capsule_hash" && old_executor(store, &newest.tip).is_some_and(|old| old != inputs.executor.key())
        {
            paths.push(&executor_path);
        }
        let miss = |path: Option<String>| Miss {
            phase: key.phase,
            component: component.clone(),
            path,
            was: Some(was.clone()),
            now: Some(is.clone()),
        };
        if paths.is_empty() {
            misses.push(miss(None));
        }
        misses.extend(paths.into_iter().map(|path| miss(Some(path.as_str().to_owned()))));
    }
    misses.sort_by_key(|miss| miss.component == "pre_gen_capsule_hash");
    misses
}

fn old_snapshot(store: &Store, tip: &Oid) -> Option<BTreeMap<RepoPath, Oid>> {
    let tree = store.tree_of(tip).ok()?;
    let folder = store.subtree(&tree, &SNAPSHOT_FOLDER.parse().ok()?).ok()??;
    let files = store.read_tree(&folder, TreeLimits::default()).ok()?;
    Some(files.into_iter().map(|(path, leaf)| (path, leaf.id)).collect())
}

/// The key of the executor that an earlier run was admitted with.
fn old_executor(store: &Store, tip: &Oid) -> Option<Digest> {
    let path = crate::phase::path(CAPSULE_PATH);
    let id = store.lookup(&store.tree_of(tip).ok()?, &path).ok()??;
    let capsule = load::<Capsule>(Kind::Capsule, &path, &store.read_blob(&id, 16 << 20).ok()?).ok()?;
    Some(capsule.document.gen_executor.key())
}
