//! F1: gates. Pure functions: documents in, findings out. A gate never prints, reads a file, or stops at the first finding.

pub mod assurance;
pub mod authority;
pub mod closure;
pub mod order;
pub mod paths;
pub mod promotion;
pub mod push;
pub mod signers;

use crate::document::digest::Digest;
use crate::document::path::RepoPath;

/// What a gate may ask of the files of a snapshot.
pub trait Files {
    /// SHA-256 of a file; `None` where there is none.
    fn sha256(&self, path: &RepoPath) -> Option<Digest>;
    /// Bytes of a file; `None` where there is none.
    fn bytes(&self, path: &RepoPath) -> Option<std::borrow::Cow<'_, [u8]>>;
}

#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;

    use super::*;
    use crate::document::finding::Finding;

    /// Files by path, in memory.
    pub struct Fixture(pub BTreeMap<RepoPath, Vec<u8>>);

    impl Fixture {
        pub fn new(files: &[(&str, &[u8])]) -> Self {
            Self(files.iter().map(|(path, bytes)| (path.parse().unwrap(), bytes.to_vec())).collect())
        }
    }

    impl Files for Fixture {
        fn sha256(&self, path: &RepoPath) -> Option<Digest> {
            self.0.get(path).map(|bytes| Digest::of(bytes))
        }

        fn bytes(&self, path: &RepoPath) -> Option<std::borrow::Cow<'_, [u8]>> {
            self.0.get(path).map(|bytes| bytes.into())
        }
    }

    /// Findings as `code pointer`, for whole comparison.
    pub fn told(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|f| format!("{} {}", f.code, f.pointer.as_deref().unwrap_or("-"))).collect()
    }
}
