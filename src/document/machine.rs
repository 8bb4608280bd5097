//! What `--json` prints: DESIGN section 11. One document per command, also on failure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::digest::Digest;
use super::finding::{Finding, refuses};
use super::path::RepoPath;
use super::phase::Phase;
use super::promotion::{PromoteMode, PromotedFile};
use super::record::{PhaseStatus, Reused};

/// The document of `run` and `status`.
#[derive(Clone, Debug, Serialize)]
pub struct RunDocument {
    /// Version of this format.
    pub schema_version: &'static str,
    /// `run` or `status`.
    pub command: &'static str,
    /// What it comes to.
    pub outcome: Outcome,
    /// What was done.
    pub event: Event,
    /// Listing hash of the snapshot.
    pub state_key: Option<Digest>,
    /// Canonical hash of the resolved executor.
    pub executor_key: Option<Digest>,
    /// SHA-256 of the emitted capsule.
    pub capsule_hash: Option<Digest>,
    /// Object id of the run's last phase commit.
    pub run: Option<String>,
    /// Object id of the ledger record.
    pub record: Option<String>,
    /// One entry per phase, in order.
    pub phases: Vec<PhaseDocument>,
    /// SHA-256 by path.
    pub artifacts: BTreeMap<RepoPath, Digest>,
    /// Why a phase missed.
    pub miss: Vec<Miss>,
    /// What there is to say.
    pub findings: Vec<Finding>,
    /// What GEN took from earlier results instead of generating it; absent where that is nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reused: Vec<Reused>,
    /// What became of the promotion that was asked for with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromoteDocument>,
}

/// The document of `promote`.
#[derive(Clone, Debug, Serialize)]
pub struct PromoteDocument {
    /// Version of this format.
    pub schema_version: &'static str,
    /// `promote`.
    pub command: &'static str,
    /// What it comes to.
    pub outcome: PromoteOutcome,
    /// How it was asked for.
    pub mode: PromoteMode,
    /// Listing hash of the run's snapshot.
    pub state_key: Option<Digest>,
    /// Canonical hash of the resolved executor.
    pub executor_key: Option<Digest>,
    /// Object id of the run's last phase commit.
    pub run: Option<String>,
    /// Object id of the ledger record.
    pub record: Option<String>,
    /// Full name of the branch; null on a detached `HEAD`.
    pub branch: Option<String>,
    /// Object id of the commit that was made.
    pub commit: Option<String>,
    /// What is promoted, in byte order of path.
    pub files: Vec<PromotedFile>,
    /// What there is to say.
    pub findings: Vec<Finding>,
}

/// What a promotion comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "docs/promotion.md explains each")]
pub enum PromoteOutcome {
    Promoted,
    AlreadyPromoted,
    Refused,
    Failed,
}

impl PromoteDocument {
    /// A promotion that could not be carried out.
    pub fn failed(mode: PromoteMode, findings: Vec<Finding>) -> Self {
        Self {
            schema_version: super::SCHEMA_VERSION,
            command: "promote",
            outcome: PromoteOutcome::Failed,
            mode,
            state_key: None,
            executor_key: None,
            run: None,
            record: None,
            branch: None,
            commit: None,
            files: Vec::new(),
            findings,
        }
    }
}

/// What a run or a status comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the contract of DESIGN section 11")]
pub enum Outcome {
    Admitted,
    Denied,
    Failed,
    CheckFailed,
    WouldReplay,
    WouldRun,
    WouldDeny,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the contract of DESIGN section 11")]
pub enum Event {
    Executed,
    Replayed,
    None,
}

/// One phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseDocument {
    /// The phase.
    pub phase: Phase,
    /// What became of it.
    pub status: PhaseStatus,
    /// Its cache key, for a phase that has one.
    pub cache_key: Option<Digest>,
    /// What it handed on: SHA-256 by path.
    pub artifacts: BTreeMap<RepoPath, Digest>,
}

/// One component in which a key differs from the newest run's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Miss {
    /// The phase whose key it is.
    pub phase: Phase,
    /// The component.
    pub component: String,
    /// The file behind it, where one can be named.
    pub path: Option<String>,
    /// What it was in the newest run; null where there was none.
    pub was: Option<String>,
    /// What it is now; null where there is none.
    pub now: Option<String>,
}

/// The document of every command that has no richer one, and of every failure before a command's own document exists.
#[derive(Clone, Debug, Serialize)]
pub struct PlainDocument<'a> {
    /// Version of this format.
    pub schema_version: &'static str,
    /// The command.
    pub command: &'a str,
    /// `done` or `failed`.
    pub outcome: &'a str,
    /// What there is to say.
    pub findings: &'a [Finding],
    /// The command's own result.
    pub result: serde_json::Value,
}

/// The document of `verify`, and of the hooks.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyDocument {
    /// Version of this format.
    pub schema_version: &'static str,
    /// `verify`, or the hook.
    pub command: &'static str,
    /// What it comes to.
    pub outcome: VerifyOutcome,
    /// What was verified.
    pub updates: Vec<UpdateDocument>,
    /// What there is to say.
    pub findings: Vec<Finding>,
}

impl VerifyDocument {
    /// What it comes to is what the findings come to.
    pub fn new(command: &'static str, updates: Vec<UpdateDocument>, findings: Vec<Finding>) -> Self {
        let outcome = if refuses(&findings) { VerifyOutcome::Refused } else { VerifyOutcome::Verified };
        Self { schema_version: super::SCHEMA_VERSION, command, outcome, updates, findings }
    }
}

/// What a verification comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the contract of DESIGN section 11")]
pub enum VerifyOutcome {
    Verified,
    Refused,
}

/// One commit, or one update of a branch or tag, that was verified.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UpdateDocument {
    /// The full name of the ref; null where there is none.
    pub r#ref: Option<String>,
    /// The object before, hexadecimal; null where there was none.
    pub old: Option<String>,
    /// The object after, hexadecimal; null where it is deleted.
    pub new: Option<String>,
    /// The key of its state; null where nothing is generated, or where nothing that matters differs from before.
    pub state_key: Option<Digest>,
    /// The last phase commit of the run of that state; null where there is none, or none was needed.
    pub run: Option<String>,
}

impl RunDocument {
    /// A run or status that could not be carried out.
    pub fn failed(command: &'static str, findings: Vec<Finding>) -> Self {
        Self {
            schema_version: super::SCHEMA_VERSION,
            command,
            outcome: Outcome::Failed,
            event: Event::None,
            state_key: None,
            executor_key: None,
            capsule_hash: None,
            run: None,
            record: None,
            phases: Vec::new(),
            artifacts: BTreeMap::new(),
            miss: Vec::new(),
            findings,
            promotion: None,
            reused: Vec::new(),
        }
    }
}
