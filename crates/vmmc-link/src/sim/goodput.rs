//! How much arrives: over a wire that loses, and beside somebody else's TCP.

use std::time::Duration;

use super::memory::{Export, Exports};
use super::network::{Network, Queue, Wire};
use super::random::Random;
use super::stalls::{Stalled, Stalls};
use super::tcp::Tcp;
use super::world::{Clock, Side, World};
use crate::config::{Config, Recovery};
use crate::event::Event;
use crate::link::Link;
use crate::memory::Buffer;
use crate::protect::{KeyError, Keys};
use crate::time::Time;
use crate::wire::Binding;

/// What is transferred over what.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Decides which packets are lost.
    pub seed: u64,
    /// Bits a second of the wire.
    pub rate: f64,
    /// One way, without queueing.
    pub delay: Duration,
    /// Chance that a packet is lost.
    pub loss: f64,
    /// Bytes that the queue in front of the wire holds.
    pub queue: u64,
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
    /// Packets sent for each that was needed, less one.
    pub repeated: f64,
}

/// Sends 1 MB after 1 MB for a while and tells the goodput.
///
/// # Errors
///
/// [`KeyError`] if the cryptographic library cannot be used.
pub fn goodput(transfer: &Transfer) -> Result<Goodput, KeyError> {
    let mut world = world(transfer)?;
    let end = Time::ZERO + transfer.time;
    pump(&mut world, end);
    let placed = world.sides[1].memory.placed as f64;
    let sent = world.sides[0].link.stats().bytes_sent as f64;
    Ok(Goodput {
        bits_per_second: placed * 8.0 / transfer.time.as_secs_f64(),
        repeated: sent / placed.max(1.0) - 1.0,
    })
}

/// How a link and a TCP stream divide a bottleneck.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// Payload of the link, in bits a second.
    pub link: f64,
    /// Of the TCP stream (CUBIC), likewise.
    pub tcp: f64,
}

/// Sends as [`goodput`] does, beside a TCP stream through the same queue.
///
/// # Errors
///
/// [`KeyError`] if the cryptographic library cannot be used.
pub fn beside_tcp(transfer: &Transfer) -> Result<Beside, KeyError> {
    let mut world = world(transfer)?;
    let mut tcp = Tcp::new(0, 2 * transfer.delay);
    tcp.pump(Time::ZERO, &mut world.network.queues[0]);
    world.tcp = Some(tcp);
    pump(&mut world, Time::ZERO + transfer.time);
    let rate = |bytes: u64| bytes as f64 * 8.0 / transfer.time.as_secs_f64();
    let tcp = world.tcp.as_ref().map_or(0, |tcp| tcp.delivered);
    Ok(Beside { link: rate(world.sides[1].memory.placed), tcp: rate(tcp) })
}

fn world(transfer: &Transfer) -> Result<World, KeyError> {
    let mut network = Network::default();
    for _ in 0..2 {
        network.queues.push(Queue::new(transfer.rate / 8.0, transfer.queue));
        let mut wire = Wire::new(network.queues.len() - 1, transfer.delay);
        wire.loss = transfer.loss;
        network.wires.push(wire);
    }
    let config = Config { recovery: transfer.recovery, ..Config::default() };
    let mut sides = Vec::new();
    for side in 0..2 {
        sides.push(Side {
            link: Link::new(config.clone(), &Keys::Plaintext, Time::ZERO)?,
            memory: Exports {
                counting: true,
                exports: vec![Export::default()],
                ..Exports::default()
            },
            peer: 1 - side,
            wires: vec![side],
            clock: Clock::default(),
            stalled: transfer
                .stalls
                .map(|stalls| Stalled::new(stalls, Random::new(transfer.seed + side as u64))),
        });
    }
    Ok(World::new(network, Random::new(transfer.seed), sides))
}

/// Keeps side 0 sending until the time is over.
fn pump(world: &mut World, end: Time) {
    const LEN: u64 = 1 << 20;
    let Ok(import) = world.sides[0].link.import(Binding { export: 0, capability: 0 }) else {
        return;
    };
    let (mut given, mut complete) = (0, 0);
    loop {
        while given < complete + 64 {
            match world.sides[0].link.send(import, 0, Buffer(0), 0, LEN) {
                Ok(ticket) => given = ticket.0,
                Err(_) => return,
            }
        }
        world.transmit(0);
        if !world.step(end) {
            return;
        }
        while let Some(event) = world.event(0) {
            if let Event::Completed { through, .. } = event {
                complete = through.0;
            }
        }
        while world.event(1).is_some() {}
    }
}
