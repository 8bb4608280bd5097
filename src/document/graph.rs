//! `control/dependency.graph.json` and `control/execution_dag.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::phase::Phase;

/// What depends on what, in the repository's own ids. Members it does not know are kept, as data for the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DependencyGraph {
    /// Version of this format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    /// The things.
    pub nodes: Vec<Node>,
    /// `from` depends on `to`.
    pub edges: Vec<Edge>,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A thing in the dependency graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its id, unique in the graph.
    pub id: String,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An edge by ids.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// Where it starts.
    pub from: String,
    /// Where it ends.
    pub to: String,
    /// What this version does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The phases of a run and their order. An edge says that `from` comes before `to`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionDag {
    /// Version of this format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    /// Names of phases, as they are written: not yet checked to be ones.
    pub phases: Vec<String>,
    /// The order.
    #[serde(default)]
    pub edges: Vec<PhaseEdge>,
}

/// One phase before another, by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseEdge {
    /// The earlier one.
    pub from: String,
    /// The later one.
    pub to: String,
}

impl ExecutionDag {
    /// What holds when a repository declares none: every phase, each after the one before.
    pub fn canonical() -> Self {
        let names: Vec<String> = Phase::ALL.iter().map(|p| p.as_str().to_owned()).collect();
        let edges = names.windows(2).map(|pair| PhaseEdge { from: pair[0].clone(), to: pair[1].clone() }).collect();
        Self { schema_version: Some(super::SCHEMA_VERSION.to_owned()), phases: names, edges }
    }

    /// The same, with the phases that every run has, each in its canonical place: the DAG of the run that is made.
    pub fn with_indispensable(&self) -> Self {
        let mut phases = self.phases.clone();
        for phase in Phase::ALL.into_iter().filter(|phase| phase.is_indispensable()) {
            if phases.iter().all(|name| name != phase.as_str()) {
                let at = phases.iter().position(|name| Phase::from_name(name).is_some_and(|other| other > phase));
                phases.insert(at.unwrap_or(phases.len()), phase.as_str().to_owned());
            }
        }
        Self { phases, ..self.clone() }
    }
}
