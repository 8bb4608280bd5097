//! EVAL: the assurance policy once more, over everything that was made; the audit bundle; the final manifest.
//!
//! Reads: what OPA_GATE read, with the run ledger and the artifact map as they are now; `assurance/audit_bundle.manifest.json`; every file of the run.
//! Writes: `opa/input.json`, `decision.json`, `explain.json`, `bundle.hash` again; `execution/eval/audit_bundle.json` and `manifest.json`.
//! Stops when: the policy says anything but exactly `true`, or a document that an audit needs is missing.

use std::collections::BTreeMap;

use super::{Evidence, Judge, opa_gate};
use crate::document::SCHEMA_VERSION;
use crate::document::audit_bundle::{AuditBundle, AuditDocument, AuditManifest, AuditedDocument, FinalManifest, ManifestFile};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::gate::assurance::refusal;
use crate::gate::authority::LEDGER_PATH;
use crate::gate::paths::{AUDIT_MANIFEST_PATH, CAPSULE_PATH};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the audit bundle goes.
pub const AUDIT_BUNDLE_PATH: &str = "execution/eval/audit_bundle.json";
/// Where the final manifest goes.
pub const MANIFEST_PATH: &str = "execution/eval/manifest.json";

/// What the phase works on: what OPA_GATE asked about, and what has become of it up to FLOW.
pub use super::opa_gate::Asked as Input;

/// What the policy says of the final state.
pub struct Output {
    /// Whether it allows.
    pub allows: bool,
    /// The input, the decision, the explanation and the bundle's identity.
    pub evidence: Evidence,
    /// Why it does not allow, and warnings.
    pub findings: Vec<Finding>,
}

/// Puts the final state before the assurance policy.
pub fn run(input: &Input, judge: &mut dyn Judge) -> Output {
    let (answer, evidence, mut findings) = opa_gate::ask(input, judge);
    // The same rule as before GEN: exactly `true`, over an ALLOW capsule.
    findings.extend(refusal(input.capsule, answer.as_ref()).filter(|_| !refuses(&findings)));
    Output { allows: !refuses(&findings), evidence, findings }
}

/// What an audit needs where the repository does not say so itself: the documents of every phase that the run has.
pub fn default_manifest(declared: &dyn Fn(Phase) -> bool) -> AuditManifest {
    let later = [
        (Phase::Struct, ("metadata", super::structure::METADATA_PATH)),
        (Phase::Select, ("selection", super::select::SELECTION_PATH)),
        (Phase::Flow, ("package", super::flow::MANIFEST_PATH)),
    ];
    let later = later.into_iter().filter(|(phase, _)| declared(*phase)).map(|(_, document)| document);
    let documents = [
        ("pre_gen_capsule", CAPSULE_PATH),
        ("decision", opa_gate::DECISION_PATH),
        ("explain", opa_gate::EXPLAIN_PATH),
        ("bundle_hash", opa_gate::BUNDLE_PATH),
        ("authority_ledger", LEDGER_PATH),
        ("lock_report", super::authority_lock::REPORT_PATH),
        ("inputs_manifest", super::pre_gen::MANIFEST_PATH),
        ("run_ledger", super::r#gen::RUN_LEDGER_PATH),
        ("artifact_hashes", super::r#gen::ARTIFACT_HASHES_PATH),
        ("check_report", super::check::REPORT_PATH),
    ];
    let document = |(name, at): (&str, &'static str)| AuditDocument { name: name.to_owned(), path: super::path(at) };
    AuditManifest { schema_version: SCHEMA_VERSION.into(), documents: documents.into_iter().chain(later).map(document).collect() }
}

/// The audit bundle of a run that holds `files`, by their place in the run's tree. A document that was read, and not emitted, is found in the
/// run's snapshot.
pub fn audit(manifest: &AuditManifest, files: &BTreeMap<RepoPath, Digest>) -> Result<AuditBundle, Vec<Finding>> {
    let (mut documents, mut findings) = (Vec::new(), Vec::new());
    for AuditDocument { name, path } in &manifest.documents {
        let snapshot = format!("{}/{path}", crate::gate::paths::SNAPSHOT_FOLDER).parse().ok();
        let found =
            [Some(path.clone()), snapshot].into_iter().flatten().find_map(|at| files.get(&at).map(|sha256| (at, *sha256)));
        match found {
            Some((path, sha256)) => documents.push(AuditedDocument { name: name.clone(), path, sha256 }),
            None => {
                let message =
                    format!("the run has no {path}, which an audit needs as its {}", crate::document::path::printable(name));
                let finding = Finding::error(Code::AuditIncomplete, message).at(path);
                findings.push(finding.hint(format!("mend {AUDIT_MANIFEST_PATH}, or add the file to inputs")));
            }
        }
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let listing: BTreeMap<&RepoPath, Digest> = documents.iter().map(|d| (&d.path, d.sha256)).collect();
    let audit_bundle_hash = Digest::of_listing(listing);
    Ok(AuditBundle { schema_version: SCHEMA_VERSION.into(), phase: Phase::Eval, audit_bundle_hash, documents })
}

/// The final manifest of a run that holds `files`.
pub fn seal(files: &BTreeMap<RepoPath, Digest>) -> FinalManifest {
    FinalManifest {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Eval,
        manifest_hash: Digest::of_listing(files.iter().map(|(path, sha256)| (path, *sha256))),
        files: files.iter().map(|(path, sha256)| ManifestFile { path: path.clone(), sha256: *sha256 }).collect(),
    }
}

/// The digest of what EVAL is configured to ask for.
pub fn config_hash(manifest: &AuditManifest) -> Digest {
    Digest::of_document(manifest)
}
