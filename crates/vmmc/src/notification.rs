//! Notifications: what an exporter learns of a send that asked for one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vmmc_os::{Access, Descriptor, Event, Mapping, OsError, create_memory, wait_readable};
use vmmc_proto::PAGE_SIZE;
use vmmc_shm::mailbox::{Mailbox, Note, Taken};

use crate::process::lock;

/// What to do with notifications of an export.
#[derive(Default)]
pub enum Notify {
    /// There are none: a send that asks for one fails.
    #[default]
    None,
    /// [`crate::Export::wait`] returns them, and [`crate::Export::event_fd`] is readable while there are some.
    Event,
    /// The handler runs for each, on the process's one notification thread, in the order of [`crate::Export::wait`].
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

/// One notification, or several in one.
///
/// What it says was written by another process. It is checked against the export (the range is always inside), but nothing says that the
/// sender told the truth. All bytes of the send are visible. Notifications of one importer come in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Where the bytes went.
    pub offset: usize,
    /// How many.
    pub len: usize,
    /// The last (up to) 8 of them, little-endian: a short message need not be looked up.
    pub last_word: u64,
    /// More than one send is meant, anywhere in the export: more than 64 were not taken yet, and details were lost.
    pub many: bool,
}

/// Why a wait ended without a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum WaitError {
    /// no notification came in time: wait again
    Timeout,
    /// the export takes no notifications: create it with `.notify(Notify::Event)`
    NoNotifications,
    /// the system cannot wait: it is out of memory
    Exhausted,
}

/// The exporter's end of a mailbox.
#[derive(Debug)]
pub(crate) struct Doorbell {
    event: Event,
    mailbox: Mapping,
    /// Bytes of the export.
    len: usize,
    taking: Mutex<()>,
}

impl Doorbell {
    /// A new mailbox for an export of `len` bytes, and its memory.
    pub(crate) fn new(len: usize, floor: i32) -> Result<(Self, Descriptor), OsError> {
        let memory = create_memory(PAGE_SIZE)?.raise(floor)?;
        let mailbox = Mapping::new(&memory, 0, PAGE_SIZE, Access::ReadWrite)?;
        let event = Event::new()?.raise(floor)?;
        Ok((Self { event, mailbox, len, taking: Mutex::new(()) }, memory))
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes the next notification, if there is one; leaves the event readable if there are more.
    pub(crate) fn take(&self) -> Option<Notification> {
        let _one_at_a_time = lock(&self.taking);
        // The event first: a notification that comes between the two leaves it readable.
        self.event.drain();
        let mailbox = self.mailbox();
        let taken = mailbox.take()?;
        if !mailbox.is_empty() {
            self.event.signal();
        }
        Some(self.checked(taken))
    }

    /// Waits for the next notification.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<Notification, WaitError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if let Some(notification) = self.take() {
                return Ok(notification);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(WaitError::Timeout);
            }
            wait_readable(&[self.event.as_fd()], left).map_err(|_| WaitError::Exhausted)?;
        }
    }

    /// A range that is not inside the export says nothing: then anything may have changed.
    fn checked(&self, taken: Taken) -> Notification {
        if let Taken::Note(Note { offset, len, last_word }) = taken
            && let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len))
            && offset.checked_add(len).is_some_and(|end| end <= self.len)
        {
            return Notification { offset, len, last_word, many: false };
        }
        Notification { offset: 0, len: self.len, last_word: 0, many: true }
    }

    fn mailbox(&self) -> &Mailbox {
        // SAFETY: the mapping is page-aligned, a page long (more than a mailbox), writable, and lives as long as `self`;
        // the memory is sealed, so it cannot shrink.
        unsafe { Mailbox::at(self.mailbox.as_ptr()) }
    }
}
