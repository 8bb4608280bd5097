//! A tree's state, the runs of it that hold, and whether the files at generated paths are theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::evidence::Run;
use super::paths::{GenPaths, blob_at, document, pipeline};
use super::trust::all;
use super::{Covered, TreeVerdict, Verifier, VerifyError, cut, diagnose, unique, unreadable};
use crate::document::capsule::Capsule;
use crate::document::executor::{ExecutorConfig, ExecutorKind, GenExecutor};
use crate::document::finding::{Code, Finding, refuses};
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::schema::Kind;
use crate::executor::resolve;
use crate::gate::paths::{CAPSULE_PATH, EXECUTOR_CONFIG_PATH, PIPELINE_PATH, SNAPSHOT_FOLDER};
use crate::pipeline::inputs::{self, ExecutorSource, From, Inputs};
use crate::pipeline::rederive::{Forgetful, Gates, Held, announce, gates, hold};
use crate::store::{Oid, Store};

/// A stored run, derived again from its own snapshot.
pub struct Derived {
    /// What it was derived from.
    pub inputs: Inputs,
    /// What its gates said.
    pub gates: Gates,
    /// What it handed on.
    pub held: Held,
}

/// A commit's tree, and what it needs to be true of a run.
pub(super) struct Subject<'t> {
    pub tree: Oid,
    pub inputs: &'t Inputs,
    pub files: &'t BTreeMap<RepoPath, Oid>,
    /// The generated paths where something else than a regular file lies.
    pub odd: BTreeSet<String>,
    pub paths: &'t GenPaths,
    /// The executor that the tree configures.
    pub config: Option<ExecutorConfig>,
    /// The one that the tree before it configured, where it configures none.
    pub withdrawn: Option<ExecutorConfig>,
}

