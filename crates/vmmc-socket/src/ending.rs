//! How a connection ends: what its peer is told, and how the pair and its memory are let go.

use std::sync::atomic::Ordering;

use vmmc::stream::{CLOSED, HANDED, LINGERS, take_announcement};

use crate::layer::{self, STRUCTURE};
use crate::local::{self, Local};
use crate::slot::{self, Phase, Slot, Way};
use crate::{bells, epoll, kernel, lift, loan, lower, repeat, thread};

/// The last descriptor of this process for the connection is about to be closed; whether it is registered in epoll objects.
pub(crate) fn close(fd: i32, index: u32, registered: bool) {
    let (slot, local) = (slot::get(index), local::get(index));
    let (pair, phase) = (slot.pair.load(Ordering::Relaxed), slot.phase());
    // The program may still look at what it has on loan.
    let lent = loan::abandon(slot);
    let returned = slot.returned.load(Ordering::Relaxed) > 0;
    let shown = slot.shown.load(Ordering::Relaxed);
    // From here on the slot is another's, unless this is the last.
    let last = slot::set_out(index);
    if last {
        lift::learn(slot);
    }
    // The service may have the socket too, a moment longer than the pair, or the offer.
    if registered {
        epoll::leave(index, local, pair != 0 || returned || last && shown);
    }
    let on_tcp = match phase {
        Phase::Offered | Phase::Exchanged => true,
        // It was offered, or asked about, before a fork or whatever else ended that.
        Phase::Tcp => returned || slot.unanswered.load(Ordering::Relaxed),
        _ => false,
    };
    if last && on_tcp {
        end_on_tcp(fd, slot);
    }
    if pair != 0 {
        let goodbye = if last {
            lower::settle_before_end(fd, index);
            part(fd, slot, local)
        } else {
            Goodbye::Plain
        };
        let_go(index, pair, goodbye, lent);
    }
    if last {
        slot::release(index);
    }
}

/// What remains to be done for the peer of a connection that was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    Plain,
    /// It has unread bytes, which it may want to lower.
    Linger,
}

/// Lets go of the pair and its memory.
pub(crate) fn forget(index: u32) {
    let slot = slot::get(index);
    let lent = loan::abandon(slot);
    match slot.pair.load(Ordering::Relaxed) {
        0 => {}
        pair => let_go(index, pair, Goodbye::Plain, lent),
    }
}

fn let_go(index: u32, pair: u64, goodbye: Goodbye, lent: bool) {
    let (slot, local) = (slot::get(index), local::get(index));
    // Threads of this process that wait on it find that it is gone.
    local.ring_own();
    let numbers = local.bells();
    {
        let _inward = slot.inward.lock.hold();
        let _outward = slot.outward.lock.hold();
        local.detach();
    }
    STRUCTURE.with(|structure| {
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local.parts() };
        // Another thread may still wait on the connection, or look at its memory: that stays for good, rather than go under it.
        let kept = local.pinned() || lent;
        bells::leave(structure, pair, parts, numbers, kept);
        layer::drop_pair(vmmc::PairId(pair), goodbye == Goodbye::Linger);
    });
}

