//! How much may be in flight on a path: congestion control by delay, in the manner of Swift (SIGCOMM 2020), that holds its own beside senders who
//! know only loss.
//!
//! Growing is decided once a round trip, shrinking once in [`INTERVAL`], both by the *smallest* queueing delay seen meanwhile: a queue that stands
//! delays every packet, while jitter, reordering, and hosts whose processor is busy elsewhere delay only some (CoDel, RFC 8289). Loss counts by its
//! share, so noise on the wire does not matter:
//!
//! - below the target delay the window grows; a queue that stands above it shrinks the window in proportion to the excess;
//! - more than an eighth lost means a queue too short to see: the window shrinks by what did not fit.
//!
//! A sender that yields to delay starves beside one that fills queues, such as kernel TCP, and on a host that is always busy. If the delay stays
//! although the window has shrunk, it is not this window's doing: then the window competes. It grows by a quarter a round up to the first loss, as a
//! newcomer does, and from there by CUBIC (RFC 9438), which is what Linux does. Every [`COMPETE_ROUNDS`] the window is closed for two rounds; if the
//! delay goes, so has the other one.

use std::time::Duration;

use crate::time::Time;

/// Share of a round's bytes that may be lost without the window's shrinking.
const TOLERATED_LOSS: f64 = 0.125;
/// Fewer packets say nothing about loss: as many rounds are taken together as it takes.
const JUDGED_PACKETS: f64 = 16.0;
/// A queue stands when no packet got past it for so long: longer than a scheduler takes a processor away.
const INTERVAL: Duration = Duration::from_millis(10);
/// Loss beside a competitor is judged in so many packets; it counts if it is so many times what is usual.
const NOISE_PACKETS: f64 = 256.0;
const UNUSUAL: f64 = 3.0;
const LITTLE_LOSS: f64 = 0.006;
/// A window that grew by a quarter loses at least so much where the queue is full.
const FULL_LOSS: f64 = 0.08;
/// A window that reached so many times the last limit without loss has a new one.
const OUTGROWN: f64 = 3.0;
/// Times in a row that shrinking has left the delay as it was, or too long after all, which betrays a competitor.
const BETRAYED_AFTER: u32 = 2;
const PRESSED_AFTER: u32 = 4;
/// A window that shrank by more than this part, but a delay that did by less than that one: it is not ours.
const SHRANK: f64 = 0.8;
const STAYED: f64 = 0.85;
/// For so long a competitor that seemed to have gone is remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
const COMPETE_ROUNDS: u32 = 256;
/// Rounds without a queue after which there is nobody to compete with.
const ALONE_AFTER: u32 = 16;
/// Rounds well below the target before growth gets faster.
const PATIENCE: u32 = 5;
/// The smallest delay is remembered for one to two of these.
const BASE_EPOCH: Duration = Duration::from_secs(10);
const INITIAL_PACKETS: f64 = 32.0;
/// Delay alone shrinks the window no further. If that is too much for all senders together, it shows as loss.
const LEAST_BY_DELAY: f64 = 8.0;
/// Below one packet, pacing alone holds back.
const LEAST_BY_LOSS: f64 = 0.25;

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
    interval: Interval,
    /// The decision taken shows only after another round.
    settling: bool,
    /// Rounds well below the target of late; those above count back.
    calm: u32,
    recent: Losses,
    noise: Noise,
    /// What the last shrinking was to remedy.
    remedied: Option<Remedied>,
    /// The competitor of late, and when he seemed to have gone.
    rival: Option<(Compete, Time)>,
}

/// Windows shrunk for a delay that stays.
#[derive(Debug, Clone, Copy)]
struct Remedied {
    /// The window before the first of them.
    window: f64,
    /// The window before the last of them, and the round trip that it was to shorten.
    last: f64,
    round_trip: Duration,
    /// How many in a row were of no use, and how many there were in all.
    useless: u32,
    times: u32,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Startup,
    Delay,
    Compete(Compete),
    /// The window is closed to see whether the queue is ours.
    Drain {
        rounds: u32,
        compete: Compete,
        window: f64,
    },
}

