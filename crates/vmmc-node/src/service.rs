//! The loop: one thread that waits for everybody and for nobody in particular.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vmmc_os::{
    Descriptor, OsError, Poller, Readiness, Received, ServiceOf, ServicePlace, accept_packets,
    peer_credentials, peer_process, raise_descriptor_limit, receive, start_identity,
    termination_signals, user_id, waiting_bytes,
};
use vmmc_proto::{Answer, BrokenReason, ExportId, MAX_MESSAGE, NodeId, NodeStatus, decode_request};
use vmmc_shm::table::{ExportState, Networks};

use crate::accounts::{Accounts, Item, is_stranger};
use crate::apart::ApartEnds;
use crate::clients::{Client, ClientKey, Clients, Flushed, Identity, Post};
use crate::cluster::{Around, CALLERS, CHANNEL, Cluster, ClusterConfig, ClusterError};
use crate::customs::{Customs, Goods, Report};
use crate::directory::{ClaimError, Directory};
use crate::exports::Exports;
use crate::inquiries::Inquiries;
use crate::offers::Offers;
use crate::pairs::{Pairs, Surroundings};
use crate::pinning::Pinning;
use crate::policy::Policy;
use crate::queues::Round;
use crate::slots::Slots;

/// Kinds of what the loop waits for, in the upper bits of the token.
const KIND: u64 = 0xff << 56;
const LISTENER: u64 = 1 << 56;
const SIGNALS: u64 = 2 << 56;
pub(crate) const SOCKET: u64 = 3 << 56;
const LIFE: u64 = 4 << 56;
/// A held socket that should become writable.
pub(crate) const HELD: u64 = 5 << 56;
/// A client that leaves so many bytes unread is worth a look at what its user's others leave.
const MUCH: u64 = 64 << 10;
/// What users' processes handed over has been looked at, or written to.
const CUSTOMS: u64 = 9 << 56;
/// Who has the connections that were asked about is known.
const HOLDERS: u64 = 10 << 56;

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where, and whom: one user, or all of the host.
    pub place: ServicePlace,
    /// Which users may be lifted to each other, and what one may take; for the host's service.
    pub policy: Policy,
    /// Leave after this long without a client.
    pub idle: Duration,
    /// Most bytes that the processes may have pinned, all together.
    pub pinned_limit: u64,
    /// The other nodes; `None` where there are none.
    pub cluster: Option<ClusterConfig>,
}

/// Why the service cannot start or go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ServeError {
    /// {0}
    Claim(ClaimError),
    /// cannot set up the service ({0}): raise the limits on descriptors and memory
    Setup(OsError),
    /// {0}
    Cluster(ClusterError),
    /// the service cannot wait any longer ({0}): the system is out of memory
    Wait(OsError),
}

/// Serves in this thread until told to stop (SIGTERM, SIGINT, `vmmc node stop`) or idle for long. Leaves nothing in the
/// directory. The thread must be the one that lives as long as the process: its end is what clients see as the service's.
///
/// # Errors
/// When the directory is not usable or another service has it, or the system has no descriptors or memory.
pub fn serve(options: &ServeOptions) -> Result<(), ServeError> {
    let directory = Directory::claim(&options.place).map_err(ServeError::Claim)?;
    let mut service = match Service::new(options, directory) {
        Ok(service) => service,
        Err((cause, directory)) => {
            directory.release();
            return Err(ServeError::Setup(cause));
        }
    };
    let result = service.join(options.cluster.as_ref()).and_then(|()| service.run(options.idle));
    service.directory.release();
    // The halls' threads go on with what they are at.
    service.slots.release(service.customs.is_none());
    result
}

/// Everything the service knows.
#[derive(Debug)]
pub(crate) struct Service {
    directory: Directory,
    /// Whom it serves.
    pub(crate) of: ServiceOf,
    pub(crate) policy: Policy,
    pub(crate) accounts: Accounts,
    /// For the host's service.
    customs: Option<Customs>,
    pub(crate) node: NodeId,
    pub(crate) poller: Poller,
    signals: Descriptor,
    pub(crate) slots: Slots,
    pub(crate) clients: Clients,
    pub(crate) exports: Exports,
    pub(crate) offers: Offers,
    pub(crate) apart: ApartEnds,
    pub(crate) inquiries: Inquiries,
    pub(crate) pairs: Pairs,
    pub(crate) pinning: Pinning,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) round: Round,
    pub(crate) posts: Vec<Post>,
    /// Clients to disconnect at the end of the turn.
    doomed: Vec<ClientKey>,
    /// Clients whose outbox the kernel refused for want of something other than room.
    later: Vec<ClientKey>,
    /// Held in reserve, to be able to accept and refuse when descriptors are exhausted.
    spare: Option<Descriptor>,
    started: Instant,
    pub(crate) stopping: bool,
}

