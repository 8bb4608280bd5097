# The assurance policy: whether GEN may start, and at EVAL whether what it made may be called admitted.
#
# Every check asks for what must be there, so that a missing document denies. Heads hold variables only, and operands are
# bound before they are negated: docs/policy.md says why.
package assurance

default allow := false

allow if {
	count(checks) > 0
	every _, passed in checks {
		passed == true
	}
	count(deny) == 0
}

checks := {
	"artifact_integrity": artifact_integrity,
	"auth_immutable": auth_immutable,
	"closed_world_authority": closed_world_authority,
	"dependency_closure": dependency_closure,
	"deterministic_replay": deterministic_replay,
	"inference_compliance": inference_compliance,
	"phase_admissibility": phase_admissibility,
}

canonical_phases := [
	"AUTHORITY_LOCK",
	"PRE_GEN",
	"OPA_GATE",
	"GEN",
	"CHECK",
	"REPAIR",
	"STRUCT",
	"SELECT",
	"FLOW",
	"EVAL",
	"PROMOTE",
]

required_phases := {"AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"}

is_sha256(text) if {
	is_string(text)
	regex.match("^[0-9a-f]{64}$", text)
}

is_filled(text) if {
	is_string(text)
	trim_space(text) != ""
}

# auth_immutable: the kernel allowed this control state; the ledger is frozen; every authority is a file, and its
# pinned hash is the one that the capsule says was computed from its bytes.

default auth_immutable := false

auth_immutable if {
	input.pre_gen_capsule.kernel_decision == "ALLOW"
	input.authority_ledger.frozen == true
	is_array(input.authority_ledger.authority_set)
	count(input.authority_ledger.authority_set) > 0
	is_object(input.pre_gen_capsule.authority_set_hashes)
	count(unlocked_authorities) == 0
	count(ledger_ids) == count(input.authority_ledger.authority_set)
	ledger_ids == {id | some id, _ in input.pre_gen_capsule.authority_set_hashes}
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
	authority.hash.value == input.pre_gen_capsule.authority_set_hashes[authority.authority_id]
}

unlocked_authorities := {name |
	some position, authority in input.authority_ledger.authority_set
	not position in locked_positions
	name := object.get(authority, "authority_id", sprintf("entry %d", [position]))
}

deny contains reason if {
	decision := object.get(input, ["pre_gen_capsule", "kernel_decision"], "missing")
	decision != "ALLOW"
	reason := {
		"check": "auth_immutable",
		"rule_id": "ASR-001",
		"path": "/pre_gen_capsule/kernel_decision",
		"msg": sprintf("the kernel's decision is %v, not ALLOW", [decision]),
	}
}

deny contains reason if {
	frozen := object.get(input, ["authority_ledger", "frozen"], "missing")
	frozen != true
	reason := {
		"check": "auth_immutable",
		"rule_id": "ASR-002",
		"path": "/authority_ledger/frozen",
		"msg": sprintf("the authority ledger is not frozen: frozen is %v", [frozen]),
	}
}

deny contains reason if {
	some name in unlocked_authorities
	reason := {
		"check": "auth_immutable",
		"rule_id": "ASR-003",
		"path": "/authority_ledger/authority_set",
		"msg": sprintf("the authority %v is not a file whose SHA-256 the capsule confirms", [name]),
	}
}

deny contains reason if {
	some id, _ in input.pre_gen_capsule.authority_set_hashes
	not id in ledger_ids
	reason := {
		"check": "auth_immutable",
		"rule_id": "ASR-004",
		"path": "/pre_gen_capsule/authority_set_hashes",
		"msg": sprintf("the capsule has a hash for %v, which the ledger does not have", [id]),
	}
}

# closed_world_authority: objectives and ledger entries draw from the ledger's authorities and from nothing else.

default closed_world_authority := false

closed_world_authority if {
	count(ledger_ids) > 0
	is_array(input.objectives)
	count(input.objectives) > 0
	count(objective_ids) == count(input.objectives)
	count(ungrounded_objectives) == 0
	is_array(input.run_ledger.entries)
	count(foreign_entries) == 0
}

objective_ids := {id |
	some objective in input.objectives
	id := objective.id
}

