//! Whose word a run needs, and who gave it.
//!
//! The list of signers is a file of the commit that an update is judged by, never of what is pushed. Attestations are found like runs: among
//! the refs of this repository, those that were fetched, and those of the same push.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::paths::is_at_or_below;
use super::{Run, Verifier, VerifyError};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity};
use crate::gate::signers::{MAINTAINERS, RUNNERS, read};
use crate::pipeline::inputs::{self, ExecutorSource, From};
use crate::policy::PUSH_FOLDER;
use crate::store::attest::{Attested, Rederive, Trust};
use crate::store::{Oid, Store};

/// Whose word counts for runs.
#[derive(Default)]
pub(super) struct Signers {
    /// The list: `control/runners.allowed_signers` of the commit that judges.
    list: Option<Vec<u8>>,
    /// Why runs do not count by this list; nothing of those that do.
    doubts: HashMap<(Oid, Digest, Digest), Rc<Vec<Finding>>>,
}

impl Signers {
    /// Forgets why runs do not count: other attestations may be looked at now.
    pub(super) fn forget(&mut self) {
        self.doubts.clear();
    }
}

impl Verifier<'_> {
    /// From now on, runs count by the list of signers that this commit has. Without a commit nobody is listed.
    pub fn trust_by(&mut self, commit: Option<Oid>) -> Result<(), VerifyError> {
        if self.words_needed().is_none() {
            return Ok(());
        }
        let tree = commit.map(|commit| self.store.tree_of(&commit)).transpose()?;
        let list = tree.map(|tree| self.store.signers_file(tree, RUNNERS)).transpose()?.flatten();
        if list != self.signers.list {
            // What was found in order, was so by the word of others.
            self.verdicts.clear();
            self.signers = Signers { list, doubts: HashMap::new() };
        }
        Ok(())
    }

    /// How many signers have to attest a run for their word to mean something here.
    fn words_needed(&self) -> Option<usize> {
        match (self.means.trust, self.means.rederive) {
            (Trust::Signed(needed), _) | (_, Rederive::Unattested(needed)) => Some(needed),
            (Trust::Content, Rederive::Always) => None,
        }
    }

    /// Why a run does not count, whatever it holds: too few of the signers that are listed have attested it, and what is wrong with
    /// attestations of others. Nothing if it counts.
    pub(super) fn doubts(&mut self, run: &Run) -> Result<Rc<Vec<Finding>>, VerifyError> {
        match self.means.trust {
            Trust::Content => Ok(Rc::default()),
            Trust::Signed(needed) => self.unattested(run, needed, |_| ()).map(|(doubts, ())| doubts),
        }
    }

    /// Whether enough of the signers that are listed attested a run for it not to be derived again, and whether it is sound as far as `sound`
    /// looks, which is asked meanwhile: git takes its time over signatures.
    pub(super) fn is_vouched_for(&mut self, run: &Run, sound: impl FnOnce(&Self) -> bool) -> Result<bool, VerifyError> {
        match self.means.rederive {
            Rederive::Always => Ok(false),
            Rederive::Unattested(needed) => {
                self.unattested(run, needed, sound).map(|(against, sound)| against.is_empty() && sound)
            }
        }
    }

    /// What stands against so many having attested a run, asked once of each; and what `meanwhile` comes to.
    fn unattested<T>(
        &mut self,
        run: &Run,
        needed: usize,
        meanwhile: impl FnOnce(&Self) -> T,
    ) -> Result<(Rc<Vec<Finding>>, T), VerifyError> {
        let Run { tip, state_key, executor_key, .. } = *run;
        let key = (tip, state_key, executor_key);
        if let Some(doubts) = self.signers.doubts.get(&key) {
            return Ok((doubts.clone(), meanwhile(self)));
        }
        let refs = self.evidence.attestations(&state_key, &executor_key)?;
        let list = self.signers.list.as_deref().unwrap_or_default();
        let left = self.budgets.signatures.left();
        let before = left.get();
        let asked = |store: &Store| {
            let left = Cell::new(before);
            (store.attested_by(&refs, tip, &state_key, &executor_key, list, &left), left.get())
        };
        let ((attested, after), found) = self.store.beside(asked, || meanwhile(self));
        left.set(after);
        let doubts = Rc::new(self.told(run, needed, attested?));
        self.signers.doubts.insert(key, doubts.clone());
        Ok((doubts, found))
    }

    /// What stands against a run that was asked about before; nothing of others.
    pub(super) fn doubts_of(&self, run: &Run) -> Rc<Vec<Finding>> {
        let known =
            (self.means.trust != Trust::Content).then(|| self.signers.doubts.get(&(run.tip, run.state_key, run.executor_key)));
        known.flatten().cloned().unwrap_or_default()
    }

    fn told(&self, run: &Run, needed: usize, attested: Attested) -> Vec<Finding> {
        let list = self.signers.list.as_deref().unwrap_or_default();
        let Some(mut missing) = attested.missing(Trust::Signed(needed), &run.tip, RUNNERS) else { return Vec::new() };
        if self.signers.list.is_none() {
            missing.message.push_str(", for the commit that judges has no list of them");
        } else if let Some(wrong) = read(RUNNERS, list).1.into_iter().next() {
            missing.message.push_str(&format!("; in their list, {}", wrong.message));
        }
        let told = |finding| Finding { severity: Severity::Error, ..finding };
        let unchecked = attested.unchecked.then(|| self.budgets.signatures.exhausted());
        [missing].into_iter().chain(unchecked).chain(attested.findings.into_iter().map(told)).collect()
    }

    /// The runs of a tree's own state that count. A run of another state was attested for what that one held.
    pub(super) fn own_runs(&mut self, tree: Oid) -> Result<Vec<Run>, VerifyError> {
        let source = ExecutorSource::Resolved(Box::new(crate::executor::resolve::builtin()));
        // A state that cannot be read has no run.
        let Ok(inputs) = inputs::take(self.store, From::Tree(tree), &source) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for run in self.evidence.of_state(&inputs.state_key())? {
            if self.derive(&run)?.is_ok() {
                found.push(run);
            }
        }
        Ok(found)
    }

    /// The maintainers, by the list of the tree `by`, who have attested one of these runs; a finding where not all could be looked at.
    pub(super) fn maintainers(&self, runs: &[Run], by: Oid) -> Result<(Vec<String>, Option<Finding>), VerifyError> {
        let Some(list) = self.store.signers_file(by, MAINTAINERS)? else { return Ok((Vec::new(), None)) };
        let (mut names, mut unchecked) = (BTreeSet::new(), false);
        for run in runs {
            let refs = self.evidence.attestations(&run.state_key, &run.executor_key)?;
            let attested = self.store.attested_by(
                &refs,
                run.tip,
                &run.state_key,
                &run.executor_key,
                &list,
                self.budgets.signatures.left(),
            )?;
            names.extend(attested.distinct().into_iter().map(|signer| signer.principal.clone()));
            unchecked |= attested.unchecked;
        }
        // Whoever attested is known to have done so, and more is not asked.
        let unchecked = (unchecked && names.is_empty()).then(|| self.budgets.signatures.exhausted());
        Ok((names.into_iter().collect(), unchecked))
    }

    /// Whether the word of signers stands for deriving a run.
    pub(super) fn believes_words(&self) -> bool {
        self.means.rederive != Rederive::Always
    }

    /// Whether the word of signers means something here, and somebody is listed.
    pub(super) fn has_list(&self) -> bool {
        self.words_needed().is_some() && self.signers.list.is_some()
    }
}

/// What stands against a change of a list of signers, or of the push policy. They are part of no state, so that whoever attested a run has said
/// nothing about them: an earlier word must not let anybody replace those who have one.
pub(super) fn unattestable(path: &[u8]) -> Option<Finding> {
    let list = path.starts_with(b"control/") && path.ends_with(b".allowed_signers");
    if !list && !is_at_or_below(path, PUSH_FOLDER.as_bytes()) {
        return None;
    }
    let path = crate::document::path::printable(&String::from_utf8_lossy(path));
    let message = format!("{path} changes, and says whose word counts here: no attestation of a run covers it");
    let hint = "whoever administers the server takes the change there, or the branch's own policy/push/ allows it";
    Some(Finding::error(Code::AttestationMissing, message).at(path).hint(hint))
}

/// What is wrong with a run, and with the attestations of it where too few count.
pub(super) fn all(first: &Finding, doubts: &[Finding]) -> Vec<Finding> {
    let others = doubts.iter().skip(1).filter(|_| first.code == Code::AttestationMissing).cloned();
    [first.clone()].into_iter().chain(others).collect()
}
