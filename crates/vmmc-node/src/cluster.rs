//! The other nodes: who may reach what is here, and what processes here reach there.
//!
//! ```text
//!  process ── command queue ── Away ──┐                              ┌── Grants ── exports
//!                                     ├── Port ◄── UDP ──► Port ─────┤
//!             payload ── Payloads ────┘                              └── Here (memory)
//!                       asks, grants, ends ──── Channel ────
//! ```
//!
//! Who wants to import calls: a node has one [channel] and one link to each node that it called, and its imports there live as long as
//! both. The channel carries what is asked once, the link what processes send.

mod away;
mod channel;
mod config;
mod grants;
mod host;
mod lanes;
mod message;
mod payload;
mod peers;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use vmmc_link::wire::Binding;
use vmmc_link::{Event, Time};
use vmmc_ni::engine::Engine;
use vmmc_ni::fabric::{BindError, UdpFabric};
use vmmc_ni::port::{LinkNumber, Port};
use vmmc_os::{Credentials, Descriptor, Poller, Readiness};
use vmmc_proto::{Answer, ExportId, Grant, Refusal, Rights, Target};
use vmmc_shm::command::{Command, Deferred, Outcome};
use vmmc_shm::table::ExportState;

use crate::clients::{ClientKey, Clients, Post};
use crate::exports::Exports;
use crate::slots::Slots;
use away::{Away, Aways, Finished};
use channel::Lost;
pub use config::{ClusterConfig, ClusterKey, ConfigError, KnownNode};
use grants::Grants;
use host::Here;
use lanes::Lanes;
use message::{Call, RemoteGrant, Reply};
use payload::Payloads;
use peers::Peer;

/// Kinds of what the service waits for on behalf of the cluster; see `service.rs`.
pub(crate) const CALLERS: u64 = 6 << 56;
pub(crate) const CHANNEL: u64 = 7 << 56;
pub(crate) const FABRIC: u64 = 8 << 56;

/// How long after the last packet the service still looks without sleeping. A sleeper costs its waker, and then itself, about as much.
const SPIN: Duration = Duration::from_micros(50);
/// Why the other nodes cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ClusterError {
    /// {0}
    Fabric(BindError),
    /// cannot listen at {address} ({cause}): correct node.toml, or end the other service
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        cause: String,
    },
}

/// Everything about other nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    config: ClusterConfig,
    listeners: Vec<TcpListener>,
    port: Port<UdpFabric>,
    peers: HashMap<u64, Peer>,
    last_peer: u64,
    /// Nodes that were called.
    called: HashMap<String, u64>,
    asks: HashMap<u32, Ask>,
    last_ask: u32,
    grants: Grants,
    aways: Aways,
    payloads: Payloads,
    lanes: Lanes,
    started: Instant,
    /// When something last came or went.
    last_busy: Instant,
}

/// An import that was asked for.
#[derive(Debug)]
struct Ask {
    peer: u64,
    client: ClientKey,
    seq: u32,
    rights: Rights,
    call: Call,
}

/// What the cluster needs of the rest of the service.
pub(crate) struct Around<'s> {
    pub(crate) exports: &'s mut Exports,
    pub(crate) slots: &'s mut Slots,
    pub(crate) clients: &'s mut Clients,
    pub(crate) posts: &'s mut Vec<Post>,
    pub(crate) poller: &'s Poller,
}

/// An import that a process wants on another node.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) client: ClientKey,
    pub(crate) seq: u32,
    pub(crate) node: String,
    pub(crate) target: Target,
    pub(crate) rights: Rights,
    pub(crate) key: Option<[u8; 16]>,
    pub(crate) credentials: Credentials,
}

