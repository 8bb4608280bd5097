//! Every refusal, a row each.

use serde_json::{Value, json};

use super::super::support::{EXECUTOR, LEDGER, PIPELINE, Repo};
use super::{ASSURANCE, CAPSULE, CAPSULE_SCHEMA, DAG, GRAPH, KERNEL, OBJECTIVES, PHASES, TEMPLATE, case, check};

#[test]
fn authorities_that_are_not_locked() {
    let lock = "AUTHORITY_LOCK";
    check(&[
        case(|r| r.set(LEDGER, "/frozen", json!(false)), ("authority-not-frozen", 1), lock, (LEDGER, "/frozen"), 16),
        case(|r| r.set(LEDGER, "/frozen", Value::Null), ("authority-not-frozen", 1), lock, (LEDGER, "/frozen"), 1),
        case(
            |r| r.set(LEDGER, "/authority_set/0/source/locator", Value::Null),
            ("authority-locator-missing", 1),
            lock,
            (LEDGER, "/authority_set/0/source/locator"),
            9,
        ),
        case(
            |r| r.set(LEDGER, "/authority_set/0/hash", Value::Null),
            ("authority-hash-missing", 1),
            lock,
            (LEDGER, "/authority_set/0/hash/value"),
            3,
        ),
        case(
            |r| r.set(LEDGER, "/authority_set/0/hash/alg", json!("md5")),
            ("authority-hash-invalid", 1),
            lock,
            (LEDGER, "/authority_set/0/hash"),
            5,
        ),
        case(
            |r| r.write("docs/rule.md", "Be brief\n"),
            ("authority-hash-mismatch", 1),
            lock,
            (LEDGER, "/authority_set/0/hash/value"),
            7,
        ),
        case(|r| r.remove("docs/rule.md"), ("authority-missing", 1), lock, (LEDGER, "/authority_set/0/source/locator"), 11),
        case(|r| r.set(LEDGER, "/authority_set", json!([])), ("authority-set-empty", 1), lock, (LEDGER, "/authority_set"), 2),
        case(|r| r.remove(LEDGER), ("document-missing", 3), lock, (LEDGER, ""), 0),
        case(
            |r| r.write(LEDGER, "{\"frozen\": true, \"frozen\": true}\n"),
            ("document-malformed", 3),
            lock,
            (LEDGER, "/frozen"),
            1,
        ),
        case(|r| r.write(LEDGER, "\u{feff}{}\n"), ("document-malformed", 3), lock, (LEDGER, ""), 1),
        case(|r| r.set(LEDGER, "/frozen", json!("true")), ("document-schema", 3), lock, (LEDGER, "/frozen"), 16),
    ]);
}

#[test]
fn documents_that_cannot_be_read() {
    let kernel = "PRE_GEN";
    check(&[
        case(|r| r.write(PIPELINE, "{\n  \"inputs\": [,]\n}\n"), ("document-malformed", 3), kernel, (PIPELINE, "/inputs/0"), 2),
        case(|r| r.write(PIPELINE, "{}\n{}\n"), ("document-malformed", 3), kernel, (PIPELINE, ""), 2),
        case(
            |r| r.replace(PIPELINE, "\"inputs\"", "\"inputs\": [],\n  \"inputs\""),
            ("document-malformed", 3),
            kernel,
            (PIPELINE, "/inputs"),
            17,
        ),
        case(|r| r.set(PIPELINE, "/surprise", json!(1)), ("document-schema", 3), kernel, (PIPELINE, "/surprise"), 20),
        case(
            |r| r.set(PIPELINE, "/schema_version", json!("9.9.9")),
            ("document-schema", 3),
            kernel,
            (PIPELINE, "/schema_version"),
            19,
        ),
        case(|r| r.remove(PIPELINE), ("document-missing", 3), kernel, (PIPELINE, ""), 0),
        case(|r| r.remove(OBJECTIVES), ("document-missing", 3), kernel, (OBJECTIVES, ""), 0),
        case(
            |r| r.set(OBJECTIVES, "/0/constraints", json!({"n": 18_446_744_073_709_551_615_u64})),
            ("document-malformed", 3),
            kernel,
            (OBJECTIVES, "/0/constraints/n"),
            4,
        ),
        case(
            |r| r.write(EXECUTOR, "{\"kind\": \"magic\", \"version\": \"1\"}\n"),
            ("document-schema", 3),
            kernel,
            (EXECUTOR, "/kind"),
            1,
        ),
        case(|r| r.write(CAPSULE_SCHEMA, "{\"type\": 7}\n"), ("schema-invalid", 3), kernel, (CAPSULE_SCHEMA, ""), 0),
        case(
            |r| {
                r.remove("data/words.txt");
                std::os::unix::fs::symlink("../docs/rule.md", r.path().join("data/words.txt")).unwrap();
            },
            ("input-not-regular", 3),
            kernel,
            ("data/words.txt", ""),
            0,
        ),
        case(|r| r.write("data/a\\b", "x"), ("path-invalid", 3), kernel, ("data/a\\b", ""), 0),
        case(|r| r.set(PIPELINE, "/inputs", json!(["data/[**"])), ("pattern-invalid", 3), kernel, (PIPELINE, ""), 0),
    ]);
}

