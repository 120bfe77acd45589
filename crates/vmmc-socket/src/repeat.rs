//! Unread bytes of a lowered stream, on TCP once more.
//!
//! An end that lowers what it *sends* leaves bytes in the ring that the peer has not read. The peer, if it goes on as it
//! is, reads them there. But if it lowers too, before it has read them, they can reach its next program only through TCP,
//! and what was sent after them is on TCP already. So the lowering end writes them to TCP right behind the freeze, and says
//! which part of the stream that is ([`Repeat`]). A reader takes its bytes from the ring as before and passes over those on
//! TCP that it has had; one that lowers passes over what it has read, and leaves the ring. Nobody waits for anybody, and
//! a sender that is killed in the middle has done no harm: what it left on TCP is the beginning of the ring.
//!
//! Where TCP has not room for all of it, as much as fits is repeated; the rest can be read in the ring alone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmmc::stream::{CLOSED, Piece, Repeat};

use crate::kernel::{self, Errno};
use crate::local::{Ends, Local};
use crate::slot::{Inward, Slot, Way};

/// What became of bytes that were written from a ring to TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// TCP has no more room.
    Full,
    /// The connection is gone.
    Gone,
}

/// Freezes what this side sends, and repeats on TCP what is unread of it. The outward lock is held.
///
/// `Some`: whether everything that was unread is on TCP, or will be read by nobody. None: the peer had frozen the stream, and sees to
/// its bytes.
pub(crate) fn freeze_and_repeat(fd: i32, slot: &Slot, local: &Local, ends: Ends) -> Option<bool> {
    let stream = &slot.outward.stream;
    // Writing to a connection that is gone would take the error that the program has to be told.
    let gone =
        ends.mine.told(CLOSED) || kernel::pending(fd, 0) & (libc::POLLERR | libc::POLLHUP) != 0;
    let from = if gone { None } else { stream.begin_repeat(ends.mine, ends.theirs) };
    if !stream.freeze(ends.theirs) && !ends.mine.told(CLOSED) {
        return None;
    }
    let Some(from) = from else { return Some(true) };
    let mut until = from;
    let written = write_pieces(fd, local, stream.pieces_from(from), |sent| until += sent as u64);
    kernel::push(fd);
    stream.end_repeat(ends.theirs, until);
    slot.outward.twice.fetch_add(until - from, Ordering::Relaxed);
    Some(written == Written::All)
}

/// Writes what lies in the outgoing rings to TCP, as far as there is room; `done` is told each part.
pub(crate) fn write_pieces(
    fd: i32,
    local: &Local,
    pieces: impl Iterator<Item = Piece>,
    mut done: impl FnMut(usize),
) -> Written {
    for piece in pieces {
        let Some(ring) = local.ring_out(piece.tier) else { return Written::Full };
        let (mut position, mut left) = (piece.position, piece.len);
        while left > 0 {
            let (from, len) = ring.span(position, left);
            let list = [libc::iovec { iov_base: from.cast(), iov_len: len }];
            match kernel::send(fd, &list, libc::MSG_DONTWAIT) {
                Ok(sent) => {
                    done(sent);
                    position = ring.advance(position, sent);
                    left -= sent;
                }
                Err(Errno::AGAIN) => return Written::Full,
                Err(_) => return Written::Gone,
            }
        }
    }
    Written::All
}

/// What the peer repeats on TCP of this side's incoming stream.
pub(crate) fn repeat(slot: &Slot, ends: Ends) -> Option<Repeat> {
    if slot.inward.passed.load(Ordering::Relaxed) == Inward::NOTHING_REPEATED {
        return None;
    }
    slot.inward.stream.repeat(ends.mine)
}

/// Whether the next byte on TCP is one that the ring has not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    All,
    /// Repeated bytes may still come: whatever is there is to be left alone.
    Later,
}

