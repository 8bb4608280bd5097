//! An executor that is a program of its own: started behind its contract, confined, watched, and harvested when nothing of it is left.
//!
//! `git cbia` itself starts a supervisor ([`super::supervise`]) and reads what the executor prints; the rest happens there. Everything that goes
//! wrong is a finding, and then nothing is harvested.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::harvest::{Collected, Harvest, collect};
use super::printed::{MAX_PRINTED, Printed, holds_secret};
use super::scratch::Scratch;
use super::supervise::{ARGUMENT, SUPERVISE};
use super::{resolve, sandbox};
use crate::document::confinement::{Fate, Notice, Order, Verdict};
use crate::document::executor::{DEFAULT_TIMEOUT_S, ExecutorConfig, GenExecutor};
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::Outputs;
use crate::document::json;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::schema::{Kind, validate};

/// The variable that names the request.
const REQUEST_VARIABLE: &str = "CBIA_GEN_REQUEST";
/// The variable that names the folder for temporary files.
const TEMPORARY_VARIABLE: &str = "TMPDIR";
/// How long what is printed may wait in a pipe, at first and at last, while nothing else happens.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// A process that is to be started. The one place of the executor floor that makes one.
pub(super) fn command(program: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is one of the three files that start processes")]
    Command::new(program)
}

/// The ordered program, open, if it is the one that was admitted.
pub(super) fn hold_program(order: &Order) -> io::Result<Option<File>> {
    order.sha256.map(|sha256| resolve::hold(&order.program, &sha256)).transpose().map(Option::flatten)
}

/// Becomes the ordered program, which is `held`, and whose errors go to `errors`. Returns only why that could not be.
pub(super) fn become_program(order: &Order, held: Option<File>, errors: OwnedFd) -> io::Error {
    let path = match &held {
        // The open file, whatever its name stands for by now.
        Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        None => PathBuf::from(&order.program),
    };
    let (path, before) = sandbox::outer(order, path);
    let mut program = command(&path);
    if before.is_empty() {
        program.arg0(&order.program);
    }
    program.args(before).args(&order.arguments).env_clear().envs(&order.environment);
    program.stdin(Stdio::null()).stderr(Stdio::from(errors)).exec()
}

/// What the executor is given.
pub struct Job<'a> {
    /// The executor, as it was admitted.
    pub executor: &'a GenExecutor,
    /// The snapshot that it sees.
    pub files: &'a BTreeMap<RepoPath, Vec<u8>>,
    /// Where the request goes, and what it says.
    pub request: (&'a RepoPath, &'a Value),
    /// Where its results go.
    pub outputs: &'a Outputs,
    /// The phase that asks.
    pub phase: Phase,
}

/// What of this machine an execution needs.
pub struct Host<'a> {
    /// This binary.
    pub program: PathBuf,
    /// The folder for temporary files.
    pub temporary: PathBuf,
    /// The value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Shows the user what the executor prints, as it comes.
    pub show: &'a dyn Fn(&[u8]),
    /// The scratch directories that are being removed.
    pub clearing: Clearing,
}

/// Scratch directories that their supervisors are removing, while whoever had them goes on with what was harvested. Dropping it waits for all of
/// them, and removes what a supervisor that was killed has left.
#[derive(Debug, Default)]
pub struct Clearing(Mutex<Vec<(Option<Child>, Scratch)>>);

impl Clearing {
    fn add(&self, supervisor: Option<Child>, scratch: Scratch) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((supervisor, scratch));
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        for (supervisor, scratch) in self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Not at the same time as the supervisor does.
            drop(supervisor.map(|mut process| process.wait()));
            drop(scratch);
        }
    }
}

/// An execution that was tried.
#[derive(Debug)]
pub struct Execution {
    /// How well it was confined; `none` if it was not started.
    pub level: String,
    /// How it ended, in a word.
    pub exit: String,
    /// What it printed, or the beginning and the end of it, without the values of secrets.
    pub log: Vec<u8>,
    /// What there is to say although it succeeded.
    pub warnings: Vec<Finding>,
    /// What it produced, or why it counts for nothing.
    pub harvest: Result<Harvest, Vec<Finding>>,
}

