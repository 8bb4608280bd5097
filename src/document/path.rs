//! Repository paths that are safe to write on any platform.

use std::fmt;
use std::str::FromStr;

use gix::bstr::ByteSlice as _;
use serde::{Deserialize, Serialize, Serializer};

/// The longest path that is accepted, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;
/// The longest component that is accepted, in bytes: what common file systems allow.
pub const MAX_COMPONENT_BYTES: usize = 255;

/// A path relative to the top of a repository, `/`-separated UTF-8, validated as git validates what it
/// checks out, on every platform at once: no empty, `.` or `..` component, no spelling of `.git` that NTFS or
/// HFS+ would fold to it, no control character, backslash, Windows device name or trailing dot or space.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct RepoPath(String);

/// Why a path was refused.
#[derive(Debug, thiserror::Error)]
#[error("the path '{path}' is refused: {reason}")]
pub struct PathError {
    /// The path, escaped for printing and cut to a bounded length.
    pub path: String,
    /// The rule it breaks.
    pub reason: String,
}

impl RepoPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of `name` inside this folder.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        format!("{}/{name}", self.0).parse()
    }

    /// Whether this path is inside `folder`, which is given without a trailing slash.
    pub fn is_under(&self, folder: &str) -> bool {
        self.0.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The path from raw bytes, as a tree or an index holds them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.parse(),
            Err(_) => Err(PathError { path: printable(&bytes.to_str_lossy()), reason: "it is not valid UTF-8".into() }),
        }
    }

    /// The path folded as a case-insensitive file system folds it; two paths of one set that fold to the
    /// same key would overwrite each other there.
    pub fn fold_key(&self) -> String {
        if self.0.is_ascii() { self.0.to_ascii_lowercase() } else { self.0.to_lowercase() }
    }
}

/// `text` with control characters, line breaks and text-direction overrides escaped, and cut to 200 characters,
/// so that a hostile name cannot rewrite a terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(200) {
        if c.is_control() || is_hidden(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    if text.chars().nth(200).is_some() {
        out.push('…');
    }
    out
}

/// Whether a character has no width, or turns the direction of text.
pub fn is_hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Checks one component as git does for the platforms it protects (`core.protectHFS`, `core.protectNTFS`), and the
/// names Windows cannot hold.
pub fn check_component(name: &[u8]) -> Result<(), String> {
    if is_plain(name) {
        return Ok(());
    }
    let options = gix::validate::path::component::Options { protect_windows: true, protect_hfs: true, protect_ntfs: true };
    if name.len() > MAX_COMPONENT_BYTES {
        return Err(format!("a component is longer than {MAX_COMPONENT_BYTES} bytes"));
    }
    if name == b"." || name == b".." {
        return Err("'.' and '..' are not names".into());
    }
    if let Some(byte) = name.iter().find(|b| **b < 0x20 || **b == 0x7f) {
        return Err(format!("a component holds the control character {byte:#04x}"));
    }
    gix::validate::path::component(name.as_bstr(), None, options).map(|_| ()).map_err(|error| error.to_string())
}

/// Whether a component is of a kind that no rule is about, as nearly all are: short, of ASCII letters, digits, `-`, `_` and inner dots, and no
/// name of a Windows device, which all have three or four letters before the first dot.
fn is_plain(name: &[u8]) -> bool {
    let stem = name.iter().position(|byte| *byte == b'.').unwrap_or(name.len());
    name.len() <= MAX_COMPONENT_BYTES
        && !matches!(stem, 0 | 3 | 4)
        && name.last() != Some(&b'.')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

impl RepoPath {
    fn check(text: &str) -> Result<(), PathError> {
        let refuse = |reason: String| PathError { path: printable(text), reason };
        if text.is_empty() {
            return Err(refuse("it is empty".into()));
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(refuse(format!("it is longer than {MAX_PATH_BYTES} bytes")));
        }
        for component in text.split('/') {
            if component.is_empty() {
                return Err(refuse("it is absolute, ends in '/', or has an empty component".into()));
            }
            check_component(component.as_bytes()).map_err(refuse)?;
        }
        Ok(())
    }
}

impl FromStr for RepoPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::check(text).map(|()| Self(text.to_owned()))
    }
}

impl TryFrom<String> for RepoPath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        Self::check(&text).map(|()| Self(text))
    }
}

impl Serialize for RepoPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl From<RepoPath> for String {
    fn from(path: RepoPath) -> String {
        path.0
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_breaks_no_rule() {
        let options = gix::validate::path::component::Options { protect_windows: true, protect_hfs: true, protect_ntfs: true };
        let letters = b"aAcCoOnNpPrRxXuUlLtTmMgGiI019.-_~ $";
        let (mut state, mut plain) = (7u64, 0);
        for round in 0..200_000u64 {
            let mut name = Vec::new();
            for _ in 0..1 + round % 9 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                name.push(letters[(state >> 33) as usize % letters.len()]);
            }
            if is_plain(&name) {
                plain += 1;
                let checked = gix::validate::path::component(name.as_bstr(), None, options);
                assert!(checked.is_ok(), "{}", name.as_bstr());
            }
        }
        assert!(plain > 10_000, "{plain}");
        for device in ["con", "PRN.txt", "Aux", "nul.", "com1", "LPT9.x.y", "conin$", "CONOUT$", ".git", "git~1", "a ", "a."] {
            assert!(!is_plain(device.as_bytes()), "{device}");
        }
    }

    #[test]
    fn hostile_paths_are_refused_as_leaf_and_as_folder() {
        let long = "x".repeat(256);
        let names = [
            "",
            ".",
            "..",
            ".git",
            ".GIT",
            ".git.",
            ".git ",
            "git~1",
            ".g\u{200c}it",
            ".git::$INDEX_ALLOCATION",
            "a\\b",
            "a\nb",
            "a\u{7f}b",
            "CON",
            "aux.txt",
            "dot.",
            "space ",
            "a:b",
            &long,
        ];
        for name in names {
            for path in [name.to_owned(), format!("{name}/x"), format!("x/{name}"), format!("x/{name}/y")] {
                assert!(path.parse::<RepoPath>().is_err(), "{path:?} was accepted");
            }
        }
        assert!("/abs".parse::<RepoPath>().is_err());
        assert!(RepoPath::from_bytes(b"a/\xff").is_err());
        assert!("x/".repeat(3000).parse::<RepoPath>().is_err());
    }

    #[test]
    fn ordinary_paths_pass() {
        for path in ["a", "a/b.txt", "docs/é.md", ".gitignore", "a b/c", "…"] {
            assert_eq!(path.parse::<RepoPath>().unwrap().as_str(), path);
        }
    }

    #[test]
    fn names_are_printed_without_terminal_control() {
        assert_eq!(printable("a\u{1b}[31m\u{202e}b\n"), "a\\u{1b}[31m\\u{202e}b\\u{a}");
    }
}
