//! `refs/cbia/runs/<state_key>/<executor_key>`: one chain of phase commits per state and executor, write-once.

use std::collections::HashSet;
use std::ffi::OsString;

use super::durable::Durability;
use super::refs::{Cas, RefName};
use super::{Oid, Store, StoreError};
use crate::document::digest::Digest;

/// Where this clone notes which runs it worked out itself, below the common directory.
const WORKED_OUT: &str = "cbia/worked-out";

/// A stored run.
#[derive(Clone, Debug)]
pub struct RunListing {
    /// Listing hash of the snapshot.
    pub state_key: Digest,
    /// Canonical hash of the resolved executor.
    pub executor_key: Digest,
    /// The ref.
    pub name: RefName,
    /// Its last phase commit.
    pub tip: Oid,
}

impl Store {
    /// The ref of a run.
    pub fn run_ref(&self, state_key: &Digest, executor_key: &Digest) -> Result<RefName, StoreError> {
        Ok(format!("refs/cbia/runs/{state_key}/{executor_key}").parse()?)
    }

    /// The last phase commit of a run, if there is one.
    pub fn run_tip(&self, state_key: &Digest, executor_key: &Digest) -> Result<Option<Oid>, StoreError> {
        Ok(self.ref_target(&self.run_ref(state_key, executor_key)?)?)
    }

    /// Creates a run's ref. A run that is there already stays; whether it is another one is returned.
    pub fn create_run(&self, state_key: &Digest, executor_key: &Digest, tip: Oid) -> Result<Option<Oid>, StoreError> {
        let name = self.run_ref(state_key, executor_key)?;
        match self.cas(&name, None, Some(tip), Durability::Full)?.outcome {
            Cas::Done => Ok(None),
            Cas::Conflict(Some(other)) => Ok((other != tip).then_some(other)),
            Cas::Conflict(None) | Cas::Busy => Err(StoreError::Moved { name: name.to_string() }),
        }
    }

    /// Whether this clone worked the run out itself, phase by phase and by this version of the program. A run that was fetched is not, until that
    /// was done.
    pub fn worked_out_here(&self, tip: &Oid, state_key: &Digest, executor_key: &Digest) -> bool {
        let note = std::fs::read(self.common_dir().join(WORKED_OUT).join(tip.to_string()));
        note.is_ok_and(|note| note == worked_out(state_key, executor_key).as_bytes())
    }

    /// Notes that this clone worked the run out itself. That is no truth, and nothing waits for the disk: without the note the run is worked out
    /// once more, which is all that a note which cannot be written costs.
    pub fn note_worked_out(&self, tip: &Oid, state_key: &Digest, executor_key: &Digest) {
        let folder = self.common_dir().join(WORKED_OUT);
        if !self.is_read_only() && self.create_dirs(&folder, self.common_dir()).is_ok() {
            std::fs::write(folder.join(tip.to_string()), worked_out(state_key, executor_key)).ok();
        }
    }

    /// Removes the notes of runs that are gone. A run that is made meanwhile keeps its note: it has its ref before that, and refs are looked at last.
    pub(in crate::store) fn forget_gone(&self) -> Result<(), StoreError> {
        let folder = self.common_dir().join(WORKED_OUT);
        let names: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        let kept: HashSet<_> = self.runs()?.into_iter().map(|run| OsString::from(run.tip.to_string())).collect();
        for name in names.into_iter().filter(|name| !kept.contains(name)) {
            // One that cannot be removed harms nobody.
            std::fs::remove_file(folder.join(name)).ok();
        }
        Ok(())
    }

    /// Every stored run, by name.
    pub fn runs(&self) -> Result<Vec<RunListing>, StoreError> {
        let listing = |(name, tip): (RefName, Oid)| {
            let mut parts = name.as_str().rsplit('/');
            let (executor_key, state_key) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            Some(RunListing { state_key, executor_key, name, tip })
        };
        Ok(self.refs_under("refs/cbia/runs/")?.into_iter().filter_map(listing).collect())
    }
}

/// What a note says: what the run answers, and who says so.
fn worked_out(state_key: &Digest, executor_key: &Digest) -> String {
    format!("{state_key} {executor_key} {}\n", env!("CARGO_PKG_VERSION"))
}
