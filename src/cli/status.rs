use super::Context;
use super::error::CommandError;
use super::run::{code, pipeline, print};
use super::ui::Ui;
use crate::document::machine::{Outcome, RunDocument};
use crate::document::path::printable;
use crate::pipeline::run::Mode;

/// Say what a run would do, and why.
///
/// Goes through the gates and looks up what is known. Writes nothing. Exits with 1 or 3 if a run would be refused.
#[derive(clap::Args)]
pub struct Args {
    /// Read the inputs from this commit instead of the work tree.
    #[arg(long, value_name = "REV")]
    commit: Option<String>,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let report = pipeline(context, args.commit.as_deref(), Mode::Status, false, 1, None)?;
    ui.findings(&report.document.findings);
    ui.line(match report.document.outcome {
        Outcome::WouldReplay => "a run would replay what is known",
        Outcome::WouldRun => "a run would generate",
        _ => "a run would be denied",
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
