//! The pieces of a message: a program's `iovec`s, walked without copying them until a call has to wait.

use std::cell::OnceCell;

use smallvec::SmallVec;
use vmmc::stream::Ring;

/// The kernel's `MAX_RW_COUNT`: what is longer is done in part.
const MOST: usize = 0x7fff_f000;

/// Room for a call's own copy of the list of pieces: from when it waits on, the program may use its own for something else, as the
/// kernel copies it when the call begins. In place for as many as the kernel has in place (`UIO_FASTIOV`).
#[derive(Debug, Default)]
pub struct Room(OnceCell<SmallVec<[libc::iovec; 8]>>);

impl Room {
    /// A copy of `pieces`, if there is memory for it.
    #[cold]
    fn copy(&self, pieces: &[libc::iovec]) -> Option<&[libc::iovec]> {
        let mut list = SmallVec::new();
        list.try_reserve_exact(pieces.len()).ok()?;
        list.extend_from_slice(pieces);
        Some(self.0.get_or_init(|| list))
    }
}

/// A cursor over pieces of a program's memory. As long as the list is the program's own, another thread may change it; what is moved then
/// is wrong, and nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces<'a> {
    pieces: &'a [libc::iovec],
    /// Bytes of the first piece that are done.
    skip: usize,
    left: usize,
    /// Where the list is copied to, if it is the program's own.
    room: Option<&'a Room>,
}

impl<'a> Pieces<'a> {
    /// All of `pieces`, up to the most that one call moves in the kernel; `None` if their lengths add up to what it refuses.
    pub(crate) fn new(pieces: &'a [libc::iovec], room: Option<&'a Room>) -> Option<Self> {
        let mut left = 0usize;
        for piece in pieces {
            left = left.checked_add(piece.iov_len)?;
        }
        (left <= isize::MAX as usize).then_some(Self {
            pieces,
            skip: 0,
            left: left.min(MOST),
            room,
        })
    }

    /// The one `piece`.
    pub(crate) fn of_one(piece: &'a libc::iovec) -> Self {
        Self { pieces: std::slice::from_ref(piece), skip: 0, left: piece.iov_len, room: None }
    }

