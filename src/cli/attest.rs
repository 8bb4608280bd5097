use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::printable;
use crate::store::attest::{Rederive, Trust};
use crate::store::object::trailers;
use crate::store::runs::RunListing;
use crate::store::{Store, StoreError};
use crate::verify::{Evidence, Limits, Means, Run, Verifier};

/// Sign a run: a tag on its last phase commit, with git's own signing.
///
/// A run that this clone did not work out itself is derived again first, and not signed if it does not hold. The key is the one that git
/// signs with: user.signingKey and gpg.format. Where cbia.trust is signed, a run counts only if enough signers of
/// control/runners.allowed_signers attested it; where cbia.rederive is unattested, such a run is believed without deriving it.
#[derive(clap::Args)]
pub struct Args {
    /// A state key, first digits are enough, or a run's last commit. By default the newest run.
    run: Option<String>,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let listing = find(store, args.run.as_deref())?;
    let (state_key, executor_key, tip) = (listing.state_key, listing.executor_key, listing.tip);
    own_keys(store, &listing)?;
    derived(context, &listing)?;
    let made = store.attest(tip, &state_key, &executor_key).map_err(unsigned)?;
    ui.line(&format!("{} run {tip}", if made.known { "attested already:" } else { "attested" }));
    ui.line(&format!("  key {}", printable(&made.key)));
    ui.line(&format!("  tag {} {}", made.tag, made.name.as_str()));
    let mut findings = Vec::new();
    if !made.countable {
        let message = "git verify-tag checks this signature, but it cannot count where cbia.trust is signed";
        let hint = "allowed signers are named by ssh keys: git config gpg.format ssh && git config user.signingKey <key>";
        findings.push(Finding::warning(Code::AttestationInvalid, message).at(made.name.as_str()).hint(hint));
    }
    ui.findings(&findings);
    ui.result(
        json!({
            "run": tip.to_string(), "state_key": state_key, "executor_key": executor_key, "ref": made.name.as_str(),
            "tag": made.tag.to_string(), "key": made.key, "known": made.known, "countable": made.countable,
        }),
        &findings,
    );
    Ok(exit::DONE)
}

/// The run that is meant.
pub(super) fn find(store: &Store, given: Option<&str>) -> Result<RunListing, CommandError> {
    let missing = |message: String| {
        CommandError::found(Finding::error(Code::DocumentMissing, message).hint("git for-each-ref refs/cbia/runs lists the runs"))
    };
    let runs = store.runs()?;
    let tip = match given {
        None => super::show::newest(store)?,
        Some(name) => {
            let wanted = name.to_ascii_lowercase();
            let of_state = |run: &&RunListing| wanted.len() >= 4 && run.state_key.to_string().starts_with(&wanted);
            match runs.iter().filter(of_state).collect::<Vec<_>>().as_slice() {
                [run] => run.tip,
                [] => store.resolve(name)?,
                _ => return Err(CommandError::usage(&format!("more than one run's state key begins with {}", printable(name)))),
            }
        }
    };
    let found = runs.into_iter().find(|run| run.tip == tip);
    found.ok_or_else(|| missing(format!("{tip} is not the last commit of a run that is stored here")))
}

/// A signature under a name must be for what the name says.
fn own_keys(store: &Store, run: &RunListing) -> Result<(), CommandError> {
    let facts = trailers(&store.read_commit(&run.tip)?);
    let says = |key: &str, value: String| facts.iter().any(|(name, found)| name == key && *found == value);
    if says("Cbia-State-Key", run.state_key.to_string()) && says("Cbia-Executor-Key", run.executor_key.to_string()) {
        return Ok(());
    }
    let message = format!("the run {} says that it is of another state or executor than its ref", run.tip);
    let hint = "git cbia run puts it aside and makes the right one";
    Err(CommandError::all(exit::DENIED, vec![Finding::error(Code::RunInvalid, message).at(&run.name).hint(hint)]))
}

/// Whoever signs a run vouches for all of it, so all of it must hold.
fn derived(context: &Context<'_>, listing: &RunListing) -> Result<(), CommandError> {
    let RunListing { state_key, executor_key, name, tip } = listing;
    let store = context.store;
    if store.worked_out_here(tip, state_key, executor_key) {
        return Ok(());
    }
    let cage = context.environment.cage();
    let (trust, rederive) = (Trust::Content, Rederive::Always);
    let means = Means { cage: &cage, trust, rederive, limits: Limits::own(), own_work: false };
    let run = Run { name: name.to_string(), state_key: *state_key, executor_key: *executor_key, tip: *tip };
    let findings = Verifier::new(store, Evidence::of(store), means).run(&run)?;
    if findings.is_empty() { Ok(()) } else { Err(CommandError::all(exit::DENIED, findings)) }
}

fn unsigned(error: StoreError) -> CommandError {
    match error {
        StoreError::Git(error) => {
            let hint =
                "tell git which key to sign with: git config gpg.format ssh && git config user.signingKey ~/.ssh/id_ed25519.pub";
            let finding = Finding::error(Code::SigningUnavailable, format!("the run is not attested: {}", spelled(&error)));
            CommandError::all(exit::DENIED, vec![finding.hint(hint)])
        }
        error => error.into(),
    }
}
