//! A remote that lies: nothing of it is used, each lie is named, and the run goes on with what is here.

use super::super::poison::{blob, changed_tree, forged_run, on_tree, raw_tree};
use super::super::support::{NOTE, NOTE_TEXT, Repo};
use super::server::Server;
use super::{colleague, pushed};

/// The one run that the remote has: its ref, and its last phase commit.
fn run_of(bare: &Repo) -> (String, String) {
    bare.only_ref("refs/cbia/runs")
}

/// Leaves the remote only its run.
fn only_the_run(bare: &Repo) {
    let (entry, _) = bare.only_ref("refs/cbia/cache");
    bare.git(["update-ref", "-d", &entry]);
}

/// Leaves the remote only its cache entry.
fn only_the_entry(bare: &Repo) {
    let (run, _) = run_of(bare);
    bare.git(["update-ref", "-d", &run]);
}

/// Points the run at its last phase commit on another tree.
fn rewrite_run(bare: &Repo, changes: &[(&str, Option<&str>)]) {
    only_the_run(bare);
    let (name, tip) = run_of(bare);
    let tree = changed_tree(bare, &tip, changes);
    bare.git(["update-ref", &name, &on_tree(bare, &tip, &tree)]);
}

fn rewrite_entry(bare: &Repo, changes: &[(&str, Option<&str>)]) {
    only_the_entry(bare);
    let (name, tip) = bare.only_ref("refs/cbia/cache");
    let tree = changed_tree(bare, &tip, changes);
    bare.git(["update-ref", &name, &on_tree(bare, &tip, &tree)]);
}

/// Puts `tree` into the run's last tree under `name`.
fn with_folder(bare: &Repo, name: &str, tree: &str) {
    only_the_run(bare);
    let (run, tip) = run_of(bare);
    let listing = bare.git(["ls-tree", &tip]);
    let tree = bare.git_with(["mktree"], format!("{listing}\n040000 tree {tree}\t{name}\n").as_bytes());
    bare.git(["update-ref", &run, &on_tree(bare, &tip, &tree)]);
}

/// A tree with ten names of the same tree, ten deep: ten thousand million files, of eleven objects.
fn bomb(bare: &Repo) -> String {
    let mut id = blob(bare, "x");
    for depth in 0..10 {
        let mode = if depth == 0 { "100644" } else { "40000" };
        let names: Vec<String> = (0..10).map(|number| format!("f{number}")).collect();
        let entries: Vec<(&str, &str, &str)> = names.iter().map(|name| (mode, name.as_str(), id.as_str())).collect();
        id = raw_tree(bare, &entries);
    }
    id
}

/// A tree that holds a tree, and so on, this many deep.
fn shaft(bare: &Repo, depth: usize) -> String {
    let path = "d/".repeat(depth);
    let commands = format!(
        "commit refs/heads/shaft\ncommitter x <x@example.org> 0 +0000\ndata 0\nM 100644 inline {path}x\ndata 1\nx\ndone\n"
    );
    bare.git_with(["fast-import", "--quiet", "--done"], commands.as_bytes());
    let tree = bare.git(["rev-parse", "shaft^{tree}"]);
    bare.git(["update-ref", "-d", "refs/heads/shaft"]);
    tree
}

/// A pack of one object: the kind in git's numbers, the length that it claims, and the byte that it has.
fn claiming(kind: u8, objects: u32, mut length: u64) -> Vec<u8> {
    let mut pack = [b"PACK".as_slice(), &2_u32.to_be_bytes(), &objects.to_be_bytes()].concat();
    let mut byte = kind << 4 | (length & 15) as u8;
    length >>= 4;
    while length > 0 {
        pack.push(byte | 0x80);
        byte = (length & 0x7f) as u8;
        length >>= 7;
    }
    pack.push(byte);
    // As zlib has it: a header, one stored block, and the check sum.
    pack.extend(b"\x78\x01\x01\x01\x00\xfe\xffx\x00\x79\x00\x79");
    pack
}

/// A server that answers every fetch with this pack.
fn sending(bare: &Repo, pack: &[u8]) -> Server {
    let (evil, hook) = (bare.outside().join("evil.pack"), bare.outside().join("hook"));
    std::fs::write(&evil, pack).unwrap();
    std::fs::write(&hook, format!("#!/bin/sh\ncat > /dev/null\nexec cat '{}'\n", evil.display())).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bare.git(["config", "--global", "uploadpack.packObjectsHook", hook.to_str().unwrap()]);
    Server::start(bare)
}

