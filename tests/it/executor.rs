//! Executors that are programs of their own: the contract, the cage, and every way in which one can misbehave.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{EXECUTOR, NOTE, PIPELINE, PROGRAM, Ran, Repo};

pub const SCRIPT: &str = "control/executors/x.py";
const PYTHON: &str = "/usr/bin/python3";

/// Whether these tests can run: their executors are Python programs, and the suite must do with a Rust toolchain and git. CI installs Python,
/// and must not go without them.
pub(super) fn ready() -> bool {
    let there = Path::new(PYTHON).exists();
    #[expect(clippy::disallowed_methods, reason = "only CI says that it is CI")]
    let ci = std::env::var_os("CI").is_some();
    assert!(there || !ci, "{PYTHON} is missing");
    there
}
/// What every script begins with: the request, and the honest way to answer it.
const PRELUDE: &str = r#"
import hashlib, json, os, sys, time, socket, subprocess, signal
request = json.load(open(sys.argv[-1]))
outputs = request["phase_config"]["outputs"]
def write(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
def entry(path, data):
    return {"path": path, "hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
def report(entries, **more):
    document = {"schema_version": "0.1.0", "phase": "GEN", "artifacts": entries, "tool_versions": {"x": "1"}}
    document.update(more)
    write(outputs["execution_report"], json.dumps(document).encode())
def finish(data=b"made\n"):
    for path in outputs["artifacts"]:
        write(path, data)
    report([entry(path, data) for path in outputs["artifacts"]])
"#;

/// A tiny pipeline, and a folder of its own for scratch directories.
pub(super) fn repo() -> Repo {
    let repo = Repo::tiny();
    std::fs::create_dir(temporary(&repo)).unwrap();
    let name = temporary(&repo).to_str().unwrap().to_owned();
    repo.with("TMPDIR", Some(&name))
}

fn temporary(repo: &Repo) -> PathBuf {
    repo.outside().join("tmp")
}

pub fn configure(repo: &Repo, body: &str, more: Value) {
    repo.write(SCRIPT, format!("{PRELUDE}\n{body}\n"));
    let mut config = json!({"kind": "external", "version": "1", "command": [PYTHON, SCRIPT], "timeout_s": 60});
    config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    repo.write_json(EXECUTOR, &config);
}

pub(super) fn record(repo: &Repo) -> Value {
    serde_json::from_str(&repo.git(["show", "refs/cbia/ledger:record.json"])).unwrap()
}

pub(super) fn log(repo: &Repo) -> String {
    repo.git(["show", "refs/cbia/ledger:execution/gen/executor.log"])
}

/// Whether any process names this repository's surroundings, or works in them.
fn processes(repo: &Repo) -> Vec<String> {
    let name = repo.outside().to_str().unwrap().to_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&name) || folder.starts_with(repo.outside()) {
            found.push(words);
        }
    }
    found
}

/// Nothing is left of an execution: no process, no scratch directory.
#[track_caller]
pub(super) fn nothing_left(repo: &Repo) {
    assert_eq!(processes(repo), [""; 0]);
    let left: Vec<_> = std::fs::read_dir(temporary(repo)).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs, and asserts that the executor failed with exactly these codes and left nothing at all but a record.
#[track_caller]
pub(super) fn refused(repo: &Repo, codes: &[&str]) -> Ran {
    let ran = repo.cbia(["run", "--json"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let mut got = ran.codes();
    got.dedup();
    assert_eq!(got, codes, "{}", ran.stdout);
    for finding in ran.json()["findings"].as_array().unwrap() {
        assert!(!finding["message"].as_str().unwrap().is_empty());
    }
    assert_eq!((ran.json()["outcome"].as_str(), ran.gen_status().as_str()), (Some("failed"), "failed"));
    assert_eq!(repo.refs("refs/cbia/cache").len() + repo.refs("refs/cbia/runs").len(), 0);
    assert_eq!(repo.events(), ["failed"]);
    assert!(!repo.has(NOTE) && !repo.has("execution/gen"));
    nothing_left(repo);
    assert_eq!(repo.leftovers(), [""; 0]);
    ran
}

#[test]
fn the_reference_executor_satisfies_the_pipeline_that_init_writes() {
    if !ready() {
        return;
    }
    let repo = Repo::started();
    repo.write("control/executors/gen_local.py", include_str!("../../control/executors/gen_local.py"));
    repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "1", "command": [PYTHON, "control/executors/gen_local.py"]}));
    assert_eq!(repo.run(), "executed");
    let rules: Value = serde_json::from_str(&repo.read("artifacts/rules.json")).unwrap();
    assert_eq!(rules["objectives"], json!(["O-02"]));
    assert_eq!(repo.run(), "replayed");
}

