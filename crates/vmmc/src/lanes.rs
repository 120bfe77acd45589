//! The engine that a process hosts itself: its ends of lanes, polled by whoever waits.
//!
//! ```text
//!  a thread that sends, or waits ──┐
//!                                  ├─ poll ─► Port ◄── UDP ──► the engine of another process
//!  the engine's own thread ────────┘           │
//!   (sleeps while others look)                 └─ exports of this process, buffers of calls that wait
//! ```
//!
//! A lane carries one import ([`Lane`](crate::lane::Lane)); those between the same two processes, both ways, share a link. Whoever waits looks at the sockets itself; the thread does it when nobody has for a
//! while, so that a process that computes goes on answering. A process that is *stopped* answers nobody: then its service fences the lane
//! ([`vmmc_shm::lane`]), and the import goes on through the services.

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use vmmc_link::{Binding, Config, Event as LinkEvent, Keys, Recovery, Secret, Time};
use vmmc_ni::fabric::UdpFabric;
use vmmc_ni::port::{LinkNumber, Port};
use vmmc_os::{Access, Descriptor, Event, ForkMark, Inlet, Mapping, start_thread, wait_readable};
use vmmc_proto::{Answer, PAGE_SIZE, Rights};
use vmmc_shm::lane::CHANNELS;

use crate::lane::Lane;
use crate::process::{Inner, lock};

mod board;
mod here;
mod pause;

pub(crate) use here::Reachable;
use here::{Arrival, Here};
pub(crate) use pause::AtTheLanes;

/// How long after somebody looked the thread leaves the sockets to them.
const ATTENDED: Duration = Duration::from_micros(500);
/// So many looks without a sleep in between, and datagrams need not wake anybody any more.
const HABIT: u32 = 64;
/// From then on every so manieth look is a whole one.
const WHOLE: u32 = 16;
/// How long whoever waits looks without sleeping. A sleeper costs its waker, and then itself, about as much.
pub(crate) const SPIN: Duration = Duration::from_micros(50);
/// How long after a lane has ended another is asked for: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Uses of a channel that the page can tell apart.
const MOST_GENERATIONS: u32 = 0xffff;
/// Both ends of a lane are made for each other: there is no earlier life of either.
const INCARNATION: u32 = 1;

/// The process's engine. Does nothing, and has no thread, before the first lane.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Set before there is anything to poll.
    mark: OnceLock<ForkMark>,
    floor: i32,
    /// Alone leads to the code of the engine; see [`Lanes::none`].
    engine: Option<&'static Engine>,
    started: Instant,
    /// Dropped by the engine.
    state: Mutex<ManuallyDrop<State>>,
    /// Lanes of this process's imports, by handle.
    lanes: Mutex<HashMap<u64, Arc<Lane>>>,
    /// When an import whose lane has ended may ask for another, and how long it waits then.
    pauses: Mutex<HashMap<u64, (Instant, Duration)>>,
    /// Exports that lanes may be opened to, by number.
    reachable: Mutex<HashMap<u64, Reachable>>,
    /// The sockets once more, to sleep on.
    sockets: Mutex<Arc<Vec<Descriptor>>>,
    /// Links; without any there is nothing to poll.
    ends: AtomicUsize,
    /// When somebody other than the thread last looked, in nanoseconds since `started`.
    attended: AtomicU64,
    /// Transfers by lanes that are not over.
    pub(crate) flights: AtomicUsize,
    /// Changes when any of them may be.
    pub(crate) news: AtomicU32,
    /// Wakes the thread of asynchronous operations, which sleeps on the sockets.
    pub(crate) alarm: OnceLock<Event>,
    running: AtomicBool,
    /// The thread has to look anew, or to end.
    bell: OnceLock<Event>,
    stopping: AtomicBool,
    /// Whose lanes these are.
    pub(crate) home: OnceLock<Weak<Inner>>,
    /// Where it tells of its paths, once that is announced; and when it did last, in nanoseconds since `started`.
    board: OnceLock<Mapping>,
    told: AtomicU64,
}

