//! The files that nobody can assign to single artifacts: inputs, and what a program or a template may have read beside its own.
//!
//! An artifact is covered by a run that had its own authorities, template and objectives as they are now. Of the rest that a generator may see nobody
//! knows what it rests on. So each of these files must have been seen as it is, or been absent where it is absent, by one of the runs that
//! cover the state together, or by one that is known beside them. And where one of these runs has seen a change that another has not, and has made
//! an artifact of the other's otherwise, some run must show that the change is not why: one from before the change that made the same of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::evidence::Run;
use super::search::is_same;
use super::state::{Derived, Subject};
use super::{Covered, Verifier, VerifyError};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::path::RepoPath;
use crate::executor::resolve::is_builtin;
use crate::gate::authority::OBJECTIVES_PATH;
use crate::gate::order::GRAPH_PATH;
use crate::gate::paths::{EXECUTORS_FOLDER, TEMPLATES_FOLDER};
use crate::pipeline::inputs::Inputs;
use crate::store::{Oid, Store};

/// How many trees are looked into for runs from before a change.
const MAX_LOOKED_INTO: usize = 50_000;
/// How many runs from before a change are derived again.
const MAX_BEFORE: usize = 32;
/// How many runs may cover one state together: each is compared with every other.
const MAX_WITNESSES: usize = 64;

/// Such files of a state, by path.
type Shared = BTreeMap<RepoPath, Digest>;

/// A run that covers something, and what it had seen.
pub(super) struct Witness {
    pub run: Run,
    pub derived: Rc<Result<Derived, Finding>>,
    shared: Shared,
}

impl Witness {
    fn made(&self, path: &RepoPath) -> Option<Oid> {
        made(&self.derived, path)
    }
}

fn made(derived: &Result<Derived, Finding>, path: &RepoPath) -> Option<Oid> {
    derived.as_ref().ok().and_then(|derived| derived.held.output.ids.get(path)).copied()
}

