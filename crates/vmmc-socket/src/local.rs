//! What one process has of a connection: its mappings, its bell, its descriptors. Never unmapped while the slot's
//! locks are held; the structure itself lives for ever, so that a late look is never a wild one.

use std::cell::UnsafeCell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use vmmc::marks::Marks;
use vmmc::stream::{Ring, Tier, Words};
use vmmc::{Export, Import, ProcessId};

use crate::bells::{Seat, SharedBell};
use crate::busy::{Guests, Stay};
use crate::park::Calm;
use crate::shrink::Girth;
use crate::slot::SLOTS;
use crate::wait::Direction;
use crate::{kernel, policy};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Local {
    mine: AtomicPtr<u8>,
    theirs: AtomicPtr<u8>,
    mine_wide: AtomicPtr<u8>,
    theirs_wide: AtomicPtr<u8>,
    /// The event that wakes this side.
    pub(crate) bell: AtomicI32,
    /// The event that wakes the peer.
    pub(crate) peer_bell: AtomicI32,
    /// Where this side's bell is shared: that, kept by `parts`, and which place is this connection's.
    shared: AtomicPtr<SharedBell>,
    place: AtomicU32,
    /// Where the peer's is: its marks, kept by the import, and the place there.
    peer_marks: AtomicPtr<Marks>,
    peer_place: AtomicU32,
    /// The peer is another user's: whatever it has too may block, and is rung and silenced so that this does not matter.
    pub(crate) strange: AtomicBool,
    /// The number under which a thread goes on that slept in a call as the program closed its last one ([`crate::busy`]).
    pub(crate) kept: AtomicI32,
    /// Of receiving calls, of sending ones, and of polls.
    guests: [Guests; 3],
    /// The node service knows that this process has the connection.
    pub(crate) held: AtomicBool,
    pub(crate) girth: Girth,
    pub(crate) calm: Calm,
    /// Threads that look at the memories without a lock.
    pins: AtomicU32,
    /// Guarded by the structure's lock.
    parts: UnsafeCell<Parts>,
}

/// What a thread sleeps on for the peer's rings, when it waits for this connection alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bed {
    /// The connection's own bell: what it was rung stays in it for all who sleep on it, until one silences it.
    Own(i32),
    /// The thread's ear at a shared bell ([`SharedBell::ear`]); negative if there is none.
    Ear(i32),
}

impl Bed {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Own(bell) | Self::Ear(bell) => bell,
        }
    }

    /// The connection has been let go of.
    pub(crate) fn is_gone(self) -> bool {
        matches!(self, Self::Own(..0))
    }

    /// For how long at the most a thread may sleep on it: without an ear nothing wakes it.
    pub(crate) fn patience(self) -> Option<Duration> {
        matches!(self, Self::Ear(..0)).then_some(Duration::from_millis(1))
    }
}

/// While this lives the memories stay mapped, even if the connection is closed.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    local: &'a Local,
    ends: Ends,
}

impl Pin<'_> {
    /// The control blocks.
    pub(crate) fn ends(&self) -> Ends {
        self.ends
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.local.pins.fetch_sub(1, Ordering::SeqCst);
    }
}

// SAFETY: all but `parts` are atomics; `parts` is reached only through `Local::parts`, whose callers hold the
// structure's lock.
unsafe impl Sync for Local {}

/// The slow part of a [`Local`].
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Open descriptors of this process for the connection.
    pub(crate) descriptors: Vec<i32>,
    /// Its registrations in epoll objects: number of the set, number of the registration in it.
    pub(crate) members: Vec<(u32, u32)>,
    /// Boxed, because parked connections have none.
    pub(crate) export: Option<Box<Export>>,
    pub(crate) import: Option<Box<Import>>,
    /// The process at the other end of the pair.
    pub(crate) peer: Option<ProcessId>,
    pub(crate) seat: Option<Seat>,
}

/// The two control blocks of an attached connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// In our memory, written by the peer.
    pub(crate) mine: &'static Words,
    /// In the peer's memory, written by us.
    pub(crate) theirs: &'static Words,
}

