//! How much arrives: over a wire that loses, beside somebody else's TCP, and from many at a time.

use std::time::Duration;

use super::memory::{Export, Exports};
use super::network::{Network, Queue, Wire};
use super::random::Random;
use super::stalls::{Stalled, Stalls};
use super::tcp::Tcp;
use super::world::{Clock, Side, World};
use crate::config::{Config, Recovery};
use crate::event::{Event, ImportId};
use crate::link::Link;
use crate::memory::Buffer;
use crate::protect::{KeyError, Keys};
use crate::time::Time;
use crate::wire::Binding;

/// Bytes of one send or fetch.
const LEN: u64 = 1 << 20;
/// How many of them are on their way at a time.
const POSTED: u64 = 64;

/// What is transferred over what.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Decides whatever happens by chance.
    pub seed: u64,
    /// Bits a second of each path.
    pub rate: f64,
    /// Bytes that the queue in front of each path holds.
    pub queue: u64,
    /// What each direction of each path is like; [`Wire::queue`] is filled in.
    pub wire: Wire,
    /// How many paths the link has.
    pub paths: u8,
    /// Both hosts lose their processor now and then.
    pub stalls: Option<Stalls>,
    /// How lost packets are sent again.
    pub recovery: Recovery,
    /// How long is sent, in virtual time.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Goodput {
    /// Payload that was placed, in bits a second. Nothing counts twice.
    pub bits_per_second: f64,
    /// Bytes sent for each that was placed, less one: headers, and what was sent again.
    pub repeated: f64,
}

/// Sends 1 MB after 1 MB for a while and tells the goodput.
///
/// # Errors
///
/// [`KeyError`] if the cryptographic library cannot be used.
pub fn goodput(transfer: &Transfer) -> Result<Goodput, KeyError> {
    let mut world = pair(transfer)?;
    let import = import(&mut world.sides[0].link);
    pump(&mut world, Time::ZERO + transfer.time, &[(0, import)], |link, import| {
        link.send(import, 0, Buffer(0), 0, LEN)
    });
    Ok(told(transfer, world.sides[1].memory.placed, world.sides[0].link.stats().bytes_sent))
}

/// How a link and a TCP stream divide a bottleneck.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// Payload of the link, in bits a second.
    pub link: f64,
    /// Of the TCP stream (CUBIC), likewise.
    pub tcp: f64,
}

/// Sends as [`goodput`] does, beside a TCP stream through the queue of the first path. TCP's own packets are lost only where the queue is full.
///
/// # Errors
///
/// [`KeyError`] if the cryptographic library cannot be used.
pub fn beside_tcp(transfer: &Transfer) -> Result<Beside, KeyError> {
    let mut world = pair(transfer)?;
    let mut tcp = Tcp::new(0, 2 * transfer.wire.delay);
    tcp.pump(Time::ZERO, &mut world.network.queues[0]);
    world.tcp = Some(tcp);
    let import = import(&mut world.sides[0].link);
    pump(&mut world, Time::ZERO + transfer.time, &[(0, import)], |link, import| {
        link.send(import, 0, Buffer(0), 0, LEN)
    });
    let rate = |bytes: u64| bytes as f64 * 8.0 / transfer.time.as_secs_f64();
    let tcp = world.tcp.as_ref().map_or(0, |tcp| tcp.delivered);
    Ok(Beside { link: rate(world.sides[1].memory.placed), tcp: rate(tcp) })
}

