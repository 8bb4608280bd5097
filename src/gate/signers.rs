//! Files of allowed signers, in git's own format (`ALLOWED SIGNERS` in ssh-keygen(1)). Who signed is git's to say; a line that git
//! passes over without a word is said here, since a signer who never counts looks like one who did not sign.

use crate::document::finding::{Code, Finding};
use crate::document::path::printable;

/// Whose attestations make a run count where `cbia.trust` is `signed`.
pub const RUNNERS: &str = "control/runners.allowed_signers";
/// Whose attestations let changes of `control/`, `policy/` and `schemas/` be pushed.
pub const MAINTAINERS: &str = "control/maintainers.allowed_signers";

/// The largest file that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;
const OPTIONS: [&str; 4] = ["cert-authority", "namespaces", "valid-after", "valid-before"];

/// One allowed signer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// The principals, or patterns of principals, as they stand there.
    pub principals: String,
    /// The line, from 1.
    pub line: u64,
}

/// The signers that a file names, and what is wrong with its other lines. A file that names nobody is wrong as a whole.
pub fn read(path: &str, bytes: &[u8]) -> (Vec<Allowed>, Vec<Finding>) {
    let (mut allowed, mut findings) = (Vec::new(), Vec::new());
    let wrong = |why: String| {
        let hint = "a line is: <principals> [<options>] <key type> <key>, as ssh-keygen(1) has it under ALLOWED SIGNERS";
        Finding::error(Code::SignersInvalid, why).at(path).hint(hint)
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= MAX_BYTES => text,
        Ok(_) => return (allowed, vec![wrong(format!("{path} has more than {MAX_BYTES} bytes"))]),
        Err(_) => return (allowed, vec![wrong(format!("{path} is not valid UTF-8"))]),
    };
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match entry(line) {
            Ok(principals) => allowed.push(Allowed { principals, line: number }),
            Err(why) => findings.push(wrong(format!("this line names no signer of git's: {why}")).on(number, 1)),
        }
    }
    if allowed.is_empty() {
        findings.push(wrong(format!("{path} names nobody who can sign")));
    }
    (allowed, findings)
}

/// The principals of a line, or why it never counts.
fn entry(line: &str) -> Result<String, String> {
    let words = words(line)?;
    let mut words = words.iter().map(String::as_str);
    let principals = words.next().unwrap_or_default().trim_matches('"').to_owned();
    let mut kind = words.next().ok_or("it has no key")?;
    if !is_key_type(kind) {
        for option in options(kind) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if !OPTIONS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(format!("'{}' is neither an option nor a key type", printable(option)));
            }
            let git = |pattern: &str| matches!(pattern.trim(), "git" | "*");
            if name.eq_ignore_ascii_case("namespaces") && !value.trim_matches('"').split(',').any(git) {
                return Err("its namespaces do not hold 'git'".to_owned());
            }
        }
        kind = words.next().ok_or("it has no key")?;
    }
    let key = words.next().unwrap_or_default();
    let digits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    // Every key's blob begins with the length of its type, three zero bytes and one more.
    if !is_key_type(kind) || !key.starts_with("AAAA") || key.len() < 32 || !key.bytes().all(digits) {
        return Err("it has no key".to_owned());
    }
    Ok(principals)
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-", "webauthn-"].iter().any(|start| word.starts_with(start))
        && !word.contains(['=', '"'])
}

/// The words of a line; blanks inside quotes part nothing.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if c.is_ascii_whitespace() && !quoted {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    words.extend((!word.is_empty()).then_some(word));
    Ok(words)
}

/// The options of a line, which commas part outside quotes.
fn options(word: &str) -> Vec<&str> {
    let mut quoted = false;
    let part = move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    word.split(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK76jB0oFiEfgztRTS6k8hXWK5KAgkEJMQ7HCngFHy1R";

    #[test]
    fn every_line_names_a_signer_or_is_told() {
        // Line, and its principals or what is told.
        let cases = [
            (format!("a@b {KEY}"), Ok("a@b")),
            (format!("a@b,*@c {KEY} a comment with \"quotes\""), Ok("a@b,*@c")),
            (format!("\t a@b   {KEY}\r"), Ok("a@b")),
            (format!("a@b namespaces=\"git\" {KEY}"), Ok("a@b")),
            (format!("a@b cert-authority,namespaces=\"file,git\",valid-before=\"2030 0101\" {KEY}"), Ok("a@b")),
            (format!("a@b namespaces=\"file\" {KEY}"), Err("its namespaces do not hold 'git'")),
            (
                format!("a@b valid-until=\"20300101\" {KEY}"),
                Err("'valid-until=\\\"20300101\\\"' is neither an option nor a key type"),
            ),
            (format!("a@b valid-before=\"2030 {KEY}"), Err("a quote is not closed")),
            ("a@b".to_owned(), Err("it has no key")),
            ("a@b ssh-ed25519".to_owned(), Err("it has no key")),
            ("a@b ssh-ed25519 BBBB".to_owned(), Err("it has no key")),
            (format!("a@b {}!", KEY), Err("it has no key")),
            ("a@b cert-authority".to_owned(), Err("it has no key")),
        ];
        for (line, wanted) in cases {
            let (allowed, findings) = read("f", format!("# who\n\n{line}\n").as_bytes());
            match wanted {
                Ok(principals) => {
                    assert_eq!((allowed, findings), (vec![Allowed { principals: principals.into(), line: 3 }], vec![]), "{line}")
                }
                Err(why) => {
                    assert_eq!((allowed, findings.len(), findings[0].line), (vec![], 2, Some(3)), "{line}");
                    let told = findings[0].message.replace('"', "\\\"").replace("\\\\\"", "\\\"");
                    assert!(told.ends_with(why), "{line}: {told}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_names_nobody_is_wrong() {
        for bytes in [&b""[..], b"# nobody\n", b"\xff\n", &[b'#'; MAX_BYTES + 1]] {
            let (allowed, findings) = read("f", bytes);
            assert!(allowed.is_empty());
            assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), [Code::SignersInvalid]);
        }
    }
}
