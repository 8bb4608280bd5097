//! A stored run's GEN, executed again: whether the same executor still makes the same artifacts from the same snapshot.
//!
//! Nothing is written, and nothing is taken from the cache: not the run's own output, and no artifact of an earlier one.

use std::collections::BTreeMap;

use super::PipelineError;
use super::inputs::{self, ExecutorSource, From};
use super::judge::Remembering;
use super::repeat;
use super::reuse::{self, document};
use super::step::{Admitted, Documents, gates};
use crate::document::capsule::Capsule;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::gen_exchange::{GenReport, OutputsManifest};
use crate::document::inputs_manifest::FileEntry;
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::schema::Kind;
use crate::executor::external::Host;
use crate::gate::paths::{CAPSULE_PATH, EXECUTOR_CONFIG_PATH, SNAPSHOT_FOLDER};
use crate::phase::r#gen::{self, OUTPUTS_PATH, REPORT_PATH};
use crate::phase::path;
use crate::policy::Cage;
use crate::store::{Oid, Store};

/// How many commits of a run are looked through for an artifact as GEN made it: later phases may have changed it.
const MAX_COMMITS: usize = 32;

/// What is executed again, and where.
pub struct Rerun<'a> {
    /// The run: a phase commit from GEN on.
    pub run: Oid,
    /// Where policies are evaluated: only an admitted state is executed.
    pub cage: &'a Cage,
    /// What of this machine an executor that is a program of its own needs.
    pub host: &'a Host<'a>,
}

/// Executes GEN again from a stored run's own snapshot, with the executor that its capsule names. The findings are errors: in what the artifacts differ
/// from those that the run's GEN handed on, each with a diff where both are text; or why it could not be executed. None if it did the same.
pub fn rerun(store: &Store, asked: &Rerun<'_>) -> Result<Vec<Finding>, PipelineError> {
    let short = asked.run.to_hex_with_len(12).to_string();
    let refuse = |why: String| vec![Finding::error(Code::RunInvalid, format!("the run {short} cannot be executed again: {why}"))];
    let tree = store.tree_of(&asked.run)?;
    let read = || -> Result<(Capsule, OutputsManifest, GenReport), String> {
        Ok((
            document(store, &tree, Kind::Capsule, CAPSULE_PATH)?.document,
            document(store, &tree, Kind::OutputsManifest, OUTPUTS_PATH)?.document,
            document(store, &tree, Kind::ExecutorReport, REPORT_PATH)?.document,
        ))
    };
    let (capsule, outputs, report) = match read() {
        Ok(read) => read,
        Err(why) => return Ok(refuse(why)),
    };
    let Some(snapshot) = store.subtree(&tree, &path(SNAPSHOT_FOLDER))? else { return Ok(refuse("it has no snapshot".into())) };
    let source = match &capsule.gen_executor.config {
        Some(config) => ExecutorSource::File(EXECUTOR_CONFIG_PATH.to_owned(), json::emit(config)),
        None => ExecutorSource::Repository,
    };
    let inputs = inputs::take(store, From::Tree(snapshot), &source)?;
    if inputs.executor.key() != capsule.gen_executor.key() {
        let message = format!("the executor of the run {short} is not the one that its configuration comes to here");
        let finding =
            Finding::error(Code::ExecutorUnavailable, message).expected(capsule.gen_executor.key(), inputs.executor.key());
        return Ok(vec![finding.hint("install the programs that it was made with, and the same version of git cbia")]);
    }
    let mut judge = Remembering::new(store, asked.cage);
    let gates = gates(&inputs, &mut judge);
    let (Some(admission), Ok(pipeline), Some(documents)) = (&gates.admission, &inputs.pipeline, Documents::of(&inputs, &gates))
    else {
        let refused = gates.findings.into_iter().filter(|finding| finding.severity == Severity::Error);
        return Ok(refuse("its state is not admitted".into()).into_iter().chain(refused).collect());
    };
    let input = r#gen::Input {
        admission,
        authority_ledger_hash: documents.ledger.sha256,
        pipeline: &pipeline.document,
        manifest: &inputs.manifest,
    };
    let admitted = Admitted {
        store,
        inputs: &inputs,
        documents,
        gates: &gates,
        input: &input,
        key: &r#gen::key(&input),
        state_key: inputs.state_key(),
        executor_key: inputs.executor.key(),
    };
    let contents = inputs.manifest_contents(store)?;
    let produced = match reuse::perform(&admitted, asked.host, &contents, None, &mut judge).0.produced {
        Ok(produced) => produced,
        Err(findings) => return Ok(findings),
    };
    let stored: Vec<FileEntry> =
        outputs.artifacts.into_iter().map(|a| FileEntry { path: a.path, sha256: a.sha256, bytes: a.bytes }).collect();
    let trees = trees(store, asked.run);
    let mut findings = repeat::against(&stored, &|file| as_made(store, &trees, file), &produced);
    let undeclared = |path: &&RepoPath| stored.iter().all(|file| file.path != **path);
    findings.extend(produced.artifacts.keys().filter(undeclared).map(|path| {
        Finding::error(Code::NonDeterministic, format!("this execution made {path}, which the run does not have")).at(path)
    }));
    if findings.is_empty() && report.tool_versions != produced.tool_versions {
        let message = format!("this execution reports other tool_versions than the run {short}");
        let spelled = |tools: &BTreeMap<String, String>| json::to_value(tools).to_string();
        let finding = Finding::error(Code::NonDeterministic, message).at(REPORT_PATH);
        findings.push(finding.expected(spelled(&report.tool_versions), spelled(&produced.tool_versions)));
    }
    Ok(findings)
}

/// The trees of a run's commits, the newest first.
fn trees(store: &Store, tip: Oid) -> Vec<Oid> {
    let mut next = Some(tip);
    let mut trees = Vec::new();
    while let Some(commit) = next.take().and_then(|id| store.read_commit(&id).ok()).filter(|_| trees.len() < MAX_COMMITS) {
        trees.push(commit.tree);
        next = commit.parents.first().copied();
    }
    trees
}

/// The bytes of an artifact as GEN made it, where one of the run's commits has them.
fn as_made(store: &Store, trees: &[Oid], file: &FileEntry) -> Option<Vec<u8>> {
    let blob = |tree: &Oid| store.read_blob(&store.lookup(tree, &file.path).ok()??, file.bytes).ok();
    trees.iter().filter_map(blob).find(|bytes| Digest::of(bytes) == file.sha256)
}
