//! Round-trip times of a path, as RFC 9002 section 5 estimates them.

use std::time::Duration;

/// Timers do not fire closer than this; a scheduler that takes a core away is not a loss.
const GRANULARITY: Duration = Duration::from_micros(100);

/// Until there is a sample. A local network answers sooner; the first sample corrects it.
const INITIAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Rtt {
    smoothed: Duration,
    variation: Duration,
    latest: Duration,
    /// The smallest there was, with whatever the peer held back.
    least: Duration,
    sampled: bool,
}

impl Rtt {
    pub(crate) fn new() -> Rtt {
        Rtt {
            smoothed: INITIAL,
            variation: INITIAL / 2,
            latest: INITIAL,
            least: Duration::MAX,
            sampled: false,
        }
    }

    /// Takes a sample, and frees it of the time that the peer says it held the acknowledgement back, as far as that can be true.
    pub(crate) fn sample(&mut self, whole: Duration, held: Duration) {
        self.least = self.least.min(whole);
        let sample = if whole >= self.least.saturating_add(held) { whole - held } else { whole };
        self.latest = sample;
        if !self.sampled {
            self.sampled = true;
            self.smoothed = sample;
            self.variation = sample / 2;
            return;
        }
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.sampled
    }

    pub(crate) fn latest(&self) -> Duration {
        self.latest
    }

    pub(crate) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// How long behind a later packet's acknowledgement an earlier packet is believed lost.
    pub(crate) fn loss_delay(&self) -> Duration {
        (self.smoothed.max(self.latest) * 9 / 8).max(GRANULARITY)
    }

    /// How long without an acknowledgement before the peer is asked.
    pub(crate) fn probe_timeout(&self, max_ack_delay: Duration) -> Duration {
        self.smoothed + (self.variation * 4).max(GRANULARITY) + max_ack_delay
    }
}
