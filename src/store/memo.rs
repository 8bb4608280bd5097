//! `refs/cbia/memo`: policy decisions by the exact question they answer. Local only; a lost memo costs an evaluation, nothing else.
//!
//! Tree: `<aa>/<memo_key>/{decision,explain}.json`, so that two clones that asked the same questions hold the same tree.

use super::durable::Durability;
use super::pack::{Batch, CommitSpec};
use super::refs::{Cas, RefName};
use super::tree::{Leaf, Tree, TreeLimits, write_tree};
use super::{Store, StoreError};
use crate::document::digest::Digest;
use crate::document::path::RepoPath;

/// The largest remembered document, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;
/// How often a concurrent writer is given way to before the memo is left as it is.
const ATTEMPTS: u32 = 8;

/// A remembered decision, as bytes: whoever uses it checks it.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The question.
    pub key: Digest,
    /// `decision.json`.
    pub decision: Vec<u8>,
    /// `explain.json`.
    pub explain: Vec<u8>,
}

fn memo_ref() -> Result<RefName, StoreError> {
    Ok("refs/cbia/memo".parse()?)
}

fn path_of(key: &Digest, name: &str) -> Result<RepoPath, StoreError> {
    let key = key.to_string();
    Ok(format!("{}/{key}/{name}", &key[..2]).parse()?)
}

impl Store {
    /// What is remembered under `key`. Nothing, where anything about it cannot be read: the memo is no source of truth.
    pub fn memo(&self, key: &Digest) -> Option<Remembered> {
        let tip = self.ref_target(&memo_ref().ok()?).ok()??;
        let tree = self.tree_of(&tip).ok()?;
        let read = |name: &str| {
            let id = self.lookup(&tree, &path_of(key, name).ok()?).ok()??;
            self.read_blob(&id, MAX_DOCUMENT).ok()
        };
        Some(Remembered { key: *key, decision: read("decision.json")?, explain: read("explain.json")? })
    }

    /// Remembers decisions. A memo that cannot be read is begun anew.
    pub fn remember(&self, fresh: &[Remembered]) -> Result<(), StoreError> {
        let name = memo_ref()?;
        for _ in 0..ATTEMPTS {
            let tip = self.ref_target(&name)?;
            let known =
                tip.and_then(|tip| self.tree_of(&tip).ok()).and_then(|tree| self.read_tree(&tree, TreeLimits::default()).ok());
            let parents = if known.is_some() { tip.into_iter().collect() } else { Vec::new() };
            let mut tree: Tree = known.unwrap_or_default();
            let mut batch = Batch::new(self)?;
            for entry in fresh {
                for (file, bytes) in [("decision.json", &entry.decision), ("explain.json", &entry.explain)] {
                    let id = batch.blob(bytes.clone())?;
                    tree.insert(path_of(&entry.key, file)?, Leaf { id, executable: false });
                }
            }
            let tree = write_tree(&mut batch, &tree)?;
            let keys = fresh.iter().map(|entry| format!("Cbia-Memo-Key: {}\n", entry.key)).collect::<String>();
            let message = format!("memo: {} decision{}\n\n{keys}", fresh.len(), if fresh.len() == 1 { "" } else { "s" });
            let commit = batch.commit(&CommitSpec::fixed(tree, parents, message))?;
            batch.publish(Durability::Relaxed)?;
            if self.cas(&name, tip, Some(commit), Durability::Relaxed)?.outcome == Cas::Done {
                return Ok(());
            }
        }
        Ok(())
    }
}
