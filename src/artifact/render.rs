//! A check report for people and for the tools they read it with: Markdown, SARIF 2.1.0 and JUnit XML.
//!
//! All of them are functions of the report alone. Paths, pointers and messages may hold what somebody wants a reader to believe, so
//! everything is escaped for the format it goes into.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::document::check_report::CheckReport;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::path::printable;

/// `execution/check/report.md`.
pub fn to_markdown(report: &CheckReport) -> String {
    let verdict = if report.passed { "passed" } else { "failed" };
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let mut out = format!(
        "# CHECK {verdict}\n\n{} artifacts, {} errors, {} warnings. Set `{}`.\n",
        report.artifacts,
        count(Severity::Error),
        count(Severity::Warning),
        report.artifact_set_hash
    );
    let mut heading = None;
    for finding in &report.findings {
        let path = finding.path.as_deref();
        if heading != Some(path) {
            let title = path.map_or("The whole run".to_owned(), code_span);
            out.push_str(&format!("\n## {title}\n\n"));
            heading = Some(path);
        }
        let severity = if finding.severity == Severity::Error { "" } else { " (warning)" };
        out.push_str(&format!("- `{}`{severity}", finding.code));
        if let (Some(line), Some(column)) = (finding.line, finding.column) {
            out.push_str(&format!(" at {line}:{column}"));
        }
        if let Some(pointer) = finding.pointer.as_deref().filter(|pointer| !pointer.is_empty()) {
            out.push_str(&format!(", {}", code_span(pointer)));
        }
        out.push_str(&format!(": {}\n", plain(&finding.message)));
        for (name, text) in [("expected", &finding.expected), ("got", &finding.got)] {
            if let Some(text) = text {
                out.push_str(&format!("  - {name}: {}\n", code_span(text)));
            }
        }
        if let Some(hint) = &finding.hint {
            out.push_str(&format!("  - hint: {}\n", plain(hint)));
        }
    }
    out
}

