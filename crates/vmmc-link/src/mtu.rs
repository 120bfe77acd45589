//! Path MTU discovery by probe packets (RFC 8899), and the finding of black holes.

use std::time::Duration;

use crate::time::Time;

/// A search ends when the gap is smaller than this.
const CLOSE_ENOUGH: u16 = 16;
/// So many probes of one size have to be lost before the size is believed not to fit.
const PROBES: u8 = 3;
/// So many large packets lost in a row, and none delivered for so long, are a black hole. A queue without room takes dozens at a time.
const BLACK_HOLE: u8 = 8;
const BLACK_HOLE_AFTER: Duration = Duration::from_millis(50);
/// How long after a search before looking whether the path grew.
const AGAIN: Duration = Duration::from_secs(600);
/// How long after a black hole.
const AFTER_BLACK_HOLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Mtu {
    least: u16,
    most: u16,
    /// Known to get through.
    current: u16,
    /// The largest that may still get through.
    ceiling: u16,
    probing: Option<u16>,
    failed: u8,
    lost_in_row: u8,
    /// When the first of them was.
    lost_since: Time,
    next_search: Time,
}

impl Mtu {
    pub(crate) fn new(least: u16, most: u16) -> Mtu {
        let most = most.max(least);
        Mtu {
            least,
            most,
            current: least,
            ceiling: most,
            probing: None,
            failed: 0,
            lost_in_row: 0,
            lost_since: Time::ZERO,
            next_search: Time::ZERO,
        }
    }

    pub(crate) fn current(&self) -> u16 {
        self.current
    }

    pub(crate) fn least(&self) -> u16 {
        self.least
    }

    /// The size that a probe should have now, if one is due. The caller sends it.
    pub(crate) fn probe(&mut self, now: Time) -> Option<u16> {
        if self.probing.is_some() || now < self.next_search {
            return None;
        }
        let gap = self.ceiling.saturating_sub(self.current);
        if gap < CLOSE_ENOUGH && self.ceiling != self.most || gap == 0 {
            self.ceiling = self.most;
            self.next_search = now + AGAIN;
            return None;
        }
        // The largest first: nearly always it is the answer.
        let size =
            if self.ceiling == self.most { self.most } else { self.current + gap.div_ceil(2) };
        self.probing = Some(size);
        Some(size)
    }

    pub(crate) fn probe_acked(&mut self, size: u16) {
        self.probing = None;
        self.failed = 0;
        self.lost_in_row = 0;
        self.current = self.current.max(size);
        self.ceiling = self.ceiling.max(self.current);
    }

    pub(crate) fn probe_lost(&mut self, size: u16) {
        self.probing = None;
        self.failed += 1;
        if self.failed >= PROBES {
            self.failed = 0;
            self.ceiling = size.saturating_sub(1).max(self.current);
        }
    }

    pub(crate) fn packet_acked(&mut self, size: u32) {
        if size > u32::from(self.least) {
            self.lost_in_row = 0;
        }
    }

    /// Returns whether this loss shows a black hole: large packets no longer get through.
    pub(crate) fn packet_lost(&mut self, now: Time, size: u32) -> bool {
        if size <= u32::from(self.least) {
            return false;
        }
        if self.lost_in_row == 0 {
            self.lost_since = now;
        }
        self.lost_in_row = self.lost_in_row.saturating_add(1);
        let black_hole =
            self.lost_in_row >= BLACK_HOLE && now - self.lost_since >= BLACK_HOLE_AFTER;
        if black_hole {
            self.lost_in_row = 0;
            self.current = self.least;
            self.ceiling = self.most;
            self.next_search = now + AFTER_BLACK_HOLE;
        }
        black_hole
    }
}
