//! Sharing between clones: what one made another replays, nothing is lost, and nothing of a hostile remote is used.

mod curve;
mod hostile;
mod server;
mod together;

use std::net::TcpListener;

use serde_json::{Value, json};

use self::server::Server;
use super::support::{EXECUTOR, NOTE, NOTE_TEXT, Repo};

/// A clone, in surroundings of its own.
pub fn somebody(name: &str) -> Repo {
    let mut repo = Repo::new();
    for role in ["AUTHOR", "COMMITTER"] {
        repo = repo.with(&format!("GIT_{role}_NAME"), Some(name));
        repo = repo.with(&format!("GIT_{role}_EMAIL"), Some(&format!("{}@example.org", name.to_lowercase())));
    }
    repo
}

/// A bare repository that holds the tiny pipeline on `main`, and Ada's clone of it, whose remote it is.
pub fn team() -> (Repo, Repo) {
    let ada = somebody("Ada");
    ada.write_tiny();
    ada.commit();
    ada.git(["clone", "-q", "--bare", ".", "../team.git"]);
    let bare = ada.at(ada.outside().join("team.git"));
    join(&ada, bare.path().to_str().unwrap());
    (bare, ada)
}

/// Makes a repository a clone of `url` whose remote is asked on a miss.
pub fn join(repo: &Repo, url: &str) {
    repo.git(["remote", "add", "team", url]);
    repo.git(["config", "cbia.remote", "team"]);
    repo.git(["fetch", "-q", "team"]);
    repo.git(["checkout", "-q", "-B", "main", "team/main"]);
}

/// Another person's clone of the team's repository.
pub fn colleague(name: &str, bare: &Repo) -> Repo {
    let repo = somebody(name);
    join(&repo, bare.path().to_str().unwrap());
    repo
}

/// Ada has run and pushed; Bob's clone, which has not.
pub fn pushed() -> (Repo, Repo, Repo) {
    let (bare, ada) = team();
    ada.run();
    ada.cbia(["push"]).ok();
    let bob = colleague("Bob", &bare);
    (bare, ada, bob)
}

fn committer(repo: &Repo) -> String {
    repo.git(["log", "-1", "--format=%cn", "refs/cbia/ledger"])
}

#[test]
fn a_second_clone_replays_exactly_the_run_that_it_needs() {
    let (bare, ada) = team();
    let server = Server::start(&bare);
    for words in ["one\n", "two\n", "one two\n"] {
        ada.write("data/words.txt", words);
        assert_eq!(ada.run(), "executed");
    }
    let ran = ada.cbia(["push"]).ok();
    assert!(ran.stdout.starts_with("pushed 3 runs, 3 cache entries, the ledger to "), "{}", ran.stdout);
    assert!(ada.cbia(["push"]).ok().stdout.contains("has everything already"));
    assert_eq!(bare.refs("refs/cbia/outbox").len() + ada.refs("refs/cbia/outbox").len(), 0);

    let bob = somebody("Bob").with("TZ", Some("Pacific/Kiritimati")).with("LC_ALL", Some("C.UTF-8"));
    join(&bob, &server.url("team.git"));
    server.take();
    let ran = bob.cbia(["run", "--json"]).ok();
    let (requests, bytes, _) = server.take();
    assert_eq!(ran.gen_status(), "replayed", "{}", ran.stdout);
    assert_eq!(ran.codes(), Vec::<String>::new());
    // The capabilities, the refs of that name, and their objects.
    assert_eq!(requests, 3);
    let names: Vec<String> = bob.refs("refs/cbia/remotes").into_iter().map(|(name, _)| name).collect();
    let objects = bob.git_with(["rev-list", "--objects", "--disk-usage", "--stdin"], names.join("\n").as_bytes());
    let objects: u64 = objects.parse().unwrap();
    assert!(bytes < objects + 10_000, "{bytes} bytes, of which {objects} are objects");
    assert_eq!(bob.files(&["execution/ledger/run.ledger.json", "opa"]), ada.files(&["execution/ledger/run.ledger.json", "opa"]));
    assert_eq!((bob.refs("refs/cbia/runs").len(), bob.refs("refs/cbia/cache").len()), (1, 1));
    assert_eq!(bob.refs("refs/cbia/remotes").len(), 2);
    assert_eq!((bob.events(), committer(&bob)), (vec!["replayed".to_owned()], "Bob".to_owned()));
    // A question that finds nothing.
    bob.write("data/words.txt", "nobody has run this\n");
    assert_eq!(bob.run(), "executed");
    let (requests, bytes, _) = server.take();
    assert!(requests == 2 && bytes < 10_000, "{requests} requests, {bytes} bytes");
    bob.git(["checkout", "-q", "data"]);
    // What is known is not asked for again.
    assert_eq!(bob.run(), "replayed");
    assert_eq!(server.take(), (0, 0, 0));
    bob.fsck();
    bare.fsck();
    assert_eq!(bob.leftovers(), Vec::<String>::new());
}

