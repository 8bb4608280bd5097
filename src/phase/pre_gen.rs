//! PRE_GEN: the control kernel. Everything that decides whether generation may happen is put together, checked mechanically, put before
//! `data.control.kernel.allow`, and sealed in the capsule.
//!
//! Reads: the ledger, objectives, dependency graph, execution DAG, pipeline, policies, the resolved executor, the inputs manifest.
//! Writes: `control/runtime/pre_gen_capsule.json` (ALLOW and DENY both), `execution/ledger/inputs.manifest.json`.
//! Stops when: a document cannot be read, a mechanical check refuses, the kernel policy does not say exactly `true`, or the capsule does not
//! satisfy its schema or the repository's own.

use std::collections::{BTreeMap, BTreeSet};

use super::{Assembled, Evidence, Judge, denial, opa_gate};
use crate::document::SCHEMA_VERSION;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::capsule::{Capsule, ControlState, KernelDecision};
use crate::document::digest::Digest;
use crate::document::executor::GenExecutor;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::graph::{DependencyGraph, ExecutionDag};
use crate::document::inputs_manifest::InputsManifest;
use crate::document::json;
use crate::document::objectives::Objective;
use crate::document::opa_input::{KernelInput, MechanicalFinding};
use crate::document::path::RepoPath;
use crate::document::pipeline::Pipeline;
use crate::document::schema::{Kind, Sealed, parse, validate, validate_by};
use crate::gate::closure::{Closure, check, derived_graph};
use crate::gate::order::{DAG_PATH, GRAPH_PATH, check_dag, check_graph};
use crate::gate::paths::{CAPSULE_PATH, CAPSULE_SCHEMA_PATH, PIPELINE_PATH};
use crate::gate::{Files, authority::OBJECTIVES_PATH};
use crate::policy::{Bundle, Prepared, Question};

/// Raised when what the phase emits changes.
pub const VERSION: u32 = 1;
/// The deciding rule.
pub const QUERY: &str = "data.control.kernel.allow";
/// Where the inputs manifest goes.
pub const MANIFEST_PATH: &str = "execution/ledger/inputs.manifest.json";

/// A document that may be unreadable.
pub type Readable<'a, T> = Result<&'a T, &'a [Finding]>;

/// What the phase works on.
pub struct Input<'a> {
    /// The locked ledger.
    pub ledger: &'a Sealed<AuthorityLedger>,
    /// SHA-256 of each authority's bytes, by id.
    pub authority_set_hashes: &'a BTreeMap<String, Digest>,
    /// The objectives.
    pub objectives: Readable<'a, Sealed<Vec<Objective>>>,
    /// The dependency graph, if the repository declares one.
    pub graph: Readable<'a, Option<Sealed<DependencyGraph>>>,
    /// The execution DAG, if the repository declares one.
    pub dag: Readable<'a, Option<Sealed<ExecutionDag>>>,
    /// The pipeline.
    pub pipeline: Readable<'a, Sealed<Pipeline>>,
    /// The policies, as far as they can be shown to a parser.
    pub bundle: Readable<'a, Bundle>,
    /// Listing hash of the policies that decide.
    pub policy_bundle_hash: Digest,
    /// The resolved executor.
    pub executor: &'a GenExecutor,
    /// Whether it is the built-in generator.
    pub needs_templates: bool,
    /// What GEN may see.
    pub manifest: &'a InputsManifest,
    /// Every file of the snapshot.
    pub paths: &'a BTreeSet<RepoPath>,
    /// The snapshot.
    pub files: &'a dyn Files,
    /// What is already known to stand against the state: of the snapshot, of the executor.
    pub known: &'a [Finding],
}

/// What the phase gives.
pub struct Output {
    /// The verdict.
    pub capsule: Capsule,
    /// What the next gate needs, where the verdict is ALLOW.
    pub assembled: Option<Assembled>,
    /// The capsule and the manifest.
    pub evidence: Evidence,
    /// Why the verdict is DENY, and warnings.
    pub findings: Vec<Finding>,
}

