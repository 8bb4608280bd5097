//! The shape of the source tree: floors, and what stands in one named file only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every top-level module and its floor. A module names lower floors only; modules of one floor never name each other.
const FLOORS: [(&str, u8); 10] = [
    ("document", 0),
    ("store", 1),
    ("gate", 1),
    ("artifact", 1),
    ("policy", 1),
    ("executor", 1),
    ("phase", 3),
    ("pipeline", 4),
    ("verify", 5),
    ("cli", 6),
];

type Confined = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

/// What stands in the named files only: the rule, the words that betray it, and the files with the reason.
const CONFINED: [Confined; 7] = [
    ("serde derives", &["derive(+Serialize", "derive(+Deserialize"], &[("src/document/", "the documents")]),
    (
        "processes",
        &["process::Command", "Command::new("],
        &[
            ("src/store/git.rs", "git where gix cannot"),
            ("src/policy/cage.rs", "the policies' cage"),
            ("src/executor/external.rs", "configured executors"),
        ],
    ),
    (
        "printing",
        &["println!", "print!", "eprint!", "eprintln!", "stdout()", "stderr()"],
        &[
            ("src/cli/ui.rs", "what people and scripts read"),
            ("src/policy/cage.rs", "the cage's own protocol"),
            ("src/executor/supervise.rs", "why there is no supervisor"),
        ],
    ),
    ("the environment", &["env::", "std::env"], &[("src/cli/environment.rs", "the one place that reads it")]),
    (
        "the clock",
        &["SystemTime::now", "Instant::now"],
        &[
            ("src/cli/environment.rs", "the one place that reads it"),
            ("src/policy/cage.rs", "the time limit of an evaluation"),
            ("src/executor/supervise.rs", "the time limit of an executor"),
            ("src/store/talk.rs", "how long a remote is waited for"),
            ("src/store/lock.rs", "how long a lock is waited for"),
            ("src/store/stat.rs", "how long the stat cache's lock is waited for"),
        ],
    ),
    (
        "the admission",
        &["admit("],
        &[("src/gate/assurance.rs", "where it is made"), ("src/phase/opa_gate.rs", "the one gate that may ask for it")],
    ),
    ("leftovers", &["todo!(", "unimplemented!(", "dbg!("], &[]),
];

/// Most lines of code a file may have, blank lines, comments and tests not counted.
const MAX_LINES: usize = 500;
/// Files that may have more, how many, and why.
const LONG: [(&str, usize, &str); 0] = [];

/// One source file, without its comments, texts and tests.
struct Source {
    /// From the top of the repository.
    path: String,
    /// The code.
    code: String,
    /// The whole text.
    text: String,
}

/// Blanks out comments and the contents of texts, keeping the lines.
fn code_of(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let starts = |word: &str| word.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
        let hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
        let before = at.checked_sub(1).map(|i| bytes[i]);
        let raw = starts("r") && rest.get(1 + hashes) == Some(&'"') && !before.is_some_and(|c| c.is_alphanumeric() && c != 'b');
        let end = if starts("//") {
            rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if raw {
            let close: String = format!("\"{}", "#".repeat(hashes));
            let from = 2 + hashes;
            let tail: String = rest[from..].iter().collect();
            from + tail.find(&close).map_or(tail.chars().count(), |i| tail[..i].chars().count()) + close.len()
        } else if starts("\"") {
            let mut end = 1;
            while end < rest.len() && rest[end] != '"' {
                end += if rest[end] == '\\' { 2 } else { 1 };
            }
            end + 1
        } else if starts("'\\") {
            rest.iter().skip(3).position(|c| *c == '\'').map_or(1, |i| i + 4)
        } else if starts("'") && rest.get(2) == Some(&'\'') {
            3
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        out.extend(rest[..end.min(rest.len())].iter().filter(|c| **c == '\n'));
        out.push(' ');
        at += end;
    }
    out
}

/// Takes out what only tests have, and gives the names of the modules that only tests have.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut modules, mut rest) = (String::new(), Vec::new(), code);
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        let item = &rest[start + MARK.len()..];
        let mut depth = 0_usize;
        let end = item.char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            (depth == 0 && matches!(c, ';' | '}')).then_some(i + 1)
        });
        let end = end.unwrap_or(item.len());
        if let Some((_, name)) = item[..end].trim_end_matches(';').rsplit_once("mod ").filter(|_| item[..end].ends_with(';')) {
            modules.push(name.trim().to_owned());
        }
        rest = &item[end..];
    }
    out.push_str(rest);
    (out, modules)
}

fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![top.join("src")];
    let (mut found, mut only_tests) = (Vec::new(), BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let (code, modules) = without_tests(&code_of(&text));
                let folder = match path.file_stem().and_then(|s| s.to_str()) {
                    Some("mod" | "lib" | "main") => path.parent().unwrap().to_owned(),
                    _ => path.with_extension(""),
                };
                for module in modules {
                    only_tests.insert(folder.join(format!("{module}.rs")));
                    // A `#[path]` module lies beside its parent.
                    only_tests.insert(path.parent().unwrap().join(format!("{module}.rs")));
                }
                found.push((path, code, text));
            }
        }
    }
    let named = |path: &PathBuf| path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
    let beside = |path: &PathBuf| path.to_str().unwrap().ends_with("_test.rs");
    let mut sources: Vec<Source> = found
        .into_iter()
        .filter(|(path, _, _)| !only_tests.contains(path) && !beside(path))
        .map(|(path, code, text)| Source { path: named(&path), code, text })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// The top-level module of a file, `None` for the crate's own roots.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let module = inside.split('/').next()?.trim_end_matches(".rs");
    (!matches!(module, "lib" | "main")).then_some(module)
}

/// The top-level modules that some code names: through `crate::`, and through more `super::` than it is deep.
fn named_modules(path: &str, code: &str) -> BTreeSet<String> {
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = BTreeSet::new();
    let mut add = |rest: &str| match rest.strip_prefix('{') {
        Some(group) => {
            let mut depth = 0_i32;
            let mut fresh = true;
            for (at, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => fresh = true,
                    c if fresh && (c.is_alphabetic() || c == '_') => {
                        named.insert(identifier(&group[at..]));
                        fresh = false;
                    }
                    _ => {}
                }
            }
        }
        None => drop(named.insert(identifier(rest))),
    };
    code.match_indices("crate::").for_each(|(at, word)| add(&code[at + word.len()..]));
    let folders = path.trim_start_matches("src/").matches('/').count();
    let depth = folders + usize::from(!path.ends_with("/mod.rs"));
    let ladder = "super::".repeat(depth);
    code.match_indices(&ladder).for_each(|(at, _)| add(&code[at + ladder.len()..]));
    named.retain(|name| FLOORS.iter().any(|(module, _)| module == name));
    named
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// What is wrong with the floors in `sources`.
fn floor_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let Some(module) = module_of(&source.path) else { continue };
        let Some(own) = floor(module) else {
            faults.push(format!("{}: the module {module} has no floor", source.path));
            continue;
        };
        for named in named_modules(&source.path, &source.code) {
            if named != module && floor(&named).is_none_or(|floor| floor >= own) {
                faults.push(format!("{}: {module} names {named}", source.path));
            }
        }
    }
    faults
}

/// What stands outside its files in `sources`.
fn confinement_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        for (rule, words, files) in CONFINED {
            if files.iter().any(|(path, _)| source.path.starts_with(path)) {
                continue;
            }
            for word in words {
                let found = match word.split_once('+') {
                    Some((open, inner)) => source.code.split(open).skip(1).any(|rest| {
                        rest.split(')').next().unwrap_or_default().split([',', ' ', ':']).any(|name| name.trim() == inner)
                    }),
                    None => source
                        .code
                        .match_indices(word)
                        .any(|(at, _)| !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')),
                };
                if found {
                    faults.push(format!("{}: {rule} ({})", source.path, word.replace('+', "")));
                }
            }
        }
        for word in ["TODO", "FIXME", "XXX"] {
            if source.text.split(|c: char| !c.is_alphanumeric()).any(|found| found == word) {
                faults.push(format!("{}: {word}", source.path));
            }
        }
    }
    faults
}

/// Files that are too long in `sources`.
fn length_faults(sources: &[Source]) -> Vec<String> {
    let lines = |source: &Source| source.code.lines().filter(|line| !line.trim().is_empty()).count();
    let allowed = |path: &str| LONG.iter().find(|(long, _, _)| *long == path).map_or(MAX_LINES, |(_, most, _)| *most);
    let long = sources.iter().map(|s| (s, lines(s))).filter(|(s, lines)| *lines > allowed(&s.path));
    long.map(|(source, lines)| format!("{}: {lines} lines of code", source.path)).collect()
}

