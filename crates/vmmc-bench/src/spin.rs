//! Waiting by looking: how the memory paths and the spinning sockets wait.

use std::time::{Duration, Instant};

use crate::BenchError;
use crate::clock::Clock;

/// Without progress for this long, the other process is taken for stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long to look before giving way between two nodes: some looks that are a system call, or many that are none.
const BRISK: Duration = Duration::from_nanos(2500);

/// How to spin: on one core the other process can only make progress if we give way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spin {
    /// Gives way after so many looks.
    Looks(u32),
    /// Gives way after so many ticks.
    Ticks(Clock, u64),
}

impl Spin {
    pub(crate) fn new(one_core: bool) -> Spin {
        Spin::Looks(if one_core { 1 } else { 1 << 20 })
    }

    /// Between two nodes of one machine, which may share a core: whatever a look costs, everybody gives way as often.
    pub(crate) fn between_nodes() -> Spin {
        let clock = Clock::calibrated();
        Spin::Ticks(clock, clock.ticks(BRISK))
    }

    /// Looks until `ready`. No pause instruction between looks: on the machines at hand it lengthens
    /// the way of a line by up to half, and the other core has a pipeline of its own.
    #[inline(always)]
    pub(crate) fn until(self, mut ready: impl FnMut() -> bool) -> Result<(), BenchError> {
        let mut since = None;
        loop {
            match self {
                Spin::Looks(looks) => {
                    for _ in 0..looks {
                        if ready() {
                            return Ok(());
                        }
                    }
                }
                Spin::Ticks(clock, ticks) => {
                    let end = clock.now() + ticks;
                    loop {
                        if ready() {
                            return Ok(());
                        }
                        if clock.now() >= end {
                            break;
                        }
                    }
                }
            }
            give_way(&mut since)?;
        }
    }
}

#[cold]
fn give_way(since: &mut Option<Instant>) -> Result<(), BenchError> {
    let start = *since.get_or_insert_with(Instant::now);
    if start.elapsed() > PATIENCE {
        return Err(BenchError::Stalled);
    }
    rustix::thread::sched_yield();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_ends_when_ready() {
        for one_core in [true, false] {
            let mut looks = 0;
            Spin::new(one_core)
                .until(|| {
                    looks += 1;
                    looks == 5
                })
                .unwrap();
            assert_eq!(looks, 5);
        }
    }
}
