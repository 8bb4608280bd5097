//! CHECK: what is mechanically wrong with a set of artifacts, all of it.
//!
//! Schemas, required fields, normal form, hash linkage, dependency closure, and what is missing or undeclared. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::normalize::{Rules, deviation, malformed, normalize};
use super::{Artifacts, PIPELINE, pattern, unreadable};
use crate::document::SCHEMA_VERSION;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::gen_exchange::{GenReport, OutputArtifact, OutputsManifest, ReportedArtifact};
use crate::document::glob::Globs;
use crate::document::json;
use crate::document::objectives::Objective;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::pipeline::{Format, Pipeline, SchemaRule};
use crate::document::repair_report::RepairReport;
use crate::document::run_ledger::ArtifactHashes;
use crate::document::schema::{self, Validator};

/// What the phase's output depends on.
pub struct Input<'a> {
    /// What is checked.
    pub artifacts: &'a dyn Artifacts,
    /// The declaration: the artifacts, the schema rules, the formats.
    pub pipeline: &'a Pipeline,
    /// The objectives.
    pub objectives: &'a [Objective],
    /// The authority ledger.
    pub ledger: &'a AuthorityLedger,
    /// What was harvested.
    pub outputs: &'a OutputsManifest,
    /// What the executor said it did.
    pub report: &'a GenReport,
    /// The artifact map.
    pub artifact_hashes: &'a ArtifactHashes,
    /// The repairs since, in order. Those that were refused changed nothing.
    pub repairs: &'a [RepairReport],
    /// The bytes of every JSON Schema that a rule names, where it is there.
    pub schemas: &'a BTreeMap<RepoPath, Vec<u8>>,
}

/// At most this many violations of one artifact by one schema are told.
pub const MAX_VIOLATIONS: usize = 50;
/// At most this many findings are told, one more says that there are others.
pub const MAX_FINDINGS: usize = 10_000;

const OUTPUTS: &str = "execution/gen/outputs.json";
const REPORT: &str = "execution/gen/executor.report.json";
const ARTIFACT_HASHES: &str = "execution/ledger/artifact_hashes.json";

/// Checks everything, and does not stop at the first finding.
pub fn check(input: &Input) -> CheckReport {
    let mut told = Told::default();
    let schemas = Schemas::new(input.pipeline, input.schemas, &mut told);
    let rules = told.unless(formats(input.pipeline));
    let canonical = told.unless(canonical(input.pipeline));
    let links = Links::new(input, &mut told);

    let (mut listing, mut used) = (Vec::new(), BTreeSet::new());
    for path in input.artifacts.paths() {
        let Some((bytes, digest)) = input.artifacts.hashed(path) else {
            told.push(unreadable(path));
            continue;
        };
        listing.push((path, digest));
        links.check(path, digest, bytes.len() as u64, &mut told);
        let wanted = Wanted {
            format: rules.as_ref().and_then(|rules| rules.format(path)),
            canonical: canonical.as_ref().is_some_and(|globs| globs.matches(path)),
        };
        let matching = schemas.matching(path);
        used.extend(matching.iter().map(|schema| schema.index));
        check_content(path, &bytes, wanted, &matching, &mut told);
    }
    for schema in schemas.0.iter().filter(|schema| !used.contains(&schema.index)) {
        let message = format!("the schema rule for {} matches no artifact", printable(&schema.rule.paths));
        let finding = Finding::warning(Code::SchemaUnused, message).at(PIPELINE).hint("mend its paths, or remove the rule");
        told.push(Finding { pointer: Some(format!("/check/schemas/{}", schema.index)), ..finding });
    }
    let present: BTreeSet<&RepoPath> = input.artifacts.paths().collect();
    check_declared(input, &present, &mut told);
    links.check_dangling(&present, &mut told);
    check_closure(input, &links, &mut told);

    let findings = told.sorted();
    CheckReport {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Check,
        passed: !refuses(&findings),
        artifacts: present.len() as u64,
        artifact_set_hash: Digest::of_listing(listing),
        findings,
    }
}

/// The form that an artifact must have.
#[derive(Clone, Copy)]
struct Wanted {
    format: Option<Format>,
    /// Whether the order of members and the layout of JSON matter, and not only its encoding, line endings and final newline.
    canonical: bool,
}

