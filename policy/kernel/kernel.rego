# The control kernel: whether the control state may lead to generation at all.
#
# Every check asks for what must be there, so that a missing document denies. Heads hold variables only, and operands are
# bound before they are negated: docs/policy.md says why.
package control.kernel

default allow := false

allow if {
	count(checks) > 0
	every _, passed in checks {
		passed == true
	}
	count(deny) == 0
}

checks := {
	"artifacts_declared": artifacts_declared,
	"authorities_locked": authorities_locked,
	"executor_declared": executor_declared,
	"graph_closed": graph_closed,
	"inputs_pinned": inputs_pinned,
	"no_mechanical_errors": no_mechanical_errors,
	"objectives_grounded": objectives_grounded,
	"phases_declared": phases_declared,
}

is_sha256(text) if {
	is_string(text)
	regex.match("^[0-9a-f]{64}$", text)
}

is_filled(text) if {
	is_string(text)
	trim_space(text) != ""
}

# Authorities: frozen, not empty, and each one's pinned hash is the one that was computed from its bytes.

default authorities_locked := false

authorities_locked if {
	input.authority_ledger.frozen == true
	is_array(input.authority_ledger.authority_set)
	count(input.authority_ledger.authority_set) > 0
	is_object(input.authority_set_hashes)
	count(unlocked_authorities) == 0
	ledger_ids == {id | some id, _ in input.authority_set_hashes}
}

ledger_ids := {id |
	some authority in input.authority_ledger.authority_set
	id := authority.authority_id
}

locked_positions := {position |
	some position, authority in input.authority_ledger.authority_set
	authority.source.kind == "file"
	is_filled(authority.source.locator)
	authority.hash.alg == "sha256"
	is_sha256(authority.hash.value)
	authority.hash.value == input.authority_set_hashes[authority.authority_id]
}

unlocked_authorities := {name |
	some position, authority in input.authority_ledger.authority_set
	not position in locked_positions
	name := object.get(authority, "authority_id", sprintf("entry %d", [position]))
}

deny contains reason if {
	frozen := object.get(input, ["authority_ledger", "frozen"], "missing")
	frozen != true
	reason := {
		"check": "authorities_locked",
		"rule_id": "KER-001",
		"path": "/authority_ledger/frozen",
		"msg": sprintf("the authority ledger is not frozen: frozen is %v", [frozen]),
	}
}

deny contains reason if {
	some name in unlocked_authorities
	reason := {
		"check": "authorities_locked",
		"rule_id": "KER-002",
		"path": "/authority_ledger/authority_set",
		"msg": sprintf("the authority %v is not a file whose hash was verified", [name]),
	}
}

deny contains reason if {
	some id, _ in input.authority_set_hashes
	not id in ledger_ids
	reason := {
		"check": "authorities_locked",
		"rule_id": "KER-003",
		"path": "/authority_set_hashes",
		"msg": sprintf("a hash is given for %v, which the ledger does not have", [id]),
	}
}

# Objectives: at least one, each with an id of its own and an authority of the ledger.

default objectives_grounded := false

objectives_grounded if {
	is_array(input.objectives)
	count(input.objectives) > 0
	count(objective_ids) == count(input.objectives)
	count(ungrounded_objectives) == 0
}

objective_ids := {id |
	some objective in input.objectives
	id := objective.id
}

grounded_positions := {position |
	some position, objective in input.objectives
	is_filled(objective.id)
	evidence := object.get(objective.source, "evidence", [])
	is_array(evidence)
	objective.source.authority_id in ledger_ids
}

ungrounded_objectives := {name |
	some position, objective in input.objectives
	not position in grounded_positions
	name := object.get(objective, "id", sprintf("entry %d", [position]))
}

deny contains reason if {
	some name in ungrounded_objectives
	reason := {
		"check": "objectives_grounded",
		"rule_id": "KER-010",
		"path": "/objectives",
		"msg": sprintf("the objective %v draws from no authority of the ledger, or has evidence that is no list", [name]),
	}
}

# Artifacts: each declared one serves objectives that exist.

default artifacts_declared := false

artifacts_declared if {
	is_array(input.gen.generated)
	count(input.gen.generated) > 0
	is_array(input.gen.artifacts)
	count(input.gen.artifacts) > 0
	count(artifact_paths) == count(input.gen.artifacts)
	count(unserving_artifacts) == 0
}

