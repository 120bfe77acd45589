//! Bells: what peers ring to wake this process. A connection has one of its own, or a place at one that it shares with others
//! to the same process: so ten thousand connections need no twenty thousand descriptors.
//!
//! Only connections with *one* process share a bell: a peer that silences it, or does not ring, harms nobody else. The first
//! few with a process have bells of their own, which are the quickest to sleep on and to be woken by.
//!
//! Who hears a shared bell hears it edge-triggered, and never makes it unreadable: so each of several listeners gets every ring.
//!
//! | who sleeps | on what |
//! |---|---|
//! | `epoll_wait` | the bell stands in the program's epoll object, once for all connections; its marks say which of them it was rung for |
//! | a call on one connection, `poll` | an *ear*: an epoll object of the thread's own, with the bell in it |
//!
//! Were a shared bell heard by many threads, each asleep for one connection, every ring would wake all of them. So a connection gets
//! a place at one only if it stands in an epoll object (and then shares with others of that object), or if there is only
//! one thread. Where threads come later after all, what they sleep on alone is parked, to be lifted anew with a bell of its own
//! ([`SharedBell::is_crowded`]).

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmmc::marks::Marks;
use vmmc::{Import, PairBell, Process, ProcessId};

use crate::descriptor::{self, Kind, Own};
use crate::kernel;
use crate::layer::{self, STRUCTURE, Structure};
use crate::local::Parts;
use crate::thread;

/// Connections with one process that have bells of their own before others share.
const FEW: usize = 4;
/// Threads that sleep for single connections at a shared bell before that is too many.
const CROWD: usize = 4;

/// A bell of this process's that connections share.
#[derive(Debug)]
pub(crate) struct SharedBell {
    bell: PairBell,
    /// Threads and their ears. Guarded by the structure's lock.
    ears: UnsafeCell<Vec<(u32, Own)>>,
    crowded: AtomicBool,
}

// SAFETY: `ears` is used with the structure's lock held, or by the last owner.
unsafe impl Send for SharedBell {}
// SAFETY: as above.
unsafe impl Sync for SharedBell {}

impl SharedBell {
    fn new(process: &Process) -> Option<Self> {
        let bell = process.pair_bell().ok()?;
        for fd in bell.owned_fds() {
            descriptor::enter(fd, Kind::Own);
        }
        Some(Self { bell, ears: UnsafeCell::default(), crowded: AtomicBool::new(false) })
    }

    pub(crate) fn pair_bell(&self) -> &PairBell {
        &self.bell
    }

    /// The event's descriptor.
    pub(crate) fn fd(&self) -> i32 {
        self.bell.event_fd().as_raw_fd()
    }

    pub(crate) fn marks(&self) -> &Marks {
        self.bell.marks()
    }

    /// What this thread sleeps on to be woken by the bell; none if descriptors are short. From the first call on it keeps what is
    /// rung, until it is hushed.
    #[cold]
    pub(crate) fn ear(&self) -> Option<i32> {
        // A child of vfork has descriptors of its own.
        if !layer::at_home() {
            return None;
        }
        STRUCTURE.with(|_| {
            // SAFETY: the structure's lock is held.
            let ears = unsafe { &mut *self.ears.get() };
            let me = thread::id();
            if let Some((_, ear)) = ears.iter().find(|&&(thread, _)| thread == me) {
                return Some(ear.number());
            }
            ears.retain(|&(thread, _)| kernel::exists(thread));
            let ear =
                Own::raise(kernel::call!(SYS_epoll_create1, libc::EPOLL_CLOEXEC).ok()?).ok()?;
            let (number, events) = (ear.number(), (libc::EPOLLIN | libc::EPOLLET) as u32);
            kernel::epoll_ctl(number, libc::EPOLL_CTL_ADD, self.fd(), events, 0).ok()?;
            ears.push((me, ear));
            self.crowded.store(ears.len() > CROWD, Ordering::Relaxed);
            Some(number)
        })
    }

    /// Whether so many threads sleep for single connections here that a ring wakes too many of them for nothing.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }
}

impl Drop for SharedBell {
    fn drop(&mut self) {
        for fd in self.bell.owned_fds() {
            descriptor::remove(fd, Kind::Own);
        }
    }
}

/// A connection's place at a shared bell.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) bell: Arc<SharedBell>,
    pub(crate) place: u32,
}

