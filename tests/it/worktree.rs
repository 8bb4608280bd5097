//! Where a run reads and writes: edited files, links in the way, linked work trees, subfolders, bare repositories, line endings, and
//! repositories that are refused.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use git_cbia::document::digest::Digest;
use serde_json::json;

use super::support::{LEDGER, NOTE, NOTE_TEXT, PIPELINE, Repo};

#[test]
fn an_edited_artifact_is_overwritten_with_force_only() {
    let repo = Repo::tiny();
    repo.run();
    repo.write(NOTE, "mine\n");
    repo.write("data/words.txt", "three\n");
    let before = repo.files(&[]);
    let ran = repo.cbia(["run", "--json"]).exits(1);
    let finding = ran.finding("artifact-edited");
    assert_eq!(finding["path"], NOTE);
    assert!(finding["hint"].as_str().unwrap().contains("--force"), "{finding}");
    assert_eq!(repo.files(&[]), before, "nothing at all is written");
    let told = repo.cbia(["run"]).exits(1).stderr;
    assert!(told.contains("error: 'out/note.txt' was edited and would be overwritten") && told.contains("--force"), "{told}");
    repo.cbia(["run", "--force"]).ok();
    assert_eq!(repo.read(NOTE), "Be brief.\nwords: three\n");
    assert_eq!(repo.run(), "replayed");
}

#[test]
fn a_file_that_nobody_generated_is_not_overwritten() {
    let repo = Repo::tiny();
    repo.write(NOTE, "mine\n");
    let ran = repo.cbia(["run", "--json"]).exits(1);
    assert_eq!(ran.codes(), ["artifact-edited"]);
    assert_eq!(repo.read(NOTE), "mine\n");
    repo.write(NOTE, NOTE_TEXT);
    repo.cbia(["run"]).ok();
    let repo = Repo::tiny();
    repo.write(NOTE, "mine\n");
    repo.cbia(["run", "--force"]).ok();
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
}

#[test]
fn what_stands_in_the_way_is_not_followed() {
    for force in [false, true] {
        let repo = Repo::tiny();
        let victim = repo.outside().join("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("note.txt"), "theirs\n").unwrap();
        let arguments = if force { &["run", "--json", "--force"][..] } else { &["run", "--json"] };
        let untouched =
            || std::fs::read_to_string(victim.join("note.txt")).unwrap() == "theirs\n" && victim.read_dir().unwrap().count() == 1;

        symlink(&victim, repo.path().join("out")).unwrap();
        let ran = repo.cbia(arguments);
        assert!(untouched());
        if !force {
            assert_eq!((ran.code, ran.codes()), (Some(1), vec!["artifact-blocked".to_owned()]), "{}", ran.stdout);
        }
        std::fs::remove_file(repo.path().join("out")).unwrap();

        std::fs::create_dir(repo.path().join("out")).unwrap();
        symlink(victim.join("note.txt"), repo.path().join(NOTE)).unwrap();
        let ran = repo.cbia(arguments);
        assert!(untouched());
        if force {
            assert_eq!((ran.code, repo.read(NOTE).as_str()), (Some(0), NOTE_TEXT), "{}", ran.stdout);
            assert!(!repo.path().join(NOTE).is_symlink());
        } else {
            assert_eq!(ran.code, Some(1), "{}", ran.stdout);
            assert!(repo.path().join(NOTE).is_symlink());
        }
        repo.remove("out");

        repo.write("out/note.txt/full/of", "files\n");
        let ran = repo.cbia(arguments);
        assert_eq!((ran.code, repo.read("out/note.txt/full/of").as_str()), (Some(1), "files\n"), "{}", ran.stdout);
        repo.remove("out");

        // Evidence too is not written through a link.
        assert_eq!(repo.has("opa"), force, "a refusal writes nothing at all");
        if force {
            repo.remove("opa");
        }
        symlink(&victim, repo.path().join("opa")).unwrap();
        let ran = repo.cbia(arguments);
        assert!(untouched(), "{}", ran.stdout);
    }
}

#[test]
fn a_lost_artifact_is_replayed_and_one_that_is_no_longer_declared_is_removed() {
    let repo = Repo::started();
    repo.run();
    let checklist = repo.read("artifacts/checklist.md");
    repo.remove("artifacts");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.read("artifacts/checklist.md"), checklist);

    let mut pipeline: serde_json::Value = serde_json::from_str(&repo.read(PIPELINE)).unwrap();
    pipeline["gen"]["artifacts"].as_array_mut().unwrap().pop();
    repo.write("artifacts/notes.txt", "mine\n");
    repo.write_json(PIPELINE, &pipeline);
    let ran = repo.cbia(["run"]).ok();
    assert!(ran.stderr.contains("2 no longer generated and removed"), "{}", ran.stderr);
    assert!(!repo.has("artifacts/rules.json") && !repo.has("dist/bundle/rules.json"));
    assert_eq!(repo.read("artifacts/notes.txt"), "mine\n", "what git cbia did not write is not removed");
}