    /// The call is about to wait: it has its own list from now on.
    #[inline]
    pub(crate) fn keep(&mut self) {
        if let Some(list) = self.room.take().and_then(|room| room.copy(self.pieces)) {
            self.pieces = list;
            let rest = list.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.iov_len));
            self.left = self.left.min(rest.saturating_sub(self.skip));
        }
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Moves on by `len` bytes.
    pub(crate) fn skip(&mut self, mut len: usize) {
        self.left -= len;
        while len > 0 {
            let Some((first, others)) = self.pieces.split_first() else { return };
            let rest = first.iov_len.saturating_sub(self.skip);
            if len < rest {
                self.skip += len;
                return;
            }
            len -= rest;
            self.pieces = others;
            self.skip = 0;
        }
    }

    /// Calls `each` with the address and length of each contiguous part of the next `len` bytes; how many of them there are not.
    #[inline]
    fn walk(&self, mut len: usize, mut each: impl FnMut(*mut u8, usize)) -> usize {
        let mut skip = self.skip;
        for piece in self.pieces {
            if len == 0 {
                break;
            }
            let part = piece.iov_len.saturating_sub(skip).min(len);
            each(piece.iov_base.cast::<u8>().wrapping_add(skip), part);
            len -= part;
            skip = 0;
        }
        len
    }

    /// Copies the next `len` bytes of `ring` from `position` on into the program's memory; gives the next position.
    ///
    /// # Safety
    /// The pieces are valid for writing, and `len` is at most what is left and what the ring holds.
    #[inline]
    pub(crate) unsafe fn fill_from(&self, ring: Ring, mut position: usize, len: usize) -> usize {
        let missing = self.walk(len, |to, part| {
            // SAFETY: the caller vouches for the pieces; the parts add up to `len` at the most, which the ring holds.
            unsafe { ring.copy_out(position, to, part) };
            position = ring.advance(position, part);
        });
        ring.advance(position, missing)
    }

    /// Copies the next `len` bytes of the program's memory into `ring` at `position`; gives the next position.
    ///
    /// # Safety
    /// The pieces are valid for reading, and `len` is at most what is left and what the ring has room for.
    #[inline]
    pub(crate) unsafe fn pour_into(&self, ring: Ring, mut position: usize, len: usize) -> usize {
        let missing = self.walk(len, |from, part| {
            // SAFETY: the caller vouches for the pieces; the parts add up to `len` at the most, which fits.
            unsafe { ring.copy_in(position, from, part) };
            position = ring.advance(position, part);
        });
        ring.advance(position, missing)
    }

    /// Calls `with` with the next `len` bytes as a list of pieces of its own (at most 64; the rest is left for later).
    pub(crate) fn limited<R>(&self, len: usize, with: impl FnOnce(&[libc::iovec]) -> R) -> R {
        let mut list = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 64];
        let mut count = 0;
        self.walk(len.min(self.left), |base, part| {
            if let Some(entry) = list.get_mut(count) {
                *entry = libc::iovec { iov_base: base.cast(), iov_len: part };
                count += 1;
            }
        });
        with(&list[..count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }

    #[test]
    fn walks_over_empty_and_split_pieces() {
        let (mut a, mut b, mut c) = ([1u8, 2, 3], [0u8; 0], [4u8, 5]);
        let list = [piece(&mut a), piece(&mut b), piece(&mut c)];
        let mut pieces = Pieces::new(&list, None).unwrap();
        assert_eq!(pieces.left(), 5);
        pieces.skip(2);
        let mut seen = Vec::new();
        pieces.walk(2, |at, len| {
            // SAFETY: the addresses come from the live arrays above.
            seen.extend_from_slice(unsafe { std::slice::from_raw_parts(at, len) })
        });
        assert_eq!(seen, [3, 4]);
        assert_eq!(pieces.limited(100, |list| list.iter().map(|p| p.iov_len).sum::<usize>()), 3);
        pieces.skip(3);
        assert_eq!(pieces.left(), 0);
    }

    #[test]
    fn is_no_longer_than_the_kernel_lets_it_be() {
        let part = |len| libc::iovec { iov_base: std::ptr::dangling_mut(), iov_len: len };
        let list = [part(10), part(MOST), part(10)];
        assert_eq!(Pieces::new(&list[..1], None).unwrap().left(), 10);
        assert_eq!(Pieces::new(&list[1..2], None).unwrap().left(), MOST);
        assert_eq!(Pieces::new(&[part(3 << 30)], None).unwrap().left(), MOST);
        let mut pieces = Pieces::new(&list, None).unwrap();
        assert_eq!(pieces.left(), MOST);
        pieces.skip(MOST - 5);
        assert_eq!(pieces.limited(100, |list| list.iter().map(|p| p.iov_len).sum::<usize>()), 5);
        pieces.skip(5);
        assert_eq!(pieces.left(), 0);
    }

    #[test]
    fn refuses_lengths_that_overflow() {
        let huge = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: usize::MAX };
        assert!(Pieces::new(&[huge, huge], None).is_none());
    }

    #[test]
    fn is_walked_to_its_end_when_it_has_become_shorter() {
        let mut bytes = [0u8; 10];
        let (long, short) = ([piece(&mut bytes)], [piece(&mut bytes[..3])]);
        let room = Room::default();
        let mut pieces = Pieces::new(&long, Some(&room)).unwrap();
        pieces.pieces = &short;
        let mut seen = 0;
        assert_eq!(pieces.walk(8, |_, len| seen += len), 5);
        assert_eq!(seen, 3);
        pieces.skip(2);
        pieces.keep();
        assert_eq!(pieces.left(), 1);
        pieces.left = 8;
        pieces.skip(4);
        assert_eq!(pieces.limited(100, <[libc::iovec]>::len), 0);
    }

    #[test]
    fn keeps_lists_of_all_lengths() {
        let mut bytes = [0u8; 3];
        for count in [1, 8, 9, 1024] {
            let mut list = vec![piece(&mut bytes); count];
            let room = Room::default();
            let mut pieces = Pieces::new(&list, Some(&room)).unwrap();
            pieces.keep();
            let kept = pieces.pieces.as_ptr();
            pieces.keep();
            assert_eq!((pieces.pieces.as_ptr(), pieces.left()), (kept, 3 * count));
            assert_ne!(kept, list.as_mut_ptr().cast_const());
        }
    }
}
