//! Writing objects: many as one pack, few as loose files.
//!
//! Objects are stored whole: no deltas, and blobs in a pack are not compressed, so that storing costs little more than
//! hashing. `git gc` compresses them later.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use gix::objs::Exists as _;
use gix::prelude::Find as _;
use tempfile::NamedTempFile;

use super::durable::Durability;
use super::object::{self, Kind};
use super::{Oid, Store};
use crate::document::digest::Digest;
use crate::document::path::printable;

/// So many objects, or so many bytes, are kept in memory and written as loose objects; more become a pack.
const LOOSE_OBJECTS: usize = 8;
const LOOSE_BYTES: usize = 8 << 20;

/// Who, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name.
    pub name: String,
    /// The address.
    pub email: String,
    /// Seconds since 1970.
    pub seconds: i64,
    /// The offset from UTC in seconds.
    pub offset: i32,
}

impl Identity {
    /// The fixed identity of phase commits, so that the same inputs give the same object ids everywhere.
    pub fn cbia() -> Self {
        Self { name: "git-cbia".into(), email: "git-cbia@localhost".into(), seconds: 0, offset: 0 }
    }

    /// The name without what git would leave out, because it would end the name early.
    pub(in crate::store) fn clean(text: &str) -> String {
        text.chars().filter(|c| !matches!(c, '<' | '>' | '\n' | '\0')).collect::<String>().trim().to_owned()
    }

    /// The time as git writes it: `seconds +hhmm`.
    pub(in crate::store) fn time(&self) -> String {
        let sign = if self.offset < 0 { '-' } else { '+' };
        let minutes = self.offset.unsigned_abs() / 60;
        format!("{} {sign}{:02}{:02}", self.seconds, minutes / 60, minutes % 60)
    }

    pub(in crate::store) fn line(&self) -> String {
        format!("{} <{}> {}", Self::clean(&self.name), Self::clean(&self.email), self.time())
    }
}

/// A commit to write.
#[derive(Debug, Clone)]
pub struct CommitSpec {
    /// The tree it records.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// The author.
    pub author: Identity,
    /// The committer.
    pub committer: Identity,
    /// The message; a final newline is added if it has none.
    pub message: String,
    /// Headers after the committer.
    pub extra_headers: Vec<(String, String)>,
}

impl CommitSpec {
    /// A commit by git cbia's fixed identity, the same on every machine.
    pub fn fixed(tree: Oid, parents: Vec<Oid>, message: String) -> Self {
        Self { tree, parents, author: Identity::cbia(), committer: Identity::cbia(), message, extra_headers: Vec::new() }
    }

    /// The commit object's content.
    fn encode(&self) -> Result<Vec<u8>, WriteError> {
        if self.message.contains('\0') {
            return Err(WriteError::Commit { what: "its message holds a NUL".into() });
        }
        let mut text = format!("tree {}\n", self.tree);
        for parent in &self.parents {
            text.push_str(&format!("parent {parent}\n"));
        }
        text.push_str(&format!("author {}\ncommitter {}\n", self.author.line(), self.committer.line()));
        for (key, value) in &self.extra_headers {
            let known = ["tree", "parent", "author", "committer", "encoding"].contains(&key.as_str());
            let plain = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if known || !plain || key.is_empty() || value.contains('\0') {
                return Err(WriteError::Commit { what: format!("'{}' cannot be a header of it", printable(key)) });
            }
            text.push_str(&format!("{key} {}\n", value.trim_end().replace('\n', "\n ")));
        }
        text.push('\n');
        text.push_str(&self.message);
        if !self.message.ends_with('\n') {
            text.push('\n');
        }
        Ok(text.into_bytes())
    }
}

/// Why objects were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The repository was opened for reading only.
    #[error("nothing is stored: this repository was opened for reading only")]
    ReadOnly,
    /// The content cannot be named, because it was made to collide.
    #[error("an object cannot be named")]
    Hash {
        /// The reason.
        source: gix::Error,
    },
    /// A commit that git would not accept.
    #[error("a commit cannot be written: {what}")]
    Commit {
        /// What is wrong with it.
        what: String,
    },
    /// A tree that cannot be checked out.
    #[error("a tree cannot be written: '{path}' is a file and a folder")]
    FileAndFolder {
        /// The path that is both.
        path: String,
    },
    /// An object that was there has gone while others were written: a prune ran. Try again.
    #[error("the object {id} has been removed from the repository meanwhile")]
    Vanished {
        /// The object.
        id: Oid,
    },
    /// A damaged copy of an object hides the whole one.
    #[error("the damaged object {id} cannot be replaced")]
    Unhealed {
        /// The object.
        id: Oid,
        /// What reading it gave after it was written anew.
        source: object::ObjectError,
    },
    /// A file could not be written.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// What publishing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Objects written.
    pub written: usize,
    /// Objects that were there already, whole.
    pub reused: usize,
    /// Objects that were there but damaged, and were written anew: worth a word to the user.
    pub healed: Vec<Oid>,
}

