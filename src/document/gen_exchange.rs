//! `execution/gen/*.json`: what an executor is asked, and what it says it did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::capsule::Capsule;
use super::digest::Digest;
use super::inputs_manifest::InputsManifest;
use super::path::RepoPath;
use super::phase::Phase;
use super::pipeline::Artifact;
use super::repair_capsule::RepairCapsule;

/// `execution/gen/request.json`: `$defs/request` of the executor schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenRequest {
    /// Version of this format.
    pub schema_version: String,
    /// The admission.
    pub pre_gen_capsule: Capsule,
    /// All that may be read.
    pub inputs_manifest: InputsManifest,
    /// What is to be done.
    pub phase_config: PhaseConfig,
    /// For REPAIR: what may be changed, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_capsule: Option<RepairCapsule>,
}

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// `GEN`, or `REPAIR` where an executor repairs.
    pub phase: Phase,
    /// The artifacts, with their objectives and templates.
    pub artifacts: Vec<Artifact>,
    /// Where the results go.
    pub outputs: Outputs,
}

/// Where an executor puts its results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// Path of the outputs manifest.
    pub outputs_manifest: RepoPath,
    /// Path of the report.
    pub execution_report: RepoPath,
    /// Paths of the artifacts: all of these and nothing else.
    pub artifacts: Vec<RepoPath>,
}

/// `execution/gen/executor.report.json`: `$defs/report` of the executor schema.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenReport {
    /// Version of this format.
    pub schema_version: String,
    /// `GEN`, or `REPAIR` where an executor repairs.
    pub phase: Phase,
    /// What was produced, in byte order of path.
    pub artifacts: Vec<ReportedArtifact>,
    /// With what.
    pub tool_versions: BTreeMap<String, String>,
}

/// One artifact, as its producer reports it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedArtifact {
    /// Where.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub hash: Digest,
    /// How many bytes.
    pub bytes: u64,
}

/// `execution/gen/outputs.json`: what was harvested, with what each artifact stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputsManifest {
    /// Version of this format.
    pub schema_version: String,
    /// `GEN`, or `REPAIR` where an executor repairs.
    pub phase: Phase,
    /// In byte order of path.
    pub artifacts: Vec<OutputArtifact>,
}

/// One harvested artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputArtifact {
    /// Where.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes.
    pub bytes: u64,
    /// The objectives it fulfils, in declared order.
    pub objectives: Vec<String>,
    /// The authorities those draw from, sorted.
    pub authorities: Vec<String>,
}
