//! What `sandbox-exec` is told on macOS: a profile in the system's own language, where the last rule that matches decides.
//!
//! Everything is denied that is not named. It may read the system's programs and libraries, the scratch directory and what the configuration
//! names; write in the scratch directory; and, where that is granted, reach other machines. It says nothing about memory, for macOS
//! takes no limit of it. The text is made on every system, so that its tests run on every system; it was never tried on macOS itself.

use crate::document::confinement::Order;

/// Programs, libraries, and the few settings that the loader and the C library need. Not all of `/Library`: the system's keychain is there.
const READABLE: [&str; 16] = [
    "/usr",
    "/bin",
    "/sbin",
    "/System",
    "/Library/Apple",
    "/Library/Developer/CommandLineTools",
    "/Library/Frameworks",
    "/Applications/Xcode.app/Contents/Developer",
    "/opt/homebrew",
    "/opt/local",
    "/nix/store",
    "/private/var/db/dyld",
    "/private/var/db/timezone",
    "/private/var/select",
    "/private/etc/localtime",
    "/private/etc/manpaths.d",
];
/// What name resolution and TLS read.
const READABLE_WITH_NETWORK: [&str; 5] =
    ["/private/etc/hosts", "/private/etc/resolv.conf", "/private/etc/services", "/private/etc/protocols", "/private/etc/ssl"];
/// Harmless devices.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
/// What can hold the secrets of whoever runs git cbia, or of the system, below folders that may be read.
const HIDDEN: [&str; 2] = ["/System/Library/Keychains", "/System/Volumes/Data"];

