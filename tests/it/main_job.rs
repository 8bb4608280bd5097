//! The main job: a run, the same run replayed, and what git makes of what it left.

use std::collections::{BTreeMap, BTreeSet};

use git_cbia::document::digest::Digest;
use serde_json::{Value, json};

use super::support::{NOTE, NOTE_TEXT, Ran, Repo};

/// What a run writes into the work tree besides the artifacts.
const EVIDENCE: [&str; 19] = [
    "control/runtime/pre_gen_capsule.json",
    "execution/check/report.json",
    "execution/check/report.md",
    "execution/eval/audit_bundle.json",
    "execution/eval/manifest.json",
    "execution/flow/manifest.json",
    "execution/gen/executor.report.json",
    "execution/gen/outputs.json",
    "execution/gen/request.json",
    "execution/ledger/artifact_hashes.json",
    "execution/ledger/inputs.manifest.json",
    "execution/ledger/run.ledger.json",
    "execution/lock/report.json",
    "execution/select/selection.json",
    "execution/struct/metadata.json",
    "opa/bundle.hash",
    "opa/decision.json",
    "opa/explain.json",
    "opa/input.json",
];

/// The one part of the evidence that says how it was this time.
const RUN_LEDGER: &str = "execution/ledger/run.ledger.json";

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
fn has_members(value: &Value, expected: &[&str]) {
    assert_eq!(members(value), expected.iter().copied().collect(), "{value:#}");
}

