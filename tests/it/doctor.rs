//! `git cbia doctor`: what protects a repository is told, each lack with the command that mends it, and a remote is left as it was.

use serde_json::{Value, json};

use crate::push::Doors;
use crate::support::{PIPELINE, Ran, Repo};

/// A repository with a run, and a bare remote that has its branch.
fn site() -> (Repo, Repo) {
    let repo = Repo::tiny();
    repo.run();
    repo.commit();
    repo.git(["init", "-q", "--bare", "../server.git"]);
    repo.git(["remote", "add", "origin", "../server.git"]);
    repo.git(["push", "-q", "origin", "main"]);
    let server = repo.at(repo.outside().join("server.git"));
    (repo, server)
}

/// The health of a check, all its lines.
fn health(document: &Value, check: &str) -> Vec<String> {
    let checks = document["result"]["checks"].as_array().unwrap();
    let of = checks.iter().filter(|line| line["check"] == check);
    of.map(|line| line["health"].as_str().unwrap().to_owned()).collect()
}

/// Runs a command line that was told, as a person would.
fn follow(repo: &Repo, line: &str) {
    let mut shell = repo.command("sh");
    shell.args(["-c", line]);
    let ran = repo.finish(shell, b"");
    assert_eq!(ran.code, Some(0), "{line}: {}", ran.stderr);
}

#[test]
fn what_is_missing_is_told_with_the_command_that_mends_it() {
    let (repo, _) = site();
    let first = repo.cbia(["doctor", "--json"]).exits(1).json();
    for (check, wanted) in
        [("git-cbia", "ok"), ("pre-push hook", "no"), ("server hook", "no"), ("evidence", "no"), ("signers", "advice")]
    {
        assert_eq!(health(&first, check), [wanted], "{check}: {first:#}");
    }
    assert_eq!(health(&first, "server settings"), ["advice", "advice", "advice"]);
    // From below the top, as people do.
    repo.write("deep/x", "");
    assert_eq!(repo.at(repo.path().join("deep")).cbia(["doctor", "--json"]).exits(1).json(), first);
    // What is pushed goes before the hooks that judge it.
    let mut mends: Vec<&str> =
        first["result"]["checks"].as_array().unwrap().iter().filter_map(|line| line["mend"].as_str()).collect();
    mends.sort_by_key(|mend| !mend.starts_with("git push "));
    for mend in mends {
        follow(&repo, mend);
    }
    let mended = repo.cbia(["doctor", "--json"]).json();
    for (check, wanted) in [("git-cbia", "ok"), ("pre-push hook", "ok"), ("server hook", "ok"), ("evidence", "ok")] {
        assert_eq!(health(&mended, check), [wanted], "{check}: {mended:#}");
    }
    assert_eq!(health(&mended, "server settings"), Vec::<String>::new());
    // The last command made signatures necessary.
    assert_eq!(health(&mended, "signers"), ["no", "advice"], "{mended:#}");
    repo.git(["config", "cbia.trust", "content"]);
    let protected = repo.cbia(["doctor"]).ok();
    assert!(
        protected.stdout.ends_with("\nprotected\n") && protected.stdout.starts_with("ok       git-cbia "),
        "{}",
        protected.stdout
    );
    // And what takes it away again is seen.
    let own = |key: &str, value: &str| drop(repo.git(["config", key, value]));
    own("core.hooksPath", "nowhere");
    assert_eq!(health(&repo.cbia(["doctor", "--json"]).exits(1).json(), "pre-push hook"), ["no"]);
    assert!(
        repo.cbia(["doctor"])
            .exits(1)
            .stdout
            .contains("core.hooksPath of the local configuration leads past the hooks of this repository")
    );
    repo.git(["config", "--unset", "core.hooksPath"]);
    repo.git(["-C", "../server.git", "config", "transfer.hideRefs", "refs/cbia"]);
    let hidden = repo.cbia(["doctor", "--json"]).exits(1).json();
    assert_eq!((health(&hidden, "server settings"), health(&hidden, "evidence")), (vec!["no".to_owned()], vec!["no".to_owned()]));
}

