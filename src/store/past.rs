//! Everything before one commit, to tell of many others where they part from it. One by one that is a walk each.

use std::collections::{HashMap, HashSet};

use super::{Oid, Store};

/// Everything that lies before a commit.
pub struct Past {
    base: Oid,
    commits: HashSet<Oid>,
    /// Where commits that are not among them meet them.
    meets: HashMap<Oid, Meets>,
}

/// Where a history first meets another one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meets {
    Nowhere,
    At(Oid),
    /// In more than one place, of which one may lie before the other.
    Often,
}

impl Meets {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nowhere, one) | (one, Self::Nowhere) => one,
            (Self::At(one), Self::At(two)) if one == two => self,
            _ => Self::Often,
        }
    }
}

impl Store {
    /// Everything before `base`, itself included; nothing where that is more than `limit` commits, or cannot be read.
    pub fn past(&self, base: Oid, limit: usize) -> Option<Past> {
        let commits: HashSet<Oid> = self.new_commits(base, &[], limit).ok()?.into_iter().collect();
        Some(Past { base, commits, meets: HashMap::new() })
    }
}

impl Past {
    /// Where the history of `new` parts from this one: what [`Store::fork`] says.
    pub fn fork(&mut self, store: &Store, new: Oid) -> Option<Oid> {
        match self.meet(store, new) {
            Meets::Nowhere => None,
            Meets::At(id) => Some(id),
            Meets::Often => store.fork(self.base, new),
        }
    }

    fn meet(&mut self, store: &Store, new: Oid) -> Meets {
        let mut waiting = vec![new];
        let mut parents_of: HashMap<Oid, Vec<Oid>> = HashMap::new();
        while let Some(id) = waiting.last().copied() {
            if self.known(id).is_some() {
                waiting.pop();
                continue;
            }
            // What cannot be read leads nowhere.
            let parents = parents_of.entry(id).or_insert_with(|| store.read_commit(&id).map(|c| c.parents).unwrap_or_default());
            let unknown: Vec<Oid> = parents.iter().copied().filter(|parent| self.known(*parent).is_none()).collect();
            if unknown.is_empty() {
                let meets = parents.iter().filter_map(|parent| self.known(*parent)).fold(Meets::Nowhere, Meets::and);
                self.meets.insert(id, meets);
                waiting.pop();
            } else {
                waiting.extend(unknown);
            }
        }
        self.known(new).unwrap_or(Meets::Nowhere)
    }

    fn known(&self, id: Oid) -> Option<Meets> {
        if self.commits.contains(&id) { Some(Meets::At(id)) } else { self.meets.get(&id).copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Repo, id};
    use super::*;

    #[test]
    fn it_says_what_a_walk_of_each_says() {
        let repo = Repo::new();
        let first = repo.commit(&[("f", "1")]);
        let second = repo.commit(&[("f", "2")]);
        let base = repo.commit(&[("f", "3")]);
        let on = |parents: &[Oid]| {
            let mut arguments = vec!["commit-tree".to_owned(), "-m".to_owned(), "x".to_owned()];
            arguments.extend(parents.iter().flat_map(|parent| ["-p".to_owned(), parent.to_string()]));
            arguments.push(format!("{first}^{{tree}}"));
            id(&repo.git(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        let alone = on(&[]);
        let side = on(&[first]);
        let later = on(&[side]);
        let merged = on(&[later, second]);
        let strange = on(&[alone, later]);
        let store = repo.store();
        let mut past = store.past(base, 10).unwrap();
        for (new, wanted) in [
            (base, Some(base)),
            (first, Some(first)),
            (later, Some(first)),
            (side, Some(first)),
            (merged, Some(second)),
            (strange, Some(first)),
            (alone, None),
        ] {
            assert_eq!((past.fork(&store, new), store.fork(base, new)), (wanted, wanted), "{new}");
        }
        assert!(store.past(base, 2).is_none());
    }
}
