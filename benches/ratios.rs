//! Ratios of two commands in one session.

fn main() {}
