//! How much may be in flight on a path: congestion control by delay, in the manner of Swift (SIGCOMM 2020).
//!
//! One decision is taken per round trip, from the *smallest* queueing delay seen in it (so jitter and reordering do not count)
//! and from the share of packets lost (so loss by noise does not count either):
//!
//! - below the target delay the window grows, above it it shrinks in proportion to the excess;
//! - more than an eighth lost means a queue too short to see: the window shrinks by what did not fit.
//!
//! A sender that yields to delay starves beside one that fills queues, such as kernel TCP. If the delay stays high although the
//! window has shrunk, somebody else makes it: then the window grows by a quarter a round up to the first loss, as a newcomer does, and from there
//! by a packet in two rounds, and shrinks by 0.7 at a loss, which is what CUBIC does where it is fair to Reno. Every [`COMPETE_ROUNDS`] the window is closed for two rounds; if the queue empties, the
//! other one has gone.

use std::time::Duration;

use crate::time::Time;

/// Share of a round's bytes that may be lost without the window's shrinking.
const TOLERATED_LOSS: f64 = 0.125;
/// A round of fewer packets says nothing about loss.
const JUDGED_PACKETS: f64 = 16.0;
/// Rounds of too much delay in a row that betray a competitor.
const BETRAYED_AFTER: u32 = 16;
const COMPETE_ROUNDS: u32 = 256;
/// Rounds well below the target before growth gets faster.
const PATIENCE: u32 = 5;
/// The smallest delay is remembered for one to two of these.
const BASE_EPOCH: Duration = Duration::from_secs(10);
const INITIAL_PACKETS: f64 = 32.0;
/// Below one packet, pacing alone holds back.
const MIN_PACKETS: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Congestion {
    /// Bytes.
    window: f64,
    max_window: f64,
    packet: f64,
    target: Duration,
    mode: Mode,
    base: Base,
    round: Round,
    /// The decision taken shows only after another round.
    settling: bool,
    /// Rounds in a row well below the target.
    calm: u32,
    /// Rounds in a row far above it, and the window before them.
    pressed: u32,
    window_before: f64,
    /// Competing has begun, and no loss has shown yet where the limit is.
    eager: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Startup,
    Delay,
    Compete {
        rounds: u32,
    },
    /// The window is closed to see whether the queue is ours.
    Drain {
        rounds: u32,
        window: f64,
    },
}

/// The smallest round trip of late: of this epoch and the one before.
#[derive(Debug)]
struct Base {
    now: Duration,
    before: Duration,
    since: Time,
}

#[derive(Debug)]
struct Round {
    /// The round ends with the acknowledgement of this packet or a later one.
    last: u64,
    delay: Duration,
    acked: f64,
    lost: f64,
    /// The window, not the program, held back.
    limited: bool,
}

impl Congestion {
    pub(crate) fn new(packet: u16, max_window: u64, target: Duration) -> Congestion {
        let packet = f64::from(packet);
        Congestion {
            window: INITIAL_PACKETS * packet,
            max_window: max_window as f64,
            packet,
            target,
            mode: Mode::Startup,
            base: Base { now: Duration::MAX, before: Duration::MAX, since: Time::ZERO },
            round: Round::new(0),
            settling: false,
            calm: 0,
            pressed: 0,
            window_before: 0.0,
            eager: false,
        }
    }

    /// Bytes that may be in flight. One packet always may if none is.
    pub(crate) fn window(&self) -> u64 {
        self.window as u64
    }

    /// Bytes a second.
    pub(crate) fn rate(&self, smoothed: Duration) -> f64 {
        let gain = if self.mode == Mode::Startup { 2.0 } else { 1.25 };
        gain * self.window / smoothed.as_secs_f64().max(1e-6)
    }

    pub(crate) fn set_packet(&mut self, packet: u16) {
        self.packet = f64::from(packet);
    }

    /// The window, not the program, is what holds back.
    pub(crate) fn limited(&mut self) {
        self.round.limited = true;
    }

    pub(crate) fn lost(&mut self, bytes: u32) {
        self.round.lost += f64::from(bytes);
    }

