//! A node's port: its links to other nodes, driven over its fabrics. It has no thread of its own and never waits: whoever has time polls it.
//!
//! ```text
//!            poll
//!              │          ┌─ link 0 ─┐
//!  fabric 0 ── receive ──►├─ link 1 ─┤◄──► Host (memory of this node)
//!  fabric 1 ── by number  └─ link 2 ─┘
//!     ▲                        │
//!     └──── send, in batches ──┘         path n of every link goes over fabric n
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use vmmc_link::wire::Header;
use vmmc_link::{Config, Event, KeyError, Keys, Link, Memory, Time};

use crate::fabric::{Fabric, Sent};

/// Bytes that are built before they are handed to a fabric.
const BUFFER: usize = 64 << 10;
/// So many datagrams at once mean that more may be there.
const MANY: usize = 8;
/// Batches received from one fabric before the others have their turn.
const TURNS: usize = 4;

/// So much of what a path carries may lie in this host's own queues: what takes it so long. Kernel TCP keeps to about as much ("small queues"), and starves
/// beside whoever fills them.
const LOCAL_QUEUE: Duration = Duration::from_micros(640);
/// How soon to try again what there was no room for: some of it will have gone.
const SOON: Duration = Duration::from_micros(100);

/// Bytes of fetch replies that may be on their way to this node at a time, over all links that fetch: what a switch can hold for it.
const FETCH_CREDIT: u64 = 512 << 10;
/// Enough that a megabyte is asked for at once.
const ALONE_CREDIT: u64 = 2 << 20;

/// The memory of this node, for all links.
pub trait Host: Memory {
    /// All calls until the next are made for this link.
    fn turn_to(&mut self, link: LinkNumber);

    /// The calls for the link that was turned to are over for now.
    fn turn_from(&mut self, _link: &Link) {}
}

/// A link of a port; never used twice before 2^16 others in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkNumber(u32);

impl LinkNumber {
    /// As it stands in packets to this node.
    pub fn on_the_wire(self) -> u32 {
        self.0
    }

    fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// Why there is no further link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum OpenLinkError {
    /// a port carries 65,536 links at most; close some
    Limit,
    /// {0}
    Key(KeyError),
}

/// All links of a node.
#[derive(Debug)]
pub struct Port<F> {
    fabrics: Vec<F>,
    places: Vec<Place>,
    free: Vec<u32>,
    /// What is built and sent next.
    buffer: Vec<u8>,
    /// What a fabric had no room for: it is sent before anything else is built.
    held: Option<Held>,
    /// The last poll sent nothing, for the sake of who waits for what came.
    answers_later: bool,
    /// A link may have something to send.
    restless: bool,
    /// Datagrams that belong to no link.
    strays: u64,
    /// How many links share the fetch credit.
    fetching: u64,
}

/// Where a link is; its number's upper half counts the links that were here.
#[derive(Debug)]
struct Place {
    number: LinkNumber,
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Peer {
    link: Link,
    /// Where each path leads.
    addresses: Vec<SocketAddr>,
    /// Something happened that it may have to send for.
    touched: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    place: usize,
    fabric: usize,
    to: SocketAddr,
    len: usize,
    segment: usize,
}

impl Peer {
    /// Whether it has something to send, now or when pacing, the window or the fabric lets it go.
    fn is_restless(&self) -> bool {
        self.touched || self.link.is_sending()
    }

    /// Bytes that may lie in this host's own queues for a path, if that is known.
    fn allowance(&self, path: usize) -> Option<u64> {
        // At most 64 paths.
        let capacity = self.link.path(path as u8)?.capacity;
        (capacity > 0).then(|| (capacity as f64 * LOCAL_QUEUE.as_secs_f64()) as u64)
    }
}

impl<F: Fabric> Port<F> {
    /// A port with one fabric for each path; at most 64. Without any it takes no memory.
    pub fn new(fabrics: Vec<F>) -> Self {
        // First of all: if there is no memory, nothing else is to be dropped. A program that never has links then needs no code of theirs.
        let buffer = vec![0; if fabrics.is_empty() { 0 } else { BUFFER }];
        Self {
            fabrics,
            places: Vec::new(),
            free: Vec::new(),
            buffer,
            held: None,
            answers_later: false,
            restless: true,
            strays: 0,
            fetching: 1,
        }
    }

    /// Says whether somebody will poll again and again from now on, so that nobody has to be woken for what comes. Whether something has come already.
    pub fn attend(&mut self, attended: bool) -> bool {
        self.fabrics.iter_mut().fold(false, |some, fabric| fabric.attend(attended) | some)
    }

    /// Its fabrics, by path, to change them.
    pub fn fabrics_mut(&mut self) -> &mut [F] {
        &mut self.fabrics
    }

    /// Its fabrics, by path.
    pub fn fabrics(&self) -> &[F] {
        &self.fabrics
    }

