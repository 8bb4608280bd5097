//! Which executor a configuration comes to. Chosen explicitly, never dynamically: its identity is part of the capsule.

use std::io::{self, Read as _};

use crate::document::digest::Digest;
use crate::document::executor::{ExecutorConfig, ExecutorKind, GenExecutor, Program};
use crate::document::finding::{Code, Finding};
use crate::document::path::{RepoPath, printable};
use crate::document::schema::{Kind, load};

/// The version of the program that runs the pipeline, as it stands in every capsule and key. Raised when what a run emits changes, the
/// evidence included; the golden tests fail if it is forgotten. It is not the release's version, so that a release that changes no
/// output keeps every cache.
pub const RUNNER_VERSION: &str = "2";

/// The executor when nothing is configured.
pub fn builtin() -> GenExecutor {
    GenExecutor {
        kind: ExecutorKind::Builtin,
        version: super::builtin::GENERATOR_VERSION.into(),
        runner_version: RUNNER_VERSION.into(),
        config: None,
        programs: Vec::new(),
    }
}

/// The executor that a configuration, read from `path`, comes to, and what stands against it. `snapshot` says which of the repository's files
/// the executor will see, and what they are.
pub fn resolve(path: &RepoPath, bytes: &[u8], snapshot: &Snapshot<'_>) -> Result<(GenExecutor, Vec<Finding>), Vec<Finding>> {
    let config = load::<ExecutorConfig>(Kind::ExecutorConfig, path, bytes)?.document;
    let mut findings = Vec::new();
    let mut programs = Vec::new();
    for (position, word) in config.command.iter().flatten().enumerate() {
        match program(word, position == 0, snapshot) {
            Ok(digest) => programs.extend(digest.map(|sha256| Program { path: word.clone(), sha256 })),
            Err(finding) => findings.push(finding.at(path).pointing(format!("/command/{position}"), bytes)),
        }
    }
    let executor = GenExecutor {
        kind: config.kind,
        version: config.version.clone(),
        runner_version: RUNNER_VERSION.into(),
        config: Some(config),
        programs,
    };
    Ok((executor, findings))
}

/// Which files of the repository there are.
pub struct Snapshot<'a> {
    /// The digest of a file that the executor will see.
    pub seen: &'a dyn Fn(&RepoPath) -> Option<Digest>,
    /// Whether a path is a file of the snapshot at all.
    pub known: &'a dyn Fn(&RepoPath) -> bool,
}

/// The digest of what a word of the command names, if it names a file. The first word must.
fn program(word: &str, first: bool, snapshot: &Snapshot<'_>) -> Result<Option<Digest>, Finding> {
    let shown = printable(word);
    let missing = |message: String, hint: &str| Finding::error(Code::ExecutorNotFound, message).hint(hint);
    if word.starts_with('/') {
        return match digest(word) {
            Ok(None) if first => Err(missing(format!("the executor's program {shown} is not a regular file"), "name a program")),
            Ok(digest) => Ok(digest),
            Err(error) if first || error.kind() != io::ErrorKind::NotFound => Err(missing(
                format!("{shown}, which the executor's command names, cannot be read: {error}"),
                "install it, or correct the command",
            )),
            // An argument that is no file is an argument.
            Err(_) => Ok(None),
        };
    }
    let Ok(path) = word.parse::<RepoPath>() else {
        return if first {
            Err(missing(format!("the executor's program {shown} is not an absolute path"), ABSOLUTE))
        } else {
            Ok(None)
        };
    };
    match (snapshot.seen)(&path) {
        Some(digest) => Ok(Some(digest)),
        None if first => Err(missing(
            format!("the executor's program {shown} is neither an absolute path nor a file that the executor will see"),
            ABSOLUTE,
        )),
        None if (snapshot.known)(&path) => Err(missing(
            format!("the executor's command names {path}, which the executor will not see"),
            "move it to control/executors/, or list it in the pipeline's inputs",
        )),
        None => Ok(None),
    }
}

const ABSOLUTE: &str = "nothing is searched for: give an absolute path such as /usr/bin/python3, or a file of control/executors/";

/// The digest of a regular file of this machine; `None` for anything else that is there.
fn digest(path: &str) -> io::Result<Option<Digest>> {
    // A file of another kind may block or never end.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    Digest::of_reader(&mut std::fs::File::open(path)?).map(Some)
}

