//! SHA-256 digests, and the two ways `git cbia` hashes more than one thing.
//!
//! A *file* is hashed as the SHA-256 of its exact bytes as git stores them, so
//! `git cat-file blob X | sha256sum` agrees on every platform. A *set of files* is hashed as the SHA-256
//! of its listing, which is what `sha256sum` prints. A *structured key* is the SHA-256 of a value's
//! RFC 8785 canonical JSON (see [`super::json::canonical`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use super::path::RepoPath;

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A string that is not 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a SHA-256 digest: 64 lower-case hexadecimal digits are wanted")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of everything that is left to read.
    pub fn of_reader(reader: &mut dyn std::io::Read) -> std::io::Result<Self> {
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self(hasher.finalize().into())),
                count => hasher.update(&buffer[..count]),
            }
        }
    }

    /// The digest of a value's RFC 8785 canonical JSON: a structured key.
    pub fn of_canonical(value: &serde_json::Value) -> Self {
        Self::of(&super::json::canonical(value))
    }

    /// The digest of a document's RFC 8785 canonical JSON.
    pub fn of_document(document: &impl Serialize) -> Self {
        Self::of(&super::json::canonical_of(document))
    }

    /// The digest of a set of files: SHA-256 of one `sha256  path\n` line per file, in byte order of path.
    ///
    /// The order of `files` does not matter.
    pub fn of_listing<'a>(files: impl IntoIterator<Item = (&'a RepoPath, Digest)>) -> Self {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_by(|a, b| a.0.as_str().as_bytes().cmp(b.0.as_str().as_bytes()));
        let mut hasher = Sha256::new();
        for (path, digest) in files {
            hasher.update(digest.hex());
            hasher.update(b"  ");
            hasher.update(path.as_str().as_bytes());
            hasher.update(b"\n");
        }
        Self(hasher.finalize().into())
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest from its raw 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 digits.
    fn hex(&self) -> [u8; 64] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 64];
        for (i, byte) in self.0.iter().enumerate() {
            text[2 * i] = HEX[usize::from(byte >> 4)];
            text[2 * i + 1] = HEX[usize::from(byte & 15)];
        }
        text
    }

    /// The first 12 digits, for messages.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let wrong = || DigestError(text.chars().take(80).collect());
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(wrong()),
        };
        let text_bytes = text.as_bytes();
        if text_bytes.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0u8; 32];
        for (i, pair) in text_bytes.chunks_exact(2).enumerate() {
            bytes[i] = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

// Documents hold tens of thousands of digests, so that no text is allocated for one.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.hex()) {
            Ok(text) => serializer.serialize_str(text),
            Err(error) => Err(serde::ser::Error::custom(error)),
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_what_sha256sum_prints() {
        let a: RepoPath = "a.txt".parse().unwrap();
        let b: RepoPath = "b/c.txt".parse().unwrap();
        let listing = format!("{}  a.txt\n{}  b/c.txt\n", Digest::of(b"1"), Digest::of(b"2"));
        let unordered = [(&b, Digest::of(b"2")), (&a, Digest::of(b"1"))];
        assert_eq!(Digest::of_listing(unordered), Digest::of(listing.as_bytes()));
    }

    #[test]
    fn only_lower_case_hex_of_the_right_length_parses() {
        let good = Digest::of(b"").to_string();
        assert_eq!(good, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(good.parse::<Digest>().unwrap(), Digest::of(b""));
        for bad in ["", &good[1..], &good.to_uppercase(), &format!("{good}0"), &good.replace('e', "g")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
