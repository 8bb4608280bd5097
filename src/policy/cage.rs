//! The policy cage: policies are parsed and evaluated in a child process of the same binary, under limits.
//!
//! The engine's own limits are cooperative: they bound neither its parser nor its built-in functions, and a deep recursion
//! aborts the process. So a child has 512 MB of address space, 2 seconds of processor time and one more for every megabyte of input, three times
//! that on the wall clock, since a busy machine is no reason to deny, and a 64 MB stack; any end but a clean answer is an error, which counts as a denial. Where the platform has no such limits (address space
//! on macOS, anything but the wall clock on Windows), the kill timer still holds.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine;
use crate::document::cage::{Answer, Request};

/// The hidden first argument that makes the binary a cage.
pub const ARGUMENT: &str = "__policy-cage";
/// The processor time limit of a question without input, in seconds; every megabyte of input adds one.
pub const CPU_LIMIT_SECONDS: u64 = 2;
/// The most processor time that any question has, in seconds.
const MAX_CPU_SECONDS: u64 = 60;
/// How many times as long as its processor time a child may take on the wall clock, for starting, parsing, evaluating and answering.
const WALL_FACTOR: u64 = 3;
/// The address space limit, in bytes.
pub const MEMORY_LIMIT_BYTES: u64 = 512 << 20;
/// The evaluating thread's stack, in bytes.
const STACK_BYTES: usize = 64 << 20;
/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// How much of what the child says on stderr is read, in bytes. The runtime names the cause of an abort there.
const MAX_STDERR_BYTES: u64 = 4 << 10;

