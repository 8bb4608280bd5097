//! The tutorial: its commands are run, and what they print is what the page says.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::support::{Ran, Repo};

const PAGE: &str = include_str!("../../docs/tutorial/README.md");
/// The one line of the page that a reader fills in.
const FILES: &str = "FILES=/path/to/git-cbia/docs/tutorial/files";
/// Stands in the page for an id or a date: one or more characters without a space.
const WILDCARD: char = '…';

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial/files")
}

/// The commands of a page, each with what the page says that it prints.
fn steps(page: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line.strip_prefix("$ "), found.last_mut()) {
            (false, _, _) => inside = line == "```console",
            (true, _, _) if line == "```" => inside = false,
            (true, Some(command), _) => found.push((command.to_owned(), Vec::new())),
            (true, None, Some((_, output))) => output.push(line.to_owned()),
            (true, None, None) => panic!("output before the first command: {line}"),
        }
    }
    found
}

/// Whether a line is what the page says.
fn fits(said: &str, printed: &str) -> bool {
    let Some((before, after)) = said.split_once(WILDCARD) else { return said == printed };
    let Some(rest) = printed.strip_prefix(before) else { return false };
    let word = rest.split(' ').next().unwrap_or_default();
    let ends = word.char_indices().map(|(at, character)| at + character.len_utf8());
    ends.into_iter().any(|end| fits(after, &rest[end..]))
}

/// Runs a script with both streams in one, as a terminal shows them.
fn shell(repo: &Repo, script: &str) -> Ran {
    let at = repo.outside().join("script.sh");
    std::fs::write(&at, script).unwrap();
    let mut command = repo.command("sh");
    command.args(["-c", "exec sh \"$0\" 2>&1"]).arg(&at);
    repo.finish(command, b"")
}

