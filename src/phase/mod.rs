//! F3: the phases. One file per phase, one shape: what it reads, what it writes, when it stops; its input, its output, its `VERSION`.
//!
//! The gates (AUTHORITY_LOCK, PRE_GEN, OPA_GATE) are never cached and never skipped. The phases from GEN on are pure functions of
//! their input, and say what their cache key is.

pub mod authority_lock;
pub mod check;
pub mod eval;
pub mod flow;
pub mod r#gen;
pub mod objective;
pub mod opa_gate;
pub mod pre_gen;
pub mod promote;
pub mod repair;
pub mod select;
pub mod structure;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::document::finding::{Code, Finding, Severity, refuses};
use crate::document::path::RepoPath;
use crate::policy::{Decision, Evaluation, Question};

/// What a phase emits: bytes by path.
pub type Evidence = BTreeMap<RepoPath, Vec<u8>>;

/// Answers a question to a policy; whether by evaluation or from memory is not a phase's business.
pub trait Judge {
    /// The answer. What goes wrong is an answer too: an error, which denies.
    fn judge(&mut self, question: &Question<'_>) -> Evaluation;

    /// A question that may soon be asked. Whether its answer is being worked out meanwhile.
    fn expect(&mut self, _question: &Question<'_>) -> bool {
        false
    }
}

/// The parts of the control state that the assurance policy sees, as it sees them.
pub struct Assembled {
    /// The objectives, with all their members.
    pub objectives: Value,
    /// The dependency graph, declared or derived.
    pub graph: Value,
    /// The execution DAG, declared or canonical.
    pub dag: Value,
}

/// The findings of an answer: none where it allows, and never none where it does not.
fn denial(decision: Decision, findings: Vec<Finding>, code: Code, message: &str) -> Vec<Finding> {
    match decision {
        Decision::Allow => findings.into_iter().filter(|f| f.severity == Severity::Warning).collect(),
        Decision::Deny | Decision::Error if refuses(&findings) => findings,
        Decision::Deny | Decision::Error => {
            let said = Finding::error(code, message).hint("git cbia policy test runs the policies' own tests");
            findings.into_iter().chain([said]).collect()
        }
    }
}

/// A path that the program itself names.
pub(crate) fn path(text: &'static str) -> RepoPath {
    #[expect(clippy::expect_used, reason = "only called with literals; a test goes through all of them")]
    text.parse().expect("a literal path is valid")
}
