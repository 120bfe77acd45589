//! Transfers that an engine in another process does: write-only imports, and imports from other nodes.
//!
//! Such a transfer goes on in steps. [`Queued::send`] and [`Queued::fetch`] post the commands for which the service's queue has room, and see whether
//! those posted are over; a lane's [`Flight`] does the same with the process's own link. They never wait. A synchronous call pauses between its
//! steps; the engine thread of asynchronous operations takes a step of another operation meanwhile, so that the commands of many are under way
//! together.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vmmc_proto::Rights;
use vmmc_shm::command::{Command, Direction, Outcome, PIECE};
use vmmc_shm::table::ExportState;

use crate::commands::{self, Commands};
use crate::connection::{Connection, RequestError};
use crate::lane::{Flight, Lane, Undone};
use crate::local_engine::Pause;
use crate::operation::{Step, Stop};
use crate::process::{Inner, lock};
use crate::route::Route;
use crate::transfer::TransferError;

/// A transfer in steps.
#[derive(Default)]
pub(crate) enum Flying {
    /// It has not begun.
    #[default]
    Not,
    /// It has not begun, or was undone. It is for the services, where nothing else of its import may be under way: only a link keeps the order.
    Alone,
    Lane(Flight),
    Queue(Queued),
}

/// A transfer by the service's queue.
pub(crate) struct Queued {
    connection: Arc<Connection>,
    commands: Arc<Commands>,
    flight: Arc<commands::Flight>,
    /// Commands in the queue, or past it.
    posted: usize,
    /// No more will be posted.
    all: bool,
    /// It was ended before all were posted.
    ended: Option<TransferError>,
    /// What [`Commands::completions`] was, and how long it may stay like that.
    seen: u32,
    deadline: Option<Instant>,
}

/// What goes with the last command of a send, when those before it have arrived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Finish {
    pub(crate) signal: Option<(usize, u64)>,
    pub(crate) notify: Option<(u64, u64)>,
}

impl Flying {
    /// Begins a transfer that has not begun; by a lane if there is one, which is left to the caller.
    fn begin(
        &mut self,
        route: &Route,
        check: impl FnOnce() -> Result<(), TransferError>,
        flight: impl FnOnce() -> commands::Flight,
    ) -> Result<Option<Arc<Lane>>, Step> {
        let first = match self {
            Self::Not => true,
            Self::Alone => false,
            Self::Lane(_) | Self::Queue(_) => return Ok(None),
        };
        check().map_err(|error| Step::Over(Err(error)))?;
        if first && route.standing.is_elsewhere() {
            let lane = route.lane();
            if lane.is_none() {
                *self = Self::Alone;
                return Err(Step::Alone);
            }
            return Ok(lane);
        }
        *self =
            Self::Queue(Queued::begin(route, flight()).map_err(|error| Step::Over(Err(error)))?);
        Ok(None)
    }

    fn by_lane(&mut self, route: &Route, stop: &Stop) -> Step {
        let Self::Lane(flight) = self else { return Step::Alone };
        match flight.step(route, stop) {
            None if flight.is_posted() => Step::Posted,
            None => Step::Posting,
            Some(Err(Undone::Fenced)) => {
                *self = Self::Alone;
                Step::Alone
            }
            Some(Err(Undone::Failed(error))) => Step::Over(Err(error)),
            Some(Ok(())) => Step::Over(Ok(())),
        }
    }
}

impl Queued {
    fn begin(route: &Route, flight: commands::Flight) -> Result<Self, TransferError> {
        let (connection, commands) = route.process.commands()?;
        let seen = commands.completions();
        let flight = Arc::new(flight);
        Ok(Self {
            connection,
            commands,
            flight,
            posted: 0,
            all: false,
            ended: None,
            seen,
            deadline: None,
        })
    }

    /// Goes on with a send of pieces, the same at each step.
    fn send<'b>(
        &mut self,
        route: &Route,
        pieces: impl Iterator<Item = (usize, &'b [u8])>,
        finish: Finish,
        stop: &Stop,
    ) -> Step {
        if self.all {
            return self.landing(route);
        }
        let mut rest = pieces.flat_map(in_commands).skip(self.posted).peekable();
        // Without any piece there may still be a word to write.
        let mut next = rest.next().unwrap_or((0, &[]));
        loop {
            let last = rest.peek().is_none();
            let Finish { signal, notify } = if last { finish } else { Finish::default() };
            if self.posted > 0 && (signal.is_some() || notify.is_some()) && !self.flight.is_over() {
                return self.not_yet(route, Step::Posting);
            }
            if self.posted > 0 {
                let failed = self.flight.failure().map(|outcome| route.engine_failure(outcome));
                let may = failed.map_or(Ok(()), Err).and_then(|()| stop.check());
                if let Err(error) = may.and_then(|()| route.live()) {
                    return self.end(route, error);
                }
            }
            let (offset, bytes) = next;
            let command = Command {
                signal: signal.map(|(offset, value)| (offset as u64, value)),
                notify,
                ..route.command(Direction::Send, offset, bytes.len())
            };
            if !self.commands.post(&self.connection, &self.flight, &command, bytes) {
                return self.not_yet(route, Step::Posting);
            }
            self.posted += 1;
            match rest.next() {
                Some(piece) => next = piece,
                None => break,
            }
        }
        self.all = true;
        self.landing(route)
    }