/// The profile for this order. `real` gives a path once every link is followed, because that is what rules are compared with.
pub(super) fn text(order: &Order, real: &dyn Fn(&str) -> String) -> String {
    let quoted = |path: &str| format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""));
    let below = |path: &str| format!("(subpath {})", quoted(&real(path)));
    let exactly = |path: &str| format!("(literal {})", quoted(path));
    let all = |paths: &[&str], rule: &dyn Fn(&str) -> String| paths.iter().map(|p| rule(p)).collect::<Vec<_>>().join(" ");
    let granted: Vec<&str> = order.read.iter().map(String::as_str).collect();
    let own = all(&[&order.tree, &order.temporary], &below);
    let mut lines = vec![
        "(version 1)".to_owned(),
        "(deny default)".to_owned(),
        "(allow process-exec process-fork)".to_owned(),
        "(allow signal process-info* (target same-sandbox))".to_owned(),
        "(allow sysctl-read)".to_owned(),
        // The loader looks at every folder above what it loads; names and sizes can be seen by that, and nothing can be listed or read.
        "(allow file-read-metadata)".to_owned(),
        "(allow file-read* (literal \"/\"))".to_owned(),
        format!("(allow file-read* file-map-executable {})", all(&READABLE, &below)),
        format!("(deny file-read-data {})", all(&HIDDEN, &|path| format!("(subpath {})", quoted(path)))),
    ];
    if !granted.is_empty() {
        lines.push(format!("(allow file-read* file-map-executable {})", all(&granted, &below)));
    }
    lines.push(format!("(allow file-read* {})", all(&DEVICES, &exactly)));
    lines.push("(allow file-write-data (literal \"/dev/null\"))".to_owned());
    if order.network {
        lines.push(format!("(allow file-read* {})", all(&READABLE_WITH_NETWORK, &below)));
        // Other machines, and the system's own resolver; no other socket with a name.
        lines.push("(allow network-outbound (remote ip) (literal \"/private/var/run/mDNSResponder\"))".to_owned());
    }
    // Last, so that nothing before takes it back: a folder that is granted for reading may lie around the scratch directory.
    lines.push(format!("(allow file-read* file-map-executable {own})"));
    lines.push(format!("(allow file-write* {own})"));
    // What file-write* has, and no output needs.
    lines.push("(deny file-write-setugid file-mknod file-link)".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::executor::Limits;

    fn order(read: &[&str], network: bool) -> Order {
        Order {
            binary: "/opt/git-cbia".into(),
            program: "/bin/sh".into(),
            sha256: None,
            arguments: Vec::new(),
            environment: Default::default(),
            scratch: "/tmp/cbia".into(),
            tree: "/tmp/cbia/tree".into(),
            temporary: "/tmp/cbia/tmp".into(),
            read: read.iter().map(|path| (*path).to_owned()).collect(),
            network,
            require: true,
            wrapped: false,
            timeout_ms: 1,
            bounds: Limits::default().bounds(),
        }
    }

    /// As on macOS, where /tmp is a link.
    fn real(path: &str) -> String {
        if path.starts_with("/tmp/") { format!("/private{path}") } else { path.to_owned() }
    }

    /// The rules, each as its verdict, its operations, and the rest.
    fn rules(order: &Order) -> Vec<String> {
        text(order, &real).lines().map(str::to_owned).collect()
    }

    /// Parentheses balance outside of quoted text, and every rule is one list: what is quoted cannot end it.
    fn is_one_list(line: &str) -> bool {
        let (mut depth, mut quoted, mut escaped) = (0_i32, false, false);
        for (at, letter) in line.char_indices() {
            match letter {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '(' if !quoted => depth += 1,
                ')' if !quoted => depth -= 1,
                _ => {}
            }
            if depth == 0 && at + 1 < line.len() {
                return false;
            }
        }
        depth == 0 && !quoted
    }

    #[test]
    fn everything_is_denied_that_is_not_named() {
        let rules = rules(&order(&[], false));
        assert_eq!(&rules[..2], ["(version 1)", "(deny default)"]);
        // Nothing is allowed without saying to whom, but starting programs, reading system values, and looking at names.
        let wide: Vec<&str> =
            rules.iter().map(String::as_str).filter(|r| r.starts_with("(allow ") && !r[1..].contains('(')).collect();
        assert_eq!(wide, ["(allow process-exec process-fork)", "(allow sysctl-read)", "(allow file-read-metadata)"]);
        let writes: Vec<&String> =
            rules.iter().filter(|rule| rule.starts_with("(allow") && rule.contains("file-write")).collect();
        assert_eq!(
            writes,
            [
                "(allow file-write-data (literal \"/dev/null\"))",
                "(allow file-write* (subpath \"/private/tmp/cbia/tree\") (subpath \"/private/tmp/cbia/tmp\"))"
            ]
        );
        let all = rules.join("\n");
        for never in ["/Users", "mach-lookup", "iokit", "network", "ipc-posix", "(subpath \"/\")", "/private/tmp/cbia\""] {
            assert!(!all.contains(never), "{never} in {all}");
        }
        assert_eq!(rules.last().unwrap(), "(deny file-write-setugid file-mknod file-link)");
    }

    #[test]
    fn what_is_granted_is_granted_and_nothing_above_it() {
        let rules = rules(&order(&["/data/models", "/tmp/more"], true));
        assert!(rules.contains(
            &"(allow file-read* file-map-executable (subpath \"/data/models\") (subpath \"/private/tmp/more\"))".to_owned()
        ));
        let network: Vec<&String> = rules.iter().filter(|rule| rule.contains("network")).collect();
        assert_eq!(network.len(), 1);
        assert!(network[0].starts_with("(allow network-outbound (remote ip)") && !network[0].contains("network-inbound"));
        // Its own folders stay readable, whatever was denied before.
        let at = |what: &str| rules.iter().position(|rule| rule.starts_with(what)).unwrap();
        assert!(at("(deny file-read-data") < at("(allow file-read* file-map-executable (subpath \"/data/models\")"));
        assert!(at("(deny file-read-data") < at("(allow file-write* "));
    }

    #[test]
    fn no_path_can_say_more_than_a_path() {
        let hostile = ["/a\") (allow default) (literal \"", "/b\\", "/c\\\") (allow network*", "/d\") (version 1", "/e (x)"];
        for line in rules(&order(&hostile, true)) {
            assert!(is_one_list(&line), "{line}");
        }
        assert!(!is_one_list("(a \"b\") (c)") && !is_one_list("(a \"b)") && is_one_list("(a \"b\\\")\")"));
        let granted = rules(&order(&["/a\"b\\c"], false)).into_iter().find(|rule| rule.contains("/a")).unwrap();
        assert!(granted.contains("(subpath \"/a\\\"b\\\\c\")"), "{granted}");
    }
}
