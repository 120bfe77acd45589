//! The process's command queue at one service: what the library cannot write itself, the service's engine does.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmmc_os::{Access, Descriptor, Mapping, OsError, create_memory, futex_wait, futex_wake};
use vmmc_shm::command::{Claim, Command, CommandQueue, MEMORY, Outcome, PAYLOAD, PIECE, SLOTS};

use crate::connection::{Connection, RequestError};
use crate::process::{Inner, lock};
use vmmc_proto::Request;

/// The longest sleep before the service's life is looked at: its death wakes nobody who sleeps on a word.
const LOOK: Duration = Duration::from_millis(10);

/// How long a poster looks before it sleeps. Over a link an answer mostly comes sooner than a sleeper is woken.
const SPIN: Duration = Duration::from_micros(50);

/// A queue whose memory a service knows. A new service gets a new queue.
#[derive(Debug)]
pub(crate) struct Commands {
    mapping: Mapping,
    /// Whose command is in each slot. A slot's entry is touched only by whoever claimed the slot or reaps it, so nobody ever waits here.
    owners: [Mutex<Option<Owner>>; SLOTS],
    /// A thread looks for completions without sleeping.
    spinning: AtomicBool,
}

/// Whose command is in a slot, and where in its flight's bytes a fetched piece belongs.
#[derive(Debug)]
struct Owner {
    flight: Arc<Flight>,
    fetched: Option<Range<usize>>,
}

/// Commands that belong together.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    left: AtomicUsize,
    failed: Mutex<Option<Outcome>>,
    /// What is fetched. Its own, because whoever waits for it may give up while it still comes.
    bytes: Mutex<Vec<u8>>,
}

impl Flight {
    /// For commands that fetch `len` bytes.
    pub(crate) fn fetching(len: usize) -> Self {
        Self { bytes: Mutex::new(vec![0; len]), ..Self::default() }
    }

    /// What was fetched, all of it once the flight is over.
    pub(crate) fn fetched(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.bytes)
    }

    fn land(&self, outcome: Outcome) {
        if outcome != Outcome::Done {
            lock(&self.failed).get_or_insert(outcome);
        }
        // Release: pairs with the load in `is_over`.
        self.left.fetch_sub(1, Ordering::Release);
    }

    /// Whether all posted commands are over.
    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// The first command that failed, among those that are over.
    pub(crate) fn failure(&self) -> Option<Outcome> {
        *lock(&self.failed)
    }
}

impl Commands {
    fn new() -> Result<(Self, Descriptor), OsError> {
        let memory = create_memory(MEMORY)?;
        let mapping = Mapping::new(&memory, 0, MEMORY, Access::ReadWrite)?;
        let owners = std::array::from_fn(|_| Mutex::new(None));
        Ok((Self { mapping, owners, spinning: AtomicBool::new(false) }, memory))
    }

    /// Posts a command that fetches at most [`PIECE`] bytes to this place in its flight's; `false` if there is no room now.
    pub(crate) fn post_fetch(
        &self,
        connection: &Connection,
        flight: &Arc<Flight>,
        command: &Command,
        place: Range<usize>,
    ) -> bool {
        debug_assert!(place.len() <= PIECE && place.len() as u64 == command.len);
        let Some(claim) = self.queue().claim() else { return false };
        self.hand_over(connection, flight, claim, command, Some(place));
        true
    }

    /// Posts one command with at most [`PIECE`] bytes of payload; `false` if there is no room now.
    pub(crate) fn post(
        &self,
        connection: &Connection,
        flight: &Arc<Flight>,
        command: &Command,
        payload: &[u8],
    ) -> bool {
        debug_assert!(payload.len() <= PIECE);
        let Some(claim) = self.queue().claim() else { return false };
        let slot = claim.slot();
        // SAFETY: the slot's payload lies in the mapping (`MEMORY` bytes), and is ours from the claim to the post; `payload` is
        // memory of its own.
        unsafe {
            let place = self.mapping.as_ptr().add(PAYLOAD + slot * PIECE);
            vmmc_shm::copy(payload.as_ptr(), place, payload.len().min(PIECE));
        }
        self.hand_over(connection, flight, claim, command, None);
        true
    }

