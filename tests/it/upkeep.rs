//! Upkeep: what may go goes and nothing else, damage is found and mended, and a bundle carries what a push would.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use git_cbia::store::Store;
use git_cbia::store::gc::{Keep, Plan, Rested};
use serde_json::Value;

use super::poison::{changed_tree, on_tree};
use super::support::{NOTE, NOTE_TEXT, PROGRAM, Ran, Repo};

/// Seconds in a day.
const DAY: i64 = 86_400;
const NOW: i64 = 1_700_000_000;

/// The same place, so many days before the time of the others.
fn days_ago(repo: &Repo, days: i64) -> Repo {
    repo.with("GIT_COMMITTER_DATE", Some(&format!("{} +0000", NOW - days * DAY)))
}

/// Runs with these words in the input. The run's ref.
fn run_with(repo: &Repo, words: &str) -> String {
    repo.write("data/words.txt", words);
    let before: BTreeSet<String> = runs(repo).into_iter().collect();
    repo.run();
    runs(repo).into_iter().find(|name| !before.contains(name)).unwrap()
}

fn runs(repo: &Repo) -> Vec<String> {
    repo.refs("refs/cbia/runs").into_iter().map(|(name, _)| name).collect()
}

fn gc(repo: &Repo, arguments: &[&str]) -> Ran {
    repo.cbia([&["gc", "--json"], arguments].concat()).ok()
}

/// The refs that a collection removed, or would.
fn removed(ran: &Ran) -> BTreeSet<String> {
    let document = ran.json();
    let removed = document["result"]["removed"].as_array().unwrap();
    removed.iter().map(|one| one["ref"].as_str().unwrap().to_owned()).collect()
}

fn clean(repo: &Repo) -> Value {
    let ran = repo.cbia(["fsck", "--json"]).ok();
    assert_eq!(ran.codes(), Vec::<String>::new());
    ran.json()["result"].clone()
}

/// A repository with four runs, from 400, 300, 200 and 100 days ago. The work tree is back at what was committed, which has no run.
fn aged() -> (Repo, Vec<String>) {
    let repo = Repo::tiny();
    repo.commit();
    let made = [400, 300, 200, 100].map(|days| run_with(&days_ago(&repo, days), &format!("{days}\n")));
    repo.git(["checkout", "-q", "."]);
    (repo, made.to_vec())
}

#[test]
fn what_is_old_goes_and_can_be_made_again() {
    let (repo, made) = aged();
    let (ledger, all) = (repo.only_ref("refs/cbia/ledger"), repo.refs("refs/cbia"));
    let ran = gc(&repo, &["--older-than", "250d", "--dry-run"]);
    assert_eq!(repo.refs("refs/cbia"), all);
    let planned = removed(&ran);
    assert!(planned.contains(&made[0]) && planned.contains(&made[1]), "{planned:?}");
    assert!(!planned.contains(&made[2]) && !planned.contains(&made[3]), "{planned:?}");
    assert!(planned.iter().any(|name| name.starts_with("refs/cbia/cache/")), "{planned:?}");
    assert!(ran.json()["result"]["bytes"].as_u64().unwrap() > 0);
    let ran = gc(&repo, &["--older-than", "250d"]);
    assert_eq!(removed(&ran), planned);
    // With the runs go the notes that this clone worked them out, and no others.
    let notes = std::fs::read_dir(repo.path().join(".git/cbia/worked-out")).unwrap();
    let notes: BTreeSet<String> = notes.map(|note| note.unwrap().file_name().into_string().unwrap()).collect();
    let tips: BTreeSet<String> = repo.refs("refs/cbia/runs").into_iter().map(|(_, tip)| tip).collect();
    assert_eq!((notes.len(), notes), (2, tips));
    let left: BTreeSet<String> = repo.refs("refs/cbia").into_iter().map(|(name, _)| name).collect();
    let wanted = all.iter().map(|(name, _)| name.clone()).filter(|name| !planned.contains(name)).collect();
    assert_eq!(left, wanted);
    assert_eq!(repo.only_ref("refs/cbia/ledger"), ledger);
    clean(&repo);
    assert_eq!(removed(&gc(&repo, &["--older-than", "250d"])), BTreeSet::new());
    // Whatever git collects now, everything that stayed can be replayed, and what went is made again, as it was.
    repo.git(["reflog", "expire", "--expire=now", "--all"]);
    repo.git(["gc", "-q", "--prune=now"]);
    repo.fsck();
    repo.write("data/words.txt", "200\n");
    assert_eq!(repo.run(), "replayed");
    repo.write("data/words.txt", "400\n");
    assert_eq!(repo.run(), "executed");
    assert!(repo.refs("refs/cbia/runs").iter().any(|one| all.contains(one) && one.0 == made[0]));
    clean(&repo);
}

