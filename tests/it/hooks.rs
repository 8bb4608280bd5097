//! `git cbia hooks`: what is installed runs, what was there stays, and what cannot be restored is never written over.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::json;

use crate::support::{PROGRAM, Ran, Repo};

/// A repository with a commit and a bare remote, and a stand-in for git-cbia that writes down what a hook gives it.
struct Site {
    /// With the real program.
    repo: Repo,
    /// With the stand-in, for pushes.
    pusher: Repo,
}

impl Site {
    fn new() -> Self {
        let repo = Repo::new();
        repo.write("a", "1\n");
        repo.commit();
        repo.git(["init", "-q", "--bare", "../server.git"]);
        repo.git(["remote", "add", "origin", "../server.git"]);
        let own = PROGRAM.rsplit_once('/').unwrap().0;
        let mut shell = repo.command("sh");
        shell.args(["-c", "printf %s \"$PATH\""]);
        let path = repo.finish(shell, b"").stdout;
        let others: Vec<&str> = path.split(':').filter(|folder| *folder != own).collect();
        let bin = repo.outside().join("bin");
        let stub =
            "#!/bin/sh\n{ echo \"cbia $*\"; cat; } >>\"$HOME/seen\"\nexit \"$(cat \"$HOME/verdict\" 2>/dev/null || echo 0)\"\n";
        put(&bin.join("git-cbia"), stub, 0o755);
        let pusher = repo.with("PATH", Some(&format!("{}:{}", bin.to_str().unwrap(), others.join(":"))));
        Self { repo, pusher }
    }

    fn hooks(&self) -> std::path::PathBuf {
        self.repo.path().join(".git/hooks")
    }

    /// Pushes a new commit to `branch`.
    fn push(&self, branch: &str) -> Ran {
        self.repo.git(["commit", "-q", "--allow-empty", "-m", branch]);
        let mut command = self.pusher.command("git");
        command.args(["push", "-q", "origin", &format!("HEAD:{branch}")]);
        self.pusher.finish(command, b"")
    }

    /// What was written down since the last time.
    fn seen(&self) -> String {
        let path = self.repo.outside().join("home/seen");
        let seen = std::fs::read_to_string(&path).unwrap_or_default();
        drop(std::fs::remove_file(path));
        seen
    }

    /// What every hook is to be given for a push of HEAD to a new branch.
    fn line(&self, branch: &str) -> String {
        let head = self.repo.git(["rev-parse", "HEAD"]);
        format!("HEAD {head} refs/heads/{branch} {}\n", "0".repeat(40))
    }

    fn verdict(&self, code: &str) {
        self.repo.at(self.repo.outside()).write("home/verdict", code);
    }
}

fn put(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything in a folder: what it is, its mode, and its bytes or target.
fn listing(folder: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let entry = |path: std::path::PathBuf| {
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            std::fs::read(&path).unwrap_or_default()
        };
        (path.file_name().unwrap().to_str().unwrap().to_owned(), (format!("{:o}", metadata.permissions().mode()), bytes))
    };
    entries.map(|found| entry(found.unwrap().path())).collect()
}

