//! Stored things that are not what their names say: refused, named, put aside, and made again. Nothing of them reaches the work tree.

use std::path::PathBuf;

use git_cbia::document::digest::Digest;
use serde_json::{Value, json};

use super::support::{LEDGER, NOTE, NOTE_TEXT, Ran, Repo};

/// One tree entry, for `git hash-object --literally`: mode, name, object id.
pub fn raw_tree(repo: &Repo, entries: &[(&str, &str, &str)]) -> String {
    let mut raw = Vec::new();
    for (mode, name, id) in entries {
        raw.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        raw.extend((0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()));
    }
    repo.git_with(["hash-object", "-t", "tree", "--literally", "-w", "--stdin"], &raw)
}

pub fn blob(repo: &Repo, text: impl AsRef<[u8]>) -> String {
    repo.git_with(["hash-object", "-w", "--stdin"], text.as_ref())
}

/// The tree of `commit` with the files of `changes` put into it, or with `None` taken out.
pub fn changed_tree(repo: &Repo, commit: &str, changes: &[(&str, Option<&str>)]) -> String {
    let index = repo.outside().join("index");
    let repo = repo.with("GIT_INDEX_FILE", index.to_str());
    repo.git(["read-tree", commit]);
    for (path, text) in changes {
        match text {
            Some(text) => {
                let id = blob(&repo, text);
                repo.git(["update-index", "--add", "--cacheinfo", &format!("100644,{id},{path}")])
            }
            None => repo.git_with(["update-index", "--index-info"], format!("0 {} 0\t{path}\n", "0".repeat(40)).as_bytes()),
        };
    }
    let tree = repo.git(["write-tree"]);
    std::fs::remove_file(index).unwrap();
    tree
}

/// The same commit on another tree.
pub fn on_tree(repo: &Repo, commit: &str, tree: &str) -> String {
    let text = repo.git(["cat-file", "commit", commit]);
    let (_, rest) = text.split_once('\n').unwrap();
    repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], format!("tree {tree}\n{rest}\n").as_bytes())
}

/// The last phase commit of a run that is whole by its own account, and has another file at `path` than was made: only deriving tells.
pub fn forged_run(repo: &Repo, tip: &str, path: &str, text: &str) -> String {
    const MANIFEST: &str = "execution/eval/manifest.json";
    let mut manifest: Value = serde_json::from_str(&repo.git(["show", &format!("{tip}:{MANIFEST}")])).unwrap();
    let mut files = manifest["files"].as_array_mut().unwrap().iter_mut();
    files.find(|file| file["path"] == path).unwrap()["sha256"] = Digest::of(text.as_bytes()).to_string().into();
    let manifest = manifest.to_string() + "\n";
    on_tree(repo, tip, &changed_tree(repo, tip, &[(path, Some(text)), (MANIFEST, Some(&manifest))]))
}

/// A repository that has run once, whose run is forgotten, so that the cache entry answers. Its name and its commit.
fn with_entry() -> (Repo, String, String) {
    let repo = Repo::tiny();
    repo.run();
    let (run, _) = repo.only_ref("refs/cbia/runs");
    repo.git(["update-ref", "-d", &run]);
    repo.remove("out");
    let (name, commit) = repo.only_entry();
    (repo, name, commit)
}

/// A repository that has run once, whose cache entry is forgotten, so that only the run answers.
fn with_run() -> (Repo, String, String) {
    let repo = Repo::tiny();
    repo.run();
    let (entry, _) = repo.only_entry();
    repo.git(["update-ref", "-d", &entry]);
    repo.remove("out");
    let (name, commit) = repo.only_ref("refs/cbia/runs");
    (repo, name, commit)
}

/// Puts `bad` where a good thing was: `status` names it and says that a run would generate; a run says why, generates, ends in the right
/// bytes, keeps the bad thing aside, and the next run replays.
#[track_caller]
fn refused(repo: &Repo, name: &str, bad: &str, code: &str, why: &str) -> Ran {
    let before = repo.files(&[]);
    repo.git(["update-ref", name, bad]);
    let status = repo.cbia(["status", "--json"]).ok();
    let finding = status.finding(code);
    assert_eq!((&finding["path"], &finding["severity"]), (&json!(name), &json!("warning")), "{finding}");
    assert!(finding["message"].as_str().unwrap().contains(why), "{finding}");
    assert_eq!(status.json()["outcome"], "would-run");
    assert_eq!(repo.files(&[]), before);
    refused_by_run(repo, name, bad, code, why)
}

