//! Bringing the node service back from inside a program, without the program noticing.
//!
//! `vmmc run` starts the service before the program; but it may be killed, or leave when idle, long before the program
//! ends. Whoever is started for this is no child of the program's: it sends no SIGCHLD, and `wait` does not find it.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vmmc::{ServiceOf, ServicePlace};

use crate::kernel::{self, Errno};
use crate::thread::{self, MICROSECOND};

/// Between two tries to reach a service that is not there.
const RETRY: u64 = 500_000 * MICROSECOND;
/// Between two tries to start one.
const RESTART: u64 = 5_000_000 * MICROSECOND;

static FAILED_AT: AtomicU64 = AtomicU64::new(0);
static STARTED_AT: AtomicU64 = AtomicU64::new(0);

/// Whether the service was not there a moment ago: one load and the clock, so that calls on TCP stay cheap without it.
#[inline]
pub(crate) fn absent() -> bool {
    let failed = FAILED_AT.load(Ordering::Relaxed);
    failed != 0 && thread::ticks().wrapping_sub(failed) < RETRY
}

/// Where the service is and what starts it, read when the program began: programs such as nginx replace their environment.
#[derive(Debug)]
struct Whereabouts {
    place: ServicePlace,
    program: Option<CString>,
}

static WHEREABOUTS: OnceLock<Whereabouts> = OnceLock::new();

fn whereabouts() -> &'static Whereabouts {
    WHEREABOUTS.get_or_init(|| Whereabouts {
        // Absolute, as the program may change its directory.
        place: absolute(ServicePlace::of_environment()),
        program: std::env::var_os("VMMC_NODE_PROGRAM").and_then(|name| string(&name)),
    })
}

/// Reads from the environment, before the program can change it, what the other functions need.
pub(crate) fn remember() {
    whereabouts();
}

fn absolute(mut place: ServicePlace) -> ServicePlace {
    place.dir = std::path::absolute(&place.dir).unwrap_or_default();
    place
}

/// Where the node service is.
pub(crate) fn place() -> &'static ServicePlace {
    &whereabouts().place
}

/// The service answered.
pub(crate) fn present() {
    FAILED_AT.store(0, Ordering::Relaxed);
}

/// The service is not there: it is started, unless that was tried just now, or it is the host's.
pub(crate) fn missing() {
    let now = thread::ticks();
    FAILED_AT.store(now, Ordering::Relaxed);
    let started = STARTED_AT.load(Ordering::Relaxed);
    if started == 0 || now.wrapping_sub(started) > RESTART {
        STARTED_AT.store(now, Ordering::Relaxed);
        start();
    }
}

/// Starts `vmmc node start`, with the program that `vmmc run` named.
fn start() {
    let Whereabouts { place, program: Some(program) } = whereabouts() else { return };
    if place.of == ServiceOf::Host {
        return;
    }
    let arguments = [program.clone(), c"node".into(), c"start".into()];
    let environment: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| name != "LD_PRELOAD" && name != "VMMC_RUNTIME_DIR")
        .chain([("VMMC_RUNTIME_DIR".into(), (&place.dir).into())])
        .filter_map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            string(&name)
        })
        .collect();
    let list = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments_list, environment_list) = (list(&arguments), list(&environment));
    // A copy of this process makes another and ends; that becomes the other program, and belongs to whoever takes in orphans. The first does
    // not become it itself, as any program sends SIGCHLD to its parent; without, only this thread's `wait4` finds it. Both do nothing but
    // system calls, and this thread waits for both: what the program closes then nobody has any more.
    match copy_process() {
        Ok(0) => {
            if copy_process() == Ok(0) {
                become_program(program, &arguments_list, &environment_list);
            }
            loop {
                let _ = kernel::call!(SYS_exit_group, 0);
            }
        }
        Ok(copy) => {
            while kernel::call!(SYS_wait4, copy, 0, libc::__WCLONE, 0) == Err(Errno::INTR) {}
        }
        Err(_) => {}
    }
}

/// As `fork`, without exit signal, and the caller waits until the copy is another program or has ended.
fn copy_process() -> kernel::Outcome {
    kernel::call!(SYS_clone, libc::CLONE_VFORK, 0, 0, 0, 0)
}

/// As `execve`, with nothing but `/dev/null` open. Returns where that fails.
fn become_program(
    program: &CStr,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) {
    let _ = kernel::call!(SYS_close_range, 0, u32::MAX, 0);
    let null = kernel::call!(SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDWR, 0)
        .unwrap_or(0);
    for standard in 0..3 {
        let _ = kernel::call!(SYS_dup3, null, standard, 0);
    }
    let _ = kernel::call!(SYS_execve, program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
}

fn string(text: &OsStr) -> Option<CString> {
    CString::new(text.as_bytes()).ok()
}
