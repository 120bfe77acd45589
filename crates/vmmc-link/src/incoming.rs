//! The receiving side of a peer's import: places bytes as they come, holds back what is ordered, and does nothing twice.
//!
//! Bytes may be placed ahead of others that are still missing. When those come late and go to the same place, the newer bytes are
//! left alone: memory ends up as if everything had been placed in order. For that the places of bytes ahead of a gap are
//! remembered until the gap closes.

use std::ops::Range;

use crate::memory::{Memory, Refusal};
use crate::ranges::Ranges;
use crate::wire::{Binding, Position};

/// A command that waits for what is in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ordered {
    Signal { offset: u64, value: u64 },
    Notify { offset: u64, len: u64, value: u64 },
    Fetch { offset: u64, len: u64 },
}

impl Ordered {
    /// Sequence numbers that it takes.
    fn len(self) -> u64 {
        match self {
            Ordered::Fetch { len, .. } => len,
            _ => 1,
        }
    }
}

/// A fetch whose turn has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) at: Position,
    pub(crate) binding: Binding,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What an incoming channel says to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    /// There is no room to remember it. The packet is not acknowledged and comes again.
    NoRoom,
    /// The import is refused from here on.
    Refused,
}

#[derive(Debug, Default)]
pub(crate) struct Incoming {
    pub(crate) generation: u32,
    /// Why nothing is accepted any more.
    pub(crate) refusal: Option<Refusal>,
    binding: Option<Binding>,
    /// Everything below is placed and executed.
    reached: u64,
    /// Placed, beyond the first gap.
    placed: Ranges,
    /// Where that was placed.
    ahead: Vec<Ahead>,
    /// Ordered commands beyond the first gap, by sequence number.
    waiting: Vec<(u64, Ordered)>,
}

/// Bytes placed ahead of a gap.
#[derive(Debug)]
struct Ahead {
    target: Range<u64>,
    /// Of the last byte, plus one.
    sequence: u64,
}

/// What executing needs from the link: the answering of fetches, and room to remember.
pub(crate) struct Host<'a, M> {
    pub(crate) memory: &'a mut M,
    /// Takes a fetch, unless too many are being answered.
    pub(crate) request: &'a mut dyn FnMut(Request) -> bool,
    /// Entries that may still be remembered on this link.
    pub(crate) room: usize,
}

impl Incoming {
    /// The peer uses the channel for another import: what was held for the last one is forgotten.
    pub(crate) fn renew(&mut self, generation: u32) {
        *self = Incoming { generation, ..Incoming::default() };
    }

    pub(crate) fn send<M: Memory>(
        &mut self,
        at: Position,
        binding: Option<Binding>,
        offset: u64,
        bytes: &[u8],
        host: &mut Host<'_, M>,
    ) -> Verdict {
        let Some(target) = self.bind(binding) else { return self.refuse(Refusal::Protocol) };
        let whole = at.sequence..at.sequence + bytes.len() as u64;
        if offset.checked_add(bytes.len() as u64).is_none() {
            return self.refuse(Refusal::Bounds);
        }
        if whole.start > self.reached && host.room < 2 {
            return Verdict::NoRoom;
        }
        let mut rest = whole.start.max(self.reached)..whole.end;
        while let Some(gap) = self.placed.first_gap(rest.clone()) {
            rest.start = gap.end;
            let part = (gap.start - whole.start) as usize..(gap.end - whole.start) as usize;
            let place = offset + part.start as u64;
            if let Err(refusal) =
                self.place_around(&target, place, &bytes[part], gap.start, host.memory)
            {
                return self.refuse(refusal);
            }
            if gap.start == self.reached {
                self.reached = gap.end;
            } else {
                self.remember(place..place + (gap.end - gap.start), gap.end);
                self.placed.insert(gap);
            }
        }
        self.advance(at, host)
    }

    pub(crate) fn ordered<M: Memory>(
        &mut self,
        at: Position,
        binding: Option<Binding>,
        command: Ordered,
        host: &mut Host<'_, M>,
    ) -> Verdict {
        if self.bind(binding).is_none() {
            return self.refuse(Refusal::Protocol);
        }
        if at.sequence + command.len() <= self.reached {
            return Verdict::Accepted;
        }
        let index = self.waiting.partition_point(|&(sequence, _)| sequence < at.sequence);
        match self.waiting.get_mut(index) {
            Some((sequence, there)) if *sequence == at.sequence => {
                if command.len() > there.len() {
                    *there = command;
                }
            }
            _ if host.room == 0 => return Verdict::NoRoom,
            _ => self.waiting.insert(index, (at.sequence, command)),
        }
        self.advance(at, host)
    }

