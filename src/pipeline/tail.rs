//! The phases after GEN, from CHECK to EVAL. The order, read top to bottom.
//!
//! What they come to is a function of the state and of what GEN handed on; whether they are executed, answered from the cache, or derived again to
//! hold a stored run against them, they go through here.

use std::collections::BTreeMap;

use super::PipelineError;
use super::chain::Chain;
use super::known::{Known, Repaired, Stored};
use super::run::Ended;
use super::seal::{Changes, Hashed, Step};
use super::step::{Admitted, Documents, Output, counted};
use crate::artifact::Files;
use crate::artifact::repair::bound;
use crate::document::cache_entry::CacheKey;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::flow_manifest::FlowManifest;
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::metadata::Metadata;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::{Repair, Repairer};
use crate::document::record::PhaseStatus;
use crate::document::repair_report::RepairReport;
use crate::document::run_ledger::{ArtifactHashes, CacheUse, GrowingLedger, RunLedger};
use crate::document::selection::Selection;
use crate::phase::r#gen::{Account, OUTPUTS_PATH, REPORT_PATH, Trace};
use crate::phase::{Evidence, Judge, check, eval, flow, opa_gate, path, repair, select, structure};
use crate::store::Oid;
use crate::store::pack::Batch;
use crate::store::share::{Sharing, Wanted};

/// A phase that was gone through.
#[derive(Clone, Debug)]
pub struct Done {
    /// The phase.
    pub phase: Phase,
    /// What became of it.
    pub status: PhaseStatus,
    /// Its key.
    pub key: Option<CacheKey>,
    /// What it handed on.
    pub artifacts: BTreeMap<RepoPath, Digest>,
}

/// Why a run ended before its end.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Where.
    pub phase: Phase,
    /// How.
    pub ended: Ended,
    /// Why.
    pub findings: Vec<Finding>,
}

/// Something that a phase made, and that a later run may be answered from.
pub struct Fresh {
    /// The key.
    pub key: CacheKey,
    /// What is kept under it.
    pub files: Vec<FileEntry>,
    /// Its blobs.
    pub ids: BTreeMap<RepoPath, Oid>,
}

/// A run, as far as it came.
pub struct Whole {
    /// The phase commits.
    pub chain: Chain,
    /// Everything that GEN and the later phases emitted.
    pub evidence: Evidence,
    /// The artifacts, as the last phase left them.
    pub output: Output,
    /// The artifacts that SELECT did not keep.
    pub pruned: Vec<RepoPath>,
    /// The final package.
    pub package: Option<FlowManifest>,
    /// SHA-256 of the artifacts.
    pub hashes: ArtifactHashes,
    /// One entry per phase and artifact.
    pub ledger: RunLedger,
    /// GEN and the phases after it.
    pub phases: Vec<Done>,
    /// Where and why it stopped, if it did.
    pub stopped: Option<Stop>,
    /// What is worth keeping.
    pub fresh: Vec<Fresh>,
    /// The run of a program that repaired.
    pub trace: Option<Trace>,
    /// What there is to say beside that.
    pub warnings: Vec<Finding>,
}

impl Whole {
    /// The run ledger, saying what the cache had to do with each phase this time.
    pub fn recorded_ledger(&self, r#gen: PhaseStatus) -> RunLedger {
        let mut ledger = self.ledger.clone();
        for done in &self.phases {
            let status = if done.phase == Phase::Gen { r#gen } else { done.status };
            if let (Some(key), PhaseStatus::Executed | PhaseStatus::Replayed) = (&done.key, status) {
                let hit = status == PhaseStatus::Replayed;
                ledger = ledger.with_cache(done.phase, &CacheUse { hit, cache_key: key.digest() });
            }
        }
        ledger
    }
}

/// What the phases after GEN may use.
pub struct Means<'a> {
    /// What is known already.
    pub known: Known,
    /// Who answers for policies.
    pub judge: &'a mut dyn Judge,
    /// What an executor that repairs needs; where it is absent, none is started.
    pub sources: Option<&'a repair::Sources<'a>>,
    /// Where else a repair is asked for that is not known here.
    pub elsewhere: Option<&'a Sharing>,
    /// Whether changed artifacts are stored as they come. Otherwise they are there already, or the run is not what it says.
    pub store_changes: bool,
}

