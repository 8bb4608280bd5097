//! What differs between two trees, reading only the folders that differ.
//!
//! Names are not vetted and nothing is renamed: what git would show as a rename is one file less and one more. A merge is compared with
//! each parent by itself.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::tree::{MAX_NAMES, TreeError, TreeLimits, parse};
use super::{Oid, Store};

/// What stands at a path of a tree. Folders are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A regular file.
    File(Oid),
    /// A regular file that may be executed.
    Executable(Oid),
    /// A symbolic link.
    Link(Oid),
    /// A submodule.
    Submodule(Oid),
    /// An entry whose mode git does not write.
    Odd(Oid),
}

impl Thing {
    /// The object.
    pub fn id(self) -> Oid {
        match self {
            Self::File(id) | Self::Executable(id) | Self::Link(id) | Self::Submodule(id) | Self::Odd(id) => id,
        }
    }

    /// What it is, for a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::File(_) => "a regular file",
            Self::Executable(_) => "an executable file",
            Self::Link(_) => "a symbolic link",
            Self::Submodule(_) => "a submodule",
            Self::Odd(_) => "an entry of an odd mode",
        }
    }

    fn of(mode: &[u8], id: Oid) -> Self {
        match mode {
            b"100644" => Self::File(id),
            b"100755" => Self::Executable(id),
            b"120000" => Self::Link(id),
            b"160000" => Self::Submodule(id),
            _ => Self::Odd(id),
        }
    }
}

/// What differs at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path, as bytes: it may be one that is refused.
    pub path: Vec<u8>,
    /// What was there.
    pub old: Option<Thing>,
    /// What is there.
    pub new: Option<Thing>,
}

/// Which folders and files are of interest.
pub trait Interest {
    /// Whether anything of interest can lie below this folder.
    fn may_hold(&self, folder: &[u8]) -> bool;
    /// Whether this file is of interest.
    fn holds(&self, path: &[u8]) -> bool;
}

/// Everything is of interest.
pub struct Everything;

impl Interest for Everything {
    fn may_hold(&self, _folder: &[u8]) -> bool {
        true
    }

    fn holds(&self, _path: &[u8]) -> bool {
        true
    }
}

impl Store {
    /// What differs between the trees `old` and `new`, in byte order of path; an absent tree is an empty one. More differences than
    /// `limits.max_entries` are an error, and so is what cannot be walked in reasonable time.
    pub fn compare(
        &self,
        old: Option<Oid>,
        new: Option<Oid>,
        interest: &dyn Interest,
        limits: TreeLimits,
    ) -> Result<Vec<Difference>, TreeError> {
        self.compare_within(old, new, interest, limits, &Cell::new(MAX_NAMES))
    }