static LOCALS: [AtomicPtr<Local>; SLOTS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; SLOTS];

/// The local part of slot `index`.
#[inline]
pub(crate) fn get(index: u32) -> &'static Local {
    let entry = &LOCALS[index as usize];
    let pointer = entry.load(Ordering::Acquire);
    // SAFETY: non-null entries come from `Box::into_raw` below and are never freed.
    unsafe { pointer.as_ref() }.unwrap_or_else(|| make(entry))
}

#[cold]
fn make(entry: &AtomicPtr<Local>) -> &'static Local {
    let null = || AtomicPtr::new(std::ptr::null_mut());
    let fresh = Box::into_raw(Box::new(Local {
        mine: null(),
        theirs: null(),
        mine_wide: null(),
        theirs_wide: null(),
        bell: AtomicI32::new(-1),
        peer_bell: AtomicI32::new(-1),
        shared: AtomicPtr::new(std::ptr::null_mut()),
        place: AtomicU32::new(0),
        peer_marks: AtomicPtr::new(std::ptr::null_mut()),
        peer_place: AtomicU32::new(0),
        strange: AtomicBool::new(false),
        kept: AtomicI32::new(Local::NOT_KEPT),
        guests: Default::default(),
        held: AtomicBool::new(false),
        girth: Girth::new(),
        calm: Calm::new(),
        pins: AtomicU32::new(0),
        parts: UnsafeCell::default(),
    }));
    match entry.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: just made, never freed.
        Ok(_) => unsafe { &*fresh },
        Err(other) => {
            // SAFETY: `fresh` was never shared; `other` is never freed.
            unsafe {
                drop(Box::from_raw(fresh));
                &*other
            }
        }
    }
}

impl Local {
    /// Of [`Local::kept`].
    pub(crate) const NOT_KEPT: i32 = -1;

    /// The slow part.
    ///
    /// # Safety
    /// The caller holds the structure's lock and has no other reference from here.
    #[expect(clippy::mut_from_ref, reason = "the structure's lock makes it exclusive")]
    pub(crate) unsafe fn parts(&self) -> &mut Parts {
        // SAFETY: as promised by the caller.
        unsafe { &mut *self.parts.get() }
    }

    /// The control blocks, if both memories are mapped. Use them only with a lock of the slot held, or that of an
    /// epoll set in which the connection is registered: `detach` takes all of these first.
    #[inline]
    pub(crate) fn ends(&self) -> Option<Ends> {
        let (mine, theirs) = (self.mine.load(Ordering::SeqCst), self.theirs.load(Ordering::SeqCst));
        if mine.is_null() || theirs.is_null() {
            return None;
        }
        // SAFETY: both point to mapped, page-aligned memory of at least a page, which stays mapped while the locks
        // named above are held; `Words` consists of atomics, so the peer's writes are no data race.
        Some(unsafe { Ends { mine: &*mine.cast(), theirs: &*theirs.cast() } })
    }