/// The lines of a run's output with its ids taken out.
fn shape(ran: &Ran) -> String {
    let long = |word: &str| word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit());
    let mut out = String::new();
    for line in ran.stdout.lines() {
        for word in line.split_inclusive([' ', '(', ')', '\n']) {
            let bare = word.trim_end_matches([' ', '(', ')']);
            out.push_str(&if long(bare) { word.replace(bare, "#") } else { word.to_owned() });
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_first_run_executes_and_the_second_replays() {
    let repo = Repo::started();
    let before = repo.files(&[]);
    let first = repo.cbia(["run"]).ok();
    assert_eq!(
        shape(&first),
        "AUTHORITY_LOCK  passed\n\
         PRE_GEN         passed    kernel ALLOW (capsule #)\n\
         OPA_GATE        passed    data.assurance.allow = true\n\
         GEN             executed  2 artifacts (key #)\n\
         CHECK           executed\n\
         STRUCT          executed\n\
         SELECT          executed  2 artifacts kept\n\
         FLOW            executed  2 files\n\
         EVAL            executed  data.assurance.allow = true\n  \
           #  artifacts/checklist.md\n  \
           #  artifacts/rules.json\n\
         run    #\n\
         record # on refs/cbia/ledger\n\
         admitted\n"
    );
    assert_eq!(first.stderr, "work tree: 23 written, 0 in place\n");
    let written = repo.files(&[]);
    let new: BTreeSet<&str> = written.keys().filter(|path| !before.contains_key(*path)).map(String::as_str).collect();
    let artifacts = ["artifacts/checklist.md", "artifacts/rules.json"];
    let package = ["dist/bundle/checklist.md", "dist/bundle/rules.json"];
    assert_eq!(new, EVIDENCE.into_iter().chain(artifacts).chain(package).collect());
    assert!(before.iter().all(|(path, bytes)| written[path] == *bytes), "a run changes none of its inputs");
    assert_eq!(
        written["artifacts/checklist.md"],
        format!(
            "# Checklist\n\nA checklist of every rule in the handbook.\n\n- [ ] Answer within one working day.\n\
             - [ ] Say what you know, what you do not know, and what happens next.\n\
             - [ ] Close a request only when the person who opened it agrees.\n\n\
             Source: docs/handbook.md (sha256 {})\n",
            Digest::of(repo.read("docs/handbook.md").as_bytes())
        )
        .into_bytes()
    );
    let runs = repo.refs("refs/cbia/runs");

    repo.remove("opa");
    repo.remove("artifacts/rules.json");
    let second = repo.cbia(["run"]).ok();
    assert_eq!(shape(&second), shape(&first).replace("executed", "replayed"));
    assert_eq!(second.stderr, "work tree: 6 written, 17 in place\n");
    let mut replayed = repo.files(&[]);
    let (was, is) = (written[RUN_LEDGER].clone(), replayed.insert(RUN_LEDGER.into(), written[RUN_LEDGER].clone()).unwrap());
    assert_eq!(replayed, written, "byte for byte");
    let (was, is) = (String::from_utf8(was).unwrap(), String::from_utf8(is).unwrap());
    assert_eq!(is, was.replace("\"hit\": false", "\"hit\": true"));
    assert_eq!(repo.refs("refs/cbia/runs"), runs);
    assert_eq!(repo.events(), ["admitted", "replayed"]);
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());
}

#[test]
fn the_work_trees_run_ledger_says_what_the_cache_did() {
    let repo = Repo::tiny();
    for hit in [false, true] {
        let key = repo.cbia(["run", "--json"]).ok().json()["phases"][3]["cache_key"].clone();
        let (name, _) = repo.only_entry();
        assert_eq!(name, format!("refs/cbia/cache/{}", key.as_str().unwrap()));
        let ledger: Value = serde_json::from_str(&repo.read(RUN_LEDGER)).unwrap();
        let entries = ledger["entries"].as_array().unwrap();
        let told: Vec<(&str, &Value)> = entries.iter().map(|e| (e["phase"].as_str().unwrap(), &e["cache"])).collect();
        let used = json!({"hit": hit, "cache_key": key});
        let none = Value::Null;
        assert_eq!(
            told[..5],
            [("AUTHORITY_LOCK", &none), ("PRE_GEN", &none), ("OPA_GATE", &none), ("GEN", &used), ("GEN", &used)]
        );
        let later: Vec<(&str, bool)> = told[5..].iter().map(|(phase, used)| (*phase, used["hit"] == json!(hit))).collect();
        assert_eq!(later, ["CHECK", "STRUCT", "SELECT", "FLOW", "EVAL"].map(|phase| (phase, true)));
        let kept = repo.git(["show", &format!("refs/cbia/ledger:{RUN_LEDGER}")]);
        assert_eq!(format!("{kept}\n"), repo.read(RUN_LEDGER), "the record keeps what the work tree was told");
    }
}

#[test]
fn json_has_the_members_that_are_documented() {
    let repo = Repo::tiny();
    let document = [
        "artifacts",
        "capsule_hash",
        "command",
        "event",
        "executor_key",
        "findings",
        "miss",
        "outcome",
        "phases",
        "record",
        "run",
        "schema_version",
        "state_key",
    ];
    let finding = ["code", "column", "expected", "got", "hint", "line", "message", "path", "pointer", "severity"];
    // (arguments, outcome, event, whether a run and a record are named)
    let cases: [(&[&str], &str, &str, bool, bool); 6] = [
        (&["status"], "would-run", "none", false, false),
        (&["run", "--dry-run"], "admitted", "none", false, false),
        (&["run"], "admitted", "executed", true, true),
        (&["run"], "admitted", "replayed", true, true),
        (&["status"], "would-replay", "none", true, false),
        (&["run", "--dry-run"], "admitted", "none", false, false),
    ];
    for (arguments, outcome, event, run, record) in cases {
        let ran = repo.cbia(arguments.iter().chain(&["--json"])).ok();
        let got = ran.json();
        has_members(&got, &document);
        assert_eq!((&got["command"], &got["outcome"], &got["event"]), (&json!(arguments[0]), &json!(outcome), &json!(event)));
        assert_eq!((got["run"].is_string(), got["record"].is_string()), (run, record), "{arguments:?}");
        for phase in got["phases"].as_array().unwrap() {
            has_members(phase, &["artifacts", "cache_key", "phase", "status"]);
        }
        let phases: Vec<&Value> = got["phases"].as_array().unwrap().iter().map(|p| &p["phase"]).collect();
        assert_eq!(
            phases,
            ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "CHECK", "REPAIR", "STRUCT", "SELECT", "FLOW", "EVAL", "PROMOTE"]
        );
        if event != "none" {
            assert_eq!(got["artifacts"], json!({NOTE: Digest::of(NOTE_TEXT.as_bytes())}));
            assert_eq!(repo.read(NOTE), NOTE_TEXT);
        }
        assert_eq!(ran.stderr, "");
    }
    repo.write("data/words.txt", "three\n");
    let got = repo.cbia(["status", "--json"]).ok().json();
    has_members(&got["miss"][0], &["component", "now", "path", "phase", "was"]);
    repo.set("control/authority.ledger.json", "/frozen", json!(false));
    let got = repo.cbia(["run", "--json"]).exits(1).json();
    has_members(&got, &document);
    has_members(&got["findings"][0], &finding);
    assert_eq!((&got["outcome"], &got["event"], &got["run"]), (&json!("denied"), &json!("none"), &Value::Null));
}