/// One host fetches from `senders` others at a time, over links of one path each that share the queue to it (incast). It divides `credit` bytes among
/// its links; `None` leaves each with its own.
///
/// # Errors
///
/// [`KeyError`] if the cryptographic library cannot be used.
pub fn incast(transfer: &Transfer, senders: u8, credit: Option<u64>) -> Result<Goodput, KeyError> {
    // There: the host's own queue for what it asks. Back: the one in front of its cable.
    let queue = || Queue::new(transfer.rate / 8.0, transfer.queue);
    let network = Network { queues: vec![queue(), queue()], wires: Vec::new() };
    let mut world = World::new(network, Random::new(transfer.seed), Vec::new());
    let mut imports = Vec::new();
    for _ in 0..senders {
        let wires = world.network.wires.len();
        let index = world.sides.len();
        for queue in 0..2 {
            world.network.wires.push(Wire { queue, ..transfer.wire.clone() });
        }
        for side in 0..2 {
            let peer = index + 1 - side;
            world.sides.push(one_side(transfer, 1, peer, vec![wires + side])?);
        }
        let link = &mut world.sides[index].link;
        if let Some(credit) = credit {
            link.set_fetch_credit(credit / u64::from(senders));
        }
        imports.push((index, import(link)));
    }
    pump(&mut world, Time::ZERO + transfer.time, &imports, |link, import| {
        link.fetch(import, 0, Buffer(0), 0, LEN)
    });
    let placed = |index: &(usize, _)| world.sides[index.0].memory.placed;
    let sent = |index: &(usize, _)| world.sides[index.0 + 1].link.stats().bytes_sent;
    Ok(told(transfer, imports.iter().map(placed).sum(), imports.iter().map(sent).sum()))
}

fn told(transfer: &Transfer, placed: u64, sent: u64) -> Goodput {
    let placed = placed as f64;
    Goodput {
        bits_per_second: placed * 8.0 / transfer.time.as_secs_f64(),
        repeated: sent as f64 / placed.max(1.0) - 1.0,
    }
}

/// Two sides with a queue and a wire for each direction of each path.
fn pair(transfer: &Transfer) -> Result<World, KeyError> {
    let mut network = Network::default();
    for queue in 0..2 * usize::from(transfer.paths) {
        network.queues.push(Queue::new(transfer.rate / 8.0, transfer.queue));
        network.wires.push(Wire { queue, ..transfer.wire.clone() });
    }
    let wires = |side| (0..usize::from(transfer.paths)).map(|path| 2 * path + side).collect();
    let sides = (0..2).map(|side| one_side(transfer, transfer.paths, 1 - side, wires(side)));
    let sides = sides.collect::<Result<_, _>>()?;
    Ok(World::new(network, Random::new(transfer.seed), sides))
}

fn one_side(
    transfer: &Transfer,
    paths: u8,
    peer: usize,
    wires: Vec<usize>,
) -> Result<Side, KeyError> {
    let config = Config { recovery: transfer.recovery, paths, ..Config::default() };
    let random = Random::new(transfer.seed + peer as u64 + 1);
    Ok(Side {
        link: Link::new(config, &Keys::Plaintext, Time::ZERO)?,
        memory: Exports { counting: true, exports: vec![Export::default()], ..Exports::default() },
        peer,
        wires,
        clock: Clock::default(),
        stalled: transfer.stalls.map(|stalls| Stalled::new(stalls, random)),
    })
}

/// The first import of a fresh link.
fn import(link: &mut Link) -> ImportId {
    let binding = Binding { export: 0, capability: 0 };
    link.import(binding).unwrap_or(ImportId { channel: 0, generation: 0 })
}

/// Keeps some sides busy until the time is over; `post` gives a link one more command.
fn pump<E>(
    world: &mut World,
    end: Time,
    busy: &[(usize, ImportId)],
    post: impl Fn(&mut Link, ImportId) -> Result<crate::event::Ticket, E>,
) {
    let mut posted = vec![(0, 0); busy.len()];
    loop {
        for ((index, import), (given, complete)) in busy.iter().zip(&mut posted) {
            let before = *given;
            while *given < *complete + POSTED {
                match post(&mut world.sides[*index].link, *import) {
                    Ok(ticket) => *given = ticket.0,
                    Err(_) => return,
                }
            }
            if *given > before {
                world.transmit(*index);
            }
        }
        if !world.step(end) {
            return;
        }
        for index in 0..world.sides.len() {
            while let Some(event) = world.event(index) {
                let place = busy.iter().position(|(side, _)| *side == index);
                if let (Event::Completed { through, .. }, Some(place)) = (event, place) {
                    posted[place].1 = through.0;
                }
            }
        }
    }
}
