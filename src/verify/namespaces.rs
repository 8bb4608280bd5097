//! Whose corner of a repository counts for which refs. What an untrusted writer keeps in a namespace of its own, `refs/cbia/ns/<name>/`, is
//! read by nobody who does not name it; a server that wants its evidence to count for some branches says so, and says for which.

use super::Verifier;
use crate::document::finding::{Code, Finding};
use crate::document::glob::Globs;
use crate::document::path::{RepoPath, printable};
use crate::store::Store;

/// The setting.
const KEY: &str = "cbia.evidenceNamespace";

/// The namespaces whose evidence counts.
#[derive(Default)]
pub struct Namespaces(Vec<Namespace>);

struct Namespace {
    /// What its refs begin with.
    prefix: String,
    /// The refs that it counts for; nothing where it counts for all.
    refs: Option<Globs>,
}

impl Namespaces {
    /// Those that `cbia.evidenceNamespace` names: a name each, and the patterns of the refs that it counts for.
    pub fn of(store: &Store) -> Result<Self, Finding> {
        store.config_strings(KEY).iter().map(|value| Namespace::parse(value)).collect::<Result<_, _>>().map(Self)
    }

    /// What the refs of those begin with that count for a ref. Without a ref, those that count for all.
    pub fn counting(&self, name: Option<&str>) -> Vec<String> {
        let name = name.and_then(|name| name.parse::<RepoPath>().ok());
        let counts = |space: &&Namespace| match (&space.refs, &name) {
            (None, _) => true,
            (Some(refs), Some(name)) => refs.matches(name),
            (Some(_), None) => false,
        };
        self.0.iter().filter(counts).map(|space| space.prefix.clone()).collect()
    }
}

impl Namespace {
    fn parse(value: &str) -> Result<Self, Finding> {
        let wrong = |why: &str| {
            let finding = Finding::error(Code::SettingInvalid, format!("{KEY} is '{}': {why}", printable(value)));
            finding.at(KEY).hint(format!("git config --add {KEY} 'pulls refs/heads/pulls/**'"))
        };
        let mut words = value.split_ascii_whitespace();
        let name = words.next().ok_or_else(|| wrong("it names none"))?;
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte));
        if !plain || name.starts_with('.') {
            return Err(wrong("a namespace has small letters, digits, '.', '-' and '_'"));
        }
        let patterns: Vec<&str> = words.collect();
        let refs = match patterns.is_empty() {
            true => None,
            false => Some(Globs::new(&patterns).map_err(|error| wrong(&error.to_string()))?),
        };
        Ok(Self { prefix: format!("refs/cbia/ns/{name}/"), refs })
    }
}

impl Verifier<'_> {
    /// From now on, evidence below these counts beside everybody's.
    pub(super) fn count(&mut self, namespaces: &[String]) {
        if self.evidence.count(namespaces) {
            // What was found, was found in what counted then.
            self.verdicts.clear();
            self.surveyed = None;
            self.signers.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::Repo;

    #[test]
    fn a_namespace_counts_for_the_refs_that_are_named_with_it() {
        let repo = Repo::new();
        repo.git(&["config", "--add", "cbia.evidenceNamespace", "pulls refs/heads/pulls/** refs/heads/x"]);
        repo.git(&["config", "--add", "cbia.evidenceNamespace", "bots"]);
        let spaces = Namespaces::of(&repo.store()).unwrap();
        let (pulls, bots) = ("refs/cbia/ns/pulls/", "refs/cbia/ns/bots/");
        for (name, wanted) in [
            (Some("refs/heads/pulls/1"), &[pulls, bots][..]),
            (Some("refs/heads/x"), &[pulls, bots]),
            (Some("refs/heads/main"), &[bots]),
            (None, &[bots]),
        ] {
            assert_eq!(spaces.counting(name), wanted, "{name:?}");
        }
    }

    #[test]
    fn what_names_no_namespace_is_refused() {
        for value in ["", "  ", "../runs", "a/b", "Pulls", ".", "pulls [", "pulls /x"] {
            assert_eq!(Namespace::parse(value).err().map(|f| f.code), Some(Code::SettingInvalid), "{value}");
        }
    }
}
