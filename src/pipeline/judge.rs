//! Policy decisions, from memory where the exact question was asked before, from the cage otherwise.

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json;
use crate::phase::Judge;
use crate::policy::{Ahead, Cage, Evaluation, Question, memo_key, recall};
use crate::store::memo::Remembered;
use crate::store::{Store, StoreError};

/// A judge that remembers.
pub struct Remembering<'a> {
    store: &'a Store,
    cage: &'a Cage,
    ahead: Ahead,
    /// An answer that was remembered when its question was expected.
    recalled: Option<(Digest, Evaluation)>,
    /// Decisions that are to be remembered: denials too, errors never.
    fresh: Vec<Remembered>,
    /// What was wrong with the memory.
    pub findings: Vec<Finding>,
}

impl<'a> Remembering<'a> {
    /// A judge over the memo of `store`.
    pub fn new(store: &'a Store, cage: &'a Cage) -> Self {
        Self { store, cage, ahead: Ahead::default(), recalled: None, fresh: Vec::new(), findings: Vec::new() }
    }

    /// Remembers what was decided since the last time.
    pub fn remember(&mut self) -> Result<(), StoreError> {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() { Ok(()) } else { self.store.remember(&fresh).map(drop) }
    }
}

impl Remembering<'_> {
    fn recall(&mut self, key: &Digest, question: &Question<'_>) -> Option<Evaluation> {
        let remembered = self.store.memo(key)?;
        let evaluation = recall(question, &remembered.decision, &remembered.explain);
        if evaluation.is_none() {
            let message = format!("the remembered decision {} is not what its key says; the policy was asked again", key.short());
            self.findings.push(Finding::warning(Code::MemoInvalid, message).at("refs/cbia/memo"));
        }
        evaluation
    }
}

impl Judge for Remembering<'_> {
    fn judge(&mut self, question: &Question<'_>) -> Evaluation {
        let key = memo_key(question);
        let recalled = match self.recalled.take_if(|(recalled, _)| *recalled == key) {
            Some((_, evaluation)) => Some(evaluation),
            None if self.ahead.is_begun(&key) => None,
            None => self.recall(&key, question),
        };
        if let Some(evaluation) = recalled {
            return evaluation;
        }
        let evaluation = self.ahead.evaluate(self.cage, question);
        if evaluation.memoizable() {
            let (decision, explain) = (json::emit(&evaluation.decision_json), json::emit(&evaluation.explain_json));
            self.fresh.push(Remembered { key, decision, explain });
        }
        evaluation
    }

    fn expect(&mut self, question: &Question<'_>) -> bool {
        let key = memo_key(question);
        match self.recall(&key, question) {
            Some(evaluation) => {
                self.recalled = Some((key, evaluation));
                false
            }
            None => self.ahead.begin(self.cage, question),
        }
    }
}
