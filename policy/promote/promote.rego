# The promotion policy: whether the artifacts of a finished run may go onto a branch.
#
# Every check asks for what must be there, so that a missing document denies. Heads hold variables only, and operands are
# bound before they are negated: docs/policy.md says why. A rule of your own may look at input.promote_capsule.branch and mode.
package promote

default allow := false

allow if {
	count(checks) > 0
	every _, passed in checks {
		passed == true
	}
	count(deny) == 0
}

checks := {
	"check_passed": check_passed,
	"destinations_declared": destinations_declared,
	"evidence_complete": evidence_complete,
	"files_linked": files_linked,
	"no_mechanical_errors": no_mechanical_errors,
	"run_named": run_named,
}

is_sha256(text) if {
	is_string(text)
	regex.match("^[0-9a-f]{64}$", text)
}

is_object_id(text) if {
	is_string(text)
	regex.match("^([0-9a-f]{40}|[0-9a-f]{64})$", text)
}

is_filled(text) if {
	is_string(text)
	trim_space(text) != ""
}

# The run: named by its commit, its state and its executor.

default run_named := false

run_named if {
	input.promote_capsule.phase == "PROMOTE"
	input.promote_capsule.mode in {"commit", "stage", "patch"}
	is_object_id(input.promote_capsule.run)
	is_sha256(input.promote_capsule.state_key)
	is_sha256(input.promote_capsule.executor_key)
}

# The evidence: every document that speaks for the run, by its hash.

required_evidence := {
	"artifact_hashes_hash",
	"check_report_hash",
	"decision_hash",
	"final_manifest_hash",
	"flow_manifest_hash",
	"metadata_hash",
	"pre_gen_capsule_hash",
	"selection_hash",
}

default evidence_complete := false

evidence_complete if {
	is_object(input.promote_capsule.evidence)
	count(missing_evidence) == 0
}

given_evidence := {name |
	some name, value in input.promote_capsule.evidence
	is_sha256(value)
}

missing_evidence := required_evidence - given_evidence

deny contains reason if {
	some name in missing_evidence
	reason := {
		"check": "evidence_complete",
		"rule_id": "PRM-001",
		"path": "/promote_capsule/evidence",
		"msg": sprintf("the evidence %v is missing", [name]),
	}
}

# CHECK: passed, and over at least one artifact.

default check_passed := false

check_passed if {
	input.check_report.phase == "CHECK"
	input.check_report.passed == true
	input.check_report.artifacts > 0
	is_sha256(input.check_report.artifact_set_hash)
	is_array(input.check_report.findings)
	count(check_errors) == 0
}

check_errors := {position |
	some position, finding in input.check_report.findings
	finding.severity != "warning"
}

deny contains reason if {
	passed := object.get(input, ["check_report", "passed"], "missing")
	passed != true
	reason := {
		"check": "check_passed",
		"rule_id": "PRM-002",
		"path": "/check_report/passed",
		"msg": sprintf("CHECK did not pass: passed is %v", [passed]),
	}
}

# Files: at least one, each with a hash, and each from an artifact that was kept with exactly those bytes.

default files_linked := false

files_linked if {
	is_array(input.promote_capsule.files)
	count(input.promote_capsule.files) > 0
	is_array(input.selection.artifacts)
	count(destinations) == count(input.promote_capsule.files)
	count(unlinked_files) == 0
}

destinations := {path |
	some file in input.promote_capsule.files
	path := file.path
}

kept_artifacts := {pair |
	some artifact in input.selection.artifacts
	artifact.keep == true
	is_sha256(artifact.sha256)
	pair := [artifact.path, artifact.sha256]
}

linked_positions := {position |
	some position, file in input.promote_capsule.files
	is_filled(file.path)
	[file.origin, file.sha256] in kept_artifacts
}

unlinked_files := {name |
	some position, file in input.promote_capsule.files
	not position in linked_positions
	name := object.get(file, "path", sprintf("entry %d", [position]))
}

deny contains reason if {
	some name in unlinked_files
	reason := {
		"check": "files_linked",
		"rule_id": "PRM-003",
		"path": "/promote_capsule/files",
		"msg": sprintf("%v is not the bytes of an artifact that was kept", [name]),
	}
}

# Destinations: declared by the pipeline. Whether each file lies in one is a mechanical check.

default destinations_declared := false

destinations_declared if {
	is_array(input.promote_capsule.destinations)
	count(input.promote_capsule.destinations) > 0
}

# The mechanical checks.

default no_mechanical_errors := false

no_mechanical_errors if {
	is_array(input.mechanical_findings)
	count(mechanical_errors) == 0
}

mechanical_errors := {position |
	some position, finding in input.mechanical_findings
	finding.severity != "warning"
}

deny contains reason if {
	some position in mechanical_errors
	finding := input.mechanical_findings[position]
	reason := {
		"check": "no_mechanical_errors",
		"rule_id": "PRM-004",
		"path": sprintf("/mechanical_findings/%d", [position]),
		"msg": sprintf("a mechanical check refuses: %v", [object.get(finding, "message", "it gives no message")]),
	}
}
