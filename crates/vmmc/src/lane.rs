//! The importer's end of a lane: sends and fetches by the process's own engine, and what becomes of them when the other end falls silent.
//!
//! A call hands its bytes to the link where they lie, polls until the other end has them, and returns ([`Flight`]). So nothing is owed when it has
//! returned, whatever happens to this process. When nothing is heard for a while, the exporter's service is asked to *fence* the lane: it says
//! how far the exporter's engine got, and the engine gets no further. What was not executed then goes through the services.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmmc_link::{ImportId, Ticket};
use vmmc_ni::port::LinkNumber;
use vmmc_os::start_thread;
use vmmc_proto::{Answer, Request};

use crate::connection::RequestError;
use crate::process::{Inner, lock};
use crate::route::Route;
use crate::transfer::TransferError;

mod flight;

pub(crate) use flight::Flight;

/// How long nothing may be heard before the lane is fenced; longer where answers take long.
const SILENCE: Duration = Duration::from_millis(50);
/// The same before anything was heard at all.
const FIRST_SILENCE: Duration = Duration::from_millis(200);
/// The same where there are several paths: one that was cut is left first.
const LONG_SILENCE: Duration = Duration::from_secs(1);
/// How long the exporter's service may take to fence a lane. That its node cannot be reached is found out sooner.
const FENCE_PATIENCE: Duration = Duration::from_secs(20);
/// A lane of an import.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) handle: u64,
    pub(crate) number: LinkNumber,
    pub(crate) import: ImportId,
    /// Commands that are complete.
    completed: AtomicU64,
    /// From this command on none counts as complete: one before it was given up with the export.
    cut: AtomicU64,
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
    /// It could not be fenced, which what had been handed over by then is told, by its sequence numbers.
    Failed(TransferError, u64),
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
            cut: AtomicU64::new(u64::MAX),
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
            && ticket.0 < self.cut.load(Ordering::Relaxed)
    }

    /// The command was given up with the export; those behind it are not done either.
    fn cut(&self, command: Option<Ticket>) {
        if let Some(Ticket(number)) = command {
            self.cut.fetch_min(number, Ordering::Relaxed);
        }
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
            *lock(&self.over) = self.not_fenced(TransferError::Exhausted);
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
            Err(RequestError::Lost) => self.not_fenced(TransferError::ServiceLost),
            _ => self.not_fenced(TransferError::Timeout),
        };
        *lock(&self.over) = over;
    }

    fn not_fenced(&self, error: TransferError) -> Over {
        Over::Failed(error, self.posted.load(Ordering::Relaxed))
    }

    /// How far the exporter's engine got, once that is known. An error is told to those whose last sequence number had been given out by then; for a
    /// later one it is asked again.
    fn over(&self, end: u64) -> Result<Option<u64>, TransferError> {
        let mut over = lock(&self.over);
        match *over {
            Over::Open | Over::Asked => Ok(None),
            Over::Reached(reached) => Ok(Some(reached)),
            Over::Failed(error, posted) if end <= posted => Err(error),
            Over::Failed(..) => {
                *over = Over::Open;
                Ok(None)
            }
        }
    }
}

impl Route {
    /// Whether a lane is open.
    pub(crate) fn has_lane(&self) -> bool {
        let lane = self.process.lanes.lane(self.standing.handle());
        lane.is_some_and(|lane| !lane.failed.load(Ordering::Relaxed))
    }

    /// The lane that a transfer goes by; without one the services do it.
    pub(crate) fn lane(&self) -> Option<Arc<Lane>> {
        if !self.standing.is_elsewhere() {
            return None;
        }
        let (lanes, handle) = (&self.process.lanes, self.standing.handle());
        let lane = lanes.lane(handle);
        if lane.is_none() && lanes.may_ask(handle) {
            // Without an answer it goes through the services.
            let _ = self.process.connection().post(&Request::Lane { handle }, &[]);
        }
        lane
    }
}
