//! `refs/cbia/attestations/<state_key>/<executor_key>/<signer>`: signed tags on a run's last phase commit.
//!
//! Signatures are made and checked by git (`git tag -s`, `git verify-tag`). Who counts as a signer is said by the caller, in git's
//! allowed-signers format: for a push, it is what the branch held before.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::compare::Thing;
use super::durable::Durability;
use super::object::{Kind, ObjectError};
use super::refs::{Cas, RefName};
use super::{Oid, Store, StoreError};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::path::printable;

/// Where attestations are, below `refs/cbia/` or below what was fetched from a remote.
const FOLDER: &str = "attestations";
/// The largest tag that is read, in bytes; one of ours has less than 4 KiB with any key.
const MAX_TAG_BYTES: u64 = 64 << 10;
/// The largest file of allowed signers that is read, in bytes.
const MAX_SIGNERS: u64 = 1 << 20;
/// How many attestations of one run are checked: each costs three processes.
const MAX_CHECKED: usize = 64;
const ARMOR: (&str, &str) = ("-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----");

/// Whose word a run needs: `cbia.trust` and `cbia.attestations`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The content of a run speaks for itself.
    Content,
    /// A run counts only if so many allowed signers, at least one, attested it.
    Signed(usize),
}

/// Which runs are derived again where they are verified: `cbia.rederive`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Rederive {
    /// All of them.
    #[default]
    Always,
    /// Those that fewer allowed signers attested than this, at least one: `cbia.attestations`.
    Unattested(usize),
}

/// An allowed signer of a valid attestation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Signer {
    /// The principals of the line in the allowed-signers file, as they stand there.
    pub principal: String,
    /// The key's fingerprint, as ssh prints it: `SHA256:…`.
    pub key: String,
}

/// What the attestations of a run come to.
#[derive(Clone, Default, Debug)]
pub struct Attested {
    /// Who attested it, in order of principal and key. One person may be here with several keys: count with [`Attested::count`].
    pub signers: Vec<Signer>,
    /// Attestations that do not count, each with the reason. Warnings: they take nothing from those that do.
    pub findings: Vec<Finding>,
    /// Whether some were not looked at, because no more signatures may be checked.
    pub unchecked: bool,
}

/// A finished attestation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// Its ref.
    pub name: RefName,
    /// The tag.
    pub tag: Oid,
    /// The key's fingerprint as ssh prints it, or what OpenPGP or X.509 call it.
    pub key: String,
    /// Whether it was there before, and nothing was written.
    pub known: bool,
    /// Whether it can count where `cbia.trust` is `signed`: only ssh keys can stand in an allowed-signers file.
    pub countable: bool,
}

/// What an attestation's tag says, word for word.
struct Statement {
    run: Oid,
    name: String,
    message: String,
}

/// The public key inside an ssh signature: SHA-256 of its blob.
#[derive(Clone, PartialEq, Eq)]
struct SshKey(Digest);

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", base64(self.0.as_bytes()))
    }
}

impl Attested {
    /// The different signers: a principal counts once whatever number of keys it has, and so does a key whatever number of principals.
    pub fn distinct(&self) -> Vec<&Signer> {
        // Signers that share a principal or a key are one, directly or through others; each group goes by its first member.
        let mut first: BTreeMap<(u8, &str), usize> = BTreeMap::new();
        let mut group: Vec<usize> = (0..self.signers.len()).collect();
        for (at, signer) in self.signers.iter().enumerate() {
            for word in [(0, signer.principal.as_str()), (1, signer.key.as_str())] {
                let other = group[*first.entry(word).or_insert(at)];
                let (from, to) = (group[at].max(other), group[at].min(other));
                group.iter_mut().filter(|one| **one == from).for_each(|one| *one = to);
            }
        }
        self.signers.iter().enumerate().filter(|(at, _)| group[*at] == *at).map(|(_, signer)| signer).collect()
    }

    /// How many different signers there are.
    pub fn count(&self) -> usize {
        self.distinct().len()
    }