/// The same for what shows only when the artifacts are read, which a status does not do.
#[track_caller]
fn refused_by_run(repo: &Repo, name: &str, bad: &str, code: &str, why: &str) -> Ran {
    repo.git(["update-ref", name, bad]);
    let ran = repo.cbia(["run", "--json"]).ok();
    assert!(ran.finding(code)["message"].as_str().unwrap().contains(why), "{}", ran.stdout);
    assert_eq!(ran.gen_status(), "executed");
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    let left: Vec<String> =
        repo.files(&["execution", "opa", "control", "docs", "data", "policy", "README", ".gitignore"]).into_keys().collect();
    assert_eq!(left, ["dist/bundle/out/note.txt", NOTE]);
    let (aside, kept) = repo.only_ref("refs/cbia/refused");
    assert_eq!(
        (aside.as_str(), kept.as_str()),
        (format!("refs/cbia/refused/{}/{bad}", &name["refs/cbia/".len()..]).as_str(), bad)
    );
    assert!(ran.finding(code)["hint"].as_str().unwrap().contains(&aside));
    assert_eq!(repo.run(), "replayed");
    ran
}

#[test]
fn a_cache_entry_whose_content_is_changed() {
    let meta = |repo: &Repo, commit: &str| repo.git(["show", &format!("{commit}:cache.meta.json")]) + "\n";
    let swapped = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from));
        text.replacen(from, to, 1)
    };
    type Change = fn(&str) -> Vec<(&'static str, Option<String>)>;
    let cases: [(&str, Change); 7] = [
        ("the artifact out/note.txt does not have the hash and size", |_| {
            vec![("artifacts/out/note.txt", Some("Be brief.\nwords: one twO\n".into()))]
        }),
        ("the artifact out/note.txt", |_| vec![("artifacts/out/note.txt", Some("Be brief.\n".into()))]),
        ("it has no artifacts/out/note.txt", |_| vec![("artifacts/out/note.txt", None)]),
        ("it holds artifacts/out/more.txt", |_| vec![("artifacts/out/more.txt", Some("x".into()))]),
        ("opa/decision.json does not have the hash", |_| vec![("opa/decision.json", Some("{}\n".into()))]),
        ("it has no cache.meta.json", |_| vec![("cache.meta.json", None)]),
        ("cache.meta.json", |_| vec![("cache.meta.json", Some("{}\n".into()))]),
    ];
    for (why, change) in cases {
        let (repo, name, commit) = with_entry();
        let text = meta(&repo, &commit);
        let changes = change(&text);
        let changes: Vec<(&str, Option<&str>)> = changes.iter().map(|(path, text)| (*path, text.as_deref())).collect();
        let bad = on_tree(&repo, &commit, &changed_tree(&repo, &commit, &changes));
        refused(&repo, &name, &bad, "cache-entry-invalid", why);
    }
    // A wrong hash in the meta document; a key under which it is not stored; key data that does not give the key.
    let (repo, _, commit) = with_entry();
    let text = meta(&repo, &commit);
    let document: Value = serde_json::from_str(&text).unwrap();
    let of = |pointer: &str| document.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let other = "0".repeat(64);
    for (member, why) in [
        (of("/artifacts/0/sha256"), "does not have the hash and size"),
        (of("/cache_key"), "its key data gives the key"),
        (of("/key_data/phase_config_hash"), "its key data gives the key"),
        (of("/evidence/opa~1explain.json"), "opa/explain.json does not have the hash"),
    ] {
        let (repo, name, commit) = with_entry();
        let forged = swapped(&text, &member, &other);
        let bad = on_tree(&repo, &commit, &changed_tree(&repo, &commit, &[("cache.meta.json", Some(&forged))]));
        refused(&repo, &name, &bad, "cache-entry-invalid", why);
    }
}

