//! Lanes: imports over links between two processes of two nodes. The services set them up, and end them; all lanes of two processes share a link.
//!
//! ```text
//!  importer ── Lane ──► service ── Call::Lane ──► service ── LaneOffered, page ──► exporter
//!           ◄─ LaneOpened ──┘  ◄── Reply::Lane ──────┘
//!
//!  importer ── FenceLane ► service ─ Call::Fence ► service ── fences the page
//!           ◄─ LaneFenced ──┘  ◄── Reply::Fenced ────┘
//! ```
//!
//! The sockets, the keys and the capabilities are the services'; the packets are not. When an exporter's process no longer answers, its service
//! takes the page's turn and says what was executed: from there on the import goes through the services.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vmmc_link::Recovery;
use vmmc_ni::fabric::UdpFabric;
use vmmc_ni::port::LinkNumber;
use vmmc_os::{
    Access, Descriptor, InletError, Inlets, Mapping, create_memory, random_u64, reserve_memory,
};
use vmmc_proto::{Answer, Lane, MAX_DESCRIPTORS, PAGE_SIZE, Refusal};
use vmmc_shm::lane::LanePage;

use super::message::{Call, LaneEnd, Reply};
use super::{Around, Cluster};
use crate::clients::{ClientKey, Post};

/// How long a fence waits for an exporter that was stopped while it executed a packet.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const FENCE_LOOK: Duration = Duration::from_millis(1);
/// How long a node's service may take to answer before the node is dead to us: as long as a link waits for a sign of life.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);
/// When a lane is asked for again, because the other process asked at the same moment.
const AGAIN: Duration = Duration::from_millis(5);

/// Everything about lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Lanes that were asked for, by the call's number.
    asks: HashMap<u32, Ask>,
    /// Fences that were asked for, by the call's number.
    fences: HashMap<u32, Fence>,
    /// Links that lanes may still be added to.
    links: Vec<LaneLink>,
    /// Lanes to exports here, by the grant's handle.
    ends: HashMap<u64, End>,
    /// Lanes to be asked for again.
    again: Vec<(Instant, ClientKey, u64)>,
    /// Fences that wait for the exporter to finish a packet.
    waiting: Vec<Waiting>,
    /// Links that are over, whose process has to finish a packet first.
    closing: Vec<(ClientKey, Rc<Page>)>,
    /// Short ways in for small datagrams, once somebody had a use for them.
    inlets: Option<Result<Inlets, InletError>>,
    /// Where they lead, by process; the sockets stay open as long as they are.
    shortened: HashMap<ClientKey, Vec<(SocketAddr, Rc<Descriptor>)>>,
}

#[derive(Debug)]
struct Ask {
    peer: u64,
    client: ClientKey,
    handle: u64,
    export: u64,
    end: LaneEnd,
}

#[derive(Debug)]
struct Fence {
    peer: u64,
    client: ClientKey,
    seq: u32,
    since: Instant,
}

/// A link between a process here and one elsewhere.
#[derive(Debug)]
struct LaneLink {
    client: ClientKey,
    own: LaneEnd,
    theirs: LaneEnd,
    /// Once a lane leads to an export here.
    page: Option<Rc<Page>>,
}

/// A lane to an export here.
#[derive(Debug)]
struct End {
    exporter: ClientKey,
    link: u32,
    page: Rc<Page>,
}

#[derive(Debug)]
struct Waiting {
    peer: u64,
    seq: u32,
    export: u64,
    channel: (u16, u32),
    since: Instant,
}

/// The page of a link that is shared with its process.
#[derive(Debug)]
struct Page(Mapping);

impl Page {
    fn new() -> Result<(Rc<Self>, Descriptor), Refusal> {
        let memory = create_memory(PAGE_SIZE).map_err(|_| Refusal::Exhausted)?;
        // Its page must exist before the first access: one that finds no memory would end the service.
        reserve_memory(&memory, 0, PAGE_SIZE as u64).map_err(|_| Refusal::Memory)?;
        let mapping = Mapping::new(&memory, 0, PAGE_SIZE, Access::ReadWrite);
        Ok((Rc::new(Self(mapping.map_err(|_| Refusal::Exhausted)?)), memory))
    }

    fn view(&self) -> &LanePage {
        // SAFETY: the mapping is page-aligned, a page long (which a `LanePage` fits into), writable, and lives as long as
        // `self`; the memory is ours and sealed, so it cannot shrink, and its page exists.
        unsafe { LanePage::at(self.0.as_ptr()) }
    }
}

