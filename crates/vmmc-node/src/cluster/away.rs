//! Imports that processes here have on other nodes, and their commands under way.

use std::collections::{HashMap, VecDeque};

use vmmc_link::{CommandError, ImportId, Link, Refusal, Ticket};
use vmmc_ni::port::LinkNumber;
use vmmc_os::Descriptor;
use vmmc_proto::Rights;
use vmmc_shm::command::{Command, Deferred, Direction, Outcome, PIECE};

use super::payload::Payloads;
use crate::clients::ClientKey;
use crate::slots::Slot;

/// One import on another node.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) client: ClientKey,
    pub(super) link: LinkNumber,
    pub(super) import: ImportId,
    /// Its name in packets and messages.
    pub(super) export: u64,
    pub(super) slot: Slot,
    pub(super) len: u64,
    pub(super) rights: Rights,
    pub(super) notify: bool,
    /// What every further command becomes.
    pub(super) over: Option<Outcome>,
    pending: VecDeque<(Ticket, Deferred)>,
}

/// All imports on other nodes, by handle.
#[derive(Debug, Default)]
pub(super) struct Aways {
    by_handle: HashMap<u64, Away>,
    by_import: HashMap<(LinkNumber, ImportId), u64>,
}

/// A command that has come to its end.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) client: ClientKey,
    pub(super) command: Deferred,
    pub(super) outcome: Outcome,
}

impl Away {
    pub(super) fn new(
        client: ClientKey,
        (link, import): (LinkNumber, ImportId),
        export: u64,
        slot: Slot,
        (len, rights, notify): (u64, Rights, bool),
    ) -> Self {
        let pending = VecDeque::new();
        Self { client, link, import, export, slot, len, rights, notify, over: None, pending }
    }

    /// Hands a command to the link. `Some`: it is over already, and nothing was sent.
    pub(super) fn command(
        &mut self,
        link: &mut Link,
        payloads: &mut Payloads,
        memory: &Descriptor,
        (slot, command, deferred): (usize, &Command, Deferred),
    ) -> Option<Outcome> {
        if let Some(outcome) = self.over.or_else(|| self.fault(command)) {
            return Some(outcome);
        }
        let Ok(buffer) = payloads.begin(self.client, memory, slot) else {
            return Some(Outcome::Memory);
        };
        let mut post = || -> Result<Option<Ticket>, CommandError> {
            let &Command { offset, len, .. } = command;
            let import = self.import;
            let mut last = None;
            if len > 0 {
                last = Some(match command.direction {
                    Direction::Send => link.send(import, offset, buffer, 0, len)?,
                    Direction::Fetch => link.fetch(import, offset, buffer, 0, len)?,
                });
            }
            if let Some((offset, value)) = command.signal {
                last = Some(link.signal(import, offset, value)?);
            }
            if let Some((offset, count)) = command.notify {
                // As on one host: the last word of the bytes sent.
                let mut word = [0; 8];
                let tail = word.len().min(usize::try_from(len).unwrap_or(0));
                let _ = payloads.read(buffer, len - tail as u64, &mut word[..tail]);
                last = Some(link.notify(import, offset, count, u64::from_le_bytes(word))?);
            }
            Ok(last)
        };
        let posted = post();
        match posted {
            Ok(Some(ticket)) => {
                // Its process waits for it.
                link.flush();
                self.pending.push_back((ticket, deferred));
                return None;
            }
            Ok(None) => payloads.end(self.client),
            Err(_) => {
                payloads.end(self.client);
                return Some(Outcome::Gone);
            }
        }
        Some(Outcome::Done)
    }

