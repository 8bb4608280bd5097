//! `git cbia verify`: what it prints, and what it takes.

use serde_json::{Value, json};

use super::support::{NOTE, Repo};

fn committed() -> Repo {
    let repo = Repo::tiny();
    repo.run();
    repo.commit();
    repo
}

#[test]
fn a_commit_is_verified_by_its_content() {
    let repo = committed();
    let ran = repo.cbia(["verify", "--json"]).ok().json();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    let state = name.split('/').nth(3).unwrap();
    let head = repo.git(["rev-parse", "HEAD"]);
    let update = json!({"ref": null, "old": null, "new": head, "state_key": state, "run": run});
    let wanted =
        json!({"schema_version": "0.1.0", "command": "verify", "outcome": "verified", "updates": [update], "findings": []});
    assert_eq!(ran, wanted);
    let before = (repo.refs("refs/"), repo.files(&[]));
    let told = repo.cbia(["verify", "--explain"]).ok();
    let short = |text: &str| text[..12].to_owned();
    let wanted = format!(
        "{NOTE}: {}, the run of this state\nverified {}, state {}, run {}\n",
        short(&run),
        short(&head),
        short(state),
        short(&run)
    );
    assert_eq!((told.stdout, told.stderr), (wanted, String::new()));
    assert_eq!((repo.refs("refs/"), repo.files(&[])), before);
}

#[test]
fn a_run_is_verified_by_itself() {
    let repo = committed();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    let state = name.split('/').nth(3).unwrap();
    for given in [name.as_str(), state, &state[..12], &run, &run[..8], name.strip_prefix("refs/cbia/runs/").unwrap()] {
        let document = repo.cbia(["verify", "--json", "--run", given]).ok().json();
        assert_eq!(document["updates"][0]["run"], json!(run), "{given}");
    }
    repo.cbia(["verify", "--run", "0000000"]).exits(2);
    repo.cbia(["verify", "--run", "x"]).exits(2);
    repo.git(["update-ref", &name, &format!("{run}^")]);
    let ran = repo.cbia(["verify", "--json", "--run", state]).exits(1);
    assert_eq!(ran.codes(), ["run-incomplete"]);
}

#[test]
fn every_commit_of_a_range_is_verified_where_asked() {
    let repo = committed();
    let base = repo.git(["rev-parse", "HEAD"]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    let bad = repo.git(["rev-parse", "HEAD"]);
    repo.git(["revert", "--no-edit", "HEAD"]);
    let range = format!("{base}..HEAD");
    repo.cbia(["verify", &range]).ok();
    let ran = repo.cbia(["verify", "--json", "--each", &range]).exits(1);
    assert_eq!(ran.codes(), ["gen-edited"]);
    assert!(ran.finding("gen-edited")["message"].as_str().unwrap().starts_with(&format!("commit {}: ", &bad[..12])));
    repo.cbia(["verify", "--each"]).exits(2);
    repo.cbia(["verify", "a...b"]).exits(2);
    repo.cbia(["verify", "no-such-revision"]).exits(3);
}

#[test]
fn the_generator_is_executed_again_where_asked() {
    let repo = committed();
    let before = repo.refs("refs/");
    repo.cbia(["verify", "--rerun"]).ok();
    repo.cbia(["verify", "--rerun", "--run", &repo.only_ref("refs/cbia/runs").0]).ok();
    assert_eq!(repo.refs("refs/"), before);

    // Where nothing rests on a run there is nothing to execute, and what is refused stays refused.
    let repo = Repo::tiny();
    repo.commit();
    let ran = repo.cbia(["verify", "--json", "--rerun"]).exits(1);
    assert!(ran.codes().contains(&"gen-missing".to_owned()), "{}", ran.stdout);
}

#[test]
fn findings_are_printed_for_other_tools() {
    let repo = committed();
    repo.remove(NOTE);
    repo.commit();
    let sarif: Value = serde_json::from_str(&repo.cbia(["verify", "--format", "sarif"]).exits(1).stdout).unwrap();
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "gen-missing");
    assert_eq!(sarif["runs"][0]["invocations"][0]["exitCode"], 1);
    let junit = repo.cbia(["verify", "--format", "junit"]).exits(1).stdout;
    assert!(junit.contains("<testsuite name=\"verify\" ") && !junit.contains("CHECK"), "{junit}");
    assert!(junit.contains("<failure type=\"gen-missing\"") && junit.trim_end().ends_with("</testsuites>"), "{junit}");
    repo.cbia(["verify", "--json", "--format", "junit"]).exits(2);
}

