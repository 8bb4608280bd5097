//! How long `git cbia` takes, as ratios to what git takes for the same files in the same session.
//!
//! `cargo bench --bench ratios [-- unchanged|replay|store|phases|inputs|executor|verify|memory …]`; without a name all but `memory` are run. The contenders of
//! a case take turns, so that a busy machine slows all of them. Nothing is asserted about time: the figures are for a person to read.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark starts whole processes and takes arguments")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up ends at once")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use git_cbia::document::digest::Digest;
use git_cbia::document::executor::GenExecutor;
use git_cbia::document::gen_exchange::Outputs;
use git_cbia::document::path::RepoPath;
use git_cbia::document::phase::Phase;
use git_cbia::executor::external::{Clearing, Host, Job, execute};
use git_cbia::store::Store;
use git_cbia::store::durable::Durability;
use git_cbia::store::materialise::{Class, Materialise, Source, Strays, WriteItem};
use git_cbia::store::object::ObjectError;
use git_cbia::store::pack::{Batch, WriteError};
use git_cbia::store::tree::{Leaf, Tree, TreeLimits, write_tree};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_git-cbia");
const MANY: usize = 10_000;

fn main() {
    // `cargo bench` adds an argument of its own.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wants = |name: &str| asked.iter().any(|asked| asked == name) || asked.is_empty() && name != "memory";
    /// A measurement, and its name on the command line.
    type Case = (&'static str, fn(&Path));
    let cases: [Case; 8] = [
        ("unchanged", unchanged),
        ("replay", replay),
        ("store", store),
        ("phases", phases),
        ("inputs", inputs),
        ("executor", executor),
        ("verify", verify),
        ("memory", memory),
    ];
    for (name, case) in cases.into_iter().filter(|(name, _)| wants(name)) {
        let folder = tempfile::Builder::new().prefix("ratios-").tempdir().unwrap();
        println!("{name}");
        case(folder.path());
        println!();
    }
}

/// An unchanged second run of twenty artifacts.
fn unchanged(folder: &Path) {
    let repo = pipeline(&folder.join("repo"), 20, 0);
    for _ in 0..2 {
        cbia(&repo, &["run"]);
        // What was written within a tick of the stat cache's own time is compared by its bytes once more.
        std::thread::sleep(Duration::from_millis(50));
    }
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "-q", "-m", "all"]);
    let mut table = Table::new(100, &["git rev-parse HEAD; git status", "git-cbia run", "git cbia run", "git-cbia status"]);
    table.run(|contender| match contender {
        0 => timed(|| {
            git(&repo, &["rev-parse", "HEAD"]);
            git(&repo, &["status"]);
        }),
        1 => timed(|| cbia(&repo, &["run"])),
        2 => timed(|| drop(git(&repo, &["cbia", "run"]))),
        _ => timed(|| cbia(&repo, &["status"])),
    });
}

