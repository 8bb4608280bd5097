package assurance_test

import data.assurance

hash_a := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

hash_b := "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

# What the gate sees before GEN.
gate := {
	"pre_gen_capsule": {
		"schema_version": "0.1.0",
		"kernel_decision": "ALLOW",
		"control_state_hash": hash_a,
		"policy_bundle_hash": hash_a,
		"authority_set_hashes": {"A-01": hash_a},
		"inputs_manifest_hash": hash_a,
		"dependency_graph_hash": hash_a,
		"execution_dag_hash": hash_a,
		"gen_executor": {"kind": "builtin", "version": "1"},
	},
	"authority_ledger": {
		"schema_version": "0.1.0",
		"frozen": true,
		"authority_set": [{
			"authority_id": "A-01",
			"title": "Syllabus",
			"source": {"kind": "file", "locator": "syllabus/s.md"},
			"hash": {"alg": "sha256", "value": hash_a},
		}],
	},
	"objectives": [{
		"id": "O-01",
		"type": "drill",
		"statement": "Write drills",
		"source": {"authority_id": "A-01", "evidence": []},
		"constraints": {},
		"justification": "The syllabus asks for them",
	}],
	"dependency_graph": {"nodes": [{"id": "O-01"}, {"id": "A-01"}], "edges": [{"from": "O-01", "to": "A-01"}]},
	"execution_dag": {
		"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN", "CHECK"],
		"edges": [{"from": "PRE_GEN", "to": "GEN"}],
	},
	"run_ledger": {"schema_version": "0.1.0", "entries": []},
	"artifact_hashes": {},
}

entry := {
	"phase": "GEN",
	"event": "generated",
	"artifact": "artifacts/a.json",
	"sha256": hash_b,
	"objectives": ["O-01"],
	"authorities": ["A-01"],
}

bare := {"phase": "CHECK", "event": "passed", "artifact": null, "sha256": null, "objectives": [], "authorities": []}

# What EVAL sees after GEN.
final := json.patch(gate, [
	{"op": "add", "path": "/run_ledger/entries/-", "value": entry},
	{"op": "add", "path": "/run_ledger/entries/-", "value": bare},
	{"op": "add", "path": "/artifact_hashes/artifacts~1a.json", "value": hash_b},
])

# `document` with one place set to `value`.
having(document, path, value) := json.patch(document, [{"op": "add", "path": path, "value": value}])

failed(document) := {name |
	checks := assurance.checks with input as document
	some name, passed in checks
	passed != true
}

messages(document) := {reason.msg | some reason in assurance.deny with input as document}

# Whether `document` is denied by this check alone, with this message.
denied(document, check, message) if {
	failed(document) == {check}
	message in messages(document)
	assurance.allow == false with input as document
}

test_the_gate_is_allowed if assurance.allow with input as gate

test_the_final_state_is_allowed if assurance.allow with input as final

test_all_checks_pass_at_the_end if failed(final) == set()

test_nothing_fails_every_check if {
	count(failed({})) == 7
	assurance.allow == false with input as {}
}

test_no_document_is_dispensable if {
	every member, _ in gate {
		assurance.allow == false with input as object.remove(gate, [member])
	}
}

test_no_member_of_the_capsule_is_dispensable if {
	members := [
		"kernel_decision",
		"control_state_hash",
		"policy_bundle_hash",
		"authority_set_hashes",
		"inputs_manifest_hash",
		"dependency_graph_hash",
		"execution_dag_hash",
		"gen_executor",
	]
	every member in members {
		path := sprintf("pre_gen_capsule/%s", [member])
		assurance.allow == false with input as json.remove(gate, [path])
	}
}

test_auth_immutable_needs_the_kernel if {
	denied(having(gate, "/pre_gen_capsule/kernel_decision", "DENY"), "auth_immutable", "the kernel's decision is DENY, not ALLOW")
}

test_auth_immutable_needs_a_frozen_ledger if {
	denied(having(gate, "/authority_ledger/frozen", false), "auth_immutable", "the authority ledger is not frozen: frozen is false")
}

test_auth_immutable_takes_no_truthy_value if {
	denied(having(gate, "/authority_ledger/frozen", "true"), "auth_immutable", "the authority ledger is not frozen: frozen is true")
}

