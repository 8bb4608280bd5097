//! The same inputs give the same object ids, whoever runs them, wherever, and whenever.

use std::os::unix::process::CommandExt as _;

use super::support::{NOTE, NOTE_TEXT, Repo};

/// What must not depend on anything but the inputs: the refs of runs and cache entries, and the tree of the memo.
fn identity(repo: &Repo) -> Vec<(String, String)> {
    let mut found = [repo.refs("refs/cbia/cache"), repo.refs("refs/cbia/runs")].concat();
    found.push(("memo".into(), repo.git(["rev-parse", "refs/cbia/memo^{tree}"])));
    found
}

#[test]
fn two_clones_of_one_state_get_the_same_object_ids() {
    let origin = Repo::started();
    origin.commit();
    let ada = origin.clone_to("a");
    let identities =
        [("GIT_AUTHOR_NAME", "Bö"), ("GIT_COMMITTER_NAME", "Bö"), ("GIT_AUTHOR_EMAIL", "b@x"), ("GIT_COMMITTER_EMAIL", "b@x")];
    let mut bo = origin.clone_to("another folder, far away");
    for (name, value) in identities {
        bo = bo.with(name, Some(value));
    }
    let surroundings = [
        ("GIT_AUTHOR_DATE", Some("2147483648 +1400")),
        ("GIT_COMMITTER_DATE", Some("2147483648 +1400")),
        ("TZ", Some("Pacific/Kiritimati")),
        ("LC_ALL", Some("tr_TR.UTF-8")),
        ("LANG", Some("tr_TR.UTF-8")),
        ("HOME", None),
        ("GIT_NAMESPACE", Some("elsewhere")),
    ];
    for (name, value) in surroundings {
        bo = bo.with(name, value);
    }
    for (name, value) in [("core.compression", "9"), ("core.abbrev", "4"), ("core.quotePath", "false"), ("gc.auto", "0")] {
        bo.git(["config", name, value]);
    }
    ada.run();
    bo.run();
    let mine = identity(&ada);
    assert_eq!(mine.len(), 4, "one run, one entry of GEN and one of CHECK, one memo");
    assert_eq!(identity(&bo), mine);
    let record = |repo: &Repo| repo.git(["rev-parse", "refs/cbia/ledger"]);
    assert_ne!(record(&ada), record(&bo), "records do say who and when");
    assert_eq!(ada.files(&[]), bo.files(&[]));
}

#[test]
fn the_umask_changes_nothing() {
    let masks = ["000", "022", "077"].map(|mask| {
        let repo = Repo::tiny();
        let mut command = repo.command("sh");
        command.args(["-c", &format!("umask {mask} && git cbia run && git cbia run")]);
        // Its own process group, so that the shell's umask is nobody else's.
        command.process_group(0);
        repo.finish(command, b"").ok();
        assert_eq!(repo.read(NOTE), NOTE_TEXT);
        repo.fsck();
        identity(&repo)
    });
    assert_eq!(masks[0], masks[1]);
    assert_eq!(masks[0], masks[2]);
}

#[test]
fn a_commit_gives_what_its_work_tree_gives() {
    let repo = Repo::tiny();
    repo.commit();
    let clone = repo.clone_to("clone");
    repo.run();
    clone.write("data/words.txt", "not this\n");
    clone.cbia(["run", "--commit", "HEAD"]).ok();
    assert_eq!(identity(&clone), identity(&repo));
    assert_eq!(clone.read(NOTE), NOTE_TEXT);
    assert_eq!(clone.read("data/words.txt"), "not this\n", "an input is never written");
}

#[test]
fn a_sha256_repository_works() {
    let repo = Repo::init(&["--object-format=sha256"]);
    repo.write_tiny();
    assert_eq!(repo.run(), "executed");
    repo.remove("out");
    assert_eq!(repo.run(), "replayed");
    assert_eq!(repo.read(NOTE), NOTE_TEXT);
    assert_eq!(repo.only_ref("refs/cbia/runs").1.len(), 64);
    repo.fsck();
    let sha1 = Repo::tiny();
    sha1.run();
    let names = |repo: &Repo| identity(repo).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&repo), names(&sha1), "keys do not depend on git's own hash");
}

/// The object ids of the tiny pipeline's run and cache entries, pinned.
///
/// If this fails, what a run emits has changed. That is a change of format: raise the `VERSION` of the phase whose output changed
/// (`src/phase/`), or `RUNNER_VERSION` (`src/executor/resolve.rs`) where evidence or commits changed, so that nobody replays the old form as
/// the new one. Then put the ids that the failure prints here.
#[test]
fn what_a_run_emits_is_pinned() {
    let repo = Repo::tiny();
    repo.run();
    let told: Vec<String> = identity(&repo).into_iter().map(|(name, id)| format!("{id} {name}")).collect();
    let golden = [
        "2fe7486731f86d75772594e69bbb830259278721 refs/cbia/cache/58e2885bd885b70f3d303422bd0a018e7905558e01a608a1ac8702df1f81e459",
        "3b6307335c682da6847131a21bfa88e389c4267c refs/cbia/cache/7c996bb743114fd12d7a9483cb9909f24a6120c0bb3b0af065bf6988d0e63b70",
        "5c64375e05aa2f19bb6fc738b8da9a1418f2ffe1 refs/cbia/runs/600709675b2e5f31811ffb7bbb13f53b0da6ce600f61d0dc2986d37ed6260f87/ef9da364b4db36aeea0207833af87732c83f93ba15f7930c6ef1e6104c8d30ac",
        "4937304e46c9653147741d9a0e2ed5de2d049e8b memo",
    ];
    assert_eq!(
        told, golden,
        "what a run emits has changed: raise the VERSION of the phase, or RUNNER_VERSION in src/executor/resolve.rs, then pin the new ids"
    );
}
