//! What the runs that are known have to say about files, each at its path: found by content, and the cheap questions come first.
//!
//! A repository may hold thousands of runs, and a state thousands of files. So each run's tree is compared with the commit's once, which
//! costs nothing for folders that are the same; the runs that have most in common are looked at first; and a run is derived again only where
//! the bytes that the file rests on are the commit's.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::cover::{Basis, Stale, why_stale};
use super::evidence::Run;
use super::state::Subject;
use super::{Verifier, VerifyError};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::path::RepoPath;
use crate::executor::resolve;
use crate::gate::paths::SNAPSHOT_FOLDER;
use crate::pipeline::inputs::{self, ExecutorSource, From};
use crate::store::tree::{MAX_NAMES, TreeLimits};
use crate::store::{Oid, Store};

/// How many names of a run's folders are looked at before what it has in common with a commit is asked file by file.
const CHEAP: usize = 2_000;
/// How many runs are derived again although something that a file rests on lies elsewhere now, or holds something else.
const MAX_EXPLAINED: usize = 32;

/// What the runs that are known have to say about a file.
pub(super) enum Found {
    Covered(Run),
    /// A run that would cover it, if enough signers had attested it.
    Doubted(Run),
    Stale(Run, Stale),
    Unknown,
}

/// The runs, those that have most in common with a tree first.
pub(super) struct Survey {
    /// The tree that they were compared with.
    tree: Oid,
    /// The folder of its policies.
    policies: Option<Oid>,
    runs: Vec<Seen>,
    /// Whether there are more runs than are searched.
    cut: bool,
}

struct Seen {
    run: Run,
    tree: Oid,
    /// The folder of its policies.
    policies: Option<Oid>,
    /// The generated paths where it differs; nothing where that was not to be had cheaply.
    differs: Option<BTreeSet<Vec<u8>>>,
}

impl Seen {
    /// Whether the run has exactly this at the path. Believed only of a run that was derived again.
    fn has(&self, store: &Store, path: &RepoPath, id: Oid) -> bool {
        match &self.differs {
            Some(differs) => !differs.contains(path.as_str().as_bytes()),
            None => store.lookup(&self.tree, path).ok().flatten() == Some(id),
        }
    }
}

