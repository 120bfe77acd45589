//! `notify`: what a notification costs, in the parts of the paper's figure 9.
//!
//! | part | from | to |
//! |---|---|---|
//! | `post` | the sender calls `send_notify` | the call has returned |
//! | `wake` | the call has returned | the handler's first instruction (the paper's interrupt and scheduling) |
//! | `run` | the handler's first instruction | its last: it reads the 8 bytes that were sent |
//! | `return` | the handler's last instruction | the thread that it interrupted goes on (only `-busy`) |
//! | `total` | the call | the last part's end |
//!
//! Ways: `vmmc` runs a handler on the library's notification thread, `vmmc-wait` wakes a thread
//! waiting on the export; `vmmc-awake` is seen by a thread that polls, and makes no system call;
//! `eventfd` and `futex` are the bare wakes by hand. With the suffix `-busy`
//! a thread computes on the receiver's core, and is interrupted; otherwise the core is idle, and
//! there is nobody to return to. The receiver sleeps before each notification, but for `vmmc-awake`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::futex;
use serde::{Deserialize, Serialize};
use vmmc::{Import, Notify, Rights, WaitError};

use crate::BenchError;
use crate::clock::Clock;
use crate::links::{Links, Peer};
use crate::machine::{Machine, pin};
use crate::options::{Bench, Options};
use crate::peer::Order;
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::rounds::{Plan, Round, in_turns};
use crate::shared_memory::{Mapping, nameless_memory};
use crate::statistics::Samples;
use crate::vmmc_memory::import;

/// How the receiver is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Handler,
    Wait,
    Awake,
    Eventfd,
    Futex,
}

/// What the receiver is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NotifyOrder {
    way: Way,
    busy: bool,
    core: usize,
    /// Notifications to take.
    count: u64,
}

const WAYS: [(Way, bool, &str); 9] = [
    (Way::Handler, false, "vmmc"),
    (Way::Wait, false, "vmmc-wait"),
    (Way::Awake, false, "vmmc-awake"),
    (Way::Eventfd, false, "eventfd"),
    (Way::Futex, false, "futex"),
    (Way::Handler, true, "vmmc-busy"),
    (Way::Wait, true, "vmmc-wait-busy"),
    (Way::Eventfd, true, "eventfd-busy"),
    (Way::Futex, true, "futex-busy"),
];

const PARTS: [&str; 5] = ["total", "post", "wake", "run", "return"];

/// The page that both sides see: the receiver's stamps, and the futex.
mod stamps {
    pub(super) const STARTED: usize = 0;
    pub(super) const ENDED: usize = 8;
    pub(super) const RETURNED: usize = 16;
    /// Number of the last notification whose stamps are complete.
    pub(super) const NUMBER: usize = 24;
    /// The futex word of [`super::Way::Futex`].
    pub(super) const FUTEX: usize = 128;
    /// Where the 8 bytes are sent by the ways without VMMC.
    pub(super) const PAYLOAD: usize = 192;
}

/// Idle time before each notification, so that the receiver is asleep.
const REST: Duration = Duration::from_micros(150);

