//! PROMOTE and `export bundle`: what is refused, what is written, what is left alone, and what a kill leaves.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use git_cbia::document::digest::Digest;
use git_cbia::document::json::{emit, pretty};
use git_cbia::phase::eval::seal;
use serde_json::{Value, json};

use super::support::{NOTE, NOTE_TEXT, PIPELINE, PROGRAM, Ran, Repo};

const POLICY: &str = "policy/promote/promote.rego";
const PACKAGED: &str = "dist/bundle/out/note.txt";
const CHECK: &str = "execution/check/report.json";
const HASHES: &str = "execution/ledger/artifact_hashes.json";
const METADATA: &str = "execution/struct/metadata.json";
const SELECTION: &str = "execution/select/selection.json";
const FINAL: &str = "execution/eval/manifest.json";
const FLOW: &str = "execution/flow/manifest.json";

/// A repository with the tiny pipeline, everything committed but what the run made, and its finished run.
fn finished() -> Repo {
    finished_in(Repo::new())
}

fn finished_in(repo: Repo) -> Repo {
    prepared(&repo);
    repo.commit();
    make_run(&repo);
    repo
}

fn prepared(repo: &Repo) {
    repo.write_tiny();
    repo.write(POLICY, include_str!("../../policy/promote/promote.rego"));
    repo.set(PIPELINE, "/promote", json!({"destinations": ["out/**", "dist/**"]}));
}

/// Makes the run of the work tree's state.
fn make_run(repo: &Repo) {
    repo.cbia(["run"]).ok();
}

fn newest_run(repo: &Repo) -> (String, String) {
    let runs = repo.refs("refs/cbia/runs/");
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].clone()
}

/// The tree of `commit` with files replaced, or with `None` removed.
fn edited(repo: &Repo, commit: &str, edits: &[(String, Option<String>)]) -> String {
    let index = repo.outside().join("forge");
    drop(std::fs::remove_file(&index));
    let own = repo.with("GIT_INDEX_FILE", index.to_str());
    own.git(["read-tree", commit]);
    for (path, text) in edits {
        match text {
            Some(text) => {
                let blob = own.git_with(["hash-object", "-w", "--stdin"], text.as_bytes());
                own.git(["update-index", "--add", "--cacheinfo", &format!("100644,{blob},{path}")]);
            }
            None => drop(own.git(["update-index", "--force-remove", path])),
        }
    }
    own.git(["write-tree"])
}

/// A commit by the identity of phase commits.
fn fixed(repo: &Repo, tree: &str, parent: Option<&str>, message: &str) -> String {
    let mut own = repo.clone();
    for role in ["AUTHOR", "COMMITTER"] {
        own = own
            .with(&format!("GIT_{role}_NAME"), Some("git-cbia"))
            .with(&format!("GIT_{role}_EMAIL"), Some("git-cbia@localhost"));
        own = own.with(&format!("GIT_{role}_DATE"), Some("@0 +0000"));
    }
    let mut arguments = vec!["commit-tree", tree, "-F", "-"];
    arguments.extend(parent.into_iter().flat_map(|parent| ["-p", parent]));
    own.git_with(arguments, message.as_bytes())
}

/// Replaces what the run's last commit has, as somebody would who wants his own bytes promoted: the final manifest names them.
fn forge(repo: &Repo, edits: &[(&str, Option<String>)]) {
    let (_, tip) = newest_run(repo);
    let edits: Vec<_> = edits.iter().map(|(path, text)| ((*path).to_owned(), text.clone())).collect();
    let tree = edited(repo, &tip, &edits);
    let listed = repo.git(["ls-tree", "-r", "--format=%(objectname) %(path)", &tree]);
    let files = listed.lines().map(|line| line.split_once(' ').unwrap()).filter(|(_, path)| *path != FINAL);
    let hash = |blob: &str| {
        let mut command = repo.command("git");
        Digest::of(&command.args(["cat-file", "blob", blob]).output().unwrap().stdout)
    };
    let files = files.map(|(blob, path)| (path.parse().unwrap(), hash(blob))).collect();
    let sealed = String::from_utf8(emit(&seal(&files))).unwrap();
    replace_tip(repo, &[edits, vec![(FINAL.to_owned(), Some(sealed))]].concat());
}

