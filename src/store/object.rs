//! Reading objects, each believed only after its bytes hash to its name.

use gix::bstr::ByteSlice as _;

use super::{Oid, Store};
use crate::document::digest::Digest;

/// The largest commit that is read, in bytes.
const MAX_COMMIT_BYTES: u64 = 1 << 20;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A file's bytes.
    Blob,
    /// A folder.
    Tree,
    /// A commit.
    Commit,
    /// An annotated tag.
    Tag,
}

impl Kind {
    /// The name git gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Tree => "tree",
            Self::Commit => "commit",
            Self::Tag => "tag",
        }
    }

    pub(in crate::store) fn to_gix(self) -> gix::objs::Kind {
        match self {
            Self::Blob => gix::objs::Kind::Blob,
            Self::Tree => gix::objs::Kind::Tree,
            Self::Commit => gix::objs::Kind::Commit,
            Self::Tag => gix::objs::Kind::Tag,
        }
    }

    pub(in crate::store) fn from_gix(kind: gix::objs::Kind) -> Self {
        match kind {
            gix::objs::Kind::Blob => Self::Blob,
            gix::objs::Kind::Tree => Self::Tree,
            gix::objs::Kind::Commit => Self::Commit,
            gix::objs::Kind::Tag => Self::Tag,
        }
    }
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It is not in the repository.
    #[error("the object {id} is missing")]
    Missing {
        /// The object.
        id: Oid,
    },
    /// What is stored under its name is something else, or cannot be decoded.
    #[error("the object {id} is corrupt: {what}")]
    Corrupt {
        /// The object.
        id: Oid,
        /// What is wrong with it.
        what: String,
    },
    /// It is longer than is acceptable here.
    #[error("the object {id} has {size} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// The object.
        id: Oid,
        /// Its length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// It is of another kind.
    #[error("the object {id} is a {}, not a {}", .found.as_str(), .wanted.as_str())]
    WrongKind {
        /// The object.
        id: Oid,
        /// What it is.
        found: Kind,
        /// What it should be.
        wanted: Kind,
    },
    /// The object database could not be read.
    #[error("the object {id} cannot be read")]
    Io {
        /// The object.
        id: Oid,
        /// The reason.
        source: gix::Error,
    },
}

impl ObjectError {
    /// Whether the object is absent or damaged, rather than unreadable at the moment or unacceptable.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Corrupt { .. })
    }
}

/// A commit, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The tree it records.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// The author line as it stands: `Name <address> seconds offset`; bytes that are not UTF-8 are replaced.
    pub author: String,
    /// The committer line as it stands.
    pub committer: String,
    /// The headers after the committer, unfolded: `gpgsig` among them.
    pub extra_headers: Vec<(String, String)>,
    /// The message; bytes that are not UTF-8 are replaced.
    pub message: String,
}

/// Reads the objects of a store from another thread: one per thread.
pub struct Reader {
    repo: gix::Repository,
}

impl Reader {
    /// See [`Store::read`].
    pub fn read(&self, id: &Oid, kind: Kind, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        read(&self.repo, id, kind, limit_bytes)
    }

    /// See [`Store::read_blob`].
    pub fn read_blob(&self, id: &Oid, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        self.read(id, Kind::Blob, limit_bytes)
    }
}

impl Store {
    /// A reader for another thread.
    pub fn reader(&self) -> Reader {
        Reader { repo: self.repo.clone() }
    }

    /// The bytes of an object of this kind, at most `limit_bytes` long, verified against its name.
    ///
    /// The length is taken from the object's header, before anything is allocated or inflated.
    pub fn read(&self, id: &Oid, kind: Kind, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        read(&self.repo, id, kind, limit_bytes)
    }

    /// The bytes of a blob of at most `limit_bytes`, verified.
    pub fn read_blob(&self, id: &Oid, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        self.read(id, Kind::Blob, limit_bytes)
    }

    /// The bytes of a blob whose SHA-256 and length are known. Its object id is not computed again: that would cost several times as much
    /// and say nothing more.
    pub fn read_content(&self, id: &Oid, sha256: Digest, length: u64) -> Result<Vec<u8>, ObjectError> {
        let mut bytes = Vec::new();
        read_unverified(&self.repo, id, Kind::Blob, length, &mut bytes)?;
        let actual = Digest::of(&bytes);
        if actual != sha256 || bytes.len() as u64 != length {
            return Err(ObjectError::Corrupt { id: *id, what: format!("its bytes have the SHA-256 {actual}, not {sha256}") });
        }
        Ok(bytes)
    }

