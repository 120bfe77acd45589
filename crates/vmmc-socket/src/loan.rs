//! Space of the outgoing ring and bytes of the incoming one, on loan to the program: the paper's pointer-based transfers
//! (its section 4.3). Nothing is copied on either side.
//!
//! *Reserved* space begins where the stream's next byte goes; what is *borrowed* are the next bytes to be read. A direction has
//! one loan at a time, which ends when it is given back: space by [`commit`], which makes its first bytes a part of
//! the stream, bytes by [`release`], which counts the first of them as read. Until then everybody else's call that would move
//! the same direction on is told that it is busy, so a loan never has to be looked for: it lies where it was.
//!
//! A loan belongs to a process, not to its family. Whoever finds one in the way whose process is gone takes it as ended.
//!
//! Lowering does not wait for loans, and takes nothing away: the memory stays mapped until the connection is closed. Reserved
//! space is then committed to TCP out of the ring. Borrowed bytes were unread, and are on TCP again, where releasing passes
//! over them.

use std::sync::atomic::{AtomicU32, Ordering};

use vmmc::stream::Ring;

use crate::kernel::{self, Errno, Outcome};
use crate::local::{self, Ends, Local};
use crate::receive::{self, Receiving};
use crate::route::{Route, Sleep, Transfer};
use crate::slot::{self, Phase, Slot, Way};
use crate::transmit::{self, Sending};
use crate::wait::{Direction, Wait};
use crate::{board, cork, descriptor, ending, half_close, layer, lift, repeat, shrink};

/// What a direction has on loan. Changed with the direction's lock held.
#[derive(Debug, Default)]
pub(crate) struct Loan {
    /// The process that has it; 0: there is none.
    to: AtomicU32,
    len: AtomicU32,
    /// Where reserved space begins in its ring.
    position: AtomicU32,
}

impl Loan {
    /// Whether there is one.
    #[inline]
    pub(crate) fn stands(&self) -> bool {
        self.to.load(Ordering::Relaxed) != 0
    }

    /// The error of a call that would move the direction on, if there is a loan.
    #[inline]
    pub(crate) fn in_the_way(&self) -> Result<(), Errno> {
        if self.stands() { self.look_after() } else { Ok(()) }
    }

    #[cold]
    fn look_after(&self) -> Result<(), Errno> {
        let to = self.to.load(Ordering::Relaxed);
        if to == layer::process_number() || kernel::exists(to) {
            return Err(Errno(libc::EBUSY));
        }
        self.end();
        Ok(())
    }

    /// Takes the loan for this process, of nothing so far: from now on not even a signal handler moves the direction on.
    fn claim(&self) -> Result<(), Errno> {
        self.in_the_way()?;
        self.len.store(0, Ordering::Relaxed);
        self.to.store(layer::process_number(), Ordering::Relaxed);
        Ok(())
    }

    fn is_mine(&self) -> bool {
        self.to.load(Ordering::Relaxed) == layer::process_number()
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }

    /// Ends it, whoever has it.
    pub(crate) fn end(&self) {
        self.to.store(0, Ordering::Relaxed);
    }

    /// Of `len` bytes that are given back: an error if this process has not so much.
    fn covers(&self, len: usize) -> Result<(), Errno> {
        if self.is_mine() && len <= self.len() { Ok(()) } else { Err(Errno(libc::EINVAL)) }
    }

    /// The first `len` bytes of it are over.
    fn pass(&self, len: usize, position: usize) {
        self.position.store(position as u32, Ordering::Relaxed);
        self.len.store((self.len() - len) as u32, Ordering::Relaxed);
    }
}

/// The largest loan that a call may insist on: half of the largest ring, so that neither side waits for what the other
/// cannot give.
const LARGEST: usize = 1 << 20;

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Bytes to wait for; at least one.
    pub least: usize,
    /// No more than so many.
    pub most: usize,
    /// Do not wait, whatever the descriptor's mode.
    pub at_once: bool,
}

/// Memory on loan, in stream order. Three rings can hold unread bytes, and only those of the first can run over its seam.
#[derive(Debug)]
pub struct Lent {
    segments: [libc::iovec; Self::SEGMENTS],
    count: usize,
    len: usize,
}

impl Lent {
    /// So many segments at the most.
    pub const SEGMENTS: usize = 4;

