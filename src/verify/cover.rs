//! The rule for single artifacts, for a state that has no run: a merge, a cherry-pick or a revert of admitted work.
//!
//! An artifact is covered by an admitted run that produced exactly this blob at this path, under the same policies, by an executor that
//! the tree accepts, from the same bytes of its own authorities, the same template and the same objectives. What else it may depend on is asked
//! of all covering runs together (`shared`). And the state must be one that would be admitted with these artifacts, by every phase after GEN.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::Run;
use super::search::Found;
use super::shared::{reads_places, same_scripts};
use super::state::{Derived, Subject, absent, denied, denied_at_eval};
use super::{Covered, TreeVerdict, Verifier, VerifyError};
use crate::document::digest::Digest;
use crate::document::executor::GenExecutor;
use crate::document::finding::{Code, Finding, Severity, refuses};
use crate::document::json;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::gate::paths::{EXECUTOR_CONFIG_PATH, EXECUTORS_FOLDER};
use crate::pipeline::inputs::Inputs;
use crate::pipeline::rederive::{Forgetful, Gates, Output, admits};
use crate::store::{Oid, Store};

/// Why a run that produced a blob does not cover it any more.
pub(super) struct Stale {
    code: Code,
    /// What differs.
    what: String,
}

impl Verifier<'_> {
    /// Covers the files one by one.
    pub(super) fn cover(
        &mut self,
        subject: &Subject<'_>,
        refused: Vec<Finding>,
        findings: &mut Vec<Finding>,
        verdict: &mut TreeVerdict,
    ) -> Result<(), VerifyError> {
        let mut covering: BTreeMap<Oid, Run> = BTreeMap::new();
        let (mut unknown, mut doubted, mut wrong) = (0, false, Vec::new());
        let (declared, others): (BTreeMap<_, _>, BTreeMap<_, _>) = subject
            .files
            .iter()
            .map(|(path, id)| (path.clone(), *id))
            .partition(|(path, _)| subject.paths.declared().contains(path));
        let (found, cut) = self.search(subject, &declared)?;
        wrong.extend(cut);
        for (path, found) in found {
            match found {
                Found::Covered(run) => {
                    verdict.covered.push(Covered { path, run: run.tip, own: false });
                    covering.insert(run.tip, run);
                }
                Found::Stale(run, stale) => wrong.push(told(&path, &run, stale)),
                Found::Doubted(run) => {
                    doubted = true;
                    wrong.extend(self.doubts_of(&run).iter().cloned());
                }
                Found::Unknown => {
                    unknown += 1;
                    let message = format!("no admitted run that is known here produced {path}");
                    let hint =
                        "git cbia run, then commit what it writes; if another clone ran it, git cbia push there uploads the run";
                    wrong.push(Finding::error(Code::GenUnadmitted, message).at(&path).hint(hint));
                }
            }
        }
        let (mut pruned, mut packaged) = (BTreeSet::new(), BTreeSet::new());
        let mut executor = None;
        for run in covering.values() {
            if let Ok(derived) = &*self.derive(run)? {
                pruned.extend(derived.held.pruned.iter().cloned());
                packaged.extend(derived.held.package.iter().map(|(path, id)| (path.clone(), *id)));
                executor.get_or_insert_with(|| derived.inputs.executor.clone());
            }
        }
        // What a run laid out as its package was made by it, too; whether this state has the same one is seen below.
        wrong.extend(
            others
                .iter()
                .filter(|(path, id)| !packaged.contains(&((*path).clone(), **id)))
                .map(|(path, _)| subject.undeclared(path)),
        );
        wrong.extend(subject.missing().filter(|path| !pruned.contains(*path)).map(absent));
        let mut runs: Vec<Run> = covering.into_values().collect();
        // What a run has seen that does not count yet is not out of date.
        if !runs.is_empty() && !doubted {
            wrong.extend(self.unseen(subject, &verdict.covered, &mut runs)?);
        }
        // A state that the gates refuse is refused, whoever produced its files.
        let (inputs, gates) = self.gates_of(subject.tree, executor.unwrap_or_else(|| subject.executor()))?;
        let state_key = subject.inputs.state_key();
        if gates.admission.is_none() {
            wrong.insert(0, denied(&gates.findings));
        } else if unknown > 0 && refused.is_empty() {
            let mut message = format!("no run of the state {} is known here", state_key.short());
            let mut hint = "git cbia run makes it; if it was made elsewhere, git cbia push there, or git cbia fetch here";
            if let Some(name) = self.evidence.elsewhere(&state_key)? {
                message.push_str(&format!(", and {} does not count for this ref", printable(&name)));
                hint = "somebody who may write refs/cbia/runs runs git cbia run and pushes; or cbia.evidenceNamespace on the server names it";
            }
            let finding = Finding::error(Code::EvidenceMissing, message).at(format!("refs/cbia/runs/{state_key}"));
            wrong.insert(0, finding.hint(hint));
        }
        verdict.rests_on.extend(runs);
        if wrong.is_empty() && !verdict.covered.is_empty() {
            wrong.extend(self.unadmitted(subject, &inputs, &gates, verdict, &others)?);
        }
        let stands = wrong.is_empty();
        // Runs of this state that do not hold are what is wrong, unless nothing is.
        let severity = if stands { Severity::Warning } else { Severity::Error };
        findings.extend(refused.into_iter().map(|finding| Finding { severity, ..finding }));
        findings.extend(wrong);
        Ok(())
    }

    /// What the phases after GEN have against the state with the artifacts that are covered, as if they had been generated for it: CHECK, STRUCT,
    /// SELECT, FLOW, and EVAL's question to the policy.
    fn unadmitted(
        &mut self,
        subject: &Subject<'_>,
        inputs: &Inputs,
        gates: &Gates,
        verdict: &TreeVerdict,
        others: &BTreeMap<RepoPath, Oid>,
    ) -> Result<Vec<Finding>, VerifyError> {
        let Some((_, output)) = self.made(verdict)? else { return Ok(Vec::new()) };
        let bytes = output.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        if let Err(finding) = self.budgets.decisions.spend().and_then(|()| self.budgets.bytes.spend_many(bytes)) {
            return Ok(vec![finding]);
        }
        let mut judge = Forgetful::new(self.means.cage);
        Ok(match admits(self.store, inputs, gates, &output, &mut judge)? {
            Ok(package) => {
                let laid_out = |(path, id): &(&RepoPath, &Oid)| package.get(*path) == Some(*id);
                others.iter().filter(|other| !laid_out(other)).map(|(path, _)| subject.undeclared(path)).collect()
            }
            Err((Phase::Eval, findings)) => vec![denied_at_eval(&findings)],
            Err((_, findings)) => {
                let refused = findings.into_iter().filter(|finding| refuses(std::slice::from_ref(finding)));
                let hint = "it was checked by other rules when it was made: git cbia run, and commit what it writes";
                refused.map(|finding| finding.hint(hint)).collect()
            }
        })
    }

    /// The artifacts that a tree in order has, those that were pruned among them, as the runs made them that it rests on, and an executor of these.
    pub(super) fn made(&mut self, verdict: &TreeVerdict) -> Result<Option<(GenExecutor, Output)>, VerifyError> {
        let mut derived = BTreeMap::new();
        for run in verdict.run.iter().chain(&verdict.rests_on) {
            derived.insert(run.tip, self.derive_content(run)?);
        }
        let of = |tip: &Oid| derived.get(tip).and_then(|derived| derived.as_ref().as_ref().ok());
        if let Some(run) = &verdict.run {
            return Ok(of(&run.tip).map(|derived| (derived.inputs.executor.clone(), derived.held.output.clone())));
        }
        let Some(first) = verdict.covered.first().and_then(|covered| of(&covered.run)) else { return Ok(None) };
        let mut output = Output { files: Vec::new(), ids: BTreeMap::new(), tools: first.held.output.tools.clone() };
        let mut take = |path: &RepoPath, derived: &Derived| {
            let file = derived.held.output.files.binary_search_by(|file| file.path.cmp(path));
            let file = file.ok().and_then(|at| derived.held.output.files.get(at));
            if let (Some(file), Some(id), false) = (file, derived.held.output.ids.get(path), output.ids.contains_key(path)) {
                output.files.push(file.clone());
                output.ids.insert(path.clone(), *id);
            }
        };
        for covered in &verdict.covered {
            of(&covered.run).into_iter().for_each(|derived| take(&covered.path, derived));
        }
        let covering: BTreeSet<Oid> = verdict.covered.iter().map(|covered| covered.run).collect();
        for derived in covering.iter().filter_map(of) {
            derived.held.pruned.iter().for_each(|path| take(path, derived));
        }
        output.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Some((first.inputs.executor.clone(), output)))
    }

    /// What a run that is known made of this file, if it is out of date now.
    pub(super) fn stale(&mut self, subject: &Subject<'_>, path: &RepoPath, id: Oid) -> Result<Option<Finding>, VerifyError> {
        let file = BTreeMap::from([(path.clone(), id)]);
        let found = self.search(subject, &file)?.0.into_values().next();
        Ok(match found {
            Some(Found::Stale(run, stale)) => Some(told(path, &run, stale)),
            Some(Found::Covered(_) | Found::Doubted(_) | Found::Unknown) | None => None,
        })
    }
}

