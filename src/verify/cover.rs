//! The rule for single artifacts, for a state that has no run: a merge, a cherry-pick or a revert of admitted work.
//!
//! An artifact is covered by an admitted run that produced exactly this blob at this path, under the same policies, by an executor that
//! the tree accepts, from the same bytes of its own authorities, the same template and the same objectives. Which inputs an artifact
//! depends on beyond these nobody knows, so every file that the `inputs` patterns match must have been seen, as it is now, by one of the
//! runs that cover something. What the tree asks of artifacts by themselves, their schemas and their form, is asked again where their run was asked
//! something else.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::evidence::Run;
use super::search::Found;
use super::state::{Derived, Subject, absent, denied};
use super::weakened::MAX_ARTIFACT;
use super::{Covered, TreeVerdict, Verifier, VerifyError};
use crate::artifact::Artifacts;
use crate::artifact::check::enforce;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity, refuses};
use crate::document::json;
use crate::document::path::{RepoPath, printable};
use crate::gate::paths::EXECUTOR_CONFIG_PATH;
use crate::pipeline::inputs::Inputs;
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
        wrong.extend(others.keys().map(|path| subject.undeclared(path)));
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
        let mut pruned = BTreeSet::new();
        let mut seen: BTreeSet<(RepoPath, Digest)> = BTreeSet::new();
        let mut executor = None;
        for run in covering.values() {
            if let Ok(derived) = &*self.derive(run)? {
                pruned.extend(derived.held.pruned.iter().cloned());
                seen.extend(derived.inputs.files.iter().map(|(path, file)| (path.clone(), file.sha256)));
                executor.get_or_insert_with(|| derived.inputs.executor.clone());
            }
        }
        wrong.extend(subject.missing().filter(|path| !pruned.contains(*path)).map(absent));
        // What a run has seen that does not count yet is not out of date.
        if !covering.is_empty() && !doubted {
            wrong.extend(unseen(subject.inputs, &seen));
        }
        // A state that the gates refuse is refused, whoever produced its files.
        let gates = self.gates_of(subject.tree, executor.unwrap_or_else(|| subject.executor()))?;
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
        if wrong.is_empty() {
            wrong.extend(self.unchecked(subject, &covering, &verdict.covered)?);
        }
        let stands = wrong.is_empty();
        // Runs of this state that do not hold are what is wrong, unless nothing is.
        let severity = if stands { Severity::Warning } else { Severity::Error };
        findings.extend(refused.into_iter().map(|finding| Finding { severity, ..finding }));
        findings.extend(wrong);
        verdict.rests_on.extend(covering.into_values());
        Ok(())
    }

    /// What is wrong with artifacts that were checked by something else than what the tree asks of them: its schemas, and the form that it gives them.
    fn unchecked(
        &mut self,
        subject: &Subject<'_>,
        covering: &BTreeMap<Oid, Run>,
        covered: &[Covered],
    ) -> Result<Vec<Finding>, VerifyError> {
        let Ok(pipeline) = &subject.inputs.pipeline else { return Ok(Vec::new()) };
        let asked = asked(subject.inputs);
        let mut otherwise: BTreeSet<Oid> = BTreeSet::new();
        for (tip, run) in covering {
            if !matches!(&*self.derive(run)?, Ok(derived) if self::asked(&derived.inputs) == asked) {
                otherwise.insert(*tip);
            }
        }
        let ids = covered.iter().filter(|covered| otherwise.contains(&covered.run));
        let ids: BTreeMap<RepoPath, Oid> =
            ids.filter_map(|covered| Some((covered.path.clone(), *subject.files.get(&covered.path)?))).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let schemas = subject.inputs.schemas(self.store)?;
        let findings = enforce(&Lying { store: self.store, ids: &ids }, &pipeline.document, &schemas);
        let refused = findings.into_iter().filter(|finding| refuses(std::slice::from_ref(finding)));
        let hint = "it was checked by other rules when it was made: git cbia run, and commit what it writes";
        Ok(refused.map(|finding| finding.hint(hint)).collect())
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

/// Artifacts as they lie in a tree, read one at a time.
struct Lying<'a> {
    store: &'a Store,
    ids: &'a BTreeMap<RepoPath, Oid>,
}

