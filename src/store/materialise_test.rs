use rustix::fs::CWD;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::document::finding::Severity;
use crate::store::fixture::Fixture;

/// A plan over texts: from memory, or as blobs of the object database.
fn plan(f: &Fixture, files: &[(&str, &str)], class: Class, stored: bool) -> Materialise {
    let kind = f.store().repo.object_hash();
    let item = |text: &str| {
        let id = gix::objs::compute_hash(kind, gix::objs::Kind::Blob, text.as_bytes()).unwrap();
        let source = if stored { Source::Blob } else { Source::Bytes(Arc::from(text.as_bytes())) };
        if stored {
            f.store().repo.write_blob(text).unwrap();
        }
        WriteItem { id, sha256: Digest::of(text.as_bytes()), source, class }
    };
    let files = files.iter().map(|(path, text)| (path.parse().unwrap(), item(text))).collect();
    Materialise { files, strays: Strays::All, force: false }
}

fn run(f: &Fixture, files: &[(&str, &str)]) -> Materialised {
    f.store().materialise(&plan(f, files, Class::Artifact, true)).unwrap()
}

fn names(paths: &[RepoPath]) -> Vec<&str> {
    paths.iter().map(RepoPath::as_str).collect()
}

fn codes(done: &Materialised) -> Vec<(Code, Severity, &str)> {
    done.findings.iter().map(|f| (f.code, f.severity, f.path.as_deref().unwrap())).collect()
}

