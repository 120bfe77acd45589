//! Notifications: what an exporter learns of a send that asked for one.
//!
//! The mailbox says who wins which race ([`vmmc_shm::mailbox`]); here is the exporter's end of it, and the sender's.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use vmmc_os::{
    Access, Descriptor, Event, Mapping, OsError, Signals, create_memory, ring_stranger,
    strangers_can_be_rung, wait_readable,
};
use vmmc_proto::{Allow, ExportId, PAGE_SIZE};
use vmmc_shm::mailbox::{Mailbox, Note, Sleep, Taken};

use crate::import::Import;
use crate::process::lock;

/// What to do with notifications of an export.
#[derive(Default)]
pub enum Notify {
    /// There are none: a send that asks for one fails.
    #[default]
    None,
    /// [`crate::Export::wait`] and [`crate::Export::notified`] return them; [`crate::Export::event_fd`] tells that there are some.
    Event,
    /// The handler runs for each, on the process's one notification thread, in the order of [`crate::Export::wait`]. While it runs, no
    /// other handler of the process does.
    Handler(Box<dyn FnMut(Notification) + Send>),
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Event => "Event",
            Self::Handler(_) => "Handler",
        })
    }
}

/// One notification, or the count of those whose details are lost.
///
/// **Coalescing.** An export keeps 64 notifications that nobody took, each by itself. Those that come when it is full are counted, and
/// the count is taken as one notification after the 64: none is lost silently. **Order.** Those of one importer come in the order of
/// its sends. **Visibility.** All bytes of the send, and all that the same thread sent before on this import by calls that
/// have returned, are visible; of asynchronous operations, those that are complete.
///
/// What it says was written by another process. It is checked against the export (the range is always inside), but nothing says that the
/// sender told the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// The export that it is about.
    pub export: ExportId,
    /// Where the bytes went. With [`Self::lost`], 0.
    pub offset: usize,
    /// How many. With [`Self::lost`], all of the export: anything may have changed.
    pub len: usize,
    /// The last (up to) 8 of them, little-endian: a short message need not be looked up. With [`Self::lost`], 0.
    pub last_word: u64,
    /// How many notifications this one stands for, when their details are lost; 0 for an ordinary one. Of a pair: how often its peer rang.
    pub lost: u64,
}

/// Why a wait ended without a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum WaitError {
    /// no notification came in time: wait again
    Timeout,
    /// the export takes no notifications: create it with `.notify(Notify::Event)`
    NoNotifications,
    /// a future is woken by a thread of the library, and there is none: open the process with a watcher, or await `event_fd`
    NoThread,
    /// the system cannot wait: it is out of memory
    Exhausted,
}

/// The exporter's end of a mailbox.
#[derive(Debug)]
pub(crate) struct Doorbell {
    export: ExportId,
    /// Bytes of the export.
    len: usize,
    event: Event,
    /// Processes of other users may have the event too.
    strangers: bool,
    mailbox: Mapping,
    /// Held by whoever takes: the last announced sleep.
    sleep: Mutex<u64>,
    floor: i32,
    /// For the one thread that waits by the event's edges.
    signals: OnceLock<Option<Signals>>,
    edges_taken: AtomicBool,
    pub(crate) wakers: Wakers,
}

/// The right to be the one that waits by the event's edges.
struct Edges<'d>(&'d Doorbell);

impl Drop for Edges<'_> {
    fn drop(&mut self) {
        self.0.edges_taken.store(false, Ordering::Release);
    }
}

/// The futures that wait for a notification.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Mutex<BTreeMap<u64, Waker>>);

