//! Sending on a tracked connection.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmmc::stream::{
    CLOSED, FIN, FROZEN, HAND_YOURSELF, HANDED, Publish, Ring, Tier, take_announcement,
};

use crate::busy::Stay;
use crate::kernel::{self, Errno, Outcome};
use crate::local::{self, Ends, Local};
use crate::message::{Pieces, Room};
use crate::route::{InFlight, Route, Sleep, Transfer, part};
use crate::slot::{self, Phase, Slot, Way, Why};
use crate::wait::{self, Direction, Wait};
use crate::{
    board, cork, descriptor, ending, family, half_close, layer, lift, loan, lower, policy, receive,
    shrink, signals, tcp, thread,
};

/// Flags with which the layer can send; others lower the connection.
const CARRIED: i32 =
    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE | libc::MSG_EOR | libc::MSG_CONFIRM;

/// Bytes after which the reader is told, so that both sides of a large transfer work at the same time.
const CHUNK: usize = 64 << 10;

/// Where the bytes to send come from.
#[derive(Debug)]
enum Source<'a> {
    Memory(Pieces<'a>),
    /// A file, from an offset on; that many bytes.
    File {
        file: i32,
        at: i64,
        left: usize,
    },
    /// Space of the ring that was on loan, and is filled: so many bytes.
    Lent {
        left: usize,
    },
}

/// A call that sends.
#[derive(Debug)]
pub struct Sending<'a> {
    fd: i32,
    index: u32,
    source: Source<'a>,
    flags: i32,
    sent: usize,
    wait: Wait,
    /// A call that does not wait has not yet given a peer that lowers the connection a moment to do so.
    patience: bool,
}

fn begin(fd: i32, flags: i32) -> Result<u32, Option<InFlight>> {
    let Some(index) = descriptor::connection_called(fd) else { return Err(None) };
    let slot = slot::get(index);
    // What comes behind an urgent byte must not go past the kernel: a read that began before the mark would go on behind it.
    let urgent = flags & libc::MSG_OOB != 0 && slot.phase() != Phase::Stay;
    if slot.phase() != Phase::Attached
        && !urgent
        && !slot.mute.load(Ordering::Acquire)
        && let Some(call) = InFlight::begin(fd, index, slot, Stay::Moving(Direction::Out))
    {
        family::outlive_no_goodbye();
        return Err(Some(call));
    }
    if flags & !CARRIED != 0 {
        lower::lower(fd, index, Why::Call);
        // Behind what the peer lowers unread the layer sends it, when that is on TCP.
        if slot.phase() != Phase::Attached || slot.outward.way() != Way::Handover {
            return Err(None);
        }
    }
    let local = local::get(index);
    if !local.held.load(Ordering::Relaxed) {
        lift::hold(fd, slot, local);
    }
    // Who does nothing but send learns in no other way that the peer has died.
    if layer::has_mail() {
        lift::progress();
    }
    Ok(index)
}

/// Begins to send `pieces` on `fd`, as `sendmsg` with `flags` would (but never raises SIGPIPE: the caller does on EPIPE);
/// `Err`: the kernel shall do it. There is `room` for a copy of the list where it is the program's own.
///
/// # Safety
/// The pieces are valid for reading, until the call is over.
#[inline]
pub unsafe fn send<'a>(
    fd: i32,
    pieces: &'a [libc::iovec],
    room: Option<&'a Room>,
    flags: i32,
) -> Result<Sending<'a>, Option<InFlight>> {
    let index = begin(fd, flags)?;
    let Some(pieces) = Pieces::new(pieces, room) else { return Err(None) };
    Ok(Sending {
        fd,
        index,
        source: Source::Memory(pieces),
        flags,
        sent: 0,
        wait: Wait::new(fd, index, Direction::Out),
        patience: true,
    })
}

