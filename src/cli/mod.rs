//! F5: the command line. One file per command; printing, the environment, settings and exit codes are here and nowhere else.

mod attest;
mod authority;
mod bundle;
mod cache;
mod doctor;
mod environment;
mod error;
mod export;
mod fetch;
mod format;
mod fsck;
mod gc;
mod hook;
mod hooks;
mod init;
mod ledger;
mod log;
mod partial;
mod policy;
mod pre_push;
mod pre_receive;
mod promote;
mod push;
mod run;
mod show;
mod status;
mod ui;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::environment::Environment;
use self::error::CommandError;
use self::ui::Ui;
use crate::store::Store;

pub use self::error::exit;

/// Generated files earn their place.
///
/// Nothing is generated before its sources are locked, a control kernel has admitted the state, and a policy has allowed it. Every run is
/// stored as git objects under refs/cbia/, so that it can be replayed, shown and shared with ordinary git.
#[derive(Parser)]
#[command(name = "git cbia", bin_name = "git cbia", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// Print exactly one JSON document on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Run(run::Args),
    Status(status::Args),
    Promote(promote::Args),
    Export(export::Args),
    Log(log::Args),
    Show(show::Args),
    Authority(authority::Args),
    Policy(policy::Args),
    Cache(cache::Args),
    Verify(verify::Args),
    Hook(hook::Args),
    Hooks(hooks::Args),
    Attest(attest::Args),
    Doctor(doctor::Args),
    Push(push::Args),
    Fetch(fetch::Args),
    Ledger(ledger::Args),
    Gc(gc::Args),
    Bundle(bundle::Args),
    Fsck(fsck::Args),
}

/// The names of the commands, as the machine's documents call them.
const NAMES: [&str; 21] = [
    "init",
    "run",
    "status",
    "promote",
    "export",
    "log",
    "show",
    "authority",
    "policy",
    "cache",
    "verify",
    "hook",
    "hooks",
    "attest",
    "doctor",
    "push",
    "fetch",
    "ledger",
    "gc",
    "bundle",
    "fsck",
];

/// The command that the arguments name, whether they are right otherwise or not. The two hooks are told apart: a server's is called by a
/// file that nobody looks at.
fn named(arguments: &[OsString]) -> Option<&'static str> {
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str()).filter(|word| !word.starts_with('-'));
    let first = words.next()?;
    match (NAMES.iter().find(|name| **name == first)?, words.next()) {
        (&"hook", Some("pre-push")) => Some("hook pre-push"),
        (&"hook", Some("pre-receive")) => Some("hook pre-receive"),
        (name, _) => Some(name),
    }
}

/// What every command is given.
struct Context<'a> {
    environment: &'a Environment,
    store: &'a Store,
}

/// The program: reads its arguments, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let environment = Environment::read();
    if environment.arguments.get(1).is_some_and(|first| first == crate::policy::cage::ARGUMENT) {
        return crate::policy::cage::serve(environment.arguments.get(2).and_then(|seconds| seconds.to_str()));
    }
    if environment.arguments.get(1).is_some_and(|first| first == crate::executor::supervise::ARGUMENT) {
        return crate::executor::supervise::serve(environment.arguments.get(2).map(std::ffi::OsString::as_os_str));
    }
    crate::store::install_signal_handlers();
    let wants_json = environment.arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(&environment.arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &environment.arguments, wants_json),
    };
    let mut ui = Ui::new(cli.json, named(&environment.arguments).unwrap_or("usage"));
    let result = execute(&environment, cli.command, &mut ui);
    let code = match result {
        Ok(code) => code,
        Err(error) => ui.fail(&error),
    };
    ui.finish(code)
}

fn execute(environment: &Environment, command: Command, ui: &mut Ui) -> Result<u8, CommandError> {
    // Another repository is asked for, and there need not be one here.
    if let Command::Hooks(args) = &command
        && let Some(server) = args.server()
    {
        return hooks::serve(&hooks::open_server(server)?, args, ui);
    }
    let store = match &command {
        Command::Hook(args) if args.receives() => environment.open_quarantined()?,
        Command::Verify(_) => environment.open_to_read()?,
        _ => environment.open()?,
    };
    carry_out(&Context { environment, store: &store }, command, ui).map_err(|mut error| {
        partial::explain(&store, &mut error.findings);
        error
    })
}