/// Ten thousand known files into an empty work tree.
fn replay(folder: &Path) {
    let repo = pipeline(&folder.join("repo"), MANY, 0);
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "-q", "-m", "all"]);
    cbia(&repo, &["run"]);
    let run = git(&repo, &["for-each-ref", "--format=%(objectname)", "refs/cbia/runs/"]);
    let artifacts = git(&repo, &["rev-parse", &format!("{}:artifacts", run.trim())]);
    let artifacts = artifacts.trim();

    // git's side: the same tree from the same objects, in a work tree of its own.
    let theirs = folder.join("theirs");
    git(&repo, &["worktree", "add", "-q", "--detach", "--no-checkout", theirs.to_str().unwrap()]);
    git(&theirs, &["read-tree", artifacts]);
    // Ours without the gates: the same tree by the library.
    let ours = folder.join("ours");
    git(&repo, &["worktree", "add", "-q", "--detach", "--no-checkout", ours.to_str().unwrap()]);
    let hashes = fs::read(repo.join("execution/ledger/artifact_hashes.json")).unwrap();
    let hashes: BTreeMap<String, Digest> = serde_json::from_slice(&hashes).unwrap();
    let hashes: BTreeMap<&str, Digest> =
        hashes.iter().map(|(path, hash)| (path.strip_prefix("artifacts/").unwrap(), *hash)).collect();
    let id = git_cbia::store::Oid::from_hex(artifacts.as_bytes()).unwrap();
    let first_artifact = repo.join("artifacts/d00/f00000.txt");
    let mut trash = Trash::new(folder);

    let contenders = ["git checkout-index -a -f", "git-cbia run, artifacts deleted", "materialise alone, by the library"];
    let mut table = Table::new(7, &contenders);
    table.run(|contender| match contender {
        0 => {
            trash.take_all(&theirs);
            timed(|| drop(git(&theirs, &["checkout-index", "-a", "-f"])))
        }
        1 => {
            trash.take(&repo.join("artifacts"));
            let took = timed(|| cbia(&repo, &["run"]));
            assert!(first_artifact.exists(), "the replay wrote nothing");
            took
        }
        _ => {
            trash.take_all(&ours);
            timed(|| {
                let store = Store::open(&ours).unwrap();
                let tree = store.read_tree(&id, TreeLimits::default()).unwrap();
                let files = tree.into_iter().map(|(path, leaf)| {
                    let sha256 = hashes[path.as_str()];
                    (path, WriteItem { id: leaf.id, sha256, source: Source::Blob, class: Class::Artifact })
                });
                let plan = Materialise { files: files.collect(), strays: Strays::Keep, force: false };
                assert_eq!(store.materialise(&plan).unwrap().written.len(), MANY);
            })
        }
    });
}

/// The same files into the object database for the first time.
fn store(folder: &Path) {
    let noise = noise();
    let paths: Vec<String> = (0..MANY).map(artifact).collect();
    let contenders = [
        "git add -A; git write-tree",
        "blobs, tree and pack by the library, on the disk",
        "git-cbia run, the first of 10,000 artifacts",
        "git-cbia run --dry-run: its gates alone",
    ];
    let mut round = 0;
    let mut table = Table::new(3, &contenders);
    table.run(|contender| {
        round += 1;
        let repo = folder.join(format!("repo-{round}"));
        match contender {
            0 | 1 => {
                init(&repo);
                for path in &paths {
                    write(&repo.join(path), format!("{path}\n{noise}").as_bytes());
                }
            }
            _ => drop(pipeline(&repo, MANY, 0)),
        }
        match contender {
            0 => timed(|| {
                git(&repo, &["add", "-A"]);
                git(&repo, &["write-tree"]);
            }),
            1 => timed(|| {
                stored(&repo, &paths);
            }),
            2 => timed(|| cbia(&repo, &["run"])),
            _ => timed(|| cbia(&repo, &["run", "--dry-run"])),
        }
    });
}

