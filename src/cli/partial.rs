//! What a partial clone has left on its remote: git would fetch it when it is asked for, and git cbia asks nobody.

use crate::document::finding::{Code, Finding};
use crate::document::path::printable;
use crate::store::Store;

/// Gives findings that come of objects which are not here the commands that bring all of them, where the clone is partial.
pub fn explain(store: &Store, findings: &mut [Finding]) {
    let comes_of_it = |finding: &&mut Finding| finding.code == Code::EvidenceMissing || is_absence(&finding.message);
    let mut findings = findings.iter_mut().filter(comes_of_it).peekable();
    let Some(remote) = findings.peek().and_then(|_| promisor(store)) else { return };
    let commands = whole(store, &remote);
    for finding in findings {
        let before = match finding.code {
            // Nobody may have run it yet.
            Code::EvidenceMissing => "git cbia run makes it; if it was made elsewhere: ",
            _ => "",
        };
        let cause = format!("this clone is partial, and {} has what is missing here", printable(&remote));
        finding.hint = Some(format!("{before}{cause}, which only a whole clone gets: {commands}"));
    }
}

/// Whether a message ends with the words that an absent object has for itself.
fn is_absence(message: &str) -> bool {
    message.contains("the object ") && message.ends_with(" is missing")
}

/// The remote that has promised the objects that are not here.
fn promisor(store: &Store) -> Option<String> {
    let of_extension = store.config_string("extensions.partialClone").filter(|name| !name.is_empty());
    let promises = |name: &String| store.config_bool(&format!("remote.{name}.promisor")) == Some(true);
    of_extension.or_else(|| store.remotes().ok()?.into_iter().find(promises))
}

/// The commands that make the clone whole. Its own objects first, so that nothing is promised by nobody if they do not arrive.
fn whole(store: &Store, remote: &str) -> String {
    let shown = printable(remote);
    let keys =
        [format!("remote.{remote}.promisor"), format!("remote.{remote}.partialclonefilter"), "extensions.partialClone".into()];
    let unset = keys.iter().filter(|key| store.config_string(key).is_some());
    let unset: Vec<String> = unset.map(|key| format!(" && git config --unset-all {}", printable(key))).collect();
    format!("git fetch --refetch --no-filter {shown}{} && git cbia fetch {shown}", unset.concat())
}
