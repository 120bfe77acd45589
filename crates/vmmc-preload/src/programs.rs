//! Processes and threads: beginning, ending, and becoming another program, whose inheritance must be whole in the kernel.
//!
//! The C library's own calls among these functions do not come through the hooks, so each is hooked by itself.

use libc::{c_char, c_int, c_void, pid_t, pthread_attr_t, pthread_t};

use vmmc_socket::Handing;

use crate::boundary::{catch, keep_errno, next};

pub(crate) type Strings = *const *const c_char;

fn before_exec() -> Handing {
    keep_errno(|| catch(Handing::new(), vmmc_socket::family::before_exec))
}

/// Puts a program in the place of this one by `exec`, which comes back only if that failed.
pub(crate) fn becoming<R>(exec: impl FnOnce() -> R) -> R {
    going_over(before_exec(), exec, |_| true)
}

/// With what was done for the next program taken back if that was not started.
pub(crate) fn going_over<R>(
    handing: Handing,
    start: impl FnOnce() -> R,
    failed: impl FnOnce(&R) -> bool,
) -> R {
    let started = start();
    if failed(&started) {
        keep_errno(|| catch((), || handing.take_back()));
    }
    started
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn _exit(status: c_int) -> ! {
    catch((), vmmc_socket::family::at_bare_exit);
    next!(_exit: fn(c_int) -> !)(status)
}

/// The C library's parent would end past every hook.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn daemon(
    keeps_directory: c_int,
    keeps_streams: c_int,
) -> c_int {
    match fork() {
        -1 => return -1,
        0 => {}
        _ => _exit(0),
    }
    if libc::setsid() < 0 {
        return -1;
    }
    if keeps_directory == 0 {
        libc::chdir(c"/".as_ptr());
    }
    if keeps_streams != 0 {
        return 0;
    }
    let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
    if null < 0 {
        return -1;
    }
    for standard in libc::STDIN_FILENO..=libc::STDERR_FILENO {
        crate::descriptors::dup2(null, standard);
    }
    if null > libc::STDERR_FILENO {
        libc::close(null);
    }
    0
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn _Exit(status: c_int) -> ! {
    _exit(status)
}

/// What a thread runs.
type Routine = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Routine,
    argument: *mut c_void,
) -> c_int {
    keep_errno(|| catch((), vmmc_socket::family::before_thread));
    let native = next!(pthread_create: fn(*mut pthread_t, *const pthread_attr_t, Routine, *mut c_void) -> c_int);
    native(thread, attributes, start, argument)
}

/// Also for the threads of C11, which the C library starts past its own `pthread_create`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn thrd_create(
    thread: *mut pthread_t,
    start: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> c_int {
    keep_errno(|| catch((), vmmc_socket::family::before_thread));
    let native = next!(thrd_create: fn(*mut pthread_t, unsafe extern "C-unwind" fn(*mut c_void) -> c_int, *mut c_void) -> c_int);
    native(thread, start, argument)
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

/// As `fork` without the handlers, for programs in a signal handler: the layer's are needed all the same.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn _Fork() -> pid_t {
    let native = next!(_Fork: fn() -> pid_t);
    forking(|| native().into()) as pid_t
}

/// The bits of `clone` that decide what a child shares with its parent.
const MEMORY: u64 = libc::CLONE_VM as u64;
/// In other namespaces, or with the same descriptors, a child is no relative that the layer could follow.
const STRANGER: u64 = (libc::CLONE_FILES | libc::CLONE_NEWPID | libc::CLONE_NEWUSER) as u64;

/// Whether a system call makes a process or a thread.
pub(crate) fn may_fork(number: libc::c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    const FORK: libc::c_long = libc::SYS_fork;
    #[cfg(not(target_arch = "x86_64"))]
    const FORK: libc::c_long = libc::SYS_clone;
    [libc::SYS_clone, libc::SYS_clone3, FORK].contains(&number)
}

/// A system call of the program's own that makes a process, as `fork` does but for its handlers. `None`: the caller
/// shall make it, because the child is no process of its own, or none that the layer could follow.
pub(crate) unsafe fn fork_by_system_call(
    number: libc::c_long,
    arguments: [usize; 2],
    native: impl FnOnce() -> libc::c_long,
) -> Option<libc::c_long> {
    let (flags, stack) = match number {
        libc::SYS_clone => (arguments[0] as u64, arguments[1]),
        // `struct clone_args`: the flags come first, the stack is the sixth word.
        libc::SYS_clone3 if arguments[0] != 0 && arguments[1] >= 48 => {
            let words = arguments[0] as *const u64;
            (words.read_unaligned(), words.add(5).read_unaligned() as usize)
        }
        libc::SYS_clone3 => return None,
        _ => (0, 0),
    };
    if flags & MEMORY != 0 {
        return None;
    }
    if flags & STRANGER != 0 || stack != 0 {
        catch((), || keep_errno(vmmc_socket::lower_everything));
        return None;
    }
    Some(forking(native))
}

