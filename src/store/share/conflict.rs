//! Two results under one name, here and on a remote: which, by whom, and what leads on.

use super::fetch::{MAX_NAMED, run_name};
use super::{Remote, ShareError, Sharing};
use crate::document::finding::{Code, Finding};
use crate::store::refs::RefName;
use crate::store::talk::RefUpdate;
use crate::store::{Oid, Store};

impl Store {
    /// Tells of each of these names what a remote holds instead of what is known here.
    pub(super) fn tell_conflicts(
        &self,
        sharing: &Sharing,
        remote: &Remote,
        prefix: &str,
        names: &[&str],
        findings: &mut Vec<Finding>,
    ) -> Result<(), ShareError> {
        for rest in names {
            let name: RefName = format!("refs/cbia/{rest}").parse()?;
            let (here, there) = (self.ref_target(&name)?, self.ref_target(&format!("{prefix}{rest}").parse()?)?);
            if let (Some(here), Some(there)) = (here, there)
                && here != there
            {
                let named = findings.len() < MAX_NAMED;
                let conflict = self.conflict(sharing, (remote, prefix), &name, [here, there], named)?;
                // What is none is not kept: it would still be here when it is there no more.
                if conflict.code == Code::SharedRefused {
                    let tracking = format!("{prefix}{rest}").parse()?;
                    self.update_refs(&[RefUpdate { name: tracking, new: None, expected: Some(Some(there)) }])?;
                }
                findings.push(conflict);
            }
        }
        Ok(())
    }

    /// Two results under one name, here and there: with `named`, who wrote which, as far as the ledgers tell. What is there may be none at all.
    pub(super) fn conflict(
        &self,
        sharing: &Sharing,
        (remote, prefix): (&Remote, &str),
        name: &RefName,
        [known, other]: [Oid; 2],
        named: bool,
    ) -> Result<Finding, ShareError> {
        let (at, shown, there) = (name.as_str(), remote.shown(), remote.at(prefix, name));
        let is_run = run_name(at.trim_start_matches("refs/cbia/"));
        // It did not land where git keeps what was there before.
        let vetted = is_run.filter(|_| self.contains(&other)).map(|run| self.vet_fetched(sharing, run, other));
        let given_back = "then git cbia push --all gives it yours";
        if let Some(Err(why)) = vetted {
            let (known, short) = (known.to_hex_with_len(12), other.to_hex_with_len(12));
            let message = format!("{at} is {known} here, and on {shown} it is {short}, which is no run of that name: {why}");
            let finding = Finding::error(Code::SharedRefused, message).at(name).expected(known, short);
            let hint = "what is here stays. Whoever administers the remote removes what is there, in its repository";
            return Ok(finding.hint(format!("{hint}: git update-ref -d {there} {other}; {given_back}")));
        }
        let by = |id: &Oid| -> Result<String, ShareError> {
            if !named {
                return Ok("by a writer who was not looked for".to_owned());
            }
            Ok(self.recorded_by(id)?.map_or("by a writer whose ledger is not known here".to_owned(), |who| format!("by {who}")))
        };
        let message = format!(
            "{at} is {} here, recorded {}, and {} on {shown}, recorded {}: one of the two is not what its inputs come to",
            known.to_hex_with_len(12),
            by(&known)?,
            other.to_hex_with_len(12),
            by(&other)?
        );
        let finding = Finding::error(Code::SharedConflict, message).at(name);
        let hint = "what is here stays; git cbia run --repeat 2 shows whether the generator does the same each time";
        if is_run.is_none() {
            return Ok(finding.hint(hint));
        }
        Ok(finding.expected(known.to_hex_with_len(12), other.to_hex_with_len(12)).hint(format!(
            "{hint}. If it does not, theirs is as good as yours: git update-ref -d {at}, git cbia fetch, and git cbia run takes it. If it does, theirs \
             was not generated: whoever administers the remote removes it there, git update-ref -d {there} {other}, {given_back}"
        )))
    }
}
