//! F1: what executes GEN. The built-in generator is here; an executor that is a program of its own is configured by
//! `control/runtime/gen_executor.json`.

pub mod builtin;
pub mod resolve;
