//! The other nodes: how they meet, what they say to each other, and how they part.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmmc_link::{Config, Keys, Secret};
use vmmc_ni::port::LinkNumber;
use vmmc_os::Readiness;
use vmmc_proto::{MAX_ENTRIES, PathStatus, Refusal};
use vmmc_shm::table::ExportState;

use super::channel::{Channel, Lost};
use super::lanes::random_secret;
use super::message::{self, Call, Denial, Greeting, VERSION, Welcome};
use super::{Around, CHANNEL, Cluster, complete, refuse};

/// How long a node may take until both have greeted: where packets are lost, TCP asks again after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long one that is called may take at an address, when there is another to be tried.
const FIRST_PATIENCE: Duration = Duration::from_millis(400);
/// Channels that have not proved yet that they have the cluster key.
const MAX_STRANGERS: usize = 64;
/// Channels of other nodes.
const MAX_CHANNELS: usize = 4096;
/// Both ends of a link are made for each other: there is no earlier life of either.
const INCARNATION: u32 = 1;

/// Another node, at one end of a channel.
pub(super) struct Peer {
    pub(super) channel: Channel,
    /// `None`: it called us.
    pub(super) callee: Option<Callee>,
    /// Open once the greetings were exchanged.
    pub(super) link: LinkNumber,
    pub(super) greeted: bool,
    /// What it calls itself, once it greeted.
    pub(super) name: String,
    pub(super) secret: [u8; 32],
    pub(super) since: Instant,
    /// It is to be dropped.
    pub(super) lost: Option<Lost>,
}

/// A node that we called.
#[derive(Debug)]
pub(super) struct Callee {
    pub(super) node: String,
    /// Addresses that were not tried yet.
    pub(super) others: Vec<SocketAddr>,
}

