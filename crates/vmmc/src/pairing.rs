//! Pairing: two processes that show the two ends of one kernel TCP connection get an export and an import of each other.
//!
//! Nothing is written into the connection to find out who is at the other end, and a peer that does not use VMMC notices
//! nothing: its end is never shown, so nothing ever happens. The steps:
//!
//! ```text
//! pair_holders(socket)          where other processes may have this end too: only who is alone may offer it
//! Holders { alone }             the answer
//! pair_offer(socket)            both ends, in any order
//! Matched { pair }              comes to both; the two ids differ (each names its own end); or Denied, between users
//! pair_export(pair, memory)     both
//! Ready { pair, import }        comes to both: the other's memory
//! ...                           the two talk through memory, and wake each other through the events
//! pair_inject(pair, bytes, end) "write these into my peer's socket": its bytes go on over TCP
//! Handed { pair }               comes to the peer: they are written, now it may write to its socket itself
//! pair_finish(pair)             or it has nothing more to write: its stream ends behind them
//! pair_heir()                   before a fork: what is held is held for the child too
//! pair_drop(pair)               at the last close; pair_linger(pair) if the peer has not read all
//! ```
//!
//! An offer never waits. The others wait until the service has room for one more message, which it makes at once; if it has
//! none within 200 ms (2 s with a watcher) it is given up, as if it had died.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use vmmc_os::{
    Access, Descriptor, Event, Mapping, OsError, create_memory, page_size, write_memory,
};
use vmmc_proto::{
    Answer, BellPlace, BrokenReason, ExportId, Grant, MAX_EXPORT_LEN, MAX_INLINE, OfferId, PairId,
    ProcessId, Request, Rights,
};
use vmmc_shm::marks::Marks;
use vmmc_shm::table::Networks;

use crate::Process;
use crate::connection::Connection;
use crate::export::Export;
use crate::import::Import;
use crate::mail::Letter;
use crate::pair_bell::{PairBell, PeerEvent};
use crate::process::lock;
use crate::standing::{Standing, Terms};

/// Memory of one end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairMemory {
    /// Bytes; takes pages only where it is touched.
    pub len: usize,
    /// Bytes that both sides map at first; more by `extend`.
    pub mapped: usize,
    /// It begins with [`crate::stream::Words`], as the peer's does. Then a process that dies with bytes unread in it resets the
    /// connection, as it would on TCP.
    pub stream: bool,
}

/// What [`Process::poll`] returns.
#[derive(Debug)]
pub enum PairingEvent {
    /// Both ends of a connection were shown. Now each side calls [`Process::pair_export`], or [`Process::pair_drop`].
    Matched {
        /// The offer that this answers.
        offer: OfferId,
        /// This side's end.
        pair: PairId,
        /// The process at the other end; may be this one.
        peer: ProcessId,
        /// Its process number, as the service sees it; 0 if it does not.
        peer_pid: u32,
        /// Its user. Of another user than one's own ([`Process::user`]) the bells have to be rung and silenced by
        /// [`bell`](crate::bell), wherever that is possible at all.
        peer_uid: u32,
    },
    /// Both ends of a connection were shown, but this host's policy does not let their users be paired.
    Denied {
        /// The offer that this answers.
        offer: OfferId,
    },
    /// The other end was not shown in time, and this one no longer waits: offer it again after some traffic. Comes only for ends
    /// whose address says that the other one may be in another network namespace.
    Unseen {
        /// The offer.
        offer: OfferId,
    },
    /// Who has a connection.
    Holders {
        /// The inquiry that this answers.
        inquiry: OfferId,
        /// This process is the only one that has it, and nobody holds a lock (`flock`) on it, which is how programs mark what
        /// they hand over. `false` also where the service cannot tell.
        alone: bool,
    },
    /// The peer's memory, for reading and writing; its event is [`Import::notify_fd`].
    Ready {
        /// This side's end.
        pair: PairId,
        /// The peer's memory.
        import: Import,
    },
    /// The service has written bytes, which the peer asked it to, into *this side's* socket; one event for each
    /// [`Process::pair_inject`]. Also when the connection broke meanwhile: writing to the socket then tells.
    Handed {
        /// This side's end.
        pair: PairId,
    },
    /// The pair is over, before or after it was ready. The memory that is mapped stays mapped.
    Broken {
        /// This side's end.
        pair: PairId,
        /// Why.
        why: BrokenReason,
    },
    /// The service is gone; pairs that are ready go on without it. Call [`Process::reconnect`] later, then
    /// [`Process::pair_hold`] for each end.
    ServiceLost,
}

