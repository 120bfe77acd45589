//! What the embedding does for the link: bytes in and out of memory.

use crate::wire::Binding;

/// A local buffer that an operation reads from or writes to: a name that the embedding chose and keeps valid until the
/// operation completed or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buffer(pub u64);

/// The memory of this side. The link calls it from within [`handle_datagram`](crate::Link::handle_datagram) and
/// [`poll_transmit`](crate::Link::poll_transmit) only, on their thread, and holds no payload itself.
///
/// Bindings and offsets come from the peer. Packets are authentic when these methods are called, but the peer may be hostile: every call
/// has to check that the export exists, that the capability is the one handed out for it and not revoked, that it grants the
/// access, and that `offset + len` (which may overflow) lies within. A refusal ends the peer's import.
pub trait Memory {
    /// Writes bytes that the peer sent. Each byte of each send is placed at most once.
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Stores an aligned 8-byte word with release ordering; everything that went before it on its import is placed. Called once for
    /// each signal word, in order.
    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal>;

    /// Delivers a notification; everything that went before it on its import is placed. Called once for each, in order.
    fn notify(
        &mut self,
        target: &Binding,
        offset: u64,
        len: u64,
        value: u64,
    ) -> Result<(), Refusal>;

    /// Reads bytes that the peer fetches. A retransmission reads again, so a fetch is as little atomic as a plain copy.
    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal>;

    /// Reads bytes of a local send, for the first time or again.
    fn gather(&mut self, buffer: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal>;

    /// Writes bytes that a local fetch brought. Each byte of each fetch is written once.
    fn scatter(&mut self, buffer: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;
}

/// Why memory may not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, displaydoc::Display, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// the export is revoked or the capability does not fit it; import it again
    Revoked = 1,
    /// the import does not grant this access; import with the rights that are needed
    Rights = 2,
    /// the range lies outside of the export; stay within its length
    Bounds = 3,
    /// the signal word is not aligned to 8 bytes; move it
    Unaligned = 4,
    /// the process that owns the memory has ended; find it again and import anew
    Gone = 5,
    /// the peer broke the protocol on this import; this is a defect of the peer
    Protocol = 6,
    /// the peer refused for a reason that this version does not know; run the same release on both nodes
    Unknown = 255,
}

impl Refusal {
    /// The code of a refusal on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The refusal of a code.
    pub fn from_code(code: u8) -> Refusal {
        use Refusal::{Bounds, Gone, Protocol, Revoked, Rights, Unaligned, Unknown};
        [Revoked, Rights, Bounds, Unaligned, Gone, Protocol]
            .into_iter()
            .find(|refusal| refusal.code() == code)
            .unwrap_or(Unknown)
    }
}
