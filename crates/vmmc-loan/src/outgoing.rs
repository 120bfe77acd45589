//! Space for bytes to send.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::ioctl::{self, COMMIT, Loan, RESERVE};
use crate::segments::{Segments, buffer_size, check, not_here, passes};

/// The sending side of a connection.
#[derive(Debug)]
pub struct Outgoing<S> {
    socket: S,
    /// Space that is lent where the connection lends none.
    buffer: Vec<u8>,
    owed: Owed,
}

/// What was committed and could not be sent at once: only where the connection is on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// So many bytes of a ring.
    Lent(usize),
    /// A part of the buffer.
    Buffered {
        from: usize,
        to: usize,
    },
}

impl<S: AsFd> Outgoing<S> {
    /// The sending side of `socket`, a connected TCP socket. For one thread at a time.
    pub fn new(socket: S) -> Self {
        Self { socket, buffer: Vec::new(), owed: Owed::Nothing }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Lends space for at least `least` bytes (at most [`ioctl::LARGEST`]) and at most `most`. Waits for it as a sending call
    /// would, so `WouldBlock` comes of a non-blocking socket, or after its `SO_SNDTIMEO`; sends what is owed first.
    pub fn reserve(&mut self, least: usize, most: usize) -> io::Result<Reserved<'_, S>> {
        check(least, most)?;
        self.flush()?;
        let mut loan = Loan::ask(least, most, 0);
        let (segments, buffered) = match ioctl::lend(self.socket.as_fd(), RESERVE, &mut loan) {
            Ok(()) => (Segments::of(&loan), false),
            Err(error) if not_here(&error) => {
                self.buffer.resize(buffer_size(least, most).max(self.buffer.len()), 0);
                (Segments::one(&mut self.buffer[..buffer_size(least, most)]), true)
            }
            Err(error) => return Err(error),
        };
        Ok(Reserved { outgoing: self, segments, buffered, committed: false })
    }

    /// Sends what was committed and is still owed: on a non-blocking socket, where TCP had no room.
    pub fn flush(&mut self) -> io::Result<()> {
        loop {
            let sent = match self.owed {
                Owed::Nothing => return Ok(()),
                Owed::Lent(len) => ioctl::give_back(self.socket.as_fd(), COMMIT, len),
                Owed::Buffered { from, to } => self.send(from, to),
            };
            match sent {
                Ok(sent) => self.owed.pass(sent),
                Err(error) => {
                    if !passes(&error) {
                        self.owed = Owed::Nothing;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn send(&self, from: usize, to: usize) -> io::Result<usize> {
        let bytes = &self.buffer[from..to];
        // SAFETY: the slice is valid for reading.
        let sent = unsafe {
            libc::send(
                self.socket.as_fd().as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Owed {
    fn pass(&mut self, sent: usize) {
        *self = match *self {
            Owed::Lent(len) if len > sent => Owed::Lent(len - sent),
            Owed::Buffered { from, to } if from + sent < to => {
                Owed::Buffered { from: from + sent, to }
            }
            _ => Owed::Nothing,
        };
    }
}

/// Space on loan. Dropping it sends nothing.
#[derive(Debug)]
pub struct Reserved<'a, S: AsFd> {
    outgoing: &'a mut Outgoing<S>,
    segments: Segments,
    buffered: bool,
    committed: bool,
}

impl<S: AsFd> Reserved<'_, S> {
    /// Bytes on loan.
    #[expect(clippy::len_without_is_empty, reason = "space is never empty")]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether it lies in the peer's ring: what is written there is not copied any more.
    pub fn in_place(&self) -> bool {
        !self.buffered
    }

    /// Copies `bytes` into the space, beginning at its byte `at`.
    ///
    /// # Panics
    /// If they do not lie within it.
    pub fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        self.segments.walk(at, bytes.len(), |to, len, done| {
            // SAFETY: `to` is `len` bytes on loan to this process, valid until they are given back; `bytes` is memory of the
            // program's own. The peer, if it writes there too, spoils what it receives.
            unsafe { bytes[done..].as_ptr().copy_to_nonoverlapping(to, len) };
        });
    }

    /// The space where it lies, in the order of the stream.
    pub fn segments(&self) -> impl Iterator<Item = *mut [u8]> {
        self.segments.pieces().map(|(base, len)| std::ptr::slice_from_raw_parts_mut(base, len))
    }

    /// The space as slices.
    ///
    /// # Safety
    /// The process at the other end does not write into it meanwhile: an honest one does not.
    pub unsafe fn slices(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.segments.pieces().map(|(base, len)| {
            // SAFETY: on loan to this process until `self` ends, mapped until the socket, which it borrows, is closed; the pieces
            // do not overlap, and the caller vouches for the peer.
            unsafe { std::slice::from_raw_parts_mut(base, len) }
        })
    }

    /// Sends the first `len` bytes, and gives the rest back. On a non-blocking socket whose connection is on TCP some of them
    /// may be owed afterwards: [`Outgoing::flush`], which every further [`Outgoing::reserve`] does, sends those.
    ///
    /// # Panics
    /// If `len` is more than is on loan.
    pub fn commit(mut self, len: usize) -> io::Result<()> {
        assert!(len <= self.len(), "{len} bytes of {} on loan", self.len());
        self.committed = true;
        self.outgoing.owed = match (self.buffered, len) {
            (true, _) => Owed::Buffered { from: 0, to: len },
            (false, _) => Owed::Lent(len),
        };
        match self.outgoing.flush() {
            Err(error) if passes(&error) => Ok(()),
            done => done,
        }
    }
}

impl<S: AsFd> Drop for Reserved<'_, S> {
    fn drop(&mut self) {
        if !self.buffered && !self.committed {
            let _ = ioctl::give_back(self.outgoing.socket.as_fd(), COMMIT, 0);
        }
    }
}
