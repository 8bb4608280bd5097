//! The names of the phases and their canonical order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A step of the pipeline. The order of the variants is the canonical order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the names are the vocabulary; docs/phases.md explains each")]
pub enum Phase {
    AuthorityLock,
    PreGen,
    OpaGate,
    Gen,
    Check,
    Repair,
    Struct,
    Select,
    Flow,
    Eval,
    Promote,
}

impl Phase {
    /// Every phase, in the canonical order.
    pub const ALL: [Phase; 11] = [
        Phase::AuthorityLock,
        Phase::PreGen,
        Phase::OpaGate,
        Phase::Gen,
        Phase::Check,
        Phase::Repair,
        Phase::Struct,
        Phase::Select,
        Phase::Flow,
        Phase::Eval,
        Phase::Promote,
    ];

    /// The name as documents and refs spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::AuthorityLock => "AUTHORITY_LOCK",
            Phase::PreGen => "PRE_GEN",
            Phase::OpaGate => "OPA_GATE",
            Phase::Gen => "GEN",
            Phase::Check => "CHECK",
            Phase::Repair => "REPAIR",
            Phase::Struct => "STRUCT",
            Phase::Select => "SELECT",
            Phase::Flow => "FLOW",
            Phase::Eval => "EVAL",
            Phase::Promote => "PROMOTE",
        }
    }

    /// The phase of that name, spelled exactly.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }

    /// Whether every run has it, whatever its execution DAG lists: without a CHECK that passed and an EVAL that allowed, nothing is admitted.
    pub fn is_indispensable(self) -> bool {
        matches!(self, Phase::Check | Phase::Eval) || self.is_gate() || self == Phase::Gen
    }

    /// Whether it is a gate: never cached, never skipped.
    pub fn is_gate(self) -> bool {
        matches!(self, Phase::AuthorityLock | Phase::PreGen | Phase::OpaGate)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
