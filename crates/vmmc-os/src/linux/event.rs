//! Waking and being woken through a descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::{Descriptor, OsError};

/// A non-blocking eventfd: readable after a signal until drained.
#[derive(Debug)]
pub struct Event(Descriptor);

impl Event {
    /// A new event that nobody has signalled.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn new() -> Result<Self, OsError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Descriptor::from(fd)))
    }

    /// As [`Descriptor::raise`].
    ///
    /// # Errors
    /// When there is no number left above `floor`.
    pub fn raise(self, floor: i32) -> Result<Self, OsError> {
        self.0.raise(floor).map(Self)
    }

    /// Takes an eventfd that another process made; see [`is_event`].
    pub fn from_descriptor(descriptor: Descriptor) -> Self {
        Self(descriptor)
    }

    /// Makes it readable. A full counter is readable already, so that error is success.
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// As `signal`, for an event that another process may have made blocking since: does nothing when the counter is full,
    /// so that a hostile owner cannot make us wait.
    pub fn signal_unless_full(&self) {
        let mut polled = [PollFd::new(&self.0, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if matches!(poll(&mut polled, Some(&now)), Ok(1)) {
            self.signal();
        }
    }

    /// Makes it unreadable; whether it was readable.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        rustix::io::read(&self.0, &mut count).is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a descriptor that came from somebody else is a non-blocking eventfd.
pub fn is_event(fd: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let kind = rustix::fs::readlink(path, Vec::new());
    let flags = rustix::fs::fcntl_getfl(fd);
    kind.is_ok_and(|kind| kind.to_bytes() == b"anon_inode:[eventfd]")
        && flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// Sleeps until a descriptor is readable (or hung up) or the time is over; for ever with `None`. Which are readable,
/// one bit each from the lowest (at most 64 descriptors).
///
/// # Errors
/// When the kernel is out of memory. A signal is not an error: the result is 0 then, as after a timeout.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<u64, OsError> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    if wait(&mut polled, timeout)? == 0 {
        return Ok(0);
    }
    let readable = polled.iter().take(64).enumerate().filter(|(_, fd)| !fd.revents().is_empty());
    Ok(readable.fold(0, |bits, (index, _)| bits | 1 << index))
}

/// Waits until `fd` can be written, or has failed, at most `timeout`. A signal ends the wait early.
///
/// # Errors
/// When kernel memory is exhausted.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> Result<(), OsError> {
    wait(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(timeout)).map(drop)
}

/// How many are ready; none also after a signal.
fn wait(polled: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<usize, OsError> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(polled, timeout.as_ref()) {
        Err(OsError::INTR) => Ok(0),
        ready => ready,
    }
}
