//! Graphs: the execution DAG keeps the canonical order, the dependency graph has no cycle.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::finding::{Code, Finding};
use crate::document::graph::{DependencyGraph, ExecutionDag};
use crate::document::phase::Phase;

/// Where a repository declares its execution DAG.
pub const DAG_PATH: &str = "control/execution_dag.json";
/// Where a repository declares its dependency graph.
pub const GRAPH_PATH: &str = "control/dependency.graph.json";

/// The phases that no execution DAG may leave out: the gates, and what they gate.
const REQUIRED: [Phase; 4] = [Phase::AuthorityLock, Phase::PreGen, Phase::OpaGate, Phase::Gen];

/// What stands against an execution DAG that was read from `text`.
pub fn check_dag(dag: &ExecutionDag, text: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut push = |code, pointer: String, message: String, hint: &str| {
        findings.push(Finding::error(code, message).at(DAG_PATH).pointing(pointer, text).hint(hint));
    };
    let order = Phase::ALL.map(Phase::as_str).join(", ");
    let mut seen = BTreeMap::new();
    for (index, name) in dag.phases.iter().enumerate() {
        let shown = crate::document::path::printable(name);
        match Phase::from_name(name) {
            None => push(
                Code::ExecutionDagUnknownPhase,
                format!("/phases/{index}"),
                format!("there is no phase {shown}"),
                &format!("the phases are {order}"),
            ),
            Some(phase) => {
                if seen.insert(phase, index).is_some() {
                    let message = format!("the phase {shown} is named twice");
                    push(Code::ExecutionDagDuplicatePhase, format!("/phases/{index}"), message, "name each phase once");
                }
            }
        }
    }
    for phase in REQUIRED {
        if !seen.contains_key(&phase) {
            let message = format!("the execution DAG leaves out {phase}, which cannot be left out");
            push(
                Code::ExecutionDagPhaseMissing,
                "/phases".into(),
                message,
                "name at least AUTHORITY_LOCK, PRE_GEN, OPA_GATE and GEN",
            );
        }
    }
    let ranks: Vec<Phase> = dag.phases.iter().filter_map(|name| Phase::from_name(name)).collect();
    if let Some(at) = ranks.windows(2).position(|pair| pair[0] > pair[1]) {
        let message = format!("the execution DAG lists {} before {}, which breaks the canonical order", ranks[at], ranks[at + 1]);
        push(Code::ExecutionDagOrder, "/phases".into(), message, &format!("the order is {order}"));
    }
    let mut edges = Vec::new();
    for (index, edge) in dag.edges.iter().enumerate() {
        for (end, name) in [("from", &edge.from), ("to", &edge.to)] {
            if Phase::from_name(name).is_none_or(|phase| !seen.contains_key(&phase)) {
                let message = format!(
                    "an edge names the phase {}, which the execution DAG does not have",
                    crate::document::path::printable(name)
                );
                push(
                    Code::ExecutionDagUnknownPhase,
                    format!("/edges/{index}/{end}"),
                    message,
                    "list the phase, or take the edge out",
                );
            }
        }
        edges.push((edge.from.as_str(), edge.to.as_str()));
    }
    if let Some(cycle) = cycle(&edges) {
        push(
            Code::ExecutionDagCycle,
            "/edges".into(),
            format!("the execution DAG has a cycle: {cycle}"),
            "take one of its edges out",
        );
    } else {
        let backwards = |edge: &(usize, &(&str, &str))| Phase::from_name(edge.1.0) >= Phase::from_name(edge.1.1);
        for (index, (from, to)) in edges.iter().enumerate().filter(backwards) {
            if let (Some(_), Some(_)) = (Phase::from_name(from), Phase::from_name(to)) {
                let message = format!("an edge puts {from} before {to}, which breaks the canonical order");
                push(Code::ExecutionDagOrder, format!("/edges/{index}"), message, &format!("the order is {order}"));
            }
        }
    }
    findings
}

/// What stands against a dependency graph that was read from `text`.
pub fn check_graph(graph: &DependencyGraph, text: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut push = |code, pointer: String, message: String, hint: &str| {
        findings.push(Finding::error(code, message).at(GRAPH_PATH).pointing(pointer, text).hint(hint));
    };
    let printable = crate::document::path::printable;
    let mut ids = BTreeSet::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if !ids.insert(node.id.as_str()) {
            let message = format!("the node {} is named twice", printable(&node.id));
            push(Code::DependencyGraphDuplicateNode, format!("/nodes/{index}/id"), message, "name each node once");
        }
    }
    let mut edges = Vec::new();
    for (index, edge) in graph.edges.iter().enumerate() {
        for (end, id) in [("from", &edge.from), ("to", &edge.to)] {
            if !ids.contains(id.as_str()) {
                let message = format!("an edge names the node {}, which the graph does not have", printable(id));
                push(
                    Code::DependencyGraphUnknownNode,
                    format!("/edges/{index}/{end}"),
                    message,
                    "add the node, or take the edge out",
                );
            }
        }
        edges.push((edge.from.as_str(), edge.to.as_str()));
    }
    if let Some(cycle) = cycle(&edges) {
        push(
            Code::DependencyGraphCycle,
            "/edges".into(),
            format!("the dependency graph has a cycle: {cycle}"),
            "take one of its edges out",
        );
    }
    findings
}

