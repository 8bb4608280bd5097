//! What may become of git cbia's own refs: by their names, and by what they would point at.

use super::{Run, Update, Verifier, VerifyError, diagnose, unreadable};
use crate::document::finding::{Code, Finding};
use crate::gate::push::{Change, Place, place, protect};
use crate::store::Oid;
use crate::store::object::ObjectError;

impl Verifier<'_> {
    /// What stands against an update of a ref of git cbia, or of a replacement. Nothing stands against other refs here.
    pub fn guarded(&mut self, update: &Update) -> Result<Vec<Finding>, VerifyError> {
        let Some(name) = &update.name else { return Ok(Vec::new()) };
        let place = place(name);
        if place == Place::Ordinary {
            return Ok(Vec::new());
        }
        let change = match (update.old, update.new) {
            (_, None) => Change::Delete,
            (None, Some(_)) => Change::Create,
            (Some(old), Some(new)) if old == new => Change::Forward,
            // What cannot be followed is no way forward.
            (Some(old), Some(new)) if self.store.is_ancestor(old, new).unwrap_or(false) => Change::Forward,
            (Some(_), Some(_)) => Change::Rewind,
        };
        if let Some(finding) = protect(name, change) {
            return Ok(vec![finding]);
        }
        let Some(new) = update.new else { return Ok(Vec::new()) };
        let found = match place {
            Place::Ledger => self.is_commit(name, new),
            Place::Run(state_key, executor_key) => {
                let run = Run { name: name.clone(), state_key, executor_key, tip: new };
                self.is_commit(name, new).and_then(|()| diagnose::chain(self.store, &run))
            }
            Place::Cache(key) => self.store.check_entry_at(&key, name, new, &|bytes| self.budgets.bytes.spend_many(bytes)),
            Place::Attestation(state_key, executor_key) => {
                self.budgets.signatures.spend().and_then(|()| self.store.check_attestation(name, new, &state_key, &executor_key))
            }
            Place::Ordinary | Place::Replace | Place::Private | Place::Unknown => Ok(()),
        };
        Ok(found.err().into_iter().collect())
    }

    fn is_commit(&self, name: &str, id: Oid) -> Result<(), Finding> {
        match self.store.read_commit(&id) {
            Ok(_) => Ok(()),
            Err(ObjectError::WrongKind { found, .. }) => {
                let message = format!("{name} would point at a {}, and not at a commit", found.as_str());
                Err(Finding::error(Code::RefMalformed, message).at(name).hint("git cbia push pushes what is shared, as it is"))
            }
            Err(error) => Err(unreadable(&format!("what {name} would point at cannot be read"), &error).at(name)),
        }
    }
}
