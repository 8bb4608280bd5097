package push_test

import data.push

update := {
	"update": {"ref": "refs/heads/main", "kind": "update", "old": "0a", "new": "0b"},
	"changed": ["docs/guide.md"],
	"changed_cut": false,
	"maintained": false,
	"attestations": [],
	"pusher": null,
	"findings": [],
}

error := {"code": "gen-edited", "severity": "error", "path": "out/a", "message": "it was edited"}

warning := {"code": "gen-edited", "severity": "warning", "path": "out/a", "message": "it was edited"}

test_an_empty_input_is_denied if not push.allow with input as {}

test_an_update_without_findings_is_allowed if push.allow with input as update

test_a_missing_member_denies if {
	every member in ["update", "changed", "findings", "attestations", "maintained"] {
		not push.allow with input as object.remove(update, [member])
	}
}

test_an_error_denies if not push.allow with input as object.union(update, {"findings": [error]})

test_a_warning_does_not if push.allow with input as object.union(update, {"findings": [warning]})

test_the_control_state_may_change_where_nobody_maintains_it if {
	push.allow with input as object.union(update, {"changed": ["control/pipeline.json"]})
}

test_maintainers_attest_every_change_of_the_control_state if {
	every path in ["control/pipeline.json", "policy/push/push.rego", "schemas/a.schema.json"] {
		changed := object.union(update, {"maintained": true, "changed": ["a", path]})
		not push.allow with input as changed
		push.allow with input as object.union(changed, {"attestations": [{"signer": "ada"}]})
	}
	push.allow with input as object.union(update, {"maintained": true})
}

test_what_is_not_told_counts_as_a_change if {
	cut := object.union(update, {"maintained": true, "changed_cut": true})
	not push.allow with input as cut
}