fn carry_out(context: &Context<'_>, command: Command, ui: &mut Ui) -> Result<u8, CommandError> {
    match command {
        Command::Init(args) => init::run(context, &args, ui),
        Command::Run(args) => run::run(context, &args, ui),
        Command::Status(args) => status::run(context, &args, ui),
        Command::Promote(args) => promote::run(context, &args, ui),
        Command::Export(args) => export::run(context, &args, ui),
        Command::Log(args) => log::run(context, &args, ui),
        Command::Show(args) => show::run(context, &args, ui),
        Command::Authority(args) => authority::run(context, &args, ui),
        Command::Policy(args) => policy::run(context, &args, ui),
        Command::Cache(args) => cache::run(context, &args, ui),
        Command::Verify(args) => verify::run(context, &args, ui),
        Command::Hook(args) => hook::run(context, &args, ui),
        Command::Hooks(args) => hooks::run(context, &args, ui),
        Command::Attest(args) => attest::run(context, &args, ui),
        Command::Doctor(args) => doctor::run(context, &args, ui),
        Command::Push(args) => push::run(context, &args, ui),
        Command::Fetch(args) => fetch::run(context, &args, ui),
        Command::Ledger(args) => ledger::run(context, &args, ui),
        Command::Gc(args) => gc::run(context, &args, ui),
        Command::Bundle(args) => bundle::run(context, &args, ui),
        Command::Fsck(args) => fsck::run(context, &args, ui),
    }
}

fn usage(error: &clap::Error, arguments: &[OsString], wants_json: bool) -> ExitCode {
    let text = error.render().to_string();
    let text = text.trim_end();
    if wants_json && error.use_stderr() {
        // What helps takes no arguments of its own.
        let without = arguments.iter().filter(|argument| *argument != "--json");
        if let Err(help) = Cli::try_parse_from(without)
            && !help.use_stderr()
        {
            return usage(&help, arguments, wants_json);
        }
    }
    if !error.use_stderr() {
        // A document with a command's own name has that command's members, and this one has none of them.
        let asked = if error.kind() == clap::error::ErrorKind::DisplayVersion { "version" } else { "help" };
        let mut ui = Ui::new(wants_json, asked);
        ui.line(text);
        ui.result(serde_json::json!({ "text": text }), &[]);
        return ui.finish(exit::DONE);
    }
    let mut ui = Ui::new(wants_json, named(arguments).unwrap_or("usage"));
    // Without arguments the help is what was asked for, in whole, although nothing was done.
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !wants_json {
        ui.note(text);
        return ui.finish(exit::USAGE);
    }
    let code = ui.fail(&CommandError::usage(text));
    ui.finish(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn documents_know_every_command_by_its_name() {
        let command = super::Cli::command();
        assert_eq!(command.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>(), super::NAMES);
        let cases = [
            ("git-cbia --json run --nope", Some("run")),
            ("git-cbia verify --json a b", Some("verify")),
            ("git-cbia hook pre-push", Some("hook pre-push")),
            ("git-cbia hook pre-receive --json", Some("hook pre-receive")),
            ("git-cbia hook status", Some("hook")),
            ("git-cbia hooks status", Some("hooks")),
            ("git-cbia rum run", None),
            ("git-cbia --json", None),
        ];
        for (line, wanted) in cases {
            let arguments: Vec<_> = line.split(' ').map(Into::into).collect();
            assert_eq!(super::named(&arguments), wanted, "{line}");
        }
    }

    #[test]
    fn the_reference_page_has_every_help_text() {
        let page = include_str!("../../docs/cli.md");
        let names = |command: &clap::Command| -> Vec<String> {
            let own = command.get_subcommands().map(|c| c.get_name().to_owned());
            own.filter(|name| name != "help").collect()
        };
        let mut waiting = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            // The width that the page is written in, whatever terminal the tests run in.
            let top = super::Cli::command().term_width(100);
            let command = path.iter().fold(&top, |command, name: &String| command.find_subcommand(name).unwrap());
            waiting.extend(names(command).into_iter().map(|name| [path.as_slice(), &[name]].concat()));
            let arguments = [&["git-cbia".to_owned()], path.as_slice(), &["--help".to_owned()]].concat();
            let help = top.clone().try_get_matches_from(arguments).unwrap_err().to_string();
            let name = [&["git cbia".to_owned()], path.as_slice()].concat().join(" ");
            let section = format!("## `{name}`\n\n```text\n{}\n```\n", help.trim_end());
            assert!(page.contains(&section), "docs/cli.md lacks this section:\n{section}");
        }
    }
}