#[test]
fn a_program_that_was_run_elsewhere_is_not_run_again() {
    let (bare, ada) = team();
    // The name of the variable is part of the executor's key, and its value is not.
    let config = json!({"kind": "external", "version": "1", "timeout_s": 60, "command": ["/bin/sh", "control/executors/x.sh"],
        "sandbox": {"require": false, "pass_env": ["CBIA_TEST_BROKEN"]}});
    let script = "test -z \"$CBIA_TEST_BROKEN\" || exit 9\nmkdir -p out execution/gen\nprintf 'made\\n' > out/note.txt\n\
        printf '{\"schema_version\":\"0.1.0\",\"phase\":\"GEN\",\"artifacts\":[{\"path\":\"out/note.txt\",\"bytes\":5,\"hash\":\"%s\"}],\"tool_versions\":{}}' \
        \"$(sha256sum < out/note.txt | cut -c1-64)\" > execution/gen/executor.report.json\n";
    let give = |repo: &Repo| {
        repo.write("control/executors/x.sh", script);
        repo.write_json(EXECUTOR, &config);
    };
    give(&ada);
    let ada = ada.with("CBIA_TEST_BROKEN", Some(""));
    assert_eq!(ada.run(), "executed");
    ada.cbia(["push"]).ok();
    let bob = colleague("Bob", &bare).with("CBIA_TEST_BROKEN", Some("yes"));
    give(&bob);
    bob.cbia(["run", "--offline", "--json"]).exits(5);
    let ran = bob.cbia(["run", "--json"]).ok();
    assert_eq!((ran.gen_status().as_str(), bob.read(NOTE).as_str()), ("replayed", "made\n"));
    assert_eq!(bob.events(), ["failed", "replayed"]);
}

#[test]
fn an_unreachable_remote_is_a_warning_and_the_run_goes_on() {
    // A server that takes the connection, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}/x.git", silent.local_addr().unwrap());
    for (remote, said) in
        [("../nowhere.git", "cannot fetch from"), (silent.as_str(), "took longer than 1 s"), ("ext::sh -c x", "cannot fetch")]
    {
        let repo = Repo::tiny();
        repo.git(["config", "cbia.remote", remote]);
        repo.git(["config", "cbia.remoteTimeout", "1"]);
        let ran = repo.cbia(["run", "--json"]).ok();
        assert_eq!((ran.gen_status().as_str(), repo.read(NOTE).as_str()), ("executed", NOTE_TEXT));
        let finding = ran.finding("remote-unreachable");
        assert_eq!(finding["severity"], "warning");
        assert!(finding["message"].as_str().unwrap().contains(said), "{finding}");
        assert_eq!(ran.codes().len(), 1);
        // The record of a run keeps what was told.
        assert!(repo.git(["show", "refs/cbia/ledger:record.json"]).contains("remote-unreachable"));
    }
    let repo = Repo::tiny();
    repo.git(["config", "cbia.remote", "../nowhere.git"]);
    assert_eq!(repo.cbia(["run", "--offline", "--json"]).ok().codes(), Vec::<String>::new());
    // Asking for it by name is another matter.
    for command in ["push", "fetch"] {
        assert_eq!(repo.cbia([command, "--json"]).exits(3).codes(), ["remote-unreachable"]);
    }
    repo.git(["config", "cbia.push", "sometimes"]);
    assert_eq!(repo.cbia(["run", "--json"]).exits(3).codes(), ["setting-invalid"]);
}

#[test]
fn remotes_are_asked_in_order_until_one_knows() {
    let (bare, ada) = team();
    ada.run();
    ada.git(["init", "-q", "--bare", "../cache.git"]);
    ada.git(["config", "cbia.pushRemote", "../cache.git"]);
    ada.cbia(["push"]).ok();
    assert_eq!(bare.refs("refs/cbia").len(), 0);
    let bob = colleague("Bob", &bare);
    bob.git(["config", "--add", "cbia.remote", ada.outside().join("cache.git").to_str().unwrap()]);
    let ran = bob.cbia(["run", "--json"]).ok();
    assert_eq!((ran.gen_status().as_str(), ran.codes()), ("replayed", vec![]));
}

