//! Packets that go out.

use crate::event::LinkError;
use crate::link::{Link, Source};
use crate::memory::Memory;
use crate::outgoing::Wrote;
use crate::replies::Answered;
use crate::sent::Record;
use crate::time::Time;
use crate::wire::{HEADER_LEN, Header, Writer};

/// Datagrams to be sent, one behind the other in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// The path that they take.
    pub path: u8,
    /// Bytes of the buffer in use.
    pub len: usize,
    /// Bytes of each datagram; only the last may be shorter. What UDP segmentation offload wants to be told.
    pub segment: usize,
}

/// Why a packet is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// There is data and the window is open.
    Data,
    /// The peer has to be asked.
    Probe,
    /// Nothing but an acknowledgement is due.
    Ack,
}

impl Link {
    /// Writes up to `most` datagrams for one path into `buffer`, or returns `None` if nothing may go now. `buffer` should hold `most` times the
    /// largest datagram of the configuration; with less room fewer are written. Call until it returns `None`.
    pub fn poll_transmit(
        &mut self,
        now: Time,
        buffer: &mut [u8],
        most: usize,
        memory: &mut impl Memory,
    ) -> Option<Transmit> {
        if self.ended.is_some() {
            return self.farewell(now, buffer);
        }
        if self.replies.freed() {
            self.resume_fetches(memory);
        }
        if let Some(index) = self.paths.iter().position(|path| path.probe_due) {
            return self.packets(now, index, Occasion::Probe, buffer, 1, memory);
        }
        if let Some(transmit) = self.data(now, buffer, most, memory) {
            return Some(transmit);
        }
        let index = self.paths.iter().position(|path| path.ack_due(now))?;
        self.packets(now, index, Occasion::Ack, buffer, 1, memory)
    }

    /// When pacing will let data go, if it is only pacing that holds it back.
    pub(crate) fn next_paced(&self) -> Option<Time> {
        if self.ready.is_empty() && self.notices.is_empty() {
            return None;
        }
        let open =
            |path: &&crate::path::Path| path.up && path.has_window(u64::from(path.mtu.current()));
        self.paths.iter().filter(open).map(|path| path.pace_at()).min()
    }

