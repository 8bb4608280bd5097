//! The commands around the run: what they say, what they write, and how they end.

use std::process::Stdio;

use git_cbia::document::digest::Digest;
use serde_json::{Value, json};

use super::support::{LEDGER, NOTE, NOTE_TEXT, PIPELINE, PROGRAM, Repo};

#[test]
fn init_writes_what_a_run_needs_and_overwrites_nothing() {
    let repo = Repo::new();
    let ran = repo.cbia(["init"]).ok();
    let files: Vec<String> = repo.files(&[]).into_keys().collect();
    let mut told: Vec<String> = ran.stdout.lines().map(|line| line.strip_prefix("wrote ").unwrap().to_owned()).collect();
    told.sort();
    assert_eq!(told, files);
    assert_eq!(ran.stderr, "next: git cbia run\n");
    assert_eq!(
        repo.read(".gitignore"),
        "# Evidence of git cbia; refs/cbia/ keeps it.\n/control/runtime/pre_gen_capsule.json\n/dist/bundle/\n/execution/\n/opa/\n"
    );
    let before = repo.files(&[]);
    let again = repo.cbia(["init"]).ok();
    assert_eq!((again.stdout.as_str(), again.stderr.as_str()), ("", "everything was there already\n"));
    repo.run();
    assert_eq!(repo.git(["status", "--short", "--untracked-files=no"]), "");
    assert!(!repo.git(["status", "--short"]).contains("execution"), "the evidence is ignored");
    assert!(before.iter().all(|(path, bytes)| repo.files(&[])[path] == *bytes));

    let repo = Repo::new();
    repo.write(PIPELINE, "{}\n");
    repo.write(".gitignore", "*.o");
    let refused = repo.cbia(["init", "--json"]).exits(1);
    assert_eq!(refused.finding("artifact-blocked")["path"], PIPELINE);
    assert_eq!(repo.files(&[]).len(), 2);
    repo.remove(PIPELINE);
    repo.cbia(["init"]).ok();
    assert!(repo.read(".gitignore").starts_with("*.o\n# Evidence"));
}

#[test]
fn authorities_are_pinned_listed_frozen_and_thawed() {
    let repo = Repo::tiny();
    let (text, hash) = (b"Style\r\nguide\n", |bytes: &[u8]| Digest::of(bytes).to_string());
    repo.write("docs/Style Guide.md", text);
    repo.write("docs/empty.txt", "");
    let frozen = repo.cbia(["authority", "add", "docs/empty.txt", "--json"]).exits(1);
    assert!(frozen.finding("authority-frozen")["hint"].as_str().unwrap().contains("thaw"));
    repo.cbia(["authority", "thaw"]).ok();
    repo.cbia(["run"]).exits(1);
    // A filter of git: what is pinned is what git stores.
    repo.write(".gitattributes", "*.md text\n");
    repo.at(repo.path().join("docs")).cbia(["authority", "add", "Style Guide.md", "--title", "Style"]).ok();
    repo.cbia(["authority", "add", "docs/empty.txt", "docs/rule.md"]).ok();
    repo.cbia(["authority", "add", "docs/empty.txt", "--id", "nothing"]).ok();
    let ledger: Value = serde_json::from_str(&repo.read(LEDGER)).unwrap();
    let entries: Vec<Value> = ledger["authority_set"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| json!([e["authority_id"], e["source"]["locator"], e["hash"]["value"]]))
        .collect();
    let expected = [
        json!(["rule", "docs/rule.md", hash(b"Be brief.\n")]),
        json!(["style-guide", "docs/Style Guide.md", hash(b"Style\nguide\n")]),
        json!(["nothing", "docs/empty.txt", hash(b"")]),
    ];
    assert_eq!(entries, expected);
    repo.git(["add", "-A"]);
    let stored = repo.git(["cat-file", "blob", ":docs/Style Guide.md"]) + "\n";
    assert_eq!(hash(stored.as_bytes()), expected[1][2].as_str().unwrap(), "git cat-file blob X | sha256sum agrees");

    repo.cbia(["authority", "freeze"]).ok();
    assert_eq!(repo.run(), "executed");
    repo.write("docs/rule.md", "Be long.\n");
    repo.remove("docs/empty.txt");
    let listed = repo.cbia(["authority", "list"]).ok();
    assert_eq!(
        listed.stdout,
        "control/authority.ledger.json is frozen\nchanged       rule         docs/rule.md\n\
         locked        style-guide  docs/Style Guide.md\nmissing       nothing      docs/empty.txt\n"
    );
    repo.cbia(["authority", "thaw"]).ok();
    let before = repo.read(LEDGER);
    let refused = repo.cbia(["authority", "freeze", "--json"]).exits(1);
    assert_eq!(refused.codes(), ["authority-hash-mismatch", "authority-missing"]);
    for (arguments, exit) in [
        (&["add", "docs/none.md"][..], 3),
        (&["add", "../../etc/passwd"], 2),
        (&["add", "control/runtime/pre_gen_capsule.json"], 3),
        (&["add", "docs/rule.md", "data/words.txt", "--id", "x"], 2),
    ] {
        repo.cbia(["authority"].iter().chain(arguments)).exits(exit);
    }
    assert_eq!(repo.read(LEDGER), before);
}