#[test]
fn the_reference_executor_is_invoked_once_and_recorded() {
    if !ready() {
        return;
    }
    let repo = repo();
    let script = include_str!("../../control/executors/gen_local.py");
    repo.write("control/executors/gen_local.py", script);
    repo.write_json(EXECUTOR, &json!({"kind": "local", "version": "1", "command": [PYTHON, "control/executors/gen_local.py"]}));
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!(ran.gen_status(), "executed");
    assert_eq!(repo.read(NOTE), "O-1: A note.\n  from rule (docs/rule.md)\n");
    let report: Value = serde_json::from_str(&repo.read("execution/gen/executor.report.json")).unwrap();
    assert_eq!(report["tool_versions"], json!({"gen_local": "2"}));
    assert_eq!(report["artifacts"][0]["path"], NOTE);
    let request: Value = serde_json::from_str(&repo.read("execution/gen/request.json")).unwrap();
    let programs = &request["pre_gen_capsule"]["gen_executor"]["programs"];
    assert_eq!(programs[1]["sha256"], json!(git_cbia::document::digest::Digest::of(script.as_bytes())));
    let record = record(&repo);
    assert_eq!(record["executor"]["exit"], "exit 0");
    assert!(record["executor"]["level"].as_str().unwrap().contains("landlock:"), "{record}");
    assert_eq!(record["executor"]["log"], Value::Null);
    nothing_left(&repo);
    assert_eq!(repo.run(), "replayed");
    assert_eq!(self::record(&repo).get("executor"), None);
    repo.fsck();
}

#[test]
fn a_replay_does_not_invoke_it_and_every_part_of_it_is_in_the_key() {
    if !ready() {
        return;
    }
    let repo = repo().with("KEY", Some("value-of-key")).with("OTHER", Some("value-of-other"));
    // Fails if it is called where the marker, which only the first call has, is not there.
    let body = "assert os.environ['MARK'] == '1', 'called again'\nfinish()";
    let config = json!({"env": {"MARK": "1"}});
    configure(&repo, body, config.clone());
    assert_eq!(repo.run(), "executed");
    let first = repo.refs("refs/cbia/runs");
    assert_eq!(repo.run(), "replayed");
    let bytes = repo.read(SCRIPT);
    for change in ["version", "command", "env", "pass_env", "script"] {
        configure(&repo, body, config.clone());
        match change {
            "version" => repo.set(EXECUTOR, "/version", json!("2")),
            "command" => repo.set(EXECUTOR, "/command", json!([PYTHON, "-B", SCRIPT])),
            "env" => repo.set(EXECUTOR, "/env/MORE", json!("1")),
            "pass_env" => repo.set(EXECUTOR, "/sandbox", json!({"pass_env": ["KEY"]})),
            _ => repo.write(SCRIPT, format!("{bytes}\n")),
        }
        assert_eq!(repo.run(), "executed", "{change}");
    }
    configure(&repo, body, config);
    assert_eq!(repo.run(), "replayed");
    assert!(repo.refs("refs/cbia/runs").contains(&first[0]));
}

#[test]
fn its_environment_and_folder_are_exactly_what_was_declared() {
    if !ready() {
        return;
    }
    let repo = repo().with("SECRET_TOKEN", Some("not for it")).with("KEY", Some("passed-on-value"));
    let body = r#"
files = sorted(os.path.join(f, n)[2:] for f, _, names in os.walk(".") for n in names)
print(json.dumps({"env": sorted(os.environ), "files": files, "cwd": os.getcwd(), "argv": len(sys.argv), "stdin": sys.stdin.read(),
  "same": os.environ["CBIA_GEN_REQUEST"] == sys.argv[-1], "session": os.getsid(0) == os.getpid()}))
finish()
"#;
    configure(&repo, body, json!({"env": {"LC_ALL": "C"}, "sandbox": {"pass_env": ["KEY"]}}));
    repo.cbia(["run", "--json"]).ok();
    let seen: Value = serde_json::from_str(&log(&repo)).unwrap();
    assert_eq!(seen["env"], json!(["CBIA_GEN_REQUEST", "KEY", "LC_ALL", "TMPDIR"]));
    assert_eq!(
        seen["files"],
        json!([
            SCRIPT,
            "control/objectives.json",
            "control/templates/note.txt.j2",
            "data/words.txt",
            "docs/rule.md",
            "execution/gen/request.json"
        ])
    );
    assert!(seen["cwd"].as_str().unwrap().starts_with(temporary(&repo).to_str().unwrap()));
    assert_eq!(
        (&seen["argv"], &seen["stdin"], &seen["same"], &seen["session"]),
        (&json!(2), &json!(""), &json!(true), &json!(true))
    );
    let ran = repo.with("KEY", None);
    ran.set(EXECUTOR, "/version", json!("2"));
    let ran = ran.cbia(["run", "--json"]).exits(5);
    assert_eq!(ran.codes(), ["executor-variable-missing"]);
}

