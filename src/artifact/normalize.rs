//! The normal form of artifacts: `docs/normalization.md` states it exactly.
//!
//! Normalizing is a function of the bytes and the format alone, changes nothing the second time, and refuses what has no
//! normal form rather than guess one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Artifacts, bad_pattern, unreadable};
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::json::{self, JsonError, line_column};
use crate::document::path::{RepoPath, printable};
use crate::document::pipeline::{Format, NormalizeRule};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The declared formats, ready to match: the first rule that matches a path applies.
pub struct Rules {
    globs: Globs,
    formats: BTreeMap<String, Format>,
}

impl Rules {
    /// Prepares `rules`, in declared order.
    pub fn new(rules: &[NormalizeRule]) -> Result<Self, Finding> {
        let globs = Globs::new(rules.iter().map(|rule| &rule.paths));
        let globs = globs.map_err(|error| bad_pattern(&error))?;
        let formats = rules.iter().rev().map(|rule| (rule.paths.clone(), rule.format)).collect();
        Ok(Self { globs, formats })
    }

    /// The declared format of `path`; an artifact without one is any bytes at all.
    pub fn format(&self, path: &RepoPath) -> Option<Format> {
        self.globs.matching(path).and_then(|pattern| self.formats.get(pattern)).copied()
    }
}

/// Why bytes have no normal form.
#[derive(Debug, thiserror::Error)]
pub enum Unnormal {
    /// They are to be JSON.
    #[error("it is not strict JSON: {0}")]
    Json(#[from] JsonError),
    /// They are to be text.
    #[error("it is not valid UTF-8")]
    Encoding {
        /// Line of the first invalid byte, from 1.
        line: u64,
        /// Column of the first invalid byte, from 1.
        column: u64,
    },
    /// They are to be text.
    #[error("it holds a NUL byte")]
    Nul {
        /// Line of the first NUL, from 1.
        line: u64,
        /// Column of the first NUL, from 1.
        column: u64,
    },
}

impl Unnormal {
    /// The same as a finding about `path`.
    pub fn finding(self, path: &RepoPath) -> Finding {
        let message = format!("the artifact {path} has no normal form: {self}");
        let hint = "mend what generates it, or declare another format in struct.normalize";
        match self {
            Unnormal::Json(error) => malformed(path, error).hint(hint),
            Unnormal::Encoding { line, column } | Unnormal::Nul { line, column } => {
                Finding::error(Code::ArtifactEncoding, message).at(path).on(line, column).hint(hint)
            }
        }
    }
}

/// An artifact that is to be JSON and is not.
pub(super) fn malformed(path: &RepoPath, error: JsonError) -> Finding {
    let mut finding =
        Finding::error(Code::ArtifactMalformed, format!("the artifact {path} is not strict JSON: {}", error.reason)).at(path);
    finding.pointer = error.pointer;
    finding.line = error.line;
    finding.column = error.column;
    finding
}

/// The normal form of `bytes`.
pub fn normalize(format: Format, bytes: &[u8]) -> Result<Cow<'_, [u8]>, Unnormal> {
    match format {
        Format::Json => Ok(Cow::Owned(json::pretty(&json::parse(bytes)?))),
        Format::Text => text(bytes),
    }
}

/// Whether `bytes` are their own normal form.
pub fn is_normal(format: Format, bytes: &[u8]) -> bool {
    normalize(format, bytes).is_ok_and(|normal| *normal == *bytes)
}