/// Begins to send up to `len` bytes of `file` from `at` on: they are read straight into the peer's ring. `Err`: the
/// kernel shall do it.
pub fn send_file(
    fd: i32,
    file: i32,
    at: i64,
    len: usize,
) -> Result<Sending<'static>, Option<InFlight>> {
    let index = begin(fd, 0)?;
    let slot = slot::get(index);
    {
        let _held = slot.outward.lock.hold();
        let ends = local::get(index).ends();
        let on_tcp = ends.is_none_or(|ends| {
            !matches!(prepare(fd, index, slot, local::get(index), ends), Way::Ring | Way::Handover)
        });
        if on_tcp && !slot.finished.load(Ordering::Relaxed) {
            return Err(Some(InFlight::sending(fd, index, slot)));
        }
    }
    let source = Source::File { file, at, left: len };
    let wait = Wait::new(fd, index, Direction::Out);
    Ok(Sending { fd, index, source, flags: 0, sent: 0, wait, patience: true })
}

enum Step {
    Sent(usize),
    /// The source has no more.
    End,
    /// The connection fell back to TCP, and a file goes there without the layer.
    Kernel(InFlight),
    Nothing,
}

impl Transfer for Sending<'_> {
    #[inline]
    fn go(&mut self) -> Route {
        let slot = slot::get(self.index);
        loop {
            let step = self.give_all(slot);
            if slot.outward.way() == Way::Lowered {
                lower::retire(self.fd, self.index);
            }
            match step {
                Ok(Step::Sent(_)) if self.source.left() > 0 => self.source.keep(),
                Ok(Step::Sent(_) | Step::End) => return Route::Done(Ok(self.sent)),
                Ok(Step::Kernel(call)) => return Route::Kernel(Some(call)),
                Ok(Step::Nothing) => {
                    if !self.waits(slot) {
                        if slot.outward.way() == Way::Handover
                            && std::mem::take(&mut self.patience)
                            && lower::await_handover(self.index)
                        {
                            continue;
                        }
                        return Route::Done(part(self.sent, Errno::AGAIN));
                    }
                    self.source.keep();
                    match self.wait.sleep() {
                        Ok(None) => {}
                        Ok(Some(sleep)) => return Route::Sleep(sleep),
                        Err(error) => return Route::Done(part(self.sent, error)),
                    }
                }
                Err(_) if self.wait.is_misled() => return Route::Anew,
                Err(error) => {
                    family::outlive_no_goodbye();
                    return Route::Done(part(self.sent, error));
                }
            }
        }
    }

    fn woken(&mut self, sleep: &Sleep, outcome: Outcome) -> Option<Outcome> {
        let woken = self.wait.woken(sleep, outcome, self.sent);
        woken.err().map(|error| part(self.sent, error))
    }

    fn leave(&mut self) {
        self.wait.leave();
    }
}

impl Source<'_> {
    fn left(&self) -> usize {
        match self {
            Self::Memory(pieces) => pieces.left(),
            Self::File { left, .. } | Self::Lent { left } => *left,
        }
    }

    /// The call goes on later.
    fn keep(&mut self) {
        if let Self::Memory(pieces) = self {
            pieces.keep();
        }
    }

    /// Moves on by `len`; how many are left.
    fn pass(&mut self, len: usize) -> usize {
        match self {
            Self::Memory(pieces) => pieces.skip(len),
            Self::File { at, left, .. } => {
                *at += len as i64;
                *left -= len;
            }
            Self::Lent { left } => *left -= len,
        }
        self.left()
    }

    /// Puts up to `len` bytes into the ring; how many, and where the next one goes.
    fn pour(&self, ring: Ring, position: usize, len: usize) -> Result<(usize, usize), Errno> {
        match self {
            // SAFETY: the pieces are valid (promised to `send`); `len` is at most what is left and what fits.
            Self::Memory(pieces) => Ok((len, unsafe { pieces.pour_into(ring, position, len) })),
            Self::File { file, at, .. } => {
                // Over the seam too: a reader gets whole what was sent in one call.
                let mut got = 0;
                while got < len {
                    let (to, part) = ring.span(ring.advance(position, got), len - got);
                    match kernel::read_at(*file, to, part, *at + got as i64) {
                        Ok(0) => break,
                        Ok(read) => got += read,
                        Err(_) if got > 0 => break,
                        // To `sendfile` that is no file that it can do.
                        Err(Errno(libc::EISDIR)) => return Err(Errno(libc::EINVAL)),
                        Err(error) => return Err(error),
                    }
                }
                Ok((got, ring.advance(position, got)))
            }
            Self::Lent { .. } => Ok((len, ring.advance(position, len))),
        }
    }
}

