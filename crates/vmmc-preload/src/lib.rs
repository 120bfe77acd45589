//! The library that `vmmc run` puts in front of a program: its socket calls go to `vmmc-socket`.
//!
//! Each hooked symbol asks the layer first and calls the C library's own function when the layer says so; nothing here
//! knows how lifting works. Three rules hold for every hook:
//! - The C library's function is called outside of any Rust scope that would have to be unwound, because it may be a
//!   cancellation point, and a handler may leave it by `longjmp`.
//! - A panic in the layer is a bug in somebody else's program: it is caught at this boundary, and the kernel does the call.
//! - `errno` changes only when a call fails, as the native one leaves it.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "a C function's body acts for its caller, whose pointers it passes on"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contracts are those of the C functions of the same names"
)]
#![allow(missing_docs, reason = "the functions are documented in the C library's manual")]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

mod aio;
mod boundary;
mod bytes;
mod cancellation;
#[cfg(target_arch = "x86_64")]
mod deep;
mod descriptors;
mod limits;
mod loans;
#[cfg(target_arch = "x86_64")]
mod lookup;
mod programs;
mod signals;
mod sockets;
mod spawn;
mod stdio;
mod syscall;
mod uring;
mod waiting;

/// Runs when the library is loaded, before the program's own constructors and `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    boundary::catch((), || {
        std::panic::set_hook(Box::new(|_| {}));
        vmmc_socket::start();
    });
    unsafe extern "C" {
        fn __cxa_atexit(
            function: extern "C" fn(*mut c_void),
            argument: *mut c_void,
            library: *const c_void,
        ) -> c_int;
        fn __cxa_at_quick_exit(
            function: extern "C" fn(*mut c_void),
            library: *const c_void,
        ) -> c_int;
    }
    let none = std::ptr::null();
    // SAFETY: the functions stay loaded as long as the process lives. What is registered first runs last: after the destructors
    // of all libraries too, which are registered as one between here and `main`. Of no library, or it would run with this one's.
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child));
        __cxa_atexit(at_exit, std::ptr::null_mut(), none);
        __cxa_at_quick_exit(at_quick_exit, none);
    }
}

/// Runs when the program ends by `quick_exit`, whose last step no hook sees.
extern "C" fn at_quick_exit(_: *mut c_void) {
    boundary::catch((), vmmc_socket::family::at_bare_exit);
}

/// Runs when the program ends by `exit`.
extern "C" fn at_exit(_: *mut c_void) {
    boundary::catch((), vmmc_socket::family::at_exit);
}

/// In place of the C library's, which a handler of the program's may have interrupted when it calls a hook.
#[global_allocator]
static HEAP: vmmc_socket::Heap = vmmc_socket::Heap;

extern "C" fn before_fork() {
    /// From its third child on a process is taken for one that forks all the time; a shell mostly becomes another program before.
    const MANY: u32 = 2;
    static FORKS: AtomicU32 = AtomicU32::new(0);
    boundary::catch((), || {
        if FORKS.fetch_add(1, Ordering::Relaxed) == MANY {
            boundary::look_up_all();
        }
        vmmc_socket::family::before_fork();
    });
}

extern "C" fn in_parent() {
    boundary::catch((), vmmc_socket::family::after_fork_in_parent);
}

extern "C" fn in_child() {
    boundary::catch((), vmmc_socket::family::after_fork_in_child);
}