fn text(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Unnormal> {
    if let Err(error) = std::str::from_utf8(bytes) {
        let (line, column) = line_column(bytes, error.valid_up_to());
        return Err(Unnormal::Encoding { line, column });
    }
    if let Some(offset) = bytes.iter().position(|b| *b == 0) {
        let (line, column) = line_column(bytes, offset);
        return Err(Unnormal::Nul { line, column });
    }
    let mut body = bytes;
    while let Some(rest) = body.strip_prefix(BYTE_ORDER_MARK) {
        body = rest;
    }
    let ends_well = body.is_empty() || (body.ends_with(b"\n") && body.len() > 1 && !body.ends_with(b"\n\n"));
    if ends_well && !body.contains(&b'\r') {
        return Ok(Cow::Borrowed(body));
    }
    let mut normal = Vec::with_capacity(body.len() + 1);
    for (at, byte) in body.iter().enumerate() {
        match byte {
            b'\r' if body.get(at + 1) == Some(&b'\n') => {}
            b'\r' => normal.push(b'\n'),
            byte => normal.push(*byte),
        }
    }
    let end = normal.iter().rposition(|b| *b != b'\n').map_or(0, |last| last + 1);
    normal.truncate(end);
    if end > 0 {
        normal.push(b'\n');
    }
    Ok(Cow::Owned(normal))
}

/// How `bytes` first differ from their normal form; `None` where they do not.
pub(super) fn deviation(path: &RepoPath, format: Format, bytes: &[u8], normal: &[u8]) -> Option<Finding> {
    if bytes == normal {
        return None;
    }
    let at = bytes.iter().zip(normal).take_while(|(a, b)| a == b).count();
    let what = match (bytes.get(at), format) {
        (_, Format::Text) if bytes.starts_with(BYTE_ORDER_MARK) => "it starts with a byte-order mark",
        (Some(b'\r'), _) => "it has a carriage return",
        (None, _) => "it does not end in a newline",
        (Some(b'\n'), _) if bytes[at..].iter().all(|b| *b == b'\n') => "it ends in more than one newline",
        (_, Format::Text) => "it is not normal text",
        (_, Format::Json) => "its keys, numbers or spacing are not the canonical ones",
    };
    let (line, column) = line_column(bytes, at);
    let name = match format {
        Format::Json => "json",
        Format::Text => "text",
    };
    let message = format!("the artifact {path} is not in the normal form of {name}: {what}");
    let finding = Finding::error(Code::ArtifactNotNormal, message).at(path).on(line, column);
    let hint = "declare a repair in control/pipeline.json, which applies the normal form, or mend what generates it";
    let (mut wanted, mut found) = (line_at(normal, at), line_at(bytes, at));
    // The ending is shown where it is what differs.
    if let (Some(a), Some(b)) = (wanted.strip_suffix(b"\n"), found.strip_suffix(b"\n")) {
        (wanted, found) = (a, b);
    }
    // Cut before decoding: a line may be as long as the file.
    let show = |line: &[u8]| printable(&String::from_utf8_lossy(&line[..line.len().min(1024)]));
    Some(finding.expected(show(wanted), show(found)).hint(hint))
}

/// The line that the byte at an offset stands in, with its ending.
fn line_at(bytes: &[u8], at: usize) -> &[u8] {
    let at = at.min(bytes.len());
    let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
    let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |newline| at + newline + 1);
    &bytes[start..end]
}