/// What is wrong with a program that was admitted earlier, if it has changed since.
pub fn recheck(program: &Program) -> Option<Finding> {
    if !program.path.starts_with('/') {
        return None;
    }
    let shown = printable(&program.path);
    let finding = |message: String| {
        Some(
            Finding::error(Code::ExecutorNotFound, message)
                .at(&shown)
                .hint("run again, which admits the program that is there now"),
        )
    };
    match digest(&program.path) {
        Ok(Some(digest)) if digest == program.sha256 => None,
        Ok(_) => finding(format!("{shown} is not the program that was admitted: it has changed since")),
        Err(error) => finding(format!("{shown} was admitted, and cannot be read any more: {error}")),
    }
}

/// The program at `path`, open, if its bytes are the ones that were admitted, and `None` if they are but the file must be started by its name:
/// a script, which its interpreter opens again, or anything where open files have no names. Who can write into the open file itself is not
/// kept from it.
pub fn hold(path: &str, sha256: &Digest) -> io::Result<Option<std::fs::File>> {
    let mut file = std::fs::File::open(path)?;
    let mut first = Vec::with_capacity(2);
    (&mut file).take(2).read_to_end(&mut first)?;
    if Digest::of_reader(&mut first.as_slice().chain(&mut file))? != *sha256 {
        return Err(io::Error::other("it is not the program that was admitted: it has changed since"));
    }
    let named = first == b"#!" || !cfg!(target_os = "linux") || !std::path::Path::new("/proc/self/fd").exists();
    Ok((!named).then_some(file))
}

/// Whether `executor` is the built-in generator: nothing is configured, or `local` without a command.
pub fn is_builtin(executor: &GenExecutor) -> bool {
    executor.config.as_ref().is_none_or(|config| config.kind == ExecutorKind::Local && config.command.is_none())
}