#[test]
fn the_newest_runs_stay_by_number_and_nothing_is_old_by_itself() {
    let (repo, made) = aged();
    let ran = gc(&repo, &["--keep-runs", "1", "--older-than", "0s", "-n"]);
    assert_eq!(made.iter().filter(|name| removed(&ran).contains(*name)).count(), 3);
    // Where a rule keeps it, it stays.
    let ran = gc(&repo, &["--keep-runs", "3", "--older-than", "150d", "-n"]);
    assert_eq!(made.iter().filter(|name| removed(&ran).contains(*name)).collect::<Vec<_>>(), [&made[0]]);
    // 90 days by default.
    let ran = gc(&repo, &["-n"]);
    assert!(made.iter().all(|name| removed(&ran).contains(name)));
    // A replay is a record, and makes young.
    repo.write("data/words.txt", "400\n");
    assert_eq!(repo.run(), "replayed");
    repo.git(["checkout", "-q", "."]);
    let ran = gc(&repo, &["--keep-runs", "1"]);
    assert!(!removed(&ran).contains(&made[0]));
    assert_eq!(runs(&repo), [made[0].clone()]);
    clean(&repo);
}

#[test]
fn a_size_takes_the_oldest_first_and_only_what_gives_something_back() {
    let (repo, made) = aged();
    let size = |bytes: &str| removed(&gc(&repo, &["--max-size", bytes, "-n"]));
    assert_eq!(size("1g"), BTreeSet::new());
    let everything = size("0");
    assert!(everything.contains("refs/cbia/memo"), "{everything:?}");
    // The ledger holds every run, so that a run's ref gives nothing back; its cache entries do.
    let bytes = gc(&repo, &["--max-size", "0", "-n"]).json()["result"]["bytes"].as_u64().unwrap();
    let some = size(&(bytes / 2).to_string());
    assert!(some.len() < everything.len() && !some.is_empty(), "{some:?} of {everything:?}");
    assert!(!some.contains(&made[3]), "{some:?}");
    for wrong in ["x", "-1", "1t", "99999999999g"] {
        repo.cbia(["gc", "--max-size", wrong]).exits(2);
    }
    for wrong in ["x", "1", "1y", "d", ""] {
        repo.cbia(["gc", "--older-than", wrong]).exits(2);
    }
}

#[test]
fn what_something_rests_on_stays() {
    let (repo, made) = aged();
    let stays = |name: &String| !removed(&gc(&repo, &["--older-than", "0s", "-n"])).contains(name);
    assert!(!made.iter().any(stays));
    let put = |words: &str, branch: &str| {
        repo.write("data/words.txt", words);
        repo.git(["checkout", "-q", "-b", branch]);
        repo.git(["commit", "-q", "-a", "-m", branch]);
        repo.git(["checkout", "-q", "main"]);
    };
    // The state of a branch, of one that was fetched, and of a tag.
    put("400\n", "side");
    put("300\n", "theirs");
    repo.git(["update-ref", "refs/remotes/origin/theirs", "theirs"]);
    repo.git(["branch", "-q", "-D", "theirs"]);
    put("200\n", "old");
    repo.git(["tag", "v1", "old"]);
    repo.git(["branch", "-q", "-D", "old"]);
    assert_eq!(made.iter().map(stays).collect::<Vec<_>>(), [true, true, true, false]);
    // What lies in the work tree.
    repo.write("data/words.txt", "100\n");
    assert!(stays(&made[3]));
    repo.git(["checkout", "-q", "."]);
    repo.git(["update-ref", "-d", "refs/remotes/origin/theirs"]);
    assert_eq!(made.iter().map(stays).collect::<Vec<_>>(), [true, false, true, false]);
    // What a commit says that it was promoted from.
    let tip = repo.git(["rev-parse", &made[1]]);
    repo.git(["commit", "-q", "--allow-empty", "-m", &format!("Promote\n\nCbia-Run: {tip}")]);
    repo.git(["commit", "-q", "--allow-empty", "-m", "later"]);
    assert_eq!(made.iter().map(stays).collect::<Vec<_>>(), [true, true, true, false]);
    // An attestation, by its name alone.
    let keys = made[3].trim_start_matches("refs/cbia/runs/");
    repo.git(["tag", "-a", "-m", "x", "x", &made[3]]);
    repo.git(["update-ref", &format!("refs/cbia/attestations/{keys}/ssh-x"), "refs/tags/x"]);
    repo.git(["tag", "-d", "x"]);
    assert!(made.iter().all(stays));
    let document = gc(&repo, &["--older-than", "0s"]).json();
    assert_eq!((&document["result"]["runs_kept"], &document["result"]["runs_rested_on"]), (&4.into(), &4.into()));
    assert_eq!(repo.refs("refs/cbia/attestations").len(), 1);
    // With what it was made of.
    assert_eq!(repo.entries("GEN").len(), 4);
}

