//! Memory on loan: a few pieces, in the order of the stream.

use std::io;

use crate::ioctl::{Loan, SEGMENTS};

/// The pieces of one loan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    pieces: [libc::iovec; SEGMENTS],
    count: usize,
}

impl Segments {
    pub(crate) fn of(loan: &Loan) -> Self {
        Self { pieces: loan.segment, count: (loan.segments as usize).min(SEGMENTS) }
    }

    /// The one piece that `bytes` is.
    pub(crate) fn one(bytes: &mut [u8]) -> Self {
        let mut loan = Loan::ask(1, 1, 0);
        loan.segment[0] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        loan.segments = u32::from(!bytes.is_empty());
        Self::of(&loan)
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces().map(|(_, len)| len).sum()
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = (*mut u8, usize)> + use<> {
        let Self { pieces, count } = *self;
        pieces.into_iter().take(count).map(|piece| (piece.iov_base.cast::<u8>(), piece.iov_len))
    }

    /// Calls `each` with the contiguous parts of `[at, at + len)`: the address, and how much of the range was before it.
    pub(crate) fn walk(&self, at: usize, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len()),
            "{len} bytes at {at} are not on loan"
        );
        let (mut skip, mut done) = (at, 0);
        for (base, piece) in self.pieces() {
            let part = piece.saturating_sub(skip).min(len - done);
            if part > 0 {
                each(base.wrapping_add(skip), part, done);
            }
            skip = skip.saturating_sub(piece);
            done += part;
        }
    }
}

/// The error of an impossible question, as the call itself would give it.
pub(crate) fn check(least: usize, most: usize) -> io::Result<()> {
    if least == 0 || most < least {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if least > crate::ioctl::LARGEST {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(())
}

/// Bytes that a buffer gets for a loan of `least` to `most`.
pub(crate) fn buffer_size(least: usize, most: usize) -> usize {
    most.min(64 << 10).max(least)
}

/// Whether the connection lends nothing now.
pub(crate) fn not_here(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTTY)
}

/// Whether the call may be made again.
pub(crate) fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(a: &mut [u8], b: &mut [u8], c: &mut [u8]) -> Segments {
        let mut loan = Loan::ask(1, 1, 0);
        for (to, from) in loan.segment.iter_mut().zip([a, b, c]) {
            *to = libc::iovec { iov_base: from.as_mut_ptr().cast(), iov_len: from.len() };
        }
        loan.segments = 3;
        Segments::of(&loan)
    }

    #[test]
    fn ranges_are_walked_over_the_ends_of_pieces() {
        let (mut a, mut b, mut c) = ([1, 2, 3], [4], [5, 6]);
        let segments = three(&mut a, &mut b, &mut c);
        let bytes = |at, len| {
            let mut found = vec![0; len];
            segments.walk(at, len, |from, part, done| {
                // SAFETY: the pieces are the arrays above.
                found[done..done + part]
                    .copy_from_slice(unsafe { std::slice::from_raw_parts(from, part) });
            });
            found
        };
        assert_eq!(segments.len(), 6);
        assert_eq!(bytes(0, 6), [1, 2, 3, 4, 5, 6]);
        assert_eq!(bytes(2, 3), [3, 4, 5]);
        assert_eq!(bytes(3, 1), [4]);
        assert_eq!(bytes(6, 0), []);
    }

    #[test]
    #[should_panic(expected = "not on loan")]
    fn ranges_beyond_the_loan_are_refused() {
        let (mut a, mut b, mut c) = ([1, 2, 3], [4], [5, 6]);
        three(&mut a, &mut b, &mut c).walk(5, 2, |_, _, _| {});
    }

    #[test]
    fn impossible_questions_have_their_errors() {
        let number = |least, most| check(least, most).map_err(|error| error.raw_os_error());
        assert_eq!(number(1, 1), Ok(()));
        assert_eq!(number(0, 1), Err(Some(libc::EINVAL)));
        assert_eq!(number(2, 1), Err(Some(libc::EINVAL)));
        assert_eq!(number((1 << 20) + 1, 1 << 30), Err(Some(libc::EMSGSIZE)));
    }
}
