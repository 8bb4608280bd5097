//! The stat cache: what git cbia knows about the files of one work tree without reading them.
//!
//! It lies in `<git-dir>/cbia/stat`, one per linked worktree, and is only ever an optimisation for inputs; for outputs
//! it also remembers what was written last. A file that is torn, foreign or of another version is ignored and
//! rebuilt. As in git's index, an entry that changed no earlier than the cache was written is *racy* and not
//! trusted: the file may have been edited since within the same tick of the clock.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::document::digest::Digest;
use crate::document::path::RepoPath;

use super::Oid;

const MAGIC: &[u8; 8] = b"cbiastat";
const VERSION: u8 = 1;
/// A cache larger than this is not read.
const MAX_BYTES: u64 = 256 << 20;
/// Digests of blobs that no entry names are forgotten when they are more than this.
const MAX_DIGESTS: usize = 100_000;
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// What tells that a file has not changed: as git's index, plus nanoseconds always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::store) struct FileStat {
    /// Nanoseconds since 1970.
    mtime: i64,
    ctime: i64,
    dev: u64,
    ino: u64,
    size: u64,
    mode: u32,
}

impl FileStat {
    /// Never equal to a real file's.
    const UNKNOWN: Self = Self { mtime: 0, ctime: 0, dev: u64::MAX, ino: u64::MAX, size: u64::MAX, mode: 0 };

    pub(in crate::store) fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    fn newest(&self) -> i64 {
        self.mtime.max(self.ctime)
    }
}

impl From<&rustix::fs::Stat> for FileStat {
    #[allow(clippy::unnecessary_cast, reason = "the types of these members differ between systems")]
    fn from(stat: &rustix::fs::Stat) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            mtime: nanos(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: nanos(stat.st_ctime, stat.st_ctime_nsec as i64),
            dev: stat.st_dev as u64,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            mode: stat.st_mode as u32,
        }
    }
}

/// What the file with this stat holds, as git stores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct Entry {
    pub stat: FileStat,
    pub id: Oid,
    pub sha256: Digest,
    /// Bytes as git stores them, which under line-ending conversion are not the file's size.
    pub bytes: u64,
    /// Fingerprint of the filters that apply to the path; the entry holds for no others. Zero for outputs.
    pub filters: u64,
}

/// The cache as loaded, and what was learnt since.
pub(in crate::store) struct StatCache {
    folder: PathBuf,
    hash: gix::hash::Kind,
    loaded: Contents,
    inputs: BTreeMap<RepoPath, Entry>,
    outputs: BTreeMap<RepoPath, Option<Entry>>,
    digests: HashMap<Oid, (Digest, u64)>,
}

#[derive(Default)]
struct Contents {
    /// When the file was written, and its inode: two loads with the same stamp hold the same.
    stamp: Option<(i64, u64)>,
    inputs: BTreeMap<RepoPath, Entry>,
    outputs: BTreeMap<RepoPath, Entry>,
    digests: HashMap<Oid, (Digest, u64)>,
}

/// The right to change the cache and the outputs of a work tree; the kernel drops it when the process ends.
pub(in crate::store) struct StatLock {
    _file: File,
}

impl StatCache {
    /// Loads the cache of the work tree with this git directory; an unusable one is an empty one.
    pub(in crate::store) fn load(git_dir: &Path, hash: gix::hash::Kind) -> Self {
        let folder = git_dir.join("cbia");
        let loaded = Contents::read(&folder.join("stat"), hash).unwrap_or_default();
        Self { folder, hash, loaded, inputs: BTreeMap::new(), outputs: BTreeMap::new(), digests: HashMap::new() }
    }

    /// Loads what is known of blobs, and nothing of files: those are not asked for where a tree is read. What is learnt is saved beside the rest.
    pub(in crate::store) fn load_digests(git_dir: &Path, hash: gix::hash::Kind) -> Self {
        let folder = git_dir.join("cbia");
        let digests = Contents::bytes(&folder.join("stat")).and_then(|(bytes, _)| Some(Contents::head(&bytes, hash)?.0.digests));
        // Without a stamp it counts as another file than the one that is there, which is read as a whole before it is written again.
        let loaded = Contents { digests: digests.unwrap_or_default(), ..Contents::default() };
        Self { folder, hash, loaded, inputs: BTreeMap::new(), outputs: BTreeMap::new(), digests: HashMap::new() }
    }

