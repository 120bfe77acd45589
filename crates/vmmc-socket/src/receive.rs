//! Receiving on a tracked connection.

use std::sync::atomic::Ordering;

use vmmc::stream::{Arrived, CLOSED, Corrupt, FIN, FROZEN, take_announcement};

use crate::busy::Stay;
use crate::kernel::{self, Errno, Outcome};
use crate::local::{self, Ends, Local};
use crate::message::{Pieces, Room};
use crate::repeat::{self, Passed};
use crate::route::{InFlight, Route, Sleep, Transfer, part};
use crate::slot::{self, Inward, Phase, Slot, Way, Why};
use crate::wait::{Direction, Wait};
use crate::{
    board, cork, descriptor, ending, epoll, family, half_close, layer, lift, lower, signals, tcp,
};

/// Flags with which the layer can receive; others lower the connection.
const CARRIED: i32 = libc::MSG_PEEK
    | libc::MSG_WAITALL
    | libc::MSG_DONTWAIT
    | libc::MSG_NOSIGNAL
    | libc::MSG_TRUNC
    | libc::MSG_CMSG_CLOEXEC;

/// A call that receives.
#[derive(Debug)]
pub struct Receiving<'a> {
    fd: i32,
    index: u32,
    pieces: Pieces<'a>,
    flags: i32,
    got: usize,
    wait: Wait,
}

/// Begins to receive from `fd` into `pieces`, as `recvmsg` with `flags` would; `Err`: the kernel shall do it. There is `room` for a copy
/// of the list where it is the program's own.
///
/// # Safety
/// The pieces are valid for writing, until the call is over.
#[inline]
pub unsafe fn receive<'a>(
    fd: i32,
    pieces: &'a [libc::iovec],
    room: Option<&'a Room>,
    flags: i32,
) -> Result<Receiving<'a>, Option<InFlight>> {
    let Some(index) = descriptor::connection_called(fd) else { return Err(None) };
    let slot = slot::get(index);
    if slot.phase() != Phase::Attached
        && let Some(call) = InFlight::begin(fd, index, slot, Stay::Moving(Direction::In))
    {
        return Err(Some(call));
    }
    // The urgent byte is always the kernel's.
    if flags & libc::MSG_OOB != 0 {
        return Err(None);
    }
    let Some(pieces) = Pieces::new(pieces, room).filter(|_| flags & !CARRIED == 0) else {
        lower::lower(fd, index, Why::Call);
        return Err(None);
    };
    if peeks_in_vain(fd, index, slot, &pieces, flags) {
        lower::lower(fd, index, Why::Call);
        // Not if the peer has gone meanwhile: then everything that will ever come is here.
        if slot.phase() != Phase::Attached || slot.inward.way() == Way::Lowered {
            return Err(None);
        }
    }
    let local = local::get(index);
    if !local.held.load(Ordering::Relaxed) {
        lift::hold(fd, slot, local);
    }
    Ok(Receiving { fd, index, pieces, flags, got: 0, wait: Wait::new(fd, index, Direction::In) })
}

/// Whether the call has to wait for bytes beside others that it leaves where they are, which the layer cannot.
fn peeks_in_vain(fd: i32, index: u32, slot: &Slot, pieces: &Pieces<'_>, flags: i32) -> bool {
    const FOR_ALL: i32 = libc::MSG_PEEK | libc::MSG_WAITALL;
    flags & (FOR_ALL | libc::MSG_DONTWAIT) == FOR_ALL
        && !slot.nonblocking.load(Ordering::Relaxed)
        && kernel::pending(fd, libc::POLLRDHUP) == 0
        && local::get(index)
            .pin()
            .is_none_or(|pin| pin.ends().mine.tail.load(Ordering::Acquire) & FIN == 0)
        && unread(fd).is_some_and(|unread| unread < pieces.left())
}

/// What is known of the stream behind the bytes that one look gave.
#[derive(Clone, Copy)]
enum Beyond {
    Unknown,
    /// More has arrived, in a larger ring, or in the first after TCP.
    Ring,
    /// The ring ends there; TCP knows how the stream goes on.
    Tcp,
}

