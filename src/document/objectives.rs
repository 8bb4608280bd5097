//! `control/objectives.json`: what is to be generated, and what each thing draws from.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One thing to be generated. Members it does not know are kept, as data for the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Objective {
    /// The id that artifacts name.
    pub id: String,
    /// What kind of thing it is, in the repository's own words.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is to be generated.
    pub statement: String,
    /// What it draws from.
    pub source: ObjectiveSource,
    /// What this version does not know, `constraints` and `justification` among it: they are read by policies and templates only.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What an objective draws from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectiveSource {
    /// An id of the authority ledger.
    pub authority_id: String,
    /// Places in that authority that support the statement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One place in an authority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// Words that stand in the authority, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// What pins them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_ref: Option<HashRef>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The digests of a piece of evidence, as they are written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HashRef {
    /// SHA-256 of the authority's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_sha256: Option<String>,
    /// SHA-256 of the quote's UTF-8 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote_sha256: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}
