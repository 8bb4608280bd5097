//! `control/authority.ledger.json`: the source documents that generation may draw from, pinned by SHA-256.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::digest::Digest;
use super::path::RepoPath;

/// The ledger. Members it does not know are kept, as data for the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuthorityLedger {
    /// Version of this format.
    pub schema_version: String,
    /// Whether the set is locked. Only `true` lets AUTHORITY_LOCK pass; absence does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// The authorities, in declared order.
    pub authority_set: Vec<Authority>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One source document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Authority {
    /// The id that objectives name.
    pub authority_id: String,
    /// What a person calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What it was when it was pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Pin>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Where an authority is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// `file`: the locator is a repository path. Other kinds are recorded and cannot be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The place, in the terms of the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locator: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The pinned digest, as it is written: not yet checked to be one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// The digest, lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Authority {
    /// The source's kind; absent is unknown, not `file`.
    pub fn kind(&self) -> &str {
        self.source.as_ref().and_then(|s| s.kind.as_deref()).unwrap_or("unknown")
    }

    /// The source's locator, if there is one that is not empty.
    pub fn locator(&self) -> Option<&str> {
        self.source.as_ref().and_then(|s| s.locator.as_deref()).filter(|l| !l.is_empty())
    }

    /// The repository path of a `file` authority, if its locator is one.
    pub fn file(&self) -> Option<RepoPath> {
        if self.kind() == "file" { self.locator()?.parse().ok() } else { None }
    }

    /// The pinned digest, if it is one.
    pub fn pinned(&self) -> Option<Digest> {
        let pin = self.hash.as_ref()?;
        if pin.alg.as_deref() == Some("sha256") { pin.value.as_deref()?.parse().ok() } else { None }
    }
}

impl AuthorityLedger {
    /// The authority of that id.
    pub fn find(&self, id: &str) -> Option<&Authority> {
        self.authority_set.iter().find(|a| a.authority_id == id)
    }
}
