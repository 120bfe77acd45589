//! The calls themselves, as `include/vmmc/loan.h` has them too.
//!
//! A number tells the size of its structure; another meaning gets another number. So a kernel, or a library, that does not know
//! a call answers `ENOTTY`, and the caller falls back.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Segments of one loan, at the most.
pub const SEGMENTS: usize = 4;
/// Bytes that one call may insist on ([`Loan::least`]), at the most.
pub const LARGEST: usize = 1 << 20;

/// Lends space for bytes to send.
pub const RESERVE: u64 = number(READ_WRITE, 1);
/// Ends the loan of space; as many bytes as the argument says, from its beginning on, are sent. Gives how many.
pub const COMMIT: u64 = number(0, 2);
/// Lends bytes that have arrived.
pub const BORROW: u64 = number(READ_WRITE, 3);
/// Ends the loan of bytes; as many as the argument says, from its beginning on, were read. Gives how many.
pub const RELEASE: u64 = number(0, 4);

/// In [`Loan::flags`]: do not wait, whatever the descriptor's mode.
pub const DONT_WAIT: u32 = 1;

const READ_WRITE: u64 = 3 << 30 | (size_of::<Loan>() as u64) << 16;

const fn number(direction_and_size: u64, nr: u64) -> u64 {
    direction_and_size | 0xbd << 8 | nr
}

/// What [`RESERVE`] and [`BORROW`] are asked and answer: `struct vmmc_loan`.
#[derive(Debug)]
#[repr(C)]
pub struct Loan {
    /// Out: bytes on loan. None when borrowing: the stream has ended.
    pub length: u64,
    /// In: bytes to wait for; at least 1, at most [`LARGEST`].
    pub least: u64,
    /// In: lend no more than so many; at least `least`.
    pub most: u64,
    /// In: [`DONT_WAIT`].
    pub flags: u32,
    /// Out: entries of `segment`.
    pub segments: u32,
    /// Out: where the bytes lie, in the order of the stream.
    pub segment: [libc::iovec; SEGMENTS],
}

impl Loan {
    /// A question.
    pub const fn ask(least: usize, most: usize, flags: u32) -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let segment = [none; SEGMENTS];
        Self { length: 0, least: least as u64, most: most as u64, flags, segments: 0, segment }
    }
}

/// [`RESERVE`] or [`BORROW`].
pub fn lend(fd: BorrowedFd<'_>, call: u64, loan: &mut Loan) -> io::Result<()> {
    // SAFETY: the structure is the one of these calls.
    match unsafe { libc::ioctl(fd.as_raw_fd(), call as _, std::ptr::from_mut(loan)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// [`COMMIT`] or [`RELEASE`] of `len` bytes.
pub fn give_back(fd: BorrowedFd<'_>, call: u64, len: usize) -> io::Result<usize> {
    // SAFETY: these calls take a number.
    match unsafe { libc::ioctl(fd.as_raw_fd(), call as _, len) } {
        count @ 0.. => Ok(count as usize),
        _ => Err(io::Error::last_os_error()),
    }
}
