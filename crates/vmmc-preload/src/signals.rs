//! Installing handlers of signals.

use std::ffi::c_int;

use libc::{SA_SIGINFO, SIG_ERR, sighandler_t};
use vmmc_socket::kernel::SignalAction;
use vmmc_socket::signals::{self, Handler};

use crate::boundary::{keep_errno, next};

/// Where the kernel says that it calls the layer's handler, the program's is meant.
fn reveal(before: Handler, action: &mut libc::sigaction) {
    let is_door = action.sa_sigaction == signals::door();
    if is_door {
        action.sa_sigaction = before.address;
    }
    if (is_door || has_run_once(before, action.sa_sigaction, action.sa_flags)) && !before.is_told {
        action.sa_flags &= !SA_SIGINFO;
    }
}

/// Whether the handler `before` was to be called once: the kernel has taken it out, and left the flags.
fn has_run_once(before: Handler, handler: sighandler_t, flags: c_int) -> bool {
    before.address != 0 && handler == libc::SIG_DFL && flags & libc::SA_RESETHAND != 0
}

/// As [`reveal`], for what the system call of this number has left at `old`.
///
/// # Safety
/// `old` is null or points to what that call writes.
pub(crate) unsafe fn reveal_after_system_call(signal: c_int, old: *mut SignalAction) {
    let Some(old) = old.as_mut() else { return };
    let (before, is_door) = (signals::handler(signal), old.handler == signals::door());
    if is_door {
        old.handler = before.address;
    }
    if (is_door || has_run_once(before, old.handler, old.flags as c_int)) && !before.is_told {
        old.flags &= !(SA_SIGINFO as usize);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    let native = next!(sigaction: fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int);
    let before = signals::handler(signal);
    let mut action = new.as_ref().copied();
    let waits = action
        .as_mut()
        .filter(|action| signals::may_wait(signal, action.sa_sigaction))
        .map(|action| {
            let is_told = action.sa_flags & SA_SIGINFO != 0;
            signals::set_handler(signal, Handler { address: action.sa_sigaction, is_told });
            action.sa_sigaction = signals::door();
            action.sa_flags |= SA_SIGINFO;
            std::ptr::from_ref(action)
        });
    let result = native(signal, waits.unwrap_or(new), old);
    if result != 0 && waits.is_some() {
        signals::set_handler(signal, before);
    } else if result == 0
        && waits.is_none()
        && action.is_some_and(|new| has_run_once(before, new.sa_sigaction, new.sa_flags))
    {
        signals::leave_flags(signal);
    }
    if let Some(old) = old.as_mut().filter(|_| result == 0) {
        reveal(before, old);
    }
    result
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn __sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    sigaction(signal, new, old)
}

/// As `signal`, which `native` is or is like.
fn install(
    signal: c_int,
    handler: sighandler_t,
    native: impl FnOnce(sighandler_t) -> sighandler_t,
) -> sighandler_t {
    let before = signals::handler(signal);
    let waits = signals::may_wait(signal, handler);
    if waits {
        signals::set_handler(signal, Handler { address: handler, is_told: false });
    }
    let old = native(if waits { signals::door() } else { handler });
    if waits && old == SIG_ERR {
        signals::set_handler(signal, before);
    } else if waits {
        keep_errno(|| signals::tell(signal));
    }
    if old == signals::door() { before.address } else { old }
}

macro_rules! like_signal {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $name(signal: c_int, handler: sighandler_t) -> sighandler_t {
            let native = next!($name: fn(c_int, sighandler_t) -> sighandler_t);
            // SAFETY: as the caller promises.
            install(signal, handler, |handler| unsafe { native(signal, handler) })
        }
    )*};
}

like_signal!(signal, bsd_signal, ssignal, sysv_signal, __sysv_signal, sigset);
