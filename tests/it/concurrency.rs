//! Many processes at once, and processes that are killed: nothing is lost, nothing is left locked, nothing is mixed.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::support::{EXECUTOR, NOTE, NOTE_TEXT, PROGRAM, Ran, Repo};

/// The program itself, without git in between, so that a signal reaches it.
fn program(repo: &Repo, arguments: &[&str]) -> Command {
    let mut command = repo.command(PROGRAM);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Starts all of them before it waits for any.
fn at_once(commands: Vec<Command>) -> Vec<Ran> {
    let children: Vec<Child> = commands.into_iter().map(|mut command| command.spawn().unwrap()).collect();
    children.into_iter().map(ended).collect()
}

/// The records that processes said they wrote.
fn acknowledged(runs: &[Ran]) -> BTreeSet<String> {
    runs.iter().map(|ran| ran.json()["record"].as_str().unwrap().to_owned()).collect()
}

/// The records that the ledger holds.
fn recorded(repo: &Repo) -> BTreeSet<String> {
    repo.git(["rev-list", "--first-parent", "refs/cbia/ledger"]).lines().map(str::to_owned).collect()
}

#[test]
fn misses_of_one_key_execute_it_once() {
    let repo = Repo::tiny();
    repo.commit();
    let trees: Vec<Repo> = (0..8)
        .map(|number| {
            repo.git(["worktree", "add", "-q", "--detach", &format!("../linked-{number}")]);
            repo.at(repo.outside().join(format!("linked-{number}")))
        })
        .collect();
    let runs = at_once(trees.iter().map(|tree| program(tree, &["run", "--json"])).collect());
    let mut came: Vec<String> = runs.iter().map(|ran| ran.clone().ok().gen_status()).collect();
    came.sort();
    assert_eq!(came, [vec!["executed"], vec!["replayed"; 7]].concat());
    assert_eq!(acknowledged(&runs).len(), 8);
    assert!(acknowledged(&runs).is_subset(&recorded(&repo)));
    let mut events = repo.events();
    events.sort();
    assert_eq!(events, [vec!["admitted"], vec!["replayed"; 7]].concat());
    for tree in &trees {
        assert_eq!(tree.read(NOTE), NOTE_TEXT);
        // Its record says what its own run ledger says.
        let ledger: Value = serde_json::from_str(&tree.read("execution/ledger/run.ledger.json")).unwrap();
        assert_eq!(ledger["entries"].as_array().unwrap().len(), 10);
    }
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());
}

#[test]
fn a_hundred_misses_of_one_key_start_one_program() {
    let repo = Repo::tiny();
    // So slow that all the others come while it is at work.
    let script = "sleep 2\nmkdir -p out execution/gen\nprintf 'made\\n' > out/note.txt\n\
        printf '{\"schema_version\":\"0.1.0\",\"phase\":\"GEN\",\"artifacts\":[{\"path\":\"out/note.txt\",\"bytes\":5,\"hash\":\"%s\"}],\"tool_versions\":{}}' \
        \"$(sha256sum < out/note.txt | cut -c1-64)\" > execution/gen/executor.report.json\n";
    repo.write("control/executors/x.sh", script);
    let command = ["/bin/sh", "control/executors/x.sh"];
    repo.write_json(
        EXECUTOR,
        &json!({"kind": "external", "version": "1", "timeout_s": 600, "command": command, "sandbox": {"require": false}}),
    );
    repo.commit();
    let runs = at_once((0..100).map(|_| program(&repo, &["run", "--json"])).collect());
    let mut came: Vec<String> = runs.iter().map(|ran| ran.clone().ok().gen_status()).collect();
    came.sort();
    assert_eq!(came, [vec!["executed"], vec!["replayed"; 99]].concat());
    assert!(runs.iter().all(|ran| ran.codes().is_empty()), "{runs:?}");
    assert_eq!(acknowledged(&runs).len(), 100);
    assert_eq!(repo.events(), [vec!["admitted"], vec!["replayed"; 99]].concat());
    // What was started is on record.
    let started = |id: &&String| repo.git(["show", &format!("{id}:record.json")]).contains("\"executor\": {");
    assert_eq!(acknowledged(&runs).iter().filter(started).count(), 1);
    assert_eq!(repo.read(NOTE), "made\n");
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());
}

