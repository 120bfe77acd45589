//! The link: one side of a reliable connection between two engines.

use std::collections::VecDeque;

use crate::config::Config;
use crate::event::{CommandError, Event, ImportId, LinkError, PathState, Stats, Ticket};
use crate::incoming::Incoming;
use crate::memory::{Buffer, Refusal};
use crate::outgoing::{Command, Outgoing, Shares};
use crate::path::Path;
use crate::protect::{KeyError, Keys, Opener, Sealer, protection};
use crate::replies::Replies;
use crate::sent::{Fate, Record};
use crate::time::Time;
use crate::wire::Binding;

/// Channels of a link, in each direction: how many imports it carries at a time.
pub const MAX_IMPORTS: usize = 4096;
/// Commands of an import that may wait.
const MOST_COMMANDS: usize = 1 << 16;
/// Signals and notifications on their way; the receiver remembers at least as many.
const MOST_ORDERED: u32 = 512;
/// What the receiver remembers of a peer: ranges and commands ahead of gaps, on all channels together.
pub(crate) const MOST_REMEMBERED: usize = 16 << 10;
/// More could exceed the number of fetches that a peer answers at a time.
const MOST_CREDIT: u64 = 4 << 20;
/// With less, no fetch would ever be asked for.
const LEAST_CREDIT: u64 = 16 << 10;
/// Sequence numbers of one command.
const MOST_LEN: u64 = 1 << 40;

/// One side of a link. It does no I/O and reads no clock.
///
/// Its methods are of four kinds. *Commands* (`import`, `send`, `signal`, `notify`, `fetch`, `flush`, `close`…) say what is to be done and return at
/// once. *Inputs* ([`Link::handle_datagram`], [`Link::handle_timeout`]) take what happened. *Outputs* are asked after either, until they
/// have nothing more: [`Link::poll_transmit`] (datagrams to send), [`Link::poll_event`], [`Link::poll_timeout`] (when to call `handle_timeout`). The rest only
/// look.
///
/// In the steady state no call allocates. A link is not shared between threads; it may move between them.
///
/// Order: the sends of one import are placed in any order, but memory ends up as if they had been placed in the order of the commands. A
/// signal word, a notification and a fetch take effect once everything before them on the same import is placed. A fetch may see
/// later sends. Between imports there is no order.
#[derive(Debug)]
pub struct Link {
    pub(crate) config: Config,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) sealed: u64,
    pub(crate) phase_confirmed: bool,
    pub(crate) paths: Vec<Path>,
    pub(crate) outgoing: Vec<Outgoing>,
    free: Vec<u16>,
    pub(crate) incoming: Vec<Incoming>,
    pub(crate) replies: Replies,
    pub(crate) shares: Shares,
    /// Bytes of replies that may be under way: in all, and what the embedding wants it to become.
    credit: u64,
    wanted_credit: u64,
    /// What may still be remembered for the peer.
    pub(crate) room: usize,
    /// Who has something to send, in turn.
    pub(crate) ready: VecDeque<Source>,
    /// Channels held back by a share.
    pub(crate) blocked: Vec<u16>,
    /// Incoming channels whose refusal, and outgoing channels whose end, has to be told.
    pub(crate) notices: VecDeque<Record>,
    pub(crate) flushing: bool,
    pub(crate) events: VecDeque<Event>,
    pub(crate) fates: Vec<(Record, Fate)>,
    pub(crate) ended: Option<LinkError>,
    /// Packets that still tell the peer of the end.
    pub(crate) farewells: u8,
    pub(crate) close_reason: u8,
    /// When the last path went down.
    pub(crate) down_since: Option<Time>,
    pub(crate) stats: Stats,
}

/// Who has something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Channel(u16),
    Reply(u32),
}

impl Link {
    /// A link whose peer has the same paths and the keys the other way round.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the cryptographic library cannot be used.
    pub fn new(config: Config, keys: &Keys, now: Time) -> Result<Link, KeyError> {
        let (sealer, opener) = protection(keys)?;
        let config = Config {
            paths: config.paths.clamp(1, 64),
            min_mtu: config.min_mtu.clamp(576, 65_000),
            max_mtu: config.max_mtu.clamp(576, 65_000).max(config.min_mtu),
            fetch_credit: config.fetch_credit.clamp(LEAST_CREDIT, MOST_CREDIT),
            ..config
        };
        Ok(Link {
            sealer,
            opener,
            sealed: 0,
            phase_confirmed: false,
            paths: (0..config.paths).map(|id| Path::new(id, &config, now)).collect(),
            outgoing: Vec::new(),
            free: Vec::new(),
            incoming: Vec::new(),
            replies: Replies::default(),
            shares: Shares { credit: config.fetch_credit, ordered: MOST_ORDERED },
            credit: config.fetch_credit,
            wanted_credit: config.fetch_credit,
            room: MOST_REMEMBERED,
            ready: VecDeque::new(),
            blocked: Vec::new(),
            notices: VecDeque::new(),
            flushing: false,
            events: VecDeque::new(),
            fates: Vec::new(),
            ended: None,
            farewells: 0,
            close_reason: 0,
            down_since: None,
            stats: Stats::default(),
            config,
        })
    }

