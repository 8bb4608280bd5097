//! F3: the phases. One file per phase, one shape: what it reads, what it writes, when it stops; its input, its output, its `VERSION`.
//!
//! The gates (AUTHORITY_LOCK, PRE_GEN, OPA_GATE) are never cached and never skipped. The phases from GEN on are pure functions of
//! their input, and say what their cache key is.

pub mod authority_lock;
pub mod r#gen;
pub mod opa_gate;
pub mod pre_gen;

use std::collections::BTreeMap;

use crate::document::path::RepoPath;
use crate::policy::{Evaluation, Question};

/// What a phase emits: bytes by path.
pub type Evidence = BTreeMap<RepoPath, Vec<u8>>;

/// Answers a question to a policy; whether by evaluation or from memory is not a phase's business.
pub trait Judge {
    /// The answer. What goes wrong is an answer too: an error, which denies.
    fn judge(&mut self, question: &Question<'_>) -> Evaluation;
}

/// A path that the program itself names.
pub(crate) fn path(text: &'static str) -> RepoPath {
    #[expect(clippy::expect_used, reason = "only called with literals; a test goes through all of them")]
    text.parse().expect("a literal path is valid")
}
