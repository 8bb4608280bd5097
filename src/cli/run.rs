use super::Context;
use super::error::{CommandError, exit};
use super::format::Format;
use super::ui::Ui;
use crate::document::machine::{Event, Outcome, PhaseDocument, PromoteDocument, PromoteOutcome, RunDocument};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::promotion::PromoteMode;
use crate::document::record::PhaseStatus;
use crate::pipeline::inputs::From;
use crate::pipeline::run::{Ended, Mode, Options, Report, run as run_pipeline};
use crate::store::share::Sharing;

/// Lock, admit and generate, or replay what is known.
///
/// Reads the work tree (or a commit), takes it through the gates, and generates only if nothing is known of exactly this state. Writes the
/// artifacts and the evidence into the work tree, and a record to refs/cbia/ledger.
#[derive(clap::Args)]
pub struct Args {
    /// Read the inputs from this commit instead of the work tree.
    #[arg(long, value_name = "REV")]
    commit: Option<String>,
    /// Go through OPA_GATE only, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Overwrite generated files that somebody edited.
    #[arg(long)]
    force: bool,
    /// Execute GEN this many times, and fail if it does not do the same each time. Replays and stores as usual otherwise.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "dry_run")]
    repeat: u32,
    /// Print the findings in the format of another tool, and nothing else.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<Format>,
    /// Promote what the run made as a commit on the current branch, as git cbia promote does.
    #[arg(long, conflicts_with_all = ["dry_run", "commit", "format"])]
    promote: bool,
    /// Do not ask the remotes of cbia.remote, and push nothing.
    #[arg(long)]
    offline: bool,
}

/// How many artifacts are listed; `--json` gives all of them.
const MAX_LISTED: usize = 20;

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Run };
    let sharing = if args.offline || args.dry_run { None } else { Some(context.store.sharing()?) };
    let mut report = pipeline(context, args.commit.as_deref(), mode, args.force, args.repeat, sharing.as_ref())?;
    if let Some(format) = args.format {
        report.document.findings.extend(super::push::after_run(context, sharing.as_ref()));
        let exit = code(report.ended);
        ui.line(&format.render(&report.document.findings, report.document.artifacts.len(), Phase::Check.as_str(), exit));
        return Ok(exit);
    }
    ui.findings(&report.document.findings);
    if report.document.event != Event::Replayed {
        super::status::print_misses(&report.document, ui);
    }
    print(&report.document, ui);
    ui.line(&verdict(&report, mode));
    if let Some(done) = report.work_tree.as_ref().filter(|_| report.ended == Ended::Done) {
        let removed = done.removed.len();
        let strays = if removed == 0 { String::new() } else { format!(", {removed} no longer generated and removed") };
        ui.note(&format!("work tree: {} written, {} in place{strays}", done.written.len(), done.in_place));
    }
    let mut exit = code(report.ended);
    if args.promote && report.ended == Ended::Done {
        exit = promote(context, &mut report.document, ui);
    }
    // Last, so that the record of a promotion goes too.
    let pushed = super::push::after_run(context, sharing.as_ref());
    ui.findings(&pushed);
    report.document.findings.extend(pushed);
    ui.document(&report.document);
    Ok(exit)
}

/// Promotes what the run made, and adds to its document what became of it.
fn promote(context: &Context<'_>, document: &mut RunDocument, ui: &mut Ui) -> u8 {
    let (promotion, exit) = match super::promote::after_run(context) {
        Ok(promotion) => {
            let exit = super::promote::code(&promotion);
            (promotion, exit)
        }
        Err(error) => (PromoteDocument::failed(PromoteMode::Commit, error.findings), error.code),
    };
    ui.findings(&promotion.findings);
    super::promote::print(&promotion, ui);
    let status = match promotion.outcome {
        PromoteOutcome::Promoted => PhaseStatus::Executed,
        PromoteOutcome::AlreadyPromoted => PhaseStatus::Passed,
        PromoteOutcome::Refused | PromoteOutcome::Failed => {
            document.outcome = Outcome::Failed;
            PhaseStatus::Failed
        }
    };
    document.phases.retain(|phase| phase.phase != Phase::Promote);
    let artifacts = promotion.files.iter().map(|file| (file.path.clone(), file.sha256)).collect();
    document.phases.push(PhaseDocument { phase: Phase::Promote, status, cache_key: None, artifacts });
    document.findings.extend(promotion.findings.iter().cloned());
    document.promotion = Some(promotion);
    exit
}

/// What it all comes to, in one line.
fn verdict(report: &Report, mode: Mode) -> String {
    // A refused repair has failed after the CHECK that it was for.
    let stopped = report.document.phases.iter().rfind(|phase| phase.status == PhaseStatus::Failed);
    let at = stopped.map_or("GEN", |phase| phase.phase.as_str());
    match (report.ended, mode) {
        (Ended::Done, Mode::Run) => "admitted".to_owned(),
        (Ended::Done, _) => "would be admitted".to_owned(),
        (Ended::Denied, _) if at == Phase::Eval.as_str() => format!("denied at {at}: no artifact was written"),
        (Ended::Denied | Ended::Unreadable, _) => format!("denied at {at}: nothing was generated"),
        (Ended::CheckFailed | Ended::Failed, _) => format!("failed at {at}: no artifact was written"),
        (Ended::ExecutorFailed, _) => format!("failed at {at}: nothing was generated"),
        (Ended::Refused, _) => "refused: the run is stored, and nothing in the work tree was changed".to_owned(),
    }
}

