//! Refs under `refs/cbia/`: fresh reads and a compare-and-swap that loses no update.
//!
//! gix's own transaction looks a ref up in a snapshot of `packed-refs` taken before it holds the ref's lock; beside
//! `git pack-refs` that loses updates. Here everything is read under the lock: `pack-refs` removes a loose ref only
//! while it holds the same lock, so what it removed is in the `packed-refs` that is opened after.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use gix::bstr::{BString, ByteSlice as _};

use super::durable::Durability;
use super::lock::{Guard, LockError};
use super::{Oid, Store};
use crate::document::finding::{Code, Finding};
use crate::document::path::{check_component, printable};

/// Where all our refs are.
const NAMESPACE: &str = "refs/cbia/";
/// The longest ref name that is accepted, in bytes.
const MAX_NAME_BYTES: usize = 512;
/// The most that is read of a loose ref, in bytes: more than any that is whole.
const MAX_REF_BYTES: u64 = 4096;
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
/// How long another process's lock on a ref is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How often a directory may vanish while a lock is made in it.
const VANISHED_TRIES: usize = 100;
/// How old a ref's lock must be before its owner is taken for dead.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// The name of a ref below `refs/cbia/`: what `git check-ref-format` accepts, in UTF-8, of components that every file
/// system can hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

/// Why a ref was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RefError {
    /// The name is not one of ours.
    #[error("'{}' cannot be a ref of git cbia: {reason}", printable(.name))]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        reason: String,
    },
    /// The ref does not hold an object id.
    #[error("the ref '{name}' is damaged: {what}")]
    Damaged {
        /// The ref.
        name: String,
        /// What it holds.
        what: String,
    },
    /// A ref is where the other needs a directory.
    #[error("the ref '{name}' cannot exist beside '{existing}'")]
    Nested {
        /// The ref to be written.
        name: RefName,
        /// What is there.
        existing: String,
    },
    /// The repository was opened for reading only.
    #[error("the ref '{name}' is not changed: this repository was opened for reading only")]
    ReadOnly {
        /// The ref.
        name: RefName,
    },
    /// The lock over all our refs was not obtained.
    #[error("cannot change the ref '{name}'")]
    Lock {
        /// The ref.
        name: RefName,
        /// The reason.
        source: LockError,
    },
    /// A file could not be read or written.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// `packed-refs` could not be read.
    #[error("cannot read '{}'", .path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: gix::Error,
    },
}

impl RefName {
    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a ref below this one; the two cannot exist together.
    pub fn join(&self, rest: &str) -> Result<Self, RefError> {
        format!("{}/{rest}", self.0).parse()
    }
}

impl FromStr for RefName {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        let refuse = |reason: String| RefError::Name { name: text.to_owned(), reason };
        if !text.starts_with(NAMESPACE) {
            return Err(refuse(format!("it is not below {NAMESPACE}")));
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(refuse(format!("it is longer than {MAX_NAME_BYTES} bytes")));
        }
        gix::validate::reference::name(text.into()).map_err(|error| refuse(error.to_string()))?;
        for component in text.split('/') {
            check_component(component.as_bytes()).map_err(refuse)?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// How a compare-and-swap ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas {
    /// The ref is as asked.
    Done,
    /// The ref was not as expected; this is what it is.
    Conflict(Option<Oid>),
    /// Somebody held the ref's lock all the time.
    Busy,
}

/// The end of a compare-and-swap, and what had to be cleared away for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Update {
    /// How it ended.
    pub outcome: Cas,
    /// A lock file left behind by a dead process, put aside under this path: worth a word to the user.
    pub stale_lock: Option<PathBuf>,
}

