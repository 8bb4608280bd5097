//! bubblewrap around the confined process, where it is installed and works: a second wall of other making, of namespaces.
//!
//! Inside, everything but the scratch directory is mounted read-only, there are no devices but the harmless ones, and no network unless it
//! is granted. Landlock and seccomp follow inside. It is an extra, and used only where confinement is required: a container that refuses
//! namespaces is confined by Landlock and seccomp alone, and the level says so.

use std::path::Path;

use crate::document::confinement::{Fate, Order};

/// The layer's name in the level that was reached.
pub const LAYER: &str = "bwrap";

#[cfg(not(target_os = "linux"))]
pub fn command(_: &Order) -> Option<(&'static Path, Vec<String>)> {
    None
}

/// bubblewrap and its arguments, to which those of `order.binary` are still to be added. Whether it works shows when it is run: a process
/// inside has something to say.
#[cfg(target_os = "linux")]
pub fn command(order: &Order) -> Option<(&'static Path, Vec<String>)> {
    /// Nothing is searched for: a program of another place may be anybody's.
    const PLACES: [&str; 2] = ["/usr/bin/bwrap", "/bin/bwrap"];

    let program = PLACES.into_iter().map(Path::new).find(|place| order.require && place.is_file())?;
    let mut words = vec!["--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"];
    if !order.network {
        words.push("--unshare-net");
    }
    words.extend(["--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev"]);
    words.extend(["--bind", &order.scratch, &order.scratch, "--", &order.binary]);
    Some((program, words.into_iter().map(str::to_owned).collect()))
}

/// What an exit status says: bubblewrap tells a signal as a shell does, by 128 and its number.
pub fn fate(order: &Order, status: i32) -> Fate {
    match status.checked_sub(128) {
        Some(signal @ 1..=64) if order.wrapped => Fate::Signalled(signal),
        _ => Fate::Exited(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::executor::Limits;

    #[test]
    fn a_signal_is_told_as_one() {
        let order = |wrapped| Order {
            binary: String::new(),
            program: String::new(),
            sha256: None,
            arguments: Vec::new(),
            environment: Default::default(),
            scratch: String::new(),
            tree: String::new(),
            temporary: String::new(),
            read: Vec::new(),
            network: false,
            require: true,
            wrapped,
            timeout_ms: 1,
            bounds: Limits::default().bounds(),
        };
        assert_eq!(
            [0, 3, 128, 137, 255].map(|status| fate(&order(true), status)),
            [Fate::Exited(0), Fate::Exited(3), Fate::Exited(128), Fate::Signalled(9), Fate::Exited(255)]
        );
        assert_eq!(fate(&order(false), 137), Fate::Exited(137));
    }
}
