use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::error::{CommandError, exit};
use super::ui::Ui;
use super::{Context, init};
use crate::document::SCHEMA_VERSION;
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::json::pretty;
use crate::document::path::{RepoPath, printable};
use crate::document::schema::{Kind, load};
use crate::gate::authority::LEDGER_PATH;
use crate::gate::paths::is_evidence;
use crate::store::snapshot::{Scan, ScanLimits, Wanted};

/// Keep the authority ledger: what generation may draw from.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Pin files as authorities, or pin them anew.
    Add {
        /// Files of this repository.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The id that objectives name; by default made from the file's name. For one file only.
        #[arg(long)]
        id: Option<String>,
        /// What a person calls it. For one file only.
        #[arg(long)]
        title: Option<String>,
    },
    /// List the authorities, and whether each is what was pinned.
    List,
    /// Lock the ledger. Refused while an authority is not what was pinned.
    Freeze,
    /// Unlock the ledger, to change it.
    Thaw,
}

/// One authority, held against its file.
struct Held {
    id: String,
    kind: String,
    locator: String,
    status: &'static str,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    match &args.command {
        Command::Add { files, id, title } => add(context, files, id.as_deref(), title.as_deref(), ui),
        Command::List => list(context, ui),
        Command::Freeze => freeze(context, true, ui),
        Command::Thaw => freeze(context, false, ui),
    }
}

/// The ledger as it stands in the work tree: with every member it has, and typed.
fn read(context: &Context<'_>) -> Result<Option<(Value, AuthorityLedger)>, CommandError> {
    let top = work_dir(context)?;
    let path: RepoPath =
        LEDGER_PATH.parse().map_err(|e: crate::document::path::PathError| CommandError::usage(&e.to_string()))?;
    let bytes = match std::fs::read(top.join(LEDGER_PATH)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let finding = Finding::error(Code::DocumentMissing, format!("{LEDGER_PATH} cannot be read: {error}"));
            return Err(CommandError::found(finding.at(LEDGER_PATH)));
        }
    };
    let sealed = load::<AuthorityLedger>(Kind::AuthorityLedger, &path, &bytes);
    let sealed = sealed.map_err(|findings| CommandError::all(exit::UNREADABLE, findings))?;
    Ok(Some((sealed.value, sealed.document)))
}

fn existing(context: &Context<'_>) -> Result<(Value, AuthorityLedger), CommandError> {
    read(context)?.ok_or_else(|| {
        let finding = Finding::error(Code::DocumentMissing, format!("there is no authority ledger: {LEDGER_PATH} is missing"));
        CommandError::found(finding.at(LEDGER_PATH).hint("git cbia authority add <file> begins one"))
    })
}

fn work_dir<'a>(context: &Context<'a>) -> Result<&'a std::path::Path, CommandError> {
    context.store.work_dir().ok_or_else(|| CommandError::usage("this command needs a work tree, and the repository is bare"))
}

fn scan(context: &Context<'_>, exact: &[RepoPath]) -> Result<Scan, CommandError> {
    let none = Globs::new(Vec::<String>::new()).map_err(|error| CommandError::usage(&error.to_string()))?;
    let wanted = Wanted { globs: &none, exact, exclude: &|_| false };
    let scan = context.store.scan_worktree(&wanted, ScanLimits::default())?;
    if crate::document::finding::refuses(&scan.findings) {
        return Err(CommandError::all(exit::UNREADABLE, scan.findings));
    }
    Ok(scan)
}

fn add(context: &Context<'_>, files: &[PathBuf], id: Option<&str>, title: Option<&str>, ui: &mut Ui) -> Result<u8, CommandError> {
    if files.len() > 1 && (id.is_some() || title.is_some()) {
        return Err(CommandError::usage("--id and --title go with one file"));
    }
    let (mut value, ledger) = match read(context)? {
        Some(found) => found,
        None => {
            let value = json!({"schema_version": SCHEMA_VERSION, "frozen": false, "authority_set": []});
            let ledger = serde_json::from_value(value.clone()).map_err(|error| CommandError::usage(&error.to_string()))?;
            (value, ledger)
        }
    };
    if ledger.frozen == Some(true) {
        let finding = Finding::error(Code::AuthorityFrozen, "the authority ledger is frozen, so nothing can be added to it")
            .at(LEDGER_PATH);
        return Err(CommandError::all(
            exit::DENIED,
            vec![finding.hint("git cbia authority thaw && git cbia authority add <file> && git cbia authority freeze")],
        ));
    }
    let paths = files.iter().map(|file| context.environment.repo_path(context.store, file)).collect::<Result<Vec<_>, _>>()?;
    let scan = scan(context, &paths)?;
    let mut done = Vec::new();
    for path in &paths {
        let Some(file) = scan.files.get(path).filter(|_| !is_evidence(path)) else {
            let message = format!("{path} cannot be an authority: it is missing, ignored by git, or evidence that a run emits");
            return Err(CommandError::found(
                Finding::error(Code::AuthorityMissing, message).at(path).hint("name a file that git would track"),
            ));
        };
        let entries = value["authority_set"].as_array_mut().ok_or_else(|| CommandError::usage("authority_set is not a list"))?;
        let same = |entry: &&mut Value| entry["source"]["kind"] == "file" && entry["source"]["locator"] == path.as_str();
        let pin = json!({"alg": "sha256", "value": file.sha256});
        let entry = match entries.iter().position(|entry| same(&&mut entry.clone())) {
            Some(index) => {
                entries[index]["hash"] = pin;
                if let Some(id) = id {
                    entries[index]["authority_id"] = id.into();
                }
                &mut entries[index]
            }
            None => {
                let taken = |id: &str| entries.iter().any(|entry| entry["authority_id"] == id);
                let chosen = match id {
                    Some(id) if taken(id) => return Err(CommandError::usage(&format!("the id '{}' is taken", printable(id)))),
                    Some(id) => id.to_owned(),
                    None => unused_id(path, &taken),
                };
                entries.push(json!({"authority_id": chosen, "source": {"kind": "file", "locator": path}, "hash": pin}));
                let last = entries.len() - 1;
                &mut entries[last]
            }
        };
        if let Some(title) = title {
            entry["title"] = title.into();
        }
        done.push(json!({"authority_id": entry["authority_id"], "locator": path, "sha256": file.sha256}));
        ui.line(&format!("{}  {}  {path}", file.sha256.short(), entry["authority_id"].as_str().unwrap_or_default()));
    }
    save(context, &value)?;
    ui.note("next: git cbia authority freeze");
    ui.result(json!({ "added": done }), &[]);
    Ok(exit::DONE)
}