impl Store {
    /// What a ref points at now, never from a cache; `None` if it does not exist. A symbolic ref is damage.
    pub fn ref_target(&self, name: &RefName) -> Result<Option<Oid>, RefError> {
        // A loose ref that pack-refs removes after the first look is in packed-refs by then; one that is deleted and
        // created again between the looks may be missed by both, so "absent" is believed only on a second look.
        for _ in 0..2 {
            if let Some(id) = self.loose(name.as_str())? {
                return Ok(Some(id));
            }
            if let Some(id) = self.packed(|packed| find_packed(packed, name))? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Every ref below `prefix` (`refs/cbia/` or deeper, ending in `/`), sorted by name.
    pub fn refs_under(&self, prefix: &str) -> Result<Vec<(RefName, Oid)>, RefError> {
        let refuse = |reason: &str| RefError::Name { name: prefix.to_owned(), reason: reason.to_owned() };
        let Some(folder) = prefix.strip_suffix('/') else { return Err(refuse("a prefix ends in '/'")) };
        if prefix != NAMESPACE {
            folder.parse::<RefName>()?;
        }
        let mut loose = BTreeMap::new();
        self.collect_loose(folder, &mut loose)?;
        let mut found = BTreeMap::new();
        self.packed(|packed| {
            let refs = packed.iter_prefixed(BString::from(prefix))?;
            for packed in refs {
                let packed = packed?;
                found.insert(packed.name.as_bstr().to_str_lossy().into_owned(), packed.target());
            }
            Ok(None::<()>)
        })?;
        found.extend(loose);
        found.into_iter().map(|(name, id)| Ok((name.parse()?, id))).collect()
    }

    /// Every name below `refs/cbia/`, with what it points at or why that cannot be said; also names that no ref of ours can have.
    pub(in crate::store) fn every_ref(&self) -> Result<BTreeMap<String, Result<Oid, RefError>>, RefError> {
        let mut found = BTreeMap::new();
        self.packed(|packed| {
            for packed in packed.iter_prefixed(BString::from(NAMESPACE))? {
                let packed = packed?;
                found.insert(packed.name.as_bstr().to_str_lossy().into_owned(), Ok(packed.target()));
            }
            Ok(None::<()>)
        })?;
        let mut folders = vec![NAMESPACE.trim_end_matches('/').to_owned()];
        while let Some(folder) = folders.pop() {
            let path = self.common_dir().join(&folder);
            // A folder that vanishes meanwhile held refs that were deleted.
            let Ok(entries) = std::fs::read_dir(&path) else { continue };
            for entry in entries.flatten() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(name);
                } else if !name.ends_with(".lock") {
                    match self.loose(&name) {
                        Ok(Some(id)) => drop(found.insert(name, Ok(id))),
                        Ok(None) => {}
                        Err(error) => drop(found.insert(name, Err(error))),
                    }
                }
            }
        }
        for (name, target) in &mut found {
            if let Err(error) = name.parse::<RefName>() {
                *target = Err(error);
            }
        }
        Ok(found)
    }

    /// Moves the file of a ref that is damaged out of the refs, to `cbia/damaged/`. A ref that can be read is left alone.
    pub(in crate::store) fn move_damaged(&self, name: &RefName) -> Result<PathBuf, RefError> {
        let locked = |source| RefError::Lock { name: name.clone(), source };
        let guard = self.lock("refs", Some(Duration::from_secs(30))).map_err(locked)?;
        let path = self.common_dir().join(name.as_str());
        let failed = |source| RefError::Io { action: "move away", path: path.clone(), source };
        if let Some(lock) = self.lock_file(&path, &guard, &mut None)?
            && let Err(RefError::Damaged { .. }) = self.loose(name.as_str())
        {
            let note = self.place_for_note(name.as_str()).map_err(failed)?;
            std::fs::rename(&path, &note).map_err(failed)?;
            drop(lock);
            return Ok(note);
        }
        Err(RefError::Damaged { name: name.as_str().to_owned(), what: "somebody changed it meanwhile".to_owned() })
    }

