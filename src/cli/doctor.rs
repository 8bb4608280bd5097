mod offers;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Context;
use super::error::{CommandError, exit};
use super::hooks::{described, inactive, open_server};
use super::ui::Ui;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::{RepoPath, printable};
use crate::gate::signers::{MAINTAINERS, RUNNERS, read};
use crate::pipeline::counted;
use crate::store::Store;
use crate::store::attest::{Rederive, Trust};
use crate::store::hooks::State;
use crate::store::runs::RunListing;

/// The largest file of allowed signers that is read, in bytes.
const MAX_SIGNERS: u64 = 1 << 20;

/// Say what protects this repository, and what mends the rest.
///
/// Exits with 1 if something does not protect it, or cannot be seen from here. With --server, bad updates are offered to a remote on
/// names that nobody uses, in transactions that cannot succeed as a whole, and what it refuses is told.
#[derive(clap::Args)]
pub struct Args {
    /// Offer this remote bad updates, and say which it refuses.
    #[arg(long, value_name = "REMOTE")]
    server: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    /// It protects.
    Ok,
    /// It could be better, and nothing rests on it.
    Advice,
    /// It does not protect.
    No,
    /// It cannot be seen from here.
    Unknown,
}

/// One line of the report.
struct Check {
    name: &'static str,
    health: Health,
    says: String,
    mend: Option<String>,
}

impl Check {
    fn new(name: &'static str, health: Health, says: impl Into<String>) -> Self {
        Self { name, health, says: says.into(), mend: None }
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    fn word(&self) -> &'static str {
        match self.health {
            Health::Ok => "ok",
            Health::Advice => "advice",
            Health::No => "no",
            Health::Unknown => "unknown",
        }
    }

    fn finding(&self) -> Option<Finding> {
        let message = format!("{}: {}", self.name, self.says);
        let finding = match self.health {
            Health::Ok => return None,
            Health::Advice => Finding::warning(Code::Unprotected, message),
            Health::No | Health::Unknown => Finding::error(Code::Unprotected, message),
        };
        Some(Finding { hint: self.mend.clone(), ..finding })
    }

    fn told(&self) -> Value {
        json!({"check": self.name, "health": self.word(), "says": self.says, "mend": self.mend})
    }
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let mut checks = vec![program(store), client(store)?];
    let remote = match &args.server {
        Some(remote) => Some(remote.clone()),
        None => remote(store).map_err(git)?,
    };
    let run = newest(store)?;
    match &remote {
        None => checks.push(Check::new("server hook", Health::Ok, "there is no remote: nothing is pushed")),
        Some(remote) => {
            let server = local(store, remote).map_err(git)?;
            let probed = args.server.is_some();
            checks.extend(server_checks(server.as_deref(), remote, probed));
            checks.push(evidence(store, remote, run.as_ref()));
        }
    }
    checks.extend(trust(store, run.as_ref())?);
    let offers = match &args.server {
        Some(remote) => offers::offer(store, remote)?,
        None => Vec::new(),
    };
    for check in &checks {
        ui.line(&format!("{:<8} {:<16} {}", check.word(), check.name, printable_sentence(&check.says)));
        if let Some(mend) = &check.mend {
            ui.line(&format!("{:<25} {}", "", printable_sentence(mend)));
        }
    }
    if let Some(remote) = args.server.as_deref().filter(|_| !offers.is_empty()) {
        ui.line(&format!("offered to {}:", printable(remote)));
        for offer in &offers {
            ui.line(&format!("{:<8} {:<42} {}", offer.outcome.word(), offer.what, printable_sentence(&offer.said)));
        }
    }
    let mend = "install the pre-receive hook there, or make the check of docs/enforcement.md required";
    let mut findings: Vec<Finding> = checks.iter().filter_map(Check::finding).collect();
    findings.extend(offers.iter().filter_map(|offer| offer.finding(mend)));
    let protected = !crate::document::finding::refuses(&findings);
    ui.line(if protected { "protected" } else { "not protected" });
    let told: Vec<Value> = checks.iter().map(Check::told).collect();
    let offered: Vec<Value> = offers.iter().map(offers::Offer::told).collect();
    ui.result(json!({"protected": protected, "remote": remote, "checks": told, "offers": offered}), &findings);
    Ok(if protected { exit::DONE } else { exit::DENIED })
}

fn git(error: crate::store::git::GitError) -> CommandError {
    crate::store::StoreError::from(error).into()
}

/// A sentence that may hold a command longer than a name.
fn printable_sentence(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(200).map(|chunk| printable(&chunk.iter().collect::<String>())).collect()
}

/// The hooks call git-cbia as git finds it.
fn program(store: &Store) -> Check {
    let own = format!("git cbia {}", env!("CARGO_PKG_VERSION"));
    match store.cbia_found() {
        Ok(Some(found)) if found == own => Check::new("git-cbia", Health::Ok, format!("git finds {own} on the PATH")),
        Ok(Some(found)) => {
            let says = format!("git finds {found} on the PATH, and this is {own}");
            Check::new("git-cbia", Health::No, says).mend("install one version, first on the PATH")
        }
        Ok(None) => Check::new("git-cbia", Health::No, "git finds no git-cbia on the PATH: the hooks refuse every push")
            .mend("put git-cbia into a folder of the PATH"),
        Err(error) => Check::new("git-cbia", Health::Unknown, spelled(&error)),
    }
}

