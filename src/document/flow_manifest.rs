//! `execution/flow/manifest.json`: what the package consists of.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;
use super::phase::Phase;

/// The manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowManifest {
    /// Version of this format.
    pub schema_version: String,
    /// `FLOW`.
    pub phase: Phase,
    /// Listing hash of the package.
    pub package_hash: Digest,
    /// In byte order of path.
    pub files: Vec<PackagedFile>,
}

/// One file of the package.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackagedFile {
    /// Where it is in the package.
    pub path: RepoPath,
    /// The artifact it is a copy of.
    pub origin: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes.
    pub bytes: u64,
}