/// What is reached by pointers alone, so that the linker can leave it out.
#[derive(Debug)]
struct Engine {
    /// Takes messages about lanes. Nothing else ever gives a process a link.
    take: fn(&Arc<Lanes>, Answer, Vec<Descriptor>),
    give_back: fn(&mut State, &Lane),
    end: fn(&mut ManuallyDrop<State>),
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) port: Port<UdpFabric>,
    pub(crate) here: Here,
    /// Looks since somebody slept.
    looks: u32,
    /// Threads that sleep until something comes, without that of the engine.
    sleepers: u32,
}

/// What a look at the engine found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// There was something to do.
    Busy,
    Nothing,
    /// Nothing has come; the time, and the rest, will be looked at some looks later.
    Quiet,
}

impl State {
    /// Somebody other than the thread looks; whether that has become a habit just now.
    fn looked(&mut self) -> bool {
        if self.sleepers > 0 {
            return false;
        }
        self.looks = if self.looks < u32::MAX { self.looks + 1 } else { HABIT + 1 };
        if self.looks == HABIT {
            self.port.attend(true);
        }
        self.looks == HABIT
    }

    /// Whether a load shows that there is nothing to do yet.
    fn is_quiet(&self) -> bool {
        self.looks > HABIT && !self.looks.is_multiple_of(WHOLE) && self.port.is_quiet()
    }

    /// Somebody is going to sleep, to be woken by what comes. Whether something has come already.
    fn rest(&mut self) -> bool {
        let attended = std::mem::take(&mut self.looks) >= HABIT;
        attended && self.port.attend(false)
    }

    /// The import of a lane is given back.
    fn give_back(&mut self, lane: &Lane) {
        if self.here.forget(lane)
            && let Some(link) = self.port.link(lane.number)
        {
            let _ = link.close_import(lane.import);
        }
    }

    /// Sends what was commanded, at once.
    pub(crate) fn push(&mut self, now: Time) {
        self.port.push(now, &mut self.here);
    }
}

impl Lanes {
    pub(crate) fn new(floor: i32) -> Self {
        const ENGINE: Engine = Engine {
            take: Lanes::take_up,
            give_back: State::give_back,
            // SAFETY: called once, by the drop of the `Lanes`, after which nobody sees the state.
            end: |state| unsafe { ManuallyDrop::drop(state) },
        };
        Self::with(floor, Some(&ENGINE))
    }

    /// For a process that never has lanes. Nothing in it leads to the engine, so the linker leaves the code of packets and keys, and their
    /// tables, out of a library that opens VMMC only so.
    pub(crate) fn none(floor: i32) -> Self {
        Self::with(floor, None)
    }

    fn with(floor: i32, engine: Option<&'static Engine>) -> Self {
        Self {
            mark: OnceLock::new(),
            floor,
            engine,
            started: Instant::now(),
            // The port last: what came after it would drop it, should it panic.
            state: Mutex::new(ManuallyDrop::new(State {
                looks: 0,
                sleepers: 0,
                here: Here::default(),
                port: Port::new(Vec::new()),
            })),
            lanes: Mutex::default(),
            pauses: Mutex::default(),
            reachable: Mutex::default(),
            sockets: Mutex::default(),
            ends: AtomicUsize::new(0),
            attended: AtomicU64::new(0),
            flights: AtomicUsize::new(0),
            news: AtomicU32::new(0),
            alarm: OnceLock::new(),
            running: AtomicBool::new(false),
            bell: OnceLock::new(),
            stopping: AtomicBool::new(false),
            home: OnceLock::new(),
            board: OnceLock::new(),
            told: AtomicU64::new(0),
        }
    }

    /// The descriptors that it sleeps on.
    pub(crate) fn raw_fds(&self) -> Vec<RawFd> {
        let sockets = Arc::clone(&lock(&self.sockets));
        let sockets = sockets.iter().map(AsRawFd::as_raw_fd);
        let events = [&self.bell, &self.alarm].into_iter().filter_map(OnceLock::get);
        sockets.chain(events.map(|event| event.as_fd().as_raw_fd())).collect()
    }

    // Exports.

    /// Lanes may be opened to an export.
    pub(crate) fn admit(&self, number: u64, export: Reachable) {
        lock(&self.reachable).insert(number, export);
    }

    /// Nothing is placed in an export any more.
    pub(crate) fn withdraw(&self, number: u64) {
        lock(&self.reachable).remove(&number);
        if self.ends.load(Ordering::Acquire) > 0 {
            self.lock().here.withdraw(number);
        }
    }