#[test]
fn every_wrong_answer_is_an_error_of_its_own() {
    if !ready() {
        return;
    }
    let cases: &[(&str, &str, &[&str])] = &[
        ("exits", "finish()\nsys.exit(3)", &["executor-failed"]),
        ("is killed", "finish()\nos.kill(os.getpid(), signal.SIGKILL)", &["executor-killed"]),
        ("says nothing", "pass", &["report-missing"]),
        (
            "wrong hash",
            "finish()\nreport([dict(entry(p, b'made\\n'), hash='0'*64) for p in outputs['artifacts']])",
            &["output-mismatch"],
        ),
        (
            "wrong size",
            "finish()\nreport([dict(entry(p, b'made\\n'), bytes=4) for p in outputs['artifacts']])",
            &["output-mismatch"],
        ),
        (
            "one more in the report",
            "finish()\nreport([entry(p, b'made\\n') for p in outputs['artifacts'] + ['out/more']])",
            &["output-undeclared"],
        ),
        (
            "one twice in the report",
            "finish()\nreport([entry(p, b'made\\n') for p in outputs['artifacts'] * 2])",
            &["report-invalid"],
        ),
        ("none in the report", "finish()\nreport([])", &["output-missing"]),
        ("not written", "finish()\nos.unlink(outputs['artifacts'][0])", &["output-missing"]),
        ("not JSON", "finish()\nwrite(outputs['execution_report'], b'{')", &["report-invalid"]),
        (
            "duplicate key",
            "finish()\nwrite(outputs['execution_report'], open(outputs['execution_report'],'rb').read()[:-1] + b',\"phase\":\"GEN\"}')",
            &["report-invalid"],
        ),
        (
            "unknown member",
            "finish()\nreport([entry(p, b'made\\n') for p in outputs['artifacts']], extra=1)",
            &["report-invalid"],
        ),
        (
            "another phase",
            "finish()\nreport([entry(p, b'made\\n') for p in outputs['artifacts']], phase='REPAIR')",
            &["report-invalid"],
        ),
        ("deep JSON", "finish()\nwrite(outputs['execution_report'], b'['*100000)", &["report-invalid"]),
        ("100 MB of JSON", "finish()\nwrite(outputs['execution_report'], b'[' + b' '*100_000_000 + b']')", &["report-invalid"]),
        ("an undeclared file", "finish()\nwrite('out/more', b'')\nwrite('elsewhere', b'')", &["output-undeclared"]),
        (
            "a symbolic link",
            "finish()\np=outputs['artifacts'][0]\nos.rename(p, p+'x')\nos.symlink(p+'x', p)\nos.unlink(p+'x')",
            &["output-not-regular"],
        ),
        ("a link elsewhere", "finish()\nos.symlink('/etc', 'out/l')", &["output-not-regular"]),
        (
            "a folder link",
            "finish()\nos.rename('out', 'o')\nos.symlink('o', 'out')",
            &["output-undeclared", "output-not-regular", "output-missing"],
        ),
        ("a hard link", "finish()\nos.link(outputs['artifacts'][0], os.environ['TMPDIR'] + '/l')", &["output-hard-link"]),
        (
            "a link to an input",
            "finish(b'one two\\n')\np=outputs['artifacts'][0]\nos.unlink(p)\nos.link('data/words.txt', p)",
            &["executor-input-changed", "output-hard-link"],
        ),
        (
            "a folder instead",
            "finish()\np=outputs['artifacts'][0]\nos.unlink(p)\nos.mkdir(p)\nwrite(p+'/x', b'')",
            &["output-undeclared", "output-not-regular"],
        ),
        ("a folder as report", "finish()\np=outputs['execution_report']\nos.unlink(p)\nos.mkdir(p)", &["output-not-regular"]),
        ("names", "finish()\nwrite('out/a\\nb', b'')\nwrite(b'out/\\xff', b'')", &["path-invalid"]),
        ("a git folder", "finish()\nwrite('.git/hooks/pre-push', b'')", &["path-invalid"]),
        ("deep folders", "finish()\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')", &["path-invalid"]),
        ("an input changed", "finish()\nwrite('data/words.txt', b'one two\\n')", &["executor-input-changed"]),
        (
            "its inputs deleted",
            "import shutil\nfinish()\nshutil.rmtree('data')\nos.unlink('docs/rule.md')",
            &["executor-input-changed"],
        ),
        (
            "a daemon",
            "finish()\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)\nos.wait()",
            &["executor-failed"],
        ),
        ("unstartable", "", &["executor-not-found"]),
        ("a file in .git", "finish()\nopen('{top}/repo/.git/hooks/pre-push', 'w')", &["executor-failed"]),
        ("a file in the home", "finish()\nopen('{top}/home/.profile', 'w')", &["executor-failed"]),
        ("a file beside its folder", "finish()\nopen('../x', 'w')", &["executor-failed"]),
        ("a socket", "finish()\nsocket.create_connection(('127.0.0.1', 9))", &["executor-failed"]),
        ("its key in an artifact", "finish(os.environ['KEY'].encode())", &["output-holds-secret"]),
    ];
    for (name, body, codes) in cases {
        let repo = repo().with("KEY", Some("a-long-secret-value"));
        let body = body.replace("{top}", repo.outside().to_str().unwrap());
        configure(&repo, &body, json!({"sandbox": {"pass_env": ["KEY"]}}));
        if *name == "unstartable" {
            // Outside of what it may read and execute.
            let program = repo.outside().join("true");
            std::fs::copy("/bin/true", &program).unwrap();
            repo.set(EXECUTOR, "/command", json!([program.to_str().unwrap()]));
        }
        refused(&repo, codes);
    }
}