impl Sending<'_> {
    /// What was committed of a loan, and cannot go through the ring any more.
    pub(crate) fn lent(fd: i32, index: u32, len: usize) -> Self {
        let (source, wait) = (Source::Lent { left: len }, Wait::new(fd, index, Direction::Out));
        Self { fd, index, source, flags: 0, sent: 0, wait, patience: true }
    }

    /// Gives as much as there is room for. So much is one piece of the stream, whoever else sends, if no other does in between:
    /// up to some more than a send buffer of the kernel's has room for at first.
    #[inline]
    fn give_all(&mut self, slot: &Slot) -> Result<Step, Errno> {
        const AT_ONCE: usize = 1 << 20;
        let local = local::get(self.index);
        let held = slot.outward.lock.hold();
        if self.wait.look()? {
            held.forget_handled();
        }
        self.fd = self.wait.number();
        if slot.outward.lock.is_orphaned()
            && let Some(ends) = local.ends()
        {
            slot.outward.stream.recover(ends.theirs);
        }
        // A handler may have sent something.
        if self.sent > 0 && signals::have_interrupted() {
            return Ok(Step::End);
        }
        let begin = self.sent;
        loop {
            let step = self.step(slot, local)?;
            let Step::Sent(len) = step else {
                if matches!(step, Step::Nothing) && self.waits(slot) {
                    self.wait.stay();
                }
                return Ok(step);
            };
            self.sent += len;
            let left = self.source.pass(len);
            if matches!(self.source, Source::File { .. }) {
                // To the kernel each piece of the file is a call of its own.
                self.wait.renew();
            }
            if left == 0 {
                return Ok(step);
            }
            if len == 0 || self.sent - begin >= AT_ONCE {
                self.wait.stay();
                return Ok(step);
            }
        }
    }

    /// Whether the call sleeps until there is room.
    fn waits(&self, slot: &Slot) -> bool {
        !slot.nonblocking.load(Ordering::Relaxed) && self.flags & libc::MSG_DONTWAIT == 0
    }

    /// One part. The outward lock is held.
    fn step(&self, slot: &Slot, local: &Local) -> Result<Step, Errno> {
        let Some(ends) = local.ends() else { return self.to_kernel(slot, local) };
        slot.outward.stream.prepare(ends.theirs);
        let way = prepare(self.fd, self.index, slot, local, ends);
        if slot.finished.load(Ordering::Relaxed) {
            return Err(half_close::after_end(self.fd));
        }
        match way {
            Way::Ring => {
                let corks = self.flags & libc::MSG_MORE != 0;
                put((self.fd, self.index), slot, local, ends, &self.source, corks)
            }
            Way::Handover => Ok(Step::Nothing),
            Way::Tcp | Way::Lowered => self.to_kernel(slot, local),
        }
    }

    fn to_kernel(&self, slot: &Slot, local: &Local) -> Result<Step, Errno> {
        let sent = match &self.source {
            // The next call's: this one has bytes to return.
            Source::Memory(_) if self.sent > 0 && receive::has_error(self.fd) => {
                return Ok(Step::End);
            }
            Source::Memory(pieces) => pieces.limited(usize::MAX, |list| {
                kernel::send(self.fd, list, self.flags | libc::MSG_DONTWAIT)
            }),
            Source::File { .. } if self.sent == 0 && !self.wait.has_moved() => {
                return Ok(Step::Kernel(InFlight::sending(self.fd, self.index, slot)));
            }
            Source::File { file, at, left } => match copy_to_kernel(self.fd, *file, *at, *left) {
                Ok(0) => return Ok(Step::End),
                sent => sent,
            },
            Source::Lent { left } => loan::send_lent(self.fd, slot, local, *left),
        };
        match sent {
            Ok(len) => Ok(Step::Sent(len)),
            Err(Errno::AGAIN) => Ok(Step::Nothing),
            Err(error) => Err(error),
        }
    }
}

/// Sends the next bytes of a file on TCP, in the midst of a call: the kernel cannot do the rest of it.
fn copy_to_kernel(fd: i32, file: i32, at: i64, left: usize) -> Outcome {
    // A thread may have a small stack.
    let mut bytes = [0u8; 1024];
    let read = kernel::read_at(file, bytes.as_mut_ptr(), left.min(bytes.len()), at)?;
    let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: read };
    if read == 0 { Ok(0) } else { kernel::send(fd, &[piece], libc::MSG_DONTWAIT) }
}

