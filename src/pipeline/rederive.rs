//! A stored run held against the state it claims, by the same functions that made it. Nothing is written, and of the run nothing is
//! believed but what the generator made: its bytes, each hashed again, and the versions that it reports.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};

use super::PipelineError;
use super::inputs::Inputs;
use super::known::Known;
pub use super::step::Output;
use super::step::{Admitted, Documents, MAX_DOCUMENT, joined};
pub use super::step::{Gates, OTHER_CHAIN, gates};
use super::tail::{Means, Whole};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::inputs_manifest::FileEntry;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::pipeline::Pipeline;
use crate::phase::r#gen;
use crate::phase::{Judge, opa_gate, path};
use crate::policy::{Ahead, Cage, Evaluation, Prepared, Question};
use crate::store::object::Reader;
use crate::store::pack::Batch;
use crate::store::{Oid, Store};

/// The phase that a whole run ends with.
pub const LAST_PHASE: Phase = Phase::Eval;

/// Asks the policies anew each time, and remembers nothing between processes: what is remembered in a repository that takes pushes may
/// have been pushed.
pub struct Forgetful<'a> {
    cage: &'a Cage,
    ahead: Ahead,
}

impl<'a> Forgetful<'a> {
    /// A judge.
    pub fn new(cage: &'a Cage) -> Self {
        Self { cage, ahead: Ahead::default() }
    }
}

impl Judge for Forgetful<'_> {
    fn judge(&mut self, question: &Question<'_>) -> Evaluation {
        self.ahead.evaluate(self.cage, question)
    }

    fn expect(&mut self, question: &Question<'_>) -> bool {
        self.ahead.begin(self.cage, question)
    }
}

/// A stored run that is the one that its state and its generator's output come to.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its artifacts as they are handed on.
    pub output: Output,
    /// The files of its package: blobs by path.
    pub package: BTreeMap<RepoPath, Oid>,
    /// The artifacts that were pruned: they are in the run, and need not be anywhere else.
    pub pruned: Vec<RepoPath>,
}

/// Says what EVAL will ask if the stored run at `tip` is right about it. What it does ask is what the phases come to: nothing is taken from the
/// run. It takes long enough to be begun as soon as possible.
pub fn announce(store: &Store, inputs: &Inputs, tip: Oid, judge: &mut dyn Judge) {
    let Ok(bundle) = &inputs.bundle else { return };
    let id = store.tree_of(&tip).ok().and_then(|tree| store.lookup(&tree, &path(opa_gate::INPUT_PATH)).ok()?);
    let Some(Ok(text)) = id.map(|id| store.read_blob(&id, MAX_DOCUMENT)) else { return };
    judge.expect(&Question { bundle, query: opa_gate::QUERY, input: &Prepared::emitted(&text) });
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
    let held = admitted(store, inputs, gates, |pipeline| pipeline, |admitted| hold_admitted(admitted, tip, judge, believed));
    held.unwrap_or_else(|finding| Ok(Err(finding)))
}

/// The phase that refuses, and why.
pub type Refused = (Phase, Vec<Finding>);

/// Why a state is not admitted with these artifacts, whoever made them, and by which phase: what the phases after GEN have against it, EVAL's
/// question to the policy among them. Nothing is repaired. Otherwise the files of the package that it comes to: blobs by path.
pub fn admits(
    store: &Store,
    inputs: &Inputs,
    gates: &Gates,
    output: &Output,
    judge: &mut dyn Judge,
) -> Result<Result<BTreeMap<RepoPath, Oid>, Refused>, PipelineError> {
    let come_to = |admitted: &Admitted<'_>| {
        let means = Means { known: Known::Doubted(Vec::new()), judge, sources: None, elsewhere: None, store_changes: false };
        let whole = admitted.whole(&mut Batch::hashing(store), output, means)?;
        if let Some(stop) = whole.stopped {
            return Ok(Err((stop.phase, stop.findings)));
        }
        let other = whole.output.files.iter().find(|file| whole.output.ids.get(&file.path) != output.ids.get(&file.path));
        Ok(match other {
            None => Ok(package(&whole)),
            Some(file) => {
                let message = format!("{} is not in the form that the pipeline gives it", file.path);
                Err((Phase::Struct, vec![Finding::error(Code::ArtifactNotNormal, message).at(&file.path)]))
            }
        })
    };
    let unrepaired = |pipeline: &Pipeline| Pipeline { repair: None, ..pipeline.clone() };
    admitted(store, inputs, gates, unrepaired, come_to).unwrap_or_else(|finding| Ok(Err((Phase::OpaGate, vec![finding]))))
}

