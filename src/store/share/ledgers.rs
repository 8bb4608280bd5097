//! The ledgers of a remote: what is new in them, and what they have lost.
//!
//! `refs/cbia/seen/<remote>/<writer>` remembers the furthest tip that each was seen at. A ledger only grows, so one that does not hold that tip
//! any more was rewound, replaced or deleted; the tip keeps its records here, and [`Store::restore_ledgers`] gives them back.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Remote, ShareError, Sharing, Space};
use crate::document::finding::{Code, Finding, spelled};
use crate::store::durable::Durability;
use crate::store::fsck::record::facts;
use crate::store::history::before;
use crate::store::ledger::opening;
use crate::store::object::{Commit, ObjectError};
use crate::store::pack::Batch;
use crate::store::refs::RefName;
use crate::store::{Oid, Store, StoreError};

/// Where the ledgers of a remote land before they are looked at.
pub(super) const INCOMING: &str = "refs/cbia/incoming/";
/// Everything that was ever seen.
const SEEN: &str = "refs/cbia/seen/";

/// A ledger that has news.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// Whose it is.
    pub writer: String,
    /// How many records were not known here.
    pub records: usize,
}

/// Whose ledger on a remote `git cbia doctor` tries changes of history on. Nobody writes it, and nobody reads it.
pub const DOCTOR: &str = "cbia-doctor";

/// Why a ledger may not go on as is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unkept {
    /// Something in it is no record.
    Wrong(String),
    /// It would no more hold what it held.
    Lost,
    /// There is more that is new than is looked at.
    Many,
    /// More bytes would have to be read than may be.
    Bytes,
}

impl Unkept {
    /// In words.
    pub fn why(&self) -> &str {
        match self {
            Self::Wrong(why) => why,
            Self::Lost => "it would no more hold what it held",
            Self::Many => "more records are new than are looked at",
            Self::Bytes => "its records are larger than may be read",
        }
    }
}

/// The refs directly below `prefix`, by the rest of their names.
fn directly_below(store: &Store, prefix: &str) -> Result<BTreeMap<String, Oid>, StoreError> {
    Ok(below(&store.refs_under(prefix)?, prefix))
}

fn below(refs: &[(RefName, Oid)], prefix: &str) -> BTreeMap<String, Oid> {
    let rest = refs.iter().filter_map(|(name, id)| Some((name.as_str().strip_prefix(prefix)?.to_owned(), *id)));
    rest.filter(|(rest, _)| !rest.contains('/')).collect()
}

impl Store {
    /// The ledgers that were ever fetched or pushed, each at the furthest tip that it was seen at.
    pub(in crate::store) fn seen_ledgers(&self) -> Result<Vec<(RefName, Oid)>, StoreError> {
        Ok(self.refs_under(SEEN)?)
    }

    /// The refspec that brings the ledgers of `space`, or one writer's.
    pub(super) fn ledgers_refspec(space: &Space, writer: Option<&str>) -> String {
        let (prefix, writer) = (space.remote(), writer.unwrap_or_default());
        format!("+{prefix}ledgers/{writer}*:{INCOMING}{}ledgers/{writer}*", space.0)
    }

    /// The tip of one writer's ledger, as it came in last.
    pub(super) fn incoming_ledger(&self, space: &Space, writer: &str) -> Result<Option<Oid>, ShareError> {
        Ok(self.ref_target(&format!("{INCOMING}{}ledgers/{writer}", space.0).parse()?)?)
    }

