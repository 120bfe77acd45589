//! Nameless shared memory: sealed memfds.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{self, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Resource, getrlimit};

use crate::{Descriptor, OsError};

/// Creates shared memory of `len` bytes, all zero and not yet backed by pages, that can neither shrink nor grow.
///
/// Nobody but this user can open it again through `/proc`.
///
/// # Errors
/// When descriptors or memory are exhausted, or `len` is larger than a file can be or this process may make one (`RLIMIT_FSIZE`).
pub fn create_memory(len: usize) -> Result<Descriptor, OsError> {
    // Beyond that limit the kernel does not only refuse: its signal would end the program.
    if getrlimit(Resource::Fsize).current.is_some_and(|most| len as u64 > most) {
        return Err(OsError::FBIG);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match fs::memfd_create("vmmc", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there is no such flag; the memory is the same otherwise.
        Err(OsError::INVAL) => fs::memfd_create("vmmc", flags),
        other => other,
    };
    let memory = Descriptor::from(memory?);
    fs::fchmod(&memory, Mode::RUSR | Mode::WUSR)?;
    fs::ftruncate(&memory, len as u64)?;
    fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(memory)
}

/// From now on nobody can map or write the memory for writing; writable mappings that exist stay.
///
/// # Errors
/// When the memory cannot be sealed (it is not a memfd, or its seals are sealed).
pub fn seal_read_only(memory: impl AsFd) -> Result<(), OsError> {
    fs::fcntl_add_seals(memory, SealFlags::FUTURE_WRITE | SealFlags::SEAL)
}

/// A read-only open file of the same memory: no mapping of it can ever be made writable.
///
/// # Errors
/// When descriptors are exhausted or `/proc` is missing.
pub fn reopen_read_only(memory: impl AsFd) -> Result<Descriptor, OsError> {
    let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    let file = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Descriptor::from(file))
}

/// What can no longer happen to a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seals {
    /// Neither shrink nor grow: touching a mapping can never raise SIGBUS for want of file.
    pub fixed_size: bool,
    /// No new writable mapping, no write call.
    pub no_new_writers: bool,
}

/// The seals of a descriptor; an error when it is not a memfd.
///
/// # Errors
/// When it is not a memfd.
pub fn memory_seals(memory: impl AsFd) -> Result<Seals, OsError> {
    let seals = fs::fcntl_get_seals(memory)?;
    Ok(Seals {
        fixed_size: seals.contains(SealFlags::SHRINK | SealFlags::GROW),
        no_new_writers: seals.intersects(SealFlags::FUTURE_WRITE | SealFlags::WRITE),
    })
}

/// Length of the memory, bytes.
///
/// # Errors
/// When the descriptor has no length.
pub fn memory_len(memory: impl AsFd) -> Result<u64, OsError> {
    Ok(u64::try_from(fs::fstat(memory)?.st_size).unwrap_or(0))
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// When memory is exhausted or the range is outside; part of the bytes may be written then.
pub fn write_memory(memory: impl AsFd, offset: u64, bytes: &[u8]) -> Result<(), OsError> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(memory.as_fd(), &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(OsError::NOSPC),
            Ok(count) => done += count,
            Err(OsError::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives fresh memory these contents. Stretches of zeros stay holes: what was never touched costs no memory.
///
/// # Errors
/// As [`write_memory`].
pub fn fill_memory(memory: impl AsFd, contents: &[u8]) -> Result<(), OsError> {
    const STRETCH: usize = 16 * 1024;
    static ZEROS: [u8; STRETCH] = [0; STRETCH];
    let mut offset = 0;
    for stretch in contents.chunks(STRETCH) {
        if stretch != &ZEROS[..stretch.len()] {
            write_memory(memory.as_fd(), offset, stretch)?;
        }
        offset += stretch.len() as u64;
    }
    Ok(())
}

/// Reads up to `bytes.len()` bytes at `offset`; 0 at the end.
///
/// # Errors
/// When the descriptor cannot be read.
pub fn read_memory(memory: impl AsFd, offset: u64, bytes: &mut [u8]) -> Result<usize, OsError> {
    rustix::io::pread(memory, bytes, offset)
}

/// Makes sure that pages stand behind a range, so that touching it later cannot fail.
///
/// # Errors
/// When memory is exhausted.
pub fn reserve_memory(memory: impl AsFd, offset: u64, len: u64) -> Result<(), OsError> {
    fs::fallocate(memory, fs::FallocateFlags::empty(), offset, len)
}
