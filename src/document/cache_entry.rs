//! `control/cache/cache_key.schema.json` and `cache.meta.json`: the key of a phase's output, and what is stored under it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::inputs_manifest::FileEntry;
use super::phase::Phase;

/// Everything a phase's output depends on. The key is the canonical hash of this document; `docs/cache.md`
/// explains each component.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheKey {
    /// Version of this format.
    pub schema_version: String,
    /// The phase.
    pub phase: Phase,
    /// The phase's `VERSION`.
    pub phase_version: u32,
    /// SHA-256 of the authority ledger's file.
    pub authority_ledger_hash: Digest,
    /// Listing hash of the policies.
    pub policy_bundle_hash: Digest,
    /// SHA-256 of the emitted capsule.
    pub pre_gen_capsule_hash: Digest,
    /// Listing hash of what GEN may see.
    pub inputs_manifest_hash: Digest,
    /// What the previous phase handed over; null for GEN, whose input is the manifest.
    pub phase_input_hash: Option<Digest>,
    /// Canonical hash of the phase's own configuration.
    pub phase_config_hash: Digest,
    /// Versions of the tools that the output depends on.
    pub tool_versions: ToolVersions,
}

/// Versions of the tools that a phase's output depends on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolVersions {
    /// The program that runs the pipeline.
    pub runner_version: String,
    /// The generator.
    pub generator_version: String,
}

impl CacheKey {
    /// The key itself.
    pub fn digest(&self) -> Digest {
        Digest::of_document(self)
    }

    /// The components in which two keys differ, as (name, in `self`, in `other`).
    pub fn differences(&self, other: &CacheKey) -> Vec<(String, String, String)> {
        fn flatten(prefix: &str, value: &serde_json::Value, into: &mut BTreeMap<String, String>) {
            match value {
                serde_json::Value::Object(members) => members.iter().for_each(|(name, value)| {
                    let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    flatten(&name, value, into);
                }),
                serde_json::Value::String(text) => drop(into.insert(prefix.to_owned(), text.clone())),
                value => drop(into.insert(prefix.to_owned(), value.to_string())),
            }
        }
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &super::json::to_value(self), &mut ours);
        flatten("", &super::json::to_value(other), &mut theirs);
        let differing = ours.iter().filter(|(name, value)| theirs.get(*name) != Some(*value));
        differing.map(|(name, value)| (name.clone(), value.clone(), theirs.get(name).cloned().unwrap_or_default())).collect()
    }
}

/// `cache.meta.json`: what a cache entry holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheMeta {
    /// Version of this format.
    pub schema_version: String,
    /// The key it is stored under.
    pub cache_key: Digest,
    /// The document the key is the hash of.
    pub key_data: CacheKey,
    /// The artifacts, in byte order of path.
    pub artifacts: Vec<FileEntry>,
    /// SHA-256 of the OPA evidence stored beside them, by path.
    pub evidence: BTreeMap<String, Digest>,
    /// What the executor reported as its tools.
    pub tool_versions: BTreeMap<String, String>,
}
