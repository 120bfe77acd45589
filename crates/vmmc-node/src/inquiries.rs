//! Who has a connection: processes ask before they lift one that others may have inherited or got passed.
//!
//! To look at all processes takes milliseconds, or longer on a crowded host, so a thread does it, for all who wait at the time.

use std::collections::HashSet;
use std::mem::take;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vmmc_os::{Event, Holding, OsError, holding, start_thread};
use vmmc_proto::OfferId;

use crate::clients::ClientKey;

/// A process's question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inquiry {
    pub(crate) client: ClientKey,
    pub(crate) id: OfferId,
    pub(crate) pid: u32,
    /// As `/proc` numbers it. The descriptor is not kept: that would delay its closing.
    pub(crate) socket: u64,
}

/// All questions that are not answered.
#[derive(Debug)]
pub(crate) struct Inquiries {
    waiting: Vec<Inquiry>,
    /// Those for which a thread looks just now.
    under_way: Vec<Inquiry>,
    /// Not before, lest looking take a noticeable share of a processor.
    may_look: Instant,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    /// Readable when a thread has looked.
    pub(crate) bell: Arc<Event>,
}

#[derive(Debug)]
struct Report {
    found: Vec<Holding>,
    took: Duration,
}

impl Inquiries {
    /// Most that wait, of all and of one process.
    const MAX_WAITING: usize = 4096;
    const MAX_OF_CLIENT: usize = 256;
    /// Looking may take one part of so many, but nobody waits for longer than this because one look was interrupted.
    const SHARE: u32 = 20;
    const LONGEST_PAUSE: Duration = Duration::from_millis(500);

    pub(crate) fn new() -> Result<Self, OsError> {
        let (reporter, reports) = channel();
        Ok(Self {
            waiting: Vec::new(),
            under_way: Vec::new(),
            may_look: Instant::now(),
            reports,
            reporter,
            bell: Arc::new(Event::new()?),
        })
    }

    /// Puts the question in the queue; false if that is too long.
    pub(crate) fn wait(&mut self, inquiry: Inquiry) -> bool {
        let own = self.waiting.iter().filter(|other| other.client == inquiry.client).count();
        let room = self.waiting.len() < Self::MAX_WAITING && own < Self::MAX_OF_CLIENT;
        if room {
            self.waiting.push(inquiry);
        }
        room
    }

    /// When to call [`Self::look`] at the latest; `None` while nobody waits for that.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        (self.under_way.is_empty() && !self.waiting.is_empty())
            .then(|| self.may_look.saturating_duration_since(Instant::now()))
    }

    /// Has a thread look for all that wait, if it is time. `clients` are the service's processes.
    pub(crate) fn look(&mut self, clients: impl FnOnce() -> HashSet<u32>) {
        if self.timeout() != Some(Duration::ZERO) {
            return;
        }
        self.under_way = take(&mut self.waiting);
        let asked: Vec<_> = self.under_way.iter().map(|one| (one.socket, one.pid)).collect();
        let (known, reporter, bell) = (clients(), self.reporter.clone(), Arc::clone(&self.bell));
        let started = start_thread("holders", move || {
            let start = Instant::now();
            let found = holding(&asked, &known);
            // Fails only when the service has ended.
            if reporter.send(Report { found, took: start.elapsed() }).is_ok() {
                bell.signal();
            }
        });
        if started.is_err() {
            let found = vec![Holding::Shared; self.under_way.len()];
            let _ = self.reporter.send(Report { found, took: Duration::ZERO });
            self.bell.signal();
        }
    }

    /// What was found since the last call.
    pub(crate) fn found(&mut self) -> Vec<(Inquiry, Holding)> {
        let Ok(Report { found, took }) = self.reports.try_recv() else { return Vec::new() };
        self.bell.drain();
        self.may_look = Instant::now() + (Self::SHARE * took).min(Self::LONGEST_PAUSE);
        take(&mut self.under_way).into_iter().zip(found).collect()
    }
}
