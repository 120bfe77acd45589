//! Becoming another program, which shall find everything as this one found it.
//!
//! The runtime of Rust ignores `SIGPIPE` and opens what is closed of the three standard streams before `main`; `Command` sets the signal
//! to its default and lets all signals through, whatever was inherited. A server that systemd starts has `SIGPIPE` ignored, and would
//! die of it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

static IGNORES_BROKEN_PIPES: AtomicBool = AtomicBool::new(false);
/// Of the standard streams.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Runs before the runtime's own beginning.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE: extern "C" fn() = note;

extern "C" fn note() {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; zeroes are such an action, and so is what the kernel has written.
    let handler = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction
    };
    IGNORES_BROKEN_PIPES.store(handler == libc::SIG_IGN, Ordering::Relaxed);
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: asks only.
        closed.store(unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0, Ordering::Relaxed);
    }
}

/// The program takes this one's place; the error if it cannot.
pub(crate) fn become_program(command: &mut Command) -> io::Error {
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: asks only. What is done just before the program is executed takes no lock and no memory.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), mask.as_mut_ptr());
        let mask = mask.assume_init();
        command.pre_exec(move || {
            if IGNORES_BROKEN_PIPES.load(Ordering::Relaxed) {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
            for (fd, closed) in (0..).zip(&CLOSED) {
                if closed.load(Ordering::Relaxed) {
                    libc::close(fd);
                }
            }
            Ok(())
        });
    }
    command.exec()
}
