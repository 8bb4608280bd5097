//! AUTHORITY_LOCK: nothing is generated from sources that are not pinned.

use std::collections::{BTreeMap, BTreeSet};

use super::Files;
use crate::document::SCHEMA_VERSION;
use crate::document::authority_ledger::{Authority, AuthorityLedger};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, refuses};
use crate::document::lock_report::{LockReport, LockStatus, LockedAuthority};
use crate::document::objectives::Objective;
use crate::document::path::RepoPath;
use crate::document::phase::Phase;
use crate::document::schema::Sealed;

/// Where the authority ledger is.
pub const LEDGER_PATH: &str = "control/authority.ledger.json";
/// Where the objectives are.
pub const OBJECTIVES_PATH: &str = "control/objectives.json";

/// What AUTHORITY_LOCK has to say.
#[derive(Debug)]
pub struct Lock {
    /// The report that is emitted.
    pub report: LockReport,
    /// SHA-256 of each `file` authority's bytes, by id.
    pub authority_set_hashes: BTreeMap<String, Digest>,
    /// Everything that stands against it, and warnings.
    pub findings: Vec<Finding>,
}

/// A lock that does not hold because the ledger cannot be read.
pub fn broken(ledger_hash: Option<Digest>, findings: Vec<Finding>) -> Lock {
    let report = report(ledger_hash, Vec::new(), &findings);
    Lock { report, authority_set_hashes: BTreeMap::new(), findings }
}

/// Checks the ledger against the files it pins, and the objectives' evidence against both (packet phase 0).
pub fn lock(ledger: &Sealed<AuthorityLedger>, objectives: Option<&Sealed<Vec<Objective>>>, files: &dyn Files) -> Lock {
    let ledger_text = text_of(files, LEDGER_PATH);
    let mut findings = Vec::new();
    let at = |finding: Finding, pointer: String| finding.at(LEDGER_PATH).pointing(pointer, &ledger_text);

    if ledger.document.frozen != Some(true) {
        let got = ledger.document.frozen.map_or("absent".to_owned(), |frozen| frozen.to_string());
        let finding =
            Finding::error(Code::AuthorityNotFrozen, "the authority ledger is not frozen, so its authorities can still change");
        findings.push(at(finding, "/frozen".into()).expected("true", got).hint("review it, then run: git cbia authority freeze"));
    }
    if ledger.document.authority_set.is_empty() {
        let finding = Finding::error(
            Code::AuthoritySetEmpty,
            "the authority ledger has no authorities, so there is nothing to generate from",
        );
        findings.push(at(finding, "/authority_set".into()).hint("git cbia authority add <file>"));
    }

    let (mut ids, mut hashes, mut locked) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    for (index, authority) in ledger.document.authority_set.iter().enumerate() {
        let id = &authority.authority_id;
        let pointer = |rest: &str| format!("/authority_set/{index}{rest}");
        let before = findings.len();
        if !ids.insert(id.as_str()) {
            let finding = Finding::error(Code::AuthorityIdDuplicate, format!("two authorities have the id {id}"));
            findings.push(at(finding, pointer("/authority_id")).hint("give each authority an id of its own"));
        }
        if authority.locator().is_none() {
            let finding = Finding::error(Code::AuthorityLocatorMissing, format!("the authority {id} has no source.locator"));
            findings.push(
                at(finding, pointer("/source/locator"))
                    .hint("say where it is: \"source\": {\"kind\": \"file\", \"locator\": \"<path>\"}"),
            );
        }
        let actual = if authority.kind() == "file" {
            check_file(authority, files, &mut findings, &|f, rest| at(f, pointer(rest)))
        } else {
            None
        };
        check_pin(authority, actual, &mut findings, &|f, rest| at(f, pointer(rest)));
        if let Some(actual) = actual {
            hashes.insert(id.clone(), actual);
        }
        let status = match (authority.kind(), findings.len() > before) {
            (_, true) => LockStatus::Broken,
            ("file", false) => LockStatus::Locked,
            (_, false) => LockStatus::Unverifiable,
        };
        locked.push(LockedAuthority {
            authority_id: id.clone(),
            kind: authority.kind().to_owned(),
            locator: authority.locator().map(str::to_owned),
            expected: authority.hash.as_ref().and_then(|h| h.value.clone()),
            actual,
            status,
        });
    }
    if let Some(objectives) = objectives {
        findings.extend(check_evidence(&ledger.document, &objectives.document, &hashes, files));
    }
    Lock { report: report(Some(ledger.sha256), locked, &findings), authority_set_hashes: hashes, findings }
}