#[test]
fn status_and_dry_run_write_nothing() {
    let repo = Repo::tiny();
    let before = repo.files(&[]);
    for arguments in [&["status"][..], &["run", "--dry-run"]] {
        repo.cbia(arguments).ok();
    }
    assert_eq!(repo.files(&[]), before);
    assert_eq!(repo.refs("refs/"), []);
}

#[test]
fn git_reads_what_a_run_leaves() {
    let repo = Repo::tiny();
    repo.run();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    assert_eq!(format!("{}\n", repo.git(["show", &format!("{run}:opa/decision.json")])), repo.read("opa/decision.json"));
    assert_eq!(repo.git(["show", &format!("{run}:{NOTE}")]) + "\n", NOTE_TEXT);
    assert_eq!(repo.git(["show", &format!("{run}:inputs/data/words.txt")]), "one two");
    assert_eq!(
        repo.git(["log", "--reverse", "--format=%s|%(trailers:key=Cbia-Phase,valueonly,separator=%x2C)|%(trailers:key=Cbia-Decision,valueonly,separator=%x2C)|%an|%ae|%ad|%cn|%ce|%cd", "--date=raw", &run]),
        ["AUTHORITY_LOCK: 1 authority locked|AUTHORITY_LOCK|ALLOW", "PRE_GEN: kernel ALLOW|PRE_GEN|ALLOW", "OPA_GATE: policy ALLOW|OPA_GATE|ALLOW", "GEN: 1 artifact|GEN|", "CHECK: passed, 1 artifact|CHECK|", "STRUCT: 1 artifact|STRUCT|", "SELECT: 1 kept, 0 pruned|SELECT|", "FLOW: 1 file|FLOW|", "EVAL: policy ALLOW|EVAL|ALLOW"]
            .map(|line| format!("{line}|git-cbia|git-cbia@localhost|0 +0000|git-cbia|git-cbia@localhost|0 +0000"))
            .join("\n")
    );
    let keys: Vec<&str> = name.rsplit('/').take(2).collect();
    assert_eq!(repo.git(["log", "-1", "--format=%(trailers:key=Cbia-State-Key,valueonly)", &run]).trim(), keys[1]);
    assert_eq!(repo.git(["log", "-1", "--format=%(trailers:key=Cbia-Executor-Key,valueonly)", &run]).trim(), keys[0]);
    assert_eq!(
        repo.git(["diff", "--name-status", &format!("{run}~6"), &format!("{run}~5")]),
        "A\texecution/gen/executor.report.json\nA\texecution/gen/outputs.json\nA\texecution/gen/request.json\n\
         A\texecution/ledger/artifact_hashes.json\nA\texecution/ledger/run.ledger.json\nA\tout/note.txt"
    );
    assert_eq!(repo.git(["log", "-1", "--format=%s|%an|%ae|%ad", "--date=raw", "refs/cbia/ledger"]), {
        let subject = repo.git(["log", "-1", "--format=%s", "refs/cbia/ledger"]);
        assert!(subject.starts_with("admitted"), "{subject}");
        format!("{subject}|Ada|ada@example.org|1700000000 +0000")
    });
    let parents = repo.git(["log", "-1", "--format=%P", "refs/cbia/ledger"]);
    assert_eq!(parents.split(' ').nth(1), Some(run.as_str()), "the record's second parent is the run");
    let in_work_tree: BTreeMap<String, Vec<u8>> = repo.files(&["docs", "data", "policy", "README", ".gitignore"]);
    for path in EVIDENCE.iter().filter(|path| **path != RUN_LEDGER).chain(&[NOTE]) {
        let blob = repo.git(["rev-parse", &format!("{run}:{path}")]);
        assert_eq!(repo.git_with(["hash-object", "--stdin"], &in_work_tree[*path]), blob, "{path}");
    }
}

