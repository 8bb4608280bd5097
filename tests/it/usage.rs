//! What somebody sees who types the command's name and nothing else.

use std::process::Command;

#[test]
fn without_arguments_the_whole_help_is_told() {
    for arguments in [&[][..], &["authority"], &["cache"]] {
        #[expect(clippy::disallowed_methods, reason = "the program itself is what is tested")]
        let mut program = Command::new(env!("CARGO_BIN_EXE_git-cbia"));
        let output = program.args(arguments).env_clear().output().unwrap();
        let (told, result) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
        assert_eq!((output.status.code(), result.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!told.starts_with("error") && told.contains("Commands:") && told.contains("  -h, --help "), "{told}");
    }
}