#[test]
fn limits_end_it() {
    if !ready() {
        return;
    }
    let hang = "subprocess.Popen(['/bin/sleep', '600'])\nsubprocess.Popen(['/bin/sh', '-c', 'trap \"\" TERM HUP; sleep 600'], start_new_session=True)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('waiting', flush=True)\ntime.sleep(600)";
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("time", hang, json!({"timeout_s": 1}), &["executor-timeout"]),
        (
            "file",
            "finish()\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nwrite('out/x', b'0' * 5000)",
            json!({"sandbox": {"limits": {"file_bytes": 4096}}}),
            &["executor-killed"],
        ),
        ("memory", "b = bytearray(5 << 30)", json!({}), &["executor-failed"]),
        ("processor", "while True: pass", json!({"sandbox": {"limits": {"cpu_s": 1}}}), &["executor-killed"]),
        (
            "processes",
            "for _ in range(40): subprocess.Popen(['/bin/sleep', '600'])\ntime.sleep(600)",
            json!({"sandbox": {"limits": {"processes": 20}}}),
            &["executor-killed"],
        ),
        (
            "files",
            "finish()\nfor i in range(200): write('out/%d' % i, b'')",
            json!({"sandbox": {"limits": {"output_files": 100}}}),
            &["output-too-large"],
        ),
        (
            "disk",
            "finish()\nfor i in range(64): write(os.environ['TMPDIR'] + '/d/%d' % i, b'0' * (1 << 20))\ntime.sleep(600)",
            json!({"sandbox": {"limits": {"disk_bytes": 16 << 20}}}),
            &["executor-killed"],
        ),
        ("bytes", "finish(b'0' * 5000)", json!({"sandbox": {"limits": {"output_bytes": 4999}}}), &["output-too-large"]),
        (
            "print",
            "for _ in range(1000): sys.stdout.buffer.write(b'0' * 1_000_000)\nfinish()",
            json!({}),
            &["executor-killed", "executor-log-cut"],
        ),
    ];
    for (name, body, config, codes) in cases {
        let repo = repo();
        configure(&repo, body, config.clone());
        let mut codes = codes.to_vec();
        if *name == "print" {
            codes.reverse();
        }
        refused(&repo, &codes);
    }
}

#[test]
fn what_it_prints_is_shown_kept_and_bounded() {
    if !ready() {
        return;
    }
    let repo = repo();
    let body = "finish()\nprint('to \\x1b[31m out'); print('to err', file=sys.stderr)\nsys.stdout.flush()\nprint('x' * 5000)";
    configure(&repo, body, json!({"sandbox": {"limits": {"log_bytes": 1000}}}));
    let ran = repo.cbia(["run", "--json"]).ok();
    assert_eq!(ran.codes(), ["executor-log-cut"]);
    assert!(ran.stderr.contains("to \\u{1b}[31m out") && ran.stderr.contains("to err"), "{}", ran.stderr);
    let kept = log(&repo);
    assert!(kept.starts_with("to ") && kept.contains(" bytes are left out here]\nxxx"), "{kept}");
    assert!((1000..1050).contains(&kept.len()), "{}", kept.len());
    assert_eq!(record(&repo)["executor"]["log"], "execution/gen/executor.log");
    let run = ran.json()["run"].as_str().unwrap().to_owned();
    assert_eq!(repo.git(["ls-tree", "-r", "--name-only", &run]).matches("executor.log").count(), 0);
}

/// What a confined executor tries, and what becomes of it.
const ATTACKS: &str = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
top, pid = sys.argv[1], int(sys.argv[2])
results = {}
def attempt(name, action):
    try:
        action()
        results[name] = True
    except Exception as error:
        results[name] = False
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")
def opened(path, mode="rb"):
    with open(path, mode) as file:
        return file.read(1) if "r" in mode else file.write(b"x")
outside, git, home = top + "/kept", top + "/repo/.git", top + "/home"
attempt("create", lambda: opened(top + "/new", "wb"))
attempt("append", lambda: opened(outside, "ab"))
attempt("truncate", lambda: os.truncate(outside, 0))
attempt("unlink", lambda: os.unlink(outside))
attempt("rename", lambda: os.rename(outside, outside + "2"))
attempt("rename in", lambda: os.rename(outside, "kept"))
attempt("hard link in", lambda: os.link(outside, "kept"))
attempt("mkdir", lambda: os.mkdir(top + "/folder"))
attempt("symlink outside", lambda: os.symlink("x", top + "/link"))
def through():
    os.symlink(outside, "through")
    try: opened("through", "wb")
    finally: os.unlink("through")
attempt("write through a link", through)
attempt("chown", lambda: os.chown(outside, 1, 1))
attempt("setxattr", lambda: os.setxattr(outside, "user.x", b"1"))
attempt("read a file", lambda: opened(outside))
attempt("read home", lambda: os.listdir(home))
attempt("read git", lambda: opened(git + "/config"))
attempt("write git", lambda: opened(git + "/hooks/pre-push", "wb"))
attempt("list scratch's parent", lambda: os.listdir(".."))
attempt("list other scratches", lambda: os.listdir("../.."))
attempt("read /etc/passwd", lambda: opened("/etc/passwd"))
attempt("read the parent's environment", lambda: opened("/proc/%d/environ" % os.getppid()))
attempt("read another's environment", lambda: opened("/proc/%d/environ" % pid))
attempt("list processes", lambda: os.listdir("/proc"))
attempt("mknod", lambda: os.mknod("device", 0o600 | 0o020000, os.makedev(1, 3)))
attempt("mkfifo", lambda: os.mkfifo("fifo"))
for name, family, kind in [("tcp", socket.AF_INET, socket.SOCK_STREAM), ("tcp6", socket.AF_INET6, socket.SOCK_STREAM), ("udp", socket.AF_INET, socket.SOCK_DGRAM),
    ("raw", socket.AF_INET, socket.SOCK_RAW), ("netlink", socket.AF_NETLINK, socket.SOCK_RAW), ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM),
    ("unix", socket.AF_UNIX, socket.SOCK_STREAM), ("unix datagram", socket.AF_UNIX, socket.SOCK_DGRAM)]:
    attempt(name, lambda: socket.socket(family, kind, 1 if kind == socket.SOCK_RAW and family == socket.AF_INET else 0).close())
