//! Which paths git cbia keeps for itself, and which files belong to a run.

use crate::document::path::RepoPath;

/// Evidence that a run emits into the work tree, at these paths and no others: DESIGN section 2.
pub const EVIDENCE_FOLDERS: &[&str] = &["opa", "execution"];
/// The capsule is the one piece of evidence inside `control/`.
pub const CAPSULE_PATH: &str = "control/runtime/pre_gen_capsule.json";
/// The executor's configuration decides who executes, and enters by its resolved form, not as a file.
pub const EXECUTOR_CONFIG_PATH: &str = "control/runtime/gen_executor.json";
/// A schema of the repository's own that the capsule must satisfy too.
pub const CAPSULE_SCHEMA_PATH: &str = "control/runtime/pre_gen_capsule.schema.json";
/// The pipeline's declaration.
pub const PIPELINE_PATH: &str = "control/pipeline.json";
/// What an audit bundle must contain.
pub const AUDIT_MANIFEST_PATH: &str = "assurance/audit_bundle.manifest.json";
/// The folder that holds a run's snapshot inside its tree.
pub const SNAPSHOT_FOLDER: &str = "inputs";
/// Templates here may be included by others, and are always part of the inputs manifest.
pub const TEMPLATES_FOLDER: &str = "control/templates";
/// Executors that the repository ships.
pub const EXECUTORS_FOLDER: &str = "control/executors";

/// Whether a run emits evidence at `path`.
pub fn is_evidence(path: &RepoPath) -> bool {
    path.as_str() == CAPSULE_PATH || EVIDENCE_FOLDERS.iter().any(|folder| path.is_under(folder))
}

/// Whether `path` is read by every run because of where it is. Evidence, the executor's configuration, signers, policy
/// tests and the push policy are not: they do not decide whether this state may be generated from.
pub fn is_always_read(path: &RepoPath) -> bool {
    let text = path.as_str();
    let control =
        path.is_under("control") && text != CAPSULE_PATH && text != EXECUTOR_CONFIG_PATH && !text.ends_with(".allowed_signers");
    let policy = path.is_under("policy") && !is_policy_test(path) && !path.is_under("policy/push");
    control || policy || path.is_under("schemas") || text == AUDIT_MANIFEST_PATH
}

/// Whether `path` is a policy's test.
pub fn is_policy_test(path: &RepoPath) -> bool {
    path.as_str().ends_with("_test.rego")
}

/// Whether `policy_bundle_hash` covers `path`: the policies that decide whether generation may happen, not those of later
/// phases, which enter those phases' own keys.
pub fn is_bundle_member(path: &RepoPath) -> bool {
    let later = ["policy/select", "policy/promote", "policy/push"].iter().any(|folder| path.is_under(folder));
    path.is_under("policy") && !is_policy_test(path) && !later
}

/// Whether SELECT's policies include `path`.
pub fn is_selection_policy(path: &RepoPath) -> bool {
    path.is_under("policy/select") && !is_policy_test(path)
}

/// Why neither an artifact nor a file of the package may lie at `path`, if it may not. On a file system that does not tell letters by their
/// case, a name in other letters is the same name.
pub fn reserved(path: &RepoPath) -> Option<&'static str> {
    const FOLDERS: [(&str, &str); 6] = [
        (SNAPSHOT_FOLDER, "a run's tree keeps its snapshot there"),
        ("opa", "the decision's evidence is emitted there"),
        ("execution", "the run's evidence is emitted there"),
        ("control", "the control state is read from there"),
        ("policy", "the policies are read from there"),
        ("schemas", "the schemas are read from there"),
    ];
    let text = path.as_str();
    // By way of the capitals, for there are letters of which only the capital is the same.
    let folded = text.to_uppercase().to_lowercase();
    let first = folded.split('/').next().unwrap_or_default();
    if folded == AUDIT_MANIFEST_PATH {
        return Some("what an audit needs is read from there");
    }
    let folder = FOLDERS.iter().find(|(folder, _)| first == *folder);
    let git = text.split('/').any(|c| c.len() >= 4 && c.as_bytes()[..4].eq_ignore_ascii_case(b".git"));
    folder.map(|(_, why)| *why).or(git.then_some("git itself reads files of that name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_of_the_snapshot_and_the_bundle() {
        let cases = [
            ("control/pipeline.json", true, false),
            ("control/runtime/pre_gen_capsule.json", false, false),
            ("control/runtime/pre_gen_capsule.schema.json", true, false),
            ("control/runtime/gen_executor.json", false, false),
            ("control/maintainers.allowed_signers", false, false),
            ("policy/assurance/assurance.rego", true, true),
            ("policy/assurance/assurance_test.rego", false, false),
            ("policy/select/select.rego", true, false),
            ("policy/promote/promote.rego", true, false),
            ("policy/push/push.rego", false, false),
            ("schemas/x.schema.json", true, false),
            ("docs/x.md", false, false),
            ("controls/x", false, false),
        ];
        for (path, read, bundled) in cases {
            let path = path.parse().unwrap();
            assert_eq!((is_always_read(&path), is_bundle_member(&path)), (read, bundled), "{path}");
        }
    }

    #[test]
    fn artifacts_keep_out_of_reserved_places() {
        for path in [
            "inputs/a",
            "opa/x.json",
            "execution",
            "control/a",
            "policy/a",
            "schemas/a",
            ".gitattributes",
            "a/.gitmodules",
            "x/.GitIgnore",
            "Control/a",
            "POLICY",
            "Policy/promote/x.rego",
            "SCHEMAS/a",
            "\u{17f}chemas/a",
            "Inputs/a",
            "Opa/input.json",
            "eXecution/a",
            "Assurance/audit_bundle.manifest.JSON",
        ] {
            assert!(reserved(&path.parse().unwrap()).is_some(), "{path}");
        }
        for path in ["artifacts/a", "docs/inputs/a", "a.git", "x/gitignore", "Controls/a", "docs/Policy/a", "Assurance/a"] {
            assert!(reserved(&path.parse().unwrap()).is_none(), "{path}");
        }
    }
}