impl Verifier<'_> {
    /// Whether what lies at the generated paths of `tree` came out of an admitted run. `before` is the tree before it: what it declares
    /// counts too, and where nothing that matters differs from it, it vouches for `tree` if `trusted`.
    pub fn tree(&mut self, tree: Oid, before: Option<Oid>, trusted: bool) -> Result<Rc<TreeVerdict>, VerifyError> {
        let key = (tree, before, trusted);
        if let Some(verdict) = self.verdicts.get(&key) {
            return Ok(verdict.clone());
        }
        let verdict = match self.judge(tree, before, trusted) {
            Ok(verdict) => verdict?,
            Err(findings) => TreeVerdict { findings, ..TreeVerdict::default() },
        };
        let findings = cut(unique(verdict.findings));
        let verdict = Rc::new(TreeVerdict { findings, ..verdict });
        for run in &verdict.rests_on {
            self.rests_on.insert(run.home(), run.clone());
        }
        self.verdicts.insert(key, verdict.clone());
        Ok(verdict)
    }

    fn judge(&mut self, tree: Oid, before: Option<Oid>, trusted: bool) -> Result<Result<TreeVerdict, VerifyError>, Vec<Finding>> {
        match self.at_a_glance(tree, before, trusted) {
            Ok(Some(verdict)) => return Ok(Ok(verdict)),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        let own = pipeline(self.store, tree)?;
        // What cannot be read before this commit declares nothing; that it could not be read was told when it was pushed.
        let declares_the_same =
            |before: Oid| own.is_some() && blob_at(self.store, before, PIPELINE_PATH) == blob_at(self.store, tree, PIPELINE_PATH);
        let previous = match before {
            // The same declaration counts once, and is read once.
            Some(before) if declares_the_same(before) => None,
            Some(before) => pipeline(self.store, before).ok().flatten(),
            None => None,
        };
        let (own, previous) = (own.as_ref().map(|p| &p.document), previous.as_ref().map(|p| &p.document));
        if own.is_none() && previous.is_none() {
            return Ok(Ok(TreeVerdict::default()));
        }
        let paths = GenPaths::new(own, previous)?;
        let (files, findings) = paths.things(self.store, tree, &self.budgets.names).map_err(|finding| vec![finding])?;
        if own.is_none_or(|p| p.r#gen.artifacts.is_empty()) && files.is_empty() && findings.is_empty() {
            return Ok(Ok(TreeVerdict::default()));
        }
        let Some(_) = own else {
            let findings = findings.into_iter().chain(files.keys().map(withdrawn)).collect();
            return Ok(Ok(TreeVerdict { findings, ..TreeVerdict::default() }));
        };
        let config = document::<ExecutorConfig>(self.store, tree, Kind::ExecutorConfig, EXECUTOR_CONFIG_PATH)?;
        let source = ExecutorSource::Resolved(Box::new(resolve::builtin()));
        let inputs = match inputs::take(self.store, From::Tree(tree), &source) {
            Ok(inputs) => inputs,
            Err(error) => return Err(vec![unreadable("the state of the commit cannot be read", &error)]),
        };
        let config = config.map(|sealed| sealed.document);
        let withdrawn = if config.is_none() { config_of(self.store, before) } else { None };
        let odd = findings.iter().filter_map(|finding| finding.path.clone()).collect();
        let subject = Subject { tree, inputs: &inputs, files: &files, odd, paths: &paths, config, withdrawn };
        Ok(self.judge_state(&subject, findings))
    }

    fn judge_state(&mut self, subject: &Subject<'_>, mut findings: Vec<Finding>) -> Result<TreeVerdict, VerifyError> {
        let state_key = subject.inputs.state_key();
        let mut verdict = TreeVerdict { state_key: Some(state_key), ..TreeVerdict::default() };
        if let Err(finding) = self.budgets.decisions.spend() {
            verdict.findings = vec![finding];
            return Ok(verdict);
        }
        if refuses(&subject.inputs.findings) {
            findings.push(denied(&subject.inputs.findings));
            findings.extend(subject.inputs.findings.iter().filter(|f| refuses(std::slice::from_ref(*f))).cloned());
            verdict.findings = findings;
            return Ok(verdict);
        }
        let mut refused = Vec::new();
        let mut best: Option<(Run, Vec<Finding>, Vec<Covered>)> = None;
        for run in self.evidence.of_state(&state_key)? {
            let derived = match &*self.derive(&run)? {
                Err(finding) => {
                    refused.extend(all(finding, &self.doubts_of(&run)));
                    continue;
                }
                Ok(derived) if !subject.accepts(&derived.inputs.executor) => {
                    refused.push(other_executor(&run));
                    continue;
                }
                Ok(derived) => derived.held.clone(),
            };
            let (wrong, covered) = self.against(subject, &run, &derived)?;
            let fewer = best.as_ref().is_none_or(|(_, found, _)| wrong.len() < found.len());
            if fewer {
                best = Some((run, wrong, covered));
            }
            if best.as_ref().is_some_and(|(_, found, _)| found.is_empty()) {
                break;
            }
        }
        match best {
            Some((run, wrong, covered)) => {
                findings.extend(wrong);
                verdict.rests_on.push(run.clone());
                verdict.run = Some(run);
                verdict.covered = covered;
                // A second run that does not hold is worth a word, and changes nothing.
                findings.extend(refused.into_iter().filter(|f| f.code != Code::GenStaleExecutor).map(warned));
            }
            None => self.cover(subject, refused, &mut findings, &mut verdict)?,
        }
        verdict.findings = findings;
        Ok(verdict)
    }

    /// Every generated file of the tree against the run of its state.
    fn against(&mut self, subject: &Subject<'_>, run: &Run, held: &Held) -> Result<(Vec<Finding>, Vec<Covered>), VerifyError> {
        let (mut findings, mut covered) = (Vec::new(), Vec::new());
        for (path, id) in subject.files {
            // What a run laid out as its package was made by it, too, wherever that lies.
            match held.output.ids.get(path).or_else(|| held.package.get(path)) {
                Some(made) if made == id => {
                    covered.push(Covered { path: path.clone(), run: run.tip, own: true });
                }
                Some(made) => {
                    // What another run made is not somebody's edit: it is told apart, so that the next step is the right one.
                    let finding = match self.stale(subject, path, *id)? {
                        Some(finding) => finding,
                        None => Finding::error(
                            Code::GenEdited,
                            format!("{path} is not what the run {} produced", run.tip.to_hex_with_len(12)),
                        )
                        .at(path)
                        .expected(made, id)
                        .hint("change what it is generated from, not the file; git cbia run --force writes it again, then commit it"),
                    };
                    findings.push(finding);
                }
                None => findings.push(subject.undeclared(path)),
            }
        }
        findings.extend(subject.missing().filter(|path| !held.pruned.contains(path)).map(absent));
        Ok((findings, covered))
    }

    /// A stored run, derived again and vouched for as far as that is asked; otherwise why it does not count.
    pub(super) fn derive(&mut self, run: &Run) -> Result<Rc<Result<Derived, Finding>>, VerifyError> {
        let derived = self.derive_content(run)?;
        if derived.is_ok()
            && let Some(doubt) = self.doubts(run)?.first()
        {
            return Ok(Rc::new(Err(doubt.clone())));
        }
        Ok(derived)
    }

    /// Derives a stored run again, from its own snapshot; once. Whose word it has is not asked.
    pub(super) fn derive_content(&mut self, run: &Run) -> Result<Rc<Result<Derived, Finding>>, VerifyError> {
        // By name too: another ref may give the same chain another name, and only its own is right.
        let key = (run.tip, run.state_key, run.executor_key);
        if let Some(derived) = self.derived.get(&key) {
            return Ok(derived.clone());
        }
        let derived = Rc::new(match self.budgets.runs.spend() {
            Ok(()) => self.derive_anew(run)?,
            Err(finding) => Err(finding),
        });
        self.derived.insert(key, derived.clone());
        Ok(derived)
    }

    fn derive_anew(&mut self, run: &Run) -> Result<Result<Derived, Finding>, VerifyError> {
        if let Err(finding) = diagnose::chain(self.store, run) {
            return Ok(Err(finding));
        }
        let (executor, snapshot) = match parts(self.store, run) {
            Ok(parts) => parts,
            Err(finding) => return Ok(Err(finding)),
        };
        if executor.key() != run.executor_key {
            let message =
                format!("the stored run {} is refused: its capsule names another executor than its ref", diagnose::short(run));
            return Ok(Err(diagnose::refused(Code::CapsuleForged, run, message)));
        }
        let inputs = match inputs::take(self.store, From::Tree(snapshot), &ExecutorSource::Resolved(Box::new(executor))) {
            Ok(inputs) => inputs,
            Err(error) => {
                let message = format!("the snapshot of the stored run {} cannot be read", diagnose::short(run));
                return Ok(Err(unreadable(&message, &error).at(&run.name)));
            }
        };
        if !diagnose::is_named(run, inputs.state_key(), inputs.executor.key()) {
            return Ok(Err(diagnose::renamed(run)));
        }
        let mut judge = Forgetful::new(self.means.cage);
        announce(self.store, &inputs, run.tip, &mut judge);
        if let Err(finding) = diagnose::size(self.store, run).and_then(|bytes| self.budgets.bytes.spend_many(bytes)) {
            return Ok(Err(finding));
        }
        let gates = gates(&inputs, &mut judge);
        if gates.admission.is_none() {
            return Ok(Err(denied(&gates.findings)));
        }
        let hashed = &self.hashed;
        let seen = |id: &Oid, sha256: &_| hashed.contains(&(*id, *sha256));
        let held = match hold(self.store, &inputs, &gates, run.tip, &mut judge, &seen)? {
            Ok(held) => held,
            Err(finding) => return Ok(Err(diagnose::why(run, finding))),
        };
        let files = held.output.files.iter();
        self.hashed.extend(files.filter_map(|file| Some((*held.output.ids.get(&file.path)?, file.sha256))));
        Ok(Ok(Derived { inputs, gates, held }))
    }

    /// What the gates say of a tree whose state has no run, by the executor that it configures, as far as that can be told here.
    pub(super) fn gates_of(&self, tree: Oid, executor: GenExecutor) -> Result<(Inputs, Gates), VerifyError> {
        let inputs = inputs::take(self.store, From::Tree(tree), &ExecutorSource::Resolved(Box::new(executor)))?;
        let gates = gates(&inputs, &mut Forgetful::new(self.means.cage));
        Ok((inputs, gates))
    }
}