test_auth_immutable_compares_hashes if {
	changed := having(gate, "/pre_gen_capsule/authority_set_hashes/A-01", hash_b)
	denied(changed, "auth_immutable", "the authority A-01 is not a file whose SHA-256 the capsule confirms")
}

test_auth_immutable_takes_files_only if {
	changed := having(gate, "/authority_ledger/authority_set/0/source/kind", "url")
	denied(changed, "auth_immutable", "the authority A-01 is not a file whose SHA-256 the capsule confirms")
}

test_auth_immutable_takes_sha256_only if {
	changed := having(gate, "/authority_ledger/authority_set/0/hash/alg", "sha1")
	denied(changed, "auth_immutable", "the authority A-01 is not a file whose SHA-256 the capsule confirms")
}

test_auth_immutable_needs_well_formed_hashes if {
	once := having(gate, "/authority_ledger/authority_set/0/hash/value", "abc")
	denied(
		having(once, "/pre_gen_capsule/authority_set_hashes/A-01", "abc"), "auth_immutable",
		"the authority A-01 is not a file whose SHA-256 the capsule confirms",
	)
}

test_auth_immutable_refuses_hashes_of_unknown_authorities if {
	changed := having(gate, "/pre_gen_capsule/authority_set_hashes/A-02", hash_b)
	denied(changed, "auth_immutable", "the capsule has a hash for A-02, which the ledger does not have")
}

test_auth_immutable_refuses_an_id_given_twice if {
	changed := having(gate, "/authority_ledger/authority_set/-", gate.authority_ledger.authority_set[0])
	failed(changed) == {"auth_immutable"}
}

test_closed_world_refuses_a_rogue_authority if {
	changed := having(gate, "/objectives/0/source/authority_id", "ROGUE")
	denied(changed, "closed_world_authority", "the objective O-01 (authority ROGUE) draws from no authority of the ledger")
}

test_closed_world_refuses_an_objective_without_authority if {
	second := {"id": "O-02", "type": "x", "statement": "y", "source": {"evidence": []}, "justification": "z"}
	changed := having(gate, "/objectives/-", second)
	denied(changed, "closed_world_authority", "the objective O-02 (authority none) draws from no authority of the ledger")
}

test_closed_world_refuses_no_objectives if {
	failed(having(gate, "/objectives", [])) == {"closed_world_authority", "inference_compliance"}
}

test_closed_world_refuses_an_id_given_twice if {
	failed(having(gate, "/objectives/-", gate.objectives[0])) == {"closed_world_authority"}
}

test_closed_world_refuses_foreign_entries if {
	changed := having(final, "/run_ledger/entries/0/authorities", ["A-01", "ROGUE"])
	denied(changed, "closed_world_authority", "the run ledger's entry 0 (artifacts/a.json) names an unknown authority or objective")
}

test_closed_world_refuses_entries_without_authorities if {
	changed := json.remove(final, ["run_ledger/entries/1/authorities"])
	failed(changed) == {"closed_world_authority"}
}

test_dependency_closure_refuses_dangling_edges if {
	changed := having(gate, "/dependency_graph/edges/-", {"from": "O-01", "to": "NOWHERE"})
	denied(changed, "dependency_closure", "the edge O-01 -> NOWHERE names a node that does not exist")
}

test_dependency_closure_refuses_cycles if {
	changed := having(gate, "/dependency_graph/edges/-", {"from": "A-01", "to": "O-01"})
	denied(changed, "dependency_closure", "the node A-01 depends on itself")
}

test_dependency_closure_refuses_a_node_given_twice if {
	failed(having(gate, "/dependency_graph/nodes/-", {"id": "O-01"})) == {"dependency_closure"}
}

test_dependency_closure_allows_a_declared_absence if {
	once := having(gate, "/dependency_graph", null)
	assurance.allow with input as having(once, "/pre_gen_capsule/dependency_graph_hash", null)
	failed(once) == {"dependency_closure"}
}

test_inference_compliance_needs_a_statement if {
	changed := having(gate, "/objectives/0/statement", "  ")
	denied(changed, "inference_compliance", "the objective O-01 lacks a statement, or both evidence and a justification")
}

