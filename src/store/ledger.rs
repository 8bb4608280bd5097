//! `refs/cbia/ledger`: one commit per thing that happened. First parent = the previous record, second parent = the run's tip.
//!
//! A record of an admission, denial or promotion is on the disk before its command says so. A replay's record may wait for the disk: a power
//! cut then leaves at worst an earlier record, which the next append finds by the journal of tips, falls back to, and tells.

use std::cell::Cell;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::durable::Durability;
use super::object::Commit;
use super::open::Role;
use super::pack::{Batch, CommitSpec};
use super::refs::{Cas, RefError, RefName};
use super::tree::{Leaf, Tree, write_tree};
use super::{Oid, Store, StoreError};
use crate::document::finding::{Code, Finding, spelled};
use crate::document::json;
use crate::document::path::RepoPath;
use crate::document::record::Record;
use crate::document::schema::{Kind, load};

/// Where a record's document is in its tree.
pub const RECORD_PATH: &str = "record.json";
/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 32 << 20;
/// How many tips the journal keeps.
const JOURNAL_TIPS: usize = 256;
/// How long another appender is waited for.
pub(in crate::store) const LOCK_WAIT: Duration = Duration::from_secs(60);

/// What is to be recorded.
pub struct Append<'a> {
    /// The document.
    pub record: &'a Record,
    /// Further files of the record's tree: the run ledger with what the cache had to do with it, executor output.
    pub files: &'a [(RepoPath, Vec<u8>)],
    /// First line of the message.
    pub subject: &'a str,
    /// Facts, for `git log --format='%(trailers)'`.
    pub trailers: &'a [(&'a str, String)],
    /// The run's last phase commit.
    pub run: Option<Oid>,
    /// Whether the command waits for the disk.
    pub durability: Durability,
}

/// A record that was appended.
#[derive(Debug)]
pub struct Appended {
    /// Its commit.
    pub id: Oid,
    /// What was healed on the way.
    pub findings: Vec<Finding>,
}

/// A record that was read.
#[derive(Clone, Debug)]
pub struct LedgerRecord {
    /// Its commit.
    pub id: Oid,
    /// The commit itself.
    pub commit: Commit,
    /// The document.
    pub record: Record,
}

fn ledger_ref() -> Result<RefName, StoreError> {
    Ok("refs/cbia/ledger".parse()?)
}

impl Store {
    /// Appends a record.
    pub fn append(&self, append: &Append<'_>) -> Result<Appended, StoreError> {
        self.append_joining(append, &[])
    }

    /// Appends a record that joins the ledgers at `others`.
    pub(in crate::store) fn append_joining(&self, append: &Append<'_>, others: &[Oid]) -> Result<Appended, StoreError> {
        let name = ledger_ref()?;
        let guard = self.lock("ledger", Some(LOCK_WAIT))?;
        let mut findings = Vec::new();
        let id = loop {
            let previous = self.whole_tip(&name, &mut findings)?;
            let id = self.write_record(append, previous, others)?;
            match self.cas(&name, previous, Some(id), append.durability)?.outcome {
                Cas::Done => break id,
                // Somebody moved the ref without our lock, as a fetch does: append to what it is now.
                Cas::Conflict(_) => {}
                Cas::Busy => return Err(StoreError::Moved { name: name.to_string() }),
            }
        };
        self.note_tip(id, append.durability).map_err(StoreError::Journal)?;
        self.sweep_locks();
        drop(guard);
        Ok(Appended { id, findings })
    }

    /// Writes a record after `previous`, without moving a ref.
    pub(in crate::store) fn write_record(
        &self,
        append: &Append<'_>,
        previous: Option<Oid>,
        others: &[Oid],
    ) -> Result<Oid, StoreError> {
        let mut batch = Batch::new(self)?;
        let first = match previous {
            Some(previous) => previous,
            None => opening(&mut batch)?,
        };
        let mut tree = Tree::new();
        let leaf = |id| Leaf { id, executable: false };
        tree.insert(RECORD_PATH.parse()?, leaf(batch.blob(json::emit(append.record))?));
        for (path, bytes) in append.files {
            tree.insert(path.clone(), leaf(batch.blob(bytes.clone())?));
        }
        let tree = write_tree(&mut batch, &tree)?;
        let mut message = format!("{}\n\n", append.subject);
        for (key, value) in append.trailers {
            message.push_str(&format!("{key}: {value}\n"));
        }
        let spec = CommitSpec {
            tree,
            parents: [first].into_iter().chain(append.run).chain(others.iter().copied()).collect(),
            author: self.signature(Role::Author),
            committer: self.signature(Role::Committer),
            message,
            extra_headers: Vec::new(),
        };
        if self.config_bool("commit.gpgSign") == Some(true) {
            batch.publish(append.durability)?;
            return Ok(self.commit_signed(&spec)?);
        }
        let id = batch.commit(&spec)?;
        batch.publish(append.durability)?;
        Ok(id)
    }