#[test]
fn the_hook_runs_can_refuse_and_goes_without_a_trace() {
    let site = Site::new();
    let before = listing(&site.hooks());
    assert_eq!(site.repo.cbia(["hooks", "status", "--json"]).exits(1).codes(), ["hook-inactive"]);
    let ran = site.repo.cbia(["hooks", "install"]).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("installed .git/hooks/pre-push\n", ""));
    let installed = listing(&site.hooks());
    assert_eq!(installed["pre-push"].0, "100755");
    assert_eq!(installed["pre-push"].1, std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/pre-push")).unwrap());
    // Twice is once.
    let again = site.repo.cbia(["hooks", "install"]).ok();
    assert_eq!(again.stdout, "pre-push is installed already: git runs it\n");
    assert_eq!(listing(&site.hooks()), installed);
    let status = site.repo.cbia(["hooks", "status"]).ok();
    assert_eq!(status.stdout, "pre-push: git runs it\n  .git/hooks/pre-push\n");

    assert_eq!(site.push("one").code, Some(0));
    assert_eq!(site.seen(), format!("cbia hook pre-push origin ../server.git\n{}", site.line("one")));
    site.verdict("7");
    assert_eq!(site.push("two").code, Some(1));
    assert_eq!(site.repo.git(["ls-remote", "origin", "two"]), "");
    // A hook that cannot find its program refuses.
    std::fs::remove_file(site.repo.outside().join("bin/git-cbia")).unwrap();
    let lost = site.push("three");
    assert_eq!(lost.code, Some(1));
    assert!(lost.stderr.contains("git-cbia is not on PATH"), "{}", lost.stderr);

    assert_eq!(site.repo.cbia(["hooks", "uninstall"]).ok().stdout, "removed .git/hooks/pre-push\n");
    assert_eq!(listing(&site.hooks()), before);
    assert_eq!(site.push("four").code, Some(0));
    let nothing = site.repo.cbia(["hooks", "uninstall"]).ok();
    assert_eq!(nothing.stdout, "pre-push is not installed: there is nothing to remove\n");
}

#[test]
fn a_hook_that_is_there_is_chained_and_comes_back_byte_for_byte() {
    const READS: &str = "#!/bin/sh\n{ echo \"old $*\"; cat; } >>\"$HOME/seen\"\n";
    const REFUSES: &str = "#!/bin/sh\n{ echo \"old $*\"; cat; } >>\"$HOME/seen\"\nexit 3\n";
    const IGNORES: &str = "#!/bin/sh\necho \"old $*\" >>\"$HOME/seen\"\n";
    const NO_SHEBANG: &str = "echo \"old $*\" >>\"$HOME/seen\"\ncat >>\"$HOME/seen\"\n";
    const CRLF: &str = "#!/bin/sh\r\nexit 0\r\n";
    // Text, mode, what it does: whether it runs, reads, and lets the push go on.
    let cases: &[(&str, u32, bool, bool, bool)] = &[
        (READS, 0o755, true, true, true),
        (READS, 0o700, true, true, true),
        (REFUSES, 0o755, true, true, false),
        (IGNORES, 0o755, true, false, true),
        (NO_SHEBANG, 0o755, true, true, true),
        // git does not run it, and neither do we.
        (REFUSES, 0o644, false, false, true),
        // Its shell has a carriage return in its name: nobody can run it, and git refuses the push.
        (CRLF, 0o755, false, false, false),
    ];
    for (at, (text, mode, runs, reads, passes)) in cases.iter().enumerate() {
        for link in [false, true] {
            let site = Site::new();
            let hook = site.hooks().join("pre-push");
            if link {
                put(&site.repo.path().join(".git/elsewhere/script"), text, *mode);
                std::fs::create_dir_all(site.hooks()).unwrap();
                symlink("../elsewhere/script", &hook).unwrap();
            } else {
                put(&hook, text, *mode);
            }
            let before = listing(&site.hooks());
            let name = format!("case {at}, link {link}");
            let ran = site.repo.cbia(["hooks", "install"]).ok();
            let told = "installed .git/hooks/pre-push\nthe hook that was there is .git/hooks/pre-push.before-cbia and runs too\n";
            assert_eq!(ran.stdout, told, "{name}");
            let after = listing(&site.hooks());
            assert_eq!(after["pre-push.before-cbia"], before["pre-push"], "{name}");
            site.repo.cbia(["hooks", "install"]).ok();
            assert_eq!(listing(&site.hooks()), after, "{name}: twice is once");
            let status = site.repo.cbia(["hooks", "status", "--json"]).ok().json();
            assert_eq!(status["result"]["state"], "chained", "{name}");

            for (verdict, branch) in [("0", "one"), ("1", "two")] {
                site.verdict(verdict);
                let pushed = site.push(branch).code == Some(0);
                assert_eq!(pushed, *passes && verdict == "0", "{name}, {verdict}");
                let line = site.line(branch);
                let mut wanted = String::new();
                if *runs {
                    wanted.push_str("old origin ../server.git\n");
                }
                if *reads {
                    wanted.push_str(&line);
                }
                wanted.push_str(&format!("cbia hook pre-push origin ../server.git\n{line}"));
                assert_eq!(site.seen(), wanted, "{name}, {verdict}: both run, and both are given the same");
            }
            assert!(site.repo.cbia(["hooks", "uninstall"]).ok().stdout.contains("put back the hook from before"), "{name}");
            assert_eq!(listing(&site.hooks()), before, "{name}");
            // By itself, a hook that cannot be run makes git 2.47 wait without end.
            if *text != CRLF {
                site.verdict("1");
                assert_eq!(site.push("three").code == Some(0), *passes, "{name}: as it was before");
            }
        }
    }
}

