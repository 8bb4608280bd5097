//! SELECT: which artifacts are kept. A policy judges; here is what it is shown, and what its answer must look like.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::normalize::Rules;
use super::{Artifacts, PIPELINE, pattern, unreadable};
use crate::document::SCHEMA_VERSION;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json::{self, to_value};
use crate::document::metadata::{ArtifactMetadata, Metadata};
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::pipeline::{Format, SelectRule};
use crate::document::selection::{Selected, Selection};

/// The reason of every artifact where the pipeline declares no selection.
pub const NO_CRITERIA: &str = "the pipeline declares no selection";
/// The most JSON that a policy is shown, in bytes, over all artifacts: all of it is in memory at once.
pub const MAX_SHOWN_BYTES: usize = 64 << 20;
/// The longest reason that is kept, in characters, escaped.
const MAX_REASON: usize = 200;

/// What the policy sees: `{"artifacts": {path: {"path", "sha256", "bytes", "objectives", "authorities", "json", "findings"}}, "metadata":
/// {…}}`. `json` is the parsed artifact where its declared format is JSON or its name ends in `.json`, and null where it is neither
/// or cannot be parsed; `findings` is what CHECK still says of it, which can only be warnings.
///
/// Refused are artifacts that the metadata is not about, and more than [`MAX_SHOWN_BYTES`] of JSON.
pub fn question(
    artifacts: &dyn Artifacts,
    rules: &Rules,
    metadata: &Metadata,
    report: &CheckReport,
) -> Result<Value, Vec<Finding>> {
    question_within(MAX_SHOWN_BYTES, artifacts, rules, metadata, report)
}

fn question_within(
    limit: usize,
    artifacts: &dyn Artifacts,
    rules: &Rules,
    metadata: &Metadata,
    report: &CheckReport,
) -> Result<Value, Vec<Finding>> {
    let known: BTreeMap<&RepoPath, &ArtifactMetadata> = metadata.artifacts.iter().map(|a| (&a.path, a)).collect();
    let mut said: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for finding in &report.findings {
        said.entry(finding.path.as_deref().unwrap_or_default()).or_default().push(to_value(finding));
    }
    let (mut shown, mut findings, mut size) = (serde_json::Map::new(), Vec::new(), 0);
    for path in artifacts.paths() {
        let Some(bytes) = artifacts.bytes(path) else {
            findings.push(unreadable(path));
            continue;
        };
        let Some(about) = known.get(path).filter(|about| about.sha256 == Digest::of(&bytes)) else {
            let message = format!("the metadata is not about the artifact {path} as it is");
            findings.push(Finding::error(Code::ProvenanceMissing, message).at(path).hint("run again"));
            continue;
        };
        let is_json = rules.format(path) == Some(Format::Json) || path.as_str().ends_with(".json");
        size += if is_json { bytes.len() } else { 0 };
        if size > limit {
            let message = format!("the JSON artifacts are larger than the {limit} bytes that a selection can be shown");
            let hint = "declare fewer or smaller JSON artifacts, or no selection";
            findings.push(Finding::error(Code::OutputTooLarge, message).hint(hint));
            break;
        }
        let value = if is_json { json::parse(&bytes).unwrap_or(Value::Null) } else { Value::Null };
        shown.insert(
            path.as_str().to_owned(),
            json!({
                "path": path.as_str(), "sha256": about.sha256, "bytes": about.bytes, "objectives": about.objectives,
                "authorities": about.authorities, "json": value,
                "findings": said.remove(path.as_str()).unwrap_or_default(),
            }),
        );
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut about = to_value(metadata);
    if let Some(members) = about.as_object_mut() {
        members.remove("artifacts");
    }
    Ok(json!({ "artifacts": shown, "metadata": about }))
}

/// Everything is kept: the selection of a pipeline that declares none.
pub fn keep_all<'a>(artifacts: impl IntoIterator<Item = (&'a RepoPath, Digest)>) -> Selection {
    let keep =
        |(path, sha256): (&RepoPath, Digest)| Selected { path: path.clone(), sha256, keep: true, reason: NO_CRITERIA.into() };
    selection(None, artifacts.into_iter().map(keep).collect())
}

