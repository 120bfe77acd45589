//! Lowering: back from VMMC to TCP in mid-stream, decided by one side alone and at once.
//!
//! *What this side sends* goes to TCP after a freeze of its own stream; the peer reads its ring up to there, then TCP.
//! *What the peer sends* is stopped by freezing the ring: a byte is published only by a compare-and-swap on the same word, so
//! the offset is exact even if the peer is stopped in mid-call. Bytes that lie in the ring unread must then reach TCP
//! through the *peer's* socket: the node service holds a duplicate of it for just this and writes them there, whether the
//! peer runs or not; until it says so, the peer sends nothing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmmc::stream::{
    CLOSED, FIN, FROZEN, HAND_YOURSELF, HANDED, IDLE, LINGERS, Place, take_announcement,
};

use crate::anew::Return;
use crate::descriptor;
use crate::handing::{self, Handing};
use crate::kernel;
use crate::layer::{self, STRUCTURE};
use crate::local::{self, Ends, Local};
use crate::repeat::Written;
use crate::slot::{self, Inward, Phase, Slot, Way, Why};
use crate::tcp::Opening;
use crate::{
    anew, board, ending, epoll, half_close, lift, park, policy, receive, repeat, tcp, thread,
    transmit, wait,
};

/// Brings the connection `fd` back to TCP, for good. What was not lifted yet will not be.
pub(crate) fn lower(fd: i32, index: u32, why: Why) {
    lower_with(fd, index, why, Patience::new(fd, index, !why.leaves_sending()));
}

/// As [`lower`]; when the `patience` with a peer that was first is over, the layer goes on sending, behind what is unread.
fn lower_with(fd: i32, index: u32, why: Why, mut patience: Patience) {
    let (slot, local) = (slot::get(index), local::get(index));
    // The handshake may be under way: what it still brings is not wanted.
    if slot.phase() != Phase::Attached {
        match (slot.phase(), why) {
            // Whether others have it is asked before it is lifted, unless it goes unmarked.
            (Phase::Tcp | Phase::Retired, Why::Exec | Why::Passed) if !layer::confined() => {
                slot.set_why(why);
            }
            _ => slot.stay(why),
        }
        board::update(index, slot);
        let_go(slot, local);
        return;
    }
    make_held(fd, slot, local);
    if would_lose_bytes(fd, slot, local) {
        return;
    }
    let mut ends_late = false;
    // Both sides lower at once, and the peer was first: its unread bytes are on their way to TCP through the service. Nothing may be
    // written before them.
    loop {
        {
            let _outward = slot.outward.lock.hold();
            let Some(ends) = local.ends() else { return };
            if slot.phase() != Phase::Attached {
                return;
            }
            ends_late |= lower_outward(fd, slot, local, ends);
            if slot.outward.way() == Way::Lowered {
                break;
            }
        }
        make_held(fd, slot, local);
        if patience.is_over() {
            if patience.kernel_writes {
                let _outward = slot.outward.lock.hold();
                slot.outward.set_way(Way::Lowered);
            }
            break;
        }
        kernel::pause(Duration::from_millis(1));
    }
    let came_to_nothing = {
        let _inward = slot.inward.lock.hold();
        receive::recover_if_orphaned(slot, local);
        let Some(ends) = local.ends() else { return };
        slot.set_why(why);
        let before = Before::now(fd, slot);
        let on_their_way = lower_inward(fd, slot, local, ends);
        let reader = take_announcement(&ends.mine.reader_waiting);
        if take_announcement(&ends.mine.writer_waiting) || reader {
            local.ring_peer();
        }
        let came_to_nothing = on_their_way.is_some_and(|arrival| {
            // What was there to read stays so: whoever looks without waiting must not find it gone for a moment.
            await_arrival(fd, slot, arrival);
            before.restore_if_lost(fd, slot)
        });
        let all_here = on_their_way.is_none() || kernel::unread(fd) > before.on_tcp;
        if ends_late && all_here && !came_to_nothing {
            let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
            slot.mute.store(false, Ordering::Release);
        }
        came_to_nothing
    };
    wake_others(slot, local);
    if !came_to_nothing {
        retire(fd, index);
    }
}