    /// Sets a ref to `new` (`None` deletes it) if it is `expected` (`None`: does not exist). The object need not exist:
    /// publish it first.
    ///
    /// Uses the lock file that git uses, `<ref>.lock`. One that is older than ten seconds is put aside, while a lock
    /// of the kernel's shows that no other git cbia owns it.
    pub fn cas(
        &self,
        name: &RefName,
        expected: Option<Oid>,
        new: Option<Oid>,
        durability: Durability,
    ) -> Result<Update, RefError> {
        if self.read_only {
            return Err(RefError::ReadOnly { name: name.clone() });
        }
        let guard = self.lock("refs", Some(Duration::from_secs(30)));
        let guard = match guard {
            Ok(guard) => guard,
            Err(LockError::Busy { .. }) => return Ok(Update { outcome: Cas::Busy, stale_lock: None }),
            Err(source) => return Err(RefError::Lock { name: name.clone(), source }),
        };
        let path = self.common_dir().join(name.as_str());
        let noted = |source| RefError::Io { action: "write", path: path.clone(), source };
        let mut stale_lock = self.clear_after_death(&guard).map_err(noted)?;
        guard.note(&format!("{}\n{}\n", name.as_str(), new.map(|id| id.to_string()).unwrap_or_default())).map_err(noted)?;
        self.refuse_nested(name, new)?;
        let Some(lock) = self.lock_file(&path, &guard, &mut stale_lock)? else {
            return Ok(Update { outcome: Cas::Busy, stale_lock });
        };
        let current = match self.loose(name.as_str())? {
            Some(id) => Some(id),
            None => self.packed(|packed| find_packed(packed, name))?,
        };
        let outcome = match (current == expected, new) {
            (false, _) => Cas::Conflict(current),
            (true, Some(new)) => self.replace(name, &path, lock, new, durability)?,
            (true, None) if current.is_none() => Cas::Done,
            (true, None) => self.delete(name, &path, &guard, &mut stale_lock, durability)?,
        };
        if let Some(aside) = &stale_lock {
            let message = format!("a lock on {name} that a killed process left was put aside");
            self.healed
                .borrow_mut()
                .push(Finding::warning(Code::LockStale, message).at(name).hint(format!("it is kept as {}", aside.display())));
        }
        Ok(Update { outcome, stale_lock })
    }

    /// What was healed since this was last asked, for the command to tell.
    pub fn take_healed(&self) -> Vec<Finding> {
        self.healed.take()
    }

    /// Puts aside the ref lock that a killed git cbia left, at once and whatever its age: it wrote down which one it was about to take, and
    /// a lock with what it was about to write in it, or still empty and no younger, can be nobody else's.
    fn clear_after_death(&self, guard: &Guard) -> io::Result<Option<PathBuf>> {
        let Some((note, written)) = guard.inherited()? else { return Ok(None) };
        let mut lines = note.lines();
        let (Some(name), Some(id)) = (lines.next().and_then(|line| line.parse::<RefName>().ok()), lines.next()) else {
            return Ok(None);
        };
        let lock = self.common_dir().join(format!("{}.lock", name.as_str()));
        let metadata = match std::fs::symlink_metadata(&lock) {
            Ok(metadata) if metadata.is_file() && metadata.len() <= 128 => metadata,
            _ => return Ok(None),
        };
        let held = std::fs::read_to_string(&lock).unwrap_or_default();
        let younger = metadata.modified()?.duration_since(written).is_ok_and(|after| after > LOCK_WAIT + LOCK_WAIT);
        if (held.is_empty() && !younger) || (!id.is_empty() && held.trim_end() == id) {
            return rename_aside(&lock, guard).map(Some);
        }
        Ok(None)
    }