/// Brings the sending direction as far as it can come and says where the bytes go now. The outward lock is held.
pub(crate) fn prepare(fd: i32, index: u32, slot: &Slot, local: &Local, ends: Ends) -> Way {
    match slot.outward.way() {
        Way::Tcp if lift::switch_outward(fd, index, slot, ends) => {}
        // It closed before this direction had left TCP.
        Way::Tcp if ends.mine.told(CLOSED) && !slot.finished.load(Ordering::Relaxed) => {
            look_at_peer(fd, slot, local, ends);
        }
        Way::Tcp if slot.outward.stream.closed(ends.theirs) => slot.outward.set_way(Way::Lowered),
        Way::Handover => settle_handover(fd, slot, local, ends),
        _ => {}
    }
    // A program that has ended its direction cannot learn from it what became of the peer.
    if slot.outward.way() == Way::Ring
        && (ends.mine.told(CLOSED) || slot.look.load(Ordering::Relaxed))
        && !slot.finished.load(Ordering::Relaxed)
    {
        look_at_peer(fd, slot, local, ends);
    }
    slot.outward.way()
}

/// A peer that has closed, or died, gets what is written from now on over TCP, whose answer is then the right one.
fn look_at_peer(fd: i32, slot: &Slot, local: &Local, ends: Ends) {
    if !peer_is_gone(fd, slot, ends) {
        return;
    }
    ending::settle_peer(slot, ends);
    if ends.mine.told(CLOSED) {
        // What follows on TCP must find the end there: a service that comes to it late would take it for unread bytes.
        if !slot.deaf.load(Ordering::Relaxed) {
            lower::await_arrival(fd, slot, libc::POLLRDHUP);
        }
        slot.outward.set_way(Way::Lowered);
    } else {
        if slot.outward.stream.unread(ends.mine) > 0 {
            await_reset(fd);
        }
        // To TCP a peer that died and one whose own direction has ended there look the same: if it lives, it is told.
        lower::lower_outward(fd, slot, local, ends);
        if take_announcement(&ends.mine.reader_waiting) {
            local.ring_peer();
        }
    }
}

/// A peer that has died with bytes unread resets the connection, where it had ended its own direction a moment after that end has come to TCP:
/// what is written in between would be taken.
fn await_reset(fd: i32) {
    const MOMENT: Duration = Duration::from_millis(10);
    let mut reset = [libc::pollfd { fd, events: 0, revents: 0 }];
    let _ = kernel::poll(&mut reset, Some(MOMENT), std::ptr::null());
}

/// Whether the peer will take nothing out of its ring any more, or may not, by what it or TCP says. Of an end that stands in
/// the ring TCP knows nothing, so an end on TCP is another one.
fn peer_is_gone(fd: i32, slot: &Slot, ends: Ends) -> bool {
    ends.mine.told(CLOSED) || {
        let events = kernel::pending(fd, libc::POLLRDHUP);
        // To the kernel a program that does not listen any more and a peer that has ended look the same.
        let own = slot.deaf.load(Ordering::Relaxed) && tcp::established(fd);
        events & (libc::POLLERR | libc::POLLHUP) != 0 || events & libc::POLLRDHUP != 0 && !own
    }
}

/// Whether who waits for room shall try to send: there is some in the ring, or nobody makes any.
#[inline]
pub(crate) fn has_room(fd: i32, slot: &Slot, ends: Ends) -> bool {
    wait::can_send(slot, ends) || slot.look.load(Ordering::Relaxed) && peer_is_gone(fd, slot, ends)
}

/// Bytes of a ring that are never used.
const ODD: usize = 53;