#[test]
fn what_is_used_after_the_plan_was_made_is_spared() {
    let (repo, made) = aged();
    let store = Store::open(repo.path()).unwrap();
    let plan = |store: &Store| store.plan_gc(Keep { since: Some(NOW), ..Keep::default() }, &Rested::default()).unwrap();
    let is_planned = |plan: &Plan, name: &str| plan.going.iter().any(|one| one.name.as_str() == name);
    let first = plan(&store);
    assert!(made.iter().all(|name| is_planned(&first, name)));
    // One is replayed, another attested, and a third is being generated again.
    repo.write("data/words.txt", "400\n");
    assert_eq!(repo.run(), "replayed");
    let keys = made[1].trim_start_matches("refs/cbia/runs/");
    repo.git(["tag", "-a", "-m", "x", "x", &made[1]]);
    repo.git(["update-ref", &format!("refs/cbia/attestations/{keys}/ssh-x"), "refs/tags/x"]);
    let key = repo.git(["log", "--format=%(trailers:key=Cbia-Cache-Key,valueonly)", "--grep=^Cbia-Phase: GEN", &made[2]]);
    let guard = store.lock(&format!("gen-{}", key.trim()), None).unwrap();
    let collected = Store::open(repo.path()).unwrap().collect(&first).unwrap();
    drop(guard);
    assert_eq!(runs(&repo).len(), 3);
    assert!(!runs(&repo).contains(&made[3]));
    let spared: Vec<&str> = collected.spared.iter().map(|name| name.as_str()).collect();
    assert!(made[..3].iter().all(|name| spared.contains(&name.as_str())), "{spared:?}");
    assert!(spared.contains(&format!("refs/cbia/cache/{}", key.trim()).as_str()), "{spared:?}");
    // A ref that points at something else now is not the one that was looked at.
    let second = plan(&store);
    assert!(is_planned(&second, &made[2]));
    repo.git(["update-ref", &made[2], &format!("{}~1", made[2])]);
    let collected = store.collect(&second).unwrap();
    assert_eq!(collected.spared.iter().map(|name| name.as_str()).collect::<Vec<_>>(), [&made[2]]);
    assert!(runs(&repo).contains(&made[2]));
}

#[test]
fn a_collection_among_runs_loses_nothing() {
    let repo = Repo::tiny();
    repo.commit();
    let trees: Vec<Repo> = (0..3)
        .map(|number| {
            repo.git(["worktree", "add", "-q", "--detach", &format!("../linked-{number}")]);
            repo.at(repo.outside().join(format!("linked-{number}")))
        })
        .collect();
    let start = |at: &Repo, arguments: &[&str]| -> Child {
        let mut command = at.command(PROGRAM);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut acknowledged, mut collected) = (0, 0);
    for round in 0..4 {
        let mut children = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            tree.write("data/words.txt", format!("{}\n", (round + number) % 3));
            children.push(start(tree, &["run", "--json"]));
            // To a collector of tomorrow all of it is old.
            children.push(start(&days_ago(&repo, -1), &["gc", "--older-than", "0s", "--json"]));
        }
        for child in children {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            acknowledged += usize::from(said.contains("\"command\": \"run\""));
            collected += said.matches("\"ref\": \"refs/cbia/runs/").count();
        }
    }
    assert!(collected > 0);
    assert_eq!((acknowledged, repo.events().len()), (12, 12));
    clean(&repo);
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());
    for (number, tree) in trees.iter().enumerate() {
        tree.write("data/words.txt", format!("{number}\n"));
        tree.run();
        assert_eq!(tree.run(), "replayed");
        assert!(tree.read(NOTE).ends_with(&format!("words: {number}\n")));
    }
}

