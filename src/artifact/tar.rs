//! A byte-reproducible archive of a set of files: POSIX ustar, with pax headers (IEEE Std 1003.1, `pax`) where a path or a size does
//! not fit. The same set gives the same bytes everywhere: entries in byte order of path, mode 0644, owner 0, time 0, no directories.

use std::io::{self, Write};

use super::Artifacts;
use crate::document::path::RepoPath;

const BLOCK: usize = 512;
/// The largest size that eleven octal digits hold.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A file of the set cannot be had.
    #[error("the bytes of {0} cannot be had")]
    Unreadable(RepoPath),
    /// The archive could not be written.
    #[error("the archive could not be written at {path}")]
    Write {
        /// The file that was being written.
        path: RepoPath,
        /// What the system said.
        source: io::Error,
    },
    /// The end of the archive could not be written.
    #[error("the end of the archive could not be written")]
    End(#[source] io::Error),
}

/// Writes an archive of `files` to `out`, one file at a time.
pub fn write(files: &dyn Artifacts, out: &mut dyn Write) -> Result<(), TarError> {
    for path in files.paths() {
        let bytes = files.bytes(path).ok_or_else(|| TarError::Unreadable(path.clone()))?;
        entry(path.as_str(), &bytes, out).map_err(|source| TarError::Write { path: path.clone(), source })?;
    }
    out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(TarError::End)
}

fn entry(path: &str, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let size = bytes.len() as u64;
    let fits = split(path);
    let mut pax = Vec::new();
    if fits.is_none() {
        pax.extend(record("path", path));
    }
    if size > MAX_OCTAL_SIZE {
        pax.extend(record("size", &size.to_string()));
    }
    if !pax.is_empty() {
        out.write_all(&header("", b"pax_header", pax.len() as u64, b'x'))?;
        padded(&pax, out)?;
    }
    // A reader that knows no pax headers gets a name that is cut, and lies in no folder.
    let letters = || path.bytes().filter(u8::is_ascii_alphanumeric).take(90);
    let cut = || ("", b"file-".iter().copied().chain(letters()).collect::<Vec<u8>>());
    let (prefix, name) = fits.map_or_else(cut, |(prefix, name)| (prefix, name.as_bytes().to_vec()));
    out.write_all(&header(prefix, &name, size.min(MAX_OCTAL_SIZE), b'0'))?;
    padded(bytes, out)
}

/// The path as ustar holds it: a prefix of at most 155 bytes, and a name of at most 100. Only ASCII, since ustar says nothing of
/// encodings and pax says UTF-8.
fn split(path: &str) -> Option<(&str, &str)> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some(("", path));
    }
    let slashes = path.match_indices('/').map(|(at, _)| at);
    slashes.filter(|at| *at <= 155 && path.len() - at - 1 <= 100).map(|at| (&path[..at], &path[at + 1..])).next()
}

/// A pax record: its own length in decimal, counting itself, a space, `key=value` and a newline.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

fn header(prefix: &str, name: &[u8], size: u64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    // The checksum is taken as if its own field held spaces.
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
}

#[cfg(test)]
mod tests {
    use super::super::Files;
    use super::super::testing::{Broken, files, path};
    use super::*;

    fn archive(files: &Files) -> Vec<u8> {
        let mut out = Vec::new();
        write(files, &mut out).unwrap();
        out
    }

    /// What the system's tar makes of an archive: its listing, and the files that it extracts.
    #[expect(clippy::disallowed_methods, reason = "the archive is judged by another implementation")]
    fn by_tar(bytes: &[u8]) -> (String, Files) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.tar");
        std::fs::write(&file, bytes).unwrap();
        let tar = |args: &[&str]| {
            let out = std::process::Command::new("tar")
                .args(args)
                .arg("-f")
                .arg(&file)
                .env("TZ", "UTC")
                .env("LC_ALL", "C.UTF-8")
                .output();
            let out = out.unwrap();
            assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let listing = tar(&["-tv", "--numeric-owner", "--quoting-style=literal"]);
        let target = folder.path().join("out");
        std::fs::create_dir(&target).unwrap();
        tar(&["-x", "-C", target.to_str().unwrap()]);
        let names = tar(&["-t", "--quoting-style=literal"]);
        let read = |name: &str| (path(name), std::fs::read(target.join(name)).unwrap());
        (listing, names.lines().map(read).collect())
    }

    #[test]
    fn tar_reads_what_was_written() {
        let long = format!("{}/{}/x", "d".repeat(150), "e".repeat(99));
        let longer = format!("{}/{}", "f".repeat(200), "g".repeat(250));
        let exact = format!("{}/{}", "h".repeat(155), "i".repeat(100));
        let over = format!("{}/{}", "h".repeat(156), "i".repeat(100));
        let block = "b".repeat(512);
        let set = files(&[
            ("b.txt", "hello\n"),
            ("a/empty", ""),
            ("a/block", &block),
            ("é/ü.md", "x"),
            (&"n".repeat(100), "100"),
            (&"n".repeat(101), "101"),
            (&long, "long"),
            (&longer, "longer"),
            (&exact, "exact"),
            (&over, "over"),
        ]);
        let bytes = archive(&set);
        assert_eq!(bytes.len() % BLOCK, 0);
        let (listing, extracted) = by_tar(&bytes);
        assert_eq!(extracted, set);
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), set.len());
        for (line, (path, bytes)) in lines.iter().zip(&set) {
            let wanted = ["-rw-r--r--", "0/0", &bytes.len().to_string(), "1970-01-01", "00:00", path.as_str()].join(" ");
            assert_eq!(line.split_whitespace().collect::<Vec<_>>().join(" "), wanted);
        }
    }

    #[test]
    fn the_same_set_gives_the_same_bytes() {
        let set = files(&[("a", "1"), ("b/é", "2")]);
        assert_eq!(archive(&set), archive(&set.clone()));
        // Fixed for good: another digest means that archives already handed out can no longer be reproduced.
        let digest = crate::document::digest::Digest::of(&archive(&set));
        assert_eq!(digest.to_string(), "fdb7eb4881df59ea4e4033b836766b43758be81a4faa99fe941bc0b5cdf1d209");
        assert_eq!(archive(&Files::new()), [0; 1024]);
    }

    #[test]
    fn records_count_themselves() {
        assert_eq!(record("path", "a"), b"9 path=a\n");
        assert_eq!(record("path", &"x".repeat(90))[..3], *b"99 ");
        assert_eq!(record("path", &"x".repeat(91))[..4], *b"101 ");
        for length in 80..110 {
            let record = record("path", &"x".repeat(length));
            assert_eq!(String::from_utf8_lossy(&record).split(' ').next().unwrap(), record.len().to_string());
        }
    }

    #[test]
    fn what_cannot_be_had_or_written_is_an_error() {
        let error = write(&Broken(path("x")), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, TarError::Unreadable(_)));
        let mut full = [0u8; 700];
        let error = write(&files(&[("x", "y")]), &mut full.as_mut_slice()).unwrap_err();
        assert!(matches!(error, TarError::Write { .. }), "{error}");
        let mut full = [0u8; 1100];
        let error = write(&files(&[("x", "y")]), &mut full.as_mut_slice()).unwrap_err();
        assert!(matches!(error, TarError::End(_)), "{error}");
    }
}