fn told(path: &RepoPath, run: &Run, stale: Stale) -> Finding {
    let message = format!("{path} was produced by the run {}, and {}", run.tip.to_hex_with_len(12), stale.what);
    Finding::error(stale.code, message).at(path).hint("git cbia run, and commit what it writes")
}

/// In what a run that produced a file differs from what the tree says of that file now.
pub(super) fn why_stale(store: &Store, subject: &Subject<'_>, path: &RepoPath, derived: &Derived) -> Option<Stale> {
    let (now, then) = (subject.inputs, &derived.inputs);
    let stale = |code, what: String| Some(Stale { code, what });
    let (Some(a), Some(b)) = (Basis::of(now, path), Basis::of(then, path)) else {
        return stale(Code::GenStaleInput, "one of the two states does not declare it".to_owned());
    };
    for (id, now) in &a.authorities {
        let then = b.authorities.get(id);
        if then.map(|then| then.sha256) != Some(now.sha256) {
            return stale(Code::GenStaleAuthority, format!("its authority {id} has other bytes now"));
        }
        if then.map(|then| &then.title) != Some(&now.title) {
            return stale(Code::GenStaleAuthority, format!("its authority {id} has another title now"));
        }
    }
    if a.authorities.keys().ne(b.authorities.keys()) {
        return stale(Code::GenStaleAuthority, "it draws from other authorities now".to_owned());
    }
    if now.policy_bundle_hash() != then.policy_bundle_hash() {
        return stale(Code::GenStalePolicy, "the policies that admitted it are others now".to_owned());
    }
    if !subject.accepts(&then.executor) {
        return stale(Code::GenStaleExecutor, format!("the executor is another now ({EXECUTOR_CONFIG_PATH})"));
    }
    if !same_scripts(now, then) {
        return stale(Code::GenStaleExecutor, format!("what lies in {EXECUTORS_FOLDER} is something else now"));
    }
    if a.template != b.template {
        return stale(Code::GenStaleInput, "its template is another now".to_owned());
    }
    if a.objectives != b.objectives {
        return stale(Code::GenStaleInput, "its objectives are others now".to_owned());
    }
    // A source that was only moved is the same source, but for those who read where it is.
    let moved = a.authorities.iter().find(|(id, now)| b.authorities.get(*id).map(|then| &then.file) != Some(&now.file));
    match moved.filter(|_| reads_places(store, then, path)) {
        Some((id, _)) => stale(Code::GenStaleAuthority, format!("its authority {id} lies elsewhere now")),
        None => None,
    }
}