#[test]
fn the_floors_hold() {
    assert_eq!(floor_faults(&sources()), Vec::<String>::new());
}

#[test]
fn every_top_level_module_is_declared_and_has_a_floor() {
    let sources = sources();
    let present: BTreeSet<&str> = sources.iter().filter_map(|s| module_of(&s.path)).collect();
    let root = sources.iter().find(|s| s.path == "src/lib.rs").unwrap();
    let declared: BTreeSet<&str> =
        root.code.split("mod ").skip(1).map(|rest| rest.split(';').next().unwrap_or_default().trim()).collect();
    assert_eq!(present, declared);
    assert_eq!(present.iter().filter(|module| floor(module).is_none()).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn what_belongs_in_one_file_stays_there() {
    assert_eq!(confinement_faults(&sources()), Vec::<String>::new());
}

#[test]
fn files_stay_short() {
    assert_eq!(length_faults(&sources()), Vec::<String>::new());
}

/// The rules above see what they are meant to see, and nothing else.
#[test]
fn a_planted_violation_is_found() {
    let check = |path: &str, text: &str| -> Vec<String> {
        let (code, _) = without_tests(&code_of(text));
        let sources = [Source { path: path.into(), code, text: text.into() }];
        [floor_faults(&sources), confinement_faults(&sources), length_faults(&sources)].concat()
    };
    let long = "let x = 1;\n".repeat(MAX_LINES + 1);
    let cases: BTreeMap<(&str, &str), &[&str]> = BTreeMap::from([
        (("src/store/x.rs", "use crate::gate::Files;"), &["src/store/x.rs: store names gate"][..]),
        (("src/store/x.rs", "use crate::{document::path, policy::Cage};"), &["src/store/x.rs: store names policy"]),
        (("src/store/x.rs", "use super::super::cli::exit;"), &["src/store/x.rs: store names cli"]),
        (("src/store/mod.rs", "use super::cli::exit;"), &["src/store/mod.rs: store names cli"]),
        (("src/phase/x.rs", "use crate::gate::Files;\nuse crate::phase::path;"), &[]),
        (("src/utils/x.rs", ""), &["src/utils/x.rs: the module utils has no floor"]),
        (("src/gate/x.rs", "// crate::cli\nlet x = \"crate::cli\"; let y = r#\"crate::cli\"#; let z = '\"';"), &[]),
        (("src/gate/x.rs", "#[cfg(test)]\nmod tests {\n    use crate::cli::exit;\n}\n"), &[]),
        (("src/gate/x.rs", "#[cfg(test)]\nmod tests {}\nuse crate::cli::exit;\n"), &["src/gate/x.rs: gate names cli"]),
        (("src/gate/x.rs", "#[derive(Clone, Serialize)]"), &["src/gate/x.rs: serde derives (derive(Serialize)"]),
        (("src/gate/x.rs", "#[derive(serde::Deserialize)]"), &["src/gate/x.rs: serde derives (derive(Deserialize)"]),
        (("src/document/x.rs", "#[derive(Serialize)]"), &[]),
        (("src/gate/x.rs", "Command::new(a)"), &["src/gate/x.rs: processes (Command::new()"]),
        (("src/gate/x.rs", "CbiaCommand::new(a)"), &[]),
        (("src/gate/x.rs", "println!(a)"), &["src/gate/x.rs: printing (println!)"]),
        (("src/cli/ui.rs", "println!(a)"), &[]),
        (
            ("src/gate/x.rs", "std::env::var(a)"),
            &["src/gate/x.rs: the environment (env::)", "src/gate/x.rs: the environment (std::env)"],
        ),
        (("src/gate/x.rs", "SystemTime::now()"), &["src/gate/x.rs: the clock (SystemTime::now)"]),
        (("src/gate/x.rs", "dbg!(a)"), &["src/gate/x.rs: leftovers (dbg!()"]),
        (("src/pipeline/x.rs", "fn f() { crate::gate::assurance::admit(c, a) }"), &["src/pipeline/x.rs: the admission (admit()"]),
        (("src/pipeline/x.rs", "fn f() { settle.admitted(c) }"), &[]),
        (("src/gate/x.rs", "// TODO: later"), &["src/gate/x.rs: TODO"]),
        (("src/gate/x.rs", long.as_str()), &["src/gate/x.rs: 501 lines of code"]),
    ]);
    for ((path, text), expected) in cases {
        assert_eq!(check(path, text), expected, "{path}: {}", &text[..text.len().min(80)]);
    }
}
