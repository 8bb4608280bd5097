//! Refs under `refs/cbia/`: fresh reads and a compare-and-swap that loses no update.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::durable::Durability;
use super::{Oid, Store};

/// The name of a ref below `refs/cbia/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

/// Why a ref was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RefError {}

impl RefName {
    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RefName {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        unimplemented!()
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a compare-and-swap ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas {
    /// The ref is as asked.
    Done,
    /// The ref was not as expected; this is what it is.
    Conflict(Option<Oid>),
    /// Somebody held the ref's lock all the time.
    Busy,
}

/// The end of a compare-and-swap, and what had to be cleared away for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// How it ended.
    pub outcome: Cas,
    /// A lock file left behind by a dead process, put aside under this path: worth a word to the user.
    pub stale_lock: Option<PathBuf>,
}

impl Store {
    /// What a ref points at now, never from a cache; `None` if it does not exist.
    pub fn ref_target(&self, name: &RefName) -> Result<Option<Oid>, RefError> {
        unimplemented!()
    }

    /// Every ref below `prefix` (`refs/cbia/` or deeper, ending in `/`), sorted by name.
    pub fn refs_under(&self, prefix: &str) -> Result<Vec<(RefName, Oid)>, RefError> {
        unimplemented!()
    }

    /// Sets a ref to `new` (`None` deletes it) if it is `expected` (`None`: does not exist).
    pub fn cas(
        &self,
        name: &RefName,
        expected: Option<Oid>,
        new: Option<Oid>,
        durability: Durability,
    ) -> Result<Update, RefError> {
        unimplemented!()
    }
}
