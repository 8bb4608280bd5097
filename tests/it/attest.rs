//! `git cbia attest`, and what counts as an attestation: git's own word, for the signers of a given file.

use std::path::PathBuf;

use git_cbia::document::digest::Digest;
use git_cbia::store::attest::{Attested, Signer, Trust};
use git_cbia::store::{Oid, Store};
use serde_json::json;

use crate::support::Repo;

/// A repository with a run, and keys.
struct Site {
    repo: Repo,
    run: Oid,
    state_key: Digest,
    executor_key: Digest,
}

impl Site {
    fn new() -> Self {
        Self::of(Repo::tiny())
    }

    fn of(repo: Repo) -> Self {
        repo.run();
        let (name, run) = repo.only_ref("refs/cbia/runs");
        let mut parts = name.split('/').skip(3);
        let (state_key, executor_key) = (parts.next().unwrap().parse().unwrap(), parts.next().unwrap().parse().unwrap());
        repo.git(["config", "gpg.format", "ssh"]);
        Self { repo, run: Oid::from_hex(run.as_bytes()).unwrap(), state_key, executor_key }
    }

    /// A new key, and its public half as a line.
    fn key(&self, name: &str) -> (PathBuf, String) {
        let path = self.repo.outside().join(name);
        if !path.exists() {
            let mut command = self.repo.command("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&path);
            assert_eq!(self.repo.finish(command, b"").code, Some(0));
        }
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        (path, public.trim().to_owned())
    }

    fn sign_with(&self, name: &str) {
        self.repo.git(["config", "user.signingKey", self.key(name).0.to_str().unwrap()]);
    }

    /// The ref of an attestation by this key: made, or there already.
    fn attest(&self, name: &str) -> String {
        self.sign_with(name);
        let told = self.repo.cbia(["attest", "--json"]).ok().json()["result"].clone();
        told["ref"].as_str().unwrap().to_owned()
    }

    fn fingerprint(&self, name: &str) -> String {
        let mut command = self.repo.command("ssh-keygen");
        command.arg("-lf").arg(self.key(name).0);
        self.repo.finish(command, b"").stdout.split(' ').nth(1).unwrap().to_owned()
    }

    fn attested(&self, allowed: &str) -> Attested {
        let store = Store::open(self.repo.path()).unwrap();
        store.attested(self.run, &self.state_key, &self.executor_key, allowed.as_bytes()).unwrap()
    }

    /// The principals that count, and the reasons of those that do not.
    fn counts(&self, allowed: &str) -> (Vec<String>, Vec<String>) {
        let attested = self.attested(allowed);
        let names = attested.signers.into_iter().map(|signer| signer.principal).collect();
        (names, attested.findings.into_iter().map(|finding| finding.message).collect())
    }

    /// Whether `git verify-tag` takes the ref, for the same signers.
    fn git_takes(&self, name: &str, allowed: &str) -> bool {
        let file = self.repo.outside().join("allowed");
        std::fs::write(&file, allowed).unwrap();
        let mut command = self.repo.command("git");
        command.arg("-c").arg(format!("gpg.ssh.allowedSignersFile={}", file.display())).args(["verify-tag", name]);
        self.repo.finish(command, b"").code == Some(0)
    }
}

#[test]
fn a_run_is_signed_by_gits_own_signing_and_nothing_else_changes() {
    for repo in [Repo::tiny(), {
        let repo = Repo::init(&["--object-format=sha256"]);
        repo.write_tiny();
        repo
    }] {
        let site = Site::of(repo);
        site.sign_with("ada");
        site.repo.git(["config", "core.hooksPath", "../none"]);
        let others =
            |prefix: &str| site.repo.refs("refs").into_iter().filter(|(name, _)| !name.starts_with(prefix)).collect::<Vec<_>>();
        let before = others("refs/cbia/attestations");
        let ran = site.repo.cbia(["attest"]).ok();
        let (name, tag) = site.repo.only_ref("refs/cbia/attestations");
        let print = site.fingerprint("ada");
        assert_eq!(ran.stdout, format!("attested run {}\n  key {print}\n  tag {tag} {name}\n", site.run));
        assert!(name.starts_with(&format!("refs/cbia/attestations/{}/{}/ssh-", site.state_key, site.executor_key)), "{name}");
        assert_eq!(others("refs/cbia/attestations"), before, "no tag is seen anywhere else");
        assert_eq!(site.repo.leftovers(), Vec::<String>::new());
        let content = site.repo.git(["cat-file", "tag", &tag]);
        let facts = format!(
            "object {run}\ntype commit\ntag cbia-attestation/{state}/{executor}\ntagger Ada <ada@example.org> 1700000000 +0000\n\n\
             Attest the run {short}\n\nCbia-Attestation: 0.1.0\nCbia-State-Key: {state}\nCbia-Executor-Key: {executor}\nCbia-Run: {run}\n\
             -----BEGIN SSH SIGNATURE-----\n",
            run = site.run,
            state = site.state_key,
            executor = site.executor_key,
            short = site.run.to_hex_with_len(12),
        );
        assert!(content.starts_with(&facts), "{content}");
        let allowed = format!("ada@example.org {}\n", site.key("ada").1);
        assert!(site.git_takes(&name, &allowed));
        let attested = site.attested(&allowed);
        assert_eq!(
            (attested.signers, attested.findings.len()),
            (vec![Signer { principal: "ada@example.org".into(), key: print }], 0)
        );
        // A second time nothing is written, whatever the time is.
        let later = site.repo.with("GIT_COMMITTER_DATE", Some("1800000000 +0000")).cbia(["attest", "--json"]).ok().json();
        assert_eq!((&later["result"]["known"], &later["result"]["tag"]), (&json!(true), &json!(tag)));
        assert_eq!(site.repo.only_ref("refs/cbia/attestations"), (name, tag));
        site.repo.fsck();
    }
}

#[test]
fn git_and_git_cbia_agree_on_every_list_of_signers() {
    let site = Site::new();
    let name = site.attest("ada");
    let (ada, bob) = (site.key("ada").1, site.key("bob").1);
    // The tag's time is 2023-11-14T22:13:20Z.
    let cases = [
        (format!("ada@example.org {ada}\n"), Some("ada@example.org")),
        (format!("# who\n\nbob@example.org {bob}\nada@example.org {ada} a comment\n"), Some("ada@example.org")),
        (format!("ada@example.org {ada}\r\n"), Some("ada@example.org")),
        (format!("*@example.org {ada}\n"), Some("*@example.org")),
        (format!("ada@example.org namespaces=\"git\" {ada}\n"), Some("ada@example.org")),
        (format!("ada@example.org valid-after=\"20230101Z\",valid-before=\"20240101Z\" {ada}\n"), Some("ada@example.org")),
        (format!("ada@example.org valid-before=\"20231115Z\" {ada}\n"), Some("ada@example.org")),
        (format!("ada@example.org valid-before=\"20231114Z\" {ada}\n"), None),
        (format!("ada@example.org valid-after=\"20231115Z\" {ada}\n"), None),
        (format!("ada@example.org namespaces=\"file\" {ada}\n"), None),
        (format!("ada@example.org cert-authority {ada}\n"), None),
        (format!("ada@example.org {bob}\n"), None),
        (format!("#ada@example.org {ada}\n"), None),
        ("not a list of signers\n".to_owned(), None),
        (String::new(), None),
    ];
    for (allowed, principal) in cases {
        assert_eq!(site.git_takes(&name, &allowed), principal.is_some(), "{allowed}");
        let (names, findings) = site.counts(&allowed);
        assert_eq!(names, Vec::from_iter(principal), "{allowed}");
        assert_eq!(findings.len(), usize::from(principal.is_none()), "{allowed}: {findings:?}");
        let print = site.fingerprint("ada");
        assert!(findings.iter().all(|told| told.contains(&format!("the key {print} is no allowed signer's"))), "{findings:?}");
    }
    // A revoked key counts for neither; what git is otherwise configured to believe makes no difference.
    let allowed = format!("ada@example.org {ada}\n");
    site.repo.git(["config", "gpg.ssh.allowedSignersFile", "/nonexistent"]);
    assert_eq!(site.counts(&allowed).0, ["ada@example.org"]);
    let revoked = site.key("ada").0.with_extension("pub");
    site.repo.git(["config", "gpg.ssh.revocationFile", revoked.to_str().unwrap()]);
    assert!(!site.git_takes(&name, &allowed));
    assert_eq!(site.counts(&allowed).0, Vec::<String>::new());
}

#[test]
fn what_is_no_attestation_of_this_run_does_not_count() {
    let site = Site::new();
    let name = site.attest("ada");
    let good = site.repo.git(["rev-parse", &name]);
    let allowed = format!("ada@example.org {}\nbob@example.org {}\n", site.key("ada").1, site.key("bob").1);
    // The run of another state, with an attestation of its own.
    let other = site.repo.clone_to("other");
    other.write("data/words.txt", "three\n");
    other.git(["config", "gpg.format", "ssh"]);
    other.git(["config", "user.signingKey", site.key("ada").0.to_str().unwrap()]);
    other.write_tiny();
    other.write("data/words.txt", "three\n");
    other.run();
    other.cbia(["attest"]).ok();
    site.repo.git(["fetch", "-q", other.path().to_str().unwrap(), "refs/cbia/*:refs/other/*"]);
    let copied = site.repo.refs("refs/other/attestations")[0].1.clone();
    let other_run = site.repo.refs("refs/other/runs")[0].1.clone();
    let content = site.repo.git(["cat-file", "tag", &good]) + "\n";
    let write = |text: &str| site.repo.git_with(["hash-object", "-t", "tag", "-w", "--literally", "--stdin"], text.as_bytes());
    let (unsigned, signature) = content.split_at(content.find("-----BEGIN").unwrap());
    let moved = content.replace(&site.run.to_string(), &other_run);
    let sign = |arguments: &[&str], message: &str| {
        let mut command = site.repo.command("git");
        command
            .args(["tag", "-f", "-s", "--cleanup=verbatim"])
            .args(arguments)
            .args(["-F", "-", "mine"])
            .arg(site.run.to_string());
        assert_eq!(site.repo.finish(command, message.as_bytes()).code, Some(0));
        let tag = site.repo.git(["rev-parse", "refs/tags/mine"]);
        site.repo.git(["tag", "-d", "mine"]);
        tag
    };
    let signed_other_words = sign(&[], "I like this run.\n");
    let cases = [
        ("a lightweight tag", site.run.to_string(), "it is a commit, not a signed tag"),
        ("an unsigned tag", write(unsigned), "it has no signature"),
        ("the attestation of another run", copied, "it is a tag on another object"),
        ("an attestation moved to another run", write(&moved), "it is a tag on another object"),
        ("another message, signed", signed_other_words, "it is a tag with another name"),
        (
            "another message",
            write(&content.replace("Attest the", "Attack the")),
            "its message is not that of an attestation of this run",
        ),
        ("another tagger", write(&content.replace("ada@example.org", "bob@example.org")), "is no allowed signer's at that time"),
        ("another time", write(&content.replace("1700000000", "1700000001")), "is no allowed signer's at that time"),
        (
            "a further header",
            write(&content.replace("\n\nAttest", "\nx y\n\nAttest")),
            "its headers are not those of an attestation",
        ),
        (
            "a signature without its end",
            write(&format!("{unsigned}{}", &signature[..signature.len() - 40])),
            "it is not signed with an ssh key",
        ),
        (
            "a signature of nothing",
            write(&format!("{unsigned}-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n")),
            "it is not signed with an ssh key",
        ),
    ];
    for (what, tag, why) in cases {
        site.repo.git(["update-ref", &name, &tag]);
        let (names, findings) = site.counts(&allowed);
        assert_eq!((names, findings.len()), (Vec::new(), 1), "{what}");
        assert!(
            findings[0].starts_with("an attestation does not count: ") && findings[0].contains(why),
            "{what}: {}",
            findings[0]
        );
        // It makes place for a good one.
        assert_eq!(site.attest("ada"), name, "{what}");
        assert_eq!(
            (site.counts(&allowed).0, site.repo.git(["rev-parse", &name])),
            (vec!["ada@example.org".to_owned()], good.clone()),
            "{what}"
        );
    }
    // Refs that are no refs here are judged alike: those of a push, and those fetched from a remote. The name of another run is none.
    let store = Store::open(site.repo.path()).unwrap();
    let id = Oid::from_hex(good.as_bytes()).unwrap();
    let by = |name: String| {
        let refs = [(name.parse().unwrap(), id)];
        store
            .attested_by(
                &refs,
                site.run,
                &site.state_key,
                &site.executor_key,
                allowed.as_bytes(),
                &std::cell::Cell::new(usize::MAX),
            )
            .unwrap()
            .count()
    };
    assert_eq!(by(name.clone()), 1);
    assert_eq!(by(name.replace("refs/cbia/", "refs/cbia/remotes/origin/")), 1);
    assert_eq!(by(name.replace(&site.state_key.to_string(), &Digest::of(b"x").to_string())), 0);
    // Under the name of another signer, it would keep that one from signing.
    let bob = site.attest("bob");
    site.repo.git(["update-ref", &bob, &good]);
    site.repo.git(["update-ref", "-d", &name]);
    let (names, findings) = site.counts(&allowed);
    assert!(names.is_empty() && findings[0].contains("and stands under the name of another"), "{findings:?}");
    // A replace ref changes nothing.
    site.repo.git(["update-ref", &bob, &write(unsigned)]);
    site.repo.git(["update-ref", &format!("refs/replace/{}", write(unsigned)), &good]);
    assert!(site.counts(&allowed).0.is_empty());
}

#[test]
fn two_keys_of_one_person_are_one_signer() {
    let site = Site::new();
    for key in ["ada", "ada2", "bob"] {
        site.attest(key);
    }
    let [ada, ada2, bob] = ["ada", "ada2", "bob"].map(|name| site.key(name).1);
    let cases = [
        (format!("ada@x {ada}\nada@x {ada2}\nbob@x {bob}\n"), 2),
        (format!("ada@x {ada}\nada2@x {ada2}\nbob@x {bob}\n"), 3),
        (format!("* {ada}\n* {ada2}\n* {bob}\n"), 1),
        (format!("bob@x {bob}\n"), 1),
        (String::new(), 0),
    ];
    for (allowed, count) in cases {
        let attested = site.attested(&allowed);
        assert_eq!(attested.count(), count, "{allowed}");
        for needed in 1..=3 {
            let missing = attested.missing(Trust::Signed(needed), &site.run, "control/runners.allowed_signers");
            assert_eq!(missing.is_none(), count >= needed, "{allowed}, {needed}");
            if let Some(finding) = missing {
                assert_eq!(
                    (finding.code.as_str(), finding.expected, finding.got),
                    ("attestation-missing", Some(needed.to_string()), Some(count.to_string()))
                );
            }
        }
        assert!(attested.missing(Trust::Content, &site.run, "f").is_none());
    }
}

#[test]
fn an_openpgp_signature_is_made_and_checked_by_git_and_cannot_count() {
    let site = Site::new();
    let mut gpg = site.repo.command("gpg");
    gpg.args(["--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "Ada <ada@example.org>", "ed25519", "sign", "never"]);
    // Not every machine has gpg, or lets its agent run.
    match gpg.status() {
        Ok(status) if status.success() => {}
        _ => return,
    }
    site.repo.git(["config", "gpg.format", "openpgp"]);
    site.repo.git(["config", "user.signingKey", "ada@example.org"]);
    let ran = site.repo.cbia(["attest", "--json"]).ok();
    assert_eq!((ran.codes(), &ran.json()["result"]["countable"]), (vec!["attestation-invalid".to_owned()], &json!(false)));
    let (name, _) = site.repo.only_ref("refs/cbia/attestations");
    assert!(name.rsplit('/').next().unwrap().starts_with("pgp-") && site.git_takes(&name, ""), "{name}");
    assert_eq!(site.repo.cbia(["attest", "--json"]).ok().json()["result"]["known"], true);
    let (names, findings) = site.counts(&format!("* {}\n", site.key("ada").1));
    assert!(names.is_empty() && findings[0].contains("it is not signed with an ssh key"), "{findings:?}");
    let mut kill = site.repo.command("gpgconf");
    kill.args(["--kill", "all"]);
    drop(kill.status());
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let site = Site::new();
    type Settings<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Settings<'_>, Result<Trust, &str>)] = &[
        (&[], Ok(Trust::Content)),
        (&[("cbia.trust", "content")], Ok(Trust::Content)),
        (&[("cbia.trust", "signed")], Ok(Trust::Signed(1))),
        (&[("cbia.trust", "signed"), ("cbia.attestations", "3")], Ok(Trust::Signed(3))),
        (&[("cbia.trust", "Signed")], Err("cbia.trust is 'Signed', which means nothing")),
        (&[("cbia.trust", "")], Err("cbia.trust is '', which means nothing")),
        (&[("cbia.trust", "signed"), ("cbia.attestations", "0")], Err("cbia.attestations is '0', which means nothing")),
        (&[("cbia.attestations", "two")], Err("cbia.attestations is 'two', which means nothing")),
        (&[("cbia.attestations", "65")], Err("cbia.attestations is '65', which means nothing")),
    ];
    for (settings, wanted) in cases {
        for key in ["cbia.trust", "cbia.attestations"] {
            drop(site.repo.finish(
                {
                    let mut c = site.repo.command("git");
                    c.args(["config", "--unset", key]);
                    c
                },
                b"",
            ));
        }
        for (key, value) in *settings {
            site.repo.git(["config", key, value]);
        }
        let trust = Store::open(site.repo.path()).unwrap().trust();
        assert_eq!(trust.map_err(|finding| finding.message), wanted.map_err(str::to_owned), "{settings:?}");
    }
}

#[test]
fn a_run_that_cannot_be_signed_is_told_with_the_way_out() {
    let site = Site::new();
    for (settings, words) in [
        (&[("user.signingKey", "/nonexistent/key")][..], "the run is not attested: "),
        (&[("gpg.format", "nonsense")], "the run is not attested: "),
        (
            &[("gpg.format", "ssh"), ("gpg.ssh.program", "/bin/false"), ("user.signingKey", "/dev/null")],
            "the run is not attested: ",
        ),
    ] {
        for (key, value) in settings {
            site.repo.git(["config", key, value]);
        }
        let ran = site.repo.cbia(["attest"]).exits(1);
        assert!(ran.stderr.contains(words) && ran.stderr.contains("[signing-unavailable]"), "{}", ran.stderr);
        assert!(ran.stderr.ends_with("hint: tell git which key to sign with: git config gpg.format ssh && git config user.signingKey ~/.ssh/id_ed25519.pub\n"), "{}", ran.stderr);
        assert_eq!(
            (site.repo.refs("refs/cbia/attestations"), site.repo.refs("refs/tags"), site.repo.leftovers()),
            (vec![], vec![], vec![])
        );
    }
    let head = {
        site.repo.commit();
        site.repo.git(["rev-parse", "HEAD"])
    };
    for (what, exit) in [(head.as_str(), 3), ("nothing", 3), ("refs/cbia/ledger", 3)] {
        site.repo.cbia(["attest", what]).exits(exit);
    }
    site.sign_with("ada");
    site.repo.git(["config", "--unset", "gpg.ssh.program"]);
    site.repo.git(["config", "gpg.format", "ssh"]);
    let state = site.state_key.to_string();
    for what in [&state[..8], &site.run.to_string(), &format!("refs/cbia/runs/{state}/{}", site.executor_key)] {
        site.repo.cbia(["attest", what]).ok();
    }
    // A ref that holds the run of another state is not signed under its name.
    let false_name = format!("refs/cbia/runs/{}/{}", Digest::of(b"x"), site.executor_key);
    site.repo.git(["update-ref", "-d", &format!("refs/cbia/runs/{state}/{}", site.executor_key)]);
    site.repo.git(["update-ref", &false_name, &site.run.to_string()]);
    assert_eq!(site.repo.cbia(["attest", &false_name, "--json"]).exits(1).codes(), ["run-invalid"]);
}