#[test]
fn ten_thousand_refs_go_through_a_chain_whole() {
    let site = Site::new();
    put(&site.hooks().join("pre-push"), "#!/bin/sh\nexit 0\n", 0o755);
    site.repo.cbia(["hooks", "install"]).ok();
    let line = format!("refs/heads/a {0} refs/heads/a {0}\n", "1".repeat(40));
    let input = line.repeat(10_000);
    let mut hook = site.pusher.command(site.hooks().join("pre-push"));
    hook.args(["origin", "url with  spaces"]);
    assert_eq!(site.pusher.finish(hook, input.as_bytes()).code, Some(0));
    assert_eq!(site.seen(), format!("cbia hook pre-push origin url with  spaces\n{input}"));
    // Nothing to push: nothing on standard input, and the hook is asked all the same.
    let hook = site.pusher.command(site.hooks().join("pre-push"));
    assert_eq!(
        (site.pusher.finish(hook, b"").code, site.seen()),
        (Some(0), "cbia hook pre-push \n".to_owned().replace(" \n", "\n"))
    );
}

#[test]
fn hooks_go_where_git_looks_for_them() {
    for scope in ["default", "--local", "--global", "--worktree", "absolute"] {
        let site = Site::new();
        let outside = site.repo.outside().to_owned();
        site.repo.git(["config", "extensions.worktreeConfig", "true"]);
        let (linked, folder) = (outside.join("linked"), outside.join("my hooks"));
        site.repo.git(["worktree", "add", "-q", linked.to_str().unwrap()]);
        let worktree = site.repo.at(&linked);
        let top = if scope == "--worktree" { &worktree } else { &site.repo };
        let wanted = match scope {
            "default" => site.hooks(),
            "absolute" => {
                top.git(["config", "core.hooksPath", folder.to_str().unwrap()]);
                folder.clone()
            }
            "--global" => {
                top.git(["config", "--global", "core.hooksPath", "~/my hooks"]);
                outside.join("home/my hooks")
            }
            scope => {
                top.git(["config", scope, "core.hooksPath", "../my hooks"]);
                folder.clone()
            }
        };
        let existed = wanted.exists();
        // From a folder below the top, as people do.
        top.write("deep/er/x", "");
        let ran = top.at(top.path().join("deep/er")).cbia(["hooks", "install", "--json"]).ok();
        assert_eq!(ran.codes(), if scope == "--global" { vec!["hook-blocked"] } else { vec![] }, "{scope}");
        assert!(wanted.join("pre-push").is_file(), "{scope}");
        let mut command = site.pusher.at(top.path()).command("git");
        command.args(["push", "-q", "origin", "HEAD:one"]);
        assert_eq!(site.pusher.finish(command, b"").code, Some(0), "{scope}");
        assert!(site.seen().starts_with("cbia hook pre-push origin"), "{scope}: git runs it");
        // The other work tree shares it, unless the setting is this work tree's own.
        let other = if scope == "--worktree" { &site.repo } else { &worktree };
        other.cbia(["hooks", "status"]).exits(i32::from(scope == "--worktree"));
        top.cbia(["hooks", "uninstall"]).ok();
        assert_eq!(wanted.exists(), existed, "{scope}: a folder that was made goes again");
    }
}

