//! The importer's end of a lane: sends and fetches by the process's own engine, and what becomes of them when the other end falls silent.
//!
//! A call hands its bytes to the link where they lie, polls until the other end has them, and returns. So nothing is owed when it has
//! returned, whatever happens to this process. When nothing is heard for a while, the exporter's service is asked to *fence* the lane: it says
//! how far the exporter's engine got, and the engine gets no further. What was not executed then goes through the services.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmmc_link::{Buffer, CommandError, ImportId, Link, Ticket};
use vmmc_ni::port::LinkNumber;
use vmmc_os::start_thread;
use vmmc_proto::{Answer, Request};

use crate::by_engine::Finish;
use crate::connection::RequestError;
use crate::lanes::{Lanes, SPIN};
use crate::operation::Stop;
use crate::process::{Inner, lock};
use crate::route::Route;
use crate::transfer::TransferError;

/// How long nothing may be heard before the lane is fenced; longer where answers take long.
const SILENCE: Duration = Duration::from_millis(50);
/// The same before anything was heard at all.
const FIRST_SILENCE: Duration = Duration::from_millis(200);
/// The same where there are several paths: one that was cut is left first.
const LONG_SILENCE: Duration = Duration::from_secs(1);
/// How long the exporter's service may take to fence a lane. That its node cannot be reached is found out sooner.
const FENCE_PATIENCE: Duration = Duration::from_secs(20);
/// From so many bytes on an acknowledgement is asked for with the last packet.
const MANY: usize = 16 << 10;
/// How long a call waits before it asks for an acknowledgement; one that comes with an answer costs nothing.
const IMPATIENT: Duration = Duration::from_micros(25);
/// How long a call looks without giving way: an answer mostly comes sooner, and giving way costs as much as a look.
const BRISK: Duration = Duration::from_micros(15);
/// Bytes handed to the link before it is looked whether the call shall stop.
const STEP: usize = 4 << 20;
/// The longest sleep before the export's state is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A lane of an import.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) handle: u64,
    pub(crate) number: LinkNumber,
    pub(crate) import: ImportId,
    completed: AtomicU64,
    /// Packets that came.
    heard: AtomicU64,
    /// Sequence numbers given out; changed by who has the engine's state.
    posted: AtomicU64,
    /// The link takes nothing more of this import.
    failed: AtomicBool,
    /// The other end refused it: mostly the export is gone, which is told on another way.
    refused: AtomicBool,
    opened: Instant,
    over: Mutex<Over>,
    /// Ways to the other end.
    paths: usize,
}

/// What is known of a lane's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// It goes on, as far as is known.
    Open,
    /// Its fence was asked for.
    Asked,
    /// It is fenced; the exporter's engine got so far.
    Reached(u64),
    /// It could not be fenced.
    Failed(TransferError),
}

/// Why the lane did not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// It is fenced, and the last command was not executed: go through the services.
    Fenced,
    /// It failed for good.
    Failed(TransferError),
}

impl Lane {
    pub(crate) fn new(handle: u64, number: LinkNumber, import: ImportId, paths: usize) -> Self {
        Self {
            handle,
            number,
            import,
            completed: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            posted: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            opened: Instant::now(),
            over: Mutex::new(Over::Open),
            paths,
        }
    }

    /// How long it has been there.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    // The engine's side.

    pub(crate) fn completed(&self, import: ImportId, through: Ticket) {
        debug_assert_eq!(import, self.import, "a channel is free when nothing is pending on it");
        self.completed.store(through.0, Ordering::Release);
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
        self.fail();
    }

    pub(crate) fn heard(&self, packets: u64) {
        self.heard.store(packets, Ordering::Relaxed);
    }

    // The caller's side.

    /// Places pieces, then the signal word or the notification.
    pub(crate) fn send<'b>(
        self: &Arc<Self>,
        route: &Route,
        pieces: impl Iterator<Item = (usize, &'b [u8])>,
        Finish { signal, notify }: Finish,
        stop: &Stop,
    ) -> Result<(), Undone> {
        let lanes = &route.process.lanes;
        let mut flight = Flight::new(self, lanes, false);
        let mut last_word = [0; 8];
        for (offset, bytes) in pieces {
            for (step, part) in bytes.chunks(STEP).enumerate() {
                if flight.bytes + part.len() > STEP {
                    flight.land(route)?;
                    stop.check().map_err(Undone::Failed)?;
                }
                // The link only reads it.
                flight.post(part.as_ptr().cast_mut(), part.len(), |link, import, buffer| {
                    link.send(import, (offset + step * STEP) as u64, buffer, 0, part.len() as u64)
                });
            }
            let tail = &bytes[bytes.len().saturating_sub(8)..];
            last_word = [0; 8];
            last_word[..tail.len()].copy_from_slice(tail);
        }
        if let Some((offset, value)) = signal {
            flight.order(|link, import| link.signal(import, offset as u64, value));
        }
        if let Some((offset, len)) = notify {
            let word = u64::from_le_bytes(last_word);
            flight.order(|link, import| link.notify(import, offset, len, word));
        }
        flight.land(route)
    }