#[test]
fn a_run_is_pushed_when_it_is_asked_for_once_and_for_all() {
    let (bare, ada) = team();
    ada.git(["config", "cbia.push", "on-run"]);
    ada.run();
    assert_eq!((bare.refs("refs/cbia/runs").len(), bare.refs("refs/cbia/ledgers").len()), (1, 1));
    assert_eq!(
        bare.only_ref("refs/cbia/ledgers"),
        ("refs/cbia/ledgers/ada-example.org".into(), ada.git(["rev-parse", "refs/cbia/ledger"]))
    );
    assert!(ada.cbia(["push"]).ok().stdout.contains("has everything already"));
    // A push that fails takes nothing from the run.
    std::fs::rename(bare.path(), bare.outside().join("away.git")).unwrap();
    let ran = ada.cbia(["run", "--json"]).ok();
    assert_eq!((ran.gen_status().as_str(), ran.codes()), ("replayed", vec!["remote-unreachable".to_owned()]));
    assert_eq!(ada.cbia(["run", "--offline", "--json"]).ok().codes(), Vec::<String>::new());
}

#[test]
fn several_ledgers_are_one_history_and_are_joined_by_one_record() {
    let (_, ada, bob) = pushed();
    let bob_later = bob.with("GIT_COMMITTER_DATE", Some("1700000100 +0000"));
    bob_later.run();
    bob.cbia(["push"]).ok();
    assert_eq!(bob.cbia(["log"]).ok().stdout.lines().count(), 1);
    let ran = bob.cbia(["fetch"]).ok();
    assert!(ran.stdout.starts_with("fetched 1 record from "), "{}", ran.stdout);
    assert!(bob.cbia(["fetch"]).ok().stdout.starts_with("fetched nothing new from "));
    ada.cbia(["fetch"]).ok();
    let log = bob.cbia(["log"]).ok().stdout;
    assert_eq!(ada.cbia(["log"]).ok().stdout, log);
    let who: Vec<&str> = log.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(who, ["(Bob)", "(Ada)"]);
    assert_eq!(bob.cbia(["log", "--local"]).ok().stdout.lines().count(), 1);

    bob.cbia(["ledger", "merge"]).ok();
    assert_eq!(bob.events(), ["replayed", "merged"]);
    assert!(bob.cbia(["ledger", "merge"]).ok().stdout.contains("holds every record"));
    assert_eq!(bob.cbia(["log"]).ok().stdout.lines().count(), 3);
    assert_eq!(bob.run(), "replayed");
    bob.cbia(["push"]).ok();
    assert!(ada.cbia(["fetch"]).ok().stdout.starts_with("fetched 2 records from "));
    ada.fsck();
    bob.fsck();
}

#[test]
fn a_lost_ledger_is_told_and_given_back() {
    let (bare, ada, bob) = pushed();
    let name = "refs/cbia/ledgers/ada-example.org";
    ada.run();
    ada.cbia(["push"]).ok();
    bob.cbia(["fetch"]).ok();
    let whole = bare.git(["rev-parse", name]);
    let restored = |repo: &Repo| repo.cbia(["ledger", "restore", "team"]).ok().stdout;
    assert!(restored(&bob).contains("holds every record"));

    // Set back to an earlier record.
    bare.git(["update-ref", name, &format!("{whole}~1")]);
    let ran = bob.cbia(["fetch", "--json"]).exits(1);
    assert!(ran.finding("ledger-rewound")["message"].as_str().unwrap().contains("1 of its records are gone there"));
    assert_eq!(bob.cbia(["log"]).ok().stdout.lines().count(), 2, "nothing is lost here");
    assert_eq!(restored(&bob), "restored the ledger of ada-example.org on team\n");
    assert_eq!(bare.git(["rev-parse", name]), whole);

    // Deleted.
    bare.git(["update-ref", "-d", name]);
    let ran = bob.cbia(["fetch", "--json"]).exits(1);
    assert!(ran.finding("ledger-deleted")["hint"].as_str().unwrap().contains("git cbia ledger restore team"));
    restored(&bob);
    assert_eq!(bare.git(["rev-parse", name]), whole);
    bob.cbia(["fetch"]).ok();

    // Replaced by another ledger: both are kept, and one record joins them.
    let eve = colleague("Eve", &bare);
    eve.cbia(["run", "--offline"]).ok();
    eve.git(["push", "-q", "-f", "team", &format!("refs/cbia/ledger:{name}")]);
    let other = bare.git(["rev-parse", name]);
    let ran = bob.cbia(["fetch", "--json"]).exits(1);
    assert!(
        ran.finding("ledger-rewound")["message"].as_str().unwrap().contains("refs/cbia/refused/ledgers/team/ada-example.org/")
    );
    restored(&bob);
    let parents = bare.git(["log", "-1", "--format=%P", name]);
    assert_eq!(parents, format!("{other} {whole}"));
    bob.cbia(["fetch"]).ok();
    ada.cbia(["push"]).ok();
    bare.fsck();
}

