//! The steps of a run: the gates, the stored run or cache entry that answers GEN, and GEN itself.

use std::collections::{BTreeMap, BTreeSet};

use super::PipelineError;
use super::chain::{Chain, Seal};
use super::inputs::Inputs;
use super::known::{Known, Sealed as SealedPhase, sealed};
use super::tail::{Means, Tail, Whole};
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::cache_entry::CacheKey;
use crate::document::capsule::KernelDecision;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses, spelled};
use crate::document::gen_exchange::{GenReport, OutputsManifest};
use crate::document::inputs_manifest::FileEntry;
use crate::document::objectives::Objective;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::record::Links;
use crate::document::run_ledger::{LedgerEntry, RunLedger};
use crate::document::schema::{Kind, Sealed, load};
use crate::executor::external::Host;
use crate::gate::assurance::Admission;
use crate::gate::authority::LEDGER_PATH;
use crate::gate::paths::CAPSULE_PATH;
use crate::phase::r#gen::{self, Executed, OUTPUTS_PATH, REPORT_PATH, Sources, account};
use crate::phase::{Assembled, Evidence, Judge, authority_lock, opa_gate, path, pre_gen};
use crate::policy::Bundle;
use crate::store::pack::Batch;
use crate::store::tree::{Tree, TreeLimits};
use crate::store::{Oid, Store};

/// Why a run is refused whose last tree is right: a commit before it, or a commit's own text, is not.
pub const OTHER_CHAIN: &str = "its phase commits are not those of this state";
/// The largest document of a run that is read back, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 64 << 20;

/// A gate that was reached.
pub struct Reached {
    /// The gate.
    pub phase: Phase,
    /// What it emitted.
    pub evidence: Evidence,
    /// What it came to, in words.
    pub summary: String,
    /// What it came to, as a decision.
    pub decision: &'static str,
}

/// What the gates say.
pub struct Gates {
    /// The gates that were reached, in order; the last one refused unless there is an admission.
    pub reached: Vec<Reached>,
    /// The proof that all of them let the state pass.
    pub admission: Option<Admission>,
    /// Refusals and warnings.
    pub findings: Vec<Finding>,
    /// What a record links to.
    pub links: Links,
    /// The run ledger so far.
    pub ledger: RunLedger,
    /// The parts of the control state that the assurance policy sees, once the kernel has allowed them.
    pub assembled: Option<Assembled>,
}

/// Runs the gates: never cached, never skipped.
pub fn gates(inputs: &Inputs, judge: &mut dyn Judge) -> Gates {
    let (passed, refused) = ("ALLOW", "DENY");
    let manifest_hash = inputs.manifest.hash();
    let ledger_hash = inputs.files.get(&path(LEDGER_PATH)).map(|file| file.sha256);
    let links = Links {
        authority_ledger_hash: ledger_hash,
        policy_bundle_hash: Some(inputs.policy_bundle_hash()),
        inputs_manifest_hash: Some(manifest_hash),
        ..Links::default()
    };
    let mut gates =
        Gates { reached: Vec::new(), admission: None, findings: Vec::new(), links, ledger: RunLedger::empty(), assembled: None };

    let locked = authority_lock::run(authority_lock::Input {
        ledger: inputs.ledger.as_ref().map_err(Vec::as_slice),
        ledger_hash,
        objectives: inputs.objectives.as_ref().ok(),
        files: inputs,
    });
    let holds = locked.lock.report.locked;
    let count = locked.lock.report.authorities.len();
    let summary = format!("{} {}", counted(count, "authority", "authorities"), if holds { "locked" } else { "not locked" });
    gates.findings.extend(locked.lock.findings);
    gates.reach(
        Phase::AuthorityLock,
        locked.evidence,
        authority_lock::REPORT_PATH,
        summary,
        if holds { passed } else { refused },
    );
    let (Ok(ledger), true) = (&inputs.ledger, holds) else { return gates };

    let kernel = pre_gen::run(
        pre_gen::Input {
            ledger,
            authority_set_hashes: &locked.lock.authority_set_hashes,
            objectives: inputs.objectives.as_ref().map_err(Vec::as_slice),
            graph: inputs.graph.as_ref().map_err(Vec::as_slice),
            dag: inputs.dag.as_ref().map_err(Vec::as_slice),
            pipeline: inputs.pipeline.as_ref().map_err(Vec::as_slice),
            bundle: inputs.bundle.as_ref().map_err(Vec::as_slice),
            policy_bundle_hash: inputs.policy_bundle_hash(),
            executor: &inputs.executor,
            needs_templates: crate::executor::resolve::is_builtin(&inputs.executor),
            manifest: &inputs.manifest,
            paths: &inputs.paths,
            files: inputs,
            known: &inputs.findings,
        },
        judge,
    );
    let allows = kernel.capsule.kernel_decision == KernelDecision::Allow;
    let decision = if allows { passed } else { refused };
    gates.findings.extend(kernel.findings);
    gates.links.pre_gen_capsule_hash = kernel.evidence.get(&path(CAPSULE_PATH)).map(|bytes| Digest::of(bytes));
    gates.reach(Phase::PreGen, kernel.evidence, CAPSULE_PATH, format!("kernel {decision}"), decision);
    let (Some(assembled), Ok(bundle), true) = (&kernel.assembled, &inputs.bundle, allows) else { return gates };

    let assurance = opa_gate::run(
        opa_gate::Input {
            capsule: &kernel.capsule,
            ledger: &ledger.value,
            assembled,
            bundle,
            bundle_files: &inputs.bundle_files,
        },
        judge,
    );
    let hash_of = |at: &'static str| assurance.evidence.get(&path(at)).map(|bytes| Digest::of(bytes));
    gates.links.decision_hash = hash_of(opa_gate::DECISION_PATH);
    gates.links.explain_hash = hash_of(opa_gate::EXPLAIN_PATH);
    gates.findings.extend(assurance.findings);
    let decision = if assurance.admission.is_some() { passed } else { refused };
    gates.reach(Phase::OpaGate, assurance.evidence, opa_gate::DECISION_PATH, format!("policy {decision}"), decision);
    gates.assembled = kernel.assembled;
    gates.admission = assurance.admission.filter(|_| !refuses(&gates.findings));
    gates
}

