//! The promotion gate: whether a stored run is finished and whole, what of it is promoted, and whether that may go where it would.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::flow_manifest::FlowManifest;
use crate::document::gen_exchange::OutputsManifest;
use crate::document::glob::Globs;
use crate::document::metadata::Metadata;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::Promote;
use crate::document::promotion::PromotedFile;
use crate::document::run_ledger::ArtifactHashes;
use crate::document::selection::Selection;

use super::paths::{PIPELINE_PATH, reserved};

/// One commit of a run's chain, as far as its shape can be wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PhaseCommit {
    /// What messages call it.
    pub id: String,
    /// The phase that its trailer names; absent where it names none.
    pub phase: Option<Phase>,
    /// The state that its trailer names.
    pub state_key: Option<Digest>,
    /// The executor that its trailer names.
    pub executor_key: Option<Digest>,
    /// ALLOW or DENY, where it says so.
    pub decision: Option<String>,
    /// How many parents it has.
    pub parents: usize,
    /// Whether it has the fixed identity and time of phase commits, and no header beyond a commit's own.
    pub is_plain: bool,
}

/// A run, as its documents give account of it.
pub struct Account<'a> {
    /// What GEN produced.
    pub outputs: &'a OutputsManifest,
    /// What CHECK found.
    pub check_report: &'a CheckReport,
    /// Listing hash of the artifacts as the last CHECK's commit has them.
    pub checked_set_hash: Digest,
    /// Where the artifacts come from.
    pub metadata: &'a Metadata,
    /// Which of them were kept.
    pub selection: &'a Selection,
    /// What the package consists of.
    pub flow: &'a FlowManifest,
    /// The artifact map.
    pub artifact_hashes: &'a ArtifactHashes,
    /// SHA-256 and size of every file that the last phase commit has at a path that one of these documents names.
    pub files: &'a BTreeMap<RepoPath, (Digest, u64)>,
}

/// Whether `commits`, oldest first, are the phases of one finished run of this state and executor, each in its shape.
pub fn check_chain(commits: &[PhaseCommit], state_key: &Digest, executor_key: &Digest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, commit) in commits.iter().enumerate() {
        let named = commit.phase.map_or("no phase", Phase::as_str);
        let mut wrong = |why: &str| {
            let message = format!("the run's commit {} ({named}) is not a phase commit of this run: {why}", commit.id);
            findings.push(Finding::error(Code::RunInvalid, message).hint("git cbia run makes the run again"));
        };
        if commit.state_key.as_ref() != Some(state_key) {
            wrong("it names another state");
        }
        if commit.executor_key.as_ref() != Some(executor_key) {
            wrong("it names another executor");
        }
        if commit.parents != usize::from(index > 0) {
            wrong("a phase has the phase before it as its only parent");
        }
        if !commit.is_plain {
            wrong("it has another identity, time or header than phase commits have");
        }
        if matches!(commit.phase, Some(Phase::PreGen | Phase::OpaGate)) && commit.decision.as_deref() != Some("ALLOW") {
            wrong("it does not say ALLOW");
        }
    }
    let phases: Vec<Phase> = commits.iter().filter_map(|commit| commit.phase).collect();
    if phases.len() != commits.len() || !is_finished(&phases) {
        let names: Vec<&str> = commits.iter().map(|c| c.phase.map_or("?", Phase::as_str)).collect();
        let message = format!("the run is not finished: its phases are {}", names.join(", "));
        let finding = Finding::error(Code::RunIncomplete, message);
        findings
            .push(finding.expected("every phase up to EVAL", names.last().unwrap_or(&"none")).hint("git cbia run finishes it"));
    }
    findings
}

/// Whether these are the phases of a finished run. REPAIR and the CHECK after it may come any number of times.
fn is_finished(phases: &[Phase]) -> bool {
    use Phase::{AuthorityLock, Check, Eval, Flow, Gen, OpaGate, PreGen, Repair, Select, Struct};
    let Some(rest) = phases.strip_prefix(&[AuthorityLock, PreGen, OpaGate, Gen, Check]) else { return false };
    let Some(between) = rest.strip_suffix(&[Struct, Select, Flow, Eval]) else { return false };
    between.first() != Some(&Check) && between.iter().all(|phase| matches!(phase, Repair | Check))
}