    /// Fetches.
    pub(crate) fn fetch(
        self: &Arc<Self>,
        route: &Route,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<(), Undone> {
        let mut flight = Flight::new(self, &route.process.lanes, true);
        for (step, part) in bytes.chunks_mut(STEP).enumerate() {
            flight.post(part.as_mut_ptr(), part.len(), |link, import, buffer| {
                link.fetch(import, (offset + step * STEP) as u64, buffer, 0, part.len() as u64)
            });
            flight.land(route)?;
        }
        Ok(())
    }

    fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// How long nothing may be heard.
    fn patience(&self, heard: u64) -> Duration {
        match (self.paths, heard) {
            (1, 0) => FIRST_SILENCE,
            (1, _) => SILENCE,
            _ => LONG_SILENCE,
        }
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        // Acquire: pairs with `completed`, so that what was fetched is seen.
        self.completed.load(Ordering::Acquire) >= ticket.0
    }

    /// Has the exporter's service end the lane, unless somebody has asked for that already; [`Lane::over`] tells the rest.
    fn ask_for_fence(self: &Arc<Self>, process: &Arc<Inner>) {
        {
            let mut over = lock(&self.over);
            if *over != Over::Open {
                return;
            }
            *over = Over::Asked;
        }
        let (lane, asker) = (Arc::clone(self), Arc::clone(process));
        // Whoever waits for the lane goes on polling: it may come back before the answer does.
        if start_thread("vmmc-fence", move || lane.fence(&asker)).is_err() {
            *lock(&self.over) = Over::Failed(TransferError::Exhausted);
        }
    }

    fn fence(&self, process: &Inner) {
        let connection = process.connection();
        let deadline = Instant::now() + FENCE_PATIENCE;
        let asked =
            connection.request(&process.mail, deadline, false, &[], |seq| Request::FenceLane {
                seq,
                handle: self.handle,
                link: self.number.on_the_wire(),
                channel: self.import.channel(),
                generation: self.import.generation(),
            });
        let over = match asked {
            Ok((Answer::LaneFenced { reached, .. }, _)) => {
                process.lanes.ended(self);
                Over::Reached(reached)
            }
            Err(RequestError::Lost) => Over::Failed(TransferError::ServiceLost),
            _ => Over::Failed(TransferError::Timeout),
        };
        *lock(&self.over) = over;
    }

    /// How far the exporter's engine got, once that is known. An error is told once; the next call asks again.
    fn over(&self) -> Result<Option<u64>, TransferError> {
        let mut over = lock(&self.over);
        match *over {
            Over::Open | Over::Asked => Ok(None),
            Over::Reached(reached) => Ok(Some(reached)),
            Over::Failed(error) => {
                *over = Over::Open;
                Err(error)
            }
        }
    }
}

/// What one call has handed to the link and waits for.
struct Flight<'l> {
    lane: &'l Arc<Lane>,
    lanes: &'l Arc<Lanes>,
    buffers: Vec<Buffer>,
    /// Of these buffers.
    bytes: usize,
    last: Option<Ticket>,
    /// The sequence number behind the last command.
    end: u64,
    /// What is executed has not come back for that.
    fetching: bool,
}

impl<'l> Flight<'l> {
    fn new(lane: &'l Arc<Lane>, lanes: &'l Arc<Lanes>, fetching: bool) -> Self {
        Self { lane, lanes, buffers: Vec::new(), bytes: 0, last: None, end: 0, fetching }
    }

    fn post(
        &mut self,
        start: *mut u8,
        len: usize,
        command: impl FnOnce(&mut Link, ImportId, Buffer) -> Result<Ticket, CommandError>,
    ) {
        let mut state = self.lanes.lock();
        // SAFETY: the caller's bytes are borrowed for the whole call, and no call returns before `drop` has taken the buffer back.
        let buffer = unsafe { state.here.lend(start, len) };
        self.buffers.push(buffer);
        self.bytes += len;
        let link = state.port.link(self.lane.number);
        let ticket = link.and_then(|link| command(link, self.lane.import, buffer).ok());
        self.posted(ticket, len as u64);
    }

