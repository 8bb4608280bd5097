//! Whose word a run needs: the same list of signers decides at every door, and it is never that of what is pushed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::push::{Doors, WITH_RUNS, codes, next_state};
use super::support::{NOTE, PIPELINE, Repo};

pub const RUNNERS: &str = "control/runners.allowed_signers";
const MAINTAINERS: &str = "control/maintainers.allowed_signers";
/// The branch with all the evidence there is.
pub const WITH_ALL: &[&str] = &["main", "refs/cbia/runs/*:refs/cbia/runs/*", "refs/cbia/attestations/*:refs/cbia/attestations/*"];

/// The public half of a key, which is made when it is first asked for.
pub fn public(repo: &Repo, name: &str) -> String {
    let path = repo.outside().join(name);
    if !path.exists() {
        let mut command = repo.command("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&path);
        assert_eq!(repo.finish(command, b"").code, Some(0));
    }
    std::fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

/// A list of signers: principals with their keys.
pub fn list(repo: &Repo, signers: &[(&str, &str)]) -> String {
    signers.iter().map(|(principal, key)| format!("{principal} {}\n", public(repo, key))).collect()
}

/// Attests the newest run with a key. The attestation's ref.
pub fn attest(repo: &Repo, key: &str) -> String {
    public(repo, key);
    repo.git(["config", "gpg.format", "ssh"]);
    repo.git(["config", "user.signingKey", repo.outside().join(key).to_str().unwrap()]);
    repo.cbia(["attest", "--json"]).ok().json()["result"]["ref"].as_str().unwrap().to_owned()
}

fn trusting(doors: &Doors, needed: &str) {
    for repo in [&doors.client, &doors.server] {
        repo.git(["config", "cbia.trust", "signed"]);
        repo.git(["config", "cbia.attestations", needed]);
    }
}

/// Doors that ask for signatures of these runners, behind which the branch stood before.
fn signed_doors(signers: &[(&str, &str)]) -> Doors {
    let doors = Doors::after(|repo| repo.write(RUNNERS, list(repo, signers)));
    trusting(&doors, "1");
    doors
}

fn forget_attestations(repo: &Repo) {
    for (name, _) in repo.refs("refs/cbia/attestations") {
        repo.git(["update-ref", "-d", &name]);
    }
}

/// Another clone, which has the branch as it was, asks for signatures, and fetches: what it says, and whether it takes the run.
fn fetched(doors: &Doors, name: &str, run: &str) -> (Vec<String>, bool) {
    let clone = doors.client.clone_to(name);
    clone.git(["reset", "-q", "--hard", &doors.base]);
    clone.git(["config", "cbia.trust", "signed"]);
    let needed = doors.client.git(["config", "cbia.attestations"]);
    clone.git(["config", "cbia.attestations", &needed]);
    let ran = clone.cbia(["fetch", "--json"]);
    let known = clone.refs("refs/cbia/runs").iter().any(|(name, _)| name == run);
    let of_run = |finding: &&Value| finding["path"] == json!(run);
    let document = ran.json();
    let told = document["findings"].as_array().cloned().unwrap_or_default();
    (told.iter().filter(of_run).map(|f| f["code"].as_str().unwrap().to_owned()).collect(), known)
}

#[test]
fn a_run_counts_by_the_word_of_an_allowed_runner_at_every_door() {
    let doors = signed_doors(&[("ada@example.org", "ada"), ("bob@example.org", "bob")]);
    let repo = &doors.client;
    // What the branch held before is not judged again.
    repo.write("README.md", "More.\n");
    repo.commit();
    doors.accepts("nothing generated changes", &["origin", "main"]);
    let doors = Doors { base: repo.git(["rev-parse", "HEAD"]), ..doors };
    let repo = &doors.client;
    let (run, tip) = next_state(repo);
    repo.commit();
    let missing: &[&str] = &["attestation-missing"];
    let invalid: &[&str] = &["attestation-missing", "attestation-invalid"];
    doors.refuses("unsigned", WITH_RUNS, missing);
    assert_eq!(fetched(&doors, "c1", &run), (vec!["shared-untrusted".to_owned()], false));

    attest(repo, "eve");
    doors.refuses("by somebody who is not listed", WITH_ALL, invalid);
    assert_eq!(fetched(&doors, "c2", &run), (vec!["shared-untrusted".to_owned()], false));
    // As above, and the same runs are refused when they are asked for by name.
    let by_name = |repo: &Repo| repo.cbia(["verify", "--json", "--run", &run]);
    assert_eq!(by_name(repo).exits(1).codes(), invalid);
    assert_eq!(repo.cbia(["verify", "--json"]).exits(1).codes(), invalid);

    // Ada's word for another run, moved.
    forget_attestations(repo);
    let name = attest(repo, "ada");
    let good = repo.git(["rev-parse", &name]);
    let other = repo.clone_to("other");
    other.write("data/words.txt", "five\n");
    other.run();
    other.git(["config", "user.name", "Ada"]);
    let moved = attest(&other, "ada");
    repo.git(["fetch", "-q", other.path().to_str().unwrap(), &format!("{moved}:refs/other/tag")]);
    let moved = repo.git(["rev-parse", "refs/other/tag"]);
    repo.git(["update-ref", &name, &moved]);
    doors.refuses("a tag that was moved", WITH_ALL, invalid);
    assert_eq!(fetched(&doors, "c3", &run), (vec!["shared-untrusted".to_owned()], false));
    // One that only has another's name on it: the tag is kept as it is, and says another run.
    let text = repo.git(["cat-file", "tag", &good]) + "\n";
    let forged = repo.git_with(
        ["hash-object", "-t", "tag", "-w", "--literally", "--stdin"],
        text.replace("1700000000", "1700000001").as_bytes(),
    );
    repo.git(["update-ref", &name, &forged]);
    doors.refuses("a signature of something else", WITH_ALL, invalid);
    repo.git(["update-ref", &name, &good]);

    // One signer is one, with two keys or with one.
    trusting(&doors, "2");
    doors.refuses("one of two", WITH_ALL, missing);
    assert_eq!(fetched(&doors, "c4", &run), (vec!["shared-untrusted".to_owned()], false));
    attest(repo, "bob");
    assert_eq!(fetched(&doors, "c5", &run), (vec![], true));
    let before = doors.server.refs("refs/cbia/attestations");
    doors.accepts("two of two", &["origin", "main"]);
    // The client's hook brought the evidence there before.
    assert!(before.is_empty() && doors.server.refs("refs/cbia/attestations").len() == 2);
    assert!(doors.server.refs("refs/cbia/runs").contains(&(run.clone(), tip)));
    assert_eq!(by_name(repo).ok().codes(), Vec::<String>::new());
    assert_eq!(repo.cbia(["verify", "--json"]).ok().codes(), Vec::<String>::new());
}

#[test]
fn one_signer_with_two_keys_is_one() {
    let doors = signed_doors(&[("ada@example.org", "ada"), ("ada@example.org", "ada2"), ("bob@example.org", "bob")]);
    let repo = &doors.client;
    trusting(&doors, "2");
    let (run, _) = next_state(repo);
    repo.commit();
    attest(repo, "ada");
    attest(repo, "ada2");
    doors.refuses("one signer twice", WITH_ALL, &["attestation-missing"]);
    assert_eq!(fetched(&doors, "c1", &run), (vec!["shared-untrusted".to_owned()], false));
    attest(repo, "bob");
    doors.accepts("another one", &["origin", "main"]);
}

#[test]
fn signers_are_those_of_before_the_push() {
    let doors = signed_doors(&[("ada@example.org", "ada")]);
    let repo = &doors.client;
    repo.write(RUNNERS, list(repo, &[("eve@example.org", "eve")]));
    repo.run();
    repo.commit();
    attest(repo, "eve");
    doors.refuses("her own list", WITH_ALL, &["attestation-missing"]);
    // Nor is a list changed under the word of before, without a run.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.remove(RUNNERS);
    repo.commit();
    forget_attestations(repo);
    doors.refuses("no list", WITH_ALL, &["attestation-missing"]);
    repo.git(["reset", "-q", "--hard", "HEAD@{2}"]);
    next_word(repo, "five\n");
    attest(repo, "eve");
    doors.refuses("her own list, and what it would admit", WITH_ALL, &["attestation-missing", "attestation-invalid"]);
    // Where a new branch has no commit before, it is the main branch's.
    let refused = doors.push(&["origin", "main:refs/heads/other"]).exits(1);
    assert!(codes(&refused.stderr, "error: ").contains("attestation-missing"), "{}", refused.stderr);
    let refused = doors.push(&[&["--no-verify", "origin", "main:refs/heads/other"], &WITH_ALL[1..]].concat()).exits(1);
    assert!(codes(&refused.stderr, "remote: error: ").contains("attestation-missing"), "{}", refused.stderr);
    // A commit by itself is judged by what the remote's main branch was seen at, and where there is none, by its first parent.
    assert!(repo.cbia(["verify", "--json"]).exits(1).codes().contains(&"attestation-missing".to_owned()));
    repo.git(["update-ref", "-d", "refs/remotes/origin/main"]);
    assert!(repo.cbia(["verify", "--json", "HEAD~1"]).exits(1).codes().contains(&"attestation-missing".to_owned()));
    // No word for a run covers a change of the list: who attested the state has said nothing about it.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    next_word(repo, "five\n");
    repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada"), ("eve@example.org", "eve")]));
    repo.commit();
    attest(repo, "ada");
    doors.refuses("a list that grows", WITH_ALL, &["attestation-missing"]);
}

fn next_word(repo: &Repo, word: &str) {
    repo.write("data/words.txt", word);
    repo.run();
    repo.commit();
}

#[test]
fn artifacts_that_are_covered_one_by_one_need_the_same_word() {
    let doors = Doors::after(|repo| {
        repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada")]));
        repo.write("control/templates/two.txt.j2", "{{ inputs['data/two.txt'] }}");
        repo.write("data/two.txt", "a\n");
        repo.set(
            PIPELINE,
            "/gen/artifacts",
            json!([
                {"path": NOTE, "objectives": ["O-1"], "template": "control/templates/note.txt.j2"},
                {"path": "out/two.txt", "objectives": ["O-1"], "template": "control/templates/two.txt.j2"},
            ]),
        );
    });
    trusting(&doors, "1");
    let repo = &doors.client;
    repo.git(["checkout", "-q", "-b", "side"]);
    repo.write("data/two.txt", "b\n");
    repo.run();
    repo.commit();
    attest(repo, "ada");
    repo.git(["checkout", "-q", "main"]);
    next_word(repo, "seven\n");
    repo.git(["merge", "-q", "--no-edit", "side"]);
    // The merge's state has no run; one of the two runs that cover it is not attested.
    doors.refuses("a merge", WITH_ALL, &["attestation-missing"]);
    let tip = repo.git(["rev-parse", "main~1"]);
    repo.git(["checkout", "-q", &tip]);
    repo.cbia(["run"]).ok();
    attest(repo, "ada");
    repo.git(["checkout", "-q", "main"]);
    doors.accepts("a merge of attested work", &["origin", "main"]);
}

#[test]
fn maintainers_attest_the_new_state_and_no_other() {
    let mut doors = Doors::after(|repo| repo.write(MAINTAINERS, list(repo, &[("ada@example.org", "ada")])));
    let repo = doors.client.at(doors.client.path());
    // Her word for another state helps no other.
    attest(&repo, "ada");
    for (path, text) in [("schemas/more.schema.json", "{}\n"), ("policy/more.rego", "package more\n\nx := 1\n")] {
        repo.write(path, text);
        repo.run();
        repo.commit();
        doors.refuses("nobody", WITH_ALL, &["push-denied"]);
        let name = attest(&repo, "eve");
        doors.refuses("somebody else", WITH_ALL, &["push-denied"]);
        repo.git(["update-ref", "-d", &name]);
        attest(&repo, "ada");
        doors.accepts(path, &["origin", "main"]);
        doors.base = repo.git(["rev-parse", "HEAD"]);
    }
    for (path, text) in
        [(MAINTAINERS, list(&repo, &[("eve@example.org", "eve")])), ("policy/push/more.rego", "package more\n".into())]
    {
        repo.write(path, text);
        repo.commit();
        doors.refuses("those who have a word", WITH_ALL, &["attestation-missing"]);
        repo.git(["reset", "-q", "--hard", &doors.base]);
    }
    // Without a run of its state, nobody can have attested it.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("control/notes.md", "x\n");
    repo.commit();
    doors.refuses("no run", WITH_RUNS, &["push-denied"]);
}

#[test]
fn what_is_no_attestation_takes_nobodys_place() {
    let doors = signed_doors(&[("ada@example.org", "ada")]);
    let repo = &doors.client;
    next_state(repo);
    repo.commit();
    let name = attest(repo, "ada");
    let good = repo.git(["rev-parse", &name]);
    let of_eve = repo.git(["rev-parse", &attest(repo, "eve")]);
    let head = repo.git(["rev-parse", "HEAD"]);
    repo.git(["tag", "-m", "x", "mine"]);
    let tag = repo.git(["rev-parse", "refs/tags/mine"]);
    let before = doors.server.files(&[]);
    for (what, id) in [("a commit", &head), ("another's", &of_eve), ("a tag of something else", &tag)] {
        let refspec = format!("{id}:{name}");
        let client = doors.push(&["origin", &refspec]).exits(1);
        let server = doors.push(&["--no-verify", "origin", &refspec]).exits(1);
        let wanted = BTreeSet::from(["attestation-invalid".to_owned()]);
        assert_eq!(
            (codes(&client.stderr, "error: "), codes(&server.stderr, "remote: error: ")),
            (wanted.clone(), wanted),
            "{what}"
        );
    }
    assert_eq!(doors.server.files(&[]), before);
    // Anybody may attest; who counts is said by the list.
    doors.accepts("one that does not count", &["origin", "refs/cbia/attestations/*:refs/cbia/attestations/*"]);
    assert_eq!(doors.server.git(["rev-parse", &name]), good);
}

#[test]
fn a_setting_that_means_nothing_refuses_everything() {
    let doors = signed_doors(&[("ada@example.org", "ada")]);
    doors.client.write("README.md", "More.\n");
    doors.client.commit();
    for (key, value) in [("cbia.trust", "Signed"), ("cbia.attestations", "0")] {
        trusting(&doors, "1");
        for repo in [&doors.client, &doors.server] {
            repo.git(["config", key, value]);
        }
        let client = doors.push(&["origin", "main"]).exits(1);
        let server = doors.push(&["--no-verify", "origin", "main"]).exits(1);
        let wanted = BTreeSet::from(["setting-invalid".to_owned()]);
        assert_eq!(
            (codes(&client.stderr, "error: "), codes(&server.stderr, "remote: error: ")),
            (wanted.clone(), wanted.clone())
        );
        assert_eq!(doors.client.cbia(["verify", "--json"]).exits(3).codes(), ["setting-invalid"]);
        assert_eq!(doors.client.cbia(["fetch", "--json"]).exits(3).codes(), ["setting-invalid"]);
    }
}

#[test]
fn evidence_goes_before_the_branch_as_it_is_configured() {
    let doors = signed_doors(&[("ada@example.org", "ada")]);
    let repo = &doors.client;
    let (run, tip) = next_state(repo);
    repo.commit();
    attest(repo, "ada");
    repo.git(["config", "cbia.push", "never"]);
    let ran = doors.push(&["origin", "main"]).exits(1);
    assert!(ran.stderr.contains("git cbia: 1 ref verified, the evidence not uploaded: cbia.push is never\n"), "{}", ran.stderr);
    assert_eq!(
        codes(&ran.stderr, "remote: error: "),
        BTreeSet::from(["evidence-missing".to_owned(), "gen-unadmitted".to_owned()])
    );
    repo.git(["config", "cbia.push", "on-pre-push"]);
    repo.git(["config", "cbia.writer", "ci-1"]);
    let ran = doors.push(&["origin", "main"]).ok();
    assert!(ran.stderr.contains("git cbia: 1 ref verified, 3 refs of evidence uploaded first\n"), "{}", ran.stderr);
    assert!(doors.server.refs("refs/cbia/runs").contains(&(run, tip)));
    assert_eq!(doors.server.refs("refs/cbia/attestations"), repo.refs("refs/cbia/attestations"));
    assert_eq!(doors.server.git(["rev-parse", "refs/cbia/ledgers/ci-1"]), repo.git(["rev-parse", "refs/cbia/ledger"]));
    // Nothing is staged any more, and caches are not what a branch rests on.
    assert!(repo.refs("refs/cbia/outbox").is_empty() && doors.server.refs("refs/cbia/cache").is_empty());
    // What is remembered is not pushed again.
    repo.write("README.md", "More.\n");
    repo.commit();
    let ran = doors.push(&["origin", "main"]).ok();
    assert!(ran.stderr.contains("git cbia: 1 ref verified\n"), "{}", ran.stderr);
    // git cbia push and fetch carry attestations too.
    next_word(repo, "eight\n");
    attest(repo, "ada");
    let pushed = repo.cbia(["push", "--json"]).ok().json();
    assert_eq!((&pushed["result"]["runs"], &pushed["result"]["attestations"]), (&json!(1), &json!(1)), "{pushed:#}");
    let clone = repo.clone_to("clone");
    clone.git(["config", "cbia.trust", "signed"]);
    clone.git(["remote", "set-url", "origin", doors.server.path().to_str().unwrap()]);
    let taken = clone.cbia(["fetch", "--json"]).json();
    assert_eq!(taken["result"]["remotes"][0]["attestations"], json!(2), "{taken:#}");
    assert_eq!(clone.refs("refs/cbia/attestations"), repo.refs("refs/cbia/attestations"));
    // A miss asks for exactly the run, and takes it by the word that comes with it.
    let lazy = repo.clone_to("lazy");
    for (key, value) in [("cbia.trust", "signed"), ("cbia.remote", doors.server.path().to_str().unwrap())] {
        lazy.git(["config", key, value]);
    }
    let ran = lazy.cbia(["run", "--json"]).ok();
    assert_eq!(ran.gen_status(), "replayed", "{}", ran.stdout);
    assert_eq!(lazy.refs("refs/cbia/attestations").len(), 1);
}

#[test]
fn installed_hooks_judge_a_push_beside_the_hook_that_was_there() {
    use std::os::unix::fs::PermissionsExt as _;
    let repo = Repo::tiny();
    let server = repo.at(repo.outside().join("server.git"));
    repo.git(["init", "-q", "--bare", "-b", "main", server.path().to_str().unwrap()]);
    repo.git(["remote", "add", "origin", server.path().to_str().unwrap()]);
    let own = repo.path().join(".git/hooks/pre-push");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "#!/bin/sh\ncat >>\"$HOME/seen\"\n[ ! -e \"$HOME/refuse\" ]\n").unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    repo.cbia(["hooks", "install"]).ok();
    repo.cbia(["hooks", "install", "--server", server.path().to_str().unwrap()]).ok();
    repo.run();
    repo.commit();
    let push = |more: &[&str]| {
        let mut command = repo.command("git");
        command.args(["push", "origin", "main"]).args(more);
        repo.finish(command, b"")
    };
    let home = repo.outside().join("home");
    std::fs::write(home.join("refuse"), "").unwrap();
    push(&[]).exits(1);
    assert_eq!(server.refs("refs/heads"), []);
    std::fs::remove_file(home.join("refuse")).unwrap();
    let head = repo.git(["rev-parse", "HEAD"]);
    let ran = push(&[]).ok();
    assert!(ran.stderr.contains("1 ref verified"), "{}", ran.stderr);
    let seen = std::fs::read_to_string(home.join("seen")).unwrap();
    assert_eq!(seen, format!("refs/heads/main {head} refs/heads/main {}\n", "0".repeat(40)).repeat(2));
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    let wanted = BTreeSet::from(["gen-edited".to_owned()]);
    assert_eq!(codes(&push(&[]).exits(1).stderr, "error: "), wanted);
    assert_eq!(codes(&push(&["--no-verify"]).exits(1).stderr, "remote: error: "), wanted);
    assert_eq!(server.refs("refs/heads"), [("refs/heads/main".to_owned(), head)]);
}

#[test]
fn only_so_many_signatures_are_checked_in_one_push() {
    let doors = signed_doors(&[("ada@example.org", "ada"), ("bob@example.org", "bob")]);
    trusting(&doors, "2");
    let repo = &doors.client;
    next_state(repo);
    repo.commit();
    attest(repo, "ada");
    attest(repo, "bob");
    let push = |limit: &str| {
        doors.server.git(["config", "cbia.maxPushSignatures", limit]);
        doors.push(&[&["--no-verify", "origin"], WITH_ALL].concat())
    };
    // Two that are pushed, and the same two for the run that they attest.
    let cases: [(&str, &[&str]); 2] = [("1", &["attestation-missing", "push-too-large"]), ("3", &["push-too-large"])];
    for (limit, wanted) in cases {
        let ran = push(limit).exits(1);
        let wanted: BTreeSet<String> = wanted.iter().map(|code| (*code).to_owned()).collect();
        assert_eq!(codes(&ran.stderr, "remote: error: "), wanted, "{limit}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("more than {limit} signatures would have to be checked")), "{}", ran.stderr);
    }
    push("4").ok();

    // A maintainer's word counts like any other.
    let doors = Doors::after(|repo| repo.write(MAINTAINERS, list(repo, &[("ada@example.org", "ada")])));
    let repo = &doors.client;
    repo.write("schemas/more.schema.json", "{}\n");
    repo.run();
    repo.commit();
    attest(repo, "ada");
    let push = |limit: &str| {
        doors.server.git(["config", "cbia.maxPushSignatures", limit]);
        doors.push(&[&["--no-verify", "origin"], WITH_ALL].concat())
    };
    assert_eq!(codes(&push("1").exits(1).stderr, "remote: error: "), BTreeSet::from(["push-too-large".to_owned()]));
    push("2").ok();
}
