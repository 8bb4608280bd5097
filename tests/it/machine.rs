//! DESIGN section 11: every command has one document with its own members, whatever becomes of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};

use super::push::{Doors, codes};
use super::support::{NOTE, PIPELINE, PROGRAM, Ran, Repo};

const RUN: &[&str] = &[
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
const VERIFY: &[&str] = &["command", "findings", "outcome", "schema_version", "updates"];
const PROMOTE: &[&str] = &[
    "branch",
    "command",
    "commit",
    "executor_key",
    "files",
    "findings",
    "mode",
    "outcome",
    "record",
    "run",
    "schema_version",
    "state_key",
];
const PLAIN: &[&str] = &["command", "findings", "outcome", "result", "schema_version"];

/// Where, the arguments, the exit code; the command, the outcome and the members of the document.
type Case<'a> = (&'a Repo, &'a str, i32, &'a str, &'a str, &'a [&'a str]);
/// What makes a run stop.
type Spoil<'a> = &'a dyn Fn(&Repo);

fn members(document: &Value) -> Vec<&str> {
    document.as_object().unwrap().keys().map(String::as_str).collect()
}

/// One of the hooks, as git starts it.
fn hook(repo: &Repo, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = repo.command(PROGRAM);
    command.arg("hook").args(arguments);
    repo.finish(command, input)
}

#[test]
fn a_command_that_was_named_has_its_own_members_whatever_becomes_of_it() {
    let repo = Repo::tiny();
    repo.commit();
    let outside = repo.at(repo.outside());
    let cases: &[Case<'_>] = &[
        (&repo, "run --nope", 2, "run", "failed", RUN),
        (&repo, "run --repeat 0", 2, "run", "failed", RUN),
        (&repo, "run --commit nope", 3, "run", "failed", RUN),
        (&outside, "run", 3, "run", "failed", RUN),
        (&repo, "status a b", 2, "status", "failed", RUN),
        (&repo, "status --commit nope", 3, "status", "failed", RUN),
        (&outside, "status", 3, "status", "failed", RUN),
        (&repo, "status", 0, "status", "would-run", RUN),
        (&outside, "verify", 3, "verify", "refused", VERIFY),
        (&repo, "verify nope", 3, "verify", "refused", VERIFY),
        (&repo, "verify HEAD~9", 3, "verify", "refused", VERIFY),
        (&repo, "verify a...b", 2, "verify", "refused", VERIFY),
        (&repo, "verify --each", 2, "verify", "refused", VERIFY),
        (&repo, "verify --format bogus", 2, "verify", "refused", VERIFY),
        (&repo, "verify --run deadbeefdead", 2, "verify", "refused", VERIFY),
        (&repo, "promote --nope", 2, "promote", "failed", PROMOTE),
        (&outside, "promote", 3, "promote", "failed", PROMOTE),
        (&repo, "cache", 2, "cache", "failed", PLAIN),
        (&repo, "hook", 2, "hook", "refused", VERIFY),
        (&repo, "hook pre-push", 2, "hook pre-push", "refused", VERIFY),
        (&outside, "hook pre-receive", 3, "hook pre-receive", "refused", VERIFY),
        (&repo, "rum", 2, "usage", "failed", PLAIN),
        (&repo, "run --help", 0, "help", "done", PLAIN),
        (&repo, "help hook pre-push", 0, "help", "done", PLAIN),
        (&repo, "-V", 0, "version", "done", PLAIN),
    ];
    for (at, line, exit, command, outcome, wanted) in cases {
        let mut program = at.command(PROGRAM);
        program.args(line.split(' ')).arg("--json");
        let ran = at.finish(program, b"").exits(*exit);
        let document = ran.json();
        assert_eq!((&document["command"], &document["outcome"]), (&json!(command), &json!(outcome)), "{line}: {document:#}");
        assert_eq!(members(&document), *wanted, "{line}");
        assert_eq!(document["findings"].as_array().unwrap().is_empty(), *exit == 0, "{line}: {document:#}");
        assert_eq!(ran.stderr.is_empty(), !command.starts_with("hook "), "{line}: {}", ran.stderr);
        if *exit == 0 && *wanted == PLAIN {
            assert!(document["result"]["text"].as_str().unwrap().contains("git cbia"), "{line}: {document:#}");
        } else if *wanted == RUN && *exit != 0 {
            assert_eq!((&document["event"], &document["run"], &document["phases"]), (&json!("none"), &Value::Null, &json!([])));
        } else if *wanted == VERIFY {
            assert_eq!(document["updates"], json!([]), "{line}");
        } else if *wanted == PROMOTE {
            assert_eq!(document["mode"], Value::Null, "{line}");
        }
    }
}

#[test]
fn the_hooks_say_what_they_say_to_a_machine_too() {
    let doors = Doors::new();
    let repo = &doors.client;
    let base = doors.base.clone();
    repo.write("README.md", "Fine.\n");
    repo.commit();
    let fine = repo.git(["rev-parse", "HEAD"]);
    repo.write(NOTE, "By hand.\n");
    repo.commit();
    let bad = repo.git(["rev-parse", "HEAD"]);
    repo.git(["reset", "-q", "--hard", &base]);
    repo.git(["config", "cbia.exempt", "refs/heads/wip/*"]);
    let null = "0".repeat(40);
    let url = doors.server.path().to_str().unwrap();
    let push = |new: &str, name: &str, old: &str| format!("{name} {new} {name} {old}\n");
    let receive = |new: &str, name: &str, old: &str| format!("{old} {new} {name}\n");
    let main = "refs/heads/main";
    // Its own clone stands in for a server: what a hook says does not depend on who starts it.
    for (arguments, line) in [
        (&["pre-push", "origin", url, "--json"][..], &push as &dyn Fn(&str, &str, &str) -> String),
        (&["pre-receive", "--json"], &receive),
    ] {
        let name = format!("hook {}", arguments[0]);
        let ran = hook(repo, arguments, line(&fine, main, &base).as_bytes()).ok();
        let document = ran.json();
        assert_eq!((members(&document), &document["command"]), (VERIFY.to_vec(), &json!(name)));
        assert_eq!((&document["outcome"], &document["findings"]), (&json!("verified"), &json!([])));
        let update = &document["updates"][0];
        assert_eq!((&update["ref"], &update["old"], &update["new"]), (&json!(main), &json!(base), &json!(fine)));
        assert!(update["state_key"].is_null() && document["updates"].as_array().unwrap().len() == 1, "{document:#}");

        let two = line(&fine, main, &base) + &line(&bad, "refs/heads/b", &null) + &line(&null, "refs/heads/c", &base);
        let ran = hook(repo, arguments, two.as_bytes()).exits(1);
        let document = ran.json();
        assert_eq!(document["outcome"], "refused");
        let refs: Vec<&str> =
            document["updates"].as_array().unwrap().iter().map(|update| update["ref"].as_str().unwrap()).collect();
        assert_eq!(refs, [main, "refs/heads/b", "refs/heads/c"]);
        assert_eq!(ran.finding("gen-edited")["path"], NOTE);
        // A person reads the same, and nothing of it is on standard output.
        assert!(ran.stderr.contains("refused: refs/heads/b\n") && ran.stderr.contains("[gen-edited]"), "{}", ran.stderr);
        let plain = hook(repo, &arguments[..arguments.len() - 1], two.as_bytes()).exits(1);
        assert_eq!((plain.stdout.as_str(), plain.stderr), ("", ran.stderr));

        let ran = hook(repo, arguments, b"garbage\n").exits(2);
        assert_eq!((members(&ran.json()), ran.codes()), (VERIFY.to_vec(), vec!["usage".to_owned()]));
    }
    let ran = hook(repo, &["pre-push", "origin", url, "--json"], push(&bad, "refs/heads/wip/x", &null).as_bytes()).ok();
    assert_eq!((ran.json()["updates"][0]["ref"].as_str(), ran.codes()), (Some("refs/heads/wip/x"), Vec::new()));
    // Evidence that cannot be uploaded is a refusal of the same shape.
    repo.write("data/words.txt", "three\n");
    repo.run();
    repo.commit();
    let next = repo.git(["rev-parse", "HEAD"]);
    repo.git(["config", "remote.gone.url", "/nowhere/at/all"]);
    let ran = hook(repo, &["pre-push", "gone", "/nowhere/at/all", "--json"], push(&next, main, &null).as_bytes()).exits(1);
    assert_eq!((ran.codes(), &ran.json()["updates"][0]["new"]), (vec!["evidence-not-uploaded".to_owned()], &json!(next)));
    doors.server.git(["config", "cbia.maxPushRefs", "1"]);
    let two = receive(&fine, main, &base) + &receive(&fine, "refs/heads/b", &null);
    let ran = hook(&doors.server, &["pre-receive", "--json"], two.as_bytes()).exits(1);
    assert_eq!((ran.codes(), ran.json()["updates"].as_array().unwrap().len()), (vec!["push-too-large".to_owned()], 2));
}

#[test]
fn a_branch_may_be_called_by_any_bytes_and_a_ref_of_ours_may_not() {
    let doors = Doors::new();
    let repo = &doors.client;
    let push = |arguments: &[&str], what: &[&[u8]]| {
        let mut command = repo.command("git");
        command.arg("push").args(arguments).arg("origin").args(what.iter().map(|what| OsStr::from_bytes(what)));
        // git prints such names as they are.
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    };
    let odd: &[u8] = b"HEAD:refs/heads/x\xff\xfe";
    repo.write("README.md", "Fine.\n");
    repo.commit();
    push(&[], &[odd]).ok();
    repo.write(NOTE, "By hand.\n");
    repo.commit();
    let before = doors.server.git_raw(["for-each-ref"]);
    for (arguments, begin) in [(&[][..], "error: "), (&["--no-verify"][..], "remote: error: ")] {
        let ran = push(arguments, &[odd]).exits(1);
        assert_eq!(codes(&ran.stderr, begin), ["gen-edited".to_owned()].into(), "{}", ran.stderr);
        let ran = push(arguments, &[b"HEAD:refs/cbia/ledgers/x\xff"]).exits(1);
        assert_eq!(codes(&ran.stderr, begin), ["ref-malformed".to_owned()].into(), "{}", ran.stderr);
        // Only the bad one of several is what is wrong.
        let ran = push(arguments, &[b"HEAD~1:refs/heads/good\xff", odd]).exits(1);
        assert!(
            ran.stderr.contains("refused: refs/heads/x") && !ran.stderr.contains("refused: refs/heads/good"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(doors.server.git_raw(["for-each-ref"]), before);
    push(&[], &[b":refs/heads/x\xff\xfe"]).ok();
}

#[test]
fn the_package_goes_to_no_place_of_ours_in_other_letters() {
    for to in ["Control/", "POLICY/promote/", "Schemas/", "Inputs/", "oPA/", "Docs/"] {
        let repo = Repo::tiny();
        repo.write("docs/note.txt", "An input.\n");
        repo.set(PIPELINE, "/inputs", json!(["data/**", "docs/note.txt"]));
        repo.set(PIPELINE, "/flow", json!({"layout": [{"from": "out/**", "to": to}]}));
        repo.set(PIPELINE, "/promote", json!({"destinations": ["**"]}));
        repo.commit();
        let ran = repo.cbia(["run", "--promote", "--json"]).exits(1);
        assert_eq!(ran.codes(), ["layout-destination"], "{to}");
        assert!(!repo.has(to), "{to}");
    }
}

#[test]
fn status_says_what_stops_the_next_run_where_it_can_be_known() {
    let schema = |repo: &Repo| {
        repo.write_json("schemas/note.schema.json", &json!({"type": "object"}));
        repo.set(PIPELINE, "/check", json!({"schemas": [{"paths": "out/**", "schema": "schemas/note.schema.json"}]}));
    };
    let at_eval = |repo: &Repo| {
        let rule = "package assurance\n\ndefault allow := false\n\nallow if count(input.artifact_hashes) == 0\n";
        repo.write("policy/assurance.rego", rule);
    };
    let cases: &[(&str, Spoil<'_>, i32, &str)] = &[("CHECK", &schema, 6, "check-failed"), ("EVAL", &at_eval, 1, "denied")];
    for (phase, spoil, exit, outcome) in cases {
        let repo = Repo::tiny();
        spoil(&repo);
        let before = repo.cbia(["status", "--json"]).ok().json();
        assert_eq!(before["outcome"], "would-run", "{phase}");
        let first = repo.cbia(["run", "--json"]).exits(*exit);
        assert_eq!(first.json()["outcome"], *outcome);
        let refs = repo.git(["for-each-ref"]);
        let files = repo.files(&[]);
        let status = repo.cbia(["status", "--json"]).exits(*exit);
        let document = status.json();
        assert_eq!((&document["outcome"], &document["event"]), (&json!("would-deny"), &json!("none")), "{phase}");
        assert_eq!((repo.git(["for-each-ref"]), repo.files(&[])), (refs, files));
        let text = repo.cbia(["status"]).exits(*exit);
        assert!(text.stdout.starts_with(&format!("a run would be stopped at {phase}\n")), "{}", text.stdout);
        // And the run does what was said, phase by phase.
        let next = repo.cbia(["run", "--json"]).exits(*exit);
        assert_eq!((status.codes(), &document["findings"]), (next.codes(), &next.json()["findings"]), "{phase}");
        assert_eq!(document["phases"], next.json()["phases"], "{phase}");
    }
    // Where only GEN's output is known and nothing is known to stop it, the run goes on from there: over what STRUCT and a repair changed.
    for (path, text, format) in [("out/note.json", "{\"b\": 1,   \"a\": 2}\n", "json"), ("out/note.txt", "a\r\nb\r\n", "text")] {
        let repo = Repo::tiny();
        repo.write("control/templates/note.txt.j2", text);
        repo.set(PIPELINE, "/gen/artifacts/0/path", json!(path));
        repo.set(PIPELINE, "/struct", json!({"normalize": [{"paths": "out/**", "format": format}]}));
        repo.set(PIPELINE, "/repair", json!({"allow": ["out/**"], "max_changed_lines": 9}));
        if format == "json" {
            schema(&repo);
        }
        repo.run();
        assert_ne!(repo.read(path), text);
        assert_eq!(repo.entries("REPAIR").len(), usize::from(format == "text"));
        for (name, _) in [repo.entries("CHECK"), repo.entries("REPAIR"), repo.refs("refs/cbia/runs")].concat() {
            repo.git(["update-ref", "-d", &name]);
        }
        // As in a clone that has GEN's output and nothing that came of it.
        let only = repo.at(repo.outside().join("only"));
        repo.git(["init", "-q", "-b", "main", "../only"]);
        let url = format!("file://{}", repo.path().display());
        only.git(["fetch", "-q", &url, "refs/cbia/cache/*:refs/cbia/cache/*"]);
        only.write_tiny();
        for (path, bytes) in repo.files(&["out/", "execution/", "opa/", "dist/", "control/runtime/"]) {
            only.write(&path, bytes);
        }
        for at in [&only, &repo] {
            let status = at.cbia(["status", "--json"]).ok();
            assert_eq!((status.json()["outcome"].as_str(), status.codes()), (Some("would-replay"), Vec::new()), "{format}");
            assert_eq!(at.run(), "replayed", "{format}");
        }
    }
}
