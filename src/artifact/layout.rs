//! FLOW: where the accepted artifacts go in the final package.

use std::collections::{BTreeMap, BTreeSet};

use super::{PIPELINE, pattern};
use crate::document::SCHEMA_VERSION;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::flow_manifest::{FlowManifest, PackagedFile};
use crate::document::glob::Globs;
use crate::document::inputs_manifest::FileEntry;
use crate::document::path::{RepoPath, printable};
use crate::document::phase::Phase;
use crate::document::pipeline::LayoutRule;

/// Where the package goes if the pipeline declares no layout.
pub const DEFAULT_FOLDER: &str = "dist/bundle/";

/// The layout of a pipeline that declares none: everything, below [`DEFAULT_FOLDER`], at its own path.
pub fn default_layout() -> Vec<LayoutRule> {
    vec![LayoutRule { from: "**".into(), to: DEFAULT_FOLDER.into() }]
}

/// What the package is made of.
pub struct Input<'a> {
    /// The artifacts that were kept, in any order.
    pub kept: &'a [FileEntry],
    /// Every artifact of the run, kept or not: no file of the package may take the place of another one.
    pub artifacts: &'a BTreeSet<RepoPath>,
    /// In declared order; the first that matches an artifact places it.
    pub layout: &'a [LayoutRule],
    /// Why a file may not lie at a path, if it may not: the places that git cbia keeps for itself.
    pub reserved: &'a dyn Fn(&RepoPath) -> Option<&'static str>,
}

/// The package. Below the literal beginning of the rule's pattern an artifact keeps its relative path; an artifact that the
/// pattern names outright keeps its name. An artifact that no rule places is refused: what is not wanted is for SELECT to prune.
pub fn lay_out(input: &Input) -> Result<FlowManifest, Vec<Finding>> {
    let mut findings = Vec::new();
    let mut rules = Vec::new();
    for (index, rule) in input.layout.iter().enumerate() {
        match Rule::new(rule) {
            Ok(rule) => rules.push(rule),
            Err(finding) => findings.push(Finding { pointer: Some(format!("/flow/layout/{index}")), ..finding.at(PIPELINE) }),
        }
    }
    // With a rule missing, others would place what it was meant for.
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut files = Vec::new();
    for file in input.kept {
        let Some(rule) = rules.iter().find(|rule| rule.from.matches(&file.path)) else {
            let message = format!("no rule of flow.layout places the accepted artifact {}", file.path);
            let hint = "add a rule for it, or let SELECT prune it";
            findings.push(Finding::error(Code::LayoutUnplaced, message).at(&file.path).hint(hint));
            continue;
        };
        match rule.place(&file.path, input.reserved) {
            Ok(path) => files.push(PackagedFile { path, origin: file.path.clone(), sha256: file.sha256, bytes: file.bytes }),
            Err(finding) => findings.push(finding),
        }
    }
    files.sort_by(|a, b| (&a.path, &a.origin).cmp(&(&b.path, &b.origin)));
    findings.extend(collisions(&files, input.artifacts));
    if !findings.is_empty() {
        return Err(findings);
    }
    Ok(FlowManifest {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::Flow,
        package_hash: Digest::of_listing(files.iter().map(|f| (&f.path, f.sha256))),
        files,
    })
}

struct Rule {
    from: Globs,
    /// The folder or file that everything it matches lies at or below; empty for the top.
    prefix: String,
    to: RepoPath,
}

impl Rule {
    fn new(rule: &LayoutRule) -> Result<Self, Finding> {
        let from = pattern(&rule.from)?;
        let wrong = |why: String| {
            let message = format!("the package cannot go to {}: {why}", printable(&rule.to));
            Finding::error(Code::LayoutDestination, message).hint("name a folder of the repository, ending in '/'")
        };
        let Some(folder) = rule.to.strip_suffix('/') else { return Err(wrong("it does not end in '/'".into())) };
        let to = folder.parse().map_err(|error: crate::document::path::PathError| wrong(error.reason))?;
        let prefix = from.prefixes().pop().unwrap_or_default();
        Ok(Self { from, prefix, to })
    }

