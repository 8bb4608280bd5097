//! The mechanical half of the control kernel: the dependency closure artifact → objective → authority is whole, ids are
//! unique, and nothing is both an input and generated.

use std::collections::{BTreeMap, BTreeSet};

use super::authority::OBJECTIVES_PATH;
use super::paths::{PIPELINE_PATH, TEMPLATES_FOLDER, is_always_read, reserved};
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::graph::{DependencyGraph, Edge, Node};
use crate::document::objectives::Objective;
use crate::document::path::RepoPath;
use crate::document::pipeline::Pipeline;

/// What the closure is checked over.
pub struct Closure<'a> {
    /// The authorities.
    pub ledger: &'a AuthorityLedger,
    /// The objectives and the text they were read from.
    pub objectives: (&'a [Objective], &'a [u8]),
    /// The declaration and the text it was read from.
    pub pipeline: (&'a Pipeline, &'a [u8]),
    /// Every file of the snapshot.
    pub files: &'a BTreeSet<RepoPath>,
    /// Whether artifacts need a template: whether the built-in generator executes.
    pub needs_templates: bool,
}

/// Everything that stands against the closure.
pub fn check(closure: &Closure) -> Vec<Finding> {
    let mut findings = check_objectives(closure);
    findings.extend(check_artifacts(closure));
    findings.extend(check_disjoint(closure));
    findings
}

fn check_objectives(closure: &Closure) -> Vec<Finding> {
    let (objectives, text) = closure.objectives;
    let mut findings = Vec::new();
    let mut ids = BTreeSet::new();
    for (index, objective) in objectives.iter().enumerate() {
        if !ids.insert(objective.id.as_str()) {
            let finding = Finding::error(Code::ObjectiveIdDuplicate, format!("two objectives have the id {}", objective.id));
            findings.push(
                finding.at(OBJECTIVES_PATH).pointing(format!("/{index}/id"), text).hint("give each objective an id of its own"),
            );
        }
        let authority = &objective.source.authority_id;
        if closure.ledger.find(authority).is_none() {
            let message =
                format!("the objective {} draws from {authority}, which the authority ledger does not have", objective.id);
            let finding = Finding::error(Code::ObjectiveAuthorityUnknown, message).at(OBJECTIVES_PATH);
            let known =
                closure.ledger.authority_set.iter().map(|a| a.authority_id.as_str()).take(8).collect::<Vec<_>>().join(", ");
            let finding = finding.pointing(format!("/{index}/source/authority_id"), text);
            findings.push(
                finding
                    .expected(format!("one of: {known}"), authority)
                    .hint("name a locked authority, or add this one: git cbia authority add <file>"),
            );
        }
    }
    findings
}