    /// A commit of at most 1 MiB, verified and decoded.
    pub fn read_commit(&self, id: &Oid) -> Result<Commit, ObjectError> {
        let bytes = self.read(id, Kind::Commit, MAX_COMMIT_BYTES)?;
        let corrupt = |what: gix::Error| ObjectError::Corrupt { id: *id, what: what.to_string() };
        let commit = gix::objs::CommitRef::from_bytes(&bytes, self.object_hash()).map_err(corrupt)?;
        let text = |bytes: &[u8]| bytes.to_str_lossy().into_owned();
        Ok(Commit {
            tree: commit.tree(),
            parents: commit.parents().collect(),
            author: text(commit.author),
            committer: text(commit.committer),
            extra_headers: commit.extra_headers.iter().map(|(key, value)| (text(key), text(value.trim_end()))).collect(),
            message: text(commit.message),
        })
    }

    /// The tree of a commit.
    pub fn tree_of(&self, commit: &Oid) -> Result<Oid, ObjectError> {
        Ok(self.read_commit(commit)?.tree)
    }

    /// Whether an object of this name is there; says nothing of its bytes.
    pub fn contains(&self, id: &Oid) -> bool {
        self.repo.has_object(id)
    }
}

pub(in crate::store) fn read(repo: &gix::Repository, id: &Oid, kind: Kind, limit: u64) -> Result<Vec<u8>, ObjectError> {
    let mut bytes = Vec::new();
    read_unverified(repo, id, kind, limit, &mut bytes)?;
    let actual = gix::objs::compute_hash(id.kind(), kind.to_gix(), &bytes).map_err(|source| failure(id, source))?;
    if actual != *id {
        return Err(ObjectError::Corrupt { id: *id, what: format!("its bytes hash to {actual}") });
    }
    Ok(bytes)
}

/// The bytes of an object as the database gives them, into `bytes`. Only for a caller that holds them against another digest.
pub(in crate::store) fn read_unverified(
    repo: &gix::Repository,
    id: &Oid,
    kind: Kind,
    limit: u64,
    bytes: &mut Vec<u8>,
) -> Result<(), ObjectError> {
    use gix::prelude::{FindExt as _, Header as _};
    let header = repo.objects.try_header(id).map_err(|source| failure(id, source))?;
    let header = header.ok_or(ObjectError::Missing { id: *id })?;
    let found = Kind::from_gix(header.kind());
    if found != kind {
        return Err(ObjectError::WrongKind { id: *id, found, wanted: kind });
    }
    if header.size() > limit {
        return Err(ObjectError::TooLarge { id: *id, size: header.size(), limit });
    }
    let found = Kind::from_gix(repo.objects.find(id, bytes).map_err(|source| failure(id, source))?.kind);
    if found != kind {
        return Err(ObjectError::WrongKind { id: *id, found, wanted: kind });
    }
    Ok(())
}

/// gix's reason, sorted: damage is told from absence and from trouble with the file system.
fn failure(id: &Oid, source: gix::Error) -> ObjectError {
    if source.is_not_found() {
        ObjectError::Missing { id: *id }
    } else if source.iter_errors().any(|error| error.is::<std::io::Error>()) && !source.is_corrupted() {
        ObjectError::Io { id: *id, source }
    } else {
        ObjectError::Corrupt { id: *id, what: source.to_string() }
    }
}