/// What one look at the connection gave.
enum Step {
    Bytes(usize, Beyond),
    End,
    Nothing,
    /// An error, which is the next call's: this one has bytes to return.
    Later,
}

/// How far a call has come with what is there.
enum Taken {
    /// It is over.
    Enough,
    /// There is no more, and will not be.
    End,
    TooLittle,
}

/// What a look needs to know of the call that it is for.
#[derive(Clone, Copy)]
struct Call {
    flags: i32,
    /// Earlier looks gave bytes.
    has_some: bool,
}

impl Transfer for Receiving<'_> {
    #[inline]
    fn go(&mut self) -> Route {
        let slot = slot::get(self.index);
        loop {
            let taken = self.take_all(slot);
            if slot.inward.way() == Way::Lowered {
                lower::settle(self.fd, self.index);
            }
            match taken {
                Ok(Taken::Enough) => return Route::Done(Ok(self.got)),
                Ok(Taken::End) => {
                    family::outlive_no_goodbye();
                    return Route::Done(Ok(self.got));
                }
                Ok(Taken::TooLittle) => {
                    if !self.waits(slot) {
                        // Of a peer that has died the service tells, and then TCP.
                        if layer::has_mail() {
                            lift::progress();
                            if self.got == 0 && slot.look.load(Ordering::Relaxed) {
                                continue;
                            }
                        }
                        return Route::Done(part(self.got, Errno::AGAIN));
                    }
                    self.pieces.keep();
                    match self.wait.sleep() {
                        Ok(None) => {}
                        Ok(Some(sleep)) => return Route::Sleep(sleep),
                        Err(error) => return Route::Done(part(self.got, error)),
                    }
                }
                Err(_) if self.wait.is_misled() => return Route::Anew,
                Err(error) => {
                    family::outlive_no_goodbye();
                    return Route::Done(part(self.got, error));
                }
            }
        }
    }

    fn woken(&mut self, sleep: &Sleep, outcome: Outcome) -> Option<Outcome> {
        let woken = self.wait.woken(sleep, outcome, self.got);
        woken.err().map(|error| part(self.got, error))
    }

    fn leave(&mut self) {
        self.wait.leave();
    }
}

impl<'a> Receiving<'a> {
    /// Passes over as many bytes as `len` is long, whose memory is not touched.
    pub(crate) fn nowhere(fd: i32, index: u32, len: &'a libc::iovec) -> Self {
        let pieces = Pieces::of_one(len);
        let flags = libc::MSG_TRUNC | libc::MSG_WAITALL;
        Self { fd, index, pieces, flags, got: 0, wait: Wait::new(fd, index, Direction::In) }
    }
}

impl Receiving<'_> {
    /// Takes what is there, up to what the call has room for. It is one piece of the stream, whoever else reads: between two looks nobody does.
    #[inline]
    fn take_all(&mut self, slot: &Slot) -> Result<Taken, Errno> {
        let local = local::get(self.index);
        let held = slot.inward.lock.hold();
        if self.wait.look()? {
            held.forget_handled();
        }
        self.fd = self.wait.number();
        recover_if_orphaned(slot, local);
        // A handler may have received what came next.
        if self.got > 0 && signals::have_interrupted() {
            return Ok(Taken::Enough);
        }
        loop {
            if self.got > 0
                && slot.look.load(Ordering::Relaxed)
                && unread_beside(self.fd, slot, local) == 0
                && has_error(self.fd)
            {
                return Ok(Taken::Enough);
            }
            let call = Call { flags: self.flags, has_some: self.got > 0 };
            // SAFETY: the pieces are valid (promised to `receive`).
            let step = unsafe { step(self.fd, self.index, slot, local, &self.pieces, call) };
            match step? {
                Step::Bytes(len, beyond) => {
                    self.got += len;
                    self.pieces.skip(len);
                    if self.enough(slot, beyond) {
                        return Ok(Taken::Enough);
                    }
                }
                Step::Later => return Ok(Taken::Enough),
                Step::End => return Ok(Taken::End),
                Step::Nothing => {
                    if self.waits(slot) {
                        self.wait.stay();
                    }
                    return Ok(Taken::TooLittle);
                }
            }
        }
    }

    /// Whether the call sleeps until there is more.
    fn waits(&self, slot: &Slot) -> bool {
        let for_all = self.flags & (libc::MSG_WAITALL | libc::MSG_PEEK) == libc::MSG_WAITALL;
        !slot.nonblocking.load(Ordering::Relaxed)
            && self.flags & libc::MSG_DONTWAIT == 0
            && (self.got == 0 || for_all)
    }

    /// Whether what was received ends the call. Where the stream goes on in a larger ring, or leaves the ring for TCP, the
    /// call goes on there, because to the program that is no boundary.
    fn enough(&self, slot: &Slot, beyond: Beyond) -> bool {
        if self.pieces.left() == 0 || self.flags & libc::MSG_PEEK != 0 {
            return true;
        }
        let crossing = match beyond {
            Beyond::Ring => return false,
            Beyond::Tcp => true,
            Beyond::Unknown => match slot.inward.way() {
                // Up to where it switches the kernel gives what it has, also to calls that it has had since before the lifting.
                Way::Tcp => false,
                Way::Ring => slot.look.load(Ordering::Relaxed),
                Way::Handover | Way::Lowered => true,
            },
        };
        if !crossing {
            return self.flags & libc::MSG_WAITALL == 0;
        }
        // Not for an end or an error, which the next call shall find; and urgent data, always on TCP, ends a read at its mark.
        let waits_for_all = self.flags & libc::MSG_WAITALL != 0;
        !waits_for_all && kernel::unread(self.fd) == 0 || kernel::at_mark(self.fd)
    }
}

