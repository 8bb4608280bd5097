//! `git cbia attest`.
