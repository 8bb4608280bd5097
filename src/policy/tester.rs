//! Runs a bundle's policy tests, in the cage: `opa test` for `*_test.rego`.
//!
//! As with OPA, a test is a rule whose name begins with `test_`; it passes if it is defined and not false, and one whose
//! name begins with `todo_test_` is skipped.

use super::bundle::Bundle;
use super::cage::{Cage, CageError};
use super::refusal;
use crate::document::cage::{Answer, Ask, Request, TestOutcome, TestRule};
use crate::document::finding::{Code, Finding};

/// What one test came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It is undefined or false.
    Fail,
    /// The engine, or the cage, gave no answer: why.
    Error(String),
    /// It is marked as still to be done.
    Skip,
}

/// One test, in order of file and row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestResult {
    /// Where it is, and what it is called.
    pub test: TestRule,
    /// What it came to.
    pub outcome: Outcome,
}

impl TestResult {
    /// The finding for a test that does not hold.
    pub fn finding(&self) -> Option<Finding> {
        let name = format!("{}.{}", self.test.package, self.test.name);
        let message = match &self.outcome {
            Outcome::Pass | Outcome::Skip => return None,
            Outcome::Fail => format!("the policy test {name} does not hold"),
            Outcome::Error(why) => format!("the policy test {name} gave no answer: {why}"),
        };
        Some(Finding::error(Code::PolicyTestFailed, message).at(&self.test.file).on(self.test.row, 1))
    }
}

/// Runs every test of the bundle. Refused where the bundle cannot be loaded.
pub fn run(cage: &Cage, bundle: &Bundle) -> Result<Vec<TestResult>, Vec<Finding>> {
    let ask = |ask: Ask| {
        let files = bundle.policies().iter().chain(bundle.tests()).cloned().collect();
        cage.ask(&Request { files, ask }, Vec::new())
    };
    let tests = match ask(Ask::ListTests) {
        Ok(Answer::Tests { tests }) => tests,
        Ok(Answer::Refused { findings }) => return Err(findings),
        Ok(_) => return Err(vec![Finding::error(Code::PolicyError, "the policy cage gave another answer than was asked for")]),
        Err(error) => return Err(vec![refusal(&error)]),
    };
    let rules: Vec<String> = tests.iter().filter(|test| !skipped(test)).map(path).collect();
    // All at once; one by one only if one of them brought the cage down, to tell which.
    let mut outcomes = match outcomes(ask(Ask::RunTests { rules: rules.clone() }), rules.len()) {
        Ok(all) => all,
        Err(_) => rules.iter().map(|rule| alone(ask(Ask::RunTests { rules: vec![rule.clone()] }))).collect(),
    }
    .into_iter();
    let result = |test: TestRule| {
        let outcome = match skipped(&test) {
            true => Outcome::Skip,
            false => match outcomes.next() {
                Some(TestOutcome::Pass) => Outcome::Pass,
                Some(TestOutcome::Fail) => Outcome::Fail,
                Some(TestOutcome::Error(why)) => Outcome::Error(why),
                None => Outcome::Error("it was not run".into()),
            },
        };
        TestResult { test, outcome }
    };
    Ok(tests.into_iter().map(result).collect())
}

fn path(test: &TestRule) -> String {
    format!("{}.{}", test.package, test.name)
}

fn skipped(test: &TestRule) -> bool {
    test.name.starts_with("todo_")
}

fn outcomes(answer: Result<Answer, CageError>, wanted: usize) -> Result<Vec<TestOutcome>, String> {
    match answer {
        Ok(Answer::Tested { outcomes }) if outcomes.len() == wanted => Ok(outcomes),
        Ok(_) => Err("the policy cage gave another answer than was asked for".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn alone(answer: Result<Answer, CageError>) -> TestOutcome {
    match outcomes(answer, 1) {
        Ok(all) => all.into_iter().next().unwrap_or(TestOutcome::Fail),
        Err(why) => TestOutcome::Error(why),
    }
}