#[test]
fn an_entry_that_is_stored_under_another_key() {
    let (repo, name, commit) = with_entry();
    repo.write("data/words.txt", "three\n");
    repo.run();
    let others = repo.entries("GEN");
    let (_, other) = others.iter().find(|(found, _)| *found != name).unwrap();
    let (run, _) = repo.only_ref("refs/cbia/runs");
    repo.git(["update-ref", "-d", &run]);
    repo.write("data/words.txt", "one two\n");
    assert_ne!(*other, commit);
    refused(&repo, &name, other, "cache-entry-invalid", "its key data gives the key");
}

/// Names that must never be checked out, as (mode, name); `None` is a blob of the artifact's text.
const HOSTILE: [(&str, &str, Option<&str>); 16] = [
    ("100644", "..", None),
    ("100644", ".", None),
    ("100644", ".git", None),
    ("100644", ".GIT", None),
    ("100644", ".git.", None),
    ("100644", "git~1", None),
    ("100644", ".g\u{200c}it", None),
    ("100644", ".git::$INDEX_ALLOCATION", None),
    ("100644", "a/b", None),
    ("100644", "a\\b", None),
    ("100644", "a\nb", None),
    ("120000", "link", Some("../../../etc/passwd")),
    ("160000", "module", None),
    ("100664", "group", None),
    ("104755", "setuid", None),
    ("0100644", "zero", None),
];

/// The commit with a hostile entry in the folder of its artifacts, or with `nested` as the name of a folder there.
fn hostile(repo: &Repo, commit: &str, folder: &str, (mode, name, text): (&str, &str, Option<&str>), nested: bool) -> String {
    let id = blob(repo, text.unwrap_or(NOTE_TEXT));
    let out = if nested {
        let inner = raw_tree(repo, &[("100644", "x", &id)]);
        raw_tree(repo, &[("40000", name, &inner)])
    } else {
        raw_tree(repo, &[(mode, name, &id)])
    };
    let listed = repo.git(["ls-tree", commit]);
    let entries: Vec<(&str, &str, &str)> = listed
        .lines()
        .map(|line| {
            let (head, name) = line.split_once('\t').unwrap();
            let words: Vec<&str> = head.split(' ').collect();
            (words[0].trim_start_matches('0'), name, if name == folder { out.as_str() } else { words[2] })
        })
        .collect();
    assert!(entries.iter().any(|(_, _, id)| *id == out));
    on_tree(repo, commit, &raw_tree(repo, &entries))
}

#[test]
fn hostile_trees_are_refused_in_cache_entries_and_runs() {
    for (make, code, folder) in
        [(with_entry as fn() -> (Repo, String, String), "cache-entry-invalid", "artifacts"), (with_run, "run-invalid", "out")]
    {
        let (repo, name, commit) = make();
        let before = repo.files(&[]);
        for entry in HOSTILE {
            for nested in [false, true].into_iter().filter(|nested| !nested || entry.0 == "100644") {
                let bad = hostile(&repo, &commit, folder, entry, nested);
                repo.git(["update-ref", &name, &bad]);
                let status = repo.cbia(["status", "--json"]).ok();
                assert_eq!(
                    (status.codes(), &status.json()["outcome"]),
                    (vec![code.to_owned()], &json!("would-run")),
                    "{entry:?} {nested}"
                );
            }
        }
        assert_eq!(repo.files(&[]), before);
        for (entry, nested) in [(HOSTILE[0], false), (HOSTILE[2], true), (HOSTILE[11], false)] {
            let (repo, name, commit) = make();
            let bad = hostile(&repo, &commit, folder, entry, nested);
            refused(&repo, &name, &bad, code, "is refused");
        }
    }
}

#[test]
fn a_ref_that_points_at_something_else() {
    let (repo, name, commit) = with_entry();
    let tree = repo.git(["rev-parse", &format!("{commit}^{{tree}}")]);
    refused(&repo, &name, &tree, "cache-entry-invalid", "is refused");
    let (repo, name, commit) = with_run();
    let text = repo.git(["rev-parse", &format!("{commit}:{NOTE}")]);
    refused(&repo, &name, &text, "run-invalid", "is refused");
}