    /// Opens an import. Nothing is sent before its first command.
    ///
    /// # Errors
    ///
    /// [`CommandError::TooManyImports`], [`CommandError::Ended`].
    pub fn import(&mut self, binding: Binding) -> Result<ImportId, CommandError> {
        self.alive()?;
        if let Some(channel) = self.free.pop() {
            let slot = &mut self.outgoing[usize::from(channel)];
            *slot = Outgoing::new(channel, slot.generation + 1, binding);
            return Ok(ImportId { channel, generation: slot.generation });
        }
        if self.outgoing.len() >= MAX_IMPORTS {
            return Err(CommandError::TooManyImports);
        }
        let channel = self.outgoing.len() as u16;
        self.outgoing.push(Outgoing::new(channel, 0, binding));
        Ok(ImportId { channel, generation: 0 })
    }

    /// Sends `len` bytes of a local buffer to `offset` of the export.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; nothing was accepted then.
    pub fn send(
        &mut self,
        import: ImportId,
        offset: u64,
        from: Buffer,
        from_offset: u64,
        len: u64,
    ) -> Result<Ticket, CommandError> {
        check_range(offset, len)?;
        check_range(from_offset, len)?;
        self.command(import, Command::Send { from, from_offset, offset }, len)
    }

    /// Stores an aligned 8-byte word in the export once everything before it is placed.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; nothing was accepted then.
    pub fn signal(
        &mut self,
        import: ImportId,
        offset: u64,
        value: u64,
    ) -> Result<Ticket, CommandError> {
        check_range(offset, 8)?;
        self.command(import, Command::Signal { offset, value }, 1)
    }

    /// Notifies the exporter once everything before it is placed: of `len` bytes at `offset`, with a word for its handler.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; nothing was accepted then.
    pub fn notify(
        &mut self,
        import: ImportId,
        offset: u64,
        len: u64,
        value: u64,
    ) -> Result<Ticket, CommandError> {
        self.command(import, Command::Notify { offset, len, value }, 1)
    }

    /// Fetches `len` bytes at `offset` of the export into a local buffer, once everything before it is placed.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; nothing was accepted then.
    pub fn fetch(
        &mut self,
        import: ImportId,
        offset: u64,
        into: Buffer,
        into_offset: u64,
        len: u64,
    ) -> Result<Ticket, CommandError> {
        check_range(offset, len)?;
        check_range(into_offset, len)?;
        self.command(import, Command::Fetch { into, into_offset, offset }, len)
    }

    /// Asks the peer to acknowledge without delay whatever is on its way, because somebody waits for it.
    pub fn flush(&mut self) {
        if !self.ready.is_empty() {
            self.flushing = true;
            return;
        }
        for path in self.paths.iter_mut().filter(|path| path.up && path.in_flight > 0) {
            path.probe_due = true;
        }
    }

    /// Lets acknowledgements go out with the next datagrams, whether or not others come along.
    pub fn acknowledge(&mut self, now: Time) {
        self.paths.iter_mut().for_each(|path| path.acknowledge_now(now));
    }

    /// Ends an import once its commands are complete; then comes [`Event::Closed`], or after a refusal at once.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownImport`].
    pub fn close_import(&mut self, import: ImportId) -> Result<(), CommandError> {
        self.outgoing(import)?.closing = true;
        self.settle(import.channel);
        Ok(())
    }

    /// Ends an import at once: its commands are given up, although what is on its way may still be placed. Its buffers are free.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownImport`].
    pub fn abort_import(&mut self, import: ImportId) -> Result<(), CommandError> {
        self.outgoing(import)?;
        self.give_up(import.channel);
        let ImportId { channel, generation } = import;
        self.notices.push_back(Record::Reset { channel, generation });
        self.close_import(import)
    }

