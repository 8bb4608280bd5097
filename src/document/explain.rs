//! `opa/explain.json`: why a policy decided as it did, check by check, with the values that were compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::decision::{EvaluationError, Location, SCHEMA_VERSION};

/// The document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainDocument {
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// Whether the deciding rule is exactly `true`.
    pub allow: bool,
    /// One line per check, in byte order of the check's name: `name: PASS` or `name: FAIL (reasons)`.
    pub explain: Vec<String>,
    /// The checks by name.
    pub checks: BTreeMap<String, Check>,
    /// What the package's `deny` set holds: strings, or objects with `msg` and what else the policy puts there.
    pub deny: Vec<serde_json::Value>,
    /// What the package's `warn` set holds.
    pub warn: Vec<serde_json::Value>,
    /// Why there is no clean answer, or why the answer is not `true` or `false`.
    pub errors: Vec<EvaluationError>,
}

/// One check.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Whether it is exactly `true`.
    pub value: bool,
    /// Where its rule stands; absent if the package has no rule of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The conditions of its rule, body by body.
    pub conditions: Vec<Condition>,
}

/// One condition of a rule's body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The line it starts on.
    pub row: u64,
    /// Its text, on one line.
    pub text: String,
    /// How far the evaluation got.
    pub outcome: Outcome,
    /// For a condition that failed: its operands and their values, long ones cut. Where the condition was tried for
    /// several bindings, the first of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operands: BTreeMap<String, serde_json::Value>,
    /// For a condition that failed: the operands that have no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undefined: Vec<String>,
}

/// How a condition ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds, together with those before it, for at least one binding.
    Held,
    /// Those before it hold, and it does not.
    Failed,
    /// One before it failed.
    NotReached,
}
