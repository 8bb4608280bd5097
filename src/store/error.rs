//! Why the store could not do what it was asked.

use super::lock::LockError;
use super::object::ObjectError;
use super::open::RevisionError;
use super::pack::WriteError;
use super::refs::RefError;
use super::tree::TreeError;
use crate::document::path::PathError;

/// An error of the store. What a stored document says wrong is a finding, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A ref cannot be read or written.
    #[error(transparent)]
    Ref(#[from] RefError),
    /// An object cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// An object cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A revision cannot be resolved.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// A path cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Somebody else moved the ref at the same time.
    #[error("the ref {name} was moved by another process at the same time")]
    Moved {
        /// The ref.
        name: String,
    },
    /// The ledger has no whole record left.
    #[error("the ledger {name} is damaged, and no whole record of it is known here")]
    Damaged {
        /// The ref.
        name: String,
    },
    /// A ledger commit's document cannot be read.
    #[error("the ledger record {id} cannot be read: {what}")]
    Record {
        /// The commit.
        id: super::Oid,
        /// What is wrong with it.
        what: String,
    },
    /// The journal of tips cannot be kept.
    #[error("the journal of the ledger cannot be written")]
    Journal(#[source] std::io::Error),
    /// A signature was asked for, and could not be made.
    #[error(transparent)]
    Git(#[from] super::git::GitError),
}

/// Makes an error of a floor above out of what the parts of the store give, each by way of [`StoreError`].
macro_rules! through_store {
    ($target:ty: $($error:ty),+) => {
        $(impl From<$error> for $target {
            fn from(error: $error) -> Self {
                $crate::store::StoreError::from(error).into()
            }
        })+
    };
}

pub(crate) use through_store;
