use std::collections::BTreeMap;

use super::super::testing::told;
use super::*;
use crate::document::check_report::CheckReport;
use crate::document::executor::ExecutorKind;
use crate::document::flow_manifest::PackagedFile;
use crate::document::gen_exchange::OutputArtifact;
use crate::document::metadata::{ArtifactMetadata, ExecutorIdentity};
use crate::document::selection::Selected;

fn path(text: &str) -> RepoPath {
    text.parse().unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn chain(phases: &[Phase]) -> Vec<PhaseCommit> {
    let commit = |(index, phase): (usize, &Phase)| PhaseCommit {
        id: format!("c{index}"),
        phase: Some(*phase),
        state_key: Some(digest("state")),
        executor_key: Some(digest("executor")),
        decision: Some("ALLOW".into()),
        parents: usize::from(index > 0),
        is_plain: true,
    };
    phases.iter().enumerate().map(commit).collect()
}

fn codes(commits: &[PhaseCommit]) -> Vec<&'static str> {
    check_chain(commits, &digest("state"), &digest("executor")).iter().map(|f| f.code.as_str()).collect()
}

const WHOLE: [Phase; 9] = [
    Phase::AuthorityLock,
    Phase::PreGen,
    Phase::OpaGate,
    Phase::Gen,
    Phase::Check,
    Phase::Struct,
    Phase::Select,
    Phase::Flow,
    Phase::Eval,
];

#[test]
fn a_finished_chain_has_every_phase_once_and_in_order() {
    assert_eq!(codes(&chain(&WHOLE)), Vec::<&str>::new());
    let mut repaired = WHOLE.to_vec();
    repaired.splice(5..5, [Phase::Repair, Phase::Check, Phase::Repair, Phase::Check]);
    assert_eq!(codes(&chain(&repaired)), Vec::<&str>::new());
    for (index, left_out) in WHOLE.iter().enumerate() {
        let mut phases = WHOLE.to_vec();
        phases.remove(index);
        assert_eq!(codes(&chain(&phases)), ["run-incomplete"], "without {left_out}");
    }
    for second in 1..WHOLE.len() {
        let mut phases = WHOLE.to_vec();
        phases.swap(second - 1, second);
        assert_eq!(codes(&chain(&phases)), ["run-incomplete"], "{phases:?}");
    }
    let mut twice = WHOLE.to_vec();
    twice.insert(5, Phase::Check);
    assert_eq!(codes(&chain(&twice)), ["run-incomplete"]);
    assert_eq!(codes(&[]), ["run-incomplete"]);
}

#[test]
fn a_commit_of_the_chain_has_its_shape() {
    let spoiled = |spoil: &dyn Fn(&mut Vec<PhaseCommit>)| {
        let mut commits = chain(&WHOLE);
        spoil(&mut commits);
        codes(&commits)
    };
    assert_eq!(spoiled(&|c| c[3].state_key = None), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[3].executor_key = Some(digest("other"))), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[0].parents = 1), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[8].parents = 2), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[8].is_plain = false), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[2].decision = Some("DENY".into())), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[1].decision = None), ["run-invalid"]);
    assert_eq!(spoiled(&|c| c[4].phase = None), ["run-incomplete"]);
}

struct Documents {
    outputs: OutputsManifest,
    check_report: CheckReport,
    checked: Digest,
    metadata: Metadata,
    selection: Selection,
    flow: FlowManifest,
    hashes: ArtifactHashes,
    files: BTreeMap<RepoPath, (Digest, u64)>,
}

/// Two artifacts, of which the second is pruned; the first was normalized since it was generated.
fn documents() -> Documents {
    let artifacts = [("a/x", "x", true), ("a/y", "y", false)];
    let version = || "0.1.0".to_owned();
    let hashes: ArtifactHashes = artifacts.iter().map(|(at, text, _)| (path(at), digest(text))).collect();
    let packaged = PackagedFile { path: path("d/x"), origin: path("a/x"), sha256: digest("x"), bytes: 1 };
    let mut files: BTreeMap<_, _> = artifacts.iter().map(|(at, text, _)| (path(at), (digest(text), 1))).collect();
    files.insert(path("d/x"), (digest("x"), 1));
    Documents {
        outputs: OutputsManifest {
            schema_version: version(),
            phase: Phase::Gen,
            artifacts: artifacts
                .iter()
                .map(|(at, text, _)| OutputArtifact {
                    path: path(at),
                    sha256: digest(&format!("raw {text}")),
                    bytes: 5,
                    objectives: Vec::new(),
                    authorities: Vec::new(),
                })
                .collect(),
        },
        check_report: CheckReport {
            schema_version: version(),
            phase: Phase::Check,
            passed: true,
            artifacts: 2,
            artifact_set_hash: digest("set"),
            findings: vec![Finding::warning(Code::SchemaUnused, "w")],
        },
        checked: digest("set"),
        metadata: Metadata {
            schema_version: version(),
            phase: Phase::Struct,
            pre_gen_capsule_hash: digest("capsule"),
            policy_bundle_hash: digest("policy"),
            inputs_manifest_hash: digest("inputs"),
            executor: ExecutorIdentity {
                kind: ExecutorKind::Builtin,
                version: version(),
                executor_key: digest("executor"),
                runner_version: version(),
            },
            tool_versions: BTreeMap::new(),
            authorities: BTreeMap::new(),
            artifacts: artifacts
                .iter()
                .map(|(at, text, _)| ArtifactMetadata {
                    path: path(at),
                    sha256: digest(text),
                    bytes: 1,
                    generated_sha256: digest(&format!("raw {text}")),
                    objectives: Vec::new(),
                    authorities: Vec::new(),
                })
                .collect(),
        },
        selection: Selection {
            schema_version: version(),
            phase: Phase::Select,
            query: None,
            artifacts: artifacts
                .iter()
                .map(|(at, text, keep)| Selected { path: path(at), sha256: digest(text), keep: *keep, reason: "r".into() })
                .collect(),
        },
        flow: FlowManifest {
            schema_version: version(),
            phase: Phase::Flow,
            package_hash: Digest::of_listing([(&packaged.path, packaged.sha256)]),
            files: vec![packaged],
        },
        hashes,
        files,
    }
}