#[test]
fn every_damage_is_found_by_itself_and_mended() {
    let gone = |repo: &Repo, id: &str| {
        unpack(repo);
        repo.remove(&format!(".git/objects/{}/{}", &id[..2], &id[2..]));
    };
    type Damage<'d> = (&'d str, &'d str, Box<dyn Fn(&Repo)>);
    let entry = |repo: &Repo| repo.only_entry();
    let cases: Vec<Damage<'_>> = vec![
        ("ref-malformed", "refs/cbia/stray", Box::new(|repo| drop(repo.git(["update-ref", "refs/cbia/stray", "HEAD"])))),
        ("ref-malformed", "refs/cbia/runs/x", Box::new(|repo| drop(repo.git(["update-ref", "refs/cbia/runs/x/y", "HEAD"])))),
        (
            "ref-malformed",
            "refs/cbia/cache/",
            Box::new(move |repo| {
                let (name, _) = entry(repo);
                drop(repo.git(["update-ref", &name, "HEAD^{tree}"]));
            }),
        ),
        ("ref-damaged", "refs/cbia/cache/", Box::new(move |repo| repo.write(&format!(".git/{}", entry(repo).0), "torn"))),
        ("ref-dangling", "refs/cbia/cache/", Box::new(move |repo| gone(repo, &entry(repo).1))),
        (
            "cache-entry-invalid",
            "refs/cbia/cache/",
            Box::new(move |repo| {
                let (name, id) = entry(repo);
                drop(repo.git(["update-ref", &name.replace(&name[16..20], "0000"), &id]));
            }),
        ),
        (
            "run-invalid",
            "refs/cbia/runs/",
            Box::new(|repo| {
                let (name, id) = repo.only_ref("refs/cbia/runs");
                drop(repo.git(["update-ref", &name, &format!("{id}~1")]));
            }),
        ),
        ("memo-invalid", "refs/cbia/memo", Box::new(|repo| drop(repo.git(["update-ref", "refs/cbia/memo", "HEAD"])))),
        // An answer to another question.
        (
            "memo-invalid",
            "refs/cbia/memo",
            Box::new(|repo| {
                let documents = memo(repo);
                let other = format!("00/{}", "0".repeat(64));
                let moved = documents.iter().map(|(name, text)| (format!("{other}/{}", &name[68..]), Some(text.as_str())));
                remember(repo, &moved.collect::<Vec<_>>());
            }),
        ),
        // Another answer to the same question, and another explanation.
        ("memo-invalid", "refs/cbia/memo", Box::new(|repo| altered(repo, "decision.json", "ALLOW", "DENY"))),
        (
            "memo-invalid",
            "refs/cbia/memo",
            Box::new(|repo| altered(repo, "decision.json", "\"rego_version\": 1", "\"rego_version\": 0")),
        ),
        ("memo-invalid", "refs/cbia/memo", Box::new(|repo| altered(repo, "explain.json", "\"allow\": true", "\"allow\": false"))),
        (
            "memo-invalid",
            "refs/cbia/memo",
            Box::new(|repo| {
                let (name, _) = &memo(repo)[0];
                remember(repo, &[(name.clone(), None)]);
            }),
        ),
        (
            "attestation-invalid",
            "refs/cbia/attestations/",
            Box::new(|repo| {
                let (name, _) = repo.only_ref("refs/cbia/runs");
                repo.git(["tag", "-a", "-m", "x", "x", &name]);
                repo.git(["update-ref", &format!("{}/ssh-x", name.replace("/runs/", "/attestations/")), "refs/tags/x"]);
                repo.git(["tag", "-d", "x"]);
            }),
        ),
        (
            "ledger-torn",
            "refs/cbia/ledger",
            Box::new(move |repo| {
                repo.run();
                gone(repo, &repo.git(["rev-parse", "refs/cbia/ledger:record.json"]));
            }),
        ),
        ("ref-damaged", "refs/cbia/ledger", Box::new(|repo| repo.write(".git/refs/cbia/ledger", ""))),
        ("ledger-rewound", "refs/cbia/ledger", Box::new(|repo| drop(repo.git(["update-ref", "-d", "refs/cbia/ledger"])))),
        (
            "ledger-rewound",
            "refs/cbia/ledger",
            Box::new(|repo| {
                repo.run();
                drop(repo.git(["update-ref", "refs/cbia/ledger", "refs/cbia/ledger~1"]));
            }),
        ),
    ];
    for (number, (code, at, damage)) in cases.into_iter().enumerate() {
        let repo = Repo::tiny();
        repo.commit();
        repo.run();
        clean(&repo);
        damage(&repo);
        let ran = repo.cbia(["fsck", "--json"]).exits(1);
        let found = ran.codes();
        assert_eq!(found, [code], "{number}: {}", ran.stdout);
        let finding = &ran.json()["findings"][0];
        assert!(finding["path"].as_str().unwrap().starts_with(at) && finding["hint"].is_string(), "{number}: {finding}");
        let before = repo.refs("refs/cbia/refused").len();
        let ran = repo.cbia(["fsck", "--repair", "--json"]).ok();
        assert_eq!(ran.json()["result"]["repaired"].as_array().unwrap().len(), 1, "{number}: {}", ran.stdout);
        let kept = repo.refs("refs/cbia/refused").len() - before;
        let noted = std::fs::read_dir(repo.path().join(".git/cbia/damaged")).map_or(0, Iterator::count);
        assert_eq!(kept + noted, usize::from(at != "refs/cbia/ledger"), "{number}");
        clean(&repo);
        repo.run();
        assert_eq!((repo.read(NOTE).as_str(), repo.run().as_str()), (NOTE_TEXT, "replayed"), "{number}");
        clean(&repo);
    }
}

/// The two documents of one remembered decision: name and text.
fn memo(repo: &Repo) -> Vec<(String, String)> {
    let names = repo.git(["ls-tree", "-r", "--name-only", "refs/cbia/memo"]);
    let names: Vec<&str> = names.lines().take(2).collect();
    assert!(names[0].len() > 68 && names[0][..67] == names[1][..67], "{names:?}");
    names.iter().map(|name| ((*name).to_owned(), repo.git(["show", &format!("refs/cbia/memo:{name}")]) + "\n")).collect()
}