/// The bytes go another way now: threads and relatives that sleep until there is room in the ring, or news of it, have to look.
fn wake_others(slot: &Slot, local: &Local) {
    if !thread::alone() || slot.tenure.holders() != 1 {
        local.ring_own();
    }
}

/// Sees to it that the service has this end, if there is a service: another than before, perhaps.
fn make_held(fd: i32, slot: &Slot, local: &Local) {
    // It tells of its death by mail.
    lift::progress();
    if !local.held.load(Ordering::Relaxed) {
        lift::hold(fd, slot, local);
    }
}

/// The receiving direction before its unread bytes were taken out of the ring.
struct Before {
    way: Way,
    place: Place,
    taken_out: u64,
    on_tcp: usize,
}

impl Before {
    /// The inward lock is held, until after [`Before::restore_if_lost`].
    fn now(fd: i32, slot: &Slot) -> Self {
        Self {
            way: slot.inward.way(),
            place: slot.inward.stream.place(),
            taken_out: slot.inward.taken_out.load(Ordering::Relaxed),
            on_tcp: kernel::unread(fd),
        }
    }

    /// The peer closed or reset the connection before the service could write to it: the bytes are still in the ring, and are
    /// read there, before what TCP says of the end.
    fn restore_if_lost(&self, fd: i32, slot: &Slot) -> bool {
        let events = kernel::pending(fd, libc::POLLRDHUP);
        let own = slot.deaf.load(Ordering::Relaxed);
        let ended = events & libc::POLLERR != 0 || events & libc::POLLRDHUP != 0 && !own;
        let inward = &slot.inward;
        let taken = inward.taken_out.load(Ordering::Relaxed) > self.taken_out;
        if !ended || !taken || kernel::unread(fd) > self.on_tcp {
            return false;
        }
        inward.stream.go_back(self.place);
        inward.taken_out.store(self.taken_out, Ordering::Relaxed);
        inward.set_way(self.way);
        slot.look.store(true, Ordering::Release);
        true
    }
}

/// Whether there is something to read that could not come back, because the peer's socket is gone after a reset, or together with
/// the service that kept it: those who have it in their ring keep it, and whoever gets the connection otherwise finds its end.
fn would_lose_bytes(fd: i32, slot: &Slot, local: &Local) -> bool {
    let _inward = slot.inward.lock.hold();
    local.ends().is_some_and(|ends| {
        // As long as the service has the socket for a peer that lingers, TCP knows of no end.
        let ended = libc::POLLRDHUP;
        let kept = !ends.mine.told(LINGERS)
            || slot.inward.stream.frozen(ends.mine)
            || slot.deaf.load(Ordering::Relaxed)
            || kernel::pending(fd, ended) & ended == 0;
        slot.inward.stream.unread(ends.mine) > 0
            && (!kept || kernel::pending(fd, 0) & libc::POLLERR != 0)
    })
}

/// How long a peer's unread bytes may take to TCP.
#[derive(Debug)]
struct Patience {
    fd: i32,
    opening: Opening,
    written: Option<u64>,
    since: Instant,
    kernel_writes: bool,
}

impl Patience {
    /// It is over when no byte has come for a while. A long one, if `kernel_writes` what the program sends from now on: then nothing else can keep
    /// that behind the bytes. But not for ever, as whoever is to read them may be this very thread, or be gone.
    fn new(fd: i32, index: u32, kernel_writes: bool) -> Self {
        let opening = slot::get(index).opening();
        Self { fd, opening, written: None, since: Instant::now(), kernel_writes }
    }

    fn is_over(&mut self) -> bool {
        let a_while = Duration::from_millis(if self.kernel_writes { 5000 } else { 500 });
        let written = tcp::written(self.fd, self.opening);
        if written != self.written {
            (self.written, self.since) = (written, Instant::now());
        }
        self.since.elapsed() > a_while
    }
}

/// Waits for what the service writes; `last` says whether that ends with bytes (`POLLIN`) or with the end (`POLLRDHUP`).
pub(crate) fn await_arrival(fd: i32, slot: &Slot, last: i16) {
    if !slot.deaf.load(Ordering::Relaxed) {
        let mut arriving = [libc::pollfd { fd, events: last, revents: 0 }];
        let _ = kernel::poll(&mut arriving, Some(ARRIVAL), std::ptr::null());
        return;
    }
    // To the kernel such a socket is always readable, and has always ended.
    for _ in 0..ARRIVAL.as_millis() {
        if kernel::unread(fd) > 0 {
            return;
        }
        kernel::pause(Duration::from_millis(1));
    }
}