/// The shared bells of this process, and how many pairs it has with whom.
#[derive(Debug)]
pub(crate) struct Bells(BTreeMap<ProcessId, OfPeer>);

#[derive(Debug, Default)]
struct OfPeer {
    pairs: usize,
    shared: Vec<Seats>,
}

#[derive(Debug)]
struct Seats {
    /// The epoll object whose connections share it; none: they stand in none.
    set: Option<u32>,
    bell: Arc<SharedBell>,
    taken: u32,
    /// Places from `next` on were never taken; of the others these are free.
    free: Vec<u32>,
    next: u32,
}

impl Bells {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Where a connection with `peer` that stands in `set` may sit; none: it gets a bell of its own, as where threads sleep alone
    /// although their connections stand in that set.
    pub(crate) fn seat(
        &mut self,
        process: &Process,
        peer: ProcessId,
        set: Option<u32>,
    ) -> Option<Seat> {
        let of_peer = self.0.get_mut(&peer).filter(|of_peer| of_peer.pairs >= FEW)?;
        if set.is_none() && !thread::alone() {
            return None;
        }
        let mut others = of_peer.shared.iter().filter(|seats| seats.set == set);
        if others.any(|seats| seats.bell.is_crowded()) {
            return None;
        }
        let free = |seats: &Seats| !seats.free.is_empty() || seats.next < PairBell::PLACES;
        let found = of_peer.shared.iter().position(|seats| seats.set == set && free(seats));
        let at = match found {
            Some(at) => at,
            None => {
                let bell = Arc::new(SharedBell::new(process)?);
                of_peer.shared.push(Seats { set, bell, taken: 0, free: Vec::new(), next: 0 });
                of_peer.shared.len() - 1
            }
        };
        let seats = &mut of_peer.shared[at];
        let place = seats.free.pop().unwrap_or_else(|| {
            seats.next += 1;
            seats.next - 1
        });
        seats.taken += 1;
        Some(Seat { bell: Arc::clone(&seats.bell), place })
    }

    /// One more pair with `peer`.
    pub(crate) fn begin(&mut self, peer: ProcessId) {
        self.0.entry(peer).or_default().pairs += 1;
    }

    /// One pair less, which sat there.
    pub(crate) fn end(&mut self, peer: ProcessId, seat: Option<&Seat>) {
        let Some(of_peer) = self.0.get_mut(&peer) else { return };
        of_peer.pairs = of_peer.pairs.saturating_sub(1);
        self.vacate(peer, seat);
        if self.0.get(&peer).is_some_and(|of_peer| of_peer.pairs == 0) {
            self.0.remove(&peer);
        }
    }

    /// The seat is free again. A bell at which nobody sits is no more.
    pub(crate) fn vacate(&mut self, peer: ProcessId, seat: Option<&Seat>) {
        let (Some(of_peer), Some(seat)) = (self.0.get_mut(&peer), seat) else { return };
        of_peer.shared.retain_mut(|seats| {
            if Arc::ptr_eq(&seats.bell, &seat.bell) {
                seats.free.push(seat.place);
                seats.taken -= 1;
            }
            seats.taken > 0
        });
    }

    /// In a child of fork: the bells are its parent's, whom they wake too. What it makes itself gets others.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// The pair is over: this process lets go of its memories and of what `numbers` name, its own bell and the peer's, unless other
/// connections have these too. `kept`: somebody still looks at the memories, which stay for good.
pub(crate) fn leave(
    structure: &mut Structure,
    pair: u64,
    parts: &mut Parts,
    numbers: [i32; 2],
    kept: bool,
) {
    let seat = parts.seat.take();
    if let Some(peer) = parts.peer.take() {
        structure.bells.end(peer, seat.as_ref());
    }
    let peers = parts.import.as_deref().and_then(Import::shared_bell);
    let others_have = [seat.is_some(), peers.is_some_and(|(bell, _)| Arc::strong_count(bell) > 1)];
    for (number, _) in numbers.into_iter().zip(others_have).filter(|(_, others)| !others) {
        descriptor::remove(number, Kind::Own);
    }
    let memories = (parts.export.take(), parts.import.take(), seat);
    if kept {
        std::mem::forget(memories);
    }
    structure.pairs.remove(&pair);
}
