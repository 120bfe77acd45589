//! Starting programs beside this one, whose inheritance must be whole in the kernel.

use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use libc::{FILE, c_char, c_int, c_void, pid_t};
use vmmc_socket::Handing;

use crate::boundary::{catch, keep_errno, next};
use crate::programs::{Strings, going_over};

fn before_spawn() -> Handing {
    keep_errno(|| catch(Handing::new(), vmmc_socket::family::before_spawn))
}

/// Starts a program beside this one by `start`; whether that failed is what `failed` says.
fn starting<R>(start: impl FnOnce() -> R, failed: impl FnOnce(&R) -> bool) -> R {
    going_over(before_spawn(), start, failed)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    let native = next!(system: fn(*const c_char) -> c_int);
    starting(|| native(command), |&status| status == -1)
}

/// A command in the words is run by the C library's own means.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn wordexp(
    words: *const c_char,
    expanded: *mut c_void,
    flags: c_int,
) -> c_int {
    const NO_COMMAND: c_int = 1 << 2;
    let native = next!(wordexp: fn(*const c_char, *mut c_void, c_int) -> c_int);
    let expand = || native(words, expanded, flags);
    if flags & NO_COMMAND != 0
        || words.is_null()
        || !CStr::from_ptr(words).to_bytes().iter().any(|byte| b"`$".contains(byte))
    {
        return expand();
    }
    starting(expand, |&error| error != 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn popen(
    command: *const c_char,
    mode: *const c_char,
) -> *mut FILE {
    let native = next!(popen: fn(*const c_char, *const c_char) -> *mut FILE);
    starting(|| native(command, mode), |stream| stream.is_null())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(posix_spawn: fn(*mut pid_t, *const c_char, *const c_void, *const c_void, Strings, Strings) -> c_int);
    lower_given(actions);
    starting(|| native(pid, path, actions, attributes, arguments, environment), |&error| error != 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(posix_spawnp: fn(*mut pid_t, *const c_char, *const c_void, *const c_void, Strings, Strings) -> c_int);
    lower_given(actions);
    starting(|| native(pid, file, actions, attributes, arguments, environment), |&error| error != 0)
}

/// What the program has said in lists of actions of numbers that new programs get under others: in which list, and which.
static GIVEN: [(AtomicUsize, AtomicI32); 64] =
    [const { (AtomicUsize::new(0), AtomicI32::new(-1)) }; 64];

/// The list begins anew, or ends.
fn forget_given(actions: *const c_void) {
    for (list, _) in &GIVEN {
        let _ = list.compare_exchange(actions.addr(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The number may mean another connection by the time when the program is started, or the list may be used again.
fn note_given(actions: *const c_void, fd: c_int) {
    for (list, given) in &GIVEN {
        let free = list.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
        if free.is_ok() {
            given.store(fd, Ordering::Relaxed);
            list.store(actions.addr(), Ordering::Release);
            return;
        }
    }
}

fn lower_given(actions: *const c_void) {
    let of_list = |(list, _): &&(AtomicUsize, AtomicI32)| {
        !actions.is_null() && list.load(Ordering::Acquire) == actions.addr()
    };
    for (_, given) in GIVEN.iter().filter(of_list) {
        let fd = given.load(Ordering::Relaxed);
        catch((), || keep_errno(|| vmmc_socket::lower_for_spawning(fd)));
    }
}

macro_rules! like_init {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name(actions: *mut c_void) -> c_int {
            forget_given(actions);
            next!($name: fn(*mut c_void) -> c_int)(actions)
        }
    )*};
}

like_init!(posix_spawn_file_actions_init, posix_spawn_file_actions_destroy);

/// The new program gets `fd` under another number, whatever its close-on-exec flag says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    new: c_int,
) -> c_int {
    let native = next!(posix_spawn_file_actions_adddup2: fn(*mut c_void, c_int, c_int) -> c_int);
    catch((), || keep_errno(|| vmmc_socket::lower_for_spawning(fd)));
    let added = native(actions, fd, new);
    if added == 0 {
        note_given(actions, fd);
    }
    added
}