/// Competing by loss: CUBIC. Windows are in packets, times in seconds.
#[derive(Debug, Clone, Copy)]
struct Compete {
    rounds: u32,
    /// Rounds in a row without a queue.
    empty: u32,
    /// No loss has shown yet where the limit is.
    eager: bool,
    before_loss: f64,
    /// What Reno's window would be.
    reno: f64,
    since: Time,
}

/// What the path has shown of late that is its own: in this epoch and the one before.
#[derive(Debug)]
struct Base {
    now: Shown,
    before: Shown,
    since: Time,
    /// Bytes that got through since a rate was last taken, and when that was.
    passed: (u64, Time),
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    /// The smallest round trip.
    round_trip: Duration,
    /// The greatest rate over an [`INTERVAL`], in bytes a second.
    rate: u64,
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

/// Bytes acknowledged and lost since the last judgement.
#[derive(Debug, Default)]
struct Losses {
    acked: f64,
    lost: f64,
}

/// The loss that the wire makes by itself: about the same at any time and window.
#[derive(Debug, Default)]
struct Noise {
    /// Share of bytes.
    usual: f64,
    recent: Losses,
}

/// The smallest round trip since the last judgement.
#[derive(Debug)]
struct Interval {
    delay: Duration,
    since: Time,
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
            base: Base {
                now: Shown::NOTHING,
                before: Shown::NOTHING,
                since: Time::ZERO,
                passed: (0, Time::ZERO),
            },
            round: Round::new(0),
            interval: Interval { delay: Duration::MAX, since: Time::ZERO },
            settling: false,
            calm: 0,
            recent: Losses::default(),
            noise: Noise::default(),
            remedied: None,
            rival: None,
        }
    }

    /// Bytes that may be in flight. One packet always may if none is.
    pub(crate) fn window(&self) -> u64 {
        self.window as u64
    }

    pub(crate) fn least_round_trip(&self) -> Option<Duration> {
        Some(self.base.smallest()).filter(|least| *least != Duration::MAX)
    }

    /// The most that got through of late, in bytes a second; 0: not known yet.
    pub(crate) fn capacity(&self) -> u64 {
        self.base.now.rate.max(self.base.before.rate)
    }

    pub(crate) fn is_competing(&self) -> bool {
        matches!(self.mode, Mode::Compete(_) | Mode::Drain { .. })
    }

    /// Bytes that may go in the time of [`Congestion::paced_round_trip`].
    pub(crate) fn paced_window(&self) -> f64 {
        let gain = if matches!(self.mode, Mode::Startup) { 2.0 } else { 1.25 };
        gain * self.window
    }

    /// The round trip, as far as it is the wire's doing: what takes longer than the queue may is a busy host's.
    pub(crate) fn paced_round_trip(&self, smoothed: Duration) -> Duration {
        let base = self.base.smallest();
        match self.mode {
            Mode::Startup | Mode::Delay => smoothed.min(base.saturating_add(self.target_for(base))),
            Mode::Compete(_) | Mode::Drain { .. } => smoothed,
        }
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
        self.base.sample(now, rtt, bytes, !self.is_competing());
        self.round.delay = self.round.delay.min(rtt);
        self.round.acked += bytes as f64;
        if matches!(self.mode, Mode::Startup) && self.round.limited {
            self.window = (self.window + bytes as f64).min(self.max_window);
        }
        if largest >= self.round.last {
            let ended = std::mem::replace(&mut self.round, Round::new(next));
            self.decide(now, &ended);
            let least = LEAST_BY_LOSS * self.packet;
            self.window = self.window.clamp(least, self.max_window.max(least));
        }
    }

    /// The path was dead: what was known of it is forgotten.
    pub(crate) fn reset(&mut self, next: u64) {
        let fresh = Congestion::new(self.packet as u16, self.max_window as u64, self.target);
        let window = INITIAL_PACKETS * self.packet / 4.0;
        *self = Congestion { window, round: Round::new(next), ..fresh };
    }

    fn decide(&mut self, now: Time, round: &Round) {
        let base = self.base.smallest();
        let queueing = round.delay.saturating_sub(base);
        let target = self.target_for(base);
        let standing =
            self.interval.judge(now, round.delay).map(|delay| delay.saturating_sub(base));
        let lost = self.recent.share(round, JUDGED_PACKETS * self.packet).unwrap_or(0.0);
        let overflowing = lost > TOLERATED_LOSS;
        let unusual = self.noise.is_unusual(round, self.packet);
        let full = lost > FULL_LOSS.max(UNUSUAL * self.noise.usual);
        let share = |part: Duration, whole: Duration| {
            part.as_secs_f64() / (base + whole).as_secs_f64().max(1e-9)
        };
        match &mut self.mode {
            Mode::Startup if overflowing || queueing > target => {
                self.mode = Mode::Delay;
                self.window *=
                    if overflowing { 1.0 - lost } else { share(base + target, queueing).max(0.5) };
                self.settling = true;
            }
            Mode::Startup => {}
            Mode::Delay => {
                if let Some(standing) = standing
                    && let Some(window) = self.is_betrayed(base + standing, standing > target)
                {
                    return self.compete(now, window);
                }
                if std::mem::take(&mut self.settling) {
                    return;
                }
                if overflowing {
                    self.window *= 1.0 - lost / 2.0;
                    self.settling = true;
                } else if let Some(standing) = standing.filter(|standing| *standing > target) {
                    let kept = (1.0 - 0.8 * share(standing - target, standing)).max(0.5);
                    let least = (LEAST_BY_DELAY * self.packet).min(self.window);
                    let first = Remedied {
                        window: self.window,
                        last: 0.0,
                        round_trip: Duration::ZERO,
                        useless: 0,
                        times: 0,
                    };
                    let before = self.remedied.unwrap_or(first);
                    self.remedied =
                        Some(Remedied { last: self.window, round_trip: base + standing, ..before });
                    self.window = (self.window * kept).max(least);
                    self.settling = true;
                    self.calm = 0;
                } else if queueing > target {
                    self.calm /= 2;
                } else if round.limited {
                    self.calm = if queueing < target / 2 { self.calm + 1 } else { self.calm / 2 };
                    let faster = if self.calm > PATIENCE { self.window / 8.0 } else { 0.0 };
                    self.window += self.packet.max(faster);
                }
            }
            Mode::Compete(compete) => {
                compete.rounds += 1;
                compete.empty = if queueing <= target { compete.empty + 1 } else { 0 };
                if compete.empty >= ALONE_AFTER {
                    self.rival = Some((*compete, now));
                    self.mode = Mode::Delay;
                } else if compete.rounds >= COMPETE_ROUNDS {
                    let compete = Compete { rounds: 0, ..*compete };
                    self.mode = Mode::Drain { rounds: 0, compete, window: self.window };
                    self.window = 2.0 * self.packet;
                } else if !std::mem::take(&mut self.settling) {
                    let packets = self.window / self.packet;
                    let is_limit = if compete.eager { full } else { unusual };
                    if is_limit {
                        self.window = compete.lost(now, packets) * self.packet;
                        self.settling = true;
                    } else if round.limited {
                        self.window = compete.grown(now, packets) * self.packet;
                    }
                }
            }
            Mode::Drain { rounds, .. } if *rounds == 0 => *rounds = 1,
            Mode::Drain { window, compete, .. } => {
                let (window, compete) = (*window, *compete);
                let alone = queueing <= target;
                self.rival = Some((compete, now));
                self.mode = if alone { Mode::Delay } else { Mode::Compete(compete) };
                self.window = if alone { window / 2.0 } else { window };
                self.settling = true;
            }
        }
    }

    fn target_for(&self, base: Duration) -> Duration {
        self.target.max(base / 8)
    }

    /// Whether it is of no use to shrink: the window to go back to.
    fn is_betrayed(&mut self, round_trip: Duration, too_long: bool) -> Option<f64> {
        let remedied = self.remedied.as_mut().filter(|_| too_long);
        let Some(remedied) = remedied else {
            self.remedied = None;
            return None;
        };
        let stayed = round_trip > remedied.round_trip.mul_f64(STAYED);
        let shrank = self.window < SHRANK * remedied.last;
        remedied.times += 1;
        remedied.useless = if stayed && shrank { remedied.useless + 1 } else { 0 };
        let betrayed = remedied.useless >= BETRAYED_AFTER || remedied.times >= PRESSED_AFTER;
        betrayed.then_some(remedied.window)
    }

    fn compete(&mut self, now: Time, window: f64) {
        self.window = self.window.max(window);
        (self.remedied, self.settling) = (None, true);
        let known = self.rival.filter(|(_, gone)| now - *gone < REMEMBERED);
        let packets = self.window / self.packet;
        self.mode = Mode::Compete(match known {
            Some((rival, _)) => Compete { rounds: 0, empty: 0, reno: packets, since: now, ..rival },
            None => Compete {
                rounds: 0,
                empty: 0,
                eager: true,
                before_loss: 0.0,
                reno: packets,
                since: now,
            },
        });
    }
}

