//! Which executor a configuration comes to. Chosen explicitly, never dynamically: its identity is part of the capsule.

use crate::document::executor::{ExecutorConfig, ExecutorKind, GenExecutor};
use crate::document::finding::{Code, Finding};
use crate::document::path::RepoPath;
use crate::document::schema::{Kind, load};

/// The version of the program that runs the pipeline, as it stands in every capsule and key. Raised when what a run emits changes, the
/// evidence included; the golden tests fail if it is forgotten. It is not the release's version, so that a release that changes no
/// output keeps every cache.
pub const RUNNER_VERSION: &str = "1";

/// The executor when nothing is configured.
pub fn builtin() -> GenExecutor {
    GenExecutor {
        kind: ExecutorKind::Builtin,
        version: super::builtin::GENERATOR_VERSION.into(),
        runner_version: RUNNER_VERSION.into(),
        config: None,
    }
}

/// The executor that a configuration, read from `path`, comes to.
pub fn resolve(path: &RepoPath, bytes: &[u8]) -> Result<GenExecutor, Vec<Finding>> {
    let config = load::<ExecutorConfig>(Kind::ExecutorConfig, path, bytes)?.document;
    Ok(GenExecutor {
        kind: config.kind,
        version: config.version.clone(),
        runner_version: RUNNER_VERSION.into(),
        config: Some(config),
    })
}

/// Whether `executor` is the built-in generator: nothing is configured, or `local` without a command.
pub fn is_builtin(executor: &GenExecutor) -> bool {
    executor.config.as_ref().is_none_or(|config| config.kind == ExecutorKind::Local && config.command.is_none())
}

/// The version that stands for the generator in a cache key.
pub fn generator_version(executor: &GenExecutor) -> String {
    if is_builtin(executor) { super::builtin::GENERATOR_VERSION.into() } else { executor.version.clone() }
}

/// Whether this version of the program can execute it.
pub fn check_available(executor: &GenExecutor, path: &RepoPath) -> Option<Finding> {
    if is_builtin(executor) {
        return None;
    }
    let finding = Finding::error(
        Code::ExecutorUnavailable,
        "the configured executor runs a command, which this version of git cbia cannot confine and therefore does not run",
    );
    Some(finding.at(path).hint("take \"command\" out and use \"kind\": \"local\" for the built-in generator"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<GenExecutor, Vec<Finding>> {
        resolve(&"control/runtime/gen_executor.json".parse().unwrap(), text.as_bytes())
    }

    #[test]
    fn every_value_of_a_configuration_is_part_of_its_key() {
        let base = r#"{"kind":"local","version":"1","env":{"A":"1"}}"#;
        let key = resolved(base).unwrap().key();
        assert_eq!(resolved(&base.replace(',', " ,\n")).unwrap().key(), key, "spelling is not identity");
        for other in [
            r#"{"kind":"local","version":"2","env":{"A":"1"}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"2"}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"timeout_s":3}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"phase_config":{"x":1}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"command":["x"]}"#,
        ] {
            assert_ne!(resolved(other).unwrap().key(), key, "{other}");
        }
        assert_ne!(builtin().key(), key);
    }

    #[test]
    fn a_command_is_refused_and_a_wrong_configuration_is_unreadable() {
        let external = resolved(r#"{"kind":"external","version":"1","command":["/bin/true"]}"#).unwrap();
        let path = "control/runtime/gen_executor.json".parse().unwrap();
        assert_eq!(check_available(&external, &path).unwrap().code, Code::ExecutorUnavailable);
        assert!(check_available(&builtin(), &path).is_none());
        for wrong in [
            r#"{"kind":"external","version":"1"}"#,
            r#"{"kind":"magic","version":"1"}"#,
            r#"{"kind":"local"}"#,
            r#"{"kind":"local","version":"1","x":1}"#,
        ] {
            assert_eq!(resolved(wrong).unwrap_err()[0].code, Code::DocumentSchema, "{wrong}");
        }
    }
}