/// The version that stands for the generator in a cache key.
pub fn generator_version(executor: &GenExecutor) -> String {
    if is_builtin(executor) { super::builtin::GENERATOR_VERSION.into() } else { executor.version.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "control/executors/gen.py";

    fn resolve_with(text: &str, script: &[u8]) -> Result<(GenExecutor, Vec<Finding>), Vec<Finding>> {
        let digest = Digest::of(script);
        let snapshot = Snapshot {
            seen: &|path| (path.as_str() == SCRIPT).then_some(digest),
            known: &|path| [SCRIPT, "tools/gen.py"].contains(&path.as_str()),
        };
        resolve(&"control/runtime/gen_executor.json".parse().unwrap(), text.as_bytes(), &snapshot)
    }

    fn resolved(text: &str) -> GenExecutor {
        resolve_with(text, b"").unwrap().0
    }

    #[test]
    fn every_value_of_a_configuration_is_part_of_its_key() {
        let base = r#"{"kind":"local","version":"1","env":{"A":"1"}}"#;
        let key = resolved(base).key();
        assert_eq!(resolved(&base.replace(',', " ,\n")).key(), key, "spelling is not identity");
        let mut keys = std::collections::BTreeSet::from([key, builtin().key()]);
        for other in [
            r#"{"kind":"local","version":"2","env":{"A":"1"}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"2"}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"timeout_s":3}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"phase_config":{"x":1}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"command":["x"]}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{"require":false}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{"network":true}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{"read":["/opt"]}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{"pass_env":["KEY"]}}"#,
            r#"{"kind":"local","version":"1","env":{"A":"1"},"sandbox":{"limits":{"memory_bytes":9999999}}}"#,
            r#"{"kind":"external","version":"1","env":{"A":"1"},"command":["/bin/sh","control/executors/gen.py"]}"#,
        ] {
            assert!(keys.insert(resolved(other).key()), "{other}");
        }
        let with_script = r#"{"kind":"external","version":"1","command":["/bin/sh","control/executors/gen.py"]}"#;
        let (one, two) = (resolve_with(with_script, b"1").unwrap().0, resolve_with(with_script, b"2").unwrap().0);
        assert_ne!(one.key(), two.key(), "one byte of the script");
        assert_eq!(one.programs.len(), 2);
        assert_eq!(one.programs[0].sha256, Digest::of(&std::fs::read("/bin/sh").unwrap()));
    }

    #[test]
    fn nothing_configured_is_what_it_always_was() {
        let value = crate::document::json::to_value(&builtin());
        let wanted = serde_json::json!({
            "kind": "builtin", "version": super::super::builtin::GENERATOR_VERSION, "runner_version": RUNNER_VERSION, "config": null,
        });
        assert_eq!(value, wanted);
    }

    #[test]
    fn a_command_names_its_program_exactly() {
        let cases: &[(&str, &[&str])] = &[
            (r#"["/bin/sh"]"#, &[]),
            (r#"["/bin/sh","-c","true","no/such/file","/no/such/file"]"#, &[]),
            (r#"["control/executors/gen.py"]"#, &[]),
            (r#"["python3"]"#, &["/command/0"]),
            (r#"["./gen.py"]"#, &["/command/0"]),
            (r#"["../gen.py"]"#, &["/command/0"]),
            (r#"[""]"#, &["/command/0"]),
            (r#"["/no/such/program"]"#, &["/command/0"]),
            (r#"["/dev/null"]"#, &["/command/0"]),
            (r#"["/usr"]"#, &["/command/0"]),
            (r#"["tools/gen.py"]"#, &["/command/0"]),
            (r#"["/bin/sh","tools/gen.py"]"#, &["/command/1"]),
        ];
        for (command, wanted) in cases {
            let text = format!(r#"{{"kind":"external","version":"1","command":{command}}}"#);
            let findings = resolve_with(&text, b"").unwrap().1;
            let got: Vec<&str> = findings.iter().filter_map(|f| f.pointer.as_deref()).collect();
            assert_eq!(got, *wanted, "{command}");
            assert!(findings.iter().all(|f| f.code == Code::ExecutorNotFound && f.hint.is_some()), "{command}");
        }
    }

    #[test]
    fn a_program_that_changed_since_it_was_admitted_is_told() {
        let program = |path: &str, bytes: &[u8]| Program { path: path.into(), sha256: Digest::of(bytes) };
        assert!(recheck(&program("/bin/sh", &std::fs::read("/bin/sh").unwrap())).is_none());
        assert!(recheck(&program(SCRIPT, b"what the snapshot has")).is_none());
        for path in ["/bin/sh", "/no/such/program", "/usr"] {
            assert_eq!(recheck(&program(path, b"")).unwrap().code, Code::ExecutorNotFound, "{path}");
        }
    }

    #[test]
    fn what_is_started_is_the_file_that_was_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name).to_str().unwrap().to_owned();
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let path = place("program", b"\x7fELF");
        let mut held = hold(&path, &Digest::of(b"\x7fELF")).unwrap().unwrap();
        // Another file takes the name; the open one stays what it was.
        std::fs::rename(place("other", b"other"), &path).unwrap();
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut held).unwrap();
        held.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\x7fELF");
        assert!(hold(&path, &Digest::of(b"\x7fELF")).unwrap_err().to_string().contains("has changed since"));
        let script = place("script", b"#!/bin/sh\n");
        assert!(hold(&script, &Digest::of(b"#!/bin/sh\n")).unwrap().is_none());
    }

    #[test]
    fn a_wrong_configuration_is_unreadable() {
        for wrong in [
            r#"{"kind":"external","version":"1"}"#,
            r#"{"kind":"magic","version":"1"}"#,
            r#"{"kind":"local"}"#,
            r#"{"kind":"local","version":"1","x":1}"#,
            r#"{"kind":"local","version":"1","sandbox":{"requires":false}}"#,
            r#"{"kind":"local","version":"1","sandbox":{"read":["relative"]}}"#,
            r#"{"kind":"local","version":"1","sandbox":{"pass_env":["A=B"]}}"#,
            r#"{"kind":"local","version":"1","sandbox":{"limits":{"memory_bytes":-1}}}"#,
            r#"{"kind":"local","version":"1","sandbox":{"limits":{"threads":1}}}"#,
            r#"{"kind":"local","version":"1","command":["/bin/sh","\u0000"]}"#,
            r#"{"kind":"local","version":"1","phase_config":{"phase":"CHECK"}}"#,
            r#"{"kind":"local","version":"1","phase_config":{"outputs":{"execution_report":"elsewhere.json"}}}"#,
        ] {
            assert_eq!(resolve_with(wrong, b"").unwrap_err()[0].code, Code::DocumentSchema, "{wrong}");
        }
    }
}
