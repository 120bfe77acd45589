//! Ends of one direction alone: `shutdown`, and what calls come to after it.

use std::sync::atomic::Ordering;

use vmmc::stream::{CLOSED, FIN, LINGERS, take_announcement};

use crate::kernel::{self, Errno};
use crate::local::{self, Ends, Local};
use crate::slot::{self, Phase, Slot, Way};
use crate::{descriptor, layer, lower, tcp, transmit};

/// Ends the sending direction of `fd`. True: the end stands in the ring, and the kernel shall not end it yet (a FIN on TCP
/// could overtake bytes that the peer may still have to hand over); false: the kernel's shutdown must follow.
pub fn finish(fd: i32) -> bool {
    let Some(index) = descriptor::connection_called(fd) else { return false };
    let (slot, local) = (slot::get(index), local::get(index));
    if slot.phase() != Phase::Attached {
        slot.finished.store(true, Ordering::SeqCst);
        return false;
    }
    notice_freeze(index, slot, local);
    let _held = slot.outward.lock.hold();
    let Some(ends) = local.ends() else { return false };
    // A peer that lingers is not settled by this: what it has left unread here may still be wanted on TCP.
    let lingers = slot.outward.way() == Way::Ring && ends.mine.told(LINGERS);
    let way = if lingers { Way::Ring } else { transmit::prepare(fd, index, slot, local, ends) };
    slot.finished.store(true, Ordering::SeqCst);
    // A thread of this process may wait for room.
    local.ring_own();
    match way {
        Way::Tcp | Way::Lowered => return false,
        // The kernel is told when the peer's unread bytes are on TCP: by the service, if this process makes no call any more.
        Way::Handover => {
            let pair = vmmc::PairId(slot.pair.load(Ordering::Relaxed));
            let _ = layer::process().map(|process| process.pair_finish(pair));
            return true;
        }
        Way::Ring => slot.outward.stream.finish(ends.theirs),
    }
    refuse(fd, slot, ends);
    if take_announcement(&ends.mine.reader_waiting) {
        local.ring_peer();
    }
    true
}

/// Before the end of a stream is put into a ring that the peer may have frozen: there nobody would look for it.
#[cold]
pub(crate) fn notice_freeze(index: u32, slot: &Slot, local: &Local) {
    let frozen = {
        let _held = slot.outward.lock.hold();
        let taken_back = local.ends().is_some_and(lower::is_taken_back);
        if taken_back && slot.outward.way() == Way::Ring && !slot.finished.load(Ordering::Relaxed) {
            slot.outward.set_way(Way::Handover);
        }
        slot.outward.way() == Way::Handover
    };
    if frozen {
        lower::await_handover(index);
    }
}

/// Both directions were shut down: what the peer sends from now on, the kernel answers with a reset. It has to know of
/// this side's end for that, which it can where nothing is unread that the peer might still want to hand over.
fn refuse(fd: i32, slot: &Slot, ends: Ends) {
    if slot.deaf.load(Ordering::SeqCst)
        && slot.finished.load(Ordering::SeqCst)
        && slot.outward.way() == Way::Ring
        && slot.outward.stream.unread(ends.mine) == 0
        && slot.inward.stream.unread(ends.mine) == 0
    {
        let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
        ends.theirs.tell(CLOSED);
    }
}

/// As [`refuse`], when everything that there was to read has been read. The inward lock is held.
#[cold]
pub(crate) fn refuse_by_now(fd: i32, slot: &Slot, ends: Ends) {
    if slot.finished.load(Ordering::Relaxed) && !ends.theirs.told(CLOSED) {
        let _held = slot.outward.lock.hold();
        refuse(fd, slot, ends);
    }
}

/// Ends the receiving direction of `fd`; the kernel's shutdown was before.
pub fn deafen(fd: i32) {
    let Some(index) = descriptor::connection_called(fd) else { return };
    let slot = slot::get(index);
    slot.deaf.store(true, Ordering::SeqCst);
    slot.look.store(true, Ordering::SeqCst);
    if let Some(pin) = local::get(index).pin() {
        let _held = slot.outward.lock.hold();
        refuse(fd, slot, pin.ends());
    }
    local::get(index).ring_own();
}

/// What sending on a direction that the program has ended comes to: an error that waits to be told is told first.
#[cold]
pub(crate) fn after_end(fd: i32) -> Errno {
    match kernel::option::<i32>(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
        Some(error) if error != 0 => Errno(error),
        _ => Errno(libc::EPIPE),
    }
}

/// Whether both directions of `fd` have ended in the rings: such a connection is none any more, but the kernel may not know.
pub fn is_over_in_rings(fd: i32) -> bool {
    with_ends(fd, ends_are_in_rings).unwrap_or(false)
}

/// Whether both directions of the lifted connection `fd` have ended, by the rings or by TCP.
pub fn is_over(fd: i32) -> bool {
    with_ends(fd, |slot, ends| ends_are_in_rings(slot, ends) || tcp::over(fd)).unwrap_or(false)
}

fn with_ends<R>(fd: i32, look: impl FnOnce(&Slot, Ends) -> R) -> Option<R> {
    let index = descriptor::connection_called(fd)?;
    let pin = local::get(index).pin()?;
    Some(look(slot::get(index), pin.ends()))
}

fn ends_are_in_rings(slot: &Slot, ends: Ends) -> bool {
    slot.finished.load(Ordering::SeqCst)
        && slot.inward.way() == Way::Ring
        && ends.mine.tail.load(Ordering::Acquire) & FIN != 0
}
