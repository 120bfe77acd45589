//! Frames: what a packet carries, one after the other.

use super::{Ack, AckRange, MAX_ACK_RANGES, Malformed, Reader};

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const CLOSE: u8 = 0x03;
const SEND: u8 = 0x10;
const SIGNAL: u8 = 0x12;
const NOTIFY: u8 = 0x14;
const FETCH: u8 = 0x16;
const REPLY: u8 = 0x20;
const REFUSED: u8 = 0x22;
const RESET: u8 = 0x24;
/// Set in the type of a frame that tells what its channel is bound to.
const BINDING: u8 = 0x01;

const POSITION: usize = 1 + 2 + 4 + 8;
/// Bytes of a reply in front of its payload.
const REPLY_HEAD: usize = POSITION + 2;

/// Sequence numbers end here, so that sums of two never overflow.
const MAX_SEQUENCE: u64 = 1 << 62;

/// A place in the order of one import: every byte sent and every ordered command has a sequence number on its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The import's channel.
    pub channel: u16,
    /// Which use of the channel this is; a larger one is a later import.
    pub generation: u32,
    /// The sequence number of the frame's first byte, or of its command.
    pub sequence: u64,
}

/// What an import may reach, and what proves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The export, by its exporter's number.
    pub export: u64,
    /// The random number that the exporter's node handed out for this import.
    pub capability: u128,
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding").field("export", &self.export).finish_non_exhaustive()
    }
}

/// One frame of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Nothing, but it wants an acknowledgement.
    Ping,
    /// Packets that arrived.
    Ack(Ack<'a>),
    /// The link ends.
    Close {
        /// The embedding's reason.
        reason: u8,
    },
    /// Bytes, to be placed at once.
    Send {
        /// Place in the import's order; takes as many sequence numbers as there are bytes.
        at: Position,
        /// What the channel is bound to; absent once the receiver is known to have it.
        binding: Option<Binding>,
        /// Where they go in the export, in bytes.
        offset: u64,
        /// The bytes, at least one.
        bytes: &'a [u8],
    },
    /// An aligned 8-byte word to be stored once everything in front of it is placed.
    Signal {
        /// Place in the import's order; takes one sequence number.
        at: Position,
        /// As in a send.
        binding: Option<Binding>,
        /// Where the word lies, in bytes.
        offset: u64,
        /// What it becomes.
        value: u64,
    },
    /// A notification, to be delivered once everything in front of it is placed.
    Notify {
        /// Place in the import's order; takes one sequence number.
        at: Position,
        /// As in a send.
        binding: Option<Binding>,
        /// Where the bytes lie that it is about.
        offset: u64,
        /// How many they are.
        len: u64,
        /// A word for the handler.
        value: u64,
    },
    /// A request for bytes, to be answered once everything in front of it is placed.
    Fetch {
        /// Place in the import's order; takes as many sequence numbers as bytes are wanted.
        at: Position,
        /// As in a send.
        binding: Option<Binding>,
        /// Where they lie in the export.
        offset: u64,
        /// How many are wanted, at least one.
        len: u32,
    },
    /// Bytes that were fetched.
    Reply {
        /// The sequence number, on the requester's channel, that was asked for with the first of these bytes.
        at: Position,
        /// The bytes, at least one.
        bytes: &'a [u8],
    },
    /// Nothing of this channel is accepted any more.
    Refused {
        /// The channel.
        channel: u16,
        /// Its use.
        generation: u32,
        /// Why: the code of a [`Refusal`](crate::Refusal).
        reason: u8,
    },
    /// The sender's import of this channel is over; what is held for it may be forgotten.
    Reset {
        /// The channel.
        channel: u16,
        /// The use that is over.
        generation: u32,
    },
}

/// The frames of a packet's payload. After an error it ends.
#[derive(Debug, Clone)]
pub struct Frames<'a>(Reader<'a>);

