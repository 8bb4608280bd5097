//! Runs, cache entries, attestations and the ledger in one file, for where no network leads: git's own bundles.
//!
//! A bundle is what a remote would be: the ledger stands in it as `refs/cbia/ledgers/<writer>`, and what is taken from it is verified as what
//! is fetched from a remote.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use super::fsck::Census;
use super::runs::RunListing;
use super::share::{Fetched, ShareError};
use super::{Oid, Store, StoreError};
use crate::document::phase::Phase;

const LEDGER: &str = "refs/cbia/ledger";
/// What a bundle begins with.
const SIGNATURES: [&str; 2] = ["# v2 git bundle\n", "# v3 git bundle\n"];
/// The longest line of a bundle's header, in bytes.
const MAX_LINE: u64 = 4096;

/// Why a bundle was not made or read. What stands in it wrongly is a finding, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file is not a bundle.
    #[error("'{}' is not a git bundle", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to put into it.
    #[error("there is nothing to put into a bundle: no run, cache entry or record is stored here")]
    Empty,
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
    /// What is in it cannot be taken.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The repository cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<super::refs::RefError> for BundleError {
    fn from(error: super::refs::RefError) -> Self {
        Self::Store(error.into())
    }
}

impl From<super::git::GitError> for BundleError {
    fn from(error: super::git::GitError) -> Self {
        Self::Store(error.into())
    }
}

/// What a bundle holds.
#[derive(Clone, Default, Debug)]
pub struct Bundled {
    /// How many runs.
    pub runs: usize,
    /// How many cache entries.
    pub entries: usize,
    /// How many attestations.
    pub attestations: usize,
    /// The newest record of the ledger in it.
    pub ledger: Option<Oid>,
}

impl Store {
    /// Writes a bundle of these runs with their cache entries and attestations, and of the ledger; without runs given, of everything.
    pub fn create_bundle(&self, file: &Path, runs: Option<&[RunListing]>, writer: &str) -> Result<Bundled, BundleError> {
        let mut bundled = Bundled::default();
        let mut names: Vec<String> = Vec::new();
        let all = self.runs()?;
        for run in runs.unwrap_or(&all) {
            bundled.runs += 1;
            names.push(run.name.as_str().to_owned());
            let attestations = self.attestations(&run.state_key, &run.executor_key)?;
            bundled.attestations += attestations.len();
            names.extend(attestations.into_iter().map(|(name, _)| name.as_str().to_owned()));
        }
        let mut wanted = std::collections::BTreeSet::new();
        for run in runs.unwrap_or_default() {
            wanted.extend(self.keys_in_chain(run.tip)?);
        }
        for entry in self.cache_entries()? {
            let data = self.cache_key_data(&entry.key).filter(|data| matches!(data.phase, Phase::Gen | Phase::Repair));
            if data.is_some() && (runs.is_none() || wanted.contains(&entry.key)) {
                bundled.entries += 1;
                names.push(entry.name.as_str().to_owned());
            }
        }
        bundled.ledger = self.ledger_tip()?;
        names.extend(bundled.ledger.map(|_| LEDGER.to_owned()));
        if names.is_empty() {
            return Err(BundleError::Empty);
        }
        names.sort();
        let file = absolute(file)?;
        let folder = file.parent().unwrap_or(&file).to_owned();
        let failed = |action| {
            let path = file.clone();
            move |source| BundleError::Io { action, path, source }
        };
        let raw = tempfile::Builder::new().prefix(".cbia-").tempfile_in(&folder).map_err(failed("write"))?;
        let target = raw.path().to_string_lossy().into_owned();
        self.answer("bundle", &["create", "--quiet", &target, "--stdin"], (names.join("\n") + "\n").as_bytes())?;
        // By name, because git replaces the file.
        let source = File::open(raw.path()).map_err(failed("read"))?;
        let mut made = tempfile::Builder::new().prefix(".cbia-").tempfile_in(&folder).map_err(failed("write"))?;
        copy_renaming(source, made.as_file_mut(), writer).map_err(failed("write"))?;
        made.as_file().sync_all().map_err(failed("write"))?;
        made.persist(&file).map_err(|error| failed("write")(error.error))?;
        Ok(bundled)
    }

