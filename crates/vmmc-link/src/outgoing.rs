//! The sending side of an import: its commands in order, and what of them has arrived.
//!
//! Every byte sent, every byte asked for and every ordered command has a sequence number on the import's channel. Packets carry
//! ranges of them in any order; a range that was lost is cut anew, so packets of any size fit. A command is complete when
//! everything up to its end has arrived, so completions come in order and one number tells all of them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::memory::{Buffer, Memory, Refusal};
use crate::ranges::Ranges;
use crate::sent::{Record, Sent};
use crate::wire::{Binding, Position, Writer};

/// The largest piece of a fetch: what the peer answers as one.
const FETCH_PIECE: u64 = 64 << 10;
/// Less room than this in a packet is not worth cutting a longer send.
const SMALLEST_CUT: usize = 256;
/// What a fetch costs of the credit besides its bytes.
pub(crate) const FETCH_COST: u64 = 8 << 10;

/// A command of an import.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    Send { from: Buffer, from_offset: u64, offset: u64 },
    Signal { offset: u64, value: u64 },
    Notify { offset: u64, len: u64, value: u64 },
    Fetch { into: Buffer, into_offset: u64, offset: u64 },
}

#[derive(Debug)]
struct Entry {
    command: Command,
    range: Range<u64>,
}

#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) channel: u16,
    pub(crate) generation: u32,
    pub(crate) open: bool,
    /// No command follows; the channel is free once all are complete.
    pub(crate) closing: bool,
    pub(crate) failed: Option<Refusal>,
    /// Stands in the link's queue of who has something to send.
    pub(crate) queued: bool,
    binding: Binding,
    /// The peer is known to have the binding.
    bound: bool,
    commands: VecDeque<Entry>,
    /// Commands accepted and completed so far; the difference is queued.
    accepted: u64,
    completed: u64,
    /// Sequence numbers: given out; sent at least once; arrived without a gap.
    end: u64,
    sent: u64,
    arrived: u64,
    acked: Ranges,
    lost: Ranges,
    /// Of fetches: what came back.
    replied: Ranges,
}

/// Limits that the channels of a link share.
#[derive(Debug)]
pub(crate) struct Shares {
    /// Bytes of replies that may still be asked for.
    pub(crate) credit: u64,
    /// Signals and notifications that may still be on their way.
    pub(crate) ordered: u32,
}

/// How writing into a packet ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// Nothing is left to send.
    All,
    /// The packet is full.
    Full,
    /// A share is used up; a completion brings it back.
    Blocked,
    /// The import cannot go on.
    Failed(Refusal),
}