impl<'a> Frames<'a> {
    /// Reads the frames of `payload`.
    pub fn new(payload: &'a [u8]) -> Frames<'a> {
        Frames(Reader(payload))
    }

    fn parse(&mut self, kind: u8) -> Result<Frame<'a>, Malformed> {
        let reader = &mut self.0;
        match kind {
            PING => return Ok(Frame::Ping),
            ACK => return Ack::parse(reader).map(Frame::Ack),
            CLOSE => return Ok(Frame::Close { reason: reader.u8()? }),
            REFUSED => {
                let (channel, generation, reason) = (reader.u16()?, reader.u32()?, reader.u8()?);
                return Ok(Frame::Refused { channel, generation, reason });
            }
            RESET => return Ok(Frame::Reset { channel: reader.u16()?, generation: reader.u32()? }),
            _ => {}
        }
        let plain = kind & !BINDING;
        if !matches!(plain, SEND | SIGNAL | NOTIFY | FETCH) && kind != REPLY {
            return Err(Malformed::FrameType(kind));
        }
        let at =
            Position { channel: reader.u16()?, generation: reader.u32()?, sequence: reader.u64()? };
        if at.sequence >= MAX_SEQUENCE {
            return Err(Malformed::Range);
        }
        if plain == REPLY {
            return Ok(Frame::Reply { at, bytes: payload(reader)? });
        }
        let binding = match kind & BINDING != 0 {
            true => Some(Binding { export: reader.u64()?, capability: reader.u128()? }),
            false => None,
        };
        let offset = reader.u64()?;
        match plain {
            SEND => Ok(Frame::Send { at, binding, offset, bytes: payload(reader)? }),
            SIGNAL => Ok(Frame::Signal { at, binding, offset, value: reader.u64()? }),
            NOTIFY => {
                Ok(Frame::Notify { at, binding, offset, len: reader.u64()?, value: reader.u64()? })
            }
            _ => match reader.u32()? {
                0 => Err(Malformed::Range),
                len => Ok(Frame::Fetch { at, binding, offset, len }),
            },
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let kind = self.0.u8().ok().filter(|&kind| kind != PADDING)?;
        let frame = self.parse(kind);
        if frame.is_err() {
            self.0 = Reader(&[]);
        }
        Some(frame)
    }
}

fn payload<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    match reader.u16()? {
        0 => Err(Malformed::Range),
        len => reader.take(usize::from(len)),
    }
}

