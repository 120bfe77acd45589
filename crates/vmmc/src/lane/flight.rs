//! A transfer by a lane. It hands its bytes to the link where they lie, so many at a time, and has them back when the other end has them.
//!
//! A call takes steps until it is over, and polls in between. Asynchronous operations have one flight each, all under way together: the link does
//! the commands of an import in their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmmc_link::{Buffer, CommandError, ImportId, Link, Ticket};

use super::{Lane, SILENCE, Undone};
use crate::by_engine::Finish;
use crate::lanes::{Lanes, Look, SPIN, State};
use crate::operation::Stop;
use crate::route::Route;
use crate::transfer::TransferError;

/// From so many bytes on an acknowledgement is asked for with the last packet.
const MANY: usize = 16 << 10;
/// How long a call waits before it asks for an acknowledgement; one that comes with an answer costs nothing.
const IMPATIENT: Duration = Duration::from_micros(25);
/// How long a call looks without giving way: an answer mostly comes sooner, and giving way costs as much as a look.
const BRISK: Duration = Duration::from_micros(15);
/// Bytes and commands of a transfer that the link has at a time: the rest can still be cancelled.
const WINDOW: usize = 4 << 20;
const MOST_PARTS: usize = 512;
/// Bytes of one command.
const PART: usize = 1 << 20;
/// The longest sleep before the export's state is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What one transfer has handed to the link, and will.
#[derive(Debug)]
pub(crate) struct Flight {
    lane: Arc<Lane>,
    lanes: Arc<Lanes>,
    /// What is fetched has to come back: that the other end was asked is not enough.
    fetching: bool,
    rest: VecDeque<Part>,
    signal: Option<(usize, u64)>,
    /// Offset, length and last word.
    notify: Option<(u64, u64, u64)>,
    /// No more will be handed over.
    all: bool,
    /// It was ended before all was handed over.
    ended: Option<TransferError>,
    lent: VecDeque<Lent>,
    /// Of what is lent.
    bytes: usize,
    last: Option<Ticket>,
    /// The sequence number behind the last command.
    end: u64,
    began: Instant,
    /// Packets that had come, and when there was the last news of that.
    heard: u64,
    heard_at: Instant,
    looked_at: Instant,
    /// An acknowledgement was asked for.
    asked: bool,
}

/// Bytes of this process and their place in the export.
#[derive(Debug)]
struct Part {
    offset: usize,
    start: *mut u8,
    len: usize,
}

// SAFETY: who makes a flight promises that the bytes stay where they are; they are only touched by whoever has the engine's state.
unsafe impl Send for Part {}

/// A part that the link uses.
#[derive(Debug)]
struct Lent {
    buffer: Buffer,
    until: Ticket,
    len: usize,
}

impl Flight {
    /// Pieces, then the signal word or the notification.
    ///
    /// # Safety
    /// The bytes stay where they are, and nobody changes them, until the flight is dropped.
    pub(crate) unsafe fn send<'b>(
        lane: &Arc<Lane>,
        route: &Route,
        pieces: impl Iterator<Item = (usize, &'b [u8])>,
        Finish { signal, notify }: Finish,
    ) -> Self {
        let mut last: &[u8] = &[];
        let parts = pieces.inspect(|(_, bytes)| last = bytes).map(|(offset, bytes)| Part {
            offset,
            // The link only reads it.
            start: bytes.as_ptr().cast_mut(),
            len: bytes.len(),
        });
        let rest = parts.filter(|part| part.len > 0).collect();
        let notify = notify.map(|(offset, len)| {
            let (mut word, tail) = ([0; 8], &last[last.len().saturating_sub(8)..]);
            word[..tail.len()].copy_from_slice(tail);
            (offset, len, u64::from_le_bytes(word))
        });
        let mut flight = Self::new(lane, &route.process.lanes, rest, false);
        (flight.signal, flight.notify) = (signal, notify);
        flight
    }

    /// A fetch.
    ///
    /// # Safety
    /// The bytes stay where they are, and nobody else uses them, until the flight is dropped.
    pub(crate) unsafe fn fetch(
        lane: &Arc<Lane>,
        route: &Route,
        offset: usize,
        bytes: &mut [u8],
    ) -> Self {
        let part = Part { offset, start: bytes.as_mut_ptr(), len: bytes.len() };
        let rest = Some(part).into_iter().filter(|part| part.len > 0).collect();
        Self::new(lane, &route.process.lanes, rest, true)
    }

    fn new(lane: &Arc<Lane>, lanes: &Arc<Lanes>, rest: VecDeque<Part>, fetching: bool) -> Self {
        lanes.flights.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        Self {
            lane: Arc::clone(lane),
            lanes: Arc::clone(lanes),
            fetching,
            rest,
            signal: None,
            notify: None,
            all: false,
            ended: None,
            lent: VecDeque::new(),
            bytes: 0,
            last: None,
            end: 0,
            began: now,
            heard: lane.heard.load(Ordering::Relaxed),
            heard_at: now,
            looked_at: now,
            asked: false,
        }
    }

    /// Whether all of it was handed over.
    pub(crate) fn is_posted(&self) -> bool {
        self.all
    }

    /// Goes on with it, without waiting: hands over what there is room for, and says how it ended if it has.
    pub(crate) fn step(&mut self, route: &Route, stop: &Stop) -> Option<Result<(), Undone>> {
        if !self.all {
            let lanes = Arc::clone(&self.lanes);
            self.hand_over(&mut lanes.lock(), stop);
        }
        self.look(route)
    }