    /// Sets a ref whose file is damaged, as a power cut leaves it, to `new`; a ref that can be read is left alone.
    pub fn mend_ref(&self, name: &RefName, new: Oid) -> Result<(), RefError> {
        if self.read_only {
            return Err(RefError::ReadOnly { name: name.clone() });
        }
        let locked = |source| RefError::Lock { name: name.clone(), source };
        let guard = self.lock("refs", Some(Duration::from_secs(30))).map_err(locked)?;
        let path = self.common_dir().join(name.as_str());
        if let Some(lock) = self.lock_file(&path, &guard, &mut None)?
            && matches!(self.loose(name.as_str()), Err(RefError::Damaged { .. }))
        {
            self.replace(name, &path, lock, new, Durability::Full)?;
        }
        Ok(())
    }

    fn replace(
        &self,
        name: &RefName,
        path: &Path,
        mut lock: gix::lock::File,
        new: Oid,
        durability: Durability,
    ) -> Result<Cas, RefError> {
        let refs = self.common_dir().join("refs");
        let failed = |action| move |source| RefError::Io { action, path: path.to_owned(), source };
        lock.with_mut(|file| {
            writeln!(file, "{new}")?;
            durability.sync(file)
        })
        .map_err(failed("write the lock of"))?;
        // git leaves directories behind when refs below them go; one in the place of a ref is removed if it is empty.
        if path.is_dir() && !remove_empty_dirs(path) {
            return Err(RefError::Nested { name: name.clone(), existing: format!("{name}/…") });
        }
        lock.commit().map_err(|error| failed("replace")(error.error))?;
        if let Some(folder) = path.parent() {
            durability.sync_dirs_up_to(folder, &refs).map_err(failed("synchronize the directories of"))?;
            durability.sync_dir(self.common_dir()).map_err(failed("synchronize the directories of"))?;
        }
        Ok(Cas::Done)
    }

