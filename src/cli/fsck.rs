use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding};
use crate::document::path::printable;
use crate::pipeline::{counted, finished};
use crate::policy;
use crate::store::Store;
use crate::store::fsck::{Census, Problem, Repair};

/// Look at everything that is stored, and say what is not as its name says.
///
/// Looks at every ref below refs/cbia/: its name, the kind of its object, keys, hashes, links, and the chains of runs and ledgers. Exits
/// with 1 if something is wrong and was not mended.
#[derive(clap::Args)]
pub struct Args {
    /// Mend what can be mended: what is wrong is put aside, never deleted, and the ledger goes on from its newest whole record.
    #[arg(long)]
    repair: bool,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let mut census = examine(store)?;
    let mut findings: Vec<Finding> = census.problems.iter().map(|problem| problem.finding.clone()).collect();
    ui.findings(&findings);
    let mut repaired = Vec::new();
    if args.repair && !findings.is_empty() {
        let mut done: Vec<&Repair> = Vec::new();
        for problem in &census.problems {
            let Some(repair) = problem.repair.as_ref().filter(|repair| !done.contains(repair)) else { continue };
            let said = store.mend(repair)?;
            ui.line(&said);
            repaired.push(said);
            done.push(repair);
        }
        census = examine(store)?;
        let left: Vec<Finding> = census.problems.iter().map(|problem| problem.finding.clone()).collect();
        if left != findings {
            let fresh: Vec<Finding> = left.iter().filter(|finding| !findings.contains(finding)).cloned().collect();
            ui.findings(&fresh);
            findings.extend(fresh);
        }
    }
    let left = census.problems.len();
    ui.line(&format!(
        "{}: {}, {}, {}, {}, {}; {}",
        counted(census.refs, "ref", "refs"),
        counted(census.runs.len(), "run", "runs"),
        counted(census.entries, "cache entry", "cache entries"),
        counted(census.records, "record", "records"),
        counted(census.attestations, "attestation", "attestations"),
        counted(census.decisions, "remembered decision", "remembered decisions"),
        if left == 0 { "all is as it should be".to_owned() } else { counted(left, "problem", "problems") }
    ));
    let result = json!({
        "refs": census.refs,
        "runs": census.runs.len(),
        "cache_entries": census.entries,
        "records": census.records,
        "attestations": census.attestations,
        "decisions": census.decisions,
        "repaired": repaired,
        "problems": left,
    });
    ui.result(result, &findings);
    Ok(if left == 0 { exit::DONE } else { exit::DENIED })
}

/// Looks at everything, the runs included.
fn examine(store: &Store) -> Result<Census, CommandError> {
    let mut census = store.examine(&|memory| policy::answers(&memory.key, &memory.decision, &memory.explain))?;
    census.problems.extend(runs(store, &census));
    Ok(census)
}

/// What is wrong with the runs.
pub(super) fn runs(store: &Store, census: &Census) -> Vec<Problem> {
    let mut problems = Vec::new();
    for listing in census.runs.clone() {
        let (name, tip) = (listing.name.clone(), listing.tip);
        let findings = match finished::read(store, listing) {
            Ok(Ok(_)) => continue,
            Ok(Err(findings)) => findings,
            Err(error) => vec![Finding::error(Code::RunInvalid, crate::document::finding::spelled(&error))],
        };
        let first = findings.first().map_or_else(String::new, |finding| finding.message.clone());
        let more = if findings.len() > 1 { format!("; {} more", findings.len() - 1) } else { String::new() };
        let message = format!("the run {} is not whole: {}{more}", tip.to_hex_with_len(12), printable(&first));
        let finding = Finding::error(Code::RunInvalid, message).at(&name);
        let finding = finding.hint("git cbia fsck --repair puts it aside; git cbia run makes it again");
        problems.push(Problem { finding, repair: Some(Repair::Aside(name, tip)) });
    }
    problems
}
