//! `git cbia run`, from lock to replay. The order, read top to bottom.

use super::PipelineError;
use super::foresee::foresee;
use super::inputs::{self, ExecutorSource, From};
use super::judge::Remembering;
use super::miss;
use super::repeat;
use super::reuse;
use super::settle::{Go, Settle, Work};
use super::step::{Admitted, Documents, gates};
use crate::document::finding::{Code, Finding};
use crate::document::machine::RunDocument;
use crate::executor::external::Host;
use crate::phase::r#gen::{self, Produced};
use crate::phase::{Judge, repair};
use crate::policy::Cage;
use crate::store::Store;
use crate::store::materialise::Materialised;
use crate::store::share::{Sharing, Wanted};

/// How far a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All the way.
    Run,
    /// Through OPA_GATE only; nothing is written.
    DryRun,
    /// Says what a run would do; nothing is written.
    Status,
}

/// What a command asks for.
pub struct Options<'a> {
    /// Where the inputs are read from.
    pub from: From,
    /// Where the executor's configuration is read from.
    pub executor: ExecutorSource,
    /// How far to go.
    pub mode: Mode,
    /// Whether files that a person edited are overwritten.
    pub force: bool,
    /// Where policies are evaluated.
    pub cage: &'a Cage,
    /// What of this machine an executor that is a program of its own needs.
    pub host: &'a Host<'a>,
    /// How many times GEN is executed, to see whether it does the same each time; once if at all where this is 1.
    pub repeat: u32,
    /// Where else is asked on a miss.
    pub elsewhere: Option<&'a Sharing>,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Admitted, and done.
    Done,
    /// A gate refused.
    Denied,
    /// A document cannot be read.
    Unreadable,
    /// The executor failed, or gave another result than before.
    ExecutorFailed,
    /// CHECK refused what was generated, and no repair mended it.
    CheckFailed,
    /// A phase after CHECK failed.
    Failed,
    /// The work tree was left as it is, because somebody's edits are in the way.
    Refused,
}

/// What a command did.
pub struct Report {
    /// What `--json` prints.
    pub document: RunDocument,
    /// How it ended.
    pub ended: Ended,
    /// What was written into the work tree; absent where there is none.
    pub work_tree: Option<Materialised>,
}

/// Where GEN's output came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// The run is known.
    Run,
    /// The run is new, its output is not.
    Cache,
    /// It was executed.
    Executed,
}

/// Runs the pipeline.
pub fn run(store: &Store, options: &Options<'_>) -> Result<Report, PipelineError> {
    let inputs = inputs::take(store, options.from, &options.executor)?;
    let mut judge = Remembering::new(store, options.cage);
    let gates = gates(&inputs, &mut judge);
    let mut settle = Settle::new(store, options, &inputs, &gates);
    settle.findings.append(&mut judge.findings);
    if options.mode == Mode::Run {
        judge.remember()?;
    }

    let (Some(admission), Ok(pipeline)) = (&gates.admission, &inputs.pipeline) else {
        return settle.denied(&inputs, &gates);
    };
    let Some(documents) = Documents::of(&inputs, &gates) else { return settle.denied(&inputs, &gates) };
    let input = r#gen::Input {
        admission,
        authority_ledger_hash: documents.ledger.sha256,
        pipeline: &pipeline.document,
        manifest: &inputs.manifest,
    };
    let key = r#gen::key(&input);
    settle.key = Some(key.clone());
    settle.tell_left_out(&pipeline.document.later_sections(), &inputs);
    if options.mode == Mode::DryRun {
        return Ok(settle.passed());
    }
    let admitted = Admitted {
        store,
        inputs: &inputs,
        documents,
        gates: &gates,
        input: &input,
        key: &key,
        state_key: settle.state_key,
        executor_key: settle.executor_key,
    };

    let repeated = match repeat(&admitted, &mut settle, options)? {
        Ok(produced) => produced,
        Err(findings) => return settle.failed(&inputs, &gates, findings),
    };
    let found = known(&admitted, &mut settle, &mut judge)?;
    if let (Some(work), Some(produced)) = (&found, &repeated) {
        let findings = repeat::against_stored(&work.output, produced);
        if !findings.is_empty() {
            return settle.failed(&inputs, &gates, findings);
        }
    }
    match found {
        Some(work) if options.mode == Mode::Status => {
            let ahead = if work.whole.is_none() { foresee(&admitted, &work.output, &mut judge) } else { None };
            return Ok(match ahead {
                Some((whole, stop)) => settle.would_stop(&whole, &stop),
                None => settle.would_replay(&work),
            });
        }
        // A stored artifact that is not what its run says shows only when it is read, which is now.
        Some(work) if work.origin == Origin::Run => {
            judge.remember()?;
            match settle.admitted(&admitted, work, &mut Go { judge: &mut judge, sources: None, elsewhere: None })? {
                Ok(report) => return Ok(report),
                Err(finding) => settle.refuse_stored(&admitted, finding)?,
            }
        }
        // The output is known and the run is not: it is one process that admits it, so it waits its turn below.
        Some(_) => {}
        None => settle.misses = miss::explain(store, &inputs, &key),
    }
    if options.mode == Mode::Status {
        return Ok(settle.would_run());
    }

    // One execution per key: whoever comes second finds what the first has stored.
    let guard = store.lock(&format!("gen-{}", key.digest()), None)?;
    let contents = inputs.manifest_contents(store)?;
    let sources = repair::Sources { contents: &contents, bundle: documents.bundle, host: Some(options.host) };
    let found = known_or_fetched(&admitted, &mut settle, &mut judge, options)?;
    // A remote that did not answer just now is not waited for again.
    let silent = settle.findings.iter().any(|finding| finding.code == Code::RemoteUnreachable);
    let elsewhere = options.elsewhere.filter(|_| !silent);
    if let Some(work) = found {
        let report = settle.admitted(&admitted, work, &mut Go { judge: &mut judge, sources: Some(&sources), elsewhere })?;
        judge.remember()?;
        match report {
            Ok(report) => return Ok(report),
            Err(finding) => settle.refuse_stored(&admitted, finding)?,
        }
    }
    let produced = match repeated {
        Some(produced) => produced,
        None => match reuse::generate(&admitted, &mut settle, options, &contents) {
            Ok(produced) => produced,
            Err(findings) => return settle.failed(&inputs, &gates, findings),
        },
    };
    let work = match settle.produced(&admitted, produced)? {
        Ok(work) => work,
        Err(finding) => return settle.failed(&inputs, &gates, vec![finding]),
    };
    let report = settle.admitted(&admitted, work, &mut Go { judge: &mut judge, sources: Some(&sources), elsewhere })?;
    judge.remember()?;
    drop(guard);
    match report {
        Ok(report) => Ok(report),
        Err(finding) => settle.failed(&inputs, &gates, vec![finding]),
    }
}

