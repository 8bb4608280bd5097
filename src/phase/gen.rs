//! GEN: the artifacts, from exactly what was admitted.
//!
//! Reads: the admission, the inputs manifest and its files, the pipeline's `gen`.
//! Writes: the artifacts; `execution/gen/request.json`, `outputs.json` and `executor.report.json`; `execution/ledger/run.ledger.json` and
//! `artifact_hashes.json`.
//! Stops when: the executor fails, or what it produced is not exactly what was declared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Evidence, Judge};
use crate::document::SCHEMA_VERSION;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::cache_entry::{CacheKey, ToolVersions};
use crate::document::confinement::ConfinementInput;
use crate::document::digest::Digest;
use crate::document::executor::GenExecutor;
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::{
    GenReport, GenRequest, OutputArtifact, Outputs, OutputsManifest, PhaseConfig, ReportedArtifact,
};
use crate::document::glob::Globs;
use crate::document::inputs_manifest::{FileEntry, InputsManifest};
use crate::document::json;
use crate::document::objectives::Objective;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::Pipeline;
use crate::document::run_ledger::{ArtifactHashes, GrowingLedger, LedgerEntry, LedgerEvent, RunLedger};
use crate::executor::builtin::{AuthorityText, Job, generate};
use crate::executor::external::{self, Host};
use crate::executor::resolve::{RUNNER_VERSION, generator_version, is_builtin};
use crate::gate::assurance::Admission;
use crate::gate::paths::TEMPLATES_FOLDER;
use crate::policy::{Bundle, Decision, Question};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the request goes.
pub const REQUEST_PATH: &str = "execution/gen/request.json";
/// Where the outputs manifest goes.
pub const OUTPUTS_PATH: &str = "execution/gen/outputs.json";
/// Where the executor's report goes.
pub const REPORT_PATH: &str = "execution/gen/executor.report.json";
/// Where what an executor printed goes, or its beginning and end, in the record's tree.
pub const LOG_PATH: &str = "execution/gen/executor.log";
/// Where the run ledger goes.
pub const RUN_LEDGER_PATH: &str = "execution/ledger/run.ledger.json";
/// Where the artifact map goes.
pub const ARTIFACT_HASHES_PATH: &str = "execution/ledger/artifact_hashes.json";

/// The rule that is asked, where there is one, whether a program may run as well confined as it is.
pub const CONFINEMENT_QUERY: &str = "data.control.executor.allow";

/// What the phase's output depends on.
pub struct Input<'a> {
    /// The proof that the state was admitted. There is no other way to get here.
    pub admission: &'a Admission,
    /// SHA-256 of the authority ledger's file.
    pub authority_ledger_hash: Digest,
    /// The declaration.
    pub pipeline: &'a Pipeline,
    /// What may be seen.
    pub manifest: &'a InputsManifest,
}

/// The phase's cache key.
pub fn key(input: &Input) -> CacheKey {
    let Input { admission, authority_ledger_hash, pipeline, manifest } = input;
    let capsule = admission.capsule();
    CacheKey {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Gen,
        phase_version: VERSION,
        authority_ledger_hash: *authority_ledger_hash,
        policy_bundle_hash: capsule.policy_bundle_hash,
        pre_gen_capsule_hash: admission.capsule_hash(),
        inputs_manifest_hash: manifest.hash(),
        phase_input_hash: None,
        phase_config_hash: pipeline.gen_config_hash(),
        tool_versions: ToolVersions {
            runner_version: RUNNER_VERSION.into(),
            generator_version: generator_version(&capsule.gen_executor),
        },
    }
}

/// What the built-in generator is given beside the phase's input: the same control state, by content.
pub struct Sources<'a> {
    /// The ledger.
    pub ledger: &'a AuthorityLedger,
    /// The objectives, typed and with all their members, in the same order.
    pub objectives: (&'a [Objective], &'a [Value]),
    /// The bytes of every file of the manifest.
    pub contents: &'a BTreeMap<RepoPath, Vec<u8>>,
}

/// What an executor produced.
#[derive(Clone, Debug)]
pub struct Produced {
    /// The artifacts' bytes, by path.
    pub artifacts: BTreeMap<RepoPath, Vec<u8>>,
    /// With what.
    pub tool_versions: BTreeMap<String, String>,
}

/// How a program that executed GEN was confined, how it ended, and what it printed. It depends on the machine, and is kept with the record only.
#[derive(Clone, Debug)]
pub struct Trace {
    /// How well it was confined.
    pub level: String,
    /// How it ended.
    pub exit: String,
    /// What it printed, or its beginning and end.
    pub log: Vec<u8>,
}

