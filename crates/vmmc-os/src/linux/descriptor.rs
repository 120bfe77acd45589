//! An owned descriptor that is closed by a system call of its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

    /// A new descriptor for the same open file, of a number of at least `floor`, so that it does not take a number that a program
    /// expects to get. That may be beyond the limit of descriptors, if the process may raise it: it is raised for the moment, in which nobody else
    /// may change it. A program that has lowered all its limits below `floor` since, though not to a few, leaves the last quarter of what it has now.
    ///
    /// # Errors
    /// When there is no number left there.
    pub fn duplicate_above(fd: BorrowedFd<'_>, floor: RawFd) -> Result<Self, OsError> {
        let made = match rustix::io::fcntl_dupfd_cloexec(fd, floor) {
            Err(OsError::INVAL) => beyond_the_limit(fd, floor).or_else(|_| {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                let lower = RawFd::try_from(limit / 4 * 3).unwrap_or(floor);
                if limit < FEW || lower >= floor {
                    return Err(OsError::INVAL);
                }
                rustix::io::fcntl_dupfd_cloexec(fd, lower)
            }),
            made => made,
        };
        made.map(Self::from)
    }

    /// Moves the descriptor as [`Descriptor::duplicate_above`] says. With floor 0, or when its number is high enough, nothing happens.
    ///
    /// # Errors
    /// When there is no number left there; the descriptor is closed then.
    pub fn raise(self, floor: RawFd) -> Result<Self, OsError> {
        if self.0 >= floor { Ok(self) } else { Self::duplicate_above(self.as_fd(), floor) }
    }
}

/// The number of a new descriptor at `floor` or above, which the limit of descriptors keeps the program itself from.
fn beyond_the_limit(fd: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd, OsError> {
    with_numbers_above(floor, || rustix::io::fcntl_dupfd_cloexec(fd, floor))
}

/// Calls `make` while numbers from `floor` on may be had, which the limit of descriptors keeps the program itself from.
pub(super) fn with_numbers_above<R>(
    floor: RawFd,
    make: impl FnOnce() -> Result<R, OsError>,
) -> Result<R, OsError> {
    /// So many are enough.
    const NUMBERS: u64 = 1 << 16;
    let limits = getrlimit(Resource::Nofile);
    let floor_number = u64::try_from(floor).map_err(|_| OsError::INVAL)?;
    let top = limits.maximum.unwrap_or(u64::MAX).min(floor_number + NUMBERS);
    if limits.current.is_none_or(|limit| floor_number < limit) || top <= floor_number {
        return Err(OsError::INVAL);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(top), ..limits })?;
    let made = make();
    setrlimit(Resource::Nofile, limits)?;
    made
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