impl Doorbell {
    /// A new mailbox for an export of `len` bytes, and its memory.
    pub(crate) fn new(
        export: ExportId,
        len: usize,
        allow: Allow,
        floor: i32,
    ) -> Result<(Self, Descriptor), OsError> {
        let memory = create_memory(PAGE_SIZE)?.raise(floor)?;
        let mailbox = Mapping::new(&memory, 0, PAGE_SIZE, Access::ReadWrite)?;
        let event = Event::new()?.raise(floor)?;
        let doorbell = Self {
            export,
            len,
            event,
            strangers: allow != Allow::SameUser && strangers_can_be_rung(),
            mailbox,
            sleep: Mutex::default(),
            floor,
            signals: OnceLock::new(),
            edges_taken: AtomicBool::new(false),
            wakers: Wakers::default(),
        };
        Ok((doorbell, memory))
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes the next notification, if there is one. No system call.
    pub(crate) fn take(&self) -> Option<Notification> {
        let _one_at_a_time = lock(&self.sleep);
        self.mailbox().take().map(|taken| self.checked(taken))
    }

    /// Takes the next notification; when there is none, the event is not readable afterwards, until one comes.
    pub(crate) fn take_or_sleep(&self) -> Option<Notification> {
        self.take_or_announce(|event| {
            event.drain();
        })
    }

    /// As [`Self::take_or_sleep`] for who waits for the event's edges: leaves it readable, and saves a system call.
    pub(crate) fn take_or_await_edge(&self) -> Option<Notification> {
        self.take_or_announce(|_| {})
    }

    /// Gives the event an edge, for a waiter that leaves notifications behind.
    pub(crate) fn look_again(&self) {
        if self.strangers {
            ring_stranger(self.event.as_fd())
        } else {
            self.event.signal_unless_full()
        }
    }

    fn take_or_announce(&self, clear: impl FnOnce(&Event)) -> Option<Notification> {
        let mut sleep = lock(&self.sleep);
        let mailbox = self.mailbox();
        let mut taken = mailbox.take();
        if taken.is_none() {
            clear(&self.event);
            *sleep += 1;
            mailbox.announce_sleep(*sleep);
            taken = mailbox.take();
            if taken.is_some() {
                // Its sender may have seen us awake, and those of others that are still there too.
                self.look_again();
            }
        }
        taken.map(|taken| self.checked(taken))
    }

    /// Enters a notification that the process's own engine brought; who sleeps has to be [rung](Self::ring) for.
    pub(crate) fn deliver(&self, note: Note) -> Option<Sleep> {
        self.mailbox().push(note)
    }

    /// Wakes who sleeps.
    pub(crate) fn ring(&self, sleep: Sleep) {
        self.look_again();
        self.mailbox().rung(sleep);
    }

    /// Waits for the next notification.
    ///
    /// One thread waits by edges, and clears the event only when its time is over: that saves a system call before each sleep. It
    /// may be one only, as an edge is for one: those beside it see by the event's level whether there may be something left.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<Notification, WaitError> {
        if let Some(notification) = self.take() {
            return Ok(notification);
        }
        let edges = if timeout.is_zero() { None } else { self.edges() };
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let over = left == Some(Duration::ZERO);
            let by_edges = edges.as_ref().filter(|_| !over);
            let taken = match by_edges {
                Some(_) => self.take_or_await_edge(),
                None => self.take_or_sleep(),
            };
            if let Some(notification) = taken {
                return Ok(notification);
            }
            if over {
                return Err(WaitError::Timeout);
            }
            match by_edges {
                Some((_, signals)) => signals.wait(left),
                None => wait_readable(&[self.event.as_fd()], left).map(drop),
            }
            .map_err(|_| WaitError::Exhausted)?;
        }
    }

    /// For one thread at a time; `None` too when there was no descriptor for it.
    fn edges(&self) -> Option<(Edges<'_>, &Signals)> {
        if self.edges_taken.swap(true, Ordering::Acquire) {
            return None;
        }
        let edges = Edges(self);
        let signals = || Signals::of(&self.event).and_then(|all| all.raise(self.floor)).ok();
        Some((edges, self.signals.get_or_init(signals).as_ref()?))
    }

    /// A range that is not inside the export says nothing: then anything may have changed.
    fn checked(&self, taken: Taken) -> Notification {
        let export = self.export;
        let lost = match taken {
            Taken::Lost(count) => count,
            Taken::Note(Note { offset, len, last_word }) => {
                if let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len))
                    && offset.checked_add(len).is_some_and(|end| end <= self.len)
                {
                    return Notification { export, offset, len, last_word, lost: 0 };
                }
                1
            }
        };
        Notification { export, offset: 0, len: self.len, last_word: 0, lost }
    }

    fn mailbox(&self) -> &Mailbox {
        // SAFETY: the mapping is page-aligned, a page long (more than a mailbox), writable, and lives as long as `self`;
        // the memory is sealed, so it cannot shrink.
        unsafe { Mailbox::at(self.mailbox.as_ptr()) }
    }
}

impl Wakers {
    /// The future `number` is to be woken by this; replaces what it said before.
    pub(crate) fn set(&self, number: u64, waker: &Waker) {
        lock(&self.0)
            .entry(number)
            .and_modify(|old| old.clone_from(waker))
            .or_insert_with(|| waker.clone());
    }

    /// The future `number` waits no more.
    pub(crate) fn remove(&self, number: u64) {
        lock(&self.0).remove(&number);
    }

    /// Wakes all: who finds nothing waits again.
    pub(crate) fn wake(&self) {
        // Taken out first: a waker may do anything, among other things drop a future.
        let woken = std::mem::take(&mut *lock(&self.0));
        woken.into_values().for_each(Waker::wake);
    }
}

impl Import {
    /// The exporter's mailbox; a pair has none.
    #[inline]
    pub(crate) fn mailbox(&self) -> Option<&Mailbox> {
        // SAFETY: the mapping is page-aligned, a page long (more than a mailbox), writable, and lives as long as `self`;
        // the service checked that the memory cannot shrink.
        self.mailbox.as_ref().map(|mapping| unsafe { Mailbox::at(mapping.as_ptr()) })
    }

    /// The sender's end: tells the exporter of bytes that were placed at `offset`. Two system calls if it announced that it sleeps; a
    /// pair has no mailbox, and always rings.
    #[inline]
    pub(crate) fn tell(&self, offset: usize, bytes: &[u8]) {
        let Some(bell) = &self.event else { return };
        let event = bell.event();
        let Some(mailbox) = self.mailbox() else {
            bell.mark();
            return if self.stranger { ring_stranger(event.as_fd()) } else { event.signal() };
        };
        let tail = &bytes[bytes.len().saturating_sub(8)..];
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        let note = Note {
            offset: offset as u64,
            len: bytes.len() as u64,
            last_word: u64::from_le_bytes(word),
        };
        if let Some(sleep) = mailbox.push(note) {
            // All importers share the event, and each can fill it and make it block. Those of one's own user have to be quicker
            // than these two calls.
            if self.stranger {
                ring_stranger(event.as_fd())
            } else {
                event.signal_unless_full()
            }
            mailbox.rung(sleep);
        }
    }
}