fn client(store: &Store) -> Result<Check, CommandError> {
    let site = store.pre_push().map_err(super::hooks::refused)?;
    let state = site.state().map_err(super::hooks::refused)?;
    // Somebody may have installed the hook before core.hooksPath led away from it.
    let bypassed = site.scope.as_ref().filter(|_| store.common_dir().join("hooks/pre-push").exists());
    Ok(match (inactive(&site, &state), bypassed) {
        (None, _) => Check::new("pre-push hook", Health::Ok, described(&state)),
        (Some(finding), Some(scope)) if matches!(state, State::Absent) => {
            let says = format!("core.hooksPath of the {scope} configuration leads past the hooks of this repository");
            Check::new("pre-push hook", Health::No, says).mend(finding.hint.unwrap_or_default())
        }
        (Some(finding), _) => Check::new("pre-push hook", Health::No, described(&state)).mend(finding.hint.unwrap_or_default()),
    })
}

/// The remote that a plain `git push` goes to.
fn remote(store: &Store) -> Result<Option<String>, crate::store::git::GitError> {
    let remotes = store.remotes()?;
    let branch = store.head_branch().ok().flatten();
    let of_branch = |setting: &str| {
        let name = branch.as_deref()?.strip_prefix("refs/heads/")?;
        store.config_string(&format!("branch.{name}.{setting}"))
    };
    let configured =
        of_branch("pushRemote").or_else(|| store.config_string("remote.pushDefault")).or_else(|| of_branch("remote"));
    let origin = || remotes.iter().find(|name| *name == "origin").or(remotes.first()).cloned();
    Ok(configured.filter(|name| name != ".").or_else(origin))
}

/// The folder that a remote is, if it is one on this machine.
fn local(store: &Store, remote: &str) -> Result<Option<PathBuf>, crate::store::git::GitError> {
    let address = store.push_address(remote)?;
    let path = match address.strip_prefix("file://") {
        Some(path) => path,
        None if address.contains("://") => return Ok(None),
        // What has a colon before its first slash is a host and a path.
        None if address.split('/').next().is_some_and(|first| first.contains(':')) => return Ok(None),
        None => &address,
    };
    Ok(Some(store.work_dir().unwrap_or(store.git_dir()).join(path)))
}

fn server_checks(server: Option<&Path>, remote: &str, probed: bool) -> Vec<Check> {
    const HOOK: &str = "server hook";
    let ask = format!("git cbia doctor --server {}", printable(remote));
    let Some(path) = server else {
        if probed {
            return vec![Check::new(HOOK, Health::Advice, "it is not on this machine: what it refuses is below")];
        }
        return vec![Check::new(HOOK, Health::Unknown, format!("{} is not on this machine", printable(remote))).mend(ask)];
    };
    let server = match open_server(path) {
        Ok(server) => server,
        Err(error) => {
            let why = error.findings.into_iter().next().map_or_else(String::new, |finding| finding.message);
            return vec![Check::new(HOOK, Health::Unknown, why).mend(ask)];
        }
    };
    let at = server.work_dir().unwrap_or(server.git_dir()).display();
    let mut checks = Vec::new();
    checks.push(match server.pre_receive().and_then(|site| Ok((site.state()?, site))) {
        Err(error) => Check::new(HOOK, Health::Unknown, spelled(&error)),
        Ok((state, site)) => match (inactive(&site, &state), &site.elsewhere) {
            (Some(finding), _) => Check::new(HOOK, Health::No, described(&state)).mend(finding.hint.unwrap_or_default()),
            (None, Some(_)) => {
                Check::new(HOOK, Health::No, "it is there, and your own core.hooksPath leads past it when the remote is a path")
                    .mend(format!("git -C '{at}' config core.hooksPath hooks"))
            }
            (None, None) => Check::new(HOOK, Health::Ok, described(&state)),
        },
    });
    let hidden = ["transfer.hideRefs", "receive.hideRefs", "uploadpack.hideRefs"].into_iter().flat_map(|key| {
        server
            .config_strings(key)
            .into_iter()
            .filter(|value| {
                "refs/cbia/".starts_with(&format!("{}/", value.trim_start_matches('^').trim_end_matches('/')))
                    && !value.starts_with(['!'])
            })
            .map(move |value| (key, value))
    });
    for (key, value) in hidden {
        let says = format!("{key} = {} hides the evidence", printable(&value));
        checks.push(Check::new("server settings", Health::No, says).mend(format!("git -C '{at}' config --unset-all {key}")));
    }
    for (keys, says) in [
        (&["receive.fsckObjects", "transfer.fsckObjects"][..], "objects are taken as they come"),
        (&["receive.denyDeletes"], "branches may be deleted"),
        (&["receive.denyNonFastForwards"], "branches may be rewritten"),
    ] {
        if !keys.iter().any(|key| server.config_bool(key) == Some(true)) {
            let mend = format!("git -C '{at}' config {} true", keys[0]);
            checks.push(Check::new("server settings", Health::Advice, says).mend(mend));
        }
    }
    checks
}

