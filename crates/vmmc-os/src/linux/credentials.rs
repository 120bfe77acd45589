//! Who is at the other end of a local socket.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Descriptor, OsError};

/// A process as the kernel vouches for it, at the moment when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process number in the caller's namespace; 0 when the process is outside it.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The effective user of this process.
pub fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Credentials of the process that connected or listened at the other end.
///
/// # Errors
/// When the descriptor is not a local socket.
pub fn peer_credentials(socket: impl AsFd) -> Result<Credentials, OsError> {
    // Not `rustix::net::sockopt::socket_peercred`: its process number cannot be 0, which is what the kernel says of a
    // process in a namespace that we do not see.
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len =
        libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(|_| OsError::INVAL)?;
    // SAFETY: the kernel writes at most `len` bytes to `credentials`, any bytes are a valid `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(OsError::NOTSOCK);
    }
    let pid = u32::try_from(credentials.pid).unwrap_or(0);
    Ok(Credentials { pid, uid: credentials.uid, gid: credentials.gid })
}

/// A descriptor that becomes readable when the process at the other end has ended.
///
/// # Errors
/// When the process is gone already, is outside the caller's namespace on a kernel before 6.5, or descriptors are exhausted.
pub fn peer_process(socket: impl AsFd) -> Result<Descriptor, OsError> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut raw: libc::c_int = -1;
    let mut len =
        libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| OsError::INVAL)?;
    // SAFETY: the kernel writes one int.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut raw).cast(),
            &raw mut len,
        )
    };
    if result == 0 && raw >= 0 {
        // SAFETY: the kernel has just made this descriptor for us alone (close-on-exec, as all pidfds).
        return Ok(Descriptor::from(unsafe { OwnedFd::from_raw_fd(raw) }));
    }
    process_descriptor(peer_credentials(socket)?.pid)
}

/// A descriptor that becomes readable when process `pid` has ended.
///
/// # Errors
/// When there is no such process, or descriptors are exhausted.
pub fn process_descriptor(pid: u32) -> Result<Descriptor, OsError> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(OsError::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty()).map(Descriptor::from)
}

/// The id of a user of this host by name.
pub fn user_by_name(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    let mut room = vec![0; 16 * 1024];
    // SAFETY: all-zero is a valid passwd, which holds pointers and numbers.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with a NUL; the C library writes to `entry` and at most all of `room`.
    let result = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            room.as_mut_ptr(),
            room.len(),
            &raw mut found,
        )
    };
    (result == 0 && !found.is_null()).then_some(entry.pw_uid)
}

/// Whether a file is root's or this user's, and nobody else's to write.
pub fn is_ours_to_write(path: &std::path::Path) -> bool {
    rustix::fs::stat(path)
        .is_ok_and(|stat| [0, user_id()].contains(&stat.st_uid) && stat.st_mode & 0o022 == 0)
}