    /// What is missing if a run needs `trust`: nothing, or the finding that refuses it. `signers` is the path of the file that names
    /// the allowed signers.
    pub fn missing(&self, trust: Trust, run: &Oid, signers: &str) -> Option<Finding> {
        let Trust::Signed(needed) = trust else { return None };
        let count = self.count();
        if count >= needed {
            return None;
        }
        let message =
            format!("the run {} is attested by {count} of the {needed} allowed signers it needs", run.to_hex_with_len(12));
        let hint =
            format!("a signer of {signers} runs git cbia attest {} and pushes refs/cbia/attestations", run.to_hex_with_len(12));
        Some(Finding::error(Code::AttestationMissing, message).at(signers).expected(needed, count).hint(hint))
    }
}

impl Store {
    /// Whose word a run needs, by configuration. A value that is neither of the known ones is a finding: it must not mean less than it
    /// was meant to.
    pub fn trust(&self) -> Result<Trust, Finding> {
        let number = self.attestations_needed()?;
        match self.config_string("cbia.trust").as_deref() {
            None | Some("content") => Ok(Trust::Content),
            Some("signed") => Ok(Trust::Signed(number)),
            Some(other) => Err(no_such_setting("cbia.trust", other, "signed or content")),
        }
    }

    /// Which runs are derived again, by configuration; the same holds for its values.
    pub fn rederive(&self) -> Result<Rederive, Finding> {
        let number = self.attestations_needed()?;
        match self.config_string("cbia.rederive").as_deref() {
            None | Some("always") => Ok(Rederive::Always),
            Some("unattested") => Ok(Rederive::Unattested(number)),
            Some(other) => Err(no_such_setting("cbia.rederive", other, "always or unattested")),
        }
    }

    fn attestations_needed(&self) -> Result<usize, Finding> {
        let Some(text) = self.config_string("cbia.attestations") else { return Ok(1) };
        match text.parse::<usize>() {
            Ok(number @ 1..=MAX_CHECKED) => Ok(number),
            _ => Err(no_such_setting("cbia.attestations", &text, &format!("1 to {MAX_CHECKED}"))),
        }
    }

    /// The file of allowed signers at `path` in a tree. One that is no regular file, or cannot be read whole, names nobody.
    pub fn signers_file(&self, tree: Oid, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(Thing::File(id)) = self.thing_at(tree, path)? else { return Ok(None) };
        Ok(self.read_blob(&id, MAX_SIGNERS).ok())
    }

    /// Signs a tag on a run with the key that git is configured to sign with, and makes its ref. A good attestation of the same run by the
    /// same key stays as it is.
    pub fn attest(&self, run: Oid, state_key: &Digest, executor_key: &Digest) -> Result<Made, StoreError> {
        let statement = Statement::new(run, state_key, executor_key);
        let tag = self.sign_tag(&statement.name, &run, &statement.message)?;
        let bytes = self.read(&tag, Kind::Tag, MAX_TAG_BYTES)?;
        let wrong = |what: &str| super::git::GitError::Answer { what: "tag", answer: what.to_owned() };
        let signature = statement.signature_of(&bytes).map_err(wrong)?;
        let (last, key, countable) = match ssh_key(signature) {
            Some(key) => (slug(&key), key.to_string(), true),
            None => {
                let (good, said) = self.verify_tag(&bytes, b"")?;
                let print =
                    fingerprint(&said).filter(|_| good).ok_or_else(|| wrong("a signature that git verify-tag does not take"))?;
                (format!("pgp-{}", print.to_ascii_lowercase()), print, false)
            }
        };
        let name: RefName = format!("refs/cbia/{FOLDER}/{state_key}/{executor_key}/{last}").parse()?;
        let made = |tag, known| Made { name: name.clone(), tag, key, known, countable };
        let mut expected = None;
        loop {
            match self.cas(&name, expected, Some(tag), Durability::Full)?.outcome {
                Cas::Done => return Ok(made(tag, false)),
                Cas::Conflict(Some(there)) if expected != Some(there) => {
                    let good = match self.read(&there, Kind::Tag, MAX_TAG_BYTES) {
                        Ok(bytes) => match statement.signature_of(&bytes) {
                            Ok(signature) if ssh_key(signature).is_none_or(|key| slug_of(&name) == slug(&key)) => {
                                self.verify_signature(&bytes)?
                            }
                            _ => false,
                        },
                        Err(_) => false,
                    };
                    if good {
                        return Ok(made(there, true));
                    }
                    // What stands there is no attestation of this run by this key: it makes place.
                    expected = Some(there);
                }
                _ => return Err(StoreError::Moved { name: name.to_string() }),
            }
        }
    }