impl Gates {
    fn reach(&mut self, phase: Phase, evidence: Evidence, document: &'static str, summary: String, decision: &'static str) {
        let bytes = evidence.get(&path(document)).map(Vec::as_slice).unwrap_or_default();
        self.ledger.entries.push(LedgerEntry::phase(phase, Digest::of(bytes)));
        self.reached.push(Reached { phase, evidence, summary, decision });
    }

    /// Seals every gate that was reached.
    pub fn seal(&self, chain: &mut Chain, batch: &mut Batch<'_>) -> Result<(), PipelineError> {
        for gate in &self.reached {
            let (summary, decision) = (gate.summary.clone(), Some(gate.decision));
            let seal = Seal {
                phase: gate.phase,
                summary,
                cache_key: None,
                decision,
                evidence: &gate.evidence,
                artifacts: &BTreeMap::new(),
            };
            chain.seal(batch, &seal)?;
        }
        Ok(())
    }
}

/// `1 artifact`, `2 artifacts`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The documents of an admitted state.
#[derive(Clone, Copy)]
pub struct Documents<'a> {
    /// The authority ledger.
    pub ledger: &'a Sealed<AuthorityLedger>,
    /// The objectives.
    pub objectives: &'a Sealed<Vec<Objective>>,
    /// The policies.
    pub bundle: &'a Bundle,
    /// What the assurance policy sees of the rest.
    pub assembled: &'a Assembled,
}

impl<'a> Documents<'a> {
    /// The documents of a state that the gates let pass; `None` where one of them cannot be read.
    pub fn of(inputs: &'a Inputs, gates: &'a Gates) -> Option<Self> {
        let (Ok(ledger), Ok(objectives), Ok(bundle)) = (&inputs.ledger, &inputs.objectives, &inputs.bundle) else { return None };
        Some(Self { ledger, objectives, bundle, assembled: gates.assembled.as_ref()? })
    }
}

/// An admitted state, and everything that what GEN hands on is held against.
pub struct Admitted<'a> {
    /// The repository.
    pub store: &'a Store,
    /// The snapshot.
    pub inputs: &'a Inputs,
    /// Its documents.
    pub documents: Documents<'a>,
    /// What the gates said.
    pub gates: &'a Gates,
    /// GEN's input.
    pub input: &'a r#gen::Input<'a>,
    /// GEN's key.
    pub key: &'a CacheKey,
    /// Listing hash of the snapshot.
    pub state_key: Digest,
    /// Canonical hash of the resolved executor.
    pub executor_key: Digest,
}