/// One look. The inward lock is held.
unsafe fn step(
    fd: i32,
    index: u32,
    slot: &Slot,
    local: &Local,
    pieces: &Pieces<'_>,
    call: Call,
) -> Result<Step, Errno> {
    let Call { flags, has_some } = call;
    let Some(ends) = local.ends() else { return from_kernel(fd, pieces, flags, usize::MAX) };
    loop {
        match slot.inward.way() {
            Way::Ring => {
                let arrived = match slot.inward.stream.arrived(ends.mine) {
                    Ok(arrived) => arrived,
                    Err(Corrupt) => return Err(give_up(slot)),
                };
                if arrived.len > 0 && flags & libc::MSG_PEEK != 0 {
                    if arrived.frozen && repeat::leave_ring(fd, slot, ends) {
                        continue;
                    }
                    // SAFETY: as promised by the caller of `receive`.
                    match unsafe { peek(fd, slot, local, ends, pieces, flags) }? {
                        None => continue,
                        Some(len) => return Ok(Step::Bytes(len, Beyond::Unknown)),
                    }
                }
                if arrived.len > 0 {
                    // SAFETY: as promised by the caller of `receive`.
                    match unsafe { take(slot, local, ends, pieces, arrived.len, flags) }? {
                        None => continue,
                        Some(len) => {
                            board::received(index, len);
                            if arrived.frozen {
                                // What follows on TCP decides whether the call goes on there.
                                repeat::pass_over(fd, slot, ends);
                            }
                            let beyond = match arrived {
                                _ if len < arrived.len => Beyond::Unknown,
                                Arrived { more: true, .. } => Beyond::Ring,
                                Arrived { frozen: true, .. } => Beyond::Tcp,
                                _ => Beyond::Unknown,
                            };
                            return Ok(Step::Bytes(len, beyond));
                        }
                    }
                }
                if arrived.fin {
                    repeat::pass_over(fd, slot, ends);
                    ending::settle_peer(slot, ends);
                    return Ok(Step::End);
                }
                // After a freeze TCP tells how the stream goes on, and how it ends.
                if arrived.frozen {
                    slot.inward.set_way(Way::Lowered);
                    slot.look.store(true, Ordering::Release);
                    continue;
                }
                // The kernel was told too, and knows whether there is an error to report first.
                if slot.deaf.load(Ordering::Relaxed) {
                    half_close::refuse_by_now(fd, slot, ends);
                    return from_kernel(fd, pieces, flags, usize::MAX);
                }
                // A peer that has closed without an end in the ring has reset the connection.
                let told = slot.look.load(Ordering::Acquire) || ends.mine.told(CLOSED);
                if !told && !due(slot) {
                    return Ok(Step::Nothing);
                }
                if cork::end_lets_go(fd, ends) {
                    continue;
                }
                // A peer that resets says so here after it has: the error is there to be seen.
                if has_some && kernel::unread(fd) == 0 && has_error(fd) {
                    return Ok(Step::Later);
                }
                // TCP has something to say: the end of a peer that could not say it in the ring, an error, or (after a
                // freeze that happens just now, or by a call that nobody saw) bytes.
                let step = from_kernel(fd, pieces, flags, usize::MAX);
                if slot.inward.stream.stirred(ends.mine)
                    && matches!(step, Ok(Step::End | Step::Nothing))
                {
                    continue;
                }
                return step;
            }
            Way::Tcp => match ends.mine.switch_offset() {
                None => {
                    if ends.mine.tail.load(Ordering::Acquire) & FROZEN != 0 {
                        slot.inward.set_way(Way::Lowered);
                        continue;
                    }
                    return from_kernel(fd, pieces, flags, usize::MAX);
                }
                Some(offset) => {
                    let owed = owed_before_ring(fd, index, slot, offset)?;
                    if owed > 0 {
                        let step = from_kernel(fd, pieces, flags, owed as usize)?;
                        let Step::Bytes(len, _) = step else { return Ok(step) };
                        if (len as u64) < owed || slot.inward.stream.unread(ends.mine) == 0 {
                            return Ok(step);
                        }
                        if flags & libc::MSG_PEEK == 0 {
                            return Ok(Step::Bytes(len, Beyond::Ring));
                        }
                        let mut rest = *pieces;
                        rest.skip(len);
                        // SAFETY: as promised by the caller of `receive`.
                        match unsafe { peek(fd, slot, local, ends, &rest, flags) }? {
                            None => continue,
                            Some(more) => return Ok(Step::Bytes(len + more, Beyond::Unknown)),
                        }
                    }
                }
            },
            Way::Handover | Way::Lowered => {
                return match repeat::pass_over(fd, slot, ends) {
                    Passed::All => from_kernel(fd, pieces, flags, usize::MAX),
                    Passed::Later => Ok(Step::Nothing),
                };
            }
        }
    }
}