    /// Whether the bytes under a signature are what was signed, whoever signed.
    fn verify_signature(&self, tag: &[u8]) -> Result<bool, StoreError> {
        let (good, said) = self.verify_tag(tag, b"")?;
        // Without allowed signers an ssh signature is good, and nobody's.
        Ok(good || said.lines().any(|line| line.starts_with("Good \"git\" signature with ")))
    }

    /// Why a tag is no whole attestation under its name, whoever signed it.
    pub(in crate::store) fn whole_attestation(
        &self,
        name: &RefName,
        tag: &Oid,
        state_key: &Digest,
        executor_key: &Digest,
    ) -> Result<Result<(), String>, StoreError> {
        let bytes = match self.read(tag, Kind::Tag, MAX_TAG_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let line = bytes.split(|byte| *byte == b'\n').next().and_then(|line| line.strip_prefix(b"object "));
        let Some(run) = line.and_then(|id| Oid::from_hex(id).ok()) else { return Ok(Err("it is a tag on nothing".to_owned())) };
        if let Err(error) = self.read_commit(&run) {
            return Ok(Err(format!("the run that it is on is lost: {error}")));
        }
        let signature = match Statement::new(run, state_key, executor_key).signature_of(&bytes) {
            Ok(signature) => signature,
            Err(why) => return Ok(Err(why.to_owned())),
        };
        if ssh_key(signature).is_some_and(|key| slug_of(name) != slug(&key)) {
            return Ok(Err("it is signed with another key than its name says".to_owned()));
        }
        // Only an ssh signature is good or bad by itself; whether another is takes a key that need not be here.
        let good = ssh_key(signature).is_none() || self.verify_signature(&bytes)?;
        Ok(if good { Ok(()) } else { Err("its signature is not one of what it says".to_owned()) })
    }

    /// The attestations of a run that this repository has refs for.
    pub fn attestations(&self, state_key: &Digest, executor_key: &Digest) -> Result<Vec<(RefName, Oid)>, StoreError> {
        Ok(self.refs_under(&format!("refs/cbia/{FOLDER}/{state_key}/{executor_key}/"))?)
    }

    /// Who, of the signers in `allowed` (the bytes of an allowed-signers file), attested a run, by the refs of this repository.
    pub fn attested(&self, run: Oid, state_key: &Digest, executor_key: &Digest, allowed: &[u8]) -> Result<Attested, StoreError> {
        let refs = self.attestations(state_key, executor_key)?;
        self.attested_by(&refs, run, state_key, executor_key, allowed, &Cell::new(usize::MAX))
    }

    /// The same by these refs: those of a push that are no refs yet, and those that were fetched from a remote, may be among them. `left`
    /// signatures may be checked, and are taken from it.
    pub fn attested_by(
        &self,
        refs: &[(RefName, Oid)],
        run: Oid,
        state_key: &Digest,
        executor_key: &Digest,
        allowed: &[u8],
        left: &Cell<usize>,
    ) -> Result<Attested, StoreError> {
        let statement = Statement::new(run, state_key, executor_key);
        let mut attested = Attested::default();
        let mut signers = BTreeSet::new();
        let mut checked = BTreeSet::new();
        // Whoever may push may sign with any number of keys: those that are listed are looked at before the bound is reached.
        let listed = listed(allowed);
        let (first, last): (Vec<_>, Vec<_>) = refs.iter().partition(|(name, _)| listed.contains(slug_of(name)));
        for (name, tag) in first.into_iter().chain(last) {
            if !checked.insert((slug_of(name), *tag)) {
                continue;
            }
            let refuse = |why: &str| {
                Finding::warning(Code::AttestationInvalid, format!("an attestation does not count: {why}")).at(name.as_str())
            };
            if checked.len() > MAX_CHECKED {
                attested
                    .findings
                    .push(refuse(&format!("only {MAX_CHECKED} of one run are looked at")).hint("delete those that do not count"));
                break;
            }
            let Some(fewer) = left.get().checked_sub(1) else {
                attested.unchecked = true;
                break;
            };
            left.set(fewer);
            match self.check(&statement, name, tag, allowed)? {
                Ok(signer) => drop(signers.insert(signer)),
                Err((why, hint)) => attested.findings.push(refuse(&why).hint(hint)),
            }
        }
        attested.signers = signers.into_iter().collect();
        Ok(attested)
    }

    /// Why a tag is no attestation by the key that its name gives, whoever's key that is; nothing if it is one. An attestation is never
    /// replaced where it arrives, so what is none would keep that key from attesting the run.
    pub fn check_attestation(&self, name: &str, tag: Oid, state_key: &Digest, executor_key: &Digest) -> Result<(), Finding> {
        let refuse = |why: &str| {
            let finding = Finding::error(Code::AttestationInvalid, format!("{} is no attestation: {why}", printable(name)));
            finding.at(name).hint("git cbia attest makes one, and git cbia push pushes it")
        };
        let name: RefName = name.parse().map_err(|_| refuse("its name is none of a ref"))?;
        let bytes = match self.read(&tag, Kind::Tag, MAX_TAG_BYTES) {
            Ok(bytes) => bytes,
            Err(ObjectError::WrongKind { found, .. }) => return Err(refuse(&format!("it is a {}, not a tag", found.as_str()))),
            Err(error) => return Err(refuse(&spelled(&error))),
        };
        let run = bytes.strip_prefix(b"object ").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        let run = run.and_then(|run| Oid::from_hex(run).ok()).ok_or_else(|| refuse("it is a tag on nothing"))?;
        let signature = Statement::new(run, state_key, executor_key).signature_of(&bytes).map_err(refuse)?;
        if ssh_key(signature).is_some_and(|key| slug_of(&name) != slug(&key)) {
            return Err(refuse("it is signed with another key than its name gives"));
        }
        match self.verify_signature(&bytes) {
            Ok(true) => Ok(()),
            // Whose OpenPGP key it is, is not known everywhere; such a name is no ssh key's.
            Ok(false) if ssh_key(signature).is_none() && slug_of(&name).starts_with("pgp-") => Ok(()),
            Ok(false) => Err(refuse("git verify-tag does not take its signature")),
            Err(error) => Err(refuse(&spelled(&error))),
        }
    }

    /// Who signed a tag, or why it does not count and what to do.
    fn check(
        &self,
        statement: &Statement,
        name: &RefName,
        tag: &Oid,
        allowed: &[u8],
    ) -> Result<Result<Signer, (String, String)>, StoreError> {
        let again = format!("git cbia attest {} makes one", statement.run.to_hex_with_len(12));
        let refuse = |why: String| Ok(Err((why, again.clone())));
        let suffix = format!("{FOLDER}/{}/", statement.name.trim_start_matches(TAG_PREFIX));
        let under = name.as_str().rsplit_once('/').is_some_and(|(folder, _)| format!("{folder}/").ends_with(&suffix));
        if !under {
            return refuse("it stands under the name of another run".to_owned());
        }
        let bytes = match self.read(tag, Kind::Tag, MAX_TAG_BYTES) {
            Ok(bytes) => bytes,
            Err(ObjectError::WrongKind { found, .. }) => return refuse(format!("it is a {}, not a signed tag", found.as_str())),
            Err(error @ ObjectError::Io { .. }) => return Err(error.into()),
            Err(error) => return refuse(error.to_string()),
        };
        let signature = match statement.signature_of(&bytes) {
            Ok(signature) => signature,
            Err(why) => return refuse(why.to_owned()),
        };
        let Some(key) = ssh_key(signature) else {
            let hint = "sign with an ssh key: git config gpg.format ssh, then git cbia attest; git verify-tag checks this one"
                .to_owned();
            return Ok(Err(("it is not signed with an ssh key, and only those can be allowed signers".to_owned(), hint)));
        };
        if slug_of(name) != slug(&key) {
            return refuse(format!("it is signed with the key {key}, and stands under the name of another"));
        }
        let (good, said) = self.verify_tag(&bytes, allowed)?;
        match good_signer(&said).filter(|signer| good && signer.key == key.to_string()) {
            Some(signer) => Ok(Ok(signer)),
            None => {
                let said = said.lines().last().unwrap_or("git verify-tag refuses it").replace(['\t'], " ");
                let hint =
                    "an allowed signer has to attest the run; for a new signer, the file of allowed signers is changed first";
                Ok(Err((format!("the key {key} is no allowed signer's at that time: {said}"), hint.to_owned())))
            }
        }
    }
}

fn no_such_setting(key: &str, value: &str, allowed: &str) -> Finding {
    let finding = Finding::error(Code::SettingInvalid, format!("{key} is '{}', which means nothing", printable(value)));
    let first = allowed.split(' ').next().unwrap_or_default();
    finding.at(key).expected(allowed, printable(value)).hint(format!("git config {key} {first}"))
}

/// What the names of our tags begin with.
const TAG_PREFIX: &str = "cbia-attestation/";

impl Statement {
    fn new(run: Oid, state_key: &Digest, executor_key: &Digest) -> Self {
        let message = format!(
            "Attest the run {}\n\nCbia-Attestation: 0.1.0\nCbia-State-Key: {state_key}\nCbia-Executor-Key: {executor_key}\nCbia-Run: {run}\n",
            run.to_hex_with_len(12)
        );
        Self { run, name: format!("{TAG_PREFIX}{state_key}/{executor_key}"), message }
    }