impl Subject<'_> {
    /// Whether a run by this executor may stand for the tree: the one that it configures, with the programs that it holds, where it
    /// configures one.
    pub fn accepts(&self, executor: &GenExecutor) -> bool {
        let configured = is_configured(self.config.as_ref(), self.withdrawn.as_ref(), executor);
        // The repository's own scripts are those of this tree; programs of a machine are what the capsule says they were there.
        let words = executor.config.iter().flat_map(|config| config.command.iter().flatten());
        let seen = |word: &String| {
            let path: RepoPath = word.parse().ok()?;
            let entry = self.inputs.manifest.files.iter().find(|entry| entry.path == path)?;
            Some((word.clone(), entry.sha256))
        };
        let wanted: Vec<_> = words.filter_map(seen).collect();
        let own = executor.programs.iter().filter(|program| !program.path.starts_with('/'));
        let had: Vec<_> = own.map(|program| (program.path.clone(), program.sha256)).collect();
        configured && wanted == had
    }

    /// The executor that the tree configures, as far as that can be told without the machine it ran on.
    pub fn executor(&self) -> GenExecutor {
        configured(self.config.as_ref())
    }

    /// The declared artifacts that are not there; what stands in their place was told already.
    pub fn missing(&self) -> impl Iterator<Item = &RepoPath> {
        let absent = |path: &&RepoPath| !self.files.contains_key(*path) && !self.odd.contains(path.as_str());
        self.paths.declared().iter().filter(absent)
    }

    /// A file where nothing is declared.
    pub fn undeclared(&self, path: &RepoPath) -> Finding {
        if !self.paths.is_own(path) {
            return withdrawn(path);
        }
        Finding::error(Code::GenUndeclared, format!("{path} lies where files are generated, and no artifact is declared there"))
            .at(path)
            .hint("declare it in control/pipeline.json and run git cbia run, or move the file elsewhere")
    }
}