#[test]
fn managers_are_told_what_to_add_and_nothing_is_written() {
    let generated = "#!/usr/bin/env bash\n# File generated by pre-commit: https://pre-commit.com\nexec pre-commit hook-impl --hook-type=pre-push -- \"$@\"\n";
    let husky = "#!/usr/bin/env sh\n. \"$(dirname \"$0\")/h\"\n";
    // Name, core.hooksPath, the manager's hook, its configuration and what that holds at first, and a line that must be told.
    type Case<'a> = (&'a str, Option<&'a str>, &'a str, Option<&'a str>, &'a str, &'a str, &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (
            "husky 9",
            Some(".husky/_"),
            ".husky/_/pre-push",
            Some(husky),
            ".husky/pre-push",
            "npm test\n",
            "husky",
            "git cbia hook pre-push \"$@\" || exit 1",
        ),
        (
            "husky 8",
            Some(".husky"),
            ".husky/pre-push",
            None,
            ".husky/pre-push",
            "",
            "husky",
            "git cbia hook pre-push \"$@\" || exit 1",
        ),
        (
            "lefthook",
            None,
            ".git/hooks/pre-push",
            Some("#!/bin/sh\ncall_lefthook run \"pre-push\" \"$@\"\n"),
            "lefthook.yml",
            "pre-push:\n",
            "lefthook",
            "    cbia: { run: 'git cbia hook pre-push {0}', use_stdin: true }",
        ),
        (
            "lefthook before its installation",
            None,
            ".git/hooks/pre-push",
            None,
            ".config/lefthook.toml",
            "\n",
            "lefthook",
            "pre-push:",
        ),
        (
            "pre-commit",
            None,
            ".git/hooks/pre-push",
            Some(generated),
            ".pre-commit-config.yaml",
            "repos: []\n",
            "pre-commit",
            "- repo: local",
        ),
    ];
    for (name, setting, hook, text, config, holds, manager, line) in cases {
        let site = Site::new();
        if let Some(setting) = setting {
            site.repo.git(["config", "core.hooksPath", setting]);
        }
        site.repo.write(config, holds);
        if holds.is_empty() {
            site.repo.remove(config);
        }
        if let Some(text) = text {
            put(&site.repo.path().join(hook), text, 0o755);
        }
        let everything = || (site.repo.files(&[]), listing(&site.hooks()));
        let before = everything();
        let ran = site.repo.cbia(["hooks", "install"]).exits(1);
        assert!(ran.stdout.lines().any(|told| told == *line), "{name}: {}", ran.stdout);
        let message = format!(
            "error: {manager} keeps the hooks of this repository, and would not run one that is written beside it [hook-managed]"
        );
        assert!(ran.stderr.starts_with(&message) && ran.stderr.contains("hint: add these lines to "), "{name}: {}", ran.stderr);
        assert_eq!(site.repo.cbia(["hooks", "install", "--json"]).exits(1).codes(), ["hook-managed"], "{name}");
        assert_eq!(site.repo.cbia(["hooks", "status", "--json"]).exits(1).codes(), ["hook-inactive"], "{name}");
        site.repo.cbia(["hooks", "uninstall"]).ok();
        assert_eq!(everything(), before, "{name}");

        // A comment is no call.
        site.repo.write(config, "# git cbia hook pre-push\n");
        site.repo.cbia(["hooks", "status"]).exits(1);
        site.repo.write(config, &ran.stdout);
        if *name == "husky 8" {
            put(&site.repo.path().join(config), &ran.stdout, 0o755);
        }
        let status = site.repo.cbia(["hooks", "status", "--json"]);
        if text.is_some() || *name == "husky 8" {
            assert_eq!(status.ok().json()["result"]["state"], "called", "{name}");
            let present = site.repo.cbia(["hooks", "install", "--json"]).ok();
            assert_eq!(present.json()["result"]["change"], "present", "{name}");
            assert_eq!(site.repo.cbia(["hooks", "uninstall", "--json"]).exits(1).codes(), ["hook-blocked"], "{name}");
        } else {
            let waiting = status.exits(1);
            assert_eq!(waiting.json()["result"]["state"], "waiting", "{name}");
            assert_eq!(waiting.finding("hook-inactive")["hint"], "run the installation of lefthook", "{name}");
            assert_eq!(site.repo.cbia(["hooks", "install", "--json"]).exits(1).codes(), ["hook-inactive"], "{name}");
        }
    }
}