impl Lanes {
    /// An import from here is given back.
    pub(super) fn withdraw(&mut self, posts: &mut Vec<Post>, export: u64) {
        let Some(End { exporter, link, .. }) = self.ends.remove(&export) else { return };
        posts.push(Post::new(exporter, Answer::LaneWithdrawn { link, export }));
    }

    /// The node that a lane leads to is gone: nothing more is taken from there.
    pub(super) fn cut(&mut self, export: u64) {
        let Some(End { exporter, link, page }) = self.ends.remove(&export) else { return };
        self.links.retain(|other| other.client != exporter || other.own.link != link);
        if !page.view().fence() {
            self.closing.push((exporter, page));
        }
    }

    /// A process has ended.
    pub(super) fn leave(&mut self, client: ClientKey) {
        self.links.retain(|link| link.client != client);
        self.again.retain(|(_, asker, _)| *asker != client);
        self.closing.retain(|(process, _)| *process != client);
        if let Some(Ok(inlets)) = &mut self.inlets {
            for (address, _) in self.shortened.remove(&client).into_iter().flatten() {
                inlets.dismiss(address);
            }
        }
    }

    /// Short ways in to a process's sockets, one for each, or none where one cannot be had.
    fn shorten(
        &mut self,
        client: ClientKey,
        sockets: &[(SocketAddr, Rc<Descriptor>)],
    ) -> Vec<Rc<Descriptor>> {
        let Ok(inlets) = self.inlets.get_or_insert_with(Inlets::open) else { return Vec::new() };
        let rings = sockets.iter().map(|(address, _)| inlets.admit(*address).map(Rc::new));
        match rings.collect::<Result<Vec<_>, _>>() {
            Ok(rings) => {
                self.shortened.insert(client, sockets.to_vec());
                rings
            }
            Err(_) => {
                sockets.iter().for_each(|(address, _)| inlets.dismiss(*address));
                Vec::new()
            }
        }
    }

    /// Nodes that do not answer: a lane fell silent, and the node's service says nothing either.
    pub(super) fn silent(&self) -> Vec<u64> {
        let late = self.fences.values().filter(|fence| fence.since.elapsed() > UNREACHABLE_AFTER);
        late.map(|fence| fence.peer).collect()
    }

    /// How long until [`Cluster::settle_lanes`] has something to do.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let busy = !self.waiting.is_empty() || !self.closing.is_empty() || !self.again.is_empty();
        let asked = (!self.fences.is_empty()).then_some(UNREACHABLE_AFTER / 10);
        busy.then_some(FENCE_LOOK).or(asked)
    }

    /// A node refused what was asked; whether it was about a lane.
    pub(super) fn refused(&mut self, posts: &mut Vec<Post>, seq: u32, why: Refusal) -> bool {
        if let Some(fence) = self.fences.remove(&seq) {
            posts.push(Post::new(fence.client, Answer::Refused { seq: fence.seq, why }));
            return true;
        }
        let Some(ask) = self.asks.remove(&seq) else { return false };
        if why == Refusal::Limit {
            self.again.push((Instant::now() + AGAIN, ask.client, ask.handle));
        }
        true
    }

    /// A node is gone.
    pub(super) fn lost(&mut self, posts: &mut Vec<Post>, peer: u64) {
        self.asks.retain(|_, ask| ask.peer != peer);
        self.waiting.retain(|waiting| waiting.peer != peer);
        self.fences.retain(|_, fence| {
            if fence.peer == peer {
                let (seq, why) = (fence.seq, Refusal::Unreachable);
                posts.push(Post::new(fence.client, Answer::Refused { seq, why }));
            }
            fence.peer != peer
        });
    }
}

impl Cluster {
    /// A process would like a lane for an import; nothing happens where there can be none.
    pub(crate) fn open_lane(&mut self, around: &mut Around<'_>, client: ClientKey, handle: u64) {
        let Some((peer, export)) = self.away(client, handle) else { return };
        let Some(end) = self.seat(around, client) else { return };
        let seq = self.next_ask();
        self.tell(around, peer, &Call::Lane { seq, export, end: end.clone() });
        self.lanes.asks.insert(seq, Ask { peer, client, handle, export, end });
    }

