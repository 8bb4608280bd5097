//! An artifact's own closure: everything that one artifact is made from, where GEN is asked for by objective. Never stored: its hash is.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::authority_ledger::Authority;
use super::cache_entry::ToolVersions;
use super::digest::Digest;
use super::path::RepoPath;
use super::pipeline::Artifact;

/// What every closure of one state has in common.
#[derive(Clone, Debug, Serialize)]
pub struct Common {
    /// Version of this format.
    pub schema_version: String,
    /// The `VERSION` of GEN.
    pub phase_version: u32,
    /// Listing hash of the policies.
    pub policy_bundle_hash: Digest,
    /// SHA-256 of the execution DAG's file; null where the repository has none.
    pub execution_dag_hash: Option<Digest>,
    /// The resolved executor's key.
    pub executor_key: Digest,
    /// Versions of the tools that the output depends on.
    pub tool_versions: ToolVersions,
    /// The pipeline's patterns of further files.
    pub inputs: Vec<String>,
    /// Listing hash of the files that every artifact may be made from.
    pub common_files_hash: Digest,
}

/// The closure of one artifact.
#[derive(Clone, Debug, Serialize)]
pub struct Closure<'a> {
    /// Canonical hash of what it shares with every other artifact ([`Common`]).
    pub common_hash: Digest,
    /// The artifact, as it is declared.
    pub artifact: &'a Artifact,
    /// Its objectives with all their members, in declared order.
    pub objectives: Vec<&'a Value>,
    /// The ledger's entries of the authorities that those draw from, in order of their ids.
    pub authorities: Vec<&'a Authority>,
    /// SHA-256 of those authorities' files, and of files with the same bytes, by path.
    pub files: BTreeMap<&'a RepoPath, Digest>,
}

impl Common {
    /// The canonical hash of this document.
    pub fn key(&self) -> Digest {
        Digest::of_document(self)
    }
}

impl Closure<'_> {
    /// The closure key: the canonical hash of this document.
    pub fn key(&self) -> Digest {
        Digest::of_document(self)
    }
}
