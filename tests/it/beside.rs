//! What changes beside artifacts that no run of their own state covers: they count as they are only where that makes no difference to them.

use std::collections::BTreeSet;

use serde_json::json;

use super::push::{Doors, WITH_RUNS, codes};
use super::support::{EXECUTOR, LEDGER, NOTE, PIPELINE, Repo};

const TWO: &str = "out/two.txt";

/// Two artifacts, each with a template and an input of its own.
fn two(repo: &Repo) {
    repo.write("control/templates/two.txt.j2", "{{ inputs['data/two.txt'] }}");
    repo.write("data/two.txt", "a\n");
    repo.write("data/more.txt", "nobody reads this\n");
    let artifact = |path: &str, template: &str| json!({"path": path, "objectives": ["O-1"], "template": template});
    repo.set(
        PIPELINE,
        "/gen/artifacts",
        json!([artifact(NOTE, "control/templates/note.txt.j2"), artifact(TWO, "control/templates/two.txt.j2")]),
    );
}

fn run_and_commit(repo: &Repo) {
    repo.run();
    repo.commit();
}

#[test]
fn what_a_generator_may_see_was_seen_as_it_is() {
    type Change<'a> = &'a dyn Fn(&Repo);
    let cases: [(&str, Change<'_>, &[&str]); 6] = [
        ("an authority's title", &|r| r.set(LEDGER, "/authority_set/0/title", json!("Law")), &["gen-stale-authority"]),
        (
            "a place that a template shows",
            &|r| {
                r.write("docs/law.md", "Be brief.\n");
                r.set(LEDGER, "/authority_set/0/source/locator", json!("docs/law.md"));
            },
            &["gen-stale-authority"],
        ),
        ("a template that another reads", &|r| r.write("control/templates/part.j2", "other\n"), &["gen-stale-input"]),
        ("an input that is gone", &|r| r.remove("data/more.txt"), &["gen-stale-input"]),
        ("an input that came", &|r| r.write("data/new.txt", "x\n"), &["gen-stale-input"]),
        (
            "a pattern that matches less",
            &|r| r.set(PIPELINE, "/inputs", json!(["data/words.txt", "data/two.txt"])),
            &["gen-stale-input"],
        ),
    ];
    let doors = Doors::after(|repo| {
        two(repo);
        repo.write("control/templates/part.j2", "part\n");
        repo.write("control/templates/two.txt.j2", "{% include 'control/templates/part.j2' %}{{ inputs['data/two.txt'] }}");
    });
    for (what, change, wanted) in cases {
        change(&doors.client);
        doors.client.commit();
        doors.refuses(what, WITH_RUNS, wanted);
        doors.client.git(["reset", "-q", "--hard", &doors.base]);
    }
    // Where no template reads another, what lies beside them makes no difference.
    let doors = Doors::after(two);
    doors.client.write("control/templates/unused.j2", "x\n");
    doors.client.commit();
    doors.accepts("a template that nobody uses", &["origin", "main"]);
}

#[test]
fn the_scripts_and_the_configuration_of_an_executor_are_its_own() {
    let doors = Doors::after(|repo| {
        two(repo);
        repo.write("control/executors/gen_local.py", include_str!("../../control/executors/gen_local.py"));
        repo.write("control/executors/words.py", "more = 1\n");
        let command = ["/usr/bin/python3", "control/executors/gen_local.py"];
        repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "1", "command": command}));
    });
    doors.client.write("control/executors/words.py", "more = 2\n");
    doors.client.commit();
    doors.refuses("a module beside the script", WITH_RUNS, &["gen-stale-executor"]);
    doors.client.git(["reset", "-q", "--hard", &doors.base]);
    doors.client.remove(EXECUTOR);
    doors.client.commit();
    doors.refuses("no configuration any more", WITH_RUNS, &["gen-stale-executor"]);
}

#[test]
fn a_merge_does_not_keep_what_one_side_made_anew() {
    let doors = Doors::after(|repo| {
        two(repo);
        // Both artifacts show the words.
        repo.write("control/templates/two.txt.j2", "{{ inputs['data/two.txt'] }}{{ inputs['data/words.txt'] }}");
    });
    let repo = &doors.client;
    repo.git(["checkout", "-q", "-b", "side"]);
    repo.write("data/words.txt", "seven\n");
    run_and_commit(repo);
    repo.git(["checkout", "-q", "main"]);
    repo.write("data/more.txt", "nobody at all\n");
    run_and_commit(repo);
    repo.git(["merge", "-q", "--no-edit", "side"]);
    repo.git(["checkout", "-q", &doors.base, "--", TWO]);
    repo.git(["commit", "-q", "--amend", "--no-edit"]);
    doors.refuses("one of two as it was before", WITH_RUNS, &["gen-stale-input"]);
    repo.git(["checkout", "-q", "side", "--", TWO]);
    repo.git(["commit", "-q", "--amend", "--no-edit"]);
    doors.accepts("both as one side made them, and an input of the other that nobody reads", &["origin", "main"]);
}

