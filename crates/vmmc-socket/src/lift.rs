//! Lifting: how a connection's two directions come from TCP onto VMMC, behind the traffic.
//!
//! ```text
//!   Tcp ──a few calls──► Offered ──the other end was shown too──► Exchanged ──peer's memory came──► Attached
//! ```
//! Every step is taken inside some call of the program on a tracked connection; the answers of the node service wait
//! as mail until then. Once attached, each side tells the other that it will look into its ring ([`READY`]); a sender that
//! has been told switches its direction at the offset it has reached, at its next call.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use vmmc::stream::{HANDED, READY, Tier};
use vmmc::{BrokenReason, Networks, PairError, PairMemory, PairingEvent, Process, ProcessId};

use crate::descriptor::{self, Kind};
use crate::handing::{self, Mark};
use crate::layer::{self, Inquiry, STRUCTURE, Structure};
use crate::local::{self, Local};
use crate::slot::{self, Phase, Slot, Way, Why};
use crate::thread::{self, MICROSECOND};
use crate::{
    anew, board, cork, epoll, kernel, lower, options, own_numbers, park, policy, receive, service,
    tcp, transmit,
};

mod later;
mod worth;

pub(crate) use later::seconds;
use later::{await_room, fail, hindrance, stay, take_back, try_later, wait_longer};
pub(crate) use worth::{learn, set_calls};

/// How long a call waits for the next step of lifting, where every connection shall be lifted from its first byte.
const PATIENCE: u64 = 1000 * MICROSECOND;
/// The calls that do so.
const EAGER: u32 = 8;

/// For how many seconds the other end may take to send its memory, and how often that is looked at.
const PATIENCE_WITH_PEER: u32 = 2;
const CALLS_TO_LOOK: u32 = 16;

/// The connection `fd` was made just now.
pub(crate) fn made(fd: i32, index: u32, slot: &'static Slot) {
    if worth::calls() == 0 {
        moved(fd, index, slot);
    }
}

/// A call moved data over TCP on the tracked connection `fd`; goes on with lifting where that is due.
#[inline]
pub(crate) fn moved(fd: i32, index: u32, slot: &'static Slot) {
    let calls = slot.calls.load(Ordering::Relaxed).wrapping_add(1);
    slot.calls.store(calls, Ordering::Relaxed);
    let enough = anew::calls_before_lifting(worth::calls(), slot);
    match slot.phase() {
        Phase::Tcp | Phase::Retired if calls >= enough => {
            offer(fd, index, slot);
            if enough == 0 {
                wait_for_lifting(slot);
            }
        }
        Phase::Offered | Phase::Exchanged if enough == 0 && calls <= EAGER => {
            wait_for_lifting(slot)
        }
        Phase::Offered | Phase::Exchanged if layer::has_mail() => {
            progress();
        }
        Phase::Exchanged if calls.is_multiple_of(CALLS_TO_LOOK) => give_up_waiting(index, slot),
        _ => {}
    }
}

/// Gives the other end a moment to be shown too, and takes the answers.
#[cold]
fn wait_for_lifting(slot: &Slot) {
    let start = thread::ticks();
    while matches!(slot.phase(), Phase::Offered | Phase::Exchanged)
        && thread::ticks().wrapping_sub(start) < PATIENCE
    {
        if layer::has_mail() {
            progress();
        } else {
            kernel::give_way();
        }
    }
}

