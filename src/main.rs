//! The `git-cbia` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    git_cbia::cli::main()
}
