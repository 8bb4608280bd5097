//! What a change loosens and uses at once: its state held against the policies, and its artifacts against the schemas, that stood before it.

use std::collections::BTreeMap;

use super::paths::{MAX_DOCUMENT, blob_at};
use super::state::denied;
use super::{Verifier, VerifyError};
use crate::artifact::Files;
use crate::artifact::check::enforce;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::path::RepoPath;
use crate::document::pipeline::{Outline, Pipeline};
use crate::gate::paths::PIPELINE_PATH;
use crate::pipeline::inputs::{self, ExecutorSource, From, Inputs};
use crate::pipeline::rederive::{Forgetful, gates};
use crate::store::Oid;
use crate::store::compare::{Difference, Thing};

/// The largest artifact that is held against schemas, in bytes; a larger one counts as one that does not satisfy them.
pub(super) const MAX_ARTIFACT: u64 = 256 << 20;

impl Verifier<'_> {
    /// What the change from one tree to another loosens and uses at once. `changed` is all that differs between them.
    pub(super) fn weakened(&self, before: Oid, new: Oid, changed: &[Difference]) -> Result<Vec<Finding>, VerifyError> {
        if self.unchanged.contains(&(new, before)) {
            return Ok(Vec::new());
        }
        let policies = changed.iter().any(|difference| difference.path.starts_with(b"policy"));
        if changed.is_empty() || !policies && !self.asks_otherwise(before, changed) {
            return Ok(Vec::new());
        }
        let source = || ExecutorSource::Resolved(Box::new(crate::executor::resolve::builtin()));
        let (Ok(was), Ok(is)) =
            (inputs::take(self.store, From::Tree(before), &source()), inputs::take(self.store, From::Tree(new), &source()))
        else {
            return Ok(Vec::new());
        };
        if was.pipeline.is_err() || is.pipeline.is_err() {
            return Ok(Vec::new());
        }
        let mut findings = self.by_old_schemas(&was, &is, changed)?;
        if policies {
            findings.extend(self.by_old_policies(was, is));
        }
        Ok(findings)
    }

    /// Whether the declaration changes, or a schema that it names.
    fn asks_otherwise(&self, before: Oid, changed: &[Difference]) -> bool {
        let is_changed = |path: &str| changed.iter().any(|difference| difference.path == path.as_bytes());
        is_changed(PIPELINE_PATH) || {
            let bytes = blob_at(self.store, before, PIPELINE_PATH).and_then(|id| self.store.read_blob(&id, MAX_DOCUMENT).ok());
            let outline = bytes.as_deref().and_then(|bytes| serde_json::from_slice::<Outline<'_>>(bytes).ok());
            outline.iter().flat_map(|outline| &outline.check.schemas).any(|rule| is_changed(&rule.schema.0))
        }
    }

    /// Whether the state would have been refused by the policies before it.
    fn by_old_policies(&self, was: Inputs, mut is: Inputs) -> Option<Finding> {
        if was.policy_bundle_hash() == is.policy_bundle_hash() {
            return None;
        }
        if let Err(finding) = self.budgets.decisions.spend() {
            return Some(finding);
        }
        // What the state is by its own policies is judged elsewhere; by the same measure, or the difference would not be theirs.
        let mut judge = Forgetful::new(self.means.cage);
        gates(&is, &mut judge).admission.as_ref()?;
        is.bundle = was.bundle;
        is.bundle_files = was.bundle_files;
        let by_old = gates(&is, &mut judge);
        if by_old.admission.is_some() {
            return None;
        }
        let why = denied(&by_old.findings).message;
        let why = why.split_once(": ").map_or(String::new(), |(_, why)| format!(": {why}"));
        let message = format!("the policies before this change refuse its state, and its own do not{why}");
        let hint = "change the policies in one push, and use what they allow in the next";
        Some(Finding::error(Code::PolicyWeakened, message).at("policy").hint(hint))
    }

    /// The artifacts that came or changed, and satisfy the schemas of their own commit only: a rule that is gone, or a schema that asks less.
    fn by_old_schemas(&self, was: &Inputs, is: &Inputs, changed: &[Difference]) -> Result<Vec<Finding>, VerifyError> {
        let (Ok(old), Ok(new)) = (&was.pipeline, &is.pipeline) else { return Ok(Vec::new()) };
        let (old_schemas, new_schemas) = (was.schemas(self.store)?, is.schemas(self.store)?);
        let rules = |pipeline: &Pipeline| pipeline.check.as_ref().map(|check| check.schemas.clone()).unwrap_or_default();
        let spelled = |pipeline: &Pipeline| crate::document::json::to_value(&rules(pipeline));
        if old_schemas == new_schemas && spelled(&old.document) == spelled(&new.document) {
            return Ok(Vec::new());
        }
        let declared = |path: &RepoPath| new.document.r#gen.artifacts.iter().any(|artifact| artifact.path == *path);
        let mut artifacts = Files::new();
        for difference in changed {
            let (Ok(path), Some(Thing::File(id))) = (RepoPath::from_bytes(&difference.path), difference.new) else { continue };
            if !declared(&path) {
                continue;
            }
            match self.store.read_blob(&id, MAX_ARTIFACT) {
                Ok(bytes) => drop(artifacts.insert(path, bytes)),
                Err(error) => return Ok(vec![super::unreadable(&format!("{path} cannot be read"), &error).at(&path)]),
            }
        }
        let by = |pipeline: &Pipeline, schemas: &BTreeMap<RepoPath, Vec<u8>>| {
            // Schemas alone: what form an artifact has is nobody's permission.
            let pipeline = Pipeline { r#struct: None, ..pipeline.clone() };
            let findings = enforce(&artifacts, &pipeline, schemas);
            findings.into_iter().filter(|finding| refuses(std::slice::from_ref(finding))).collect::<Vec<_>>()
        };
        let own: Vec<Finding> = by(&new.document, &new_schemas);
        let mut told: BTreeMap<String, Finding> = BTreeMap::new();
        for finding in by(&old.document, &old_schemas) {
            let Some(path) = finding.path.clone() else { continue };
            let is_artifact = path.parse::<RepoPath>().is_ok_and(|path| artifacts.contains_key(&path));
            if !is_artifact || own.iter().any(|own| own.path.as_deref() == Some(path.as_str())) {
                continue;
            }
            let message =
                format!("{path} does not satisfy the schemas before this change, and its own ask less: {}", finding.message);
            let hint = "change the schemas, or control/pipeline.json, in one push, and use what they allow in the next";
            told.entry(path).or_insert(Finding { code: Code::CheckWeakened, message, hint: Some(hint.to_owned()), ..finding });
        }
        Ok(told.into_values().collect())
    }
}