attempt("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("signal", lambda: os.kill(pid, signal.SIGTERM))
attempt("signal the parent", lambda: os.kill(os.getppid(), 0))
attempt("ptrace", lambda: call(101, 16, pid, 0, 0))
attempt("read its memory", lambda: call(310, pid, 0, 0, 0, 0, 0))
attempt("unshare", lambda: call(272, 0x10000000))
attempt("clone a namespace", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("mount", lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, 0))
attempt("io_uring", lambda: call(425, 1, ctypes.create_string_buffer(256)))
attempt("keyctl", lambda: call(250, 0, -3, 0))
attempt("bpf", lambda: call(321, 0, ctypes.create_string_buffer(256), 64))
attempt("perf", lambda: call(298, ctypes.create_string_buffer(256), 0, -1, -1, 0))
attempt("open by handle", lambda: call(304, -100, ctypes.create_string_buffer(256), 0))
attempt("outlive", lambda: call(157, 1, 0, 0, 0, 0))
attempt("type into a terminal", lambda: call(16, 2, 0x5412, b"x"))
attempt("inherited file", lambda: os.fstat(9))
attempt("git's variables", lambda: os.environ["GIT_DIR"])
attempt("a secret", lambda: os.environ["SECRET_TOKEN"])
attempt("a terminal", lambda: open("/dev/tty"))
attempt("a setuid bit", lambda: os.fchmod(os.open(sys.executable, os.O_RDONLY), 0o4755))
# What it must be able to do.
attempt("may: temporary file", lambda: opened(os.environ["TMPDIR"] + "/x", "wb"))
attempt("may: null", lambda: opened("/dev/null", "wb"))
attempt("may: random", lambda: opened("/dev/urandom"))
attempt("may: child", lambda: subprocess.run(["/bin/sh", "-c", "exit 0"], check=True))
attempt("may: signal itself", lambda: os.kill(os.getpid(), 0))
attempt("may: pair", lambda: socket.socketpair())
attempt("may: copy", lambda: __import__("shutil").copy2("data/words.txt", os.environ["TMPDIR"] + "/copy"))
attempt("may: thread", lambda: (lambda t: (t.start(), t.join()))(__import__("threading").Thread(target=lambda: None)))
os.chmod(outside, 0o777)
os.utime(outside, (1, 1))
print(json.dumps(results))
finish()
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn everything_outside_is_denied() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if !ready() {
        return;
    }
    let repo = repo();
    let kept = repo.outside().join("kept");
    std::fs::write(&kept, "kept").unwrap();
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o640)).unwrap();
    let before = kept.metadata().unwrap();
    let mut victim = repo.command("/bin/sleep");
    let mut victim = victim.arg("600").current_dir("/").spawn().unwrap();
    configure(&repo, ATTACKS, json!({}));
    let top = repo.outside().to_str().unwrap();
    repo.set(EXECUTOR, "/command", json!([PYTHON, SCRIPT, top, victim.id().to_string()]));
    let outer = repo.with("SECRET_TOKEN", Some("x")).with("GIT_DIR", Some(&format!("{top}/repo/.git")));
    // Another file is open in the program's place of birth.
    let mut command = outer.command("/bin/sh");
    command.args(["-c", "exec 9<\"$0\" && exec git-cbia run --json", kept.to_str().unwrap()]);
    let ran = outer.finish(command, b"");
    let alive = victim.try_wait().unwrap().is_none();
    victim.kill().unwrap();
    victim.wait().unwrap();
    ran.ok();
    assert!(alive);
    let results: serde_json::Map<String, Value> = serde_json::from_str(&log(&repo)).unwrap();
    let wrong: Vec<_> = results.iter().filter(|(name, done)| name.starts_with("may: ") != done.as_bool().unwrap()).collect();
    assert!(wrong.is_empty() && results.len() > 55, "{wrong:?}");
    let after = kept.metadata().unwrap();
    let facts = |m: &std::fs::Metadata| (m.mode(), m.uid(), m.mtime(), m.len(), m.nlink(), m.ino());
    assert_eq!(facts(&before), facts(&after));
    nothing_left(&repo);
}

/// Whether the kernel's help can be taken from a run here.
fn tracer() -> bool {
    ready() && Path::new("/usr/bin/strace").exists()
}

