//! What can be told of a tree without deriving anything: that nothing changed that matters, or that its run was worked out here, or that
//! enough of those whose word stands for deriving it have attested it.
//!
//! Only what is in order is told here. Whatever is not seen to be at once is looked at as a whole, which says what is wrong with it. Documents are
//! read without their schemas: they are those of a tree that vouches, or of a state that was worked out.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashSet};

use super::evidence::Run;
use super::paths::{MAX_DOCUMENT, blob_at, document, is_at_or_below};
use super::state::{config_of, is_configured, parts};
use super::{TreeVerdict, Verifier, VerifyError};
use crate::document::authority_ledger::AuthorityLedger;
use crate::document::executor::ExecutorConfig;
use crate::document::glob::Globs;
use crate::document::path::RepoPath;
use crate::document::pipeline::{Outline, Text};
use crate::document::schema::Kind;
use crate::gate::authority::LEDGER_PATH;
use crate::gate::paths::{AUDIT_MANIFEST_PATH, EXECUTOR_CONFIG_PATH, PIPELINE_PATH, is_always_read};
use crate::pipeline::finished::has_every_phase;
use crate::pipeline::inputs;

use crate::store::compare::{Everything, Interest};
use crate::store::tree::TreeLimits;
use crate::store::{Oid, Store};

impl Verifier<'_> {
    /// The verdict of a tree that is in order, if that shows at once.
    pub(super) fn at_a_glance(
        &mut self,
        tree: Oid,
        before: Option<Oid>,
        trusted: bool,
    ) -> Result<Option<TreeVerdict>, VerifyError> {
        let Some(blob) = blob_at(self.store, tree, PIPELINE_PATH) else { return Ok(None) };
        let blob_before = before.and_then(|before| blob_at(self.store, before, PIPELINE_PATH)).filter(|before| *before != blob);
        let read = |id: &Oid| self.store.read_blob(id, MAX_DOCUMENT).ok();
        let (bytes, bytes_before) = (read(&blob), blob_before.as_ref().and_then(read));
        let outline = |bytes| serde_json::from_slice::<Outline<'_>>(bytes).ok();
        // What cannot be read of the tree before declares nothing.
        let (own, previous) = (bytes.as_deref().and_then(outline), bytes_before.as_deref().and_then(outline));
        let Some(own) = own else { return Ok(None) };
        let generated = Generated::new([&own].into_iter().chain(&previous));
        let (Some(generated), Some(named)) = (generated, Named::new(self.store, tree, &own)) else { return Ok(None) };
        if let (Some(before), true) = (before, trusted)
            && let Ok(changed) =
                self.store.compare_within(Some(before), Some(tree), &Everything, TreeLimits::default(), self.budgets.names.left())
            // Whatever decides what the generated files should be, and these files themselves.
            && !generated.holds_any(changed.iter().map(|difference| difference.path.as_slice()))
            && !changed.iter().any(|difference| decides_always(&difference.path) || named.holds(&difference.path))
        {
            self.unchanged.insert((tree, before));
            return Ok(Some(TreeVerdict::default()));
        }
        if self.means.own_work || self.believes_words() { self.by_word(tree, before, &named, &generated) } else { Ok(None) }
    }

    /// The verdict of a tree whose run is believed without deriving it: this clone worked it out itself, or enough signers attested it, where
    /// that counts. The run's commit names every byte of it, so that nothing is left to see but that the tree has its state, its executor,
    /// and its files.
    fn by_word(
        &mut self,
        tree: Oid,
        before: Option<Oid>,
        named: &Named,
        generated: &Generated<'_>,
    ) -> Result<Option<TreeVerdict>, VerifyError> {
        let Some(exact) = named.exact.iter().map(|path| path.parse().ok()).collect::<Option<Vec<RepoPath>>>() else {
            return Ok(None);
        };
        let Ok(Some(state_key)) = inputs::key_of(self.store, tree, &named.inputs, exact) else { return Ok(None) };
        for run in self.evidence.of_state(&state_key)? {
            let worked_out = self.means.own_work && self.store.worked_out_here(&run.tip, &run.state_key, &run.executor_key);
            let believed = match worked_out {
                true => self.is_of(tree, before, &run, generated) && self.doubts(&run)?.is_empty(),
                false => self.is_vouched_for(&run, |here| here.is_finished(&run) && here.is_of(tree, before, &run, generated))?,
            };
            if believed {
                let rests_on = vec![run.clone()];
                let (state_key, run, attested) = (Some(state_key), Some(run), !worked_out);
                return Ok(Some(TreeVerdict { state_key, run, rests_on, attested, ..TreeVerdict::default() }));
            }
        }
        Ok(None)
    }

    /// Whether a run has the commits of one that went through every phase.
    fn is_finished(&self, run: &Run) -> bool {
        has_every_phase(self.store, run.tip, &run.state_key, &run.executor_key)
    }

    /// Whether a tree has the executor and the files of a run of its state.
    fn is_of(&self, tree: Oid, before: Option<Oid>, run: &Run, generated: &Generated<'_>) -> bool {
        self.is_asked_for(tree, before, run) && self.has_files_of(tree, run, generated)
    }

    /// Whether the tree configures the executor of the run. The executor's scripts are part of the state.
    fn is_asked_for(&self, tree: Oid, before: Option<Oid>, run: &Run) -> bool {
        let config = document::<ExecutorConfig>(self.store, tree, Kind::ExecutorConfig, EXECUTOR_CONFIG_PATH);
        let (Ok(config), Ok((executor, _))) = (config, parts(self.store, run)) else { return false };
        let withdrawn = if config.is_none() { config_of(self.store, before) } else { None };
        let config = config.as_ref().map(|config| &config.document);
        executor.key() == run.executor_key && is_configured(config, withdrawn.as_ref(), &executor)
    }

    /// Whether exactly the run's files lie at the generated paths.
    fn has_files_of(&self, tree: Oid, run: &Run, generated: &Generated<'_>) -> bool {
        let Ok(made) = self.store.tree_of(&run.tip) else { return false };
        self.store.compare(Some(made), Some(tree), generated, TreeLimits::default()).is_ok_and(|found| found.is_empty())
    }
}

