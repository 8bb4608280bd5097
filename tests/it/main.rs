//! The one integration test binary: the real program against real git.

mod policy_cage;
mod usage;
