//! How much is done for one push before it is refused as too large. A server can say otherwise in its own configuration.

use std::cell::Cell;

use super::unreadable;
use crate::document::finding::{Code, Finding};
use crate::document::path::printable;
use crate::store::Store;
use crate::store::tree::{MAX_NAMES, TreeError};

/// The most that is done before a push is refused as too large. Everything is counted over all refs of a push.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Refs in one push.
    pub refs: usize,
    /// Commits that are new.
    pub commits: usize,
    /// Runs that are derived again.
    pub runs: usize,
    /// Stored runs that are searched for the files of one state that has no run.
    pub searched: usize,
    /// Signatures that are checked: each takes a few processes.
    pub signatures: usize,
    /// States and updates that policies are asked about: each takes a few processes.
    pub decisions: usize,
    /// Names in the folders that are compared.
    pub names: usize,
    /// Bytes that are read: of the artifacts of runs, and of the runs, records and cache entries that are pushed. None is larger than what is
    /// left of it.
    pub bytes: usize,
    /// Changed paths that the push policy is told.
    pub changed: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            refs: 10_000,
            commits: 1_000_000,
            runs: 1_000,
            searched: 10_000,
            signatures: 1_000,
            decisions: 1_000,
            names: MAX_NAMES,
            bytes: 4 << 30,
            changed: 20_000,
        }
    }
}

/// The largest limit that can be set.
const MOST: usize = 1 << 40;

impl Limits {
    /// Where somebody waits for their own work to be verified: only what cannot be walked at all is left.
    pub fn own() -> Self {
        Self { runs: usize::MAX, signatures: usize::MAX, decisions: usize::MAX, bytes: usize::MAX, ..Self::default() }
    }

    /// Those of a server, by its configuration. A value that cannot be one is a finding: it must not mean more than it was meant to.
    pub fn of(store: &Store) -> Result<Self, Finding> {
        let mut limits = Self::default();
        for (key, limit) in [
            ("cbia.maxPushRefs", &mut limits.refs),
            ("cbia.maxPushCommits", &mut limits.commits),
            ("cbia.maxPushRuns", &mut limits.runs),
            ("cbia.maxPushSearched", &mut limits.searched),
            ("cbia.maxPushSignatures", &mut limits.signatures),
            ("cbia.maxPushDecisions", &mut limits.decisions),
            ("cbia.maxPushNames", &mut limits.names),
            ("cbia.maxPushBytes", &mut limits.bytes),
        ] {
            let Some(value) = store.config_string(key) else { continue };
            *limit = value.parse().ok().filter(|number| (1..=MOST).contains(number)).ok_or_else(|| {
                let finding =
                    Finding::error(Code::SettingInvalid, format!("{key} is '{}', which is no limit", printable(&value)));
                let wanted = format!("a number from 1 to {MOST}");
                finding.at(key).expected(wanted, printable(&value)).hint(format!("git config --unset {key} takes it back"))
            })?;
        }
        Ok(limits)
    }
}

/// What is left of a limit, and what is said where nothing is.
#[derive(Debug)]
pub(super) struct Budget {
    left: Cell<usize>,
    limit: usize,
    /// What there would be more of than the limit, with its verb.
    what: &'static str,
    /// What to push fewer of.
    fewer: &'static str,
}

impl Budget {
    pub fn new(limit: usize, what: &'static str, fewer: &'static str) -> Self {
        Self { left: Cell::new(limit), limit, what, fewer }
    }

    /// Takes one.
    pub fn spend(&self) -> Result<(), Finding> {
        self.spend_many(1)
    }

    /// Takes so many at once, or none.
    pub fn spend_many(&self, count: u64) -> Result<(), Finding> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let left = self.left.get().checked_sub(count).ok_or_else(|| self.exhausted())?;
        self.left.set(left);
        Ok(())
    }

    /// What is left, for those who take from it by themselves.
    pub fn left(&self) -> &Cell<usize> {
        &self.left
    }

    /// That there would have been more.
    pub fn exhausted(&self) -> Finding {
        let message = format!("more than {} {}", self.limit, self.what);
        Finding::error(Code::PushTooLarge, message).hint(format!("push fewer {} at a time", self.fewer))
    }
}

/// What stands against a tree that is not walked to its end.
pub(super) fn not_walked(what: &str, error: &TreeError, names: &Budget) -> Finding {
    match error {
        TreeError::TooMuch { .. } => names.exhausted(),
        _ => unreadable(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::Repo;

    #[test]
    fn a_budget_is_spent_to_its_end_and_says_so() {
        let budget = Budget::new(2, "things would be done", "things");
        assert!(budget.spend().is_ok() && budget.spend().is_ok());
        for _ in 0..2 {
            let finding = budget.spend().unwrap_err();
            assert_eq!((finding.code, finding.message.as_str()), (Code::PushTooLarge, "more than 2 things would be done"));
        }
    }

    #[test]
    fn a_server_sets_limits_and_nothing_else_passes_for_one() {
        let repo = Repo::new();
        assert_eq!(Limits::of(&repo.store()).unwrap().refs, 10_000);
        for (value, wanted) in [("5", Some(5)), ("0", None), ("-1", None), ("", None), ("many", None), ("1e3", None)] {
            repo.git(&["config", "cbia.maxPushRefs", value]);
            let got = Limits::of(&repo.store());
            match wanted {
                Some(wanted) => assert_eq!(got.unwrap().refs, wanted),
                None => assert_eq!(got.unwrap_err().code, Code::SettingInvalid, "{value}"),
            }
        }
    }
}
