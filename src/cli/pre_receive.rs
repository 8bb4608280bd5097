use std::collections::BTreeMap;

use super::Context;
use super::error::CommandError;
use super::hook::{asked, object, tell, unseen};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::path::printable;
use crate::store::{Oid, Store};
use crate::verify::update::Outcome;
use crate::verify::{Evidence, Limits, Means, Namespaces, Subject, Update, Verifier};

/// Where a push arrives: refuses it unless everything it brings is verified.
///
/// Reads `<old> <new> <ref>` lines and the objects in git's quarantine, and writes nothing. One refusal refuses the whole push.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(context: &Context<'_>, _args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let limits = Limits::of(store).map_err(CommandError::found)?;
    let spaces = Namespaces::of(store).map_err(CommandError::found)?;
    let (asked, mut updates) = (asked()?, Vec::new());
    for line in &asked.lines {
        let mut fields = line.splitn(3, ' ');
        let (Some(old), Some(new), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(CommandError::usage(&format!("'{}' is not '<old> <new> <ref>'", printable(line))));
        };
        updates.push(Update { name: Some(name.to_owned()), old: object(old)?, new: object(new)? });
    }
    if updates.len() > limits.refs {
        let finding = Finding::error(Code::PushTooLarge, format!("more than {} refs are pushed at once", limits.refs));
        let findings = vec![finding.hint("push fewer refs at a time")];
        ui.findings(&findings);
        return Ok(tell(updates.iter().map(unseen).collect(), findings, ui));
    }
    let pushed = updates.iter().filter_map(|update| Some((update.name.as_deref()?, update.new?)));
    let cage = context.environment.cage();
    let means = Means::of(store, &cage, limits).map_err(CommandError::found)?;
    let mut verifier = Verifier::new(store, Evidence::with_pushed(store, pushed), means);
    let base = main_branch(store)?;
    let pusher = context.environment.pusher();
    let mut known: Option<Vec<Oid>> = None;
    let (mut told, mut findings) = (Vec::new(), Vec::new());
    if updates.len() > 1 {
        verifier.walk(&updates, &store.heads("refs/heads/")?.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
    }
    for (line, update) in asked.lines.iter().zip(&updates) {
        // Only what is new needs to be told apart from everything that is here.
        if update.old.is_none() && known.is_none() {
            known = Some(store.heads("refs/heads/")?.into_iter().map(|(_, id)| id).collect());
        }
        let known = if update.old.is_none() { known.clone().unwrap_or_default() } else { Vec::new() };
        let namespaces = spaces.counting(update.name.as_deref());
        let subject = Subject { judged: true, base, known, pusher: pusher.clone(), namespaces, ..Subject::default() };
        let outcome = match asked.misnamed(line, update) {
            Some(finding) => Outcome::refused(unseen(update), finding),
            None => verifier.update(update, &subject)?,
        };
        let name = update.name.as_deref().unwrap_or_default();
        if refuses(&outcome.findings) {
            ui.note(&format!("refused: {}", printable(name)));
        }
        ui.findings(&outcome.findings);
        findings.extend(outcome.findings);
        told.push(outcome.document);
    }
    if !refuses(&findings) {
        return Ok(tell(told, findings, ui));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    findings.iter().for_each(|finding| *counts.entry(finding.code.as_str()).or_default() += 1);
    let codes: Vec<&str> = counts.into_keys().collect();
    ui.note(&format!("git cbia: nothing was accepted ({})", codes.join(", ")));
    Ok(tell(told, findings, ui))
}

/// The branch whose commits stand in for what a new ref was: that of `HEAD`; where it points at none, the one that most likely is the main branch.
fn main_branch(store: &Store) -> Result<Option<Oid>, CommandError> {
    if let Some(head) = store.head().ok().flatten() {
        return Ok(Some(head));
    }
    let heads = store.heads("refs/heads/")?;
    let named = |name: &&str| heads.iter().find(|(head, _)| head.strip_prefix("refs/heads/") == Some(name));
    Ok(["main", "master"].iter().find_map(named).or(heads.first()).map(|(_, id)| *id))
}
