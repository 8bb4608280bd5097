//! A branch or tag that moves: what it brings is verified, and the policy that stood before it judges it.

use std::collections::HashMap;

use super::limits::not_walked;
use super::trust::{all, unattestable};
use super::{Run, TreeVerdict, Verifier, VerifyError, cut, unique, unreadable};
use crate::document::SCHEMA_VERSION;
use crate::document::finding::{Code, Finding, Severity, refuses, spelled};
use crate::document::machine::UpdateDocument;
use crate::document::path::{RepoPath, printable};
use crate::document::push_input::{Attestation, PushInput, PushedUpdate, Pusher, UpdateKind};
use crate::gate::paths::{EXECUTOR_CONFIG_PATH, is_policy_test};
use crate::gate::signers::{MAINTAINERS, RUNNERS};
use crate::policy::{Bundle, DEFAULT_BUNDLE, Decision, PUSH_FOLDER, PUSH_QUERY, PolicyFile, Question, evaluate};
use crate::store::commits::HistoryError;
use crate::store::compare::{Difference, Everything, Interest};
use crate::store::tree::TreeLimits;
use crate::store::{Oid, Store};

/// The largest policy file that is read, in bytes.
const MAX_POLICY: u64 = 1 << 20;

/// From how many refs on their histories are looked at together.
const MANY: usize = 8;

/// One update of a ref, as a push or a person names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// The ref's full name; none where commits are verified without one.
    pub name: Option<String>,
    /// What it was: an object that is here.
    pub old: Option<Oid>,
    /// What it becomes; `None` deletes it.
    pub new: Option<Oid>,
}

/// How an update is verified.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Every new commit, not only the last one.
    pub each: bool,
    /// Whether it is judged as an update: by the policy before it, and by the whole history that it brings. Otherwise only what it holds
    /// is looked at.
    pub judged: bool,
    /// What stands in for the commit before, for a ref that is new: the repository's main branch.
    pub base: Option<Oid>,
    /// Whose list of signers counts where there is neither a commit before nor one that stands in for it.
    pub anchor: Option<Oid>,
    /// Commits that are known to be here, beside those two.
    pub known: Vec<Oid>,
    /// Who pushes.
    pub pusher: Option<Pusher>,
    /// What the refs of those namespaces begin with whose evidence counts.
    pub namespaces: Vec<String>,
}

/// What an update comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was verified.
    pub document: UpdateDocument,
    /// What is wrong, and warnings.
    pub findings: Vec<Finding>,
    /// What its last commit's tree comes to.
    pub verdict: TreeVerdict,
}

impl Outcome {
    /// That of an update that is refused before anything of it is looked at.
    pub fn refused(document: UpdateDocument, finding: Finding) -> Self {
        Self { document, findings: vec![finding], verdict: TreeVerdict::default() }
    }
}

/// The commits that an update is judged by.
struct Ends {
    /// What the ref was.
    old: Option<Oid>,
    /// Whose policy judges.
    judge: Option<Oid>,
    new: Option<Oid>,
    /// Whose declaration counts beside the new one's, and whether it vouches.
    before: Option<(Oid, bool)>,
    /// Whether the new one has no history in common with that.
    unrelated: bool,
}

