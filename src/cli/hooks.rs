use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::printable;
use crate::store::Store;
use crate::store::hooks::{Change, HookError, Site, State};
use crate::store::open::OpenOptions;

/// Keep the hooks that refuse to push, or to take, what no admitted run produced.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Install the hook, beside one that is there already.
    ///
    /// It goes where git looks for hooks: core.hooksPath is respected. A hook that is there is kept as it is, and both run: either can
    /// refuse. Where husky, lefthook or pre-commit keep the hooks, nothing is written, and the lines to add to their configuration are
    /// printed.
    Install(Which),
    /// Remove the hook, and put back what was there before.
    Uninstall(Which),
    /// Say whether git runs the hook. Exits with 1 if it does not.
    Status(Which),
}

#[derive(clap::Args)]
struct Which {
    /// The pre-receive hook of this repository, which others push to, instead of the pre-push hook of the one around you.
    #[arg(long, value_name = "REPO")]
    server: Option<PathBuf>,
}

impl Args {
    fn which(&self) -> &Which {
        match &self.command {
            Command::Install(which) | Command::Uninstall(which) | Command::Status(which) => which,
        }
    }

    /// The server's repository, if it is meant.
    pub fn server(&self) -> Option<&Path> {
        self.which().server.as_deref()
    }
}

/// Opens the repository that is exactly at `path`: one around it is not what was meant.
pub fn open_server(path: &Path) -> Result<Store, CommandError> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let here = real(path);
    // The search for a repository expects no `..` on its way.
    let store = Store::open_with(here.as_deref().unwrap_or(path), OpenOptions::default())?;
    if here.is_some() && [Some(store.git_dir()), store.work_dir()].into_iter().flatten().any(|top| real(top) == here) {
        return Ok(store);
    }
    let message = format!("'{}' is inside a repository, and is none itself", printable(&path.to_string_lossy()));
    Err(CommandError::usage(&message))
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let site = context.store.pre_push().map_err(refused)?;
    act(context.store, &site, args, ui)
}

/// The same for the repository of a server.
pub fn serve(store: &Store, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let site = store.pre_receive().map_err(refused)?;
    act(store, &site, args, ui)
}

fn act(store: &Store, site: &Site, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let change = match &args.command {
        Command::Status(_) => return status(site, ui),
        Command::Install(_) => store.install_hook(site),
        Command::Uninstall(_) => store.uninstall_hook(site),
    };
    let change = change.map_err(|error| match error {
        HookError::Managed(_) => managed(site, ui),
        error => refused(error),
    })?;
    let (name, file) = (site.hook.name(), shown(&site.file));
    let (word, before) = match &change {
        Change::None if matches!(args.command, Command::Install(_)) => {
            ui.line(&format!("{name} is installed already: {}", described(&site.state().map_err(refused)?)));
            ("present", None)
        }
        Change::None => {
            ui.line(&format!("{name} is not installed: there is nothing to remove"));
            ("absent", None)
        }
        Change::Installed { before } => {
            ui.line(&format!("installed {file}"));
            if let Some(before) = before {
                ui.line(&format!("the hook that was there is {} and runs too", shown(before)));
            }
            ("installed", before.as_deref())
        }
        Change::Removed => {
            ui.line(&format!("removed {file}"));
            ("removed", None)
        }
        Change::Restored => {
            ui.line(&format!("removed {file}, and put back the hook from before"));
            ("restored", None)
        }
    };
    let findings = if matches!(args.command, Command::Install(_)) { remarks(site) } else { Vec::new() };
    ui.findings(&findings);
    let before = before.map(shown);
    ui.result(json!({"hook": name, "path": file, "change": word, "before": before, "scope": site.scope}), &findings);
    Ok(exit::DONE)
}

/// What is worth knowing of a folder that is not this repository's own.
fn remarks(site: &Site) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = shown(site.folder());
    if let Some(scope @ ("global" | "system")) = site.scope.as_deref() {
        let message = format!("core.hooksPath is set in the {scope} configuration: {folder} serves all your repositories");
        findings.push(
            Finding::warning(Code::HookBlocked, message).hint("in a repository without control/, the hook lets every push go on"),
        );
    }
    findings.extend(bypass(site));
    findings
}

/// The user's own core.hooksPath, which a push from this machine as this user would follow instead.
fn bypass(site: &Site) -> Option<Finding> {
    let elsewhere = site.elsewhere.as_ref()?;
    let message =
        format!("your own core.hooksPath leads to {}: a push that is served as you does not run this hook", shown(elsewhere));
    let hint = format!("git -C '{}' config core.hooksPath hooks", shown(site.folder().parent().unwrap_or(&site.file)));
    Some(Finding::warning(Code::HookInactive, message).at(shown(&site.file)).hint(hint))
}

