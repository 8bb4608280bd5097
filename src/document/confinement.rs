//! What `git cbia` and the process that supervises an executor say to each other. Never stored; both sides are the same binary.
//!
//! Lines of JSON: the order goes to the supervisor, and on to the confined process, which says how well it is confined and waits. That goes
//! back; a word of consent comes, and the program starts. The verdict is the last line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::executor::{Bounds, GenExecutor};

/// What is to be executed, and how it is confined.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// This binary.
    pub binary: String,
    /// The program, absolute.
    pub program: String,
    /// SHA-256 of the program's bytes, where it is a file of the system: what is started is the file that was hashed.
    pub sha256: Option<Digest>,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// The scratch directory: removed by the supervisor if nobody else does.
    pub scratch: String,
    /// The folder inside it that holds the snapshot, where the program starts.
    pub tree: String,
    /// The folder inside it for temporary files.
    pub temporary: String,
    /// Further paths that may be read and executed.
    pub read: Vec<String>,
    /// Whether internet sockets may be opened.
    pub network: bool,
    /// Whether it is refused where the system cannot confine.
    pub require: bool,
    /// Whether it runs inside bubblewrap; the supervisor knows.
    pub wrapped: bool,
    /// Milliseconds after which it is killed.
    pub timeout_ms: u64,
    /// What it may use.
    pub bounds: Bounds,
}

/// What the confined process says before it becomes the program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It is confined to this level.
    Confined(String),
    /// The system cannot confine it.
    Unconfined(String),
    /// The program cannot be started.
    Unstartable(String),
}

/// How an executor ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It ended by itself, with this status.
    Exited(i32),
    /// A signal killed it.
    Signalled(i32),
    /// It was killed because its time was up.
    TimedOut,
    /// It was killed because it had too many processes.
    TooManyProcesses,
    /// It was killed because its scratch directory took more of the disk than it may.
    TooMuchDisk,
    /// It was killed because nobody wanted its result any more.
    Abandoned,
    /// It was to be killed, and something of it could not be.
    Unkillable,
    /// The system cannot confine it, and it was not started.
    Unconfined(String),
    /// It could not be started.
    Unstartable(String),
}

/// What the supervisor says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// The process is confined to this level, and waits for consent before it becomes the program.
    Reached(String),
    /// It is over.
    Ended(Verdict),
}

/// What is put before the repository's policy once the level is known, and before the program starts. Never stored.
#[derive(Clone, Debug, Serialize)]
pub struct ConfinementInput<'a> {
    /// Version of this format.
    pub schema_version: &'a str,
    /// The executor, as it stands in the capsule.
    pub gen_executor: &'a GenExecutor,
    /// The level that was reached, such as `landlock:7+seccomp`; `none` where it was not.
    pub level: &'a str,
    /// Its parts, such as `landlock:7` and `seccomp`; empty for `none`.
    pub layers: Vec<&'a str>,
}

/// What the supervisor says when nothing of the executor is left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// How well it was confined, such as `landlock:7+seccomp`; `none` where it was not.
    pub level: String,
    /// How it ended.
    pub fate: Fate,
    /// How many of its processes were left when it ended, and were killed.
    pub killed: u64,
}
