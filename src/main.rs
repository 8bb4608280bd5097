//! The `git-cbia` binary.

fn main() {}