#[test]
fn the_policy_is_asked_of_what_a_merge_brings_together() {
    let at_most = |count: usize| {
        format!("package assurance\n\ndefault allow := false\n\nallow if count(input.artifact_hashes) < {count}\n")
    };
    let doors = Doors::after(|repo| {
        two(repo);
        repo.write("policy/assurance.rego", at_most(4));
    });
    let repo = &doors.client;
    let add = |name: &str| {
        let path = format!("out/{name}.txt");
        let mut pipeline: serde_json::Value = serde_json::from_str(&repo.read(PIPELINE)).unwrap();
        let artifact = json!({"path": path, "objectives": ["O-1"], "template": "control/templates/two.txt.j2"});
        pipeline["gen"]["artifacts"].as_array_mut().unwrap().push(artifact);
        repo.write_json(PIPELINE, &pipeline);
        run_and_commit(repo);
        pipeline
    };
    repo.git(["checkout", "-q", "-b", "side"]);
    add("three");
    repo.git(["checkout", "-q", "main"]);
    let mut pipeline = add("four");
    repo.finish(
        {
            let mut merge = repo.command("git");
            merge.args(["merge", "-q", "--no-edit", "-X", "ours", "side"]);
            merge
        },
        b"",
    );
    let third = json!({"path": "out/three.txt", "objectives": ["O-1"], "template": "control/templates/two.txt.j2"});
    pipeline["gen"]["artifacts"].as_array_mut().unwrap().push(third);
    repo.write_json(PIPELINE, &pipeline);
    repo.commit();
    assert_eq!(repo.cbia(["run", "--dry-run", "--json"]).code, Some(0));
    doors.refuses("four artifacts", WITH_RUNS, &["state-denied"]);

    // Nor is the rule that forbids it taken away in the same push.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("policy/assurance.rego", at_most(5));
    add("three");
    doors.accepts("a rule that was not needed yet", &["origin", "main"]);
    let doors = Doors { base: repo.git(["rev-parse", "HEAD"]), client: repo.clone(), server: doors.server.clone() };
    repo.write("policy/assurance.rego", at_most(6));
    add("five");
    add("six");
    doors.refuses("taken away and used", WITH_RUNS, &["policy-weakened"]);
}

#[test]
fn old_policies_judge_by_the_executor_that_made_what_there_is() {
    let kernel = |rules: &str| {
        format!("package control.kernel\n\ndefault allow := false\n\nallow if {{\n\tinput.authority_ledger.frozen\n{rules}}}\n")
    };
    let local = "\tinput.gen_executor.kind == \"local\"\n";
    let few = "\tcount(input.objectives) < 2\n";
    let with = |rules: &str| {
        let rules = rules.to_owned();
        Doors::after(move |repo| {
            repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "1"}));
            repo.write("policy/kernel.rego", kernel(&rules));
        })
    };
    let more = |repo: &Repo| {
        let mut objectives: serde_json::Value = serde_json::from_str(&repo.read("control/objectives.json")).unwrap();
        let mut second = objectives[0].clone();
        second["id"] = json!("O-2");
        objectives.as_array_mut().unwrap().push(second);
        repo.write_json("control/objectives.json", &objectives);
    };
    let doors = with(few);
    doors.client.write("policy/kernel.rego", kernel(local));
    more(&doors.client);
    run_and_commit(&doors.client);
    doors.refuses("a new rule that only another executor breaks", WITH_RUNS, &["policy-weakened"]);
    let doors = with(local);
    doors.client.write("policy/kernel.rego", kernel(""));
    doors.client.write("data/words.txt", "nine\n");
    run_and_commit(&doors.client);
    doors.accepts("a rule that was kept all the same", &["origin", "main"]);
}