grounded_positions := {position |
	some position, objective in input.objectives
	is_filled(objective.id)
	objective.source.authority_id in ledger_ids
}

ungrounded_objectives := {text |
	some position, objective in input.objectives
	not position in grounded_positions
	name := object.get(objective, "id", sprintf("entry %d", [position]))
	authority := object.get(objective, ["source", "authority_id"], "none")
	text := sprintf("%v (authority %v)", [name, authority])
}

home_positions := {position |
	some position, entry in input.run_ledger.entries
	is_array(entry.authorities)
	is_array(entry.objectives)
	every id in entry.authorities {
		id in ledger_ids
	}
	every id in entry.objectives {
		id in objective_ids
	}
}

foreign_entries := {text |
	some position, entry in input.run_ledger.entries
	not position in home_positions
	text := sprintf("%d (%v)", [position, object.get(entry, "artifact", "no artifact")])
}

deny contains reason if {
	some text in ungrounded_objectives
	reason := {
		"check": "closed_world_authority",
		"rule_id": "ASR-010",
		"path": "/objectives",
		"msg": sprintf("the objective %v draws from no authority of the ledger", [text]),
	}
}

deny contains reason if {
	some text in foreign_entries
	reason := {
		"check": "closed_world_authority",
		"rule_id": "ASR-011",
		"path": "/run_ledger/entries",
		"msg": sprintf("the run ledger's entry %s names an unknown authority or objective", [text]),
	}
}

# dependency_closure: every edge joins declared nodes, no node depends on itself, and the capsule pins the graph. A
# repository without a graph says so with null in both places.

default dependency_closure := false

dependency_closure if {
	is_array(input.dependency_graph.nodes)
	is_array(input.dependency_graph.edges)
	pinned_or_default(input.pre_gen_capsule.dependency_graph_hash)
	count(node_ids) == count(input.dependency_graph.nodes)
	count(dangling_edges) == 0
	count(cyclic_nodes) == 0
}

dependency_closure if {
	input.dependency_graph == null
	input.pre_gen_capsule.dependency_graph_hash == null
}

pinned_or_default(hash) if {
	hash == null
}

