use std::path::PathBuf;

use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, refuses, spelled};
use crate::pipeline::counted;
use crate::store::bundle::BundleError;
use crate::store::share::{Fetched, ShareError};

/// Carry runs where no network leads, in one file.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a bundle: runs, their cache entries and attestations, and the ledger of this clone.
    Create {
        /// The file. One that is there is replaced.
        file: PathBuf,
        /// State keys, first digits are enough, or runs' last commits. By default the newest run.
        #[arg(conflicts_with = "all")]
        runs: Vec<String>,
        /// Everything that a push would give a remote.
        #[arg(long)]
        all: bool,
    },
    /// Look at everything in a bundle, in a place of its own, and take nothing.
    Verify {
        /// The file.
        file: PathBuf,
    },
    /// Take what a bundle holds: it lands under refs/cbia/remotes/bundle/, and what is verified becomes usable.
    Import {
        /// The file.
        file: PathBuf,
    },
}

impl From<BundleError> for CommandError {
    fn from(error: BundleError) -> Self {
        let invalid = |error: &dyn std::error::Error| {
            let finding = Finding::error(Code::BundleInvalid, format!("the bundle is refused: {}", spelled(error)));
            Self::all(exit::DENIED, vec![finding.hint("nothing of it was taken; get it again from where it was made")])
        };
        match &error {
            BundleError::Foreign { .. } | BundleError::Share(ShareError::Transport { .. }) => invalid(&error),
            BundleError::Empty => Self::found(Finding::error(Code::RunMissing, spelled(&error)).hint("git cbia run")),
            BundleError::Io { .. } => Self::found(Finding::error(Code::CommandFailed, spelled(&error))),
            _ => match error {
                BundleError::Share(error) => error.into(),
                BundleError::Store(error) => error.into(),
                error => Self::found(Finding::error(Code::CommandFailed, spelled(&error))),
            },
        }
    }
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    match &args.command {
        Command::Create { file, runs, all } => {
            let sharing = store.sharing()?;
            let listings = match (runs.as_slice(), all) {
                (_, true) => None,
                ([], false) => Some(vec![super::attest::find(store, None)?]),
                (runs, false) => {
                    Some(runs.iter().map(|run| super::attest::find(store, Some(run))).collect::<Result<Vec<_>, _>>()?)
                }
            };
            let bundled = store.create_bundle(file, listings.as_deref(), &sharing.writer)?;
            let entries = counted(bundled.entries, "cache entry", "cache entries");
            let attestations = counted(bundled.attestations, "attestation", "attestations");
            let ledger = if bundled.ledger.is_some() { ", the ledger" } else { "" };
            ui.line(&format!(
                "wrote {}: {}, {entries}, {attestations}{ledger}",
                file.display(),
                counted(bundled.runs, "run", "runs")
            ));
            let result = json!({
                "file": file.to_string_lossy(), "runs": bundled.runs, "cache_entries": bundled.entries,
                "attestations": bundled.attestations, "ledger": bundled.ledger.map(|id| id.to_string()),
            });
            ui.result(result, &[]);
            Ok(exit::DONE)
        }
        Command::Verify { file } => {
            let (fetched, census, scratch, folder) = store.verify_bundle(file)?;
            let problems = super::fsck::runs(&scratch, &census);
            let found = census.problems.iter().chain(&problems).map(|problem| problem.finding.clone());
            let findings: Vec<Finding> = fetched.findings.iter().cloned().chain(found).collect();
            let refused = refuses(&findings);
            ui.findings(&findings);
            ui.line(&format!("{}: {}", if refused { "refused" } else { "verified" }, told(&fetched)));
            ui.result(counts(&fetched), &findings);
            drop((scratch, folder));
            Ok(if refused { exit::DENIED } else { exit::DONE })
        }
        Command::Import { file } => {
            let fetched = store.import_bundle(file)?;
            ui.findings(&fetched.findings);
            ui.line(&format!("took {}", told(&fetched)));
            ui.result(counts(&fetched), &fetched.findings);
            Ok(if refuses(&fetched.findings) { exit::DENIED } else { exit::DONE })
        }
    }
}

fn told(fetched: &Fetched) -> String {
    let runs = counted(fetched.runs, "run", "runs");
    let entries = counted(fetched.entries, "cache entry", "cache entries");
    let attestations = counted(fetched.attestations, "attestation", "attestations");
    format!("{runs}, {entries}, {attestations}, {}", counted(fetched.records(), "record", "records"))
}

fn counts(fetched: &Fetched) -> serde_json::Value {
    json!({
        "runs": fetched.runs, "cache_entries": fetched.entries, "attestations": fetched.attestations, "records": fetched.records(),
    })
}
