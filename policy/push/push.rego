# The push policy: whether a branch or tag may be updated. It is read from where the branch was before, never from what is pushed.
#
# What git cbia verify found is part of the input, so that this policy decides what it means: here every error refuses.
package push

default allow := false

allow if {
	is_string(input.update.ref)
	is_array(input.changed)
	is_array(input.findings)
	is_array(input.attestations)
	is_boolean(input.maintained)
	count(deny) == 0
}

deny contains reason if {
	some position, finding in input.findings
	finding.severity == "error"
	reason := {
		"check": "gen_admitted",
		"rule_id": "PSH-001",
		"path": sprintf("/findings/%d", [position]),
		"msg": sprintf("%v: %v", [finding.code, finding.message]),
	}
}

# Where the repository names its maintainers, one of them attests every change of what decides about generation.
deny contains reason if {
	input.maintained == true
	count(input.attestations) == 0
	some path in input.changed
	strings.any_prefix_match(path, ["policy/", "control/", "schemas/"])
	reason := {
		"check": "control_attested",
		"rule_id": "PSH-002",
		"path": "/attestations",
		"msg": sprintf("%v changes, and none of control/maintainers.allowed_signers has attested the run", [path]),
	}
}

deny contains reason if {
	input.maintained == true
	count(input.attestations) == 0
	input.changed_cut == true
	reason := {
		"check": "control_attested",
		"rule_id": "PSH-003",
		"path": "/changed",
		"msg": "more paths change than are told, and no maintainer has attested the run",
	}
}