    /// Nothing yet.
    pub const fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { segments: [none; Self::SEGMENTS], count: 0, len: 0 }
    }

    /// The segments.
    pub fn segments(&self) -> &[libc::iovec] {
        &self.segments[..self.count]
    }

    /// Bytes in all segments.
    pub fn total(&self) -> usize {
        self.len
    }

    fn add(&mut self, ring: Ring, mut position: usize, mut len: usize) {
        while len > 0 && self.count < Self::SEGMENTS {
            let (base, part) = ring.span(position, len);
            self.segments[self.count] = libc::iovec { iov_base: base.cast(), iov_len: part };
            self.count += 1;
            self.len += part;
            position = ring.advance(position, part);
            len -= part;
        }
    }
}

impl Default for Lent {
    fn default() -> Self {
        Self::new()
    }
}

/// A call that asks for a loan.
#[derive(Debug)]
pub struct Lending<'a> {
    fd: i32,
    index: u32,
    direction: Direction,
    terms: Terms,
    lent: &'a mut Lent,
    wait: Wait,
}

/// Whether the layer could lend anything of `fd`.
#[inline]
pub fn lends(fd: i32) -> bool {
    descriptor::connection_called(fd)
        .is_some_and(|index| slot::get(index).phase() == Phase::Attached)
}

/// Begins to reserve space for what is sent on `fd`. The call gives the bytes in `lent`, or goes to the kernel where the
/// connection does not send through a ring.
pub fn reserve(fd: i32, terms: Terms, lent: &mut Lent) -> Option<Lending<'_>> {
    begin(fd, Direction::Out, terms, lent)
}

/// Begins to borrow what has arrived on `fd`; otherwise as [`reserve`]. No bytes at all: the stream has ended.
pub fn borrow(fd: i32, terms: Terms, lent: &mut Lent) -> Option<Lending<'_>> {
    begin(fd, Direction::In, terms, lent)
}

fn begin(fd: i32, direction: Direction, terms: Terms, lent: &mut Lent) -> Option<Lending<'_>> {
    let index = descriptor::connection_called(fd)?;
    let (slot, local) = (slot::get(index), local::get(index));
    if slot.phase() != Phase::Attached {
        return None;
    }
    if !local.held.load(Ordering::Relaxed) {
        lift::hold(fd, slot, local);
    }
    Some(Lending { fd, index, direction, terms, lent, wait: Wait::new(fd, index, direction) })
}

/// What one look gave.
enum Step {
    Lent,
    Nothing,
    /// The bytes of this direction do not go through the ring now.
    Elsewhere,
}

impl Transfer for Lending<'_> {
    #[inline]
    fn go(&mut self) -> Route {
        if self.terms.least == 0 || self.terms.most < self.terms.least {
            return Route::Done(Err(Errno(libc::EINVAL)));
        }
        if self.terms.least > LARGEST {
            return Route::Done(Err(Errno(libc::EMSGSIZE)));
        }
        let (slot, local) = (slot::get(self.index), local::get(self.index));
        loop {
            let waits = !self.terms.at_once && !slot.nonblocking.load(Ordering::Relaxed);
            match self.lend(slot, local, waits) {
                Ok(Step::Lent) => return Route::Done(Ok(0)),
                Ok(Step::Elsewhere) => return Route::Kernel(None),
                Ok(Step::Nothing) => {
                    if !waits {
                        return Route::Done(Err(Errno::AGAIN));
                    }
                    match self.wait.sleep() {
                        Ok(None) => {}
                        Ok(Some(sleep)) => return Route::Sleep(sleep),
                        Err(error) => return Route::Done(Err(error)),
                    }
                }
                Err(error) => return Route::Done(Err(error)),
            }
        }
    }

    fn woken(&mut self, sleep: &Sleep, outcome: Outcome) -> Option<Outcome> {
        let woken = self.wait.woken(sleep, outcome, 0);
        woken.err().map(Err)
    }

    fn leave(&mut self) {
        self.wait.leave();
    }
}

