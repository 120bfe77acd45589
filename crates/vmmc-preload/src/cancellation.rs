//! Threads that are cancelled.
//!
//! Two things are different in a program that cancels threads:
//! - A call that is a cancellation point acts on a cancellation that is pending before it does anything else, whether it
//!   would have to sleep or not.
//! - Of a thread that may be cancelled anywhere (`PTHREAD_CANCEL_ASYNCHRONOUS`) the unwinding must not begin in the layer, which
//!   holds locks and catches panics. While it is in a call it may be cancelled as other threads are: where the call begins, and
//!   where it sleeps in the C library.
//!
//! Every other program pays with one load a call, and one whose other threads may be cancelled anywhere with two. So the symbols
//! are defined here: they hold nothing that has to be unwound, and jump to the functions of the other files.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{
    c_long, c_uint, c_ulong, c_void, epoll_event, fd_set, iovec, loff_t, mmsghdr, msghdr, nfds_t,
    off_t, pid_t, pollfd, pthread_t, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec,
    timeval,
};

use crate::boundary::next;
use crate::programs::{Start, clone, fork};

/// The program has cancelled a thread, or has had one that may be cancelled anywhere.
static CANCELS: AtomicBool = AtomicBool::new(false);
/// It has cancelled a thread.
static CANCELLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread may be cancelled anywhere.
    static ANYWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread has anything to mind.
#[inline]
fn minds() -> bool {
    CANCELS.load(Ordering::Relaxed) && (CANCELLED.load(Ordering::Relaxed) || ANYWHERE.get())
}

/// `pthread.h`; the libc crate does not have them.
const DEFERRED: c_int = 0;
const ASYNCHRONOUS: c_int = 1;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn pthread_cancel(thread: pthread_t) -> c_int {
    let native = next!(pthread_cancel: fn(pthread_t) -> c_int);
    // A thread that is told of the cancellation knows of this too.
    CANCELLED.store(true, Ordering::Relaxed);
    CANCELS.store(true, Ordering::Relaxed);
    native(thread)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn pthread_setcanceltype(
    kind: c_int,
    before: *mut c_int,
) -> c_int {
    if kind == ASYNCHRONOUS {
        ANYWHERE.set(true);
        CANCELS.store(true, Ordering::Relaxed);
    }
    let answer = set_type(kind, before);
    if kind == DEFERRED {
        ANYWHERE.set(false);
    }
    answer
}

unsafe fn set_type(kind: c_int, before: *mut c_int) -> c_int {
    next!(pthread_setcanceltype: fn(c_int, *mut c_int) -> c_int)(kind, before)
}

/// This thread is cancelled only where calls are cancellation points, until [`leave`]; how it was before.
unsafe fn shielded() -> c_int {
    let mut before = DEFERRED;
    set_type(DEFERRED, &raw mut before);
    before
}

/// As [`shielded`], at a cancellation point.
unsafe fn point() -> c_int {
    let before = shielded();
    if CANCELLED.load(Ordering::Relaxed) {
        next!(pthread_testcancel: fn() -> ())();
    }
    before
}

/// Where the thread may be cancelled anywhere, that is here if it was meanwhile.
unsafe fn leave(before: c_int) {
    if before != DEFERRED {
        set_type(before, std::ptr::null_mut());
    }
}

/// Defines the symbols of these functions, each of which begins with `$begin` where threads are cancelled.
macro_rules! define {
    ($begin:ident: $($file:ident::$name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $result {
            #[cold]
            #[inline(never)]
            unsafe extern "C-unwind" fn minding($($argument: $type),*) -> $result {
                let before = $begin();
                let result = crate::$file::$name($($argument),*);
                leave(before);
                result
            }
            if minds() {
                return minding($($argument),*);
            }
            crate::$file::$name($($argument),*)
        }
    )*};
}

// Those that are cancellation points in the C library.
define! {
    point:
    bytes::read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t;
    bytes::write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t;
    bytes::readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t;
    bytes::writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t;
    bytes::preadv2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    bytes::preadv64v2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    bytes::pwritev2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    bytes::pwritev64v2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    bytes::recv(fd: c_int, to: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    bytes::send(fd: c_int, from: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    bytes::recvfrom(fd: c_int, to: *mut c_void, len: size_t, flags: c_int, address: *mut sockaddr,
        address_len: *mut socklen_t) -> ssize_t;
    bytes::sendto(fd: c_int, from: *const c_void, len: size_t, flags: c_int, address: *const sockaddr,
        address_len: socklen_t) -> ssize_t;
    bytes::recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    bytes::sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    bytes::recvmmsg(fd: c_int, list: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    bytes::sendmmsg(fd: c_int, list: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    bytes::splice(from: c_int, from_offset: *mut loff_t, to: c_int, to_offset: *mut loff_t, len: size_t, flags: c_uint) -> ssize_t;
    bytes::__read_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t) -> ssize_t;
    bytes::__recv_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    bytes::__recvfrom_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t, flags: c_int, address: *mut sockaddr,
        address_len: *mut socklen_t) -> ssize_t;
    waiting::poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    waiting::ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    waiting::__poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: usize) -> c_int;
    waiting::__ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: usize) -> c_int;
    waiting::select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    waiting::pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec,
        mask: *const sigset_t) -> c_int;
    waiting::epoll_wait(set: c_int, events: *mut epoll_event, most: c_int, timeout: c_int) -> c_int;
    waiting::epoll_pwait(set: c_int, events: *mut epoll_event, most: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    waiting::epoll_pwait2(set: c_int, events: *mut epoll_event, most: c_int, timeout: *const timespec,
        mask: *const sigset_t) -> c_int;
    sockets::connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    sockets::accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    sockets::accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    descriptors::close(fd: c_int) -> c_int;
}

// The others that threads may be in when they are cancelled.
define! {
    shielded:
    bytes::sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    bytes::sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    waiting::epoll_create(size: c_int) -> c_int;
    waiting::epoll_create1(flags: c_int) -> c_int;
    waiting::epoll_ctl(set: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    sockets::socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    sockets::shutdown(fd: c_int, how: c_int) -> c_int;
    sockets::getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    sockets::setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    sockets::getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    sockets::ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int;
    sockets::fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    sockets::fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int;
    descriptors::close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    descriptors::closefrom(first: c_int) -> ();
    descriptors::dup(old: c_int) -> c_int;
    descriptors::dup2(old: c_int, new: c_int) -> c_int;
    descriptors::dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    syscall::syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
}

/// Defines second names that the C library has for some of these, and for those that make processes.
macro_rules! alias {
    ($($alias:ident = $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $alias($($argument: $type),*) -> $result {
            $name($($argument),*)
        }
    )*};
}

alias! {
    __read = read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t;
    __write = write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t;
    __send = send(fd: c_int, from: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    __poll = poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    __select = select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    __connect = connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    __close = close(fd: c_int) -> c_int;
    __fcntl = fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    __dup2 = dup2(old: c_int, new: c_int) -> c_int;
    __fork = fork() -> pid_t;
    __clone = clone(start: Option<Start>, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent_id: usize, area: usize,
        child_id: usize) -> c_int;
}