/// Writes frames behind each other into a packet, as long as there is room.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Writer<'a> {
        Writer { buffer, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// Zeroes up to the end: padding.
    pub(crate) fn pad(&mut self) {
        self.buffer[self.len..].fill(PADDING);
        self.len = self.buffer.len();
    }

    #[must_use]
    pub(crate) fn ping(&mut self) -> bool {
        self.fits(1) && self.bytes(&[PING])
    }

    #[must_use]
    pub(crate) fn close(&mut self, reason: u8) -> bool {
        self.fits(2) && self.bytes(&[CLOSE, reason])
    }

    /// Writes as many of the newest ranges as there is room for.
    #[must_use]
    pub(crate) fn ack(
        &mut self,
        path: u8,
        delay: u32,
        ranges: impl Iterator<Item = AckRange>,
    ) -> bool {
        const FIXED: usize = 1 + 1 + 1 + 4 + 8 + 4;
        let most = match self.room().checked_sub(FIXED) {
            Some(room) => MAX_ACK_RANGES.min(1 + room / 8),
            None => return false,
        };
        let start = self.len;
        let (mut count, mut lowest) = (0_u8, 0);
        for range in ranges.take(most) {
            let len = u32::try_from(range.end() - range.start()).unwrap_or(u32::MAX);
            if count == 0 {
                self.bytes(&[ACK, path, 0]);
                self.bytes(&delay.to_le_bytes());
                self.bytes(&range.end().to_le_bytes());
            } else {
                let gap = u32::try_from(lowest - range.end() - 2).unwrap_or(u32::MAX);
                self.bytes(&gap.to_le_bytes());
            }
            self.bytes(&len.to_le_bytes());
            lowest = *range.start();
            count += 1;
        }
        if count > 0 {
            self.buffer[start + 2] = count;
        }
        count > 0
    }

    /// How many bytes of payload a send has room for.
    pub(crate) fn send_room(&self, binding: Option<&Binding>) -> usize {
        self.room().saturating_sub(command_head(binding) + 2).min(usize::from(u16::MAX))
    }

    /// Writes a send of `len` bytes, which must fit; `fill` puts its payload in place.
    pub(crate) fn send<E>(
        &mut self,
        at: Position,
        binding: Option<&Binding>,
        offset: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.len;
        self.command(SEND, at, binding, offset);
        self.payload(start, len, fill)
    }

    /// How many bytes of payload a reply has room for.
    pub(crate) fn reply_room(&self) -> usize {
        self.room().saturating_sub(REPLY_HEAD).min(usize::from(u16::MAX))
    }

    /// Writes a reply of `len` bytes, which must fit; `fill` puts its payload in place.
    pub(crate) fn reply<E>(
        &mut self,
        at: Position,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.len;
        self.position(REPLY, at);
        self.payload(start, len, fill)
    }

    #[must_use]
    pub(crate) fn signal(
        &mut self,
        at: Position,
        binding: Option<&Binding>,
        offset: u64,
        value: u64,
    ) -> bool {
        self.fits(command_head(binding) + 8) && {
            self.command(SIGNAL, at, binding, offset);
            self.bytes(&value.to_le_bytes())
        }
    }

    #[must_use]
    pub(crate) fn notify(
        &mut self,
        at: Position,
        binding: Option<&Binding>,
        offset: u64,
        len: u64,
        value: u64,
    ) -> bool {
        self.fits(command_head(binding) + 16) && {
            self.command(NOTIFY, at, binding, offset);
            self.bytes(&len.to_le_bytes());
            self.bytes(&value.to_le_bytes())
        }
    }

    #[must_use]
    pub(crate) fn fetch(
        &mut self,
        at: Position,
        binding: Option<&Binding>,
        offset: u64,
        len: u32,
    ) -> bool {
        self.fits(command_head(binding) + 4) && {
            self.command(FETCH, at, binding, offset);
            self.bytes(&len.to_le_bytes())
        }
    }

    #[must_use]
    pub(crate) fn refused(&mut self, channel: u16, generation: u32, reason: u8) -> bool {
        self.fits(8) && {
            self.bytes(&[REFUSED]);
            self.bytes(&channel.to_le_bytes());
            self.bytes(&generation.to_le_bytes());
            self.bytes(&[reason])
        }
    }

    #[must_use]
    pub(crate) fn reset(&mut self, channel: u16, generation: u32) -> bool {
        self.fits(7) && {
            self.bytes(&[RESET]);
            self.bytes(&channel.to_le_bytes());
            self.bytes(&generation.to_le_bytes())
        }
    }

    fn fits(&self, len: usize) -> bool {
        self.room() >= len
    }

    fn command(&mut self, kind: u8, at: Position, binding: Option<&Binding>, offset: u64) {
        self.position(kind | if binding.is_some() { BINDING } else { 0 }, at);
        if let Some(binding) = binding {
            self.bytes(&binding.export.to_le_bytes());
            self.bytes(&binding.capability.to_le_bytes());
        }
        self.bytes(&offset.to_le_bytes());
    }

    fn position(&mut self, kind: u8, at: Position) {
        let mut head = [0; POSITION];
        head[0] = kind;
        head[1..3].copy_from_slice(&at.channel.to_le_bytes());
        head[3..7].copy_from_slice(&at.generation.to_le_bytes());
        head[7..15].copy_from_slice(&at.sequence.to_le_bytes());
        self.bytes(&head);
    }

    /// The frame that began at `start` ends with this payload; if it cannot be had, there was no frame.
    fn payload<E>(
        &mut self,
        start: usize,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Room was asked for with send_room or reply_room, which stay within 16 bits.
        self.bytes(&(len as u16).to_le_bytes());
        let filled = fill(&mut self.buffer[self.len..self.len + len]);
        self.len = if filled.is_ok() { self.len + len } else { start };
        filled
    }

    fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.buffer[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }
}

fn command_head(binding: Option<&Binding>) -> usize {
    POSITION + if binding.is_some() { 24 } else { 0 } + 8
}
