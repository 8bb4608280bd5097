//! What may become of git cbia's own refs: by their names, and by what they would point at.

use super::{Run, Update, Verifier, VerifyError, diagnose, unreadable};
use crate::document::finding::{Code, Finding};
use crate::gate::push::{Change, Place, place, protect};
use crate::store::Oid;
use crate::store::object::ObjectError;
use crate::store::share::{Reading, RunName, Unfit, Unkept};

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
            return Ok(vec![match (&place, change, update.old, update.new) {
                (Place::Run(state_key, executor_key), Change::Rewind, Some(old), Some(new)) => {
                    let run = |tip| Run { name: name.clone(), state_key: *state_key, executor_key: *executor_key, tip };
                    self.stands_in_the_way(&run(old), &run(new), finding)
                }
                _ => finding,
            }]);
        }
        let Some(new) = update.new else { return Ok(Vec::new()) };
        // What stays as it is was judged when it came.
        if update.old == Some(new) && matches!(place, Place::Run(..) | Place::Ledger) {
            return Ok(Vec::new());
        }
        let found = match place {
            Place::Ledger => self.is_commit(name, new).and_then(|()| self.records(name, update.old, new)),
            Place::Run(state_key, executor_key) => {
                let run = Run { name: name.clone(), state_key, executor_key, tip: new };
                let said = self.is_commit(name, new).and_then(|()| diagnose::chain(self.store, &run));
                // A run is finished, so nothing that it goes on from is a whole one: whatever stands there is mended by this, or it is refused.
                said.and_then(|()| self.is_whole(&run))
            }
            Place::Cache(key) => self.store.check_entry_at(&key, name, new, &|bytes| self.budgets.bytes.spend_many(bytes)),
            Place::Attestation(state_key, executor_key) => {
                self.budgets.signatures.spend().and_then(|()| self.store.check_attestation(name, new, &state_key, &executor_key))
            }
            Place::Ordinary | Place::Replace | Place::Private | Place::Unknown => Ok(()),
        };
        Ok(found.err().into_iter().collect())
    }

    /// Whether a run is whole and of its own name, by its objects alone: as `git cbia fetch` looks at what a remote offers.
    fn is_whole(&mut self, run: &Run) -> Result<(), Finding> {
        let (bytes, names) = (self.budgets.bytes.left(), self.budgets.names.left());
        let mut reading = Reading { known: std::mem::take(&mut self.vetted), bytes, names };
        let name = RunName { state_key: run.state_key, executor_key: run.executor_key };
        let vetted = self.store.vet_run(name, run.tip, &mut reading);
        self.vetted = reading.known;
        vetted.map_err(|unfit| match unfit {
            Unfit::Bytes(_) => self.budgets.bytes.exhausted().at(&run.name),
            Unfit::Names(_) => self.budgets.names.exhausted().at(&run.name),
            Unfit::Wrong(why) => {
                let message = format!("the run {} is refused: {why}", diagnose::short(run));
                diagnose::refused(Code::RunInvalid, run, message)
            }
        })
    }

    /// A run that would take the place of another: what is wrong with that, so that whoever pushes it knows what to do.
    fn stands_in_the_way(&mut self, old: &Run, new: &Run, rewound: Finding) -> Finding {
        if !self.store.contains(&old.tip) || self.is_whole(new).is_err() {
            return rewound;
        }
        let (there, here) = (diagnose::short(old), diagnose::short(new));
        let removed =
            format!("whoever administers the server removes it, in its repository: git update-ref -d {} {}", old.name, old.tip);
        let (message, hint) = match self.is_whole(old) {
            Ok(()) => (
                format!("{} is {there} already, another run of the same state and executor than {here}", old.name),
                format!(
                    "git cbia run --repeat 2 shows whether the generator does the same each time. If it does not, git cbia fetch brings the run that is there. If {there} was not generated, {removed}; then push again"
                ),
            ),
            Err(finding) if finding.code == Code::PushTooLarge => return rewound,
            Err(finding) => (
                format!(
                    "{} is {there}, which is no whole run and stands in the way of {here}, which is: {}",
                    old.name, finding.message
                ),
                format!("{removed}; then push again"),
            ),
        };
        Finding { message, ..rewound }.expected(there, here).hint(hint)
    }

    /// Whether a ledger goes on by records.
    fn records(&mut self, name: &str, old: Option<Oid>, new: Oid) -> Result<(), Finding> {
        let most = self.budgets.commits;
        let unkept = match self.store.vet_ledger(old, new, most, self.budgets.bytes.left()) {
            Ok(records) => {
                self.budgets.commits = most.saturating_sub(records);
                return Ok(());
            }
            Err(unkept) => unkept,
        };
        let said = |code, message: String| Finding::error(code, message).at(name);
        Err(match unkept {
            Unkept::Many => {
                let message = format!("more than {} commits are new", self.means.limits.commits);
                said(Code::PushTooLarge, message).hint("push fewer commits at a time")
            }
            Unkept::Bytes => self.budgets.bytes.exhausted().at(name),
            Unkept::Lost => said(Code::RefRewound, format!("{name} is a ledger, which only grows: {}", Unkept::Lost.why()))
                .hint("git cbia fetch first, which joins what is there with what is here"),
            Unkept::Wrong(why) => said(Code::LedgerMalformed, format!("{name} would be no ledger: {why}"))
                .hint("git cbia push pushes this clone's ledger; git cbia fsck says what is wrong with it"),
        })
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