impl Execution {
    fn refused(findings: Vec<Finding>) -> Self {
        let exit = "not started".to_owned();
        Self { level: "none".into(), exit, log: Vec::new(), warnings: Vec::new(), harvest: Err(findings) }
    }
}

/// What there is to say against running at a level of confinement; nothing where it may.
pub type Permit<'a> = &'a mut dyn FnMut(&str) -> Vec<Finding>;

/// Executes, if `permit` has nothing against the level of confinement that was reached; it is asked before the program starts. When it
/// returns, no process of the executor is left; no scratch directory is when `host` is dropped.
pub fn execute(job: &Job<'_>, host: &Host<'_>, permit: Permit<'_>) -> Execution {
    let Some(config) = &job.executor.config else {
        return Execution::refused(vec![Finding::error(Code::ExecutorUnavailable, "no executor is configured")]);
    };
    let failed = |error: io::Error| {
        let message = format!("the executor could not be supervised: {error}");
        Execution::refused(vec![Finding::error(Code::ExecutorFailed, message)])
    };
    // It gets ready while the rest is.
    let supervisor = match Supervisor::start(host) {
        Ok(supervisor) => supervisor,
        Err(error) => return failed(error),
    };
    let (at, request) = (job.request.0, json::pretty(job.request.1));
    let prepared = prepare(job, &request, config, host);
    let (scratch, order, secrets) = match prepared {
        Ok(prepared) => prepared,
        Err(findings) => return Execution::refused(findings),
    };
    let conversed = std::thread::scope(|scope| {
        // While the supervisor starts; the program does not before both have said yes.
        let mut checking = Some(scope.spawn(|| validate(Kind::ExecutorRequest, at.as_str(), &request, job.request.1)));
        converse(supervisor, &order, host, &secrets, &mut |level| {
            let broken = checking.take().map(|check| check.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let broken = broken.into_iter().flatten().map(|finding| Finding { code: Code::RequestInvalid, ..finding });
            let broken: Vec<Finding> = broken.collect();
            if broken.is_empty() { permit(level) } else { broken }
        })
    });
    let ended = match conversed {
        Ok(ended) => ended,
        Err(error) => return failed(error),
    };
    let Ended { log, printed, refusals, verdict, supervisor } = ended;
    let mut verdict = verdict.unwrap_or_else(|| Verdict {
        level: "none".into(),
        fate: Fate::Unstartable("its supervisor ended without a word".into()),
        killed: 0,
    });
    if !refusals.is_empty() {
        verdict.fate = Fate::Unstartable("it is not allowed to".into());
    }
    let collected = match judge(&verdict, config, &order, printed) {
        Some(_) if !refusals.is_empty() => Err(refusals),
        Some(finding) => Err(vec![finding]),
        None => collect(&scratch, job.outputs, job.phase, at, &order.bounds),
    };
    // The supervisor removes the scratch directory and ends, while what was read is verified here.
    host.clearing.add(supervisor.let_go(), scratch);
    let harvest = collected.and_then(Collected::verify).and_then(|harvest| without_secrets(harvest, &secrets));
    let mut warnings = Vec::new();
    if printed > order.bounds.log_bytes {
        let message = format!(
            "the executor printed {printed} bytes, of which the first and the last are kept, {} in all",
            order.bounds.log_bytes
        );
        warnings.push(Finding::warning(Code::ExecutorLogCut, message).hint("sandbox.limits.log_bytes keeps more"));
    }
    Execution { level: verdict.level, exit: spelled(&verdict.fate), log, warnings, harvest }
}

type Prepared = (Scratch, Order, Vec<String>);

fn prepare(job: &Job<'_>, request: &[u8], config: &ExecutorConfig, host: &Host<'_>) -> Result<Prepared, Vec<Finding>> {
    let at = job.request.0;
    let words = config.command.as_deref().unwrap_or_default();
    // The program itself is hashed once more by the process that becomes it.
    let arguments = job.executor.programs.iter().filter(|program| Some(&program.path) != words.first());
    let changed: Vec<Finding> = arguments.filter_map(resolve::recheck).collect();
    if !changed.is_empty() {
        return Err(changed);
    }
    let sandbox = config.sandbox.clone().unwrap_or_default();
    let (mut environment, secrets) = environment(config, host)?;

    let mut files = job.files.clone();
    files.insert(at.clone(), request.to_vec());
    let failed = |error: io::Error| {
        let message = format!(
            "the executor's scratch directory cannot be made in {}: {error}",
            printable(&host.temporary.to_string_lossy())
        );
        vec![Finding::error(Code::ScratchFailed, message).hint("TMPDIR names another folder")]
    };
    let programs: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut scratch = Scratch::new(&host.temporary, &files, &programs).map_err(failed)?;
    // The request is git cbia's own; that the executor may overwrite it harms nobody.
    scratch.inputs.remove(at);
    let places = job.outputs.artifacts.iter().chain([&job.outputs.execution_report, &job.outputs.outputs_manifest]);
    scratch.make_folders(places).map_err(failed)?;

    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| failed(io::Error::other("its path is not UTF-8")));
    let (tree, temporary) = (text(scratch.tree())?, text(scratch.temporary())?);
    environment.insert(REQUEST_VARIABLE.into(), format!("{tree}/{}", at.as_str()));
    environment.entry(TEMPORARY_VARIABLE.into()).or_insert_with(|| temporary.clone());
    let Some((program, arguments)) = words.split_first() else {
        return Err(vec![Finding::error(Code::ExecutorUnavailable, "the executor has no command")]);
    };
    let admitted = job.executor.programs.iter().find(|admitted| &admitted.path == program && program.starts_with('/'));
    let program = if program.starts_with('/') { program.clone() } else { format!("{tree}/{program}") };
    let arguments = arguments.iter().cloned().chain([format!("{tree}/{}", at.as_str())]).collect();
    let order = Order {
        binary: text(&host.program)?,
        program,
        sha256: admitted.map(|admitted| admitted.sha256),
        arguments,
        environment,
        scratch: text(scratch.path())?,
        tree,
        temporary,
        read: sandbox.read,
        network: sandbox.network.unwrap_or(false),
        require: sandbox.require.unwrap_or(true),
        wrapped: false,
        timeout_ms: config.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S).saturating_mul(1000),
        bounds: sandbox.limits.unwrap_or_default().bounds(),
    };
    Ok((scratch, order, secrets))
}

