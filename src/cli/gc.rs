use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding};
use crate::document::path::printable;
use crate::pipeline::counted;
use crate::pipeline::inputs::{self, ExecutorSource, From};
use crate::store::attest::{Rederive, Trust};
use crate::store::gc::{Keep, Rested};
use crate::store::open::Role;
use crate::store::share::RemoteKeep;
use crate::verify::{Evidence, Limits, Means, Verifier};

/// What is young enough where nothing is said.
const DEFAULT_AGE: i64 = 90 * 86_400;

/// Remove stored runs and cache entries that are old and that nothing rests on.
///
/// What the newest commit of a branch, tag or work tree rests on stays, and so does what was promoted or attested, and the ledger with
/// everything in it. A thing's age is that of the newest record that names it. Without options, what is older than 90 days goes.
/// Only refs are removed: git gives the objects back with its own gc, when they are old enough.
#[derive(clap::Args)]
pub struct Args {
    /// Keep the newest N runs.
    #[arg(long, value_name = "N")]
    keep_runs: Option<usize>,
    /// Keep what was recorded within this time: 90d, 12w, 36h, 10m or 0s. With --keep-runs, what either of the two keeps stays.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<i64>,
    /// Remove the oldest until the rest, beside what the ledger holds anyway, takes at most this: bytes, which may end in k, m or g.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    max_size: Option<u64>,
    /// Make room on a remote instead, of which at most cbia.maxRemoteRefs refs, or the runs of --keep-runs, are kept. By default the remote that is
    /// pushed to. Ages are those of the ledgers that are known here: fetch first.
    #[arg(long, value_name = "REMOTE", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["older_than", "max_size"])]
    remote: Option<String>,
    /// Say what would be removed, and remove nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// A time in seconds.
fn duration(text: &str) -> Result<i64, String> {
    let wrong = || "it is a number with a unit: s, m, h, d or w".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(i64::from(number) * seconds)
}

/// A size in bytes.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "it is a number of bytes, which may end in k, m or g".to_owned();
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(number) if lower.ends_with('k') => (number, 1 << 10),
        Some(number) if lower.ends_with('m') => (number, 1 << 20),
        Some(number) => (number, 1 << 30),
        None => (lower.as_str(), 1),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    if let Some(remote) = &args.remote {
        return evict(context, args, Some(remote.as_str()).filter(|name| !name.is_empty()), ui);
    }
    let nothing_said = args.keep_runs.is_none() && args.older_than.is_none() && args.max_size.is_none();
    // The time that a record of now would have.
    let now = store.signature(Role::Committer).seconds;
    let since = args.older_than.or(nothing_said.then_some(DEFAULT_AGE)).map(|age| now.saturating_sub(age));
    let keep = Keep { runs: args.keep_runs, since, bytes: args.max_size };
    let mut findings = Vec::new();
    let rested = rested_on(context, &mut findings)?;
    let plan = store.plan_gc(keep, &rested)?;
    let (gone, spared) = match args.dry_run {
        true => (plan.going.clone(), Vec::new()),
        false => {
            let collected = store.collect(&plan)?;
            (collected.gone, collected.spared)
        }
    };
    ui.findings(&findings);
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for one in &gone {
        ui.line(&format!("{verb} {}", one.name));
    }
    let refs = counted(gone.len(), "ref", "refs");
    ui.line(&format!(
        "{verb} {refs}, of which git can give back {} bytes; {} stay, {} of them because something rests on them",
        plan.bytes,
        counted(plan.runs_kept, "run", "runs"),
        plan.runs_rested_on
    ));
    if !spared.is_empty() {
        ui.note(&format!("{} stayed, because somebody used them meanwhile", counted(spared.len(), "ref", "refs")));
    }
    let told = |one: &crate::store::gc::Going| json!({"ref": one.name.as_str(), "target": one.target.to_string(), "recorded": one.recorded});
    let result = json!({
        "dry_run": args.dry_run,
        "removed": gone.iter().map(told).collect::<Vec<_>>(),
        "spared": spared.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "bytes": plan.bytes,
        "runs_kept": plan.runs_kept,
        "runs_rested_on": plan.runs_rested_on,
    });
    ui.result(result, &findings);
    Ok(exit::DONE)
}

