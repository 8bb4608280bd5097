//! F5: the verifier. Whether what lies at the paths that are generated came out of an admitted run.
//!
//! One verifier behind four doors: `git cbia verify`, the hooks `pre-push` and `pre-receive`, and whoever else asks. It reads objects and
//! refs, nothing else, and writes nothing. A run is found by content: the key of a commit's state is computed from the commit's tree,
//! whatever the commit is called and however it came about, and the run of that state is derived again.
//!
//! - `evidence`: the runs that are known, those of the same push among them.
//! - `paths`: which paths are generated, by the declaration of the commit and of the one before it.
//! - `state`: a tree's state, and the runs of it that hold.
//! - `trust`: whose word a run needs, and who gave it.
//! - `glance`: what shows without that.
//! - `cover`: the rule for single artifacts, where a state has no run.
//! - `diagnose`: why a stored run does not hold.
//! - `update`: a branch or tag that moves, and the policy that judges it.
//! - `refs`: what may become of git cbia's own refs.

mod cover;
mod diagnose;
pub mod evidence;
mod glance;
mod paths;
pub mod refs;
pub mod state;
mod trust;
pub mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::RepoPath;
use crate::pipeline::PipelineError;
use crate::policy::Cage;
use crate::store::attest::Trust;
use crate::store::{Oid, Store, StoreError};

pub use self::evidence::{Evidence, Run};
pub use self::update::{Subject, Update};

/// Why something could not be verified. What is wrong with what was verified is a finding, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The repository cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state of a commit cannot be derived.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

crate::store::through_store!(
    VerifyError: crate::store::refs::RefError,
    crate::store::object::ObjectError,
    crate::store::tree::TreeError,
    crate::store::open::RevisionError
);

/// The most that is done before a push is refused as too large.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commits that are new, over all updates.
    pub commits: usize,
    /// Runs that are derived again.
    pub runs: usize,
    /// Stored runs that are searched for a single artifact.
    pub searched: usize,
    /// Attestations that are pushed: each takes a few processes.
    pub attestations: usize,
    /// Refs in one push.
    pub refs: usize,
    /// Changed paths that the push policy is told.
    pub changed: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { commits: 1_000_000, runs: 1_000, attestations: 1_000, searched: 10_000, refs: 10_000, changed: 20_000 }
    }
}

/// What a verification is done with.
pub struct Means<'a> {
    /// Where policies are evaluated.
    pub cage: &'a Cage,
    /// Whose word a run needs.
    pub trust: Trust,
    /// What is done at most.
    pub limits: Limits,
    /// Whether runs that this clone worked out itself are believed, as it noted when it did: at a door for its own work.
    pub own_work: bool,
}

/// How an artifact came to be let through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Covered {
    /// The artifact.
    pub path: RepoPath,
    /// The run's last phase commit.
    pub run: Oid,
    /// Whether it is the run of the commit's own state, rather than one that produced this artifact under the same authorities and policies.
    pub own: bool,
}

/// What a tree comes to.
#[derive(Clone, Debug, Default)]
pub struct TreeVerdict {
    /// The key of its state; absent where nothing is generated.
    pub state_key: Option<Digest>,
    /// The run of its state.
    pub run: Option<Run>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Every run that it rests on.
    pub rests_on: Vec<Run>,
    /// How its artifacts are covered, in byte order of path.
    pub covered: Vec<Covered>,
}

/// A verification: several commits, of which much is the same.
pub struct Verifier<'a> {
    store: &'a Store,
    means: Means<'a>,
    evidence: Evidence<'a>,
    /// Runs that were derived again by themselves, by their tip and the keys that they are called by.
    derived: HashMap<(Oid, Digest, Digest), Rc<Result<state::Derived, Finding>>>,
    /// Whose word counts for runs.
    signers: trust::Signers,
    /// Trees that were found in order, by themselves and the tree before them.
    verdicts: HashMap<(Oid, Option<Oid>), Rc<TreeVerdict>>,
    /// Blobs that were seen to have a SHA-256.
    hashed: HashSet<(Oid, Digest)>,
    runs_left: usize,
    commits_left: usize,
    attestations_left: usize,
    /// Every run that something rests on.
    rests_on: BTreeMap<String, Run>,
}

impl<'a> Verifier<'a> {
    /// A verification in `store`, with what is known of runs.
    pub fn new(store: &'a Store, evidence: Evidence<'a>, means: Means<'a>) -> Self {
        Self {
            store,
            evidence,
            derived: HashMap::new(),
            signers: trust::Signers::default(),
            verdicts: HashMap::new(),
            hashed: HashSet::new(),
            runs_left: means.limits.runs,
            commits_left: means.limits.commits,
            attestations_left: means.limits.attestations,
            rests_on: BTreeMap::new(),
            means,
        }
    }

    /// Every run that what was verified so far rests on, by ref.
    pub fn rests_on(&self) -> impl Iterator<Item = &Run> {
        self.rests_on.values()
    }

    /// Counts one more run that is derived again; a finding when there were too many.
    fn spend_run(&mut self) -> Result<(), Finding> {
        let limit = self.means.limits.runs;
        let finding = || {
            let message = format!("more than {limit} runs would have to be derived again");
            Finding::error(Code::PushTooLarge, message).hint("push fewer commits at a time")
        };
        spend(&mut self.runs_left).then_some(()).ok_or_else(finding)
    }

    /// The same for attestations that are pushed.
    fn spend_attestation(&mut self) -> Result<(), Finding> {
        let limit = self.means.limits.attestations;
        let finding = || {
            let message = format!("more than {limit} attestations are pushed at once");
            Finding::error(Code::PushTooLarge, message).hint("push fewer refs at a time")
        };
        spend(&mut self.attestations_left).then_some(()).ok_or_else(finding)
    }
}

/// Takes one of what is left; whether there was one.
fn spend(left: &mut usize) -> bool {
    let there = *left > 0;
    *left = left.saturating_sub(1);
    there
}

/// A finding for what cannot be read: it is not believed to be in order.
fn unreadable(what: &str, error: &dyn std::error::Error) -> Finding {
    Finding::error(Code::TreeUnreadable, format!("{what}: {}", spelled(error)))
        .hint("git fsck says what else is wrong with the repository; push from a clone that is whole")
}

/// The most findings of one code that are told of one commit.
const MAX_TOLD: usize = 100;

/// Cuts what is told of each code, and says that it was cut.
fn cut(findings: Vec<Finding>) -> Vec<Finding> {
    let mut counts: BTreeMap<Code, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for finding in findings {
        let count = counts.entry(finding.code).or_default();
        *count += 1;
        if *count <= MAX_TOLD {
            kept.push(finding);
        }
    }
    for (code, count) in counts.into_iter().filter(|(_, count)| *count > MAX_TOLD) {
        let message = format!("and {} more of {code}", count - MAX_TOLD);
        kept.push(Finding::error(Code::FindingsCut, message).hint("mend what is told, and verify again"));
    }
    kept
}

/// The same findings, each once.
fn unique(findings: Vec<Finding>) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    findings.into_iter().filter(|f| seen.insert((f.code, f.path.clone(), f.message.clone()))).collect()
}