/// Puts a part of `source` into the ring; `corks`: the call wants it held back. The outward lock is held and the way is the ring.
#[inline]
fn put(
    (fd, index): (i32, u32),
    slot: &Slot,
    local: &Local,
    ends: Ends,
    source: &Source<'_>,
    corks: bool,
) -> Result<Step, Errno> {
    let stream = &slot.outward.stream;
    let want = source.left().min(CHUNK);
    slot.outward.loan.in_the_way()?;
    shrink::before_send(slot, local, ends, want);
    // A full ring is no round number of pages. nginx takes a connection for drained when FIONREAD was a multiple of what it
    // reads; on TCP, whose segments are no round numbers, that hardly ever happens to it.
    let look = || stream.room(ends.mine, want + ODD).saturating_sub(ODD);
    let mut room = look();
    while room < want
        && room < stream.window() / 2
        && policy::may_grow(stream.tier())
        && local.can_grow()
        && stream.grow(ends.theirs)
    {
        heed_send_buffer(fd, slot);
        room = look();
        shrink::grown(local);
    }
    if room == 0 && want > 0 {
        // Nobody makes room by reading what he does not see.
        cork::let_go(local, ends);
        collide(slot, ends);
        return Ok(Step::Nothing);
    }
    let (tail, tier) = (stream.tail(), stream.tier());
    let Some(ring) = local.ring_out(tier) else { return Err(Errno(libc::ENOMEM)) };
    let (len, next) = source.pour(ring, stream.position(), want.min(room))?;
    if len == 0 {
        return Ok(Step::End);
    }
    if (stream.tail(), stream.tier()) != (tail, tier) || slot.outward.loan.stands() {
        // A signal handler on this very thread sent in between, or reserved; its bytes stand where ours would go.
        return Ok(Step::Sent(0));
    }
    let corks = corks || slot.corked.load(Ordering::Relaxed);
    let published = publish(index, slot, local, ends, (len, next), corks);
    Ok(Step::Sent(if published { len } else { 0 }))
}

/// The ring is full. Where the peer has frozen it there will never be room, and no publishing finds that out. The outward lock is held.
pub(crate) fn collide(slot: &Slot, ends: Ends) {
    slot.outward.collisions.fetch_add(1, Ordering::Relaxed);
    if lower::is_taken_back(ends) {
        slot.outward.set_way(Way::Handover);
    }
}

/// Which of a socket's buffers keep the size that the program has set: `asm-generic/socket.h`, Linux 5.16; the libc crate does not have it.
pub(crate) const SO_BUF_LOCK: i32 = 72;

/// What the kernel takes beside the send buffer, for the receiver's: 137 to 201 KiB, measured with 8 to 512 KiB.
const RECEIVED: u32 = 208 << 10;

