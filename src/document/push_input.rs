//! What the push policy is asked: one update of a branch or tag.

use serde::{Deserialize, Serialize};

use super::finding::Finding;

/// The input of `data.push.allow`.
#[derive(Clone, Debug, Serialize)]
pub struct PushInput<'a> {
    /// Version of this format.
    pub schema_version: &'static str,
    /// The update.
    pub update: PushedUpdate,
    /// Every path that differs between the two trees, names before a rename among them, in byte order.
    pub changed: Vec<String>,
    /// Whether there are more than are told.
    pub changed_cut: bool,
    /// Whether the repository named its maintainers before the update: `control/maintainers.allowed_signers`.
    pub maintained: bool,
    /// Who of them has attested the run that the update rests on.
    pub attestations: Vec<Attestation>,
    /// Who pushes, as the server says; null where it does not say.
    pub pusher: Option<Pusher>,
    /// What the verification found.
    pub findings: &'a [Finding],
}

/// One update.
#[derive(Clone, Debug, Serialize)]
pub struct PushedUpdate {
    /// The full name of the branch or tag; empty where a range of commits is verified without one.
    pub r#ref: String,
    /// What becomes of it.
    pub kind: UpdateKind,
    /// The commit before, hexadecimal; null for a new one.
    pub old: Option<String>,
    /// The commit after, hexadecimal; null for one that is deleted.
    pub new: Option<String>,
}

/// What becomes of a branch or tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateKind {
    /// It is new.
    Create,
    /// It goes on from where it was.
    Update,
    /// It loses commits.
    Rewind,
    /// It is deleted.
    Delete,
}

/// One attestation.
#[derive(Clone, Debug, Serialize)]
pub struct Attestation {
    /// The signer's name, as the list of allowed signers has it.
    pub signer: String,
}

/// Who pushes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pusher {
    /// The name that the server knows the person by.
    pub name: String,
    /// The variable that says so, such as `GL_USERNAME`.
    pub source: String,
}