/// Puts documents into the memo, or with `None` takes them out.
fn remember(repo: &Repo, changes: &[(String, Option<&str>)]) {
    let changes: Vec<(&str, Option<&str>)> = changes.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    let tree = changed_tree(repo, "refs/cbia/memo", &changes);
    repo.git(["update-ref", "refs/cbia/memo", &on_tree(repo, "refs/cbia/memo", &tree)]);
}

fn altered(repo: &Repo, which: &str, from: &str, to: &str) {
    let (name, text) = memo(repo).into_iter().find(|(name, _)| name.ends_with(which)).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replacen(from, to, 1);
    remember(repo, &[(name, Some(&text))]);
}

/// Appends a record that is the newest one with something else in its document, and in its commit what `commit` makes of that.
fn forge(repo: &Repo, record: &Value, commit: impl Fn(String) -> String) {
    let tip = repo.git(["rev-parse", "refs/cbia/ledger"]);
    let text = repo.git(["cat-file", "commit", &tip]);
    let tree = changed_tree(
        repo,
        &tip,
        &[("record.json", Some(std::str::from_utf8(&git_cbia::document::json::pretty(record)).unwrap()))],
    );
    let (_, rest) = text.split_once('\n').unwrap();
    let (parent, rest) = rest.split_once('\n').unwrap();
    assert!(parent.starts_with("parent "), "{text}");
    let text = format!("tree {tree}\nparent {tip}\n{}\n", commit(rest.to_owned()));
    let forged = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
    repo.git(["update-ref", "refs/cbia/ledger", &forged]);
}

/// Every place in a document that holds a SHA-256.
fn hashes(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| hashes(value, format!("{at}/{}", name.replace('/', "~1")), found));
        }
        Value::Array(entries) => entries.iter().enumerate().for_each(|(n, value)| hashes(value, format!("{at}/{n}"), found)),
        Value::String(text) if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) => found.push(at),
        _ => {}
    }
}

#[test]
fn no_hash_of_a_record_is_taken_at_its_word() {
    let repo = Repo::tiny();
    repo.commit();
    repo.run();
    let whole = repo.git(["rev-parse", "refs/cbia/ledger"]);
    let record: Value = serde_json::from_str(&repo.git(["show", "refs/cbia/ledger:record.json"])).unwrap();
    let journal = repo.read(".git/cbia/ledger.tips");
    let mut cases = Vec::new();
    hashes(&record, String::new(), &mut cases);
    // The keys, six links, the keys and the artifacts of the phases.
    assert!(cases.len() > 18, "{cases:?}");
    let changed = |at: &str, to: Value| {
        let mut record = record.clone();
        *record.pointer_mut(at).unwrap() = to;
        record
    };
    let flipped = |at: &str| {
        let was = record.pointer(at).unwrap().as_str().unwrap().to_owned();
        let is = was.chars().map(|c| if c == '0' { '1' } else { '0' }).collect::<String>();
        (changed(at, is.clone().into()), was, is)
    };
    let found = |what: &str, says: &str| {
        for arguments in [&["fsck", "--json"][..], &["fsck", "--repair", "--json"]] {
            let ran = repo.cbia(arguments).exits(1);
            assert_eq!(ran.codes(), ["ledger-broken"], "{what}: {}", ran.stdout);
            let message = ran.finding("ledger-broken")["message"].to_string();
            assert!(message.contains("is not what it speaks of") && message.contains(says), "{what}: {message}");
        }
        assert_ne!(repo.git(["rev-parse", "refs/cbia/ledger"]), whole, "nothing of a ledger is taken away");
        repo.git(["update-ref", "refs/cbia/ledger", &whole]);
        repo.write(".git/cbia/ledger.tips", &journal);
    };
    for at in &cases {
        // In the document alone, and where the commit says the same.
        let (forged, was, is) = flipped(at);
        forge(&repo, &forged, |commit| commit);
        found(at, "");
        forge(&repo, &forged, |commit| commit.replace(&was, &is));
        found(at, "");
    }
    let with = |name: &str, value: Value| {
        let mut record = record.clone();
        record[name] = value;
        record
    };
    forge(&repo, &changed("/event", "replayed".into()), |commit| commit);
    found("the event", "as Cbia-Event");
    forge(&repo, &record, |commit| commit.split_once('\n').unwrap().1.to_owned());
    found("a run that nothing holds", "is no parent of its commit");
    let log = serde_json::json!({"level": "none", "exit": "exit 0", "log": "execution/gen/executor.log"});
    forge(&repo, &with("executor", log), |commit| commit);
    found("a log", "it lacks execution/gen/executor.log");
    let reused = serde_json::json!([{"cache_key": "0".repeat(64), "run": record["run"], "artifacts": {}}]);
    forge(&repo, &with("reused", reused), |commit| commit);
    found("a result that was taken", "it takes artifacts from the result 000000");
    clean(&repo);
}