    fn place(&self, path: &RepoPath, reserved: &dyn Fn(&RepoPath) -> Option<&'static str>) -> Result<RepoPath, Finding> {
        let text = path.as_str();
        let below = text.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
        let relative = match below {
            _ if self.prefix.is_empty() => text,
            Some(below) => below,
            None => text.rsplit('/').next().unwrap_or(text),
        };
        let refuse = |why: String| {
            let message = format!("the artifact {path} cannot go to {}/{}: {why}", self.to, printable(relative));
            Finding::error(Code::LayoutDestination, message).at(path).hint("choose another folder in flow.layout")
        };
        let place = self.to.join(relative).map_err(|error| refuse(error.reason))?;
        match reserved(&place) {
            Some(why) => Err(refuse(why.into())),
            None => Ok(place),
        }
    }
}

/// Files of the package that would be one file with another file of it or with an artifact, or a folder and a file at once, on
/// any platform. A file that stays where its artifact is collides with nothing.
fn collisions(files: &[PackagedFile], artifacts: &BTreeSet<RepoPath>) -> Vec<Finding> {
    // By folded path: who lies there. Artifacts come first, so that a file of the package is what is refused.
    let mut taken: BTreeMap<String, &RepoPath> = artifacts.iter().map(|path| (path.fold_key(), path)).collect();
    let mut folders: BTreeMap<String, &RepoPath> = BTreeMap::new();
    for path in artifacts {
        note_folders(&mut folders, &path.fold_key(), path);
    }
    let mut findings = Vec::new();
    let mut placed: BTreeMap<String, &PackagedFile> = BTreeMap::new();
    for file in files {
        let (key, mut refuse) = (file.path.fold_key(), |other: &RepoPath, how: &str| {
            let message = format!("{} would go to {}, {how} {other}", file.origin, file.path);
            let finding = Finding::error(Code::LayoutCollision, message).at(&file.path);
            findings.push(finding.hint("lay them out in different folders, or let SELECT prune one of them"));
        });
        if let Some(other) = placed.get(&key) {
            refuse(&other.origin, "and so would");
        } else if let Some(other) = taken.get(&key).filter(|other| ***other != file.path || file.origin != file.path) {
            refuse(other, "which is the place of");
        }
        if let Some(other) = folders.get(&key) {
            refuse(other, "which is a folder of");
        }
        if let Some(other) = folders_of(&key).find_map(|folder| taken.get(folder)) {
            refuse(other, "below the file");
        }
        note_folders(&mut folders, &key, &file.path);
        placed.insert(key.clone(), file);
        taken.entry(key).or_insert(&file.path);
    }
    findings
}

/// The folders that a path lies in, folded as it is.
fn folders_of(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').map(|(at, _)| &key[..at])
}