/// The violations of the schemas that apply to an artifact, and the first deviation from the form that it must have.
fn check_content(path: &RepoPath, bytes: &[u8], wanted: Wanted, schemas: &[&Schema], told: &mut Told) {
    let Wanted { format, canonical } = wanted;
    let mut value = None;
    if format == Some(Format::Json) || !schemas.is_empty() {
        match json::parse(bytes) {
            Ok(parsed) => value = Some(parsed),
            Err(error) => {
                let hint = "mend what generates it, or narrow the rule that says it is JSON";
                return told.push(malformed(path, error).hint(hint));
            }
        }
    }
    match (format, &value) {
        (Some(Format::Json), Some(value)) if canonical => told.extend(deviation(path, Format::Json, bytes, &json::pretty(value))),
        // Line breaks inside JSON are no part of its strings, so that they can be held against the same rules as text.
        (Some(format), _) => match normalize(Format::Text, bytes) {
            Ok(normal) => told.extend(deviation(path, format, bytes, &normal)),
            Err(error) => told.push(error.finding(path)),
        },
        (None, _) => {}
    }
    for (schema, value) in schemas.iter().flat_map(|schema| value.iter().map(move |value| (schema, value))) {
        let Some(validator) = &schema.validator else { continue };
        told.extend(violations(path, bytes, value, &schema.rule.schema, validator));
    }
}

fn violations(path: &RepoPath, bytes: &[u8], value: &Value, schema: &RepoPath, validator: &Validator) -> Vec<Finding> {
    let mut all = validator.violations(value);
    let mut findings = Vec::new();
    for violation in all.by_ref().take(MAX_VIOLATIONS) {
        let place = if violation.pointer.is_empty() { "its top level" } else { &violation.pointer };
        let place = printable(place);
        let (code, message, expected, got) = match violation.missing {
            Some(member) => {
                let member = printable(&member);
                let message = format!("the artifact {path} lacks the required member {member} at {place}");
                (Code::ArtifactFieldMissing, message, member, "nothing".to_owned())
            }
            None => {
                let message = format!("the artifact {path} breaks its schema at {place}: {}", violation.reason);
                (Code::ArtifactSchema, message, violation.expected, violation.got)
            }
        };
        let hint = format!("{schema} says what is wanted ({})", violation.schema_pointer);
        let finding = Finding::error(code, message).at(path).pointing(violation.pointer, bytes);
        findings.push(finding.expected(expected, got).hint(hint));
    }
    if all.next().is_some() {
        let message = format!("the artifact {path} breaks {schema} in more places than the {MAX_VIOLATIONS} that are told");
        findings.push(Finding::error(Code::FindingsCut, message).at(path).hint("mend these first"));
    }
    findings
}

struct Schema<'a> {
    index: usize,
    rule: &'a SchemaRule,
    globs: Globs,
    /// Absent where the schema cannot be used, which is a finding of its own.
    validator: Option<std::rc::Rc<Validator>>,
}

struct Schemas<'a>(Vec<Schema<'a>>);

impl<'a> Schemas<'a> {
    fn new(pipeline: &'a Pipeline, bytes: &BTreeMap<RepoPath, Vec<u8>>, told: &mut Told) -> Self {
        let rules = pipeline.check.as_ref().map_or(&[][..], |check| &check.schemas);
        let mut built: BTreeMap<&RepoPath, Option<std::rc::Rc<Validator>>> = BTreeMap::new();
        let mut schemas = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let validator = built.entry(&rule.schema).or_insert_with(|| told.unless(validator(bytes, &rule.schema)));
            let Some(globs) = told.unless(pattern(&rule.paths)) else { continue };
            schemas.push(Schema { index, rule, globs, validator: validator.clone() });
        }
        Self(schemas)
    }

    fn matching(&self, path: &RepoPath) -> Vec<&Schema<'a>> {
        self.0.iter().filter(|schema| schema.globs.matches(path)).collect()
    }
}

fn validator(schemas: &BTreeMap<RepoPath, Vec<u8>>, path: &RepoPath) -> Result<std::rc::Rc<Validator>, Finding> {
    let Some(bytes) = schemas.get(path) else {
        let message = format!("the schema {path}, which check.schemas names, is not there");
        return Err(Finding::error(Code::SchemaMissing, message).at(path).hint(format!("write {path}, or mend the rule")));
    };
    let value =
        schema::parse("schema", path.as_str(), bytes).map_err(|finding| Finding { code: Code::SchemaInvalid, ..finding })?;
    Validator::new(&value, path.as_str()).map(std::rc::Rc::new)
}

/// What the documents say of each artifact.
struct Links<'a> {
    outputs: BTreeMap<&'a RepoPath, &'a OutputArtifact>,
    report: BTreeMap<&'a RepoPath, &'a ReportedArtifact>,
    hashes: &'a ArtifactHashes,
    repairs: &'a [RepairReport],
}

