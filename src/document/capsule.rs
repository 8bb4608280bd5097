//! `control/runtime/pre_gen_capsule.json`: the PRE-GEN verdict, with the hashes it rests on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::executor::GenExecutor;

/// The capsule. Its hash is the SHA-256 of its emitted bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    /// Version of this format.
    pub schema_version: String,
    /// The verdict.
    pub kernel_decision: KernelDecision,
    /// Canonical hash over everything that decides whether generation may happen (`ControlState`).
    pub control_state_hash: Digest,
    /// Listing hash of the policies that decide it.
    pub policy_bundle_hash: Digest,
    /// The bytes that each authority was found to have, by id. An authority that cannot be verified is absent.
    pub authority_set_hashes: BTreeMap<String, Digest>,
    /// Listing hash of what GEN may see.
    pub inputs_manifest_hash: Digest,
    /// SHA-256 of the dependency graph's file; null where the repository has none.
    pub dependency_graph_hash: Option<Digest>,
    /// SHA-256 of the execution DAG's file; null where the repository has none.
    pub execution_dag_hash: Option<Digest>,
    /// Who will execute GEN.
    pub gen_executor: GenExecutor,
}

/// The kernel's verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum KernelDecision {
    /// Generation may be put before the policy.
    Allow,
    /// Generation is forbidden.
    Deny,
}

/// What `control_state_hash` is the canonical hash of.
#[derive(Clone, Debug, Serialize)]
pub struct ControlState {
    /// SHA-256 of the authority ledger's file; null where it is missing.
    pub authority_ledger_hash: Option<Digest>,
    /// SHA-256 of the objectives' file; null where it is missing.
    pub objectives_hash: Option<Digest>,
    /// As in the capsule.
    pub dependency_graph_hash: Option<Digest>,
    /// As in the capsule.
    pub execution_dag_hash: Option<Digest>,
    /// As in the capsule.
    pub policy_bundle_hash: Digest,
    /// As in the capsule.
    pub inputs_manifest_hash: Digest,
    /// Canonical hash of the pipeline's `gen` and `inputs`; null where they cannot be read.
    pub gen_config_hash: Option<Digest>,
    /// The resolved executor's key.
    pub executor_key: Digest,
}