#[test]
fn a_stray_that_a_person_edited_is_kept() {
    let repo = Repo::started();
    repo.run();
    repo.write("artifacts/rules.json", "mine\n");
    let mut pipeline: serde_json::Value = serde_json::from_str(&repo.read(PIPELINE)).unwrap();
    pipeline["gen"]["artifacts"].as_array_mut().unwrap().pop();
    repo.write_json(PIPELINE, &pipeline);
    repo.cbia(["run"]);
    assert_eq!(repo.read("artifacts/rules.json"), "mine\n");
}

#[test]
fn linked_work_trees_share_runs_and_ledger() {
    let repo = Repo::tiny();
    repo.commit();
    repo.run();
    repo.git(["worktree", "add", "-q", "../linked"]);
    let linked = repo.at(repo.outside().join("linked"));
    assert_eq!(linked.run(), "replayed");
    assert_eq!(linked.read(NOTE), NOTE_TEXT);
    linked.write("data/words.txt", "three\n");
    assert_eq!(linked.run(), "executed");
    assert_eq!(repo.events(), ["admitted", "replayed", "admitted"]);
    assert_eq!(repo.run(), "replayed");
    assert_eq!((repo.read(NOTE).as_str(), linked.read(NOTE).as_str()), (NOTE_TEXT, "Be brief.\nwords: three\n"));
    assert_eq!(repo.leftovers(), Vec::<String>::new());
}

#[test]
fn a_run_is_the_same_from_everywhere_in_the_repository() {
    let repo = Repo::tiny();
    repo.run();
    let run = repo.only_ref("refs/cbia/runs");
    let sub = repo.at(repo.path().join("data"));
    assert_eq!(sub.run(), "replayed");
    let elsewhere = repo.at(repo.outside());
    elsewhere.git(["-C", "repo/docs", "cbia", "run"]);
    repo.git(["config", "alias.again", "!git cbia run --json"]);
    sub.git(["again"]);
    repo.git(["config", "alias.pin", "!git cbia authority thaw && git cbia authority add"]);
    repo.at(repo.path().join("docs")).git(["pin", "rule.md"]);
    repo.cbia(["authority", "freeze"]).ok();
    let explicit = elsewhere.with("GIT_DIR", repo.path().join(".git").to_str()).with("GIT_WORK_TREE", repo.path().to_str());
    explicit.cbia(["run"]).ok();
    assert_eq!(repo.only_ref("refs/cbia/runs"), run);
    assert_eq!(repo.events().len(), 5);
    assert!(!repo.has("data/out") && !repo.has("docs/execution") && !repo.outside().join("out").exists());
}

#[test]
fn a_bare_repository_runs_a_commit() {
    let repo = Repo::tiny();
    repo.commit();
    repo.git(["clone", "-q", "--bare", ".", "../bare.git"]);
    let bare = repo.at(repo.outside().join("bare.git"));
    let refused = bare.cbia(["run", "--json"]).exits(2);
    assert!(refused.finding("usage")["message"].as_str().unwrap().contains("--commit"), "{}", refused.stdout);
    bare.cbia(["init"]).exits(2);
    let status = |arguments: &[&str]| bare.cbia(arguments).ok().gen_status();
    assert_eq!(status(&["run", "--json", "--commit", "main"]), "executed");
    assert_eq!(status(&["run", "--json", "--commit", "main"]), "replayed");
    assert_eq!(status(&["status", "--json", "--commit", "main"]), "replayed");
    repo.run();
    assert_eq!(bare.only_ref("refs/cbia/runs"), repo.only_ref("refs/cbia/runs"));
    bare.fsck();
    for revision in ["no-such-branch", "HEAD:docs", "--all"] {
        bare.cbia(["run", &format!("--commit={revision}")]).exits(3);
    }
}