/// Whether CHECK passed and every hash that one document gives is the one that the others and the bytes have.
pub fn check_links(account: &Account) -> Vec<Finding> {
    let Account { outputs, check_report, checked_set_hash, metadata, selection, flow, artifact_hashes, files } = account;
    let mut links = Links { files, findings: Vec::new() };
    let errors = check_report.findings.iter().filter(|f| f.severity == crate::document::finding::Severity::Error).count();
    if !check_report.passed || errors > 0 {
        let message = format!("CHECK did not pass: {errors} of its findings refuse");
        links.findings.push(Finding::error(Code::CheckNotPassed, message).at("execution/check/report.json").hint("git cbia run"));
    }
    if check_report.artifact_set_hash != *checked_set_hash {
        let finding =
            Finding::error(Code::CheckNotPassed, "the report of CHECK is about other artifacts than those that were checked");
        let finding = finding.at("execution/check/report.json");
        links.findings.push(finding.expected(checked_set_hash, check_report.artifact_set_hash));
    }

    let hashes = "execution/ledger/artifact_hashes.json";
    let made: BTreeSet<&RepoPath> = outputs.artifacts.iter().map(|a| &a.path).collect();
    for (at, digest) in *artifact_hashes {
        links.bytes(hashes, at, digest, None);
    }
    links.same_set("execution/gen/outputs.json", &made, hashes, &artifact_hashes.keys().filter(|p| made.contains(p)).collect());
    let selected = selection.artifacts.iter().map(|a| &a.path).collect();
    links.same_set("execution/gen/outputs.json", &made, "execution/select/selection.json", &selected);
    let described = metadata.artifacts.iter().map(|a| &a.path).collect();
    links.same_set("execution/gen/outputs.json", &made, "execution/struct/metadata.json", &described);

    let generated: BTreeMap<&RepoPath, Digest> = outputs.artifacts.iter().map(|a| (&a.path, a.sha256)).collect();
    for artifact in &metadata.artifacts {
        let at = &artifact.path;
        links.agree("execution/struct/metadata.json", at, &artifact.sha256, hashes, artifact_hashes.get(at));
        links.agree(
            "execution/struct/metadata.json",
            at,
            &artifact.generated_sha256,
            "execution/gen/outputs.json",
            generated.get(at),
        );
        links.bytes("execution/struct/metadata.json", at, &artifact.sha256, Some(artifact.bytes));
    }
    for artifact in &selection.artifacts {
        links.agree(
            "execution/select/selection.json",
            &artifact.path,
            &artifact.sha256,
            hashes,
            artifact_hashes.get(&artifact.path),
        );
    }

    let kept: BTreeSet<&RepoPath> = selection.kept().map(|a| &a.path).collect();
    let packaged: BTreeSet<&RepoPath> = flow.files.iter().map(|f| &f.origin).collect();
    links.same_set("execution/select/selection.json", &kept, "execution/flow/manifest.json", &packaged);
    for file in &flow.files {
        links.agree("execution/flow/manifest.json", &file.origin, &file.sha256, hashes, artifact_hashes.get(&file.origin));
        links.bytes("execution/flow/manifest.json", &file.path, &file.sha256, Some(file.bytes));
    }
    let package = Digest::of_listing(flow.files.iter().map(|f| (&f.path, f.sha256)));
    if package != flow.package_hash {
        let finding = Finding::error(Code::HashLinkMismatch, "the package's hash is not that of its files");
        links.findings.push(finding.at("execution/flow/manifest.json").expected(package, flow.package_hash));
    }
    links.findings
}

/// The account that is checked, and what was found.
struct Links<'a> {
    files: &'a BTreeMap<RepoPath, (Digest, u64)>,
    findings: Vec<Finding>,
}

