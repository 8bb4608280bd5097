//! F1: what executes GEN. The built-in generator, or a program of its own that a configuration names: resolved to an identity, started behind
//! a contract, confined, and harvested.

pub mod builtin;
pub mod external;
mod harvest;
mod printed;
#[cfg(any(target_os = "macos", test))]
mod profile;
pub mod resolve;
mod sandbox;
mod scratch;
pub mod supervise;
mod wrap;