/// Variables by name, and the values among them that must not be kept.
type Variables = (BTreeMap<String, String>, Vec<String>);

/// The declared variables, and the values of those that are passed on, which must not be kept.
fn environment(config: &ExecutorConfig, host: &Host<'_>) -> Result<Variables, Vec<Finding>> {
    let mut environment = config.env.clone();
    let (mut secrets, mut findings) = (Vec::new(), Vec::new());
    for name in config.sandbox.iter().flat_map(|sandbox| &sandbox.pass_env) {
        match (host.variable)(name).map(OsString::into_string) {
            Some(Ok(value)) => {
                secrets.push(value.clone());
                environment.insert(name.clone(), value);
            }
            other => {
                let why = if other.is_some() { "is not UTF-8 text" } else { "is not set" };
                let message = format!("the executor is to be given the variable {name}, which {why}");
                findings
                    .push(Finding::error(Code::ExecutorVariableMissing, message).hint(format!("export {name}, and run again")));
            }
        }
    }
    if findings.is_empty() { Ok((environment, secrets)) } else { Err(findings) }
}

/// A process that starts the executor, and clears away what it leaves. One that is dropped without an order ends, and is waited for.
struct Supervisor {
    /// Absent once it was let go.
    process: Option<Child>,
    /// Closing it lets the supervisor end.
    channel: Option<UnixStream>,
    printed: Option<(ChildStdout, ChildStderr)>,
}

impl Supervisor {
    fn start(host: &Host<'_>) -> io::Result<Self> {
        let (channel, theirs) = UnixStream::pair()?;
        let mut process = command(&host.program)
            .args([ARGUMENT, SUPERVISE])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let printed = process.stdout.take().zip(process.stderr.take());
        Ok(Self { process: Some(process), channel: Some(channel), printed })
    }

