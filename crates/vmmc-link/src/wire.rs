//! What a packet looks like. Specified in `docs/wire.md`, whose test vectors are checked by `tests/vectors.rs`.
//!
//! All numbers are little-endian. Parsing copies no payload, never panics, and accepts nothing of a version it does not know.

mod ack;
mod frame;
mod header;

pub use ack::{Ack, AckRange, MAX_ACK_RANGES};
pub(crate) use frame::Writer;
pub use frame::{Binding, Frame, Frames, Position};
pub use header::{HEADER_LEN, Header, VERSION};

/// Why a packet or frame could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Malformed {
    /// the packet or frame ends before its last field
    Truncated,
    /// version {0} of the wire format is not known here; run the same release on both nodes
    Version(u8),
    /// a reserved field is not zero
    Reserved,
    /// frame type {0:#04x} does not exist in this version
    FrameType(u8),
    /// a field is outside its range
    Range,
}

/// Reads numbers off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_le_bytes)
    }
}