#[test]
fn policy_tests_are_run_and_told() {
    let repo = Repo::tiny();
    let ran = repo.cbia(["policy", "test"]).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("1 passed, 0 failed, 0 skipped\n", ""));
    repo.write("policy/more_test.rego", "package more_test\n\ntest_wrong if 1 == 2\n\ntodo_test_later if false\n");
    let ran = repo.cbia(["policy", "test"]).exits(1);
    assert_eq!(
        ran.stdout,
        "FAIL  data.more_test.test_wrong\nSKIP  data.more_test.todo_test_later\n1 passed, 1 failed, 1 skipped\n"
    );
    assert!(ran.stderr.contains("[policy-test-failed]\n  --> policy/more_test.rego:3"), "{}", ran.stderr);
    let document = repo.cbia(["policy", "test", "--json"]).exits(1).json();
    assert_eq!((&document["result"]["failed"], &document["findings"][0]["code"]), (&json!(1), &json!("policy-test-failed")));
    repo.write("policy/more_test.rego", "package more_test\ntest_wrong if time.now_ns() > 0\n");
    assert_eq!(repo.cbia(["policy", "test", "--json"]).exits(3).codes(), ["policy-forbidden"]);
}

#[test]
fn the_cache_is_listed_shown_and_removed() {
    let repo = Repo::tiny();
    assert_eq!(repo.cbia(["cache", "ls"]).ok().stderr, "the cache is empty: git cbia run\n");
    repo.run();
    let (name, commit) = repo.only_entry();
    let key = name.rsplit('/').next().unwrap();
    let listed = repo.cbia(["cache", "ls"]).ok().stdout;
    assert!(listed.contains(&format!("{}  GEN: 1 artifact cached\n", &key[..12])), "{listed}");
    assert!(listed.lines().count() == 2 && listed.contains("  CHECK: report cached\n"), "{listed}");
    let listed = repo.cbia(["cache", "ls", "--json"]).ok().json()["result"].clone();
    let entry = json!({"cache_key": key, "commit": commit, "subject": "GEN: 1 artifact cached"});
    assert!(listed["entries"].as_array().unwrap().contains(&entry), "{listed}");
    let shown = repo.cbia(["cache", "show", &key[..8]]).ok().stdout;
    assert!(shown.starts_with(&format!("{name} verified\n")), "{shown}");
    assert!(
        shown.contains(&format!("{}  {NOTE} ({} bytes)", Digest::of(NOTE_TEXT.as_bytes()).short(), NOTE_TEXT.len())),
        "{shown}"
    );
    for (given, exit) in [("abc", 2), ("zzzz", 3), ("", 2)] {
        repo.cbia(["cache", "show", given]).exits(exit);
        repo.cbia(["cache", "rm", given]).exits(exit);
    }
    repo.cbia(["cache", "rm", &key.to_uppercase()]).ok();
    assert_eq!(repo.entries("GEN"), []);
    assert_eq!(repo.run(), "replayed", "the run itself is known");
}