/// The package of a run.
fn package(whole: &Whole) -> BTreeMap<RepoPath, Oid> {
    let files = whole.package.iter().flat_map(|package| &package.files);
    files.filter_map(|file| Some((file.path.clone(), *whole.output.ids.get(&file.origin)?))).collect()
}

/// What `asked` comes to of a state that the gates admitted, by its declaration or by what is made of that.
fn admitted<'a, P: Borrow<Pipeline>, T>(
    store: &Store,
    inputs: &'a Inputs,
    gates: &Gates,
    declaration: impl FnOnce(&'a Pipeline) -> P,
    asked: impl FnOnce(&Admitted<'_>) -> T,
) -> Result<T, Finding> {
    let (Some(admission), Ok(pipeline), Some(documents)) = (&gates.admission, &inputs.pipeline, Documents::of(inputs, gates))
    else {
        return Err(Finding::error(Code::StateDenied, "the gates do not admit the state of this run"));
    };
    let pipeline = declaration(&pipeline.document);
    let input = r#gen::Input {
        admission,
        authority_ledger_hash: documents.ledger.sha256,
        pipeline: pipeline.borrow(),
        manifest: &inputs.manifest,
    };
    let key = r#gen::key(&input);
    let (state_key, executor_key) = (inputs.state_key(), inputs.executor.key());
    Ok(asked(&Admitted { store, inputs, documents, gates, input: &input, key: &key, state_key, executor_key }))
}

fn hold_admitted(
    admitted: &Admitted<'_>,
    tip: Oid,
    judge: &mut dyn Judge,
    believed: &dyn Fn(&Oid, &Digest) -> bool,
) -> Result<Result<Held, Finding>, PipelineError> {
    let Admitted { store, state_key, executor_key, .. } = admitted;
    let handed = match admitted.handed(tip) {
        Ok(handed) => handed,
        Err(finding) => return Ok(Err(finding)),
    };
    let wanted = unseen(&handed.output, believed);
    let (wrong, held) = std::thread::scope(|scope| {
        let (reader, wanted) = (store.reader(), &wanted);
        let hashing = scope.spawn(move || wrong(&reader, wanted));
        let held = admitted.hold(handed, false, judge);
        (joined(hashing), held)
    });
    let (_, whole) = match held? {
        Ok(stored) => stored,
        Err(finding) => return Ok(Err(finding)),
    };
    let package = package(&whole);
    let Whole { output, pruned, .. } = whole;
    // What a later phase changed is in another list than what was handed on.
    let before: HashSet<(Oid, Digest)> = wanted.iter().map(|unseen| (unseen.id, unseen.file.sha256)).collect();
    let later = unseen(&output, &|id, sha256| before.contains(&(*id, *sha256)) || believed(id, sha256));
    if let Some(why) = wrong.or_else(|| self::wrong(&store.reader(), &later)) {
        let message = format!("the stored run {} is refused: {why}", tip.to_hex_with_len(12));
        return Ok(Err(Finding::error(Code::RunInvalid, message).at(store.run_ref(state_key, executor_key)?)));
    }
    Ok(Ok(Held { output, package, pruned }))
}

/// An artifact whose bytes are to be held against its SHA-256.
struct Unseen {
    file: FileEntry,
    id: Oid,
}

fn unseen(output: &Output, seen: &dyn Fn(&Oid, &Digest) -> bool) -> Vec<Unseen> {
    let files = output.files.iter().filter_map(|file| Some((file, *output.ids.get(&file.path)?)));
    files.filter(|(file, id)| !seen(id, &file.sha256)).map(|(file, id)| Unseen { file: file.clone(), id }).collect()
}

/// What is wrong with the first artifact whose bytes are not both what its object's name says and what its SHA-256 does.
fn wrong(reader: &Reader, artifacts: &[Unseen]) -> Option<String> {
    let mut looked_at = HashSet::new();
    artifacts.iter().filter(|unseen| looked_at.insert((unseen.id, unseen.file.sha256))).find_map(|Unseen { file, id }| {
        match reader.read_blob(id, file.bytes) {
            Ok(bytes) if Digest::of(&bytes) == file.sha256 => None,
            Ok(_) => Some(format!("the artifact {} does not have the hash that the run gives", file.path)),
            Err(error) => Some(format!("the artifact {}: {}", file.path, spelled(&error))),
        }
    })
}
