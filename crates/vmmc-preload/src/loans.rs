//! Loans of ring memory, asked for by `ioctl` (`vmmc/loan.h`, crate `vmmc-loan`).

use std::cell::Cell;

use libc::{c_int, c_ulong};
use vmmc_loan::ioctl::{BORROW, COMMIT, DONT_WAIT, Loan, RELEASE, RESERVE};
use vmmc_socket::kernel::{self, Errno};
use vmmc_socket::{Lent, Return, Terms, Transfer};

use crate::boundary::{catch, next, result, transfer};

/// Does the `ioctl` if it is about loans and the connection is lifted; what is left to the kernel gets `ENOTTY` there.
///
/// # Safety
/// As for `ioctl`. A structure that cannot be written is found out, and gives `EFAULT`.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> Option<c_int> {
    let native = next!(ioctl: fn(c_int, c_ulong, usize) -> c_int);
    // SAFETY: passes on what the program gave.
    let kernel = || unsafe { native(fd, request, argument) } as isize;
    let done = match request {
        RESERVE | BORROW => {
            if !vmmc_socket::lends(fd) {
                return None;
            }
            // SAFETY: looked at before.
            match unsafe { loan_at(fd, argument) } {
                Ok(loan) => lend(fd, request, loan, kernel),
                Err(error) => result(Err(error)),
            }
        }
        COMMIT => give_back(|| vmmc_socket::commit(fd, argument), kernel),
        RELEASE => {
            let read = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: argument };
            give_back(|| vmmc_socket::release(fd, &read), kernel)
        }
        _ => return None,
    };
    Some(done as c_int)
}

fn lend(fd: c_int, request: c_ulong, loan: &mut Loan, kernel: impl FnOnce() -> isize) -> isize {
    if loan.flags & !DONT_WAIT != 0 {
        return result(Err(Errno(libc::EINVAL)));
    }
    let terms = Terms {
        least: usize::try_from(loan.least).unwrap_or(usize::MAX),
        most: usize::try_from(loan.most).unwrap_or(usize::MAX),
        at_once: loan.flags & DONT_WAIT != 0,
    };
    let mut lent = Lent::new();
    let call = match request {
        RESERVE => vmmc_socket::reserve(fd, terms, &mut lent),
        _ => vmmc_socket::borrow(fd, terms, &mut lent),
    };
    let mut call = call.ok_or(None);
    let done = transfer(|| std::mem::replace(&mut call, Err(None)), kernel);
    if done == 0 {
        loan.length = lent.total() as u64;
        loan.segments = lent.segments().len() as u32;
        for (to, from) in loan.segment.iter_mut().zip(lent.segments()) {
            *to = *from;
        }
    }
    done
}

fn give_back<T: Transfer>(
    begin: impl FnOnce() -> Return<T>,
    kernel: impl FnOnce() -> isize,
) -> isize {
    match catch(Return::NotOurs, begin) {
        Return::Done(outcome) => result(outcome),
        Return::OverTcp(call) => {
            let mut call = Ok(call);
            transfer(|| std::mem::replace(&mut call, Err(None)), kernel)
        }
        Return::NotOurs => kernel(),
    }
}

thread_local! {
    /// Pages of this thread's stack that were looked at: they stay.
    static STACK: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

/// The smallest page there is.
const PAGE: usize = 4096;
/// What lies so close above the frame of a call is the caller's stack, or nothing at all.
const NEAR: usize = 64 << 10;

/// The program's structure at `address`, unless that is no memory to write to. The kernel is asked by a call that writes into
/// fields that only answer, at both ends of it: programs that make this call may make that one. For a structure on the stack,
/// where it mostly is, that happens once.
///
/// # Safety
/// What can be written is the program's to give.
unsafe fn loan_at<'a>(fd: c_int, address: usize) -> Result<&'a mut Loan, Errno> {
    let ends = [0, size_of::<Loan>() - size_of::<u64>()];
    let fault = Errno(libc::EFAULT);
    if address == 0 || !address.is_multiple_of(align_of::<Loan>()) {
        return Err(fault);
    }
    let here = 0u8;
    let on_stack = address.wrapping_sub((&raw const here).addr()) < NEAR;
    for end in ends {
        let end = address.checked_add(end).ok_or(fault)?;
        let (page, [first, second]) = (end / PAGE, STACK.get());
        if !on_stack || page != first && page != second {
            kernel::probe(fd, end)?;
            if on_stack {
                STACK.set([page, first]);
            }
        }
    }
    // SAFETY: not null, aligned, and writable; all bit patterns are valid.
    Ok(unsafe { &mut *(address as *mut Loan) })
}
