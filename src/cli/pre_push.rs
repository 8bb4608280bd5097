use std::collections::BTreeSet;

use super::Context;
use super::error::{CommandError, exit};
use super::hook::{lines, object};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::glob::Globs;
use crate::document::path::{RepoPath, printable};
use crate::pipeline::counted;
use crate::store::durable::Durability;
use crate::store::refs::RefName;
use crate::store::{Oid, Store};
use crate::verify::{Evidence, Limits, Means, Run, Subject, Update, Verifier};

/// Before a push: verifies what is pushed, and uploads the evidence first.
///
/// Reads `<local ref> <local id> <remote ref> <remote id>` lines; where there are none, every branch that the remote was not seen to have
/// is verified. The refs that `cbia.exempt` matches are left alone.
#[derive(clap::Args)]
pub struct Args {
    /// The remote's name, or its address where it has none.
    #[arg(value_name = "REMOTE")]
    remote: String,
    /// The address that is pushed to.
    #[arg(value_name = "URL")]
    url: String,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let exempt = Globs::new(store.config_strings("cbia.exempt")).map_err(|error| {
        let finding = Finding::error(Code::PatternInvalid, format!("cbia.exempt: {error}"));
        CommandError::found(finding.at("cbia.exempt").hint("git config --get-all cbia.exempt shows the patterns; correct them"))
    })?;
    let is_exempt = |name: &str| name.parse::<RepoPath>().is_ok_and(|name| exempt.matches(&name));
    let theirs = format!("refs/remotes/{}/", args.remote);
    let tracked = store.heads(&theirs).unwrap_or_default();
    let mut updates = Vec::new();
    let lines = lines()?;
    if lines.is_empty() {
        // git says nothing where nothing is new; a program between git and us may say nothing although something is. Whatever the remote was
        // not seen to have is verified then.
        for (name, new) in store.heads("refs/heads/")? {
            let old = name.strip_prefix("refs/heads/").and_then(|branch| seen(&tracked, &format!("{theirs}{branch}")));
            if old != Some(new) {
                updates.push(Update { name: Some(name), old, new: Some(new) });
            }
        }
    }
    for line in lines {
        let mut fields = line.split(' ');
        let (Some(_), Some(new), Some(name), Some(old)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            return Err(CommandError::usage(&format!(
                "'{}' is not '<local ref> <local id> <remote ref> <remote id>'",
                printable(&line)
            )));
        };
        // What the remote has may not be here: what was last seen of it stands in.
        let old = object(old)?.map(|old| match (store.contains(&old), name.strip_prefix("refs/heads/")) {
            (false, Some(branch)) => seen(&tracked, &format!("{theirs}{branch}")).unwrap_or(old),
            _ => old,
        });
        updates.push(Update { name: Some(name.to_owned()), old, new: object(new)? });
    }
    let base = ["HEAD", "main", "master"].iter().find_map(|name| seen(&tracked, &format!("{theirs}{name}")));
    let known: Vec<Oid> = tracked.iter().map(|(_, id)| *id).collect();
    let cage = context.environment.cage();
    let means = Means { cage: &cage, trust: store.trust().map_err(CommandError::found)?, limits: Limits { runs: usize::MAX, ..Limits::default() } };
    // A run that is pushed by name is here already.
    let mut verifier = Verifier::new(store, Evidence::of(store), means);
    let (mut findings, mut left_alone) = (Vec::new(), 0);
    for update in &updates {
        if update.name.as_deref().is_some_and(is_exempt) {
            left_alone += 1;
            continue;
        }
        let subject = Subject { judged: true, base, known: known.clone(), ..Subject::default() };
        let outcome = verifier.update(update, &subject)?;
        if refuses(&outcome.findings) {
            ui.note(&format!("refused: {}", printable(update.name.as_deref().unwrap_or_default())));
        }
        ui.findings(&outcome.findings);
        findings.extend(outcome.findings);
    }
    if refuses(&findings) {
        let hint = "nothing was pushed; git cbia verify --explain OLD..NEW says more of each file";
        ui.note(&format!("git cbia: {hint}"));
        return Ok(exit::DENIED);
    }
    let runs: Vec<Run> = verifier.rests_on().cloned().collect();
    let uploaded = match upload(store, args, &runs) {
        Ok(uploaded) => uploaded,
        Err(finding) => {
            ui.findings(&[*finding]);
            return Ok(exit::DENIED);
        }
    };
    if !updates.is_empty() {
        let alone = if left_alone == 0 { String::new() } else { format!(", {left_alone} left alone") };
        let verified = updates.len() - left_alone;
        let evidence = match uploaded {
            0 => String::new(),
            count => format!(", {} uploaded first", counted(count, "ref of evidence", "refs of evidence")),
        };
        ui.note(&format!("git cbia: {} verified{alone}{evidence}", counted(verified, "ref", "refs")));
    }
    Ok(exit::DONE)
}