#[test]
fn runs_phases_and_records_are_shown() {
    let repo = Repo::tiny();
    for arguments in [&["show"][..], &["show", "GEN"]] {
        assert!(repo.cbia(arguments).exits(3).stderr.contains("hint: git cbia log"));
    }
    assert_eq!(repo.cbia(["log"]).ok().stderr, "nothing has happened yet: git cbia run\n");
    repo.run();
    repo.run();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    let record = repo.git(["rev-parse", "refs/cbia/ledger"]);
    let state = name.split('/').nth(3).unwrap();
    let whole = repo.cbia(["show"]).ok().stdout;
    assert!(whole.starts_with(&format!("run {run}\n  Cbia-State-Key: {state}\n")), "{whole}");
    for line in ["AUTHORITY_LOCK: 1 authority locked", "PRE_GEN: kernel ALLOW", "OPA_GATE: policy ALLOW", "GEN: 1 artifact", NOTE]
    {
        assert!(whole.contains(line), "{line}");
    }
    for named in [state, &state[..10], &run, name.as_str()] {
        assert_eq!(repo.cbia(["show", named]).ok().stdout, whole, "{named}");
    }
    let phase = repo.cbia(["show", "opa-gate"]).ok().stdout;
    assert!(phase.starts_with(&format!("phase commit {}\n", repo.git(["rev-parse", &format!("{run}~6")]))), "{phase}");
    assert!(phase.contains("Cbia-Decision: ALLOW") && !phase.contains(NOTE), "{phase}");
    let shown = repo.cbia(["show", &record[..12]]).ok().stdout;
    assert!(shown.starts_with(&format!("record {record}\n  replayed by Ada <ada@example.org>")), "{shown}");
    let log = repo.cbia(["log"]).ok().stdout;
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with(&format!("{} 2023-11-14 replayed: ", &record[..12])), "{log}");
    assert!(lines[0].ends_with("(Ada)") && lines[1].contains(" admitted: "), "{log}");
    assert_eq!(repo.cbia(["log", "-n", "1"]).ok().stdout.lines().count(), 1);
    repo.commit();
    for wrong in ["REPAIR", "HEAD", "no-such-thing", "ffffffff"] {
        repo.cbia(["show", wrong]).exits(3);
    }
}

/// Every command, in an order in which each of them works.
const COMMANDS: [(&[&str], i32); 29] = [
    (&["log"], 0),
    (&["show"], 3),
    (&["status"], 3),
    (&["run"], 3),
    (&["authority", "list"], 3),
    (&["init"], 0),
    (&["status"], 0),
    (&["run", "--dry-run"], 0),
    (&["run"], 0),
    (&["run"], 0),
    (&["log"], 0),
    (&["show"], 0),
    (&["show", "GEN"], 0),
    (&["cache", "ls"], 0),
    (&["cache", "show", "zzzz"], 3),
    (&["cache", "show", "z"], 2),
    (&["policy", "test"], 0),
    (&["authority", "list"], 0),
    (&["authority", "thaw"], 0),
    (&["status"], 1),
    (&["run"], 1),
    (&["authority", "freeze"], 0),
    (&["doctor"], 1),
    (&["hooks", "status"], 1),
    (&["hooks", "install"], 0),
    (&["hooks", "status"], 0),
    (&["hooks", "uninstall"], 0),
    (&["attest"], 1),
    (&["attest", "no-such-run"], 3),
];

#[test]
fn json_is_exactly_one_document_for_every_command_and_every_end() {
    let repo = Repo::new();
    for (arguments, exit) in COMMANDS {
        let ran = repo.cbia(arguments.iter().chain(&["--json"])).exits(exit);
        let document = ran.json();
        assert_eq!(ran.stderr, "", "{arguments:?}");
        assert_eq!((&document["command"], &document["schema_version"]), (&json!(arguments[0]), &json!("0.1.0")), "{arguments:?}");
        assert_eq!(document["findings"].as_array().unwrap().is_empty(), exit == 0, "{arguments:?}: {document:#}");
    }
    for arguments in [
        &["nope", "--json"][..],
        &["--json"],
        &["run", "--nope", "--json"],
        &["cache", "show", "--json"],
        &["log", "-n", "x", "--json"],
    ] {
        let ran = repo.cbia(arguments).exits(2);
        assert_eq!((ran.codes(), ran.stderr.as_str()), (vec!["usage".to_owned()], ""), "{arguments:?}");
    }
    let outside = repo.at(repo.outside()).cbia(["run", "--json"]).exits(3);
    assert_eq!(outside.json()["outcome"], "failed");
    assert!(outside.finding("command-failed")["hint"].as_str().unwrap().contains("git init"));
}