#[test]
fn the_commands_of_the_page_print_what_it_says() {
    let steps = steps(PAGE);
    let mut script = String::new();
    for (at, (command, _)) in steps.iter().enumerate() {
        let command = if command == FILES { format!("FILES='{}'", files().display()) } else { command.clone() };
        writeln!(script, "echo '<<<step {at}>>>'\n{command}").unwrap();
    }
    let empty = Repo::new();
    let folder = empty.outside().join("an empty folder");
    std::fs::create_dir(&folder).unwrap();
    let ran = shell(&empty.at(&folder), &script).ok();
    let mut rest = ran.stdout.as_str();
    let mut wrong = String::new();
    for (at, (command, said)) in steps.iter().enumerate() {
        rest = rest
            .split_once(&format!("<<<step {at}>>>\n"))
            .unwrap_or_else(|| panic!("{command} was not reached:\n{}", ran.stdout))
            .1;
        let printed = rest.split("<<<step ").next().unwrap();
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let fit = lines.len() == said.len() && said.iter().zip(&lines).all(|(said, line)| fits(said.trim_end(), line));
        if !fit {
            writeln!(wrong, "$ {command}\nthe page says:\n{}\nit prints:\n{printed}", said.join("\n")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "docs/tutorial/README.md is not what the program does:\n{wrong}");
    for used in ["git cbia promote", "git cbia export bundle", "exit code 6", "REPAIR          replayed", "1 pruned", "git clone"]
    {
        assert!(PAGE.contains(used), "the tutorial shows {used}");
    }
}

#[test]
fn only_what_the_page_elides_may_differ() {
    for (said, printed, fit) in [
        ("run    …", "run    8bc74", true),
        ("run    …", "run    ", false),
        ("run    …", "run    8bc 74", false),
        ("… … failed", "8bc 2023-11-14 failed", true),
        ("(key …), 2", "(key 12), 2", true),
        ("(key …), 2", "(key 12), 3", false),
        ("admitted", "denied", false),
        ("admitted", "admitted again", false),
    ] {
        assert_eq!(fits(said, printed), fit, "{said} / {printed}");
    }
    let page = "```console\n$ a\none\n$ b\n```\ntext\n```console\n$ c\n\ntwo\n```\n";
    let expected = [("a", vec!["one"]), ("b", vec![]), ("c", vec!["", "two"])];
    let steps = steps(page);
    let found: Vec<(&str, Vec<&str>)> =
        steps.iter().map(|(command, output)| (command.as_str(), output.iter().map(String::as_str).collect())).collect();
    assert_eq!(found, expected);
    assert!(
        PAGE.lines().filter(|line| *line == "```console").count() > 10,
        "the page has its commands where this looks for them"
    );
}

/// Every file that the page links to is there, and every file that the reader copies is committed as it is.
#[test]
fn the_links_of_the_page_lead_somewhere() {
    let folder = files();
    let folder = folder.parent().unwrap();
    let links: Vec<&str> = PAGE.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()).collect();
    assert!(links.len() > 10);
    for link in links {
        assert!(folder.join(link).exists(), "{link}");
    }
    let preface = std::fs::read(files().join("start/data/preface.md")).unwrap();
    assert!(preface.windows(2).any(|pair| pair == b"\r\n"), "the tutorial needs its carriage returns");
}

/// The tutorial's pipeline, in which no phase is skipped: whoever runs it, wherever, gets the same bytes from every phase.
#[test]
fn two_machines_get_the_same_bytes_from_every_phase() {
    let origin = Repo::started();
    for folder in ["control", "docs", "schemas"] {
        origin.remove(folder);
    }
    let script = "for step in start repair bound; do cp -R \"$FILES/$step/.\" .; done
        git cbia authority add docs/error-contract.md --id errors --title 'Contract for errors' && git cbia authority freeze";
    shell(&origin.with("FILES", files().to_str()), script).ok();
    origin.commit();
    let here = origin.clone_to("here");
    let mut there = origin.clone_to("somewhere else, ünd far away");
    for (name, value) in [
        ("TZ", "Pacific/Kiritimati"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("GIT_AUTHOR_NAME", "Bö"),
        ("GIT_COMMITTER_NAME", "Bö"),
        ("GIT_AUTHOR_DATE", "2147483648 +1400"),
        ("GIT_COMMITTER_DATE", "2147483648 +1400"),
    ] {
        there = there.with(name, Some(value));
    }
    let made = |repo: &Repo, umask: &str| {
        let script = format!("umask {umask} && git cbia run --json && git cbia export bundle -o ../package.tar");
        let ran = shell(repo, &script).ok();
        let phases = ["GEN", "CHECK", "REPAIR", "STRUCT", "SELECT", "FLOW", "EVAL"];
        for phase in phases {
            let executed = format!("\"phase\": \"{phase}\",\n      \"status\": \"executed\"");
            assert!(ran.stdout.contains(&executed), "{phase} was not executed: {}", ran.stdout);
        }
        repo.fsck();
        let (_, run) = repo.only_ref("refs/cbia/runs");
        // A commit's id covers its tree, its message and all commits before it.
        let commits = repo.git(["log", "--format=%H %s", &run]);
        assert_eq!(commits.lines().count(), 11, "{commits}");
        let package = std::fs::read(repo.outside().join("package.tar")).unwrap();
        ([repo.refs("refs/cbia/runs"), repo.refs("refs/cbia/cache")].concat(), commits, package, repo.files(&[]))
    };
    let (mine, yours) = (made(&here, "022"), made(&there, "077"));
    assert_eq!(mine.0, yours.0);
    assert_eq!(mine.1, yours.1);
    assert!(mine.2 == yours.2, "the packages differ");
    assert_eq!(mine.3, yours.3);
}

/// What `init` writes can be promoted at once: the first thing that a newcomer tries.
#[test]
fn what_init_writes_is_promoted_at_once() {
    let repo = Repo::started();
    let told = repo.cbia(["run", "--promote"]).ok().stdout;
    assert!(told.contains("\npromoted 4 files onto main as "), "{told}");
    let committed = repo.git(["ls-tree", "-r", "--name-only", "HEAD"]);
    let expected = ["artifacts/checklist.md", "artifacts/rules.json", "dist/bundle/checklist.md", "dist/bundle/rules.json"];
    assert_eq!(committed.lines().collect::<Vec<_>>(), expected);
    repo.commit();
    assert!(repo.cbia(["verify"]).ok().stdout.contains(", run "), "the promoted files are those of a run");
    let told = repo.cbia(["run", "--promote"]).ok().stdout;
    assert!(told.ends_with("\nalready promoted: main has all 4 files\n"), "{told}");
    repo.fsck();
}
