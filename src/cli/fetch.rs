use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::refuses;
use crate::pipeline::counted;

/// Bring in the runs, cache entries and attestations of a remote, and the ledgers of all writers.
///
/// What arrives lands under refs/cbia/remotes/<remote>/ and becomes usable only after every object was hashed again and every key was
/// computed again. Nothing that is here is overwritten.
#[derive(clap::Args)]
pub struct Args {
    /// The remote: a configured one, an address or a path. By default every cbia.remote, or origin.
    remote: Option<String>,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let sharing = store.sharing()?;
    let (mut findings, mut told) = (Vec::new(), Vec::new());
    for remote in store.remotes_to_fetch(&sharing, args.remote.as_deref())? {
        let mut fetched = store.fetch_shared(&sharing, &remote)?;
        super::partial::explain(store, &mut fetched.findings);
        ui.findings(&fetched.findings);
        let mut parts = Vec::new();
        for (count, one, many) in [
            (fetched.runs, "run", "runs"),
            (fetched.entries, "cache entry", "cache entries"),
            (fetched.attestations, "attestation", "attestations"),
            (fetched.records(), "record", "records"),
        ] {
            if count > 0 {
                parts.push(counted(count, one, many));
            }
        }
        let what = if parts.is_empty() { "nothing new".to_owned() } else { parts.join(", ") };
        ui.line(&format!("fetched {what} from {}", fetched.remote));
        let ledgers = fetched.ledgers.iter().map(|news| json!({"writer": news.writer, "records": news.records}));
        told.push(json!({
            "remote": fetched.remote,
            "runs": fetched.runs,
            "cache_entries": fetched.entries,
            "attestations": fetched.attestations,
            "ledgers": ledgers.collect::<Vec<_>>(),
        }));
        findings.extend(fetched.findings);
    }
    ui.result(json!({ "remotes": told }), &findings);
    Ok(if refuses(&findings) { exit::DENIED } else { exit::DONE })
}
