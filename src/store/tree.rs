//! Trees read whole and vetted, and trees written in git's order.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use gix::bstr::ByteSlice as _;
use unicode_normalization::UnicodeNormalization as _;

use super::object::{Kind, ObjectError};
use super::pack::{Batch, WriteError};
use super::{Oid, Store};
use crate::document::path::{MAX_COMPONENT_BYTES, PathError, RepoPath, check_component, printable};

/// A file in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// The blob.
    pub id: Oid,
    /// Whether the mode is 100755 rather than 100644.
    pub executable: bool,
}

/// The files of a tree by path, in byte order of path. Only regular files.
pub type Tree = BTreeMap<RepoPath, Leaf>;

/// The bounds within which a tree is read.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Files and folders together.
    pub max_entries: usize,
    /// Folders inside one another.
    pub max_depth: usize,
}

/// How many names in folders are looked at where trees are compared. A few objects can spell more folders than can ever be walked, and what
/// is looked for may be in none of them.
pub const MAX_NAMES: usize = 4_000_000;

impl Default for TreeLimits {
    fn default() -> Self {
        Self { max_entries: 100_000, max_depth: 64 }
    }
}

/// Why a tree was refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A tree object could not be read.
    #[error("the folder '{}' cannot be read", printable(.path))]
    Object {
        /// The folder; empty for the top.
        path: String,
        /// The reason.
        source: ObjectError,
    },
    /// A tree object is not a list of entries.
    #[error("the tree {id} is malformed: {what}")]
    Malformed {
        /// The tree.
        id: Oid,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name that is not safe to write everywhere.
    #[error(transparent)]
    Name(#[from] PathError),
    /// Something that is neither a regular file nor a folder.
    #[error("'{}' is {what}: only regular files are accepted", printable(.path))]
    Mode {
        /// The path.
        path: String,
        /// What it is.
        what: String,
    },
    /// Two names that are one on some file system.
    #[error("'{}' collides with another name in its folder: by case, by Unicode normalization, or as file and folder", printable(.path))]
    Collision {
        /// The second of the two.
        path: String,
    },
    /// A folder without files, which git would not keep.
    #[error("the folder '{}' is empty", printable(.path))]
    EmptyFolder {
        /// The folder.
        path: String,
    },
    /// More entries than are accepted.
    #[error("the tree {id} has more than {limit} files and folders")]
    TooMany {
        /// The top.
        id: Oid,
        /// The limit.
        limit: usize,
    },
    /// More names than are looked at where trees are compared.
    #[error("what is compared has more names in folders than are looked at; it ends in the tree {id}")]
    TooMuch {
        /// The folder that is not looked at any more.
        id: Oid,
    },
    /// Folders nested deeper than is accepted.
    #[error("the tree {id} is more than {limit} folders deep")]
    TooDeep {
        /// The top.
        id: Oid,
        /// The limit.
        limit: usize,
    },
}

/// One entry as the tree object holds it.
pub(in crate::store) struct Entry<'a> {
    pub mode: &'a [u8],
    pub name: &'a [u8],
    pub id: Oid,
}

impl Entry<'_> {
    pub(in crate::store) fn is_folder(&self) -> bool {
        self.mode == FOLDER
    }

    fn sort_key(&self) -> (&[u8], bool) {
        (self.name, self.is_folder())
    }

    /// Whether a regular file is executable. Modes are compared as they are written: `100664` and `0100644`, which older
    /// programs left in trees, would be other bytes under the same meaning.
    fn executable(&self, path: &str) -> Result<bool, TreeError> {
        let what = match self.mode {
            b"100644" => return Ok(false),
            b"100755" => return Ok(true),
            b"40000" => "a folder".to_owned(),
            b"120000" => "a symbolic link".to_owned(),
            b"160000" => "a submodule".to_owned(),
            other => format!("of the odd mode {}", printable(&other.to_str_lossy())),
        };
        Err(TreeError::Mode { path: path.to_owned(), what })
    }
}