/// How long bytes may take through the service, which writes them at once unless it is stopped.
const ARRIVAL: Duration = Duration::from_millis(100);

/// As `lower`, for a descriptor of the program's if it is tracked.
pub(crate) fn lower_for(fd: i32, why: Why) {
    if let Some(index) = descriptor::connection_called(fd) {
        lower(fd, index, why);
    }
}

/// The program makes a call on `fd` that the layer does not carry: its bytes must be the kernel's.
pub fn lower_descriptor(fd: i32) {
    lower_for(fd, Why::Call);
}

/// As [`lower_descriptor`], where the kernel writes to `fd` for the program from now on, and not the layer.
pub fn lower_for_writing(fd: i32) {
    if let Some(index) = descriptor::connection_called(fd) {
        lower_with(fd, index, Why::Call, Patience::new(fd, index, true));
    }
}

/// Nothing of this process shall be lifted any more, nor be lifted later.
pub fn lower_everything() {
    for (fd, _) in descriptor::between(0, i32::MAX) {
        lower_for_writing(fd);
    }
    layer::stop();
}

/// The program has an io_uring, by which it may make any call on any descriptor. Its connections are followed so that they can be
/// shown, and none is lifted any more.
pub fn lower_for_uring() {
    if !policy::forbid_for_uring() {
        return;
    }
    for (fd, _) in descriptor::between(0, i32::MAX) {
        lower_for(fd, Why::Uring);
    }
}

/// A thread is about to have descriptors of its own, beside other threads. The layer knows of one table: a number that is closed in
/// the thread's stays open in the others'. So everything is the kernel's from here on.
pub fn lower_for_unsharing() {
    if thread::alone() || !layer::at_home() {
        return;
    }
    for (fd, _) in descriptor::between(0, i32::MAX) {
        // Whoever closes it need not be the last.
        handing::note(fd);
    }
    lower_everything();
}

/// The program passes `fd` to another process, by a message over `through`.
pub fn lower_passed(fd: i32, through: i32, handing: &mut Handing) {
    handing.pass(fd, through);
    lower_for(fd, Why::Passed);
}

/// The program will start others that get `fd`, once or more often.
pub fn lower_for_spawning(fd: i32) {
    handing::give_away(fd);
    lower_for(fd, Why::Exec);
}

/// Lowers what this side sends, unless the peer was first and has not said yet that its unread bytes are on TCP. True: the
/// kernel is to be told of this side's end, but not before all that is unread here is on TCP.
pub(crate) fn lower_outward(fd: i32, slot: &Slot, local: &Local, ends: Ends) -> bool {
    let mut ends_late = false;
    if slot.outward.way() == Way::Tcp {
        slot.outward.stream.freeze(ends.theirs);
        slot.outward.set_way(Way::Lowered);
    }
    if slot.outward.way() == Way::Ring {
        let Some(complete) = repeat::freeze_and_repeat(fd, slot, local, ends) else {
            slot.outward.set_way(Way::Handover);
            return false;
        };
        slot.outward.set_way(Way::Lowered);
        if slot.finished.load(Ordering::Relaxed) {
            // The end stands in the ring; whoever writes to the descriptor from now on must find it in the kernel. Unless it
            // cannot follow its bytes there. And unless this side has unread bytes and does not listen any more: the
            // kernel would refuse them.
            let deaf =
                slot.deaf.load(Ordering::Relaxed) && slot.inward.stream.unread(ends.mine) > 0;
            if complete && !deaf {
                let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
            } else {
                slot.mute.store(true, Ordering::Release);
            }
            ends_late = complete && deaf;
        }
    }
    if slot.outward.way() == Way::Handover {
        transmit::settle_handover(fd, slot, local, ends);
    }
    ends_late
}

/// Bytes of what the peer lowers unread that are on TCP, which has had nothing else since this side's stream left it.
pub(crate) fn handed_over(fd: i32, slot: &Slot, ends: Ends) -> Option<u64> {
    tcp::written(fd, slot.opening())?.checked_sub(ends.theirs.switch_offset()?)
}

