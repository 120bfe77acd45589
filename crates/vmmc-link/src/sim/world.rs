//! Links over a network, and the passing of virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::memory::Exports;
use super::network::Network;
use super::random::Random;
use super::stalls::Stalled;
use super::tcp::Tcp;
use crate::event::Event;
use crate::link::Link;
use crate::time::Time;

/// Datagrams built at a time.
const BATCH: usize = 16;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) network: Network,
    pub(super) random: Random,
    pub(super) sides: Vec<Side>,
    /// Somebody else's stream.
    pub(super) tcp: Option<Tcp>,
    flights: BinaryHeap<Reverse<(Time, u64, usize)>>,
    /// Datagrams on their way, by their place in `flights`, and places that are free.
    datagrams: Vec<(usize, Vec<u8>)>,
    free: Vec<usize>,
    order: u64,
    buffer: Vec<u8>,
}

/// One side of a link.
pub(super) struct Side {
    pub(super) link: Link,
    pub(super) memory: Exports,
    /// The side at the other end.
    pub(super) peer: usize,
    /// The wire of each path.
    pub(super) wires: Vec<usize>,
    /// It is busy elsewhere now and then.
    pub(super) stalled: Option<Stalled>,
    pub(super) clock: Clock,
}

/// What a side believes to be the time. A clock may jump: forward when a machine slept, backward when it was moved to another.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Ahead of the world's.
    pub(super) ahead: Duration,
    /// When it jumps, and how far ahead it is then.
    pub(super) jump: Option<(Time, Duration)>,
}

impl Clock {
    fn at(&mut self, now: Time) -> Time {
        if let Some((_, ahead)) = self.jump.take_if(|(at, _)| *at <= now) {
            self.ahead = ahead;
        }
        now + self.ahead
    }

    /// When the world's time is what this one will then show.
    fn when(&self, time: Time) -> Time {
        Time::ZERO + ((time - Time::ZERO).saturating_sub(self.ahead))
    }
}

impl Side {
    /// When it gets to what could be done at `at`, which is now.
    fn awake_at(&mut self, at: Time) -> Time {
        self.stalled.as_mut().map_or(at, |stalled| stalled.awake_at(at))
    }
}

impl World {
    pub(super) fn new(network: Network, random: Random, sides: Vec<Side>) -> World {
        World {
            now: Time::ZERO,
            network,
            random,
            sides,
            tcp: None,
            flights: BinaryHeap::new(),
            datagrams: Vec::new(),
            free: Vec::new(),
            order: 0,
            buffer: vec![0; BATCH * 65_536],
        }
    }

    /// Lets a side send whatever it may send now.
    pub(super) fn transmit(&mut self, index: usize) {
        let side = &mut self.sides[index];
        if side.awake_at(self.now) > self.now {
            return;
        }
        let clock = side.clock.at(self.now);
        while let Some(sent) =
            side.link.poll_transmit(clock, &mut self.buffer, BATCH, &mut side.memory)
        {
            let wire = side.wires[usize::from(sent.path)];
            for datagram in self.buffer[..sent.len].chunks(sent.segment) {
                let (random, network) = (&mut self.random, &mut self.network);
                let mut flip = random.clone();
                let (flights, datagrams, free) =
                    (&mut self.flights, &mut self.datagrams, &mut self.free);
                let (order, to) = (&mut self.order, side.peer);
                network.offer(self.now, wire, datagram, random, |at, bytes, damaged| {
                    let place = free.pop().unwrap_or_else(|| {
                        datagrams.push((0, Vec::new()));
                        datagrams.len() - 1
                    });
                    let (peer, copy) = &mut datagrams[place];
                    *peer = to;
                    copy.clear();
                    copy.extend_from_slice(bytes);
                    if damaged {
                        damage(copy, &mut flip);
                    }
                    *order += 1;
                    flights.push(Reverse((at, *order, place)));
                });
            }
        }
    }

    /// Goes on to the next thing that happens, and lets it happen. `false` if nothing will, or not before `until`.
    pub(super) fn step(&mut self, until: Time) -> bool {
        let arrival = self.flights.peek().map(|Reverse((at, ..))| *at);
        let now = self.now;
        let due = |side: &mut Side| {
            let due = side.clock.when(side.link.poll_timeout()?);
            Some(if due <= now { side.awake_at(now) } else { due })
        };
        let timer = self.sides.iter_mut().filter_map(due).min();
        let tcp = self.tcp.as_ref().and_then(Tcp::deadline);
        let Some(next) =
            arrival.into_iter().chain(timer).chain(tcp).min().filter(|&next| next <= until)
        else {
            return false;
        };
        self.now = self.now.max(next);
        let now = self.now;
        if let Some(tcp) = &mut self.tcp {
            tcp.pump(now, &mut self.network.queues[tcp.queue]);
        }
        let mut touched = 0_u64;
        while let Some(&Reverse((at, _, place))) = self.flights.peek() {
            if at > now {
                break;
            }
            self.flights.pop();
            let (to, datagram) = &mut self.datagrams[place];
            let side = &mut self.sides[*to];
            let awake = side.awake_at(now);
            if awake > now {
                self.order += 1;
                self.flights.push(Reverse((awake, self.order, place)));
                continue;
            }
            // Why a datagram was dropped does not matter here: what matters is that nothing is missing in the end.
            let _ = side.link.handle_datagram(side.clock.at(now), datagram, &mut side.memory);
            touched |= 1 << (*to % 64);
            self.free.push(place);
        }
        for (index, side) in self.sides.iter_mut().enumerate() {
            let clock = side.clock.at(now);
            if side.link.poll_timeout().is_some_and(|at| at <= clock) && side.awake_at(now) <= now {
                side.link.handle_timeout(clock);
                touched |= 1 << (index % 64);
            }
        }
        for index in 0..self.sides.len() {
            if touched & (1 << (index % 64)) != 0 {
                self.transmit(index);
            }
        }
        true
    }

    pub(super) fn event(&mut self, index: usize) -> Option<Event> {
        self.sides[index].link.poll_event()
    }
}

fn damage(datagram: &mut Vec<u8>, random: &mut Random) {
    match random.below(4) {
        0 => datagram.truncate(random.below(datagram.len() as u64) as usize),
        1 => datagram.push(0),
        _ => {
            let at = random.below(datagram.len() as u64) as usize;
            datagram[at] ^= 1 << random.below(8);
        }
    }
}
