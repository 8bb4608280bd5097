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
//! - `glance`: what shows without deriving anything.
//! - `hints`: how what lies at a generated path is mended.
//! - `search`: what the known runs have to say about single files.
//! - `shared`: the files that nobody can assign to single artifacts.
//! - `cover`: the rule for single artifacts, where a state has no run.
//! - `limits`: how much is done for one push.
//! - `namespaces`: whose corner of a repository counts for which refs.
//! - `diagnose`: why a stored run does not hold.
//! - `weakened`: what a change loosens and uses at once.
//! - `update`: a branch or tag that moves, and the policy that judges it.
//! - `refs`: what may become of git cbia's own refs.

mod cover;
mod diagnose;
pub mod evidence;
mod glance;
mod hints;
mod limits;
mod namespaces;
mod paths;
pub mod refs;
mod search;
mod shared;
pub mod state;
mod trust;
pub mod update;
mod weakened;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::RepoPath;
use crate::pipeline::PipelineError;
use crate::policy::Cage;
use crate::store::attest::{Rederive, Trust};
use crate::store::past::Past;
use crate::store::{Oid, Store, StoreError};

pub use self::evidence::{Evidence, Run};
pub use self::limits::Limits;
pub use self::namespaces::Namespaces;
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

/// What a verification is done with.
pub struct Means<'a> {
    /// Where policies are evaluated.
    pub cage: &'a Cage,
    /// Whose word a run needs.
    pub trust: Trust,
    /// Whose word stands for deriving a run again.
    pub rederive: Rederive,
    /// What is done at most.
    pub limits: Limits,
    /// Whether runs that this clone worked out itself are believed, as it noted when it did: at a door for its own work.
    pub own_work: bool,
}

impl<'a> Means<'a> {
    /// Those that a repository is configured for, at a door for anybody's work. A setting that means nothing is a finding.
    pub fn of(store: &Store, cage: &'a Cage, limits: Limits) -> Result<Self, Finding> {
        Ok(Self { cage, trust: store.trust()?, rederive: store.rederive()?, limits, own_work: false })
    }
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
    /// Whether the run of its state was not derived again, because enough signers attested it.
    pub attested: bool,
}

/// What may still be done, of each kind.
struct Budgets {
    commits: usize,
    runs: limits::Budget,
    signatures: limits::Budget,
    decisions: limits::Budget,
    names: limits::Budget,
    bytes: limits::Budget,
}

impl Budgets {
    fn new(limits: &Limits) -> Self {
        let new = limits::Budget::new;
        Self {
            commits: limits.commits,
            runs: new(limits.runs, "runs would have to be derived again", "commits"),
            signatures: new(limits.signatures, "signatures would have to be checked", "refs"),
            decisions: new(limits.decisions, "states and updates would have to be put to policies", "refs"),
            bytes: new(limits.bytes, "bytes of evidence would have to be read", "refs"),
            names: new(limits.names, "names in folders would have to be compared", "refs"),
        }
    }
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
    /// What trees came to, by themselves, the tree before them, and whether that vouched.
    verdicts: HashMap<(Oid, Option<Oid>, bool), Rc<TreeVerdict>>,
    /// Blobs that were seen to have a SHA-256.
    hashed: HashSet<(Oid, Digest)>,
    /// SHA-256 of what was read of runs that are pushed.
    vetted: HashMap<Oid, Digest>,
    /// Trees, with those before them, that differ in nothing that decides about generated files.
    unchanged: HashSet<(Oid, Oid)>,
    /// The known runs, compared with the tree that was asked about last.
    surveyed: Option<Rc<search::Survey>>,
    /// What may still be done.
    budgets: Budgets,
    /// Commits whose whole history is known to be here.
    walked: HashSet<Oid>,
    /// How many histories were compared with a main branch, and what lies before those.
    forks: usize,
    pasts: HashMap<Oid, Option<Past>>,
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
            vetted: HashMap::new(),
            unchanged: HashSet::new(),
            surveyed: None,
            budgets: Budgets::new(&means.limits),
            walked: HashSet::new(),
            forks: 0,
            pasts: HashMap::new(),
            rests_on: BTreeMap::new(),
            means,
        }
    }

    /// Every run that what was verified so far rests on, by ref.
    pub fn rests_on(&self) -> impl Iterator<Item = &Run> {
        self.rests_on.values()
    }
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
