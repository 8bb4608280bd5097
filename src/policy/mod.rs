//! F1: the Rego bundle. Load, lint, evaluate in a cage, explain, remember, test.
//!
//! Invariants: only an exact `true` allows; whatever is not a clean answer is an error, which denies and is never
//! remembered; a remembered decision is believed only after every hash in it has been checked again.

pub mod bundle;
pub mod cage;
pub mod engine;
mod explain;
pub mod lint;
pub mod tester;

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Debug;

use serde_json::{Value, json};

pub use self::bundle::{Bundle, PolicyFile};
pub use self::cage::Cage;
use crate::document::cage::{Answer, Ask, Request};
pub use crate::document::decision::Decision;
use crate::document::decision::{
    Cbia, DecisionDocument, EngineIdentity, EvaluationError, Expression, Location, Position, QueryResult, SCHEMA_VERSION,
};
use crate::document::digest::Digest;
use crate::document::explain::ExplainDocument;
use crate::document::finding::{Code, Finding};
use crate::document::json;

/// The policy that `git cbia init` writes into a repository: path there, and text.
pub const DEFAULT_BUNDLE: &[(&str, &str)] = &[
    ("policy/assurance/assurance.rego", include_str!("../../policy/assurance/assurance.rego")),
    ("policy/assurance/assurance_test.rego", include_str!("../../policy/assurance/assurance_test.rego")),
    ("policy/kernel/kernel.rego", include_str!("../../policy/kernel/kernel.rego")),
    ("policy/kernel/kernel_test.rego", include_str!("../../policy/kernel/kernel_test.rego")),
    ("policy/promote/promote.rego", include_str!("../../policy/promote/promote.rego")),
    ("policy/promote/promote_test.rego", include_str!("../../policy/promote/promote_test.rego")),
    ("policy/push/push.rego", include_str!("../../policy/push/push.rego")),
    ("policy/push/push_test.rego", include_str!("../../policy/push/push_test.rego")),
];
/// Where the policy that judges pushes is.
pub const PUSH_FOLDER: &str = "policy/push";
/// The rule that judges pushes.
pub const PUSH_QUERY: &str = "data.push.allow";

/// The format of [`memo_key`]'s own data.
const MEMO_VERSION: u64 = 1;
/// The most findings that one denial gives.
const MAX_FINDINGS: usize = 200;

/// One question to a policy.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The policy files.
    pub bundle: &'a Bundle,
    /// The deciding rule, such as `data.assurance.allow`.
    pub query: &'a str,
    /// The input document.
    pub input: &'a dyn Input,
}

/// What a policy is asked about.
pub trait Input: Debug {
    /// Its canonical JSON.
    fn text(&self) -> Cow<'_, [u8]>;

    /// SHA-256 of that.
    fn sha256(&self) -> Digest {
        Digest::of(&self.text())
    }
}

impl Input for Value {
    fn text(&self) -> Cow<'_, [u8]> {
        json::canonical(self).into()
    }
}

/// An input document that was written once for all that is done with it.
#[derive(Clone, Debug)]
pub struct Prepared {
    text: Vec<u8>,
    sha256: Digest,
}

impl Prepared {
    /// A document.
    pub fn new(document: &impl serde::Serialize) -> Self {
        Self::of(json::canonical_of(document))
    }

    /// A document by its emitted text. Of what is no document of ours nobody will ask again.
    pub fn emitted(text: &[u8]) -> Self {
        Self::of(json::compact(text))
    }

    fn of(text: Vec<u8>) -> Self {
        Self { sha256: Digest::of(&text), text }
    }
}

impl Input for Prepared {
    fn text(&self) -> Cow<'_, [u8]> {
        self.text.as_slice().into()
    }

    fn sha256(&self) -> Digest {
        self.sha256
    }
}

/// A policy's answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Evaluation {
    /// What was decided.
    pub decision: Decision,
    /// `opa/decision.json`.
    pub decision_json: DecisionDocument,
    /// `opa/explain.json`.
    pub explain_json: ExplainDocument,
    /// Why it is not allowed; empty where it is.
    pub findings: Vec<Finding>,
}

impl Evaluation {
    /// Whether the decision may be remembered: denials too, errors never.
    pub fn memoizable(&self) -> bool {
        self.decision != Decision::Error
    }
}

