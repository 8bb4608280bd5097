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
    pub sandbox: Option<Sandbox>,
}

/// How an executor that is a program of its own is confined. What is absent has the documented default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// Whether a run is refused where the system cannot confine. By default it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<bool>,
    /// Whether it may open internet sockets. By default it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,
    /// Absolute paths that it may read and execute, beside the system's programs and libraries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
    /// Names of variables that are passed on from the environment of git cbia. Their values are kept nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pass_env: Vec<String>,
    /// What it may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What an executor may use at most, as configured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Address space of each process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time of each process, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<u64>,
    /// The largest file that it may write, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes of the disk that its scratch directory may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Processes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Files in its folder when it ends, inputs included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_files: Option<u64>,
    /// Bytes of all artifacts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Bytes of what it prints that are kept with the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
}

/// What an executor may use at most, with the defaults filled in. Never stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Address space of each process, in bytes.
    pub memory_bytes: u64,
    /// Processor time of each process, in seconds.
    pub cpu_s: u64,
    /// The largest file that it may write, in bytes.
    pub file_bytes: u64,
    /// Bytes of the disk that its scratch directory may take.
    pub disk_bytes: u64,
    /// Processes at a time.
    pub processes: u64,
    /// Files in its folder when it ends, inputs included.
    pub output_files: u64,
    /// Bytes of all artifacts together.
    pub output_bytes: u64,
    /// Bytes of what it prints that are kept with the record.
    pub log_bytes: u64,
}

/// Seconds after which an executor is killed, where the configuration does not say.
pub const DEFAULT_TIMEOUT_S: u64 = 600;

impl Limits {
    /// The limits, with the defaults filled in.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            memory_bytes: self.memory_bytes.unwrap_or(4 << 30),
            cpu_s: self.cpu_s.unwrap_or(3600),
            file_bytes: self.file_bytes.unwrap_or(256 << 20),
            disk_bytes: self.disk_bytes.unwrap_or(4 << 30),
            processes: self.processes.unwrap_or(512),
            output_files: self.output_files.unwrap_or(100_000),
            output_bytes: self.output_bytes.unwrap_or(1 << 30),
            log_bytes: self.log_bytes.unwrap_or(1 << 20),
        }
    }
}

/// A program or script of the command, by content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// As the command names it.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
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
    /// The command's program, and every further argument that names a file, in the order of the command. Absent for the built-in generator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<Program>,
}

impl GenExecutor {
    /// The `executor_key`.
    pub fn key(&self) -> Digest {
        Digest::of_document(self)
    }
}
