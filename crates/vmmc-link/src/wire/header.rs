//! The header of every packet: in the clear, authenticated.

use super::{Malformed, Reader};

/// The version of the wire format that this crate speaks.
pub const VERSION: u8 = 1;

/// Bytes of a header.
pub const HEADER_LEN: usize = 20;

const PLAINTEXT: u8 = 0b1000;
const ACK_NOW: u8 = 0b0100;
const KEY_PHASE: u8 = 0b0011;

/// The header of a packet.
///
/// ```text
///   0       1       2               4                               8
///  +-------+-------+---------------+-------------------------------+
///  |ver|fl.| path  |   zero        |   link                        |
///  +-------+-------+---------------+-------------------------------+
///  |   incarnation of the sender   |   packet number (64 bits)     …
///  +-------------------------------+-------------------------------+
///  …  packet number                |   frames, encrypted           …
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which of the sender's keys protects the packet, modulo 4. 0 in plaintext.
    pub key_phase: u8,
    /// The sender waits for the acknowledgement; it may not be delayed.
    pub ack_now: bool,
    /// The packet is not encrypted and carries a checksum instead of a tag.
    pub plaintext: bool,
    /// Which path of the link the packet takes. Packet numbers count per path.
    pub path: u8,
    /// The link, by the number that its receiver gave it; what a socket shared by many links demultiplexes by.
    pub link: u32,
    /// Which life of the sender this is. A larger one is a later one.
    pub incarnation: u32,
    /// The packet's number on its path, counted from 0, never used twice.
    pub number: u64,
}

impl Header {
    /// Reads the header of a datagram. Whether it may be believed is known only after its tag was checked.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is too short, of an unknown version, or has a reserved field set.
    pub fn parse(datagram: &[u8]) -> Result<Header, Malformed> {
        let mut reader = Reader(datagram);
        let first = reader.u8()?;
        if first >> 4 != VERSION {
            return Err(Malformed::Version(first >> 4));
        }
        let path = reader.u8()?;
        if reader.u16()? != 0 {
            return Err(Malformed::Reserved);
        }
        let plaintext = first & PLAINTEXT != 0;
        let key_phase = first & KEY_PHASE;
        if plaintext && key_phase != 0 {
            return Err(Malformed::Reserved);
        }
        Ok(Header {
            key_phase,
            ack_now: first & ACK_NOW != 0,
            plaintext,
            path,
            link: reader.u32()?,
            incarnation: reader.u32()?,
            number: reader.u64()?,
        })
    }

    /// The header as it goes onto the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = VERSION << 4
            | if self.plaintext { PLAINTEXT } else { 0 }
            | if self.ack_now { ACK_NOW } else { 0 }
            | self.key_phase & KEY_PHASE;
        bytes[1] = self.path;
        bytes[4..8].copy_from_slice(&self.link.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }
}
