//! `execution/struct/metadata.json`: where every artifact comes from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::executor::ExecutorKind;
use super::path::RepoPath;
use super::phase::Phase;

/// The metadata that STRUCT attaches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Version of this format.
    pub schema_version: String,
    /// `STRUCT`.
    pub phase: Phase,
    /// SHA-256 of the capsule that admitted the run.
    pub pre_gen_capsule_hash: Digest,
    /// Listing hash of the policies that admitted it.
    pub policy_bundle_hash: Digest,
    /// Listing hash of what the generator could see.
    pub inputs_manifest_hash: Digest,
    /// Who generated.
    pub executor: ExecutorIdentity,
    /// With what, as it was reported.
    pub tool_versions: BTreeMap<String, String>,
    /// SHA-256 of every authority, by id.
    pub authorities: BTreeMap<String, Digest>,
    /// In byte order of path.
    pub artifacts: Vec<ArtifactMetadata>,
}

/// Who generated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorIdentity {
    /// What kind of executor.
    pub kind: ExecutorKind,
    /// Its own version.
    pub version: String,
    /// Canonical hash of its resolved configuration.
    pub executor_key: Digest,
    /// The version of the program that ran the pipeline.
    pub runner_version: String,
}

/// Where one artifact comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactMetadata {
    /// Where it is.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes.
    pub bytes: u64,
    /// SHA-256 of what the generator wrote; another than `sha256` where the artifact was repaired or normalized since.
    pub generated_sha256: Digest,
    /// The objectives it fulfils, in declared order.
    pub objectives: Vec<String>,
    /// The authorities those draw from, sorted.
    pub authorities: Vec<String>,
}