/// The phases after GEN over output that is known, with a schema, a normal form and rules: everything from CHECK to EVAL is done again, and the
/// command around it too.
fn phases(folder: &Path) {
    let noise = noise();
    let lines: Vec<String> = noise.lines().map(|line| format!("    \"{line}\"")).collect();
    let text = |path: &str| format!("{{\n  \"lines\": [\n{}\n  ],\n  \"path\": \"{path}\"\n}}\n", lines.join(",\n"));
    let repo = pipeline(&folder.join("repo"), MANY, 0);
    write(&repo.join("control/templates/page.md.j2"), text("{{ artifact.path }}").as_bytes());
    write(&repo.join("schemas/page.schema.json"), br#"{"type": "object", "required": ["lines", "path"]}"#);
    let declare = |round: usize| {
        let at = repo.join("control/pipeline.json");
        let mut pipeline: Value = serde_json::from_slice(&fs::read(&at).unwrap()).unwrap();
        pipeline["check"] = json!({"schemas": [{"paths": "artifacts/**", "schema": "schemas/page.schema.json"}],
            "canonical": [format!("round-{round}")]});
        pipeline["struct"] = json!({"normalize": [{"paths": "**", "format": "json"}]});
        pipeline["select"] = json!({"rules": [{"paths": "**", "keep": true, "reason": "all"}]});
        write(&at, pipeline.to_string().as_bytes());
    };
    declare(0);
    cbia(&repo, &["run"]);
    let mut round = 0;
    let mut table = Table::new(5, &["git add -A; git write-tree", "git-cbia run, GEN known and the rest not"]);
    table.run(|contender| {
        round += 1;
        if contender == 1 {
            declare(round);
            return timed(|| cbia(&repo, &["run"]));
        }
        let other = folder.join(format!("other-{round}"));
        init(&other);
        for path in (0..MANY).map(artifact) {
            write(&other.join(&path), text(&path).as_bytes());
        }
        timed(|| {
            git(&other, &["add", "-A"]);
            git(&other, &["write-tree"]);
        })
    });
}

/// Reads, hashes and stores files of a work tree as one tree, waiting for the disk.
fn stored(repo: &Path, paths: &[String]) -> git_cbia::store::Oid {
    let store = Store::open(repo).unwrap();
    let mut batch = Batch::new(&store).unwrap();
    let load = |i: usize| {
        let path = repo.join(&paths[i]);
        fs::read(&path).map_err(|source| WriteError::Io { action: "read", path, source })
    };
    let found = batch.blobs_with(paths.len(), load).unwrap();
    let leaf = |path: &String, (id, _)| (path.parse().unwrap(), Leaf { id, executable: false });
    let tree: Tree = paths.iter().zip(found).map(|(path, found)| leaf(path, found)).collect();
    let id = write_tree(&mut batch, &tree).unwrap();
    batch.publish(Durability::Full).unwrap();
    id
}

/// Ten thousand inputs and two artifacts: the scan.
fn inputs(folder: &Path) {
    let repo = pipeline(&folder.join("repo"), 2, MANY);
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "-q", "-m", "all"]);
    for _ in 0..2 {
        cbia(&repo, &["run"]);
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut table = Table::new(7, &["git rev-parse HEAD; git status", "git-cbia run, unchanged"]);
    table.run(|contender| match contender {
        0 => timed(|| {
            git(&repo, &["rev-parse", "HEAD"]);
            git(&repo, &["status"]);
        }),
        _ => timed(|| cbia(&repo, &["run"])),
    });
}

/// A program that executes GEN, bare and confined: one small file, and ten thousand of about 1 KB, made by the reference executor and by a shell
/// that does nothing but write them. The program alone leaves its files behind; what clearing them away costs is told by itself.
fn executor(folder: &Path) {
    for (by, count, rounds) in [(SCRIPT, 1, 60), (REFERENCE, MANY, 9), (SCRIPT, MANY, 9)] {
        println!(" {count} artifacts by {by}");
        let job = Executed::new(&folder.join(format!("repo-{count}-{}", by.len())), by, count);
        let temporary = folder.join(format!("scratch-{count}-{}", by.len()));
        fs::create_dir(&temporary).unwrap();
        let mut trash = Trash::new(&temporary);
        let names = ["the command alone", "confined and harvested", "the same, and cleared away"];
        let mut table = Table::new(rounds, &names);
        let mut cleared = Duration::ZERO;
        table.run(|contender| match contender {
            0 => {
                let bare = temporary.join("bare");
                job.lay_out(&bare);
                let took = timed(|| drop(run(job.program(), &bare, &[by, REQUEST])));
                trash.take(&bare);
                took
            }
            1 => {
                let (harvested, all) = job.confined(&temporary);
                cleared = all;
                harvested
            }
            _ => cleared,
        });
    }
}

