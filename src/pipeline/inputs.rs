//! The snapshot: everything a run reads, taken before anything is decided.
//!
//! From here on a run reads this and nothing else, so that there is no window between check and use.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::PipelineError;
use crate::document::audit_bundle::AuditManifest;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::digest::Digest;
use crate::document::executor::GenExecutor;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::glob::Globs;
use crate::document::graph::{DependencyGraph, ExecutionDag};
use crate::document::inputs_manifest::{FileEntry, InputsManifest};
use crate::document::objectives::Objective;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::{Artifact, Pipeline};
use crate::document::schema::{Kind, Sealed, load};
use crate::executor::resolve;
use crate::gate::Files;
use crate::gate::authority::{LEDGER_PATH, OBJECTIVES_PATH};
use crate::gate::order::{DAG_PATH, GRAPH_PATH};
use crate::gate::paths::{
    AUDIT_MANIFEST_PATH, CAPSULE_SCHEMA_PATH, EXECUTOR_CONFIG_PATH, EXECUTORS_FOLDER, PIPELINE_PATH, TEMPLATES_FOLDER,
    is_always_read, is_bundle_member, is_evidence, is_selection_policy,
};
use crate::phase::path;
use crate::policy::{Bundle, PolicyFile};
use crate::store::snapshot::{Scan, ScanLimits, SourceFile, Wanted};
use crate::store::{Oid, Store};

/// Where the inputs are read from.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// The work tree.
    WorkTree,
    /// The tree of a commit.
    Tree(Oid),
}

/// Where the executor's configuration is read from.
#[derive(Clone, Debug)]
pub enum ExecutorSource {
    /// `control/runtime/gen_executor.json`, beside the other inputs; the built-in generator where there is none.
    Repository,
    /// A file that the environment names: what messages call it, and its bytes.
    File(String, Vec<u8>),
    /// An executor that was resolved before, as a stored run's capsule holds it.
    Resolved(Box<GenExecutor>),
}

/// A document, or why it cannot be read.
pub type Read<T> = Result<T, Vec<Finding>>;

/// The snapshot, with its documents read.
pub struct Inputs {
    /// Every file, by path.
    pub files: BTreeMap<RepoPath, SourceFile>,
    /// The same, as paths.
    pub paths: BTreeSet<RepoPath>,
    contents: BTreeMap<RepoPath, Vec<u8>>,
    /// What stands against the snapshot itself.
    pub findings: Vec<Finding>,
    /// The authority ledger.
    pub ledger: Read<Sealed<AuthorityLedger>>,
    /// The objectives.
    pub objectives: Read<Sealed<Vec<Objective>>>,
    /// The dependency graph, if declared.
    pub graph: Read<Option<Sealed<DependencyGraph>>>,
    /// The execution DAG, if declared.
    pub dag: Read<Option<Sealed<ExecutionDag>>>,
    /// The pipeline.
    pub pipeline: Read<Sealed<Pipeline>>,
    /// The policies.
    pub bundle: Read<Bundle>,
    /// Path and digest of every file that `policy_bundle_hash` covers.
    pub bundle_files: Vec<(RepoPath, Digest)>,
    /// The policies that SELECT may ask.
    pub selection: Read<Bundle>,
    /// What an audit needs, where the repository says so.
    pub audit: Read<Option<Sealed<AuditManifest>>>,
    /// The resolved executor. The built-in one stands in where the configuration cannot be read, which is a finding.
    pub executor: GenExecutor,
    /// What GEN may see.
    pub manifest: InputsManifest,
    places: OnceLock<Places>,
}

/// Where something stands in the documents, so that asking about every artifact takes no time that grows with their square.
#[derive(Default)]
struct Places {
    artifacts: HashMap<RepoPath, usize>,
    objectives: HashMap<String, usize>,
}

impl Files for Inputs {
    fn sha256(&self, path: &RepoPath) -> Option<Digest> {
        self.files.get(path).map(|file| file.sha256)
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        self.contents.get(path).map(|bytes| bytes.as_slice().into())
    }
}

