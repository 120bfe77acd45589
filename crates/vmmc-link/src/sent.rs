//! Packets of one path that were sent, and what each carried, until each is known to have arrived or to be lost.

use std::collections::VecDeque;
use std::ops::Range;

use crate::time::Time;

/// Something that a packet carried and that must arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// Sequence numbers of an outgoing channel.
    Range { channel: u16, generation: u32, range: Range<u64> },
    /// Bytes of a fetch that is being answered.
    Reply { job: u32, serial: u32, range: Range<u64> },
    /// That an incoming channel is refused.
    Refused { channel: u16, generation: u32 },
    /// That an outgoing channel's generation is over.
    Reset { channel: u16, generation: u32 },
}

impl Record {
    /// Makes this one out of both, if `next` goes on where it ends.
    pub(crate) fn take_in(&mut self, next: &Record) -> bool {
        let (range, more) = match (self, next) {
            (
                Record::Range { channel, generation, range },
                Record::Range { channel: same, generation: life, range: more },
            ) if (&*channel, &*generation) == (same, life) => (range, more),
            (
                Record::Reply { job, serial, range },
                Record::Reply { job: same, serial: life, range: more },
            ) if (&*job, &*serial) == (same, life) => (range, more),
            _ => return false,
        };
        let follows = range.end == more.start;
        if follows {
            range.end = more.end;
        }
        follows
    }
}

/// What became of a record's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Acked,
    /// To be sent again; the first transmission may still arrive.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    InFlight,
    Lost,
    /// Acknowledged, or never to be.
    Done,
}

#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) at: Time,
    /// Size of the datagram.
    pub(crate) bytes: u32,
    pub(crate) state: State,
    /// The size that is being tried with it.
    pub(crate) mtu_probe: Option<u16>,
    /// Records of all packets up to and with this one, counted from the first that there ever was.
    records_end: u64,
}

/// The packets of a path, by number: a window that moves on.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    packets: VecDeque<Packet>,
    /// The number of the first packet held.
    base: u64,
    /// The records of the packets held, in order, and behind them those of the packet being built.
    records: VecDeque<Record>,
    record_base: u64,
    /// No packet below is in flight.
    oldest: u64,
}

impl Sent {
    /// The number of the next packet.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    /// The packet being built carries this. Records that follow on each other become one.
    pub(crate) fn record(&mut self, record: Record) {
        let built = self.records_end() < self.record_base + self.records.len() as u64;
        if !built || !self.records.back_mut().is_some_and(|before| before.take_in(&record)) {
            self.records.push_back(record);
        }
    }

    /// The packet is built and sent; [`State::Done`] if nobody waits for its acknowledgement.
    pub(crate) fn push(&mut self, at: Time, bytes: u32, state: State, mtu_probe: Option<u16>) {
        let records_end = self.record_base + self.records.len() as u64;
        self.packets.push_back(Packet { at, bytes, state, mtu_probe, records_end });
    }

    /// The packet of a number, if it is still held, to be changed.
    pub(crate) fn packet(&mut self, number: u64) -> Option<&mut Packet> {
        let index = number.checked_sub(self.base)?;
        self.packets.get_mut(usize::try_from(index).ok()?)
    }

    /// The first packet in flight.
    pub(crate) fn oldest_in_flight(&mut self) -> Option<u64> {
        let mut number = self.oldest.max(self.base);
        while let Some(packet) = self.packet(number) {
            if packet.state == State::InFlight {
                break;
            }
            number += 1;
        }
        self.oldest = number;
        (number < self.next()).then_some(number)
    }

    /// The first packet number held.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// What the packet of a number carried.
    pub(crate) fn records(&self, number: u64) -> impl Iterator<Item = &Record> {
        let index = usize::try_from(number.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let start = match index.checked_sub(1).and_then(|before| self.packets.get(before)) {
            Some(before) => before.records_end,
            None => self.record_base,
        };
        let end = self.packets.get(index).map_or(start, |packet| packet.records_end);
        let at = |record: u64| (record - self.record_base) as usize;
        self.records.range(at(start)..at(end))
    }

    /// Packets from the first that may be in flight to the last.
    pub(crate) fn spread(&self) -> u64 {
        self.next() - self.oldest.max(self.base)
    }

    /// Forgets packets at the front that are done, and lost ones sent before `late` or that are too many.
    pub(crate) fn forget(&mut self, late: Time, most: u64) {
        while let Some(front) = self.packets.front() {
            let over = match front.state {
                State::Done => true,
                State::Lost => front.at < late || self.packets.len() as u64 > most,
                State::InFlight => false,
            };
            if !over {
                return;
            }
            let records = front.records_end - self.record_base;
            self.records.drain(..records as usize);
            self.record_base += records;
            self.packets.pop_front();
            self.base += 1;
        }
    }

    fn records_end(&self) -> u64 {
        self.packets.back().map_or(self.record_base, |packet| packet.records_end)
    }
}