#[test]
fn damaged_and_missing_objects_are_never_in_order() {
    let repo = committed();
    let (_, run) = repo.only_ref("refs/cbia/runs");
    let loose = |id: &str| repo.path().join(".git/objects").join(&id[..2]).join(&id[2..]);
    // Packed objects become loose ones, which can be taken away one by one.
    let packs: Vec<_> = std::fs::read_dir(repo.path().join(".git/objects/pack")).unwrap().map(|e| e.unwrap().path()).collect();
    for pack in packs {
        let aside = repo.outside().join(pack.file_name().unwrap());
        std::fs::rename(&pack, &aside).unwrap();
        if aside.extension().is_some_and(|end| end == "pack") {
            repo.git_with(["unpack-objects", "-q"], &std::fs::read(&aside).unwrap());
        }
    }
    repo.cbia(["verify"]).ok();
    for object in [
        "HEAD^{tree}",
        "HEAD:control/pipeline.json",
        "HEAD:data/words.txt",
        "HEAD:out/note.txt",
        &run,
        &format!("{run}:opa/decision.json"),
    ] {
        let id = repo.git(["rev-parse", object]);
        let aside = repo.outside().join("aside");
        std::fs::rename(loose(&id), &aside).unwrap();
        let ran = repo.cbia(["verify", "--json"]);
        // The decision is derived, not read: that the stored one is gone changes nothing.
        let derived = object.ends_with("decision.json");
        assert_eq!(ran.code, Some(i32::from(!derived)), "{object}: {ran:?}");
        std::fs::rename(&aside, loose(&id)).unwrap();
    }
}

/// What a tree comes to where no policy can be asked: an error unless it is told without deriving anything.
fn at_its_own_door(repo: &Repo, own_work: bool) -> Vec<String> {
    use git_cbia::policy::Cage;
    use git_cbia::store::{
        Store,
        attest::{Rederive, Trust},
    };
    use git_cbia::verify::{Evidence, Limits, Means, Subject, Update, Verifier};

    let store = Store::open(repo.path()).unwrap();
    let cage = Cage::new("/nonexistent".as_ref());
    let means = Means { cage: &cage, trust: Trust::Content, rederive: Rederive::Always, limits: Limits::default(), own_work };
    let new = Some(store.resolve("HEAD").unwrap());
    let update = Update { name: Some("refs/heads/main".into()), old: None, new };
    let subject = Subject { judged: true, ..Subject::default() };
    let outcome = Verifier::new(&store, Evidence::of(&store), means).update(&update, &subject).unwrap();
    outcome.findings.into_iter().map(|finding| finding.code.to_string()).collect()
}

#[test]
fn what_this_clone_worked_out_is_believed_at_its_own_door_only() {
    let repo = committed();
    let (name, run) = repo.only_ref("refs/cbia/runs");
    assert_eq!(at_its_own_door(&repo, true), [""; 0]);
    assert_ne!(at_its_own_door(&repo, false), [""; 0]);
    // Without its note the run is one like any other.
    let note = format!(".git/cbia/worked-out/{run}");
    let text = repo.read(&note);
    for other in ["", &text.replace(' ', "  "), &text.replacen(&text[..1], if text.starts_with('0') { "1" } else { "0" }, 1)] {
        repo.write(&note, other);
        assert_ne!(at_its_own_door(&repo, true), [""; 0], "{other}");
    }
    repo.write(&note, &text);
    assert_eq!(at_its_own_door(&repo, true), [""; 0]);
    // A note counts for the state that it was made for, whatever another name claims.
    let (state, executor) = name["refs/cbia/runs/".len()..].split_once('/').unwrap();
    repo.replace("data/words.txt", "one", "1");
    repo.commit();
    let refused = at_its_own_door(&repo, true);
    let other = repo.cbia(["status", "--json"]).json()["state_key"].as_str().unwrap().to_owned();
    assert_ne!(other, state);
    repo.git(["update-ref", &format!("refs/cbia/remotes/origin/runs/{other}/{executor}"), &run]);
    assert_ne!(at_its_own_door(&repo, true), [""; 0]);
    assert!(!refused.is_empty());
}

#[test]
fn at_its_own_door_too_every_generated_file_counts() {
    type Spoil<'s> = (&'s str, &'s dyn Fn(&Repo));
    let spoil: [Spoil<'_>; 6] = [
        ("edited", &|repo| repo.replace(NOTE, "brief", "Brief")),
        ("deleted", &|repo| std::fs::remove_file(repo.path().join(NOTE)).unwrap()),
        ("added", &|repo| repo.write("out/stray.md", "x")),
        ("executable", &|repo| drop(repo.git(["update-index", "--chmod=+x", NOTE]))),
        ("by another executor", &|repo| repo.write("control/runtime/gen_executor.json", r#"{"kind": "local", "version": "2"}"#)),
        ("of another input", &|repo| repo.write("control/more.txt", "x")),
    ];
    for (what, spoil) in spoil {
        let repo = committed();
        assert_eq!(at_its_own_door(&repo, true), [""; 0]);
        spoil(&repo);
        if what == "executable" {
            repo.git(["commit", "-qm", what]);
        } else {
            repo.commit();
        }
        assert_ne!(at_its_own_door(&repo, true), [""; 0], "{what}");
    }
}