#[cold]
fn offer(fd: i32, index: u32, slot: &'static Slot) {
    slot.calls.store(0, Ordering::Relaxed);
    if layer::has_mail() {
        progress();
    }
    // Those of this family that let go of it say so themselves.
    let put_off = seconds() < slot.put_off_until.load(Ordering::Relaxed)
        && !(slot.why() == Why::Shared && slot.is_alone());
    if put_off || layer::confined() {
        return;
    }
    if service::absent() {
        return wait_longer(index, slot, Why::NoService);
    }
    let stays_here = stays_here(fd);
    if !tcp::established(fd) || !layer::at_home() {
        return;
    }
    STRUCTURE.with(|structure| {
        if !matches!(slot.phase(), Phase::Tcp | Phase::Retired) {
            return;
        }
        // The service is asked for in any case: by it `vmmc stat` finds this program.
        let process = structure.process();
        if let Some(why) = policy::forbids(fd) {
            return stay(index, slot, why);
        }
        let Some(process) = process else {
            return wait_longer(index, slot, Why::NoService);
        };
        match process.networks() {
            Networks::One if !stays_here => return try_later(index, slot, Why::PeerNotLifted),
            Networks::Separate if !stays_here => return try_later(index, slot, Why::Separate),
            _ => {}
        }
        // SAFETY: the structure's lock is held.
        if handing::is_standard(unsafe { local::get(index).parts() }) {
            return wait_longer(index, slot, Why::Standard);
        }
        if !slot.is_alone() {
            return inquire(structure, process, fd, index);
        }
        // Another program, which had it meanwhile, may have set what this one never did.
        let strange = [&slot.returned, &slot.handed].iter().any(|n| n.load(Ordering::Relaxed) > 0);
        if strange && options::has_not_carried(fd) {
            return stay(index, slot, Why::Call);
        }
        if slot.phase() == Phase::Retired {
            if anew::come_back(structure, fd, index) == anew::Return::Never {
                stay(index, slot, slot.why());
            }
            return;
        }
        if !own_numbers::has_room(structure) {
            return await_room(index, slot);
        }
        // SAFETY: the program is in a call on this descriptor; should it close it meanwhile, the service is shown
        // another socket, or none, and refuses.
        match process.pair_offer(unsafe { BorrowedFd::borrow_raw(fd) }) {
            Ok(offer) => {
                structure.offers.insert(offer.0, (index, slot.tenure.serial()));
                show(slot);
                worth::begin(slot);
                if slot.returned.load(Ordering::Relaxed) == 0 {
                    slot.set_why(Why::PeerNotLifted);
                }
                slot.set_phase(Phase::Offered);
                board::update(index, slot);
            }
            Err(PairError::WouldBlock) => {}
            Err(error) => wait_longer(index, slot, hindrance(&error)),
        }
    });
    park::make_room();
}

/// The service was shown the socket.
fn show(slot: &Slot) {
    slot.shown.store(true, Ordering::Relaxed);
    slot.unanswered.store(true, Ordering::Relaxed);
}

/// Others may have the connection: asks the service.
fn inquire(structure: &mut Structure, process: &Process, fd: i32, index: u32) {
    /// Seconds after which an answer is no longer expected.
    const PATIENCE: u32 = 30;
    let slot = slot::get(index);
    if handing::mark_of(fd) != Mark::None {
        return try_later(index, slot, Why::Shared);
    }
    let inquiry =
        Inquiry { index, tenure: slot.tenure.see(), handed: slot.handed.load(Ordering::Acquire) };
    // SAFETY: as for an offer.
    match process.pair_holders(unsafe { BorrowedFd::borrow_raw(fd) }) {
        Ok(id) => {
            show(slot);
            structure.inquiries.insert(id.0, inquiry);
            slot.put_off_until.store(seconds() + PATIENCE, Ordering::Relaxed);
            wait_longer(index, slot, Why::Shared);
        }
        Err(PairError::WouldBlock) => {}
        Err(error) => wait_longer(index, slot, hindrance(&error)),
    }
}