impl Cluster {
    /// Takes the calls that wait at one of our addresses.
    pub(crate) fn accept(&mut self, around: &mut Around<'_>, index: u64) {
        let Some(listener) =
            usize::try_from(index).ok().and_then(|index| self.listeners.get(index))
        else {
            return;
        };
        let strangers = self.peers.values().filter(|peer| !peer.channel.is_trusted()).count();
        let mut room = MAX_STRANGERS.saturating_sub(strangers);
        let mut accepted = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            if room > 0 && self.peers.len() + accepted.len() < MAX_CHANNELS {
                room -= 1;
                accepted.extend(Channel::accept(stream, &self.config.key).ok());
            }
        }
        for channel in accepted {
            let _ = self.add_peer(around, channel, None);
        }
    }

    /// Something can be read from, or written to, a channel.
    pub(crate) fn ready(&mut self, around: &mut Around<'_>, key: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let received = peer.channel.receive();
        let lost = match received {
            Ok(messages) => messages.into_iter().find_map(|message| {
                // Nonsense from somebody who has the cluster key: another version, or a defect.
                self.understand(around, key, &message).err()
            }),
            Err(lost) => Some(lost),
        };
        match lost {
            Some(lost) => self.drop_peer(around, key, lost),
            None => self.watch(around, key),
        }
    }

    /// Connects to a node.
    pub(super) fn call(&mut self, around: &mut Around<'_>, node: String) -> Result<u64, Refusal> {
        let known = self.config.nodes.iter().find(|known| known.name == node);
        let addresses = known.ok_or(Refusal::UnknownNode)?.addresses.clone();
        self.call_at(around, Callee { node, others: addresses })
    }

    /// Connects to the first address that has not been tried.
    fn call_at(&mut self, around: &mut Around<'_>, mut callee: Callee) -> Result<u64, Refusal> {
        while !callee.others.is_empty() {
            let address = callee.others.remove(0);
            let Ok(channel) = Channel::connect(address, &self.config.key) else { continue };
            let node = callee.node.clone();
            let key = self.add_peer(around, channel, Some(callee))?;
            self.called.insert(node, key);
            if let Some(greeting) = self.greeting(key) {
                self.tell(around, key, &greeting);
            }
            return Ok(key);
        }
        Err(Refusal::Unreachable)
    }

    fn add_peer(
        &mut self,
        around: &mut Around<'_>,
        channel: Channel,
        callee: Option<Callee>,
    ) -> Result<u64, Refusal> {
        let link = self.port.reserve().map_err(|_| Refusal::Limit)?;
        self.last_peer += 1;
        let key = self.last_peer;
        if around.poller.add(&channel, CHANNEL | key, Readiness::BOTH).is_err() {
            self.port.close(link);
            return Err(Refusal::Exhausted);
        }
        let secret = random_secret();
        let (greeted, since, lost) = (false, Instant::now(), None);
        let name = String::new();
        self.peers.insert(key, Peer { channel, callee, link, greeted, name, secret, since, lost });
        Ok(key)
    }

    fn greeting(&self, key: u64) -> Option<Greeting> {
        let peer = self.peers.get(&key)?;
        Some(Greeting {
            version: VERSION,
            node: self.config.name.clone(),
            link: peer.link.on_the_wire(),
            secret: peer.secret,
            encrypted: self.config.encrypted,
            addresses: self.config.addresses.clone(),
        })
    }

    /// Sends a message. If that shows that the peer is gone, it is dropped by the next poll, in the same turn.
    pub(super) fn tell(
        &mut self,
        around: &mut Around<'_>,
        key: u64,
        message: &impl serde::Serialize,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.channel.send(message) {
            Ok(()) => self.watch(around, key),
            Err(lost) => peer.lost = Some(lost),
        }
    }

    /// Waits for what a channel needs.
    fn watch(&self, around: &mut Around<'_>, key: u64) {
        let Some(peer) = self.peers.get(&key) else { return };
        let room = peer.channel.wants_room();
        let readiness = if room { Readiness::BOTH } else { Readiness::READ };
        // Fails only for a channel that is about to be dropped.
        let _ = around.poller.change(&peer.channel, CHANNEL | key, readiness);
    }

    /// Does what a message says.
    fn understand(
        &mut self,
        around: &mut Around<'_>,
        key: u64,
        message: &[u8],
    ) -> Result<(), Lost> {
        let Some(peer) = self.peers.get(&key) else { return Ok(()) };
        let nonsense = Lost::Connection;
        match (&peer.callee, peer.greeted) {
            (None, false) => {
                let greeting = message::decode(message).ok_or(nonsense)?;
                self.greeted(around, key, &greeting)
            }
            (None, true) => {
                let call = message::decode(message).ok_or(nonsense)?;
                self.answer(around, key, call);
                Ok(())
            }
            (Some(callee), false) => match message::decode(message).ok_or(nonsense)? {
                Welcome::Greeting(greeting) if greeting.node == callee.node => {
                    self.meet(key, &greeting)
                }
                Welcome::Greeting(_) | Welcome::Denied(_) => Err(Lost::Key),
            },
            (Some(_), true) => {
                let reply = message::decode(message).ok_or(nonsense)?;
                self.take(around, key, reply);
                Ok(())
            }
        }
    }

    /// A node that called us says who it is.
    fn greeted(
        &mut self,
        around: &mut Around<'_>,
        key: u64,
        greeting: &Greeting,
    ) -> Result<(), Lost> {
        let denial = if greeting.version != VERSION {
            Some(Denial::Version)
        } else if greeting.node == self.config.name {
            Some(Denial::SameName)
        } else if greeting.encrypted != self.config.encrypted {
            Some(Denial::Protection)
        } else if greeting.addresses.is_empty() || greeting.addresses.len() > 64 {
            Some(Denial::Limit)
        } else {
            None
        };
        if let Some(denial) = denial {
            // It hangs up when it has read this.
            self.tell(around, key, &Welcome::Denied(denial));
            return Ok(());
        }
        self.meet(key, greeting)?;
        if let Some(own) = self.greeting(key) {
            self.tell(around, key, &Welcome::Greeting(own));
        }
        Ok(())
    }

    /// Opens the link to a node that said who it is.
    fn meet(&mut self, key: u64, greeting: &Greeting) -> Result<(), Lost> {
        let (now, max_mtu) = (self.now(), self.max_mtu());
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        let config = Config {
            remote_link: greeting.link,
            incarnation: INCARNATION,
            peer_incarnation: INCARNATION,
            max_mtu,
            recovery: self.config.recovery,
            ..Config::default()
        };
        let keys = match self.config.encrypted {
            true => {
                let (send, receive) = (Secret(peer.secret), Secret(greeting.secret));
                Keys::Encrypted { send, receive }
            }
            false => Keys::Plaintext,
        };
        let addresses = greeting.addresses.clone();
        self.port.open(peer.link, config, &keys, addresses, now).map_err(|_| Lost::Connection)?;
        peer.greeted = true;
        peer.name.clone_from(&greeting.node);
        Ok(())
    }

    /// Bytes of a datagram at most.
    pub(super) fn max_mtu(&self) -> u16 {
        let headers = if self.config.addresses.iter().any(SocketAddr::is_ipv6) { 48 } else { 28 };
        self.config.mtu - headers
    }

    /// Drops who is lost, and who does not answer.
    pub(super) fn bury(&mut self, around: &mut Around<'_>) {
        for key in self.lanes.silent() {
            self.drop_peer(around, key, Lost::Connection);
        }
        let late = |peer: &Peer| !peer.greeted && peer.since.elapsed() >= peer.patience();
        let dead = self.peers.iter().filter_map(|(key, peer)| {
            let late = late(peer).then_some(Lost::Connection);
            peer.lost.or(late).map(|lost| (*key, lost))
        });
        let dead: Vec<_> = dead.collect();
        dead.into_iter().for_each(|(key, lost)| self.drop_peer(around, key, lost));
    }

    /// A node is gone, and all that went through it; unless it has another address, where it is tried next.
    pub(super) fn drop_peer(&mut self, around: &mut Around<'_>, key: u64, lost: Lost) {
        let Some(peer) = self.peers.remove(&key) else { return };
        around.poller.remove(std::os::fd::AsFd::as_fd(&peer.channel));
        self.port.close(peer.link);
        self.lanes.lost(around.posts, key);
        for handle in self.grants.remove_all(peer.link) {
            self.lanes.cut(handle);
            around.exports.unimport(around.slots, handle);
        }
        let Some(callee) = peer.callee else { return };
        self.called.remove(&callee.node);
        let (slots, finished) = self.aways.lost(peer.link, &mut self.payloads);
        slots.into_iter().for_each(|slot| around.slots.mark(slot, ExportState::Dead));
        complete(around.clients, finished);
        if !peer.greeted
            && lost == Lost::Connection
            && let Ok(next) = self.call_at(around, callee)
        {
            let moved = self.asks.values_mut().filter(|ask| ask.peer == key);
            let calls: Vec<Call> = moved
                .map(|ask| {
                    ask.peer = next;
                    ask.call.clone()
                })
                .collect();
            calls.iter().for_each(|call| self.tell(around, next, call));
            return;
        }
        let why = if lost == Lost::Key { Refusal::Denied } else { Refusal::Unreachable };
        self.asks.retain(|_, ask| {
            if ask.peer == key {
                refuse(around, ask, why);
            }
            ask.peer != key
        });
    }

    /// The paths of all links.
    pub(crate) fn paths(&self) -> Vec<PathStatus> {
        let greeted = self.peers.values().filter(|peer| peer.greeted);
        let paths = greeted.flat_map(|peer| {
            let link = self.port.look(peer.link);
            let paths = link.into_iter().flat_map(|link| {
                (0..u8::MAX).map_while(|path| Some((path, link.path(path)?, link.stats())))
            });
            paths.map(|(path, state, stats)| PathStatus {
                // Its peer chose it.
                node: peer.name.chars().take(64).collect(),
                path,
                up: state.up,
                round_trip: u64::try_from(state.round_trip.as_nanos()).unwrap_or(u64::MAX),
                window: state.window,
                in_flight: state.in_flight,
                mtu: state.mtu,
                packets_sent: stats.packets_sent,
                packets_lost: stats.packets_lost,
            })
        });
        paths.take(MAX_ENTRIES).collect()
    }

    pub(super) fn peer_of(&self, link: LinkNumber) -> Option<u64> {
        self.peers.iter().find(|(_, peer)| peer.link == link).map(|(key, _)| *key)
    }
}

impl Peer {
    /// How long it may take to greet.
    pub(super) fn patience(&self) -> Duration {
        match &self.callee {
            Some(Callee { others, .. }) if !others.is_empty() => FIRST_PATIENCE,
            _ => PATIENCE,
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { callee, link, greeted, since, .. } = self;
        f.debug_struct("Peer")
            .field("callee", callee)
            .field("link", link)
            .field("greeted", greeted)
            .field("since", since)
            .finish_non_exhaustive()
    }
}