#[test]
fn mistakes_are_told_with_the_way_out() {
    let repo = Repo::new();
    let outside = repo.at(repo.outside()).cbia(["run"]).exits(3);
    assert_eq!(outside.stdout, "");
    assert!(
        outside.stderr.starts_with("error: not a git repository (or any of the parent directories) [command-failed]\n"),
        "{}",
        outside.stderr
    );
    assert!(outside.stderr.ends_with("hint: run git init first, or change into a repository\n"), "{}", outside.stderr);
    let empty = repo.cbia(["run"]).exits(3).stderr;
    assert!(empty.contains("hint: git cbia init writes a small working pipeline"), "{empty}");
    let typo = repo.cbia(["rum"]).exits(2).stderr;
    assert!(typo.contains("'rum'") && typo.contains("run"), "{typo}");
    let bare = repo.cbia::<&str>([]).exits(2);
    assert!(bare.stdout.is_empty() && bare.stderr.starts_with("Generated files earn their place"), "{}", bare.stderr);
    let help = repo.cbia(["-h"]).ok();
    assert!(help.stdout.contains("Usage: git cbia") && help.stderr.is_empty());
    for command in ["init", "run", "status", "log", "show", "authority", "policy", "cache", "hooks", "attest", "doctor"] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command}");
        assert!(repo.cbia([command, "-h"]).ok().stdout.contains(&format!("Usage: git cbia {command}")), "{command}");
    }
    assert_eq!(repo.cbia(["--version"]).ok().stdout, format!("git cbia {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_result_that_cannot_be_printed_has_its_own_exit_code() {
    let repo = Repo::tiny();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for (arguments, record) in [(&["run", "--json"][..], true), (&["run"], true), (&["status"], false), (&["-h"], false)] {
        let before = repo.events().len();
        let mut command = repo.command(PROGRAM);
        command.args(arguments).stdout(full()).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(7), "{arguments:?}: {told}");
        assert!(told.contains("error: the result could not be printed: "), "{told}");
        assert_eq!(repo.events().len(), before + usize::from(record), "what the command did is done");
    }
    let mut command = repo.command(PROGRAM);
    command.args(["run"]).stdout(full()).stderr(full());
    assert_eq!(command.status().unwrap().code(), Some(7));
}

#[test]
fn a_reader_that_has_gone_is_no_accident() {
    let repo = Repo::tiny();
    for arguments in [&["run"][..], &["run", "--json"], &["log", "--json"], &["-h"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = repo.command(PROGRAM);
        command.args(arguments).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stderr).unwrap().contains("panic")),
            (Some(0), false),
            "{arguments:?}"
        );
    }
    assert_eq!(repo.events(), ["admitted", "replayed"]);
}

#[test]
fn what_people_wrote_is_escaped_for_the_terminal() {
    let repo = Repo::tiny();
    repo.set(LEDGER, "/authority_set/0/source/locator", json!("docs/\u{1b}[31mred\u{202e}.md"));
    repo.set(LEDGER, "/authority_set/0/authority_id", json!("rule\u{1b}[2J"));
    let author = repo.with("GIT_COMMITTER_NAME", Some("A\u{1b}[31mda"));
    for arguments in [&["run"][..], &["status"], &["authority", "list"], &["log"], &["show", "refs/cbia/ledger"]] {
        let ran = author.cbia(arguments);
        let raw = ran.stdout + &ran.stderr;
        assert!(!raw.is_empty() && !raw.contains(['\u{1b}', '\u{202e}']), "{arguments:?}: {raw:?}");
    }
}
