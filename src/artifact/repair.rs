//! REPAIR: what may be changed after a failed CHECK, the built-in repair, and the bound that every repair is held against.
//!
//! A repair is judged by its effect: the line diff of the artifacts before and after. Who made it, and how, does not matter.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::normalize::{Rules, normalize_set};
use super::{Artifacts, Files};
use crate::document::SCHEMA_VERSION;
use crate::document::check_report::CheckReport;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, Severity};
use crate::document::glob::Globs;
use crate::document::json;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::pipeline::{Hunks, Repair};
use crate::document::repair_capsule::{LineRange, RepairCapsule};
use crate::document::repair_report::{RepairChange, RepairReport};

/// How many times a repair may be tried where nothing says otherwise.
pub const ATTEMPTS: u64 = 1;
/// Files that have more lines than this before and after together are not compared line by line: every line that is not in a common
/// beginning or end counts as changed. An over-count can only refuse.
pub const MAX_COMPARED_LINES: usize = 50_000;
/// At most this many lines of a diff are shown.
pub const MAX_DIFF_LINES: usize = 200;
/// Unchanged lines that a diff shows around a change.
const CONTEXT: usize = 3;
/// A line that no file reaches, and that JSON still holds exactly.
const LAST_LINE: u64 = (1 << 53) - 1;

/// The capsule for a report that failed; `None` for one that passed, which has nothing to repair.
pub fn capsule(report: &CheckReport, bound: &Repair) -> Option<RepairCapsule> {
    let Repair { allow, max_changed_lines, attempts, hunks, by: _ } = bound;
    let findings: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Error).cloned().collect();
    let hunks = (*hunks == Some(Hunks::Findings)).then(|| named(&findings));
    (!findings.is_empty()).then(|| RepairCapsule {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Repair,
        artifact_set_hash: report.artifact_set_hash,
        findings,
        allow: allow.clone(),
        hunks,
        max_changed_lines: *max_changed_lines,
        attempts: attempts.unwrap_or(ATTEMPTS),
    })
}

/// The lines that findings name, by path: all lines of a file of which a finding names no line.
fn named(findings: &[Finding]) -> BTreeMap<RepoPath, Vec<LineRange>> {
    let mut hunks: BTreeMap<RepoPath, Vec<LineRange>> = BTreeMap::new();
    for finding in findings {
        let Some(path) = finding.path.as_deref().and_then(|path| path.parse().ok()) else { continue };
        let range = match finding.line {
            Some(line) => LineRange { first: line, last: line },
            None => LineRange { first: 1, last: LAST_LINE },
        };
        hunks.entry(path).or_default().push(range);
    }
    for ranges in hunks.values_mut() {
        ranges.sort_by_key(|range| (range.first, range.last));
        ranges.dedup();
    }
    hunks
}

/// The built-in repair: the normal form of every artifact that has one, and nothing else. Returns what it changed; what has
/// no normal form stays as it is, for CHECK to refuse again.
pub fn built_in(artifacts: &dyn Artifacts, rules: &Rules) -> Files {
    let mut changed = Files::new();
    normalize_set(artifacts, rules, &mut |path, bytes| {
        changed.insert(path.clone(), bytes);
    });
    changed
}

/// Holds a repair against its capsule. The report says what was changed; it is accepted only if nothing lies outside the bound.
/// An attempt that is not one of the capsule's is refused too.
pub fn bound(before: &dyn Artifacts, after: &dyn Artifacts, capsule: &RepairCapsule, attempt: u64) -> RepairReport {
    let mut verdict = Verdict { capsule, findings: Vec::new(), changes: Vec::new(), spent: 0, diff: Diff::default() };
    match Globs::new(&capsule.allow) {
        Ok(allow) => verdict.compare(before, after, &allow),
        Err(error) => verdict.findings.push(super::bad_pattern(&error)),
    }
    let Verdict { capsule: _, mut findings, changes, spent, diff } = verdict;
    let sum = |of: fn(&RepairChange) -> u64| changes.iter().map(of).fold(0, u64::saturating_add);
    let (inserted, deleted) = (sum(|c| c.inserted), sum(|c| c.deleted));
    if spent > capsule.max_changed_lines {
        let message = format!("the repair inserts {inserted} lines and deletes {deleted}, which is more than it may change");
        let finding =
            Finding::error(Code::RepairLines, message).expected(format!("at most {}", capsule.max_changed_lines), spent);
        findings.push(finding.hint("raise repair.max_changed_lines, or mend what generates the artifacts"));
    }
    if !(1..=capsule.attempts).contains(&attempt) {
        let message = format!("attempt {attempt} is not one of the {} that the repair has", capsule.attempts);
        findings.push(Finding::error(Code::RepairAttempts, message).expected(capsule.attempts, attempt));
    }
    RepairReport {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Repair,
        attempt,
        repair_capsule_hash: Digest::of(&json::emit(capsule)),
        accepted: findings.is_empty(),
        changes,
        inserted,
        deleted,
        findings,
        diff: diff.lines,
    }
}