#[test]
fn a_run_whose_content_is_changed() {
    for (path, text, why) in [
        (NOTE, None, "out/note.txt is not what this state and its artifacts come to"),
        (NOTE, Some("Be brief.\nwords: one twO\n"), "out/note.txt is not what this state"),
        ("dist/bundle/out/note.txt", None, "dist/bundle/out/note.txt is not what this state"),
        ("execution/check/report.json", Some("{}\n"), "execution/check/report.json is not what this state"),
        ("execution/eval/manifest.json", None, "execution/eval/manifest.json is not what this state"),
        ("execution/gen/outputs.json", Some("{}\n"), ""),
        ("execution/gen/outputs.json", None, "it lacks execution/gen/outputs.json"),
        ("opa/decision.json", Some("{}\n"), "opa/decision.json is not what this state and its artifacts come to"),
        ("inputs/data/words.txt", Some("three\n"), "inputs/data/words.txt is not what this state"),
        ("surprise.txt", Some("x"), "surprise.txt is not what this state"),
    ] {
        let (repo, name, commit) = with_run();
        let bad = on_tree(&repo, &commit, &changed_tree(&repo, &commit, &[(path, text)]));
        refused(&repo, &name, &bad, "run-invalid", why);
    }
    // The right tree with another message, and the chain without its last phase.
    let (repo, name, commit) = with_run();
    let text = repo.git(["cat-file", "commit", &commit]).replace("Cbia-Phase: EVAL", "Cbia-Phase: GEN");
    let bad = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], format!("{text}\n").as_bytes());
    refused(&repo, &name, &bad, "run-invalid", "");
    let (repo, name, commit) = with_run();
    let bad = repo.git(["rev-parse", &format!("{commit}~1")]);
    refused(&repo, &name, &bad, "run-invalid", "");
}

/// Takes every object out of the packs, so that single ones can be damaged. The file of the loose object.
fn loose(repo: &Repo, id: &str) -> PathBuf {
    let packs = repo.path().join(".git/objects/pack");
    for entry in std::fs::read_dir(&packs).unwrap() {
        let path = entry.unwrap().path();
        let aside = repo.outside().join(path.file_name().unwrap());
        std::fs::rename(&path, &aside).unwrap();
        if aside.extension().is_some_and(|end| end == "pack") {
            repo.git_with(["unpack-objects", "-q"], &std::fs::read(&aside).unwrap());
        }
    }
    let file = repo.path().join(".git/objects").join(&id[..2]).join(&id[2..]);
    assert!(file.is_file());
    file
}

#[test]
fn a_loose_object_whose_body_is_not_its_own() {
    for garbage in [None, Some(&b""[..]), Some(&b"garbage"[..])] {
        let repo = Repo::tiny();
        repo.run();
        repo.remove("out");
        let id = repo.git(["rev-parse", &format!("{}:{NOTE}", repo.only_ref("refs/cbia/runs").1)]);
        let file = loose(&repo, &id);
        let evil = blob(&repo, NOTE_TEXT.replace("two", "twO"));
        let body = garbage.map_or_else(|| std::fs::read(loose_path(&repo, &evil)).unwrap(), <[u8]>::to_vec);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, body).unwrap();
        let ran = repo.cbia(["run", "--json"]).ok();
        assert_eq!(ran.gen_status(), "executed", "{garbage:?}: {}", ran.stdout);
        assert!(ran.codes().iter().all(|code| code == "run-invalid" || code == "cache-entry-invalid"), "{:?}", ran.codes());
        assert!(!ran.codes().is_empty());
        assert_eq!(repo.read(NOTE), NOTE_TEXT);
        assert_eq!(repo.run(), "replayed");
        repo.remove("out");
        assert_eq!(repo.run(), "replayed");
        assert_eq!(repo.read(NOTE), NOTE_TEXT);
    }
}

fn loose_path(repo: &Repo, id: &str) -> PathBuf {
    repo.path().join(".git/objects").join(&id[..2]).join(&id[2..])
}