/// Why the phases are not gone through to the end.
pub(super) enum Halt {
    /// A phase refused.
    Stop(Stop),
    /// Something is broken.
    Error(PipelineError),
}

impl<E: Into<PipelineError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Error(error.into())
    }
}

/// The phases after GEN, on their way.
pub(super) struct Tail<'r, 'a, 's, 'm> {
    pub admitted: &'r Admitted<'a>,
    pub account: &'r Account,
    pub batch: &'r mut Batch<'s>,
    pub means: Means<'m>,
    pub whole: Whole,
    pub files: BTreeMap<RepoPath, FileEntry>,
    pub ledger: GrowingLedger,
    /// SHA-256 of everything in the run's tree, by its place there.
    pub digests: BTreeMap<RepoPath, Digest>,
    pub schemas: BTreeMap<RepoPath, Vec<u8>>,
    pub repairs: Vec<RepairReport>,
    pub checks: usize,
}

impl<'r, 'a, 's, 'm> Tail<'r, 'a, 's, 'm> {
    /// The tail of a run whose GEN handed on `output`; `chain` is sealed up to GEN.
    pub fn new(
        admitted: &'r Admitted<'a>,
        account: &'r Account,
        output: &Output,
        chain: Chain,
        batch: &'r mut Batch<'s>,
        means: Means<'m>,
    ) -> Result<Self, PipelineError> {
        let files: BTreeMap<RepoPath, FileEntry> = output.files.iter().map(|file| (file.path.clone(), file.clone())).collect();
        let mut digests: BTreeMap<RepoPath, Digest> = files.values().map(|file| (file.path.clone(), file.sha256)).collect();
        for (path, file) in &admitted.inputs.files {
            digests.insert(format!("{}/{path}", crate::gate::paths::SNAPSHOT_FOLDER).parse()?, file.sha256);
        }
        let gates = admitted.gates.reached.iter().flat_map(|gate| &gate.evidence);
        digests.extend(gates.chain(&account.evidence).map(|(path, bytes)| (path.clone(), Digest::of(bytes))));
        let done = Done {
            phase: Phase::Gen,
            status: PhaseStatus::Replayed,
            key: Some(admitted.key.clone()),
            artifacts: account.artifact_hashes.clone(),
        };
        let whole = Whole {
            chain,
            evidence: account.evidence.clone(),
            output: output.clone(),
            pruned: Vec::new(),
            package: None,
            hashes: account.artifact_hashes.clone(),
            ledger: RunLedger::empty(),
            phases: vec![done],
            stopped: None,
            fresh: Vec::new(),
            trace: None,
            warnings: Vec::new(),
        };
        let schemas = admitted.inputs.schemas(admitted.store)?;
        let ledger = account.run_ledger.clone();
        Ok(Self { admitted, account, batch, means, whole, files, ledger, digests, schemas, repairs: Vec::new(), checks: 0 })
    }

    /// Goes through the phases.
    pub fn run(mut self) -> Result<Whole, PipelineError> {
        match self.through() {
            Ok(()) => {}
            Err(Halt::Stop(stop)) => {
                // A phase that refuses before it has anything to seal has no commit, and still is what the run ended at.
                if self.whole.phases.iter().all(|done| done.phase != stop.phase) {
                    let (phase, status) = (stop.phase, PhaseStatus::Failed);
                    self.whole.phases.push(Done { phase, status, key: None, artifacts: BTreeMap::new() });
                }
                self.whole.stopped = Some(stop);
            }
            Err(Halt::Error(error)) => return Err(error),
        }
        self.whole.output.files = self.files.into_values().collect();
        self.whole.ledger = self.ledger.into_ledger();
        Ok(self.whole)
    }

    fn through(&mut self) -> Result<(), Halt> {
        let report = self.checked()?;
        let metadata = self.structured(&report)?;
        let selection = self.selected(&report, &metadata)?;
        self.packaged(&selection)?;
        self.evaluated()
    }

