//! `git cbia promote`, from the run's ref to the record. The order, read top to bottom.

use std::collections::BTreeMap;

use super::PipelineError;
use super::finished::{self, Finished};
use super::inputs::{self, ExecutorSource, From, Inputs};
use super::judge::Remembering;
use super::step::{Admitted, Documents, Gates, counted, gates};
use crate::document::SCHEMA_VERSION;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::machine::{PromoteDocument, PromoteOutcome};
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::promotion::{PromoteCapsule, PromoteMode, PromotedFile};
use crate::document::record::{Links, PhaseStatus, Record, RecordEvent, RecordedFinding, RecordedPhase};
use crate::gate::order::DAG_PATH;
use crate::gate::paths::is_bundle_member;
use crate::gate::promotion::check_destinations;
use crate::phase::promote::{self, CAPSULE_PATH, REPORT_PATH};
use crate::phase::{Evidence, r#gen, path};
use crate::policy::{Bundle, Cage, PolicyFile};
use crate::store::durable::Durability;
use crate::store::ledger::Append;
use crate::store::materialise::{Class, Materialise, Source, Strays, WriteItem};
use crate::store::pack::Batch;
use crate::store::promote::{How, Promoted};
use crate::store::runs::RunListing;
use crate::store::{Oid, Store};

/// The fewest digits that name a run.
const MIN_DIGITS: usize = 4;
/// How many records are looked through for an earlier one of the same promotion.
const RECORDS: usize = 10_000;

/// What a command asks for.
pub struct Options<'a> {
    /// How it is promoted.
    pub mode: PromoteMode,
    /// Where policies are evaluated.
    pub cage: &'a Cage,
}

/// What a command did.
pub struct Report {
    /// What `--json` prints.
    pub document: PromoteDocument,
    /// The patch, where one was asked for.
    pub patch: Option<Vec<u8>>,
}

/// Which run a name means.
pub enum Named {
    /// This one.
    Run(RunListing),
    /// None, and why.
    None(Finding),
    /// More than one.
    Ambiguous(Vec<RunListing>),
}

