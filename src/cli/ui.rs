//! What is printed: results to standard output, everything else to standard error. The only place that prints.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::error::{CommandError, exit};
use crate::document::finding::{Finding, Severity};
use crate::document::json;
use crate::document::machine::{PlainDocument, PromoteDocument, RunDocument, VerifyDocument};
use crate::document::path::printable;
use crate::document::promotion::PromoteMode;

/// At most this many findings are printed; `--json` gives all of them.
const MAX_PRINTED: usize = 40;

/// The two streams of a command. A hook speaks to a person also where a machine reads its document: git shows what it says to whoever pushes.
pub struct Ui {
    json: bool,
    command: &'static str,
    aloud: bool,
    broken: Option<io::Error>,
    document: Option<Value>,
}

impl Ui {
    /// For a command.
    pub fn new(json: bool, command: &'static str) -> Self {
        Self { json, command, aloud: command.starts_with("hook "), broken: None, document: None }
    }

    /// One line of the result. Nothing with `--json`.
    pub fn line(&mut self, text: &str) {
        if !self.json {
            self.write(text);
        }
    }

    /// Whether one JSON document is all that may be printed.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Hands standard output over for a result that is no text.
    pub fn stream<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> T) -> T {
        write(&mut io::BufWriter::new(io::stdout().lock()))
    }

    /// A remark about the work, for a person.
    pub fn note(&mut self, text: &str) {
        if !self.json || self.aloud {
            self.remark(text);
        }
    }

    /// The command's own document. Printed by [`Ui::finish`], with `--json`.
    pub fn document(&mut self, document: &impl serde::Serialize) {
        self.document = Some(json::to_value(document));
    }

    /// The result of a command that has no richer document.
    pub fn result(&mut self, result: Value, findings: &[Finding]) {
        let plain = PlainDocument {
            schema_version: crate::document::SCHEMA_VERSION,
            command: self.command,
            outcome: "done",
            findings,
            result,
        };
        self.document(&plain);
    }

    /// The command's name.
    pub fn command(&self) -> &'static str {
        self.command
    }

    /// Findings, each with its place and the next step.
    pub fn findings(&mut self, findings: &[Finding]) {
        if self.json && !self.aloud {
            return;
        }
        for finding in findings.iter().take(MAX_PRINTED) {
            let severity = if finding.severity == Severity::Error { "error" } else { "warning" };
            let message = printable_lines(&finding.message);
            // The code goes with the sentence, not with the last line of a diff below it.
            let (sentence, below) = message.split_once('\n').unwrap_or((&message, ""));
            let mut text = format!("{severity}: {} [{}]", sentence.trim_end_matches(':'), finding.code);
            if !below.is_empty() {
                text.push_str(":\n");
                text.push_str(below);
            }
            if let Some(place) = finding.place() {
                text.push_str(&format!("\n  --> {place}"));
                if let Some(pointer) = finding.pointer.as_deref().filter(|p| !p.is_empty()) {
                    text.push_str(&format!(" ({})", printable(pointer)));
                }
            }
            if let (Some(expected), Some(got)) = (&finding.expected, &finding.got) {
                text.push_str(&format!("\n  expected {}\n  got      {}", printable(expected), printable(got)));
            }
            if let Some(hint) = &finding.hint {
                text.push_str(&format!("\nhint: {}", printable_lines(hint)));
            }
            self.remark(&text);
        }
        if findings.len() > MAX_PRINTED {
            self.remark(&format!("and {} more; --json gives all of them", findings.len() - MAX_PRINTED));
        }
    }

    /// A command that could not be carried out. Gives its exit code.
    pub fn fail(&mut self, error: &CommandError) -> u8 {
        if error.code == exit::USAGE && (!self.json || self.aloud) {
            for finding in &error.findings {
                self.remark(&format!("error: {}", printable_lines(&finding.message)));
            }
        } else {
            self.findings(&error.findings);
        }
        let plain = PlainDocument {
            schema_version: crate::document::SCHEMA_VERSION,
            command: self.command,
            outcome: "failed",
            findings: &error.findings,
            result: Value::Null,
        };
        match self.command {
            "run" | "status" => {
                self.document(&RunDocument::failed(self.command, error.findings.clone()));
            }
            "verify" | "hook" | "hook pre-push" | "hook pre-receive" => {
                self.document(&VerifyDocument::new(self.command, Vec::new(), error.findings.clone()));
            }
            "promote" => {
                let mut document = json::to_value(&PromoteDocument::failed(PromoteMode::Commit, error.findings.clone()));
                // How it was asked for is not known here.
                document["mode"] = Value::Null;
                self.document = Some(document);
            }
            _ => self.document(&plain),
        }
        error.code
    }

    /// Prints the document, and gives the exit code: a result that could not be printed has one of its own.
    pub fn finish(mut self, code: u8) -> ExitCode {
        if self.json
            && let Some(document) = self.document.take()
        {
            let text = String::from_utf8_lossy(&json::pretty(&document)).into_owned();
            self.write(text.trim_end());
        }
        if let Err(error) = io::stdout().flush() {
            self.broken.get_or_insert(error);
        }
        match self.broken.take() {
            // The reader has gone, as `head` does: git ends without a word too.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(code),
            Some(error) => {
                self.remark(&format!("error: the result could not be printed: {error}; what the command did is done"));
                ExitCode::from(exit::UNPRINTED)
            }
            None => ExitCode::from(code),
        }
    }

    fn write(&mut self, text: &str) {
        if self.broken.is_none()
            && let Err(error) = writeln!(io::stdout().lock(), "{text}")
        {
            self.broken = Some(error);
        }
    }

    /// A message that nobody can be told of: standard error itself is broken.
    fn remark(&mut self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{text}"));
    }
}

/// What an executor prints, as it comes: to standard error, and without what could rewrite a terminal.
pub fn show_output(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\n' | '\t') || !c.is_control() && !crate::document::path::is_hidden(c) {
            out.push(c);
        } else if c != '\r' {
            out.extend(c.escape_unicode());
        }
    }
    drop(io::stderr().lock().write_all(out.as_bytes()));
}

/// Escapes each line for a terminal, and keeps the line breaks: messages of the policy engine have several.
fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().take(12).map(escape_line).collect();
    lines.join("\n")
}

/// One line of anybody's text, escaped for a terminal and cut.
pub fn escape_line(line: &str) -> String {
    // `printable` cuts at 200 characters, which is right for a name and too short for a sentence.
    let mut out = String::new();
    let characters: Vec<char> = line.chars().take(1000).collect();
    for chunk in characters.chunks(200) {
        out.push_str(&printable(&chunk.iter().collect::<String>()));
    }
    out
}
