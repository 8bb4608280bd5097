//! One test per ingredient of a key: what changes it makes a miss that names it, and nothing else does.

use git_cbia::document::cache_entry::{CacheKey, ToolVersions};
use git_cbia::document::digest::Digest;
use git_cbia::document::phase::Phase;
use serde_json::{Value, json};

use super::support::{EXECUTOR, LEDGER, NOTE, PIPELINE, Repo};

/// The capsule follows from the other components, and is named last.
const CAPSULE: (&str, Option<&str>) = ("pre_gen_capsule_hash", None);

/// Runs the tiny pipeline, makes a change, and holds what `git cbia status` says against `expected`: (component, path). What a run then does
/// must be what the status said.
#[track_caller]
fn misses(change: impl Fn(&Repo), expected: &[(&str, Option<&str>)]) {
    let repo = Repo::tiny();
    repo.run();
    change(&repo);
    let status = repo.cbia(["status", "--json"]).ok().json();
    assert_eq!(status["outcome"], "would-run", "{status:#}");
    let told: Vec<(&str, Option<&str>)> = status["miss"]
        .as_array()
        .unwrap()
        .iter()
        .inspect(|miss| {
            assert_eq!(miss["phase"], "GEN");
            assert!(miss["was"].is_string() && miss["now"].is_string() && miss["was"] != miss["now"], "{miss}");
        })
        .map(|miss| (miss["component"].as_str().unwrap(), miss["path"].as_str()))
        .collect();
    assert_eq!(told, expected);
    let told = repo.cbia(["status"]).ok().stdout;
    for (component, path) in expected {
        let line = told.lines().find(|line| line.starts_with(&format!("GEN misses: {component}"))).unwrap();
        assert!(path.is_none() || told.contains(&format!("GEN misses: {component} ({}) was ", path.unwrap())), "{line}");
    }
    assert_eq!(repo.run(), "executed");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.entries("GEN").len(), 2);
}

/// Runs the tiny pipeline, makes a change, and asserts that nothing is generated again.
#[track_caller]
fn hits(change: impl Fn(&Repo)) {
    let repo = Repo::tiny();
    repo.run();
    change(&repo);
    let status = repo.cbia(["status", "--json"]).ok().json();
    assert_eq!((&status["outcome"], &status["miss"]), (&json!("would-replay"), &json!([])), "{status:#}");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.entries("GEN").len(), 1);
}

#[test]
fn the_authority_ledger() {
    misses(
        |repo| repo.set(LEDGER, "/authority_set/0/title", json!("Rule.")),
        &[("authority_ledger_hash", Some(LEDGER)), CAPSULE],
    );
}

#[test]
fn a_policy_file() {
    let policy = "policy/assurance.rego";
    misses(
        |repo| repo.replace(policy, "allow if", "# one more byte\nallow if"),
        &[("policy_bundle_hash", Some(policy)), CAPSULE],
    );
}

#[test]
fn an_authority_that_is_pinned_anew() {
    misses(
        |repo| {
            repo.write("docs/rule.md", "Be brief!\n");
            repo.set(LEDGER, "/authority_set/0/hash/value", json!(Digest::of(b"Be brief!\n")));
        },
        &[("authority_ledger_hash", Some(LEDGER)), ("inputs_manifest_hash", Some("docs/rule.md")), CAPSULE],
    );
}

#[test]
fn the_execution_dag_which_only_the_capsule_holds() {
    misses(
        |repo| {
            let phases = ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"];
            repo.write_json("control/execution_dag.json", &json!({"phases": phases, "edges": []}));
        },
        &[("pre_gen_capsule_hash", Some("control/execution_dag.json"))],
    );
}

#[test]
fn the_dependency_graph() {
    let path = "control/dependency.graph.json";
    misses(
        |repo| {
            let nodes = ["rule", "O-1", NOTE].map(|id| json!({ "id": id }));
            let edges = json!([{"from": NOTE, "to": "O-1"}, {"from": "O-1", "to": "rule"}]);
            repo.write_json(path, &json!({"nodes": nodes, "edges": edges}));
        },
        &[("inputs_manifest_hash", Some(path)), CAPSULE],
    );
}

#[test]
fn an_input() {
    let path = "data/words.txt";
    misses(|repo| repo.write(path, "one twO\n"), &[("inputs_manifest_hash", Some(path)), CAPSULE]);
}

#[test]
fn one_more_input() {
    let path = "data/more.txt";
    misses(|repo| repo.write(path, ""), &[("inputs_manifest_hash", Some(path)), CAPSULE]);
}

#[test]
fn a_template() {
    let path = "control/templates/note.txt.j2";
    misses(|repo| repo.replace(path, "words:", "words: "), &[("inputs_manifest_hash", Some(path)), CAPSULE]);
}

#[test]
fn the_objectives() {
    let path = "control/objectives.json";
    misses(|repo| repo.set(path, "/0/statement", json!("A note!")), &[("inputs_manifest_hash", Some(path)), CAPSULE]);
}

#[test]
fn the_declared_artifacts() {
    misses(
        |repo| repo.set(PIPELINE, "/gen/artifacts/0/path", json!("out/other.txt")),
        &[("phase_config_hash", Some(PIPELINE)), CAPSULE],
    );
}

#[test]
fn the_declared_inputs() {
    misses(
        |repo| repo.set(PIPELINE, "/inputs", json!(["data/**", "more/**"])),
        &[("phase_config_hash", Some(PIPELINE)), CAPSULE],
    );
}