#[test]
fn a_ledger_goes_on_without_what_was_joined_and_is_no_record() {
    let repo = Repo::tiny();
    repo.commit();
    repo.run();
    let other = repo.clone_to("other").with("GIT_COMMITTER_EMAIL", Some("eve@example.org"));
    other.run();
    repo.git(["fetch", "-q", other.path().to_str().unwrap(), "refs/cbia/ledger:refs/cbia/seen/origin/good"]);
    let theirs = repo.git(["rev-parse", "refs/cbia/seen/origin/good"]);
    let evil = repo.git(["commit-tree", "-p", &theirs, "-m", "evil", "HEAD^{tree}"]);
    for name in ["refs/cbia/seen/origin/evil", "refs/cbia/remotes/origin/ledgers/evil"] {
        repo.git(["update-ref", name, &evil]);
    }
    // As an earlier version joined it, which asked only whether it could be walked.
    repo.git(["update-ref", "-d", "refs/cbia/seen/origin/good"]);
    repo.run();
    repo.cbia(["ledger", "merge"]).ok();
    repo.run();
    let spoilt = repo.git(["rev-parse", "refs/cbia/ledger"]);
    let records = |tip: &str| {
        let log = repo.git(["log", "--format=%T %an %ae %ad %cn %ce %cd %s", tip, "--not", &repo.only_ref("refs/cbia/runs").1]);
        let mut lines: Vec<String> = log.lines().filter(|line| !line.ends_with(" evil")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = records(&spoilt);
    let told = repo.cbia(["fsck", "--json"]).exits(1);
    assert_eq!(told.codes(), ["ledger-broken"; 3]);
    let ran = repo.cbia(["fsck", "--repair"]).ok();
    assert!(ran.stdout.contains(&format!("as refs/cbia/refused/ledger/{spoilt}")), "{}", ran.stdout);
    let tip = repo.git(["rev-parse", "refs/cbia/ledger"]);
    // Nothing that was recorded is lost, here or there, and nothing else is kept.
    assert_eq!(records(&tip), before);
    assert!(repo.git(["rev-list", &tip]).contains(&theirs) && !repo.git(["rev-list", &tip]).contains(&evil));
    assert_eq!(repo.refs("refs/cbia/refused").len(), 3);
    assert_eq!(repo.refs("refs/cbia/seen"), []);
    repo.run();
    clean(&repo);
    // Where nothing comes before it, the ledger begins again, and goes on with what came after.
    repo.git(["update-ref", "refs/cbia/ledger", &repo.git(["commit-tree", "-m", "evil", "HEAD^{tree}"])]);
    repo.remove(".git/cbia/ledger.tips");
    repo.git(["update-ref", "-d", "refs/cbia/ledger"]);
    repo.run();
    let (only, evil) =
        (repo.git(["cat-file", "commit", "refs/cbia/ledger"]), repo.git(["commit-tree", "-m", "evil", "HEAD^{tree}"]));
    let moved = only.replacen(&only.lines().nth(1).unwrap()[7..], &evil, 1) + "\n";
    let moved = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], moved.as_bytes());
    let whole = repo.git(["rev-parse", "refs/cbia/ledger"]);
    repo.git(["update-ref", "refs/cbia/ledger", &moved]);
    repo.remove(".git/cbia/ledger.tips");
    repo.cbia(["fsck", "--repair"]).ok();
    assert_eq!(repo.git(["rev-parse", "refs/cbia/ledger"]), whole);
    clean(&repo);
}

#[test]
fn what_is_lost_of_a_ledger_comes_back_from_a_remote_as_the_hint_says() {
    let repo = Repo::tiny();
    repo.commit();
    repo.run();
    repo.run();
    repo.run();
    repo.git(["init", "-q", "--bare", "../server.git"]);
    repo.git(["remote", "add", "origin", "../server.git"]);
    repo.cbia(["push"]).ok();
    unpack(&repo);
    let lost = repo.git(["rev-parse", "refs/cbia/ledger~1"]);
    repo.remove(&format!(".git/objects/{}/{}", &lost[..2], &lost[2..]));
    let ran = repo.cbia(["fsck", "--json"]).exits(1);
    let hint = ran.finding("ledger-broken")["hint"].as_str().unwrap().to_owned();
    let command = "git fetch --refetch REMOTE '+refs/cbia/ledgers/*:refs/cbia/incoming/ledgers/*'";
    assert!(hint.contains(command), "{hint}");
    let mut shell = repo.command("sh");
    shell.args(["-c", &command.replace("REMOTE", "origin")]);
    repo.finish(shell, b"").ok();
    clean(&repo);
    repo.cbia(["fetch"]).ok();
    assert_eq!(repo.refs("refs/cbia/incoming"), []);
}