/// Evaluates the control kernel.
pub fn run(input: Input, judge: &mut dyn Judge) -> Output {
    let mut findings = input.known.to_vec();
    let text = |path: &'static str| input.files.bytes(&super::path(path)).map(|b| b.into_owned()).unwrap_or_default();
    let mut unreadable = |found: Option<&[Finding]>| findings.extend_from_slice(found.unwrap_or_default());
    unreadable(input.objectives.err());
    unreadable(input.graph.err());
    unreadable(input.dag.err());
    unreadable(input.pipeline.err());
    unreadable(input.bundle.err());

    if let Ok(Some(graph)) = input.graph {
        findings.extend(check_graph(&graph.document, &text(GRAPH_PATH)));
    }
    if let Ok(Some(dag)) = input.dag {
        findings.extend(check_dag(&dag.document, &text(DAG_PATH)));
    }
    let mut assembled = None;
    if let (Ok(objectives), Ok(pipeline)) = (input.objectives, input.pipeline) {
        findings.extend(check(&Closure {
            ledger: &input.ledger.document,
            objectives: (&objectives.document, &text(OBJECTIVES_PATH)),
            pipeline: (&pipeline.document, &text(PIPELINE_PATH)),
            files: input.paths,
            needs_templates: input.needs_templates,
        }));
        if let (Ok(graph), Ok(dag)) = (input.graph, input.dag) {
            let derived = || json::to_value(&derived_graph(&input.ledger.document, &objectives.document, &pipeline.document));
            assembled = Some(Assembled {
                objectives: objectives.value.clone(),
                graph: graph.as_ref().map_or_else(derived, |graph| graph.value.clone()),
                dag: json::to_value(&dag.as_ref().map_or_else(ExecutionDag::canonical, |dag| dag.document.with_indispensable())),
            });
        }
    }
    let mut allowing = None;
    if !refuses(&findings)
        && let (Some(assembled), Ok(bundle), Ok(pipeline)) = (&assembled, input.bundle, input.pipeline)
    {
        findings.extend(ask_policy(&input, assembled, bundle, &pipeline.document, &findings, &mut allowing, judge));
    }

    let mut capsule = allowing.unwrap_or_else(|| capsule(&input));
    if refuses(&findings) || assembled.is_none() {
        capsule.kernel_decision = KernelDecision::Deny;
    }
    let violations = check_capsule(&capsule, input.files);
    if refuses(&violations) {
        capsule.kernel_decision = KernelDecision::Deny;
        findings.extend(violations);
    }
    let evidence = Evidence::from([
        (super::path(CAPSULE_PATH), json::emit(&capsule)),
        (super::path(MANIFEST_PATH), json::emit(input.manifest)),
    ]);
    let assembled = assembled.filter(|_| capsule.kernel_decision == KernelDecision::Allow);
    Output { capsule, assembled, evidence, findings }
}

fn ask_policy(
    input: &Input,
    assembled: &Assembled,
    bundle: &Bundle,
    pipeline: &Pipeline,
    known: &[Finding],
    allowing: &mut Option<Capsule>,
    judge: &mut dyn Judge,
) -> Vec<Finding> {
    let shown = Prepared::new(&KernelInput {
        schema_version: SCHEMA_VERSION,
        authority_ledger: &input.ledger.value,
        objectives: &assembled.objectives,
        dependency_graph: &assembled.graph,
        execution_dag: &assembled.dag,
        r#gen: &pipeline.r#gen,
        inputs: &pipeline.inputs,
        gen_executor: input.executor,
        authority_set_hashes: input.authority_set_hashes,
        inputs_manifest: input.manifest,
        mechanical_findings: known.iter().map(MechanicalFinding::from).collect(),
    });
    let question = Question { bundle, query: QUERY, input: &shown };
    // What the next gate will ask if this one allows can be worked out at the same time. It is not asked before.
    if judge.expect(&question) {
        let allowing = allowing.insert(capsule(input));
        opa_gate::announce(allowing, &input.ledger.value, assembled, bundle, judge);
    }
    let evaluation = judge.judge(&question);
    denial(
        evaluation.decision,
        evaluation.findings,
        Code::KernelDenied,
        "the control kernel's policy does not allow this control state",
    )
}

/// The capsule of a control state that is allowed.
fn capsule(input: &Input) -> Capsule {
    let dependency_graph_hash = input.files.sha256(&super::path(GRAPH_PATH));
    let execution_dag_hash = input.files.sha256(&super::path(DAG_PATH));
    let (policy_bundle_hash, inputs_manifest_hash) = (input.policy_bundle_hash, input.manifest.hash());
    let state = ControlState {
        authority_ledger_hash: Some(input.ledger.sha256),
        objectives_hash: input.files.sha256(&super::path(OBJECTIVES_PATH)),
        dependency_graph_hash,
        execution_dag_hash,
        policy_bundle_hash,
        inputs_manifest_hash,
        gen_config_hash: input.pipeline.ok().map(|p| p.document.gen_config_hash()),
        executor_key: input.executor.key(),
    };
    Capsule {
        schema_version: SCHEMA_VERSION.into(),
        kernel_decision: KernelDecision::Allow,
        control_state_hash: Digest::of_document(&state),
        policy_bundle_hash,
        authority_set_hashes: input.authority_set_hashes.clone(),
        inputs_manifest_hash,
        dependency_graph_hash,
        execution_dag_hash,
        gen_executor: input.executor.clone(),
    }
}

/// The capsule against its schema, and against the repository's own where it has one.
fn check_capsule(capsule: &Capsule, files: &dyn Files) -> Vec<Finding> {
    let value = json::to_value(capsule);
    let bytes = json::pretty(&value);
    let mut violations = validate(Kind::Capsule, CAPSULE_PATH, &bytes, &value);
    if let Some(text) = files.bytes(&super::path(CAPSULE_SCHEMA_PATH)) {
        match parse("schema", CAPSULE_SCHEMA_PATH, &text) {
            Ok(schema) => {
                violations.extend(validate_by(&schema, CAPSULE_SCHEMA_PATH, "PRE-GEN capsule", CAPSULE_PATH, &bytes, &value))
            }
            Err(finding) => violations.push(finding),
        }
    }
    for violation in &mut violations {
        if violation.code == Code::DocumentSchema {
            violation.code = Code::CapsuleInvalid;
        }
    }
    violations
}
