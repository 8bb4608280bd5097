//! Many clones at once against one server, also when they are killed: every record arrives, none twice.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::super::support::{PROGRAM, Ran, Repo};
use super::server::Server;
use super::{join, somebody, team};

/// How many clones, and how many runs each. The whole size is that of the issue that asked for it: 8 and 25.
fn size() -> (usize, usize) {
    #[expect(clippy::disallowed_methods, reason = "a person may ask for the whole size")]
    let whole = std::env::var_os("CBIA_TEST_WHOLE").is_some();
    if whole { (8, 25) } else { (4, 3) }
}

fn program(repo: &Repo, arguments: &[&str]) -> Command {
    let mut command = repo.command(PROGRAM);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The ledger records that a repository's ref leads to, joins not counted.
fn records(repo: &Repo, name: &str) -> BTreeSet<String> {
    let listed = repo.git(["log", "--format=%H %(trailers:key=Cbia-Event,valueonly,separator=%x2C)", name]);
    let records = listed.lines().filter_map(|line| line.split_once(' '));
    records.filter(|(_, event)| !event.is_empty() && *event != "merged").map(|(id, _)| id.to_owned()).collect()
}

/// `count` clones that push after each run; `writers` of them are one person each, the others share a name.
fn clones(url: &str, count: usize) -> Vec<Repo> {
    (0..count)
        .map(|number| {
            // Two of the clones belong to one writer.
            let repo = somebody(&format!("W{}", number.max(1)));
            // Two records of one writer, one moment and one content would be one commit.
            let repo = repo.with("GIT_COMMITTER_DATE", Some(&format!("{} +0000", 1_700_000_000 + number)));
            join(&repo, url);
            repo.git(["config", "cbia.push", "on-run"]);
            repo.git(["config", "cbia.remoteTimeout", "60"]);
            repo
        })
        .collect()
}

fn input(repo: &Repo, number: usize, round: usize) {
    // Every other input is the same for all clones.
    let words = if round.is_multiple_of(2) { format!("round {round}\n") } else { format!("{number} {round}\n") };
    repo.write("data/words.txt", words);
}

#[test]
fn clones_that_run_at_once_lose_no_record() {
    let (bare, _) = team();
    let server = Server::start(&bare);
    let (count, rounds) = size();
    let repos = clones(&server.url("team.git"), count);
    server.take();
    std::thread::scope(|scope| {
        for (number, repo) in repos.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..rounds {
                    input(repo, number, round);
                    let ran = repo.cbia(["run", "--json"]).ok();
                    assert_eq!(ran.codes(), Vec::<String>::new(), "{}", ran.stdout);
                }
            });
        }
    });
    let (_, _, pushes) = server.take();
    let runs = count * rounds;
    assert!(pushes <= 2 * runs as u64, "{pushes} pushes for {runs} runs");
    arrived(&bare, &repos, runs);
    #[expect(clippy::print_stderr, reason = "the figures are what the whole size is run for")]
    {
        eprintln!("{count} clones, {rounds} runs each: {pushes} pushes");
    }
}

/// Every record of every clone is on the server, once.
fn arrived(bare: &Repo, repos: &[Repo], at_least: usize) {
    let mut there: Vec<String> = Vec::new();
    for (name, _) in bare.refs("refs/cbia/ledgers") {
        there.extend(records(bare, &name));
    }
    let once: BTreeSet<String> = there.iter().cloned().collect();
    assert_eq!(once.len(), there.len(), "a record stands in two ledgers");
    for repo in repos {
        let own = records(repo, "refs/cbia/ledger");
        assert!(own.is_subset(&once), "{:?}", own.difference(&once));
        repo.fsck();
    }
    assert!(once.len() >= at_least, "{} records of {at_least}", once.len());
    for (name, id) in bare.refs("refs/cbia/runs") {
        for repo in repos {
            let known = repo.refs(&name);
            assert!(known.is_empty() || known[0].1 == id, "{name} differs");
        }
    }
    assert_eq!(bare.refs("refs/cbia/outbox").len(), 0);
    bare.fsck();
}