impl Compete {
    const BETA: f64 = 0.7;
    const C: f64 = 0.4;

    /// The window after a loss.
    fn lost(&mut self, now: Time, window: f64) -> f64 {
        // Whoever loses before reaching the last limit makes room for a newcomer.
        let room = if window < self.before_loss { (1.0 + Self::BETA) / 2.0 } else { 1.0 };
        self.before_loss = window * room;
        self.since = now;
        self.eager = false;
        self.reno = window * Self::BETA;
        self.reno
    }

    /// The window after a round without loss.
    fn grown(&mut self, now: Time, window: f64) -> f64 {
        self.eager |= window > OUTGROWN * self.before_loss;
        if self.eager {
            return window * 1.25;
        }
        let k = (self.before_loss * (1.0 - Self::BETA) / Self::C).cbrt();
        let cubic = Self::C * ((now - self.since).as_secs_f64() - k).powi(3) + self.before_loss;
        self.reno += 3.0 * (1.0 - Self::BETA) / (1.0 + Self::BETA);
        cubic.max(self.reno).clamp(window, 1.5 * window)
    }
}

impl Noise {
    /// Takes a round; whether so much was lost of late that it must be the window's doing.
    fn is_unusual(&mut self, round: &Round, packet: f64) -> bool {
        let Some(share) = self.recent.share(round, NOISE_PACKETS * packet) else { return false };
        // So little may as well be what competitors cause.
        let usual = if self.usual < LITTLE_LOSS { 0.0 } else { self.usual };
        let unusual = share > UNUSUAL * usual;
        // A queue that overflowed once is not usual.
        let counted = share.min(UNUSUAL * self.usual + LITTLE_LOSS / 4.0);
        self.usual += (counted - self.usual) / 16.0;
        unusual
    }
}

