//! Path patterns, as documents declare them.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::path::RepoPath;

/// A set of path patterns. `*` and `?` stay within one component, `**` crosses them, as in git's pathspecs with
/// the `glob` magic. Matching is case-sensitive on every platform.
#[derive(Clone, Debug)]
pub struct Globs {
    patterns: Vec<String>,
    set: GlobSet,
}

/// Why a pattern was refused.
#[derive(Debug, thiserror::Error)]
#[error("the pattern '{pattern}' is refused: {reason}")]
pub struct GlobError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Globs {
    /// Compiles `patterns`. An empty list matches nothing.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, GlobError> {
        let mut set = GlobSetBuilder::new();
        let mut kept = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let refuse = |reason: String| GlobError { pattern: super::path::printable(pattern), reason };
            let steps_out = pattern.split('/').any(|c| c == ".." || c == "." || c.is_empty());
            if steps_out || pattern.contains('\\') {
                return Err(refuse(
                    "it must be relative to the top of the repository, with no empty, '.' or '..' component and no backslash"
                        .into(),
                ));
            }
            if pattern.len() > 1024 {
                return Err(refuse("it is longer than 1024 bytes".into()));
            }
            let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(false).build();
            set.add(glob.map_err(|error| refuse(error.kind().to_string()))?);
            kept.push(pattern.to_owned());
        }
        let set = set.build().map_err(|error| GlobError { pattern: kept.join(" "), reason: error.to_string() })?;
        Ok(Self { patterns: kept, set })
    }

    /// Whether one of the patterns matches `path`.
    pub fn matches(&self, path: &RepoPath) -> bool {
        self.set.is_match(path.as_str())
    }

    /// Whether one of the patterns matches a name that may not be a valid [`RepoPath`], so that a file which cannot be
    /// an input is refused and not overlooked.
    pub fn matches_bytes(&self, path: &[u8]) -> bool {
        self.set.is_match(String::from_utf8_lossy(path).as_ref())
    }

    /// The first pattern that matches `path`.
    pub fn matching(&self, path: &RepoPath) -> Option<&str> {
        self.set.matches(path.as_str()).first().map(|i| self.patterns[*i].as_str())
    }

    /// For each pattern the folder or file that everything it matches lies at or below; empty for the top.
    pub fn prefixes(&self) -> Vec<String> {
        let literal = |pattern: &String| -> String {
            let plain = pattern.split('/').take_while(|c| !c.contains(['*', '?', '[', '{']));
            plain.collect::<Vec<_>>().join("/")
        };
        self.patterns.iter().map(literal).collect()
    }

    /// The patterns, as declared.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_one_component() {
        let globs = Globs::new(["docs/*.md", "src/**/*.rs", "one.txt"]).unwrap();
        for (path, wanted) in [
            ("docs/a.md", true),
            ("docs/x/a.md", false),
            ("src/a.rs", true),
            ("src/x/y/a.rs", true),
            ("one.txt", true),
            ("One.txt", false),
        ] {
            assert_eq!(globs.matches(&path.parse().unwrap()), wanted, "{path}");
        }
        assert_eq!(globs.prefixes(), ["docs", "src", "one.txt"]);
        assert_eq!(globs.matching(&"docs/a.md".parse().unwrap()), Some("docs/*.md"));
    }

    #[test]
    fn patterns_that_leave_the_repository_are_refused() {
        for pattern in ["/a", "../a", "a/../b", "a//b", "a\\b", "", "a/", "[", "{a"] {
            assert!(Globs::new([pattern]).is_err(), "{pattern}");
        }
    }
}