/// Applies the policy's answer: `{path: {"keep": bool, "reason": string}}`, or the set of the accepted paths, and nothing else. In an
/// object every artifact must have exactly one verdict with a reason; a verdict on anything else is refused, since it was meant for something.
pub fn select<'a>(
    artifacts: impl IntoIterator<Item = (&'a RepoPath, Digest)>,
    query: &str,
    verdicts: &Value,
) -> Result<Selection, Vec<Finding>> {
    if let Some(accepted) = verdicts.as_array() {
        return listed(artifacts, query, accepted);
    }
    let Some(verdicts) = verdicts.as_object() else {
        let message = format!("{} is not an object of verdicts", printable(query));
        let finding = Finding::error(Code::VerdictMalformed, message).hint(SHAPE);
        return Err(vec![finding.expected("a set of paths, or {path: {\"keep\": bool, \"reason\": string}}", kind(verdicts))]);
    };
    let artifacts: BTreeMap<&RepoPath, Digest> = artifacts.into_iter().collect();
    let (mut selected, mut findings) = (Vec::new(), Vec::new());
    for (path, sha256) in &artifacts {
        match verdicts.get(path.as_str()).map(|verdict| read(path, verdict)) {
            Some(Ok((keep, reason))) => selected.push(Selected { path: (*path).clone(), sha256: *sha256, keep, reason }),
            Some(Err(finding)) => findings.push(finding),
            None => {
                let message = format!("{} says nothing about the artifact {path}", printable(query));
                findings.push(Finding::error(Code::VerdictMissing, message).at(path).hint(SHAPE));
            }
        }
    }
    let known: BTreeSet<&str> = artifacts.keys().map(|path| path.as_str()).collect();
    for path in verdicts.keys().filter(|path| !known.contains(path.as_str())) {
        let path = printable(path);
        let message = format!("{} judges {path}, which is no artifact of the run", printable(query));
        findings
            .push(Finding::error(Code::VerdictUnknown, message).at(path).hint("judge exactly the members of input.artifacts"));
    }
    if findings.is_empty() { Ok(selection(Some(query.to_owned()), selected)) } else { Err(findings) }
}