/// The key under which a decision is remembered: a structured key over everything that the decision is a function of.
pub fn memo_key(question: &Question<'_>) -> Digest {
    key(question, question.input.sha256())
}

fn key(question: &Question<'_>, input_hash: Digest) -> Digest {
    key_of(lint::VERSION, question.query, &identity(), question.bundle.hash(), input_hash)
}

fn key_of(lint: u64, query: &str, engine: &EngineIdentity, policy: Digest, input: Digest) -> Digest {
    Digest::of_canonical(&json!({
        "v": MEMO_VERSION,
        "query": query,
        "engine": json::to_value(engine),
        "lint": lint,
        "policy": policy,
        "data": {},
        "input": input,
    }))
}

/// Whether these two documents are an answer to the question that has this key, whenever it was asked: as they are written, with every hash in
/// them right.
pub fn answers(key: &Digest, decision_bytes: &[u8], explain_bytes: &[u8]) -> bool {
    let Some(decision) =
        json::parse(decision_bytes).ok().and_then(|value| serde_json::from_value::<DecisionDocument>(value).ok())
    else {
        return false;
    };
    let explain = json::parse(explain_bytes).ok().and_then(|value| serde_json::from_value::<ExplainDocument>(value).ok());
    let Cbia { decision_id, path, engine, policy_hash, input_hash, explain_hash, .. } = &decision.cbia;
    let query = format!("data.{}", path.replace('/', "."));
    // Which version of the checks a policy had to pass is a part of the key, and stands nowhere else.
    let is_key = |lint| key_of(lint, &query, engine, *policy_hash, *input_hash) == *key;
    let value = decision.result.first().and_then(|result| result.expressions.first()).map(|expression| &expression.value);
    let said = if value == Some(&Value::Bool(true)) { Decision::Allow } else { Decision::Deny };
    decision_id == key
        && (0..=lint::VERSION).any(is_key)
        && *explain_hash == Digest::of(explain_bytes)
        && decision.cbia.decision == said
        && explain.is_some_and(|explain| explain.allow == (said == Decision::Allow) && json::emit(&explain) == explain_bytes)
        && json::emit(&decision) == decision_bytes
}

fn identity() -> EngineIdentity {
    EngineIdentity {
        name: engine::NAME.to_owned(),
        version: engine::ENGINE_VERSION.to_owned(),
        rego_version: 1,
        strict_builtin_errors: true,
    }
}

/// Asks the policy, in a cage. Never fails: what goes wrong is an evaluation whose decision is [`Decision::Error`].
pub fn evaluate(cage: &Cage, question: &Question<'_>) -> Evaluation {
    let answer = begin(cage, question).and_then(cage::Begun::answer);
    evaluated(question, answer)
}

fn begin(cage: &Cage, question: &Question<'_>) -> Result<cage::Begun, cage::CageError> {
    let request = Request { files: question.bundle.policies().to_vec(), ask: Ask::Evaluate { query: question.query.to_owned() } };
    cage.begin(&request, question.input.text().into_owned())
}

fn evaluated(question: &Question<'_>, answer: Result<Answer, cage::CageError>) -> Evaluation {
    let input_hash = question.input.sha256();
    match answer {
        Ok(Answer::Evaluated { value, explain }) => decided(question, input_hash, value, *explain),
        Ok(Answer::Refused { findings }) => failed(question, input_hash, findings),
        Ok(Answer::Failed { message }) => failed(question, input_hash, vec![engine::located(Code::PolicyError, &message, None)]),
        Ok(_) => {
            let message = "the policy cage gave another answer than was asked for";
            failed(question, input_hash, vec![Finding::error(Code::PolicyError, message)])
        }
        Err(error) => failed(question, input_hash, vec![refusal(&error)]),
    }
}

/// Questions that are being evaluated before their answers are wanted. An answer is given to exactly the question that it was asked for, by
/// its key; what is not wanted after all is forgotten, and its cage with it.
#[derive(Debug, Default)]
pub struct Ahead {
    begun: Vec<(Digest, Result<cage::Begun, cage::CageError>)>,
}

impl Ahead {
    /// So many questions are evaluated at a time; more are left until they are asked.
    const MOST: usize = 3;