impl Service {
    fn new(options: &ServeOptions, directory: Directory) -> Result<Self, (OsError, Directory)> {
        raise_descriptor_limit(1 << 20);
        let set_up = || {
            let poller = Poller::new()?;
            let signals = termination_signals()?;
            poller.add(&directory.listener, LISTENER, Readiness::READ)?;
            poller.add(&signals, SIGNALS, Readiness::READ)?;
            let node = NodeId(start_identity(&options.place.dir)?);
            let customs =
                (options.place.of == ServiceOf::Host).then(Customs::of_host).transpose()?;
            if let Some(customs) = &customs {
                poller.add(&*customs.bell, CUSTOMS, Readiness::READ)?;
            }
            let inquiries = Inquiries::new()?;
            poller.add(&*inquiries.bell, HOLDERS, Readiness::READ)?;
            Ok((poller, signals, node, customs, inquiries, Slots::new()?))
        };
        let (poller, signals, node, customs, inquiries, slots) = match set_up() {
            Ok(parts) => parts,
            Err(cause) => return Err((cause, directory)),
        };
        let spare = Descriptor::duplicate(signals.as_fd()).ok();
        let limits = (options.place.of == ServiceOf::Host).then_some(options.policy.limits);
        Ok(Self {
            directory,
            of: options.place.of,
            policy: options.policy.clone(),
            accounts: Accounts::new(limits),
            customs,
            node,
            poller,
            signals,
            slots,
            clients: Clients::default(),
            exports: Exports::new(),
            offers: Offers::default(),
            apart: ApartEnds::default(),
            inquiries,
            pairs: Pairs::default(),
            pinning: Pinning::new(options.pinned_limit),
            cluster: None,
            round: Round::default(),
            posts: Vec::new(),
            doomed: Vec::new(),
            later: Vec::new(),
            spare,
            started: Instant::now(),
            stopping: false,
        })
    }

    /// Meets the other nodes, if there are any.
    fn join(&mut self, config: Option<&ClusterConfig>) -> Result<(), ServeError> {
        if let Some(config) = config {
            let cluster = Cluster::open(config.clone(), &self.poller);
            self.cluster = Some(cluster.map_err(ServeError::Cluster)?);
        }
        Ok(())
    }

    fn run(&mut self, idle: Duration) -> Result<(), ServeError> {
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let mut last_busy = Instant::now();
        while !self.stopping {
            let awaited = self.cluster.as_ref().and_then(Cluster::timeout);
            let timeout = if !self.round.is_idle() {
                Some(Duration::ZERO)
            } else if !self.later.is_empty() {
                Some(Duration::from_millis(5))
            } else if !self.is_needed() {
                let left = idle.saturating_sub(last_busy.elapsed());
                if left.is_zero() {
                    break;
                }
                Some(left)
            } else {
                None
            };
            let looks = self.apart.timeout().into_iter().chain(self.inquiries.timeout());
            let timeout = timeout.into_iter().chain(awaited).chain(looks).min();
            if timeout == Some(Duration::ZERO) {
                // Whoever is waited for may need this processor.
                std::thread::yield_now();
            }
            for (token, readiness) in self.poller.wait(timeout).map_err(ServeError::Wait)? {
                let number = token & !KIND;
                match token & KIND {
                    LISTENER => self.accept(),
                    SIGNALS => self.stopping = true,
                    SOCKET if readiness.readable => self.read(ClientKey(number), &mut buffer),
                    SOCKET => self.flush(ClientKey(number)),
                    LIFE => self.retire(ClientKey(number)),
                    CALLERS => drop(self.with_cluster(|all, around| all.accept(around, number))),
                    CHANNEL => drop(self.with_cluster(|all, around| all.ready(around, number))),
                    CUSTOMS => self.hear_customs(),
                    HELD => self.with_pairs(|pairs, around| pairs.writable(around, number)),
                    _ => {}
                }
                self.settle();
            }
            self.look_apart();
            self.look_for_holders();
            self.accounts.next_turn();
            self.take_turns();
            self.with_cluster(|cluster, around| cluster.poll(around));
            for key in std::mem::take(&mut self.later) {
                self.flush(key);
            }
            self.settle();
            if self.is_needed() {
                last_busy = Instant::now();
            }
        }
        let keys: Vec<ClientKey> = self.clients.by_key.keys().copied().collect();
        self.posts.extend(keys.into_iter().map(|key| Post::new(key, Answer::Goodbye)));
        self.settle();
        Ok(())
    }