/// What an execution came to.
#[derive(Clone, Debug)]
pub struct Executed {
    /// What was produced, or why nothing was.
    pub produced: Result<Produced, Vec<Finding>>,
    /// The program's run, if it is one.
    pub trace: Option<Trace>,
    /// What there is to say beside that.
    pub warnings: Vec<Finding>,
}

/// Executes GEN with the executor that was admitted.
///
/// A program is started only if the repository's policy has nothing against the level of confinement that was reached.
pub fn execute(input: &Input, sources: &Sources, host: &Host<'_>, bundle: &Bundle, judge: &mut dyn Judge) -> Executed {
    let executor = &input.admission.capsule().gen_executor;
    if is_builtin(executor) {
        return Executed { produced: built_in(input, sources), trace: None, warnings: Vec::new() };
    }
    let request = request(input);
    let asked = json::to_value(&request);
    let job = external::Job {
        executor,
        files: sources.contents,
        request: (&super::path(REQUEST_PATH), &asked),
        outputs: &request.phase_config.outputs,
        phase: Phase::Gen,
    };
    let external::Execution { level, exit, log, warnings, harvest } =
        external::execute(&job, host, &mut |level| confinement(executor, level, bundle, judge));
    let produced = harvest.map(|harvest| Produced { artifacts: harvest.artifacts, tool_versions: harvest.tool_versions });
    Executed { produced, trace: Some(Trace { level, exit, log }), warnings }
}

/// What the policy has against running `executor` at `level`. A repository without a rule for it has nothing: then what the configuration
/// requires is all that is required.
pub(super) fn confinement(executor: &GenExecutor, level: &str, bundle: &Bundle, judge: &mut dyn Judge) -> Vec<Finding> {
    let layers = if level == "none" { Vec::new() } else { level.split('+').collect() };
    let input = ConfinementInput { schema_version: SCHEMA_VERSION, gen_executor: executor, level, layers };
    let evaluation = judge.judge(&Question { bundle, query: CONFINEMENT_QUERY, input: &json::to_value(&input) });
    let absent = !evaluation.findings.is_empty() && evaluation.findings.iter().all(|f| f.code == Code::PolicyMissing);
    if absent || evaluation.decision == Decision::Allow {
        return Vec::new();
    }
    let message = format!("the policy does not allow the executor to run at the level of confinement that was reached: {level}");
    let hint = format!("run it where it can be confined better, or change {CONFINEMENT_QUERY}");
    let mut findings = vec![Finding::error(Code::ConfinementDenied, message).hint(hint)];
    findings.extend(evaluation.findings);
    findings
}

/// Executes GEN with the built-in generator.
fn built_in(input: &Input, sources: &Sources) -> Result<Produced, Vec<Finding>> {
    let Input { admission, authority_ledger_hash: _, pipeline, manifest: _ } = input;
    let inputs = Globs::new(&pipeline.inputs).map_err(|error| vec![Finding::error(Code::PatternInvalid, error.to_string())])?;
    let objectives: BTreeMap<&str, &Value> =
        sources.objectives.0.iter().map(|o| o.id.as_str()).zip(sources.objectives.1).collect();
    let mut authorities = BTreeMap::new();
    for authority in &sources.ledger.authority_set {
        let Some(path) = authority.file() else { continue };
        let Some(bytes) = sources.contents.get(&path) else { continue };
        let text = AuthorityText {
            title: authority.title.as_deref(),
            locator: authority.locator().unwrap_or_default(),
            sha256: Digest::of(bytes).to_string(),
            bytes,
        };
        authorities.insert(authority.authority_id.as_str(), text);
    }
    let pick = |wanted: &dyn Fn(&RepoPath) -> bool| -> BTreeMap<RepoPath, Vec<u8>> {
        sources.contents.iter().filter(|(path, _)| wanted(path)).map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    };
    let declared: BTreeSet<&RepoPath> = pipeline.r#gen.artifacts.iter().filter_map(|a| a.template.as_ref()).collect();
    let artifacts = generate(&Job {
        artifacts: &pipeline.r#gen.artifacts,
        objectives: &objectives,
        authorities: &authorities,
        inputs: &pick(&|path| inputs.matches(path)),
        templates: &pick(&|path| declared.contains(path) || path.is_under(TEMPLATES_FOLDER)),
    })?;
    let generator = generator_version(&admission.capsule().gen_executor);
    Ok(Produced { artifacts, tool_versions: BTreeMap::from([("generator".to_owned(), generator)]) })
}

