//! Making, ending and tuning connections.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_ulong, c_void, sockaddr, socklen_t};

use vmmc_socket::kernel::may_be_memory;

use crate::boundary::{catch, keep_errno, next};
use crate::descriptors::note;

fn accepted(listener: c_int, fd: c_int, nonblocking: bool) {
    keep_errno(|| catch((), || vmmc_socket::accepted(listener, fd, nonblocking)));
}

/// The program has set some of it on a socket without a peer.
static HANDS_DOWN: AtomicBool = AtomicBool::new(false);

/// The program is about to set an option.
fn mind_handing_down(fd: c_int, level: c_int, name: c_int) {
    if vmmc_socket::is_handed_down(level, name) && !vmmc_socket::confined() && may_listen(fd) {
        HANDS_DOWN.store(true, Ordering::Relaxed);
    }
}

/// What was set on the listening socket keeps an accepted connection on TCP.
fn mind_handed_down(fd: c_int) {
    if HANDS_DOWN.load(Ordering::Relaxed)
        && !vmmc_socket::confined()
        && vmmc_socket::has_not_carried(fd)
    {
        keep_errno(|| catch((), || vmmc_socket::lower_descriptor(fd)));
    }
}

/// Whether `fd` is a TCP socket without a peer.
fn may_listen(fd: c_int) -> bool {
    let protocol = vmmc_socket::kernel::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
    let mut len = 0;
    // SAFETY: of the address nothing is asked.
    let ask = || unsafe { libc::getpeername(fd, std::ptr::null_mut(), &raw mut len) };
    protocol == Some(libc::IPPROTO_TCP) && keep_errno(ask) < 0
}