fn check_artifacts(closure: &Closure) -> Vec<Finding> {
    let (pipeline, text) = closure.pipeline;
    let mut findings = Vec::new();
    let mut push = |code, pointer: String, message: String, hint: String| {
        findings.push(Finding::error(code, message).at(PIPELINE_PATH).pointing(pointer, text).hint(hint));
    };
    let known: BTreeSet<&str> = closure.objectives.0.iter().map(|o| o.id.as_str()).collect();
    let generated = match Globs::new(&pipeline.r#gen.generated) {
        Ok(globs) => globs,
        Err(error) => {
            push(Code::PatternInvalid, "/gen/generated".into(), error.to_string(), "mend the pattern".into());
            return findings;
        }
    };
    let authorities: BTreeSet<RepoPath> = closure.ledger.authority_set.iter().filter_map(|a| a.file()).collect();
    let mut folded: BTreeMap<String, &RepoPath> = BTreeMap::new();
    for (index, artifact) in pipeline.r#gen.artifacts.iter().enumerate() {
        let (path, at) = (&artifact.path, |member: &str| format!("/gen/artifacts/{index}/{member}"));
        match folded.insert(path.fold_key(), path) {
            Some(other) if other == path => {
                push(
                    Code::ArtifactDuplicate,
                    at("path"),
                    format!("two artifacts have the path {path}"),
                    "declare each artifact once".into(),
                );
            }
            Some(other) => {
                let message = format!("{path} and {other} are one file on a case-insensitive file system");
                push(Code::PathCollision, at("path"), message, "rename one of them".into());
            }
            None => {}
        }
        if let Some(why) = reserved(path) {
            push(
                Code::ArtifactPathReserved,
                at("path"),
                format!("an artifact cannot lie at {path}: {why}"),
                "choose another folder, such as artifacts/".into(),
            );
        } else if !generated.matches(path) {
            let patterns = pipeline.r#gen.generated.join(" ");
            let message = format!("the artifact {path} lies outside gen.generated ({patterns})");
            push(Code::ArtifactNotGenerated, at("path"), message, "widen gen.generated or move the artifact".into());
        }
        if authorities.contains(path) {
            let message = format!("{path} is an authority and an artifact: what is generated cannot be its own source");
            push(Code::ArtifactIsAuthority, at("path"), message, "generate to another path".into());
        } else if closure.files.contains(path) {
            let message = format!("{path} is an input of the run and an artifact of it");
            push(Code::ArtifactIsInput, at("path"), message, "narrow inputs, or generate to another path".into());
        }
        if artifact.objectives.is_empty() {
            let message = format!("the artifact {path} names no objective, so nothing says why it may exist");
            push(Code::ArtifactObjectivesEmpty, at("objectives"), message, "name the objectives it fulfils".into());
        }
        for (o, id) in artifact.objectives.iter().enumerate() {
            if !known.contains(id.as_str()) {
                let message = format!("the artifact {path} names the objective {id}, which {OBJECTIVES_PATH} does not have");
                push(
                    Code::ArtifactObjectiveUnknown,
                    at(&format!("objectives/{o}")),
                    message,
                    format!("add {id} to {OBJECTIVES_PATH}, or name another"),
                );
            }
        }
        match &artifact.template {
            None if closure.needs_templates => {
                let message = format!("the artifact {path} has no template, and the built-in generator needs one");
                push(Code::TemplateMissing, at("path"), message, format!("add \"template\": \"{TEMPLATES_FOLDER}/<name>\""));
            }
            Some(template) if !closure.files.contains(template) => {
                let message = format!("the template {template} of the artifact {path} is missing or ignored by git");
                push(Code::TemplateMissing, at("template"), message, format!("write {template}"));
            }
            _ => {}
        }
    }
    for path in folded.values() {
        let mut folder = path.fold_key();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if let Some(other) = folded.get(parent) {
                let message = format!("{other} cannot be a file and the folder of {path}");
                push(Code::PathCollision, "/gen/artifacts".into(), message, "rename one of them".into());
            }
            folder = parent.to_owned();
        }
    }
    findings
}

/// Inputs and generated paths must not overlap: what a run writes would change what the next one reads.
fn check_disjoint(closure: &Closure) -> Vec<Finding> {
    let (pipeline, text) = closure.pipeline;
    let (Ok(generated), Ok(inputs)) = (Globs::new(&pipeline.r#gen.generated), Globs::new(&pipeline.inputs)) else {
        let finding = Finding::error(Code::PatternInvalid, "a pattern of inputs or gen.generated cannot be used");
        return vec![finding.at(PIPELINE_PATH).pointing("/inputs", text).hint("mend the pattern")];
    };
    let authorities: BTreeSet<RepoPath> = closure.ledger.authority_set.iter().filter_map(|a| a.file()).collect();
    let mut findings = Vec::new();
    for path in closure.files.iter().filter(|path| generated.matches(path) && !authorities.contains(*path)) {
        let why = if is_always_read(path) { "every run reads it" } else { "inputs names it" };
        let message =
            format!("{path} lies where files are generated ({}), and {why}", generated.matching(path).unwrap_or_default());
        let finding = Finding::error(Code::InputIsGenerated, message).at(PIPELINE_PATH).pointing("/gen/generated", text);
        findings.push(finding.hint("make inputs and gen.generated disjoint"));
    }
    for artifact in pipeline.r#gen.artifacts.iter().filter(|a| inputs.matches(&a.path) && !closure.files.contains(&a.path)) {
        let message = format!(
            "the artifact {} matches the input pattern {}",
            artifact.path,
            inputs.matching(&artifact.path).unwrap_or_default()
        );
        let finding = Finding::error(Code::ArtifactIsInput, message).at(PIPELINE_PATH).pointing("/inputs", text);
        findings.push(finding.hint("narrow inputs, or generate to another path"));
    }
    findings
}

