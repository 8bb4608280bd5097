//! The next step for what lies at a generated path and may not, as commands that mend it where they are followed to the letter.

use crate::store::compare::Thing;

/// For a path that `thing` lies at, where a regular file or, with `above`, a folder of them belongs.
pub fn irregular(path: &str, thing: Thing, above: bool) -> String {
    let path = quoted(path);
    match thing {
        // A run compares bytes, and leaves a file with the right ones as it is.
        Thing::Executable(_) if !above => format!("git update-index --chmod=-x {path} && chmod -x {path}, and commit that"),
        Thing::Submodule(_) => {
            format!("git rm --cached {path}, move the folder away, then git cbia run, and commit what it writes")
        }
        _ => format!("git rm {path}, then git cbia run, and commit what it writes"),
    }
}

/// One word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_path_is_one_word() {
        assert_eq!(super::quoted("it's a b"), r"'it'\''s a b'");
    }
}