#[test]
fn replace_refs_and_grafts_are_not_looked_at() {
    let repo = Repo::tiny();
    repo.run();
    let run = repo.only_ref("refs/cbia/runs").1;
    let id = repo.git(["rev-parse", &format!("{run}:{NOTE}")]);
    let input = repo.git(["rev-parse", &format!("{run}:inputs/data/words.txt")]);
    repo.git(["replace", &id, &blob(&repo, "EVIL\n")]);
    repo.git(["replace", &input, &blob(&repo, "EVIL\n")]);
    repo.write(".git/info/grafts", format!("{run}\n"));
    repo.remove("out");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    repo.commit();
    repo.cbia(["run", "--commit", "HEAD"]).ok();
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    assert_eq!(repo.refs("refs/cbia/runs").len(), 1);
}

#[test]
fn a_memo_that_is_forged_is_not_used() {
    let repo = Repo::tiny();
    repo.write("policy/assurance.rego", "package assurance\nallow := false\n");
    repo.cbia(["run"]).exits(1);
    let memo = repo.only_ref("refs/cbia/memo").1;
    let listed = repo.git(["ls-tree", "-r", "--name-only", &memo]);
    let forge = |text: &str| {
        text.replace("DENY", "ALLOW")
            .replace("\"value\": false", "\"value\": true")
            .replace("\"allow\": false", "\"allow\": true")
    };
    let forged: Vec<(&str, String)> =
        listed.lines().map(|path| (path, forge(&repo.git(["show", &format!("{memo}:{path}")])) + "\n")).collect();
    let changes: Vec<(&str, Option<&str>)> = forged.iter().map(|(path, text)| (*path, Some(text.as_str()))).collect();
    let bad = on_tree(&repo, &memo, &changed_tree(&repo, &memo, &changes));
    repo.git(["update-ref", "refs/cbia/memo", &bad]);
    let ran = repo.cbia(["run", "--json"]).exits(1);
    assert!(
        ran.codes().contains(&"memo-invalid".to_owned()) && ran.codes().contains(&"assurance-denied".to_owned()),
        "{:?}",
        ran.codes()
    );
    assert!(!repo.has(NOTE));
    let again = repo.cbia(["run", "--json"]).exits(1);
    assert_eq!(again.codes(), ["assurance-denied"], "the memo was mended");
}

#[test]
fn a_torn_ledger_is_healed_and_told() {
    let ledger = "refs/cbia/ledger";
    let tears: [fn(&Repo); 4] = [
        |repo| repo.write(".git/refs/cbia/ledger", ""),
        |repo| repo.write(".git/refs/cbia/ledger", format!("{}\n", "1".repeat(40))),
        |repo| {
            let tip = repo.git(["rev-parse", "refs/cbia/ledger"]);
            let file = loose(repo, &tip);
            std::fs::remove_file(&file).unwrap();
            std::fs::write(file, b"").unwrap();
        },
        |repo| {
            let tip = repo.git(["rev-parse", "refs/cbia/ledger:record.json"]);
            std::fs::remove_file(loose(repo, &tip)).unwrap();
        },
    ];
    for (number, tear) in tears.into_iter().enumerate() {
        let repo = Repo::tiny();
        repo.run();
        repo.run();
        let whole = repo.git(["rev-parse", &format!("{ledger}~1")]);
        let tip = repo.git(["rev-parse", ledger]);
        tear(&repo);
        let ran = repo.cbia(["run", "--json"]).ok();
        let finding = ran.finding("ledger-torn");
        assert_eq!((&finding["path"], &finding["severity"]), (&json!(ledger), &json!("warning")), "{number}");
        let events = repo.events();
        // The ref alone was torn: its record is whole, and is found again.
        let expected = if number < 2 { vec!["admitted", "replayed", "replayed"] } else { vec!["admitted", "replayed"] };
        assert_eq!(events, expected, "{number}");
        assert_eq!(repo.git(["rev-parse", &format!("{ledger}~1")]), if number < 2 { tip } else { whole }, "{number}");
        assert!(repo.cbia(["run", "--json"]).ok().codes().is_empty(), "{number}: healed");
        repo.cbia(["log"]).ok();
    }
}

#[test]
fn a_revoked_authority_is_not_replayed() {
    let repo = Repo::tiny();
    repo.run();
    repo.remove("out");
    repo.set(LEDGER, "/frozen", json!(false));
    repo.cbia(["run"]).exits(1);
    assert!(!repo.has(NOTE));
    repo.set(LEDGER, "/frozen", json!(true));
    assert_eq!(repo.run(), "replayed");
}