impl Verifier<'_> {
    /// What the known runs say of files that lie in the subject's tree, and what there is to say where not all runs were asked.
    pub(super) fn search(
        &mut self,
        subject: &Subject<'_>,
        files: &BTreeMap<RepoPath, Oid>,
    ) -> Result<(BTreeMap<RepoPath, Found>, Option<Finding>), VerifyError> {
        let survey = self.survey(subject)?;
        let mut open: BTreeMap<&RepoPath, Oid> = files.iter().map(|(path, id)| (path, *id)).collect();
        let mut found: BTreeMap<RepoPath, Found> = BTreeMap::new();
        // Runs that may not cover a file, and whether it is certain already that they do not.
        let mut candidates: BTreeMap<&RepoPath, Vec<(&Run, bool)>> = BTreeMap::new();
        let bases: HashMap<&RepoPath, BTreeSet<RepoPath>> = open
            .keys()
            .map(|path| (*path, Basis::of(subject.inputs, path).map(|basis| basis.files).unwrap_or_default()))
            .collect();
        // What policies decide is a function of their folder, and there are few different ones.
        let mut policies: HashMap<Option<Oid>, bool> = HashMap::from([(survey.policies, true)]);
        // Nor are there many executors, and a key tells all of one.
        let mut other_executors: BTreeSet<Digest> = BTreeSet::new();
        for seen in &survey.runs {
            let store = self.store;
            let has: Vec<(&RepoPath, Oid)> =
                open.iter().map(|(path, id)| (*path, *id)).filter(|(path, id)| seen.has(store, path, *id)).collect();
            if has.is_empty() {
                continue;
            }
            let same_policies = *policies
                .entry(seen.policies)
                .or_insert_with(|| policy_hash(store, seen) == Some(subject.inputs.policy_bundle_hash()));
            let mut same: HashMap<&RepoPath, bool> = HashMap::new();
            for (path, id) in has {
                let rests_on = bases.get(path).into_iter().flatten();
                let stands = rests_on.fold(same_policies, |stands, file| {
                    stands & *same.entry(file).or_insert_with(|| is_same(store, seen.tree, subject.tree, file))
                });
                let certain = !same_policies || other_executors.contains(&seen.run.executor_key);
                if !stands || certain {
                    candidates.entry(path).or_default().push((&seen.run, certain));
                    continue;
                }
                let derived = self.derive_content(&seen.run)?;
                let Ok(derived) = &*derived else { break };
                if derived.held.output.ids.get(path) != Some(&id) {
                    continue;
                }
                match why_stale(self.store, subject, path, derived) {
                    None if self.doubts(&seen.run)?.is_empty() => {
                        found.insert(path.clone(), Found::Covered(seen.run.clone()));
                        open.remove(path);
                    }
                    None => drop(found.entry(path.clone()).or_insert(Found::Doubted(seen.run.clone()))),
                    Some(_) => {
                        candidates.entry(path).or_default().push((&seen.run, true));
                        if !subject.accepts(&derived.inputs.executor) {
                            other_executors.insert(seen.run.executor_key);
                        }
                    }
                }
            }
            if open.is_empty() {
                break;
            }
        }
        let mut explained: BTreeSet<&str> = BTreeSet::new();
        for (path, id) in &open {
            if found.contains_key(*path) {
                continue;
            }
            let mut why = Found::Unknown;
            for (run, certain) in candidates.get(path).into_iter().flatten() {
                if *certain && !matches!(why, Found::Unknown) {
                    continue;
                }
                if !explained.contains(run.name.as_str()) && explained.len() >= MAX_EXPLAINED {
                    break;
                }
                explained.insert(&run.name);
                let derived = self.derive_content(run)?;
                let Ok(derived) = &*derived else { continue };
                if derived.held.output.ids.get(*path) != Some(id) {
                    continue;
                }
                match why_stale(self.store, subject, path, derived) {
                    // A source that was only moved is the same source.
                    None if self.doubts(run)?.is_empty() => {
                        why = Found::Covered((*run).clone());
                        break;
                    }
                    None => why = Found::Doubted((*run).clone()),
                    Some(stale) if matches!(why, Found::Unknown) => why = Found::Stale((*run).clone(), stale),
                    Some(_) => {}
                }
            }
            found.insert((*path).clone(), why);
        }
        let limit = self.means.limits.searched;
        let more = || {
            let message = format!("more than {limit} runs are known here, and not all of them were searched");
            let hint = "git cbia run makes a run of this very state, which is found by its name; git cbia gc removes old runs";
            Finding::error(Code::PushTooLarge, message).at("refs/cbia/runs").hint(hint)
        };
        let cut = survey.cut && found.values().any(|found| !matches!(found, Found::Covered(_)));
        Ok((found, cut.then(more)))
    }

    /// The runs that are known, compared with this tree; once for each tree.
    fn survey(&mut self, subject: &Subject<'_>) -> Result<Rc<Survey>, VerifyError> {
        if let Some(survey) = self.surveyed.as_ref().filter(|survey| survey.tree == subject.tree) {
            return Ok(survey.clone());
        }
        let limit = self.means.limits.searched;
        let mut all = self.evidence.all(limit.saturating_add(1))?;
        let cut = all.len() > limit;
        all.truncate(limit);
        let policy =
            |tree: &Oid, folder: &str| folder.parse().ok().and_then(|folder| self.store.subtree(tree, &folder).ok().flatten());
        let own = policy(&subject.tree, "policy");
        let left = Cell::new(MAX_NAMES);
        let mut runs: Vec<(bool, usize, Seen)> = Vec::new();
        for run in all {
            let Ok(tree) = self.store.tree_of(&run.tip) else { continue };
            let cheap = Cell::new(CHEAP.min(left.get()));
            let before = cheap.get();
            let compared =
                self.store.compare_within(Some(tree), Some(subject.tree), subject.paths, TreeLimits::default(), &cheap);
            left.set(left.get() - (before - cheap.get()));
            let differs: Option<BTreeSet<Vec<u8>>> =
                compared.ok().map(|found| found.into_iter().map(|difference| difference.path).collect());
            // A run that has none of the files has nothing to say.
            let has_none = |differs: &BTreeSet<_>| subject.files.keys().all(|path| differs.contains(path.as_str().as_bytes()));
            if differs.as_ref().is_some_and(has_none) {
                continue;
            }
            let count = differs.as_ref().map_or(usize::MAX, BTreeSet::len);
            let policies = policy(&tree, &format!("{SNAPSHOT_FOLDER}/policy"));
            runs.push((policies != own, count, Seen { run, tree, policies, differs }));
        }
        // Stable: those of the push stay before those that are here.
        runs.sort_by_key(|(other_policy, count, _)| (*other_policy, *count));
        let survey =
            Rc::new(Survey { tree: subject.tree, policies: own, runs: runs.into_iter().map(|(_, _, seen)| seen).collect(), cut });
        self.surveyed = Some(survey.clone());
        Ok(survey)
    }
}

/// The hash of the policies that a run says it was admitted by.
fn policy_hash(store: &Store, seen: &Seen) -> Option<Digest> {
    let snapshot = store.subtree(&seen.tree, &SNAPSHOT_FOLDER.parse().ok()?).ok()??;
    let source = ExecutorSource::Resolved(Box::new(resolve::builtin()));
    Some(inputs::take(store, From::Tree(snapshot), &source).ok()?.policy_bundle_hash())
}

/// Whether a run saw the same bytes at a path as the commit has there.
pub(super) fn is_same(store: &Store, run: Oid, commit: Oid, path: &RepoPath) -> bool {
    let at = |tree: &Oid, path: &RepoPath| store.lookup(tree, path).ok().flatten();
    let snapshot: Result<RepoPath, _> = format!("{SNAPSHOT_FOLDER}/{path}").parse();
    snapshot.is_ok_and(|snapshot| at(&run, &snapshot) == at(&commit, path))
}
