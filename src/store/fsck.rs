//! Every ref below `refs/cbia/`, held against what its name says: shape, kind, key, hashes, links and chains. And what can be mended.
//!
//! Whether a run is whole takes the pipeline; the runs that are to be read are handed on.

pub(in crate::store) mod record;
mod without;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use self::record::Records;
use super::durable::Durability;
use super::gc::About;
use super::history::before;
use super::ledger::opening;
use super::memo::Remembered;
use super::object::{Kind, ObjectError};
use super::pack::Batch;
use super::refs::{Cas, RefError, RefName};
use super::runs::RunListing;
use super::tree::{Tree, TreeLimits};
use super::{Oid, Store, StoreError};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};

const ALL: &str = "refs/cbia/";
const LEDGER: &str = "refs/cbia/ledger";
/// The largest object that is looked at to see whether it is there, in bytes.
const MAX_OBJECT: u64 = 1 << 30;
/// How it ends where an object is told that is not there.
const MISSING: &str = "is missing";
/// Names that other commands keep for as long as they work.
const PASSING: [&str; 3] = ["outbox/", "incoming/", "ns/"];

/// What mends a problem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The ref is put aside, under `refs/cbia/refused/`.
    Aside(RefName, Oid),
    /// The ref goes, and what it said is written down in the git directory.
    Note(String),
    /// The ledger goes on from its newest whole record.
    Ledger,
    /// The ledger goes on without what is no record.
    Without,
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What, and where.
    pub finding: Finding,
    /// What mends it; nothing where a person has to.
    pub repair: Option<Repair>,
}

/// What was looked at.
#[derive(Clone, Default, Debug)]
pub struct Census {
    /// How many refs there are.
    pub refs: usize,
    /// How many cache entries.
    pub entries: usize,
    /// How many records, in all ledgers.
    pub records: usize,
    /// How many attestations.
    pub attestations: usize,
    /// How many remembered decisions.
    pub decisions: usize,
    /// The runs: those of this repository, and those that were fetched.
    pub runs: Vec<RunListing>,
    /// What is wrong with everything but the runs.
    pub problems: Vec<Problem>,
}

impl Census {
    fn found(&mut self, finding: Finding, repair: Option<Repair>) {
        self.problems.push(Problem { finding, repair });
    }
}

/// What was looked at already.
struct Seen<'s> {
    ledgers: HashSet<Oid>,
    /// Those of them that are wrong, and whether they are no records at all.
    wrong: HashMap<Oid, bool>,
    records: Records<'s>,
}

/// What follows from a problem, in words.
fn aside_hint(name: &str) -> String {
    let rest = name.trim_start_matches(ALL);
    format!("git cbia fsck --repair puts it aside, under {ALL}refused/{rest}/")
}

