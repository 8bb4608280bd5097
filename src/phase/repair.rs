//! REPAIR: a bounded change of the artifacts, after a failed CHECK and at no other time.
//!
//! Reads: the artifacts, the failed check report, the pipeline's `repair` and `struct`; where an executor repairs, what GEN's executor read.
//! Writes: `execution/repair/<attempt>/capsule.json`, `check.json` (the report that failed) and `report.json`; the changed artifacts.
//! Stops when: the change lies outside the capsule's bound, or the executor fails.

use std::collections::{BTreeMap, BTreeSet};

use super::r#gen::{self, Trace};
use super::{Evidence, Judge};
use crate::artifact::normalize::Rules;
use crate::artifact::repair::{bound, built_in, capsule};
use crate::artifact::{Artifacts, Files, Overlay};
use crate::document::SCHEMA_VERSION;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::{GenRequest, Outputs, PhaseConfig};
use crate::document::inputs_manifest::InputsManifest;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::{Artifact, Pipeline, Repair, Repairer};
use crate::document::repair_capsule::RepairCapsule;
use crate::document::repair_report::RepairReport;
use crate::executor::external::{self, Host};
use crate::executor::resolve::is_builtin;
use crate::gate::assurance::Admission;
use crate::policy::Bundle;

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where an executor that repairs finds the artifacts as they are.
pub const INPUT_FOLDER: &str = "execution/repair/input";
const REQUEST_PATH: &str = "execution/repair/request.json";
const OUTPUTS_PATH: &str = "execution/repair/outputs.json";
const REPORT_PATH: &str = "execution/repair/executor.report.json";

/// What the phase works on.
pub struct Input<'a> {
    /// The proof that the state was admitted.
    pub admission: &'a Admission,
    /// The declaration.
    pub pipeline: &'a Pipeline,
    /// The bound.
    pub repair: &'a Repair,
    /// What may be seen.
    pub manifest: &'a InputsManifest,
    /// The artifacts that failed.
    pub artifacts: &'a dyn Artifacts,
    /// Why.
    pub report: &'a CheckReport,
    /// Which attempt, from 1.
    pub attempt: u64,
}

/// What an executor that repairs needs beside the phase's input.
pub struct Sources<'a> {
    /// The bytes of every file of the manifest.
    pub contents: &'a BTreeMap<RepoPath, Vec<u8>>,
    /// The policies, which may judge how well an executor is confined.
    pub bundle: &'a Bundle,
    /// What of this machine a program needs; where it is absent, none is started.
    pub host: Option<&'a Host<'a>>,
}

/// What the phase gives.
pub struct Output {
    /// What was done, and whether it kept within the bound.
    pub report: RepairReport,
    /// The artifacts that changed; none where the repair was refused.
    pub changed: Files,
    /// The capsule, the failed check report, and the report.
    pub evidence: Evidence,
    /// The program's run, if it was one.
    pub trace: Option<Trace>,
}

/// An executor that repairs, and failed.
pub struct Failed {
    /// Why.
    pub findings: Vec<Finding>,
    /// Its run.
    pub trace: Option<Trace>,
}

/// Where the documents of an attempt go: the capsule, the check report that failed, and the repair's report.
pub fn places(attempt: u64) -> [RepoPath; 3] {
    ["capsule.json", "check.json", "report.json"].map(|name| {
        #[expect(clippy::expect_used, reason = "digits and literals")]
        format!("execution/repair/{attempt}/{name}").parse().expect("the path of a repair's document is valid")
    })
}

/// The capsule of an attempt. `None` where there is nothing to repair.
pub fn capsule_of(input: &Input) -> Option<RepairCapsule> {
    capsule(input.report, input.repair)
}