/// Once in a while a non-blocking reader of an empty ring asks TCP, even if nothing told it to.
pub(crate) fn due(slot: &Slot) -> bool {
    let calls = slot.calls.load(Ordering::Relaxed).wrapping_add(1);
    slot.calls.store(calls, Ordering::Relaxed);
    calls.is_multiple_of(256)
}

/// Takes bytes out of the ring: how many; none if a signal handler on this thread was faster.
unsafe fn take(
    slot: &Slot,
    local: &Local,
    ends: Ends,
    pieces: &Pieces<'_>,
    arrived: usize,
    flags: i32,
) -> Result<Option<usize>, Errno> {
    let stream = &slot.inward.stream;
    slot.inward.loan.in_the_way()?;
    let (head, position, tier) = (stream.head(), stream.position(), stream.tier());
    let len = arrived.min(pieces.left());
    let Some(ring) = local.ring_in(tier) else { return Err(Errno(libc::ENOMEM)) };
    let next = if flags & libc::MSG_TRUNC != 0 {
        ring.advance(position, len)
    } else {
        // SAFETY: the pieces are valid (caller of `receive`); `arrived` is at most the capacity.
        unsafe { pieces.fill_from(ring, position, len) }
    };
    if stream.head() != head || slot.inward.loan.stands() {
        return Ok(None);
    }
    give_back(slot, local, ends, arrived, (len, next));
    Ok(Some(len))
}

/// Passes over `len` of the `arrived` bytes of the current ring; false: it cannot be mapped. The inward lock is held.
pub(crate) fn pass(slot: &Slot, local: &Local, ends: Ends, arrived: usize, len: usize) -> bool {
    let stream = &slot.inward.stream;
    let Some(ring) = local.ring_in(stream.tier()) else { return false };
    let next = ring.advance(stream.position(), len);
    give_back(slot, local, ends, arrived, (len, next));
    true
}