    /// A process wants the lane of an import to be over, and all that share its link.
    pub(crate) fn fence_lane(
        &mut self,
        around: &mut Around<'_>,
        (client, seq): (ClientKey, u32),
        handle: u64,
        link: u32,
        channel: (u16, u32),
    ) -> Result<(), Refusal> {
        let (peer, export) = self.away(client, handle).ok_or(Refusal::Unreachable)?;
        self.lanes.links.retain(|other| other.client != client || other.own.link != link);
        let call = self.next_ask();
        self.lanes.fences.insert(call, Fence { peer, client, seq, since: Instant::now() });
        self.tell(around, peer, &Call::Fence { seq: call, export, channel });
        Ok(())
    }

    /// A node wants a lane to an export here; the answer to it.
    pub(super) fn offer_lane(
        &mut self,
        around: &mut Around<'_>,
        seq: u32,
        from: LinkNumber,
        export: u64,
        theirs: LaneEnd,
    ) -> Result<Reply, Refusal> {
        let id = self.grants.export_of(from, export).ok_or(Refusal::Invalid)?;
        let rights = around.exports.lane_rights(export).ok_or(Refusal::NotAllowed)?;
        let exporter = around.clients.key_of(id.process).ok_or(Refusal::Gone)?;
        let theirs_at = theirs.addresses.first().copied().ok_or(Refusal::Invalid)?;
        if theirs.addresses.len() > MAX_DESCRIPTORS {
            return Err(Refusal::Invalid);
        }
        let at = |end: &LaneEnd| end.addresses.first() == Some(&theirs_at);
        let there = |link: &LaneLink| link.client == exporter && at(&link.theirs);
        let mut position = self.lanes.links.iter().position(there);
        if position.is_none() {
            // Two processes that ask each other at the same moment need one link, not two.
            let asked = self.lanes.asks.values().find(|ask| ask.client == exporter);
            if asked.is_some_and(|ask| ask.end.addresses.first() < Some(&theirs_at)) {
                return Err(Refusal::Limit);
            }
            let own = self.seat(around, exporter).ok_or(Refusal::NotAllowed)?;
            self.lanes.links.push(LaneLink { client: exporter, own, theirs, page: None });
        }
        let shared = position.is_some();
        let index = position.get_or_insert(self.lanes.links.len() - 1);
        let Some(link) = self.lanes.links.get_mut(*index) else { return Err(Refusal::Invalid) };
        let (page, memory) = match &link.page {
            Some(page) => (Rc::clone(page), None),
            None => {
                let (page, memory) = Page::new()?;
                link.page = Some(Rc::clone(&page));
                (page, Some(Rc::new(memory)))
            }
        };
        let (own, theirs) = (link.own.clone(), link.theirs.clone());
        let capability = u128::from(random_u64()) << 64 | u128::from(random_u64());
        let their_link = shared.then_some(theirs.link);
        self.lanes.ends.insert(export, End { exporter, link: own.link, page });
        let lane = self.lane(own.clone(), theirs, export, capability);
        around.posts.push(Post {
            to: exporter,
            answer: Answer::LaneOffered { number: id.number, rights, lane },
            descriptors: memory.into_iter().collect(),
        });
        Ok(Reply::Lane { seq, end: own, capability, shared: their_link })
    }

    /// A node has given a lane.
    pub(super) fn lane_given(
        &mut self,
        around: &mut Around<'_>,
        seq: u32,
        theirs: LaneEnd,
        capability: u128,
        shared: Option<u32>,
    ) {
        let Some(Ask { client, handle, export, mut end, .. }) = self.lanes.asks.remove(&seq) else {
            return;
        };
        match shared {
            Some(link) => end.link = link,
            None => {
                let (own, theirs) = (end.clone(), theirs.clone());
                self.lanes.links.push(LaneLink { client, own, theirs, page: None });
            }
        }
        let lane = self.lane(end, theirs, export, capability);
        around.posts.push(Post::new(client, Answer::LaneOpened { handle, lane }));
    }

    /// A node wants the lane to an export here to be over.
    pub(super) fn fence(
        &mut self,
        around: &mut Around<'_>,
        peer: u64,
        seq: u32,
        (export, channel): (u64, (u16, u32)),
    ) -> bool {
        let reached = match self.lanes.ends.get(&export) {
            Some(end) if end.page.view().fence() => {
                end.page.view().reached(usize::from(channel.0), channel.1)
            }
            Some(_) => return false,
            // It was never offered: nothing came over it.
            None => 0,
        };
        if let Some(End { exporter, link, .. }) = self.lanes.ends.remove(&export) {
            self.lanes.links.retain(|other| other.client != exporter || other.own.link != link);
        }
        self.tell(around, peer, &Reply::Fenced { seq, reached });
        true
    }

