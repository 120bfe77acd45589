//! One path of a link: what was sent on it, what arrived, how fast it is, and whether it is alive.

use std::time::Duration;

use crate::config::{Config, Recovery};
use crate::congestion::Congestion;
use crate::event::PathState;
use crate::mtu::Mtu;
use crate::rtt::Rtt;
use crate::seen::Seen;
use crate::sent::{Fate, Record, Sent, State};
use crate::time::Time;
use crate::wire::{Ack, Malformed};

/// A packet is lost when one sent this many later arrived. Grows when that proves wrong.
const REORDERING: u64 = 3;
const MOST_REORDERING: u64 = 256;
/// Unanswered probes after which a path is down, and how long it has to be silent: a peer whose processor is busy is silent for some slices of the
/// scheduler's.
const DOWN_AFTER: u32 = 3;
const DOWN_SILENCE: Duration = Duration::from_millis(50);
/// How seldom a path that is down is asked, at the least.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// However long a round trip seems to take, the peer is asked after this: a clock that jumped says nothing about a path.
const MOST_TIMEOUT: Duration = Duration::from_secs(1);
/// Packets remembered, lost ones included: what the peer can tell apart.
const MOST_REMEMBERED: u64 = 8192;
/// How late the answer to a probe may come.
const LATEST_ANSWER: Duration = Duration::from_secs(5);
/// How often a peer that owes a fetch is asked whether it is there.
const AWAITING: Duration = Duration::from_millis(100);
/// An acknowledgement goes out at the latest with this many packets.
const ACK_EVERY: u32 = 64;
/// So many times in a window the peer is asked for an acknowledgement, if the window holds back.
const ASKED_PER_WINDOW: u64 = 4;
/// Packets in flight that the peer's window of packet numbers can tell apart.
const MOST_IN_FLIGHT: u64 = 4096;
/// Pacing may run ahead by this.
const BURST: Duration = Duration::from_micros(50);

#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) id: u8,
    pub(crate) up: bool,
    pub(crate) sent: Sent,
    pub(crate) in_flight: u64,
    pub(crate) rtt: Rtt,
    pub(crate) congestion: Congestion,
    pub(crate) mtu: Mtu,
    pub(crate) seen: Seen,
    /// A packet has to go out to be acknowledged, whatever the window says.
    pub(crate) probe_due: bool,
    /// The first packet of the present key phase.
    pub(crate) phase_start: u64,
    largest_acked: Option<u64>,
    reordering: u64,
    loss_at: Option<Time>,
    probes: u32,
    /// When the first of them went out.
    asked_since: Time,
    timed_out: Option<Time>,
    last_eliciting: Time,
    last_heard: Time,
    pace_until: Time,
    /// Nanoseconds that a byte takes by the pace that is kept; 0 before there is one.
    pace: f64,
    /// How far pacing may make up, in nanoseconds: a round trip.
    catch_up: u64,
    /// The packet behind the last one that asked for an acknowledgement.
    asked_until: u64,
    /// Packets that wait for acknowledgement, since when, and when it has to go.
    unacked: u32,
    newest_at: Time,
    ack_at: Option<Time>,
}

impl Path {
    pub(crate) fn new(id: u8, config: &Config, now: Time) -> Path {
        Path {
            id,
            up: true,
            sent: Sent::default(),
            in_flight: 0,
            rtt: Rtt::new(),
            congestion: Congestion::new(config.min_mtu, config.max_window, config.target_delay),
            mtu: Mtu::new(config.min_mtu, config.max_mtu),
            seen: Seen::new(),
            probe_due: false,
            phase_start: 0,
            largest_acked: None,
            reordering: REORDERING,
            loss_at: None,
            probes: 0,
            asked_since: now,
            timed_out: None,
            last_eliciting: now,
            last_heard: now,
            pace_until: now,
            pace: 0.0,
            catch_up: 0,
            asked_until: 0,
            unacked: 0,
            newest_at: now,
            ack_at: None,
        }
    }