#[test]
fn what_a_pack_claims_is_not_taken_at_its_word() {
    const HUGE: u64 = 10 << 30;
    let (blob, tree) = (3, 2);
    for (what, pack, says) in [
        ("a blob", claiming(blob, 1, HUGE), "bad object"),
        ("a tree, which git reads whole", claiming(tree, 1, HUGE), "Out of memory"),
        ("objects without number", claiming(blob, 0x7fff_fff0, 1), "memory"),
    ] {
        let (bare, _, bob) = pushed();
        let server = sending(&bare, &pack);
        bob.git(["remote", "set-url", "team", &server.url("team.git")]);
        let ran = bob.cbia(["run", "--json"]).ok();
        assert_eq!((ran.gen_status().as_str(), ran.codes()), ("executed", vec!["remote-unreachable".to_owned()]), "{what}");
        let message = ran.finding("remote-unreachable")["message"].to_string();
        assert!(message.contains(says), "{what}: {message}");
        assert_eq!((bob.read(NOTE).as_str(), bob.leftovers()), (NOTE_TEXT, Vec::new()), "{what}");
        bob.fsck();
    }
}

#[test]
#[ignore = "it makes ten thousand million bytes, and takes minutes"]
fn ten_gigabytes_of_nothing_are_not_unpacked() {
    let (bare, _, bob) = pushed();
    only_the_run(&bare);
    let file = bare.outside().join("zeros");
    std::fs::File::create(&file).unwrap().set_len(10 << 30).unwrap();
    let id = bare.git(["-c", "core.bigFileThreshold=16m", "hash-object", "-w", file.to_str().unwrap()]);
    let (name, tip) = run_of(&bare);
    let listing = bare.git(["ls-tree", &tip]);
    let tree = bare.git_with(["mktree"], format!("{listing}\n100644 blob {id}\tzoo\n").as_bytes());
    bare.git(["update-ref", &name, &on_tree(&bare, &tip, &tree)]);
    bare.git(["config", "core.bigFileThreshold", "16m"]);
    let server = Server::start(&bare);
    bob.git(["remote", "set-url", "team", &server.url("team.git")]);
    // As it is set, the lookup does not wait for so much; with all the time there is, nothing of it is unpacked.
    for (wait, code, says) in
        [("5", "remote-unreachable", "took longer than 5 s"), ("900", "shared-refused", "has 10737418240 bytes")]
    {
        bob.git(["config", "cbia.remoteTimeout", wait]);
        bob.write("data/words.txt", "one two\n");
        let ran = bob.cbia(["run", "--json"]).ok();
        assert_eq!(ran.gen_status(), "executed", "{}", ran.stdout);
        assert!(ran.finding(code)["message"].as_str().unwrap().contains(says), "{}", ran.stdout);
        assert_eq!((bob.read(NOTE).as_str(), bob.leftovers()), (NOTE_TEXT, Vec::new()));
        for prefix in ["refs/cbia/runs", "refs/cbia/cache"] {
            for (name, _) in bob.refs(prefix) {
                bob.git(["update-ref", "-d", &name]);
            }
        }
    }
    let size: u64 =
        bob.git(["count-objects", "-v"]).lines().find_map(|line| line.strip_prefix("size-pack: ")).unwrap().parse().unwrap();
    assert!(size < 20 << 10, "{size} KiB");
}

/// Removes the loose or packed object of `id` from a bare repository.
fn lose(bare: &Repo, id: &str) {
    let packs = bare.path().join("objects/pack");
    let aside = bare.outside().join("aside");
    std::fs::create_dir_all(&aside).unwrap();
    for entry in std::fs::read_dir(&packs).unwrap() {
        let path = entry.unwrap().path();
        std::fs::rename(&path, aside.join(path.file_name().unwrap())).unwrap();
    }
    for entry in std::fs::read_dir(&aside).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "pack") {
            bare.git_with(["unpack-objects", "-q"], &std::fs::read(path).unwrap());
        }
    }
    std::fs::remove_file(bare.path().join("objects").join(&id[..2]).join(&id[2..])).unwrap();
}

