//! A hint, followed to the letter, mends what it stands beside.

use std::collections::BTreeSet;

use serde_json::json;

use super::push::{Doors, codes};
use super::support::{EXECUTOR, NOTE, PIPELINE, Ran, Repo};

/// What puts something where it does not belong.
type Spoil<'a> = &'a dyn Fn(&Repo);

/// Runs what a person would copy into a shell.
fn shell(repo: &Repo, script: &str) -> Ran {
    let mut command = repo.command("sh");
    command.args(["-ec", script]);
    repo.finish(command, b"")
}

/// The hint of the one finding with `code`.
#[track_caller]
fn hint(ran: &Ran, code: &str) -> String {
    ran.finding(code)["hint"].as_str().unwrap_or_else(|| panic!("no hint: {ran:?}")).to_owned()
}

/// The commands of a hint, which ends with words that say what to do with their work.
#[track_caller]
fn commands<'h>(hint: &'h str, end: &str) -> &'h str {
    hint.strip_suffix(end).unwrap_or_else(|| panic!("{hint:?} does not end with {end:?}"))
}

#[test]
fn what_is_no_regular_file_becomes_one() {
    const THEN_RUN: &str = ", then git cbia run, and commit what it writes";
    let cases: &[(&str, &str, Spoil<'_>)] = &[
        ("an executable", ", and commit that", &|repo| drop(shell(repo, "chmod +x out/note.txt").ok())),
        ("a link to a file", THEN_RUN, &|repo| drop(shell(repo, "ln -sf ../docs/rule.md out/note.txt").ok())),
        ("a link to a folder", THEN_RUN, &|repo| drop(shell(repo, "ln -sfn ../docs out/note.txt").ok())),
        ("a link above", THEN_RUN, &|repo| drop(shell(repo, "mv out other; ln -s other out").ok())),
        ("a file above", THEN_RUN, &|repo| drop(shell(repo, "rm -r out; echo x >out").ok())),
        ("an executable above", THEN_RUN, &|repo| drop(shell(repo, "rm -r out; echo x >out; chmod +x out").ok())),
        ("a submodule", THEN_RUN, &|repo| {
            let script = "rm out/note.txt; git init -q out/note.txt; git -C out/note.txt commit -q --allow-empty -m s";
            drop(shell(repo, script).ok());
        }),
    ];
    for (name, end, spoil) in cases {
        let doors = Doors::new();
        let repo = &doors.client;
        spoil(repo);
        repo.commit();
        let refused = repo.cbia(["verify", "--json"]).exits(1);
        let hint = hint(&refused, "gen-not-regular");
        let commands = commands(&hint, end);
        match commands.strip_suffix(", move the folder away") {
            Some(first) => drop(shell(repo, &format!("{first}; mv out/note.txt ../away")).ok()),
            None => drop(shell(repo, commands).ok()),
        }
        if *end == THEN_RUN {
            repo.run();
        }
        repo.commit();
        let ran = repo.cbia(["verify", "--json"]);
        assert_eq!((ran.code, ran.codes()), (Some(0), Vec::new()), "{name}: {hint}");
        doors.accepts(name, &["origin", "main"]);
    }
    // A path is one word of the shell's, whatever it is called.
    let repo = Repo::tiny();
    let odd = "out/it's a note.txt";
    repo.set(PIPELINE, "/gen/artifacts/0/path", json!(odd));
    repo.run();
    repo.git(["update-index", "--add", "--chmod=+x", "--", odd]);
    repo.commit();
    repo.git(["update-index", "--chmod=+x", "--", odd]);
    repo.git(["commit", "-qm", "mode"]);
    let hint = hint(&repo.cbia(["verify", "--json"]).exits(1), "gen-not-regular");
    shell(&repo, commands(&hint, ", and commit that")).ok();
    repo.git(["commit", "-qm", "mode"]);
    repo.cbia(["verify"]).ok();
}

#[test]
fn an_edit_is_kept_elsewhere_and_overwritten() {
    let repo = Repo::tiny();
    repo.run();
    repo.write(NOTE, "By hand.\n");
    let hint = hint(&repo.cbia(["run", "--json"]).exits(1), "artifact-edited");
    assert!(hint.starts_with("git cbia run --force ") && !hint.contains("input"), "{hint}");
    repo.cbia(["run", "--force"]).ok();
    assert!(!repo.read(NOTE).contains("hand"));
}

#[test]
fn what_an_executor_printed_is_shown() {
    let repo = Repo::tiny();
    repo.run();
    for (script, code) in
        [("echo I SAID \x1b[1mTHIS; exit 3", "executor-failed"), ("echo I SAID THIS; kill -9 $$", "executor-killed")]
    {
        let command = json!(["/bin/sh", "-c", script]);
        repo.write_json(EXECUTOR, &json!({"kind": "external", "version": "1", "command": command}));
        let hint = hint(&repo.cbia(["run", "--json"]).exits(5), code);
        let show = shell(&repo, commands(&hint, " shows what it printed")).ok();
        assert!(
            show.stdout.contains("\n  the executor printed\n    I SAID ") && show.stdout.ends_with("THIS\n"),
            "{}",
            show.stdout
        );
        assert!(!show.stdout.contains('\x1b'), "{}", show.stdout);
        let shown = repo.cbia(["show", "refs/cbia/ledger", "--json"]).ok().json();
        assert!(shown["result"]["printed"].as_str().unwrap().starts_with("I SAID "), "{shown:#}");
    }
    repo.remove(EXECUTOR);
    repo.run();
    let shown = repo.cbia(["show", "refs/cbia/ledger", "--json"]).ok().json();
    assert!(shown["result"]["printed"].is_null(), "{shown:#}");
}

#[test]
fn hooks_come_back_from_where_none_can_be() {
    for scope in ["--local", "--global"] {
        for nowhere in ["/dev/null", "/dev/null/hooks", "a-file"] {
            let repo = Repo::tiny();
            repo.write("a-file", "x");
            repo.commit();
            repo.git(["config", scope, "core.hooksPath", nowhere]);
            let refused = repo.cbia(["hooks", "install", "--json"]).exits(1);
            let same = hint(&refused, "hook-blocked");
            let status = hint(&repo.cbia(["hooks", "status", "--json"]).exits(1), "hook-inactive");
            let doctor = repo.cbia(["doctor"]).exits(1).stdout;
            assert!(status == same && doctor.contains(&same), "{same}\n{status}\n{doctor}");
            let (way, install) = same.split_once(", and then ").unwrap();
            shell(&repo, &format!("{way}; {install}")).ok();
            repo.cbia(["hooks", "status"]).ok();
            assert!(repo.has(".git/hooks/pre-push"), "{scope} {nowhere}");
        }
    }
    // Where others push to, the same.
    let repo = Repo::tiny();
    repo.git(["init", "-q", "--bare", "../server.git"]);
    repo.git(["-C", "../server.git", "config", "core.hooksPath", "/dev/null"]);
    let hint = hint(&repo.cbia(["hooks", "install", "--server", "../server.git", "--json"]).exits(1), "hook-blocked");
    let way = hint.strip_prefix("in that repository, ").unwrap().split_once(", and then ").unwrap().0;
    shell(&repo, &format!("cd ../server.git; {way}")).ok();
    repo.cbia(["hooks", "install", "--server", "../server.git"]).ok();
}

#[test]
fn a_policy_that_gives_its_reason_is_not_said_to_give_none() {
    let policy = "package push\n\ndefault allow := false\n\ndeny contains {\"check\": \"frozen\", \"message\": \"main is frozen\"} if input.update.ref\n";
    let doors = Doors::after(|repo| repo.write("policy/push/push.rego", policy));
    doors.client.write("README.md", "More.\n");
    doors.client.commit();
    for (arguments, begin) in [(&["origin", "main"][..], "error: "), (&["--no-verify", "origin", "main"], "remote: error: ")] {
        let ran = doors.push(arguments).exits(1);
        assert_eq!(codes(&ran.stderr, begin), BTreeSet::from(["push-denied".to_owned()]), "{}", ran.stderr);
        assert!(ran.stderr.contains("main is frozen") && !ran.stderr.contains("no reason"), "{}", ran.stderr);
    }
}

#[test]
fn where_nothing_was_committed_nothing_is_named_that_is_not_there() {
    let repo = Repo::tiny();
    for arguments in [&["verify"][..], &["verify", "HEAD"], &["verify", "HEAD~1"], &["run", "--commit", "@"]] {
        let ran = repo.cbia(arguments.iter().chain(&["--json"])).exits(3);
        let finding = ran.finding("command-failed");
        assert!(finding["message"].as_str().unwrap().ends_with(" does not name a commit: there is none yet"), "{finding}");
        assert!(finding["hint"].as_str().unwrap().starts_with("git add -A and git commit make the first one"), "{finding}");
    }
    shell(&repo, "git cbia status; git add -A; git commit -qm first; git cbia run; git add -A; git commit -qm run").ok();
    repo.cbia(["verify"]).ok();
    let other = repo.cbia(["verify", "HEAD~9", "--json"]).exits(3);
    assert_eq!(hint(&other, "command-failed"), "git log shows the commits there are");
}

#[test]
fn a_file_that_only_git_can_convert_is_read_from_the_commit() {
    let repo = Repo::tiny();
    let text: Vec<u8> = [0xff, 0xfe].into_iter().chain("Words: ä\n".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    repo.write("data/words.txt", text);
    repo.write(".gitattributes", "data/*.txt working-tree-encoding=UTF-16LE-BOM\n");
    repo.commit();
    // The index answers for what was not touched since.
    shell(&repo, "touch -d 2001-02-03 data/words.txt").ok();
    let hint = hint(&repo.cbia(["run", "--json"]).exits(3), "command-failed");
    let (check, rest) = hint.split_once(" says what converts it; ").unwrap();
    assert!(shell(&repo, check).ok().stdout.contains("working-tree-encoding: UTF-16LE-BOM"));
    shell(&repo, commands(rest, " reads the commit, where nothing is converted")).ok();
    assert!(repo.read(NOTE).contains("Words: ä"));
    repo.git(["add", "-A"]);
    repo.git(["commit", "-qm", "note"]);
    repo.cbia(["verify"]).ok();
}

#[test]
fn a_partial_clone_is_made_whole() {
    for filter in ["blob:none", "tree:0"] {
        for (fetched, old) in [(false, false), (true, false), (true, true)] {
            let doors = Doors::new();
            let server = doors.server.path().to_str().unwrap();
            doors.server.git(["config", "uploadpack.allowFilter", "true"]);
            let url = format!("file://{server}");
            let partial = doors.client.at(doors.client.outside().join("partial"));
            let path = partial.path().to_str().unwrap();
            doors.client.git(["clone", "-q", "--no-checkout", &format!("--filter={filter}"), &url, path]);
            if old {
                // As git before 2.24 wrote it.
                partial.git(["config", "core.repositoryFormatVersion", "1"]);
                partial.git(["config", "extensions.partialClone", "origin"]);
                partial.git(["config", "--unset", "remote.origin.promisor"]);
            }
            let ran = match fetched {
                false => partial.cbia(["verify", "--json"]).exits(1),
                true => partial.cbia(["fetch", "--json"]).exits(1),
            };
            let findings = ran.json()["findings"].as_array().unwrap().clone();
            let told: BTreeSet<&str> = findings.iter().map(|finding| finding["hint"].as_str().unwrap()).collect();
            let marked = "this clone is partial, and origin has what is missing here, which only a whole clone gets: ";
            let commands = told.iter().find_map(|hint| hint.split_once(marked)).unwrap_or_else(|| panic!("{findings:?}")).1;
            assert!(commands.starts_with("git fetch --refetch --no-filter origin && "), "{commands}");
            shell(&partial, commands).ok();
            partial.cbia(["verify"]).ok();
            partial.git(["checkout", "-q", "main"]);
            assert_eq!(partial.run(), "replayed", "{filter} {fetched}");
            partial.fsck();
        }
    }
    // A clone that lacks nothing by promise is told as before.
    let doors = Doors::new();
    let clone = doors.client.clone_to("whole");
    let hint = hint(&clone.cbia(["verify", "--json"]).exits(1), "evidence-missing");
    assert!(hint.ends_with("or git cbia fetch here"), "{hint}");
}

#[test]
fn a_server_below_a_line_break_says_what_is_in_the_way() {
    let doors = Doors::new();
    let odd = doors.client.at(doors.client.outside().join("a\nb"));
    std::fs::rename(doors.server.path(), odd.path()).unwrap();
    doors.client.write("README.md", "More.\n");
    doors.client.commit();
    let push = |at: &Repo| {
        let mut command = doors.client.command("git");
        command.args(["push", "--no-verify", at.path().to_str().unwrap(), "main"]);
        doors.client.finish(command, b"")
    };
    let refused = push(&odd).exits(1).stderr;
    assert!(refused.contains("rename the folder") && !refused.contains("GIT_QUARANTINE_PATH"), "{refused}");
    std::fs::rename(odd.path(), doors.server.path()).unwrap();
    push(&doors.server).ok();
}

#[test]
fn a_repository_with_a_work_tree_may_be_pushed_to() {
    for hooks in [None, Some("hks")] {
        let doors = Doors::new();
        let repo = &doors.client;
        let target = repo.clone_to("target");
        if let Some(hooks) = hooks {
            target.git(["config", "core.hooksPath", hooks]);
        }
        let path = target.path().to_str().unwrap();
        repo.cbia(["hooks", "install", "--server", path]).ok();
        repo.cbia(["hooks", "status", "--server", path]).ok();
        target.git(["config", "receive.denyCurrentBranch", "updateInstead"]);
        let push = |arguments: &[&str]| {
            let mut command = repo.command("git");
            command.args(["push", "--no-verify", path]).args(arguments);
            repo.finish(command, b"")
        };
        repo.write("README.md", "More.\n");
        repo.commit();
        push(&["main", "refs/cbia/runs/*:refs/cbia/runs/*"]).ok();
        assert_eq!(target.read("README.md"), "More.\n");
        repo.write(NOTE, "By hand.\n");
        repo.commit();
        for name in ["main", "main:refs/heads/other"] {
            let refused = push(&[name]).exits(1);
            assert_eq!(
                codes(&refused.stderr, "remote: error: "),
                BTreeSet::from(["gen-edited".to_owned()]),
                "{}",
                refused.stderr
            );
        }
        assert_eq!(target.git(["status", "--porcelain", "--untracked-files=no"]), "");
        // Whoever names a git directory that is none is not answered out of one around it.
        let other = target.at(target.path().join(".git/hooks")).with("GIT_DIR", Some("."));
        other.cbia(["status"]).exits(3);
        assert_eq!(target.at(target.path().join(".git")).with("GIT_DIR", Some(".")).cbia(["verify"]).code, Some(0));
    }
}
