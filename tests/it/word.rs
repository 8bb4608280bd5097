//! `cbia.rederive = unattested`: the word of enough allowed runners stands for deriving a run again, theirs and nobody else's.
//!
//! That nothing was derived shows where deriving would refuse: the run is one that a signer vouched for although it does not hold.

use serde_json::json;

use super::poison::{changed_tree, on_tree};
use super::push::{Doors, codes, next_state};
use super::support::{EXECUTOR, NOTE, Repo};
use super::trust::{RUNNERS, WITH_ALL, attest, list, public};

const MISSING: &[&str] = &["attestation-missing"];

fn believing(doors: &Doors) {
    for repo in [&doors.client, &doors.server] {
        repo.git(["config", "cbia.rederive", "unattested"]);
    }
}

/// What `git cbia attest` would write for this run under this name, if it did not look at the run. The tag's id.
fn vouch(repo: &Repo, key: &str, run: &str, tip: &str) -> String {
    public(repo, key);
    repo.git(["config", "gpg.format", "ssh"]);
    repo.git(["config", "user.signingKey", repo.outside().join(key).to_str().unwrap()]);
    let mut keys = run.rsplit('/');
    let (executor, state) = (keys.next().unwrap(), keys.next().unwrap());
    let message = format!(
        "Attest the run {}\n\nCbia-Attestation: 0.1.0\nCbia-State-Key: {state}\nCbia-Executor-Key: {executor}\nCbia-Run: {tip}\n",
        &tip[..12]
    );
    let name = format!("cbia-attestation/{state}/{executor}");
    repo.git(["tag", "-s", "-m", &message, &name, tip]);
    let tag = repo.git(["rev-parse", &format!("refs/tags/{name}")]);
    repo.git(["tag", "-d", &name]);
    tag
}

/// A branch whose generated file was written by hand, with a run that says it was generated, which ada attested. The run's ref, its tip, the true
/// run's tip, and where ada's attestation of it is.
fn forged(doors: &Doors) -> [String; 4] {
    let repo = &doors.client;
    let (run, truth) = next_state(repo);
    let word = attest(repo, "ada");
    let tip = on_tree(repo, &truth, &changed_tree(repo, &truth, &[(NOTE, Some("by hand\n"))]));
    repo.git(["update-ref", &run, &tip]);
    repo.git(["update-ref", &word, &vouch(repo, "ada", &run, &tip)]);
    repo.write(NOTE, "by hand\n");
    repo.commit();
    [run, tip, truth, word]
}