impl Store {
    /// Every file of the tree `id`, each tree object verified and every name vetted: what is returned can be written to
    /// any file system.
    pub fn read_tree(&self, id: &Oid, limits: TreeLimits) -> Result<Tree, TreeError> {
        // Put in order at once: folders are not read in it.
        let mut files: Vec<(RepoPath, Leaf)> = Vec::new();
        let mut count = 0;
        let mut folders = vec![(String::new(), *id, 0)];
        while let Some((folder, tree, depth)) = folders.pop() {
            if depth > limits.max_depth {
                return Err(TreeError::TooDeep { id: *id, limit: limits.max_depth });
            }
            let bytes = self.read_folder(&tree, &folder, limits)?;
            let entries = parse(&tree, &bytes)?;
            count += entries.len();
            if count > limits.max_entries {
                return Err(TreeError::TooMany { id: *id, limit: limits.max_entries });
            }
            if entries.is_empty() && depth > 0 {
                return Err(TreeError::EmptyFolder { path: folder });
            }
            let mut names = HashSet::with_capacity(entries.len());
            let mut last: Option<&Entry<'_>> = None;
            for entry in &entries {
                let name = vet(entry.name)?;
                let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                if !names.insert(fold(name)) {
                    return Err(TreeError::Collision { path });
                }
                if last.is_some_and(|last| git_order(last.sort_key(), entry.sort_key()) != Ordering::Less) {
                    return Err(TreeError::Malformed { id: tree, what: "its entries are not sorted" });
                }
                last = Some(entry);
                if entry.is_folder() {
                    folders.push((path, entry.id, depth + 1));
                } else {
                    let executable = entry.executable(&path)?;
                    files.push((path.parse()?, Leaf { id: entry.id, executable }));
                }
            }
        }
        Ok(files.into_iter().collect())
    }

    /// The blob at `path`, reading only the trees on the way; `None` if there is nothing. Names beside the way are not
    /// vetted.
    pub fn lookup(&self, tree: &Oid, path: &RepoPath) -> Result<Option<Oid>, TreeError> {
        self.walk(tree, path, |entry| entry.executable(path.as_str()).map(drop))
    }

    /// The tree at `path`; `None` if there is nothing.
    pub fn subtree(&self, tree: &Oid, path: &RepoPath) -> Result<Option<Oid>, TreeError> {
        self.walk(tree, path, |entry| {
            let file = || TreeError::Mode { path: path.to_string(), what: "not a folder".to_owned() };
            if entry.is_folder() { Ok(()) } else { Err(file()) }
        })
    }