test_inference_compliance_needs_evidence_or_a_justification if {
	without := having(gate, "/objectives/0/justification", "")
	denied(without, "inference_compliance", "the objective O-01 lacks a statement, or both evidence and a justification")
	assurance.allow with input as having(without, "/objectives/0/source/evidence", [{"quote": "q"}])
}

test_inference_compliance_wants_the_authority_of_each_objective if {
	changed := having(final, "/run_ledger/entries/0/authorities", [])
	denied(changed, "inference_compliance", "the artifact artifacts/a.json does not name its objectives and their authorities")
}

test_inference_compliance_wants_an_objective_per_artifact if {
	changed := having(final, "/run_ledger/entries/0/objectives", [])
	denied(changed, "inference_compliance", "the artifact artifacts/a.json does not name its objectives and their authorities")
}

test_phase_admissibility_refuses_unknown_phases if {
	changed := having(gate, "/execution_dag/phases/-", "DEPLOY")
	denied(changed, "phase_admissibility", "DEPLOY is not a phase")
}

test_phase_admissibility_refuses_another_order if {
	changed := having(gate, "/execution_dag/phases", ["AUTHORITY_LOCK", "PRE_GEN", "GEN", "OPA_GATE"])
	denied(
		changed, "phase_admissibility",
		"the phases are not in the canonical order, each once: AUTHORITY_LOCK, PRE_GEN, GEN, OPA_GATE",
	)
}

test_phase_admissibility_refuses_a_phase_given_twice if {
	failed(having(gate, "/execution_dag/phases/-", "CHECK")) == {"phase_admissibility"}
}

test_phase_admissibility_refuses_a_missing_gate if {
	once := having(gate, "/execution_dag/edges", [])
	changed := having(once, "/execution_dag/phases", ["AUTHORITY_LOCK", "PRE_GEN", "GEN"])
	denied(changed, "phase_admissibility", "the execution DAG leaves out OPA_GATE")
}

test_phase_admissibility_refuses_backward_edges if {
	changed := having(gate, "/execution_dag/edges/-", {"from": "GEN", "to": "PRE_GEN"})
	denied(changed, "phase_admissibility", "the edge GEN -> PRE_GEN does not run forward between declared phases")
}

test_phase_admissibility_refuses_entries_of_undeclared_phases if {
	changed := having(final, "/run_ledger/entries/1/phase", "EVAL")
	denied(changed, "phase_admissibility", "the run ledger's entry 1 (EVAL) is of no declared phase")
}

test_artifact_integrity_compares_hashes if {
	changed := having(final, "/artifact_hashes/artifacts~1a.json", hash_a)
	denied(
		changed, "artifact_integrity",
		sprintf("the run ledger's artifact artifacts/a.json (%s) does not have that hash among the artifact hashes", [hash_b]),
	)
}

test_artifact_integrity_refuses_a_missing_hash if {
	failed(having(final, "/artifact_hashes", {})) == {"artifact_integrity"}
}

test_artifact_integrity_refuses_an_unrecorded_artifact if {
	changed := having(final, "/artifact_hashes/rogue.txt", hash_a)
	denied(changed, "artifact_integrity", "the artifact rogue.txt has no matching entry in the run ledger")
}

test_artifact_integrity_refuses_entries_that_do_not_say if {
	failed(json.remove(final, ["run_ledger/entries/0/artifact"])) == {"artifact_integrity", "inference_compliance"}
}

test_deterministic_replay_refuses_two_hashes if {
	changed := having(final, "/run_ledger/entries/-", object.union(entry, {"sha256": hash_a}))
	"the run ledger does not give exactly one hash for the artifact artifacts/a.json (2)" in messages(changed)
	failed(changed) == {"artifact_integrity", "deterministic_replay"}
}

test_deterministic_replay_needs_hashes if {
	failed(having(gate, "/pre_gen_capsule/inputs_manifest_hash", "abc")) == {"deterministic_replay"}
}

test_deterministic_replay_needs_an_executor_version if {
	failed(having(gate, "/pre_gen_capsule/gen_executor/version", "")) == {"deterministic_replay"}
}