/// Replaces the run's last commit by one that has other files.
fn replace_tip(repo: &Repo, edits: &[(String, Option<String>)]) {
    let (name, tip) = newest_run(repo);
    let tree = edited(repo, &tip, edits);
    let parent = repo.git(["rev-parse", &format!("{tip}^")]);
    let message = repo.git(["log", "-1", "--format=%B", &tip]);
    let forged = fixed(repo, &tree, Some(&parent), &message);
    repo.git(["update-ref", &name, &forged]);
}

/// A document of the run, with one member set.
fn altered(repo: &Repo, path: &str, pointer: &str, value: Value) -> (String, Option<String>) {
    let (_, tip) = newest_run(repo);
    let mut document: Value = serde_json::from_str(&repo.git(["show", &format!("{tip}:{path}")])).unwrap();
    *document.pointer_mut(pointer).unwrap() = value;
    (path.to_owned(), Some(String::from_utf8(pretty(&document)).unwrap()))
}

type State = (Vec<(String, String)>, String, String, BTreeMap<String, Vec<u8>>);

/// Everything that a promotion could change: the refs, `HEAD`, the index, the work tree.
fn state(repo: &Repo) -> State {
    let head = std::fs::read_to_string(repo.path().join(".git/HEAD")).unwrap_or_default();
    (repo.refs("refs"), head, repo.git(["ls-files", "-s", "-v", "-f"]), repo.files(&[]))
}

#[track_caller]
fn promoted(ran: Ran) -> Value {
    let document = ran.ok().json();
    assert_eq!(document["outcome"], "promoted", "{document:#}");
    document
}

#[test]
fn the_files_of_a_run_become_one_commit_and_nothing_else_does() {
    let repo = finished();
    for path in ["staged.txt", "dirty.txt", "gone.txt", "both.txt"] {
        repo.write(path, "old\n");
    }
    repo.git(["add", "staged.txt", "dirty.txt", "gone.txt", "both.txt"]);
    repo.git(["commit", "-qm", "more"]);
    let before = repo.git(["rev-parse", "HEAD"]);
    repo.write("staged.txt", "staged\n");
    repo.write("both.txt", "staged\n");
    repo.write("new.txt", "staged\n");
    repo.git(["add", "staged.txt", "both.txt", "new.txt"]);
    repo.write("both.txt", "dirty\n");
    repo.write("dirty.txt", "dirty\n");
    repo.remove("gone.txt");
    repo.write("intended.txt", "intended\n");
    repo.git(["add", "--intent-to-add", "intended.txt"]);
    repo.write("untracked.txt", "untracked\n");
    let others = |repo: &Repo| {
        let keep = |text: String| {
            text.lines().filter(|l| !l.ends_with(NOTE) && !l.ends_with(PACKAGED)).map(str::to_owned).collect::<Vec<_>>()
        };
        (
            keep(repo.git(["ls-files", "-s", "-v", "-f"])),
            keep(repo.git(["status", "--porcelain=v1", "--untracked-files=all"])),
            repo.files(&["out", "dist", "execution", "opa"]),
        )
    };
    let seen = others(&repo);

    let document = promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(others(&repo), seen);
    let commit = repo.git(["rev-parse", "HEAD"]);
    assert_eq!(document["commit"], commit.as_str());
    assert_eq!(document["branch"], "refs/heads/main");
    assert_eq!(repo.git(["rev-parse", "HEAD^"]), before);
    assert_eq!(repo.git(["diff", "--name-only", "HEAD^", "HEAD"]), format!("{PACKAGED}\n{NOTE}"));
    for path in [NOTE, PACKAGED] {
        assert_eq!(repo.git(["show", &format!("HEAD:{path}")]) + "\n", NOTE_TEXT);
        assert_eq!(repo.read(path), NOTE_TEXT);
    }
    let clean = repo.git(["status", "--porcelain", "--", NOTE, PACKAGED]);
    assert_eq!(clean, "");
    let (_, tip) = newest_run(&repo);
    let trailers = repo.git(["log", "-1", "--format=%an|%(trailers:key=Cbia-Run,valueonly,separator=%x2C)|%(trailers:key=Cbia-State-Key,valueonly,separator=%x2C)|%(trailers:key=Cbia-Capsule,valueonly,separator=%x2C)"]);
    let capsule = Digest::of(repo.read("control/runtime/pre_gen_capsule.json").as_bytes());
    assert_eq!(trailers, format!("Ada|{tip}|{}|{capsule}", document["state_key"].as_str().unwrap()));
    assert!(repo.git(["reflog", "-1", "main"]).contains("cbia: Promote 2 generated files"));

    let report: Value = serde_json::from_str(&repo.read("execution/promote/report.json")).unwrap();
    let emitted = Digest::of(repo.read("execution/promote/capsule.json").as_bytes());
    assert_eq!((&report["promoted"], &report["promote_capsule_hash"]), (&json!(true), &json!(emitted)));
    assert!(repo.read("opa/decision.json").contains("data.promote.allow"));
    let record = repo.git(["log", "-1", "--format=%s|%P|%(trailers:key=Cbia-Promote-Commit,valueonly)", "refs/cbia/ledger"]);
    assert!(record.starts_with("promoted: 2 files onto main|") && record.contains(&tip) && record.contains(&commit), "{record}");
    repo.git(["show", "refs/cbia/ledger:execution/promote/capsule.json"]);
    assert_eq!(repo.events().last().unwrap(), "promoted");
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());

    let after = state(&repo);
    let again = repo.cbia(["promote", "--json"]).ok().json();
    assert_eq!((&again["outcome"], &again["commit"], &again["record"]), (&json!("already-promoted"), &Value::Null, &Value::Null));
    assert_eq!(state(&repo), after, "the same promotion twice changes nothing");
    let told = repo.cbia(["promote"]).ok().stdout;
    assert!(told.contains("already promoted: main has all 2 files"), "{told}");
    repo.cbia(["run"]).ok();
    assert_eq!(repo.git(["status", "--porcelain", "--", NOTE, PACKAGED]), "", "a run leaves the promoted files where they are");
}