#[test]
fn the_word_of_enough_runners_stands_for_deriving() {
    let doors = Doors::after(|repo| repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada"), ("bob@example.org", "bob")])));
    let repo = &doors.client;
    let [run, tip, truth, word] = forged(&doors);
    let derived: &[&str] = &["run-invalid", "gen-unadmitted"];
    doors.refuses("all runs are derived again", WITH_ALL, derived);

    believing(&doors);
    repo.git(["config", "cbia.attestations", "2"]);
    doors.server.git(["config", "cbia.attestations", "2"]);
    doors.refuses("one of two", WITH_ALL, derived);
    let of_bob = word.rsplit_once('/').unwrap().0.to_owned() + "/" + attested_by(repo, "bob", &truth).rsplit('/').next().unwrap();
    doors.refuses("one of two, and a word for another run", WITH_ALL, derived);
    repo.git(["update-ref", "-d", &of_bob]);
    for repo in [repo, &doors.server] {
        repo.git(["config", "cbia.attestations", "1"]);
    }

    let good = repo.git(["rev-parse", &word]);
    repo.git(["update-ref", "-d", &word]);
    let of_eve = attested_by(repo, "eve", &truth);
    repo.git(["update-ref", &of_eve, &vouch(repo, "eve", &run, &tip)]);
    doors.refuses("somebody who is not listed", WITH_ALL, derived);
    repo.git(["update-ref", "-d", &of_eve]);
    repo.git(["update-ref", &word, &good]);

    // A run that was not finished, and one of another state: the signer's word does not make them what they are called.
    let before = repo.refs("refs/cbia/runs").into_iter().find(|(name, _)| *name != run).unwrap().1;
    for (what, other, code) in [
        ("unfinished", format!("{truth}^"), "run-incomplete"),
        ("another state's", before, "run-renamed"),
        ("no phase", repo.git(["rev-parse", "HEAD"]), "run-incomplete"),
    ] {
        let other = match what {
            "no phase" => repo.git(["commit-tree", "-m", "x", &format!("{tip}^{{tree}}")]),
            _ => on_tree(repo, &other, &changed_tree(repo, &other, &[(NOTE, Some("by hand\n"))])),
        };
        repo.git(["update-ref", &run, &other]);
        repo.git(["update-ref", &word, &vouch(repo, "ada", &run, &other)]);
        doors.refuses(what, WITH_ALL, &[code, "gen-unadmitted"]);
    }
    repo.git(["update-ref", &run, &tip]);
    repo.git(["update-ref", &word, &good]);

    // A file that is not the run's, or an executor that is not: all is derived, and refused for what it is.
    repo.write(NOTE, "by another hand\n");
    repo.commit();
    doors.refuses("another file", WITH_ALL, derived);
    repo.git(["reset", "-q", "--hard", "HEAD~1"]);
    repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "2"}));
    repo.commit();
    doors.refuses("another executor", WITH_ALL, &["run-invalid", "gen-unadmitted"]);
    repo.git(["reset", "-q", "--hard", "HEAD~1"]);

    let range = format!("{}..HEAD", doors.base);
    let told = repo.cbia(["verify", &range]).ok();
    assert!(told.stderr.contains("the run was not derived again: enough signers attested it"), "{}", told.stderr);
    assert_eq!(repo.cbia(["verify", "--explain", "--json", &range]).exits(1).codes(), derived);
    assert!(repo.cbia(["verify", "--format", "sarif", &range]).exits(1).stdout.contains("run-invalid"));
    assert_eq!(repo.cbia(["verify", "--run", &run, "--json"]).exits(1).codes(), ["run-invalid"]);
    doors.accepts("ada's word", &["origin", "main"]);
    assert_eq!(doors.server.git(["rev-parse", &word]), good);
}

/// Makes `tip` the newest run again, attests it with a key, and puts everything back. The attestation's ref.
fn attested_by(repo: &Repo, key: &str, tip: &str) -> String {
    let state = repo.git(["log", "-1", "--format=%(trailers:key=Cbia-State-Key,valueonly)", tip]);
    let (run, stored) = repo.refs("refs/cbia/runs").into_iter().find(|(name, _)| name.contains(state.trim())).unwrap();
    repo.git(["update-ref", &run, tip]);
    let name = attest(repo, key);
    repo.git(["update-ref", &run, &stored]);
    name
}