/// Runs on a kernel that says that it has no Landlock.
fn without_landlock(repo: &Repo) -> Ran {
    let mut command = repo.command("strace");
    let inject = "inject=landlock_create_ruleset:error=EOPNOTSUPP";
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", inject, PROGRAM, "run", "--json"]);
    repo.finish(command, b"")
}

#[test]
fn without_the_kernels_help_it_is_refused_unless_allowed() {
    if !tracer() {
        return;
    }
    let repo = repo();
    configure(&repo, "finish()", json!({}));
    let ran = without_landlock(&repo).exits(5);
    assert_eq!(ran.codes(), ["sandbox-unavailable"]);
    assert_eq!((repo.events(), record(&repo)["executor"]["level"].as_str().unwrap()), (vec!["failed".to_owned()], "none"));
    nothing_left(&repo);
    configure(&repo, "finish()", json!({"sandbox": {"require": false}}));
    without_landlock(&repo).ok();
    assert_eq!(record(&repo)["executor"]["level"], "none");
    nothing_left(&repo);
}

/// An executor that leaves a trace outside its folder, where nothing confines it.
fn tracing(repo: &Repo) -> PathBuf {
    let trace = repo.outside().join("trace");
    configure(
        repo,
        &format!("open({:?}, 'w').close()\nfinish()", trace.to_str().unwrap()),
        json!({"sandbox": {"require": false}}),
    );
    trace
}

#[test]
fn policy_judges_the_level_before_anything_is_started() {
    if !tracer() {
        return;
    }
    let repo = repo();
    let trace = tracing(&repo);
    let policy = "package control.executor\n\ndefault allow := false\n\nallow if {\n\tsome layer in input.layers\n\
                  \tstartswith(layer, \"landlock:\")\n\tinput.gen_executor.version == \"1\"\n}\n";
    repo.write("policy/executor.rego", policy);
    for _ in 0..2 {
        let ran = without_landlock(&repo).exits(1);
        assert!(ran.codes().contains(&"confinement-denied".to_owned()), "{:?}", ran.codes());
        let document = ran.json();
        let message = ran.finding("confinement-denied")["message"].as_str().unwrap().to_owned();
        assert!(message.ends_with("reached: none"), "{message}");
        assert_eq!((document["outcome"].as_str(), ran.gen_status().as_str()), (Some("denied"), "skipped"));
        assert_eq!(record(&repo)["executor"], json!({"level": "none", "exit": "not started", "log": null}));
        assert!(!trace.exists() && !repo.has(NOTE));
        assert_eq!(repo.refs("refs/cbia/cache").len() + repo.refs("refs/cbia/runs").len(), 0);
        nothing_left(&repo);
    }
    assert_eq!(repo.events(), ["denied", "denied"]);
    // The same state, where it can be confined.
    configure(&repo, "finish()", json!({"sandbox": {"require": false}}));
    repo.cbia(["run", "--json"]).ok();
    assert!(record(&repo)["executor"]["level"].as_str().unwrap().starts_with("landlock:"));
    // A rule that is not exactly true denies, and so does one that cannot be asked.
    for (rule, code) in [("allow := 1", "policy-not-boolean"), ("allow if input.missing", "policy-undefined")] {
        repo.write("policy/executor.rego", format!("package control.executor\n\n{rule}\n"));
        let codes = repo.cbia(["run", "--json"]).exits(1).codes();
        assert!(codes.contains(&"confinement-denied".to_owned()) && codes.contains(&code.to_owned()), "{codes:?}");
    }
}

#[test]
fn what_is_not_admitted_or_known_is_never_started() {
    if !tracer() {
        return;
    }
    type Case<'a> = (&'a str, &'a dyn Fn(&Repo));
    let cases: [Case<'_>; 3] = [
        ("kernel", &|repo| repo.replace("policy/kernel.rego", "allow if input.authority_ledger.frozen", "allow if input.never")),
        ("policy", &|repo| repo.replace("policy/assurance.rego", "allow if input.pre_gen_capsule", "allow if input.never")),
        ("authority", &|repo| repo.write("docs/rule.md", "changed\n")),
    ];
    for (name, change) in cases {
        let repo = repo();
        let trace = tracing(&repo);
        change(&repo);
        let ran = without_landlock(&repo).exits(1);
        assert_eq!(ran.gen_status(), "skipped", "{name}");
        assert_eq!(record(&repo).get("executor"), None, "{name}");
        assert!(!trace.exists(), "{name}");
        nothing_left(&repo);
    }
    let repo = repo();
    let trace = tracing(&repo);
    assert_eq!(without_landlock(&repo).ok().gen_status(), "executed");
    assert!(trace.exists(), "this executor leaves a trace if it is started");
    std::fs::remove_file(&trace).unwrap();
    assert_eq!(without_landlock(&repo).ok().gen_status(), "replayed");
    assert!(!trace.exists(), "a replay starts nothing");
    // Where it is confined it leaves none, and fails.
    repo.set(EXECUTOR, "/version", json!("2"));
    assert_eq!(repo.cbia(["run", "--json"]).exits(5).codes(), ["executor-failed"]);
    assert!(!trace.exists());
    nothing_left(&repo);
}

