//! Ringing an event that a process has too which nobody trusts.
//!
//! The flag that keeps `write` from waiting belongs to the eventfd, not to the descriptor: whoever has one can clear it for
//! all, fill the counter, and so hold up everybody who rings by `write`. The kernel's own signal to an eventfd waits for
//! nothing: a full counter stays full, and sleepers are woken all the same. An asynchronous operation that is over at once
//! (is there anything to be read or written? there always is) makes the kernel send one. That costs about 0.4 µs more.
//!
//! No call of the C library's is used: it would set `errno`, and `vmmc-preload` hooks some. All of it is async-signal-safe.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

/// As `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Default)]
struct Operation {
    data: u64,
    /// Key and flags, whose order depends on the processor's; the kernel needs neither from us.
    key: u64,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    /// What to wait for.
    events: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    /// The event to signal when it is over.
    event: u32,
}

/// As `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion([u64; 4]);

const POLL: u16 = 5;
const SIGNAL_EVENT: u32 = 1;
/// Operations under way at a time; the kernel makes more of it, by the number of processors. All processes of a host together
/// may have 65536 (`fs.aio-max-nr`).
const ROOM: usize = 8;

/// The kernel's queue for this address space, 0 before it is first needed. A forked child finds its parent's number here,
/// which means nothing to the kernel then.
static CONTEXT: AtomicUsize = AtomicUsize::new(0);

/// Whether [`ring_stranger`] works here; prepares it. It does not where the kernel has no asynchronous I/O, where a filter of
/// system calls forbids it, or where `fs.aio-max-nr` is used up.
pub fn strangers_can_be_rung() -> bool {
    let context = CONTEXT.load(Ordering::Acquire);
    context != 0 && is_ours(context) || renew(context).is_some()
}

/// Makes an eventfd readable and wakes whoever waits for it, whatever others have done to it. Never waits. Does nothing where
/// [`strangers_can_be_rung`] says no, or if it is no eventfd.
pub fn ring_stranger(event: BorrowedFd<'_>) {
    let Ok(number) = u32::try_from(event.as_raw_fd()) else { return };
    let operation = Operation {
        opcode: POLL,
        descriptor: number,
        events: (libc::POLLIN | libc::POLLOUT) as u64,
        flags: SIGNAL_EVENT,
        event: number,
        ..Operation::default()
    };
    let operations = [&raw const operation];
    let mut context = CONTEXT.load(Ordering::Acquire);
    loop {
        let arguments = [context, 1, operations.as_ptr().expose_provenance()];
        // SAFETY: the kernel reads one pointer, and the operation behind it; both live on this frame.
        match unsafe { system_call(libc::SYS_io_submit, arguments) } {
            // No room for its outcome, in which nobody is interested.
            Err(libc::EAGAIN) => forget_outcomes(context),
            Err(libc::EINVAL) if !is_ours(context) => match renew(context) {
                Some(new) => context = new,
                None => return,
            },
            _ => return,
        }
    }
}

/// Whether the kernel knows the queue in this address space.
fn is_ours(context: usize) -> bool {
    // SAFETY: no operation is handed over.
    unsafe { system_call(libc::SYS_io_submit, [context, 0, 0]) }.is_ok()
}

/// Makes the queue, in place of one that is not this address space's.
#[cold]
fn renew(old: usize) -> Option<usize> {
    let mut made: usize = 0;
    // SAFETY: the kernel writes one word.
    let result =
        unsafe { system_call(libc::SYS_io_setup, [ROOM, (&raw mut made).expose_provenance(), 0]) };
    result.ok()?;
    match CONTEXT.compare_exchange(old, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(made),
        Err(other) => {
            // Another thread was faster. SAFETY: nobody else knows of the one made here.
            let _ = unsafe { system_call(libc::SYS_io_destroy, [made, 0, 0]) };
            Some(other)
        }
    }
}

