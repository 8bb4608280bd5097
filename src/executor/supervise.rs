//! The two processes between `git cbia` and an executor, both of this same binary.
//!
//! The **supervisor** outlives `git cbia` if it must: it holds the deadline, it is the one that orphans of the executor come to, and when the
//! executor ends, or `git cbia` does (Ctrl-C, SIGTERM, a kill), it kills what is left, and removes the scratch directory if nobody else
//! does. It is not confined, and does nothing but this.
//!
//! The **confined** process leads a session of its own without a terminal, dies with the supervisor, limits and confines itself, and becomes
//! the executor.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};

use super::external::{become_program, command, hold_program};
use super::{sandbox, scratch, wrap};
use crate::document::confinement::{Fate, Notice, Order, Verdict, Word};
use crate::document::json;

/// The hidden first argument that makes the binary one of these processes.
pub const ARGUMENT: &str = "__executor-cage";
/// The second argument for the supervisor.
pub const SUPERVISE: &str = "supervise";
const CONFINE: &str = "confine";
/// How long processes that the executor leaves may take to end by themselves.
const GRACE: Duration = Duration::from_millis(200);
/// How long killing may take, until the kernel must be thought unable to.
const KILLING: Duration = Duration::from_secs(60);
/// How often processes are counted.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// How often the scratch directory is weighed, at most.
const WEIGH_EVERY: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// Runs as the process that the second argument names.
pub fn serve(part: Option<&std::ffi::OsStr>) -> ExitCode {
    let done = match part.and_then(|part| part.to_str()) {
        Some(SUPERVISE) => supervise(),
        Some(CONFINE) => confined(),
        _ => Err(io::Error::other("this argument is for git cbia itself")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(io::stderr(), "git cbia: the executor cannot be supervised: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

/// Standard input is the socket to whoever gave the order.
fn channel() -> io::Result<(UnixStream, Order)> {
    let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut line = String::new();
    BufReader::new(&channel).read_line(&mut line)?;
    Ok((channel, serde_json::from_str(&line)?))
}

fn say(mut channel: &UnixStream, what: &impl serde::Serialize) -> io::Result<()> {
    let mut line = json::to_value(what).to_string().into_bytes();
    line.push(b'\n');
    channel.write_all(&line)
}

fn supervise() -> io::Result<()> {
    let (channel, mut order) = channel()?;
    // Ctrl-C goes to the terminal's foreground group, of which this is not a member any more.
    rustix::process::setsid()?;
    adopt_orphans()?;
    let (tell, events) = std::sync::mpsc::channel();
    hear_giver(&channel, tell.clone())?;
    let mut ran = match wrap::command(&order) {
        Some((program, before)) => {
            order.wrapped = true;
            let mut wrapped = command(program);
            wrapped.args(before);
            run(wrapped, &channel, (&tell, &events), &order)?
        }
        None => run(command(Path::new(&order.binary)), &channel, (&tell, &events), &order)?,
    };
    let unheard = matches!(ran.fate, Fate::Exited(_) | Fate::Signalled(_)) && ran.words.is_empty() && ran.gone;
    if order.wrapped && unheard && !ran.abandoned {
        // bubblewrap could not do its work here, which is why nothing was said.
        order.wrapped = false;
        ran = run(command(Path::new(&order.binary)), &channel, (&tell, &events), &order)?;
    }
    // Whoever gave the order harvests now, removes the directory and closes its end; or is gone already.
    if say(&channel, &Notice::Ended(verdict(ran))).is_ok() {
        io::copy(&mut &channel, &mut io::sink()).ok();
    }
    scratch::remove(Path::new(&order.scratch));
    Ok(())
}

/// A confined process that was started, and of which nothing is left, or nothing that can be killed.
struct Finished {
    fate: Fate,
    words: Vec<String>,
    killed: u64,
    gone: bool,
    abandoned: bool,
}

/// Starts the process that confines itself, and waits until nothing is left of it.
fn run(
    mut process: Command,
    channel: &UnixStream,
    (tell, events): (&Sender<Event>, &Receiver<Event>),
    order: &Order,
) -> io::Result<Finished> {
    let (ours, theirs) = UnixStream::pair()?;
    // The program's errors go where its output goes, in their order; this is about what the process says before.
    let stderr = if order.wrapped { Stdio::null() } else { Stdio::inherit() };
    process.args([ARGUMENT, CONFINE]).env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs))).stderr(stderr);
    let spawned = process.spawn()?;
    // It holds the other end, whose closing tells that the process is gone.
    drop(process);
    let child = Pid::from_raw(spawned.id() as i32).ok_or_else(|| io::Error::other("the child has no id"))?;
    // A process that ends at once is heard of below.
    say(&ours, order).ok();
    let listener = hear_child(child, &ours, tell)?;
    let mut words = Vec::new();
    let fate = watch(child, channel, &ours, events, &mut words, order);
    let ended = matches!(fate, Fate::Exited(_) | Fate::Signalled(_));
    let (killed, gone) = end(child, if ended { GRACE } else { Duration::ZERO });
    let mut abandoned = fate == Fate::Abandoned;
    // Nobody is left who could keep the socket open.
    if gone && listener.join().is_ok() {
        for event in events.try_iter() {
            match event {
                Event::Said(word) => words.push(word),
                Event::Abandoned => abandoned = true,
                Event::Ended | Event::Consent => {}
            }
        }
    }
    Ok(Finished { fate, words, killed, gone, abandoned })
}

/// What the supervisor waits for.
enum Event {
    /// The confined process has ended.
    Ended,
    /// The confined process said this line.
    Said(String),
    /// The one who gave the order consents to the level that was reached.
    Consent,
    /// The one who gave the order wants no result any more, or is gone.
    Abandoned,
}

/// Waits in a thread for what the one who gave the order says.
fn hear_giver(channel: &UnixStream, tell: Sender<Event>) -> io::Result<()> {
    let mut channel = channel.try_clone()?;
    let hear = move || {
        while let Ok(1..) = channel.read(&mut [0; 64]) {
            tell.send(Event::Consent).ok();
        }
        tell.send(Event::Abandoned).ok();
    };
    std::thread::Builder::new().spawn(hear).map(drop)
}

/// Waits for the confined process in one thread, and for what it says in another, which is given.
fn hear_child(child: Pid, confined: &UnixStream, tell: &Sender<Event>) -> io::Result<JoinHandle<()>> {
    let teller = tell.clone();
    std::thread::Builder::new().spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(rustix::process::waitid(WaitId::Pid(child), options), Err(rustix::io::Errno::INTR)) {}
        teller.send(Event::Ended).ok();
    })?;
    let (confined, teller) = (BufReader::new(confined.try_clone()?), tell.clone());
    std::thread::Builder::new().spawn(move || {
        for line in confined.lines().map_while(Result::ok) {
            teller.send(Event::Said(line)).ok();
        }
    })
}

