use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::document::finding::Severity;
use crate::store::fixture::{Fixture, ids};

/// One work tree to compare with git: its name, how the repository is made, and what is done in it.
type Scenario = (&'static str, fn() -> Fixture, fn(&Fixture));

const SCENARIOS: &[Scenario] = &[
    ("tracked, edited, deleted, untracked, ignored", Fixture::new, |f| {
        f.write(&[("in/a", "1"), ("in/b", "2"), ("in/gone", "3"), ("in/deep/c", "4"), ("in2/not", "5"), ("inx", "6")]);
        f.commit_all();
        f.write(&[("in/b", "two"), ("in/new", "new"), ("in/x.log", "log"), ("in/keep.log", "k"), ("in/y.excluded", "e")]);
        f.write(&[(".gitignore", "*.log\n!keep.log\nin/build/\n"), ("in/build/o", "o"), ("in/deep/.gitignore", "z*\n")]);
        f.write(&[("in/deep/zed", "z"), ("in/deep/yed", "y"), (".git/info/exclude", "secret\n"), ("in/secret", "s")]);
        std::fs::remove_file(f.top().join("in/gone")).unwrap();
    }),
    ("tracked files that are ignored since", Fixture::new, |f| {
        f.write(&[("in/a.log", "1"), ("in/d/b", "2")]);
        f.commit_all();
        f.write(&[(".gitignore", "*.log\nin/d/\n"), ("in/a.log", "changed"), ("in/d/untracked", "u")]);
    }),
    ("core.autocrlf", Fixture::new, |f| {
        f.git(&["config", "core.autocrlf", "true"]);
        f.write(&[("in/a", "one\r\ntwo\r\n"), ("in/b", "lf\n"), ("in/bin", "\0\r\n")]);
        f.commit_all();
        f.write(&[("in/a", "one\r\n2\r\n"), ("in/new", "x\r\n"), ("in/mixed", "x\r\ny\n")]);
    }),
    ("attributes", Fixture::new, |f| {
        f.write(&[(".gitattributes", "*.txt text eol=crlf\n*.id ident\n*.u16 working-tree-encoding=UTF-16LE text\n")]);
        f.write(&[("in/a.txt", "1\r\n2\r\n"), ("in/b.id", "$Id: x$\n"), ("in/c.u16", "h\0i\0")]);
        f.commit_all();
        f.write(&[("in/a.txt", "3\r\n"), ("in/new.txt", "4\r\n"), ("in/new.id", "$Id: 0123$\n"), ("in/new.u16", "o\0k\0")]);
        f.write(&[("in/.gitattributes", "*.bin -text\n"), ("in/z.bin", "\r\n")]);
    }),
    ("a clean filter", Fixture::new, |f| {
        f.git(&["config", "filter.up.clean", "tr a-z A-Z"]);
        f.git(&["config", "filter.up.required", "true"]);
        f.write(&[(".gitattributes", "*.up filter=up\n"), ("in/a.up", "abc\n")]);
        f.commit_all();
        f.write(&[("in/a.up", "changed\n"), ("in/b.up", "new\n"), ("in/b.plain", "new\n")]);
    }),
    (
        "SHA-256",
        || Fixture::with(&["init", "-q", "--object-format=sha256", "."]),
        |f| {
            f.write(&[("in/a", "1"), ("in/b", "2")]);
            f.commit_all();
            f.write(&[("in/b", "3"), ("in/c", "4")]);
        },
    ),
    (
        "a linked work tree",
        || {
            let f = Fixture::new();
            f.write(&[("in/a", "1"), ("in/b", "2")]);
            f.commit_all();
            f.linked()
        },
        |f| f.write(&[("in/b", "3"), ("in/c", "4")]),
    ),
    ("a sparse checkout", Fixture::new, |f| {
        f.write(&[("in/a/x", "1"), ("in/b/y", "2"), ("in/b/deep/z", "3"), ("in/top", "4")]);
        f.commit_all();
        f.git(&["sparse-checkout", "set", "--cone", "in/a"]);
        f.write(&[("in/a/x", "changed")]);
    }),
    ("a sparse index", Fixture::new, |f| {
        f.write(&[("in/a/x", "1"), ("in/b/y", "2"), ("in/b/deep/z", "3"), ("other/q", "4")]);
        f.commit_all();
        f.git(&["sparse-checkout", "set", "--cone", "--sparse-index", "in/a"]);
        f.write(&[("in/a/new", "n")]);
    }),
    ("intent to add", Fixture::new, |f| {
        f.write(&[("in/a", ""), ("in/b", "text")]);
        f.git(&["add", "-N", "in/a", "in/b"]);
    }),
    ("an index of version 4, split", Fixture::new, |f| {
        f.write(&[("in/a", "1"), ("in/b", "2")]);
        f.git(&["update-index", "--index-version", "4"]);
        f.commit_all();
        f.git(&["update-index", "--split-index"]);
        f.write(&[("in/b", "3"), ("in/c", "4")]);
        f.git(&["add", "in/c"]);
    }),
    ("no commit and no index", Fixture::new, |f| f.write(&[("in/a", "1"), ("out", "2")])),
    ("a folder where a file was, and the reverse", Fixture::new, |f| {
        f.write(&[("in/a", "1"), ("in/d/x", "2")]);
        f.commit_all();
        std::fs::remove_file(f.top().join("in/a")).unwrap();
        std::fs::remove_dir_all(f.top().join("in/d")).unwrap();
        f.write(&[("in/a/x", "3"), ("in/d", "4")]);
    }),
    ("an executable", Fixture::new, |f| {
        f.write(&[("in/a", "1"), ("in/b", "2")]);
        f.commit_all();
        for path in ["in/a", "in/b"] {
            std::fs::set_permissions(f.top().join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }),
];

#[test]
fn a_work_tree_is_scanned_as_git_would_add_it() {
    for (name, make, change) in SCENARIOS {
        for globs in [&["in/**"][..], &["in/*", "in/**/x", "in/a/**"], &["**"]] {
            let f = make();
            change(&f);
            let scan = f.scan(globs);
            assert_eq!(scan.findings, [], "{name}");
            let store = f.store();
            let bytes: Vec<_> = scan.files.values().map(|file| store.content(file).unwrap()).collect();
            assert_eq!(ids(&scan), f.as_git_adds(globs), "{name}, {globs:?}");
            assert!(!scan.files.is_empty(), "{name}");
            for ((path, file), bytes) in scan.files.iter().zip(bytes) {
                let id = gix::objs::compute_hash(file.id.kind(), gix::objs::Kind::Blob, &bytes).unwrap();
                assert_eq!((id, Digest::of(&bytes), bytes.len() as u64), (file.id, file.sha256, file.bytes), "{name}: {path}");
            }
        }
    }
}

#[test]
fn a_second_scan_touched_files_and_a_lost_cache_give_the_same() {
    for (name, make, change) in SCENARIOS {
        let f = make();
        change(&f);
        let first = f.scan(&["in/**"]);
        let objects = f.git(&["count-objects", "-v"]);
        let facts = |scan: &Scan| -> Vec<_> {
            scan.files.iter().map(|(path, file)| (path.clone(), file.id, file.sha256, file.bytes)).collect()
        };
        let check = |what: &str| {
            let scan = f.scan(&["in/**"]);
            assert_eq!(facts(&scan), facts(&first), "{name}, {what}");
            for file in scan.files.values() {
                assert_eq!(Digest::of(&f.store().content(file).unwrap()), file.sha256, "{name}, {what}");
            }
        };
        check("again");
        for path in first.files.keys() {
            if let Ok(file) = std::fs::File::options().append(true).open(f.top().join(path.as_str())) {
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
        }
        check("touched");
        check("touched, again");
        let cache = f.store().repo.git_dir().join("cbia/stat");
        std::fs::write(&cache, b"cbiastat torn").unwrap();
        check("torn cache");
        assert_eq!(f.git(&["count-objects", "-v"]), objects, "{name}: a scan writes no objects");
    }
}

#[test]
fn an_edit_that_keeps_size_and_time_is_seen() {
    for (name, tracked) in [("tracked", true), ("untracked", false)] {
        let f = Fixture::new();
        for round in 0..20 {
            let path = f.top().join("in/a");
            f.write(&[("in/a", &format!("{round:04}"))]);
            if tracked {
                f.git(&["add", "in/a"]);
            }
            let time = std::fs::metadata(&path).unwrap().modified().unwrap();
            f.scan(&["in/**"]);
            f.write(&[("in/a", &format!("{:04}", 9000 + round))]);
            std::fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
            let want = Digest::of(format!("{:04}", 9000 + round).as_bytes());
            assert_eq!(f.scan(&["in/**"]).files.values().next().unwrap().sha256, want, "{name}, round {round}");
        }
    }
}

#[test]
fn assume_unchanged_does_not_hide_an_edit() {
    let f = Fixture::new();
    f.write(&[("in/a", "1")]);
    f.commit_all();
    f.git(&["update-index", "--assume-unchanged", "in/a"]);
    f.write(&[("in/a", "edited")]);
    assert_eq!(f.scan(&["in/**"]).files.values().next().unwrap().sha256, Digest::of(b"edited"));
}

#[test]
fn changed_attributes_are_seen_where_the_file_is_not_the_index_s() {
    let f = Fixture::new();
    f.write(&[("in/a", "x\r\n")]);
    f.scan(&["in/**"]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    f.write(&[("in/b", "y")]);
    let digest = |f: &Fixture| f.scan(&["in/a"]).files.values().next().unwrap().sha256;
    assert_eq!(digest(&f), Digest::of(b"x\r\n"));
    f.write(&[(".gitattributes", "* text=auto\n")]);
    assert_eq!(digest(&f), Digest::of(b"x\n"));
    f.git(&["config", "filter.up.clean", "tr a-z A-Z"]);
    f.write(&[(".gitattributes", "in/* filter=up -text\n")]);
    assert_eq!(digest(&f), Digest::of(b"X\r\n"));
}

#[test]
fn a_known_blob_is_not_read_and_a_lost_one_is_taken_from_the_file() {
    let f = Fixture::new();
    f.write(&[("in/a", "1")]);
    f.commit_all();
    // The index must be older than the file's tick, or git's own rule asks for the file to be read.
    std::thread::sleep(std::time::Duration::from_millis(20));
    f.git(&["update-index", "--really-refresh"]);
    f.write(&[("other", "")]);
    f.git(&["add", "other"]);
    let first = f.scan(&["in/**"]);
    let file = first.files.values().next().unwrap();
    assert!(matches!(file.content, Content::Stored), "{:?}", file.content);
    let id = file.id.to_string();
    let blob = f.top().join(".git/objects").join(&id[..2]).join(&id[2..]);
    std::fs::remove_file(blob).unwrap();
    assert_eq!(ids(&f.scan(&["in/**"])), ids(&first));
    assert!(matches!(f.store().content(file), Err(ScanError::Object { .. })));
    std::fs::remove_file(f.top().join(".git/cbia/stat")).unwrap();
    let again = f.scan(&["in/**"]);
    assert_eq!(ids(&again), ids(&first));
    assert_eq!(f.store().content(again.files.values().next().unwrap()).unwrap(), b"1");
}

#[test]
fn a_file_that_changed_since_the_scan_is_not_passed_off_as_scanned() {
    let f = Fixture::new();
    f.write(&[("in/a", "1")]);
    f.scan(&["in/**"]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    f.write(&[("in/b", "2")]);
    f.scan(&["in/**"]);
    let scan = f.scan(&["in/a"]);
    let file = scan.files.values().next().unwrap();
    assert!(matches!(file.content, Content::File(_)), "{:?}", file.content);
    f.write(&[("in/a", "3")]);
    assert!(matches!(f.store().content(file), Err(ScanError::Changed(_))));
}

/// What is done in a work tree, the patterns, the exact paths, and the findings: code, whether it refuses, path.
type Refused = (&'static str, fn(&Fixture), &'static [&'static str], &'static [&'static str], Code, Severity, &'static str);

#[test]
fn what_cannot_be_an_input_is_named() {
    use Severity::{Error, Warning};
    let all: &[&str] = &["in/**"];
    let cases: &[Refused] = &[
        ("link", |f| symlink("../x", f.top().join("in/l")).unwrap(), all, &[], Code::InputNotRegular, Error, "in/l"),
        ("exact link", |f| symlink("/x", f.top().join("l")).unwrap(), &[], &["l"], Code::InputNotRegular, Error, "l"),
        (
            "tracked link",
            |f| {
                symlink("a", f.top().join("in/l")).unwrap();
                f.commit_all();
            },
            all,
            &[],
            Code::InputNotRegular,
            Error,
            "in/l",
        ),
        (
            "a tracked file behind a link",
            |f| {
                f.write(&[("in/d/x", "1"), ("elsewhere/x", "2")]);
                f.commit_all();
                std::fs::remove_dir_all(f.top().join("in/d")).unwrap();
                symlink("../elsewhere", f.top().join("in/d")).unwrap();
            },
            &["in/**/x"],
            &[],
            Code::InputNotRegular,
            Error,
            "in/d/x",
        ),
        (
            "the folder of the pattern is a link",
            |f| {
                f.write(&[("elsewhere/x", "2")]);
                symlink("elsewhere", f.top().join("docs")).unwrap();
            },
            &["docs/**"],
            &[],
            Code::InputNotRegular,
            Error,
            "docs",
        ),
        (
            "a link above the folder of the pattern",
            |f| {
                f.write(&[("elsewhere/sub/x", "2")]);
                symlink("elsewhere", f.top().join("docs")).unwrap();
            },
            &["docs/sub/**"],
            &[],
            Code::InputNotRegular,
            Error,
            "docs",
        ),
        (
            "a nested repository",
            |f| {
                f.git(&["init", "-q", "in/nested"]);
                f.write(&[("in/nested/x", "")]);
            },
            all,
            &[],
            Code::InputNotRegular,
            Error,
            "in/nested",
        ),
        (
            "a submodule",
            |f| {
                f.git(&["init", "-q", "in/nested"]);
                f.git(&["-C", "in/nested", "commit", "-q", "--allow-empty", "-m", "x"]);
                f.git(&["add", "in/nested"]);
            },
            all,
            &[],
            Code::InputNotRegular,
            Error,
            "in/nested",
        ),
        (
            "a FIFO",
            |f| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                let path = f.top().join("in/fifo");
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            },
            all,
            &[],
            Code::InputNotRegular,
            Error,
            "in/fifo",
        ),
        (
            "a conflict",
            |f| {
                f.commit_all();
                f.git(&["checkout", "-q", "-b", "b"]);
                f.write(&[("in/a", "b")]);
                f.commit_all();
                f.git(&["checkout", "-q", "main"]);
                f.write(&[("in/a", "c")]);
                f.commit_all();
                assert!(!f.command(&["merge", "-q", "b"]).output().unwrap().status.success());
            },
            all,
            &[],
            Code::InputConflicted,
            Error,
            "in/a",
        ),
        ("an impossible name", |f| f.write(&[("in/a:b", "")]), all, &[], Code::PathInvalid, Error, "in/a:b"),
        ("an impossible folder", |f| f.write(&[("in/CON/x", "")]), all, &[], Code::PathInvalid, Error, "in/CON/x"),
        ("a collision", |f| f.write(&[("in/A", "")]), all, &[], Code::PathCollision, Error, "in/a"),
        ("a folder collides with a file", |f| f.write(&[("in/A/x", "")]), all, &[], Code::PathCollision, Error, "in/A/x"),
        ("too large", |f| f.write(&[("in/b", "12345678901")]), all, &[], Code::InputTooLarge, Error, "in/b"),
        (
            "an ignored exact path",
            |f| f.write(&[(".gitignore", "x\n"), ("x", "")]),
            &[],
            &["x"],
            Code::DocumentMissing,
            Warning,
            "x",
        ),
    ];
    let limits = ScanLimits { files: 10, bytes: 100, file_bytes: 10 };
    for (name, change, globs, exact, code, severity, path) in cases {
        let f = Fixture::new();
        f.write(&[("in/a", "1")]);
        change(&f);
        let scan = f.scan_with(globs, exact, limits);
        let found: Vec<_> = scan.findings.iter().map(|f| (f.code, f.severity, f.path.clone().unwrap())).collect();
        assert_eq!(found, [(*code, *severity, (*path).to_owned())], "{name}");
        let kept = *code == Code::PathCollision;
        assert_eq!(scan.files.contains_key(&"in/a".parse().unwrap()), globs == &all && *name != "a conflict", "{name}");
        assert_eq!(path.parse().is_ok_and(|path| scan.files.contains_key(&path)), kept, "{name}");
    }
}

#[test]
fn what_is_none_of_our_business_is_left_alone() {
    let f = Fixture::new();
    f.write(&[("in/a", "1"), (".gitignore", "*:*\nin/l\n"), ("in/b:c", ""), ("other/CON", ""), ("other/A", ""), ("other/a", "")]);
    symlink("x", f.top().join("in/l")).unwrap();
    let scan = f.scan_with(&["in/**"], &["missing", "in/missing", "other"], ScanLimits::default());
    assert_eq!((scan.findings.len(), scan.files.len()), (0, 1), "{:?}", scan.findings);
}

#[test]
fn limits_end_a_scan_with_one_finding() {
    let f = Fixture::new();
    f.write(&[("in/a", "123"), ("in/b", "456"), ("in/c", "789"), ("in/d", "0")]);
    for track in [false, true] {
        if track {
            f.commit_all();
        }
        for (files, bytes, want) in [(4, 10, 0), (3, 10, 1), (4, 9, 1), (1, 1, 1)] {
            let limits = ScanLimits { files, bytes, file_bytes: 5 };
            let scan = f.scan_with(&["in/**"], &[], limits);
            let codes: Vec<_> = scan.findings.iter().map(|f| f.code).collect();
            assert_eq!(codes, vec![Code::InputTooLarge; want], "{files} {bytes}");
        }
    }
}

#[test]
fn a_bare_repository_has_no_work_tree() {
    let f = Fixture::with(&["init", "-q", "--bare", "."]);
    let globs = Globs::new(["**"]).unwrap();
    let wanted = Wanted { globs: &globs, exact: &[], exclude: &|_| false };
    assert!(matches!(f.store().scan_worktree(&wanted, ScanLimits::default()), Err(ScanError::Bare(_))));
}

#[test]
fn a_commit_is_scanned_as_it_is_stored() {
    for init in [&["init", "-q", "--bare", "."][..], &["init", "-q", "--object-format=sha256", "."]] {
        let f = Fixture::with(init);
        let blob = |text: &str| {
            f.write(&[("blob", text)]);
            f.git(&["hash-object", "-w", "--no-filters", "blob"])
        };
        let (one, two) = (blob("one\r\n"), blob("two"));
        let tree = |lines: &[String]| {
            use std::io::Write as _;
            let mut child = f
                .command(&["mktree", "--missing"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
        };
        let sub = tree(&[format!("100755 blob {two}\tx\n"), format!("100644 blob {two}\ty.excluded\n")]);
        let good = tree(&[format!("100644 blob {one}\ta\n"), format!("040000 tree {sub}\td\n")]);
        let bad = tree(&[
            format!("100644 blob {one}\tA\n"),
            format!("100644 blob {one}\ta\n"),
            format!("100644 blob {one}\tb:c\n"),
            format!("120000 blob {one}\tlink\n"),
            format!("160000 commit {}\tmodule\n", "2".repeat(one.len())),
        ]);
        let other = tree(&[format!("100644 blob {}\tlost\n", "1".repeat(one.len()))]);
        let root = tree(&[
            format!("040000 tree {bad}\tbad\n"),
            format!("040000 tree {good}\tin\n"),
            format!("040000 tree {other}\tother\n"),
        ]);
        let scan = |globs: &[&str]| {
            let globs = Globs::new(globs).unwrap();
            let wanted = Wanted { globs: &globs, exact: &[], exclude: &|path| path.as_str().ends_with(".excluded") };
            f.store().scan_commit(root.parse().unwrap(), &wanted, ScanLimits::default())
        };
        for _ in 0..2 {
            let found = scan(&["in/**"]).unwrap();
            assert_eq!(found.findings, []);
            let texts: Vec<_> = found
                .files
                .iter()
                .map(|(path, file)| (path.as_str(), String::from_utf8(f.store().content(file).unwrap()).unwrap(), file.sha256))
                .collect();
            let want = [("in/a", "one\r\n"), ("in/d/x", "two")];
            assert_eq!(texts, want.map(|(path, text)| (path, text.to_owned(), Digest::of(text.as_bytes()))));
        }
        let found = scan(&["bad/*"]).unwrap();
        let codes: Vec<_> = found.findings.iter().map(|f| (f.code, f.path.as_deref().unwrap())).collect();
        let want = [
            (Code::PathInvalid, "bad/b:c"),
            (Code::InputNotRegular, "bad/link"),
            (Code::InputNotRegular, "bad/module"),
            (Code::PathCollision, "bad/a"),
        ];
        assert_eq!(codes, want);
        assert!(matches!(scan(&["**"]), Err(ScanError::Object { path, .. }) if path == "other/lost"));
    }
}

#[test]
fn an_index_as_old_as_the_file_does_not_vouch_for_it() {
    let f = Fixture::new();
    // With these settings only size and whole seconds tell an edit, so the rule about racy entries must.
    f.git(&["config", "core.trustctime", "false"]);
    f.git(&["config", "core.checkStat", "minimal"]);
    f.write(&[("in/a", "old")]);
    f.commit_all();
    let path = f.top().join("in/a");
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    f.write(&[("in/a", "new")]);
    for file in [path, f.top().join(".git/index")] {
        std::fs::File::options().append(true).open(file).unwrap().set_modified(time).unwrap();
    }
    assert_eq!(f.scan(&["in/**"]).files.values().next().unwrap().sha256, Digest::of(b"new"));
}

#[test]
fn what_a_tree_teaches_is_noted_beside_what_is_known_of_files() {
    use crate::store::stat::StatCache;
    let f = Fixture::new();
    // git's index knows nothing of them.
    f.write(&[("in/a", "1"), ("in/b", "2")]);
    // An entry as old as the cache itself is not believed, whatever it says.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let scan = f.scan(&["in/**"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    f.scan(&["in/**"]);
    let store = f.store();
    let stats = || StatCache::load(store.repo.git_dir(), store.repo.object_hash());
    let known = |stats: &StatCache| stats.known_inputs();
    let before = known(&stats());
    assert_eq!(before.len(), 2);
    f.write(&[("other/c", "3")]);
    f.commit_all();
    let tree = store.tree_of(&store.resolve("HEAD").unwrap()).unwrap();
    let globs = Globs::new(["**"]).unwrap();
    let wanted = Wanted { globs: &globs, exact: &[], exclude: &|_| false };
    let found = store.scan_commit(tree, &wanted, ScanLimits::default()).unwrap();
    let after = stats();
    assert_eq!(known(&after), before);
    for file in found.files.values() {
        assert_eq!(after.digest(&file.id), Some((file.sha256, file.bytes)));
    }
    assert!(found.files.len() > scan.files.len());
}