/// Runs the pipeline with what the command line and the environment say.
pub fn pipeline(
    context: &Context<'_>,
    commit: Option<&str>,
    mode: Mode,
    force: bool,
    repeat: u32,
    elsewhere: Option<&Sharing>,
) -> Result<Report, CommandError> {
    let from = match commit {
        Some(rev) => From::Tree(context.store.tree_of(&context.store.resolve(rev)?)?),
        None if context.store.work_dir().is_none() => {
            let message = "this repository is bare: it has no work tree to read inputs from; name a commit with --commit";
            return Err(CommandError::usage(message));
        }
        None => From::WorkTree,
    };
    let cage = context.environment.cage();
    let executor = context.environment.executor()?;
    let host = context.environment.host();
    let options = Options { from, executor, mode, force, cage: &cage, host: &host, repeat, elsewhere };
    Ok(run_pipeline(context.store, &options)?)
}

/// The exit code of a pipeline's end.
pub fn code(ended: Ended) -> u8 {
    match ended {
        Ended::Done => exit::DONE,
        Ended::Denied | Ended::Refused | Ended::Failed => exit::DENIED,
        Ended::CheckFailed => exit::CHECK,
        Ended::Unreadable => exit::UNREADABLE,
        Ended::ExecutorFailed => exit::EXECUTOR,
    }
}

fn of(phase: &PhaseDocument, one: &str, many: &str) -> String {
    format!(" {}", crate::pipeline::counted(phase.artifacts.len(), one, many))
}

/// Prints phases, artifacts, run and record.
pub fn print(document: &RunDocument, ui: &mut Ui) {
    let unused = |phase: &PhaseDocument| {
        // What a run does not need, and what it was not asked for, is not worth a line.
        phase.status == PhaseStatus::Skipped && (phase.phase > Phase::Gen || document.outcome == Outcome::WouldReplay)
    };
    for phase in document.phases.iter().filter(|phase| !unused(phase)) {
        // A status has executed nothing: it says what is known.
        let word = match (document.command, phase.status) {
            ("status", PhaseStatus::Replayed) => "hit",
            ("status", PhaseStatus::Executed) => "miss",
            (_, status) => status.as_str(),
        };
        let mut line = format!("{:<15} {word:<9}", phase.phase);
        match (phase.phase, phase.status) {
            (Phase::PreGen, PhaseStatus::Passed | PhaseStatus::Failed) => {
                let decision = if phase.status == PhaseStatus::Passed { "ALLOW" } else { "DENY" };
                let capsule = document.capsule_hash.map(|hash| format!(" (capsule {})", hash.short())).unwrap_or_default();
                line.push_str(&format!(" kernel {decision}{capsule}"));
            }
            (Phase::OpaGate, PhaseStatus::Passed) => line.push_str(" data.assurance.allow = true"),
            (Phase::OpaGate, PhaseStatus::Failed) => line.push_str(" data.assurance.allow is not true"),
            (Phase::Gen, PhaseStatus::Executed | PhaseStatus::Replayed) => {
                // A run that a later phase stopped has no artifacts; GEN has made some all the same.
                let count = phase.artifacts.len().max(document.artifacts.len());
                let key = phase.cache_key.map(|key| key.short()).unwrap_or_default();
                let artifacts = if count == 0 {
                    String::new()
                } else {
                    format!(" {}", crate::pipeline::counted(count, "artifact", "artifacts"))
                };
                line.push_str(&format!("{artifacts} (key {key})"));
                let reused: usize = document.reused.iter().map(|source| source.artifacts.len()).sum();
                if reused > 0 {
                    line.push_str(&format!(", {reused} of them from earlier results"));
                }
            }
            (Phase::Repair, PhaseStatus::Executed | PhaseStatus::Replayed) => line.push_str(&of(phase, "file", "files")),
            (Phase::Select, PhaseStatus::Executed | PhaseStatus::Replayed) => {
                line.push_str(&of(phase, "artifact kept", "artifacts kept"));
            }
            (Phase::Flow, PhaseStatus::Executed | PhaseStatus::Replayed) => line.push_str(&of(phase, "file", "files")),
            (Phase::Eval, PhaseStatus::Executed | PhaseStatus::Replayed) => line.push_str(" data.assurance.allow = true"),
            (Phase::Eval, PhaseStatus::Failed) => line.push_str(" not admitted"),
            _ => {}
        }
        ui.line(line.trim_end());
    }
    let listed = |(path, digest): (&RepoPath, &crate::document::digest::Digest)| format!("  {}  {path}", digest.short());
    for line in document.artifacts.iter().take(MAX_LISTED).map(listed) {
        ui.line(&line);
    }
    if document.artifacts.len() > MAX_LISTED {
        ui.line(&format!("  and {} more", document.artifacts.len() - MAX_LISTED));
    }
    if let Some(run) = &document.run {
        ui.line(&format!("run    {run}"));
    }
    if let Some(record) = &document.record {
        ui.line(&format!("record {record} on refs/cbia/ledger"));
    }
}