    /// Waits for the right to change the outputs, at most a minute.
    pub(in crate::store) fn lock(git_dir: &Path) -> io::Result<StatLock> {
        let folder = git_dir.join("cbia");
        std::fs::create_dir_all(&folder)?;
        let file = File::options().create(true).truncate(false).write(true).open(folder.join("stat.lock"))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(StatLock { _file: file }),
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
                Err(std::fs::TryLockError::WouldBlock) if start.elapsed() > LOCK_WAIT => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another git cbia is writing this work tree"));
                }
                Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// What an input holds, if its stat and filters are those of the last time.
    pub(in crate::store) fn input(&self, path: &RepoPath, stat: &FileStat, filters: u64) -> Option<Entry> {
        let entry = self.loaded.inputs.get(path)?;
        (entry.stat == *stat && entry.filters == filters && !self.loaded.is_racy(entry)).then_some(*entry)
    }

    /// Remembers what an input holds.
    pub(in crate::store) fn put_input(&mut self, path: &RepoPath, entry: Entry) {
        self.inputs.insert(path.clone(), entry);
    }

    /// What was written last at an output path, whatever stands there now.
    pub(in crate::store) fn written(&self, path: &RepoPath) -> Option<Entry> {
        self.loaded.outputs.get(path).copied()
    }

    /// Whether the file with this stat is certainly what [`written`](Self::written) says.
    pub(in crate::store) fn is_untouched(&self, entry: &Entry, stat: &FileStat) -> bool {
        entry.stat == *stat && !self.loaded.is_racy(entry)
    }

    /// The paths that were written last time, in order.
    pub(in crate::store) fn output_paths(&self) -> impl Iterator<Item = &RepoPath> {
        self.loaded.outputs.keys()
    }

    /// Remembers what was written at a path, or that the path is no output any more.
    pub(in crate::store) fn put_output(&mut self, path: &RepoPath, entry: Option<Entry>) {
        self.outputs.insert(path.clone(), entry);
    }

    /// SHA-256 and size of a blob that was read before.
    pub(in crate::store) fn digest(&self, id: &Oid) -> Option<(Digest, u64)> {
        self.loaded.digests.get(id).or_else(|| self.digests.get(id)).copied()
    }

    /// Remembers SHA-256 and size of a blob.
    pub(in crate::store) fn put_digest(&mut self, id: Oid, sha256: Digest, bytes: u64) {
        if !self.loaded.digests.contains_key(&id) {
            self.digests.insert(id, (sha256, bytes));
        }
    }

    /// Writes what was learnt, if anything was, on top of what another process may have written meanwhile.
    pub(in crate::store) fn save(self, _right: &StatLock) -> io::Result<()> {
        if !self.is_changed() {
            return Ok(());
        }
        let path = self.folder.join("stat");
        let Self { folder, hash, mut loaded, inputs, outputs, digests } = self;
        if stamp_of(&path) != loaded.stamp {
            loaded = Contents::read(&path, hash).unwrap_or_default();
        }
        loaded.settle();
        loaded.inputs.extend(inputs);
        for (path, entry) in outputs {
            match entry {
                Some(entry) => loaded.outputs.insert(path, entry),
                None => loaded.outputs.remove(&path),
            };
        }
        loaded.digests.extend(digests.iter().map(|(id, known)| (*id, *known)));
        if loaded.digests.len() > MAX_DIGESTS {
            loaded.digests = digests;
        }
        let mut file = tempfile::Builder::new().prefix("stat.").tempfile_in(&folder)?;
        file.write_all(&loaded.encode(hash))?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Saves a cache that is only an optimisation: a work tree that cannot be written to is no reason to fail, and
    /// the next scan reads again what this one could not note down.
    pub(in crate::store) fn save_if_possible(self, git_dir: &Path) {
        if self.is_changed() {
            drop(Self::lock(git_dir).and_then(|right| self.save(&right)));
        }
    }

    #[cfg(test)]
    pub(in crate::store) fn known_inputs(&self) -> Vec<RepoPath> {
        self.loaded.inputs.keys().cloned().collect()
    }

    fn is_changed(&self) -> bool {
        !(self.inputs.is_empty() && self.outputs.is_empty() && self.digests.is_empty())
    }
}

impl Contents {
    fn is_racy(&self, entry: &Entry) -> bool {
        self.stamp.is_none_or(|(written, _)| entry.stat.newest() >= written)
    }

