//! The processes that are connected.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use vmmc_os::{Credentials, Descriptor, OsError, Readiness, send};
use vmmc_proto::{Answer, HeirId, PairId, ProcessId, encode_answer};

use crate::offers::OfferKey;
use crate::queues::Queue;

/// Names a connection of a client; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientKey(pub(crate) u64);

/// A message on its way to a client.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) to: ClientKey,
    pub(crate) answer: Answer,
    pub(crate) descriptors: Vec<Rc<Descriptor>>,
}

impl Post {
    pub(crate) fn new(to: ClientKey, answer: Answer) -> Self {
        Self { to, answer, descriptors: Vec::new() }
    }
}

/// One connected process.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Descriptor,
    /// Readable when the process has ended; a control client has none.
    pub(crate) life: Option<Descriptor>,
    pub(crate) credentials: Credentials,
    /// Its network namespace, if it is a process that has said Hello.
    pub(crate) network: Option<u64>,
    /// After Hello.
    pub(crate) identity: Option<Identity>,
    /// It may only export and pair.
    pub(crate) pairing_only: bool,
    /// It hosts an engine, once it has lanes at these addresses; the next one gets this number.
    pub(crate) hosts_lanes: bool,
    pub(crate) lane_addresses: Vec<SocketAddr>,
    pub(crate) last_lane: u32,
    pub(crate) exports: HashSet<u64>,
    pub(crate) imports: HashSet<u64>,
    /// Oldest first; may name offers that are gone.
    pub(crate) offers: VecDeque<OfferKey>,
    /// Ends that it holds.
    pub(crate) holds: HashSet<PairId>,
    /// What it wants done by the engine.
    pub(crate) queue: Option<Queue>,
    outbox: VecDeque<Packet>,
    /// Bytes in it.
    unread: u64,
    /// The service waits for its socket to become writable.
    pub(crate) awaits_room: bool,
    /// What it has sent is being looked at; nothing more is read until that is known.
    pub(crate) at_customs: bool,
    /// Of a client that is over: bytes that it had sent by then and that are not read yet.
    pub(crate) last_words: Option<u64>,
}

/// What Hello and Welcome settled.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    /// A tool that asks for status or stop.
    Control,
    /// The child of a process that was about to fork, until it says Hello on a connection of its own.
    Heir(HeirId),
    /// A process.
    Process { id: ProcessId, name: String, mail_slot: u32 },
}

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<Rc<Descriptor>>,
    mail: bool,
}

/// What became of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Nothing is left.
    Empty,
    /// The socket is full: wait until it can be written.
    Full,
    /// The kernel takes no more descriptors now: try again a little later.
    Later,
    /// It has closed its end.
    Gone,
    /// The client leaves too much unread.
    Broken,
}

impl Client {
    /// More unread messages than this, and the client is taken for broken.
    const MAX_UNREAD: usize = 256 * 1024;

    pub(crate) fn new(
        socket: Descriptor,
        life: Option<Descriptor>,
        credentials: Credentials,
    ) -> Self {
        Self {
            socket,
            pairing_only: false,
            hosts_lanes: false,
            lane_addresses: Vec::new(),
            last_lane: 0,
            life,
            credentials,
            network: None,
            identity: None,
            exports: HashSet::new(),
            imports: HashSet::new(),
            offers: VecDeque::new(),
            holds: HashSet::new(),
            queue: None,
            outbox: VecDeque::new(),
            unread: 0,
            awaits_room: false,
            at_customs: false,
            last_words: None,
        }
    }

    pub(crate) fn process_id(&self) -> Option<ProcessId> {
        match &self.identity {
            Some(Identity::Process { id, .. }) => Some(*id),
            _ => None,
        }
    }

    /// What a forked child will have, whose connection is that of two sockets which its parent made. Its own process is not known yet.
    pub(crate) fn heir(parent: &Self, heir: HeirId, socket: Descriptor) -> Self {
        let identity = Some(Identity::Heir(heir));
        let holds = parent.holds.clone();
        Self { identity, holds, ..Self::new(socket, None, parent.credentials) }
    }

    pub(crate) fn is_heir(&self) -> bool {
        matches!(self.identity, Some(Identity::Heir(_)))
    }

    /// What of its socket to wait for.
    pub(crate) fn interest(&self) -> Readiness {
        if self.awaits_room { Readiness::BOTH } else { Readiness::READ }
    }

    /// It is over, and all that it has sent by then has been dealt with.
    pub(crate) fn is_heard_out(&self) -> bool {
        self.last_words == Some(0) && !self.at_customs
    }

    /// Bytes that wait for the process to read.
    pub(crate) fn unread(&self) -> u64 {
        self.unread
    }