/// What an artifact is known to rest on.
pub(super) struct Basis {
    /// By authority.
    authorities: BTreeMap<String, Source>,
    template: Option<(RepoPath, Option<Digest>)>,
    /// The objectives as they stand, canonical.
    objectives: Vec<Vec<u8>>,
    /// The files among them.
    pub(super) files: BTreeSet<RepoPath>,
}

/// What a generator is told of an authority.
struct Source {
    sha256: Option<Digest>,
    title: Option<String>,
    file: Option<RepoPath>,
}

impl Basis {
    pub(super) fn of(inputs: &Inputs, path: &RepoPath) -> Option<Self> {
        let artifact = inputs.artifact(path)?;
        let hash = |path: &RepoPath| inputs.files.get(path).map(|file| file.sha256);
        let ledger = inputs.ledger.as_ref().ok()?;
        let mut basis = Self {
            authorities: BTreeMap::new(),
            template: artifact.template.as_ref().map(|template| (template.clone(), hash(template))),
            objectives: Vec::new(),
            files: artifact.template.iter().cloned().collect(),
        };
        for id in &artifact.objectives {
            let (objective, value) = inputs.objective(id)?;
            basis.objectives.push(json::canonical(value));
            let authority = &objective.source.authority_id;
            let entry = ledger.document.authority_set.iter().find(|entry| entry.authority_id == *authority)?;
            let file = entry.file();
            let source = Source { sha256: file.as_ref().and_then(hash), title: entry.title.clone(), file: file.clone() };
            basis.authorities.insert(authority.clone(), source);
            basis.files.extend(file);
        }
        Some(basis)
    }
}