#[cfg(target_os = "linux")]
fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() -> io::Result<()> {
    Ok(())
}

fn verdict(ran: Finished) -> Verdict {
    let mut level = "none".to_owned();
    let mut refused = Some(Fate::Unstartable("its process ended before it was confined".into()));
    for line in &ran.words {
        match serde_json::from_str(line) {
            Ok(Word::Confined(reached)) => (level, refused) = (reached, None),
            Ok(Word::Unconfined(why)) => refused = Some(Fate::Unconfined(why)),
            Ok(Word::Unstartable(why)) => refused = Some(Fate::Unstartable(why)),
            Err(error) => refused = Some(Fate::Unstartable(error.to_string())),
        }
    }
    let fate = match (ran.fate, refused) {
        (Fate::Exited(_), Some(refused)) => refused,
        (fate, _) if ran.gone => fate,
        _ => Fate::Unkillable,
    };
    Verdict { level, fate, killed: ran.killed }
}

/// Waits until the executor has ended, or must.
fn watch(
    child: Pid,
    channel: &UnixStream,
    mut confined: &UnixStream,
    events: &Receiver<Event>,
    words: &mut Vec<String>,
    order: &Order,
) -> Fate {
    let started = Instant::now();
    let deadline = Duration::from_millis(order.timeout_ms);
    let (mut counted, mut weigh_at) = (Duration::ZERO, WEIGH_EVERY);
    loop {
        // Orphans that came here and ended are reaped on the way.
        while let Ok(Some((process, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if process == child {
                let signal = status.terminating_signal().map(Fate::Signalled);
                return signal.unwrap_or_else(|| wrap::fate(order, status.exit_status().unwrap_or(-1)));
            }
        }
        let elapsed = started.elapsed();
        if elapsed >= deadline {
            return Fate::TimedOut;
        }
        if elapsed - counted >= COUNT_EVERY {
            counted = elapsed;
            if family().1 > order.bounds.processes + u64::from(order.wrapped) {
                return Fate::TooManyProcesses;
            }
        }
        if elapsed >= weigh_at {
            if scratch::weight(Path::new(&order.scratch), order.bounds.disk_bytes) > order.bounds.disk_bytes {
                return Fate::TooMuchDisk;
            }
            // A large directory takes its time, of which this takes a tenth at most.
            let now = started.elapsed();
            weigh_at = now + WEIGH_EVERY.max((now - elapsed) * 10);
        }
        match events.recv_timeout((deadline - elapsed).min(COUNT_EVERY)) {
            Ok(Event::Said(word)) => {
                if let Ok(Word::Confined(level)) = serde_json::from_str(&word) {
                    say(channel, &Notice::Reached(level)).ok();
                }
                words.push(word);
            }
            Ok(Event::Consent) => drop(confined.write_all(b"\n")),
            Ok(Event::Abandoned) => return Fate::Abandoned,
            // It is reaped above.
            Ok(Event::Ended) | Err(_) => {}
        }
    }
}

/// Kills everything that came from the executor, and waits for all of it. How many processes had to be killed, and whether all are gone.
///
/// Only this process's own children are killed, with their groups: nobody else can reap them, so the ids are certain to be theirs. Their
/// children then become this process's own, and are next.
fn end(child: Pid, grace: Duration) -> (u64, bool) {
    let started = Instant::now();
    let (mut killed, mut pause) = (0, Duration::from_micros(50));
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => return (killed + strays(child), true),
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => {}
        }
        let elapsed = started.elapsed();
        if elapsed >= KILLING {
            return (killed, false);
        }
        if elapsed >= grace {
            killed += strays(child);
            for process in family().0 {
                let own = rustix::process::getpgrp();
                if let Ok(group) = rustix::process::getpgid(Some(process))
                    && group != own
                {
                    rustix::process::kill_process_group(group, Signal::KILL).ok();
                }
                killed += u64::from(rustix::process::kill_process(process, Signal::KILL).is_ok());
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Kills the group that the confined process leads, where nobody tells which processes are whose: how many were killed, as far as is known.
#[cfg(not(target_os = "linux"))]
fn strays(leader: Pid) -> u64 {
    u64::from(rustix::process::kill_process_group(leader, Signal::KILL).is_ok())
}

#[cfg(target_os = "linux")]
fn strays(_: Pid) -> u64 {
    0
}

/// The children of this process, and how many processes have come from it in all, as far as the system tells.
fn family() -> (Vec<Pid>, u64) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = std::fs::read_dir("/proc") else { return (Vec::new(), 0) };
    let mut parents: BTreeMap<i32, i32> = BTreeMap::new();
    for entry in entries.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses may hold anything; what follows its end is `state ppid`.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.extend(parent.map(|parent: i32| (process, parent)));
    }
    let children = parents.iter().filter(|(_, parent)| **parent == own).filter_map(|(process, _)| Pid::from_raw(*process));
    let is_ours = |process: &i32| {
        let mut at = *process;
        for _ in 0..parents.len() {
            match parents.get(&at) {
                Some(parent) if *parent == own => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    (children.collect(), parents.keys().filter(|process| is_ours(process)).count() as u64)
}

/// Confines this process and becomes the executor. Returns only if that fails, having said why.
fn confined() -> io::Result<()> {
    let (mut channel, order) = channel()?;
    let word = match prepare(&order) {
        Err(error) => Word::Unconfined(error),
        Ok(()) => match sandbox::confine(&order) {
            Err(error) => Word::Unconfined(error),
            Ok(level) => {
                say(&channel, &Word::Confined(level))?;
                // Its bytes are hashed while it is asked whether it may run.
                let held = hold_program(&order);
                // Nobody has seen a byte of the program before it may run as well confined as this.
                if channel.read(&mut [0; 1])? == 0 {
                    return Ok(());
                }
                // In one pipe, what is printed keeps its order.
                let errors = io::stdout().as_fd().try_clone_to_owned()?;
                match sandbox::limit(&order) {
                    Err(error) => Word::Unconfined(error),
                    Ok(()) => match held {
                        Ok(held) => Word::Unstartable(become_program(&order, held, errors).to_string()),
                        Err(error) => Word::Unstartable(error.to_string()),
                    },
                }
            }
        },
    };
    say(&channel, &word)
}

fn prepare(order: &Order) -> Result<(), String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    rustix::process::setsid().map_err(|error| told("it cannot lead a session of its own", &error))?;
    #[cfg(target_os = "linux")]
    {
        let supervisor = rustix::process::getppid();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| told("it cannot be tied to its supervisor", &error))?;
        if rustix::process::getppid() != supervisor || supervisor.is_none() {
            return Err("its supervisor has gone".into());
        }
    }
    close_fds::set_fds_cloexec(3, &[]);
    rustix::process::chdir(order.tree.as_str()).map_err(|error| told("its scratch directory cannot be entered", &error))
}
