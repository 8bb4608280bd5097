//! Why a stored run does not hold, as precisely as can be told, so that every forgery has a name of its own.

use super::evidence::Run;
use super::paths::document;
use super::unreadable;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::gen_exchange::OutputsManifest;
use crate::document::schema::Kind;
use crate::gate::paths::CAPSULE_PATH;
use crate::phase::r#gen::OUTPUTS_PATH;
use crate::pipeline::rederive::{LAST_PHASE, OTHER_CHAIN};
use crate::store::Store;
use crate::store::object::trailers;

/// The evidence of the decision.
const DECISION: [&str; 4] = ["opa/input.json", "opa/decision.json", "opa/explain.json", "opa/bundle.hash"];

/// The run's last phase commit, shortened.
pub fn short(run: &Run) -> String {
    run.tip.to_hex_with_len(12).to_string()
}

/// A finding about a run.
pub fn refused(code: Code, run: &Run, message: String) -> Finding {
    let again = "run git cbia run, which puts aside what does not hold and makes the run again, then push";
    Finding::error(code, message).at(&run.name).hint(again)
}

/// Whether a run is called by its own keys.
pub fn is_named(run: &Run, state_key: Digest, executor_key: Digest) -> bool {
    run.state_key == state_key && run.executor_key == executor_key
}

/// A run that is called by another's keys.
pub fn renamed(run: &Run) -> Finding {
    let message = format!("the stored run {} is refused: it is of another state or executor than its ref says", short(run));
    refused(Code::RunRenamed, run, message)
}

/// What the last phase commit says of itself. It proves nothing, and is looked at first because it costs nothing.
pub fn chain(store: &Store, run: &Run) -> Result<(), Finding> {
    let commit = store
        .read_commit(&run.tip)
        .map_err(|error| unreadable(&format!("the stored run {} cannot be read", short(run)), &error).at(&run.name))?;
    let trailers = trailers(&commit);
    let says = |key: &str| trailers.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let (state, executor) = (run.state_key.to_string(), run.executor_key.to_string());
    if says("Cbia-State-Key").is_some_and(|key| key != state) || says("Cbia-Executor-Key").is_some_and(|key| key != executor) {
        return Err(renamed(run));
    }
    match says("Cbia-Phase") {
        Some(phase) if phase == LAST_PHASE.as_str() => Ok(()),
        phase => {
            let ends = phase.map_or("no phase".to_owned(), crate::document::path::printable);
            let message = format!("the stored run {} is refused: it ends with {ends}, not with {LAST_PHASE}", short(run));
            Err(refused(Code::RunIncomplete, run, message))
        }
    }
}

/// How many bytes the artifacts of a run say that they have together; what says more than it has is found out later, and what has more than
/// it says is not read.
pub fn size(store: &Store, run: &Run) -> Result<u64, Finding> {
    let tree = store
        .tree_of(&run.tip)
        .map_err(|error| unreadable(&format!("the stored run {} cannot be read", short(run)), &error).at(&run.name))?;
    let outputs = document::<OutputsManifest>(store, tree, Kind::OutputsManifest, OUTPUTS_PATH).ok().flatten();
    // Without a manifest it is no run, which is told by those who read the rest of it.
    Ok(outputs.map_or(0, |sealed| sealed.document.artifacts.iter().fold(0, |sum: u64, file| sum.saturating_add(file.bytes))))
}

/// What is wrong with a run that is not the one that its state comes to.
pub fn why(run: &Run, finding: Finding) -> Finding {
    let message = finding.message.clone();
    let code = if message.contains(CAPSULE_PATH) {
        Code::CapsuleForged
    } else if DECISION.iter().any(|at| message.contains(at)) {
        Code::DecisionForged
    } else if message.ends_with(OTHER_CHAIN) {
        Code::PhaseForged
    } else {
        finding.code
    };
    refused(code, run, message)
}