#[test]
fn the_executors_configuration() {
    for config in [
        json!({"kind": "local", "version": "1"}),
        json!({"kind": "local", "version": "2", "env": {"A": "1"}}),
        json!({"kind": "local", "version": "1", "phase_config": {"a": 1}}),
    ] {
        misses(|repo| repo.write_json(EXECUTOR, &config), &[("pre_gen_capsule_hash", Some(EXECUTOR))]);
    }
}

#[test]
fn every_value_of_the_executors_configuration_is_a_run_of_its_own() {
    let repo = Repo::tiny();
    let configs = [
        json!({"kind": "local", "version": "1"}),
        json!({"kind": "local", "version": "2"}),
        json!({"kind": "local", "version": "1", "env": {"A": "1"}}),
        json!({"kind": "local", "version": "1", "env": {"A": "2"}}),
        json!({"kind": "local", "version": "1", "timeout_s": 3}),
    ];
    for config in &configs {
        repo.write_json(EXECUTOR, config);
        assert_eq!(repo.run(), "executed", "{config}");
    }
    for config in &configs {
        repo.write_json(EXECUTOR, config);
        assert_eq!(repo.run(), "replayed", "{config}");
    }
    let states: std::collections::BTreeSet<String> =
        repo.refs("refs/cbia/runs").iter().map(|(name, _)| name.split('/').nth(3).unwrap().to_owned()).collect();
    assert_eq!((states.len(), repo.refs("refs/cbia/runs").len()), (1, configs.len()), "one state, one run per executor");
    let elsewhere = repo.outside().join("executor.json");
    std::fs::write(&elsewhere, json!({"kind": "local", "version": "9"}).to_string()).unwrap();
    let named = repo.with("CBIA_GEN_EXECUTOR_CONFIG", elsewhere.to_str());
    assert_eq!(named.run(), "executed");
    repo.remove(EXECUTOR);
    assert_eq!(named.run(), "replayed");
    // What is kept with the record names the variable, not a path of this machine.
    std::fs::write(&elsewhere, json!({"kind": "magic", "version": "9"}).to_string()).unwrap();
    let refused = named.cbia(["run", "--json"]).exits(3);
    assert_eq!(refused.finding("document-schema")["path"], "CBIA_GEN_EXECUTOR_CONFIG");
    assert!(!refused.stdout.contains(elsewhere.to_str().unwrap()), "{}", refused.stdout);
}

#[test]
fn what_is_no_ingredient() {
    hits(|repo| {
        let file = std::fs::File::options().write(true).open(repo.path().join("data/words.txt")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    });
    hits(|repo| repo.write("data/words.txt", repo.read("data/words.txt")));
    hits(|repo| repo.write("README.md", "A tiny pipeline. With a comment.\n"));
    hits(|repo| repo.write("unrelated/file.txt", "x\n"));
    hits(|repo| repo.replace("policy/assurance_test.rego", "test_deny", "# a comment\ntest_deny"));
    hits(|repo| repo.write("policy/push/push.rego", "package push\n"));
    hits(|repo| repo.commit());
    hits(|repo| repo.remove("execution"));
    hits(|repo| repo.write("control/release.allowed_signers", "ada@example.org ssh-ed25519 AAAA\n"));
    #[cfg(unix)]
    hits(|repo| {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(repo.path().join("data/words.txt"), mode).unwrap();
    });
}

#[test]
fn a_later_phases_configuration_makes_a_new_run_of_the_same_output() {
    let repo = Repo::tiny();
    repo.run();
    repo.write_json("schemas/note.schema.json", &json!({"type": "string"}));
    assert_eq!(repo.run(), "replayed");
    repo.set(PIPELINE, "/flow", json!({"layout": [{"from": "out/**", "to": "dist/"}]}));
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.refs("refs/cbia/runs").len(), 3);
    assert_eq!(repo.entries("GEN").len(), 1);
}

#[test]
fn every_component_of_a_key_changes_it() {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let base = CacheKey {
        schema_version: "0.1.0".into(),
        phase: Phase::Gen,
        phase_version: 1,
        authority_ledger_hash: digest("ledger"),
        policy_bundle_hash: digest("policy"),
        pre_gen_capsule_hash: digest("capsule"),
        inputs_manifest_hash: digest("inputs"),
        phase_input_hash: None,
        phase_config_hash: digest("config"),
        tool_versions: ToolVersions { runner_version: "1".into(), generator_version: "1".into() },
    };
    let Value::Object(members) = git_cbia::document::json::to_value(&base) else { panic!("a key is an object") };
    let other = json!(digest("other"));
    let changes = [
        ("schema_version", json!("0.2.0")),
        ("phase", json!("CHECK")),
        ("phase_version", json!(2)),
        ("authority_ledger_hash", other.clone()),
        ("policy_bundle_hash", other.clone()),
        ("pre_gen_capsule_hash", other.clone()),
        ("inputs_manifest_hash", other.clone()),
        ("phase_input_hash", other.clone()),
        ("phase_config_hash", other),
        ("tool_versions.runner_version", json!("2")),
        ("tool_versions.generator_version", json!("2")),
    ];
    let top = |name: &str| name.split('.').next().unwrap().to_owned();
    let mut covered: Vec<String> = changes.iter().map(|(name, _)| top(name)).collect();
    covered.dedup();
    covered.sort();
    assert_eq!(covered, members.keys().cloned().collect::<Vec<_>>(), "every component has its case here");
    for (name, value) in changes {
        let mut changed = Value::Object(members.clone());
        *changed.pointer_mut(&format!("/{}", name.replace('.', "/"))).unwrap() = value;
        let changed: CacheKey = serde_json::from_value(changed).unwrap();
        assert_ne!(changed.digest(), base.digest(), "{name}");
        let differing: Vec<String> = changed.differences(&base).into_iter().map(|(name, _, _)| name).collect();
        assert_eq!(differing, [name]);
    }
}