    /// Lets it end, and gives the process, which is to be waited for.
    fn let_go(mut self) -> Option<Child> {
        drop(self.channel.take());
        self.process.take()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop((self.channel.take(), self.printed.take()));
        if let Some(mut process) = self.process.take() {
            process.wait().ok();
        }
    }
}

struct Ended {
    log: Vec<u8>,
    printed: u64,
    /// Why it was not let start, if it was not.
    refusals: Vec<Finding>,
    verdict: Option<Verdict>,
    supervisor: Supervisor,
}

/// Gives the supervisor its order, and reads what is printed until it gives its verdict. Never waits for a pipe that somebody holds.
fn converse(
    mut supervisor: Supervisor,
    order: &Order,
    host: &Host<'_>,
    secrets: &[String],
    permit: Permit<'_>,
) -> io::Result<Ended> {
    let printed = supervisor.printed.take();
    let (Some((mut out, mut err)), Some(channel)) = (printed, &supervisor.channel) else {
        return Err(io::Error::other("there are no pipes"));
    };
    let mut line = json::to_value(order).to_string().into_bytes();
    line.push(b'\n');
    let mut to_it: &UnixStream = channel;
    to_it.write_all(&line)?;
    for stream in [out.as_fd(), err.as_fd()] {
        rustix::io::ioctl_fionbio(stream, true)?;
    }
    let longest = secrets.iter().map(String::len).max().unwrap_or(0);
    let mut printed = Printed::new(host.show, order.bounds.log_bytes as usize, longest);
    let (mut buffer, mut said) = (vec![0; 64 << 10], Vec::new());
    let mut pause = SHORTEST_PAUSE;
    let (mut verdict, mut refusals, mut ended) = (None, Vec::new(), false);
    loop {
        if printed.take(&mut out, &mut buffer) | printed.take(&mut err, &mut buffer) {
            if printed.total > MAX_PRINTED {
                // The supervisor sees that nobody wants the result any more.
                channel.shutdown(std::net::Shutdown::Write).ok();
            }
            pause = SHORTEST_PAUSE;
            continue;
        }
        if ended {
            // What was printed before the verdict was in the pipes by then.
            break;
        }
        // It is the supervisor's word that is waited for; what is printed may wait a moment.
        channel.set_read_timeout(Some(pause))?;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match listen(channel, &mut said) {
            Heard::Nothing => {}
            Heard::Said(Notice::Reached(level)) => {
                refusals = permit(&level);
                if refusals.is_empty() {
                    to_it.write_all(b"\n").ok();
                } else {
                    channel.shutdown(std::net::Shutdown::Write).ok();
                }
            }
            Heard::Said(Notice::Ended(last)) => (verdict, ended) = (Some(last), true),
            Heard::Gone => ended = true,
        }
    }
    let total = printed.total;
    Ok(Ended { log: printed.kept(secrets), printed: total, refusals, verdict, supervisor })
}

enum Heard {
    Nothing,
    Said(Notice),
    Gone,
}

/// Hears one line of the supervisor, if it comes in time. `said` holds what has come of it so far.
fn listen(mut channel: &UnixStream, said: &mut Vec<u8>) -> Heard {
    let mut byte = [0; 1];
    loop {
        match channel.read(&mut byte) {
            Ok(0) => return Heard::Gone,
            Ok(_) if byte == *b"\n" => {
                let notice = serde_json::from_slice(&std::mem::take(said));
                return notice.map_or(Heard::Gone, Heard::Said);
            }
            Ok(_) => said.extend_from_slice(&byte),
            Err(error) => {
                let waited =
                    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted);
                return if waited { Heard::Nothing } else { Heard::Gone };
            }
        }
    }
}

/// An artifact that holds a value that was passed on depends on something that is in no key, and would publish it.
fn without_secrets(harvest: Harvest, secrets: &[String]) -> Result<Harvest, Vec<Finding>> {
    let holds = |bytes: &[u8]| holds_secret(bytes, secrets);
    let hint = "if it is no secret, give it in env, where it is part of the key, instead of sandbox.pass_env";
    let finding = |what: &str| {
        Finding::error(Code::OutputHoldsSecret, format!("{what} holds the value of a variable that was passed on")).hint(hint)
    };
    let mut findings: Vec<Finding> =
        harvest.artifacts.iter().filter(|(_, bytes)| holds(bytes)).map(|(path, _)| finding(path.as_str()).at(path)).collect();
    if harvest.tool_versions.iter().any(|(name, version)| holds(name.as_bytes()) || holds(version.as_bytes())) {
        findings.push(finding("the executor's report"));
    }
    if findings.is_empty() { Ok(harvest) } else { Err(findings) }
}

