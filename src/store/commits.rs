//! Which commits are new, and which lie before which.

use super::object::{Kind, ObjectError};
use super::open::RevisionError;
use super::{Oid, Store};

/// The most that is read of a tag, in bytes.
const MAX_TAG: u64 = 1 << 20;
/// How many tags may point at one another.
const MAX_TAGS: usize = 16;

/// Why a history cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It ends before its beginning.
    #[error("the history of {tip} is cut off at {at}: the commits before it are not here")]
    Shallow {
        /// Where the walk began.
        tip: Oid,
        /// Where it ends.
        at: Oid,
    },
    /// It is longer than is looked at.
    #[error("more than {limit} commits are new below {tip}")]
    TooLong {
        /// Where the walk began.
        tip: Oid,
        /// The limit.
        limit: usize,
    },
    /// A commit cannot be read.
    #[error("the history of {tip} cannot be followed")]
    Unreadable {
        /// Where the walk began.
        tip: Oid,
        /// The reason.
        source: gix::Error,
    },
}

impl Store {
    /// The commits that are reachable from `tip` and from none of `known`, newest first. A history that is cut off among them is an
    /// error, and so are more than `limit`. Grafts are not looked at.
    pub fn new_commits(&self, tip: Oid, known: &[Oid], limit: usize) -> Result<Vec<Oid>, HistoryError> {
        self.new_commits_of(&[tip], known, limit)
    }

    /// The same for several tips; each commit once. An error names the first of them.
    pub fn new_commits_of(&self, tips: &[Oid], known: &[Oid], limit: usize) -> Result<Vec<Oid>, HistoryError> {
        let Some(tip) = tips.first().copied() else { return Ok(Vec::new()) };
        let unreadable = |source| HistoryError::Unreadable { tip, source };
        let known: Vec<Oid> = known.iter().copied().filter(|id| self.contains(id)).collect();
        let cut = self.repo.shallow_commits().map_err(unreadable)?;
        let walk =
            self.repo.rev_walk(tips.iter().copied()).with_hidden(known).use_commit_graph(false).all().map_err(unreadable)?;
        let mut found = Vec::new();
        for commit in walk {
            let id = match commit {
                Ok(commit) => commit.id,
                Err(error) if error.is_not_found() => {
                    return Err(HistoryError::Shallow { tip, at: found.last().copied().unwrap_or(tip) });
                }
                Err(error) => return Err(unreadable(error)),
            };
            if cut.as_ref().is_some_and(|cut| cut.iter().any(|at| *at == id)) {
                return Err(HistoryError::Shallow { tip, at: id });
            }
            found.push(id);
            if found.len() > limit {
                return Err(HistoryError::TooLong { tip, limit });
            }
        }
        Ok(found)
    }

    /// Whether `old` is `new`, or lies before it.
    pub fn is_ancestor(&self, old: Oid, new: Oid) -> Result<bool, HistoryError> {
        if old == new {
            return Ok(true);
        }
        match self.repo.merge_bases_many(old, &[new]) {
            Ok(bases) => Ok(bases.iter().any(|base| base.detach() == old)),
            Err(source) => Err(HistoryError::Unreadable { tip: new, source }),
        }
    }

    /// Where two histories part; `None` where they have nothing in common that is here.
    pub fn fork(&self, one: Oid, other: Oid) -> Option<Oid> {
        self.repo.merge_base(one, other).ok().flatten().map(|id| id.detach())
    }

