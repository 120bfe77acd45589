//! Hosts that are busy with something else now and then.

use std::time::Duration;

use super::random::Random;
use crate::time::Time;

/// A host whose processor is taken away at random times: what arrives or is due meanwhile has to wait.
#[derive(Debug, Clone, Copy)]
pub struct Stalls {
    /// Mean time from the beginning of one to the next.
    pub every: Duration,
    /// Mean time that one takes.
    pub long: Duration,
}

/// The stalls of one host, as time goes by.
#[derive(Debug)]
pub(super) struct Stalled {
    stalls: Stalls,
    random: Random,
    until: Time,
    next: Time,
}

impl Stalled {
    pub(super) fn new(stalls: Stalls, random: Random) -> Stalled {
        Stalled { stalls, random, until: Time::ZERO, next: Time::ZERO }
    }

    /// When the host gets to what could be done at `at`.
    pub(super) fn awake_at(&mut self, at: Time) -> Time {
        while self.next <= at {
            self.until = self.next + self.around(self.stalls.long);
            self.next = self.next + self.around(self.stalls.every);
        }
        at.max(self.until)
    }

    fn around(&mut self, mean: Duration) -> Duration {
        Duration::from_nanos(self.random.below(2 * mean.as_nanos() as u64))
    }
}
