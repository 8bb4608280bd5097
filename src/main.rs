//! The `git-cbia` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == git_cbia::policy::cage::ARGUMENT) {
        return git_cbia::policy::cage::serve();
    }
    ExitCode::SUCCESS
}