#[test]
fn a_hook_that_a_manager_took_over_is_seen_for_what_it_is() {
    // pre-commit keeps ours as pre-push.legacy and runs it; lefthook keeps it as pre-push.old and does not.
    for (suffix, text, exit) in [
        (".legacy", "#!/bin/sh\nexec pre-commit hook-impl --hook-type=pre-push -- \"$@\"\n", 0),
        (".old", "#!/bin/sh\ncall_lefthook run \"pre-push\" \"$@\"\n", 1),
    ] {
        let site = Site::new();
        site.repo.cbia(["hooks", "install"]).ok();
        let hook = site.hooks().join("pre-push");
        std::fs::rename(&hook, site.hooks().join(format!("pre-push{suffix}"))).unwrap();
        put(&hook, text, 0o755);
        let status = site.repo.cbia(["hooks", "status", "--json"]).exits(exit).json();
        assert_eq!(status["result"]["state"], if exit == 0 { "called" } else { "foreign" }, "{suffix}");
    }
}

#[test]
fn what_could_not_be_restored_is_not_written_over() {
    let site = Site::new();
    let hook = site.hooks().join("pre-push");
    let before = site.hooks().join("pre-push.before-cbia");
    site.repo.cbia(["hooks", "install"]).ok();
    let shim = std::fs::read_to_string(&hook).unwrap();
    // What is arranged, and the words of the refusals of installing and of removing it.
    type Arrange<'a> = &'a dyn Fn();
    let edited = || put(&hook, &format!("{shim}echo more\n"), 0o755);
    let folder = || std::fs::create_dir(&hook).unwrap();
    let orphan = || put(&before, "#!/bin/sh\n", 0o755);
    let taken = || {
        orphan();
        put(&hook, "#!/bin/sh\nexit 0\n", 0o755);
    };
    let own = || put(&hook, "#!/bin/sh\ngit cbia hook pre-push \"$@\" && make check\n", 0o755);
    let cases: [(&str, Arrange<'_>, Option<&str>, Option<&str>); 5] = [
        ("edited", &edited, None, Some("calls git cbia, and is not as git cbia wrote it")),
        ("a folder", &folder, Some("is no file"), None),
        ("an orphan", &orphan, Some("is in the way"), Some("is in the way")),
        ("an orphan and another hook", &taken, Some("is in the way"), Some("is in the way")),
        ("a hook of one's own", &own, None, Some("calls git cbia, and is not as git cbia wrote it")),
    ];
    for (name, arrange, install, uninstall) in cases {
        for path in [&hook, &before] {
            drop(std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path)));
        }
        arrange();
        let there = listing(&site.hooks());
        for (command, words) in [("install", install), ("uninstall", uninstall)] {
            let ran = site.repo.cbia(["hooks", command, "--json"]);
            match words {
                Some(words) => {
                    let finding = ran.exits(1).finding("hook-blocked");
                    assert!(finding["message"].as_str().unwrap().ends_with(words), "{name}: {finding}");
                    assert!(!finding["hint"].as_str().unwrap().is_empty(), "{name}");
                }
                None => drop(ran.ok()),
            }
            assert_eq!(listing(&site.hooks()), there, "{name}, {command}");
        }
    }
}

#[test]
fn ours_is_known_with_the_wrong_line_ends_and_mended_with_the_wrong_mode() {
    let site = Site::new();
    site.repo.cbia(["hooks", "install"]).ok();
    let hook = site.hooks().join("pre-push");
    let shim = std::fs::read_to_string(&hook).unwrap();
    put(&hook, &shim, 0o644);
    assert_eq!(site.repo.cbia(["hooks", "status", "--json"]).exits(1).json()["result"]["state"], "idle");
    assert_eq!(site.repo.cbia(["hooks", "install", "--json"]).ok().json()["result"]["change"], "installed");
    assert_eq!((listing(&site.hooks())["pre-push"].0.as_str(), site.push("one").code), ("100755", Some(0)));
    assert!(site.seen().starts_with("cbia hook"));
    put(&hook, &shim.replace('\n', "\r\n"), 0o755);
    site.repo.cbia(["hooks", "uninstall"]).ok();
    assert!(!hook.exists());
}