artifact_paths := {path |
	some artifact in input.gen.artifacts
	path := artifact.path
}

serving_positions := {position |
	some position, artifact in input.gen.artifacts
	is_string(artifact.path)
	is_array(artifact.objectives)
	count(artifact.objectives) > 0
	every id in artifact.objectives {
		id in objective_ids
	}
}

unserving_artifacts := {name |
	some position, artifact in input.gen.artifacts
	not position in serving_positions
	name := object.get(artifact, "path", sprintf("entry %d", [position]))
}

deny contains reason if {
	some name in unserving_artifacts
	reason := {
		"check": "artifacts_declared",
		"rule_id": "KER-020",
		"path": "/gen/artifacts",
		"msg": sprintf("the artifact %v names no objective, or one that does not exist", [name]),
	}
}

# The dependency graph: every edge joins nodes that exist.

default graph_closed := false

graph_closed if {
	is_array(input.dependency_graph.nodes)
	is_array(input.dependency_graph.edges)
	count(node_ids) == count(input.dependency_graph.nodes)
	count(dangling_edges) == 0
}

# A repository without a graph says so with null.
graph_closed if {
	input.dependency_graph == null
}

node_ids := {id |
	some node in input.dependency_graph.nodes
	id := node.id
}

joined_positions := {position |
	some position, edge in input.dependency_graph.edges
	edge.from in node_ids
	edge.to in node_ids
}

dangling_edges := {name |
	some position, edge in input.dependency_graph.edges
	not position in joined_positions
	name := sprintf("%v -> %v", [object.get(edge, "from", "?"), object.get(edge, "to", "?")])
}

deny contains reason if {
	some name in dangling_edges
	reason := {
		"check": "graph_closed",
		"rule_id": "KER-030",
		"path": "/dependency_graph/edges",
		"msg": sprintf("the edge %v names a node that does not exist", [name]),
	}
}

# The execution DAG: it has the gates, before the generator.

default phases_declared := false

phases_declared if {
	is_array(input.execution_dag.phases)
	is_array(input.execution_dag.edges)
	count(missing_phases) == 0
}

missing_phases := {phase |
	phases := {name | some name in input.execution_dag.phases}
	some phase in {"AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"}
	not phase in phases
}

deny contains reason if {
	some phase in missing_phases
	reason := {
		"check": "phases_declared",
		"rule_id": "KER-040",
		"path": "/execution_dag/phases",
		"msg": sprintf("the execution DAG leaves out %v", [phase]),
	}
}

# Inputs: every file of the manifest is pinned.

default inputs_pinned := false

inputs_pinned if {
	is_array(input.inputs)
	is_array(input.inputs_manifest.files)
	count(unpinned_inputs) == 0
}

pinned_positions := {position |
	some position, file in input.inputs_manifest.files
	is_string(file.path)
	is_sha256(file.sha256)
	is_number(file.bytes)
	file.bytes >= 0
}

unpinned_inputs := {name |
	some position, file in input.inputs_manifest.files
	not position in pinned_positions
	name := object.get(file, "path", sprintf("entry %d", [position]))
}

deny contains reason if {
	some name in unpinned_inputs
	reason := {
		"check": "inputs_pinned",
		"rule_id": "KER-050",
		"path": "/inputs_manifest/files",
		"msg": sprintf("the input %v is not pinned by hash and size", [name]),
	}
}

# The executor says what it is.

default executor_declared := false

executor_declared if {
	is_filled(input.gen_executor.kind)
	is_filled(input.gen_executor.version)
}

# What the mechanical checks found.

default no_mechanical_errors := false

no_mechanical_errors if {
	is_array(input.mechanical_findings)
	count(mechanical_errors) == 0
}

# A finding counts unless it says that it is a warning.
mechanical_errors := {text |
	some finding in input.mechanical_findings
	severity := object.get(finding, "severity", "error")
	severity != "warning"
	text := sprintf("%v: %v", [object.get(finding, "code", "?"), object.get(finding, "message", "?")])
}

deny contains reason if {
	some text in mechanical_errors
	reason := {
		"check": "no_mechanical_errors",
		"rule_id": "KER-060",
		"path": "/mechanical_findings",
		"msg": text,
	}
}
