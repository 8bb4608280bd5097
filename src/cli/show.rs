use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::{self, Ui};
use crate::document::finding::{Code, Finding};
use crate::document::json::to_value;
use crate::document::path::printable;
use crate::document::phase::Phase;
use crate::document::record::RecordEvent;
use crate::store::ledger::LedgerRecord;
use crate::store::object::trailers;
use crate::store::tree::{Tree, TreeLimits};
use crate::store::{Oid, Store};

/// The most of an executor's output that is read back, in bytes.
const MAX_PRINTED: u64 = 64 << 20;

/// Show a run, or one phase of the newest run.
///
/// A run is named by its state key or by one of its commits, first digits are enough; a record of the ledger shows what happened, and what
/// an executor printed.
#[derive(clap::Args)]
pub struct Args {
    /// A phase (GEN), a state key, or a commit. By default the newest run.
    what: Option<String>,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    match args.what.as_deref() {
        None => show_run(store, newest(store)?, ui),
        Some(name) if Phase::from_name(&name.to_ascii_uppercase().replace('-', "_")).is_some() => {
            let phase = Phase::from_name(&name.to_ascii_uppercase().replace('-', "_"));
            let tip = newest(store)?;
            let commit = phases(store, tip)?.into_iter().find(|(found, _)| Some(*found) == phase);
            let (_, commit) = commit.ok_or_else(|| missing(&format!("the newest run has no phase {}", printable(name))))?;
            show_phase(store, commit, ui)
        }
        Some(name) => named(store, name, ui),
    }
}

fn missing(message: &str) -> CommandError {
    CommandError::found(Finding::error(Code::DocumentMissing, message).hint("git cbia log lists what happened"))
}

/// The tip of the newest admitted run.
pub fn newest(store: &Store) -> Result<Oid, CommandError> {
    let run = store.ledger_find(10_000, |entry| {
        entry.record.run.filter(|_| matches!(entry.record.event, RecordEvent::Admitted | RecordEvent::Replayed))
    })?;
    run.and_then(|run| Oid::from_hex(run.as_bytes()).ok()).ok_or_else(|| missing("there is no admitted run yet"))
}

/// The phase commits that lead to `tip`, oldest first.
fn phases(store: &Store, tip: Oid) -> Result<Vec<(Phase, Oid)>, CommandError> {
    let mut found = Vec::new();
    let mut next = Some(tip);
    while let Some(id) = next.filter(|_| found.len() < Phase::ALL.len()) {
        let commit = store.read_commit(&id)?;
        let phase =
            trailers(&commit).into_iter().find(|(key, _)| key == "Cbia-Phase").and_then(|(_, value)| Phase::from_name(&value));
        let Some(phase) = phase else { break };
        found.push((phase, id));
        next = commit.parents.first().copied();
    }
    found.reverse();
    Ok(found)
}

fn named(store: &Store, name: &str, ui: &mut Ui) -> Result<u8, CommandError> {
    if name.len() >= 4 {
        let prefix = name.to_ascii_lowercase();
        let runs: Vec<_> = store.runs()?.into_iter().filter(|run| run.state_key.to_string().starts_with(&prefix)).collect();
        match runs.as_slice() {
            [run] => return show_run(store, run.tip, ui),
            [_, _, ..] => {
                return Err(CommandError::usage(&format!("more than one run's state key begins with {}", printable(name))));
            }
            [] => {}
        }
    }
    let id = store.resolve(name)?;
    if let Some(record) = store.ledger_record(&id)? {
        ui.line(&format!("record {id}"));
        ui.line(&format!("  {} by {}", record.record.event.as_str(), printable(&record.commit.committer)));
        for phase in &record.record.phases {
            ui.line(&format!("  {:<15} {}", phase.phase, phase.status.as_str()));
        }
        for finding in &record.record.findings {
            ui.line(&format!("  {}: {}", finding.code, printable(&finding.message)));
        }
        if let Some(run) = &record.record.run {
            ui.line(&format!("  run {run}"));
        }
        let printed = printed(store, &record)?;
        if let Some(printed) = &printed {
            ui.line("  the executor printed");
            printed.lines().for_each(|line| ui.line(&format!("    {}", ui::escape_line(line))));
        }
        ui.result(json!({"record": id.to_string(), "document": to_value(&record.record), "printed": printed}), &[]);
        return Ok(exit::DONE);
    }
    match phases(store, id)?.last() {
        Some(_) => show_run(store, id, ui),
        None => Err(missing(&format!("{} is no run, phase or record of git cbia", printable(name)))),
    }
}

/// What the executor printed on the way to a record, as far as it is kept.
fn printed(store: &Store, record: &LedgerRecord) -> Result<Option<String>, CommandError> {
    let Some(log) = record.record.executor.as_ref().and_then(|executor| executor.log.as_ref()) else { return Ok(None) };
    let Some(blob) = store.lookup(&record.commit.tree, log)? else { return Ok(None) };
    Ok(Some(String::from_utf8_lossy(&store.read_blob(&blob, MAX_PRINTED)?).into_owned()))
}

fn show_run(store: &Store, tip: Oid, ui: &mut Ui) -> Result<u8, CommandError> {
    let phases = phases(store, tip)?;
    ui.line(&format!("run {tip}"));
    let commit = store.read_commit(&tip)?;
    let facts = trailers(&commit);
    for (key, value) in facts.iter().filter(|(key, _)| key != "Cbia-Phase") {
        ui.line(&format!("  {key}: {}", printable(value)));
    }
    let mut told = Vec::new();
    for (phase, id) in &phases {
        let commit = store.read_commit(id)?;
        let subject = commit.message.lines().next().unwrap_or_default().to_owned();
        ui.line(&format!("  {} {}", id.to_hex_with_len(12), printable(&subject)));
        told.push(json!({"phase": phase, "commit": id.to_string(), "subject": subject}));
    }
    let tree = store.read_tree(&store.tree_of(&tip)?, TreeLimits::default())?;
    let files = list(&tree, ui);
    let facts: serde_json::Map<String, serde_json::Value> = facts.into_iter().map(|(k, v)| (k, v.into())).collect();
    ui.result(json!({"run": tip.to_string(), "facts": facts, "phases": told, "files": files}), &[]);
    Ok(exit::DONE)
}

fn show_phase(store: &Store, commit: Oid, ui: &mut Ui) -> Result<u8, CommandError> {
    let read = store.read_commit(&commit)?;
    ui.line(&format!("phase commit {commit}"));
    for line in read.message.lines() {
        ui.line(&format!("  {}", printable(line)));
    }
    let tree = store.read_tree(&read.tree, TreeLimits::default())?;
    let files = list(&tree, ui);
    ui.result(json!({"commit": commit.to_string(), "message": read.message, "files": files}), &[]);
    Ok(exit::DONE)
}

/// What a phase commit holds, the snapshot counted only.
fn list(tree: &Tree, ui: &mut Ui) -> Vec<serde_json::Value> {
    let (inputs, emitted): (Vec<_>, Vec<_>) =
        tree.iter().partition(|(path, _)| path.is_under(crate::gate::paths::SNAPSHOT_FOLDER));
    ui.line(&format!("  {} in its snapshot", crate::pipeline::counted(inputs.len(), "file", "files")));
    for (path, _) in &emitted {
        ui.line(&format!("  {path}"));
    }
    emitted.into_iter().map(|(path, leaf)| json!({"path": path, "blob": leaf.id.to_string()})).collect()
}