/// The run that `name` means: first digits of its last commit, or of its state key, a `/` and its executor key. Without a name, the run
/// of the state and executor of `inputs`.
pub fn named(store: &Store, name: Option<&str>, inputs: &Inputs) -> Result<Named, PipelineError> {
    let missing = |message: String| {
        Finding::error(Code::RunMissing, message).hint("git cbia run makes it; git cbia log lists what there is")
    };
    let Some(name) = name else {
        let (state_key, executor_key) = (inputs.state_key(), inputs.executor.key());
        let found = store.run_tip(&state_key, &executor_key)?;
        let Some(tip) = found else {
            let message = format!("there is no run of the work tree's state {} and its executor", state_key.short());
            return Ok(Named::None(missing(message)));
        };
        return Ok(Named::Run(RunListing { name: store.run_ref(&state_key, &executor_key)?, state_key, executor_key, tip }));
    };
    let folded = name.to_ascii_lowercase();
    let (state, executor) = folded.split_once('/').unwrap_or((&folded, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if state.len() < MIN_DIGITS || !digits(state) || !digits(executor) {
        let message = format!("{} names no run: at least {MIN_DIGITS} digits of a commit or a state key do", printable(name));
        return Ok(Named::None(missing(message)));
    }
    let is_it = |run: &RunListing| {
        let by_key = run.state_key.to_string().starts_with(state) && run.executor_key.to_string().starts_with(executor);
        by_key || !folded.contains('/') && run.tip.to_string().starts_with(state)
    };
    let mut found: Vec<RunListing> = store.runs()?.into_iter().filter(is_it).collect();
    Ok(match (found.pop(), found.is_empty()) {
        (Some(run), true) => Named::Run(run),
        (Some(run), false) => Named::Ambiguous(found.into_iter().chain([run]).collect()),
        (None, _) => Named::None(missing(format!("no stored run's commit or state key begins with {}", printable(name)))),
    })
}

/// The state of the work tree.
pub fn current(store: &Store, executor: &ExecutorSource) -> Result<Inputs, PipelineError> {
    inputs::take(store, From::WorkTree, executor)
}

/// Promotes a run.
pub fn run(store: &Store, inputs: &Inputs, listing: RunListing, options: &Options<'_>) -> Result<Report, PipelineError> {
    let mode = options.mode;
    let branch = store.head_branch()?;
    let mut document = PromoteDocument {
        outcome: PromoteOutcome::Refused,
        state_key: Some(listing.state_key),
        executor_key: Some(listing.executor_key),
        run: Some(listing.tip.to_string()),
        branch: branch.clone(),
        ..PromoteDocument::failed(mode, Vec::new())
    };
    let refused = |mut document: PromoteDocument, findings: Vec<Finding>| {
        document.findings.extend(findings);
        document.findings.extend(store.take_healed());
        Ok(Report { document, patch: None })
    };

    let finished = match finished::read(store, listing)? {
        Ok(finished) => finished,
        Err(findings) => return refused(document, findings),
    };
    document.files.clone_from(&finished.files);
    let mut known = check_destinations(&finished.files, finished.pipeline.document.promote.as_ref());
    if !finished.may_promote {
        let finding = Finding::error(Code::PromotionUndeclared, "the execution DAG of this run leaves PROMOTE out");
        known.push(finding.at(DAG_PATH).hint("add PROMOTE to its phases, and run git cbia run again"));
    }
    let mut judge = Remembering::new(store, options.cage);
    let is_current = inputs.state_key() == finished.listing.state_key && inputs.executor.key() == finished.listing.executor_key;
    let mut links = Links {
        pre_gen_capsule_hash: Some(finished.evidence.pre_gen_capsule_hash),
        decision_hash: Some(finished.evidence.decision_hash),
        ..Links::default()
    };
    if is_current {
        let gates = gates(inputs, &mut judge);
        links = gates.links.clone();
        known.extend(gates.findings.iter().cloned());
        known.extend(derived(store, inputs, &gates, &finished, &mut judge)?);
    } else {
        let message = "the run that is promoted is of another state or executor than the work tree's";
        let finding = Finding::warning(Code::RunOfOtherState, message);
        known.push(finding.hint("git cbia status says what the work tree's state comes to"));
    }
    if mode != PromoteMode::Patch
        && let Some(what) = store.operation_in_progress()
    {
        let message = format!("{what} is in progress in this work tree");
        known.push(Finding::error(Code::OperationInProgress, message).hint("finish or abort it first; git status says how"));
    }
    let capsule = capsule(&finished, mode, branch.clone());
    let bundle = bundle(store, inputs)?;
    let judged = promote::run(
        promote::Input {
            capsule: &capsule,
            check_report: &finished.check_report,
            selection: &finished.selection,
            bundle: bundle.as_ref().map_err(Vec::as_slice),
            known: &known,
        },
        &mut judge,
    );
    known.extend(judged.findings);
    known.append(&mut judge.findings);
    if !judged.allowed || refuses(&known) {
        return refused(document, known);
    }
    document.findings = known;

    let items = items(&finished);
    let message = message(&finished);
    let how = match mode {
        PromoteMode::Commit => How::Commit(&message),
        PromoteMode::Stage => How::Stage,
        PromoteMode::Patch => {
            return Ok(match store.promotion_patch(&items)? {
                Ok(patch) => {
                    document.outcome = if patch.is_empty() { PromoteOutcome::AlreadyPromoted } else { PromoteOutcome::Promoted };
                    document.findings.extend(store.take_healed());
                    Report { document, patch: Some(patch) }
                }
                Err(findings) => return refused(document, findings),
            });
        }
    };
    let head = store.head()?;
    match store.promote(&items, how)? {
        Promoted::Refused(findings) => return refused(document, findings),
        Promoted::InPlace => document.outcome = PromoteOutcome::AlreadyPromoted,
        Promoted::Staged => document.outcome = PromoteOutcome::Promoted,
        Promoted::Committed(id) => {
            document.outcome = PromoteOutcome::Promoted;
            document.commit = Some(id.to_string());
        }
    }
    if mode == PromoteMode::Commit {
        document.findings.extend(apart(store, &finished.listing.state_key)?);
    }
    judge.remember()?;
    emit(store, &judged.evidence)?;
    links.decision_hash = judged.decision_hashes.map(|(decision, _)| decision);
    links.explain_hash = judged.decision_hashes.map(|(_, explain)| explain);
    document.record = record(store, &document, &finished, &judged.evidence, links, head)?.map(|id| id.to_string());
    document.findings.extend(store.take_healed());
    Ok(Report { document, patch: None })
}

/// A word where the branch has the artifacts now, and not what they were made from: pushed like that, they are refused.
fn apart(store: &Store, state_key: &Digest) -> Result<Option<Finding>, PipelineError> {
    let Some(head) = store.head()? else { return Ok(None) };
    let source = ExecutorSource::Resolved(Box::new(crate::executor::resolve::builtin()));
    let inputs = inputs::take(store, inputs::From::Tree(store.tree_of(&head)?), &source)?;
    if inputs.state_key() == *state_key {
        return Ok(None);
    }
    let message = "the branch has what the run made now, and another state than the run was made from";
    let finding = Finding::warning(Code::PromotionApart, message);
    Ok(Some(
        finding.hint("commit the inputs of the run too: git status shows them, and git cbia verify says what a push would meet"),
    ))
}

/// Whether the gates admit the run's state, which is the work tree's, and the run is what that state and GEN's output come to: nothing of it is
/// taken but what an executor produced.
fn derived(
    store: &Store,
    inputs: &Inputs,
    gates: &Gates,
    finished: &Finished,
    judge: &mut Remembering<'_>,
) -> Result<Vec<Finding>, PipelineError> {
    let (Some(admission), Ok(pipeline), Some(documents)) = (&gates.admission, &inputs.pipeline, Documents::of(inputs, gates))
    else {
        let refusal = || Finding::error(Code::AssuranceDenied, "the gates do not admit the state of this run any more");
        return Ok(if refuses(&gates.findings) { Vec::new() } else { vec![refusal()] });
    };
    let input = r#gen::Input {
        admission,
        authority_ledger_hash: documents.ledger.sha256,
        pipeline: &pipeline.document,
        manifest: &inputs.manifest,
    };
    let key = r#gen::key(&input);
    let (state_key, executor_key) = (finished.listing.state_key, finished.listing.executor_key);
    let admitted = Admitted { store, inputs, documents, gates, input: &input, key: &key, state_key, executor_key };
    Ok(admitted.stored(finished.listing.tip, false, judge)?.err().into_iter().collect())
}

fn capsule(finished: &Finished, mode: PromoteMode, branch: Option<String>) -> PromoteCapsule {
    let promote = finished.pipeline.document.promote.as_ref();
    PromoteCapsule {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Promote,
        run: finished.listing.tip.to_string(),
        state_key: finished.listing.state_key,
        executor_key: finished.listing.executor_key,
        evidence: finished.evidence.clone(),
        files: finished.files.clone(),
        destinations: promote.map(|promote| promote.destinations.clone()).unwrap_or_default(),
        mode,
        branch,
    }
}

/// The policies of the work tree: those that decide whether anything is admitted, and those of `policy/promote`.
fn bundle(store: &Store, inputs: &Inputs) -> Result<Result<Bundle, Vec<Finding>>, PipelineError> {
    let mut files = Vec::new();
    for (path, file) in &inputs.files {
        let read = [".rego", ".json", ".yaml", ".yml"].iter().any(|end| path.as_str().ends_with(end));
        if read && (is_bundle_member(path) || path.is_under("policy/promote")) {
            files.push(PolicyFile { path: path.clone(), text: store.content(file)? });
        }
    }
    Ok(Bundle::new(files))
}

fn items(finished: &Finished) -> BTreeMap<RepoPath, WriteItem> {
    let item = |file: &PromotedFile| {
        let id = finished.blob(&file.path)?;
        Some((file.path.clone(), WriteItem { id, sha256: file.sha256, source: Source::Blob, class: Class::Artifact }))
    };
    finished.files.iter().filter_map(item).collect()
}

fn message(finished: &Finished) -> String {
    let count = counted(finished.files.len(), "generated file", "generated files");
    format!(
        "Promote {count} of run {}\n\nCbia-Run: {}\nCbia-State-Key: {}\nCbia-Capsule: {}\n",
        finished.listing.tip.to_hex_with_len(12),
        finished.listing.tip,
        finished.listing.state_key,
        finished.evidence.pre_gen_capsule_hash,
    )
}

/// Writes the evidence into the work tree.
fn emit(store: &Store, evidence: &Evidence) -> Result<(), PipelineError> {
    let mut batch = Batch::hashing(store);
    let mut files = BTreeMap::new();
    for (path, bytes) in evidence {
        let id = batch.blob(bytes.clone())?;
        let source = Source::Bytes(bytes.as_slice().into());
        files.insert(path.clone(), WriteItem { id, sha256: Digest::of(bytes), source, class: Class::Evidence });
    }
    drop(store.materialise(&Materialise { files, strays: Strays::Keep, force: false })?);
    Ok(())
}

/// Appends the record, unless the promotion was in place and has one already.
fn record(
    store: &Store,
    document: &PromoteDocument,
    finished: &Finished,
    evidence: &Evidence,
    links: Links,
    head: Option<Oid>,
) -> Result<Option<Oid>, PipelineError> {
    let run = finished.listing.tip.to_string();
    let artifacts: BTreeMap<RepoPath, Digest> = finished.files.iter().map(|file| (file.path.clone(), file.sha256)).collect();
    if document.outcome == PromoteOutcome::AlreadyPromoted {
        let same = store.ledger_find(RECORDS, |entry| {
            let promoted = entry.record.phases.iter().find(|phase| phase.phase == Phase::Promote);
            let is_it = entry.record.event == RecordEvent::Promoted
                && entry.record.run.as_ref() == Some(&run)
                && promoted.is_some_and(|phase| phase.artifacts == artifacts);
            is_it.then_some(entry.id)
        })?;
        if same.is_some() {
            return Ok(None);
        }
    }
    let finding = |f: &Finding| RecordedFinding { code: f.code.to_string(), message: f.message.clone(), path: f.path.clone() };
    let count = counted(artifacts.len(), "file", "files");
    let record = Record {
        schema_version: SCHEMA_VERSION.into(),
        event: RecordEvent::Promoted,
        state_key: Some(finished.listing.state_key),
        executor_key: Some(finished.listing.executor_key),
        head: head.map(|id| id.to_string()),
        run: Some(run.clone()),
        phases: vec![RecordedPhase { phase: Phase::Promote, status: PhaseStatus::Executed, cache_key: None, artifacts }],
        links,
        findings: document.findings.iter().map(finding).collect(),
        executor: None,
        reused: Vec::new(),
    };
    let mut trailers = vec![
        ("Cbia-Event", RecordEvent::Promoted.as_str().to_owned()),
        ("Cbia-State-Key", finished.listing.state_key.to_string()),
        ("Cbia-Executor-Key", finished.listing.executor_key.to_string()),
        ("Cbia-Decision", "ALLOW".to_owned()),
        ("Cbia-Run", run),
        ("Cbia-Promote-Mode", document.mode.as_str().to_owned()),
    ];
    trailers.extend(document.branch.clone().map(|branch| ("Cbia-Promote-Branch", branch)));
    trailers.extend(document.commit.clone().map(|commit| ("Cbia-Promote-Commit", commit)));
    let kept =
        [CAPSULE_PATH, REPORT_PATH].into_iter().filter_map(|at| evidence.get(&path(at)).map(|bytes| (path(at), bytes.clone())));
    let files: Vec<(RepoPath, Vec<u8>)> = kept.collect();
    let onto = document.branch.as_deref().map_or("a detached HEAD", |name| name.strip_prefix("refs/heads/").unwrap_or(name));
    let how = if document.mode == PromoteMode::Stage { "staged" } else { "promoted" };
    let subject = format!("{how}: {count} onto {onto}");
    let appended = store.append(&Append {
        record: &record,
        files: &files,
        subject: &subject,
        trailers: &trailers,
        run: Some(finished.listing.tip),
        durability: Durability::Full,
    })?;
    Ok(Some(appended.id))
}