    /// Removes the lock files of generations that were killed. The kernel let go of the locks; taking one and letting it go takes its file away.
    fn sweep_locks(&self) {
        let Ok(entries) = std::fs::read_dir(self.common_dir().join("cbia")) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        for name in names.filter(|name| name.starts_with("gen-")).filter_map(|name| name.strip_suffix(".lock").map(str::to_owned))
        {
            drop(self.lock(&name, Some(Duration::ZERO)));
        }
    }

    /// The newest record that is whole. One that is torn is left out, told, and the ref is set back.
    fn whole_tip(&self, name: &RefName, findings: &mut Vec<Finding>) -> Result<Option<Oid>, StoreError> {
        let (tip, why) = match self.ref_target(name) {
            Ok(None) => return Ok(None),
            Ok(Some(tip)) => match self.check_record(&tip) {
                Ok(()) => return Ok(Some(tip)),
                Err(why) => (Some(tip), why),
            },
            Err(RefError::Damaged { what, .. }) => (None, what),
            Err(error) => return Err(error.into()),
        };
        let journal = std::fs::read_to_string(self.journal()).unwrap_or_default();
        let tips = journal.lines().rev().filter_map(|line| Oid::from_hex(line.as_bytes()).ok());
        let whole = tips.into_iter().filter(|id| Some(*id) != tip).find(|id| self.check_record(id).is_ok());
        let Some(whole) = whole else { return Err(StoreError::Damaged { name: format!("{name} ({why})") }) };
        match tip {
            Some(tip) => drop(self.cas(name, Some(tip), Some(whole), Durability::Full)?),
            None => self.mend_ref(name, whole)?,
        }
        let left_out = tip.map_or("the newest record".to_owned(), |tip| format!("the record {}", tip.to_hex_with_len(12)));
        let message = format!("{left_out} was torn ({why}); the ledger goes on from {}", whole.to_hex_with_len(12));
        let finding = Finding::warning(Code::LedgerTorn, message).at(name);
        findings.push(finding.hint("a power cut or a full disk does this; the record that was lost had not been waited for"));
        Ok(Some(whole))
    }

    /// Whether a ledger commit is whole: it, its tree and its document are what their names say. The opening commit has no document.
    pub(in crate::store) fn check_record(&self, id: &Oid) -> Result<(), String> {
        let commit = self.read_commit(id).map_err(|error| spelled(&error))?;
        match self.lookup(&commit.tree, &RECORD_PATH.parse().map_err(|_| String::new())?) {
            Ok(Some(blob)) => self.read_blob(&blob, MAX_RECORD).map(drop).map_err(|error| spelled(&error)),
            Ok(None) if commit.parents.is_empty() => Ok(()),
            Ok(None) => Err(format!("it has no {RECORD_PATH}")),
            Err(error) => Err(spelled(&error)),
        }
    }

    /// The tip, and the newest whole record that the journal knows, at one moment. A tip that cannot be read is none.
    pub(in crate::store) fn ledger_and_journal(&self) -> Result<(Option<Oid>, Option<Oid>), StoreError> {
        let guard = self.lock("ledger", Some(LOCK_WAIT))?;
        let tip = self.ref_target(&ledger_ref()?).ok().flatten();
        let journal = std::fs::read_to_string(self.journal()).unwrap_or_default();
        let mut tips = journal.lines().rev().filter_map(|line| Oid::from_hex(line.as_bytes()).ok());
        let known = tips.find(|id| self.check_record(id).is_ok());
        drop(guard);
        Ok((tip, known))
    }

    /// Makes the ledger go on from its newest whole record: a torn tip is left out, a lost one restored from the journal, and what both the
    /// ledger and the journal have of their own is joined. The tip after that.
    pub(in crate::store) fn heal_ledger(&self) -> Result<Oid, StoreError> {
        let name = ledger_ref()?;
        let (_, known) = self.ledger_and_journal()?;
        let guard = self.lock("ledger", Some(LOCK_WAIT))?;
        let moved = || StoreError::Moved { name: name.to_string() };
        let (tip, known) = match (self.whole_tip(&name, &mut Vec::new())?, known) {
            (Some(tip), Some(known)) if !self.ledger_holds(tip, known)? => (tip, known),
            (Some(tip), _) => return Ok(tip),
            (None, Some(known)) => match self.cas(&name, None, Some(known), Durability::Full)?.outcome {
                Cas::Done => return Ok(known),
                Cas::Conflict(_) | Cas::Busy => return Err(moved()),
            },
            (None, None) => return Err(StoreError::Damaged { name: name.to_string() }),
        };
        if self.ledger_holds(known, tip)? {
            return match self.cas(&name, Some(tip), Some(known), Durability::Full)?.outcome {
                Cas::Done => Ok(known),
                Cas::Conflict(_) | Cas::Busy => Err(moved()),
            };
        }
        drop(guard);
        let joined = self.join(&[known])?;
        Ok(joined.map_or(tip, |(appended, _)| appended.id))
    }