struct Verdict<'a> {
    capsule: &'a RepairCapsule,
    findings: Vec<Finding>,
    changes: Vec<RepairChange>,
    /// Lines that were changed so far.
    spent: u64,
    diff: Diff,
}

impl Verdict<'_> {
    fn compare(&mut self, before: &dyn Artifacts, after: &dyn Artifacts, allow: &Globs) {
        let (old, new): (BTreeSet<&RepoPath>, BTreeSet<&RepoPath>) = (before.paths().collect(), after.paths().collect());
        for path in old.union(&new) {
            let (was, is) = (old.contains(path).then(|| before.bytes(path)), new.contains(path).then(|| after.bytes(path)));
            // Present, and its bytes cannot be had: nothing can be said of it, so nothing is allowed.
            if matches!(was, Some(None)) || matches!(is, Some(None)) {
                self.findings.push(super::unreadable(path));
                continue;
            }
            let mode_changed = was.is_some() && is.is_some() && before.is_executable(path) != after.is_executable(path);
            let mode_given = was.is_none() && after.is_executable(path);
            if mode_changed || mode_given {
                let message = format!("the repair changes the mode of {path}");
                self.findings.push(Finding::error(Code::RepairMode, message).at(path).hint("a repair changes lines only"));
            }
            let (was, is) = (was.flatten(), is.flatten());
            if was != is {
                self.compare_file(path, was, is, allow);
            }
        }
    }

    fn compare_file(&mut self, path: &RepoPath, was: Option<Cow<'_, [u8]>>, is: Option<Cow<'_, [u8]>>, allow: &Globs) {
        let refuse = |code, message: String, hint: &str| Finding::error(code, message).at(path).hint(hint);
        if is.is_none() {
            let message = format!("the repair removes {path}");
            self.findings.push(refuse(Code::RepairRemoved, message, "a repair may change artifacts, not remove them"));
        } else if !allow.matches(path) {
            let verb = if was.is_none() { "adds" } else { "changes" };
            let message = format!("the repair {verb} {path}, which no pattern of repair.allow covers");
            let finding = refuse(Code::RepairPath, message, "widen repair.allow in control/pipeline.json");
            self.findings.push(finding.expected(printable(&allow.patterns().join(" ")), path));
        }
        let (old, new) = (was.as_deref().unwrap_or_default(), is.as_deref().unwrap_or_default());
        let (old, new) = (lines(old), lines(new));
        // Once the bound is broken, no more time is given to a minimal count.
        let limit = if self.spent > self.capsule.max_changed_lines { 0 } else { MAX_COMPARED_LINES };
        let changes = changes(&old, &new, limit);
        let ranges = self.capsule.hunks.as_ref().map(|hunks| hunks.get(path).map_or(&[][..], Vec::as_slice));
        if let Some(change) = ranges.and_then(|ranges| changes.iter().find(|change| !change.is_within(ranges))) {
            let message = format!("the repair changes lines of {path} that it may not change");
            let finding = refuse(Code::RepairHunk, message, "the capsule's hunks say which lines may change");
            let ranges: Vec<_> = ranges.unwrap_or_default().iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
            let ranges = if ranges.is_empty() { "no line".into() } else { printable(&ranges.join(" ")) };
            self.findings.push(finding.on(change.old.0 as u64 + 1, 1).expected(ranges, change.range()));
        }
        let sum = |of: fn(&Change) -> usize| changes.iter().map(of).sum::<usize>() as u64;
        let (inserted, deleted) = (sum(|c| c.new.1), sum(|c| c.old.1));
        self.spent = self.spent.saturating_add(inserted).saturating_add(deleted);
        let (before, after) = (was.as_deref().map(Digest::of), is.as_deref().map(Digest::of));
        self.changes.push(RepairChange { path: path.clone(), before, after, inserted, deleted });
        self.diff.file(path, &old, &new, &changes, (was.is_some(), is.is_some()));
    }
}

