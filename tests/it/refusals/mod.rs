//! What is refused: each by its own code, before GEN, with its place and the next step, and on the ledger.

mod table;

use std::collections::BTreeSet;

use git_cbia::document::digest::Digest;
use git_cbia::document::finding::Code;
use serde_json::{Value, json};

use super::support::{LEDGER, NOTE, NOTE_TEXT, PIPELINE, Repo};

const OBJECTIVES: &str = "control/objectives.json";
const DAG: &str = "control/execution_dag.json";
const GRAPH: &str = "control/dependency.graph.json";
const KERNEL: &str = "policy/kernel.rego";
const ASSURANCE: &str = "policy/assurance.rego";
const TEMPLATE: &str = "control/templates/note.txt.j2";
const CAPSULE: &str = "control/runtime/pre_gen_capsule.json";
const CAPSULE_SCHEMA: &str = "control/runtime/pre_gen_capsule.schema.json";
const PHASES: [&str; 4] = ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"];

/// One refusal.
struct Case {
    /// What is done to the tiny pipeline.
    change: fn(&Repo),
    /// The finding's code, and the exit code.
    code: (&'static str, i32),
    /// The gate that refuses.
    gate: &'static str,
    /// The finding's path and pointer.
    place: (&'static str, &'static str),
    /// The finding's line; 0 for none.
    line: u64,
}

/// What was wrong with a refusal, in words; empty if nothing was.
fn faults(case: &Case, repo: &Repo) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    let artifact = repo.has(NOTE);
    let before = repo.files(&[]);
    let ran = repo.cbia(["run", "--json"]);
    let document = ran.json();
    let (code, exit) = case.code;
    check(ran.code == Some(exit), format!("exit code {:?}", ran.code));
    check(ran.stderr.is_empty(), format!("stderr {}", ran.stderr));
    check(document["outcome"] == "denied" && document["event"] == "none", format!("outcome {}", document["outcome"]));
    check(ran.gen_status() == "skipped", format!("GEN {}", ran.gen_status()));
    let phases = document["phases"].as_array().unwrap();
    let failed: Vec<&str> = phases.iter().filter(|p| p["status"] == "failed").map(|p| p["phase"].as_str().unwrap()).collect();
    check(failed == [case.gate], format!("failed at {failed:?}"));

    let errors: Vec<&Value> = document["findings"].as_array().unwrap().iter().filter(|f| f["severity"] == "error").collect();
    let codes: BTreeSet<&str> = errors.iter().map(|f| f["code"].as_str().unwrap()).collect();
    check(codes == BTreeSet::from([code]), format!("codes {codes:?}"));
    if let Some(found) = errors.iter().find(|f| f["code"] == code) {
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        check(
            (text("path"), text("pointer")) == (case.place.0.into(), case.place.1.into()),
            format!("at {} {}", text("path"), text("pointer")),
        );
        check(found["line"].as_u64().unwrap_or(0) == case.line, format!("line {}", found["line"]));
        check(text("message").len() > 15, format!("message {}", text("message")));
        check(text("hint").len() > 5, format!("no hint: {}", text("message")));
        let parsed = Code::parse(code).map(|code| code.is_unreadable());
        check(parsed == Some(exit == 3), format!("class {parsed:?}"));
        let told = repo.cbia(["status"]);
        let wanted = format!("[{code}]");
        check(
            told.code == Some(exit) && told.stderr.contains(&wanted) && told.stderr.contains("hint: "),
            format!("told {told:?}"),
        );
    }

    check(repo.has(NOTE) == artifact, "an artifact was written".into());
    let after = repo.files(&[]);
    let evidence = |path: &str| path.starts_with("execution/") || path.starts_with("opa/") || path == CAPSULE;
    let touched: Vec<&String> =
        after.iter().filter(|(path, bytes)| before.get(*path) != Some(*bytes)).map(|(path, _)| path).collect();
    check(touched.iter().all(|path| evidence(path)), format!("written {touched:?}"));
    check(!after.keys().any(|path| path.starts_with("execution/gen/")), "evidence of GEN".into());
    check(!repo.has(CAPSULE) || !repo.read(CAPSULE).contains("\"ALLOW\"") || case.gate == "OPA_GATE", "an ALLOW capsule".into());