    // What the service says.

    /// Takes a message about lanes; one that cannot be used leaves its import to the services.
    pub(crate) fn take(self: &Arc<Self>, answer: Answer, descriptors: Vec<Descriptor>) {
        if let Some(engine) = self.engine {
            (engine.take)(self, answer, descriptors);
        }
    }

    fn take_up(self: &Arc<Self>, answer: Answer, descriptors: Vec<Descriptor>) {
        match answer {
            Answer::LaneSockets => self.begin(descriptors),
            Answer::LaneInlets => self.shorten(&descriptors),
            Answer::LaneOpened { handle, lane } => self.opened(handle, &lane),
            Answer::LaneOffered { number, rights, lane } => {
                self.offered(number, rights, &lane, descriptors.first());
            }
            Answer::LaneWithdrawn { link, export } => self.withdrawn(link, export),
            _ => {}
        }
    }

    /// The sockets of a service that was met: lanes by an earlier one are no more.
    fn begin(self: &Arc<Self>, descriptors: Vec<Descriptor>) {
        let Ok(mark) = ForkMark::new() else { return };
        let _ = self.mark.set(mark);
        let event = || Event::new().and_then(|event| event.raise(self.floor));
        let (Ok(bell), Ok(alarm)) = (event(), event()) else { return };
        let raised = descriptors.into_iter().map(|socket| socket.raise(self.floor));
        let Ok(sockets) = raised.collect::<Result<Vec<_>, _>>() else { return };
        let again = sockets.iter().map(|socket| {
            let again = Descriptor::duplicate(socket.as_fd()).ok()?.raise(self.floor).ok()?;
            UdpFabric::over(again.into()).ok()
        });
        let Some(fabrics) = again.collect::<Option<Vec<_>>>() else { return };
        {
            let mut state = self.lock();
            state.here.end_all();
            state.port = Port::new(fabrics);
            state.looks = 0;
            self.ends.store(0, Ordering::Release);
        }
        lock(&self.lanes).clear();
        *lock(&self.sockets) = Arc::new(sockets);
        let _ = self.bell.set(bell);
        let _ = self.alarm.set(alarm);
        self.bell.get().map(Event::signal);
        if !self.running.swap(true, Ordering::AcqRel) {
            let lanes = Arc::clone(self);
            if start_thread("vmmc-engine", move || lanes.run()).is_err() {
                self.running.store(false, Ordering::Release);
            }
        }
    }

    /// Short ways in, by path.
    fn shorten(&self, rings: &[Descriptor]) {
        let mut state = self.lock();
        state.looks = 0;
        for (fabric, ring) in state.port.fabrics_mut().iter_mut().zip(rings) {
            // One that cannot be used is closed, so that everything comes by the socket.
            if let Ok(inlet) = Inlet::over(ring) {
                fabric.shorten(inlet);
            }
        }
    }

    /// A lane of one of our imports.
    fn opened(&self, handle: u64, lane: &vmmc_proto::Lane) {
        if !self.running.load(Ordering::Acquire) {
            return;
        }
        let binding = Binding { export: lane.export, capability: lane.capability };
        let mut state = self.lock();
        let Some(number) = self.open(&mut state, lane) else { return };
        let Some(link) = state.port.link(number) else { return };
        let Ok(import) = link.import(binding) else { return };
        if usize::from(import.channel()) >= CHANNELS || import.generation() > MOST_GENERATIONS {
            // The service could not tell how far it got.
            let _ = link.close_import(import);
            return;
        }
        let paths = lane.peer_addresses.len();
        let lane = Arc::new(Lane::new(handle, number, import, paths));
        state.here.end(number).lanes.insert(import.channel(), Arc::clone(&lane));
        drop(state);
        lock(&self.lanes).insert(handle, lane);
    }