    /// How many bytes of fetch replies may be under way to this side, 16 KiB to 4 MiB. An engine with many links divides what its
    /// own network can take among those that fetch, so that replies from many nodes at a time (incast) do not overflow it.
    pub fn set_fetch_credit(&mut self, bytes: u64) {
        self.wanted_credit = bytes.clamp(LEAST_CREDIT, MOST_CREDIT);
        let more = self.wanted_credit.saturating_sub(self.credit);
        self.credit += more;
        self.shares.credit += more;
        self.unblock();
    }

    /// Whether fetches are under way or wait for credit.
    pub fn is_fetching(&self) -> bool {
        self.awaiting() || !self.blocked.is_empty()
    }

    /// Whether something waits to be sent.
    pub fn is_sending(&self) -> bool {
        !self.ready.is_empty() || !self.notices.is_empty()
    }

    /// Ends the link and tells the peer. Everything incomplete fails.
    pub fn close(&mut self, reason: u8) {
        if self.ended.is_none() {
            self.close_reason = reason;
            self.farewells = 3;
            self.end(LinkError::Closed);
        }
    }

    /// The peer is known, from elsewhere, to have been started anew. Everything incomplete fails.
    pub fn peer_restarted(&mut self) {
        self.end(LinkError::PeerRestarted);
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Link::handle_timeout`] wants to be called next, if nothing else happens. Ask again after every other call.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.ended.is_some() {
            return None;
        }
        let paths =
            self.paths.iter().filter_map(|path| path.deadline(&self.config, self.awaiting()));
        let unreachable = self.down_since.map(|since| since + self.config.unreachable_after);
        let pacing = self.next_paced();
        paths.chain(unreachable).chain(pacing).min()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Why the link has ended, if it has.
    pub fn ended(&self) -> Option<LinkError> {
        self.ended
    }

    /// The datagram size, in bytes, that a path is known to carry.
    pub fn mtu(&self, path: u8) -> Option<u16> {
        self.paths.get(usize::from(path)).map(|path| path.mtu.current())
    }

    /// What is known of a path.
    pub fn path(&self, path: u8) -> Option<PathState> {
        self.paths.get(usize::from(path)).map(|path| path.state())
    }

    /// For each channel of the peer's, from 0 on: its generation, and up to which sequence number everything on it is placed and executed.
    pub fn reached(&self) -> impl Iterator<Item = (u32, u64)> {
        self.incoming.iter().map(|incoming| (incoming.generation, incoming.reached()))
    }

    /// Whether everything accepted is complete and nothing waits to be answered.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
            && self.outgoing.iter().all(|channel| channel.is_idle())
            && self.paths.iter().all(|path| path.in_flight == 0)
    }

    /// What the link remembers on behalf of the peer, in entries; bounded whatever the peer does.
    pub fn remembered(&self) -> usize {
        MOST_REMEMBERED - self.room
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.ended.is_some() {
            return;
        }
        let awaiting = self.awaiting();
        let mut fates = std::mem::take(&mut self.fates);
        for index in 0..self.paths.len() {
            let path = &mut self.paths[index];
            let was_up = path.up;
            path.timeout(now, &self.config, awaiting, &mut fates);
            self.note_path(now, index, was_up);
        }
        self.fates = fates;
        self.apply_fates();
        if self.down_since.is_some_and(|since| now >= since + self.config.unreachable_after) {
            self.end(LinkError::Unreachable);
        }
    }

    pub(crate) fn note_path(&mut self, now: Time, index: usize, was_up: bool) {
        let path = &self.paths[index];
        if path.up != was_up {
            self.events.push_back(Event::Path { path: path.id, up: path.up });
            self.down_since = match self.paths.iter().any(|path| path.up) {
                true => None,
                false => self.down_since.or(Some(now)),
            };
        }
    }

    /// Does what follows from packets that arrived or were lost.
    pub(crate) fn apply_fates(&mut self) {
        let mut fates = std::mem::take(&mut self.fates);
        for (record, fate) in fates.drain(..) {
            match (record, fate) {
                (Record::Range { channel, generation, range }, fate) => {
                    let slot = &mut self.outgoing[usize::from(channel)];
                    if slot.generation != generation || !slot.open || slot.failed.is_some() {
                        continue;
                    }
                    if fate == Fate::Acked {
                        slot.acked(range);
                        self.settle(channel);
                    } else if slot.lost(range) {
                        self.enqueue(Source::Channel(channel));
                    }
                }
                (Record::Reply { job, serial, range }, Fate::Acked) => {
                    self.replies.acked(job, serial, range);
                }
                (Record::Reply { job, serial, range }, Fate::Lost) => {
                    if self.replies.lost(job, serial, range) {
                        self.enqueue(Source::Reply(job));
                    }
                }
                (_, Fate::Acked) => {}
                (notice, Fate::Lost) => self.notices.push_back(notice),
            }
        }
        self.fates = fates;
    }

    /// A channel progressed: tells completions, closes it when that was asked for, wakes whoever waits for a share.
    pub(crate) fn settle(&mut self, channel: u16) {
        let slot = &mut self.outgoing[usize::from(channel)];
        let import = ImportId { channel, generation: slot.generation };
        if let Some(through) = slot.complete(&mut self.shares) {
            // The link's queue of events stays short if nobody looks: a later completion includes the earlier.
            match self.events.back_mut() {
                Some(Event::Completed { import: same, through: last }) if *same == import => {
                    *last = Ticket(through);
                }
                _ => self.events.push_back(Event::Completed { import, through: Ticket(through) }),
            }
            self.unblock();
        }
        let slot = &mut self.outgoing[usize::from(channel)];
        if slot.open && slot.closing && slot.is_idle() {
            slot.open = false;
            self.events.push_back(Event::Closed { import });
            if slot.generation < u32::MAX {
                self.free.push(channel);
            }
        }
    }

    /// An import cannot go on.
    pub(crate) fn fail_import(&mut self, channel: u16, reason: Refusal) {
        let slot = &mut self.outgoing[usize::from(channel)];
        if slot.failed.is_none() {
            slot.failed = Some(reason);
            let import = ImportId { channel, generation: slot.generation };
            self.events.push_back(Event::Refused { import, reason });
            self.give_up(channel);
            self.settle(channel);
        }
    }

    pub(crate) fn end(&mut self, why: LinkError) {
        if self.ended.is_none() {
            self.ended = Some(why);
            self.ready.clear();
            self.events.push_back(Event::Ended(why));
        }
    }

    pub(crate) fn enqueue(&mut self, source: Source) {
        match source {
            Source::Channel(channel) => {
                let slot = &mut self.outgoing[usize::from(channel)];
                if !std::mem::replace(&mut slot.queued, true) {
                    self.ready.push_back(source);
                }
            }
            // A fetch may stand in the queue twice; the second time it has nothing to send.
            Source::Reply(_) => self.ready.push_back(source),
        }
    }

    pub(crate) fn unblock(&mut self) {
        // Credit that is to be given up goes as it comes back.
        let surplus = (self.credit.saturating_sub(self.wanted_credit)).min(self.shares.credit);
        self.credit -= surplus;
        self.shares.credit -= surplus;
        while let Some(channel) = self.blocked.pop() {
            self.enqueue(Source::Channel(channel));
        }
    }

    pub(crate) fn outgoing(&mut self, import: ImportId) -> Result<&mut Outgoing, CommandError> {
        self.outgoing
            .get_mut(usize::from(import.channel))
            .filter(|slot| slot.open && slot.generation == import.generation)
            .ok_or(CommandError::UnknownImport)
    }

    fn command(
        &mut self,
        import: ImportId,
        command: Command,
        len: u64,
    ) -> Result<Ticket, CommandError> {
        self.alive()?;
        let slot = self.outgoing(import)?;
        if slot.closing {
            return Err(CommandError::UnknownImport);
        }
        if let Some(refusal) = slot.failed {
            return Err(CommandError::Refused(refusal));
        }
        if slot.len() >= MOST_COMMANDS {
            return Err(CommandError::Full);
        }
        let ticket = Ticket(slot.accept(command, len));
        match len {
            0 => self.settle(import.channel),
            _ => self.enqueue(Source::Channel(import.channel)),
        }
        Ok(ticket)
    }

    /// The peer owes a fetch.
    fn awaiting(&self) -> bool {
        self.shares.credit < self.credit
    }

    fn give_up(&mut self, channel: u16) {
        self.outgoing[usize::from(channel)].abandon(&mut self.shares);
        self.unblock();
    }

    fn alive(&self) -> Result<(), CommandError> {
        self.ended.map_or(Ok(()), |ended| Err(CommandError::Ended(ended)))
    }
}

fn check_range(offset: u64, len: u64) -> Result<(), CommandError> {
    match offset.checked_add(len) {
        Some(_) if len <= MOST_LEN => Ok(()),
        _ => Err(CommandError::Range),
    }
}
