//! A short way in for small datagrams: a ring in memory that the kernel fills before its own network layers have seen them.
//!
//! ```text
//!  device ─► program ([`Inlets`](super::Inlets)) ─┬─ small, for a socket whose ring has room ─► ring: seen by a load
//!                                                └─ everything else ────────────────────────► the socket, as ever
//! ```
//!
//! The reader says with one word how far it has read, and so how much room there is. A reader that goes to sleep takes the room away ([`Inlet::close`]):
//! then every datagram goes to the socket, which wakes it. So the ring needs no wake-ups, and who is stopped or gone loses no more than
//! what was in the ring.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mapping::{Access, Mapping};
use super::process::page_size;
use crate::OsError;

/// Bytes of a ring: a power of two, whole pages.
pub(super) const RING: usize = 64 << 10;
/// Bytes of a datagram that has room in a record.
pub(super) const MOST: usize = 240;
/// Bytes of a record: the kernel's header, ours (the length), the datagram.
const HEADER: usize = 8;
pub(super) const RECORD: usize = 8 + MOST;
/// Datagrams handed over before somebody else has a turn.
const BATCH: usize = 16;

/// In the kernel's header of a record.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// The reading end of a ring, which only one may have.
#[derive(Debug)]
pub struct Inlet {
    /// A page with one word, ours: everything before it is read.
    read: Mapping,
    /// A page with one word of the kernel's, then the ring twice, so that no record is cut in two.
    written: Mapping,
    /// Everything before it is read, whatever `read` makes believe.
    position: u64,
    is_open: bool,
}

impl Inlet {
    /// The ring behind a descriptor that [`Inlets::admit`](super::Inlets::admit) made; it begins closed.
    ///
    /// # Errors
    /// When the descriptor is no such ring, or address space is exhausted.
    pub fn over(ring: impl AsFd) -> Result<Self, OsError> {
        let page = page_size();
        let read = Mapping::new(&ring, 0, page, Access::ReadWrite)?;
        let written = Mapping::new(&ring, page as u64, page + 2 * RING, Access::ReadOnly)?;
        let mut inlet = Self { read, written, position: 0, is_open: false };
        inlet.position = inlet.produced();
        inlet.close();
        Ok(inlet)
    }

    /// Whether there is room for datagrams.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Makes room: small datagrams come here from now on, and wake nobody.
    pub fn open(&mut self) {
        self.is_open = true;
        self.tell(self.position);
    }

    /// Takes the room away: datagrams go to the socket. What came before is still handed over.
    pub fn close(&mut self) {
        self.is_open = false;
        // So far back that everything seems full.
        self.tell(self.produced().wrapping_sub(RING as u64 - 1));
    }

    /// Whether something lies there.
    pub fn has_some(&self) -> bool {
        self.position != self.produced()
    }

    /// Hands datagrams over, some at a time; how many there were.
    pub fn take(&mut self, mut datagram: impl FnMut(&mut [u8])) -> usize {
        let (produced, before) = (self.produced(), self.position);
        let mut count = 0;
        while self.position != produced && count < BATCH {
            let at = (self.position & (RING as u64 - 1)) as usize;
            // Acquire: what is in the record was written before its header said that it is complete.
            let header = self.word(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            if header & DISCARDED == 0 {
                let len = (self.word(at + 8).load(Ordering::Relaxed) as usize).min(MOST);
                let mut bytes = [0; MOST];
                // SAFETY: `word` saw that the place is inside the ring, which is mapped twice, so a whole record follows; the kernel does not change
                // it before `tell` gives it back.
                unsafe {
                    let from = self.ring().add(at + 8 + HEADER);
                    from.copy_to_nonoverlapping(bytes.as_mut_ptr(), len);
                }
                datagram(&mut bytes[..len]);
                count += 1;
            }
            // All records have this length.
            self.position = self.position.wrapping_add((8 + RECORD) as u64);
        }
        if self.is_open && self.position != before {
            self.tell(self.position);
        }
        count
    }

    fn ring(&self) -> *const u8 {
        // SAFETY: the mapping is a page and the ring long.
        unsafe { self.written.as_ptr().add(self.written.len() - 2 * RING) }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at < RING, "a place in the ring");
        // SAFETY: the place, and a record's length behind it, are inside the mapping, which lives as long as `self`; records, and the words asked
        // for, are aligned; nobody accesses them but by loads here and the kernel's atomic stores.
        unsafe { &*self.ring().add(at).cast::<AtomicU32>() }
    }

    /// Everything before it was written, or is being written.
    fn produced(&self) -> u64 {
        // SAFETY: the first word of a page that is mapped as long as `self` lives; the kernel writes it atomically.
        unsafe { &*self.written.as_ptr().cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// Says how far is read.
    fn tell(&self, position: u64) {
        // Release: whoever fills the room finds that it was read.
        // SAFETY: the first word of a page that is mapped for writing as long as `self` lives.
        unsafe { &*self.read.as_ptr().cast::<AtomicU64>() }.store(position, Ordering::Release);
    }
}