/// Objects on their way into a repository; invisible until published, gone if dropped.
pub struct Batch<'s> {
    store: &'s Store,
    lookup: Lookup,
    seen: HashSet<Oid>,
    reused: Vec<Oid>,
    healed: Vec<Oid>,
    pending: Vec<Object>,
    pending_bytes: usize,
    spool: Option<Spool>,
    /// Whether it only gives names.
    dry: bool,
}

/// Finds what the repository has already.
#[derive(Clone)]
struct Lookup {
    repo: gix::Repository,
}

struct Object {
    id: Oid,
    kind: Kind,
    content: Vec<u8>,
    state: State,
}

/// How the repository has an object already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Whole,
    Damaged,
}

/// What a worker hands over.
enum Made {
    Plain(Object),
    Encoded { id: Oid, state: State, entry: Vec<u8> },
}

impl Lookup {
    fn new(store: &Store) -> Self {
        let mut repo = store.repo.clone();
        // The first look loads what is there; looking again for each of ten thousand new objects would cost more than
        // writing them. An object that somebody else adds meanwhile is stored twice, which does no harm.
        repo.objects.exists(&store.object_hash().null());
        repo.objects.refresh_never();
        Self { repo }
    }

    fn name(&self, kind: Kind, content: &[u8]) -> Result<Oid, WriteError> {
        let hash = self.repo.object_hash();
        gix::objs::compute_hash(hash, kind.to_gix(), content).map_err(|source| WriteError::Hash { source })
    }

    fn examine(&self, kind: Kind, content: Vec<u8>) -> Result<Object, WriteError> {
        let id = self.name(kind, &content)?;
        Ok(Object { id, kind, state: self.state(&id, kind, &content), content })
    }

    /// "Exists" is not believed: a torn file exists too. The bytes are at hand, so comparing is all it takes.
    fn state(&self, id: &Oid, kind: Kind, content: &[u8]) -> State {
        if !self.repo.objects.exists(id) {
            return State::Absent;
        }
        let mut buffer = Vec::new();
        match self.repo.objects.try_find(id, &mut buffer) {
            Ok(Some(found)) if found.kind == kind.to_gix() && found.data == content => State::Whole,
            Ok(None) => State::Absent,
            Ok(Some(_)) | Err(_) => State::Damaged,
        }
    }
}

impl<'s> Batch<'s> {
    /// An empty batch.
    pub fn new(store: &'s Store) -> Result<Self, WriteError> {
        if store.read_only {
            return Err(WriteError::ReadOnly);
        }
        Ok(Self { dry: false, ..Self::hashing(store) })
    }

    /// A batch that gives objects their names and keeps none of them. It works on a store that is only read.
    pub fn hashing(store: &'s Store) -> Self {
        let (seen, reused, healed, pending) = (HashSet::new(), Vec::new(), Vec::new(), Vec::new());
        Self { store, lookup: Lookup::new(store), seen, reused, healed, pending, pending_bytes: 0, spool: None, dry: true }
    }