    /// Looks at the ledgers that came in: takes what is new, and tells what was lost since `before`, which is what [`Store::seen_ledgers`] said
    /// before the remote was asked: a push beside this one may have been seen since to have brought more. `complete` says that all of them were asked for, so
    /// that one which is not there is no more there on the remote.
    pub(super) fn take_ledgers(
        &self,
        remote: &Remote,
        space: &Space,
        before: &[(RefName, Oid)],
        complete: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<News>, ShareError> {
        let incoming = directly_below(self, &format!("{INCOMING}{}ledgers/", space.0))?;
        let seen = below(before, &remote.seen(space));
        let mut news = Vec::new();
        for (writer, tip) in incoming.iter().filter(|(writer, _)| *writer != DOCTOR) {
            let known = seen.get(writer).copied();
            let at = format!("{}ledgers/{writer}", space.remote());
            match self.new_records(*tip, known) {
                Err(why) => {
                    let message = format!("the ledger of {writer} on {} is refused: {why}", remote.shown());
                    let back = match known {
                        Some(known) => format!("sets it back to what was last seen: git update-ref {at} {known} {tip}"),
                        None => format!("removes it: git update-ref -d {at} {tip}"),
                    };
                    let hint = format!("whoever administers the remote {back}, in its repository");
                    findings.push(Finding::error(Code::SharedRefused, message).at(at).hint(hint));
                }
                Ok(None) => findings.push(self.rewound(remote, writer, *tip, known, &at)?),
                Ok(Some(records)) => {
                    let tracking = format!("{}ledgers/{writer}", remote.tracking(space)).parse()?;
                    self.note_refs([(tracking, *tip)])?;
                    // If it has moved meanwhile, it has moved further.
                    let seen = format!("{}{writer}", remote.seen(space)).parse()?;
                    drop(self.cas(&seen, known, Some(*tip), Durability::Relaxed)?);
                    if records > 0 {
                        news.push(News { writer: writer.clone(), records });
                    }
                }
            }
        }
        for (writer, tip) in seen.iter().filter(|(writer, _)| complete && !incoming.contains_key(*writer)) {
            let message =
                format!("the ledger of {writer} is no more on {}: it was at {} before", remote.shown(), tip.to_hex_with_len(12));
            let finding = Finding::error(Code::LedgerDeleted, message).at(format!("{}ledgers/{writer}", space.remote()));
            findings.push(finding.hint(restore_hint(remote)));
        }
        Ok(news)
    }

    /// How many records the ledger at `tip` has beyond `known`; nothing where it does not hold `known`. Otherwise why it is no ledger.
    pub(super) fn new_records(&self, tip: Oid, known: Option<Oid>) -> Result<Option<usize>, String> {
        if known == Some(tip) {
            return Ok(Some(0));
        }
        let holds = match known {
            Some(known) => self.ledger_holds(tip, known).map_err(|error| spelled(&error))?,
            None => true,
        };
        // What another ledger has brought here already is no news.
        let here = self.seen_ledgers().map_err(|error| spelled(&error))?.into_iter().map(|(_, tip)| tip);
        let own = self.ledger_tip().map_err(|error| spelled(&error))?;
        let stop = here.chain(own).collect::<HashSet<_>>();
        let commits = self.ledger_walk(&[tip], &stop).map_err(|error| spelled(&error))?;
        let records = self.vet_records(&commits, &Cell::new(usize::MAX)).map_err(|unkept| unkept.why().to_owned())?;
        Ok(holds.then_some(records))
    }

    /// Whether the ledger that was at `old` may go on to `new`: it holds everything that it held, and what is new are records, at most
    /// `limit`, for whose documents no more than `bytes` are read. How many are new.
    pub fn vet_ledger(&self, old: Option<Oid>, new: Oid, limit: usize, bytes: &Cell<usize>) -> Result<usize, Unkept> {
        let wrong = |error: StoreError| Unkept::Wrong(spelled(&error));
        let mut found = self.ledger_walk_within(&[new], &old.into_iter().collect(), limit).map_err(wrong)?.ok_or(Unkept::Many)?;
        if let Some(old) = old {
            // Below where ledgers were joined lies what the old one held too.
            if found.values().any(|commit| before(commit).len() > 1) {
                let past = self.ledger_walk(&[old], &HashSet::new()).map_err(wrong)?;
                found.retain(|id, _| !past.contains_key(id));
            }
            // git knows of no difference between what came before and what a record speaks of.
            if old != new && !found.values().any(|commit| before(commit).contains(&old)) {
                return Err(Unkept::Lost);
            }
        }
        self.vet_records(&found, bytes)
    }

    /// How many of these commits are records; one of them must be nothing else than that or the commit that opens a ledger.
    fn vet_records(&self, commits: &HashMap<Oid, Commit>, bytes: &Cell<usize>) -> Result<usize, Unkept> {
        let wrong = |error: StoreError| Unkept::Wrong(spelled(&error));
        let opened = opening(&mut Batch::hashing(self)).map_err(wrong)?;
        let mut records = 0;
        for (id, commit) in commits {
            let short = id.to_hex_with_len(12);
            if *id == opened {
                continue;
            }
            let Some(record) = self.ledger_record_within(id, commit, bytes).map_err(|error| match error {
                StoreError::Object(ObjectError::TooLarge { .. }) => Unkept::Bytes,
                error => Unkept::Wrong(spelled(&error)),
            })?
            else {
                return Err(Unkept::Wrong(format!("the commit {short} is no record")));
            };
            facts(&record).map_err(|why| Unkept::Wrong(format!("the record {short} is not what it says: {why}")))?;
            records += 1;
        }
        Ok(records)
    }

    fn rewound(&self, remote: &Remote, writer: &str, tip: Oid, known: Option<Oid>, at: &str) -> Result<Finding, ShareError> {
        let known = known.unwrap_or(tip);
        let lost = self.ledger_walk(&[known], &HashSet::from([tip]))?.len();
        let mut message = format!(
            "the ledger of {writer} on {} was set back: it was at {}, and is at {}, which does not hold it",
            remote.shown(),
            known.to_hex_with_len(12),
            tip.to_hex_with_len(12)
        );
        if self.ledger_holds(known, tip)? {
            message.push_str(&format!("; {lost} of its records are gone there"));
        } else {
            // It has records of its own. They are kept, though not believed.
            let aside: RefName = format!("refs/cbia/refused/ledgers/{}/{writer}/{tip}", remote.key).parse()?;
            self.note_refs([(aside.clone(), tip)])?;
            message.push_str(&format!("; what it holds instead is kept as {aside}"));
        }
        Ok(Finding::error(Code::LedgerRewound, message).at(at).hint(restore_hint(remote)))
    }

    /// What a remote must be given so that it holds again every record that was seen there: its ledgers by writer, and the tip to push.
    pub(super) fn ledgers_to_restore(&self, sharing: &Sharing, remote: &Remote) -> Result<Vec<(String, Oid)>, ShareError> {
        let space = sharing.writes_to();
        let incoming = directly_below(self, &format!("{INCOMING}{}ledgers/", space.0))?;
        let mut restored = Vec::new();
        for (writer, tip) in directly_below(self, &remote.seen(&space))? {
            match incoming.get(&writer) {
                None => restored.push((writer, tip)),
                Some(now) if self.ledger_holds(*now, tip)? => {}
                Some(now) if self.ledger_holds(tip, *now)? => restored.push((writer, tip)),
                // Both have records that the other lacks: one record joins them, so that neither is overwritten.
                Some(now) => restored.push((writer, self.joined(*now, tip)?)),
            }
        }
        Ok(restored)
    }
}

fn restore_hint(remote: &Remote) -> String {
    format!("nothing is lost here; git cbia ledger restore {} gives it back", remote.shown())
}
