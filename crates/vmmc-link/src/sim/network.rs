//! Wires with delay and faults, and the queues in front of them.

use std::time::Duration;

use super::random::Random;
use crate::time::Time;

/// Wires and queues. Several wires may share a queue: that is a bottleneck.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The queues.
    pub queues: Vec<Queue>,
    /// The wires, each one direction.
    pub wires: Vec<Wire>,
}

/// A drop-tail queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Bytes a second that leave it.
    pub rate: f64,
    /// Bytes that it holds.
    pub limit: u64,
    free_at: Time,
}

/// One direction of a path.
#[derive(Debug, Clone)]
pub struct Wire {
    /// The queue in front of it.
    pub queue: usize,
    /// How long a datagram takes behind the queue.
    pub delay: Duration,
    /// Up to this much more, by chance: datagrams overtake each other.
    pub jitter: Duration,
    /// Chance that a datagram is lost.
    pub loss: f64,
    /// Losses that come in bursts.
    pub burst: Option<Burst>,
    /// Chance that a datagram comes twice, the second time up to 100 delays later.
    pub duplicate: f64,
    /// Chance that bits of a datagram turn.
    pub corrupt: f64,
    /// Larger datagrams vanish.
    pub mtu: usize,
    /// From this time on, datagrams larger than that vanish.
    pub black_hole: Option<(Time, usize)>,
    /// When nothing gets through.
    pub cuts: Vec<(Time, Time)>,
    pub(super) bad: bool,
}

/// The Gilbert–Elliott model: a good state without loss and a bad one.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// Chance, per datagram, that the good state ends.
    pub begin: f64,
    /// Chance, per datagram, that the bad state ends.
    pub end: f64,
    /// Chance of loss in the bad state.
    pub loss: f64,
}

impl Queue {
    /// A queue that lets `rate` bytes a second through and holds `limit` bytes.
    pub fn new(rate: f64, limit: u64) -> Queue {
        Queue { rate, limit, free_at: Time::ZERO }
    }

    /// How long a full queue takes to empty.
    pub(super) fn drain(&self) -> Duration {
        Duration::from_secs_f64(self.limit as f64 / self.rate)
    }

    /// When the last bit of a datagram leaves; `None` if it does not fit.
    pub(super) fn pass(&mut self, now: Time, len: usize) -> Option<Time> {
        let waiting = (self.free_at - now).as_secs_f64() * self.rate;
        if waiting > self.limit as f64 {
            return None;
        }
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(len as f64 / self.rate);
        Some(self.free_at)
    }
}

impl Wire {
    /// A wire without faults.
    pub fn new(queue: usize, delay: Duration) -> Wire {
        Wire {
            queue,
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: None,
            duplicate: 0.0,
            corrupt: 0.0,
            mtu: usize::MAX,
            black_hole: None,
            cuts: Vec::new(),
            bad: false,
        }
    }

    fn swallows(&mut self, now: Time, len: usize, random: &mut Random) -> bool {
        if let Some(burst) = self.burst {
            self.bad =
                if self.bad { !random.chance(burst.end) } else { random.chance(burst.begin) };
            if self.bad && random.chance(burst.loss) {
                return true;
            }
        }
        len > self.mtu
            || self.black_hole.is_some_and(|(from, most)| now >= from && len > most)
            || self.cuts.iter().any(|&(from, to)| from <= now && now < to)
            || random.chance(self.loss)
    }
}

impl Network {
    /// Sends a datagram over a wire; `arrive` is called for each copy that comes out, with the time and the bytes, perhaps damaged.
    pub(super) fn offer(
        &mut self,
        now: Time,
        wire: usize,
        datagram: &[u8],
        random: &mut Random,
        mut arrive: impl FnMut(Time, &[u8], bool),
    ) {
        let wire = &mut self.wires[wire];
        let Some(left) = self.queues[wire.queue].pass(now, datagram.len()) else { return };
        if wire.swallows(now, datagram.len(), random) {
            return;
        }
        let damaged = random.chance(wire.corrupt);
        let jitter = |random: &mut Random| {
            Duration::from_nanos(random.below(wire.jitter.as_nanos() as u64 + 1))
        };
        let at = left + wire.delay + jitter(random);
        arrive(at, datagram, damaged);
        if random.chance(wire.duplicate) {
            let later = Duration::from_nanos(random.below(100 * wire.delay.as_nanos() as u64 + 1));
            arrive(at + later, datagram, false);
        }
    }
}
