//! What a remote refuses, found out by offering it.
//!
//! A bad update is pushed together with two branches of which one would be a folder of the other: no server can take all three, and
//! a push of one transaction is taken whole or not at all. So nothing is written, also by a server that would have taken the bad update,
//! and what the server says tells whether it came that far.

use serde_json::{Value, json};

use super::super::error::CommandError;
use super::git;
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::path::RepoPath;
use crate::store::durable::Durability;
use crate::store::git::{Answered, GitError};
use crate::store::pack::{Batch, CommitSpec};
use crate::store::share::DOCTOR;
use crate::store::tree::{Leaf, Tree, write_tree};
use crate::store::{Oid, Store, StoreError};

/// The folder of the ledgers, one of which changes of history are tried on. Where a server keeps ledgers as it should, it stays: an empty one.
const LEDGERS: &str = "refs/cbia/ledgers/";
/// What git says where a server knows nothing of transactions.
const NOT_ATOMIC: &str = "does not support --atomic";
/// What servers say of what they refuse on purpose.
const REFUSALS: [&str; 11] = [
    "declined",
    "denied",
    "deny",
    "prohibited",
    "forbidden",
    "not allowed",
    "protected",
    "hidden",
    "non-fast-forward",
    "refused",
    "rejected by",
];

/// What became of an offer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The remote refused it, as it should.
    Refused,
    /// The remote would have taken it, or did, and it was taken back.
    Accepted,
    /// The remote's answer says neither.
    Unclear,
}

/// One offer.
pub struct Offer {
    /// What was offered.
    pub what: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// The remote's words.
    pub said: String,
}

impl Outcome {
    /// For the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Accepted => "ACCEPTED",
            Self::Unclear => "unclear",
        }
    }
}

impl Offer {
    /// For the machine.
    pub fn told(&self) -> Value {
        json!({"offer": self.what, "outcome": self.outcome.word().to_ascii_lowercase(), "said": self.said})
    }

    /// What is wrong with a remote that does not refuse it.
    pub fn finding(&self, mend: &str) -> Option<Finding> {
        let message = match self.outcome {
            Outcome::Refused => return None,
            Outcome::Accepted => format!("the remote takes {}", self.what),
            Outcome::Unclear => format!("whether the remote takes {} is not clear: {}", self.what, self.said),
        };
        Some(Finding::error(Code::Unprotected, message).hint(mend))
    }
}

/// What is offered.
struct Bad {
    harmless: Oid,
    by_hand: Oid,
    blob: Oid,
    other: Oid,
    opening: Oid,
}

/// Offers everything, and says what became of it.
pub fn offer(store: &Store, remote: &str) -> Result<Vec<Offer>, CommandError> {
    let bad = make(store)?;
    let number = std::process::id();
    let key = Digest::of(b"git cbia doctor");
    let probe = |what, name: String, id: Oid| -> Result<Offer, CommandError> {
        let answer = in_vain(store, remote, number, &bad, Some((&name, Some(id), None)));
        taken_back(store, remote, &answer).map_err(git)?;
        Ok(judged(what, &name, answer))
    };
    // A remote that takes nothing from us refuses the rest for another reason.
    let branch = format!("refs/heads/cbia-doctor-{number}");
    let nothing = in_vain(store, remote, number, &bad, None);
    taken_back(store, remote, &nothing).map_err(git)?;
    let first = judged("a harmless branch", &branch, nothing);
    if first.outcome != Outcome::Accepted {
        let said = match first.said.contains(NOT_ATOMIC) {
            true => {
                "it takes no atomic pushes, so nothing can be offered that it could not keep; git config receive.advertiseAtomic \
                     true in its repository lets it"
                    .to_owned()
            }
            false => format!("it does not take a harmless branch either: {}", first.said),
        };
        return Ok(vec![Offer { what: "anything from here", outcome: Outcome::Unclear, said }]);
    }
    let mut offers = vec![
        probe("a generated file written by hand", format!("refs/heads/cbia-doctor-by-hand-{number}"), bad.by_hand)?,
        probe("the same under a tag", format!("refs/tags/cbia-doctor-by-hand-{number}"), bad.by_hand)?,
        probe("a replace ref", format!("refs/replace/{}", bad.blob), bad.other)?,
        probe("a run that is none", format!("refs/cbia/runs/{key}/{key}"), bad.by_hand)?,
        probe("a cache entry that is none", format!("refs/cbia/cache/{key}"), bad.by_hand)?,
    ];
    offers.extend(history(store, remote, number, &bad)?);
    Ok(offers)
}

/// A ref, what it would become (nothing: it would be deleted), and what it is there.
type Offered<'a> = (&'a str, Option<Oid>, Option<Oid>);

/// Pushes something in a transaction that cannot succeed.
fn in_vain(store: &Store, remote: &str, number: u32, bad: &Bad, offered: Option<Offered<'_>>) -> Result<Vec<Answered>, GitError> {
    let branch = format!("refs/heads/cbia-doctor-{number}");
    let mut specs = vec![format!("{}:{branch}", bad.harmless), format!("{}:{branch}/below", bad.harmless)];
    let mut leases = vec![(branch.clone(), None), (format!("{branch}/below"), None)];
    if let Some((name, to, from)) = offered {
        let (force, to) = (if from.is_some() { "+" } else { "" }, to.map(|id| id.to_string()).unwrap_or_default());
        specs.push(if to.is_empty() { format!(":{name}") } else { format!("{force}{to}:{name}") });
        leases.push((name.to_owned(), from));
    }
    store.offer(remote, &specs, &leases)
}