/// What an executor is asked. The built-in generator is asked the same.
pub fn request(input: &Input) -> GenRequest {
    let Input { admission, authority_ledger_hash: _, pipeline, manifest } = input;
    GenRequest {
        schema_version: SCHEMA_VERSION.to_owned(),
        pre_gen_capsule: admission.capsule().clone(),
        inputs_manifest: (*manifest).clone(),
        phase_config: PhaseConfig {
            phase: Phase::Gen,
            artifacts: pipeline.r#gen.artifacts.clone(),
            outputs: Outputs {
                outputs_manifest: super::path(OUTPUTS_PATH),
                execution_report: super::path(REPORT_PATH),
                artifacts: pipeline.r#gen.artifacts.iter().map(|a| a.path.clone()).collect(),
            },
        },
        repair_capsule: None,
    }
}

/// What the phase emits about artifacts that were produced, now or earlier.
pub struct Account {
    /// The request, outputs manifest and report.
    pub evidence: Evidence,
    /// The outputs manifest.
    pub outputs: OutputsManifest,
    /// The executor's report.
    pub report: GenReport,
    /// The artifact map.
    pub artifact_hashes: ArtifactHashes,
    /// The run ledger, without what the cache had to do with it.
    pub run_ledger: GrowingLedger,
}

/// Accounts for `produced` artifacts. A pure function of the run's state and the artifacts, so that a stored run can be held against it.
pub fn account(
    input: &Input,
    objectives: &[Objective],
    gates: &RunLedger,
    produced: &[FileEntry],
    tools: &BTreeMap<String, String>,
) -> Account {
    let pipeline = input.pipeline;
    let authority_of: BTreeMap<&str, &str> = objectives.iter().map(|o| (o.id.as_str(), o.source.authority_id.as_str())).collect();
    let declared: BTreeMap<&RepoPath, &Vec<String>> = pipeline.r#gen.artifacts.iter().map(|a| (&a.path, &a.objectives)).collect();
    let mut outputs = Vec::new();
    for file in produced {
        let objectives = declared.get(&file.path).map(|o| (*o).clone()).unwrap_or_default();
        let authorities: BTreeSet<String> =
            objectives.iter().filter_map(|o| authority_of.get(o.as_str())).map(|a| (*a).to_owned()).collect();
        let authorities = authorities.into_iter().collect();
        outputs.push(OutputArtifact { path: file.path.clone(), sha256: file.sha256, bytes: file.bytes, objectives, authorities });
    }
    outputs.sort_by(|a, b| a.path.cmp(&b.path));

    let version = || SCHEMA_VERSION.to_owned();
    let request = request(input);
    let reported = |o: &OutputArtifact| ReportedArtifact { path: o.path.clone(), hash: o.sha256, bytes: o.bytes };
    let report = GenReport {
        schema_version: version(),
        phase: Phase::Gen,
        artifacts: outputs.iter().map(reported).collect(),
        tool_versions: tools.clone(),
    };
    let artifact_hashes: ArtifactHashes = outputs.iter().map(|o| (o.path.clone(), o.sha256)).collect();
    let outputs = OutputsManifest { schema_version: version(), phase: Phase::Gen, artifacts: outputs };
    let manifest = json::emit(&outputs);
    let mut run_ledger = GrowingLedger::new(gates.clone());
    run_ledger.push(LedgerEntry::phase(Phase::Gen, Digest::of(&manifest)));
    for output in outputs.artifacts.iter().cloned() {
        run_ledger.push(LedgerEntry {
            phase: Phase::Gen,
            event: LedgerEvent::Artifact,
            artifact: Some(output.path),
            sha256: Some(output.sha256),
            objectives: output.objectives,
            authorities: output.authorities,
            check: None,
            cache: None,
        });
    }
    let evidence = Evidence::from([
        (super::path(REQUEST_PATH), json::emit(&request)),
        (super::path(OUTPUTS_PATH), manifest),
        (super::path(REPORT_PATH), json::emit(&report)),
        (super::path(ARTIFACT_HASHES_PATH), json::emit(&artifact_hashes)),
        (super::path(RUN_LEDGER_PATH), run_ledger.emit()),
    ]);
    Account { evidence, outputs, report, artifact_hashes, run_ledger }
}