/// The newest run that was admitted here, as its ref has it.
fn newest(store: &Store) -> Result<Option<RunListing>, CommandError> {
    let Ok(tip) = super::show::newest(store) else { return Ok(None) };
    Ok(store.runs()?.into_iter().find(|run| run.tip == tip))
}

fn evidence(store: &Store, remote: &str, run: Option<&RunListing>) -> Check {
    const NAME: &str = "evidence";
    let Some(run) = run else { return Check::new(NAME, Health::Ok, "nothing was generated here yet") };
    let short = run.tip.to_hex_with_len(12);
    let remote_name = printable(remote);
    match store.remote_ref(remote, run.name.as_str()) {
        Ok(Some(tip)) if tip == run.tip => Check::new(NAME, Health::Ok, format!("{remote_name} has the newest run {short}")),
        Ok(Some(_)) => {
            Check::new(NAME, Health::No, format!("{remote_name} has another run of the same state and executor than {short}"))
                .mend(format!("git cbia run --repeat 2, then compare with git fetch {remote_name} {}", run.name))
        }
        Ok(None) => Check::new(NAME, Health::No, format!("{remote_name} does not have the newest run {short}"))
            .mend(format!("git push {remote_name} {}", run.name)),
        Err(error) => Check::new(NAME, Health::Unknown, spelled(&error)),
    }
}

fn trust(store: &Store, run: Option<&RunListing>) -> Result<Vec<Check>, CommandError> {
    const NAME: &str = "signers";
    let (trust, rederive) = match store.trust().and_then(|trust| Ok((trust, store.rederive()?))) {
        Ok(found) => found,
        Err(finding) => return Ok(vec![Check::new(NAME, Health::No, finding.message).mend(finding.hint.unwrap_or_default())]),
    };
    let mut checks = Vec::new();
    if trust == Trust::Content {
        let says = "cbia.trust is content: what a run holds is checked, and anybody who can push may have made it";
        checks.push(Check::new(NAME, Health::Advice, says).mend("git config cbia.trust signed"));
    }
    let (needed, without) = match (trust, rederive) {
        (Trust::Content, Rederive::Always) => return Ok(checks),
        (Trust::Signed(needed), _) => (needed, "no run can count"),
        (Trust::Content, Rederive::Unattested(needed)) => (needed, "every run is derived again"),
    };
    if rederive != Rederive::Always {
        let signers = counted(needed, "allowed signer", "allowed signers");
        let says = format!("cbia.rederive is unattested: a run that {signers} attested is not derived again");
        checks.push(Check::new(NAME, Health::Advice, says).mend("git config cbia.rederive always"));
    }
    let file = |path: &str| -> Result<Option<Vec<u8>>, CommandError> {
        let (Some(head), Ok(path)) = (store.head()?, path.parse::<RepoPath>()) else { return Ok(None) };
        let blob = store.lookup(&store.tree_of(&head)?, &path)?;
        Ok(blob.map(|blob| store.read_blob(&blob, MAX_SIGNERS)).transpose()?)
    };
    let add = format!("commit {RUNNERS} with a line for each signer: <address> <public key>");
    match file(RUNNERS)? {
        None => checks.push(Check::new(NAME, Health::No, format!("HEAD has no {RUNNERS}: {without}")).mend(add)),
        Some(bytes) => {
            let (allowed, findings) = read(RUNNERS, &bytes);
            for finding in findings {
                let place = finding.line.map(|line| format!(" (line {line})")).unwrap_or_default();
                checks.push(
                    Check::new(NAME, Health::No, format!("{RUNNERS}{place}: {}", finding.message))
                        .mend(finding.hint.unwrap_or_default()),
                );
            }
            if allowed.len() < needed {
                let says = format!("{RUNNERS} names {} signers, and cbia.attestations is {needed}", allowed.len());
                checks.push(Check::new(NAME, Health::No, says).mend(add));
            }
            if let Some(run) = run {
                let attested = store.attested(run.tip, &run.state_key, &run.executor_key, &bytes)?;
                let says = format!("{} of {needed} signers attested the newest run", attested.count());
                let short = run.tip.to_hex_with_len(12);
                checks.push(match attested.missing(Trust::Signed(needed), &run.tip, RUNNERS) {
                    None => Check::new(NAME, Health::Ok, says),
                    Some(_) => Check::new(NAME, Health::No, says).mend(format!("git cbia attest {short}")),
                });
            }
        }
    }
    if file(MAINTAINERS)?.is_none() {
        let says = format!("HEAD has no {MAINTAINERS}: policies are changed by whoever may push");
        checks.push(Check::new(NAME, Health::Advice, says).mend(format!("commit {MAINTAINERS} with a line for each maintainer")));
    }
    Ok(checks)
}
