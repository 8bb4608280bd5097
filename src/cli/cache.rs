use std::collections::BTreeMap;

use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding};
use crate::document::json::to_value;
use crate::pipeline::counted;
use crate::store::cache::CacheListing;
use crate::store::durable::Durability;
use crate::store::refs::Cas;

/// Look at the stored outputs of phases.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the entries.
    Ls,
    /// Count the entries, what they take, and how often a run was replayed.
    Stats,
    /// Verify an entry, and show its key's components and its artifacts.
    Show {
        /// The key, or its first digits.
        key: String,
    },
    /// Remove an entry. Its objects stay until git collects them.
    Rm {
        /// The key, or its first digits.
        key: String,
    },
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    match &args.command {
        Command::Ls => ls(context, ui),
        Command::Stats => stats(context, ui),
        Command::Show { key } => show(context, key, ui),
        Command::Rm { key } => rm(context, key, ui),
    }
}

fn ls(context: &Context<'_>, ui: &mut Ui) -> Result<u8, CommandError> {
    let mut told = Vec::new();
    for entry in context.store.cache_entries()? {
        let commit = context.store.read_commit(&entry.commit)?;
        let subject = commit.message.lines().next().unwrap_or_default();
        ui.line(&format!("{}  {}", entry.key.short(), crate::document::path::printable(subject)));
        told.push(json!({"cache_key": entry.key, "commit": entry.commit.to_string(), "subject": subject}));
    }
    if told.is_empty() {
        ui.note("the cache is empty: git cbia run");
    }
    ui.result(json!({ "entries": told }), &[]);
    Ok(exit::DONE)
}

fn stats(context: &Context<'_>, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let mut phases: BTreeMap<&'static str, (usize, usize, u64)> = BTreeMap::new();
    let entries = store.cache_entries()?;
    let mut unreadable = 0;
    for entry in &entries {
        let Some(meta) = store.cache_meta(&entry.commit) else {
            unreadable += 1;
            continue;
        };
        let (count, artifacts, bytes) = phases.entry(meta.key_data.phase.as_str()).or_default();
        *count += 1;
        *artifacts += meta.artifacts.len();
        *bytes += meta.artifacts.iter().map(|file| file.bytes).sum::<u64>();
    }
    let (artifacts, logical) = phases.values().fold((0, 0), |(files, bytes), (_, more, size)| (files + more, bytes + size));
    let disk = store.disk_usage(&entries.iter().map(|entry| entry.commit).collect::<Vec<_>>(), &[])?;
    let (runs, refs) = (store.runs()?.len(), store.refs_under("refs/cbia/")?.len());
    let tally = store.tally()?;
    let all = tally.admitted + tally.replayed + tally.failed;
    let rate = (all > 0).then(|| tally.replayed as f64 / all as f64);
    for (phase, (count, artifacts, bytes)) in &phases {
        let artifacts = counted(*artifacts, "artifact", "artifacts");
        ui.line(&format!("{phase:<8} {}, {artifacts}, {bytes} bytes", counted(*count, "entry", "entries")));
    }
    if unreadable > 0 {
        ui.note(&format!("{} cannot be read: git cbia fsck", counted(unreadable, "entry", "entries")));
    }
    let (entries_told, artifacts_told) =
        (counted(entries.len(), "entry", "entries"), counted(artifacts, "artifact", "artifacts"));
    ui.line(&format!("all      {entries_told}, {artifacts_told}, {logical} bytes, of which {disk} on disk"));
    ui.line(&format!("{}, {}", counted(runs, "stored run", "stored runs"), counted(refs, "ref", "refs")));
    let share = rate.map_or("nothing was run yet".to_owned(), |rate| format!("{:.0} % replayed", rate * 100.0));
    ui.line(&format!("{} recorded as run: {share}", counted(all, "time", "times")));
    let by_phase: BTreeMap<_, _> = phases
        .iter()
        .map(|(phase, (count, artifacts, bytes))| (phase, json!({"entries": count, "artifacts": artifacts, "bytes": bytes})))
        .collect();
    let result = json!({
        "entries": entries.len(), "unreadable": unreadable, "phases": by_phase, "artifacts": artifacts, "bytes": logical, "disk_bytes": disk,
        "runs": runs, "refs": refs, "hit_rate": rate,
        "events": {"admitted": tally.admitted, "replayed": tally.replayed, "denied": tally.denied, "failed": tally.failed},
    });
    ui.result(result, &[]);
    Ok(exit::DONE)
}

/// The one entry whose key begins with `given`.
fn find(context: &Context<'_>, given: &str) -> Result<CacheListing, CommandError> {
    if given.len() < 4 {
        return Err(CommandError::usage("give at least four digits of the key"));
    }
    let all = context.store.cache_entries()?;
    let mut matching = all.into_iter().filter(|entry| entry.key.to_string().starts_with(&given.to_ascii_lowercase()));
    match (matching.next(), matching.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(_), Some(_)) => Err(CommandError::usage(&format!("more than one key begins with {given}"))),
        (None, _) => {
            let shown = crate::document::path::printable(given);
            let finding = Finding::error(Code::DocumentMissing, format!("no cache entry's key begins with {shown}"));
            Err(CommandError::found(finding.hint("git cbia cache ls lists them")))
        }
    }
}

fn show(context: &Context<'_>, given: &str, ui: &mut Ui) -> Result<u8, CommandError> {
    let listing = find(context, given)?;
    let entry = match context.store.cache_entry(&listing.key)? {
        Ok(Some(entry)) => entry,
        Ok(None) => return Err(CommandError::usage("the entry was removed meanwhile")),
        Err(finding) => return Err(CommandError::all(exit::DENIED, vec![finding])),
    };
    ui.line(&format!("{} verified", listing.name));
    let components = to_value(&entry.meta.key_data);
    for (name, value) in components.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        ui.line(&format!("  {name:<22} {}", crate::document::path::printable(&text)));
    }
    for file in &entry.meta.artifacts {
        ui.line(&format!("  {}  {} ({} bytes)", file.sha256.short(), file.path, file.bytes));
    }
    ui.result(json!({"commit": entry.commit.to_string(), "meta": to_value(&entry.meta)}), &[]);
    Ok(exit::DONE)
}

fn rm(context: &Context<'_>, given: &str, ui: &mut Ui) -> Result<u8, CommandError> {
    let listing = find(context, given)?;
    match context.store.cas(&listing.name, Some(listing.commit), None, Durability::Full)?.outcome {
        Cas::Done => {}
        _ => return Err(crate::store::StoreError::Moved { name: listing.name.to_string() }.into()),
    }
    ui.line(&format!("removed {}", listing.name));
    ui.result(json!({"removed": listing.key}), &[]);
    Ok(exit::DONE)
}
