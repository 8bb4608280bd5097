//! Whether GEN does the same each time: what differs between two executions of one state, with a diff.

use similar::TextDiff;

use super::step::Output;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::inputs_manifest::FileEntry;
use crate::document::path::RepoPath;
use crate::phase::r#gen::Produced;

/// The longest diff of one artifact, in lines.
const MAX_LINES: usize = 40;
/// The largest artifact that is compared line by line, in bytes.
const MAX_COMPARED: usize = 1 << 20;
const HINT: &str = "find what the generator depends on beside its inputs, and pin it; nothing was stored";

/// In what the execution `number` differs from the first one.
pub fn differences(first: &Produced, next: &Produced, number: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, was) in &first.artifacts {
        let is = next.artifacts.get(path).map(Vec::as_slice).unwrap_or_default();
        if is != was {
            let message = format!("execution {number} gave another {path} than the first{}", diff(was, is));
            findings.push(finding(path, message, Digest::of(was), Digest::of(is)));
        }
    }
    if findings.is_empty() && first.tool_versions != next.tool_versions {
        let message = format!("execution {number} reports other tool_versions than the first");
        findings.push(Finding::error(Code::NonDeterministic, message).hint(HINT));
    }
    findings
}

/// In what an execution differs from the stored one.
pub fn against_stored(stored: &Output, produced: &Produced) -> Vec<Finding> {
    against(&stored.files, &|_| None, produced)
}

/// In what an execution differs from `stored` artifacts; with a diff, where `read` has the bytes of one.
pub fn against(stored: &[FileEntry], read: &dyn Fn(&FileEntry) -> Option<Vec<u8>>, produced: &Produced) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in stored {
        let bytes = produced.artifacts.get(&file.path).map(Vec::as_slice).unwrap_or_default();
        let is = Digest::of(bytes);
        if is != file.sha256 {
            let diff = read(file).map(|was| diff(&was, bytes)).unwrap_or_default();
            let message = format!("this execution gave another {} than the one that is stored{diff}", file.path);
            findings.push(finding(&file.path, message, file.sha256, is));
        }
    }
    findings
}

fn finding(path: &RepoPath, message: String, was: Digest, is: Digest) -> Finding {
    Finding::error(Code::NonDeterministic, message).at(path).expected(was, is).hint(HINT)
}

fn diff(was: &[u8], is: &[u8]) -> String {
    let (Ok(was), Ok(is)) = (std::str::from_utf8(was), std::str::from_utf8(is)) else { return String::new() };
    if was.len().max(is.len()) > MAX_COMPARED {
        return String::new();
    }
    let text = TextDiff::from_lines(was, is).unified_diff().context_radius(1).to_string();
    let lines: Vec<&str> = text.lines().take(MAX_LINES).collect();
    format!(":\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn produced(files: &[(&str, &str)], tool: &str) -> Produced {
        Produced {
            artifacts: files.iter().map(|(path, text)| (path.parse().unwrap(), text.as_bytes().to_vec())).collect(),
            tool_versions: BTreeMap::from([("tool".to_owned(), tool.to_owned())]),
        }
    }

    #[test]
    fn what_differs_is_named_with_a_diff() {
        let first = produced(&[("a", "1\n2\n3\n"), ("b", "same\n")], "1");
        assert_eq!(differences(&first, &first, 2), []);
        let found = differences(&first, &produced(&[("a", "1\nX\n3\n"), ("b", "same\n")], "1"), 3);
        let told: Vec<_> = found.iter().map(|f| (f.code, f.path.as_deref(), f.message.as_str())).collect();
        let message = "execution 3 gave another a than the first:\n@@ -1,3 +1,3 @@\n 1\n-2\n+X\n 3";
        assert_eq!(told, [(Code::NonDeterministic, Some("a"), message)]);
        let found = differences(&first, &produced(&[("a", "1\n2\n3\n"), ("b", "same\n")], "2"), 2);
        assert_eq!(found.len(), 1);
    }
}