#[test]
fn signers_are_counted_from_what_is_committed() {
    let (repo, _) = site();
    repo.cbia(["hooks", "install"]).ok();
    repo.git(["push", "-q", "--no-verify", "origin", "refs/cbia/runs/*:refs/cbia/runs/*"]);
    repo.cbia(["hooks", "install", "--server", "../server.git"]).ok();
    let mut keygen = repo.command("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(repo.outside().join("key"));
    assert_eq!(repo.finish(keygen, b"").code, Some(0));
    let public = std::fs::read_to_string(repo.outside().join("key.pub")).unwrap();
    for (key, value) in [("gpg.format", "ssh"), ("user.signingKey", "../key"), ("cbia.trust", "signed")] {
        repo.git(["config", key, value]);
    }
    let signers = |wanted: &[&str]| {
        let document = repo.cbia(["doctor", "--json"]).json();
        assert_eq!(health(&document, "signers"), wanted, "{document:#}");
    };
    signers(&["no", "advice"]);
    repo.write("control/runners.allowed_signers", format!("ada@example.org {public}"));
    signers(&["no", "advice"]);
    repo.commit();
    signers(&["no", "advice"]);
    repo.cbia(["attest"]).ok();
    signers(&["ok", "advice"]);
    // A validity without a zone is one moment for everybody: here, nine minutes after the tag's 22:13:20 UTC.
    repo.write("control/runners.allowed_signers", format!("ada@example.org valid-before=\"202311142222\" {public}"));
    repo.commit();
    for zone in ["UTC", "XXX-14", "XXX11"] {
        let document = repo.with("TZ", Some(zone)).cbia(["doctor", "--json"]).json();
        assert_eq!(health(&document, "signers"), ["ok", "advice"], "{zone}");
    }
    repo.git(["config", "cbia.attestations", "2"]);
    signers(&["no", "no", "advice"]);
    repo.git(["config", "cbia.attestations", "none"]);
    signers(&["no"]);
    repo.git(["config", "--unset", "cbia.attestations"]);
    repo.write("control/runners.allowed_signers", format!("ada@example.org {public}oops\n"));
    repo.write("control/maintainers.allowed_signers", &public);
    repo.commit();
    signers(&["no", "ok"]);
    // Where a word stands for deriving, the list matters whether or not it is needed.
    repo.git(["config", "cbia.rederive", "unattested"]);
    signers(&["advice", "no", "ok"]);
    repo.git(["config", "cbia.trust", "content"]);
    signers(&["advice", "advice", "no", "ok"]);
    repo.git(["config", "cbia.rederive", "sometimes"]);
    signers(&["no"]);
}

#[test]
fn a_remote_that_cannot_be_seen_is_not_called_protected() {
    let (repo, _) = site();
    repo.git(["remote", "set-url", "origin", "ssh://git@localhost:1/none.git"]);
    let repo = repo.with("GIT_SSH_COMMAND", Some("false"));
    let document = repo.cbia(["doctor", "--json"]).exits(1).json();
    assert_eq!(
        (health(&document, "server hook"), health(&document, "evidence")),
        (vec!["unknown".to_owned()], vec!["unknown".to_owned()])
    );
    repo.git(["remote", "remove", "origin"]);
    let alone = repo.cbia(["doctor", "--json"]).exits(1).json();
    assert_eq!(health(&alone, "server hook"), ["ok"]);
}

#[test]
fn bad_updates_are_offered_and_nothing_is_left_behind() {
    let (repo, server) = site();
    let all = || server.git(["for-each-ref"]);
    let before = all();
    let outcomes = |exit: i32| {
        let document = repo.cbia(["doctor", "--server", "origin", "--json"]).exits(exit).json();
        let offers = document["result"]["offers"].as_array().unwrap().clone();
        offers.iter().map(|offer| offer["outcome"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let hook = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = server.path().join("hooks/pre-receive");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    // A server without hooks takes everything, and is left as it was.
    assert_eq!(outcomes(1), ["accepted"; 7]);
    assert_eq!(all(), before);
    // One that refuses everything says nothing about what is bad.
    hook("#!/bin/sh\ncat >/dev/null\nexit 1\n");
    assert_eq!(outcomes(1), ["unclear"]);
    // One that refuses by name, as a stand-in for the verifier: what is bad, and what is done to ledgers.
    hook(
        "#!/bin/sh\nwhile read -r old new ref; do\n  case $ref in *by-hand*|refs/replace/*|refs/cbia/runs/*|refs/cbia/cache/*) exit 1;;\n  refs/cbia/ledgers/*) case $old in *[!0]*) exit 1;; esac;; esac\ndone\n",
    );
    let told = repo.cbia(["doctor", "--server", "origin"]).exits(1).stdout;
    assert!(
        told.contains("refused  a generated file written by hand           [remote rejected] (pre-receive hook declined)\n"),
        "{told}"
    );
    for _ in 0..2 {
        assert_eq!(outcomes(1), ["refused"; 7]);
    }
    let opening = server.git(["rev-parse", "refs/cbia/ledgers/cbia-doctor"]);
    assert_eq!(all().replace(&format!("{opening} commit\trefs/cbia/ledgers/cbia-doctor\n"), ""), before);
    // A ledger of that name that is not ours is left alone.
    let other = repo.git(["rev-parse", "HEAD"]);
    server.git(["update-ref", "refs/cbia/ledgers/cbia-doctor", &other]);
    assert_eq!(outcomes(1).last().map(String::as_str), Some("unclear"));
    assert_eq!(server.git(["rev-parse", "refs/cbia/ledgers/cbia-doctor"]), other);
    // One that lets ledgers be rewritten, and not deleted.
    server.git(["update-ref", "-d", "refs/cbia/ledgers/cbia-doctor"]);
    hook(
        "#!/bin/sh\nwhile read -r old new ref; do\n  case $ref in refs/cbia/ledgers/*) case $new in 0000*) exit 1;; esac;; esac\ndone\n",
    );
    let document = repo.cbia(["doctor", "--server", "origin", "--json"]).exits(1).json();
    let ledger: Vec<_> = document["result"]["offers"].as_array().unwrap()[5..].iter().map(|offer| &offer["outcome"]).collect();
    assert_eq!(ledger, ["accepted", "refused"]);
    // Rewriting it was offered in vain: what stays is a ledger that nothing was recorded in.
    assert_eq!(server.git(["rev-parse", "refs/cbia/ledgers/cbia-doctor"]), opening);
    assert_eq!(repo.cbia(["fetch", "--json"]).ok().codes(), Vec::<String>::new());
    std::fs::remove_file(server.path().join("hooks/pre-receive")).unwrap();
    let other = server.git(["for-each-ref", "--format=%(refname)", "refs/cbia/ledgers"]);
    assert_eq!(other, "refs/cbia/ledgers/cbia-doctor");
    assert_eq!(outcomes(1), ["accepted"; 7]);
    assert_eq!(all(), before);
    // Without transactions nothing can be offered in vain, and that is what is said.
    server.git(["config", "receive.advertiseAtomic", "false"]);
    let told = repo.cbia(["doctor", "--server", "origin"]).exits(1).stdout;
    assert!(told.contains("unclear  anything from here                         it takes no atomic pushes, so"), "{told}");
    assert!(!told.contains("\\u{a}") && !told.contains("harmless"), "{told}");
    assert_eq!(all(), before);
    // Nothing stays in this repository either.
    assert_eq!(repo.leftovers(), Vec::<String>::new());
    assert!(repo.refs("refs").iter().all(|(name, _)| !name.contains("doctor")));
}

#[test]
fn the_real_hook_refuses_every_bad_update_and_takes_the_harmless_one() {
    let (repo, server) = site();
    repo.cbia(["hooks", "install"]).ok();
    repo.cbia(["hooks", "install", "--server", "../server.git"]).ok();
    repo.git(["push", "-q", "origin", "refs/cbia/runs/*:refs/cbia/runs/*"]);
    let before = server.refs("refs");
    for trust in ["content", "signed"] {
        for repo in [&repo, &server] {
            repo.git(["config", "cbia.trust", trust]);
        }
        let document = repo.cbia(["doctor", "--server", "origin", "--json"]).json();
        let offers = document["result"]["offers"].as_array().unwrap();
        // Where it did not take the harmless branch, there would be one offer, and it unclear.
        assert_eq!(offers.len(), 7, "{document:#}");
        for offer in offers {
            assert_eq!(offer["outcome"], "refused", "{trust}: {offer:#}");
            assert!(offer["said"].as_str().unwrap().contains("pre-receive hook declined"), "{trust}: {offer:#}");
        }
        assert_eq!(document["result"]["protected"], trust == "content", "nobody is listed as a signer: {document:#}");
    }
    let left: Vec<_> = server.refs("refs").into_iter().filter(|one| !before.contains(one)).map(|(name, _)| name).collect();
    assert_eq!(left, ["refs/cbia/ledgers/cbia-doctor"]);
    // Which is none to anybody who fetches.
    assert_eq!(repo.cbia(["fetch", "--json"]).ok().codes(), Vec::<String>::new());
    assert_eq!(repo.refs("refs/cbia/seen"), []);
    // A branch that it judges goes in beside all that.
    repo.git(["config", "cbia.trust", "content"]);
    server.git(["config", "cbia.trust", "content"]);
    repo.write("README.md", "More.\n");
    repo.commit();
    repo.git(["push", "-q", "origin", "main"]);
}

/// What GitLab would run for a merge request, but for the installation.
fn gitlab(repo: &Repo, target: &str, commit: &str) -> Ran {
    let text = std::fs::read_to_string(format!("{}/docs/ci/gitlab-ci.yml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (_, script) = text.split_once("  script:\n").unwrap();
    let lines: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("    - ")).collect();
    assert!(lines.len() > 3 && lines[0].starts_with("cargo install "), "{lines:?}");
    let at = repo.with("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", Some(target)).with("CI_COMMIT_SHA", Some(commit));
    let mut command = at.command("sh");
    command.args(["-ec", &lines[1..].join("\n")]);
    at.finish(command, b"")
}

#[test]
fn the_gitlab_job_compares_with_the_branch_that_is_merged_into() {
    let doors = Doors::new();
    let repo = &doors.client;
    repo.cbia(["push"]).ok();
    repo.git(["checkout", "-q", "-b", "fine"]);
    repo.write("README.md", "More.\n");
    repo.commit();
    repo.git(["checkout", "-q", "-b", "smuggled", "main"]);
    repo.write("more/by-hand.txt", "By hand.\n");
    repo.commit();
    repo.git(["push", "-q", "origin", "fine", "smuggled"]);
    // After both forked, the branch they go to declares more.
    repo.git(["checkout", "-q", "main"]);
    repo.set(PIPELINE, "/gen/generated", json!(["out/**", "more/**"]));
    repo.run();
    repo.commit();
    repo.git(["push", "-q", "origin", "main"]);
    repo.git(["clone", "-q", doors.server.path().to_str().unwrap(), "../runner"]);
    let runner = repo.at(repo.outside().join("runner"));
    for (name, exit) in [("fine", 0), ("smuggled", 1)] {
        let tip = format!("origin/{name}");
        let ran = gitlab(&runner, "main", &runner.git(["rev-parse", &tip])).exits(exit);
        assert_eq!(ran.stderr.contains("by-hand.txt"), exit == 1, "{}", ran.stderr);
        // In a merged results pipeline and in a train, the commit is the merge.
        runner.git(["checkout", "-q", "-B", "merged", "origin/main"]);
        runner.git(["merge", "-q", "--no-edit", &tip]);
        gitlab(&runner, "main", &runner.git(["rev-parse", "HEAD"])).exits(exit);
    }
}

#[test]
fn the_jobs_name_commands_that_there_are() {
    let repo = Repo::new();
    let known = repo.cbia(["-h"]).ok().stdout;
    let read = |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for path in ["docs/ci/github-actions.yml", "docs/ci/gitlab-ci.yml"] {
        let text = read(path);
        let mut called = 0;
        for (number, line) in text.lines().enumerate() {
            let place = format!("{path}:{}", number + 1);
            let indent = line.len() - line.trim_start().len();
            assert!(!line.contains('\t') && indent % 2 == 0, "{place}: {line}");
            let code = line.trim_start().trim_start_matches("- ");
            if code.is_empty() || code.starts_with('#') {
                continue;
            }
            let is_member = code.split_once(':').is_some_and(|(key, _)| !key.contains('"'));
            assert!(is_member || line.trim_start().starts_with("- "), "{place}: neither a member nor an entry: {line}");
            for call in code.trim_start_matches("run: ").split(" && ").filter_map(|part| part.strip_prefix("git cbia ")) {
                let command = call.split(' ').next().unwrap();
                // The verifier is the job itself.
                if !code.ends_with("verify:") && code.contains("$BASE") {
                    called += 1;
                    assert!(known.contains(&format!("\n  {command} ")), "{place}: there is no git cbia {command}");
                }
            }
        }
        assert_eq!(called, 1, "{path}");
        let page = read("docs/enforcement.md");
        assert!(
            page.contains(path.strip_prefix("docs/").unwrap())
                && text.contains("git fetch origin 'refs/cbia/*:refs/cbia/remotes/origin/*'")
        );
    }
}