#[test]
fn line_endings_and_filters_of_a_checkout_change_nothing() {
    let plain = Repo::tiny();
    plain.run();
    let expected = plain.cbia(["status", "--json"]).ok().json()["state_key"].clone();
    let crlf = |repo: &Repo, path: &str| repo.write(path, repo.read(path).replace('\n', "\r\n"));
    type Setting = (&'static str, fn(&Repo));
    let settings: [Setting; 2] = [
        ("autocrlf", |repo| drop(repo.git(["config", "core.autocrlf", "true"]))),
        ("attributes", |repo| repo.write(".gitattributes", "*.txt text eol=crlf\n*.md text eol=crlf\n")),
    ];
    for (name, set) in settings {
        let repo = Repo::tiny();
        set(&repo);
        for tracked in [false, true] {
            if tracked {
                repo.commit();
            }
            crlf(&repo, "data/words.txt");
            crlf(&repo, "docs/rule.md");
            let ran = repo.cbia(["run", "--json"]).ok();
            assert_eq!(ran.json()["state_key"], expected, "{name} {tracked}");
            repo.write("data/words.txt", "one two\n");
            repo.write("docs/rule.md", "Be brief.\n");
        }
        assert_eq!(repo.only_ref("refs/cbia/runs"), plain.only_ref("refs/cbia/runs"), "{name}");
        assert_eq!(repo.git(["show", &format!("{}:{NOTE}", repo.only_ref("refs/cbia/runs").1)]) + "\n", NOTE_TEXT);
    }
}

#[test]
fn nothing_that_the_repository_configures_is_executed() {
    let repo = Repo::tiny();
    repo.commit();
    let trap = repo.outside().join("trap.sh");
    let sprung = repo.outside().join("sprung");
    std::fs::write(&trap, format!("#!/bin/sh\ntouch '{}'\n", sprung.display())).unwrap();
    std::fs::set_permissions(&trap, std::fs::Permissions::from_mode(0o755)).unwrap();
    let trap = trap.to_str().unwrap();
    for key in ["core.fsmonitor", "core.editor", "core.sshCommand", "core.pager", "gpg.program", "diff.external"] {
        repo.git(["config", key, trap]);
    }
    let hooks = repo.outside().join("hooks");
    std::fs::create_dir(&hooks).unwrap();
    for hook in ["post-index-change", "reference-transaction", "pre-commit", "post-checkout", "commit-msg"] {
        std::fs::copy(trap, hooks.join(hook)).unwrap();
    }
    // Set last, and nothing of git itself is run before the check.
    repo.git(["config", "core.hooksPath", hooks.to_str().unwrap()]);
    drop(std::fs::remove_file(&sprung));
    let mut direct = repo.command(super::support::PROGRAM);
    direct.args(["run", "--json"]);
    let ran = repo.finish(direct, b"").ok();
    assert_eq!(ran.gen_status(), "executed");
    assert!(!sprung.exists());
}

#[test]
fn repositories_that_git_cbia_cannot_keep_whole_are_refused() {
    // Each: what is done to a repository, and what is said.
    let refuse = |repo: &Repo, said: &str| {
        let before = repo.files(&[]);
        for arguments in [&["run"][..], &["status"], &["init"], &["log"]] {
            let mut command = repo.command(super::support::PROGRAM);
            command.args(arguments).arg("--json");
            let ran = repo.finish(command, b"").exits(3);
            let finding = ran.finding("command-failed");
            assert!(finding["message"].as_str().unwrap().contains(said), "{finding}");
            assert!(finding["hint"].is_string(), "{finding}");
        }
        assert_eq!(repo.files(&[]), before);
        assert!(!repo.has(".git/refs/cbia") && !repo.has(".git/cbia"));
    };
    let reftable = Repo::init(&["--ref-format=reftable"]);
    reftable.write_tiny();
    refuse(&reftable, "stores its refs as 'reftable'");

    let extended = Repo::tiny();
    let config = extended.read(".git/config").replace("repositoryformatversion = 0", "repositoryformatversion = 1");
    extended.write(".git/config", config + "[extensions]\n\tfancy = true\n");
    refuse(&extended, "uses the extension 'extensions.fancy'");

    let theirs = Repo::tiny();
    for path in [theirs.path().to_owned(), theirs.path().join(".git")] {
        if std::os::unix::fs::chown(path, Some(65534), None).is_err() {
            // Only root can give a repository away, so nobody else can make this case.
            return;
        }
    }
    refuse(&theirs, "detected dubious ownership");
    std::fs::write(
        theirs.outside().join("home/.gitconfig"),
        format!("[safe]\n\tdirectory = {}\n", theirs.path().canonicalize().unwrap().display()),
    )
    .unwrap();
    assert_eq!(theirs.run(), "executed", "what the hint says helps");
}

#[test]
fn paths_that_programs_stumble_over() {
    for name in ["with space", "néw", "new\nline", "-dash", "quote'\"", "$HOME", "a*b"] {
        let repo = Repo::tiny();
        let moved = repo.outside().join(name);
        std::fs::rename(repo.path(), &moved).unwrap();
        let repo = repo.at(moved);
        assert_eq!(repo.run(), "executed", "{name:?}");
        assert_eq!(repo.run(), "replayed", "{name:?}");
        let link = repo.outside().join("link");
        symlink(repo.path(), &link).unwrap();
        assert_eq!(repo.at(link).run(), "replayed", "{name:?}");
    }
}

#[test]
fn what_git_ignores_is_no_input_and_what_it_tracks_is() {
    let repo = Repo::tiny();
    repo.run();
    repo.write(".gitignore", "/execution/\n/opa/\n/control/runtime/pre_gen_capsule.json\n*.tmp\n");
    repo.write("data/scratch.tmp", "x");
    assert_eq!(repo.run(), "replayed");
    repo.git(["add", "-f", "data/scratch.tmp"]);
    assert_eq!(repo.run(), "executed");
    repo.write("docs/rule.md", "Be quick.\n");
    repo.set(LEDGER, "/authority_set/0/hash/value", json!(Digest::of(b"Be quick.\n")));
    repo.write(".gitignore", "/execution/\n/opa/\n/control/runtime/pre_gen_capsule.json\n/docs/\n");
    let ran = repo.cbia(["run", "--json"]).exits(1);
    assert_eq!(ran.codes(), ["authority-missing"], "an ignored file would be missing from a clone");
}
