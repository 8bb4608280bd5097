//! What CHECK finds, one planted fault at a time.

use serde_json::json;

use super::super::Files;
use super::super::testing::{Broken, files, path, told};
use super::*;
use crate::document::repair_report::RepairChange;
use crate::document::schema::{Kind, validate};

/// Everything that CHECK reads, in one piece that a case may damage.
struct World {
    files: Files,
    pipeline: Value,
    objectives: Value,
    ledger: Value,
    outputs: OutputsManifest,
    report: GenReport,
    hashes: ArtifactHashes,
    repairs: Vec<RepairReport>,
    schemas: BTreeMap<RepoPath, Vec<u8>>,
}

const GOOD: &str = "{\n  \"level\": 1,\n  \"name\": \"x\"\n}\n";

impl World {
    /// Two artifacts that nothing is wrong with.
    fn new() -> Self {
        let files = files(&[("out/a.json", GOOD), ("out/b.md", "hello\n")]);
        let outputs = files.iter().map(|(path, bytes)| OutputArtifact {
            path: path.clone(),
            sha256: Digest::of(bytes),
            bytes: bytes.len() as u64,
            objectives: vec!["O-1".into()],
            authorities: vec!["A-1".into()],
        });
        let outputs: Vec<_> = outputs.collect();
        let reported = |o: &OutputArtifact| ReportedArtifact { path: o.path.clone(), hash: o.sha256, bytes: o.bytes };
        let schema = json!({
            "type": "object", "required": ["name"], "properties": { "name": { "type": "string" }, "level": { "maximum": 3 } },
        });
        Self {
            pipeline: json!({
                "schema_version": "0.1.0",
                "gen": { "generated": ["out/**"], "artifacts": [
                    { "path": "out/a.json", "objectives": ["O-1"] }, { "path": "out/b.md", "objectives": ["O-1"] } ] },
                "check": {
                    "schemas": [{ "paths": "out/*.json", "schema": "schemas/a.schema.json" }], "canonical": ["**/*.json"],
                },
                "struct": { "normalize": [{ "paths": "**/*.json", "format": "json" }, { "paths": "**/*.md", "format": "text" }] },
            }),
            objectives: json!([{ "id": "O-1", "statement": "s", "source": { "authority_id": "A-1" } }]),
            ledger: json!({ "schema_version": "0.1.0", "frozen": true, "authority_set": [{ "authority_id": "A-1" }] }),
            report: GenReport {
                schema_version: "0.1.0".into(),
                phase: Phase::Gen,
                artifacts: outputs.iter().map(reported).collect(),
                tool_versions: BTreeMap::new(),
            },
            hashes: outputs.iter().map(|o| (o.path.clone(), o.sha256)).collect(),
            outputs: OutputsManifest { schema_version: "0.1.0".into(), phase: Phase::Gen, artifacts: outputs },
            schemas: BTreeMap::from([(path("schemas/a.schema.json"), schema.to_string().into_bytes())]),
            repairs: Vec::new(),
            files,
        }
    }

    /// Gives an artifact other bytes, with evidence that agrees.
    fn produce(&mut self, at: &str, bytes: &[u8]) {
        let (path, digest) = (path(at), Digest::of(bytes));
        for output in self.outputs.artifacts.iter_mut().filter(|o| o.path == path) {
            (output.sha256, output.bytes) = (digest, bytes.len() as u64);
        }
        for output in self.report.artifacts.iter_mut().filter(|o| o.path == path) {
            (output.hash, output.bytes) = (digest, bytes.len() as u64);
        }
        self.hashes.insert(path.clone(), digest);
        self.files.insert(path, bytes.to_vec());
    }

    fn with<T>(&self, artifacts: &dyn Artifacts, then: impl Fn(&Input) -> T) -> T {
        then(&Input {
            artifacts,
            pipeline: &serde_json::from_value(self.pipeline.clone()).unwrap(),
            objectives: &serde_json::from_value::<Vec<_>>(self.objectives.clone()).unwrap(),
            ledger: &serde_json::from_value(self.ledger.clone()).unwrap(),
            outputs: &self.outputs,
            report: &self.report,
            artifact_hashes: &self.hashes,
            repairs: &self.repairs,
            schemas: &self.schemas,
        })
    }

