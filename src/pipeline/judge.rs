//! Policy decisions, from memory where the exact question was asked before, from the cage otherwise.

use crate::document::finding::{Code, Finding};
use crate::document::json;
use crate::phase::Judge;
use crate::policy::{Cage, Evaluation, Question, evaluate, memo_key, recall};
use crate::store::memo::Remembered;
use crate::store::{Store, StoreError};

/// A judge that remembers.
pub struct Remembering<'a> {
    store: &'a Store,
    cage: &'a Cage,
    /// Decisions that are to be remembered: denials too, errors never.
    fresh: Vec<Remembered>,
    /// What was wrong with the memory.
    pub findings: Vec<Finding>,
}

impl<'a> Remembering<'a> {
    /// A judge over the memo of `store`.
    pub fn new(store: &'a Store, cage: &'a Cage) -> Self {
        Self { store, cage, fresh: Vec::new(), findings: Vec::new() }
    }

    /// Remembers what was decided since the last time.
    pub fn remember(&mut self) -> Result<(), StoreError> {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() { Ok(()) } else { self.store.remember(&fresh).map(drop) }
    }
}

impl Judge for Remembering<'_> {
    fn judge(&mut self, question: &Question<'_>) -> Evaluation {
        let key = memo_key(question);
        if let Some(remembered) = self.store.memo(&key) {
            if let Some(evaluation) = recall(question, &remembered.decision, &remembered.explain) {
                return evaluation;
            }
            let message = format!("the remembered decision {} is not what its key says; the policy was asked again", key.short());
            self.findings.push(Finding::warning(Code::MemoInvalid, message).at("refs/cbia/memo"));
        }
        let evaluation = evaluate(self.cage, question);
        if evaluation.memoizable() {
            let (decision, explain) = (json::emit(&evaluation.decision_json), json::emit(&evaluation.explain_json));
            self.fresh.push(Remembered { key, decision, explain });
        }
        evaluation
    }
}