impl Store {
    /// Looks at every ref below `refs/cbia/`. Whether a remembered decision answers the question that it stands under is for `answers` to say.
    pub fn examine(&self, answers: &dyn Fn(&Remembered) -> bool) -> Result<Census, StoreError> {
        let mut census = Census::default();
        let (mut seen, mut own) = (Seen { ledgers: HashSet::new(), wrong: HashMap::new(), records: Records::new(self) }, None);
        for (name, target) in self.every_ref()? {
            census.refs += 1;
            let rest = name.strip_prefix(ALL).unwrap_or_default().to_owned();
            let target = match target {
                Ok(target) => target,
                Err(error @ RefError::Damaged { .. }) => {
                    let finding = Finding::error(Code::RefDamaged, spelled(&error)).at(&name);
                    let (hint, repair) = match name == LEDGER {
                        true => ("git cbia fsck --repair restores it from the journal of its tips", Repair::Ledger),
                        false => {
                            ("git cbia fsck --repair moves it to cbia/damaged/ in the git directory", Repair::Note(name.clone()))
                        }
                    };
                    census.found(finding.hint(hint), Some(repair));
                    continue;
                }
                Err(error @ RefError::Name { .. }) => {
                    let finding = Finding::error(Code::RefMalformed, spelled(&error)).at(&name);
                    census.found(finding.hint("rename or delete it with git update-ref: no command of git cbia reads it"), None);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let parsed: RefName = name.parse()?;
            if name == LEDGER {
                own = Some(target);
                continue;
            }
            self.examine_ref((&parsed, &rest, target), answers, &mut seen, &mut census)?;
        }
        self.examine_ledger(own, &mut seen, &mut census)?;
        Ok(census)
    }

    /// One ref, other than this clone's ledger.
    fn examine_ref(
        &self,
        (name, rest, target): (&RefName, &str, Oid),
        answers: &dyn Fn(&Remembered) -> bool,
        seen: &mut Seen<'_>,
        census: &mut Census,
    ) -> Result<(), StoreError> {
        if rest.starts_with("refused/") || PASSING.iter().any(|prefix| rest.starts_with(prefix)) {
            return Ok(());
        }
        let fetched = rest.strip_prefix("remotes/").and_then(|rest| {
            let at = ["/runs/", "/cache/", "/attestations/", "/ledgers/"].iter().find_map(|kind| rest.find(kind))?;
            Some(&rest[at + 1..])
        });
        let home = fetched.unwrap_or(rest);
        let is_ledger = home.starts_with("ledgers/") || rest.starts_with("seen/");
        let attested = home.strip_prefix("attestations/").map(|rest| rest.split('/').collect::<Vec<_>>());
        let attested = attested.and_then(|parts| match parts.as_slice() {
            [state, executor, _] => Some((state.parse::<Digest>().ok()?, executor.parse::<Digest>().ok()?)),
            _ => None,
        });
        let about = About::of(home);
        if about.is_none() && attested.is_none() && !is_ledger && home != "memo" {
            let message = format!("{name} has a name that no ref of git cbia has");
            let finding = Finding::error(Code::RefMalformed, message).at(name).hint(aside_hint(name.as_str()));
            census.found(finding, Some(Repair::Aside(name.clone(), target)));
            return Ok(());
        }
        let kind = if attested.is_some() { Kind::Tag } else { Kind::Commit };
        match self.read(&target, kind, MAX_OBJECT) {
            Ok(_) => {}
            Err(error @ ObjectError::WrongKind { .. }) => {
                let finding =
                    Finding::error(Code::RefMalformed, format!("{name} points at the wrong thing: {}", spelled(&error)));
                census.found(finding.at(name).hint(aside_hint(name.as_str())), Some(Repair::Aside(name.clone(), target)));
                return Ok(());
            }
            Err(error @ ObjectError::Io { .. }) => return Err(error.into()),
            Err(error) => {
                let finding = Finding::error(Code::RefDangling, format!("what {name} points at is lost: {}", spelled(&error)));
                let hint =
                    "git cbia fsck --repair takes the ref away, and keeps what it said in cbia/damaged/ of the git directory";
                census.found(finding.at(name).hint(hint), Some(Repair::Note(name.as_str().to_owned())));
                return Ok(());
            }
        }
        let aside = || Some(Repair::Aside(name.clone(), target));
        match about {
            Some(About::Run((state_key, executor_key))) => {
                census.runs.push(RunListing { state_key, executor_key, name: name.clone(), tip: target });
            }
            Some(About::Entry(key)) => {
                census.entries += 1;
                if let Err(finding) = self.check_entry(&key, name, target) {
                    census.found(finding.hint(aside_hint(name.as_str())), aside());
                }
            }
            None if is_ledger => self.examine_records(name, target, seen, census)?,
            None => match attested {
                Some((state_key, executor_key)) => {
                    census.attestations += 1;
                    if let Err(why) = self.whole_attestation(name, &target, &state_key, &executor_key)? {
                        let finding =
                            Finding::error(Code::AttestationInvalid, format!("{name} is no attestation: {why}")).at(name);
                        census.found(finding.hint(aside_hint(name.as_str())), aside());
                    }
                }
                None => match self.examine_memo(target, answers) {
                    Ok(decisions) => census.decisions = decisions,
                    Err(why) => {
                        let finding =
                            Finding::error(Code::MemoInvalid, format!("the memory of decisions is damaged: {why}")).at(name);
                        census.found(finding.hint(aside_hint(name.as_str())), aside());
                    }
                },
            },
        }
        Ok(())
    }

    /// How many decisions the memo holds; otherwise what is wrong with it.
    fn examine_memo(&self, tip: Oid, answers: &dyn Fn(&Remembered) -> bool) -> Result<usize, String> {
        let mut next = Some(tip);
        let mut tree = Tree::new();
        while let Some(id) = next {
            let commit = self.read_commit(&id).map_err(|error| spelled(&error))?;
            if id == tip {
                tree = self.read_tree(&commit.tree, TreeLimits::default()).map_err(|error| spelled(&error))?;
            }
            next = commit.parents.first().copied();
        }
        let mut files: BTreeMap<Digest, [Option<Vec<u8>>; 2]> = BTreeMap::new();
        for (path, leaf) in &tree {
            let parts: Vec<&str> = path.as_str().split('/').collect();
            let named = match parts.as_slice() {
                [folder, key, name] if key.starts_with(*folder) && folder.len() == 2 => {
                    key.parse::<Digest>().ok().zip(["decision.json", "explain.json"].iter().position(|known| known == name))
                }
                _ => None,
            };
            let Some((key, which)) = named else { return Err(format!("it holds {path}")) };
            let bytes = self.read_blob(&leaf.id, MAX_OBJECT).map_err(|error| format!("{path}: {}", spelled(&error)))?;
            files.entry(key).or_default()[which] = Some(bytes);
        }
        let count = files.len();
        for (key, documents) in files {
            let [Some(decision), Some(explain)] = documents else {
                return Err(format!("the decision {key} lacks one of its two documents"));
            };
            if !answers(&Remembered { key, decision, explain }) {
                return Err(format!("the decision {key} is no answer to the question of that key"));
            }
        }
        Ok(count)
    }

    /// This clone's ledger, beginning with its tip.
    fn examine_ledger(&self, tip: Option<Oid>, seen: &mut Seen<'_>, census: &mut Census) -> Result<(), StoreError> {
        if census.problems.iter().any(|problem| problem.repair == Some(Repair::Ledger)) {
            return Ok(());
        }
        let hint = "git cbia fsck --repair goes on from the newest whole record that the journal of its tips knows";
        let (now, journaled) = self.ledger_and_journal()?;
        match (tip, now.or(tip), journaled) {
            (None, None, None) => Ok(()),
            (None, None, Some(known)) => {
                let message = format!("the ledger is gone: its newest record was {}", known.to_hex_with_len(12));
                census.found(Finding::error(Code::LedgerRewound, message).at(LEDGER).hint(hint), Some(Repair::Ledger));
                Ok(())
            }
            (_, Some(tip), known) => {
                if let Err(why) = self.check_record(&tip) {
                    let message = format!("the newest record, {}, is torn: {why}", tip.to_hex_with_len(12));
                    census.found(Finding::error(Code::LedgerTorn, message).at(LEDGER).hint(hint), Some(Repair::Ledger));
                    return Ok(());
                }
                let held = match known {
                    // A chain that is broken further down is told below.
                    Some(known) => self.ledger_holds(tip, known).unwrap_or(true),
                    None => true,
                };
                if let (false, Some(known)) = (held, known) {
                    let message = format!(
                        "the ledger was set back: it is at {}, which does not hold the record {}",
                        tip.to_hex_with_len(12),
                        known.to_hex_with_len(12)
                    );
                    census.found(Finding::error(Code::LedgerRewound, message).at(LEDGER).hint(hint), Some(Repair::Ledger));
                }
                self.examine_records(&LEDGER.parse()?, tip, seen, census)
            }
            (Some(_), None, _) => Ok(()),
        }
    }

    /// Every record that a ledger's tip leads to, down to the opening commit.
    fn examine_records(&self, name: &RefName, tip: Oid, seen: &mut Seen<'_>, census: &mut Census) -> Result<(), StoreError> {
        let opened = opening(&mut Batch::hashing(self))?;
        let is_own = name.as_str() == LEDGER;
        let broken = |message: String| Finding::error(Code::LedgerBroken, message).at(name);
        let lost = |message: String| {
            let hint = "nothing that is here is changed; git fetch --refetch REMOTE '+refs/cbia/ledgers/*:refs/cbia/incoming/ledgers/*' brings what is lost from a \
                        remote that has it";
            (broken(message).hint(hint), None)
        };
        let wrong = |message: String| match is_own {
            false => (broken(message).hint(aside_hint(name.as_str())), Some(Repair::Aside(name.clone(), tip))),
            true => {
                let hint =
                    "nothing of a ledger is taken away; what was admitted is judged by the runs, not by what records say of them";
                (broken(message).hint(hint), None)
            }
        };
        // It can only have come with a ledger that was joined.
        let none = |message: String| match is_own {
            false => wrong(message),
            true => {
                let hint = "git cbia fsck --repair goes on without it, and puts the ledger aside as it is";
                (broken(message).hint(hint), Some(Repair::Without))
            }
        };
        let told = seen.wrong.clone();
        let mut waiting = vec![tip];
        while let Some(id) = waiting.pop() {
            if !seen.ledgers.insert(id) {
                continue;
            }
            let short = id.to_hex_with_len(12);
            let commit = match self.read_commit(&id) {
                Ok(commit) => commit,
                Err(error) => {
                    let (finding, repair) = lost(format!("the ledger breaks off at {short}: {}", spelled(&error)));
                    census.found(finding, repair);
                    continue;
                }
            };
            let (mut found, mut is_none) = (None, false);
            match self.ledger_record(&id) {
                Ok(Some(record)) => {
                    census.records += 1;
                    let joins = before(&commit).len() > 1;
                    let run = commit.parents.get(1).filter(|_| !joins);
                    let names = record.record.run.as_deref();
                    if let Some(run) = run.filter(|run| names != Some(run.to_string().as_str())) {
                        let (finding, repair) = wrong(format!("the record {short} names another run than its commit"));
                        found = Some((finding.expected(run, names.unwrap_or("none")), repair));
                    } else if let Some(Err(error)) =
                        run.map(|run| self.read_commit(run).and_then(|run| self.read(&run.tree, Kind::Tree, MAX_OBJECT)))
                    {
                        found = Some(lost(format!("the run of the record {short} is lost: {}", spelled(&error))));
                    } else if let Err(why) = seen.records.check(&record) {
                        let message = format!("the record {short} is not what it speaks of: {why}");
                        found = Some(if why.ends_with(MISSING) { lost(message) } else { wrong(message) });
                    }
                }
                Ok(None) if id == opened && (id != tip || !is_own) => {}
                Ok(None) => (found, is_none) = (Some(none(format!("the commit {short} is no record"))), true),
                Err(error @ StoreError::Record { .. }) => {
                    found = Some(wrong(format!("the record {short} is damaged: {}", spelled(&error))));
                }
                Err(error) => found = Some(lost(format!("the record {short} is damaged: {}", spelled(&error)))),
            }
            if found.is_none() && commit.parents.is_empty() && id != opened {
                let message = format!("the ledger ends at {short}, which is not the commit that opens a ledger");
                (found, is_none) = (Some(none(message)), true);
            }
            if let Some((finding, repair)) = found {
                if repair.is_some() {
                    seen.wrong.insert(id, is_none);
                }
                census.found(finding, repair);
            }
            waiting.extend(before(&commit));
        }
        // What was told of another ledger, this one may have too. What breaks off was told as well.
        let held = match told.is_empty() {
            true => HashMap::new(),
            false => self.ledger_walk(&[tip], &HashSet::new()).unwrap_or_default(),
        };
        // First what is no record at all: a ledger can go on without that.
        let worst = told.into_iter().filter(|(id, _)| held.contains_key(id)).max_by_key(|(id, is_none)| (*is_none, *id));
        if let Some((id, is_none)) = worst {
            let message = format!("it holds {}, of which more is told above", id.to_hex_with_len(12));
            let (finding, repair) = if is_none { none(message) } else { wrong(message) };
            census.found(finding, repair);
        }
        Ok(())
    }

    /// Mends a problem. What it says is what was done.
    pub fn mend(&self, repair: &Repair) -> Result<String, StoreError> {
        match repair {
            Repair::Aside(name, target) => Ok(format!("put {name} aside as {}", self.put_aside(name, *target)?)),
            Repair::Note(name) => {
                let noted = self.note_damaged(name)?;
                Ok(format!("took {name} away; what it said is in {}", noted.display()))
            }
            Repair::Without => {
                let (tip, aside) = self.ledger_without()?;
                let tip = tip.to_hex_with_len(12);
                Ok(format!("the ledger goes on from {tip}, without what is no record; as it was, it is put aside as {aside}"))
            }
            Repair::Ledger => Ok(format!("the ledger goes on from {}", self.heal_ledger()?.to_hex_with_len(12))),
        }
    }

    /// Takes a ref away that is damaged or points at nothing, and keeps what it said in a file.
    fn note_damaged(&self, name: &str) -> Result<PathBuf, StoreError> {
        let parsed: RefName = name.parse()?;
        match self.ref_target(&parsed) {
            Ok(Some(target)) => {
                let noted = self.write_note(name, target.to_string().as_bytes())?;
                match self.cas(&parsed, Some(target), None, Durability::Full)?.outcome {
                    Cas::Done => Ok(noted),
                    Cas::Conflict(_) | Cas::Busy => Err(StoreError::Moved { name: name.to_owned() }),
                }
            }
            Ok(None) => Err(StoreError::Moved { name: name.to_owned() }),
            Err(RefError::Damaged { .. }) => Ok(self.move_damaged(&parsed)?),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down what a ref said that is taken away.
    fn write_note(&self, name: &str, said: &[u8]) -> Result<PathBuf, RefError> {
        let failed = |source| RefError::Io { action: "write down", path: self.common_dir().join(name), source };
        let path = self.place_for_note(name).map_err(failed)?;
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(said)?;
            Durability::Full.sync(&file)
        });
        written.map_err(failed)?;
        Ok(path)
    }

    /// A file name in `cbia/damaged/` that nothing has yet.
    pub(in crate::store) fn place_for_note(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.common_dir().join("cbia").join("damaged");
        self.create_dirs(&folder, self.common_dir())?;
        let flat = name.trim_start_matches(ALL).replace('/', "_");
        let names = (0_u32..10_000).map(|number| if number == 0 { flat.clone() } else { format!("{flat}.{number}") });
        let mut free = names.map(|name| folder.join(name)).filter(|path| path.symlink_metadata().is_err());
        free.next().ok_or_else(|| io::Error::new(io::ErrorKind::AlreadyExists, "too many files of this name"))
    }
}