    fn check(&self) -> CheckReport {
        self.with(&self.files, check)
    }
}

/// The findings after `damage`.
fn after(damage: impl FnOnce(&mut World)) -> Vec<String> {
    let mut world = World::new();
    damage(&mut world);
    let report = world.check();
    assert_eq!(report.passed, !refuses(&report.findings));
    let bytes = json::emit(&report);
    assert_eq!(validate(Kind::CheckReport, "r", &bytes, &json::parse(&bytes).unwrap()), []);
    told(&report.findings)
}

#[test]
fn a_good_set_passes_and_is_named() {
    let report = World::new().check();
    assert_eq!((report.passed, report.artifacts, report.findings), (true, 2, vec![]));
    let world = World::new();
    assert_eq!(report.artifact_set_hash, Digest::of_listing(world.hashes.iter().map(|(path, hash)| (path, *hash))));
}

#[test]
fn every_fault_is_found() {
    type Case = (fn(&mut World), &'static [&'static str]);
    let cases: &[Case] = &[
        (|w| w.produce("out/a.json", b"{\n  \"level\": 1\n}\n"), &["artifact-field-missing out/a.json 1"]),
        (|w| w.produce("out/a.json", b"{\n  \"level\": 4,\n  \"name\": \"x\"\n}\n"), &["artifact-schema out/a.json 2"]),
        (|w| w.produce("out/a.json", b"{\n  \"level\": 1,\n}\n"), &["artifact-malformed out/a.json 3"]),
        (|w| w.produce("out/a.json", b"{\n  \"name\": \"x\",\n  \"level\": 1\n}\n"), &["artifact-not-normal out/a.json 2"]),
        (
            |w| w.produce("out/a.json", b"{\n  \"name\": 7,\n  \"level\": 4\n}\n"),
            &["artifact-not-normal out/a.json 2", "artifact-schema out/a.json 2", "artifact-schema out/a.json 3"],
        ),
        (|w| w.produce("out/b.md", b"a\r\n"), &["artifact-not-normal out/b.md 1"]),
        (|w| w.produce("out/b.md", b"a\n\xff\n"), &["artifact-encoding out/b.md 2"]),
        (|w| w.pipeline["check"]["schemas"][0]["schema"] = "schemas/b.json".into(), &["schema-missing schemas/b.json"]),
        (
            |w| drop(w.schemas.insert(path("schemas/a.schema.json"), b"{\"type\": 7}".to_vec())),
            &["schema-invalid schemas/a.schema.json"],
        ),
        (
            |w| drop(w.schemas.insert(path("schemas/a.schema.json"), b"{\n,}".to_vec())),
            &["schema-invalid schemas/a.schema.json 2"],
        ),
        (|w| w.pipeline["check"]["schemas"][0]["paths"] = "none/*".into(), &["schema-unused control/pipeline.json"]),
        (|w| w.pipeline["check"]["schemas"][0]["paths"] = "out/b.md".into(), &["artifact-malformed out/b.md 1"]),
        (|w| w.pipeline["check"]["schemas"][0]["paths"] = "[".into(), &["pattern-invalid control/pipeline.json"]),
        (|w| w.pipeline["struct"]["normalize"][0]["paths"] = "[".into(), &["pattern-invalid control/pipeline.json"]),
        (
            |w| drop(w.files.remove(&path("out/b.md"))),
            &[
                "artifact-missing out/b.md",
                "hash-link-dangling out/b.md",
                "hash-link-dangling out/b.md",
                "hash-link-dangling out/b.md",
            ],
        ),
        (
            |w| drop(w.files.insert(path("out/c"), b"\0\r".to_vec())),
            &["artifact-undeclared out/c", "hash-link-missing out/c", "hash-link-missing out/c", "hash-link-missing out/c"],
        ),
        (|w| drop(w.files.insert(path("out/b.md"), b"jello\n".to_vec())), &["hash-link-mismatch out/b.md"]),
        (|w| drop(w.files.insert(path("out/b.md"), b"hello!\n".to_vec())), &["hash-link-mismatch out/b.md"; 2]),
        (|w| w.hashes.extend([(path("out/b.md"), Digest::of(b""))]), &["hash-link-mismatch out/b.md"; 2]),
        (|w| w.hashes.retain(|at, _| at.as_str() != "out/b.md"), &["hash-link-missing out/b.md"]),
        (|w| w.hashes.extend([(path("out/z"), Digest::of(b""))]), &["hash-link-dangling out/z"]),
        (|w| w.report.artifacts[1].hash = Digest::of(b""), &["hash-link-mismatch out/b.md"]),
        (|w| w.report.artifacts[1].bytes = 7, &["hash-link-mismatch out/b.md"]),
        (|w| drop(w.report.artifacts.pop()), &["hash-link-missing out/b.md"]),
        (|w| w.report.artifacts.push(w.report.artifacts[0].clone()), &["hash-link-mismatch out/a.json"]),
        (|w| drop(w.outputs.artifacts.pop()), &["hash-link-missing out/b.md"]),
        (|w| w.outputs.artifacts[1].objectives.push("O-2".into()), &["closure-mismatch out/b.md"]),
        (|w| w.outputs.artifacts[1].authorities.clear(), &["closure-mismatch out/b.md"]),
        (
            |w| {
                w.pipeline["gen"]["artifacts"][1]["objectives"] = json!([]);
                w.outputs.artifacts[1].objectives.clear();
                w.outputs.artifacts[1].authorities.clear();
            },
            &["artifact-objectives-empty out/b.md"],
        ),
        (
            |w| {
                w.pipeline["gen"]["artifacts"][1]["objectives"] = json!(["O-1", "O-9"]);
                w.outputs.artifacts[1].objectives.push("O-9".into());
            },
            &["artifact-objective-unknown out/b.md"],
        ),
        (
            |w| w.ledger["authority_set"] = json!([]),
            &["objective-authority-unknown out/a.json", "objective-authority-unknown out/b.md"],
        ),
    ];
    for (index, (damage, wanted)) in cases.iter().enumerate() {
        assert_eq!(after(damage), *wanted, "case {index}");
    }
}