struct Lie {
    what: &'static str,
    tell: fn(&Repo),
    /// Settings of the clone that is lied to.
    settings: &'static [(&'static str, &'static str)],
    /// One of these: what its objects alone do not show is found when it is held against the state.
    codes: &'static [&'static str],
    says: &'static str,
}

const LIES: &[Lie] = &[
    Lie {
        what: "an altered artifact in a run",
        tell: |bare| rewrite_run(bare, &[(NOTE, Some("evil\n"))]),
        settings: &[],
        codes: &["run-invalid", "shared-refused"],
        says: "is refused",
    },
    Lie {
        what: "altered metadata in a run",
        tell: |bare| rewrite_run(bare, &[("execution/gen/outputs.json", Some("{}\n"))]),
        settings: &[],
        codes: &["run-invalid", "shared-refused"],
        says: "is refused",
    },
    Lie {
        what: "an artifact that is not there",
        tell: |bare| rewrite_run(bare, &[(NOTE, None)]),
        settings: &[],
        codes: &["run-invalid", "shared-refused"],
        says: "is refused",
    },
    Lie {
        what: "a snapshot of another state",
        tell: |bare| rewrite_run(bare, &[("inputs/data/words.txt", Some("evil\n"))]),
        settings: &[],
        codes: &["shared-refused"],
        says: "not the one it is stored under",
    },
    Lie {
        what: "an altered artifact in a cache entry",
        tell: |bare| rewrite_entry(bare, &[("artifacts/out/note.txt", Some("evil\n"))]),
        settings: &[],
        codes: &["shared-refused"],
        says: "does not have the hash and size that cache.meta.json gives",
    },
    Lie {
        what: "a file more in a cache entry",
        tell: |bare| rewrite_entry(bare, &[("artifacts/out/more.txt", Some("evil\n"))]),
        settings: &[],
        codes: &["shared-refused"],
        says: "which cache.meta.json does not name",
    },
    Lie {
        what: "a commit that is no run",
        tell: |bare| {
            only_the_run(bare);
            let (name, _) = run_of(bare);
            bare.git(["update-ref", &name, "refs/heads/main"]);
        },
        settings: &[],
        codes: &["shared-refused"],
        says: "is not one that git cbia writes",
    },
    Lie {
        what: "a blob in the place of a run",
        tell: |bare| {
            only_the_run(bare);
            let (name, _) = run_of(bare);
            bare.git(["update-ref", &name, &blob(bare, "evil\n")]);
        },
        settings: &[],
        codes: &["shared-refused"],
        says: "is a blob, not a commit",
    },
    Lie {
        what: "a cache entry in the place of a run",
        tell: |bare| {
            let (_, entry) = bare.only_ref("refs/cbia/cache");
            only_the_run(bare);
            let (name, _) = run_of(bare);
            bare.git(["update-ref", &name, &entry]);
        },
        settings: &[],
        codes: &["shared-refused"],
        says: "belongs to another run",
    },
    Lie {
        what: "an endless tree",
        tell: |bare| with_folder(bare, "zoo", &bomb(bare)),
        settings: &[],
        codes: &["shared-refused"],
        says: "more than 100000 files and folders",
    },
    Lie {
        what: "a tree that is deeper than any name",
        tell: |bare| with_folder(bare, "zoo", &shaft(bare, 1_000)),
        settings: &[],
        codes: &["shared-refused"],
        says: "more than 64 folders deep",
    },
    Lie {
        what: "a tree that is too deep for git",
        tell: |bare| with_folder(bare, "zoo", &shaft(bare, 10_000)),
        settings: &[],
        codes: &["remote-unreachable"],
        says: "cannot fetch from",
    },
    Lie {
        what: "a name that git would not check out",
        tell: |bare| {
            let tree = raw_tree(bare, &[("100644", "a\\b", &blob(bare, "x"))]);
            with_folder(bare, "zoo", &tree);
        },
        settings: &[],
        codes: &["shared-refused"],
        says: "a\\\\b",
    },
    Lie {
        what: "a tree that git itself refuses",
        tell: |bare| {
            let tree = raw_tree(bare, &[("100644", ".git", &blob(bare, "x"))]);
            with_folder(bare, "zoo", &tree);
        },
        settings: &[],
        codes: &["remote-unreachable"],
        says: "hasDotgit",
    },
    Lie {
        what: "an object that is not sent",
        tell: |bare| {
            only_the_run(bare);
            let (_, tip) = run_of(bare);
            let id = bare.git(["rev-parse", &format!("{tip}:execution/gen/outputs.json")]);
            lose(bare, &id);
        },
        settings: &[],
        codes: &["remote-unreachable"],
        says: "cannot fetch from",
    },
    Lie {
        what: "more bytes than are accepted",
        tell: |bare| {
            let noise: String = (0..200_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
            rewrite_run(bare, &[("zoo.txt", Some(&noise))]);
        },
        settings: &[("cbia.maxFetchBytes", "100k")],
        codes: &["remote-unreachable"],
        says: "the remote sent more than 102400 bytes",
    },
    Lie {
        what: "few bytes that become many",
        tell: |bare| rewrite_run(bare, &[("zoo.txt", Some(&"0".repeat(64 << 20)))]),
        settings: &[("cbia.maxFetchBytes", "1m")],
        codes: &["shared-refused"],
        says: "has 67108864 bytes, more than",
    },
];

#[test]
fn nothing_of_a_lie_is_used() {
    for lie in LIES {
        let (bare, _, bob) = pushed();
        bare.git(["config", "uploadpack.allowAnySHA1InWant", "true"]);
        (lie.tell)(&bare);
        for (key, value) in lie.settings {
            bob.git(["config", key, value]);
        }
        let ran = bob.cbia(["run", "--json"]).ok();
        assert_eq!(ran.gen_status(), "executed", "{}: {}", lie.what, ran.stdout);
        let codes = ran.codes();
        assert!(codes.len() == 1 && lie.codes.contains(&codes[0].as_str()), "{}: {}", lie.what, ran.stdout);
        let finding = ran.finding(&codes[0]);
        assert_eq!(finding["severity"], "warning", "{}", lie.what);
        assert!(finding.to_string().contains(lie.says), "{}: {finding}", lie.what);
        assert_eq!(bob.read(NOTE), NOTE_TEXT, "{}", lie.what);
        // What was made here is what is known here, and a second look changes nothing of it.
        assert_eq!(bob.run(), "replayed", "{}", lie.what);
        assert!(bob.read(NOTE) == NOTE_TEXT && !bob.has("zoo"));
        assert_eq!(bob.leftovers(), Vec::<String>::new(), "{}", lie.what);
        // What a remote offered may be kept as it was offered; it is told, and put aside where that is asked for.
        bob.git_fsck();
        bob.cbia(["fsck", "--repair"]).ok();
        bob.fsck();
    }
}

#[test]
fn somebody_elses_run_under_another_key_is_refused() {
    let (bare, ada, bob) = pushed();
    ada.write("data/words.txt", "evil\n");
    ada.run();
    ada.cbia(["push"]).ok();
    let (mine, other) = (run_name(&bob), bare.refs("refs/cbia/runs"));
    let evil = other.iter().find(|(name, _)| *name != mine).unwrap().1.clone();
    bare.git(["update-ref", &mine, &evil]);
    for (name, _) in bare.refs("refs/cbia/cache") {
        bare.git(["update-ref", "-d", &name]);
    }
    let ran = bob.cbia(["run", "--json"]).ok();
    assert_eq!(ran.gen_status(), "executed");
    let refused = ran.finding("shared-refused");
    assert!(refused["message"].as_str().unwrap().contains("belongs to another run"));
    assert!(refused["hint"].as_str().unwrap().ends_with(&format!("git update-ref -d {mine} {evil}")), "{refused}");
    assert_eq!(bob.read(NOTE), NOTE_TEXT);
}

/// The ref of the run of what is in the work tree.
fn run_name(repo: &Repo) -> String {
    let document = repo.cbia(["status", "--json"]).ok().json();
    format!("refs/cbia/runs/{}/{}", document["state_key"].as_str().unwrap(), document["executor_key"].as_str().unwrap())
}

#[test]
fn another_result_under_a_known_key_changes_nothing_and_both_writers_are_named() {
    let (bare, _, bob) = pushed();
    // Bob has a result of his own, and the remote has another one under the same names.
    bob.cbia(["run", "--offline"]).ok();
    let before = bob.refs("refs/cbia/runs");
    let eve = colleague("Eve", &bare);
    eve.cbia(["run", "--offline"]).ok();
    let (name, tip) = eve.only_ref("refs/cbia/runs");
    let forged = forged_run(&eve, &tip, NOTE, "evil\n");
    let (ledger, record) = eve.only_ref("refs/cbia/ledger");
    let text = eve.git(["cat-file", "commit", &record]).replace(&tip, &forged) + "\n";
    let document = eve.git(["show", &format!("{record}:record.json")]).replace(&tip, &forged) + "\n";
    let lying = eve.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
    let lying = on_tree(&eve, &lying, &changed_tree(&eve, &lying, &[("record.json", Some(&document))]));
    eve.git(["update-ref", &name, &forged]);
    eve.git(["update-ref", &ledger, &lying]);
    eve.git(["push", "-q", "-f", "team", &format!("{name}:{name}"), "refs/cbia/ledger:refs/cbia/ledgers/eve-example.org"]);

    for command in [&["fetch", "--json"][..], &["push", "--json"], &["push", "--all", "--json"]] {
        let ran = bob.cbia(command).exits(1);
        let message = ran.finding("shared-conflict")["message"].as_str().unwrap().to_owned();
        assert!(message.contains("Bob <bob@example.org>") && message.contains("Eve <eve@example.org>"), "{message}");
        assert_eq!(bob.refs("refs/cbia/runs"), before);
    }
    // Everything else was taken on both sides.
    assert_eq!(bare.refs("refs/cbia/ledgers/bob-example.org").len(), 1);
    assert_eq!(bare.git(["rev-parse", &name]), forged, "what is there is not overwritten either");
    assert_eq!((bob.run(), bob.read(NOTE)), ("replayed".to_owned(), NOTE_TEXT.to_owned()));
}

#[test]
fn what_is_no_run_at_the_place_of_one_is_told_with_what_removes_it() {
    let (bare, _, bob) = pushed();
    bob.cbia(["run", "--offline"]).ok();
    let (name, tip) = bob.only_ref("refs/cbia/runs");
    // As a server of before took it, which looked at the last commit alone.
    let empty = bare.git_with(["mktree"], b"");
    let squatting = on_tree(&bare, &tip, &empty);
    let carol = colleague("Carol", &bare);
    carol.cbia(["fetch"]).ok();
    bare.git(["update-ref", &name, &squatting]);
    // It goes on from what was fetched, as it did where only the last commit was looked at; a clone that has it takes no harm.
    let onward = bare.git(["commit-tree", "-p", &tip, "-m", "x", &empty]);
    bare.git(["update-ref", &name, &onward]);
    for _ in 0..2 {
        assert_eq!(carol.cbia(["fetch", "--json"]).exits(1).codes(), ["shared-refused"]);
    }
    bare.git(["update-ref", &name, &squatting]);
    for command in [&["fetch", "--json"][..], &["push", "--json"], &["push", "--all", "--json"]] {
        let ran = bob.cbia(command).exits(1);
        let finding = ran.finding("shared-refused");
        assert!(finding["message"].as_str().unwrap().contains("which is no run of that name"), "{finding}");
        let hint = finding["hint"].as_str().unwrap();
        assert!(hint.contains(&format!("git update-ref -d {name} {squatting};")), "{hint}");
        assert_eq!(bob.only_ref("refs/cbia/runs").1, tip);
    }
    bare.git(["update-ref", "-d", &name, &squatting]);
    bob.cbia(["push", "--all"]).ok();
    assert_eq!(bare.git(["rev-parse", &name]), tip);
    for repo in [&bob, &carol] {
        assert_eq!(repo.cbia(["fetch", "--json"]).ok().codes(), Vec::<String>::new());
    }
}

#[test]
fn what_is_no_record_does_not_become_part_of_a_ledger() {
    let (bare, _, bob) = pushed();
    bob.run();
    bob.cbia(["push"]).ok();
    let ledger = "refs/cbia/ledgers/bob-example.org";
    let good = bare.git(["rev-parse", ledger]);
    let evil = bare.git(["commit-tree", "-p", &good, "-m", "evil", &bare.git_with(["mktree"], b"")]);
    bare.git(["update-ref", ledger, &evil]);
    bob.run();
    let own = bob.git(["rev-parse", "refs/cbia/ledger"]);
    for command in ["fetch", "push"] {
        let ran = bob.cbia([command, "--json"]).exits(1);
        assert_eq!(ran.codes(), ["shared-refused"], "{command}");
        let finding = ran.finding("shared-refused");
        assert!(finding["message"].as_str().unwrap().contains("is no record"), "{finding}");
        let hint = finding["hint"].as_str().unwrap();
        assert!(hint.contains(&format!("git update-ref {ledger} {good} {evil}")), "{hint}");
        assert_eq!(hint.contains("cbia.writer"), command == "push", "{hint}");
        assert_eq!(bob.git(["rev-parse", "refs/cbia/ledger"]), own, "{command}");
    }
    bob.fsck();
    // Under another name it goes on, and what is wrong with the old one does not stand in its way.
    bob.git(["config", "cbia.writer", "bob"]);
    bob.cbia(["push"]).ok();
    assert_eq!(bare.git(["rev-parse", "refs/cbia/ledgers/bob"]), own);
    bob.git(["config", "--unset", "cbia.writer"]);
    bare.git(["update-ref", ledger, &good, &evil]);
    bob.cbia(["push"]).ok();
    assert_eq!(bare.git(["rev-parse", ledger]), own);
}

#[test]
fn a_ledger_without_records_is_an_empty_one() {
    let (bare, _, bob) = pushed();
    let opening = bare.git(["rev-list", "--max-parents=0", "--first-parent", "refs/cbia/ledgers/ada-example.org"]);
    bare.git(["update-ref", "refs/cbia/ledgers/eve", &opening]);
    // What git cbia doctor left on servers that protect ledgers, and what its first version left where they may be rewritten.
    for left in [opening.as_str(), "refs/heads/main"] {
        bare.git(["update-ref", "refs/cbia/ledgers/cbia-doctor", left]);
        let ran = bob.cbia(["fetch", "--json"]).ok();
        assert_eq!(ran.codes(), Vec::<String>::new(), "{left}");
    }
    bare.git(["update-ref", "-d", "refs/cbia/ledgers/cbia-doctor"]);
    bob.cbia(["fetch"]).ok();
    bob.run();
    assert_eq!(bob.cbia(["log"]).ok().stdout.lines().count(), 2);
    bob.fsck();
    // Nobody can take that name.
    bob.git(["config", "cbia.writer", "cbia-doctor"]);
    bob.cbia(["push"]).exits(3);
    // It begins with the commit that every ledger begins with.
    let text = bare.git(["cat-file", "commit", &opening]).replace("ledger opened", "ledger") + "\n";
    let other = bare.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
    bare.git(["update-ref", "refs/cbia/ledgers/eve", &other]);
    bob.git(["config", "cbia.writer", "bob"]);
    assert_eq!(bob.cbia(["fetch", "--json"]).exits(1).codes(), ["shared-refused"]);
}

#[test]
fn a_remote_that_replaces_what_it_had_is_told() {
    let (bare, _, bob) = pushed();
    bob.cbia(["fetch"]).ok();
    let (name, tip) = run_of(&bare);
    let tree = changed_tree(&bare, &tip, &[(NOTE, Some("evil\n"))]);
    bare.git(["update-ref", &name, &on_tree(&bare, &tip, &tree)]);
    let ran = bob.cbia(["fetch", "--json"]).exits(1);
    assert!(ran.finding("shared-conflict")["message"].as_str().unwrap().contains("which is written once"));
    assert_eq!(bob.only_ref("refs/cbia/runs").1, tip);
    assert_eq!(bob.run(), "replayed");
}

#[test]
fn a_ledger_that_is_none_is_refused() {
    let (bare, _, bob) = pushed();
    bare.git(["update-ref", "refs/cbia/ledgers/eve", "refs/heads/main"]);
    let ran = bob.cbia(["fetch", "--json"]).exits(1);
    assert!(ran.finding("shared-refused")["message"].as_str().unwrap().contains("is no record"));
    assert_eq!(bob.refs("refs/cbia/seen").len(), 1);
    assert_eq!(bob.cbia(["log"]).ok().stdout.lines().count(), 1);
}