/// Repairs, and holds the result against the bound.
pub fn run(input: &Input, capsule: &RepairCapsule, sources: &Sources, judge: &mut dyn Judge) -> Result<Output, Failed> {
    let refuse = |finding| Failed { findings: vec![finding], trace: None };
    let (proposed, trace) = match input.repair.by.unwrap_or(Repairer::BuiltIn) {
        Repairer::BuiltIn => {
            let rules = Rules::new(input.pipeline.r#struct.as_ref().map_or(&[][..], |s| &s.normalize)).map_err(refuse)?;
            // What nothing was said against is left as it is.
            let named: BTreeSet<&str> = capsule.findings.iter().filter_map(|finding| finding.path.as_deref()).collect();
            let mut normal = built_in(input.artifacts, &rules);
            normal.retain(|path, _| named.contains(path.as_str()));
            (normal, None)
        }
        Repairer::Executor => external(input, capsule, sources, judge)?,
    };
    let after = Overlay { base: input.artifacts, changed: &proposed };
    let report = bound(input.artifacts, &after, capsule, input.attempt);
    let changes: Vec<RepoPath> = report.changes.iter().map(|change| change.path.clone()).collect();
    let changed =
        if report.accepted { proposed.into_iter().filter(|(path, _)| changes.contains(path)).collect() } else { Files::new() };
    let evidence = evidence(input, capsule, &report);
    Ok(Output { report, changed, evidence, trace })
}

/// What an attempt emits.
pub fn evidence(input: &Input, capsule: &RepairCapsule, report: &RepairReport) -> Evidence {
    let [at_capsule, at_check, at_report] = places(input.attempt);
    Evidence::from([(at_capsule, json::emit(capsule)), (at_check, json::emit(input.report)), (at_report, json::emit(report))])
}

/// Asks the executor that was admitted for GEN, with the capsule.
fn external(
    input: &Input,
    capsule: &RepairCapsule,
    sources: &Sources,
    judge: &mut dyn Judge,
) -> Result<(Files, Option<Trace>), Failed> {
    let refuse = |finding| Failed { findings: vec![finding], trace: None };
    let Some(host) = sources.host else {
        let message = "the run does not say how its artifacts were repaired, and no executor is asked here";
        return Err(refuse(Finding::error(Code::RunInvalid, message)));
    };
    let executor = &input.admission.capsule().gen_executor;
    if is_builtin(executor) {
        let message = "repair.by is executor, and no executor is configured: the built-in generator does not repair";
        let finding = Finding::error(Code::ExecutorUnavailable, message).at(crate::gate::paths::PIPELINE_PATH);
        return Err(refuse(finding.hint("configure an executor, or take repair.by out")));
    }
    let allow = crate::document::glob::Globs::new(&capsule.allow)
        .map_err(|error| refuse(Finding::error(Code::PatternInvalid, error.to_string()).at(crate::gate::paths::PIPELINE_PATH)))?;
    let mut files = sources.contents.clone();
    for path in input.artifacts.paths() {
        let at = format!("{INPUT_FOLDER}/{path}").parse();
        if let (Ok(at), Some(bytes)) = (at, input.artifacts.bytes(path)) {
            files.insert(at, bytes.into_owned());
        }
    }
    let wanted: Vec<Artifact> = input.pipeline.r#gen.artifacts.iter().filter(|a| allow.matches(&a.path)).cloned().collect();
    let request = GenRequest {
        schema_version: SCHEMA_VERSION.to_owned(),
        pre_gen_capsule: input.admission.capsule().clone(),
        inputs_manifest: input.manifest.clone(),
        phase_config: PhaseConfig {
            phase: Phase::Repair,
            outputs: Outputs {
                outputs_manifest: super::path(OUTPUTS_PATH),
                execution_report: super::path(REPORT_PATH),
                artifacts: wanted.iter().map(|a| a.path.clone()).collect(),
            },
            artifacts: wanted,
        },
        repair_capsule: Some(capsule.clone()),
    };
    let asked = json::to_value(&request);
    let job = external::Job {
        executor,
        files: &files,
        request: (&super::path(REQUEST_PATH), &asked),
        outputs: &request.phase_config.outputs,
        phase: Phase::Repair,
    };
    let external::Execution { level, exit, log, warnings: _, harvest } =
        external::execute(&job, host, &mut |level| r#gen::confinement(executor, level, sources.bundle, judge));
    let trace = Some(Trace { level, exit, log });
    match harvest {
        Ok(harvest) => Ok((harvest.artifacts, trace)),
        Err(findings) => Err(Failed { findings, trace }),
    }
}

/// The digest of what a repair depends on beside the failed report: its bound, the declared formats, and who repairs.
pub fn config_hash(pipeline: &Pipeline) -> Digest {
    Digest::of_canonical(&serde_json::json!({ "repair": pipeline.repair, "struct": pipeline.r#struct }))
}

/// Why a repair was refused, with what it would have changed.
pub fn refusal(report: &RepairReport) -> Vec<Finding> {
    const SHOWN: usize = 40;
    let mut findings = report.findings.clone();
    if let (Some(first), false) = (findings.first_mut(), report.diff.is_empty()) {
        let diff: Vec<&str> = report.diff.iter().take(SHOWN).map(String::as_str).collect();
        first.message = format!("{}:\n{}", first.message, diff.join("\n"));
    }
    findings
}
