//! Starting other programs: what they inherit must be whole in the kernel.
//!
//! The C library's own calls among these functions do not come through the hooks, so each is hooked by itself.

use libc::{FILE, c_char, c_int, c_void, pid_t};

use crate::boundary::{catch, keep_errno, next};

type Strings = *const *const c_char;

fn before_exec() {
    keep_errno(|| catch((), vmmc_socket::family::before_exec));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn fork() -> pid_t {
    // The handlers that `pthread_atfork` was given do the rest, for every way to fork.
    let pid = next!(fork: fn() -> pid_t)();
    if pid < 0 {
        keep_errno(|| catch((), vmmc_socket::family::fork_failed));
    }
    pid
}

/// Calls that may put the node service out of reach.
macro_rules! confine {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> c_int {
            keep_errno(|| catch((), vmmc_socket::family::before_confinement));
            next!($name: fn($($type),*) -> c_int)($($argument),*)
        }
    )*};
}

confine! {
    setuid(user: libc::uid_t);
    seteuid(user: libc::uid_t);
    setreuid(real: libc::uid_t, effective: libc::uid_t);
    setresuid(real: libc::uid_t, effective: libc::uid_t, saved: libc::uid_t);
    chroot(path: *const c_char);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(execve: fn(*const c_char, Strings, Strings) -> c_int);
    before_exec();
    native(path, arguments, environment)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    let native = next!(execv: fn(*const c_char, Strings) -> c_int);
    before_exec();
    native(path, arguments)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    let native = next!(execvp: fn(*const c_char, Strings) -> c_int);
    before_exec();
    native(file, arguments)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execvpe(
    file: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(execvpe: fn(*const c_char, Strings, Strings) -> c_int);
    before_exec();
    native(file, arguments, environment)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(fexecve: fn(c_int, Strings, Strings) -> c_int);
    before_exec();
    native(fd, arguments, environment)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execveat(
    fd: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    let native = next!(execveat: fn(c_int, *const c_char, Strings, Strings, c_int) -> c_int);
    before_exec();
    native(fd, path, arguments, environment, flags)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    let native = next!(system: fn(*const c_char) -> c_int);
    before_exec();
    native(command)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn popen(
    command: *const c_char,
    mode: *const c_char,
) -> *mut FILE {
    let native = next!(popen: fn(*const c_char, *const c_char) -> *mut FILE);
    before_exec();
    native(command, mode)
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
    before_exec();
    native(pid, path, actions, attributes, arguments, environment)
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
    before_exec();
    native(pid, file, actions, attributes, arguments, environment)
}

/// The new program gets `fd` under another number, whatever its close-on-exec flag says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    new: c_int,
) -> c_int {
    let native = next!(posix_spawn_file_actions_adddup2: fn(*mut c_void, c_int, c_int) -> c_int);
    catch((), || vmmc_socket::lower_descriptor(fd));
    native(actions, fd, new)
}

#[cfg(target_arch = "x86_64")]
mod variadic {
    use super::{before_exec, c_void};
    use crate::boundary::look_up;
    use crate::stdio::before;

    extern "C" fn before_execl() -> *mut c_void {
        before_exec();
        look_up("execl\0")
    }

    extern "C" fn before_execlp() -> *mut c_void {
        before_exec();
        look_up("execlp\0")
    }

    extern "C" fn before_execle() -> *mut c_void {
        before_exec();
        look_up("execle\0")
    }

    before!(execl, before_execl);
    before!(execlp, before_execlp);
    before!(execle, before_execle);
}
