//! Bytes that have arrived.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::ioctl::{self, BORROW, Loan, RELEASE};
use crate::segments::{Segments, buffer_size, check, not_here, passes};

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Incoming<S> {
    socket: S,
    /// Bytes that were received by ordinary calls, from `first` on not released yet.
    buffer: Vec<u8>,
    first: usize,
    /// What came after them.
    beyond: Beyond,
}

#[derive(Debug)]
enum Beyond {
    Unknown,
    End,
    Error(io::Error),
}

impl<S: AsFd> Incoming<S> {
    /// The receiving side of `socket`, a connected TCP socket. For one thread at a time.
    pub fn new(socket: S) -> Self {
        Self { socket, buffer: Vec::new(), first: 0, beyond: Beyond::Unknown }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Lends bytes that have arrived: at least `least` (at most [`ioctl::LARGEST`]), fewer only where the stream ends, and at most
    /// `most`. An empty loan is the end. Waits as a receiving call would, so `WouldBlock` comes of a non-blocking socket, or after
    /// its `SO_RCVTIMEO`; nothing that had arrived is lost then.
    pub fn borrow(&mut self, least: usize, most: usize) -> io::Result<Borrowed<'_, S>> {
        check(least, most)?;
        let here = self.buffer.len() - self.first;
        if here == 0 && matches!(self.beyond, Beyond::Unknown) {
            let mut loan = Loan::ask(least, most, 0);
            match ioctl::lend(self.socket.as_fd(), BORROW, &mut loan) {
                Ok(()) if loan.length as usize >= least || loan.length == 0 => {
                    let given_back = loan.length == 0;
                    let segments = Segments::of(&loan);
                    return Ok(Borrowed { incoming: self, segments, buffered: false, given_back });
                }
                // The rest does not come in place: what is here goes before it.
                Ok(()) => self.keep(Segments::of(&loan))?,
                Err(error) if not_here(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.fill(least, most)?;
        let len = (self.buffer.len() - self.first).min(most);
        let segments = Segments::one(&mut self.buffer[self.first..][..len]);
        Ok(Borrowed { incoming: self, segments, buffered: true, given_back: false })
    }

    /// Takes what is on loan into the buffer.
    fn keep(&mut self, segments: Segments) -> io::Result<()> {
        self.buffer.clear();
        self.first = 0;
        self.buffer.resize(segments.len(), 0);
        segments.walk(0, segments.len(), |from, len, done| {
            // SAFETY: `len` bytes on loan to this process; the buffer is as long as all of them.
            unsafe { from.copy_to_nonoverlapping(self.buffer[done..].as_mut_ptr(), len) };
        });
        self.release(segments.len()).inspect_err(|_| self.buffer.clear())
    }

    /// Receives by ordinary calls until the buffer has `least` bytes, if they come.
    fn fill(&mut self, least: usize, most: usize) -> io::Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.first));
        while self.buffer.len() < least && matches!(self.beyond, Beyond::Unknown) {
            let here = self.buffer.len();
            self.buffer.resize(buffer_size(least, most), 0);
            let got = receive(&self.socket, &mut self.buffer[here..]);
            self.buffer.truncate(here + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => self.beyond = Beyond::End,
                Ok(_) => {}
                Err(error) if passes(&error) => return Err(error),
                Err(error) => self.beyond = Beyond::Error(error),
            }
        }
        match std::mem::replace(&mut self.beyond, Beyond::Unknown) {
            Beyond::Error(error) if self.buffer.is_empty() => return Err(error),
            beyond => self.beyond = beyond,
        }
        Ok(())
    }

    /// Gives bytes of the ring back.
    fn release(&self, len: usize) -> io::Result<()> {
        let mut left = match ioctl::give_back(self.socket.as_fd(), RELEASE, len) {
            Ok(done) => len - done,
            Err(error) if passes(&error) => len,
            Err(error) => return Err(error),
        };
        // The connection was lowered meanwhile: the bytes come once more, on TCP.
        while left > 0 {
            match pass_over(&self.socket, left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(passed) => left -= passed,
                Err(error) if passes(&error) => await_bytes(&self.socket),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn receive(socket: &impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for writing.
    let got = unsafe {
        libc::recv(socket.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0)
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn pass_over(socket: &impl AsFd, len: usize) -> io::Result<usize> {
    // SAFETY: with this flag a TCP socket writes nothing.
    let got = unsafe {
        libc::recv(socket.as_fd().as_raw_fd(), std::ptr::null_mut(), len, libc::MSG_TRUNC)
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn await_bytes(socket: &impl AsFd) {
    let fd = socket.as_fd().as_raw_fd();
    let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut one, 1, -1) };
}

/// Bytes on loan. Dropping it reads none of them.
#[derive(Debug)]
pub struct Borrowed<'a, S: AsFd> {
    incoming: &'a mut Incoming<S>,
    segments: Segments,
    buffered: bool,
    given_back: bool,
}

impl<S: AsFd> Borrowed<'_, S> {
    /// Bytes on loan.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether the stream has ended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they lie where the peer has put them: nothing was copied here.
    pub fn in_place(&self) -> bool {
        !self.buffered
    }

    /// Copies bytes out of the loan, beginning at its byte `at`.
    ///
    /// # Panics
    /// If they do not lie within it.
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        let len = bytes.len();
        self.segments.walk(at, len, |from, len, done| {
            // SAFETY: `from` is `len` bytes on loan to this process, valid until they are given back; `bytes` is memory of the
            // program's own. What the peer writes there meanwhile gives bytes of either age.
            unsafe { from.copy_to_nonoverlapping(bytes[done..].as_mut_ptr(), len) };
        });
    }

    /// The bytes where they lie, in the order of the stream.
    pub fn segments(&self) -> impl Iterator<Item = *const [u8]> {
        self.segments
            .pieces()
            .map(|(base, len)| std::ptr::slice_from_raw_parts(base.cast_const(), len))
    }

    /// The bytes as slices.
    ///
    /// # Safety
    /// The process at the other end does not write into them meanwhile: an honest one does not.
    pub unsafe fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.segments.pieces().map(|(base, len)| {
            // SAFETY: on loan to this process until `self` ends, mapped until the socket, which it borrows, is closed; the
            // caller vouches for the peer.
            unsafe { std::slice::from_raw_parts(base, len) }
        })
    }

    /// The first `len` bytes were read; the next loan begins behind them. Waits if the connection was lowered meanwhile, and they
    /// have to be passed over on TCP.
    ///
    /// # Panics
    /// If `len` is more than is on loan.
    pub fn release(mut self, len: usize) -> io::Result<()> {
        assert!(len <= self.len(), "{len} bytes of {} on loan", self.len());
        if self.buffered {
            self.incoming.first += len;
            return Ok(());
        }
        if std::mem::replace(&mut self.given_back, true) {
            return Ok(());
        }
        self.incoming.release(len)
    }
}

impl<S: AsFd> Drop for Borrowed<'_, S> {
    fn drop(&mut self) {
        if !self.buffered && !self.given_back {
            let _ = ioctl::give_back(self.incoming.socket.as_fd(), RELEASE, 0);
        }
    }
}