    /// Takes a number for a link that somebody else chose; one who has it here must be the only one who chooses.
    ///
    /// # Errors
    /// [`OpenLinkError::Limit`] when the number is none of a port's, or is taken.
    pub fn adopt(&mut self, number: u32) -> Result<LinkNumber, OpenLinkError> {
        let number = LinkNumber(number);
        while self.places.len() <= number.index() {
            // Below 2^16 places, as the index has 16 bits.
            let next = LinkNumber(self.places.len() as u32);
            self.places.push(Place { number: next, peer: None });
        }
        let place = &mut self.places[number.index()];
        if place.peer.is_some() {
            return Err(OpenLinkError::Limit);
        }
        place.number = number;
        Ok(number)
    }

    /// Takes a number for a link, which the peer has to be told before it can send. Give it back with [`Port::close`] if nothing comes of it.
    ///
    /// # Errors
    /// [`OpenLinkError::Limit`].
    pub fn reserve(&mut self) -> Result<LinkNumber, OpenLinkError> {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.number = LinkNumber((place.number.0 >> 16).wrapping_add(1) << 16 | index);
            return Ok(place.number);
        }
        let index = u32::try_from(self.places.len()).map_err(|_| OpenLinkError::Limit)?;
        if index > 0xffff {
            return Err(OpenLinkError::Limit);
        }
        self.places.push(Place { number: LinkNumber(index), peer: None });
        Ok(LinkNumber(index))
    }

    /// Opens the link that a number was reserved for. Of `config` the numbers of paths and of this side, and the fetch credit, are filled in; `addresses` are the
    /// peer's, by path.
    ///
    /// # Errors
    /// [`OpenLinkError::Key`].
    pub fn open(
        &mut self,
        number: LinkNumber,
        config: Config,
        keys: &Keys,
        mut addresses: Vec<SocketAddr>,
        now: Time,
    ) -> Result<(), OpenLinkError> {
        addresses.truncate(self.fabrics.len());
        // At most 64 by construction of a port.
        let paths = addresses.len() as u8;
        let config = Config { local_link: number.0, paths, fetch_credit: ALONE_CREDIT, ..config };
        let link = Link::new(config, keys, now).map_err(OpenLinkError::Key)?;
        if let Some(place) = self.places.get_mut(number.index()) {
            place.peer = Some(Peer { link, addresses, touched: true });
        }
        Ok(())
    }

    /// A link that is open, to give it commands.
    pub fn link(&mut self, number: LinkNumber) -> Option<&mut Link> {
        let place = self.places.get_mut(number.index()).filter(|place| place.number == number)?;
        let peer = place.peer.as_mut()?;
        (peer.touched, self.restless) = (true, true);
        Some(&mut peer.link)
    }

    /// A link that is open, to look at it.
    pub fn look(&self, number: LinkNumber) -> Option<&Link> {
        let place = self.places.get(number.index()).filter(|place| place.number == number)?;
        Some(&place.peer.as_ref()?.link)
    }

    /// Where a path of a link leads.
    pub fn address(&self, number: LinkNumber, path: u8) -> Option<SocketAddr> {
        let place = self.places.get(number.index()).filter(|place| place.number == number)?;
        place.peer.as_ref()?.addresses.get(usize::from(path)).copied()
    }

    /// Forgets a link. To have the peer told, end the link and poll before.
    pub fn close(&mut self, number: LinkNumber) {
        let Some(place) = self.places.get_mut(number.index()) else { return };
        if place.number == number {
            place.peer = None;
            self.free.push(number.0 & 0xffff);
        }
    }

    /// Sends what links have to send now, without a look at what has come: for whoever has just given a command.
    pub fn push(&mut self, now: Time, host: &mut impl Host) {
        for index in 0..self.places.len() {
            if self.places[index].peer.as_ref().is_some_and(|peer| peer.touched) && self.flush() {
                self.transmit_as(now, index, host);
            }
        }
    }

    /// Has each fabric know whether all links lead to one address: with one peer only, a datagram to it may cost less. For a port whose peers send from where
    /// they receive; to be called again whenever a link was opened or closed.
    pub fn settle_peers(&mut self) {
        for (path, fabric) in self.fabrics.iter_mut().enumerate() {
            let peers = self.places.iter().filter_map(|place| place.peer.as_ref());
            let mut addresses = peers.filter_map(|peer| peer.addresses.get(path));
            let first = addresses.next();
            let alone = first.filter(|first| addresses.all(|address| address == *first));
            fabric.only(alone.copied());
        }
    }

    /// Receives what has come, lets time pass, and sends what may go. Whether anything happened.
    pub fn poll(&mut self, now: Time, host: &mut impl Host) -> bool {
        let received = self.receive(now, host);
        let mut busy = received > 0;
        // Whoever waits for what has come shall have it at once: mostly its answer takes the acknowledgement along.
        self.answers_later = (1..MANY).contains(&received) && !self.answers_later;
        if self.answers_later {
            return busy;
        }
        let room = self.flush();
        self.restless = false;
        for index in 0..self.places.len() {
            let Some(peer) = &mut self.places[index].peer else { continue };
            if peer.link.poll_timeout().is_some_and(|at| at <= now) {
                peer.link.handle_timeout(now);
                peer.touched = true;
            }
            if peer.touched && room {
                busy = true;
                self.transmit_as(now, index, host);
            }
            self.restless |= self.places[index].peer.as_ref().is_some_and(Peer::is_restless);
        }
        self.divide_credit();
        busy
    }