/// The parent's side: which binary to run as a cage.
#[derive(Clone, Debug)]
pub struct Cage {
    program: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// The child could not be started.
    #[error("the policy cage could not be started from {program}")]
    Start {
        /// The binary.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The child could not be waited for.
    #[error("the policy cage was lost")]
    Lost(#[source] io::Error),
    /// It ran out of time.
    #[error("the policy ran out of time: {seconds} seconds is the limit")]
    Time {
        /// The processor time that it had.
        seconds: u64,
    },
    /// It ran out of memory.
    #[error("the policy ran out of memory: {} MB is the limit", MEMORY_LIMIT_BYTES >> 20)]
    Memory,
    /// It ran out of stack.
    #[error("the policy ran out of stack: its rules or values nest too deep")]
    Stack,
    /// It answered more than is read.
    #[error("the policy's answer is longer than {} MB", MAX_ANSWER_BYTES >> 20)]
    TooLong,
    /// It ended in another way.
    #[error("the policy cage ended without an answer: {0}")]
    Crashed(ExitStatus),
    /// It ended cleanly, and what it said is no answer.
    #[error("the policy cage's answer cannot be read")]
    Garbled(#[source] serde_json::Error),
}

impl Cage {
    /// A cage that runs `program`, which must be this binary: `std::env::current_exe()`.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }

    /// Asks the child. `input` is the input document's text; empty where the request has none.
    pub fn ask(&self, request: &Request, input: Vec<u8>) -> Result<Answer, CageError> {
        self.begin(request, input)?.answer()
    }

    /// Asks the child, and leaves it to its work: [`Begun::answer`] waits for it.
    pub fn begin(&self, request: &Request, input: Vec<u8>) -> Result<Begun, CageError> {
        let mut head = crate::document::json::to_value(request).to_string().into_bytes();
        head.push(b'\n');
        let seconds = (CPU_LIMIT_SECONDS + (input.len() >> 20) as u64).min(MAX_CPU_SECONDS);
        let deadline = Instant::now() + Duration::from_secs(seconds * WALL_FACTOR);
        let mut child = self.start(seconds)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (tell, told) = mpsc::channel();
        // All at the same time, so that neither side waits for the other's full pipe.
        std::thread::spawn(move || {
            if let Some(mut stdin) = stdin {
                // A child that stops reading has died or answered; what it said is judged, not this.
                stdin.write_all(&head).and_then(|()| stdin.write_all(&input)).ok();
            }
        });
        let said = std::thread::spawn(move || {
            let said = drain(stdout, MAX_ANSWER_BYTES + 1);
            // The receiver is gone only when nobody waits any more.
            tell.send(()).ok();
            said
        });
        let complaint = std::thread::spawn(move || drain(stderr, MAX_STDERR_BYTES));
        Ok(Begun { child, told, heard: Some([said, complaint]), until: (deadline, seconds) })
    }

    fn start(&self, seconds: u64) -> Result<Child, CageError> {
        #[expect(clippy::disallowed_methods, reason = "this is one of the three files that start processes")]
        let mut command = Command::new(&self.program);
        command
            .arg(ARGUMENT)
            .arg(seconds.to_string())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt as _;
            // Its own group, so that it can be killed whole; a neutral folder, so that it keeps no mount busy.
            command.process_group(0).current_dir("/");
        }
        command.spawn().map_err(|source| CageError::Start { program: self.program.clone(), source })
    }
}

/// A child at its work. Dropped before it has answered, it is killed.
#[derive(Debug)]
pub struct Begun {
    child: Child,
    /// Says that the child has closed its output.
    told: mpsc::Receiver<()>,
    /// What it says and complains; gone once it was waited for.
    heard: Option<[JoinHandle<Vec<u8>>; 2]>,
    /// The end of its time on the wall clock, and the processor time that it has in seconds.
    until: (Instant, u64),
}

impl Begun {
    /// Waits for the answer.
    pub fn answer(mut self) -> Result<Answer, CageError> {
        let seconds = self.until.1;
        let status = match self.told.recv_timeout(self.until.0.saturating_duration_since(Instant::now())) {
            Err(_) => Err(CageError::Time { seconds }),
            Ok(()) => wait(&mut self.child, self.until),
        };
        // Only a child that is known to be gone is left alone.
        if status.is_err() {
            kill(&mut self.child);
        }
        let heard = self.heard.take().map(|heard| heard.map(|thread| thread.join().unwrap_or_default()));
        let [said, complaint] = heard.unwrap_or_default();
        let complaint = String::from_utf8_lossy(&complaint);
        match status? {
            status if status.success() && said.len() as u64 > MAX_ANSWER_BYTES => Err(CageError::TooLong),
            status if status.success() => serde_json::from_slice(&said).map_err(CageError::Garbled),
            // The runtime's own words; a wrong guess changes the message only.
            _ if complaint.contains("memory allocation of") || complaint.contains("capacity overflow") => Err(CageError::Memory),
            _ if complaint.contains("overflowed its stack") => Err(CageError::Stack),
            status if out_of_processor_time(status) => Err(CageError::Time { seconds }),
            status => Err(CageError::Crashed(status)),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.heard.is_some() {
            kill(&mut self.child);
        }
    }
}

fn drain(source: Option<impl Read>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        // What could not be read makes the answer unreadable, which is judged there.
        source.take(limit).read_to_end(&mut bytes).ok();
    }
    bytes
}

/// Waits for a child that has closed its output, which it does by ending.
fn wait(child: &mut Child, (deadline, seconds): (Instant, u64)) -> Result<ExitStatus, CageError> {
    let mut pause = Duration::from_micros(50);
    loop {
        match child.try_wait().map_err(CageError::Lost)? {
            Some(status) => return Ok(status),
            None if Instant::now() >= deadline => return Err(CageError::Time { seconds }),
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Kills the child's group, and waits for it. Does nothing to a child that was waited for already.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let (Ok(None), Some(group)) = (child.try_wait(), rustix::process::Pid::from_raw(child.id() as i32)) {
        // It may have ended by itself since, as a zombie that still holds its id.
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
    }
    child.kill().ok();
    child.wait().ok();
}

#[cfg(unix)]
fn out_of_processor_time(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let signal = status.signal().and_then(rustix::process::Signal::from_named_raw);
    matches!(signal, Some(rustix::process::Signal::XCPU | rustix::process::Signal::KILL))
}

#[cfg(not(unix))]
fn out_of_processor_time(_: ExitStatus) -> bool {
    false
}

/// The child's side: limits itself, reads one request from stdin, and writes one answer to stdout.
///
/// `seconds` is the processor time that it may use, as the parent wrote it.
pub fn serve(seconds: Option<&str>) -> ExitCode {
    let Some(seconds) = seconds.and_then(|text| text.parse().ok()) else {
        complain("the cage was not told how long it may take");
        return ExitCode::FAILURE;
    };
    if let Err(error) = confine(seconds) {
        complain(&format!("the limits cannot be set: {error}"));
        return ExitCode::FAILURE;
    }
    let thread = std::thread::Builder::new().name("policy".into()).stack_size(STACK_BYTES).spawn(respond);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
        // A panic has been told on stderr already.
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("memory allocation of the stack failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

fn respond() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    let (head, input) = text.split_once('\n').unwrap_or((&text, ""));
    let request: Request = serde_json::from_str(head)?;
    let answer = engine::answer(request, input);
    let mut stdout = io::stdout().lock();
    stdout.write_all(crate::document::json::to_value(&answer).to_string().as_bytes())?;
    stdout.flush()
}

#[cfg(unix)]
fn confine(seconds: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let limit = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Fsize, limit(0))?;
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    match setrlimit(Resource::As, limit(MEMORY_LIMIT_BYTES)) {
        // macOS knows the limit and does not take it.
        Err(_) if cfg!(target_os = "macos") => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(not(unix))]
fn confine(_: u64) -> io::Result<()> {
    Ok(())
}