/// The service has looked who has a connection. If it is this process alone, and nobody can have got it since, it may be offered.
fn inquired(inquiry: Inquiry, alone: bool) {
    let Inquiry { index, tenure, handed } = inquiry;
    let Some((slot, _)) = current(index, tenure.serial()) else { return };
    slot.unanswered.store(false, Ordering::Relaxed);
    if !matches!(slot.phase(), Phase::Tcp | Phase::Retired) {
        return;
    }
    // Of those that have it no longer, some may have ended without a word.
    let given =
        || slot.handed.compare_exchange(handed, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if alone && slot.tenure.correct(tenure, 1) && given() {
        slot.put_off.store(0, Ordering::Relaxed);
        slot.put_off_until.store(0, Ordering::Relaxed);
        wait_longer(index, slot, Why::Young);
    } else {
        try_later(index, slot, Why::Shared);
    }
}

/// Whether the two ends have the same address or a loopback one. Only then can the peer be on this host; unless there are
/// several network namespaces.
fn stays_here(fd: i32) -> bool {
    let (Some(local), Some(peer)) = (board::address(fd, false), board::address(fd, true)) else {
        return false;
    };
    peer.ip().to_canonical().is_loopback() || local.ip().to_canonical() == peer.ip().to_canonical()
}

/// Takes the mail of the node service.
#[cold]
pub(crate) fn progress() {
    if layer::at_home() {
        STRUCTURE.with(take_mail);
        park::make_room();
    }
}

fn take_mail(structure: &mut Structure) {
    // A forked child opens its connection now: what it has missed is told over that.
    structure.claim();
    while let Some(event) = layer::process().and_then(Process::poll) {
        match event {
            PairingEvent::Matched { offer, pair, peer, peer_uid, .. } => {
                let found = structure.offers.remove(&offer.0);
                let taken = found.is_some_and(|(index, serial)| {
                    exchange(structure, (pair, peer, peer_uid), index, serial)
                });
                if !taken {
                    layer::drop_pair(pair, false);
                }
            }
            PairingEvent::Unseen { offer } => {
                if let Some((index, serial)) = structure.offers.remove(&offer.0)
                    && let Some((slot, _)) = current(index, serial)
                {
                    slot.unanswered.store(false, Ordering::Relaxed);
                    if slot.phase() == Phase::Offered {
                        slot.set_phase(Phase::Tcp);
                        try_later(index, slot, Why::PeerNotLifted);
                    }
                }
            }
            PairingEvent::Denied { offer } => {
                let found = structure.offers.remove(&offer.0);
                if let Some((slot, _)) = found.and_then(|(index, serial)| current(index, serial))
                    && let (Phase::Offered, Some((index, _))) = (slot.phase(), found)
                {
                    stay(index, slot, Why::User);
                }
            }
            PairingEvent::Holders { inquiry, alone } => {
                if let Some(inquiry) = structure.inquiries.remove(&inquiry.0) {
                    inquired(inquiry, alone);
                }
            }
            PairingEvent::Ready { pair, import } => {
                if let Some(&(index, serial)) = structure.pairs.get(&pair.0) {
                    attach(index, serial, import);
                }
            }
            PairingEvent::Handed { pair } => {
                if let Some(&(index, serial)) = structure.pairs.get(&pair.0) {
                    handed(index, serial);
                }
            }
            PairingEvent::Broken { pair, why } => {
                if let Some(&(index, serial)) = structure.pairs.get(&pair.0) {
                    broken(structure, pair, index, serial, why);
                }
            }
            PairingEvent::ServiceLost => lose(structure),
        }
    }
}

fn current(index: u32, serial: u32) -> Option<(&'static Slot, &'static Local)> {
    let slot = slot::get(index);
    (slot.tenure.serial() == serial).then(|| (slot, local::get(index)))
}

fn exchange(
    structure: &mut Structure,
    (pair, peer, peer_uid): (vmmc::PairId, ProcessId, u32),
    index: u32,
    serial: u32,
) -> bool {
    let Some((slot, local)) = current(index, serial) else { return false };
    if slot.phase() != Phase::Offered || !slot.is_alone() {
        return false;
    }
    // SAFETY: the structure's lock is held.
    let parts = unsafe { local.parts() };
    let (Some(process), Some(&fd)) = (layer::process(), parts.descriptors.first()) else {
        return false;
    };
    // Without room for the peer's bell too, this side's own would only take that of another pair.
    if !own_numbers::has_room(structure) {
        slot.set_phase(Phase::Tcp);
        await_room(index, slot);
        return false;
    }
    let strange = peer_uid != process.user();
    if strange && !policy::can_meet_strangers() {
        stay(index, slot, Why::Bell);
        return false;
    }
    local.strange.store(strange, Ordering::Relaxed);
    let memory = PairMemory { len: Tier::MEMORY, mapped: Tier::FIRST, stream: true };
    // SAFETY: a descriptor that the program has open (or has just closed; then the service refuses it).
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let seat = structure.bells.seat(process, peer, epoll::home(parts));
    let exported = match &seat {
        None => process.pair_export(pair, memory, socket),
        Some(seat) => {
            let place = (seat.bell.pair_bell(), seat.place);
            process.pair_export_sharing(pair, memory, socket, place)
        }
    };
    match exported {
        Ok(export) => {
            if let Some(bell) = export.event_fd().map(|fd| fd.as_raw_fd()) {
                descriptor::enter(bell, Kind::Own);
                local.set_bell(bell, None);
            } else if let Some(seat) = &seat {
                local.set_bell(seat.bell.fd(), Some(seat));
            }
            parts.export = Some(Box::new(export));
            (parts.peer, parts.seat) = (Some(peer), seat);
            structure.bells.begin(peer);
            structure.pairs.insert(pair.0, (index, serial));
            slot.pair.store(pair.0, Ordering::Relaxed);
            let cookie =
                kernel::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE).unwrap_or_default();
            slot.cookie.store(cookie, Ordering::Relaxed);
            receive::learn_whether_left_is_told(fd, slot);
            cork::learn(fd, slot);
            slot.set_why(Why::Young);
            slot.put_off_until.store(seconds() + PATIENCE_WITH_PEER, Ordering::Relaxed);
            slot.set_phase(Phase::Exchanged);
            board::update(index, slot);
            true
        }
        Err(error) => {
            structure.bells.vacate(peer, seat.as_ref());
            fail(index, slot, hindrance(&error));
            false
        }
    }
}

