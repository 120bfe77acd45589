//! The receiving side of a peer's import: places bytes as they come, holds back what is ordered, and does nothing twice.
//!
//! Bytes may be placed ahead of others that are still missing. When those come late and go to the same place, the newer bytes are
//! left alone: memory ends up as if everything had been placed in order. For that the places of bytes ahead of a gap are
//! remembered until the gap closes.

use std::collections::VecDeque;

use crate::ahead::Ahead;
use crate::memory::{Memory, Refusal};
use crate::ranges::Ranges;
use crate::wire::{Binding, Position};

/// Gaps of an import that are remembered, and commands behind them: so many that no peer that keeps to its limits meets this one, and so few that a peer that
/// sends nothing but gaps makes no packet of his long to handle.
const MOST_GAPS: usize = 2048;
const MOST_WAITING: usize = 2048;

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
    ahead: Ahead,
    /// Ordered commands beyond the first gap, by sequence number.
    waiting: VecDeque<(u64, Ordered)>,
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
        if whole.start > self.reached && !self.has_room(host) {
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
                self.ahead.insert(place..place + (gap.end - gap.start), gap.end);
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
        // The one that all others wait for always finds room.
        let is_next = at.sequence <= self.reached
            && self.waiting.front().is_none_or(|&(sequence, _)| sequence > self.reached);
        let is_full = host.room == 0 || self.waiting.len() >= MOST_WAITING;
        match self.waiting.get_mut(index) {
            Some((sequence, there)) if *sequence == at.sequence => {
                if command.len() > there.len() {
                    *there = command;
                }
            }
            _ if is_full && !is_next => return Verdict::NoRoom,
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
            match self.placed.is_empty() {
                true => self.ahead.clear(),
                false => self.ahead.forget(self.reached),
            }
            let Some(&(sequence, command)) =
                self.waiting.front().filter(|(sequence, _)| *sequence <= self.reached)
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
            self.waiting.pop_front();
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
        if self.ahead.newer(offset..end, sequence).is_some() {
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
            let newer = self.ahead.newer(at..end, sequence);
            let until = newer.as_ref().map_or(end, |newer| newer.start.max(at));
            if until > at {
                let part = (at - offset) as usize..(until - offset) as usize;
                memory.place(target, at, &bytes[part])?;
            }
            at = newer.map_or(end, |newer| newer.end);
        }
        Ok(())
    }

    /// Whether bytes ahead of a gap can be remembered.
    fn has_room<M: Memory>(&mut self, host: &mut Host<'_, M>) -> bool {
        if host.room < 2 || self.ahead.is_full() {
            let before = self.ahead.count();
            self.ahead.forget_now(self.reached);
            host.room += before - self.ahead.count();
        }
        host.room >= 2 && self.placed.count() < MOST_GAPS && !self.ahead.is_full()
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
        self.placed.count() + self.ahead.count() + self.waiting.len()
    }
}
