//! `record.json`: what happened, once, in one clone. The tree of a ledger commit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;
use super::phase::Phase;

/// One record. Who and when stand in the commit that holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format.
    pub schema_version: String,
    /// What happened.
    pub event: RecordEvent,
    /// Listing hash of the snapshot.
    pub state_key: Option<Digest>,
    /// Canonical hash of the resolved executor.
    pub executor_key: Option<Digest>,
    /// The commit that `HEAD` was, hexadecimal; null before the first commit.
    pub head: Option<String>,
    /// The run's last phase commit, hexadecimal; for a denial the last phase commit that was reached.
    pub run: Option<String>,
    /// One entry per phase that was reached, in order.
    pub phases: Vec<RecordedPhase>,
    /// The documents it rests on.
    pub links: Links,
    /// Codes and messages of what was found, refusals and warnings.
    pub findings: Vec<RecordedFinding>,
    /// The executor's run, if a program was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<RecordedExecutor>,
    /// The artifacts that GEN did not generate, because an earlier result had them under the same closure: one entry per earlier result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reused: Vec<Reused>,
}

/// What was taken from one earlier result of GEN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reused {
    /// The cache key of that result.
    pub cache_key: Digest,
    /// The phase commit that the result was found by, hexadecimal: its tree holds the documents that the closures were computed from.
    pub run: String,
    /// The closure key of each artifact that was taken, by path.
    pub artifacts: BTreeMap<RepoPath, Digest>,
}

/// One run of an executor that is a program of its own. What depends on the machine stands here, and in no deterministic tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedExecutor {
    /// How well it was confined, such as `landlock:7+seccomp`; `none` where it was not.
    pub level: String,
    /// How it ended, such as `exit 0`, `signal 9` or `time-out`.
    pub exit: String,
    /// Where in the record's tree the beginning of what it printed is; null if it printed nothing.
    pub log: Option<RepoPath>,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordEvent {
    /// A run was admitted and executed.
    Admitted,
    /// A known run was admitted again and replayed.
    Replayed,
    /// A gate refused.
    Denied,
    /// A phase failed.
    Failed,
    /// Artifacts were promoted.
    Promoted,
    /// Two ledgers were joined.
    Merged,
}

impl RecordEvent {
    /// The event as documents spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordEvent::Admitted => "admitted",
            RecordEvent::Replayed => "replayed",
            RecordEvent::Denied => "denied",
            RecordEvent::Failed => "failed",
            RecordEvent::Promoted => "promoted",
            RecordEvent::Merged => "merged",
        }
    }
}

/// One phase of a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedPhase {
    /// The phase.
    pub phase: Phase,
    /// What became of it.
    pub status: PhaseStatus,
    /// Its cache key, for a phase that has one.
    pub cache_key: Option<Digest>,
    /// What it handed on: SHA-256 by path.
    pub artifacts: BTreeMap<RepoPath, Digest>,
}

/// What became of a phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseStatus {
    /// A gate let it pass.
    Passed,
    /// It was executed.
    Executed,
    /// Its output was replayed.
    Replayed,
    /// It was not reached, or is not part of this run.
    Skipped,
    /// It refused or failed.
    Failed,
}

impl PhaseStatus {
    /// The status as documents spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseStatus::Passed => "passed",
            PhaseStatus::Executed => "executed",
            PhaseStatus::Replayed => "replayed",
            PhaseStatus::Skipped => "skipped",
            PhaseStatus::Failed => "failed",
        }
    }
}

/// The documents a record rests on, by SHA-256.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// The authority ledger's file.
    pub authority_ledger_hash: Option<Digest>,
    /// The policies.
    pub policy_bundle_hash: Option<Digest>,
    /// The emitted capsule.
    pub pre_gen_capsule_hash: Option<Digest>,
    /// What GEN may see.
    pub inputs_manifest_hash: Option<Digest>,
    /// The emitted `opa/decision.json`.
    pub decision_hash: Option<Digest>,
    /// The emitted `opa/explain.json`.
    pub explain_hash: Option<Digest>,
}

/// A finding, as a record keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedFinding {
    /// The code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub path: Option<String>,
}
