//! A bell that many pairs share.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use vmmc_os::{Access, Descriptor, Event, Mapping, OsError, create_memory, page_size, random_u64};
use vmmc_shm::marks::Marks;

/// One event for the ends of many pairs, with a mark for each: a process with thousands of pairs has as many events as it has
/// processes at their other ends, say. It is for pairs with *one* other process, which could otherwise silence it under the others.
///
/// Who rings sets the mark of its pair first; who hears it takes the marks, and looks at those pairs. The event is not made
/// unreadable for that: wait for it edge-triggered, so that of several who hear it each gets every ring.
#[derive(Debug)]
pub struct PairBell {
    number: u64,
    event: Event,
    marks: Mapping,
    /// Of the marks, to send it along; nothing at those who got it.
    memory: Option<Descriptor>,
}

impl PairBell {
    /// Pairs that can share one.
    pub const PLACES: u32 = Marks::PLACES;

    pub(crate) fn new(floor: i32) -> Result<Self, OsError> {
        let memory = create_memory(page_size())?.raise(floor)?;
        let event = Event::new()?.raise(floor)?;
        let marks = Mapping::new(&memory, 0, Marks::LEN, Access::ReadWrite)?;
        Ok(Self { number: random_u64(), event, marks, memory: Some(memory) })
    }

    /// As it came from the peer.
    pub(crate) fn from_peer(number: u64, event: Descriptor, marks: Mapping) -> Self {
        Self { number, event: Event::from_descriptor(event), marks, memory: None }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn memory(&self) -> Option<&Descriptor> {
        self.memory.as_ref()
    }

    /// The event; ring and hear it as that of a pair of one's own.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// For whom it was rung.
    pub fn marks(&self) -> &Marks {
        // SAFETY: the mapping is page-aligned, long enough, writable, and lives as long as `self`; the memory is sealed against
        // shrinking, by this library or as the service has checked.
        unsafe { Marks::at(self.marks.as_ptr()) }
    }

    /// The descriptors that it takes in this process.
    pub fn owned_fds(&self) -> impl Iterator<Item = RawFd> {
        let memory = self.memory.as_ref().map(AsRawFd::as_raw_fd);
        [Some(self.event.as_fd().as_raw_fd()), memory].into_iter().flatten()
    }
}

/// What wakes the owner of imported memory.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// For this memory alone.
    Own(Event),
    /// For several pairs, with this one's place.
    Shared(Arc<PairBell>, u32),
}

impl PeerEvent {
    pub(crate) fn event(&self) -> &Event {
        match self {
            Self::Own(event) => event,
            Self::Shared(bell, _) => &bell.event,
        }
    }

    /// Before it is rung.
    pub(crate) fn mark(&self) {
        if let Self::Shared(bell, place) = self {
            bell.marks().mark(*place);
        }
    }
}
