//! What an executor may do: Landlock for files, sockets and signals, seccomp for system calls, limits for resources.
//!
//! It may read the system's programs and libraries, its scratch directory, and what its configuration names; write inside the scratch
//! directory only; open no sockets unless the network is granted, and never a unix one to a name. Setting modes and times by path, which
//! Landlock does not judge, is answered with success and does nothing: neither is harvested, and programs that copy files go on.
//!
//! A process confines itself here before it becomes the executor; whatever cannot be enforced in full is an error.

use std::path::PathBuf;

use crate::document::confinement::Order;

/// Confines this process, without return. Gives the level that was reached.
pub fn confine(order: &Order) -> Result<String, String> {
    let level = system::confine(order);
    match level {
        Err(_) if !order.require => Ok("none".into()),
        Ok(level) if order.wrapped => Ok(format!("{}+{level}", super::wrap::LAYER)),
        level => level,
    }
}

/// What is started in the program's place, and the arguments that come before its own: where the system confines by a program of its own.
pub fn outer(order: &Order, program: PathBuf) -> (PathBuf, Vec<String>) {
    system::outer(order, program)
}

/// Sets the resource limits, which need no support of the kernel.
pub fn limit(order: &Order) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let bounds = order.bounds;
    let set = |resource, name: &str, value: u64| {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        setrlimit(resource, limit).map_err(|error| format!("the limit on {name} cannot be set: {error}"))
    };
    set(Resource::Core, "core dumps", 0)?;
    set(Resource::Fsize, "file sizes", bounds.file_bytes)?;
    set(Resource::Cpu, "processor time", bounds.cpu_s)?;
    match set(Resource::As, "memory", bounds.memory_bytes) {
        // macOS knows the limit and does not take it.
        Err(_) if cfg!(target_os = "macos") => Ok(()),
        other => other,
    }
}

/// macOS confines by a program of its own, which is told what is allowed and becomes what it confines.
#[cfg(target_os = "macos")]
mod system {
    use std::path::{Path, PathBuf};

    use super::super::profile;
    use super::Order;

    const PROGRAM: &str = "/usr/bin/sandbox-exec";

    pub fn confine(_: &Order) -> Result<String, String> {
        if Path::new(PROGRAM).is_file() { Ok("sandbox-exec".into()) } else { Err(format!("{PROGRAM} is not there")) }
    }

    pub fn outer(order: &Order, program: PathBuf) -> (PathBuf, Vec<String>) {
        if !Path::new(PROGRAM).is_file() {
            return (program, Vec::new());
        }
        let program = program.to_string_lossy().into_owned();
        (PathBuf::from(PROGRAM), vec!["-p".into(), profile::text(order, &real), program])
    }

    /// A path once every link is followed; as it is, where nothing is there.
    fn real(path: &str) -> String {
        std::fs::canonicalize(path).map_or_else(|_| path.to_owned(), |path| path.to_string_lossy().into_owned())
    }
}

#[cfg(not(any(
    target_os = "macos",
    all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))
)))]
mod system {
    use std::path::PathBuf;

    use super::Order;

    pub fn outer(_: &Order, program: PathBuf) -> (PathBuf, Vec<String>) {
        (program, Vec::new())
    }

