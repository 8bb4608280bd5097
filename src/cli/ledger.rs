use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::pipeline::counted;

/// Join ledgers, and give a remote back what its ledgers have lost.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Join every ledger that was fetched into refs/cbia/ledger, by one record.
    Merge,
    /// Give a remote back the records that it was seen to have, after its ledgers were set back or deleted.
    ///
    /// Nothing there is overwritten: where a ledger was replaced, one record joins what it was and what it is.
    Restore {
        /// The remote: a configured one, an address or a path. By default cbia.pushRemote, the first cbia.remote, or origin.
        remote: Option<String>,
    },
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    match &args.command {
        Command::Merge => merge(context, ui),
        Command::Restore { remote } => restore(context, remote.as_deref(), ui),
    }
}

fn merge(context: &Context<'_>, ui: &mut Ui) -> Result<u8, CommandError> {
    let Some((appended, count)) = context.store.join_fetched()? else {
        ui.line("refs/cbia/ledger holds every record that is known here");
        ui.result(json!({"record": null, "ledgers": 0}), &[]);
        return Ok(exit::DONE);
    };
    ui.findings(&appended.findings);
    ui.line(&format!("joined {} into refs/cbia/ledger", counted(count, "ledger", "ledgers")));
    ui.line(&format!("record {}", appended.id));
    ui.result(json!({"record": appended.id.to_string(), "ledgers": count}), &appended.findings);
    Ok(exit::DONE)
}

fn restore(context: &Context<'_>, named: Option<&str>, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let sharing = store.sharing()?;
    let remote = store.remote_to_push(&sharing, named)?;
    let restored = store.restore_ledgers(&sharing, &remote)?;
    if restored.is_empty() {
        ui.line(&format!("{} holds every record that it was seen to have", remote.shown()));
    }
    for writer in &restored {
        ui.line(&format!("restored the ledger of {writer} on {}", remote.shown()));
    }
    ui.result(json!({"remote": remote.shown(), "restored": restored}), &[]);
    Ok(exit::DONE)
}