/// The trailers of a commit's message as `git interpret-trailers --parse` lists them: key and unfolded value, in order.
///
/// A message's last paragraph is its trailer block if every line of it is a trailer or continues one.
pub fn trailers(commit: &Commit) -> Vec<(String, String)> {
    let message = commit.message.trim_end();
    let Some((_, block)) = message.rsplit_once("\n\n") else { return Vec::new() };
    let mut found: Vec<(String, String)> = Vec::new();
    for line in block.lines() {
        if line.starts_with([' ', '\t']) {
            let Some((_, value)) = found.last_mut() else { return Vec::new() };
            value.push(' ');
            value.push_str(line.trim());
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { return Vec::new() };
        let key = key.trim_end();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Vec::new();
        }
        found.push((key.to_owned(), value.trim().to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Repo, id};
    use super::*;

    fn name(result: Result<Vec<u8>, ObjectError>) -> &'static str {
        match result {
            Ok(_) => "read",
            Err(ObjectError::Missing { .. }) => "missing",
            Err(ObjectError::Corrupt { .. }) => "corrupt",
            Err(ObjectError::TooLarge { .. }) => "too large",
            Err(ObjectError::WrongKind { .. }) => "wrong kind",
            Err(ObjectError::Io { .. }) => "io",
        }
    }

    #[test]
    fn an_object_is_believed_only_when_it_hashes_to_its_name() {
        for repo in [Repo::new(), Repo::sha256()] {
            let (good, other) = (repo.blob(b"good\n"), repo.blob(b"other\n"));
            assert_eq!(repo.store().read_blob(&good, 5).unwrap(), b"good\n");
            assert_eq!(name(repo.store().read_blob(&good, 4)), "too large");
            assert_eq!(name(repo.store().read(&good, Kind::Tree, 100)), "wrong kind");
            let absent = repo.git_with(&["hash-object", "--stdin"], b"absent");
            assert_eq!(name(repo.store().read_blob(&id(&absent), 100)), "missing");

            let swapped = std::fs::read(repo.loose_file(&other)).unwrap();
            let whole = std::fs::read(repo.loose_file(&good)).unwrap();
            for bytes in [&swapped[..], b"", b"garbage", &whole[..whole.len() - 3], &whole[..5]] {
                repo.damage(&good, bytes);
                assert_eq!(name(repo.store().read_blob(&good, 100)), "corrupt", "{bytes:?}");
                assert_eq!(name(repo.store().reader().read_blob(&good, 100)), "corrupt", "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let repo = Repo::new();
        let zeros = repo.blob(&vec![0; 64 << 20]);
        assert_eq!(name(repo.store().read_blob(&zeros, 1 << 20)), "too large");
        // A header that claims a terabyte, over nothing.
        let mut deflate = gix::zlib::stream::deflate::Write::new(Vec::new(), gix::zlib::Compression::NONE);
        std::io::Write::write_all(&mut deflate, b"blob 1099511627776\0x").unwrap();
        std::io::Write::flush(&mut deflate).unwrap();
        repo.damage(&zeros, &deflate.into_inner());
        assert_eq!(name(repo.store().read_blob(&zeros, 1 << 20)), "too large");
    }

    #[test]
    fn replace_refs_and_grafts_change_nothing() {
        let repo = Repo::new();
        let (good, evil) = (repo.blob(b"good\n"), repo.blob(b"evil\n"));
        repo.git(&["replace", &good.to_string(), &evil.to_string()]);
        assert_eq!(repo.git(&["cat-file", "blob", &good.to_string()]), "evil");
        assert_eq!(repo.store().read_blob(&good, 100).unwrap(), b"good\n");

        let first = repo.commit(&[("a", "1")]);
        let second = repo.commit(&[("a", "2")]);
        std::fs::write(repo.path().join(".git/info/grafts"), format!("{second}\n")).unwrap();
        assert_eq!(repo.store().read_commit(&second).unwrap().parents, [first]);
    }

    #[test]
    fn a_commit_and_its_trailers_are_what_git_sees() {
        let repo = Repo::new();
        let parent = repo.commit(&[("a", "1")]);
        let messages = [
            "subject\n\nbody\n\nCbia-Phase: GEN\nCbia-Key: a b\n folded\n",
            "subject\n\nCbia-Phase: GEN\n\nnot a trailer\n",
            "Subject: no trailer\n",
            "subject\n\nA:b\nReviewed-by: Ada <a@b>\n\n\n",
            "subject\n",
        ];
        for message in messages {
            repo.git_with(&["commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-"], message.as_bytes());
            let store = repo.store();
            let id = store.head().unwrap().unwrap();
            let commit = store.read_commit(&id).unwrap();
            assert_eq!(commit.message, message);
            assert_eq!(commit.author, "Ada <ada@example.org> 1700000000 +0100");
            assert_eq!(commit.tree, store.tree_of(&parent).unwrap());
            let ours: Vec<String> = trailers(&commit).into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let theirs = repo.git_with(&["interpret-trailers", "--parse"], message.as_bytes());
            assert_eq!(ours.join("\n"), theirs, "{message:?}");
        }
    }
}