/// Normalizes a set, one artifact at a time: hands every artifact that changes to `changed` with its new bytes, and returns
/// what has no normal form.
pub fn normalize_set(artifacts: &dyn Artifacts, rules: &Rules, changed: &mut dyn FnMut(&RepoPath, Vec<u8>)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in artifacts.paths() {
        let Some(format) = rules.format(path) else { continue };
        let Some(bytes) = artifacts.bytes(path) else {
            findings.push(unreadable(path));
            continue;
        };
        match normalize(format, &bytes) {
            Ok(normal) if *normal == *bytes => {}
            Ok(normal) => changed(path, normal.into_owned()),
            Err(error) => findings.push(error.finding(path)),
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Broken, files, path, told};
    use super::*;

    fn rules(rules: &[(&str, Format)]) -> Rules {
        let rules: Vec<_> =
            rules.iter().map(|(paths, format)| NormalizeRule { paths: (*paths).into(), format: *format }).collect();
        Rules::new(&rules).unwrap()
    }

    #[test]
    fn the_rules_of_the_page() {
        use Format::{Json, Text};
        let cases: &[(Format, &str, &str)] = &[
            (Text, "", ""),
            (Text, "a", "a\n"),
            (Text, "a\n", "a\n"),
            (Text, "a\n\n\n", "a\n"),
            (Text, "\n", ""),
            (Text, "\r\n\r", ""),
            (Text, "a\r\nb\rc", "a\nb\nc\n"),
            (Text, "a\r\r\nb\n", "a\n\nb\n"),
            (Text, "a \t\n \n", "a \t\n \n"),
            (Text, "\u{feff}\u{feff}a\n", "a\n"),
            (Text, "\u{feff}", ""),
            (Text, "a\u{feff}b\u{2028}\u{85}\u{c}\n", "a\u{feff}b\u{2028}\u{85}\u{c}\n"),
            (Json, "{\"b\":1,\"a\":[]}", "{\n  \"a\": [],\n  \"b\": 1\n}\n"),
            (Json, "\r\n \"\\u00e9\\/\" ", "\"é/\"\n"),
            (Json, "[1.0,1e2,1]", "[\n  1.0,\n  100.0,\n  1\n]\n"),
            (Json, "[0.00000010,1.00,1E0]", "[\n  1e-7,\n  1.0,\n  1.0\n]\n"),
            (Json, "\"\u{7f}\\u0001\\u001F\\b\\f\\u0009\\u2028\"", "\"\u{7f}\\u0001\\u001f\\b\\f\\t\u{2028}\"\n"),
            (Json, "{\"\u{1f600}\":{},\"\u{fb33}\":1}", "{\n  \"\u{fb33}\": 1,\n  \"\u{1f600}\": {}\n}\n"),
            (Json, "[\"a\\r\\n\"]", "[\n  \"a\\r\\n\"\n]\n"),
        ];
        for (format, before, after) in cases {
            let normal = normalize(*format, before.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&normal), *after, "{before:?}");
            assert_eq!(*normalize(*format, after.as_bytes()).unwrap(), *after.as_bytes(), "{after:?} again");
            assert_eq!(is_normal(*format, before.as_bytes()), before == after, "{before:?}");
        }
    }

    #[test]
    fn what_has_no_normal_form_is_refused_with_its_place() {
        let cases: &[(Format, &[u8], &str)] = &[
            (Format::Text, b"a\nb\xff", "artifact-encoding a 2"),
            (Format::Text, b"a\n\nb\0", "artifact-encoding a 3"),
            (Format::Text, b"\0", "artifact-encoding a 1"),
            (Format::Json, b"{\"a\":1,\n\"a\":2}", "artifact-malformed a 2"),
            (Format::Json, b"\xef\xbb\xbf{}", "artifact-malformed a 1"),
            (Format::Json, b"", "artifact-malformed a 1"),
            (Format::Json, b"[1,]", "artifact-malformed a 1"),
        ];
        for (format, bytes, wanted) in cases {
            let finding = normalize(*format, bytes).unwrap_err().finding(&path("a"));
            assert_eq!(told(&[finding]), [*wanted], "{bytes:?}");
            assert!(!is_normal(*format, bytes));
        }
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(normalize(Format::Json, nested(127).as_bytes()).is_ok());
        assert!(normalize(Format::Json, nested(128).as_bytes()).is_err());
    }

    #[test]
    fn a_deviation_names_its_first_place_and_both_lines() {
        let cases = [
            (Format::Text, "a\nb\r\nc\r\n", (2, 2, "it has a carriage return")),
            (Format::Text, "a\nb", (2, 2, "it does not end in a newline")),
            (Format::Text, "a\n\n", (2, 1, "it ends in more than one newline")),
            (Format::Text, "\u{feff}a\n", (1, 1, "it starts with a byte-order mark")),
            (Format::Json, "{\n  \"b\": 1,\n  \"a\": 2\n}\n", (2, 4, "its keys, numbers or spacing are not the canonical ones")),
        ];
        for (format, text, (line, column, what)) in cases {
            let normal = normalize(format, text.as_bytes()).unwrap();
            let finding = deviation(&path("x"), format, text.as_bytes(), &normal).unwrap();
            assert_eq!((finding.line, finding.column), (Some(line), Some(column)), "{text:?}");
            assert!(finding.message.ends_with(what), "{}", finding.message);
        }
        let normal = normalize(Format::Json, b"{\"b\":1,\"a\":2}").unwrap();
        let finding = deviation(&path("x"), Format::Json, b"{\"b\":1,\"a\":2}", &normal).unwrap();
        assert_eq!(finding.expected.as_deref(), Some("{\\u{a}"));
        assert_eq!(finding.got.as_deref(), Some("{\"b\":1,\"a\":2}"));
        let finding = deviation(&path("x"), Format::Text, b"a\r\n", b"a\n").unwrap();
        assert_eq!((finding.expected.as_deref(), finding.got.as_deref()), (Some("a"), Some("a\\u{d}")));
        let finding = deviation(&path("x"), Format::Text, b"a", b"a\n").unwrap();
        assert_eq!((finding.expected.as_deref(), finding.got.as_deref()), (Some("a\\u{a}"), Some("a")));
        assert!(deviation(&path("x"), Format::Text, b"a\n", b"a\n").is_none());
    }

    #[test]
    fn the_first_rule_that_matches_applies_to_a_set() {
        let rules = rules(&[("a/*.json", Format::Text), ("**/*.json", Format::Json), ("a/*.json", Format::Json)]);
        let set = files(&[("a/x.json", "[7]"), ("b/x.json", "{}"), ("b/y.json", "{}\n"), ("c.bin", "\0\r"), ("d.json", "{")]);
        let mut changed = Vec::new();
        let findings = normalize_set(&set, &rules, &mut |path, bytes| {
            changed.push((path.to_string(), String::from_utf8(bytes).unwrap()));
        });
        assert_eq!(changed, [("a/x.json".into(), "[7]\n".into()), ("b/x.json".into(), "{}\n".into())]);
        assert_eq!(told(&findings), ["artifact-malformed d.json 1"]);
        let findings = normalize_set(&Broken(path("d.json")), &rules, &mut |_, _| unreachable!());
        assert_eq!(told(&findings), ["artifact-unreadable d.json"]);
        assert!(Rules::new(&[NormalizeRule { paths: "../x".into(), format: Format::Text }]).is_err());
    }

    /// Documents from a counter: every run of the test sees the same ones.
    fn generated(seed: u64) -> (String, String) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        const PIECES: [&str; 14] =
            ["\r", "\n", "\r\n", "\u{feff}", "a", " ", "\t", "é", "\u{2028}", "\\", "\"", "0", "\u{1f600}", "\n\n"];
        let text: String = (0..next(20)).map(|_| PIECES[next(14) as usize]).collect();
        let mut json = String::from("{");
        for member in 0..next(6) {
            let value = match next(6) {
                0 => format!("{}", next(1 << 53)),
                1 => format!("-{}.{}e-{}", next(1000), next(1_000_000), next(30)),
                2 => format!("{}", serde_json::Value::from(text.clone())),
                3 => format!("[{}, {{\"z\":null,\"a\":[true]}}]", next(9)),
                4 => "\"\\u001f\\ud83d\\ude00\\/\"".into(),
                _ => format!("{}e{}", next(100) + 1, next(10)),
            };
            let comma = if member == 0 { "" } else { "," };
            json.push_str(&format!("{comma}\"{}{member}\" :\r\n {value}", PIECES[4 + next(4) as usize].trim()));
        }
        (text, json + "}")
    }

    #[test]
    fn normalizing_twice_changes_nothing() {
        for seed in 0..4000 {
            let (text, json) = generated(seed);
            for (format, document) in [(Format::Text, &text), (Format::Json, &json)] {
                let once = normalize(format, document.as_bytes()).unwrap_or_else(|e| panic!("{document:?}: {e}"));
                assert_eq!(normalize(format, &once).unwrap(), once, "{document:?}");
                assert!(is_normal(format, &once), "{document:?}");
            }
            let value = json::parse(json.as_bytes()).unwrap();
            assert_eq!(json::parse(&normalize(Format::Json, json.as_bytes()).unwrap()).unwrap(), value, "{json:?}");
        }
    }
}