    /// Whether it is sure, at the cost of some loads, that [`Port::poll`] has nothing to do that may not wait for some more looks.
    pub fn is_quiet(&self) -> bool {
        !self.restless && !self.answers_later && self.fabrics.iter().all(Fabric::is_quiet)
    }

    /// Gives each link that fetches an even share of what this node can take, so that replies from many nodes at a time do not overflow it.
    fn divide_credit(&mut self) {
        let fetching =
            self.peers().filter(|(_, peer)| peer.link.is_fetching()).count().max(1) as u64;
        if fetching == self.fetching {
            return;
        }
        self.fetching = fetching;
        // One sender alone has nobody to collide with.
        let credit = if fetching == 1 { ALONE_CREDIT } else { FETCH_CREDIT / fetching };
        for peer in self.places.iter_mut().filter_map(|place| place.peer.as_mut()) {
            peer.link.set_fetch_credit(credit);
            peer.touched = true;
        }
    }

    /// Has the next poll send all acknowledgements that are owed, because nobody will have anything else to send soon.
    pub fn acknowledge(&mut self, now: Time) {
        for peer in self.places.iter_mut().filter_map(|place| place.peer.as_mut()) {
            peer.link.acknowledge(now);
            (peer.touched, self.restless) = (true, true);
        }
    }

    /// When [`Port::poll`] should be called next, if nothing comes before. With something held back for want of room: soon.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        if self.answers_later {
            return Some(now);
        }
        let room = self.held.map(|_| now + SOON);
        self.peers().filter_map(|(_, peer)| peer.link.poll_timeout()).chain(room).min()
    }

    /// What happened on any link; per link the oldest first.
    pub fn poll_event(&mut self) -> Option<(LinkNumber, Event)> {
        self.places.iter_mut().find_map(|place| {
            let event = place.peer.as_mut()?.link.poll_event()?;
            Some((place.number, event))
        })
    }

    /// Datagrams that belonged to no link.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    fn peers(&self) -> impl Iterator<Item = (LinkNumber, &Peer)> {
        self.places.iter().filter_map(|place| Some((place.number, place.peer.as_ref()?)))
    }

    fn receive(&mut self, now: Time, host: &mut impl Host) -> usize {
        let (places, strays) = (&mut self.places, &mut self.strays);
        let mut received = 0;
        for fabric in &mut self.fabrics {
            for _ in 0..TURNS {
                let count = fabric.receive(|datagram| {
                    // Whose it is says its link number; who sent it is known when its tag was checked.
                    let number = Header::parse(datagram).map(|header| LinkNumber(header.link));
                    let place = number.ok().and_then(|number| {
                        places.get_mut(number.index()).filter(|place| place.number == number)
                    });
                    let Some(Place { number, peer: Some(peer) }) = place else {
                        *strays += 1;
                        return;
                    };
                    host.turn_to(*number);
                    // Why a datagram was dropped stands in the link's counters.
                    let _ = peer.link.handle_datagram(now, datagram, host);
                    host.turn_from(&peer.link);
                    peer.touched = true;
                });
                received += count;
                // Few have come: most likely that was all, and whoever waits for them need not wait for another look.
                if count < MANY {
                    break;
                }
            }
        }
        received
    }

    fn transmit_as(&mut self, now: Time, index: usize, host: &mut impl Host) {
        host.turn_to(self.places[index].number);
        self.transmit(now, index, host);
        if let Some(peer) = &self.places[index].peer {
            host.turn_from(&peer.link);
        }
    }

    /// Sends all that one link may send now, or as much as the fabrics have room for.
    fn transmit(&mut self, now: Time, index: usize, host: &mut impl Host) {
        while self.flush() {
            let Some(peer) = &mut self.places[index].peer else { return };
            // Paths may have other sizes: what the smallest batch allows is enough for all.
            let segment = peer.link.mtu(0).map_or(1200, usize::from);
            let most = self.fabrics.iter().map(|fabric| fabric.batch(segment)).min().unwrap_or(1);
            let Some(sent) = peer.link.poll_transmit(now, &mut self.buffer, most, host) else {
                peer.touched = false;
                return;
            };
            let fabric = usize::from(sent.path);
            let to = peer.addresses[fabric];
            self.held =
                Some(Held { place: index, fabric, to, len: sent.len, segment: sent.segment });
        }
    }

    /// Sends what was built; `false` if there is still no room for it.
    fn flush(&mut self) -> bool {
        let Some(held) = self.held else { return true };
        let (fabric, bytes) = (&mut self.fabrics[held.fabric], &self.buffer[..held.len]);
        while fabric.send(held.to, bytes, held.segment) == Sent::Full {
            let peer = self.places[held.place].peer.as_ref();
            if !peer
                .and_then(|peer| peer.allowance(held.fabric))
                .is_some_and(|due| fabric.allow(due))
            {
                return false;
            }
        }
        self.held = None;
        true
    }
}