/// The executor that a tree with this configuration asks for, without the programs of the machine it ran on.
pub(super) fn configured(config: Option<&ExecutorConfig>) -> GenExecutor {
    match config {
        None => resolve::builtin(),
        Some(config) => {
            GenExecutor { kind: config.kind, version: config.version.clone(), config: Some(config.clone()), ..resolve::builtin() }
        }
    }
}

/// The configuration of an executor that a tree has, if it can be read.
pub(super) fn config_of(store: &Store, tree: Option<Oid>) -> Option<ExecutorConfig> {
    let found = document::<ExecutorConfig>(store, tree?, Kind::ExecutorConfig, EXECUTOR_CONFIG_PATH);
    Some(found.ok().flatten()?.document)
}

/// Whether a tree with this configuration asks for this executor, as far as the configuration says. Where there is none, the environment may have
/// named one, and the capsule says which; but not the one whose configuration was taken away with this change.
pub(super) fn is_configured(config: Option<&ExecutorConfig>, withdrawn: Option<&ExecutorConfig>, executor: &GenExecutor) -> bool {
    let sound = match &executor.config {
        None => executor.kind == ExecutorKind::Builtin && executor.programs.is_empty(),
        Some(config) => executor.kind == config.kind && executor.version == config.version,
    };
    let is = |wanted: &ExecutorConfig| {
        let canonical = |config: &ExecutorConfig| json::canonical(&json::to_value(config));
        executor.config.as_ref().is_some_and(|had| canonical(wanted) == canonical(had))
    };
    sound && config.is_none_or(is) && !withdrawn.is_some_and(is)
}