    /// Lets `pairs` work, with what they need of the rest.
    pub(crate) fn with_pairs<R>(
        &mut self,
        work: impl FnOnce(&mut Pairs, &mut Surroundings<'_>) -> R,
    ) -> R {
        let mut around =
            Surroundings { slots: &mut self.slots, poller: &self.poller, posts: &mut self.posts };
        work(&mut self.pairs, &mut around)
    }

    /// Lets the cluster work, with what it needs of the rest; `None` where there is none.
    pub(crate) fn with_cluster<R>(
        &mut self,
        work: impl FnOnce(&mut Cluster, &mut Around<'_>) -> R,
    ) -> Option<R> {
        let mut around = Around {
            exports: &mut self.exports,
            slots: &mut self.slots,
            clients: &mut self.clients,
            posts: &mut self.posts,
            poller: &self.poller,
        };
        self.cluster.as_mut().map(|cluster| work(cluster, &mut around))
    }

    /// Whether there is anybody to serve, or something to be finished for who has left.
    fn is_needed(&self) -> bool {
        !self.clients.by_key.is_empty()
            || self.pairs.is_injecting()
            || self.cluster.as_ref().is_some_and(Cluster::is_finishing)
    }

    /// An export is gone, whatever for: who imported it on other nodes is told.
    pub(crate) fn tell_end(&mut self, export: ExportId, dead: bool) {
        self.with_cluster(|cluster, around| cluster.ended(around, export, dead));
    }

    /// Gives back an import, wherever it is.
    pub(crate) fn give_back(&mut self, handle: u64) {
        match &mut self.cluster {
            Some(cluster) if cluster.reaches(handle) => cluster.unimport(handle, &mut self.slots),
            _ => self.exports.unimport(&mut self.slots, handle),
        }
    }

    /// Marks a client to be disconnected.
    pub(crate) fn doom(&mut self, key: ClientKey) {
        self.doomed.push(key);
    }

    pub(crate) fn status(&self) -> NodeStatus {
        NodeStatus {
            pid: vmmc_os::process_id(),
            node: self.node.0,
            uptime_seconds: self.started.elapsed().as_secs(),
            processes: self.clients.process_count() as u64,
            exports: self.exports.export_count() as u64,
            imports: (self.exports.import_count()
                + self.cluster.as_ref().map_or(0, Cluster::away_count)) as u64,
            offers: self.offers.len() as u64,
            pairs: self.pairs.len() as u64,
            networks: self.apart.network_count() as u64,
            networks_meet: self.apart.networks() == Networks::Several,
            reserved_bytes: self.pinning.reserved(),
            pinned_limit: self.pinning.limit(),
            paths: self.cluster.as_ref().map_or_else(Vec::new, Cluster::paths),
        }
    }

    fn accept(&mut self) {
        for _ in 0..64 {
            let socket = match accept_packets(&self.directory.listener) {
                Ok(socket) => socket,
                Err(OsError::MFILE | OsError::NFILE) => {
                    // Refusing needs a descriptor too: give up the spare one for a moment. The process sees the
                    // connection close and reports it.
                    self.spare = None;
                    let refused = accept_packets(&self.directory.listener);
                    let was_there = refused.is_ok();
                    refused.into_iter().for_each(|socket| self.refuse(socket));
                    self.spare = Descriptor::duplicate(self.signals.as_fd()).ok();
                    if !was_there {
                        return;
                    }
                    continue;
                }
                Err(_) => return,
            };
            self.admit(socket);
        }
    }

    /// Our own user's processes, and root's, are let in; all others' by the host's service, up to a number; and nobody whose end
    /// we could not notice.
    fn admit(&mut self, socket: Descriptor) {
        let Ok(credentials) = peer_credentials(&socket) else { return };
        let uid = credentials.uid;
        if self.of == ServiceOf::User && uid != user_id() && uid != 0 {
            return;
        }
        let admitted = self.accounts.admits(&self.clients, uid, Item::Process);
        let Some(life) = admitted.then(|| peer_process(&socket).ok()).flatten() else {
            return self.refuse(socket);
        };
        let key = self.clients.add(Client::new(socket, Some(life), credentials));
        let Some(client) = self.clients.get(key) else { return };
        let watched = self.poller.add(&client.socket, SOCKET | key.0, Readiness::READ).is_ok()
            && client
                .life
                .as_ref()
                .is_some_and(|life| self.poller.add(life, LIFE | key.0, Readiness::READ).is_ok());
        if !watched {
            self.doomed.push(key);
        }
    }

    /// What was sent along already is closed with the connection.
    fn refuse(&mut self, socket: Descriptor) {
        if let Ok(credentials) = peer_credentials(&socket) {
            self.discard(credentials.uid, vec![socket]);
        }
    }

    fn read(&mut self, key: ClientKey, buffer: &mut [u8]) {
        // A few at a time, so that one busy client does not keep the others waiting.
        for _ in 0..32 {
            let Some(client) = self.clients.get(key) else { return };
            if !self.accounts.may_speak(client.credentials.uid) || !self.read_one(key, buffer) {
                return;
            }
        }
    }

    /// Reads a message and does what it says; `false` if no more is to be read now.
    fn read_one(&mut self, key: ClientKey, buffer: &mut [u8]) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let received = match receive(&client.socket, buffer) {
            // Told once, and ahead of what was sent before.
            Err(OsError::CONNRESET) => return true,
            Err(OsError::AGAIN) if client.last_words.is_none() => return false,
            // Of none at all too descriptors may have come along.
            Ok(received) => received,
            Err(_) => {
                self.doomed.push(key);
                return false;
            }
        };
        let Received { len, descriptors, truncated } = received;
        if let Some(left) = &mut client.last_words {
            *left = left.saturating_sub(len as u64);
        }
        let uid = client.credentials.uid;
        let request = decode_request(&buffer[..len]);
        let customs = self.customs.as_mut().filter(|_| is_stranger(uid));
        match (request, customs) {
            (Ok(request), Some(customs)) if !descriptors.is_empty() => {
                // Nothing more is read until that is known.
                client.at_customs = true;
                self.poller.remove(client.socket.as_fd());
                customs.look(uid, key, request, descriptors, truncated);
                return false;
            }
            (Ok(request), _) => {
                let goods = Goods::look(&request, descriptors, truncated, None);
                self.handle(key, request, goods);
            }
            (Err(_), _) => {
                self.discard(uid, descriptors);
                self.doomed.push(key);
                return false;
            }
        }
        self.rung(key);
        self.part_if_heard_out(key);
        self.doomed.last() != Some(&key)
    }

    /// Closes what came from a user's process and is not wanted.
    pub(crate) fn discard(&mut self, uid: u32, descriptors: Vec<Descriptor>) {
        if let Some(customs) = self.customs.as_mut().filter(|_| is_stranger(uid)) {
            customs.discard(uid, descriptors);
        }
    }

    /// Does at once what a client has said by now.
    pub(crate) fn hear_out(&mut self, key: ClientKey) {
        self.retire(key);
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        while self.clients.get(key).is_some_and(|client| !client.is_heard_out())
            && self.read_one(key, &mut buffer)
        {}
    }

    /// A client's process has ended, or has closed its end. What it has said by then is still done, and nothing that others say who have its
    /// socket.
    fn retire(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Some(life) = &client.life {
            self.poller.remove(life.as_fd());
        }
        client.last_words.get_or_insert_with(|| waiting_bytes(&client.socket));
        self.part_if_heard_out(key);
    }

    fn part_if_heard_out(&mut self, key: ClientKey) {
        if self.clients.get(key).is_some_and(Client::is_heard_out) {
            self.doomed.push(key);
        }
    }

    /// Goes on with what has been looked at, and with whoever sent it.
    fn hear_customs(&mut self) {
        if let Some(customs) = &self.customs {
            customs.bell.drain();
        }
        while let Some(report) = self.customs.as_ref().and_then(Customs::report) {
            match report {
                Report::Looked(key, request, goods) => {
                    let Some(client) = self.clients.get_mut(key) else { continue };
                    client.at_customs = false;
                    let added = self.poller.add(&client.socket, SOCKET | key.0, client.interest());
                    if added.is_err() {
                        self.doomed.push(key);
                    }
                    self.handle(key, *request, goods);
                    self.rung(key);
                    self.part_if_heard_out(key);
                }
                Report::Wrote(id, rest, progress, handed) => self.with_pairs(|pairs, around| {
                    pairs.wrote(around, id, rest, progress, handed);
                }),
            }
            self.settle();
        }
    }

    /// Sends the posts and disconnects the doomed, until there are neither.
    fn settle(&mut self) {
        while !self.posts.is_empty() || !self.doomed.is_empty() {
            let mut touched: Vec<ClientKey> = Vec::new();
            for Post { to, answer, descriptors } in std::mem::take(&mut self.posts) {
                // What an heir has missed it is told when it is there.
                if let Some(client) = self.clients.get_mut(to).filter(|to| !to.is_heir()) {
                    client.enqueue(&answer, descriptors);
                    let (uid, unread) = (client.credentials.uid, client.unread());
                    if unread > MUCH {
                        let all = self.clients.of_user(uid).map(Client::unread).sum();
                        if self.accounts.is_over(uid, all) {
                            self.doomed.push(to);
                        }
                    }
                    if touched.last() != Some(&to) {
                        touched.push(to);
                    }
                }
            }
            for key in touched {
                #[cfg(chaos)]
                vmmc_os::chaos::pause(300);
                self.flush(key);
            }
            for key in std::mem::take(&mut self.doomed) {
                self.disconnect(key);
            }
        }
    }

    fn flush(&mut self, key: ClientKey) {
        let slots = &self.slots;
        let Some(client) = self.clients.get_mut(key) else { return };
        let mail_slot = match &client.identity {
            Some(Identity::Process { mail_slot, .. }) => Some(*mail_slot),
            _ => None,
        };
        let flushed =
            client.flush(|| mail_slot.into_iter().for_each(|slot| slots.count_mail(slot)));
        let full = flushed == Flushed::Full;
        if full != client.awaits_room {
            client.awaits_room = full;
            // Fails only for a client that is about to be disconnected, or is not waited for at the moment.
            let _ = self.poller.change(&client.socket, SOCKET | key.0, client.interest());
        }
        match flushed {
            Flushed::Empty | Flushed::Full => {}
            Flushed::Later => self.later.push(key),
            Flushed::Gone => self.retire(key),
            Flushed::Broken => self.doomed.push(key),
        }
    }

    /// A process is dead or has left: everything that it had goes at once.
    fn disconnect(&mut self, key: ClientKey) {
        self.take_last_turn(key);
        let Some(client) = self.clients.remove(key) else { return };
        // Whoever made an heir's socket may have another descriptor of it, by which the poller would keep it.
        self.poller.remove(client.socket.as_fd());
        self.pinning.end(key);
        if let Some(network) = client.network {
            self.apart.leave(network, key);
            self.slots.tell_networks(self.apart.networks());
        }
        let uid = client.credentials.uid;
        // With it goes what it had sent along and nobody has read.
        self.discard(uid, vec![client.socket]);
        if let Some(customs) = self.customs.as_mut().filter(|_| !self.clients.has_user(uid)) {
            customs.leave(uid);
        }
        if let Some(Identity::Process { id, mail_slot, .. }) = &client.identity {
            for number in &client.exports {
                let export = ExportId { process: *id, number: *number };
                let _ = self.exports.remove(&mut self.slots, export, ExportState::Dead);
                self.tell_end(export, true);
            }
            self.slots.give_back_mail(*mail_slot);
        }
        for handle in &client.imports {
            self.give_back(*handle);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.leave(key);
        }
        for offer in &client.offers {
            self.offers.forget(*offer, key);
        }
        for pair in &client.holds {
            self.with_pairs(|pairs, around| {
                pairs.release(around, key, *pair, BrokenReason::PeerDied);
            });
        }
    }
}