impl<'a> Links<'a> {
    fn new(input: &Input<'a>, told: &mut Told) -> Self {
        fn once<'a, T>(
            document: &str,
            entries: &'a [T],
            path: impl Fn(&'a T) -> &'a RepoPath,
            told: &mut Told,
        ) -> BTreeMap<&'a RepoPath, &'a T> {
            let mut found = BTreeMap::new();
            for entry in entries {
                let path = path(entry);
                if found.insert(path, entry).is_some() {
                    told.push(Finding::error(Code::HashLinkMismatch, format!("{document} names {path} twice")).at(path));
                }
            }
            found
        }
        Self {
            outputs: once(OUTPUTS, &input.outputs.artifacts, |a| &a.path, told),
            report: once(REPORT, &input.report.artifacts, |a| &a.path, told),
            hashes: input.artifact_hashes,
            repairs: input.repairs,
        }
    }

    /// Follows an artifact from what the executor reported over every repair to its bytes.
    fn check(&self, path: &RepoPath, digest: Digest, bytes: u64, told: &mut Told) {
        let mut missing = |document: &str| {
            let message = format!("{document} does not account for the artifact {path}");
            told.push(Finding::error(Code::HashLinkMissing, message).at(path).hint(HINT));
        };
        const HINT: &str = "the evidence is not this run's; run again";
        let (outputs, report, hash) = (self.outputs.get(path), self.report.get(path), self.hashes.get(path));
        let absent = [(outputs.is_none(), OUTPUTS), (report.is_none(), REPORT), (hash.is_none(), ARTIFACT_HASHES)];
        absent.iter().filter(|(is, _)| *is).for_each(|(_, document)| missing(document));
        let mut mismatch = |what: String, expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display| {
            let finding = Finding::error(Code::HashLinkMismatch, format!("the artifact {path}: {what}")).at(path);
            told.push(finding.expected(expected, got).hint(HINT));
        };
        if let (Some(outputs), Some(report)) = (outputs, report) {
            if outputs.sha256 != report.hash {
                mismatch(format!("{OUTPUTS} and {REPORT} give different hashes"), &outputs.sha256, &report.hash);
            }
            if outputs.bytes != report.bytes {
                mismatch(format!("{OUTPUTS} and {REPORT} give different sizes"), &outputs.bytes, &report.bytes);
            }
        }
        let mut link = outputs.map(|o| o.sha256);
        let mut repaired = false;
        for repair in self.repairs.iter().filter(|repair| repair.accepted) {
            for change in repair.changes.iter().filter(|change| change.path == *path) {
                if change.before != link {
                    let (was, is) = (or_none(link), or_none(change.before));
                    mismatch(format!("repair {} did not start from what was there", repair.attempt), &was, &is);
                }
                (link, repaired) = (change.after, true);
            }
        }
        if let Some(hash) = hash {
            if link.is_some_and(|link| link != *hash) || (repaired && link.is_none()) {
                mismatch(format!("{ARTIFACT_HASHES} does not follow from what was generated"), &or_none(link), hash);
            }
            if *hash != digest {
                mismatch(format!("its bytes are not the ones that {ARTIFACT_HASHES} names"), hash, &digest);
            }
        }
        if let Some(outputs) = outputs.filter(|o| !repaired && o.bytes != bytes) {
            mismatch(format!("{OUTPUTS} gives another size"), &outputs.bytes, &bytes);
        }
    }

    /// What the documents name and nothing is there for.
    fn check_dangling(&self, present: &BTreeSet<&RepoPath>, told: &mut Told) {
        let named = (self.outputs.keys().map(|p| (*p, OUTPUTS)))
            .chain(self.report.keys().map(|p| (*p, REPORT)))
            .chain(self.hashes.keys().map(|p| (p, ARTIFACT_HASHES)));
        for (path, document) in named.filter(|(path, _)| !present.contains(path)) {
            let message = format!("{document} names the artifact {path}, which is not there");
            told.push(Finding::error(Code::HashLinkDangling, message).at(path).hint("the evidence is not this run's; run again"));
        }
    }
}

fn or_none(digest: Option<Digest>) -> String {
    digest.map_or("none".into(), |digest| digest.to_string())
}

/// The set is what was declared: nothing less, nothing more.
fn check_declared(input: &Input, present: &BTreeSet<&RepoPath>, told: &mut Told) {
    let declared: BTreeSet<&RepoPath> = input.pipeline.r#gen.artifacts.iter().map(|a| &a.path).collect();
    for path in declared.difference(present) {
        let message = format!("the artifact {path} is declared and was not produced");
        told.push(Finding::error(Code::ArtifactMissing, message).at(path).hint("mend the generator, or remove the declaration"));
    }
    for path in present.difference(&declared) {
        let message = format!("the artifact {path} was produced and is not declared");
        told.push(
            Finding::error(Code::ArtifactUndeclared, message).at(path).hint("declare it in gen.artifacts, or mend the generator"),
        );
    }
}