    /// The store it will be published to.
    pub fn store(&self) -> &'s Store {
        self.store
    }

    /// Adds a blob.
    pub fn blob<'b>(&mut self, bytes: impl Into<std::borrow::Cow<'b, [u8]>>) -> Result<Oid, WriteError> {
        self.object(Kind::Blob, bytes)
    }

    /// Adds blobs on all cores; ids and SHA-256 digests in the order given.
    pub fn blobs_parallel(&mut self, blobs: Vec<Vec<u8>>) -> Result<Vec<(Oid, Digest)>, WriteError> {
        let blobs: Vec<_> = blobs.into_iter().map(Mutex::new).collect();
        // Each is taken out once, so that its memory is free again as soon as it is written.
        let take = |i: usize| Ok(std::mem::take(&mut *blobs[i].lock().unwrap_or_else(PoisonError::into_inner)));
        self.blobs_with(blobs.len(), take)
    }

    /// Adds `count` blobs that `load` gives by index, on all cores: no more of them are in memory at once than are
    /// being worked on. Ids and SHA-256 digests in order of index.
    pub fn blobs_with<E>(
        &mut self,
        count: usize,
        load: impl Fn(usize) -> Result<Vec<u8>, E> + Sync,
    ) -> Result<Vec<(Oid, Digest)>, E>
    where
        E: From<WriteError> + Send,
    {
        let encode = self.spool.is_some() || self.pending.len() + count >= LOOSE_OBJECTS;
        if encode {
            self.open_spool()?;
        }
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count.max(1));
        let (send, receive) = mpsc::sync_channel(2 * threads);
        let mut results = Vec::with_capacity(count);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (lookup, send, next, load) = (self.lookup.clone(), send.clone(), &next, &load);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        // The receiver is gone when something failed: then there is nothing left to do.
                        if i >= count || send.send((i, make(&lookup, encode, || load(i)))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            // Stored in order of index, so that the pack does not depend on who was faster.
            let mut early = BTreeMap::new();
            for (i, made) in receive {
                early.insert(i, made?);
                while let Some((digest, made)) = early.remove(&results.len()) {
                    results.push((self.take(made)?, digest));
                }
            }
            Ok(())
        })
        .map(|()| results)
    }

    /// Adds an object from its raw content.
    pub fn object<'b>(&mut self, kind: Kind, content: impl Into<std::borrow::Cow<'b, [u8]>>) -> Result<Oid, WriteError> {
        let content = content.into();
        if self.dry {
            return self.lookup.name(kind, &content);
        }
        self.take(Made::Plain(self.lookup.examine(kind, content.into_owned())?))
    }

    /// Adds a commit.
    pub fn commit(&mut self, spec: &CommitSpec) -> Result<Oid, WriteError> {
        self.object(Kind::Commit, spec.encode()?)
    }

    fn take(&mut self, made: Made) -> Result<Oid, WriteError> {
        let (id, state) = match &made {
            Made::Plain(object) => (object.id, object.state),
            Made::Encoded { id, state, .. } => (*id, *state),
        };
        if !self.seen.insert(id) {
            return Ok(id);
        }
        match state {
            State::Absent => {}
            State::Damaged => self.healed.push(id),
            State::Whole => {
                self.reused.push(id);
                return Ok(id);
            }
        }
        match made {
            Made::Plain(object) if self.spool.is_none() => {
                self.pending_bytes += object.content.len();
                self.pending.push(object);
                if self.pending.len() >= LOOSE_OBJECTS || self.pending_bytes > LOOSE_BYTES {
                    self.open_spool()?;
                }
            }
            Made::Plain(object) => {
                let entry = entry(object.kind, &object.content);
                self.append(id, &entry)?;
            }
            Made::Encoded { entry, .. } => self.append(id, &entry)?,
        }
        Ok(id)
    }

    fn append(&mut self, id: Oid, entry: &[u8]) -> Result<(), WriteError> {
        let Some(spool) = &mut self.spool else {
            let source = io::Error::other("the pack was not begun");
            return Err(WriteError::Io { action: "write to", path: self.objects(), source });
        };
        spool.append(id, entry)
    }

    fn objects(&self) -> PathBuf {
        self.store.repo.objects.store_ref().path().to_owned()
    }

    fn open_spool(&mut self) -> Result<(), WriteError> {
        if self.spool.is_none() {
            let folder = self.objects().join("pack");
            let failed = |source| WriteError::Io { action: "create a pack in", path: folder.clone(), source };
            self.store.create_dirs(&folder, &self.objects()).map_err(failed)?;
            let mut spool = Spool::new(&folder).map_err(failed)?;
            for object in std::mem::take(&mut self.pending) {
                spool.append(object.id, &entry(object.kind, &object.content))?;
            }
            self.spool = Some(spool);
        }
        Ok(())
    }

    /// Makes everything visible to readers of the repository, and checks that what was there already still is.
    pub fn publish(mut self, durability: Durability) -> Result<Published, WriteError> {
        if self.dry {
            return Err(WriteError::ReadOnly);
        }
        let objects = self.objects();
        let written = match self.spool.take() {
            Some(spool) => {
                let written = spool.entries.len();
                if written > 0 {
                    spool.publish(self.store, durability)?;
                }
                // The pack is found before a loose object of the same name, so the damaged one is not missed.
                for id in &self.healed {
                    drop(std::fs::remove_file(loose_path(&objects, id)));
                }
                written
            }
            None => {
                for object in &self.pending {
                    self.write_loose(&objects, object, durability)?;
                }
                if !self.pending.is_empty() {
                    let failed = |source| WriteError::Io { action: "synchronize", path: objects.clone(), source };
                    durability.sync_dir(&objects).map_err(failed)?;
                }
                self.pending.len()
            }
        };
        let fresh = self.store.repo.clone();
        for id in &self.healed {
            let Some(kind) = fresh.try_find_header(*id).ok().flatten().map(|header| header.kind()) else {
                return Err(WriteError::Vanished { id: *id });
            };
            let kind = Kind::from_gix(kind);
            object::read(&fresh, id, kind, u64::MAX).map_err(|source| WriteError::Unhealed { id: *id, source })?;
        }
        for id in &self.reused {
            if !fresh.has_object(id) {
                return Err(WriteError::Vanished { id: *id });
            }
        }
        Ok(Published { written, reused: self.reused.len(), healed: std::mem::take(&mut self.healed) })
    }

    fn write_loose(&self, objects: &Path, object: &Object, durability: Durability) -> Result<(), WriteError> {
        let path = loose_path(objects, &object.id);
        let failed = |source| WriteError::Io { action: "write the object", path: path.clone(), source };
        let folder = path.parent().unwrap_or(objects);
        self.store.create_dirs(folder, objects).map_err(failed)?;
        // git's own prefix, so that `git gc` clears away what a killed process leaves.
        let mut file = read_only_file(folder, "tmp_obj_").map_err(failed)?;
        let header = gix::objs::encode::loose_header(object.kind.to_gix(), object.content.len() as u64);
        let mut deflate = gix::zlib::stream::deflate::Write::new(file.as_file_mut(), gix::zlib::Compression::BEST_SPEED);
        deflate.write_all(&header).map_err(failed)?;
        deflate.write_all(&object.content).map_err(failed)?;
        deflate.flush().map_err(failed)?;
        durability.sync(file.as_file()).map_err(failed)?;
        self.store.share(file.path()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        durability.sync_dir(folder).map_err(failed)
    }
}