fn status(site: &Site, ui: &mut Ui) -> Result<u8, CommandError> {
    let state = site.state().map_err(refused)?;
    let mut findings: Vec<Finding> = inactive(site, &state).into_iter().collect();
    let active = findings.is_empty();
    findings.extend(bypass(site));
    let described = described(&state);
    ui.line(&format!("{}: {described}", site.hook.name()));
    ui.line(&format!("  {}", shown(&site.file)));
    if let Some(scope) = &site.scope {
        ui.line(&format!("  core.hooksPath is set in the {scope} configuration"));
    }
    ui.findings(&findings);
    let manager = site.manager.map(crate::store::hooks::Manager::name);
    ui.result(
        json!({"hook": site.hook.name(), "path": shown(&site.file), "state": word(&state), "scope": site.scope, "manager": manager}),
        &findings,
    );
    Ok(if active { exit::DONE } else { exit::DENIED })
}

fn word(state: &State) -> &'static str {
    match state {
        State::Absent => "absent",
        State::Active { before: None } => "active",
        State::Active { before: Some(_) } => "chained",
        State::Called { .. } => "called",
        State::Waiting { .. } => "waiting",
        State::Foreign => "foreign",
        State::Idle => "idle",
        State::Blocked => "blocked",
    }
}

/// A state in words.
pub fn described(state: &State) -> String {
    match state {
        State::Absent => "there is no hook".to_owned(),
        State::Active { before: None } => "git runs it".to_owned(),
        State::Active { before: Some(before) } => format!("git runs it, and {} too", shown(before)),
        State::Called { by } => format!("{} calls git cbia", shown(by)),
        State::Waiting { by } => format!("{} calls git cbia, but its manager has written no hook yet", shown(by)),
        State::Foreign => "another hook is there, and does not call git cbia".to_owned(),
        State::Idle => "it is not executable: git does not run it".to_owned(),
        State::Blocked => "something that is no file is in its place".to_owned(),
    }
}

/// Why git does not run our hook, if it does not, with the command that mends it.
pub fn inactive(site: &Site, state: &State) -> Option<Finding> {
    let server = match site.hook {
        crate::store::hooks::Hook::PrePush => String::new(),
        crate::store::hooks::Hook::PreReceive => {
            let repository = site.folder().parent().filter(|_| !site.file.ends_with("cbia")).unwrap_or(site.folder());
            format!(" --server '{}'", shown(repository))
        }
    };
    let hint = match (state, site.manager) {
        (State::Active { .. } | State::Called { .. }, _) => return None,
        _ if site.leads_nowhere() => format!("{}, and then git cbia hooks install{server}", site.way_back()),
        (State::Waiting { .. }, Some(manager)) => format!("run the installation of {}", manager.name()),
        (State::Blocked, _) => format!("look at it, move it away, and run git cbia hooks install{server}"),
        _ => format!("git cbia hooks install{server}"),
    };
    let message = format!("git does not run the {} hook of git cbia: {}", site.hook.name(), described(state));
    Some(Finding::error(Code::HookInactive, message).at(shown(&site.file)).hint(hint))
}

/// What a manager's own configuration needs, as lines to copy.
fn managed(site: &Site, ui: &mut Ui) -> CommandError {
    let Some(manager) = site.manager else { return refused(HookError::Managed(crate::store::hooks::Manager::Husky)) };
    if let Ok(state @ State::Waiting { .. }) = site.state() {
        return CommandError::all(exit::DENIED, inactive(site, &state).into_iter().collect());
    }
    let (file, lines) = manager.lines();
    for line in lines.lines() {
        ui.line(line);
    }
    let message =
        format!("{} keeps the hooks of this repository, and would not run one that is written beside it", manager.name());
    let hint = format!("add these lines to {file}\n{lines}");
    CommandError::all(exit::DENIED, vec![Finding::error(Code::HookManaged, message).at(file).hint(hint)])
}

/// Why a hook was not changed.
pub fn refused(error: HookError) -> CommandError {
    let finding = match &error {
        HookError::Blocked { hint, path, .. } => Finding::error(Code::HookBlocked, error.to_string()).at(shown(path)).hint(hint),
        _ => Finding::error(Code::CommandFailed, spelled(&error)),
    };
    let code = if matches!(error, HookError::Blocked { .. }) { exit::DENIED } else { exit::UNREADABLE };
    CommandError::all(code, vec![finding])
}

/// A path of this machine, for a person: relative where it is below the current directory.
fn shown(path: &Path) -> String {
    printable(&path.strip_prefix("./").unwrap_or(path).to_string_lossy())
}
