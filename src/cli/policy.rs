use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::Finding;
use crate::document::glob::Globs;
use crate::document::path::printable;
use crate::policy::tester::{self, Outcome};
use crate::policy::{Bundle, PolicyFile};
use crate::store::snapshot::{ScanLimits, Wanted};

/// Work on the policies.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the policies' own tests: the test_ rules of policy/**/*_test.rego.
    Test,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    match args.command {
        Command::Test => test(context, ui),
    }
}

fn test(context: &Context<'_>, ui: &mut Ui) -> Result<u8, CommandError> {
    let globs = Globs::new(["policy/**/*.rego"]).map_err(|error| CommandError::usage(&error.to_string()))?;
    let wanted = Wanted { globs: &globs, exact: &[], exclude: &|_| false };
    let scan = context.store.scan_worktree(&wanted, ScanLimits::default())?;
    if crate::document::finding::refuses(&scan.findings) {
        return Err(CommandError::all(exit::UNREADABLE, scan.findings));
    }
    let mut files = Vec::new();
    for (path, file) in &scan.files {
        files.push(PolicyFile { path: path.clone(), text: context.store.content(file)? });
    }
    let unreadable = |findings| CommandError::all(exit::UNREADABLE, findings);
    let bundle = Bundle::new(files).map_err(unreadable)?;
    let results = tester::run(&context.environment.cage(), &bundle).map_err(unreadable)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut told = Vec::new();
    let mut findings: Vec<Finding> = Vec::new();
    for result in &results {
        let name = format!("{}.{}", result.test.package, result.test.name);
        let word = match result.outcome {
            Outcome::Pass => {
                passed += 1;
                "PASS"
            }
            Outcome::Skip => {
                skipped += 1;
                "SKIP"
            }
            _ => {
                failed += 1;
                "FAIL"
            }
        };
        if word != "PASS" {
            ui.line(&format!("{word}  {}", printable(&name)));
        }
        findings.extend(result.finding());
        told.push(json!({"name": name, "outcome": word}));
    }
    ui.findings(&findings);
    ui.line(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
    if results.is_empty() {
        ui.note("there are no tests: policy/**/*_test.rego has no test_ rules");
    }
    ui.result(json!({"passed": passed, "failed": failed, "skipped": skipped, "tests": told}), &findings);
    Ok(if failed == 0 { exit::DONE } else { exit::DENIED })
}
