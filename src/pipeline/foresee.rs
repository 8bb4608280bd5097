//! What a run would come to where GEN's output is known and the run is not, because a later phase stopped it the last time: worked out as a
//! run would, with nothing executed and nothing stored.

use super::known::Known;
use super::step::{Admitted, Output};
use super::tail::{Means, Stop, Whole};
use crate::document::phase::Phase;
use crate::phase::Judge;
use crate::pipeline::run::Ended;
use crate::store::pack::Batch;

/// The end that a run would come to before its own, if that can be told: what an executor would repair, and what depends on artifacts that were
/// changed and are stored nowhere yet, is known when it was done.
pub(super) fn foresee(admitted: &Admitted<'_>, output: &Output, judge: &mut dyn Judge) -> Option<(Whole, Stop)> {
    let means = Means { known: Known::Cache, judge, sources: None, elsewhere: None, store_changes: false };
    // Where something cannot be read, the run itself says so.
    let whole = admitted.whole(&mut Batch::hashing(admitted.store), output, means).ok()?;
    let stop = whole.stopped.clone()?;
    let by_itself = match stop.phase {
        Phase::Repair => stop.ended == Ended::CheckFailed,
        phase => phase != Phase::Struct,
    };
    let stored = whole.output.ids.values().all(|id| admitted.store.contains(id));
    (by_itself && stored).then_some((whole, stop))
}