/// Makes something wrong, and says the code that it gives.
type Wrong = (&'static str, &'static str, fn(&Repo));

#[test]
fn what_may_not_be_promoted_is_refused_and_nothing_is_written() {
    let cases: &[Wrong] = &[
        ("no policy", "policy-missing", |repo| {
            repo.remove("policy/promote");
            remake(repo);
        }),
        ("a policy that says no", "promotion-denied", |repo| {
            repo.write(POLICY, "package promote\n\ndefault allow := false\n");
            remake(repo);
        }),
        ("a policy that says something else", "policy-not-boolean", |repo| {
            repo.write(POLICY, "package promote\n\nallow := \"true\"\n");
            remake(repo);
        }),
        ("no destinations", "promotion-undeclared", |repo| {
            repo.set(PIPELINE, "/promote", Value::Null);
            remake(repo);
        }),
        ("another destination", "destination-not-allowed", |repo| {
            repo.set(PIPELINE, "/promote", json!({"destinations": ["out/**"]}));
            remake(repo);
        }),
        ("no run", "run-missing", |repo| repo.write("data/words.txt", "three\n")),
        ("an unfinished run", "run-incomplete", |repo| {
            let (name, tip) = newest_run(repo);
            repo.git(["update-ref", &name, &format!("{tip}^")]);
        }),
        ("a run without CHECK", "run-incomplete", |repo| {
            let (name, tip) = newest_run(repo);
            let of = |commit: &str, format: &str| repo.git(["log", "-1", &format!("--format={format}"), commit]);
            let chain = repo.git(["rev-list", "--reverse", &tip]);
            let (mut before, mut tree) = (None::<String>, String::new());
            for commit in chain.lines() {
                let message = of(commit, "%B");
                if message.starts_with("CHECK") {
                    continue;
                }
                tree = of(commit, "%T");
                before = Some(fixed(repo, &tree, before.as_deref(), &message));
            }
            assert!(!tree.is_empty());
            repo.git(["update-ref", &name, &before.unwrap()]);
        }),
        ("a CHECK that did not pass", "check-not-passed", |repo| {
            let edit = altered(repo, CHECK, "/passed", json!(false));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("no CHECK report", "run-incomplete", |repo| forge(repo, &[(CHECK, None)])),
        ("no artifact map", "run-incomplete", |repo| forge(repo, &[(HASHES, None)])),
        ("an artifact map without the artifact", "hash-link-missing", |repo| forge(repo, &[(HASHES, Some("{}\n".into()))])),
        ("another hash in the artifact map", "hash-link-mismatch", |repo| {
            forge(repo, &[(HASHES, Some(format!("{{\n  \"{NOTE}\": \"{}\"\n}}\n", Digest::of(b"x"))))]);
        }),
        ("other bytes of the artifact", "hash-link-mismatch", |repo| forge(repo, &[(NOTE, Some("mine\n".into()))])),
        ("other bytes in the package", "hash-link-mismatch", |repo| forge(repo, &[(PACKAGED, Some("mine\n".into()))])),
        ("no file in the package", "hash-link-dangling", |repo| forge(repo, &[(PACKAGED, None)])),
        ("another hash in the package's manifest", "hash-link-mismatch", |repo| {
            let edit = altered(repo, FLOW, "/files/0/sha256", json!(Digest::of(b"x")));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("an empty package", "hash-link-missing", |repo| {
            let edit = altered(repo, FLOW, "/files", json!([]));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("another hash in the metadata", "hash-link-mismatch", |repo| {
            let edit = altered(repo, METADATA, "/artifacts/0/sha256", json!(Digest::of(b"x")));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("another hash in the selection", "hash-link-mismatch", |repo| {
            let edit = altered(repo, SELECTION, "/artifacts/0/sha256", json!(Digest::of(b"x")));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("a file that the final manifest does not name", "hash-link-missing", |repo| {
            replace_tip(repo, &[("more.txt".to_owned(), Some("more\n".to_owned()))]);
        }),
        ("other bytes than the final manifest names", "hash-link-mismatch", |repo| {
            replace_tip(repo, &[("execution/gen/request.json".to_owned(), Some("{}\n".to_owned()))]);
        }),
        ("another reason, and every hash right", "run-invalid", |repo| {
            let edit = altered(repo, SELECTION, "/artifacts/0/reason", json!("because I say so"));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("a DAG without PROMOTE", "promotion-undeclared", |repo| {
            let phases = ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "CHECK", "STRUCT", "SELECT", "FLOW", "EVAL"];
            let edges: Vec<Value> = phases.windows(2).map(|pair| json!({"from": pair[0], "to": pair[1]})).collect();
            repo.write_json("control/execution_dag.json", &json!({"phases": phases, "edges": edges}));
            remake(repo);
        }),
        ("another snapshot", "run-invalid", |repo| forge(repo, &[("inputs/docs/rule.md", Some("Be long.\n".into()))])),
        ("a decision that denies", "run-invalid", |repo| {
            let edit = altered(repo, "opa/decision.json", "/cbia/decision", json!("DENY"));
            forge(repo, &[(&edit.0, edit.1.clone())]);
        }),
        ("somebody's own commit", "run-invalid", |repo| {
            let (name, tip) = newest_run(repo);
            let message = repo.git(["log", "-1", "--format=%B", &tip]);
            let parent = format!("{tip}^");
            let own = repo.git_with(["commit-tree", &format!("{tip}^{{tree}}"), "-p", &parent, "-F", "-"], message.as_bytes());
            repo.git(["update-ref", &name, &own]);
        }),
        ("an untracked file", "destination-dirty", |repo| repo.write(NOTE, "mine\n")),
        ("an untracked file in the package", "destination-dirty", |repo| repo.write(PACKAGED, "mine\n")),
        ("a staged file", "destination-dirty", |repo| {
            repo.write(NOTE, "mine\n");
            repo.git(["add", NOTE]);
            repo.write(NOTE, NOTE_TEXT);
        }),
        ("an intended file", "destination-dirty", |repo| {
            repo.write(NOTE, "mine\n");
            repo.git(["add", "--intent-to-add", NOTE]);
        }),
        ("a changed file", "destination-dirty", |repo| {
            committed(repo, NOTE, "old\n");
            repo.write(NOTE, "mine\n");
        }),
        ("a deleted file", "destination-dirty", |repo| {
            committed(repo, NOTE, "old\n");
            repo.remove(NOTE);
        }),
        ("a file staged for deletion", "destination-dirty", |repo| {
            committed(repo, NOTE, "old\n");
            repo.git(["rm", "-q", "--cached", NOTE]);
            repo.write(NOTE, NOTE_TEXT);
        }),
        ("a link", "destination-blocked", |repo| {
            repo.remove(NOTE);
            symlink("/etc/hostname", repo.path().join(NOTE)).unwrap();
        }),
        ("a link on the way", "destination-blocked", |repo| {
            repo.remove("out");
            symlink(repo.outside(), repo.path().join("out")).unwrap();
        }),
        ("a folder", "destination-blocked", |repo| {
            repo.remove(PACKAGED);
            repo.write(&format!("{PACKAGED}/x"), "mine\n");
        }),
        ("a file for a folder", "destination-blocked", |repo| {
            drop(std::fs::remove_dir_all(repo.path().join("dist")));
            committed(repo, "dist", "mine\n");
        }),
        ("an executable file", "destination-blocked", |repo| {
            std::fs::set_permissions(repo.path().join(NOTE), std::fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("a merge", "operation-in-progress", |repo| {
            let head = repo.git(["rev-parse", "HEAD"]);
            std::fs::write(repo.path().join(".git/MERGE_HEAD"), head + "\n").unwrap();
        }),
        ("a rebase", "operation-in-progress", |repo| std::fs::create_dir(repo.path().join(".git/rebase-merge")).unwrap()),
    ];
    for (name, code, spoil) in cases {
        let repo = finished();
        spoil(&repo);
        let before = state(&repo);
        let ran = repo.cbia(["promote", "--json"]).exits(1);
        assert!(ran.codes().contains(&(*code).to_owned()), "{name}: {:?}", ran.codes());
        assert_eq!(ran.json()["outcome"], "refused", "{name}");
        assert_eq!(state(&repo), before, "{name}");
        if *code != "operation-in-progress" && *code != "destination-dirty" && *code != "destination-blocked" {
            repo.cbia(["promote", "--patch", "p"]).exits(1);
            assert!(!repo.has("p"), "{name}");
        }
        repo.cbia(["promote", "--stage"]).exits(1);
        assert_eq!(state(&repo), before, "{name}");
        assert_eq!(repo.leftovers(), Vec::<String>::new(), "{name}");
    }
}

/// Makes the run anew, of another state.
fn remake(repo: &Repo) {
    let (name, _) = newest_run(repo);
    repo.git(["update-ref", "-d", &name]);
    repo.git(["add", "control", "policy", "docs", "data"]);
    repo.git(["commit", "-q", "--allow-empty", "-m", "other"]);
    make_run(repo);
}

/// Commits a file that is not ours.
fn committed(repo: &Repo, path: &str, text: &str) {
    repo.write(path, text);
    repo.git(["add", path]);
    repo.git(["commit", "-qm", "theirs", "--", path]);
}

#[test]
fn what_is_promoted_replaces_what_was_committed() {
    let repo = finished();
    committed(&repo, NOTE, "old\n");
    promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    assert_eq!(repo.git(["status", "--porcelain"]), "");
    repo.fsck();
}

#[test]
fn what_was_repaired_is_promoted_and_what_was_pruned_is_not() {
    let repo = Repo::new();
    prepared(&repo);
    repo.write("data/words.txt", "one two");
    repo.set(PIPELINE, "/struct", json!({"normalize": [{"paths": "out/**", "format": "text"}]}));
    repo.set(PIPELINE, "/repair", json!({"allow": ["out/**"], "max_changed_lines": 10}));
    let artifact = |path: &str| json!({"path": path, "objectives": ["O-1"], "template": "control/templates/note.txt.j2"});
    repo.set(PIPELINE, "/gen/artifacts", json!([artifact(NOTE), artifact("out/draft.txt")]));
    let rules = json!([{"paths": "out/draft.txt", "keep": false, "reason": "a draft"}, {"paths": "**", "keep": true, "reason": "the rest"}]);
    repo.set(PIPELINE, "/select", json!({"rules": rules}));
    repo.commit();
    make_run(&repo);
    let chain =
        repo.git(["log", "--reverse", "--format=%(trailers:key=Cbia-Phase,valueonly,separator=%x20)", &newest_run(&repo).1]);
    assert!(chain.contains("REPAIR"), "{chain}");
    promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(repo.git(["diff", "--name-only", "HEAD^", "HEAD"]), format!("{PACKAGED}\n{NOTE}"));
    assert_eq!(repo.read(PACKAGED), NOTE_TEXT);
    assert_eq!(repo.git(["status", "--porcelain"]), "?? out/draft.txt");
}

#[test]
fn stage_makes_no_commit_and_a_commit_takes_it_up() {
    let repo = finished();
    let head = repo.git(["rev-parse", "HEAD"]);
    let document = promoted(repo.cbia(["promote", "--stage", "--json"]));
    assert_eq!((&document["mode"], &document["commit"]), (&json!("stage"), &Value::Null));
    assert_eq!(repo.git(["rev-parse", "HEAD"]), head);
    assert_eq!(repo.git(["diff", "--cached", "--name-only"]), format!("{PACKAGED}\n{NOTE}"));
    assert_eq!(repo.git(["diff", "--name-only"]), "");
    let before = state(&repo);
    assert_eq!(repo.cbia(["promote", "--stage", "--json"]).ok().json()["outcome"], "already-promoted");
    let told = repo.cbia(["promote", "--stage"]).ok().stdout;
    assert!(told.ends_with("already staged: the index has all 2 files\n"), "{told}");
    assert_eq!(state(&repo), before);
    promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(repo.git(["status", "--porcelain"]), "");
    assert_eq!(repo.events().iter().filter(|event| *event == "promoted").count(), 2);
}

#[test]
fn a_patch_is_all_that_is_written_and_it_applies() {
    for unborn in [false, true] {
        let repo = if unborn { unborn_finished() } else { finished() };
        let target = repo.outside().join("promotion.patch");
        let before = state(&repo);
        let document = promoted(repo.cbia(["promote", "--json", "--patch", target.to_str().unwrap()]));
        assert_eq!((&document["mode"], &document["record"]), (&json!("patch"), &Value::Null));
        assert_eq!(state(&repo), before);
        for path in ["out", "dist"] {
            drop(std::fs::remove_dir_all(repo.path().join(path)));
        }
        repo.git(["apply", "--index", target.to_str().unwrap()]);
        for path in [NOTE, PACKAGED] {
            assert_eq!(repo.read(path), NOTE_TEXT);
        }
        promoted(repo.cbia(["promote", "--json"]));
        assert_eq!(
            repo.cbia(["promote", "--json", "--patch", target.to_str().unwrap()]).ok().json()["outcome"],
            "already-promoted"
        );
        assert_eq!(std::fs::read(&target).unwrap(), b"");
    }
}

fn unborn_finished() -> Repo {
    let repo = Repo::new();
    prepared(&repo);
    make_run(&repo);
    repo
}

#[test]
fn every_kind_of_head_can_be_promoted_to() {
    let repo = unborn_finished();
    promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(repo.git(["ls-tree", "-r", "--name-only", "HEAD"]), format!("{PACKAGED}\n{NOTE}"));
    assert_eq!(repo.git(["rev-list", "--count", "HEAD"]), "1");

    let repo = finished();
    let main = repo.git(["rev-parse", "main"]);
    repo.git(["checkout", "-q", "--detach"]);
    let document = promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(document["branch"], Value::Null);
    assert_eq!((repo.git(["rev-parse", "main"]), repo.git(["rev-parse", "HEAD^"])), (main.clone(), main));

    let repo = finished();
    repo.git(["worktree", "add", "-q", "-b", "other", "../linked"]);
    let linked = repo.at(repo.outside().join("linked"));
    let main = repo.git(["rev-parse", "main"]);
    promoted(linked.cbia(["promote", "--json"]));
    assert_eq!(linked.read(PACKAGED), NOTE_TEXT);
    assert_eq!(linked.git(["status", "--porcelain"]), "");
    assert_eq!((repo.git(["rev-parse", "main"]), repo.git(["rev-parse", "other^"])), (main.clone(), main));

    let repo = finished_in(Repo::init(&["--object-format=sha256"]));
    promoted(repo.at(repo.path().join("docs")).cbia(["promote", "--json"]));
    assert_eq!(repo.git(["status", "--porcelain"]), "");
    repo.fsck();
    let bare = repo.at(repo.outside().join("bare.git"));
    repo.git(["clone", "-q", "--bare", ".", bare.path().to_str().unwrap()]);
    let ran = bare.cbia(["promote"]).exits(2);
    assert!(ran.stderr.contains("bare"), "{}", ran.stderr);
}

#[test]
fn a_sparse_checkout_is_kept() {
    for index in ["--no-sparse-index", "--sparse-index"] {
        let repo = finished();
        committed(&repo, "far/away.txt", "away\n");
        committed(&repo, PACKAGED, "old\n");
        let folders = ["control", "policy", "docs", "data", "out"];
        repo.git(["sparse-checkout", "set", "--cone", index].iter().chain(&folders));
        let ran = repo.cbia(["promote", "--json"]).exits(1);
        assert_eq!(ran.codes(), ["destination-blocked"], "{index}");
        repo.git(["sparse-checkout", "add", "dist"]);
        promoted(repo.cbia(["promote", "--json"]));
        assert!(!repo.has("far/away.txt"));
        assert!(repo.git(["ls-files", "-v", "far/away.txt"]).starts_with('S'));
        assert_eq!(repo.git(["status", "--porcelain"]), "", "{index}");
    }
}

#[test]
fn a_run_is_named_by_first_digits_and_ambiguity_is_refused() {
    let repo = finished();
    let (name, tip) = newest_run(&repo);
    let keys: Vec<&str> = name.rsplit('/').collect();
    let (executor, state_key) = (keys[0], keys[1]);
    let patch = repo.outside().join("p");
    let target = patch.to_str().unwrap();
    for run in [
        &tip,
        &tip[..8],
        state_key,
        &state_key[..6],
        &format!("{state_key}/{executor}"),
        &format!("{}/{}", &state_key[..4], &executor[..4]),
    ] {
        let document = repo.cbia(["promote", run, "--patch", target, "--json"]).ok().json();
        assert_eq!(document["run"], tip.as_str(), "{run}");
    }
    for run in ["abc", "HEAD", "main", "..", &format!("{state_key}/ffffffff"), "refs/heads/main"] {
        assert_eq!(repo.cbia(["promote", run, "--json"]).exits(1).codes(), ["run-missing"], "{run}");
    }
    let commit = repo.git(["rev-parse", &format!("{tip}^")]);
    assert_eq!(repo.cbia(["promote", &commit, "--json"]).exits(1).codes(), ["run-missing"], "a commit of a run is not the run");
    repo.git(["update-ref", &format!("refs/cbia/runs/{state_key}/{}", Digest::of(b"other")), &tip]);
    repo.cbia(["promote", state_key]).exits(2);

    repo.write("data/words.txt", "three\n");
    let document = promoted(repo.cbia(["promote", &format!("{state_key}/{executor}"), "--json"]));
    assert_eq!(document["findings"][0]["code"], "run-of-other-state");
}

#[test]
fn a_lock_of_another_git_is_waited_for_and_then_told() {
    for lock in ["index.lock", "refs/heads/main.lock"] {
        let repo = finished();
        let path = repo.path().join(".git").join(lock);
        std::fs::write(&path, "").unwrap();
        let before = state(&repo);
        repo.cbia(["promote", "--json"]).exits(4);
        assert_eq!(state(&repo), before, "{lock}");
        assert!(path.exists(), "somebody else's lock is left alone");
        std::fs::remove_file(&path).unwrap();
        promoted(repo.cbia(["promote", "--json"]));
    }
}

#[test]
fn git_decides_who_commits() {
    let mut repo = finished();
    for role in ["AUTHOR", "COMMITTER"] {
        for part in ["NAME", "EMAIL"] {
            repo = repo.with(&format!("GIT_{role}_{part}"), None);
        }
    }
    repo.git(["config", "user.useConfigOnly", "true"]);
    let before = state(&repo);
    repo.cbia(["promote"]).exits(3);
    assert_eq!(state(&repo), before);
    repo.git(["config", "user.name", "Bo"]);
    repo.git(["config", "user.email", "bo@example.org"]);
    promoted(repo.cbia(["promote", "--json"]));
    assert_eq!(repo.git(["log", "-1", "--format=%an <%ae>"]), "Bo <bo@example.org>");
}

#[test]
fn a_kill_leaves_the_old_state_or_the_new_one() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        return;
    }
    let calls = ["rename,renameat,renameat2", "unlink,unlinkat", "write,pwrite64", "openat", "clone,clone3,vfork", "linkat,link"];
    let mut killed = 0;
    for call in calls {
        // Every kill point of the calls that are few, and a spread of those that are many.
        let points: Vec<u32> = if call == "openat" { vec![40, 80, 120, 160, 200, 240] } else { (1..=12).collect() };
        for point in points {
            let repo = finished();
            let before = repo.git(["rev-parse", "HEAD"]);
            let mut command = repo.command("strace");
            command.args([
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={call}"),
                "-e",
                &format!("inject={call}:signal=KILL:when={point}"),
            ]);
            command.args([PROGRAM, "promote"]);
            let ran = repo.finish(command, b"");
            if ran.code == Some(0) {
                break;
            }
            killed += 1;
            let head = repo.git(["rev-parse", "HEAD"]);
            let is_new = head != before;
            if is_new {
                assert_eq!(repo.git(["rev-parse", "HEAD^"]), before);
                assert_eq!(repo.git(["diff", "--name-only", "HEAD^", "HEAD"]), format!("{PACKAGED}\n{NOTE}"));
                assert_eq!(repo.git(["status", "--porcelain"]), "", "{call} {point}");
            }
            let next = repo.cbia(["promote", "--json"]).ok().json();
            let wanted = if is_new { "already-promoted" } else { "promoted" };
            assert_eq!(next["outcome"], wanted, "{call} {point}");
            assert_eq!(repo.git(["rev-parse", "HEAD^"]), before, "{call} {point}");
            assert_eq!(repo.git(["status", "--porcelain"]), "", "{call} {point}");
            assert_eq!(repo.events().iter().filter(|event| *event == "promoted").count(), 1, "{call} {point}");
            // What was not stored to its end stays until git collects it, and the file of a lock that the kernel owned locks nobody out.
            let lasting = |name: &String| !name.contains("tmp_obj") && !name.starts_with("cbia/");
            let left: Vec<String> = repo.leftovers().into_iter().filter(lasting).collect();
            assert_eq!(left, Vec::<String>::new(), "{call} {point}");
            repo.fsck();
        }
    }
    assert!(killed > 10, "{killed}");
}

#[test]
fn run_promotes_what_it_made() {
    let repo = finished();
    let document = repo.cbia(["run", "--promote", "--json"]).ok().json();
    let last = document["phases"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["phase"], &last["status"]), (&json!("PROMOTE"), &json!("executed")), "{document:#}");
    assert_eq!(document["promotion"]["commit"], repo.git(["rev-parse", "HEAD"]).as_str());
    let document = repo.cbia(["run", "--promote", "--json"]).ok().json();
    assert_eq!(document["promotion"]["outcome"], "already-promoted");
    repo.cbia(["run", "--promote", "--dry-run"]).exits(2);
    repo.set(PIPELINE, "/promote", json!({"destinations": ["out/**"]}));
    let (name, _) = newest_run(&repo);
    repo.git(["update-ref", "-d", &name]);
    make_run(&repo);
    let ran = repo.cbia(["run", "--promote", "--json"]).exits(1);
    assert!(ran.codes().contains(&"destination-not-allowed".to_owned()), "{:?}", ran.codes());
    assert_eq!((ran.json()["outcome"].clone(), ran.json()["promotion"]["outcome"].clone()), (json!("failed"), json!("refused")));
}

#[test]
fn a_bundle_is_the_same_bytes_everywhere() {
    let (one, two) = (finished(), finished());
    let (state_key, archive) = (newest_run(&one).0.split('/').nth(3).unwrap().to_owned(), one.outside().join("a.tar"));
    let document = one.cbia(["export", "bundle", &state_key[..8], "-o", archive.to_str().unwrap(), "--json"]).ok().json();
    let bytes = std::fs::read(&archive).unwrap();
    assert_eq!(document["result"]["sha256"], json!(Digest::of(&bytes)));
    two.cbia(["export", "bundle", "--output", "b.tar"]).ok();
    assert_eq!(std::fs::read(two.path().join("b.tar")).unwrap(), bytes);
    let mut command = two.command("git");
    command.args(["cbia", "export", "bundle", "-o", "-"]);
    assert_eq!(command.output().unwrap().stdout, bytes);
    let mut tar = one.command("tar");
    tar.args(["-xOf", archive.to_str().unwrap(), PACKAGED]);
    assert_eq!(one.finish(tar, b"").stdout, NOTE_TEXT);
    one.cbia(["export", "bundle", "-o", "-", "--json"]).exits(2);

    forge(&one, &[(PACKAGED, Some("mine\n".into()))]);
    std::fs::remove_file(&archive).unwrap();
    let ran = one.cbia(["export", "bundle", "-o", archive.to_str().unwrap(), "--json"]).exits(1);
    assert!(ran.codes().contains(&"hash-link-mismatch".to_owned()));
    let (name, tip) = newest_run(&two);
    two.git(["update-ref", &name, &format!("{tip}^")]);
    let ran = two.cbia(["export", "bundle", "-o", archive.to_str().unwrap(), "--json"]).exits(1);
    assert_eq!(ran.codes(), ["run-incomplete"]);
    assert!(!archive.exists());
}

#[test]
fn a_branch_that_lacks_what_the_run_was_made_from_is_told() {
    let repo = finished();
    assert_eq!(repo.cbia(["promote", "--json"]).ok().codes(), [""; 0]);
    // The branch gets what another state's run made, and not that state.
    repo.replace("data/words.txt", "one", "1");
    make_run(&repo);
    assert_eq!(repo.cbia(["promote", "--json"]).ok().codes(), ["promotion-apart"]);
    repo.cbia(["verify"]).exits(1);
    repo.commit();
    repo.cbia(["verify"]).ok();
}