    /// The same where several comparisons share what they may look at: `left` names in folders, which it takes from.
    pub fn compare_within(
        &self,
        old: Option<Oid>,
        new: Option<Oid>,
        interest: &dyn Interest,
        limits: TreeLimits,
        left: &Cell<usize>,
    ) -> Result<Vec<Difference>, TreeError> {
        let mut found: BTreeMap<Vec<u8>, Difference> = BTreeMap::new();
        let mut waiting = vec![(Vec::new(), old, new, 0)];
        while let Some((folder, old, new, depth)) = waiting.pop() {
            if old == new {
                continue;
            }
            let top = || new.or(old).unwrap_or(self.object_hash().null());
            if depth > limits.max_depth {
                return Err(TreeError::TooDeep { id: top(), limit: limits.max_depth });
            }
            let shown = String::from_utf8_lossy(&folder).into_owned();
            let read = |id: Option<Oid>| id.map(|id| self.read_folder(&id, &shown, limits).map(|bytes| (id, bytes))).transpose();
            let (old, new) = (read(old)?, read(new)?);
            /// The folder of a name, and what is no folder, on either side.
            type Sides = [(Option<Oid>, Option<Thing>); 2];
            let mut names: BTreeMap<&[u8], Sides> = BTreeMap::new();
            for (side, tree) in [&old, &new].into_iter().enumerate() {
                let Some((id, bytes)) = tree else { continue };
                for entry in parse(id, bytes)? {
                    left.set(left.get().checked_sub(1).ok_or_else(|| TreeError::TooMuch { id: *id })?);
                    let slot = &mut names.entry(entry.name).or_default()[side];
                    if slot.0.is_some() || slot.1.is_some() {
                        return Err(TreeError::Malformed { id: *id, what: "it has a name twice" });
                    }
                    *slot = match entry.is_folder() {
                        true => (Some(entry.id), None),
                        false => (None, Some(Thing::of(entry.mode, entry.id))),
                    };
                }
            }
            for (name, [(old_folder, old), (new_folder, new)]) in names {
                let mut path = folder.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                if old_folder != new_folder && interest.may_hold(&path) {
                    waiting.push((path.clone(), old_folder, new_folder, depth + 1));
                }
                if old != new && interest.holds(&path) {
                    found.insert(path.clone(), Difference { path, old, new });
                    if found.len() > limits.max_entries {
                        return Err(TreeError::TooMany { id: top(), limit: limits.max_entries });
                    }
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// What stands at `path` in the tree, whatever it is; a folder is nothing.
    pub fn thing_at(&self, tree: Oid, path: &str) -> Result<Option<Thing>, TreeError> {
        struct One<'a>(&'a [u8]);
        impl Interest for One<'_> {
            fn may_hold(&self, folder: &[u8]) -> bool {
                self.0.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
            }

            fn holds(&self, path: &[u8]) -> bool {
                self.0 == path
            }
        }
        let found = self.compare(None, Some(tree), &One(path.as_bytes()), TreeLimits::default())?;
        Ok(found.into_iter().next().and_then(|difference| difference.new))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Repo;
    use super::*;

    struct Below(&'static str);
    impl Interest for Below {
        fn may_hold(&self, folder: &[u8]) -> bool {
            folder == self.0.as_bytes()
        }

        fn holds(&self, path: &[u8]) -> bool {
            path.starts_with(self.0.as_bytes())
        }
    }

    #[test]
    fn what_differs_is_told_without_reading_what_does_not() {
        for repo in [Repo::new(), Repo::sha256()] {
            let old = repo.commit(&[("a/x", "1"), ("a/y", "2"), ("b/z", "3"), ("c", "4")]);
            repo.git(&["rm", "-q", "-r", "c", "a/x"]);
            let new = repo.commit(&[("a/y", "2!"), ("c/d", "5"), ("e", "6")]);
            let store = repo.store();
            let (old, new) = (store.tree_of(&old).unwrap(), store.tree_of(&new).unwrap());
            // The folder that is the same on both sides is not read.
            let same = super::super::testing::id(&repo.git(&["rev-parse", "HEAD:b"]));
            repo.damage(&same, b"garbage");
            let store = repo.store();
            let told = |found: Vec<Difference>| -> Vec<String> {
                let sign = |d: &Difference| match (d.old, d.new) {
                    (None, _) => '+',
                    (_, None) => '-',
                    _ => '~',
                };
                found.iter().map(|d| format!("{}{}", sign(d), String::from_utf8_lossy(&d.path))).collect()
            };
            let all = TreeLimits::default();
            let found = store.compare(Some(old), Some(new), &Everything, all).unwrap();
            assert_eq!(told(found), ["-a/x", "~a/y", "-c", "+c/d", "+e"]);
            let found = store.compare(Some(old), Some(new), &Below("a"), all).unwrap();
            assert_eq!(told(found), ["-a/x", "~a/y"]);
            assert_eq!(told(store.compare(None, Some(new), &Below("a"), all).unwrap()), ["+a/y"]);
            assert!(store.compare(None, Some(new), &Everything, all).is_err());
            let few = TreeLimits { max_entries: 4, ..all };
            assert!(matches!(store.compare(Some(old), Some(new), &Everything, few), Err(TreeError::TooMany { limit: 4, .. })));
            assert!(matches!(store.thing_at(new, "c/d").unwrap(), Some(Thing::File(_))));
            assert_eq!(store.thing_at(new, "c").unwrap(), None);
        }
    }

    #[test]
    fn every_kind_of_thing_is_told_apart() {
        let repo = Repo::new();
        let blob = repo.blob(b"x");
        for (mode, name) in [
            ("100644", "a regular file"),
            ("100755", "an executable file"),
            ("120000", "a symbolic link"),
            ("160000", "a submodule"),
            ("100664", "an entry of an odd mode"),
        ] {
            let tree = repo.raw_tree(&[(mode, b"f", blob)]);
            assert_eq!(repo.store().thing_at(tree, "f").unwrap().map(Thing::name), Some(name));
        }
        let twice = repo.raw_tree(&[("100644", b"f", blob), ("100755", b"f", blob)]);
        assert!(matches!(repo.store().thing_at(twice, "f"), Err(TreeError::Malformed { .. })));
    }
}