    fn walk(
        &self,
        tree: &Oid,
        path: &RepoPath,
        accept: impl Fn(&Entry<'_>) -> Result<(), TreeError>,
    ) -> Result<Option<Oid>, TreeError> {
        let mut at = *tree;
        let mut components = path.as_str().split('/').peekable();
        while let Some(component) = components.next() {
            let bytes = self.read_folder(&at, path.as_str(), TreeLimits::default())?;
            let entries = parse(&at, &bytes)?;
            let mut named = entries.iter().filter(|entry| entry.name == component.as_bytes());
            let (found, second) = (named.next(), named.next());
            if second.is_some() {
                return Err(TreeError::Collision { path: path.as_str().to_owned() });
            }
            let Some(entry) = found else { return Ok(None) };
            if components.peek().is_none() {
                accept(entry)?;
            } else if !entry.is_folder() {
                return Ok(None);
            }
            at = entry.id;
        }
        Ok(Some(at))
    }

    pub(in crate::store) fn read_folder(&self, id: &Oid, path: &str, limits: TreeLimits) -> Result<Vec<u8>, TreeError> {
        let entry_bytes = b"100644 ".len() + MAX_COMPONENT_BYTES + 1 + id.as_slice().len();
        let limit = limits.max_entries.saturating_mul(entry_bytes) as u64;
        self.read(id, Kind::Tree, limit).map_err(|source| TreeError::Object { path: path.to_owned(), source })
    }
}

/// Adds the tree objects of `tree` to `batch`; the id is that of the top.
pub fn write_tree(batch: &mut Batch<'_>, tree: &Tree) -> Result<Oid, WriteError> {
    write_tree_around(batch, tree, &[])
}

/// As [`write_tree`], with folders of the top that were written before: name and tree. Nothing of `tree` lies in them.
pub fn write_tree_around(batch: &mut Batch<'_>, tree: &Tree, written: &[(&str, Oid)]) -> Result<Oid, WriteError> {
    let files: Vec<&str> = tree.keys().map(RepoPath::as_str).collect();
    let is_file = |path: &str| files.binary_search(&path).is_ok();
    /// Name, mode and object of an entry.
    type Entry<'a> = (&'a str, &'a [u8], Oid);
    let mut folders: BTreeMap<&str, Vec<Entry<'_>>> = BTreeMap::from([("", Vec::new())]);
    for (name, id) in written {
        if is_file(name) {
            return Err(WriteError::FileAndFolder { path: printable(name) });
        }
        folders.entry("").or_default().push((name, FOLDER, *id));
    }
    // Files of one folder mostly follow each other.
    let (mut current, mut entries) = ("", Vec::new());
    for (path, leaf) in tree {
        let path = path.as_str();
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if folder != current {
            folders.entry(current).or_default().append(&mut entries);
            current = folder;
            for (end, _) in path.match_indices('/') {
                if is_file(&path[..end]) {
                    return Err(WriteError::FileAndFolder { path: printable(&path[..end]) });
                }
                folders.entry(&path[..end]).or_default();
            }
        }
        let mode: &[u8] = if leaf.executable { b"100755" } else { b"100644" };
        entries.push((name, mode, leaf.id));
    }
    folders.entry(current).or_default().append(&mut entries);
    // A folder's path is a prefix of those below it, so it comes before them in the map, and the top before all.
    while let Some((folder, mut entries)) = folders.pop_last() {
        entries.sort_unstable_by(|a, b| git_order((a.0.as_bytes(), a.1 == FOLDER), (b.0.as_bytes(), b.1 == FOLDER)));
        let mut content = Vec::with_capacity(entries.len() * 48);
        for (name, mode, id) in entries {
            content.extend_from_slice(mode);
            content.push(b' ');
            content.extend_from_slice(name.as_bytes());
            content.push(0);
            content.extend_from_slice(id.as_slice());
        }
        let id = batch.object(Kind::Tree, content)?;
        if folder.is_empty() {
            return Ok(id);
        }
        let (parent, name) = folder.rsplit_once('/').unwrap_or(("", folder));
        folders.entry(parent).or_default().push((name, FOLDER, id));
    }
    batch.object(Kind::Tree, Vec::new())
}

/// The mode of a folder as git writes it.
const FOLDER: &[u8] = b"40000";

pub(in crate::store) fn parse<'a>(id: &Oid, bytes: &'a [u8]) -> Result<Vec<Entry<'a>>, TreeError> {
    let cut = || TreeError::Malformed { id: *id, what: "an entry is cut off" };
    let id_bytes = id.as_slice().len();
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = rest.find_byte(b' ').ok_or_else(cut)?;
        let (mode, after) = (&rest[..space], &rest[space + 1..]);
        let nul = after.find_byte(0).ok_or_else(cut)?;
        let (name, after) = (&after[..nul], &after[nul + 1..]);
        let (entry_id, after) = after.split_at_checked(id_bytes).ok_or_else(cut)?;
        entries.push(Entry { mode, name, id: Oid::try_from(entry_id).map_err(|_| cut())? });
        rest = after;
    }
    Ok(entries)
}

/// One name of a tree, safe to write on any platform.
fn vet(name: &[u8]) -> Result<&str, PathError> {
    let refuse = |reason: String| PathError { path: printable(&name.to_str_lossy()), reason };
    if name.is_empty() {
        return Err(refuse("it is empty".into()));
    }
    check_component(name).map_err(refuse)?;
    std::str::from_utf8(name).map_err(|_| refuse("it is not valid UTF-8".into()))
}

/// What a name becomes on a file system that ignores case and normalizes Unicode: decomposed, folded by way of upper case
/// (`ß` and `SS`, the three sigmas), and composed again. It folds more than any one file system does, never less.
fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfd().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

