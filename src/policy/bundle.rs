//! A set of policy files, with the checks that need no parser.
//!
//! regorus' parser takes exponential time in nested literals, so depth is measured here, by a scan over bytes, before
//! any parser sees the text; everything that needs the parser happens in the cage.

use crate::document::cage::RequestFile;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::json::line_column;
use crate::document::path::RepoPath;

/// The largest policy file, in bytes.
pub const MAX_FILE_BYTES: usize = 256 << 10;
/// The largest bundle, in bytes, tests included.
pub const MAX_BUNDLE_BYTES: usize = 4 << 20;
/// How deep `[`, `{` and `(` may nest. regorus takes seconds at 16 and minutes at 20.
pub const MAX_NESTING: usize = 8;

/// One policy file as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyFile {
    /// Its repository path.
    pub path: RepoPath,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// Policy files that may be shown to the parser, in byte order of path; the tests (`*_test.rego`) apart.
#[derive(Clone, Debug)]
pub struct Bundle {
    policies: Vec<RequestFile>,
    tests: Vec<RequestFile>,
    hash: Digest,
}

impl Bundle {
    /// Checks encoding, size and nesting of every file, and reports all that is wrong.
    ///
    /// The files are the `*.rego` of a repository; any other file is refused, because leaving it out would
    /// silently change what a policy means. Tests are kept for [`super::tester`] and are no part of the hash.
    pub fn new(mut files: Vec<PolicyFile>) -> Result<Self, Vec<Finding>> {
        files.sort_by(|a, b| a.path.as_str().as_bytes().cmp(b.path.as_str().as_bytes()));
        let mut findings = Vec::new();
        let (mut policies, mut tests, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        let total: usize = files.iter().map(|file| file.text.len()).sum();
        if total > MAX_BUNDLE_BYTES {
            let message = format!("the policy files have {total} bytes together; {MAX_BUNDLE_BYTES} is the limit");
            return Err(vec![Finding::error(Code::PolicyForbidden, message).hint("split what is not policy off into inputs")]);
        }
        for pair in files.windows(2) {
            if pair[0].path == pair[1].path {
                findings.push(Finding::error(Code::PolicyInvalid, "the file is given twice").at(&pair[0].path));
            }
        }
        for PolicyFile { path, text } in files {
            match checked(&path, text) {
                Ok((digest, text)) => {
                    let file = RequestFile { path, text };
                    if is_test(&file.path) {
                        tests.push(file);
                    } else {
                        digests.push((file.path.clone(), digest));
                        policies.push(file);
                    }
                }
                Err(finding) => findings.push(*finding),
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let hash = Digest::of_listing(digests.iter().map(|(path, digest)| (path, *digest)));
        Ok(Self { policies, tests, hash })
    }

    /// The listing hash of the policy files, tests left out: `policy_bundle_hash`.
    pub fn hash(&self) -> Digest {
        self.hash
    }

    /// The policy files, tests left out.
    pub fn policies(&self) -> &[RequestFile] {
        &self.policies
    }

    /// The test files.
    pub fn tests(&self) -> &[RequestFile] {
        &self.tests
    }
}

/// Whether a path is a policy test, which decides nothing and enters no hash.
pub fn is_test(path: &RepoPath) -> bool {
    path.as_str().ends_with("_test.rego")
}

fn checked(path: &RepoPath, text: Vec<u8>) -> Result<(Digest, String), Box<Finding>> {
    let refuse = |code, message: String| Finding::error(code, message).at(path);
    if !path.as_str().ends_with(".rego") {
        return Err(Box::new(refuse(Code::PolicyInvalid, "it is not a .rego file".into())));
    }
    if text.len() > MAX_FILE_BYTES {
        let message = format!("the policy file has {} bytes; {MAX_FILE_BYTES} is the limit", text.len());
        return Err(Box::new(refuse(Code::PolicyForbidden, message).hint("split the file")));
    }
    if let Some(offset) = too_deep(&text) {
        let (line, column) = line_column(&text, offset);
        let message = format!("brackets nest deeper than {MAX_NESTING}, which the parser cannot read in bounded time");
        let finding = refuse(Code::PolicyForbidden, message).on(line, column);
        return Err(Box::new(finding.hint("name the inner parts as rules of their own")));
    }
    let digest = Digest::of(&text);
    match String::from_utf8(text) {
        Ok(text) if text.starts_with('\u{feff}') => {
            Err(Box::new(refuse(Code::PolicyInvalid, "it starts with a byte-order mark".into()).on(1, 1)))
        }
        Ok(text) => Ok((digest, text)),
        Err(error) => {
            let (line, column) = line_column(error.as_bytes(), error.utf8_error().valid_up_to());
            Err(Box::new(refuse(Code::PolicyInvalid, "it is not valid UTF-8".into()).on(line, column)))
        }
    }
}

/// The offset of the first bracket that nests too deep. Brackets in strings, raw strings and comments do not count.
fn too_deep(text: &[u8]) -> Option<usize> {
    let (mut open, mut at) = (Vec::new(), 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                // A string ends at its quote or, unterminated, at the line's end: the parser stops there too.
                at += 1;
                while text.get(at).is_some_and(|b| !matches!(b, b'"' | b'\n')) {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'`' => {
                at += 1;
                while text.get(at).is_some_and(|b| *b != b'`') {
                    at += 1;
                }
            }
            b'#' => {
                while text.get(at + 1).is_some_and(|b| *b != b'\n') {
                    at += 1;
                }
            }
            b'[' | b'{' | b'(' => {
                open.push(*byte);
                if open.len() > MAX_NESTING {
                    return Some(at);
                }
            }
            // Only a bracket's own kind closes it, so that `[}[}[}…` is as deep as it looks.
            b']' | b'}' | b')' => {
                let opening = match byte {
                    b']' => b'[',
                    b'}' => b'{',
                    _ => b'(',
                };
                if open.last() == Some(&opening) {
                    open.pop();
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}
