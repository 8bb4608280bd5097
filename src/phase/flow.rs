//! FLOW: the final package, made of the accepted artifacts.
//!
//! Reads: the selection, the artifacts; the pipeline's `flow`.
//! Writes: the package's files; `execution/flow/manifest.json`.
//! Stops when: no rule places an accepted artifact, or two files want one place.

use std::collections::BTreeSet;

use super::Evidence;
use crate::artifact::layout::{self, default_layout, lay_out};
use crate::document::digest::Digest;
use crate::document::finding::Finding;
use crate::document::flow_manifest::FlowManifest;
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::pipeline::Pipeline;
use crate::document::selection::Selection;
use crate::gate::paths::reserved;

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// Where the manifest goes.
pub const MANIFEST_PATH: &str = "execution/flow/manifest.json";

/// What the phase works on.
pub struct Input<'a> {
    /// The declaration.
    pub pipeline: &'a Pipeline,
    /// Which artifacts are accepted.
    pub selection: &'a Selection,
    /// The artifacts.
    pub artifacts: &'a [FileEntry],
    /// Every file of the snapshot: the package takes the place of none.
    pub inputs: &'a BTreeSet<RepoPath>,
}

/// Lays the package out.
pub fn run(input: &Input) -> Result<FlowManifest, Vec<Finding>> {
    let kept: BTreeSet<&RepoPath> = input.selection.kept().map(|selected| &selected.path).collect();
    let kept: Vec<FileEntry> = input.artifacts.iter().filter(|file| kept.contains(&file.path)).cloned().collect();
    let layout = input.pipeline.flow.as_ref().map_or_else(default_layout, |flow| flow.layout.clone());
    let inputs: BTreeSet<String> = input.inputs.iter().map(RepoPath::fold_key).collect();
    let is_input = |path: &RepoPath| inputs.contains(&path.fold_key());
    let taken = |path: &RepoPath| reserved(path).or_else(|| is_input(path).then_some("an input of the run lies there"));
    lay_out(&layout::Input {
        kept: &kept,
        artifacts: &input.artifacts.iter().map(|file| file.path.clone()).collect(),
        layout: &layout,
        reserved: &taken,
    })
}

/// What the manifest is emitted as.
pub fn emitted(manifest: &FlowManifest) -> Evidence {
    Evidence::from([(super::path(MANIFEST_PATH), json::emit(manifest))])
}

/// The digest of the layout.
pub fn config_hash(pipeline: &Pipeline) -> Digest {
    Digest::of_canonical(&serde_json::json!({ "flow": pipeline.flow }))
}