impl Lending<'_> {
    /// One look; without anything to lend the call will look again if it `waits`.
    fn lend(&mut self, slot: &Slot, local: &Local, waits: bool) -> Result<Step, Errno> {
        let held = self.direction.lock(slot).hold();
        if self.wait.look()? {
            held.forget_handled();
        }
        self.fd = self.wait.number();
        let step = match self.direction {
            Direction::Out => self.lend_space(slot, local),
            Direction::In => self.lend_bytes(slot, local),
        };
        if waits && matches!(step, Ok(Step::Nothing)) {
            self.wait.stay();
        }
        step
    }

    fn lend_space(&mut self, slot: &Slot, local: &Local) -> Result<Step, Errno> {
        let Some(ends) = local.ends() else { return Ok(Step::Elsewhere) };
        let (stream, loan) = (&slot.outward.stream, &slot.outward.loan);
        loan.in_the_way()?;
        let way = transmit::prepare(self.fd, self.index, slot, local, ends);
        if slot.finished.load(Ordering::Relaxed) {
            return Err(half_close::after_end(self.fd));
        }
        if way != Way::Ring {
            return Ok(Step::Elsewhere);
        }
        let Terms { least, most, .. } = self.terms;
        shrink::before_send(slot, local, ends, most);
        loan.claim()?;
        let look = || stream.room(ends.mine, most);
        let mut room = look();
        let too_small = |room: usize| {
            let window = stream.window();
            room < least || room < most && (room < window / 2 || most > window)
        };
        while too_small(room) && stream.grow(ends.theirs) {
            room = look();
            shrink::grown(local);
        }
        if least > stream.window() {
            // Who reserves so much wants it, whatever the send buffer.
            stream.set_bound(None);
            room = look();
        }
        let ring = local.ring_out(stream.tier());
        let (Some(ring), true) = (ring, room >= least) else {
            loan.end();
            transmit::collide(slot, ends);
            return if ring.is_some() { Ok(Step::Nothing) } else { Err(Errno(libc::ENOMEM)) };
        };
        let len = room.min(most);
        self.lent.add(ring, stream.position(), len);
        loan.position.store(stream.position() as u32, Ordering::Relaxed);
        loan.len.store(len as u32, Ordering::Relaxed);
        Ok(Step::Lent)
    }

    fn lend_bytes(&mut self, slot: &Slot, local: &Local) -> Result<Step, Errno> {
        receive::recover_if_orphaned(slot, local);
        let Some(ends) = local.ends() else { return Ok(Step::Elsewhere) };
        slot.inward.loan.claim()?;
        let step = self.lend_claimed(slot, local, ends);
        if !matches!(step, Ok(Step::Lent)) || self.lent.total() == 0 {
            slot.inward.loan.end();
        }
        step
    }

    /// As [`receive::receive`] would, but that nothing is copied and nothing taken.
    fn lend_claimed(&mut self, slot: &Slot, local: &Local, ends: Ends) -> Result<Step, Errno> {
        let stream = &slot.inward.stream;
        loop {
            if !receive::reached_ring(self.fd, self.index, slot, ends)? {
                return Ok(Step::Elsewhere);
            }
            let Ok(arrived) = stream.arrived(ends.mine) else {
                return Err(receive::give_up(slot));
            };
            let unread = stream.unread(ends.mine);
            let deaf = slot.deaf.load(Ordering::Relaxed);
            if unread == 0 && arrived.fin {
                repeat::pass_over(self.fd, slot, ends);
                ending::settle_peer(slot, ends);
                return Ok(Step::Lent);
            }
            if unread == 0 && (arrived.frozen || deaf) {
                return Ok(Step::Elsewhere);
            }
            if unread >= self.terms.least || arrived.fin || arrived.frozen || deaf {
                return self.lend_pieces(slot, local, ends);
            }
            if slot.look.load(Ordering::Acquire) || receive::due(slot) {
                if cork::end_lets_go(self.fd, ends) {
                    continue;
                }
                // TCP may have an end or an error to tell, which comes after what is here; unless there is more by now.
                let told = kernel::pending(self.fd, libc::POLLIN | libc::POLLRDHUP) != 0;
                if stream.stirred_beyond(ends.mine, unread) {
                    continue;
                }
                match (told, unread) {
                    (true, 0) => return Ok(Step::Elsewhere),
                    (true, _) => return self.lend_pieces(slot, local, ends),
                    (false, _) => {}
                }
            }
            self.wait.for_more_than(unread);
            return Ok(Step::Nothing);
        }
    }

    fn lend_pieces(&mut self, slot: &Slot, local: &Local, ends: Ends) -> Result<Step, Errno> {
        for piece in slot.inward.stream.unread_pieces(ends.mine) {
            let len = piece.len.min(self.terms.most - self.lent.total());
            let Some(ring) = local.ring_in(piece.tier) else { return Err(Errno(libc::ENOMEM)) };
            self.lent.add(ring, piece.position, len);
        }
        if self.lent.total() == 0 {
            return Err(receive::give_up(slot));
        }
        slot.inward.loan.len.store(self.lent.total() as u32, Ordering::Relaxed);
        Ok(Step::Lent)
    }
}

/// How a loan is given back.
#[derive(Debug)]
pub enum Return<T> {
    /// It is: how many bytes were, or why not.
    Done(Outcome),
    /// The connection was lowered meanwhile: this remains to be done.
    OverTcp(T),
    /// The layer has lent nothing.
    NotOurs,
}

