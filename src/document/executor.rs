//! The GEN executor: its configuration, and what it comes to once it is resolved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::Digest;

/// `control/runtime/gen_executor.json`, or the file that `CBIA_GEN_EXECUTOR_CONFIG` names: `$defs/config` of the schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorConfig {
    /// Who executes.
    pub kind: ExecutorKind,
    /// The executor's own version; raising it makes every GEN key miss.
    pub version: String,
    /// Argument vector. Required for `external`; without one `local` is the built-in generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Seconds after which the executor is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Environment variables it is given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Configuration that is passed on to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_config: Option<Value>,
    /// How it is confined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Value>,
}

/// Who executes GEN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    /// The built-in generator, because nothing is configured.
    Builtin,
    /// The built-in generator, or a command of this machine.
    Local,
    /// A command.
    External,
}

/// The resolved executor, as it stands in the capsule. Its canonical hash is the `executor_key`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenExecutor {
    /// Who executes.
    pub kind: ExecutorKind,
    /// The executor's own version.
    pub version: String,
    /// The version of the program that runs the pipeline, raised when what it emits changes.
    pub runner_version: String,
    /// The configuration it was resolved from; null when nothing is configured.
    pub config: Option<ExecutorConfig>,
}

impl GenExecutor {
    /// The `executor_key`.
    pub fn key(&self) -> Digest {
        Digest::of_canonical(&super::json::to_value(self))
    }
}