    fn order(&mut self, command: impl FnOnce(&mut Link, ImportId) -> Result<Ticket, CommandError>) {
        let mut state = self.lanes.lock();
        let link = state.port.link(self.lane.number);
        let ticket = link.and_then(|link| command(link, self.lane.import).ok());
        self.posted(ticket, 1);
    }

    /// Notes a command that the link took; the caller has the engine's state.
    fn posted(&mut self, ticket: Option<Ticket>, len: u64) {
        match ticket {
            Some(ticket) => {
                self.last = Some(ticket);
                self.end = self.lane.posted.fetch_add(len, Ordering::Relaxed) + len;
            }
            // Found out, and told, by `land`.
            None => {
                self.lane.fail();
                self.last = Some(Ticket(u64::MAX));
                self.end = u64::MAX;
            }
        }
    }

    /// Waits until the other end has everything.
    fn land(&mut self, route: &Route) -> Result<(), Undone> {
        let Some(last) = self.last else { return Ok(()) };
        let start = Instant::now();
        let (mut heard, mut heard_at) = (self.lane.heard.load(Ordering::Relaxed), start);
        let mut asked = false;
        if self.bytes > MANY {
            // The last of many packets: the answer is worth its own.
            self.flush();
            asked = true;
        }
        self.lanes.push();
        loop {
            let busy = self.lanes.poll();
            if self.lane.is_complete(last) {
                self.clear();
                return Ok(());
            }
            route.live().map_err(Undone::Failed)?;
            let now = Instant::now();
            let count = self.lane.heard.load(Ordering::Relaxed);
            if count != heard {
                (heard, heard_at) = (count, now);
            }
            let idle = now - heard_at;
            if self.lane.is_failed() || idle > self.lane.patience(heard) {
                if let Some(reached) = self.given_up(route, now - start)? {
                    let executed = reached >= self.end && !self.fetching;
                    return if executed { Ok(()) } else { Err(Undone::Fenced) };
                }
                self.lanes.sleep(&[], Some(LOOK));
            } else if !asked && idle > IMPATIENT {
                self.flush();
                asked = true;
            } else if !busy && idle > SPIN {
                self.lanes.sleep(&[], Some(LOOK));
            } else if !busy && idle > BRISK {
                std::thread::yield_now();
            }
        }
    }

    /// The lane is of no use, or seems so: has it fenced, and says how far it got once that is known.
    fn given_up(&self, route: &Route, waited: Duration) -> Result<Option<u64>, Undone> {
        // A refusal mostly means that the export is gone, which the service will tell in a moment.
        if !self.lane.refused.load(Ordering::Acquire) || waited > SILENCE {
            self.lane.ask_for_fence(&route.process);
        }
        self.lane.over().map_err(Undone::Failed)
    }

    fn flush(&self) {
        if let Some(link) = self.lanes.lock().port.link(self.lane.number) {
            link.flush();
        }
    }

    fn clear(&mut self) {
        let mut state = self.lanes.lock();
        self.buffers.drain(..).for_each(|buffer| state.here.take_back(buffer));
        self.bytes = 0;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.buffers.is_empty() {
            // Given up on the way: what is taken back cannot be read or written any more, which ends the link's import.
            self.clear();
        }
    }
}

impl Route {
    /// Whether a lane is open.
    pub(crate) fn has_lane(&self) -> bool {
        let lane = self.process.lanes.lane(self.standing.handle());
        lane.is_some_and(|lane| !lane.failed.load(Ordering::Relaxed))
    }

    /// Has the lane of an import do a transfer; `None` where there is none, or it ended before it was done: then the services do it.
    pub(crate) fn by_lane(
        &self,
        transfer: impl FnOnce(&Arc<Lane>) -> Result<(), Undone>,
    ) -> Option<Result<(), TransferError>> {
        if !self.standing.is_elsewhere() {
            return None;
        }
        let (lanes, handle) = (&self.process.lanes, self.standing.handle());
        let Some(lane) = lanes.lane(handle) else {
            if lanes.may_ask(handle) {
                // Without an answer it goes through the services.
                let _ = self.process.connection().post(&Request::Lane { handle }, &[]);
            }
            return None;
        };
        match transfer(&lane) {
            Ok(()) => Some(Ok(())),
            Err(Undone::Failed(error)) => Some(Err(error)),
            Err(Undone::Fenced) => None,
        }
    }
}