#[test]
fn clones_that_are_killed_lose_no_record_either() {
    let (bare, _) = team();
    let server = Server::start(&bare);
    let (count, rounds) = size();
    let repos = clones(&server.url("team.git"), count);
    std::thread::scope(|scope| {
        for (number, repo) in repos.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..rounds {
                    input(repo, number, round);
                    let mut child: Child = program(repo, &["run", "--json"]).spawn().unwrap();
                    // A different moment each time, the same in every test run.
                    let wait = (number as u64 * 7919 + round as u64 * 104_729) % 700;
                    std::thread::sleep(Duration::from_millis(wait));
                    if child.try_wait().unwrap().is_none() {
                        kill_process(Pid::from_child(&child), Signal::KILL).ok();
                    }
                    child.wait_with_output().unwrap();
                    repo.cbia(["run", "--json"]).ok();
                }
            });
        }
    });
    for repo in &repos {
        repo.cbia(["push"]).ok();
    }
    arrived(&bare, &repos, count * rounds);
    for repo in &repos {
        assert_eq!(repo.refs("refs/cbia/outbox").len() + repo.refs("refs/cbia/incoming").len(), 0);
    }
}

#[test]
fn what_a_killed_process_was_bringing_goes_with_the_next_push() {
    let (bare, _) = team();
    let server = Server::start(&bare);
    let repos = clones(&server.url("team.git"), 1);
    let repo = &repos[0];
    input(repo, 0, 0);
    repo.cbia(["run", "--json"]).ok();
    repo.git(["update-ref", "refs/cbia/incoming/ledgers/killed", "refs/cbia/ledger"]);
    repo.cbia(["push"]).ok();
    assert!(repo.refs("refs/cbia/incoming").is_empty());
}

/// Counts down when it goes, also by a panic.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// While clones run and push, everything old is collected in each of them and on the remote, and git collects for itself.
#[test]
fn collections_among_runs_and_pushes_lose_nothing() {
    let (bare, _) = team();
    let (count, rounds) = size();
    let repos = clones(bare.path().to_str().unwrap(), count);
    let working = AtomicUsize::new(count);
    let collected = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let removed = |ran: &Ran| ran.json()["result"]["removed"].as_array().map_or(0, Vec::len);
    std::thread::scope(|scope| {
        for (number, repo) in repos.iter().enumerate() {
            let (working, collected) = (&working, &collected);
            scope.spawn(move || {
                let _done = Done(working);
                for round in 0..rounds * 2 {
                    input(repo, number, round);
                    let ran = repo.cbia(["run", "--json"]).ok();
                    // What was offered and then evicted before it was had is a warning.
                    assert!(ran.codes().iter().all(|code| code == "remote-unreachable"), "{}", ran.stdout);
                }
            });
            // To a collector of tomorrow all of it is old.
            let tomorrow = repo.with("GIT_COMMITTER_DATE", Some("1700090000 +0000"));
            scope.spawn(move || {
                while working.load(Ordering::SeqCst) > 0 {
                    let ran = tomorrow.cbia(["gc", "--older-than", "0s", "--json"]).ok();
                    collected[0].fetch_add(removed(&ran), Ordering::SeqCst);
                    if number == 0 {
                        tomorrow.cbia(["fetch", "--json"]).ok();
                        let ran = tomorrow.cbia(["gc", "--remote", "--keep-runs", "1", "--json"]).ok();
                        collected[1].fetch_add(removed(&ran), Ordering::SeqCst);
                    }
                    if number == 1 {
                        tomorrow.git(["gc", "-q"]);
                        tomorrow.at(bare_path(&tomorrow)).git(["gc", "-q"]);
                    }
                }
            });
        }
    });
    assert!(collected.iter().all(|count| count.load(Ordering::SeqCst) > 0), "{collected:?}");
    for repo in &repos {
        repo.cbia(["push"]).ok();
    }
    arrived(&bare, &repos, count * rounds * 2);
    for repo in repos.iter().chain([&bare]) {
        assert_eq!(repo.cbia(["fsck", "--json"]).ok().codes(), Vec::<String>::new());
        repo.git(["rev-list", "--objects", "--quiet", "--all"]);
        assert_eq!(repo.leftovers(), Vec::<String>::new());
    }
}

/// Where a clone's remote is.
fn bare_path(repo: &Repo) -> String {
    repo.git(["remote", "get-url", "team"])
}

#[test]
fn a_hundred_misses_of_one_key_ask_once_and_execute_nothing() {
    let (bare, ada) = team();
    ada.run();
    ada.cbia(["push"]).ok();
    let server = Server::start(&bare);
    let bob = somebody("Bob");
    join(&bob, &server.url("team.git"));
    server.take();
    let children: Vec<Child> = (0..100).map(|_| program(&bob, &["run", "--json"]).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (requests, _, _) = server.take();
    assert_eq!(requests, 3, "one lookup");
    assert_eq!(bob.events(), vec!["replayed"; 100]);
}
