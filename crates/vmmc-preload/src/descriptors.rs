//! Closing and duplicating descriptors. The layer keeps descriptors of its own above the program's; they are as if they
//! were not there.

use libc::{c_int, c_uint};
use vmmc_socket::Changing;

use crate::boundary::{catch, keep_errno, next, result};

fn bad() -> c_int {
    result(Err(vmmc_socket::kernel::Errno(libc::EBADF))) as c_int
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    let native = next!(close: fn(c_int) -> c_int);
    if vmmc_socket::is_own(fd) {
        return bad();
    }
    let _changing = catch(None, || keep_errno(|| Some(vmmc_socket::closing(fd))));
    if let Some(outcome) = catch(None, || vmmc_socket::close_high(fd)) {
        return result(outcome) as c_int;
    }
    native(fd)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn close_range(
    first: c_uint,
    last: c_uint,
    flags: c_int,
) -> c_int {
    let native = next!(close_range: fn(c_uint, c_uint, c_int) -> c_int);
    let top = last.min(c_int::MAX as c_uint) as c_int;
    let flag = |bit: c_uint| flags as c_uint & bit != 0;
    if flag(libc::CLOSE_RANGE_UNSHARE) {
        crate::programs::before_unsharing();
    }
    if flag(libc::CLOSE_RANGE_CLOEXEC) {
        return native(first, last, flags);
    }
    // Where other threads keep what this one closes in a table of its own, all is the kernel's by now.
    let is_plain = flags as c_uint & !libc::CLOSE_RANGE_UNSHARE == 0;
    let first_number = c_int::try_from(first).ok().filter(|_| is_plain);
    let closing = |first| keep_errno(|| Some(vmmc_socket::closing_between(first, top)));
    let _changing = first_number.map(|first| catch(None, || closing(first)));
    catch(-1, || vmmc_socket::close_beside_own(first, last, |from, to| native(from, to, flags)))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn closefrom(first: c_int) {
    close_range(first.max(0) as c_uint, c_uint::MAX, 0);
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn dup(old: c_int) -> c_int {
    let native = next!(dup: fn(c_int) -> c_int);
    let new = native(old);
    note(old, new)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    let native = next!(dup2: fn(c_int, c_int) -> c_int);
    if vmmc_socket::is_own(new) {
        return bad();
    }
    let _changing = make_room(old, new);
    let made = native(old, new);
    if old == new { made } else { note(old, made) }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    let native = next!(dup3: fn(c_int, c_int, c_int) -> c_int);
    if vmmc_socket::is_own(new) {
        return bad();
    }
    let _changing = (flags & !libc::O_CLOEXEC == 0).then(|| make_room(old, new));
    let made = native(old, new, flags);
    note(old, made)
}

/// `new` is about to be replaced by `old`, if that is open.
fn make_room(old: c_int, new: c_int) -> Option<Changing> {
    let is_replaced = old != new
        && (vmmc_socket::is_known(new) || vmmc_socket::is_known(old))
        && vmmc_socket::is_within_limit(new)
        && vmmc_socket::kernel::descriptor_flags(old).is_some();
    let replacing = || keep_errno(|| Some(vmmc_socket::replacing(new, old)));
    is_replaced.then(|| catch(None, replacing)).flatten()
}

/// `new` (if there is one) is a duplicate of `old`.
pub(crate) fn note(old: c_int, new: c_int) -> c_int {
    if new >= 0 {
        catch((), || keep_errno(|| vmmc_socket::duplicated(old, new)));
    }
    new
}
