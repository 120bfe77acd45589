//! Fetches of the peer that are being answered.

use std::ops::Range;

use crate::incoming::Request;
use crate::memory::{Memory, Refusal};
use crate::ranges::Ranges;
use crate::sent::{Record, Sent};
use crate::wire::{Position, Writer};

/// Fetches answered at a time. A peer that keeps to its credit never has more.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Replies {
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// A request was refused for want of room, and room came since.
    wanted: bool,
    freed: bool,
}

/// One fetch. Its place is used again; `serial` tells the uses apart.
#[derive(Debug)]
struct Job {
    serial: u32,
    request: Request,
    active: bool,
    /// Bytes sent at least once; arrived without a gap; arrived beyond; to be sent again.
    sent: u64,
    arrived: u64,
    acked: Ranges,
    lost: Ranges,
}

/// How writing into a packet ended.
#[derive(Debug)]
pub(crate) enum Answered {
    All,
    Full,
    /// The memory may not be read: the import is refused.
    Refused(Position, Refusal),
}

impl Replies {
    /// Takes a request on, unless there are too many.
    pub(crate) fn accept(&mut self, request: Request) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            let job = &mut self.jobs[index as usize];
            job.serial = job.serial.wrapping_add(1);
            (job.request, job.active, job.sent, job.arrived) = (request, true, 0, 0);
            job.acked.clear();
            job.lost.clear();
            return Some(index);
        }
        let index = self.jobs.len();
        self.wanted |= index >= MOST;
        (index < MOST).then(|| {
            self.jobs.push(Job {
                serial: 0,
                request,
                active: true,
                sent: 0,
                arrived: 0,
                acked: Ranges::default(),
                lost: Ranges::default(),
            });
            index as u32
        })
    }

    pub(crate) fn write(
        &mut self,
        index: u32,
        writer: &mut Writer<'_>,
        sent: &mut Sent,
        memory: &mut impl Memory,
    ) -> Answered {
        let Some(job) = self.jobs.get_mut(index as usize).filter(|job| job.active) else {
            return Answered::All;
        };
        loop {
            let (range, again) = match job.lost.first() {
                Some(lost) => (lost, true),
                None => (job.sent..job.request.len, false),
            };
            if range.is_empty() {
                return Answered::All;
            }
            let room = writer.reply_room() as u64;
            let wanted = range.end - range.start;
            if room == 0 || (wanted > room && room < 256) {
                return Answered::Full;
            }
            let part = range.start..range.start + wanted.min(room);
            let Request { at, binding, offset, .. } = job.request;
            let here = Position { sequence: at.sequence + part.start, ..at };
            let read = |into: &mut [u8]| memory.read(&binding, offset + part.start, into);
            if let Err(refusal) = writer.reply(here, (part.end - part.start) as usize, read) {
                self.finish(index);
                return Answered::Refused(at, refusal);
            }
            sent.record(Record::Reply { job: index, serial: job.serial, range: part.clone() });
            if again {
                job.lost.remove(part);
            } else {
                job.sent = part.end;
            }
        }
    }

    pub(crate) fn acked(&mut self, index: u32, serial: u32, range: Range<u64>) {
        let Some(job) = self.job(index, serial) else { return };
        job.lost.remove(range.clone());
        if range.start > job.arrived {
            return job.acked.insert(range);
        }
        job.arrived = job.arrived.max(range.end);
        while let Some(end) = job.acked.take_reached(job.arrived) {
            job.arrived = job.arrived.max(end);
        }
        if job.arrived >= job.request.len {
            self.finish(index);
        }
    }

    /// Returns whether there is something to send.
    pub(crate) fn lost(&mut self, index: u32, serial: u32, range: Range<u64>) -> bool {
        let Some(job) = self.job(index, serial) else { return false };
        let mut rest = range.start.max(job.arrived)..range.end;
        while let Some(gap) = job.acked.first_gap(rest.clone()) {
            rest.start = gap.end;
            job.lost.insert(gap);
        }
        !job.lost.is_empty()
    }

    /// Whether room came back for which a request waits. Tells it once.
    pub(crate) fn freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// The peer gave the channel's import up: its fetches need no answer.
    pub(crate) fn forget(&mut self, channel: u16, before: u32) {
        for index in 0..self.jobs.len() {
            let Job { request, active, .. } = &self.jobs[index];
            if *active && request.at.channel == channel && request.at.generation < before {
                self.finish(index as u32);
            }
        }
    }

    fn finish(&mut self, index: u32) {
        if let Some(job) = self.jobs.get_mut(index as usize)
            && std::mem::take(&mut job.active)
        {
            self.free.push(index);
            self.freed |= std::mem::take(&mut self.wanted);
        }
    }

    fn job(&mut self, index: u32, serial: u32) -> Option<&mut Job> {
        self.jobs.get_mut(index as usize).filter(|job| job.active && job.serial == serial)
    }
}