impl Links<'_> {
    /// What a document says of a file, against the file's bytes.
    fn bytes(&mut self, document: &str, at: &RepoPath, digest: &Digest, size: Option<u64>) {
        match self.files.get(at) {
            None => {
                let message = format!("{document} names {at}, which the run does not have");
                self.findings.push(Finding::error(Code::HashLinkDangling, message).at(at));
            }
            Some((is, _)) if is != digest => {
                let message = format!("the bytes of {at} are not those that {document} names");
                self.findings.push(Finding::error(Code::HashLinkMismatch, message).at(at).expected(digest, is));
            }
            Some((_, is)) if size.is_some_and(|size| size != *is) => {
                let message = format!("{at} has another size than {document} says");
                let said = size.map_or_else(String::new, |size| size.to_string());
                self.findings.push(Finding::error(Code::HashLinkMismatch, message).at(at).expected(said, is));
            }
            Some(_) => {}
        }
    }

    /// What two documents say of one artifact.
    fn agree(&mut self, one: &str, at: &RepoPath, digest: &Digest, other: &str, said: Option<&Digest>) {
        match said {
            // That one of them does not name it is told where the sets are compared.
            None => {}
            Some(said) if said == digest => {}
            Some(said) => {
                let message = format!("{one} and {other} give different hashes of {at}");
                self.findings.push(Finding::error(Code::HashLinkMismatch, message).at(at).expected(said, digest));
            }
        }
    }

    /// Two documents that must be about the same artifacts.
    fn same_set(&mut self, one: &str, these: &BTreeSet<&RepoPath>, other: &str, those: &BTreeSet<&RepoPath>) {
        for at in these.difference(those) {
            let message = format!("{one} names {at}, and {other} does not");
            self.findings.push(Finding::error(Code::HashLinkMissing, message).at(at));
        }
        for at in those.difference(these) {
            let message = format!("{other} names {at}, and {one} does not");
            self.findings.push(Finding::error(Code::HashLinkDangling, message).at(at));
        }
    }
}

/// What of a run is promoted: every artifact that was kept, at its own path, and every file of the package.
pub fn promotable(metadata: &Metadata, selection: &Selection, flow: &FlowManifest) -> Vec<PromotedFile> {
    let sizes: BTreeMap<&RepoPath, u64> = metadata.artifacts.iter().map(|a| (&a.path, a.bytes)).collect();
    let kept = selection.kept().map(|a| PromotedFile {
        path: a.path.clone(),
        sha256: a.sha256,
        bytes: sizes.get(&a.path).copied().unwrap_or_default(),
        origin: a.path.clone(),
    });
    let packaged = flow.files.iter().map(|f| PromotedFile {
        path: f.path.clone(),
        sha256: f.sha256,
        bytes: f.bytes,
        origin: f.origin.clone(),
    });
    // A file of the package that lies where its artifact is, is one file.
    let files: BTreeMap<RepoPath, PromotedFile> = packaged.chain(kept).map(|file| (file.path.clone(), file)).collect();
    files.into_values().collect()
}

/// Whether every file may go where it would, as the run's own pipeline declares it.
pub fn check_destinations(files: &[PromotedFile], promote: Option<&Promote>) -> Vec<Finding> {
    let Some(promote) = promote else {
        let finding = Finding::error(Code::PromotionUndeclared, "the pipeline of this run does not declare promote.destinations");
        let hint = "add \"promote\": {\"destinations\": [\"artifacts/**\", \"dist/**\"]} or the like, and run git cbia run again";
        return vec![finding.at(PIPELINE_PATH).hint(hint)];
    };
    let allowed = match Globs::new(&promote.destinations) {
        Ok(allowed) => allowed,
        Err(error) => return vec![Finding::error(Code::PatternInvalid, error.to_string()).at(PIPELINE_PATH)],
    };
    let mut findings = Vec::new();
    if files.is_empty() {
        let finding = Finding::error(Code::PromotionUndeclared, "there is nothing to promote: SELECT kept no artifact");
        findings.push(finding.hint("git cbia show SELECT shows where the reasons are"));
    }
    for file in files {
        let at = &file.path;
        let refuse = |why: String, hint: &str| {
            let message = format!("{at} may not be promoted: {why}");
            Finding::error(Code::DestinationNotAllowed, message).at(at).hint(hint)
        };
        if let Some(why) = reserved(at) {
            findings.push(refuse(why.to_owned(), "choose another place for it"));
        } else if !allowed.matches(at) {
            let why = "no pattern of promote.destinations matches it".to_owned();
            findings.push(refuse(why, "add a pattern to promote.destinations in control/pipeline.json, or let SELECT prune it"));
        }
    }
    findings
}

#[cfg(test)]
#[path = "promotion_test.rs"]
mod tests;
