//! Opening a repository as git would, or refusing it as git would.