/// How an executor ended, in a word.
fn spelled(fate: &Fate) -> String {
    match fate {
        Fate::Exited(status) => format!("exit {status}"),
        Fate::Signalled(signal) => format!("signal {signal}"),
        Fate::TimedOut => "time-out".into(),
        Fate::TooManyProcesses => "too many processes".into(),
        Fate::TooMuchDisk => "too much disk".into(),
        Fate::Abandoned => "stopped".into(),
        Fate::Unkillable => "cannot be killed".into(),
        Fate::Unconfined(_) | Fate::Unstartable(_) => "not started".into(),
    }
}

/// Where what an executor printed is to be seen, also by those to whom it was not shown as it came.
const SHOW_PRINTED: &str = "git cbia show refs/cbia/ledger shows what it printed";

/// Why an execution counts for nothing, if it does.
fn judge(verdict: &Verdict, config: &ExecutorConfig, order: &Order, printed: u64) -> Option<Finding> {
    let error = Finding::error;
    let program = config.command.iter().flatten().next().map(|program| printable(program)).unwrap_or_default();
    Some(match &verdict.fate {
        Fate::Exited(0) if verdict.killed == 0 => return None,
        Fate::Exited(0) => {
            let left = verdict.killed;
            error(Code::ExecutorFailed, format!("the executor ended and left processes running; {left} were killed"))
                .hint("wait for every process that it starts")
        }
        Fate::Exited(status) => {
            error(Code::ExecutorFailed, format!("the executor ended with status {status}")).hint(SHOW_PRINTED)
        }
        Fate::Signalled(signal) => {
            let named = rustix::process::Signal::from_named_raw(*signal);
            let why = match named {
                Some(rustix::process::Signal::XCPU) => ": sandbox.limits.cpu_s is the limit",
                Some(rustix::process::Signal::XFSZ) => ": sandbox.limits.file_bytes is the limit",
                _ => "",
            };
            error(Code::ExecutorKilled, format!("the executor was killed by signal {signal}{why}")).hint(SHOW_PRINTED)
        }
        Fate::TimedOut => {
            let seconds = order.timeout_ms / 1000;
            error(Code::ExecutorTimeout, format!("the executor took longer than {seconds} seconds, and was killed"))
                .hint("timeout_s allows more")
        }
        Fate::TooManyProcesses => {
            let limit = order.bounds.processes;
            error(Code::ExecutorKilled, format!("the executor had more than {limit} processes, and was killed"))
                .hint("sandbox.limits.processes allows more")
        }
        Fate::TooMuchDisk => {
            let limit = order.bounds.disk_bytes;
            error(
                Code::ExecutorKilled,
                format!("the executor's scratch directory took more than {limit} bytes, and it was killed"),
            )
            .hint("sandbox.limits.disk_bytes allows more")
        }
        Fate::Abandoned if printed > MAX_PRINTED => {
            error(Code::ExecutorKilled, format!("the executor printed more than {MAX_PRINTED} bytes, and was killed"))
                .hint("write results to the declared outputs, and less to the terminal")
        }
        Fate::Abandoned => Finding::error(Code::ExecutorKilled, "the executor was stopped"),
        Fate::Unkillable => {
            error(Code::ExecutorKilled, "the executor was to be killed, and some of its processes could not be".to_owned())
        }
        Fate::Unconfined(why) => {
            error(Code::SandboxUnavailable, format!("the executor was not started, because it cannot be confined: {why}"))
                .hint("Linux 6.2 with Landlock is needed; \"sandbox\": {\"require\": false} runs it without")
        }
        Fate::Unstartable(why) => error(Code::ExecutorNotFound, format!("the executor {program} cannot be started: {why}"))
            .hint("it must be executable, and lie where it may be read: sandbox.read names further folders"),
    })
}