/// Every artifact leads to an objective and from there to an authority, and the outputs manifest says so.
fn check_closure(input: &Input, links: &Links, told: &mut Told) {
    let objectives: BTreeMap<&str, &Objective> = input.objectives.iter().map(|o| (o.id.as_str(), o)).collect();
    for artifact in &input.pipeline.r#gen.artifacts {
        let path = &artifact.path;
        let mut push = |code, message: String, hint: &str| told.push(Finding::error(code, message).at(path).hint(hint));
        if artifact.objectives.is_empty() {
            push(
                Code::ArtifactObjectivesEmpty,
                format!("the artifact {path} names no objective"),
                "name the objectives it fulfils",
            );
        }
        let mut authorities = BTreeSet::new();
        for id in &artifact.objectives {
            let Some(objective) = objectives.get(id.as_str()) else {
                let message = format!("the artifact {path} names the objective {}, which does not exist", printable(id));
                push(Code::ArtifactObjectiveUnknown, message, "add the objective, or name another");
                continue;
            };
            let authority = &objective.source.authority_id;
            if input.ledger.find(authority).is_none() {
                let message = format!(
                    "the artifact {path} rests on the objective {}, whose authority {} the ledger does not have",
                    printable(id),
                    printable(authority)
                );
                push(Code::ObjectiveAuthorityUnknown, message, "name a locked authority, or add this one");
            }
            authorities.insert(authority);
        }
        let Some(output) = links.outputs.get(path) else { continue };
        if output.objectives != artifact.objectives || !output.authorities.iter().eq(authorities.iter().copied()) {
            let say =
                |objectives: &[String], authorities: Vec<&String>| printable(&format!("{objectives:?} from {authorities:?}"));
            let message = format!("{OUTPUTS} does not say of the artifact {path} what was declared");
            let finding = Finding::error(Code::ClosureMismatch, message).at(path).expected(
                say(&artifact.objectives, authorities.into_iter().collect()),
                say(&output.objectives, output.authorities.iter().collect()),
            );
            told.push(finding.hint("the evidence is not this run's; run again"));
        }
    }
}

/// Findings on the way to a report: bounded, and in an order that depends on nothing but what they say.
#[derive(Default)]
struct Told {
    findings: Vec<Finding>,
    cut: bool,
}

impl Told {
    fn push(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.cut = true;
        }
    }

    fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }

    fn unless<T>(&mut self, result: Result<T, Finding>) -> Option<T> {
        result.map_err(|finding| self.push(finding)).ok()
    }

    fn sorted(mut self) -> Vec<Finding> {
        if self.cut {
            let message = format!("there are more findings than the {MAX_FINDINGS} that are told");
            self.findings.push(Finding::error(Code::FindingsCut, message).hint("mend these first"));
        }
        self.findings.sort_by(|a, b| order(a).cmp(&order(b)));
        self.findings.dedup();
        self.findings
    }
}

type Order<'a> = (Option<&'a str>, Option<u64>, Option<u64>, Option<&'a str>, &'static str, &'a str);

fn order(f: &Finding) -> Order<'_> {
    (f.path.as_deref(), f.line, f.column, f.pointer.as_deref(), f.code.as_str(), &f.message)
}

/// What of a set does not satisfy its schemas, or is not in its normal form altogether: what STRUCT enforces on what it has normalized.
pub fn enforce(artifacts: &dyn Artifacts, pipeline: &Pipeline, schemas: &BTreeMap<RepoPath, Vec<u8>>) -> Vec<Finding> {
    let mut told = Told::default();
    let schemas = Schemas::new(pipeline, schemas, &mut told);
    let rules = told.unless(formats(pipeline));
    for path in artifacts.paths() {
        let Some(bytes) = artifacts.bytes(path) else {
            told.push(unreadable(path));
            continue;
        };
        let wanted = Wanted { format: rules.as_ref().and_then(|rules| rules.format(path)), canonical: true };
        check_content(path, &bytes, wanted, &schemas.matching(path), &mut told);
    }
    told.sorted()
}

fn canonical(pipeline: &Pipeline) -> Result<Globs, Finding> {
    let patterns = pipeline.check.as_ref().map_or(&[][..], |check| &check.canonical);
    Globs::new(patterns).map_err(|error| super::bad_pattern(&error))
}

fn formats(pipeline: &Pipeline) -> Result<Rules, Finding> {
    Rules::new(pipeline.r#struct.as_ref().map_or(&[][..], |s| &s.normalize))
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