#[test]
fn many_at_once_install_one_hook_and_lose_none() {
    let site = Site::new();
    let hook = site.hooks().join("pre-push");
    put(&hook, "#!/bin/sh\necho old >>\"$HOME/seen\"\n", 0o750);
    let before = listing(&site.hooks());
    for round in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| site.repo.cbia(["hooks", "install"]).ok());
            }
        });
        let after = listing(&site.hooks());
        assert_eq!((after.len(), &after["pre-push.before-cbia"]), (before.len() + 1, &before["pre-push"]), "{round}");
        assert_eq!(site.push(&format!("b{round}")).code, Some(0));
        assert_eq!(site.seen().matches("old\n").count(), 1, "{round}");
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| site.repo.cbia(["hooks", "uninstall"]).ok());
            }
        });
        assert_eq!(listing(&site.hooks()), before, "{round}");
    }
}

#[test]
fn a_server_gets_its_own_hook() {
    let site = Site::new();
    let server = site.repo.at(site.repo.outside().join("server.git"));
    let hooks = server.path().join("hooks");
    let at = std::fs::canonicalize(server.path()).unwrap().to_str().unwrap().to_owned();
    // From anywhere, also where there is no repository.
    let outside = site.repo.at(site.repo.outside());
    assert_eq!(outside.cbia(["hooks", "status", "--server", "server.git", "--json"]).exits(1).codes(), ["hook-inactive"]);
    let hint = outside.cbia(["hooks", "status", "--server", "server.git"]).exits(1).stderr;
    assert!(hint.ends_with(&format!("hint: git cbia hooks install --server '{at}'\n")), "{hint}");
    assert_eq!(
        outside.cbia(["hooks", "install", "--server", "server.git"]).ok().stdout,
        format!("installed {at}/hooks/pre-receive\n")
    );
    assert_eq!(site.push("one").code, Some(0));
    let head = site.repo.git(["rev-parse", "HEAD"]);
    assert_eq!(site.seen(), format!("cbia hook pre-receive\n{} {head} refs/heads/one\n", "0".repeat(40)));
    site.verdict("1");
    let refused = site.push("two");
    assert!(refused.code == Some(1) && refused.stderr.contains("pre-receive hook declined"), "{}", refused.stderr);
    outside.cbia(["hooks", "uninstall", "--server", "server.git"]).ok();
    assert!(!hooks.join("pre-receive").exists());
    site.seen();

    // A hook that is there, and either can refuse.
    put(
        &hooks.join("pre-receive"),
        "#!/bin/sh\necho old >>\"$HOME/seen\"\ncat >>\"$HOME/seen\"\n! grep -q three \"$HOME/seen\"\n",
        0o755,
    );
    outside.cbia(["hooks", "install", "--server", "server.git"]).ok();
    site.verdict("0");
    assert_eq!((site.push("three").code, site.seen().lines().count()), (Some(1), 4));
    assert_eq!((site.push("four").code, site.seen().lines().count()), (Some(0), 4));

    // Where the server writes pre-receive itself and runs a folder of hooks, ours is one of them.
    std::fs::create_dir(hooks.join("pre-receive.d")).unwrap();
    let path = outside.cbia(["hooks", "install", "--server", "server.git", "--json"]).ok().json()["result"]["path"].clone();
    assert_eq!(path, json!(format!("{at}/hooks/pre-receive.d/cbia")));

    // The user's own core.hooksPath is not the server's, but takes its place for pushes that are served as this user.
    site.repo.git(["config", "--global", "core.hooksPath", "~/none"]);
    let status = outside.cbia(["hooks", "status", "--server", "server.git", "--json"]).ok();
    assert_eq!(status.finding("hook-inactive")["severity"], "warning");

    std::fs::create_dir(site.repo.path().join("below")).unwrap();
    for (path, exit) in [("none.git", 3), ("repo/below", 2), ("repo/../repo/below", 2), ("home", 3)] {
        outside.cbia(["hooks", "install", "--server", path]).exits(exit);
    }
}
