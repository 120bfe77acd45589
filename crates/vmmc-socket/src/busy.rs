//! Closing a descriptor on which another thread sleeps in a call.
//!
//! The kernel's open file stays until that call is over: it gets what comes, and the peer sees an end only afterwards. So the connection
//! gets a number of the layer's own, under which the sleeper goes on when it wakes, and which it closes in the end.

use std::sync::atomic::Ordering;

use crate::descriptor::{self, Kind};
use crate::kernel::Doing;
use crate::layer::STRUCTURE;
use crate::local::Local;
use crate::slot::Slot;
use crate::{kernel, layer, local, slot, thread};

/// The program is about to close `fd`, the last number of the connection: has it keep one as long as another thread sleeps in a call on it.
pub(crate) fn keep(fd: i32, index: u32) {
    let sleeps = || sleeps_beside(slot::get(index), [fd; 2]);
    if thread::alone() || layer::confined() || !sleeps() {
        return;
    }
    let local = local::get(index);
    // SAFETY: the structure's lock is held.
    if STRUCTURE.briefly(|_| unsafe { local.parts() }.descriptors != [fd]) {
        return;
    }
    let Ok(kept) = kernel::call!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, layer::floor()) else {
        return;
    };
    layer::enter_duplicate(index, kept as i32);
    local.kept.store(kept as i32, Ordering::SeqCst);
    // Who has woken meanwhile looks for it when its call is over, or does so no more.
    if !sleeps() {
        let_go(index);
    }
}

/// Under which number a call on `fd` that has slept goes on; `None`: it is closed.
pub(crate) fn number(fd: i32, index: u32) -> Option<i32> {
    let is_it = |fd| descriptor::connection(fd) == Some(index);
    if is_it(fd) {
        return Some(fd);
    }
    Some(local::get(index).kept.load(Ordering::SeqCst)).filter(|&kept| is_it(kept))
}

/// A call that has slept on the connection, whose program knew it as `fd`, is over.
pub(crate) fn leave(fd: i32, index: u32) {
    let kept = local::get(index).kept.load(Ordering::SeqCst);
    if kept >= 0 && !sleeps_beside(slot::get(index), [fd, kept]) {
        let_go(index);
    }
}

/// Whether `fd` is a number that a sleeper has the connection by, of which the program does not know.
pub(crate) fn is_kept(fd: i32, index: u32) -> bool {
    local::get(index).kept.load(Ordering::Relaxed) == fd
}

/// In a child of fork, which has none of the sleepers.
pub(crate) fn forked() {
    let kept = |&(fd, kind): &(i32, Kind)| match kind {
        Kind::Connection(index) => is_kept(fd, index),
        _ => false,
    };
    for (_, kind) in descriptor::between(layer::floor(), i32::MAX).filter(kept) {
        if let Kind::Connection(index) = kind {
            let_go(index);
        }
    }
}

fn let_go(index: u32) {
    let kept = local::get(index).kept.swap(Local::NOT_KEPT, Ordering::SeqCst);
    if kept >= 0 {
        layer::closing(kept);
        let _ = kernel::call!(SYS_close, kept);
    }
}

/// Whether another thread of this process sleeps in a call on the connection, under one of the numbers `fds`. A thread that left such a sleep by `longjmp`, or was
/// cancelled, is still noted there, so the kernel is asked where it is.
fn sleeps_beside(slot: &Slot, fds: [i32; 2]) -> bool {
    [&slot.receiver_asleep, &slot.sender_asleep].into_iter().any(|asleep| {
        let sleeper = asleep.load(Ordering::SeqCst);
        sleeper != 0 && sleeper != thread::id() && sleeps_on(sleeper, fds)
    })
}

/// Whether the thread sleeps as [`crate::wait`] has it sleep: in `ppoll`, on a bell and one of the `fds`.
#[cold]
fn sleeps_on(thread: u32, fds: [i32; 2]) -> bool {
    /// It has said that it will, and is just about to.
    const LOOKS: usize = 20;
    const POLLS: usize = libc::SYS_ppoll as usize;
    for _ in 0..LOOKS {
        match kernel::what_does(thread) {
            Some(Doing::Call([POLLS, list, 2])) => {
                return kernel::value_at::<[libc::pollfd; 2]>(list).is_some_and(|[bell, tcp]| {
                    descriptor::kind(bell.fd) == Kind::Own && fds.contains(&tcp.fd)
                });
            }
            Some(Doing::Running) => kernel::give_way(),
            _ => return false,
        }
    }
    false
}
