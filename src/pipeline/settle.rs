//! What a run leaves behind: stored objects, the work tree, a record on the ledger, and the report.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PipelineError;
use super::chain::{Chain, write_snapshot};
use super::inputs::Inputs;
use super::known::Known;
use super::run::{Ended, Mode, Options, Origin, Report};
use super::step::{Admitted, Gates, Output, counted};
use super::tail::{Done, Means, Stop, Whole};
use crate::document::SCHEMA_VERSION;
use crate::document::cache_entry::CacheKey;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity, refuses, spelled};
use crate::document::json;
use crate::document::machine::{Event, Miss, Outcome, PhaseDocument, RunDocument};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::{
    Links, PhaseStatus, Record, RecordEvent, RecordedExecutor, RecordedFinding, RecordedPhase, Reused,
};
use crate::document::run_ledger::RunLedger;
use crate::gate::order::DAG_PATH;
use crate::gate::paths::{PIPELINE_PATH, is_evidence};
use crate::phase::r#gen::{LOG_PATH, REQUEST_PATH, RUN_LEDGER_PATH, Trace};
use crate::phase::opa_gate::{DECISION_PATH, EXPLAIN_PATH};
use crate::phase::{Evidence, Judge, path, repair};
use crate::store::durable::Durability;
use crate::store::ledger::Append;
use crate::store::materialise::{Class, Materialise, MaterialiseError, Materialised, Source, Strays, WriteItem};
use crate::store::pack::Batch;
use crate::store::share::Sharing;
use crate::store::{Oid, Store};

/// What GEN handed on, and where it came from.
pub(super) struct Work {
    pub output: Output,
    pub origin: Origin,
    /// What it comes to, where a stored run was held against it.
    pub whole: Option<Whole>,
}

/// Everything a command has come to know, on the way to its report.
pub(super) struct Settle<'a> {
    pub store: &'a Store,
    pub mode: Mode,
    force: bool,
    pub state_key: Digest,
    pub executor_key: Digest,
    links: Links,
    gates: Vec<(Phase, PhaseStatus)>,
    pub key: Option<CacheKey>,
    /// GEN and the phases after it, once they were gone through.
    pub tail: Vec<PhaseDocument>,
    pub findings: Vec<Finding>,
    pub misses: Vec<Miss>,
    /// The run of an executor that is a program of its own, if there was one.
    pub trace: Option<Trace>,
    /// What the executor was asked, where that is not the request that the run keeps.
    pub asked: Option<Vec<u8>>,
    /// What was taken from earlier results instead of being generated.
    pub reused: Vec<Reused>,
}

impl<'a> Settle<'a> {
    pub fn new(store: &'a Store, options: &Options<'_>, inputs: &Inputs, gates: &Gates) -> Self {
        let status = |index: usize| match index + 1 == gates.reached.len() && gates.admission.is_none() {
            true => PhaseStatus::Failed,
            false => PhaseStatus::Passed,
        };
        let mut phases: Vec<_> = gates.reached.iter().enumerate().map(|(index, gate)| (gate.phase, status(index))).collect();
        let missing = [Phase::AuthorityLock, Phase::PreGen, Phase::OpaGate].into_iter().skip(phases.len());
        phases.extend(missing.map(|phase| (phase, PhaseStatus::Skipped)));
        Self {
            store,
            mode: options.mode,
            force: options.force,
            state_key: inputs.state_key(),
            executor_key: inputs.executor.key(),
            links: gates.links.clone(),
            gates: phases,
            key: None,
            tail: Vec::new(),
            findings: gates.findings.clone(),
            misses: Vec::new(),
            trace: None,
            asked: None,
            reused: Vec::new(),
        }
    }

