//! Findings in the formats of other tools.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::document::finding::{Finding, Severity};
use crate::document::json::pretty;

/// SARIF 2.1.0: <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>.
pub fn sarif(findings: &[Finding]) -> String {
    let codes: BTreeSet<_> = findings.iter().map(|finding| finding.code).collect();
    let rules: Vec<Value> =
        codes.iter().map(|code| json!({"id": code.as_str(), "shortDescription": {"text": code.meaning()}})).collect();
    let result = |finding: &Finding| {
        let level = if finding.severity == Severity::Error { "error" } else { "warning" };
        let hint = finding.hint.as_ref().map(|hint| format!("\n{hint}")).unwrap_or_default();
        let mut result = json!({
            "ruleId": finding.code.as_str(), "level": level, "message": {"text": format!("{}{hint}", finding.message)},
        });
        if let Some(path) = &finding.path {
            let mut place = json!({"artifactLocation": {"uri": uri(path)}});
            if let Some(line) = finding.line {
                place["region"] = json!({"startLine": line, "startColumn": finding.column.unwrap_or(1)});
            }
            result["locations"] = json!([{"physicalLocation": place}]);
        }
        result
    };
    let results: Vec<Value> = findings.iter().map(result).collect();
    let document = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "git-cbia", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "results": results,
        }],
    });
    String::from_utf8_lossy(&pretty(&document)).trim_end().to_owned()
}

/// A path as a relative URI: what is not unreserved there is escaped.
fn uri(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// JUnit XML, as CI systems read it: one test per finding, or one that passed.
pub fn junit(findings: &[Finding]) -> String {
    let failures = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out.push_str(&format!("<testsuite name=\"git-cbia verify\" tests=\"{}\" failures=\"{failures}\">\n", findings.len().max(1)));
    if findings.is_empty() {
        out.push_str("  <testcase classname=\"git-cbia\" name=\"verify\"/>\n");
    }
    for finding in findings {
        let place = finding.path.as_deref().unwrap_or("repository");
        let (code, place) = (finding.code.as_str(), xml(place));
        out.push_str(&format!("  <testcase classname=\"git-cbia.{code}\" name=\"{place}\">\n"));
        let text = format!("{}\n{}", finding.message, finding.hint.as_deref().unwrap_or_default());
        match finding.severity {
            Severity::Error => {
                out.push_str(&format!("    <failure type=\"{code}\" message=\"{}\">{}</failure>\n", xml(&finding.message), xml(text.trim_end())));
            }
            Severity::Warning => out.push_str(&format!("    <system-out>{}</system-out>\n", xml(text.trim_end()))),
        }
        out.push_str("  </testcase>\n");
    }
    out.push_str("</testsuite>");
    out
}

/// Text as XML 1.0 can hold it.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::finding::Code;

    fn findings() -> Vec<Finding> {
        let edited = Finding::error(Code::GenEdited, "it was <edited>").at("out/a \"b\".txt").hint("run it");
        vec![edited, Finding::warning(Code::RunInvalid, "odd\u{1}").at("refs/cbia/runs/x").on(3, 4)]
    }

    #[test]
    fn sarif_names_rule_place_and_next_step() {
        let document: Value = serde_json::from_str(&sarif(&findings())).unwrap();
        let run = &document["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), 2);
        let first = &run["results"][0];
        assert_eq!((&first["ruleId"], &first["level"]), (&json!("gen-edited"), &json!("error")));
        assert_eq!(first["message"]["text"], "it was <edited>\nrun it");
        assert_eq!(first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], "out/a%20%22b%22.txt");
        assert_eq!(run["results"][1]["locations"][0]["physicalLocation"]["region"]["startLine"], 3);
    }

    #[test]
    fn junit_is_well_formed_and_counts_failures() {
        let text = junit(&findings());
        assert!(text.contains("tests=\"2\" failures=\"1\""), "{text}");
        assert!(text.contains("name=\"out/a &quot;b&quot;.txt\""), "{text}");
        assert!(text.contains("it was &lt;edited&gt;&#10;run it</failure>"), "{text}");
        assert!(text.contains("<system-out>odd\\u{1}</system-out>"), "{text}");
        assert!(junit(&[]).contains("tests=\"1\" failures=\"0\""));
    }
}