fn make<E: From<WriteError>>(
    lookup: &Lookup,
    encode: bool,
    load: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<(Digest, Made), E> {
    let content = load()?;
    let digest = Digest::of(&content);
    let object = lookup.examine(Kind::Blob, content)?;
    let made = match (encode, object.state) {
        (true, State::Absent | State::Damaged) => {
            Made::Encoded { id: object.id, state: object.state, entry: entry(Kind::Blob, &object.content) }
        }
        _ => Made::Plain(Object { content: if encode { Vec::new() } else { object.content }, ..object }),
    };
    Ok((digest, made))
}

fn loose_path(objects: &Path, id: &Oid) -> PathBuf {
    let hex = id.to_string();
    objects.join(&hex[..2]).join(&hex[2..])
}

fn read_only_file(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let mode = std::fs::Permissions::from_mode(0o444);
    tempfile::Builder::new().prefix(prefix).permissions(mode).tempfile_in(folder)
}

/// An object as a pack holds it: kind and length, then a zlib stream. See `gitformat-pack(5)`.
fn entry(kind: Kind, content: &[u8]) -> Vec<u8> {
    let kind_bits: u8 = match kind {
        Kind::Commit => 1,
        Kind::Tree => 2,
        Kind::Blob => 3,
        Kind::Tag => 4,
    };
    let mut out = Vec::with_capacity(content.len() + content.len() / 1000 + 64);
    let mut rest = content.len();
    let mut byte = kind_bits << 4 | (rest & 15) as u8;
    rest >>= 4;
    while rest > 0 {
        out.push(byte | 0x80);
        byte = (rest & 0x7f) as u8;
        rest >>= 7;
    }
    out.push(byte);
    let mut deflate = gix::zlib::stream::deflate::Write::new(&mut out, gix::zlib::Compression::NONE);
    // Writing into memory does not fail; if it ever did, the object's length would not fit and git would refuse it.
    drop(deflate.write_all(content).and_then(|()| deflate.flush()));
    out
}

/// A pack on its way to the disk.
struct Spool {
    file: BufWriter<NamedTempFile>,
    folder: PathBuf,
    entries: Vec<(Oid, u32, u64)>,
    offset: u64,
}

impl Spool {
    fn new(folder: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 18, read_only_file(folder, "tmp_pack_")?);
        // The number of objects comes last.
        file.write_all(b"PACK\0\0\0\x02\0\0\0\0")?;
        Ok(Self { file, folder: folder.to_owned(), entries: Vec::new(), offset: 12 })
    }

    fn append(&mut self, id: Oid, entry: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(entry).map_err(|source| WriteError::Io {
            action: "write a pack in",
            path: self.folder.clone(),
            source,
        })?;
        self.entries.push((id, crc32fast::hash(entry), self.offset));
        self.offset += entry.len() as u64;
        Ok(())
    }

    /// Completes the pack and its index, waits for them if asked to, and gives them their names: `.idx` last, because
    /// that is what readers look for.
    fn publish(mut self, store: &Store, durability: Durability) -> Result<(), WriteError> {
        let folder = self.folder;
        let failed = |source| WriteError::Io { action: "write a pack in", path: folder.clone(), source };
        let hash = store.object_hash();
        let mut pack = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        let count = u32::try_from(self.entries.len()).map_err(|error| failed(io::Error::other(error)))?;
        pack.seek(SeekFrom::Start(8)).and_then(|_| pack.write_all(&count.to_be_bytes())).map_err(failed)?;
        let checksum = hash_file(&mut pack, hash)?;
        pack.seek(SeekFrom::End(0)).and_then(|_| pack.write_all(checksum.as_slice())).map_err(failed)?;
        durability.sync(pack.as_file()).map_err(failed)?;

        self.entries.sort_unstable();
        let mut index = read_only_file(&folder, "tmp_idx_").map_err(failed)?;
        index.write_all(&index_of(&self.entries, &checksum, hash)?).map_err(failed)?;
        durability.sync(index.as_file()).map_err(failed)?;

        let base = folder.join(format!("pack-{checksum}"));
        for (file, extension) in [(pack, "pack"), (index, "idx")] {
            store.share(file.path()).map_err(failed)?;
            file.persist(base.with_extension(extension)).map_err(|error| failed(error.error))?;
        }
        durability.sync_dir(&folder).map_err(failed)
    }
}