    pub fn confine(_: &Order) -> Result<String, String> {
        Err("this system has neither Landlock nor seccomp".into())
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod system {
    use std::collections::BTreeMap;

    use landlock::{
        ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    };

    use super::Order;

    /// The process has confined itself.
    pub fn outer(_: &Order, program: std::path::PathBuf) -> (std::path::PathBuf, Vec<String>) {
        (program, Vec::new())
    }

    /// Programs, libraries, and the few settings that the loader and the C library need. What is not there is left out.
    const READABLE: [&str; 17] = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/nix/store",
        "/etc/alternatives",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/etc/ld.so.preload",
        "/etc/localtime",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/sys/devices/system/cpu",
    ];
    /// What name resolution and TLS read.
    const READABLE_WITH_NETWORK: [&str; 11] = [
        "/etc/resolv.conf",
        "/run/systemd/resolve/stub-resolv.conf",
        "/run/systemd/resolve/resolv.conf",
        "/etc/hosts",
        "/etc/host.conf",
        "/etc/gai.conf",
        "/etc/nsswitch.conf",
        "/etc/services",
        "/etc/ssl",
        "/etc/pki",
        "/etc/ca-certificates",
    ];
    const DEVICES_TO_READ: [&str; 3] = ["/dev/zero", "/dev/random", "/dev/urandom"];
    const DEVICES_TO_WRITE: [&str; 2] = ["/dev/null", "/dev/full"];

    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: TargetArch = TargetArch::x86_64;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: TargetArch = TargetArch::aarch64;
    #[cfg(target_arch = "riscv64")]
    const ARCHITECTURE: TargetArch = TargetArch::riscv64;

    /// The versions whose rules are known here. Below the first, a file can be truncated through a path that may only be read.
    const KNOWN: [ABI; 5] = [ABI::V7, ABI::V6, ABI::V5, ABI::V4, ABI::V3];

    pub fn confine(order: &Order) -> Result<String, String> {
        let abi = landlock(order)?;
        // Before version 6 Landlock does not keep signals inside.
        for (action, rules) in filters(order.network, abi < ABI::V6)? {
            let program = compile(action, rules)?;
            seccompiler::apply_filter(&program).map_err(|error| format!("the kernel refuses the seccomp filter: {error}"))?;
        }
        Ok(format!("landlock:{}+seccomp", abi as i32))
    }

    /// Enforces the newest known version that the kernel enforces in full.
    fn landlock(order: &Order) -> Result<ABI, String> {
        let mut why = String::new();
        for abi in KNOWN {
            match restrict(order, abi) {
                Ok(()) => return Ok(abi),
                Err(error) => why = error,
            }
        }
        Err(format!("the kernel does not enforce Landlock version 3 or newer: {why}"))
    }

    fn restrict(order: &Order, abi: ABI) -> Result<(), String> {
        let told = |error: landlock::RulesetError| error.to_string();
        let read = AccessFs::from_read(abi);
        let device = AccessFs::ReadFile | AccessFs::WriteFile;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(told)?;
        if abi >= ABI::V4 && !order.network {
            ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp).map_err(told)?;
        }
        if abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal).map_err(told)?;
        }
        let with_network = READABLE_WITH_NETWORK.iter().filter(|_| order.network);
        let readable = READABLE.iter().chain(with_network).copied().chain(order.read.iter().map(String::as_str));
        let devices = DEVICES_TO_WRITE.iter().chain(&DEVICES_TO_READ);
        let own = [order.tree.as_str(), order.temporary.as_str()];
        let status = ruleset
            .create()
            .and_then(|rules| rules.add_rules(path_beneath_rules(readable, read)))
            .and_then(|rules| rules.add_rules(path_beneath_rules(DEVICES_TO_READ, AccessFs::ReadFile)))
            .and_then(|rules| rules.add_rules(path_beneath_rules(devices, device)))
            .and_then(|rules| rules.add_rules(path_beneath_rules(own, writable(abi))))
            .and_then(|rules| rules.restrict_self())
            .map_err(told)?;
        let available = matches!(status.landlock, LandlockStatus::Available { .. });
        if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs || !available {
            return Err("it is enforced in part only".into());
        }
        Ok(())
    }

    /// Everything inside the scratch directory, but no devices, sockets and named pipes.
    fn writable(abi: ABI) -> BitFlags<AccessFs> {
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo | AccessFs::IoctlDev;
        AccessFs::from_all(abi) & !special
    }

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// What is refused: each filter says with which error, and gives for each system call the arguments, if not all of them.
    fn filters(network: bool, keep_signals: bool) -> Result<Vec<(u32, Rules)>, String> {
        let (mut denied, mut absent, mut ignored) = (Rules::new(), Rules::new(), Rules::new());
        for call in DENIED {
            denied.insert(*call, Vec::new());
        }
        if keep_signals {
            let signals =
                [libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo];
            denied.extend(signals.into_iter().chain([libc::SYS_pidfd_send_signal]).map(|call| (call, Vec::new())));
        }
        // Sockets: none, or internet ones that are not raw. Pairs are harmless, but for datagrams, which can be sent to a name.
        let sockets = if network {
            vec![
                rule(&[(0, SeccompCmpOp::Ne, libc::AF_INET as u64), (0, SeccompCmpOp::Ne, libc::AF_INET6 as u64)])?,
                rule(&[(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_RAW as u64)])?,
            ]
        } else {
            Vec::new()
        };
        denied.insert(libc::SYS_socket, sockets);
        denied.insert(
            libc::SYS_socketpair,
            vec![
                rule(&[(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)])?,
                rule(&[(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_DGRAM as u64)])?,
            ],
        );
        // New namespaces give a process powers that nothing here was made for.
        let namespaces = [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ];
        let masked = |flag: i32| rule(&[(0, SeccompCmpOp::MaskedEq(flag as u64), flag as u64)]);
        denied.insert(libc::SYS_clone, namespaces.into_iter().map(masked).collect::<Result<_, _>>()?);
        // Its flags are in memory, where a filter cannot see them; programs fall back to clone.
        absent.insert(libc::SYS_clone3, Vec::new());
        // Typing into a terminal that was inherited, and outliving the supervisor.
        #[allow(clippy::unnecessary_cast, reason = "the type of these constants differs between C libraries")]
        let typing = [libc::TIOCSTI as u64, libc::TIOCLINUX as u64];
        denied.insert(
            libc::SYS_ioctl,
            typing.into_iter().map(|request| rule(&[(1, SeccompCmpOp::Eq, request)])).collect::<Result<_, _>>()?,
        );
        denied.insert(libc::SYS_prctl, vec![rule(&[(0, SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG as u64)])?]);
        // A file that may be read only can still be made to run as its owner.
        let set_id = |mask: u64| rule(&[(1, SeccompCmpOp::MaskedEq(mask), mask)]);
        denied.insert(libc::SYS_fchmod, vec![set_id(0o4000)?, set_id(0o2000)?]);
        for call in IGNORED {
            ignored.insert(*call, Vec::new());
        }
        // Without a path it is about a file that is open.
        ignored.insert(libc::SYS_utimensat, vec![wide(1, SeccompCmpOp::Ne, 0)?]);
        foreign(&mut denied);
        foreign(&mut absent);
        foreign(&mut ignored);
        Ok(vec![(libc::EPERM as u32, denied), (libc::ENOSYS as u32, absent), (0, ignored)])
    }

    fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, String> {
        let condition = |(argument, operator, value): &(u8, SeccompCmpOp, u64)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
        };
        let conditions: Result<Vec<_>, _> = conditions.iter().map(condition).collect();
        conditions.and_then(SeccompRule::new).map_err(|error| format!("the seccomp filter cannot be made: {error}"))
    }

    fn wide(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, String> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| format!("the seccomp filter cannot be made: {error}"))
    }

    fn compile(error: u32, rules: Rules) -> Result<BpfProgram, String> {
        let told = |error: seccompiler::BackendError| format!("the seccomp filter cannot be made: {error}");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error), ARCHITECTURE).map_err(told)?;
        filter.try_into().map_err(told)
    }

    /// The x32 calls are x86-64 ones with another number; a kernel that has them would let them past the filter.
    #[cfg(target_arch = "x86_64")]
    fn foreign(rules: &mut Rules) {
        const X32: i64 = 0x4000_0000;
        let copies: Vec<_> = rules.iter().map(|(call, rules)| (call | X32, rules.clone())).collect();
        // These have numbers of their own there: ioctl, ptrace, process_vm_readv, process_vm_writev, kexec_load.
        let own = [514, 521, 539, 540, 528].map(|call| (call | X32, Vec::new()));
        if rules.contains_key(&libc::SYS_ptrace) {
            rules.extend(own);
        }
        rules.extend(copies);
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn foreign(_: &mut Rules) {}

    /// Refused whatever the arguments.
    const DENIED: &[i64] = &[
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_reboot,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_quotactl,
        libc::SYS_acct,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_open_by_handle_at,
        libc::SYS_fanotify_init,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        // setxattrat and removexattrat, which have the same numbers everywhere.
        463,
        466,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_iopl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_kexec_file_load,
    ];

    /// Answered with success, and not done.
    const IGNORED: &[i64] = &[
        libc::SYS_fchmodat,
        // fchmodat2, which has the same number everywhere.
        452,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utime,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utimes,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_futimesat,
    ];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_filters_compile() {
            for (network, keep_signals) in [(false, false), (true, false), (false, true)] {
                for (error, rules) in filters(network, keep_signals).unwrap() {
                    assert!(compile(error, rules).unwrap().len() > 4);
                }
            }
        }
    }
}
