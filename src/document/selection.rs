//! `execution/select/selection.json`: which artifacts were kept, and why.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;
use super::phase::Phase;

/// The selection: exactly one verdict for every artifact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Version of this format.
    pub schema_version: String,
    /// `SELECT`.
    pub phase: Phase,
    /// The query that decided; null where the pipeline's own rules did, or where it has none and everything is kept.
    pub query: Option<String>,
    /// In byte order of path.
    pub artifacts: Vec<Selected>,
}

/// The verdict on one artifact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selected {
    /// Where it is.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Whether it goes into the package.
    pub keep: bool,
    /// Why.
    pub reason: String,
}

impl Selection {
    /// The artifacts that were kept.
    pub fn kept(&self) -> impl Iterator<Item = &Selected> {
        self.artifacts.iter().filter(|a| a.keep)
    }
}
