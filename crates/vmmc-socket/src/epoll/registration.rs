//! One connection in one epoll object: what the program wants of it, and what is true of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmmc::stream::{FIN, announce};

use super::{Phase, Slot, Way, kernel, local, slot};
use crate::local::Ends;
use crate::{lower, receive, repeat, transmit, wait};

pub(super) const EDGE: u32 = libc::EPOLLET as u32;
pub(super) const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
pub(super) const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
pub(super) const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;
pub(super) const RDHUP: u32 = libc::EPOLLRDHUP as u32;
/// Always reported, asked for or not.
pub(super) const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// One connection in one epoll object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registration {
    pub(super) fd: i32,
    pub(super) slot: u32,
    pub(super) events: u32,
    pub(super) data: u64,
    /// Where its bell stands among those of the set that are shared, and its place there.
    pub(super) seat: Option<(u32, u32)>,
    /// The program has it registered. The entry outlives that, for programs that delete and add all the time; a lifted
    /// one stays in the kernel too.
    pub(super) active: bool,
    /// Not lifted: the kernel was not told of the last changes yet, and still has it as `told`.
    pub(super) pending: bool,
    pub(super) told: (u32, u64),
    pub(super) lifted: bool,
    pub(super) hot: bool,
    /// Looks in a row that found nothing.
    pub(super) idle: u32,
    /// A one-shot registration that has shot, as far as the layer knows: while it is the kernel's, only that does.
    pub(super) spent: bool,
    /// The program is just arming it.
    pub(super) arming: bool,
    /// Edge-triggered: what was already reported.
    pub(super) seen_tail: u64,
    pub(super) seen_collisions: u32,
    /// Edge-triggered: report whatever is there, whether it was reported or not.
    pub(super) fresh: bool,
}

impl Registration {
    pub(super) fn want(&mut self, events: u32, data: u64) {
        self.events = events;
        self.data = data;
        self.spent = false;
        self.fresh = true;
    }

    /// The events to report now; none for an edge that was already reported.
    #[inline]
    pub(super) fn report(&mut self) -> u32 {
        let slot = slot::get(self.slot);
        let Some(ends) = local::get(self.slot).ends() else { return 0 };
        if self.events & EDGE == 0 {
            return self.now(slot, ends);
        }
        // Looked at before what is true: what comes in between is the next edge, rather than none.
        let (tail, collisions) =
            (self.tail(slot, ends), slot.outward.collisions.load(Ordering::Relaxed));
        let now = self.now(slot, ends);
        if now == 0 {
            return 0;
        }
        // As in the kernel, whatever arrives has all be told that is true by then, also if what arrived was read already: bytes
        // tell those that want bytes, an end tells everybody.
        let ended = (tail ^ self.seen_tail) & FIN != 0;
        let arrived = ended || tail != self.seen_tail && self.events & IN != 0;
        let room = collisions != self.seen_collisions && now & OUT != 0;
        if !(self.fresh || arrived || room) {
            return 0;
        }
        self.fresh = false;
        self.seen_tail = tail;
        // A writer that was told of something else while there was no room has still to be told of the room.
        if now & OUT != 0 {
            self.seen_collisions = collisions;
        }
        now
    }

    /// How far what has come in the ring reaches, as far as that is for an edge to tell.
    #[inline]
    fn tail(&self, slot: &Slot, ends: Ends) -> u64 {
        // That the stream goes on elsewhere is no edge; what comes there is one. An end that TCP has told of is none again.
        let tail = ends.mine.visible() & !vmmc::stream::FROZEN | self.seen_tail & FIN;
        // Behind bytes that TCP still owes it has not come yet. It may be the only edge then: TCP may tell of those only what is
        // taken for an end that was told of.
        let owed = tail != self.seen_tail
            && slot.inward.way() == Way::Tcp
            && !receive::reaches_ring(self.fd, slot, ends);
        if owed { self.seen_tail } else { tail }
    }

    /// The events that are true now and wanted.
    #[inline]
    fn now(&self, slot: &Slot, ends: Ends) -> u32 {
        let mut now = 0;
        if slot.inward.way() != Way::Ring || slot.look.load(Ordering::Acquire) {
            now |= readiness_beside_the_ring(self.fd, slot, ends);
        } else if slot.inward.stream.stirred(ends.mine) {
            now |= if slot.inward.stream.frozen(ends.mine) {
                readiness_beside_the_ring(self.fd, slot, ends)
            } else {
                IN
            };
        }
        now |= ended(self.fd, slot, ends);
        if self.events & OUT != 0 {
            let out = match slot.outward.way() {
                _ if slot.finished.load(Ordering::Relaxed) => true,
                Way::Ring => transmit::has_room(self.fd, slot, ends),
                Way::Handover => wait::handover_answered(ends),
                Way::Tcp | Way::Lowered => {
                    kernel::pending(self.fd, libc::POLLOUT) & libc::POLLOUT != 0
                }
            };
            // Over both ways, there is room for whatever will be refused.
            if out || now & libc::EPOLLHUP as u32 != 0 {
                now |= OUT;
            }
        }
        now & (self.events | ALWAYS)
    }