/// Measures all ways.
pub(crate) fn run(options: &Options, machine: &Machine) -> Result<Vec<Row>, BenchError> {
    let sizes = options.sizes_for(Bench::Notify)?;
    let plan = Plan {
        rounds: options.rounds_of(Bench::Notify),
        slice: options.slice(Bench::Notify, WAYS.len())?,
    };
    let progress = Progress::new(options.progress, "notify", WAYS.len() * plan.rounds);
    let mut peer = Peer::start(&options.peer, machine)?;
    let mut parts: Vec<Vec<[Samples; 5]>> = WAYS.iter().map(|_| Vec::new()).collect();
    let indices: Vec<usize> = (0..WAYS.len()).collect();
    let series =
        in_turns(&mut peer, &sizes[..1], &indices, plan, &progress, |peer, way, _, slice| {
            let samples = notifications(peer, WAYS[way], machine.pinned[1], slice)?;
            let cpu_us = samples.1;
            parts[way].push(samples.0);
            let middle = parts[way].last().map_or_else(Samples::new, |parts| parts[0].clone());
            Ok(Round { middle, tails: None, cpu_us, busy: None })
        })?;
    let mut rows = Vec::new();
    for (series, rounds) in series.into_iter().zip(&parts) {
        let (_, busy, name) = WAYS[series.path];
        for (index, part) in
            PARTS.into_iter().enumerate().filter(|(_, part)| busy || *part != "return")
        {
            let mut row = row(name, part, rounds.iter().map(|round| &round[index]));
            row.line_us = Some(series.line_us);
            row.cpu_us = (part == "total").then_some(series.cpu_us);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn row<'a>(path: &str, part: &'static str, rounds: impl Iterator<Item = &'a Samples>) -> Row {
    let clock = Clock::calibrated();
    let (mut all, mut middles) = (Samples::new(), Vec::new());
    for round in rounds {
        all.merge(round);
        middles.push(round.quantile(0.5));
    }
    let microseconds = |ticks: f64| clock.microseconds(ticks);
    Row::new(path, 8, Unit::Microseconds, microseconds(crate::statistics::median(&middles)))
        .tails(microseconds(all.quantile(0.99)), microseconds(all.quantile(0.999)), all.len())
        .part(part)
}

/// The sender's side: as many notifications as the slice has time for, at least ten.
fn notifications(
    peer: &mut Peer,
    (way, busy, _): (Way, bool, &str),
    core: usize,
    slice: Duration,
) -> Result<([Samples; 5], f64), BenchError> {
    let count = (slice.as_secs_f64() / (REST.as_secs_f64() * 1.5)).clamp(10.0, 20_000.0) as u64;
    let order = Order::Notify(NotifyOrder { way, busy, core, count });
    let mut samples = [(); 5].map(|()| Samples::new());
    let ((), cpu) = peer.together(&order, |links| {
        let (_, page): (String, OwnedFd) = links.control.hear_with()?;
        let page = Mapping::of(page, 4096)?;
        let bell = Bell::hear_of(way, links)?;
        let clock = Clock::calibrated();
        for number in 1..=count {
            let rest = clock.now() + clock.ticks(REST);
            while clock.now() < rest {}
            let called = clock.now();
            bell.ring(&page, number)?;
            let posted = clock.now();
            links.spin.until(|| page.word(stamps::NUMBER).load(Ordering::Acquire) == number)?;
            let [started, ended, returned] = [stamps::STARTED, stamps::ENDED, stamps::RETURNED]
                .map(|at| page.word(at).load(Ordering::Relaxed));
            let end = if busy { returned } else { ended };
            let parts = [
                (called, end),
                (called, posted),
                (posted, started),
                (started, ended),
                (ended, returned),
            ];
            for (samples, (from, to)) in samples.iter_mut().zip(parts) {
                samples.record(clock.ticks_between(from, to) as f64);
            }
        }
        Ok(())
    })?;
    Ok((samples, cpu as f64 / count as f64 / 1000.0))
}

/// What the sender rings.
#[derive(Debug)]
enum Bell {
    Vmmc(Import),
    Eventfd(OwnedFd),
    Futex,
}

impl Bell {
    fn hear_of(way: Way, links: &Links) -> Result<Bell, BenchError> {
        Ok(match way {
            Way::Handler | Way::Wait | Way::Awake => {
                Bell::Vmmc(import(&links.vmmc.process, &links.control.hear::<String>()?)?)
            }
            Way::Eventfd => Bell::Eventfd(links.control.hear_with::<String>()?.1),
            Way::Futex => Bell::Futex,
        })
    }

    #[inline(always)]
    fn ring(&self, page: &Mapping, number: u64) -> Result<(), BenchError> {
        if let Bell::Vmmc(import) = self {
            return import
                .send_notify(0, &number.to_ne_bytes())
                .map_err(|cause| BenchError::vmmc("send with a notification", cause));
        }
        page.word(stamps::PAYLOAD).store(number, Ordering::Release);
        match self {
            Bell::Eventfd(event) => rustix::io::write(event, &1u64.to_ne_bytes()).map(drop),
            _ => {
                futex_word(page).store(number as u32, Ordering::Release);
                futex::wake(futex_word(page), futex::Flags::empty(), 1).map(drop)
            }
        }
        .map_err(|cause| BenchError::os("wake the second process", cause))
    }
}

fn futex_word(page: &Mapping) -> &AtomicU32 {
    // SAFETY: four aligned bytes in the mapped page, accessed only as this atomic by both processes.
    unsafe { AtomicU32::from_ptr(page.start().add(stamps::FUTEX).cast()) }
}

/// What a handler does, whoever calls it: stamps, reads the payload, stamps.
#[derive(Debug)]
struct Stamper {
    page: Mapping,
    clock: Clock,
    busy: bool,
    core: usize,
    pinned: AtomicBool,
    /// Stamp of the last handler's end, for the thread that is interrupted.
    ended: AtomicU64,
    handled: AtomicU64,
}

// SAFETY: `page` is a shared mapping that is accessed through atomics only, and unmapped once, by
// the last owner; the other fields are `Send` and `Sync` themselves.
unsafe impl Send for Stamper {}
// SAFETY: as above.
unsafe impl Sync for Stamper {}

impl Stamper {
    #[inline(always)]
    fn handle(&self, payload: impl FnOnce() -> u64) {
        let started = self.clock.now();
        let number = payload();
        let ended = self.clock.now();
        self.page.word(stamps::STARTED).store(started, Ordering::Relaxed);
        self.page.word(stamps::ENDED).store(ended, Ordering::Relaxed);
        self.handled.store(number, Ordering::Relaxed);
        if self.busy {
            self.ended.store(ended, Ordering::Release);
        } else {
            self.page.word(stamps::NUMBER).store(number, Ordering::Release);
        }
        if !self.pinned.swap(true, Ordering::Relaxed) {
            // The library's thread is free to run anywhere; for the measurement it is held to the
            // receiver's core. If that fails, the figures only vary more.
            let _ = pin(self.core);
        }
    }

    /// Computes on the receiver's core until all notifications are handled; stamps when it goes on after each.
    fn be_interrupted(&self, count: u64) {
        let mut seen = 0;
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            if ended != seen {
                seen = ended;
                let number = self.handled.load(Ordering::Relaxed);
                self.page.word(stamps::RETURNED).store(self.clock.now(), Ordering::Relaxed);
                self.page.word(stamps::NUMBER).store(number, Ordering::Release);
                if number == count {
                    return;
                }
            }
        }
    }
}

/// The receiver's side.
pub(crate) fn be_notified(order: &NotifyOrder, links: &Links) -> Result<(), BenchError> {
    let memory = nameless_memory(4096)?;
    links.control.say_with(&"page", memory.as_fd())?;
    let stamper = Arc::new(Stamper {
        page: Mapping::of(&memory, 4096)?,
        clock: Clock::calibrated(),
        busy: order.busy,
        core: order.core,
        pinned: AtomicBool::new(order.way != Way::Handler),
        ended: AtomicU64::new(0),
        handled: AtomicU64::new(0),
    });
    match order.way {
        Way::Handler => by_handler(order, links, &stamper),
        Way::Wait | Way::Awake => by_waiting(order, links, &stamper),
        Way::Eventfd => by_eventfd(order, links, &stamper),
        Way::Futex => by_futex(order, &stamper),
    }
}

fn by_handler(
    order: &NotifyOrder,
    links: &Links,
    stamper: &Arc<Stamper>,
) -> Result<(), BenchError> {
    // The handler needs the export's memory, which exists only once the export does.
    let memory = Arc::new(AtomicPtr::<u64>::new(std::ptr::null_mut()));
    let (in_handler, address) = (Arc::clone(stamper), Arc::clone(&memory));
    let handler = move |_| {
        in_handler.handle(|| {
            // SAFETY: the first word of the export, stored before the sender could know the export,
            // and alive until `unexport`, after the last call; accessed atomically by this side.
            unsafe { AtomicU64::from_ptr(address.load(Ordering::Acquire)) }.load(Ordering::Acquire)
        });
    };
    let export = links
        .vmmc
        .process
        .export(4096)
        .rights(Rights::READ_WRITE)
        .notify(Notify::Handler(Box::new(handler)))
        .create()
        .map_err(|cause| BenchError::vmmc("export with a handler", cause))?;
    memory.store(export.as_ptr().cast(), Ordering::Release);
    links.control.say(&export.id().to_string())?;
    if order.busy {
        stamper.be_interrupted(order.count);
    }
    while stamper.handled.load(Ordering::Acquire) < order.count {
        std::thread::sleep(Duration::from_millis(5));
    }
    export.unexport().map_err(|cause| BenchError::vmmc("unexport", cause))
}

fn by_waiting(
    order: &NotifyOrder,
    links: &Links,
    stamper: &Arc<Stamper>,
) -> Result<(), BenchError> {
    let export = links
        .vmmc
        .process
        .export(4096)
        .rights(Rights::READ_WRITE)
        .notify(Notify::Event)
        .create()
        .map_err(|cause| BenchError::vmmc("export with an event", cause))?;
    links.control.say(&export.id().to_string())?;
    let spin = links.spin;
    let wait = |_| {
        if order.way == Way::Awake {
            return spin.until(|| export.take_notification().is_some());
        }
        // For ever, as the bare waits beside it: a time limit is a timer to arm.
        match export.wait(Duration::MAX) {
            Ok(_) => Ok(()),
            Err(WaitError::Timeout) => Err(BenchError::Stalled),
            Err(cause) => Err(BenchError::vmmc("wait on an export", cause)),
        }
    };
    woken(order, stamper, wait, || export.load_signal(0).unwrap_or(0))?;
    export.unexport().map_err(|cause| BenchError::vmmc("unexport", cause))
}

fn by_eventfd(
    order: &NotifyOrder,
    links: &Links,
    stamper: &Arc<Stamper>,
) -> Result<(), BenchError> {
    let event = eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|cause| BenchError::os("make an eventfd", cause))?;
    links.control.say_with(&"event", event.as_fd())?;
    let wait = |_| match rustix::io::read(&event, &mut [0; 8]) {
        Ok(_) => Ok(()),
        Err(cause) => Err(BenchError::os("read an eventfd", cause)),
    };
    woken(order, stamper, wait, || stamper.page.word(stamps::PAYLOAD).load(Ordering::Acquire))
}

