//! `--format`: findings in the formats of other tools, instead of text.

use clap::ValueEnum;

use crate::artifact::render::{to_junit, to_sarif};
use crate::document::SCHEMA_VERSION;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Finding, refuses};
use crate::document::json;
use crate::document::phase::Phase;

/// A format that other tools read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// SARIF 2.1.0, as code hosts read it.
    Sarif,
    /// JUnit XML, as CI systems read it.
    Junit,
}

impl Format {
    /// All findings of a command that looked at so many artifacts and ends with this exit code, ready to print. `by` is what looked.
    pub fn render(self, findings: &[Finding], artifacts: usize, by: &str, exit_code: u8) -> String {
        let report = CheckReport {
            schema_version: SCHEMA_VERSION.into(),
            phase: Phase::Check,
            passed: !refuses(findings),
            artifacts: artifacts as u64,
            artifact_set_hash: Digest::of(b""),
            findings: findings.to_vec(),
        };
        let text = match self {
            Format::Sarif => {
                String::from_utf8_lossy(&json::pretty(&to_sarif(&report, env!("CARGO_PKG_VERSION"), exit_code))).into_owned()
            }
            Format::Junit => to_junit(&report, by),
        };
        text.trim_end().to_owned()
    }
}
