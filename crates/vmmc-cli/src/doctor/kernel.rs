//! Facilities of the kernel for waiting, watching and isolating processes.

use std::fs;

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![
        pidfd(),
        rseq(),
        io_uring(),
        ptrace_scope(),
        user_namespaces(),
        network_namespaces(),
        containers(),
    ]
}

fn pidfd() -> Finding {
    let name = "pidfd";
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => Finding::good(name, "works", "the death of a process is noticed at once"),
        Err(cause) => Finding::limited(
            name,
            format!("fails ({cause})"),
            "the death of a process is noticed by its closed socket only",
            "use Linux 5.3 or later, and allow pidfd_open in the sandbox",
        ),
    }
}

fn rseq() -> Finding {
    const AT_RSEQ_FEATURE_SIZE: libc::c_ulong = 27;
    let name = "rseq";
    // SAFETY: getauxval only reads the vector that the kernel gave this process.
    let size = unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) };
    if size > 0 {
        Finding::good(
            name,
            format!("{size} bytes of features"),
            "a waiting process knows its core without a system call",
        )
    } else {
        Finding::limited(
            name,
            "not announced by the kernel",
            "whether the peer runs on the same core is asked for by a system call",
            "use Linux 6.3 or later",
        )
    }
}

fn io_uring() -> Finding {
    let name = "io_uring";
    // struct io_uring_params is 120 bytes, all zero for the defaults.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel reads and writes only the 120 bytes of the parameters.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        let cause = std::io::Error::last_os_error();
        return Finding::limited(
            name,
            format!("not allowed ({cause})"),
            "programs that would use it use other calls, which are lifted as well",
            "sysctl kernel.io_uring_disabled=0, and allow it in the sandbox",
        );
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    unsafe { libc::close(ring as libc::c_int) };
    Finding::good(
        name,
        "allowed",
        "a connection that a program gives to io_uring is lowered to TCP, and works there",
    )
}

fn ptrace_scope() -> Finding {
    let name = "ptrace_scope";
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let follows = "VMMC passes memory by descriptors and needs no right over other processes";
    match text.trim() {
        "" => Finding::good(name, "no Yama", follows),
        scope => Finding::good(name, scope, follows),
    }
}

fn user_namespaces() -> Finding {
    let name = "user namespaces";
    match in_child(|| unshare(libc::CLONE_NEWUSER)) {
        0 => Finding::good(name, "allowed", "tests with several users and nodes need no root"),
        error => Finding::limited(
            name,
            format!("not allowed ({})", std::io::Error::from_raw_os_error(error)),
            "tests with several users and nodes need root",
            "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000",
        ),
    }
}

fn network_namespaces() -> Finding {
    let name = "network namespaces";
    if in_child(|| unshare(libc::CLONE_NEWNET)) == 0 {
        let follows = "several nodes on this machine, linked by veth, can be made directly";
        return Finding::good(name, "allowed (CAP_NET_ADMIN and CAP_SYS_ADMIN)", follows);
    }
    match in_child(|| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)) {
        0 => Finding::good(
            name,
            "allowed in a user namespace",
            "several nodes on this machine can be made inside one user namespace",
        ),
        error => Finding::limited(
            name,
            format!("not allowed ({})", std::io::Error::from_raw_os_error(error)),
            "several nodes cannot be tried on this machine",
            "run as root, or allow user namespaces",
        ),
    }
}

fn containers() -> Finding {
    let name = "between containers";
    let (found, change) = match vmmc_os::SequenceReader::open() {
        Ok(_) => {
            let follows = "connections between network namespaces that share the runtime directory are lifted";
            return Finding::good(name, "sequence numbers can be read", follows);
        }
        Err(error) => {
            let text = error.to_string();
            let (found, change) = text.split_once(": ").unwrap_or((&text, ""));
            (found.to_owned(), change.to_owned())
        }
    };
    Finding::limited(name, found, "connections between network namespaces stay on TCP", change)
}

/// Zero, or the error's number.
fn unshare(what: libc::c_int) -> i32 {
    // SAFETY: called in a child that only exits afterwards.
    if unsafe { libc::unshare(what) } == 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Runs `probe` in a child that ends at once, and returns what it returned (0 to 255).
fn in_child(probe: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls only `probe`, which makes one system call and neither allocates nor
    // locks, and `_exit`; so it does not matter what other threads held when it was made.
    let child = unsafe { libc::fork() };
    match child {
        -1 => libc::EAGAIN,
        // SAFETY: `_exit` never returns and runs no handlers.
        0 => unsafe { libc::_exit(probe()) },
        _ => {
            let mut status = 0;
            // SAFETY: `child` is our child, not yet waited for; `status` is written by the call.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            if waited == child && libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                libc::ECHILD
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_in_a_child_leaves_this_process_alone_and_tells_its_error() {
        let namespace = || fs::read_link("/proc/self/ns/user").unwrap();
        let before = namespace();
        in_child(|| unshare(libc::CLONE_NEWUSER));
        assert_eq!(namespace(), before);
        assert_eq!(in_child(|| 0), 0);
        assert_eq!(in_child(|| libc::EPERM), libc::EPERM);
    }
}