fn hash_file(file: &mut NamedTempFile, hash: gix::hash::Kind) -> Result<Oid, WriteError> {
    let path = file.path().to_owned();
    let failed = |source| WriteError::Io { action: "read back", path: path.clone(), source };
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut hasher = gix::hash::hasher(hash);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = file.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            return hasher.try_finalize().map_err(|source| WriteError::Hash { source });
        }
        hasher.update(&buffer[..n]);
    }
}

/// A version 2 index of `entries`, which are sorted by id. See `gitformat-pack(5)`.
fn index_of(entries: &[(Oid, u32, u64)], pack: &Oid, hash: gix::hash::Kind) -> Result<Vec<u8>, WriteError> {
    let mut out = Vec::with_capacity(1100 + entries.len() * 44);
    out.extend_from_slice(b"\xfftOc\0\0\0\x02");
    let mut counts = [0u32; 256];
    for (id, ..) in entries {
        counts[usize::from(id.first_byte())] += 1;
    }
    let mut sum = 0u32;
    for count in counts {
        sum += count;
        out.extend_from_slice(&sum.to_be_bytes());
    }
    for (id, ..) in entries {
        out.extend_from_slice(id.as_slice());
    }
    for (_, crc, _) in entries {
        out.extend_from_slice(&crc.to_be_bytes());
    }
    let mut far: Vec<u64> = Vec::new();
    for (.., offset) in entries {
        match u32::try_from(*offset) {
            Ok(near) if near < 1 << 31 => out.extend_from_slice(&near.to_be_bytes()),
            _ => {
                out.extend_from_slice(&((1 << 31) | far.len() as u32).to_be_bytes());
                far.push(*offset);
            }
        }
    }
    for offset in far {
        out.extend_from_slice(&offset.to_be_bytes());
    }
    out.extend_from_slice(pack.as_slice());
    let mut hasher = gix::hash::hasher(hash);
    hasher.update(&out);
    let checksum = hasher.try_finalize().map_err(|source| WriteError::Hash { source })?;
    out.extend_from_slice(checksum.as_slice());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Repo, id};
    use super::super::tree::{Leaf, Tree, write_tree};
    use super::*;

    fn blobs(count: usize, bytes: usize) -> Vec<Vec<u8>> {
        (0..count).map(|i| format!("{i:08}").into_bytes().repeat(bytes / 8)).collect()
    }

    fn packs(repo: &Repo) -> Vec<PathBuf> {
        let folder = repo.path().join(".git/objects/pack");
        let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }

    #[test]
    fn many_objects_are_one_pack_and_few_are_loose() {
        for repo in [Repo::new(), Repo::sha256()] {
            for (count, bytes, packed) in [(3, 64, false), (LOOSE_OBJECTS, 64, true), (3, 4 << 20, true), (500, 200, true)] {
                let before = packs(&repo).len();
                let store = repo.store();
                let mut batch = Batch::new(&store).unwrap();
                let contents: Vec<Vec<u8>> = blobs(count, bytes)
                    .into_iter()
                    .map(|mut blob| {
                        blob.extend_from_slice(format!("{count}").as_bytes());
                        blob
                    })
                    .collect();
                let mut ids = Vec::new();
                for content in &contents {
                    ids.push(batch.blob(content.clone()).unwrap());
                }
                assert!(!repo.store().contains(&ids[0]), "visible before it is published");
                let published = batch.publish(Durability::Full).unwrap();
                assert_eq!(published, Published { written: count, reused: 0, healed: vec![] });
                assert_eq!(packs(&repo).len() - before, if packed { 2 } else { 0 }, "{count} of {bytes}");
                for (id, content) in ids.iter().zip(&contents) {
                    assert_eq!(*id, super::super::testing::id(&repo.git_with(&["hash-object", "--stdin"], content)));
                    assert_eq!(store.read_blob(id, 1 << 30).unwrap(), *content);
                    if count < 10 {
                        assert_eq!(repo.git(&["cat-file", "-s", &id.to_string()]), content.len().to_string());
                    }
                }
                repo.fsck();
            }
            for path in packs(&repo) {
                assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444, "{path:?}");
                assert!(path.to_str().unwrap().contains("/pack-"), "{path:?}");
            }
        }
    }

    #[test]
    fn parallel_blobs_keep_their_order_and_give_one_pack() {
        let (one, two) = (Repo::new(), Repo::new());
        let mut contents = blobs(300, 4096);
        contents.push(contents[7].clone());
        for repo in [&one, &two] {
            let store = repo.store();
            let mut batch = Batch::new(&store).unwrap();
            let found = batch.blobs_parallel(contents.clone()).unwrap();
            for ((id, digest), content) in found.iter().zip(&contents) {
                assert_eq!(*digest, Digest::of(content));
                assert_eq!(*id, gix::objs::compute_hash(gix::hash::Kind::Sha1, gix::objs::Kind::Blob, content).unwrap());
            }
            assert_eq!(batch.publish(Durability::Relaxed).unwrap().written, 300);
        }
        let name = |repo: &Repo| packs(repo).iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(name(&one), name(&two));
        assert_eq!(name(&one).len(), 2);

        // A second time nothing is written; a few are never packed.
        let store = one.store();
        let mut batch = Batch::new(&store).unwrap();
        batch.blobs_parallel(contents).unwrap();
        assert_eq!(batch.publish(Durability::Full).unwrap(), Published { written: 0, reused: 300, healed: vec![] });
        let mut batch = Batch::new(&store).unwrap();
        let few = batch.blobs_parallel(vec![b"a".to_vec(), b"b".to_vec()]).unwrap();
        batch.publish(Durability::Relaxed).unwrap();
        assert!(one.loose_file(&few[1].0).exists());
        assert_eq!(packs(&one).len(), 2);
    }

    #[test]
    fn a_load_that_fails_ends_the_batch() {
        let repo = Repo::new();
        let store = repo.store();
        let mut batch = Batch::new(&store).unwrap();
        let failed = batch.blobs_with(1000, |i| if i == 100 { Err(WriteError::ReadOnly) } else { Ok(vec![0; i]) });
        assert!(matches!(failed, Err(WriteError::ReadOnly)));
        drop(batch);
        assert_eq!(packs(&repo), Vec::<PathBuf>::new());
    }

    #[test]
    fn damaged_objects_are_healed_and_named() {
        for count in [2, 20] {
            let repo = Repo::new();
            let contents = blobs(count, 64);
            let ids: Vec<Oid> = contents.iter().map(|content| repo.blob(content)).collect();
            let other = std::fs::read(repo.loose_file(&ids[1])).unwrap();
            for damage in [&b""[..], b"garbage", &other] {
                repo.damage(&ids[0], damage);
                let store = repo.store();
                let mut batch = Batch::new(&store).unwrap();
                for content in &contents {
                    batch.blob(content.clone()).unwrap();
                }
                // Enough of it to make a pack, if there are many.
                batch.blobs_parallel((0..count - 2).map(|i| format!("{damage:?}{i}").into_bytes()).collect()).unwrap();
                let published = batch.publish(Durability::Full).unwrap();
                assert_eq!(published.healed, [ids[0]], "{damage:?}");
                assert_eq!(published.reused, count - 1);
                assert_eq!(repo.store().read_blob(&ids[0], 100).unwrap(), contents[0]);
                repo.fsck();
                if !packs(&repo).is_empty() {
                    break;
                }
            }
        }
    }

    #[test]
    fn commits_are_the_same_everywhere_and_pass_fsck() {
        let repo = Repo::new();
        let store = repo.store();
        let mut batch = Batch::new(&store).unwrap();
        let leaf = Leaf { id: batch.blob(b"x\n".to_vec()).unwrap(), executable: false };
        let tree = write_tree(&mut batch, &Tree::from([("a".parse().unwrap(), leaf)])).unwrap();
        let first = batch.commit(&CommitSpec::fixed(tree, vec![], "first".into())).unwrap();
        let spec = CommitSpec {
            author: Identity { name: " A <d>\na ".into(), email: "a@b>".into(), seconds: 1_700_000_000, offset: -12_600 },
            extra_headers: vec![("cbia-x".into(), "one\ntwo".into())],
            ..CommitSpec::fixed(tree, vec![first], "second\n\nCbia-Phase: GEN\n".into())
        };
        let second = batch.commit(&spec).unwrap();
        batch.publish(Durability::Full).unwrap();
        assert_eq!(first, id("728fb763224c91215ecade8157604dae46b37085"));
        let commit = store.read_commit(&second).unwrap();
        assert_eq!(commit.author, "A da <a@b> 1700000000 -0330");
        assert_eq!(commit.committer, "git-cbia <git-cbia@localhost> 0 +0000");
        assert_eq!(commit.extra_headers, [("cbia-x".to_owned(), "one\ntwo".to_owned())]);
        assert_eq!((commit.parents, commit.message), (vec![first], spec.message.clone()));
        assert_eq!(
            repo.git(&["log", "--format=%s|%(trailers:key=Cbia-Phase,valueonly)", &second.to_string()]),
            "second|GEN\n\nfirst|"
        );
        repo.git(&["update-ref", "refs/cbia/x", &second.to_string()]);
        repo.fsck();

        for (key, message) in [("tree", "m"), ("A", "m"), ("", "m"), ("x y", "m"), ("x", "m\0")] {
            let mut batch = Batch::new(&store).unwrap();
            let spec = CommitSpec { extra_headers: vec![(key.into(), "v".into())], message: message.into(), ..spec.clone() };
            assert!(matches!(batch.commit(&spec), Err(WriteError::Commit { .. })), "{key:?} {message:?}");
        }
    }

    #[test]
    fn a_shared_repository_stays_shared() {
        let repo = Repo::init(&["--shared=0660"]);
        let store = repo.store();
        for count in [1, 20] {
            let mut batch = Batch::new(&store).unwrap();
            let found = batch.blobs_parallel(blobs(count, 160)).unwrap();
            batch.publish(Durability::Relaxed).unwrap();
            let path = if count == 1 { repo.loose_file(&found[0].0) } else { packs(&repo)[0].clone() };
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440, "{path:?}");
            let folder = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
            assert_eq!(folder & 0o2777, 0o2770, "{path:?}");
        }
    }

    #[test]
    fn nothing_is_written_to_a_repository_opened_for_reading() {
        let repo = Repo::new();
        let options = super::super::open::OpenOptions { read_only: true, ..Default::default() };
        let store = Store::open_with(&repo.path(), options).unwrap();
        assert!(matches!(Batch::new(&store), Err(WriteError::ReadOnly)));
    }
}