#[test]
fn different_keys_at_once_lose_no_record() {
    let repo = Repo::tiny();
    repo.commit();
    let trees: Vec<Repo> = (0..8)
        .map(|number| {
            repo.git(["worktree", "add", "-q", "--detach", &format!("../linked-{number}")]);
            let tree = repo.at(repo.outside().join(format!("linked-{number}")));
            tree.write("data/words.txt", format!("{number}\n"));
            tree
        })
        .collect();
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        // In the third round somebody collects garbage beside them.
        let gc = (round == 2).then(|| {
            let mut command = repo.command("git");
            command.args(["gc", "-q"]).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let runs = at_once(trees.iter().map(|tree| program(tree, &["run", "--json"])).collect());
        for (number, ran) in runs.iter().enumerate() {
            let wanted = if round == 0 { "executed" } else { "replayed" };
            assert_eq!(ran.clone().ok().gen_status(), wanted, "round {round}, {number}");
            assert_eq!(trees[number].read(NOTE), format!("Be brief.\nwords: {number}\n"));
        }
        seen.extend(acknowledged(&runs));
        if let Some(gc) = gc {
            assert_eq!(ended(gc).code, Some(0));
        }
    }
    assert_eq!(seen.len(), 32);
    assert!(seen.is_subset(&recorded(&repo)));
    let events = repo.events();
    let count = |event: &str| events.iter().filter(|found| *found == event).count();
    assert_eq!((events.len(), count("admitted"), count("replayed")), (32, 8, 24));
    assert_eq!((repo.entries("GEN").len(), repo.refs("refs/cbia/runs").len()), (8, 8));
    repo.fsck();
    assert_eq!(repo.leftovers(), Vec::<String>::new());
}

#[test]
fn runs_in_one_work_tree_never_mix() {
    let repo = Repo::started();
    repo.run();
    let first = repo.files(&["execution/ledger/run.ledger.json"]);
    for round in 0..3 {
        repo.remove("artifacts");
        repo.remove("opa");
        let runs = at_once((0..6).map(|_| program(&repo, &["run", "--json"])).collect());
        for ran in &runs {
            assert_eq!(ran.clone().ok().gen_status(), "replayed", "round {round}");
        }
        assert_eq!(repo.files(&["execution/ledger/run.ledger.json"]), first);
    }
    assert_eq!(repo.events().len(), 1 + 3 * 6);
    repo.fsck();
}

/// A fixed sequence of numbers, the same in every test run: xorshift, from Marsaglia's paper of 2003.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Starts a run, lets it live for a while, and ends it with `signal` unless it has ended. What it said, if it came to an end of its own.
fn interrupted(repo: &Repo, signal: Signal, microseconds: u64) -> Option<Ran> {
    let mut child = program(repo, &["run", "--json"]).spawn().unwrap();
    std::thread::sleep(Duration::from_micros(microseconds));
    if child.try_wait().unwrap().is_none() {
        // It may have ended meanwhile.
        kill_process(Pid::from_child(&child), signal).ok();
    }
    let ran = ended(child);
    (ran.code == Some(0)).then_some(ran)
}

#[test]
fn a_run_that_is_killed_leaves_a_repository_that_goes_on() {
    for (signal, seed, rounds) in [(Signal::KILL, 0x9e37_79b9, 24), (Signal::TERM, 0x2545_f491, 12)] {
        let repo = Repo::started();
        repo.run();
        let mut numbers = Numbers(seed);
        let mut said = BTreeSet::new();
        let mut killed = 0;
        for round in 0..rounds {
            // Every other round has to execute, and the ones between replay into an empty folder.
            if round % 2 == 0 {
                repo.write("docs/handbook.md", format!("# Handbook\n\nAnswer within one working day.\nRound {round}.\n"));
                repin(&repo);
            } else {
                repo.remove("artifacts");
            }
            match interrupted(&repo, signal, numbers.below(60_000)) {
                Some(ran) => said.extend(acknowledged(&[ran])),
                None => killed += 1,
            }
            let ran = repo.cbia(["run", "--json"]).ok();
            said.extend(acknowledged(std::slice::from_ref(&ran)));
            let checklist = repo.read("artifacts/checklist.md");
            let wanted = format!("- [ ] Round {}.", round - round % 2);
            assert!(checklist.contains(&wanted), "round {round}: {checklist}");
            assert!(said.is_subset(&recorded(&repo)), "round {round}: an acknowledged record is lost");
        }
        assert!(killed > 0, "nothing was killed");
        repo.fsck();
        assert_eq!(repo.events().first().map(String::as_str), Some("admitted"));
        let locks: Vec<String> = repo.leftovers().into_iter().filter(|name| name.ends_with(".lock")).collect();
        assert_eq!(locks, Vec::<String>::new());
        // Objects that were being written have the names that git itself clears away.
        repo.git(["prune", "--expire=now"]);
        assert_eq!(repo.leftovers(), Vec::<String>::new());
    }
}

/// Pins the handbook as it is now.
fn repin(repo: &Repo) {
    let hash = git_cbia::document::digest::Digest::of(repo.read("docs/handbook.md").as_bytes());
    repo.set("control/authority.ledger.json", "/authority_set/0/hash/value", hash.to_string().into());
}

#[test]
fn locks_that_a_dead_process_left_are_no_obstacle() {
    let repo = Repo::tiny();
    repo.run();
    let key = repo.only_entry().0.rsplit('/').next().unwrap().to_owned();
    for name in ["ledger.lock".to_owned(), "stat.lock".to_owned(), format!("gen-{key}.lock")] {
        repo.write(&format!(".git/cbia/{name}"), "");
    }
    assert_eq!(repo.run(), "replayed");
    // A lock file of a ref, as git and gix leave one when they are killed: old enough, it is put aside.
    let lock = repo.path().join(".git/refs/cbia/ledger.lock");
    std::fs::write(&lock, "").unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
    std::fs::File::options().write(true).open(&lock).unwrap().set_modified(old).unwrap();
    assert_eq!(repo.run(), "replayed");
    assert!(!lock.exists());
    assert_eq!(repo.events().len(), 3);
}