    /// Removes a ref from `packed-refs` first and then the loose file, as git does, so that an old packed value never
    /// shows through. The caller holds the ref's lock.
    fn delete(
        &self,
        name: &RefName,
        path: &Path,
        guard: &Guard,
        stale_lock: &mut Option<PathBuf>,
        durability: Durability,
    ) -> Result<Cas, RefError> {
        let packed_path = gix::lock::acquire::resolve_symlink(&self.common_dir().join("packed-refs"));
        if self.packed(|packed| find_packed(packed, name))?.is_some() {
            let Some(mut lock) = self.lock_file(&packed_path, guard, stale_lock)? else { return Ok(Cas::Busy) };
            let failed = |action| {
                let path = packed_path.clone();
                move |source| RefError::Io { action, path, source }
            };
            let all = std::fs::read(&packed_path).map_err(failed("read"))?;
            lock.with_mut(|file| {
                file.write_all(&without_ref(&all, name.as_str()))?;
                durability.sync(file)
            })
            .map_err(failed("write the lock of"))?;
            lock.commit().map_err(|error| failed("replace")(error.error))?;
            durability.sync_dir(self.common_dir()).map_err(failed("synchronize the directory of"))?;
        }
        let failed = |source| RefError::Io { action: "delete", path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(source)),
        }
        match path.parent().map_or(Ok(()), |folder| durability.sync_dir(folder)) {
            // The directory was emptied and removed: then the ref is gone with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(failed)?,
        }
        // A reflog that outlives its ref would make git refuse refs below its name.
        drop(std::fs::remove_file(self.common_dir().join("logs").join(name.as_str())));
        Ok(Cas::Done)
    }

    /// git's lock file of `path`; `None` if a living process keeps it.
    fn lock_file(
        &self,
        path: &Path,
        guard: &Guard,
        stale_lock: &mut Option<PathBuf>,
    ) -> Result<Option<gix::lock::File>, RefError> {
        let failed = |source| RefError::Io { action: "lock", path: path.to_owned(), source };
        let mut vanished = 0;
        let mut looked = false;
        loop {
            let made = path.parent().map_or(Ok(()), |folder| self.create_dirs(folder, self.common_dir()));
            let error = match made {
                Ok(()) => match gix::lock::File::acquire_to_update_resource(path, LOCK_WAIT.into(), None, self.shared_mode()) {
                    Ok(lock) => return Ok(Some(lock)),
                    Err(error) if error.is_retryable() => {
                        if looked || !put_aside(path, guard, stale_lock).map_err(failed)? {
                            return Ok(None);
                        }
                        looked = true;
                        continue;
                    }
                    Err(error) if error.is_not_found() => io::Error::new(io::ErrorKind::NotFound, error),
                    Err(error) => io::Error::other(error),
                },
                Err(error) => error,
            };
            // `git pack-refs` removes directories that it has emptied, also the one that was just made.
            vanished += 1;
            if error.kind() != io::ErrorKind::NotFound || vanished == VANISHED_TRIES {
                return Err(failed(error));
            }
        }
    }

    fn loose(&self, name: &str) -> Result<Option<Oid>, RefError> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let path = self.common_dir().join(name);
        // A link is followed by git and not by every other reader: it is no ref of ours.
        let opened = File::options().read(true).custom_flags(NO_FOLLOW).open(&path);
        let mut bytes = Vec::new();
        match opened.and_then(|file| file.take(MAX_REF_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | IsADirectory) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(RefError::Damaged { name: name.to_owned(), what: "it is a symbolic link".to_owned() });
            }
            Err(source) => return Err(RefError::Io { action: "read", path, source }),
        }
        let text = bytes.trim_ascii_end();
        let damaged = || {
            let what = match text {
                b"" => "it is empty".to_owned(),
                _ => format!("it holds '{}'", printable(&text.to_str_lossy())),
            };
            RefError::Damaged { name: name.to_owned(), what }
        };
        if text.len() != self.object_hash().len_in_hex() {
            return Err(damaged());
        }
        Oid::from_hex(text).map(Some).map_err(|_| damaged())
    }

    /// Looks into `packed-refs` as it is now.
    fn packed<T>(&self, look: impl FnOnce(&gix::refs::packed::Buffer) -> gix::Result<Option<T>>) -> Result<Option<T>, RefError> {
        let failed = |source| RefError::Packed { path: self.common_dir().join("packed-refs"), source };
        match self.repo.refs.open_packed_buffer().map_err(failed)? {
            Some(packed) => look(&packed).map_err(failed),
            None => Ok(None),
        }
    }

    fn collect_loose(&self, top: &str, found: &mut BTreeMap<String, Oid>) -> Result<(), RefError> {
        let mut folders = vec![top.to_owned()];
        while let Some(folder) = folders.pop() {
            let path = self.common_dir().join(&folder);
            let failed = |source| RefError::Io { action: "list", path: path.clone(), source };
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(source) => return Err(failed(source)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(name);
                } else if name.parse::<RefName>().is_ok() {
                    // Lock files and what else cannot be a ref is no ref; a ref that vanishes meanwhile was deleted.
                    if let Some(id) = self.loose(&name)? {
                        found.insert(name, id);
                    }
                }
            }
        }
        Ok(())
    }

    /// A ref `a` and a ref `a/b` cannot exist together, packed or loose.
    fn refuse_nested(&self, name: &RefName, new: Option<Oid>) -> Result<(), RefError> {
        if new.is_none() {
            return Ok(());
        }
        let nested = |existing: &str| RefError::Nested { name: name.clone(), existing: existing.to_owned() };
        for (end, _) in name.as_str().match_indices('/').skip(1) {
            let above = &name.as_str()[..end];
            if above.len() >= NAMESPACE.len() && self.ref_target(&RefName(above.to_owned()))?.is_some() {
                return Err(nested(above));
            }
        }
        if let Some((existing, _)) = self.refs_under(&format!("{}/", name.as_str()))?.first() {
            return Err(nested(existing.as_str()));
        }
        Ok(())
    }
}

fn find_packed(packed: &gix::refs::packed::Buffer, name: &RefName) -> gix::Result<Option<Oid>> {
    Ok(packed.try_find(name.as_str())?.map(|found| found.target()))
}