    /// Takes the acknowledgement of `bytes`, of which `largest` is the newest packet; `next` will be sent next.
    pub(crate) fn acked(&mut self, now: Time, bytes: u64, rtt: Duration, largest: u64, next: u64) {
        self.base.sample(now, rtt);
        self.round.delay = self.round.delay.min(rtt);
        self.round.acked += bytes as f64;
        if self.mode == Mode::Startup && self.round.limited {
            self.window = (self.window + bytes as f64).min(self.max_window);
        }
        if largest >= self.round.last {
            let ended = std::mem::replace(&mut self.round, Round::new(next));
            self.decide(&ended);
            let least = MIN_PACKETS * self.packet;
            self.window = self.window.clamp(least, self.max_window.max(least));
        }
    }

    /// The path was dead: what was known of it is forgotten.
    pub(crate) fn reset(&mut self, next: u64) {
        self.window = INITIAL_PACKETS * self.packet / 4.0;
        self.mode = Mode::Startup;
        self.round = Round::new(next);
        self.base = Base { now: Duration::MAX, before: Duration::MAX, since: Time::ZERO };
        (self.settling, self.calm, self.pressed) = (false, 0, 0);
    }

    fn decide(&mut self, round: &Round) {
        let base = self.base.smallest();
        let queueing = round.delay.saturating_sub(base);
        let target = self.target.max(base / 4);
        let lost = match round.lost + round.acked {
            bytes if bytes >= JUDGED_PACKETS * self.packet => round.lost / bytes,
            _ => 0.0,
        };
        let overflowing = lost > TOLERATED_LOSS;
        let share = |part: Duration| part.as_secs_f64() / (base + queueing).as_secs_f64().max(1e-9);
        match self.mode {
            Mode::Startup if overflowing || queueing > target => {
                self.mode = Mode::Delay;
                self.window *= if overflowing { 1.0 - lost } else { share(base + target).max(0.5) };
                self.settling = true;
            }
            Mode::Startup => {}
            Mode::Delay => {
                self.watch_for_competitor(queueing > 2 * target);
                if std::mem::take(&mut self.settling) {
                    return;
                }
                if overflowing {
                    self.window *= 1.0 - lost / 2.0;
                    self.settling = true;
                } else if queueing > target {
                    self.window *= (1.0 - 0.8 * share(queueing - target)).max(0.5);
                    self.settling = true;
                    self.calm = 0;
                } else if round.limited {
                    self.calm = if queueing < target / 2 { self.calm + 1 } else { 0 };
                    let faster = if self.calm > PATIENCE { self.window / 8.0 } else { 0.0 };
                    self.window += self.packet.max(faster);
                }
            }
            Mode::Compete { .. } if queueing <= target => self.mode = Mode::Delay,
            Mode::Compete { rounds } if rounds >= COMPETE_ROUNDS => {
                self.mode = Mode::Drain { rounds: 0, window: self.window };
                self.window = 2.0 * self.packet;
            }
            Mode::Compete { rounds } => {
                self.mode = Mode::Compete { rounds: rounds + 1 };
                if std::mem::take(&mut self.settling) {
                    return;
                }
                if round.lost > 0.0 {
                    self.window *= 0.7;
                    self.settling = true;
                    self.eager = false;
                } else if round.limited && self.eager {
                    self.window *= 1.25;
                } else if round.limited {
                    self.window += self.packet * 0.53;
                }
            }
            Mode::Drain { rounds: 0, window } => self.mode = Mode::Drain { rounds: 1, window },
            Mode::Drain { window, .. } => {
                let alone = queueing <= target;
                self.mode = if alone { Mode::Delay } else { Mode::Compete { rounds: 0 } };
                self.window = if alone { window / 2.0 } else { window };
                self.settling = true;
            }
        }
    }

    fn watch_for_competitor(&mut self, pressed: bool) {
        if !pressed {
            self.pressed = 0;
            return;
        }
        if self.pressed == 0 {
            self.window_before = self.window;
        }
        self.pressed += 1;
        if self.pressed >= BETRAYED_AFTER {
            self.pressed = 0;
            self.mode = Mode::Compete { rounds: 0 };
            self.eager = true;
            self.window = self.window.max(self.window_before);
            self.settling = true;
        }
    }
}

impl Round {
    fn new(last: u64) -> Round {
        Round { last, delay: Duration::MAX, acked: 0.0, lost: 0.0, limited: false }
    }
}

impl Base {
    fn sample(&mut self, now: Time, rtt: Duration) {
        if now - self.since > BASE_EPOCH {
            self.before = std::mem::replace(&mut self.now, Duration::MAX);
            self.since = now;
        }
        self.now = self.now.min(rtt);
    }

    fn smallest(&self) -> Duration {
        self.now.min(self.before)
    }
}
