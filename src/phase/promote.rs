//! PROMOTE: whether what a finished run made may go onto a branch.
//!
//! Reads: the promote capsule, the run's check report and selection, what the mechanical checks found.
//! Writes: `execution/promote/capsule.json` and `report.json`; `opa/input.json`, `decision.json`, `explain.json` and `bundle.hash` again.
//! Stops when: a mechanical check refuses, or `data.promote.allow` is anything but exactly `true`. Nothing is written then.

use super::opa_gate::{BUNDLE_PATH, DECISION_PATH, EXPLAIN_PATH, INPUT_PATH};
use super::{Evidence, Judge, denial};
use crate::document::SCHEMA_VERSION;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::json;
use crate::document::opa_input::{BundleFile, BundleHash, MechanicalFinding};
use crate::document::phase::Phase;
use crate::document::promotion::{PromoteCapsule, PromoteInput, PromoteReport};
use crate::document::schema::{Kind, validate};
use crate::document::selection::Selection;
use crate::policy::{Bundle, Question};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// The deciding rule.
pub const QUERY: &str = "data.promote.allow";
/// Where the capsule goes.
pub const CAPSULE_PATH: &str = "execution/promote/capsule.json";
/// Where the report goes.
pub const REPORT_PATH: &str = "execution/promote/report.json";

/// What the phase works on.
pub struct Input<'a> {
    /// What is to be promoted.
    pub capsule: &'a PromoteCapsule,
    /// What CHECK found in the run.
    pub check_report: &'a CheckReport,
    /// Which artifacts were kept.
    pub selection: &'a Selection,
    /// The policies, or why they cannot be used.
    pub bundle: Result<&'a Bundle, &'a [Finding]>,
    /// What the mechanical checks found.
    pub known: &'a [Finding],
}

/// What the phase gives.
pub struct Output {
    /// Whether it may be promoted.
    pub allowed: bool,
    /// The capsule, the report and the decision, for a promotion that is allowed.
    pub evidence: Evidence,
    /// SHA-256 of the emitted decision and explanation.
    pub decision_hashes: Option<(Digest, Digest)>,
    /// Why it may not be promoted, and warnings; those that were known are not repeated.
    pub findings: Vec<Finding>,
}

/// Puts the promotion before the policy. Only where no mechanical check refuses, as at PRE_GEN.
pub fn run(input: Input, judge: &mut dyn Judge) -> Output {
    let Input { capsule, check_report, selection, bundle, known } = input;
    let refused = |findings| Output { allowed: false, evidence: Evidence::new(), decision_hashes: None, findings };
    if refuses(known) {
        return refused(Vec::new());
    }
    let value = json::to_value(capsule);
    let emitted = json::pretty(&value);
    let violations = validate(Kind::PromoteCapsule, CAPSULE_PATH, &emitted, &value);
    if refuses(&violations) {
        return refused(violations);
    }
    let bundle = match bundle {
        Ok(bundle) => bundle,
        Err(findings) => return refused(findings.to_vec()),
    };
    let question = json::to_value(&PromoteInput {
        schema_version: SCHEMA_VERSION,
        promote_capsule: capsule,
        check_report,
        selection,
        mechanical_findings: known.iter().map(MechanicalFinding::from).collect(),
    });
    let evaluation = judge.judge(&Question { bundle, query: QUERY, input: &question });
    let answer = evaluation.decision_json.result.first().and_then(|result| result.expressions.first()).map(|e| &e.value);
    let is_true = answer == Some(&serde_json::Value::Bool(true));
    let (decision, explain) = (json::emit(&evaluation.decision_json), json::emit(&evaluation.explain_json));
    let message = "the promotion policy does not allow this promotion";
    let mut findings = denial(evaluation.decision, evaluation.findings, Code::PromotionDenied, message);
    if !is_true && !refuses(&findings) {
        findings.push(Finding::error(Code::PromotionDenied, message).hint("git cbia policy test runs the policies' own tests"));
    }
    if refuses(&findings) {
        return refused(findings);
    }
    let bundle_hash = BundleHash {
        schema_version: SCHEMA_VERSION,
        alg: "sha256",
        policy_bundle_hash: bundle.hash(),
        opa_input_bundle_hash: Digest::of_canonical(&question),
        files: bundle
            .policies()
            .iter()
            .map(|file| BundleFile { name: file.path.clone(), hash: Digest::of(file.text.as_bytes()), algorithm: "SHA-256" })
            .collect(),
    };
    let decision_hashes = (Digest::of(&decision), Digest::of(&explain));
    let report = PromoteReport {
        schema_version: SCHEMA_VERSION,
        phase: Phase::Promote,
        promoted: true,
        promote_capsule_hash: Digest::of(&emitted),
        decision_hash: decision_hashes.0,
        promoted_set_hash: Digest::of_listing(capsule.files.iter().map(|file| (&file.path, file.sha256))),
        findings: &findings,
    };
    let evidence = Evidence::from([
        (super::path(REPORT_PATH), json::emit(&report)),
        (super::path(CAPSULE_PATH), emitted),
        (super::path(INPUT_PATH), json::pretty(&question)),
        (super::path(DECISION_PATH), decision),
        (super::path(EXPLAIN_PATH), explain),
        (super::path(BUNDLE_PATH), json::emit(&bundle_hash)),
    ]);
    Output { allowed: true, evidence, decision_hashes: Some(decision_hashes), findings }
}