impl Losses {
    /// Takes a round; what share was lost, once there are `enough` bytes to tell.
    fn share(&mut self, round: &Round, enough: f64) -> Option<f64> {
        self.acked += round.acked;
        self.lost += round.lost;
        let all = self.acked + self.lost;
        (all >= enough).then(|| std::mem::take(self).lost / all)
    }
}

impl Interval {
    /// Takes the smallest round trip of a round; that of an interval that is over.
    fn judge(&mut self, now: Time, delay: Duration) -> Option<Duration> {
        self.delay = self.delay.min(delay);
        (now - self.since >= INTERVAL).then(|| {
            self.since = now;
            std::mem::replace(&mut self.delay, Duration::MAX)
        })
    }
}

impl Round {
    fn new(last: u64) -> Round {
        Round { last, delay: Duration::MAX, acked: 0.0, lost: 0.0, limited: false }
    }
}

impl Shown {
    const NOTHING: Self = Self { round_trip: Duration::MAX, rate: 0 };
}

impl Base {
    /// `aging`: what was seen long ago no longer counts.
    fn sample(&mut self, now: Time, rtt: Duration, bytes: u64, aging: bool) {
        if aging && now - self.since > BASE_EPOCH {
            self.before = std::mem::replace(&mut self.now, Shown::NOTHING);
            self.since = now;
        }
        self.now.round_trip = self.now.round_trip.min(rtt);
        self.passed.0 += bytes;
        let took = now - self.passed.1;
        if took >= INTERVAL {
            let (passed, _) = std::mem::replace(&mut self.passed, (0, now));
            self.now.rate = self.now.rate.max((passed as f64 / took.as_secs_f64()) as u64);
        }
    }

    fn smallest(&self) -> Duration {
        self.now.round_trip.min(self.before.round_trip)
    }
}