    fn journal(&self) -> PathBuf {
        self.common_dir().join("cbia").join("ledger.tips")
    }

    /// Keeps a tip in the journal, from which a torn ledger finds its last whole record. The journal is never believed: every tip is checked.
    fn note_tip(&self, id: Oid, durability: Durability) -> std::io::Result<()> {
        let path = self.journal();
        let mut tips: Vec<String> = std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
        let line = id.to_string();
        let mut file = if tips.len() >= 2 * JOURNAL_TIPS {
            tips.drain(..tips.len() - JOURNAL_TIPS);
            let kept = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(self.common_dir()))?;
            let mut file = kept.persist(&path)?;
            file.write_all((tips.join("\n") + "\n").as_bytes())?;
            file
        } else {
            std::fs::OpenOptions::new().append(true).create(true).open(&path)?
        };
        file.write_all(format!("{line}\n").as_bytes())?;
        durability.sync(&file)
    }

    /// Makes the journal begin anew, with this tip.
    pub(in crate::store) fn begin_journal(&self, id: Oid) -> std::io::Result<()> {
        let path = self.journal();
        let mut kept = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(self.common_dir()))?;
        kept.write_all(format!("{id}\n").as_bytes())?;
        Durability::Full.sync(kept.as_file())?;
        drop(kept.persist(&path)?);
        Ok(())
    }

    /// The newest record, if there is a ledger.
    pub fn ledger_tip(&self) -> Result<Option<Oid>, StoreError> {
        Ok(self.ref_target(&ledger_ref()?)?)
    }

    /// Reads the record of a ledger commit; `None` for the opening one.
    pub fn ledger_record(&self, id: &Oid) -> Result<Option<LedgerRecord>, StoreError> {
        self.ledger_record_within(id, &self.read_commit(id)?, &Cell::new(usize::MAX))
    }

    /// The same of a commit that was read, where no more than `left` bytes of documents may be read: it takes from that.
    pub(in crate::store) fn ledger_record_within(
        &self,
        id: &Oid,
        commit: &Commit,
        left: &Cell<usize>,
    ) -> Result<Option<LedgerRecord>, StoreError> {
        let path: RepoPath = RECORD_PATH.parse()?;
        let Some(blob) = self.lookup(&commit.tree, &path)? else { return Ok(None) };
        let bytes = self.read_blob(&blob, MAX_RECORD.min(left.get() as u64))?;
        left.set(left.get().saturating_sub(bytes.len()));
        let record = load::<Record>(Kind::Record, &path, &bytes).map_err(|findings| {
            let what = findings.into_iter().next().map_or_else(String::new, |finding| finding.message);
            StoreError::Record { id: *id, what }
        })?;
        Ok(Some(LedgerRecord { id: *id, commit: commit.clone(), record: record.document }))
    }

    /// The records from the newest to the oldest, at most `limit`.
    pub fn ledger(&self, limit: usize) -> Result<Vec<LedgerRecord>, StoreError> {
        let mut records = Vec::new();
        self.ledger_find(limit, |record| {
            records.push(record);
            None::<()>
        })?;
        Ok(records)
    }

    /// What `wanted` makes of the newest record that it takes, of at most `limit` records. No record beyond that one is read.
    pub fn ledger_find<T>(
        &self,
        limit: usize,
        mut wanted: impl FnMut(LedgerRecord) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let mut next = self.ledger_tip()?;
        for _ in 0..limit {
            let Some(id) = next else { break };
            let Some(record) = self.ledger_record(&id)? else { break };
            next = record.commit.parents.first().copied();
            if let Some(found) = wanted(record) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The commit that every ledger begins with, the same in every clone: it gives the first record a first parent that is no run.
pub fn opening(batch: &mut Batch<'_>) -> Result<Oid, StoreError> {
    let tree = write_tree(batch, &Tree::new())?;
    let message = "ledger opened\n\nCbia-Ledger: 0.1.0\n".to_owned();
    Ok(batch.commit(&CommitSpec::fixed(tree, Vec::new(), message))?)
}
