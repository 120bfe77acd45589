//! Limits that the program sets itself.

use std::ffi::{c_int, c_uint};

use libc::{pid_t, rlimit};

use crate::boundary::{catch, keep_errno, next};

/// The program is about to limit `resource`.
pub(crate) fn before_limit(resource: c_uint) {
    if resource == libc::RLIMIT_AS {
        keep_errno(|| catch((), vmmc_socket::family::before_limited_address_space));
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn setrlimit(resource: c_uint, limit: *const rlimit) -> c_int {
    before_limit(resource);
    let native = next!(setrlimit: fn(c_uint, *const rlimit) -> c_int);
    change(resource, || native(resource, limit))
}

/// The library raises the limit of descriptors for a moment where it makes one of its own.
fn change(resource: c_uint, native: impl Fn() -> c_int) -> c_int {
    if resource != libc::RLIMIT_NOFILE {
        return native();
    }
    vmmc_socket::while_limits_stand(native)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn setrlimit64(
    resource: c_uint,
    limit: *const rlimit,
) -> c_int {
    setrlimit(resource, limit)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn prlimit(
    process: pid_t,
    resource: c_uint,
    limit: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    if !limit.is_null() {
        before_limit(resource);
    }
    let native = next!(prlimit: fn(pid_t, c_uint, *const rlimit, *mut rlimit) -> c_int);
    change(resource, || native(process, resource, limit, old))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn prlimit64(
    process: pid_t,
    resource: c_uint,
    limit: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    prlimit(process, resource, limit, old)
}