/// The files of a state that any artifact may have been made from.
fn shared(inputs: &Inputs, by_program: bool, templates: bool) -> Shared {
    let patterns = inputs.pipeline.iter().flat_map(|pipeline| &pipeline.document.inputs);
    let globs = Globs::new(patterns).ok();
    let is_input = |path: &RepoPath| globs.as_ref().is_none_or(|globs| globs.matches(path));
    let authorities: BTreeSet<RepoPath> =
        inputs.ledger.iter().flat_map(|ledger| &ledger.document.authority_set).filter_map(|authority| authority.file()).collect();
    let declared = inputs.pipeline.iter().flat_map(|pipeline| &pipeline.document.r#gen.artifacts);
    let own: BTreeSet<&RepoPath> = declared.filter_map(|artifact| artifact.template.as_ref()).collect();
    let is_shared = |path: &RepoPath| {
        if is_input(path) {
            return true;
        }
        if path.is_under(TEMPLATES_FOLDER) || own.contains(path) {
            return templates || by_program;
        }
        // What artifacts rest on one by one is asked of each; the graph and the scripts are for programs.
        let one_by_one = authorities.contains(path) || path.as_str() == OBJECTIVES_PATH;
        !one_by_one && (by_program || path.as_str() != GRAPH_PATH && !path.is_under(EXECUTORS_FOLDER))
    };
    let files = inputs.manifest.files.iter().filter(|file| is_shared(&file.path));
    files.map(|file| (file.path.clone(), file.sha256)).collect()
}

/// What a template has in it that may read others.
const READS_OTHERS: [&str; 3] = ["include", "import", "extends"];
/// What a template has in it that may show where an authority lies: its name, and what shows a thing whole.
const SHOWS_PLACES: [&str; 10] = ["locator", "tojson", "pprint", "debug", "items", "values", "dictsort", "map", "string", "list"];

/// Whether a template of these artifacts may read others.
fn templates_reach_others(store: &Store, inputs: &Inputs) -> bool {
    let declared = inputs.pipeline.iter().flat_map(|pipeline| &pipeline.document.r#gen.artifacts);
    let used: BTreeSet<&RepoPath> = declared.filter_map(|artifact| artifact.template.as_ref()).collect();
    used.into_iter().any(|path| mentions(store, inputs, path, &READS_OTHERS))
}

/// Whether what makes an artifact may have shown where its authorities lie.
pub(super) fn reads_places(store: &Store, inputs: &Inputs, path: &RepoPath) -> bool {
    let template = inputs.artifact(path).and_then(|artifact| artifact.template.as_ref());
    let shows = |template| mentions(store, inputs, template, &SHOWS_PLACES) || mentions(store, inputs, template, &READS_OTHERS);
    !is_builtin(&inputs.executor) || template.is_none_or(shows)
}

/// Whether one of these words stands in a template; one that cannot be read may have them all.
fn mentions(store: &Store, inputs: &Inputs, template: &RepoPath, words: &[&str]) -> bool {
    let bytes = inputs.files.get(template).and_then(|file| store.content(file).ok());
    bytes.is_none_or(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        words.iter().any(|word| text.contains(word))
    })
}

impl Verifier<'_> {
    /// What the runs that cover the subject's artifacts, and those that are known beside them, have not seen of it. Those that it took beside
    /// them are added to `runs`.
    pub(super) fn unseen(
        &mut self,
        subject: &Subject<'_>,
        covered: &[Covered],
        runs: &mut Vec<Run>,
    ) -> Result<Vec<Finding>, VerifyError> {
        let mut derived = Vec::new();
        for run in &*runs {
            derived.push((run.clone(), self.derive_content(run)?));
        }
        let by_program = derived.iter().any(|(_, d)| d.as_ref().as_ref().is_ok_and(|d| !is_builtin(&d.inputs.executor)));
        let templates = templates_reach_others(self.store, subject.inputs);
        let now = shared(subject.inputs, by_program, templates);
        let witness = |(run, derived): (Run, Rc<Result<Derived, Finding>>)| {
            let shared =
                derived.as_ref().as_ref().map(|derived| shared(&derived.inputs, by_program, templates)).unwrap_or_default();
            Witness { run, derived, shared }
        };
        let mut witnesses: Vec<Witness> = derived.into_iter().map(witness).collect();
        let mut open = by_nobody(&now, &witnesses);
        for run in self.who_saw(subject, &open)? {
            let known = self.derive_content(&run)?;
            // By other policies or another executor it says nothing of this state.
            let speaks = |derived: &Derived| {
                derived.inputs.policy_bundle_hash() == subject.inputs.policy_bundle_hash()
                    && subject.accepts(&derived.inputs.executor)
                    && same_scripts(subject.inputs, &derived.inputs)
            };
            let speaks = known.as_ref().as_ref().is_ok_and(speaks);
            let witness = witness((run.clone(), known));
            if speaks && self.doubts(&run)?.is_empty() && open.iter().any(|path| witness.shared.get(path) == now.get(path)) {
                open.retain(|path| witness.shared.get(path) != now.get(path));
                runs.push(run);
                witnesses.push(witness);
            }
            if open.is_empty() {
                break;
            }
        }
        if witnesses.len() > MAX_WITNESSES {
            let message = format!("more than {MAX_WITNESSES} runs would have to cover the files of one state");
            let finding = Finding::error(Code::PushTooLarge, message).at("refs/cbia/runs");
            return Ok(vec![finding.hint("git cbia run makes one run of this very state; commit what it writes")]);
        }
        if !open.is_empty() {
            return Ok(open.iter().map(|path| unseen_by_all(path, now.contains_key(path))).collect());
        }
        self.outdated(subject, &now, covered, &witnesses)
    }

    /// Runs of which the names of things say that they saw one of these paths as the subject has it.
    fn who_saw(&self, subject: &Subject<'_>, open: &BTreeSet<RepoPath>) -> Result<Vec<Run>, VerifyError> {
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let mut left = MAX_LOOKED_INTO;
        let mut found = Vec::new();
        for run in self.evidence.all(self.means.limits.searched)? {
            let Ok(tree) = self.store.tree_of(&run.tip) else { continue };
            let mut saw = false;
            for path in open {
                left = left.saturating_sub(1);
                saw |= left > 0 && is_same(self.store, tree, subject.tree, path);
            }
            if saw {
                found.push(run);
            }
            if left == 0 || found.len() == MAX_BEFORE {
                break;
            }
        }
        Ok(found)
    }

    /// The artifacts of which another run shows that they were made before something changed that they rest on.
    fn outdated(
        &mut self,
        subject: &Subject<'_>,
        now: &Shared,
        covered: &[Covered],
        witnesses: &[Witness],
    ) -> Result<Vec<Finding>, VerifyError> {
        let mut findings = Vec::new();
        let differs = |witness: &Witness| -> BTreeSet<RepoPath> {
            let all = now.keys().chain(witness.shared.keys());
            all.filter(|path| witness.shared.get(*path) != now.get(*path)).cloned().collect()
        };
        let differs: Vec<BTreeSet<RepoPath>> = witnesses.iter().map(differs).collect();
        for (one, has_not_seen) in witnesses.iter().zip(&differs) {
            let own: Vec<&RepoPath> =
                covered.iter().filter(|covered| covered.run == one.run.tip).map(|covered| &covered.path).collect();
            for (other, nor_has_other) in witnesses.iter().zip(&differs) {
                let news: Vec<&RepoPath> = has_not_seen.difference(nor_has_other).collect();
                if news.is_empty() {
                    continue;
                }
                let otherwise: Vec<(&RepoPath, Oid)> = own
                    .iter()
                    .filter_map(|path| Some((*path, other.made(path)?)))
                    .filter(|(path, id)| one.made(path) != Some(*id))
                    .collect();
                if otherwise.is_empty() {
                    continue;
                }
                for path in self.unexplained(subject, &news, &otherwise)? {
                    let [before, after] = [one, other].map(|witness| witness.run.tip.to_hex_with_len(12));
                    let first = news.first().map_or("an input", |path| path.as_str());
                    let message = format!(
                        "{path} was produced by the run {before}, which has not seen {first} as it is now, and the run {after}, which has, \
                         made it otherwise"
                    );
                    let finding = Finding::error(Code::GenStaleInput, message).at(path);
                    findings.push(finding.hint("git cbia run, and commit what it writes"));
                }
            }
        }
        Ok(findings)
    }

    /// The artifacts that no run from before the news made as the run did that has seen them.
    fn unexplained<'p>(
        &mut self,
        subject: &Subject<'_>,
        news: &[&RepoPath],
        otherwise: &[(&'p RepoPath, Oid)],
    ) -> Result<Vec<&'p RepoPath>, VerifyError> {
        let mut left = MAX_LOOKED_INTO;
        let store = self.store;
        let at = |tree: &Oid, path: &RepoPath| store.lookup(tree, path).ok().flatten();
        let mut before: VecDeque<(Run, Oid)> = VecDeque::new();
        for run in self.evidence.all(self.means.limits.searched)? {
            let Ok(tree) = store.tree_of(&run.tip) else { continue };
            let mut is_before = true;
            for path in news {
                left = left.saturating_sub(1);
                is_before &= left > 0 && !is_same(store, tree, subject.tree, path);
            }
            if is_before {
                before.push_back((run, tree));
            }
        }
        let mut derived: Vec<Rc<Result<Derived, Finding>>> = Vec::new();
        let mut unexplained = Vec::new();
        for (path, id) in otherwise {
            if derived.iter().any(|derived| made(derived, path) == Some(*id)) {
                continue;
            }
            let mut found = false;
            for _ in 0..before.len() {
                if found || derived.len() == MAX_BEFORE {
                    break;
                }
                let Some((run, tree)) = before.pop_front() else { break };
                left = left.saturating_sub(1);
                if left == 0 || at(&tree, path) != Some(*id) {
                    // It may have made another one of them so.
                    before.push_back((run, tree));
                    continue;
                }
                let again = self.derive_content(&run)?;
                found = made(&again, path) == Some(*id);
                derived.push(again);
            }
            if !found {
                unexplained.push(*path);
            }
        }
        Ok(unexplained)
    }
}