    pub(crate) fn state(&self) -> PathState {
        PathState {
            up: self.up,
            round_trip: self.rtt.smoothed(),
            least_round_trip: self.congestion.least_round_trip(),
            capacity: self.congestion.capacity(),
            window: self.congestion.window(),
            in_flight: self.in_flight,
            mtu: self.mtu.current(),
            competing: self.congestion.is_competing(),
        }
    }

    // Receiving.

    /// Notes a packet that was accepted.
    pub(crate) fn received(
        &mut self,
        now: Time,
        number: u64,
        eliciting: bool,
        ack_now: bool,
        delay: Duration,
    ) {
        let in_order = number == self.seen.next();
        if number >= self.seen.next() {
            self.newest_at = now;
        }
        self.seen.insert(number);
        self.last_heard = now;
        if eliciting {
            self.unacked += 1;
            let at = match ack_now || !in_order || self.unacked >= ACK_EVERY {
                true => now,
                false => now + delay,
            };
            self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Whether anything waits to be acknowledged, so that a packet that goes anyway takes it along.
    pub(crate) fn wants_ack(&self) -> bool {
        self.unacked > 0
    }

    pub(crate) fn ack_due(&self, now: Time) -> bool {
        self.ack_at.is_some_and(|at| at <= now)
    }

    /// What waits to be acknowledged waits for no company.
    pub(crate) fn acknowledge_now(&mut self, now: Time) {
        self.ack_at = self.ack_at.map(|_| now);
    }

    /// How long the acknowledgement of the newest packet was held back, in nanoseconds.
    pub(crate) fn ack_delay(&self, now: Time) -> u32 {
        u32::try_from((now - self.newest_at).as_nanos()).unwrap_or(u32::MAX)
    }

    pub(crate) fn acknowledged(&mut self) {
        self.unacked = 0;
        self.ack_at = None;
    }

    // Sending.

    /// Whether the window lets another packet of `bytes` go.
    pub(crate) fn has_window(&self, bytes: u64) -> bool {
        self.in_flight == 0
            || (self.in_flight + bytes <= self.congestion.window()
                && self.sent.spread() < MOST_IN_FLIGHT)
    }

    pub(crate) fn paced(&self, now: Time) -> bool {
        self.pace_until > now + BURST
    }

    pub(crate) fn sent(&mut self, now: Time, bytes: u32, eliciting: bool, mtu_probe: Option<u16>) {
        let state = if eliciting { State::InFlight } else { State::Done };
        self.sent.push(now, bytes, state, mtu_probe);
        if eliciting {
            self.in_flight += u64::from(bytes);
            self.last_eliciting = now;
            self.probe_due = false;
            // Whoever had no processor for a while makes up for it, by a round trip at most: meanwhile the queue has emptied.
            let late = Time::from_nanos(now.as_nanos().saturating_sub(self.catch_up));
            let takes = Duration::from_nanos((f64::from(bytes) * self.pace) as u64);
            self.pace_until = self.pace_until.max(late) + takes;
        } else {
            self.sent.forget(Time::ZERO, MOST_REMEMBERED);
        }
    }

    /// The round trip or the window has changed. The first window goes at once: there is nothing yet to pace by.
    fn set_pace(&mut self) {
        if self.rtt.is_sampled() {
            let round_trip = self.congestion.paced_round_trip(self.rtt.smoothed());
            self.catch_up = round_trip.as_nanos() as u64;
            self.pace = self.catch_up as f64 / self.congestion.paced_window().max(1.0);
        }
    }

    /// Whether a packet that closes the window has to ask for an acknowledgement: not if one on its way already did that comes soon enough.
    pub(crate) fn may_ask(&self) -> bool {
        let packets = self.sent.next().saturating_sub(self.asked_until);
        let since = packets * u64::from(self.mtu.current());
        since >= self.congestion.window() / ASKED_PER_WINDOW
    }

    /// The next packet asks for an acknowledgement.
    pub(crate) fn asks(&mut self) {
        self.asked_until = self.sent.next() + 1;
    }

    /// Takes an acknowledgement; what became of each record goes to `fates`. Returns the newest packet acknowledged for the
    /// first time.
    pub(crate) fn acked(
        &mut self,
        now: Time,
        ack: &Ack<'_>,
        recovery: Recovery,
        fates: &mut Vec<(Record, Fate)>,
    ) -> Result<Option<u64>, Malformed> {
        if ack.largest >= self.sent.next() {
            return Err(Malformed::Range);
        }
        // Also a packet that was given up tells how long an answer takes.
        let first_time = self.largest_acked.is_none_or(|before| before < ack.largest);
        if let Some(packet) = self.sent.packet(ack.largest).filter(|_| first_time) {
            let (whole, held) = (now - packet.at, Duration::from_nanos(u64::from(ack.delay)));
            self.rtt.sample(whole, held);
        }
        let oldest = self.sent.oldest_in_flight();
        let (mut bytes, mut newest) = (0, None);
        for range in ack.ranges() {
            if *range.end() < self.sent.base() {
                break;
            }
            // Going back, only what follows without a gap counts.
            if recovery == Recovery::GoBackN
                && !oldest.is_some_and(|oldest| range.contains(&oldest))
            {
                continue;
            }
            for number in (*range.start()).max(self.sent.base())..=*range.end() {
                let Some(packet) = self.sent.packet(number) else { break };
                let was = std::mem::replace(&mut packet.state, State::Done);
                if was == State::Done {
                    continue;
                }
                let (size, probe) = (packet.bytes, packet.mtu_probe);
                if was == State::InFlight {
                    self.in_flight -= u64::from(size);
                    bytes += u64::from(size);
                    if newest < Some(number) {
                        newest = Some(number);
                    }
                } else {
                    // Late, not lost. Half a round trip later it would have been sent in vain again.
                    self.reordering = (self.reordering * 2).min(MOST_REORDERING);
                }
                match probe {
                    Some(size) => {
                        self.mtu.probe_acked(size);
                        self.congestion.set_packet(self.mtu.current());
                    }
                    None => self.mtu.packet_acked(size),
                }
                self.sent.records(number).for_each(|record| arrived(record, fates));
            }
        }
        if first_time {
            // Also the late answer to a probe that was given up shows life.
            self.largest_acked = Some(ack.largest);
            self.probes = 0;
            self.up = true;
        }
        if let Some(newest) = newest {
            self.probe_due = false;
            self.congestion.acked(now, bytes, self.rtt.latest(), newest, self.sent.next());
        }
        self.detect_losses(now, recovery, fates);
        self.forget_lost(now);
        self.set_pace();
        Ok(newest)
    }

    fn detect_losses(&mut self, now: Time, recovery: Recovery, fates: &mut Vec<(Record, Fate)>) {
        self.loss_at = None;
        let Some(largest) = self.largest_acked else { return };
        let delay = self.rtt.loss_delay();
        // Where reordering was seen, time gets more room too.
        let delay = if self.reordering > REORDERING { delay * 3 / 2 } else { delay };
        while let Some(number) = self.sent.oldest_in_flight().filter(|&number| number < largest) {
            let Some(packet) = self.sent.packet(number) else { return };
            let due = packet.at + delay;
            if number + self.reordering > largest && due > now {
                self.loss_at = Some(due);
                return;
            }
            match recovery {
                Recovery::Selective => self.lose(now, number, fates),
                Recovery::GoBackN => return self.lose_all(now, fates),
            }
        }
    }

    fn lose(&mut self, now: Time, number: u64, fates: &mut Vec<(Record, Fate)>) {
        let Some(packet) = self.sent.packet(number) else { return };
        packet.state = State::Lost;
        let (size, probe) = (packet.bytes, packet.mtu_probe);
        self.in_flight -= u64::from(size);
        match probe {
            Some(size) => self.mtu.probe_lost(size),
            None => {
                self.congestion.lost(size);
                if self.mtu.packet_lost(now, size) {
                    self.congestion.set_packet(self.mtu.current());
                }
            }
        }
        fates.extend(self.sent.records(number).map(|record| (record.clone(), Fate::Lost)));
    }

    fn lose_all(&mut self, now: Time, fates: &mut Vec<(Record, Fate)>) {
        while let Some(number) = self.sent.oldest_in_flight() {
            self.lose(now, number, fates);
        }
    }

    // Time.

    /// When [`Path::timeout`] has something to do.
    pub(crate) fn deadline(&self, config: &Config, awaiting: bool) -> Option<Time> {
        let alive = self.keep_alive(config, awaiting);
        [self.ack_at, self.loss_at, self.probe_at(config), alive].into_iter().flatten().min()
    }

    /// When pacing lets the next packet go.
    pub(crate) fn pace_at(&self) -> Time {
        Time::from_nanos(self.pace_until.as_nanos().saturating_sub(BURST.as_nanos() as u64))
    }

    pub(crate) fn timeout(
        &mut self,
        now: Time,
        config: &Config,
        awaiting: bool,
        fates: &mut Vec<(Record, Fate)>,
    ) {
        if self.loss_at.is_some_and(|at| at <= now) {
            self.detect_losses(now, config.recovery, fates);
        }
        if self.probe_at(config).is_some_and(|at| at <= now) && !self.probe_due {
            self.probes = self.probes.saturating_add(1);
            self.probe_due = true;
            self.timed_out = Some(now);
            let silence = now - self.last_heard.max(self.asked_since);
            if self.probes == 1 {
                self.asked_since = now;
            } else if self.probes >= DOWN_AFTER && silence >= DOWN_SILENCE {
                // Whatever is on its way can go another way; this path gets nothing but questions.
                self.lose_all(now, fates);
                if self.up {
                    self.up = false;
                    self.congestion.reset(self.sent.next());
                    self.set_pace();
                }
            }
            if let Some(number) = self.sent.oldest_in_flight() {
                match config.recovery {
                    Recovery::Selective => fates.extend(
                        self.sent.records(number).map(|record| (record.clone(), Fate::Lost)),
                    ),
                    Recovery::GoBackN => self.lose_all(now, fates),
                }
            }
            self.last_eliciting = now;
        }
        if self.keep_alive(config, awaiting).is_some_and(|at| at <= now) {
            self.probe_due = true;
        }
        self.forget_lost(now);
    }

    /// Forgets lost packets whose acknowledgement is no longer to be expected. After a timeout nobody knows how long that takes:
    /// only the late acknowledgement tells that the path has become slow.
    fn forget_lost(&mut self, now: Time) {
        let unsure = self.timed_out.is_some_and(|at| now - at < LATEST_ANSWER);
        let patience = if unsure { LATEST_ANSWER } else { self.rtt.loss_delay() * 2 };
        let late = (now - Time::ZERO).saturating_sub(patience);
        self.sent.forget(Time::ZERO + late, MOST_REMEMBERED);
    }

    /// How often the peer is asked whether it is there, although nothing has to be acknowledged.
    fn keep_alive(&self, config: &Config, awaiting: bool) -> Option<Time> {
        let every = match awaiting {
            true => config.keep_alive.map_or(AWAITING, |every| every.min(AWAITING)),
            false => config.keep_alive?,
        };
        let every = every.max(self.rtt.probe_timeout(config.max_ack_delay));
        (self.up && self.in_flight == 0 && !self.probe_due)
            .then(|| self.last_heard.max(self.last_eliciting) + every)
    }

    /// When the peer is asked, for want of an acknowledgement.
    fn probe_at(&self, config: &Config) -> Option<Time> {
        if (self.in_flight == 0 && self.up) || self.probe_due {
            return None;
        }
        let timeout = self.rtt.probe_timeout(config.max_ack_delay).min(MOST_TIMEOUT);
        let backed_off = timeout * (1 << self.probes.min(10));
        // One that is down is asked often, whatever a round trip was: many questions or answers may get lost in a row.
        let most = if self.up { PROBE_INTERVAL.max(timeout) } else { PROBE_INTERVAL };
        Some(self.last_eliciting + backed_off.min(most))
    }
}

/// Notes that a record arrived. What arrived together and follows on each other counts as one, so that what it leads to is done once.
fn arrived(record: &Record, fates: &mut Vec<(Record, Fate)>) {
    if let Some((before, Fate::Acked)) = fates.last_mut()
        && before.take_in(record)
    {
        return;
    }
    fates.push((record.clone(), Fate::Acked));
}
