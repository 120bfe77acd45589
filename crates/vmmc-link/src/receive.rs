//! Packets that come in.

use crate::event::{Dropped, LinkError};
use crate::incoming::{Host, Incoming, Ordered, Request, Verdict};
use crate::link::{Link, MAX_IMPORTS, Source};
use crate::memory::{Memory, Refusal};
use crate::protect::OpenError;
use crate::sent::Record;
use crate::time::Time;
use crate::wire::{Binding, Frame, Frames, Header, Position};

impl Link {
    /// Takes a datagram that arrived; it is decrypted in place. Payloads go to `memory` from within.
    ///
    /// # Errors
    ///
    /// [`Dropped`] says why the datagram had no effect (or, for [`Dropped::NoRoom`] and a malformed frame, only the effect of its first
    /// frames). None needs an answer.
    pub fn handle_datagram(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        let header = self.admit(datagram)?;
        let payload = match self.opener.open(&header, datagram) {
            Ok(payload) => payload,
            Err(OpenError::Forged) => {
                self.stats.forged += 1;
                return Err(Dropped::Forged);
            }
            Err(OpenError::WrongMode) => {
                self.stats.forged += 1;
                return Err(Dropped::WrongMode);
            }
        };
        if header.incarnation > self.config.peer_incarnation {
            self.end(LinkError::PeerRestarted);
            return Err(Dropped::Ended);
        }
        let mut eliciting = false;
        for frame in Frames::new(payload) {
            let frame = frame.map_err(Dropped::Malformed);
            match frame.and_then(|frame| self.handle_frame(now, frame, memory)) {
                Ok(wants_ack) => eliciting |= wants_ack,
                Err(dropped) => {
                    match dropped {
                        Dropped::NoRoom => self.stats.no_room += 1,
                        // Not acknowledged, so that no command completes that was refused.
                        Dropped::Refused => {}
                        _ => self.stats.malformed += 1,
                    }
                    return Err(dropped);
                }
            }
        }
        self.stats.packets_received += 1;
        let delay = self.config.max_ack_delay;
        self.paths[usize::from(header.path)].received(
            now,
            header.number,
            eliciting,
            header.ack_now,
            delay,
        );
        Ok(())
    }

    /// What can be told before the packet is opened.
    fn admit(&mut self, datagram: &[u8]) -> Result<Header, Dropped> {
        let header = Header::parse(datagram).map_err(|malformed| {
            self.stats.malformed += 1;
            Dropped::Malformed(malformed)
        })?;
        if header.link != self.config.local_link {
            return Err(Dropped::OtherLink);
        }
        if header.incarnation < self.config.peer_incarnation {
            return Err(Dropped::Stale);
        }
        if self.ended.is_some() {
            // The peer has not heard of it.
            if self.ended == Some(LinkError::Closed) {
                self.farewells = self.farewells.max(1);
            }
            return Err(Dropped::Ended);
        }
        match self.paths.get(usize::from(header.path)) {
            None => Err(Dropped::OtherLink),
            Some(path) if !path.seen.is_new(header.number) => {
                self.stats.repeated += 1;
                Err(Dropped::Repeated)
            }
            Some(_) => Ok(header),
        }
    }

    /// Returns whether the frame wants to be acknowledged.
    fn handle_frame(
        &mut self,
        now: Time,
        frame: Frame<'_>,
        memory: &mut impl Memory,
    ) -> Result<bool, Dropped> {
        match frame {
            Frame::Ping => {}
            Frame::Ack(ack) => {
                let index = usize::from(ack.path);
                let Some(path) = self.paths.get_mut(index) else {
                    return Err(Dropped::Malformed(crate::wire::Malformed::Range));
                };
                let was_up = path.up;
                let recovery = self.config.recovery;
                let before = self.fates.len();
                let newest =
                    path.acked(now, &ack, recovery, &mut self.fates).map_err(Dropped::Malformed)?;
                self.phase_confirmed |= newest.is_some_and(|number| number >= path.phase_start);
                let lost = self.fates[before..]
                    .iter()
                    .filter(|(_, fate)| *fate == crate::sent::Fate::Lost);
                self.stats.packets_lost += lost.count() as u64;
                self.note_path(now, index, was_up);
                self.apply_fates();
                return Ok(false);
            }
            Frame::Close { reason } => {
                self.end(LinkError::ClosedByPeer(reason));
                return Ok(false);
            }
            Frame::Send { at, binding, offset, bytes } => {
                self.on_channel(at, memory, |incoming, host| {
                    incoming.send(at, binding, offset, bytes, host)
                })?;
            }
            Frame::Signal { at, binding, offset, value } => {
                self.ordered(at, binding, Ordered::Signal { offset, value }, memory)?;
            }
            Frame::Notify { at, binding, offset, len, value } => {
                self.ordered(at, binding, Ordered::Notify { offset, len, value }, memory)?;
            }
            Frame::Fetch { at, binding, offset, len } => {
                self.ordered(at, binding, Ordered::Fetch { offset, len: u64::from(len) }, memory)?;
            }
            Frame::Reply { at, bytes } => self.handle_reply(at, bytes, memory),
            Frame::Refused { channel, generation, reason } => {
                let slot = self.outgoing.get(usize::from(channel));
                if slot.is_some_and(|slot| slot.open && slot.generation == generation) {
                    self.fail_import(channel, Refusal::from_code(reason));
                }
            }
            Frame::Reset { channel, generation } => {
                if let Some(incoming) = self.incoming.get_mut(usize::from(channel))
                    && incoming.generation == generation
                {
                    self.room += incoming.held();
                    incoming.renew(generation.saturating_add(1));
                    self.room -= incoming.held();
                    self.replies.forget(channel, generation.saturating_add(1));
                }
            }
        }
        Ok(true)
    }