#[test]
fn what_nobody_here_can_mend_is_said_and_left() {
    let repo = Repo::tiny();
    repo.commit();
    repo.run();
    let record = repo.git(["rev-parse", "refs/cbia/ledger:record.json"]);
    repo.run();
    repo.run();
    let path = format!(".git/objects/{}/{}", &record[..2], &record[2..]);
    unpack(&repo);
    let kept = std::fs::read(repo.path().join(&path)).unwrap();
    repo.remove(&path);
    let refs = repo.refs("refs/cbia");
    for arguments in [vec!["fsck", "--json"], vec!["fsck", "--repair", "--json"]] {
        let ran = repo.cbia(arguments).exits(1);
        assert!(ran.codes().iter().all(|code| code == "ledger-broken"), "{}", ran.stdout);
    }
    assert_eq!(repo.refs("refs/cbia"), refs);
    // In doubt nothing is collected.
    repo.cbia(["gc"]).exits(3);
    std::fs::write(repo.path().join(&path), kept).unwrap();
    clean(&repo);
}

/// Makes every object a file of its own.
fn unpack(repo: &Repo) {
    let folder = repo.path().join(".git/objects/pack");
    let Ok(entries) = std::fs::read_dir(&folder) else { return };
    let packs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    let aside = repo.outside().join("packs");
    std::fs::create_dir_all(&aside).unwrap();
    for path in packs {
        std::fs::rename(&path, aside.join(path.file_name().unwrap())).unwrap();
    }
    for entry in std::fs::read_dir(&aside).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            repo.git_with(["unpack-objects", "-q"], &std::fs::read(&path).unwrap());
        }
    }
}

fn stats(repo: &Repo) -> Value {
    repo.cbia(["cache", "stats", "--json"]).ok().json()["result"].clone()
}

#[test]
fn the_cache_is_counted() {
    let repo = Repo::tiny();
    assert_eq!((&stats(&repo)["entries"], &stats(&repo)["hit_rate"]), (&0.into(), &Value::Null));
    repo.commit();
    repo.run();
    for _ in 0..3 {
        repo.run();
    }
    let stats = stats(&repo);
    assert_eq!(stats["phases"]["GEN"], serde_json::json!({"entries": 1, "artifacts": 1, "bytes": NOTE_TEXT.len()}));
    assert_eq!(stats["entries"], repo.refs("refs/cbia/cache").len());
    assert_eq!((&stats["runs"], &stats["refs"]), (&1.into(), &repo.refs("refs/cbia").len().into()));
    assert_eq!((stats["hit_rate"].as_f64(), &stats["events"]["replayed"]), (Some(0.75), &3.into()));
    assert!(stats["disk_bytes"].as_u64().unwrap() > 0);
    let text = repo.cbia(["cache", "stats"]).ok().stdout;
    assert!(text.contains("4 times recorded as run: 75 % replayed\n"), "{text}");
}

#[test]
fn a_bundle_carries_what_a_push_would() {
    let repo = Repo::tiny();
    repo.commit();
    let old = run_with(&repo, "old\n");
    repo.git(["checkout", "-q", "."]);
    repo.run();
    let newest = runs(&repo).into_iter().find(|name| *name != old).unwrap();
    let file = repo.outside().join("x.bundle");
    let name = file.to_str().unwrap();
    let made = repo.cbia(["bundle", "create", name, "--json"]).ok().json()["result"].clone();
    assert_eq!((&made["runs"], &made["cache_entries"]), (&1.into(), &1.into()));
    let listed = repo.git(["bundle", "list-heads", name]);
    let names: Vec<&str> = listed.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert!(names.contains(&"refs/cbia/ledgers/ada-example.org") && names.contains(&newest.as_str()), "{names:?}");
    assert!(!names.contains(&old.as_str()) && names.len() == 3, "{names:?}");
    let before = repo.refs("refs");
    assert!(repo.cbia(["bundle", "verify", name]).ok().stdout.starts_with("verified: 1 run, 1 cache entry, "));
    assert_eq!(repo.refs("refs"), before);

    let clone = repo.clone_to("clone");
    // Unlike the executor, a bundle has nothing to say about where it is.
    let ran = clone.cbia(["bundle", "import", name, "--json"]).ok();
    assert_eq!((&ran.json()["result"]["runs"], &ran.json()["result"]["records"]), (&1.into(), &2.into()));
    assert_eq!(clone.run(), "replayed");
    assert_eq!((clone.read(NOTE).as_str(), clone.events()), (NOTE_TEXT, vec!["replayed".to_owned()]));
    assert_eq!(clone.refs("refs/cbia/remotes/bundle").len(), 3);
    assert_eq!(clone.refs("refs/cbia/runs"), repo.refs(&newest));
    clean(&clone);
    clone.fsck();
    // Once more is nothing new, and another bundle is no complaint about the first.
    assert_eq!(clone.cbia(["bundle", "import", name, "--json"]).ok().json()["result"]["runs"], 0);
    repo.cbia(["bundle", "create", name, "--all"]).ok();
    let ran = clone.cbia(["bundle", "import", name, "--json"]).ok();
    assert_eq!((ran.codes(), &ran.json()["result"]["runs"]), (Vec::new(), &1.into()));
    assert_eq!(clone.refs("refs/cbia/runs"), repo.refs("refs/cbia/runs"));
    // The one that is wanted, by its first digits.
    let key = old.trim_start_matches("refs/cbia/runs/");
    repo.cbia(["bundle", "create", name, &key[..12]]).ok();
    assert!(repo.git(["bundle", "list-heads", name]).contains(&old));
    assert_eq!(
        std::fs::read_dir(repo.outside())
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".cbia-") })
            .count(),
        0
    );
}