/// Why a pairing call did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum PairError {
    /// the service is busy: offer again later
    WouldBlock,
    /// the service is gone, or was given up: reconnect, then try again
    ServiceLost,
    /// no descriptors, memory or address space left ({0}): raise `ulimit -n` or vm.max_map_count
    Exhausted(OsError),
    /// the memory's length is zero or more than 1 TiB, or more is to be mapped than there is
    Length,
    /// this is a forked child: call `reopen_after_fork` and use the new process
    Forked,
}

impl Process {
    /// Whether [`Process::poll`] may have something to return: a few loads of memory, no system call. May be true a moment
    /// early, never for long. Becomes true also when the service dies.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.inner.mail.has_some()
    }

    /// The next event, if there is one. Never waits. Each event goes to one caller.
    pub fn poll(&self) -> Option<PairingEvent> {
        if self.inner.is_forked() {
            return None;
        }
        loop {
            let letter = match self.inner.mail.take() {
                Some(letter) => letter,
                None => {
                    let connection = self.inner.connection();
                    connection.pump(&self.inner.mail);
                    if connection.is_lost() {
                        // What came before is delivered before the news.
                        self.inner.mail.detach();
                    }
                    self.inner.mail.take()?
                }
            };
            let (answer, descriptors) = match letter {
                Letter::ServiceLost => return Some(PairingEvent::ServiceLost),
                Letter::Message(answer, descriptors) => (answer, descriptors),
            };
            match answer {
                Answer::PairMatched { offer, pair, peer, peer_pid, peer_uid } => {
                    return Some(PairingEvent::Matched { offer, pair, peer, peer_pid, peer_uid });
                }
                Answer::PairUnseen { offer } => return Some(PairingEvent::Unseen { offer }),
                Answer::PairDenied { offer } => return Some(PairingEvent::Denied { offer }),
                Answer::PairHolders { inquiry, alone } => {
                    return Some(PairingEvent::Holders { inquiry, alone });
                }
                Answer::PairHanded { pair } => return Some(PairingEvent::Handed { pair }),
                Answer::PairBroken { pair, why } => {
                    return Some(PairingEvent::Broken { pair, why });
                }
                Answer::PairReady { pair, export, len, mapped, slot, live, stranger, bell } => {
                    let grant = Grant {
                        handle: 0,
                        export,
                        len,
                        slot,
                        live,
                        mapped: true,
                        notify: true,
                        pool: None,
                        stranger,
                    };
                    return Some(match self.pair_import(&grant, mapped, bell, descriptors) {
                        Some(import) => PairingEvent::Ready { pair, import },
                        None => {
                            // The peer is told by our dropping it.
                            let _ = self.pair_drop(pair);
                            PairingEvent::Broken { pair, why: BrokenReason::NoRoom }
                        }
                    });
                }
                _ => {}
            }
        }
    }

    /// Whether the service has ended, and does nothing more that it was asked for. One that is only given up is not known to have.
    pub fn service_is_dead(&self) -> bool {
        self.inner.connection().is_dead()
    }

    /// The network namespaces of the processes that the service knows: whether connections to other addresses than one's own
    /// may be worth an offer. Two loads of memory.
    pub fn networks(&self) -> Networks {
        self.inner.connection().table.view().networks()
    }

    /// Shows one end of an established TCP connection. The service looks at it and closes its descriptor at once. Nothing
    /// comes back unless the other end is shown too, by a process of the same user or of one that the host's policy lets be
    /// paired with it; or, if that may be in another network namespace, [`PairingEvent::Unseen`] two seconds later.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_offer(&self, socket: BorrowedFd<'_>) -> Result<OfferId, PairError> {
        let offer = OfferId(self.inner.fresh_offer());
        self.reachable()?.post(&Request::PairOffer { offer }, &[socket]).map_err(pair_error)?;
        Ok(offer)
    }

    /// Asks whether any other process has this connection open: one that inherited it, or got it passed. [`PairingEvent::Holders`]
    /// answers, some milliseconds later, or longer if many ask. Never waits.
    ///
    /// What the answer says is true from then on as long as this process hands the connection to nobody.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_holders(&self, socket: BorrowedFd<'_>) -> Result<OfferId, PairError> {
        let inquiry = OfferId(self.inner.fresh_offer());
        self.reachable()?.post(&Request::PairHolders { inquiry }, &[socket]).map_err(pair_error)?;
        Ok(inquiry)
    }

    /// Gives the peer new memory to write to, and the service the socket to keep while the pair lives. The memory's descriptor is not
    /// kept; the only descriptor that stays is the event's ([`Export::event_fd`]).
    ///
    /// # Errors
    /// See [`PairError`]. Refusals of the service come as [`PairingEvent::Broken`].
    pub fn pair_export(
        &self,
        pair: PairId,
        memory: PairMemory,
        socket: BorrowedFd<'_>,
    ) -> Result<Export, PairError> {
        self.export_to_pair(pair, memory, socket, None)
    }

    /// A bell for several pairs with one other process: see [`Process::pair_export_sharing`].
    ///
    /// # Errors
    /// When descriptors, memory or address space are exhausted.
    pub fn pair_bell(&self) -> Result<PairBell, PairError> {
        PairBell::new(self.inner.options.descriptor_floor).map_err(PairError::Exhausted)
    }

    /// As [`Process::pair_export`], with a place at a bell that other pairs have too in place of an event of its own. No descriptor
    /// stays; at the peer the bell's stays, once for all that share it. Each place is to be given to one pair at a time.
    ///
    /// # Errors
    /// As for [`Process::pair_export`].
    pub fn pair_export_sharing(
        &self,
        pair: PairId,
        memory: PairMemory,
        socket: BorrowedFd<'_>,
        (bell, place): (&PairBell, u32),
    ) -> Result<Export, PairError> {
        self.export_to_pair(pair, memory, socket, Some((bell, place)))
    }

    fn export_to_pair(
        &self,
        pair: PairId,
        memory: PairMemory,
        socket: BorrowedFd<'_>,
        shared: Option<(&PairBell, u32)>,
    ) -> Result<Export, PairError> {
        let PairMemory { len, mapped, stream } = memory;
        if len == 0 || len as u64 > MAX_EXPORT_LEN || mapped == 0 || mapped > len {
            return Err(PairError::Length);
        }
        let floor = self.inner.options.descriptor_floor;
        let size = len.next_multiple_of(page_size());
        let memory = create_memory(size).map_err(PairError::Exhausted)?;
        let mapping =
            Mapping::new(&memory, 0, mapped, Access::ReadWrite).map_err(PairError::Exhausted)?;
        let event = match shared {
            Some(_) => None,
            None => Some(Event::new().and_then(|e| e.raise(floor)).map_err(PairError::Exhausted)?),
        };
        let bell = shared.map(|(bell, place)| BellPlace { bell: bell.number(), place });
        let (len_u64, mapped_u64) = (len as u64, mapped as u64);
        let request = Request::PairExport { pair, len: len_u64, mapped: mapped_u64, stream, bell };
        let rung = event.as_ref().map(Event::as_fd);
        let marks = shared.and_then(|(bell, _)| bell.memory().map(Descriptor::as_fd));
        let descriptors = [Some(memory.as_fd()), rung.or(shared.map(|(bell, _)| bell.event_fd()))];
        let descriptors = descriptors.into_iter().chain([marks, Some(socket)]).flatten();
        self.tell(&request, &descriptors.collect::<Vec<_>>())?;
        let id = ExportId { process: self.id(), number: pair.0 };
        Ok(Export::of_pair(&self.inner, id, mapping, len, event))
    }

    /// Says that this process too holds the end `pair`, with this socket: a forked child that has not [inherited](crate::Heir) it says so after
    /// [`Process::reopen_after_fork`], and everybody after the service was lost (the new one accepts pair ids that it does not
    /// know, and keeps the socket again).
    ///
    /// # Errors
    /// See [`PairError`]. Refusals come as [`PairingEvent::Broken`].
    pub fn pair_hold(&self, pair: PairId, socket: BorrowedFd<'_>) -> Result<(), PairError> {
        self.tell(&Request::PairHold { pair }, &[socket])
    }

    /// Says that this process no longer holds the end. When nobody does, the service closes its duplicate of the socket, so that the
    /// kernel can end the connection, and the peer gets [`PairingEvent::Broken`] with [`BrokenReason::PeerDropped`].
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_drop(&self, pair: PairId) -> Result<(), PairError> {
        self.tell(&Request::PairDrop { pair, linger: false }, &[])
    }

    /// As [`Process::pair_drop`], for an end whose peer has not taken everything out of its memory yet: the service keeps the
    /// socket, so that the peer can still lower what it did not read, until the peer calls
    /// [`Process::pair_settle`] or lets go too. The peer gets no event: it finds the end in its memory.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_linger(&self, pair: PairId) -> Result<(), PairError> {
        self.tell(&Request::PairDrop { pair, linger: true }, &[])
    }

    /// As [`Process::pair_linger`], for a process that is just ending, perhaps in the handler of a signal: takes no memory and waits for
    /// nothing.
    ///
    /// # Errors
    /// [`PairError::WouldBlock`] where it would have to wait; then the service finds the process gone, and lets go of the pair.
    pub fn pair_linger_at_end(&self, pair: PairId) -> Result<(), PairError> {
        if self.inner.is_forked() {
            return Err(PairError::Forked);
        }
        let connection = self.inner.connection_unless_locked().ok_or(PairError::WouldBlock)?;
        connection.post_in_place(&Request::PairDrop { pair, linger: true }).map_err(pair_error)
    }

    /// Ends the lingering of the *peer's* end: its socket is closed now, and the kernel says so to this side's. Does nothing if
    /// the peer's end does not linger.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_settle(&self, pair: PairId) -> Result<(), PairError> {
        self.tell(&Request::PairSettle { pair }, &[])
    }

    /// Says that this side's stream has ended, where the *peer* has asked for bytes to be written into this side's socket and they are not, or will ask: its
    /// sending direction is shut down behind them, whatever this process does meanwhile.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_finish(&self, pair: PairId) -> Result<(), PairError> {
        self.tell(&Request::PairFinish { pair }, &[])
    }

    /// Lowering: asks the service to write `bytes` into the *peer's* socket, after those of earlier calls, waiting for room as long
    /// as it takes (not here). They arrive at this side's socket; with `finish` its stream ends after them. The peer may be stopped; it gets
    /// [`PairingEvent::Handed`]. All or nothing.
    ///
    /// # Errors
    /// See [`PairError`]. If the peer's connection is gone, [`PairingEvent::Broken`] with [`BrokenReason::InjectFailed`] comes.
    pub fn pair_inject(&self, pair: PairId, bytes: &[u8], finish: bool) -> Result<(), PairError> {
        if bytes.len() <= MAX_INLINE {
            return self
                .tell(&Request::PairInject { pair, bytes: bytes.to_vec(), len: 0, finish }, &[]);
        }
        let memory = create_memory(bytes.len()).map_err(PairError::Exhausted)?;
        write_memory(&memory, 0, bytes).map_err(PairError::Exhausted)?;
        let len = bytes.len() as u64;
        self.tell(&Request::PairInject { pair, bytes: Vec::new(), len, finish }, &[memory.as_fd()])
    }

    pub(crate) fn tell(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), PairError> {
        let limit = self.inner.options.patience();
        self.reachable()?.post_surely(request, descriptors, limit).map_err(pair_error)
    }

    /// A child of vfork is this process still, until it becomes another program: only who has a copy of the memory is not.
    fn reachable(&self) -> Result<Arc<Connection>, PairError> {
        if self.inner.is_copy() {
            return Err(PairError::Forked);
        }
        let connection = self.inner.connection();
        if connection.is_lost() { Err(PairError::ServiceLost) } else { Ok(connection) }
    }

    fn pair_import(
        &self,
        grant: &Grant,
        mapped: u64,
        bell: Option<BellPlace>,
        descriptors: Vec<Descriptor>,
    ) -> Option<Import> {
        let mut descriptors = descriptors.into_iter();
        let (memory, event) = (descriptors.next()?, descriptors.next()?);
        let capacity = usize::try_from(grant.len).ok()?;
        let mapped = usize::try_from(mapped).ok().filter(|mapped| *mapped <= capacity)?;
        let mapping = Mapping::new(&memory, 0, mapped, Access::ReadWrite).ok()?;
        let table = &self.inner.connection().table;
        let terms = Terms { node: None, rights: Rights::READ_WRITE, key: None };
        let standing = Standing::new(table, grant, terms)?;
        let event = match bell {
            None => {
                let event = event.raise(self.inner.options.descriptor_floor).ok()?;
                PeerEvent::Own(Event::from_descriptor(event))
            }
            Some(BellPlace { bell, place }) => {
                let bell = (grant.export.process, bell);
                PeerEvent::Shared(self.peer_bell(bell, event, descriptors.next()?)?, place)
            }
        };
        Some(Import::of_pair(&self.inner, standing, mapping, capacity, (event, grant.stranger)))
    }

    /// A bell that pairs with a peer share: as it came before, or with this pair for the first time.
    fn peer_bell(
        &self,
        named: (ProcessId, u64),
        event: Descriptor,
        marks: Descriptor,
    ) -> Option<Arc<PairBell>> {
        let mut known = lock(&self.inner.peer_bells);
        if let Some(bell) = known.get(&named).and_then(Weak::upgrade) {
            return Some(bell);
        }
        let event = event.raise(self.inner.options.descriptor_floor).ok()?;
        let marks = Mapping::new(&marks, 0, Marks::LEN, Access::ReadWrite).ok()?;
        let bell = Arc::new(PairBell::from_peer(named.1, event, marks));
        known.retain(|_, other| other.strong_count() > 0);
        known.insert(named, Arc::downgrade(&bell));
        Some(bell)
    }
}

pub(crate) fn pair_error(error: OsError) -> PairError {
    match error {
        OsError::AGAIN | OsError::TOOMANYREFS | OsError::NOBUFS => PairError::WouldBlock,
        OsError::PIPE | OsError::CONNRESET | OsError::NOTCONN | OsError::TIMEDOUT => {
            PairError::ServiceLost
        }
        error => PairError::Exhausted(error),
    }
}
