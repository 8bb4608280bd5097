//! What a run leaves behind: stored objects, the work tree, a record on the ledger, and the report.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PipelineError;
use super::chain::{Chain, write_snapshot};
use super::inputs::Inputs;
use super::run::{Ended, Mode, Options, Origin, Report};
use super::step::{Admitted, Gates, Output, Whole, counted};
use crate::document::SCHEMA_VERSION;
use crate::document::cache_entry::{CacheKey, CacheMeta};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity, refuses, spelled};
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::machine::{Event, Miss, Outcome, PhaseDocument, RunDocument};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::{Links, PhaseStatus, Record, RecordEvent, RecordedExecutor, RecordedFinding, RecordedPhase};
use crate::document::run_ledger::{CacheUse, RunLedger};
use crate::gate::paths::{PIPELINE_PATH, is_evidence};
use crate::phase::r#gen::{LOG_PATH, Produced, RUN_LEDGER_PATH, Trace};
use crate::phase::{Evidence, path};
use crate::store::cache::EVIDENCE;
use crate::store::durable::Durability;
use crate::store::ledger::Append;
use crate::store::materialise::{Class, Materialise, MaterialiseError, Materialised, Source, Strays, WriteItem};
use crate::store::pack::Batch;
use crate::store::{Oid, Store};

/// What GEN handed on, and where it came from.
pub(super) struct Work {
    pub output: Output,
    pub origin: Origin,
    /// The artifacts' bytes, if they are not stored yet.
    pub bytes: Option<BTreeMap<RepoPath, Vec<u8>>>,
    /// The chain that it comes to, where a stored run was held against it.
    pub whole: Option<Whole>,
}

