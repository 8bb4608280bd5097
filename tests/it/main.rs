//! The one integration test binary: the real program against real git.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which the lint does not see as tests")]

mod commands;
mod concurrency;
mod determinism;
mod executor;
mod keys;
mod main_job;
mod phases;
mod poison;
mod policy_cage;
mod promote;
mod recipes;
mod refusals;
mod reuse;
mod support;
mod tidy;
mod tutorial;
mod usage;
mod worktree;
