//! What the policy cage's two sides say to each other. Never stored; both sides are the same binary.
//!
//! A message to the child is the request as one line of JSON, then the input document, so that a large input is parsed
//! once only, by the engine.

use serde::{Deserialize, Serialize};

use super::explain::ExplainDocument;
use super::finding::Finding;
use super::path::RepoPath;

/// What the child is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The policy files, in byte order of path.
    pub files: Vec<RequestFile>,
    /// What to do with them.
    pub ask: Ask,
}

/// One policy file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFile {
    /// Its repository path.
    pub path: RepoPath,
    /// Its text.
    pub text: String,
}

/// What to do with the policy files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Lint only.
    Lint,
    /// Lint, then evaluate this query over the input that follows the request.
    Evaluate {
        /// A rule's path, such as `data.assurance.allow`.
        query: String,
    },
    /// Lint, then list the test rules.
    ListTests,
    /// Lint, then run these test rules.
    RunTests {
        /// The rules' paths.
        rules: Vec<String>,
    },
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The bundle cannot be used: parse errors, or the lint's refusals.
    Refused {
        /// Why.
        findings: Vec<Finding>,
    },
    /// [`Ask::Lint`]: nothing to object to.
    Clean,
    /// [`Ask::Evaluate`].
    Evaluated {
        /// The rule's value: absent if it is undefined or missing.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        value: Option<serde_json::Value>,
        /// Why.
        explain: Box<ExplainDocument>,
    },
    /// [`Ask::ListTests`].
    Tests {
        /// The test rules, in order of file and row.
        tests: Vec<TestRule>,
    },
    /// [`Ask::RunTests`].
    Tested {
        /// One outcome per rule, in the order asked.
        outcomes: Vec<TestOutcome>,
    },
    /// The engine ended with an error.
    Failed {
        /// The engine's message.
        message: String,
    },
}

/// How a test rule ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestOutcome {
    /// It is defined and not false.
    Pass,
    /// It is undefined or false.
    Fail,
    /// The engine ended with this message.
    Error(String),
}

/// A test rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRule {
    /// The file it stands in.
    pub file: String,
    /// Its line, from 1.
    pub row: u64,
    /// Its package, as `data.…`.
    pub package: String,
    /// Its name.
    pub name: String,
}

/// `null` is a value that a rule can have, and is not the same as no value.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(deserializer).map(Some)
}
