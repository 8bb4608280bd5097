use super::Context;
use super::error::CommandError;
use super::ui::Ui;
use super::{pre_push, pre_receive};
use crate::document::path::printable;
use crate::store::Oid;

/// What git's hooks call: hooks/pre-push and hooks/pre-receive of this project.
///
/// git starts a hook with what it is asked about on standard input. The exit code decides, and everything is said on standard error.
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

/// What git asks about, a line each.
pub fn lines() -> Result<Vec<String>, CommandError> {
    use std::io::Read as _;
    let unreadable = |why: String| CommandError::usage(&format!("what git says on standard input cannot be read: {why}"));
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(unreadable(format!("it is longer than {MAX_INPUT} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// An object id as git's hooks are given it: the null id is none.
pub fn object(text: &str) -> Result<Option<Oid>, CommandError> {
    let id =
        Oid::from_hex(text.as_bytes()).map_err(|_| CommandError::usage(&format!("'{}' is no object id", printable(text))))?;
    Ok((!id.is_null()).then_some(id))
}
