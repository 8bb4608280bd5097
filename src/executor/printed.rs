//! What an executor prints: shown as it comes, and kept at both ends, without the values of secrets.

use std::io::Read;

use gix::bstr::ByteSlice as _;

/// An executor that prints more than this, in bytes, is killed.
pub const MAX_PRINTED: u64 = 64 << 20;
/// Values that are shorter than this, in bytes, are too common to be looked for as secrets.
const SHORTEST_SECRET: usize = 8;

/// What the executor printed: the beginning and the end are kept.
pub struct Printed<'a> {
    show: &'a dyn Fn(&[u8]),
    head: Vec<u8>,
    tail: Vec<u8>,
    /// How much of each is kept, in bytes.
    rooms: (usize, usize),
    /// How much more is held until the end: a secret that crosses a cut must be whole to be found.
    spare: usize,
    /// How much it was in all, in bytes.
    pub total: u64,
}

impl<'a> Printed<'a> {
    /// Nothing yet; `keep` bytes are kept, and no secret is longer than `spare` bytes.
    pub fn new(show: &'a dyn Fn(&[u8]), keep: usize, spare: usize) -> Self {
        Self { show, head: Vec::new(), tail: Vec::new(), rooms: (keep - keep / 2, keep / 2), spare, total: 0 }
    }

    /// Takes in a part of what a pipe holds. Whether there was anything.
    pub fn take(&mut self, stream: &mut dyn Read, buffer: &mut [u8]) -> bool {
        // The pipe is empty, or broken: nobody is left who could say more.
        let Ok(count @ 1..) = stream.read(buffer) else { return false };
        if self.total <= MAX_PRINTED {
            (self.show)(&buffer[..count]);
        }
        self.keep(&buffer[..count]);
        true
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.rooms.0 + self.spare - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        let room = self.rooms.1 + self.spare;
        // Seldom, so that each byte is moved about once.
        if self.tail.len() > 2 * room + (64 << 10) {
            self.tail.drain(..self.tail.len() - room);
        }
    }

    /// What is kept, with stars in the place of secrets, and a line that says how much is left out.
    pub fn kept(mut self, secrets: &[String]) -> Vec<u8> {
        if self.total == (self.head.len() + self.tail.len()) as u64 {
            self.head.append(&mut self.tail);
            self.head = redact(self.head, secrets);
            if self.total <= (self.rooms.0 + self.rooms.1) as u64 {
                return self.head;
            }
            self.tail = self.head.clone();
        } else {
            self.head = redact(self.head, secrets);
            self.tail = redact(self.tail, secrets);
        }
        self.head.truncate(self.rooms.0);
        self.tail.drain(..self.tail.len().saturating_sub(self.rooms.1));
        let left_out = self.total - (self.head.len() + self.tail.len()) as u64;
        self.head.extend_from_slice(format!("\n[{left_out} bytes are left out here]\n").as_bytes());
        self.head.append(&mut self.tail);
        self.head
    }
}

/// The same bytes with stars in the place of secrets.
fn redact(mut bytes: Vec<u8>, secrets: &[String]) -> Vec<u8> {
    for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
        let mut at = 0;
        while let Some(found) = find(&bytes[at..], secret.as_bytes()) {
            bytes[at + found..at + found + secret.len()].fill(b'*');
            at += found + secret.len();
        }
    }
    bytes
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.find(wanted)
}

/// Whether one of `secrets` stands in `bytes`.
pub fn holds_secret(bytes: &[u8], secrets: &[String]) -> bool {
    secrets.iter().any(|secret| secret.len() >= SHORTEST_SECRET && find(bytes, secret.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_of_what_was_printed_are_kept() {
        let secrets = ["hunter2hunter2".to_owned()];
        let cut = |left: usize, head: &str, tail: &str| format!("{head}\n[{left} bytes are left out here]\n{tail}");
        let cases = [
            ("short".to_owned(), "short".to_owned()),
            ("0123456789".to_owned(), "0123456789".to_owned()),
            ("0123456789a".to_owned(), cut(1, "01234", "6789a")),
            (format!("01234{}56789", "x".repeat(400_000)), cut(400_000, "01234", "56789")),
            // A secret that crosses the first cut, or the second.
            (format!("012hunter2hunter2{}56789", "x".repeat(400_000)), cut(400_012, "012**", "56789")),
            (format!("01234{}hunter2hunter2789", "x".repeat(400_000)), cut(400_012, "01234", "**789")),
            ("12hunter2hunter289".to_owned(), cut(8, "12***", "***89")),
        ];
        for (given, wanted) in cases {
            for step in [1, 7, 1000, 1 << 20] {
                let mut printed = Printed::new(&|_| {}, 10, 14);
                given.as_bytes().chunks(step).for_each(|part| printed.keep(part));
                assert_eq!(String::from_utf8(printed.kept(&secrets)).unwrap(), wanted, "{step}");
            }
        }
    }

    #[test]
    fn secrets_are_starred_wherever_they_stand() {
        let secrets = ["hunter2hunter2".to_owned(), "short".to_owned()];
        let cases = [
            ("a hunter2hunter2 b", "a ************** b"),
            ("hunter2hunter2hunter2hunter2", "****************************"),
            ("short hunter2", "short hunter2"),
            ("", ""),
        ];
        for (given, wanted) in cases {
            assert_eq!(String::from_utf8(redact(given.as_bytes().to_vec(), &secrets)).unwrap(), wanted);
        }
    }
}