/// The peer has closed and left its socket to the service, for bytes that were unread: they are read now, or the program
/// writes, and the kernel shall say what comes of that.
pub(crate) fn settle_peer(slot: &Slot, ends: local::Ends) {
    if ends.mine.told(LINGERS) {
        ends.mine.untell(LINGERS);
        layer::settle_pair(vmmc::PairId(slot.pair.load(Ordering::Relaxed)));
    }
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtExit {
    Whole,
    /// Perhaps in the handler of a signal: no memory can be taken, and no lock that may be held.
    Bare,
}

/// The process ends without having closed the connection.
pub(crate) fn end_at_exit(fd: i32, index: u32, how: AtExit) {
    if !slot::set_out(index) {
        return;
    }
    let (slot, local) = (slot::get(index), local::get(index));
    if how == AtExit::Whole {
        lower::settle_before_end(fd, index);
    }
    if slot.phase() == Phase::Attached && part(fd, slot, local) == Goodbye::Linger {
        let pair = vmmc::PairId(slot.pair.load(Ordering::Relaxed));
        match how {
            AtExit::Whole => layer::drop_pair(pair, true),
            AtExit::Bare => layer::drop_pair_at_end(pair),
        }
    }
    // Another thread may be at work on it until the process is gone. Then whoever is short of slots finds that nobody has it.
    if thread::alone() {
        slot::release(index);
    }
}

/// The last process of the family that has the connection is about to be without it.
fn part(fd: i32, slot: &Slot, local: &Local) -> Goodbye {
    let _inward = slot.inward.lock.hold();
    let _outward = slot.outward.lock.hold();
    local.ends().map_or(Goodbye::Plain, |ends| say_goodbye(fd, slot, local, ends))
}

/// Whether the kernel resets the connection when its last descriptor is closed, instead of ending it.
fn set_reset_at_close(fd: i32, on: bool) {
    let linger = libc::linger { l_onoff: i32::from(on), l_linger: 0 };
    let (option, size) = (libc::SO_LINGER, size_of::<libc::linger>());
    let _ = kernel::call!(SYS_setsockopt, fd, libc::SOL_SOCKET, option, &raw const linger, size);
}

/// Ends a connection that is being lifted, or was, as its last close does: the service may have the socket too, for a moment,
/// which the peer must not notice.
fn end_on_tcp(fd: i32, slot: &Slot) {
    if !slot.is_alone() || is_called_on_tcp(slot) {
        return;
    }
    if kernel::unread(fd) > 0 || wants_reset(fd) {
        reset(fd);
    } else {
        end_as_close_does(fd, slot.inward.way());
    }
}

/// The service closes its duplicate a moment later; until then the kernel shall do as if nobody had the socket: what the peer reads finds
/// the end, and what it writes is answered by a reset. Where the receiving direction is on TCP for good, others may still read from it.
fn end_as_close_does(fd: i32, inward: Way) {
    let how = if inward == Way::Lowered { libc::SHUT_WR } else { libc::SHUT_RDWR };
    let _ = kernel::call!(SYS_shutdown, fd, how);
}

/// Whether the program has asked for a reset in place of an end.
fn wants_reset(fd: i32) -> bool {
    kernel::option::<libc::linger>(fd, libc::SOL_SOCKET, libc::SO_LINGER)
        .is_some_and(|linger| linger.l_onoff != 0 && linger.l_linger == 0)
}

/// Resets the connection now, whoever else has a descriptor of it.
fn reset(fd: i32) {
    let nobody =
        libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let _ = kernel::call!(SYS_connect, fd, &raw const nobody, size_of::<libc::sockaddr>());
}

/// Whether a call is under way in the kernel, which ends the connection only after that.
fn is_called_on_tcp(slot: &Slot) -> bool {
    [&slot.sending, &slot.receiving].into_iter().any(|calls| calls.load(Ordering::SeqCst) > 0)
}

/// Whether the peer went back to TCP and has all that was sent; and nobody but this process, and a moment longer the service, has the socket.
fn is_handed_over(slot: &Slot, outward: Way, ends: local::Ends) -> bool {
    matches!(outward, Way::Handover | Way::Lowered)
        && slot.handed.load(Ordering::Relaxed) == 0
        && ends.mine.told(HANDED)
}

/// Ends the stream for the peer, as close does on TCP: with a reset if bytes were left unread, or if the program wants it
/// so. A reset is an error to the peer, not an end, so the peer learns of it from TCP. What is lowered ends there too.
fn say_goodbye(fd: i32, slot: &Slot, local: &Local, ends: local::Ends) -> Goodbye {
    let mut goodbye = Goodbye::Plain;
    // What TCP only repeats is not unread.
    let was_frozen = slot.inward.stream.frozen(ends.mine);
    repeat::pass_over_all(fd, slot, ends);
    let (inward, mut outward) = (slot.inward.way(), slot.outward.way());
    // A ring that the peer took back holds nothing any more; the service puts what was unread before the end on TCP.
    if outward == Way::Ring && lower::is_taken_back(ends) {
        outward = Way::Handover;
    }
    let unread_in_ring = || {
        let switched = ends.mine.switch_offset().is_some() && inward != Way::Lowered;
        switched && slot.inward.stream.unread(ends.mine) > 0
    };
    let handed_over = is_handed_over(slot, outward, ends);
    // Never lowered by this side, or brought back by the peer alone: nobody has this end but this process and, a moment longer, the service.
    let is_own = inward != Way::Lowered && matches!(outward, Way::Tcp | Way::Ring) || handed_over;
    // A call under way in the kernel would be told that its socket is none any more.
    let may_reset = is_own && !is_called_on_tcp(slot);
    // Both directions have ended: there is no connection left to reset.
    let over = slot.finished.load(Ordering::Relaxed)
        && ends.mine.tail.load(Ordering::Acquire) & vmmc::stream::FIN != 0;
    let unread = unread_in_ring();
    // Of these the kernel makes a reset by itself, unless somebody who is not of this family goes on with the connection.
    let unread_on_tcp = kernel::unread(fd) > 0;
    let wanted = wants_reset(fd);
    if over && wanted {
        set_reset_at_close(fd, false);
    } else if unread && !over {
        set_reset_at_close(fd, true);
    }
    if (unread || unread_on_tcp || wanted) && !over {
        // A reset that comes after the end of the stream is a broken pipe to the peer: its kernel has to see that end.
        if slot.finished.load(Ordering::Relaxed) && outward == Way::Ring {
            let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
        }
        if may_reset {
            // A peer that is just writing what it had sent to TCP, or begins to, would take the error that its program shall get.
            if !slot.inward.stream.freeze(ends.mine) && !was_frozen {
                repeat::pass_over_all(fd, slot, ends);
            }
            reset(fd);
        }
    } else if outward == Way::Ring {
        let unread = slot.outward.stream.unread(ends.mine) > 0;
        let lingers = unread && local.held.load(Ordering::Relaxed);
        if lingers {
            goodbye = Goodbye::Linger;
            ends.theirs.tell(LINGERS);
        }
        slot.outward.stream.finish(ends.theirs);
        if unread && !lingers {
            // No service would write to this socket what the peer lowers unread: it is on TCP before the end.
            let _ = repeat::freeze_and_repeat(fd, slot, local, ends);
        }
        if !lingers {
            end_as_close_does(fd, inward);
        }
    } else if outward == Way::Tcp && inward != Way::Lowered && !is_called_on_tcp(slot)
        || handed_over
    {
        end_as_close_does(fd, inward);
    }
    if inward != Way::Lowered {
        ends.theirs.tell(CLOSED);
        // Who had not seen that may still have published something: it has reached a closed socket.
        if slot.inward.stream.freeze(ends.mine) && !over && !unread && unread_in_ring() {
            set_reset_at_close(fd, true);
            if may_reset {
                reset(fd);
                ends.theirs.untell(LINGERS);
                goodbye = Goodbye::Plain;
            }
        }
    }
    let reader = take_announcement(&ends.mine.reader_waiting);
    if take_announcement(&ends.mine.writer_waiting) || reader {
        local.ring_peer();
    }
    goodbye
}