    /// Keeps the memories mapped while somebody looks at them without a lock.
    pub(crate) fn pin(&self) -> Option<Pin<'_>> {
        self.pins.fetch_add(1, Ordering::SeqCst);
        match self.ends() {
            Some(ends) => Some(Pin { local: self, ends }),
            None => {
                self.pins.fetch_sub(1, Ordering::SeqCst);
                None
            }
        }
    }

    /// Whether somebody looks at the memories, after [`Local::detach`].
    pub(crate) fn pinned(&self) -> bool {
        self.pins.load(Ordering::SeqCst) != 0
    }

    /// The ring that we read.
    pub(crate) fn ring_in(&self, tier: Tier) -> Option<Ring> {
        let base = if tier == Tier::Page {
            &self.mine
        } else {
            wide(&self.mine_wide, || self.widen_mine())?
        };
        // SAFETY: the first page is mapped, and all tiers once the wide mapping is there.
        Some(unsafe { Ring::new(base.load(Ordering::Acquire), tier) })
    }

    /// The ring that we write.
    pub(crate) fn ring_out(&self, tier: Tier) -> Option<Ring> {
        let base = if tier == Tier::Page {
            &self.theirs
        } else {
            wide(&self.theirs_wide, || self.widen_theirs())?
        };
        // SAFETY: as in `ring_in`.
        Some(unsafe { Ring::new(base.load(Ordering::Acquire), tier) })
    }

    /// Maps the larger rings that we read, before there is anything in them; whether there was address space for it.
    pub(crate) fn map_all_in(&self) -> bool {
        self.ring_in(Tier::Bulk).is_some()
    }

    /// Whether there is address space for the larger rings that we write.
    pub(crate) fn can_grow(&self) -> bool {
        self.ring_out(Tier::Bulk).is_some()
    }

    fn widen_mine(&self) -> Option<*mut u8> {
        // SAFETY: only the shared reference of an export that stays until `detach`, which needs the slot's locks; the
        // caller holds one of them, and `extend` locks for itself.
        unsafe { &*self.parts.get() }.export.as_ref()?.extend(Tier::MEMORY).ok()
    }

    fn widen_theirs(&self) -> Option<*mut u8> {
        // SAFETY: as in `widen_mine`.
        unsafe { &*self.parts.get() }.import.as_ref()?.extend(Tier::MEMORY).ok()
    }

    /// Gives a part of the memory that we write back to the system. The caller holds the outward lock of the slot.
    pub(crate) fn discard_out(&self, range: std::ops::Range<usize>) {
        // SAFETY: as in `widen_mine`.
        let import = unsafe { &*self.parts.get() }.import.as_ref();
        // Where the system refuses, the memory just stays.
        let _ = import.map(|import| import.discard(range));
    }

    /// See [`crate::busy`].
    pub(crate) fn guests(&self, stay: Stay) -> &Guests {
        match stay {
            Stay::Moving(Direction::In) => &self.guests[0],
            Stay::Moving(Direction::Out) => &self.guests[1],
            Stay::Polling => &self.guests[2],
        }
    }

    /// The numbers of this side's bell and of the peer's.
    pub(crate) fn bells(&self) -> [i32; 2] {
        [self.bell.load(Ordering::Acquire), self.peer_bell.load(Ordering::Acquire)]
    }

    /// Wakes the peer.
    pub(crate) fn ring_peer(&self) {
        if let Some(_pin) = self.pin() {
            // SAFETY: the marks are kept by the import, which stays while the memories are pinned.
            let marks = unsafe { self.peer_marks.load(Ordering::Acquire).as_ref() };
            if let Some(marks) = marks {
                marks.mark(self.peer_place.load(Ordering::Relaxed));
            }
        }
        self.ring(&self.peer_bell);
    }

    /// Wakes threads of this side.
    pub(crate) fn ring_own(&self) {
        if let Some(pin) = self.pin()
            && let Some(shared) = self.shared(&pin)
        {
            shared.marks().mark(self.place.load(Ordering::Relaxed));
        }
        self.ring(&self.bell);
    }

    /// The bell of this side, if others share it.
    pub(crate) fn shared<'a>(&'a self, _pin: &'a Pin<'_>) -> Option<&'a SharedBell> {
        // SAFETY: `parts.seat` keeps it while the memories are pinned.
        unsafe { self.shared.load(Ordering::Acquire).as_ref() }
    }

    /// What this thread sleeps on.
    pub(crate) fn bed(&self, pin: &Pin<'_>) -> Bed {
        match self.shared(pin) {
            Some(bell) => Bed::Ear(bell.ear().unwrap_or(-1)),
            None => Bed::Own(self.bell.load(Ordering::Acquire)),
        }
    }

    /// Whether it should have a bell of its own ([`SharedBell::is_crowded`]).
    pub(crate) fn is_crowded(&self) -> bool {
        !self.shared.load(Ordering::Relaxed).is_null()
            && self.pin().is_some_and(|pin| self.shared(&pin).is_some_and(SharedBell::is_crowded))
    }

    /// The seat of this side at a shared bell.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let pin = self.pin()?;
        let bell = std::ptr::from_ref(self.shared(&pin)?);
        // SAFETY: it lies in an `Arc` that `parts.seat` keeps while the memories are pinned.
        let bell = unsafe {
            Arc::increment_strong_count(bell);
            Arc::from_raw(bell)
        };
        Some(Seat { bell, place: self.place.load(Ordering::Relaxed) })
    }

    /// The event of this side's, of its own or at a shared bell.
    pub(crate) fn set_bell(&self, bell: i32, seat: Option<&Seat>) {
        let shared = seat.map_or(std::ptr::null(), |seat| Arc::as_ptr(&seat.bell));
        self.place.store(seat.map_or(0, |seat| seat.place), Ordering::Relaxed);
        self.shared.store(shared.cast_mut(), Ordering::Release);
        self.bell.store(bell, Ordering::Release);
    }

    /// The peer's event, and the mark to set before it is rung, if the peer shares it among connections.
    pub(crate) fn set_peer_bell(&self, bell: i32, mark: Option<(&Marks, u32)>) {
        let marks = mark.map_or(std::ptr::null(), |(marks, _)| std::ptr::from_ref(marks));
        self.peer_place.store(mark.map_or(0, |(_, place)| place), Ordering::Relaxed);
        self.peer_marks.store(marks.cast_mut(), Ordering::Release);
        self.peer_bell.store(bell, Ordering::Release);
    }

    fn ring(&self, bell: &AtomicI32) {
        let bell = bell.load(Ordering::Acquire);
        if bell < 0 {
            return;
        }
        if self.strange.load(Ordering::Relaxed) {
            // What was lifted has been lowered before: the peer finds on TCP what it is woken for.
            if policy::was_filtered() {
                return;
            }
            // SAFETY: a number that is not negative, for one system call; should it have been closed, that call does nothing.
            vmmc::bell::ring_stranger(unsafe { BorrowedFd::borrow_raw(bell) });
        } else {
            kernel::ring(bell);
        }
    }

    /// Takes all rings out of this side's bell.
    pub(crate) fn silence(&self) {
        let bell = self.bell.load(Ordering::Acquire);
        if bell < 0 {
            return;
        }
        if self.strange.load(Ordering::Relaxed) {
            // SAFETY: as in `ring`.
            vmmc::bell::silence(unsafe { BorrowedFd::borrow_raw(bell) });
        } else {
            kernel::silence(bell);
        }
    }

    /// Points to the memories of a pair that has become ready.
    pub(crate) fn attach(&self, mine: *mut u8, theirs: *mut u8) {
        self.mine.store(mine, Ordering::Release);
        self.theirs.store(theirs, Ordering::Release);
        self.calm.begin();
    }

    /// As [`Local::detach`], unless somebody looks at the memories without a lock; whether it was done.
    pub(crate) fn detach_unpinned(&self) -> bool {
        let ends = [&self.mine, &self.theirs];
        let were = ends.map(|pointer| pointer.swap(std::ptr::null_mut(), Ordering::SeqCst));
        // Whoever pins from now on finds nothing there; who has pinned before is counted.
        if self.pinned() {
            ends.iter().zip(were).for_each(|(pointer, was)| pointer.store(was, Ordering::SeqCst));
            return false;
        }
        self.detach();
        true
    }

    /// Forgets the memories. The caller holds both locks of the slot, and the structure's to drop what it gets.
    pub(crate) fn detach(&self) {
        for pointer in [&self.mine, &self.theirs, &self.mine_wide, &self.theirs_wide] {
            pointer.store(std::ptr::null_mut(), Ordering::SeqCst);
        }
        self.set_bell(-1, None);
        self.set_peer_bell(-1, None);
        self.held.store(false, Ordering::Release);
        self.girth.slim();
        self.calm.end();
    }
}

fn wide(pointer: &AtomicPtr<u8>, map: impl FnOnce() -> Option<*mut u8>) -> Option<&AtomicPtr<u8>> {
    if pointer.load(Ordering::Acquire).is_null() {
        pointer.store(map()?, Ordering::Release);
    }
    Some(pointer)
}
