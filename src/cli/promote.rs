use std::path::PathBuf;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::machine::{PromoteDocument, PromoteOutcome};
use crate::document::promotion::PromoteMode;
use crate::pipeline::counted;
use crate::pipeline::inputs::Inputs;
use crate::pipeline::promote::{self, Named, Options};
use crate::store::runs::RunListing;

/// Bring what a finished run made onto the current branch.
///
/// The artifacts that SELECT kept and the files of the package go to their own paths, where promote.destinations of the run's pipeline
/// allows it: as one commit, which carries the run in its trailers. Other staged or changed files are left alone; a destination with
/// changes of its own is refused, and nothing is written then.
#[derive(clap::Args)]
pub struct Args {
    /// The run: first digits of its commit, or of its state key, a slash and its executor key. By default that of the work tree's state.
    run: Option<String>,
    /// Put the files into the index and the work tree, and make no commit.
    #[arg(long, conflicts_with = "patch")]
    stage: bool,
    /// Write the difference to HEAD into this file, for git apply, and nothing else.
    #[arg(long, value_name = "FILE")]
    patch: Option<PathBuf>,
}

/// How many files are listed; `--json` gives all of them.
const MAX_LISTED: usize = 20;

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let mode = match (&args.patch, args.stage) {
        (Some(_), _) => PromoteMode::Patch,
        (None, true) => PromoteMode::Stage,
        (None, false) => PromoteMode::Commit,
    };
    let report = match promote(context, args.run.as_deref(), mode) {
        Ok(report) => report,
        Err(error) => return Ok(failed(mode, error, ui)),
    };
    if let (Some(file), Some(patch)) = (&args.patch, &report.patch) {
        super::init::write(&context.environment.started_in(file)?, patch)?;
    }
    ui.findings(&report.document.findings);
    print(&report.document, ui);
    ui.document(&report.document);
    Ok(code(&report.document))
}

/// Promotes a run by its name.
fn promote(context: &Context<'_>, name: Option<&str>, mode: PromoteMode) -> Result<promote::Report, CommandError> {
    if context.store.work_dir().is_none() {
        return Err(bare());
    }
    let (inputs, listing) = match named(context, name)? {
        (inputs, Ok(listing)) => (inputs, listing),
        (_, Err(report)) => {
            let document = PromoteDocument { outcome: PromoteOutcome::Refused, ..PromoteDocument::failed(mode, vec![*report]) };
            return Ok(promote::Report { document, patch: None });
        }
    };
    let cage = context.environment.cage();
    let options = Options { mode, cage: &cage };
    Ok(promote::run(context.store, &inputs, listing, &options)?)
}

fn bare() -> CommandError {
    CommandError::usage("this repository is bare: it has no branch checked out to promote to; promote in a clone, and push")
}

/// The work tree's state, and the run that `name` means; an inner finding says why it means none.
pub fn named(
    context: &Context<'_>,
    name: Option<&str>,
) -> Result<(Inputs, Result<RunListing, Box<crate::document::finding::Finding>>), CommandError> {
    let inputs = promote::current(context.store, &context.environment.executor()?)?;
    let found = match promote::named(context.store, name, &inputs)? {
        Named::Run(listing) => Ok(listing),
        Named::None(finding) => Err(Box::new(finding)),
        Named::Ambiguous(runs) => {
            let runs = runs.iter().take(5).map(|run| format!("{}/{}", run.state_key.short(), run.executor_key.short()));
            let runs: Vec<String> = runs.collect();
            return Err(CommandError::usage(&format!("that names more than one run: {}; give more digits", runs.join(", "))));
        }
    };
    Ok((inputs, found))
}

/// A promotion that could not be carried out: prints it, and gives its exit code.
fn failed(mode: PromoteMode, error: CommandError, ui: &mut Ui) -> u8 {
    let code = ui.fail(&error);
    ui.document(&PromoteDocument::failed(mode, error.findings));
    code
}

/// Promotes the run that `git cbia run` has just come to, as a commit.
pub fn after_run(context: &Context<'_>) -> Result<PromoteDocument, CommandError> {
    Ok(promote(context, None, PromoteMode::Commit)?.document)
}

/// The exit code of a promotion's end.
pub fn code(document: &PromoteDocument) -> u8 {
    match document.outcome {
        PromoteOutcome::Promoted | PromoteOutcome::AlreadyPromoted => exit::DONE,
        PromoteOutcome::Refused | PromoteOutcome::Failed => exit::DENIED,
    }
}

/// Prints what was promoted, and where to.
pub fn print(document: &PromoteDocument, ui: &mut Ui) {
    let branch = document.branch.as_deref().map(|name| name.strip_prefix("refs/heads/").unwrap_or(name));
    let onto = branch.map_or("a detached HEAD".to_owned(), crate::document::path::printable);
    if matches!(document.outcome, PromoteOutcome::Promoted | PromoteOutcome::AlreadyPromoted) {
        for file in document.files.iter().take(MAX_LISTED) {
            ui.line(&format!("  {}  {}", file.sha256.short(), file.path));
        }
        if document.files.len() > MAX_LISTED {
            ui.line(&format!("  and {} more", document.files.len() - MAX_LISTED));
        }
    }
    let count = counted(document.files.len(), "file", "files");
    match (document.outcome, document.mode) {
        (PromoteOutcome::Promoted, PromoteMode::Commit) => {
            let commit: String = document.commit.iter().flat_map(|commit| commit.chars().take(12)).collect();
            ui.line(&format!("promoted {count} onto {onto} as {commit}"));
        }
        (PromoteOutcome::Promoted, PromoteMode::Stage) => ui.line(&format!("staged {count} on {onto}; git commit commits them")),
        (PromoteOutcome::Promoted, PromoteMode::Patch) => ui.line(&format!("wrote the patch of {count}; git apply applies it")),
        (PromoteOutcome::AlreadyPromoted, PromoteMode::Stage) => ui.line(&format!("already staged: the index has all {count}")),
        (PromoteOutcome::AlreadyPromoted, _) => ui.line(&format!("already promoted: {onto} has all {count}")),
        (PromoteOutcome::Refused | PromoteOutcome::Failed, _) => ui.line("refused: nothing was promoted"),
    }
    if let Some(record) = &document.record {
        ui.line(&format!("record {record} on refs/cbia/ledger"));
    }
}