    /// Whether TCP tells of nothing but an end that the ring had told of before.
    pub(super) fn has_ended(&self, events: u32, slot: &Slot, ends: Ends) -> bool {
        let room = self.events & OUT != 0 && slot.outward.way() != Way::Ring;
        events & !(IN | OUT | RDHUP) == 0 && !room && ended(self.fd, slot, ends) != 0
    }

    /// Whether the peer has gone back to TCP, or another process of the family has brought the connection back there.
    pub(super) fn peer_has_left(&self) -> bool {
        if slot::get(self.slot).phase() != Phase::Attached {
            return true;
        }
        let ends = local::get(self.slot).ends();
        ends.is_some_and(|ends| lower::has_left(slot::get(self.slot), ends))
    }

    /// For how long the peer holds back bytes that this side waits for, if it does.
    #[inline]
    pub(super) fn corked_for(&self) -> Option<Duration> {
        let ends = local::get(self.slot).ends().filter(|_| self.events & IN != 0)?;
        ends.mine.corked_for()
    }

    /// Announces to the peer that this side sleeps; false if there is something to report already.
    pub(super) fn cool(&mut self) -> bool {
        let slot = slot::get(self.slot);
        let local = local::get(self.slot);
        let Some(ends) = local.ends() else { return true };
        if self.events & (IN | RDHUP) != 0 {
            announce(&ends.theirs.reader_waiting);
        }
        if self.events & OUT != 0 {
            announce(&ends.theirs.writer_waiting);
        }
        let now = self.now(slot, ends);
        if now == 0 {
            return true;
        }
        // Edge-triggered and already reported: the announcement holds, and nothing needs to be looked at.
        let mut probe = *self;
        probe.report() == 0
    }
}

/// Readiness of a connection whose incoming bytes may come from TCP, or that TCP has something to say of.
#[cold]
pub(crate) fn readiness_beside_the_ring(fd: i32, slot: &Slot, ends: Ends) -> u32 {
    if repeat::repeat(slot, ends).is_some() {
        // What was read is no news.
        let _held = slot.inward.lock.hold();
        repeat::pass_over(fd, slot, ends);
    }
    let wanted = libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI;
    let mut events = kernel::pending(fd, wanted);
    for _ in 0..100 {
        // A reset sets the error and the state a moment before the end; the native call is woken after all of them.
        let whole = libc::POLLERR | libc::POLLHUP | libc::POLLIN;
        if events & libc::POLLERR == 0 || events & whole == whole {
            break;
        }
        events = kernel::pending(fd, wanted);
    }
    let events = events as u16 as u32;
    let mut now = events
        & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLERR | libc::EPOLLHUP)
            as u32;
    if now & libc::EPOLLIN as u32 != 0 {
        now |= IN;
    }
    if slot.inward.stream.unread(ends.mine) > 0 && receive::reaches_ring(fd, slot, ends) {
        now |= IN;
    }
    if slot.deaf.load(Ordering::Relaxed) {
        now |= IN | RDHUP;
    }
    // Of this side's own end the kernel may not know.
    if now & RDHUP != 0 && slot.finished.load(Ordering::Relaxed) {
        now |= libc::EPOLLHUP as u32;
    }
    if events == 0 && slot.inward.way() == Way::Ring && slot.phase() == Phase::Attached {
        // A false alarm: nothing is different on TCP.
        if !slot.deaf.load(Ordering::Relaxed) {
            slot.look.store(false, Ordering::Release);
        }
    }
    now
}

/// What ends that stand in the rings mean for readiness: the kernel may not know of them.
#[inline]
pub(crate) fn ended(fd: i32, slot: &Slot, ends: Ends) -> u32 {
    let word = ends.mine.tail.load(Ordering::Acquire);
    if word & FIN == 0 || !receive::reaches_ring(fd, slot, ends) {
        return 0;
    }
    let both = slot.finished.load(Ordering::Relaxed);
    if both { IN | RDHUP | libc::EPOLLHUP as u32 } else { IN | RDHUP }
}
