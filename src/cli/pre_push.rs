use std::collections::BTreeMap;

use super::Context;
use super::error::{CommandError, exit};
use super::hook::{asked, object, tell, unseen};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, refuses, spelled};
use crate::document::glob::Globs;
use crate::document::path::{RepoPath, printable};
use crate::pipeline::counted;
use crate::store::share::{PushWhen, What};
use crate::store::{Oid, Store};
use crate::verify::update::Outcome;
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
    let asked = asked()?;
    if asked.lines.is_empty() {
        // git says nothing where nothing is new; a program between git and us may say nothing although something is. Whatever the remote was
        // not seen to have is verified then.
        for (name, new) in store.heads("refs/heads/")? {
            let old = name.strip_prefix("refs/heads/").and_then(|branch| seen(&tracked, &format!("{theirs}{branch}")));
            if old != Some(new) {
                updates.push(Update { name: Some(name), old, new: Some(new) });
            }
        }
    }
    for line in &asked.lines {
        let mut fields = line.split(' ');
        let (Some(_), Some(new), Some(name), Some(old)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            return Err(CommandError::usage(&format!(
                "'{}' is not '<local ref> <local id> <remote ref> <remote id>'",
                printable(line)
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
    let means = Means { own_work: true, ..Means::of(store, &cage, Limits::own()).map_err(CommandError::found)? };
    // A run that is pushed by name is here already.
    let mut verifier = Verifier::new(store, Evidence::of(store), means);
    let (mut told, mut findings, mut left_alone) = (Vec::new(), Vec::new(), 0);
    if !updates.iter().any(|update| update.name.as_deref().is_some_and(is_exempt)) {
        verifier.walk(&updates, &known);
    }
    for (number, update) in updates.iter().enumerate() {
        if update.name.as_deref().is_some_and(is_exempt) {
            left_alone += 1;
            told.push(unseen(update));
            continue;
        }
        let subject = Subject { judged: true, base, known: known.clone(), ..Subject::default() };
        let mut outcome = match asked.lines.get(number).and_then(|line| asked.misnamed(line, update)) {
            Some(finding) => Outcome::refused(unseen(update), finding),
            None => verifier.update(update, &subject)?,
        };
        super::partial::explain(store, &mut outcome.findings);
        if refuses(&outcome.findings) {
            ui.note(&format!("refused: {}", printable(update.name.as_deref().unwrap_or_default())));
        }
        ui.findings(&outcome.findings);
        findings.extend(outcome.findings);
        told.push(outcome.document);
    }
    if refuses(&findings) {
        let hint = "nothing was pushed; git cbia verify --explain OLD..NEW says more of each file";
        ui.note(&format!("git cbia: {hint}"));
        return Ok(tell(told, findings, ui));
    }
    let runs: Vec<Run> = verifier.rests_on().cloned().collect();
    let uploaded = match upload(store, args, &Evidence::of(store), &runs) {
        Ok(uploaded) => uploaded,
        Err(error) => {
            ui.findings(&error.findings);
            findings.extend(error.findings);
            tell(told, findings, ui);
            return Ok(error.code);
        }
    };
    if !updates.is_empty() {
        let alone = if left_alone == 0 { String::new() } else { format!(", {left_alone} left alone") };
        let verified = updates.len() - left_alone;
        let evidence = match uploaded {
            Uploaded::There(0) => String::new(),
            Uploaded::Apart(count, namespace) => format!(
                ", {} uploaded first, below {namespace}, which counts where the server's cbia.evidenceNamespace says so",
                counted(count, "ref of evidence", "refs of evidence")
            ),
            Uploaded::There(count) => format!(", {} uploaded first", counted(count, "ref of evidence", "refs of evidence")),
            Uploaded::Left => ", the evidence not uploaded: cbia.push is never".to_owned(),
        };
        ui.note(&format!("git cbia: {} verified{alone}{evidence}", counted(verified, "ref", "refs")));
    }
    Ok(tell(told, findings, ui))
}

fn seen(tracked: &[(String, Oid)], name: &str) -> Option<Oid> {
    tracked.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
}

/// What became of the evidence.
enum Uploaded {
    /// The remote has it, and so many refs of it are new there.
    There(usize),
    /// The same below a namespace, which few read.
    Apart(usize, String),
    /// `cbia.push` is `never`.
    Left,
}

/// Pushes the evidence that the remote was not seen to have: the runs, what attests them, and this writer's ledger.
fn upload(store: &Store, args: &Args, evidence: &Evidence<'_>, runs: &[Run]) -> Result<Uploaded, CommandError> {
    if runs.is_empty() {
        return Ok(Uploaded::There(0));
    }
    let sharing = store.sharing()?;
    if sharing.push == PushWhen::Never {
        return Ok(Uploaded::Left);
    }
    let remote = store.remote("the remote", &args.remote)?;
    let mut refs = BTreeMap::new();
    for run in runs {
        let keys = format!("{}/{}", run.state_key, run.executor_key);
        refs.insert(format!("runs/{keys}"), run.tip);
        for (name, tag) in evidence.attestations(&run.state_key, &run.executor_key)? {
            let signer = name.as_str().rsplit('/').next().unwrap_or_default();
            let rest = format!("attestations/{keys}/{signer}");
            // What is none would be refused there, and the branch with it.
            if !refs.contains_key(&rest)
                && !store.was_seen_at(&remote, &sharing, &rest, tag)?
                && store.check_attestation(name.as_str(), tag, &run.state_key, &run.executor_key).is_ok()
            {
                refs.insert(rest, tag);
            }
        }
    }
    let failed = |why: String, hint: Option<String>| {
        let finding = Finding::error(Code::EvidenceNotUploaded, format!("the evidence could not be pushed: {why}"));
        let hint = hint.map_or("nothing was pushed; mend what is in the way, and push again".to_owned(), |hint| {
            format!("nothing was pushed; {hint}")
        });
        CommandError::all(exit::DENIED, vec![finding.at(&args.remote).hint(hint)])
    };
    let pushed = store.push_shared(&sharing, &remote, What::These(&refs)).map_err(|error| failed(spelled(&error), None))?;
    match pushed.findings.iter().find(|finding| refuses(std::slice::from_ref(*finding))) {
        // It says which two there are, and what to do about them.
        Some(conflict) => Err(failed(conflict.message.clone(), conflict.hint.clone())),
        None => {
            let count = pushed.runs + pushed.attestations + usize::from(pushed.ledger.is_some());
            Ok(sharing.namespace().map_or(Uploaded::There(count), |namespace| Uploaded::Apart(count, namespace)))
        }
    }
}