/// Applies an answer that is the set of the accepted paths: what is not in it is pruned.
fn listed<'a>(
    artifacts: impl IntoIterator<Item = (&'a RepoPath, Digest)>,
    query: &str,
    accepted: &[Value],
) -> Result<Selection, Vec<Finding>> {
    let artifacts: BTreeMap<&RepoPath, Digest> = artifacts.into_iter().collect();
    let known: BTreeSet<&str> = artifacts.keys().map(|path| path.as_str()).collect();
    let mut findings = Vec::new();
    for item in accepted {
        match item.as_str() {
            Some(path) if known.contains(path) => {}
            Some(path) => {
                let path = printable(path);
                let message = format!("{} accepts {path}, which is no artifact of the run", printable(query));
                let finding = Finding::error(Code::VerdictUnknown, message).at(path);
                findings.push(finding.hint("accept members of input.artifacts only"));
            }
            None => {
                let message = format!("{} is a set of something else than paths", printable(query));
                findings.push(Finding::error(Code::VerdictMalformed, message).expected("a path", kind(item)).hint(SHAPE));
            }
        }
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let accepted: BTreeSet<&str> = accepted.iter().filter_map(Value::as_str).collect();
    let judged = artifacts.into_iter().map(|(path, sha256)| {
        let keep = accepted.contains(path.as_str());
        let reason = format!("{} {}", printable(query), if keep { "accepts it" } else { "does not accept it" });
        Selected { path: path.clone(), sha256, keep, reason }
    });
    Ok(selection(Some(query.to_owned()), judged.collect()))
}

/// Applies the pipeline's own rules: the first that matches an artifact is its verdict. An artifact that no rule matches is refused.
pub fn by_rules<'a>(
    artifacts: impl IntoIterator<Item = (&'a RepoPath, Digest)>,
    rules: &[SelectRule],
) -> Result<Selection, Vec<Finding>> {
    let (mut compiled, mut findings) = (Vec::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate() {
        match pattern(&rule.paths) {
            Ok(globs) => compiled.push((globs, rule)),
            Err(finding) => findings.push(Finding { pointer: Some(format!("/select/rules/{index}/paths")), ..finding }),
        }
    }
    // With a rule missing, others would judge what it was meant for.
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut selected = Vec::new();
    for (path, sha256) in artifacts {
        match compiled.iter().find(|(globs, _)| globs.matches(path)) {
            Some((_, rule)) => {
                selected.push(Selected { path: path.clone(), sha256, keep: rule.keep, reason: printable(&rule.reason) });
            }
            None => {
                let message = format!("no rule of select.rules matches the artifact {path}");
                let hint = format!("add a rule to {PIPELINE} that keeps or prunes it");
                findings.push(Finding::error(Code::VerdictMissing, message).at(path).hint(hint));
            }
        }
    }
    if findings.is_empty() { Ok(selection(None, selected)) } else { Err(findings) }
}

const SHAPE: &str = "every member of input.artifacts needs a verdict: {\"keep\": true or false, \"reason\": \"…\"}";

fn read(path: &RepoPath, verdict: &Value) -> Result<(bool, String), Finding> {
    let wrong = |what: &str| {
        let message = format!("the verdict on {path} cannot be used: {what}");
        Finding::error(Code::VerdictMalformed, message).at(path).hint(SHAPE)
    };
    let Some(members) = verdict.as_object() else { return Err(wrong("it is not an object")) };
    if let Some(other) = members.keys().find(|name| !matches!(name.as_str(), "keep" | "reason")) {
        return Err(wrong(&format!("it has the unknown member {}", printable(other))));
    }
    let Some(keep) = members.get("keep").and_then(Value::as_bool) else { return Err(wrong("keep is not true or false")) };
    let Some(reason) = members.get("reason").and_then(Value::as_str) else { return Err(wrong("it has no reason")) };
    if reason.trim().is_empty() {
        return Err(wrong("its reason says nothing"));
    }
    if reason.chars().count() > MAX_REASON {
        return Err(wrong(&format!("its reason is longer than {MAX_REASON} characters")));
    }
    Ok((keep, printable(reason)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn selection(query: Option<String>, mut artifacts: Vec<Selected>) -> Selection {
    artifacts.sort_by(|a, b| a.path.cmp(&b.path));
    Selection { schema_version: SCHEMA_VERSION.into(), phase: Phase::Select, query, artifacts }
}

#[cfg(test)]
mod tests {
    use super::super::Files;
    use super::super::testing::{Broken, files, path, told};
    use super::*;
    use crate::document::executor::ExecutorKind;
    use crate::document::metadata::ExecutorIdentity;
    use crate::document::pipeline::{NormalizeRule, Pipeline};
    use crate::document::schema::{Kind, validate};

    fn set() -> Vec<(RepoPath, Digest)> {
        ["b", "a"].map(|at| (path(at), Digest::of(at.as_bytes()))).to_vec()
    }

    fn judged(verdicts: Value) -> Result<Selection, Vec<String>> {
        let set = set();
        let run = |set: &[(RepoPath, Digest)]| select(set.iter().map(|(p, d)| (p, *d)), "data.select.accept", &verdicts);
        let selection = run(&set).map_err(|findings| told(&findings))?;
        let mut reversed = set.clone();
        reversed.reverse();
        assert_eq!(run(&reversed).unwrap(), selection, "the order of the artifacts matters");
        let bytes = json::emit(&selection);
        assert_eq!(validate(Kind::Selection, "s", &bytes, &json::parse(&bytes).unwrap()), []);
        Ok(selection)
    }

    #[test]
    fn every_artifact_gets_one_verdict() {
        let selection =
            judged(json!({ "b": { "keep": true, "reason": "good" }, "a": { "keep": false, "reason": "bad\u{1b}" } })).unwrap();
        let said: Vec<_> = selection.artifacts.iter().map(|s| (s.path.as_str(), s.keep, s.reason.as_str())).collect();
        assert_eq!(said, [("a", false, "bad\\u{1b}"), ("b", true, "good")]);
        assert_eq!(selection.kept().map(|s| s.path.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(selection.artifacts[1].sha256, Digest::of(b"b"));
        assert_eq!(selection.query.as_deref(), Some("data.select.accept"));
    }

    #[test]
    fn anything_but_one_verdict_for_each_is_refused() {
        let good = json!({ "keep": true, "reason": "r" });
        let one = |verdict: Value| json!({ "a": verdict, "b": good });
        let cases: &[(Value, &[&str])] = &[
            (json!(true), &["verdict-malformed -"]),
            (json!([["a"]]), &["verdict-malformed -"]),
            (json!(["a", "c"]), &["verdict-unknown c"]),
            (json!("a"), &["verdict-malformed -"]),
            (Value::Null, &["verdict-malformed -"]),
            (json!({}), &["verdict-missing a", "verdict-missing b"]),
            (json!({ "a": good }), &["verdict-missing b"]),
            (json!({ "a": good, "b": good, "../c": good }), &["verdict-unknown ../c"]),
            (one(json!(true)), &["verdict-malformed a"]),
            (one(json!({ "keep": "true", "reason": "r" })), &["verdict-malformed a"]),
            (one(json!({ "keep": 1, "reason": "r" })), &["verdict-malformed a"]),
            (one(json!({ "reason": "r" })), &["verdict-malformed a"]),
            (one(json!({ "keep": true })), &["verdict-malformed a"]),
            (one(json!({ "keep": true, "reason": " \n" })), &["verdict-malformed a"]),
            (one(json!({ "keep": true, "reason": "r".repeat(201) })), &["verdict-malformed a"]),
            (one(json!({ "keep": true, "reason": "r", "more": 1 })), &["verdict-malformed a"]),
        ];
        for (verdicts, wanted) in cases {
            assert_eq!(judged(verdicts.clone()).unwrap_err(), *wanted, "{verdicts}");
        }
        assert!(judged(one(json!({ "keep": true, "reason": "r".repeat(200) }))).is_ok());
    }

    #[test]
    fn a_set_of_paths_accepts_its_members() {
        let (a, b) = (path("a"), path("b"));
        let all = [(&a, Digest::of(b"a")), (&b, Digest::of(b"b"))];
        for (accepted, wanted) in [(json!(["a"]), [true, false]), (json!([]), [false, false]), (json!(["b", "a"]), [true, true])]
        {
            let selection = select(all, "data.select.accept", &accepted).unwrap();
            let kept: Vec<bool> = selection.artifacts.iter().map(|a| a.keep).collect();
            assert_eq!(kept, wanted, "{accepted}");
            assert!(selection.artifacts.iter().all(|a| a.reason.starts_with("data.select.accept ")));
        }
    }

    #[test]
    fn the_first_rule_that_matches_is_the_verdict() {
        let run = |rules: &[(&str, bool, &str)]| {
            let rule = |(paths, keep, reason): &(&str, bool, &str)| SelectRule {
                paths: (*paths).into(),
                keep: *keep,
                reason: (*reason).into(),
            };
            let rules: Vec<_> = rules.iter().map(rule).collect();
            let selection = by_rules(set().iter().map(|(p, d)| (p, *d)), &rules).map_err(|findings| told(&findings))?;
            let said = selection.artifacts.iter().map(|s| format!("{} {} {}", s.path, s.keep, s.reason));
            Ok::<_, Vec<String>>(said.collect::<Vec<_>>())
        };
        assert_eq!(run(&[("a", false, "x"), ("*", true, "y")]).unwrap(), ["a false x", "b true y"]);
        assert_eq!(run(&[("*", true, "y"), ("a", false, "x")]).unwrap(), ["a true y", "b true y"]);
        assert_eq!(run(&[("a", false, "x")]).unwrap_err(), ["verdict-missing b"]);
        assert_eq!(run(&[("[", false, "x"), ("*", true, "y")]).unwrap_err(), ["pattern-invalid control/pipeline.json"]);
    }

    #[test]
    fn a_pipeline_selects_by_a_query_or_by_rules() {
        let refused = |select: Value| {
            let pipeline = json!({ "schema_version": "0.1.0", "select": select,
                "gen": { "generated": ["a"], "artifacts": [{ "path": "a", "objectives": ["O"] }] } });
            let bytes = json::pretty(&pipeline);
            let read = crate::document::schema::load::<Pipeline>(Kind::Pipeline, &path("p"), &bytes);
            read.map(|_| ()).map_err(|findings| findings.into_iter().map(|f| f.pointer.unwrap_or_default()).collect::<Vec<_>>())
        };
        let rule = json!({ "paths": "**", "keep": true, "reason": "r" });
        assert_eq!(refused(json!({ "query": "data.select.accept" })), Ok(()));
        assert_eq!(refused(json!({ "rules": [rule] })), Ok(()));
        for select in [json!({}), json!({ "query": "data.select.accept", "rules": [rule] })] {
            assert_eq!(refused(select), Err(vec!["/select".into()]));
        }
        let silent = json!({ "rules": [{ "paths": "**", "keep": true, "reason": " " }] });
        assert_eq!(refused(silent), Err(vec!["/select/rules/0/reason".into()]));
    }

    #[test]
    fn without_criteria_everything_is_kept() {
        let set = set();
        let selection = keep_all(set.iter().map(|(p, d)| (p, *d)));
        assert_eq!(selection.kept().map(|s| s.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(selection.artifacts.iter().all(|s| s.reason == NO_CRITERIA));
        assert_eq!(selection.query, None);
    }

    fn asked(artifacts: &dyn Artifacts, about: &Files) -> Result<Value, Vec<String>> {
        asked_within(MAX_SHOWN_BYTES, artifacts, about)
    }

    fn asked_within(limit: usize, artifacts: &dyn Artifacts, about: &Files) -> Result<Value, Vec<String>> {
        let rules = Rules::new(&[NormalizeRule { paths: "x.data".into(), format: Format::Json }]).unwrap();
        let about = about.iter().map(|(path, bytes)| ArtifactMetadata {
            path: path.clone(),
            sha256: Digest::of(bytes),
            bytes: bytes.len() as u64,
            generated_sha256: Digest::of(b""),
            objectives: vec!["O".into()],
            authorities: vec!["A".into()],
        });
        let hash = Digest::of(b"");
        let metadata = Metadata {
            schema_version: SCHEMA_VERSION.into(),
            phase: Phase::Struct,
            pre_gen_capsule_hash: hash,
            policy_bundle_hash: hash,
            inputs_manifest_hash: hash,
            executor: ExecutorIdentity {
                kind: ExecutorKind::Builtin,
                version: "1".into(),
                executor_key: hash,
                runner_version: "1".into(),
            },
            tool_versions: BTreeMap::new(),
            authorities: BTreeMap::new(),
            artifacts: about.collect(),
        };
        let report = CheckReport {
            schema_version: SCHEMA_VERSION.into(),
            phase: Phase::Check,
            passed: true,
            artifacts: 1,
            artifact_set_hash: hash,
            findings: vec![Finding::warning(Code::SchemaUnused, "w").at("x.data"), Finding::warning(Code::SchemaUnused, "w")],
        };
        question_within(limit, artifacts, &rules, &metadata, &report).map_err(|findings| told(&findings))
    }

    #[test]
    fn the_policy_sees_content_metadata_and_findings() {
        let set = files(&[("x.data", "[1]"), ("y.json", "{\"a\": 2}"), ("z.json", "{"), ("t.md", "7")]);
        let value = asked(&set, &set).unwrap();
        let shown = &value["artifacts"];
        assert_eq!(shown.as_object().unwrap().len(), 4);
        assert_eq!(shown["x.data"]["json"], json!([1]));
        assert_eq!(shown["x.data"]["findings"][0]["code"], "schema-unused");
        assert_eq!(shown["y.json"]["json"]["a"], 2);
        assert_eq!(shown["y.json"]["findings"], json!([]));
        assert_eq!((&shown["z.json"]["json"], &shown["t.md"]["json"]), (&Value::Null, &Value::Null));
        assert_eq!((&shown["t.md"]["bytes"], &shown["t.md"]["objectives"]), (&json!(1), &json!(["O"])));
        assert_eq!(value["metadata"]["executor"]["kind"], "builtin");
        assert!(value["metadata"].get("artifacts").is_none());
    }

    #[test]
    fn the_policy_is_not_asked_about_what_nobody_vouches_for() {
        let set = files(&[("a", "1")]);
        assert_eq!(asked(&set, &files(&[])).unwrap_err(), ["provenance-missing a"]);
        assert_eq!(asked(&set, &files(&[("a", "2")])).unwrap_err(), ["provenance-missing a"]);
        let json = files(&[("a.json", "{}"), ("b", "text"), ("c.json", "[]")]);
        assert!(asked_within(4, &json, &json).is_ok());
        assert_eq!(asked_within(3, &json, &json).unwrap_err(), ["output-too-large -"]);
        assert_eq!(asked(&Broken(path("a")), &set).unwrap_err(), ["artifact-unreadable a"]);
    }
}
