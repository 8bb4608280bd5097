//! What a run leaves in the store: cache entries, the run's ref, and what is put aside because it cannot be believed.

use std::collections::BTreeMap;

use super::PipelineError;
use super::chain::write_snapshot;
use super::run::{Mode, Origin};
use super::settle::{Settle, Work};
use super::step::{Admitted, Output};
use super::tail::Whole;
use crate::document::SCHEMA_VERSION;
use crate::document::cache_entry::{CacheKey, CacheMeta};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::inputs_manifest::FileEntry;
use crate::document::path::RepoPath;
use crate::phase::Evidence;
use crate::phase::r#gen::Produced;
use crate::store::Oid;
use crate::store::cache::EVIDENCE;
use crate::store::durable::Durability;
use crate::store::pack::Batch;

impl<'a> Settle<'a> {
    /// Stores what an executor produced, under GEN's key: a run that a later phase stops goes on from here. A finding says that the same key gave
    /// another result before.
    pub fn produced(&self, admitted: &Admitted<'_>, produced: Produced) -> Result<Result<Work, Finding>, PipelineError> {
        let Produced { artifacts, tool_versions } = produced;
        let mut output = Output { files: Vec::new(), ids: BTreeMap::new(), tools: tool_versions };
        let mut batch = Batch::new(self.store)?;
        let sizes: Vec<(RepoPath, u64)> = artifacts.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect();
        let hashed = batch.blobs_parallel(artifacts.into_values().collect())?;
        for ((path, bytes), (id, sha256)) in sizes.into_iter().zip(hashed) {
            output.ids.insert(path.clone(), id);
            output.files.push(FileEntry { path, sha256, bytes });
        }
        let evidence = decision(admitted);
        let meta = meta(admitted.key, output.files.clone(), &evidence, output.tools.clone());
        let entry = self.store.write_entry(&mut batch, &meta, &output.ids, &evidence)?;
        batch.publish(Durability::Full)?;
        let key = admitted.key.digest();
        if let Some(other) = self.store.create_entry(&key, entry)? {
            return Ok(Err(different(self.store.cache_ref(&key)?.to_string(), other)));
        }
        Ok(Ok(Work { output, origin: Origin::Executed, whole: None }))
    }

    /// Stores a run that is new, and what its phases made. A finding says that the same state gave another result before.
    pub fn store_new(
        &mut self,
        admitted: &Admitted<'_>,
        mut batch: Batch<'_>,
        whole: &Whole,
        tip: Oid,
    ) -> Result<Option<Finding>, PipelineError> {
        write_snapshot(&mut batch, self.store, admitted.inputs)?;
        let entries = self.write_fresh(admitted, &mut batch, whole)?;
        batch.publish(Durability::Full)?;
        for (key, entry) in entries {
            if let Some(other) = self.store.create_entry(&key, entry)? {
                return Ok(Some(different(self.store.cache_ref(&key)?.to_string(), other)));
            }
        }
        let other = self.store.create_run(&self.state_key, &self.executor_key, tip)?;
        let name = self.store.run_ref(&self.state_key, &self.executor_key)?;
        if other.is_none() {
            self.store.note_worked_out(&tip, &self.state_key, &self.executor_key);
        }
        Ok(other.map(|other| different(name.to_string(), other)))
    }

    /// Writes the entries of what the phases after GEN made.
    fn write_fresh(
        &self,
        admitted: &Admitted<'_>,
        batch: &mut Batch<'_>,
        whole: &Whole,
    ) -> Result<Vec<(Digest, Oid)>, PipelineError> {
        let (evidence, mut entries) = (decision(admitted), Vec::new());
        for fresh in &whole.fresh {
            let meta = meta(&fresh.key, fresh.files.clone(), &evidence, BTreeMap::new());
            entries.push((meta.cache_key, self.store.write_entry(batch, &meta, &fresh.ids, &evidence)?));
        }
        Ok(entries)
    }

    /// Keeps what the phases made before one of them refused.
    pub fn store_fresh(&self, admitted: &Admitted<'_>, batch: &mut Batch<'a>, whole: &Whole) -> Result<(), PipelineError> {
        let entries = self.write_fresh(admitted, batch, whole)?;
        let full = std::mem::replace(batch, Batch::new(self.store)?);
        full.publish(Durability::Full)?;
        for (key, entry) in entries {
            // An entry that is there already was made by somebody who came to the same point; which of the two stays does not matter here,
            // because nothing is admitted.
            self.store.create_entry(&key, entry)?;
        }
        Ok(())
    }

    /// A stored run that cannot be believed: told, and its ref put aside.
    pub fn put_aside_run(&mut self, admitted: &Admitted<'_>, tip: Oid, finding: Finding) -> Result<(), PipelineError> {
        let name = self.store.run_ref(&admitted.state_key, &admitted.executor_key)?;
        self.refuse(&name, tip, finding)
    }

    /// A cache entry that cannot be believed: told, and its ref put aside.
    pub fn put_aside_entry(&mut self, admitted: &Admitted<'_>, finding: Finding) -> Result<(), PipelineError> {
        let name = self.store.cache_ref(&admitted.key.digest())?;
        match self.store.ref_target(&name)? {
            Some(tip) => self.refuse(&name, tip, finding),
            None => Ok(()),
        }
    }

    /// A stored run whose artifacts turned out not to be what it says.
    pub fn refuse_stored(&mut self, admitted: &Admitted<'_>, finding: Finding) -> Result<(), PipelineError> {
        self.tail.clear();
        match self.store.run_tip(&admitted.state_key, &admitted.executor_key)? {
            Some(tip) => self.put_aside_run(admitted, tip, finding),
            None => {
                self.findings.push(Finding { severity: Severity::Warning, ..finding });
                Ok(())
            }
        }
    }

    fn refuse(&mut self, name: &crate::store::refs::RefName, tip: Oid, finding: Finding) -> Result<(), PipelineError> {
        let mut finding = Finding { severity: Severity::Warning, ..finding };
        if self.mode == Mode::Run {
            let aside = self.store.put_aside(name, tip)?;
            finding.hint = Some(format!("it was put aside as {aside}, and is not used"));
        }
        self.findings.push(finding);
        Ok(())
    }
}

/// The decision that let GEN start, which a cache entry keeps.
fn decision(admitted: &Admitted<'_>) -> Evidence {
    let gates = admitted.gates.reached.iter().flat_map(|gate| gate.evidence.clone());
    gates.filter(|(path, _)| EVIDENCE.contains(&path.as_str())).collect()
}

/// What a cache entry says about itself.
fn meta(key: &CacheKey, artifacts: Vec<FileEntry>, evidence: &Evidence, tool_versions: BTreeMap<String, String>) -> CacheMeta {
    CacheMeta {
        schema_version: SCHEMA_VERSION.into(),
        cache_key: key.digest(),
        key_data: key.clone(),
        artifacts,
        evidence: evidence.iter().map(|(path, bytes)| (path.as_str().to_owned(), Digest::of(bytes))).collect(),
        tool_versions,
    }
}

/// The same key gave something else before.
fn different(name: String, other: Oid) -> Finding {
    let message = format!(
        "the same state and executor gave another result before: {name} is {}, this result is kept nowhere",
        other.to_hex_with_len(12)
    );
    Finding::error(Code::NonDeterministic, message)
        .at(name)
        .hint("find what the generator depends on beside its inputs, and pin it")
}