fn renewed(fd: c_int) {
    if vmmc_socket::is_known(fd) {
        keep_errno(|| catch((), || vmmc_socket::renewed(fd)));
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn socket(
    family: c_int,
    kind: c_int,
    protocol: c_int,
) -> c_int {
    let native = next!(socket: fn(c_int, c_int, c_int) -> c_int);
    let made = native(family, kind, protocol);
    let inet = family == libc::AF_INET || family == libc::AF_INET6;
    if made >= 0 {
        renewed(made);
    }
    if made >= 0 && inet && kind & 0xf == libc::SOCK_STREAM {
        keep_errno(|| catch((), || vmmc_socket::opened(made, kind & libc::SOCK_NONBLOCK != 0)));
    }
    made
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    let native = next!(connect: fn(c_int, *const sockaddr, socklen_t) -> c_int);
    let family = if !may_be_memory(address) || (len as usize) < 2 {
        libc::AF_UNSPEC
    } else {
        c_int::from((*address).sa_family)
    };
    if family == libc::AF_UNSPEC {
        catch((), || vmmc_socket::lower_descriptor(fd));
        return native(fd, address, len);
    }
    let made = native(fd, address, len);
    let inet = family == libc::AF_INET || family == libc::AF_INET6;
    if inet && (made == 0 || *libc::__errno_location() == libc::EINPROGRESS) {
        keep_errno(|| catch((), || vmmc_socket::connecting(fd)));
    }
    made
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn accept(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let native = next!(accept: fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int);
    let made = native(fd, address, len);
    if made >= 0 {
        renewed(made);
        accepted(fd, made, false);
        mind_handed_down(made);
    }
    made
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let native = next!(accept4: fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int);
    let made = native(fd, address, len, flags);
    if made >= 0 {
        renewed(made);
        accepted(fd, made, flags & libc::SOCK_NONBLOCK != 0);
        mind_handed_down(made);
    }
    made
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let native = next!(shutdown: fn(c_int, c_int) -> c_int);
    let known = [libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_RDWR].contains(&how);
    if known && catch(false, || keep_errno(|| vmmc_socket::is_over(fd))) {
        *libc::__errno_location() = libc::ENOTCONN;
        return -1;
    }
    let ends_sending = how == libc::SHUT_WR || how == libc::SHUT_RDWR;
    let in_ring = ends_sending && catch(false, || keep_errno(|| vmmc_socket::finish(fd)));
    let done = match (in_ring, how) {
        (false, _) => native(fd, how),
        (true, _) => {
            if how == libc::SHUT_RDWR {
                // Where that was the last that was open, the kernel says so; to the program it was open until now.
                keep_errno(|| native(fd, libc::SHUT_RD));
            }
            0
        }
    };
    if done == 0 && (how == libc::SHUT_RD || how == libc::SHUT_RDWR) {
        keep_errno(|| catch((), || vmmc_socket::deafen(fd)));
    }
    done
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn getpeername(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let native = next!(getpeername: fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int);
    if catch(false, || vmmc_socket::is_over_in_rings(fd)) {
        *libc::__errno_location() = libc::ENOTCONN;
        return -1;
    }
    native(fd, address, len)
}

/// `asm-generic/sockios.h`; the libc crate does not have it.
const SIOCATMARK: c_ulong = 0x8905;

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let native = next!(setsockopt: fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int);
    if vmmc_socket::is_not_carried(level, name) {
        catch((), || vmmc_socket::lower_descriptor(fd));
        mind_handing_down(fd, level, name);
    } else if vmmc_socket::forbids_waiting(level, name, value.cast(), len as usize) {
        catch((), || vmmc_socket::lower_descriptor(fd));
    }
    let done = native(fd, level, name, value, len);
    if done == 0 {
        catch((), || keep_errno(|| vmmc_socket::option_is_set(fd, level, name)));
    }
    done
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let native = next!(getsockopt: fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int);
    if vmmc_socket::asks_for_bytes(level, name) {
        catch((), || vmmc_socket::lower_descriptor(fd));
    }
    let done = native(fd, level, name, value, len);
    if done == 0 && level == libc::IPPROTO_TCP && name == libc::TCP_INFO {
        let info = std::slice::from_raw_parts_mut(value.cast::<u8>(), *len as usize);
        catch((), || vmmc_socket::complete_info(fd, info));
    }
    done
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn ioctl(
    fd: c_int,
    request: c_ulong,
    argument: usize,
) -> c_int {
    let native = next!(ioctl: fn(c_int, c_ulong, usize) -> c_int);
    let answer = catch(None, || match request {
        libc::FIONREAD => vmmc_socket::unread(fd),
        libc::TIOCOUTQ => vmmc_socket::unsent(fd),
        SIOCATMARK => vmmc_socket::at_mark(fd).map(usize::from),
        libc::FIOASYNC => {
            vmmc_socket::lower_descriptor(fd);
            None
        }
        _ => None,
    });
    if let (Some(count), false) = (answer, argument == 0) {
        (argument as *mut c_int).write_unaligned(count.min(c_int::MAX as usize) as c_int);
        return 0;
    }
    if let Some(done) = crate::loans::ioctl(fd, request, argument) {
        return done;
    }
    let done = native(fd, request, argument);
    if done == 0 && request == libc::FIONBIO && argument != 0 {
        vmmc_socket::set_nonblocking(fd, (argument as *const c_int).read_unaligned() != 0);
    }
    done
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let native = next!(fcntl: fn(c_int, c_int, usize) -> c_int);
    if command == libc::F_SETFL && argument as c_int & libc::O_ASYNC != 0 {
        catch((), || vmmc_socket::lower_descriptor(fd));
    }
    let done = native(fd, command, argument);
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => note(fd, done),
        libc::F_SETFL if done == 0 => {
            vmmc_socket::set_nonblocking(fd, argument as c_int & libc::O_NONBLOCK != 0);
            done
        }
        _ => done,
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn fcntl64(
    fd: c_int,
    command: c_int,
    argument: usize,
) -> c_int {
    fcntl(fd, command, argument)
}