/// Gives the first bytes of those that have `arrived` back to the peer: how many, and where the next one lies.
#[inline]
fn give_back(slot: &Slot, local: &Local, ends: Ends, arrived: usize, (len, next): (usize, usize)) {
    slot.inward.stream.consume(ends.theirs, len, next);
    // A sleeping writer is woken when half the ring is free, not for every byte.
    if arrived - len <= slot.inward.stream.tier().window() / 2
        && take_announcement(&ends.mine.writer_waiting)
    {
        local.ring_peer();
    }
}

/// Finishes what a member of the family was about that was killed with the inward lock, which is held: between what it took and the
/// word of it to a peer that waits for room, say.
#[inline]
pub(crate) fn recover_if_orphaned(slot: &Slot, local: &Local) {
    if slot.inward.lock.is_orphaned()
        && let Some(ends) = local.ends()
    {
        slot.inward.stream.recover(ends.mine, ends.theirs);
        if take_announcement(&ends.mine.writer_waiting) {
            local.ring_peer();
        }
    }
}

/// Copies what has arrived and leaves it there: how many; none if a signal handler on this thread took some of it.
#[cold]
unsafe fn peek(
    fd: i32,
    slot: &Slot,
    local: &Local,
    ends: Ends,
    pieces: &Pieces<'_>,
    flags: i32,
) -> Result<Option<usize>, Errno> {
    let stream = &slot.inward.stream;
    let (head, mut rest, mut got) = (stream.head(), *pieces, 0);
    // Looked at before the bytes: what was frozen then holds all that the ring ever will.
    let frozen = stream.frozen(ends.mine);
    for piece in stream.unread_pieces(ends.mine) {
        let len = piece.len.min(rest.left());
        let Some(ring) = local.ring_in(piece.tier) else { return Err(Errno(libc::ENOMEM)) };
        if flags & libc::MSG_TRUNC == 0 {
            // SAFETY: the pieces are valid (caller of `receive`); the piece is at most the capacity.
            unsafe { rest.fill_from(ring, piece.position, len) };
        }
        rest.skip(len);
        got += len;
    }
    // Not for an error, which the next call shall find.
    let follows = frozen && rest.left() > 0 && repeat::repeat(slot, ends).is_none();
    if follows && kernel::unread(fd) > 0 {
        let flags = flags & !libc::MSG_WAITALL | libc::MSG_DONTWAIT;
        got += rest.limited(usize::MAX, |list| kernel::receive(fd, list, flags)).unwrap_or(0);
    }
    Ok((stream.head() == head).then_some(got))
}

fn from_kernel(fd: i32, pieces: &Pieces<'_>, flags: i32, most: usize) -> Result<Step, Errno> {
    let flags = flags & !libc::MSG_WAITALL | libc::MSG_DONTWAIT;
    match pieces.limited(most, |list| kernel::receive(fd, list, flags)) {
        Ok(0) => Ok(Step::End),
        Ok(len) => Ok(Step::Bytes(len.min(pieces.left()), Beyond::Unknown)),
        Err(Errno::AGAIN) => Ok(Step::Nothing),
        Err(error) => Err(error),
    }
}

/// The peer broke the rules: its stream ends here, as after a reset.
pub(crate) fn give_up(slot: &Slot) -> Errno {
    slot.set_why(Why::Broken);
    slot.inward.passed.store(Inward::NOTHING_REPEATED, Ordering::Relaxed);
    slot.inward.set_way(Way::Lowered);
    slot.look.store(true, Ordering::Release);
    Errno(libc::ECONNRESET)
}

/// Whether the next byte comes through the ring; takes the step from TCP to it where that is due. The inward lock is held.
pub(crate) fn reached_ring(fd: i32, index: u32, slot: &Slot, ends: Ends) -> Result<bool, Errno> {
    match (slot.inward.way(), ends.mine.switch_offset()) {
        (Way::Ring, _) => Ok(true),
        (Way::Tcp, Some(offset)) => Ok(owed_before_ring(fd, index, slot, offset)? == 0),
        _ => Ok(false),
    }
}

/// How many bytes TCP still owes before the ring, which begins behind `offset`. Where it owes none, the direction is in the ring
/// from now on.
fn owed_before_ring(fd: i32, index: u32, slot: &Slot, offset: u64) -> Result<u64, Errno> {
    let owed = tcp::owed(fd, offset).ok_or_else(|| give_up(slot))?;
    if owed == 0 {
        slot.inward.set_way(Way::Ring);
        board::update(index, slot);
    }
    Ok(owed)
}