    /// The signature of a tag that says exactly this, by any tagger; otherwise what it says instead.
    fn signature_of<'t>(&self, tag: &'t [u8]) -> Result<&'t str, &'static str> {
        let text = std::str::from_utf8(tag).map_err(|_| "it is not valid UTF-8")?;
        let rest = text.strip_prefix(&format!("object {}\n", self.run)).ok_or("it is a tag on another object")?;
        let rest = rest.strip_prefix("type commit\n").ok_or("it is a tag on another object")?;
        let rest = rest.strip_prefix(&format!("tag {}\n", self.name)).ok_or("it is a tag with another name")?;
        let (tagger, rest) = rest.split_once("\n\n").ok_or("it has no message")?;
        if !tagger.starts_with("tagger ") || tagger.contains('\n') {
            return Err("its headers are not those of an attestation");
        }
        let signature = rest.strip_prefix(&self.message).ok_or("its message is not that of an attestation of this run")?;
        if signature.starts_with("-----BEGIN ") { Ok(signature) } else { Err("it has no signature") }
    }
}

/// The last part of an attestation's ref name for this key. A digest in hex cannot collide on any file system.
fn slug(key: &SshKey) -> String {
    format!("ssh-{}", key.0)
}

/// The last parts of the refs that the keys in a file of allowed signers can have.
fn listed(allowed: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(allowed);
    let keys = text.split_ascii_whitespace().filter(|word| word.starts_with("AAAA")).filter_map(unbase64);
    keys.map(|key| slug(&SshKey(Digest::of(&key)))).collect()
}