    fn data(
        &mut self,
        now: Time,
        buffer: &mut [u8],
        most: usize,
        memory: &mut impl Memory,
    ) -> Option<Transmit> {
        while !self.ready.is_empty() || !self.notices.is_empty() {
            for path in self.paths.iter_mut().filter(|path| path.up) {
                if !path.has_window(u64::from(path.mtu.current())) {
                    path.congestion.limited();
                }
            }
            let index = (0..self.paths.len())
                .filter(|&index| {
                    let path = &self.paths[index];
                    path.up && !path.paced(now) && path.has_window(u64::from(path.mtu.current()))
                })
                .min_by_key(|&index| self.paths[index].rtt.smoothed())?;
            if let Some(size) = self.paths[index].mtu.probe(now) {
                return self.mtu_probe(now, index, size, buffer);
            }
            let transmit = self.packets(now, index, Occasion::Data, buffer, most, memory);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    fn packets(
        &mut self,
        now: Time,
        index: usize,
        occasion: Occasion,
        buffer: &mut [u8],
        most: usize,
        memory: &mut impl Memory,
    ) -> Option<Transmit> {
        let path = &self.paths[index];
        // A probe has to get through, also where large packets no longer do.
        let segment = usize::from(match occasion {
            Occasion::Probe => path.mtu.least(),
            _ => path.mtu.current(),
        });
        let id = path.id;
        let mut len = 0;
        for count in 0..most.max(1) {
            let Some(room) = buffer.get_mut(len..len + segment) else { break };
            let path = &self.paths[index];
            if count > 0 && (path.paced(now) || !path.has_window(segment as u64)) {
                break;
            }
            let written = self.packet(now, index, occasion, room, memory)?;
            len += written;
            if written < segment || occasion != Occasion::Data {
                break;
            }
            if self.ready.is_empty() && self.notices.is_empty() {
                break;
            }
        }
        (len > 0).then_some(Transmit { path: id, len, segment: segment.min(len) })
    }

    /// Builds, seals and notes one packet. `Some(0)` if there was nothing to put into it; `None` if the link has ended.
    fn packet(
        &mut self,
        now: Time,
        index: usize,
        occasion: Occasion,
        room: &mut [u8],
        memory: &mut impl Memory,
    ) -> Option<usize> {
        let tag = self.sealer.tag_len();
        let body = room.len().checked_sub(HEADER_LEN + tag)?;
        let mut writer = Writer::new(&mut room[HEADER_LEN..HEADER_LEN + body]);
        // Who only acknowledges is never told that his key was understood, and could not change it: now and then he asks.
        let unsure = self.wants_rotation() && !self.phase_confirmed;
        let path = &mut self.paths[index];
        let asks = unsure && path.in_flight == 0;
        if path.wants_ack() && writer.ack(path.id, path.ack_delay(now), path.seen.ranges()) {
            path.acknowledged();
        }
        let head = writer.len();
        if occasion == Occasion::Probe || asks {
            let _ = writer.ping();
        }
        if occasion != Occasion::Ack && self.paths[index].up {
            self.fill(index, &mut writer, memory);
        }
        if writer.len() == 0 {
            return Some(0);
        }
        let eliciting = writer.len() > head;
        let more = !self.ready.is_empty() || !self.notices.is_empty();
        if more && occasion == Occasion::Data {
            writer.pad();
        }
        let len = HEADER_LEN + writer.len() + tag;
        let path = &self.paths[index];
        let closes = !path.has_window(2 * len as u64) && path.in_flight > 0 && path.may_ask();
        let flushed = !more && std::mem::take(&mut self.flushing);
        let ack_now = eliciting && (occasion == Occasion::Probe || flushed || (closes && more));
        self.seal_and_note(now, index, ack_now, &mut room[..len], eliciting, None)
    }

    /// Fills a packet with notices, then with what each source has, in turn.
    fn fill(&mut self, index: usize, writer: &mut Writer<'_>, memory: &mut impl Memory) {
        let sent = &mut self.paths[index].sent;
        while let Some(notice) = self.notices.pop_front() {
            let written = match notice {
                Record::Refused { channel, generation } => {
                    let reason = match self.incoming.get(usize::from(channel)) {
                        Some(incoming) if incoming.generation == generation => incoming.refusal,
                        _ => None,
                    };
                    reason.is_none_or(|reason| writer.refused(channel, generation, reason.code()))
                }
                Record::Reset { channel, generation } => writer.reset(channel, generation),
                _ => true,
            };
            if !written {
                return self.notices.push_front(notice);
            }
            sent.record(notice);
        }
        while let Some(source) = self.ready.pop_front() {
            let sent = &mut self.paths[index].sent;
            match source {
                Source::Channel(channel) => {
                    let slot = &mut self.outgoing[usize::from(channel)];
                    slot.queued = false;
                    match slot.write(writer, sent, &mut self.shares, memory) {
                        Wrote::All => {}
                        Wrote::Full => {
                            slot.queued = true;
                            return self.ready.push_back(source);
                        }
                        Wrote::Blocked => self.blocked.push(channel),
                        Wrote::Failed(refusal) => self.fail_import(channel, refusal),
                    }
                }
                Source::Reply(job) => match self.replies.write(job, writer, sent, memory) {
                    Answered::All => {}
                    Answered::Full => return self.ready.push_back(source),
                    Answered::Refused(at, refusal) => self.refuse_incoming(at, refusal),
                },
            }
        }
    }

    fn refuse_incoming(&mut self, at: crate::wire::Position, refusal: crate::memory::Refusal) {
        let Some(incoming) = self.incoming.get_mut(usize::from(at.channel)) else { return };
        if incoming.generation == at.generation && incoming.refusal.is_none() {
            let held = incoming.held();
            incoming.refuse(refusal);
            self.room += held;
            self.stats.refused += 1;
            self.tell_refusal(at.channel, at.generation);
        }
    }

    /// A packet of a size that is being tried.
    fn mtu_probe(
        &mut self,
        now: Time,
        index: usize,
        size: u16,
        buffer: &mut [u8],
    ) -> Option<Transmit> {
        let len = usize::from(size);
        let room = buffer.get_mut(..len)?;
        let mut writer = Writer::new(&mut room[HEADER_LEN..len - self.sealer.tag_len()]);
        let _ = writer.ping();
        writer.pad();
        self.seal_and_note(now, index, true, room, true, Some(size))?;
        Some(Transmit { path: self.paths[index].id, len, segment: len })
    }

    fn farewell(&mut self, now: Time, buffer: &mut [u8]) -> Option<Transmit> {
        self.farewells = self.farewells.checked_sub(1)?;
        let index = usize::from(self.farewells) % self.paths.len();
        let len = HEADER_LEN + 2 + self.sealer.tag_len();
        let room = buffer.get_mut(..len)?;
        let _ = Writer::new(&mut room[HEADER_LEN..HEADER_LEN + 2]).close(self.close_reason);
        self.seal_and_note(now, index, false, room, false, None)?;
        Some(Transmit { path: self.paths[index].id, len, segment: len })
    }

    fn seal_and_note(
        &mut self,
        now: Time,
        index: usize,
        ack_now: bool,
        packet: &mut [u8],
        eliciting: bool,
        mtu_probe: Option<u16>,
    ) -> Option<usize> {
        self.rotate_key();
        let path = &mut self.paths[index];
        if ack_now {
            path.asks();
        }
        let header = Header {
            key_phase: self.sealer.phase(),
            ack_now,
            plaintext: self.sealer.is_plaintext(),
            path: path.id,
            link: self.config.remote_link,
            incarnation: self.config.incarnation,
            number: path.sent.next(),
        };
        packet[..HEADER_LEN].copy_from_slice(&header.encode());
        if !self.sealer.seal(&header, packet) {
            self.end(LinkError::Protection);
            return None;
        }
        self.sealed += 1;
        self.stats.packets_sent += 1;
        self.stats.bytes_sent += packet.len() as u64;
        path.sent(now, packet.len() as u32, eliciting, mtu_probe);
        Some(packet.len())
    }

    /// Whether this key has protected enough.
    fn wants_rotation(&self) -> bool {
        self.sealed >= self.config.packets_per_key && !self.sealer.is_plaintext()
    }

    /// Goes on to the next key when this one has protected enough and the peer is known to have it.
    fn rotate_key(&mut self) {
        if self.wants_rotation() && self.phase_confirmed && self.sealer.rotate().is_ok() {
            self.sealed = 0;
            self.phase_confirmed = false;
            self.stats.rotations += 1;
            for path in &mut self.paths {
                path.phase_start = path.sent.next();
            }
        }
    }
}