    /// A lane to one of our exports.
    fn offered(
        &self,
        number: u64,
        rights: Rights,
        lane: &vmmc_proto::Lane,
        page: Option<&Descriptor>,
    ) {
        let page = page.map(|page| Mapping::new(page, 0, PAGE_SIZE, Access::ReadWrite));
        let Ok(page) = page.transpose() else { return };
        let mut state = self.lock();
        // Held until the arrival is entered, so that an export that is taken back meanwhile is not missed.
        let reachable = lock(&self.reachable);
        self.sweep(&mut state);
        let Some(link) = self.open(&mut state, lane) else { return };
        let end = state.here.end(link);
        end.page = page.or(end.page.take());
        if let Some(target) = reachable.get(&number) {
            let arrival = Arrival::new(lane.capability, rights, number, target.clone());
            end.arrivals.insert(lane.export, arrival);
        }
    }

    /// A lane to one of our exports was given back.
    fn withdrawn(&self, link: u32, export: u64) {
        self.lock().here.withdrawn(link, export);
    }

    /// The link of a lane; the first one opens it.
    fn open(&self, state: &mut State, lane: &vmmc_proto::Lane) -> Option<LinkNumber> {
        if let Some(number) = state.here.number_of(lane.link) {
            return Some(number);
        }
        let config = Config {
            remote_link: lane.peer_link,
            incarnation: INCARNATION,
            peer_incarnation: INCARNATION,
            max_mtu: lane.max_mtu,
            recovery: if lane.go_back_n { Recovery::GoBackN } else { Recovery::Selective },
            ..Config::default()
        };
        let (send, receive) = (Secret(lane.secrets.0), Secret(lane.secrets.1));
        let keys = if lane.encrypted { Keys::Encrypted { send, receive } } else { Keys::Plaintext };
        let number = state.port.adopt(lane.link).ok()?;
        let addresses = lane.peer_addresses.clone();
        state.port.open(number, config, &keys, addresses, self.now()).ok()?;
        state.port.settle_peers();
        state.here.begin(number);
        self.ends.fetch_add(1, Ordering::AcqRel);
        Some(number)
    }

    /// Forgets links that the service has fenced.
    fn sweep(&self, state: &mut State) {
        for number in state.here.fenced() {
            self.close(state, number);
        }
    }

    /// Forgets a link; what lanes it carried have failed.
    fn close(&self, state: &mut State, number: LinkNumber) {
        if let Some(end) = state.here.ends.remove(&number) {
            end.lanes.values().for_each(|lane| lane.fail());
            state.port.close(number);
            state.port.settle_peers();
            self.ends.fetch_sub(1, Ordering::AcqRel);
        }
    }

    // Imports.

    /// The lane of an import, if it has one.
    pub(crate) fn lane(&self, handle: u64) -> Option<Arc<Lane>> {
        if !self.is_active() {
            return None;
        }
        lock(&self.lanes).get(&handle).cloned()
    }

    /// An import's lane has ended, and all that share its link; another may be asked for later.
    pub(crate) fn ended(&self, lane: &Lane) {
        lock(&self.lanes).remove(&lane.handle);
        self.close(&mut self.lock(), lane.number);
        let mut pauses = lock(&self.pauses);
        let pause = pauses.get(&lane.handle).map_or(FIRST_PAUSE, |(_, pause)| *pause);
        // One that was of use is not held against the next.
        let pause = if lane.age() > 10 * pause { FIRST_PAUSE } else { pause };
        pauses.insert(lane.handle, (Instant::now() + pause, (pause * 2).min(LONGEST_PAUSE)));
    }

    /// Whether it is time to ask for another lane of an import that had one.
    pub(crate) fn may_ask(&self, handle: u64) -> bool {
        let mut pauses = lock(&self.pauses);
        let Some((at, pause)) = pauses.get_mut(&handle) else { return false };
        let due = *at <= Instant::now();
        if due {
            *at = Instant::now() + *pause;
        }
        due
    }

    /// An import is given back.
    pub(crate) fn forget(&self, handle: u64) {
        lock(&self.pauses).remove(&handle);
        if let (Some(engine), Some(lane)) = (self.engine, lock(&self.lanes).remove(&handle)) {
            (engine.give_back)(&mut self.lock(), &lane);
        }
    }

    // Polling.

    /// Lets the engine work, unless somebody does so already. Whether anything happened.
    pub(crate) fn poll(&self) -> bool {
        self.look() == Look::Busy
    }