/// The service has died, and may have left what the peer lowered unread half way: this side writes the rest.
pub(crate) fn inherit_handover(fd: i32, slot: &Slot, local: &Local) {
    let _held = slot.outward.lock.hold();
    let Some(ends) = local.ends() else { return };
    if !is_taken_back(ends) || wait::handover_answered(ends) || slot.outward.way() == Way::Lowered {
        return;
    }
    if let Some(there) = handed_over(fd, slot, ends) {
        slot.outward.twice.store(there, Ordering::Relaxed);
        ends.mine.tell(HAND_YOURSELF);
    }
}

/// The peer lowers the connection, and what it had not read is on its way to TCP. A call that does not wait would find no
/// room where the kernel has plenty, so it waits all the same, but not for long; true if it was worth it.
#[cold]
pub(crate) fn await_handover(index: u32) -> bool {
    let (slot, local) = (slot::get(index), local::get(index));
    for _ in 0..ARRIVAL.as_millis() {
        lift::progress();
        let answered = local.pin().is_none_or(|pin| wait::handover_answered(pin.ends()));
        if answered || slot.outward.way() != Way::Handover {
            return true;
        }
        kernel::pause(Duration::from_millis(1));
    }
    false
}

/// Before the last close. What the peer lowered without having read it is on TCP then, so that the end follows it there; and
/// where bytes stay in the ring, it is known whether a service is there to keep the socket for them.
pub(crate) fn settle_before_end(fd: i32, index: u32) {
    let (slot, local) = (slot::get(index), local::get(index));
    let unsettled = |ends: Ends| {
        slot.outward.way() != Way::Lowered
            && !ends.mine.told(CLOSED)
            && (slot.outward.stream.unread(ends.mine) > 0 || is_taken_back(ends))
    };
    if !local.pin().is_some_and(|pin| unsettled(pin.ends())) {
        return;
    }
    make_held(fd, slot, local);
    half_close::notice_freeze(index, slot, local);
    let _outward = slot.outward.lock.hold();
    let Some(ends) = local.ends() else { return };
    if slot.outward.way() == Way::Ring && is_taken_back(ends) && ends.mine.told(HAND_YOURSELF) {
        slot.outward.set_way(Way::Handover);
    }
    if slot.outward.way() == Way::Handover {
        transmit::settle_handover(fd, slot, local, ends);
    }
}

/// Gives an idle connection back to TCP, with nothing to move: true if it was done.
///
/// The freeze of the empty ring decides: a byte that the peer has published meanwhile, or its end, forbids it, and whatever the
/// peer sends afterwards goes to TCP. That it may, because nothing of before is left, it is told first, so that the freeze is all
/// that it takes: should this process stop or die right behind it, the peer does not wait for anything.
#[cold]
pub(crate) fn park(fd: i32, index: u32) -> bool {
    let (slot, local) = (slot::get(index), local::get(index));
    follow(fd, index);
    {
        // Not from a signal handler in the middle of a transfer.
        let Some(_inward) = slot.inward.lock.hold_anew() else { return false };
        let Some(_outward) = slot.outward.lock.hold_anew() else { return false };
        let Some(ends) = local.ends().filter(|ends| may_park(fd, slot, local, *ends)) else {
            return false;
        };
        ends.theirs.tell(HANDED | IDLE);
        if !slot.inward.stream.freeze_if_read(ends.mine) {
            ends.theirs.untell(HANDED | IDLE);
            return false;
        }
        slot.inward.passed.store(Inward::NOTHING_REPEATED, Ordering::Relaxed);
        slot.inward.set_way(Way::Lowered);
        slot.look.store(true, Ordering::Release);
        if slot.outward.stream.freeze(ends.theirs) {
            slot.outward.set_way(Way::Lowered);
        } else {
            // The peer does the same at this very moment.
            slot.outward.set_way(Way::Handover);
            transmit::settle_handover(fd, slot, local, ends);
        }
        slot.set_why(Why::Parked);
        let reader = take_announcement(&ends.mine.reader_waiting);
        if take_announcement(&ends.mine.writer_waiting) || reader {
            local.ring_peer();
        }
    }
    retire(fd, index);
    true
}