/// The executor and the snapshot of a run.
pub(super) fn parts(store: &Store, run: &Run) -> Result<(GenExecutor, Oid), Finding> {
    let refuse = |error: &dyn std::error::Error| {
        unreadable(&format!("the stored run {} cannot be read", diagnose::short(run)), error).at(&run.name)
    };
    let tree = store.tree_of(&run.tip).map_err(|error| refuse(&error))?;
    let incomplete = |what: &str| {
        let message = format!("the stored run {} is refused: it has no {what}", diagnose::short(run));
        diagnose::refused(Code::RunIncomplete, run, message)
    };
    let capsule = document::<Capsule>(store, tree, Kind::Capsule, CAPSULE_PATH);
    let capsule = capsule.map_err(|findings| {
        let why = findings.into_iter().next().map_or_else(String::new, |finding| finding.message);
        let message = format!("the stored run {} is refused: {why}", diagnose::short(run));
        diagnose::refused(Code::CapsuleForged, run, message)
    })?;
    let capsule = capsule.ok_or_else(|| incomplete(CAPSULE_PATH))?;
    let folder: RepoPath = SNAPSHOT_FOLDER.parse().map_err(|error: crate::document::path::PathError| refuse(&error))?;
    let snapshot = store.subtree(&tree, &folder).map_err(|error| refuse(&error))?;
    Ok((capsule.document.gen_executor, snapshot.ok_or_else(|| incomplete("snapshot"))?))
}

/// The policy refuses a state with the artifacts that it has.
pub(super) fn denied_at_eval(findings: &[Finding]) -> Finding {
    let why = findings.iter().find(|finding| refuses(std::slice::from_ref(*finding)));
    let why = why.map_or_else(String::new, |finding| format!(": {} [{}]", finding.message, finding.code));
    let message = format!("the state of this commit is not admitted with the artifacts that it has{why}");
    Finding::error(Code::StateDenied, message).at("policy").hint("git cbia run says all that is wrong with it; mend it, and run")
}

/// The gates refuse a state.
pub(super) fn denied(findings: &[Finding]) -> Finding {
    let first = findings.iter().find(|f| refuses(std::slice::from_ref(*f)));
    let why = first.map_or_else(String::new, |f| format!(": {} [{}]", f.message, f.code));
    let finding = Finding::error(Code::StateDenied, format!("the gates do not admit the state of this commit{why}"));
    let place = first.and_then(|f| f.path.clone());
    finding
        .at(place.unwrap_or_else(|| "control".to_owned()))
        .hint("git cbia run --dry-run says all that is wrong with it; mend it, and run")
}

fn withdrawn(path: &RepoPath) -> Finding {
    let message = format!("{path} was generated before this change, which takes back its declaration and keeps the file");
    let hint = "keep the declaration in control/pipeline.json, or remove the file with it: git rm";
    Finding::error(Code::GenWithdrawn, message).at(path).hint(format!("{hint} '{path}'"))
}

pub(super) fn absent(path: &RepoPath) -> Finding {
    Finding::error(Code::GenMissing, format!("{path} is declared, and is not in the commit"))
        .at(path)
        .hint("git cbia run writes it; commit it, or take its declaration out of control/pipeline.json and run again")
}

/// A run of the right state by another executor.
fn other_executor(run: &Run) -> Finding {
    let message = format!("the run {} of this state is by another executor than the commit configures", diagnose::short(run));
    Finding::error(Code::GenStaleExecutor, message).at(EXECUTOR_CONFIG_PATH).hint("git cbia run, and commit what it writes")
}

fn warned(finding: Finding) -> Finding {
    Finding { severity: crate::document::finding::Severity::Warning, ..finding }
}