fn seen(tracked: &[(String, Oid)], name: &str) -> Option<Oid> {
    tracked.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
}

/// Pushes the evidence that the remote was not seen to have: the runs, what attests them, and this writer's ledger. How many refs that were.
fn upload(store: &Store, args: &Args, runs: &[Run]) -> Result<usize, Box<Finding>> {
    if runs.is_empty() {
        return Ok(0);
    }
    let failed = |why: String| {
        let finding =
            Finding::error(Code::EvidenceNotUploaded, format!("the evidence could not be pushed: {why}")).at(&args.remote);
        Box::new(finding.hint("nothing was pushed; mend what is in the way, and push again"))
    };
    let spelled = |error: &dyn std::error::Error| failed(crate::document::finding::spelled(error));
    let mut wanted: BTreeSet<(String, Oid)> = runs.iter().map(|run| (run.home(), run.tip)).collect();
    for run in runs {
        let prefix = format!("refs/cbia/attestations/{}/{}/", run.state_key, run.executor_key);
        wanted.extend(store.refs_under(&prefix).map_err(|e| spelled(&e))?.into_iter().map(|(name, id)| (name.to_string(), id)));
    }
    let ledger = store.ledger_tip().map_err(|error| spelled(&error))?;
    let ledger = ledger.map(|tip| (format!("refs/cbia/ledgers/{}", writer(store)), tip));
    // What was pushed or fetched before is remembered below refs/cbia/remotes/, as git cbia push and fetch remember it.
    let remembered = |name: &str| -> Option<RefName> {
        let rest = name.strip_prefix("refs/cbia/")?;
        format!("refs/cbia/remotes/{}/{rest}", args.remote).parse().ok()
    };
    let is_there = |(name, tip): &(String, Oid)| {
        let target = remembered(name).and_then(|name| store.ref_target(&name).ok().flatten());
        target == Some(*tip)
    };
    let wanted: Vec<(String, Oid)> = wanted.into_iter().filter(|pair| !is_there(pair)).collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    let needed: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let pushed: Vec<(String, Oid)> = wanted.iter().cloned().chain(ledger.filter(|pair| !is_there(pair))).collect();
    let refused = store.push_refs(&args.url, &pushed).map_err(|error| spelled(&error))?;
    if let Some((name, why)) = refused.iter().find(|(name, _)| needed.contains(name.as_str())) {
        return Err(failed(format!("{name}: {why}")));
    }
    let accepted: Vec<&(String, Oid)> = pushed.iter().filter(|(name, _)| !refused.iter().any(|(bad, _)| bad == name)).collect();
    for (name, tip) in &accepted {
        let Some(name) = remembered(name) else { continue };
        // A memory that cannot be kept costs one push more.
        if let Ok(before) = store.ref_target(&name) {
            drop(store.cas(&name, before, Some(*tip), Durability::Relaxed));
        }
    }
    Ok(accepted.len())
}

/// The name of this writer's ledger on a remote: `cbia.writer`, by default a slug of `user.email`.
fn writer(store: &Store) -> String {
    let name = store.config_string("cbia.writer").or_else(|| store.config_string("user.email"));
    slug(&name.unwrap_or_else(|| store.signature(crate::store::open::Role::Committer).email))
}

/// A name as one component of a ref.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.to_lowercase().chars() {
        let plain = c.is_ascii_alphanumeric();
        if plain || !slug.ends_with('-') {
            slug.push(if plain { c } else { '-' });
        }
    }
    let slug = slug.trim_matches('-');
    if slug.is_empty() { "unknown".to_owned() } else { slug.chars().take(100).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_one_component_of_a_ref() {
        for (text, wanted) in
            [("Ada.L@example.org", "ada-l-example-org"), ("--", "unknown"), ("a//b..lock", "a-b-lock"), ("é", "unknown")]
        {
            assert_eq!(slug(text), wanted, "{text}");
        }
    }
}
