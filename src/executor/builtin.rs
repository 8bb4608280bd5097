//! The built-in generator: one MiniJinja template per artifact, over its objectives and the text of their authorities.
//!
//! A template sees `artifact`, `objectives`, `authorities` and `inputs`, and nothing else: no files, no environment, no clock. An
//! undefined name is an error. Authorities are those of the artifact's own objectives, so that what the run ledger says an
//! artifact was made from is all it could have been made from.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::value::Value as Jinja;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Value, json};

use crate::document::finding::{Code, Finding};
use crate::document::path::{RepoPath, printable};
use crate::document::pipeline::Artifact;

/// The generator's version, part of every key that depends on it.
pub const GENERATOR_VERSION: &str = "minijinja-2.24.0";
/// The largest artifact, in bytes.
pub const MAX_ARTIFACT_BYTES: usize = 64 << 20;
/// Template instructions that one artifact may take.
const FUEL: u64 = 50_000_000;

/// An authority, as templates see it.
pub struct AuthorityText<'a> {
    /// What a person calls it.
    pub title: Option<&'a str>,
    /// Its path.
    pub locator: &'a str,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// All that the generator is given.
pub struct Job<'a> {
    /// What to produce, in declared order.
    pub artifacts: &'a [Artifact],
    /// Objectives by id, with every member they have.
    pub objectives: &'a BTreeMap<&'a str, &'a Value>,
    /// Verified authorities by id.
    pub authorities: &'a BTreeMap<&'a str, AuthorityText<'a>>,
    /// What the `inputs` patterns matched.
    pub inputs: &'a BTreeMap<RepoPath, Vec<u8>>,
    /// Templates by path: the declared ones, and all that they may include.
    pub templates: &'a BTreeMap<RepoPath, Vec<u8>>,
}

/// Renders every artifact. Either all of them, or every finding.
pub fn generate(job: &Job) -> Result<BTreeMap<RepoPath, Vec<u8>>, Vec<Finding>> {
    let environment = environment(job.templates)?;
    let inputs =
        Jinja::from_serialize(job.inputs.iter().map(|(path, bytes)| (path.as_str(), text(bytes))).collect::<BTreeMap<_, _>>());
    let objectives: BTreeMap<&str, Jinja> =
        job.objectives.iter().map(|(id, value)| (*id, Jinja::from_serialize(value))).collect();
    let authority = |a: &AuthorityText| {
        Jinja::from_serialize(json!({"title": a.title, "locator": a.locator, "sha256": a.sha256, "text": text(a.bytes)}))
    };
    let authorities: BTreeMap<&str, Jinja> = job.authorities.iter().map(|(id, a)| (*id, authority(a))).collect();
    let (mut produced, mut findings) = (BTreeMap::new(), Vec::new());
    for artifact in job.artifacts {
        let Some(template) = &artifact.template else {
            findings.push(Finding::error(Code::TemplateMissing, format!("the artifact {} has no template", artifact.path)));
            continue;
        };
        let drawn: BTreeMap<&str, Jinja> = artifact
            .objectives
            .iter()
            .filter_map(|id| job.objectives.get(id.as_str())?.pointer("/source/authority_id")?.as_str())
            .filter_map(|id| Some((id, authorities.get(id)?.clone())))
            .collect();
        let own: Vec<Jinja> = artifact.objectives.iter().filter_map(|id| objectives.get(id.as_str()).cloned()).collect();
        let context = minijinja::context! {
            artifact => minijinja::context! { path => artifact.path.as_str() },
            objectives => own,
            authorities => Jinja::from_serialize(&drawn),
            inputs => inputs.clone(),
        };
        let mut output = Bounded(Vec::new());
        let rendered =
            environment.get_template(template.as_str()).and_then(|template| template.render_captured_to(context, &mut output));
        match rendered {
            Ok(_) => drop(produced.insert(artifact.path.clone(), output.0)),
            Err(error) => {
                let what = format!("the artifact {} could not be generated", artifact.path);
                findings.push(failure(&what, template, &error));
            }
        }
    }
    if findings.is_empty() { Ok(produced) } else { Err(findings) }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn environment(templates: &BTreeMap<RepoPath, Vec<u8>>) -> Result<Environment<'_>, Vec<Finding>> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(100);
    environment.remove_global("debug");
    environment.add_filter("from_json", from_json);
    environment.add_filter("to_json", to_json);
    let mut findings = Vec::new();
    for (path, bytes) in templates {
        let Some(source) = text(bytes) else {
            findings.push(
                Finding::error(Code::TemplateFailed, format!("the template {path} is not UTF-8 text"))
                    .at(path)
                    .hint("save it as UTF-8"),
            );
            continue;
        };
        if let Err(error) = environment.add_template(path.as_str(), source) {
            findings.push(failure(&format!("the template {path} cannot be parsed"), path, &error));
        }
    }
    if findings.is_empty() { Ok(environment) } else { Err(findings) }
}

/// `text | from_json`: strict JSON as a value, so that a template can draw from a JSON authority.
fn from_json(text: &str) -> Result<Jinja, Error> {
    let value =
        crate::document::json::parse(text.as_bytes()).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.reason))?;
    Ok(Jinja::from_serialize(value))
}

