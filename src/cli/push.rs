use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, refuses, spelled};
use crate::pipeline::counted;
use crate::store::share::{PushWhen, Pushed, Sharing, What};

/// Give a remote the runs, cache entries, attestations and the ledger of this clone.
///
/// The ledger goes to refs/cbia/ledgers/<writer>, where <writer> is cbia.writer or made of user.email. Nothing that the remote has is
/// overwritten: records of another clone of the same writer are joined, and another result under the same key is reported.
#[derive(clap::Args)]
pub struct Args {
    /// The remote: a configured one, an address or a path. By default cbia.pushRemote, the first cbia.remote, or origin.
    remote: Option<String>,
    /// Push everything, also what the remote was known to have.
    #[arg(long)]
    all: bool,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let sharing = store.sharing()?;
    let remote = store.remote_to_push(&sharing, args.remote.as_deref())?;
    let what = if args.all { What::All } else { What::News };
    let pushed = store.push_shared(&sharing, &remote, what)?;
    ui.findings(&pushed.findings);
    ui.line(&told(&pushed));
    let result = json!({
        "remote": pushed.remote,
        "runs": pushed.runs,
        "cache_entries": pushed.entries,
        "attestations": pushed.attestations,
        "ledger": pushed.ledger.map(|id| id.to_string()),
        "pushes": pushed.tries,
    });
    ui.result(result, &pushed.findings);
    Ok(if pushed.refused() { exit::DENIED } else { exit::DONE })
}

/// What was pushed, in one line.
fn told(pushed: &Pushed) -> String {
    let mut parts = Vec::new();
    for (count, one, many) in [
        (pushed.runs, "run", "runs"),
        (pushed.entries, "cache entry", "cache entries"),
        (pushed.attestations, "attestation", "attestations"),
    ] {
        if count > 0 {
            parts.push(counted(count, one, many));
        }
    }
    if pushed.ledger.is_some() {
        parts.push("the ledger".to_owned());
    }
    match (parts.is_empty(), pushed.tries) {
        (true, _) => format!("{} has everything already", pushed.remote),
        (false, 0 | 1) => format!("pushed {} to {}", parts.join(", "), pushed.remote),
        (false, tries) => format!("pushed {} to {} in {tries} tries", parts.join(", "), pushed.remote),
    }
}

/// After a run: pushes if `cbia.push` is `on-run`. A push that fails is told, and takes nothing from the run.
pub fn after_run(context: &Context<'_>, sharing: Option<&Sharing>) -> Vec<Finding> {
    let Some(sharing) = sharing.filter(|sharing| sharing.push == PushWhen::OnRun) else { return Vec::new() };
    let Some(remote) = &sharing.push_remote else { return Vec::new() };
    match context.store.push_unasked(sharing, remote) {
        Ok(pushed) => {
            let mut findings = pushed.findings;
            for finding in findings.iter_mut().filter(|finding| refuses(std::slice::from_ref(finding))) {
                finding.severity = crate::document::finding::Severity::Warning;
            }
            findings
        }
        Err(error) => {
            let hint = "the run is stored and recorded here; git cbia push tries again";
            vec![Finding::warning(Code::RemoteUnreachable, spelled(&error)).hint(hint)]
        }
    }
}