/// Executes GEN as often as asked for, if more than once. What it produced, if that was the same each time.
fn repeat(
    admitted: &Admitted<'_>,
    settle: &mut Settle<'_>,
    options: &Options<'_>,
) -> Result<Result<Option<Produced>, Vec<Finding>>, PipelineError> {
    if options.repeat < 2 || options.mode != Mode::Run {
        return Ok(Ok(None));
    }
    let contents = admitted.inputs.manifest_contents(admitted.store)?;
    let first = match reuse::execute(admitted, settle, options, &contents, None) {
        Ok(first) => first,
        Err(findings) => return Ok(Err(findings)),
    };
    for number in 2..=options.repeat {
        let findings = match reuse::execute(admitted, settle, options, &contents, None) {
            Ok(next) => repeat::differences(&first, &next, number),
            Err(findings) => findings,
        };
        if !findings.is_empty() {
            return Ok(Err(findings));
        }
    }
    Ok(Ok(Some(first)))
}

/// As [`known`]; on a miss the remotes are asked, by the one process that holds the key's lock. What they have is then held against this state
/// as anything else that is stored. Where GEN was executed several times, its result is at hand.
fn known_or_fetched(
    admitted: &Admitted<'_>,
    settle: &mut Settle<'_>,
    judge: &mut dyn Judge,
    options: &Options<'_>,
) -> Result<Option<Work>, PipelineError> {
    let found = known(admitted, settle, judge)?;
    let (None, Some(sharing), 1) = (&found, options.elsewhere, options.repeat) else { return Ok(found) };
    let keys = [admitted.key.digest()];
    let wanted = Wanted { run: Some((admitted.state_key, admitted.executor_key)), keys: &keys };
    settle.findings.extend(admitted.store.look_up(sharing, &wanted));
    known(admitted, settle, judge)
}

/// What is known of this state: its run, or at least GEN's output. Whatever cannot be believed is told, put aside, and not used.
fn known(admitted: &Admitted<'_>, settle: &mut Settle<'_>, judge: &mut dyn Judge) -> Result<Option<Work>, PipelineError> {
    if let Some(tip) = admitted.store.run_tip(&admitted.state_key, &admitted.executor_key)? {
        // A run that came from elsewhere is worked out again before it is believed: what it says of its own CHECK is its maker's word.
        let believed = admitted.store.worked_out_here(&tip, &admitted.state_key, &admitted.executor_key);
        match admitted.stored(tip, believed, judge)? {
            Ok((output, whole)) => {
                if !believed && settle.mode == Mode::Run {
                    admitted.store.note_worked_out(&tip, &admitted.state_key, &admitted.executor_key);
                }
                return Ok(Some(Work { output, origin: Origin::Run, whole: Some(whole) }));
            }
            Err(finding) => settle.put_aside_run(admitted, tip, finding)?,
        }
    }
    match admitted.cached()? {
        Ok(None) => Ok(None),
        Ok(Some(output)) => Ok(Some(Work { output, origin: Origin::Cache, whole: None })),
        Err(finding) => {
            settle.put_aside_entry(admitted, finding)?;
            Ok(None)
        }
    }
}