#[test]
fn every_hash_must_be_the_one_that_the_others_and_the_bytes_have() {
    let linked = |spoil: &dyn Fn(&mut Documents)| {
        let mut d = documents();
        spoil(&mut d);
        let found = check_links(&Account {
            outputs: &d.outputs,
            check_report: &d.check_report,
            checked_set_hash: d.checked,
            metadata: &d.metadata,
            selection: &d.selection,
            flow: &d.flow,
            artifact_hashes: &d.hashes,
            files: &d.files,
        });
        found.iter().map(|f| format!("{} {}", f.code, f.path.as_deref().unwrap_or("-"))).collect::<Vec<_>>()
    };
    assert_eq!(linked(&|_| {}), Vec::<String>::new());
    type Case<'a> = (&'a dyn Fn(&mut Documents), &'a [&'a str]);
    let report = "check-not-passed execution/check/report.json";
    let cases: &[Case] = &[
        (&|d| d.check_report.passed = false, &[report]),
        (&|d| d.check_report.findings.push(Finding::error(Code::ArtifactSchema, "e")), &[report]),
        (&|d| d.checked = digest("other"), &[report]),
        (
            &|d| {
                d.hashes.remove(&path("a/x"));
            },
            &["hash-link-missing a/x"],
        ),
        (
            &|d| {
                d.hashes.insert(path("a/z"), digest("z"));
            },
            &["hash-link-dangling a/z"],
        ),
        (
            &|d| {
                d.hashes.insert(path("a/y"), digest("z"));
            },
            &["hash-link-mismatch a/y"; 3],
        ),
        (
            &|d| {
                d.files.insert(path("a/y"), (digest("z"), 1));
            },
            &["hash-link-mismatch a/y"; 2],
        ),
        (
            &|d| {
                d.files.insert(path("d/x"), (digest("z"), 1));
            },
            &["hash-link-mismatch d/x"],
        ),
        (
            &|d| {
                d.files.insert(path("d/x"), (digest("x"), 2));
            },
            &["hash-link-mismatch d/x"],
        ),
        (
            &|d| {
                d.files.remove(&path("d/x"));
            },
            &["hash-link-dangling d/x"],
        ),
        (&|d| d.metadata.artifacts[1].sha256 = digest("z"), &["hash-link-mismatch a/y"; 2]),
        (&|d| d.metadata.artifacts[1].generated_sha256 = digest("z"), &["hash-link-mismatch a/y"]),
        (&|d| drop(d.metadata.artifacts.pop()), &["hash-link-missing a/y"]),
        (&|d| d.selection.artifacts[1].sha256 = digest("z"), &["hash-link-mismatch a/y"]),
        (&|d| drop(d.selection.artifacts.pop()), &["hash-link-missing a/y"]),
        (&|d| d.selection.artifacts[1].keep = true, &["hash-link-missing a/y"]),
        (&|d| d.selection.artifacts[0].keep = false, &["hash-link-dangling a/x"]),
        (&|d| d.flow.package_hash = digest("z"), &["hash-link-mismatch execution/flow/manifest.json"]),
        (&|d| drop(d.outputs.artifacts.pop()), &["hash-link-dangling a/y"; 2]),
    ];
    for (index, (spoil, wanted)) in cases.iter().enumerate() {
        assert_eq!(linked(spoil), *wanted, "case {index}");
    }
}

#[test]
fn what_was_kept_is_promoted_once_to_where_it_may_go() {
    let d = documents();
    let files = promotable(&d.metadata, &d.selection, &d.flow);
    let listed: Vec<_> = files.iter().map(|f| format!("{} < {} {}", f.path, f.origin, f.bytes)).collect();
    assert_eq!(listed, ["a/x < a/x 1", "d/x < a/x 1"]);
    let mut in_place = documents();
    in_place.flow.files[0].path = path("a/x");
    assert_eq!(promotable(&in_place.metadata, &in_place.selection, &in_place.flow).len(), 1);

    let to = |destinations: &[&str], files: &[PromotedFile]| {
        let promote = Promote { destinations: destinations.iter().map(|d| (*d).to_owned()).collect() };
        let found = check_destinations(files, Some(&promote));
        found.iter().map(|f| format!("{} {}", f.code, f.path.as_deref().unwrap_or("-"))).collect::<Vec<_>>()
    };
    assert_eq!(to(&["a/**", "d/x"], &files), Vec::<String>::new());
    assert_eq!(to(&["a/*"], &files), ["destination-not-allowed d/x"]);
    assert_eq!(to(&[], &files).len(), 2);
    assert_eq!(to(&["a/["], &files), ["pattern-invalid control/pipeline.json"]);
    assert_eq!(to(&["**"], &[]), ["promotion-undeclared -"]);
    assert_eq!(told(&check_destinations(&files, None)), ["promotion-undeclared -"]);
    for at in ["control/x", "policy/x", "schemas/x", ".gitattributes", "a/.gitmodules", "execution/x", "opa/x"] {
        let file = PromotedFile { path: path(at), ..files[0].clone() };
        assert_eq!(to(&["**"], &[file]), [format!("destination-not-allowed {at}")]);
    }
}
