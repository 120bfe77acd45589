//! Waiting for many descriptors at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use crate::{Descriptor, OsError};

/// What to wait for, and what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Something can be read (or accepted), or the other side has hung up.
    pub readable: bool,
    /// Something can be written, or writing would fail at once.
    pub writable: bool,
}

impl Readiness {
    /// Wait for reading only.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Wait for writing only.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Wait for both.
    pub const BOTH: Self = Self { readable: true, writable: true };
}

/// Waits for many descriptors, each with a number that comes back; level-triggered unless added otherwise.
#[derive(Debug)]
pub struct Poller {
    epoll: Descriptor,
}

impl Poller {
    /// A poller of nothing.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn new() -> Result<Self, OsError> {
        let epoll = Descriptor::from(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { epoll })
    }

    /// As [`Descriptor::raise`].
    ///
    /// # Errors
    /// When there is no number left above `floor`.
    pub fn raise(self, floor: i32) -> Result<Self, OsError> {
        Ok(Self { epoll: self.epoll.raise(floor)? })
    }

    /// Begins to wait for `fd`.
    ///
    /// # Errors
    /// When it is waited for already, cannot be waited for, or memory is exhausted.
    pub fn add(&self, fd: impl AsFd, token: u64, readiness: Readiness) -> Result<(), OsError> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags(readiness))
    }

    /// Begins to wait for `fd` to be readable, edge-triggered: it is told once for each time that something comes (at
    /// least once if something is there already), whether or not anybody reads.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_edge(&self, fd: impl AsFd, token: u64) -> Result<(), OsError> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// When it is not waited for.
    pub fn change(&self, fd: impl AsFd, token: u64, readiness: Readiness) -> Result<(), OsError> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags(readiness))
    }

    /// Ends waiting. Closing a descriptor is not enough while another descriptor of the same open file exists.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // Fails only if it is not waited for, which is the wish.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Sleeps until something is ready or the time is over (for ever with `None`); at most 256 at a time. A signal ends
    /// the sleep too.
    ///
    /// # Errors
    /// Only when the kernel is out of memory.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Vec<(u64, Readiness)>, OsError> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(256);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(OsError::INTR) => {}
            Err(error) => return Err(error),
        }
        let broken = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        Ok(events
            .iter()
            .map(|event| {
                let flags = event.flags;
                let readiness = Readiness {
                    readable: flags.intersects(epoll::EventFlags::IN | broken),
                    writable: flags.intersects(epoll::EventFlags::OUT | broken),
                };
                (event.data.u64(), readiness)
            })
            .collect())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn flags(readiness: Readiness) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, readiness.readable);
    flags.set(epoll::EventFlags::OUT, readiness.writable);
    flags
}
