//! The phases after GEN: the whole chain, what each of them refuses, and what a changed configuration makes run again.

use std::collections::BTreeMap;

use git_cbia::document::digest::Digest;
use serde_json::{Value, json};

use super::support::{NOTE, PIPELINE, Ran, Repo};

const DATA: &str = "out/data.json";
const PAGE: &str = "out/page.md";
const SCHEMA: &str = "schemas/data.schema.json";

/// A pipeline with every phase configured, over artifacts that the input files give byte for byte.
fn full() -> Repo {
    let repo = Repo::tiny();
    repo.remove("control/templates/note.txt.j2");
    repo.remove("data/words.txt");
    for (at, input) in [(DATA, "data.json"), (PAGE, "page.md")] {
        let name = at.strip_prefix("out/").unwrap();
        repo.write(&format!("control/templates/{name}.j2"), format!("{{{{ inputs['data/{input}'] }}}}"));
    }
    repo.write("data/data.json", "{\"level\": 2,\n\"name\": \"x\"}\n");
    repo.write("data/page.md", "# Page\n");
    repo.write_json(SCHEMA, &json!({"type": "object", "required": ["name"], "properties": {"level": {"maximum": 3}}}));
    let artifact = |path: &str, template: &str| json!({"path": path, "objectives": ["O-1"], "template": template});
    repo.write_json(
        PIPELINE,
        &json!({
            "schema_version": "0.1.0", "inputs": ["data/**"],
            "gen": {"generated": ["out/**"], "artifacts": [
                artifact(DATA, "control/templates/data.json.j2"), artifact(PAGE, "control/templates/page.md.j2")]},
            "check": {"schemas": [{"paths": "out/**/*.json", "schema": SCHEMA}]},
            "struct": {"normalize": [{"paths": "**/*.json", "format": "json"}, {"paths": "**/*.md", "format": "text"}]},
            "select": {"rules": [{"paths": "out/*.json", "keep": true, "reason": "data"}, {"paths": "**", "keep": true, "reason": "rest"}]},
            "flow": {"layout": [{"from": "out/**", "to": "dist/site/"}]},
        }),
    );
    repo
}

/// What became of every phase from GEN on.
fn statuses(ran: &Ran) -> BTreeMap<String, String> {
    let document = ran.json();
    let phases = document["phases"].as_array().unwrap().iter().skip(3);
    phases.map(|p| (p["phase"].as_str().unwrap().to_owned(), p["status"].as_str().unwrap().to_owned())).collect()
}

fn document(repo: &Repo, at: &str) -> Value {
    serde_json::from_str(&repo.read(at)).unwrap()
}

/// The run stopped: nothing but evidence is in the work tree, no run is stored, and the record says where.
#[track_caller]
fn stopped(repo: &Repo, exit: i32, phase: &str, outcome: &str, codes: &[&str]) -> Ran {
    let ran = repo.cbia(["run", "--json"]).exits(exit);
    assert_eq!(ran.codes(), codes, "{}", ran.stdout);
    let got = ran.json();
    assert_eq!((&got["outcome"], &got["run"], &got["event"]), (&json!(outcome), &Value::Null, &json!("none")));
    let statuses = statuses(&ran);
    assert_eq!(statuses[phase], "failed", "{statuses:?}");
    let order = ["GEN", "CHECK", "REPAIR", "STRUCT", "SELECT", "FLOW", "EVAL"];
    let after = order.iter().skip_while(|name| **name != phase).skip(1);
    for later in after {
        assert_eq!(statuses[*later], "skipped", "nothing runs after {phase}");
    }
    assert!(!repo.has("out") && !repo.has("dist"), "only evidence is written");
    assert_eq!(repo.refs("refs/cbia/runs"), []);
    let subject = repo.git(["log", "-1", "--format=%s", "refs/cbia/ledger"]);
    assert!(subject.contains(&format!(" at {phase}: ")), "{subject}");
    repo.fsck();
    ran
}