#[test]
fn a_push_beside_a_fetch_is_no_loss() {
    let (bare, ada, bob) = pushed();
    bob.write("data/words.txt", "bob's\n");
    bob.run();
    bob.cbia(["push"]).ok();
    assert_eq!(ada.run(), "replayed");
    // Between the remote's list of refs and its objects, another process of Ada's pushes her newest record.
    let (hook, once) = (ada.outside().join("hook"), ada.outside().join("once"));
    let script = format!(
        "#!/bin/sh\nif rm '{}'; then (unset $(git rev-parse --local-env-vars); cd '{}' && git cbia push) >&2 || exit 1; fi\nexec \"$@\"\n",
        once.display(),
        ada.path().display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::write(&once, "").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    ada.git(["config", "--global", "uploadpack.packObjectsHook", hook.to_str().unwrap()]);
    let ran = ada.cbia(["fetch", "--json"]).ok();
    assert!(!once.exists(), "the hook was run");
    assert_eq!((ran.codes(), &ran.json()["result"]["remotes"][0]["runs"]), (Vec::new(), &json!(1)));
    let newest = ada.git(["rev-parse", "refs/cbia/ledger"]);
    assert_eq!(bare.git(["rev-parse", "refs/cbia/ledgers/ada-example.org"]), newest);
    // What was seen further is not forgotten for what came in later.
    assert_eq!(ada.git(["rev-parse", "refs/cbia/seen/team/ada-example.org"]), newest);
}

#[test]
fn a_namespace_keeps_untrusted_writers_apart() {
    let (bare, ada) = team();
    let mallory = colleague("Mallory", &bare);
    mallory.git(["config", "cbia.cacheNamespace", "pulls"]);
    mallory.run();
    mallory.cbia(["push"]).ok();
    let names: Vec<String> = bare.refs("refs/cbia").into_iter().map(|(name, _)| name).collect();
    assert!(names.len() == 3 && names.iter().all(|name| name.starts_with("refs/cbia/ns/pulls/")), "{names:?}");
    assert_eq!(ada.run(), "executed");
    ada.cbia(["push"]).ok();
    let carol = colleague("Carol", &bare);
    carol.git(["config", "cbia.cacheNamespace", "pulls"]);
    bare.git(["for-each-ref"]);
    for (name, _) in bare.refs("refs/cbia/runs").into_iter().chain(bare.refs("refs/cbia/cache")) {
        bare.git(["update-ref", "-d", &name]);
    }
    assert_eq!(carol.run(), "replayed");
    let dave = colleague("Dave", &bare);
    assert_eq!(dave.run(), "executed");
    carol.cbia(["fetch"]).ok();
    assert_eq!(carol.cbia(["log"]).ok().stdout.lines().count(), 3);
}

#[test]
fn clones_of_one_writer_join_their_ledgers_when_they_push() {
    let (bare, ada) = team();
    let laptop = colleague("Ada", &bare);
    ada.run();
    laptop.write("data/words.txt", "three\n");
    laptop.run();
    ada.cbia(["push"]).ok();
    let ran = laptop.cbia(["push", "--json"]).ok();
    assert_eq!(ran.json()["result"]["pushes"], 2);
    assert_eq!(laptop.events(), ["admitted", "merged"]);
    ada.run();
    let ran = ada.cbia(["push"]).ok();
    assert!(ran.stdout.ends_with("in 2 tries\n"), "{}", ran.stdout);
    laptop.cbia(["fetch"]).ok();
    let events: Vec<Value> = laptop.cbia(["log", "--json"]).ok().json()["result"]["records"].as_array().unwrap().clone();
    assert_eq!(events.len(), 5);
    bare.fsck();
}

#[test]
fn a_signed_repository_uses_nothing_that_is_not_attested() {
    let (_bare, _, bob) = pushed();
    bob.git(["config", "cbia.trust", "signed"]);
    let ran = bob.cbia(["run", "--json"]).ok();
    assert_eq!((ran.gen_status().as_str(), ran.codes()), ("executed", vec!["shared-untrusted".to_owned()]), "{}", ran.stdout);
    assert_eq!(bob.refs("refs/cbia/remotes/team/cache").len(), 0, "entries are not attested, and not asked for");
    bob.git(["update-ref", "-d", &bob.only_ref("refs/cbia/runs").0.clone()]);
    bob.git(["config", "cbia.remoteTimeout", "60"]);
    assert_eq!(bob.cbia(["fetch", "--json"]).ok().codes(), ["shared-untrusted"]);
    assert_eq!(bob.refs("refs/cbia/runs").len(), 0);
}