fn report(authority_ledger_hash: Option<Digest>, authorities: Vec<LockedAuthority>, findings: &[Finding]) -> LockReport {
    let refusals: BTreeSet<String> = findings.iter().map(|f| f.code.to_string()).collect();
    LockReport {
        schema_version: SCHEMA_VERSION.into(),
        phase: Phase::AuthorityLock,
        locked: !refuses(findings),
        authority_ledger_hash,
        authorities,
        refusals: refusals.into_iter().collect(),
    }
}

fn text_of(files: &dyn Files, path: &str) -> Vec<u8> {
    path.parse().ok().and_then(|path| files.bytes(&path).map(|bytes| bytes.into_owned())).unwrap_or_default()
}

type Place<'a> = &'a dyn Fn(Finding, &str) -> Finding;

fn check_file(authority: &Authority, files: &dyn Files, findings: &mut Vec<Finding>, at: Place) -> Option<Digest> {
    let (id, locator) = (&authority.authority_id, authority.locator()?);
    let path = match locator.parse::<RepoPath>() {
        Ok(path) => path,
        Err(error) => {
            let finding = Finding::error(Code::PathInvalid, format!("the locator of the authority {id} cannot be used: {error}"));
            findings.push(at(finding, "/source/locator").hint("a file's locator is its path from the top of the repository"));
            return None;
        }
    };
    let actual = files.sha256(&path);
    if actual.is_none() {
        let finding = Finding::error(
            Code::AuthorityMissing,
            format!("the authority {id} is not there: {path} is missing or ignored by git"),
        );
        findings.push(at(finding, "/source/locator").hint(format!("restore {path}, or thaw the ledger and take {id} out")));
    }
    actual
}

fn check_pin(authority: &Authority, actual: Option<Digest>, findings: &mut Vec<Finding>, at: Place) {
    let id = &authority.authority_id;
    let Some(value) = authority.hash.as_ref().and_then(|h| h.value.as_deref()).filter(|v| !v.is_empty()) else {
        let finding = Finding::error(Code::AuthorityHashMissing, format!("the authority {id} has no hash, so nothing pins it"));
        findings.push(at(finding, "/hash/value").hint("git cbia authority add <file> writes the ledger with the right hash"));
        return;
    };
    let Some(pinned) = authority.pinned() else {
        let message = format!("the hash of the authority {id} is not a SHA-256 digest");
        let alg = authority.hash.as_ref().and_then(|h| h.alg.as_deref()).unwrap_or("absent");
        let finding = Finding::error(Code::AuthorityHashInvalid, message);
        let got = format!("{alg}: {}", crate::document::path::printable(value));
        findings.push(
            at(finding, "/hash")
                .expected("sha256: 64 lower-case hexadecimal digits", got)
                .hint("\"hash\": {\"alg\": \"sha256\", \"value\": \"<digest>\"}"),
        );
        return;
    };
    if let Some(actual) = actual.filter(|actual| *actual != pinned) {
        let locator = authority.locator().unwrap_or_default();
        let message =
            format!("the authority {id} is not what was pinned: {} has other bytes", crate::document::path::printable(locator));
        let hint = format!(
            "restore {locator}, or, if the change is meant: git cbia authority thaw && git cbia authority add {locator} && git cbia authority freeze"
        );
        findings
            .push(at(Finding::error(Code::AuthorityHashMismatch, message), "/hash/value").expected(pinned, actual).hint(hint));
    }
}