    /// Before a newer stamp would make racy entries look safe: inputs are forgotten, outputs keep their content only.
    fn settle(&mut self) {
        let Some((written, _)) = self.stamp else { return };
        self.inputs.retain(|_, entry| entry.stat.newest() < written);
        for entry in self.outputs.values_mut().filter(|entry| entry.stat.newest() >= written) {
            entry.stat = FileStat::UNKNOWN;
        }
    }

    fn encode(&self, hash: gix::hash::Kind) -> Vec<u8> {
        let mut out = Vec::with_capacity(200 * (self.inputs.len() + self.outputs.len()) + 64 * self.digests.len() + 64);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(hash.len_in_bytes() as u8);
        for count in [self.digests.len(), self.inputs.len(), self.outputs.len()] {
            out.extend_from_slice(&(count as u64).to_le_bytes());
        }
        for (id, (sha256, bytes)) in &self.digests {
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(sha256.as_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        for (path, entry) in self.inputs.iter().chain(&self.outputs) {
            let Entry { stat, id, sha256, bytes, filters } = entry;
            out.extend_from_slice(&(path.as_str().len() as u16).to_le_bytes());
            out.extend_from_slice(path.as_str().as_bytes());
            for number in [stat.mtime, stat.ctime] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            for number in [stat.dev, stat.ino, stat.size, u64::from(stat.mode), *bytes, *filters] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(sha256.as_bytes());
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    fn read(path: &Path, hash: gix::hash::Kind) -> Option<Self> {
        let (bytes, stamp) = Self::bytes(path)?;
        let (mut contents, [inputs, outputs], mut rest) = Self::head(&bytes, hash)?;
        contents.stamp = Some(stamp);
        for at in 0..inputs.checked_add(outputs)? {
            let (path, entry) = rest.entry(hash)?;
            if at < inputs { &mut contents.inputs } else { &mut contents.outputs }.insert(path, entry);
        }
        rest.0.is_empty().then_some(contents)
    }

    /// The file's bytes, and its stamp.
    fn bytes(path: &Path) -> Option<(Vec<u8>, (i64, u64))> {
        let stamp = stamp_of(path)?;
        if std::fs::symlink_metadata(path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        // A file that was replaced between the two calls is not the one of the stamp.
        (stamp_of(path)? == stamp).then_some((bytes, stamp))
    }

    /// What is known of blobs, how many inputs and outputs follow, and these.
    fn head(bytes: &[u8], hash: gix::hash::Kind) -> Option<(Self, [u64; 2], Reader<'_>)> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        (crc32fast::hash(body) == u32::from_le_bytes(*checksum)).then_some(())?;
        let mut rest = Reader(body);
        (rest.take(MAGIC.len())? == MAGIC).then_some(())?;
        (rest.take(2)? == [VERSION, hash.len_in_bytes() as u8]).then_some(())?;
        let [digests, inputs, outputs] = [rest.number()?, rest.number()?, rest.number()?];
        let mut contents = Self::default();
        for _ in 0..digests {
            let id = Oid::try_from(rest.take(hash.len_in_bytes())?).ok()?;
            let sha256 = rest.digest()?;
            contents.digests.insert(id, (sha256, rest.number()?));
        }
        Some((contents, [inputs, outputs], rest))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.array().map(Digest::from_bytes)
    }

    fn entry(&mut self, hash: gix::hash::Kind) -> Option<(RepoPath, Entry)> {
        let length = self.array().map(u16::from_le_bytes)?;
        let path = RepoPath::from_bytes(self.take(length.into())?).ok()?;
        let [mtime, ctime] = [self.array().map(i64::from_le_bytes)?, self.array().map(i64::from_le_bytes)?];
        let [dev, ino, size, mode] = [self.number()?, self.number()?, self.number()?, self.number()?];
        let [bytes, filters] = [self.number()?, self.number()?];
        let stat = FileStat { mtime, ctime, dev, ino, size, mode: u32::try_from(mode).ok()? };
        let id = Oid::try_from(self.take(hash.len_in_bytes())?).ok()?;
        Some((path, Entry { stat, id, sha256: self.digest()?, bytes, filters }))
    }
}

fn stamp_of(path: &Path) -> Option<(i64, u64)> {
    let stat = FileStat::from(&rustix::fs::lstat(path).ok()?);
    Some((stat.mtime, stat.ino))
}