impl Cluster {
    /// Listens at the node's addresses.
    pub(crate) fn open(config: ClusterConfig, poller: &Poller) -> Result<Self, ClusterError> {
        let mut fabrics = Vec::new();
        let mut listeners = Vec::new();
        for (index, address) in config.addresses.iter().enumerate() {
            let listen = || {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                poller.add(&listener, CALLERS | index as u64, Readiness::READ)?;
                Ok(listener)
            };
            let failed = |cause: std::io::Error| ClusterError::Listen {
                address: *address,
                cause: cause.to_string(),
            };
            listeners.push(listen().map_err(failed)?);
            let fabric = UdpFabric::bind(*address).map_err(ClusterError::Fabric)?;
            poller
                .add(&fabric, FABRIC | index as u64, Readiness::READ)
                .map_err(|cause| failed(cause.into()))?;
            fabrics.push(fabric);
        }
        let now = Instant::now();
        Ok(Self {
            config,
            listeners,
            port: Port::new(fabrics),
            peers: HashMap::new(),
            last_peer: 0,
            called: HashMap::new(),
            asks: HashMap::new(),
            last_ask: 0,
            grants: Grants::default(),
            aways: Aways::default(),
            payloads: Payloads::default(),
            lanes: Lanes::default(),
            started: now,
            last_busy: now,
        })
    }

    /// Lets links send and receive. Whether anything happened.
    pub(crate) fn poll(&mut self, around: &mut Around<'_>) -> bool {
        let now = self.now();
        let Self { port, grants, payloads, .. } = self;
        let mut here = Here { exports: around.exports, grants, payloads, link: None };
        let busy = port.poll(now, &mut here);
        let mut finished = Vec::new();
        while let Some((link, event)) = self.port.poll_event() {
            match event {
                Event::Completed { import, through } => {
                    let at = (link, import);
                    finished.extend(self.aways.completed(at, through, &mut self.payloads));
                }
                Event::Refused { import, reason } => {
                    let at = (link, import);
                    finished.extend(self.aways.refused(at, reason, &mut self.payloads));
                }
                Event::Closed { import } => self.closed(around, link, import),
                Event::Ended(_) => {
                    let peer = self.peer_of(link);
                    peer.into_iter().for_each(|key| self.drop_peer(around, key, Lost::Connection));
                }
                Event::Path { .. } => {}
            }
        }
        complete(around.clients, finished);
        self.settle_lanes(around);
        if busy {
            self.last_busy = Instant::now();
        }
        self.bury(around);
        busy
    }