fn slug_of(name: &RefName) -> &str {
    name.as_str().rsplit('/').next().unwrap_or_default()
}

/// The public key of an ssh signature, as its own blob names it: `PROTOCOL.sshsig` of OpenSSH. `None` for any other signature.
fn ssh_key(signature: &str) -> Option<SshKey> {
    let body = signature.trim_end().strip_prefix(ARMOR.0)?.strip_suffix(ARMOR.1)?;
    let blob = unbase64(body)?;
    let rest = blob.strip_prefix(b"SSHSIG\x00\x00\x00\x01")?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let key = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some(SshKey(Digest::of(key)))
}

/// The signer of `Good "git" signature for <principal> with <type> key <fingerprint>`, the only line that `git verify-tag` gives for a
/// signature of an allowed signer.
fn good_signer(said: &str) -> Option<Signer> {
    let mut good = said.lines().filter_map(|line| line.strip_prefix("Good \"git\" signature for "));
    let (line, None) = (good.next()?, good.next()) else { return None };
    let (rest, key) = line.rsplit_once(" key ")?;
    let (principal, _) = rest.rsplit_once(" with ")?;
    Some(Signer { principal: principal.to_owned(), key: key.to_owned() })
}

/// The key's fingerprint in gpg's machine-readable status.
fn fingerprint(said: &str) -> Option<String> {
    let valid = said.lines().find_map(|line| line.strip_prefix("[GNUPG:] VALIDSIG "))?;
    let print = valid.split(' ').next()?;
    print.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| print.to_owned())
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 base64 without padding, as ssh prints fingerprints.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(group >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// The bytes of RFC 4648 base64 with line breaks.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut group, mut bits) = (Vec::new(), 0_u32, 0);
    let digits = text.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r'));
    for byte in digits.take_while(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|digit| *digit == byte)?;
        group = (group << 6 | u32::try_from(value).ok()?) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}