/// git sorts a folder as if its name ended in a slash.
fn git_order(a: (&[u8], bool), b: (&[u8], bool)) -> Ordering {
    let bytes = |(name, folder): (&'_ [u8], bool)| name.iter().copied().chain(folder.then_some(b'/')).collect::<Vec<u8>>();
    let shared = a.0.len().min(b.0.len());
    match a.0[..shared].cmp(&b.0[..shared]) {
        Ordering::Equal => bytes(a)[shared..].cmp(&bytes(b)[shared..]),
        different => different,
    }
}

#[cfg(test)]
mod tests {
    use super::super::durable::Durability;
    use super::super::testing::Repo;
    use super::*;

    fn path(text: &str) -> RepoPath {
        text.parse().unwrap()
    }

    fn refused(repo: &Repo, entries: &[(&str, &[u8], Oid)]) -> TreeError {
        let tree = repo.raw_tree(entries);
        repo.store().read_tree(&tree, TreeLimits::default()).expect_err(&format!("accepted: {entries:?}"))
    }

    #[test]
    fn hostile_names_are_refused_as_file_and_as_folder() {
        for repo in [Repo::new(), Repo::sha256()] {
            let blob = repo.blob(b"x");
            let inner = repo.raw_tree(&[("100644", b"x", blob)]);
            let long = [b'x'; 256];
            let names: [&[u8]; 22] = [
                b"",
                b".",
                b"..",
                b"/",
                b"a/b",
                b"/abs",
                b".git",
                b".GIT",
                b".git.",
                b".git ",
                b"git~1",
                ".g\u{200c}it".as_bytes(),
                b".git::$INDEX_ALLOCATION",
                b"a\\b",
                b"a\nb",
                b"\xff",
                b"CON",
                b"aux.txt",
                b"dot.",
                b"space ",
                b"a:b",
                &long,
            ];
            for name in names {
                for (mode, id) in [("100644", blob), ("40000", inner)] {
                    let error = refused(&repo, &[(mode, name, id)]);
                    assert!(matches!(error, TreeError::Name(_)), "{name:?}: {error}");
                    // The same one folder down.
                    let outer = repo.raw_tree(&[(mode, name, id)]);
                    let error = refused(&repo, &[("40000", b"sub", outer)]);
                    assert!(matches!(error, TreeError::Name(_)), "sub/{name:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn only_plain_modes_pass() {
        let repo = Repo::new();
        let blob = repo.blob(b"x");
        let inner = repo.raw_tree(&[("100644", b"x", blob)]);
        for mode in ["120000", "160000", "100664", "104755", "0100644", "100600", "100777", "", "0", "x"] {
            let error = refused(&repo, &[(mode, b"f", blob)]);
            assert!(matches!(error, TreeError::Mode { .. }), "{mode}: {error}");
        }
        assert!(matches!(refused(&repo, &[("040000", b"d", inner)]), TreeError::Mode { .. }));
        assert!(matches!(refused(&repo, &[("40000", b"f", blob)]), TreeError::Object { .. }));
    }

    #[test]
    fn entries_that_collide_or_are_not_in_order_are_refused() {
        let repo = Repo::new();
        let blob = repo.blob(b"x");
        let inner = repo.raw_tree(&[("100644", b"x", blob)]);
        let collide: [[(&str, &str); 2]; 7] = [
            [("100644", "a"), ("100644", "a")],
            [("100644", "A"), ("100644", "a")],
            [("100644", "A"), ("40000", "a")],
            [("100644", "a"), ("40000", "a")],
            [("100644", "e\u{301}"), ("100644", "é")],
            [("100644", "É"), ("100644", "é")],
            [("100644", "strasse"), ("100644", "straße")],
        ];
        for pair in collide {
            let id = |mode: &str| if mode == "40000" { inner } else { blob };
            let entries = pair.map(|(mode, name)| (mode, name.as_bytes(), id(mode)));
            let error = refused(&repo, &entries);
            assert!(matches!(error, TreeError::Collision { .. }), "{pair:?}: {error}");
        }
        for (one, two) in [(("100644", "b"), ("100644", "a")), (("40000", "a"), ("100644", "a.b"))] {
            let error = refused(&repo, &[(one.0, one.1.as_bytes(), inner), (two.0, two.1.as_bytes(), blob)]);
            assert!(matches!(error, TreeError::Malformed { .. } | TreeError::Object { .. }), "{one:?} {two:?}: {error}");
        }
        for cut in [&b"100644"[..], b"100644 a", b"100644 a\0xx"] {
            let tree = repo.raw("tree", cut);
            let error = repo.store().read_tree(&tree, TreeLimits::default()).unwrap_err();
            assert!(matches!(error, TreeError::Malformed { .. }), "{cut:?}: {error}");
        }
        let empty = repo.raw_tree(&[]);
        assert!(matches!(refused(&repo, &[("40000", b"d", empty)]), TreeError::EmptyFolder { .. }));
    }

    #[test]
    fn bombs_are_refused() {
        let repo = Repo::new();
        let blob = repo.blob(b"x");
        let mut bomb = repo.raw_tree(&[("100644", b"x", blob)]);
        for _ in 0..10 {
            let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
            let entries: Vec<_> = names.iter().map(|name| ("40000", name.as_bytes(), bomb)).collect();
            bomb = repo.raw_tree(&entries);
        }
        let error = repo.store().read_tree(&bomb, TreeLimits::default()).unwrap_err();
        assert!(matches!(error, TreeError::TooMany { limit: 100_000, .. }), "{error}");
        let mut deep = repo.raw_tree(&[("100644", b"x", blob)]);
        for depth in 1..=5 {
            let limits = TreeLimits { max_depth: 4, ..TreeLimits::default() };
            deep = repo.raw_tree(&[("40000", b"d", deep)]);
            assert_eq!(repo.store().read_tree(&deep, limits).is_ok(), depth <= 4, "{depth}");
        }
        let limits = |max_entries| TreeLimits { max_entries, ..TreeLimits::default() };
        assert!(repo.store().read_tree(&deep, limits(6)).is_ok());
        assert!(matches!(repo.store().read_tree(&deep, limits(5)), Err(TreeError::TooMany { .. })));
    }

    #[test]
    fn a_tree_is_written_as_git_writes_it_and_read_back() {
        for repo in [Repo::new(), Repo::sha256()] {
            let files = [("a-b", "1"), ("a.txt", "2"), ("a/x", "3"), ("a/y/z", "4"), ("a0", "5"), ("é/ü", "6"), ("b", "7")];
            repo.commit(&files);
            repo.git(&["update-index", "--chmod=+x", "a/x"]);
            let theirs = super::super::testing::id(&repo.git(&["write-tree"]));
            let store = repo.store();
            let tree = store.read_tree(&theirs, TreeLimits::default()).unwrap();
            let names: Vec<_> = tree.keys().map(RepoPath::as_str).collect();
            assert_eq!(
                names,
                files
                    .map(|(name, _)| name)
                    .into_iter()
                    .collect::<std::collections::BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
            );
            assert_eq!(tree.values().filter(|leaf| leaf.executable).count(), 1);
            let mut batch = Batch::new(&store).unwrap();
            assert_eq!(write_tree(&mut batch, &tree).unwrap(), theirs);
            assert_eq!(batch.publish(Durability::Full).unwrap().written, 0);

            let mut batch = Batch::new(&store).unwrap();
            let mut more = tree.clone();
            more.insert(path("a/y/new"), tree[&path("b")]);
            let id = write_tree(&mut batch, &more).unwrap();
            batch.publish(Durability::Relaxed).unwrap();
            assert_eq!(repo.store().read_tree(&id, TreeLimits::default()).unwrap(), more);
            repo.fsck();

            assert_eq!(store.lookup(&theirs, &path("a/y/z")).unwrap(), Some(tree[&path("a/y/z")].id));
            for absent in ["a/y/q", "b/x", "c", "a.txt/x"] {
                assert_eq!(store.lookup(&theirs, &path(absent)).unwrap(), None, "{absent}");
            }
            assert!(matches!(store.lookup(&theirs, &path("a/y")), Err(TreeError::Mode { .. })));
            assert!(matches!(store.subtree(&theirs, &path("b")), Err(TreeError::Mode { .. })));
            let sub = store.subtree(&theirs, &path("a/y")).unwrap().unwrap();
            assert_eq!(store.read_tree(&sub, TreeLimits::default()).unwrap().len(), 1);

            let mut clash = tree.clone();
            clash.insert(path("b/c"), tree[&path("b")]);
            let error = write_tree(&mut Batch::new(&store).unwrap(), &clash).unwrap_err();
            assert!(matches!(error, WriteError::FileAndFolder { path } if path == "b"));
        }
    }
}