/// Everything a command has come to know, on the way to its report.
pub(super) struct Settle<'a> {
    store: &'a Store,
    mode: Mode,
    force: bool,
    pub state_key: Digest,
    pub executor_key: Digest,
    links: Links,
    gates: Vec<(Phase, PhaseStatus)>,
    pub key: Option<CacheKey>,
    pub later: Vec<Phase>,
    pub findings: Vec<Finding>,
    pub misses: Vec<Miss>,
    /// The run of an executor that is a program of its own, if there was one.
    pub trace: Option<Trace>,
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
            later: Vec::new(),
            findings: gates.findings.clone(),
            misses: Vec::new(),
            trace: None,
        }
    }

    fn phases(&self, r#gen: PhaseStatus, artifacts: &BTreeMap<RepoPath, Digest>) -> Vec<PhaseDocument> {
        let none = BTreeMap::new;
        let mut phases: Vec<PhaseDocument> = self
            .gates
            .iter()
            .map(|(phase, status)| PhaseDocument { phase: *phase, status: *status, cache_key: None, artifacts: none() })
            .collect();
        let cache_key = self.key.as_ref().map(CacheKey::digest);
        phases.push(PhaseDocument { phase: Phase::Gen, status: r#gen, cache_key, artifacts: artifacts.clone() });
        let skipped =
            |phase: &Phase| PhaseDocument { phase: *phase, status: PhaseStatus::Skipped, cache_key: None, artifacts: none() };
        phases.extend(self.later.iter().map(skipped));
        phases
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
            phases: self.phases(r#gen, &BTreeMap::new()),
            artifacts: BTreeMap::new(),
            miss: std::mem::take(&mut self.misses),
            findings: std::mem::take(&mut self.findings),
            promotion: None,
        };
        Report { document, ended, work_tree: None }
    }

    /// Says which configured phases are not run, so that nobody takes their silence for their consent.
    pub fn tell_later(&mut self) {
        for phase in &self.later {
            let message = format!(
                "{phase} is configured, and this version of git cbia does not run it: nothing of it is checked or applied"
            );
            self.findings.push(Finding::warning(Code::PhaseNotRun, message).at(PIPELINE_PATH));
        }
    }

    /// A dry run that passed the gates.
    pub fn passed(mut self) -> Report {
        self.report(Outcome::Admitted, Event::None, PhaseStatus::Skipped, Ended::Done)
    }

    /// A status that knows the run.
    pub fn would_replay(mut self, work: &Work) -> Report {
        let mut report = self.report(Outcome::WouldReplay, Event::None, PhaseStatus::Replayed, Ended::Done);
        report.document.artifacts = work.output.files.iter().map(|f| (f.path.clone(), f.sha256)).collect();
        if let Some(r#gen) = report.document.phases.iter_mut().find(|p| p.phase == Phase::Gen) {
            r#gen.artifacts = report.document.artifacts.clone();
        }
        report.document.run = self.store.run_tip(&self.state_key, &self.executor_key).ok().flatten().map(|id| id.to_string());
        report
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

    /// GEN failed.
    pub fn failed(mut self, inputs: &Inputs, gates: &Gates, findings: Vec<Finding>) -> Result<Report, PipelineError> {
        self.findings.extend(findings);
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
        write_snapshot(&mut batch, self.store, inputs)?;
        let ledger = json::emit(&gates.ledger);
        let mut emitted: Evidence = gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
        emitted.insert(path(RUN_LEDGER_PATH), ledger.clone());
        let items = evidence_items(&mut batch, &emitted, &BTreeMap::new())?;
        batch.publish(Durability::Full)?;
        // What an earlier run left as evidence would now speak for a state that was refused.
        let work_tree = self.write(items, Strays::Matching(is_evidence))?;
        let record = self.record(event, chain.tip(), r#gen, &BTreeMap::new(), &gates.ledger, subject, Durability::Full)?;
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

    #[expect(clippy::too_many_arguments, reason = "a record has this many independent parts")]
    fn record(
        &mut self,
        event: RecordEvent,
        run: Option<Oid>,
        r#gen: PhaseStatus,
        artifacts: &BTreeMap<RepoPath, Digest>,
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
            phases: self.phases(r#gen, artifacts).into_iter().map(phase).collect(),
            links: self.links.clone(),
            findings: self.findings.iter().map(finding).collect(),
            executor: self.trace.as_ref().map(|trace| RecordedExecutor {
                level: trace.level.clone(),
                exit: trace.exit.clone(),
                log: (!trace.log.is_empty()).then(|| path(LOG_PATH)),
            }),
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
        let files: Vec<_> = [(path(RUN_LEDGER_PATH), json::emit(ledger))].into_iter().chain(log).collect();
        let appended =
            self.store.append(&Append { record: &record, files: &files, subject, trailers: &trailers, run, durability })?;
        self.findings.extend(appended.findings);
        Ok(appended.id)
    }

    /// A stored run that cannot be believed: told, and its ref put aside.
    pub fn put_aside_run(&mut self, admitted: &Admitted<'_>, tip: Oid, finding: Finding) -> Result<(), PipelineError> {
        let name = self.store.run_ref(&admitted.state_key, &admitted.executor_key)?;
        self.refuse(&name, tip, finding)
    }

    /// A cache entry that cannot be believed: told, and its ref put aside.
    pub fn put_aside_entry(&mut self, admitted: &Admitted<'_>, finding: Finding) -> Result<(), PipelineError> {
        let name = self.store.cache_ref(&admitted.key.digest())?;
        match self.store.ref_target(&name)? {
            Some(tip) => self.refuse(&name, tip, finding),
            None => Ok(()),
        }
    }

    /// A stored run whose artifacts turned out not to be what it says.
    pub fn refuse_stored(&mut self, admitted: &Admitted<'_>, finding: Finding) -> Result<(), PipelineError> {
        match self.store.run_tip(&admitted.state_key, &admitted.executor_key)? {
            Some(tip) => self.put_aside_run(admitted, tip, finding),
            None => {
                self.findings.push(Finding { severity: Severity::Warning, ..finding });
                Ok(())
            }
        }
    }

    fn refuse(&mut self, name: &crate::store::refs::RefName, tip: Oid, finding: Finding) -> Result<(), PipelineError> {
        let mut finding = Finding { severity: Severity::Warning, ..finding };
        if self.mode == Mode::Run {
            let aside = self.store.put_aside(name, tip)?;
            finding.hint = Some(format!("it was put aside as {aside}, and is not used"));
        }
        self.findings.push(finding);
        Ok(())
    }

    /// What an executor produced, ready to be stored.
    pub fn produced(&self, produced: Produced) -> Work {
        let Produced { artifacts, tool_versions } = produced;
        let output = Output { files: Vec::new(), ids: BTreeMap::new(), tools: tool_versions };
        Work { output, origin: Origin::Executed, bytes: Some(artifacts), whole: None }
    }

    /// Stores what is new, writes the work tree, and records it. A finding instead of a report says that what was stored is not what it should be.
    pub fn admitted(&mut self, admitted: &Admitted<'_>, work: Work) -> Result<Result<Report, Finding>, PipelineError> {
        let Work { mut output, origin, bytes, whole } = work;
        let mut batch = Batch::new(self.store)?;
        if let Some(bytes) = bytes {
            let sizes: Vec<(RepoPath, u64)> = bytes.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect();
            let hashed = batch.blobs_parallel(bytes.into_values().collect())?;
            for ((path, bytes), (id, sha256)) in sizes.into_iter().zip(hashed) {
                output.ids.insert(path.clone(), id);
                output.files.push(FileEntry { path, sha256, bytes });
            }
        }
        let whole = match whole {
            Some(whole) => whole,
            None => admitted.whole(&mut batch, &output)?,
        };
        let hashes: BTreeMap<RepoPath, Digest> = whole.account.artifact_hashes.clone();
        let Some(tip) = whole.chain.tip() else { return Ok(Err(Finding::error(Code::RunInvalid, "the run has no phases"))) };
        if origin == Origin::Run {
            drop(batch);
        } else if let Some(finding) = self.store_new(admitted, batch, &output, &whole, tip, origin)? {
            return Ok(Err(finding));
        }

        let hit = origin != Origin::Executed;
        let ledger = whole.account.run_ledger.with_cache(Phase::Gen, &CacheUse { hit, cache_key: admitted.key.digest() });
        let items = self.items(admitted, &whole, &output, &ledger)?;
        let work_tree = match self.write(items, Strays::All) {
            Ok(work_tree) => work_tree,
            Err(error) if hit && error.is_content() => {
                let finding = Finding::error(
                    Code::RunInvalid,
                    format!("the stored run {} is refused: {}", tip.to_hex_with_len(12), spelled(&error)),
                );
                return Ok(Err(finding.at(self.store.run_ref(&self.state_key, &self.executor_key)?)));
            }
            Err(error) => return Err(error.into()),
        };
        if work_tree.is_none()
            && let Some(finding) = self.verify_blobs(&output, tip)?
        {
            return Ok(Err(finding));
        }

        let r#gen = if hit { PhaseStatus::Replayed } else { PhaseStatus::Executed };
        let event = if hit { Event::Replayed } else { Event::Executed };
        let count = counted(output.files.len(), "artifact", "artifacts");
        let written = !work_tree.as_ref().is_some_and(|done| refuses(&done.findings));
        let (recorded, subject, durability) = match (written, origin) {
            (false, _) => (RecordEvent::Failed, "failed: generated files were edited".to_owned(), Durability::Full),
            (true, Origin::Run) => (RecordEvent::Replayed, format!("replayed: {count}"), Durability::Relaxed),
            (true, Origin::Cache) => (RecordEvent::Admitted, format!("admitted: {count}, GEN replayed"), Durability::Full),
            (true, Origin::Executed) => (RecordEvent::Admitted, format!("admitted: {count}"), Durability::Full),
        };
        let record = self.record(recorded, Some(tip), r#gen, &hashes, &ledger, &subject, durability)?;
        let (outcome, ended) = if written { (Outcome::Admitted, Ended::Done) } else { (Outcome::Failed, Ended::Refused) };
        let mut report = self.report(outcome, event, r#gen, ended);
        report.document.phases = self.phases(r#gen, &hashes);
        report.document.artifacts = hashes;
        report.document.run = Some(tip.to_string());
        report.document.record = Some(record.to_string());
        report.work_tree = work_tree;
        Ok(Ok(report))
    }

    /// Stores a run that is new, and GEN's output where that is new too. A finding says that the same state or key gave another result before.
    fn store_new(
        &mut self,
        admitted: &Admitted<'_>,
        mut batch: Batch<'_>,
        output: &Output,
        whole: &Whole,
        tip: Oid,
        origin: Origin,
    ) -> Result<Option<Finding>, PipelineError> {
        let key = admitted.key.digest();
        write_snapshot(&mut batch, self.store, admitted.inputs)?;
        let mut entry = None;
        if origin == Origin::Executed {
            let gates: Evidence = admitted.gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
            let evidence: Evidence = gates.into_iter().filter(|(path, _)| EVIDENCE.contains(&path.as_str())).collect();
            let meta = CacheMeta {
                schema_version: SCHEMA_VERSION.into(),
                cache_key: key,
                key_data: admitted.key.clone(),
                artifacts: output.files.clone(),
                evidence: evidence.iter().map(|(path, bytes)| (path.as_str().to_owned(), Digest::of(bytes))).collect(),
                tool_versions: output.tools.clone(),
            };
            entry = Some(self.store.write_entry(&mut batch, &meta, &output.ids, &evidence)?);
        }
        batch.publish(Durability::Full)?;
        let different = |name: String, other: Oid| {
            let message = format!(
                "the same state and executor gave another result before: {name} is {}, this result is kept nowhere",
                other.to_hex_with_len(12)
            );
            Finding::error(Code::NonDeterministic, message)
                .at(name)
                .hint("find what the generator depends on beside its inputs, and pin it")
        };
        if let Some(entry) = entry
            && let Some(other) = self.store.create_entry(&key, entry)?
        {
            return Ok(Some(different(self.store.cache_ref(&key)?.to_string(), other)));
        }
        if let Some(other) = self.store.create_run(&self.state_key, &self.executor_key, tip)? {
            return Ok(Some(different(self.store.run_ref(&self.state_key, &self.executor_key)?.to_string(), other)));
        }
        debug_assert_eq!(whole.chain.tip(), Some(tip));
        Ok(None)
    }

    /// Everything that goes into the work tree: the evidence, with the run ledger as this time's record has it, and the artifacts.
    fn items(
        &self,
        admitted: &Admitted<'_>,
        whole: &Whole,
        output: &Output,
        ledger: &RunLedger,
    ) -> Result<BTreeMap<RepoPath, WriteItem>, PipelineError> {
        let mut emitted: Evidence = admitted.gates.reached.iter().flat_map(|gate| gate.evidence.clone()).collect();
        emitted.extend(whole.account.evidence.clone());
        emitted.insert(path(RUN_LEDGER_PATH), json::emit(ledger));
        let mut known = whole.chain.emitted.clone();
        // The record's run ledger is not the run's: it says what the cache had to do with it.
        known.remove(&path(RUN_LEDGER_PATH));
        let mut items = evidence_items(&mut Batch::new(self.store)?, &emitted, &known)?;
        for file in &output.files {
            if let Some(id) = output.ids.get(&file.path) {
                let item = WriteItem { id: *id, sha256: file.sha256, source: Source::Blob, class: Class::Artifact };
                items.insert(file.path.clone(), item);
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