/// Whether what stands in the ring comes next, but for bytes that have arrived on TCP. Until the direction has switched TCP
/// may still be on its way with some: the peer's kernel holds small ones back until earlier ones are acknowledged.
pub(crate) fn reaches_ring(fd: i32, slot: &Slot, ends: Ends) -> bool {
    match slot.inward.way() {
        Way::Ring => true,
        Way::Tcp => ends.mine.switch_offset().is_some_and(|offset| tcp::has_arrived(fd, offset)),
        Way::Handover | Way::Lowered => false,
    }
}

/// Bytes that could be read from `fd` at once, if the layer has to say (`FIONREAD`).
pub fn unread(fd: i32) -> Option<usize> {
    let index = descriptor::connection_called(fd)?;
    let slot = slot::get(index);
    if slot.phase() != Phase::Attached {
        return None;
    }
    let _held = slot.inward.lock.hold();
    let local = local::get(index);
    local.ends().map(|_| unread_beside(fd, slot, local))
}

/// As [`unread`], with the inward lock held.
fn unread_beside(fd: i32, slot: &Slot, local: &Local) -> usize {
    let Some(ends) = local.ends() else { return kernel::unread(fd) };
    // Asked first, as between the two more may come.
    let reached = reaches_ring(fd, slot, ends);
    let ring = if reached { slot.inward.stream.unread(ends.mine) } else { 0 };
    let twice =
        if reached || slot.inward.way() == Way::Lowered { repeat::twice(slot, ends) } else { 0 };
    ring + kernel::unread(fd).saturating_sub(twice)
}

/// The option, and the kind of control message that it asks for: how many bytes are left to read. Not in the libc crate.
pub const TCP_INQ: i32 = 36;

pub(crate) fn learn_whether_left_is_told(fd: i32, slot: &Slot) {
    let on = kernel::option::<i32>(fd, libc::IPPROTO_TCP, TCP_INQ);
    slot.tells_left.store(on == Some(1), Ordering::Relaxed);
}

/// The program has changed `TCP_INQ` of `fd`.
pub(crate) fn left_is_told_or_not(fd: i32) {
    if let Some(index) = descriptor::connection(fd) {
        learn_whether_left_is_told(fd, slot::get(index));
    }
}

/// What a call that has received from `fd` tells beside the bytes, if the program has asked for it (`TCP_INQ`): how many more there are, and one more
/// once the end has come.
pub fn left(fd: i32) -> Option<usize> {
    let slot = slot::get(descriptor::connection_called(fd)?);
    if !slot.tells_left.load(Ordering::Relaxed) {
        return None;
    }
    let left = unread(fd).unwrap_or_else(|| kernel::unread(fd));
    Some(left + usize::from(has_ended(fd, slot)))
}

/// Whether the peer's end has come, perhaps after bytes that are still to be read.
fn has_ended(fd: i32, slot: &Slot) -> bool {
    let told = descriptor::connection(fd)
        .and_then(|index| local::get(index).pin())
        .is_some_and(|pin| epoll::ended(fd, slot, pin.ends()) != 0);
    told || !slot.deaf.load(Ordering::Relaxed)
        && kernel::pending(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0
}

/// Whether receiving from `fd` would give nothing but an error: a call that has received something leaves that to the next.
#[cold]
pub fn only_error_left(fd: i32) -> bool {
    unread(fd).unwrap_or_else(|| kernel::unread(fd)) == 0 && has_error(fd)
}

pub(crate) fn has_error(fd: i32) -> bool {
    kernel::pending(fd, 0) & libc::POLLERR != 0
}

/// Whether the next byte of `fd` is the urgent mark, where the layer knows that it is not.
pub fn at_mark(fd: i32) -> Option<bool> {
    let index = descriptor::connection_called(fd)?;
    let slot = slot::get(index);
    if slot.phase() != Phase::Attached {
        return None;
    }
    let _held = slot.inward.lock.hold();
    let ends = local::get(index).ends()?;
    let before = slot.inward.way() == Way::Ring && slot.inward.stream.unread(ends.mine) > 0;
    before.then_some(false)
}