#[test]
fn bytes_that_cannot_be_had_are_a_finding() {
    let report = World::new().with(&Broken(path("out/b.md")), check);
    assert!(told(&report.findings).contains(&"artifact-unreadable out/b.md".into()));
    assert!(!report.passed);
}

#[test]
fn a_finding_says_what_was_wanted_and_what_was_there() {
    let mut world = World::new();
    world.produce("out/a.json", b"{\n  \"level\": 4,\n  \"naem\": [1, 2]\n}\n");
    let findings = world.check().findings;
    let say = |f: &Finding| format!("{:?} {:?} {:?} {:?}", f.column, f.pointer, f.expected, f.got);
    assert_eq!(
        findings.iter().map(say).collect::<Vec<_>>(),
        [
            "Some(1) Some(\"\") Some(\"name\") Some(\"nothing\")",
            "Some(12) Some(\"/level\") Some(\"maximum 3\") Some(\"4\")",
            "Some(12) None Some(\"  \\\"naem\\\": [\") Some(\"  \\\"naem\\\": [1, 2]\")",
        ]
    );
    assert_eq!(findings[1].message, "the artifact out/a.json breaks its schema at /level: 4 is greater than the maximum of 3");
    assert_eq!(findings[1].hint.as_deref(), Some("schemas/a.schema.json says what is wanted (/properties/level/maximum)"));
}

/// A repair of `out/b.md`, from the hash before to the hash after.
fn repair(attempt: u64, accepted: bool, before: &[u8], after: &[u8]) -> RepairReport {
    RepairReport {
        schema_version: "0.1.0".into(),
        phase: Phase::Repair,
        attempt,
        repair_capsule_hash: Digest::of(b""),
        accepted,
        changes: vec![RepairChange {
            path: path("out/b.md"),
            before: Some(Digest::of(before)),
            after: Some(Digest::of(after)),
            inserted: 1,
            deleted: 1,
        }],
        inserted: 1,
        deleted: 1,
        findings: vec![],
        diff: vec![],
    }
}

