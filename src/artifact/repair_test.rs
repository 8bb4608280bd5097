//! What a repair may do, and what it may not.

use std::collections::BTreeMap;

use super::super::testing::{Broken, files, path, told};
use super::super::{Files, Overlay};
use super::*;
use crate::document::pipeline::{Format, NormalizeRule};
use crate::document::schema::{Kind, validate};

fn failed() -> CheckReport {
    CheckReport {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Check,
        passed: false,
        artifacts: 1,
        artifact_set_hash: Digest::of(b"set"),
        findings: vec![Finding::warning(Code::SchemaUnused, "w"), Finding::error(Code::ArtifactNotNormal, "e").at("out/a")],
    }
}

/// Ranges of lines, by path.
type Hunks<'a> = Option<&'a [(&'a str, &'a [(u64, u64)])]>;

fn with(allow: &[&str], max_changed_lines: u64, hunks: Hunks) -> RepairCapsule {
    let allow = allow.iter().map(|a| (*a).to_owned()).collect();
    let mut capsule = capsule(&failed(), &Repair { allow, max_changed_lines, ..Repair::default() }).unwrap();
    let ranges = |ranges: &[(u64, u64)]| ranges.iter().map(|(first, last)| LineRange { first: *first, last: *last }).collect();
    capsule.hunks = hunks.map(|hunks| hunks.iter().map(|(at, r)| (path(at), ranges(r))).collect::<BTreeMap<_, _>>());
    let bytes = json::emit(&capsule);
    assert_eq!(validate(Kind::RepairCapsule, "c", &bytes, &json::parse(&bytes).unwrap()), []);
    capsule
}

fn judge(before: &dyn Artifacts, after: &dyn Artifacts, capsule: &RepairCapsule) -> RepairReport {
    let report = bound(before, after, capsule, 1);
    let bytes = json::emit(&report);
    assert_eq!(validate(Kind::RepairReport, "r", &bytes, &json::parse(&bytes).unwrap()), []);
    assert_eq!(report.accepted, report.findings.is_empty());
    assert_eq!(report.repair_capsule_hash, Digest::of(&json::emit(capsule)));
    report
}

#[test]
fn a_capsule_holds_what_refuses() {
    let capsule = with(&["out/**"], 3, None);
    assert_eq!(told(&capsule.findings), ["artifact-not-normal out/a"]);
    assert_eq!((capsule.max_changed_lines, capsule.attempts, capsule.artifact_set_hash), (3, 1, Digest::of(b"set")));
    let passed = CheckReport { findings: failed().findings[..1].to_vec(), ..failed() };
    assert!(super::capsule(&passed, &Repair { max_changed_lines: 1, ..Repair::default() }).is_none());
}

#[test]
fn the_built_in_repair_applies_the_normal_form_and_nothing_else() {
    let rule = |paths: &str, format| NormalizeRule { paths: paths.into(), format };
    let rules = Rules::new(&[rule("**/*.json", Format::Json), rule("**/*.md", Format::Text)]).unwrap();
    let set = files(&[("a.json", "{}"), ("b.json", "{"), ("c.md", "x\r\n"), ("d.md", "x\n"), ("e", "\r")]);
    let changed = built_in(&set, &rules);
    assert_eq!(changed, files(&[("a.json", "{}\n"), ("c.md", "x\n")]));
    let after = Overlay { base: &set, changed: &changed };
    let report = judge(&set, &after, &with(&["**"], 4, None));
    assert_eq!((report.accepted, report.inserted, report.deleted), (true, 2, 2));
    assert!(built_in(&after, &rules).is_empty());
}

