//! The default filter: what Docker's and containerd's profiles let through, decided again for a
//! guest.
//!
//! Everything that is not listed fails with EPERM. Some calls come with the capability that makes
//! them useful. Two differences: no sockets of the vsock family, behind which the agent listens,
//! and no `socketcall(2)`, which would hide the family from the filter.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// errno for a call that is not allowed.
const EPERM: u32 = 1;
/// errno that makes glibc try `clone` when `clone3`, whose flags a filter cannot see, is refused.
const ENOSYS: u32 = 38;

/// The flags of `clone(2)` that make namespaces: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER,
/// NEWPID and NEWNET.
const CLONE_NEW: u64 = 0x7e02_0000;

/// Values of `personality(2)`: Linux, 32-bit addresses off and on, and "tell me".
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families (`socket(2)`): the kernel's crypto and the guest's way to the host.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Allowed with any arguments.
const ALWAYS: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2
    dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
    fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd
    getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
    getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
    io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall
    mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
    sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32
    setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt
    set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget
    shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketpair splice stat stat64
    statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
    time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev arch_prctl
";

/// Allowed with a capability.
const WITH: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open
         quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// The filter of a container with these capabilities (names without `CAP_`).
pub(super) fn profile(capabilities: &BTreeSet<&'static str>) -> Value {
    let mut rules = vec![allow(ALWAYS)];
    for persona in PERSONALITIES {
        rules.push(allow_if(
            "personality",
            &json!({ "index": 0, "value": persona, "op": "SCMP_CMP_EQ" }),
        ));
    }
    // A family that is neither of the two: below both, between them, above both.
    for (operator, family) in [
        ("SCMP_CMP_LT", AF_ALG),
        ("SCMP_CMP_EQ", AF_ALG + 1),
        ("SCMP_CMP_GT", AF_VSOCK),
    ] {
        rules.push(allow_if(
            "socket",
            &json!({ "index": 0, "value": family, "op": operator }),
        ));
    }
    for (capability, calls) in WITH {
        if capabilities.contains(capability) {
            rules.push(allow(calls));
        }
    }
    if !capabilities.contains("SYS_ADMIN") {
        // Threads and processes, and no namespaces.
        let no_namespace = json!({
            "index": 0, "value": CLONE_NEW, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
        });
        rules.push(allow_if("clone", &no_namespace));
        rules.push(json!({
            "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}

fn allow(calls: &str) -> Value {
    let names: Vec<&str> = calls.split_ascii_whitespace().collect();
    json!({ "names": names, "action": "SCMP_ACT_ALLOW" })
}

fn allow_if(call: &str, argument: &Value) -> Value {
    json!({ "names": [call], "action": "SCMP_ACT_ALLOW", "args": [argument] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rule without conditions does with a call.
    fn action(profile: &Value, call: &str) -> Option<String> {
        let rules = profile["syscalls"].as_array().unwrap();
        let rule = rules.iter().find(|rule| {
            rule.get("args").is_none()
                && rule["names"].as_array().unwrap().iter().any(|n| n == call)
        })?;
        Some(rule["action"].as_str().unwrap().to_owned())
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = profile(&BTreeSet::new());
        for call in [
            "mount",
            "bpf",
            "reboot",
            "init_module",
            "unshare",
            "setns",
            "io_uring_setup",
            "keyctl",
            "userfaultfd",
            "kexec_load",
            "socketcall",
        ] {
            assert_eq!(action(&plain, call), None, "{call}");
        }
        let admin = profile(&BTreeSet::from(["SYS_ADMIN"]));
        assert_eq!(action(&admin, "mount").as_deref(), Some("SCMP_ACT_ALLOW"));
        assert_eq!(action(&admin, "init_module"), None);
    }

    #[test]
    fn clone3_is_unknown_rather_than_forbidden_without_sys_admin() {
        let plain = profile(&BTreeSet::new());
        assert_eq!(action(&plain, "clone3").as_deref(), Some("SCMP_ACT_ERRNO"));
        let admin = profile(&BTreeSet::from(["SYS_ADMIN"]));
        assert_eq!(action(&admin, "clone3").as_deref(), Some("SCMP_ACT_ALLOW"));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let calls: Vec<&str> = ALWAYS.split_ascii_whitespace().collect();
        let unique: BTreeSet<&&str> = calls.iter().collect();
        assert_eq!(unique.len(), calls.len());
    }

    #[test]
    fn profile_is_one_that_the_guest_reads() {
        let profile = profile(&BTreeSet::from(["SYS_ADMIN", "SYS_CHROOT"]));
        serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(profile).unwrap();
    }
}