/// Has a stream in the bulk ring take no more, about, than the kernel would with a send buffer whose size the program has set, or of which it
/// has said how much may wait to be sent. One that the kernel sizes itself becomes as large as that ring.
fn heed_send_buffer(fd: i32, slot: &Slot) {
    const SEND_BUFFER_IS_SET: u32 = 1;
    let stream = &slot.outward.stream;
    if stream.tier() != Tier::Bulk {
        return;
    }
    let option = |name| kernel::option::<u32>(fd, libc::SOL_SOCKET, name);
    let is_set = option(SO_BUF_LOCK).is_some_and(|locks| locks & SEND_BUFFER_IS_SET != 0);
    let size = if is_set { option(libc::SO_SNDBUF) } else { None };
    let waits = kernel::option::<u32>(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    let size = size.into_iter().chain(waits.filter(|most| *most != 0)).min();
    stream.set_bound(size.and_then(|size| NonZeroU32::new(size.saturating_add(RECEIVED))));
}

/// The program has set the size of its send buffer, or how much of it may wait.
pub(crate) fn send_buffer_is_set(fd: i32) {
    let Some(index) = descriptor::connection_called(fd) else { return };
    let slot = slot::get(index);
    let window = slot.outward.stream.window();
    heed_send_buffer(fd, slot);
    if slot.outward.stream.window() > window {
        // A thread of this process may wait for room.
        local::get(index).ring_own();
    }
}

/// Makes `len` bytes that lie in the ring already, up to the position `next`, a part of the stream, perhaps held back. False: the peer
/// has frozen it. The outward lock is held.
#[inline]
pub(crate) fn publish(
    index: u32,
    slot: &Slot,
    local: &Local,
    ends: Ends,
    (len, next): (usize, usize),
    corks: bool,
) -> bool {
    say_where(ends);
    let stream = &slot.outward.stream;
    let published = if corks {
        stream.publish_corked(ends.theirs, len, next)
    } else {
        stream.publish(ends.theirs, len, next)
    };
    match published {
        Publish::Done => {
            if take_announcement(&ends.mine.reader_waiting) {
                local.ring_peer();
                board::rang(index);
            }
        }
        Publish::Corked => {}
        Publish::Frozen => {
            slot.outward.set_way(Way::Handover);
            return false;
        }
    }
    board::sent(index, len);
    true
}

/// Publishes the processor this side runs on, where it changed.
#[inline]
pub(crate) fn say_where(ends: Ends) {
    let processor = thread::processor().wrapping_add(1);
    if ends.theirs.cpu.load(Ordering::Relaxed) != processor {
        ends.theirs.cpu.store(processor, Ordering::Relaxed);
    }
}

/// The peer froze the stream: goes over to TCP if its unread bytes are there, or never will be.
pub(crate) fn settle_handover(fd: i32, slot: &Slot, local: &Local, ends: Ends) {
    if ends.mine.told(HANDED) || is_seen_handed(fd, slot, ends) {
        leave_ring(slot, ends);
        if slot.finished.load(Ordering::Relaxed) {
            let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
        }
    } else if ends.mine.told(HAND_YOURSELF) {
        if lower::hand_over_myself(fd, slot, local, ends) {
            slot.outward.set_way(Way::Lowered);
        }
    } else if ends.mine.told(CLOSED) {
        // It closed, and nothing is handed over.
        look_at_peer(fd, slot, local, ends);
        if slot.finished.load(Ordering::Relaxed) {
            let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
        }
    } else if kernel::pending(fd, 0) != 0 || has_died(fd, slot, ends) {
        // Nobody says any more that they are.
        slot.outward.set_way(Way::Lowered);
    } else if slot.why() == Why::Young {
        slot.set_why(Why::Peer);
    }
}

/// A child of vfork cannot take the mail that tells that all is on TCP, but it can count.
fn is_seen_handed(fd: i32, slot: &Slot, ends: Ends) -> bool {
    !layer::at_home()
        && lower::handed_over(fd, slot, ends)
            .is_some_and(|there| there >= slot.outward.stream.unread(ends.mine))
}

/// Whether the peer, whose stream is in the ring, is gone from TCP without having ended it there.
fn has_died(fd: i32, slot: &Slot, ends: Ends) -> bool {
    slot.inward.way() == Way::Ring
        && ends.mine.tail.load(Ordering::Acquire) & (FIN | FROZEN) == 0
        && !slot.deaf.load(Ordering::Relaxed)
        && kernel::pending(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0
}

/// All that the peer had not read in the ring that it froze is on TCP: so is what follows. The outward lock is held.
pub(crate) fn leave_ring(slot: &Slot, ends: Ends) {
    slot.outward.twice.fetch_add(slot.outward.stream.unread(ends.mine), Ordering::Relaxed);
    slot.outward.set_way(Way::Lowered);
}

/// Bytes sent on `fd` that the peer's host has not taken, if the layer has to say (`SIOCOUTQ`): those that a kernel would keep for the peer until it
/// reads them are not counted.
pub fn unsent(fd: i32) -> Option<usize> {
    let index = descriptor::connection_called(fd)?;
    let slot = slot::get(index);
    if slot.phase() != Phase::Attached {
        return None;
    }
    let _held = slot.outward.lock.hold();
    let ends = local::get(index).ends()?;
    let in_ring = slot.outward.stream.unread(ends.mine).saturating_sub(RECEIVED.into());
    Some(kernel::queued(fd) as usize + in_ring as usize)
}

/// Adds to the kernel's answer to `TCP_INFO` what went past the kernel.
pub fn complete_info(fd: i32, info: &mut [u8]) {
    let Some(index) = descriptor::connection_called(fd) else { return };
    let (slot, local) = (slot::get(index), local::get(index));
    let mut sent = slot.outward.past.load(Ordering::Relaxed);
    let mut received = slot.inward.past.load(Ordering::Relaxed);
    let mut unread = 0;
    if let Some(pin) = local.pin() {
        sent += slot.outward.carried();
        unread = slot.outward.stream.unread(pin.ends().mine);
        unread = unread.saturating_sub(slot.outward.twice.load(Ordering::Relaxed));
        received += slot.inward.carried();
        if slot.inward.way() != Way::Lowered {
            received += slot.inward.stream.unread(pin.ends().mine) as u64;
        }
    }
    tcp::add_to_info(info, sent, sent.saturating_sub(unread), received);
}
