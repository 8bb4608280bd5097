//! Which paths are generated: by the declaration of a commit, and by that of the commit before it, so that a push cannot take its own
//! files out of sight.

use std::collections::{BTreeMap, BTreeSet};

use super::hints::irregular;
use super::limits::{Budget, not_walked};
use super::unreadable;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::path::{RepoPath, printable};
use crate::document::pipeline::Pipeline;
use crate::document::schema::{Kind, Sealed, load};
use crate::gate::paths::PIPELINE_PATH;
use crate::store::compare::{Interest, Thing};
use crate::store::tree::TreeLimits;
use crate::store::{Oid, Store};

/// The largest document that is read from a commit, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 64 << 20;

/// A document of a tree: absent, readable, or why not.
pub fn document<T: serde::de::DeserializeOwned>(
    store: &Store,
    tree: Oid,
    kind: Kind,
    at: &str,
) -> Result<Option<Sealed<T>>, Vec<Finding>> {
    let refuse = |error: &dyn std::error::Error| vec![unreadable(&format!("{at} cannot be read"), error).at(at)];
    let thing = store.thing_at(tree, at).map_err(|error| refuse(&error))?;
    let id = match thing {
        None => return Ok(None),
        Some(Thing::File(id) | Thing::Executable(id)) => id,
        Some(other) => {
            let message = format!("{at} is {}: it must be a regular file", other.name());
            return Err(vec![Finding::error(Code::InputNotRegular, message).at(at).hint("put the file itself there")]);
        }
    };
    let bytes = store.read_blob(&id, MAX_DOCUMENT).map_err(|error| refuse(&error))?;
    let path: RepoPath = at.parse().map_err(|error: crate::document::path::PathError| refuse(&error))?;
    load::<T>(kind, &path, &bytes).map(Some)
}

/// The pipeline that a tree declares.
pub fn pipeline(store: &Store, tree: Oid) -> Result<Option<Sealed<Pipeline>>, Vec<Finding>> {
    document(store, tree, Kind::Pipeline, PIPELINE_PATH)
}

/// The blob at a path of a tree, whatever it says.
pub fn blob_at(store: &Store, tree: Oid, at: &str) -> Option<Oid> {
    store.thing_at(tree, at).ok().flatten().map(Thing::id)
}

/// Where files are generated.
pub struct GenPaths {
    /// By the commit's own declaration.
    own: Globs,
    declared: BTreeSet<RepoPath>,
    /// By the declaration before it.
    before: Globs,
    declared_before: BTreeSet<RepoPath>,
    /// The artifacts as a file system that ignores case names them.
    folded: BTreeSet<String>,
    /// The folders and files that all of it lies at or below, in lower case.
    roots: Vec<Vec<u8>>,
}