impl Outgoing {
    pub(crate) fn new(channel: u16, generation: u32, binding: Binding) -> Outgoing {
        Outgoing {
            channel,
            generation,
            open: true,
            closing: false,
            failed: None,
            queued: false,
            binding,
            bound: false,
            commands: VecDeque::new(),
            accepted: 0,
            completed: 0,
            end: 0,
            sent: 0,
            arrived: 0,
            acked: Ranges::default(),
            lost: Ranges::default(),
            replied: Ranges::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.commands.is_empty()
    }

    /// Takes a command of `len` sequence numbers and returns its count on the import, from 1.
    pub(crate) fn accept(&mut self, command: Command, len: u64) -> u64 {
        self.commands.push_back(Entry { command, range: self.end..self.end + len });
        self.end += len;
        self.accepted += 1;
        self.accepted
    }

    /// Writes what was lost, then what is new, into a packet.
    pub(crate) fn write(
        &mut self,
        writer: &mut Writer<'_>,
        sent: &mut Sent,
        shares: &mut Shares,
        memory: &mut impl Memory,
    ) -> Wrote {
        while let Some(lost) = self.lost.first() {
            match self.write_piece(lost.start, lost.end, writer, sent, shares, memory) {
                Ok(end) => self.lost.remove(lost.start..end),
                Err(ended) => return ended,
            }
        }
        while self.sent < self.end {
            match self.write_piece(self.sent, self.end, writer, sent, shares, memory) {
                Ok(end) => self.sent = end,
                Err(ended) => return ended,
            }
        }
        Wrote::All
    }

    /// Writes one frame that begins at `start` and returns where it ends, at `until` at the latest.
    fn write_piece(
        &mut self,
        start: u64,
        until: u64,
        writer: &mut Writer<'_>,
        sent: &mut Sent,
        shares: &mut Shares,
        memory: &mut impl Memory,
    ) -> Result<u64, Wrote> {
        let index = self.commands.partition_point(|entry| entry.range.end <= start);
        // What is complete needs nothing any more.
        let Some(entry) = self.commands.get(index) else { return Ok(until) };
        if start < entry.range.start {
            return Ok(until.min(entry.range.start));
        }
        let at = Position { channel: self.channel, generation: self.generation, sequence: start };
        let binding = (!self.bound).then_some(&self.binding);
        let skip = start - entry.range.start;
        let until = until.min(entry.range.end);
        let fresh = start >= self.sent;
        let len = match entry.command {
            Command::Send { from, from_offset, offset } => {
                let (room, wanted) = (writer.send_room(binding), until - start);
                if room == 0 || (wanted > room as u64 && room < SMALLEST_CUT) {
                    return Err(Wrote::Full);
                }
                let len = wanted.min(room as u64);
                let fill = |into: &mut [u8]| memory.gather(from, from_offset + skip, into);
                writer
                    .send(at, binding, offset + skip, len as usize, fill)
                    .map_err(Wrote::Failed)?;
                len
            }
            Command::Signal { offset, value } => {
                take_ordered(fresh, shares)?;
                if !writer.signal(at, binding, offset, value) {
                    give_ordered(fresh, shares);
                    return Err(Wrote::Full);
                }
                1
            }
            Command::Notify { offset, len, value } => {
                take_ordered(fresh, shares)?;
                if !writer.notify(at, binding, offset, len, value) {
                    give_ordered(fresh, shares);
                    return Err(Wrote::Full);
                }
                1
            }
            Command::Fetch { offset, .. } => {
                let cost = if skip == 0 { FETCH_COST } else { 0 };
                let allowed = match fresh {
                    true => shares.credit.saturating_sub(cost),
                    false => FETCH_PIECE,
                };
                let len = (until - start).min(FETCH_PIECE).min(allowed);
                // A sliver of credit would make many small requests of a large one.
                if len == 0 || (fresh && len < (until - start).min(FETCH_PIECE / 8)) {
                    return Err(Wrote::Blocked);
                }
                if !writer.fetch(at, binding, offset + skip, len as u32) {
                    return Err(Wrote::Full);
                }
                if fresh {
                    shares.credit -= len + cost;
                }
                len
            }
        };
        let range = start..start + len;
        sent.record(Record::Range {
            channel: self.channel,
            generation: self.generation,
            range: range.clone(),
        });
        Ok(range.end)
    }

    /// A range that was sent has arrived.
    pub(crate) fn acked(&mut self, range: Range<u64>) {
        self.bound = true;
        self.lost.remove(range.clone());
        if range.end <= self.arrived {
            return;
        }
        if range.start <= self.arrived {
            self.arrived = range.end;
            while let Some(end) = self.acked.take_reached(self.arrived) {
                self.arrived = self.arrived.max(end);
            }
        } else {
            self.acked.insert(range);
        }
    }

    /// A range has to be sent again, unless it arrived some other way. Returns whether there is something to send.
    pub(crate) fn lost(&mut self, range: Range<u64>) -> bool {
        let mut rest = range.start.max(self.arrived)..range.end;
        while let Some(gap) = self.acked.first_gap(rest.clone()) {
            rest.start = gap.end;
            self.lost.insert(gap);
        }
        !self.lost.is_empty()
    }

    /// Writes bytes that came back into the buffer of the fetch that asked for them, unless they came before.
    pub(crate) fn reply(
        &mut self,
        start: u64,
        bytes: &[u8],
        shares: &mut Shares,
        memory: &mut impl Memory,
    ) -> Result<(), Refusal> {
        let whole = start..start + bytes.len() as u64;
        if whole.end > self.sent {
            return Err(Refusal::Protocol);
        }
        let mut rest = whole.clone();
        while let Some(gap) = self.replied.first_gap(rest.clone()) {
            let index = self.commands.partition_point(|entry| entry.range.end <= gap.start);
            let Some(entry) = self.commands.get(index) else { break };
            if gap.start < entry.range.start {
                rest.start = entry.range.start.min(whole.end);
                continue;
            }
            let Command::Fetch { into, into_offset, .. } = entry.command else {
                return Err(Refusal::Protocol);
            };
            let piece = gap.start..gap.end.min(entry.range.end);
            let part = &bytes[(piece.start - start) as usize..(piece.end - start) as usize];
            memory.scatter(into, into_offset + (piece.start - entry.range.start), part)?;
            shares.credit += part.len() as u64;
            rest.start = piece.end;
            self.replied.insert(piece.clone());
            self.acked(piece);
        }
        Ok(())
    }

    /// Takes away what is complete. Returns the count of the last command that is, if it is news.
    pub(crate) fn complete(&mut self, shares: &mut Shares) -> Option<u64> {
        let before = self.completed;
        while let Some(entry) = self.commands.front() {
            let fetch = matches!(entry.command, Command::Fetch { .. });
            if entry.range.end > self.arrived
                || (fetch && !self.replied.covers(entry.range.clone()))
            {
                break;
            }
            match entry.command {
                Command::Signal { .. } | Command::Notify { .. } => give_ordered(true, shares),
                Command::Fetch { .. } if !entry.range.is_empty() => {
                    self.replied.remove(0..entry.range.end);
                    shares.credit += FETCH_COST;
                }
                _ => {}
            }
            self.completed += 1;
            self.commands.pop_front();
        }
        (self.completed > before).then_some(self.completed)
    }

    /// Gives everything up: nothing is sent any more, no buffer is touched again, shares go back.
    pub(crate) fn abandon(&mut self, shares: &mut Shares) {
        for entry in self.commands.drain(..).filter(|entry| entry.range.start < self.sent) {
            match entry.command {
                Command::Signal { .. } | Command::Notify { .. } => give_ordered(true, shares),
                Command::Fetch { .. } => {
                    shares.credit += FETCH_COST;
                    let mut rest = entry.range.start..entry.range.end.min(self.sent);
                    while let Some(gap) = self.replied.first_gap(rest.clone()) {
                        shares.credit += gap.end - gap.start;
                        rest.start = gap.end;
                    }
                }
                Command::Send { .. } => {}
            }
        }
        self.lost.clear();
        self.sent = self.end;
    }
}

fn take_ordered(fresh: bool, shares: &mut Shares) -> Result<(), Wrote> {
    if fresh {
        shares.ordered = shares.ordered.checked_sub(1).ok_or(Wrote::Blocked)?;
    }
    Ok(())
}

fn give_ordered(fresh: bool, shares: &mut Shares) {
    if fresh {
        shares.ordered += 1;
    }
}