    /// How long the service may sleep, if nothing comes before; `None`: for ever.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        if self.last_busy.elapsed() < SPIN {
            return Some(Duration::ZERO);
        }
        let now = self.now();
        let link = self.port.deadline(now).map(|at| at - now);
        let calls = self.peers.values().filter(|peer| !peer.greeted);
        let calls = calls.map(|peer| peer.patience().saturating_sub(peer.since.elapsed()));
        link.into_iter().chain(calls).chain(self.lanes.timeout()).min()
    }

    /// Whether something is under way for processes that have ended.
    pub(crate) fn is_finishing(&self) -> bool {
        self.payloads.is_finishing()
    }

    /// Imports of processes here on other nodes.
    pub(crate) fn away_count(&self) -> usize {
        self.aways.len()
    }

    /// Asks another node for an import; the answer is posted when it comes.
    pub(crate) fn import(&mut self, around: &mut Around<'_>, wish: Wish) -> Result<(), Refusal> {
        let Wish { client, seq, node, target, rights, key, credentials } = wish;
        let Credentials { uid, gid, .. } = credentials;
        let peer = match self.called.get(&node) {
            Some(peer) => *peer,
            None => self.call(around, node)?,
        };
        let number = self.next_ask();
        let call = Call::Import { seq: number, target, rights, key, uid, gid };
        self.asks.insert(number, Ask { peer, client, seq, rights, call: call.clone() });
        self.tell(around, peer, &call);
        Ok(())
    }

    /// A process gives an import back: it goes when its commands are complete.
    pub(crate) fn unimport(&mut self, handle: u64, slots: &mut Slots) {
        let Some(away) = self.aways.get_mut(handle) else { return };
        let (link, import) = (away.link, away.import);
        match self.port.link(link) {
            // `Event::Closed` follows.
            Some(link) => drop(link.close_import(import)),
            None => {
                if let Some(away) = self.aways.remove((link, import)) {
                    slots.give_back(away.slot);
                }
            }
        }
    }

    fn next_ask(&mut self) -> u32 {
        self.last_ask = self.last_ask.wrapping_add(1);
        self.last_ask
    }

    /// A process has ended; its imports were given back before.
    pub(crate) fn leave(&mut self, client: ClientKey) {
        self.lanes.leave(client);
        self.payloads.leave(client);
    }

    /// Whether a handle means an import on another node.
    pub(crate) fn reaches(&self, handle: u64) -> bool {
        self.aways.contains(handle)
    }

    /// Executes a process's command on another node: `None`, and it is completed when the other node has said so.
    pub(crate) fn execute(
        &mut self,
        memory: &Descriptor,
        slot: usize,
        command: &Command,
        deferred: Deferred,
    ) -> Option<Outcome> {
        let Some(away) = self.aways.get_mut(command.handle) else { return Some(Outcome::Unknown) };
        let Some(link) = self.port.link(away.link) else { return Some(Outcome::Gone) };
        away.command(link, &mut self.payloads, memory, (slot, command, deferred))
    }

    /// An export here is gone: whoever imported it on another node is told.
    pub(crate) fn ended(&mut self, around: &mut Around<'_>, export: ExportId, dead: bool) {
        for (link, handle) in self.grants.of_export(export) {
            if let Some(peer) = self.peer_of(link) {
                self.tell(around, peer, &Reply::Ended { export: handle, dead });
            }
        }
    }

    /// Does what a node that called us wants.
    fn answer(&mut self, around: &mut Around<'_>, key: u64, call: Call) {
        let Some(link) = self.peers.get(&key).map(|peer| peer.link) else { return };
        match call {
            Call::Import { seq, target, rights, key: secret, uid, gid } => {
                let importer = Credentials { pid: 0, uid, gid };
                let granted = self.grant(around, link, (&target, rights, secret), &importer);
                let reply = match granted {
                    Ok(grant) => Reply::Granted { seq, grant },
                    Err(why) => Reply::Refused { seq, why },
                };
                self.tell(around, key, &reply);
            }
            Call::Lane { seq, export, end } => {
                let offered = self.offer_lane(around, seq, link, export, end);
                let reply = offered.unwrap_or_else(|why| Reply::Refused { seq, why });
                self.tell(around, key, &reply);
            }
            Call::Fence { seq, export, channel } => match self.grants.export_of(link, export) {
                Some(_) => self.fence_soon(around, key, seq, (export, channel)),
                None => self.tell(around, key, &Reply::Refused { seq, why: Refusal::Gone }),
            },
            Call::Unimport { export } => {
                if self.grants.remove(link, export) {
                    self.lanes.withdraw(around.posts, export);
                    around.exports.unimport(around.slots, export);
                }
            }
        }
    }

    /// Checks an importer on another node as one here is checked.
    fn grant(
        &mut self,
        around: &mut Around<'_>,
        link: LinkNumber,
        (target, rights, key): (&Target, Rights, Option<[u8; 16]>),
        importer: &Credentials,
    ) -> Result<RemoteGrant, Refusal> {
        if self.grants.count(link) >= vmmc_link::MAX_IMPORTS {
            return Err(Refusal::Limit);
        }
        let id = crate::requests::find_export(around.clients, around.exports, target, None)?;
        // Its memory stays here, so no descriptors.
        let (grant, _) = around.exports.import(id, importer, rights, key, true)?;
        let capability = self.grants.add(grant.handle, link, id);
        let Grant { handle: export, len, notify, .. } = grant;
        Ok(RemoteGrant { export, capability, id, len, notify })
    }

    /// Takes what a node that we called says.
    fn take(&mut self, around: &mut Around<'_>, key: u64, reply: Reply) {
        match reply {
            Reply::Granted { seq, grant } => {
                if let Some(ask) = self.asks.remove(&seq).filter(|ask| ask.peer == key) {
                    let export = grant.export;
                    if let Err(why) = self.granted(around, &ask, grant) {
                        refuse(around, &ask, why);
                        self.tell(around, key, &Call::Unimport { export });
                    }
                }
            }
            Reply::Lane { seq, end, capability, shared } => {
                self.lane_given(around, seq, end, capability, shared);
            }
            Reply::Fenced { seq, reached } => self.fenced(around, seq, reached),
            Reply::Refused { seq, why } if self.lanes.refused(around.posts, seq, why) => {}
            Reply::Refused { seq, why } => {
                let ask = self.asks.remove(&seq).filter(|ask| ask.peer == key);
                ask.iter().for_each(|ask| refuse(around, ask, why));
            }
            Reply::Ended { export, dead } => {
                let Some(link) = self.peers.get(&key).map(|peer| peer.link) else { return };
                let state = if dead { ExportState::Dead } else { ExportState::Revoked };
                if let Some(slot) = self.aways.slot_of(link, export) {
                    around.slots.mark(slot, state);
                }
            }
        }
    }

    /// Enters an import that another node granted, and tells its process.
    fn granted(
        &mut self,
        around: &mut Around<'_>,
        ask: &Ask,
        grant: RemoteGrant,
    ) -> Result<(), Refusal> {
        let number = self.peers.get(&ask.peer).ok_or(Refusal::Unreachable)?.link;
        let client = around.clients.get_mut(ask.client).ok_or(Refusal::Gone)?;
        if client.imports.len() >= Exports::MAX_IMPORTS {
            return Err(Refusal::Limit);
        }
        let slot = around.slots.take().ok_or(Refusal::Limit)?;
        let RemoteGrant { export, capability, id, len, notify } = grant;
        let link = self.port.link(number).ok_or(Refusal::Unreachable)?;
        let Ok(import) = link.import(Binding { export, capability }) else {
            around.slots.give_back(slot);
            return Err(Refusal::Limit);
        };
        let handle = around.exports.fresh_handle();
        client.imports.insert(handle);
        let terms = (len, ask.rights, notify);
        self.aways.add(handle, Away::new(ask.client, (number, import), export, slot, terms));
        let live = slot.live();
        let slot = slot.index;
        let grant = Grant {
            handle,
            export: id,
            len,
            slot,
            live,
            mapped: false,
            notify,
            pool: None,
            stranger: false,
        };
        around.posts.push(Post::new(ask.client, Answer::Granted { seq: ask.seq, grant }));
        Ok(())
    }

    /// An import that was given back is complete.
    fn closed(&mut self, around: &mut Around<'_>, link: LinkNumber, import: vmmc_link::ImportId) {
        let Some(away) = self.aways.remove((link, import)) else { return };
        around.slots.give_back(away.slot);
        if let Some(peer) = self.peer_of(link) {
            self.tell(around, peer, &Call::Unimport { export: away.export });
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

fn refuse(around: &mut Around<'_>, ask: &Ask, why: Refusal) {
    around.posts.push(Post::new(ask.client, Answer::Refused { seq: ask.seq, why }));
}

/// Tells processes what became of their commands.
fn complete(clients: &mut Clients, finished: Vec<Finished>) {
    let mut rest = finished.as_slice();
    while let Some(Finished { client, .. }) = rest.first() {
        let count = rest.iter().take_while(|finished| finished.client == *client).count();
        let (own, others) = rest.split_at(count);
        // A process that has ended does not look any more.
        if let Some(queue) = clients.get_mut(*client).and_then(|client| client.queue.as_ref()) {
            let ends = own.iter().map(|finished| (finished.command, finished.outcome));
            Engine::complete(queue.commands(), ends);
        }
        rest = others;
    }
}