/// One cycle of a graph, as `a -> b -> a`, without recursion. Deterministic: nodes are visited in byte order.
fn cycle(edges: &[(&str, &str)]) -> Option<String> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    next.values_mut().for_each(|targets| targets.sort_unstable());
    let mut done = BTreeSet::new();
    for start in next.keys().copied() {
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        let mut open = BTreeSet::from([start]);
        while let Some((node, at)) = path.last_mut() {
            let node = *node;
            let target = if done.contains(node) { None } else { next.get(node).and_then(|targets| targets.get(*at)).copied() };
            *at += 1;
            match target {
                Some(target) if open.contains(target) => {
                    let from = path.iter().position(|(n, _)| *n == target).unwrap_or(0);
                    let mut names: Vec<String> = path[from..].iter().map(|(n, _)| crate::document::path::printable(n)).collect();
                    names.push(crate::document::path::printable(target));
                    if names.len() > 12 {
                        names.splice(6..names.len() - 5, ["…".to_owned()]);
                    }
                    return Some(names.join(" -> "));
                }
                Some(target) => {
                    open.insert(target);
                    path.push((target, 0));
                }
                None => {
                    done.insert(node);
                    open.remove(node);
                    path.pop();
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::document::json::emit;
    use crate::gate::testing::told;

    fn dag(value: Value) -> Vec<String> {
        let text = emit(&value);
        told(&check_dag(&serde_json::from_value(value).unwrap(), &text))
    }

    fn graph(nodes: &[&str], edges: &[(&str, &str)]) -> Vec<String> {
        let nodes: Vec<Value> = nodes.iter().map(|id| json!({ "id": id })).collect();
        let edges: Vec<Value> = edges.iter().map(|(from, to)| json!({"from": from, "to": to})).collect();
        let value = json!({"nodes": nodes, "edges": edges});
        let text = emit(&value);
        told(&check_graph(&serde_json::from_value(value).unwrap(), &text))
    }

    #[test]
    fn the_canonical_dag_passes() {
        assert_eq!(dag(serde_json::to_value(ExecutionDag::canonical()).unwrap()), Vec::<String>::new());
        assert_eq!(dag(json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"]})), Vec::<String>::new());
    }

    #[test]
    fn each_breach_of_the_dag_has_its_own_code() {
        let gates = ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"];
        let with = |more: &[&str]| -> Vec<String> { gates.iter().chain(more).map(|s| (*s).to_owned()).collect() };
        assert_eq!(dag(json!({"phases": with(&["DEPLOY"])})), ["execution-dag-unknown-phase /phases/4"]);
        assert_eq!(dag(json!({"phases": with(&["gen"])})), ["execution-dag-unknown-phase /phases/4"]);
        assert_eq!(dag(json!({"phases": with(&["GEN"])})), ["execution-dag-duplicate-phase /phases/4"]);
        assert_eq!(dag(json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "GEN"]})), ["execution-dag-phase-missing /phases"]);
        assert_eq!(dag(json!({"phases": ["AUTHORITY_LOCK", "PRE_GEN", "GEN", "OPA_GATE"]})), ["execution-dag-order /phases"]);
        let edge = |from: &str, to: &str| json!({"from": from, "to": to});
        assert_eq!(dag(json!({"phases": gates, "edges": [edge("GEN", "PRE_GEN")]})), ["execution-dag-order /edges/0"]);
        assert_eq!(dag(json!({"phases": gates, "edges": [edge("GEN", "CHECK")]})), ["execution-dag-unknown-phase /edges/0/to"]);
        assert_eq!(
            dag(json!({"phases": gates, "edges": [edge("PRE_GEN", "GEN"), edge("GEN", "PRE_GEN")]})),
            ["execution-dag-cycle /edges"]
        );
        assert_eq!(dag(json!({"phases": gates, "edges": [edge("GEN", "GEN")]})), ["execution-dag-cycle /edges"]);
    }

    #[test]
    fn each_breach_of_the_graph_has_its_own_code() {
        assert_eq!(graph(&["a", "b", "c"], &[("a", "b"), ("b", "c"), ("a", "c")]), Vec::<String>::new());
        assert_eq!(graph(&["a", "a"], &[]), ["dependency-graph-duplicate-node /nodes/1/id"]);
        assert_eq!(graph(&["a"], &[("a", "z")]), ["dependency-graph-unknown-node /edges/0/to"]);
        assert_eq!(graph(&["a", "b", "c"], &[("c", "b"), ("b", "a"), ("a", "c")]), ["dependency-graph-cycle /edges"]);
    }

    #[test]
    fn a_long_chain_does_not_recurse_and_a_cycle_is_named() {
        let names: Vec<String> = (0..50_000).map(|i| format!("n{i:05}")).collect();
        let mut edges: Vec<(&str, &str)> = names.windows(2).map(|w| (w[0].as_str(), w[1].as_str())).collect();
        assert_eq!(cycle(&edges), None);
        edges.push((&names[49_999], &names[0]));
        assert!(cycle(&edges).unwrap().starts_with("n00000 -> n00001 -> n00002 -> n00003 -> n00004 -> n00005 -> … -> "));
        assert_eq!(cycle(&[("b", "a"), ("a", "b")]).unwrap(), "a -> b -> a");
    }
}
