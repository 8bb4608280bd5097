//! A stored run held against the state it claims, by the same functions that made it. Nothing is written, and of the run nothing is
//! believed but what the generator made: its bytes, each hashed again, and the versions that it reports.

use std::collections::{BTreeMap, HashSet};

use super::PipelineError;
use super::inputs::Inputs;
use super::step::{Admitted, Documents};
pub use super::step::{Gates, OTHER_CHAIN, gates};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::schema::{Kind, load};
use crate::document::selection::Selection;
use crate::phase::r#gen;
use crate::phase::select::SELECTION_PATH;
use crate::phase::{Judge, path};
use crate::policy::{Cage, Evaluation, Question, evaluate};
use crate::store::{Oid, Store};

/// The phase that a whole run ends with.
pub const LAST_PHASE: Phase = Phase::Eval;

/// Asks the policies anew each time, and remembers nothing between processes: what is remembered in a repository that takes pushes may
/// have been pushed.
pub struct Forgetful<'a> {
    cage: &'a Cage,
}

impl<'a> Forgetful<'a> {
    /// A judge.
    pub fn new(cage: &'a Cage) -> Self {
        Self { cage }
    }
}

impl Judge for Forgetful<'_> {
    fn judge(&mut self, question: &Question<'_>) -> Evaluation {
        evaluate(self.cage, question)
    }
}

/// A stored run that is the one that its state and its generator's output come to.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its artifacts as they are handed on: blobs by path.
    pub artifacts: BTreeMap<RepoPath, Oid>,
    /// SHA-256 by path.
    pub hashes: BTreeMap<RepoPath, Digest>,
    /// The artifacts that were pruned: they are in the run, and need not be anywhere else.
    pub pruned: Vec<RepoPath>,
}

/// Holds the stored run at `tip` against a state. A finding says why the run is refused; the gates must have admitted the state.
///
/// `believed` says of a blob and a SHA-256 whether they were seen to belong together before.
pub fn hold(
    store: &Store,
    inputs: &Inputs,
    gates: &Gates,
    tip: Oid,
    judge: &mut dyn Judge,
    believed: &dyn Fn(&Oid, &Digest) -> bool,
) -> Result<Result<Held, Finding>, PipelineError> {
    let (Some(admission), Ok(pipeline), Some(documents)) = (&gates.admission, &inputs.pipeline, Documents::of(inputs, gates))
    else {
        let message = "the gates do not admit the state of this run";
        return Ok(Err(Finding::error(Code::StateDenied, message)));
    };
    let input = r#gen::Input {
        admission,
        authority_ledger_hash: documents.ledger.sha256,
        pipeline: &pipeline.document,
        manifest: &inputs.manifest,
    };
    let key = r#gen::key(&input);
    let (state_key, executor_key) = (inputs.state_key(), inputs.executor.key());
    let admitted = Admitted { store, inputs, documents, gates, input: &input, key: &key, state_key, executor_key };
    let (made, whole) = match admitted.stored(tip, false, judge)? {
        Ok(stored) => stored,
        Err(finding) => return Ok(Err(finding)),
    };
    let output = whole.output;
    let pruned = match whole.evidence.get(&path(SELECTION_PATH)) {
        Some(bytes) => {
            let selection = load::<Selection>(Kind::Selection, &path(SELECTION_PATH), bytes);
            let Ok(selection) = selection else {
                return Ok(Err(Finding::error(Code::RunInvalid, "the selection of the run cannot be read")));
            };
            selection.document.artifacts.into_iter().filter(|artifact| !artifact.keep).map(|artifact| artifact.path).collect()
        }
        None => Vec::new(),
    };
    let mut looked_at = HashSet::new();
    for (file, ids) in made.files.iter().map(|file| (file, &made.ids)).chain(output.files.iter().map(|file| (file, &output.ids)))
    {
        let Some(id) = ids.get(&file.path) else { continue };
        // What no later phase changed is in both lists.
        if !looked_at.insert((*id, file.sha256)) || believed(id, &file.sha256) {
            continue;
        }
        let why = match store.read_blob(id, file.bytes) {
            Ok(bytes) if Digest::of(&bytes) == file.sha256 => continue,
            Ok(_) => format!("the artifact {} does not have the hash that the run gives", file.path),
            Err(error) => format!("the artifact {}: {}", file.path, spelled(&error)),
        };
        let message = format!("the stored run {} is refused: {why}", tip.to_hex_with_len(12));
        return Ok(Err(Finding::error(Code::RunInvalid, message).at(store.run_ref(&state_key, &executor_key)?)));
    }
    let hashes = output.files.iter().map(|file| (file.path.clone(), file.sha256)).collect();
    Ok(Ok(Held { artifacts: output.ids, hashes, pruned }))
}
