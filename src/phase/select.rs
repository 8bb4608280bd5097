//! SELECT: which artifacts are accepted, with a reason for each.
//!
//! Reads: the artifacts, their metadata, the check report; the pipeline's `select`, and the policies below `policy/select/`.
//! Writes: `execution/select/selection.json`.
//! Stops when: a criterion cannot be used, or leaves an artifact without a verdict.

use super::{Evidence, Judge};
use crate::artifact::Artifacts;
use crate::artifact::normalize::Rules;
use crate::artifact::select::{by_rules, keep_all, question, select};
use crate::document::check_report::CheckReport;
use crate::document::decision::Decision;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json;
use crate::document::metadata::Metadata;
use crate::document::pipeline::Pipeline;
use crate::document::selection::Selection;
use crate::policy::{Bundle, Prepared, Question};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the selection goes.
pub const SELECTION_PATH: &str = "execution/select/selection.json";

/// What the phase works on.
pub struct Input<'a> {
    /// The declaration.
    pub pipeline: &'a Pipeline,
    /// The policies below `policy/select/`, or why they cannot be used.
    pub bundle: Result<&'a Bundle, &'a [Finding]>,
    /// The artifacts.
    pub artifacts: &'a dyn Artifacts,
    /// Where each comes from.
    pub metadata: &'a Metadata,
    /// What CHECK said.
    pub report: &'a CheckReport,
}

/// Selects.
pub fn run(input: &Input, judge: &mut dyn Judge) -> Result<Selection, Vec<Finding>> {
    let all = || input.metadata.artifacts.iter().map(|a| (&a.path, a.sha256));
    let Some(criteria) = &input.pipeline.select else { return Ok(keep_all(all())) };
    match (&criteria.query, &criteria.rules) {
        (Some(query), None) => by_query(input, query, judge),
        (None, Some(rules)) => by_rules(all(), rules),
        (None, None) => Ok(keep_all(all())),
        (Some(_), Some(_)) => {
            let message = "select has both a query and rules, which may contradict each other";
            let finding = Finding::error(Code::DocumentSchema, message).at(crate::gate::paths::PIPELINE_PATH);
            Err(vec![finding.hint("keep one of the two")])
        }
    }
}

fn by_query(input: &Input, query: &str, judge: &mut dyn Judge) -> Result<Selection, Vec<Finding>> {
    let bundle = input.bundle.map_err(<[Finding]>::to_vec)?;
    let rules = Rules::new(input.pipeline.r#struct.as_ref().map_or(&[][..], |s| &s.normalize)).map_err(|f| vec![f])?;
    let shown = question(input.artifacts, &rules, input.metadata, input.report)?;
    let evaluation = judge.judge(&Question { bundle, query, input: &Prepared::new(&shown) });
    let answer = evaluation.decision_json.result.first().and_then(|result| result.expressions.first()).map(|e| &e.value);
    match answer {
        Some(verdicts) if evaluation.decision != Decision::Error => {
            let all = input.metadata.artifacts.iter().map(|a| (&a.path, a.sha256));
            select(all, query, verdicts)
        }
        _ => {
            let mut findings = evaluation.findings;
            if findings.is_empty() {
                findings.push(Finding::error(Code::PolicyUndefined, format!("{query} gives no answer")).at("policy/select"));
            }
            Err(findings)
        }
    }
}

/// What a selection is emitted as.
pub fn emitted(selection: &Selection) -> Evidence {
    Evidence::from([(super::path(SELECTION_PATH), json::emit(selection))])
}

/// The digest of the criteria, with the policies that a query may ask.
pub fn config_hash(pipeline: &Pipeline, policies: Digest) -> Digest {
    let asked = pipeline.select.as_ref().is_some_and(|select| select.query.is_some());
    Digest::of_canonical(&serde_json::json!({
        "select": pipeline.select,
        "struct": pipeline.r#struct,
        "policies": asked.then_some(policies),
    }))
}
