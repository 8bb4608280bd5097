//! What may become of refs, by their names alone: evidence only grows, and what belongs to one clone stays there.

use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};
use crate::document::path::printable;

/// What becomes of a ref.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is new.
    Create,
    /// It goes on from where it was, or stays there.
    Forward,
    /// It would lose something, or point at something else.
    Rewind,
    /// It is deleted.
    Delete,
}

/// What kind of ref a name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A branch, a tag, or another ref of the repository itself.
    Ordinary,
    /// A replacement of objects.
    Replace,
    /// A ledger.
    Ledger,
    /// A run, by its keys.
    Run(Digest, Digest),
    /// A cache entry, by its key.
    Cache(Digest),
    /// An attestation, by the keys of its run.
    Attestation(Digest, Digest),
    /// Something of one clone's own.
    Private,
    /// Below `refs/cbia/`, and nothing that is known.
    Unknown,
}

/// What a name is.
pub fn place(name: &str) -> Place {
    if name.starts_with("refs/replace/") {
        return Place::Replace;
    }
    let Some(rest) = name.strip_prefix("refs/cbia/") else {
        // A name that only a case-insensitive file system takes for one of these would shadow them there.
        let folded = name.to_lowercase();
        let shadows = folded.starts_with("refs/cbia/") || folded.starts_with("refs/replace/") || folded == "refs/cbia";
        return if shadows { Place::Unknown } else { Place::Ordinary };
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let key = |text: &str| text.parse::<Digest>().ok();
    let keys = |state: &str, executor: &str| key(state).zip(key(executor));
    match parts.as_slice() {
        ["ledger"] => Place::Ledger,
        ["ledgers", writer] if !writer.is_empty() => Place::Ledger,
        ["runs", state, executor] => keys(state, executor).map_or(Place::Unknown, |(s, e)| Place::Run(s, e)),
        ["cache", entry] => key(entry).map_or(Place::Unknown, Place::Cache),
        ["attestations", state, executor, signer] if !signer.is_empty() => {
            keys(state, executor).map_or(Place::Unknown, |(s, e)| Place::Attestation(s, e))
        }
        // The same for writers who are not trusted: nobody reads it who does not name it, and it only grows as well.
        ["ns", writer, rest @ ..] if !writer.is_empty() && rest.first().is_some_and(|first| *first != "ns") => {
            match place(&format!("refs/cbia/{}", rest.join("/"))) {
                Place::Private => Place::Unknown,
                place => place,
            }
        }
        ["memo"] | ["remotes" | "refused" | "outbox", ..] => Place::Private,
        _ => Place::Unknown,
    }
}

/// What stands against a change of a ref, by its name. The owner of an ordinary ref is the push policy.
pub fn protect(name: &str, change: Change) -> Option<Finding> {
    let shown = printable(name);
    let place = place(name);
    let what = match &place {
        Place::Ledger => "the ledger",
        Place::Run(..) => "a run",
        Place::Attestation(..) => "an attestation",
        Place::Cache(_) => "a cache entry",
        Place::Ordinary | Place::Replace | Place::Private | Place::Unknown => "a ref",
    };
    let refuse = |code, message: String, hint: &str| Some(Finding::error(code, message).at(&shown).hint(hint));
    match (place, change) {
        (Place::Ordinary, _) => None,
        (Place::Replace, Change::Delete) => None,
        (Place::Replace, _) => refuse(
            Code::ReplaceRef,
            format!("{shown} would show other objects than the ones that are verified"),
            "rewrite the history instead: git replace --convert-graft-file and git filter-branch, or leave the ref at home",
        ),
        (Place::Private, Change::Delete) => None,
        (Place::Private, _) => refuse(
            Code::RefPrivate,
            format!("{shown} belongs to one clone, and is not shared"),
            "git cbia push pushes what is shared",
        ),
        (Place::Unknown, Change::Delete) => None,
        (Place::Unknown, _) => refuse(
            Code::RefMalformed,
            format!("{shown} is no ref of git cbia"),
            "git cbia push pushes what is shared, by its right name",
        ),
        // An entry is evicted by deleting it: it can be made again, and nothing rests on it.
        (Place::Cache(_), Change::Create | Change::Forward | Change::Delete) => None,
        (_, Change::Create | Change::Forward) => None,
        (_, Change::Delete) => refuse(
            Code::RefDeleted,
            format!("{shown} is {what}, which is never deleted"),
            "leave it: it is the evidence of what was pushed",
        ),
        (_, Change::Rewind) => refuse(
            Code::RefRewound,
            format!("{shown} is {what}, which only grows: this would lose what it holds"),
            "git cbia fetch first, which joins what is there with what is here",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_only_grows_and_what_is_private_stays() {
        let (s, e) = (Digest::of(b"s"), Digest::of(b"e"));
        let run = format!("refs/cbia/runs/{s}/{e}");
        let upper = format!("refs/cbia/runs/{}/{e}", s.to_string().to_uppercase());
        let attestation = format!("refs/cbia/attestations/{s}/{e}/ada");
        let cache = format!("refs/cbia/cache/{s}");
        // For each name: create, forward, rewind, delete.
        let cases: [(&str, [&str; 4]); 22] = [
            ("refs/heads/main", ["", "", "", ""]),
            ("refs/notes/commits", ["", "", "", ""]),
            ("refs/cbia/ledger", ["", "", "ref-rewound", "ref-deleted"]),
            ("refs/cbia/ledgers/ada", ["", "", "ref-rewound", "ref-deleted"]),
            (&run, ["", "", "ref-rewound", "ref-deleted"]),
            (&attestation, ["", "", "ref-rewound", "ref-deleted"]),
            (&cache, ["", "", "ref-rewound", ""]),
            (&upper, ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/runs/x", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/ledgers/a/b", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/ledgers", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/x", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/ns/pulls/ledgers/ada", ["", "", "ref-rewound", "ref-deleted"]),
            ("refs/cbia/ns/pulls/memo", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/ns/pulls", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/ns/a/ns/b/ledger", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/CBIA/ledger", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/Replace/x", ["ref-malformed", "ref-malformed", "ref-malformed", ""]),
            ("refs/cbia/memo", ["ref-private", "ref-private", "ref-private", ""]),
            ("refs/cbia/remotes/origin/ledger", ["ref-private", "ref-private", "ref-private", ""]),
            ("refs/cbia/refused/runs/x", ["ref-private", "ref-private", "ref-private", ""]),
            ("refs/replace/abc", ["replace-ref", "replace-ref", "replace-ref", ""]),
        ];
        for (name, wanted) in cases {
            let changes = [Change::Create, Change::Forward, Change::Rewind, Change::Delete];
            let got = changes.map(|change| protect(name, change).map_or("", |finding| finding.code.as_str()));
            assert_eq!(got, wanted, "{name}");
        }
    }
}