    /// Executes whatever has nothing missing in front of it any more.
    pub(crate) fn advance<M: Memory>(&mut self, at: Position, host: &mut Host<'_, M>) -> Verdict {
        if self.waiting.is_empty() && self.placed.is_empty() {
            return Verdict::Accepted;
        }
        let Some(target) = self.binding else { return Verdict::Accepted };
        loop {
            while let Some(end) = self.placed.take_reached(self.reached) {
                self.reached = self.reached.max(end);
            }
            self.ahead.retain(|ahead| ahead.sequence > self.reached);
            let Some(&(sequence, command)) =
                self.waiting.first().filter(|(sequence, _)| *sequence <= self.reached)
            else {
                return Verdict::Accepted;
            };
            // A request that was cut anew may overlap what was answered.
            let done = self.reached - sequence;
            if done < command.len() {
                let executed = match command {
                    Ordered::Signal { offset, value } => {
                        self.signal(&target, offset, value, sequence, host.memory)
                    }
                    Ordered::Notify { offset, len, value } => {
                        host.memory.notify(&target, offset, len, value)
                    }
                    Ordered::Fetch { offset, len } => match offset.checked_add(len) {
                        None => Err(Refusal::Bounds),
                        Some(_) => {
                            let at = Position { sequence: self.reached, ..at };
                            let (offset, len) = (offset + done, len - done);
                            if !(host.request)(Request { at, binding: target, offset, len }) {
                                return Verdict::Accepted;
                            }
                            Ok(())
                        }
                    },
                };
                if let Err(refusal) = executed {
                    return self.refuse(refusal);
                }
                self.reached = sequence + command.len();
            }
            self.waiting.remove(0);
        }
    }

    fn signal(
        &self,
        target: &Binding,
        offset: u64,
        value: u64,
        sequence: u64,
        memory: &mut impl Memory,
    ) -> Result<(), Refusal> {
        let Some(end) = offset.checked_add(8) else { return Err(Refusal::Bounds) };
        if !offset.is_multiple_of(8) {
            return Err(Refusal::Unaligned);
        }
        let word = offset..end;
        if self.ahead.iter().any(|ahead| ahead.sequence > sequence && overlap(&ahead.target, &word))
        {
            return self.place_around(target, offset, &value.to_le_bytes(), sequence, memory);
        }
        memory.signal(target, offset, value)
    }

    /// Places bytes, except where later ones lie already.
    fn place_around(
        &self,
        target: &Binding,
        offset: u64,
        bytes: &[u8],
        sequence: u64,
        memory: &mut impl Memory,
    ) -> Result<(), Refusal> {
        if self.ahead.is_empty() {
            return memory.place(target, offset, bytes);
        }
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let later = |ahead: &&Ahead| ahead.sequence > sequence && ahead.target.end > at;
            let next = self.ahead.iter().filter(later).min_by_key(|ahead| ahead.target.start);
            let until = next.map_or(end, |ahead| ahead.target.start.clamp(at, end));
            if until > at {
                let part = (at - offset) as usize..(until - offset) as usize;
                memory.place(target, at, &bytes[part])?;
            }
            at = next.map_or(end, |ahead| ahead.target.end.max(until));
        }
        Ok(())
    }

    /// Remembers where bytes ahead of a gap lie; a run of them is one entry.
    fn remember(&mut self, target: Range<u64>, sequence: u64) {
        let len = target.end - target.start;
        for ahead in self.ahead.iter_mut().rev().take(4) {
            if ahead.target == target {
                return ahead.sequence = ahead.sequence.max(sequence);
            }
            if ahead.target.end == target.start && ahead.sequence + len == sequence {
                (ahead.target.end, ahead.sequence) = (target.end, sequence);
                return;
            }
        }
        self.ahead.push(Ahead { target, sequence });
    }

    fn bind(&mut self, binding: Option<Binding>) -> Option<Binding> {
        match (self.binding, binding) {
            (None, Some(_)) => self.binding = binding,
            (Some(held), Some(told)) if held != told => return None,
            _ => {}
        }
        self.binding
    }

    /// Ends the import; nothing of it needs to be remembered but why.
    pub(crate) fn refuse(&mut self, refusal: Refusal) -> Verdict {
        *self =
            Incoming { generation: self.generation, refusal: Some(refusal), ..Incoming::default() };
        Verdict::Refused
    }

    /// Everything below is placed and executed.
    pub(crate) fn reached(&self) -> u64 {
        self.reached
    }

    /// Entries that it remembers.
    pub(crate) fn held(&self) -> usize {
        self.placed.count() + self.ahead.len() + self.waiting.len()
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