impl Inputs {
    /// Listing hash of the snapshot.
    pub fn state_key(&self) -> Digest {
        key(&self.files)
    }

    /// Listing hash of the policies that decide.
    pub fn policy_bundle_hash(&self) -> Digest {
        Digest::of_listing(self.bundle_files.iter().map(|(path, digest)| (path, *digest)))
    }

    /// The artifact that is declared at a path.
    pub fn artifact(&self, path: &RepoPath) -> Option<&Artifact> {
        let at = *self.places().artifacts.get(path)?;
        self.pipeline.as_ref().ok()?.document.r#gen.artifacts.get(at)
    }

    /// The objective of this name, and the same with every member it had.
    pub fn objective(&self, id: &str) -> Option<(&Objective, &Value)> {
        let at = *self.places().objectives.get(id)?;
        let objectives = self.objectives.as_ref().ok()?;
        objectives.document.get(at).zip(objectives.value.get(at))
    }

    fn places(&self) -> &Places {
        self.places.get_or_init(|| {
            let artifacts = self.pipeline.iter().flat_map(|pipeline| &pipeline.document.r#gen.artifacts);
            let objectives = self.objectives.iter().flat_map(|objectives| &objectives.document);
            let mut places = Places::default();
            for (at, artifact) in artifacts.enumerate() {
                places.artifacts.entry(artifact.path.clone()).or_insert(at);
            }
            for (at, objective) in objectives.enumerate() {
                places.objectives.entry(objective.id.clone()).or_insert(at);
            }
            places
        })
    }

    /// Whether the run has a phase: an execution DAG may leave some out, and cannot leave out the indispensable ones.
    pub fn declares(&self, phase: Phase) -> bool {
        match &self.dag {
            _ if phase.is_indispensable() => true,
            Ok(Some(dag)) => dag.document.phases.iter().any(|name| name == phase.as_str()),
            Ok(None) | Err(_) => true,
        }
    }

    /// The bytes of every schema that the pipeline names and that is there.
    pub fn schemas(&self, store: &Store) -> Result<BTreeMap<RepoPath, Vec<u8>>, PipelineError> {
        let rules = self.pipeline.iter().flat_map(|p| p.document.check.iter()).flat_map(|check| &check.schemas);
        let mut schemas = BTreeMap::new();
        for rule in rules {
            if let (Some(file), false) = (self.files.get(&rule.schema), schemas.contains_key(&rule.schema)) {
                schemas.insert(rule.schema.clone(), store.content(file)?);
            }
        }
        Ok(schemas)
    }

    /// Listing hash of the policies that SELECT may ask.
    pub fn selection_policies(&self) -> Digest {
        let files = self.files.iter().filter(|(path, _)| is_selection_policy(path));
        Digest::of_listing(files.map(|(path, file)| (path, file.sha256)))
    }

    /// The bytes of every file that GEN may see.
    pub fn manifest_contents(&self, store: &Store) -> Result<BTreeMap<RepoPath, Vec<u8>>, PipelineError> {
        let mut contents = BTreeMap::new();
        for entry in &self.manifest.files {
            if let Some(file) = self.files.get(&entry.path) {
                contents.insert(entry.path.clone(), store.content(file)?);
            }
        }
        Ok(contents)
    }
}

/// The key of a tree's state, by what its documents name: the patterns of inputs, and the files of authorities and templates. `None` where something
/// stands against one of its files. None of them is read whose hash is known already.
pub fn key_of(
    store: &Store,
    tree: Oid,
    globs: &Globs,
    named: impl IntoIterator<Item = RepoPath>,
) -> Result<Option<Digest>, PipelineError> {
    let from = From::Tree(tree);
    let Scan { mut files, mut findings } = always(store, from)?;
    files.remove(&path(EXECUTOR_CONFIG_PATH));
    let exact = beyond(named, &files);
    findings.extend(beside(store, from, globs, &exact, &mut files)?);
    findings.extend(collisions(&files));
    Ok(findings.is_empty().then(|| key(&files)))
}

/// What is named, and neither read in any case nor never.
fn beyond(named: impl IntoIterator<Item = RepoPath>, files: &BTreeMap<RepoPath, SourceFile>) -> Vec<RepoPath> {
    let mut exact: BTreeSet<RepoPath> = named.into_iter().collect();
    exact.retain(|path| !files.contains_key(path) && !is_evidence(path) && path.as_str() != EXECUTOR_CONFIG_PATH);
    exact.into_iter().collect()
}

fn key(files: &BTreeMap<RepoPath, SourceFile>) -> Digest {
    Digest::of_listing(files.iter().map(|(path, file)| (path, file.sha256)))
}

fn scan(store: &Store, from: From, wanted: &Wanted<'_>) -> Result<Scan, PipelineError> {
    Ok(match from {
        From::WorkTree => store.scan_worktree(wanted, ScanLimits::default())?,
        From::Tree(tree) => store.scan_commit(tree, wanted, ScanLimits::default())?,
    })
}

/// What every run reads, and the executor's configuration.
fn always(store: &Store, from: From) -> Result<Scan, PipelineError> {
    let globs = Globs::new(["control/**", "policy/**", "schemas/**", AUDIT_MANIFEST_PATH]).unwrap_or_else(|_| empty());
    let exact = [path(EXECUTOR_CONFIG_PATH)];
    scan(store, from, &Wanted { globs: &globs, exact: &exact, exclude: &|path| !is_always_read(path) })
}

/// Adds what the documents name beside that to `files`; what stands against it.
fn beside(
    store: &Store,
    from: From,
    globs: &Globs,
    exact: &[RepoPath],
    files: &mut BTreeMap<RepoPath, SourceFile>,
) -> Result<Vec<Finding>, PipelineError> {
    if globs.patterns().is_empty() && exact.is_empty() {
        return Ok(Vec::new());
    }
    let exclude = |path: &RepoPath| is_evidence(path) || path.as_str() == EXECUTOR_CONFIG_PATH;
    let scanned = scan(store, from, &Wanted { globs, exact, exclude: &exclude })?;
    files.extend(scanned.files.into_iter().filter(|(path, _)| !is_evidence(path)));
    Ok(scanned.findings)
}

/// Takes the snapshot.
pub fn take(store: &Store, from: From, executor: &ExecutorSource) -> Result<Inputs, PipelineError> {
    let mut findings = Vec::new();
    let Scan { mut files, findings: first } = always(store, from)?;
    findings.extend(first);
    let config = files.remove(&path(EXECUTOR_CONFIG_PATH));

    let mut contents = BTreeMap::new();
    for (path, file) in &files {
        const DOCUMENTS: [&str; 7] =
            [LEDGER_PATH, OBJECTIVES_PATH, GRAPH_PATH, DAG_PATH, PIPELINE_PATH, CAPSULE_SCHEMA_PATH, AUDIT_MANIFEST_PATH];
        if DOCUMENTS.contains(&path.as_str()) || is_bundle_member(path) || is_selection_policy(path) {
            contents.insert(path.clone(), store.content(file)?);
        }
    }
    let ledger = required::<AuthorityLedger>(Kind::AuthorityLedger, LEDGER_PATH, &contents);
    let objectives = required::<Vec<Objective>>(Kind::Objectives, OBJECTIVES_PATH, &contents);
    let pipeline = required::<Pipeline>(Kind::Pipeline, PIPELINE_PATH, &contents);
    let graph = optional::<DependencyGraph>(Kind::DependencyGraph, GRAPH_PATH, &contents);
    let dag = optional::<ExecutionDag>(Kind::ExecutionDag, DAG_PATH, &contents);
    let selection = Bundle::new(policies(&contents, &is_selection_policy));
    let audit = optional::<AuditManifest>(Kind::AuditManifest, AUDIT_MANIFEST_PATH, &contents);

    let (globs, exact) = further(&ledger, &pipeline, &files, &mut findings);
    // The second scan repeats what the first already said of files that both cover.
    let more = beside(store, from, &globs, &exact, &mut files)?;
    findings.extend(more.into_iter().filter(|f| !findings.contains(f)).collect::<Vec<_>>());
    findings.extend(collisions(&files));
    findings.extend(audit.as_ref().err().cloned().unwrap_or_default());
    findings.extend(selection.as_ref().err().cloned().unwrap_or_default());
    let quoted = |objective: &Objective| objective.source.evidence.iter().any(|e| e.quote.is_some());
    if objectives.as_ref().is_ok_and(|o| o.document.iter().any(quoted)) {
        for authority in ledger.iter().flat_map(|l| &l.document.authority_set).filter_map(|a| a.file()) {
            if let (Some(file), false) = (files.get(&authority), contents.contains_key(&authority)) {
                contents.insert(authority, store.content(file)?);
            }
        }
    }

    let bundle_files: Vec<(RepoPath, Digest)> =
        files.iter().filter(|(path, _)| is_bundle_member(path)).map(|(path, file)| (path.clone(), file.sha256)).collect();
    let bundle = Bundle::new(policies(&contents, &is_bundle_member));
    let manifest = manifest(&files, &ledger, &pipeline);
    let seen: BTreeMap<&RepoPath, Digest> = manifest.files.iter().map(|file| (&file.path, file.sha256)).collect();
    let snapshot = resolve::Snapshot { seen: &|path| seen.get(path).copied(), known: &|path| files.contains_key(path) };
    let executor = resolve_executor(store, executor, config.as_ref(), &snapshot, &mut findings)?;
    let paths = files.keys().cloned().collect();
    Ok(Inputs {
        files,
        paths,
        contents,
        findings,
        ledger,
        objectives,
        graph,
        dag,
        pipeline,
        bundle,
        bundle_files,
        selection,
        audit,
        executor,
        manifest,
        places: OnceLock::new(),
    })
}

/// The policy files among `contents`. Documentation beside them is hashed with the bundle but shown to nobody; data files are given to the
/// bundle, which refuses them.
fn policies(contents: &BTreeMap<RepoPath, Vec<u8>>, member: &dyn Fn(&RepoPath) -> bool) -> Vec<PolicyFile> {
    let read = |path: &RepoPath| [".rego", ".json", ".yaml", ".yml"].iter().any(|end| path.as_str().ends_with(end));
    let files = contents.iter().filter(|(path, _)| member(path) && read(path));
    files.map(|(path, text)| PolicyFile { path: path.clone(), text: text.clone() }).collect()
}

fn empty() -> Globs {
    #[expect(clippy::expect_used, reason = "an empty set of patterns always compiles")]
    Globs::new(Vec::<String>::new()).expect("no patterns")
}

fn required<T: DeserializeOwned>(kind: Kind, at: &'static str, contents: &BTreeMap<RepoPath, Vec<u8>>) -> Read<Sealed<T>> {
    match optional(kind, at, contents)? {
        Some(document) => Ok(document),
        None => {
            let finding =
                Finding::error(Code::DocumentMissing, format!("there is no {}: {at} is missing or ignored by git", kind.title()));
            Err(vec![finding.at(at).hint("git cbia init writes a small working pipeline")])
        }
    }
}

fn optional<T: DeserializeOwned>(
    kind: Kind,
    at: &'static str,
    contents: &BTreeMap<RepoPath, Vec<u8>>,
) -> Read<Option<Sealed<T>>> {
    let at = path(at);
    contents.get(&at).map(|bytes| load(kind, &at, bytes)).transpose()
}

/// What the ledger and the pipeline name beyond what every run reads.
fn further(
    ledger: &Read<Sealed<AuthorityLedger>>,
    pipeline: &Read<Sealed<Pipeline>>,
    files: &BTreeMap<RepoPath, SourceFile>,
    findings: &mut Vec<Finding>,
) -> (Globs, Vec<RepoPath>) {
    let authorities = ledger.iter().flat_map(|l| &l.document.authority_set).filter_map(|a| a.file());
    let templates = pipeline.iter().flat_map(|p| &p.document.r#gen.artifacts).filter_map(|a| a.template.clone());
    let exact = beyond(authorities.chain(templates), files);
    let mut globs = empty();
    if let Ok(pipeline) = pipeline {
        match Globs::new(&pipeline.document.inputs) {
            Ok(inputs) => globs = inputs,
            Err(error) => findings.push(
                Finding::error(Code::PatternInvalid, error.to_string()).at(PIPELINE_PATH).hint("mend the pattern in inputs"),
            ),
        }
    }
    (globs, exact)
}

fn collisions(files: &BTreeMap<RepoPath, SourceFile>) -> Vec<Finding> {
    let mut seen: BTreeMap<String, &RepoPath> = BTreeMap::new();
    let mut findings = Vec::new();
    for path in files.keys() {
        if let Some(other) = seen.insert(path.fold_key(), path) {
            let message = format!("{other} and {path} are one file on a case-insensitive file system");
            findings.push(Finding::error(Code::PathCollision, message).at(path).hint("rename one of them"));
        }
    }
    findings
}

fn resolve_executor(
    store: &Store,
    source: &ExecutorSource,
    config: Option<&SourceFile>,
    snapshot: &resolve::Snapshot<'_>,
    findings: &mut Vec<Finding>,
) -> Result<GenExecutor, PipelineError> {
    let (name, bytes) = match (source, config) {
        (ExecutorSource::Resolved(executor), _) => return Ok((**executor).clone()),
        (ExecutorSource::File(name, bytes), _) => (name.clone(), bytes.clone()),
        (ExecutorSource::Repository, Some(file)) => (EXECUTOR_CONFIG_PATH.to_owned(), store.content(file)?),
        (ExecutorSource::Repository, None) => {
            // A configuration that git ignores would be left out in silence, and another executor run than the one that was named.
            let ignored = |f: &&mut Finding| f.severity == Severity::Warning && f.path.as_deref() == Some(EXECUTOR_CONFIG_PATH);
            if let Some(finding) = findings.iter_mut().find(ignored) {
                finding.severity = Severity::Error;
            }
            return Ok(resolve::builtin());
        }
    };
    let named = name.parse().unwrap_or_else(|_| path(EXECUTOR_CONFIG_PATH));
    match resolve::resolve(&named, &bytes, snapshot) {
        Ok((executor, refused)) => {
            findings.extend(refused);
            Ok(executor)
        }
        Err(refused) => {
            findings.extend(refused);
            Ok(resolve::builtin())
        }
    }
}

/// What GEN may see: the authorities, the objectives, the dependency graph, the templates, the executors, and what `inputs` matches.
fn manifest(
    files: &BTreeMap<RepoPath, SourceFile>,
    ledger: &Read<Sealed<AuthorityLedger>>,
    pipeline: &Read<Sealed<Pipeline>>,
) -> InputsManifest {
    let mut named: BTreeSet<RepoPath> = ledger.iter().flat_map(|l| &l.document.authority_set).filter_map(|a| a.file()).collect();
    let mut inputs = empty();
    if let Ok(pipeline) = pipeline {
        named.extend(pipeline.document.r#gen.artifacts.iter().filter_map(|a| a.template.clone()));
        inputs = Globs::new(&pipeline.document.inputs).unwrap_or_else(|_| empty());
    }
    named.extend([path(OBJECTIVES_PATH), path(GRAPH_PATH)]);
    let seen = |path: &RepoPath| {
        named.contains(path) || path.is_under(TEMPLATES_FOLDER) || path.is_under(EXECUTORS_FOLDER) || inputs.matches(path)
    };
    let entry = |(path, file): (&RepoPath, &SourceFile)| FileEntry { path: path.clone(), sha256: file.sha256, bytes: file.bytes };
    InputsManifest::new(files.iter().filter(|(path, _)| seen(path)).map(entry).collect())
}