    /// What is wrong with a command, as far as this side can know. The other side checks again.
    fn fault(&self, command: &Command) -> Option<Outcome> {
        let fits = |offset: u64, count: u64| offset <= self.len && count <= self.len - offset;
        let right = match command.direction {
            Direction::Send => Rights::WRITE,
            Direction::Fetch => Rights::READ,
        };
        let tells = command.signal.is_some() || command.notify.is_some();
        if !self.rights.contains(right) || (tells && !self.rights.contains(Rights::WRITE)) {
            return Some(Outcome::Rights);
        }
        let signal = command.signal.is_none_or(|(offset, _)| fits(offset, 8) && offset % 8 == 0);
        let notify = command.notify.is_none_or(|(offset, len)| fits(offset, len) && self.notify);
        let within = command.len <= PIECE as u64 && fits(command.offset, command.len);
        (!(signal && notify && within)).then_some(Outcome::Range)
    }

    /// The commands up to a ticket have come to this end.
    fn finish(
        &mut self,
        through: Ticket,
        outcome: Outcome,
        payloads: &mut Payloads,
    ) -> Vec<Finished> {
        let mut finished = Vec::new();
        while let Some(&(ticket, command)) = self.pending.front()
            && ticket <= through
        {
            self.pending.pop_front();
            payloads.end(self.client);
            finished.push(Finished { client: self.client, command, outcome });
        }
        finished
    }
}

impl Aways {
    pub(super) fn add(&mut self, handle: u64, away: Away) {
        self.by_import.insert((away.link, away.import), handle);
        self.by_handle.insert(handle, away);
    }

    pub(super) fn get(&self, handle: u64) -> Option<&Away> {
        self.by_handle.get(&handle)
    }

    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut Away> {
        self.by_handle.get_mut(&handle)
    }

    pub(super) fn contains(&self, handle: u64) -> bool {
        self.by_handle.contains_key(&handle)
    }

    pub(super) fn len(&self) -> usize {
        self.by_handle.len()
    }

    /// A link says that an import's commands are complete.
    pub(super) fn completed(
        &mut self,
        at: (LinkNumber, ImportId),
        through: Ticket,
        payloads: &mut Payloads,
    ) -> Vec<Finished> {
        match self.at(at) {
            Some(away) => away.finish(through, Outcome::Done, payloads),
            None => Vec::new(),
        }
    }

    /// A link says that an import was refused.
    pub(super) fn refused(
        &mut self,
        at: (LinkNumber, ImportId),
        reason: Refusal,
        payloads: &mut Payloads,
    ) -> Vec<Finished> {
        let outcome = match reason {
            Refusal::Rights => Outcome::Rights,
            Refusal::Bounds | Refusal::Unaligned => Outcome::Range,
            _ => Outcome::Gone,
        };
        let Some(away) = self.at(at) else { return Vec::new() };
        away.over = Some(outcome);
        away.finish(Ticket(u64::MAX), outcome, payloads)
    }

    /// A link is no more; the words of its imports, and their commands.
    pub(super) fn lost(
        &mut self,
        link: LinkNumber,
        payloads: &mut Payloads,
    ) -> (Vec<Slot>, Vec<Finished>) {
        let (mut slots, mut finished) = (Vec::new(), Vec::new());
        for away in self.by_handle.values_mut().filter(|away| away.link == link) {
            away.over = Some(Outcome::Gone);
            slots.push(away.slot);
            finished.extend(away.finish(Ticket(u64::MAX), Outcome::Gone, payloads));
        }
        (slots, finished)
    }

    /// The word of the import that a peer names.
    pub(super) fn slot_of(&self, link: LinkNumber, export: u64) -> Option<Slot> {
        let mut all = self.by_handle.values();
        all.find(|away| away.link == link && away.export == export).map(|away| away.slot)
    }

    /// Takes out an import that is complete and closed.
    pub(super) fn remove(&mut self, at: (LinkNumber, ImportId)) -> Option<Away> {
        let handle = self.by_import.remove(&at)?;
        self.by_handle.remove(&handle)
    }

    fn at(&mut self, at: (LinkNumber, ImportId)) -> Option<&mut Away> {
        self.by_handle.get_mut(self.by_import.get(&at)?)
    }
}