    /// Goes on with a fetch.
    fn fetch(&mut self, route: &Route, offset: usize, bytes: &mut [u8], stop: &Stop) -> Step {
        while !self.all {
            let start = self.posted * PIECE;
            let place = start..bytes.len().min(start + PIECE);
            if start >= bytes.len() {
                self.all = true;
            } else if let Err(error) = stop.check() {
                return self.end(route, error);
            } else {
                let command = route.command(Direction::Fetch, offset + start, place.len());
                if !self.commands.post_fetch(&self.connection, &self.flight, &command, place) {
                    return self.not_yet(route, Step::Posting);
                }
                self.posted += 1;
            }
        }
        let step = self.landing(route);
        if step == Step::Over(Ok(())) {
            bytes.copy_from_slice(&self.flight.fetched());
        }
        step
    }

    /// What is in the queue already will still be done: it must not come after the end.
    fn end(&mut self, route: &Route, error: TransferError) -> Step {
        self.all = true;
        self.ended = Some(error);
        self.landing(route)
    }

    /// All is posted.
    fn landing(&mut self, route: &Route) -> Step {
        if self.flight.is_over() {
            let failed = self.flight.failure().map(|outcome| route.engine_failure(outcome));
            return Step::Over(failed.or(self.ended).map_or(Ok(()), Err));
        }
        self.not_yet(route, Step::Posted)
    }

    /// How it stands, unless nothing more is to be expected of the service.
    fn not_yet(&mut self, route: &Route, step: Step) -> Step {
        let completions = self.commands.completions();
        let now = Instant::now();
        let deadline = match self.deadline {
            Some(deadline) if completions == self.seen => deadline,
            _ => now + route.process.options.patience(),
        };
        (self.seen, self.deadline) = (completions, Some(deadline));
        if self.connection.is_lost() {
            // What it did before it went counts.
            self.commands.reap();
            let over = self.all && self.flight.is_over();
            return if over { step } else { Step::Over(Err(TransferError::ServiceLost)) };
        }
        if now >= deadline { Step::Over(Err(TransferError::Timeout)) } else { step }
    }

    /// Takes steps until it is over, and pauses in between.
    fn drive(mut self, mut step: impl FnMut(&mut Self) -> Step) -> Result<(), TransferError> {
        let commands = Arc::clone(&self.commands);
        let mut stands = step(&mut self);
        loop {
            if let Step::Over(result) = stands {
                return result;
            }
            commands.pause(|| {
                stands = step(&mut self);
                matches!(stands, Step::Over(_))
            });
        }
    }
}