/// Runs with a command of the shell before it, as the owner of namespaces of its own; nothing where the system has none to give.
fn in_namespaces(repo: &Repo, prepare: &str, after: &str) -> Option<Ran> {
    let shell = format!("{prepare} || exit 77; \"$0\" run --json; code=$?; {after}; exit $code");
    let mut command = repo.command("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &shell, PROGRAM, temporary(repo).to_str().unwrap()]);
    let possible = repo.command("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return None;
    }
    let ran = repo.finish(command, b"");
    (ran.code != Some(77)).then_some(ran)
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    if !ready() {
        return;
    }
    for (size, code) in [("1m", "executor-failed"), ("20k", "scratch-failed")] {
        let repo = repo();
        repo.write("data/words.txt", "one two\n".repeat(10_000));
        configure(&repo, "finish()\nwrite(os.environ['TMPDIR'] + '/x', b'0' * (4 << 20))", json!({}));
        let mount = format!("mount -t tmpfs -o size={size} none \"$1\"");
        let Some(ran) = in_namespaces(&repo, &mount, "ls -A \"$1\" | sed 's/^/left: /' >&2") else { return };
        let ran = ran.exits(5);
        assert_eq!(ran.codes(), [code], "{ran:?}");
        assert!(!ran.stderr.contains("left: "), "{}", ran.stderr);
        let told = format!("{} {}", ran.stderr, ran.stdout);
        assert!(told.contains("No space left on device"), "{told}");
        assert_eq!(repo.events(), ["failed"]);
        assert_eq!(repo.refs("refs/cbia/cache").len() + repo.refs("refs/cbia/runs").len(), 0);
        nothing_left(&repo);
    }
}

#[test]
fn bubblewrap_is_outside_where_it_works() {
    if !ready() {
        return;
    }
    let Some(bwrap) = ["/usr/bin/bwrap", "/bin/bwrap"].into_iter().find(|place| Path::new(place).exists()) else { return };
    let repo = repo();
    let body = "print(json.dumps({n: os.readlink('/proc/self/ns/' + n) for n in ['user', 'mnt', 'net', 'ipc', 'uts', 'pid']}))\n\
                print(os.path.exists('/dev/kmsg'))\nfinish()";
    configure(&repo, body, json!({}));
    repo.cbia(["run", "--json"]).ok();
    let level = record(&repo)["executor"]["level"].as_str().unwrap().to_owned();
    let works = repo.command(bwrap).args(["--unshare-user", "--unshare-net", "--ro-bind", "/", "/", "/bin/true"]).status();
    if !works.unwrap().success() {
        assert!(level.starts_with("landlock:"), "{level}");
        return;
    }
    assert!(level.starts_with("bwrap+landlock:") && level.ends_with("+seccomp"), "{level}");
    let inside: serde_json::Map<String, Value> = serde_json::from_str(log(&repo).lines().next().unwrap()).unwrap();
    assert!(log(&repo).ends_with("False"), "{}", log(&repo));
    for (name, of) in inside {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(ours.to_str() == of.as_str(), name == "pid", "{name}");
    }
    // The network is the machine's where it is granted.
    repo.set(EXECUTOR, "/sandbox", json!({"network": true}));
    repo.cbia(["run", "--json"]).ok();
    let net = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(log(&repo).contains(net.to_str().unwrap()));
    // Where there are no namespaces to be had, it goes without, and says nothing about it but in the level.
    repo.set(EXECUTOR, "/version", json!("2"));
    let Some(ran) = in_namespaces(&repo, "echo 0 > /proc/sys/user/max_user_namespaces", ":") else { return };
    ran.ok();
    assert!(record(&repo)["executor"]["level"].as_str().unwrap().starts_with("landlock:"));
    assert!(!log(&repo).contains("bwrap"), "{}", log(&repo));
    nothing_left(&repo);
}

#[test]
fn a_script_of_the_system_is_started_by_its_name() {
    if !ready() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let repo = repo();
    let folder = repo.outside().join("tools");
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("generate");
    std::fs::write(&program, format!("#!{PYTHON}\n{PRELUDE}\nprint(sys.argv[0])\nfinish()\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    configure(&repo, "", json!({"sandbox": {"read": [folder.to_str().unwrap()]}}));
    repo.set(EXECUTOR, "/command", json!([program.to_str().unwrap()]));
    assert_eq!(repo.run(), "executed");
    assert_eq!(log(&repo), program.to_str().unwrap());
    // A program of the system knows its own name, too, although it is started by its open file.
    configure(&repo, "print(sys.executable)\nfinish()", json!({}));
    assert_eq!(repo.run(), "executed");
    assert_eq!(log(&repo), PYTHON);
    nothing_left(&repo);
}

#[test]
fn the_network_is_granted_and_only_that() {
    if !ready() {
        return;
    }
    let repo = repo();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = format!(
        "def tried(action):\n    try:\n        action()\n        return True\n    except OSError:\n        return False\n\
         print(json.dumps([tried(lambda: socket.create_connection(('127.0.0.1', {port})).close()), tried(lambda: socket.socket(socket.AF_UNIX)), \
         tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)), tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))]))\nfinish()"
    );
    for (network, wanted) in [(false, "[false, false, false, false]\n"), (true, "[true, false, false, false]\n")] {
        configure(&repo, &body, json!({"sandbox": {"network": network}}));
        repo.cbia(["run", "--json"]).ok();
        assert_eq!(log(&repo) + "\n", wanted);
    }
}

#[test]
fn a_program_that_is_not_there_denies_the_state() {
    let repo = repo();
    repo.write_json(EXECUTOR, &json!({"kind": "external", "version": "1", "command": ["python3", SCRIPT]}));
    let ran = repo.cbia(["run", "--json"]).exits(1);
    assert!(ran.codes().contains(&"executor-not-found".to_owned()), "{:?}", ran.codes());
    assert_eq!((ran.gen_status().as_str(), repo.events()), ("skipped", vec!["denied".to_owned()]));
    assert_eq!(record(&repo).get("executor"), None);
}

#[test]
fn a_secret_is_kept_nowhere() {
    if !ready() {
        return;
    }
    let secret = "s3cr3t-7b1c9f-value";
    let repo = repo().with("API_KEY", Some(secret));
    let body = "print('key is', os.environ['API_KEY'])\nprint(os.environ['API_KEY'], file=sys.stderr)\nfinish()";
    configure(&repo, body, json!({"sandbox": {"pass_env": ["API_KEY"]}}));
    repo.cbia(["run", "--json"]).ok();
    assert!(log(&repo).contains("key is ******"));
    // An executor that fails with it is kept no better.
    configure(
        &repo,
        "finish(os.environ['API_KEY'].encode())\nsys.exit(os.environ['API_KEY'])",
        json!({"sandbox": {"pass_env": ["API_KEY"]}}),
    );
    repo.cbia(["run", "--json"]).exits(5);
    let objects = repo.git(["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let mut command = repo.command("git");
    command.args(["cat-file", "--batch"]);
    let input = objects.lines().map(|line| format!("{line}\n")).collect::<String>();
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    let all = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap().unwrap();
    assert!(all.len() > 10_000 && !String::from_utf8_lossy(&all).contains(secret));
    for (path, bytes) in repo.files(&[]) {
        assert!(!String::from_utf8_lossy(&bytes).contains(secret), "{path}");
    }
    for folder in [".git/cbia", ".git/refs", ".git/logs"] {
        let found = repo.command("grep").args(["-r", secret, folder]).output().unwrap().stdout;
        assert!(found.is_empty(), "{folder}");
    }
}

#[test]
fn it_dies_with_git_cbia() {
    if !ready() {
        return;
    }
    for signal in ["INT", "TERM", "KILL"] {
        let repo = repo();
        let body = "subprocess.Popen(['/bin/sleep', '600'], start_new_session=True)\nprint('ready', flush=True)\ntime.sleep(600)";
        configure(&repo, body, json!({}));
        let mut command = repo.command(PROGRAM);
        let mut child =
            command.arg("run").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
        while !line.contains("ready") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut reader, &mut line).unwrap(), 0, "it ended early");
        }
        let sent = repo.command("/bin/kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        child.wait().unwrap();
        // The supervisor mends it without anybody waiting.
        let gone = |repo: &Repo| processes(repo).is_empty() && std::fs::read_dir(temporary(repo)).unwrap().count() == 0;
        let waited = (0..1000).any(|_| {
            gone(&repo) || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        });
        assert!(waited, "{signal}: {:?}", processes(&repo));
        assert_eq!(repo.refs("refs/cbia/cache").len() + repo.refs("refs/cbia/runs").len(), 0);
        configure(&repo, "finish()", json!({}));
        assert_eq!(repo.run(), "executed", "{signal}");
        nothing_left(&repo);
    }
}

#[test]
fn repetition_finds_what_differs() {
    if !ready() {
        return;
    }
    let repo = repo();
    configure(&repo, "finish(b'same\\n' + os.urandom(4).hex().encode() + b'\\n')", json!({}));
    let ran = repo.cbia(["run", "--json", "--repeat", "3"]).exits(5);
    let finding = ran.finding("non-deterministic");
    assert_eq!(finding["path"], NOTE);
    let message = finding["message"].as_str().unwrap();
    assert!(message.contains("execution 2 gave another") && message.contains("@@") && message.contains("\n+"), "{message}");
    assert_eq!(repo.events(), ["failed"]);
    assert_eq!(repo.refs("refs/cbia/cache").len() + repo.refs("refs/cbia/runs").len(), 0);
    nothing_left(&repo);

    // One result is stored; a repetition finds that the executor gives others.
    assert_eq!(repo.run(), "executed");
    repo.cbia(["run", "--json", "--repeat", "2"]).exits(5).finding("non-deterministic");
    configure(&repo, "finish()", json!({}));
    let steady = repo.cbia(["run", "--json", "--repeat", "3"]).ok();
    assert_eq!(steady.gen_status(), "executed");
    assert_eq!(repo.cbia(["run", "--json", "--repeat", "2"]).ok().gen_status(), "replayed");
    repo.cbia(["run", "--repeat", "0"]).exits(2);
    // The built-in generator can be asked too.
    repo.remove(EXECUTOR);
    assert_eq!(repo.cbia(["run", "--json", "--repeat", "2"]).ok().gen_status(), "executed");
    assert!(repo.has(PIPELINE));
}