/// Everything in the work tree but `.git`.
fn tree(f: &Fixture) -> BTreeMap<String, String> {
    fn walk(top: &std::path::Path, at: &std::path::Path, out: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            if name == ".git" {
                continue;
            }
            if path.is_symlink() {
                out.insert(name, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
            } else if path.is_dir() {
                out.insert(format!("{name}/"), String::new());
                walk(top, &path, out);
            } else {
                out.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(f.top(), f.top(), &mut out);
    out
}

fn stages(f: &Fixture) -> usize {
    let cbia = f.store().repo.git_dir().join("cbia");
    std::fs::read_dir(cbia).unwrap().filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}

#[test]
fn files_are_written_once_and_exactly_as_stored() {
    let makes: [fn() -> Fixture; 3] = [
        Fixture::new,
        || Fixture::with(&["init", "-q", "--object-format=sha256", "."]),
        || {
            let f = Fixture::new();
            f.commit_all();
            f.linked()
        },
    ];
    let files = [("a", "1\n"), ("dist/b", "2\r\n"), ("dist/deep/d", ""), ("dist/deep/er/c", "3\n"), ("there/e", "5")];
    for make in makes {
        for stored in [false, true] {
            let f = make();
            f.git(&["config", "core.autocrlf", "true"]);
            f.write(&[(".gitattributes", "* text eol=crlf\n"), ("there/x", "")]);
            let index = std::fs::read(f.store().repo.git_dir().join("index")).ok();
            let before = tree(&f);
            let first = f.store().materialise(&plan(&f, &files, Class::Artifact, stored)).unwrap();
            assert_eq!(names(&first.written), files.map(|(path, _)| path));
            assert_eq!((first.in_place, codes(&first)), (0, vec![]));
            let mut want = before;
            want.extend(files.map(|(path, text)| (path.to_owned(), text.to_owned())));
            want.extend(["dist/", "dist/deep/", "dist/deep/er/"].map(|path| (path.to_owned(), String::new())));
            assert_eq!(tree(&f), want);
            for _ in 0..2 {
                let again = f.store().materialise(&plan(&f, &files, Class::Artifact, stored)).unwrap();
                assert_eq!((names(&again.written), again.in_place, codes(&again)), (vec![], 5, vec![]));
            }
            assert_eq!(std::fs::read(f.store().repo.git_dir().join("index")).ok(), index, "the index is the user's");
            assert_eq!(stages(&f), 0);
        }
    }
}

#[test]
fn what_is_in_place_is_not_read() {
    let f = Fixture::new();
    let files = [("a", "1\n"), ("d/b", "2\n")];
    drop(run(&f, &files));
    std::thread::sleep(std::time::Duration::from_millis(20));
    drop(run(&f, &[("a", "1\n"), ("d/b", "2\n"), ("z", "")]));
    // A digest that no bytes have: only the stat cache can say that the file is what was written.
    let cache = f.store().repo.git_dir().join("cbia/stat");
    let saved = std::fs::read(&cache).unwrap();
    let atime = |path: &str| rustix::fs::stat(f.top().join(path)).map(|s| (s.st_atime, s.st_atime_nsec)).unwrap();
    let before = atime("a");
    assert_eq!(run(&f, &[("a", "1\n"), ("d/b", "2\n"), ("z", "")]).in_place, 3);
    assert_eq!(atime("a"), before);
    drop(run(&f, &[("a", "1\n"), ("d/b", "2\n"), ("z", "")]));
    let settled = std::fs::read(&cache).unwrap();
    drop(run(&f, &[("a", "1\n"), ("d/b", "2\n"), ("z", "")]));
    assert_eq!(std::fs::read(&cache).unwrap(), settled, "nothing was learnt, nothing is written");
    assert!(!saved.is_empty());
}

/// What stands in the work tree, by whom it is written and with force or not; the finding, if it is refused.
type Standing = (&'static str, fn(&Fixture), Class, bool, Option<Code>);

#[test]
fn what_a_person_made_is_not_overwritten() {
    use Class::{Artifact, Evidence};
    let edited = Some(Code::ArtifactEdited);
    let blocked = Some(Code::ArtifactBlocked);
    let write: fn(&Fixture) = |f| f.write(&[("dist/a", "a person's\n")]);
    let leaf_link: fn(&Fixture) = |f| {
        f.write(&[("dist/x", "x"), ("target", "untouched")]);
        symlink("../target", f.top().join("dist/a")).unwrap();
    };
    let folder_link: fn(&Fixture) = |f| {
        std::fs::create_dir(f.top().with_file_name("outside")).unwrap();
        symlink("../outside", f.top().join("dist")).unwrap();
    };
    let same_index: fn(&Fixture) = |f| {
        f.write(&[("dist/a", "committed\n")]);
        f.commit_all();
    };
    let cases: &[Standing] = &[
        ("nothing", |_| {}, Artifact, false, None),
        ("the same bytes", |f| f.write(&[("dist/a", "new\n")]), Artifact, false, None),
        ("somebody's file", write, Artifact, false, edited),
        ("somebody's file, forced", write, Artifact, true, None),
        ("somebody's file, evidence", write, Evidence, false, None),
        ("the index's file", same_index, Artifact, false, None),
        (
            "the index's file, as a filter shows it",
            |f| {
                f.write(&[(".gitattributes", "* text eol=crlf\n"), ("dist/a", "committed\r\n")]);
                f.commit_all();
            },
            Artifact,
            false,
            None,
        ),
        (
            "the index's file, edited",
            |f| {
                f.write(&[("dist/a", "committed\n")]);
                f.commit_all();
                f.write(&[("dist/a", "edited\n")]);
            },
            Artifact,
            false,
            edited,
        ),
        ("what was written last", |f| drop(run(f, &[("dist/a", "old\n")])), Artifact, false, None),
        (
            "what was written last, touched",
            |f| {
                drop(run(f, &[("dist/a", "old\n")]));
                f.write(&[("dist/a", "old\n")]);
            },
            Artifact,
            false,
            None,
        ),
        (
            "what was written last, edited with the same size and time",
            |f| {
                drop(run(f, &[("dist/a", "old\n")]));
                let path = f.top().join("dist/a");
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                f.write(&[("dist/a", "odd\n")]);
                std::fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
            },
            Artifact,
            false,
            edited,
        ),
        ("a link", leaf_link, Artifact, false, blocked),
        ("a link, evidence", leaf_link, Evidence, false, blocked),
        ("a link, forced", leaf_link, Artifact, true, None),
        ("a link on the way", folder_link, Artifact, false, blocked),
        ("a link on the way, forced", folder_link, Artifact, true, blocked),
        ("a file on the way", |f| f.write(&[("dist", "")]), Evidence, true, blocked),
        ("a folder in its place", |f| f.write(&[("dist/a/b", "")]), Artifact, true, blocked),
    ];
    for (name, make, class, force, want) in cases {
        let f = Fixture::new();
        make(&f);
        let before = tree(&f);
        let mut plan = plan(&f, &[("dist/a", "new\n"), ("other/b", "also\n")], *class, true);
        plan.force = *force;
        let done = f.store().materialise(&plan).unwrap();
        let found: Vec<_> = done.findings.iter().map(|f| f.code).collect();
        assert_eq!(found, Vec::from_iter(*want), "{name}");
        let after = tree(&f);
        if want.is_some() {
            assert_eq!((after, done.written.len()), (before, 0), "{name}: nothing is written");
            assert!(done.findings[0].hint.is_some(), "{name}");
        } else {
            assert_eq!((after["dist/a"].as_str(), after["other/b"].as_str()), ("new\n", "also\n"), "{name}");
            assert!(after.get("target").is_none_or(|text| text == "untouched"), "{name}");
        }
        let outside = f.top().with_file_name("outside");
        assert!(!outside.exists() || std::fs::read_dir(outside).unwrap().next().is_none(), "{name}");
        assert_eq!(stages(&f), 0, "{name}");
    }
}

#[test]
fn an_edit_is_told_with_its_size() {
    let f = Fixture::new();
    f.write(&[("a", "1\n2\nthree\nfour\n5\n")]);
    let done = run(&f, &[("a", "1\n2\n3\n4\n5\n")]);
    assert_eq!(done.findings[0].message, "'a' was edited and would be overwritten: 2 lines differ");
    f.write(&[("a", "1\n2\n3\n4\n5\nsix\n")]);
    let done = run(&f, &[("a", "1\n2\n3\n4\n5\n")]);
    assert_eq!(done.findings[0].message, "'a' was edited and would be overwritten: 1 line differs");
}

#[test]
fn strays_go_and_edited_strays_stay() {
    let f = Fixture::new();
    f.write(&[("dist/kept/by/somebody", "x")]);
    let old = [("dist/a", "1"), ("dist/b", "2"), ("dist/kept/c", "3"), ("dist/gone/d/e", "4"), ("file", "5"), ("dir/g", "6")];
    drop(run(&f, &old));
    f.write(&[("dist/b", "edited")]);
    let done = run(&f, &[("dist/a", "1"), ("file/h", "7"), ("dir", "8")]);
    assert_eq!(codes(&done), [(Code::ArtifactEdited, Severity::Warning, "dist/b")]);
    assert_eq!(names(&done.removed), ["dir/g", "dist/gone/d/e", "dist/kept/c", "file"]);
    let want = ["dir", "dist/", "dist/a", "dist/b", "dist/kept/", "dist/kept/by/", "dist/kept/by/somebody", "file/", "file/h"];
    assert_eq!(tree(&f).into_keys().collect::<Vec<_>>(), want);
    assert_eq!(codes(&run(&f, &[("dist/a", "1"), ("file/h", "7"), ("dir", "8")])), []);
}

#[test]
fn bytes_that_are_not_the_wanted_ones_are_never_visible() {
    let f = Fixture::new();
    let other = Digest::of(b"other");
    for stored in [false, true] {
        let mut wrong_digest = plan(&f, &[("dist/a", "1"), ("dist/b", "2")], Class::Artifact, stored);
        wrong_digest.files.get_mut(&"dist/b".parse().unwrap()).unwrap().sha256 = other;
        assert!(matches!(f.store().materialise(&wrong_digest), Err(MaterialiseError::Mismatch { .. })));
    }
    let mut wrong_id = plan(&f, &[("dist/a", "1")], Class::Artifact, false);
    wrong_id.files.get_mut(&"dist/a".parse().unwrap()).unwrap().id = f.store().repo.write_blob("2").unwrap().detach();
    assert!(matches!(f.store().materialise(&wrong_id), Err(MaterialiseError::Mismatch { .. })));
    let mut missing = plan(&f, &[("dist/a", "not stored")], Class::Artifact, false);
    missing.files.get_mut(&"dist/a".parse().unwrap()).unwrap().source = Source::Blob;
    assert!(matches!(f.store().materialise(&missing), Err(MaterialiseError::Object { .. })));
    let colliding = run(&f, &[("dist/a", "1"), ("dist/A", "2")]);
    assert_eq!(codes(&colliding), [(Code::PathCollision, Severity::Error, "dist/a")]);
    assert_eq!(tree(&f), BTreeMap::new());
    assert_eq!(stages(&f), 0);
}

#[test]
fn a_dead_run_s_stage_is_removed() {
    let f = Fixture::new();
    drop(run(&f, &[("a", "1")]));
    let left = f.store().repo.git_dir().join("cbia/stage-dead");
    std::fs::create_dir_all(left.join("d0/x")).unwrap();
    assert_eq!(run(&f, &[("a", "1")]).in_place, 1);
    assert!(!left.exists());
}

#[test]
fn a_racy_entry_is_not_trusted() {
    let f = Fixture::new();
    drop(run(&f, &[("a", "old")]));
    let git_dir = f.store().repo.git_dir().to_owned();
    let file = git_dir.join("cbia/stat");
    let path = "a".parse().unwrap();
    let stat = FileStat::from(&rustix::fs::lstat(f.top().join("a")).unwrap());
    let written = std::fs::symlink_metadata(f.top().join("a")).unwrap().modified().unwrap();
    for (after, trusted) in [(0, false), (10, true)] {
        let stamp = written + std::time::Duration::from_secs(after);
        std::fs::File::options().append(true).open(&file).unwrap().set_modified(stamp).unwrap();
        let stats = StatCache::load(&git_dir, f.store().repo.object_hash());
        let entry = stats.written(&path).unwrap();
        assert_eq!(entry.sha256, Digest::of(b"old"));
        assert_eq!(stats.is_untouched(&entry, &stat), trusted, "{after} s later");
    }
}

#[test]
fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
    let f = Fixture::new();
    let outside = f.top().with_file_name("outside");
    std::fs::create_dir(&outside).unwrap();
    f.write(&[("dist/x", "")]);
    let (dist, link) = (f.top().join("dist"), f.top().join("link"));
    symlink(&outside, &link).unwrap();
    let stop = AtomicBool::new(false);
    let mut refused = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Every exchange is atomic: the name is a folder or a link, and never absent.
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &dist, CWD, &link, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        });
        for round in 0..60 {
            let files: Vec<_> = (0..20).map(|n| (format!("dist/f{n}"), format!("{round}"))).collect();
            let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            let mut plan = plan(&f, &files, Class::Evidence, false);
            plan.force = true;
            let outcome = f.store().materialise(&plan);
            refused += usize::from(!outcome.is_ok_and(|done| done.findings.is_empty()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(refused > 0, "the swap was never met");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_racy_entry_is_not_trusted_because_the_cache_was_written_again() {
    let f = Fixture::new();
    drop(run(&f, &[("a", "old")]));
    let git_dir = f.store().repo.git_dir().to_owned();
    let written = std::fs::metadata(f.top().join("a")).unwrap().modified().unwrap();
    let date = |time| File::options().append(true).open(git_dir.join("cbia/stat")).unwrap().set_modified(time).unwrap();
    let a = "a".parse().unwrap();
    let stat = FileStat::from(&rustix::fs::lstat(f.top().join("a")).unwrap());
    let mut stats = StatCache::load(&git_dir, f.store().repo.object_hash());
    let entry = stats.written(&a).unwrap();
    stats.put_input(&a, Entry { stat, ..entry });
    stats.save(&StatCache::lock(&git_dir).unwrap()).unwrap();
    date(written);
    let mut other = plan(&f, &[("b", "x")], Class::Artifact, false);
    other.strays = Strays::Keep;
    drop(f.store().materialise(&other).unwrap());
    date(written + std::time::Duration::from_secs(10));
    let stats = StatCache::load(&git_dir, f.store().repo.object_hash());
    let entry = stats.written(&a).unwrap();
    assert!(stats.input(&a, &stat, 0).is_none());
    assert_eq!((entry.sha256, stats.is_untouched(&entry, &stat)), (Digest::of(b"old"), false));
}

#[test]
fn a_file_that_changed_after_the_decision_is_left_alone() {
    let f = Fixture::new();
    f.write(&[("a", "a person's")]);
    let plan = plan(&f, &[("a", "new"), ("b", "new")], Class::Artifact, false);
    let decided = [Some(FileStat::default()), None];
    let writes: Vec<_> =
        (plan.files.iter().zip(decided)).map(|((path, item), replaces)| Write { path, item, absent: None, replaces }).collect();
    let repo = f.store().repo;
    drop(StatCache::lock(repo.git_dir()).unwrap());
    let mut stage = Stage::new(repo.git_dir(), f.top(), &writes).unwrap();
    stage.fill(&repo, &writes).unwrap();
    f.write(&[("b", "created meanwhile")]);
    let landings = stage.publish(&mut Beneath::new(f.top()).unwrap(), &writes).unwrap();
    assert!(landings.iter().all(|landing| matches!(landing, Landing::Lost(_))));
    assert_eq!((f.read("a").as_str(), f.read("b").as_str()), ("a person's", "created meanwhile"));
}