/// The lines of `packed-refs` without those of `name`: its own, and the peeled value after it.
fn without_ref(packed: &[u8], name: &str) -> Vec<u8> {
    let mut kept = Vec::with_capacity(packed.len());
    let mut dropping = false;
    for line in packed.lines_with_terminator() {
        if !line.starts_with(b"^") {
            let named = line.trim_ascii_end().split_once_str(" ").map(|(_, rest)| rest);
            dropping = !line.starts_with(b"#") && named == Some(name.as_bytes());
        }
        if !dropping {
            kept.extend_from_slice(line);
        }
    }
    kept
}

/// Renames a lock file that is too old to have a living owner. The age is told by the file system's own clock: `guard`'s
/// file is written now. Returns whether another try is worth it.
fn put_aside(path: &Path, guard: &Guard, stale_lock: &mut Option<PathBuf>) -> io::Result<bool> {
    let mut lock = path.to_owned().into_os_string();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let made = match std::fs::symlink_metadata(&lock) {
        Ok(metadata) => metadata.modified()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut clock = guard.file();
    clock.write_all(b"\n")?;
    let now = clock.metadata()?.modified()?;
    if now.duration_since(made).is_ok_and(|age| age >= STALE_AFTER) {
        *stale_lock = Some(rename_aside(&lock, guard)?);
        return Ok(true);
    }
    Ok(false)
}

/// Keeps a stale lock beside our own locks, out of the way of git and of people who look for locks.
fn rename_aside(lock: &Path, guard: &Guard) -> io::Result<PathBuf> {
    let folder = guard.path().parent().unwrap_or(lock).join("stale");
    std::fs::create_dir_all(&folder)?;
    let aside = folder.join(lock.file_stem().unwrap_or(lock.as_os_str()));
    std::fs::rename(lock, &aside)?;
    Ok(aside)
}

/// Removes `path` and the directories in it; `false` if there is a file.
fn remove_empty_dirs(path: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    for entry in entries {
        let Ok(entry) = entry else { return false };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !remove_empty_dirs(&entry.path()) {
            return false;
        }
    }
    std::fs::remove_dir(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::pack::{Batch, CommitSpec};
    use super::super::testing::Repo;
    use super::*;

    fn name(text: &str) -> RefName {
        text.parse().unwrap()
    }

    fn set(store: &Store, name: &RefName, expected: Option<Oid>, new: Option<Oid>) -> Cas {
        store.cas(name, expected, new, Durability::Full).unwrap().outcome
    }

    #[test]
    fn only_sound_names_below_our_namespace_are_refs() {
        let long = format!("refs/cbia/{}", "x/".repeat(300));
        let bad = [
            "refs/heads/main",
            "refs/cbia",
            "refs/cbia/",
            "refs/cbia/../heads/main",
            "refs/cbia/a..b",
            "refs/cbia/a.lock",
            "refs/cbia/a b",
            "refs/cbia/a//b",
            "refs/cbia/.a",
            "refs/cbia/a\n",
            "refs/cbia/a:b",
            "refs/cbia/CON",
            "cbia/x",
            &long,
        ];
        for text in bad {
            assert!(matches!(text.parse::<RefName>(), Err(RefError::Name { .. })), "{text:?}");
        }
        assert_eq!(name("refs/cbia/runs").join("a/b").unwrap().as_str(), "refs/cbia/runs/a/b");
    }

    #[test]
    fn a_ref_changes_only_from_what_is_expected() {
        for repo in [Repo::new(), Repo::sha256()] {
            let (a, b) = (repo.commit(&[("f", "a")]), repo.commit(&[("f", "b")]));
            let store = repo.store();
            for packed in [false, true] {
                let x = name("refs/cbia/deep/x");
                let pack = || {
                    if packed {
                        repo.git(&["pack-refs", "--all"]);
                    }
                };
                assert_eq!(set(&store, &x, Some(a), Some(b)), Cas::Conflict(None));
                assert_eq!(set(&store, &x, None, None), Cas::Done);
                assert_eq!(set(&store, &x, None, Some(a)), Cas::Done);
                pack();
                assert_eq!(set(&store, &x, None, Some(b)), Cas::Conflict(Some(a)));
                assert_eq!(set(&store, &x, Some(b), Some(b)), Cas::Conflict(Some(a)));
                assert_eq!(set(&store, &x, Some(b), None), Cas::Conflict(Some(a)));
                assert_eq!(store.ref_target(&x).unwrap(), Some(a));
                assert_eq!(set(&store, &x, Some(a), Some(b)), Cas::Done);
                assert_eq!(repo.git(&["rev-parse", x.as_str()]), b.to_string());
                assert_eq!(set(&store, &x, Some(b), None), Cas::Done);
                assert_eq!(store.ref_target(&x).unwrap(), None);
                assert_eq!(repo.git(&["for-each-ref", "refs/cbia"]), "");
            }
            assert_eq!(repo.git(&["rev-parse", "main"]), b.to_string());
            repo.fsck();
        }
    }

    #[test]
    fn what_git_does_meanwhile_is_seen() {
        let repo = Repo::new();
        let (a, b) = (repo.commit(&[("f", "a")]), repo.commit(&[("f", "b")]));
        let store = repo.store();
        for (name, id) in [("refs/cbia/b", a), ("refs/cbia/a/x", a), ("refs/cbia/a-b", b), ("refs/cbia/a/y", b)] {
            repo.git(&["update-ref", name, &id.to_string()]);
        }
        let list = |prefix: &str| {
            let refs = store.refs_under(prefix).unwrap();
            refs.into_iter().map(|(name, id)| format!("{name} {id}")).collect::<Vec<_>>().join("\n")
        };
        let theirs = |prefix: &str| repo.git(&["for-each-ref", "--format=%(refname) %(objectname)", prefix]);
        for _ in 0..2 {
            assert_eq!(list("refs/cbia/"), theirs("refs/cbia/"));
            assert_eq!(list("refs/cbia/a/"), theirs("refs/cbia/a/"));
            assert_eq!(list("refs/cbia/none/"), "");
            repo.git(&["pack-refs", "--all"]);
            repo.git(&["update-ref", "refs/cbia/a/x", &b.to_string()]);
            repo.git(&["update-ref", "-d", "refs/cbia/b"]);
        }
        assert!(store.refs_under("refs/heads/").is_err() && store.refs_under("refs/cbia").is_err());
    }

    #[test]
    fn a_ref_and_a_ref_below_it_do_not_exist_together() {
        let repo = Repo::new();
        let id = repo.commit(&[("f", "a")]);
        let store = repo.store();
        assert_eq!(set(&store, &name("refs/cbia/a/b"), None, Some(id)), Cas::Done);
        for _ in 0..2 {
            for nested in ["refs/cbia/a", "refs/cbia/a/b/c", "refs/cbia/a/b/c/d"] {
                let error = store.cas(&name(nested), None, Some(id), Durability::Relaxed).unwrap_err();
                assert!(matches!(error, RefError::Nested { .. }), "{nested}: {error}");
            }
            repo.git(&["pack-refs", "--all"]);
        }
        assert_eq!(set(&store, &name("refs/cbia/a/b"), Some(id), None), Cas::Done);
        // The empty directory is no obstacle.
        std::fs::create_dir_all(repo.path().join(".git/refs/cbia/a/b/c")).unwrap();
        assert_eq!(set(&store, &name("refs/cbia/a"), None, Some(id)), Cas::Done);
        assert_eq!(repo.git(&["rev-parse", "refs/cbia/a"]), id.to_string());
    }

    #[test]
    fn damaged_refs_are_refused_and_not_overwritten() {
        let repo = Repo::new();
        let id = repo.commit(&[("f", "a")]);
        let store = repo.store();
        let path = repo.path().join(".git/refs/cbia/x");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for content in ["", "ref: refs/heads/main\n", "0123", &format!("{id}x")] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(store.ref_target(&name("refs/cbia/x")), Err(RefError::Damaged { .. })), "{content}");
            let error = store.cas(&name("refs/cbia/x"), None, Some(id), Durability::Full).unwrap_err();
            assert!(matches!(error, RefError::Damaged { .. }), "{content}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert!(!path.with_extension("lock").exists());
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("../heads/main", &path).unwrap();
        assert!(matches!(store.ref_target(&name("refs/cbia/x")), Err(RefError::Damaged { .. })));
    }

    #[test]
    fn only_an_old_lock_is_put_aside() {
        let repo = Repo::new();
        let id = repo.commit(&[("f", "a")]);
        let store = repo.store();
        let lock = repo.path().join(".git/refs/cbia/x.lock");
        std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
        std::fs::write(&lock, "").unwrap();
        let busy = Update { outcome: Cas::Busy, stale_lock: None };
        assert_eq!(store.cas(&name("refs/cbia/x"), None, Some(id), Durability::Full).unwrap(), busy);
        assert!(lock.exists());
        let made = std::fs::metadata(&lock).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&lock).unwrap().set_modified(made - Duration::from_secs(60)).unwrap();
        let update = store.cas(&name("refs/cbia/x"), None, Some(id), Durability::Full).unwrap();
        assert_eq!(update.outcome, Cas::Done);
        assert!(update.stale_lock.is_some_and(|aside| aside.exists()) && !lock.exists());
        assert_eq!(store.refs_under("refs/cbia/").unwrap(), [(name("refs/cbia/x"), id)]);
        repo.git(&["for-each-ref"]);
    }

    #[test]
    fn appends_and_creations_beside_pack_refs_lose_nothing() {
        const ROUNDS: usize = 40;
        let repo = Repo::new();
        let tree = repo.raw_tree(&[]);
        std::thread::scope(|scope| {
            let writers = [0, 1, 2].map(|writer| {
                let repo = &repo;
                scope.spawn(move || {
                    let store = repo.store();
                    for round in 0..ROUNDS {
                        // A ref that all of them create at the same time, and one that all of them append to.
                        for target in [format!("refs/cbia/new/{round}"), "refs/cbia/ledger".to_owned()] {
                            let target = name(&target);
                            let mut tip = store.ref_target(&target).unwrap();
                            loop {
                                let mut batch = Batch::new(&store).unwrap();
                                let message = format!("{writer} {round}");
                                let commit = batch.commit(&CommitSpec::fixed(tree, tip.into_iter().collect(), message)).unwrap();
                                batch.publish(Durability::Relaxed).unwrap();
                                match store.cas(&target, tip, Some(commit), Durability::Relaxed).unwrap().outcome {
                                    Cas::Done => break,
                                    Cas::Conflict(now) => tip = now,
                                    Cas::Busy => {}
                                }
                            }
                        }
                    }
                })
            });
            while writers.iter().any(|writer| !writer.is_finished()) {
                repo.try_git(&["pack-refs", "--all"], b"");
            }
        });
        assert_eq!(repo.git(&["rev-list", "--count", "refs/cbia/ledger"]), (3 * ROUNDS).to_string());
        for round in 0..ROUNDS {
            assert_eq!(repo.git(&["rev-list", "--count", &format!("refs/cbia/new/{round}")]), "3", "{round}");
        }
    }

    #[test]
    fn nothing_is_changed_in_a_repository_opened_for_reading() {
        let repo = Repo::new();
        let id = repo.commit(&[("f", "a")]);
        let options = super::super::open::OpenOptions { read_only: true, ..Default::default() };
        let store = Store::open_with(&repo.path(), options).unwrap();
        let error = store.cas(&name("refs/cbia/x"), None, Some(id), Durability::Full).unwrap_err();
        assert!(matches!(error, RefError::ReadOnly { .. }));
    }
}