impl Verifier<'_> {
    /// What is wrong with a stored run by itself: it is derived again from its own snapshot. Nothing if it counts.
    pub fn run(&mut self, run: &Run) -> Result<Vec<Finding>, VerifyError> {
        Ok(match &*self.derive(run)? {
            Ok(_) => Vec::new(),
            Err(finding) => all(finding, &self.doubts_of(run)),
        })
    }

    /// Verifies one update.
    pub fn update(&mut self, update: &Update, subject: &Subject) -> Result<Outcome, VerifyError> {
        let hex = |id: Option<Oid>| id.map(|id| id.to_string());
        let document =
            UpdateDocument { r#ref: update.name.clone(), old: hex(update.old), new: hex(update.new), state_key: None, run: None };
        let findings = self.guarded(update)?;
        let mut outcome = Outcome { document, findings, verdict: TreeVerdict::default() };
        if !outcome.findings.is_empty() || update.name.as_deref().is_some_and(|name| name.starts_with("refs/cbia/")) {
            return Ok(outcome);
        }
        // An old object that is not here cannot vouch for anything, and its policy cannot be read: what stands in for it does.
        let old = update.old.and_then(|id| self.store.peel(id).ok().flatten());
        let new = match update.new {
            None => None,
            Some(id) => match self.store.peel(id) {
                Ok(Some(commit)) => Some(commit),
                // A tag of a tree or a blob is no branch that anybody works on.
                Ok(None) => return Ok(outcome),
                Err(error) => {
                    outcome.findings.push(unreadable("what is to be verified cannot be read", &error));
                    return Ok(outcome);
                }
            },
        };
        let (before, unrelated) = self.before(old, subject.base, new);
        let ends = Ends { old, judge: old.or(subject.base), new, before, unrelated };
        self.count(&subject.namespaces);
        self.trust_by(ends.judge.or(subject.anchor))?;
        let mut findings = match new {
            Some(new) => self.brought(new, &ends, subject, &mut outcome)?,
            None => Vec::new(),
        };
        if subject.judged {
            findings = self.judged(update, &ends, subject, findings, &outcome.verdict)?;
        }
        outcome.findings = cut(unique(findings));
        outcome.document.state_key = outcome.verdict.state_key;
        outcome.document.run = outcome.verdict.run.as_ref().map(|run| run.tip.to_string());
        Ok(outcome)
    }

    /// The commit whose declaration counts beside the new one's, and whether it vouches for what it has in common with that: the tip that the
    /// ref had. A ref that is new has none: then it is the main branch's tip, or where it forked from it, for what main declared later
    /// does not bind it. Such a commit is no tip that was ever verified, and vouches for nothing. Beside it, whether the two have no history in
    /// common.
    fn before(&mut self, old: Option<Oid>, base: Option<Oid>, new: Option<Oid>) -> (Option<(Oid, bool)>, bool) {
        let (None, Some(base), Some(new)) = (old, base, new) else { return (old.map(|old| (old, true)), false) };
        match self.fork(base, new) {
            Some(fork) if fork == base => (Some((base, true)), false),
            Some(fork) if fork == new => (None, false),
            Some(fork) => (Some((fork, false)), false),
            None => (Some((base, true)), true),
        }
    }

    /// Where two histories part. The first few are walked each, and then everything before `base` is kept: a push may bring many refs.
    fn fork(&mut self, base: Oid, new: Oid) -> Option<Oid> {
        self.forks += 1;
        if self.forks < MANY {
            return self.store.fork(base, new);
        }
        let (store, limit) = (self.store, self.means.limits.commits);
        match self.pasts.entry(base).or_insert_with(|| store.past(base, limit)) {
            Some(past) => past.fork(store, new),
            None => store.fork(base, new),
        }
    }

    /// Walks the history that several updates bring, once for all of them: none of it is walked again. Where that does not go well, it is
    /// walked for each, so that what is wrong is told of the right one.
    pub fn walk(&mut self, updates: &[Update], known: &[Oid]) {
        let ordinary = updates.iter().filter(|update| update.name.as_deref().is_none_or(|name| !name.starts_with("refs/cbia/")));
        let moves: Vec<(Option<Oid>, Oid)> = ordinary.filter_map(|update| Some((update.old, update.new?))).collect();
        if moves.len() < MANY {
            return;
        }
        let peel = |id: Oid| self.store.peel(id).ok().flatten();
        let tips: Vec<Oid> = moves.iter().filter_map(|(_, new)| peel(*new)).collect();
        let known: Vec<Oid> = moves.iter().filter_map(|(old, _)| peel((*old)?)).chain(known.iter().copied()).collect();
        if let Ok(found) = self.store.new_commits_of(&tips, &known, self.budgets.commits) {
            self.budgets.commits -= found.len();
            self.walked.extend(tips);
        }
    }

    /// What the commits bring.
    fn brought(&mut self, new: Oid, ends: &Ends, subject: &Subject, outcome: &mut Outcome) -> Result<Vec<Finding>, VerifyError> {
        let mut commits = vec![new];
        if subject.each || subject.judged && !self.walked.contains(&new) {
            let elsewhere = || subject.base.into_iter().chain(subject.known.iter().copied()).collect();
            let known: Vec<Oid> = ends.old.map_or_else(elsewhere, |old| vec![old]);
            match self.store.new_commits(new, &known, self.budgets.commits) {
                Ok(found) => {
                    self.budgets.commits -= found.len();
                    if subject.each {
                        commits = found.into_iter().rev().collect();
                        // A tip that is known already is still what the ref will be.
                        if commits.last() != Some(&new) {
                            commits.push(new);
                        }
                    }
                }
                Err(error) => return Ok(vec![self.cut_off(&error)]),
            }
        }
        let read = |store: &Store, id: Oid| {
            store
                .read_commit(&id)
                .map_err(|error| unreadable(&format!("the commit {} cannot be read", id.to_hex_with_len(12)), &error))
        };
        let before = match ends.before.map(|(id, vouches)| read(self.store, id).map(|commit| (commit.tree, vouches))).transpose()
        {
            Ok(before) => before,
            Err(finding) => return Ok(vec![finding]),
        };
        let mut findings = Vec::new();
        // The commits that were found in order, with their trees: each vouches for its children.
        let mut in_order: HashMap<Oid, Oid> = HashMap::new();
        for commit in commits {
            let (tree, parents) = match read(self.store, commit) {
                Ok(commit) => (commit.tree, commit.parents),
                Err(finding) => return Ok(vec![finding]),
            };
            let parent = parents.iter().find_map(|parent| in_order.get(parent)).map(|tree| (*tree, true));
            let before = parent.or(before);
            let verdict = self.tree(tree, before.map(|(tree, _)| tree), before.is_some_and(|(_, vouches)| vouches))?;
            let inside = |finding: &Finding| match commit == new {
                true => finding.clone(),
                false => {
                    let message = format!("commit {}: {}", commit.to_hex_with_len(12), finding.message);
                    Finding { message, ..finding.clone() }
                }
            };
            findings.extend(verdict.findings.iter().map(inside));
            if commit == new {
                outcome.verdict = (*verdict).clone();
            }
            if !refuses(&verdict.findings) {
                in_order.insert(commit, tree);
            }
        }
        Ok(findings)
    }

    fn cut_off(&self, error: &HistoryError) -> Finding {
        match error {
            HistoryError::Shallow { .. } => Finding::error(Code::HistoryShallow, error.to_string())
                .at("shallow")
                .hint("git fetch --unshallow, then push again: what is cut off cannot be verified"),
            HistoryError::TooLong { .. } => {
                let message = format!("more than {} commits are new", self.means.limits.commits);
                Finding::error(Code::PushTooLarge, message).hint("push fewer commits at a time")
            }
            HistoryError::Unreadable { .. } => unreadable("the history cannot be followed", error),
        }
    }

    /// The findings after the policy has judged them: where it allows, they are told and do not refuse.
    fn judged(
        &mut self,
        update: &Update,
        ends: &Ends,
        subject: &Subject,
        mut findings: Vec<Finding>,
        verdict: &TreeVerdict,
    ) -> Result<Vec<Finding>, VerifyError> {
        let tree = |id: Option<Oid>| id.map(|id| self.store.tree_of(&id)).transpose();
        let Ends { old, new, .. } = *ends;
        let (judge_tree, new_tree) = (tree(ends.judge)?, tree(new)?);
        let before_tree = tree(ends.before.map(|(id, _)| id))?;
        // Without a commit before, everything is new, and nothing is changed.
        let changed = match (before_tree, new_tree) {
            (Some(before), Some(new)) => self.changed(before, new),
            _ => Ok(Vec::new()),
        };
        let changed = match changed {
            // Nothing was taken away from a history that never had it.
            Ok(changed) if ends.unrelated => changed.into_iter().filter(|difference| difference.new.is_some()).collect(),
            Ok(changed) => changed,
            Err(finding) => {
                findings.push(finding);
                Vec::new()
            }
        };
        if let (Some(before), Some(new), false) = (before_tree, new_tree, refuses(&findings)) {
            findings.extend(self.weakened(before, new, &changed, verdict)?);
        }
        let maintained = match judge_tree {
            Some(tree) => self.store.thing_at(tree, MAINTAINERS)?.is_some(),
            None => false,
        };
        if maintained || self.has_list() || self.believes_words() {
            findings.extend(changed.iter().filter_map(|difference| unattestable(&difference.path)));
        }
        if let (true, None, Some(new)) = (self.believes_words(), before_tree, new_tree) {
            // A first push says nothing of that either; the default policy lets nothing else pass.
            let listed = self.store.thing_at(new, RUNNERS)?.is_some();
            let judged = !push_bundle(self.store, Some(new))?.1;
            let begun = [(listed, RUNNERS), (judged, PUSH_FOLDER)];
            findings.extend(begun.into_iter().filter(|(begun, _)| *begun).filter_map(|(_, path)| unattestable(path.as_bytes())));
        }
        let (bundle, default) = push_bundle(self.store, judge_tree)?;
        let control = |path: &[u8]| ["policy/", "control/", "schemas/"].iter().any(|folder| path.starts_with(folder.as_bytes()));
        let quiet = findings.is_empty() && !(maintained && changed.iter().any(|difference| control(&difference.path)));
        // What the default policy says of an update without findings that changes no maintained file is known, and a test holds it.
        if default && quiet {
            return Ok(findings);
        }
        let kind = match (old, new) {
            (_, None) => UpdateKind::Delete,
            (None, Some(_)) => UpdateKind::Create,
            (Some(old), Some(new)) if self.store.is_ancestor(old, new).unwrap_or(false) => UpdateKind::Update,
            (Some(_), Some(_)) => UpdateKind::Rewind,
        };
        let attestations = match (maintained, judge_tree, new_tree) {
            (true, Some(by), Some(tree)) => {
                // The state does not tell the executor; where that changes, it is the run that the tree was verified by.
                let executor = changed.iter().any(|difference| difference.path == EXECUTOR_CONFIG_PATH.as_bytes());
                let runs = if executor { verdict.run.iter().cloned().collect() } else { self.own_runs(tree)? };
                let (signers, unchecked) = self.maintainers(&runs, by)?;
                findings.extend(unchecked);
                signers
            }
            _ => Vec::new(),
        };
        let limit = self.means.limits.changed;
        let input = PushInput {
            schema_version: SCHEMA_VERSION,
            update: PushedUpdate {
                r#ref: update.name.clone().unwrap_or_default(),
                kind,
                old: old.map(|id| id.to_string()),
                new: new.map(|id| id.to_string()),
            },
            changed: changed.iter().take(limit).map(|d| String::from_utf8_lossy(&d.path).into_owned()).collect(),
            changed_cut: changed.len() > limit,
            maintained,
            attestations: attestations.into_iter().map(|signer| Attestation { signer }).collect(),
            pusher: subject.pusher.clone(),
            findings: &findings,
        };
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(refused) => return Ok(findings.into_iter().chain(refused).collect()),
        };
        if let Err(finding) = self.budgets.decisions.spend() {
            return Ok(findings.into_iter().chain([finding]).collect());
        }
        let value = crate::document::json::to_value(&input);
        let answer = evaluate(self.means.cage, &Question { bundle: &bundle, query: PUSH_QUERY, input: &value });
        if answer.decision == Decision::Allow {
            let told = |finding| Finding { severity: Severity::Warning, ..finding };
            return Ok(findings.into_iter().map(told).collect());
        }
        // Where something was found, that is the reason; otherwise the policy's own words are.
        if !refuses(&findings) {
            let name = update.name.as_deref().unwrap_or("the update");
            let hint = "a maintainer attests the run (git cbia attest) and pushes the attestation with it; policy/push/ says what is asked";
            findings.extend(answer.findings.into_iter().map(|finding| Finding {
                path: Some(finding.path.clone().unwrap_or_else(|| printable(name))),
                hint: Some(hint.to_owned()),
                ..finding
            }));
            if !refuses(&findings) {
                findings.push(Finding::error(Code::PushDenied, format!("the push policy does not allow {name}")).hint(hint));
            }
        }
        Ok(findings)
    }

    fn changed(&self, before: Oid, new: Oid) -> Result<Vec<Difference>, Finding> {
        // Told one by one they are bounded; that there are more is enough to know.
        let limits = TreeLimits { max_entries: 1_000_000, ..TreeLimits::default() };
        self.store
            .compare_within(Some(before), Some(new), &Everything, limits, self.budgets.names.left())
            .map_err(|error| not_walked("what changes cannot be told", &error, &self.budgets.names))
    }
}