pinned_or_default(hash) if {
	is_sha256(hash)
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

dangling_edges := {text |
	some position, edge in input.dependency_graph.edges
	not position in joined_positions
	text := sprintf("%v -> %v", [object.get(edge, "from", "?"), object.get(edge, "to", "?")])
}

# Only a node that edges both enter and leave can lie on a cycle. Looking at those alone keeps the check linear over the
# usual graph, artifact -> objective -> authority, in which there are none but objectives.
inner_ids := {from | some edge in input.dependency_graph.edges; from := edge.from} & {to | some edge in input.dependency_graph.edges; to := edge.to}

inner_edges := [edge |
	some edge in input.dependency_graph.edges
	edge.from in inner_ids
	edge.to in inner_ids
]

successors := {id: next |
	count(inner_edges) > 0
	some id in inner_ids
	next := {to |
		some edge in inner_edges
		edge.from == id
		to := edge.to
	}
}

cyclic_nodes := {id |
	some id, next in successors
	id in graph.reachable(successors, next)
}

deny contains reason if {
	some text in dangling_edges
	reason := {
		"check": "dependency_closure",
		"rule_id": "ASR-020",
		"path": "/dependency_graph/edges",
		"msg": sprintf("the edge %s names a node that does not exist", [text]),
	}
}

deny contains reason if {
	some id in cyclic_nodes
	reason := {
		"check": "dependency_closure",
		"rule_id": "ASR-021",
		"path": "/dependency_graph/edges",
		"msg": sprintf("the node %v depends on itself", [id]),
	}
}

# inference_compliance: every objective states what it wants and why, with evidence or a justification; every
# artifact in the run ledger serves objectives, and names each objective's authority.

default inference_compliance := false

inference_compliance if {
	is_array(input.objectives)
	count(input.objectives) > 0
	count(unfounded_objectives) == 0
	is_array(input.run_ledger.entries)
	count(unexplained_artifacts) == 0
}

founded_positions := {position |
	some position, objective in input.objectives
	is_filled(objective.statement)
	evidence := object.get(objective.source, "evidence", [])
	is_array(evidence)
	is_founded(objective)
}

is_founded(objective) if {
	count(objective.source.evidence) > 0
}

is_founded(objective) if {
	is_filled(objective.justification)
}

unfounded_objectives := {name |
	some position, objective in input.objectives
	not position in founded_positions
	name := object.get(objective, "id", sprintf("entry %d", [position]))
}

# Pairs rather than a map: a map would have to be searched anew for each objective.
grounds := {pair |
	some objective in input.objectives
	pair := [objective.id, objective.source.authority_id]
}

explained_positions := {position |
	some position, entry in input.run_ledger.entries
	entry.artifact != null
	is_array(entry.objectives)
	count(entry.objectives) > 0
	is_array(entry.authorities)
	every id in entry.objectives {
		named := [authority | some authority in entry.authorities; [id, authority] in grounds]
		count(named) > 0
	}
}

bare_positions := {position |
	some position, entry in input.run_ledger.entries
	entry.artifact == null
}

unexplained_artifacts := {text |
	some position, entry in input.run_ledger.entries
	not position in explained_positions
	not position in bare_positions
	text := sprintf("%v", [object.get(entry, "artifact", sprintf("of entry %d", [position]))])
}

deny contains reason if {
	some name in unfounded_objectives
	reason := {
		"check": "inference_compliance",
		"rule_id": "ASR-030",
		"path": "/objectives",
		"msg": sprintf("the objective %v lacks a statement, or both evidence and a justification", [name]),
	}
}

deny contains reason if {
	some text in unexplained_artifacts
	reason := {
		"check": "inference_compliance",
		"rule_id": "ASR-031",
		"path": "/run_ledger/entries",
		"msg": sprintf("the artifact %s does not name its objectives and their authorities", [text]),
	}
}

# phase_admissibility: the declared phases are known, each once, in the canonical order, with the gates before GEN;
# edges run forward; the run ledger has events of declared phases only.

default phase_admissibility := false

phase_admissibility if {
	is_array(input.execution_dag.phases)
	is_array(input.execution_dag.edges)
	pinned_or_default(input.pre_gen_capsule.execution_dag_hash)
	count(unknown_phases) == 0
	input.execution_dag.phases == [phase | some phase in canonical_phases; phase in declared_phases]
	count(required_phases - declared_phases) == 0
	count(backward_edges) == 0
	is_array(input.run_ledger.entries)
	count(stray_entries) == 0
}

declared_phases := {phase | some phase in input.execution_dag.phases}

unknown_phases := {phase |
	some phase in declared_phases
	not phase in canonical_phases
}

order := {phase: position | some position, phase in canonical_phases}

forward_positions := {position |
	some position, edge in input.execution_dag.edges
	edge.from in declared_phases
	edge.to in declared_phases
	order[edge.from] < order[edge.to]
}

backward_edges := {text |
	some position, edge in input.execution_dag.edges
	not position in forward_positions
	text := sprintf("%v -> %v", [object.get(edge, "from", "?"), object.get(edge, "to", "?")])
}

staged_positions := {position |
	some position, entry in input.run_ledger.entries
	entry.phase in declared_phases
}

stray_entries := {text |
	some position, entry in input.run_ledger.entries
	not position in staged_positions
	text := sprintf("%d (%v)", [position, object.get(entry, "phase", "no phase")])
}

deny contains reason if {
	some phase in unknown_phases
	reason := {
		"check": "phase_admissibility",
		"rule_id": "ASR-040",
		"path": "/execution_dag/phases",
		"msg": sprintf("%v is not a phase", [phase]),
	}
}

deny contains reason if {
	count(unknown_phases) == 0
	expected := [phase | some phase in canonical_phases; phase in declared_phases]
	input.execution_dag.phases != expected
	reason := {
		"check": "phase_admissibility",
		"rule_id": "ASR-041",
		"path": "/execution_dag/phases",
		"msg": sprintf("the phases are not in the canonical order, each once: %v", [concat(", ", [text |
			some phase in input.execution_dag.phases
			text := sprintf("%v", [phase])
		])]),
	}
}

deny contains reason if {
	some phase in required_phases - declared_phases
	reason := {
		"check": "phase_admissibility",
		"rule_id": "ASR-042",
		"path": "/execution_dag/phases",
		"msg": sprintf("the execution DAG leaves out %s", [phase]),
	}
}

deny contains reason if {
	some text in backward_edges
	reason := {
		"check": "phase_admissibility",
		"rule_id": "ASR-043",
		"path": "/execution_dag/edges",
		"msg": sprintf("the edge %s does not run forward between declared phases", [text]),
	}
}

deny contains reason if {
	some text in stray_entries
	reason := {
		"check": "phase_admissibility",
		"rule_id": "ASR-044",
		"path": "/run_ledger/entries",
		"msg": sprintf("the run ledger's entry %s is of no declared phase", [text]),
	}
}

# artifact_integrity: the run ledger and the artifact hashes say the same of every artifact, both ways.

default artifact_integrity := false

artifact_integrity if {
	is_object(input.artifact_hashes)
	is_array(input.run_ledger.entries)
	count(mismatched_artifacts) == 0
	count(unrecorded_artifacts) == 0
}

matching_positions := {position |
	some position, entry in input.run_ledger.entries
	entry.artifact != null
	is_sha256(entry.sha256)
	input.artifact_hashes[entry.artifact] == entry.sha256
}

mismatched_artifacts := {text |
	some position, entry in input.run_ledger.entries
	not position in matching_positions
	not position in bare_positions
	artifact := object.get(entry, "artifact", sprintf("of entry %d", [position]))
	text := sprintf("%v (%v)", [artifact, object.get(entry, "sha256", "no hash")])
}

recorded_artifacts := {artifact |
	some position in matching_positions
	artifact := input.run_ledger.entries[position].artifact
}

unrecorded_artifacts := {path |
	some path, _ in input.artifact_hashes
	not path in recorded_artifacts
}

deny contains reason if {
	some text in mismatched_artifacts
	reason := {
		"check": "artifact_integrity",
		"rule_id": "ASR-050",
		"path": "/run_ledger/entries",
		"msg": sprintf("the run ledger's artifact %s does not have that hash among the artifact hashes", [text]),
	}
}

deny contains reason if {
	some path in unrecorded_artifacts
	reason := {
		"check": "artifact_integrity",
		"rule_id": "ASR-051",
		"path": "/artifact_hashes",
		"msg": sprintf("the artifact %s has no matching entry in the run ledger", [path]),
	}
}

# deterministic_replay: everything that a replay rests on is pinned, and no artifact has two hashes.

default deterministic_replay := false

deterministic_replay if {
	is_sha256(input.pre_gen_capsule.control_state_hash)
	is_sha256(input.pre_gen_capsule.policy_bundle_hash)
	is_sha256(input.pre_gen_capsule.inputs_manifest_hash)
	is_filled(input.pre_gen_capsule.gen_executor.kind)
	is_filled(input.pre_gen_capsule.gen_executor.version)
	is_array(input.run_ledger.entries)
	is_object(input.artifact_hashes)
	count(ambiguous_artifacts) == 0
}

hashed_artifacts := {pair |
	some entry in input.run_ledger.entries
	is_string(entry.artifact)
	pair := [entry.artifact, entry.sha256]
}

named_artifacts := {artifact |
	some entry in input.run_ledger.entries
	artifact := entry.artifact
	is_string(artifact)
}

# Counted first, so that the artifacts are gone through one by one only where one of them is ambiguous.
ambiguous_artifacts := {text |
	count(hashed_artifacts) != count(named_artifacts)
	some artifact in named_artifacts
	hashes := {hash | some pair in hashed_artifacts; pair[0] == artifact; hash := pair[1]}
	count(hashes) != 1
	text := sprintf("%s (%d)", [artifact, count(hashes)])
}

deny contains reason if {
	some text in ambiguous_artifacts
	reason := {
		"check": "deterministic_replay",
		"rule_id": "ASR-060",
		"path": "/run_ledger/entries",
		"msg": sprintf("the run ledger does not give exactly one hash for the artifact %s", [text]),
	}
}