    /// As [`Cluster::fence`], later if it cannot be now.
    pub(super) fn fence_soon(
        &mut self,
        around: &mut Around<'_>,
        peer: u64,
        seq: u32,
        (export, channel): (u64, (u16, u32)),
    ) {
        if !self.fence(around, peer, seq, (export, channel)) {
            let since = Instant::now();
            self.lanes.waiting.push(Waiting { peer, seq, export, channel, since });
        }
    }

    /// A node has fenced a lane.
    pub(super) fn fenced(&mut self, around: &mut Around<'_>, seq: u32, reached: u64) {
        let Some(fence) = self.lanes.fences.remove(&seq) else { return };
        let answer = Answer::LaneFenced { seq: fence.seq, reached };
        around.posts.push(Post::new(fence.client, answer));
    }

    /// Does what waited: for exporters that had to finish a packet, and for a moment to pass.
    pub(super) fn settle_lanes(&mut self, around: &mut Around<'_>) {
        self.lanes.closing.retain(|(_, page)| !page.view().fence());
        for waiting in std::mem::take(&mut self.lanes.waiting) {
            let Waiting { peer, seq, export, channel, since } = waiting;
            if self.fence(around, peer, seq, (export, channel)) {
                continue;
            }
            if since.elapsed() > FENCE_PATIENCE {
                let why = Refusal::Unreachable;
                self.tell(around, peer, &Reply::Refused { seq, why });
            } else {
                self.lanes.waiting.push(waiting);
            }
        }
        let now = Instant::now();
        let (due, later) =
            std::mem::take(&mut self.lanes.again).into_iter().partition(|(at, ..)| *at <= now);
        self.lanes.again = later;
        let due: Vec<(Instant, ClientKey, u64)> = due;
        due.into_iter().for_each(|(_, client, handle)| self.open_lane(around, client, handle));
    }

    /// The node that an import of a process leads to, and the import's name there.
    fn away(&self, client: ClientKey, handle: u64) -> Option<(u64, u64)> {
        let away = self.aways.get(handle).filter(|away| away.client == client)?;
        Some((self.peer_of(away.link)?, away.export))
    }

    /// A process's end of a new link; the process gets its sockets with the first.
    fn seat(&mut self, around: &mut Around<'_>, key: ClientKey) -> Option<LaneEnd> {
        let client = around.clients.get_mut(key).filter(|client| client.hosts_lanes)?;
        if client.lane_addresses.is_empty() {
            let mut sockets = Vec::new();
            for address in self.config.addresses.iter().take(MAX_DESCRIPTORS) {
                let fabric = UdpFabric::bind(SocketAddr::new(address.ip(), 0)).ok()?;
                let socket = Rc::new(Descriptor::duplicate(fabric.as_fd()).ok()?);
                sockets.push((fabric.address().ok()?, socket));
            }
            client.lane_addresses = sockets.iter().map(|(address, _)| *address).collect();
            let rings = self.lanes.shorten(key, &sockets);
            let descriptors = sockets.into_iter().map(|(_, socket)| socket).collect();
            around.posts.push(Post { to: key, answer: Answer::LaneSockets, descriptors });
            if !rings.is_empty() {
                let answer = Answer::LaneInlets;
                around.posts.push(Post { to: key, answer, descriptors: rings });
            }
        }
        let link = client.last_lane;
        client.last_lane = client.last_lane.wrapping_add(1);
        let addresses = client.lane_addresses.clone();
        Some(LaneEnd { link, secret: random_secret(), addresses })
    }

    fn lane(&self, own: LaneEnd, theirs: LaneEnd, export: u64, capability: u128) -> Box<Lane> {
        Box::new(Lane {
            link: own.link,
            peer_link: theirs.link,
            peer_addresses: theirs.addresses,
            secrets: (own.secret, theirs.secret),
            encrypted: self.config.encrypted,
            go_back_n: self.config.recovery == Recovery::GoBackN,
            max_mtu: self.max_mtu(),
            export,
            capability,
        })
    }
}

pub(super) fn random_secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for word in secret.chunks_exact_mut(8) {
        word.copy_from_slice(&random_u64().to_ne_bytes());
    }
    secret
}
