//! `opa/input.json`, and what the control kernel's policy sees.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::capsule::Capsule;
use super::digest::Digest;
use super::executor::GenExecutor;
use super::finding::Finding;
use super::inputs_manifest::InputsManifest;
use super::path::RepoPath;
use super::pipeline::Gen;
use super::run_ledger::{ArtifactHashes, RunLedger};

/// The input bundle of `data.assurance.allow`.
#[derive(Clone, Debug, Serialize)]
pub struct OpaInput<'a> {
    /// The capsule.
    pub pre_gen_capsule: &'a Capsule,
    /// The ledger, with all its members.
    pub authority_ledger: &'a Value,
    /// The objectives, with all their members.
    pub objectives: &'a Value,
    /// The dependency graph; derived from the declaration where the repository has none.
    pub dependency_graph: &'a Value,
    /// The execution DAG; the canonical one where the repository has none.
    pub execution_dag: &'a Value,
    /// What has happened so far.
    pub run_ledger: &'a RunLedger,
    /// What has been produced so far.
    pub artifact_hashes: &'a ArtifactHashes,
}

/// The input of `data.control.kernel.allow`.
#[derive(Clone, Debug, Serialize)]
pub struct KernelInput<'a> {
    /// Version of this format.
    pub schema_version: &'a str,
    /// The ledger, with all its members.
    pub authority_ledger: &'a Value,
    /// The objectives, with all their members.
    pub objectives: &'a Value,
    /// As in [`OpaInput`].
    pub dependency_graph: &'a Value,
    /// As in [`OpaInput`].
    pub execution_dag: &'a Value,
    /// What GEN produces.
    pub r#gen: &'a Gen,
    /// Patterns of further inputs.
    pub inputs: &'a [String],
    /// Who will execute GEN.
    pub gen_executor: &'a GenExecutor,
    /// The bytes each authority was found to have.
    pub authority_set_hashes: &'a BTreeMap<String, Digest>,
    /// What GEN may see.
    pub inputs_manifest: &'a InputsManifest,
    /// What the mechanical checks say. The kernel never allows over a refusal of theirs, whatever the policy says.
    pub mechanical_findings: Vec<MechanicalFinding<'a>>,
}

/// A mechanical finding, as the policy sees it.
#[derive(Clone, Debug, Serialize)]
pub struct MechanicalFinding<'a> {
    /// The code.
    pub code: &'a str,
    /// `error` or `warning`.
    pub severity: super::finding::Severity,
    /// What is wrong.
    pub message: &'a str,
    /// Where.
    pub path: Option<&'a str>,
}

impl<'a> From<&'a Finding> for MechanicalFinding<'a> {
    fn from(finding: &'a Finding) -> Self {
        let Finding { severity, message, .. } = finding;
        Self { code: finding.code.as_str(), severity: *severity, message, path: finding.path.as_deref() }
    }
}

/// `opa/bundle.hash`: what the decision rests on.
#[derive(Clone, Debug, Serialize)]
pub struct BundleHash {
    /// Version of this format.
    pub schema_version: &'static str,
    /// `sha256`.
    pub alg: &'static str,
    /// Listing hash of the files below.
    pub policy_bundle_hash: Digest,
    /// Canonical hash of `opa/input.json`.
    pub opa_input_bundle_hash: Digest,
    /// The policies, in byte order of path, in the form of OPA's `.signatures.json`.
    pub files: Vec<BundleFile>,
}

/// One policy file.
#[derive(Clone, Debug, Serialize)]
pub struct BundleFile {
    /// Its path.
    pub name: RepoPath,
    /// SHA-256 of its bytes.
    pub hash: Digest,
    /// `SHA-256`.
    pub algorithm: &'static str,
}