    /// Begins to evaluate a question. Whether that is going on.
    pub fn begin(&mut self, cage: &Cage, question: &Question<'_>) -> bool {
        let key = memo_key(question);
        if !self.is_begun(&key) {
            if self.begun.len() == Self::MOST {
                return false;
            }
            self.begun.push((key, begin(cage, question)));
        }
        true
    }

    /// Whether the question of this key is being evaluated.
    pub fn is_begun(&self, key: &Digest) -> bool {
        self.begun.iter().any(|(begun, _)| begun == key)
    }

    /// The same as [`evaluate`], by what was begun where it is this question.
    pub fn evaluate(&mut self, cage: &Cage, question: &Question<'_>) -> Evaluation {
        let key = memo_key(question);
        match self.begun.iter().position(|(begun, _)| *begun == key) {
            Some(at) => match self.begun.remove(at).1.and_then(cage::Begun::answer) {
                // Its time ran while other work did: it is asked once more, by itself.
                Err(cage::CageError::Time { .. }) => evaluate(cage, question),
                answer => evaluated(question, answer),
            },
            None => {
                // What was begun for nothing does not slow down what is wanted.
                self.begun.clear();
                evaluate(cage, question)
            }
        }
    }
}

/// A finding for a cage that gave no answer.
fn refusal(error: &cage::CageError) -> Finding {
    let mut message = error.to_string();
    if let Some(source) = error.source() {
        message.push_str(&format!(": {source}"));
    }
    Finding::error(Code::PolicyError, message).hint("nothing is allowed until the policy gives an answer; make it do less")
}

fn decided(question: &Question<'_>, input_hash: Digest, value: Option<Value>, explain: ExplainDocument) -> Evaluation {
    let decision = if value == Some(Value::Bool(true)) { Decision::Allow } else { Decision::Deny };
    let result = value.map(|value| QueryResult {
        expressions: vec![Expression { value, text: question.query.to_owned(), location: Position { row: 1, col: 1 } }],
    });
    let decision_json = document(question, input_hash, decision, result.into_iter().collect(), Vec::new(), &explain);
    let findings = findings_of(question.query, &explain);
    Evaluation { decision, decision_json, explain_json: explain, findings }
}

fn failed(question: &Question<'_>, input_hash: Digest, findings: Vec<Finding>) -> Evaluation {
    let errors: Vec<EvaluationError> = findings.iter().map(error_of).collect();
    let explain = ExplainDocument {
        schema_version: SCHEMA_VERSION.to_owned(),
        allow: false,
        explain: Vec::new(),
        checks: Default::default(),
        deny: Vec::new(),
        warn: Vec::new(),
        errors: errors.clone(),
    };
    let decision_json = document(question, input_hash, Decision::Error, Vec::new(), errors, &explain);
    Evaluation { decision: Decision::Error, decision_json, explain_json: explain, findings }
}

fn error_of(finding: &Finding) -> EvaluationError {
    let location = match (&finding.path, finding.line, finding.column) {
        (Some(file), Some(row), Some(col)) => Some(Location { file: file.clone(), row, col }),
        _ => None,
    };
    EvaluationError { code: finding.code.to_string(), message: finding.message.clone(), location, hint: finding.hint.clone() }
}

fn document(
    question: &Question<'_>,
    input_hash: Digest,
    decision: Decision,
    result: Vec<QueryResult>,
    errors: Vec<EvaluationError>,
    explain: &ExplainDocument,
) -> DecisionDocument {
    DecisionDocument {
        result,
        errors,
        cbia: Cbia {
            schema_version: SCHEMA_VERSION.to_owned(),
            decision,
            decision_id: key(question, input_hash),
            path: question.query.trim_start_matches("data.").replace('.', "/"),
            engine: identity(),
            policy_hash: question.bundle.hash(),
            input_hash,
            explain_hash: Digest::of(&json::emit(explain)),
        },
    }
}