#[test]
fn garbage_collection_loses_nothing() {
    let repo = Repo::tiny();
    repo.run();
    repo.set("control/authority.ledger.json", "/frozen", json!(false));
    repo.cbia(["run"]).exits(1);
    repo.set("control/authority.ledger.json", "/frozen", json!(true));
    let refs = repo.refs("refs/cbia");
    repo.git(["gc", "-q", "--prune=now"]);
    repo.git(["pack-refs", "--all"]);
    repo.git(["reflog", "expire", "--all", "--expire=now"]);
    repo.git(["gc", "-q", "--prune=now"]);
    repo.fsck();
    assert_eq!(repo.refs("refs/cbia"), refs);
    repo.remove("out");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    assert_eq!(repo.events(), ["admitted", "denied", "replayed"]);
    repo.fsck();
}

#[test]
fn hashes_are_the_ones_that_anybody_can_compute() {
    let repo = Repo::tiny();
    repo.run();
    let capsule: Value = serde_json::from_str(&repo.read("control/runtime/pre_gen_capsule.json")).unwrap();
    let listing = |paths: &[&str]| {
        let line = |path: &&str| format!("{}  {path}\n", Digest::of(repo.read(path).as_bytes()));
        json!(Digest::of(paths.iter().map(line).collect::<String>().as_bytes()))
    };
    assert_eq!(capsule["policy_bundle_hash"], listing(&["policy/assurance.rego", "policy/kernel.rego"]));
    let seen = [
        "control/authority.ledger.json",
        "control/objectives.json",
        "control/templates/note.txt.j2",
        "data/words.txt",
        "docs/rule.md",
    ];
    let manifest: Value = serde_json::from_str(&repo.read("execution/ledger/inputs.manifest.json")).unwrap();
    let listed: Vec<&str> = manifest["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(capsule["inputs_manifest_hash"], listing(&listed));
    assert!(listed.iter().all(|path| seen.contains(path)), "{listed:?}");
    assert_eq!(capsule["authority_set_hashes"], json!({"rule": Digest::of(b"Be brief.\n")}));
    let document = repo.cbia(["status", "--json"]).ok().json();
    assert_eq!(document["capsule_hash"], json!(Digest::of(repo.read("control/runtime/pre_gen_capsule.json").as_bytes())));
}

#[test]
fn what_a_schema_lets_be_absent_the_default_policy_lets_be_absent_too() {
    let repo = Repo::started();
    let mut objectives: Value = serde_json::from_str(&repo.read("control/objectives.json")).unwrap();
    objectives[0]["source"].as_object_mut().unwrap().remove("evidence");
    repo.write_json("control/objectives.json", &objectives);
    repo.write_json(
        "control/execution_dag.json",
        &serde_json::json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"]}),
    );
    assert_eq!(repo.run(), "executed");
    // Neither evidence nor a justification is nothing at all.
    objectives[0].as_object_mut().unwrap().remove("justification");
    repo.write_json("control/objectives.json", &objectives);
    assert!(repo.cbia(["run", "--json"]).exits(1).codes().contains(&"assurance-denied".to_owned()));
}