const SCRIPT: &str = "control/executors/many.sh";
const REFERENCE: &str = "control/executors/gen_local.py";
const REPORT: &str = "control/executors/report.json";
const REQUEST: &str = "execution/gen/request.json";

/// What a real run asked of an executor.
struct Executed {
    executor: GenExecutor,
    files: BTreeMap<RepoPath, Vec<u8>>,
    request: Vec<u8>,
    value: Value,
    outputs: Outputs,
}

impl Executed {
    fn new(repo: &Path, by: &str, count: usize) -> Self {
        pipeline(repo, count, 0);
        let program = if by == REFERENCE {
            write(&repo.join(REFERENCE), include_bytes!("../control/executors/gen_local.py"));
            let at = repo.join("control/objectives.json");
            let mut objectives: Value = serde_json::from_slice(&fs::read(&at).unwrap()).unwrap();
            objectives[0]["statement"] = json!(noise().lines().take(13).collect::<String>());
            write(&at, objectives.to_string().as_bytes());
            "/usr/bin/python3"
        } else {
            Self::write_script(repo, count);
            "/bin/sh"
        };
        let config = json!({"kind": "external", "version": "1", "command": [program, by]});
        write(&repo.join("control/runtime/gen_executor.json"), config.to_string().as_bytes());
        cbia(repo, &["run"]);
        let request = fs::read(repo.join(REQUEST)).unwrap();
        let value: Value = serde_json::from_slice(&request).unwrap();
        let paths = value["inputs_manifest"]["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap());
        let files = paths.map(|path| (path.parse().unwrap(), fs::read(repo.join(path)).unwrap())).collect();
        let executor = serde_json::from_value(value["pre_gen_capsule"]["gen_executor"].clone()).unwrap();
        let outputs = serde_json::from_value(value["phase_config"]["outputs"].clone()).unwrap();
        Self { executor, files, request, value, outputs }
    }

    /// The program that its command names first.
    fn program(&self) -> &str {
        &self.executor.config.as_ref().unwrap().command.as_ref().unwrap()[0]
    }

    fn write_script(repo: &Path, count: usize) {
        let text: String = noise().lines().take(13).collect();
        let made = |i: usize| format!("{}\n{text}\n", artifact(i));
        let entry =
            |i: usize| json!({"path": artifact(i), "hash": Digest::of(made(i).as_bytes()).to_string(), "bytes": made(i).len()});
        let entries: Vec<Value> = (0..count).map(entry).collect();
        let report = json!({"schema_version": "0.1.0", "phase": "GEN", "artifacts": entries, "tool_versions": {}});
        write(&repo.join(REPORT), report.to_string().as_bytes());
        // Only what the shell can do by itself, so that the files are most of the work.
        let script = format!(
            "text='{text}'\nwhile read -r path; do printf '%s\\n%s\\n' \"$path\" \"$text\" > \"$path\"; done <<END\n{}\nEND\n\
             read -r report < {REPORT}\nprintf '%s' \"$report\" > execution/gen/executor.report.json\n",
            (0..count).map(artifact).collect::<Vec<_>>().join("\n"),
        );
        write(&repo.join(SCRIPT), script.as_bytes());
    }

    fn lay_out(&self, folder: &Path) {
        for (path, bytes) in &self.files {
            write(&folder.join(path.as_str()), bytes);
        }
        write(&folder.join(REQUEST), &self.request);
        for path in &self.outputs.artifacts {
            fs::create_dir_all(folder.join(path.as_str()).parent().unwrap()).unwrap();
        }
    }

    /// How long it took until everything was harvested, and until nothing of it was left.
    fn confined(&self, temporary: &Path) -> (Duration, Duration) {
        let request = REQUEST.parse().unwrap();
        let job = Job {
            executor: &self.executor,
            files: &self.files,
            request: (&request, &self.value),
            outputs: &self.outputs,
            phase: Phase::Gen,
        };
        let (program, temporary) = (PathBuf::from(PROGRAM), temporary.to_owned());
        let start = Instant::now();
        let host = Host { program, temporary, variable: &|_| None, show: &|_| {}, clearing: Clearing::default() };
        let execution = execute(&job, &host, &mut |_| Vec::new());
        let harvested = start.elapsed();
        drop(host);
        assert_eq!(execution.harvest.unwrap().artifacts.len(), self.outputs.artifacts.len());
        (harvested, start.elapsed())
    }
}

/// A push of a thousand commits over ten thousand artifacts of which ten changed, and of one commit that changes nothing generated: what the
/// hook adds, the evidence being there already.
fn verify(folder: &Path) {
    let (repo, bare) = (pipeline(&folder.join("repo"), MANY, 1), folder.join("bare.git"));
    let path = repo.join("control/pipeline.json");
    let mut pipeline: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for artifact in pipeline["gen"]["artifacts"].as_array_mut().unwrap().iter_mut().take(10) {
        artifact["template"] = json!("control/templates/other.md.j2");
    }
    write(&path, pipeline.to_string().as_bytes());
    let template = "{{ artifact.path }}\n{{ inputs['inputs/d00/f00000.txt'] }}";
    write(&repo.join("control/templates/other.md.j2"), template.as_bytes());
    let commit = |message: &str| {
        git(&repo, &["add", "-A"]);
        git(&repo, &["commit", "-q", "-m", message]);
        git(&repo, &["rev-parse", "HEAD"]).trim().to_owned()
    };
    let key = folder.join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    write(&repo.join("control/runners.allowed_signers"), format!("bench@localhost {public}").as_bytes());
    git(&repo, &["config", "gpg.format", "ssh"]);
    git(&repo, &["config", "user.signingKey", key.to_str().unwrap()]);
    cbia(&repo, &["run"]);
    let base = commit("base");
    git(folder, &["init", "-q", "--bare", "bare.git"]);
    git(&repo, &["remote", "add", "origin", bare.to_str().unwrap()]);
    git(&repo, &["push", "-q", "origin", "HEAD:refs/heads/main"]);
    let mut stream = String::new();
    for number in 1..1_000 {
        let text = format!("{number}\n");
        write!(stream, "commit refs/heads/more\ncommitter Bench <bench@localhost> {number} +0000\ndata 1\n.\n").unwrap();
        if number == 1 {
            writeln!(stream, "from {base}").unwrap();
        }
        write!(stream, "M 100644 inline src/f{:03}.rs\ndata {}\n{text}\n", number % 200, text.len()).unwrap();
    }
    fed("git", &repo, &["fast-import", "--quiet"], &stream);
    git(&repo, &["reset", "-q", "--hard", "more"]);
    write(&repo.join("inputs/d00/f00000.txt"), b"changed\n");
    cbia(&repo, &["run"]);
    let changed = commit("ten artifacts changed");
    write(&repo.join("README.md"), b"changed\n");
    let last = commit("nothing generated");
    cbia(&repo, &["attest"]);
    git(&repo, &["repack", "-adq"]);
    cbia(&repo, &["push", "origin"]);
    git(&repo, &["push", "-q", "origin", "HEAD:refs/heads/more"]);
    let range = format!("{base}..{changed}");
    let line = |old: &str, new: &str| format!("refs/heads/more {new} refs/heads/main {old}\n");
    let (thousand, one) = (line(&base, &changed), line(&changed, &last));
    let push = ["hook", "pre-push", "origin", bare.to_str().unwrap()];
    let contenders = [
        "git rev-list --objects of 1,000 commits",
        "git-cbia hook pre-push of them",
        "git-cbia verify of them, all derived again",
        "git-cbia hook pre-receive of them, all derived again",
        "git-cbia verify of them, attested and believed",
        "git-cbia hook pre-receive of them, attested and believed",
        "git rev-parse HEAD",
        "git-cbia hook pre-push of a commit that changes nothing generated",
    ];
    let received = format!("{base} {changed} refs/heads/main\n");
    let believing = |folder: &Path, value: &str| drop(git(folder, &["config", "cbia.rederive", value]));
    let mut table = Table::new(15, &contenders);
    table.run(|contender| match contender {
        0 => timed(|| drop(git(&repo, &["rev-list", "--objects", &range]))),
        1 => timed(|| fed(PROGRAM, &repo, &push, &thousand)),
        2 | 4 => {
            believing(&repo, if contender == 2 { "always" } else { "unattested" });
            timed(|| cbia(&repo, &["verify", &range]))
        }
        3 | 5 => {
            believing(&bare, if contender == 3 { "always" } else { "unattested" });
            timed(|| fed(PROGRAM, &bare, &["hook", "pre-receive"], &received))
        }
        6 => timed(|| drop(git(&repo, &["rev-parse", "HEAD"]))),
        _ => timed(|| fed(PROGRAM, &repo, &push, &one)),
    });
}

/// Sixteen files of 64 MB through the store and back; prints how much memory that took at most.
fn memory(folder: &Path) {
    const COUNT: usize = 16;
    const BYTES: usize = 64 << 20;
    let repo = folder.join("repo");
    init(&repo);
    let paths: Vec<String> = (0..COUNT).map(|i| format!("artifacts/f{i:02}")).collect();
    let noise = noise();
    for path in &paths {
        let text = format!("{path}\n{noise}");
        let bytes: Vec<u8> = text.bytes().cycle().take(BYTES).collect();
        write(&repo.join(path), &bytes);
    }
    let start = peak();
    let mut id = None;
    let took = timed(|| id = Some(stored(&repo, &paths)));
    println!("  stored {COUNT} files of {} MiB in {took:.2?}; peak memory from {start} to {} MiB", BYTES >> 20, peak());
    let store = Store::open(&repo).unwrap();
    let tree = store.read_tree(&id.unwrap(), TreeLimits::default()).unwrap();
    let mut files = BTreeMap::new();
    for (path, leaf) in tree {
        let sha256 = store.read_blob(&leaf.id, BYTES as u64).map(|bytes| Digest::of(&bytes));
        let sha256 = sha256.map_err(|error: ObjectError| error.to_string()).unwrap();
        files.insert(path, WriteItem { id: leaf.id, sha256, source: Source::Blob, class: Class::Artifact });
    }
    fs::remove_dir_all(repo.join("artifacts")).unwrap();
    let plan = Materialise { files, strays: Strays::Keep, force: false };
    let took = timed(|| assert_eq!(store.materialise(&plan).unwrap().written.len(), COUNT));
    println!("  replayed them in {took:.2?}; peak memory {} MiB", peak());
}

/// The most memory that this process had resident so far, in MiB; zero where the system does not tell.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() >> 10
}