/// Lines that were replaced by other lines: (first, how many), from 0, of the file before and after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Change {
    old: (usize, usize),
    new: (usize, usize),
}

impl Change {
    /// Whether everything that it deletes lies in one of `ranges`, and what it inserts in or right beside it. Adjacent ranges are one.
    fn is_within(&self, ranges: &[LineRange]) -> bool {
        let (first, count) = (self.old.0 as u64 + 1, self.old.1 as u64);
        if count == 0 {
            return ranges.iter().any(|r| r.first <= first && first <= r.last.saturating_add(1) && r.first <= r.last);
        }
        let mut ranges: Vec<_> = ranges.iter().filter(|r| r.first <= r.last).collect();
        ranges.sort_by_key(|r| r.first);
        let mut next = first;
        for range in ranges {
            if range.first <= next && next <= range.last {
                next = range.last.saturating_add(1);
            }
        }
        next >= first + count
    }

    /// The lines before, as a person counts them.
    fn range(&self) -> String {
        match self.old {
            (first, 0) => format!("an insertion before line {}", first + 1),
            (first, count) => format!("{}-{}", first + 1, first + count),
        }
    }
}

/// The lines of a file, each with its ending, so that a missing final newline is a difference.
fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').collect()
}

/// The line diff, without any limit of time, so that two machines agree. What differs in more than `limit` lines is one change.
fn changes(old: &[&[u8]], new: &[&[u8]], limit: usize) -> Vec<Change> {
    let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    if old_middle.len() + new_middle.len() > limit {
        return vec![Change { old: (start, old_middle.len()), new: (start, new_middle.len()) }];
    }
    let ops = capture_diff_slices(Algorithm::Myers, old_middle, new_middle);
    let changed = ops.iter().filter(|op| !matches!(op, DiffOp::Equal { .. })).map(|op| {
        let (old, new) = (op.old_range(), op.new_range());
        Change { old: (start + old.start, old.len()), new: (start + new.start, new.len()) }
    });
    changed.collect()
}

/// A unified diff of bounded length.
#[derive(Default)]
struct Diff {
    lines: Vec<String>,
    cut: bool,
}

impl Diff {
    fn file(&mut self, path: &RepoPath, old: &[&[u8]], new: &[&[u8]], changes: &[Change], (was, is): (bool, bool)) {
        self.push(if was { format!("--- a/{path}") } else { "--- /dev/null".into() });
        self.push(if is { format!("+++ b/{path}") } else { "+++ /dev/null".into() });
        let mut at = 0;
        while let Some(first) = changes.get(at) {
            // Changes whose context would touch make one hunk.
            let mut until = at + 1;
            while changes
                .get(until)
                .is_some_and(|c| c.old.0 - (changes[until - 1].old.0 + changes[until - 1].old.1) <= 2 * CONTEXT)
            {
                until += 1;
            }
            let last = changes[until - 1];
            let lead = first.old.0.min(CONTEXT);
            let tail = (old.len() - last.old.0 - last.old.1).min(CONTEXT);
            let span = |from: usize, to: usize| {
                let count = to - from;
                format!("{},{count}", if count == 0 { from } else { from + 1 })
            };
            self.push(format!(
                "@@ -{} +{} @@",
                span(first.old.0 - lead, last.old.0 + last.old.1 + tail),
                span(first.new.0 - lead, last.new.0 + last.new.1 + tail)
            ));
            let mut from = first.old.0 - lead;
            for change in &changes[at..until] {
                self.all(' ', &old[from..change.old.0]);
                self.all('-', &old[change.old.0..change.old.0 + change.old.1]);
                self.all('+', &new[change.new.0..change.new.0 + change.new.1]);
                from = change.old.0 + change.old.1;
            }
            self.all(' ', &old[from..from + tail]);
            at = until;
        }
    }

    fn all(&mut self, sign: char, lines: &[&[u8]]) {
        for line in lines {
            if self.cut {
                return;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            // Cut before decoding: a line may be as long as the file.
            self.push(format!("{sign}{}", printable(&String::from_utf8_lossy(&text[..text.len().min(1024)]))));
            if !line.ends_with(b"\n") {
                self.push("\\ No newline at end of file".into());
            }
        }
    }

    fn push(&mut self, line: String) {
        match self.lines.len() {
            n if n < MAX_DIFF_LINES => self.lines.push(line),
            _ if !self.cut => {
                self.lines.push("... the rest of the diff is left out".into());
                self.cut = true;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "repair_test.rs"]
mod tests;
