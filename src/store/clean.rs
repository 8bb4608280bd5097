//! What `git add` would make of a file: line endings, encodings, `$Id$` and filter drivers.

use std::io::Read as _;

use gix::bstr::ByteSlice as _;
use gix::filter::plumbing::pipeline::convert::ToGitOutcome;
use gix::worktree::stack::state::attributes::Source;

use crate::document::digest::Digest;
use crate::document::path::RepoPath;

use super::snapshot::ScanError;

/// The attributes that decide what is stored.
const ATTRIBUTES: [&str; 6] = ["crlf", "text", "eol", "ident", "filter", "working-tree-encoding"];
/// The settings that do.
const SETTINGS: [&str; 3] = ["core.autocrlf", "core.eol", "core.checkRoundtripEncoding"];

/// Converts files of one work tree.
pub(in crate::store) struct Cleaner<'r> {
    repo: &'r gix::Repository,
    index: &'r gix::index::State,
    pipeline: gix::filter::Pipeline<'r>,
    attributes: gix::AttributeStack<'r>,
    settings: String,
}

impl<'r> Cleaner<'r> {
    pub(in crate::store) fn new(repo: &'r gix::Repository, index: &'r gix::index::State) -> Result<Self, ScanError> {
        let attributes = || repo.attributes_only(index, Source::WorktreeThenIdMapping).map_err(ScanError::Rules);
        let pipeline = gix::filter::Pipeline::new(repo, attributes()?.detach()).map_err(ScanError::Rules)?;
        let config = repo.config_snapshot();
        let settings = SETTINGS.map(|key| format!("{key}={:?}\n", config.string(key))).concat();
        Ok(Self { repo, index, pipeline, attributes: attributes()?, settings })
    }

    /// Names everything but the file itself that decides what is stored for `path`.
    pub(in crate::store) fn fingerprint(&mut self, path: &RepoPath) -> Result<u64, ScanError> {
        let mut text = self.settings.clone();
        let mut matches = self.attributes.selected_attribute_matches(ATTRIBUTES);
        let platform = self.attributes.at_entry(path.as_str().as_bytes().as_bstr(), None).map_err(ScanError::Rules)?;
        platform.matching_attributes(&mut matches);
        let config = self.repo.config_snapshot();
        for found in matches.iter_selected() {
            text.push_str(&format!("{}\n", found.assignment));
            if found.assignment.name.as_str() == "filter"
                && let gix::attrs::StateRef::Value(name) = found.assignment.state
            {
                for part in ["clean", "process", "required"] {
                    let key = format!("filter.{}.{part}", name.as_bstr());
                    text.push_str(&format!("{key}={:?}\n", config.string(key.as_str())));
                }
            }
        }
        let digest = Digest::of(text.as_bytes());
        let (first, _) = digest.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
        Ok(u64::from_le_bytes(*first))
    }

    /// The bytes git would store; at most `limit` and one are produced.
    pub(in crate::store) fn clean(&mut self, path: &RepoPath, raw: Vec<u8>, limit: u64) -> Result<Vec<u8>, ScanError> {
        let wrap = |source| ScanError::Filter { path: path.clone(), source };
        let converted = self.pipeline.convert_to_git(raw.as_slice(), path.as_str().as_ref(), self.index);
        match converted.map_err(wrap)? {
            ToGitOutcome::Unchanged(_) => {}
            ToGitOutcome::Buffer(bytes) => return Ok(bytes.to_vec()),
            ToGitOutcome::Process(output) => {
                let mut bytes = Vec::new();
                let read = output.take(limit.saturating_add(1)).read_to_end(&mut bytes);
                read.map_err(|source| ScanError::Read { path: path.as_str().to_owned(), source })?;
                return Ok(bytes);
            }
        }
        Ok(raw)
    }
}
