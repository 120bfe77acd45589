//! Pinned memory: pages that stay where they are until they are unpinned.
//!
//! On Linux these are locked pages, counted against `RLIMIT_MEMLOCK`. Locks do not nest: one [`unpin`] undoes any
//! number of [`pin`]s of a page, and those of the program's own `mlock` as well.

use std::ffi::c_void;

use rustix::mm::{self, Advice, MsyncFlags};
use rustix::process::{Resource, getrlimit};

use crate::OsError;

/// Why pages cannot be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinError {
    /// The process may pin no more, or the system has no memory or map entries for it.
    Limit,
    /// Part of the range is not mapped, or cannot be accessed in the way asked for.
    NotMapped,
}

/// Pins `len` bytes at `start`, whole pages: brings them in and keeps them. With `write` they are pages that the
/// process may write. One system call when all goes well and `write` is not set; with it, two.
///
/// # Errors
/// See [`PinError`]; no page of the range is pinned then, not even one that was before.
pub fn pin(start: usize, len: usize, write: bool) -> Result<(), PinError> {
    // The pages have to be writable, which a lock alone does not ask; this also gives a private page its own copy.
    if write && populate(start, len, Advice::LinuxPopulateWrite).is_err() {
        return Err(PinError::NotMapped);
    }
    // SAFETY: locking changes no byte and no address; the kernel checks the range.
    if unsafe { mm::mlock(pointer(start), len) }.is_ok() {
        return Ok(());
    }
    unpin(start, len);
    // The kernel says the same for "too much" and "not there".
    match populate(start, len, Advice::LinuxPopulateRead) {
        Ok(()) | Err(OsError::AGAIN | OsError::INTR) => Err(PinError::Limit),
        Err(_) => Err(PinError::NotMapped),
    }
}

/// Unpins `len` bytes at `start`, whole pages. What is not mapped any more is not pinned either.
pub fn unpin(start: usize, len: usize) {
    // SAFETY: unlocking changes no byte and no address; the kernel checks the range.
    let unlocked = unsafe { mm::munlock(pointer(start), len) };
    if unlocked.is_ok() {
        return;
    }
    // A hole stops the call half-way: go on page by page.
    let page = crate::page_size();
    for address in (start..start.saturating_add(len)).step_by(page) {
        // SAFETY: as above.
        let _ = unsafe { mm::munlock(pointer(address), page) };
    }
}

/// Whether the page at `start` is mapped and pinned *now*: after its memory was unmapped, or replaced by other memory, it is
/// not. One system call of about 0.2 µs that changes nothing.
pub fn is_pinned(start: usize) -> bool {
    // The kernel refuses to invalidate what is locked; of memory that is not locked it has nothing to invalidate.
    // SAFETY: with these flags the call neither writes memory nor starts any writing back.
    let answer = unsafe {
        mm::msync(pointer(start), crate::page_size(), MsyncFlags::ASYNC | MsyncFlags::INVALIDATE)
    };
    answer == Err(OsError::BUSY)
}

/// The most bytes that this process may pin; `None`: no limit. A privileged process may pin more.
pub fn pin_limit() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Bytes that this process has pinned now, as the kernel counts them.
pub fn pinned_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes of memory of this machine.
pub fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion)]
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit))
}

fn populate(start: usize, len: usize, advice: Advice) -> Result<(), OsError> {
    // SAFETY: brings pages in without changing a byte; the kernel checks the range.
    unsafe { mm::madvise(pointer(start), len, advice) }
}

fn pointer(address: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(address)
}