fn check_evidence(
    ledger: &AuthorityLedger,
    objectives: &[Objective],
    hashes: &BTreeMap<String, Digest>,
    files: &dyn Files,
) -> Vec<Finding> {
    let text = text_of(files, OBJECTIVES_PATH);
    let mut findings = Vec::new();
    for (o, objective) in objectives.iter().enumerate() {
        // An authority that does not exist is the kernel's finding, not this gate's.
        let Some(authority) = ledger.find(&objective.source.authority_id) else { continue };
        // An authority that is not what was pinned is refused already; holding evidence against other bytes would only repeat it.
        let pinned = authority.pinned();
        if hashes.get(&authority.authority_id) != pinned.as_ref() {
            continue;
        }
        for (e, evidence) in objective.source.evidence.iter().enumerate() {
            let mut push = |code, rest: &str, message: String, expected: String, got: &str, hint: &str| {
                let pointer = format!("/{o}/source/evidence/{e}{rest}");
                let finding = Finding::error(code, message).at(OBJECTIVES_PATH).pointing(pointer, &text);
                findings.push(finding.expected(expected, crate::document::path::printable(got)).hint(hint));
            };
            let id = &objective.id;
            let reference = evidence.hash_ref.as_ref();
            let file_sha256 = reference.and_then(|r| r.file_sha256.as_deref()).unwrap_or("absent");
            let wanted = pinned.map_or("the authority's hash".to_owned(), |pinned| pinned.to_string());
            if wanted != file_sha256 {
                let message = format!(
                    "the evidence of the objective {id} does not name the hash of its authority {}",
                    authority.authority_id
                );
                push(
                    Code::EvidenceHashMismatch,
                    "/hash_ref/file_sha256",
                    message,
                    wanted,
                    file_sha256,
                    "copy the authority's hash from the ledger",
                );
            }
            let Some(quote) = evidence.quote.as_deref() else { continue };
            let bytes = authority.file().and_then(|path| files.bytes(&path).map(|b| b.into_owned())).unwrap_or_default();
            if quote.is_empty() || !contains(&bytes, quote.as_bytes()) {
                let message = format!(
                    "the quote that the objective {id} gives does not stand in {}",
                    authority.locator().unwrap_or("its authority")
                );
                push(
                    Code::EvidenceQuoteMissing,
                    "/quote",
                    message,
                    "words of the authority, byte for byte".into(),
                    quote,
                    "quote the authority exactly, white space included",
                );
            }
            let wanted = Digest::of(quote.as_bytes()).to_string();
            let given = reference.and_then(|r| r.quote_sha256.as_deref()).unwrap_or("absent");
            if given != wanted {
                let message = format!("the quote of the objective {id} does not have the hash it is given");
                push(
                    Code::EvidenceQuoteHashMismatch,
                    "/hash_ref/quote_sha256",
                    message,
                    wanted,
                    given,
                    "the hash is SHA-256 over the quote's UTF-8 bytes",
                );
            }
        }
    }
    findings
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    use gix::bstr::ByteSlice as _;
    haystack.find(needle).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::document::json::emit;
    use crate::document::schema::{Kind, load};
    use crate::gate::testing::{Fixture, told};

    fn check(ledger: Value, objectives: Value) -> Lock {
        let (ledger, objectives) = (emit(&ledger), emit(&objectives));
        let files = Fixture::new(&[(LEDGER_PATH, &ledger), (OBJECTIVES_PATH, &objectives), ("docs/a.md", b"one two\nthree\n")]);
        let ledger = load(Kind::AuthorityLedger, &LEDGER_PATH.parse().unwrap(), &ledger).unwrap();
        let objectives = load(Kind::Objectives, &OBJECTIVES_PATH.parse().unwrap(), &objectives).unwrap();
        lock(&ledger, Some(&objectives), &files)
    }

    fn good() -> Value {
        json!({"schema_version": "0.1.0", "frozen": true, "authority_set": [
            {"authority_id": "A", "title": "a", "source": {"kind": "file", "locator": "docs/a.md"},
             "hash": {"alg": "sha256", "value": Digest::of(b"one two\nthree\n")}}]})
    }

    #[test]
    fn a_frozen_ledger_over_unchanged_files_locks() {
        let lock = check(good(), json!([]));
        assert_eq!(told(&lock.findings), Vec::<String>::new());
        assert!(lock.report.locked);
        assert_eq!(lock.report.authorities[0].status, LockStatus::Locked);
        assert_eq!(lock.authority_set_hashes["A"], Digest::of(b"one two\nthree\n"));
    }

    #[test]
    fn each_breach_of_the_ledger_has_its_own_code() {
        let cases: &[(&str, Value, &str)] = &[
            ("/frozen", json!(false), "authority-not-frozen /frozen"),
            ("/frozen", Value::Null, "authority-not-frozen /frozen"),
            ("/authority_set", json!([]), "authority-set-empty /authority_set"),
            ("/authority_set/0/source/locator", Value::Null, "authority-locator-missing /authority_set/0/source/locator"),
            ("/authority_set/0/source/locator", json!(""), "authority-locator-missing /authority_set/0/source/locator"),
            ("/authority_set/0/source/locator", json!("../a.md"), "path-invalid /authority_set/0/source/locator"),
            ("/authority_set/0/source/locator", json!("docs/b.md"), "authority-missing /authority_set/0/source/locator"),
            ("/authority_set/0/hash", Value::Null, "authority-hash-missing /authority_set/0/hash/value"),
            ("/authority_set/0/hash/value", json!("zz"), "authority-hash-invalid /authority_set/0/hash"),
            ("/authority_set/0/hash/alg", json!("md5"), "authority-hash-invalid /authority_set/0/hash"),
            ("/authority_set/0/hash/value", json!(Digest::of(b"x")), "authority-hash-mismatch /authority_set/0/hash/value"),
        ];
        for (pointer, value, wanted) in cases {
            let mut ledger = good();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let parent = ledger.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            if value.is_null() {
                drop(parent.remove(name))
            } else {
                drop(parent.insert(name.into(), value.clone()))
            }
            let lock = check(ledger, json!([]));
            assert_eq!(told(&lock.findings), [*wanted], "{pointer} = {value}");
            assert!(!lock.report.locked);
            assert!(lock.findings[0].hint.is_some() && lock.findings[0].line.is_some());
        }
        let mut ledger = good();
        let again = ledger["authority_set"][0].clone();
        ledger["authority_set"].as_array_mut().unwrap().push(again);
        assert_eq!(told(&check(ledger, json!([])).findings), ["authority-id-duplicate /authority_set/1/authority_id"]);
    }

    #[test]
    fn other_kinds_are_recorded_as_unverifiable() {
        let mut ledger = good();
        ledger["authority_set"][0]["source"]["kind"] = json!("url");
        let lock = check(ledger, json!([]));
        assert_eq!(lock.report.authorities[0].status, LockStatus::Unverifiable);
        assert!(lock.authority_set_hashes.is_empty());
    }

    #[test]
    fn evidence_is_held_to_the_authority() {
        let hash = Digest::of(b"one two\nthree\n");
        let cases: &[(Value, &[&str])] = &[
            (json!({"quote": "two\nthree", "hash_ref": {"file_sha256": hash, "quote_sha256": Digest::of(b"two\nthree")}}), &[]),
            (json!({"hash_ref": {"file_sha256": hash}}), &[]),
            (json!({}), &["evidence-hash-mismatch /0/source/evidence/0/hash_ref/file_sha256"]),
            (
                json!({"hash_ref": {"file_sha256": Digest::of(b"")}}),
                &["evidence-hash-mismatch /0/source/evidence/0/hash_ref/file_sha256"],
            ),
            (
                json!({"quote": "four", "hash_ref": {"file_sha256": hash, "quote_sha256": Digest::of(b"four")}}),
                &["evidence-quote-missing /0/source/evidence/0/quote"],
            ),
            (
                json!({"quote": "one", "hash_ref": {"file_sha256": hash}}),
                &["evidence-quote-hash-mismatch /0/source/evidence/0/hash_ref/quote_sha256"],
            ),
            (
                json!({"quote": "", "hash_ref": {"file_sha256": hash, "quote_sha256": Digest::of(b"")}}),
                &["evidence-quote-missing /0/source/evidence/0/quote"],
            ),
        ];
        for (evidence, wanted) in cases {
            let objectives = json!([{"id": "O", "statement": "s", "source": {"authority_id": "A", "evidence": [evidence]}}]);
            assert_eq!(told(&check(good(), objectives).findings), *wanted, "{evidence}");
        }
    }
}
