//! Being told when memory is unmapped, emptied or moved: userfaultfd *events*, without catching any fault.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::{Descriptor, OsError};

/// Watches memory. Whoever unmaps, empties (`madvise`) or moves a watched range waits in the system call until
/// [`Self::next_lost`] has taken the event, so somebody must read all the time.
#[derive(Debug)]
pub struct MemoryWatch(Descriptor);

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)` and its neighbours.
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// Write-protection faults: of which there are none, as nothing is ever protected.
const MODE_WRITE_PROTECT: u64 = 2;
const USER_MODE_ONLY: u32 = 1;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
/// The features that give these three events.
const FEATURES: u64 = 1 << 2 | 1 << 3 | 1 << 6;

impl MemoryWatch {
    /// Opens a watch.
    ///
    /// # Errors
    /// When the system does not allow it ([`OsError::PERM`], [`OsError::NOSYS`]), or lacks one of the events.
    pub fn new() -> Result<Self, OsError> {
        let open = |mode| {
            let flags = UserfaultfdFlags::CLOEXEC
                | UserfaultfdFlags::NONBLOCK
                | UserfaultfdFlags::from_bits_retain(mode);
            // SAFETY: a fresh descriptor with which nothing is registered yet.
            unsafe { userfaultfd(flags) }
        };
        // We never catch a fault, so faults of user mode are as good as all.
        let watch = Self(Descriptor::from(open(USER_MODE_ONLY).or_else(|_| open(0))?));
        watch.control(API, &mut [0xaa, FEATURES, 0])?;
        Ok(watch)
    }

    /// Begins to watch whole pages.
    ///
    /// # Errors
    /// When the range is not mapped, or not of a kind that can be watched.
    pub fn watch(&self, start: usize, len: usize) -> Result<(), OsError> {
        self.control(REGISTER, &mut [start as u64, len as u64, MODE_WRITE_PROTECT, 0])
    }

    /// Ends watching; the range may be gone already.
    pub fn unwatch(&self, start: usize, len: usize) {
        let _ = self.control(UNREGISTER, &mut [start as u64, len as u64]);
    }

    /// A range whose memory is lost, or `None` when no more is reported now. Taking it lets the thread that lost it go on.
    pub fn next_lost(&self) -> Option<Range<usize>> {
        loop {
            let mut message = [0u64; 4];
            let read = rustix::io::read(&self.0, bytes_of(&mut message)).ok()?;
            if read != size_of_val(&message) {
                return None;
            }
            let [kind, first, second, third] = message;
            let kind = kind.to_ne_bytes()[0];
            #[allow(clippy::cast_possible_truncation)]
            let range = |start: u64, end: u64| start as usize..end as usize;
            match kind {
                EVENT_REMOVE | EVENT_UNMAP => return Some(range(first, second)),
                // From, to, length.
                EVENT_REMAP => return Some(range(first, first.saturating_add(third))),
                _ => {}
            }
        }
    }

    fn control<const N: usize>(
        &self,
        request: libc::c_ulong,
        argument: &mut [u64; N],
    ) -> Result<(), OsError> {
        // SAFETY: the structures of these requests consist of `N` u64, which the kernel reads and writes during the call.
        let answer = unsafe {
            libc::syscall(libc::SYS_ioctl, self.0.as_raw_fd(), request, argument.as_mut_ptr())
        };
        if answer == 0 {
            return Ok(());
        }
        Err(OsError::from_io_error(&std::io::Error::last_os_error()).unwrap_or(OsError::INVAL))
    }
}

impl AsFd for MemoryWatch {
    /// Readable when a range was lost.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn bytes_of(words: &mut [u64; 4]) -> &mut [u8] {
    // SAFETY: the same bytes, of which any value is a valid u64.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of::<[u64; 4]>()) }
}