/// Whether a change at this path matters because of where it is, whatever is declared.
fn decides_always(path: &[u8]) -> bool {
    const FOLDERS: [&[u8]; 3] = [b"control", b"policy", b"schemas"];
    let Some(folder) = FOLDERS.into_iter().find(|folder| is_at_or_below(path, folder)) else {
        // A folder on the way may itself be a file or a link.
        return is_at_or_below(AUDIT_MANIFEST_PATH.as_bytes(), path);
    };
    let text = std::str::from_utf8(path).ok();
    let valid = text.and_then(|text| text.parse::<RepoPath>().ok());
    path == folder || text == Some(EXECUTOR_CONFIG_PATH) || valid.is_none_or(|path| is_always_read(&path))
}

/// The paths where files are generated, by one declaration or several.
struct Generated<'a> {
    globs: Globs,
    roots: Vec<Vec<u8>>,
    outlines: Vec<&'a Outline<'a>>,
    /// The artifacts, as a file system that ignores case names them.
    artifacts: OnceCell<HashSet<Cow<'a, str>>>,
}

impl<'a> Generated<'a> {
    fn new(outlines: impl IntoIterator<Item = &'a Outline<'a>>) -> Option<Self> {
        let outlines: Vec<_> = outlines.into_iter().collect();
        let patterns = outlines.iter().flat_map(|outline| &outline.r#gen.generated).map(|Text(pattern)| pattern);
        let globs = Globs::new(patterns).ok()?;
        let roots = globs.prefixes().into_iter().map(|root| root.to_lowercase().into_bytes()).collect();
        Some(Self { globs, roots, outlines, artifacts: OnceCell::new() })
    }

    fn named(&self) -> impl Iterator<Item = Cow<'a, str>> + '_ {
        self.outlines.iter().flat_map(|outline| &outline.r#gen.artifacts).map(|artifact| folded(&artifact.path.0))
    }

    fn artifacts(&self) -> &HashSet<Cow<'a, str>> {
        self.artifacts.get_or_init(|| self.named().collect())
    }

    /// Whether one of these paths is among them. There are fewer paths as a rule than artifacts, which are gone through once.
    fn holds_any<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) -> bool {
        let mut asked = HashSet::new();
        for path in paths {
            if self.globs.matches_bytes(path) || self.is_above(path) {
                return true;
            }
            asked.extend(std::str::from_utf8(path).ok().map(folded));
        }
        self.named().any(|artifact| asked.contains(&artifact))
    }

    /// Whether a path is where a folder of generated files should be.
    fn is_above(&self, path: &[u8]) -> bool {
        let longer = || self.roots.iter().filter(|root| root.len() >= path.len() && !path.is_empty());
        let folded = longer().next().map(|_| String::from_utf8_lossy(path).to_lowercase().into_bytes());
        folded.is_some_and(|path| longer().any(|root| is_at_or_below(root, &path)))
    }
}

impl Interest for Generated<'_> {
    fn may_hold(&self, folder: &[u8]) -> bool {
        let folder = String::from_utf8_lossy(folder).to_lowercase().into_bytes();
        self.roots.iter().any(|root| is_at_or_below(root, &folder) || is_at_or_below(&folder, root))
            || self.artifacts().iter().any(|path| is_at_or_below(path.as_bytes(), &folder))
    }

    fn holds(&self, path: &[u8]) -> bool {
        let is_artifact = || std::str::from_utf8(path).is_ok_and(|path| self.artifacts().contains(&folded(path)));
        self.globs.matches_bytes(path) || is_artifact() || self.is_above(path)
    }
}

/// As [`RepoPath::fold_key`] does it.
fn folded(path: &str) -> Cow<'_, str> {
    let lower = path.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if lower { Cow::Borrowed(path) } else { Cow::Owned(path.to_lowercase()) }
}

/// What the documents of a tree name beside what decides always.
struct Named {
    inputs: Globs,
    /// Authorities and templates.
    exact: BTreeSet<String>,
}

impl Named {
    fn new(store: &Store, tree: Oid, outline: &Outline<'_>) -> Option<Self> {
        let inputs = Globs::new(outline.inputs.iter().map(|Text(pattern)| pattern)).ok()?;
        let mut exact = BTreeSet::new();
        // Most name the one that was named before.
        let mut last = "";
        for Text(template) in outline.r#gen.artifacts.iter().filter_map(|artifact| artifact.template.as_ref()) {
            if template != last {
                exact.insert(template.clone().into_owned());
                last = template;
            }
        }
        if let Some(id) = blob_at(store, tree, LEDGER_PATH) {
            let ledger: AuthorityLedger = serde_json::from_slice(&store.read_blob(&id, MAX_DOCUMENT).ok()?).ok()?;
            exact.extend(ledger.authority_set.iter().filter_map(|authority| authority.file()).map(String::from));
        }
        Some(Self { inputs, exact })
    }

    fn holds(&self, path: &[u8]) -> bool {
        self.inputs.matches_bytes(path) || std::str::from_utf8(path).is_ok_and(|path| self.exact.contains(path))
    }
}
