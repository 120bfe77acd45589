//! A byte stream between two memories: each side owns the memory that it *reads* and writes only into the other's.
//!
//! ```text
//!   memory owned by A (exported to B)            memory owned by B (exported to A)
//!   ┌─────────────────────────────┐              ┌─────────────────────────────┐
//!   │ Words: what B tells A       │              │ Words: what A tells B       │
//!   │  tail ─ B has produced      │◄── B writes  │  tail ─ A has produced      │◄── A writes
//!   │  credit ─ B has consumed    │              │  credit ─ B's bytes consumed│
//!   ├─────────────────────────────┤              ├─────────────────────────────┤
//!   │ ring: bytes from B to A     │              │ ring: bytes from A to B     │
//!   └─────────────────────────────┘              └─────────────────────────────┘
//! ```
//!
//! This is the paper's model: data and control both arrive by remote write, and one polls only memory of one's own.
//! Whatever lies in one's own memory was written by the peer and is therefore untrusted: the private [`Receiver`] and
//! [`Transmitter`] indices decide, and every word of the peer's is checked against them before it is used.
//!
//! # Memory order
//! The pairs are labelled at both ends: `SYNC tail`, `SYNC credit`, `SYNC waiting`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

mod cork;
mod receiver;
mod ring;
mod transmitter;

pub use receiver::{Arrived, Corrupt, Place, Receiver, Repeat};
pub use ring::{Ring, Tier};
pub use transmitter::{Piece, Publish, Transmitter};

/// Set in [`Words::tail`] when the stream goes on elsewhere (on TCP) after the offset in it. Either side may set it.
pub const FROZEN: u64 = 1 << 63;
/// Set in [`Words::tail`] by the producer: the stream ends at the offset in it.
pub const FIN: u64 = 1 << 62;
/// Set in [`Words::tail`] by the producer: it holds back what lies behind an offset beside it. Either side may take it away.
pub const CORKED: u64 = 1 << 61;
/// The bits of [`Words::tail`] that are the stream offset.
pub const OFFSET: u64 = CORKED - 1;

/// The peer will take bytes from its ring: see [`Words::state`].
pub const READY: u32 = 1;
/// The peer took back all of its frozen ring that was not read; TCP may follow.
pub const HANDED: u32 = 2;
/// The peer could not hand its unread bytes to anybody: the producer writes `credit..tail` to TCP itself.
pub const HAND_YOURSELF: u32 = 4;
/// The peer has closed: it will not read any more.
pub const CLOSED: u32 = 8;
/// The peer has closed while bytes of its stream were unread: its socket is kept until they are read.
pub const LINGERS: u32 = 16;
/// The peer freezes its ring, with nothing unread in it, only because the stream is idle.
pub const IDLE: u32 = 32;

/// The words at the start of a stream memory, all written by the peer of its owner (flags are cleared by the owner).
///
/// One cache line for each rhythm in which they change, so that a word that is polled is not disturbed by another.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Words {
    /// Stream offset produced so far, with [`FIN`], [`FROZEN`] and [`CORKED`].
    pub tail: AtomicU64,
    /// One more than the stream offset at which the stream left the first and the second [`Tier`] of ring for the
    /// next larger one; 0: it did not.
    pub grown: [AtomicU64; 2],
    /// One more than the stream offset at which the stream last came back to the first [`Tier`]; 0: it did not.
    pub returned: AtomicU64,
    /// One more than the processor the peer was last seen on; 0 if it did not say.
    pub cpu: AtomicU32,
    line_1: [u8; 4],
    /// With [`CORKED`]: stream offset up to which nothing is held back, and when that began, in [`crate::clock::ticks`].
    uncorked: AtomicU64,
    corked_at: AtomicU64,
    line_1_end: [u8; 8],
    /// How much of the owner's outgoing stream the peer has consumed.
    pub credit: AtomicU64,
    line_2: [u8; 56],
    /// The peer sleeps until bytes of the owner's arrive. Set by the peer, cleared by the owner, who then rings.
    pub reader_waiting: AtomicU32,
    /// The peer sleeps until the owner has consumed. Set by the peer, cleared by the owner, who then rings.
    pub writer_waiting: AtomicU32,
    line_3: [u8; 56],
    /// [`READY`], [`HANDED`], [`HAND_YOURSELF`], [`CLOSED`], [`LINGERS`], [`IDLE`].
    pub state: AtomicU32,
    line_4: [u8; 4],
    /// One more than the count of bytes that the peer sent over TCP before its stream goes on in the ring; 0: not yet.
    pub switch: AtomicU64,
    /// One more than the stream offset from which the peer, which freezes its stream, repeats on TCP what is unread; 0: it
    /// does not. Written before the freeze; void if the owner was faster with it.
    pub repeats_from: AtomicU64,
    /// One more than the stream offset up to which it did; 0: it is still at it, and has written nothing else to TCP.
    pub repeats_until: AtomicU64,
    line_5: [u8; 32],
}

impl Words {
    /// Makes the peer's flag `bits` of [`Words::state`] visible after all that was written before.
    pub fn tell(&self, bits: u32) {
        self.state.fetch_or(bits, Ordering::SeqCst);
    }

    /// Whether the peer said all of `bits`.
    pub fn told(&self, bits: u32) -> bool {
        self.state.load(Ordering::Acquire) & bits == bits
    }

    /// Takes the flag `bits` out of the owner's own words: it was acted upon.
    pub fn untell(&self, bits: u32) {
        self.state.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The stream offset at which the peer's bytes begin to come through the ring.
    pub fn switch_offset(&self) -> Option<u64> {
        self.switch.load(Ordering::Acquire).checked_sub(1)
    }
}

/// Where the two streams of a connection stand, as somebody else reads it who only has the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The owner has not read all that its peer sent through the ring, and the ring has not been given up.
    pub unread: bool,
    /// The owner has ended its stream.
    pub ended: bool,
    /// Its peer has.
    pub peer_ended: bool,
}

impl Words {
    /// Where the streams stand between the owner of these words and that of the `peers`; changes nothing.
    pub fn standing(&self, peers: &Self) -> Standing {
        let tail = self.tail.load(Ordering::Acquire);
        let unread = self.seen(tail) & OFFSET > peers.credit.load(Ordering::Acquire);
        Standing {
            unread: unread && tail & FROZEN == 0,
            ended: peers.tail.load(Ordering::Acquire) & FIN != 0,
            peer_ended: tail & FIN != 0,
        }
    }
}

/// Announces sleep in `flag` of the peer's memory; the caller must look again before it sleeps.
pub fn announce(flag: &AtomicU32) {
    // SYNC waiting: a full barrier between this store and the sleeper's last look at the index it waits for; its
    // partner is the full barrier of the publication in `Transmitter::publish` or `Receiver::consume`.
    flag.swap(1, Ordering::SeqCst);
}

/// Takes back the announcement in `flag`, or learns that somebody must be woken. Called by the owner of the memory.
#[inline]
pub fn take_announcement(flag: &AtomicU32) -> bool {
    // SYNC waiting: ordered after the publication, which is a read-modify-write with SeqCst.
    flag.load(Ordering::SeqCst) != 0 && flag.swap(0, Ordering::SeqCst) != 0
}

#[cfg(test)]
mod tests;