#[test]
fn a_bundle_that_is_not_whole_is_refused() {
    let repo = Repo::tiny();
    repo.cbia(["bundle", "create", "../x.bundle", "--all"]).exits(3);
    repo.commit();
    repo.run();
    let name = repo.outside().join("x.bundle").to_str().unwrap().to_owned();
    repo.cbia(["bundle", "create", &name, "--all"]).ok();
    let whole = std::fs::read(&name).unwrap();
    let clone = repo.clone_to("clone");
    let header = whole.windows(2).position(|two| two == b"\n\n").unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let text = String::from_utf8_lossy(&whole[..header]).into_owned();
    let entry = repo.only_entry().0;
    let other = entry.replace(&entry[16..24], "00000000");
    let renamed = [text.replace(&entry, &other).as_bytes(), &whole[header..]].concat();
    let cases = [
        (whole[..whole.len() - 7].to_vec(), "bundle-invalid"),
        (whole[..header + 2].to_vec(), "bundle-invalid"),
        (flipped(header + 200), "bundle-invalid"),
        (flipped(0), "bundle-invalid"),
        (b"".to_vec(), "bundle-invalid"),
        (renamed, "shared-refused"),
    ];
    for (number, (bytes, code)) in cases.into_iter().enumerate() {
        std::fs::write(&name, bytes).unwrap();
        for command in ["verify", "import"] {
            let ran = clone.cbia(["bundle", command, &name, "--json"]);
            assert_eq!(ran.code, Some(1), "{number} {command}: {}", ran.stdout);
            assert!(ran.codes().contains(&code.to_owned()), "{number} {command}: {}", ran.stdout);
            assert!(!clone.refs("refs/cbia/cache").iter().any(|(name, _)| *name == other), "{number}");
        }
    }
    // A repository is no bundle.
    clone.cbia(["bundle", "import", repo.path().to_str().unwrap()]).exits(1);
    clone.cbia(["bundle", "import", "nowhere"]).exits(3);
}

#[test]
fn a_remote_is_kept_small() {
    let (repo, made) = aged();
    repo.git(["init", "-q", "--bare", "../shared.git"]);
    repo.git(["remote", "add", "origin", "../shared.git"]);
    let bare = repo.at(repo.outside().join("shared.git"));
    repo.cbia(["push"]).ok();
    let all = bare.refs("refs/cbia");
    assert_eq!(all.len(), 9, "{all:?}");
    repo.cbia(["gc", "--remote"]).exits(2);
    let evict = |arguments: &[&str]| repo.cbia([&["gc", "--remote", "--json"], arguments].concat()).ok();
    assert_eq!(removed(&evict(&["--keep-runs", "4"])), BTreeSet::new());
    // The oldest is attested, and stays.
    let keys = made[0].trim_start_matches("refs/cbia/runs/");
    bare.git(["tag", "-a", "-m", "x", "x", &made[0]]);
    bare.git(["update-ref", &format!("refs/cbia/attestations/{keys}/ssh-x"), "refs/tags/x"]);
    let ran = evict(&["--keep-runs", "3", "--dry-run"]);
    assert_eq!(removed(&ran), BTreeSet::new());
    let ran = evict(&["--keep-runs", "2"]);
    assert!(removed(&ran).contains(&made[1]) && removed(&ran).len() == 2, "{:?}", removed(&ran));
    assert_eq!(bare.refs("refs/cbia").len(), 8);
    repo.git(["config", "cbia.maxRemoteRefs", "7"]);
    let ran = evict(&[]);
    assert!(removed(&ran).contains(&made[2]) && removed(&ran).len() == 2, "{:?}", removed(&ran));
    assert_eq!(runs(&bare), {
        let mut left = vec![made[0].clone(), made[3].clone()];
        left.sort();
        left
    });
    assert_eq!((bare.refs("refs/cbia/ledgers").len(), bare.refs("refs/cbia/attestations").len()), (1, 1));
    // What was evicted is not pushed again by itself.
    repo.cbia(["push"]).ok();
    assert_eq!(runs(&bare).len(), 2);
    assert_eq!(runs(&repo).len(), 4);
    for wrong in ["0", "many"] {
        repo.git(["config", "cbia.maxRemoteRefs", wrong]);
        repo.cbia(["gc", "--remote"]).exits(3);
    }
}
