//! `opa/decision.json`: what a policy decided, in the shape `opa eval --format json` prints, with one sibling object.

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The version of this document's format.
pub const SCHEMA_VERSION: &str = "0.1.0";

/// The document. `result` is absent when the deciding rule is undefined, exactly as with OPA.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionDocument {
    /// OPA's result set: one entry with one expression.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<QueryResult>,
    /// What OPA would report under the same key: present when the evaluation gave no clean answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<EvaluationError>,
    /// What `git cbia` adds.
    pub cbia: Cbia,
}

/// One entry of OPA's result set.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryResult {
    /// The evaluated expressions.
    pub expressions: Vec<Expression>,
}

/// One evaluated expression.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// Its value.
    pub value: serde_json::Value,
    /// Its text.
    pub text: String,
    /// Its place in the query.
    pub location: Position,
}

/// A place in a text, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The line.
    pub row: u64,
    /// The column.
    pub col: u64,
}

/// A place in a policy file, counted from 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The file, as a repository path.
    pub file: String,
    /// The line.
    pub row: u64,
    /// The column.
    pub col: u64,
}

/// Why there is no clean answer, or why the answer is not `true` or `false`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationError {
    /// A finding's code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Where, if it is in a policy file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Decision {
    /// The deciding rule is exactly `true`.
    Allow,
    /// The deciding rule is anything else: `false`, undefined, missing, or not a boolean.
    Deny,
    /// There is no clean answer. It counts as a denial and is never remembered.
    Error,
}

/// The sibling object of `result`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cbia {
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// What was decided.
    pub decision: Decision,
    /// The memo key: SHA-256 over query, engine, lint, policy, data and input.
    pub decision_id: Digest,
    /// The query as OPA's decision log writes it: `assurance/allow`.
    pub path: String,
    /// What evaluated it.
    pub engine: EngineIdentity,
    /// The listing hash of the policy files.
    pub policy_hash: Digest,
    /// SHA-256 of the input's canonical JSON.
    pub input_hash: Digest,
    /// SHA-256 of the bytes of `opa/explain.json`.
    pub explain_hash: Digest,
}

/// The engine, as far as it can influence a decision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineIdentity {
    /// Its name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// The Rego version it is set to.
    pub rego_version: u64,
    /// Whether an error in a built-in function ends the evaluation.
    pub strict_builtin_errors: bool,
}
