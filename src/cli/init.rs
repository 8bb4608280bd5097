use std::path::Path;

use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::SCHEMA_VERSION;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json::emit;
use crate::policy::DEFAULT_BUNDLE;

/// Write a small working pipeline into this repository.
///
/// One locked authority, two objectives, two templates, a schema, the default policies with their tests, and the entries in .gitignore for the
/// evidence and the package, which the refs keep. Nothing that is there already is overwritten.
#[derive(clap::Args)]
pub struct Args {}

const HANDBOOK: &str = include_str!("starter/handbook.md");
/// What the evidence is, and the package, which follows from the artifacts: for `.gitignore`.
const IGNORED: [&str; 4] = ["/control/runtime/pre_gen_capsule.json", "/dist/bundle/", "/execution/", "/opa/"];

pub fn run(context: &Context<'_>, _args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let top = context
        .store
        .work_dir()
        .ok_or_else(|| CommandError::usage("the repository is bare: there is no work tree to write to"))?;
    let files = files();
    let mut standing = Vec::new();
    for (path, text) in &files {
        match std::fs::symlink_metadata(top.join(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(metadata) if metadata.is_file() && std::fs::read(top.join(path)).is_ok_and(|bytes| bytes == text.as_bytes()) => {}
            _ => standing.push(
                Finding::error(Code::ArtifactBlocked, format!("{path} is there already, and is not what init would write"))
                    .at(path)
                    .hint("this repository may have a pipeline: git cbia status; otherwise move the file away"),
            ),
        }
    }
    if !standing.is_empty() {
        return Err(CommandError::all(exit::DENIED, standing));
    }
    let mut written = Vec::new();
    for (path, text) in &files {
        if !top.join(path).exists() {
            write(&top.join(path), text.as_bytes())?;
            written.push(path.clone());
        }
    }
    if ignore(&top.join(".gitignore"))? {
        written.push(".gitignore".into());
    }
    for path in &written {
        ui.line(&format!("wrote {path}"));
    }
    ui.note(if written.is_empty() { "everything was there already" } else { "next: git cbia run" });
    ui.result(json!({ "written": written }), &[]);
    Ok(exit::DONE)
}

/// Every file of the starter pipeline.
fn files() -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let ledger = json!({
        "schema_version": SCHEMA_VERSION, "frozen": true,
        "authority_set": [{
            "authority_id": "handbook", "title": "Handbook", "source": {"kind": "file", "locator": "docs/handbook.md"},
            "hash": {"alg": "sha256", "value": Digest::of(HANDBOOK.as_bytes())},
        }],
    });
    let objective = |id: &str, kind: &str, statement: &str| {
        json!({
            "id": id, "type": kind, "statement": statement,
            "source": {"authority_id": "handbook", "evidence": []},
            "constraints": {"invent_nothing": true}, "justification": "Everyone who answers requests needs the handbook's rules at hand.",
        })
    };
    let objectives = json!([
        objective("O-01", "checklist", "A checklist of every rule in the handbook."),
        objective("O-02", "data", "The same rules as data."),
    ]);
    let artifact = |path: &str, id: &str, template: &str| json!({"path": path, "objectives": [id], "template": template});
    let pipeline = json!({
        "schema_version": SCHEMA_VERSION, "inputs": [],
        "gen": {"generated": ["artifacts/**"], "artifacts": [
            artifact("artifacts/checklist.md", "O-01", "control/templates/checklist.md.j2"),
            artifact("artifacts/rules.json", "O-02", "control/templates/rules.json.j2"),
        ]},
        "check": {"schemas": [{"paths": "artifacts/rules.json", "schema": "schemas/rules.schema.json"}]},
        "struct": {"normalize": [{"paths": "**/*.json", "format": "json"}, {"paths": "**/*.md", "format": "text"}]},
        "flow": {"layout": [{"from": "artifacts/**", "to": "dist/bundle/"}]},
        "promote": {"destinations": ["artifacts/**", "dist/**"]},
    });
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rules", "type": "object", "additionalProperties": false,
        "properties": {
            "objectives": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "rules": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        },
        "required": ["objectives", "rules"],
    });
    let own = [
        ("control/authority.ledger.json", text(emit(&ledger))),
        ("control/objectives.json", text(emit(&objectives))),
        ("control/pipeline.json", text(emit(&pipeline))),
        ("control/templates/checklist.md.j2", include_str!("starter/checklist.md.j2").to_owned()),
        ("control/templates/rules.json.j2", include_str!("starter/rules.json.j2").to_owned()),
        ("docs/handbook.md", HANDBOOK.to_owned()),
        ("schemas/rules.schema.json", text(emit(&schema))),
    ];
    let policies = DEFAULT_BUNDLE.iter().map(|(path, text)| (*path, (*text).to_owned()));
    own.into_iter().chain(policies).map(|(path, text)| (path.to_owned(), text)).collect()
}

/// Adds the evidence to `.gitignore`, keeping what is there. Whether anything was added.
fn ignore(path: &Path) -> Result<bool, CommandError> {
    let mut text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io_error(path, &error)),
    };
    let missing: Vec<&str> = IGNORED.into_iter().filter(|line| !text.lines().any(|l| l.trim_end() == *line)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# Evidence of git cbia; refs/cbia/ keeps it.\n");
    for line in missing {
        text.push_str(line);
        text.push('\n');
    }
    write(path, text.as_bytes())?;
    Ok(true)
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    let folder = path.parent().unwrap_or(path);
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        use std::io::Write as _;
        use std::os::unix::fs::PermissionsExt as _;
        // What git itself would give a new file; the umask takes its part away.
        let mut file = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o666)).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    written.map_err(|error| io_error(path, &error))
}

fn io_error(path: &Path, error: &std::io::Error) -> CommandError {
    let shown = crate::document::path::printable(&path.to_string_lossy());
    CommandError::found(Finding::error(Code::CommandFailed, format!("{shown} cannot be written: {error}")).at(shown))
}