#[test]
fn the_whole_chain_and_its_replay() {
    let repo = full();
    let first = repo.cbia(["run", "--json"]).ok();
    let expected =
        [("GEN", "executed"), ("CHECK", "executed"), ("REPAIR", "skipped"), ("STRUCT", "executed"), ("SELECT", "executed")];
    for (phase, status) in expected {
        assert_eq!(statuses(&first)[phase], status, "{phase}");
    }
    let normal = "{\n  \"level\": 2,\n  \"name\": \"x\"\n}\n";
    assert_eq!((repo.read(DATA), repo.read("dist/site/data.json")), (normal.to_owned(), normal.to_owned()));
    assert_eq!(first.json()["artifacts"][DATA], json!(Digest::of(normal.as_bytes())));

    let metadata = document(&repo, "execution/struct/metadata.json");
    let about = &metadata["artifacts"][0];
    assert_eq!((&about["path"], &about["authorities"], &about["objectives"]), (&json!(DATA), &json!(["rule"]), &json!(["O-1"])));
    assert_ne!(about["sha256"], about["generated_sha256"], "normalizing changed it");
    assert_eq!(metadata["pre_gen_capsule_hash"], json!(Digest::of(repo.read("control/runtime/pre_gen_capsule.json").as_bytes())));
    assert_eq!(document(&repo, "execution/select/selection.json")["artifacts"][0]["reason"], "data");
    let files = document(&repo, "execution/flow/manifest.json")["files"].clone();
    assert_eq!((&files[0]["path"], &files[0]["origin"]), (&json!("dist/site/data.json"), &json!(DATA)));

    // Everything in the run's tree is in the final manifest, with its hash, and nothing else is.
    let (_, run) = repo.only_ref("refs/cbia/runs");
    let manifest = document(&repo, "execution/eval/manifest.json");
    let named: BTreeMap<&str, &str> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap(), f["sha256"].as_str().unwrap()))
        .collect();
    let listed = repo.git(["ls-tree", "-r", "--name-only", &run]);
    let mut all: Vec<&str> = listed.lines().filter(|path| *path != "execution/eval/manifest.json").collect();
    all.sort_unstable();
    assert_eq!(named.keys().copied().collect::<Vec<_>>(), all);
    for (path, sha256) in &named {
        let bytes = repo.git_raw(["cat-file", "blob", &format!("{run}:{path}")]);
        assert_eq!(Digest::of(&bytes).to_string(), **sha256, "{path}");
    }
    let audit = document(&repo, "execution/eval/audit_bundle.json");
    let audited: Vec<&str> = audit["documents"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    for name in ["pre_gen_capsule", "decision", "explain", "authority_ledger", "run_ledger", "artifact_hashes", "check_report"] {
        assert!(audited.contains(&name), "{name}");
    }
    // The policy saw the final state: the ledger's entries and the artifacts' hashes.
    let seen = document(&repo, "opa/input.json");
    assert_eq!(seen["artifact_hashes"], document(&repo, "execution/ledger/artifact_hashes.json"));
    assert_eq!(seen["run_ledger"]["entries"].as_array().unwrap().last().unwrap()["phase"], "FLOW");

    let second = repo.cbia(["run", "--json"]).ok();
    assert_eq!(first.json()["run"], second.json()["run"]);
    assert!(statuses(&second).values().all(|status| status == "replayed" || status == "skipped"), "{}", second.stdout);
    assert_eq!(repo.events(), ["admitted", "replayed"]);
    repo.fsck();
}

/// What runs again when one later phase's configuration changes, and what does not.
#[test]
fn a_changed_configuration_runs_its_own_phase_again_and_those_after_it() {
    type Change = fn(&Repo);
    let cases: [(&str, Change, &str); 5] = [
        ("schema", |repo| repo.write_json(SCHEMA, &json!({"type": "object"})), "executed"),
        ("canonical", |repo| repo.set(PIPELINE, "/check/canonical", json!(["out/*.txt"])), "executed"),
        ("rule", |repo| repo.set(PIPELINE, "/select/rules/1/reason", json!("other")), "replayed"),
        ("layout", |repo| repo.set(PIPELINE, "/flow/layout/0/to", json!("dist/other/")), "replayed"),
        (
            "audit",
            |repo| {
                let documents = json!([{"name": "capsule", "path": "control/runtime/pre_gen_capsule.json"}]);
                repo.write_json(
                    "assurance/audit_bundle.manifest.json",
                    &json!({"schema_version": "0.1.0", "documents": documents}),
                );
            },
            "replayed",
        ),
    ];
    for (what, change, check) in cases {
        let repo = full();
        let before = repo.cbia(["run", "--json"]).ok();
        change(&repo);
        let after = repo.cbia(["run", "--json"]).ok();
        assert_ne!(before.json()["state_key"], after.json()["state_key"], "{what}");
        let now = statuses(&after);
        assert_eq!((now["GEN"].as_str(), now["CHECK"].as_str(), now["EVAL"].as_str()), ("replayed", check, "executed"), "{what}");
        assert_eq!(repo.refs("refs/cbia/runs").len(), 2, "{what}");
        assert_eq!(repo.entries("GEN").len(), 1, "{what}");
        assert_eq!(repo.events(), ["admitted", "admitted"], "{what}");
        let again = repo.cbia(["run", "--json"]).ok();
        assert_eq!(after.json()["run"], again.json()["run"], "{what}");
    }
    let repo = full();
    repo.run();
    repo.set(PIPELINE, "/flow/layout/0/to", json!("dist/other/"));
    repo.run();
    assert!(repo.has("dist/other/data.json") && !repo.has("dist/site"), "the old package is removed");
}