/// The dependency graph of a repository that declares none: artifact → objective → authority, each id with its kind before it.
pub fn derived_graph(ledger: &AuthorityLedger, objectives: &[Objective], pipeline: &Pipeline) -> DependencyGraph {
    let node = |id: String| Node { id, more: Default::default() };
    let edge = |from: String, to: String| Edge { from, to, more: Default::default() };
    let (mut nodes, mut edges) = (BTreeSet::new(), BTreeSet::new());
    nodes.extend(ledger.authority_set.iter().map(|a| format!("authority:{}", a.authority_id)));
    for objective in objectives {
        nodes.insert(format!("objective:{}", objective.id));
        edges.insert((format!("objective:{}", objective.id), format!("authority:{}", objective.source.authority_id)));
    }
    for artifact in &pipeline.r#gen.artifacts {
        let id = format!("artifact:{}", artifact.path.as_str());
        edges.extend(artifact.objectives.iter().map(|o| (id.clone(), format!("objective:{o}"))));
        nodes.insert(id);
    }
    DependencyGraph {
        schema_version: Some(crate::document::SCHEMA_VERSION.into()),
        nodes: nodes.into_iter().map(node).collect(),
        edges: edges.into_iter().map(|(from, to)| edge(from, to)).collect(),
        more: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::gate::testing::told;

    fn run(pipeline: Value, objectives: Value, files: &[&str]) -> Vec<String> {
        let ledger = json!({"schema_version": "0.1.0", "frozen": true, "authority_set": [
            {"authority_id": "A", "source": {"kind": "file", "locator": "src/a.md"}}]});
        let (pipeline_text, objectives_text) = (pipeline.to_string(), objectives.to_string());
        let mut all: BTreeSet<RepoPath> = files.iter().map(|f| f.parse().unwrap()).collect();
        all.extend(["src/a.md", "control/templates/t.j2"].map(|f| f.parse().unwrap()));
        let objectives: Vec<Objective> = serde_json::from_value(objectives).unwrap();
        let pipeline = serde_json::from_value(pipeline).unwrap();
        told(&check(&Closure {
            ledger: &serde_json::from_value(ledger).unwrap(),
            objectives: (&objectives, objectives_text.as_bytes()),
            pipeline: (&pipeline, pipeline_text.as_bytes()),
            files: &all,
            needs_templates: true,
        }))
    }

    fn objective(id: &str, authority: &str) -> Value {
        json!({"id": id, "statement": "s", "source": {"authority_id": authority}})
    }

    fn pipeline(artifacts: Value) -> Value {
        json!({"schema_version": "0.1.0", "inputs": ["in/**"], "gen": {"generated": ["out/**"], "artifacts": artifacts}})
    }

    fn artifact(path: &str) -> Value {
        json!({"path": path, "objectives": ["O"], "template": "control/templates/t.j2"})
    }

    #[test]
    fn a_whole_closure_passes() {
        let got = run(pipeline(json!([artifact("out/a"), artifact("out/b/c")])), json!([objective("O", "A")]), &["in/x"]);
        assert_eq!(got, Vec::<String>::new());
    }

    #[test]
    fn each_breach_has_its_own_code() {
        let one = |artifact: Value| pipeline(json!([artifact]));
        let objectives = || json!([objective("O", "A")]);
        let with = |member: &str, value: Value| {
            let mut artifact = artifact("out/a");
            if value.is_null() {
                artifact.as_object_mut().unwrap().remove(member)
            } else {
                artifact.as_object_mut().unwrap().insert(member.into(), value)
            };
            one(artifact)
        };
        let cases: Vec<(Value, Value, Vec<&str>, Vec<&str>)> = vec![
            (
                one(artifact("out/a")),
                json!([objective("O", "A"), objective("O", "A")]),
                vec![],
                vec!["objective-id-duplicate /1/id"],
            ),
            (
                one(artifact("out/a")),
                json!([objective("O", "Z")]),
                vec![],
                vec!["objective-authority-unknown /0/source/authority_id"],
            ),
            (with("objectives", json!([])), objectives(), vec![], vec!["artifact-objectives-empty /gen/artifacts/0/objectives"]),
            (
                with("objectives", json!(["P"])),
                objectives(),
                vec![],
                vec!["artifact-objective-unknown /gen/artifacts/0/objectives/0"],
            ),
            (with("template", Value::Null), objectives(), vec![], vec!["template-missing /gen/artifacts/0/path"]),
            (
                with("template", json!("control/templates/u.j2")),
                objectives(),
                vec![],
                vec!["template-missing /gen/artifacts/0/template"],
            ),
            (with("path", json!("docs/a")), objectives(), vec![], vec!["artifact-not-generated /gen/artifacts/0/path"]),
            (with("path", json!("opa/a")), objectives(), vec![], vec!["artifact-path-reserved /gen/artifacts/0/path"]),
            (
                pipeline(json!([artifact("out/a"), artifact("out/a")])),
                objectives(),
                vec![],
                vec!["artifact-duplicate /gen/artifacts/1/path"],
            ),
            (
                pipeline(json!([artifact("out/a"), artifact("out/A")])),
                objectives(),
                vec![],
                vec!["path-collision /gen/artifacts/1/path"],
            ),
            (
                pipeline(json!([artifact("out/a"), artifact("out/a/b")])),
                objectives(),
                vec![],
                vec!["path-collision /gen/artifacts"],
            ),
            (one(artifact("out/a")), objectives(), vec!["out/x"], vec!["input-is-generated /gen/generated"]),
        ];
        for (pipeline, objectives, files, wanted) in cases {
            assert_eq!(run(pipeline.clone(), objectives, &files), wanted, "{pipeline}");
        }
        let mut overlapping = one(artifact("out/a"));
        overlapping["inputs"] = json!(["**"]);
        assert_eq!(run(overlapping, objectives(), &[]), ["artifact-is-input /inputs"]);
        let mut authority = one(artifact("src/a.md"));
        authority["gen"]["generated"] = json!(["src/**"]);
        assert_eq!(run(authority, objectives(), &[]), ["artifact-is-authority /gen/artifacts/0/path"]);
    }

    #[test]
    fn the_derived_graph_is_the_closure() {
        let pipeline = serde_json::from_value(pipeline(json!([artifact("out/a")]))).unwrap();
        let objectives = serde_json::from_value::<Vec<Objective>>(json!([objective("O", "A")])).unwrap();
        let ledger =
            serde_json::from_value(json!({"schema_version": "0.1.0", "authority_set": [{"authority_id": "A"}]})).unwrap();
        let graph = crate::document::json::to_value(&derived_graph(&ledger, &objectives, &pipeline));
        let wanted = json!({"schema_version": "0.1.0",
            "nodes": [{"id": "artifact:out/a"}, {"id": "authority:A"}, {"id": "objective:O"}],
            "edges": [{"from": "artifact:out/a", "to": "objective:O"}, {"from": "objective:O", "to": "authority:A"}]});
        assert_eq!(graph, wanted);
    }
}
