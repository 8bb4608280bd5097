//! OPA_GATE: `data.assurance.allow`, exactly `true`, over the capsule and everything it rests on.
//!
//! Reads: the capsule, the ledger, the objectives, the dependency graph, the execution DAG, an empty run ledger and artifact map.
//! Writes: `opa/input.json`, `opa/decision.json`, `opa/explain.json`, `opa/bundle.hash`.
//! Stops when: the policy says anything but exactly `true`; a policy that gives no clean answer says nothing.

use serde_json::Value;

use super::{Assembled, Evidence, Judge, denial};
use crate::document::SCHEMA_VERSION;
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json;
use crate::document::opa_input::{BundleFile, BundleHash, OpaInput};
use crate::document::path::RepoPath;
use crate::document::run_ledger::{ArtifactHashes, RunLedger};
use crate::gate::assurance::{Admission, admit};
use crate::policy::{Bundle, Input as _, Prepared, Question};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// The deciding rule.
pub const QUERY: &str = "data.assurance.allow";
/// Where the input bundle goes.
pub const INPUT_PATH: &str = "opa/input.json";
/// Where the decision goes.
pub const DECISION_PATH: &str = "opa/decision.json";
/// Where the explanation goes.
pub const EXPLAIN_PATH: &str = "opa/explain.json";
/// Where the bundle's identity goes.
pub const BUNDLE_PATH: &str = "opa/bundle.hash";

/// What the phase works on.
pub struct Input<'a> {
    /// The kernel's verdict.
    pub capsule: &'a Capsule,
    /// The ledger, with all its members.
    pub ledger: &'a Value,
    /// The rest of the control state.
    pub assembled: &'a Assembled,
    /// The policies.
    pub bundle: &'a Bundle,
    /// Path and SHA-256 of every file that `policy_bundle_hash` covers.
    pub bundle_files: &'a [(RepoPath, Digest)],
}

/// What the phase gives.
pub struct Output {
    /// The proof, where the policy allows.
    pub admission: Option<Admission>,
    /// The input bundle, the decision, the explanation and the bundle's identity.
    pub evidence: Evidence,
    /// Why it does not allow, and warnings.
    pub findings: Vec<Finding>,
}

/// A control state, and what has become of it so far.
pub struct Asked<'a> {
    /// The kernel's verdict.
    pub capsule: &'a Capsule,
    /// The ledger, with all its members.
    pub ledger: &'a Value,
    /// The rest of the control state.
    pub assembled: &'a Assembled,
    /// The policies.
    pub bundle: &'a Bundle,
    /// Path and SHA-256 of every file that `policy_bundle_hash` covers.
    pub bundle_files: &'a [(RepoPath, Digest)],
    /// What has happened so far.
    pub run_ledger: &'a RunLedger,
    /// What has been produced so far.
    pub artifact_hashes: &'a ArtifactHashes,
}

/// Puts the capsule before the assurance policy.
pub fn run(input: Input, judge: &mut dyn Judge) -> Output {
    let Input { capsule, ledger, assembled, bundle, bundle_files } = input;
    let (run_ledger, artifact_hashes) = (&RunLedger::empty(), &ArtifactHashes::new());
    let asked = Asked { capsule, ledger, assembled, bundle, bundle_files, run_ledger, artifact_hashes };
    let (answer, evidence, mut findings) = ask(&asked, judge);
    let admission = match admit(capsule, answer.as_ref()) {
        Ok(admission) if !crate::document::finding::refuses(&findings) => Some(admission),
        Ok(_) => None,
        Err(refusal) => {
            if !crate::document::finding::refuses(&findings) {
                findings.push(refusal);
            }
            None
        }
    };
    Output { admission, evidence, findings }
}

/// Says what will be asked if the kernel allows, as `capsule` says that it does.
pub(super) fn announce(capsule: &Capsule, ledger: &Value, assembled: &Assembled, bundle: &Bundle, judge: &mut dyn Judge) {
    let (run_ledger, artifact_hashes) = (&RunLedger::empty(), &ArtifactHashes::new());
    let asked = Asked { capsule, ledger, assembled, bundle, bundle_files: &[], run_ledger, artifact_hashes };
    judge.expect(&Question { bundle, query: QUERY, input: &Prepared::new(&asked.document()) });
}

impl Asked<'_> {
    fn document(&self) -> OpaInput<'_> {
        OpaInput {
            pre_gen_capsule: self.capsule,
            authority_ledger: self.ledger,
            objectives: &self.assembled.objectives,
            dependency_graph: &self.assembled.graph,
            execution_dag: &self.assembled.dag,
            run_ledger: self.run_ledger,
            artifact_hashes: self.artifact_hashes,
        }
    }
}

/// The assurance policy's answer, the evidence of it, and why it does not allow.
pub(super) fn ask(asked: &Asked, judge: &mut dyn Judge) -> (Option<Value>, Evidence, Vec<Finding>) {
    let Asked { capsule, bundle, bundle_files, .. } = *asked;
    let document = asked.document();
    let (question, emitted) = (Prepared::new(&document), json::emit(&document));
    let evaluation = judge.judge(&Question { bundle, query: QUERY, input: &question });
    let answer = evaluation.decision_json.result.first().and_then(|result| result.expressions.first()).map(|e| e.value.clone());
    let bundle_hash = BundleHash {
        schema_version: SCHEMA_VERSION,
        alg: "sha256",
        policy_bundle_hash: capsule.policy_bundle_hash,
        opa_input_bundle_hash: question.sha256(),
        files: bundle_files
            .iter()
            .map(|(name, hash)| BundleFile { name: name.clone(), hash: *hash, algorithm: "SHA-256" })
            .collect(),
    };
    let evidence = Evidence::from([
        (super::path(INPUT_PATH), emitted),
        (super::path(DECISION_PATH), json::emit(&evaluation.decision_json)),
        (super::path(EXPLAIN_PATH), json::emit(&evaluation.explain_json)),
        (super::path(BUNDLE_PATH), json::emit(&bundle_hash)),
    ]);
    let message = "the assurance policy does not allow this run";
    let findings = denial(evaluation.decision, evaluation.findings, Code::AssuranceDenied, message);
    (answer, evidence, findings)
}