    /// The commit that an object comes to, through tags; `None` for a tree or a blob.
    pub fn peel(&self, id: Oid) -> Result<Option<Oid>, ObjectError> {
        let mut at = id;
        for _ in 0..MAX_TAGS {
            match self.read(&at, Kind::Commit, MAX_TAG) {
                Ok(_) => return Ok(Some(at)),
                Err(ObjectError::WrongKind { found: Kind::Tag, .. }) => {
                    let bytes = self.read(&at, Kind::Tag, MAX_TAG)?;
                    let corrupt = |what: gix::Error| ObjectError::Corrupt { id: at, what: what.to_string() };
                    at = gix::objs::TagRef::from_bytes(&bytes, self.object_hash()).map_err(corrupt)?.target();
                }
                Err(ObjectError::WrongKind { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(ObjectError::Corrupt { id, what: format!("more than {MAX_TAGS} tags point at one another") })
    }

    /// The branches and tags of this repository that are commits, with what `HEAD` is: what a push adds to.
    pub fn heads(&self, prefix: &str) -> Result<Vec<(String, Oid)>, RevisionError> {
        use gix::bstr::ByteSlice as _;
        let broken = |source| RevisionError::Head { source };
        let platform = self.repo.references().map_err(broken)?;
        let mut found = Vec::new();
        for reference in platform.prefixed(prefix).map_err(broken)? {
            // A ref that cannot be read hides nothing: what it would have vouched for is looked at anew.
            let Ok(mut reference) = reference else { continue };
            let name = reference.name().as_bstr().to_str_lossy().into_owned();
            if let Ok(id) = reference.peel_to_id() {
                found.push((name, id.detach()));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Repo, id};
    use super::*;

    #[test]
    fn new_commits_end_at_what_is_known_or_say_where_they_are_cut_off() {
        let repo = Repo::new();
        let first = repo.commit(&[("f", "1")]);
        let second = repo.commit(&[("f", "2")]);
        let third = repo.commit(&[("f", "3")]);
        let store = repo.store();
        assert_eq!(store.new_commits(third, &[first], 10).unwrap(), [third, second]);
        assert_eq!(store.new_commits(third, &[], 10).unwrap().len(), 3);
        assert!(store.new_commits(first, &[third], 10).unwrap().is_empty());
        assert!(matches!(store.new_commits(third, &[], 2), Err(HistoryError::TooLong { limit: 2, .. })));
        assert!(store.is_ancestor(first, third).unwrap() && store.is_ancestor(third, third).unwrap());
        assert!(!store.is_ancestor(third, first).unwrap());
        assert_eq!(store.fork(second, third), Some(second));

        // Cut off as `git fetch --depth` leaves it, and as a push from there does.
        std::fs::write(repo.path().join(".git/shallow"), format!("{second}\n")).unwrap();
        let cut = repo.store();
        assert!(matches!(cut.new_commits(third, &[], 10), Err(HistoryError::Shallow { at, .. }) if at == second));
        assert_eq!(cut.new_commits(third, &[second], 10).unwrap(), [third]);
        std::fs::remove_file(repo.path().join(".git/shallow")).unwrap();
        std::fs::remove_file(repo.loose_file(&first)).unwrap();
        assert!(matches!(repo.store().new_commits(third, &[], 10), Err(HistoryError::Shallow { .. })));
    }

    #[test]
    fn tags_are_followed_to_commits() {
        let repo = Repo::new();
        let commit = repo.commit(&[("f", "1")]);
        repo.git(&["tag", "-a", "-m", "t", "one"]);
        repo.git(&["tag", "-a", "-m", "t", "two", "one"]);
        let blob = repo.blob(b"x");
        repo.git(&["tag", "-a", "-m", "t", "blob", &blob.to_string()]);
        let store = repo.store();
        for name in ["one", "two", "HEAD"] {
            assert_eq!(store.peel(id(&repo.git(&["rev-parse", name]))).unwrap(), Some(commit), "{name}");
        }
        assert_eq!(store.peel(id(&repo.git(&["rev-parse", "blob"]))).unwrap(), None);
        assert_eq!(store.peel(blob).unwrap(), None);
        let listed: Vec<String> = store.heads("refs/tags/").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(listed, ["refs/tags/blob", "refs/tags/one", "refs/tags/two"]);
    }
}
