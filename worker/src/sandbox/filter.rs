//! Which system calls are refused inside: seccomp.
//!
//! Called by the second stage last, before the task. A list of what is refused, because programs of every kind run here: what
//! reaches other processes, the kernel's own tables, namespaces and mounts, and what has been a way out before. Refused calls
//! answer EPERM; those that programs try before an older one (`clone3`) answer ENOSYS, so that they go on with that.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, sock_filter,
};

use super::enter::said;

/// Refused whatever the arguments.
const REFUSED: [i64; 47] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_mq_open,
];
/// Kinds of sockets that a process without a network, or with one, may open: local ones, internet, and what programs ask for
/// to learn of their own interfaces.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Namespaces by `clone`.
const NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    0x80, // CLONE_NEWTIME, for clone3 and unshare only; as a clone flag it would be a signal's number.
];
/// Set-user-id and set-group-id.
const SET_IDS: u64 = 0o6000;
/// Injects input into a terminal.
const TIOCSTI: u64 = 0x5412;
/// Console controls that do the same.
const TIOCLINUX: u64 = 0x541C;

/// Refuses from here on, for this process and its children.
pub(super) fn enforce() -> io::Result<()> {
    let error = |error: String| said("filter system calls (seccomp)", &io::Error::other(error));
    let refused =
        filter(refused().map_err(|e| error(e.to_string()))?, libc::EPERM).map_err(|e| error(e.to_string()))?;
    let absent =
        filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS).map_err(|e| error(e.to_string()))?;
    // The strictest answer of all filters counts; of two refusals the one that was added last.
    for program in [refused, absent] {
        seccompiler::apply_filter(&program).map_err(|e| error(e.to_string()))?;
    }
    Ok(())
}

fn refused() -> Result<BTreeMap<i64, Vec<Rule>>, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<Rule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let rule = |conditions| Rule::new(conditions);
    let one_of = |argument: u8, mask: u64| {
        Condition::new(argument, Len::Dword, Op::MaskedEq(mask), mask).and_then(|condition| rule(vec![condition]))
    };
    let clones = NAMESPACES.iter().take(7).map(|flag| one_of(0, u64::from(flag.cast_unsigned())));
    calls.insert(libc::SYS_clone, clones.collect::<Result<_, _>>()?);
    let equal = |argument: u8, value: u64| {
        Condition::new(argument, Len::Dword, Op::Eq, value).and_then(|condition| rule(vec![condition]))
    };
    calls.insert(libc::SYS_ioctl, vec![equal(1, TIOCSTI)?, equal(1, TIOCLINUX)?]);
    // None of the families.
    let unlike =
        |argument: u8, family: i32| Condition::new(argument, Len::Dword, Op::Ne, u64::from(family.cast_unsigned()));
    let others = FAMILIES.iter().map(|family| unlike(0, *family)).collect::<Result<Vec<_>, _>>()?;
    calls.insert(libc::SYS_socket, vec![rule(others)?]);
    // Either bit alone is enough.
    let set_ids = |argument: u8| -> Result<Vec<Rule>, seccompiler::BackendError> {
        [SET_IDS & 0o4000, SET_IDS & 0o2000].iter().map(|bit| one_of(argument, *bit)).collect()
    };
    for (call, argument) in [(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (libc::SYS_fchmodat2, 2)] {
        calls.insert(call, set_ids(argument)?);
    }
    #[cfg(target_arch = "x86_64")]
    {
        calls.insert(libc::SYS_chmod, set_ids(1)?);
        for call in [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_kexec_file_load, libc::SYS_uselib] {
            calls.insert(call, Vec::new());
        }
    }
    Ok(calls)
}

fn filter(calls: BTreeMap<i64, Vec<Rule>>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let action = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(if cfg!(target_arch = "x86_64") { without_x32(program) } else { program })
}

/// `program` behind three instructions that refuse the second set of numbers which x86-64 has for the same calls.
fn without_x32(program: BpfProgram) -> BpfProgram {
    let instruction = |code: u32, k: u32, jt: u8, jf: u8| sock_filter {
        // Codes are below 256.
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let head = [
        // The call's number is the first word of what a filter looks at.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0x4000_0000, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, enosys, 0, 0),
    ];
    head.into_iter().chain(program).collect()
}
