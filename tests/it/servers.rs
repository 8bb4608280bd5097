//! Servers: how they call the hook, what they bound, and whose evidence counts there.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::push::{Doors, WITH_RUNS, codes, next_state};
use super::support::{LEDGER, NOTE, PIPELINE, Ran, Repo};

/// Git's own program for pushes, without hooks.
const NO_HOOKS: &str = "git -c core.hooksPath=/dev/null receive-pack";

/// Writes a program.
fn program(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the server says against a push that passes the client.
#[track_caller]
fn refused_by(doors: &Doors, arguments: &[&str]) -> (BTreeSet<String>, Ran) {
    let before = doors.server.refs("refs/");
    let ran = doors.push(&[&["--no-verify", "origin"], arguments].concat()).exits(1);
    assert!(ran.stderr.contains("pre-receive hook declined"), "{}", ran.stderr);
    assert_eq!(doors.server.refs("refs/"), before);
    (codes(&ran.stderr, "remote: error: "), ran)
}

fn set_of(codes: &[&str]) -> BTreeSet<String> {
    codes.iter().map(|code| (*code).to_owned()).collect()
}

#[test]
fn a_push_that_asks_for_too_much_is_refused_and_says_of_what() {
    let doors = Doors::new();
    let repo = &doors.client;
    // Three branches, each with a state of its own.
    for word in ["a", "b", "c"] {
        repo.git(["checkout", "-q", "-B", word, &doors.base]);
        repo.write("data/words.txt", format!("{word}\n"));
        repo.run();
        repo.commit();
    }
    // A few objects that spell a thousand files, where nothing is generated.
    let blob = repo.git_with(["hash-object", "-w", "--stdin"], b"x\n");
    let mut tree = String::new();
    for level in 0..3 {
        let what = if level == 0 { format!("100644 blob {blob}") } else { format!("040000 tree {tree}") };
        let listing: String = (0..10).map(|n| format!("{what}\t{n}\n")).collect();
        tree = repo.git_with(["mktree"], listing.as_bytes());
    }
    let listing = format!("{}\n040000 tree {tree}\tzeros\n", repo.git(["ls-tree", &doors.base]));
    let top = repo.git_with(["mktree"], listing.as_bytes());
    let bomb = repo.git(["commit-tree", "-p", &doors.base, "-m", "bomb", &top]);
    repo.git(["update-ref", "refs/heads/bomb", &bomb]);

    let branches: &[&str] = &["a", "b", "c", "refs/cbia/runs/*:refs/cbia/runs/*"];
    let entries = &["refs/cbia/cache/*:refs/cbia/cache/*"];
    let runs = &["refs/cbia/runs/*:refs/cbia/runs/*"];
    let ledger = &["refs/cbia/ledger:refs/cbia/ledgers/x"];
    let cases: [(&str, &str, &[&str], &str); 12] = [
        ("cbia.maxPushBytes", "30", branches, "bytes of evidence would have to be read"),
        ("cbia.maxPushBytes", "30", entries, "bytes of evidence would have to be read"),
        ("cbia.maxPushBytes", "300", runs, "bytes of evidence would have to be read"),
        ("cbia.maxPushBytes", "9000", ledger, "bytes of evidence would have to be read"),
        ("cbia.maxPushNames", "40", runs, "names in folders would have to be compared"),
        ("cbia.maxPushCommits", "2", ledger, "commits are new"),
        ("cbia.maxPushRefs", "5", branches, "refs are pushed at once"),
        ("cbia.maxPushCommits", "2", &["a", "b", "c"], "commits are new"),
        ("cbia.maxPushRuns", "2", branches, "runs would have to be derived again"),
        ("cbia.maxPushDecisions", "2", branches, "states and updates would have to be put to policies"),
        ("cbia.maxPushNames", "300", &["bomb:main"], "names in folders would have to be compared"),
        ("cbia.maxPushRefs", "0", &["a"], "which is no limit"),
    ];
    for (key, value, refspecs, said) in cases {
        doors.server.git(["config", key, value]);
        let (found, ran) = refused_by(&doors, refspecs);
        let wanted = if value == "0" { "setting-invalid" } else { "push-too-large" };
        assert!(found.contains(wanted), "{key}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{key}: {}", ran.stderr);
        doors.server.git(["config", "--unset", key]);
    }
    // Without that, nothing is wrong with any of it.
    doors.accepts("within the limits", &["origin", "bomb:refs/heads/bomb"]);
    doors.accepts("many refs", &[&["--no-verify", "origin"], branches].concat());
    doors.accepts("a ledger", &[&["--no-verify", "origin"], &ledger[..]].concat());
}

#[test]
fn many_refs_of_one_history_count_each_commit_once() {
    let doors = Doors::new();
    let repo = &doors.client;
    let mut stream = String::new();
    for n in 0..40 {
        stream += &format!("commit refs/heads/long\ncommitter Ada <ada@example.org> {} +0000\ndata 1\nx\n", 1_700_000_000 + n);
        stream += &format!("M 644 inline f\ndata 2\n{n:02}\n\n");
    }
    repo.git_with(["fast-import", "--quiet"], stream.as_bytes());
    let commits = repo.git(["rev-list", "long"]);
    let tags: String = commits.lines().enumerate().map(|(n, id)| format!("create refs/tags/t{n} {id}\n")).collect();
    repo.git_with(["update-ref", "--stdin"], tags.as_bytes());
    // 40 commits, which each of 40 walks would find anew.
    doors.server.git(["config", "cbia.maxPushCommits", "39"]);
    assert_eq!(refused_by(&doors, &["--tags"]).0, set_of(&["push-too-large"]));
    doors.server.git(["config", "cbia.maxPushCommits", "40"]);
    doors.accepts("forty tags", &["origin", "--tags"]);
}

#[test]
fn evidence_of_an_untrusted_writer_counts_where_the_server_says_so() {
    let doors = Doors::new();
    let repo = &doors.client;
    repo.git(["config", "cbia.cacheNamespace", "pulls"]);
    let (run, tip) = next_state(repo);
    repo.commit();
    let missing = set_of(&["evidence-missing", "gen-unadmitted"]);
    // The client's hook is content, uploads into the corner, and says that it may not count.
    let ran = doors.push(&["origin", "main:refs/heads/pulls/1"]).exits(1);
    assert_eq!(codes(&ran.stderr, "remote: error: "), missing, "{}", ran.stderr);
    assert!(ran.stderr.contains("below refs/cbia/ns/pulls/, which counts where"), "{}", ran.stderr);
    assert!(ran.stderr.contains("does not count for this ref"), "{}", ran.stderr);
    let corner = run.replace("refs/cbia/", "refs/cbia/ns/pulls/");
    assert_eq!(doors.server.only_ref("refs/cbia/ns/pulls/runs"), (corner.clone(), tip.clone()));

    doors.server.git(["config", "cbia.evidenceNamespace", "pulls refs/heads/pulls/**"]);
    // For one branch, and not for the other of the same push, whichever comes first.
    for refs in [["main:refs/heads/pulls/1", "main"], ["main", "main:refs/heads/zulu"]] {
        assert_eq!(refused_by(&doors, &refs).0, missing, "{refs:?}");
    }
    doors.accepts("where it counts", &["origin", "main:refs/heads/pulls/1"]);
    assert_eq!(refused_by(&doors, &["main"]).0, missing);
    // In the same push it counts for as much.
    doors.server.git(["update-ref", "-d", &corner]);
    let same = format!("{run}:{corner}");
    assert_eq!(refused_by(&doors, &["main", &same]).0, missing);
    doors.accepts("in the same push", &["--no-verify", "origin", "main:refs/heads/pulls/2", &same]);
    // What is there is derived again like any other run.
    let forged = repo.git(["rev-parse", &format!("{tip}^")]);
    doors.server.git(["update-ref", &corner, &forged]);
    let (found, _) = refused_by(&doors, &["main:refs/heads/pulls/3"]);
    assert_eq!(found, set_of(&["run-incomplete", "gen-unadmitted"]));
    // Somebody whose word is everybody's gives it.
    repo.git(["config", "--unset", "cbia.cacheNamespace"]);
    doors.accepts("by everybody's evidence", &["origin", "main"]);
    doors.server.git(["config", "cbia.evidenceNamespace", "../runs"]);
    assert_eq!(refused_by(&doors, &["main:refs/heads/x"]).0, set_of(&["setting-invalid"]));
}

/// Doors whose server starts git by a program of its own, with these variables and no others, as over ssh.
fn behind(doors: &Doors, variables: &[(&str, &str)]) -> String {
    let path = doors.client.command("git");
    let path = path.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap().to_str().unwrap().to_owned();
    let given: String = variables.iter().map(|(name, value)| format!(" '{name}={value}'")).collect();
    format!("env -i 'PATH={path}' 'HOME=/nonexistent' GIT_CONFIG_NOSYSTEM=1{given}")
}

#[test]
fn pushes_over_ssh_are_verified() {
    let doors = Doors::new();
    let repo = &doors.client;
    // What ssh does with its last argument, the command, on another machine: nothing of this environment is there.
    let ssh = repo.outside().join("ssh");
    let clean = behind(&doors, &[("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22"), ("REMOTE_USER", "ada")]);
    program(&ssh, &format!("#!/bin/sh\nfor last; do :; done\ncd / && exec {clean} sh -c \"$last\"\n"));
    repo.git(["config", "core.sshCommand", ssh.to_str().unwrap()]);
    repo.git(["config", "ssh.variant", "simple"]);
    repo.git(["config", "remote.origin.url", &format!("ssh://git.example.org{}", doors.server.path().display())]);
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    doors.refuses("over ssh", &["main"], &["gen-edited"]);
    repo.git(["reset", "-q", "--hard", &doors.base]);
    next_state(repo);
    repo.commit();
    let ran = doors.push(&["origin", "main"]).ok();
    assert!(ran.stderr.contains("git cbia: 1 ref verified, 2 refs of evidence uploaded first"), "{}", ran.stderr);
    assert_eq!(doors.server.git(["rev-parse", "main"]), repo.git(["rev-parse", "main"]));
    // And it can be fetched back by the same way.
    let other = repo.clone_to("other");
    other.git(["config", "core.sshCommand", ssh.to_str().unwrap()]);
    other.git(["config", "ssh.variant", "simple"]);
    other.git(["config", "remote.origin.url", &repo.git(["config", "remote.origin.url"])]);
    other.cbia(["fetch"]).ok();
    other.cbia(["verify"]).ok();
}

/// A hook that keeps what it is given, and gives it to every program of a folder: all must agree.
const DELEGATING: &str = "#!/bin/sh
data=$(cat)
worst=0
for hook in \"${GIT_DIR:-.}\"/FOLDER; do
  test -f \"$hook\" && test -x \"$hook\" || continue
  printf '%s\\n' \"$data\" | \"$hook\" || worst=$?
done
exit $worst
";
/// A policy that knows who may push.
const ONLY_ADA: &str =
    "package push\n\ndefault allow := false\n\nallow if {\n\tcount(input.findings) == 0\n\tinput.pusher.name == \"ada\"\n}\n";

/// How a server calls hooks: where ours goes, what stands in `hooks/pre-receive`, and who it says is pushing.
struct Layout {
    name: &'static str,
    /// Where ours is put, below the repository; nothing where `git cbia hooks install --server` finds the place.
    place: Option<&'static str>,
    /// What the server's own hook runs.
    delegates_to: &'static str,
    /// Where the server's own hook is, if git is told to look elsewhere than into `hooks/`.
    hooks: Option<&'static str>,
    variables: &'static [(&'static str, &'static str)],
}

const LAYOUTS: [Layout; 3] = [
    Layout {
        name: "Gitea and Forgejo",
        place: None,
        delegates_to: "hooks/pre-receive.d/*",
        hooks: None,
        variables: &[
            ("GITEA_REPO_NAME", "project"),
            ("GITEA_REPO_USER_NAME", "team"),
            ("GITEA_PUSHER_NAME", "ada"),
            ("GITEA_PUSHER_ID", "7"),
            ("GITEA_PR_ID", "0"),
            ("GITEA_IS_WIKI", "false"),
            ("SSH_ORIGINAL_COMMAND", "gitea-internal"),
        ],
    },
    Layout {
        name: "GitLab",
        place: Some("custom_hooks/pre-receive"),
        delegates_to: "custom_hooks/pre-receive",
        hooks: Some("gitaly-hooks"),
        variables: &[
            ("GL_ID", "user-7"),
            ("GL_USERNAME", "ada"),
            ("GL_REPOSITORY", "project-9"),
            ("GL_PROJECT_PATH", "team/project"),
            ("GL_PROTOCOL", "ssh"),
            ("GIT_TERMINAL_PROMPT", "0"),
        ],
    },
    Layout {
        name: "gitolite",
        place: Some("hooks/pre-receive.h00-cbia"),
        delegates_to: "hooks/pre-receive.h*",
        hooks: None,
        variables: &[
            ("GL_USER", "ada"),
            ("GL_REPO", "project"),
            ("GL_REPO_BASE", "/srv/git"),
            ("GL_LIBDIR", "/usr/share/gitolite"),
        ],
    },
];

#[test]
fn the_hook_works_where_each_server_has_its_hooks() {
    for Layout { name, place, delegates_to, hooks, variables } in LAYOUTS {
        let doors = Doors::after(|repo| repo.write("policy/push/push.rego", ONLY_ADA));
        let (repo, server) = (&doors.client, doors.server.path());
        // Before the server is one of these, the hook lies where git itself looks.
        std::fs::remove_file(server.join("hooks/pre-receive")).unwrap();
        let own = server.join(hooks.unwrap_or("hooks")).join("pre-receive");
        program(&own, &DELEGATING.replace("FOLDER", delegates_to));
        match place {
            Some(place) => {
                let hook = std::fs::read_to_string(format!("{}/hooks/pre-receive", env!("CARGO_MANIFEST_DIR"))).unwrap();
                program(&server.join(place), &hook);
            }
            None => {
                std::fs::create_dir_all(server.join("hooks/pre-receive.d")).unwrap();
                repo.cbia(["hooks", "install", "--server", server.to_str().unwrap()]).ok();
                assert!(server.join("hooks/pre-receive.d/cbia").is_file(), "{name}");
            }
        }
        // GitLab tells git by the environment where its hooks are.
        let hooks = hooks.map(|hooks| server.join(hooks).to_str().unwrap().to_owned());
        let told: Vec<(&str, &str)> = match &hooks {
            Some(hooks) => vec![("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "core.hooksPath"), ("GIT_CONFIG_VALUE_0", hooks)],
            None => Vec::new(),
        };
        let shell = |variables: &[(&str, &str)], at: &str| {
            let path = repo.outside().join(at);
            let clean = behind(&doors, &[variables, told.as_slice()].concat());
            program(&path, &format!("#!/bin/sh\nexec {clean} git receive-pack \"$@\"\n"));
            repo.git(["config", "remote.origin.receivepack", path.to_str().unwrap()]);
        };
        shell(variables, "known");
        repo.replace(NOTE, "brief", "Brief");
        repo.commit();
        assert_eq!(refused_by(&doors, WITH_RUNS).0, set_of(&["gen-edited"]), "{name}");
        repo.git(["reset", "-q", "--hard", &doors.base]);
        next_state(repo);
        repo.commit();
        // The same push by nobody that the server knows.
        shell(&[], "unknown");
        assert_eq!(refused_by(&doors, WITH_RUNS).0, set_of(&["push-denied"]), "{name}");
        shell(variables, "known");
        let before = tree_of(server);
        doors.accepts(name, &[&["--no-verify", "origin"], WITH_RUNS].concat());
        let new: Vec<String> = tree_of(server).difference(&before).cloned().collect();
        assert!(new.iter().all(|path| path.starts_with("objects/") || path.starts_with("refs/")), "{name}: {new:?}");
    }
}

/// Every file below a folder.
fn tree_of(folder: &Path) -> BTreeSet<String> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(at) = waiting.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn push_options_reach_the_hook_and_harm_nothing() {
    let doors = Doors::new();
    let repo: &Repo = &doors.client;
    doors.server.git(["config", "receive.advertisePushOptions", "true"]);
    repo.write("README.md", "More.\n");
    repo.commit();
    let long = format!("note={}", "x".repeat(60_000));
    let options: Vec<&str> = std::iter::repeat_n(["-o", long.as_str()], 12).flatten().collect();
    doors.accepts("long options", &[&options[..], &["origin", "main"]].concat());
    repo.replace(NOTE, "brief", "Brief");
    repo.commit();
    let (found, _) = refused_by(&doors, &[&options[..], &["main"]].concat());
    assert_eq!(found, set_of(&["gen-edited"]));
}

#[test]
fn files_are_found_in_the_runs_that_made_them_however_many_there_are() {
    let doors = Doors::new();
    let repo = &doors.client;
    // Runs of other states, which have the artifact too or another one; most are none at all.
    let (_, tip) = repo.only_ref("refs/cbia/runs");
    let mut stream = String::new();
    for n in 0..60 {
        let key = |text: String| git_cbia::document::digest::Digest::of(text.as_bytes());
        stream += &format!("commit refs/cbia/runs/{}/{}\n", key(format!("s{n}")), key("e".into()));
        stream += &format!("committer Ada <ada@example.org> 0 +0000\ndata 1\nx\nfrom {tip}\n");
        let file = if n % 2 == 0 { NOTE } else { "inputs/docs/rule.md" };
        stream += &format!("M 644 inline {file}\ndata 3\n{n:02}\n\n");
    }
    repo.git_with(["fast-import", "--quiet"], stream.as_bytes());
    let everything = "refs/cbia/runs/*:refs/cbia/runs/*";
    // They are none, and can only get there by another way than a push.
    repo.git(["push", "-q", "--no-verify", doors.server.path().to_str().unwrap(), "--receive-pack", NO_HOOKS, everything]);
    // A source that was moved is the same source, and this state has no run.
    repo.git(["mv", "docs/rule.md", "docs/moved.md"]);
    repo.set(LEDGER, "/authority_set/0/source/locator", json!("docs/moved.md"));
    repo.commit();
    doors.accepts("a moved source", &["origin", "main"]);
    repo.write("schemas/more.schema.json", "{}\n");
    repo.commit();
    doors.accepts("another schema", &["origin", "main"]);

    // Where not all were searched, the answer is not that there is none.
    let mut pipeline: serde_json::Value = serde_json::from_str(&repo.read(PIPELINE)).unwrap();
    let more = json!({"path": "out/more.txt", "objectives": ["O-1"], "template": "control/templates/note.txt.j2"});
    pipeline["gen"]["artifacts"].as_array_mut().unwrap().push(more);
    repo.write_json(PIPELINE, &pipeline);
    repo.write("out/more.txt", "by hand\n");
    repo.commit();
    let unknown = ["evidence-missing", "gen-unadmitted"];
    assert_eq!(refused_by(&doors, &["main"]).0, set_of(&unknown));
    doors.server.git(["config", "cbia.maxPushSearched", "10"]);
    let (found, ran) = refused_by(&doors, &["main"]);
    assert!(found.contains("push-too-large"), "{}", ran.stderr);
    assert!(ran.stderr.contains("more than 10 runs are known here, and not all of them were searched"), "{}", ran.stderr);
}