    fn ordered(
        &mut self,
        at: Position,
        binding: Option<Binding>,
        command: Ordered,
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        self.on_channel(at, memory, |incoming, host| incoming.ordered(at, binding, command, host))
    }

    /// Lets the incoming channel of a frame act, and does what it says.
    fn on_channel<M: Memory>(
        &mut self,
        at: Position,
        memory: &mut M,
        act: impl FnOnce(&mut Incoming, &mut Host<'_, M>) -> Verdict,
    ) -> Result<(), Dropped> {
        let index = usize::from(at.channel);
        if index >= MAX_IMPORTS {
            return Err(Dropped::Malformed(crate::wire::Malformed::Range));
        }
        if index >= self.incoming.len() {
            self.incoming.resize_with(index + 1, Incoming::default);
        }
        let incoming = &mut self.incoming[index];
        let held = incoming.held();
        if at.generation < incoming.generation {
            return Ok(());
        }
        if at.generation > incoming.generation {
            incoming.renew(at.generation);
            self.replies.forget(at.channel, at.generation);
        }
        if incoming.refusal.is_some() {
            self.tell_refusal(at.channel, at.generation);
            return Err(Dropped::Refused);
        }
        let (replies, ready) = (&mut self.replies, &mut self.ready);
        let mut request = |request: Request| match replies.accept(request) {
            Some(job) => {
                ready.push_back(Source::Reply(job));
                true
            }
            None => false,
        };
        let mut host = Host { memory, request: &mut request, room: self.room };
        let verdict = act(incoming, &mut host);
        self.room = (self.room + held).saturating_sub(incoming.held());
        match verdict {
            Verdict::Accepted => Ok(()),
            Verdict::NoRoom => Err(Dropped::NoRoom),
            Verdict::Refused => {
                self.stats.refused += 1;
                self.tell_refusal(at.channel, at.generation);
                Err(Dropped::Refused)
            }
        }
    }

    /// The peer's import is refused from here on, and the peer is told so until it has heard it.
    pub(crate) fn tell_refusal(&mut self, channel: u16, generation: u32) {
        let notice = Record::Refused { channel, generation };
        if !self.notices.contains(&notice) {
            self.notices.push_back(notice);
        }
    }

    fn handle_reply(&mut self, at: Position, bytes: &[u8], memory: &mut impl Memory) {
        let Some(slot) = self.outgoing.get_mut(usize::from(at.channel)) else { return };
        if !slot.open || slot.generation != at.generation || slot.failed.is_some() {
            return;
        }
        match slot.reply(at.sequence, bytes, &mut self.shares, memory) {
            Ok(()) => {
                self.unblock();
                self.settle(at.channel);
            }
            Err(refusal) => self.fail_import(at.channel, refusal),
        }
    }

    /// Fetches that waited for another's end may be answered now.
    pub(crate) fn resume_fetches(&mut self, memory: &mut impl Memory) {
        for index in 0..self.incoming.len() {
            let incoming = &self.incoming[index];
            let at =
                Position { channel: index as u16, generation: incoming.generation, sequence: 0 };
            // Advancing cannot need more room than there is.
            let _ = self.on_channel(at, memory, |incoming, host| incoming.advance(at, host));
        }
    }
}
