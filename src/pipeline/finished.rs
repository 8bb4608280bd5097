//! A finished run, read back from its ref and held against itself: its chain, its snapshot, its documents, and every hash in them.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::PipelineError;
use crate::document::audit_bundle::FinalManifest;
use crate::document::capsule::Capsule;
use crate::document::check_report::CheckReport;
use crate::document::decision::{Decision, DecisionDocument};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::flow_manifest::FlowManifest;
use crate::document::gen_exchange::OutputsManifest;
use crate::document::graph::ExecutionDag;
use crate::document::json;
use crate::document::metadata::Metadata;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::Pipeline;
use crate::document::promotion::{PromoteEvidence, PromotedFile};
use crate::document::run_ledger::ArtifactHashes;
use crate::document::schema::{Kind, Sealed, load};
use crate::document::selection::Selection;
use crate::gate::order::DAG_PATH;
use crate::gate::paths::{CAPSULE_PATH, PIPELINE_PATH, SNAPSHOT_FOLDER};
use crate::gate::promotion::{Account, PhaseCommit, check_chain, check_links, promotable};
use crate::phase::r#gen::{ARTIFACT_HASHES_PATH, OUTPUTS_PATH, REPORT_PATH, REQUEST_PATH, RUN_LEDGER_PATH};
use crate::phase::opa_gate::{BUNDLE_PATH, DECISION_PATH, EXPLAIN_PATH, INPUT_PATH};
use crate::phase::select::SELECTION_PATH;
use crate::phase::structure::METADATA_PATH;
use crate::phase::{authority_lock, check, eval, flow, pre_gen};
use crate::store::object::trailers;
use crate::store::runs::RunListing;
use crate::store::tree::{Tree, TreeLimits};
use crate::store::{Oid, Store};

/// What a finished run must have, beside its artifacts.
const EVIDENCE: [&str; 18] = [
    CAPSULE_PATH,
    authority_lock::REPORT_PATH,
    pre_gen::MANIFEST_PATH,
    INPUT_PATH,
    DECISION_PATH,
    EXPLAIN_PATH,
    BUNDLE_PATH,
    REQUEST_PATH,
    OUTPUTS_PATH,
    REPORT_PATH,
    RUN_LEDGER_PATH,
    ARTIFACT_HASHES_PATH,
    check::REPORT_PATH,
    METADATA_PATH,
    SELECTION_PATH,
    flow::MANIFEST_PATH,
    eval::MANIFEST_PATH,
    eval::AUDIT_BUNDLE_PATH,
];
/// The largest document or file of a run that is read back, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Files of a run's tree, its snapshot included.
const LIMITS: TreeLimits = TreeLimits { max_entries: 1_000_000, max_depth: 64 };

/// A finished run.
pub struct Finished {
    /// Its ref and last phase commit.
    pub listing: RunListing,
    /// SHA-256 of the documents that speak for it.
    pub evidence: PromoteEvidence,
    /// The pipeline of its own snapshot.
    pub pipeline: Sealed<Pipeline>,
    /// Whether the execution DAG of its snapshot, if there is one, has PROMOTE.
    pub may_promote: bool,
    /// What CHECK found.
    pub check_report: CheckReport,
    /// Which artifacts were kept.
    pub selection: Selection,
    /// What the package consists of.
    pub flow: FlowManifest,
    /// The kept artifacts and the package, in byte order of path.
    pub files: Vec<PromotedFile>,
    tree: Tree,
}

impl Finished {
    /// The blob of a file of the run.
    pub fn blob(&self, path: &RepoPath) -> Option<Oid> {
        self.tree.get(path).map(|leaf| leaf.id)
    }
}