/// A remembered decision, if it is an answer to exactly this question: every hash in it is computed again, and the
/// decision must be the one that its result says.
pub fn recall(question: &Question<'_>, decision_bytes: &[u8], explain_bytes: &[u8]) -> Option<Evaluation> {
    let decision_json: DecisionDocument = serde_json::from_value(json::parse(decision_bytes).ok()?).ok()?;
    let explain_json: ExplainDocument = serde_json::from_value(json::parse(explain_bytes).ok()?).ok()?;
    let value = match decision_json.result.as_slice() {
        [] => None,
        [result] => match result.expressions.as_slice() {
            [expression] => Some(expression.value.clone()),
            _ => return None,
        },
        _ => return None,
    };
    // What would be written for this value and explanation today must be, byte for byte, what is remembered:
    // so every hash in it, and its decision, is the right one.
    let evaluation = decided(question, question.input.sha256(), value, explain_json);
    let allowed = evaluation.decision == Decision::Allow;
    let explained = evaluation.explain_json.allow == allowed && evaluation.findings.is_empty() == allowed;
    let same = json::emit(&evaluation.decision_json) == decision_bytes && json::emit(&evaluation.explain_json) == explain_bytes;
    (same && explained).then_some(evaluation)
}

/// The findings of a decision, from what is stored of it: so a remembered denial says what a fresh one said.
fn findings_of(query: &str, explain: &ExplainDocument) -> Vec<Finding> {
    if explain.allow {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = explain.errors.iter().map(finding_of).collect();
    let code = match query {
        "data.control.kernel.allow" => Code::KernelDenied,
        "data.assurance.allow" => Code::AssuranceDenied,
        "data.promote.allow" => Code::PromotionDenied,
        PUSH_QUERY => Code::PushDenied,
        _ => Code::PolicyDenied,
    };
    for entry in &explain.deny {
        let check = entry.get("check").and_then(Value::as_str).map(|check| format!("{check}: ")).unwrap_or_default();
        let mut finding = Finding::error(code, format!("{check}{}", explain::message(entry)));
        finding.pointer = entry.get("path").and_then(Value::as_str).map(str::to_owned);
        findings.push(finding);
    }
    for (name, check) in explain.checks.iter().filter(|(_, check)| !check.value) {
        let told = explain.deny.iter().any(|entry| entry.get("check").and_then(Value::as_str) == Some(name.as_str()));
        // A rule that is missing, undefined or no boolean has been told already.
        // Where the policy has said why, that is why the deciding rule is false.
        let decides = query.ends_with(&format!(".{name}"));
        if !told && explain.errors.is_empty() && (!decides || explain.deny.is_empty()) {
            let line = explain.explain.iter().find(|line| line.strip_prefix(name.as_str()).is_some_and(|l| l.starts_with(':')));
            let said = match decides {
                // There is no check to name.
                true => format!("{query} is false, and the policy gives no reason"),
                false => line.cloned().unwrap_or_else(|| format!("{name}: FAIL")),
            };
            let finding = Finding::error(code, said);
            findings.push(match &check.location {
                Some(at) => finding.at(&at.file).on(at.row, at.col),
                None => finding,
            });
        }
    }
    if findings.is_empty() {
        findings.push(Finding::error(code, format!("{query} is not true, and the policy gives no reason")));
    }
    for finding in findings.iter_mut().filter(|finding| finding.hint.is_none()) {
        finding.hint = Some("change what the policy objects to, or the policy; git cbia policy test runs its tests".to_owned());
    }
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    if more > 0 {
        findings.push(Finding::error(code, format!("and {more} more reasons, in opa/explain.json")));
    }
    findings
}

fn finding_of(error: &EvaluationError) -> Finding {
    let mut finding = Finding::error(Code::parse(&error.code).unwrap_or(Code::PolicyError), error.message.clone());
    finding.hint = error.hint.clone();
    match &error.location {
        Some(at) => finding.at(&at.file).on(at.row, at.col),
        // What is missing has no place but the folder it should be in.
        None => finding.at("policy"),
    }
}

/// What the lint has to say about a bundle, tests included; empty where it may be used. Every evaluation asks the same first.
pub fn check(cage: &Cage, bundle: &Bundle) -> Vec<Finding> {
    let files = bundle.policies().iter().chain(bundle.tests()).cloned().collect();
    match cage.ask(&Request { files, ask: Ask::Lint }, Vec::new()) {
        Ok(Answer::Clean) => Vec::new(),
        Ok(Answer::Refused { findings }) => findings,
        Ok(_) => vec![Finding::error(Code::PolicyError, "the policy cage gave another answer than was asked for")],
        Err(error) => vec![refusal(&error)],
    }
}

#[cfg(test)]
mod tests;
