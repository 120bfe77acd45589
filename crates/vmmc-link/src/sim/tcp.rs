//! A kernel's TCP, as far as a queue sees it: CUBIC (RFC 9438), with selective acknowledgement and an acknowledgement a packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::network::Queue;
use crate::time::Time;

const PACKET: usize = 1500;
const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// One bulk stream that shares a queue with a link.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) queue: usize,
    /// There and back, without queueing.
    round_trip: Duration,
    /// When what becomes known of which packet: whether it arrived.
    answers: BinaryHeap<Reverse<(Time, u64, bool)>>,
    next: u64,
    window: f64,
    threshold: f64,
    before_loss: f64,
    epoch: Time,
    /// Losses of packets below belong to a window that was cut already.
    cut_at: u64,
    pub(super) delivered: u64,
}

impl Tcp {
    pub(super) fn new(queue: usize, round_trip: Duration) -> Tcp {
        Tcp {
            queue,
            round_trip,
            answers: BinaryHeap::new(),
            next: 0,
            window: 10.0,
            threshold: f64::MAX,
            before_loss: 0.0,
            epoch: Time::ZERO,
            cut_at: 0,
            delivered: 0,
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.answers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the answers that have come, and sends as much as the window lets.
    pub(super) fn pump(&mut self, now: Time, queue: &mut Queue) {
        while let Some(&Reverse((at, number, arrived))) = self.answers.peek() {
            if at > now {
                break;
            }
            self.answers.pop();
            match arrived {
                true => self.acked(now),
                false if number >= self.cut_at => self.cut(now),
                false => {}
            }
        }
        while (self.answers.len() as f64) < self.window {
            let (at, arrived) = match queue.pass(now, PACKET) {
                Some(left) => (left + self.round_trip, true),
                // Three later packets tell, about when it would have arrived.
                None => (now + self.round_trip + queue.drain(), false),
            };
            self.answers.push(Reverse((at, self.next, arrived)));
            self.next += 1;
        }
    }

    fn acked(&mut self, now: Time) {
        self.delivered += PACKET as u64;
        if self.window < self.threshold {
            self.window += 1.0;
            return;
        }
        let elapsed = (now - self.epoch).as_secs_f64();
        let k = (self.before_loss * (1.0 - BETA) / C).cbrt();
        let cubic = C * (elapsed - k).powi(3) + self.before_loss;
        // Where Reno would be faster, as fast as Reno.
        let reno = 3.0 * (1.0 - BETA) / (1.0 + BETA) / self.window;
        self.window += ((cubic - self.window) / self.window).clamp(reno, 0.5);
    }

    fn cut(&mut self, now: Time) {
        self.before_loss = self.window;
        self.window = (self.window * BETA).max(2.0);
        self.threshold = self.window;
        self.epoch = now;
        self.cut_at = self.next;
    }
}