    /// Puts a message at the end of the outbox; `flush` sends it.
    pub(crate) fn enqueue(&mut self, answer: &Answer, descriptors: Vec<Rc<Descriptor>>) {
        // Answers are bounded by construction: lists by MAX_ENTRIES, names by MAX_NAME.
        if let Ok(bytes) = encode_answer(answer) {
            self.unread += bytes.len() as u64;
            self.outbox.push_back(Packet { bytes, descriptors, mail: answer.is_mail() });
        }
    }

    /// Sends what fits; calls `mailed` for each mail message that went out.
    pub(crate) fn flush(&mut self, mut mailed: impl FnMut()) -> Flushed {
        while let Some(packet) = self.outbox.front() {
            let descriptors: Vec<BorrowedFd<'_>> =
                packet.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            match send(&self.socket, &packet.bytes, &descriptors) {
                Ok(()) => {
                    if packet.mail {
                        mailed();
                    }
                    self.unread -= packet.bytes.len() as u64;
                    self.outbox.pop_front();
                }
                Err(_) if self.outbox.len() > Self::MAX_UNREAD => return Flushed::Broken,
                Err(OsError::AGAIN) => return Flushed::Full,
                Err(OsError::TOOMANYREFS | OsError::NOBUFS | OsError::NOMEM) => {
                    return Flushed::Later;
                }
                Err(_) => {
                    self.outbox.clear();
                    self.unread = 0;
                    return Flushed::Gone;
                }
            }
        }
        Flushed::Empty
    }
}

/// All connected processes.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    pub(crate) by_key: HashMap<ClientKey, Client>,
    by_process: HashMap<ProcessId, ClientKey>,
    by_user: HashMap<u32, HashSet<ClientKey>>,
    by_heir: HashMap<HeirId, ClientKey>,
    /// The last processes that ended, to tell "dead" from "never was".
    dead: VecDeque<ProcessId>,
    next_key: u64,
}

impl Clients {
    const REMEMBERED_DEAD: usize = 4096;

    pub(crate) fn add(&mut self, client: Client) -> ClientKey {
        self.next_key += 1;
        let key = ClientKey(self.next_key);
        self.by_user.entry(client.credentials.uid).or_default().insert(key);
        if let Some(Identity::Heir(heir)) = client.identity {
            self.by_heir.insert(heir, key);
        }
        self.by_key.insert(key, client);
        key
    }

    pub(crate) fn remove(&mut self, key: ClientKey) -> Option<Client> {
        let client = self.by_key.remove(&key)?;
        let uid = client.credentials.uid;
        if let Some(keys) = self.by_user.get_mut(&uid) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_user.remove(&uid);
            }
        }
        if let Some(Identity::Heir(heir)) = client.identity {
            self.by_heir.remove(&heir);
        }
        if let Some(id) = client.process_id() {
            self.by_process.remove(&id);
            self.dead.push_back(id);
            if self.dead.len() > Self::REMEMBERED_DEAD {
                self.dead.pop_front();
            }
        }
        Some(client)
    }

    /// Whether a user has any process here.
    pub(crate) fn has_user(&self, uid: u32) -> bool {
        self.by_user.contains_key(&uid)
    }

    /// All processes of a user.
    pub(crate) fn of_user(&self, uid: u32) -> impl Iterator<Item = &Client> {
        let keys = self.by_user.get(&uid);
        keys.into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    pub(crate) fn get(&self, key: ClientKey) -> Option<&Client> {
        self.by_key.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: ClientKey) -> Option<&mut Client> {
        self.by_key.get_mut(&key)
    }

    /// Gives a client its identity; `false` when another has that id.
    pub(crate) fn identify(&mut self, key: ClientKey, identity: Identity) -> bool {
        if let Identity::Process { id, .. } = &identity {
            if self.by_process.contains_key(id) {
                return false;
            }
            self.by_process.insert(*id, key);
        }
        if let Some(client) = self.by_key.get_mut(&key) {
            client.identity = Some(identity);
        }
        true
    }

    pub(crate) fn has_process(&self, id: ProcessId) -> bool {
        self.by_process.contains_key(&id)
    }

    /// The connection of a process.
    pub(crate) fn key_of(&self, id: ProcessId) -> Option<ClientKey> {
        self.by_process.get(&id).copied()
    }

    /// What is kept for a child of this user's that was announced so.
    pub(crate) fn heir(&self, heir: HeirId, uid: u32) -> Option<ClientKey> {
        let key = self.by_heir.get(&heir).copied();
        key.filter(|key| self.get(*key).is_some_and(|client| client.credentials.uid == uid))
    }

    pub(crate) fn is_dead(&self, id: ProcessId) -> bool {
        self.dead.contains(&id)
    }

    /// Processes, tools not counted.
    pub(crate) fn process_count(&self) -> usize {
        self.by_process.len()
    }
}