/// An id from the file's name: `docs/Style Guide.md` gives `style-guide`.
fn unused_id(path: &RepoPath, taken: &dyn Fn(&str) -> bool) -> String {
    let name = path.as_str().rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').find(|part| !part.is_empty()).unwrap_or("authority");
    let slug: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let slug = match slug.trim_matches('-') {
        "" => "authority".to_owned(),
        slug => slug.chars().take(64).collect(),
    };
    let numbered = (2..).map(|n| format!("{slug}-{n}"));
    [slug.clone()].into_iter().chain(numbered).find(|id| !taken(id)).unwrap_or(slug)
}

fn save(context: &Context<'_>, value: &Value) -> Result<(), CommandError> {
    let bytes = pretty(value);
    let path: RepoPath =
        LEDGER_PATH.parse().map_err(|e: crate::document::path::PathError| CommandError::usage(&e.to_string()))?;
    load::<AuthorityLedger>(Kind::AuthorityLedger, &path, &bytes)
        .map_err(|findings| CommandError::all(exit::UNREADABLE, findings))?;
    init::write(&work_dir(context)?.join(LEDGER_PATH), &bytes)
}

/// Holds every authority against its file.
fn hold(context: &Context<'_>, ledger: &AuthorityLedger) -> Result<Vec<Held>, CommandError> {
    let paths: Vec<RepoPath> = ledger.authority_set.iter().filter_map(|a| a.file()).collect();
    let scan = scan(context, &paths)?;
    let held = |authority: &crate::document::authority_ledger::Authority| {
        let actual = authority.file().and_then(|path| scan.files.get(&path)).map(|file| file.sha256);
        let status = match (authority.kind(), actual, authority.pinned()) {
            ("file", None, _) => "missing",
            ("file", Some(actual), Some(pinned)) if actual == pinned => "locked",
            ("file", Some(_), Some(_)) => "changed",
            ("file", Some(_), None) => "not pinned",
            _ => "unverifiable",
        };
        Held {
            id: authority.authority_id.clone(),
            kind: authority.kind().to_owned(),
            locator: authority.locator().unwrap_or_default().to_owned(),
            status,
        }
    };
    Ok(ledger.authority_set.iter().map(held).collect())
}

fn list(context: &Context<'_>, ui: &mut Ui) -> Result<u8, CommandError> {
    let (_, ledger) = existing(context)?;
    let held = hold(context, &ledger)?;
    let frozen = ledger.frozen == Some(true);
    ui.line(&format!("{LEDGER_PATH} is {}", if frozen { "frozen" } else { "not frozen" }));
    let width = held.iter().map(|a| a.id.len()).max().unwrap_or(0);
    for authority in &held {
        ui.line(&format!("{:<12}  {:<width$}  {}", authority.status, printable(&authority.id), printable(&authority.locator)));
    }
    let value = |a: &Held| json!({"authority_id": a.id, "kind": a.kind, "locator": a.locator, "status": a.status});
    ui.result(json!({"frozen": frozen, "authorities": held.iter().map(value).collect::<Vec<_>>()}), &[]);
    Ok(exit::DONE)
}

fn freeze(context: &Context<'_>, frozen: bool, ui: &mut Ui) -> Result<u8, CommandError> {
    let (mut value, ledger) = existing(context)?;
    if frozen {
        let broken: Vec<Finding> = hold(context, &ledger)?
            .iter()
            .filter(|authority| matches!(authority.status, "missing" | "changed" | "not pinned"))
            .map(|authority| {
                let (code, hint) = match authority.status {
                    "missing" => (Code::AuthorityMissing, "restore the file, or take the entry out".to_owned()),
                    _ => (
                        Code::AuthorityHashMismatch,
                        format!("review the file, then: git cbia authority add {}", authority.locator),
                    ),
                };
                Finding::error(code, format!("the authority {} is {}: {}", authority.id, authority.status, authority.locator))
                    .at(LEDGER_PATH)
                    .hint(hint)
            })
            .collect();
        if !broken.is_empty() {
            return Err(CommandError::all(exit::DENIED, broken));
        }
    }
    let members: &mut Map<String, Value> =
        value.as_object_mut().ok_or_else(|| CommandError::usage("the ledger is not an object"))?;
    members.insert("frozen".into(), frozen.into());
    save(context, &value)?;
    ui.line(&format!("{LEDGER_PATH} is {}", if frozen { "frozen" } else { "not frozen: no run is admitted until it is again" }));
    ui.result(json!({ "frozen": frozen }), &[]);
    Ok(exit::DONE)
}
