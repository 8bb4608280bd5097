//! `control/promote/promote_capsule.schema.json`: what is to be promoted, from which run, and where to.

use serde::{Deserialize, Serialize};

use super::check_report::CheckReport;
use super::digest::Digest;
use super::finding::Finding;
use super::opa_input::MechanicalFinding;
use super::path::RepoPath;
use super::phase::Phase;
use super::selection::Selection;

/// The capsule. It says nothing of the machine, the clone or the time, so that the same promotion is the same question everywhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteCapsule {
    /// Version of this format.
    pub schema_version: String,
    /// `PROMOTE`.
    pub phase: Phase,
    /// The run's last phase commit, hexadecimal.
    pub run: String,
    /// Listing hash of the run's snapshot.
    pub state_key: Digest,
    /// Canonical hash of the resolved executor.
    pub executor_key: Digest,
    /// The documents of the run that speak for it, by SHA-256.
    pub evidence: PromoteEvidence,
    /// What is promoted, in byte order of path.
    pub files: Vec<PromotedFile>,
    /// Patterns of the allowed destinations, as the run's own pipeline declares them.
    pub destinations: Vec<String>,
    /// How it is promoted.
    pub mode: PromoteMode,
    /// Full name of the branch; null on a detached `HEAD`.
    pub branch: Option<String>,
}

/// The documents of a run that speak for it, by SHA-256.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteEvidence {
    /// The capsule that admitted it.
    pub pre_gen_capsule_hash: Digest,
    /// The policy's last decision on it.
    pub decision_hash: Digest,
    /// What CHECK found.
    pub check_report_hash: Digest,
    /// Where its artifacts come from.
    pub metadata_hash: Digest,
    /// Which of them were kept.
    pub selection_hash: Digest,
    /// The artifact map.
    pub artifact_hashes_hash: Digest,
    /// What the package consists of.
    pub flow_manifest_hash: Digest,
    /// The final manifest.
    pub final_manifest_hash: Digest,
}

/// One file that is promoted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromotedFile {
    /// Where it goes.
    pub path: RepoPath,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes.
    pub bytes: u64,
    /// The artifact that it is, or is a copy of.
    pub origin: RepoPath,
}

/// How files are promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromoteMode {
    /// As a commit on the current branch.
    Commit,
    /// Into the index and the work tree.
    Stage,
    /// As a patch.
    Patch,
}

impl PromoteMode {
    /// The mode as documents spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            PromoteMode::Commit => "commit",
            PromoteMode::Stage => "stage",
            PromoteMode::Patch => "patch",
        }
    }
}

/// The input of `data.promote.allow`.
#[derive(Clone, Debug, Serialize)]
pub struct PromoteInput<'a> {
    /// Version of this format.
    pub schema_version: &'a str,
    /// What is to be promoted.
    pub promote_capsule: &'a PromoteCapsule,
    /// What CHECK found in the run.
    pub check_report: &'a CheckReport,
    /// Which artifacts were kept.
    pub selection: &'a Selection,
    /// What the mechanical checks say. Nothing is promoted over a refusal of theirs, whatever the policy says.
    pub mechanical_findings: Vec<MechanicalFinding<'a>>,
}

/// `execution/promote/report.json`: what a promotion came to. The same promotion gives the same report everywhere: the commit
/// that it made stands in the ledger's record.
#[derive(Clone, Debug, Serialize)]
pub struct PromoteReport<'a> {
    /// Version of this format.
    pub schema_version: &'a str,
    /// `PROMOTE`.
    pub phase: Phase,
    /// Whether everything was promoted. Nothing is written where it was not.
    pub promoted: bool,
    /// SHA-256 of the emitted capsule.
    pub promote_capsule_hash: Digest,
    /// SHA-256 of the emitted decision.
    pub decision_hash: Digest,
    /// Listing hash of the promoted files.
    pub promoted_set_hash: Digest,
    /// Warnings.
    pub findings: &'a [Finding],
}
