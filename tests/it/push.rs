//! Pushes, by real git to real repositories: every bad update is tried at every door, and gives the same codes at each.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use git_cbia::document::digest::Digest;
use serde_json::json;

use super::poison::{changed_tree, forged_run, on_tree};
use super::support::{EXECUTOR, LEDGER, NOTE, PIPELINE, Ran, Repo};

/// A repository that was pushed once, with the client's hook, and the bare repository it was pushed to, with the server's.
pub struct Doors {
    /// Where work is done.
    pub client: Repo,
    /// Where it is pushed to.
    pub server: Repo,
    /// What was pushed.
    pub base: String,
}

/// Installs one of the project's hooks.
fn install(folder: &std::path::Path, name: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let text = std::fs::read(format!("{}/hooks/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let path = folder.join("hooks").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

impl Doors {
    /// The tiny pipeline, run, committed and pushed.
    pub fn new() -> Self {
        Self::after(|_| {})
    }

    /// The same, with something else in it.
    pub fn after(prepare: impl Fn(&Repo)) -> Self {
        let client = Repo::tiny();
        let server = client.at(client.outside().join("server.git"));
        client.git(["init", "-q", "--bare", "-b", "main", server.path().to_str().unwrap()]);
        install(server.path(), "pre-receive");
        install(&client.path().join(".git"), "pre-push");
        client.git(["remote", "add", "origin", server.path().to_str().unwrap()]);
        prepare(&client);
        client.run();
        client.commit();
        client.git(["push", "-q", "origin", "main"]);
        let base = client.git(["rev-parse", "HEAD"]);
        Self { client, server, base }
    }

    pub fn push(&self, arguments: &[&str]) -> Ran {
        let mut command = self.client.command("git");
        command.arg("push").args(arguments);
        self.client.finish(command, b"")
    }

    /// The codes that each door refuses with: verify (where the change is one of commits), pre-push, pre-receive. Nothing may have moved on
    /// the server.
    #[track_caller]
    fn refused(&self, refspecs: &[&str]) -> [BTreeSet<String>; 3] {
        let before = self.server.refs("refs/");
        let range = format!("{}..HEAD", self.base);
        let ran = self.client.cbia(["verify", "--json", &range]);
        let document = ran.json();
        let errors =
            document["findings"].as_array().cloned().unwrap_or_default().into_iter().filter(|f| f["severity"] == "error");
        let verify: BTreeSet<String> = errors
            .map(|f| {
                for member in ["path", "hint", "message"] {
                    assert!(f[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {f}");
                }
                f["code"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(ran.code, Some(i32::from(!verify.is_empty())), "{ran:?}");
        assert_eq!(document["outcome"], if verify.is_empty() { "verified" } else { "refused" });
        let client = self.push(&[&["origin"], refspecs].concat()).exits(1);
        assert_eq!(self.server.refs("refs/"), before);
        let server = self.push(&[&["--no-verify", "origin"], refspecs].concat()).exits(1);
        assert_eq!(self.server.refs("refs/"), before);
        assert!(server.stderr.contains("pre-receive hook declined"), "{}", server.stderr);
        [verify, codes(&client.stderr, "error: "), codes(&server.stderr, "remote: error: ")]
    }

    /// Asserts that all three doors refuse with these codes.
    #[track_caller]
    pub fn refuses(&self, name: &str, refspecs: &[&str], wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|code| (*code).to_owned()).collect();
        let [verify, client, server] = self.refused(refspecs);
        assert_eq!((&verify, &client, &server), (&wanted, &wanted, &wanted), "{name}");
    }

    /// The same where a run that is pushed is refused by itself too, beside what rests on it.
    #[track_caller]
    fn refuses_the_run(&self, name: &str, refspecs: &[&str], wanted: &[&str]) {
        let set = |codes: &[&str]| codes.iter().map(|code| (*code).to_owned()).collect::<BTreeSet<String>>();
        let doors = set(&[wanted, &["run-invalid"]].concat());
        assert_eq!(self.refused(refspecs), [set(wanted), doors.clone(), doors], "{name}");
    }

    /// Asserts that a push passes both hooks, and that the tip is verified by itself in a clone that fetched the evidence.
    #[track_caller]
    pub fn accepts(&self, name: &str, arguments: &[&str]) {
        let ran = self.push(arguments);
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.stderr);
    }
}

/// The codes of what was printed with this before it.
pub fn codes(text: &str, begin: &str) -> BTreeSet<String> {
    let code = |line: &str| Some(line.strip_prefix(begin)?.trim_end().strip_suffix(']')?.rsplit_once('[')?.1.to_owned());
    text.lines().filter_map(code).collect()
}

const MAIN: &[&str] = &["main"];
/// The branch with whatever there is as evidence.
pub const WITH_RUNS: &[&str] = &["main", "refs/cbia/runs/*:refs/cbia/runs/*"];

/// Changes what the template is given, and runs: a new state with a run of its own.
pub fn next_state(repo: &Repo) -> (String, String) {
    let before = repo.refs("refs/cbia/runs");
    repo.write("data/words.txt", "three four\n");
    repo.run();
    repo.refs("refs/cbia/runs").into_iter().find(|run| !before.contains(run)).unwrap()
}

#[test]
fn what_no_run_produced_is_refused() {
    let doors = Doors::new();
    let repo = &doors.client;
    let reset = || drop((repo.git(["reset", "-q", "--hard", &doors.base]), repo.git(["clean", "-fdq"])));
    let declare = |path: &str| {
        repo.set(
            PIPELINE,
            "/gen/artifacts",
            json!([
                {"path": NOTE, "objectives": ["O-1"], "template": "control/templates/note.txt.j2"},
                {"path": path, "objectives": ["O-1"], "template": "control/templates/note.txt.j2"},
            ]),
        );
    };
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a [&'a str]);
    let cases: Vec<Change<'_>> = vec![
        (
            "written by hand",
            Box::new(|| {
                declare("out/two.txt");
                repo.write("out/two.txt", "by hand\n");
            }),
            &["evidence-missing", "gen-unadmitted"],
        ),
        ("edited by one byte", Box::new(|| repo.replace(NOTE, "brief", "Brief")), &["gen-edited"]),
        (
            "an older authority",
            Box::new(|| {
                repo.write("docs/rule.md", "Be very brief.\n");
                repo.set(LEDGER, "/authority_set/0/hash/value", json!(Digest::of(b"Be very brief.\n")));
            }),
            &["gen-stale-authority"],
        ),
        ("an older policy", Box::new(|| repo.write("policy/more.rego", "package more\n\nx := 1\n")), &["gen-stale-policy"]),
        (
            "an older executor",
            Box::new(|| repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "2"}))),
            &["gen-stale-executor"],
        ),
        ("an older template", Box::new(|| repo.write("control/templates/note.txt.j2", "else\n")), &["gen-stale-input"]),
        ("an older input", Box::new(|| repo.write("data/words.txt", "three\n")), &["gen-stale-input"]),
        ("deleted", Box::new(|| repo.remove(NOTE)), &["gen-missing"]),
        ("added by another case", Box::new(|| repo.write("OUT/Note.txt", "x")), &["path-collision"]),
        ("added", Box::new(|| repo.write("out/extra.txt", "x")), &["gen-undeclared"]),
        ("denied", Box::new(|| repo.set(LEDGER, "/frozen", json!(false))), &["state-denied"]),
        (
            "failed, and written by hand",
            Box::new(|| {
                repo.write("control/templates/note.txt.j2", "{{ nothing }}");
                repo.cbia(["run"]).exits(5);
                repo.write(NOTE, "by hand\n");
            }),
            &["evidence-missing", "gen-unadmitted"],
        ),
        (
            "un-declared",
            Box::new(|| {
                repo.write(PIPELINE, repo.read(PIPELINE).replace("out/", "gen/"));
                repo.run();
                repo.write(NOTE, "by hand\n");
            }),
            &["gen-withdrawn"],
        ),
        (
            "the pipeline is gone, the file is not",
            Box::new(|| {
                repo.remove("control");
                repo.write(NOTE, "by hand\n");
            }),
            &["gen-withdrawn"],
        ),
        (
            "a symbolic link",
            Box::new(|| {
                repo.remove(NOTE);
                std::os::unix::fs::symlink("../README.md", repo.path().join(NOTE)).unwrap();
            }),
            &["gen-not-regular"],
        ),
        (
            "a submodule in its place",
            Box::new(|| {
                repo.remove(NOTE);
                repo.git(["rm", "-q", "--cached", NOTE]);
                repo.git(["update-index", "--add", "--cacheinfo", &format!("160000,{},{NOTE}", doors.base)]);
                std::fs::create_dir_all(repo.path().join(NOTE)).unwrap();
            }),
            &["gen-not-regular"],
        ),
        (
            "a submodule beside it",
            Box::new(|| {
                repo.git(["update-index", "--add", "--cacheinfo", &format!("160000,{},out/more", doors.base)]);
                std::fs::create_dir_all(repo.path().join("out/more")).unwrap();
            }),
            &["gen-not-regular"],
        ),
        (
            "a submodule for the whole folder",
            Box::new(|| {
                repo.remove("out");
                repo.git(["rm", "-q", "-r", "--cached", "out"]);
                repo.git(["update-index", "--add", "--cacheinfo", &format!("160000,{},out", doors.base)]);
                std::fs::create_dir_all(repo.path().join("out")).unwrap();
            }),
            &["gen-missing", "gen-not-regular"],
        ),
        (
            "a symbolic link for the whole folder",
            Box::new(|| {
                repo.remove("out");
                std::fs::create_dir_all(repo.path().join("elsewhere")).unwrap();
                repo.write("elsewhere/note.txt", "by hand\n");
                std::os::unix::fs::symlink("elsewhere", repo.path().join("out")).unwrap();
            }),
            &["gen-missing", "gen-not-regular"],
        ),
        (
            "a symbolic link to the artifact itself",
            Box::new(|| {
                let text = repo.read(NOTE);
                repo.write("elsewhere.txt", text);
                repo.remove(NOTE);
                std::os::unix::fs::symlink("../elsewhere.txt", repo.path().join(NOTE)).unwrap();
            }),
            &["gen-not-regular"],
        ),
        (
            "a symbolic link beside it",
            Box::new(|| std::os::unix::fs::symlink("note.txt", repo.path().join("out/more.txt")).unwrap()),
            &["gen-not-regular"],
        ),
        (
            "an executable",
            Box::new(|| {
                use std::os::unix::fs::PermissionsExt as _;
                std::fs::set_permissions(repo.path().join(NOTE), std::fs::Permissions::from_mode(0o755)).unwrap();
            }),
            &["gen-not-regular"],
        ),
        ("an unreadable declaration", Box::new(|| repo.write(PIPELINE, "{")), &["document-malformed"]),
        ("an unpinned authority", Box::new(|| repo.write("docs/rule.md", "Be.\n")), &["state-denied", "gen-stale-authority"]),
    ];
    for (name, change, wanted) in cases {
        reset();
        change();
        repo.commit();
        doors.refuses(name, WITH_RUNS, wanted);
    }
}

#[test]
fn forged_evidence_is_refused() {
    let doors = Doors::new();
    let repo = &doors.client;
    let (run, tip) = next_state(repo);
    repo.commit();
    let with = |tip: &str| drop(repo.git(["update-ref", &run, tip]));
    let changed = |path: &str, from: &str, to: &str| {
        let text = repo.git(["show", &format!("{tip}:{path}")]);
        assert!(text.contains(from), "{text}");
        on_tree(repo, &tip, &changed_tree(repo, &tip, &[(path, Some(&format!("{}\n", text.replacen(from, to, 1))))]))
    };
    let capsule = "control/runtime/pre_gen_capsule.json";

    repo.git(["update-ref", "-d", &run]);
    doors.refuses("no evidence", MAIN, &["evidence-missing", "gen-unadmitted"]);

    with(&repo.git(["rev-parse", &format!("{tip}^")]));
    doors.refuses("an incomplete run", WITH_RUNS, &["run-incomplete", "gen-unadmitted"]);

    with(&changed(capsule, "\"control_state_hash\": \"", "\"control_state_hash\": \"0"));
    doors.refuses_the_run("a capsule that is none", WITH_RUNS, &["capsule-forged", "gen-unadmitted"]);
    let text: serde_json::Value = serde_json::from_str(&repo.git(["show", &format!("{tip}:{capsule}")])).unwrap();
    let hash = text["control_state_hash"].as_str().unwrap();
    with(&changed(capsule, hash, &Digest::of(b"x").to_string()));
    doors.refuses_the_run("a forged capsule", WITH_RUNS, &["capsule-forged", "gen-unadmitted"]);

    with(&changed("opa/decision.json", "policy_hash", "policy_hush"));
    doors.refuses_the_run("a forged decision", WITH_RUNS, &["decision-forged", "gen-unadmitted"]);

    // One commit in the middle holds another file; those after it are the same but for their parent.
    let chain: Vec<String> = repo.git(["rev-list", "--reverse", &tip]).lines().map(str::to_owned).collect();
    let odd = changed_tree(repo, &chain[1], &[("opa/more.json", Some("{}\n"))]);
    let mut parent = on_tree(repo, &chain[1], &odd);
    for id in &chain[2..] {
        let text = repo.git(["cat-file", "commit", id]);
        let (before, after) = text.split_once("\nparent ").unwrap();
        let text = format!("{before}\nparent {parent}\n{}\n", after.split_once('\n').unwrap().1);
        parent = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
    }
    with(&parent);
    doors.refuses("a phase commit with another tree", WITH_RUNS, &["phase-forged", "gen-unadmitted"]);

    // What the generator is said to have made is not what it made.
    let forged = changed_tree(repo, &tip, &[(NOTE, Some("by hand\n"))]);
    with(&on_tree(repo, &tip, &forged));
    repo.write(NOTE, "by hand\n");
    repo.commit();
    doors.refuses("another artifact in the run", WITH_RUNS, &["run-invalid", "gen-unadmitted"]);

    // The run of the state before, under the name of this one.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("data/words.txt", "three four\n");
    repo.commit();
    let old = repo.refs("refs/cbia/runs").into_iter().find(|(name, _)| *name != run).unwrap().1;
    with(&old);
    doors.refuses("the evidence of another state", WITH_RUNS, &["run-renamed", "gen-stale-input"]);

    // The same, and its last commit says what its name says.
    let text = repo.git(["cat-file", "commit", &old]);
    let state = |name: &str| name.split('/').nth(3).unwrap().to_owned();
    let was = repo.git(["log", "-1", "--format=%(trailers:key=Cbia-State-Key,valueonly)", &old]);
    let renamed = text.replace(was.trim(), &state(&run)) + "\n";
    with(&repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], renamed.as_bytes()));
    doors.refuses_the_run("the evidence of another state, renamed throughout", WITH_RUNS, &["run-renamed", "gen-stale-input"]);

    // The true run under its own name makes everything well.
    repo.git(["update-ref", "-d", &run]);
    repo.run();
    repo.commit();
    assert_eq!(repo.only_ref(&run).1, tip);
    doors.accepts("the true run", &["origin", "main"]);
}

#[test]
fn a_capsule_that_says_allow_for_a_denied_state_is_refused() {
    let doors = Doors::new();
    let repo = &doors.client;
    let (_, tip) = repo.only_ref("refs/cbia/runs");
    repo.set(LEDGER, "/frozen", json!(false));
    let denied = repo.cbia(["run", "--json"]).exits(1).json();
    let name = format!("refs/cbia/runs/{}/{}", denied["state_key"].as_str().unwrap(), denied["executor_key"].as_str().unwrap());
    // The old run, with the new snapshot and the new key in its last commit.
    let ledger = repo.read(LEDGER);
    let tree = changed_tree(repo, &tip, &[(&format!("inputs/{LEDGER}"), Some(&ledger))]);
    let forged = on_tree(repo, &tip, &tree);
    let old = repo.git(["log", "-1", "--format=%(trailers:key=Cbia-State-Key,valueonly)", &tip]);
    let text = repo.git(["cat-file", "commit", &forged]).replace(old.trim(), denied["state_key"].as_str().unwrap()) + "\n";
    let forged = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
    repo.git(["update-ref", &name, &forged]);
    repo.git(["checkout", "-q", "--", NOTE]);
    repo.commit();
    doors.refuses_the_run("a forged ALLOW", WITH_RUNS, &["state-denied"]);
}

#[test]
fn policies_are_not_loosened_and_used_at_once() {
    let strict = "package assurance\n\ndefault allow := false\n\nallow if count(input.objectives) < 2\n";
    let doors = Doors::after(|repo| repo.write("policy/assurance.rego", strict));
    let repo = &doors.client;
    let loosen =
        || repo.write("policy/assurance.rego", "package assurance\n\ndefault allow := false\n\nallow if input.pre_gen_capsule\n");
    let use_it = || {
        let one = |id: &str| {
            json!({"id": id, "type": "note", "statement": "A note.", "source": {"authority_id": "rule", "evidence": []},
                "constraints": {}, "justification": "the rule says it"})
        };
        repo.write_json("control/objectives.json", &json!([one("O-1"), one("O-2")]));
    };
    loosen();
    use_it();
    repo.run();
    repo.commit();
    doors.refuses("loosened and used", WITH_RUNS, &["policy-weakened"]);

    // One after the other they may be looked at one after the other.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    loosen();
    repo.run();
    repo.commit();
    doors.accepts("loosened", &["origin", "main"]);
    use_it();
    repo.run();
    repo.commit();
    doors.accepts("used", &["origin", "main"]);
}

#[test]
fn schemas_are_not_loosened_and_used_at_once() {
    let schema = "schemas/note.schema.json";
    let doors = Doors::after(|repo| {
        let pipeline = repo.read(PIPELINE);
        repo.write(PIPELINE, pipeline.replace(NOTE, "out/note.json"));
        repo.write("control/templates/note.txt.j2", "{\"words\": 2}\n");
        repo.write_json(schema, &json!({"type": "object", "properties": {"words": {"maximum": 5}}}));
        repo.set(PIPELINE, "/check", json!({"schemas": [{"paths": "out/*.json", "schema": schema}]}));
    });
    let repo = &doors.client;
    let reset = || drop(repo.git(["reset", "-q", "--hard", &doors.base]));
    let use_it = || repo.write("control/templates/note.txt.j2", "{\"words\": 7}\n");
    let looser = json!({"type": "object", "properties": {"words": {"maximum": 9}}});
    let cases: [(&str, &dyn Fn()); 4] = [
        ("a schema that asks less", &|| repo.write_json(schema, &looser)),
        ("no rule", &|| repo.set(PIPELINE, "/check", json!(null))),
        ("a rule for other paths", &|| repo.set(PIPELINE, "/check/schemas/0/paths", json!("out/*.yaml"))),
        ("another schema", &|| {
            repo.write_json("schemas/other.schema.json", &looser);
            repo.set(PIPELINE, "/check/schemas/0/schema", json!("schemas/other.schema.json"));
        }),
    ];
    for (name, loosen) in cases {
        reset();
        loosen();
        use_it();
        repo.run();
        repo.commit();
        doors.refuses(name, WITH_RUNS, &["check-weakened"]);
    }
    // One after the other, each can be looked at.
    reset();
    repo.write_json(schema, &looser);
    repo.run();
    repo.commit();
    doors.accepts("loosened", &["origin", "main"]);
    use_it();
    repo.run();
    repo.commit();
    doors.accepts("used", &["origin", "main"]);
    // What asks more, and is satisfied, is not loosened.
    repo.write_json(schema, &json!({"type": "object", "properties": {"words": {"maximum": 8}}, "required": ["words"]}));
    repo.write("control/templates/note.txt.j2", "{\"words\": 8}\n");
    repo.run();
    repo.commit();
    doors.accepts("tightened", &["origin", "main"]);
}

#[test]
fn maintainers_attest_changes_of_the_control_state() {
    let doors = Doors::after(|repo| repo.write("control/maintainers.allowed_signers", "ada ssh-ed25519 AAAA\n"));
    let repo = &doors.client;
    repo.write("schemas/more.schema.json", "{}\n");
    repo.run();
    repo.commit();
    doors.refuses("not attested", WITH_RUNS, &["push-denied"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("README.md", "More.\n");
    repo.commit();
    doors.accepts("nothing of the control state", &["origin", "main"]);
}

/// What the default policy says of a quiet update is not asked; here it is, because it is not quite the default one.
#[test]
fn the_default_policy_allows_what_is_in_order() {
    let default = std::fs::read_to_string(format!("{}/policy/push/push.rego", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let doors = Doors::after(|repo| repo.write("policy/push/push.rego", format!("{default}\n# ours\n")));
    let repo = &doors.client;
    repo.write("README.md", "More.\n");
    repo.commit();
    doors.accepts("nothing is generated", &["origin", "main"]);
    next_state(repo);
    repo.commit();
    doors.accepts("another state", &["origin", "main", "main:refs/heads/new"]);
    doors.accepts("a deletion", &["origin", ":new"]);
    let base = repo.git(["rev-parse", "HEAD"]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    Doors { base, ..doors }.refuses("an edit", MAIN, &["gen-edited"]);
}

#[test]
fn the_policy_before_the_push_judges_it() {
    let allow = "package push\n\ndefault allow := false\n\nallow if startswith(input.update.ref, \"refs/heads/wip/\")\n\nallow if count(input.findings) == 0\n";
    let doors = Doors::new();
    let repo = &doors.client;
    // Its own policy does not help the push that brings it.
    repo.write("policy/push/push.rego", "package push\n\ndefault allow := true\n");
    repo.run();
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    doors.refuses("its own policy", WITH_RUNS, &["gen-edited"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("policy/push/push.rego", allow);
    repo.run();
    repo.commit();
    doors.accepts("a policy of its own", &["origin", "main"]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    let ran = doors.push(&["--no-verify", "origin", "main"]).exits(1);
    assert_eq!(codes(&ran.stderr, "remote: error: "), BTreeSet::from(["gen-edited".to_owned()]));
    let ran = doors.push(&["--no-verify", "origin", "main:refs/heads/wip/x"]).ok();
    assert!(ran.stderr.contains("remote: warning:"), "{}", ran.stderr);
    // What got in where everything may does not get out of there.
    let ran = doors.push(&["--no-verify", "origin", "main"]).exits(1);
    assert_eq!(codes(&ran.stderr, "remote: error: "), BTreeSet::from(["gen-edited".to_owned()]));
}

#[test]
fn merges_and_replacements_hide_nothing() {
    let doors = Doors::new();
    let repo = &doors.client;
    next_state(repo);
    repo.commit();
    doors.accepts("the next state", &["origin", "main"]);
    let doors = Doors { base: repo.git(["rev-parse", "HEAD"]), ..doors };
    let repo = &doors.client;
    let side = |file: &str| {
        repo.git(["checkout", "-q", "-b", "side", &format!("{}^", doors.base)]);
        repo.write(file, "side\n");
        repo.commit();
        repo.git(["checkout", "-q", "main"]);
        repo.git(["merge", "-q", "--no-ff", "--no-commit", "side"]);
        repo.git(["branch", "-q", "-D", "side"]);
    };
    let reset = || drop(repo.git(["reset", "-q", "--hard", &doors.base]));

    side("evil.md");
    repo.replace(NOTE, "Be brief", "Be long");
    repo.commit();
    doors.refuses("an evil merge", MAIN, &["gen-edited"]);

    reset();
    side("theirs.md");
    repo.git(["checkout", "-q", &format!("{}^", doors.base), "--", NOTE]);
    repo.commit();
    doors.refuses("a merge that takes back the artifact", MAIN, &["gen-edited"]);

    reset();
    side("input.md");
    repo.git(["checkout", "-q", &format!("{}^", doors.base), "--", "policy", "data"]);
    repo.write("policy/kernel.rego", repo.read("policy/kernel.rego") + "\n# reverted\n");
    repo.commit();
    doors.refuses("a merge that takes back policies", MAIN, &["gen-stale-policy"]);

    reset();
    repo.replace(NOTE, "Be brief", "Be long");
    repo.commit();
    let (bad, good) =
        (repo.git(["rev-parse", &format!("HEAD:{NOTE}")]), repo.git(["rev-parse", &format!("{}:{NOTE}", doors.base)]));
    repo.git(["replace", &bad, &good]);
    doors.refuses("a replacement at home", MAIN, &["gen-edited"]);
    // Nor one that the server has, nor a graft at either place.
    doors.server.git(["update-ref", &format!("refs/replace/{bad}"), &good]);
    for repo in [repo.path().join(".git"), doors.server.path().to_owned()] {
        std::fs::create_dir_all(repo.join("info")).unwrap();
        std::fs::write(repo.join("info/grafts"), format!("{}\n", doors.base)).unwrap();
    }
    doors.refuses("a replacement on the server, and grafts", MAIN, &["gen-edited"]);
    std::fs::remove_file(repo.path().join(".git/info/grafts")).unwrap();
    repo.git(["replace", &repo.git(["rev-parse", "HEAD"]), &doors.base]);
    assert_eq!(repo.cbia(["verify", "--json"]).exits(1).codes(), ["gen-edited"]);
    let [_, client, server] = doors.refused(&["refs/replace/*:refs/replace/*"]);
    assert_eq!([client, server], [(); 2].map(|()| BTreeSet::from(["replace-ref".to_owned()])));
}

/// A commit as git cbia writes them, with these lines of facts.
fn phase_commit(repo: &Repo, tree: &str, parents: &[&str], message: &str) -> String {
    let parents: String = parents.iter().map(|id| format!("parent {id}\n")).collect();
    let who = "git-cbia <git-cbia@localhost> 0 +0000";
    let text = format!("tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{message}");
    repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes())
}

#[test]
fn refs_of_evidence_only_grow() {
    let doors = Doors::new();
    let repo = &doors.client;
    repo.run();
    repo.run();
    let (run, tip) = repo.only_ref("refs/cbia/runs");
    let writer = "refs/cbia/ledgers/ada-example.org";
    doors.accepts("a ledger that goes on", &["origin", &format!("refs/cbia/ledger:{writer}")]);
    let cache = repo.refs("refs/cbia/cache").remove(0);
    doors.accepts("a cache entry", &["origin", &format!("{0}:{0}", cache.0)]);
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let empty = repo.git_with(["mktree"], b"");
    let ledger = repo.git(["rev-parse", "refs/cbia/ledger"]);
    let opening = repo.git(["rev-list", "--max-parents=0", "--first-parent", "refs/cbia/ledger"]);
    let said = |state: &str, executor: &str| {
        format!("EVAL: policy ALLOW\n\nCbia-Phase: EVAL\nCbia-State-Key: {state}\nCbia-Executor-Key: {executor}\n")
    };
    let keys: Vec<&str> = run.split('/').skip(3).collect();
    let claims = said(keys[0], keys[1]);
    let by_eve = repo.git_with(["commit-tree", "-p", &tip, "-F", "-", &empty], claims.as_bytes());
    let by_git_cbia = phase_commit(repo, &empty, &[&tip], &claims);
    let squatting = phase_commit(repo, &empty, &[], &said(&a.to_string(), &b.to_string()));
    let entry_tree = repo.git(["rev-parse", &format!("{}^{{tree}}", cache.1)]);
    let entry_again = repo.git(["commit-tree", "-p", &cache.1, "-m", "x", &entry_tree]);
    // A record that has a ledger for its run: git takes it for one that goes on from there.
    let newest = repo.git(["cat-file", "commit", &ledger]);
    let document = repo.git(["show", &format!("{ledger}:record.json")]);
    let lossy = newest.replace(&tip, &ledger).replacen(&newest.lines().nth(1).unwrap()[7..], &opening, 1) + "\n";
    let lossy = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], lossy.as_bytes());
    let lossy_tree = changed_tree(repo, &lossy, &[("record.json", Some(&(document.replace(&tip, &ledger) + "\n")))]);
    let lossy = on_tree(repo, &lossy, &lossy_tree);
    let lying = newest.replace("Cbia-Event: replayed", "Cbia-Event: admitted") + "\n";
    assert_ne!(lying.trim(), newest.trim());
    let lying = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], lying.as_bytes());
    let on_ledger = |tree: &str| repo.git(["commit-tree", "-p", &ledger, "-m", "x", tree]);
    let not_json = changed_tree(repo, &ledger, &[("record.json", Some("{}\n"))]);
    let joining = |others: &[&str]| {
        let mut text = repo.git(["cat-file", "commit", &on_ledger(&empty)]) + "\n";
        let parents: String = others.iter().map(|id| format!("parent {id}\n")).collect();
        text = text
            .replacen("author ", &format!("{parents}author "), 1)
            .replace("\nx\n", "\nmerged: 1 ledger\n\nCbia-Event: merged\n");
        let mut record: serde_json::Value = serde_json::from_str(&document).unwrap();
        for member in ["state_key", "executor_key", "run"] {
            record[member] = serde_json::Value::Null;
        }
        record["event"] = "merged".into();
        record["phases"] = json!([]);
        for (_, link) in record["links"].as_object_mut().unwrap() {
            *link = serde_json::Value::Null;
        }
        let commit = repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
        on_tree(repo, &commit, &changed_tree(repo, &commit, &[("record.json", Some(&(record.to_string() + "\n")))]))
    };
    let garbage = repo.git(["commit-tree", "-m", "x", &empty]);
    let cases: Vec<(&str, String, &str)> = vec![
        ("a rewound ledger", format!("+refs/cbia/ledger~1:{writer}"), "ref-rewound"),
        ("a deleted ledger", format!(":{writer}"), "ref-deleted"),
        ("a deleted run", format!(":{run}"), "ref-deleted"),
        ("a rewound run", format!("+{tip}~1:{run}"), "ref-rewound"),
        ("a run of another name", format!("{tip}:refs/cbia/runs/{a}/{b}"), "run-renamed"),
        ("a run that goes on", format!("{by_eve}:{run}"), "run-invalid"),
        ("a run that goes on, by nobody", format!("{by_git_cbia}:{run}"), "run-invalid"),
        ("the place of a run", format!("{squatting}:refs/cbia/runs/{a}/{b}"), "run-invalid"),
        ("the same in a namespace", format!("{squatting}:refs/cbia/ns/pulls/runs/{a}/{b}"), "run-invalid"),
        ("a name that is none", format!("{tip}:refs/cbia/runs/x"), "ref-malformed"),
        ("a blob", format!("{}:refs/cbia/ledgers/x", repo.git(["rev-parse", &format!("{tip}:{NOTE}")])), "ref-malformed"),
        ("a branch as a ledger", "HEAD:refs/cbia/ledgers/x".to_owned(), "ledger-malformed"),
        ("nothing as a ledger", format!("{garbage}:refs/cbia/ledgers/x"), "ledger-malformed"),
        ("nothing as the ledger", format!("{garbage}:refs/cbia/ledger"), "ledger-malformed"),
        ("a run as a ledger", format!("{tip}:refs/cbia/ledgers/x"), "ledger-malformed"),
        ("a ledger that goes on with nothing", format!("{}:{writer}", on_ledger(&empty)), "ledger-malformed"),
        ("with what is no record", format!("{}:{writer}", on_ledger(&not_json)), "ledger-malformed"),
        ("with a record of another kind", format!("{}:{writer}", on_ledger(&format!("{ledger}^{{tree}}"))), "ledger-malformed"),
        ("with a record that says something else", format!("{lying}:refs/cbia/ledgers/x"), "ledger-malformed"),
        ("with a record that joins nothing", format!("{}:{writer}", joining(&[&garbage])), "ledger-malformed"),
        ("a ledger in the place of a run", format!("{lossy}:{writer}"), "ref-rewound"),
        ("a ledger in a namespace", format!("{garbage}:refs/cbia/ns/pulls/ledgers/x"), "ledger-malformed"),
        ("the memory", "refs/cbia/memo:refs/cbia/memo".to_owned(), "ref-private"),
        ("a cache entry of another key", format!("{}:refs/cbia/cache/{a}", cache.1), "cache-entry-invalid"),
        ("a cache entry that goes on", format!("{entry_again}:{}", cache.0), "cache-entry-invalid"),
    ];
    for (name, refspec, wanted) in cases {
        let [_, client, server] = doors.refused(&[&refspec]);
        let wanted = BTreeSet::from([wanted.to_owned()]);
        assert_eq!((&client, &server), (&wanted, &wanted), "{name}");
    }
    doors.accepts("an empty ledger", &["origin", &format!("{opening}:refs/cbia/ledgers/x")]);
    doors.accepts("a ledger that joins others", &["origin", &format!("{}:{writer}", joining(&[&opening]))]);
    doors.accepts("what is there already", &["origin", &format!("{tip}:{run}"), "HEAD:refs/heads/more"]);
    doors.accepts("an entry that is evicted", &["origin", &format!(":{}", cache.0)]);
    doors.accepts("a run in a namespace", &["origin", &format!("{tip}:{}", run.replace("cbia/", "cbia/ns/pulls/"))]);
}

#[test]
fn only_a_finished_run_of_those_keys_takes_the_place_of_one() {
    let doors = Doors::new();
    let repo = &doors.client;
    let (run, tip) = next_state(repo);
    let offered = format!("{tip}:{run}");
    let refused = |id: &str| {
        let [_, client, server] = doors.refused(&[&format!("{id}:{run}")]);
        assert_eq!(client, server);
        client.into_iter().next().unwrap()
    };
    // Each phase by itself, each left out, and each tree of one under the commit of another.
    let chain: Vec<String> = repo.git(["rev-list", "--reverse", &tip]).lines().map(str::to_owned).collect();
    assert_eq!(chain.len(), 9);
    let rebuilt = |commits: &[(&String, &String)]| {
        commits.iter().fold(None::<String>, |parent, (id, tree)| {
            let text = repo.git(["cat-file", "commit", id]);
            let (head, message) = text.split_once("\n\n").unwrap();
            let who = head.lines().filter(|line| line.starts_with("author ") || line.starts_with("committer "));
            let parent = parent.map(|id| format!("parent {id}\n")).unwrap_or_default();
            let tree = repo.git(["rev-parse", &format!("{tree}^{{tree}}")]);
            let text = format!("tree {tree}\n{parent}{}\n\n{message}\n", who.collect::<Vec<_>>().join("\n"));
            Some(repo.git_with(["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes()))
        })
    };
    let whole: Vec<(&String, &String)> = chain.iter().zip(&chain).collect();
    assert_eq!(rebuilt(&whole).as_ref(), Some(&tip));
    for (at, id) in chain.iter().enumerate().take(chain.len() - 1) {
        assert_eq!(refused(id), "run-incomplete", "{at}");
        let mut without = whole.clone();
        without.remove(at);
        assert_eq!(refused(&rebuilt(&without).unwrap()), "run-invalid", "without {at}");
    }
    let mut other = whole.clone();
    other[3].1 = &chain[2];
    assert_eq!(refused(&rebuilt(&other).unwrap()), "run-invalid", "GEN without what it made");
    for (path, text) in [(NOTE, Some("by hand\n")), (NOTE, None), ("more.txt", Some("x")), ("inputs/data/words.txt", Some("x\n"))]
    {
        let tree = changed_tree(repo, &tip, &[(path, text)]);
        assert_eq!(refused(&on_tree(repo, &tip, &tree)), "run-invalid", "{path} {text:?}");
    }

    // What a server of before took goes where it can be gone on from, and stays where it cannot: whoever administers it removes it.
    let server = &doors.server;
    server.git(["fetch", "-q", repo.path().to_str().unwrap(), &tip]);
    server.git(["update-ref", &run, &chain[5]]);
    doors.accepts("a run that was not finished", &["--no-verify", "origin", &offered]);
    let forced = || doors.push(&["--no-verify", "--force", "origin", &offered]).exits(1).stderr;
    let text = repo.git(["cat-file", "commit", &tip]);
    let (_, message) = text.split_once("\n\n").unwrap();
    let squatting = phase_commit(server, &server.git_with(["mktree"], b""), &[], message);
    server.git(["update-ref", &run, &squatting]);
    let mend = format!("git update-ref -d {run} {squatting}");
    let said = forced();
    assert_eq!(codes(&said, "remote: error: "), BTreeSet::from(["ref-rewound".to_owned()]));
    assert!(said.contains("which is no whole run") && said.contains(&mend), "{said}");
    // The author's own push says the same of the run that is in the way.
    repo.commit();
    let push = || doors.push(&["origin", "main"]).exits(1).stderr;
    let said = push();
    assert!(said.contains("[evidence-not-uploaded]") && said.contains("which is no run of that name"), "{said}");
    assert!(said.contains(&mend) && said.contains(&tip[..12]) && said.contains(&squatting[..12]), "{said}");
    server.git(mend.split(' ').skip(1));
    doors.accepts("after that", &["origin", "main"]);

    // Another whole run of the same keys is a conflict, which both ids and a way out are told of.
    repo.git(["reset", "-q", "--hard", &doors.base]);
    repo.write("data/words.txt", "five six\n");
    let before = repo.refs("refs/cbia/runs");
    repo.run();
    let (run, tip) = repo.refs("refs/cbia/runs").into_iter().find(|run| !before.contains(run)).unwrap();
    repo.commit();
    let theirs = forged_run(repo, &tip, NOTE, "by hand\n");
    doors.accepts("a run that is whole by its own account", &["--no-verify", "origin", &format!("{theirs}:{run}")]);
    let said = doors.push(&["--no-verify", "--force", "origin", &format!("{tip}:{run}")]).exits(1).stderr;
    assert!(said.contains("another run of the same state and executor") && said.contains("--repeat 2"), "{said}");
    let said = doors.push(&["--force", "origin", "main"]).exits(1).stderr;
    let mend = format!("git update-ref -d {run} {theirs}");
    for part in [
        "[evidence-not-uploaded]",
        &tip[..12],
        &theirs[..12],
        "one of the two is not what its inputs come to",
        "--repeat 2",
        &mend,
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    doors.server.git(mend.split(' ').skip(1));
    doors.accepts("after that", &["--force", "origin", "main"]);
}

#[test]
fn admitted_content_passes_however_it_is_committed() {
    let doors = Doors::new();
    let repo = &doors.client;
    let pipeline = repo.read(PIPELINE);
    let push = |name: &str| doors.accepts(name, &["--force", "origin", "main"]);

    next_state(repo);
    repo.commit();
    repo.write("README.md", "More.\n");
    repo.commit();
    repo.git(["reset", "-q", "--soft", &doors.base]);
    repo.git(["commit", "-q", "-m", "squashed"]);
    push("squash");
    repo.git(["commit", "-q", "--amend", "-m", "amended"]);
    push("amend");
    repo.git(["revert", "--no-edit", "HEAD"]);
    push("revert to an earlier state");
    repo.git(["revert", "--no-edit", "HEAD"]);
    push("and back");
    repo.git(["checkout", "-q", "-b", "side", &doors.base]);
    repo.write("other.md", "other\n");
    repo.commit();
    repo.git(["cherry-pick", "main~2"]);
    doors.accepts("cherry-pick", &["origin", "side"]);
    repo.git(["rebase", "-q", "main"]);
    doors.accepts("rebase", &["--force", "origin", "side"]);
    repo.git(["tag", "-a", "-m", "release", "v1"]);
    doors.accepts("a tag", &["origin", "v1"]);
    doors.accepts("a deleted branch", &["origin", ":side"]);

    // Two branches, each with an authority, an objective and an artifact of its own; their merge was never run.
    repo.git(["checkout", "-q", "main"]);
    repo.write("docs/a.md", "A.\n");
    repo.write("docs/b.md", "B.\n");
    let authority = |id: &str, text: &str| {
        json!({"authority_id": id, "title": id, "source": {"kind": "file", "locator": format!("docs/{id}.md")},
            "hash": {"alg": "sha256", "value": Digest::of(text.as_bytes())}})
    };
    let ledger = |a: &str, b: &str| {
        repo.write("docs/a.md", a);
        repo.write("docs/b.md", b);
        let set = json!([authority("rule", "Be brief.\n"), authority("a", a), authority("b", b)]);
        repo.write_json(LEDGER, &json!({"schema_version": "0.1.0", "frozen": true, "authority_set": set}));
    };
    ledger("A.\n", "B.\n");
    let objective = |id: &str, authority: &str| {
        json!({"id": id, "type": "note", "statement": "A note.", "source": {"authority_id": authority, "evidence": []},
            "constraints": {}, "justification": "the rule says it"})
    };
    repo.write_json("control/objectives.json", &json!([objective("O-1", "rule"), objective("O-a", "a"), objective("O-b", "b")]));
    repo.write("control/templates/a.j2", "{{ authorities.a.text }}");
    repo.write("control/templates/b.j2", "{{ authorities.b.text }}");
    let mut document: serde_json::Value = serde_json::from_str(&pipeline).unwrap();
    for id in ["a", "b"] {
        let artifact = json!({"path": format!("out/{id}.txt"), "objectives": [format!("O-{id}")], "template": format!("control/templates/{id}.j2")});
        document["gen"]["artifacts"].as_array_mut().unwrap().push(artifact);
    }
    repo.write_json(PIPELINE, &document);
    repo.run();
    repo.commit();
    push("three artifacts");
    let base = repo.git(["rev-parse", "HEAD"]);
    repo.git(["checkout", "-q", "-B", "side"]);
    ledger("A.\n", "B!\n");
    repo.run();
    repo.commit();
    doors.accepts("one side", &["origin", "side"]);
    repo.git(["checkout", "-q", "main"]);
    ledger("A!\n", "B.\n");
    repo.run();
    repo.commit();
    repo.git(["merge", "-q", "--no-edit", "side"]);
    assert_eq!((repo.read("out/a.txt"), repo.read("out/b.txt")), ("A!\n".to_owned(), "B!\n".to_owned()));
    push("a merge of independent work");
    // The same merge, where the other side has come to ask something that an artifact of this side never had to satisfy.
    repo.git(["branch", "kept"]);
    repo.git(["checkout", "-q", "-B", "strict", &base]);
    let mut strict = document.clone();
    strict["struct"] = json!({"normalize": [{"paths": "out/b.txt", "format": "json"}]});
    repo.write_json(PIPELINE, &strict);
    ledger("A.\n", "{}\n");
    repo.run();
    repo.commit();
    repo.git(["checkout", "-q", "-B", "stricter", "main~1"]);
    repo.git(["merge", "-q", "--no-edit", "-X", "theirs", "strict"]);
    doors.accepts("a merge whose every artifact satisfies what is asked of it now", &["origin", "stricter"]);
    strict["struct"]["normalize"][0]["paths"] = json!("out/*.txt");
    repo.write_json(PIPELINE, &strict);
    repo.commit();
    doors.refuses("rules that artifacts of an earlier run do not satisfy", &["stricter"], &["artifact-malformed"]);
    repo.git(["checkout", "-q", "main"]);
    let explained = repo.cbia(["verify", "--explain", &format!("{base}..HEAD")]).ok();
    assert_eq!(explained.stdout.matches("a run of another state").count(), 3, "{}", explained.stdout);

    // On another machine there are only the objects that were pushed.
    let other = repo.clone_to("other");
    other.git(["config", "remote.origin.url", doors.server.path().to_str().unwrap()]);
    assert_eq!(other.cbia(["verify", "--json"]).exits(1).codes().into_iter().filter(|c| c == "evidence-missing").count(), 1);
    other.git(["fetch", "-q", "origin", "refs/cbia/runs/*:refs/cbia/remotes/origin/runs/*"]);
    other.cbia(["verify"]).ok();
    other.write("README.md", "From elsewhere.\n");
    other.commit();
    install(&other.path().join(".git"), "pre-push");
    other.git(["push", "-q", "origin", "main"]);
    repo.fsck();
    doors.server.fsck();
}

#[test]
fn what_generates_nothing_is_left_alone() {
    let doors = Doors::new();
    let repo = &doors.client;
    repo.git(["checkout", "-q", "--orphan", "pages"]);
    repo.git(["rm", "-q", "-r", "-f", "--cached", "."]);
    repo.git(["clean", "-fdqx"]);
    repo.write("index.html", "hello\n");
    repo.commit();
    doors.accepts("a branch without a pipeline", &["origin", "pages"]);
    let blob = repo.git(["rev-parse", "HEAD:index.html"]);
    repo.git(["tag", "blob", &blob]);
    doors.accepts("a tag of a blob", &["origin", "blob"]);

    // Somebody's own branches, where they are named so: the client looks away, the server does not.
    repo.git(["checkout", "-q", "main"]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    repo.git(["config", "cbia.exempt", "refs/heads/wip/*"]);
    let ran = doors.push(&["origin", "main:refs/heads/wip/x"]).exits(1);
    assert_eq!(codes(&ran.stderr, "error: "), BTreeSet::new());
    assert_eq!(codes(&ran.stderr, "remote: error: "), BTreeSet::from(["gen-edited".to_owned()]));
    // A hook that is told nothing looks at everything that was not pushed.
    let hook = || {
        let mut command = repo.command(super::support::PROGRAM);
        command.args(["hook", "pre-push", "origin", doors.server.path().to_str().unwrap()]);
        repo.finish(command, b"")
    };
    assert_eq!(codes(&hook().exits(1).stderr, "error: "), BTreeSet::from(["gen-edited".to_owned()]));
    // One ref of several is enough.
    let ran = doors.push(&["origin", "pages:refs/heads/more", "main"]).exits(1);
    assert_eq!(codes(&ran.stderr, "error: "), BTreeSet::from(["gen-edited".to_owned()]));
}

#[test]
fn hooks_fail_closed() {
    let doors = Doors::new();
    let command = doors.client.command("git");
    let path = command.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap().to_str().unwrap().to_owned();
    let without: Vec<&str> = path.split(':').filter(|folder| !std::path::Path::new(folder).join("git-cbia").exists()).collect();
    let bare = doors.client.with("PATH", Some(&without.join(":")));
    let push = |arguments: &[&str]| {
        let mut command = bare.command("git");
        command.arg("push").args(arguments);
        bare.finish(command, b"")
    };
    doors.client.write("README.md", "More.\n");
    doors.client.commit();
    let ran = push(&["origin", "main"]).exits(1);
    assert!(ran.stderr.contains("git-cbia is not on PATH"), "{}", ran.stderr);
    let ran = push(&["--no-verify", "origin", "main"]).exits(1);
    assert!(ran.stderr.contains("git-cbia is not on the server's PATH"), "{}", ran.stderr);
    // What git never says is refused, not guessed.
    for (hook, input) in [("pre-receive", "nonsense\n"), ("pre-receive", "x y refs/heads/main\n"), ("pre-push", "a b\n")] {
        let mut command = doors.client.command(super::support::PROGRAM);
        command.args(["hook", hook]).args(if hook == "pre-push" { &["origin", "url"][..] } else { &[] });
        doors.client.finish(command, input.as_bytes()).exits(2);
    }
}

#[test]
fn a_cut_off_history_is_refused() {
    let doors = Doors::new();
    let (repo, server) = (&doors.client, &doors.server);
    repo.write("README.md", "More.\n");
    repo.commit();
    repo.git(["push", "-q", "origin", "main"]);
    let url = format!("file://{}", repo.path().display());
    repo.git(["clone", "-q", "--depth", "1", &url, repo.outside().join("cut").to_str().unwrap()]);
    let cut = repo.at(repo.outside().join("cut"));
    let empty = repo.at(repo.outside().join("empty.git"));
    repo.git(["init", "-q", "--bare", "-b", "main", empty.path().to_str().unwrap()]);
    repo.git(["--git-dir", empty.path().to_str().unwrap(), "config", "receive.shallowUpdate", "true"]);
    install(empty.path(), "pre-receive");
    install(&cut.path().join(".git"), "pre-push");
    cut.git(["fetch", "-q", "origin", "refs/cbia/runs/*:refs/cbia/runs/*"]);
    let wanted = BTreeSet::from(["history-shallow".to_owned()]);
    for (arguments, begin) in [(&["push"][..], "error: "), (&["push", "--no-verify"], "remote: error: ")] {
        let mut command = cut.command("git");
        command.args(arguments).args([empty.path().to_str().unwrap(), "main"]);
        let ran = cut.finish(command, b"").exits(1);
        assert_eq!(codes(&ran.stderr, begin), wanted, "{}", ran.stderr);
    }
    assert_eq!(empty.refs("refs/"), []);
    // What goes on from what the server has is whole there.
    cut.git(["config", "remote.origin.url", server.path().to_str().unwrap()]);
    cut.write("README.md", "Still more.\n");
    cut.commit();
    cut.git(["push", "-q", "origin", "main"]);
}

/// A web server of one thread that knows nothing but git's own back end.
fn serve(listener: TcpListener, repo: Repo) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        if answer(&mut stream, &repo).is_none() {
            return;
        }
    }
}

fn answer(stream: &mut TcpStream, repo: &Repo) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut request = head.lines().next().unwrap().split(' ');
    let (method, target) = (request.next().unwrap(), request.next().unwrap());
    if target == "/end" {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.map(|line| line.split_once(':').unwrap().1.trim().to_owned())
    };
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    let mut command = repo.command("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", repo.outside()).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("REQUEST_METHOD", method).env("PATH_INFO", path).env("QUERY_STRING", query).env("REMOTE_USER", "ada");
    command.env("REMOTE_ADDR", "127.0.0.1").env("CONTENT_LENGTH", body.len().to_string());
    for (name, variable) in
        [("content-type", "CONTENT_TYPE"), ("git-protocol", "GIT_PROTOCOL"), ("content-encoding", "HTTP_CONTENT_ENCODING")]
    {
        if let Some(value) = header(name) {
            command.env(variable, value);
        }
    }
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let headers = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let reply =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n\r\n", output.len() - end - 4);
    stream.write_all(reply.as_bytes()).unwrap();
    stream.write_all(&output[end + 4..]).unwrap();
    Some(())
}

#[test]
fn pushes_over_http_are_verified() {
    let doors = Doors::new();
    let repo = &doors.client;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let host = repo.clone();
    let server = std::thread::spawn(move || serve(listener, host));
    repo.git(["--git-dir", doors.server.path().to_str().unwrap(), "config", "http.receivepack", "true"]);
    repo.git(["config", "remote.origin.url", &format!("http://{address}/server.git")]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    doors.refuses("over http", MAIN, &["gen-edited"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    next_state(repo);
    repo.commit();
    let ran = doors.push(&["origin", "main"]).ok();
    assert!(ran.stderr.contains("git cbia: 1 ref verified, 2 refs of evidence uploaded first"), "{}", ran.stderr);
    assert_eq!(doors.server.git(["rev-parse", "main"]), repo.git(["rev-parse", "main"]));
    TcpStream::connect(address).unwrap().write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
    server.join().unwrap();
}

#[test]
fn where_a_generator_differs_the_first_run_stands_and_the_second_author_is_told_how_to_go_on() {
    if !super::executor::ready() {
        return;
    }
    let doors = Doors::after(|repo| {
        super::executor::configure(repo, "finish(os.urandom(4).hex().encode() + b'\\n')", json!({}));
    });
    let ada = &doors.client;
    let server = doors.server.path().to_str().unwrap();
    let bob = ada.clone_to("bob").with("GIT_COMMITTER_EMAIL", Some("bob@example.org"));
    bob.git(["remote", "set-url", "origin", server]);
    install(&bob.path().join(".git"), "pre-push");
    for repo in [ada, &bob] {
        repo.write("data/words.txt", "three four\n");
        repo.cbia(["run", "--force"]).ok();
        repo.commit();
    }
    assert_ne!(ada.read(NOTE), bob.read(NOTE));
    doors.accepts("the first", &["origin", "main"]);
    let push = |expected: i32, arguments: &[&str]| {
        let mut command = bob.command("git");
        command.arg("push").args(arguments);
        bob.finish(command, b"").exits(expected).stderr
    };
    let said = push(1, &["origin", "main:refs/heads/bob"]);
    let (run, tip) = bob.only_ref("refs/cbia/runs");
    let theirs = doors.server.git(["rev-parse", &run]);
    for part in ["[evidence-not-uploaded]", "Ada <ada@example.org>", &tip[..12], &theirs[..12], "--repeat 2"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    bob.cbia(["run", "--repeat", "2"]).exits(5);
    // Word for word.
    let hint = said.split("theirs is as good as yours: ").nth(1).unwrap().split(", and git cbia run takes it").next().unwrap();
    let commands: Vec<&str> = hint.split(", ").collect();
    assert_eq!(commands, [&format!("git update-ref -d {run}"), "git cbia fetch"]);
    bob.git(commands[0].split(' ').skip(1));
    let fetched = bob.cbia(["fetch"]);
    assert_eq!(bob.git(["rev-parse", &run]), theirs, "{}", fetched.stderr);
    assert_eq!(bob.cbia(["run", "--force", "--json"]).ok().gen_status(), "replayed");
    assert_eq!(bob.read(NOTE), ada.read(NOTE));
    bob.commit();
    push(0, &["origin", "main:refs/heads/bob"]);
    bob.fsck();
}
