//! Acknowledgements: the packets of one path that arrived, newest first.

use std::ops::RangeInclusive;

use super::{Malformed, Reader};

/// How many ranges one acknowledgement carries at most.
pub const MAX_ACK_RANGES: usize = 32;

/// A run of packet numbers that arrived.
pub type AckRange = RangeInclusive<u64>;

/// An acknowledgement, checked: its ranges descend and stay above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The path whose packets are acknowledged.
    pub path: u8,
    /// How long the acknowledgement of `largest` was held back, in nanoseconds.
    pub delay: u32,
    /// The largest packet number that arrived.
    pub largest: u64,
    first: u32,
    rest: &'a [u8],
}

impl<'a> Ack<'a> {
    pub(super) fn parse(reader: &mut Reader<'a>) -> Result<Ack<'a>, Malformed> {
        let path = reader.u8()?;
        let count = usize::from(reader.u8()?);
        if count == 0 || count > MAX_ACK_RANGES {
            return Err(Malformed::Range);
        }
        let (delay, largest, first) = (reader.u32()?, reader.u64()?, reader.u32()?);
        let ack = Ack { path, delay, largest, first, rest: reader.take(8 * (count - 1))? };
        let mut lowest = largest.checked_sub(u64::from(first)).ok_or(Malformed::Range)?;
        for (gap, len) in ack.pairs() {
            lowest =
                lowest.checked_sub(u64::from(gap) + u64::from(len) + 2).ok_or(Malformed::Range)?;
        }
        Ok(ack)
    }

    /// The runs of packets that arrived, newest first.
    pub fn ranges(&self) -> impl Iterator<Item = AckRange> + use<'a> {
        let mut lowest = self.largest.saturating_sub(u64::from(self.first));
        let newest = lowest..=self.largest;
        std::iter::once(newest).chain(self.pairs().map(move |(gap, len)| {
            let highest = lowest.saturating_sub(u64::from(gap) + 2);
            lowest = highest.saturating_sub(u64::from(len));
            lowest..=highest
        }))
    }

    /// For each further range: missing packets in front of it less one, packets in it less one.
    fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        self.rest.chunks_exact(8).map(|pair| {
            let number = |at: usize| {
                u32::from_le_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]])
            };
            (number(0), number(4))
        })
    }
}
