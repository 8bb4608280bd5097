//! F4: the pipeline. [`run`] is the order, read top to bottom; the other files are what it is made of.

pub mod chain;
pub mod finished;
mod foresee;
pub mod inputs;
pub mod judge;
mod keep;
mod known;
pub mod miss;
pub mod promote;
pub mod rederive;
mod repeat;
mod rerun;
mod reuse;
pub mod run;
mod seal;
mod settle;
mod step;
mod tail;

pub use self::rerun::{Rerun, rerun};
pub use self::step::counted;
use crate::store::StoreError;
use crate::store::materialise::MaterialiseError;
use crate::store::promote::PromoteError;
use crate::store::snapshot::ScanError;

/// Why a command could not be carried out. What the documents or the policy say wrong is a finding, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The inputs cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The work tree cannot be written.
    #[error(transparent)]
    Materialise(#[from] MaterialiseError),
    /// A promotion cannot be made.
    #[error(transparent)]
    Promote(#[from] PromoteError),
    /// The repository cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::through_store!(
    PipelineError: crate::store::refs::RefError,
    crate::store::object::ObjectError,
    crate::store::pack::WriteError,
    crate::store::tree::TreeError,
    crate::store::lock::LockError,
    crate::store::open::RevisionError,
    crate::document::path::PathError
);
