//! `execution/ledger/inputs.manifest.json`: the resolved dependency closure, which is all that GEN may see.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;

/// The manifest. `inputs_manifest_hash` is the listing hash of its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputsManifest {
    /// Version of this format.
    pub schema_version: String,
    /// In byte order of path.
    pub files: Vec<FileEntry>,
}

/// A file, by content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes.
    pub bytes: u64,
}

impl InputsManifest {
    /// A manifest of `files`, sorted by path.
    pub fn new(mut files: Vec<FileEntry>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { schema_version: super::SCHEMA_VERSION.to_owned(), files }
    }

    /// The `inputs_manifest_hash`.
    pub fn hash(&self) -> Digest {
        Digest::of_listing(self.files.iter().map(|f| (&f.path, f.sha256)))
    }
}