/// Before a fork: what is being lifted by this process would be neither the child's nor, while both have it, this one's.
pub(crate) fn before_fork(structure: &mut Structure) {
    for (index, serial) in structure.offers.values().copied() {
        if let Some((slot, _)) = current(index, serial)
            && slot.phase() == Phase::Offered
        {
            slot.set_phase(Phase::Tcp);
            board::update(index, slot);
        }
    }
    let pairs: Vec<_> = structure.pairs.iter().map(|(pair, of)| (*pair, *of)).collect();
    for (pair, (index, serial)) in pairs {
        if current(index, serial).is_some_and(|(slot, _)| slot.phase() == Phase::Exchanged) {
            give_back(structure, index, vmmc::PairId(pair));
        }
    }
}

/// The other end may be waited for in vain: by a process that has forked, whose child has the connection now.
#[cold]
fn give_up_waiting(index: u32, slot: &Slot) {
    if seconds() < slot.put_off_until.load(Ordering::Relaxed) || !layer::at_home() {
        return;
    }
    STRUCTURE.with(|structure| {
        take_mail(structure);
        if slot.phase() == Phase::Exchanged {
            let pair = slot.pair.load(Ordering::Relaxed);
            give_back(structure, index, vmmc::PairId(pair));
        }
    });
}

/// Lifting that is under way is begun anew, later.
fn give_back(structure: &mut Structure, index: u32, pair: vmmc::PairId) {
    take_back(structure, index, Why::Young);
    layer::drop_pair(pair, false);
}

fn attach(index: u32, serial: u32, import: vmmc::Import) {
    let Some((slot, local)) = current(index, serial) else { return };
    if slot.phase() != Phase::Exchanged {
        return;
    }
    // SAFETY: the structure's lock is held.
    let parts = unsafe { local.parts() };
    let bell = import.notify_fd().map(|fd| fd.as_raw_fd());
    let (Some(bell), Some(theirs), Some(export)) = (bell, import.as_ptr(), &parts.export) else {
        return stay(index, slot, Why::Refused);
    };
    if import.len() < Tier::FIRST {
        return stay(index, slot, Why::Broken);
    }
    // What the peer sends must be readable, however little address space is left when it comes.
    if layer::has_limited_address_space() && !local.map_all_in() {
        return stay(index, slot, Why::Refused);
    }
    descriptor::enter(bell, Kind::Own);
    let mark = import.shared_bell().map(|(bell, place)| (bell.marks(), place));
    local.set_peer_bell(bell, mark);
    slot.begin_streams();
    local.attach(export.as_ptr(), theirs);
    local.held.store(true, Ordering::Release);
    parts.import = Some(Box::new(import));
    slot.put_off.store(0, Ordering::Relaxed);
    slot.set_phase(Phase::Attached);
    board::update(index, slot);
    get_ready(index, slot, local, parts);
}

/// Tells the peer that this side looks into its ring, as soon as no call of the time before is still under way that
/// would not: it would sleep on TCP while bytes arrive elsewhere.
fn get_ready(index: u32, slot: &Slot, local: &Local, parts: &mut local::Parts) {
    // Of a family each has registrations of its own, in objects that may be all the same: which of them are the layer's all must know.
    if slot.ready.load(Ordering::Acquire)
        || slot.phase() != Phase::Attached
        || slot.receiving.load(Ordering::SeqCst) != 0
        || slot.tenure.holders() != 1
    {
        return;
    }
    let Some(ends) = local.ends() else { return };
    if epoll::may_have_shot(index, parts) {
        return;
    }
    let flags = parts.descriptors.first().and_then(|fd| kernel::status_flags(*fd));
    if let Some(flags) = flags {
        slot.nonblocking.store(flags & libc::O_NONBLOCK != 0, Ordering::Relaxed);
    }
    epoll::adopt(index, parts);
    slot.ready.store(true, Ordering::Release);
    ends.theirs.tell(READY);
}

/// As `get_ready`, from a call on an attached connection.
#[cold]
pub(crate) fn retry_ready(index: u32, slot: &Slot) {
    if slot.receiving.load(Ordering::SeqCst) == 0 && layer::at_home() {
        STRUCTURE.briefly(|_| {
            let local = local::get(index);
            // SAFETY: the structure's lock is held.
            get_ready(index, slot, local, unsafe { local.parts() });
        });
    }
}