impl GenPaths {
    /// The paths of a declaration and of the one before it.
    pub fn new(own: Option<&Pipeline>, before: Option<&Pipeline>) -> Result<Self, Vec<Finding>> {
        let globs = |pipeline: Option<&Pipeline>| {
            let patterns = pipeline.map(|p| p.r#gen.generated.as_slice()).unwrap_or_default();
            Globs::new(patterns).map_err(|error| {
                let finding = Finding::error(Code::PatternInvalid, error.to_string()).at(PIPELINE_PATH);
                vec![finding.hint("mend the pattern in gen.generated")]
            })
        };
        let paths = |pipeline: Option<&Pipeline>| -> BTreeSet<RepoPath> {
            pipeline.iter().flat_map(|p| &p.r#gen.artifacts).map(|artifact| artifact.path.clone()).collect()
        };
        let (own_globs, before_globs) = (globs(own)?, globs(before)?);
        let (declared, declared_before) = (paths(own), paths(before));
        let prefixes = own_globs.prefixes().into_iter().chain(before_globs.prefixes());
        let exact = declared.iter().chain(&declared_before).map(|path| path.as_str().to_owned());
        let mut roots: Vec<Vec<u8>> = prefixes.chain(exact).map(|root| root.to_lowercase().into_bytes()).collect();
        roots.sort();
        // A root below another one adds nothing; sorted, the one above comes first.
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for root in roots {
            if !kept.iter().rev().take(1).any(|above| is_at_or_below(&root, above)) {
                kept.push(root);
            }
        }
        let folded = declared.iter().map(RepoPath::fold_key).collect();
        Ok(Self { own: own_globs, declared, before: before_globs, declared_before, folded, roots: kept })
    }

    /// The artifacts that the commit itself declares.
    pub fn declared(&self) -> &BTreeSet<RepoPath> {
        &self.declared
    }

    /// Whether the commit's own declaration says that a file here is generated.
    pub fn is_own(&self, path: &RepoPath) -> bool {
        self.declared.contains(path) || self.own.matches(path)
    }

    /// Everything that lies at generated paths of a tree, and what must not lie there whatever it holds.
    pub(super) fn things(
        &self,
        store: &Store,
        tree: Oid,
        names: &Budget,
    ) -> Result<(BTreeMap<RepoPath, Oid>, Vec<Finding>), Finding> {
        let found = store.compare_within(None, Some(tree), self, TreeLimits::default(), names.left());
        let found = found.map_err(|error| not_walked("the commit's tree cannot be read", &error, names))?;
        let (mut files, mut findings) = (BTreeMap::new(), Vec::new());
        for difference in found {
            let shown = printable(&String::from_utf8_lossy(&difference.path));
            match (RepoPath::from_bytes(&difference.path), difference.new) {
                (_, None) => {}
                (_, Some(other)) if self.is_above(&difference.path) => findings.push(
                    Finding::error(Code::GenNotRegular, format!("{shown} is {}, and files are generated below it", other.name()))
                        .at(&shown)
                        .expected("a folder", other.name())
                        .hint(irregular(&shown, other, true)),
                ),
                (Ok(path), Some(_)) if !self.is_exact(difference.path.as_slice(), &path) => findings.push(
                    Finding::error(
                        Code::PathCollision,
                        format!("{path} and an artifact are one file on a case-insensitive file system"),
                    )
                    .at(&path)
                    .hint("rename it: a checkout there would write the one over the other"),
                ),
                (Ok(path), Some(Thing::File(id))) => drop(files.insert(path, id)),
                (Ok(path), Some(other)) => findings.push(
                    Finding::error(Code::GenNotRegular, format!("{path} is {}", other.name()))
                        .at(&path)
                        .expected("a regular file that is not executable", other.name())
                        .hint(irregular(path.as_str(), other, false)),
                ),
                (Err(error), Some(_)) => {
                    let finding = Finding::error(Code::GenNotRegular, error.to_string()).at(shown);
                    findings.push(finding.hint("remove the file from the commit"));
                }
            }
        }
        Ok((files, findings))
    }
}

impl GenPaths {
    /// Whether a file here is generated, or would be taken for one that is.
    fn holds_file(&self, path: &[u8]) -> bool {
        if self.own.matches_bytes(path) || self.before.matches_bytes(path) {
            return true;
        }
        let Some(path) = std::str::from_utf8(path).ok().and_then(|text| text.parse::<RepoPath>().ok()) else { return false };
        self.is_exact(path.as_str().as_bytes(), &path) || self.folded.contains(&path.fold_key())
    }

    /// Whether this is no file that is generated, and a folder that such files lie below would be in its place.
    fn is_above(&self, path: &[u8]) -> bool {
        let folded = String::from_utf8_lossy(path).to_lowercase().into_bytes();
        let above = self.roots.iter().any(|root| !root.is_empty() && is_at_or_below(root, &folded));
        above && !self.holds_file(path)
    }

    /// Whether a file is at a generated path by its very name, and not by one that only some file systems take for it.
    fn is_exact(&self, bytes: &[u8], path: &RepoPath) -> bool {
        let declared = self.declared.contains(path) || self.declared_before.contains(path);
        declared || self.own.matches_bytes(bytes) || self.before.matches_bytes(bytes)
    }
}

impl Interest for GenPaths {
    fn may_hold(&self, folder: &[u8]) -> bool {
        let folder = String::from_utf8_lossy(folder).to_lowercase().into_bytes();
        self.roots.iter().any(|root| is_at_or_below(root, &folder) || is_at_or_below(&folder, root))
    }

    fn holds(&self, path: &[u8]) -> bool {
        self.holds_file(path) || self.is_above(path)
    }
}

/// Whether `path` is `folder` or lies below it; everything lies below the empty path.
pub(super) fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::pipeline::{Artifact, Gen};

    fn declaring(generated: &[&str], artifacts: &[&str]) -> Pipeline {
        let artifact = |path: &&str| Artifact { path: path.parse().unwrap(), objectives: vec!["O-1".into()], template: None };
        Pipeline {
            r#gen: Gen {
                generated: generated.iter().map(|g| (*g).to_owned()).collect(),
                artifacts: artifacts.iter().map(artifact).collect(),
                ..Gen::default()
            },
            ..Pipeline::default()
        }
    }

    #[test]
    fn paths_of_both_declarations_count() {
        let (own, before) = (declaring(&["out/**"], &["out/a"]), declaring(&["gen/*.md"], &["extra/x"]));
        let paths = GenPaths::new(Some(&own), Some(&before)).unwrap();
        for (path, holds, is_own) in [
            ("out/a", true, true),
            ("out/b/c", true, true),
            ("gen/a.md", true, false),
            ("gen/a.txt", false, false),
            ("extra/x", true, false),
            ("extra/y", false, false),
            ("outer", false, false),
            // Another name for an artifact, where case does not count.
            ("Out/A", true, false),
            ("Out/other", false, false),
        ] {
            assert_eq!((paths.holds(path.as_bytes()), paths.is_own(&path.parse().unwrap())), (holds, is_own), "{path}");
        }
        for (folder, may) in
            [("out", true), ("out/b", true), ("gen", true), ("extra", true), ("OUT", true), ("docs", false), ("outer", false)]
        {
            assert_eq!(paths.may_hold(folder.as_bytes()), may, "{folder}");
        }
        // What lies where a folder of generated files should be.
        for (path, above) in
            [("out", true), ("OUT", true), ("gen", true), ("extra", true), ("out/b", false), ("docs", false), ("ou", false)]
        {
            assert_eq!(
                (paths.is_above(path.as_bytes()), paths.holds(path.as_bytes())),
                (above, above || path == "out/b"),
                "{path}"
            );
        }
        // A name that is no valid path is not overlooked.
        assert!(paths.holds(b"out/\xff") && !paths.holds(b"doc/\xff"));
    }
}
