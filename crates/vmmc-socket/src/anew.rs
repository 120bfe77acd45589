//! Lifting anew: a connection that is whole on TCP again, and was lowered for a reason that passes, becomes a young one.
//! Nothing is left of the lifting that it had: no memory, no bell, no pair at the node service. Later calls with data offer it
//! again, and each direction switches at an offset that the kernel has counted all the time.
//!
//! The other end may be behind: it reads its ring to the end, finds TCP there, and comes back itself. It offers no sooner, so no
//! pairing meets one that is older. It may also never come back; then the offer lies at the service, and costs nothing.
//!
//! Threads may sleep on what goes away. They are woken, and whatever wakes them late they sleep on TCP as well, where the next
//! byte is: before this side says READY to a new peer, no call is asleep that does not know of it ([`Slot::receiving`]).

use std::sync::atomic::Ordering;

use vmmc::stream::{CLOSED, FIN, LINGERS};

use crate::layer::{self, Structure};
use crate::local::{self, Ends, Local};
use crate::slot::{self, Slot};
use crate::{bells, board, epoll, tcp};

/// Whether a connection whose two directions are on TCP again has become young.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    Young,
    /// Something is still in use; a later call tries again.
    NotYet,
    /// It stays as it is.
    Never,
}

/// How many calls that move data make a connection worth lifting, where `young` do for one that never was. Each return to TCP
/// doubles it, so that ends that lower again and again soon leave it.
pub(crate) fn calls_before_lifting(young: u32, slot: &Slot) -> u32 {
    const LEAST: u32 = 4;
    const DOUBLED_AT_MOST: u32 = 10;
    match slot.returned.load(Ordering::Relaxed) {
        0 => young,
        times => young.max(LEAST) << (times - 1).min(DOUBLED_AT_MOST),
    }
}

/// Makes a connection young that has come back to TCP.
pub(crate) fn come_back(structure: &mut Structure, fd: i32, index: u32) -> Return {
    let (slot, local) = (slot::get(index), local::get(index));
    // SAFETY: the caller has the structure, whose lock guards the parts.
    let parts = unsafe { local.parts() };
    if !may_come_back(fd, slot, local) {
        return Return::Never;
    }
    // A writer that waits for room in a ring would wait for ever. And this may be a signal handler on a thread that looks at
    // the memories just now.
    if slot.sending.load(Ordering::SeqCst) != 0 || epoll::interrupted(parts) {
        return Return::NotYet;
    }
    let pair = slot.pair.load(Ordering::Relaxed);
    let numbers = local.bells();
    local.ring_own();
    {
        let Some(_inward) = slot.inward.lock.hold_anew() else { return Return::NotYet };
        let Some(_outward) = slot.outward.lock.hold_anew() else { return Return::NotYet };
        if !local.detach_unpinned() {
            // Somebody may have looked meanwhile, and seen nothing.
            local.ring_own();
            return Return::NotYet;
        }
        slot.come_back();
    }
    // Takes the lock of each set, so that nobody looks at the memories any more.
    epoll::release(index, numbers[0], parts);
    bells::leave(structure, pair, parts, numbers, false);
    board::update(index, slot);
    layer::drop_pair(vmmc::PairId(pair), false);
    Return::Young
}

/// Whether a connection, once it is on TCP, may be lifted anew.
pub(crate) fn may_come_back(fd: i32, slot: &Slot, local: &Local) -> bool {
    let ended = |ends: Ends| {
        ends.mine.told(CLOSED)
            || ends.mine.told(LINGERS)
            || ends.mine.tail.load(Ordering::Acquire) & FIN != 0
    };
    let flags = [&slot.finished, &slot.mute, &slot.deaf];
    slot.why().passes()
        && slot.tenure.holders() == 1
        && !flags.iter().any(|flag| flag.load(Ordering::SeqCst))
        && !slot.inward.loan.stands()
        && !slot.outward.loan.stands()
        && !layer::confined()
        && local.pin().is_some_and(|pin| !ended(pin.ends()))
        && tcp::established(fd)
}