    /// CHECK, and as long as it fails and may be repaired, REPAIR and CHECK again.
    fn checked(&mut self) -> Result<CheckReport, Halt> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let report = self.check()?;
            if report.passed {
                if attempt == 1 {
                    self.skip(Phase::Repair);
                }
                return Ok(report);
            }
            let bounds = self.pipeline().repair.as_ref().filter(|_| self.declared(Phase::Repair));
            let attempts = bounds.map_or(0, |bounds| bounds.attempts.unwrap_or(crate::artifact::repair::ATTEMPTS));
            let Some(bounds) = bounds.filter(|_| attempt <= attempts) else {
                let findings = report.findings.iter().filter(|f| f.severity == Severity::Error).cloned().collect();
                return Err(Halt::Stop(Stop { phase: Phase::Check, ended: Ended::CheckFailed, findings }));
            };
            self.repair(&report, bounds, attempt)?;
        }
    }

    fn check(&mut self) -> Result<CheckReport, Halt> {
        let documents = self.admitted.documents;
        let stored = Stored { store: self.admitted.store, files: &self.files, ids: &self.whole.output.ids };
        let input = check::Input {
            artifacts: &stored,
            pipeline: self.pipeline(),
            objectives: &documents.objectives.document,
            ledger: &documents.ledger.document,
            outputs: &self.account.outputs,
            report: &self.account.report,
            artifact_hashes: &self.whole.hashes,
            repairs: &self.repairs,
            schemas: &self.schemas,
        };
        let config = check::config_hash(self.pipeline(), &self.schemas);
        let handed = check::input_hash(&check::CheckInput {
            artifacts: self.set_hash(),
            artifact_hashes: &self.whole.hashes,
            outputs: self.digest_of(OUTPUTS_PATH, &self.account.outputs),
            report: self.digest_of(REPORT_PATH, &self.account.report),
            repairs: self.repairs.iter().map(|repair| Digest::of(&json::emit(repair))).collect(),
        });
        let key = self.key(Phase::Check, check::VERSION, handed, config);
        let known = self.means.known.check(self.admitted.store, &key, self.checks);
        let known = known.filter(|report| report.artifact_set_hash == self.set_hash());
        let (status, output) = match known {
            Some(report) => (PhaseStatus::Replayed, check::emitted(report)),
            None => (PhaseStatus::Executed, check::run(&input)),
        };
        self.checks += 1;
        let check::Output { report, evidence } = output;
        if status == PhaseStatus::Executed {
            self.remember(&key, &evidence, &[])?;
        }
        let errors = report.findings.iter().filter(|f| f.severity == Severity::Error).count();
        let summary = match report.passed {
            true => format!("passed, {}", counted(self.files.len(), "artifact", "artifacts")),
            false => format!("failed, {}", counted(errors, "finding", "findings")),
        };
        self.warn(&report.findings);
        let status = if report.passed { status } else { PhaseStatus::Failed };
        let findings = report.findings.clone();
        self.seal(Step {
            summary,
            findings,
            ..Step::new(Phase::Check, status, key, Hashed::new(evidence), &path(check::REPORT_PATH))
        })?;
        Ok(report)
    }

    fn repair(&mut self, report: &CheckReport, bounds: &Repair, attempt: u64) -> Result<(), Halt> {
        let admitted = self.admitted;
        let stored = Stored { store: admitted.store, files: &self.files, ids: &self.whole.output.ids };
        let input = repair::Input {
            admission: admitted.input.admission,
            pipeline: self.pipeline(),
            repair: bounds,
            manifest: admitted.input.manifest,
            artifacts: &stored,
            report,
            attempt,
        };
        let Some(capsule) = repair::capsule_of(&input) else { return Ok(()) };
        let handed = Digest::of_canonical(&serde_json::json!({
            "artifacts": self.set_hash(), "report": Digest::of(&json::emit(report)), "attempt": attempt,
        }));
        let key = self.key(Phase::Repair, repair::VERSION, handed, repair::config_hash(self.pipeline()));
        let believed = matches!(self.means.known, Known::Run(_) | Known::Cache);
        let by_executor = bounds.by == Some(Repairer::Executor);
        let mut known = self.means.known.repair(admitted.store, &key, attempt).filter(|_| believed || by_executor);
        // What is built in repairs sooner than a remote answers, and what it does is nobody's word.
        let mut warnings = Vec::new();
        if let (None, Some(sharing), true) = (&known, self.means.elsewhere, by_executor) {
            warnings = admitted.store.look_up(sharing, &Wanted { run: None, keys: &[key.digest()] });
            known = self.means.known.repair(admitted.store, &key, attempt);
        }
        let (none, mut trace) = (BTreeMap::new(), None);
        let (status, repaired, evidence) = match known {
            Some(Repaired { report: said, changed }) => {
                // Whoever made the change: that it lies within its bound is seen again, from the bytes.
                let mut proposed = Files::new();
                for (file, id) in &changed {
                    proposed.insert(file.path.clone(), admitted.store.read_content(id, file.sha256, file.bytes)?);
                }
                let after = crate::artifact::Overlay { base: &stored, changed: &proposed };
                let seen = bound(&stored, &after, &capsule, attempt);
                if seen != said {
                    let message = "the stored repair is not what its report says";
                    let finding = Finding::error(Code::RunInvalid, message).at(repair::places(attempt)[2].as_str());
                    return Err(stop(Phase::Repair, Ended::ExecutorFailed, vec![finding]));
                }
                let evidence = repair::evidence(&input, &capsule, &seen);
                (PhaseStatus::Replayed, Repairing { report: seen, changed }, evidence)
            }
            None => {
                let alone = repair::Sources { contents: &none, bundle: self.admitted.documents.bundle, host: None };
                let sources = self.means.sources.unwrap_or(&alone);
                match repair::run(&input, &capsule, sources, self.means.judge) {
                    Ok(output) => {
                        trace = output.trace;
                        let changed = self.keep(output.changed)?;
                        (PhaseStatus::Executed, Repairing { report: output.report, changed }, output.evidence)
                    }
                    Err(failed) => {
                        self.whole.trace = failed.trace;
                        return Err(stop(Phase::Repair, Ended::ExecutorFailed, failed.findings));
                    }
                }
            }
        };
        self.warn(&warnings);
        self.whole.trace = trace.or(self.whole.trace.take());
        let Repairing { report: said, changed } = repaired;
        if status == PhaseStatus::Executed && said.accepted {
            let [_, _, at] = repair::places(attempt);
            let report = evidence.get(&at).cloned().unwrap_or_default();
            self.remember(&key, &Evidence::from([(at, report)]), &changed)?;
        }
        let accepted = said.accepted;
        let summary = match accepted {
            true => format!("attempt {attempt}, {}", counted(said.changes.len(), "file changed", "files changed")),
            false => format!("attempt {attempt}, refused"),
        };
        let [_, _, at] = repair::places(attempt);
        let artifacts = changed.iter().map(|(file, _)| (file.path.clone(), file.sha256)).collect();
        let status = if accepted { status } else { PhaseStatus::Failed };
        let step = Step::new(Phase::Repair, status, key, Hashed::new(evidence), &at);
        let findings = said.findings.clone();
        self.seal(Step { summary, findings, changed, artifacts, ..step })?;
        let refused = repair::refusal(&said);
        self.repairs.push(said);
        if accepted { Ok(()) } else { Err(stop(Phase::Repair, Ended::CheckFailed, refused)) }
    }

    fn structured(&mut self, report: &CheckReport) -> Result<Metadata, Halt> {
        let admitted = self.admitted;
        let declared = self.declared(Phase::Struct);
        let handed = Digest::of_canonical(&serde_json::json!({
            "artifacts": self.set_hash(), "report": self.digest_of(check::REPORT_PATH, report),
        }));
        let config = structure::config_hash(self.pipeline(), &self.schemas);
        let key = self.key(Phase::Struct, structure::VERSION, handed, config);
        let (status, changed) = match self.means.known.structured(admitted.store) {
            _ if !declared => (PhaseStatus::Skipped, Vec::new()),
            // What STRUCT changed lies in the run's own commit, of which the key is a part.
            Some(changed) => {
                let differs =
                    |(file, _): &(FileEntry, Oid)| self.files.get(&file.path).is_none_or(|was| was.sha256 != file.sha256);
                (PhaseStatus::Replayed, changed.into_iter().filter(differs).collect())
            }
            None => (PhaseStatus::Executed, self.normalized()?),
        };
        self.apply(&changed);
        let capsule = admitted.input.admission.capsule();
        let provenance = structure::Provenance {
            outputs: &self.account.outputs,
            capsule,
            capsule_hash: admitted.input.admission.capsule_hash(),
            tool_versions: &self.account.report.tool_versions,
        };
        let files: Vec<FileEntry> = self.files.values().cloned().collect();
        let (metadata, evidence) =
            structure::describe(&provenance, &files).map_err(|findings| stop(Phase::Struct, Ended::Failed, findings))?;
        if !declared {
            self.skip(Phase::Struct);
            return Ok(metadata);
        }
        let count = counted(self.files.len(), "artifact", "artifacts");
        let summary = if changed.is_empty() { count } else { format!("{count}, {} normalized", changed.len()) };
        let step = Step::new(Phase::Struct, status, key, Hashed::new(evidence), &path(structure::METADATA_PATH));
        self.seal(Step { summary, changed, artifacts: self.hashes(), ..step })?;
        Ok(metadata)
    }

    /// The artifacts that normalizing changes, stored and held against their schemas.
    fn normalized(&mut self) -> Result<Vec<(FileEntry, Oid)>, Halt> {
        let refused = |findings| stop(Phase::Struct, Ended::Failed, findings);
        let input = structure::Input { pipeline: self.pipeline(), schemas: &self.schemas };
        let stored = Stored { store: self.admitted.store, files: &self.files, ids: &self.whole.output.ids };
        let mut changes = Changes::new(self)?;
        let mut failed = None;
        structure::normalize(&input, &stored, &mut |path, bytes| {
            if failed.is_none() {
                failed = changes.add(path, bytes).err();
            }
        })
        .map_err(refused)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let changed = changes.publish()?;
        let files = changed.iter().map(|(file, _)| (file.path.clone(), file.clone())).collect();
        let ids = changed.iter().map(|(file, id)| (file.path.clone(), *id)).collect();
        structure::enforce(&input, &Stored { store: self.admitted.store, files: &files, ids: &ids }).map_err(refused)?;
        Ok(changed)
    }

    fn selected(&mut self, report: &CheckReport, metadata: &Metadata) -> Result<Selection, Halt> {
        let admitted = self.admitted;
        let declared = self.declared(Phase::Select);
        if !declared {
            self.skip(Phase::Select);
            return Ok(crate::artifact::select::keep_all(metadata.artifacts.iter().map(|a| (&a.path, a.sha256))));
        }
        let handed = Digest::of_canonical(&serde_json::json!({
            "metadata": self.digest_of(structure::METADATA_PATH, metadata), "report": self.digest_of(check::REPORT_PATH, report),
        }));
        let config = select::config_hash(self.pipeline(), admitted.inputs.selection_policies());
        let key = self.key(Phase::Select, select::VERSION, handed, config);
        let (status, selection) = match self.means.known.selection(admitted.store) {
            Some(selection) => (PhaseStatus::Replayed, selection),
            None => {
                let input = select::Input {
                    pipeline: self.pipeline(),
                    bundle: admitted.inputs.selection.as_ref().map_err(Vec::as_slice),
                    artifacts: &Stored { store: admitted.store, files: &self.files, ids: &self.whole.output.ids },
                    metadata,
                    report,
                };
                let selected = select::run(&input, self.means.judge);
                (PhaseStatus::Executed, selected.map_err(|findings| stop(Phase::Select, Ended::Failed, findings))?)
            }
        };
        let pruned = selection.artifacts.iter().filter(|artifact| !artifact.keep);
        self.whole.pruned = pruned.map(|artifact| artifact.path.clone()).collect();
        let kept = selection.kept().count();
        let summary = format!("{kept} kept, {} pruned", selection.artifacts.len() - kept);
        let evidence = Hashed::new(select::emitted(&selection));
        let artifacts = selection.kept().map(|kept| (kept.path.clone(), kept.sha256)).collect();
        self.seal(Step { summary, artifacts, ..Step::new(Phase::Select, status, key, evidence, &path(select::SELECTION_PATH)) })?;
        Ok(selection)
    }

    fn packaged(&mut self, selection: &Selection) -> Result<(), Halt> {
        if !self.declared(Phase::Flow) {
            self.skip(Phase::Flow);
            return Ok(());
        }
        let files: Vec<FileEntry> = self.files.values().cloned().collect();
        let inputs = &self.admitted.inputs.paths;
        let input = flow::Input { pipeline: self.pipeline(), selection, artifacts: &files, inputs };
        let manifest = flow::run(&input).map_err(|findings| stop(Phase::Flow, Ended::Failed, findings))?;
        let evidence = flow::emitted(&manifest);
        let handed = self.digest_of(select::SELECTION_PATH, selection);
        let key = self.key(Phase::Flow, flow::VERSION, handed, flow::config_hash(self.pipeline()));
        let mut placed = BTreeMap::new();
        for file in &manifest.files {
            if let Some(id) = self.whole.output.ids.get(&file.origin) {
                placed.insert(file.path.clone(), *id);
                self.digests.insert(file.path.clone(), file.sha256);
            }
        }
        let summary = counted(manifest.files.len(), "file", "files");
        let artifacts = manifest.files.iter().map(|file| (file.path.clone(), file.sha256)).collect();
        let status = self.recomputed();
        let step =
            Step { summary, artifacts, ..Step::new(Phase::Flow, status, key, Hashed::new(evidence), &path(flow::MANIFEST_PATH)) };
        self.seal_with(step, &placed)?;
        self.whole.package = Some(manifest);
        Ok(())
    }

    fn evaluated(&mut self) -> Result<(), Halt> {
        let inputs = self.admitted.inputs;
        let Documents { ledger, objectives: _, bundle, assembled } = self.admitted.documents;
        let output = eval::run(
            &eval::Input {
                capsule: self.admitted.input.admission.capsule(),
                ledger: &ledger.value,
                assembled,
                bundle,
                bundle_files: &inputs.bundle_files,
                run_ledger: self.ledger.ledger(),
                artifact_hashes: &self.whole.hashes,
            },
            self.means.judge,
        );
        let manifest = match &inputs.audit {
            Ok(Some(manifest)) => manifest.document.clone(),
            Ok(None) => eval::default_manifest(&|phase| self.declared(phase)),
            Err(findings) => return Err(stop(Phase::Eval, Ended::Denied, findings.clone())),
        };
        let evidence = Hashed::new(output.evidence);
        let handed = evidence.digest(&path(opa_gate::INPUT_PATH));
        let key = self.key(Phase::Eval, eval::VERSION, handed, eval::config_hash(&manifest));
        let (status, decision) = if output.allows { (self.recomputed(), "ALLOW") } else { (PhaseStatus::Failed, "DENY") };
        let step = Step {
            summary: format!("policy {decision}"),
            decision: Some(decision),
            findings: output.findings.clone(),
            artifacts: self.hashes(),
            ..Step::new(Phase::Eval, status, key, evidence, &path(opa_gate::DECISION_PATH))
        };
        if !output.allows {
            self.seal(step)?;
            return Err(stop(Phase::Eval, Ended::Denied, output.findings));
        }
        self.warn(&output.findings);
        let step = self.entered(step);
        let audit = eval::audit(&manifest, &self.digests);
        let audit = audit.map_err(|findings| stop(Phase::Eval, Ended::Denied, findings))?;
        let audit = (path(eval::AUDIT_BUNDLE_PATH), json::emit(&audit));
        self.digests.insert(audit.0.clone(), Digest::of(&audit.1));
        let sealed = (path(eval::MANIFEST_PATH), json::emit(&eval::seal(&self.digests)));
        let evidence = step.evidence.into_iter().chain([audit, sealed]).collect();
        self.commit(Step { evidence, ..step }, &BTreeMap::new())
    }
}

/// A repair, as it is taken.
struct Repairing {
    report: RepairReport,
    changed: Vec<(FileEntry, Oid)>,
}

fn stop(phase: Phase, ended: Ended, findings: Vec<Finding>) -> Halt {
    Halt::Stop(Stop { phase, ended, findings })
}