    /// Takes what a bundle holds as what a remote offers: it lands under `refs/cbia/remotes/bundle/`, and what is verified becomes usable.
    pub fn import_bundle(&self, file: &Path) -> Result<Fetched, BundleError> {
        // git does not read the objects of a bundle that it has all of; a damaged one is refused all the same.
        drop(self.verify_bundle(file)?);
        self.take_bundle(file)
    }

    fn take_bundle(&self, file: &Path) -> Result<Fetched, BundleError> {
        let file = absolute(file)?;
        check_is_bundle(&file)?;
        let opened = File::open(&file).map_err(|source| BundleError::Io { action: "read", path: file.clone(), source })?;
        let digest = crate::document::digest::Digest::of_reader(&mut BufReader::new(opened));
        let digest = digest.map_err(|source| BundleError::Io { action: "read", path: file.clone(), source })?;
        let sharing = self.sharing()?;
        let remote = self.bundle_remote(&file, &digest)?;
        Ok(self.fetch_shared(&sharing, &remote)?)
    }

    /// Looks at everything in a bundle, in a repository of its own that is thrown away. What taking it would say, and what stands in it.
    pub fn verify_bundle(&self, file: &Path) -> Result<(Fetched, Census, Store, tempfile::TempDir), BundleError> {
        let file = absolute(file)?;
        check_is_bundle(&file)?;
        let scratch =
            tempfile::tempdir().map_err(|source| BundleError::Io { action: "look into", path: file.clone(), source })?;
        let top = scratch.path().to_owned();
        let store = self.scratch_repository(&top).map_err(|source| BundleError::Io {
            action: "look into",
            path: file.clone(),
            source,
        })?;
        let fetched = store.take_bundle(&file)?;
        let census = store.examine(&|_| false)?;
        Ok((fetched, census, store, scratch))
    }

    /// An empty bare repository with the object format of this one.
    fn scratch_repository(&self, top: &Path) -> io::Result<Store> {
        for folder in ["objects/info", "objects/pack", "refs/heads"] {
            std::fs::create_dir_all(top.join(folder))?;
        }
        std::fs::write(top.join("HEAD"), "ref: refs/heads/main\n")?;
        let format = self.object_hash().to_string();
        let (version, extensions) = match format.as_str() {
            "sha1" => (0, String::new()),
            other => (1, format!("[extensions]\n\tobjectFormat = {other}\n")),
        };
        std::fs::write(
            top.join("config"),
            format!("[core]\n\trepositoryformatversion = {version}\n\tbare = true\n{extensions}"),
        )?;
        Store::open(top).map_err(io::Error::other)
    }
}

fn absolute(file: &Path) -> Result<PathBuf, BundleError> {
    std::path::absolute(file).map_err(|source| BundleError::Io { action: "find", path: file.to_owned(), source })
}

/// A folder would be taken for a repository.
fn check_is_bundle(file: &Path) -> Result<(), BundleError> {
    let failed = |source| BundleError::Io { action: "read", path: file.to_owned(), source };
    let foreign = || BundleError::Foreign { path: file.to_owned() };
    if !std::fs::metadata(file).map_err(failed)?.is_file() {
        return Err(foreign());
    }
    let mut first = String::new();
    let read = io::Read::take(BufReader::new(File::open(file).map_err(failed)?), MAX_LINE).read_line(&mut first);
    match read {
        Ok(_) if SIGNATURES.contains(&first.as_str()) => Ok(()),
        Ok(_) => Err(foreign()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(foreign()),
        Err(error) => Err(failed(error)),
    }
}

/// Copies a bundle; in its header the ledger gets the name that it has on a remote.
fn copy_renaming(source: File, target: &mut File, writer: &str) -> io::Result<()> {
    let mut source = BufReader::new(source);
    let mut target = io::BufWriter::new(target);
    loop {
        let mut line = Vec::new();
        if source.read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "git wrote no whole bundle"));
        }
        match line.strip_suffix(format!(" {LEDGER}\n").as_bytes()) {
            Some(id) => {
                target.write_all(id)?;
                target.write_all(format!(" refs/cbia/ledgers/{writer}\n").as_bytes())?;
            }
            None => target.write_all(&line)?,
        }
        if line == b"\n" {
            break;
        }
    }
    io::copy(&mut source, &mut target)?;
    target.flush()
}