/// Reads the run and verifies it. The inner error says what is wrong with it, all of it.
pub fn read(store: &Store, listing: RunListing) -> Result<Result<Finished, Vec<Finding>>, PipelineError> {
    let name = listing.name.to_string();
    let mut reading = Reading { store, digests: BTreeMap::new(), findings: Vec::new() };
    let commits = match chain(store, listing.tip) {
        Ok(commits) => commits,
        Err(why) => return Ok(Err(vec![invalid(&why).at(name)])),
    };
    let shapes: Vec<PhaseCommit> = commits.iter().map(|(shape, _)| shape.clone()).collect();
    reading.findings.extend(check_chain(&shapes, &listing.state_key, &listing.executor_key));
    let (Some((_, last)), true) = (commits.last(), reading.findings.is_empty()) else { return Ok(Err(reading.findings)) };
    let tree = match store.read_tree(last, LIMITS) {
        Ok(tree) => tree,
        Err(error) => return Ok(Err(vec![invalid(&spelled(&error)).at(name)])),
    };
    reading.snapshot(&tree, &listing)?;
    for at in EVIDENCE {
        if !tree.contains_key(&crate::phase::path(at)) {
            let finding = Finding::error(Code::RunIncomplete, format!("the run lacks the evidence {at}")).at(at);
            reading.findings.push(finding.hint("git cbia run makes it"));
        }
    }
    let capsule = reading.document::<Capsule>(&tree, Kind::Capsule, CAPSULE_PATH);
    let decision = reading.decision(&tree);
    let outputs = reading.document::<OutputsManifest>(&tree, Kind::OutputsManifest, OUTPUTS_PATH);
    let check_report = reading.document::<CheckReport>(&tree, Kind::CheckReport, check::REPORT_PATH);
    let metadata = reading.document::<Metadata>(&tree, Kind::Metadata, METADATA_PATH);
    let selection = reading.document::<Selection>(&tree, Kind::Selection, SELECTION_PATH);
    let package = reading.document::<FlowManifest>(&tree, Kind::FlowManifest, flow::MANIFEST_PATH);
    let hashes = reading.document::<ArtifactHashes>(&tree, Kind::ArtifactHashes, ARTIFACT_HASHES_PATH);
    let pipeline = reading.document::<Pipeline>(&tree, Kind::Pipeline, &format!("{SNAPSHOT_FOLDER}/{PIPELINE_PATH}"));
    let r#final = reading.document::<FinalManifest>(&tree, Kind::FinalManifest, eval::MANIFEST_PATH);
    let dag = format!("{SNAPSHOT_FOLDER}/{DAG_PATH}").parse::<RepoPath>()?;
    let has_promote = |dag: Sealed<ExecutionDag>| dag.document.phases.iter().any(|phase| phase == Phase::Promote.as_str());
    let may_promote = match tree.contains_key(&dag) {
        true => reading.document::<ExecutionDag>(&tree, Kind::ExecutionDag, dag.as_str()).is_some_and(has_promote),
        false => true,
    };
    let (
        Some(capsule),
        Some(decision),
        Some(outputs),
        Some(check_report),
        Some(metadata),
        Some(selection),
        Some(package),
        Some(hashes),
        Some(pipeline),
        Some(r#final),
    ) = (capsule, decision, outputs, check_report, metadata, selection, package, hashes, pipeline, r#final)
    else {
        return Ok(Err(reading.findings));
    };
    if capsule.document.gen_executor.key() != listing.executor_key {
        reading.findings.push(invalid("its capsule names another executor than its ref").at(CAPSULE_PATH));
    }
    if metadata.document.pre_gen_capsule_hash != capsule.sha256 {
        let finding = Finding::error(Code::HashLinkMismatch, "the metadata name another capsule than the run has");
        reading.findings.push(finding.at(METADATA_PATH).expected(capsule.sha256, metadata.document.pre_gen_capsule_hash));
    }

    reading.whole(&tree, &r#final.document)?;
    let mut named: Vec<&RepoPath> = hashes.document.keys().collect();
    named.extend(selection.document.artifacts.iter().map(|a| &a.path));
    named.extend(metadata.document.artifacts.iter().map(|a| &a.path));
    named.extend(package.document.files.iter().map(|f| &f.path));
    let files = reading.files(&tree, &named)?;
    let artifacts: Vec<&RepoPath> = outputs.document.artifacts.iter().map(|a| &a.path).collect();
    let checked = reading.checked(&commits, &artifacts, &check_report)?;
    reading.findings.extend(check_links(&Account {
        outputs: &outputs.document,
        check_report: &check_report.document,
        checked_set_hash: checked,
        metadata: &metadata.document,
        selection: &selection.document,
        flow: &package.document,
        artifact_hashes: &hashes.document,
        files: &files,
    }));
    if !reading.findings.is_empty() {
        return Ok(Err(reading.findings));
    }
    let evidence = PromoteEvidence {
        pre_gen_capsule_hash: capsule.sha256,
        decision_hash: decision,
        check_report_hash: check_report.sha256,
        metadata_hash: metadata.sha256,
        selection_hash: selection.sha256,
        artifact_hashes_hash: hashes.sha256,
        flow_manifest_hash: package.sha256,
        final_manifest_hash: r#final.sha256,
    };
    Ok(Ok(Finished {
        listing,
        evidence,
        files: promotable(&metadata.document, &selection.document, &package.document),
        pipeline,
        may_promote,
        check_report: check_report.document,
        selection: selection.document,
        flow: package.document,
        tree,
    }))
}

fn invalid(why: &str) -> Finding {
    Finding::error(Code::RunInvalid, format!("the run is not what its ref says: {why}")).hint("git cbia run makes the run again")
}

/// The commits that lead to the run's tip, oldest first, each with its tree.
fn chain(store: &Store, tip: Oid) -> Result<Vec<(PhaseCommit, Oid)>, String> {
    let mut commits = Vec::new();
    let mut next = Some(tip);
    // A run that was repaired as often as may be has far fewer.
    while let Some(id) = next.filter(|_| commits.len() < 1000) {
        let commit = store.read_commit(&id).map_err(|error| spelled(&error))?;
        let facts: BTreeMap<String, String> = trailers(&commit).into_iter().collect();
        let fixed = "git-cbia <git-cbia@localhost> 0 +0000";
        let digest = |key: &str| facts.get(key).and_then(|value| value.parse().ok());
        let shape = PhaseCommit {
            id: id.to_hex_with_len(12).to_string(),
            phase: facts.get("Cbia-Phase").and_then(|name| Phase::from_name(name)),
            state_key: digest("Cbia-State-Key"),
            executor_key: digest("Cbia-Executor-Key"),
            decision: facts.get("Cbia-Decision").cloned(),
            parents: commit.parents.len(),
            is_plain: commit.author == fixed && commit.committer == fixed && commit.extra_headers.is_empty(),
        };
        next = commit.parents.first().copied();
        commits.push((shape, commit.tree));
    }
    commits.reverse();
    Ok(commits)
}

/// Whether a run's commits are those of every phase, each in its shape. Nothing of what they hold is looked at.
pub fn has_every_phase(store: &Store, tip: Oid, state_key: &Digest, executor_key: &Digest) -> bool {
    let Ok(commits) = chain(store, tip) else { return false };
    let shapes: Vec<PhaseCommit> = commits.into_iter().map(|(shape, _)| shape).collect();
    check_chain(&shapes, state_key, executor_key).is_empty()
}

struct Reading<'s> {
    store: &'s Store,
    /// SHA-256 and size by blob, so that an artifact and its copy in the package are read once.
    digests: BTreeMap<Oid, (Digest, u64)>,
    findings: Vec<Finding>,
}

impl Reading<'_> {
    /// Whether the snapshot in the run's tree is the one that its ref names.
    fn snapshot(&mut self, tree: &Tree, listing: &RunListing) -> Result<(), PipelineError> {
        let mut listed = Vec::new();
        for (path, leaf) in tree.iter().filter(|(path, _)| path.is_under(SNAPSHOT_FOLDER)) {
            let below: RepoPath = path.as_str()[SNAPSHOT_FOLDER.len() + 1..].parse()?;
            listed.push((below, self.digest(&leaf.id)?.0));
        }
        let key = Digest::of_listing(listed.iter().map(|(path, digest)| (path, *digest)));
        if key != listing.state_key {
            let finding = invalid("its snapshot is another state than its ref names");
            self.findings.push(finding.at(SNAPSHOT_FOLDER).expected(listing.state_key, key));
        }
        Ok(())
    }

    fn digest(&mut self, id: &Oid) -> Result<(Digest, u64), PipelineError> {
        if let Some(known) = self.digests.get(id) {
            return Ok(*known);
        }
        let bytes = self.store.read_blob(id, MAX_FILE)?;
        let found = (Digest::of(&bytes), bytes.len() as u64);
        self.digests.insert(*id, found);
        Ok(found)
    }

    /// Whether the final manifest names every file of the run's tree, by its hash, and no other.
    fn whole(&mut self, tree: &Tree, manifest: &FinalManifest) -> Result<(), PipelineError> {
        let named: BTreeMap<&RepoPath, Digest> = manifest.files.iter().map(|file| (&file.path, file.sha256)).collect();
        for (path, leaf) in tree.iter().filter(|(path, _)| path.as_str() != eval::MANIFEST_PATH) {
            let is = self.digest(&leaf.id)?.0;
            match named.get(path) {
                Some(said) if *said == is && !leaf.executable => {}
                Some(said) => {
                    let message = format!("the bytes of {path} are not those that {} names", eval::MANIFEST_PATH);
                    self.findings.push(Finding::error(Code::HashLinkMismatch, message).at(path).expected(said, is));
                }
                None => {
                    let message = format!("{} does not name {path}, which the run has", eval::MANIFEST_PATH);
                    self.findings.push(Finding::error(Code::HashLinkMissing, message).at(path));
                }
            }
        }
        for path in named.keys().filter(|path| !tree.contains_key(**path)) {
            let message = format!("{} names {path}, which the run does not have", eval::MANIFEST_PATH);
            self.findings.push(Finding::error(Code::HashLinkDangling, message).at(path));
        }
        Ok(())
    }

    fn digest_at(&mut self, tree: &Tree, at: &'static str) -> Result<Option<Digest>, PipelineError> {
        match tree.get(&crate::phase::path(at)) {
            Some(leaf) => Ok(Some(self.digest(&leaf.id)?.0)),
            None => Ok(None),
        }
    }

    /// What the run has at these paths.
    fn files(&mut self, tree: &Tree, named: &[&RepoPath]) -> Result<BTreeMap<RepoPath, (Digest, u64)>, PipelineError> {
        let mut files = BTreeMap::new();
        for path in named {
            // An executable artifact would be another file under the same hash.
            if let Some(leaf) = tree.get(*path).filter(|leaf| !leaf.executable) {
                files.insert((*path).clone(), self.digest(&leaf.id)?);
            }
        }
        Ok(files)
    }

    /// Listing hash of the artifacts as the last CHECK had them, whose report must be the one that the run ends with.
    fn checked(
        &mut self,
        commits: &[(PhaseCommit, Oid)],
        artifacts: &[&RepoPath],
        report: &Sealed<CheckReport>,
    ) -> Result<Digest, PipelineError> {
        let Some((_, top)) = commits.iter().rev().find(|(shape, _)| shape.phase == Some(Phase::Check)) else {
            return Ok(Digest::of_listing([]));
        };
        let tree = self.store.read_tree(top, LIMITS)?;
        if self.digest_at(&tree, check::REPORT_PATH)? != Some(report.sha256) {
            let finding = Finding::error(Code::CheckNotPassed, "the report of CHECK was changed after CHECK");
            self.findings.push(finding.at(check::REPORT_PATH));
        }
        let files = self.files(&tree, artifacts)?;
        Ok(Digest::of_listing(files.iter().map(|(path, (digest, _))| (path, *digest))))
    }

    fn bytes(&mut self, tree: &Tree, at: &RepoPath) -> Option<Vec<u8>> {
        let leaf = tree.get(at)?;
        match self.store.read_blob(&leaf.id, MAX_FILE) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.findings.push(invalid(&spelled(&error)).at(at));
                None
            }
        }
    }

    fn document<T: DeserializeOwned>(&mut self, tree: &Tree, kind: Kind, at: &str) -> Option<Sealed<T>> {
        let at: RepoPath = at.parse().ok()?;
        let bytes = self.bytes(tree, &at)?;
        match load::<T>(kind, &at, &bytes) {
            Ok(document) => Some(document),
            Err(findings) => {
                self.findings.extend(findings);
                None
            }
        }
    }

    /// SHA-256 of the policy's last decision, which must allow.
    fn decision(&mut self, tree: &Tree) -> Option<Digest> {
        let at = crate::phase::path(DECISION_PATH);
        let bytes = self.bytes(tree, &at)?;
        let parsed = json::parse(&bytes).ok().and_then(|value| serde_json::from_value::<DecisionDocument>(value).ok());
        let allows = parsed.is_some_and(|document| {
            let value = document.result.first().and_then(|result| result.expressions.first()).map(|e| &e.value);
            let is_assurance = document.cbia.path == "assurance/allow";
            document.cbia.decision == Decision::Allow && value == Some(&serde_json::Value::Bool(true)) && is_assurance
        });
        if !allows {
            self.findings.push(invalid("its decision does not say that data.assurance.allow is true").at(DECISION_PATH));
        }
        Some(Digest::of(&bytes))
    }
}