impl Artifacts for Lying<'_> {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        Box::new(self.ids.keys())
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        self.store.read_blob(self.ids.get(path)?, MAX_ARTIFACT).ok().map(Cow::Owned)
    }
}

/// What a state asks of artifacts by themselves: the rules of CHECK and STRUCT, and the schemas that these name.
fn asked(inputs: &Inputs) -> Option<(Value, Vec<Option<Digest>>)> {
    let pipeline = &inputs.pipeline.as_ref().ok()?.document;
    let rules = pipeline.check.iter().flat_map(|check| &check.schemas);
    let schemas = rules.map(|rule| inputs.files.get(&rule.schema).map(|file| file.sha256)).collect();
    Some((json::to_value(&(&pipeline.check, &pipeline.r#struct)), schemas))
}

fn told(path: &RepoPath, run: &Run, stale: Stale) -> Finding {
    let message = format!("{path} was produced by the run {}, and {}", run.tip.to_hex_with_len(12), stale.what);
    Finding::error(stale.code, message).at(path).hint("git cbia run, and commit what it writes")
}

/// In what a run that produced a file differs from what the tree says of that file now.
pub(super) fn why_stale(subject: &Subject<'_>, path: &RepoPath, derived: &Derived) -> Option<Stale> {
    let (now, then) = (subject.inputs, &derived.inputs);
    let stale = |code, what: String| Some(Stale { code, what });
    let (Some(a), Some(b)) = (Basis::of(now, path), Basis::of(then, path)) else {
        return stale(Code::GenStaleInput, "one of the two states does not declare it".to_owned());
    };
    for (id, sha256) in &a.authorities {
        if b.authorities.get(id) != Some(sha256) {
            return stale(Code::GenStaleAuthority, format!("its authority {id} has other bytes now"));
        }
    }
    if a.authorities != b.authorities {
        return stale(Code::GenStaleAuthority, "it draws from other authorities now".to_owned());
    }
    if now.policy_bundle_hash() != then.policy_bundle_hash() {
        return stale(Code::GenStalePolicy, "the policies that admitted it are others now".to_owned());
    }
    if !subject.accepts(&then.executor) {
        return stale(Code::GenStaleExecutor, format!("the executor is another now ({EXECUTOR_CONFIG_PATH})"));
    }
    if a.template != b.template {
        return stale(Code::GenStaleInput, "its template is another now".to_owned());
    }
    if a.objectives != b.objectives {
        return stale(Code::GenStaleInput, "its objectives are others now".to_owned());
    }
    None
}

/// What an artifact is known to rest on.
pub(super) struct Basis {
    /// SHA-256 by authority.
    authorities: BTreeMap<String, Option<Digest>>,
    template: Option<(RepoPath, Option<Digest>)>,
    /// The objectives as they stand, canonical.
    objectives: Vec<Vec<u8>>,
    /// The files among them.
    pub(super) files: BTreeSet<RepoPath>,
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
            basis.authorities.insert(authority.clone(), file.as_ref().and_then(hash));
            basis.files.extend(file);
        }
        Some(basis)
    }
}

/// The inputs that no covering run has seen as they are.
fn unseen(inputs: &Inputs, seen: &BTreeSet<(RepoPath, Digest)>) -> Vec<Finding> {
    let Ok(pipeline) = &inputs.pipeline else { return Vec::new() };
    let Ok(globs) = crate::document::glob::Globs::new(&pipeline.document.inputs) else { return Vec::new() };
    let changed =
        inputs.files.iter().filter(|(path, file)| globs.matches(path) && !seen.contains(&((*path).clone(), file.sha256)));
    let finding = |path: &RepoPath| {
        let message = format!("{path} is an input of generation, and no run that is known has seen it as it is");
        Finding::error(Code::GenStaleInput, message).at(path).hint("git cbia run, and commit what it writes")
    };
    changed.map(|(path, _)| finding(path)).collect()
}