/// Times of contenders that take turns; the first is what the others are held against.
struct Table {
    rounds: usize,
    names: Vec<String>,
}

impl Table {
    fn new(rounds: usize, names: &[&str]) -> Self {
        Self { rounds, names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn run(&mut self, mut once: impl FnMut(usize) -> Duration) {
        let mut times = vec![Vec::new(); self.names.len()];
        for _ in 0..self.rounds {
            for (contender, times) in times.iter_mut().enumerate() {
                times.push(once(contender).as_secs_f64() * 1e3);
            }
        }
        let width = self.names.iter().map(String::len).max().unwrap_or_default();
        let base = times[0].clone();
        for (name, times) in self.names.iter().zip(&times) {
            let ratios: Vec<f64> = times.iter().zip(&base).map(|(time, base)| time / base).collect();
            let mut line = format!("  {name:<width$}  min {:>8.1} ms  median {:>8.1} ms", least(times), median(times));
            write!(line, "  ratio of minima {:>5.2}, median of ratios {:>5.2}", least(times) / least(&base), median(&ratios))
                .unwrap();
            println!("{line}");
        }
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// A repository with a pipeline of `artifacts` files of about 4 KB, and `inputs` input files.
fn pipeline(repo: &Path, artifacts: usize, inputs: usize) -> PathBuf {
    init(repo);
    cbia(repo, &["init"]);
    let noise = noise();
    write(&repo.join("docs/handbook.md"), noise.as_bytes());
    let edit = |path: &str, change: &dyn Fn(&mut Value)| {
        let path = repo.join(path);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        write(&path, value.to_string().as_bytes());
    };
    edit("control/authority.ledger.json", &|ledger| {
        ledger["authority_set"][0]["hash"]["value"] = json!(Digest::of(noise.as_bytes()).to_string());
    });
    edit("control/objectives.json", &|objectives| {
        objectives.as_array_mut().unwrap().truncate(1);
        objectives[0]["source"]["evidence"] = json!([]);
    });
    edit("control/pipeline.json", &|pipeline| {
        let template = "control/templates/page.md.j2";
        let artifact = |i| json!({"path": artifact(i), "objectives": ["O-01"], "template": template});
        pipeline["gen"]["artifacts"] = (0..artifacts).map(artifact).collect();
        pipeline["inputs"] = json!(["inputs/**"]);
    });
    write(&repo.join("control/templates/page.md.j2"), b"{{ artifact.path }}\n{{ authorities.handbook.text }}");
    for i in 0..inputs {
        let path = format!("inputs/d{:02}/f{i:05}.txt", i / 100);
        write(&repo.join(&path), format!("{path}\n{noise}").as_bytes());
    }
    repo.to_owned()
}

fn artifact(i: usize) -> String {
    format!("artifacts/d{:02}/f{i:05}.txt", i / 100)
}

/// About 4 KB that compress as little as base64 does.
fn noise() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let letter = |i: usize| {
        if i % 77 == 76 {
            return '\n';
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(LETTERS[(state >> 58) as usize])
    };
    (0..4_042).map(letter).collect()
}

fn init(repo: &Path) {
    fs::create_dir_all(repo).unwrap();
    git(repo, &["init", "-q"]);
    git(repo, &["config", "user.name", "Bench"]);
    git(repo, &["config", "user.email", "bench@localhost"]);
    // A maintenance run in the background would be timed with whatever comes next.
    git(repo, &["config", "gc.auto", "0"]);
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Where files are moved out of the way. They are not deleted between the rounds, because ext4 does not give a deleted file's inode away
/// for a minute, and looks at every one of them for each new file: whoever comes next would pay for that.
struct Trash {
    folder: PathBuf,
    count: usize,
}

impl Trash {
    fn new(folder: &Path) -> Self {
        let folder = folder.join("trash");
        fs::create_dir(&folder).unwrap();
        Self { folder, count: 0 }
    }

    fn take(&mut self, path: &Path) {
        self.count += 1;
        fs::rename(path, self.folder.join(self.count.to_string())).unwrap();
    }

    /// Takes everything from a work tree but its link to the repository.
    fn take_all(&mut self, top: &Path) {
        for entry in fs::read_dir(top).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != ".git" {
                self.take(&entry.path());
            }
        }
    }
}

fn cbia(repo: &Path, arguments: &[&str]) {
    run(PROGRAM, repo, arguments);
}

fn git(repo: &Path, arguments: &[&str]) -> String {
    run("git", repo, arguments)
}

fn run(program: &str, repo: &Path, arguments: &[&str]) -> String {
    given(program, repo, arguments, "")
}

fn fed(program: &str, repo: &Path, arguments: &[&str], input: &str) {
    given(program, repo, arguments, input);
}

/// What a program prints that is given this.
fn given(program: &str, repo: &Path, arguments: &[&str], input: &str) -> String {
    let path = format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.current_dir(repo).args(arguments).env("PATH", path).env("GIT_CONFIG_NOSYSTEM", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
