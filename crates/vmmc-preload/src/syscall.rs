//! `syscall`: the calls of the other files by their numbers.

use std::ffi::{c_int, c_uint, c_void};

use libc::{iovec, msghdr, sockaddr, socklen_t};
use vmmc_socket::{family, uring};

use crate::boundary::{catch, keep_errno, next};
use crate::bytes::{
    preadv2, pwritev2, read, readv, recvfrom, recvmmsg, recvmsg, sendfile, sendmmsg, sendmsg,
    sendto, splice, write, writev,
};

/// The C library's door to any system call. Those that the layer carries go its way; the rest are the caller's own.
#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn syscall(
    number: libc::c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> libc::c_long {
    let native =
        next!(syscall: fn(libc::c_long, usize, usize, usize, usize, usize, usize) -> libc::c_long);
    let fd = a as c_int;
    let plain = |value: isize| value as libc::c_long;
    match number {
        // The first argument is no descriptor.
        libc::SYS_exit_group | libc::SYS_exit => {
            let all = number == libc::SYS_exit_group;
            let goodbye = if all { family::at_bare_exit } else { family::at_thread_exit };
            catch((), goodbye);
            return native(number, a, b, c, d, e, f);
        }
        libc::SYS_close => return crate::descriptors::close(fd).into(),
        libc::SYS_close_range => {
            return crate::descriptors::close_range(a as c_uint, b as c_uint, c as c_int).into();
        }
        libc::SYS_poll => {
            return crate::waiting::poll(a as *mut libc::pollfd, b as libc::nfds_t, c as c_int)
                .into();
        }
        libc::SYS_select => {
            let set = |pointer: usize| pointer as *mut libc::fd_set;
            return crate::waiting::select(
                a as c_int,
                set(b),
                set(c),
                set(d),
                e as *mut libc::timeval,
            )
            .into();
        }
        libc::SYS_ppoll | libc::SYS_pselect6 => {
            let carried = crate::waiting::wait_by_system_call(number, [a, b, c, d, e, f]);
            return carried.unwrap_or_else(|| native(number, a, b, c, d, e, f));
        }
        libc::SYS_epoll_pwait2 => {
            let (events, time) = (b as *mut libc::epoll_event, d as *const libc::timespec);
            let mask = e as *const libc::sigset_t;
            return crate::waiting::epoll_pwait2(fd, events, c as c_int, time, mask).into();
        }
        libc::SYS_splice => {
            let offset = |pointer: usize| pointer as *mut libc::loff_t;
            return plain(splice(fd, offset(b), c as c_int, offset(d), e, f as c_uint));
        }
        libc::SYS_sendfile => return plain(sendfile(fd, b as c_int, c as *mut libc::off_t, d)),
        libc::SYS_epoll_create => return crate::waiting::epoll_create(a as c_int).into(),
        libc::SYS_epoll_create1 => return crate::waiting::epoll_create1(a as c_int).into(),
        libc::SYS_epoll_pwait => {
            let (events, mask) = (b as *mut libc::epoll_event, e as *const libc::sigset_t);
            return crate::waiting::epoll_pwait(fd, events, c as c_int, d as c_int, mask).into();
        }
        libc::SYS_epoll_ctl => {
            return crate::waiting::epoll_ctl(
                fd,
                b as c_int,
                c as c_int,
                d as *mut libc::epoll_event,
            )
            .into();
        }
        libc::SYS_epoll_wait => {
            return crate::waiting::epoll_wait(
                fd,
                b as *mut libc::epoll_event,
                c as c_int,
                d as c_int,
            )
            .into();
        }
        libc::SYS_dup2 => return crate::descriptors::dup2(fd, b as c_int).into(),
        libc::SYS_dup3 => return crate::descriptors::dup3(fd, b as c_int, c as c_int).into(),
        libc::SYS_io_uring_setup => {
            let made = native(number, a, b, c, d, e, f);
            if made >= 0 {
                // SAFETY: the kernel has written there.
                let parameters = &*(b as *const uring::Parameters);
                catch((), || uring::made(made as c_int, parameters));
            }
            return made;
        }
        libc::SYS_io_uring_enter => {
            if b as u32 != 0 {
                keep_errno(|| catch((), || uring::entering(fd, b as u32, d as u32)));
            }
            return native(number, a, b, c, d, e, f);
        }
        libc::SYS_io_uring_register => {
            keep_errno(|| catch((), || uring::registering(b as u32)));
            return native(number, a, b, c, d, e, f);
        }
        libc::SYS_execve => {
            let [arguments, environment] = [b, c].map(|list| list as *const *const libc::c_char);
            return crate::programs::execve(a as *const _, arguments, environment).into();
        }
        libc::SYS_execveat => {
            let kernel = || native(number, a, b, c, d, e, f);
            return crate::programs::becoming(kernel);
        }
        libc::SYS_io_submit => {
            crate::aio::before_submitting(b as libc::c_long, c as *const *const crate::aio::Block);
            return native(number, a, b, c, d, e, f);
        }
        libc::SYS_prctl => {
            return crate::programs::prctl(a as c_int, b, c, d, e).into();
        }
        libc::SYS_unshare => return crate::programs::unshare(a as c_int).into(),
        libc::SYS_setrlimit => return crate::limits::setrlimit(a as c_uint, b as *const _).into(),
        libc::SYS_prlimit64 => {
            let (new, old) = (c as *const _, d as *mut _);
            return crate::limits::prlimit(a as libc::pid_t, b as c_uint, new, old).into();
        }
        libc::SYS_rt_sigaction => {
            if b != 0 {
                vmmc_socket::signals::pass_one_by();
            }
            let result = native(number, a, b, c, d, e, f);
            if result == 0 {
                crate::signals::reveal_after_system_call(a as c_int, c as *mut _);
            }
            return result;
        }
        libc::SYS_seccomp => {
            crate::programs::before_filter();
            let result = native(number, a, b, c, d, e, f);
            let sets = [libc::SECCOMP_SET_MODE_STRICT, libc::SECCOMP_SET_MODE_FILTER];
            if result == 0 && sets.contains(&(a as libc::c_uint)) {
                family::after_sandboxing();
            }
            return result;
        }
        // By any socket descriptors may go along.
        libc::SYS_recvmsg => return plain(recvmsg(fd, b as *mut msghdr, c as c_int)),
        libc::SYS_sendmsg => return plain(sendmsg(fd, b as *const msghdr, c as c_int)),
        libc::SYS_recvmmsg => {
            let (list, time) = (b as *mut libc::mmsghdr, e as *mut libc::timespec);
            return recvmmsg(fd, list, c as c_uint, d as c_int, time).into();
        }
        libc::SYS_sendmmsg => {
            return sendmmsg(fd, b as *mut libc::mmsghdr, c as c_uint, d as c_int).into();
        }
        _ if crate::programs::may_fork(number) => {
            let kernel = || native(number, a, b, c, d, e, f);
            return crate::programs::fork_by_system_call(number, [a, b], kernel)
                .unwrap_or_else(kernel);
        }
        _ if !vmmc_socket::is_known(fd) => return native(number, a, b, c, d, e, f),
        _ => {}
    }
    match number {
        libc::SYS_read => plain(read(fd, b as *mut c_void, c)),
        libc::SYS_write => plain(write(fd, b as *const c_void, c)),
        libc::SYS_readv => plain(readv(fd, b as *const iovec, c as c_int)),
        libc::SYS_writev => plain(writev(fd, b as *const iovec, c as c_int)),
        // The offset is in one register; the next one is for those of 32 bits.
        libc::SYS_preadv2 => {
            plain(preadv2(fd, b as *const iovec, c as c_int, d as libc::off_t, f as c_int))
        }
        libc::SYS_pwritev2 => {
            plain(pwritev2(fd, b as *const iovec, c as c_int, d as libc::off_t, f as c_int))
        }
        libc::SYS_recvfrom => plain(recvfrom(
            fd,
            b as *mut c_void,
            c,
            d as c_int,
            e as *mut sockaddr,
            f as *mut socklen_t,
        )),
        libc::SYS_sendto => plain(sendto(
            fd,
            b as *const c_void,
            c,
            d as c_int,
            e as *const sockaddr,
            f as socklen_t,
        )),
        libc::SYS_shutdown => crate::sockets::shutdown(fd, b as c_int).into(),
        libc::SYS_dup => crate::descriptors::dup(fd).into(),
        libc::SYS_fcntl => crate::sockets::fcntl(fd, b as c_int, c).into(),
        libc::SYS_ioctl => crate::sockets::ioctl(fd, b as libc::c_ulong, c).into(),
        libc::SYS_getpeername => {
            crate::sockets::getpeername(fd, b as *mut sockaddr, c as *mut socklen_t).into()
        }
        libc::SYS_getsockopt => {
            let (value, len) = (d as *mut c_void, e as *mut socklen_t);
            crate::sockets::getsockopt(fd, b as c_int, c as c_int, value, len).into()
        }
        libc::SYS_setsockopt => {
            let (value, len) = (d as *const c_void, e as socklen_t);
            crate::sockets::setsockopt(fd, b as c_int, c as c_int, value, len).into()
        }
        libc::SYS_connect => {
            crate::sockets::connect(fd, b as *const sockaddr, c as socklen_t).into()
        }
        // No other moves bytes of a socket, and of most the first argument is no descriptor.
        _ => native(number, a, b, c, d, e, f),
    }
}