    /// As [`Lanes::poll`]; most looks in a row cost some loads only.
    pub(crate) fn look(&self) -> Look {
        if !self.is_active() {
            return Look::Nothing;
        }
        let attend = || {
            let now = self.now();
            self.attended.store(now.as_nanos(), Ordering::Relaxed);
            now
        };
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => {
                attend();
                return Look::Nothing;
            }
        };
        let became_habit = state.looked();
        if state.is_quiet() {
            return Look::Quiet;
        }
        let now = attend();
        if became_habit {
            // The thread may be asleep, and nothing will wake it when the habit ends.
            self.bell.get().map(Event::signal);
        }
        if self.turn(&mut state, now) { Look::Busy } else { Look::Nothing }
    }

    /// As [`Lanes::poll`], by who has the state.
    pub(crate) fn turn(&self, state: &mut State, now: Time) -> bool {
        let State { port, here, .. } = &mut *state;
        let busy = port.poll(now, here);
        while let Some((number, event)) = port.poll_event() {
            let Some(end) = here.ends.get(&number) else { continue };
            match event {
                LinkEvent::Completed { import, through } => {
                    end.lanes.get(&import.channel()).iter().for_each(|lane| {
                        lane.completed(import, through);
                    });
                }
                LinkEvent::Refused { import, .. } => {
                    end.lanes.get(&import.channel()).iter().for_each(|lane| lane.refuse());
                }
                LinkEvent::Ended(_) => end.lanes.values().for_each(|lane| lane.fail()),
                LinkEvent::Closed { .. } | LinkEvent::Path { .. } => {}
            }
            // Release: what has become of transfers is seen by whoever sees this.
            self.news.fetch_add(1, Ordering::Release);
        }
        self.tell_in_turn(state, now);
        busy
    }

    /// Sends the acknowledgements that are owed: whoever has slept will hardly send something for them to go with at once.
    pub(crate) fn answer(&self) {
        let now = self.now();
        let mut state = self.lock();
        state.port.acknowledge(now);
        self.turn(&mut state, now);
    }

    /// Sleeps until something comes for the engine or on `others`, at most `timeout`.
    pub(crate) fn sleep(&self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) {
        {
            let mut state = self.lock();
            if state.rest() {
                return;
            }
            state.sleepers += 1;
        }
        self.wait(others, timeout);
        self.lock().sleepers -= 1;
    }

    fn wait(&self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) {
        let sockets = Arc::clone(&lock(&self.sockets));
        let deadline = self.deadline();
        let timeout = timeout.into_iter().chain(deadline).min();
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).chain(others.iter().copied()).collect();
        let _ = wait_readable(&fds, timeout);
    }

    /// Whether the engine has anything to be polled for.
    pub(crate) fn is_active(&self) -> bool {
        // A forked child must not touch the sockets that it shares with its parent.
        self.ends.load(Ordering::Acquire) > 0
            && self.mark.get().is_some_and(|mark| !mark.is_forked())
    }

    pub(crate) fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    pub(crate) fn time_of(&self, instant: Instant) -> Time {
        let elapsed = instant.duration_since(self.started).as_nanos();
        Time::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ManuallyDrop<State>> {
        lock(&self.state)
    }

    /// How long until the engine has to be polled although nothing comes.
    fn deadline(&self) -> Option<Duration> {
        let now = self.now();
        self.lock().port.deadline(now).map(|at| at - now)
    }

    /// The engine's thread: looks when nobody else has for a while.
    fn run(self: &Arc<Self>) {
        let Some(bell) = self.bell.get() else { return };
        let mut announced = false;
        loop {
            // Before what it may tell of is looked at.
            bell.drain();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if !announced && self.is_active() {
                announced = true;
                self.announce_board();
            }
            let now = self.now();
            let looked = Time::from_nanos(self.attended.load(Ordering::Relaxed));
            if looked != Time::ZERO && now - looked < ATTENDED {
                std::thread::sleep(ATTENDED);
                continue;
            }
            if self.turn(&mut self.lock(), now) {
                self.answer();
                continue;
            }
            self.tell(&self.lock(), now);
            if !self.lock().rest() {
                self.wait(&[bell.as_fd()], None);
            }
        }
    }

    /// The process ends: the thread does too.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.get().map(Event::signal);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        // Without an engine there is nothing in it, and no memory to give back.
        if let Some(engine) = self.engine {
            (engine.end)(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
    }
}
