//! An owned descriptor that is closed by a system call of its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::process::{Resource, getrlimit};

use crate::OsError;

/// A limit of descriptors of which none can be spared.
const FEW: u64 = 256;

/// An owned descriptor, close-on-exec, closed without passing through libc's `close`.
#[derive(Debug)]
pub struct Descriptor(RawFd);

impl Descriptor {
    /// A new descriptor for the same open file.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn duplicate(fd: BorrowedFd<'_>) -> Result<Self, OsError> {
        rustix::io::fcntl_dupfd_cloexec(fd, 0).map(Self::from)
    }

    /// Moves the descriptor to a number of at least `floor`, so that it does not take a number that a program
    /// expects to get. With floor 0, or when it is high enough, nothing happens. A program that has lowered its limit
    /// of descriptors below `floor` since, though not to a few, leaves the last quarter of what it has now.
    ///
    /// # Errors
    /// When there is no number left above `floor`; the descriptor is closed then.
    pub fn raise(self, floor: RawFd) -> Result<Self, OsError> {
        if self.0 >= floor {
            return Ok(self);
        }
        let raised = match rustix::io::fcntl_dupfd_cloexec(&self, floor) {
            Err(OsError::INVAL) => {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                let lower = RawFd::try_from(limit / 4 * 3).unwrap_or(floor);
                if limit < FEW || lower >= floor {
                    return Err(OsError::INVAL);
                }
                rustix::io::fcntl_dupfd_cloexec(&self, lower)
            }
            raised => raised,
        };
        raised.map(Self::from)
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into_raw_fd())
    }
}

impl From<Descriptor> for OwnedFd {
    fn from(descriptor: Descriptor) -> Self {
        let raw = descriptor.0;
        std::mem::forget(descriptor);
        // SAFETY: `raw` was owned by `descriptor`, which is forgotten: ownership moves.
        unsafe { Self::from_raw_fd(raw) }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: `self` owns the descriptor and is going away: nobody closes it a second time.
        unsafe { rustix::io::close(self.0) }
    }
}