/// Says to the service that this process has the connection: it is another service than before, or did not expect this child.
#[cold]
pub(crate) fn hold(fd: i32, slot: &Slot, local: &Local) {
    if service::absent() || !layer::at_home() {
        return;
    }
    STRUCTURE.with(|structure| {
        let Some(process) = structure.process() else { return };
        let pair = vmmc::PairId(slot.pair.load(Ordering::Relaxed));
        // SAFETY: a descriptor that the program is using in this call.
        if process.pair_hold(pair, unsafe { BorrowedFd::borrow_raw(fd) }).is_ok() {
            local.held.store(true, Ordering::Release);
        }
    });
}

fn handed(index: u32, serial: u32) {
    let Some((slot, local)) = current(index, serial) else { return };
    let _held = slot.outward.lock.hold();
    // This side may not even have noticed yet that the peer froze the ring.
    if slot.outward.way() == Way::Lowered {
        return;
    }
    match local.ends() {
        Some(ends) => {
            // As if the peer had said so itself: whoever closes the connection has to know.
            ends.mine.tell(HANDED);
            transmit::leave_ring(slot, ends);
        }
        None => slot.outward.set_way(Way::Lowered),
    }
    if slot.finished.load(Ordering::Relaxed) {
        // SAFETY: `take_mail`, the caller's caller, holds the structure's lock.
        if let Some(&fd) = unsafe { local.parts() }.descriptors.first() {
            let _ = kernel::call!(SYS_shutdown, fd, libc::SHUT_WR);
        }
    }
    local.ring_own();
}

fn broken(
    structure: &mut Structure,
    pair: vmmc::PairId,
    index: u32,
    serial: u32,
    why: BrokenReason,
) {
    let Some((slot, local)) = current(index, serial) else { return };
    if slot.phase() == Phase::Exchanged {
        let why = match why {
            BrokenReason::NoRoom => Why::Descriptors,
            BrokenReason::Refused => Why::Refused,
            BrokenReason::PeerDropped => Why::Peer,
            _ => Why::Broken,
        };
        take_back(structure, index, why);
        layer::drop_pair(pair, false);
    } else if slot.phase() == Phase::Attached {
        // TCP tells what happened: look there.
        slot.look.store(true, Ordering::Release);
        local.ring_own();
    }
}

/// Without the service, what was not finished starts again later; what is lifted stays so.
fn lose(structure: &mut Structure) {
    let offers: Vec<_> = structure.offers.values().copied().collect();
    for (index, serial) in offers {
        if let Some((slot, _)) =
            current(index, serial).filter(|(slot, _)| slot.phase() == Phase::Offered)
        {
            slot.set_phase(Phase::Tcp);
            wait_longer(index, slot, Why::NoService);
        }
    }
    let dead = layer::process().is_some_and(Process::service_is_dead);
    let pairs: Vec<_> = structure.pairs.values().copied().collect();
    for (index, serial) in pairs {
        let Some((slot, local)) = current(index, serial) else { continue };
        local.held.store(false, Ordering::Release);
        // SAFETY: the structure's lock is held.
        if let (true, Some(&fd)) = (dead, unsafe { local.parts() }.descriptors.first()) {
            lower::inherit_handover(fd, slot, local);
        }
        if slot.phase() == Phase::Exchanged {
            take_back(structure, index, Why::NoService);
        }
    }
    structure.lose_process();
}

/// The direction from this side may leave TCP: the peer looks into its ring and no call of before is under way.
/// The caller holds the outward lock.
pub(crate) fn switch_outward(fd: i32, index: u32, slot: &Slot, ends: local::Ends) -> bool {
    if !ends.mine.told(READY)
        || slot.sending.load(Ordering::SeqCst) != 0
        || slot.finished.load(Ordering::Relaxed)
        || slot.outward.stream.closed(ends.theirs)
    {
        return false;
    }
    let Some(written) = tcp::written(fd, slot.opening()) else { return false };
    ends.theirs.switch.store(written + 1, Ordering::SeqCst);
    slot.outward.set_way(Way::Ring);
    // What was sent with `MSG_MORE` waits for what comes now, which TCP will not see.
    if !slot.corked.load(Ordering::Relaxed) && kernel::holds_back(fd) {
        kernel::push(fd);
    }
    kernel::acknowledge_at_once(fd);
    board::update(index, slot);
    true
}