/// Whether nothing is under way on the connection. Both locks are held.
fn may_park(fd: i32, slot: &Slot, local: &Local, ends: Ends) -> bool {
    let whole = |way| matches!(way, Way::Tcp | Way::Ring);
    slot.phase() == Phase::Attached
        && whole(slot.inward.way())
        && whole(slot.outward.way())
        && !slot.inward.stream.stirred(ends.mine)
        && slot.outward.stream.unread(ends.mine) == 0
        && !slot.outward.stream.closed(ends.theirs)
        && slot.sending.load(Ordering::SeqCst) == 0
        && park::is_wise(local)
        && anew::may_come_back(fd, slot, local)
}

/// What will be seen last of what the service now writes: unread bytes, or the end; nothing if it has nothing to write.
fn lower_inward(fd: i32, slot: &Slot, local: &Local, ends: Ends) -> Option<i16> {
    // Where the peer was first, its later bytes may be on TCP, and its earlier ones before them.
    if slot.inward.way() == Way::Lowered || !slot.inward.stream.freeze(ends.mine) {
        repeat::leave_for_good(fd, slot, ends);
        return None;
    }
    slot.inward.passed.store(Inward::NOTHING_REPEATED, Ordering::Relaxed);
    let unread = unread_bytes(slot, local, ends);
    // The kernel does not know of an end that stands in the ring.
    let finish = ends.mine.tail.load(Ordering::Acquire) & FIN != 0;
    let said = if unread.is_empty() && !finish { HANDED } else { hand_over(slot, &unread, finish) };
    if said != 0 {
        ends.theirs.tell(said);
    }
    slot.inward.set_way(Way::Lowered);
    ending::settle_peer(slot, ends);
    (said == 0).then_some(if finish { libc::POLLRDHUP } else { libc::POLLIN })
}

/// Everything that came through the ring and was not read, taken out of it.
fn unread_bytes(slot: &Slot, local: &Local, ends: Ends) -> Vec<u8> {
    let stream = &slot.inward.stream;
    let mut bytes = Vec::new();
    while let Ok(arrived) = stream.arrived(ends.mine) {
        let Some(ring) = local.ring_in(stream.tier()).filter(|_| arrived.len > 0) else { break };
        let start = bytes.len();
        bytes.resize(start + arrived.len, 0);
        // SAFETY: the vector has just been made long enough; `arrived` is at most the capacity.
        unsafe { ring.copy_out(stream.position(), bytes.as_mut_ptr().add(start), arrived.len) };
        // The credit is given later, by HANDED: a peer that must hand over itself still has to find the bytes.
        let next = ring.advance(stream.position(), arrived.len);
        stream.skip(arrived.len, next);
        slot.inward.taken_out.fetch_add(arrived.len as u64, Ordering::Relaxed);
    }
    bytes
}

/// Gives the bytes to the service, which writes them through the peer's socket; the flag to tell the peer, if any.
fn hand_over(slot: &Slot, unread: &[u8], finish: bool) -> u32 {
    let pair = vmmc::PairId(slot.pair.load(Ordering::Relaxed));
    let asked = layer::process().map(|process| process.pair_inject(pair, unread, finish));
    // The service will tell the peer when it is done; without a service the peer does it at its next call.
    if matches!(asked, Some(Ok(()))) { 0 } else { HAND_YOURSELF }
}

/// The peer could not hand over what it had not read: writes it to TCP here. False: TCP is full, later.
pub(crate) fn hand_over_myself(fd: i32, slot: &Slot, local: &Local, ends: Ends) -> bool {
    let (stream, twice) = (&slot.outward.stream, &slot.outward.twice);
    let unread = stream.tail() - stream.unread(ends.mine);
    // Behind what is there already.
    let pieces = stream.pieces_from(unread + twice.load(Ordering::Relaxed));
    let written = repeat::write_pieces(fd, local, pieces, |sent| {
        twice.fetch_add(sent as u64, Ordering::Relaxed);
    });
    match written {
        Written::All => {}
        Written::Full => return false,
        // Nobody waits for the bytes.
        Written::Gone => return true,
    }
    if slot.finished.load(Ordering::Relaxed) {
        let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
    }
    true
}