    /// Takes steps until it is over.
    pub(crate) fn land(mut self, route: &Route, stop: &Stop) -> Result<(), Undone> {
        {
            let lanes = Arc::clone(&self.lanes);
            let mut state = lanes.lock();
            self.hand_over(&mut state, stop);
            state.push(lanes.time_of(self.began));
        }
        loop {
            let look = self.lanes.look();
            if look == Look::Quiet {
                continue;
            }
            let busy = look == Look::Busy;
            if let Some(over) = self.step(route, stop) {
                return over;
            }
            let idle = self.looked_at - self.heard_at;
            if self.is_silent(idle) || !busy && idle > SPIN {
                self.lanes.sleep(&[], Some(LOOK));
            } else if !busy && idle > BRISK {
                std::thread::yield_now();
            }
        }
    }

    fn hand_over(&mut self, state: &mut State, stop: &Stop) {
        while let Some(&Lent { buffer, until, len }) = self.lent.front()
            && self.lane.is_complete(until)
        {
            state.here.take_back(buffer);
            self.bytes -= len;
            self.lent.pop_front();
        }
        while let Some(part) = self.rest.front_mut() {
            let len = part.len.min(PART);
            if self.last.is_some()
                && let Err(error) = stop.check()
            {
                // What the link has will still be done: it must not come after the end.
                (self.ended, self.all) = (Some(error), true);
                return;
            }
            if self.lent.len() >= MOST_PARTS || self.bytes + len > WINDOW {
                return;
            }
            let (start, offset) = (part.start, part.offset as u64);
            // SAFETY: `len` is at most that of the part.
            (part.start, part.len) = (unsafe { start.add(len) }, part.len - len);
            part.offset += len;
            if part.len == 0 {
                self.rest.pop_front();
            }
            // SAFETY: who made the flight promised this until it is dropped, which takes everything back.
            let buffer = unsafe { state.here.lend(start, len) };
            let fetching = self.fetching;
            let ticket = self.post(state, len as u64, |link, import| match fetching {
                true => link.fetch(import, offset, buffer, 0, len as u64),
                false => link.send(import, offset, buffer, 0, len as u64),
            });
            self.lent.push_back(Lent { buffer, until: ticket, len });
            self.bytes += len;
        }
        if let Some((offset, value)) = self.signal {
            self.post(state, 1, |link, import| link.signal(import, offset as u64, value));
        }
        if let Some((offset, len, word)) = self.notify {
            self.post(state, 1, |link, import| link.notify(import, offset, len, word));
        }
        self.all = true;
        if self.bytes > MANY
            && let Some(link) = state.port.link(self.lane.number)
        {
            // The last of many packets: the answer is worth its own.
            link.flush();
            self.asked = true;
        }
    }

    /// Has the link take a command of so many sequence numbers.
    fn post(
        &mut self,
        state: &mut State,
        len: u64,
        command: impl FnOnce(&mut Link, ImportId) -> Result<Ticket, CommandError>,
    ) -> Ticket {
        let link = state.port.link(self.lane.number);
        let ticket = match link.map(|link| command(link, self.lane.import)) {
            Some(Ok(ticket)) => {
                self.end = self.lane.posted.fetch_add(len, Ordering::Relaxed) + len;
                ticket
            }
            // Found out, and told, by `look`.
            _ => {
                self.lane.fail();
                self.end = u64::MAX;
                Ticket(u64::MAX)
            }
        };
        self.last = Some(ticket);
        ticket
    }

    /// How it ended, if it has; has the lane fenced when nothing is heard.
    fn look(&mut self, route: &Route) -> Option<Result<(), Undone>> {
        if self.all && self.last.is_none_or(|last| self.lane.is_complete(last)) {
            return Some(self.ended.map_or(Ok(()), |error| Err(Undone::Failed(error))));
        }
        let now = Instant::now();
        self.looked_at = now;
        if let Err(error) = route.live() {
            self.lane.cut(self.last);
            return Some(Err(Undone::Failed(error)));
        }
        let count = self.lane.heard.load(Ordering::Relaxed);
        if count != self.heard {
            (self.heard, self.heard_at) = (count, now);
        }
        let idle = now - self.heard_at;
        if self.is_silent(idle) {
            return self.given_up(route, now - self.began).transpose();
        }
        if !self.asked && self.all && idle > IMPATIENT {
            self.asked = true;
            self.lanes.lock().port.link(self.lane.number).map(Link::flush);
        }
        None
    }

    fn is_silent(&self, idle: Duration) -> bool {
        self.lane.is_failed() || idle > self.lane.patience(self.heard)
    }

    /// The lane is of no use, or seems so: has it fenced, and once it is says whether all was done before.
    fn given_up(&self, route: &Route, waited: Duration) -> Result<Option<()>, Undone> {
        // A refusal mostly means that the export is gone, which the service will tell in a moment.
        if !self.lane.refused.load(Ordering::Acquire) || waited > SILENCE {
            self.lane.ask_for_fence(&route.process);
        }
        match (self.lane.over(self.end).map_err(Undone::Failed)?, self.ended) {
            (None, _) => Ok(None),
            (Some(_), Some(error)) => Err(Undone::Failed(error)),
            (Some(reached), None) if self.all && reached >= self.end && !self.fetching => {
                Ok(Some(()))
            }
            _ => Err(Undone::Fenced),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.lanes.flights.fetch_sub(1, Ordering::Relaxed);
        if !self.lent.is_empty() {
            // What is taken back before it has arrived cannot be read or written any more, which ends the link's import.
            let mut state = self.lanes.lock();
            self.lent.drain(..).for_each(|lent| state.here.take_back(lent.buffer));
        }
    }
}
