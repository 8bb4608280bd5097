//! F1: artifacts. Pure functions: artifact sets in, artifact sets and reports out. Nothing here reads a file, asks a policy, or knows
//! where a set is stored.
//!
//! A set is reached through [`Artifacts`], one artifact at a time, so that memory follows the largest artifact and not their sum.

pub mod check;
pub mod layout;
pub mod metadata;
pub mod normalize;
pub mod render;
pub mod repair;
pub mod select;
pub mod tar;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::glob::{GlobError, Globs};
use crate::document::path::RepoPath;

/// Where rules are declared.
const PIPELINE: &str = "control/pipeline.json";

/// A set of artifacts, wherever it is kept.
pub trait Artifacts {
    /// The paths, in byte order, each once.
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_>;

    /// The bytes of an artifact; `None` where there is none, or where they cannot be had.
    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>>;

    /// The same, with their SHA-256.
    fn hashed(&self, path: &RepoPath) -> Option<(Cow<'_, [u8]>, Digest)> {
        self.bytes(path).map(|bytes| {
            let digest = Digest::of(&bytes);
            (bytes, digest)
        })
    }

    /// Whether git would give the file the mode 100755.
    fn is_executable(&self, _path: &RepoPath) -> bool {
        false
    }
}

/// Artifacts in memory.
pub type Files = BTreeMap<RepoPath, Vec<u8>>;

impl Artifacts for Files {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        Box::new(self.keys())
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        self.get(path).map(|bytes| bytes.into())
    }
}

/// A set with some of its artifacts replaced or added: what a phase hands over that changed only a few.
pub struct Overlay<'a> {
    /// What was there.
    pub base: &'a dyn Artifacts,
    /// What is there instead.
    pub changed: &'a Files,
}

impl Artifacts for Overlay<'_> {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        let all: BTreeSet<&RepoPath> = self.base.paths().chain(self.changed.keys()).collect();
        Box::new(all.into_iter())
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        self.changed.get(path).map(|bytes| bytes.into()).or_else(|| self.base.bytes(path))
    }

    fn is_executable(&self, path: &RepoPath) -> bool {
        self.base.is_executable(path)
    }
}

/// The pattern that a rule of the pipeline declares, ready to match.
fn pattern(text: &str) -> Result<Globs, Finding> {
    Globs::new([text]).map_err(|error| bad_pattern(&error))
}

/// A pattern of the pipeline that cannot be used.
fn bad_pattern(error: &GlobError) -> Finding {
    Finding::error(Code::PatternInvalid, error.to_string()).at(PIPELINE).hint(format!("mend the pattern in {PIPELINE}"))
}

/// An artifact whose bytes cannot be had.
fn unreadable(path: &RepoPath) -> Finding {
    Finding::error(Code::ArtifactUnreadable, format!("the bytes of the artifact {path} cannot be had")).at(path)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A path from a literal.
    pub fn path(text: &str) -> RepoPath {
        text.parse().unwrap()
    }

    /// Artifacts from literals.
    pub fn files(files: &[(&str, &str)]) -> Files {
        files.iter().map(|(at, text)| (path(at), text.as_bytes().to_vec())).collect()
    }

    /// Findings as `code path line`, for whole comparison.
    pub fn told(findings: &[Finding]) -> Vec<String> {
        let line = |f: &Finding| f.line.map_or(String::new(), |line| format!(" {line}"));
        findings.iter().map(|f| format!("{} {}{}", f.code, f.path.as_deref().unwrap_or("-"), line(f))).collect()
    }

    /// A set that lists an artifact and cannot give its bytes.
    pub struct Broken(pub RepoPath);

    impl Artifacts for Broken {
        fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
            Box::new(std::iter::once(&self.0))
        }

        fn bytes(&self, _: &RepoPath) -> Option<Cow<'_, [u8]>> {
            None
        }
    }
}