/// Makes room on a remote.
fn evict(context: &Context<'_>, args: &Args, named: Option<&str>, ui: &mut Ui) -> Result<u8, CommandError> {
    const SETTING: &str = "cbia.maxRemoteRefs";
    let store = context.store;
    let sharing = store.sharing()?;
    let remote = store.remote_to_push(&sharing, named)?;
    let refs = match store.config_string(SETTING) {
        None => None,
        Some(text) => match text.parse::<usize>() {
            Ok(number) if number > 0 => Some(number),
            _ => {
                let finding = Finding::error(Code::SettingInvalid, format!("{SETTING} is '{}'", printable(&text)));
                return Err(CommandError::found(finding.at(SETTING).hint("it must be a number of refs, from 1 on")));
            }
        },
    };
    let keep = RemoteKeep { runs: args.keep_runs, refs };
    if keep.runs.is_none() && keep.refs.is_none() {
        return Err(CommandError::usage(&format!("say how much is kept: --keep-runs, or git config {SETTING}")));
    }
    let mut findings = Vec::new();
    let rested = rested_on(context, &mut findings)?;
    let evicted = store.evict(&sharing, &remote, keep, &rested, args.dry_run)?;
    ui.findings(&findings);
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for (name, _) in &evicted.gone {
        ui.line(&format!("{verb} {} from {}", printable(name), evicted.remote));
    }
    for (name, why) in &evicted.kept {
        ui.note(&format!("{} stayed: {}", printable(name), printable(why)));
    }
    ui.line(&format!("{verb} {} of {} refs from {}", evicted.gone.len(), evicted.refs, evicted.remote));
    let result = json!({
        "dry_run": args.dry_run,
        "remote": evicted.remote,
        "refs": evicted.refs,
        "removed": evicted.gone.iter().map(|(name, id)| json!({"ref": name, "target": id.to_string()})).collect::<Vec<_>>(),
        "spared": evicted.kept.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    });
    ui.result(result, &findings);
    Ok(exit::DONE)
}

/// What the newest commit of every branch, tag and work tree rests on: every run of its state, and the runs that its generated files came
/// from, as far as it can be verified.
fn rested_on(context: &Context<'_>, findings: &mut Vec<Finding>) -> Result<Rested, CommandError> {
    let store = context.store;
    let cage = context.environment.cage();
    let means = Means { cage: &cage, trust: Trust::Content, rederive: Rederive::Always, limits: Limits::own(), own_work: true };
    let mut verifier = Verifier::new(store, Evidence::of(store), means);
    let mut rested = Rested::default();
    let mut seen = std::collections::BTreeSet::new();
    for tip in store.tips_of_others()? {
        let Ok(tree) = store.tree_of(&tip) else { continue };
        if !seen.insert(tree) {
            continue;
        }
        rested.states.insert(inputs::take(store, From::Tree(tree), &ExecutorSource::Repository)?.state_key());
        match verifier.tree(tree, None, false) {
            Ok(verdict) => {
                rested.states.extend(verdict.state_key);
                rested.runs.extend(verdict.rests_on.iter().chain(&verdict.run).map(|run| run.tip));
                rested.runs.extend(verdict.covered.iter().map(|covered| covered.run));
            }
            Err(error) => {
                let message = format!(
                    "what {} rests on is known by its state alone: {}",
                    tip.to_hex_with_len(12),
                    crate::document::finding::spelled(&error)
                );
                findings.push(Finding::warning(Code::TreeUnreadable, message).at(tip.to_string()));
            }
        }
    }
    // What lies in the work tree may be about to be committed.
    if store.work_dir().is_some() {
        rested.states.insert(inputs::take(store, From::WorkTree, &context.environment.executor()?)?.state_key());
    }
    Ok(rested)
}
