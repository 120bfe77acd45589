//! The clock of the measurements: the processor's time stamp counter where there is one that ticks
//! at a constant rate on every core, `CLOCK_MONOTONIC` elsewhere.
//!
//! Stamps of two processes on one machine are comparable: both sources are the same on every core.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ticks of [`Clock::now`] are turned into time by the rate found at the first use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Nanoseconds a tick.
    tick: f64,
    /// What one call of [`Clock::now`] costs, in ticks.
    cost: u64,
}

impl Clock {
    /// The calibrated clock (the first call takes 20 ms).
    pub(crate) fn calibrated() -> Clock {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(calibrate)
    }

    /// A stamp. Instructions before it are done when it is taken; later ones may have started.
    #[inline(always)]
    pub(crate) fn now(&self) -> u64 {
        now()
    }

    /// The time between two stamps in nanoseconds, without what taking one of them costs.
    pub(crate) fn ticks_between(&self, from: u64, to: u64) -> u64 {
        to.saturating_sub(from).saturating_sub(self.cost).max(1)
    }

    pub(crate) fn nanoseconds(&self, ticks: f64) -> f64 {
        ticks * self.tick
    }

    pub(crate) fn microseconds(&self, ticks: f64) -> f64 {
        ticks * self.tick / 1000.0
    }

    /// How many ticks make up `span`.
    pub(crate) fn ticks(&self, span: Duration) -> u64 {
        (span.as_nanos() as f64 / self.tick) as u64
    }
}

fn calibrate() -> Clock {
    let (wall, ticks) = (Instant::now(), now());
    while wall.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let (nanoseconds, ticks) = (wall.elapsed().as_nanos(), now() - ticks);
    let mut costs: Vec<u64> = (0..1001)
        .map(|_| {
            let from = now();
            now() - from
        })
        .collect();
    costs.sort_unstable();
    Clock { tick: nanoseconds as f64 / ticks as f64, cost: costs[costs.len() / 2] }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn now() -> u64 {
    let mut core = 0;
    // SAFETY: RDTSCP exists on every x86-64 processor that Linux calls `rdtscp`-capable, which all
    // made since 2008 are; it only writes the processor's number to `core`.
    unsafe { std::arch::x86_64::__rdtscp(&raw mut core) }
}

#[cfg(not(target_arch = "x86_64"))]
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processor time that all threads of this process have used, in nanoseconds.
pub(crate) fn cpu_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_turned_into_ticks_and_back_is_the_same_span() {
        let clock = Clock::calibrated();
        let ticks = clock.ticks(Duration::from_millis(5));
        assert!((clock.microseconds(ticks as f64) - 5000.0).abs() < 1.0);
    }

    #[test]
    fn the_clock_agrees_with_the_system() {
        let clock = Clock::calibrated();
        let (wall, from) = (Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(20));
        let ticks = clock.now() - from;
        let wall = wall.elapsed().as_nanos() as f64;
        assert!(
            clock.nanoseconds(ticks as f64) <= wall * 1.05,
            "ticks run ahead of the system's clock"
        );
        assert!(clock.nanoseconds(ticks as f64) >= 19e6, "ticks stand still");
    }

    #[test]
    fn work_uses_processor_time() {
        let before = cpu_time();
        let mut sum = 0u64;
        for i in 0..3_000_000u64 {
            sum = std::hint::black_box(sum ^ i);
        }
        assert!(cpu_time() > before, "{sum}");
    }
}