/// The peer may have lowered the connection without leaving a byte behind, so that nothing else leads this side after it:
/// looks before it sleeps, or when it was woken for nothing.
#[cold]
pub(crate) fn follow(fd: i32, index: u32) {
    let (slot, local) = (slot::get(index), local::get(index));
    if slot.phase() != Phase::Attached && layer::at_home() {
        // A relative was first, who could not give back what this process has of it.
        let bell = local.bell.load(Ordering::Acquire);
        // SAFETY: the structure's lock is held.
        STRUCTURE.briefly(|_| epoll::release(index, bell, unsafe { local.parts() }));
        return let_go(slot, local);
    }
    {
        let _inward = slot.inward.lock.hold();
        let Some(ends) = local.ends() else { return };
        if !has_left(slot, ends) {
            return;
        }
        slot.inward.set_way(Way::Lowered);
        slot.look.store(true, Ordering::Release);
    }
    settle(fd, index);
}

/// Whether the peer has gone back to TCP with what it sends, everything was read, and this side has not noticed.
#[inline]
pub(crate) fn has_left(slot: &Slot, ends: Ends) -> bool {
    ends.mine.visible() == FROZEN | slot.inward.stream.head()
        && match slot.inward.way() {
            Way::Ring => true,
            Way::Tcp => ends.mine.switch_offset().is_none(),
            Way::Handover | Way::Lowered => false,
        }
}

/// Whether the peer has frozen what this side sends because it lowers it, not because it has closed.
pub(crate) fn is_taken_back(ends: Ends) -> bool {
    ends.theirs.tail.load(Ordering::Acquire) & FROZEN != 0 && !ends.mine.told(CLOSED)
}

/// The peer has lowered what it sends: if it has frozen this side's direction too, that is settled here, for a program
/// that only reads.
pub(crate) fn settle(fd: i32, index: u32) {
    let (slot, local) = (slot::get(index), local::get(index));
    {
        let _outward = slot.outward.lock.hold();
        let Some(ends) = local.ends() else { return };
        if slot.outward.way() == Way::Ring
            && is_taken_back(ends)
            // After its end the service says when it is done; if there is none, this side has to do it.
            && (!slot.finished.load(Ordering::Relaxed) || ends.mine.told(HAND_YOURSELF))
        {
            slot.outward.set_way(Way::Handover);
        }
        transmit::prepare(fd, index, slot, local, ends);
    }
    retire(fd, index);
}

/// When both directions are back on TCP, and the ring is read, the connection is an ordinary one again: for good, or to be
/// lifted anew.
pub(crate) fn retire(fd: i32, index: u32) {
    let (slot, local) = (slot::get(index), local::get(index));
    if slot.phase() != Phase::Attached || !layer::at_home() {
        return;
    }
    STRUCTURE.with(|structure| {
        if slot.phase() != Phase::Attached
            || slot.inward.way() != Way::Lowered
            || slot.outward.way() != Way::Lowered
            || !repeat::is_over(fd, slot, local)
        {
            return;
        }
        if slot.why() == Why::Young {
            let idle = local.pin().is_some_and(|pin| pin.ends().mine.told(IDLE));
            slot.set_why(if idle { Why::Parked } else { Why::Peer });
        }
        if anew::come_back(structure, fd, index) != Return::Never {
            return;
        }
        let bell = local.bell.load(Ordering::Acquire);
        // SAFETY: the structure's lock is held.
        epoll::release(index, bell, unsafe { local.parts() });
        let shared = slot.tenure.holders() != 1;
        let may_pass = shared && slot.why().passes();
        slot.set_phase(if may_pass { Phase::Retired } else { Phase::Stay });
        // Their registrations are the kernel's now, which a child may not know of.
        wake_others(slot, local);
        board::update(index, slot);
        let_go(slot, local);
    });
}

/// What was handed over still goes out; nothing else is asked of this side's socket, and while the service holds it for this process
/// the kernel could not end the connection.
fn let_go(slot: &Slot, local: &Local) {
    if local.held.swap(false, Ordering::AcqRel) {
        layer::drop_pair(vmmc::PairId(slot.pair.load(Ordering::Relaxed)), false);
    }
}