#[test]
fn a_repair_keeps_within_its_bound_or_is_refused() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], u64, Hunks<'a>, &'a [&'a str]);
    const FIVE: &str = "1\n2\n3\n4\n5\n";
    let cases: &[Case] = &[
        (&[("out/a", FIVE)], &[("out/a", FIVE)], 0, None, &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n4\n5\n")], 2, None, &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n4\n5\n")], 1, None, &["repair-lines -"]),
        (&[("out/a", "x")], &[("out/a", "x\n")], 1, None, &["repair-lines -"]),
        (&[("out/a", "x\r\ny\r\n")], &[("out/a", "x\ny\n")], 4, None, &[]),
        (&[("other", "x")], &[("other", "y")], 2, None, &["repair-path other"]),
        (&[], &[("out/new", "y\n")], 1, None, &[]),
        (&[], &[("out/new", "")], 0, None, &[]),
        (&[], &[("schemas/a.schema.json", "{}\n")], 1, None, &["repair-path schemas/a.schema.json"]),
        (&[], &[("other", "")], 0, None, &["repair-path other"]),
        (&[("out/a", "x\n")], &[], 1, None, &["repair-removed out/a"]),
        (&[("out/a", "x\n")], &[("out/b", "x\n")], 1, None, &["repair-removed out/a", "repair-lines -"]),
        (&[("out/a", "1\n"), ("out/b", "1\n")], &[("out/a", "2\n"), ("out/b", "2\n")], 3, None, &["repair-lines -"]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n4\n5\n")], 9, Some(&[("out/a", &[(3, 3)])]), &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n4\n5\n")], 9, Some(&[("out/a", &[(1, 2), (4, 9)])]), &["repair-hunk out/a 3"]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n4\n5\n")], 9, Some(&[("out/b", &[(1, 9)])]), &["repair-hunk out/a 3"]),
        (&[("out/a", FIVE)], &[("out/a", "1\nX\nY\n4\n5\n")], 9, Some(&[("out/a", &[(3, 3)])]), &["repair-hunk out/a 2"]),
        (&[("out/a", FIVE)], &[("out/a", "1\nX\nY\n4\n5\n")], 9, Some(&[("out/a", &[(3, 3), (1, 2)])]), &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\nX\nY\n4\n5\n")], 9, Some(&[("out/a", &[(2, 1), (3, 3)])]), &["repair-hunk out/a 2"]),
        (&[("out/a", FIVE)], &[("out/a", "1\nX\nY\nZ\n5\n")], 9, Some(&[("out/a", &[(1, 5), (2, 3)])]), &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n3\n4\n5\n")], 9, Some(&[("out/a", &[(3, 3)])]), &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n3\n4\n5\n")], 9, Some(&[("out/a", &[(2, 2)])]), &[]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n3\n4\n5\n")], 9, Some(&[("out/a", &[(4, 9)])]), &["repair-hunk out/a 3"]),
        (&[("out/a", FIVE)], &[("out/a", "1\n2\nX\n3\n4\n5\n")], 9, Some(&[("out/a", &[(1, 1)])]), &["repair-hunk out/a 3"]),
        (&[("out/a", FIVE)], &[("out/a", "X\n2\n3\n4\nX\n")], 9, Some(&[("out/a", &[(1, 1)])]), &["repair-hunk out/a 5"]),
        (&[], &[("out/a", "X\n")], 9, Some(&[("out/a", &[(1, 1)])]), &[]),
        (&[], &[("out/a", "X\n")], 9, Some(&[]), &["repair-hunk out/a 1"]),
    ];
    for (index, (before, after, lines, hunks, wanted)) in cases.iter().enumerate() {
        let capsule = with(&["out/*"], *lines, *hunks);
        let (before, after) = (files(before), files(after));
        let report = judge(&before, &after, &capsule);
        assert_eq!(told(&report.findings), *wanted, "case {index}");
        let named: Vec<_> = report.changes.iter().map(|c| (&c.path, c.before, c.after)).collect();
        let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let digest = |set: &Files, path| set.get(path).map(|b| Digest::of(b));
        let truth = all.into_iter().map(|p| (p, digest(&before, p), digest(&after, p))).filter(|(_, a, b)| a != b);
        assert_eq!(named, truth.collect::<Vec<_>>(), "case {index}");
    }
}

#[test]
fn a_pattern_an_attempt_and_unreadable_bytes_refuse() {
    let set = files(&[("out/a", "x\n")]);
    assert_eq!(told(&judge(&set, &set, &with(&["["], 9, None)).findings), ["pattern-invalid control/pipeline.json"]);
    for attempt in [0, 2] {
        assert_eq!(told(&bound(&set, &set, &with(&["**"], 9, None), attempt).findings), ["repair-attempts -"]);
    }
    let broken = Broken(path("out/a"));
    assert_eq!(told(&judge(&set, &broken, &with(&["**"], 9, None)).findings), ["artifact-unreadable out/a"]);
    assert_eq!(told(&judge(&broken, &set, &with(&["**"], 9, None)).findings), ["artifact-unreadable out/a"]);
}