/// Gives reserved space back; its first `len` bytes were filled, and are sent.
pub fn commit(fd: i32, len: usize) -> Return<Sending<'static>> {
    let Some(index) = descriptor::connection_called(fd) else { return Return::NotOurs };
    let (slot, local) = (slot::get(index), local::get(index));
    let _held = slot.outward.lock.hold();
    let Some(ends) = local.ends() else { return Return::NotOurs };
    let loan = &slot.outward.loan;
    if let Some(early) = begin_return(slot, loan, len) {
        return early;
    }
    let way = transmit::prepare(fd, index, slot, local, ends);
    if slot.finished.load(Ordering::Relaxed) {
        loan.end();
        return Return::Done(Err(half_close::after_end(fd)));
    }
    let (stream, corks) = (&slot.outward.stream, slot.corked.load(Ordering::Relaxed));
    if way == Way::Ring
        && let Some(ring) = local.ring_out(stream.tier())
    {
        let next = ring.advance(stream.position(), len);
        if transmit::publish(index, slot, local, ends, (len, next), corks) {
            loan.end();
            return Return::Done(Ok(len));
        }
    }
    Return::OverTcp(Sending::lent(fd, index, len))
}

/// Gives borrowed bytes back; the first of them, as many as `read` is long, were read. No memory behind `read` is touched.
pub fn release(fd: i32, read: &libc::iovec) -> Return<Receiving<'_>> {
    let Some(index) = descriptor::connection_called(fd) else { return Return::NotOurs };
    let (slot, local) = (slot::get(index), local::get(index));
    let _held = slot.inward.lock.hold();
    let Some(ends) = local.ends() else { return Return::NotOurs };
    let (loan, len) = (&slot.inward.loan, read.iov_len);
    if let Some(early) = begin_return(slot, loan, len) {
        return early;
    }
    let mut left = len;
    while left > 0 && slot.inward.way() == Way::Ring {
        let arrived = match slot.inward.stream.arrived(ends.mine) {
            Ok(arrived) if arrived.len > 0 => arrived,
            // The peer has taken back what it had said.
            _ => {
                loan.end();
                return Return::Done(Err(receive::give_up(slot)));
            }
        };
        let part = left.min(arrived.len);
        if !receive::pass(slot, local, ends, arrived.len, part) {
            loan.end();
            return Return::Done(Err(Errno(libc::ENOMEM)));
        }
        board::received(index, part);
        left -= part;
        if arrived.frozen {
            repeat::pass_over(fd, slot, ends);
        }
    }
    loan.end();
    if left == 0 {
        Return::Done(Ok(len))
    } else {
        Return::OverTcp(Receiving::nowhere(fd, index, read))
    }
}

/// What giving back `len` bytes comes to, if that is known without a look at the stream.
fn begin_return<T>(slot: &Slot, loan: &Loan, len: usize) -> Option<Return<T>> {
    match loan.covers(len) {
        Err(_) if !loan.stands() && slot.phase() != Phase::Attached => Some(Return::NotOurs),
        Err(error) => Some(Return::Done(Err(error))),
        Ok(()) if len == 0 => {
            loan.end();
            Some(Return::Done(Ok(0)))
        }
        Ok(()) => None,
    }
}

/// Sends what was committed over TCP, out of the ring. The outward lock is held.
#[cold]
pub(crate) fn send_lent(fd: i32, slot: &Slot, local: &Local, len: usize) -> Outcome {
    let loan = &slot.outward.loan;
    loan.covers(len)?;
    let Some(ring) = local.ring_out(slot.outward.stream.tier()) else {
        return Err(Errno(libc::ENOMEM));
    };
    let position = loan.position.load(Ordering::Relaxed) as usize;
    let mut lent = Lent::new();
    lent.add(ring, position, len);
    let sent = kernel::send(fd, lent.segments(), libc::MSG_DONTWAIT);
    match sent {
        Ok(sent) => loan.pass(sent, ring.advance(position, sent)),
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(_) => loan.end(),
    }
    if sent == Ok(len) {
        loan.end();
    }
    sent
}

/// This process gives up its hold of the connection: what it had on loan is nobody's. Whether it had anything.
pub(crate) fn abandon(slot: &Slot) -> bool {
    let loans = [(&slot.inward.lock, &slot.inward.loan), (&slot.outward.lock, &slot.outward.loan)];
    let mut any = false;
    for (lock, loan) in loans.into_iter().filter(|(_, loan)| loan.stands()) {
        let _held = lock.hold();
        if loan.is_mine() {
            loan.end();
            any = true;
        }
    }
    any
}