/// Text as Markdown text: a backslash before what CommonMark or its tables, HTML and references would read.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in visible(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '!' | '|' | '~' | '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Text as a Markdown code span, which no run of backticks inside can end.
fn code_span(text: &str) -> String {
    let text = visible(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

/// As [`printable`], without its bound: a report's texts are bounded where they are made.
fn visible(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(200).map(|chunk| printable(&chunk.iter().collect::<String>())).collect()
}

/// SARIF 2.1.0 (OASIS), as code hosts read it. `version` is the program's, `exit_code` the one that it ends with. Columns are left to `properties`, since SARIF counts them in
/// characters and a finding counts bytes.
pub fn to_sarif(report: &CheckReport, version: &str, exit_code: u8) -> Value {
    let codes: Vec<Code> = report.findings.iter().map(|f| f.code).collect::<BTreeSet<_>>().into_iter().collect();
    let rule = |code: &Code| json!({ "id": code.as_str(), "shortDescription": { "text": code.meaning() } });
    let result = |finding: &Finding| {
        let mut result = json!({
            "ruleId": finding.code.as_str(),
            "ruleIndex": codes.binary_search(&finding.code).unwrap_or_default(),
            "level": if finding.severity == Severity::Error { "error" } else { "warning" },
            "message": { "text": finding.message },
            "properties": {
                "pointer": finding.pointer, "column": finding.column, "expected": finding.expected, "got": finding.got,
                "hint": finding.hint,
            },
        });
        if let Some(path) = &finding.path {
            let mut place = json!({ "artifactLocation": { "uri": uri(path), "uriBaseId": "%SRCROOT%" } });
            if let Some(line) = finding.line {
                place["region"] = json!({ "startLine": line });
            }
            result["locations"] = json!([{ "physicalLocation": place }]);
        }
        result
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "git-cbia", "version": version, "rules": codes.iter().map(rule).collect::<Vec<_>>() } },
            "invocations": [{ "executionSuccessful": true, "exitCode": exit_code }],
            "results": report.findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

/// A path as a relative URI reference (RFC 3986): everything but unreserved characters and `/` in percent encoding.
fn uri(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// JUnit XML, as CI systems read it: one test case per finding, and one that passes where there is none. A warning passes and says
/// so in `system-out`. `suite` is what looked at the artifacts.
pub fn to_junit(report: &CheckReport, suite: &str) -> String {
    let failures = report.findings.iter().filter(|f| f.severity == Severity::Error).count();
    let tests = report.findings.len().max(1);
    let counts = format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"0\"");
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"{suite}\" {counts} skipped=\"0\">\n"
    );
    if report.findings.is_empty() {
        out.push_str(&format!("    <testcase classname=\"{suite}\" name=\"{} artifacts\"/>\n", report.artifacts));
    }
    for finding in &report.findings {
        let mut name = finding.code.to_string();
        let at = [finding.pointer.clone(), finding.line.map(|line| format!("line {line}"))];
        at.into_iter().flatten().filter(|part| !part.is_empty()).for_each(|part| name = format!("{name} {part}"));
        let class = finding.path.as_deref().unwrap_or(suite);
        let mut text = finding.place().map_or(String::new(), |place| format!("{place}: "));
        text.push_str(&finding.message);
        let more = [("expected", &finding.expected), ("got", &finding.got), ("hint", &finding.hint)];
        for (name, value) in more.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value))) {
            text.push_str(&format!("\n{name}: {value}"));
        }
        out.push_str(&format!("    <testcase classname=\"{}\" name=\"{}\">\n", xml(class), xml(&name)));
        match finding.severity {
            Severity::Error => out.push_str(&format!(
                "      <failure type=\"{}\" message=\"{}\">{}</failure>\n",
                finding.code,
                xml(&finding.message),
                xml(&text)
            )),
            Severity::Warning => out.push_str(&format!("      <system-out>{}</system-out>\n", xml(&text))),
        }
        out.push_str("    </testcase>\n");
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// Text as XML 1.0 character data or attribute value. Characters that XML cannot hold, even as a reference, are spelled out.
fn xml(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\r' | '\t' => drop(write!(out, "&#{};", u32::from(c))),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::SCHEMA_VERSION;
    use crate::document::digest::Digest;
    use crate::document::phase::Phase;

    fn report(findings: Vec<Finding>) -> CheckReport {
        CheckReport {
            schema_version: SCHEMA_VERSION.into(),
            phase: Phase::Check,
            passed: !crate::document::finding::refuses(&findings),
            artifacts: 2,
            artifact_set_hash: Digest::of(b""),
            findings,
        }
    }

    fn hostile() -> CheckReport {
        let first = Finding::error(Code::ArtifactSchema, "breaks <b>\"it\"</b> & `x` [a](b)\n# head")
            .at("a/``x`` é<.json")
            .on(3, 5)
            .expected("]]>", "\u{1b}[31m\u{202e}")
            .hint("mend *it*");
        let first = Finding { pointer: Some("/a~1b".into()), ..first };
        report(vec![first, Finding::warning(Code::SchemaUnused, "unused")])
    }

    #[test]
    fn markdown_cannot_be_broken_out_of() {
        let wanted = "\
# CHECK failed

2 artifacts, 1 errors, 1 warnings. Set `e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855`.

## ```a/``x`` é<.json```

- `artifact-schema` at 3:5, `/a~1b`: breaks \\<b\\>\"it\"\\</b\\> \\& \\`x\\` \\[a\\](b)\\\\u{a}\\# head
  - expected: `]]>`
  - got: `\\u{1b}[31m\\u{202e}`
  - hint: mend \\*it\\*

## The whole run

- `schema-unused` (warning): unused
";
        assert_eq!(to_markdown(&hostile()), wanted);
        assert!(to_markdown(&report(vec![])).starts_with("# CHECK passed\n"));
        assert_eq!(code_span("`"), "`` ` ``");
        assert_eq!(code_span(""), "`  `");
    }

    #[test]
    fn sarif_has_rules_and_places() {
        let sarif = to_sarif(&hostile(), "1.2.3", 6);
        let run = &sarif["runs"][0];
        assert_eq!((&sarif["version"], &run["tool"]["driver"]["version"]), (&json!("2.1.0"), &json!("1.2.3")));
        let rules: Vec<_> =
            run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        for result in run["results"].as_array().unwrap() {
            assert_eq!(rules[result["ruleIndex"].as_u64().unwrap() as usize], result["ruleId"].as_str().unwrap());
        }
        assert_eq!(rules.len(), 2);
        let place = &run["results"][0]["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a/%60%60x%60%60%20%C3%A9%3C.json");
        assert_eq!(place["region"], json!({ "startLine": 3 }));
        assert_eq!(run["results"][0]["level"], "error");
        assert_eq!(run["results"][1]["level"], "warning");
        assert!(run["results"][1].get("locations").is_none());
        assert_eq!(run["invocations"][0]["exitCode"], 6);
        assert_eq!(to_sarif(&report(vec![]), "x", 0)["runs"][0]["invocations"][0]["exitCode"], 0);
    }

    #[test]
    fn junit_cannot_be_broken_out_of() {
        let wanted = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="2" failures="1" errors="0">
  <testsuite name="CHECK" tests="2" failures="1" errors="0" skipped="0">
    <testcase classname="a/``x`` é&lt;.json" name="artifact-schema /a~1b line 3">
      <failure type="artifact-schema" message="breaks &lt;b&gt;&quot;it&quot;&lt;/b&gt; &amp; `x` [a](b)&#10;# head">a/``x`` é&lt;.json:3:5: breaks &lt;b&gt;&quot;it&quot;&lt;/b&gt; &amp; `x` [a](b)&#10;# head&#10;expected: ]]&gt;&#10;got: \u{1b}[31m\u{202e}&#10;hint: mend *it*</failure>
    </testcase>
    <testcase classname="CHECK" name="schema-unused">
      <system-out>unused</system-out>
    </testcase>
  </testsuite>
</testsuites>
"#;
        assert_eq!(to_junit(&hostile(), "CHECK"), wanted);
        assert!(to_junit(&report(vec![]), "CHECK").contains("tests=\"1\" failures=\"0\""));
        assert!(to_junit(&report(vec![]), "verify").contains("<testcase classname=\"verify\" name=\"2 artifacts\"/>"));
        assert_eq!(xml("a\0\u{ffff}'"), "a\\u{0}\\u{ffff}&apos;");
    }
}