impl Route {
    /// A send of checked pieces, to its end.
    #[cold]
    pub(crate) fn send_by_engine<'b>(
        &self,
        pieces: impl Iterator<Item = (usize, &'b [u8])> + Clone,
        finish: Finish,
        stop: &Stop,
    ) -> Result<(), TransferError> {
        if let Some(lane) = self.lane() {
            // SAFETY: the pieces are borrowed for the whole call, which ends behind the flight.
            let flight = unsafe { Flight::send(&lane, self, pieces.clone(), finish) };
            match flight.land(self, stop) {
                Err(Undone::Fenced) => {}
                Err(Undone::Failed(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        let queued = Queued::begin(self, commands::Flight::default())?;
        queued.drive(|queued| queued.send(self, pieces.clone(), finish, stop))
    }

    /// A fetch of a checked range, to its end.
    #[cold]
    pub(crate) fn fetch_by_engine(
        &self,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<(), TransferError> {
        let never = Stop::never();
        if let Some(lane) = self.lane() {
            // SAFETY: the bytes are borrowed for the whole call, which ends behind the flight.
            let flight = unsafe { Flight::fetch(&lane, self, offset, bytes) };
            match flight.land(self, &never) {
                Err(Undone::Fenced) => {}
                Err(Undone::Failed(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        let queued = Queued::begin(self, commands::Flight::fetching(bytes.len()))?;
        queued.drive(|queued| queued.fetch(self, offset, bytes, &never))
    }

    /// The next step of an asynchronous send; the arguments are the same at each.
    ///
    /// # Safety
    /// The bytes of the pieces stay where they are, and nobody changes them, until `flying` is dropped or a step says that it is over.
    pub(crate) unsafe fn send_in_steps<'b>(
        &self,
        flying: &mut Flying,
        pieces: impl Iterator<Item = (usize, &'b [u8])> + Clone,
        signal: Option<(usize, u64)>,
        stop: &Stop,
    ) -> Step {
        if !self.start.is_null() {
            return Step::Over(self.send_pieces(pieces, signal, stop));
        }
        let finish = Finish { signal, notify: None };
        let check = || self.check_pieces(pieces.clone(), signal);
        match flying.begin(self, check, commands::Flight::default) {
            // SAFETY: the caller's promise.
            Ok(Some(lane)) => unsafe {
                *flying = Flying::Lane(Flight::send(&lane, self, pieces.clone(), finish));
            },
            Ok(None) => {}
            Err(step) => return step,
        }
        match flying {
            Flying::Queue(queued) => queued.send(self, pieces, finish, stop),
            _ => flying.by_lane(self, stop),
        }
    }

    /// The next step of an asynchronous fetch of `len` bytes; the arguments are the same at each. `bytes` is called only when nobody else uses them.
    ///
    /// # Safety
    /// The bytes stay where they are, and nobody else uses them, until `flying` is dropped or a step says that it is over.
    pub(crate) unsafe fn fetch_in_steps<'b>(
        &self,
        flying: &mut Flying,
        (offset, len): (usize, usize),
        bytes: impl FnOnce() -> &'b mut [u8],
        stop: &Stop,
    ) -> Step {
        if !self.start.is_null() {
            return Step::Over(self.fetch_piece(offset, bytes(), stop));
        }
        let check = || self.check(offset, len, Rights::READ);
        match flying.begin(self, check, || commands::Flight::fetching(len)) {
            Ok(Some(lane)) => {
                // SAFETY: the caller's promise.
                *flying = Flying::Lane(unsafe { Flight::fetch(&lane, self, offset, bytes()) });
                return flying.by_lane(self, stop);
            }
            Ok(None) => {}
            Err(step) => return step,
        }
        match flying {
            Flying::Queue(queued) => queued.fetch(self, offset, bytes(), stop),
            _ => flying.by_lane(self, stop),
        }
    }

    fn command(&self, direction: Direction, offset: usize, len: usize) -> Command {
        Command {
            direction,
            handle: self.standing.handle(),
            offset: offset as u64,
            len: len as u64,
            local: 0,
            signal: None,
            notify: None,
        }
    }

    fn engine_failure(&self, outcome: Outcome) -> TransferError {
        match (outcome, self.standing.state()) {
            (Outcome::Rights, _) => TransferError::Rights,
            (Outcome::Range, _) => TransferError::Range,
            (Outcome::Gone | Outcome::Unknown, ExportState::Dead) => TransferError::Dead,
            // A new service that has not been asked for this import yet.
            (Outcome::Unknown, ExportState::Live) => TransferError::ServiceLost,
            (Outcome::Gone | Outcome::Unknown, _) => TransferError::Revoked,
            (Outcome::Done | Outcome::Memory, _) => TransferError::Exhausted,
        }
    }
}

/// Where the thread of asynchronous operations waits while commands are in the queue.
#[derive(Debug)]
pub(crate) struct AtTheQueue(pub(crate) Weak<Inner>);

impl AtTheQueue {
    /// Takes what was done.
    pub(crate) fn reap(&self) {
        if let Some(commands) = self.commands() {
            commands.reap();
        }
    }

    fn commands(&self) -> Option<Arc<Commands>> {
        lock(&self.0.upgrade()?.connection().commands).clone()
    }
}

impl Pause for AtTheQueue {
    fn changes(&self) -> u32 {
        self.commands().map_or(0, |commands| commands.completions())
    }

    fn pause(&self, found: &mut dyn FnMut() -> bool) {
        match self.commands() {
            Some(commands) => commands.pause(found),
            // Between two services: what is under way hears of it at its next step.
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }

    fn nudge(&self) {
        if let Some(commands) = self.commands() {
            commands.nudge();
        }
    }
}

/// A piece as commands can carry it: no bytes are one command too, which checks the state.
fn in_commands((offset, bytes): (usize, &[u8])) -> impl Iterator<Item = (usize, &[u8])> {
    let last = bytes.len().saturating_sub(1) / PIECE * PIECE;
    (0..=last)
        .step_by(PIECE)
        .map(move |start| (offset + start, &bytes[start..bytes.len().min(start + PIECE)]))
}

impl From<RequestError> for TransferError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost => Self::ServiceLost,
            RequestError::Timeout => Self::Timeout,
            RequestError::Refused(_) | RequestError::Unsendable => Self::Exhausted,
        }
    }
}
