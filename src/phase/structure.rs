//! STRUCT: the artifacts in their normal form, within their schemas, with the metadata that says where each comes from.
//!
//! Reads: the artifacts that passed CHECK, the outputs manifest, the capsule; the pipeline's `struct` and `check`, and the schemas.
//! Writes: the artifacts that normalizing changed; `execution/struct/metadata.json`.
//! Stops when: an artifact has no normal form, breaks its schema once normalized, or comes from nowhere.

use std::collections::BTreeMap;

use super::Evidence;

use crate::artifact::metadata::{self, attach};
use crate::artifact::normalize::{Rules, normalize_set};
use crate::artifact::{Artifacts, check};
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Finding, Severity};
use crate::document::gen_exchange::OutputsManifest;
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::metadata::Metadata;
use crate::document::path::RepoPath;
use crate::document::pipeline::Pipeline;

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the metadata goes.
pub const METADATA_PATH: &str = "execution/struct/metadata.json";

/// What the phase works on.
pub struct Input<'a> {
    /// The declaration.
    pub pipeline: &'a Pipeline,
    /// The bytes of every schema that a rule names.
    pub schemas: &'a BTreeMap<RepoPath, Vec<u8>>,
}

/// What the metadata is drawn from.
pub struct Provenance<'a> {
    /// What GEN produced.
    pub outputs: &'a OutputsManifest,
    /// The capsule that admitted the run.
    pub capsule: &'a Capsule,
    /// SHA-256 of its emitted bytes.
    pub capsule_hash: Digest,
    /// What the executor reported as its tools.
    pub tool_versions: &'a BTreeMap<String, String>,
}

/// Brings artifacts into their normal form: hands those that change to `changed` with their new bytes.
pub fn normalize(
    input: &Input,
    artifacts: &dyn Artifacts,
    changed: &mut dyn FnMut(&RepoPath, Vec<u8>),
) -> Result<(), Vec<Finding>> {
    let rules =
        Rules::new(input.pipeline.r#struct.as_ref().map_or(&[][..], |s| &s.normalize)).map_err(|finding| vec![finding])?;
    let findings = normalize_set(artifacts, &rules, changed);
    if findings.is_empty() { Ok(()) } else { Err(findings) }
}

/// Holds what was changed against its schemas. CHECK has shown that the rest satisfies them.
pub fn enforce(input: &Input, changed: &dyn Artifacts) -> Result<(), Vec<Finding>> {
    let findings = check::enforce(changed, input.pipeline, input.schemas);
    let refused: Vec<Finding> = findings.into_iter().filter(|f| f.severity == Severity::Error).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// Attaches the metadata to the artifacts as they are now.
pub fn describe(provenance: &Provenance, artifacts: &[FileEntry]) -> Result<(Metadata, Evidence), Vec<Finding>> {
    let metadata = attach(&metadata::Input {
        artifacts,
        outputs: provenance.outputs,
        capsule: provenance.capsule,
        capsule_hash: provenance.capsule_hash,
        tool_versions: provenance.tool_versions,
    })?;
    let evidence = Evidence::from([(super::path(METADATA_PATH), json::emit(&metadata))]);
    Ok((metadata, evidence))
}

/// The digest of what STRUCT is configured to do.
pub fn config_hash(pipeline: &Pipeline, schemas: &BTreeMap<RepoPath, Vec<u8>>) -> Digest {
    super::check::config_hash(pipeline, schemas)
}