fn by_futex(order: &NotifyOrder, stamper: &Arc<Stamper>) -> Result<(), BenchError> {
    let word = futex_word(&stamper.page);
    let wait = |number: u64| {
        while word.load(Ordering::Acquire) != number as u32 {
            // Whatever ends the wait, the word is looked at again.
            let _ = futex::wait(word, futex::Flags::empty(), number as u32 - 1, None);
        }
        Ok(())
    };
    woken(order, stamper, wait, || stamper.page.word(stamps::PAYLOAD).load(Ordering::Acquire))
}

/// A thread that waits, stamps when it is woken, and waits again.
fn woken(
    order: &NotifyOrder,
    stamper: &Arc<Stamper>,
    wait: impl Fn(u64) -> Result<(), BenchError> + Sync,
    payload: impl Fn() -> u64 + Sync,
) -> Result<(), BenchError> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            pin(order.core)?;
            for number in 1..=order.count {
                let woken = wait(number);
                if woken.is_err() {
                    // Lets the thread that computes beside this one end too.
                    stamper.handle(|| order.count);
                }
                woken?;
                stamper.handle(&payload);
            }
            Ok(())
        });
        if order.busy {
            stamper.be_interrupted(order.count);
        }
        waiting.join().unwrap_or_else(|_| Err(BenchError::OutOfStep("a thread ended early".into())))
    })
}