#[test]
fn a_failed_check_tells_everything_and_writes_only_evidence() {
    let repo = full();
    repo.write("data/data.json", "{\"level\": 4}");
    repo.write("data/page.md", "# Page\r\n");
    let wanted = ["artifact-field-missing", "artifact-schema", "artifact-not-normal", "artifact-not-normal"];
    let ran = stopped(&repo, 6, "CHECK", "check-failed", &wanted);
    let report = document(&repo, "execution/check/report.json");
    assert_eq!((&report["passed"], report["findings"].as_array().unwrap().len()), (&json!(false), 4));
    let schema = ran.finding("artifact-schema");
    assert_eq!(
        (&schema["path"], &schema["pointer"], &schema["line"], &schema["expected"], &schema["got"]),
        (&json!(DATA), &json!("/level"), &json!(1), &json!("maximum 3"), &json!("4"))
    );
    for line in repo.read("execution/check/report.md").lines().filter(|line| line.contains("artifact-")) {
        assert!(line.contains("out/"), "{line}");
    }
    // What was generated is kept: once the data is allowed, only CHECK and what follows runs.
    repo.write_json(SCHEMA, &json!(true));
    repo.set(PIPELINE, "/struct", Value::Null);
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!((statuses(&ran)["GEN"].as_str(), statuses(&ran)["CHECK"].as_str()), ("replayed", "executed"));
    assert_eq!(repo.read(DATA), "{\"level\": 4}");
}

#[test]
fn check_reports_in_the_formats_of_other_tools() {
    let repo = full();
    repo.write("data/data.json", "{\"level\": 4}\n");
    let sarif = repo.cbia(["run", "--format", "sarif"]).exits(6).json();
    assert_eq!(sarif["version"], "2.1.0");
    let results = sarif["runs"][0]["results"].as_array().unwrap().clone();
    let rules: Vec<&str> = results.iter().map(|r| r["ruleId"].as_str().unwrap()).collect();
    assert_eq!(rules, ["artifact-field-missing", "artifact-schema"]);
    let place = &results[1]["locations"][0]["physicalLocation"];
    assert_eq!((&place["artifactLocation"]["uri"], &place["region"]["startLine"]), (&json!(DATA), &json!(1)));
    let junit = repo.cbia(["run", "--format", "junit"]).exits(6).stdout;
    assert!(junit.starts_with("<?xml") && junit.contains("artifact-schema") && junit.contains(DATA), "{junit}");
    repo.write("data/data.json", "{\"name\": \"x\"}\n");
    assert_eq!(repo.cbia(["run", "--format", "sarif"]).ok().json()["runs"][0]["results"], json!([]));
    repo.set("control/authority.ledger.json", "/frozen", json!(false));
    let denied = repo.cbia(["run", "--format", "sarif"]).exits(1).json();
    assert_eq!(denied["runs"][0]["results"][0]["ruleId"], "authority-not-frozen", "what denies is told in the same format");
    repo.cbia(["run", "--format", "sarif", "--json"]).exits(2);
}

#[test]
fn the_built_in_repair_applies_the_normal_form_within_its_bound() {
    let repair = json!({"allow": ["out/**"], "max_changed_lines": 2});
    let repo = full();
    repo.write("data/page.md", "# Page\r\nmore\n");
    repo.set(PIPELINE, "/repair", repair.clone());
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!((statuses(&ran)["CHECK"].as_str(), statuses(&ran)["REPAIR"].as_str()), ("executed", "executed"));
    assert_eq!(repo.read(PAGE), "# Page\nmore\n");
    let report = document(&repo, "execution/repair/1/report.json");
    assert_eq!((&report["accepted"], &report["inserted"], &report["deleted"]), (&json!(true), &json!(1), &json!(1)));
    assert_eq!(document(&repo, "execution/repair/1/check.json")["passed"], json!(false));
    assert_eq!(document(&repo, "execution/check/report.json")["passed"], json!(true));
    let (_, run) = repo.only_ref("refs/cbia/runs");
    let subjects = repo.git(["log", "--reverse", "--format=%s", &run]);
    let tail: Vec<&str> = subjects.lines().skip(4).collect();
    assert_eq!(tail[..3], ["CHECK: failed, 1 finding", "REPAIR: attempt 1, 1 file changed", "CHECK: passed, 2 artifacts"]);
    let ledger = document(&repo, "execution/ledger/run.ledger.json");
    let entry = ledger["entries"].as_array().unwrap().iter().find(|e| e["artifact"] == PAGE).unwrap().clone();
    assert_eq!(entry["phase"], "REPAIR", "the phase that gave an artifact its bytes accounts for it");
    let again = repo.cbia(["run", "--json"]).ok();
    assert_eq!(ran.json()["run"], again.json()["run"]);
    assert_eq!(statuses(&again)["REPAIR"], "replayed");
    // A new run over the same output takes the repair from the cache.
    repo.set(PIPELINE, "/flow/layout/0/to", json!("dist/other/"));
    assert_eq!(statuses(&repo.cbia(["run", "--json"]).ok())["REPAIR"], "replayed");

    for (pointer, value, code) in [
        ("/repair/allow", json!(["out/*.json"]), "repair-path"),
        ("/repair/max_changed_lines", json!(1), "repair-lines"),
        ("/repair", Value::Null, "artifact-not-normal"),
    ] {
        let repo = full();
        repo.write("data/page.md", "# Page\r\nmore\n");
        repo.set(PIPELINE, "/repair", repair.clone());
        repo.set(PIPELINE, pointer, value);
        let ran = stopped(&repo, 6, if code == "artifact-not-normal" { "CHECK" } else { "REPAIR" }, "check-failed", &[code]);
        if code.starts_with("repair") {
            let message = ran.finding(code)["message"].as_str().unwrap().to_owned();
            assert!(message.contains("\n-# Page") && message.contains("\n+# Page\n"), "the diff is shown: {message}");
        }
    }
}