#[test]
fn nobody_makes_themselves_a_runner_whose_word_stands_for_deriving() {
    // Where there is a list, it stays; where there is none, none is begun.
    for listed in [true, false] {
        let doors = Doors::after(|repo| {
            if listed {
                repo.write(RUNNERS, list(repo, &[("bob@example.org", "bob")]));
            }
        });
        believing(&doors);
        let repo = &doors.client;
        forged(&doors);
        repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada")]));
        repo.commit();
        doors.refuses("with her list", WITH_ALL, &["run-invalid", "gen-unadmitted", "attestation-missing"]);
        repo.git(["reset", "-q", "--hard", &doors.base]);
        repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada")]));
        repo.commit();
        doors.refuses("the list before", &["main"], MISSING);
        // Nor by a policy that would let it pass the next time.
        repo.git(["reset", "-q", "--hard", &doors.base]);
        repo.write("policy/push/all.rego", "package push\n\nallow := true\n");
        repo.commit();
        doors.refuses("a policy for pushes", &["main"], MISSING);
        repo.git(["reset", "-q", "--hard", "HEAD@{2}"]);
        // Nor on a branch of its own, however that begins.
        let root = repo.git(["commit-tree", "-m", "root", "HEAD^{tree}"]);
        for tip in ["HEAD", root.as_str()] {
            let refused = doors.push(&["--no-verify", "origin", &format!("{tip}:refs/heads/other")]).exits(1);
            assert!(codes(&refused.stderr, "remote: error: ").contains("attestation-missing"), "{listed}: {}", refused.stderr);
        }
    }
    // Nor where nothing was pushed yet: whoever administers the server takes the first list before it believes anybody.
    let doors = Doors::new();
    let repo = &doors.client;
    repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada")]));
    repo.commit();
    let empty = repo.at(repo.outside().join("empty.git"));
    repo.git(["clone", "-q", "--bare", doors.server.path().to_str().unwrap(), empty.path().to_str().unwrap()]);
    empty.git(["update-ref", "-d", "refs/heads/main"]);
    std::fs::create_dir_all(empty.path().join("hooks")).unwrap();
    std::fs::copy(doors.server.path().join("hooks/pre-receive"), empty.path().join("hooks/pre-receive")).unwrap();
    empty.git(["config", "cbia.rederive", "unattested"]);
    let address = empty.path().to_str().unwrap();
    let with_runs = ["--no-verify", address, "main", "refs/cbia/runs/*:refs/cbia/runs/*"];
    let refused = doors.push(&with_runs).exits(1);
    assert_eq!(codes(&refused.stderr, "remote: error: "), ["attestation-missing".to_owned()].into());
    repo.remove(RUNNERS);
    repo.write("policy/push/all.rego", "package push\n\nallow := true\n");
    repo.commit();
    let refused = doors.push(&with_runs).exits(1);
    assert_eq!(codes(&refused.stderr, "remote: error: "), ["attestation-missing".to_owned()].into());
    empty.git(["config", "cbia.rederive", "always"]);
    doors.push(&with_runs).ok();
}

#[test]
fn what_does_not_hold_is_not_signed() {
    let doors = Doors::after(|repo| repo.write(RUNNERS, list(repo, &[("ada@example.org", "ada")])));
    let repo = &doors.client;
    let [run, tip, truth, word] = forged(&doors);
    repo.git(["update-ref", "-d", &word]);
    assert_eq!(repo.cbia(["attest", &tip, "--json"]).exits(1).codes(), ["run-invalid"]);
    assert!(repo.refs("refs/cbia/attestations").is_empty());
    // A true run that somebody else worked out is derived first, and signed.
    let other = repo.clone_to("other");
    other.git(["config", "user.signingKey", repo.outside().join("ada").to_str().unwrap()]);
    other.git(["config", "gpg.format", "ssh"]);
    other.git(["fetch", "-q", repo.path().to_str().unwrap(), &format!("{truth}:{run}")]);
    assert!(!other.path().join(".git/cbia/worked-out").exists());
    other.cbia(["attest", &truth]).ok();
    assert_eq!(other.only_ref("refs/cbia/attestations").0, word);
}

#[test]
fn another_value_than_the_two_refuses_everything() {
    let doors = Doors::new();
    doors.client.write("README.md", "More.\n");
    doors.client.commit();
    for repo in [&doors.client, &doors.server] {
        repo.git(["config", "cbia.rederive", "never"]);
    }
    let client = doors.push(&["origin", "main"]).exits(1);
    let server = doors.push(&["--no-verify", "origin", "main"]).exits(1);
    for (told, begin) in [(client, "error: "), (server, "remote: error: ")] {
        assert_eq!(codes(&told.stderr, begin), ["setting-invalid".to_owned()].into());
        assert!(told.stderr.contains("cbia.rederive is 'never', which means nothing"), "{}", told.stderr);
    }
    assert_eq!(doors.client.cbia(["verify", "--json"]).exits(3).codes(), ["setting-invalid"]);
}
