//! The one integration test binary: the real program against real git.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which the lint does not see as tests")]

mod attest;
mod beside;
mod commands;
mod concurrency;
mod determinism;
mod doctor;
mod executor;
mod hints;
mod hooks;
mod keys;
mod machine;
mod main_job;
mod phases;
mod poison;
mod policy_cage;
mod promote;
mod push;
mod recipes;
mod refusals;
mod reuse;
mod servers;
mod share;
mod support;
mod tidy;
mod trust;
mod tutorial;
mod upkeep;
mod usage;
mod verify;
mod word;
mod worktree;