    check(repo.events().last().map(String::as_str) == Some("denied"), format!("events {:?}", repo.events()));
    check(document["record"] == repo.only_ref("refs/cbia/ledger").1, "no record".into());
    let record: Value = serde_json::from_str(&repo.git(["show", "refs/cbia/ledger:record.json"])).unwrap();
    check(record["findings"].as_array().unwrap().iter().any(|f| f["code"] == code), "the record lacks the code".into());
    let subject = repo.git(["log", "-1", "--format=%s", "refs/cbia/ledger"]);
    check(subject.contains(case.gate) && subject.contains(code), format!("subject {subject}"));
    for decision in remembered(repo) {
        check(decision == "ALLOW" || decision == "DENY", format!("the memo holds {decision}"));
    }
    faults
}

/// The decisions that the memo holds.
fn remembered(repo: &Repo) -> Vec<String> {
    if repo.refs("refs/cbia/memo").is_empty() {
        return Vec::new();
    }
    let paths = repo.git(["ls-tree", "-r", "--name-only", "refs/cbia/memo"]);
    let decisions = paths.lines().filter(|path| path.ends_with("/decision.json"));
    decisions
        .map(|path| {
            let decision: Value = serde_json::from_str(&repo.git(["show", &format!("refs/cbia/memo:{path}")])).unwrap();
            decision["cbia"]["decision"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[track_caller]
fn check(cases: &[Case]) {
    let mut told = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let repo = Repo::tiny();
        (case.change)(&repo);
        told.extend(faults(case, &repo).into_iter().map(|fault| format!("{number} {}: {fault}", case.code.0)));
    }
    assert_eq!(told, Vec::<String>::new());
}

/// A row of a table.
fn case(
    change: fn(&Repo),
    code: (&'static str, i32),
    gate: &'static str,
    place: (&'static str, &'static str),
    line: u64,
) -> Case {
    Case { change, code, gate, place, line }
}

#[test]
fn documents_that_are_bombs_are_refused_in_one_piece() {
    let wide = format!("{{\"id\": [{}1]}}", "1,".repeat(3_000_000));
    for (path, text) in [(LEDGER, "[".repeat(100_000)), (OBJECTIVES, "{\"a\":".repeat(50_000)), (PIPELINE, wide)] {
        let repo = Repo::tiny();
        repo.write(path, text);
        let ran = repo.cbia(["run", "--json"]).exits(3);
        assert!(ran.json()["findings"].as_array().unwrap().iter().all(|f| f["path"] == path), "{path}: {:?}", ran.codes());
        assert!(ran.stdout.len() < 20_000, "{path}: {} bytes", ran.stdout.len());
        assert_eq!((ran.gen_status().as_str(), repo.events()), ("skipped", vec!["denied".to_owned()]));
    }
}

#[test]
fn what_was_allowed_before_does_not_survive_a_denial() {
    for (change, left) in [
        (
            (|repo| repo.set(LEDGER, "/frozen", json!(false))) as fn(&Repo),
            &["execution/ledger/run.ledger.json", "execution/lock/report.json"][..],
        ),
        (
            |repo| repo.set(PIPELINE, "/gen/artifacts/0/objectives/0", json!("O-9")),
            &[CAPSULE, "execution/ledger/inputs.manifest.json", "execution/ledger/run.ledger.json", "execution/lock/report.json"],
        ),
        (
            |repo| repo.write(ASSURANCE, "package assurance\nallow := false\n"),
            &[
                CAPSULE,
                "execution/ledger/inputs.manifest.json",
                "execution/ledger/run.ledger.json",
                "execution/lock/report.json",
                "opa/bundle.hash",
                "opa/decision.json",
                "opa/explain.json",
                "opa/input.json",
            ],
        ),
    ] {
        let repo = Repo::tiny();
        repo.run();
        change(&repo);
        repo.cbia(["run"]).exits(1);
        let evidence: Vec<String> =
            repo.files(&["docs", "data", "policy", "README", ".gitignore", "out", "dist"]).into_keys().collect();
        let own = |path: &&String| !path.starts_with("control/") || *path == CAPSULE;
        assert_eq!(evidence.iter().filter(own).collect::<Vec<_>>(), left);
        if left.contains(&CAPSULE) && !left.contains(&"opa/decision.json") {
            assert!(repo.read(CAPSULE).contains("\"kernel_decision\": \"DENY\""));
        }
        if left.contains(&"opa/decision.json") {
            assert!(repo.read("opa/decision.json").contains("\"decision\": \"DENY\""));
        }
        assert_eq!(repo.read(NOTE), NOTE_TEXT, "what was generated before is nobody's to remove");
        assert_eq!(repo.events(), ["admitted", "denied"]);
        repo.fsck();
    }
}

#[test]
fn a_denial_is_remembered_and_denied_again() {
    let repo = Repo::tiny();
    repo.write(ASSURANCE, "package assurance\nallow := false\n");
    repo.cbia(["run"]).exits(1);
    let (memo, first) = (repo.refs("refs/cbia/memo"), repo.files(&[]));
    assert_eq!(remembered(&repo).iter().filter(|d| *d == "DENY").count(), 1);
    repo.cbia(["run"]).exits(1);
    assert_eq!((repo.refs("refs/cbia/memo"), repo.files(&[])), (memo, first));
    assert_eq!(repo.events(), ["denied", "denied"]);
}

#[test]
fn a_template_that_fails_is_a_failure_and_no_denial() {
    for (template, place) in
        [("{{ authorities.rumour.text }}", 1), ("\n{{ nothing }}", 2), ("{% include '/etc/passwd' %}", 1), ("{% if %}", 1)]
    {
        let repo = Repo::tiny();
        repo.write(TEMPLATE, template);
        let ran = repo.cbia(["run", "--json"]).exits(5);
        let finding = ran.finding("template-failed");
        assert_eq!((&finding["path"], &finding["line"]), (&json!(TEMPLATE), &json!(place)), "{template}: {finding}");
        assert!(finding["hint"].is_string(), "{finding}");
        assert_eq!((ran.gen_status().as_str(), ran.json()["outcome"].as_str()), ("failed", Some("failed")));
        assert!(!repo.has(NOTE) && repo.refs("refs/cbia/cache").is_empty() && repo.refs("refs/cbia/runs").is_empty());
        assert_eq!(repo.events(), ["failed"]);
    }
}

#[test]
fn evidence_that_does_not_hold_is_refused() {
    let (text, quote) = (Digest::of(b"Be brief.\n"), Digest::of(b"Be brief."));
    let cases = [
        (json!({"quote": "Be brief.", "hash_ref": {"file_sha256": text, "quote_sha256": quote}}), None),
        (
            json!({"quote": "Be brief.", "hash_ref": {"file_sha256": quote, "quote_sha256": quote}}),
            Some("evidence-hash-mismatch"),
        ),
        (
            json!({"quote": "Be long.", "hash_ref": {"file_sha256": text, "quote_sha256": Digest::of(b"Be long.")}}),
            Some("evidence-quote-missing"),
        ),
        (
            json!({"quote": "Be brief.", "hash_ref": {"file_sha256": text, "quote_sha256": text}}),
            Some("evidence-quote-hash-mismatch"),
        ),
        (json!({"quote": "Be brief.", "hash_ref": {"file_sha256": text}}), Some("evidence-quote-hash-mismatch")),
    ];
    for (evidence, code) in cases {
        let repo = Repo::tiny();
        repo.set(OBJECTIVES, "/0/source/evidence", json!([evidence]));
        let ran = repo.cbia(["run", "--json"]).exits(i32::from(code.is_some()));
        assert_eq!(ran.codes(), code.into_iter().collect::<Vec<_>>(), "{evidence}");
        assert_eq!(ran.gen_status(), if code.is_some() { "skipped" } else { "executed" });
    }
}