/// The policy that judges pushes, and whether it is the default one: that of the tree before, or the default where it has none.
fn push_bundle(store: &Store, before: Option<Oid>) -> Result<(Result<Bundle, Vec<Finding>>, bool), VerifyError> {
    struct Policies;
    impl Interest for Policies {
        fn may_hold(&self, folder: &[u8]) -> bool {
            folder == b"policy" || folder == PUSH_FOLDER.as_bytes() || folder.starts_with(format!("{PUSH_FOLDER}/").as_bytes())
        }

        fn holds(&self, path: &[u8]) -> bool {
            path.starts_with(format!("{PUSH_FOLDER}/").as_bytes()) && path.ends_with(b".rego")
        }
    }
    let embedded = || -> Vec<PolicyFile> {
        let own = DEFAULT_BUNDLE.iter().filter(|(path, _)| path.starts_with(PUSH_FOLDER));
        let file = |(path, text): &(&str, &str)| Some(PolicyFile { path: path.parse().ok()?, text: text.as_bytes().to_vec() });
        own.filter_map(file).filter(|file| !is_policy_test(&file.path)).collect()
    };
    let mut files = Vec::new();
    for difference in store.compare(None, before, &Policies, TreeLimits::default())? {
        let Some(thing) = difference.new else { continue };
        let shown = printable(&String::from_utf8_lossy(&difference.path));
        let read = RepoPath::from_bytes(&difference.path).map_err(|error| spelled(&error));
        let read =
            read.and_then(|path| store.read_blob(&thing.id(), MAX_POLICY).map(|text| (path, text)).map_err(|e| spelled(&e)));
        match read {
            Ok((path, _)) if is_policy_test(&path) => {}
            Ok((path, text)) => files.push(PolicyFile { path, text }),
            Err(why) => {
                let finding = Finding::error(Code::PolicyInvalid, format!("the push policy cannot be read: {why}")).at(shown);
                return Ok((Err(vec![finding]), false));
            }
        }
    }
    let standard = embedded();
    let default = files.is_empty() || files == standard;
    Ok((Bundle::new(if files.is_empty() { standard } else { files }), default))
}
