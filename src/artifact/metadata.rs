//! STRUCT's metadata: for every artifact where it comes from.

use std::collections::BTreeMap;

use crate::document::SCHEMA_VERSION;
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::{OutputArtifact, OutputsManifest};
use crate::document::inputs_manifest::FileEntry;
use crate::document::metadata::{ArtifactMetadata, ExecutorIdentity, Metadata};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;

/// What the metadata is drawn from.
pub struct Input<'a> {
    /// The artifacts as they are now, in any order.
    pub artifacts: &'a [FileEntry],
    /// What GEN produced, and what each stands for.
    pub outputs: &'a OutputsManifest,
    /// The capsule that admitted the run.
    pub capsule: &'a Capsule,
    /// SHA-256 of its emitted bytes.
    pub capsule_hash: Digest,
    /// What the executor reported as its tools.
    pub tool_versions: &'a BTreeMap<String, String>,
}

/// The metadata. Refused where an artifact has no objective or no authority, or draws from an authority whose bytes the capsule does
/// not pin: an artifact without provenance is not structured.
pub fn attach(input: &Input) -> Result<Metadata, Vec<Finding>> {
    let Input { artifacts, outputs, capsule, capsule_hash, tool_versions } = input;
    let known: BTreeMap<&RepoPath, &OutputArtifact> = outputs.artifacts.iter().map(|o| (&o.path, o)).collect();
    let (mut attached, mut findings) = (Vec::new(), Vec::new());
    for file in *artifacts {
        let mut missing = |what: String| {
            let message = format!("nothing says where the artifact {} comes from: {what}", file.path);
            findings.push(Finding::error(Code::ProvenanceMissing, message).at(&file.path).hint("run again"));
        };
        let Some(output) = known.get(&file.path) else {
            missing("GEN did not produce it".into());
            continue;
        };
        if output.objectives.is_empty() {
            missing("it has no objective".into());
        }
        if output.authorities.is_empty() {
            missing("it has no authority".into());
        }
        for id in output.authorities.iter().filter(|id| !capsule.authority_set_hashes.contains_key(*id)) {
            missing(format!("the capsule does not pin the authority {}", crate::document::path::printable(id)));
        }
        attached.push(ArtifactMetadata {
            path: file.path.clone(),
            sha256: file.sha256,
            bytes: file.bytes,
            generated_sha256: output.sha256,
            objectives: output.objectives.clone(),
            authorities: output.authorities.clone(),
        });
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    attached.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Metadata {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Struct,
        pre_gen_capsule_hash: *capsule_hash,
        policy_bundle_hash: capsule.policy_bundle_hash,
        inputs_manifest_hash: capsule.inputs_manifest_hash,
        executor: ExecutorIdentity {
            kind: capsule.gen_executor.kind,
            version: capsule.gen_executor.version.clone(),
            executor_key: capsule.gen_executor.key(),
            runner_version: capsule.gen_executor.runner_version.clone(),
        },
        tool_versions: (*tool_versions).clone(),
        authorities: capsule.authority_set_hashes.clone(),
        artifacts: attached,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{path, told};
    use super::*;
    use crate::document::json;
    use crate::document::schema::{Kind, validate};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn attached(damage: impl FnOnce(&mut Vec<FileEntry>, &mut OutputsManifest, &mut Capsule)) -> Result<Metadata, Vec<String>> {
        let file = |at: &str| FileEntry { path: path(at), sha256: digest(at), bytes: 1 };
        let output = |at: &str| OutputArtifact {
            path: path(at),
            sha256: digest("as generated"),
            bytes: 2,
            objectives: vec!["O-2".into(), "O-1".into()],
            authorities: vec!["A-1".into()],
        };
        let hash = digest("h").to_string();
        let mut capsule: Capsule = serde_json::from_value(serde_json::json!({
            "schema_version": "0.1.0", "kernel_decision": "ALLOW", "control_state_hash": hash, "policy_bundle_hash": digest("policy"),
            "authority_set_hashes": { "A-1": digest("authority") }, "inputs_manifest_hash": hash, "dependency_graph_hash": null,
            "execution_dag_hash": null,
            "gen_executor": { "kind": "builtin", "version": "3", "runner_version": "4", "config": null },
        }))
        .unwrap();
        let mut files = vec![file("b"), file("a")];
        let artifacts = vec![output("a"), output("b"), output("pruned")];
        let mut outputs = OutputsManifest { schema_version: "0.1.0".into(), phase: Phase::Gen, artifacts };
        damage(&mut files, &mut outputs, &mut capsule);
        let tool_versions = BTreeMap::from([("generator".to_owned(), "5".to_owned())]);
        let input = Input {
            artifacts: &files,
            outputs: &outputs,
            capsule: &capsule,
            capsule_hash: digest("capsule"),
            tool_versions: &tool_versions,
        };
        attach(&input).map_err(|findings| told(&findings))
    }

    #[test]
    fn every_artifact_is_given_its_provenance() {
        let metadata = attached(|_, _, _| {}).unwrap();
        let bytes = json::emit(&metadata);
        let value = json::parse(&bytes).unwrap();
        assert_eq!(validate(Kind::Metadata, "m", &bytes, &value), []);
        assert_eq!(value["artifacts"].as_array().unwrap().len(), 2);
        let wanted = serde_json::json!({
            "path": "a", "sha256": digest("a"), "bytes": 1, "generated_sha256": digest("as generated"), "objectives": ["O-2", "O-1"],
            "authorities": ["A-1"],
        });
        assert_eq!(value["artifacts"][0], wanted);
        assert_eq!(value["executor"]["version"], "3");
        assert_eq!(value["executor"]["runner_version"], "4");
        assert_eq!(value["tool_versions"]["generator"], "5");
        assert_eq!(value["authorities"]["A-1"], digest("authority").to_string());
        assert_eq!(value["pre_gen_capsule_hash"], digest("capsule").to_string());
        assert_eq!(value["policy_bundle_hash"], digest("policy").to_string());
        assert_eq!(metadata, attached(|files, outputs, _| (files.reverse(), outputs.artifacts.reverse()).1).unwrap());
    }

    #[test]
    fn an_artifact_without_provenance_is_refused() {
        type Damage = fn(&mut Vec<FileEntry>, &mut OutputsManifest, &mut Capsule);
        let cases: &[(Damage, &[&str])] = &[
            (|_, outputs, _| drop(outputs.artifacts.remove(0)), &["provenance-missing a"]),
            (|_, outputs, _| outputs.artifacts[1].objectives.clear(), &["provenance-missing b"]),
            (|_, outputs, _| outputs.artifacts[1].authorities.clear(), &["provenance-missing b"]),
            (|_, _, capsule| capsule.authority_set_hashes.clear(), &["provenance-missing b", "provenance-missing a"]),
        ];
        for (index, (damage, wanted)) in cases.iter().enumerate() {
            assert_eq!(attached(damage).unwrap_err(), *wanted, "case {index}");
        }
    }
}