#[test]
fn a_package_at_generated_paths_is_what_the_run_laid_out() {
    let doors = Doors::after(|repo| {
        two(repo);
        repo.set(PIPELINE, "/gen/generated", json!(["out/**", "dist/**"]));
    });
    let repo = &doors.client;
    let files = || -> Vec<String> { repo.git(["ls-files", "dist"]).lines().map(str::to_owned).collect() };
    assert_eq!(files(), ["dist/bundle/out/note.txt", "dist/bundle/out/two.txt"]);
    repo.write("dist/bundle/out/two.txt", "by hand\n");
    repo.commit();
    doors.refuses("a package edited by hand", WITH_RUNS, &["gen-edited"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("dist/bundle/out/three.txt", "by hand\n");
    repo.commit();
    doors.refuses("another file in it", WITH_RUNS, &["gen-undeclared"]);
    // Without a run of its own state, too.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("control/unused.json", "{}\n");
    repo.commit();
    doors.accepts("one that is covered", &["origin", "main"]);
    let doors = Doors { base: repo.git(["rev-parse", "HEAD"]), client: repo.clone(), server: doors.server.clone() };
    repo.git(["mv", "dist/bundle/out/two.txt", "dist/bundle/out/note2.txt"]);
    repo.commit();
    doors.refuses("a file of it elsewhere", WITH_RUNS, &["gen-undeclared"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.set(PIPELINE, "/flow", json!({"layout": [{"from": "out/**", "to": "dist/other/"}]}));
    repo.commit();
    doors.refuses("a package that is laid out elsewhere now", WITH_RUNS, &["gen-undeclared"]);
}

#[test]
fn a_namespace_does_not_count_because_it_was_fetched() {
    let doors = Doors::new();
    let repo = &doors.client;
    repo.git(["config", "cbia.cacheNamespace", "pulls"]);
    repo.write("data/words.txt", "five\n");
    run_and_commit(repo);
    let run = repo.refs("refs/cbia/runs").into_iter().last().unwrap();
    repo.git([
        "push",
        "-q",
        "--no-verify",
        "origin",
        &format!("{}:{}", run.1, run.0.replace("refs/cbia/", "refs/cbia/ns/pulls/")),
    ]);
    let clone = repo.clone_to("job");
    clone.git(["fetch", "-q", repo.path().to_str().unwrap(), "main"]);
    clone.git(["checkout", "-q", "FETCH_HEAD"]);
    clone.git(["fetch", "-q", doors.server.path().to_str().unwrap(), "refs/cbia/*:refs/cbia/remotes/origin/*"]);
    let told: BTreeSet<String> =
        clone.cbia(["verify", "--json", &format!("{}..HEAD", doors.base)]).exits(1).codes().into_iter().collect();
    assert_eq!(told, ["evidence-missing", "gen-unadmitted"].map(str::to_owned).into());
    clone.git(["config", "cbia.evidenceNamespace", "pulls"]);
    clone.cbia(["verify", "--json", &format!("{}..HEAD", doors.base)]).ok();
}

#[test]
fn a_server_whose_head_is_unborn_still_has_a_main_branch() {
    let doors = Doors::new();
    doors.server.git(["symbolic-ref", "HEAD", "refs/heads/trunk"]);
    let repo = &doors.client;
    repo.write(NOTE, "by hand\n");
    repo.git(["rm", "-rq", "--cached", "control"]);
    repo.git(["commit", "-qam", "no control"]);
    for branch in ["new", "trunk"] {
        let told = doors.push(&["--no-verify", "origin", &format!("HEAD:refs/heads/{branch}")]).exits(1);
        assert_eq!(codes(&told.stderr, "remote: error: "), ["gen-withdrawn".to_owned()].into(), "{branch}");
    }
}

#[test]
fn what_one_ref_may_do_is_no_permission_for_another() {
    let free = "package push\n\ndefault allow := false\n\nallow if count(input.findings) == 0\n\nallow if startswith(input.update.ref, \"refs/heads/wip/\")\n";
    let doors = Doors::after(|repo| repo.write("policy/push/push.rego", free));
    let repo = &doors.client;
    repo.write(NOTE, "by hand\n");
    repo.commit();
    let by_hand = repo.git(["rev-parse", "HEAD"]);
    repo.git(["checkout", "-q", &doors.base, "--", NOTE]);
    repo.commit();
    let push = |refspecs: &[&str]| doors.push(&[&["--no-verify", "origin"], refspecs].concat());
    push(&["main", &format!("{by_hand}:refs/heads/wip/x")]).ok();
    repo.git(["checkout", "-q", &by_hand]);
    repo.write("README.md", "More.\n");
    repo.commit();
    for refspecs in [&["HEAD:refs/heads/y"][..], &["HEAD:refs/heads/wip/x", "HEAD:refs/heads/zy"]] {
        let told = push(refspecs).exits(1);
        assert!(codes(&told.stderr, "remote: error: ").contains("gen-edited"), "{}", told.stderr);
    }
    push(&["HEAD:refs/heads/wip/x"]).ok();
}

#[test]
fn a_history_of_its_own_takes_nothing_away() {
    let doors = Doors::after(|repo| repo.write("control/maintainers.allowed_signers", "ada@example.org ssh-ed25519 AAAA\n"));
    let repo = &doors.client;
    repo.git(["notes", "add", "-m", "a note"]);
    doors.accepts("notes", &["origin", "refs/notes/commits"]);
    repo.git(["checkout", "-q", "--orphan", "pages"]);
    repo.git(["rm", "-rqf", "."]);
    repo.write("index.html", "<p>\n");
    repo.git(["add", "index.html"]);
    repo.git(["commit", "-qm", "pages"]);
    doors.accepts("pages", &["origin", "pages"]);
    repo.write("control/maintainers.allowed_signers", "eve@example.org ssh-ed25519 AAAA\n");
    repo.git(["add", "-f", "control/maintainers.allowed_signers"]);
    repo.git(["commit", "-q", "--amend", "-m", "a list"]);
    let told = doors.push(&["--no-verify", "origin", "HEAD:refs/heads/other"]).exits(1);
    assert!(codes(&told.stderr, "remote: error: ").contains("attestation-missing"), "{}", told.stderr);
}