#[test]
fn the_chain_of_hashes_goes_through_the_repairs() {
    fn repaired(repairs: Vec<RepairReport>) -> impl FnOnce(&mut World) {
        move |w| {
            w.hashes.insert(path("out/b.md"), Digest::of(b"mended\n"));
            w.files.insert(path("out/b.md"), b"mended\n".to_vec());
            w.repairs = repairs;
        }
    }
    let whole = || vec![repair(1, true, b"hello\n", b"x\n"), repair(2, true, b"x\n", b"mended\n")];
    assert_eq!(after(repaired(whole())), [""; 0]);
    let broken = || vec![repair(1, true, b"hello\n", b"x\n"), repair(2, true, b"y\n", b"mended\n")];
    assert_eq!(after(repaired(broken())), ["hash-link-mismatch out/b.md"]);
    let elsewhere = || vec![repair(1, true, b"hello\n", b"x\n")];
    assert_eq!(after(repaired(elsewhere())), ["hash-link-mismatch out/b.md"]);
    let refused = || vec![repair(1, false, b"hello\n", b"mended\n")];
    assert_eq!(after(repaired(refused())), ["hash-link-mismatch out/b.md"; 2]);
}

#[test]
fn many_violations_are_cut_and_said_to_be() {
    let mut world = World::new();
    world.schemas.insert(path("schemas/a.schema.json"), b"{\"items\": {\"type\": \"string\"}}".to_vec());
    world.produce("out/a.json", &json::pretty(&json!(vec![7; MAX_VIOLATIONS])));
    assert_eq!(world.check().findings.len(), MAX_VIOLATIONS);
    world.produce("out/a.json", &json::pretty(&json!(vec![7; MAX_VIOLATIONS + 1])));
    let codes = told(&world.check().findings);
    assert_eq!((codes.len(), codes[0].as_str()), (MAX_VIOLATIONS + 1, "findings-cut out/a.json"));
    let mut all = Told::default();
    (0..=MAX_FINDINGS).for_each(|n| all.push(Finding::warning(Code::SchemaUnused, n.to_string())));
    let all = all.sorted();
    assert_eq!(all.len(), MAX_FINDINGS + 1);
    assert!(all.iter().any(|f| f.code == Code::FindingsCut && f.severity == crate::document::finding::Severity::Error));
}

#[test]
fn the_order_of_the_report_does_not_depend_on_the_order_of_the_documents() {
    let mut world = World::new();
    world.produce("out/a.json", b"{\"level\": 9}");
    world.produce("out/b.md", b"a\r\n");
    let first = world.check();
    world.outputs.artifacts.reverse();
    world.report.artifacts.reverse();
    world.pipeline["gen"]["artifacts"].as_array_mut().unwrap().reverse();
    assert_eq!(world.check(), first);
    assert_eq!(first.findings.len(), 4);
    // The same rule twice says nothing twice.
    let rule = world.pipeline["check"]["schemas"][0].clone();
    world.pipeline["check"]["schemas"].as_array_mut().unwrap().push(rule);
    assert_eq!(world.check(), first);
}

#[test]
fn enforcing_asks_the_content_alone() {
    let mut world = World::new();
    world.files.insert(path("out/a.json"), b"{\"level\": 9}".to_vec());
    let pipeline = serde_json::from_value(world.pipeline.clone()).unwrap();
    let findings = enforce(&world.files, &pipeline, &world.schemas);
    let wanted = ["artifact-field-missing", "artifact-not-normal", "artifact-schema"].map(|code| format!("{code} out/a.json 1"));
    let mut got = told(&findings);
    got.sort();
    assert_eq!(got, wanted);
}

#[test]
fn the_order_of_members_matters_only_where_it_is_declared() {
    let unordered = "{\"name\": \"x\",\n\"level\": 1}\n";
    for (canonical, bytes, wanted) in [
        (json!(["**/*.json"]), unordered, &["artifact-not-normal out/a.json 1"][..]),
        (json!(["**/*.md"]), unordered, &[]),
        (json!([]), unordered, &[]),
        (json!([]), "{\"name\": \"x\"}", &["artifact-not-normal out/a.json 1"]),
        (json!([]), "{\"name\": \"x\"}\r\n", &["artifact-not-normal out/a.json 1"]),
        (json!([]), "{\"name\": \"x\"}\n\n", &["artifact-not-normal out/a.json 2"]),
    ] {
        let mut world = World::new();
        world.pipeline["check"]["canonical"] = canonical.clone();
        world.produce("out/a.json", bytes.as_bytes());
        assert_eq!(told(&world.check().findings), wanted, "{canonical} {bytes:?}");
    }
}