/// Deletes what a remote took all the same, as one without transactions may.
fn taken_back(store: &Store, remote: &str, answers: &Result<Vec<Answered>, GitError>) -> Result<(), GitError> {
    let Ok(answers) = answers else { return Ok(()) };
    let taken: Vec<String> =
        answers.iter().filter(|answer| answer.mark == '*').map(|answer| format!(":{}", answer.name)).collect();
    if !taken.is_empty() {
        store.offer(remote, &taken, &[])?;
    }
    Ok(())
}

fn judged(what: &'static str, name: &str, answer: Result<Vec<Answered>, GitError>) -> Offer {
    let answers = match answer {
        Ok(answers) => answers,
        Err(error) => {
            let said = crate::document::finding::spelled(&error);
            let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            return Offer { what, outcome: Outcome::Unclear, said: lines.join("; ") };
        }
    };
    let Some(answer) = answers.into_iter().find(|answer| answer.name == name) else {
        return Offer { what, outcome: Outcome::Unclear, said: "the remote said nothing of it".to_owned() };
    };
    let said = answer.said.to_ascii_lowercase();
    let outcome = match answer.mark {
        '*' | '+' | '-' | ' ' => Outcome::Accepted,
        // git itself did not offer it: it is in use there, or something else failed before.
        _ if !said.starts_with("[remote") => Outcome::Unclear,
        _ if REFUSALS.iter().any(|word| said.contains(word)) => Outcome::Refused,
        _ if ["transaction failed", "failed to update ref", "cannot lock", "conflict"].iter().any(|word| said.contains(word)) => {
            Outcome::Accepted
        }
        _ => Outcome::Unclear,
    };
    Offer { what, outcome, said: answer.said }
}

/// A ledger of nobody, which is really made, with nothing but the commit that opens a ledger. That it is rewritten and deleted is offered in vain;
/// a server that would have deleted it is rid of it afterwards.
fn history(store: &Store, remote: &str, number: u32, bad: &Bad) -> Result<Vec<Offer>, CommandError> {
    const REWRITTEN: &str = "a ledger that is rewritten";
    const DELETED: &str = "a ledger that is deleted";
    let ledger = &format!("{LEDGERS}{DOCTOR}");
    let unclear = |said: String| vec![Offer { what: REWRITTEN, outcome: Outcome::Unclear, said }];
    // An earlier version rewrote it, and could not always take that back.
    let is_ours = |there: Oid| [bad.opening, bad.by_hand].contains(&there);
    let there = match store.remote_ref(remote, ledger).map_err(git)? {
        Some(there) if is_ours(there) => there,
        Some(_) => return Ok(unclear(format!("{ledger} is in use there"))),
        None => {
            let made = store.offer(remote, &[format!("{}:{ledger}", bad.opening)], &[(ledger.clone(), None)]);
            let made = judged("a new ledger", ledger, made);
            if made.outcome != Outcome::Accepted {
                return Ok(unclear(format!("it takes no new ledger: {}", made.said)));
            }
            bad.opening
        }
    };
    let other = if there == bad.by_hand { bad.opening } else { bad.by_hand };
    let offered = |what, to| judged(what, ledger, in_vain(store, remote, number, bad, Some((ledger, to, Some(there)))));
    let (rewritten, mut deleted) = (offered(REWRITTEN, Some(other)), offered(DELETED, None));
    if deleted.outcome == Outcome::Accepted {
        store.offer(remote, &[format!(":{ledger}")], &[(ledger.clone(), Some(there))]).map_err(git)?;
    } else {
        deleted.said.push_str(&format!("; {ledger} stays there, an empty ledger"));
    }
    Ok(vec![rewritten, deleted])
}

/// The objects of all offers: a pipeline of one artifact that somebody wrote by hand, and what is harmless.
fn make(store: &Store) -> Result<Bad, CommandError> {
    let made = || -> Result<Bad, StoreError> {
        let mut batch = Batch::new(store)?;
        let pipeline = json!({"schema_version": "0.1.0", "inputs": [], "gen": {"generated": ["artifacts/**"], "artifacts": [
            {"path": "artifacts/by-hand.txt", "objectives": ["O-01"], "template": "control/templates/by-hand.txt.j2"}]}});
        let mut files = Tree::new();
        let mut put = |batch: &mut Batch<'_>, path: &str, bytes: Vec<u8>| -> Result<Oid, StoreError> {
            let id = batch.blob(bytes)?;
            files.insert(path.parse::<RepoPath>()?, Leaf { id, executable: false });
            Ok(id)
        };
        put(&mut batch, "control/pipeline.json", crate::document::json::pretty(&pipeline))?;
        let blob = put(
            &mut batch,
            "artifacts/by-hand.txt",
            b"Nobody admitted this. git cbia doctor offers it to see it refused.\n".to_vec(),
        )?;
        let commit = |batch: &mut Batch<'_>, files: &Tree, message: &str| -> Result<Oid, StoreError> {
            let tree = write_tree(batch, files)?;
            Ok(batch.commit(&CommitSpec::fixed(tree, Vec::new(), message.to_owned()))?)
        };
        let by_hand = commit(&mut batch, &files, "git cbia doctor: a generated file written by hand\n")?;
        let other = batch.blob(b"git cbia doctor: nothing generated is here.\n".to_vec())?;
        let readme = Tree::from([("README.md".parse::<RepoPath>()?, Leaf { id: other, executable: false })]);
        let harmless = commit(&mut batch, &readme, "git cbia doctor: nothing generated is here\n")?;
        let opening = crate::store::ledger::opening(&mut batch)?;
        batch.publish(Durability::Relaxed)?;
        Ok(Bad { harmless, by_hand, blob, other, opening })
    };
    Ok(made()?)
}