    fn hand_over(
        &self,
        connection: &Connection,
        flight: &Arc<Flight>,
        claim: Claim,
        command: &Command,
        fetched: Option<Range<usize>>,
    ) {
        flight.left.fetch_add(1, Ordering::Relaxed);
        let owner = Owner { flight: Arc::clone(flight), fetched };
        *lock(&self.owners[claim.slot()]) = Some(owner);
        if self.queue().post(claim, command) {
            // If there is no room for it, the service has something of ours to read, which does as well.
            let _ = connection.post(&Request::Ring, &[]);
        }
    }

    /// Sleeps until `found` says so or something may have changed: a command is over, the service may be gone. Spurious returns are part of it.
    pub(crate) fn pause(&self, mut found: impl FnMut() -> bool) {
        if self.spin(&mut found) {
            return;
        }
        let expected = self.queue().announce_wait();
        // Behind the announcement: whatever is over later wakes us.
        self.reap();
        if !found() {
            let _ = futex_wait(self.queue().completed(), expected, Some(LOOK));
        }
        self.queue().awake();
        self.reap();
    }

    /// Ends a pause of other threads.
    pub(crate) fn nudge(&self) {
        if self.queue().announce_completions() {
            futex_wake(self.queue().completed(), u32::MAX >> 1);
        }
    }

    /// Changes when anything was completed.
    pub(crate) fn completions(&self) -> u32 {
        self.queue().completed().load(Ordering::Relaxed)
    }

    /// Looks for a while without sleeping, unless another thread does so already: many would only take the processor from the engine.
    fn spin(&self, found: &mut impl FnMut() -> bool) -> bool {
        if self.spinning.swap(true, Ordering::Relaxed) {
            return false;
        }
        let start = Instant::now();
        let mut done = false;
        while !done && start.elapsed() < SPIN {
            std::thread::yield_now();
            self.reap();
            done = found();
        }
        self.spinning.store(false, Ordering::Relaxed);
        done
    }

    /// Takes what was done, for whomever.
    pub(crate) fn reap(&self) {
        let mut reaped = false;
        for (slot, owner) in self.owners.iter().enumerate() {
            reaped |= self
                .queue()
                .reap(slot, |outcome| {
                    let Some(Owner { flight, fetched }) = lock(owner).take() else { return };
                    if let Some(place) = fetched
                        && let Some(bytes) = flight.fetched().get_mut(place)
                    {
                        // SAFETY: the slot's payload lies in the mapping, is no shorter than a piece, and is ours until the slot is free;
                        // `bytes` is memory of its own, and at most a piece.
                        unsafe {
                            let payload = self.mapping.as_ptr().add(PAYLOAD + slot * PIECE);
                            vmmc_shm::copy(payload, bytes.as_mut_ptr(), bytes.len().min(PIECE));
                        }
                    }
                    flight.land(outcome);
                })
                .is_some();
        }
        // Somebody else may sleep over what we have just taken.
        if reaped {
            self.nudge();
        }
    }

    fn queue(&self) -> &CommandQueue {
        // SAFETY: the mapping is page-aligned, longer than a queue, writable, and lives as long as `self`.
        unsafe { CommandQueue::at(self.mapping.as_ptr()) }
    }
}

impl Inner {
    /// The connection with its queue, which the first caller shows to the service.
    pub(crate) fn commands(&self) -> Result<(Arc<Connection>, Arc<Commands>), RequestError> {
        if self.is_forked() {
            return Err(RequestError::Lost);
        }
        let ready = |connection: Arc<Connection>| {
            let commands = lock(&connection.commands).clone();
            commands.filter(|_| !connection.is_lost()).map(|commands| (connection, commands))
        };
        if let Some(found) = ready(self.connection()) {
            return Ok(found);
        }
        let _one = lock(&self.attaching);
        if let Some(found) = ready(self.connection()) {
            return Ok(found);
        }
        let (commands, memory) = Commands::new().map_err(|_| RequestError::Unsendable)?;
        let commands = Arc::new(commands);
        let (connection, ..) = self.request(&[memory.as_fd()], |seq| Request::Queue { seq })?;
        *lock(&connection.commands) = Some(Arc::clone(&commands));
        Ok((connection, commands))
    }
}
