//! `assurance/audit_bundle.manifest.json`, which says what an audit needs, and `execution/eval/audit_bundle.json`, which says that it is there.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;
use super::phase::Phase;

/// What an audit bundle must contain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditManifest {
    /// Version of this format.
    pub schema_version: String,
    /// The documents, in declared order.
    pub documents: Vec<AuditDocument>,
}

/// One document that an audit needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditDocument {
    /// What an auditor calls it.
    pub name: String,
    /// Where it is: a file that the run emits, or one that it read.
    pub path: RepoPath,
}

/// The audit bundle: every document that the manifest names, by its hash.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditBundle {
    /// Version of this format.
    pub schema_version: String,
    /// `EVAL`.
    pub phase: Phase,
    /// Listing hash of the documents.
    pub audit_bundle_hash: Digest,
    /// In the manifest's order.
    pub documents: Vec<AuditedDocument>,
}

/// One document of an audit bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedDocument {
    /// What an auditor calls it.
    pub name: String,
    /// Where it is in the run's tree.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// `execution/eval/manifest.json`: everything that the run consists of, with its hash. Nothing is added afterwards.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalManifest {
    /// Version of this format.
    pub schema_version: String,
    /// `EVAL`.
    pub phase: Phase,
    /// Listing hash of the files below.
    pub manifest_hash: Digest,
    /// Every file of the run's tree but this one, in byte order of path.
    pub files: Vec<ManifestFile>,
}

/// One file of a run's tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Where it is in the run's tree.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}