fn note_folders<'a>(folders: &mut BTreeMap<String, &'a RepoPath>, key: &str, path: &'a RepoPath) {
    for folder in folders_of(key) {
        match folders.get_mut(folder) {
            Some(last) => *last = path,
            None => drop(folders.insert(folder.to_owned(), path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{path, told};
    use super::*;

    fn lay(kept: &[&str], pruned: &[&str], layout: &[(&str, &str)]) -> Result<Vec<String>, Vec<String>> {
        let entry = |at: &&str| FileEntry { path: path(at), sha256: Digest::of(at.as_bytes()), bytes: at.len() as u64 };
        let kept: Vec<_> = kept.iter().map(entry).collect();
        let artifacts = kept.iter().map(|f| f.path.clone()).chain(pruned.iter().map(|p| path(p))).collect();
        let layout: Vec<_> = layout.iter().map(|(from, to)| LayoutRule { from: (*from).into(), to: (*to).into() }).collect();
        let reserved = |path: &RepoPath| path.is_under("control").then_some("it is kept");
        let run = |kept: &[FileEntry]| {
            lay_out(&Input { kept, artifacts: &artifacts, layout: &layout, reserved: &reserved }).map_err(|f| told(&f))
        };
        let manifest = run(&kept);
        let mut reversed = kept.clone();
        reversed.reverse();
        if let Ok(manifest) = &manifest {
            assert_eq!(*manifest, run(&reversed).unwrap(), "the order of the artifacts matters");
            let listing: Vec<_> = manifest.files.iter().map(|f| (&f.path, f.sha256)).collect();
            assert_eq!(manifest.package_hash, Digest::of_listing(listing));
        }
        manifest.map(|m| m.files.iter().map(|f| format!("{} < {} {}", f.path, f.origin, f.bytes)).collect())
    }

    #[test]
    fn the_relative_path_below_the_literal_prefix_is_kept() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[Case] = &[
            (
                &["artifacts/a/b.md", "artifacts/c"],
                &[("artifacts/**", "dist/")],
                &["dist/a/b.md < artifacts/a/b.md 16", "dist/c < artifacts/c 11"],
            ),
            (
                &["a/b/x.json", "a/b/y.md"],
                &[("a/*/*.json", "j/"), ("a/b/**", "m/n/")],
                &["j/b/x.json < a/b/x.json 10", "m/n/y.md < a/b/y.md 8"],
            ),
            (&["a/x.json"], &[("a/x.json", "j/")], &["j/x.json < a/x.json 8"]),
            (&["a/x.json"], &[("**", "dist/bundle/")], &["dist/bundle/a/x.json < a/x.json 8"]),
            (&["a/x"], &[("a/**", "a/")], &["a/x < a/x 3"]),
            (&[], &[], &[]),
        ];
        for (kept, layout, wanted) in cases {
            assert_eq!(lay(kept, &[], layout).unwrap(), *wanted, "{layout:?}");
        }
        let layout = default_layout();
        assert_eq!((layout[0].from.as_str(), layout[0].to.as_str()), ("**", "dist/bundle/"));
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[Case] = &[
            (&["a/x"], &[], &[("b/**", "d/")], &["layout-unplaced a/x"]),
            (&["a/x"], &[], &[("a/**", "d")], &["layout-destination control/pipeline.json"]),
            (&["a/x"], &[], &[("a/**", "../d/"), ("a/**", "/")], &["layout-destination control/pipeline.json"; 2]),
            (&["a/x"], &[], &[("a/[", "d/")], &["pattern-invalid control/pipeline.json"]),
            (&["a/x"], &[], &[("a/**", "control/")], &["layout-destination a/x"]),
            (&["a/x", "b/x"], &[], &[("a/**", "d/"), ("b/**", "d/")], &["layout-collision d/x"]),
            (&["a/x", "b/X"], &[], &[("a/**", "d/"), ("b/**", "D/")], &["layout-collision d/x"]),
            (&["a/x", "b/x/y"], &[], &[("a/**", "d/"), ("b/**", "d/")], &["layout-collision d/x/y"]),
            (&["a/x"], &["d/x"], &[("a/**", "d/")], &["layout-collision d/x"]),
            (&["a/x"], &["d/x/y"], &[("a/**", "d/")], &["layout-collision d/x"]),
            (&["a/x"], &["D"], &[("a/**", "d/")], &["layout-collision d/x"]),
            (&["a/x", "a/y"], &[], &[("a/x", "b/"), ("a/y", "a/x/")], &["layout-collision a/x/y"]),
            (&["a/x", "b/x"], &[], &[("b/*", "a/"), ("a/*", "c/")], &["layout-collision a/x"]),
        ];
        for (kept, pruned, layout, wanted) in cases {
            assert_eq!(lay(kept, pruned, layout).unwrap_err(), *wanted, "{kept:?} {layout:?}");
        }
    }

    #[test]
    fn a_destination_that_is_too_long_is_refused() {
        let deep = vec!["d".repeat(250); 16].join("/");
        let finding = lay(&[&deep], &[], &[("**", &format!("{}/", "e".repeat(200)))]).unwrap_err();
        assert_eq!(finding.len(), 1);
        assert!(finding[0].starts_with("layout-destination d"), "{finding:?}");
    }
}