/// `value | to_json`: JSON in the normal form of emitted documents, without the final newline.
fn to_json(value: Jinja) -> Result<String, Error> {
    let value = serde_json::to_value(&value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(format!("{value:#}"))
}

fn failure(what: &str, template: &RepoPath, error: &Error) -> Finding {
    let mut cause = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        cause = format!("{cause}: {inner}");
        source = inner.source();
    }
    let too_large = cause.contains(TOO_LARGE);
    let code = if too_large { Code::OutputTooLarge } else { Code::TemplateFailed };
    let place = error.name().unwrap_or(template.as_str()).to_owned();
    let message = format!("{what}: {}", printable(&cause));
    let finding = Finding::error(code, message).at(&place);
    let finding = match error.line() {
        Some(line) => finding.on(line as u64, 1),
        None => finding,
    };
    match error.kind() {
        ErrorKind::UndefinedError => {
            finding.hint("a template may use artifact, objectives, authorities and inputs; every name must be defined")
        }
        ErrorKind::OutOfFuel => {
            finding.hint(format!("one artifact may take {FUEL} template instructions: split it, or loop less"))
        }
        _ => finding.hint(format!("mend {place}")),
    }
}

const TOO_LARGE: &str = "the artifact grows beyond the largest that is kept";

/// A writer that ends before it fills the memory.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_ARTIFACT_BYTES {
            return Err(io::Error::other(format!("{TOO_LARGE}, {MAX_ARTIFACT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, Vec<(String, Option<u64>)>> {
        let artifacts = [Artifact {
            path: "out/a".parse().unwrap(),
            objectives: vec!["O".into()],
            template: Some("control/templates/t".parse().unwrap()),
        }];
        let objective = json!({"id": "O", "statement": "say", "source": {"authority_id": "A"}, "constraints": {"n": 3}});
        let authority = |text: &'static [u8]| AuthorityText { title: None, locator: "docs/a", sha256: "00".into(), bytes: text };
        let job = Job {
            artifacts: &artifacts,
            objectives: &BTreeMap::from([("O", &objective)]),
            authorities: &BTreeMap::from([("A", authority(b"{\"k\":[1,2]}")), ("B", authority(b"secret"))]),
            inputs: &BTreeMap::from([
                ("in/x".parse().unwrap(), b"hello".to_vec()),
                ("in/y".parse().unwrap(), b"\0\xff".to_vec()),
            ]),
            templates: &BTreeMap::from([
                ("control/templates/t".parse().unwrap(), template.as_bytes().to_vec()),
                ("control/templates/part".parse().unwrap(), b"[{{ artifact.path }}]".to_vec()),
            ]),
        };
        match generate(&job) {
            Ok(produced) => Ok(String::from_utf8(produced.into_values().next().unwrap()).unwrap()),
            Err(findings) => Err(findings.into_iter().map(|f| (f.code.to_string(), f.line)).collect()),
        }
    }

    #[test]
    fn a_template_sees_its_context_and_nothing_is_escaped() {
        let cases = [
            ("{{ artifact.path }}\n", "out/a\n"),
            ("{% for o in objectives %}{{ o.id }}: {{ o.statement }} {{ o.constraints.n }}{% endfor %}", "O: say 3"),
            ("{{ authorities.A.locator }} {{ authorities.A.sha256 }} {{ authorities.A.title }}", "docs/a 00 None"),
            ("{{ (authorities.A.text | from_json).k | last }}", "2"),
            ("{{ {'b': '<&>', 'a': [1]} | to_json }}", "{\n  \"a\": [\n    1\n  ],\n  \"b\": \"<&>\"\n}"),
            ("{{ inputs['in/x'] }} {{ inputs['in/y'] }}", "hello None"),
            ("{% include 'control/templates/part' %}", "[out/a]"),
            ("<&\"'>{{ '<' }}", "<&\"'><"),
        ];
        for (template, wanted) in cases {
            assert_eq!(render(template).as_deref(), Ok(wanted), "{template}");
        }
    }

    #[test]
    fn what_is_not_admitted_cannot_be_reached() {
        for template in [
            "a\n{{ nothing }}",
            "a\n{{ authorities.B.text }}",
            "a\n{{ objectives[0].absent }}",
            "a\n{% include '/etc/passwd' %}",
            "a\n{% include 'control/pipeline.json' %}",
            "a\n{{ env('HOME') }}",
            "a\n{{ debug() }}",
            "a\n{{ now() }}",
            "a\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        ] {
            assert_eq!(render(template), Err(vec![("template-failed".into(), Some(2))]), "{template}");
        }
        assert_eq!(render("{{ 'x' ~ "), Err(vec![("template-failed".into(), Some(1))]));
    }

    #[test]
    fn an_endless_artifact_is_refused() {
        let template = "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}";
        assert_eq!(render(template).unwrap_err()[0].0, "output-too-large");
    }

    #[test]
    fn the_version_is_the_one_that_is_linked() {
        let lock = include_str!("../../Cargo.lock");
        let wanted = format!("name = \"minijinja\"\nversion = \"{}\"", GENERATOR_VERSION.trim_start_matches("minijinja-"));
        assert!(lock.contains(&wanted), "raise GENERATOR_VERSION to the minijinja of Cargo.lock");
    }
}