/// A set in which everything is executable.
struct Executable(Files);

impl Artifacts for Executable {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        self.0.paths()
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        Artifacts::bytes(&self.0, path)
    }

    fn is_executable(&self, _: &RepoPath) -> bool {
        true
    }
}

#[test]
fn a_mode_is_no_line() {
    let set = files(&[("out/a", "x\n")]);
    let (capsule, executable) = (with(&["**"], 9, None), Executable(set.clone()));
    for (before, after) in
        [(&set as &dyn Artifacts, &executable as &dyn Artifacts), (&executable, &set), (&Files::new(), &executable)]
    {
        assert_eq!(told(&judge(before, after, &capsule).findings), ["repair-mode out/a"]);
    }
    assert!(judge(&executable, &executable, &capsule).accepted);
}

#[test]
fn the_diff_is_a_unified_diff_without_terminal_control() {
    let before: String = (1..=20).map(|n| format!("{n}\n")).collect();
    let after = before.replace("3\n4\n", "3\n\u{1b}[2J\n").replace("19\n20\n", "19\n20");
    let (old, new) = (files(&[("out/a", &before)]), files(&[("out/a", &after), ("out/n", "n")]));
    let report = judge(&old, &new, &with(&["out/*"], 9, None));
    let wanted = "\
--- a/out/a
+++ b/out/a
@@ -1,7 +1,7 @@
 1
 2
 3
-4
+\\u{1b}[2J
 5
 6
 7
@@ -17,4 +17,4 @@
 17
 18
 19
-20
+20
\\ No newline at end of file
--- /dev/null
+++ b/out/n
@@ -0,0 +1,1 @@
+n
\\ No newline at end of file";
    assert_eq!(report.diff.join("\n"), wanted);
    assert_eq!((report.inserted, report.deleted), (3, 2));
}

#[test]
fn large_inputs_are_counted_and_not_compared() {
    let numbered = |from: usize, to: usize| (from..to).map(|n| format!("{n}\n")).collect::<String>();
    let many = MAX_COMPARED_LINES;
    // The same lines but for the first and the last: too many to compare, so that all count.
    let before = format!("a\n{}b\n", numbered(0, many));
    let after = format!("c\n{}d\n", numbered(0, many));
    let capsule = with(&["**"], 100, None);
    let report = judge(&files(&[("x", &before)]), &files(&[("x", &after)]), &capsule);
    assert_eq!((report.inserted, report.deleted), (many as u64 + 2, many as u64 + 2));
    assert_eq!(told(&report.findings), ["repair-lines -"]);
    assert_eq!(report.diff.len(), MAX_DIFF_LINES + 1);
    // One change in a file as large, and it is found.
    let after = before.replace("\n777\n", "\nx\n");
    let report = judge(&files(&[("x", &before)]), &files(&[("x", &after)]), &capsule);
    assert_eq!((report.inserted, report.deleted, report.accepted), (1, 1, true));
    assert_eq!(report.diff[2], "@@ -776,7 +776,7 @@");
}

#[test]
fn the_diff_never_counts_less_than_there_is() {
    let mut state = 7u64;
    for _ in 0..300 {
        let mut text = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (0..(state >> 60)).map(|n| if state >> n & 1 == 1 { "a\n" } else { "b\n" }).collect::<String>()
        };
        let (before, after) = (text(), text());
        let (old, new) = (lines(before.as_bytes()), lines(after.as_bytes()));
        // Replaying the changes gives the file after.
        let (mut replayed, mut at) = (Vec::new(), 0);
        for change in changes(&old, &new, MAX_COMPARED_LINES) {
            replayed.extend_from_slice(&old[at..change.old.0]);
            replayed.extend_from_slice(&new[change.new.0..change.new.0 + change.new.1]);
            at = change.old.0 + change.old.1;
        }
        replayed.extend_from_slice(&old[at..]);
        assert_eq!(replayed, new, "{before:?} {after:?}");
    }
}