#[test]
fn control_states_that_are_not_closed() {
    let kernel = "PRE_GEN";
    check(&[
        case(
            |r| r.write_json(CAPSULE_SCHEMA, &json!({"required": ["signed_by"]})),
            ("capsule-invalid", 1),
            kernel,
            (CAPSULE, ""),
            1,
        ),
        case(
            |r| r.write_json(DAG, &json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "DREAM"]})),
            ("execution-dag-unknown-phase", 1),
            kernel,
            (DAG, "/phases/4"),
            7,
        ),
        case(
            |r| {
                r.write_json(
                    DAG,
                    &json!({"phases": PHASES, "edges": [{"from": "PRE_GEN", "to": "GEN"}, {"from": "GEN", "to": "PRE_GEN"}]}),
                )
            },
            ("execution-dag-cycle", 1),
            kernel,
            (DAG, "/edges"),
            2,
        ),
        case(
            |r| r.write_json(DAG, &json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "GEN"]})),
            ("execution-dag-phase-missing", 1),
            kernel,
            (DAG, "/phases"),
            2,
        ),
        case(
            |r| r.write_json(DAG, &json!({"phases": ["AUTHORITY_LOCK", "OPA_GATE", "PRE_GEN", "GEN"]})),
            ("execution-dag-order", 1),
            kernel,
            (DAG, "/phases"),
            2,
        ),
        case(
            |r| {
                r.write_json(
                    GRAPH,
                    &json!({"nodes": [{"id": "a"}, {"id": "b"}], "edges": [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}]}),
                )
            },
            ("dependency-graph-cycle", 1),
            kernel,
            (GRAPH, "/edges"),
            2,
        ),
        case(
            |r| r.write_json(GRAPH, &json!({"nodes": [{"id": "a"}], "edges": [{"from": "a", "to": "b"}]})),
            ("dependency-graph-unknown-node", 1),
            kernel,
            (GRAPH, "/edges/0/to"),
            5,
        ),
        case(
            |r| r.set(OBJECTIVES, "/0/source/authority_id", json!("rumour")),
            ("objective-authority-unknown", 1),
            kernel,
            (OBJECTIVES, "/0/source/authority_id"),
            7,
        ),
        case(
            |r| r.set(PIPELINE, "/gen/artifacts/0/objectives/0", json!("O-9")),
            ("artifact-objective-unknown", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/0/objectives/0"),
            6,
        ),
        case(
            |r| r.set(PIPELINE, "/gen/artifacts/0/objectives", json!([])),
            ("artifact-objectives-empty", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/0/objectives"),
            5,
        ),
        case(
            |r| r.set(PIPELINE, "/gen/artifacts/0/path", json!("elsewhere.txt")),
            ("artifact-not-generated", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/0/path"),
            8,
        ),
        case(
            |r| {
                r.set(PIPELINE, "/gen/generated", json!(["out/**", "docs/rule.md"]));
                r.set(PIPELINE, "/gen/artifacts/0/path", json!("docs/rule.md"));
            },
            ("artifact-is-authority", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/0/path"),
            8,
        ),
        case(|r| r.remove(TEMPLATE), ("template-missing", 1), kernel, (PIPELINE, "/gen/artifacts/0/template"), 9),
        case(
            |r| {
                r.write("data/A.txt", "1");
                r.write("data/a.txt", "2");
            },
            ("path-collision", 1),
            kernel,
            ("data/a.txt", ""),
            0,
        ),
    ]);
}

#[test]
fn policies_that_do_not_say_exactly_true() {
    let (kernel, gate) = ("PRE_GEN", "OPA_GATE");
    check(&[
        case(|r| r.remove(KERNEL), ("policy-missing", 1), kernel, ("policy", ""), 0),
        case(|r| r.remove(ASSURANCE), ("policy-missing", 1), gate, ("policy", ""), 0),
        case(|r| r.write(ASSURANCE, "package assurance\nother := true\n"), ("policy-missing", 1), gate, ("policy", ""), 0),
        case(|r| r.write(ASSURANCE, "package assurance\nallow if false\n"), ("policy-undefined", 1), gate, (ASSURANCE, ""), 2),
        case(
            |r| r.write(ASSURANCE, "package assurance\nallow := \"true\"\n"),
            ("policy-not-boolean", 1),
            gate,
            (ASSURANCE, ""),
            2,
        ),
        case(|r| r.write(ASSURANCE, "package assurance\nallow := 1\n"), ("policy-not-boolean", 1), gate, (ASSURANCE, ""), 2),
        case(|r| r.write(ASSURANCE, "package assurance\nallow := false\n"), ("assurance-denied", 1), gate, (ASSURANCE, ""), 2),
        case(|r| r.write(KERNEL, "package control.kernel\nallow := false\n"), ("kernel-denied", 1), kernel, (KERNEL, ""), 2),
        case(
            |r| r.write(KERNEL, "package control.kernel\nallow := time.now_ns() > 0\n"),
            ("policy-forbidden", 1),
            kernel,
            (KERNEL, ""),
            2,
        ),
        case(
            |r| r.write(ASSURANCE, "package assurance\nallow := time.now_ns() > 0\n"),
            ("policy-forbidden", 1),
            kernel,
            (ASSURANCE, ""),
            2,
        ),
        case(|r| r.write(ASSURANCE, "package assurance\nallow :=\n"), ("policy-invalid", 1), kernel, (ASSURANCE, ""), 3),
        case(
            |r| r.write(ASSURANCE, "package assurance\nallow if count(numbers.range(1, 100000000)) > 0\n"),
            ("policy-error", 1),
            gate,
            ("", ""),
            0,
        ),
    ]);
}

#[test]
fn names_that_are_given_twice_and_paths_that_are_taken() {
    let kernel = "PRE_GEN";
    let lock = "AUTHORITY_LOCK";
    check(&[
        case(
            |r| twice(r, LEDGER, "/authority_set"),
            ("authority-id-duplicate", 1),
            lock,
            (LEDGER, "/authority_set/1/authority_id"),
            16,
        ),
        case(|r| twice(r, OBJECTIVES, ""), ("objective-id-duplicate", 1), kernel, (OBJECTIVES, "/1/id"), 15),
        case(
            |r| twice(r, PIPELINE, "/gen/artifacts"),
            ("artifact-duplicate", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/1/path"),
            15,
        ),
        case(
            |r| r.write_json(GRAPH, &json!({"nodes": [{"id": "a"}, {"id": "a"}], "edges": []})),
            ("dependency-graph-duplicate-node", 1),
            kernel,
            (GRAPH, "/nodes/1/id"),
            8,
        ),
        case(
            |r| r.write_json(DAG, &json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "GEN"]})),
            ("execution-dag-duplicate-phase", 1),
            kernel,
            (DAG, "/phases/4"),
            7,
        ),
        case(
            |r| {
                r.set(PIPELINE, "/gen/generated", json!(["opa/**"]));
                r.set(PIPELINE, "/gen/artifacts/0/path", json!("opa/note.txt"));
            },
            ("artifact-path-reserved", 1),
            kernel,
            (PIPELINE, "/gen/artifacts/0/path"),
            8,
        ),
        case(
            |r| {
                r.write("out/more.txt", "x");
                r.set(PIPELINE, "/inputs", json!(["data/**", "out/more.txt"]));
            },
            ("input-is-generated", 1),
            kernel,
            (PIPELINE, "/gen/generated"),
            12,
        ),
    ]);
}

/// Says the first entry of a list again.
fn twice(repo: &Repo, path: &str, pointer: &str) {
    let mut document: Value = serde_json::from_str(&repo.read(path)).unwrap();
    let list = document.pointer_mut(pointer).unwrap().as_array_mut().unwrap();
    list.push(list[0].clone());
    repo.write_json(path, &document);
}
