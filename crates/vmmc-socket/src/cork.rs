//! Bytes that the program has the stream hold back: those of `MSG_MORE`, and all while `TCP_CORK` is on (see
//! [`vmmc::stream::Words::corked_for`]).

use std::sync::atomic::Ordering;

use vmmc::stream::take_announcement;

use crate::local::{self, Ends, Local};
use crate::slot::{self, Slot};
use crate::{descriptor, kernel};

/// Whether the program has corked the connection, asked of the kernel.
pub(crate) fn learn(fd: i32, slot: &Slot) {
    let on = kernel::option::<i32>(fd, libc::IPPROTO_TCP, libc::TCP_CORK);
    slot.corked.store(on == Some(1), Ordering::Relaxed);
}

/// The program has set an option that holds bytes back, or sends them (`TCP_CORK`, `TCP_NODELAY`).
pub(crate) fn option_is_set(fd: i32, name: i32) {
    let Some(index) = descriptor::connection_called(fd) else { return };
    let (slot, local) = (slot::get(index), local::get(index));
    let _held = slot.outward.lock.hold();
    if name == libc::TCP_CORK {
        learn(fd, slot);
    }
    // The other option sends what is there too, corked or not, where it is switched on.
    let on = || kernel::option::<i32>(fd, libc::IPPROTO_TCP, name) == Some(1);
    if let Some(ends) = local.ends()
        && (if name == libc::TCP_NODELAY { on() } else { !slot.corked.load(Ordering::Relaxed) })
    {
        let_go(local, ends);
    }
}

/// Lets the peer see what this side holds back. The outward lock is held.
pub(crate) fn let_go(local: &Local, ends: Ends) {
    if ends.theirs.uncork() && take_announcement(&ends.mine.reader_waiting) {
        local.ring_peer();
    }
}

/// Whether TCP tells of an end or an error while the peer holds bytes back, which can be read from now on: its kernel would
/// have sent them before.
#[inline]
pub(crate) fn end_lets_go(fd: i32, ends: Ends) -> bool {
    ends.mine.corked_for().is_some()
        && kernel::pending(fd, libc::POLLRDHUP) & !libc::POLLIN != 0
        && ends.mine.uncork()
}