/// Takes what the kernel has to say about operations that are over.
fn forget_outcomes(context: usize) {
    let mut outcomes = [Completion([0; 4]); 32];
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let room = outcomes.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel writes at most as many outcomes as there is room for, and reads the time.
    let _ = unsafe {
        system_call_5(
            libc::SYS_io_getevents,
            [context, 0, outcomes.len(), room, (&raw const now).expose_provenance()],
        )
    };
}

/// A system call of three arguments; the error is the kernel's number.
///
/// # Safety
/// As for the call itself.
unsafe fn system_call(number: libc::c_long, [a, b, c]: [usize; 3]) -> Result<usize, i32> {
    // SAFETY: the caller's promise; the kernel ignores what a call does not have.
    unsafe { system_call_5(number, [a, b, c, 0, 0]) }
}

/// As [`system_call`], of five arguments.
///
/// # Safety
/// As for the call itself.
unsafe fn system_call_5(number: libc::c_long, a: [usize; 5]) -> Result<usize, i32> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; rcx and r11 are its only clobbers beside the result and memory.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1],
             in("rdx") a[2], in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; only x0 changes beside memory.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2],
             in("x3") a[3], in("x4") a[4], options(nostack));
    }
    if result < 0 {
        Err(i32::try_from(-result).unwrap_or(libc::EIO))
    } else {
        Ok(result.unsigned_abs())
    }
}

/// Takes all signals out of an event that others have too. Never waits, even if one of them made it blocking. How many they were;
/// 0 if there was none.
pub fn silence(event: BorrowedFd<'_>) -> u64 {
    use std::io::IoSliceMut;

    use rustix::io::{ReadWriteFlags, preadv2};
    let mut count = [0u8; 8];
    let mut buffers = [IoSliceMut::new(&mut count)];
    // An event has no offset: -1 is "where it is".
    let taken = preadv2(event, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT);
    taken.map_or(0, |_: usize| u64::from_ne_bytes(count))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::{Event, Signals};

    /// Ends the program if `act` does not end.
    fn must_not_wait(act: impl FnOnce() + Send) {
        let (done, is_done) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                act();
                done.send(()).unwrap();
            });
            if is_done.recv_timeout(Duration::from_secs(60)).is_err() {
                eprintln!("somebody waits for ever");
                std::process::abort();
            }
        });
    }

    #[test]
    fn a_full_event_that_blocks_is_rung_and_silenced_without_waiting() {
        let hostile = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(strangers_can_be_rung());
        must_not_wait(|| {
            assert_eq!(silence(hostile.as_fd()), 0);
            rustix::io::write(&hostile, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            ring_stranger(hostile.as_fd());
            ring_stranger(hostile.as_fd());
            assert!(silence(hostile.as_fd()) >= u64::MAX - 1);
            ring_stranger(hostile.as_fd());
            assert_eq!(silence(hostile.as_fd()), 1);
        });
    }

    #[test]
    fn very_many_rings_of_many_threads_all_arrive() {
        let event = Event::new().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000).for_each(|_| ring_stranger(event.as_fd())));
            }
        });
        assert_eq!(event.drain(), 80_000);
    }

    #[test]
    fn each_ring_is_an_edge_also_when_the_counter_is_full() {
        let event = Event::new().unwrap();
        let signals = Signals::of(&event).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signals.wait(None).unwrap();
        for _ in 0..3 {
            ring_stranger(event.as_fd());
            signals.wait(None).unwrap();
        }
    }

    #[test]
    fn a_forked_child_rings_by_a_queue_of_its_own() {
        let event = Event::new().unwrap();
        ring_stranger(event.as_fd());
        // SAFETY: the child makes system calls only and ends without running anything of its parent's.
        let child = unsafe { libc::fork() };
        if child == 0 {
            ring_stranger(event.as_fd());
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, event.drain()), (0, 2));
        ring_stranger(event.as_fd());
        assert_eq!(event.drain(), 1);
    }

    #[test]
    fn what_is_no_event_is_left_alone() {
        let memory = crate::create_memory(4096).unwrap();
        must_not_wait(|| ring_stranger(memory.as_fd()));
    }
}
