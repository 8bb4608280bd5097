package control.kernel_test

import data.control.kernel

hash_a := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

state := {
	"schema_version": "0.1.0",
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
	"objectives": [{"id": "O-01", "source": {"authority_id": "A-01", "evidence": []}}],
	"dependency_graph": {"nodes": [{"id": "O-01"}, {"id": "A-01"}], "edges": [{"from": "O-01", "to": "A-01"}]},
	"execution_dag": {"phases": ["AUTHORITY_LOCK", "PRE_GEN", "OPA_GATE", "GEN"], "edges": []},
	"gen": {
		"generated": ["artifacts/**"],
		"artifacts": [{"path": "artifacts/a.json", "objectives": ["O-01"], "template": "control/templates/a.json.j2"}],
	},
	"inputs": ["syllabus/**"],
	"gen_executor": {"kind": "builtin", "version": "1"},
	"authority_set_hashes": {"A-01": hash_a},
	"inputs_manifest": {"files": [{"path": "syllabus/s.md", "sha256": hash_a, "bytes": 3}]},
	"mechanical_findings": [],
}

having(path, value) := json.patch(state, [{"op": "add", "path": path, "value": value}])

failed(document) := {name |
	checks := kernel.checks with input as document
	some name, passed in checks
	passed != true
}

denied(document, check, message) if {
	failed(document) == {check}
	message in {reason.msg | some reason in kernel.deny with input as document}
	kernel.allow == false with input as document
}

test_a_sound_state_is_allowed if kernel.allow with input as state

test_nothing_fails_every_check if {
	count(failed({})) == 8
	kernel.allow == false with input as {}
}

test_no_document_is_dispensable if {
	every member, _ in object.remove(state, ["schema_version"]) {
		kernel.allow == false with input as object.remove(state, [member])
	}
}

test_authorities_must_be_frozen if {
	denied(having("/authority_ledger/frozen", "true"), "authorities_locked", "the authority ledger is not frozen: frozen is true")
}

test_authorities_must_be_verified if {
	denied(having("/authority_set_hashes", {}), "authorities_locked", "the authority A-01 is not a file whose hash was verified")
}

test_authorities_must_be_files if {
	changed := having("/authority_ledger/authority_set/0/source/kind", "url")
	denied(changed, "authorities_locked", "the authority A-01 is not a file whose hash was verified")
}

test_hashes_of_unknown_authorities_are_refused if {
	changed := having("/authority_set_hashes/A-02", hash_a)
	denied(changed, "authorities_locked", "a hash is given for A-02, which the ledger does not have")
}

test_evidence_is_a_list_or_absent if {
	changed := having("/objectives/0/source/evidence", "in the syllabus")
	denied(changed, "objectives_grounded", "the objective O-01 draws from no authority of the ledger, or has evidence that is no list")
	without := json.patch(state, [{"op": "remove", "path": "/objectives/0/source/evidence"}])
	kernel.allow with input as without
}

test_objectives_must_be_grounded if {
	changed := having("/objectives/0/source/authority_id", "ROGUE")
	denied(changed, "objectives_grounded", "the objective O-01 draws from no authority of the ledger, or has evidence that is no list")
}

test_objective_ids_are_unique if {
	failed(having("/objectives/-", state.objectives[0])) == {"objectives_grounded"}
}

test_artifacts_must_serve_objectives if {
	changed := having("/gen/artifacts/0/objectives", ["O-99"])
	denied(changed, "artifacts_declared", "the artifact artifacts/a.json names no objective, or one that does not exist")
}

test_artifacts_need_an_objective if {
	changed := having("/gen/artifacts/0/objectives", [])
	denied(changed, "artifacts_declared", "the artifact artifacts/a.json names no objective, or one that does not exist")
}

test_artifact_paths_are_unique if {
	failed(having("/gen/artifacts/-", state.gen.artifacts[0])) == {"artifacts_declared"}
}

test_edges_must_join_nodes if {
	changed := having("/dependency_graph/edges/-", {"from": "O-01"})
	denied(changed, "graph_closed", "the edge O-01 -> ? names a node that does not exist")
}

test_a_repository_may_have_no_graph if kernel.allow with input as having("/dependency_graph", null)

test_the_gates_are_phases if {
	changed := having("/execution_dag/phases", ["AUTHORITY_LOCK", "PRE_GEN", "GEN"])
	denied(changed, "phases_declared", "the execution DAG leaves out OPA_GATE")
}

test_inputs_are_pinned if {
	changed := having("/inputs_manifest/files/0/sha256", "abc")
	denied(changed, "inputs_pinned", "the input syllabus/s.md is not pinned by hash and size")
}

test_the_executor_has_a_version if {
	failed(having("/gen_executor/version", "")) == {"executor_declared"}
}

test_mechanical_errors_deny if {
	changed := having("/mechanical_findings/-", {"code": "x-y", "severity": "error", "message": "bad", "path": null})
	denied(changed, "no_mechanical_errors", "x-y: bad")
}

test_a_finding_without_severity_denies if {
	denied(having("/mechanical_findings/-", {"code": "x-y"}), "no_mechanical_errors", "x-y: ?")
}

test_mechanical_warnings_do_not_deny if {
	kernel.allow with input as having("/mechanical_findings/-", {"code": "x-y", "severity": "warning", "message": "hm"})
}
