use super::Context;
use super::error::{CommandError, exit};
use super::format::Format;
use super::ui::Ui;
use crate::document::finding::{Finding, refuses};
use crate::document::machine::{UpdateDocument, VerifyDocument};
use crate::document::path::printable;
use crate::pipeline::{Rerun, rerun};
use crate::store::attest::Rederive;
use crate::store::{Oid, Store};
use crate::verify::{Evidence, Limits, Means, Namespaces, Run, Subject, TreeVerdict, Update, Verifier};

/// Verify that generated files came out of admitted runs.
///
/// Reads commits, and the runs that are known here, fetched ones included; writes nothing. Finds the run of a commit by what the commit
/// holds, derives it again (all but what the generator made), and compares every generated file. With a range, the change is judged as a
/// push of it would be.
#[derive(clap::Args)]
pub struct Args {
    /// A commit, or a range of commits; HEAD by default.
    #[arg(value_name = "REV|OLD..NEW", conflicts_with = "run")]
    what: Option<String>,
    /// Verify a stored run by itself: its ref, its state key, its last phase commit, or the beginning of one of the two.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Verify every new commit of a range, not only the last one.
    #[arg(long, conflicts_with = "run")]
    each: bool,
    /// Say of every generated file which run it rests on.
    #[arg(long, conflicts_with = "run")]
    explain: bool,
    /// Execute the generator again, in the snapshot of each run that something rests on, and compare what it makes. Without effect on a refusal.
    #[arg(long)]
    rerun: bool,
    /// Print the findings in the format of another tool, and nothing else.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<Format>,
}

/// The shortest beginning of a key or commit that names a run, in characters.
const MIN_PREFIX: usize = 7;

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let cage = context.environment.cage();
    let mut means = Means::of(store, &cage, Limits::own()).map_err(CommandError::found)?;
    if args.explain || args.format.is_some() {
        // What is said of every file is known by deriving what made it.
        means.rederive = Rederive::Always;
    }
    let mut verifier = Verifier::new(store, Evidence::of(store), means);
    if let Some(name) = &args.run {
        let run = find_run(&Evidence::of(store).all(usize::MAX)?, name)?;
        // A run belongs to no branch: the list of signers is that of the commit where one works.
        verifier.trust_by(store.head()?)?;
        let mut findings = verifier.run(&run)?;
        super::partial::explain(store, &mut findings);
        if args.rerun && findings.is_empty() {
            findings = again(context, std::slice::from_ref(&run))?;
        }
        let document = UpdateDocument {
            r#ref: Some(run.name.clone()),
            old: None,
            new: Some(run.tip.to_string()),
            state_key: Some(run.state_key),
            run: Some(run.tip.to_string()),
        };
        return Ok(tell(document, findings, 0, args.format, ui));
    }
    let commit = |rev: &str| store.resolve(if rev.is_empty() { "HEAD" } else { rev });
    let (update, judged) = match args.what.as_deref().unwrap_or("HEAD") {
        what if what.contains("...") => {
            return Err(CommandError::usage("a range is OLD..NEW: what is verified is a change from one commit to another"));
        }
        what => match what.split_once("..") {
            Some((old, new)) => (Update { name: None, old: Some(commit(old)?), new: Some(commit(new)?) }, true),
            None if args.each => return Err(CommandError::usage("--each goes with a range: OLD..NEW")),
            None => (Update { name: None, old: None, new: Some(commit(what)?) }, false),
        },
    };
    let anchor = update.new.filter(|_| !judged).map(|commit| anchor(store, commit)).transpose()?.flatten();
    let namespaces = Namespaces::of(store).map_err(CommandError::found)?.counting(None);
    let subject = Subject { each: args.each, judged, anchor, namespaces, ..Subject::default() };
    let mut outcome = verifier.update(&update, &subject)?;
    super::partial::explain(store, &mut outcome.findings);
    if !refuses(&outcome.findings) && args.format.is_none() && outcome.verdict.covered.is_empty() && outcome.verdict.run.is_none()
    {
        ui.note(match (outcome.verdict.state_key, judged) {
            (Some(_), _) => "no generated file is in the commit, so there was none to verify",
            (None, false) => {
                "nothing is generated here (control/pipeline.json declares no artifact), so there was nothing to verify"
            }
            (None, true) => "nothing is generated here, or nothing that decides about it differs, so there was nothing to verify",
        });
    }
    if outcome.verdict.attested && args.format.is_none() {
        ui.note("the run was not derived again: enough signers attested it, and cbia.rederive is unattested");
    }
    if args.rerun && !refuses(&outcome.findings) {
        let runs: Vec<Run> = verifier.rests_on().cloned().collect();
        outcome.findings.extend(again(context, &runs)?);
    }
    if args.explain && args.format.is_none() {
        explain(&outcome.verdict, ui);
    }
    Ok(tell(outcome.document, outcome.findings, outcome.verdict.covered.len(), args.format, ui))
}