/// Passes over what TCP repeats of the bytes that were read from the ring. The inward lock is held.
pub(crate) fn pass_over(fd: i32, slot: &Slot, ends: Ends) -> Passed {
    let head = slot.inward.stream.head();
    let due = || {
        let repeat = repeat(slot, ends)?;
        let due = repeat.before(head).saturating_sub(slot.inward.passed.load(Ordering::Relaxed));
        (due > 0 || repeat.until.is_none() && head == repeat.tail).then_some(due)
    };
    while due().is_some() {
        let here = kernel::unread(fd) as u64;
        let ended = kernel::pending(fd, libc::POLLRDHUP) != 0;
        // Asked again: as long as the peer leaves the end open, everything that was there before is repeated.
        let Some(due) = due() else { break };
        if due.min(here) == 0 {
            // What the peer had not repeated when it died cannot come any more.
            return if ended { Passed::All } else { Passed::Later };
        }
        // With this flag TCP copies nothing.
        let nowhere =
            [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: due.min(here) as usize }];
        match kernel::receive(fd, &nowhere, libc::MSG_TRUNC | libc::MSG_DONTWAIT) {
            Ok(0) | Err(_) => return Passed::All,
            Ok(len) => slot.inward.passed.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
    Passed::All
}

/// As [`pass_over`], but waits for bytes that are on their way. Not for ever, because the peer may have lied about them.
pub(crate) fn pass_over_all(fd: i32, slot: &Slot, ends: Ends) {
    for _ in 0..PATIENCE {
        if pass_over(fd, slot, ends) == Passed::All {
            return;
        }
        kernel::pause(Duration::from_millis(1));
    }
}

/// Milliseconds that a peer gets for what it has said that it does.
const PATIENCE: u32 = 500;

/// Leaves the incoming ring for TCP, which repeats everything that is unread in it. False: it does not. The inward lock
/// is held.
pub(crate) fn leave_ring(fd: i32, slot: &Slot, ends: Ends) -> bool {
    let complete = repeat(slot, ends).is_some_and(|repeat| repeat.complete());
    let nothing = slot.inward.stream.frozen(ends.mine) && slot.inward.stream.unread(ends.mine) == 0;
    if slot.inward.way() == Way::Ring && (complete || nothing) {
        slot.inward.set_way(Way::Lowered);
        slot.look.store(true, Ordering::Release);
        pass_over(fd, slot, ends);
    }
    slot.inward.way() == Way::Lowered
}

/// The peer has frozen what it sends, and this side lowers: leaves the ring, and all that TCP repeats of what was read
/// behind it. Waits for a peer that is just repeating it, but not for ever. The inward lock is held.
pub(crate) fn leave_for_good(fd: i32, slot: &Slot, ends: Ends) {
    // Bytes from before the switch are on TCP, before the repeated ones.
    if slot.inward.way() == Way::Tcp {
        slot.inward.set_way(Way::Ring);
    }
    for _ in 0..PATIENCE {
        if leave_ring(fd, slot, ends) {
            return pass_over_all(fd, slot, ends);
        }
        if repeat(slot, ends).is_none_or(|repeat| repeat.until.is_some() && !repeat.complete()) {
            return;
        }
        kernel::pause(Duration::from_millis(1));
    }
}

/// Whether nothing that this side has read can come on TCP any more.
pub(crate) fn is_over(fd: i32, slot: &Slot, local: &Local) -> bool {
    let _held = slot.inward.lock.hold();
    local.ends().is_none_or(|ends| pass_over(fd, slot, ends) == Passed::All)
}

/// Whether TCP holds bytes, and only such as the ring has too.
pub(crate) fn nothing_else(fd: i32, slot: &Slot, ends: Ends) -> bool {
    let here = kernel::unread(fd);
    repeat(slot, ends).is_some() && here > 0 && here <= twice(slot, ends)
}

/// Bytes that are, or will be, on TCP and were read or can be read in the ring: those a count of both has twice.
pub(crate) fn twice(slot: &Slot, ends: Ends) -> usize {
    let Some(repeat) = repeat(slot, ends) else { return 0 };
    let end = match slot.inward.way() {
        Way::Lowered => slot.inward.stream.head(),
        _ => repeat.tail,
    };
    repeat.before(end).saturating_sub(slot.inward.passed.load(Ordering::Relaxed)) as usize
}
