use std::collections::BTreeSet;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use super::{pre_push, pre_receive};
use crate::document::finding::{Code, Finding, refuses};
use crate::document::machine::{UpdateDocument, VerifyDocument};
use crate::document::path::printable;
use crate::gate::push::{Place, place};
use crate::store::Oid;
use crate::verify::Update;

/// What git's hooks call: hooks/pre-push and hooks/pre-receive of this project.
///
/// git starts a hook with what it is asked about on standard input. The exit code decides, and everything is said on standard error; with
/// --json, standard output has the document of git cbia verify too.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    hook: Hook,
}

#[derive(clap::Subcommand)]
enum Hook {
    PrePush(pre_push::Args),
    PreReceive(pre_receive::Args),
}

impl Args {
    /// Whether the hook runs where a push arrives, inside git's quarantine.
    pub fn receives(&self) -> bool {
        matches!(self.hook, Hook::PreReceive(_))
    }
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    match &args.hook {
        Hook::PrePush(args) => pre_push::run(context, args, ui),
        Hook::PreReceive(args) => pre_receive::run(context, args, ui),
    }
}

/// The most that is read from git, in bytes.
const MAX_INPUT: u64 = 64 << 20;

/// What git asks about, as git says it on standard input.
pub struct Asked {
    /// A line each. Names of refs are bytes to git: what is not UTF-8 in one stands here as a replacement character.
    pub lines: Vec<String>,
    /// The lines that are not exactly what git said.
    inexact: BTreeSet<String>,
}

impl Asked {
    /// What stands against an update by the bytes of its ref's name: a ref of git cbia is called by ASCII, and one that only resembles it
    /// would be in the way of those who read them all. A branch may be called by any bytes.
    pub fn misnamed(&self, line: &str, update: &Update) -> Option<Finding> {
        let name = update.name.as_deref().filter(|_| self.inexact.contains(line) && update.new.is_some())?;
        let message = format!("{} is no ref of git cbia: its name is not UTF-8", printable(name));
        let finding = Finding::error(Code::RefMalformed, message).at(printable(name));
        (place(name) != Place::Ordinary).then(|| finding.hint("git cbia push pushes what is shared, by its right name"))
    }
}

/// Reads what git asks about.
pub fn asked() -> Result<Asked, CommandError> {
    use std::io::Read as _;
    let unreadable = |why: String| {
        let message = format!("what git says on standard input cannot be read: {why}");
        let hint = "a hook is started by git; push fewer refs at a time if there are very many";
        CommandError::all(exit::USAGE, vec![Finding::error(Code::Usage, message).hint(hint)])
    };
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(unreadable(format!("it is longer than {MAX_INPUT} bytes")));
    }
    let (mut lines, mut inexact) = (Vec::new(), BTreeSet::new());
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let text = String::from_utf8_lossy(line).into_owned();
        if text.as_bytes() != line {
            inexact.insert(text.clone());
        }
        lines.push(text);
    }
    Ok(Asked { lines, inexact })
}

/// Tells what became of everything that was asked about, and gives the exit code.
pub fn tell(updates: Vec<UpdateDocument>, findings: Vec<Finding>, ui: &mut Ui) -> u8 {
    let code = if refuses(&findings) { exit::DENIED } else { exit::DONE };
    ui.document(&VerifyDocument::new(ui.command(), updates, findings));
    code
}

/// An update of which no more is known than what git says of it.
pub fn unseen(update: &Update) -> UpdateDocument {
    let hex = |id: Option<Oid>| id.map(|id| id.to_string());
    UpdateDocument { r#ref: update.name.clone(), old: hex(update.old), new: hex(update.new), state_key: None, run: None }
}

/// An object id as git's hooks are given it: the null id is none.
pub fn object(text: &str) -> Result<Option<Oid>, CommandError> {
    let id =
        Oid::from_hex(text.as_bytes()).map_err(|_| CommandError::usage(&format!("'{}' is no object id", printable(text))))?;
    Ok((!id.is_null()).then_some(id))
}