/// Does around `native`, which forks, what the handlers do around the C library's `fork`.
fn forking(native: impl FnOnce() -> libc::c_long) -> libc::c_long {
    keep_errno(|| catch((), vmmc_socket::family::before_fork));
    let pid = native();
    keep_errno(|| {
        if pid == 0 {
            return catch((), vmmc_socket::family::after_fork_in_child);
        }
        catch((), vmmc_socket::family::after_fork_in_parent);
        if pid < 0 {
            catch((), vmmc_socket::family::fork_failed);
        }
    });
    pid
}

pub(crate) type Start = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

/// What the child of a `clone` begins with.
struct Begin {
    start: Start,
    argument: *mut c_void,
}

unsafe extern "C-unwind" fn begin(of: *mut c_void) -> c_int {
    // SAFETY: `clone` passed it; the child has a copy of the parent's memory.
    let Begin { start, argument } = unsafe { of.cast::<Begin>().read() };
    catch((), vmmc_socket::family::after_fork_in_child);
    // SAFETY: as the program asked of `clone`.
    unsafe { start(argument) }
}

/// The last three are only there if the flags say so: passing on what stands in their place does no harm.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn clone(
    start: Option<Start>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_id: usize,
    area: usize,
    child_id: usize,
) -> c_int {
    let native = next!(clone: fn(Option<Start>, *mut c_void, c_int, *mut c_void, usize, usize, usize) -> c_int);
    let bits = flags as u32 as u64;
    if bits & (MEMORY | libc::CLONE_FILES as u64) == MEMORY {
        before_visit(bits);
    }
    let Some(first) = start.filter(|_| bits & MEMORY == 0 && !stack.is_null()) else {
        return native(start, stack, flags, argument, parent_id, area, child_id);
    };
    if bits & STRANGER != 0 {
        catch((), || keep_errno(vmmc_socket::lower_everything));
        return native(start, stack, flags, argument, parent_id, area, child_id);
    }
    let mut first = Begin { start: first, argument };
    let first = (&raw mut first).cast();
    forking(|| native(Some(begin), stack, flags, first, parent_id, area, child_id).into()) as c_int
}

/// Before a child is made that shares this process's memory but not its descriptors.
fn before_visit(bits: u64) {
    let waits = bits & libc::CLONE_VFORK as u64 != 0;
    // Beside a child that runs at the same time the layer could not tell whose call it is.
    let before = if waits { vmmc_socket::before_visit } else { vmmc_socket::lower_everything };
    catch((), || keep_errno(before));
}

/// Before this thread gets descriptors of its own.
pub(crate) fn before_unsharing() {
    keep_errno(|| catch((), vmmc_socket::lower_for_unsharing));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn unshare(flags: c_int) -> c_int {
    if flags & libc::CLONE_FILES != 0 {
        before_unsharing();
    }
    next!(unshare: fn(c_int) -> c_int)(flags)
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

/// The program is about to restrict its own system calls.
pub(crate) fn before_filter() {
    keep_errno(|| catch((), vmmc_socket::family::before_filter));
}

/// Of its arguments only those are there that `option` says; passing on what stands in their place does no harm.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn prctl(
    option: c_int,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> c_int {
    let native = next!(prctl: fn(c_int, usize, usize, usize, usize) -> c_int);
    if option == libc::PR_SET_SECCOMP {
        before_filter();
    }
    let result = native(option, a, b, c, d);
    if option == libc::PR_SET_SECCOMP && result == 0 {
        vmmc_socket::family::after_sandboxing();
    }
    result
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(execve: fn(*const c_char, Strings, Strings) -> c_int);
    becoming(|| native(path, arguments, environment))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    let native = next!(execv: fn(*const c_char, Strings) -> c_int);
    becoming(|| native(path, arguments))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    let native = next!(execvp: fn(*const c_char, Strings) -> c_int);
    becoming(|| native(file, arguments))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn execvpe(
    file: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(execvpe: fn(*const c_char, Strings, Strings) -> c_int);
    becoming(|| native(file, arguments, environment))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let native = next!(fexecve: fn(c_int, Strings, Strings) -> c_int);
    becoming(|| native(fd, arguments, environment))
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
    becoming(|| native(fd, path, arguments, environment, flags))
}

#[cfg(target_arch = "x86_64")]
mod by_jump {
    use super::{before_exec, c_void, pid_t};
    use crate::boundary::{look_up, next};
    use crate::stdio::before;

    /// Its child comes back by the caller's frame, so nothing of the hook's may be on the stack.
    extern "C" fn before_vfork() -> *mut c_void {
        super::before_visit(libc::CLONE_VFORK as u64);
        next!(vfork: fn() -> pid_t) as *mut c_void
    }

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

    before!(vfork, before_vfork);
    before!(__vfork, before_vfork);
    before!(execl, before_execl);
    before!(execlp, before_execlp);
    before!(execle, before_execle);
}
