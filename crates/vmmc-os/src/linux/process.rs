//! Processes: this one, and starting others.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Descriptor, OsError, process_descriptor, wait_readable};

/// Number of this process, asked from the kernel each time: right also in a forked child.
pub fn process_id() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().cast_unsigned()
}

/// Bytes of a page.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// 64 bits that nobody can guess.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    // At most 256 bytes are never interrupted once the pool is initialised; before that a signal may do it.
    while rustix::rand::getrandom(&mut bytes, flags) == Err(OsError::INTR) {}
    u64::from_ne_bytes(bytes)
}

/// Something that stays the same while this system runs, for the directory `path`: two services that follow each other in
/// it get the same value, services in other directories, hosts or boots get others.
///
/// # Errors
/// When the directory is missing.
pub fn start_identity(path: &Path) -> Result<u64, OsError> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let stat = rustix::fs::stat(path)?;
    let mut hasher = DefaultHasher::new();
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut hasher);
    (stat.st_dev, stat.st_ino).hash(&mut hasher);
    Ok(hasher.finish())
}

/// Whether a process exists (it may be a zombie).
pub fn is_alive(pid: u32) -> bool {
    process_descriptor(pid).is_ok()
}

/// Runs this thread on one processor only.
///
/// # Errors
/// When there is no such processor, or it is not allowed.
pub fn pin_to_cpu(cpu: usize) -> Result<(), OsError> {
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(OsError::INVAL);
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
}

/// Raises this process's descriptor limit as far as allowed, and as root to `wanted` at least; the limit reached.
pub fn raise_descriptor_limit(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(wanted);
    let above = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    if maximum < wanted && setrlimit(Resource::Nofile, above).is_ok() {
        return wanted;
    }
    let allowed = Rlimit { current: Some(maximum), maximum: limit.maximum };
    if setrlimit(Resource::Nofile, allowed).is_ok() { maximum } else { limit.current.unwrap_or(0) }
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// Nothing in the process owns or uses a descriptor from `first` on.
pub unsafe fn close_inherited(first: u32) {
    // SAFETY: takes plain numbers; the caller promises that nobody owns what is closed.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Leaves the session and terminal of the starter: own session, `/` as directory, standard input and output to `/dev/null`.
/// Standard error stays: the starter reads there why the program could not go on.
///
/// # Errors
/// When `/dev/null` cannot be opened.
pub fn detach() -> Result<(), OsError> {
    // Fails only in a session leader, which has what it asks for.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// A descriptor that becomes readable on SIGTERM, SIGINT or SIGHUP, which no longer end the process. Call it before threads start.
///
/// # Errors
/// When descriptors are exhausted.
pub fn termination_signals() -> Result<Descriptor, OsError> {
    // SAFETY: an all-zero sigset is valid and `sigemptyset` initialises it anyway; the calls write only to it, and
    // signalfd returns a new descriptor that only we own.
    let raw = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if raw < 0 {
        return Err(OsError::MFILE);
    }
    // SAFETY: `raw` is a fresh descriptor that nobody else owns.
    Ok(Descriptor::from(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum StartError {
    /// cannot start {program:?} ({cause}): install it, or say where it is
    Start {
        /// What was to be started.
        program: std::path::PathBuf,
        /// What the system said.
        cause: String,
    },
    /// {program:?} ended with {status}: run it by hand to see why
    Failed {
        /// What was started.
        program: std::path::PathBuf,
        /// How it ended.
        status: String,
    },
    /// {program:?} did not finish in time: the machine is overloaded, or the program is stopped
    Slow {
        /// What was started.
        program: std::path::PathBuf,
    },
}

/// Runs a program with no standard streams and without the library preloaded, and waits until it has ended well.
///
/// # Errors
/// When it cannot be started, fails, or runs longer than `limit` (it is killed then).
pub fn start_and_wait(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, &Path)],
    limit: Duration,
) -> Result<(), StartError> {
    let deadline = Instant::now() + limit;
    let mut child = quiet(program, arguments, environment)
        .spawn()
        .map_err(|cause| StartError::Start { program: program.into(), cause: cause.to_string() })?;
    // A process descriptor tells the end of a child without waiting for just any child.
    let ended = process_descriptor(child.id());
    while let Ok(ended) = &ended {
        use std::os::fd::AsFd;
        let left = deadline.saturating_duration_since(Instant::now());
        match wait_readable(&[ended.as_fd()], Some(left)) {
            Ok(0) if left.is_zero() => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(StartError::Slow { program: program.into() });
            }
            Ok(0) => {}
            _ => break,
        }
    }
    match child.wait() {
        Ok(status) if !status.success() => {
            Err(StartError::Failed { program: program.into(), status: status.to_string() })
        }
        // An error means that the program reaps all its children itself; whether it went well shows later.
        _ => Ok(()),
    }
}

/// Starts a program in a process group of its own, with a pipe for what it says on standard error; it goes on when the caller ends.
///
/// # Errors
/// When it cannot be started.
pub fn start_detached(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, &Path)],
) -> Result<std::process::Child, StartError> {
    quiet(program, arguments, environment)
        .process_group(0)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| StartError::Start { program: program.into(), cause: cause.to_string() })
}

fn quiet(program: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Starts a thread of a library's own: no signal of the program is ever handled on it.
///
/// # Errors
/// When there are too many threads, or no memory.
pub fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), OsError> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(256 * 1024);
    let started = without_signals(|| thread.spawn(body));
    started.map(drop).map_err(|_| OsError::AGAIN)
}

/// Blocks all signals meanwhile, for this thread and those that it starts.
fn without_signals<R>(act: impl FnOnce() -> R) -> R {
    // Miri knows neither signals nor these calls.
    if cfg!(miri) {
        return act();
    }
    // SAFETY: the set is initialised by `sigfillset` before use; the mask of this thread is put back below.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let result = act();
    // SAFETY: `before` was written by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    result
}

/// A program by name: in the directory of this program, in up to two directories above it, or in `PATH`.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.iter().flat_map(|own| own.ancestors().skip(1).take(3)).map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<_> = beside.chain(std::env::split_paths(&path)).collect();
    candidates.into_iter().map(|dir| dir.join(name)).find(|program| {
        rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok() && program.is_file()
    })
}