/// What differs where the generator of these runs is executed again.
fn again(context: &Context<'_>, runs: &[Run]) -> Result<Vec<Finding>, CommandError> {
    let (cage, host) = (context.environment.cage(), context.environment.host());
    let mut findings = Vec::new();
    for run in runs {
        let found = rerun(context.store, &Rerun { run: run.tip, cage: &cage, host: &host })?;
        // The next step is the same for all of them, where none is named.
        let hint = "find what the generator depends on beside its inputs, and pin it";
        findings.extend(found.into_iter().map(|f| Finding { hint: f.hint.or_else(|| Some(hint.to_owned())), ..f }));
    }
    Ok(findings)
}

/// Prints what a verification came to, and gives the exit code.
fn tell(document: UpdateDocument, findings: Vec<Finding>, artifacts: usize, format: Option<Format>, ui: &mut Ui) -> u8 {
    let refused = refuses(&findings);
    match format {
        Some(format) => {
            let code = if refused { exit::DENIED } else { exit::DONE };
            ui.line(&format.render(&findings, artifacts, "verify", code));
        }
        None => {
            ui.findings(&findings);
            let short = |text: &Option<String>| text.as_ref().map(|id| id[..12.min(id.len())].to_owned()).unwrap_or_default();
            let state = document.state_key.map(|key| format!(", state {}", key.short())).unwrap_or_default();
            let run = document.run.as_ref().map(|_| format!(", run {}", short(&document.run))).unwrap_or_default();
            let what = match &document.old {
                Some(_) => format!("{}..{}", short(&document.old), short(&document.new)),
                None => short(&document.new),
            };
            ui.line(&format!("{} {what}{state}{run}", if refused { "refused" } else { "verified" }));
        }
    }
    ui.document(&VerifyDocument::new(ui.command(), vec![document], findings));
    if refused { exit::DENIED } else { exit::DONE }
}

/// How every generated file is covered.
fn explain(verdict: &TreeVerdict, ui: &mut Ui) {
    for covered in &verdict.covered {
        let how =
            if covered.own { "the run of this state" } else { "a run of another state, under the same authorities and policies" };
        ui.line(&format!("{}: {}, {how}", covered.path, covered.run.to_hex_with_len(12)));
    }
}

/// Whose list of signers counts for a commit that is verified by itself, for its own does not: what the remote's main branch was last seen
/// at, if the commit is no part of it yet; otherwise its first parent.
fn anchor(store: &Store, commit: Oid) -> Result<Option<Oid>, CommandError> {
    let tracked = store.heads("refs/remotes/origin/")?;
    let seen = |name: &&str| tracked.iter().find(|(known, _)| known == &format!("refs/remotes/origin/{name}"));
    let main = ["HEAD", "main", "master"].iter().find_map(seen).map(|(_, id)| *id);
    match main {
        Some(main) if store.fork(main, commit) != Some(commit) => Ok(Some(main)),
        _ => Ok(store.read_commit(&commit)?.parents.first().copied()),
    }
}

/// The run that a person names.
fn find_run(runs: &[Run], name: &str) -> Result<Run, CommandError> {
    let names = |run: &&Run| {
        run.name == name
            || run.name.strip_prefix("refs/cbia/runs/") == Some(name)
            || name.len() >= MIN_PREFIX && (run.tip.to_string().starts_with(name) || run.state_key.to_string().starts_with(name))
    };
    let mut found = runs.iter().filter(names);
    let shown = printable(name);
    match (found.next(), found.next()) {
        (Some(run), None) => Ok(run.clone()),
        (Some(_), Some(_)) => Err(CommandError::usage(&format!("'{shown}' names more than one run: give its ref"))),
        (None, _) => Err(CommandError::usage(&format!(
            "'{shown}' names no run that is known here: git for-each-ref refs/cbia/runs lists them"
        ))),
    }
}