/// The files of which no run has seen that they are as they are, or are no more.
fn by_nobody(now: &Shared, witnesses: &[Witness]) -> BTreeSet<RepoPath> {
    let all: BTreeSet<&RepoPath> = now.keys().chain(witnesses.iter().flat_map(|witness| witness.shared.keys())).collect();
    let seen = |path: &RepoPath| witnesses.iter().any(|witness| witness.shared.get(path) == now.get(path));
    all.into_iter().filter(|path| !seen(path)).cloned().collect()
}

fn unseen_by_all(path: &RepoPath, is_there: bool) -> Finding {
    let what = match is_there {
        true => "is an input of generation, and no run that is known has seen it as it is",
        false => "was an input of generation, and no run that is known has done without it",
    };
    let finding = Finding::error(Code::GenStaleInput, format!("{path} {what}")).at(path);
    finding.hint("git cbia run, and commit what it writes")
}

/// Whether a program that generates has the same scripts beside it, in both states.
pub(super) fn same_scripts(now: &Inputs, then: &Inputs) -> bool {
    let scripts = |inputs: &Inputs| -> Shared {
        let files = inputs.manifest.files.iter().filter(|file| file.path.is_under(EXECUTORS_FOLDER));
        files.map(|file| (file.path.clone(), file.sha256)).collect()
    };
    is_builtin(&then.executor) || scripts(now) == scripts(then)
}
