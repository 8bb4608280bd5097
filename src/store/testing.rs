//! Repositories made by git itself, for tests.
