//! Where the thread of asynchronous operations between nodes waits while some are under way: it polls the engine, as everybody does who waits.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Lanes, SPIN};
use crate::by_engine::AtTheQueue;
use crate::local_engine::Pause;
use crate::process::Inner;

/// How long it looks before operations take a step, which may have to ask for an acknowledgement.
const STEP: Duration = Duration::from_micros(25);
/// The longest sleep before they take a step: silence is noticed there.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct AtTheLanes {
    process: Weak<Inner>,
    /// What has no lane waits for the service.
    queue: AtTheQueue,
    /// When there was something to do last, in nanoseconds of the engine's clock.
    busy: AtomicU64,
    asleep: AtomicBool,
}

impl AtTheLanes {
    pub(crate) fn new(process: Weak<Inner>) -> Self {
        let (busy, asleep) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { queue: AtTheQueue(Weak::clone(&process)), process, busy, asleep }
    }

    fn lanes(&self) -> Option<Arc<Lanes>> {
        Some(Arc::clone(&self.process.upgrade()?.lanes))
    }

    /// Looks until operations should take a step; whether it may sleep now.
    fn spin(&self, lanes: &Lanes, found: &mut dyn FnMut() -> bool) -> bool {
        let start = lanes.now();
        lanes.lock().push(start);
        loop {
            let busy = lanes.poll();
            let now = lanes.now();
            if busy {
                self.busy.store(now.as_nanos(), Ordering::Relaxed);
            }
            self.queue.reap();
            if found() {
                return false;
            }
            let idle = now.as_nanos().saturating_sub(self.busy.load(Ordering::Relaxed));
            if u128::from(idle) > SPIN.as_nanos() {
                return true;
            }
            if now - start > STEP {
                return false;
            }
            if !busy {
                std::thread::yield_now();
            }
        }
    }
}

impl Pause for AtTheLanes {
    fn changes(&self) -> u32 {
        // Acquire: pairs with the release in `Lanes::turn`, so that what is news is seen.
        let news = self.lanes().map_or(0, |lanes| lanes.news.load(Ordering::Acquire));
        news.wrapping_add(self.queue.changes())
    }

    fn pause(&self, found: &mut dyn FnMut() -> bool) {
        let lanes = self.lanes().filter(|lanes| lanes.flights.load(Ordering::Relaxed) > 0);
        let Some(lanes) = lanes else { return self.queue.pause(found) };
        if !self.spin(&lanes, found) {
            return;
        }
        let Some(alarm) = lanes.alarm.get() else { return };
        self.asleep.store(true, Ordering::Relaxed);
        // Either we see what was posted, or who posted it sees that we sleep.
        fence(Ordering::SeqCst);
        if !found() {
            lanes.sleep(&[alarm.as_fd()], Some(LOOK));
        }
        self.asleep.store(false, Ordering::Relaxed);
        alarm.drain();
    }

    fn nudge(&self) {
        self.queue.nudge();
        // Behind the fence of whoever posted.
        if self.asleep.load(Ordering::Relaxed)
            && let Some(lanes) = self.lanes()
        {
            lanes.alarm.get().map(vmmc_os::Event::signal);
        }
    }
}