/// What GEN handed on, now or earlier.
#[derive(Clone, Debug)]
pub struct Output {
    /// The artifacts, in byte order of path.
    pub files: Vec<FileEntry>,
    /// Their blobs.
    pub ids: BTreeMap<RepoPath, Oid>,
    /// With what they were made.
    pub tools: BTreeMap<String, String>,
}

/// What a stored run says, before it is held against anything.
pub struct Handed {
    tip: Oid,
    tree: Tree,
    commits: Vec<SealedPhase>,
    /// What GEN handed on.
    pub output: Output,
}

impl Admitted<'_> {
    /// What `output` comes to in the phases after GEN. A function of the state and of what GEN handed on.
    pub fn whole(&self, batch: &mut Batch<'_>, output: &Output, means: Means<'_>) -> Result<Whole, PipelineError> {
        let objectives = &self.documents.objectives.document;
        let account = account(self.input, objectives, &self.gates.ledger, &output.files, &output.tools);
        let mut chain = Chain::new(self.inputs, self.state_key, self.executor_key)?;
        self.gates.seal(&mut chain, batch)?;
        let summary = counted(output.files.len(), "artifact", "artifacts");
        let cache_key = Some(self.key.digest());
        chain.seal(
            batch,
            &Seal { phase: Phase::Gen, summary, cache_key, decision: None, evidence: &account.evidence, artifacts: &output.ids },
        )?;
        Tail::new(self, &account, output, chain, batch, means)?.run()
    }

    /// What the stored run at `tip` handed on and comes to, if the run is exactly the one that this state and these artifacts come to; otherwise why not.
    /// The artifacts' own bytes are verified when they are used. Where the run is believed, what its phases after GEN said under their own keys
    /// is not worked out again; otherwise nothing of it is taken but what an executor produced.
    pub fn stored(
        &self,
        tip: Oid,
        believed: bool,
        judge: &mut dyn Judge,
    ) -> Result<Result<(Output, Whole), Finding>, PipelineError> {
        match self.handed(tip) {
            Ok(handed) => self.hold(handed, believed, judge),
            Err(finding) => Ok(Err(finding)),
        }
    }

    fn refused(&self, tip: Oid, why: &str) -> Finding {
        let message = format!("the stored run {} is refused: {why}", tip.to_hex_with_len(12));
        Finding::error(Code::RunInvalid, message).at(format!("refs/cbia/runs/{}/{}", self.state_key, self.executor_key))
    }

    /// What the stored run at `tip` says that GEN handed on.
    pub fn handed(&self, tip: Oid) -> Result<Handed, Finding> {
        let refuse = |why: String| self.refused(tip, &why);
        let tree = match self.store.tree_of(&tip).map_err(|e| spelled(&e)).and_then(|id| self.read(id)) {
            Ok(tree) => tree,
            Err(why) => return Err(refuse(why)),
        };
        let (outputs, report) = (self.text(&tree, OUTPUTS_PATH), self.text(&tree, REPORT_PATH));
        // The two longest documents are read while the commits are.
        let (outputs, report, commits, handed) = std::thread::scope(|scope| {
            let outputs = scope.spawn(|| document::<OutputsManifest>(Kind::OutputsManifest, OUTPUTS_PATH, outputs));
            let report = scope.spawn(|| document::<GenReport>(Kind::ExecutorReport, REPORT_PATH, report));
            let commits = sealed(self.store, tip);
            // What GEN handed on lies in GEN's own commit: a later phase may have changed it.
            let generated = commits.iter().flatten().find(|commit| commit.phase == Phase::Gen);
            let handed = generated.map(|commit| self.read(commit.tree));
            (joined(outputs), joined(report), commits, handed)
        });
        let outputs = outputs.map_err(refuse)?;
        let report = report.map_err(refuse)?;
        let declared: BTreeSet<&RepoPath> = self.input.pipeline.r#gen.artifacts.iter().map(|a| &a.path).collect();
        let commits = commits.map_err(|error| refuse(spelled(&error)))?;
        let handed = handed.ok_or_else(|| refuse("it has no GEN".into()))?.map_err(refuse)?;
        let mut output = Output { files: Vec::new(), ids: BTreeMap::new(), tools: report.tool_versions };
        for artifact in outputs.artifacts {
            let Some(leaf) = handed.get(&artifact.path) else {
                return Err(refuse(format!("it lacks the artifact {}", artifact.path)));
            };
            output.ids.insert(artifact.path.clone(), leaf.id);
            output.files.push(FileEntry { path: artifact.path, sha256: artifact.sha256, bytes: artifact.bytes });
        }
        if output.ids.keys().collect::<BTreeSet<_>>() != declared {
            return Err(refuse("its artifacts are not the declared ones".into()));
        }
        Ok(Handed { tip, tree, commits, output })
    }

    /// What that comes to, if the run is exactly that.
    pub fn hold(
        &self,
        handed: Handed,
        believed: bool,
        judge: &mut dyn Judge,
    ) -> Result<Result<(Output, Whole), Finding>, PipelineError> {
        let Handed { tip, tree, commits, output } = handed;
        let refuse = |why: String| self.refused(tip, &why);
        let known = if believed { Known::Run(commits) } else { Known::Doubted(commits) };
        let means = Means { known, judge, sources: None, elsewhere: None, store_changes: false };
        let whole = self.whole(&mut Batch::hashing(self.store), &output, means)?;
        if let Some(stop) = &whole.stopped {
            let why = stop.findings.first().map_or_else(String::new, |finding| format!(": {}", finding.message));
            return Ok(Err(refuse(format!("its {} does not hold{why}", stop.phase))));
        }
        if whole.chain.tip() == Some(tip) {
            return Ok(Ok((output, whole)));
        }
        let expected = whole.chain.tree()?;
        let paths: BTreeSet<&RepoPath> = expected.keys().chain(tree.keys()).collect();
        let mut differing = paths.into_iter().filter(|path| expected.get(*path) != tree.get(*path));
        let first = differing.next();
        // A verdict that was changed is the worst of it, and told first.
        let verdict = |path: &&RepoPath| path.as_str() == CAPSULE_PATH || path.is_under("opa");
        let differing = first.filter(verdict).or_else(|| differing.find(verdict)).or(first);
        let why =
            differing.map_or(OTHER_CHAIN.to_owned(), |path| format!("{path} is not what this state and its artifacts come to"));
        Ok(Err(refuse(why)))
    }

    fn read(&self, id: Oid) -> Result<Tree, String> {
        let tree = self.store.read_tree(&id, TreeLimits::default());
        tree.map_err(|error| spelled(&error))
    }

    fn text(&self, tree: &Tree, at: &'static str) -> Result<Vec<u8>, String> {
        let leaf = tree.get(&path(at)).ok_or_else(|| format!("it lacks {at}"))?;
        self.store.read_blob(&leaf.id, MAX_DOCUMENT).map_err(|error| spelled(&error))
    }

    /// What the cache holds under GEN's key: verified, or why it is refused.
    pub fn cached(&self) -> Result<Result<Option<Output>, Finding>, PipelineError> {
        let entry = match self.store.cache_entry(&self.key.digest())? {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Ok(None)),
            Err(finding) => return Ok(Err(finding)),
        };
        let declared: BTreeSet<&RepoPath> = self.input.pipeline.r#gen.artifacts.iter().map(|a| &a.path).collect();
        if entry.artifacts.keys().collect::<BTreeSet<_>>() != declared {
            let message = "the cache entry is refused: its artifacts are not the declared ones";
            return Ok(
                Err(Finding::error(Code::CacheEntryInvalid, message).at(format!("refs/cbia/cache/{}", self.key.digest()))),
            );
        }
        Ok(Ok(Some(Output { files: entry.meta.artifacts, ids: entry.artifacts, tools: entry.meta.tool_versions })))
    }

    /// Executes GEN from `input`, which is this state's or the part of it that an executor is asked for, and `contents`, the bytes of its manifest.
    pub fn execute(
        &self,
        input: &r#gen::Input<'_>,
        contents: &BTreeMap<RepoPath, Vec<u8>>,
        host: &Host<'_>,
        judge: &mut dyn Judge,
    ) -> Executed {
        let Documents { ledger, objectives, bundle, .. } = self.documents;
        let values = objectives.value.as_array().map(Vec::as_slice).unwrap_or_default();
        let sources = Sources { ledger: &ledger.document, objectives: (&objectives.document, values), contents };
        r#gen::execute(input, &sources, host, bundle, judge)
    }
}

fn document<T: serde::de::DeserializeOwned>(kind: Kind, at: &'static str, text: Result<Vec<u8>, String>) -> Result<T, String> {
    let sealed = load::<T>(kind, &path(at), &text?);
    sealed.map(|sealed| sealed.document).map_err(|f| f.into_iter().next().map_or_else(String::new, |f| f.message))
}

/// What a thread came to; its panic goes on here.
pub(super) fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