/// An executor that repairs: asked with the capsule, confined, and held against the bound like everybody.
#[test]
fn an_executor_repairs_within_the_same_bound() {
    if !super::executor::ready() {
        return;
    }
    const SCRIPT: &str = r#"
import hashlib, json, os, sys
request = json.load(open(sys.argv[-1]))
phase = request["phase_config"]["phase"]
outputs = request["phase_config"]["outputs"]
made = []
for path in outputs["artifacts"]:
    if phase == "GEN":
        text = open("data/" + os.path.basename(path)).read()
    else:
        assert request["repair_capsule"]["findings"], "a repair has a reason"
        text = open("execution/repair/input/" + path).read().replace("WRONG", os.environ["FIX"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    data = text.encode()
    open(path, "wb").write(data)
    made.append({"path": path, "hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
report = {"schema_version": "0.1.0", "phase": phase, "artifacts": made, "tool_versions": {"maker": "1"}}
os.makedirs(os.path.dirname(outputs["execution_report"]), exist_ok=True)
json.dump(report, open(outputs["execution_report"], "w"))
"#;
    let make = |fix: &str, repair: Value| {
        let repo = full();
        repo.write("data/data.json", "{\n\"level\": 2,\n\"name\": \"WRONG\"\n}\n");
        repo.write_json(SCHEMA, &json!({"properties": {"name": {"not": {"const": "WRONG"}}}}));
        repo.write("control/executors/maker.py", SCRIPT);
        repo.write_json(
            super::support::EXECUTOR,
            &json!({"kind": "external", "version": "1", "command": ["/usr/bin/python3", "control/executors/maker.py"], "env": {"FIX": fix}}),
        );
        repo.set(PIPELINE, "/repair", repair);
        repo
    };
    let bound = json!({"allow": ["out/*.json"], "max_changed_lines": 2, "by": "executor", "hunks": "findings"});
    let repo = make("right", bound.clone());
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!((statuses(&ran)["REPAIR"].as_str(), statuses(&ran)["CHECK"].as_str()), ("executed", "executed"), "{}", ran.stdout);
    assert!(repo.read(DATA).contains("\"right\""));
    let again = repo.cbia(["run", "--json"]).ok();
    assert_eq!((ran.json()["run"].clone(), statuses(&again)["REPAIR"].as_str()), (again.json()["run"].clone(), "replayed"));
    repo.set(PIPELINE, "/flow/layout/0/to", json!("dist/other/"));
    let other = repo.cbia(["run", "--json"]).ok();
    assert_eq!((statuses(&other)["GEN"].as_str(), statuses(&other)["REPAIR"].as_str()), ("replayed", "replayed"));

    for (fix, repair, code) in [
        ("right\",\n\"more\": \"x", bound.clone(), "repair-lines"),
        ("right", json!({"allow": ["out/*.json"], "max_changed_lines": 1, "by": "executor"}), "repair-lines"),
        ("WRONG", bound, "artifact-schema"),
    ] {
        let repo = make(fix, repair);
        let ran = repo.cbia(["run", "--json"]).exits(6);
        assert!(ran.codes().contains(&code.to_owned()), "{code}: {}", ran.stdout);
        assert!(!repo.has("out"), "{code}");
    }
    let repo = full();
    repo.write("data/page.md", "# Page\r\n");
    repo.set(PIPELINE, "/repair", json!({"allow": ["out/**"], "max_changed_lines": 9, "by": "executor"}));
    assert_eq!(repo.cbia(["run", "--json"]).exits(5).codes(), ["executor-unavailable"], "the built-in generator repairs nothing");
}

/// What a program repaired elsewhere is not repaired again, though nobody has the run: GEN's result and the repair are each asked for by key.
#[test]
fn a_repair_that_was_made_elsewhere_is_not_made_again() {
    if !super::executor::ready() {
        return;
    }
    let repo = acted(json!({"GEN": "", "REPAIR": ""}), json!({}));
    repo.commit();
    repo.git(["init", "-q", "--bare", "../shared.git"]);
    let bare = repo.at(repo.outside().join("shared.git"));
    let join = |repo: &Repo| {
        repo.git(["remote", "add", "team", bare.path().to_str().unwrap()]);
        repo.git(["config", "cbia.remote", "team"]);
    };
    join(&repo);
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!(statuses(&ran)["REPAIR"], "executed");
    repo.cbia(["push"]).ok();
    bare.git(["update-ref", "-d", &bare.only_ref("refs/cbia/runs").0]);
    assert_eq!((bare.entries("GEN").len(), bare.entries("REPAIR").len()), (1, 1));
    for (there, status) in [(true, "replayed"), (false, "executed")] {
        if !there {
            bare.git(["update-ref", "-d", &bare.entries("REPAIR")[0].0]);
        }
        let other = repo.clone_to(&format!("other-{there}"));
        join(&other);
        let again = other.cbia(["run", "--json"]).ok();
        assert_eq!(
            (statuses(&again)["GEN"].as_str(), statuses(&again)["REPAIR"].as_str()),
            ("replayed", status),
            "{}",
            again.stdout
        );
        assert_eq!((again.codes(), &again.json()["run"]), (Vec::new(), &ran.json()["run"]));
        assert_eq!(other.read(DATA), repo.read(DATA));
        let record: Value = serde_json::from_str(&other.git(["show", "refs/cbia/ledger:record.json"])).unwrap();
        assert_eq!(record["executor"].is_null(), there, "whether a program was started");
    }
}

/// What an executor does in GEN and in REPAIR is Python in its environment; both begin with every artifact as the inputs or GEN gave it.
const ACTOR: &str = r#"
import hashlib, json, os, sys
request = json.load(open(sys.argv[-1]))
phase = request["phase_config"]["phase"]
outputs = request["phase_config"]["outputs"]
def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "wb").write(data)
files = {}
for path in outputs["artifacts"]:
    files[path] = open("data/" + os.path.basename(path) if phase == "GEN" else "execution/repair/input/" + path, "rb").read()
if phase == "REPAIR":
    files["out/data.json"] = files["out/data.json"].replace(b"WRONG", b"right")
exec(os.environ[phase])
for path, data in files.items():
    write(path, data)
exec(os.environ.get("AFTER_" + phase, ""))
made = [{"path": path, "hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for path, data in files.items()]
report = {"schema_version": "0.1.0", "phase": phase, "artifacts": made, "tool_versions": {"actor": "1"}}
write(outputs["execution_report"], json.dumps(report).encode())
"#;

/// A pipeline that this executor generates for and repairs.
fn acted(env: Value, sandbox: Value) -> Repo {
    let repo = full();
    repo.write("data/data.json", "{\n\"level\": 2,\n\"name\": \"WRONG\"\n}\n");
    repo.write_json(SCHEMA, &json!({"properties": {"name": {"not": {"const": "WRONG"}}}}));
    repo.write("control/executors/actor.py", ACTOR);
    let command = json!(["/usr/bin/python3", "control/executors/actor.py"]);
    let config = json!({"kind": "external", "version": "1", "command": command, "env": env, "sandbox": sandbox});
    repo.write_json(super::support::EXECUTOR, &config);
    repo.set(
        PIPELINE,
        "/repair",
        json!({"allow": ["out/*.json"], "max_changed_lines": 2, "by": "executor", "hunks": "findings"}),
    );
    repo
}

/// Whoever repairs may touch the listed files, at the listed lines, as many of them as are allowed, and nothing else whatever.
#[test]
fn an_executor_that_touches_more_than_its_repair_allows_is_refused() {
    if !super::executor::ready() {
        return;
    }
    // What the executor does beside the repair; whether before or after it has written its files; what it is told.
    let cases = [
        ("an unlisted artifact", "REPAIR", "files['out/page.md'] = b'# Other\\n'", 5, "output-undeclared"),
        ("a new artifact", "REPAIR", "files['out/more.json'] = b'{}\\n'", 5, "output-undeclared"),
        (
            "an unlisted hunk",
            "REPAIR",
            "files['out/data.json'] = files['out/data.json'].replace(b'WRONG', b'right').replace(b'2', b'1')",
            6,
            "repair-hunk",
        ),
        (
            "one line too many",
            "REPAIR",
            "files['out/data.json'] = files['out/data.json'].replace(b'\"right\"', b'\"right\",\\n\"more\": 1')",
            6,
            "repair-lines",
        ),
        ("a mode", "AFTER_REPAIR", "os.fchmod(os.open('out/data.json', os.O_RDONLY), 0o755)", 5, "repair-mode"),
        ("the schema", "REPAIR", "write('schemas/data.schema.json', b'true\\n')", 5, "output-undeclared"),
        ("an input", "REPAIR", "write('data/data.json', b'{}\\n')", 5, "executor-input-changed"),
        ("the artifact is gone", "AFTER_REPAIR", "os.remove('out/data.json')", 5, "output-missing"),
    ];
    for (what, when, code, exit, finding) in cases {
        let mut env = json!({"GEN": "", "REPAIR": ""});
        env[when] = json!(code);
        let repo = acted(env, json!({}));
        let schema = repo.read(SCHEMA);
        let ran = repo.cbia(["run", "--json"]);
        assert_eq!((ran.code, ran.codes().contains(&finding.to_owned())), (Some(exit), true), "{what}: {}", ran.stdout);
        assert_eq!(statuses(&ran)["REPAIR"], "failed", "{what}");
        assert!(!repo.has("out") && !repo.has("dist"), "{what}");
        assert_eq!((repo.read(SCHEMA), repo.refs("refs/cbia/runs")), (schema, vec![]), "{what}");
        repo.fsck();
    }
    let repo = acted(json!({"GEN": "", "REPAIR": ""}), json!({}));
    repo.run();
    assert!(repo.read(DATA).contains("\"right\""), "the repair alone is allowed");
}

/// The executor is not asked again for a change that is about the phases after it: here it fails if it is.
#[test]
fn a_later_phases_configuration_does_not_invoke_the_executor() {
    if !super::executor::ready() {
        return;
    }
    let once = "assert os.environ['CALLED'] == 'for the first time'";
    let made = || acted(json!({"GEN": once, "REPAIR": once}), json!({"pass_env": ["CALLED"]}));
    type Change = fn(&Repo);
    let changes: [(&str, Change, &str); 4] = [
        ("schema", |repo| repo.set(SCHEMA, "/properties/level", json!({"maximum": 2})), "executed"),
        ("selection", |repo| repo.set(PIPELINE, "/select/rules/1/reason", json!("other")), "replayed"),
        ("layout", |repo| repo.set(PIPELINE, "/flow/layout/0/to", json!("dist/other/")), "replayed"),
        ("destinations", |repo| repo.set(PIPELINE, "/promote", json!({"destinations": ["out/**"]})), "replayed"),
    ];
    for (what, change, check) in changes {
        let repo = made().with("CALLED", Some("for the first time"));
        repo.run();
        change(&repo);
        let ran = repo.with("CALLED", Some("again")).cbia(["run", "--json"]).ok();
        let now = statuses(&ran);
        assert_eq!((now["GEN"].as_str(), now["CHECK"].as_str()), ("replayed", check), "{what}");
        assert_eq!((now["REPAIR"].as_str(), now["EVAL"].as_str()), ("replayed", "executed"), "{what}");
    }
    // It does fail if it is called again.
    let repo = made().with("CALLED", Some("for the first time"));
    repo.run();
    repo.write("data/page.md", "# Another\n");
    let failed = repo.with("CALLED", Some("again")).cbia(["run", "--json"]).exits(5);
    assert_eq!((statuses(&failed)["GEN"].as_str(), failed.codes()), ("failed", vec!["executor-failed".to_owned()]));
}

/// What a repair cannot mend stops the run as before.
#[test]
fn what_no_repair_mends_fails_the_check() {
    let repo = full();
    repo.write("data/data.json", "{\"level\": 4, \"name\": \"x\"}");
    repo.set(PIPELINE, "/repair", json!({"allow": ["out/**"], "max_changed_lines": 20, "attempts": 2}));
    let ran = repo.cbia(["run", "--json"]).exits(6);
    assert_eq!(ran.codes(), ["artifact-schema"], "{}", ran.stdout);
    assert_eq!(document(&repo, "execution/repair/1/report.json")["accepted"], json!(true));
    assert!(!repo.has("out"));
}

#[test]
fn selection_by_query_and_by_rules() {
    const POLICY: &str = "package select\n\naccept[path] := verdict if {\n\tsome path, artifact in input.artifacts\n\tverdict := judged(artifact)\n}\n\njudged(artifact) := {\"keep\": true, \"reason\": \"small enough\"} if artifact.json.level < 3\n\njudged(artifact) := {\"keep\": false, \"reason\": \"a page\"} if artifact.json == null\n";
    let repo = full();
    repo.write(
        "policy/select/select.rego",
        "package select\n\naccept contains path if {\n\tsome path, artifact in input.artifacts\n\tartifact.json.level < 3\n}\n",
    );
    repo.set(PIPELINE, "/select", json!({"query": "data.select.accept"}));
    let ran = repo.cbia(["run", "--json"]).ok();
    let selection = document(&repo, "execution/select/selection.json");
    let kept: Vec<(&Value, &Value)> =
        selection["artifacts"].as_array().unwrap().iter().map(|a| (&a["path"], &a["keep"])).collect();
    assert_eq!(kept, [(&json!(DATA), &json!(true)), (&json!(PAGE), &json!(false))]);
    assert!(repo.has("dist/site/data.json") && !repo.has("dist/site/page.md"), "what is pruned is not packaged");
    assert!(repo.has(PAGE), "and stays where it was generated");
    let again = repo.cbia(["run", "--json"]).ok();
    assert_eq!(ran.json()["run"], again.json()["run"]);
    // Only SELECT's policies changed: GEN and CHECK stand.
    repo.replace("policy/select/select.rego", "< 3", "< 2");
    let changed = repo.cbia(["run", "--json"]).ok();
    let now = statuses(&changed);
    assert_eq!((now["GEN"].as_str(), now["CHECK"].as_str(), now["SELECT"].as_str()), ("replayed", "replayed", "executed"));

    type Change = fn(&Repo);
    let refused: [(Change, &str); 5] = [
        (|repo| repo.remove("policy/select/select.rego"), "policy-missing"),
        (|repo| repo.write("policy/select/select.rego", "package select\n\naccept := 1\n"), "verdict-malformed"),
        (|repo| repo.write("policy/select/select.rego", "package select\n\naccept := [\"out/other\"]\n"), "verdict-unknown"),
        (|repo| repo.write("policy/select/select.rego", "package select\n\naccept := {}\n"), "verdict-missing"),
        (
            |repo| repo.set(PIPELINE, "/select", json!({"rules": [{"paths": "out/*.json", "keep": true, "reason": "r"}]})),
            "verdict-missing",
        ),
    ];
    for (change, code) in refused {
        let repo = full();
        repo.write("policy/select/select.rego", "package select\n\naccept := [path | some path, _ in input.artifacts]\n");
        repo.set(PIPELINE, "/select", json!({"query": "data.select.accept"}));
        change(&repo);
        let ran = repo.cbia(["run", "--json"]).exits(1);
        assert!(ran.codes().iter().all(|found| found == code), "{code}: {}", ran.stdout);
        assert_eq!(statuses(&ran)["SELECT"], "failed", "{code}");
        assert!(!repo.has("out"), "{code}");
    }
    // A policy of SELECT that cannot be used denies before anything is generated.
    let repo = full();
    repo.write("policy/select/select.rego", POLICY);
    repo.set(PIPELINE, "/select", json!({"query": "data.select.accept"}));
    let ran = repo.cbia(["run", "--json"]);
    assert!(ran.code == Some(0) || ran.codes() == ["policy-forbidden"], "{}", ran.stdout);
}

#[test]
fn what_cannot_be_laid_out_stops_at_flow() {
    for (layout, code) in [
        (json!([{"from": "out/*.json", "to": "dist/"}]), "layout-unplaced"),
        (json!([{"from": "out/*.json", "to": "dist/"}, {"from": "out/*.md", "to": "control/"}]), "layout-destination"),
        (json!([{"from": "out/**", "to": "data/"}]), "layout-destination"),
    ] {
        let repo = full();
        repo.set(PIPELINE, "/flow/layout", layout.clone());
        let ran = repo.cbia(["run", "--json"]).exits(1);
        assert!(ran.codes().contains(&code.to_owned()), "{layout} {}", ran.stdout);
        assert_eq!(statuses(&ran)["FLOW"], "failed");
        assert!(!repo.has("out") && !repo.has("dist"));
    }
}

#[test]
fn eval_judges_the_final_state() {
    let repo = full();
    repo.write(
        "policy/assurance.rego",
        "package assurance\n\ndefault allow := false\n\nallow if count(input.artifact_hashes) < 2\n",
    );
    stopped(&repo, 1, "EVAL", "denied", &["assurance-denied"]);
    assert_eq!(repo.events(), ["denied"]);
    assert!(repo.read("opa/decision.json").contains("\"decision\": \"DENY\""));

    let manifest = |path: &str| json!({"schema_version": "0.1.0", "documents": [{"name": "thing", "path": path}]});
    for (path, exit) in [
        ("opa/decision.json", 0),
        ("execution/check/report.md", 0),
        ("control/objectives.json", 0),
        ("inputs/control/objectives.json", 0),
        (DATA, 0),
        ("execution/eval/manifest.json", 1),
        ("no/such.json", 1),
    ] {
        let repo = full();
        repo.write_json("assurance/audit_bundle.manifest.json", &manifest(path));
        let ran = repo.cbia(["run", "--json"]).exits(exit);
        assert_eq!(ran.codes(), if exit == 0 { vec![] } else { vec!["audit-incomplete"] }, "{path}");
    }
    let repo = full();
    repo.write("assurance/audit_bundle.manifest.json", "{}\n");
    let ran = repo.cbia(["run", "--json"]).exits(3);
    assert!(ran.codes().iter().all(|code| code == "document-schema"), "{}", ran.stdout);
}

/// An execution DAG may leave out what is optional, and nothing else.
#[test]
fn a_declared_dag_says_which_phases_a_run_has() {
    let repo = full();
    let dag = |phases: &[&str]| json!({"schema_version": "0.1.0", "phases": phases, "edges": []});
    repo.write_json("control/execution_dag.json", &dag(&["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"]));
    let ran = repo.cbia(["run", "--json"]).ok();
    let now = statuses(&ran);
    for (phase, status) in
        [("CHECK", "executed"), ("STRUCT", "skipped"), ("SELECT", "skipped"), ("FLOW", "skipped"), ("EVAL", "executed")]
    {
        assert_eq!(now[phase], status, "{phase}");
    }
    assert_eq!(ran.codes(), ["phase-not-run"; 3], "what is configured and left out is told");
    assert_eq!(repo.read(DATA), "{\"level\": 2,\n\"name\": \"x\"}\n", "nothing was normalized");
    assert!(!repo.has("dist"));
    let again = repo.cbia(["run", "--json"]).ok();
    assert_eq!(ran.json()["run"], again.json()["run"]);
    repo.write_json("control/execution_dag.json", &dag(&["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "FLOW", "CHECK"]));
    let ran = repo.cbia(["run", "--json"]).exits(1);
    assert_eq!(ran.codes(), ["execution-dag-order"]);
}

/// A stored run whose later phases were made up is not believed: its documents are what this program would write, or it is put aside.
#[test]
fn a_run_that_never_passed_its_phases_is_put_aside() {
    let repo = full();
    repo.run();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    // The chain ends before EVAL.
    for back in 1..=5 {
        let bad = repo.git(["rev-parse", &format!("{run}~{back}")]);
        repo.git(["update-ref", &name, &bad]);
        let ran = repo.cbia(["run", "--json"]).ok();
        assert_eq!(ran.finding("run-invalid")["severity"], "warning");
        assert_eq!(repo.only_ref("refs/cbia/runs").1, run, "{back}");
    }
    assert!(repo.has(NOTE) || repo.has(DATA));
}

/// A run from elsewhere that is whole in itself, and whose CHECK says that it passed although it did not: it is worked out again, and not used.
#[test]
fn a_fetched_run_is_not_believed_to_have_passed_its_check() {
    let liar = full();
    // Nothing is normalized, so that nothing later looks at the artifacts again.
    liar.set(PIPELINE, "/struct", Value::Null);
    liar.write("data/data.json", "{\"level\": 4, \"name\": \"x\"}\n");
    liar.commit();
    stopped(&liar, 6, "CHECK", "check-failed", &["artifact-schema"]);
    // What its own cache answers for CHECK is made up, and the run is stored with it.
    let (name, entry) = liar.entries("CHECK")[0].clone();
    let shown = |path: &str| liar.git(["show", &format!("{entry}:{path}")]);
    let (at, at_meta) = ("artifacts/execution/check/report.json", "cache.meta.json");
    let mut report: Value = serde_json::from_str(&shown(at)).unwrap();
    (report["passed"], report["findings"]) = (json!(true), json!([]));
    let bytes = git_cbia::document::json::pretty(&report);
    let mut meta: Value = serde_json::from_str(&shown(at_meta)).unwrap();
    let listed = meta["artifacts"].as_array_mut().unwrap();
    let file = listed.iter_mut().find(|file| file["path"] == "execution/check/report.json").unwrap();
    (file["sha256"], file["bytes"]) = (json!(Digest::of(&bytes)), json!(bytes.len()));
    let (meta, bytes) = (git_cbia::document::json::pretty(&meta), String::from_utf8(bytes).unwrap());
    let changes = [(at, Some(bytes.as_str())), (at_meta, Some(std::str::from_utf8(&meta).unwrap()))];
    let forged = super::poison::on_tree(&liar, &entry, &super::poison::changed_tree(&liar, &entry, &changes));
    liar.git(["update-ref", &name, &forged]);
    liar.cbia(["run"]).ok();
    let (run, _) = liar.only_ref("refs/cbia/runs");

    let victim = liar.clone_to("victim");
    victim.git(["fetch", "-q", liar.path().to_str().unwrap(), &format!("{run}:{run}")]);
    assert!(!victim.has("out"));
    let ran = victim.cbia(["run", "--json"]).exits(6);
    assert_eq!(ran.codes(), ["run-invalid", "artifact-schema"], "{}", ran.stdout);
    assert!(ran.finding("run-invalid")["message"].as_str().unwrap().contains("CHECK"), "{}", ran.stdout);
    assert!(!victim.has("out") && victim.refs("refs/cbia/runs").is_empty());

    // A run that does hold is worked out once, and believed from then on.
    let honest = full();
    honest.commit();
    honest.run();
    let (run, tip) = honest.only_ref("refs/cbia/runs");
    let other = honest.clone_to("other");
    other.git(["fetch", "-q", honest.path().to_str().unwrap(), &format!("{run}:{run}")]);
    for check in ["executed", "replayed"] {
        let ran = other.cbia(["run", "--json"]).ok();
        assert_eq!((ran.gen_status().as_str(), statuses(&ran)["CHECK"].as_str()), ("replayed", check));
        assert_eq!(ran.json()["run"], json!(tip));
    }
}
