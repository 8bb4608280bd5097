use super::Context;
use super::error::CommandError;
use super::run::{code, pipeline, print};
use super::ui::Ui;
use crate::document::machine::{Outcome, RunDocument};
use crate::document::path::printable;
use crate::document::phase::Phase;
use crate::document::record::PhaseStatus;
use crate::pipeline::run::Mode;

/// Say what a run would do, and why.
///
/// Goes through the gates and looks up what is known. Writes nothing. Exits as a run would that is refused: with 1, 3 or 6.
#[derive(clap::Args)]
pub struct Args {
    /// Read the inputs from this commit instead of the work tree.
    #[arg(long, value_name = "REV")]
    commit: Option<String>,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let report = pipeline(context, args.commit.as_deref(), Mode::Status, false, 1, None)?;
    ui.findings(&report.document.findings);
    let stopped = report.document.phases.iter().find(|phase| phase.phase > Phase::Gen && phase.status == PhaseStatus::Failed);
    ui.line(&match (report.document.outcome, stopped) {
        (Outcome::WouldReplay, _) => "a run would replay what is known".to_owned(),
        (Outcome::WouldRun, _) => "a run would generate".to_owned(),
        (_, Some(phase)) => format!("a run would be stopped at {}", phase.phase),
        _ => "a run would be denied".to_owned(),
    });
    print(&report.document, ui);
    print_misses(&report.document, ui);
    ui.document(&report.document);
    Ok(code(report.ended))
}

/// Says which component of a key differs from the newest run's.
pub fn print_misses(document: &RunDocument, ui: &mut Ui) {
    for miss in &document.miss {
        let short =
            |value: &Option<String>| value.as_deref().map_or("nothing".to_owned(), |v| printable(v).chars().take(12).collect());
        let path = miss.path.as_deref().map(|path| format!(" ({})", printable(path))).unwrap_or_default();
        ui.line(&format!("{} misses: {}{path} was {}, is {}", miss.phase, miss.component, short(&miss.was), short(&miss.now)));
    }
}
