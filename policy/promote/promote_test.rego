package promote_test

import data.promote

hash_a := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

hash_b := "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

question := {
	"schema_version": "0.1.0",
	"promote_capsule": {
		"schema_version": "0.1.0",
		"phase": "PROMOTE",
		"run": "0123456789012345678901234567890123456789",
		"state_key": hash_a,
		"executor_key": hash_b,
		"evidence": {
			"pre_gen_capsule_hash": hash_a,
			"decision_hash": hash_a,
			"check_report_hash": hash_a,
			"metadata_hash": hash_a,
			"selection_hash": hash_a,
			"artifact_hashes_hash": hash_a,
			"flow_manifest_hash": hash_a,
			"final_manifest_hash": hash_a,
		},
		"files": [
			{"path": "artifacts/a.json", "sha256": hash_a, "bytes": 3, "origin": "artifacts/a.json"},
			{"path": "dist/a.json", "sha256": hash_a, "bytes": 3, "origin": "artifacts/a.json"},
		],
		"destinations": ["artifacts/**", "dist/**"],
		"mode": "commit",
		"branch": "refs/heads/main",
	},
	"check_report": {"schema_version": "0.1.0", "phase": "CHECK", "passed": true, "artifacts": 2, "artifact_set_hash": hash_b, "findings": []},
	"selection": {"schema_version": "0.1.0", "phase": "SELECT", "query": null, "artifacts": [
		{"path": "artifacts/a.json", "sha256": hash_a, "keep": true, "reason": "kept"},
		{"path": "artifacts/b.json", "sha256": hash_b, "keep": false, "reason": "pruned"},
	]},
	"mechanical_findings": [],
}

having(path, value) := json.patch(question, [{"op": "add", "path": path, "value": value}])

without(path) := json.patch(question, [{"op": "remove", "path": path}])

failed(document) := {name |
	checks := promote.checks with input as document
	some name, passed in checks
	passed != true
}

denied(document, check, message) if {
	failed(document) == {check}
	message in {reason.msg | some reason in promote.deny with input as document}
	promote.allow == false with input as document
}

refused(document, check) if {
	failed(document) == {check}
	promote.allow == false with input as document
}

test_a_sound_promotion_is_allowed if promote.allow with input as question

test_nothing_fails_every_check if {
	count(failed({})) == 6
	promote.allow == false with input as {}
}

test_no_document_is_dispensable if {
	every member, _ in object.remove(question, ["schema_version"]) {
		promote.allow == false with input as object.remove(question, [member])
	}
}

test_no_evidence_is_dispensable if {
	every name, _ in question.promote_capsule.evidence {
		document := having("/promote_capsule/evidence", object.remove(question.promote_capsule.evidence, [name]))
		denied(document, "evidence_complete", sprintf("the evidence %v is missing", [name]))
	}
}

test_evidence_must_be_a_hash if {
	denied(having("/promote_capsule/evidence/decision_hash", "none"), "evidence_complete", "the evidence decision_hash is missing")
}

test_check_must_have_passed if {
	denied(having("/check_report/passed", false), "check_passed", "CHECK did not pass: passed is false")
	denied(having("/check_report/passed", "true"), "check_passed", "CHECK did not pass: passed is true")
	denied(without("/check_report/passed"), "check_passed", "CHECK did not pass: passed is missing")
	refused(having("/check_report/artifacts", 0), "check_passed")
	refused(having("/check_report/findings", [{"severity": "error"}]), "check_passed")
	promote.allow with input as having("/check_report/findings", [{"severity": "warning"}])
}

test_a_file_must_be_a_kept_artifact if {
	said := "dist/a.json is not the bytes of an artifact that was kept"
	denied(having("/promote_capsule/files/1/sha256", hash_b), "files_linked", said)
	denied(having("/promote_capsule/files/1/origin", "artifacts/b.json"), "files_linked", said)
	denied(having("/promote_capsule/files/1", {"path": "dist/a.json"}), "files_linked", said)
	refused(having("/promote_capsule/files", []), "files_linked")
	refused(having("/promote_capsule/files/1/path", "artifacts/a.json"), "files_linked")
}

test_a_pruned_artifact_is_not_promoted if {
	pruned := {"path": "artifacts/b.json", "sha256": hash_b, "bytes": 3, "origin": "artifacts/b.json"}
	denied(having("/promote_capsule/files/-", pruned), "files_linked", "artifacts/b.json is not the bytes of an artifact that was kept")
}

test_destinations_must_be_declared if refused(having("/promote_capsule/destinations", []), "destinations_declared")

test_a_mechanical_refusal_denies if {
	finding := {"code": "run-invalid", "severity": "error", "message": "m", "path": null}
	denied(having("/mechanical_findings/-", finding), "no_mechanical_errors", "a mechanical check refuses: m")
	promote.allow with input as having("/mechanical_findings/-", object.union(finding, {"severity": "warning"}))
}

test_the_run_must_be_named if {
	refused(having("/promote_capsule/run", "HEAD"), "run_named")
	refused(having("/promote_capsule/mode", "push"), "run_named")
	refused(without("/promote_capsule/state_key"), "run_named")
}