    /// Every phase in order; those after GEN as they were gone through, where they were.
    fn phases(&self, r#gen: PhaseStatus) -> Vec<PhaseDocument> {
        let none = |(phase, status)| PhaseDocument { phase, status, cache_key: None, artifacts: BTreeMap::new() };
        let mut phases: Vec<PhaseDocument> = self.gates.iter().copied().map(none).collect();
        if self.tail.is_empty() {
            let cache_key = self.key.as_ref().map(CacheKey::digest);
            phases.push(PhaseDocument { phase: Phase::Gen, status: r#gen, cache_key, artifacts: BTreeMap::new() });
        }
        phases.extend(self.tail.iter().cloned());
        let missing: Vec<Phase> = Phase::ALL.into_iter().filter(|phase| phases.iter().all(|p| p.phase != *phase)).collect();
        phases.extend(missing.into_iter().map(|phase| none((phase, PhaseStatus::Skipped))));
        phases.sort_by_key(|p| p.phase);
        phases
    }

    /// Takes over what became of GEN and the phases after it.
    fn went(&mut self, whole: &Whole, r#gen: PhaseStatus) {
        let document = |done: &Done| PhaseDocument {
            phase: done.phase,
            status: if done.phase == Phase::Gen { r#gen } else { done.status },
            cache_key: done.key.as_ref().map(CacheKey::digest),
            artifacts: done.artifacts.clone(),
        };
        self.tail = whole.phases.iter().map(document).collect();
        self.findings
            .extend(whole.warnings.iter().filter(|warning| !self.findings.contains(warning)).cloned().collect::<Vec<_>>());
        self.trace = whole.trace.clone().or(self.trace.take());
        // What the work tree and a record hold is what the policy said last.
        let hash = |at: &'static str| whole.evidence.get(&path(at)).map(|bytes| Digest::of(bytes));
        self.links.decision_hash = hash(DECISION_PATH).or(self.links.decision_hash);
        self.links.explain_hash = hash(EXPLAIN_PATH).or(self.links.explain_hash);
    }

    fn report(&mut self, outcome: Outcome, event: Event, r#gen: PhaseStatus, ended: Ended) -> Report {
        self.findings.extend(self.store.take_healed());
        let command = if self.mode == Mode::Status { "status" } else { "run" };
        let document = RunDocument {
            schema_version: SCHEMA_VERSION,
            command,
            outcome,
            event,
            state_key: Some(self.state_key),
            executor_key: Some(self.executor_key),
            capsule_hash: self.links.pre_gen_capsule_hash,
            run: None,
            record: None,
            phases: self.phases(r#gen),
            artifacts: BTreeMap::new(),
            miss: std::mem::take(&mut self.misses),
            findings: std::mem::take(&mut self.findings),
            promotion: None,
            reused: std::mem::take(&mut self.reused),
        };
        Report { document, ended, work_tree: None }
    }

    /// Says which configured phases the run does not have, so that nobody takes their silence for their consent.
    pub fn tell_left_out(&mut self, configured: &[Phase], inputs: &Inputs) {
        for phase in configured.iter().filter(|phase| !inputs.declares(**phase)) {
            let message = format!("{phase} is configured, and {DAG_PATH} leaves it out: nothing of it is checked or applied");
            self.findings.push(Finding::warning(Code::PhaseNotRun, message).at(PIPELINE_PATH));
        }
    }

    /// A dry run that passed the gates.
    pub fn passed(mut self) -> Report {
        self.report(Outcome::Admitted, Event::None, PhaseStatus::Skipped, Ended::Done)
    }

    /// A status that knows the run.
    pub fn would_replay(mut self, work: &Work) -> Report {
        if let Some(whole) = &work.whole {
            self.went(whole, PhaseStatus::Replayed);
        }
        let mut report = self.report(Outcome::WouldReplay, Event::None, PhaseStatus::Replayed, Ended::Done);
        report.document.artifacts = match &work.whole {
            Some(whole) => whole.hashes.clone(),
            None => work.output.files.iter().map(|f| (f.path.clone(), f.sha256)).collect(),
        };
        report.document.run = self.store.run_tip(&self.state_key, &self.executor_key).ok().flatten().map(|id| id.to_string());
        report
    }

    /// A status that knows GEN's output, and that a later phase stops it.
    pub fn would_stop(mut self, whole: &Whole, stop: &Stop) -> Report {
        self.went(whole, PhaseStatus::Replayed);
        self.findings.extend(stop.findings.clone());
        self.report(Outcome::WouldDeny, Event::None, PhaseStatus::Replayed, stop.ended)
    }

    /// A status that does not.
    pub fn would_run(mut self) -> Report {
        self.report(Outcome::WouldRun, Event::None, PhaseStatus::Executed, Ended::Done)
    }

    /// A gate refused.
    pub fn denied(mut self, inputs: &Inputs, gates: &Gates) -> Result<Report, PipelineError> {
        let unreadable = self.findings.iter().any(|f| f.severity == Severity::Error && f.code.is_unreadable());
        let ended = if unreadable { Ended::Unreadable } else { Ended::Denied };
        if self.mode != Mode::Run {
            let outcome = if self.mode == Mode::Status { Outcome::WouldDeny } else { Outcome::Denied };
            return Ok(self.report(outcome, Event::None, PhaseStatus::Skipped, ended));
        }
        let at = gates.reached.last().map_or("the start", |gate| gate.phase.as_str());
        let code = self.findings.iter().find(|f| f.severity == Severity::Error).map_or("unknown", |f| f.code.as_str());
        let subject = format!("denied at {at}: {code}");
        self.stopped(inputs, gates, RecordEvent::Denied, &subject, PhaseStatus::Skipped, Outcome::Denied, ended)
    }

    /// GEN failed, or the policy did not let its executor start.
    pub fn failed(mut self, inputs: &Inputs, gates: &Gates, findings: Vec<Finding>) -> Result<Report, PipelineError> {
        let denied = findings.iter().any(|f| f.code == Code::ConfinementDenied);
        self.findings.extend(findings);
        // What the later phases made of a result that is kept nowhere is not what the record speaks of.
        self.tail.clear();
        self.links = gates.links.clone();
        if denied {
            let subject = format!("denied at GEN: {}", Code::ConfinementDenied.as_str());
            let (event, status, ended) = (RecordEvent::Denied, PhaseStatus::Skipped, Ended::Denied);
            return self.stopped(inputs, gates, event, &subject, status, Outcome::Denied, ended);
        }
        let code = self.findings.iter().find(|f| f.severity == Severity::Error).map_or("unknown", |f| f.code.as_str());
        let subject = format!("failed at GEN: {code}");
        self.stopped(inputs, gates, RecordEvent::Failed, &subject, PhaseStatus::Failed, Outcome::Failed, Ended::ExecutorFailed)
    }

    #[expect(clippy::too_many_arguments, reason = "one for each thing in which a denial and a failure differ")]
    fn stopped(
        &mut self,
        inputs: &Inputs,
        gates: &Gates,
        event: RecordEvent,
        subject: &str,
        r#gen: PhaseStatus,
        outcome: Outcome,
        ended: Ended,
    ) -> Result<Report, PipelineError> {
        let mut batch = Batch::new(self.store)?;
        let mut chain = Chain::new(inputs, self.state_key, self.executor_key)?;
        gates.seal(&mut chain, &mut batch)?;
        let mut emitted: Evidence = gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
        emitted.insert(path(RUN_LEDGER_PATH), json::emit(&gates.ledger));
        let stopped = Stopped { chain: &chain, emitted, ledger: &gates.ledger, event, subject, r#gen, outcome, ended };
        self.leave(inputs, batch, stopped)
    }

    /// A phase after GEN refused: what came before it is kept, and the work tree gets the evidence and nothing else.
    fn stopped_late(
        &mut self,
        admitted: &Admitted<'_>,
        mut batch: Batch<'a>,
        whole: &Whole,
        stop: &Stop,
        r#gen: PhaseStatus,
    ) -> Result<Report, PipelineError> {
        self.store_fresh(admitted, &mut batch, whole)?;
        self.findings.extend(stop.findings.clone());
        let code = stop.findings.iter().find(|f| f.severity == Severity::Error).map_or("unknown", |f| f.code.as_str());
        let (event, outcome, what) = match stop.ended {
            Ended::Denied => (RecordEvent::Denied, Outcome::Denied, "denied"),
            Ended::CheckFailed => (RecordEvent::Failed, Outcome::CheckFailed, "failed"),
            _ => (RecordEvent::Failed, Outcome::Failed, "failed"),
        };
        let subject = format!("{what} at {}: {code}", stop.phase);
        let mut emitted: Evidence = admitted.gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
        emitted.extend(whole.evidence.clone());
        let ledger = whole.recorded_ledger(r#gen);
        emitted.insert(path(RUN_LEDGER_PATH), json::emit(&ledger));
        let (chain, ended) = (&whole.chain, stop.ended);
        let stopped = Stopped { chain, emitted, ledger: &ledger, event, subject: &subject, r#gen, outcome, ended };
        self.leave(admitted.inputs, batch, stopped)
    }

    /// Leaves evidence and a record of a run that ended before its end.
    fn leave(&mut self, inputs: &Inputs, mut batch: Batch<'_>, stopped: Stopped<'_>) -> Result<Report, PipelineError> {
        let Stopped { chain, emitted, ledger, event, subject, r#gen, outcome, ended } = stopped;
        write_snapshot(&mut batch, self.store, inputs)?;
        let items = evidence_items(&mut batch, &emitted, &BTreeMap::new())?;
        batch.publish(Durability::Full)?;
        // What an earlier run left as evidence would now speak for a state that was refused.
        let work_tree = self.write(items, Strays::Matching(is_evidence))?;
        let record = self.record(event, chain.tip(), r#gen, ledger, subject, Durability::Full)?;
        let mut report = self.report(outcome, Event::None, r#gen, ended);
        report.document.record = Some(record.to_string());
        report.work_tree = work_tree;
        Ok(report)
    }

    /// Writes evidence and artifacts into the work tree, where there is one.
    fn write(&mut self, files: BTreeMap<RepoPath, WriteItem>, strays: Strays) -> Result<Option<Materialised>, MaterialiseError> {
        if self.store.work_dir().is_none() {
            return Ok(None);
        }
        let mut done = self.store.materialise(&Materialise { files, strays, force: self.force })?;
        self.findings.append(&mut done.findings.clone());
        done.findings.retain(|f| f.severity == Severity::Error);
        Ok(Some(done))
    }

    fn record(
        &mut self,
        event: RecordEvent,
        run: Option<Oid>,
        r#gen: PhaseStatus,
        ledger: &RunLedger,
        subject: &str,
        durability: Durability,
    ) -> Result<Oid, PipelineError> {
        let phase =
            |p: PhaseDocument| RecordedPhase { phase: p.phase, status: p.status, cache_key: p.cache_key, artifacts: p.artifacts };
        let finding =
            |f: &Finding| RecordedFinding { code: f.code.to_string(), message: f.message.clone(), path: f.path.clone() };
        let record = Record {
            schema_version: SCHEMA_VERSION.into(),
            event,
            state_key: Some(self.state_key),
            executor_key: Some(self.executor_key),
            head: self.store.head()?.map(|id| id.to_string()),
            run: run.map(|id| id.to_string()),
            phases: self.phases(r#gen).into_iter().map(phase).collect(),
            links: self.links.clone(),
            findings: self.findings.iter().map(finding).collect(),
            executor: self.trace.as_ref().map(|trace| RecordedExecutor {
                level: trace.level.clone(),
                exit: trace.exit.clone(),
                log: (!trace.log.is_empty()).then(|| path(LOG_PATH)),
            }),
            reused: self.reused.clone(),
        };
        let allowed = !matches!(event, RecordEvent::Denied);
        let mut trailers = vec![
            ("Cbia-Event", event.as_str().to_owned()),
            ("Cbia-State-Key", self.state_key.to_string()),
            ("Cbia-Executor-Key", self.executor_key.to_string()),
            ("Cbia-Decision", if allowed { "ALLOW" } else { "DENY" }.to_owned()),
        ];
        trailers.extend(self.key.as_ref().map(|key| ("Cbia-Cache-Key", key.digest().to_string())));
        trailers.extend(run.map(|id| ("Cbia-Run", id.to_string())));
        let always = self.store.config_string("cbia.durability").as_deref() == Some("full");
        let durability = if always { Durability::Full } else { durability };
        let log = self.trace.as_ref().filter(|trace| !trace.log.is_empty()).map(|trace| (path(LOG_PATH), trace.log.clone()));
        let asked = self.asked.clone().map(|request| (path(REQUEST_PATH), request));
        let files: Vec<_> = [(path(RUN_LEDGER_PATH), json::emit(ledger))].into_iter().chain(log).chain(asked).collect();
        let appended =
            self.store.append(&Append { record: &record, files: &files, subject, trailers: &trailers, run, durability })?;
        self.findings.extend(appended.findings);
        Ok(appended.id)
    }

    /// Goes through the phases after GEN, stores what is new, writes the work tree, and records it. A finding instead of a report says that what was stored
    /// is not what it should be.
    pub fn admitted(
        &mut self,
        admitted: &Admitted<'_>,
        work: Work,
        go: &mut Go<'_>,
    ) -> Result<Result<Report, Finding>, PipelineError> {
        let Work { output, origin, whole } = work;
        let r#gen = if origin == Origin::Executed { PhaseStatus::Executed } else { PhaseStatus::Replayed };
        let mut batch = Batch::new(self.store)?;
        let whole = match whole {
            Some(whole) => whole,
            None => {
                let Go { judge, sources, elsewhere } = go;
                let means =
                    Means { known: Known::Cache, judge: *judge, sources: *sources, elsewhere: *elsewhere, store_changes: true };
                admitted.whole(&mut batch, &output, means)?
            }
        };
        self.went(&whole, r#gen);
        if let Some(stop) = whole.stopped.clone() {
            let stop = &stop;
            return self.stopped_late(admitted, batch, &whole, stop, r#gen).map(Ok);
        }
        let Some(tip) = whole.chain.tip() else {
            return Ok(Err(Finding::error(Code::RunInvalid, "the run has no phases")));
        };
        if origin == Origin::Run {
            drop(batch);
        } else if let Some(finding) = self.store_new(admitted, batch, &whole, tip)? {
            return Ok(Err(finding));
        }

        let hit = origin != Origin::Executed;
        let ledger = whole.recorded_ledger(r#gen);
        let items = self.items(admitted, &whole, &ledger)?;
        let work_tree = match self.write(items, Strays::All) {
            Ok(work_tree) => work_tree,
            Err(error) if hit && error.is_content() => {
                let finding = Finding::error(
                    Code::RunInvalid,
                    format!("the stored run {} is refused: {}", tip.to_hex_with_len(12), spelled(&error)),
                );
                let finding = finding.at(self.store.run_ref(&self.state_key, &self.executor_key)?);
                return Ok(Err(finding));
            }
            Err(error) => return Err(error.into()),
        };
        if work_tree.is_none()
            && let Some(finding) = self.verify_blobs(&whole.output, tip)?
        {
            return Ok(Err(finding));
        }

        let event = if hit { Event::Replayed } else { Event::Executed };
        let count = counted(output.files.len(), "artifact", "artifacts");
        let written = !work_tree.as_ref().is_some_and(|done| refuses(&done.findings));
        let (recorded, subject, durability) = match (written, origin) {
            (false, _) => (RecordEvent::Failed, "failed: generated files were edited".to_owned(), Durability::Full),
            (true, Origin::Run) => (RecordEvent::Replayed, format!("replayed: {count}"), Durability::Relaxed),
            (true, Origin::Cache) => (RecordEvent::Admitted, format!("admitted: {count}, GEN replayed"), Durability::Full),
            (true, Origin::Executed) => (RecordEvent::Admitted, format!("admitted: {count}"), Durability::Full),
        };
        let record = self.record(recorded, Some(tip), r#gen, &ledger, &subject, durability)?;
        let (outcome, ended) = if written { (Outcome::Admitted, Ended::Done) } else { (Outcome::Failed, Ended::Refused) };
        let mut report = self.report(outcome, event, r#gen, ended);
        report.document.artifacts = whole.hashes;
        report.document.run = Some(tip.to_string());
        report.document.record = Some(record.to_string());
        report.work_tree = work_tree;
        Ok(Ok(report))
    }

    /// Everything that goes into the work tree: the evidence, with the run ledger as this time's record has it, and the artifacts.
    fn items(
        &self,
        admitted: &Admitted<'_>,
        whole: &Whole,
        ledger: &RunLedger,
    ) -> Result<BTreeMap<RepoPath, WriteItem>, PipelineError> {
        let mut emitted: Evidence = admitted.gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
        emitted.extend(whole.evidence.clone());
        emitted.insert(path(RUN_LEDGER_PATH), json::emit(ledger));
        let mut known = whole.chain.emitted.clone();
        // The record's run ledger is not the run's: it says what the cache had to do with it.
        known.remove(&path(RUN_LEDGER_PATH));
        let mut items = evidence_items(&mut Batch::hashing(self.store), &emitted, &known)?;
        let ids = &whole.output.ids;
        let artifacts = whole.output.files.iter().map(|file| (&file.path, file.sha256, ids.get(&file.path)));
        let package = whole.package.iter().flat_map(|package| &package.files);
        let package = package.map(|file| (&file.path, file.sha256, ids.get(&file.origin)));
        for (path, sha256, id) in artifacts.chain(package) {
            if let Some(id) = id {
                let item = WriteItem { id: *id, sha256, source: Source::Blob, class: Class::Artifact };
                items.insert(path.clone(), item);
            }
        }
        Ok(items)
    }

    /// Where nothing is written, nothing else reads the artifacts: read them here, so that a replay never vouches for bytes it has not seen.
    fn verify_blobs(&self, output: &Output, tip: Oid) -> Result<Option<Finding>, PipelineError> {
        for file in &output.files {
            let Some(id) = output.ids.get(&file.path) else { continue };
            let why = match self.store.read_blob(id, file.bytes) {
                Ok(bytes) if Digest::of(&bytes) == file.sha256 => continue,
                Ok(_) => format!("the artifact {} does not have the hash that the run gives", file.path),
                Err(error) => format!("the artifact {}: {}", file.path, spelled(&error)),
            };
            let finding =
                Finding::error(Code::RunInvalid, format!("the stored run {} is refused: {why}", tip.to_hex_with_len(12)));
            return Ok(Some(finding.at(self.store.run_ref(&self.state_key, &self.executor_key)?)));
        }
        Ok(None)
    }
}

/// A run that ended before its end.
struct Stopped<'a> {
    chain: &'a Chain,
    emitted: Evidence,
    ledger: &'a RunLedger,
    event: RecordEvent,
    subject: &'a str,
    r#gen: PhaseStatus,
    outcome: Outcome,
    ended: Ended,
}

/// What the phases after GEN may use.
pub(super) struct Go<'a> {
    /// Who answers for policies.
    pub judge: &'a mut dyn Judge,
    /// What an executor that repairs needs.
    pub sources: Option<&'a repair::Sources<'a>>,
    /// Where else is asked.
    pub elsewhere: Option<&'a Sharing>,
}

/// The evidence as files to write; `known` are the blobs of those that were hashed already.
fn evidence_items(
    batch: &mut Batch<'_>,
    evidence: &Evidence,
    known: &BTreeMap<RepoPath, Oid>,
) -> Result<BTreeMap<RepoPath, WriteItem>, PipelineError> {
    let mut items = BTreeMap::new();
    for (path, bytes) in evidence {
        let id = match known.get(path) {
            Some(id) => *id,
            None => batch.blob(bytes.clone())?,
        };
        let source = Source::Bytes(Arc::from(bytes.as_slice()));
        items.insert(path.clone(), WriteItem { id, sha256: Digest::of(bytes), source, class: Class::Evidence });
    }
    Ok(items)
}
